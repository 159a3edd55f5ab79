"""What bad input gets: the error table of the CSR product, to the letter (contract-cloudflare sections 3 and 4)."""

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.world import BODY, World

from keystead import errors
from keystead.caller import RequestInfo
from keystead.cloudflare import custom_csrs
from keystead.cloudflare import errors as cloudflare_errors
from keystead.cloudflare.custom_csrs import CustomCsrRequest
from keystead.cloudflare.reading import decode
from keystead.csrs import store as csrs
from keystead.errors import Clash, Denial, Hint, Limit, Problem, Rule, Scheme, Thing
from keystead.x509.names import NamePolicy

GOOD = BODY["sans"][0]


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in BODY.items() if key != field}


def but(**fields: Any) -> dict[str, Any]:
    return {**BODY, **fields}


# body, and each expected (code, pointer), in order
BODIES: dict[str, tuple[Any, list[tuple[int, str | None]]]] = {
    "nothing": (b"", [(1400, "")]),
    "broken JSON": (b'{"country":', [(1400, "")]),
    "two documents": (b"{} {}", [(1400, "")]),
    "NaN": (b'{"country": NaN}', [(1400, "")]),
    "not UTF-8": (b'{"country": "\xff"}', [(1400, "")]),
    "a byte order mark alone": (b"\xef\xbb\xbf", [(1400, "")]),
    "too deep": (b'{"country": ' + b"[" * 30000 + b"]" * 30000 + b"}", [(1400, "")]),
    "an array": ([], [(1400, "")]),
    "a string": ("x", [(1400, "")]),
    "null": (None, [(1400, "")]),
    "nothing required": (
        {},
        [
            (1405, "/country"),
            (1406, "/state"),
            (1407, "/locality"),
            (1408, "/organization"),
            (1409, "/common_name"),
            (1411, "/sans"),
        ],
    ),
    "null is missing": (but(country=None, sans=None), [(1405, "/country"), (1411, "/sans")]),
    "empty is missing": (but(state="", sans=[]), [(1406, "/state"), (1411, "/sans")]),
    "country missing": (without("country"), [(1405, "/country")]),
    "state missing": (without("state"), [(1406, "/state")]),
    "locality missing": (without("locality"), [(1407, "/locality")]),
    "organization missing": (without("organization"), [(1408, "/organization")]),
    "common_name missing": (without("common_name"), [(1409, "/common_name")]),
    "common_name of 65": (but(common_name="é" * 65), [(1410, "/common_name")]),
    "a bad SAN": (but(sans=[GOOD, "a..b"]), [(1412, "/sans/1")]),
    "a SAN with NUL": (but(sans=["a\x00b.com"]), [(1412, "/sans/0")]),
    "a SAN with a control character": (but(sans=["a\nb.com"]), [(1412, "/sans/0")]),
    "a SAN with a bidi character": (but(sans=["a\u202eb.com"]), [(1413, "/sans/0")]),
    "a SAN with a lone surrogate": (
        b'{"sans":["a\\ud800.com"]}',
        [*[(c, None) for c in range(1405, 1410)], (1413, None)],
    ),
    "an empty SAN": (but(sans=["", GOOD]), [(1412, "/sans/0")]),
    "SANs of wrong types": (
        but(sans=[GOOD, 1, None, ["x"], {"a": 1}, True, "a..b"]),
        [(1412, "/sans/6"), *[(1453, f"/sans/{i}") for i in range(1, 6)]],
    ),
    "SANs as a string": (but(sans="example.com"), [(1453, "/sans")]),
    "SANs as an object": (but(sans={"0": "example.com"}), [(1453, "/sans")]),
    "151 SANs": (but(sans=["a..b"] * 151), [(1452, "/sans")]),
    "151 SANs of wrong types": (but(sans=[1] * 151), [(1452, "/sans")]),
    "an unknown key type": (but(key_type="rsa4096"), [(1417, "/key_type")]),
    "a key type in capitals": (but(key_type="RSA2048"), [(1417, "/key_type")]),
    "a key type with a space": (but(key_type="rsa2048 "), [(1417, "/key_type")]),
    "a country in small letters": (but(country="us"), [(1450, "/country")]),
    "a country of three": (but(country="USA"), [(1450, "/country")]),
    "no country of the world": (but(country="ZZ"), [(1450, "/country")]),
    "a country that ISO has not assigned": (but(country="XK"), [(1450, "/country")]),
    "a country with NUL": (but(country="U\x00"), [(1450, "/country")]),
    "a country in full-width letters": (but(country="\uff35\uff33"), [(1450, "/country")]),
    "texts too long": (
        but(
            state="s" * 129,
            locality="l" * 129,
            organization="o" * 65,
            organizational_unit="u" * 65,
            name="n" * 256,
            description="d" * 1025,
        ),
        [
            (1451, f"/{field}")
            for field in ("state", "locality", "organization", "organizational_unit", "name", "description")
        ],
    ),
    "a number of 5,000 digits": (
        json.dumps(but(country=1)).replace(": 1", ": " + "9" * 5000).encode(),
        [(1453, "/country")],
    ),
    "numbers for texts": (
        but(country=1, state=1.5, common_name=True, name=[], description={}),
        [(1453, f"/{field}") for field in ("country", "state", "common_name", "name", "description")],
    ),
    "control characters": (
        but(state="a\x00b", locality="a\x1bb", organization="a\x9fb", common_name="a\x7fb", name="a\tb"),
        [(1453, f"/{field}") for field in ("state", "locality", "organization", "common_name", "name")],
    ),
    "bidi controls": (but(organization="a\u202eb", name="\u2066x"), [(1453, "/organization"), (1453, "/name")]),
    "a lone surrogate in a text": (
        json.dumps(but(description="a\ud800")).encode(),
        [(1453, "/description")],
    ),
    "only white space": (but(locality=" \u2003", name="  "), [(1453, "/locality"), (1453, "/name")]),
    "a description with a form feed": (but(description="a\x0cb"), [(1453, "/description")]),
    "everything at once, in the order of the codes": (
        {"key_type": "x", "country": "zz", "common_name": "c" * 65, "sans": ["é.com", "-", 7], "state": " "},
        [
            (1407, "/locality"),
            (1408, "/organization"),
            (1410, "/common_name"),
            (1412, "/sans/1"),
            (1413, "/sans/0"),
            (1417, "/key_type"),
            (1450, "/country"),
            (1453, "/sans/2"),
            (1453, "/state"),
        ],
    ),
}


def shown(answer: httpx.Response) -> list[tuple[int, str | None]]:
    return [(e["code"], (e.get("source") or {}).get("pointer")) for e in answer.json()["errors"]]


async def assert_nothing_made(world: World) -> None:
    row = await world.database.fetchrow(
        "SELECT (SELECT count(*) FROM private_keys) + (SELECT count(*) FROM custom_csrs) "
        "+ (SELECT count(*) FROM idempotency_keys) AS n"
    )
    assert row
    assert row["n"] == 0


async def post(world: World, body: Any, path: str | None = None, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await world.http.post(path or world.a.account_path, content=content, headers={**world.a.bearer, **headers})


async def test_a_bad_body_gets_its_codes_and_changes_nothing(world: World) -> None:
    """Each bad body is answered 400 with one item for each problem, in the contract's order, on both scopes."""
    for case, (body, expected) in BODIES.items():
        for path in world.a.paths:
            answer = await post(world, body, path)
            found = shown(answer)
            assert answer.status_code == 400, case
            assert [code for code, _ in found] == [code for code, _ in expected], case
            assert all(p == e for (_, p), (_, e) in zip(found, expected, strict=True) if e is not None), (case, found)
    await assert_nothing_made(world)


async def test_the_public_policy_adds_its_three_codes(world: World) -> None:
    """An account under the policy public gets 1414, 1415 and 1416, and private ones do not."""
    await world.database.execute("UPDATE accounts SET name_policy = 'public' WHERE id = $1", world.a.account.id)
    sans = ["db.test", "co.uk", "www.example.com", "*.com", "www.keystead.dev"]
    for path in world.a.paths:
        answer = await post(world, but(sans=sans), path)
        assert shown(answer) == [(1414, "/sans/0"), (1415, "/sans/1"), (1415, "/sans/3"), (1416, "/sans/2")]
    allowed = await world.http.post(
        world.b.account_path, json=but(sans=["db.test", "co.uk", "www.example.com"]), headers=world.b.bearer
    )
    assert allowed.status_code == 201


_BAD = st.sampled_from(["a..b", "-a.com", "1.2.3.4", "[::1]", "é.com", "a b.com", "x" * 64 + ".com", "a.com.", "*", ""])
_FINE = st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z])?\.keystead\.dev", fullmatch=True)


@given(st.lists(_FINE, max_size=30), _BAD, st.data())
def test_one_bad_san_is_named_at_every_position(good: list[str], bad: str, data: st.DataObject) -> None:
    """Among any good SANs the bad one, and only it, is pointed at, wherever it stands."""
    position = data.draw(st.integers(0, len(good)))
    sans = [*good[:position], bad, *good[position:]]
    request = custom_csrs.csr_request(decode(json.dumps(but(sans=sans)).encode(), CustomCsrRequest))
    found = csrs.problems(request, NamePolicy.PRIVATE)
    assert [(problem.field, problem.index) for problem in found] == [("sans", position)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*BODY, "organizational_unit", "name", "description", "x"]), _JSON))
def test_no_json_object_is_more_than_a_list_of_problems(fields: dict[str, Any]) -> None:
    """Any object is read without an exception, and every problem has a code and a printable sentence."""
    request = custom_csrs.csr_request(decode(json.dumps(fields).encode(), CustomCsrRequest))
    for problem in csrs.problems(request, NamePolicy.PUBLIC):
        assert cloudflare_errors.code_of(problem) in cloudflare_errors.CODES
        assert problem.text.isprintable()


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_list_of_problems(raw: bytes) -> None:
    """Any bytes are read without an exception."""
    csrs.problems(custom_csrs.csr_request(decode(raw, CustomCsrRequest)), NamePolicy.PRIVATE)


async def test_a_body_of_64_kib_is_read_and_one_byte_more_is_refused(world: World) -> None:
    """The bound is 65,536 bytes exactly, told by Content-Length or found while reading."""
    body = json.dumps(but(description="d")).encode()
    assert (await post(world, body + b" " * (65536 - len(body)))).status_code == 201
    answer = await post(world, body + b" " * (65537 - len(body)))
    assert (answer.status_code, shown(answer)) == (413, [(1454, None)])

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    answer = await world.http.post(world.a.account_path, content=chunks(), headers=world.a.bearer)
    assert (answer.status_code, shown(answer)) == (413, [(1454, None)])


# query, and None where it is good
QUERIES: list[tuple[str, bool]] = [
    ("page=1&per_page=5", True),
    ("page=2.0&per_page=5.0", True),
    ("page=1.&per_page=50.000", True),
    ("page=9007199254740991", True),
    ("unknown=1&unknown=2", True),
    ("order=name&direction=desc", True),
    ("order=account_tag", True),
    ("key_type=p256v1&common_name=a&san=b&name=c", True),
    ("", True),
    ("&&", True),
    ("page=0", False),
    ("page=-1", False),
    ("page=1.5", False),
    ("page=1e3", False),
    ("page=", False),
    ("page=abc", False),
    ("page=%31%30", True),
    ("page=٣", False),
    ("page= 1", False),
    ("page=+1", False),
    ("page=0x10", False),
    ("page=1_0", False),
    ("page=9007199254740992", False),
    ("page=" + "9" * 400, False),
    ("page=NaN", False),
    ("page=inf", False),
    ("per_page=4", False),
    ("per_page=51", False),
    ("per_page=1e9", False),
    ("per_page=1000000000", False),
    ("page=1&page=1", False),
    ("page=1&%70age=2", False),
    ("name=a&name=b", False),
    ("order=id", False),
    ("order=Name", False),
    ("order=", False),
    ("direction=up", False),
    ("key_type=rsa4096", False),
    ("name=%00", False),
    ("common_name=a%0Ab", False),
    ("san=%1b", False),
    ("name=%ff", False),
    ("name=%c3%a9", True),
    ("common_name=a%2Bb+c", True),
]


async def test_a_list_parameter_is_good_or_gets_1455(world: World) -> None:
    """Every bad parameter is answered 400/1455 with what is allowed, and an unknown key is ignored."""
    for query, good in QUERIES:
        for path in world.a.paths:
            answer = await world.http.get(
                httpx.URL(path, query=quote(query, safe="=&%+ ").encode()), headers=world.a.bearer
            )
            assert answer.status_code == (200 if good else 400), query
            if not good:
                assert shown(answer) == [(1455, None)], query


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_id_is_a_uuid_and_its_csr_is_here_or_not(world: World, method: str) -> None:
    """A path id that is no UUID is 400/1418, and one that is not in this list is 404/1419."""
    made = await world.create(world.a, world.a.zone_path)
    theirs = await world.create(world.b)
    for path in world.a.paths:
        for bad in ("x", "0", made["id"][:-1], made["id"] + "0", "{" + made["id"] + "}", made["id"].replace("-", "")):
            answer = await world.http.request(method, f"{path}/{bad}", headers=world.a.bearer)
            assert (answer.status_code, shown(answer)) == (400, [(1418, None)]), bad
        for missing in ("7b163417-1d2b-4c84-a38a-2fb7a0cd7752", theirs["id"]):
            answer = await world.http.request(method, f"{path}/{missing}", headers=world.a.bearer)
            assert (answer.status_code, shown(answer)) == (404, [(1419, None)])
    # A zone's CSR is not in its account's list.
    answer = await world.http.request(method, f"{world.a.account_path}/{made['id']}", headers=world.a.bearer)
    assert shown(answer) == [(1419, None)]


@pytest.mark.parametrize(
    "tail",
    [
        "/%2F",
        "/a%2Fb",
        "/%00",
        "/a%00",
        "/%ff",
        "/%c3%28",
        "//",
        "/%",
        "/%zz",
        "/x/y",
        "//7b163417-1d2b-4c84-a38a-2fb7a0cd7752",
        "/%2e%2e/custom_csrs",
        "s",
    ],
)
async def test_a_path_trick_is_not_routed(world: World, tail: str) -> None:
    """A path that decodes to something odd is 404/7003, whatever lies behind it."""
    for path in world.a.paths:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=(path + tail).encode())
        answer = await world.http.get(url, headers=world.a.bearer)
        assert (answer.status_code, shown(answer)) == (404, [(7003, None)])


@pytest.mark.parametrize("bad", ["x", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "%30" * 33])
async def test_an_account_or_zone_id_is_32_hex(world: World, bad: str) -> None:
    """Any other id is 404/7003 before the credentials are looked at."""
    for kind in ("accounts", "zones"):
        answer = await world.http.get(f"/client/v4/{kind}/{bad}/custom_csrs")
        assert (answer.status_code, shown(answer)) == (404, [(7003, None)])


async def test_an_id_in_percent_encoding_is_decoded_once(world: World) -> None:
    """A path is decoded once: the encoded id is the id, and the doubly encoded one is none."""
    encoded = "".join(f"%{ord(c):02x}" for c in world.a.account.id.hex)
    for text, status in ((encoded, 200), (encoded.replace("%", "%25"), 404)):
        url = httpx.URL("http://127.0.0.1:8787", raw_path=f"/client/v4/accounts/{text}/custom_csrs/".encode())
        answer = await world.http.get(url, headers=world.a.bearer)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "one", "allow"),
    [
        ("PUT", True, "DELETE, GET, HEAD"),
        ("PATCH", True, "DELETE, GET, HEAD"),
        ("POST", True, "DELETE, GET, HEAD"),
        ("OPTIONS", True, "DELETE, GET, HEAD"),
        ("TRACE", True, "DELETE, GET, HEAD"),
        ("PUT", False, "GET, HEAD, POST"),
        ("DELETE", False, "GET, HEAD, POST"),
        ("OPTIONS", False, "GET, HEAD, POST"),
        ("MKCOL", False, "GET, HEAD, POST"),
    ],
)
async def test_a_method_that_is_not_there_is_405(world: World, method: str, one: bool, allow: str) -> None:
    """There is no update, and no OPTIONS: 405/7001, with the methods that there are."""
    for path in world.a.paths:
        answer = await world.http.request(method, f"{path}/x" if one else path, headers=world.a.bearer)
        assert (answer.status_code, shown(answer)) == (405, [(7001, None)])
        assert answer.json()["errors"][0]["message"] == f"Method {method} not available for that URI."
        assert answer.headers["allow"] == allow


async def test_head_is_get_without_its_body(world: World) -> None:
    """HEAD has the status and headers of GET, and no body."""
    made = await world.create()
    url = f"{world.a.account_path}/{made['id']}"
    head, get = [await world.http.request(m, url, headers=world.a.bearer) for m in ("HEAD", "GET")]
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(get.content))


async def test_a_scope_that_is_switched_off_is_1404(world: World) -> None:
    """Every call of a scope without custom CSRs is 403/1404, and the other scope is served."""
    made = await world.create(world.a, world.a.zone_path)
    await world.database.execute("UPDATE zones SET csrs_enabled = false WHERE id = $1", world.a.zone.id)
    for method, path in (("POST", ""), ("GET", ""), ("GET", "/" + made["id"]), ("DELETE", "/x")):
        answer = await world.http.request(method, world.a.zone_path + path, headers=world.a.bearer)
        assert (answer.status_code, shown(answer)) == (403, [(1404, None)])
        assert f"keystead zone set {world.a.zone.id.hex}" in answer.json()["errors"][0]["message"]
    await world.create(world.a)


async def test_a_quota_lets_exactly_so_many_through(world: World) -> None:
    """Of 20 creators at once at a quota of 10 exactly ten succeed, the others get 403/1403 and leave no key."""
    import asyncio

    for tenant, sql in ((world.a, "UPDATE zones SET csr_quota = 10 WHERE id = $1"),):
        await world.database.execute(sql, tenant.zone.id)
    answers = await asyncio.gather(*(post(world, BODY, world.a.zone_path) for _ in range(20)))
    assert sorted(a.status_code for a in answers) == [201] * 10 + [403] * 10
    refused = next(a for a in answers if a.status_code == 403)
    assert shown(refused) == [(1403, None)]
    assert "--csr-quota" in refused.json()["errors"][0]["message"]
    row = await world.database.fetchrow("SELECT count(*) AS n FROM private_keys")
    assert row
    assert row["n"] == 10
    await world.create(world.a)


async def test_the_order_of_checks_is_the_contracts(world: World) -> None:
    """A request with every fault at once is told of them one after the other, in the order of section 4."""
    body, query = b"x" * 70000, b"page=0"
    stranger = {"Authorization": "Bearer " + "s" * 40}

    async def first(path: str, headers: dict[str, str], method: str = "POST") -> int:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=path.encode())
        answer = await world.http.request(method, url, content=body, headers={"Idempotency-Key": "\x01", **headers})
        code: int = answer.json()["errors"][0]["code"]
        return code

    account = world.a.account_path
    assert await first("/client/v4/accounts/x/custom_csrs", stranger) == 7003
    assert await first(account, stranger, "PUT") == 7001
    assert await first(account, {}) == 9106
    assert await first(account, stranger) == 9109
    assert await first(account, world.b.bearer) == 9109
    await world.database.execute("UPDATE accounts SET csrs_enabled = false WHERE id = $1", world.a.account.id)
    assert await first(account, world.a.bearer) == 1404
    await world.database.execute("UPDATE accounts SET csrs_enabled = true WHERE id = $1", world.a.account.id)
    assert await first(f"{account}/x", world.a.bearer, "DELETE") == 1418
    assert await first(f"{account}?{query.decode()}", world.a.bearer, "GET") == 1455
    assert await first(account, world.a.bearer) == 1454
    answer = await post(world, b"x", **{"Idempotency-Key": "\x01"})
    assert shown(answer) == [(1456, None)]


async def test_what_is_not_foreseen_is_a_500_that_tells_only_the_request_id(world: World) -> None:
    """An exception of ours never shows: its text stays in the log, under the id that the answer carries."""
    await world.database.execute("ALTER TABLE custom_csrs RENAME TO elsewhere")
    try:
        answer = await world.http.get(world.a.account_path, headers=world.a.bearer)
    finally:
        await world.database.execute("ALTER TABLE elsewhere RENAME TO custom_csrs")
    assert (answer.status_code, shown(answer)) == (500, [(1500, None)])
    assert answer.headers["x-request-id"] in answer.text
    assert "elsewhere" not in answer.text
    assert "relation" not in answer.text


async def test_a_database_that_is_away_is_a_503_and_comes_back(world: World) -> None:
    """Connections that are cut give 503/1501 with Retry-After or a good answer, and the next one is good."""
    import asyncio

    await asyncio.gather(*(world.create() for _ in range(8)))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await world.database.execute(kill)
    answers = [await world.http.get(world.a.account_path, headers=world.a.bearer) for _ in range(20)]
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert shown(answer) == [(1501, None)]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answers[-1].status_code == 200


def test_every_kind_of_error_has_its_place_in_the_table() -> None:
    """Each kind, rule, hint, limit, denial and clash of the core has a documented code in this dialect."""
    assert set(cloudflare_errors.RULES) | {Rule.MISSING} == set(Rule)
    assert set(cloudflare_errors.HINTS) == set(Hint)
    assert set(cloudflare_errors.LIMITS) == set(Limit)
    assert set(cloudflare_errors.DENIALS) == set(Denial)
    assert set(cloudflare_errors.CLASHES) | {Clash.STORED} == set(Clash)
    assert set(cloudflare_errors.MISSING_THINGS) | {Thing.OTHER} == set(Thing)
    assert {
        *cloudflare_errors.RULES.values(),
        *cloudflare_errors.HINTS.values(),
        *cloudflare_errors.DENIALS.values(),
    } <= set(cloudflare_errors.CODES)
    samples: dict[type[Exception], list[Exception]] = {
        errors.Invalid: [errors.Invalid((Problem(Rule.TEXT, "name", "x"),))],
        errors.NotFound: [errors.NotFound("x", thing) for thing in Thing],
        errors.Conflict: [errors.Conflict("x", clash) for clash in Clash],
        errors.Refusal: [errors.Refusal("x")],
        errors.Unauthenticated: [errors.Unauthenticated(scheme) for scheme in Scheme],
        errors.Forbidden: [
            *(errors.Forbidden(denial, "x") for denial in Denial),
            errors.Forbidden(Denial.MORE_RIGHTS, problems=(Problem(Rule.MORE_RIGHTS, "policies", "x"),)),
        ],
        errors.LimitReached: [errors.LimitReached(limit, "x") for limit in Limit],
        errors.Unavailable: [errors.Unavailable("x")],
        errors.KeyDamaged: [errors.KeyDamaged("1", "x")],
        errors.CertificateDamaged: [errors.CertificateDamaged("x")],
        errors.Misconfigured: [errors.Misconfigured("x")],
    }
    kinds = {k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, errors.KeysteadError)}
    assert kinds - {errors.KeysteadError} == set(samples)
    answers = cloudflare_errors.Reference("http://127.0.0.1:8787")
    for error in (error for each in samples.values() for error in each):
        answer = answers.failure(error, RequestInfo(None, "0" * 32, "GET", "/"))
        code = json.loads(answer.content)["errors"][0]["code"]
        # 1002 is the one code of two statuses: an unreadable certificate, and an unknown one.
        assert answer.status_code == (404 if code == 1002 else cloudflare_errors.CODES[code][0])


async def test_an_unknown_field_may_be_named_and_hold_anything(world: World) -> None:
    """A lone surrogate in a name and a number of 5,000 digits are ignored like any other unknown field."""
    body = json.dumps(but(sans=["www.keystead.dev"], **{"\ud800/~": 1})).replace(": 1", ": " + "9" * 5000)
    answer = await post(world, body.encode())
    assert answer.status_code == 201
    assert answer.json()["messages"][0]["code"] == 1480
    assert answer.json()["messages"][0]["source"] == {"pointer": "/\\ud800~1~0"}


async def test_messages_carry_advice_on_what_was_accepted(world: World) -> None:
    """A CSR that public CAs would refuse is made, and each doubt is told with its code and pointer."""
    body = but(
        common_name="other.keystead.dev",
        organization="- . -",
        locality=" Berlin",
        organizational_unit="Engineering",
        sans=["a_b.keystead.dev", "ab--c.keystead.dev", "A_B.keystead.dev", "db"],
        **{f"x{i}/~": i for i in range(25)},
    )
    answer = await post(world, body)
    assert answer.status_code == 201
    told = [(m["code"], m["source"]["pointer"]) for m in answer.json()["messages"]]
    assert told == [
        *[(1480, f"/x{i}~1~0") for i in range(20)],
        (1481, "/common_name"),
        (1482, "/organizational_unit"),
        (1484, "/sans/0"),
        (1484, "/sans/1"),
        (1483, "/sans/2"),
        (1484, "/sans/3"),
        (1484, "/locality"),
        (1484, "/organization"),
    ]
    quiet = await post(world, but(common_name="www.keystead.dev", sans=["www.keystead.dev"]))
    assert quiet.json()["messages"] == []
