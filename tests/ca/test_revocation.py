"""Revocations and their CRL when there are many: what each costs, that none is lost, and who waits for whom."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs
from support.databases import connected, new_database
from support.live import Live, serving
from support.pki import BASE, HALF_LIFE, SECONDS, Pki, days_pass, number_of, serials_of
from support.pki_limits import _REVOKED, read_by_openssl
from support.waiting import at_locks, comes_about
from support.world import World

from keystead import bounds
from keystead.ca import crls, issuing
from keystead.ca.model import Issued
from keystead.caller import Scope
from keystead.custody import keyring
from keystead.errors import Refusal, Unavailable
from keystead.server import postgres
from keystead.store import database as db

MANY = 20_000
AT_A_KILL = 400
_SIGNED = _REVOKED.replace("now(), (ARRAY[0, 1, 4, 9])[n % 4 + 1]", "NULL, NULL").replace("'5a'", "'6b'")


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for this file: each test makes CAs of its own in it."""
    return shared_world


@pytest.fixture
def pki(world: World) -> Pki:
    return Pki(world.http, world.a.account.slug, world.a.bearer)


async def pending(database: db.Database, ca_id: str, state: Callable[[crls._Queue], bool]) -> None:
    """Wait until the queue of a CA is in this state."""

    def so() -> bool:
        queue = crls._queues.get((database, UUID(ca_id)))
        return queue is not None and state(queue)

    await comes_about(so)


async def signed_by(world: World, ca_id: str, count: int) -> list[str]:
    """Serial numbers of certificates that this CA is said to have signed, in place of those of an earlier call."""
    await world.database.execute("DELETE FROM issued_certificates WHERE serial LIKE '6b%' AND subject = 'CN=h'")
    return [row["serial"] for row in await world.database.fetch(_SIGNED, world.a.account.id, UUID(ca_id), count)]


@contextlib.asynccontextmanager
async def worker(world: World, size: int = 8) -> AsyncIterator[db.Database]:
    """Another worker's connections."""
    database = db.Database(world.settings.database_url or "", size)
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def locked_crl(world: World, ca_id: str) -> AsyncIterator[None]:
    async with connected(world.settings.database_url or "") as connection, connection.transaction():
        await connection.execute("SELECT FROM crls WHERE ca_id = $1 FOR UPDATE", UUID(ca_id))
        yield


async def revoke(world: World, database: db.Database, serial: str) -> Issued:
    scope = Scope(world.a.account.id)
    services = msgspec.structs.replace(world.services, db=database)
    certificate = await issuing.get(services.db, scope.account_id, serial)
    return await crls.revoke(services, keyring.SYSTEM, scope, certificate, crls.Reason.SUPERSEDED)


def seconds_of_the_library(count: int) -> float:
    """CPU for building a CRL of so many entries anew."""
    key, now, began = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), time.process_time()
    entries = [
        x509.RevokedCertificateBuilder().serial_number(2**158 + n).revocation_date(now).build() for n in range(count)
    ]
    builder = x509.CertificateRevocationListBuilder(revoked_certificates=entries).issuer_name(x509.Name([]))
    builder.last_update(now).next_update(now + timedelta(days=7)).sign(key, hashes.SHA256())
    return time.process_time() - began


async def test_a_revocation_does_not_build_the_others_entries_anew(pki: Pki, world: World) -> None:
    """With 20,000 entries it takes less than half the CPU of building these, and the CRL has all of them."""
    root = await pki.root()
    rows = await world.database.fetch(_REVOKED, world.a.account.id, UUID(root), MANY)
    await pki.crl(root)
    made = await signed_by(world, root, 5)
    anew, began = seconds_of_the_library(MANY), time.process_time()
    for serial in made:
        await pki.revoke(serial)
    assert (time.process_time() - began) / len(made) < anew / 2
    crl = await pki.crl(root)
    assert sorted(serials_of(crl)) == sorted([*(row["serial"] for row in rows), *made])
    said = read_by_openssl(crl, await pki.certificate(root))
    assert "verify OK" in said
    assert said.count("Superseded") == MANY // 4


async def test_who_waits_for_a_crl_holds_no_connection(pki: Pki, world: World) -> None:
    """While another server has the CRL, twenty revocations take one connection, and then share one or two CRLs."""
    root = await pki.root()
    before = number_of(await pki.crl(root))
    made = await signed_by(world, root, 20)
    async with worker(world) as database:
        async with locked_crl(world, root):
            tasks = [asyncio.create_task(revoke(world, database, made[0]))]
            await pending(database, root, lambda queue: queue.lock.locked() and not queue.pending)
            tasks += [asyncio.create_task(revoke(world, database, serial)) for serial in made[1:]]
            await pending(database, root, lambda queue: len(queue.pending) == 19)
            await at_locks(world.database, 1)
            assert database.in_use == 1
        outcomes = await asyncio.gather(*tasks)
    assert [each.serial for each in outcomes] == made
    assert all(each.revoked_at and each.revocation_reason == 4 for each in outcomes)
    crl = await pki.crl(root)
    assert sorted(serials_of(crl)) == sorted(made)
    assert number_of(crl) <= before + 2


async def test_a_wait_for_a_lock_is_told_as_what_it_is(pki: Pki, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called a database that is not available; afterwards the same revocations are done."""
    root = await pki.root()
    await pki.crl(root)
    made = await signed_by(world, root, 3)
    monkeypatch.setattr(bounds, "LOCK_SECONDS", 0.2)
    async with worker(world) as database:
        async with locked_crl(world, root):
            failed = await asyncio.gather(*(revoke(world, database, s) for s in made), return_exceptions=True)
        assert {type(error) for error in failed} == {Unavailable}
        said = "other requests are changing the same thing, and have not finished in time"
        assert {str(error) for error in failed} == {said}
        for serial in made:
            await revoke(world, database, serial)
    assert sorted(serials_of(await pki.crl(root))) == sorted(made)


_DAMAGED = "UPDATE ca_certificates SET pem = replace(pem, 'MII', 'MIJ') WHERE ca_id = $1"
_ENDED = """
UPDATE crls SET this_update = this_update - $2::interval, next_update = next_update - $2::interval WHERE ca_id = $1
"""


async def test_a_damaged_certificate_of_a_ca_is_its_own_trouble(pki: Pki, world: World) -> None:
    """Its CRL is served until that ends, which is logged, and then the error names the CA; other CAs renew theirs."""
    bad, good = await pki.root(), await pki.root()
    serial = (await pki.sign(bad)).serial
    before = await pki.crl(bad)
    await world.database.execute(_DAMAGED, UUID(bad))
    for root in (bad, good):
        await pki.crl(root)
        await world.database.execute(HALF_LIFE, UUID(root))
    with capture_logs() as lines:
        assert await pki.crl(bad) == before
    assert [(line["log_level"], line["ca"]) for line in lines if "CRL" in line["event"]] == [("error", bad)]
    assert number_of(await pki.crl(good)) == 2
    for root in (bad, good):
        await world.database.execute(_ENDED, UUID(root), crls.LIFETIME)
    assert number_of(await pki.crl(good)) == 3
    for answer in (
        await pki.http.get(f"{BASE}/crl/{bad}/der"),
        await world.http.post(
            f"{BASE}/certificates/{serial}/revoke", json={"revocationReason": "SUPERSEDED"}, headers=world.a.bearer
        ),
    ):
        said = f"The stored certificate of CA '{bad}' is damaged: the operator has to restore it"
        assert (answer.status_code, answer.json()["message"]) == (500, said)
    sql = "SELECT revoked_at FROM issued_certificates WHERE serial = $1"
    assert [row["revoked_at"] for row in await world.database.fetch(sql, serial)] == [None]


async def test_workers_that_revoke_at_once_lose_nothing(pki: Pki, world: World) -> None:
    """Three share nothing but the database; a CRL that is read anew, not signed yet or damaged makes no difference."""
    changes = {
        "none": "SELECT $1::uuid",
        "not signed": "UPDATE crls SET der = NULL, this_update = NULL, next_update = NULL WHERE ca_id = $1",
        "of yesterday": "UPDATE crls SET this_update = this_update - interval '1 day' WHERE ca_id = $1",
        "half its life": HALF_LIFE,
        "damaged": "UPDATE crls SET der = substring(der FROM 1 FOR 90) WHERE ca_id = $1",
        "no CRL at all": "UPDATE crls SET der = 'x' WHERE ca_id = $1",
    }
    for case, change in changes.items():
        root = await pki.root(commonName=case)
        made = await signed_by(world, root, 30)
        await pki.revoke((await pki.sign(root)).serial)
        await world.database.execute(change, UUID(root))
        async with worker(world) as one, worker(world) as two, worker(world) as three:
            work = [revoke(world, (one, two, three)[n % 3], serial) for n, serial in enumerate(made)]
            await asyncio.gather(*work, *(pki.http.get(f"{BASE}/crl/{root}/der") for _ in range(3)))
        crl = await pki.crl(root)
        assert len(serials_of(crl)) == 31, case
        assert {*made} < {*serials_of(crl)}, case
        assert "verify OK" in read_by_openssl(crl, await pki.certificate(root)), case


async def test_one_that_is_refused_or_gives_up_does_not_spoil_the_others(pki: Pki, world: World) -> None:
    """Whoever has the turn may be cancelled, and whoever asks in vain is told so; the others get their CRL."""
    root = await pki.root()
    await pki.crl(root)
    made = await signed_by(world, root, 6)
    async with worker(world) as database:
        await revoke(world, database, made[0])
        async with locked_crl(world, root):
            tasks = [asyncio.create_task(revoke(world, database, made[1]))]
            await pending(database, root, lambda queue: queue.lock.locked() and not queue.pending)
            tasks += [asyncio.create_task(revoke(world, database, s)) for s in (*made[2:], made[0], made[1])]
            await pending(database, root, lambda queue: len(queue.pending) == 6)
            # The first has the turn, the third waits.
            tasks[0].cancel()
            tasks[2].cancel()
            await asyncio.wait((tasks[0], tasks[2]))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(each) for each in outcomes]
    gone = asyncio.CancelledError
    # The last one asked for what the first did not come to do.
    assert kinds == [gone, Issued, gone, Issued, Issued, Refusal, Issued]
    assert {*serials_of(await pki.crl(root))} >= {made[n] for n in (0, 1, 2, 4, 5)}


async def test_who_gives_up_while_working_for_others_leaves_them_their_turn(pki: Pki, world: World) -> None:
    """What waited while one was at work is done together by the next; if that one is cancelled, by another."""
    root = await pki.root()
    await pki.crl(root)
    made = await signed_by(world, root, 5)
    async with worker(world) as database:
        again = locked_crl(world, root)
        async with locked_crl(world, root):
            tasks = [asyncio.create_task(revoke(world, database, made[0]))]
            await pending(database, root, lambda queue: queue.lock.locked() and not queue.pending)
            for serial in made[1:]:
                tasks.append(asyncio.create_task(revoke(world, database, serial)))
                await pending(database, root, lambda queue: len(queue.pending) == len(tasks) - 1)
            locking = asyncio.create_task(again.__aenter__())
            # The first one, and ours behind it.
            await at_locks(world.database, 2)
        await asyncio.gather(tasks[0], locking)
        # The second has the turn, for all others.
        await pending(database, root, lambda queue: not queue.pending)
        tasks[1].cancel()
        await asyncio.wait(tasks[1:2])
        await again.__aexit__(None, None, None)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [Issued, asyncio.CancelledError, Issued, Issued, Issued]
    assert {*serials_of(await pki.crl(root))} >= {made[0], *made[2:]}


async def test_what_has_expired_goes_once_a_day_also_when_nobody_fetches(pki: Pki, world: World) -> None:
    """Revocations alone keep a CRL fresh, and yet it does not only grow: an entry has a CRL past its end, then goes."""
    root = await pki.root(notAfter="2090")
    short = await pki.sign(root, ttl="2d")
    others = [await pki.sign(root) for _ in range(4)]
    await pki.revoke(short.serial)
    await pki.revoke(others[0].serial)
    await days_pass(world, root, 3)
    await pki.revoke(others[1].serial)
    assert short.serial in serials_of(await pki.crl(root))
    await pki.revoke(others[2].serial)
    await days_pass(world, root, 1)
    await pki.revoke(others[3].serial)
    assert sorted(serials_of(await pki.crl(root))) == sorted(each.serial for each in others)


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


async def revoke_until_it_ends(url: str, bearer: dict[str, str], serials: list[str]) -> list[str]:
    """What was acknowledged before the server was gone, over 8 connections."""
    done: list[str] = []

    async def go_on(http: httpx.AsyncClient) -> None:
        while serials:
            serial, body = serials.pop(), {"revocationReason": "KEY_COMPROMISE"}
            try:
                answer = await http.post(f"{BASE}/certificates/{serial}/revoke", json=body)
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                done.append(serial)

    async with httpx.AsyncClient(base_url=url, headers=bearer, timeout=SECONDS) as http:
        await asyncio.gather(*(go_on(http) for _ in range(8)))
    return done


async def killed_while_it_revokes(live: Live, serials: list[str], acknowledged: int) -> list[str]:
    """What was acknowledged before all its processes were killed, which comes after so many were asked for."""
    total = len(serials)
    work = asyncio.create_task(revoke_until_it_ends(live.url, live.bearer, serials))
    await comes_about(lambda: total - len(serials) > acknowledged)
    for pid in family(live.pid):
        os.kill(pid, signal.SIGKILL)
    return await work


@pytest.mark.serve
async def test_a_kill_between_revocation_and_crl_leaves_both_or_neither(
    cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """After each kill -9 of all its processes what was acknowledged, or is stored, is on the CRL."""
    root, done, found = "", list[str](), list[tuple[list[str], list[str], list[str]]]()
    async with new_database(cluster, "template0") as url, connected(url) as connection:

        async def look(live: Live) -> None:
            async with httpx.AsyncClient(base_url=live.url, timeout=SECONDS) as http:
                listed = serials_of(await Pki(http, "", {}).crl(root))
            stored = await connection.fetch("SELECT serial FROM issued_certificates WHERE revoked_at IS NOT NULL")
            found.append((sorted(listed), sorted(row["serial"] for row in stored), list(done)))

        for number, acknowledged in enumerate((3, 40, 110)):
            with contextlib.suppress(AssertionError), serving(url, tmp_path / "data", workers=2) as live:
                if number:
                    await look(live)
                else:
                    async with httpx.AsyncClient(base_url=live.url, timeout=SECONDS) as http:
                        pki = Pki(http, live.env["KEYSTEAD_PROJECT_SLUG"], live.bearer)
                        root = await pki.root()
                        await pki.crl(root)
                    account = UUID(live.env["CLOUDFLARE_ACCOUNT_ID"])
                    rows = await connection.fetch(_SIGNED, account, UUID(root), 3 * AT_A_KILL)
                    serials = [row["serial"] for row in rows]
                left = serials[number * AT_A_KILL :][:AT_A_KILL]
                done += await killed_while_it_revokes(live, left, acknowledged)
        with serving(url, tmp_path / "data", workers=1) as live:
            await look(live)
    for listed, stored, acknowledged_by_then in found:
        assert listed == stored
        assert {*acknowledged_by_then} <= {*listed}
    assert len(found) == 3
    assert len(done) < 3 * AT_A_KILL
