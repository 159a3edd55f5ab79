"""Making keys and CSRs: P-256 and RSA, without ready keys, out of a pool, and while the pool fills."""

import json
import os
import re
import statistics
import threading
import time
from itertools import repeat

import httpx
import uvloop
from bench import cfssl
from bench.driver import closed_loop, quantile
from bench.gets import late, port_of
from bench.measuring import FULL, JSON, Bench, Load, Row, Side, script, spread
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec.structs import replace


def p256(bench: Bench) -> None:
    plain = script(bench.folder, "p256", FULL, bench.auth)
    ours = bench.ours(lambda: bench.wrk(bench.csrs, script=plain, connections=32))
    ours.load()
    scene = "POST p256v1, durable, sealed, audited"
    cfssl.duel(bench, scene, ours, "newkey", cfssl.NEW_KEY, "≥ 0.20, aim 0.30", 32)
    bench.peers("post", "POST p256v1", ours)


def raw_rsa(seconds: float) -> Load:
    """RSA-2048 keys on as many threads as there are cores."""
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
    return Load(sum(made), sum(made) / (time.monotonic() - began))


def rsa_sustained(bench: Bench) -> None:
    """With the pool empty: this server has none."""
    lua = script(bench.folder, "rsa", {**FULL, "key_type": "rsa2048"}, bench.auth)
    # Longer, since a second has two dozen keys.
    bench = replace(bench, options=replace(bench.options, seconds=max(4, 2 * bench.options.seconds)))
    ours = bench.ours(lambda: bench.wrk(bench.csrs, script=lua, connections=8))
    ours.load()
    scene = "POST rsa2048 sustained, no pool"
    raw = Side(lambda: raw_rsa(bench.options.seconds))
    bench.duel(f"{scene} / (c) raw generation", ours, raw, "≥ 0.9, aim 0.98")
    body = {**cfssl.NEW_KEY, "key": {"algo": "rsa", "size": 2048}}
    cfssl.duel(bench, scene, ours, "newkey", body, "≥ 2", 8)


def _pool_level(bench: Bench) -> float:
    text = httpx.get(f"{bench.live.url}/metrics").text
    return sum(
        float(value) for value in re.findall(r"^keystead_key_pool_keys(?:\{[^}]*\})? ([\d.e+]+)$", text, re.MULTILINE)
    )


def _filled(bench: Bench, level: int) -> None:
    deadline = time.monotonic() + 120
    while _pool_level(bench) < level:
        if time.monotonic() > deadline:
            raise SystemExit("the pool does not fill")
        time.sleep(0.5)


def _burst(bench: Bench, count: int, key_type: str) -> tuple[float, list[float]]:
    """So many POSTs as fast as they go over 16 connections: how many a second, and each one's time."""
    body = json.dumps({**FULL, "key_type": key_type}).encode()
    head = f"POST {bench.live.account_path} HTTP/1.1\r\nHost: x\r\n{bench.auth}\r\n{JSON}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    seconds, times = uvloop.run(closed_loop(port_of(bench.csrs), repeat(request, count), 16))
    return count / seconds, times


def _pool(bench: Bench) -> int:
    return bench.options.pool * bench.options.workers


def rsa_burst(bench: Bench) -> None:
    """As many as the pools of all workers hold; the same client makes p256v1 ones by turns."""
    # Both workers are met about alike, so that three quarters come from neither's empty pool.
    pool, count = _pool(bench), _pool(bench) * 3 // 4
    ratios, rates, others, tails = [], [], [], []
    for _ in range(bench.options.rounds):
        _filled(bench, pool)
        rate, times = _burst(bench, count, "rsa2048")
        other, _ = _burst(bench, count, "p256v1")
        rates.append(rate)
        others.append(other)
        ratios.append(rate / other)
        tails.append(quantile(times, 0.99) * 1000)
    told = f"{statistics.median(rates):,.0f}/s, p99 {statistics.median(tails):.0f} ms"
    scene = f"POST rsa2048, a burst of {count} from pools of {pool} / our p256v1"
    beside = f"{statistics.median(others):,.0f}/s"
    bench.tell(Row(scene, told, beside, spread(ratios, ".2f"), "≥ 0.5, p99 ≤ 25 ms, aim 0.9"))


def refill(bench: Bench) -> None:
    """GETs at a steady rate, quiet and while the emptied pools fill again."""
    one, pool, seconds = bench.new_csr(), _pool(bench), 3
    rate = bench.wrk(one, bench.auth).rate / 4
    pairs = []
    for _ in range(bench.options.rounds):
        _filled(bench, pool)
        quiet = late(one, rate, seconds, bench.auth)
        _burst(bench, pool, "rsa2048")
        pairs.append((late(one, rate, seconds, bench.auth), quiet))
    told = [f"p99 {statistics.median(each):.1f} ms" for each in zip(*pairs, strict=True)]
    ratio = spread([a / b for a, b in pairs], ".2f")
    bench.tell(Row(f"GET while the pools refill / quiet ({rate:,.0f}/s)", told[0], told[1], ratio, "≤ 2, aim 1.3"))
