"""How a scene is measured: loads by turns, requests a second, and the CPU of the server and its database for each."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from support.live import Live
from support.world import BODY

HERE = Path(__file__).parent
FULL = {**BODY, "name": "My Custom CSR", "description": "for wildcard", "organizational_unit": "Engineering"}
JSON = "Content-Type: application/json"
Json = dict[str, Any]


class Row(msgspec.Struct):
    """One line of the table: what was measured, beside its reference, over several rounds."""

    scene: str
    ours: str
    reference: str = ""
    ratio: str = ""
    wanted: str = ""


class Load(msgspec.Struct, frozen=True):
    """How many requests were answered well, and how many a second that is."""

    requests: int
    rate: float


class Side(msgspec.Struct, frozen=True):
    """A load, and the processes that work for it: each with those below it. Without any, their CPU is not told."""

    load: Callable[[], Load]
    processes: tuple[int, ...] = ()

    def measure(self) -> tuple[float, float]:
        """Requests a second, and microseconds of CPU for each."""
        before = cpu_seconds(self.processes)
        load = self.load()
        return load.rate, (cpu_seconds(self.processes) - before) / load.requests * 1e6


class Peer(msgspec.Struct, frozen=True):
    """Another service that runs already, to be measured beside a scene."""

    processes: tuple[int, ...]
    url: str
    script: Path | None


class Options(msgspec.Struct, frozen=True):
    seconds: float
    rounds: int
    workers: int
    pool: int
    many: int
    requests: int
    peers: tuple[tuple[str, Peer], ...]


class Bench(msgspec.Struct):
    live: Live
    folder: Path
    options: Options
    # The process above all of PostgreSQL's.
    database: int
    rows: list[Row]

    @property
    def auth(self) -> str:
        return f"Authorization: Bearer {self.live.env['CLOUDFLARE_API_TOKEN']}"

    @property
    def older(self) -> dict[str, str]:
        """The headers of the first user, who may do everything."""
        return {
            "X-Auth-Email": self.live.older["CLOUDFLARE_EMAIL"],
            "X-Auth-Key": self.live.older["CLOUDFLARE_API_KEY"],
        }

    @property
    def csrs(self) -> str:
        return self.live.url + self.live.account_path

    @property
    def account(self) -> str:
        return self.live.env["CLOUDFLARE_ACCOUNT_ID"]

    def new_csr(self) -> str:
        made = httpx.post(self.csrs, json=FULL, headers=self.live.bearer)
        return f"{self.csrs}/{made.json()['result']['id']}"

    def new_account(self, name: str) -> str:
        made = httpx.post(f"{self.live.url}/client/v4/accounts", json={"name": name}, headers=self.older)
        made.raise_for_status()
        return str(made.json()["result"]["id"])

    def ours(self, load: Callable[[], Load]) -> Side:
        return Side(load, (self.live.pid, self.database))

    def wrk(self, url: str, *headers: str, script: Path | None = None, connections: int = 16) -> Load:
        return wrk(url, self.options.seconds, *headers, script=script, connections=connections)

    def tell(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.scene:<58} {row.ours:<30} {row.reference:<30} {row.ratio:<18} {row.wanted}", flush=True)

    def duel(self, scene: str, ours: Side, reference: Side, wanted: str = "") -> None:
        """Both by turns, A B A B, and the ratio of their rates in each round."""
        rounds = [(ours.measure(), reference.measure()) for _ in range(self.options.rounds)]
        ratio = spread([a[0] / b[0] for a, b in rounds], ".2f")
        told = [_told(side, each) for side, each in zip((ours, reference), zip(*rounds, strict=True), strict=True)]
        self.tell(Row(scene, told[0], told[1], ratio, wanted))

    def alone(self, scene: str, ours: Side, wanted: str = "") -> None:
        self.tell(Row(scene, _told(ours, [ours.measure() for _ in range(self.options.rounds)]), wanted=wanted))

    def peers(self, scene: str, what: str, ours: Side) -> None:
        """The same beside each service that was named for this scene."""
        for name, peer in self.options.peers:
            if name == scene:
                load = _load_of(peer, self.options.seconds)
                self.duel(f"{what} / {peer.url}", ours, Side(load, peer.processes))


def _load_of(peer: Peer, seconds: float) -> Callable[[], Load]:
    return lambda: wrk(peer.url, seconds, script=peer.script)


def _told(side: Side, rounds: Iterable[tuple[float, float]]) -> str:
    rates, cpu = zip(*rounds, strict=True)
    rate = f"{statistics.median(rates):,.0f}/s"
    return f"{rate}, {spread(cpu, ',.0f')} µs" if side.processes else rate


def spread(values: Iterable[float], form: str) -> str:
    """The median, with the lowest and the highest."""
    ordered = sorted(values)
    lowest, middle, highest = (format(each, form) for each in (ordered[0], statistics.median(ordered), ordered[-1]))
    return f"{middle} ({lowest}–{highest})"


_TICKS = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """What /proc says of a process behind its name, which stands in parentheses and may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def parent_of(pid: int) -> int:
    return int(_fields(pid)[1])


def cpu_seconds(roots: Iterable[int]) -> float:
    """What these processes and those below them have taken, with those of theirs that have ended."""
    times, below = dict[int, int](), dict[int, list[int]]()
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = _fields(pid)
            times[pid] = sum(map(int, fields[11:15]))
            below.setdefault(int(fields[1]), []).append(pid)
    waiting, found = list(roots), set[int]()
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += below.get(pid, ())
    return sum(times[pid] for pid in found) / _TICKS


def wrk(url: str, seconds: float, *headers: str, connections: int = 16, script: Path | None = None) -> Load:
    """What is answered by 2xx; any other answer ends the program."""
    words = [word for header in headers for word in ("-H", header)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", *words]
    more = ["-s", str(script)] if script else []
    ran = subprocess.run([*command, *more, url], capture_output=True, text=True, check=True, timeout=seconds + 60)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", ran.stdout)
    answered = re.search(r"(\d+) requests in ", ran.stdout)
    rate = re.search(r"Requests/sec: +([\d.]+)", ran.stdout)
    if bad or not answered or not rate or answered[1] == "0":
        raise SystemExit(f"{url}: {f'{bad[1]} answers were no success' if bad else 'no answers'}\n{ran.stdout}")
    return Load(int(answered[1]), float(rate[1]))


def script(folder: Path, name: str, body: Json, *headers: str) -> Path:
    """A POST of this body, for wrk."""
    path = folder / f"{name}.lua"
    lines = "\n".join(f'wrk.headers["{h.partition(": ")[0]}"] = "{h.partition(": ")[2]}"' for h in (JSON, *headers))
    # The brackets of level one may hold those of JSON.
    path.write_text(f"wrk.method = 'POST'\nwrk.body = [=[{json.dumps(body)}]=]\n{lines}\n")
    return path


@contextlib.contextmanager
def process(command: list[str], environ: dict[str, str], url: str) -> Iterator[int]:
    """A server for the while, once it answers at this address; its process id."""
    running = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, timeout=5)
                break
            if running.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {running.returncode}")
            time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        running.wait(20)
