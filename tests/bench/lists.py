"""Long lists, the page that most ask for, and what a worker holds after a day's requests."""

import asyncio
import json
import re
import subprocess
import time
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
from bench import signing
from bench.gets import reference
from bench.measuring import FULL, Bench, Row, Side, script, spread, wrk

FEW = 10_000
# The memory's requests come in turns of so many seconds, and end after so many turns.
TURN_SECONDS, MOST_TURNS = 10, 20


async def _grow(bench: Bench, account: UUID, count: int) -> None:
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


def _full_account(bench: Bench, name: str, count: int) -> tuple[str, str]:
    """The id of an account with so many CSRs, and the address of their list."""
    account = bench.new_account(name)
    asyncio.run(_grow(bench, UUID(account), count))
    url = f"{bench.live.url}/client/v4/accounts/{account}/custom_csrs"
    found = httpx.get(url, headers=bench.older).json()
    assert found["result_info"]["total_count"] == count
    assert len(found["result"]) == 50
    return account, url


def _headers(bench: Bench) -> list[str]:
    return [f"{name}: {value}" for name, value in bench.older.items()]


def page(bench: Bench) -> None:
    """Page 1 of a list with 50 rows and their total."""
    account, url = _full_account(bench, "page", FEW)
    ours = bench.ours(lambda: bench.wrk(url, *_headers(bench)))
    with reference(bench, account) as (bare, processes):
        theirs = Side(lambda: bench.wrk(f"{bare}/page"), processes)
        wanted = "CPU ≤ 1,000 µs, aim 800"
        bench.duel(f"list of {FEW:,}, page 1: 50 rows and total / (b) with these SELECTs", ours, theirs, wanted)
    bench.peers("page", "list, page 1 of 50", ours)


def lists(bench: Bench) -> None:
    """Page 1 with total_count of two accounts by turns, while p256v1 CSRs are written to a third."""
    many = bench.options.many
    (_, few_url), (_, many_url) = (_full_account(bench, name, n) for name, n in (("few", FEW), ("many", many)))
    writing = script(bench.folder, "writing", FULL, bench.auth)
    command = ["wrk", "-t1", "-c2", "-d600s", "-s", str(writing), bench.csrs]
    writer = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def milliseconds(url: str) -> float:
        return 1000 / bench.wrk(url, *_headers(bench), connections=1).rate

    try:
        pairs = [(milliseconds(many_url), milliseconds(few_url)) for _ in range(bench.options.rounds)]
    finally:
        writer.terminate()
        writer.wait()
    told = [f"{spread(each, '.1f')} ms" for each in zip(*pairs, strict=True)]
    scene = f"list, page 1 with total_count: {many:,} / {FEW:,} CSRs"
    bench.tell(Row(scene, told[0], told[1], spread([a / b for a, b in pairs], ".2f"), "≤ 2, aim 1.1"))
    for number in (100, 1000, many // 50):
        began = time.perf_counter()
        httpx.get(many_url, params={"page": number}, headers=bench.older, timeout=60).raise_for_status()
        took = (time.perf_counter() - began) * 1000
        bench.tell(Row(f"list of {many:,}, page {number:,} (50 a page)", f"{took:,.0f} ms", wanted="documented"))


def memory(bench: Bench) -> None:
    """Resident memory of the largest worker before and after so many mixed requests; not for longer than a while."""
    ca, one = signing.new_ca(bench), bench.new_csr().removeprefix(bench.live.url)
    leaf = f"{ca.certificates}/{ca.leaf()['serialNumber']}".removeprefix(bench.live.url)
    sign = f"{ca.url}/sign-certificate".removeprefix(bench.live.url)
    before = _largest_worker(bench.live.pid)
    lua, path = bench.folder / "mixed.lua", bench.live.account_path
    mine, cas = (f'{{["Authorization"]="{auth.partition(": ")[2]}"}}' for auth in (bench.auth, ca.auth))
    lua.write_text(
        f"""
local n = 0
request = function()
  n = n + 1
  if n % 100 == 1 then return wrk.format("POST", "{sign}", {cas}, [=[{json.dumps(signing.sign_request())}]=]) end
  if n % 20 == 0 then return wrk.format("POST", "{path}", {mine}, [=[{json.dumps(FULL)}]=]) end
  if n % 20 == 5 then return wrk.format("GET", "{leaf}", {cas}) end
  if n % 20 == 10 then return wrk.format("GET", "{path}?per_page=5", {mine}) end
  return wrk.format("GET", "{one}", {mine})
end
"""
    )
    told = 0
    for _ in range(MOST_TURNS):
        if told >= bench.options.requests:
            break
        told += wrk(bench.csrs, TURN_SECONDS, script=lua).requests
    after = _largest_worker(bench.live.pid)
    words = f"{after:.0f} MB, {before:.0f} MB before"
    bench.tell(Row(f"memory of a worker after {told:,} mixed requests", words, wanted="≤ 110 MB, aim 90"))


def _largest_worker(parent: int) -> float:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    sizes = [int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())[0]) for child in children]
    return max(sizes) / 1024
