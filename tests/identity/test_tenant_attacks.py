"""What an attack on the tenants' own calls would do: each of these worked once, and does not any more."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from support.world import BODY, World, make_token

from keystead.caller import GROUPS, Level, RequestInfo, Scope, Target
from keystead.errors import Unauthenticated
from keystead.identity import accounts, login, policies, tokens, zones
from keystead.identity.accounts import Changes, set_account
from keystead.identity.memory import Memory
from keystead.server import first_start
from keystead.x509.names import NamePolicy

Json = dict[str, Any]
ALL = [group.id.hex for group in GROUPS if group.level.name == "ACCOUNT"]


def home(world: World) -> str:
    return f"/client/v4/accounts/{world.a.account.id.hex}"


def key_of(world: World) -> dict[str, str]:
    return {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}


def policy(world: World, groups: list[str] | None = None) -> Json:
    return {
        "effect": "allow",
        "resources": {f"com.cloudflare.api.account.{world.a.account.id.hex}": "*"},
        "permission_groups": [{"id": group} for group in groups or ALL],
    }


async def test_a_name_of_hex_digits_twice_is_an_account_each(world: World) -> None:
    """A slug that would look like an id is not taken for one, and the search for a free one ends."""
    for _ in range(3):
        answer = await world.http.post("/client/v4/accounts", json={"name": "a" * 24}, headers=key_of(world))
        assert answer.status_code == 200, answer.text


async def test_a_body_that_arrives_after_the_revocation_makes_nothing(world: World) -> None:
    """A token that is revoked, rolled or disabled while its request is on the way makes no token that lives on."""
    for attack in ("revoke", "roll", "disable"):
        value = await make_token(world.services, world.a.account, policies=json.dumps([policy_stored(world)]))
        row = await world.database.fetchrow("SELECT id FROM tokens ORDER BY issued_on DESC LIMIT 1")
        assert row is not None
        token = await tokens.find(world.database, str(row["id"]))
        begun, go = asyncio.Event(), asyncio.Event()
        body = json.dumps({"name": "heir", "policies": [policy(world)]}).encode()

        async def slowly(
            begun: asyncio.Event = begun, go: asyncio.Event = go, body: bytes = body
        ) -> AsyncIterator[bytes]:
            yield body[:10]
            begun.set()
            await go.wait()
            yield body[10:]

        headers = {"Authorization": f"Bearer {value}", "Content-Type": "application/json"}
        asking = asyncio.create_task(world.http.post(f"{home(world)}/tokens", content=slowly(), headers=headers))
        await begun.wait()
        operator = first_start.operator()
        if attack == "revoke":
            await tokens.revoke(world.database, operator, token)
        elif attack == "roll":
            await tokens.roll(world.services, operator, token)
        else:
            await tokens.set_status(world.database, operator, token, active=False)
        go.set()
        answer = await asking
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, 9109), attack
        assert not await world.database.fetch("SELECT FROM tokens WHERE name = 'heir'")


def policy_stored(world: World) -> Json:
    (draft,), _ = policies.drafts(json.dumps([policy(world)]))
    stored: Json = json.loads(policies.text([draft]))[0]
    return stored


async def test_a_role_that_is_lowered_while_the_body_comes_counts(world: World) -> None:
    """Whoever is no administrator any more makes no token of the account that lives on."""
    begun, go = asyncio.Event(), asyncio.Event()
    body = json.dumps({"name": "heir", "policies": [policy(world)]}).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:10]
        begun.set()
        await go.wait()
        yield body[10:]

    headers = {**key_of(world), "Content-Type": "application/json"}
    asking = asyncio.create_task(world.http.post(f"{home(world)}/tokens", content=slowly(), headers=headers))
    await begun.wait()
    await world.database.execute("UPDATE memberships SET role = 'read' WHERE account_id = $1", world.a.account.id)
    go.set()
    assert (await asking).status_code == 400
    assert not await world.database.fetch("SELECT FROM tokens WHERE name = 'heir'")


@pytest.mark.parametrize("where", ["zone", "account", "token"])
async def test_who_was_revoked_just_now_deletes_nothing(world: World, where: str) -> None:
    """Though the server remembers for a second that the token was allowed to."""
    value = await make_token(world.services, world.a.account)
    (row,) = await world.database.fetch("SELECT id FROM tokens ORDER BY issued_on DESC LIMIT 1")
    headers = {"Authorization": f"Bearer {value}"}
    other = (await world.database.fetch("SELECT id FROM tokens WHERE account_id = $1", world.a.account.id))[0]["id"]
    path, method, body = {
        "zone": (f"/client/v4/zones/{world.a.zone.id.hex}", "PATCH", {"paused": False}),
        "account": (home(world), "PUT", {"name": world.a.account.name}),
        "token": (f"{home(world)}/tokens/{other.hex}", "PUT", {}),
    }[where]
    # Nothing changes, but the permission was looked up.
    assert (await world.http.request(method, path, json=body, headers=headers)).status_code in {200, 400}
    await tokens.revoke(world.database, first_start.operator(), await tokens.find(world.database, str(row["id"])))
    assert (await world.http.delete(path, headers=headers)).status_code == 403


async def test_a_login_that_crosses_a_roll_gives_nothing(world: World) -> None:
    """An access token is never made for a value that is dead by then."""
    value = await make_token(world.services, world.a.account)
    row = await world.database.fetchrow("SELECT id FROM tokens ORDER BY issued_on DESC LIMIT 1")
    assert row is not None
    token = await tokens.find(world.database, str(row["id"]))
    request_info = RequestInfo(None, "0" * 32, "POST", "/")
    caller = await login.authenticate_login(world.services, Memory(), str(token.id), value, request_info)
    await tokens.roll(world.services, first_start.operator(), token)
    with pytest.raises(Unauthenticated):
        await login.log_in(world.services, caller, value)
    assert not await world.database.fetch("SELECT FROM access_tokens")


async def test_a_zone_made_anew_keeps_the_limits_of_the_operator(world: World) -> None:
    """The switch and the quotas of the zone of its name that was deleted last bind the next one."""
    operator, zone = first_start.operator(), world.a.zone
    body = {"account": {"id": world.a.account.id.hex}, "name": zone.name}
    await zones.delete(world.database, operator, Scope(zone.account_id, zone.id))
    made = (await world.http.post("/client/v4/zones", json=body, headers=world.a.bearer)).json()["result"]["id"]
    zone = await zones.find(world.database, made)
    await zones.set_(world.database, operator, zone, zones.Changes(False, 3, 0))
    await zones.delete(world.database, operator, Scope(zone.account_id, zone.id))
    made = (await world.http.post("/client/v4/zones", json=body, headers=world.a.bearer)).json()["result"]["id"]
    answer = await world.http.post(f"/client/v4/zones/{made}/custom_csrs", json=BODY, headers=world.a.bearer)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, 1404)
    anew = await zones.find(world.database, made)
    assert (anew.csrs_enabled, anew.csr_quota, anew.certificate_quota) == (False, 3, 0)


async def test_an_account_made_by_a_user_sheds_no_rule(world: World) -> None:
    """It begins with the strictest rules of the accounts that its user administers."""
    await world.http.post("/client/v4/accounts", json={"name": "lax"}, headers=key_of(world))
    lax = await accounts.find_account(world.database, "lax")
    lax_rules = Changes(csr_quota=50, key_max_age_days=300, ca_quota=40)
    await set_account(world.database, first_start.operator(), lax, lax_rules)
    changes = Changes(name_policy=NamePolicy.PUBLIC, csr_quota=2, key_max_age_days=30, ca_quota=1)
    await set_account(world.database, first_start.operator(), world.a.account, changes)
    made = await world.http.post("/client/v4/accounts", json={"name": "loophole"}, headers=key_of(world))
    path = f"/client/v4/accounts/{made.json()['result']['id']}/custom_csrs"
    answer = await world.http.post(path, json=BODY, headers=key_of(world))
    assert {item["code"] for item in answer.json()["errors"]} == {1416}
    row = await world.database.fetchrow("SELECT * FROM accounts WHERE name = 'loophole'")
    assert row is not None
    assert (row["csr_quota"], row["ca_quota"], row["key_max_age_days"]) == (2, 1, 30)


async def test_a_repeat_shows_nothing_to_who_may_not_read_it_any_more(world: World) -> None:
    """An Idempotency-Key opens neither an account that its user has left nor a zone that is denied by now."""
    headers = {**key_of(world), "Idempotency-Key": "mine"}
    made = (await world.http.post("/client/v4/accounts", json={"name": "left"}, headers=headers)).json()["result"]["id"]
    await world.database.execute("DELETE FROM memberships WHERE account_id::text = $1", str(UUID(made)))
    answer = await world.http.post("/client/v4/accounts", json={"name": "left"}, headers=headers)
    assert answer.status_code == 403


async def test_what_is_hidden_by_a_doubled_key_poisons_nothing(world: World) -> None:
    """A condition or resource whose first mention cannot be read again is refused, or does no harm."""
    number = "1" * 5000
    texts = [
        '{"name":"p","policies":POLICIES,"condition":{"request_ip":NUMBER,"request_ip":{}}}',
        '{"name":"p","policies":[{"effect":"allow","permission_groups":[],"resources":{"a":NESTED,"a":"*"}}]}',
        '{"name":"p","policies":POLICIES,"condition":{"request_ip":NESTED,"request_ip":{}}}',
    ]
    for text in texts:
        body = text.replace("POLICIES", json.dumps([policy(world)])).replace("NUMBER", number)
        body = body.replace("NESTED", "[" * 925 + "]" * 925)
        answer = await world.http.post(f"{home(world)}/tokens", content=body.encode(), headers=world.a.bearer)
        assert answer.status_code == 400, answer.text
    assert (await world.http.get(f"{home(world)}/tokens", headers=world.a.bearer)).status_code == 200


async def test_many_broken_policies_are_one_problem(world: World) -> None:
    """An answer does not grow with a body that is nothing but mistakes."""
    body = {"name": "p", "policies": [0] * 30_000}
    answer = await world.http.post(f"{home(world)}/tokens", json=body, headers=world.a.bearer)
    assert answer.status_code == 400
    assert len(answer.content) < 10_000


async def test_a_long_path_is_cut_in_the_audit_log(world: World) -> None:
    """Whoever is denied writes a row for each request, and no more than a kilobyte of its path."""
    path = f"/client/v4/accounts/{world.b.account.id.hex}/custom_csrs/{'x' * 20_000}"
    assert (await world.http.get(path, headers=world.a.bearer)).status_code == 403
    longest = await world.database.fetchrow("SELECT max(length(path)) AS most FROM audit_log")
    assert longest is not None
    assert longest["most"] == 1024


async def test_a_user_agent_is_cut_and_printable_in_the_audit_log(world: World) -> None:
    """Whoever is denied writes a row for each request, and no more than 256 characters of what it says it is."""
    headers = {**world.a.bearer, "User-Agent": "\x9b2J" + "x" * 8_000}
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert (await world.http.get(world.b.account_path, headers=sent)).status_code == 403
    row = await world.database.fetchrow("SELECT user_agent FROM audit_log WHERE result = 'failure'")
    assert row is not None
    assert row["user_agent"] == "?2J" + "x" * 253


async def test_a_list_of_zones_does_not_hold_up_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with as many policies as there may be, each group many times over, has its list at once."""
    group = next(each.id.hex for each in GROUPS if each.name == "Zone Read")
    named = [f"com.cloudflare.api.account.zone.{number:032x}" for number in range(300)]
    stored = [
        {
            "id": "0" * 32,
            "effect": "allow",
            "resources": dict.fromkeys(named[index::50], "*"),
            "permission_groups": [{"id": group, "name": "x"}] * 18,
        }
        for index in range(50)
    ]
    ids = [bytes.fromhex(name[-32:]) for name in named]
    await world.database.execute(
        "INSERT INTO zones (id, account_id, name) "
        "SELECT encode(each, 'hex')::uuid, $2, encode(each, 'hex') FROM unnest($1::bytea[]) each",
        ids,
        world.a.account.id,
    )
    value = await make_token(world.services, world.a.account, policies=json.dumps(stored))
    covers, asked = Target.covers, 0

    def counted(self: Target, level: Level, scope: Scope) -> bool:
        nonlocal asked
        asked += 1
        return covers(self, level, scope)

    monkeypatch.setattr(Target, "covers", counted)
    answer = await world.http.get("/client/v4/zones", headers={"Authorization": f"Bearer {value}"})
    assert answer.json()["result_info"]["total_count"] == 300
    # It was once for each zone, policy, group and name: millions, and 3 s of a core.
    assert asked < 1000


async def test_the_user_who_is_gone_makes_no_account(world: World) -> None:
    """A user who is deleted while the request is on its way gets the answer of an unknown one."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"name":'
        begun.set()
        await go.wait()
        yield b'"x"}'

    asking: asyncio.Task[httpx.Response] = asyncio.create_task(
        world.http.post("/client/v4/accounts", content=slowly(), headers=key_of(world))
    )
    await begun.wait()
    user = await accounts.find_user(world.database, world.a.email)
    await accounts.delete_user(world.database, first_start.operator(), user)
    go.set()
    answer = await asking
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 9103)
