"""A primary and a streaming standby of it, in PostgreSQLs of their own."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from support.waiting import until

from keystead.server import layout as layouts
from keystead.server import postgres


class Server:
    """A PostgreSQL on a folder of data that is there, which the caller starts and stops."""

    def __init__(self, folder: Path) -> None:
        self.layout = layouts.find_layout(folder)
        self.sockets = layouts.make_socket_folder(self.layout)
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, database: str, role: str = "keystead") -> str:
        return f"postgresql:///{database}?host={quote(str(self.sockets), safe='')}&user={role}&sslmode=disable"

    def run(self, program: str, *arguments: str | Path) -> None:
        process = self.layout.spawn(self.layout.programs / program, *arguments)
        assert process.wait(layouts.PATIENCE) == 0, (self.layout.home / "log").read_text()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        data = self.layout.data
        (data / "postmaster.pid").unlink(missing_ok=True)
        arguments = ("-D", data, "-k", self.sockets, "-c", "listen_addresses=")
        process = self._process = self.layout.spawn(self.layout.programs / "postgres", *arguments)

        def is_there() -> bool:
            assert process.poll() is None, (self.layout.home / "log").read_text()
            with contextlib.suppress(OSError):
                return (data / "postmaster.pid").read_text().rstrip().endswith(("ready", "standby"))
            return False

        until(is_there)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self._process is not None and self._process.poll() is None:
            # It may be in a user namespace, as the child of what was started.
            os.kill(int((self.layout.data / "postmaster.pid").read_text().split()[0]), how)
            self._process.wait()


def copied(primary: postgres.Cluster, folder: Path, delay: str) -> Server:
    """A standby of the primary that applies each commit after `delay`; not started yet."""
    made = Server(folder)
    source = primary.address("postgres").replace("postgresql:///postgres", "postgresql:///")
    made.run("pg_basebackup", "-D", made.layout.data, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source)
    with (made.layout.data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"recovery_min_apply_delay = '{delay}'\nfsync = off\n")
    return made


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
