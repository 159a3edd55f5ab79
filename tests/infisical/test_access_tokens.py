"""Access tokens: renewed, revoked, and never beyond what they stand for (contract-infisical, "Today's prefix")."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from support.world import World, make_token, new_world

from keystead.identity import tokens

LOGIN, RENEW, REVOKE = (f"/api/v1/auth/{tail}" for tail in ("universal-auth/login", "token/renew", "token/revoke"))
NOT_ALLOWED = "You are not allowed to access this resource"


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world


async def login(world: World, **fields: Any) -> tuple[str, str]:
    """An access token of a new API token, and that token's value."""
    value = await make_token(world.services, world.a.account, **fields)
    token = (await tokens.list_(world.database))[-1]
    answer = await world.http.post(LOGIN, json={"clientId": str(token.id), "clientSecret": value})
    return answer.json()["accessToken"], value


async def sent(world: World, path: str, body: Any) -> httpx.Response:
    return await world.http.post(path, json=body)


async def opens(world: World, access: str) -> int:
    path = f"/api/v1/cert-manager/ca/internal?projectId={world.a.account.id}"
    return (await world.http.get(path, headers={"Authorization": f"Bearer {access}"})).status_code


async def make_older(world: World, minutes: int) -> None:
    await world.database.execute(
        "UPDATE access_tokens SET expires_at = expires_at - make_interval(mins => $1)", minutes
    )


async def end_of_last(world: World) -> datetime:
    row = await world.database.fetchrow("SELECT expires_at FROM access_tokens ORDER BY issued_at DESC LIMIT 1")
    assert row
    found: datetime = row["expires_at"]
    return found


@pytest.mark.parametrize("path", [RENEW, REVOKE])
async def test_what_is_no_living_access_token_is_401(world: World, path: str) -> None:
    """Unknown, cut, revoked, ended and API tokens are all told the same, and a body without one is 422."""
    access, value = await login(world)
    ended, _ = await login(world)
    await make_older(world, 300)
    fresh, _ = await login(world)
    assert (await sent(world, REVOKE, {"accessToken": fresh})).status_code == 200
    before = await world.database.fetch("SELECT * FROM access_tokens ORDER BY digest")
    wrong = (ended, fresh, access, value, access[:-1], "x", tokens.new_token(tokens.ACCESS_TOKEN), "\x00", "x" * 5000)
    for each in wrong:
        answer = await sent(world, path, {"accessToken": each})
        assert (answer.status_code, answer.json()["message"]) == (401, NOT_ALLOWED), each[:60]
    for body in ({}, {"accessToken": ""}, {"accessToken": 7}, {"accessToken": None}):
        answer = await sent(world, path, body)
        assert answer.status_code == 422
        assert [issue["path"] for issue in answer.json()["message"]] == [["accessToken"]]
    assert await world.database.fetch("SELECT * FROM access_tokens ORDER BY digest") == before


@pytest.mark.parametrize("path", [RENEW, REVOKE])
async def test_an_access_token_is_used_from_the_addresses_of_its_api_token(world: World, path: str) -> None:
    """From elsewhere it can be neither renewed nor revoked."""
    access, _ = await login(world)
    token = (await tokens.list_(world.database))[-1]
    condition = '{"request_ip": {"in": ["192.0.2.0/24"]}}'
    await world.database.execute("UPDATE tokens SET condition = $2 WHERE id = $1", token.id, condition)
    assert (await sent(world, path, {"accessToken": access})).status_code == 401
    await world.database.execute("UPDATE tokens SET condition = NULL WHERE id = $1", token.id)
    assert await opens(world, access) == 200


async def test_a_renewed_token_is_the_same_one_for_two_hours_more(world: World) -> None:
    """Its value stays, its end is two hours away, and the answer says so."""
    access, _ = await login(world)
    await make_older(world, 60)
    answer = await sent(world, RENEW, {"accessToken": access})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "accessToken": access,
        "expiresIn": 7200,
        "accessTokenMaxTTL": 7200,
        "tokenType": "Bearer",
    }
    away = await end_of_last(world) - datetime.now(UTC)
    assert timedelta(minutes=119) < away <= timedelta(hours=2)
    assert await opens(world, access) == 200


async def test_a_renewal_never_outlives_the_api_token(world: World) -> None:
    """Where the API token ends sooner than in two hours, that is the end, and `expiresIn` says so."""
    ends = datetime.now(UTC) + timedelta(minutes=10)
    access, _ = await login(world, expires_on=ends)
    answer = await sent(world, RENEW, {"accessToken": access})
    assert answer.status_code == 200, answer.text
    assert 0 < answer.json()["expiresIn"] <= 600
    assert await end_of_last(world) == ends


async def test_a_disabled_or_revoked_api_token_renews_nothing(world: World) -> None:
    """An access token cannot be renewed past the death of what it stands for."""
    for end in ("UPDATE tokens SET status = 'disabled' WHERE id = $1", "DELETE FROM tokens WHERE id = $1"):
        access, _ = await login(world)
        await world.database.execute(end, (await tokens.list_(world.database))[-1].id)
        assert (await sent(world, RENEW, {"accessToken": access})).status_code == 401


async def test_a_revoked_token_is_dead_and_no_other_is(world: World) -> None:
    """Revoking one access token leaves its API token, and the other access tokens of it, alive."""
    access, value = await login(world)
    token = (await tokens.list_(world.database))[-1]
    answer = await world.http.post(LOGIN, json={"clientId": str(token.id), "clientSecret": value})
    other = answer.json()["accessToken"]
    told = await sent(world, REVOKE, {"accessToken": access})
    assert (told.status_code, set(told.json())) == (200, {"message"})
    assert [await opens(world, each) for each in (access, other, value)] == [401, 200, 200]


async def test_a_revoked_token_is_dead_within_a_second_where_callers_are_remembered(
    database_url: str, tmp_path: Any
) -> None:
    """A worker that remembers the caller forgets it when its second is over."""
    async with new_world(database_url, tmp_path, remembered=3600) as world:
        access, _ = await login(world)
        assert await opens(world, access) == 200
        assert (await sent(world, REVOKE, {"accessToken": access})).status_code == 200
        world.state.memory.seconds = 0
        assert await opens(world, access) == 401
