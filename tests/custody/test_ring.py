"""The ring at its edges: machines that are behind, clocks that are behind, and rows that cannot be read."""

import asyncio
import base64
import contextlib
import itertools
import os
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.databases import connected
from support.live import free_port
from support.ordinary_user import ROOT, python_for
from support.processes import processes_below
from support.waiting import comes_about

from keystead import files
from keystead.caller import Level, RequestInfo, Scope
from keystead.csrs import store as csrs
from keystead.csrs.model import CsrRequest
from keystead.custody import keyring, rotation, seal
from keystead.custody import ring as ringfile
from keystead.custody.keypool import KeyPool
from keystead.custody.peppers import SETTLED_SECONDS, Peppers, add_pepper, ensure_pepper, load_peppers
from keystead.custody.ring import Entry, Ring
from keystead.errors import Conflict, KeyDamaged, Misconfigured, Unauthenticated, Unavailable
from keystead.identity import accounts, admission, policies, tokens, zones
from keystead.identity.accounts import Account
from keystead.identity.memory import Memory, ScopeRef, TokenCredential
from keystead.server import first_start
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509 import keys
from keystead.x509.chains import Anchors
from keystead.x509.keys import KeyType
from keystead.x509.subjects import Subject

CALLER = first_start.operator()
ABOUT = CsrRequest(
    Subject("US", "California", "San Francisco", "Example, Inc.", "ring.example"), ("ring.example",), KeyType.P256V1
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and be somebody else")


class Place(msgspec.Struct):
    """A database with an account, and the file of its ring."""

    db: Database
    url: str
    path: Path
    account: Account
    pool: KeyPool

    def services(self, peppers: Peppers | None = None, ring: Ring | None = None) -> Services:
        return Services(self.db, ring or self.ring, peppers or Peppers({}), self.pool, Anchors({}))

    @property
    def ring(self) -> Ring:
        return ringfile.load(self.path)

    @property
    def scope(self) -> Scope:
        return Scope(self.account.id)

    async def make(self, ring: Ring) -> UUID:
        """A CSR whose key this ring seals; the id of the key's row."""
        made = await csrs.create(self.services(ring=ring), CALLER, self.scope, ABOUT)
        found: UUID = await self.value("SELECT key_id FROM custom_csrs WHERE id = $1", made.id)
        return found

    async def value(self, sql: str, *args: object) -> Any:
        row = await self.db.fetchrow(sql, *args)
        assert row
        return row[0]

    async def under(self) -> dict[UUID, str]:
        """Under which KEK each private key is, in the order in which they are gone through."""
        rows = await self.db.fetch("SELECT id, kek_id FROM private_keys ORDER BY account_id, id")
        return {row["id"]: row["kek_id"] for row in rows}

    async def assert_all_open(self, ring: Ring) -> None:
        for row in await self.db.fetch("SELECT id, account_id, spki_sha256 FROM private_keys"):
            place = (row["account_id"], row["id"], row["spki_sha256"])
            key = await keyring.open_key(self.db, ring, CALLER, place)
            assert keys.spki_sha256(key) == row["spki_sha256"]

    async def damage(self) -> dict[UUID, str]:
        """What verify says of each row."""
        found = rotation.verify(self.db, self.ring)
        return {damage.id: damage.reason async for batch in found for damage in batch.damaged}

    async def rotate(self) -> tuple[str, str]:
        """A new KEK that became the current one two minutes ago; the earlier one's id, and its own."""
        old = self.ring.keks[0].id
        ringfile.add(self.path)
        new = ringfile.promote(self.path).id
        settle(self.path)
        await keyring.register(self.db, self.ring)
        return old, new

    async def token(self, peppers: Peppers) -> str:
        new = tokens.NewToken(self.account, "a token", policies.write(self.account, policies.default_groups()))
        return (await tokens.create(self.services(peppers), CALLER, new))[1]


def settle(path: Path) -> None:
    since = datetime.now(UTC) - timedelta(minutes=2)
    ringfile._write(path, msgspec.structs.replace(ringfile.read(path), current_since=since))


@pytest.fixture
async def site(database_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    database, pool, path = Database(database_url, 4), KeyPool(), tmp_path / "keyring.json"
    ring = ringfile.create(path)
    await keyring.register(database, ring)
    await ensure_pepper(database, ring)
    account = await accounts.create_account(database, CALLER, "a", "Account a")
    yield Place(database, database_url, path, account, pool)
    pool.close()
    await database.close()


# Re-wrapping.


async def test_each_row_is_labelled_with_the_kek_that_wraps_it(site: Place) -> None:
    """In the middle of a batch comes a row under a KEK that is newer than the target, and the file is followed."""
    first = site.ring
    for _ in range(9):
        await site.make(first)
    _, second = await site.rotate()
    behind = site.ring
    assert [kek.id for kek in behind.keks] == [second, first.keks[0].id]
    _, third = await site.rotate()
    # Another machine has rotated one row further meanwhile.
    middle = list(await site.under())[4]
    row = await site.db.fetchrow("SELECT * FROM private_keys WHERE id = $1", middle)
    assert row
    context = seal.private_key_context(row["id"], row["account_id"], row["key_type"], row["spki_sha256"])
    ahead = site.ring
    wrapped = ahead.rewrapped(middle, context, row["kek_id"], row["wrapped_key"], ahead.keks[0])
    sql = "UPDATE private_keys SET kek_id = $2, wrapped_key = $3 WHERE id = $1"
    await site.db.execute(sql, middle, third, wrapped)
    assert third not in {kek.id for kek in behind.keks}
    batches = [batch async for batch in rotation.rewrap(site.db, behind)]
    assert behind.keks[0].id == third
    assert [damage for batch in batches for damage in batch.damaged] == []
    assert sum(batch.changed for batch in batches) == 10
    assert set((await site.under()).values()) == {second}
    await site.assert_all_open(site.ring)
    assert await site.damage() == {}
    # Neither of the others is needed to open what is labelled with the second.
    await site.assert_all_open(Ring(tuple(kek for kek in site.ring.keks if kek.id == second)))
    await load_peppers(site.db, site.ring)


# Retiring.


def as_before(site: Place) -> Ring:
    """The ring of a machine that was given no newer file."""
    return Ring(site.ring.keks)


def in_another_order(site: Place) -> Ring:
    """The ring of a machine that has the new KEK, and still seals under the earlier one."""
    return Ring(tuple(reversed(site.ring.keks)))


@pytest.mark.parametrize("order", ["without the new KEK", "in another order"])
async def test_a_machine_that_is_behind_seals_nothing_under_a_retired_kek(site: Place, order: str) -> None:
    """Before, what it seals is counted and keeps the KEK; after, it is refused and nothing is stored."""
    behind = as_before(site)
    old, new = await site.rotate()
    if order == "in another order":
        behind = in_another_order(site)
    assert behind.keks[0].id == old
    assert [batch.damaged async for batch in rotation.rewrap(site.db, site.ring)]
    key_id = await site.make(behind)
    assert (await site.under())[key_id] == old
    with pytest.raises(Misconfigured, match=f"1 private keys and 0 peppers need the KEK {old}"):
        await rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old)
    assert [kek.id for kek in site.ring.keks] == [new, old]
    # What was refused is not half done.
    await site.make(behind)
    await keyring.register(site.db, behind)
    assert [batch.changed async for batch in rotation.rewrap(site.db, site.ring)] == [0, 2]
    await rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old)
    assert [kek.id for kek in site.ring.keks] == [new]
    before = [await site.value(f"SELECT count(*) FROM {table}") for table in ("private_keys", "custom_csrs")]
    for _ in range(3):
        with pytest.raises(Unavailable, match="its KEK was retired"):
            await site.make(behind)
    with pytest.raises(Unavailable, match="its KEK was retired"):
        await add_pepper(site.db, behind, CALLER)
    assert [await site.value(f"SELECT count(*) FROM {table}") for table in ("private_keys", "custom_csrs")] == before
    assert await site.value("SELECT count(*) FROM peppers") == 1
    assert set((await site.under()).values()) == {new}
    with pytest.raises(Misconfigured, match=f"the current KEK {old} of the ring was retired: give this machine"):
        await keyring.register(site.db, behind)
    await site.make(site.ring)
    await site.assert_all_open(site.ring)


async def test_a_rotation_on_a_machine_that_is_behind_does_not_go_back(site: Place) -> None:
    """It would wrap all under the KEK that was retired; not one row is, and all still open."""
    old, new = await site.rotate()
    behind = in_another_order(site)
    await site.make(site.ring)
    _ = [batch async for batch in rotation.rewrap(site.db, site.ring)]
    await rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old)
    with pytest.raises(Unavailable):
        _ = [batch async for batch in rotation.rewrap(site.db, behind)]
    assert set((await site.under()).values()) == {new}
    await site.assert_all_open(site.ring)


async def test_a_key_that_is_on_its_way_is_waited_for(site: Place) -> None:
    """A transaction that has inserted under the KEK is not over: retire waits for it, counts it, and is refused."""
    behind = as_before(site)
    old, new = await site.rotate()
    _ = [batch async for batch in rotation.rewrap(site.db, site.ring)]
    pair = keys.generate(KeyType.P256V1)
    row = keyring.new_key(behind, site.account.id, pair).row
    async with connected(site.url) as other:
        async with other.transaction():
            assert await other.execute(keyring.insert_key(1), *row) == "INSERT 0 1"
            retiring = asyncio.create_task(rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old))
            waits = "SELECT count(*) FROM pg_locks WHERE relation = 'keks'::regclass AND NOT granted"
            await comes_about(lambda: site.value(waits))
        with pytest.raises(Misconfigured, match=f"1 private keys and 0 peppers need the KEK {old}"):
            await retiring
    assert [kek.id for kek in site.ring.keks] == [new, old]
    assert (await site.under())[UUID(str(row[1]))] == old
    await site.assert_all_open(site.ring)
    # It was not half done either.
    await site.make(behind)


async def test_what_is_sealed_while_a_rotation_runs_is_rewrapped_by_it(site: Place) -> None:
    """A machine that is behind seals under the earlier KEK, also rows that the rotation has passed already."""
    behind = as_before(site)
    _ = [await site.make(behind) for _ in range(8)]
    _, new = await site.rotate()
    batches = rotation.rewrap(site.db, site.ring)
    # The peppers, and the first pass.
    _ = [await anext(batches) for _ in range(2)]
    for _ in range(8):
        await site.make(behind)
    _ = [batch async for batch in batches]
    assert set((await site.under()).values()) == {new}


async def test_a_ring_without_the_kek_of_a_pepper_is_refused(site: Place) -> None:
    """Also where no private key needs it."""
    other = Ring((seal.Kek("another", bytes(32)),))
    with pytest.raises(Misconfigured, match=f"lacks the KEK {site.ring.keks[0].id}"):
        await keyring.require_all_keks(site.db, other)


async def test_a_kek_that_only_a_pepper_needs_is_not_retired(site: Place) -> None:
    """Without it no token could be verified any more."""
    old, new = await site.rotate()
    with pytest.raises(Misconfigured, match=f"0 private keys and 1 peppers need the KEK {old}"):
        await rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old)
    assert [kek.id for kek in site.ring.keks] == [new, old]
    assert (await load_peppers(site.db, site.ring)).by_id


async def test_a_retirement_that_cannot_write_the_ring_is_taken_back(
    site: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KEK is still in the file, so machines may go on sealing under it."""
    behind = as_before(site)
    old, _ = await site.rotate()
    _ = [batch async for batch in rotation.rewrap(site.db, site.ring)]

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "write_private", full)
    with pytest.raises(Misconfigured, match="cannot be written"):
        await rotation.retire(site.db, site.ring, keyring.SYSTEM, site.path, old)
    assert old in {kek.id for kek in site.ring.keks}
    await site.make(behind)


# The file.


def test_a_new_kek_is_the_newest_whatever_the_clock_says(tmp_path: Path) -> None:
    """The entries of a machine whose clock is ahead stay before those that are added here; twice is as once."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    content = ringfile.read(path)
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(days=400)
    foreign = Entry("foreign", os.urandom(32), ahead)
    ringfile._write(path, msgspec.structs.replace(content, keks=(*content.keks, foreign)))
    added = [ringfile.add(path) for _ in range(3)]
    times = [ahead, *(entry.created_at for entry in added)]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert ringfile.newest(ringfile.read(path)) == added[-1]
    assert ringfile.promote(path) == added[-1]
    once = path.read_bytes()
    assert ringfile.newest(ringfile.read(path)) == added[-1]
    assert ringfile.promote(path) == added[-1]
    assert path.read_bytes() == once
    assert ringfile.read(path).keks == (added[-1], *content.keks, foreign, *added[:-1])
    (*_, last) = (ringfile.add(path), ringfile.add(path))
    assert ringfile.promote(path) == last
    assert ringfile.read(path).keks[:2] == (last, added[-1])


@as_root
@pytest.mark.parametrize("change", ["add", "promote", "remove"])
def test_a_ring_that_root_rewrites_stays_its_owners(tmp_path: Path, change: str) -> None:
    """The service that runs as its owner still reads it, and nobody else does."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    entry = ringfile.add(path)
    os.chown(path, 65534, 65534)
    changes: dict[str, Callable[[], object]] = {
        "add": lambda: ringfile.add(path),
        "promote": lambda: ringfile.promote(path),
        "remove": lambda: ringfile.remove(path, entry.id),
    }
    changes[change]()
    state = path.stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (65534, 65534, 0o600)
    assert len(ringfile.load(path).keks) == {"add": 3, "promote": 2, "remove": 1}[change]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_link_to_the_ring_stays_one(tmp_path: Path) -> None:
    """Its target, in another folder, has the new KEK; the link is not replaced by a file of its own."""
    real, link = tmp_path / "real" / "ring.json", tmp_path / "keyring.json"
    ringfile.create(real)
    link.symlink_to(Path("real", "ring.json"))
    entry = ringfile.add(link)
    assert link.is_symlink()
    assert link.readlink() == Path("real", "ring.json")
    assert ringfile.read(real).keks[-1] == entry
    assert stat.S_IMODE(real.lstat().st_mode) == 0o600
    ringfile.promote(link)
    assert link.is_symlink()
    assert ringfile.load(real).keks[0].id == ringfile.load(link).keks[0].id == entry.id
    assert sorted(each.name for each in tmp_path.iterdir()) == ["keyring.json", "real"]


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, Callable[[Path], object]] = {
    "half written": lambda path: files.write_private(path, path.read_text()[:-20]),
    "empty": lambda path: files.write_private(path, ""),
    "of another version": lambda path: files.write_private(
        path, path.read_text().replace('"version": 1', '"version": 2')
    ),
    "open to others": lambda path: path.chmod(0o644),
    "a folder": a_folder,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("how", BAD)
def test_a_ring_that_runs_follows_its_file_only_while_it_is_whole(tmp_path: Path, how: str) -> None:
    """What it has goes on sealing and opening; once the file is whole again it seals under the current KEK of it."""
    path, row_id = tmp_path / "keyring.json", uuid4()
    context = seal.pepper_context(row_id)
    ring = ringfile.create(path)
    had = ring.keks
    BAD[how](path)
    sealed = ring.sealed(context, b"secret")
    assert sealed.kek_id == had[0].id
    assert ring.open_(row_id, context, sealed) == b"secret"
    with pytest.raises(KeyDamaged, match="not in the ring"):
        ring.kek(row_id, "unknown")
    assert ring.keks == had
    if path.is_dir():
        path.rmdir()
    content = ringfile.Content(1, (Entry(had[0].id, had[0].secret, datetime.now(UTC)),))
    files.write_private(path, ringfile._text(content))
    ringfile.add(path)
    new = ringfile.promote(path).id
    assert ring.sealed(context, b"secret").kek_id == new
    assert [kek.id for kek in ring.keks] == [new, had[0].id]
    assert ring.open_(row_id, context, sealed) == b"secret"


# What verify tells.


def on_an_unknown_curve(csr: str) -> str:
    """The CSR with the OID of its curve replaced by one that nobody has."""
    known, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(serialization.Encoding.DER)
    assert known in der
    body = base64.encodebytes(der.replace(known, unknown)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


UNREADABLE: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "no PEM": lambda _: "a CSR, it says",
    "no ASCII": lambda text: f"é{text}",
    "cut off": lambda text: text[: len(text) // 2],
    "broken within": lambda text: text[:100] + "AAAA" + text[104:],
    "of another kind": lambda text: text.replace("CERTIFICATE REQUEST", "PRIVATE KEY"),
    "on an unknown curve": on_an_unknown_curve,
}


@pytest.mark.parametrize("how", UNREADABLE)
async def test_verify_names_the_key_of_a_csr_that_cannot_be_read(site: Place, how: str) -> None:
    """It is told by its row's id, and so is one behind it that does not open."""
    ids = [await site.make(site.ring) for _ in range(5)]
    first, last = min(ids), max(ids)
    text = await site.value("SELECT csr FROM custom_csrs WHERE key_id = $1", first)
    sql = "UPDATE custom_csrs SET csr = $2 WHERE key_id = $1"
    await site.db.execute(sql, first, UNREADABLE[how](text))
    await site.db.execute("UPDATE private_keys SET ciphertext = '' WHERE id = $1", last)
    told = await site.damage()
    assert told.keys() == {first, last}
    assert all(str(row_id) in reason for row_id, reason in told.items())


_CERTIFICATE = """
INSERT INTO custom_certificates (account_id, id, zone_id, key_id, type, bundle_method, sha256, hosts, issuer, signature,
    not_before, not_after, chain)
VALUES ($1, gen_random_uuid(), $2, $3, 'sni_custom', 'force', sha256($4::bytea), '{}', '', '', now(), now(), $5)
"""


async def test_verify_names_the_key_of_a_chain_that_cannot_be_read(site: Place) -> None:
    """Also of a CA's own certificate, and of a certificate that uses the key of a CSR that is good."""
    zone = await zones.create_in(site.db, CALLER, site.account, "a.example.com")
    good, *bad = [await site.make(site.ring) for _ in range(5)]
    texts = ("", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é")
    for number, (key_id, text) in enumerate(zip(bad, texts, strict=True)):
        await site.db.execute(_CERTIFICATE, site.account.id, zone.id, key_id, bytes([number]), text)
    told = await site.damage()
    assert told.keys() == set(bad)
    assert all(str(row_id) in reason for row_id, reason in told.items())
    assert good not in told


async def test_verify_names_keys_that_are_missing(site: Place) -> None:
    """A restore without foreign keys has lost the row: what needs it is told, and the others are still gone through."""
    ids = [await site.make(site.ring) for _ in range(4)]
    lost, broken = ids[0], ids[1]
    async with connected(site.url) as lawless:
        await lawless.execute("SET session_replication_role = replica")
        await lawless.execute("DELETE FROM private_keys WHERE id = $1", lost)
    await site.db.execute("UPDATE private_keys SET ciphertext = '' WHERE id = $1", broken)
    csr_id = await site.value("SELECT id FROM custom_csrs WHERE key_id = $1", lost)
    told = await site.damage()
    assert told.keys() == {lost, broken}
    assert told[lost] == f"row {lost} is missing, the key of the custom CSR {csr_id}"


# Peppers.


def request_info() -> RequestInfo:
    return RequestInfo(None, "0" * 32, "GET", "/")


async def age(site: Place, seconds: float) -> None:
    sql = "UPDATE peppers SET created_at = created_at - make_interval(secs => $1)"
    await site.db.execute(sql, seconds)


async def test_a_new_pepper_digests_once_it_has_settled(site: Place) -> None:
    """Until every process has read it new tokens are digested with the earlier one; it recognizes from the start."""
    await age(site, 3600)
    peppers = await load_peppers(site.db, site.ring)
    earlier, _ = peppers.newest("x")
    newest = await add_pepper(site.db, site.ring, CALLER)
    for aged, expected in ((0, earlier), (1, earlier), (SETTLED_SECONDS, newest)):
        await age(site, aged)
        await peppers.refresh(site.db, site.ring)
        assert list(peppers.by_id) == [newest, earlier]
        assert peppers.newest("x")[0] == expected
    # An earlier one is used where it is the only one, however new.
    await site.db.execute("UPDATE peppers SET created_at = now()")
    assert (await load_peppers(site.db, site.ring)).newest("x")[0] in {newest, earlier}


async def test_a_pepper_that_was_retired_in_between_does_no_harm_to_a_good_token(site: Place) -> None:
    """A process that still has it as the current one lets the token in, which keeps the digest that it has."""
    await age(site, 3600)
    ring = site.ring
    behind = await load_peppers(site.db, ring)
    retired, _ = behind.newest("x")
    newest = await add_pepper(site.db, ring, CALLER)
    await age(site, 60)
    ahead = await load_peppers(site.db, ring)
    assert ahead.newest("x")[0] == newest
    value = await site.token(ahead)
    # It has read the new one, and has not taken it for the current one yet.
    stale = Peppers(dict(ahead.by_id), current=retired)
    assert await tokens.retire_pepper(site.db, CALLER, retired, revoke=False) == 0
    held = "SELECT digest FROM tokens"
    before = await site.value(held)
    place = ScopeRef(Level.ACCOUNT, site.account.id)
    for _ in range(2):
        caller = await admission.authenticate(site.services(stale), Memory(), TokenCredential(value), request_info())
        admitted = await admission.admit(site.services(stale), Memory(), TokenCredential(value), place, request_info())
        assert caller.id == admitted.caller.id
        assert await site.value(held) == before
    with pytest.raises(Conflict, match="try again"):
        await site.token(stale)
    assert await site.value("SELECT count(*) FROM tokens") == 1
    with pytest.raises(Unauthenticated):
        await admission.authenticate(site.services(behind), Memory(), TokenCredential(value), request_info())


async def test_a_pepper_that_is_needed_is_retired_by_nobody_who_does_not_say_revoke(site: Place) -> None:
    """Tokens, global keys and the pepper are as they were, and nothing is audited."""
    await age(site, 3600)
    peppers = await load_peppers(site.db, site.ring)
    pepper_id, _ = peppers.newest("x")
    value = await site.token(peppers)
    user = await accounts.create_user(site.db, CALLER, "a@example.com")
    await tokens.roll_global_key(site.services(peppers), CALLER, user)
    await add_pepper(site.db, site.ring, CALLER)
    tables = ("tokens", "users", "peppers", "audit_log")
    before = [await site.db.fetch(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    with pytest.raises(Conflict, match="1 tokens and 1 global keys need this pepper"):
        await tokens.retire_pepper(site.db, CALLER, pepper_id, revoke=False)
    assert [await site.db.fetch(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == before
    assert (
        await admission.authenticate(site.services(peppers), Memory(), TokenCredential(value), request_info())
    ).name == "a token"
    assert await tokens.retire_pepper(site.db, CALLER, pepper_id, revoke=True) == 2
    assert await site.value("SELECT count(*) FROM tokens") == 0
    with pytest.raises(Unauthenticated):
        await admission.authenticate(site.services(peppers), Memory(), TokenCredential(value), request_info())


# Serving.


@contextlib.contextmanager
def folder_of(uid: int) -> Iterator[Path]:
    """A folder that this user reaches and owns; whatever runs on it is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="keystead-ring-") as name:
        os.chown(name, uid, uid)
        try:
            yield Path(name)
        finally:
            for pid in processes_below(Path(name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def tls_pair(folder: Path, uid: int) -> tuple[Path, Path, ssl.SSLContext]:
    """A certificate and its key that only this user reads, and who trusts it."""
    made = trustme.CA()
    pair = made.issue_cert("127.0.0.1")
    paths = (folder / "cert.pem", folder / "key.pem")
    for path, text in zip(paths, (pair.cert_chain_pems[0].bytes(), pair.private_key_pem.bytes()), strict=True):
        path.write_bytes(text)
        path.chmod(0o600)
        os.chown(path, uid, uid)
    context = ssl.create_default_context()
    made.configure_trust(context)
    return *paths, context


@pytest.mark.serve
@as_root
def test_tls_is_served_by_a_user_who_is_not_root() -> None:
    """Its workers read the pair from the parent's memory, so the parent must not have hidden itself with the ring."""
    uid = 65534
    python = python_for(uid)
    with folder_of(uid) as folder:
        certificate, key, context = tls_pair(folder, uid)
        port = free_port()
        settings = {
            "KEYSTEAD_DATA_DIR": folder / "data",
            "KEYSTEAD_PORT": port,
            "KEYSTEAD_TLS_CERT": certificate,
            "KEYSTEAD_TLS_KEY": key,
            "KEYSTEAD_WORKERS": 1,
            "PYTHONPATH": os.pathsep.join((str(ROOT), *(path for path in sys.path if "site-packages" in path))),
            "PATH": os.environ["PATH"],
        }
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, "-m", "keystead", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: str(value) for name, value in settings.items()},
                cwd="/",
                user=uid,
                group=uid,
                extra_groups=(),
            )
        try:
            assert answered(f"https://127.0.0.1:{port}/healthz", context, process) == 200, log.read_text()
            assert Path(f"/proc/{process.pid}").stat().st_uid == uid
            assert (folder / "data" / "keyring.json").stat().st_uid == uid
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def answered(url: str, context: ssl.SSLContext, process: "subprocess.Popen[bytes]") -> int | None:
    """The status, once there is an answer; None when there is none."""
    deadline = time.monotonic() + 60
    with httpx.Client(verify=context, trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                return client.get(url).status_code
            time.sleep(0.02)
    return None
