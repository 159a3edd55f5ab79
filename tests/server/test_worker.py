"""What a worker does by itself, again and again."""

import asyncio
import contextlib
from datetime import timedelta
from uuid import uuid4

import pytest
from support.waiting import SECONDS
from support.world import World

from keystead import bounds
from keystead.server import worker
from keystead.server.rounds import every

_KEY = """
INSERT INTO idempotency_keys (account_id, caller_id, digest, body_sha256, resource_id, created_at)
SELECT $1, $2, sha256(age::bytea), sha256(age::bytea), $2, now() - age::interval FROM unnest($3::text[]) AS age
"""
_TOKEN = """
INSERT INTO access_tokens (digest, token_id, expires_at)
SELECT sha256(age::bytea), (SELECT id FROM tokens LIMIT 1), now() - age::interval FROM unnest($1::text[]) AS age
"""
_LEFT = """
SELECT (SELECT count(*) FROM idempotency_keys) AS keys, (SELECT count(*) FROM access_tokens) AS tokens
"""


async def test_what_has_been_over_for_a_day_is_deleted_and_nothing_else(world: World) -> None:
    """An Idempotency-Key is kept for 24 hours, and an access token for 24 hours after its end."""
    ages = ["23 hours 30 minutes", "24 hours 30 minutes", "2 days"]
    await world.database.execute(_KEY, world.a.account.id, uuid4(), ages)
    await world.database.execute(_TOKEN, ages)
    await worker._prune(world.database)
    row = await world.database.fetchrow(_LEFT)
    assert row is not None
    assert (row["keys"], row["tokens"]) == (1, 1)


async def test_the_last_crl_of_a_deleted_ca_goes_when_all_it_revokes_has_expired(world: World) -> None:
    """One that is over is deleted, one that has a minute left is not."""
    sql = "INSERT INTO last_crls (account_id, ca_id, der, next_update) VALUES ($1, $2, '', now() + $3::interval)"
    over, left = uuid4(), uuid4()
    for ca_id, age in ((over, timedelta(seconds=-1)), (left, timedelta(minutes=1))):
        await world.database.execute(sql, world.a.account.id, ca_id, age)
    await worker._prune(world.database)
    assert [row["ca_id"] for row in await world.database.fetch("SELECT ca_id FROM last_crls")] == [left]


async def test_a_worker_without_room_turns_away_requests_and_answers_probes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each dialect says so in its own form, with a request id of its own."""
    monkeypatch.setattr(bounds, "FEW_WAITING", -1)
    monkeypatch.setattr(bounds, "WAITING", 0)
    for path in ("/healthz", "/docs", "/metrics"):
        assert (await world.http.get(path)).status_code == 200, path
    cloudflare, infisical = [await world.http.get(path) for path in (world.a.account_path, "/api/status")]
    assert (cloudflare.status_code, cloudflare.json()["errors"][0]["code"]) == (503, 1501)
    assert (infisical.status_code, infisical.json()["statusCode"]) == (503, 503)
    assert infisical.json()["reqId"] == infisical.headers["x-request-id"]
    assert {each.headers["retry-after"] for each in (cloudflare, infisical)} == {"1"}


async def test_a_round_that_fails_is_followed_by_the_next() -> None:
    """What goes wrong once, of whatever kind, does not end what a worker does again and again."""
    done = asyncio.Event()
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ArithmeticError
        done.set()

    task = asyncio.create_task(every(0, "this cannot be done", work))
    await asyncio.wait_for(done.wait(), SECONDS)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
