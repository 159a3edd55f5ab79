"""Trouble between a server and its database: a PostgreSQL of its own, a proxy before it, and clients that go on asking.

The proxy runs in a thread, because whoever starts a server behind it waits for that server by blocking.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import msgspec
from support.databases import connected
from support.live import Live, free_port
from support.waiting import comes_about
from support.world import BODY, Judge

from keystead.server import postgres
from keystead.store import database as db

T = TypeVar("T")
# As for everything that a test waits for: far more than it takes.
SECONDS = 40.0
# So many good answers say that all is well again.
IN_A_ROW = 20
ROLE = "ordinary"
DATABASE = "shaken"
DISK_SIZE = "64m"
SPARE = 4
_RESET = struct.pack("ii", 1, 0)


class _Link(msgspec.Struct, eq=False):
    """One connection through the proxy; a doomed one is cut before another byte goes down."""

    writers: list[asyncio.StreamWriter]
    pumps: list[asyncio.Task[None]]
    doomed: bool = False


class Proxy:
    """TCP on loopback to a socket file or a port of this machine.

    `chance` is how likely each piece of what goes through is the last of its connection. A piece on its way up may be
    `fatal` to its connection, which is cut before it arrives or, if it `reaches` the target, before the answer is back.
    """

    def __init__(self, target: Path | int, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self.port = free_port()
        self.chance = 0.0
        self.fatal: Callable[[bytes], bool] | None = None
        self.reaches = True
        self.cuts = 0
        self._target = target
        self._loop = loop
        self._dice = random.Random(seed)
        self._flows = asyncio.Event()
        self._flows.set()
        self._links: set[_Link] = set()
        self._listener: asyncio.Server | None = None

    def accept(self) -> None:
        self._call(self._accept())

    def refuse(self) -> None:
        """As a machine that has just gone: every connection is reset, and a new one is refused."""
        self._call(self._refuse())

    def stall(self) -> None:
        """Connections stay and new ones are taken, and nothing goes through any more."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    async def _accept(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
        while self._links:
            for link in self._links:
                _cut(link)
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link([writer], [])
        self._links.add(link)
        try:
            there, onward = await self._connect()
            link.writers.append(onward)
            link.pumps += [
                asyncio.create_task(self._pump(link, reader, onward, up=True)),
                asyncio.create_task(self._pump(link, there, writer, up=False)),
            ]
            await asyncio.wait(link.pumps)
        except OSError:
            _cut(link)
        finally:
            self._links.remove(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, int):
            return await asyncio.open_connection("127.0.0.1", self._target)
        return await asyncio.open_unix_connection(self._target)

    async def _pump(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while piece := await source.read(2**16):
                await self._flows.wait()
                if self._is_last(link, piece, up=up):
                    self.cuts += 1
                    _cut(link)
                    return
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    def _is_last(self, link: _Link, piece: bytes, *, up: bool) -> bool:
        if up and self.fatal is not None and self.fatal(piece):
            link.doomed = True
            return not self.reaches
        return (link.doomed and not up) or self._dice.random() < self.chance


def _cut(link: _Link) -> None:
    for writer in link.writers:
        # A reset, as a graceful end would look like a peer that closes what it does not need.
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    for pump in link.pumps:
        pump.cancel()


@contextlib.contextmanager
def proxy(target: Path | int, seed: int = 0) -> Iterator[Proxy]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    made = Proxy(target, loop, seed)
    made.accept()
    try:
        yield made
    finally:
        made.resume()
        made.refuse()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Shaken(msgspec.Struct):
    """A database that may be shaken: `url` leads to it through the proxy, as a role that is no superuser.

    It lies on a `disk` of its own where this user may mount one.
    """

    cluster: postgres.Cluster
    proxy: Proxy
    url: str
    postmaster: Path
    disk: Path | None

    @property
    def address(self) -> str:
        """The database past the proxy, for the superuser."""
        return self.cluster.address(DATABASE)

    async def sql(self, statement: str) -> list[asyncpg.Record]:
        """Run it as the superuser, past the proxy and in another database, which stays as it is."""
        async with connected(self.cluster.dsn) as connection:
            return await connection.fetch(statement)

    async def backends(self) -> list[int]:
        """The processes of PostgreSQL that work for the server, those that are just starting too."""
        return [row["pid"] for row in await self.sql(f"SELECT pid FROM pg_stat_activity WHERE usename = '{ROLE}'")]

    async def waiting(self) -> dict[int, str]:
        """The processes that wait for a lock on the server's behalf, and for which statement."""
        sql = f"SELECT pid, query FROM pg_stat_activity WHERE usename = '{ROLE}' AND wait_event_type = 'Lock'"
        return {row["pid"]: row["query"] for row in await self.sql(sql)}

    async def hang_up(self) -> None:
        """End the server's sessions, since a setting of a role or a database is for new ones."""
        await self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")


@contextlib.asynccontextmanager
async def ended(place: Shaken, how: int) -> AsyncIterator[None]:
    """PostgreSQL is sent a signal that ends it, and is started again at the end."""
    os.kill(int(place.postmaster.read_text().split()[0]), how)
    await comes_about(lambda: not place.cluster.alive())
    try:
        yield
    finally:
        await asyncio.to_thread(place.cluster.ensure)


@contextlib.asynccontextmanager
async def refusing(place: Shaken) -> AsyncIterator[None]:
    place.proxy.refuse()
    try:
        yield
    finally:
        place.proxy.accept()


@contextlib.asynccontextmanager
async def stalled(place: Shaken) -> AsyncIterator[None]:
    place.proxy.stall()
    try:
        yield
    finally:
        place.proxy.resume()


@contextlib.asynccontextmanager
async def read_only(place: Shaken) -> AsyncIterator[None]:
    await place.sql(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
    await place.hang_up()
    try:
        yield
    finally:
        await place.sql(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")
        await place.hang_up()


@contextlib.asynccontextmanager
async def without_connections(place: Shaken) -> AsyncIterator[None]:
    """PostgreSQL says "too many connections" to every new one."""
    await place.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0")
    await place.hang_up()
    try:
        yield
    finally:
        await place.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


@contextlib.asynccontextmanager
async def full(place: Shaken) -> AsyncIterator[None]:
    """The disk of the database has not a free byte."""
    assert place.disk is not None
    ballast = place.disk / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(2**16)):
                pass
        yield
    finally:
        ballast.unlink()


@contextlib.asynccontextmanager
async def locked(place: Shaken) -> AsyncIterator[None]:
    """Somebody has locked the tables of CSRs and of CAs, and keeps the lock."""
    connection: db.Connection = await asyncpg.connect(place.address)
    begin = "BEGIN; LOCK TABLE custom_csrs, certificate_authorities IN ACCESS EXCLUSIVE MODE"
    try:
        while True:
            try:
                await connection.execute(begin)
            except asyncpg.DeadlockDetectedError:
                # A request that has used the second table wants the first.
                await connection.execute("ROLLBACK")
            else:
                break
        yield
    finally:
        await connection.execute("ROLLBACK")
        await connection.close()


@contextlib.contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """These processes are there and do nothing."""
    asleep = []
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            asleep.append(pid)
        yield
    finally:
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def shaken(folder: Path) -> AsyncIterator[Shaken]:
    """A PostgreSQL of its own, with an empty database, behind a proxy."""
    with _small_disk(folder / "disk") as disk, postgres.running(folder / "cluster") as cluster:
        async with connected(cluster.dsn) as connection:
            postmaster = Path(await connection.fetchval("SHOW data_directory")) / "postmaster.pid"
            sockets = Path(await connection.fetchval("SHOW unix_socket_directories"))
            await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
            space = ""
            if disk:
                _give(disk, postmaster)
                await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                space = "TABLESPACE small"
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE} TEMPLATE template0 {space}")
        with proxy(sockets / ".s.PGSQL.5432") as made:
            url = f"postgresql://{ROLE}@127.0.0.1:{made.port}/{DATABASE}?sslmode=disable"
            yield Shaken(cluster, made, url, postmaster, disk)


def _give(disk: Path, to_the_owner_of: Path) -> None:
    os.chown(disk, to_the_owner_of.stat().st_uid, -1)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=0700", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


class Told(msgspec.Struct):
    """What a client was told, and when; status 0 is no answer at all."""

    kind: str
    asked: float
    seconds: float
    status: int
    answer: httpx.Response | None = None

    @property
    def good(self) -> bool:
        return self.status in {200, 201} or (self.status == 404 and self.kind.startswith("DELETE"))


KINDS = ("GET csr", "POST csr", "DELETE csr", "GET ca", "POST ca", "DELETE ca")


class Client(msgspec.Struct):
    """It reads, makes and deletes, a CSR in Cloudflare's dialect and a CA in Infisical's."""

    live: Live
    http: httpx.AsyncClient
    kept: dict[str, str]
    spare: dict[str, list[str]]

    async def ask(self, kind: str) -> Told:
        """Ask for one thing of this kind; what was made is deleted, and again if it is not known to be gone."""
        method, what = kind.split()
        one = {"GET": self.kept[what], "POST": uuid4().hex, "DELETE": self.spare[what][0]}[method]
        asked = time.monotonic()
        try:
            answer = await self._send(method, what, one)
        except httpx.TransportError:
            return Told(kind, asked, time.monotonic() - asked, 0)
        told = Told(kind, asked, time.monotonic() - asked, answer.status_code, answer)
        if told.good and method == "POST":
            self.spare[what].append(_id(answer))
        elif told.good and method == "DELETE" and len(self.spare[what]) > 1:
            self.spare[what].remove(one)
        return told

    async def _send(self, method: str, what: str, one: str) -> httpx.Response:
        path = self.live.account_path if what == "csr" else "/api/v1/pki/ca"
        if method == "POST":
            return await self.http.post(path, json=self.body(what, one))
        return await self.http.request(method, f"{path}/{one}")

    def body(self, what: str, name: str) -> dict[str, Any]:
        if what == "csr":
            return {**BODY, "name": name}
        slug = self.live.env["KEYSTEAD_PROJECT_SLUG"]
        named = {"commonName": name, "friendlyName": name, "keyAlgorithm": "EC_prime256v1"}
        return {"projectSlug": slug, "type": "intermediate", **named}


def _id(answer: httpx.Response) -> str:
    body = answer.json()
    found: str = body["result"]["id"] if "result" in body else body["ca"]["id"]
    return found


@contextlib.asynccontextmanager
async def client_of(live: Live) -> AsyncIterator[Client]:
    unlimited = httpx.Limits()
    async with httpx.AsyncClient(base_url=live.url, headers=live.bearer, timeout=SECONDS, limits=unlimited) as http:
        client = Client(live, http, {}, {"csr": [], "ca": []})
        for what in client.spare:
            made = [await client._send("POST", what, uuid4().hex) for _ in range(SPARE)]
            assert all(answer.is_success for answer in made), made[-1].text
            client.kept[what], *client.spare[what] = [_id(answer) for answer in made]
        yield client


@contextlib.asynccontextmanager
async def asking(client: Client, pause: float = 0.1) -> AsyncIterator[list[Told]]:
    """One task for each kind of request, which asks again a moment after it was answered."""
    told: list[Told] = []
    leaving = asyncio.Event()

    async def go_on(kind: str) -> None:
        while not leaving.is_set():
            told.append(await client.ask(kind))
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(go_on(kind)) for kind in KINDS]
    try:
        yield told
    finally:
        leaving.set()
        await asyncio.gather(*tasks)


def is_well(told: list[Told], since: float) -> bool:
    """Whether the last answers are good ones, of every kind, to what was asked after this moment."""
    last = told[-IN_A_ROW:]
    return (
        len(last) == IN_A_ROW and kinds(last) == set(KINDS) and all(each.good and each.asked > since for each in last)
    )


def kinds(told: Iterable[Told]) -> set[str]:
    return {each.kind for each in told}


def words(answer: httpx.Response) -> str:
    """The sentence of an error, in either dialect."""
    body = answer.json()
    found: str = body["errors"][0]["message"] if "errors" in body else body["message"]
    return found


def is_clear(judge: Judge, answer: httpx.Response) -> None:
    """Assert that it is the dialect's own way to say: not now, come back soon."""
    judge(answer)
    assert answer.status_code == 503, answer.text
    assert re.fullmatch("[1-9]|[1-5][0-9]|60", answer.headers["retry-after"])
    body = answer.json()
    if "errors" in body:
        assert [item["code"] for item in body["errors"]] == [1501], answer.text
    else:
        assert (body["statusCode"], body["error"]) == (503, "ServiceUnavailable"), answer.text
    if answer.request.method == "GET":
        assert "not known" not in words(answer)
