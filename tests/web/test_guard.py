"""What the guard remembers for a second: no answer depends on it, and it admits nobody else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.databases import new_database
from support.world import BODY, Judge, Tenant, World, make_token, new_world

from keystead.caller import Caller, Role, Scope
from keystead.config import RateLimit
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity.accounts import Account
from keystead.identity.memory import Memory
from keystead.identity.tokens import Token
from keystead.server import first_start, postgres

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
OFF: Outcome = (403, [1404])
INVALID: Outcome = (403, [9109])
UNKNOWN: Outcome = (404, [1419])
NOWHERE: Outcome = (404, [7003])
NO_ID: Outcome = (400, [1418])
OTHER_BODY: Outcome = (409, [1456])


class Heard(msgspec.Struct):
    """An answer, and whether it was remembered that the caller may."""

    status: int
    headers: Headers
    body: bytes
    remembered: bool

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
        """What must not depend on what is remembered."""
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


class Watched(Memory):
    """A memory with a note of the requests whose caller it knew to be allowed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.knew: set[str] = set()

    def allowed(self, *wanted: Any) -> tuple[Caller, Scope] | None:
        found = super().allowed(*wanted)
        if found:
            self.knew.add(found[0].request_id)
        return found


class Asking:
    """Plain ASGI requests to the application of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.memory = Watched(world.state.memory.seconds)
        world.change(msgspec.structs.replace(world.state, memory=self.memory))
        self._judge = Judge(world.settings.public_url)

    def forget(self) -> None:
        for rows in (self.memory._callers, self.memory._scopes, self.memory._allowed):
            rows._entries.clear()

    async def ask(
        self,
        target: str | bytes,
        headers: Headers,
        method: str = "GET",
        *,
        anew: bool = False,
        body: Body = b"",
        client: str = "127.0.0.1",
    ) -> Heard:
        rows, kept = self.memory._allowed._entries, {}
        if anew:
            kept = dict(rows)
            rows.clear()
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
        await self.world.app(scope, receive, send)
        rows.update({allowed: found for allowed, found in kept.items() if allowed not in rows})
        start, *bodies = sent
        answered = b"".join(message.get("body", b"") for message in bodies)
        heard = Heard(start["status"], list(start["headers"]), answered, remembered=False)
        heard.remembered = heard.header("x-request-id") in self.memory.knew
        self.world.seen.append(f"{heard.headers}{answered.decode('latin-1')}")
        return heard

    async def both(
        self, target: str | bytes, headers: Headers, method: str = "GET", *, judged: bool = True, body: Body = b""
    ) -> Heard:
        """The answer, which was found to be the same when what is remembered of the caller is judged anew."""
        return (await self.two(target, headers, method, judged=judged, body=body))[0]

    async def two(
        self, target: str | bytes, headers: Headers, method: str, *, judged: bool = True, body: Body
    ) -> tuple[Heard, Heard]:
        """As `both`, with the second answer."""
        heard = await self.ask(target, headers, method, body=body)
        other = await self.ask(target, headers, method, anew=True, body=body)
        assert not other.remembered
        assert heard.same == other.same, (method, target)
        if judged:
            for each in (heard, other):
                self._held_to_the_contract(each, target, method)
        return heard, other

    async def post(self, path: str, headers: Headers, body: Body | None = None, *, anew: bool = False) -> Heard:
        return await self.ask(path, headers, "POST", anew=anew, body=wanted() if body is None else body)

    async def post_both(self, path: str, headers: Headers) -> Heard:
        return await self.both(path, headers, "POST", body=wanted())

    def _held_to_the_contract(self, heard: Heard, target: str | bytes, method: str) -> None:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=target.encode() if isinstance(target, str) else target)
        request = httpx.Request(method, url)
        self._judge(httpx.Response(heard.status, headers=heard.headers, content=heard.body, request=request))

    async def until_remembered(self, target: str, headers: Headers, method: str = "GET", body: bytes = b"") -> Heard:
        async with asyncio.timeout(DEADLINE):
            while not (heard := await self.ask(target, headers, method, body=body)).remembered:
                pass
        return heard


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
async def asking(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asking]:
    """One world that forgets nothing by itself, for the tests that change nothing which others see."""
    folder = tmp_path_factory.mktemp("asking")
    async with new_database(cluster) as url, new_world(url, folder, remembered=LONG) as world:
        yield Asking(world)


@pytest.fixture(scope="module")
async def ids(asking: Asking) -> dict[str, str]:
    """A CSR of A's account, one of A's zone and one of B's account, and an old one of A's account."""
    world = asking.world
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
            await asking.ask(path, bearer(value))
    return made


class Asked(msgspec.Struct):
    """A request, and how it is answered."""

    name: str
    target: str
    headers: Headers
    outcome: tuple[int, list[int]]
    method: str = "GET"
    body: Body = b""


def _paths(path: str, csr_id: str, me: Headers) -> list[Asked]:
    """The ways to write a path."""
    here, absent = f"{path}/{csr_id}", str(uuid4())
    escaped = "".join(f"%{ord(c):02x}" for c in csr_id)
    return [
        Asked("there", here, me, OK),
        Asked("not there", f"{path}/{absent}", me, UNKNOWN),
        Asked("upper case", f"{path}/{csr_id.upper()}", me, OK),
        Asked("upper case and not there", f"{path}/{absent.upper()}", me, UNKNOWN),
        Asked("a trailing slash", f"{here}/", me, OK),
        Asked("two trailing slashes", f"{here}//", me, NOWHERE),
        Asked("an empty segment", f"{path}//{csr_id}", me, NOWHERE),
        Asked("escapes", f"{path}/{escaped}", me, OK),
        Asked("an escaped word", here.replace("custom_csrs", "c%75stom%5Fcsrs"), me, OK),
        Asked("escaped twice", f"{path}/{escaped}".replace("%", "%25"), me, NO_ID),
        Asked("an escaped slash", f"{path}%2F{csr_id}", me, NOWHERE),
        Asked("an escaped slash at the end", f"{here}%2F", me, NOWHERE),
        Asked("an escaped zero", f"{here}%00", me, NOWHERE),
        Asked("an escape that is none", f"{here}%zz", me, NOWHERE),
        Asked("one more segment", f"{here}/x", me, NOWHERE),
        Asked("no UUID", f"{path}/x", me, NO_ID),
        Asked("no hyphens", f"{path}/{csr_id.replace('-', '')}", me, NO_ID),
        Asked("hyphens elsewhere", f"{path}/{csr_id[1:]}-", me, NO_ID),
        Asked("36 hyphens", f"{path}/{'-' * 36}", me, NO_ID),
        Asked("braces", f"{path}/{{{csr_id}}}", me, NO_ID),
        Asked("a line break", f"{here}%0A", me, NO_ID),
        Asked("wide digits", f"{path}/{quote(chr(0xFF11))}{csr_id[1:]}", me, NO_ID),
        Asked("the scope in upper case", here.replace(path.split("/")[4], "A" * 32), me, NOWHERE),
        Asked("another word", here.replace("custom_csrs", "custom_csr"), me, NOWHERE),
        Asked("a query", f"{here}?page=0&page=0&x=%zz", me, OK),
        Asked("the list", path, me, OK),
    ]


def _headers(world: World, here: str, me: Headers) -> list[Asked]:
    """The ways to say who asks, and what for."""
    theirs, stranger = bearer(world.b.token), bearer("x" * 40)
    user, bad_user = pair(world.a.email, world.a.key), pair(world.a.email, "0" * 37)
    value = world.a.token.encode()

    def says(raw: bytes) -> Headers:
        return [(b"authorization", raw)]

    def wanting(*values: str) -> Asked:
        return Asked(f"accept {values}", here, [*me, *accept(*values)], OK)

    return [
        wanting("*/*"),
        wanting("application/json"),
        wanting("application/json", "*/*"),
        wanting("application/json, text/plain;q=0.5"),
        wanting("APPLICATION/JSON"),
        wanting("application/json;q=0"),
        wanting("*/*;q=0"),
        wanting("text/html"),
        wanting(""),
        wanting("application/x-pem-file;q=0.1, application/json"),
        wanting("application/x-pem-file;q=0"),
        Asked("another method in a header", here, [*me, (b"x-http-method-override", b"DELETE")], OK),
        Asked("a host that is none", here, [*me, (b"host", b"a b\xff")], OK),
        Asked("from elsewhere", here, [*me, (b"x-forwarded-for", b"192.0.2.1")], OK),
        Asked("both schemes", here, [*me, *user], OK),
        Asked("both schemes, the pair first", here, [*user, *me], OK),
        Asked("both schemes, a bad pair", here, [*bad_user, *me], OK),
        Asked("both schemes, a bad token", here, [*stranger, *user], INVALID),
        Asked("a pair", here, user, OK),
        Asked("a bad pair", here, bad_user, (400, [9103])),
        Asked("nobody", here, [], (400, [9106])),
        Asked("a stranger", here, stranger, INVALID),
        Asked("another tenant", here, theirs, INVALID),
        Asked("twice", here, [*me, *me], OK),
        Asked("bearer", here, says(b"bearer " + value), OK),
        Asked("BEARER", here, says(b"BEARER " + value), OK),
        Asked("two spaces", here, says(b"Bearer  " + value), (400, [6003])),
        Asked("a space behind", here, says(b"Bearer " + value + b" "), (400, [6003])),
        Asked("a tab", here, says(b"Bearer\t" + value), (400, [6003])),
        Asked("no scheme", here, says(value), (400, [6003])),
        Asked("no token", here, says(b"Bearer "), (400, [6003])),
        Asked("one letter less", here, says(b"Bearer " + value[:-1]), INVALID),
        Asked("bytes", here, says(b"Bearer " + b"\xff" * 40), (400, [6003])),
    ]


@pytest.mark.parametrize("scope", ["account", "zone"])
async def test_however_a_caller_asks_the_answer_is_the_same_while_remembered(
    asking: Asking, ids: dict[str, str], scope: str
) -> None:
    """However a request is written, status, headers and body do not depend on what is remembered."""
    world = asking.world
    path = world.a.account_path if scope == "account" else world.a.zone_path
    me, here = bearer(world.a.token), f"{path}/{ids[scope]}"
    other = ids["zone" if scope == "account" else "account"]
    cases = [
        *_paths(path, ids[scope], me),
        *_headers(world, here, me),
        Asked("an Idempotency-Key", here, [*me, *key("k")], OK),
        Asked("a bad Idempotency-Key", here, [*me, *key("\x01")], OK),
        Asked("a body", here, [*me, (b"content-length", b"1")], OK, body=b"{"),
        Asked("whoever may only read", here, bearer(world.a.read_token), OK),
        Asked("the CSR of another scope", f"{path}/{other}", me, UNKNOWN),
        Asked("the CSR of another tenant", f"{path}/{ids['b']}", me, UNKNOWN),
    ]
    for case in cases:
        heard = await asking.both(case.target, case.headers, case.method, body=case.body)
        assert heard.outcome == case.outcome, case.name
    # Two that contradict each other: whichever counts, it is the same one.
    for two in ([*me, *bearer("x" * 40)], [*bearer("x" * 40), *me], [*me, *bearer(world.b.token)]):
        await asking.both(here, two)


def _good(path: str, me: Headers) -> list[Asked]:
    """The ways to ask for a CSR."""

    def post(name: str, body: Body, *advice: int, more: Headers | None = None) -> Asked:
        return Asked(name, path, [*me, *(more or [])], (201, list(advice)), method="POST", body=body)

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
        Asked("a trailing slash", f"{path}/", me, CREATED, method="POST", body=whole),
        Asked("an escaped word", path.replace("csrs", "c%73rs"), me, CREATED, method="POST", body=whole),
        Asked("a query", f"{path}?name=x&name=y", me, CREATED, method="POST", body=whole),
    ]


def _bad(path: str, me: Headers) -> list[Asked]:
    """The ways to ask for a CSR that is not made."""

    def refused(name: str, body: Body, *codes: int, status: int = 400, more: Headers | None = None) -> Asked:
        return Asked(name, path, [*me, *(more or [])], (status, list(codes)), method="POST", body=body)

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
        Asked("an escaped slash", f"{path}%2F", me, NOWHERE, method="POST", body=whole),
        Asked("two slashes", f"{path}//", me, NOWHERE, method="POST", body=whole),
        Asked("an escape that is none", f"{path}%zz", me, NOWHERE, method="POST", body=whole),
    ]


@pytest.mark.parametrize("scope", ["account", "zone"])
async def test_however_a_csr_is_asked_for_it_is_made_alike_while_remembered(
    asking: Asking, ids: dict[str, str], scope: str
) -> None:
    """However a CSR is asked for, it has a key and an audit row of its own, or is refused in the same words."""
    world, me = asking.world, bearer(asking.world.a.token)
    path = world.a.account_path if scope == "account" else world.a.zone_path
    assert (await asking.until_remembered(path, me, "POST", wanted())).outcome == CREATED
    held = await _held(world)
    for case in _bad(path, me):
        heard = await asking.both(case.target, case.headers, "POST", body=case.body)
        assert heard.outcome == case.outcome, case.name
    assert await _held(world) == held
    # What the headers say of the caller has nothing to do with the path.
    cases = [*_good(path, me), *(_posted(case) for case in _headers(world, path, me) if scope == "account")]
    for case in cases:
        made = await asking.two(case.target, case.headers, "POST", body=case.body)
        assert made[0].outcome == case.outcome, case.name
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


async def test_a_repeat_is_the_same_csr_while_remembered(asking: Asking, ids: dict[str, str]) -> None:
    """One Idempotency-Key makes one CSR, whatever is remembered, and another body is a conflict."""
    world = asking.world
    _, second = await new_token(world)
    for path in world.a.paths:
        for anew in ((False, False, True), (True, False, True)):
            held, name = await _held(world), uuid4().hex
            longest = f"a key {name}".ljust(255, "~")
            once = [*bearer(world.a.token), *key(longest)]
            body = wanted(name=name, colour="red", organizational_unit="Unit")
            first, *others = [await asking.post(path, once, body, anew=each) for each in anew]
            assert first.outcome == (201, [1480, 1482])
            assert [each.again for each in others] == [first.again] * 2
            # However the path is written.
            heard = await asking.both(f"{path.replace('csrs', 'c%73rs')}/", once, "POST", body=body)
            assert (heard.again, heard.remembered) == (first.again, True)
            for other in (body + b" ", wanted(), b"", b"{}", pieces(b"[", b"]")):
                heard = await asking.both(path, once, "POST", body=other)
                assert heard.outcome == OTHER_BODY
                assert heard.header("x-should-retry") == "false"
            assert await _held(world) == [each + 1 for each in held]
            # To somebody else, and elsewhere, the same key is another one.
            for path_of, token in ((world.a.paths[path == world.a.paths[0]], world.a.token), (path, second)):
                own = [*bearer(token), *key(longest)]
                heard = await asking.both(path_of, own, "POST", body=body)
                assert heard.status == 201
                assert heard.result["id"] != first.result["id"]
            assert (await world.http.delete(f"{path}/{first.result['id']}", headers=world.a.bearer)).status_code == 200
            heard = await asking.both(path, once, "POST", body=body)
            assert heard.outcome == UNKNOWN


async def test_repeats_at_once_make_one(asking: Asking, ids: dict[str, str]) -> None:
    """Of many requests with one key at the same moment, one makes the CSR that all are told of."""
    held, path = await _held(asking.world), asking.world.a.zone_path
    once = [*bearer(asking.world.a.token), *key(uuid4().hex)]
    heard = await asyncio.gather(*(asking.post(path, once, anew=bool(number % 2)) for number in range(16)))
    assert {(each.status, each.result["id"]) for each in heard} == {(201, heard[0].result["id"])}
    assert await _held(asking.world) == [each + 1 for each in held]


async def test_the_audit_row_is_that_of_this_request(asking: Asking, ids: dict[str, str]) -> None:
    """Address, client, method and path in the audit log are those of the request, whatever was asked before it."""
    world = asking.world
    user = await accounts.create_user(world.database, OPERATOR, f"{uuid4().hex}@example.com")
    await accounts.set_membership(world.database, OPERATOR, user, world.a.account, Role.ADMINISTRATOR)
    of_user, of_account = await new_token(world, user=user), await new_token(world)
    agent, client = [(b"user-agent", b"somebody\xff's/1.0")], "2001:db8::7"
    for path, zone_id in zip(world.a.paths, (None, world.a.zone.id), strict=True):
        for token, value in (of_user, of_account):
            me = bearer(value)
            # Another method, path, status and client.
            warm = await asking.ask(f"{path}/{uuid4()}", [*me, (b"user-agent", b"warm")], "DELETE", body=b"{}")
            assert warm.outcome == UNKNOWN
            made = [
                await asking.ask(f"{path}/?q", [*me, *agent], "POST", anew=anew, body=wanted(), client=client)
                for anew in (False, True)
            ]
            assert [(each.outcome, each.remembered) for each in made] == [(CREATED, True), (CREATED, False)]
            await _made_alike(world, *made)
            [row] = await world.database.fetch(
                "SELECT * FROM audit_log WHERE request_id = $1", made[0].header("x-request-id")
            )
            told = (row["path"], row["user_agent"], str(row["address"]), row["zone_id"], row["resource_id"])
            assert told == (path, "somebodyÿ's/1.0", client, zone_id, UUID(made[0].result["id"]))
            who = (row["actor_id"], row["actor_name"], row["actor_email"], row["user_id"])
            assert who == (token.id, token.name, user.email if token.user_id else None, token.user_id)


async def test_head_pem_and_der_are_right_after_json(asking: Asking, ids: dict[str, str]) -> None:
    """HEAD has the headers of GET and no body; who wants PEM or DER gets it, also right after JSON was given."""
    world = asking.world
    for path, csr_id in zip(world.a.paths, (ids["account"], ids["zone"]), strict=True):
        me, here = bearer(world.a.token), f"{path}/{csr_id}"
        get, head = await asking.both(here, me), await asking.both(here, me, "HEAD")
        assert get.remembered
        assert head.remembered
        assert head.same[:3] == get.same[:3]
        assert (head.body, bool(get.body)) == (b"", True)
        absent = await asking.both(f"{path}/{uuid4()}", me, "HEAD")
        assert (absent.status, absent.body, absent.remembered) == (404, b"", True)
        pem: str = json.loads(get.body)["result"]["csr"]
        for kind in ("application/x-pem-file", "text/html, application/x-pem-file;q=0.2", "application/json;q=0.1"):
            heard = await asking.both(here, [*me, *accept(kind, "application/x-pem-file;q=0.15")])
            assert (heard.body.decode(), heard.remembered) == (pem, True), kind
        heard = await asking.both(here, [*me, *accept("*/*;q=0.5", "application/pkcs10")])
        assert heard.header("content-type") == "application/pkcs10"
        assert heard.header("content-disposition") == f'attachment; filename="{csr_id}.csr"'
        assert (await asking.until_remembered(path, me, "POST", wanted())).outcome == CREATED
        for kind in ("application/x-pem-file", "application/pkcs10"):
            heard = await asking.ask(path, [*me, *accept("*/*;q=0.5", kind)], "POST", body=wanted())
            assert (heard.status, heard.header("content-type"), heard.remembered) == (201, kind, True)
            assert re.fullmatch(rf"{path}/[0-9a-f-]{{36}}", heard.header("location") or "")


async def test_the_advice_on_an_old_key_is_given_while_remembered(asking: Asking, ids: dict[str, str]) -> None:
    """A key older than the account's limit is told of, as 1485 with its age in days."""
    heard = await asking.both(f"{asking.world.a.account_path}/{ids['old']}", bearer(asking.world.a.token))
    assert heard.remembered
    assert heard.outcome == (200, [1485])
    assert re.search(rb"the key is 36[0-9]{2} days old", heard.body, re.IGNORECASE)


async def test_what_is_remembered_is_for_one_access(asking: Asking, ids: dict[str, str]) -> None:
    """Whoever was found to read may nothing else by that, nor whoever was found to write, whatever the method."""
    world = asking.world
    methods = ("POST", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "Get", "GET ", "post", "POST ", "BREW")
    reads, both = bearer(world.a.read_token), bearer(world.a.token)
    for path, csr_id in zip(world.a.paths, (ids["account"], ids["zone"]), strict=True):
        here = f"{path}/{csr_id}"
        for me in (reads, both):
            assert (await asking.both(here, me)).remembered
            for target, known in ((here, "GET"), (path, "POST")):
                for method in methods:
                    if method != known:
                        heard = await asking.both(target, me, method, judged=False, body=wanted())
                        assert (heard.status, heard.remembered) == (405, False), (target, method)
        held = await _held(world)
        heard = await asking.both(here, reads, "DELETE", body=b"{}")
        assert heard.outcome == INVALID
        for body in (wanted(), b"{}", pieces(cut=True)):
            heard = await asking.both(path, reads, "POST", body=body)
            assert heard.outcome == INVALID
        assert await _held(world) == held
        assert (await asking.both(here, reads)).outcome == OK
        # Who may write may read, and that is asked for once too; who may not read may not write.
        writes = bearer(await make_token(world.services, world.a.account, groups=WRITE))
        assert [(await asking.post(path, writes)).remembered for _ in range(2)] == [False, True]
        assert [(await asking.ask(here, writes)).remembered for _ in range(2)] == [False, True]
        for denied, outcomes in ((WRITE, (OK, INVALID)), (READ, (INVALID, INVALID))):
            me = bearer((await new_token(world, policies=_denied(world.a, denied)))[1])
            for _ in range(2):
                heard, other = await asking.both(here, me), await asking.post_both(path, me)
                assert (heard.outcome, other.outcome, other.remembered) == (*outcomes, False)


def _denied(tenant: Tenant, groups: Sequence[str]) -> str:
    """Policies that allow all and deny these."""
    allowed = json.loads(policies.write(tenant.account, policies.default_groups()))
    named = json.loads(policies.write(tenant.account, tuple(policies.find_group(name) for name in groups)))
    return json.dumps([*allowed, *({**policy, "effect": "deny"} for policy in named)])


async def test_each_request_costs_one_of_the_limit(database_url: str, tmp_path: Path) -> None:
    """R falls by exactly one a request, remembered or not, also for one that fails; a 429 costs nothing."""
    # One comes back in six minutes.
    limit = RateLimit(30, 3 * 3600)
    async with new_world(database_url, tmp_path, rate_limit=limit, remembered=LONG) as world:
        asking, me = Asking(world), bearer(world.a.token)
        made = [f"{path}/{(await world.create(path=path))['id']}" for path in world.a.paths]
        for path in world.a.paths:
            await asking.ask(path, me)
        asked: list[tuple[str, str, bytes, int]] = [
            *(("GET", target, b"", 200) for target in made),
            *(("POST", path, wanted(), 201) for path in world.a.paths),
            ("GET", f"{world.a.account_path}/{uuid4()}", b"", 404),
            ("POST", world.a.zone_path, b"", 400),
        ]
        left, count = None, 0
        while left != 0:
            (method, target, body, status), anew = asked[count % 6], bool(count // 6 % 2)
            heard = await asking.ask(target, me, method, anew=anew, body=body)
            assert heard.status == status
            assert left is None or heard.left == left - 1
            assert heard.header("ratelimit-policy") == '"default";q=30;w=10800'
            left, count = heard.left, count + 1
        assert count == 30 - 4
        held = await _held(world)
        for method, target, body, _ in asked:
            heard = await asking.both(target, me, method, body=body)
            assert (heard.outcome, heard.left) == ((429, [971]), 0)
            assert heard.header("retry-after") == "60"
        assert await _held(world) == held
        # Another caller has a limit of its own.
        await asking.ask(world.a.account_path, bearer(world.a.read_token))
        heard = await asking.ask(made[0], bearer(world.a.read_token))
        assert (heard.status, heard.left, heard.remembered) == (200, 28, True)


async def test_csrs_that_are_switched_off_are_1404(database_url: str, tmp_path: Path) -> None:
    """A scope whose CSRs are switched off answers 403/1404 before it says whether there is one; the other is served."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        asking, me = Asking(world), bearer(world.a.token)
        made = {path: (await world.create(path=path))["id"] for path in world.a.paths}
        off, on = zones.Changes(csrs_enabled=False), zones.Changes(csrs_enabled=True)
        for changes, outcome, served in ((off, OFF, False), (on, OK, True)):
            await zones.set_(world.database, OPERATOR, world.a.zone, changes)
            asking.forget()
            for path in world.a.paths:
                await asking.ask(path, me)
            for tail in (made[world.a.zone_path], str(uuid4()).upper()):
                heard = await asking.both(f"{world.a.zone_path}/{tail}", me)
                expected = UNKNOWN if served and tail.isupper() else outcome
                assert heard.outcome == expected
            for body in (wanted(), b""):
                await asking.post(world.a.zone_path, me)
                heard = await asking.both(world.a.zone_path, me, "POST", body=body)
                expected = ((400, [1400]) if body == b"" else CREATED) if served else OFF
                assert heard.outcome == expected
            assert (await asking.both(f"{world.a.account_path}/{made[world.a.account_path]}", me)).outcome == OK


async def test_a_deleted_zone_is_gone(database_url: str, tmp_path: Path) -> None:
    """While a zone is remembered its CSRs are gone, 404/1419; then so is it, 404/7003, and nothing is remembered."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        asking, me = Asking(world), bearer(world.a.token)
        made = await world.create(path=world.a.zone_path)
        here = f"{world.a.zone_path}/{made['id']}"
        await asking.ask(world.a.zone_path, me)
        assert (await asking.both(here, me)).remembered
        assert (await world.http.delete(here, headers=world.a.bearer)).status_code == 200
        await zones.delete(world.database, OPERATOR, Scope(world.a.account.id, world.a.zone.id))
        heard = await asking.both(here, me)
        assert heard.outcome == UNKNOWN
        for headers in (me, [*me, *key("a key")]):
            heard = await asking.post_both(world.a.zone_path, headers)
            assert heard.outcome == NOWHERE
        asking.forget()
        for _ in range(3):
            for heard in (await asking.both(here, me), await asking.post_both(world.a.zone_path, me)):
                assert (heard.outcome, heard.remembered) == (NOWHERE, False)
            assert (await asking.both(here, bearer(world.b.token))).outcome == INVALID
            assert (await asking.post_both(world.a.zone_path, bearer(world.b.token))).outcome == INVALID
        assert await _held(world) == [0, 0, 1]


# --- who is let through ---


async def new_token(world: World, account: Account | None = None, **fields: Any) -> tuple[Token, str]:
    account = account or world.a.account
    text = fields.pop("policies", policies.write(account, policies.default_groups()))
    return await tokens.create(world.services, OPERATOR, tokens.NewToken(account, "a token", text, **fields))


async def test_a_deleted_csr_is_gone_at_once(database_url: str, tmp_path: Path) -> None:
    """A CSR is never remembered: right after its deletion, by whomever, it is 404/1419."""
    async with new_world(database_url, tmp_path, remembered=LONG) as world:
        asking, me = Asking(world), bearer(world.a.read_token)
        for path in world.a.paths:
            first, second = [f"{path}/{(await world.create(path=path))['id']}" for _ in range(2)]
            await asking.ask(path, me)
            assert [(await asking.both(each, me)).outcome for each in (first, second)] == [OK, OK]
            assert (await world.http.delete(first, headers=world.a.bearer)).status_code == 200
            heard = await asking.both(first, me)
            assert (heard.outcome, heard.remembered) == (UNKNOWN, True)
            await world.database.execute("DELETE FROM custom_csrs WHERE id = $1", UUID(second.rpartition("/")[2]))
            heard = await asking.both(second, me)
            assert (heard.outcome, heard.remembered) == (UNKNOWN, True)


async def test_a_token_with_an_end_or_an_address_is_judged_each_time(asking: Asking, ids: dict[str, str]) -> None:
    """That a token with an expiry or addresses may is never remembered, however often it was good."""
    world = asking.world
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
    for fields, status, remembered in cases:
        me = bearer(await make_token(world.services, world.a.account, **fields))
        await asking.ask(world.a.account_path, me)
        for _ in range(3):
            heard = await asking.both(here, me)
            assert (heard.status, heard.remembered) == (status, remembered), fields
        await asking.post(world.a.account_path, me)
        heard = await asking.post_both(world.a.account_path, me)
        expected = CREATED if status == 200 else INVALID
        assert (heard.outcome, heard.remembered) == (expected, remembered), fields


async def test_nobody_gets_by_on_what_is_remembered_of_somebody_else(asking: Asking, ids: dict[str, str]) -> None:
    """The same place by another token, and another place by the same token, are asked about as if nobody had been."""
    world = asking.world
    narrow = bearer(await make_token(world.services, world.a.account, groups=READ[:1], zones=(world.a.zone,)))
    other_area = ("Zone Read", "Account Settings Read", "Private CA Read")
    elsewhere = bearer(await make_token(world.services, world.a.account, groups=other_area))
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
    # Whoever may something else there may not read its CSRs by that.
    for target in (f"/client/v4/zones/{world.a.zone.id.hex}", f"/client/v4/accounts/{world.a.account.id.hex}"):
        assert (await asking.both(target, elsewhere)).status == 200
    for _ in range(3):
        for name, headers, targets in callers:
            for target, status in targets.items():
                heard = await asking.both(target, headers)
                assert heard.status == status, (name, target)
                assert heard.outcome in (OK, INVALID), (name, target)
                if status != 200:
                    assert not heard.remembered, (name, target)
    for name, headers, targets in callers:
        for target, status in targets.items():
            assert (await asking.ask(target, headers)).remembered == (status == 200), (name, target)
            made = status == 200 and name in {"A", "B"}
            for _ in range(2):
                heard = await asking.post_both(target.rpartition("/")[0], headers)
                assert (heard.outcome, heard.remembered) == (CREATED if made else INVALID, made), (name, target)


async def test_many_at_once_each_get_their_own(asking: Asking, ids: dict[str, str]) -> None:
    """Callers and CSRs are not mixed up when many ask at the same time."""
    world = asking.world
    await asking.ask(world.b.account_path, bearer(world.b.token))
    tenants: list[tuple[Tenant, str, str]] = [
        (world.a, world.a.account_path, ids["account"]),
        (world.a, world.a.zone_path, ids["zone"]),
        (world.b, world.b.account_path, ids["b"]),
        (world.b, world.a.account_path, ids["account"]),
    ]
    asked = tenants * 25
    name = uuid4().hex

    def post(number: int, of: Tenant, path: str) -> Awaitable[Heard]:
        return asking.post(path, bearer(of.token), wanted(name=f"{name} {number}"))

    posts = await asyncio.gather(*(post(number, of, path) for number, (of, path, _) in enumerate(tenants * 8)))
    heard = await asyncio.gather(*(asking.ask(f"{path}/{csr_id}", bearer(of.token)) for of, path, csr_id in asked))
    for (of, path, csr_id), each in zip(asked, heard, strict=True):
        own = path in of.paths
        assert (each.status, each.remembered) == ((200, True) if own else (403, False))
        if own:
            result = json.loads(each.body)["result"]
            assert (result["id"], result["account_tag"]) == (csr_id, of.account.id.hex)
    for number, ((of, path, _), each) in enumerate(zip(tenants * 8, posts, strict=True)):
        assert each.status == (201 if path in of.paths else 403)
        if each.status == 201:
            assert (each.result["name"], each.result["account_tag"]) == (f"{name} {number}", of.account.id.hex)
            row = await world.database.fetchrow("SELECT * FROM custom_csrs WHERE id = $1", UUID(each.result["id"]))
            assert row is not None
            zone_id = of.zone.id if path == of.zone_path else None
            assert (row["account_id"], row["zone_id"], row["csr"]) == (of.account.id, zone_id, each.result["csr"])
    assert len({each.result["id"] for each in posts if each.status == 201}) == 24
