"""What a worker remembers of a CA that signs, and what ends it (docs/decisions/0040-opened-for-a-second.md)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.authority import csr_of
from support.pki import EC_KEY, HOST, Pki, in_days
from support.waiting import comes_about
from support.world import World, new_world

from keystead.ca import issuing, leaves
from keystead.custody import keyring
from keystead.remembered import Remembered


@pytest.fixture(autouse=True)
def forget() -> None:
    leaves._signers._values.clear()
    keyring._opened._values.clear()


@pytest.fixture
async def world(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world that remembers for long, so that a slow machine forgets nothing in the middle of a test."""
    monkeypatch.setattr(issuing, "REMEMBERED_SECONDS", 600.0)
    async with new_world(database_url, tmp_path, remembered=1.0) as made:
        yield made


@pytest.fixture
def pki(world: World) -> Pki:
    return Pki(world.http, world.a.account.slug, world.a.bearer)


def remembered() -> int:
    """How many CAs and opened keys are."""
    return len(leaves._signers._values) + len(keyring._opened._values)


async def refused(pki: Pki, ca_id: str) -> int:
    body = {"csr": csr_of(EC_KEY, HOST), "notAfter": in_days(30)}
    return (await pki.ask("POST", f"/ca/{ca_id}/sign-certificate", body)).status_code


async def test_a_key_is_remembered_for_a_second_and_no_longer(database_url: str, tmp_path: Path) -> None:
    """Whether or not somebody asks again, neither the CA nor its key stays."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        assert issuing.REMEMBERED_SECONDS == 1.0
        pki = Pki(world.http, world.a.account.slug, world.a.bearer)
        await pki.sign(await pki.root())
        await comes_about(lambda: remembered() == 0)


async def test_a_second_signature_opens_no_key(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CA and its key are read once for both."""
    root = await pki.root()
    await pki.sign(root)
    assert remembered() == 2
    with monkeypatch.context() as patch:
        patch.setattr(keyring, "open_row", None)
        await pki.sign(root)


async def test_a_ca_that_is_disabled_signs_nothing_more(pki: Pki) -> None:
    """At once, though it is remembered as one that may."""
    root = await pki.root()
    await pki.sign(root)
    await pki.told("PATCH", f"/ca/{root}", {"status": "disabled"})
    assert remembered()
    assert await refused(pki, root) == 400


async def test_a_ca_that_is_deleted_signs_nothing_more(pki: Pki, world: World) -> None:
    """At once, though its key is remembered."""
    root = await pki.root()
    await pki.sign(root)
    await world.database.execute("DELETE FROM issued_certificates")
    await pki.told("DELETE", f"/ca/{root}")
    assert remembered()
    assert await refused(pki, root) == 404


async def test_a_ca_whose_certificate_is_revoked_stops_when_it_is_forgotten(pki: Pki) -> None:
    """Until then it is the one that may sign; a second is what the setting bounds."""
    root = await pki.root()
    below = await pki.intermediate(root, commonName="Below")
    serial = (await pki.sign(below)).chain[0].serial_number
    await pki.revoke(f"{serial:040x}")
    leaves._signers._values.clear()
    assert await refused(pki, below) == 400


async def test_another_tenant_signs_with_nothing_that_is_remembered(pki: Pki, world: World) -> None:
    """The memory is looked into only after the CA was found in the caller's own accounts."""
    root = await pki.root()
    await pki.sign(root)
    assert remembered()
    assert await refused(Pki(world.http, world.b.account.slug, world.b.bearer), root) == 404


async def test_nothing_is_remembered_where_it_is_switched_off(database_url: str, tmp_path: Path) -> None:
    """KEYSTEAD_REMEMBER_CAS=off: each signature opens the key by itself."""
    async with new_world(database_url, tmp_path, remembered=1.0, remember_cas=False) as world:
        pki = Pki(world.http, world.a.account.slug, world.a.bearer)
        await pki.sign(await pki.root())
        assert remembered() == 0


async def test_of_those_who_miss_at_once_one_looks() -> None:
    """All get what it finds; when the one that looks fails or is given up, each of the others looks by itself."""
    remembered: Remembered[str, int] = Remembered()
    looks, may_end = 0, asyncio.Event()

    async def find() -> int:
        nonlocal looks
        looks += 1
        await may_end.wait()
        return looks

    def ask(count: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(remembered.get("key", 600.0, find)) for _ in range(count)]

    first, *others = ask(3)
    await asyncio.sleep(0)
    first.cancel()
    may_end.set()
    assert await asyncio.gather(*others) == [2, 3]
    remembered._values.clear()
    may_end.clear()
    tasks = ask(5)
    await asyncio.sleep(0)
    may_end.set()
    assert await asyncio.gather(*tasks) == [4] * 5
    assert not remembered._looked_for
