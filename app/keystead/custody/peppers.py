"""Peppers: the HMAC keys of token and global key digests, sealed like private keys."""

import hmac
import secrets
from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.custody import keyring, seal
from keystead.custody.ring import Ring
from keystead.errors import KeyDamaged
from keystead.store.database import Connection, Database


class Peppers:
    """HMAC keys for the digests of tokens and global keys, newest first; reloaded every PEPPER_SECONDS.

    New digests use `current`: the newest pepper that all processes have loaded.
    """

    def __init__(self, by_id: dict[UUID, bytes], current: UUID | None = None) -> None:
        self.by_id = by_id
        self._current = current or next(iter(by_id), None)

    def __repr__(self) -> str:
        return f"Peppers({', '.join(map(str, self.by_id))})"

    def digests(self, secret: str) -> list[bytes]:
        """The HMAC-SHA256 digests of a secret under every pepper, newest first."""
        return [_digest(pepper, secret) for pepper in self.by_id.values()]

    def newest(self, secret: str) -> tuple[UUID, bytes]:
        """The id of the current pepper, and the digest of `secret` under it; raises LookupError without peppers."""
        if self._current is None:
            raise LookupError("there is no pepper")
        return self._current, _digest(self.by_id[self._current], secret)

    async def refresh(self, db: Database, ring: Ring) -> None:
        """Reload the peppers; raises KeyDamaged and Unavailable, and then keeps the old ones."""
        read = await load_peppers(db, ring)
        self.by_id, self._current = read.by_id, read._current  # noqa: SLF001 - same class


PEPPER_SECONDS = 1.0
# Age at which every process has loaded a pepper, so that tokens digested with it work everywhere.
SETTLED_SECONDS = 5.0


def _digest(pepper: bytes, secret: str) -> bytes:
    return hmac.digest(pepper, secret.encode("utf-8"), "sha256")


SELECT_PEPPERS = f"""
SELECT id, kek_id, wrapped_key, ciphertext, created_at < now() - interval '{SETTLED_SECONDS} seconds' AS is_settled
FROM peppers ORDER BY created_at DESC, id
"""
_INSERT_PEPPER = "INSERT INTO peppers (id, kek_id, wrapped_key, ciphertext)"
_ADD_PEPPER = f"{_INSERT_PEPPER} SELECT $1, {keyring.usable_kek('$2')}, $3, $4"
# NOT EXISTS: of two concurrent first starts only one inserts a pepper.
_FIRST_PEPPER = f"{_ADD_PEPPER} WHERE NOT EXISTS (SELECT FROM peppers)"


async def ensure_pepper(db: Database, ring: Ring) -> None:
    """Create the first pepper of a new database."""
    if await db.fetchrow("SELECT id FROM peppers LIMIT 1") is None:
        await db.execute(_FIRST_PEPPER, *_new_pepper(ring))


async def add_pepper(db: Database, ring: Ring, caller: Caller) -> UUID:
    """Create a pepper, which digests new tokens after SETTLED_SECONDS; audited. Returns its id."""
    pepper_id, *sealed = _new_pepper(ring)
    await db.execute(_ADD_PEPPER, pepper_id, *sealed)
    await keyring.note(db, caller, audit.Action.CREATE, audit.Resource.PEPPER, pepper_id)
    return pepper_id


def _new_pepper(ring: Ring) -> tuple[UUID, str, bytes, bytes]:
    pepper_id = uuid4()
    sealed = ring.sealed(seal.pepper_context(pepper_id), secrets.token_bytes(32))
    return pepper_id, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext


async def load_peppers(db: Database, ring: Ring) -> Peppers:
    """Decrypt all peppers; raises KeyDamaged if one fails, which is also audited."""
    rows = await db.fetch(SELECT_PEPPERS)
    try:
        by_id = {row["id"]: open_pepper(ring, row) for row in rows}
    except KeyDamaged as error:
        await keyring.note_damage(db, keyring.SYSTEM, audit.NO_ACCOUNT, UUID(error.key_id), audit.Resource.PEPPER)
        raise
    settled = next((row["id"] for row in rows if row["is_settled"]), rows[-1]["id"] if rows else None)
    return Peppers(by_id, settled)


def open_pepper(ring: Ring, row: asyncpg.Record) -> bytes:
    sealed = seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"])
    return ring.open_(row["id"], seal.pepper_context(row["id"]), sealed)


class PepperUse(msgspec.Struct, frozen=True):
    """A pepper, with the numbers of tokens and of users whose digests use it."""

    id: UUID
    created_at: datetime
    tokens: int
    users: int


_PEPPER_USES = """
SELECT p.id, p.created_at, (SELECT count(*) FROM tokens t WHERE t.pepper_id = p.id)
       + (SELECT count(*) FROM delivery_tokens d WHERE d.pepper_id = p.id) AS tokens,
       (SELECT count(*) FROM users u WHERE u.key_pepper_id = p.id) AS users
FROM peppers p ORDER BY p.created_at DESC, p.id
"""


async def pepper_uses(db: Database | Connection) -> tuple[PepperUse, ...]:
    """All peppers, newest first."""
    return tuple(msgspec.convert(dict(row), PepperUse) for row in await db.fetch(_PEPPER_USES))
