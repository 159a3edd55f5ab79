"""The short road of making a CSR and of reading one: as the long one, byte for byte, and open to nobody else."""

import asyncio
import copy
import io
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from world import BODY, Judge, Tenant, World, make_token, new_database, new_world

from app import accounts, bounds, config, embedded, first_start, metrics, policies, tokens, zones
from app.admission import Memory
from app.limits import RateLimit
from app.model import Account, NamePolicy, Role, Scope, Token, User, Zone

Headers = list[tuple[bytes, bytes]]
Message = dict[str, Any]
# Whole, or as it comes in.
Body = bytes | list[Message]
Outcome = tuple[int, list[int]]
# As long as no test takes, so that nothing is forgotten by itself.
LONG = 3600.0
DEADLINE = 60.0
OPERATOR = first_start.operator()
# In a body: nothing comes any more.
LATE: Message = {}
READ = ("SSL and Certificates Read", "Account: SSL and Certificates Read")
WRITE = ("SSL and Certificates Write", "Account: SSL and Certificates Write")
# Nothing is to be said of it.
FIELDS: dict[str, Any] = {**BODY, "common_name": "www.a.dev", "sans": ["www.a.dev", "*.a.dev"]}
# What differs between two answers to the same request.
CHANGING = {b"x-request-id", b"cf-ray", b"ratelimit", b"date"}
# And of two CSRs, of which one may be a byte longer.
OWN = ("id", "created_at", "csr")
OK: Outcome = (200, [])
CREATED: Outcome = (201, [])
FULL: Outcome = (403, [1403])
OFF: Outcome = (403, [1404])
INVALID: Outcome = (403, [9109])
UNKNOWN: Outcome = (404, [1419])
NOWHERE: Outcome = (404, [7003])
NO_ID: Outcome = (400, [1418])
OTHER_BODY: Outcome = (409, [1456])


class Heard(msgspec.Struct):
    """An answer, and whether the framework was left out of it."""

    status: int
    headers: Headers
    body: bytes
    short: bool

    def header(self, name: str) -> str | None:
        return next((v.decode() for k, v in self.headers if k.lower() == name.encode()), None)

    @property
    def codes(self) -> list[int]:
        """The codes of the errors, or of the messages where there are none."""
        told = json.loads(self.body)
        return [item["code"] for item in told["errors"] or told["messages"]]

    @property
    def outcome(self) -> Outcome:
        return self.status, self.codes

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["result"]
        return found

    @property
    def again(self) -> bytes:
        """The body as whoever asks again gets it."""
        return self.body.replace((self.header("x-request-id") or "").encode(), b"its own")

    @property
    def same(self) -> tuple[int, Headers, list[bytes], bytes]:
        """What must not depend on the road."""
        body, changing = self.again, CHANGING
        if self.status == 201:
            assert self.header("content-length") == str(len(self.body))
            changing = changing | {b"content-length"}
            for name in OWN:
                body = body.replace(msgspec.json.encode(self.result[name]), b"its own")
        kept = sorted((k.lower(), v) for k, v in self.headers if k.lower() not in changing)
        return self.status, kept, sorted(k.lower() for k, _ in self.headers), body

    @property
    def left(self) -> int:
        """How many requests the rate limit leaves."""
        found = re.fullmatch(r'"default";r=([0-9]+);t=[0-9]+', self.header("ratelimit") or "")
        assert found, self.headers
        return int(found[1])


class Framework:
    """The framework behind the edge, with a note of the requests that came to it."""

    def __init__(self, litestar: Any) -> None:
        self._litestar = litestar
        self.state = litestar.state
        self.asked: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.asked.add(scope["state"]["visit"].request_id)
        await self._litestar(scope, receive, send)


class Roads:
    """Both ways into one application: as it was made, and through an edge that has no short road."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.framework = Framework(world.app._app)
        world.app._app = self.framework
        self.long = copy.copy(world.app)
        self.long._short_road = None
        self._judge = Judge(world.settings.public_url)

    @property
    def memory(self) -> Memory:
        found: Memory = self.framework.state.house.memory
        return found

    def forget(self) -> None:
        for rows in (self.memory._callers, self.memory._scopes, self.memory._passes):
            rows._rows.clear()

    async def ask(
        self,
        target: str | bytes,
        headers: Headers,
        method: str = "GET",
        *,
        long: bool = False,
        body: Body = b"",
        client: str = "127.0.0.1",
    ) -> Heard:
        raw, _, query = (target.encode() if isinstance(target, str) else target).partition(b"?")
        sent: list[Any] = []
        unread = iter(pieces(body) if isinstance(body, bytes) else body)

        async def receive() -> Any:
            message = next(unread, {"type": "http.disconnect"})
            if message is LATE:
                await asyncio.sleep(DEADLINE)
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": (client, 4711),
            "server": ("127.0.0.1", 8787),
        }
        await (self.long if long else self.world.app)(scope, receive, send)
        start, *bodies = sent
        answered = b"".join(message.get("body", b"") for message in bodies)
        heard = Heard(start["status"], list(start["headers"]), answered, short=False)
        heard.short = heard.header("x-request-id") not in self.framework.asked
        self.world.seen.append(f"{heard.headers}{answered.decode('latin-1')}")
        return heard

    async def both(
        self, target: str | bytes, headers: Headers, method: str = "GET", *, judged: bool = True, body: Body = b""
    ) -> Heard:
        """The answer of the application as it was made, which was found to be the same on the long road."""
        return (await self.two(target, headers, method, judged=judged, body=body))[0]

    async def two(
        self, target: str | bytes, headers: Headers, method: str, *, judged: bool = True, body: Body
    ) -> tuple[Heard, Heard]:
        """As `both`, with the answer of the long road."""
        heard = await self.ask(target, headers, method, body=body)
        other = await self.ask(target, headers, method, long=True, body=body)
        assert not other.short
        assert heard.same == other.same, (method, target)
        if judged:
            for each in (heard, other):
                self._held_to_the_contract(each, target, method)
        return heard, other

    async def post(self, path: str, headers: Headers, body: Body | None = None, *, long: bool = False) -> Heard:
        return await self.ask(path, headers, "POST", long=long, body=wanted() if body is None else body)

    async def post_both(self, path: str, headers: Headers) -> Heard:
        return await self.both(path, headers, "POST", body=wanted())

    def _held_to_the_contract(self, heard: Heard, target: str | bytes, method: str) -> None:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=target.encode() if isinstance(target, str) else target)
        request = httpx.Request(method, url)
        self._judge(httpx.Response(heard.status, headers=heard.headers, content=heard.body, request=request))

    async def warm(self, path: str, headers: Headers) -> None:
        """Let this caller through to this list, so that it is remembered."""
        assert not (await self.ask(path, headers)).short

    async def until_short(self, target: str, headers: Headers, method: str = "GET", body: bytes = b"") -> Heard:
        """Ask until the framework was left out, as it must be for a caller who asks twice within a second."""
        async with asyncio.timeout(DEADLINE):
            while not (heard := await self.ask(target, headers, method, body=body)).short:
                pass
        return heard

    async def until(self, target: str, headers: Headers, status: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while (await self.ask(target, headers)).status != status:
            assert time.monotonic() < deadline, target
            await asyncio.sleep(0.01)


def bearer(value: str) -> Headers:
    return [(b"authorization", f"Bearer {value}".encode())]


def pair(email: str, key: str) -> Headers:
    return [(b"x-auth-email", email.encode()), (b"x-auth-key", key.encode())]


def accept(*values: str) -> Headers:
    return [(b"accept", value.encode()) for value in values]


def key(value: str) -> Headers:
    return [(b"idempotency-key", value.encode())]


def wanted(**fields: Any) -> bytes:
    """A body that asks for a CSR."""
    return json.dumps({**FIELDS, **fields}).encode()


def pieces(*parts: bytes, cut: bool = False) -> list[Message]:
    """A body that comes in so; `cut` when the client goes before the end of it."""
    return [
        {"type": "http.request", "body": part, "more_body": cut or number < len(parts)}
        for number, part in enumerate(parts, 1)
    ]


@pytest.fixture(scope="module")
async def roads(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Roads]:
    """One world that forgets nothing by itself, for the tests that change nothing which others see."""
    folder = tmp_path_factory.mktemp("roads")
    async with new_database(cluster) as url, new_world(url, folder, remembered=LONG) as world:
        yield Roads(world)


@pytest.fixture(scope="module")
async def ids(roads: Roads) -> dict[str, str]:
    """A CSR of A's account, one of A's zone and one of B's account, and an old one of A's account."""
    world = roads.world
    made = {
        "account": (await world.create(path=world.a.account_path, name="of the account"))["id"],
        "zone": (await world.create(path=world.a.zone_path, organizational_unit="of the zone"))["id"],
        "b": (await world.create(world.b))["id"],
        "old": (await world.create())["id"],
    }
    sql = "UPDATE custom_csrs SET created_at = now() - interval '10 years' WHERE id = $1"
    await world.database.execute(sql, UUID(made["old"]))
    for path in world.a.paths:
        for value in (world.a.token, world.a.read_token):
            await roads.warm(path, bearer(value))
    return made


class Asked(msgspec.Struct):
    """A request, how it is answered, and whether the framework is left out."""

    name: str
    target: str
    headers: Headers
    outcome: tuple[int, list[int]]
    short: bool
    method: str = "GET"
    body: Body = b""


def _paths(path: str, csr_id: str, me: Headers) -> list[Asked]:
    """The ways to write a path."""
    here, absent = f"{path}/{csr_id}", str(uuid4())
    escaped = "".join(f"%{ord(c):02x}" for c in csr_id)
    return [
        Asked("there", here, me, OK, short=True),
        Asked("not there", f"{path}/{absent}", me, UNKNOWN, short=True),
        Asked("upper case", f"{path}/{csr_id.upper()}", me, OK, short=True),
        Asked("upper case and not there", f"{path}/{absent.upper()}", me, UNKNOWN, short=True),
        Asked("a trailing slash", f"{here}/", me, OK, short=True),
        Asked("two trailing slashes", f"{here}//", me, NOWHERE, short=False),
        Asked("an empty segment", f"{path}//{csr_id}", me, NOWHERE, short=False),
        Asked("escapes", f"{path}/{escaped}", me, OK, short=True),
        Asked("an escaped word", here.replace("custom_csrs", "c%75stom%5Fcsrs"), me, OK, short=True),
        Asked("escaped twice", f"{path}/{escaped}".replace("%", "%25"), me, NO_ID, short=False),
        Asked("an escaped slash", f"{path}%2F{csr_id}", me, NOWHERE, short=False),
        Asked("an escaped slash at the end", f"{here}%2F", me, NOWHERE, short=False),
        Asked("an escaped zero", f"{here}%00", me, NOWHERE, short=False),
        Asked("an escape that is none", f"{here}%zz", me, NOWHERE, short=False),
        Asked("one more segment", f"{here}/x", me, NOWHERE, short=False),
        Asked("no UUID", f"{path}/x", me, NO_ID, short=False),
        Asked("no hyphens", f"{path}/{csr_id.replace('-', '')}", me, NO_ID, short=False),
        Asked("hyphens elsewhere", f"{path}/{csr_id[1:]}-", me, NO_ID, short=False),
        Asked("36 hyphens", f"{path}/{'-' * 36}", me, NO_ID, short=False),
        Asked("braces", f"{path}/{{{csr_id}}}", me, NO_ID, short=False),
        Asked("a line break", f"{here}%0A", me, NO_ID, short=False),
        Asked("wide digits", f"{path}/{quote(chr(0xFF11))}{csr_id[1:]}", me, NO_ID, short=False),
        Asked("the scope in upper case", here.replace(path.split("/")[4], "A" * 32), me, NOWHERE, short=False),
        Asked("another word", here.replace("custom_csrs", "custom_csr"), me, NOWHERE, short=False),
        Asked("a query", f"{here}?page=0&page=0&x=%zz", me, OK, short=True),
        Asked("the list", path, me, OK, short=False),
    ]


def _headers(world: World, here: str, me: Headers) -> list[Asked]:
    """The ways to say who asks, and what for."""
    theirs, stranger = bearer(world.b.token), bearer("x" * 40)
    user, bad_user = pair(world.a.email, world.a.key), pair(world.a.email, "0" * 37)
    value = world.a.token.encode()

    def says(raw: bytes) -> Headers:
        return [(b"authorization", raw)]

    def wanting(*values: str, short: bool = False) -> Asked:
        return Asked(f"accept {values}", here, [*me, *accept(*values)], OK, short=short)

    return [
        wanting("*/*", short=True),
        wanting("application/json", short=True),
        wanting("application/json", "*/*", short=True),
        wanting("application/json, text/plain;q=0.5"),
        wanting("APPLICATION/JSON"),
        wanting("application/json;q=0"),
        wanting("*/*;q=0"),
        wanting("text/html"),
        wanting(""),
        wanting("application/x-pem-file;q=0.1, application/json"),
        wanting("application/x-pem-file;q=0"),
        Asked("another method in a header", here, [*me, (b"x-http-method-override", b"DELETE")], OK, short=True),
        Asked("a host that is none", here, [*me, (b"host", b"a b\xff")], OK, short=True),
        Asked("from elsewhere", here, [*me, (b"x-forwarded-for", b"192.0.2.1")], OK, short=True),
        Asked("both schemes", here, [*me, *user], OK, short=True),
        Asked("both schemes, the pair first", here, [*user, *me], OK, short=True),
        Asked("both schemes, a bad pair", here, [*bad_user, *me], OK, short=True),
        Asked("both schemes, a bad token", here, [*stranger, *user], INVALID, short=False),
        Asked("a pair", here, user, OK, short=False),
        Asked("a bad pair", here, bad_user, (400, [9103]), short=False),
        Asked("nobody", here, [], (400, [9106]), short=False),
        Asked("a stranger", here, stranger, INVALID, short=False),
        Asked("another tenant", here, theirs, INVALID, short=False),
        Asked("twice", here, [*me, *me], OK, short=False),
        Asked("bearer", here, says(b"bearer " + value), OK, short=False),
        Asked("BEARER", here, says(b"BEARER " + value), OK, short=False),
        Asked("two spaces", here, says(b"Bearer  " + value), (400, [6003]), short=False),
        Asked("a space behind", here, says(b"Bearer " + value + b" "), (400, [6003]), short=False),
        Asked("a tab", here, says(b"Bearer\t" + value), (400, [6003]), short=False),
        Asked("no scheme", here, says(value), (400, [6003]), short=False),
        Asked("no token", here, says(b"Bearer "), (400, [6003]), short=False),
        Asked("one letter less", here, says(b"Bearer " + value[:-1]), INVALID, short=False),
        Asked("bytes", here, says(b"Bearer " + b"\xff" * 40), (400, [6003]), short=False),
    ]


@pytest.mark.parametrize("scope", ["account", "zone"])
async def test_both_roads_answer_alike(roads: Roads, ids: dict[str, str], scope: str) -> None:
    """However a request is written, status, headers and body do not depend on the road, and most take the short one."""
    world = roads.world
    path = world.a.account_path if scope == "account" else world.a.zone_path
    me, here = bearer(world.a.token), f"{path}/{ids[scope]}"
    other = ids["zone" if scope == "account" else "account"]
    cases = [
        *_paths(path, ids[scope], me),
        *_headers(world, here, me),
        Asked("an Idempotency-Key", here, [*me, *key("k")], OK, short=True),
        Asked("a bad Idempotency-Key", here, [*me, *key("\x01")], OK, short=True),
        Asked("a body", here, [*me, (b"content-length", b"1")], OK, short=True, body=b"{"),
        Asked("whoever may only read", here, bearer(world.a.read_token), OK, short=True),
        Asked("the CSR of another scope", f"{path}/{other}", me, UNKNOWN, short=True),
        Asked("the CSR of another tenant", f"{path}/{ids['b']}", me, UNKNOWN, short=True),
    ]
    for case in cases:
        heard = await roads.both(case.target, case.headers, case.method, body=case.body)
        assert (heard.outcome, heard.short) == (case.outcome, case.short), case.name
        if heard.short:
            assert heard.header("content-length") == str(len(heard.body)), case.name
            assert heard.header("content-type") == "application/json", case.name
    # Two that contradict each other: whichever counts, it is the same one.
    for two in ([*me, *bearer("x" * 40)], [*bearer("x" * 40), *me], [*me, *bearer(world.b.token)]):
        assert not (await roads.both(here, two)).short


def _good(path: str, me: Headers) -> list[Asked]:
    """The ways to ask for a CSR."""

    def post(name: str, body: Body, *advice: int, more: Headers | None = None) -> Asked:
        return Asked(name, path, [*me, *(more or [])], (201, list(advice)), short=True, method="POST", body=body)

    def sized(value: str) -> Headers:
        return [(b"content-length", value.encode())]

    def typed(value: str) -> Asked:
        return post(f"content-type {value}", whole, more=[(b"content-type", value.encode("latin-1"))])

    whole = wanted()
    everything = wanted(
        colour="red",
        common_name="Somebody",
        name="all",
        description="of\nit",
        organizational_unit=" - ",
        sans=["a_b.dev", "A_B.dev", "x.example", "dev"],
    )
    many = ["www.a.dev", *(f"n{number}.a.dev" for number in range(149))]
    return [
        post("as it is", whole),
        post("all optional fields", wanted(name="a name", description="of\nit", organizational_unit="Unit"), 1482),
        post("optional fields that are not set", wanted(name=None, description="", organizational_unit=None)),
        post("fields that nobody knows", wanted(**{"colour": "red", "": 1, "~/": None, "ü": []}), *[1480] * 4),
        post("a field twice", whole[:-1] + b', "name": "the last of them"}'),
        post("a common name that is no SAN", wanted(common_name="Somebody"), 1481),
        post("SANs twice", wanted(sans=["www.a.dev", "WWW.a.dev", "www.a.dev"]), 1483, 1483),
        post("doubtful SANs", wanted(sans=["www.a.dev", "a_b.dev", "x.example", "dev"]), 1484, 1484, 1484),
        post("white space", wanted(locality=" Köln "), 1484),
        post("all that can be said", everything, 1480, 1481, 1482, 1484, 1483, 1484, 1484, 1484),
        post("150 SANs", wanted(sans=many)),
        post("UTF-8", json.dumps({**FIELDS, "organization": "Ä € 鍵"}, ensure_ascii=False).encode()),
        post("a byte order mark", b"\xef\xbb\xbf" + whole),
        post("64 KiB", whole.ljust(64 * 1024)),
        post("pieces", pieces(whole[:1], b"", whole[1:100], whole[100:], b"")),
        post("a length", whole, more=sized(str(len(whole)))),
        post("a length with zeros before it", whole, more=sized(f"000{len(whole)}")),
        post("another length", whole, more=sized("1")),
        post("a length of pieces", pieces(whole[:9], whole[9:]), more=sized(str(len(whole)))),
        *map(typed, ("application/json", "application/json; charset=latin1", "text/plain", "", "\xff")),
        *map(typed, ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded")),
        post("an encoding", whole, more=[(b"content-encoding", b"gzip")]),
        Asked("a trailing slash", f"{path}/", me, CREATED, short=True, method="POST", body=whole),
        Asked("an escaped word", path.replace("csrs", "c%73rs"), me, CREATED, short=True, method="POST", body=whole),
        Asked("a query", f"{path}?name=x&name=y", me, CREATED, short=True, method="POST", body=whole),
    ]


def _bad(path: str, me: Headers) -> list[Asked]:
    """The ways to ask for a CSR that is not made."""

    def refused(name: str, body: Body, *codes: int, status: int = 400, more: Headers | None = None) -> Asked:
        return Asked(name, path, [*me, *(more or [])], (status, list(codes)), short=True, method="POST", body=body)

    def keyed(*values: bytes) -> Asked:
        more = [(b"idempotency-key", value) for value in values]
        return refused(f"Idempotency-Key {values!r}", wanted(), 1456, more=more)

    whole = wanted()
    wrong = wanted(**{name: [] for name in ("country", "locality", "common_name", "name", "key_type")}, sans={})
    sans = wanted(sans=["-a.dev", "ä.dev", "*.com", 1, ""])
    too_long = wanted(common_name="x" * 65, locality="x" * 129, name="x" * 256, description="x" * 1025)
    return [
        refused("nothing", b"", 1400),
        refused("a part", whole[:-1], 1400),
        refused("two", whole + b"{}", 1400),
        refused("a list", b"[]", 1400),
        refused("null", b"null", 1400),
        refused("NaN", wanted(x=float("nan")), 1400),
        refused("nested deeply", b"[" * 30_000, 1400),
        refused("not UTF-8", whole.replace(b"www", b"w\xff"), 1400),
        refused("a form", b"common_name=www.a.dev", 1400),
        refused("nothing in it", b"{}", 1405, 1406, 1407, 1408, 1409, 1411),
        refused("wrong types", wrong, *[1453] * 6),
        refused("bad SANs", sans, 1412, 1412, 1413, 1415, 1453),
        refused("151 SANs", wanted(sans=["www.a.dev"] * 151), 1452),
        refused("too long", too_long, 1410, 1451, 1451, 1451),
        refused("control characters", wanted(organization="a\0b", name="a\nb", state=" "), 1453, 1453, 1453),
        refused("another country", wanted(country="us"), 1450),
        refused("another kind of key", wanted(key_type="P256V1"), 1417),
        refused("a byte more than 64 KiB", whole.ljust(64 * 1024 + 1), 1454, status=413),
        refused("too much in pieces", pieces(*[b" " * 30_000] * 3), 1454, status=413),
        refused("too great a length", whole, 1454, status=413, more=[(b"content-length", b"65537")]),
        refused("no end of a length", whole, 1454, status=413, more=[(b"content-length", b"9" * 400)]),
        refused("cut off", pieces(whole[:50], cut=True), 1400),
        refused("cut off before it began", pieces(cut=True), 1400),
        refused("cut off before its end was told", pieces(whole, cut=True), 1400),
        refused("cut off, with a length", pieces(whole, cut=True), 1400, more=[(b"content-length", b"999")]),
        # The body is looked at first.
        refused("cut off, with a bad key", pieces(whole, cut=True), 1400, more=key("\x01")),
        refused("a bad body and a bad key", b"{}", 1456, more=key("\x01")),
        *(keyed(value) for value in (b"", b" ", b" k", b"k ", b"a\tb", b"\x7f", b"\xff", b"k" * 256)),
        *(keyed(*values) for values in ((b"k", b"k"), (b"k", b"other"), (b"", b"k"))),
        Asked("an escaped slash", f"{path}%2F", me, NOWHERE, short=False, method="POST", body=whole),
        Asked("two slashes", f"{path}//", me, NOWHERE, short=False, method="POST", body=whole),
        Asked("an escape that is none", f"{path}%zz", me, NOWHERE, short=False, method="POST", body=whole),
    ]


@pytest.mark.parametrize("scope", ["account", "zone"])
async def test_both_roads_make_alike(roads: Roads, ids: dict[str, str], scope: str) -> None:
    """However a CSR is asked for, both roads make one with a key of its own, or refuse it in the same words."""
    world, me = roads.world, bearer(roads.world.a.token)
    path = world.a.account_path if scope == "account" else world.a.zone_path
    assert (await roads.post(path, me)).short
    held = await _held(world)
    for case in _bad(path, me):
        heard = await roads.both(case.target, case.headers, "POST", body=case.body)
        assert (heard.outcome, heard.short) == (case.outcome, case.short), case.name
    assert await _held(world) == held
    # What the headers say of the caller has nothing to do with the path.
    cases = [*_good(path, me), *(_posted(case) for case in _headers(world, path, me) if scope == "account")]
    for case in cases:
        made = await roads.two(case.target, case.headers, "POST", body=case.body)
        assert (made[0].outcome, made[0].short) == (case.outcome, case.short), case.name
        if case.outcome[0] == 201:
            await _made_alike(world, *made)
    count = 2 * sum(case.outcome[0] == 201 for case in cases)
    assert [await _held(world)] == [[each + count for each in held]]


def _posted(case: Asked) -> Asked:
    outcome = CREATED if case.outcome == OK else case.outcome
    return msgspec.structs.replace(case, outcome=outcome, method="POST", body=wanted())


async def _held(world: World) -> list[int]:
    """How many CSRs and keys there are, and how many were made according to the audit log."""
    counts = []
    for source in ("custom_csrs", "private_keys", "audit_log WHERE action = 'create' AND resource_type = 'custom_csr'"):
        [row] = await world.database.fetch(f"SELECT count(*) AS n FROM {source}")
        counts.append(row["n"])
    return counts


async def _made_alike(world: World, *made: Heard) -> None:
    """Each is for a key of its own, which can be opened, and the database says the same of all of them."""
    public, said = set(), []
    for each in made:
        csr_id = UUID(each.result["id"])
        request = x509.load_pem_x509_csr(each.result["csr"].encode())
        own_key = (await world.key_of(str(csr_id))).public_key()
        assert request.is_signature_valid
        assert request.public_key() == own_key
        public.add(own_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        [stored] = await world.database.fetch("SELECT * FROM custom_csrs WHERE id = $1", csr_id)
        assert stored["csr"] == each.result["csr"]
        assert stored["created_at"] == datetime.fromisoformat(each.result["created_at"])
        [audited] = await world.database.fetch("SELECT * FROM audit_log WHERE resource_id = $1", csr_id)
        assert audited["request_id"] == each.header("x-request-id")
        assert (audited["status"], audited["method"], audited["result"]) == (201, "POST", "success")
        own = {"id", "key_id", "csr", "created_at", "resource_id", "at", "request_id"}
        rows = [{name: value for name, value in row.items() if name not in own} for row in (stored, audited)]
        said.append((rows, request.subject, list(request.extensions)))
    assert len(public) == len(made)
    assert all(each == said[0] for each in said)


@pytest.mark.parametrize("lengths", [("x",), ("",), ("65537", "10")], ids=["a word", "nothing", "two"])
async def test_a_length_that_is_none_is_the_same_on_both_roads(
    roads: Roads, ids: dict[str, str], lengths: Sequence[str]
) -> None:
    """A Content-Length that no server passes on is judged alike all the same, and so are two."""
    headers = [*bearer(roads.world.a.token), *((b"content-length", value.encode()) for value in lengths)]
    await roads.both(roads.world.a.account_path, headers, "POST", body=wanted())


async def test_a_last_piece_needs_not_say_so(roads: Roads, ids: dict[str, str]) -> None:
    """A message without more_body is the last, as ASGI has it, on both roads."""
    body = [{"type": "http.request", "body": wanted()}]
    heard = await roads.both(roads.world.a.account_path, bearer(roads.world.a.token), "POST", body=body)
    assert heard.outcome == CREATED


async def test_a_body_that_does_not_come_is_a_400_on_both_roads(
    roads: Roads, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that stays away is given up, in the same words on both roads, and nothing is made."""
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.05)
    held = await _held(roads.world)
    me, path = bearer(roads.world.a.token), roads.world.a.account_path
    heard = await roads.both(path, me, "POST", body=[*pieces(wanted(), cut=True), LATE])
    assert (heard.outcome, heard.short) == ((400, [1400]), True)
    assert b"did not arrive within" in heard.body
    assert await _held(roads.world) == held


async def test_a_repeat_is_the_same_csr_over_either_road(roads: Roads, ids: dict[str, str]) -> None:
    """One Idempotency-Key makes one CSR whichever roads its requests take, and another body is a conflict on both."""
    world = roads.world
    _, second = await new_token(world)
    for path in world.a.paths:
        for roads_taken in ((False, False, True), (True, False, True)):
            held, name = await _held(world), uuid4().hex
            longest = f"a key {name}".ljust(255, "~")
            once = [*bearer(world.a.token), *key(longest)]
            body = wanted(name=name, colour="red", organizational_unit="Unit")
            first, *others = [await roads.post(path, once, body, long=long) for long in roads_taken]
            assert [each.short for each in (first, *others)] == [not long for long in roads_taken]
            assert first.outcome == (201, [1480, 1482])
            assert [each.again for each in others] == [first.again] * 2
            # However the path is written.
            heard = await roads.both(f"{path.replace('csrs', 'c%73rs')}/", once, "POST", body=body)
            assert (heard.again, heard.short) == (first.again, True)
            for other in (body + b" ", wanted(), b"", b"{}", pieces(b"[", b"]")):
                heard = await roads.both(path, once, "POST", body=other)
                assert (heard.outcome, heard.short) == (OTHER_BODY, True)
                assert heard.header("x-should-retry") == "false"
            assert await _held(world) == [each + 1 for each in held]
            # To somebody else, and elsewhere, the same key is another one.
            for path_of, token in ((world.a.paths[path == world.a.paths[0]], world.a.token), (path, second)):
                own = [*bearer(token), *key(longest)]
                heard = await roads.both(path_of, own, "POST", body=body)
                assert heard.status == 201
                assert heard.result["id"] != first.result["id"]
            assert (await world.http.delete(f"{path}/{first.result['id']}", headers=world.a.bearer)).status_code == 200
            heard = await roads.both(path, once, "POST", body=body)
            assert (heard.outcome, heard.short) == (UNKNOWN, True)


async def test_repeats_at_once_over_both_roads_make_one(roads: Roads, ids: dict[str, str]) -> None:
    """Of many requests with one key at the same moment, on both roads, one makes the CSR that all are told of."""
    held, path = await _held(roads.world), roads.world.a.zone_path
    once = [*bearer(roads.world.a.token), *key(uuid4().hex)]
    heard = await asyncio.gather(*(roads.post(path, once, long=bool(number % 2)) for number in range(16)))
    assert [each.short for each in heard] == [True, False] * 8
    assert {(each.status, each.result["id"]) for each in heard} == {(201, heard[0].result["id"])}
    assert await _held(roads.world) == [each + 1 for each in held]


async def test_the_audit_log_does_not_tell_the_road(roads: Roads, ids: dict[str, str]) -> None:
    """The row of a CSR is the same but for ids and time, whatever request it was that the pass came from."""
    world = roads.world
    user = await accounts.create_user(world.database, OPERATOR, f"{uuid4().hex}@example.com")
    await accounts.set_membership(world.database, OPERATOR, user, world.a.account, Role.ADMINISTRATOR)
    of_user, of_account = await new_token(world, user=user), await new_token(world)
    agent, client = [(b"user-agent", b"somebody\xff's/1.0")], "2001:db8::7"
    for path, zone_id in zip(world.a.paths, (None, world.a.zone.id), strict=True):
        for token, value in (of_user, of_account):
            me = bearer(value)
            # Another method, path, status and client.
            warm = await roads.ask(f"{path}/{uuid4()}", [*me, (b"user-agent", b"warm")], "DELETE", body=b"{}")
            assert (warm.outcome, warm.short) == (UNKNOWN, False)
            made = [
                await roads.ask(f"{path}/?q", [*me, *agent], "POST", long=long, body=wanted(), client=client)
                for long in (False, True)
            ]
            assert [(each.outcome, each.short) for each in made] == [(CREATED, True), (CREATED, False)]
            await _made_alike(world, *made)
            [row] = await world.database.fetch(
                "SELECT * FROM audit_log WHERE request_id = $1", made[0].header("x-request-id")
            )
            told = (row["path"], row["user_agent"], str(row["address"]), row["zone_id"], row["resource_id"])
            assert told == (path, "somebodyÿ's/1.0", client, zone_id, UUID(made[0].result["id"]))
            who = (row["actor_id"], row["actor_name"], row["actor_email"], row["user_id"])
            assert who == (token.id, token.name, user.email if token.user_id else None, token.user_id)


async def test_head_pem_and_der_take_the_long_road(roads: Roads, ids: dict[str, str]) -> None:
    """HEAD has the headers of GET and no body; who wants PEM or DER gets it, also right after JSON was given."""
    world = roads.world
    for path, csr_id in zip(world.a.paths, (ids["account"], ids["zone"]), strict=True):
        me, here = bearer(world.a.token), f"{path}/{csr_id}"
        get, head = await roads.both(here, me), await roads.both(here, me, "HEAD")
        assert get.short
        assert not head.short
        assert head.same[:3] == get.same[:3]
        assert (head.body, bool(get.body)) == (b"", True)
        absent = await roads.both(f"{path}/{uuid4()}", me, "HEAD")
        assert (absent.status, absent.body, absent.short) == (404, b"", False)
        pem: str = json.loads(get.body)["result"]["csr"]
        for kind in ("application/x-pem-file", "text/html, application/x-pem-file;q=0.2", "application/json;q=0.1"):
            heard = await roads.both(here, [*me, *accept(kind, "application/x-pem-file;q=0.15")])
            assert (heard.body.decode(), heard.short) == (pem, False), kind
        heard = await roads.both(here, [*me, *accept("*/*;q=0.5", "application/pkcs10")])
        assert (heard.header("content-type"), heard.short) == ("application/pkcs10", False)
        assert heard.header("content-disposition") == f'attachment; filename="{csr_id}.csr"'
        assert (await roads.post(path, me)).short
        for kind in ("application/x-pem-file", "application/pkcs10"):
            heard = await roads.ask(path, [*me, *accept("*/*;q=0.5", kind)], "POST", body=wanted())
            assert (heard.status, heard.header("content-type"), heard.short) == (201, kind, False)
            assert re.fullmatch(rf"{path}/[0-9a-f-]{{36}}", heard.header("location") or "")


async def test_the_advice_on_an_old_key_is_given_on_both_roads(roads: Roads, ids: dict[str, str]) -> None:
    """A key older than the account's limit is told of, as 1485 with its age in days."""
    heard = await roads.both(f"{roads.world.a.account_path}/{ids['old']}", bearer(roads.world.a.token))
    assert heard.short
    assert heard.outcome == (200, [1485])
    assert re.search(rb"the key is 36[0-9]{2} days old", heard.body, re.IGNORECASE)


async def test_each_pass_is_for_one_access(roads: Roads, ids: dict[str, str]) -> None:
    """Whoever was let through to read is let through to nothing else, nor whoever was to write, whatever the method."""
    world = roads.world
    methods = ("POST", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "Get", "GET ", "post", "POST ", "BREW")
    reads, both = bearer(world.a.read_token), bearer(world.a.token)
    for path, csr_id in zip(world.a.paths, (ids["account"], ids["zone"]), strict=True):
        here = f"{path}/{csr_id}"
        for me in (reads, both):
            assert (await roads.both(here, me)).short
            for target, known in ((here, "GET"), (path, "POST")):
                for method in methods:
                    if method != known:
                        heard = await roads.both(target, me, method, judged=False, body=wanted())
                        assert (heard.status, heard.short) == (405, False), (target, method)
        held = await _held(world)
        heard = await roads.both(here, reads, "DELETE", body=b"{}")
        assert (heard.outcome, heard.short) == (INVALID, False)
        for body in (wanted(), b"{}", pieces(cut=True)):
            heard = await roads.both(path, reads, "POST", body=body)
            assert (heard.outcome, heard.short) == (INVALID, False)
        assert await _held(world) == held
        assert (await roads.both(here, reads)).outcome == OK
        # Who may write may read, and that is asked for once too; who may not read may not write.
        writes = bearer(await make_token(world.database, world.peppers, world.a.account, groups=WRITE))
        assert [(await roads.post(path, writes)).short for _ in range(2)] == [False, True]
        assert [(await roads.ask(here, writes)).short for _ in range(2)] == [False, True]
        for denied, outcomes in ((WRITE, (OK, INVALID)), (READ, (INVALID, INVALID))):
            me = bearer((await new_token(world, policies=_denied(world.a, denied)))[1])
            for _ in range(2):
                heard, other = await roads.both(here, me), await roads.post_both(path, me)
                assert (heard.outcome, other.outcome, other.short) == (*outcomes, False)


def _denied(tenant: Tenant, groups: Sequence[str]) -> str:
    """Policies that allow all and deny these."""
    allowed = json.loads(policies.write(tenant.account, policies.default_groups()))
    named = json.loads(policies.write(tenant.account, tuple(policies.find_group(name) for name in groups)))
    return json.dumps([*allowed, *({**policy, "effect": "deny"} for policy in named)])


async def test_a_get_is_not_audited_and_each_request_is_counted(roads: Roads, ids: dict[str, str]) -> None:
    """A GET leaves no row in the audit log, and each request is one of its route in the metrics, on either road."""
    world = roads.world
    me, sql = bearer(world.a.token), "SELECT count(*) AS n FROM audit_log"
    before = await world.database.fetch(sql)
    posts: list[tuple[str, str, str, bytes, int]] = []
    for path, word, csr_id in zip(world.a.paths, ("account", "zone"), (ids["account"], ids["zone"]), strict=True):
        of_list = f"/client/v4/{word}s/{{{word}_id}}/custom_csrs"
        posts += [("POST", of_list, path, wanted(), 201), ("POST", of_list, path, b"", 400)]
        for csr, status in ((csr_id, 200), (str(uuid4()), 404)):
            await _counted_once(roads, me, "GET", f"{of_list}/{{custom_csr_id}}", f"{path}/{csr}", b"", status)
    assert await world.database.fetch(sql) == before
    for post in posts:
        await _counted_once(roads, me, *post)


async def _counted_once(
    roads: Roads, me: Headers, method: str, template: str, target: str, body: bytes, status: int
) -> None:
    for long in (False, True):
        counted = _counted(template, status, method)
        heard = await roads.ask(target, me, method, long=long, body=body)
        assert (heard.status, heard.short) == (status, not long)
        assert _counted(template, status, method) == counted + 1


def _counted(template: str, status: int, method: str) -> float:
    text = metrics.text().decode()
    labels = f'dialect="cloudflare",method="{method}",route="{template}",status="{status}"'
    found = re.search(rf"^keystead_requests_total\{{{re.escape(labels)}\}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_the_log_does_not_tell_the_road(database_url: str, tmp_path: Path) -> None:
    """The line of a request has the same fields and values on both roads, and its own request id."""
    async with new_world(database_url, tmp_path, remembered=LONG, log=config.LogFormat.JSON) as world:
        world.app._log.stream = written = io.StringIO()
        roads, me = Roads(world), bearer(world.a.token)
        for path, word in zip(world.a.paths, ("account", "zone"), strict=True):
            made = await world.create(path=path)
            await roads.warm(path, me)
            of_list = f"/client/v4/{word}s/{{{word}_id}}/custom_csrs"
            of_one = f"{of_list}/{{custom_csr_id}}"
            asked: list[tuple[str, str, str, bytes]] = [
                *(("GET", f"{path}/{tail}", of_one, b"") for tail in (made["id"], f"{made['id']}/", str(uuid4()))),
                *(("POST", path, of_list, body) for body in (wanted(), b"{}", b" " * 70_000)),
            ]
            for method, target, route, body in asked:
                heard = [await roads.ask(target, me, method, long=long, body=body) for long in (False, True)]
                assert [each.short for each in heard] == [True, False]
                # Lines are written at the end of a turn of the loop.
                await asyncio.sleep(0)
                lines = [json.loads(line) for line in written.getvalue().splitlines()[-2:]]
                for line, each in zip(lines, heard, strict=True):
                    assert line["request_id"] == each.header("x-request-id")
                    assert (line["method"], line["route"]) == (method, route)
                    assert (line["event"], line["status"], line["address"]) == ("request", each.status, "127.0.0.1")
                    assert str(UUID(line["caller"])) == line["caller"]
                    for name in ("request_id", "ms", "timestamp"):
                        assert line.pop(name) is not None
                assert lines[0] == lines[1]
        assert world.a.token not in written.getvalue()


async def test_each_request_costs_one_of_the_limit_on_either_road(database_url: str, tmp_path: Path) -> None:
    """R falls by exactly one a request, also for one that fails; at its end both are 429, which costs nothing."""
    # One comes back in six minutes.
    limit = RateLimit(30, 3 * 3600)
    async with new_world(database_url, tmp_path, rate_limit=limit, remembered=LONG) as world:
        roads, me = Roads(world), bearer(world.a.token)
        made = [f"{path}/{(await world.create(path=path))['id']}" for path in world.a.paths]
        for path in world.a.paths:
            await roads.warm(path, me)
        asked: list[tuple[str, str, bytes, int]] = [
            *(("GET", target, b"", 200) for target in made),
            *(("POST", path, wanted(), 201) for path in world.a.paths),
            ("GET", f"{world.a.account_path}/{uuid4()}", b"", 404),
            ("POST", world.a.zone_path, b"", 400),
        ]
        left, count = None, 0
        while left != 0:
            (method, target, body, status), long = asked[count % 6], bool(count // 6 % 2)
            heard = await roads.ask(target, me, method, long=long, body=body)
            assert (heard.status, heard.short) == (status, not long)
            assert left is None or heard.left == left - 1
            assert heard.header("ratelimit-policy") == '"default";q=30;w=10800'
            left, count = heard.left, count + 1
        assert count == 30 - 4
        held = await _held(world)
        for method, target, body, _ in asked:
            heard = await roads.both(target, me, method, body=body)
            assert (heard.outcome, heard.left, heard.short) == ((429, [971]), 0, False)
            assert heard.header("retry-after") == "60"
        assert await _held(world) == held
        # Another caller has a limit of its own.
        await roads.warm(world.a.account_path, bearer(world.a.read_token))
        heard = await roads.ask(made[0], bearer(world.a.read_token))
        assert (heard.status, heard.left, heard.short) == (200, 28, True)


async def test_csrs_that_are_switched_off_are_1404_on_both_roads(database_url: str, tmp_path: Path) -> None:
    """A scope whose CSRs are switched off answers 403/1404 before it says whether there is one; the other is served."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        roads, me = Roads(world), bearer(world.a.token)
        made = {path: (await world.create(path=path))["id"] for path in world.a.paths}
        off, on = zones.Changes(csrs_enabled=False), zones.Changes(csrs_enabled=True)
        for changes, outcome, short in ((off, OFF, False), (on, OK, True)):
            await zones.set_(world.database, OPERATOR, world.a.zone, changes)
            roads.forget()
            for path in world.a.paths:
                await roads.warm(path, me)
            for tail in (made[world.a.zone_path], str(uuid4()).upper()):
                heard = await roads.both(f"{world.a.zone_path}/{tail}", me)
                expected = UNKNOWN if short and tail.isupper() else outcome
                assert (heard.outcome, heard.short) == (expected, short)
            for body in (wanted(), b""):
                await roads.post(world.a.zone_path, me)
                heard = await roads.both(world.a.zone_path, me, "POST", body=body)
                expected = ((400, [1400]) if body == b"" else CREATED) if short else OFF
                assert (heard.outcome, heard.short) == (expected, short)
            assert (await roads.both(f"{world.a.account_path}/{made[world.a.account_path]}", me)).short


async def test_a_deleted_zone_is_the_same_on_both_roads(database_url: str, tmp_path: Path) -> None:
    """While a zone is remembered its CSRs are gone, 404/1419; then so is the zone, 404/7003, and nobody gets a pass."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        roads, me = Roads(world), bearer(world.a.token)
        made = await world.create(path=world.a.zone_path)
        here = f"{world.a.zone_path}/{made['id']}"
        await roads.warm(world.a.zone_path, me)
        assert (await roads.both(here, me)).short
        assert (await world.http.delete(here, headers=world.a.bearer)).status_code == 200
        await zones.delete(world.database, OPERATOR, Scope(world.a.account.id, world.a.zone.id))
        heard = await roads.both(here, me)
        assert (heard.outcome, heard.short) == (UNKNOWN, True)
        for headers in (me, [*me, *key("a key")]):
            heard = await roads.post_both(world.a.zone_path, headers)
            assert (heard.outcome, heard.short) == (NOWHERE, True)
        roads.forget()
        for _ in range(3):
            for heard in (await roads.both(here, me), await roads.post_both(world.a.zone_path, me)):
                assert (heard.outcome, heard.short) == (NOWHERE, False)
            assert (await roads.both(here, bearer(world.b.token))).outcome == INVALID
            assert (await roads.post_both(world.a.zone_path, bearer(world.b.token))).outcome == INVALID
        assert await _held(world) == [0, 0, 1]


async def test_a_quota_holds_over_both_roads(database_url: str, tmp_path: Path) -> None:
    """However many ask at once on both roads, as many are made as the quota allows, and the others are 403/1403."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        roads, me, path = Roads(world), bearer(world.a.token), world.a.zone_path
        await zones.set_(world.database, OPERATOR, world.a.zone, zones.Changes(csr_quota=5))
        first = await roads.post(path, me)
        assert (first.outcome, first.short) == (CREATED, False)
        heard = await asyncio.gather(*(roads.post(path, me, long=bool(number % 2)) for number in range(10)))
        assert [each.short for each in heard] == [True, False] * 5
        assert sorted(each.status for each in heard) == [201] * 4 + [403] * 6
        for headers in (me, [*me, *key("a key")]):
            again = await roads.post_both(path, headers)
            assert (again.outcome, again.short) == (FULL, True)
        # What breaks a rule is told so all the same.
        again = await roads.both(path, me, "POST", body=wanted(country="us"))
        assert (again.outcome, again.short) == ((400, [1450]), True)
        for long in (False, True):
            target = f"{path}/{first.result['id']}"
            assert (await world.http.delete(target, headers=world.a.bearer)).status_code == 200
            first = await roads.post(path, me, long=long)
            assert (first.outcome, first.short) == (CREATED, not long)
        # The other list has none.
        await roads.post(world.a.account_path, me)
        assert (await roads.post_both(world.a.account_path, me)).outcome == CREATED


async def test_the_name_policy_is_that_of_the_account(roads: Roads, ids: dict[str, str]) -> None:
    """A name that only a private account may have is refused a public one on both roads, and is no advice to it."""
    world, slug = roads.world, f"p{uuid4().hex}"
    account = await accounts.create_account(world.database, OPERATOR, slug, "Public")
    changes = accounts.Changes(name_policy=NamePolicy.PUBLIC)
    account = await accounts.set_account(world.database, OPERATOR, account, changes)
    path, me = f"/client/v4/accounts/{account.id.hex}/custom_csrs", bearer((await new_token(world, account))[1])
    await roads.post(path, me)
    names = ["www.a.dev", "x.example", "dev", "example.com", "a_b.dev"]
    for sans, outcome in ((names, (400, [1414, 1415, 1416])), (["www.a.dev", "a_b.dev"], (201, [1484]))):
        heard = await roads.both(path, me, "POST", body=wanted(sans=sans))
        assert (heard.outcome, heard.short) == (outcome, True)


async def test_a_database_that_is_away_is_a_503_on_both_roads(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its database either road answers 503/1501 with Retry-After, and is good again when it is back."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        roads, me, connect = Roads(world), bearer(world.a.token), asyncpg.connect
        made = [f"{path}/{(await world.create(path=path))['id']}" for path in world.a.paths]
        for path in world.a.paths:
            await roads.warm(path, me)

        async def refused(*_: object, **__: object) -> Any:
            raise ConnectionRefusedError

        monkeypatch.setattr(asyncpg, "connect", refused)
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        await world.database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        # Whoever reads finds the connections cut, of which whoever writes would not know what they did.
        gets = [await roads.both(target, me) for target in made]
        posts = [await roads.post_both(path, headers) for path in world.a.paths for headers in (me, [*me, *key("k")])]
        for heard in (*gets, *posts):
            assert (heard.outcome, heard.short) == ((503, [1501]), True)
            assert 1 <= int(heard.header("retry-after") or 0) <= 60
        monkeypatch.setattr(asyncpg, "connect", connect)
        # A connection that was cut may be found to be so only now.
        for target in made:
            await roads.until(target, me, 200)
        for target in made:
            heard = await roads.both(target, me)
            assert (heard.outcome, heard.short) == (OK, True)
        for path in world.a.paths:
            heard = await roads.post_both(path, me)
            assert (heard.outcome, heard.short) == (CREATED, True)
        # Two at the beginning, and what failed made nothing.
        assert await _held(world) == [6, 6, 6]


async def test_what_is_not_foreseen_is_a_500_on_both_roads(database_url: str, tmp_path: Path) -> None:
    """An exception of ours is answered 500/1500 with the request id, and told to the log, whichever road it was on."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        written = io.StringIO()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(written))
        roads, me = Roads(world), bearer(world.a.token)
        made = await world.create()
        await roads.warm(world.a.account_path, me)
        await world.database.execute("ALTER TABLE custom_csrs RENAME TO elsewhere")
        try:
            get = await roads.both(f"{world.a.account_path}/{made['id']}", me)
            post = await roads.post_both(world.a.account_path, me)
        finally:
            await world.database.execute("ALTER TABLE elsewhere RENAME TO custom_csrs")
        for heard in (get, post):
            assert (heard.outcome, heard.short) == ((500, [1500]), True)
            assert "elsewhere" not in heard.body.decode()
        assert written.getvalue().count("unexpected error") == 4
        assert await _held(world) == [1, 1, 1]


# --- who is let through ---


class Changed(msgspec.Struct):
    """The CSR that a caller reads, the change, and the answers to reading it and making one a second later at most."""

    name: str
    target: str
    headers: Headers
    change: Callable[[], Awaitable[Any]]
    after: Outcome = INVALID
    after_post: Outcome = INVALID


async def new_token(world: World, account: Account | None = None, **fields: Any) -> tuple[Token, str]:
    account = account or world.a.account
    text = fields.pop("policies", policies.write(account, policies.default_groups()))
    return await tokens.create(
        world.database, world.peppers, OPERATOR, tokens.NewToken(account, "a token", text, **fields)
    )


async def _over_the_api(world: World, method: str, tail: str, body: Any = None) -> None:
    headers = {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}
    url = f"/client/v4/accounts/{world.a.account.id.hex}/tokens/{tail}"
    answer = await world.http.request(method, url, json=body, headers=headers)
    assert answer.status_code == 200, answer.text


async def _changes(world: World) -> list[Changed]:
    database, account = world.database, world.a.account
    made = await world.create()
    here = f"{world.a.account_path}/{made['id']}"

    def changing(token: Token, **fields: Any) -> Callable[[], Awaitable[Any]]:
        body = {"name": token.name, "policies": json.loads(token.policies), **fields}
        return lambda: _over_the_api(world, "PUT", token.id.hex, body)

    def end(token: Token) -> Awaitable[Any]:
        sql = "UPDATE tokens SET expires_on = now() - interval '1 hour' WHERE id = $1"
        return database.execute(sql, token.id)

    made_tokens = [await new_token(world) for _ in range(11)]
    (rolled, off, gone, revoked, narrowed, denied, elsewhere, ended, late, reads, not_write) = made_tokens
    other = json.loads(policies.write(account, (policies.find_group("Account Settings Read"),)))
    read = json.loads(policies.write(account, (policies.find_group(READ[1]),)))
    deny = [*json.loads(denied[0].policies), {**read[0], "effect": "deny"}]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    member, membership, user_token = await _user_token(world, "member")
    reader, _, reader_token = await _user_token(world, "reader")
    zone, zone_target = await _new_zone(world)
    shut, shut_target = await _new_zone(world)
    full, full_target = await _new_zone(world)
    _, of_full = await new_token(world)
    _, of_shut = await new_token(world)
    _, of_zone = await new_token(world)
    strangers, strangers_token, strangers_target = await _new_account(world)

    def without_csrs() -> Awaitable[Any]:
        return zones.set_(database, OPERATOR, shut, zones.Changes(csrs_enabled=False))

    def without_room() -> Awaitable[Any]:
        return zones.set_(database, OPERATOR, full, zones.Changes(csr_quota=1))

    async def delete_zone() -> None:
        await _delete_all(world, zone_target, world.a.token)
        await zones.delete(database, OPERATOR, Scope(account.id, zone.id))

    async def delete_account() -> None:
        await _delete_all(world, strangers_target, strangers_token)
        await accounts.delete_account(database, OPERATOR, strangers)

    return [
        Changed("rolled", here, bearer(rolled[1]), lambda: _over_the_api(world, "PUT", f"{rolled[0].id.hex}/value")),
        Changed("disabled", here, bearer(off[1]), changing(off[0], status="disabled")),
        Changed("deleted", here, bearer(gone[1]), lambda: _over_the_api(world, "DELETE", gone[0].id.hex)),
        Changed("revoked", here, bearer(revoked[1]), lambda: tokens.revoke(database, OPERATOR, revoked[0])),
        Changed("other policies", here, bearer(narrowed[1]), changing(narrowed[0], policies=other)),
        Changed("denied", here, bearer(denied[1]), changing(denied[0], policies=deny)),
        Changed(
            "bound to an address",
            here,
            bearer(elsewhere[1]),
            changing(elsewhere[0], condition={"request_ip": {"not_in": ["127.0.0.0/8"]}}),
        ),
        Changed("ended", here, bearer(ended[1]), lambda: end(ended[0])),
        Changed("not yet begun", here, bearer(late[1]), changing(late[0], not_before=tomorrow)),
        Changed("may only read", here, bearer(reads[1]), changing(reads[0], policies=read), OK),
        Changed(
            "may not write",
            here,
            bearer(not_write[1]),
            changing(not_write[0], policies=json.loads(_denied(world.a, WRITE))),
            OK,
        ),
        Changed("no member any more", here, bearer(user_token), lambda: membership(member, None)),
        Changed("a member who reads", here, bearer(reader_token), lambda: membership(reader, Role.READ), OK),
        Changed("the zone is deleted", zone_target, bearer(of_zone), delete_zone, NOWHERE, NOWHERE),
        Changed("CSRs are switched off", shut_target, bearer(of_shut), without_csrs, OFF, OFF),
        Changed("the quota is used up", full_target, bearer(of_full), without_room, OK, FULL),
        Changed("the account is deleted", strangers_target, bearer(strangers_token), delete_account),
    ]


async def _delete_all(world: World, target: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    path = target.rpartition("/")[0]
    for each in (await world.http.get(path, headers=headers)).json()["result"]:
        assert (await world.http.delete(f"{path}/{each['id']}", headers=headers)).status_code == 200


async def _user_token(world: World, name: str) -> tuple[User, Callable[[User, Role | None], Awaitable[Any]], str]:
    account = world.a.account
    user = await accounts.create_user(world.database, OPERATOR, f"{name}@example.com")

    def membership(of: User, role: Role | None) -> Awaitable[Any]:
        return accounts.set_membership(world.database, OPERATOR, of, account, role)

    await membership(user, Role.ADMINISTRATOR)
    return user, membership, (await new_token(world, user=user))[1]


async def _new_zone(world: World) -> tuple[Zone, str]:
    zone = await zones.create_in(world.database, OPERATOR, world.a.account, f"z{uuid4().hex}.example.com")
    path = f"/client/v4/zones/{zone.id.hex}/custom_csrs"
    return zone, f"{path}/{(await world.create(path=path))['id']}"


async def _new_account(world: World) -> tuple[Account, str, str]:
    account = await accounts.create_account(world.database, OPERATOR, "doomed", "Doomed")
    _, value = await new_token(world, account)
    path = f"/client/v4/accounts/{account.id.hex}/custom_csrs"
    tenant = msgspec.structs.replace(world.a, account=account, token=value)
    return account, value, f"{path}/{(await world.create(tenant, path))['id']}"


async def test_what_is_taken_away_closes_the_short_road_within_a_second(database_url: str, tmp_path: Path) -> None:
    """Whoever took the short road is refused a second after the change, though they never stopped asking."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        roads = Roads(world)
        await asyncio.gather(*(_closes(roads, case) for case in await _changes(world)))


async def _closes(roads: Roads, case: Changed) -> None:
    calls: list[tuple[str, str, bytes, Outcome]] = [
        ("GET", case.target, b"", case.after),
        ("POST", case.target.rpartition("/")[0], wanted(), case.after_post),
    ]
    for method, target, body, _ in calls:
        assert (await roads.until_short(target, case.headers, method, body)).outcome in (OK, CREATED), case.name
    await case.change()
    changed = time.monotonic()
    while (begun := time.monotonic()) <= changed + 1.0:
        # The long road lets them through anew, on what was remembered before the change.
        for long in (False, True):
            for method, target, body, after in calls:
                heard = await roads.ask(target, case.headers, method, long=long, body=body)
                # A list that is deleted is an empty one while it is remembered.
                assert heard.outcome in (OK, CREATED, after, UNKNOWN), case.name
        await asyncio.sleep(0.1)
    for _ in range(3):
        for method, target, body, after in calls:
            heard = await roads.both(target, case.headers, method, body=body)
            assert heard.outcome == after, (case.name, method, begun - changed)
            assert after in (OK, FULL) or not heard.short, (case.name, method)


async def test_a_deleted_csr_is_gone_at_once(database_url: str, tmp_path: Path) -> None:
    """A CSR is never remembered: right after its deletion, by whomever, it is 404/1419 on the short road too."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        roads, me = Roads(world), bearer(world.a.read_token)
        for path in world.a.paths:
            first, second = [f"{path}/{(await world.create(path=path))['id']}" for _ in range(2)]
            await roads.warm(path, me)
            assert [(await roads.both(each, me)).outcome for each in (first, second)] == [OK, OK]
            assert (await world.http.delete(first, headers=world.a.bearer)).status_code == 200
            heard = await roads.both(first, me)
            assert (heard.outcome, heard.short) == (UNKNOWN, True)
            await world.database.execute("DELETE FROM custom_csrs WHERE id = $1", UUID(second.rpartition("/")[2]))
            heard = await roads.both(second, me)
            assert (heard.outcome, heard.short) == (UNKNOWN, True)


async def test_a_token_with_an_end_or_an_address_never_takes_it(roads: Roads, ids: dict[str, str]) -> None:
    """What has to be judged for each request is, on the long road, however often it was good."""
    world = roads.world
    ends = datetime.now(UTC) + timedelta(days=1)
    here = f"{world.a.account_path}/{ids['account']}"
    cases: list[tuple[dict[str, Any], int, bool]] = [
        ({}, 200, True),
        ({"not_before": datetime.now(UTC) - timedelta(days=1)}, 200, True),
        ({"expires_on": ends}, 200, False),
        ({"condition": json.dumps({"request_ip": {"in": ["127.0.0.0/8"]}})}, 200, False),
        ({"condition": json.dumps({"request_ip": {"not_in": ["10.0.0.0/8"]}})}, 200, False),
        ({"condition": json.dumps({"request_ip": {"in": ["10.0.0.0/8"]}})}, 403, False),
        ({"expires_on": ends, "condition": json.dumps({"request_ip": {"in": ["127.0.0.1"]}})}, 200, False),
        ({"expires_on": datetime.now(UTC) - timedelta(days=1)}, 403, False),
        ({"not_before": ends}, 403, False),
    ]
    for fields, status, short in cases:
        me = bearer(await make_token(world.database, world.peppers, world.a.account, **fields))
        await roads.warm(world.a.account_path, me)
        for _ in range(3):
            heard = await roads.both(here, me)
            assert (heard.status, heard.short) == (status, short), fields
        await roads.post(world.a.account_path, me)
        heard = await roads.post_both(world.a.account_path, me)
        assert (heard.outcome, heard.short) == (CREATED if status == 200 else INVALID, short), fields


async def test_nobody_gets_by_on_a_pass_of_somebody_else(roads: Roads, ids: dict[str, str]) -> None:
    """The same place by another token, and another place by the same token, are asked about as if nobody had been."""
    world = roads.world
    narrow = bearer(
        await make_token(world.database, world.peppers, world.a.account, groups=READ[:1], zones=(world.a.zone,))
    )
    other_area = ("Zone Read", "Account Settings Read", "Private CA Read")
    elsewhere = bearer(await make_token(world.database, world.peppers, world.a.account, groups=other_area))
    account, zone = f"{world.a.account_path}/{ids['account']}", f"{world.a.zone_path}/{ids['zone']}"
    theirs = f"{world.b.account_path}/{ids['b']}"
    swapped = f"/client/v4/accounts/{world.a.zone.id.hex}/custom_csrs/{ids['zone']}"
    swapped_too = f"/client/v4/zones/{world.a.account.id.hex}/custom_csrs/{ids['account']}"
    callers: list[tuple[str, Headers, dict[str, int]]] = [
        ("A", bearer(world.a.token), {account: 200, zone: 200, theirs: 403, swapped: 403, swapped_too: 403}),
        ("A reads", bearer(world.a.read_token), {account: 200, zone: 200, theirs: 403}),
        ("B", bearer(world.b.token), {account: 403, zone: 403, theirs: 200, swapped: 403, swapped_too: 403}),
        ("B reads", bearer(world.b.read_token), {account: 403, zone: 403, theirs: 200}),
        ("one zone", narrow, {account: 403, zone: 200, theirs: 403, swapped: 403}),
        ("other things", elsewhere, {account: 403, zone: 403, theirs: 403}),
        ("a stranger", bearer("x" * 40), {account: 403, zone: 403, theirs: 403}),
        ("A, a letter short", bearer(world.a.token[:-1]), {account: 403, zone: 403, theirs: 403}),
        ("A, in another case", bearer(world.a.token.swapcase()), {account: 403, zone: 403, theirs: 403}),
    ]
    # Whoever was let through there to something else was not let through to the CSRs.
    for target in (f"/client/v4/zones/{world.a.zone.id.hex}", f"/client/v4/accounts/{world.a.account.id.hex}"):
        assert (await roads.both(target, elsewhere)).status == 200
    for _ in range(3):
        for name, headers, targets in callers:
            for target, status in targets.items():
                heard = await roads.both(target, headers)
                assert heard.status == status, (name, target)
                assert heard.outcome in (OK, INVALID), (name, target)
                if status != 200:
                    assert not heard.short, (name, target)
    for name, headers, targets in callers:
        for target, status in targets.items():
            assert (await roads.ask(target, headers)).short == (status == 200), (name, target)
            # Those who read have a pass for it by now.
            made = status == 200 and name in {"A", "B"}
            for _ in range(2):
                heard = await roads.post_both(target.rpartition("/")[0], headers)
                assert (heard.outcome, heard.short) == (CREATED if made else INVALID, made), (name, target)


async def test_a_pass_of_the_other_dialect_is_none_here(roads: Roads, ids: dict[str, str]) -> None:
    """An access token, good over there, never reads or makes a CSR here."""
    world = roads.world
    token, value = await new_token(world)
    body = {"clientId": str(token.id), "clientSecret": value}
    made = (await world.http.post("/api/v1/auth/universal-auth/login", json=body)).json()["accessToken"]
    here = f"{world.a.account_path}/{ids['account']}"
    assert (await roads.ask(here, bearer(value))).status == 200
    assert (await roads.post(world.a.account_path, bearer(value))).status == 201
    for _ in range(3):
        answer = await world.http.get(f"/api/v1/pki/ca/{uuid4()}", headers={"Authorization": f"Bearer {made}"})
        assert answer.status_code == 404
        for heard in (
            await roads.both(here, bearer(made)),
            await roads.post_both(world.a.account_path, bearer(made)),
        ):
            assert heard.status in (400, 403)
            assert not heard.short


async def test_many_at_once_each_get_their_own(roads: Roads, ids: dict[str, str]) -> None:
    """Callers and CSRs are not mixed up when many ask at the same time."""
    world = roads.world
    await roads.warm(world.b.account_path, bearer(world.b.token))
    tenants: list[tuple[Tenant, str, str]] = [
        (world.a, world.a.account_path, ids["account"]),
        (world.a, world.a.zone_path, ids["zone"]),
        (world.b, world.b.account_path, ids["b"]),
        (world.b, world.a.account_path, ids["account"]),
    ]
    asked = tenants * 25
    name = uuid4().hex

    def post(number: int, of: Tenant, path: str) -> Awaitable[Heard]:
        return roads.post(path, bearer(of.token), wanted(name=f"{name} {number}"))

    posts = await asyncio.gather(*(post(number, of, path) for number, (of, path, _) in enumerate(tenants * 8)))
    heard = await asyncio.gather(*(roads.ask(f"{path}/{csr_id}", bearer(of.token)) for of, path, csr_id in asked))
    for (of, path, csr_id), each in zip(asked, heard, strict=True):
        own = path in of.paths
        assert (each.status, each.short) == ((200, True) if own else (403, False))
        if own:
            result = json.loads(each.body)["result"]
            assert (result["id"], result["account_tag"]) == (csr_id, of.account.id.hex)
    for number, ((of, path, _), each) in enumerate(zip(tenants * 8, posts, strict=True)):
        assert (each.status, each.short) == ((201, True) if path in of.paths else (403, False))
        if each.short:
            assert (each.result["name"], each.result["account_tag"]) == (f"{name} {number}", of.account.id.hex)
            row = await world.database.fetchrow("SELECT * FROM custom_csrs WHERE id = $1", UUID(each.result["id"]))
            assert row is not None
            zone_id = of.zone.id if path == of.zone_path else None
            assert (row["account_id"], row["zone_id"], row["csr"]) == (of.account.id, zone_id, each.result["csr"])
    assert len({each.result["id"] for each in posts if each.short}) == 24


# --- whatever is sent ---

# What the test knows stands here as a name in braces.
_TARGETS = st.sampled_from(
    [
        "/client/v4/accounts/{account}/custom_csrs/{csr}",
        "/client/v4/zones/{zone}/custom_csrs/{zone_csr}",
        "/client/v4/accounts/{account}/custom_csrs/{zone_csr}",
        "/client/v4/accounts/{b}/custom_csrs/{b_csr}",
        "/client/v4/zones/{account}/custom_csrs/{csr}",
        "/client/v4/accounts/{account}/custom_csrs/00000000-0000-4000-8000-000000000000",
        "/client/v4/accounts/{account}/custom_csrs",
        "/client/v4/zones/{zone}/custom_certificates/{zone_csr}",
    ]
)
_BITS = st.sampled_from([b"/", b"%", b"%2F", b"%2f", b"%2D", b"%61", b"-", b".", b"..", b"%00", b"\xff", b"A", b"0"])
_EDITS = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "replace"]), st.integers(0, 120), _BITS | st.binary(min_size=1)),
    max_size=3,
)
# What a server passes on: no line breaks, no NUL.
_VALUES = st.binary(max_size=60).map(lambda raw: re.sub(rb"[\r\n\0]", b"", raw))
_TOKENS = st.sampled_from(["{token}", "{read}", "{b_token}", "x" * 40, "{token} ", "{token}x", " {token}", ""])
_AUTHORIZATIONS = (
    _TOKENS.map(lambda token: f"Bearer {token}".encode())
    | st.builds(lambda word, token: f"{word}{token}".encode(), st.sampled_from(["bearer ", "Basic ", ""]), _TOKENS)
    | _VALUES
)
_TYPES = st.sampled_from(
    [b"*/*", b"application/json", b"application/x-pem-file", b"application/pkcs10", b"text/html", b"*/*;q=0", b""]
)
_OTHERS = st.sampled_from(
    [b"x-auth-email", b"x-auth-key", b"idempotency-key", b"host", b"x-forwarded-for", b"content-length", b"range"]
)
_HEADERS = st.one_of(
    st.tuples(st.just(b"authorization"), _AUTHORIZATIONS),
    st.tuples(st.just(b"accept"), _TYPES | _VALUES),
    st.tuples(_OTHERS, _VALUES),
)
_METHODS = st.sampled_from(["GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "PUT", "get", "BREW"])


def _edited(raw: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for how, where, bit in edits:
        at = where % (len(raw) + 1)
        raw = raw[:at] + (b"" if how == "drop" else bit) + raw[at + (how != "put") :]
    return raw


def _passed_on(path: bytes) -> bytes:
    # A server would have parted the query from the path, and never passes on what ends a line.
    return re.sub(rb"[?#\r\n\0 ]", b"", path)


@pytest.fixture(scope="module")
def words(roads: Roads, ids: dict[str, str]) -> dict[str, str]:
    world = roads.world
    return {
        "account": world.a.account.id.hex,
        "zone": world.a.zone.id.hex,
        "b": world.b.account.id.hex,
        "csr": ids["account"],
        "zone_csr": ids["zone"],
        "b_csr": ids["b"],
        "token": world.a.token,
        "read": world.a.read_token,
        "b_token": world.b.token,
    }


def _filled(text: bytes, words: dict[str, str]) -> bytes:
    for name, value in words.items():
        text = text.replace(f"{{{name}}}".encode(), value.encode())
    return text


_PLAIN: tuple[str, list[tuple[str, int, bytes]], str, Headers] = (
    "/client/v4/accounts/{account}/custom_csrs/{csr}",
    [],
    "GET",
    [(b"authorization", b"Bearer {token}")],
)


@settings(deadline=None)
@example(_PLAIN[0], _PLAIN[1], b"", _PLAIN[2], _PLAIN[3])
@example(_PLAIN[0], _PLAIN[1], b"\xff&x=%zz", _PLAIN[2], _PLAIN[3])
@given(_TARGETS, _EDITS, _VALUES, _METHODS, st.lists(_HEADERS, max_size=4))
async def test_whatever_is_sent_the_road_does_not_show(
    roads: Roads,
    words: dict[str, str],
    target: str,
    edits: list[tuple[str, int, bytes]],
    query: bytes,
    method: str,
    headers: Headers,
) -> None:
    """Any path, query, method and headers are answered alike on both roads, the request id aside."""
    raw = _passed_on(_edited(_filled(target.encode(), words), edits))
    sent = [(name, _filled(value, words)) for name, value in headers]
    heard = await roads.both(raw + (b"?" + query if query else b""), sent, method, judged=False)
    assert heard.short or (target, edits, method, headers) != _PLAIN


_JSON = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=70)
    | st.lists(st.text(max_size=9) | st.integers() | st.sampled_from(["www.a.dev", "*.a.dev", "a.example"]), max_size=3)
)
_CHANGES = st.dictionaries(
    st.sampled_from(sorted({*FIELDS, "organizational_unit", "name", "description", "x", ""} - {"key_type"})),
    _JSON,
    max_size=2,
)
_KEYS = st.sampled_from([b"one", b"two", b"", b" ", b"\xff", b"k" * 255, b"k" * 256]) | _VALUES
_OF_POST: st.SearchStrategy[Headers] = st.lists(
    st.one_of(
        st.tuples(st.just(b"idempotency-key"), _KEYS),
        st.tuples(st.sampled_from([b"content-type", b"content-encoding", b"user-agent"]), _VALUES),
        st.tuples(st.just(b"content-length"), st.integers(0, 70_000).map(lambda length: str(length).encode())),
        st.tuples(st.just(b"accept"), st.sampled_from([b"*/*", b"application/json", b"text/html"])),
    ),
    max_size=3,
    # Two lengths come from no server.
    unique_by=lambda header: header[0] if header[0] == b"content-length" else header,
)


@settings(deadline=None, max_examples=60)
@example(changes={}, edits=[], ends=[], headers=[], cut=False)
@given(
    changes=_CHANGES,
    edits=_EDITS,
    ends=st.lists(st.integers(0, 500), max_size=3),
    headers=_OF_POST,
    cut=st.booleans(),
)
async def test_whatever_is_asked_for_the_road_does_not_show(
    roads: Roads,
    words: dict[str, str],
    changes: dict[str, Any],
    edits: list[tuple[str, int, bytes]],
    ends: list[int],
    headers: Headers,
    cut: bool,
) -> None:
    """Any body, however it comes in, and any headers of a CSR's making are answered alike on both roads."""
    raw = _edited(wanted(**changes), edits)
    # Without it an RSA key is made, which takes long.
    assume(b'"key_type": "p256v1"' in raw)
    borders = [0, *sorted(ends), len(raw)]
    parts = [raw[begin:end] for begin, end in itertools.pairwise(borders)]
    asking = [(b"authorization", f"Bearer {words['token']}".encode()), *headers]
    path = f"/client/v4/zones/{words['zone']}/custom_csrs"
    heard = await roads.both(path, asking, "POST", judged=False, body=pieces(*parts, cut=cut))
    assert heard.short or any(value == b"text/html" for _, value in headers)
