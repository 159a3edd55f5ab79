"""A place whose ring and peppers change: its commands, its tables, and what is under which key."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest
from click.testing import CliRunner
from support.databases import connected
from support.live import Live
from support.waiting import until

from keystead.commands import cli
from keystead.custody import ring as ringfile
from keystead.custody import rotation
from keystead.custody.ring import Ring
from keystead.custody.rotation import Damage
from keystead.errors import KeysteadError
from keystead.store.database import Database

T = TypeVar("T")

# Of a condition that comes about in a moment, and of a command.
SECONDS, COMMAND_SECONDS = 30.0, 600.0
Json = dict[str, Any]


def in_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine in a loop of its own, because the session's loop may be running in this thread."""

    async def whole() -> T:
        return await work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, whole()).result()


def only(pattern: str, text: str) -> str:
    """The one part of a text that the pattern's group stands for."""
    (found,) = re.findall(pattern, text)
    return str(found)


class Said(msgspec.Struct):
    """What a command printed."""

    out: str
    err: str


class Place(msgspec.Struct):
    """A database and the data folder with its ring; runs `keystead` on them, in a process or in this one."""

    database_url: str
    data_dir: Path

    @property
    def path(self) -> Path:
        return self.data_dir / "keyring.json"

    @property
    def environ(self) -> dict[str, str]:
        return {"KEYSTEAD_DATABASE_URL": self.database_url, "KEYSTEAD_DATA_DIR": str(self.data_dir)}

    def run(self, *words: str, status: int = 0) -> Said:
        """The command without the costs of a process."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(CliRunner().invoke, cli.cli, words, env=self.environ).result()
        if done.exception and not isinstance(done.exception, SystemExit | KeysteadError):
            raise done.exception
        err = done.stderr + (f"keystead: {done.exception}\n" if isinstance(done.exception, KeysteadError) else "")
        assert done.exit_code == status, done.stdout + err
        return Said(done.stdout, err)

    def start(self, *words: str, patch: str = "", **changes: Any) -> subprocess.Popen[str]:
        """The command as a process; `patch` is Python that it runs first."""
        program = ("-c", f"{patch}\nfrom keystead.commands.cli import main\nmain()") if patch else ("-m", "keystead")
        pipes: Json = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **changes}
        environ = {**self.environ, "PATH": os.environ["PATH"], "TERM": "xterm"}
        return subprocess.Popen([sys.executable, *program, *words], env=environ, text=True, **pipes)

    def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async def fetch() -> list[asyncpg.Record]:
            async with connected(self.database_url) as connection:
                return await connection.fetch(sql, *args)

        return in_thread(fetch)

    def value(self, sql: str, *args: object) -> Any:
        return self.rows(sql, *args)[0][0]

    def earlier(self, table: str, column: str, by: timedelta) -> None:
        """Change the times of all rows; one by one, since Citus does not reckon with times in an UPDATE."""
        for (time,) in self.rows(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1"):
            self.rows(f"UPDATE {table} SET {column} = $1 WHERE {column} = $2", time - by, time)

    def with_database(self, work: Callable[[Database], Awaitable[T]]) -> T:
        async def inside() -> T:
            database = Database(self.database_url, 1)
            try:
                return await work(database)
            finally:
                await database.close()

        return in_thread(inside)

    def content(self) -> ringfile.Content:
        return ringfile.read(self.path)

    def ids(self) -> list[str]:
        return [entry.id for entry in self.content().keks]

    def add(self) -> str:
        """A new KEK, and its id."""
        return only(r"added KEK ([0-9a-f]{16}), not yet current", self.run("keys", "add").out)

    def settle(self) -> None:
        """As if the current KEK had become it two minutes ago."""
        since = datetime.now(UTC) - timedelta(minutes=2)
        ringfile._write(self.path, msgspec.structs.replace(self.content(), current_since=since))

    def under(self) -> dict[str, int]:
        """How many private keys are under each KEK."""
        found = self.rows("SELECT kek_id, count(*) AS n FROM private_keys GROUP BY kek_id")
        return {row["kek_id"]: row["n"] for row in found}

    def others(self) -> int:
        """How many private keys and peppers are not under the current KEK."""
        sql = "SELECT count(*) FROM {} WHERE kek_id <> $1"
        return sum(self.value(sql.format(table), self.ids()[0]) for table in ("private_keys", "peppers"))

    def damaged(self, ring: Ring | None = None) -> list[Damage]:
        """What does not open with the ring, or is not the key of what it belongs to."""
        opening = ring or ringfile.load(self.path)

        async def work(database: Database) -> list[Damage]:
            return [damage async for batch in rotation.verify(database, opening) for damage in batch.damaged]

        return self.with_database(work)


def ask(live: Live, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    """One call on a new connection, which goes to any of the workers."""
    # Without TLS there is nothing to verify, and reading the system's roots each time takes longer than the call.
    more = {"timeout": SECONDS, "verify": False, **more}
    return httpx.request(method, live.url + path, headers=headers or live.bearer, **more)


@contextlib.contextmanager
def mounted(source: Path, folder: Path) -> Iterator[Path]:
    """A data folder that is a read-only mount of another one, or has one of the ring alone."""
    folder.mkdir()
    target = folder
    if source.is_file():
        target = folder / source.name
        target.touch()
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        yield folder
    finally:
        subprocess.run(["umount", target], check=True)


def with_token(live: Live, token: str) -> int:
    """The status that a list answers to a token."""
    return ask(live, "GET", live.account_path, {"Authorization": f"Bearer {token}"}).status_code


def with_key(live: Live) -> int:
    """The same for the global key."""
    pair = {"X-Auth-Email": live.older["CLOUDFLARE_EMAIL"], "X-Auth-Key": live.older["CLOUDFLARE_API_KEY"]}
    return ask(live, "GET", live.account_path, pair).status_code


def new_token(place: Place) -> tuple[UUID, str]:
    (made,) = json.loads(place.run("token", "create", "a token", "--json").out)
    return UUID(made["id"]), made["token"]


def new_pepper(place: Place) -> UUID:
    """A new pepper that every process has had the time to read."""
    made = UUID(re.findall(r"added pepper ([0-9a-f-]{36})", place.run("keys", "add", "--pepper").out)[0])
    place.earlier("peppers", "created_at", timedelta(minutes=1))
    return made


def pepper_of(place: Place, token_id: UUID) -> UUID:
    found: UUID = place.value("SELECT pepper_id FROM tokens WHERE id = $1", token_id)
    return found


def key_pepper(place: Place, live: Live) -> UUID:
    sql = "SELECT key_pepper_id FROM users WHERE email = $1"
    found: UUID = place.value(sql, live.older["CLOUDFLARE_EMAIL"])
    return found


def everywhere(live: Live, token: str, status: int = 200) -> bool:
    """Whether every worker answers so; a new connection goes to any of them."""
    return all(with_token(live, token) == status for _ in range(16))


def known_everywhere(place: Place, live: Live) -> None:
    """Wait until each worker has read the newest pepper, for which it was left no time."""
    _, value = new_token(place)
    until(lambda: everywhere(live, value))
