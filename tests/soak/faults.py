"""Every fault once against a real server, and what a steady client sees of it: the table in docs/reliability.md.

Two installations take turns: one with the PostgreSQL that it starts itself, whose processes are killed, and one whose
database is behind a proxy. It takes about four minutes, and ends what it started.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from support.authority import root
from support.live import STOP_SECONDS, Live, _variables, free_port, serving, wait_until_it_answers
from support.measured import write
from support.trouble import (
    IN_A_ROW,
    Client,
    Shaken,
    Told,
    client_of,
    ended,
    full,
    locked,
    read_only,
    refusing,
    shaken,
    stalled,
    stopped,
    without_connections,
)
from support.waiting import comes_about

KINDS = ("GET csr", "POST csr")
WORKERS = 2
# Requests of each kind are that far apart, whatever becomes of those before.
PAUSE = 0.05
PATIENCE = 120.0
Fault = tuple[str, AbstractAsyncContextManager[object], float]


class Row(msgspec.Struct):
    """One line of the table."""

    fault: str
    saw: str
    slowest: str
    well: str


async def observed(client: Client, fault: Fault) -> Row:
    """What the client sees from the beginning of a fault to the last of the good answers that show that all is well."""
    name, trouble, seconds = fault
    tasks: list[asyncio.Task[Told]] = []
    leaving = asyncio.Event()
    asking = asyncio.create_task(_ask_steadily(client, tasks, leaving))
    try:
        started = time.monotonic()
        await comes_about(lambda: _well(tasks, started))
        began = time.monotonic()
        async with trouble:
            await asyncio.sleep(seconds)
        over = time.monotonic()
        await comes_about(lambda: _well(tasks, over), PATIENCE)
        well, last = _well(tasks, over) or (over, over)
    finally:
        leaving.set()
        await asking
    told = [each for each in [await task for task in tasks] if each.asked + each.seconds > began and each.asked <= last]
    slowest = max((each.seconds for each in told), default=0.0)
    return Row(name, _counted(told), f"{slowest:.2f} s", f"{well - over:.2f} s")


async def _ask_steadily(client: Client, tasks: list[asyncio.Task[Told]], leaving: asyncio.Event) -> None:
    while not leaving.is_set():
        tasks += [asyncio.create_task(client.ask(kind)) for kind in KINDS]
        await asyncio.sleep(PAUSE)


def _well(tasks: list[asyncio.Task[Told]], since: float) -> tuple[float, float] | None:
    """When the first and the last of enough good answers in a row were asked for; None until there are so many."""
    good: list[float] = []
    for task in tasks:
        if not task.done():
            return None
        told = task.result()
        if told.asked < since:
            continue
        good = [*good, told.asked] if told.good else []
        if len(good) == IN_A_ROW:
            return good[0], good[-1]
    return None


def _counted(told: list[Told]) -> str:
    parts = []
    for kind in KINDS:
        counts = Counter(each.status for each in told if each.kind == kind)
        answers = [f"{count} times {status or 'no answer'}" for status, count in sorted(counts.items())]
        parts.append(f"{kind.split()[0]}: {', '.join(answers) or 'nothing'}")
    return "; ".join(parts)


class Installation(msgspec.Struct):
    """A server with a PostgreSQL of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def postmaster(self) -> int:
        return int((self.folder / "data" / "postgres" / "data" / "postmaster.pid").read_text().split()[0])

    def worker(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "KEYSTEAD_DATA_DIR": str(folder / "data"),
        "KEYSTEAD_KEY_POOL": "0",
        "KEYSTEAD_LOG": "json",
        "KEYSTEAD_PORT": str(port),
        "KEYSTEAD_RATE_LIMIT": "off",
        "KEYSTEAD_WORKERS": str(WORKERS),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSTEAD_", "CLOUDFLARE_"))}
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "keystead", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **settings},
        )


@contextlib.contextmanager
def _installed(folder: Path) -> Iterator[tuple[Installation, Live]]:
    port = free_port()
    there = Installation(folder, port, _start(folder, port))
    try:
        url, data_dir, log = f"http://127.0.0.1:{port}", folder / "data", folder / "log"
        wait_until_it_answers(f"{url}/healthz", there.process, log)
        variables = _variables((data_dir / "credentials.env").read_text())
        yield there, Live(url, variables, {}, "", data_dir, log, there.process.pid, root("Unused"))
    finally:
        there.process.terminate()
        there.process.wait(STOP_SECONDS)


@contextlib.asynccontextmanager
async def _killed(victim: Callable[[], int]) -> AsyncIterator[None]:
    os.kill(victim(), signal.SIGKILL)
    yield


@contextlib.asynccontextmanager
async def _killed_and_started(there: Installation) -> AsyncIterator[None]:
    there.process.kill()
    there.process.wait()
    there.process = _start(there.folder, there.port)
    yield


@contextlib.asynccontextmanager
async def _asleep(place: Shaken) -> AsyncIterator[None]:
    with stopped(await place.backends()):
        yield


async def measured(folder: Path) -> list[Row]:
    rows: list[Row] = []
    with _installed(folder) as (there, live):
        async with client_of(live) as client:
            kills: list[Fault] = [
                ("a worker is killed (-9)", _killed(there.worker), 0),
                ("the server is killed (-9) and started again at once", _killed_and_started(there), 0),
                ("its PostgreSQL is killed (-9)", _killed(there.postmaster), 0),
            ]
            rows += [_shown(await observed(client, fault)) for fault in kills]
    async with shaken(folder) as place:
        with serving(place.url, folder / "behind", workers=WORKERS) as live:
            async with client_of(live) as client:
                rows += [_shown(await observed(client, fault)) for fault in _troubles(place)]
    return rows


def _troubles(place: Shaken) -> list[Fault]:
    disk: list[Fault] = [("the disk is full for 5 s", full(place), 5)] if place.disk else []
    return [
        ("PostgreSQL is restarted", ended(place, signal.SIGINT), 0),
        ("PostgreSQL refuses connections for 10 s, as in a failover", refusing(place), 10),
        *disk,
        ("PostgreSQL is read-only for 5 s", read_only(place), 5),
        ("PostgreSQL has too many connections for 5 s", without_connections(place), 5),
        ("the tables are locked for 60 s", locked(place), 60),
        ("the network to PostgreSQL carries nothing for 15 s", stalled(place), 15),
        ("PostgreSQL's sessions are stopped (SIGSTOP) for 15 s", _asleep(place), 15),
    ]


def _shown(row: Row) -> Row:
    sys.stdout.write(f"{row.fault:<58} {row.saw}; slowest {row.slowest}, well after {row.well}\n")
    sys.stdout.flush()
    return row


def _write(rows: list[Row]) -> None:
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, with {WORKERS} workers"
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine} and a client that sends a GET and a POST each 50 ms.",
        "",
        "| fault | what the client saw, those twenty included | slowest answer | well again after |",
        "|---|---|---|---|",
        *(f"| {row.fault} | {row.saw} | {row.slowest} | {row.well} |" for row in rows),
    ]
    write("reliability.md", "faults", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measured(Path(folder)))
    if asked.write:
        _write(rows)


if __name__ == "__main__":
    main()
