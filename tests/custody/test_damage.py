"""Damage: whatever happens to a sealed row or to the ring, nothing opens as what it is not, and the row is named.

Rows are changed behind the program's back, with the foreign keys switched off, and are put back after each test.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import key_pem, pem, root, subject
from support.databases import new_database
from support.rotation import Place
from support.waiting import comes_about
from support.world import World, new_world

from keystead.ca import authorities, issuing
from keystead.caller import Scope
from keystead.certificates import store as certificates
from keystead.certificates.export import export
from keystead.config import Settings
from keystead.custody import keyring, rotation, seal
from keystead.custody import ring as ringfile
from keystead.custody.peppers import add_pepper, load_peppers
from keystead.custody.ring import Ring
from keystead.errors import KeyDamaged, Misconfigured, NotFound
from keystead.server import first_start, postgres
from keystead.store import database as db

Json = dict[str, Any]
KINDS = ("csr", "certificate", "root", "intermediate", "pepper")
KEYS = KINDS[:-1]
AUTHORITIES = ("root", "intermediate")
OWNERS = ("custom_csrs", "custom_certificates", "certificate_authorities")
SEALED = ("private_keys", "peppers")
STRANGER = UUID(int=99)
CALLER = msgspec.structs.replace(first_start.operator(), path="a test")


class Thing(msgspec.Struct):
    """Something with a sealed row: `row_id` is the row's, `id` its own, and `other` another of its kind."""

    kind: str
    id: UUID
    row_id: UUID
    account_id: UUID
    open: Callable[[Ring], Awaitable[object]]
    other: "Thing | None" = None

    @property
    def table(self) -> str:
        return "peppers" if self.kind == "pepper" else "private_keys"

    @property
    def resource(self) -> str:
        return "pepper" if self.kind == "pepper" else "private_key"


class Scene(msgspec.Struct):
    """A world with two things of each kind, and a connection for which the database's own rules do not hold."""

    world: World
    lawless: db.Connection
    things: dict[str, Thing]

    async def change(self, sql: str, thing: Thing) -> None:
        """Carry out `;`-separated statements in which {id} and {other} are the rows."""
        assert thing.other
        places = {"table": thing.table, "id": f"'{thing.row_id}'", "other": f"'{thing.other.row_id}'"}
        for statement in sql.format(**places).split(";"):
            await self.lawless.execute(statement)

    async def changed(self, table: str = "") -> set[UUID]:
        """The sealed rows that are not what they were."""
        tables = (table,) if table else SEALED
        parts = [f"SELECT id FROM (TABLE {name} EXCEPT TABLE saved.{name}) AS {name}" for name in tables]
        return {row["id"] for row in await self.lawless.fetch(" UNION ALL ".join(parts))}

    async def audited(self, row_id: UUID) -> list[tuple[str, str, UUID]]:
        sql = (
            "SELECT resource_type, actor, account_id FROM audit_log "
            "WHERE action = 'key-damaged' AND resource_id = $1 ORDER BY at"
        )
        return [tuple(row) for row in await self.lawless.fetch(sql, row_id)]

    async def verified(self, ring: Ring | None = None) -> dict[UUID, str]:
        """What `keys verify` would say of each row that is damaged."""
        found = rotation.verify(self.world.database, ring or self.world.ring)
        return {damage.id: damage.reason async for batch in found for damage in batch.damaged}

    async def put_back(self) -> None:
        for name in SEALED:
            await self.lawless.execute(f"DELETE FROM {name}; INSERT INTO {name} TABLE saved.{name}")
        for name in OWNERS:
            of_saved = f"SET account_id = s.account_id, key_id = s.key_id FROM saved.{name} s WHERE t.id = s.id"
            await self.lawless.execute(f"UPDATE {name} SET key_id = gen_random_uuid(); UPDATE {name} t {of_saved}")


async def answer_of(world: World, path: str, body: Json) -> Json:
    answer = await world.http.post(path, json=body, headers=world.a.bearer)
    assert answer.status_code < 300, answer.text
    found: Json = answer.json()
    return found


async def a_csr(world: World, number: int) -> UUID:
    return UUID((await world.create(name=f"csr {number}"))["id"])


async def a_certificate(world: World, number: int) -> UUID:
    key = ec.generate_private_key(ec.SECP256R1())
    host = f"h{number}.{world.a.zone.name}"
    leaf = root().sign(key.public_key(), subject(host), hosts=[host])
    body = {"certificate": pem(leaf), "private_key": key_pem(key), "bundle_method": "force"}
    made = await answer_of(world, f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates", body)
    return UUID(made["result"]["id"])


async def a_ca(world: World, kind: str, number: int) -> UUID:
    body = {"projectSlug": world.a.account.slug, "type": kind, "commonName": f"{kind} {number}"}
    made = await answer_of(world, "/api/v1/pki/ca", {**body, "keyAlgorithm": "EC_prime256v1"})
    return UUID(made["ca"]["id"])


async def make(world: World, kind: str, number: int) -> Thing:
    account_id, database = world.a.account.id, world.database

    async def key_of(table: str, id_: UUID) -> UUID:
        row = await database.fetchrow(f"SELECT key_id FROM {table} WHERE id = $1", id_)
        assert row
        found: UUID = row["key_id"]
        return found

    if kind == "csr":
        csr_id = await a_csr(world, number)
        row_id = await key_of("custom_csrs", csr_id)
        row = await database.fetchrow("SELECT spki_sha256 FROM private_keys WHERE id = $1", row_id)
        assert row
        digest = row["spki_sha256"]

        async def open_csr(ring: Ring) -> object:
            held = await key_of("custom_csrs", csr_id)
            return await keyring.open_key(database, ring, CALLER, (account_id, held, digest))

        return Thing(kind, csr_id, row_id, account_id, open_csr)
    if kind == "certificate":
        certificate_id = await a_certificate(world, number)

        async def open_certificate(ring: Ring) -> object:
            found = await certificates.find(database, str(certificate_id))
            return await export(msgspec.structs.replace(world.services, ring=ring), CALLER, found)

        row_id = await key_of("custom_certificates", certificate_id)
        return Thing(kind, certificate_id, row_id, account_id, open_certificate)
    if kind == "pepper":
        pepper_id = await add_pepper(database, world.ring, CALLER)

        async def open_peppers(ring: Ring) -> object:
            return await load_peppers(database, ring)

        return Thing(kind, pepper_id, pepper_id, UUID(int=0), open_peppers)
    ca_id = await a_ca(world, kind, number)

    async def open_ca(ring: Ring) -> object:
        found = await authorities.get(database, Scope(account_id), ca_id)
        return await issuing.ca_key(msgspec.structs.replace(world.services, ring=ring), CALLER, found)

    return Thing(kind, ca_id, await key_of("certificate_authorities", ca_id), account_id, open_ca)


@pytest.fixture(scope="module")
async def whole(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One world for the module, whose ring has a second KEK."""
    folder = tmp_path_factory.mktemp("damage")
    async with new_database(cluster) as url, new_world(url, folder) as world:
        ringfile.add(world.settings.keyring)
        # As any process does that meets the new KEK in a row.
        world.ring.follow()
        assert len(world.ring.keks) == 2
        things = {}
        for kind in KINDS:
            things[kind] = await make(world, kind, 1)
            things[kind].other = await make(world, kind, 2)
        lawless: db.Connection = await asyncpg.connect(url)
        await lawless.execute("SET session_replication_role = replica; CREATE SCHEMA saved")
        for name in (*SEALED, *OWNERS):
            await lawless.execute(f"CREATE TABLE saved.{name} AS TABLE {name}")
        yield Scene(world, lawless, things)
        await lawless.close()


@pytest.fixture
async def scene(whole: Scene) -> AsyncIterator[Scene]:
    """The same, whole again after the test."""
    # What the program itself has noted is noted again only after a minute.
    keyring._AUDITED_AT.clear()
    yield whole
    await whole.put_back()
    assert await whole.verified() == {}


# What is set on the row {id} of {table}; {other} is another row of its kind.
_SET = "UPDATE {{table}} k SET {} FROM {{table}} other WHERE k.id = {{id}} AND other.id = {{other}}"
_SWAP = (
    "UPDATE {table} SET id = '00000000-0000-0000-0000-000000000001' WHERE id = {id};"
    "UPDATE {table} SET id = {id} WHERE id = {other};"
    "UPDATE {table} SET id = {other} WHERE id = '00000000-0000-0000-0000-000000000001'"
)
_PLACES = {
    "version byte": "0",
    "first byte of the nonce": "1",
    "last byte of the nonce": "12",
    "first byte of the ciphertext": "13",
    "first byte of the tag": "length(k.{0}) - 16",
    "last byte of the tag": "length(k.{0}) - 1",
}
_LENGTHS = {
    "nothing": "0",
    "the version byte": "1",
    "less than nonce and tag": "28",
    "nonce and tag": "29",
    "all but a byte": "length(k.{0}) - 1",
}


def _of_column(column: str) -> dict[str, str]:
    found = {
        f"a flipped bit in the {name}": f"{column} = set_byte(k.{column}, {at}, get_byte(k.{column}, {at}) # 4)"
        for name, at in ((name, at.format(column)) for name, at in _PLACES.items())
    }
    found |= {
        f"cut to {name}": f"{column} = substring(k.{column} FROM 1 FOR {length.format(column)})"
        for name, length in _LENGTHS.items()
    }
    found |= {f"version {version}": f"{column} = set_byte(k.{column}, 0, {version})" for version in (0, 2, 255)}
    found |= {
        "one byte more": f"{column} = k.{column} || '\\x00'",
        "the other row's": f"{column} = other.{column}",
        "made up": f"{column} = decode(repeat('01', length(k.{column})), 'hex')",
    }
    return {f"{column}: {name}": change for name, change in found.items()}


CHANGES = {
    name: _SET.format(change)
    for name, change in {
        **_of_column("wrapped_key"),
        **_of_column("ciphertext"),
        "kek_id: unknown": "kek_id = 'gone'",
        "kek_id: empty": "kek_id = ''",
        "the other row's sealed value": "(wrapped_key, ciphertext) = ROW (other.wrapped_key, other.ciphertext)",
        "wrapped key and ciphertext exchanged": "(wrapped_key, ciphertext) = ROW (k.ciphertext, k.wrapped_key)",
    }.items()
} | {"id: the other row's": _SWAP}
OF_KEYS = {
    name: _SET.format(change)
    for name, change in {
        "key_type: another": "key_type = 'p384'",
        "spki_sha256: the other row's": "(spki_sha256, generated) = ROW (other.spki_sha256, false)",
        "spki_sha256: made up": "spki_sha256 = sha256('x')",
        "the whole value of the other row": "(wrapped_key, ciphertext, kek_id, key_type, spki_sha256, generated) = "
        "ROW (other.wrapped_key, other.ciphertext, other.kek_id, other.key_type, other.spki_sha256, false)",
    }.items()
}
CASES = [(kind, name) for kind in KINDS for name in (*CHANGES, *(OF_KEYS if kind in KEYS else ()))]


@pytest.mark.parametrize(("kind", "name"), CASES)
async def test_a_damaged_row_never_opens_and_is_named(scene: Scene, kind: str, name: str) -> None:
    """It is KeyDamaged with the row's id, audited, and `keys verify` names exactly the rows that were changed."""
    thing = scene.things[kind]
    assert thing.other
    before = {each.row_id: len(await scene.audited(each.row_id)) for each in (thing, thing.other)}
    await scene.change({**CHANGES, **OF_KEYS}[name], thing)
    changed = await scene.changed()
    assert thing.row_id in changed
    with pytest.raises(KeyDamaged) as caught:
        await thing.open(scene.world.ring)
    # Of two exchanged peppers the one that is read first is named.
    named = UUID(caught.value.key_id)
    assert named in changed if thing.kind == "pepper" else named == thing.row_id
    assert str(named) in str(caught.value)

    async def noted() -> bool:
        return len(await scene.audited(named)) > before[named]

    # The server reads peppers too: when it has found one first, its entry is the one, and may not be there yet.
    await comes_about(noted)
    rows = await scene.audited(named)
    assert rows[-1] == (thing.resource, "system" if kind == "pepper" else "operator", thing.account_id)
    assert len(rows) == before[named] + 1
    told = await scene.verified()
    assert told.keys() == changed
    assert all(str(row_id) in reason for row_id, reason in told.items())
    if kind in AUTHORITIES:
        await assert_refused_by_the_api(scene, thing, name)


async def test_a_row_under_another_kek_of_the_ring_does_not_open(scene: Scene) -> None:
    """A KEK id that the ring has, and that is not the one which wraps the row, is damage as any other."""
    second = scene.world.ring.keks[1].id
    for thing in scene.things.values():
        await scene.change(_SET.format(f"kek_id = '{second}'"), thing)
        with pytest.raises(KeyDamaged, match=str(thing.row_id)):
            await thing.open(scene.world.ring)
    assert (await scene.verified()).keys() == {thing.row_id for thing in scene.things.values()}


CALLS: dict[str, tuple[str, str, Json]] = {
    "root": ("POST", "renew", {"type": "existing", "notAfter": "2060-01-01"}),
    "intermediate": ("GET", "csr", {}),
}


async def assert_refused_by_the_api(scene: Scene, thing: Thing, reason: str) -> None:
    """A call that needs the key answers 500 in the dialect's shape, says nothing of the damage, and is audited."""
    before = len(await scene.audited(thing.row_id))
    method, word, body = CALLS[thing.kind]
    path = f"/api/v1/pki/ca/{thing.id}/{word}"
    answer = await scene.world.http.request(method, path, json=body or None, headers=scene.world.a.bearer)
    told = answer.json()
    assert (answer.status_code, told["statusCode"], told["error"]) == (500, 500, "InternalServerError"), reason
    assert told["message"] == "Something went wrong"
    rows = await scene.audited(thing.row_id)
    assert rows[-1] == ("private_key", "token", thing.account_id)
    assert len(rows) == before + 1


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_that_was_moved_to_another_account_is_gone_here_and_opens_nowhere(scene: Scene, kind: str) -> None:
    """The account it came from has no such key, and in the other one it is damaged."""
    thing, there = scene.things[kind], scene.world.b.account.id
    spki = await scene.lawless.fetchval("SELECT spki_sha256 FROM private_keys WHERE id = $1", thing.row_id)
    await scene.change(f"UPDATE {{table}} SET account_id = '{there}' WHERE id = {{id}}", thing)
    with pytest.raises(NotFound):
        await thing.open(scene.world.ring)
    with pytest.raises(KeyDamaged, match=str(thing.row_id)):
        await keyring.open_key(scene.world.database, scene.world.ring, CALLER, (there, thing.row_id, spki))
    assert (await scene.audited(thing.row_id))[-1] == ("private_key", "operator", there)
    assert (await scene.verified()).keys() == {thing.row_id}


@pytest.mark.parametrize("kind", AUTHORITIES)
async def test_a_ca_that_was_moved_to_another_account_with_its_key_cannot_sign_there(scene: Scene, kind: str) -> None:
    """Whoever can write to the database cannot give one tenant the CA of another."""
    thing, world = scene.things[kind], scene.world
    tables = ("certificate_authorities", "ca_certificates", "crls", "issued_certificates", "private_keys")
    columns = ("id", "ca_id", "ca_id", "ca_id", "id")
    for table, column in zip(tables, columns, strict=True):
        which = thing.row_id if table == "private_keys" else thing.id
        sql = f"UPDATE {table} SET account_id = $1 WHERE {column} = $2"
        await scene.lawless.execute(sql, world.b.account.id, which)
    method, word, body = CALLS[kind]
    path = f"/api/v1/pki/ca/{thing.id}/{word}"
    assert (await world.http.request(method, path, json=body or None, headers=world.a.bearer)).status_code == 404
    assert (await world.http.request(method, path, json=body or None, headers=world.b.bearer)).status_code == 500
    assert (await scene.audited(thing.row_id))[-1] == ("private_key", "token", world.b.account.id)
    for table, column in zip(tables[1:4], columns[1:4], strict=True):
        sql = f"UPDATE {table} SET account_id = $1 WHERE {column} = $2"
        await scene.lawless.execute(sql, world.a.account.id, thing.id)


# A key that opens, but is another's.

_TABLES = dict(zip(KEYS, (*OWNERS, OWNERS[2]), strict=True))


async def exchange(scene: Scene, kind: str) -> set[UUID]:
    """Give each of two things the key of the other; both keys stay as they are."""
    thing = scene.things[kind]
    assert thing.other
    sql = f"UPDATE {_TABLES[kind]} SET key_id = $2 WHERE id = $1"
    for id_, key_id in ((thing.id, STRANGER), (thing.other.id, thing.row_id), (thing.id, thing.other.row_id)):
        await scene.lawless.execute(sql, id_, key_id)
    return {thing.row_id, thing.other.row_id}


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_that_belongs_to_another_thing_is_refused_and_named(scene: Scene, kind: str) -> None:
    """Both keys open, but neither for the thing that it was given to; and what they are used for is refused."""
    thing = scene.things[kind]
    both = await exchange(scene, kind)
    with pytest.raises(KeyDamaged) as caught:
        await thing.open(scene.world.ring)
    assert UUID(caught.value.key_id) in both - {thing.row_id}
    assert "another key than the one asked for" in str(caught.value)
    assert await scene.audited(UUID(caught.value.key_id))
    told = await scene.verified()
    assert told.keys() == both
    what = {"csr": "is not the key of the custom CSR", "certificate": "is not the key of a certificate that names it"}
    assert all(what.get(kind, "is not the key of the CA") in reason for reason in told.values())
    if kind in AUTHORITIES:
        method, word, body = CALLS[kind]
        path = f"/api/v1/pki/ca/{thing.id}/{word}"
        answer = await scene.world.http.request(method, path, json=body or None, headers=scene.world.a.bearer)
        assert answer.status_code == 500


async def test_a_certificate_that_names_the_key_of_a_csr_is_named(scene: Scene) -> None:
    """The CSR's own key is good for the CSR and not for that certificate, whose own key is nobody's now."""
    csr, certificate = scene.things["csr"], scene.things["certificate"]
    await scene.lawless.execute("UPDATE custom_certificates SET key_id = $2 WHERE id = $1", certificate.id, csr.row_id)
    told = await scene.verified()
    assert told.keys() == {csr.row_id, certificate.row_id}
    assert "is not the key of a certificate that names it" in told[csr.row_id]
    assert "belongs to no CSR, certificate or CA" in told[certificate.row_id]
    with pytest.raises(KeyDamaged):
        await certificate.open(scene.world.ring)
    await csr.open(scene.world.ring)


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_that_belongs_to_nothing_is_named_and_so_is_one_that_is_missing(scene: Scene, kind: str) -> None:
    """A key whose owner is gone is told as such, and what has no key is told by the id that its key should have."""
    thing = scene.things[kind]
    await scene.lawless.execute(f"UPDATE {_TABLES[kind]} SET key_id = $2 WHERE id = $1", thing.id, STRANGER)
    told = await scene.verified()
    assert told.keys() == {thing.row_id, STRANGER}
    assert told[thing.row_id] == f"row {thing.row_id} belongs to no CSR, certificate or CA"
    assert told[STRANGER].endswith(f" {thing.id}")
    assert told[STRANGER].startswith(f"row {STRANGER} is missing, the key of the ")
    with pytest.raises(NotFound):
        await thing.open(scene.world.ring)


# Other rings.


def rings(ring: Ring) -> dict[str, Ring]:
    first, second = ring.keks
    return {
        "an older ring": Ring((second,)),
        "a ring of another installation": Ring((seal.Kek("0123456789abcdef", os.urandom(32)),)),
        "a forged ring": Ring((seal.Kek(first.id, os.urandom(32)), second)),
        "a ring with exchanged secrets": Ring((seal.Kek(first.id, second.secret), seal.Kek(second.id, first.secret))),
    }


RINGS = ("an older ring", "a ring of another installation", "a forged ring", "a ring with exchanged secrets")


@pytest.mark.parametrize("which", RINGS)
async def test_another_ring_opens_nothing_and_every_row_is_named(scene: Scene, which: str) -> None:
    """Each row that it cannot open is KeyDamaged with its id and audited, and `keys verify` would name them all."""
    ring = rings(scene.world.ring)[which]
    for thing in scene.things.values():
        with pytest.raises(KeyDamaged) as caught:
            await thing.open(ring)
        if thing.kind != "pepper":
            assert caught.value.key_id == str(thing.row_id)
        assert (await scene.audited(UUID(caught.value.key_id)))[-1][0] == thing.resource
    everything = "SELECT id FROM private_keys UNION ALL SELECT id FROM peppers"
    told = await scene.verified(ring)
    assert told.keys() == {row["id"] for row in await scene.lawless.fetch(everything)}


def write(ring: Ring, path: Path) -> Path:
    """The ring as a file."""
    entries = (ringfile.Entry(kek.id, kek.secret, datetime(2027, 1, 1, tzinfo=UTC)) for kek in ring.keks)
    ringfile._write(path, ringfile.Content(1, tuple(entries)))
    return path


def settings(scene: Scene, folder: Path) -> Settings:
    """Those of a server that would start on this database; its files lie elsewhere."""
    return msgspec.structs.replace(scene.world.settings, data_dir=folder)


@pytest.mark.parametrize("which", RINGS)
async def test_a_server_does_not_start_with_another_ring(scene: Scene, tmp_path: Path, which: str) -> None:
    """One sentence that names the KEK or the row, and nothing is changed."""
    path = write(rings(scene.world.ring)[which], tmp_path / "keyring.json")
    before = path.read_bytes()
    with pytest.raises(Misconfigured) as caught:
        await first_start.prepare(msgspec.structs.replace(settings(scene, tmp_path), keyring=path))
    assert_sentence(str(caught.value))
    assert path.read_bytes() == before
    assert await scene.changed() == set()


def assert_sentence(text: str) -> None:
    assert len(text.splitlines()) == 1
    assert "ring" in text


@pytest.mark.parametrize("name", CHANGES)
async def test_a_server_does_not_start_with_a_damaged_pepper(scene: Scene, tmp_path: Path, name: str) -> None:
    """It would know nobody: one sentence says so."""
    thing = scene.things["pepper"]
    await scene.change(CHANGES[name], thing)
    changed = await scene.changed()
    with pytest.raises(Misconfigured) as caught:
        await first_start.prepare(settings(scene, tmp_path))
    text = str(caught.value)
    assert_sentence(text)
    assert any(str(row_id) in text for row_id in changed) or "lacks the KEK" in text


async def test_a_server_starts_with_a_damaged_key(scene: Scene, tmp_path: Path) -> None:
    """One bad key does not keep the others from being served; only a KEK that is not there does."""
    thing = scene.things["intermediate"]
    await scene.change(CHANGES["ciphertext: version 2"], thing)
    await first_start.prepare(settings(scene, tmp_path))
    await scene.change(CHANGES["kek_id: unknown"], thing)
    with pytest.raises(Misconfigured, match="the ring lacks the KEK gone"):
        await first_start.prepare(settings(scene, tmp_path))


async def test_a_server_that_runs_serves_all_but_what_is_damaged(scene: Scene) -> None:
    """With a damaged CA and a damaged pepper the others sign, and whoever has a token is served."""
    world, bad = scene.world, scene.things["intermediate"]
    assert bad.other
    await scene.change(CHANGES["ciphertext: version 2"], bad)
    await scene.change(CHANGES["ciphertext: version 2"], scene.things["pepper"])
    services = world.state.services
    with pytest.raises(KeyDamaged):
        await services.peppers.refresh(services.db, services.ring)
    unknown = await world.http.get(world.a.account_path, headers={"Authorization": f"Bearer {'x' * 50}"})
    assert unknown.status_code == 403
    for path in (f"/api/v1/pki/ca/{bad.other.id}/csr", world.a.account_path):
        assert (await world.http.get(path, headers=world.a.bearer)).status_code == 200
    pair = {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}
    assert (await world.http.get(world.a.account_path, headers=pair)).status_code == 200
    await world.create()
    # What was made just now is not among what is put back.
    await scene.lawless.execute("DELETE FROM custom_csrs WHERE id NOT IN (SELECT id FROM saved.custom_csrs)")


async def test_what_anybody_may_ask_for_fills_no_audit_log(scene: Scene) -> None:
    """A CRL needs no credential: that its CA's key is damaged is noted once in a while, and not at each request."""
    world = scene.world
    body = {"projectSlug": world.a.account.slug, "type": "root", "commonName": "Without a CRL"}
    made = await answer_of(world, "/api/v1/pki/ca", {**body, "keyAlgorithm": "EC_prime256v1"})
    ca_id = UUID(made["ca"]["id"])
    sql = "SELECT key_id FROM certificate_authorities WHERE id = $1"
    key_id = await scene.lawless.fetchval(sql, ca_id)
    await scene.lawless.execute("UPDATE private_keys SET ciphertext = '' WHERE id = $1", key_id)
    for _ in range(3):
        assert (await world.http.get(f"/api/v1/pki/crl/{ca_id}/der")).status_code == 500
    assert await scene.audited(key_id) == [("private_key", "system", world.a.account.id)]
    await scene.lawless.execute("DELETE FROM certificate_authorities WHERE id = $1", ca_id)


# `keystead keys verify`.


@pytest.fixture
def place(scene: Scene) -> Place:
    """Runs `keystead` on the scene's database."""
    return Place(scene.world.settings.database_url or "", scene.world.settings.data_dir)


def reasons(text: str) -> dict[UUID, str]:
    """The lines on standard error by the row that they name."""
    lines = [line.removeprefix("keystead: ") for line in text.splitlines()]
    assert len(lines) == text.count("keystead: row ")
    return {UUID(line.split()[1]): line for line in lines}


async def test_verify_says_of_a_good_database_that_it_is(scene: Scene, place: Place) -> None:
    """Exit status 0, the count on standard output, and nothing on standard error."""
    said = place.run("keys", "verify")
    count = await scene.lawless.fetchval("SELECT (SELECT count(*) FROM private_keys) + (SELECT count(*) FROM peppers)")
    assert said.out.startswith(f"{count} keys and peppers are good, 0 are damaged (")
    assert said.err == ""


async def damage_everything(scene: Scene) -> dict[UUID, str]:
    """A row of each kind, each in another way; two CSRs with each other's key, and a key that is nobody's."""
    ways = {
        "certificate": ("ciphertext: cut to nothing", "truncated"),
        "root": ("wrapped_key: version 2", "unknown format version 2"),
        "intermediate": ("ciphertext: a flipped bit in the last byte of the tag", "was changed"),
        "pepper": ("the other row's sealed value", "belongs to another row"),
    }
    expected = {}
    for kind, (name, reason) in ways.items():
        await scene.change(CHANGES[name], scene.things[kind])
        expected[scene.things[kind].row_id] = reason
    other = scene.things["certificate"].other
    assert other
    await scene.lawless.execute("UPDATE custom_certificates SET key_id = $2 WHERE id = $1", other.id, STRANGER)
    expected[other.row_id] = "belongs to no CSR, certificate or CA"
    expected[STRANGER] = f"is missing, the key of the custom certificate {other.id}"
    return expected | dict.fromkeys(await exchange(scene, "csr"), "is not the key of the custom CSR")


async def test_verify_names_every_damaged_row_with_its_reason(scene: Scene, place: Place) -> None:
    """Exit status 1, one line for each on standard error, the counts on standard output, and all audited."""
    expected = await damage_everything(scene)
    said = place.run("keys", "verify", status=1)
    told = reasons(said.err)
    assert told.keys() == expected.keys()
    assert all(reason in told[row_id] for row_id, reason in expected.items())
    assert f", {len(expected)} are damaged (" in said.out
    for row_id in expected:
        assert (await scene.audited(row_id))[-1][1] == "operator"
    await scene.put_back()
    assert ", 0 are damaged (" in place.run("keys", "verify").out


async def test_verify_compares_a_ca_with_its_certificates(scene: Scene, place: Place) -> None:
    """Where two CAs have each other's certificate, as after a bad restore, both keys are named."""
    one = scene.things["root"]
    assert one.other
    swap = "UPDATE ca_certificates SET pem = (SELECT o.pem FROM ca_certificates o WHERE o.ca_id = $2) WHERE ca_id = $1"
    swapped = {one.row_id: (one.id, one.other.id), one.other.row_id: (one.other.id, one.id)}
    for row_id, (ca_id, other) in swapped.items():
        kept = await scene.lawless.fetchval("SELECT pem FROM ca_certificates WHERE ca_id = $1", ca_id)
        await scene.lawless.execute(swap, ca_id, other)
        told = reasons(place.run("keys", "verify", status=1).err)
        await scene.lawless.execute("UPDATE ca_certificates SET pem = $2 WHERE ca_id = $1", ca_id, kept)
        assert told.keys() == {row_id}
        assert "is not the key of a certificate that names it" in told[row_id]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_verify_finds_is_audited_as_what_it_is(scene: Scene, place: Place, kind: str) -> None:
    """A key as a key of its account, a pepper as a pepper of none, as when they are opened."""
    thing = scene.things[kind]
    await scene.change(CHANGES["ciphertext: version 2"], thing)
    place.run("keys", "verify", status=1)
    assert (await scene.audited(thing.row_id))[-1] == (thing.resource, "operator", thing.account_id)


@pytest.mark.parametrize("kind", KINDS)
async def test_verify_names_rows_whose_kek_is_unknown(scene: Scene, place: Place, kind: str) -> None:
    """A row under a KEK that the ring lacks is one of those that it names, and does not keep it from the others."""
    thing, bad = scene.things[kind], scene.things["root"].other
    assert bad
    await scene.change(CHANGES["kek_id: unknown"], thing)
    await scene.lawless.execute("UPDATE private_keys SET wrapped_key = '' WHERE id = $1", bad.row_id)
    told = reasons(place.run("keys", "verify", status=1).err)
    assert told.keys() == {thing.row_id, bad.row_id}
    assert "needs the KEK 'gone', which is not in the ring" in told[thing.row_id]


@pytest.mark.parametrize("which", RINGS)
async def test_verify_with_another_ring_names_every_row(scene: Scene, tmp_path: Path, which: str) -> None:
    """Nothing opens with it, and each row says so."""
    write(rings(scene.world.ring)[which], tmp_path / "keyring.json")
    elsewhere = Place(scene.world.settings.database_url or "", tmp_path)
    told = reasons(elsewhere.run("keys", "verify", status=1).err)
    everything = "SELECT id FROM private_keys UNION ALL SELECT id FROM peppers"
    assert told.keys() == {row["id"] for row in await scene.lawless.fetch(everything)}


_UNREADABLE = {
    "csr": "UPDATE custom_csrs SET csr = 'x' WHERE id = $1",
    "certificate": "UPDATE custom_certificates SET chain = 'x' WHERE id = $1",
    "root": "UPDATE ca_certificates SET pem = 'x' WHERE ca_id = $1",
}


@pytest.mark.parametrize("kind", _UNREADABLE)
async def test_verify_goes_on_where_what_a_key_belongs_to_cannot_be_read(scene: Scene, place: Place, kind: str) -> None:
    """A CSR or certificate that is damaged itself is told by its key's row, and does not keep it from the others."""
    table = {"csr": "custom_csrs", "certificate": "custom_certificates", "root": "ca_certificates"}[kind]
    thing = scene.things[kind]
    kept = await scene.lawless.fetch(f"SELECT * FROM {table}")
    column = {"csr": "csr", "certificate": "chain", "root": "pem"}[kind]
    await scene.lawless.execute(_UNREADABLE[kind], thing.id)
    try:
        assert reasons(place.run("keys", "verify", status=1).err).keys() == {thing.row_id}
    finally:
        for row in kept:
            await scene.lawless.execute(f"UPDATE {table} SET {column} = $2 WHERE id = $1", row["id"], row[column])


async def test_an_export_of_a_damaged_key_is_one_line_and_no_file(scene: Scene, place: Place, tmp_path: Path) -> None:
    """The command that hands out keys says which row it is, and leaves nothing behind."""
    thing = scene.things["certificate"]
    for name in ("ciphertext: version 2", "the whole value of the other row"):
        await scene.change({**CHANGES, **OF_KEYS}[name], thing)
        said = place.run("certificate", "export", str(thing.id), "--out", str(tmp_path / "out"), status=1)
        assert len(said.err.splitlines()) == 1
        assert str(thing.row_id) in said.err
        assert list((tmp_path / "out").iterdir()) == []


async def test_what_is_whole_opens(scene: Scene) -> None:
    """Without damage each of these things opens, so that the refusals above mean something."""
    for thing in scene.things.values():
        assert thing.other
        assert await thing.open(scene.world.ring) is not None
        assert await thing.other.open(scene.world.ring) is not None
