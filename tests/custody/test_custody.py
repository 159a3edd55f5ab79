"""Sealing: what opens, what does not, and what the ring file must be (docs/custody.md)."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.world import World

from keystead.custody import keyring, seal
from keystead.custody import ring as ringfile
from keystead.custody.peppers import Peppers, load_peppers
from keystead.errors import KeyDamaged, Misconfigured, NotFound
from keystead.store import database as db
from keystead.x509 import keys
from keystead.x509.keys import KeyType

KEK = seal.Kek("kek-1", bytes(range(32)))
KEY_ID, ACCOUNT_ID = UUID(int=1), UUID(int=2)
CONTEXT = seal.private_key_context(KEY_ID, ACCOUNT_ID, "p256v1", b"d" * 32)
SECRET = b"a private key"
SEALED = seal.seal(KEK, CONTEXT, SECRET)


def test_what_is_sealed_opens_in_its_place() -> None:
    """The secret comes back, and two seals of it share no byte of nonce, key or ciphertext."""
    assert seal.open_(KEK, CONTEXT, SEALED) == SECRET
    again = seal.seal(KEK, CONTEXT, SECRET)
    assert again.wrapped_key[1:13] != SEALED.wrapped_key[1:13]
    assert again.ciphertext[1:13] != SEALED.ciphertext[1:13]
    assert again.ciphertext[13:] != SEALED.ciphertext[13:]


OTHER_PLACES: dict[str, tuple[bytes, ...]] = {
    "another key id": seal.private_key_context(UUID(int=9), ACCOUNT_ID, "p256v1", b"d" * 32),
    "another account": seal.private_key_context(KEY_ID, UUID(int=9), "p256v1", b"d" * 32),
    "another key type": seal.private_key_context(KEY_ID, ACCOUNT_ID, "rsa2048", b"d" * 32),
    "another public key": seal.private_key_context(KEY_ID, ACCOUNT_ID, "p256v1", b"e" * 32),
    "a pepper": seal.pepper_context(KEY_ID),
    "nothing": (),
}


@pytest.mark.parametrize("place", OTHER_PLACES)
def test_a_value_does_not_open_in_another_place(place: str) -> None:
    """Every field of the context counts."""
    with pytest.raises(seal.Broken):
        seal.open_(KEK, OTHER_PLACES[place], SEALED)


def test_a_value_does_not_open_under_another_kek_or_kek_id() -> None:
    """Neither another secret under the same id nor the same secret under another id opens it."""
    for kek in (seal.Kek("kek-1", b"x" * 32), seal.Kek("kek-2", KEK.secret)):
        with pytest.raises(seal.Broken):
            seal.open_(kek, CONTEXT, SEALED)


@given(st.sampled_from(["wrapped_key", "ciphertext"]), st.data())
def test_no_bit_can_be_flipped(part: str, data: st.DataObject) -> None:
    """One flipped bit anywhere in either value, and it does not open."""
    value = bytearray(getattr(SEALED, part))
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(seal.Broken):
        seal.open_(KEK, CONTEXT, msgspec.structs.replace(SEALED, **{part: bytes(value)}))


@given(st.sampled_from(["wrapped_key", "ciphertext"]), st.binary(max_size=80))
def test_no_other_bytes_open(part: str, value: bytes) -> None:
    """Truncated, empty or made-up values do not open, and raise nothing else."""
    with pytest.raises(seal.Broken):
        seal.open_(KEK, CONTEXT, msgspec.structs.replace(SEALED, **{part: value}))


def test_wrapped_keys_and_secrets_are_not_exchangeable() -> None:
    """A wrapped data key put where a sealed secret belongs does not open, nor the other way round."""
    swapped = seal.Sealed(SEALED.kek_id, SEALED.ciphertext, SEALED.wrapped_key)
    with pytest.raises(seal.Broken):
        seal.open_(KEK, CONTEXT, swapped)


def test_no_secret_is_in_a_repr() -> None:
    """What holds secrets prints its public name alone."""
    pair = keys.generate(KeyType.P256V1)
    new = keyring.new_key(ringfile.Ring((KEK,)), ACCOUNT_ID, pair)
    shown = repr([KEK, ringfile.Ring((KEK,)), Peppers({KEY_ID: b"secret-pepper"}), pair, new])
    assert "kek-1" in shown
    for secret in (repr(KEK.secret), "secret-pepper", keys.pkcs8(pair.private_key).hex(), "x04"):
        assert secret not in shown


async def row_of(world: World, csr_id: str) -> tuple[UUID, bytes]:
    row = await world.database.fetchrow(
        "SELECT k.id, k.spki_sha256 FROM private_keys k JOIN custom_csrs c ON c.key_id = k.id WHERE c.id = $1",
        UUID(csr_id),
    )
    assert row
    return row["id"], row["spki_sha256"]


# What is set on the row of the key $1; `other` is the row of another key.
CHANGES: dict[str, str] = {
    "a flipped bit in the ciphertext": "ciphertext = set_bit(k.ciphertext, 300, 1 - get_bit(k.ciphertext, 300))",
    "a flipped bit in the wrapped key": "wrapped_key = set_bit(k.wrapped_key, 200, 1 - get_bit(k.wrapped_key, 200))",
    "a truncated ciphertext": "ciphertext = substring(k.ciphertext FROM 1 FOR 100)",
    "a truncated wrapped key": "wrapped_key = substring(k.wrapped_key FROM 1 FOR 20)",
    "an empty ciphertext": "ciphertext = ''",
    "another version byte": "ciphertext = set_byte(k.ciphertext, 0, 2)",
    "another KEK id": "kek_id = 'gone'",
    "another digest": "spki_sha256 = sha256('x')",
    "another key type": "key_type = 'rsa2048'",
    "the other row's ciphertext": "ciphertext = other.ciphertext",
    "the other row's wrapped key": "wrapped_key = other.wrapped_key",
    "the other row's sealed values": "(ciphertext, wrapped_key) = ROW (other.ciphertext, other.wrapped_key)",
    "the other row's values but for the digest's uniqueness": "(ciphertext, wrapped_key, key_type, generated, "
    "spki_sha256) = ROW (other.ciphertext, other.wrapped_key, other.key_type, false, other.spki_sha256)",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_row_is_key_damaged_with_its_id(world: World, change: str) -> None:
    """Whatever is changed in a stored key, it is refused as damaged, by the row's id, and never opened as another."""
    made = await world.create()
    await world.create()
    key_id, spki = await row_of(world, made["id"])
    before = await world.database.fetchrow("SELECT * FROM private_keys WHERE id = $1", key_id)
    sql = f"UPDATE private_keys k SET {CHANGES[change]} FROM private_keys other WHERE k.id = $1 AND other.id <> $1"
    assert await world.database.execute(sql, key_id) == "UPDATE 1"
    try:
        with pytest.raises(KeyDamaged) as caught:
            await keyring.open_key(world.database, world.ring, keyring.SYSTEM, (world.a.account.id, key_id, spki))
        assert caught.value.key_id == str(key_id)
        assert str(key_id) in str(caught.value)
    finally:
        assert before
        columns = ("id", "key_type", "spki_sha256", "kek_id", "wrapped_key", "ciphertext", "generated")
        sql = f"UPDATE private_keys SET ({', '.join(columns[1:])}) = ROW ($2, $3, $4, $5, $6, $7) WHERE id = $1"
        await world.database.execute(sql, *(before[name] for name in columns))


async def test_a_whole_row_that_belongs_to_another_csr_is_refused(world: World) -> None:
    """A CSR pointed at another, intact key does not get that key."""
    first, second = await world.create(), await world.create()
    (_, spki), (other_id, other_spki) = await row_of(world, first["id"]), await row_of(world, second["id"])
    with pytest.raises(KeyDamaged):
        await keyring.open_key(world.database, world.ring, keyring.SYSTEM, (world.a.account.id, other_id, spki))
    opened = await keyring.open_key(
        world.database, world.ring, keyring.SYSTEM, (world.a.account.id, other_id, other_spki)
    )
    assert keys.spki_sha256(opened) == other_spki
    with pytest.raises(NotFound):
        await keyring.open_key(world.database, world.ring, keyring.SYSTEM, (world.b.account.id, other_id, other_spki))


async def test_each_key_has_a_data_key_and_ciphertext_of_its_own(world: World) -> None:
    """Rows share no wrapped key, no ciphertext and no public key, and hold no PKCS#8 in the clear."""
    for _ in range(3):
        await world.create()
    rows = await world.database.fetch("SELECT wrapped_key, ciphertext, spki_sha256 FROM private_keys")
    for column in ("wrapped_key", "ciphertext", "spki_sha256"):
        assert len({row[column] for row in rows}) == 3
    # The OID of EC public keys is in every PKCS#8 of ours.
    assert all(bytes.fromhex("2a8648ce3d0201") not in row["ciphertext"] for row in rows)


def test_a_new_ring_is_private_and_loads(tmp_path: Path) -> None:
    """The file has mode 0600, is not written twice, and loads to what was made."""
    path = tmp_path / "new" / "keyring.json"
    made = ringfile.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ringfile.load(path).keks == made.keks
    with pytest.raises(FileExistsError):
        ringfile.create(path)
    assert ringfile.load(path).keks == made.keks
    assert [entry.name for entry in path.parent.iterdir()] == ["keyring.json"]


def test_drafts_that_a_killed_start_left_are_swept(tmp_path: Path) -> None:
    """A draft may be a second copy of the ring: it goes at the next start, once it is nobody's."""
    path = tmp_path / "keyring.json"
    made = ringfile.create(path)
    old, fresh = tmp_path / ".keyring.json.0123", tmp_path / ".keyring.json.4567"
    for draft in (old, fresh):
        draft.write_bytes(path.read_bytes())
    os.utime(old, (0, 0))
    ringfile.sweep(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [fresh.name, path.name]
    assert ringfile.load(path).keks == made.keks


def ring_body(**changes: Any) -> bytes:
    entry = {"id": "k", "secret": "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=", "created_at": "2026-01-01T00:00:00Z"}
    return json.dumps({"version": 1, "keks": [{**entry, **changes}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version": 1, "keks": []}',
        b'{"version": 2, "keks": [{"id": "k"}]}',
        ring_body(secret="QUFB"),
        ring_body(secret="not base64!"),
        ring_body(secret=7),
        ring_body(id=None),
        ring_body()[:-10],
        json.dumps({"version": 1, "keks": json.loads(ring_body())["keks"] * 2}).encode(),
        b"\xff",
    ],
)
def test_a_damaged_ring_stops_the_start_and_is_not_quoted(tmp_path: Path, body: bytes) -> None:
    """A ring that is not exactly right is one sentence with its path, and nothing of its content."""
    path = tmp_path / "keyring.json"
    path.write_bytes(body)
    path.chmod(0o600)
    with pytest.raises(Misconfigured) as caught:
        ringfile.load(path)
    assert str(path) in str(caught.value)
    assert "QUFB" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_ring_of_these_tests_would_load(tmp_path: Path) -> None:
    """The body that the damaged ones are made from is a good one."""
    path = tmp_path / "keyring.json"
    path.write_bytes(ring_body())
    path.chmod(0o600)
    assert ringfile.load(path).keks == (seal.Kek("k", b"A" * 32),)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_ring_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    """Any permission for group or others stops the start and names the chmod that mends it."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"chmod 600 {path}"):
        ringfile.load(path)


def test_a_missing_ring_is_asked_for_from_the_backup(tmp_path: Path) -> None:
    """Without its file the sentence says to restore it."""
    with pytest.raises(Misconfigured, match="restore it from your backup"):
        ringfile.load(tmp_path / "keyring.json")


async def test_a_ring_without_a_needed_kek_is_refused_by_the_keks_id(world: World) -> None:
    """Every KEK id of the database is looked for in the ring, and the missing one is named."""
    await world.create()
    kek_id = world.ring.keks[0].id
    stranger = ringfile.Ring((seal.Kek("stranger", os.urandom(32)),))
    with pytest.raises(Misconfigured, match=kek_id):
        await keyring.require_all_keks(world.database, stranger)
    await keyring.require_all_keks(world.database, ringfile.Ring((*stranger.keks, *world.ring.keks)))
    forged = ringfile.Ring((seal.Kek(kek_id, os.urandom(32)),))
    with pytest.raises(KeyDamaged):
        await load_peppers(world.database, forged)


async def test_a_key_pair_is_never_stored_twice_in_an_account(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the same pair handed out twice, the database would refuse the second."""
    pair = keys.generate(KeyType.P256V1)
    monkeypatch.setattr(keys, "generate", lambda _: pair)
    await world.create()
    from support.world import BODY

    answer = await world.http.post(world.a.account_path, json=BODY, headers=world.a.bearer)
    assert answer.status_code == 500
    row = await world.database.fetchrow("SELECT count(*) AS n FROM custom_csrs")
    assert row
    assert row["n"] == 1


async def test_several_peppers_are_valid_at_once(world: World) -> None:
    """After a new pepper is added, tokens of the old one still open the door."""
    pepper_id = uuid4()
    sealed = world.ring.sealed(seal.pepper_context(pepper_id), os.urandom(32))
    sql = "INSERT INTO peppers (id, kek_id, wrapped_key, ciphertext) VALUES ($1, $2, $3, $4)"
    await world.database.execute(sql, pepper_id, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext)
    peppers = await load_peppers(world.database, world.ring)
    assert next(iter(peppers.by_id)) == pepper_id
    # Other processes may not have read it yet.
    assert peppers.newest(world.a.token)[0] != pepper_id
    await world.database.execute("UPDATE peppers SET created_at = now() - interval '10 s' WHERE id = $1", pepper_id)
    await world.database.execute("UPDATE peppers SET created_at = now() - interval '1 h' WHERE id <> $1", pepper_id)
    await peppers.refresh(world.database, world.ring)
    rows = await world.database.fetch("SELECT digest FROM tokens")
    stored = {row["digest"] for row in rows}
    assert set(peppers.digests(world.a.token)) & stored
    assert peppers.newest(world.a.token)[1] not in stored


async def test_the_schema_says_what_each_table_is_for(database_url: str) -> None:
    """Every table has a comment, and every constraint a name of the house's form."""
    database = db.Database(database_url, 1)
    tables = await database.fetch(
        "SELECT relname, obj_description(oid) AS comment FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    assert len(tables) >= 10
    assert all(row["comment"] for row in tables)
    constraints = await database.fetch(
        "SELECT conname, relname, contype FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid "
        "WHERE pg_class.relnamespace = 'public'::regnamespace AND contype <> 'n'"
    )
    assert all(row["conname"].startswith(row["relname"]) for row in constraints)
    await database.close()
