"""What a watcher sees: /healthz, /readyz and /metrics, in one process and summed over workers that come and go."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.authority import pem, root
from support.databases import new_database
from support.live import Live, serving
from support.processes import hurry
from support.waiting import comes_about
from support.world import BODY, World, make_token, new_world

from keystead.server import health, postgres
from keystead.store import schema
from keystead.x509 import chains

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]
# What a counter of requests is told by: dialect, method, route, status.
Route = tuple[str, str, str, int]
DEADLINE = 60.0
ONE, LIST = "{account_id}/custom_csrs/{custom_csr_id}", "{account_id}/custom_csrs"


def read(text: str) -> Samples:
    """The samples of a scrape as Prometheus's own parser reads them; each is there once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation or not family.name.startswith("keystead_"), family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


async def scraped(http: httpx.AsyncClient) -> Samples:
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    return read(answer.text)


def requests(samples: Samples) -> dict[Route, float]:
    """How many requests were answered, by what they are told apart by."""
    found: dict[Route, float] = {}
    for (name, labels), value in samples.items():
        if name == "keystead_requests_total":
            told = dict(labels)
            assert set(told) == {"dialect", "method", "route", "status"}
            found[told["dialect"], told["method"], told["route"], int(told["status"])] = value
    return found


def more(after: dict[Route, float], before: dict[Route, float]) -> dict[Route, float]:
    """What came since; the registry of a process is one for all of its worlds."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def gauge(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"keystead_{name}", frozenset(labels.items())), 0.0)


def certificates(samples: Samples) -> dict[str, float]:
    """How many certificates there are, by the days that are left."""
    return {dict(labels)["days"]: value for (name, labels), value in samples.items() if name == "keystead_certificates"}


def from_address(world: World, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=world.app, client=(address, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787")


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for the tests that change nothing which others see."""
    return shared_world


@pytest.fixture
async def apart(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world for one test, which may take its database away."""
    async with new_world(database_url, tmp_path) as made:
        yield made


# --- /healthz and /readyz ---


async def ready(world: World) -> tuple[int, str | None]:
    """The status of /readyz and its reason; what is not ready says when to ask again."""
    answer = await world.http.get("/readyz")
    body = answer.json()
    if answer.status_code == 200:
        assert body == {"status": "ok"}
        return 200, None
    assert body == {"status": "unavailable", "reason": body["reason"]}
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    return answer.status_code, body["reason"]


async def until_ready_is(world: World, expected: tuple[int, str | None]) -> None:
    async def so() -> bool:
        return await ready(world) == expected

    await comes_about(so)


async def cut(world: World) -> None:
    """Cut every connection to the world's database but its own."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    await world.database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")


@contextlib.asynccontextmanager
async def database_away(world: World) -> AsyncIterator[None]:
    """Nobody but the world itself has a connection or gets one."""
    connect = asyncpg.connect

    async def refused(*_: object, **__: object) -> Any:
        raise ConnectionRefusedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg, "connect", refused)
        await cut(world)
        yield
    assert asyncpg.connect is connect


async def test_it_is_healthy_and_ready(world: World) -> None:
    """Both answer 200 to anybody, with a body of one word, and HEAD without it."""
    for path in ("/healthz", "/readyz"):
        for client in (world.http, from_address(world, "192.0.2.1")):
            get, head = await client.get(path), await client.head(path)
            assert (get.status_code, get.json()) == (200, {"status": "ok"})
            assert get.headers["content-type"] == "application/json"
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(get.content))


async def test_other_methods_are_405_in_plain_text(world: World) -> None:
    """They are nobody's dialect: 405 is a line of text, with the methods that there are."""
    for path in ("/healthz", "/readyz"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"):
            answer = await world.http.request(method, path)
            assert (answer.status_code, answer.text) == (405, "405\n"), (method, path)
            assert answer.headers["content-type"].startswith("text/plain")
            assert answer.headers["allow"] == "GET, HEAD"


async def test_without_its_database_it_is_healthy_but_not_ready(apart: World) -> None:
    """/readyz says 503 "database" while there is none, and is 200 again by itself; the rest is told meanwhile."""
    assert await ready(apart) == (200, None)
    async with database_away(apart):
        await until_ready_is(apart, (503, "database"))
        head = await apart.http.head("/readyz")
        assert (head.status_code, head.content, head.headers["retry-after"]) == (503, b"", "1")
        assert (await apart.http.get("/healthz")).status_code == 200
        # What is counted in memory is worth most now.
        samples = await scraped(apart.http)
        assert requests(samples)["none", "HEAD", "/readyz", 503] >= 1
        assert certificates(samples) == {}
    await until_ready_is(apart, (200, None))
    assert certificates(await scraped(apart.http)) != {}


async def test_what_is_not_as_it_must_be_has_its_reason(apart: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer or older schema is "schema", a first KEK that is retired or not known is "ring"; mended, it is ready."""
    # How long a look is good for is another test's.
    monkeypatch.setattr(health, "READY_SECONDS", 0.0)
    kek, ours = apart.ring.keks[0].id, schema.version_of_this_program()
    version = (
        "UPDATE schema_version SET version = version + $1 WHERE version = (SELECT max(version) FROM schema_version)"
    )
    retired = "UPDATE keks SET retired_at = CASE WHEN $2 THEN now() END WHERE id = $1"
    renamed = "UPDATE keks SET id = $2 WHERE id = $1"
    cases: list[tuple[str, tuple[object, ...], tuple[object, ...], str]] = [
        (version, (1,), (-1,), "schema"),
        (version, (-1,), (1,), "schema"),
        # From before the first release.
        (version, (1 - ours,), (ours - 1,), "schema"),
        (retired, (kek, True), (kek, False), "ring"),
        (renamed, (kek, "another"), ("another", kek), "ring"),
    ]
    for sql, change, mend, reason in cases:
        assert await ready(apart) == (200, None)
        await apart.database.execute(sql, *change)
        assert await ready(apart) == (503, reason), change
        if reason == "ring":
            answer = await apart.http.post(apart.a.account_path, json=BODY, headers=apart.a.bearer)
            assert answer.status_code == 503
        await apart.database.execute(sql, *mend)
    assert await ready(apart) == (200, None)


class Looks:
    """Counts how often the schema's version is asked for, on every connection that is opened from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        connect = asyncpg.connect

        async def connect_and_listen(*args: Any, **kwargs: Any) -> Any:
            connection = await connect(*args, **kwargs)
            connection.add_query_logger(self._asked)
            return connection

        monkeypatch.setattr(asyncpg, "connect", connect_and_listen)

    def _asked(self, query: Any) -> None:
        self.count += query.query.startswith("SELECT max(version)")


async def test_the_database_is_looked_at_once_a_second(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks again and again costs the database one look a second."""
    async with new_world(database_url, tmp_path) as world:
        looks, began, asked = Looks(monkeypatch), time.monotonic(), 0
        await cut(world)
        # However slow the machine is, more often than once a second.
        while time.monotonic() < began + 1.5 or asked < 10:
            assert (await world.http.get("/readyz")).status_code in (200, 503)
            asked += 1
        await asyncio.sleep(0)
        assert 1 <= looks.count <= time.monotonic() - began + 1
        assert asked > looks.count


async def test_many_who_ask_at_once_are_one_look(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask, and a crowd takes no more of the database than one does."""
    async with new_world(database_url, tmp_path) as world:
        looks, began = Looks(monkeypatch), time.monotonic()
        answers = await asyncio.gather(*(world.http.get("/readyz") for _ in range(40)))
        await asyncio.sleep(0)
        assert {answer.status_code for answer in answers} == {200}
        assert 1 <= looks.count <= time.monotonic() - began + 1


# --- /metrics ---


async def test_metrics_are_prometheus_text(world: World) -> None:
    """The type is that of the text format, which has one charset; a HEAD is answered without the text."""
    get, head = await world.http.get("/metrics"), await world.http.head("/metrics")
    assert get.headers["content-type"] == head.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (head.status_code, head.content) == (200, b"")
    names = {name for name, _ in read(get.text)}
    assert {"keystead_certificates", "keystead_key_pool_keys", "keystead_database_connections"} <= names
    assert get.text.endswith("\n")


async def test_every_request_is_counted_under_its_route(world: World) -> None:
    """Dialect, method, template and status of each are told, paths that no route has are "-", odd methods "other"."""
    account, zone = "/client/v4/accounts/", "/client/v4/zones/"
    made, made_in_zone = await world.create(), await world.create(path=world.a.zone_path)
    me, slug = world.a.bearer, world.a.account.slug
    a, a_zone = world.a.account_path, world.a.zone_path
    ca = "/api/v1/pki/ca"
    table: list[tuple[str, str, Any, Route]] = [
        ("GET", a, me, ("cloudflare", "GET", f"{account}{LIST}", 200)),
        ("GET", f"{a}/", me, ("cloudflare", "GET", f"{account}{LIST}", 200)),
        ("GET", f"{a}?page=0", me, ("cloudflare", "GET", f"{account}{LIST}", 400)),
        ("HEAD", a, me, ("cloudflare", "HEAD", f"{account}{LIST}", 200)),
        ("GET", a, {}, ("cloudflare", "GET", f"{account}{LIST}", 400)),
        ("GET", a, world.b.bearer, ("cloudflare", "GET", f"{account}{LIST}", 403)),
        ("POST", a, me, ("cloudflare", "POST", f"{account}{LIST}", 201)),
        ("GET", f"{a}/{made['id']}", me, ("cloudflare", "GET", f"{account}{ONE}", 200)),
        ("GET", f"{a}/{uuid4()}", me, ("cloudflare", "GET", f"{account}{ONE}", 404)),
        ("GET", f"{a}/x", me, ("cloudflare", "GET", f"{account}{ONE}", 400)),
        ("DELETE", f"{a}/{made['id']}", me, ("cloudflare", "DELETE", f"{account}{ONE}", 200)),
        (
            "GET",
            f"{a_zone}/{made_in_zone['id']}",
            me,
            ("cloudflare", "GET", f"{zone}{{zone_id}}/custom_csrs/{{custom_csr_id}}", 200),
        ),
        ("GET", f"{a}/{made['id']}/x", me, ("cloudflare", "GET", "-", 404)),
        ("GET", "/client/v4/nothing", me, ("cloudflare", "GET", "-", 404)),
        ("GET", "/client/v4//user", me, ("cloudflare", "GET", "-", 404)),
        ("PATCH", a, me, ("cloudflare", "PATCH", "-", 405)),
        ("OPTIONS", a, me, ("cloudflare", "OPTIONS", "-", 405)),
        ("BREW", a, me, ("cloudflare", "other", "-", 405)),
        ("PROPFIND", a, me, ("cloudflare", "other", "-", 405)),
        ("get", a, me, ("cloudflare", "other", "-", 405)),
        ("GET", f"{ca}/{uuid4()}", me, ("infisical", "GET", f"{ca}/{{ca_id}}", 404)),
        ("GET", f"{ca}/{uuid4()}", {}, ("infisical", "GET", f"{ca}/{{ca_id}}", 401)),
        ("GET", f"/api/v1/{slug}", me, ("infisical", "GET", "-", 404)),
        ("GET", "/healthz", {}, ("none", "GET", "/healthz", 200)),
        ("HEAD", "/healthz", {}, ("none", "HEAD", "/healthz", 200)),
        ("BREW", "/healthz", {}, ("none", "other", "-", 405)),
        ("GET", "/readyz", {}, ("none", "GET", "/readyz", 200)),
        ("GET", "/metrics", {}, ("none", "GET", "/metrics", 200)),
        ("GET", "/openapi.json", {}, ("none", "GET", "/openapi.json", 200)),
        ("GET", "/", {}, ("none", "GET", "/", 200)),
        ("GET", f"/{uuid4()}", {}, ("none", "GET", "-", 404)),
        ("GET", "/%zz", {}, ("none", "GET", "-", 404)),
    ]
    before = requests(await scraped(world.http))
    for method, target, headers, expected in table:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=target.encode())
        # httpx would write the method in capitals.
        asked = httpx.Request("GET", url, headers=headers, json=BODY if method == "POST" else None)
        asked.method = method
        answer = await from_address(world, "127.0.0.1").send(asked)
        assert answer.status_code == expected[3], (method, target, answer.text)
        after = requests(await scraped(world.http))
        # The scrape before is counted after it was answered.
        found, before = more(after, before), after
        scrape: Route = ("none", "GET", "/metrics", 200)
        assert found == ({scrape: 2} if expected == scrape else {expected: 1, scrape: 1}), (method, target)


async def test_the_number_of_series_stays_bounded(world: World) -> None:
    """Whatever paths, methods and ids are asked for, no series is added for them."""
    made = await world.create()
    here, me = world.a.account_path, world.a.bearer

    async def round_of(number: int) -> None:
        word = f"{number:032x}"
        targets = [
            *(f"{here}/{uuid4()}", f"{here}/{made['id']}?x={word}", f"{here}/{word}", f"/client/v4/{word}"),
            *(f"/client/v4/accounts/{word}/custom_csrs", f"/client/v4/zones/{word}/custom_csrs/{uuid4()}"),
            *(f"/{word}", f"/docs/{word}", f"/api/v1/{word}", f"/api/v1/pki/ca/{uuid4()}", f"/metrics/{word}"),
            *(f"/%zz{word}", f"/client/v4/%00{word}", f"//{word}"),
        ]
        for target in targets:
            url = httpx.URL("http://127.0.0.1:8787", raw_path=target.encode())
            await from_address(world, f"192.0.2.{number + 1}").get(url, headers=me)
        for method in (f"M{word}", f"m{number}"):
            await from_address(world, "127.0.0.1").request(method, f"/{word}", headers=me)

    await round_of(0)
    await scraped(world.http)
    before = set(await scraped(world.http))
    for number in range(1, 25):
        await round_of(number)
    assert set(await scraped(world.http)) == before


async def test_no_id_and_no_address_is_in_the_metrics(world: World) -> None:
    """Neither ids nor names, tokens, emails or addresses are in any label, whoever asked for whatever."""
    made, another = (
        await world.create(name="a-name-of-a-csr"),
        await make_token(world.services, world.a.account),
    )
    told = [made["id"], "a-name-of-a-csr", "198.51.100.77", "example.com", another]
    for tenant in (world.a, world.b):
        user, key = tenant.email, tenant.key
        told += [tenant.account.id.hex, str(tenant.account.id), tenant.zone.id.hex, str(tenant.zone.id)]
        told += [tenant.token, tenant.read_token, user, key]
        for headers in (tenant.bearer, {"X-Auth-Email": user, "X-Auth-Key": key}):
            for path in (*tenant.paths, f"{tenant.account_path}/{made['id']}", f"/{another}", f"/{user}"):
                await from_address(world, "198.51.100.77").get(path, headers=headers)
                await from_address(world, "198.51.100.77").request(tenant.zone.id.hex, path, headers=headers)
    ids = [row["id"] for row in await world.database.fetch("SELECT id FROM tokens UNION SELECT id FROM users")]
    assert ids
    told += [*(each.hex for each in ids), *map(str, ids)]
    text = (await world.http.get("/metrics")).text
    for word in told:
        assert word.lower() not in text.lower(), word


async def test_histograms_and_counters_agree(world: World) -> None:
    """For each dialect and route as many times were taken as requests counted; buckets only grow to their sum."""
    made = await world.create()
    for path in (
        f"{world.a.account_path}/{made['id']}",
        f"{world.a.account_path}/{uuid4()}",
        "/nothing",
        "/api/nothing",
    ):
        for method in ("GET", "HEAD", "PUT"):
            for headers in (world.a.bearer, {}):
                await world.http.request(method, path, headers=headers)
    samples = await scraped(world.http)
    counted: dict[tuple[str, str], float] = {}
    for (dialect, _, route, _), value in requests(samples).items():
        counted[dialect, route] = counted.get((dialect, route), 0) + value
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    for (name, labels), value in samples.items():
        if name == "keystead_request_seconds_bucket":
            told = dict(labels)
            edge = float(told.pop("le"))
            buckets.setdefault(frozenset(told.items()), []).append((edge, value))
    found = {}
    for labels, each in buckets.items():
        told = dict(labels)
        values = [value for _, value in sorted(each)]
        assert values == sorted(values)
        assert max(each)[0] == float("inf")
        assert samples["keystead_request_seconds_sum", labels] > 0
        found[told["dialect"], told["route"]] = samples["keystead_request_seconds_count", labels]
        assert values[-1] == found[told["dialect"], told["route"]]
    assert found == counted


async def test_making_a_key_on_demand_is_timed(world: World) -> None:
    """An RSA key that had to be waited for is one of its kind in the histogram; P-256 and refused bodies are none."""

    async def times() -> Samples:
        samples = await scraped(world.http)
        names = tuple(f"keystead_key_generation_seconds_{each}" for each in ("count", "sum"))
        return {key: value for key, value in samples.items() if key[0] in names}

    before = await times()
    await world.create()
    refused = {**BODY, "key_type": "rsa2048", "country": "xx"}
    assert (await world.http.post(world.a.account_path, json=refused, headers=world.a.bearer)).status_code == 400
    assert await times() == before
    await world.create(key_type="rsa2048")
    grown = {key: value - before.get(key, 0) for key, value in (await times()).items() if value != before.get(key)}
    kind = frozenset({("key_type", "rsa2048")})
    assert grown.keys() == {
        ("keystead_key_generation_seconds_count", kind),
        ("keystead_key_generation_seconds_sum", kind),
    }
    assert grown["keystead_key_generation_seconds_count", kind] == 1


async def test_the_pool_tells_how_many_keys_are_ready(database_url: str, tmp_path: Path) -> None:
    """The gauge comes to the pool's size by itself, and a key that was ready is not one made on demand."""
    async with new_world(database_url, tmp_path, key_pool=2) as world:
        maker = world.state.services.pool._maker

        async def full() -> bool:
            if maker._process:
                hurry(maker._process.pid)
            level = gauge(await scraped(world.http), "key_pool_keys")
            assert 0 <= level <= 2
            return level == 2

        await comes_about(full)
        made = ("key_generation_seconds_count",)
        before = gauge(await scraped(world.http), *made, key_type="rsa2048")
        answers = [
            await world.http.post(world.a.account_path, json={**BODY, "key_type": "rsa2048"}, headers=world.a.bearer)
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert gauge(await scraped(world.http), *made, key_type="rsa2048") == before
        await comes_about(full)


async def test_connections_are_told_as_used_and_idle(world: World) -> None:
    """The worker's connections are all counted, each as one or the other."""

    async def told() -> bool:
        samples = await scraped(world.http)
        used, idle = (gauge(samples, "database_connections", state=state) for state in ("in_use", "idle"))
        return used >= 0 and idle >= 1 and used + idle == 8

    await comes_about(told)


async def test_certificates_are_counted_by_their_days(database_url: str, tmp_path: Path) -> None:
    """Of all accounts, every certificate is in one place: expired, up to 7, 30 or 90 days left, or more."""
    left = {"0": [-400, -1], "7": [1], "30": [8, 20, 29], "90": [31], "more": [91, 400, 3000]}
    async with new_world(database_url, tmp_path) as world:
        ca = root()
        world.trust(chains.anchors([pem(ca.certificate).encode()]))
        tenants = [world.a, world.b]
        days = [day for each in left.values() for day in each]
        for number, day in enumerate(days):
            tenant = tenants[number % 2]
            csr = await world.create(tenant)
            body = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
            path = f"/client/v4/zones/{tenant.zone.id.hex}/custom_certificates"
            answer = await world.http.post(path, json=body, headers=tenant.bearer)
            assert answer.status_code == 200, answer.text
            # What has expired cannot be uploaded.
            sql = "UPDATE custom_certificates SET not_after = now() + make_interval(days => $2) WHERE id = $1"
            await world.database.execute(sql, UUID(answer.json()["result"]["id"]), day)
        found = certificates(await scraped(world.http))
        assert found == {days: float(len(each)) for days, each in left.items()}


async def test_a_world_without_certificates_says_so(world: World) -> None:
    """None is told as 0 for each of the days, so that an alarm on the absence of a series is not raised."""
    found = certificates(await scraped(world.http))
    assert found == dict.fromkeys(("0", "7", "30", "90", "more"), 0.0)


# --- who may see the metrics ---


async def seen(world: World, peer: str, *forwarded: str) -> bool:
    """Whether the metrics are shown; to others /metrics is answered as a path that is not there."""
    return await shown_with(world, peer, [("X-Forwarded-For", each) for each in forwarded])


async def shown_with(world: World, peer: str, headers: list[tuple[str, str]]) -> bool:
    async with from_address(world, peer) as http:
        answer, head = await http.get("/metrics", headers=headers), await http.head("/metrics", headers=headers)
        assert head.status_code == answer.status_code
        assert head.content == b""
        if answer.status_code == 200:
            assert "keystead_requests_total" in answer.text
            return True
        other = await http.get("/metricz", headers=headers)
    changing = ("x-request-id", "cf-ray")
    for each in (answer, other):
        for name in changing:
            del each.headers[name]
    assert (answer.status_code, answer.text, dict(answer.headers)) == (404, other.text, dict(other.headers))
    return False


async def test_metrics_are_for_this_machine_by_default(world: World) -> None:
    """Loopback alone sees them, and not when it speaks for somebody else, which no proxy of ours would."""
    cases = [
        ("127.0.0.1", (), True),
        ("127.9.9.9", (), True),
        ("::1", (), True),
        ("::ffff:127.0.0.1", (), True),
        ("192.0.2.1", (), False),
        ("::ffff:192.0.2.1", (), False),
        ("2001:db8::1", (), False),
        ("192.0.2.1", ("127.0.0.1",), False),
        ("127.0.0.1", ("127.0.0.1",), False),
        ("127.0.0.1", ("192.0.2.1",), False),
        ("127.0.0.1", ("",), False),
        ("::1", ("::1",), False),
    ]
    for peer, forwarded, shown in cases:
        assert await seen(world, peer, *forwarded) == shown, (peer, forwarded)


async def test_metrics_are_for_the_addresses_of_the_setting(database_url: str, tmp_path: Path) -> None:
    """KEYSTEAD_METRICS_FROM replaces loopback, and behind a trusted proxy it is the client's address that counts."""
    networks = tuple(ipaddress.ip_network(text) for text in ("198.51.100.0/24", "2001:db8:1::/48"))
    proxies = tuple(ipaddress.ip_network(text) for text in ("127.0.0.1/32", "10.0.0.0/8"))
    cases = [
        ("198.51.100.7", (), True),
        ("2001:db8:1::7", (), True),
        ("127.0.0.1", (), False),
        ("203.0.113.7", (), False),
        # Not a proxy of ours: what it forwards means nothing, to its gain or its loss.
        ("203.0.113.7", ("198.51.100.7",), False),
        ("198.51.100.7", ("203.0.113.7",), False),
        ("127.0.0.1", ("198.51.100.7",), True),
        ("10.1.1.1", ("2001:db8:1::7",), True),
        ("10.1.1.1", ("198.51.100.7, 10.2.2.2",), True),
        ("10.1.1.1", ("198.51.100.7, 203.0.113.7",), False),
        ("10.1.1.1", ("203.0.113.7",), False),
        ("10.1.1.1", (), False),
        # No address is nobody's.
        ("10.1.1.1", ("198.51.100.7, unknown",), False),
        ("10.1.1.1", ("198.51.100.7", ""), False),
    ]
    async with new_world(database_url, tmp_path, metrics_from=networks, trusted_proxies=proxies) as world:
        for peer, forwarded, shown in cases:
            assert await seen(world, peer, *forwarded) == shown, (peer, forwarded)


# Whatever a proxy adds that does not say for whom it asks, or is not believed.
FORWARDED: list[list[tuple[str, str]]] = [
    [("Forwarded", "for=192.0.2.1")],
    [("Forwarded", 'for="[2001:db8::1]:4711";proto=https, for=127.0.0.1')],
    [("Forwarded", "")],
    [("Via", "1.1 proxy")],
    [("via", "")],
    [("X-Real-IP", "192.0.2.1")],
    [("x-REAL-ip", "127.0.0.1")],
    [("X-Real-IP", "")],
    [("X-Real-IP", "127.0.0.1"), ("X-Real-IP", "192.0.2.1")],
    [("Via", "1.1 a"), ("Via", "1.1 b")],
    [("X-Forwarded-For", "")],
    [("X-Forwarded-For", ""), ("x-forwarded-for", "")],
    [("X-Forwarded-Proto", "https")],
    [("X-Forwarded-Host", "keystead.example.com")],
]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
async def test_a_proxy_that_is_not_declared_does_not_open_the_metrics(world: World, peer: str) -> None:
    """A request from this machine that says in any header that it was forwarded is not this machine's own."""
    assert await shown_with(world, peer, [])
    for headers in FORWARDED:
        assert not await shown_with(world, peer, headers), headers


async def test_a_trusted_proxy_opens_the_metrics_by_the_clients_address_only(database_url: str, tmp_path: Path) -> None:
    """It must say in X-Forwarded-For for whom it asks; its own address does not count, whatever else it adds."""
    proxies = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.0.0.0/8"))
    networks = (*proxies, ipaddress.ip_network("198.51.100.0/24"))
    async with new_world(database_url, tmp_path, metrics_from=networks, trusted_proxies=proxies) as world:
        for headers in FORWARDED:
            assert not await shown_with(world, "127.0.0.1", headers), headers
            if all(name.lower() != "x-forwarded-for" for name, _ in headers):
                scraper, stranger = ("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-For", "203.0.113.7")
                assert await shown_with(world, "127.0.0.1", [*headers, scraper]), headers
                assert not await shown_with(world, "127.0.0.1", [*headers, stranger]), headers
                assert not await shown_with(world, "198.51.100.7", [*headers, scraper]), headers


async def test_the_spelling_of_a_header_on_the_wire_makes_no_difference(live: Live) -> None:
    """Names of headers come to the real server in any case, and each of them closes the metrics."""
    port = int(live.url.rpartition(":")[2])
    cases = [(b"", b"200"), *((name + b": x\r\n", b"404") for name in (b"FORWARDED", b"vIA", b"X-real-IP"))]
    for header, status in cases:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n"), DEADLINE)
        writer.close()
        assert head.split()[1] == status, header


async def test_other_methods_do_not_tell_that_metrics_are_there(world: World) -> None:
    """Whoever may not see the metrics is answered as on any path that is not there, whatever the method."""
    async with from_address(world, "192.0.2.1") as http:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            here, nowhere = await http.request(method, "/metrics"), await http.request(method, "/metricz")
            assert (here.status_code, here.text) == (nowhere.status_code, nowhere.text), method
            assert here.headers.get("allow") == nowhere.headers.get("allow")


# --- several workers ---


def fresh(live: Live) -> httpx.AsyncClient:
    """A connection for each request, so that all workers are met."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=live.url, limits=limits, timeout=DEADLINE)


def workers(parent: int) -> list[int]:
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        # One may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def gauge_files(live: Live) -> set[int]:
    """The workers that a file of gauges is kept of."""
    return {int(path.stem.rpartition("_")[2]) for path in (live.data_dir / "metrics").glob("gauge_live*_*.db")}


def counting(live: Live) -> set[int]:
    """The workers that have counted a request of the list."""
    files = (live.data_dir / "metrics").glob("counter_*.db")
    return {int(path.stem.rpartition("_")[2]) for path in files if LISTED[2].encode() in path.read_bytes()}


LISTED: Route = ("cloudflare", "GET", f"/client/v4/accounts/{LIST}", 200)


async def ask(live: Live, http: httpx.AsyncClient, count: int) -> None:
    answers = await asyncio.gather(*(http.get(live.account_path, headers=live.bearer) for _ in range(count)))
    assert [answer.status_code for answer in answers] == [200] * count


async def stays(http: httpx.AsyncClient, key: Route, expected: float) -> None:
    """The counter comes to this number, and is it in every later scrape; no other counter goes back."""

    async def there() -> bool:
        # A request is counted after it was answered.
        return requests(await scraped(http)).get(key, 0) >= expected

    await comes_about(there)
    last: dict[Route, float] = {}
    for _ in range(10):
        found = requests(await scraped(http))
        assert found.get(key, 0) == expected
        assert all(found[each] >= value for each, value in last.items())
        last = found


@pytest.mark.serve
async def test_counters_are_the_sum_over_workers_that_come_and_go(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Either worker tells the same sum, which stays when one is killed, whose gauges go; a restart begins at zero."""
    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path / "data", workers=2) as live:
            async with fresh(live) as http:
                asked = 0
                while asked == 0 or len(counting(live)) < 2:
                    await ask(live, http, 40)
                    asked += 40
                    await stays(http, LISTED, asked)
                both = workers(live.pid)
                assert counting(live) == set(both)
                await comes_about(lambda: connections_are(http, 16))
                assert gauge_files(live) == set(both)
                os.kill(both[0], signal.SIGKILL)
                await comes_about(lambda: replaced(live, http, both[0], asked))
                await ask(live, http, 10)
                await stays(http, LISTED, asked + 10)
                await comes_about(lambda: connections_are(http, 16))
                assert gauge_files(live) == set(workers(live.pid))
        with serving(url, tmp_path / "data", workers=2) as live:
            async with fresh(live) as http:
                assert LISTED not in requests(await scraped(http))
                await ask(live, http, 3)
                await stays(http, LISTED, 3)


async def connections_are(http: httpx.AsyncClient, expected: float) -> bool:
    """Whether all workers have told theirs; those of the dead do not count, so that there are never more."""
    samples = await scraped(http)
    found = sum(gauge(samples, "database_connections", state=state) for state in ("in_use", "idle"))
    assert found <= expected
    return found == expected


async def replaced(live: Live, http: httpx.AsyncClient, dead: int, asked: int) -> bool:
    """Whether another worker has taken the place of one that was killed; every scrape meanwhile is a good one."""
    # A connection that the dead one had taken is reset.
    with contextlib.suppress(httpx.TransportError):
        assert requests(await scraped(http))[LISTED] == asked
    now = workers(live.pid)
    return dead not in now and len(now) == 2


@pytest.mark.serve
async def test_a_worker_that_was_killed_as_it_began_costs_no_scrape(live: Live) -> None:
    """A file that a worker has made and not yet filled, for a moment or for ever, is one without numbers."""
    folder, nobody = live.data_dir / "metrics", 2**22 + 1
    begun = [folder / f"{kind}_{nobody}.db" for kind in ("counter", "histogram", "gauge_livesum")]
    async with fresh(live) as http:

        async def told() -> bool:
            return bool(requests(await scraped(http)))

        await comes_about(told)
        try:
            for path in begun:
                path.touch()
            for _ in range(4):
                assert requests(await scraped(http))
        finally:
            for path in begun:
                path.unlink(missing_ok=True)
