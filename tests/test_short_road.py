"""The short road of a GET by id: it answers as the long one does, byte for byte, and opens to nobody else."""

import asyncio
import copy
import io
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from world import Judge, Tenant, World, make_token, new_database, new_world

from app import accounts, config, embedded, first_start, metrics, policies, tokens, zones
from app.admission import Memory
from app.limits import RateLimit
from app.model import Account, Role, Scope, Token, User, Zone

Headers = list[tuple[bytes, bytes]]
# As long as no test takes, so that nothing is forgotten by itself.
LONG = 3600.0
DEADLINE = 60.0
OPERATOR = first_start.operator()
READ = ("SSL and Certificates Read", "Account: SSL and Certificates Read")
# What differs between two answers to the same request.
CHANGING = {b"x-request-id", b"cf-ray", b"ratelimit", b"date"}


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
    def outcome(self) -> tuple[int, list[int]]:
        return self.status, self.codes

    @property
    def same(self) -> tuple[int, Headers, list[bytes], bytes]:
        """What must not depend on the road."""
        own = (self.header("x-request-id") or "").encode()
        kept = sorted((k.lower(), v) for k, v in self.headers if k.lower() not in CHANGING)
        return self.status, kept, sorted(k.lower() for k, _ in self.headers), self.body.replace(own, b"its own")

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
        self, target: str | bytes, headers: Headers, method: str = "GET", *, long: bool = False, body: bytes = b""
    ) -> Heard:
        raw, _, query = (target.encode() if isinstance(target, str) else target).partition(b"?")
        sent: list[Any] = []
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return unread.pop() if unread else {"type": "http.disconnect"}

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
            "client": ("127.0.0.1", 4711),
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
        self, target: str | bytes, headers: Headers, method: str = "GET", *, judged: bool = True, body: bytes = b""
    ) -> Heard:
        """The answer of the application as it was made, which was found to be the same on the long road."""
        heard = await self.ask(target, headers, method, body=body)
        other = await self.ask(target, headers, method, long=True, body=body)
        assert not other.short
        assert heard.same == other.same, (target, headers)
        if judged:
            for each in (heard, other):
                self._held_to_the_contract(each, target, method)
        return heard

    def _held_to_the_contract(self, heard: Heard, target: str | bytes, method: str) -> None:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=target.encode() if isinstance(target, str) else target)
        request = httpx.Request(method, url)
        self._judge(httpx.Response(heard.status, headers=heard.headers, content=heard.body, request=request))

    async def warm(self, path: str, headers: Headers) -> None:
        """Let this caller through to this list, so that it is remembered."""
        assert not (await self.ask(path, headers)).short

    async def until_short(self, target: str, headers: Headers) -> Heard:
        """Ask until the framework was left out, as it must be for a caller who asks twice within a second."""
        async with asyncio.timeout(DEADLINE):
            while not (heard := await self.ask(target, headers)).short:
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
    body: bytes = b""


OK: tuple[int, list[int]] = (200, [])
UNKNOWN, NOWHERE, NO_ID, INVALID = (404, [1419]), (404, [7003]), (400, [1418]), (403, [9109])


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
    forbidden = (403, [9109])

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
        Asked("an Idempotency-Key", here, [*me, (b"idempotency-key", b"k")], OK, short=True),
        Asked("a bad Idempotency-Key", here, [*me, (b"idempotency-key", b"\x01")], OK, short=True),
        Asked("another method in a header", here, [*me, (b"x-http-method-override", b"DELETE")], OK, short=True),
        Asked("a host that is none", here, [*me, (b"host", b"a b\xff")], OK, short=True),
        Asked("from elsewhere", here, [*me, (b"x-forwarded-for", b"192.0.2.1")], OK, short=True),
        Asked("a body", here, [*me, (b"content-length", b"1")], OK, short=True, body=b"{"),
        Asked("both schemes", here, [*me, *user], OK, short=True),
        Asked("both schemes, the pair first", here, [*user, *me], OK, short=True),
        Asked("both schemes, a bad pair", here, [*bad_user, *me], OK, short=True),
        Asked("both schemes, a bad token", here, [*stranger, *user], INVALID, short=False),
        Asked("a pair", here, user, OK, short=False),
        Asked("a bad pair", here, bad_user, (400, [9103]), short=False),
        Asked("nobody", here, [], (400, [9106]), short=False),
        Asked("a stranger", here, stranger, INVALID, short=False),
        Asked("another tenant", here, theirs, forbidden, short=False),
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
        for wanted in ("application/x-pem-file", "text/html, application/x-pem-file;q=0.2", "application/json;q=0.1"):
            heard = await roads.both(here, [*me, *accept(wanted, "application/x-pem-file;q=0.15")])
            assert (heard.body.decode(), heard.short) == (pem, False), wanted
        heard = await roads.both(here, [*me, *accept("*/*;q=0.5", "application/pkcs10")])
        assert (heard.header("content-type"), heard.short) == ("application/pkcs10", False)
        assert heard.header("content-disposition") == f'attachment; filename="{csr_id}.csr"'


async def test_the_advice_on_an_old_key_is_given_on_both_roads(roads: Roads, ids: dict[str, str]) -> None:
    """A key older than the account's limit is told of, as 1485 with its age in days."""
    heard = await roads.both(f"{roads.world.a.account_path}/{ids['old']}", bearer(roads.world.a.token))
    assert heard.short
    assert heard.outcome == (200, [1485])
    assert re.search(rb"the key is 36[0-9]{2} days old", heard.body, re.IGNORECASE)


async def test_only_a_get_takes_the_short_road(roads: Roads, ids: dict[str, str]) -> None:
    """Whoever was let through to read is let through to nothing else, whatever the method is called."""
    world = roads.world
    me = bearer(world.a.read_token)
    for path, csr_id in zip(world.a.paths, (ids["account"], ids["zone"]), strict=True):
        here = f"{path}/{csr_id}"
        assert (await roads.both(here, me)).short
        for method in ("POST", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "Get", "GET ", "BREW"):
            heard = await roads.both(here, me, method, judged=False)
            assert (heard.status, heard.short) == (405, False), method
        heard = await roads.both(here, me, "DELETE", body=b"{}")
        assert (heard.outcome, heard.short) == ((403, [9109]), False)
        heard = await roads.both(path, me, "POST", body=b"{}")
        assert (heard.outcome, heard.short) == ((403, [9109]), False)
        assert (await roads.both(here, me)).outcome == OK


async def test_no_get_is_audited_and_each_is_counted(roads: Roads, ids: dict[str, str]) -> None:
    """A GET leaves no row in the audit log on either road, and is one request of its route in the metrics."""
    world = roads.world
    me, sql = bearer(world.a.token), "SELECT count(*) AS n FROM audit_log"
    before = await world.database.fetch(sql)
    for path, word, csr_id in zip(world.a.paths, ("account", "zone"), (ids["account"], ids["zone"]), strict=True):
        template = f"/client/v4/{word}s/{{{word}_id}}/custom_csrs/{{custom_csr_id}}"
        for target, status in ((csr_id, 200), (str(uuid4()), 404)):
            for long in (False, True):
                counted = _counted(template, status)
                heard = await roads.ask(f"{path}/{target}", me, long=long)
                assert (heard.status, heard.short) == (status, not long)
                assert _counted(template, status) == counted + 1
    assert await world.database.fetch(sql) == before


def _counted(template: str, status: int) -> float:
    text = metrics.text().decode()
    labels = f'dialect="cloudflare",method="GET",route="{template}",status="{status}"'
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
            for tail in (made["id"], f"{made['id'].upper()}/", str(uuid4())):
                heard = [await roads.ask(f"{path}/{tail}", me, long=long) for long in (False, True)]
                assert [each.short for each in heard] == [True, False]
                # Lines are written at the end of a turn of the loop.
                await asyncio.sleep(0)
                lines = [json.loads(line) for line in written.getvalue().splitlines()[-2:]]
                for line, each in zip(lines, heard, strict=True):
                    assert line["request_id"] == each.header("x-request-id")
                    assert line["route"] == f"/client/v4/{word}s/{{{word}_id}}/custom_csrs/{{custom_csr_id}}"
                    assert (line["event"], line["status"], line["address"]) == ("request", each.status, "127.0.0.1")
                    assert str(UUID(line["caller"])) == line["caller"]
                    for name in ("request_id", "ms", "timestamp"):
                        assert line.pop(name) is not None
                assert lines[0] == lines[1]
        assert world.a.token not in written.getvalue()


async def test_each_request_costs_one_of_the_limit_on_either_road(database_url: str, tmp_path: Path) -> None:
    """R falls by exactly one a request, also for a 404; at its end both roads are 429, which costs nothing."""
    # One comes back in six minutes.
    limit = RateLimit(30, 3 * 3600)
    async with new_world(database_url, tmp_path, rate_limit=limit, remembered=LONG) as world:
        roads, me = Roads(world), bearer(world.a.token)
        made = [f"{path}/{(await world.create(path=path))['id']}" for path in world.a.paths]
        for path in world.a.paths:
            await roads.warm(path, me)
        targets = [*made, *(f"{path}/{uuid4()}" for path in world.a.paths)]
        left, count = None, 0
        while left != 0:
            target, long = targets[count % 4], bool(count // 4 % 2)
            heard = await roads.ask(target, me, long=long)
            assert (heard.status, heard.short) == (200 if target in made else 404, not long)
            assert left is None or heard.left == left - 1
            assert heard.header("ratelimit-policy") == '"default";q=30;w=10800'
            left, count = heard.left, count + 1
        assert count == 30 - 4
        for target in targets:
            heard = await roads.both(target, me)
            assert (heard.outcome, heard.left, heard.short) == ((429, [971]), 0, False)
            assert heard.header("retry-after") == "60"
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
        for changes, outcome, short in ((off, (403, [1404]), False), (on, OK, True)):
            await zones.set_(world.database, OPERATOR, world.a.zone, changes)
            roads.forget()
            for path in world.a.paths:
                await roads.warm(path, me)
            for tail in (made[world.a.zone_path], str(uuid4()).upper()):
                heard = await roads.both(f"{world.a.zone_path}/{tail}", me)
                expected = UNKNOWN if short and tail.isupper() else outcome
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
        roads.forget()
        for _ in range(3):
            heard = await roads.both(here, me)
            assert (heard.outcome, heard.short) == (NOWHERE, False)
            assert (await roads.both(here, bearer(world.b.token))).outcome == (403, [9109])


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
        for target in made:
            heard = await roads.both(target, me)
            assert (heard.outcome, heard.short) == ((503, [1501]), True)
            assert 1 <= int(heard.header("retry-after") or 0) <= 60
        monkeypatch.setattr(asyncpg, "connect", connect)
        # A connection that was cut may be found to be so only now.
        for target in made:
            await roads.until(target, me, 200)
        for target in made:
            heard = await roads.both(target, me)
            assert (heard.outcome, heard.short) == (OK, True)


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
            heard = await roads.both(f"{world.a.account_path}/{made['id']}", me)
        finally:
            await world.database.execute("ALTER TABLE elsewhere RENAME TO custom_csrs")
        assert heard.outcome == (500, [1500])
        assert "elsewhere" not in heard.body.decode()
        assert written.getvalue().count("unexpected error") == 2


# --- who is let through ---


class Changed(msgspec.Struct):
    """What a caller asks for, the change, and how it is answered a second later at the latest."""

    name: str
    target: str
    headers: Headers
    change: Callable[[], Awaitable[Any]]
    after: tuple[int, list[int]] = (403, [9109])


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

    made_tokens = [await new_token(world) for _ in range(9)]
    (rolled, off, gone, revoked, narrowed, denied, elsewhere, ended, late) = made_tokens
    other = json.loads(policies.write(account, (policies.find_group("Account Settings Read"),)))
    read = json.loads(policies.write(account, (policies.find_group(READ[1]),)))
    deny = [*json.loads(denied[0].policies), {**read[0], "effect": "deny"}]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    member, membership, user_token = await _user_token(world)
    zone, zone_target = await _new_zone(world)
    shut, shut_target = await _new_zone(world)
    _, of_shut = await new_token(world)
    _, of_zone = await new_token(world)
    strangers, strangers_token, strangers_target = await _new_account(world)

    def without_csrs() -> Awaitable[Any]:
        return zones.set_(database, OPERATOR, shut, zones.Changes(csrs_enabled=False))

    async def delete_zone() -> None:
        assert (await world.http.delete(zone_target, headers=world.a.bearer)).status_code == 200
        await zones.delete(database, OPERATOR, Scope(account.id, zone.id))

    async def delete_account() -> None:
        headers = {"Authorization": f"Bearer {strangers_token}"}
        assert (await world.http.delete(strangers_target, headers=headers)).status_code == 200
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
        Changed("no member any more", here, bearer(user_token), lambda: membership(member, None)),
        Changed("the zone is deleted", zone_target, bearer(of_zone), delete_zone, NOWHERE),
        Changed("CSRs are switched off", shut_target, bearer(of_shut), without_csrs, (403, [1404])),
        Changed("the account is deleted", strangers_target, bearer(strangers_token), delete_account),
    ]


async def _user_token(world: World) -> tuple[User, Callable[[User, Role | None], Awaitable[Any]], str]:
    account = world.a.account
    user = await accounts.create_user(world.database, OPERATOR, "member@example.com")

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
    assert (await roads.until_short(case.target, case.headers)).status == 200, case.name
    await case.change()
    changed = time.monotonic()
    while (begun := time.monotonic()) <= changed + 1.0:
        # The long road lets them through anew, on what was remembered before the change.
        for long in (False, True):
            heard = await roads.ask(case.target, case.headers, long=long)
            # A list that is deleted is an empty one while it is remembered.
            assert heard.outcome in (OK, case.after, UNKNOWN), case.name
        await asyncio.sleep(0.01)
    for _ in range(3):
        heard = await roads.both(case.target, case.headers)
        assert (heard.outcome, heard.short) == (case.after, False), (case.name, begun - changed)


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
        for _ in range(5):
            heard = await roads.both(here, me)
            assert (heard.status, heard.short) == (status, short), fields


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
                assert heard.outcome in (OK, (403, [9109])), (name, target)
                if status != 200:
                    assert not heard.short, (name, target)
    for name, headers, targets in callers:
        for target, status in targets.items():
            assert (await roads.ask(target, headers)).short == (status == 200), (name, target)


async def test_a_pass_of_the_other_dialect_is_none_here(roads: Roads, ids: dict[str, str]) -> None:
    """An access token, good over there, never reads a CSR here, and neither does one who reads CAs."""
    world = roads.world
    token, value = await new_token(world)
    body = {"clientId": str(token.id), "clientSecret": value}
    made = (await world.http.post("/api/v1/auth/universal-auth/login", json=body)).json()["accessToken"]
    here = f"{world.a.account_path}/{ids['account']}"
    assert (await roads.ask(here, bearer(value))).status == 200
    for _ in range(3):
        answer = await world.http.get(f"/api/v1/pki/ca/{uuid4()}", headers={"Authorization": f"Bearer {made}"})
        assert answer.status_code == 404
        heard = await roads.both(here, bearer(made))
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
    heard = await asyncio.gather(*(roads.ask(f"{path}/{csr_id}", bearer(of.token)) for of, path, csr_id in asked))
    for (of, path, csr_id), each in zip(asked, heard, strict=True):
        own = path in of.paths
        assert (each.status, each.short) == ((200, True) if own else (403, False))
        if own:
            result = json.loads(each.body)["result"]
            assert (result["id"], result["account_tag"]) == (csr_id, of.account.id.hex)


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
    # A server would have parted the query from the path, and never passes on what ends a line.
    return re.sub(rb"[?#\r\n\0 ]", b"", raw)


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
    raw = _edited(_filled(target.encode(), words), edits)
    sent = [(name, _filled(value, words)) for name, value in headers]
    heard = await roads.both(raw + (b"?" + query if query else b""), sent, method, judged=False)
    assert heard.short or (target, edits, method, headers) != _PLAIN
