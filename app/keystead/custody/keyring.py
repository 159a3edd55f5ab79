"""Sealed private keys: all SQL that inserts, opens or deletes them, and the KEKs that the database knows."""

import hmac
import time
from collections.abc import Collection
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Actor, Caller
from keystead.custody import seal
from keystead.custody.ring import Ring
from keystead.errors import KeyDamaged, Misconfigured, NotFound
from keystead.remembered import Remembered
from keystead.store.database import Connection, Database, parameters
from keystead.x509 import keys

# The caller for work that the program does by itself.
SYSTEM = Caller(actor=Actor.SYSTEM, id=audit.NO_ACCOUNT, reach={})

# One index lookup per id; SELECT DISTINCT would read every key (docs/decisions/0015-retired-keks-are-refused.md).
_NEXT_KEK = "SELECT min(kek_id) AS kek_id FROM private_keys WHERE kek_id > $1"


async def used_keks(db: Database) -> set[str]:
    """The ids of the KEKs that anything in the database is sealed under."""
    used = {row["kek_id"] for row in await db.fetch("SELECT DISTINCT kek_id FROM peppers")}
    row = await db.fetchrow(_NEXT_KEK, "")
    while row and row["kek_id"]:
        used.add(row["kek_id"])
        row = await db.fetchrow(_NEXT_KEK, row["kek_id"])
    return used


async def require_all_keks(db: Database, ring: Ring) -> None:
    """Raise Misconfigured if the ring lacks a KEK that sealed values in the database need."""
    missing = await used_keks(db) - {kek.id for kek in ring.keks}
    if missing:
        raise Misconfigured(
            f"the ring lacks the KEK {min(missing)}, which keys in the database are sealed with: "
            "restore the keyring.json that belongs to this database"
        )


REGISTER = "INSERT INTO keks (id) SELECT unnest($1::text[]) ON CONFLICT (id) DO NOTHING"


async def register(db: Database, ring: Ring) -> None:
    """Add the ring's KEKs to the database; raises Misconfigured if the current one is retired."""
    known = {row["id"]: row["retired_at"] for row in await db.fetch("SELECT id, retired_at FROM keks")}
    current = ring.keks[0].id
    if known.get(current):
        raise Misconfigured(
            f"the current KEK {current} of the ring was retired: give this machine the ring of the others"
        )
    if missing := [kek.id for kek in ring.keks if kek.id not in known]:
        try:
            await db.execute(REGISTER, missing)
        except asyncpg.InsufficientPrivilegeError:
            raise Misconfigured(
                f"the database does not know the KEK {missing[0]}: run `keystead keys rotate --dry-run` as its owner"
            ) from None


_MAY_SEAL = "SELECT retired_at IS NULL AS good FROM keks WHERE id = $1"


async def may_seal(connection: Connection, ring: Ring) -> bool:
    """Whether the database accepts values sealed under the ring's current KEK."""
    return bool(await connection.fetchval(_MAY_SEAL, ring.keks[0].id))


class NewKey(msgspec.Struct, frozen=True):
    """A sealed key pair to insert; `row` has the parameters of `insert_key`."""

    id: UUID
    pair: keys.KeyPair
    row: tuple[object, ...]

    def __repr__(self) -> str:
        return f"NewKey({self.id})"


_KEY_COLUMNS = "account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext"
KEY_PARAMETERS = 8


def usable_kek(parameter: str) -> str:
    """SQL for a KEK id, or NULL if it is unknown or retired: then the NOT NULL constraint rejects the row."""
    return f"(SELECT id FROM keks WHERE id = {parameter} AND retired_at IS NULL)"


def insert_key(first: int, condition: str = "") -> str:
    """CTE body that inserts a private key from KEY_PARAMETERS parameters, numbered from `first`; see `NewKey.row`."""
    before, after = parameters(first, 5), parameters(first + 6, 2)
    values = f"{before}, {usable_kek(f'${first + 5}')}, {after}"
    return f"INSERT INTO private_keys ({_KEY_COLUMNS}) SELECT {values} {condition}"


# The columns that `insert_keys` reads, with their types; the rest of `NewKey.row` after its account.
COLUMNS = {
    "key_id": "uuid",
    "key_type": "text",
    "spki_sha256": "bytea",
    "generated": "boolean",
    "kek_id": "text",
    "wrapped_key": "bytea",
    "ciphertext": "bytea",
}


def insert_keys(source: str) -> str:
    """CTE body that inserts a private key for each row of `source`, which has account_id and COLUMNS."""
    values = [usable_kek(f"{source}.{name}") if name == "kek_id" else name for name in COLUMNS]
    return f"INSERT INTO private_keys ({_KEY_COLUMNS}) SELECT account_id, {', '.join(values)} FROM {source}"


def delete_key(source: str) -> str:
    """CTE body that deletes the private keys of account $1 in the column key_id of `source`."""
    return f"DELETE FROM private_keys WHERE account_id = $1 AND id IN (SELECT key_id FROM {source})"


def new_key(ring: Ring, account_id: UUID, pair: keys.KeyPair, *, generated: bool = True) -> NewKey:
    """Seal a key pair for this account; `generated` is False for an uploaded one. Raises Unavailable."""
    key_id = uuid4()
    context = seal.private_key_context(key_id, account_id, pair.key_type, pair.spki_sha256)
    sealed = ring.sealed(context, keys.pkcs8(pair.private_key))
    described = (account_id, key_id, pair.key_type, pair.spki_sha256, generated)
    return NewKey(key_id, pair, (*described, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext))


_GET_KEY = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE account_id = $1 AND id = $2"


async def open_key(db: Database, ring: Ring, caller: Caller, key: tuple[UUID, UUID, bytes]) -> keys.PrivateKey:
    """Decrypt a private key, given by account id, key id, and the digest of the public key that it must belong to.

    Raises NotFound, and KeyDamaged if it cannot be decrypted or belongs to another public key, which is also audited.
    """
    account_id, key_id, spki_sha256 = key
    row = await db.fetchrow(_GET_KEY, account_id, key_id)
    if row is None:
        raise NotFound(f"no private key {key_id}")
    try:
        return open_row(ring, row, spki_sha256)
    except KeyDamaged:
        await note_damage(db, caller, account_id, key_id)
        raise


class Held(msgspec.Struct, frozen=True):
    """A sealed private key in memory, which `open_held` opens without the database. The repr is empty."""

    row: asyncpg.Record

    def __repr__(self) -> str:
        return "Held()"


_HELD = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE account_id = $1 AND id = ANY($2::uuid[])"


async def held(db: Database, account_id: UUID, key_ids: Collection[UUID]) -> dict[UUID, Held]:
    """These keys of an account by their ids, sealed; without those that are not there."""
    return {row["id"]: Held(row) for row in await db.fetch(_HELD, account_id, list(key_ids))}


def open_held(ring: Ring, held: Held, spki_sha256: bytes) -> keys.PrivateKey:
    """Raises KeyDamaged, also where the key was re-wrapped since and the ring has lost its earlier KEK."""
    return open_row(ring, held.row, spki_sha256)


# Keys of CAs that this worker opened just now (docs/decisions/0040-opened-for-a-second.md).
_opened: Remembered[tuple[Database, tuple[UUID, UUID, bytes]], keys.PrivateKey] = Remembered()


async def open_for(
    seconds: float, db: Database, ring: Ring, caller: Caller, key: tuple[UUID, UUID, bytes]
) -> keys.PrivateKey:
    """As `open_key`, for one that is used again soon: it stays open for `seconds`."""
    return await _opened.get((db, key), seconds, lambda: open_key(db, ring, caller, key))


# Unauthenticated requests can cause entries of SYSTEM (a CRL is public): at most one per row and AUDIT_SECONDS.
_AUDITED_AT: dict[UUID, float] = {}
AUDIT_SECONDS = 60.0


async def note_damage(
    db: Database, caller: Caller, account_id: UUID, row_id: UUID, resource: audit.Resource = audit.Resource.PRIVATE_KEY
) -> None:
    """Audit that a private key or pepper could not be decrypted, or did not belong to its row."""
    if caller is SYSTEM:
        now = time.monotonic()
        if now - _AUDITED_AT.get(row_id, -AUDIT_SECONDS) < AUDIT_SECONDS:
            return
        if len(_AUDITED_AT) >= 1000:
            _AUDITED_AT.clear()
        _AUDITED_AT[row_id] = now
    await audit.record(db, caller, audit.Action.KEY_DAMAGED, resource, (account_id, row_id, None))


_FIND_KEY = "SELECT id FROM private_keys WHERE account_id = $1 AND spki_sha256 = $2 AND generated"


async def find_key(db: Database, account_id: UUID, spki_sha256: bytes) -> UUID | None:
    """The id of the key generated here for this public key, without decrypting it; None if there is none."""
    row = await db.fetchrow(_FIND_KEY, account_id, spki_sha256)
    return row["id"] if row else None


def open_row(ring: Ring, row: asyncpg.Record, spki_sha256: bytes) -> keys.PrivateKey:
    sealed = seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"])
    secret = ring.open_(row["id"], context_of(row), sealed)
    private_key = keys.load(secret)
    if not hmac.compare_digest(keys.spki_sha256(private_key), spki_sha256):
        raise KeyDamaged(str(row["id"]), f"row {row['id']} holds another key than the one asked for")
    return private_key


def context_of(row: asyncpg.Record) -> tuple[bytes, ...]:
    return seal.private_key_context(row["id"], row["account_id"], row["key_type"], row["spki_sha256"])


async def note(
    db: Database, caller: Caller, action: audit.Action, resource: audit.Resource, thing: UUID = audit.NO_ACCOUNT
) -> None:
    """Audit an action on the ring or a pepper, which belong to no account."""
    await audit.record(db, caller, action, resource, (audit.NO_ACCOUNT, thing, None))
