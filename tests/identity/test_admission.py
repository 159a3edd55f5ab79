"""What a worker remembers of callers and places: for a second, only what is good, bounded, and never in the clear."""

import asyncio
import hashlib
import ipaddress
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import msgspec
import pytest
from support.databases import new_database
from support.live import Live, serving
from support.world import BODY, Tenant, World, new_world

from keystead.caller import GROUPS, Level, Role, Scope
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity import memory as identity_memory
from keystead.identity.accounts import Account, User
from keystead.identity.memory import KeyCredential, Memory, ScopeRef, TokenCredential
from keystead.identity.tokens import Token
from keystead.server import first_start, postgres
from keystead.x509.names import NamePolicy

Headers = dict[str, str]
Outcome = tuple[int, int | str]
# As long as no test takes, so that nothing is forgotten by itself.
LONG = 3600.0
DEADLINE = 60.0
OK, UNKNOWN_PAIR, GONE = (200, 0), (400, 9103), (404, 7003)
INVALID, UNAUTHORIZED, NOT_FROM_HERE = (403, "Invalid"), (403, "Unauthorized"), (403, "Cannot")
OPERATOR = first_start.operator()
SSL_WRITE, SSL_READ = "Account: SSL and Certificates Write", "Account: SSL and Certificates Read"
# Every table that a request here can touch; what asyncpg asks for itself on a new connection touches none.
TABLES = re.compile(r"\b(?:tokens|users|memberships|accounts|zones|custom_csrs|certificate_authorities|audit_log)\b")
# What the server does by itself, at its start and every few seconds.
BACKGROUND = (
    *("peppers", "failed_authentications", "DELETE FROM idempotency_keys", "DELETE FROM access_tokens"),
    "INSERT INTO csr_counts AS known (account_id, scope_id, slot, count)\nSELECT account_id, scope_id, 0",
)


def bearer(value: str) -> Headers:
    return {"Authorization": f"Bearer {value}"}


def pair(email: str, key: str) -> Headers:
    return {"X-Auth-Email": email, "X-Auth-Key": key}


def of_account(account: Account, tail: str = "/custom_csrs") -> str:
    return f"/client/v4/accounts/{account.id.hex}{tail}"


def groups_path(account: Account) -> str:
    """A call that needs nothing of the database but who asks."""
    return of_account(account, "/tokens/permission_groups?name=Zone+Read")


def outcome(answer: httpx.Response) -> Outcome:
    """The status, and in Cloudflare's dialect the code of the error, or 0; of 9109 the first word of its text."""
    body = answer.json()
    found = body.get("errors") if isinstance(body, dict) else None
    if not found:
        return answer.status_code, 0
    code: int = found[0]["code"]
    return answer.status_code, found[0]["message"].partition(" ")[0] if code == 9109 else code


async def new_token(
    world: World, account: Account | None = None, groups: tuple[str, ...] = (), **fields: Any
) -> tuple[Token, str]:
    account = account or world.a.account
    chosen = tuple(policies.find_group(name) for name in groups) or policies.default_groups()
    text = fields.pop("policies", policies.write(account, chosen))
    new = tokens.NewToken(account, "a token", text, **fields)
    return await tokens.create(world.services, OPERATOR, new)


async def new_user(world: World, slug: str, account: Account | None = None) -> tuple[User, str]:
    """A user with a global key, who administers this account."""
    user = await accounts.create_user(world.database, OPERATOR, f"{slug}@example.com")
    if account:
        await accounts.set_membership(world.database, OPERATOR, user, account, Role.ADMINISTRATOR)
    return user, await tokens.roll_global_key(world.services, OPERATOR, user)


def everywhere(effect: str = "allow") -> str:
    """Policies on all accounts and zones that the owner reaches."""
    groups = [{"id": group.id.hex, "name": group.name} for group in GROUPS]
    resources = {"com.cloudflare.api.account.*": "*", "com.cloudflare.api.account.zone.*": "*"}
    return json.dumps([{"id": "x", "effect": effect, "resources": resources, "permission_groups": groups}])


def allowed_only_from(*networks: str) -> str:
    return json.dumps({"request_ip": {"in": list(networks)}})


async def change(world: World, token: Token, **fields: Any) -> None:
    """Make a token of A's other than it was, over the API."""
    body = {"name": token.name, "policies": json.loads(token.policies), **fields}
    answer = await world.http.put(
        of_account(world.a.account, f"/tokens/{token.id.hex}"), json=body, headers=trusted(world)
    )
    assert answer.status_code == 200, answer.text


def trusted(world: World) -> Headers:
    """The credentials that a test makes changes with: of A's user, who is not what is tested."""
    return pair(world.a.email, world.a.key)


async def access_token(world: World, token: Token, value: str) -> str:
    body = {"clientId": str(token.id), "clientSecret": value}
    answer = await world.http.post("/api/v1/auth/universal-auth/login", json=body)
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["accessToken"]
    return made


@pytest.fixture
async def remembering(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world that forgets nothing by itself."""
    async with new_world(database_url, tmp_path, remembered=LONG) as made:
        yield made


def memory_of(world: World) -> Memory:
    found: Memory = world.state.memory
    return found


def forget(world: World) -> None:
    memory = memory_of(world)
    memory._callers._entries.clear()
    memory._scopes._entries.clear()


# --- statements ---


class Statements:
    """What the application asks PostgreSQL, as the connections themselves tell it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def of(self, work: Awaitable[httpx.Response]) -> tuple[int, httpx.Response]:
        """How many statements this request makes, and its answer."""
        # The connection tells each a turn of the loop later.
        await asyncio.sleep(0)
        self.seen.clear()
        answer = await work
        await asyncio.sleep(0)
        self.seen = [sql for sql in self.seen if TABLES.search(sql) and not any(word in sql for word in BACKGROUND)]
        return len(self.seen), answer


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """Counts from now on, on every connection that is opened after this."""
    found, connect = Statements(), asyncpg.connect

    async def connect_and_listen(*args: Any, **kwargs: Any) -> Any:
        connection = await connect(*args, **kwargs)
        connection.add_query_logger(lambda query: found.seen.append(query.query))
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect_and_listen)
    return found


async def test_who_was_seen_just_now_costs_no_statement(
    statements: Statements, database_url: str, tmp_path: Path
) -> None:
    """Caller and place are one statement at first and none again; what a call then asks for itself stays the same."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        _, value = await new_token(world)
        # The login asks for the token, and remembers it too.
        access = bearer(await access_token(world, *await new_token(world)))
        user = pair(world.a.email, world.a.key)
        theirs = await zones.create_in(world.database, OPERATOR, world.a.account, "other.example.com")
        zone = f"/client/v4/zones/{world.a.zone.id.hex}"
        other_zone = f"/client/v4/zones/{theirs.id.hex}"
        groups, absent = groups_path(world.a.account), "/api/v1/pki/ca/x"
        # Path, credentials, status, and the statements of the first and of the second time.
        cases: list[tuple[str, Headers, int, int, int]] = [
            (groups, bearer(value), 200, 1, 0),
            # A zone that is new, to a caller who is not.
            (zone, bearer(value), 200, 2, 1),
            # A caller who is new, at a place that is not.
            (groups, user, 200, 1, 0),
            # Both seen, but never together.
            (zone, user, 200, 1, 1),
            (other_zone, user, 200, 2, 1),
            (other_zone, bearer(value), 200, 1, 1),
            # An API token is another credential in the other dialect, and so is the access token made for it.
            (absent, bearer(value), 404, 1, 0),
            (absent, access, 404, 1, 0),
            # Where the path names no place the caller is asked for each time: they may just have made an account.
            ("/client/v4/user/tokens/permission_groups", user, 200, 1, 1),
            ("/client/v4/user/tokens/verify", bearer(value), 200, 1, 1),
            # Whoever is not known is not remembered.
            (groups, bearer("x" * 40), 403, 1, 1),
            (groups, pair(world.a.email, "0" * 37), 400, 1, 1),
        ]
        for path, headers, status, first, again in cases:
            counts = []
            for _ in range(2):
                count, answer = await statements.of(world.http.get(path, headers=headers))
                assert answer.status_code == status, (path, answer.text)
                counts.append(count)
            assert counts == [first, again], (path, sorted(headers))


async def test_a_refusal_costs_one_look_up(statements: Statements, database_url: str, tmp_path: Path) -> None:
    """Who may not is looked up once for a refusal, which is one audited row more, whether remembered or not."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        for headers in (world.a.bearer, pair(world.a.email, world.a.key)):
            for number in range(2):
                count, answer = await statements.of(world.http.get(groups_path(world.b.account), headers=headers))
                assert outcome(answer) == UNAUTHORIZED
                assert count == 2, (number, [sql[:300] for sql in statements.seen])


# --- a change is known a second later ---


class Case(msgspec.Struct):
    """A call, how it is answered before and after a change, and the change; None is that of the case before."""

    name: str
    ask: Callable[[], Awaitable[httpx.Response]]
    before: Outcome
    change: Callable[[], Awaitable[Any]] | None
    after: Outcome


async def run(world: World, cases: list[Case]) -> None:
    """Make all changes, asking all the time; whoever begins a second after the change's answer meets it."""
    for _ in range(2):
        assert {case.name: outcome(await case.ask()) for case in cases} == {case.name: case.before for case in cases}
    pending = []
    for case in cases:
        if case.change:
            # As fresh in the memory as can be, so remembered for as long as can be.
            forget(world)
            assert outcome(await case.ask()) == case.before, case.name
            await case.change()
        pending.append((time.monotonic(), case))
    while pending:
        # Whoever asks all the time is not remembered for longer, nor is who is judged anew by rows from before.
        if len(pending) % 2:
            memory_of(world)._allowed._entries.clear()
        done = []
        for known_at, case in pending:
            begun = time.monotonic()
            found = outcome(await case.ask())
            if begun > known_at + 1.0:
                assert found == case.after, (case.name, begun - known_at)
                done.append((known_at, case))
            else:
                assert found in (case.before, case.after), case.name
        pending = [each for each in pending if each not in done]


async def test_what_is_taken_away_is_gone_a_second_later(database_url: str, tmp_path: Path) -> None:
    """Revoked, rolled, disabled, narrowed, bound to an address, put out of an account: refused within a second."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        await run(world, [*await _tokens_that_change(world), *await _users_that_change(world)])


async def _tokens_that_change(world: World) -> list[Case]:
    account, database = world.a.account, world.database
    path = of_account(account)
    made = [await new_token(world) for _ in range(13)]
    read_only = json.loads(policies.write(account, (policies.find_group(SSL_READ),)))
    denied = {**read_only[0], "effect": "deny"}
    other_area = json.loads(policies.write(account, (policies.find_group("Account Settings Read"),)))
    revoked, deleted, rolled, rolled_too, off, off_too, narrowed, denying, reading, elsewhere, *more = made
    ended, late, writing = more
    allowed_all = json.loads(writing[0].policies)
    no_write = {**json.loads(policies.write(account, (policies.find_group("Zone Write"),)))[0], "effect": "deny"}
    end = "UPDATE tokens SET expires_on = now() - interval '1 hour' WHERE id = $1"
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"

    def asking(value: str, method: str = "GET", where: str = path) -> Callable[[], Awaitable[httpx.Response]]:
        return lambda: world.http.request(method, where, headers=bearer(value), json={})

    def over_the_api(method: str, token: Token, tail: str = "") -> Callable[[], Awaitable[Any]]:
        url = of_account(account, f"/tokens/{token.id.hex}{tail}")

        async def work() -> None:
            answer = await world.http.request(method, url, headers=trusted(world))
            assert answer.status_code == 200, answer.text

        return work

    def changing(token: Token, **fields: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: change(world, token, **fields)

    def case(name: str, value: str, work: Callable[[], Awaitable[Any]], after: Outcome = INVALID) -> Case:
        return Case(name, asking(value), OK, work, after)

    access = [await new_token(world) for _ in range(2)]
    access_values = [await access_token(world, *each) for each in access]
    infisical, absent = "/api/v1/pki/ca/x", (404, 0)
    zone_path = f"/client/v4/zones/{world.a.zone.id.hex}"
    zone_read = json.loads(policies.write(account, (policies.find_group("Zone Read"),)))
    return [
        case("revoked by the operator", revoked[1], lambda: tokens.revoke(database, OPERATOR, revoked[0])),
        case("deleted", deleted[1], over_the_api("DELETE", deleted[0])),
        case("rolled", rolled[1], over_the_api("PUT", rolled[0], "/value")),
        case(
            "rolled by the operator",
            rolled_too[1],
            lambda: tokens.roll(world.services, OPERATOR, rolled_too[0]),
        ),
        case("disabled", off[1], changing(off[0], status="disabled")),
        case(
            "disabled by the operator",
            off_too[1],
            lambda: tokens.set_status(database, OPERATOR, off_too[0], active=False),
        ),
        case("ended", ended[1], lambda: database.execute(end, ended[0].id)),
        case("not yet begun", late[1], changing(late[0], not_before=tomorrow)),
        case("allowed other things", narrowed[1], changing(narrowed[0], policies=other_area), UNAUTHORIZED),
        case(
            "denied",
            denying[1],
            changing(denying[0], policies=[*json.loads(denying[0].policies), denied]),
            UNAUTHORIZED,
        ),
        Case(
            "allowed to read only",
            asking(reading[1], "PATCH", zone_path),
            OK,
            changing(reading[0], policies=zone_read),
            UNAUTHORIZED,
        ),
        Case(
            "denied to write only",
            asking(writing[1], "PATCH", zone_path),
            OK,
            changing(writing[0], policies=[*allowed_all, no_write]),
            UNAUTHORIZED,
        ),
        case(
            "allowed from elsewhere",
            elsewhere[1],
            changing(elsewhere[0], condition={"request_ip": {"not_in": ["127.0.0.0/8"]}}),
            NOT_FROM_HERE,
        ),
        Case(
            "rolled, and an access token made for it",
            asking(access_values[0], where=infisical),
            absent,
            over_the_api("PUT", access[0][0], "/value"),
            (401, 0),
        ),
        Case(
            "rolled, and known to the other dialect",
            asking(access[0][1], where=infisical),
            absent,
            None,
            (401, 0),
        ),
        Case(
            "disabled, and an access token made for it",
            asking(access_values[1], where=infisical),
            absent,
            changing(access[1][0], status="disabled"),
            (401, 0),
        ),
    ]


async def _users_that_change(world: World) -> list[Case]:
    account, database = world.a.account, world.database
    path = of_account(account)
    zone_path = f"/client/v4/zones/{world.a.zone.id.hex}"
    (out, out_key), (less, less_key), (rolled, rolled_key), (deleted, deleted_key) = [
        await new_user(world, slug, account) for slug in ("out", "less", "rolled", "deleted")
    ]
    _, user_token = await new_token(world, user=out, policies=everywhere())
    doomed = await accounts.create_account(database, OPERATOR, "doomed", "Doomed")
    owner, owner_key = await new_user(world, "owner", doomed)
    _, doomed_token = await new_token(world, doomed)
    zone = await zones.create_in(database, OPERATOR, account, "doomed.example.com")
    path_of_zone = f"/client/v4/zones/{zone.id.hex}/custom_csrs"

    def asking(headers: Headers, method: str = "GET", where: str = path) -> Callable[[], Awaitable[httpx.Response]]:
        return lambda: world.http.request(method, where, headers=headers, json={})

    def member(user: User, role: Role | None) -> Callable[[], Awaitable[Any]]:
        return lambda: accounts.set_membership(database, OPERATOR, user, account, role)

    return [
        Case("no member any more", asking(pair(out.email, out_key)), OK, member(out, None), UNAUTHORIZED),
        Case("the token of no member any more", asking(bearer(user_token)), OK, None, UNAUTHORIZED),
        Case(
            "a reader from now on",
            asking(pair(less.email, less_key), "PATCH", zone_path),
            OK,
            member(less, Role.READ),
            UNAUTHORIZED,
        ),
        Case(
            "a rolled global key",
            asking(pair(rolled.email, rolled_key)),
            OK,
            lambda: tokens.roll_global_key(world.services, OPERATOR, rolled),
            UNKNOWN_PAIR,
        ),
        Case(
            "a deleted user",
            asking(pair(deleted.email, deleted_key)),
            OK,
            lambda: accounts.delete_user(database, OPERATOR, deleted),
            UNKNOWN_PAIR,
        ),
        Case(
            "a deleted account, by its user",
            asking(pair(owner.email, owner_key), where=groups_path(doomed)),
            OK,
            lambda: accounts.delete(database, OPERATOR, Scope(doomed.id)),
            GONE,
        ),
        Case("a deleted account", asking(bearer(doomed_token), where=groups_path(doomed)), OK, None, INVALID),
        Case(
            "a deleted zone",
            asking(world.a.bearer, where=path_of_zone),
            OK,
            lambda: zones.delete(database, OPERATOR, Scope(account.id, zone.id)),
            GONE,
        ),
    ]


async def test_quotas_and_switches_are_known_a_second_later(database_url: str, tmp_path: Path) -> None:
    """The switch of custom CSRs, the quotas and the name policy bind a second after they are set, both ways."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        created, refused, off, reserved = (201, 0), (403, 1403), (403, 1404), (400, 1416)
        await run(
            world,
            [
                await _of_a_zone(world, "GET", OK, zones.Changes(csrs_enabled=False), off),
                await _of_a_zone(world, "POST", created, zones.Changes(csr_quota=0), refused),
                await _of_an_account(world, "GET", OK, accounts.Changes(csrs_enabled=False), off),
                await _of_an_account(world, "POST", created, accounts.Changes(csr_quota=0), refused),
                await _of_an_account(world, "POST", created, accounts.Changes(name_policy=NamePolicy.PUBLIC), reserved),
                await _of_a_zone(
                    world, "GET", off, zones.Changes(csrs_enabled=True), OK, zones.Changes(csrs_enabled=False)
                ),
                await _of_a_zone(
                    world, "POST", refused, zones.Changes(csr_quota=-1), created, zones.Changes(csr_quota=0)
                ),
                await _of_an_account(
                    world, "GET", off, accounts.Changes(csrs_enabled=True), OK, accounts.Changes(csrs_enabled=False)
                ),
                await _of_an_account(
                    world, "POST", refused, accounts.Changes(csr_quota=-1), created, accounts.Changes(csr_quota=0)
                ),
            ],
        )


_numbers = itertools.count()


async def _of_a_zone(
    world: World,
    method: str,
    before: Outcome,
    changes: zones.Changes,
    after: Outcome,
    first: zones.Changes | None = None,
) -> Case:
    zone = await zones.create_in(world.database, OPERATOR, world.a.account, f"z{next(_numbers)}.example.com")
    if first:
        await zones.set_(world.database, OPERATOR, zone, first)
    path = f"/client/v4/zones/{zone.id.hex}/custom_csrs"
    return Case(
        f"{changes} of a zone",
        lambda: world.http.request(method, path, json=BODY, headers=world.a.bearer),
        before,
        lambda: zones.set_(world.database, OPERATOR, zone, changes),
        after,
    )


async def _of_an_account(
    world: World,
    method: str,
    before: Outcome,
    changes: accounts.Changes,
    after: Outcome,
    first: accounts.Changes | None = None,
) -> Case:
    account = await accounts.create_account(world.database, OPERATOR, f"s{next(_numbers)}", "Rules")
    if first:
        await accounts.set_account(world.database, OPERATOR, account, first)
    _, value = await new_token(world, account)
    return Case(
        f"{changes} of an account",
        lambda: world.http.request(method, of_account(account), json=BODY, headers=bearer(value)),
        before,
        lambda: accounts.set_account(world.database, OPERATOR, account, changes),
        after,
    )


async def test_an_end_that_comes_meanwhile_counts_at_once(remembering: World) -> None:
    """A token that expires while it is remembered is refused from that moment on, and so is its access token."""
    world = remembering
    ends = datetime.now(UTC) + timedelta(seconds=1.5)
    _, value = await new_token(world, expires_on=ends)
    lasting, lasting_value = await new_token(world)
    access = await access_token(world, lasting, lasting_value)
    await world.database.execute("UPDATE access_tokens SET expires_at = $1", ends)
    asked = [(bearer(value), of_account(world.a.account)), (bearer(access), "/api/v1/pki/ca/x")]
    while datetime.now(UTC) < ends:
        for headers, path in asked:
            found = outcome(await world.http.get(path, headers=headers))
            assert found in (OK, (404, 0)) or datetime.now(UTC) >= ends, path
        await asyncio.sleep(0.05)
    assert [outcome(await world.http.get(path, headers=headers)) for headers, path in asked] == [INVALID, (403, 0)]
    # Nothing but the end made them so.
    assert outcome(await world.http.get(of_account(world.a.account), headers=bearer(lasting_value))) == OK


# --- a refusal is not from memory ---


async def test_what_is_given_is_there_at_once(remembering: World) -> None:
    """A permission, address, membership or value that was just given works at once, however fresh the refusal is."""
    world = remembering
    account, database, path = world.a.account, world.database, of_account(world.a.account)
    ssl_write = json.loads(policies.write(account, (policies.find_group(SSL_WRITE),)))
    few = await new_token(world, groups=("Account Settings Read",))
    off = await new_token(world)
    far = await new_token(world, condition=allowed_only_from("10.0.0.0/8"))
    rolled = await new_token(world)
    guest, guest_key = await new_user(world, "guest")
    reader, reader_key = await new_user(world, "reader")
    _, guest_token = await new_token(world, user=guest, policies=everywhere())
    await accounts.set_membership(database, OPERATOR, reader, account, Role.READ)
    await tokens.set_status(database, OPERATOR, off[0], active=False)
    for each in (few[1], guest_token):
        # They are known, if not here.
        for where in (of_account(account, ""), path):
            await world.http.get(where, headers=bearer(each))
    await world.http.get(path, headers=pair(reader.email, reader_key))
    cases: list[tuple[str, Headers, Outcome, Callable[[], Awaitable[Any]], Outcome]] = [
        ("POST", bearer(few[1]), UNAUTHORIZED, lambda: change(world, few[0], policies=ssl_write), (201, 0)),
        ("GET", bearer(off[1]), INVALID, lambda: change(world, off[0], status="active"), OK),
        ("GET", bearer(far[1]), NOT_FROM_HERE, lambda: change(world, far[0], condition=None), OK),
        (
            "GET",
            pair(guest.email, guest_key),
            UNAUTHORIZED,
            lambda: accounts.set_membership(database, OPERATOR, guest, account, Role.READ),
            OK,
        ),
        (
            "POST",
            pair(reader.email, reader_key),
            UNAUTHORIZED,
            lambda: accounts.set_membership(database, OPERATOR, reader, account, Role.ADMINISTRATOR),
            (201, 0),
        ),
    ]
    for number, (method, headers, before, work, after) in enumerate(cases):
        for _ in range(2):
            found = outcome(await world.http.request(method, path, json=BODY, headers=headers))
            assert found == before, number
        await work()
        assert outcome(await world.http.request(method, path, json=BODY, headers=headers)) == after, number
    # The guest's token was remembered before the guest was a member.
    assert outcome(await world.http.get(path, headers=bearer(guest_token))) == OK
    # A token's new value, with the old one in memory, and a user's new key.
    assert outcome(await world.http.get(path, headers=bearer(rolled[1]))) == OK
    answer = await world.http.put(of_account(account, f"/tokens/{rolled[0].id.hex}/value"), headers=trusted(world))
    assert outcome(await world.http.get(path, headers=bearer(answer.json()["result"]))) == OK
    new_key = await tokens.roll_global_key(world.services, OPERATOR, guest)
    assert outcome(await world.http.get(path, headers=pair(guest.email, new_key))) == OK


async def test_a_token_begins_at_once(remembering: World) -> None:
    """A token that was refused before its not_before is let in from that moment on."""
    world = remembering
    begins = datetime.now(UTC) + timedelta(seconds=1)
    _, value = await new_token(world, not_before=begins)
    path = of_account(world.a.account)
    found = outcome(await world.http.get(path, headers=bearer(value)))
    assert found == INVALID or datetime.now(UTC) >= begins
    await asyncio.sleep((begins - datetime.now(UTC)).total_seconds() + 0.01)
    assert outcome(await world.http.get(path, headers=bearer(value))) == OK


async def test_the_other_dialect_knows_what_is_given_a_second_later(database_url: str, tmp_path: Path) -> None:
    """In Infisical's dialect a permission just given and an account just made count within a second."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        path = "/api/v1/cert-manager/ca/internal?projectId="
        few, few_value = await new_token(world, groups=("Account Settings Read",))
        user = await accounts.find_user(world.database, world.a.email)
        _, value = await new_token(world, user=user, policies=everywhere())
        project = [uuid4().hex]

        async def make_account() -> None:
            made = await world.http.post("/client/v4/accounts", json={"name": "Fresh"}, headers=bearer(value))
            project.append(made.json()["result"]["id"])

        await run(
            world,
            [
                Case(
                    "a permission",
                    lambda: world.http.get(path + world.a.account.id.hex, headers=bearer(few_value)),
                    (403, 0),
                    lambda: change(world, few, policies=_private_ca(world.a.account)),
                    (200, 0),
                ),
                Case(
                    "an account",
                    lambda: world.http.get(path + project[-1], headers=bearer(value)),
                    (404, 0),
                    make_account,
                    (200, 0),
                ),
            ],
        )


def _private_ca(account: Account) -> list[Any]:
    found: list[Any] = json.loads(policies.write(account, (policies.find_group("Private CA Read"),)))
    return found


# --- what is remembered ---


def leaves(thing: Any) -> Iterator[bytes]:
    """All that hangs together below a thing."""
    if isinstance(thing, Memory | identity_memory._Cache):
        thing = vars(thing)
    if isinstance(thing, msgspec.Struct):
        thing = msgspec.structs.astuple(thing)
    if isinstance(thing, asyncpg.Record | dict):
        for name, value in thing.items():
            yield from (*leaves(name), *leaves(value))
    elif isinstance(thing, list | tuple | set | frozenset):
        for each in thing:
            yield from leaves(each)
    else:
        yield thing if isinstance(thing, bytes) else repr(thing).encode()


async def test_no_credential_is_remembered_in_the_clear(remembering: World) -> None:
    """The memory has nothing of a credential but digests under a key of its own, and its repr has not even these."""
    world = remembering
    token, value = await new_token(world)
    access = await access_token(world, token, value)
    for headers in (bearer(value), pair(world.a.email, world.a.key)):
        assert outcome(await world.http.get(of_account(world.a.account), headers=headers)) == OK
    for each in (value, access):
        assert (await world.http.get("/api/v1/pki/ca/x", headers=bearer(each))).status_code == 404
    memory = memory_of(world)
    credentials: list[identity_memory.Credential] = [
        TokenCredential(value),
        TokenCredential(value, access=True),
        TokenCredential(access, access=True),
        KeyCredential(world.a.email, world.a.key),
    ]
    assert [memory.caller(each) is not None for each in credentials] == [True] * 4
    held = b"\n".join(leaves(memory))
    assert world.a.email.encode() in held
    for secret in (value, access, world.a.key):
        raw = secret.encode()
        for told in (raw, raw[4:], hashlib.sha256(raw).digest(), hashlib.blake2b(raw, digest_size=32).digest()):
            assert told not in held
            assert told.hex().encode() not in held
        assert secret not in repr(memory) + repr(credentials) + str(credentials)
    assert memory._secret.hex() not in repr(memory)
    # Digests of one process say nothing to another.
    assert {memory._digest(each) for each in credentials}.isdisjoint(Memory()._digest(each) for each in credentials)


async def test_the_memory_is_bounded_and_the_oldest_go(remembering: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three callers and three places are remembered when three is the most, those that were looked up last."""
    monkeypatch.setattr(identity_memory, "MOST_REMEMBERED", 3)
    world, memory = remembering, memory_of(remembering)
    made = [await new_token(world) for _ in range(5)]
    places = [
        await zones.create_in(world.database, OPERATOR, world.a.account, f"place{number}.example.com")
        for number in range(5)
    ]

    async def ask(number: int) -> None:
        path = f"/client/v4/zones/{places[number].id.hex}"
        assert outcome(await world.http.get(path, headers=bearer(made[number][1]))) == OK

    def remembered() -> list[tuple[bool, bool]]:
        return [
            (
                memory.caller(TokenCredential(value)) is not None,
                memory.scope(ScopeRef(Level.ZONE, zone.id)) is not None,
            )
            for (_, value), zone in zip(made, places, strict=True)
        ]

    def held(*numbers: int) -> list[tuple[bool, bool]]:
        return [(number in numbers, number in numbers) for number in range(5)]

    for number in range(5):
        await ask(number)
    assert remembered() == held(2, 3, 4)
    # Whoever is remembered is not looked up, and so stays as old as they are.
    await ask(2)
    await ask(0)
    assert remembered() == held(0, 3, 4)
    await ask(2)
    assert remembered() == held(0, 2, 4)
    assert len(memory._callers._entries) == len(memory._scopes._entries) == 3


async def test_what_is_older_than_a_second_is_not_remembered(world: World) -> None:
    """A row counts for a second from before it was asked for, and the next one that is kept drops it."""
    row = await world.database.fetchrow("SELECT gen_random_uuid() AS account_id")
    assert row is not None
    memory, now = Memory(), time.monotonic()
    place = ScopeRef(Level.ACCOUNT, row["account_id"])
    old = [TokenCredential(tokens.new_token()) for _ in range(5)]
    for credential in old:
        memory.keep(now - 1.0, row, credential, place)
    assert [memory.caller(credential) for credential in old] == [None] * 5
    assert memory.scope(place) is None
    young = TokenCredential(tokens.new_token())
    # So young that a slow machine does not make it old.
    memory.keep(now + LONG, row, young)
    assert memory.caller(young) is row
    assert memory.scope(place) is None
    assert len(memory._callers._entries) == 1
    memory.keep(now + LONG, row, young, place)
    assert memory.scope(place) is row
    memory.keep(now - 1.0, row, young, place)
    assert (memory.caller(young), memory.scope(place)) == (None, None)


async def test_what_is_not_good_is_not_remembered(remembering: World) -> None:
    """Unknown, expired, disabled, too early, from a wrong address, a wrong pair: nothing of these is in the memory."""
    world, memory = remembering, memory_of(remembering)
    now, hour = datetime.now(UTC), timedelta(hours=1)
    _, expired = await new_token(world, expires_on=now - hour)
    _, early = await new_token(world, not_before=now + hour)
    _, far = await new_token(world, condition=allowed_only_from("10.0.0.0/8"))
    off, disabled = await new_token(world)
    await tokens.set_status(world.database, OPERATOR, off, active=False)
    credentials: list[Headers] = [
        *(bearer(value) for value in (expired, early, far, disabled, tokens.new_token(), "x" * 40)),
        pair(world.a.email, "0" * 37),
        pair(world.b.email, world.a.key),
    ]
    for headers in credentials:
        for path in (of_account(world.a.account), "/client/v4/user/tokens/permission_groups", "/api/v1/pki/ca/x"):
            assert (await world.http.get(path, headers=headers)).status_code in {400, 401, 403}
    assert (memory._callers._entries, memory._scopes._entries) == ({}, {})
    # A place that is not there is none either, whoever asks.
    unknown = f"/client/v4/zones/{'0' * 32}"
    assert outcome(await world.http.get(unknown, headers=world.a.bearer)) == UNAUTHORIZED
    assert memory._scopes._entries == {}


async def test_an_access_token_stays_in_its_dialect(remembering: World) -> None:
    """An access token that Infisical's dialect remembers is unknown to Cloudflare's on every kind of call."""
    world = remembering
    access = bearer(await access_token(world, *await new_token(world)))
    calls = (
        of_account(world.a.account),
        groups_path(world.a.account),
        f"/client/v4/zones/{world.a.zone.id.hex}",
        "/client/v4/accounts",
        "/client/v4/user/tokens",
    )
    for _ in range(2):
        assert (await world.http.get("/api/v1/pki/ca/x", headers=access)).status_code == 404
        # The places are in the memory too.
        for path in calls[:3]:
            assert outcome(await world.http.get(path, headers=world.a.bearer)) == OK
        for path in calls:
            assert outcome(await world.http.get(path, headers=access)) == INVALID, path
        assert outcome(await world.http.post(calls[0], json=BODY, headers=access)) == INVALID
        for path in ("/client/v4/user/tokens/verify", of_account(world.a.account, "/tokens/verify")):
            assert outcome(await world.http.get(path, headers=access)) == (401, 1000), path


async def test_a_pair_is_remembered_as_a_pair(statements: Statements, database_url: str, tmp_path: Path) -> None:
    """A remembered pair works with its email in any case, and neither half of it with another's half."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        a, b, path = world.a, world.b, groups_path(world.a.account)
        for tenant in (a, b):
            where = groups_path(tenant.account)
            assert outcome(await world.http.get(where, headers=pair(tenant.email, tenant.key))) == OK
        for email in (a.email, a.email.upper(), a.email.title()):
            count, answer = await statements.of(world.http.get(path, headers=pair(email, a.key)))
            assert (count, outcome(answer)) == (0, OK)
        for email, key in ((b.email, a.key), (a.email, b.key), (f"x{a.email}", a.key), (a.email, a.key[:-1])):
            for _ in range(2):
                assert outcome(await world.http.get(path, headers=pair(email, key))) == UNKNOWN_PAIR
        assert outcome(await world.http.get(path, headers=pair(a.email, a.key))) == OK


async def test_the_address_is_judged_each_time(database_url: str, tmp_path: Path) -> None:
    """A token that is remembered from an allowed address is refused from another, in both dialects."""
    proxies = (ipaddress.ip_network("127.0.0.0/8"),)
    async with new_world(database_url, tmp_path, remembered=LONG, trusted_proxies=proxies) as world:
        condition = allowed_only_from("10.0.0.0/8", "2001:db8::/32")
        token, value = await new_token(world, condition=condition)
        login = {"clientId": str(token.id), "clientSecret": value}
        there = {"X-Forwarded-For": "10.1.1.1"}
        answer = await world.http.post("/api/v1/auth/universal-auth/login", json=login, headers=there)
        access: str = answer.json()["accessToken"]
        good, bad = ("10.1.1.1", "10.2.2.2", "2001:db8::1"), ("192.0.2.1", "2001:db9::1", "127.0.0.1")
        for address in (*good, *bad, *good, *bad):
            from_there = {"X-Forwarded-For": address}
            allowed = address in good
            answer = await world.http.get(of_account(world.a.account), headers={**bearer(value), **from_there})
            assert answer.status_code == (200 if allowed else 403), address
            if not allowed:
                text = f"Cannot use the access token from location: {address}"
                assert answer.json()["errors"][0]["message"] == text
            for each in (value, access):
                answer = await world.http.get("/api/v1/pki/ca/x", headers={**bearer(each), **from_there})
                assert answer.status_code == (404 if allowed else 403), address


async def test_places_and_callers_are_put_together_anew(remembering: World) -> None:
    """A caller and a place that are both remembered, but not of each other, do not open each other."""
    world = remembering
    a, b = world.a, world.b

    def paths(tenant: Tenant) -> tuple[str, ...]:
        return (*tenant.paths, f"/client/v4/zones/{tenant.zone.id.hex}", groups_path(tenant.account))

    for _ in range(2):
        for tenant, other in ((a, b), (b, a)):
            for headers in (tenant.bearer, pair(tenant.email, tenant.key)):
                assert [outcome(await world.http.get(path, headers=headers)) for path in paths(tenant)] == [OK] * 4
                found = [outcome(await world.http.get(path, headers=headers)) for path in paths(other)]
                assert found == [UNAUTHORIZED] * 4


# --- all workers ---

FRESH_REQUESTS = 200


class Asked(msgspec.Struct):
    """When a request began, and how it was answered."""

    begun: float
    status: int


@pytest.mark.serve
async def test_every_worker_knows_within_a_second(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Rolled, deleted or disabled over the API, a token is let in by none of four workers a second after the answer."""
    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path / "data", workers=4) as live:
            # Each request has a connection of its own, so that all workers are met.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            async with httpx.AsyncClient(base_url=live.url, limits=limits, timeout=DEADLINE) as http:
                await asyncio.gather(*(_dies_everywhere(live, http, how) for how in ("roll", "delete", "disable")))


async def _dies_everywhere(live: Live, http: httpx.AsyncClient, how: str) -> None:
    base = f"/client/v4/accounts/{live.env['CLOUDFLARE_ACCOUNT_ID']}/tokens"
    asked_for = f"{base}/permission_groups?name=Zone+Read"
    own = (await http.get("/client/v4/user/tokens/verify", headers=live.bearer)).json()["result"]["id"]
    policies_of_own = (await http.get(f"{base}/{own}", headers=live.bearer)).json()["result"]["policies"]
    body = {"name": how, "policies": policies_of_own}
    made = (await http.post(base, json=body, headers=live.bearer)).json()["result"]
    asked: list[Asked] = []
    dead_from, warm = float("inf"), asyncio.Event()

    async def keep_asking(value: str) -> None:
        while sum(each.begun > dead_from for each in asked) < FRESH_REQUESTS:
            begun = time.monotonic()
            answer = await http.get(asked_for, headers=bearer(value))
            asked.append(Asked(begun, answer.status_code))
            if len(asked) >= 40:
                warm.set()

    async with asyncio.timeout(DEADLINE):
        askers = [asyncio.create_task(keep_asking(made["value"])) for _ in range(8)]
        try:
            await warm.wait()
            assert {each.status for each in asked} == {200}
            one = f"{base}/{made['id']}"
            if how == "roll":
                answer = await http.put(f"{one}/value", headers=live.bearer)
            elif how == "delete":
                answer = await http.delete(one, headers=live.bearer)
            else:
                answer = await http.put(one, json={**body, "status": "disabled"}, headers=live.bearer)
            dead_from = time.monotonic() + 1.0
            assert answer.status_code == 200, answer.text
            if how == "roll":
                fresh = bearer(answer.json()["result"])
                found = await asyncio.gather(*(http.get(asked_for, headers=fresh) for _ in range(40)))
                assert [each.status_code for each in found] == [200] * 40
            await asyncio.gather(*askers)
        finally:
            for task in askers:
                task.cancel()
    late = [each for each in asked if each.begun > dead_from]
    assert len(late) >= FRESH_REQUESTS
    assert {each.status for each in late} == {403}, how
