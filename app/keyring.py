"""The ring of key-encryption keys, and all SQL on what it seals: private_keys and peppers.

The first KEK of the ring seals, all of them open. The ring is a file of its own, so that neither the database nor a
backup of it opens anything by itself.
"""

import base64
import binascii
import hmac
import json
import os
import secrets
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app import files, keys, seal
from app.db import Database, parameters
from app.errors import KeyDamaged, Misconfigured, NotFound

# A start that writes a ring is through in a moment; an older draft is nobody's.
DRAFT_SECONDS = 60


class Ring(msgspec.Struct, frozen=True):
    keks: tuple[seal.Kek, ...]

    def __repr__(self) -> str:
        return f"Ring({', '.join(kek.id for kek in self.keks)})"

    def sealed(self, context: tuple[bytes, ...], secret: bytes) -> seal.Sealed:
        return seal.seal(self.keks[0], context, secret)

    def open_(self, row_id: UUID, context: tuple[bytes, ...], sealed: seal.Sealed) -> bytes:
        """The secret of the row `row_id`; raises KeyDamaged when it does not open."""
        kek = next((kek for kek in self.keks if kek.id == sealed.kek_id), None)
        if kek is None:
            raise KeyDamaged(str(row_id), f"row {row_id} needs the KEK {sealed.kek_id!r}, which is not in the ring")
        try:
            return seal.open_(kek, context, sealed)
        except seal.Broken as error:
            raise KeyDamaged(str(row_id), f"row {row_id} does not open: {error}") from None


def create(path: Path) -> Ring:
    """A new ring in a new file of mode 0600; raises FileExistsError when there is one."""
    kek = seal.Kek(secrets.token_hex(8), secrets.token_bytes(seal.KEY_BYTES))
    body = {
        "version": 1,
        "keks": [
            {
                "id": kek.id,
                "secret": base64.b64encode(kek.secret).decode("ascii"),
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        ],
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written whole under another name first: a crash in between must not leave half a ring that looks like one.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(body, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        # Rows that are sealed with this ring may be on disk before its name is.
        files.sync(path.parent)
    return Ring((kek,))


def sweep(path: Path) -> None:
    """Remove what killed starts left behind: a draft is either no ring at all or a second copy of this one."""
    for draft in path.parent.glob(f".{path.name}.*"):
        if time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
            draft.unlink(missing_ok=True)


def load(path: Path) -> Ring:
    """Read the ring; raises Misconfigured with what to do about a file that is missing, open to others or broken."""
    try:
        mode = path.stat().st_mode
        body = path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"the ring {path} cannot be read ({error.strerror}); restore it from your backup") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not _read_only(path):
        raise Misconfigured(f"others can read the ring {path}: run `chmod 600 {path}`")
    try:
        return Ring(tuple(_kek(entry) for entry in msgspec.json.decode(body, type=_RingFile).keks))
    except (msgspec.DecodeError, ValueError, UnicodeDecodeError, RecursionError):
        # The cause would quote the file, so it stays out of the chain.
        raise Misconfigured(f"the ring {path} is damaged; restore it from your backup") from None


class _RingEntry(msgspec.Struct, frozen=True):
    id: str
    secret: str
    created_at: datetime

    def __repr__(self) -> str:
        return f"_RingEntry({self.id})"


class _RingFile(msgspec.Struct, frozen=True):
    version: int
    keks: tuple[_RingEntry, ...]

    def __post_init__(self) -> None:
        if self.version != 1 or not self.keks or len({kek.id for kek in self.keks}) != len(self.keks):
            raise ValueError("not a ring of version 1 with distinct KEKs")


def _kek(entry: _RingEntry) -> seal.Kek:
    try:
        secret = base64.b64decode(entry.secret, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(secret) != seal.KEY_BYTES:
        raise ValueError("a KEK is 32 bytes")
    return seal.Kek(entry.id, secret)


def _read_only(path: Path) -> bool:
    # A secrets mount has the modes it has, and nobody can change them there.
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


# One row for each distinct KEK id, found by hopping along the index instead of reading every key.
_KEK_IDS = """
WITH RECURSIVE hop AS (
    (SELECT kek_id FROM private_keys ORDER BY kek_id LIMIT 1)
    UNION ALL
    SELECT (SELECT k.kek_id FROM private_keys k WHERE k.kek_id > hop.kek_id ORDER BY k.kek_id LIMIT 1)
    FROM hop WHERE hop.kek_id IS NOT NULL
)
SELECT kek_id FROM hop WHERE kek_id IS NOT NULL
UNION
SELECT kek_id FROM peppers
"""


async def is_unused(db: Database) -> bool:
    """Whether nothing in the database is sealed yet."""
    return not await db.fetch(_KEK_IDS)


async def require_all_keks(db: Database, ring: Ring) -> None:
    """Raises Misconfigured that names the first KEK which the database needs and the ring lacks."""
    known = {kek.id for kek in ring.keks}
    missing = sorted(row["kek_id"] for row in await db.fetch(_KEK_IDS) if row["kek_id"] not in known)
    if missing:
        raise Misconfigured(
            f"the ring lacks the KEK {missing[0]}, which keys in the database are sealed with: "
            "restore the keyring.json that belongs to this database"
        )


class NewKey(msgspec.Struct, frozen=True):
    """A key pair on its way into the database: the pair itself, and the values of `INSERT_KEY`."""

    id: UUID
    pair: keys.KeyPair
    row: tuple[object, ...]

    def __repr__(self) -> str:
        return f"NewKey({self.id})"


_KEY_COLUMNS = "account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext"
KEY_PARAMETERS = 8


def insert_key(first: int, condition: str = "") -> str:
    """CTE body that inserts one private key from KEY_PARAMETERS parameters, of which the first two are its key."""
    return f"INSERT INTO private_keys ({_KEY_COLUMNS}) SELECT {parameters(first, KEY_PARAMETERS)} {condition}"


def delete_key(source: str) -> str:
    """CTE body that destroys the private keys which `source` names in its columns account_id and key_id."""
    return (
        f"DELETE FROM private_keys USING {source} "
        f"WHERE private_keys.account_id = {source}.account_id AND private_keys.id = {source}.key_id"
    )


def new_key(ring: Ring, account_id: UUID, pair: keys.KeyPair, *, generated: bool = True) -> NewKey:
    """Seal a pair, made here or uploaded, for its row in this account."""
    key_id = uuid4()
    context = seal.private_key_context(key_id, account_id, pair.key_type, pair.spki_sha256)
    sealed = ring.sealed(context, keys.pkcs8(pair.private_key))
    place = (account_id, key_id, pair.key_type, pair.spki_sha256, generated)
    return NewKey(key_id, pair, (*place, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext))


_GET_KEY = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE account_id = $1 AND id = $2"


async def open_key(db: Database, ring: Ring, account_id: UUID, key_id: UUID, spki_sha256: bytes) -> keys.PrivateKey:
    """The private key of a row, only if it is the one of the public key that the caller's subject carries.

    Raises NotFound, or KeyDamaged when the row does not open or holds another key.
    """
    row = await db.fetchrow(_GET_KEY, account_id, key_id)
    if row is None:
        raise NotFound(f"no private key {key_id}")
    return _open_row(ring, row, spki_sha256)


_FIND_KEY = "SELECT id FROM private_keys WHERE account_id = $1 AND spki_sha256 = $2 AND generated"


async def find_key(db: Database, account_id: UUID, spki_sha256: bytes) -> UUID | None:
    """The id of the key that was made here for this public key, without opening it."""
    row = await db.fetchrow(_FIND_KEY, account_id, spki_sha256)
    return row["id"] if row else None


def _open_row(ring: Ring, row: asyncpg.Record, spki_sha256: bytes) -> keys.PrivateKey:
    context = seal.private_key_context(row["id"], row["account_id"], row["key_type"], row["spki_sha256"])
    secret = ring.open_(row["id"], context, seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"]))
    private_key = keys.load(secret)
    if not hmac.compare_digest(keys.spki_sha256(private_key), spki_sha256):
        raise KeyDamaged(str(row["id"]), f"row {row['id']} holds another key than the one asked for")
    return private_key


class Peppers(msgspec.Struct, frozen=True):
    """HMAC keys of tokens and global keys by id, the newest first."""

    by_id: dict[UUID, bytes]

    def __repr__(self) -> str:
        return f"Peppers({', '.join(map(str, self.by_id))})"

    def digests(self, secret: str) -> list[bytes]:
        """What this secret would be stored as, under each pepper."""
        return [_digest(pepper, secret) for pepper in self.by_id.values()]

    def newest(self, secret: str) -> tuple[UUID, bytes]:
        """The pepper's id and the digest that a new secret is stored as."""
        pepper_id, pepper = next(iter(self.by_id.items()))
        return pepper_id, _digest(pepper, secret)


def _digest(pepper: bytes, secret: str) -> bytes:
    return hmac.digest(pepper, secret.encode("utf-8"), "sha256")


_PEPPERS = "SELECT id, kek_id, wrapped_key, ciphertext FROM peppers ORDER BY created_at DESC, id"
# At two first starts at once the second one's pepper is not needed, and must not become a second valid one by chance.
_FIRST_PEPPER = """
INSERT INTO peppers (id, kek_id, wrapped_key, ciphertext)
SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM peppers)
"""


async def ensure_pepper(db: Database, ring: Ring) -> None:
    """Make the first pepper of a new database."""
    pepper_id = uuid4()
    sealed = ring.sealed(seal.pepper_context(pepper_id), secrets.token_bytes(32))
    await db.execute(_FIRST_PEPPER, pepper_id, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext)


async def load_peppers(db: Database, ring: Ring) -> Peppers:
    """Open every pepper; raises KeyDamaged when one does not open."""
    rows = await db.fetch(_PEPPERS)
    return Peppers({row["id"]: _open_pepper(ring, row) for row in rows})


def _open_pepper(ring: Ring, row: asyncpg.Record) -> bytes:
    sealed = seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"])
    return ring.open_(row["id"], seal.pepper_context(row["id"]), sealed)
