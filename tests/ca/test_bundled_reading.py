"""Certificates that are read at the same time are read and audited by one statement, of all tenants."""

import asyncio
from uuid import UUID

import pytest
from support.bundling import Asked, bundle_behind, on_their_way, patient
from support.databases import connected
from support.pki import BASE, Pki
from support.waiting import at_locks
from support.world import World

pytestmark = pytest.mark.usefixtures("patient")
__all__ = ["patient"]
LOCK = "LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE"


async def test_who_reads_at_the_same_time_sees_only_their_own(world: World) -> None:
    """Another tenant finds nothing under the serial number, though it is read in the same moment."""
    a, b = (Pki(world.http, tenant.account.slug, tenant.bearer) for tenant in (world.a, world.b))
    mine, theirs = [(await pki.sign(await pki.root())).serial for pki in (a, b)]

    def read(pki: Pki, serial: str) -> Asked:
        return pki.http.get(f"{BASE}/certificates/{serial}", headers=pki.headers)

    async with bundle_behind(world, read(a, mine), LOCK) as made:
        for pki, serial in ((b, mine), (a, theirs), (a, mine), (b, theirs), (a, "5" * 40)):
            await made.add(read(pki, serial))
    answers = await made.answers()
    assert [answer.status_code for answer in answers] == [404, 404, 200, 200, 404]
    told = [answer.json()["certificate"]["serialNumber"] for answer in answers if answer.is_success]
    assert told == [mine, theirs]
    sql = """
        SELECT l.request_id, l.xmin::text AS written FROM audit_log l JOIN issued_certificates i
        ON i.account_id = l.account_id AND i.id = l.resource_id WHERE l.account_id = $1 AND l.action = 'read'
    """
    of_a, of_b = [await world.database.fetch(sql, tenant.account.id) for tenant in (world.a, world.b)]
    assert len(of_a) == 2
    assert {answers[2].headers["x-request-id"]} < {row["request_id"] for row in of_a}
    assert [row["request_id"] for row in of_b] == [answers[3].headers["x-request-id"]]
    assert of_b[0]["written"] in {row["written"] for row in of_a}


async def test_a_certificate_by_its_id_is_read_alike(world: World) -> None:
    """One entry for each read, and none of what is not there."""
    pki = Pki(world.http, world.a.account.slug, world.a.bearer)
    serial = (await pki.sign(await pki.root())).serial
    found = (await pki.told("GET", f"/certificates/{serial}"))["certificate"]["id"]
    path = "/api/v1/cert-manager/certificates"
    assert (await world.http.get(f"{path}/{found}", headers=pki.headers)).status_code == 200
    for nobody, other in ((found, world.b.bearer), (str(UUID(int=1)), pki.headers)):
        assert (await world.http.get(f"{path}/{nobody}", headers=other)).status_code == 404
    sql = "SELECT count(*) AS n FROM audit_log WHERE action = 'read' AND resource_id = $1"
    assert (await world.database.fetch(sql, UUID(found)))[0]["n"] == 2


async def test_a_read_whose_connection_is_lost_is_in_no_doubt(world: World) -> None:
    """A client that asked for no change is not told that a change may have been made."""
    pki = Pki(world.http, world.a.account.slug, world.a.bearer)
    path = f"{BASE}/certificates/{(await pki.sign(await pki.root())).serial}"
    async with connected(world.settings.database_url) as other, other.transaction():
        async with bundle_behind(world, pki.http.get(path, headers=pki.headers), LOCK) as made:
            for _ in range(2):
                await made.add(pki.http.get(path, headers=pki.headers))
            # It waits for the read that is held up, and the bundle waits for it.
            locking = asyncio.create_task(other.execute(LOCK))
            await at_locks(world.database, 2)
        await locking
        [pid] = await on_their_way(other)
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        answers = await made.answers()
    assert [answer.status_code for answer in answers] == [503] * 2
    assert not any("not known" in answer.text for answer in answers)
