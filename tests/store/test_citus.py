"""On a Citus cluster, where KEYSTEAD_TEST_CITUS_URLS names one: what holds on one machine holds there."""

import asyncio
import collections
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import pytest
from cloudflare import Cloudflare
from support.api_role import Client, Served
from support.authority import pem, root
from support.citus import NEEDS_CLUSTER, URLS, at, make_role, spread, urls
from support.databases import connected, new_database
from support.live import Live, free_port, serving
from support.role_use import install, use_everything
from support.rotation import Place
from support.sql_texts import texts
from support.waiting import comes_about, until
from support.world import BODY, World, new_world

from keystead.commands import doctor
from keystead.custody import ring as ringfile
from keystead.custody import rotation
from keystead.identity import zones
from keystead.server import first_start, postgres, roles
from keystead.store import database as db
from keystead.store import distribution, schema
from keystead.x509 import chains

CREATORS = 24
# One statement for several certificates; they are looked up one by one (`viewed`).
_NOT_THERE = ("keystead.ca.search._VIEWED",)
# The bundled PostgreSQL's own, and what plain PostgreSQL does not know.
_ELSEWHERE = ("keystead.server.roles.", "keystead.store.distribution.", "keystead.store.locks.", *_NOT_THERE)
_NOW = datetime.now(UTC)
_VALUES: dict[str, object] = {
    "uuid": UUID(int=1),
    **dict.fromkeys(("text", "varchar", "name"), "a"),
    **dict.fromkeys(("int2", "int4", "int8", "oid"), 1),
    "float8": 1.0,
    "bool": True,
    "bytea": 32 * b"0",
    "timestamptz": _NOW,
    "interval": timedelta(1),
    "json": "[]",
    "jsonb": "{}",
    "inet": ip_interface("192.0.2.1"),
    "cidr": ip_network("192.0.2.0/24"),
}


def _value(kind: str) -> object:
    # asyncpg's name of an array.
    return [_value(kind[:-2])] if kind.endswith("[]") else _VALUES[kind]


@pytest.fixture(scope="module")
async def citus_url() -> AsyncIterator[str]:
    async with spread() as url:
        yield url


@pytest.fixture(
    scope="module",
    params=["PostgreSQL", *(pytest.param(each, marks=NEEDS_CLUSTER) for each in ("Citus", "a worker of Citus"))],
)
async def citus(
    request: pytest.FixtureRequest, cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """Two tenants behind an application that takes its database for a distributed one; of Citus it is one.

    It is connected to the coordinator or to another node.
    """
    folder = tmp_path_factory.mktemp("citus")
    if request.param != "PostgreSQL":
        node = urls()[request.param != "Citus"]
        async with spread() as url, new_world(at(node, url), folder) as made:
            yield made
        return
    async with new_database(cluster, "blank") as url:
        connection: db.Connection = await asyncpg.connect(url)
        await connection.execute(distribution.SCOPES)
        await connection.close()
        async with new_world(url, folder) as made:
            yield made


async def _statuses(*requests: Any) -> dict[int, int]:
    return dict(collections.Counter(answer.status_code for answer in await asyncio.gather(*requests)))


async def _refusal(connection: db.Connection, sql: str) -> str:
    transaction = connection.transaction()
    await transaction.start()
    try:
        prepared = await connection.prepare(sql)
        await prepared.fetch(*(_value(each.name) for each in prepared.get_parameters()))
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError):
        # The values mean nothing.
        return ""
    except asyncpg.PostgresError as error:
        return "" if db.constraint(error) or "kek_id" in str(error) else str(error)
    finally:
        await transaction.rollback()
    return ""


async def _refused(url: str) -> dict[str, str]:
    async with connected(url) as connection:
        taken = {place: sql for place, sql in texts().items() if not place.startswith(_ELSEWHERE)}
        return {place: refusal for place, sql in taken.items() if (refusal := await _refusal(connection, sql))}


async def test_every_statement_is_taken(citus_url: str, database_url: str) -> None:
    """Each SQL text is prepared and executed: Citus refuses some only then. Parts of texts are refused by both."""
    parts = await _refused(database_url)
    assert [(place, text) for place, text in (await _refused(citus_url)).items() if place not in parts] == []


@pytest.fixture
async def without_deadlocks(citus: World) -> AsyncIterator[None]:
    """No node has counted a deadlock meanwhile; without a cluster there is one."""
    url = citus.settings.database_url or ""
    nodes = [at(node, url) for node in urls()] if _is_spread(citus) else [url]
    before = [await _deadlocks(node) for node in nodes]
    yield
    assert [await _deadlocks(node) for node in nodes] == before


def _is_spread(citus: World) -> bool:
    return urlsplit(citus.settings.database_url or "").port in {urlsplit(node).port for node in URLS}


async def _deadlocks(url: str) -> int:
    async with connected(url) as connection:
        found = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(found)


@pytest.mark.usefixtures("without_deadlocks")
async def test_creates_at_once_make_no_errors(citus: World) -> None:
    """24 in one account and 24 in one zone come at once, and each is there once, with its key and in the count."""
    for path in citus.a.paths:
        before = (await citus.http.get(f"{path}?per_page=50", headers=citus.a.bearer)).json()
        posts = [citus.http.post(path, json=BODY, headers=citus.a.bearer) for _ in range(CREATORS)]
        assert await _statuses(*posts) == {201: CREATORS}
        page = (await citus.http.get(f"{path}?per_page=50", headers=citus.a.bearer)).json()
        there = {each["id"] for each in page["result"]}
        assert len(there - {each["id"] for each in before["result"]}) == CREATORS
        assert page["result_info"]["total_count"] == len(there)
        first = page["result"][0]
        got = (await citus.http.get(f"{path}/{first['id']}", headers=citus.a.bearer)).json()["result"]
        assert got == first
        await citus.key_of(first["id"])


@pytest.mark.usefixtures("without_deadlocks")
async def test_creates_in_many_accounts_do_not_deadlock(citus: World) -> None:
    """Connections of their own create in four accounts crosswise; PostgreSQL sees no deadlock on any node."""
    owner = {"X-Auth-Email": citus.a.email, "X-Auth-Key": citus.a.key}
    paths = []
    for number in range(4):
        made = await citus.http.post("/client/v4/accounts", json={"name": f"m {number}"}, headers=owner)
        paths.append(f"/client/v4/accounts/{made.json()['result']['id']}/custom_csrs")
    posts = [citus.http.post(path, json=BODY, headers=owner) for _ in range(CREATORS // 4) for path in paths]
    assert await _statuses(*posts) == {201: CREATORS}


async def test_a_key_makes_one_csr(citus: World) -> None:
    """Of many requests with one Idempotency-Key one creates, and the others answer the same."""
    headers = {**citus.a.bearer, "Idempotency-Key": "once"}
    posts = [citus.http.post(citus.a.account_path, json=BODY, headers=headers) for _ in range(8)]
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["result"]["id"] for answer in answers}) == 1


async def test_quotas_hold(citus: World) -> None:
    """Of creators at once as many succeed as the quota of the zone has left, and a deletion makes room for one."""
    changes = zones.Changes(csr_quota=5)
    zone = await zones.create_in(citus.database, first_start.operator(), citus.b.account, "quota.example.com")
    await zones.set_(citus.database, first_start.operator(), zone, changes)
    path = f"/client/v4/zones/{zone.id.hex}/custom_csrs"

    async def tried(number: int) -> dict[int, int]:
        return await _statuses(*(citus.http.post(path, json=BODY, headers=citus.b.bearer) for _ in range(number)))

    found = await tried(CREATORS)
    assert found[201] == 5
    assert sum(found.values()) == CREATORS
    held = (await citus.http.get(path, headers=citus.b.bearer)).json()["result"]
    assert (await citus.http.delete(f"{path}/{held[0]['id']}", headers=citus.b.bearer)).status_code == 200
    assert (await tried(3))[201] == 1


async def test_a_zone_that_is_deleted_meanwhile_keeps_no_csr(citus: World) -> None:
    """Creates and the deletion of their zone come at once: it is refused because of them, or they find no zone."""
    owner = {"X-Auth-Email": citus.a.email, "X-Auth-Key": citus.a.key}
    account = {"id": citus.a.account.id.hex}
    for number in range(6):
        body = {"name": f"race{number}.example.com", "account": account}
        zone = (await citus.http.post("/client/v4/zones", json=body, headers=owner)).json()["result"]["id"]
        path = f"/client/v4/zones/{zone}/custom_csrs"
        posts = [citus.http.post(path, json=BODY, headers=owner) for _ in range(3)]
        *made, deleted = await asyncio.gather(*posts, citus.http.delete(f"/client/v4/zones/{zone}", headers=owner))
        held = await citus.database.fetchrow(
            "SELECT count(*) FROM custom_csrs WHERE account_id = $1 AND scope_id = $2", citus.a.account.id, UUID(zone)
        )
        assert held is not None
        assert held["count"] == [answer.status_code for answer in made].count(201)
        assert (held["count"] == 0) == (deleted.status_code == 200)
        assert {answer.status_code for answer in made} <= {201, 404}


async def test_a_csr_and_its_certificate_do_not_part(citus: World) -> None:
    """A certificate is uploaded while its CSR is deleted: both are there, or neither."""
    ca = root()
    citus.trust(chains.anchors([pem(ca.certificate).encode()]))
    certificates = citus.a.zone_path.replace("custom_csrs", "custom_certificates")
    for _ in range(6):
        csr = await citus.create(path=citus.a.zone_path)
        body = {"custom_csr_id": csr["id"], "certificate": pem(ca.of_csr(csr["csr"]))}
        uploaded, deleted = await asyncio.gather(
            citus.http.post(certificates, json=body, headers=citus.a.bearer),
            citus.http.delete(f"{citus.a.zone_path}/{csr['id']}", headers=citus.a.bearer),
        )
        assert (uploaded.is_success, deleted.is_success) in {(True, False), (False, True)}


async def test_an_account_ends_with_all_that_is_its_own(citus: World) -> None:
    """An account is made, used, emptied and deleted over the API; with something in it the deletion is refused."""
    owner = {"X-Auth-Email": citus.a.email, "X-Auth-Key": citus.a.key}
    made = (await citus.http.post("/client/v4/accounts", json={"name": "ends"}, headers=owner)).json()["result"]
    path = f"/client/v4/accounts/{made['id']}"
    csr = (await citus.http.post(f"{path}/custom_csrs", json=BODY, headers=owner)).json()["result"]
    assert (await citus.http.delete(path, headers=owner)).status_code == 409
    assert (await citus.http.delete(f"{path}/custom_csrs/{csr['id']}", headers=owner)).status_code == 200
    assert (await citus.http.delete(path, headers=owner)).status_code == 200
    assert (await citus.http.get(path, headers=owner)).status_code == 404


async def test_a_retired_kek_seals_nothing(citus: World) -> None:
    """A server whose KEK was retired meanwhile is refused, and stores nothing."""
    count = "SELECT count(*) FROM private_keys"
    before = await citus.database.fetchrow(count)
    kek = citus.ring.keks[0].id
    await citus.database.execute("UPDATE keks SET retired_at = now() WHERE id = $1", kek)
    try:
        answer = await citus.http.post(citus.a.account_path, json=BODY, headers=citus.a.bearer)
    finally:
        await citus.database.execute("UPDATE keks SET retired_at = NULL WHERE id = $1", kek)
    assert answer.status_code == 503
    assert await citus.database.fetchrow(count) == before


@pytest.mark.usefixtures("without_deadlocks")
async def test_a_rotation_goes_on_beside_creates(citus: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys are re-wrapped under a new KEK while others are made; then the old one retires, and all keys open."""
    path, creating = citus.settings.keyring, asyncio.Event()
    old = citus.ring.keks[0].id

    async def create(path: str) -> None:
        while not creating.is_set():
            assert (await citus.http.post(path, json=BODY, headers=citus.a.bearer)).status_code == 201

    creators = [asyncio.create_task(create(path)) for path in citus.a.paths]
    try:
        new = await rotation.add(citus.database, citus.ring, lambda _: first_start.operator(), path)
        ringfile.promote(path)
        ring = ringfile.load(path)
        async for batch in rotation.rewrap(citus.database, ring):
            assert batch.damaged == ()
    finally:
        creating.set()
        await asyncio.gather(*creators)
    # One may have been sealed under the old KEK, and written later.
    async for batch in rotation.rewrap(citus.database, ring):
        assert batch.damaged == ()
    monkeypatch.setattr(ringfile, "SETTLED", timedelta(0))
    await rotation.retire(citus.database, ring, first_start.operator(), path, old)
    assert {*await rotation.counts(citus.database)} == {new}
    async for batch in rotation.verify(citus.database, ring):
        assert batch.damaged == ()
    assert (await citus.http.post(citus.a.account_path, json=BODY, headers=citus.a.bearer)).status_code == 201


def _told(url: str, folder: Path) -> dict[str, doctor.Finding]:
    environ = {"KEYSTEAD_DATABASE_URL": url, "KEYSTEAD_DATA_DIR": str(folder)}
    return {finding.check: finding for finding in doctor.examine(environ)}


async def test_doctor_looks_at_each_node(citus_url: str, tmp_path: Path) -> None:
    """It counts nodes and parts, and names the node and the setting where one is not durable."""
    found = (await asyncio.to_thread(_told, citus_url, tmp_path))["cluster"]
    assert found.good or "127.0.0.1:" in found.text
    worker: db.Connection = await asyncpg.connect(at(urls()[-1], citus_url))
    port = urlsplit(urls()[-1]).port
    try:
        await worker.execute("ALTER SYSTEM SET synchronous_commit = off")
        await worker.execute("SELECT pg_reload_conf()")

        async def seen() -> bool:
            text = (await asyncio.to_thread(_told, citus_url, tmp_path))["cluster"].text
            return re.search(rf":{port}: [^;]*synchronous_commit is off", text) is not None

        await comes_about(seen)
    finally:
        await worker.execute("ALTER SYSTEM RESET synchronous_commit")
        await worker.execute("SELECT pg_reload_conf()")
        await worker.close()


@pytest.mark.serve
@pytest.mark.parametrize("node", [0, 1], ids=["coordinator", "worker"])
async def test_the_role_of_the_servers_serves_everything(tmp_path: Path, node: int) -> None:
    """With its GRANTS a server does what the API does, and what the SDK asks for; commands go to its node too."""
    async with spread() as url:
        await make_role("keystead_api")
        place = Place(at(urls()[node], url), tmp_path / "data")
        install(place)
        grants = f"{roles.GRANTS};{distribution.GRANTS}".replace(
            "DATABASE keystead", f"DATABASE {urlsplit(url).path[1:]}"
        )
        async with connected(url) as connection:
            for statement in schema.statements(grants):
                await connection.execute(statement)
        there = urlsplit(at(urls()[node], url))
        narrow = urlunsplit(there._replace(netloc=f"keystead_api@{there.netloc.split('@')[-1]}"))
        listen = {"KEYSTEAD_DELIVERY_LISTEN": f"127.0.0.1:{free_port()}"}
        with serving(narrow, tmp_path / "data", workers=2, environ=listen) as live:
            live.env.update(listen)
            served = Served(live, place, "", "keystead_api", live.log)
            client = Client(live, live.env["CLOUDFLARE_API_TOKEN"])
            with client.http:
                await asyncio.to_thread(use_everything, served, client)
            await asyncio.to_thread(_use_the_sdk, live)
        # What was provoked, and nothing else, not even in its work of its own, which only logs it.
        log = await asyncio.to_thread(live.log.read_text)
        assert log.count('"level": "error"') == log.count("KeyDamaged: ") == 1


def _use_the_sdk(live: Live) -> None:
    client = Cloudflare(api_token=live.env["CLOUDFLARE_API_TOKEN"], base_url=live.env["CLOUDFLARE_BASE_URL"])
    account = live.env["CLOUDFLARE_ACCOUNT_ID"]
    made = client.custom_csrs.create(account_id=account, **BODY)
    assert made
    assert made.id
    got = client.custom_csrs.get(made.id, account_id=account)
    assert got
    assert got.csr == made.csr
    client.custom_csrs.delete(made.id, account_id=account)
    assert made.id not in [each.id for each in client.custom_csrs.list(account_id=account)]


async def _postmaster(url: str) -> int:
    async with connected(url) as connection:
        return _parent(await connection.fetchval("SELECT pg_backend_pid()"))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _again(pid: int) -> None:
    """Kill a PostgreSQL outright, and start it again as it was started."""
    process = Path(f"/proc/{pid}")
    words = process.joinpath("cmdline").read_text().rstrip("\0").split("\0")
    environ = dict(part.split("=", 1) for part in process.joinpath("environ").read_text().split("\0") if "=" in part)
    owner, folder = process.stat(), process.joinpath("cwd").readlink()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not process.exists())
    again = ["setsid", "--fork", *words]
    quiet = subprocess.DEVNULL
    subprocess.run(
        again, env=environ, cwd=folder, user=owner.st_uid, group=owner.st_gid, stdout=quiet, stderr=quiet, check=True
    )


@pytest.mark.serve
async def test_a_killed_worker_loses_nothing(citus: World) -> None:
    """A node is killed under creates in four accounts: what was acknowledged stays, and all go on when it is back."""
    if not _is_spread(citus):
        pytest.skip("one machine has no other node")
    owner = {"X-Auth-Email": citus.a.email, "X-Auth-Key": citus.a.key}
    paths = []
    for number in range(4):
        made = await citus.http.post("/client/v4/accounts", json={"name": f"k {number}"}, headers=owner)
        paths.append(f"/client/v4/accounts/{made.json()['result']['id']}/custom_csrs")
    worker, acknowledged, refused = at(urls()[-1], citus.settings.database_url or ""), [], []
    pid, killed = await _postmaster(worker), asyncio.Event()

    async def create(path: str) -> None:
        while not killed.is_set():
            answer = await citus.http.post(path, json=BODY, headers=owner)
            if answer.status_code == 201:
                acknowledged.append(f"{path}/{answer.json()['result']['id']}")
            else:
                refused.append(answer.status_code)

    creators = [asyncio.create_task(create(path)) for path in paths]
    await comes_about(lambda: len(acknowledged) >= 20)
    await asyncio.to_thread(_again, pid)

    async def answers() -> bool:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return await _postmaster(worker) > 0
        return False

    await comes_about(answers)

    async def serves() -> bool:
        statuses = await _statuses(*(citus.http.post(path, json=BODY, headers=owner) for path in paths))
        return statuses == {201: 4}

    await comes_about(serves)
    killed.set()
    await asyncio.gather(*creators)
    assert set(refused) <= {503}
    # One by one: a server turns away more than may wait.
    found = [(await citus.http.get(path, headers=owner)).status_code for path in acknowledged]
    assert found == [200] * len(acknowledged)
