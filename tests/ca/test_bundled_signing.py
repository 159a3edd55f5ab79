"""Certificates that are signed together, in one transaction: what each is told, and what is there afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from support.authority import csr_of
from support.bundling import Asked, Bundle, bundle_behind, killed_three_times, on_their_way, patient
from support.databases import connected
from support.pki import BASE, EC_KEY, HOST, Pki
from support.waiting import at_locks
from support.world import World, new_world

from keystead.server import postgres
from keystead.store import schema

pytestmark = pytest.mark.usefixtures("patient")
__all__ = ["patient"]


@pytest.fixture
def pki(world: World) -> Pki:
    return Pki(world.http, world.a.account.slug, world.a.bearer)


def sign(pki: Pki, ca_id: str, name: str) -> Asked:
    body = {"csr": csr_of(EC_KEY, HOST), "commonName": name, "ttl": "90d"}
    return pki.http.post(f"{BASE}/ca/{ca_id}/sign-certificate", json=body, headers=pki.headers)


@contextlib.asynccontextmanager
async def bundle(world: World, pki: Pki, ca_id: str) -> AsyncIterator[Bundle]:
    """Hold up a signature, so that what is added meanwhile is one bundle, which starts at the end."""
    sql = "SELECT FROM certificate_authorities WHERE id = $1 FOR UPDATE"
    async with bundle_behind(world, sign(pki, ca_id, "before"), sql, UUID(ca_id)) as made:
        yield made


async def nothing_is_odd(world: World, leaves: int) -> None:
    """So many certificates, each of them whole and audited; no other entries of signatures but that of the root."""
    [row] = await world.database.fetch(
        """
        SELECT (SELECT count(*) FROM issued_certificates WHERE profile = 'leaf') AS leaves,
            (SELECT count(*) FROM issued_certificates WHERE profile = 'leaf' AND pem IS NOT NULL) AS whole,
            (SELECT count(*) FROM audit_log a JOIN issued_certificates i ON i.id = a.resource_id
             WHERE a.action = 'sign' AND a.account_id = i.account_id AND i.profile = 'leaf') AS log,
            (SELECT count(*) - 1 FROM audit_log WHERE action = 'sign') AS entries
        """
    )
    assert set(row.values()) == {leaves}


async def test_what_is_signed_together_is_one_transaction(world: World, pki: Pki) -> None:
    """Each is answered with its own certificate, as GET shows it afterwards, and audited with its own request."""
    root = await pki.root()
    async with bundle(world, pki, root) as made:
        for number in range(5):
            await made.add(sign(pki, root, f"x{number}"))
    answers = await made.answers()
    assert [answer.status_code for answer in answers] == [200] * 5
    sql = "SELECT DISTINCT xmin::text FROM issued_certificates WHERE starts_with(common_name, 'x')"
    assert len(await world.database.fetch(sql)) == 1
    for number, answer in enumerate(answers):
        told = answer.json()
        leaf = x509.load_pem_x509_certificate(told["certificate"].encode())
        assert f"{leaf.serial_number:040x}" == told["serialNumber"]
        shown = (await pki.told("GET", f"/certificates/{told['serialNumber']}"))["certificate"]
        assert shown["commonName"] == f"x{number}"
        bundled = await pki.told("GET", f"/certificates/{told['serialNumber']}/bundle")
        assert bundled["certificate"] == told["certificate"]
        sql = "SELECT request_id FROM audit_log WHERE resource_id = $1 AND action = 'sign'"
        [entry] = await world.database.fetch(sql, UUID(shown["id"]))
        assert entry["request_id"] == answer.headers["x-request-id"]
    await nothing_is_odd(world, 6)


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        ("UPDATE certificate_authorities SET disabled = true WHERE id = $1", 400),
        ("DELETE FROM certificate_authorities WHERE id = $1", 404),
    ],
)
async def test_a_ca_that_ends_in_between_has_signed_nothing(world: World, pki: Pki, sql: str, status: int) -> None:
    """What waits while its CA is disabled or deleted is refused, each of it, and nothing of it is there."""
    root = await pki.root()
    async with connected(world.settings.database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM certificate_authorities WHERE id = $1 FOR UPDATE", UUID(root))
            tasks = [asyncio.create_task(sign(pki, root, f"x{number}")) for number in range(5)]
            await on_their_way(holder)
            await holder.execute(sql, UUID(root))
        answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {status}
    await nothing_is_odd(world, 0)


async def test_a_connection_that_is_lost_puts_each_signature_in_doubt(world: World, pki: Pki) -> None:
    """Each is told that it is not known whether its certificate was made; here none was."""
    root = await pki.root()
    async with connected(world.settings.database_url) as other:
        transaction = other.transaction()
        async with bundle(world, pki, root) as made:
            for number in range(3):
                await made.add(sign(pki, root, f"x{number}"))
            await transaction.start()
            # It waits for the signature that is held up, and the bundle waits for it.
            locking = asyncio.create_task(other.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE"))
            await at_locks(world.database, 2)
        await locking
        [pid] = await on_their_way(other)
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        answers = await made.answers()
        await transaction.rollback()
    assert [answer.status_code for answer in answers] == [503] * 3
    assert all("not known whether" in answer.text for answer in answers)
    await nothing_is_odd(world, 1)


async def test_what_the_database_refuses_harms_no_other_signature(world: World, pki: Pki) -> None:
    """Of three in a bundle the one that breaks a constraint fails, and its neighbours are signed."""
    root = await pki.root()
    await world.database.execute("ALTER TABLE issued_certificates ADD CONSTRAINT odd CHECK (common_name <> 'x1')")
    async with bundle(world, pki, root) as made:
        for number in range(3):
            await made.add(sign(pki, root, f"x{number}"))
    assert [answer.status_code for answer in await made.answers()] == [200, 500, 200]
    await nothing_is_odd(world, 3)


async def test_a_request_that_is_given_up_while_it_waits_leaves_nothing(world: World, pki: Pki) -> None:
    """Nor does it harm who waits with it."""
    root = await pki.root()
    async with bundle(world, pki, root) as made:
        for number in range(3):
            await made.add(sign(pki, root, f"x{number}"))
        given_up = made.tasks.pop(1)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
    assert [answer.status_code for answer in await made.answers()] == [200] * 2
    await nothing_is_odd(world, 3)


@pytest.mark.serve
async def test_nothing_that_was_handed_out_is_lost_when_postgresql_is_killed(tmp_path: Path) -> None:
    """Killed three times under sixteen clients: what was answered is there whole, and nothing that was refused."""
    with postgres.running(tmp_path / "cluster") as cluster:
        await schema.migrate(cluster.dsn)
        async with new_world(cluster.dsn, tmp_path) as world:
            pki = Pki(world.http, world.a.account.slug, world.a.bearer)
            answers = await killed_three_times(cluster, partial(sign, pki, await pki.root()))
            sql = "SELECT common_name, pem FROM issued_certificates WHERE profile = 'leaf'"
            there = {row["common_name"]: row["pem"] for row in await world.database.fetch(sql)}
            for name, answer in answers.items():
                if answer.status_code == 200:
                    assert there[name] == answer.json()["certificate"] + "\n"
                else:
                    assert answer.status_code == 503
                    assert name not in there or "not known whether" in answer.text
            await nothing_is_odd(world, len(there))
