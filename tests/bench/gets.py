"""Reading a CSR: beside a bare application and PostgreSQL alone, how late the latest are, and while watched."""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import uvloop
from bench.driver import open_loop, quantile
from bench.measuring import HERE, Bench, Load, Row, Side, process, spread
from support.live import free_port

from keystead import metrics


@contextlib.contextmanager
def reference(bench: Bench, account: str, body: bytes = b"{}") -> Iterator[tuple[str, tuple[int, int]]]:
    """The bare application's address, and its process with PostgreSQL's."""
    file, port = bench.folder / "body", free_port()
    file.write_bytes(body)
    environ = {"BENCH_BODY": str(file), "BENCH_ACCOUNT": account, "BENCH_DATABASE": bench.live.database_url}
    command = [sys.executable, str(HERE / "reference.py"), str(port), str(bench.options.workers)]
    url = f"http://127.0.0.1:{port}"
    with process(command, environ, f"{url}/bare") as pid:
        yield url, (pid, bench.database)


def get_by_id(bench: Bench) -> None:
    one = bench.new_csr()
    ours = bench.ours(lambda: bench.wrk(one, bench.auth))
    with reference(bench, bench.account, httpx.get(one, headers=bench.live.bearer).content) as (url, processes):
        select, bare = f"{url}/select/{one.rpartition('/')[2]}", f"{url}/bare"
        for warm in (one, select, bare):
            bench.wrk(warm, bench.auth)
        selected = Side(lambda: bench.wrk(select), processes)
        bench.duel("GET by id / (b) bare ASGI, one SELECT, JSON", ours, selected, "≥ 0.48, aim 0.60")
        bench.duel("GET by id / (a) bare ASGI, the same bytes", ours, Side(lambda: bench.wrk(bare), processes[:1]))
        _latency(bench, one, select)
    if shutil.which("pgbench"):
        sql = bench.folder / "select.sql"
        key = f"account_id = '{UUID(bench.account)}' AND id = '{one.rpartition('/')[2]}'"
        sql.write_text(f"SELECT * FROM custom_csrs WHERE {key};\n")
        queried = Side(lambda: _pgbench(bench, sql), (bench.database,))
        bench.duel("GET by id / (d) pgbench, the same SELECT, 8 clients", ours, queried)
    bench.peers("get", "GET by id", ours)


def _pgbench(bench: Bench, sql: Path) -> Load:
    seconds = max(1, round(bench.options.seconds))
    words = ["-n", "-M", "prepared", "-c", "8", "-j", "1", "-T", str(seconds), "-f", str(sql)]
    command = ["pgbench", *words, bench.live.database_url]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    (done,) = re.findall(r"transactions actually processed: (\d+)", ran.stdout)
    (rate,) = re.findall(r"tps = ([\d.]+)", ran.stdout)
    return Load(int(done), float(rate))


def port_of(url: str) -> int:
    return int(url.split("/")[2].rpartition(":")[2])


def late(url: str, rate: float, seconds: float, auth: str = "X: x") -> float:
    """The 99th percentile, in milliseconds, of GETs that are sent at this rate."""
    path = url.partition("//")[2].partition("/")[2]
    request = f"GET /{path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n\r\n".encode()
    return quantile(uvloop.run(open_loop(port_of(url), request, rate, seconds)), 0.99) * 1000


def _latency(bench: Bench, one: str, select: str) -> None:
    rate, seconds = bench.wrk(one, bench.auth).rate / 2, bench.options.seconds
    pairs = [(late(one, rate, seconds, bench.auth), late(select, rate, seconds)) for _ in range(bench.options.rounds)]
    told = [f"p99 {spread(each, '.1f')} ms" for each in zip(*pairs, strict=True)]
    scene = f"GET by id, p99 at half that load ({rate:,.0f}/s) / (b) at that rate"
    bench.tell(Row(scene, told[0], told[1], spread([a / b for a, b in pairs], ".2f"), "≤ 3, aim 1.5"))


def watched(bench: Bench) -> None:
    """What being watched costs: the same GET while it is scraped once a second."""
    one = bench.new_csr()
    quiet = bench.ours(lambda: bench.wrk(one, bench.auth))

    def scraped() -> Load:
        ending = threading.Event()

        def scrape() -> None:
            while not ending.wait(1):
                httpx.get(f"{bench.live.url}/metrics")
                httpx.get(f"{bench.live.url}/readyz")

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            return quiet.load()
        finally:
            ending.set()
            thread.join()

    bench.duel("GET by id, /metrics and /readyz asked each second / not", bench.ours(scraped), quiet)
    _parts(bench)


def _parts(bench: Bench) -> None:
    """What each part of being watched takes of a GET, in CPU."""
    folder = bench.folder / "parts"
    folder.mkdir()
    words = (bench.live.database_url, str(bench.live.data_dir), str(2 * bench.options.rounds))
    environ = {**os.environ, metrics.FOLDER: str(folder)}
    command = [sys.executable, str(HERE / "parts.py"), *words]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=300)
    for name, pairs in json.loads(ran.stdout.splitlines()[-1]).items():
        told = [f"{statistics.median(each):,.0f} µs" for each in zip(*pairs, strict=True)]
        ratio = spread([a / b for a, b in pairs], ".2f")
        bench.tell(Row(f"CPU of a GET in the application, with {name} / without", told[0], told[1], ratio))
