"""Rate limits: the GCRA, its headers, and its 429 (contract-cloudflare sections 1 and 5)."""

import asyncio
import fcntl
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from support.waiting import SECONDS
from support.world import World, new_world

from keystead.config import RateLimit
from keystead.web.limits import Limiter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: int(now[0] * 1_000_000_000))
    return now


def test_the_burst_is_the_quota_and_the_refill_is_its_rate(tmp_path: Path, clock: list[float]) -> None:
    """Twelve at once and no thirteenth; then one for each second of a window of twelve."""
    limiter, limit = Limiter(tmp_path / "limits"), RateLimit(12, 12)
    verdicts = [limiter.hit(b"a", limit) for _ in range(13)]
    assert [v.allowed for v in verdicts] == [True] * 12 + [False]
    assert [v.remaining for v in verdicts] == [*range(11, -1, -1), 0]
    assert verdicts[-1].retry_after == 1
    clock[0] += 0.99
    assert not limiter.hit(b"a", limit).allowed
    clock[0] += 0.01
    assert limiter.hit(b"a", limit).allowed
    assert not limiter.hit(b"a", limit).allowed
    clock[0] += 5
    assert [limiter.hit(b"a", limit).allowed for _ in range(6)] == [True] * 5 + [False]
    clock[0] += 1000
    verdict = limiter.hit(b"a", limit)
    assert (verdict.remaining, verdict.reset) == (11, 1)
    limiter.close()


def test_keys_do_not_share_their_limits(tmp_path: Path, clock: list[float]) -> None:
    """What one caller uses up is not missed by another, in a hundred thousand of them."""
    limiter, limit = Limiter(tmp_path / "limits"), RateLimit(2, 60)
    for i in range(2):
        assert limiter.hit(f"{i}".encode(), limit).allowed
    assert limiter.hit(b"0", limit).allowed
    assert not limiter.hit(b"0", limit).allowed
    assert limiter.hit(b"1", limit).allowed
    size = (tmp_path / "limits").stat().st_size
    assert all(limiter.hit(f"k{i}".encode(), limit).allowed for i in range(20_000))
    assert (tmp_path / "limits").stat().st_size == size < 1_000_000
    limiter.close()


def test_a_state_from_before_a_reboot_does_not_lock_out(tmp_path: Path, clock: list[float]) -> None:
    """A time stamp from a clock that ran longer counts as none."""
    limiter, limit = Limiter(tmp_path / "limits"), RateLimit(10, 10)
    clock[0] = 9_000_000
    for _ in range(10):
        limiter.hit(b"a", limit)
    clock[0] = 10
    assert limiter.hit(b"a", limit).allowed
    limiter.close()


def _hits(path: Path) -> int:
    limiter = Limiter(path)
    allowed = sum(limiter.hit(b"a", RateLimit(500, 86_400)).allowed for _ in range(400))
    limiter.close()
    return allowed


def test_all_processes_share_one_limit(tmp_path: Path) -> None:
    """Four processes with 400 requests each get 500 through together."""
    with ProcessPoolExecutor(4) as pool:
        assert sum(pool.map(_hits, [tmp_path / "limits"] * 4)) == 500


def test_a_count_waits_for_the_one_of_another_process(tmp_path: Path) -> None:
    """While another process has the table, nothing is read from it or written into it."""
    limiter, other = Limiter(tmp_path / "limits"), os.open(tmp_path / "limits", os.O_RDWR)
    limiter._patience = 60
    fcntl.flock(other, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(limiter.hit, b"a", RateLimit(1, 60))
        assert not wait([counted], 0.2).done
        os.close(other)
        assert counted.result(SECONDS).allowed


def test_workers_that_count_ahead_let_no_more_pass(tmp_path: Path, clock: list[float]) -> None:
    """Three workers by turns let exactly the quota pass, once those that count ahead have spent or returned it."""
    workers, limit = [Limiter(tmp_path / "limits") for _ in range(3)], RateLimit(1200, 300)
    allowed = 0
    for number in range(1500):
        # Each of them gets some requests in a row.
        allowed += workers[number // 5 % 3].hit(b"a", limit).allowed
        clock[0] += 0.0001
    assert allowed == 1200
    for worker in workers:
        worker.close()


def test_what_was_counted_ahead_is_given_back(tmp_path: Path, clock: list[float]) -> None:
    """A worker that ends, and one that is asked again later, has counted only what it let pass."""
    limit = RateLimit(1200, 300)
    first, second = Limiter(tmp_path / "limits"), Limiter(tmp_path / "limits")
    assert [first.hit(b"a", limit).remaining for _ in range(3)] == [1199, 1198, 1197]
    clock[0] += 0.02
    assert first.hit(b"a", limit).remaining == 1196
    first.close()
    assert second.hit(b"a", limit).remaining == 1195
    second.close()


@pytest.mark.parametrize("steps", [(0.001,), (0.001, 0.3), (0.3, 0.001, 0.9), (0.9, 0.001, 0.001, 2.5)])
def test_two_workers_count_no_less_than_one(tmp_path: Path, clock: list[float], steps: tuple[float, ...]) -> None:
    """However late what was counted ahead is returned: what time has refilled meanwhile is not given back again."""
    limit, alone = RateLimit(1200, 300), Limiter(tmp_path / "alone")
    for number in range(30):
        first, second = Limiter(tmp_path / "limits"), Limiter(tmp_path / "limits")
        for step in steps * 3:
            clock[0] += step
            for worker in (first, second, second)[number % 3 :]:
                alone.hit(b"a", limit)
                worker.hit(b"a", limit)
        for worker in (first, second):
            worker.close()
        both = Limiter(tmp_path / "limits")
        assert both.hit(b"a", limit).remaining <= alone.hit(b"a", limit).remaining
        both.close()
    alone.close()


def test_a_worker_that_is_stopped_with_the_lock_stops_no_other(tmp_path: Path) -> None:
    """While somebody else keeps the table locked, requests are counted after one short wait for all of them."""
    limiter, limit = Limiter(tmp_path / "limits"), RateLimit(5, 3600)
    with (tmp_path / "limits").open("r+b") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        assert [limiter.hit(b"a", limit).allowed for _ in range(6)] == [True] * 5 + [False]
    assert not limiter.hit(b"a", limit).allowed
    limiter.close()


async def test_a_caller_above_the_limit_gets_429_and_true_headers(database_url: str, tmp_path: Path) -> None:
    """Forty pass with the figures counting down, the rest is 429/971 with Retry-After, other callers are served."""
    async with new_world(database_url, tmp_path, RateLimit(40, 3600)) as world:
        answers = await asyncio.gather(
            *(world.http.get(world.a.account_path, headers=world.a.bearer) for _ in range(50))
        )
        assert sorted(a.status_code for a in answers) == [200] * 40 + [429] * 10
        for answer in answers:
            assert answer.headers["ratelimit-policy"] == '"default";q=40;w=3600'
            left = re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
            assert left
            assert int(left[1]) < 40
            assert 0 < int(left[2]) <= 3600
        refused = [a for a in answers if a.status_code == 429]
        for answer in refused:
            assert answer.json()["errors"][0]["code"] == 971
            assert answer.json()["errors"][0]["message"] == "Please wait and consider throttling your request speed"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await world.http.get(world.b.account_path, headers=world.b.bearer)).status_code == 200
        # Requests that are refused for other reasons count too.
        assert (await world.http.get(world.b.account_path, headers=world.a.bearer)).status_code == 429


async def test_failed_authentications_are_limited_by_address(database_url: str, tmp_path: Path) -> None:
    """A tenth of the rate may fail from one address; good credentials from there are still served."""
    async with new_world(database_url, tmp_path, RateLimit(40, 3600)) as world:
        bad = {"Authorization": "Bearer " + "x" * 40}
        statuses = [(await world.http.get(world.a.account_path, headers=bad)).status_code for _ in range(6)]
        assert statuses == [403] * 4 + [429] * 2
        verify = await world.http.get("/client/v4/user/tokens/verify", headers=bad)
        assert verify.status_code == 429
        assert (await world.http.get(world.a.account_path, headers=world.a.bearer)).status_code == 200


async def test_without_a_limit_there_are_no_headers(world: World) -> None:
    """KEYSTEAD_RATE_LIMIT=off leaves the headers out."""
    answer = await world.http.get(world.a.account_path, headers=world.a.bearer)
    assert "ratelimit" not in answer.headers
    assert "ratelimit-policy" not in answer.headers
