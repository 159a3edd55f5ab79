"""A primary and a streaming standby of it, in PostgreSQLs of their own."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

from support.databases import connected
from support.waiting import comes_about, until

from keystead.server import layout as layouts
from keystead.server import postgres, roles
from keystead.store import schema

DATABASE = "keystead"
_STATE = "SELECT pg_get_wal_replay_pause_state()"


class Server:
    """A PostgreSQL on data that is there, which tests start and stop."""

    def __init__(self, folder: Path) -> None:
        self.layout = layouts.find_layout(folder)
        self.sockets = layouts.make_socket_folder(self.layout)
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, role: str = "keystead") -> str:
        return f"postgresql:///{DATABASE}?host={quote(str(self.sockets), safe='')}&user={role}&sslmode=disable"

    async def ask(self, sql: str) -> object:
        async with connected(self.address()) as connection:
            return await connection.fetchval(sql)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        data = self.layout.data
        arguments = ("-D", data, "-k", self.sockets, "-c", "listen_addresses=")
        process = self._process = self.layout.spawn(self.layout.programs / "postgres", *arguments)

        def is_there() -> bool:
            assert process.poll() is None, (self.layout.home / "log").read_text()
            with contextlib.suppress(OSError):
                return (data / "postmaster.pid").read_text().rstrip().endswith(("ready", "standby"))
            return False

        until(is_there)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it; by SIGQUIT as by a crash, without writing what it has in memory."""
        if self._process is not None and self._process.poll() is None:
            # It may be in a user namespace, as the child of what was started.
            os.kill(int((self.layout.data / "postmaster.pid").read_text().split()[0]), how)
            self._process.wait()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """What is written at the primary does not come here within the block."""
        await self.ask("SELECT pg_wal_replay_pause()")

        async def is_paused() -> bool:
            return await self.ask(_STATE) == "paused"

        await comes_about(is_paused)
        yield
        await self.ask("SELECT pg_wal_replay_resume()")


@contextlib.contextmanager
def primary(folder: Path) -> Iterator[postgres.Cluster]:
    """A PostgreSQL with the schema and the roles; a crash of the machine would lose its data."""
    with postgres.running(folder) as cluster:
        asyncio.run(_prepare(cluster))
        yield cluster


async def _prepare(cluster: postgres.Cluster) -> None:
    async with connected(cluster.dsn) as connection:
        for setting in ("fsync", "full_page_writes", "autovacuum"):
            await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await connection.execute("SELECT pg_reload_conf()")
    await roles.make(cluster.dsn)
    await schema.migrate(cluster.owner)
    await roles.grant(cluster.owner)


def copied(source: str, folder: Path, **settings: str) -> Server:
    """A standby of the server at this address; not started yet."""
    made = Server(folder)
    whole = source.replace(f"postgresql:///{DATABASE}?", "postgresql:///?")
    program = made.layout.programs / "pg_basebackup"
    arguments = ("-R", "-X", "stream", "-c", "fast", "--no-sync", "-D", made.layout.data, "-d", whole)
    assert made.layout.spawn(program, *arguments).wait() == 0, (made.layout.home / "log").read_text()
    # A conflict cancels a statement at once.
    chosen = {"max_standby_streaming_delay": "0", **settings}
    with (made.layout.data / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in chosen.items())
    return made


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
