"""Who asks and whether they may: credentials, gateway errors, token policies, tenants (contract section 5)."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.world import BODY, World, make_token

from keystead.caller import GROUPS, Access, Actor, Area, Caller, Effect, Group, Level, Policy, Role, Scope, Target
from keystead.identity import tokens
from keystead.server import first_start

MISSING = "Missing X-Auth-Key, X-Auth-Email or Authorization headers"
UNAUTHORIZED = "Unauthorized to access requested resource"


def error(answer: httpx.Response) -> tuple[int, int, str]:
    (item,) = answer.json()["errors"]
    return answer.status_code, item["code"], item["message"]


async def get(world: World, headers: Any) -> httpx.Response:
    return await world.http.get(world.a.account_path, headers=headers)


async def test_gateway_errors_are_the_contracts(world: World) -> None:
    """Each way to lack or garble credentials has its status, code, text and chain."""
    token, key, email = world.a.token, world.a.key, world.a.email
    bearer, x_key, x_email = "Authorization", "X-Auth-Key", "X-Auth-Email"
    plain: list[tuple[dict[str, str], tuple[int, int, str]]] = [
        ({}, (400, 9106, MISSING)),
        ({x_key: key}, (400, 9106, "Missing X-Auth-Email header")),
        ({x_email: email}, (400, 9107, "Missing X-Auth-Key header")),
        ({bearer: f"Bearer {'x' * 40}"}, (403, 9109, "Invalid access token")),
        ({bearer: f"Bearer {token[:-1]}"}, (403, 9109, "Invalid access token")),
        ({x_email: email, x_key: "0" * 37}, (400, 9103, "Unknown X-Auth-Key or X-Auth-Email")),
        ({x_email: world.b.email, x_key: key}, (400, 9103, "Unknown X-Auth-Key or X-Auth-Email")),
        # Authorization wins, also when it is the bad one.
        ({bearer: f"Bearer {'x' * 40}", x_email: email, x_key: key}, (403, 9109, "Invalid access token")),
    ]
    for headers, expected in plain:
        assert error(await get(world, headers)) == expected, headers
    chained: list[tuple[dict[str, str | bytes], int, str]] = [
        *[
            ({bearer: value}, 6111, "Invalid format for Authorization header")
            for value in (
                "",
                "Bearer",
                "Bearer ",
                "Bearer  " + token,
                f"Bearer {token} x",
                f"Bearer {token[:10]} {token[10:]}",
                f"Bearer {token}\tx",
                f"Basic {token}",
                token,
                "Bearer " + "x" * 19,
                "Bearer " + "x" * 257,
                "Bearer " + "x" * 39 + "=",
                b"Bearer " + b"\xff" * 40,
                "Bearer ${CLOUDFLARE_API_TOKEN}",
            )
        ],
        *[
            ({x_email: email, x_key: value}, 6103, "Invalid format for X-Auth-Key header")
            for value in ("", "x" * 37, "0" * 31, "0" * 46, "A" * 37, key + " 0", b"\xff" * 37)
        ],
        *[
            ({x_email: value, x_key: key}, 6102, "Invalid format for X-Auth-Email header")
            for value in ("", "a", "a@", "@b", "a b@c", "a@b@c", "a@" + "b" * 300, b"\xff@b")
        ],
    ]
    for raw, code, text in chained:
        answer = await get(world, raw)
        assert error(answer) == (400, 6003, "Invalid request headers"), raw
        assert answer.json()["errors"][0]["error_chain"] == [{"code": code, "message": text}], raw


async def test_both_schemes_open_the_door(world: World) -> None:
    """A token, a global key, and a good token beside a bad pair are all let in."""
    pair = {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}
    bad_pair = {"X-Auth-Email": "x", "X-Auth-Key": "x"}
    for headers in (
        world.a.bearer,
        pair,
        {**pair, "X-Auth-Email": world.a.email.upper()},
        {**bad_pair, **world.a.bearer},
    ):
        assert (await get(world, headers)).status_code == 200
    assert (await get(world, {"authorization": f"bearer {world.a.token}"})).status_code == 200


ROUTES = [
    ("POST", ""),
    ("GET", ""),
    ("HEAD", ""),
    ("GET", "/{id}"),
    ("HEAD", "/{id}"),
    ("DELETE", "/{id}"),
]


async def test_no_caller_reaches_another_tenant(world: World) -> None:
    """On every route, by every scheme, another account's and zone's path is 403/9109, and nothing of it shows."""
    theirs = {path: await world.create(world.b, path, name="secret-of-b") for path in world.b.paths}
    world.seen.clear()
    nowhere = [f"/client/v4/{kind}/{uuid4().hex}/custom_csrs" for kind in ("accounts", "zones")]
    callers: list[dict[str, str]] = [
        world.a.bearer,
        {"Authorization": f"Bearer {world.a.read_token}"},
        {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key},
    ]
    for headers in callers:
        for path in (*world.b.paths, *nowhere):
            for method, tail in ROUTES:
                url = path + tail.replace("{id}", theirs.get(path, theirs[world.b.account_path])["id"])
                answer = await world.http.request(method, url, json=BODY, headers=headers)
                assert answer.status_code == 403, (method, url)
                if method != "HEAD":
                    assert error(answer)[1:] == (9109, UNAUTHORIZED)
        # Nor by naming a CSR of the other tenant below one's own path.
        for path in world.a.paths:
            for made in theirs.values():
                for method in ("GET", "DELETE"):
                    answer = await world.http.request(method, f"{path}/{made['id']}", headers=headers)
                    may = method == "GET" or headers != {"Authorization": f"Bearer {world.a.read_token}"}
                    assert answer.status_code == (404 if may else 403)
    assert "secret-of-b" not in "".join(world.seen)
    assert [csr["id"] for csr in await _ids(world, world.b.account_path)] == [theirs[world.b.account_path]["id"]]
    assert [csr["id"] for csr in await _ids(world, world.b.zone_path)] == [theirs[world.b.zone_path]["id"]]


async def _ids(world: World, path: str) -> list[dict[str, Any]]:
    answer = await world.http.get(path, headers=world.b.bearer)
    items: list[dict[str, Any]] = answer.json()["result"]
    return items


@pytest.mark.parametrize(
    ("allowed", "refused", "status"),
    [
        (["127.0.0.0/8"], [], 200),
        (["10.0.0.0/8"], [], 403),
        (["10.0.0.0/8", "127.0.0.1"], [], 200),
        ([], ["127.0.0.1/32"], 403),
        ([], ["10.0.0.0/8"], 200),
        (["127.0.0.0/8"], ["127.0.0.1"], 403),
        (["::1"], [], 403),
    ],
)
async def test_a_token_is_bound_to_addresses(world: World, allowed: list[str], refused: list[str], status: int) -> None:
    """condition.request_ip is honoured, and the refusal names the address."""
    condition = json.dumps({"request_ip": {"in": allowed, "not_in": refused}})
    value = await make_token(world.services, world.a.account, condition=condition)
    answer = await get(world, {"Authorization": f"Bearer {value}"})
    assert answer.status_code == status
    if status == 403:
        assert error(answer) == (403, 9109, "Cannot use the access token from location: 127.0.0.1")


async def test_a_wildcard_ends_at_the_owners_accounts(world: World) -> None:
    """Policies on all accounts and all zones reach only the tenant that owns the token."""
    groups = [{"id": group.id.hex, "name": group.name} for group in GROUPS]
    resources = {"com.cloudflare.api.account.*": "*", "com.cloudflare.api.account.zone.*": "*"}
    policies = json.dumps([{"id": "x", "effect": "allow", "resources": resources, "permission_groups": groups}])
    value = await make_token(world.services, world.a.account, policies=policies)
    headers = {"Authorization": f"Bearer {value}"}
    for path, status in [*((p, 200) for p in world.a.paths), *((p, 403) for p in world.b.paths)]:
        assert (await world.http.get(path, headers=headers)).status_code == status


async def test_a_token_says_what_it_is(world: World) -> None:
    """Both verify paths accept any token of ours; a disabled or expired one is 200 with its status and no message."""
    paths = ["/client/v4/user/tokens/verify", f"/client/v4/accounts/{world.a.account.id.hex}/tokens/verify"]
    for path in paths:
        answer = await world.http.get(path, headers=world.a.bearer)
        assert answer.json()["result"]["status"] == "active"
        told = [(m["code"], m["message"]) for m in answer.json()["messages"]]
        assert told == [(10000, "This API Token is valid and active")]
    past = datetime.now(UTC) - timedelta(hours=1)
    value = await make_token(world.services, world.a.account, expires_on=past)
    disabled = await make_token(world.services, world.a.account)
    token = (await tokens.list_(world.database))[-1]
    await tokens.set_status(world.database, first_start.operator(), token, active=False)
    for secret, status in ((value, "expired"), (disabled, "disabled")):
        for path in paths:
            answer = await world.http.get(path, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200
            assert answer.json()["result"]["status"] == status
            assert answer.json()["messages"] == []
    for path in paths:
        unknown = await world.http.get(path, headers={"Authorization": "Bearer " + "x" * 40})
        assert error(unknown) == (401, 1000, "Invalid API Token")
        assert error(await world.http.get(path))[:2] == (400, 9106)
    assert error(await world.http.get(paths[1], headers=world.b.bearer)) == (403, 9109, UNAUTHORIZED)


async def test_no_secret_is_stored_in_the_clear(world: World) -> None:
    """Tokens and global keys stand in the database only as keyed digests."""
    tables = await world.database.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    stored = "".join([str(await world.database.fetch(f"SELECT * FROM {row['relname']}")) for row in tables])
    for tenant in (world.a, world.b):
        for secret in (tenant.token, tenant.read_token, tenant.key):
            assert secret not in stored
            assert secret.encode().hex() not in stored


_ACCOUNT, _ZONE, _OTHER = (UUID(int=i) for i in (1, 2, 3))
_TARGETS = st.sampled_from(
    [
        Target(Level.ACCOUNT),
        Target(Level.ACCOUNT, _ACCOUNT),
        Target(Level.ACCOUNT, _OTHER),
        Target(Level.ZONE),
        Target(Level.ZONE, _ZONE),
        Target(Level.ZONE, _OTHER),
        Target(Level.ZONE, within=_ACCOUNT),
        Target(Level.ZONE, within=_OTHER),
    ]
)
_POLICIES = st.builds(
    Policy,
    st.sampled_from(list(Effect)),
    st.lists(_TARGETS, min_size=1, max_size=3).map(tuple),
    st.lists(st.sampled_from([g for g in GROUPS if g.area in (Area.SSL, Area.ZONE)]), min_size=1, max_size=3).map(
        tuple
    ),
)


@given(st.lists(_POLICIES, max_size=5), st.randoms(use_true_random=False), st.sampled_from([None, _ZONE]))
def test_deny_wins_in_any_order_and_write_implies_read(policies: list[Policy], random: Any, zone: UUID | None) -> None:
    """The order of policies never counts; adding a deny never opens; whoever may write may read."""
    scope = Scope(_ACCOUNT, zone)

    def may(each: list[Policy], access: Access) -> bool:
        caller = Caller(Actor.TOKEN, UUID(int=9), {_ACCOUNT: Role.ADMINISTRATOR}, tuple(each))
        return caller.may(Area.SSL, access, scope)

    shuffled = random.sample(policies, len(policies))
    assert [may(policies, a) for a in Access] == [may(shuffled, a) for a in Access]
    assert may(policies, Access.READ) or not may(policies, Access.WRITE)
    everything = Policy(Effect.DENY, (Target(Level.ACCOUNT), Target(Level.ZONE)), GROUPS)
    assert not any(may([*policies, everything], access) for access in (Access.READ, Access.WRITE))
    for policy in policies:
        if policy.effect is Effect.DENY:
            rest = [p for p in policies if p is not policy]
            assert may(rest, Access.WRITE) or not may(policies, Access.WRITE)


def test_permission_groups_have_distinct_ids_and_names() -> None:
    """No two groups share an id or a name, and each write group has its read group."""
    assert len({group.id for group in GROUPS}) == len({group.name for group in GROUPS}) == len(GROUPS)
    pairs: dict[tuple[Level, Area], set[Access]] = {}
    group: Group
    for group in GROUPS:
        pairs.setdefault((group.level, group.area), set()).add(group.access)
    assert all({Access.READ, Access.WRITE} <= accesses for accesses in pairs.values())
