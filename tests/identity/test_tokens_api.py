"""Tokens over the API (contract-cloudflare section 7): what is refused and where, what comes back, and never wider."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import UUID, uuid4

import httpx
import pytest
import structlog
from support.databases import connected
from support.waiting import at_locks
from support.world import World, make_token

from keystead.caller import GROUPS, Level, Role, Scope
from keystead.identity import accounts, delegation, policies, tokens, zones
from keystead.identity.accounts import Account
from keystead.identity.zones import Zone
from keystead.server import first_start

Json = dict[str, Any]
Headers = dict[str, str]

ACCOUNT, ZONE = "com.cloudflare.api.account.", "com.cloudflare.api.account.zone."
ALL_ZONES = {ZONE + "*": "*"}
SSL_READ, SSL_WRITE = "SSL and Certificates Read", "SSL and Certificates Write"
TOKENS_READ, TOKENS_WRITE = "Account API Tokens Read", "Account API Tokens Write"
OWN_READ, OWN_WRITE = "API Tokens Read", "API Tokens Write"
UNAUTHORIZED = (403, [(9109, None)])
NO_TEXTS: list[Any] = [5, True, [], {}]


def group(name: str) -> str:
    return policies.find_group(name).id.hex


def policy(resources: Any, *groups: str, effect: str = "allow", **fields: Any) -> Json:
    return {
        "effect": effect,
        "resources": resources,
        "permission_groups": [{"id": group(name)} for name in groups],
        **fields,
    }


def on(account: Account | None) -> Json:
    return {ACCOUNT + (account.id.hex if account else "*"): "*"}


def in_zone(zone: Zone) -> Json:
    return {ZONE + zone.id.hex: "*"}


def body(*asked: Json, **fields: Any) -> Json:
    return {"name": "made over the API", "policies": list(asked), **fields}


def path_of(world: World) -> str:
    return f"/client/v4/accounts/{world.a.account.id.hex}/tokens"


OWN = "/client/v4/user/tokens"


def key(world: World) -> Headers:
    return {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}


def bearer(value: str) -> Headers:
    return {"Authorization": f"Bearer {value}"}


def told(answer: httpx.Response) -> tuple[int, list[tuple[int, str | None]]]:
    """The status, and the code and pointer of each item."""
    items = answer.json()["errors"]
    return answer.status_code, [(item["code"], item.get("source", {}).get("pointer")) for item in items]


def result(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


async def ask(
    world: World, method: str, path: str, headers: Headers | None = None, sent: Any = None, once: str | None = None
) -> httpx.Response:
    """A request by the global key unless others ask; bytes are sent as they are."""
    content = sent if isinstance(sent, bytes) or sent is None else json.dumps(sent).encode()
    more = {"Idempotency-Key": once} if once else {}
    return await world.http.request(method, path, content=content, headers={**(headers or key(world)), **more})


async def create(world: World, *asked: Json, path: str = "", headers: Headers | None = None, **fields: Any) -> Json:
    chosen = asked or (policy(on(world.a.account), "Account Settings Read"),)
    made: Json = result(await ask(world, "POST", path or path_of(world), headers, body(*chosen, **fields)))
    return made


async def id_of(world: World, value: str) -> str:
    verified: str = result(await world.http.get("/client/v4/user/tokens/verify", headers=bearer(value)))["id"]
    return verified


async def lives(world: World, value: str) -> bool:
    """Whether a token is let in; it says so itself to whoever has it."""
    answer = await world.http.get("/client/v4/zones", headers=bearer(value))
    assert answer.status_code in (200, 403), answer.text
    return answer.status_code == 200


async def stored(world: World) -> list[Json]:
    return [dict(row) for row in await world.database.fetch("SELECT * FROM tokens ORDER BY id")]


async def audited(world: World, since: int = 0) -> list[Json]:
    rows = await world.database.fetch("SELECT * FROM audit_log WHERE status IS NOT NULL ORDER BY at, id")
    return [dict(row) for row in rows][since:]


def time(**later: float) -> str:
    return (datetime.now(UTC).replace(microsecond=0) + timedelta(**later)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def second_account(world: World) -> tuple[Account, Zone]:
    """Another account, which the user of the first one administers too."""
    operator = first_start.operator()
    account = await accounts.create_account(world.database, operator, "c", "Account c")
    zone = await zones.create_in(world.database, operator, account, "c.example.com")
    await member(world, account, Role.ADMINISTRATOR)
    return account, zone


async def member(world: World, account: Account, role: Role | None) -> None:
    user = await accounts.find_user(world.database, world.a.email)
    await accounts.set_membership(world.database, first_start.operator(), user, account, role)


# What is refused.

Problems = list[tuple[int, str]]
Case = tuple[Any, Problems]


def _changed(good: Json, **fields: Any) -> Json:
    return {name: value for name, value in {**good, **fields}.items() if value is not ...}


def _names(good: Json) -> list[Case]:
    values: list[Any] = [..., None, "", 5, [], {}, True, " \t", " ", "n" * 121, "é" * 121, "a\nb", "\x00", "\x1b[2J"]
    values += ["\x85", "\u202e", "\u2066a"]
    return [(_changed(good, name=value), [(1453, "/name")]) for value in values]


def _policies(world: World, good: Json, others: tuple[Account, Zone], deleted: Zone) -> list[Case]:
    value: Any
    odd: Any
    first: Json = good["policies"][0]
    here, zone, place = world.a.account, world.a.zone, "/policies/0/resources"
    cases: list[Case] = []

    def case(value: Any, *problems: tuple[int, str]) -> None:
        cases.append((_changed(good, policies=value), list(problems)))

    def part(code: int, pointer: str, **fields: Any) -> None:
        case([_changed(first, **fields)], (code, pointer))

    def named(name: str, value: Any = "*", pointer: str = "", groups: tuple[str, ...] = ("Zone Read",)) -> None:
        level = "Account Settings Read" if not name.startswith(ZONE) and not isinstance(value, dict) else groups[0]
        case([policy({name: value}, level)], (1463, pointer or f"{place}/{name}"))

    for value in (..., None, "x", 5, {}, True, {"0": first}):
        case(value, (1453, "/policies"))
    case([], (1463, "/policies"))
    case([first] * 51, (1463, "/policies"))
    case([policy({ZONE + uuid4().hex: "*" for _ in range(301)}, SSL_READ)], (1463, "/policies"))
    below = {ZONE + uuid4().hex: "*" for _ in range(300)}
    case([policy({ACCOUNT + here.id.hex: below}, SSL_READ)], (1463, "/policies"))
    for odd in (None, 5, "x", []):
        case([first, odd], (1453, "/policies/1"))
    for value in (..., None, 5, ["allow"]):
        part(1453, "/policies/0/effect", effect=value)
    for value in ("", "ALLOW", "allow ", "grant"):
        part(1463, "/policies/0/effect", effect=value)
    for value in (..., None, 5, "*", [], [ACCOUNT + here.id.hex]):
        part(1453, place, resources=value)
    case([_changed(first, resources={})], (1463, "/policies/0/permission_groups/0/id"), (1463, place))
    for name in ("", "*", ACCOUNT, ZONE, "com.cloudflare.edge.r2.bucket.x", "com.cloudflare.api.user.*", here.id.hex):
        named(name)
    named(ACCOUNT + here.id.hex[:-1])
    named(ACCOUNT + here.id.hex + "\n")
    named(ACCOUNT + here.id.hex.upper())
    named(ACCOUNT + str(here.id))
    named(ZONE + zone.id.hex.upper())
    named(ACCOUNT + uuid4().hex)
    named(ACCOUNT + world.b.account.id.hex)
    named(ACCOUNT + zone.id.hex)
    named(ZONE + uuid4().hex)
    named(ZONE + world.b.zone.id.hex)
    named(ZONE + deleted.id.hex)
    named(ZONE + here.id.hex)
    named(ACCOUNT + "a/b~c", pointer=f"{place}/{ACCOUNT}a~1b~0c")
    named(ACCOUNT + "~1", pointer=f"{place}/{ACCOUNT}~01")
    for value in ("", "**", 5, None, True, [], ["*"], [ALL_ZONES]):
        named(ACCOUNT + here.id.hex, value)
        named(ZONE + zone.id.hex, value)
    named(ZONE + zone.id.hex, ALL_ZONES)
    outer = ACCOUNT + here.id.hex
    named(outer, {})
    for name in (
        *("", "*", ACCOUNT + "*", outer, ZONE + uuid4().hex, ZONE + zone.id.hex.upper()),
        *(ZONE + each.id.hex for each in (world.b.zone, deleted, others[1])),
    ):
        named(outer, {name: "*"}, f"{place}/{outer}/{name}")
    named(outer, {ZONE + "a/b~c": "*"}, f"{place}/{outer}/{ZONE}a~1b~0c")
    for value in ("", 5, None, {}, ALL_ZONES):
        named(outer, {ZONE + "*": value}, f"{place}/{outer}/{ZONE}*")
    named(ACCOUNT + world.b.account.id.hex, ALL_ZONES)
    return cases


def _groups(world: World, good: Json) -> list[Case]:
    here, groups = world.a.account, "/policies/0/permission_groups"
    cases: list[Case] = []
    value: Any

    def part(code: int, pointer: str, value: Any) -> None:
        cases.append((body(_changed(good["policies"][0], permission_groups=value)), [(code, pointer)]))

    for value in (..., None, 5, {}, group(SSL_READ)):
        part(1453, groups, value)
    part(1463, groups, [])
    part(1463, groups, [{"id": group("Account Settings Read")}] * 51)
    good_one = {"id": group("Account Settings Read")}
    for odd in (None, 5, group(SSL_READ), {}, {"name": SSL_READ}, {"id": None}, {"id": 5}):
        part(1453, f"{groups}/1/id", [good_one, odd])
    for text in ("", "x", uuid4().hex, group(SSL_READ).upper(), str(UUID(group(SSL_READ))), SSL_READ):
        part(1463, f"{groups}/1/id", [good_one, {"id": text}])
    # A group of zones that is denied where there is only an account, and the other way round.
    denied = [policy(each, "Account Settings Read", SSL_READ, effect="deny") for each in (on(here), on(None))]
    cases += [(body(each), [(1463, f"{groups}/1/id")]) for each in denied]
    places: list[Json] = [ALL_ZONES, in_zone(world.a.zone), {ACCOUNT + here.id.hex: ALL_ZONES}]
    mixed = [body(policy(resources, SSL_READ, "Account Settings Read")) for resources in places]
    cases += [(each, [(1463, f"{groups}/1/id")]) for each in mixed]
    return cases


def _conditions(good: Json) -> list[Case]:
    here = "/condition/request_ip"
    whole: list[Any] = ["x", "", 5, [], True, False, {"ip": {}}, {"request.ip": {}}, {"request_ip": [], "x": 1}]
    whole += [{"request_ip": []}, {"request_ip": "10.0.0.0/8"}, {"request_ip": {}, "": {}}]
    cases: list[Case] = [(_changed(good, condition=value), [(1464, "/condition")]) for value in whole]

    value: Any

    def ip(pointer: str, **lists: Any) -> None:
        cases.append((_changed(good, condition={"request_ip": lists}), [(1464, pointer)]))

    for unknown in ("In", "not in", "", "notIn", "ranges"):
        ip(here, **{unknown: ["10.0.0.0/8"]})
    for name in ("in", "not_in"):
        for value in ("10.0.0.0/8", {}, 5, True, [5], [None], [["10.0.0.0/8"]]):
            ip(f"{here}/{name}", **{name: value})
        ip(f"{here}/{name}", **{name: [f"10.0.0.{i}" for i in range(101)]})
        for text in (
            *("", "x", " 10.0.0.0/8", "10.0.0.0/33", "10.0.0/8", "10.0.0.256", "10.0.0.0/-1", "010.0.0.1"),
            *("10.0.0.1/8", "2001:db8::1/32", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:0:0/96"),
            *("fe80::1%eth0", "example.com", "10.0.0.0-10.0.0.9", "\u0661.1.1.1", "*"),
        ):
            ip(f"{here}/{name}/1", **{name: ["192.168.0.0/16", text]})
    ip(f"{here}/in", **{"in": []})
    return cases


def _times(good: Json) -> list[Case]:
    cases: list[Case] = []
    for name in ("expires_on", "not_before"):
        texts = ("x", "2090-13-01T00:00:00Z", "2090-01-01 00:00:00", "9999999999", "2090-02-30", "now", " 2090")
        cases += [(_changed(good, **{name: text}), [(1467, f"/{name}")]) for text in texts]
        cases += [(_changed(good, **{name: value}), [(1453, f"/{name}")]) for value in NO_TEXTS]
    for expires, begins in (
        ("2001-01-01T00:00:00Z", None),
        (time(seconds=-1), None),
        (time(days=1), time(days=2)),
        (time(days=1), time(days=1)),
        ("2090-01-01T01:00:00+01:00", "2090-01-01T00:00:00Z"),
    ):
        cases.append((_changed(good, expires_on=expires, not_before=begins), [(1467, "/expires_on")]))
    return cases


def _statuses(good: Json) -> list[Case]:
    bad = ("expired", "Active", "on", "active ", *NO_TEXTS)
    return [(_changed(good, status=value), [(1453, "/status")]) for value in bad]


def _bodies(good: Json) -> list[Case]:
    text = json.dumps(good)
    raw = [
        b"",
        b" ",
        b"x",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"{",
        b"\xff",
        b'{"name": "\xff"}',
        b"\xef\xbb\xbf",
    ]
    raw += [text[:-1].encode(), (text[:-1] + ",}").encode(), (text + text).encode(), (text + "\x00").encode()]
    raw += [(text[:-1] + f', "x": {odd}}}').encode() for odd in ("NaN", "-Infinity", "01", "'x'", "\x01", '"\x01"')]
    # Half a surrogate pair stands for no character, so no text has it.
    raw += [json.dumps({**good, name: half}).encode() for name in good for half in ("\ud800", "a\udfff")]
    raw += [json.dumps({**good, "\ud800": 1}).encode(), json.dumps({**good, "x": ["\ud800"]}).encode()]
    return [(each, [(1400, "")]) for each in raw]


def _together(world: World, good: Json) -> list[Case]:
    """Several problems in one body; the order is that of the codes."""
    here = world.a.account
    wrong = {
        "name": "",
        "policies": [policy(on(here), SSL_READ, effect="x"), policy({"x": "*"}, "Account Settings Read")],
        "condition": {"request_ip": {"in": ["x"], "not_in": ["10.0.0.1/8", "10.0.0.0/8", "y"]}},
        "not_before": "x",
        "expires_on": "2001-01-01",
    }
    items = [
        (1453, "/name"),
        (1463, "/policies/0/effect"),
        (1463, "/policies/0/permission_groups/0/id"),
        (1463, "/policies/1/resources/x"),
        (1464, "/condition/request_ip/in/0"),
        (1464, "/condition/request_ip/not_in/0"),
        (1464, "/condition/request_ip/not_in/2"),
        (1467, "/not_before"),
        (1467, "/expires_on"),
    ]
    shapes = {**wrong, "name": 5, "policies": [5, {**good["policies"][0], "effect": 5}], "condition": 5}
    return [
        (wrong, items),
        (
            {**shapes, "expires_on": 5, "not_before": None},
            [
                (1453, "/name"),
                (1453, "/policies/0"),
                (1453, "/policies/1/effect"),
                (1453, "/expires_on"),
                (1464, "/condition"),
            ],
        ),
        ({}, [(1453, "/name"), (1453, "/policies")]),
    ]


async def test_a_bad_token_is_refused_with_the_place_of_each_problem(world: World) -> None:
    """Each problem has its status, code and pointer, for tokens of both owners, new or not, and nothing is changed."""
    others = await second_account(world)
    operator = first_start.operator()
    deleted = await zones.create_in(world.database, operator, world.a.account, "deleted.example.com")
    await zones.delete(world.database, operator, Scope(world.a.account.id, deleted.id))
    good = body(policy(on(world.a.account), "Account Settings Read"))
    cases = [*_names(good), *_policies(world, good, others, deleted), *_groups(world, good), *_conditions(good)]
    cases += [*_times(good), *_statuses(good), *_bodies(good), *_together(world, good)]
    targets = [("POST", path_of(world), cases), ("POST", OWN, cases)]
    for path in (path_of(world), OWN):
        made = await create(world, path=path)
        targets.append(("PUT", f"{path}/{made['id']}", cases))
    before, audits = await stored(world), len(await audited(world))
    wrong = []
    for method, path, table in targets:
        for sent, problems in table:
            answer = await ask(world, method, path, sent=sent)
            if told(answer) != (400, problems):
                wrong.append((method, path, sent if isinstance(sent, bytes) else str(sent)[:300], told(answer)))
    assert wrong == []
    assert await stored(world) == before
    assert len(await audited(world)) == audits


async def test_what_is_not_yours_reads_like_what_is_not_there(world: World) -> None:
    """The text about a resource of another account is that about an unknown one, but for the id."""
    operator = first_start.operator()
    gone = await zones.create_in(world.database, operator, world.a.account, "gone.example.com")
    await zones.delete(world.database, operator, Scope(world.a.account.id, gone.id))

    async def text(path: str, resources: Callable[[str], Json], name: str, id_: str) -> str:
        answer = await ask(world, "POST", path, sent=body(policy(resources(id_), name)))
        assert answer.status_code == 400
        [item] = answer.json()["errors"]
        assert id_ in json.dumps(item)
        return json.dumps(item).replace(id_, "ID")

    inner = ACCOUNT + world.a.account.id.hex
    for path in (path_of(world), OWN):
        places: list[tuple[Callable[[str], Json], str, list[str]]] = [
            (lambda id_: {ACCOUNT + id_: "*"}, "Account Settings Read", [world.b.account.id.hex]),
            (lambda id_: {ACCOUNT + id_: ALL_ZONES}, SSL_READ, [world.b.account.id.hex]),
            (lambda id_: {ZONE + id_: "*"}, SSL_READ, [world.b.zone.id.hex, gone.id.hex]),
            (lambda id_: {inner: {ZONE + id_: "*"}}, SSL_READ, [world.b.zone.id.hex, gone.id.hex]),
        ]
        for resources, name, ids in places:
            unknown = await text(path, resources, name, uuid4().hex)
            assert {await text(path, resources, name, id_) for id_ in ids} == {unknown}


async def test_bodies_are_bounded(world: World) -> None:
    """64 KiB are read, and one byte more is 413/1454, also for a roll; the longest name and policies are accepted."""
    good = json.dumps(body(policy(on(world.a.account), "Account Settings Read"))).encode()
    made = result(await ask(world, "POST", path_of(world), sent=good.ljust(64 * 1024)))
    one = f"{path_of(world)}/{made['id']}"
    for method, path in (("POST", path_of(world)), ("PUT", one), ("PUT", one + "/value"), ("POST", OWN)):
        assert told(await ask(world, method, path, sent=good.ljust(64 * 1024 + 1))) == (413, [(1454, None)])
    here = ACCOUNT + world.a.account.id.hex
    zone = in_zone(world.a.zone)
    six = {here: {**ALL_ZONES, **zone}, ACCOUNT + "*": "*", **ALL_ZONES, **zone}
    most = [policy(six, "Account Settings Read", SSL_READ)] * 50
    lists = {"in": [f"10.0.0.{i}" for i in range(100)], "not_in": []}
    made = await create(world, *most, name="é" * 120, condition={"request_ip": lists})
    assert (made["name"], len(made["policies"])) == ("é" * 120, 50)
    assert len({each["id"] for each in made["policies"]}) == 50


async def test_no_body_is_too_strange_to_be_answered(world: World) -> None:
    """Nesting of any depth, lone surrogates and huge numbers anywhere are 200 or 400, and never 500."""
    made = await create(world)
    one = f"{path_of(world)}/{made['id']}"
    good = policy(on(world.a.account), "Account Settings Read")
    places: list[Callable[[Any], Json]] = [
        lambda odd: body(good, name=odd),
        lambda odd: body(good, colour=odd),
        lambda odd: body(good, condition=odd),
        lambda odd: body(good, condition={"request_ip": {"in": [odd]}}),
        lambda odd: body(good, condition={"request_ip": {"x": odd}}),
        lambda odd: body(good, expires_on=odd),
        lambda odd: body(good, status=odd),
        lambda odd: {"name": "x", "policies": odd},
        lambda odd: body({**good, "id": odd}),
        lambda odd: body({**good, "colour": odd}),
        lambda odd: body({**good, "effect": odd}),
        lambda odd: body({**good, "resources": odd}),
        lambda odd: body({**good, "resources": {"x": odd}}),
        lambda odd: body({**good, "resources": {ACCOUNT + world.a.account.id.hex: {"x": odd}}}),
        lambda odd: body({**good, "permission_groups": [odd]}),
        lambda odd: body({**good, "permission_groups": [{"id": odd}]}),
        lambda odd: body({**good, "permission_groups": [{**good["permission_groups"][0], "name": odd}]}),
    ]
    deep = [pair for n in (500, 5_000, 20_000) for pair in (("[" * n, "]" * n), ('{"":' * n, "0" + "}" * n))]
    texts = [begin + end for begin, end in deep]
    texts += ['"\\ud800"', '"\\udfff\\ud800"', '{"\\ud800": 1}', '["\\ud800"]', '"\\u0000"']
    texts += [digits * count for digits in ("9", "-9"[1:]) for count in (20, 4000, 5000)] + ["1e999", "-0.0", "1E-999"]
    for place in places:
        frame = json.dumps(place("@ODD@"))
        for text in texts:
            answer = await ask(world, "PUT", one, sent=frame.replace('"@ODD@"', text).encode())
            assert answer.status_code in (200, 400, 413), (frame, text[:40])
    assert result(await ask(world, "GET", one))["id"] == made["id"]


@pytest.mark.parametrize("where", ["resources", "policy", "condition", "body"])
async def test_no_body_is_too_deep_to_be_answered(world: World, where: str) -> None:
    """At every depth, also where one reader of JSON gives up and the next one does not, the answer is 200 or 400."""
    good = policy(on(world.a.account), "Account Settings Read")
    sent = {
        "resources": body({**good, "resources": {"x": "@ODD@"}}),
        "policy": body({**good, "colour": "@ODD@"}),
        "condition": body(good, condition={"request_ip": {"x": "@ODD@"}}),
        "body": body(good, colour="@ODD@"),
    }
    one, frame = f"{path_of(world)}/{(await create(world))['id']}", json.dumps(sent[where])
    wrong = []
    for n in range(800, 1010):
        answer = await ask(world, "PUT", one, sent=frame.replace('"@ODD@"', "[" * n + "]" * n).encode())
        if answer.status_code not in (200, 400):
            wrong.append((n, answer.status_code))
    assert wrong == []


async def test_what_is_judged_of_a_key_given_twice_is_what_is_kept(world: World) -> None:
    """Where JSON names something twice, the last one is judged, kept and answered, however the name is spelled."""
    maker = await narrow(world, policy(in_zone(world.a.zone), SSL_READ))
    slim, wide = policy(in_zone(world.a.zone), SSL_READ), policy(ALL_ZONES, SSL_WRITE)
    low, high = (json.dumps(each["resources"]) for each in (slim, wide))
    groups = [json.dumps(each["permission_groups"]) for each in (slim, wide)]
    whole = [json.dumps([each]) for each in (slim, wide)]
    pairs = [
        ('{"name": "x", "policies": %s, "%s": %s}', "policies", "p\\u006flicies", whole),
        (
            _frame('{"effect": "allow", "resources": %s, "%s": %s, "permission_groups": ' + groups[0] + "}"),
            "resources",
            "r\\u0065sources",
            [low, high],
        ),
        (
            _frame('{"effect": "allow", "permission_groups": %s, "%s": %s, "resources": ' + low + "}"),
            "permission_groups",
            "permission\\u005fgroups",
            groups,
        ),
        (
            _frame('{"resources": ' + low + ', "permission_groups": [{"id": %s, "%s": %s}], "effect": "allow"}'),
            "id",
            "\\u0069d",
            [json.dumps(group(each)) for each in (SSL_READ, SSL_WRITE)],
        ),
    ]
    for frame, name, spelled, (less, more) in pairs:
        for again in (name, spelled):
            wider = await ask(world, "POST", path_of(world), maker, (frame % (less, again, more)).encode())
            assert told(wider) == (403, [(1465, "/policies")]), (frame, again)
            made = result(await ask(world, "POST", path_of(world), maker, (frame % (more, again, less)).encode()))
            kept = [{name: each[name] for name in ("effect", "resources")} for each in made["policies"]]
            assert kept == [{"effect": "allow", "resources": slim["resources"]}]
            assert [each["name"] for each in made["policies"][0]["permission_groups"]] == [SSL_READ]
    bound = await narrow(world, condition={"request_ip": {"in": ["127.0.0.0/8"]}})
    frame = '{"name": "x", "policies": %s, "condition": {"request_ip": {"in": ["%%s"], "%%s": ["%%s"]}}}'
    frame %= json.dumps([policy(on(world.a.account), TOKENS_READ)])
    for again in ("in", "\\u0069n"):
        assert (
            await ask(world, "POST", path_of(world), bound, (frame % ("127.0.0.1", again, "10.0.0.0/8")).encode())
        ).status_code == 403
        assert (
            await ask(world, "POST", path_of(world), bound, (frame % ("10.0.0.0/8", again, "127.0.0.1")).encode())
        ).status_code == 200


def _frame(inner: str) -> str:
    return '{"name": "x", "policies": [' + inner + "]}"


async def narrow(world: World, *more: Json, **fields: Any) -> Headers:
    """A token of the account that may make tokens, and what else is said."""
    asked = (policy(on(world.a.account), TOKENS_WRITE), *more)
    return bearer((await create(world, *asked, **fields))["value"])


# What comes back.


async def test_a_value_is_shown_once(world: World) -> None:
    """The value is in the answer that makes or rolls it, and in no other answer, log, row or audit entry."""
    values = []
    for path in (path_of(world), OWN):
        made = await create(world, path=path)
        one = f"{path}/{made['id']}"
        rolled = result(await ask(world, "PUT", one + "/value"))
        values += [made["value"], rolled]
        assert [tokens.is_well_formed(value) for value in (made["value"], rolled)] == [True, True]
        again = body(policy(on(world.a.account), "Account Settings Read"), value="x", id="x", issued_on="x")
        later = [await ask(world, "GET", path), await ask(world, "GET", one), await ask(world, "PUT", one, sent=again)]
        later.append(await ask(world, "GET", one + "/"))
        for answer in later:
            for token in [each for each in [result(answer)] for each in (each if isinstance(each, list) else [each])]:
                assert "value" not in token
        # What an SDK sends back of what it was answered is no mistake.
        assert later[2].json()["messages"] == []
        since, before = time(hours=-1), time(hours=1)
        log = f"/client/v4/accounts/{world.a.account.id.hex}/logs/audit?since={since}&before={before}"
        assert len(result(await ask(world, "GET", log))) > 1
        result(await ask(world, "DELETE", one))
    factory: Any = structlog.get_config()["logger_factory"]
    tables = await world.database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    kept = [str(await world.database.fetch(f"SELECT t::text FROM {row[0]} t")) for row in tables]
    for value in values:
        assert "".join(world.seen).count(value) == 1
        assert value not in factory._file.getvalue()
        assert not any(value in rows or value.encode().hex() in rows for rows in kept)


async def test_a_token_has_the_fields_that_were_set(world: World) -> None:
    """A new token is active, has what it was given and nothing that is unset; unknown fields are advised of."""
    expected = {"id", "name", "status", "issued_on", "modified_on", "policies"}
    for path in (path_of(world), OWN):
        for empty in (
            {},
            {"condition": None, "expires_on": None, "not_before": None},
            {"expires_on": "", "not_before": ""},
        ):
            made = await create(world, path=path, **empty)
            assert set(made) == expected | {"value"}
            assert set(result(await ask(world, "GET", f"{path}/{made['id']}"))) == expected
            assert made["status"] == "active"
        [kept] = made["policies"]
        assert set(kept) == {"id", "effect", "resources", "permission_groups"}
        assert kept["permission_groups"] == [{"id": group("Account Settings Read"), "name": "Account Settings Read"}]
        answer = await ask(world, "POST", path, sent=body(kept, colour="red"))
        assert result(answer)["status"] == "active"
        assert [(m["code"], m["source"]["pointer"]) for m in answer.json()["messages"]] == [(1480, "/colour")]


async def test_a_token_can_be_born_disabled(world: World) -> None:
    """A new token with `status: disabled` is not let in until it is switched on; `active`, null and "" are active."""
    for path in (path_of(world), OWN):
        made = await create(world, path=path, status="disabled")
        one, value = f"{path}/{made['id']}", made["value"]
        assert made["status"] == result(await ask(world, "GET", one))["status"] == "disabled"
        assert not await lives(world, value)
        result(await ask(world, "PUT", one, sent=body(*made["policies"], status="active")))
        assert await lives(world, value)
        for status in ("active", None, ""):
            assert await lives(world, (await create(world, path=path, status=status))["value"])


async def test_times_come_back_as_the_text_that_was_sent(world: World) -> None:
    """In POST, GET, the list and PUT, whatever its offset and fraction are; and they count from that moment."""
    for sent in (
        "2090-01-02T03:04:05Z",
        "2090-01-02T03:04:05.000000Z",
        "2090-01-02T03:04:05.120Z",
        "2090-01-02T03:04:05.123456789Z",
        "2090-01-02T03:04:05+02:00",
        "2090-01-02T03:04:05-0930",
        "2090-01-02",
        "9999-12-31T23:59:59.999998Z",
    ):
        for field, usable in (("expires_on", True), ("not_before", False)):
            times: Json = {field: sent}
            made = await create(world, **times)
            assert made[field] == sent
            assert await lives(world, made["value"]) == usable
            url = f"{path_of(world)}/{made['id']}"
            assert result(await ask(world, "GET", url))[field] == sent
            assert result(await ask(world, "PUT", url, sent=made))[field] == sent
            listed = result(await ask(world, "GET", f"{path_of(world)}?per_page=50"))
            assert [each[field] for each in listed if each["id"] == made["id"]] == [sent]


async def test_a_time_that_a_release_before_changed_is_told_as_it_is(world: World) -> None:
    """A text that is not that of the time is not told; and an operator's time has none."""
    made = await create(world, expires_on="2090-01-02T03:04:05+02:00")
    await world.database.execute(
        "UPDATE tokens SET expires_on = '2091-01-01T00:00:00Z' WHERE id = $1", UUID(made["id"])
    )
    assert result(await ask(world, "GET", f"{path_of(world)}/{made['id']}"))["expires_on"] == "2091-01-01T00:00:00Z"
    text = policies.write(world.a.account, (policies.find_group(SSL_READ),))
    new = tokens.NewToken(world.a.account, "x", text, expires_on=datetime(2090, 1, 2, tzinfo=UTC))
    token, _ = await tokens.create(world.services, first_start.operator(), new)
    assert result(await ask(world, "GET", f"{path_of(world)}/{token.id.hex}"))["expires_on"] == "2090-01-02T00:00:00Z"


@pytest.mark.parametrize("long_ago", ["0001-01-01T00:00:00.1Z", "0999-12-31T23:59:59Z", "1969-12-31T23:59:59Z"])
async def test_a_beginning_long_ago_is_none(world: World, long_ago: str) -> None:
    """A token that began in any year before is let in, and says when."""
    made = await create(world, not_before=long_ago)
    assert await lives(world, made["value"])
    assert made["not_before"] == long_ago
    assert result(await ask(world, "GET", f"{path_of(world)}/{made['id']}"))["not_before"] == made["not_before"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("not_before", "0001-01-01T00:00:00Z"),
        ("not_before", "9999-12-31T23:59:59.999999Z"),
        ("expires_on", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_no_moment_makes_the_tokens_of_an_account_unmanageable(world: World, field: str, text: str) -> None:
    """A token of the first or the last moment that there is is accepted or refused, and is in nobody's way."""
    other = await create(world)
    answer = await ask(
        world, "POST", path_of(world), sent=body(policy(on(world.a.account), TOKENS_READ), **{field: text})
    )
    assert answer.status_code in (200, 400)
    there = [each["id"] for each in result(await ask(world, "GET", path_of(world)))]
    result(
        await ask(world, "PUT", f"{path_of(world)}/{other['id']}", sent=body(policy(on(world.a.account), TOKENS_READ)))
    )
    for token_id in there[2:]:
        result(await ask(world, "DELETE", f"{path_of(world)}/{token_id}"))


async def test_resources_and_condition_come_back_as_they_were_written(world: World) -> None:
    """Their white space, escapes and order of keys are in every answer as in the body that set them."""
    here, zone = ACCOUNT + world.a.account.id.hex, ZONE + world.a.zone.id.hex
    resources = f'{{ "{zone}" :"*",\n\t"{here}":{{"com.cloudflare.api.account.zone.\\u002a":  "*"}} }}'
    condition = '{"request_ip":{ "not_in":["10.1.2.3/32" ],  "in": [ "127.0.0.0\\/8","10.0.0.0/8"] } }'
    policies_ = '[{"permission_groups":[{"id":"%s","name":"any"}],"effect":"allow","resources":%s}]'
    frame = '{"condition":%s, "policies":' + policies_ + ',"name":"x"}'
    sent = (frame % (condition, group(SSL_READ), resources)).encode()
    for path in (path_of(world), OWN):
        made = await ask(world, "POST", path, sent=sent)
        one = f"{path}/{result(made)['id']}"
        for answer in (
            made,
            await ask(world, "GET", one),
            await ask(world, "PUT", one, sent=sent),
            await ask(world, "GET", path),
        ):
            assert answer.status_code == 200
            assert f'"resources":{resources}' in answer.text
            assert f'"condition":{condition}' in answer.text
        for other in ('{"request_ip" : null}', "{ }", '{"request_ip":{"in":null, "not_in":[]}}'):
            changed = await ask(world, "PUT", one, sent=(frame % (other, group(SSL_READ), resources)).encode())
            assert f'"condition":{other}' in changed.text


async def test_a_group_of_zones_on_an_account_is_for_its_zones(world: World) -> None:
    """It is allowed with a message, reaches the zones of that account alone, and comes back as it was sent."""
    mine, other = world.a.zone, world.b.zone
    for resources in (on(world.a.account), on(None)):
        asked = policy(resources, "Account Settings Read", SSL_READ)
        for method, path in (("POST", path_of(world)), ("POST", OWN)):
            answer = await ask(world, method, path, sent=body(asked))
            made = result(answer)
            assert made["policies"][0]["resources"] == resources
            assert [(m["code"], m["source"]["pointer"]) for m in answer.json()["messages"]] == [(1486, "/policies/0")]
            read = [f"/client/v4/zones/{zone.id.hex}/custom_csrs" for zone in (mine, other)]
            found = [(await ask(world, "GET", each, bearer(made["value"]))).status_code for each in read]
            assert found == [200, 403]
            again = await ask(world, "PUT", f"{path}/{made['id']}", sent=body(*made["policies"]))
            assert [m["code"] for m in again.json()["messages"]] == [1486]


async def test_a_zone_that_is_named_bounds_the_groups_of_zones(world: World) -> None:
    """Beside a zone, an account is for its own groups alone: no other zone is reached, and there is no message."""
    _, other = await second_account(world)
    asked = policy({**on(None), **in_zone(world.a.zone)}, "Account Settings Read", SSL_READ)
    answer = await ask(world, "POST", OWN, sent=body(asked))
    assert answer.json()["messages"] == []
    value = result(answer)["value"]
    for zone, status in ((world.a.zone, 200), (other, 403)):
        path = f"/client/v4/zones/{zone.id.hex}/custom_csrs"
        assert (await ask(world, "GET", path, bearer(value))).status_code == status


async def test_policies_keep_their_ids(world: World) -> None:
    """A policy that comes with an id keeps it; one without, with a strange one or with a used one gets its own."""
    one = policy(on(world.a.account), "Account Settings Read")
    made = await create(
        world, one, {**one, "id": "0" * 32}, {**one, "id": "0" * 32}, {**one, "id": "Z"}, {**one, "id": 5}
    )
    ids = [each["id"] for each in made["policies"]]
    assert len(set(ids)) == 5
    assert ids[1] == "0" * 32
    url = f"{path_of(world)}/{made['id']}"
    back = result(await ask(world, "GET", url))
    changed = result(await ask(world, "PUT", url, sent=back))
    assert changed["policies"] == back["policies"]
    swapped = [back["policies"][3], one, back["policies"][1]]
    changed = result(await ask(world, "PUT", url, sent={**back, "policies": swapped}))
    assert [changed["policies"][i]["id"] for i in (0, 2)] == [ids[3], ids[1]]
    assert changed["policies"][1]["id"] not in ids


async def test_an_update_replaces_all_but_the_status(world: World) -> None:
    """What an update leaves out is unset, but for the status; the value, the id and the beginning stay."""
    for path in (path_of(world), OWN):
        bounds: Json = {
            "condition": {"request_ip": {"in": ["127.0.0.0/8"]}},
            "expires_on": time(days=1),
            "not_before": "2020-01-01",
        }
        made = await create(world, path=path, **bounds)
        one, value = f"{path}/{made['id']}", made.pop("value")
        plain = body(policy(in_zone(world.a.zone), SSL_READ), name="renamed")
        changed = result(await ask(world, "PUT", one, sent={**plain, "status": "disabled"}))
        assert set(changed) == set(made) - {"condition", "expires_on", "not_before"}
        assert (changed["name"], changed["status"], changed["issued_on"]) == ("renamed", "disabled", made["issued_on"])
        assert changed["modified_on"] > made["modified_on"]
        assert [each["resources"] for each in changed["policies"]] == [in_zone(world.a.zone)]
        assert not await lives(world, value)
        for unsaid in ({}, {"status": None}, {"status": ""}):
            assert result(await ask(world, "PUT", one, sent={**plain, **unsaid}))["status"] == "disabled"
        assert not await lives(world, value)
        assert result(await ask(world, "PUT", one, sent={**plain, "status": "active"}))["status"] == "active"
        assert await lives(world, value)
        assert result(await ask(world, "GET", one))["status"] == "active"
        result(
            await ask(world, "PUT", one, sent={**plain, **bounds, "condition": {"request_ip": {"in": ["10.0.0.0/8"]}}})
        )
        assert not await lives(world, value)


async def test_an_expired_token_can_be_given_more_time(world: World) -> None:
    """A token past its end is told as expired, and lives again when its end is moved."""
    operator, past = first_start.operator(), datetime.now(UTC) - timedelta(hours=1)
    text = policies.write(world.a.account, (policies.find_group(SSL_READ),))
    new = tokens.NewToken(world.a.account, "ended", text, expires_on=past)
    token, value = await tokens.create(world.services, operator, new)
    url = f"{path_of(world)}/{token.id.hex}"
    back = result(await ask(world, "GET", url))
    assert back["status"] == "expired"
    assert told(await ask(world, "PUT", url, sent={**back, "expires_on": time(days=1)})) == (400, [(1453, "/status")])
    changed = result(await ask(world, "PUT", url, sent=_changed(back, expires_on=time(days=1), status=...)))
    assert changed["status"] == "active"
    assert await lives(world, value)


async def test_a_roll_ends_the_old_value(world: World) -> None:
    """Whatever the body, the new value works with all that was set, and the old one and its access tokens are dead."""
    made = await create(world, policy(on(world.a.account), "Private CA Read", "Account Settings Read"))
    url, value = f"{path_of(world)}/{made['id']}", made["value"]
    kept = result(await ask(world, "GET", url))
    for sent in (None, b"", b"{}", b"null", b'"x"', b"not JSON", b'{"value": "kst_mine"}'):
        login = {"clientId": made["id"], "clientSecret": value}
        access = (await world.http.post("/api/v1/auth/universal-auth/login", json=login)).json()["accessToken"]
        cas = "/api/v1/cert-manager/ca/internal/" + str(uuid4())
        assert (await world.http.get(cas, headers=bearer(access))).status_code == 404
        answer = await ask(world, "PUT", url + "/value", sent=sent)
        new = result(answer)
        assert answer.json()["messages"] == []
        assert tokens.is_well_formed(new)
        assert await lives(world, new)
        assert not await lives(world, value)
        assert (await world.http.get(cas, headers=bearer(access))).status_code == 401
        assert (await world.http.post("/api/v1/auth/universal-auth/login", json=login)).status_code == 401
        value = new
    after = result(await ask(world, "GET", url))
    assert {**after, "modified_on": ""} == {**kept, "modified_on": ""}


async def test_a_deleted_token_is_dead(world: World) -> None:
    """Deleting answers with the id, ends the token, and a token may delete itself, once."""
    for path in (path_of(world), OWN):
        made = await create(world, path=path)
        url = f"{path}/{made['id']}"
        answer = await world.http.request(
            "DELETE", url, headers={**key(world), "Content-Type": "application/json"}, content=b""
        )
        assert result(answer) == {"id": made["id"]}
        assert not await lives(world, made["value"])
        assert told(await ask(world, "DELETE", url)) == (404, [(1468, None)])
    itself = await create(world, policy(on(world.a.account), TOKENS_WRITE))
    url = f"{path_of(world)}/{itself['id']}"
    assert result(await ask(world, "DELETE", url, bearer(itself["value"]))) == {"id": itself["id"]}
    assert told(await ask(world, "DELETE", url, bearer(itself["value"]))) == UNAUTHORIZED
    own = await create(world, policy(on(None), OWN_WRITE), path=OWN)
    assert result(await ask(world, "DELETE", f"{OWN}/{own['id']}", bearer(own["value"]))) == {"id": own["id"]}


async def test_changes_are_audited_without_their_content(world: World) -> None:
    """Create, update, roll and delete each leave one row with the token's id and the caller, and nothing more."""
    user = await accounts.find_user(world.database, world.a.email)
    for path, filed in ((path_of(world), world.a.account.id), (OWN, UUID(int=0))):
        start = len(await audited(world))
        made = await create(world, path=path, name="a telling name")
        url = f"{path}/{made['id']}"
        result(await ask(world, "PUT", url, sent=body(policy(on(world.a.account), "Account Settings Read"))))
        result(await ask(world, "PUT", url + "/value"))
        result(await ask(world, "DELETE", url))
        rows = await audited(world, start)
        assert [row["action"] for row in rows] == ["create", "update", "roll", "delete"]
        for row in rows:
            assert (row["resource_type"], row["resource_id"].hex, row["account_id"]) == ("token", made["id"], filed)
            assert (row["actor"], row["actor_id"], row["user_id"]) == ("user", user.id, user.id)
            assert (row["status"], row["result"], row["zone_id"]) == (200, "success", None)
            assert "a telling name" not in str(row)


# Which tokens there are.


async def test_a_token_that_is_not_there_is_1468(world: World) -> None:
    """An unknown token and one of somebody else are 404/1468, an id that is none 404/7003, by any method."""
    own, theirs = await create(world, path=OWN), await make_token(world.services, world.b.account)
    mine = await create(world)
    foreign = await id_of(world, theirs)
    sent = body(policy(on(world.a.account), "Account Settings Read"))
    calls = [("GET", ""), ("PUT", ""), ("PUT", "/value"), ("DELETE", "")]
    before = await stored(world)
    for method, tail in calls:
        for path, not_there in ((path_of(world), (own["id"], foreign)), (OWN, (mine["id"], foreign))):
            for token_id in (uuid4().hex, "0" * 32, *not_there):
                answer = await ask(world, method, f"{path}/{token_id}{tail}", sent=sent)
                assert told(answer) == (404, [(1468, None)]), (method, path, token_id)
            for token_id in ("x", str(uuid4()), mine["id"].upper(), mine["id"][:-1], mine["id"] + "0"):
                answer = await ask(world, method, f"{path}/{token_id}{tail}", sent=sent)
                assert told(answer) == (404, [(7003, None)]), (method, path, token_id)
        other = f"/client/v4/accounts/{world.b.account.id.hex}/tokens/{foreign}{tail}"
        assert told(await ask(world, method, other, sent=sent)) == UNAUTHORIZED
    # What is not there is told before what is wrong with the body.
    assert told(await ask(world, "PUT", f"{path_of(world)}/{foreign}", sent={})) == (404, [(1468, None)])
    assert await stored(world) == before
    for path, there, elsewhere in ((path_of(world), mine, own), (OWN, own, mine)):
        ids = [each["id"] for each in result(await ask(world, "GET", path))]
        assert there["id"] in ids
        assert elsewhere["id"] not in ids
        assert foreign not in ids


async def test_lists_have_pages(world: World) -> None:
    """Pages follow the time of making either way, do not overlap, and end in an empty one; the operator's are there."""
    made = [(await create(world, name=f"token {i}"))["id"] for i in range(10)]
    ids = [await id_of(world, value) for value in (world.a.token, world.a.read_token)] + made

    async def page(**query: Any) -> tuple[list[str], Json]:
        answer = await world.http.get(path_of(world), params=query, headers=key(world))
        return [each["id"] for each in result(answer)], answer.json()["result_info"]

    def info(count: int, page: int, per_page: int, pages: int) -> Json:
        return {"count": count, "page": page, "per_page": per_page, "total_count": 12, "total_pages": pages}

    assert await page() == (ids, info(12, 1, 20, 1))
    assert await page(direction="desc") == (ids[::-1], info(12, 1, 20, 1))
    assert await page(per_page=5, page=3) == (ids[10:], info(2, 3, 5, 3))
    assert await page(per_page="5.0", page=2, direction="desc") == (ids[2:7][::-1], info(5, 2, 5, 3))
    assert await page(per_page=50, page=2**53 - 1, colour="red") == ([], info(0, 2**53 - 1, 50, 1))
    for query in (
        *("page=0", "page=x", "page=1.5", "per_page=4", "per_page=51", "direction=up", "direction=ASC", "page=-1"),
        *(
            "include_expired=1",
            "include_expired=True",
            "include_expired=",
            "page=1&page=2",
            "page=%00",
            "page=9007199254740992",
        ),
    ):
        assert told(await world.http.get(f"{path_of(world)}?{query}", headers=key(world))) == (400, [(1455, None)])


async def test_expired_tokens_are_listed_when_asked_for(world: World) -> None:
    """A token past its end is left out of the list and its count unless include_expired is true."""
    user = await accounts.find_user(world.database, world.a.email)
    operator, text = first_start.operator(), policies.write(world.a.account, (policies.find_group(SSL_READ),))
    for path, owner in ((path_of(world), None), (OWN, user)):
        shown = await create(world, path=path, expires_on=time(hours=1))
        off = await create(world, path=path)
        result(await ask(world, "PUT", f"{path}/{off['id']}", sent=_changed(off, value=..., status="disabled")))
        past = datetime.now(UTC) - timedelta(seconds=1)
        new = tokens.NewToken(world.a.account, "ended", text, owner, expires_on=past)
        ended, _ = await tokens.create(world.services, operator, new)
        for query, expected in (("", False), ("?include_expired=false", False), ("?include_expired=true", True)):
            answer = await ask(world, "GET", path + query)
            found = {each["id"]: each["status"] for each in result(answer)}
            assert (found[shown["id"]], found[off["id"]]) == ("active", "disabled")
            assert found.get(ended.id.hex) == ("expired" if expected else None)
            assert answer.json()["result_info"]["total_count"] == len(found)
        assert result(await ask(world, "GET", f"{path}/{ended.id.hex}"))["status"] == "expired"


async def test_permission_groups_are_listed(world: World) -> None:
    """All groups with their scopes, or those of exactly one name or scope."""
    scopes = {Level.ACCOUNT: "com.cloudflare.api.account", Level.ZONE: "com.cloudflare.api.account.zone"}
    expected = [{"id": g.id.hex, "name": g.name, "scopes": [scopes[g.level]]} for g in GROUPS]
    for path in (path_of(world), OWN):

        async def groups(url: str = path, **query: str) -> list[Json]:
            answer = await world.http.get(f"{url}/permission_groups", params=query, headers=key(world))
            found: list[Json] = result(answer)
            assert answer.json()["result_info"]["total_count"] == len(found)
            return found

        assert await groups() == expected
        for each in expected:
            for name in (each["name"], quote(str(each["name"])), quote_plus(str(each["name"]))):
                assert await groups(name=str(name)) == [each]
        for scope in scopes.values():
            assert await groups(scope=scope) == [each for each in expected if each["scopes"] == [scope]]
        assert await groups(scope=scopes[Level.ZONE], name="Zone Read") == [
            e for e in expected if e["name"] == "Zone Read"
        ]
        for nothing in ({"name": "zone read"}, {"name": "Zone"}, {"scope": "com.cloudflare"}, {"name": ""}):
            assert await groups(**nothing) == []
        assert told(await ask(world, "GET", f"{path}/permission_groups?name=a&name=b")) == (400, [(1455, None)])


async def test_an_idempotency_key_makes_one_token(world: World) -> None:
    """A value is shown once, so a repeat is 409/1456, also after a deletion; what was refused used up no key."""
    for path in (path_of(world), OWN):
        sent = body(policy(on(world.a.account), "Account Settings Read"), name=f"once {path}")
        once = "the key"
        assert (await ask(world, "POST", path, sent=b"{}", once=once)).status_code == 400
        made = result(await ask(world, "POST", path, sent=sent, once=once))
        for again in (sent, {**sent, "name": "another"}, sent):
            answer = await ask(world, "POST", path, sent=again, once=once)
            assert told(answer) == (409, [(1456, None)])
            assert answer.headers["x-should-retry"] == "false"
        result(await ask(world, "DELETE", f"{path}/{made['id']}"))
        assert told(await ask(world, "POST", path, sent=sent, once=once)) == (409, [(1456, None)])
        assert (await ask(world, "POST", path, sent=sent, once="another")).status_code == 200
        assert told(await ask(world, "POST", path, sent=sent, once=256 * "x")) == (
            400,
            [(1456, None)],
        )
        # Of twenty at once one makes a token.
        name = uuid4().hex
        posts = (ask(world, "POST", path, sent={**sent, "name": name}, once="at once") for _ in range(20))
        answers = await asyncio.gather(*posts)
        assert sorted(answer.status_code for answer in answers) == [200] + 19 * [409]
        assert {item for answer in answers if answer.status_code == 409 for item in told(answer)[1]} == {(1456, None)}
        assert [each["name"] for each in await stored(world)].count(name) == 1
    # A narrow maker who is told 403 may try again with the same key.
    maker = await narrow(world)
    wide, less = (body(policy(on(world.a.account), each)) for each in ("Account Settings Read", TOKENS_READ))
    assert (await ask(world, "POST", path_of(world), maker, wide, once="narrower")).status_code == 403
    assert (await ask(world, "POST", path_of(world), maker, less, once="narrower")).status_code == 200


async def test_an_owner_has_a_bounded_number_of_tokens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound a new token is 403/1469, and after a deletion it is made; others are not counted."""
    monkeypatch.setattr(delegation, "MAX_TOKENS", 3)
    sent = body(policy(on(world.a.account), "Account Settings Read"))
    for path, free in ((path_of(world), 1), (OWN, 3)):
        made = [await create(world, path=path) for _ in range(free)]
        once = "full"
        assert told(await ask(world, "POST", path, sent=sent, once=once)) == (403, [(1469, None)])
        assert (await ask(world, "PUT", f"{path}/{made[0]['id']}", sent=sent)).status_code == 200
        assert (await ask(world, "DELETE", f"{path}/{made[0]['id']}")).status_code == 200
        answers = await asyncio.gather(*(ask(world, "POST", path, sent=sent) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 403, 403, 403, 403]


# The last token that may manage tokens.


async def test_the_last_administrator_token_of_an_account_stays(world: World) -> None:
    """To delete, disable, narrow or delay the last token that may manage tokens is 409/1466, and changes nothing."""
    last = await id_of(world, world.a.token)
    url, here = f"{path_of(world)}/{last}", on(world.a.account)
    may, read = policy(here, TOKENS_WRITE), policy(here, TOKENS_READ)
    # None of these could stand in for it.
    hour = timedelta(hours=1)
    await make_token(world.services, world.a.account, expires_on=datetime.now(UTC) - hour)
    await make_token(world.services, world.a.account, not_before=datetime.now(UTC) + hour)
    off = await id_of(world, await make_token(world.services, world.a.account))
    await tokens.set_status(
        world.database, first_start.operator(), await tokens.find(world.database, off), active=False
    )
    await make_token(world.services, world.b.account)
    await create(world, policy(on(None), OWN_WRITE, TOKENS_WRITE), path=OWN)
    await create(world, may, policy(here, TOKENS_WRITE, effect="deny"))
    before = await stored(world)
    for method, sent in (
        ("DELETE", None),
        ("PUT", body(may, status="disabled")),
        ("PUT", body(read)),
        ("PUT", body(policy({ZONE + "*": "*"}, SSL_WRITE))),
        ("PUT", body(may, policy(here, TOKENS_WRITE, effect="deny"))),
        ("PUT", body(may, policy(on(None), TOKENS_READ, effect="deny"))),
        ("PUT", body(may, not_before=time(hours=1))),
    ):
        for headers in (key(world), world.a.bearer):
            answer = await ask(world, method, url, headers, sent)
            assert told(answer) == (409, [(1466, None)]), (method, sent)
            assert answer.headers["x-should-retry"] == "false"
    assert await stored(world) == before
    # It may change in what does not matter, and be rolled.
    for fields in ({}, {"name": "renamed"}, {"expires_on": time(hours=1)}, {"not_before": "2020-01-01"}):
        result(await ask(world, "PUT", url, sent=body(may, **fields)))
    result(await ask(world, "PUT", url, sent=body(policy(on(None), TOKENS_WRITE))))
    second = await create(world, may)
    result(await ask(world, "PUT", url, sent=body(read)))
    assert told(await ask(world, "DELETE", f"{path_of(world)}/{second['id']}")) == (409, [(1466, None)])
    result(await ask(world, "PUT", url, sent=body(may)))
    result(await ask(world, "PUT", f"{path_of(world)}/{second['id']}", sent=body(may, status="disabled")))
    assert told(await ask(world, "DELETE", url)) == (409, [(1466, None)])
    # One that does not count can go.
    result(await ask(world, "DELETE", f"{path_of(world)}/{off}"))
    result(await ask(world, "DELETE", f"{path_of(world)}/{second['id']}"))


async def test_an_account_without_an_administrator_token_is_not_held_up(world: World) -> None:
    """Where there is none anyway, and for a user's tokens, everything can be deleted."""
    operator = first_start.operator()
    token = await tokens.find(world.database, await id_of(world, world.a.token))
    await tokens.revoke(world.database, operator, token)
    made = await create(world)
    result(await ask(world, "DELETE", f"{path_of(world)}/{made['id']}"))
    own = await create(world, policy(on(None), OWN_WRITE, TOKENS_WRITE), path=OWN)
    assert (await ask(world, "DELETE", f"{OWN}/{own['id']}")).status_code == 200
    only = await create(world, policy(on(world.a.account), TOKENS_WRITE))
    assert told(await ask(world, "DELETE", f"{path_of(world)}/{only['id']}")) == (409, [(1466, None)])


async def test_of_the_last_two_one_is_left(world: World) -> None:
    """When the last two administrator tokens are deleted or disabled at once, by themselves or others, one stays."""
    last, may = (await id_of(world, world.a.token), world.a.token), policy(on(world.a.account), TOKENS_WRITE)
    for method, by_itself in 3 * [("DELETE", False), ("DELETE", True), ("PUT", False), ("PUT", True)]:
        made = await create(world, may)
        both = [last, (made["id"], made["value"])]
        sent = body(may, status="disabled") if method == "PUT" else None
        calls = (
            ask(world, method, f"{path_of(world)}/{id_}", bearer(value) if by_itself else None, sent)
            for id_, value in both
        )
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 409], method
        [last] = [each for each, answer in zip(both, answers, strict=True) if answer.status_code == 409]
        assert await lives(world, last[1])


# Who may.


async def test_who_may_not_is_told_so_before_anything_else_is_read(world: World) -> None:
    """A bad query, key, body or id of a caller without permission is 403 and audited; ids are judged before bodies."""
    made = await create(world, policy(on(world.a.account), "Account Settings Read"), path=OWN)
    huge, headers = b"x" * 70_000, bearer(made["value"])
    twice = [*headers.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    calls: list[tuple[str, str, bytes | None, Any]] = [
        ("GET", f"{OWN}?page=x", None, headers),
        ("GET", f"{OWN}/permission_groups?name=%ff", None, headers),
        ("POST", OWN, huge, headers),
        ("POST", OWN, b"{}", twice),
        ("PUT", f"{OWN}/{made['id']}", huge, headers),
        ("PUT", f"{OWN}/{made['id']}/value", huge, headers),
        ("DELETE", f"{OWN}/nothing", None, headers),
    ]
    for method, path, content, sent in calls:
        audits = len(await audited(world))
        answer = await world.http.request(method, path, content=content, headers=sent)
        assert told(answer) == UNAUTHORIZED, (method, path)
        assert [row["result"] for row in await audited(world, audits)] == ["failure"], (method, path)
    for method, path in (("PUT", f"{OWN}/zz"), ("PUT", f"{path_of(world)}/zz"), ("PUT", f"{path_of(world)}/zz/value")):
        assert told(await ask(world, method, path, sent=huge)) == (404, [(7003, None)]), path


async def test_a_users_tokens_need_the_permission_in_every_account(world: World) -> None:
    """A user's token manages its user's tokens only with API Tokens in each account of the user, and reads likewise."""
    other, _ = await second_account(world)
    here, there, everywhere = on(world.a.account), on(other), on(None)
    makers: list[tuple[list[Json], bool, bool]] = [
        ([policy(everywhere, OWN_WRITE)], True, True),
        ([policy({**here, **there}, OWN_WRITE)], True, True),
        ([policy(everywhere, OWN_READ)], True, False),
        ([policy(here, OWN_WRITE)], False, False),
        ([policy(here, OWN_WRITE), policy(there, OWN_READ)], True, False),
        ([policy(everywhere, OWN_WRITE), policy(there, OWN_WRITE, effect="deny")], True, False),
        ([policy(everywhere, OWN_WRITE), policy(there, OWN_READ, effect="deny")], False, False),
        ([policy(everywhere, TOKENS_WRITE, "Account Settings Write")], False, False),
    ]
    victim = await create(world, policy(here, OWN_READ), path=OWN)
    values = []
    for asked, reads, writes in makers:
        made = await create(world, *asked, path=OWN)
        values.append(made["value"])
        headers = bearer(made["value"])
        # It may make its like.
        like = body(*asked)
        calls: list[tuple[str, str, Any, bool | None]] = [("POST", OWN, like, writes)]
        calls.append(("PUT", f"{OWN}/{made['id']}", like, writes))
        calls += [("PUT", f"{OWN}/{made['id']}/nothing", like, None), ("GET", OWN, None, reads)]
        calls += [("GET", f"{OWN}/{victim['id']}", None, reads), ("GET", f"{OWN}/permission_groups", None, reads)]
        for method, path, sent, allowed in calls:
            answer = await ask(world, method, path, headers, sent)
            if allowed is None:
                assert told(answer) == (404, [(7003, None)])
            elif allowed:
                assert answer.status_code == 200, (asked, method, path, answer.text)
            else:
                assert told(answer) == UNAUTHORIZED, (asked, method, path)
    # What counts is which accounts the user is in now, and not the user's role there.
    await member(world, other, Role.READ)
    assert (await ask(world, "POST", OWN, bearer(values[0]), body(policy(here, OWN_READ)))).status_code == 200
    await member(world, other, None)
    assert (await ask(world, "POST", OWN, bearer(values[3]), body(policy(here, OWN_READ)))).status_code == 200
    await member(world, world.a.account, None)
    assert told(await ask(world, "GET", OWN, bearer(values[0]))) == UNAUTHORIZED
    assert (await ask(world, "GET", OWN)).status_code == 200


async def test_a_token_of_an_account_has_no_user(world: World) -> None:
    """An account's token gets 403/9109 on all of /user/tokens, whatever it may, and it is written down."""
    own = await create(world, path=OWN)
    everything = await create(world, policy({**on(None), **ALL_ZONES}, *(g.name for g in GROUPS)))
    start = len(await audited(world))
    sent = body(policy(on(world.a.account), "Account Settings Read"))
    calls = [("GET", ""), ("POST", ""), ("GET", "/permission_groups")]
    calls += [(method, f"/{own['id']}") for method in ("GET", "PUT", "DELETE")] + [("PUT", f"/{own['id']}/value")]
    for value in (everything["value"], world.a.token):
        for method, tail in calls:
            assert told(await ask(world, method, OWN + tail, bearer(value), sent)) == UNAUTHORIZED
    rows = await audited(world, start)
    assert [(row["result"], row["status"], row["account_id"]) for row in rows] == 2 * len(calls) * [
        ("failure", 403, world.a.account.id)
    ]


async def test_a_reader_cannot_make_tokens_of_the_account(world: World) -> None:
    """A user with the role read may list an account's tokens, and neither make, change, roll nor delete one."""
    await member(world, world.b.account, Role.READ)
    theirs = f"/client/v4/accounts/{world.b.account.id.hex}/tokens"
    token = await id_of(world, world.b.read_token)
    sent = body(policy(on(world.b.account), "Account Settings Read"))
    own = await create(world, policy(on(None), *(g.name for g in GROUPS if g.level is Level.ACCOUNT)), path=OWN)
    before = await stored(world)
    for headers in (key(world), bearer(own["value"])):
        assert {token} <= {each["id"] for each in result(await ask(world, "GET", theirs, headers))}
        for method, path in (
            ("POST", theirs),
            ("PUT", f"{theirs}/{token}"),
            ("PUT", f"{theirs}/{token}/value"),
            ("DELETE", f"{theirs}/{token}"),
        ):
            assert told(await ask(world, method, path, headers, sent)) == UNAUTHORIZED
    assert await stored(world) == before
    # A token of the user's own is bounded by the role.
    csrs = world.b.account_path
    made = await create(world, policy(on(world.b.account), "Account: SSL and Certificates Write"), path=OWN)
    assert (await ask(world, "GET", csrs, bearer(made["value"]))).status_code == 200
    assert (await ask(world, "POST", csrs, bearer(made["value"]), {})).status_code == 403


# Never wider than the maker.

Row = tuple[Json, tuple[str, ...]]


async def _judge(world: World, path: str, maker: Headers, rows: list[Row]) -> None:
    """Each token as a new one, as what another becomes, and rolled: refused at these pointers, or done without any."""
    slight = await create(world, path=path, name="slight")
    filed = world.a.account.id if path != OWN else UUID(int=0)
    for sent, pointers in rows:
        there = await create(world, *sent["policies"], path=path, **{k: v for k, v in sent.items() if k != "policies"})
        before, start = await stored(world), len(await audited(world))
        for method, url in (
            ("PUT", f"{path}/{there['id']}/value"),
            ("POST", path),
            ("PUT", f"{path}/{slight['id']}"),
        ):
            answer = await ask(world, method, url, maker, None if url.endswith("/value") else sent)
            if not pointers:
                assert answer.status_code == 200, (sent, method, answer.text)
                continue
            assert told(answer) == (403, [(1465, pointer) for pointer in pointers]), (sent, method, answer.text)
            assert answer.headers.get("x-should-retry") is None
        rows_of_log = await audited(world, start)
        if pointers:
            assert await stored(world) == before
            assert await lives(world, there["value"]) or "condition" in sent
            assert [(row["action"], row["result"], row["status"]) for row in rows_of_log] == [
                ("update", "failure", 403),
                ("create", "failure", 403),
                ("update", "failure", 403),
            ]
            touched = [row["resource_id"].hex for row in rows_of_log]
            assert (touched[0], touched[2]) == (there["id"], slight["id"])
            assert {(row["resource_type"], row["account_id"]) for row in rows_of_log} == {("token", filed)}
        else:
            assert {row["result"] for row in rows_of_log} == {"success"}
        result(await ask(world, "PUT", f"{path}/{slight['id']}", sent=body(policy(on(world.a.account), TOKENS_READ))))


async def test_nobody_makes_a_token_with_wider_policies(world: World) -> None:
    """A token that may do more anywhere than its maker is 403/1465 at its policies; equal or less is made."""
    here, first = on(world.a.account), in_zone(world.a.zone)
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    second, inside = in_zone(other), {ACCOUNT + world.a.account.id.hex: in_zone(world.a.zone)}
    all_inside = {ACCOUNT + world.a.account.id.hex: ALL_ZONES}
    wider, fine = ("/policies",), ()
    account_ssl = "Account: SSL and Certificates Read"

    def deny(resources: Json, *groups: str) -> Json:
        return policy(resources, *groups, effect="deny")

    def rows(*cases: tuple[tuple[str, ...], tuple[Json, ...]]) -> list[Row]:
        return [(body(*asked), pointers) for pointers, asked in cases]

    # Of one zone.
    maker = await narrow(world, policy(first, SSL_WRITE))
    cases = rows(
        (fine, (policy(first, SSL_WRITE),)),
        (fine, (policy(first, SSL_READ),)),
        (fine, (policy(inside, SSL_WRITE),)),
        (fine, (policy(here, TOKENS_WRITE), policy(first, SSL_WRITE))),
        (fine, (policy(here, TOKENS_READ),)),
        (fine, (policy(on(None), TOKENS_WRITE),)),
        (fine, (policy(ALL_ZONES, SSL_WRITE), deny(ALL_ZONES, SSL_READ))),
        (wider, (policy(second, SSL_READ),)),
        (wider, (policy({**first, **second}, SSL_READ),)),
        (wider, (policy(ALL_ZONES, SSL_READ),)),
        (wider, (policy(all_inside, SSL_READ),)),
        (wider, (policy(ALL_ZONES, SSL_WRITE), deny(second, SSL_READ))),
        (wider, (policy(first, "Zone Read"),)),
        (wider, (policy(here, account_ssl),)),
        (wider, (policy(here, OWN_READ),)),
        (wider, (policy(here, "Private CA Issue Key"),)),
    )
    await _judge(world, path_of(world), maker, cases)
    # That may only read.
    maker = await narrow(world, policy(all_inside, SSL_READ))
    cases = rows(
        (fine, (policy(ALL_ZONES, SSL_READ),)),
        (fine, (policy({**first, **second}, SSL_READ),)),
        (fine, (policy(first, SSL_WRITE), deny(first, SSL_WRITE))),
        (wider, (policy(first, SSL_WRITE),)),
        (wider, (policy(here, account_ssl),)),
    )
    await _judge(world, path_of(world), maker, cases)
    # That is denied something.
    maker = await narrow(world, policy(ALL_ZONES, SSL_WRITE), deny(first, SSL_WRITE), policy(here, account_ssl))
    cases = rows(
        (fine, (policy(ALL_ZONES, SSL_WRITE), deny(first, SSL_WRITE))),
        (fine, (policy(ALL_ZONES, SSL_WRITE), deny(inside, SSL_READ))),
        (fine, (policy(second, SSL_WRITE),)),
        (fine, (policy(ALL_ZONES, SSL_READ),)),
        (fine, (policy(here, account_ssl),)),
        (wider, (policy(ALL_ZONES, SSL_WRITE),)),
        (wider, (policy(first, SSL_WRITE),)),
        (wider, (policy(ALL_ZONES, SSL_WRITE), deny(second, SSL_WRITE))),
    )
    await _judge(world, path_of(world), maker, cases)


async def test_nobody_makes_a_token_for_more_addresses_or_time(world: World) -> None:
    """A token is 403/1465 at its condition and its end when these bound it less than its maker, all at once."""
    asked = policy(on(world.a.account), TOKENS_READ)

    def row(*pointers: str, **fields: Any) -> Row:
        return body(asked, **fields), pointers

    def ip(*networks: str, **lists: Any) -> Json:
        return {"condition": {"request_ip": {**({"in": list(networks)} if networks else {}), **lists}}}

    maker = await narrow(world, **ip("127.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", not_in=["10.9.0.0/16"]))
    cases = [
        row(**ip("127.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", not_in=["10.9.0.0/16"])),
        row(**ip("127.0.0.1")),
        row(**ip("10.0.0.0/8", not_in=["10.8.0.0/15"])),
        row(**ip("10.9.0.0/16", not_in=["10.9.0.0/16"])),
        row("/condition"),
        row("/condition", condition={}),
        row("/condition", **ip("10.0.0.0/8")),
        row("/condition", **ip("10.9.0.0/32")),
        row("/condition", **ip("126.0.0.0/7", not_in=["10.0.0.0/8"])),
        row("/condition", **ip("0.0.0.0/0")),
        row("/condition", **ip("::1")),
        row("/condition", **ip(not_in=["10.9.0.0/16"])),
    ]
    await _judge(world, path_of(world), maker, cases)
    maker = await narrow(world, **ip(not_in=["10.0.0.0/8"]))
    cases = [
        row(**ip(not_in=["10.0.0.0/8"])),
        row(**ip(not_in=["10.128.0.0/9", "10.0.0.0/9"])),
        row(**ip("11.0.0.0/8", "2001:db8::/32")),
        row("/condition", **ip(not_in=["10.0.0.0/9"])),
        row("/condition"),
    ]
    await _judge(world, path_of(world), maker, cases)
    end, sooner, later = time(days=2), time(days=1), time(days=2, seconds=1)
    maker = await narrow(world, **ip("127.0.0.0/8"), expires_on=end)
    local = ip("127.0.0.1")
    cases = [
        row(expires_on=end, **local),
        row(expires_on=sooner, **local),
        row(expires_on=sooner, not_before="2020-01-01", **local),
        row("/expires_on", **local),
        row("/expires_on", expires_on=later, **local),
        row("/condition", expires_on=end),
        row("/condition", "/expires_on", expires_on=later),
        (body(policy(on(world.a.account), "Account Settings Read")), ("/policies", "/condition", "/expires_on")),
    ]
    await _judge(world, path_of(world), maker, cases)


async def test_a_token_cannot_widen_itself(world: World) -> None:
    """To be given more by itself is 403/1465 too; it may roll itself, and become less."""
    asked = [policy(on(world.a.account), TOKENS_WRITE), policy(in_zone(world.a.zone), SSL_READ)]
    made = await create(world, *asked, expires_on=(end := time(days=1)))
    url, headers = f"{path_of(world)}/{made['id']}", bearer(made["value"])
    more = body(asked[0], policy(in_zone(world.a.zone), SSL_WRITE), expires_on=end)
    assert told(await ask(world, "PUT", url, headers, more)) == (403, [(1465, "/policies")])
    assert told(await ask(world, "PUT", url, headers, body(*asked))) == (403, [(1465, "/expires_on")])
    headers = bearer(result(await ask(world, "PUT", url + "/value", headers)))
    result(await ask(world, "PUT", url, headers, body(asked[0], expires_on=end)))
    assert told(await ask(world, "PUT", url, headers, body(*asked, expires_on=end))) == (403, [(1465, "/policies")])
    # It may take from one that is wider than itself, and end it, but not take it over.
    wide = await create(world, policy(on(world.a.account), "Account Settings Write"))
    other = f"{path_of(world)}/{wide['id']}"
    assert told(await ask(world, "PUT", other + "/value", headers)) == (
        403,
        [(1465, "/policies"), (1465, "/expires_on")],
    )
    less = body(policy(on(world.a.account), TOKENS_READ), expires_on=end)
    result(await ask(world, "PUT", other, headers, less))
    result(await ask(world, "PUT", other + "/value", headers))
    assert not await lives(world, wide["value"])
    result(await ask(world, "DELETE", other, headers))


async def test_a_later_widening_does_not_reach_what_was_made(world: World) -> None:
    """A maker who is narrowed, disabled or deleted leaves its tokens as they are, and makes only narrower ones."""
    maker = await create(world, policy(on(world.a.account), TOKENS_WRITE, "Account Settings Write"))
    url, headers = f"{path_of(world)}/{maker['id']}", bearer(maker["value"])
    asked = body(policy(on(world.a.account), "Account Settings Read"))
    made = result(await ask(world, "POST", path_of(world), headers, asked))
    result(await ask(world, "PUT", url, sent=body(policy(on(world.a.account), TOKENS_WRITE))))
    assert told(await ask(world, "POST", path_of(world), headers, asked)) == (403, [(1465, "/policies")])
    assert told(await ask(world, "PUT", f"{path_of(world)}/{made['id']}/value", headers)) == (
        403,
        [(1465, "/policies")],
    )
    result(await ask(world, "DELETE", url))
    assert await lives(world, made["value"])


async def test_a_global_key_of_an_administrator_may_make_anything(world: World) -> None:
    """No policy, address or time bounds a global key but its user's memberships."""
    everything = policy({**on(None), **ALL_ZONES}, *(g.name for g in GROUPS))
    for path in (path_of(world), OWN):
        made = await create(world, everything, path=path)
        assert len(made["policies"][0]["permission_groups"]) == len(GROUPS)
        result(await ask(world, "PUT", f"{path}/{made['id']}", sent=body(everything)))
        result(await ask(world, "PUT", f"{path}/{made['id']}/value"))
    # What it made reaches no further than its owner.
    value = (await create(world, everything))["value"]
    assert (await world.http.get(world.a.account_path, headers=bearer(value))).status_code == 200
    assert (await world.http.get(world.b.account_path, headers=bearer(value))).status_code == 403


async def test_a_users_token_makes_no_wider_ones(world: World) -> None:
    """A user's token bounds what it makes for its user, also where the user is not yet, and for an account."""
    other, zone = await second_account(world)
    here, there, everywhere = on(world.a.account), on(other), on(None)
    both = {**here, **there}
    maker = await create(
        world, policy(both, OWN_WRITE), policy(in_zone(zone), SSL_WRITE), policy(here, TOKENS_WRITE), path=OWN
    )
    headers = bearer(maker["value"])
    wider = ("/policies",)
    cases = [
        (body(policy(both, OWN_WRITE)), ()),
        (body(policy(there, OWN_READ)), ()),
        (body(policy({ACCOUNT + other.id.hex: in_zone(zone)}, SSL_READ)), ()),
        (body(policy(here, TOKENS_READ)), ()),
        # The user may join more accounts.
        (body(policy(everywhere, OWN_READ)), wider),
        (body(policy(there, TOKENS_READ)), wider),
        (body(policy(in_zone(world.a.zone), SSL_READ)), wider),
        (body(policy({ACCOUNT + other.id.hex: ALL_ZONES}, SSL_READ)), wider),
    ]
    await _judge(world, OWN, headers, cases)
    cases = [
        (body(policy(here, TOKENS_WRITE)), ()),
        # All accounts of an account's token are the one that it is of.
        (body(policy(everywhere, OWN_READ)), ()),
        (body(policy(here, "Account Settings Read")), wider),
        (body(policy(in_zone(world.a.zone), SSL_READ)), wider),
    ]
    await _judge(world, path_of(world), headers, cases)
    theirs = f"/client/v4/accounts/{other.id.hex}/tokens"
    assert told(await ask(world, "POST", theirs, headers, body(policy(there, OWN_READ)))) == UNAUTHORIZED


async def test_a_user_who_left_rolls_what_was_made_before(world: World) -> None:
    """A token for an account which its user has left can be read, rolled and deleted, and reaches nothing there."""
    other, zone = await second_account(world)
    made = await create(world, policy(on(other), "Account: SSL and Certificates Write"), path=OWN)
    csrs = f"/client/v4/zones/{zone.id.hex}/custom_csrs"
    assert (await world.http.get(csrs, headers=bearer(made["value"]))).status_code == 200
    narrow_one = await create(world, policy(on(None), OWN_WRITE), path=OWN)
    await member(world, other, None)
    url = f"{OWN}/{made['id']}"
    assert result(await ask(world, "GET", url))["policies"] == made["policies"]
    value = result(await ask(world, "PUT", url + "/value"))
    assert (await world.http.get(csrs, headers=bearer(value))).status_code == 403
    back = result(await ask(world, "GET", url))
    place = f"/policies/0/resources/{ACCOUNT}{other.id.hex}"
    assert told(await ask(world, "PUT", url, sent=back)) == (400, [(1463, place)])
    # The user may come back, so it is still wider than one that was never for that account.
    assert told(await ask(world, "PUT", url + "/value", bearer(narrow_one["value"]))) == (403, [(1465, "/policies")])
    result(await ask(world, "DELETE", url))


async def test_of_many_rolls_at_once_one_value_is_left(world: World) -> None:
    """Rolls at once each answer with a value or 409/1462, and of the values exactly one is good."""
    made = await create(world)
    url = f"{path_of(world)}/{made['id']}/value"
    answers = await asyncio.gather(*(ask(world, "PUT", url) for _ in range(10)))
    done = [answer for answer in answers if answer.status_code == 200]
    assert {str(told(answer)) for answer in answers if answer not in done} <= {str((409, [(1462, None)]))}
    assert [await lives(world, result(answer)) for answer in done].count(True) == 1
    assert not await lives(world, made["value"])


async def test_a_token_that_is_widened_while_it_is_rolled_is_not_taken_over(world: World) -> None:
    """A roll that was judged before its token was changed is 409/1462, and the token keeps its value."""
    maker = await narrow(world, policy(on(world.a.account), TOKENS_READ))
    target = await create(world, policy(on(world.a.account), TOKENS_READ))
    wide = policies.write(world.a.account, (policies.find_group("Account Settings Write"),))
    async with connected(world.settings.database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", world.a.account.id)
            url = f"{path_of(world)}/{target['id']}/value"
            roll = asyncio.create_task(ask(world, "PUT", url, maker))
            await at_locks(world.database, 1)
            sql = "UPDATE tokens SET policies = $2, modified_on = now() WHERE id = $1"
            await holder.execute(sql, UUID(target["id"]), wide)
        answer = await roll
    assert told(answer) == (409, [(1462, None)])
    assert answer.headers["x-should-retry"] == "false"
    assert await lives(world, target["value"])
    assert told(await ask(world, "PUT", url, maker)) == (403, [(1465, "/policies")])
