"""Accounts and zones over Cloudflare's API: what may be made, changed, listed and deleted, and by whom."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import key_pem, pem, root, subject
from support.databases import new_database
from support.world import Tenant, World, make_token, new_world

from keystead.caller import Role
from keystead.identity import accounts, policies, zones
from keystead.identity.zones import Zone
from keystead.server import first_start, postgres

Json = dict[str, Any]
Headers = dict[str, str]
# What an answer says: its status, and the code and place of each item.
Told = tuple[int, Sequence[tuple[int, str | None]]]
ACCOUNTS, ZONES = "/client/v4/accounts", "/client/v4/zones"
LIMIT = 64 * 1024
ROUNDS = 12
NOT_YOURS: Told = (403, [(9109, None)])


def told(answer: httpx.Response) -> Told:
    items = answer.json()["errors"]
    return answer.status_code, [(item["code"], item.get("source", {}).get("pointer")) for item in items]


def result(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def key_of(tenant: Tenant) -> Headers:
    """The global key of the tenant's user, who administers the account."""
    return {"X-Auth-Email": tenant.email, "X-Auth-Key": tenant.key}


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


def account_of(tenant: Tenant) -> str:
    return f"{ACCOUNTS}/{tenant.account.id.hex}"


def zone_of(tenant: Tenant) -> str:
    return f"{ZONES}/{tenant.zone.id.hex}"


def mixed(*values: Any) -> tuple[Any, ...]:
    """Values of many JSON types."""
    return values


async def send(world: World, method: str, path: str, body: object, headers: Headers) -> httpx.Response:
    # With ASCII escapes, so that a test can send half a character.
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await world.http.request(method, path, content=content, headers=headers)


async def new_account(world: World, name: str, headers: Headers | None = None) -> Json:
    made: Json = result(await send(world, "POST", ACCOUNTS, {"name": name}, headers or key_of(world.a)))
    return made


def zone_body(account_id: str, name: str, **fields: object) -> Json:
    return {"account": {"id": account_id}, "name": name, **fields}


async def new_zone(world: World, name: str, account_id: str | None = None, headers: Headers | None = None) -> Json:
    body = zone_body(account_id or world.a.account.id.hex, name)
    made: Json = result(await send(world, "POST", ZONES, body, headers or key_of(world.a)))
    return made


async def stored(world: World) -> list[str]:
    """Everything that a refused request must leave as it was."""
    tables = ("accounts", "zones", "memberships", "users", "tokens", "idempotency_keys")
    return [str(row) for table in tables for row in await world.database.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]


async def of_user(world: World, *allowed: tuple[str, str], denied: tuple[tuple[str, str], ...] = ()) -> Headers:
    """A token of the user of tenant a, for pairs of a permission group and a resource."""
    user = await accounts.find_user(world.database, world.a.email)
    text = policies_text(*(("allow", *each) for each in allowed), *(("deny", *each) for each in denied))
    return bearer(await make_token(world.services, world.a.account, policies=text, user=user))


async def of_account(world: World, *rules: tuple[str, str, str]) -> Headers:
    """A token of account a, for triples of effect, permission group and resource."""
    text = policies_text(*rules)
    return bearer(await make_token(world.services, world.a.account, policies=text))


def policies_text(*rules: tuple[str, str, str]) -> str:
    made = []
    for effect, name, resource in rules:
        group = policies.find_group(name)
        made.append(
            {
                "id": uuid4().hex,
                "effect": effect,
                "resources": {f"com.cloudflare.api.{resource}": "*"},
                "permission_groups": [{"id": group.id.hex, "name": group.name}],
            }
        )
    return json.dumps(made)


async def count(world: World, table: str, where: str = "true", *args: object) -> int:
    row = await world.database.fetchrow(f"SELECT count(*) AS n FROM {table} WHERE {where}", *args)
    assert row
    return int(row["n"])


@pytest.fixture(scope="module")
async def still(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world for requests that are all refused, so that one does for many tests."""
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("still")) as made:
        yield made


# What is no name of an account: the first ones are missing, the others have characters that nobody sees.
NO_NAMES: list[Json] = [
    {},
    *(
        {"name": name}
        for name in (
            *(None, "", " ", " \u3000\u00a0", "x" * 101, "\U0001d54f" * 101),
            *("a\nb", "a\x00b", "a\tb", "\x7f", "a\x85b", "a\u061cb", "a\u200fb", "a\u202eb", "a\u2066b"),
            *("\ud800", "a\udfffb"),
            *(5, 0, 1.5, True, False, [], ["a"], {}, {"a": "b"}),
        )
    ),
]
NO_OBJECTS = (b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b'{"name": NaN}', b"{'name': 'a'}", b"[" * 60_000)


async def test_bad_accounts_are_refused(still: World) -> None:
    """Each wrong body of a create or an update has its codes and places, and leaves every row as it was."""
    before, mine, email = await stored(still), account_of(still.a), "abuse_contact_email"
    both: list[tuple[object, Told]] = [
        *((body, (400, [(1453, "/name")])) for body in NO_NAMES),
        *((body, (400, [(1400, "")])) for body in NO_OBJECTS),
        *(({"name": "a", "type": kind}, (400, [(1434, "/type")])) for kind in ("enterprise", "Standard", "x" * 100)),
        *(({"name": "a", "type": kind}, (400, [(1453, "/type")])) for kind in mixed(5, True, ["standard"], {})),
        ({"name": "", "type": "enterprise"}, (400, [(1434, "/type"), (1453, "/name")])),
        ({"type": "enterprise"}, (400, [(1434, "/type"), (1453, "/name")])),
        *(({"name": "a", "unit": unit}, (400, [(1453, "/unit")])) for unit in ({"id": "x"}, {}, "x")),
        *(({"name": "a", "settings": value}, (400, [(1453, "/settings")])) for value in mixed(5, [], "x")),
        *(
            ({"name": "a", "settings": {"enforce_twofactor": value}}, (400, [(1453, "/settings/enforce_twofactor")]))
            for value in mixed("true", 1, [])
        ),
        *(
            (
                {"name": "a", "settings": {email: value}},
                (400, [(1453, f"/settings/{email}")]),
            )
            for value in mixed("x", "a@b\nc", "ü@example.com", f"a@{'b' * 250}", 5, {})
        ),
        (b" " * (LIMIT - 1) + b"{}", (413, [(1454, None)])),
        (b'{"name": "a"' + b" " * LIMIT + b"}", (413, [(1454, None)])),
    ]
    create: list[tuple[object, Told]] = [
        ({"name": "a", "standalone": value}, (400, [(1453, "/standalone")])) for value in mixed(False, 0, "true", [])
    ]
    update: list[tuple[object, Told]] = [
        ({"name": "a", "id": value}, (400, [(1453, "/id")]))
        for value in mixed(still.b.account.id.hex, mine[-32:].upper(), "", 5, [], str(still.a.account.id))
        if value != mine[-32:]
    ]
    for method, path, table in (("POST", ACCOUNTS, [*both, *create]), ("PUT", mine, [*both, *update])):
        for body, expected in table:
            answer = await send(still, method, path, body, key_of(still.a))
            assert told(answer) == expected, (method, str(body)[:80])
    assert await stored(still) == before


async def test_every_problem_of_an_account_is_told_at_once(still: World) -> None:
    """A type that is not known does not hide that the name is too long."""
    expected = (400, [(1434, "/type"), (1453, "/name")])
    for name in ("x" * 101, " ", "a\nb"):
        for method, path in (("POST", ACCOUNTS), ("PUT", account_of(still.a))):
            answer = await send(still, method, path, {"name": name, "type": "enterprise"}, key_of(still.a))
            assert told(answer) == expected, (method, name)


async def test_good_names_come_back_as_they_were_sent(world: World) -> None:
    """A hundred characters of any script, quotes and spaces at the ends are a name; lengths are code points."""
    names = [
        "x" * 100,
        "\U0001d54f" * 100,
        " a ",
        "O'Brien; DROP TABLE accounts --",
        'ü"<b>\\',
        "e\u0301",
        "0",
    ]
    for name in names:
        made = await new_account(world, name)
        assert made["name"] == name
        assert result(await world.http.get(f"{ACCOUNTS}/{made['id']}", headers=key_of(world.a))) == made
        answer = await send(world, "PUT", account_of(world.a), {"name": name}, key_of(world.a))
        assert result(answer)["name"] == name
    full = b'{"name": "full"}' + b" " * (LIMIT - 16)
    assert result(await send(world, "POST", ACCOUNTS, full, key_of(world.a)))["name"] == "full"


async def test_an_account_is_what_the_contract_says(world: World) -> None:
    """The fields of section 7, with our slug and name policy; what clients send back of it is no change."""
    made = await new_account(world, "Example, Inc.")
    assert re.fullmatch("[0-9a-f]{32}", made.pop("id"))
    assert datetime.fromisoformat(made.pop("created_on")).tzinfo is not None
    settings = {"enforce_twofactor": False, "abuse_contact_email": None}
    named = {"name": "Example, Inc.", "type": "standard", "slug": "example-inc", "name_policy": "private"}
    assert made == {**named, "settings": settings, "csr_subject": {}}
    mine = result(await world.http.get(account_of(world.a), headers=key_of(world.a)))
    answer = await send(
        world, "PUT", account_of(world.a), {"id": mine["id"], "name": "New", "type": None}, world.a.bearer
    )
    assert result(answer) == {**mine, "name": "New"}
    assert answer.json()["messages"] == []
    assert result(await world.http.get(account_of(world.a), headers=key_of(world.a))) == {**mine, "name": "New"}


async def test_the_subject_of_an_account_is_shown_and_only_the_operator_sets_it(world: World) -> None:
    """`csr_subject` has what was set, also in the list; a PUT with another one says that it is not known (1480)."""
    kept = {"country": "DE", "organization": "Ex, Inc."}
    await accounts.set_account(
        world.database, first_start.operator(), world.a.account, accounts.Changes(csr_subject=kept)
    )
    mine = result(await world.http.get(account_of(world.a), headers=key_of(world.a)))
    assert mine["csr_subject"] == kept
    assert mine in result(await world.http.get(ACCOUNTS, headers=key_of(world.a)))
    answer = await send(world, "PUT", account_of(world.a), {"name": "N", "csr_subject": {}}, world.a.bearer)
    assert result(answer) == {**mine, "name": "N"}
    assert [(each["code"], each["source"]["pointer"]) for each in answer.json()["messages"]] == [(1480, "/csr_subject")]


async def test_unknown_fields_are_ignored_and_told(world: World) -> None:
    """Message 1480 has the place of each field that nobody knows, and there are at most twenty of them."""
    strange: Json = {"colour": 1, "a/b~c": None, "ID": "x", " ": {}}
    calls: list[tuple[str, str, Json, frozenset[str]]] = [
        ("POST", ACCOUNTS, {"name": "a", "type": "standard", "standalone": True}, frozenset({"size"})),
        ("PUT", account_of(world.a), {"name": "a", "type": "standard"}, frozenset({"managed_by"})),
        ("POST", ZONES, zone_body(world.a.account.id.hex, "new.example"), frozenset({"jump_start"})),
        ("PATCH", zone_of(world.a), {"paused": False}, frozenset({"name", "plan"})),
    ]
    for method, path, body, more in calls:
        unknown = {**strange, **dict.fromkeys(more, "x")}
        answer = await send(world, method, path, {**body, **unknown}, key_of(world.a))
        result(answer)
        found = {(message["code"], message["source"]["pointer"]) for message in answer.json()["messages"]}
        assert found == {(1480, "/" + name.replace("~", "~0").replace("/", "~1")) for name in unknown}
    many = {f"f{i}": i for i in range(30)}
    answer = await send(world, "PATCH", zone_of(world.a), many, key_of(world.a))
    assert [message["code"] for message in answer.json()["messages"]] == 20 * [1480]
    assert result(answer)["name"] == world.a.zone.name


async def test_settings_of_an_account_come_back(world: World) -> None:
    """Both are kept at once as they were sent, replaced as a whole, and stay when only the name is sent."""
    full = {"enforce_twofactor": True, "abuse_contact_email": "Abuse@example.com"}
    answer = await send(world, "POST", ACCOUNTS, {"name": "x", "settings": full}, key_of(world.a))
    made = result(answer)
    assert made["settings"] == full
    # Nothing is enforced, which must not go unsaid.
    assert [(m["code"], m["source"]["pointer"]) for m in answer.json()["messages"]] == [(1486, "/settings")]
    url = f"{ACCOUNTS}/{made['id']}"
    none = {"enforce_twofactor": False, "abuse_contact_email": None}
    of_email = {**none, "abuse_contact_email": "a@b"}
    steps: list[tuple[Json, Json]] = [
        ({}, full),
        ({"settings": None}, full),
        ({"settings": {"enforce_twofactor": True}}, {**none, "enforce_twofactor": True}),
        ({"settings": {"abuse_contact_email": "a@b", "enforce_twofactor": None}}, of_email),
        ({"settings": {"abuse_contact_email": ""}}, none),
        ({"settings": full}, full),
        ({"settings": {}}, none),
    ]
    for sent, expected in steps:
        assert result(await send(world, "PUT", url, {"name": "x", **sent}, key_of(world.a)))["settings"] == expected
        assert result(await world.http.get(url, headers=key_of(world.a)))["settings"] == expected
    strange = await send(world, "PUT", url, {"name": "x", "settings": {"a/b": 1}}, key_of(world.a))
    assert [(m["code"], m["source"]["pointer"]) for m in strange.json()["messages"]] == [(1480, "/settings/a~1b")]


async def test_a_field_without_a_name_has_its_place(world: World) -> None:
    """The pointer of a field that is named by the empty text is "/" (RFC 6901), since "" is the whole body."""
    answer = await send(world, "POST", ACCOUNTS, {"name": "a", "": 1}, key_of(world.a))
    assert [message["source"]["pointer"] for message in answer.json()["messages"]] == ["/"]


async def test_slugs_are_made_from_names_and_are_unique(world: World) -> None:
    """Accents go, other characters become hyphens, nothing left is "account"; what is taken gets a suffix."""
    cases = [
        ("Tést & Co", "test-co"),
        ("日本", "account"),
        ("  --  ", "account"),
        ("ACME", "acme"),
        ("x" * 100, "x" * 50),
        ("x" * 49 + " y", "x" * 49),
        ("ﬁne №1", "fine-no1"),
    ]
    taken = set()
    for name, slug in cases:
        first, second = [(await new_account(world, name))["slug"] for _ in range(2)]
        assert (first == slug) is (slug not in taken), name
        for each in {first, second} - {slug}:
            assert re.fullmatch(f"{slug}-x[0-9a-f]{{8}}", each), name
        taken.add(slug)
    # A slug that could be an id would name two accounts.
    for name in ("0" * 32, str(UUID(int=1))):
        assert re.fullmatch("[0-9-]{32,36}-x[0-9a-f]{8}", (await new_account(world, name))["slug"])
    # Tenant a has the slug "a".
    assert re.fullmatch("a-x[0-9a-f]{8}", (await new_account(world, "A"))["slug"])
    slugs = [row["slug"] for row in await world.database.fetch("SELECT slug FROM accounts")]
    assert len(set(slugs)) == len(slugs)


async def test_ten_accounts_of_one_name_at_once_have_ten_slugs(world: World) -> None:
    """Whoever comes second waits for the first and takes another slug: all ten are made."""
    made = await asyncio.gather(*(new_account(world, "Same") for _ in range(10)))
    slugs = {account["slug"] for account in made}
    assert len(slugs) == len({account["id"] for account in made}) == 10
    assert "same" in slugs


NO_HOSTS = [
    *("a b.example", " a.example", "a.example ", "\ta.example", "a.example\n", "a\x00.example", "a.example\x7f"),
    *("a.example.", ".a.example", "a..example", ".", "..", "*", "*.a.example", "a.*.example", "a*.example"),
    *("127.0.0.1", "1.2.3.4", "a.0", "0x7f", "a.0x1f", "::1", "[::1]", "10.0.0.0/8"),
    # Their A-labels would spell other names, or there are none.
    *("ü\u202e.example", "\u200ba.example", "\ud800.example", "a\uff0eexample", "ü。example", "ﬁn.example"),
    *("ü_.example", "-ü.example", "ü.example.", "*.ü.example", "ü" * 60 + ".example", "ü." * 126 + "ab", "☃ .example"),
    *("-a.example", "a-.example", "a" * 64 + ".example", "xn--.example", "xn--zz--.example"),
    *("http://a.example", "a.example:443", "a.example/", "a@b.example", "a.example?", "a,b.example", "'", '"', "%61"),
    # Three labels of 63 and one of 62 with their dots are 254 characters.
    *(".".join([63 * "a"] * 3 + [62 * "a"]), "a." * 200 + "example", "x" * 1000),
]
NO_TEXTS: list[object] = [5, 0, 1.5, True, False, [], ["a.example"], {}, {"a": "b"}]


async def test_bad_zones_are_refused(still: World) -> None:
    """Each wrong body of a create has its codes and places, and leaves every row as it was."""
    before, mine = await stored(still), still.a.account.id.hex
    account, account_id, name, kind = ((1453, "/account"), (1453, "/account/id"), (1453, "/name"), (1434, "/type"))
    table: list[tuple[object, list[tuple[int, str]]]] = [
        *((zone_body(mine, host), [name]) for host in NO_HOSTS),
        *(({"account": {"id": mine}, "name": value}, [name]) for value in (None, "", *NO_TEXTS)),
        ({"account": {"id": mine}}, [name]),
        ({"name": "n.example"}, [account]),
        *(
            ({"account": value, "name": "n.example"}, [account])
            for value in mixed(None, mine, 5, [], [{"id": mine}], True)
        ),
        *(
            ({"account": {"id": value}, "name": "n.example"}, [account_id])
            for value in mixed(
                None,
                "",
                5,
                [],
                {},
                mine.upper() + "A",
                mine[:-1],
                mine + "0",
                str(still.a.account.id),
                "x" * 32,
            )
        ),
        ({"account": {}, "name": "n.example"}, [account_id]),
        ({"account": {"ID": mine}, "name": "n.example"}, [account_id]),
        *((zone_body(mine, "n.example", type=value), [kind]) for value in ("Full", "x", " full", "primary")),
        *((zone_body(mine, "n.example", type=value), [(1453, "/type")]) for value in mixed(5, True, ["full"], {})),
        ({}, [account, name]),
        ({"account": {"id": "x"}, "name": "", "type": "x"}, [kind, account_id, name]),
        *((body, [(1400, "")]) for body in NO_OBJECTS),
    ]
    for body, expected in table:
        assert told(await send(still, "POST", ZONES, body, still.a.bearer)) == (400, expected), str(body)[:80]
    for large in (b" " * (LIMIT - 1) + b"{}", b'{"a": "' + b"x" * 10 * LIMIT + b'"}'):
        assert told(await send(still, "POST", ZONES, large, still.a.bearer)) == (413, [(1454, None)])
    assert await stored(still) == before


async def test_every_problem_of_a_zone_is_told_at_once(still: World) -> None:
    """A type or account that is wrong does not hide that the name is no hostname."""
    kind, account_id, name = (1434, "/type"), (1453, "/account/id"), (1453, "/name")
    mine = still.a.account.id.hex
    for body, expected in (
        (zone_body(mine, "a b", type="x"), [kind, name]),
        (zone_body("x", "a b"), [account_id, name]),
        (zone_body("x", "*.a.example", type="x"), [kind, account_id, name]),
    ):
        assert told(await send(still, "POST", ZONES, body, still.a.bearer)) == (400, expected), body


async def test_good_zones_are_what_the_contract_says(world: World) -> None:
    """Hostnames of up to 253 characters, single labels and underscores too, in lower case; type and paused as sent."""
    hosts = ["n.example", "com", "localhost", "a_b.example", "_dmarc.example", "xn--mnchen-3ya.example", "0.example"]
    hosts += [".".join([63 * "b"] * 3 + [61 * "b"]), "Mixed.EXAMPLE", "a--b.example"]
    for host in hosts:
        zone = await new_zone(world, host)
        assert result(await world.http.get(f"{ZONES}/{zone['id']}", headers=world.a.bearer)) == zone
        assert zone["name"] == host.lower()
    zone = await new_zone(world, "shape.example")
    assert re.fullmatch("[0-9a-f]{32}", zone.pop("id"))
    assert zone.pop("created_on") == zone.pop("modified_on")
    assert zone == {
        "name": "shape.example",
        "account": {"id": world.a.account.id.hex, "name": "Account a"},
        "status": "active",
        "type": "full",
        "paused": False,
        "development_mode": 0,
        "meta": {
            **dict.fromkeys(("cdn_only", "dns_only", "foundation_dns", "phishing_detected"), False),
            "page_rule_quota": 0,
        },
        "name_servers": [],
        "owner": {"id": world.a.account.id.hex, "name": "Account a", "type": "organization"},
        "plan": {},
        "vanity_name_servers": [],
    }
    servers = ["ns2.X", "ns1.x", "ns2.X"]
    sent = zone_body(world.a.account.id.hex, "vain.example", paused=True, vanity_name_servers=servers)
    made = result(await send(world, "POST", ZONES, sent, world.a.bearer))
    assert (made["paused"], made["vanity_name_servers"]) == (True, servers)
    await world.database.execute("UPDATE zones SET certificate_quota = 7 WHERE id = $1", UUID(made["id"]))
    found = result(await world.http.get(f"{ZONES}/{made['id']}", headers=world.a.bearer))
    assert found == {**made, "meta": {**made["meta"], "custom_certificate_quota": 7}}
    for kind in ("full", "partial", "secondary", "internal"):
        body = zone_body(world.a.account.id.hex, f"{kind}.example", type=kind)
        assert result(await send(world, "POST", ZONES, body, world.a.bearer))["type"] == kind


async def test_a_zone_in_unicode_is_looked_up_by_its_a_labels_and_told_as_it_was_sent(world: World) -> None:
    """However it is written it is there once, is found, and comes back byte for byte; the operator finds it too."""
    names = {
        "münchen.example": "xn--mnchen-3ya.example",
        "MÜNCHEN.Test": "xn--mnchen-3ya.test",
        "bu\u0308cher.example": "xn--bcher-kva.example",
        "例え.テスト": "xn--r8jz45g.xn--zckzah",
        "straße.example": "xn--strae-oqa.example",
    }
    for sent, labels in names.items():
        zone = await new_zone(world, sent)
        assert zone["name"] == sent
        assert result(await world.http.get(f"{ZONES}/{zone['id']}", headers=world.a.bearer)) == zone
        assert await count(world, "zones", "name = $1", labels) == 1
        for again in (sent, sent.title(), labels, labels.upper()):
            answer = await send(world, "POST", ZONES, zone_body(world.a.account.id.hex, again), world.a.bearer)
            assert told(answer) == (400, [(1061, None)]), again
        for text in (sent, labels, f"equal:{sent}", f"contains:{sent[1:5]}", f"starts_with:{labels[:8]}"):
            listed = result(await world.http.get(ZONES, params={"name": text}, headers=world.a.bearer))
            assert zone["id"] in [each["id"] for each in listed], text
        for word in (sent, labels):
            assert (await zones.find(world.database, word)).id.hex == zone["id"]
        changed = await send(world, "PATCH", f"{ZONES}/{zone['id']}", {"paused": True}, world.a.bearer)
        assert result(changed)["name"] == sent


async def test_bad_changes_of_a_zone_are_refused(still: World) -> None:
    """PATCH with wrong types or values, or no object, has its codes and places and changes nothing."""
    before, path, vain = await stored(still), zone_of(still.a), "vanity_name_servers"
    table: list[tuple[object, Told]] = [
        *(({"paused": value}, (400, [(1453, "/paused")])) for value in mixed("true", "", 0, 1, [], {}, 1.0)),
        *(({"type": value}, (400, [(1453, "/type")])) for value in mixed(0, True, [], {})),
        *(({"type": value}, (400, [(1434, "/type")])) for value in ("FULL", "x", "full ")),
        *(({vain: value}, (400, [(1453, f"/{vain}")])) for value in mixed("a.b", {}, 1, ["a.b"] * 21)),
        *(
            ({vain: ["ns.example", value]}, (400, [(1453, f"/{vain}/1")]))
            for value in mixed("", "a b", "*.a.b", "a.", "ü.example", 1, None, "a." * 127 + "ab")
        ),
        ({"paused": True, vain: ["-"]}, (400, [(1453, f"/{vain}/0")])),
        ({"paused": "no", "type": "x"}, (400, [(1434, "/type"), (1453, "/paused")])),
        # What is right in it is not done either.
        ({"paused": True, "type": "x"}, (400, [(1434, "/type")])),
        *((body, (400, [(1400, "")])) for body in NO_OBJECTS),
        (b" " * (LIMIT - 1) + b"{}", (413, [(1454, None)])),
    ]
    for body, expected in table:
        assert told(await send(still, "PATCH", path, body, still.a.bearer)) == expected, str(body)[:80]
    assert await stored(still) == before


async def test_a_zone_is_changed_by_what_is_given(world: World) -> None:
    """Each field alone does, nulls and nothing at all leave everything, and modified_on says when."""
    path, first = zone_of(world.a), result(await world.http.get(zone_of(world.a), headers=world.a.bearer))
    for nothing in ({}, {"paused": None}, {"type": None, "paused": None}, {"name": "other.example"}, {"type": ""}):
        assert result(await send(world, "PATCH", path, nothing, world.a.bearer)) == first
    zone: Json = first
    changes: list[Json] = [{"paused": True}, {"type": "partial"}, {"paused": False, "type": "secondary"}]
    changes += [{"vanity_name_servers": ["ns1.example", "ns2.example"]}, {"vanity_name_servers": []}]
    for change in changes:
        changed = result(await send(world, "PATCH", path, change, world.a.bearer))
        assert datetime.fromisoformat(changed["modified_on"]) > datetime.fromisoformat(zone["modified_on"])
        assert changed == {**zone, **change, "modified_on": changed["modified_on"]}
        assert result(await world.http.get(path, headers=world.a.bearer)) == changed
        zone = changed


async def test_an_account_has_a_zone_name_once(world: World) -> None:
    """400/1061 in any case of letters; another account may have it, and so may this one after the deletion."""
    first = await new_zone(world, "once.example")
    before = await stored(world)
    for name in ("once.example", "ONCE.example", "Once.Example"):
        body = zone_body(world.a.account.id.hex, name)
        assert told(await send(world, "POST", ZONES, body, key_of(world.a))) == (400, [(1061, None)])
    assert await stored(world) == before
    theirs = await new_zone(world, "once.example", world.b.account.id.hex, key_of(world.b))
    result(await world.http.delete(f"{ZONES}/{first['id']}", headers=world.a.bearer))
    again = await new_zone(world, "ONCE.example")
    assert len({zone["id"] for zone in (first, theirs, again)}) == 3
    assert told(await world.http.get(f"{ZONES}/{first['id']}", headers=world.a.bearer)) == (404, [(7003, None)])


async def test_list_parameters_out_of_range_are_1455(still: World) -> None:
    """What is not a whole number in its range, not one of the words, given twice or unreadable is refused."""
    paging = [
        *(f"page={value}" for value in ("0", "-1", "x", "1.5", "", "1e3", "9007199254740992", "%D9%A1", "0x1", "+1")),
        *(f"per_page={value}" for value in ("0", "4", "51", "4.0", "5.5", "x", "")),
        *("page=1&page=1", "page=1&p%61ge=1", "per_page=5&per_page=6"),
        *("direction=up", "direction=ASC", "direction=", "direction=asc&direction=desc"),
        *("name=%00", "name=a%0Ab", "name=%ff", "name=%C3", "name=a&name=a"),
    ]
    of_zones = [
        *("order=id", "order=status", "order=plan.id", "order=created_on", "order="),
        *(
            "match=ALL",
            "match=",
            "status=x",
            "status=Active",
            "type=x",
            "type=",
            "type=full,x",
            "type=FULL",
        ),
        *(f"account.id={value}" for value in ("x", "", still.a.account.id.hex.upper(), str(still.a.account.id))),
        *(
            f"{key}={operator}:a"
            for key in ("name", "account.name")
            for operator in (
                *("not_equal", "starts_with_case_sensitive", "ends_with_case_sensitive", "contains_case_sensitive"),
            )
        ),
    ]
    for path, queries in ((ACCOUNTS, paging), (ZONES, [*paging, *of_zones])):
        for query in queries:
            answer = await still.http.get(f"{path}?{query}", headers=still.a.bearer)
            assert told(answer) == (400, [(1455, None)]), (path, query)


async def test_lists_can_be_filtered_and_ordered(world: World) -> None:
    """Filters are exact or of a part; zones come by name, accounts as they were made; strange keys are ignored."""
    user = key_of(world.a)
    second = await new_account(world, "Second")
    await new_zone(world, "b.example", second["id"])
    partial = zone_body(world.a.account.id.hex, "c.example", type="partial")
    await send(world, "POST", ZONES, partial, user)
    mine, hers = world.a.account.id.hex, second["id"]

    async def names(path: str) -> list[str]:
        return [item["name"] for item in result(await world.http.get(path, headers=user))]

    everything = ["a.example.com", "b.example", "c.example"]
    table = {
        "": everything,
        "?direction=desc": everything[::-1],
        "?order=name&direction=asc&match=all&page=1.0&per_page=5.0": everything,
        f"?account.id={mine}": ["a.example.com", "c.example"],
        f"?account.id={hers}": ["b.example"],
        f"?account.id={world.b.account.id.hex}": [],
        f"?account.id={uuid4().hex}": [],
        "?account.name=Second": ["b.example"],
        "?account.name=equal:Second": ["b.example"],
        "?account.name=second": [],
        "?name=b.example": ["b.example"],
        "?name=B.Example": ["b.example"],
        "?name=equal:b.example": ["b.example"],
        "?name=b": [],
        "?name=b%25": [],
        "?name=contains:Example": everything,
        "?name=contains:example.c": ["a.example.com"],
        "?name=contains:": everything,
        "?name=contains:%25": [],
        "?name=contains:_": [],
        "?name=contains:%5C": [],
        "?name=starts_with:c.": ["c.example"],
        "?name=starts_with:example": [],
        "?name=ends_with:.EXAMPLE": ["b.example", "c.example"],
        "?name=ends_with:b": [],
        "?account.name=contains:CON": ["b.example"],
        "?account.name=starts_with:account+": ["a.example.com", "c.example"],
        "?account.name=ends_with:b": [],
        "?match=any": everything,
        "?match=any&name=b.example&type=partial": ["b.example", "c.example"],
        f"?match=any&name=c.example&account.id={hers}": ["b.example", "c.example"],
        "?match=any&account.name=Second&name=starts_with:a": ["a.example.com", "b.example"],
        "?match=any&name=x&status=active": everything,
        "?match=any&name=b.example&status=pending": ["b.example"],
        "?match=any&status=moved": [],
        f"?match=any&account.id={world.b.account.id.hex}": [],
        f"?name=b.example&account.id={mine}": [],
        "?type=partial": ["c.example"],
        "?type=partial,full": everything,
        "?type=internal": [],
        "?status=active": everything,
        "?status=pending": [],
        "?order=account.name": ["a.example.com", "c.example", "b.example"],
        "?order=account.name&direction=desc": ["b.example", "a.example.com", "c.example"],
        "?colour=red&NAME=x&account[id]=x": everything,
        "?page=2": [],
        "?page=9007199254740991&per_page=50": [],
    }
    for query, expected in table.items():
        assert await names(ZONES + query) == expected, query
    both = [["a.example.com", "c.example"], ["b.example"]][:: 1 if mine < hers else -1]
    assert await names(f"{ZONES}?order=account.id") == [*both[0], *both[1]]
    assert await names(f"{ZONES}?order=account.id&direction=desc") == [*both[1], *both[0]]
    assert await names(ACCOUNTS) == ["Account a", "Second"]
    assert await names(f"{ACCOUNTS}?direction=desc") == ["Second", "Account a"]
    assert await names(f"{ACCOUNTS}?name=Second") == ["Second"]
    assert await names(f"{ACCOUNTS}?name=second") == []
    assert await names(f"{ACCOUNTS}?name=Account+b") == []
    assert await names(f"{ACCOUNTS}?name=equal:Second&match=any") == ["Second"]
    assert await names(f"{ACCOUNTS}?name=contains:ECO&match=all") == ["Second"]
    assert await names(f"{ACCOUNTS}?name=starts_with:account") == ["Account a"]
    assert await names(f"{ACCOUNTS}?name=ends_with:%25") == []
    assert told(await world.http.get(f"{ACCOUNTS}?name=not_equal:x", headers=user)) == (400, [(1455, None)])


async def pages(world: World, path: str, headers: Headers, per_page: int = 5) -> list[Json]:
    """All items of a list, page by page until one is empty, each page's own account of itself being right."""
    found: list[Json] = []
    total = None
    for page in range(1, 50):
        answer = await world.http.get(path, params={"page": page, "per_page": per_page}, headers=headers)
        items, info = result(answer), answer.json()["result_info"]
        total = info["total_count"] if total is None else total
        numbers = {"count": len(items), "page": page, "per_page": per_page, "total_count": total}
        assert info == {**numbers, "total_pages": -(-total // per_page)}
        if not items:
            assert page == info["total_pages"] + 1
            break
        found += items
    assert len(found) == total
    assert len({item["id"] for item in found}) == total
    return found


async def test_lists_show_what_the_caller_may_read(world: World) -> None:
    """A token for one zone sees it alone, a deny hides one, and pages and total_count agree with what is shown."""
    operator = first_start.operator()
    made = [await zones.create_in(world.database, operator, world.a.account, f"z{i:02}.example") for i in range(11)]
    a, b = world.a.account, world.b.account
    everything = ["a.example.com", *(zone.name for zone in made)]
    one, hidden = made[3], made[7]
    all_zones, all_accounts = "account.zone.*", "account.*"
    without = [name for name in everything if name != hidden.name]
    zones_seen: list[tuple[Headers, list[str]]] = [
        (world.a.bearer, everything),
        (key_of(world.a), everything),
        (await of_account(world, ("allow", "Zone Read", zone_name(one))), [one.name]),
        (await of_account(world, ("allow", "Zone Write", zone_name(one))), [one.name]),
        (await of_account(world, ("allow", "Zone Read", all_zones)), everything),
        (
            await of_account(world, ("allow", "Zone Read", all_zones), ("deny", "Zone Read", zone_name(hidden))),
            without,
        ),
        (
            await of_account(world, ("deny", "Zone Read", zone_name(hidden)), ("allow", "Zone Write", all_zones)),
            without,
        ),
        # Whoever may not write may still read.
        (
            await of_account(world, ("allow", "Zone Write", all_zones), ("deny", "Zone Write", zone_name(hidden))),
            everything,
        ),
        (await of_account(world, ("allow", "Zone Read", zone_name(one)), ("deny", "Zone Read", all_zones)), []),
        (await of_account(world, ("allow", "Zone Read", zone_name(world.b.zone))), []),
        (await of_account(world, ("allow", "SSL and Certificates Write", all_zones)), []),
        (await of_account(world, ("allow", "Account Settings Write", all_accounts)), []),
        (await of_user(world, ("Zone Read", all_zones)), everything),
        (await of_user(world, ("Zone Read", all_zones), denied=(("Zone Read", zone_name(hidden)),)), without),
    ]
    for number, (headers, expected) in enumerate(zones_seen):
        assert [zone["name"] for zone in await pages(world, ZONES, headers)] == expected, number
        for zone in made[:8]:
            answer = await world.http.get(f"{ZONES}/{zone.id.hex}", headers=headers)
            assert answer.status_code == (200 if zone.name in expected else 403), (number, zone.name)
    accounts_seen: list[tuple[Headers, list[str]]] = [
        (world.a.bearer, [a.name]),
        (key_of(world.a), [a.name]),
        (bearer(world.a.read_token), []),
        (await of_account(world, ("allow", "Account Settings Read", f"account.{a.id.hex}")), [a.name]),
        (await of_account(world, ("allow", "Account Settings Read", f"account.{b.id.hex}")), []),
        (await of_account(world, ("allow", "Account Settings Read", all_accounts)), [a.name]),
        (await of_account(world, ("allow", "Zone Write", all_zones)), []),
        (
            await of_account(
                world,
                ("allow", "Account Settings Write", all_accounts),
                ("deny", "Account Settings Read", f"account.{a.id.hex}"),
            ),
            [],
        ),
    ]
    for number, (headers, expected) in enumerate(accounts_seen):
        assert [each["name"] for each in await pages(world, ACCOUNTS, headers)] == expected, number
        answer = await world.http.get(account_of(world.a), headers=headers)
        assert answer.status_code == (200 if expected else 403), number


def zone_name(zone: Zone) -> str:
    return f"account.zone.{zone.id.hex}"


async def test_a_user_sees_the_accounts_of_the_memberships(world: World) -> None:
    """An account where the user only reads is listed with its zones, and cannot be changed; others are not there."""
    user = await accounts.find_user(world.database, world.a.email)
    made = [(await new_account(world, f"Account {i:02}"))["name"] for i in range(9)]
    await accounts.set_membership(world.database, first_start.operator(), user, world.b.account, Role.READ)
    listed = await pages(world, ACCOUNTS, key_of(world.a))
    assert [each["name"] for each in listed] == ["Account a", "Account b", *made]
    assert [zone["name"] for zone in await pages(world, ZONES, key_of(world.a))] == ["a.example.com", "b.example.com"]
    before = await stored(world)
    refused = [
        ("PUT", account_of(world.b), {"name": "x"}),
        ("DELETE", account_of(world.b), {}),
        ("PATCH", zone_of(world.b), {"paused": True}),
        ("DELETE", zone_of(world.b), {}),
        ("POST", ZONES, zone_body(world.b.account.id.hex, "n.example")),
    ]
    for method, path, body in refused:
        assert told(await send(world, method, path, body, key_of(world.a))) == NOT_YOURS, (method, path)
    assert await stored(world) == before


async def test_a_user_is_told_who_they_are(world: World) -> None:
    """By the global key and by any token of theirs; a token of an account has no user, and is refused and audited."""
    user = await accounts.find_user(world.database, world.a.email)
    for headers in (key_of(world.a), await of_user(world, ("Zone Read", "account.zone.*"))):
        found = result(await world.http.get("/client/v4/user", headers=headers))
        assert (found["id"], found["email"], found["first_name"]) == (user.id.hex, user.email, None)
    assert told(await world.http.get("/client/v4/user", headers=world.a.bearer)) == (403, [(9109, None)])
    assert await count(world, "audit_log", "resource_type = 'user' AND result = 'failure'") == 1
    assert told(await world.http.post("/client/v4/user", headers=world.a.bearer)) == (405, [(7001, None)])


async def test_who_may_make_accounts(world: World) -> None:
    """A user who administers one, or a token of theirs that may change any account; for others nothing is made."""
    operator, database = first_start.operator(), world.database
    user, other = [await accounts.find_user(database, tenant.email) for tenant in (world.a, world.b)]
    settings, anything = "Account Settings Write", "account.*"
    here = f"account.{world.a.account.id.hex}"
    refused = {
        "an account token": world.a.bearer,
        "an account token for all": await of_account(world, ("allow", settings, anything)),
        "a user token for one account": await of_user(world, (settings, here)),
        "a user token that reads": await of_user(world, ("Account Settings Read", anything)),
        "a user token for zones": await of_user(world, ("Zone Write", "account.zone.*")),
        "a user token that is denied": await of_user(world, (settings, anything), denied=((settings, anything),)),
        "a user who reads": key_of(world.b),
    }
    allowed = {
        "a user token": await of_user(world, (settings, anything)),
        "a user token that is denied one": await of_user(world, (settings, anything), denied=((settings, here),)),
        "a global key": key_of(world.a),
    }
    await accounts.set_membership(database, operator, other, world.b.account, Role.READ)
    before = await stored(world)
    for who, headers in refused.items():
        assert told(await send(world, "POST", ACCOUNTS, {"name": "n"}, headers)) == NOT_YOURS, who
    await accounts.set_membership(database, operator, other, world.b.account, None)
    assert told(await send(world, "POST", ACCOUNTS, {"name": "n"}, key_of(world.b))) == NOT_YOURS
    await accounts.set_membership(database, operator, other, world.b.account, Role.READ)
    assert await stored(world) == before
    for who, headers in allowed.items():
        made = await new_account(world, who, headers)
        role = await database.fetchrow("SELECT * FROM memberships WHERE account_id = $1", UUID(made["id"]))
        assert dict(role or {}) == {"user_id": user.id, "account_id": UUID(made["id"]), "role": "administrator"}, who
    # One account that the user administers is enough.
    await accounts.set_membership(database, operator, user, world.b.account, Role.READ)
    await new_account(world, "another")


async def test_who_may_make_and_change_zones(world: World) -> None:
    """Zone Write on all zones of the account makes one; on a zone it changes that one; nothing else does."""
    mine, other = world.a.account.id.hex, await new_zone(world, "other.example")
    everywhere, here = "account.zone.*", zone_name(world.a.zone)
    callers = {
        "all zones": (await of_account(world, ("allow", "Zone Write", everywhere)), (200, 200, 200)),
        "one zone": (await of_account(world, ("allow", "Zone Write", here)), (403, 200, 403)),
        "reading": (await of_account(world, ("allow", "Zone Read", everywhere)), (403, 403, 403)),
        "certificates": (await of_account(world, ("allow", "SSL and Certificates Write", everywhere)), (403, 403, 403)),
        "settings": (await of_account(world, ("allow", "Account Settings Write", "account.*")), (403, 403, 403)),
        "all but one": (
            await of_account(world, ("allow", "Zone Write", everywhere), ("deny", "Zone Write", here)),
            (200, 403, 200),
        ),
        "another tenant": (key_of(world.b), (403, 403, 403)),
        "a user's token": (await of_user(world, ("Zone Write", everywhere)), (200, 200, 200)),
    }
    for number, (who, (headers, statuses)) in enumerate(callers.items()):
        answers = [
            await send(world, "POST", ZONES, zone_body(mine, f"n{number}.example"), headers),
            await send(world, "PATCH", zone_of(world.a), {"paused": True}, headers),
            await send(world, "PATCH", f"{ZONES}/{other['id']}", {"paused": True}, headers),
        ]
        assert tuple(answer.status_code for answer in answers) == statuses, who
        assert all(told(answer) == NOT_YOURS for answer in answers if answer.status_code == 403)
    # An account that is not there is refused like one that is not theirs.
    for account_id in (uuid4().hex, world.b.account.id.hex, 32 * "0"):
        answer = await send(world, "POST", ZONES, zone_body(account_id, "n.example"), key_of(world.a))
        assert told(answer) == NOT_YOURS


async def test_nobody_reaches_another_tenants_account_or_zone(still: World) -> None:
    """On every call, what is another's and what is nowhere are the same 403/9109, and nothing changes."""
    before = await stored(still)
    for headers in (still.a.bearer, key_of(still.a), bearer(still.a.read_token)):
        for path in (
            account_of(still.b),
            f"{ACCOUNTS}/{uuid4().hex}",
            zone_of(still.b),
            f"{ZONES}/{uuid4().hex}",
        ):
            change = "PUT" if path.startswith(ACCOUNTS) else "PATCH"
            for method in ("GET", change, "DELETE"):
                answer = await send(still, method, path, {"name": "x", "paused": True}, headers)
                assert told(answer) == NOT_YOURS, (method, path)
    assert await stored(still) == before


async def test_ids_and_methods_are_the_routes(still: World) -> None:
    """What is no id is 404/7003 before anybody is asked who they are, and a method that is not there 405/7001."""
    for kind in (ACCOUNTS, ZONES):
        for word in (
            "x",
            still.a.account.id.hex.upper(),
            str(still.a.account.id),
            31 * "0",
            33 * "0",
            "%00",
            "a%2Fb",
        ):
            if word != still.a.account.id.hex:
                assert told(await still.http.get(f"{kind}/{word}")) == (404, [(7003, None)]), word
    for method, path in (
        ("PATCH", account_of(still.a)),
        ("PUT", zone_of(still.a)),
        ("DELETE", ACCOUNTS),
        ("PUT", ZONES),
    ):
        answer = await still.http.request(method, path, headers=still.a.bearer)
        assert told(answer) == (405, [(7001, None)]), (method, path)
    for path in (ACCOUNTS, ZONES, account_of(still.a), zone_of(still.a)):
        assert told(await still.http.get(path)) == (400, [(9106, None)])
        assert result(await still.http.get(path + "/", headers=still.a.bearer))


@pytest.fixture
async def remembering(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world whose callers are remembered for a second, as they are in a server."""
    async with new_world(database_url, tmp_path, remembered=1.0) as made:
        yield made


async def test_the_maker_administers_the_account_at_once(remembering: World) -> None:
    """The request after the creation reads, renames and fills the account, though its caller was remembered before."""
    world = remembering
    token = await of_user(
        world,
        ("Account Settings Write", "account.*"),
        ("Zone Write", "account.zone.*"),
        ("Account: SSL and Certificates Write", "account.*"),
    )
    for headers in (key_of(world.a), token):

        async def call(method: str, path: str, body: object = None, headers: Headers = headers) -> Any:
            # What is remembered must be there, and be too old.
            result(await world.http.get(account_of(world.a), headers=headers))
            made = await new_account(world, "New", headers)
            text = json.dumps(body).replace("ID", made["id"]).encode()
            return await world.http.request(method, path.replace("ID", made["id"]), content=text, headers=headers)

        assert result(await call("GET", f"{ACCOUNTS}/ID"))["name"] == "New"
        assert result(await call("PUT", f"{ACCOUNTS}/ID", {"name": "Newer"}))["name"] == "Newer"
        assert result(await call("POST", ZONES, zone_body("ID", "n.example")))["name"] == "n.example"
        assert result(await call("GET", f"{ZONES}?account.id=ID")) == []
        assert "New" in [each["name"] for each in result(await call("GET", f"{ACCOUNTS}?direction=desc"))]
        assert result(await call("GET", f"{ACCOUNTS}/ID/custom_csrs")) == []
        assert result(await call("DELETE", f"{ACCOUNTS}/ID"))["id"]


async def test_a_zone_is_there_for_the_next_request(remembering: World) -> None:
    """Made, read, changed, filled and deleted without a pause, though the caller is remembered."""
    world = remembering
    for number in range(3):
        zone = await new_zone(world, f"n{number}.example")
        path = f"{ZONES}/{zone['id']}"
        assert result(await world.http.get(path, headers=key_of(world.a))) == zone
        assert result(await send(world, "PATCH", path, {"paused": True}, key_of(world.a)))["paused"] is True
        csr = await world.create(path=f"{path}/custom_csrs")
        result(await world.http.delete(f"{path}/custom_csrs/{csr['id']}", headers=key_of(world.a)))
        assert result(await world.http.delete(path, headers=key_of(world.a))) == {"id": zone["id"]}
        assert told(await world.http.get(path, headers=key_of(world.a))) == (404, [(7003, None)])


async def a_certificate(world: World) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = root().sign(key.public_key(), subject("h.a.example.com"), hosts=["h.a.example.com"])
    body = {"certificate": pem(leaf), "private_key": key_pem(key), "bundle_method": "force"}
    made = result(await send(world, "POST", f"{zone_of(world.a)}/custom_certificates", body, world.a.bearer))
    return f"{zone_of(world.a)}/custom_certificates/{made['id']}"


async def a_ca(world: World) -> str:
    body = {"projectSlug": world.a.account.slug, "type": "root", "commonName": "Root", "keyAlgorithm": "EC_prime256v1"}
    answer = await send(world, "POST", "/api/v1/pki/ca", body, world.a.bearer)
    assert answer.status_code == 200, answer.text
    return f"/api/v1/pki/ca/{answer.json()['ca']['id']}"


async def test_what_holds_something_is_not_deleted(world: World) -> None:
    """409/1461 with the counts until the last thing is gone; then account and zone go, with tokens and memberships."""
    # An account's last certificate does not hide the CSR, nor the CSR the zone.
    things = [
        f"{world.a.account_path}/{(await world.create())['id']}",
        *[f"{world.a.zone_path}/{(await world.create(path=world.a.zone_path))['id']}" for _ in range(2)],
        await a_certificate(world),
        await a_ca(world),
    ]
    of_both = {
        0: ("3 custom CSRs, 1 certificates, 1 CAs and 1 zones", "2 custom CSRs and 1 certificates"),
        1: ("2 custom CSRs, 1 certificates, 1 CAs and 1 zones", "2 custom CSRs and 1 certificates"),
        2: ("1 custom CSRs, 1 certificates, 1 CAs and 1 zones", "1 custom CSRs and 1 certificates"),
        3: ("0 custom CSRs, 1 certificates, 1 CAs and 1 zones", "0 custom CSRs and 1 certificates"),
        4: ("0 custom CSRs, 0 certificates, 1 CAs and 1 zones", None),
        5: ("0 custom CSRs, 0 certificates, 0 CAs and 1 zones", None),
    }
    for number, (of_account_, of_zone) in of_both.items():
        for path, counts in ((account_of(world.a), of_account_), (zone_of(world.a), of_zone)):
            if counts:
                before = await stored(world)
                answer = await world.http.delete(path, headers=key_of(world.a))
                assert told(answer) == (409, [(1461, None)])
                assert counts in answer.json()["errors"][0]["message"]
                assert answer.headers["x-should-retry"] == "false"
                assert await stored(world) == before
        if number < len(things):
            assert (await world.http.delete(things[number], headers=world.a.bearer)).status_code == 200
    zone, account = world.a.zone.id.hex, world.a.account.id.hex
    assert result(await world.http.delete(zone_of(world.a), headers=key_of(world.a))) == {"id": zone}
    assert result(await world.http.delete(account_of(world.a), headers=key_of(world.a))) == {"id": account}
    for table in ("accounts", "zones", "tokens", "memberships"):
        column = "id" if table == "accounts" else "account_id"
        assert await count(world, table, f"{column} = $1", world.a.account.id) == 0


async def test_a_deleted_account_is_404_for_its_members_and_403_for_others(world: World) -> None:
    """On every path of it and of its zones, by key and by token of the user; its own tokens are no tokens any more."""
    made = await new_account(world, "Short")
    zone = await new_zone(world, "short.example", made["id"])
    account = await accounts.find_account(world.database, made["id"])
    value = await make_token(world.services, account)
    result(await world.http.delete(f"{ZONES}/{zone['id']}", headers=bearer(value)))
    assert told(await world.http.get(f"{ZONES}/{zone['id']}", headers=bearer(value))) == (404, [(7003, None)])
    result(await world.http.delete(f"{ACCOUNTS}/{made['id']}", headers=bearer(value)))
    everywhere = ("Account Settings Write", "account.*"), ("Account: SSL and Certificates Write", "account.*")
    there = ("Account Settings Write", f"account.{made['id']}"), ("Zone Write", f"account.zone.{zone['id']}")
    mine = f"account.{world.a.account.id.hex}"
    elsewhere = ("Account Settings Write", mine), ("Zone Write", zone_name(world.a.zone))
    of_it, of_zone = [f"{ACCOUNTS}/{made['id']}"], [f"{ZONES}/{zone['id']}"]
    of_csrs = [f"{each}/custom_csrs/{uuid4()}" for each in (*of_it, *of_zone)]
    members: list[tuple[Headers, list[str]]] = [
        (key_of(world.a), of_it + of_zone + of_csrs),
        (await of_user(world, *everywhere), of_it + of_csrs),
        (await of_user(world, *there), of_it + of_zone),
    ]
    others = (key_of(world.b), bearer(value), world.a.bearer, world.b.bearer, await of_user(world, *elsewhere))
    for method in ("GET", "DELETE"):
        for headers, paths in members:
            for path in paths:
                assert told(await send(world, method, path, {}, headers)) == (404, [(7003, None)]), path
        for headers in others:
            for path in of_it + of_zone + of_csrs:
                assert told(await send(world, method, path, {}, headers)) == NOT_YOURS, path
    for headers, expected in ((members[1][0], (404, [(7003, None)])), (world.a.bearer, NOT_YOURS)):
        assert told(await world.http.get(f"{ACCOUNTS}/{made['id']}/tokens/verify", headers=headers)) == expected
    answer = await world.http.get(ZONES, headers=bearer(value))
    assert (told(answer), answer.json()["errors"][0]["message"]) == (NOT_YOURS, "Invalid access token")
    body = zone_body(made["id"], "again.example")
    assert told(await send(world, "POST", ZONES, body, key_of(world.a))) == NOT_YOURS
    assert [each["name"] for each in await pages(world, ACCOUNTS, key_of(world.a))] == ["Account a"]


async def test_a_deleted_account_says_of_itself_what_its_members_might_ask(world: World) -> None:
    """Who only read there is told that it is gone when reading, and 403 for the rest; a second user has a role too."""
    made = await new_account(world, "Short")
    account = await accounts.find_account(world.database, made["id"])
    reader = await accounts.find_user(world.database, world.b.email)
    await accounts.set_membership(world.database, first_start.operator(), reader, account, Role.READ)
    result(await world.http.delete(f"{ACCOUNTS}/{made['id']}", headers=key_of(world.a)))
    path = f"{ACCOUNTS}/{made['id']}"
    assert told(await world.http.get(path, headers=key_of(world.b))) == (404, [(7003, None)])
    assert told(await world.http.delete(path, headers=key_of(world.b))) == NOT_YOURS
    # Its name and slug are free, and it counts as no membership.
    again = await new_account(world, "Short")
    assert again["slug"] == made["slug"]
    assert await count(world, "memberships", "account_id = $1", account.id) == 0


async def test_a_deleted_zone_is_404_for_its_account_and_403_for_others(world: World) -> None:
    """On every call, and a second deletion too; the lists do not have it."""
    result(await world.http.delete(zone_of(world.a), headers=world.a.bearer))
    one = await of_account(world, ("allow", "Zone Write", "account.zone.*"))
    certificates = await of_account(world, ("allow", "SSL and Certificates Write", "account.zone.*"))
    table = [
        *((headers, (404, [(7003, None)])) for headers in (world.a.bearer, key_of(world.a), one)),
        *((headers, NOT_YOURS) for headers in (world.b.bearer, key_of(world.b), certificates)),
    ]
    before = await stored(world)
    for headers, expected in table:
        for method in ("GET", "PATCH", "DELETE"):
            answer = await send(world, method, zone_of(world.a), {"paused": True}, headers)
            assert told(answer) == expected, method
    assert await stored(world) == before
    assert await pages(world, ZONES, world.a.bearer) == []


def keyed(headers: Headers, key: str) -> Headers:
    return {**headers, "Idempotency-Key": key}


async def test_a_repeat_with_the_key_gives_the_same_object(world: World) -> None:
    """One account and one zone are made; another body is 409/1456, an unreadable key 400/1456; errors are not kept."""
    calls: list[tuple[str, Json, Json]] = [
        (ACCOUNTS, {"name": "Once"}, {"name": "Twice"}),
        (ZONES, zone_body(world.a.account.id.hex, "once.example"), zone_body(world.a.account.id.hex, "twice.example")),
    ]
    user = key_of(world.a)
    for path, body, other in calls:
        assert (await send(world, "POST", path, {**body, "type": "x"}, keyed(user, "key"))).status_code == 400
        first = result(await send(world, "POST", path, body, keyed(user, "key")))
        before = await stored(world)
        answer = await send(world, "POST", path, {**body, "colour": 1}, keyed(user, "key"))
        assert told(answer) == (409, [(1456, None)])
        assert answer.headers["x-should-retry"] == "false"
        for _ in range(2):
            assert result(await send(world, "POST", path, body, keyed(user, "key"))) == first
        assert told(await send(world, "POST", path, other, keyed(user, "key"))) == (409, [(1456, None)])
        for bad in ("", "x" * 256, "a\tb"):
            assert told(await send(world, "POST", path, body, keyed(user, bad))) == (400, [(1456, None)])
        assert await stored(world) == before
        assert result(await send(world, "POST", path, other, keyed(user, "other")))["id"] != first["id"]
    # The same key of somebody else is another key.
    assert result(await send(world, "POST", ACCOUNTS, {"name": "Theirs"}, keyed(key_of(world.b), "key")))


async def test_a_key_is_of_one_body_whatever_account_it_names(world: World) -> None:
    """A zone of another account under the same key is 409/1456, since the key is the caller's and not the account's."""
    second = await new_account(world, "Second")
    first = zone_body(world.a.account.id.hex, "n.example")
    result(await send(world, "POST", ZONES, first, keyed(key_of(world.a), "key")))
    answer = await send(world, "POST", ZONES, zone_body(second["id"], "n.example"), keyed(key_of(world.a), "key"))
    assert told(answer) == (409, [(1456, None)])
    assert await count(world, "zones", "name = 'n.example'") == 1


async def test_the_key_is_judged_before_the_body(world: World) -> None:
    """A key that was used is 409/1456 also with a body that is wrong (section 4: 1456 comes before the body)."""
    user = keyed(key_of(world.a), "key")
    for path, body in ((ACCOUNTS, {"name": "Once"}), (ZONES, zone_body(world.a.account.id.hex, "once.example"))):
        result(await send(world, "POST", path, body, user))
        for other in (b"{", b"[]", {**body, "name": ""}, {**body, "name": "x" * 300}, {**body, "type": "x"}):
            assert told(await send(world, "POST", path, other, user)) == (409, [(1456, None)]), (path, other)


async def test_a_repeat_after_the_deletion_makes_nothing(world: World) -> None:
    """What a key made does not come back: 404/7003 for the account and for the zone."""
    user = key_of(world.a)
    account, zone = {"name": "Once"}, zone_body(world.a.account.id.hex, "once.example")
    for path, body in ((ACCOUNTS, account), (ZONES, zone)):
        made = result(await send(world, "POST", path, body, keyed(user, "key")))
        result(await world.http.delete(f"{path}/{made['id']}", headers=user))
        before = await stored(world)
        assert told(await send(world, "POST", path, body, keyed(user, "key"))) == (404, [(7003, None)])
        assert await stored(world) == before


async def test_a_repeat_is_authorized_anew(world: World) -> None:
    """Whoever has lost the permission meanwhile does not get the object again."""
    user = await accounts.find_user(world.database, world.a.email)
    account, zone = {"name": "Once"}, zone_body(world.a.account.id.hex, "once.example")
    for path, body in ((ACCOUNTS, account), (ZONES, zone)):
        result(await send(world, "POST", path, body, keyed(key_of(world.a), "key")))
    sql = "UPDATE memberships SET role = 'read' WHERE user_id = $1"
    await world.database.execute(sql, user.id)
    for path, body in ((ACCOUNTS, account), (ZONES, zone)):
        assert told(await send(world, "POST", path, body, keyed(key_of(world.a), "key"))) == NOT_YOURS


@pytest.mark.parametrize("kind", ["account", "zone"])
async def test_twenty_at_once_with_one_key_make_one(world: World, kind: str) -> None:
    """All twenty get the one object, and the audit log has one row of it."""
    path = ACCOUNTS if kind == "account" else ZONES
    body = {"name": "Once"} if kind == "account" else zone_body(world.a.account.id.hex, "once.example")
    posts = (send(world, "POST", path, body, keyed(key_of(world.a), "key")) for _ in range(20))
    made = [result(answer) for answer in await asyncio.gather(*posts)]
    assert all(each == made[0] for each in made)
    assert await count(world, f"{kind}s", "name = $1", body["name"]) == 1
    made_here = "action = 'create' AND resource_type = $1 AND method = 'POST'"
    assert await count(world, "audit_log", made_here, kind) == 1


async def test_two_bodies_at_once_with_one_key_make_one(world: World) -> None:
    """One body wins, and those with the other are told 409/1456."""
    mine = world.a.account.id.hex
    for path, bodies in (
        (ACCOUNTS, [{"name": f"n{i % 2}.example"} for i in range(10)]),
        (ZONES, [zone_body(mine, f"n{i % 2}.example") for i in range(10)]),
    ):
        posts = (send(world, "POST", path, body, keyed(key_of(world.a), "key")) for body in bodies)
        answers = await asyncio.gather(*posts)
        assert len({result(answer)["id"] for answer in answers if answer.status_code == 200}) == 1
        losers = [answer for answer in answers if answer.status_code != 200]
        assert [told(answer) for answer in losers] == 5 * [(409, [(1456, None)])]


async def test_ten_zones_of_one_name_at_once_make_one(world: World) -> None:
    """One is made, and the other nine are 400/1061."""
    for number in range(3):
        bodies = [zone_body(world.a.account.id.hex, name) for name in 5 * [f"n{number}.example", f"N{number}.EXAMPLE"]]
        answers = await asyncio.gather(*(send(world, "POST", ZONES, body, world.a.bearer) for body in bodies))
        assert sorted(answer.status_code for answer in answers) == [200, *9 * [400]]
        assert [told(answer) for answer in answers if answer.status_code == 400] == 9 * [(400, [(1061, None)])]
        assert await count(world, "zones", "name = $1", f"n{number}.example") == 1


async def test_a_deletion_against_a_creation_ends_in_one_of_the_two(world: World) -> None:
    """Either the account is gone and the zone refused, or the zone is there and the deletion refused."""
    for number in range(ROUNDS):
        made = await new_account(world, f"Account {number}")
        account = f"{ACCOUNTS}/{made['id']}"
        calls = [
            send(world, "POST", ZONES, zone_body(made["id"], "n.example"), key_of(world.a)),
            send(world, "DELETE", account, {}, key_of(world.a)),
        ]
        # Either may come first.
        answers = await asyncio.gather(*(calls[::-1] if number % 2 else calls))
        creation, deletion = answers[::-1] if number % 2 else answers
        zone_count = await count(world, "zones", "account_id = $1", UUID(made["id"]))
        account_count = await count(world, "accounts", "id = $1", UUID(made["id"]))
        if deletion.status_code == 200:
            assert (told(creation), account_count, zone_count) == (NOT_YOURS, 0, 0)
        else:
            assert told(deletion) == (409, [(1461, None)])
            assert (creation.status_code, account_count, zone_count) == (200, 1, 1)


async def test_two_deletions_at_once_are_one(world: World) -> None:
    """One is 200; the other is told that the zone or account is gone, as it is told later."""
    for number in range(4):
        made = await new_account(world, f"Account {number}")
        zone = await new_zone(world, "n.example", made["id"])
        gone = (404, [(7003, None)])
        for path in (f"{ZONES}/{zone['id']}", f"{ACCOUNTS}/{made['id']}"):
            answers = await asyncio.gather(*(world.http.delete(path, headers=key_of(world.a)) for _ in range(3)))
            assert sorted(answer.status_code for answer in answers) == [200, gone[0], gone[0]]
            assert [told(answer) for answer in answers if answer.status_code != 200] == [gone, gone]
        where = "resource_id = ANY($1) AND action = 'delete' AND result = 'success'"
        assert await count(world, "audit_log", where, [UUID(zone["id"]), UUID(made["id"])]) == 2


async def test_an_account_has_so_many_zones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """403/1469 at the bound, also for ten at once; a deletion makes room again."""
    monkeypatch.setattr(zones, "MAX_ZONES", 4)
    mine = world.a.account.id.hex
    bodies = [zone_body(mine, f"n{i}.example") for i in range(10)]
    answers = await asyncio.gather(*(send(world, "POST", ZONES, body, world.a.bearer) for body in bodies))
    made = [result(answer) for answer in answers if answer.status_code == 200]
    assert len(made) == 3
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [told(answer) for answer in refused] == 7 * [(403, [(1469, None)])]
    assert "4" in refused[0].json()["errors"][0]["message"]
    before = await stored(world)
    body = zone_body(mine, "key.example")
    assert told(await send(world, "POST", ZONES, body, keyed(world.a.bearer, "key"))) == (403, [(1469, None)])
    assert await stored(world) == before
    await new_zone(world, "theirs.example", world.b.account.id.hex, key_of(world.b))
    result(await world.http.delete(f"{ZONES}/{made[0]['id']}", headers=world.a.bearer))
    assert result(await send(world, "POST", ZONES, body, keyed(world.a.bearer, "key")))["name"] == "key.example"


async def test_a_user_is_in_so_many_accounts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """403/1469 at the bound, also for ten at once; a deletion makes room again."""
    monkeypatch.setattr(accounts, "MAX_MEMBERSHIPS", 4)
    posts = (send(world, "POST", ACCOUNTS, {"name": f"n{i}"}, key_of(world.a)) for i in range(10))
    answers = await asyncio.gather(*posts)
    made = [result(answer) for answer in answers if answer.status_code == 200]
    assert len(made) == 3
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [told(answer) for answer in refused] == 7 * [(403, [(1469, None)])]
    before = await stored(world)
    key = keyed(key_of(world.a), "key")
    assert told(await send(world, "POST", ACCOUNTS, {"name": "key"}, key)) == (403, [(1469, None)])
    assert await stored(world) == before
    await new_account(world, "Theirs", key_of(world.b))
    result(await world.http.delete(f"{ACCOUNTS}/{made[0]['id']}", headers=key_of(world.a)))
    assert result(await send(world, "POST", ACCOUNTS, {"name": "key"}, key))["name"] == "key"


async def test_every_change_and_every_denial_is_written_down(world: World) -> None:
    """A row for each create, update and delete, and one for what was denied; refused bodies and repeats leave none."""
    user = key_of(world.a)
    made = await new_account(world, "Audited")
    zone = await new_zone(world, "audited.example", made["id"])
    account, path = f"{ACCOUNTS}/{made['id']}", f"{ZONES}/{zone['id']}"
    await send(world, "PUT", account, {"name": "Renamed"}, user)
    await send(world, "PUT", account, {"name": ""}, user)
    await send(world, "PATCH", path, {"paused": True}, user)
    await send(world, "PATCH", path, {}, user)
    await send(world, "DELETE", account, {}, user)
    await send(world, "POST", ZONES, zone_body(made["id"], "audited.example"), user)
    await send(world, "DELETE", path, {}, user)
    await send(world, "DELETE", account, {}, user)
    sql = "SELECT action, resource_type, result, status FROM audit_log WHERE account_id = $1 ORDER BY at"
    rows = [tuple(row) for row in await world.database.fetch(sql, UUID(made["id"]))]
    assert rows == [
        ("create", "account", "success", 200),
        ("create", "zone", "success", 200),
        ("update", "account", "success", 200),
        ("update", "zone", "success", 200),
        ("delete", "zone", "success", 200),
        ("delete", "account", "success", 200),
    ]
    await send(world, "POST", ACCOUNTS, {"name": "n"}, world.a.bearer)
    await send(world, "DELETE", zone_of(world.a), {}, bearer(world.a.read_token))
    await send(world, "DELETE", zone_of(world.b), {}, world.a.bearer)
    denied = (
        "SELECT action, resource_type, zone_id FROM audit_log WHERE account_id = $1 AND result = 'failure' ORDER BY at"
    )
    rows = [tuple(row) for row in await world.database.fetch(denied, world.a.account.id)]
    assert rows == [("create", "account", None), ("delete", "zone", world.a.zone.id), ("delete", "zone", None)]
    assert await count(world, "audit_log", "account_id = $1 AND result = 'failure'", world.b.account.id) == 0
