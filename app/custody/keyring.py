"""All SQL on sealed values: the tables private_keys and peppers, and the KEKs that they need."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app.audit import record as audit
from app.caller import Actor, Caller
from app.custody import ring as ringfile
from app.custody import seal
from app.custody.ring import Ring
from app.errors import Invalid, KeyDamaged, Misconfigured, NotFound, quoted
from app.store.database import Connection, Database, parameters
from app.x509 import chains, keys, pkix

# The caller for work that the program does by itself.
SYSTEM = Caller(actor=Actor.SYSTEM, id=audit.NO_ACCOUNT, reach={})

# The distinct KEK ids, with one index lookup per id (loose index scan); SELECT DISTINCT would read every key.
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
    """Whether the database contains no sealed values."""
    return not await db.fetch(_KEK_IDS)


async def require_all_keks(db: Database, ring: Ring) -> None:
    """Raise Misconfigured if the ring lacks a KEK that sealed values in the database need."""
    known = {kek.id for kek in ring.keks}
    missing = sorted(row["kek_id"] for row in await db.fetch(_KEK_IDS) if row["kek_id"] not in known)
    if missing:
        raise Misconfigured(
            f"the ring lacks the KEK {missing[0]}, which keys in the database are sealed with: "
            "restore the keyring.json that belongs to this database"
        )


_REGISTERED = "SELECT id, retired_at FROM keks"
_REGISTER = "INSERT INTO keks (id) SELECT unnest($1::text[]) ON CONFLICT (id) DO NOTHING"


async def register(db: Database, ring: Ring) -> None:
    """Add the ring's KEKs to the database; raises Misconfigured if the current one is retired."""
    known = {row["id"]: row["retired_at"] for row in await db.fetch(_REGISTERED)}
    current = ring.keks[0].id
    if known.get(current):
        text = f"the current KEK {current} of the ring was retired: give this machine the ring of the others"
        raise Misconfigured(text)
    if missing := [kek.id for kek in ring.keks if kek.id not in known]:
        try:
            await db.execute(_REGISTER, missing)
        except asyncpg.InsufficientPrivilegeError:
            text = f"the database has not heard of the KEK {missing[0]}"
            raise Misconfigured(f"{text}: run `keystead keys rotate --dry-run` as its owner") from None


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


def _usable(parameter: str) -> str:
    """SQL for a KEK id, or NULL if it is unknown or retired: then the NOT NULL constraint rejects the row."""
    return f"(SELECT id FROM keks WHERE id = {parameter} AND retired_at IS NULL)"


def insert_key(first: int, condition: str = "") -> str:
    """CTE body that inserts a private key from KEY_PARAMETERS parameters, numbered from `first`; see `NewKey.row`."""
    before, after = parameters(first, 5), parameters(first + 6, 2)
    values = f"{before}, {_usable(f'${first + 5}')}, {after}"
    return f"INSERT INTO private_keys ({_KEY_COLUMNS}) SELECT {values} {condition}"


def delete_key(source: str) -> str:
    """CTE body that deletes the private keys in the columns account_id and key_id of `source`."""
    return (
        f"DELETE FROM private_keys USING {source} "
        f"WHERE private_keys.account_id = {source}.account_id AND private_keys.id = {source}.key_id"
    )


def new_key(ring: Ring, account_id: UUID, pair: keys.KeyPair, *, generated: bool = True) -> NewKey:
    """Seal a key pair for this account; `generated` is False for an uploaded one. Raises Unavailable."""
    key_id = uuid4()
    context = seal.private_key_context(key_id, account_id, pair.key_type, pair.spki_sha256)
    sealed = ring.sealed(context, keys.pkcs8(pair.private_key))
    place = (account_id, key_id, pair.key_type, pair.spki_sha256, generated)
    return NewKey(key_id, pair, (*place, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext))


_GET_KEY = f"SELECT {_KEY_COLUMNS} FROM private_keys WHERE account_id = $1 AND id = $2"


async def open_key(
    db: Database, ring: Ring, caller: Caller, account_id: UUID, key_id: UUID, spki_sha256: bytes
) -> keys.PrivateKey:
    """Decrypt a private key. `spki_sha256` is the digest of the public key that it must belong to.

    Raises NotFound, and KeyDamaged if it cannot be decrypted or belongs to another public key, which is also audited.
    """
    row = await db.fetchrow(_GET_KEY, account_id, key_id)
    if row is None:
        raise NotFound(f"no private key {key_id}")
    try:
        return _open_row(ring, row, spki_sha256)
    except KeyDamaged:
        if caller is not SYSTEM or _should_audit(key_id):
            await note_damage(db, caller, account_id, key_id)
        raise


# Unauthenticated requests can trigger these entries (a CRL is public), so each key gets at most one per AUDIT_SECONDS.
_AUDITED_AT: dict[UUID, float] = {}
AUDIT_SECONDS = 60.0


def _should_audit(key_id: UUID) -> bool:
    now = time.monotonic()
    if now - _AUDITED_AT.get(key_id, -AUDIT_SECONDS) < AUDIT_SECONDS:
        return False
    if len(_AUDITED_AT) >= 1000:
        _AUDITED_AT.clear()
    _AUDITED_AT[key_id] = now
    return True


async def note_damage(
    db: Database, caller: Caller, account_id: UUID, row_id: UUID, resource: audit.Resource = audit.Resource.PRIVATE_KEY
) -> None:
    """Audit that a private key or pepper could not be decrypted, or did not belong to its row."""
    await audit.note(db, caller, audit.Action.KEY_DAMAGED, resource, (account_id, row_id, None))


_FIND_KEY = "SELECT id FROM private_keys WHERE account_id = $1 AND spki_sha256 = $2 AND generated"


async def find_key(db: Database, account_id: UUID, spki_sha256: bytes) -> UUID | None:
    """The id of the key generated here for this public key, without decrypting it; None if there is none."""
    row = await db.fetchrow(_FIND_KEY, account_id, spki_sha256)
    return row["id"] if row else None


def _open_row(ring: Ring, row: asyncpg.Record, spki_sha256: bytes) -> keys.PrivateKey:
    sealed = seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"])
    secret = ring.open_(row["id"], _context(row), sealed)
    private_key = keys.load(secret)
    if not hmac.compare_digest(keys.spki_sha256(private_key), spki_sha256):
        raise KeyDamaged(str(row["id"]), f"row {row['id']} holds another key than the one asked for")
    return private_key


def _context(row: asyncpg.Record) -> tuple[bytes, ...]:
    return seal.private_key_context(row["id"], row["account_id"], row["key_type"], row["spki_sha256"])


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


_PEPPERS = f"""
SELECT id, kek_id, wrapped_key, ciphertext, created_at < now() - interval '{SETTLED_SECONDS} seconds' AS is_settled
FROM peppers ORDER BY created_at DESC, id
"""
_INSERT_PEPPER = "INSERT INTO peppers (id, kek_id, wrapped_key, ciphertext)"
# NOT EXISTS: of two concurrent first starts only one inserts a pepper.
_FIRST_PEPPER = f"{_INSERT_PEPPER} SELECT $1, {_usable('$2')}, $3, $4 WHERE NOT EXISTS (SELECT FROM peppers)"
_ADD_PEPPER = f"{_INSERT_PEPPER} VALUES ($1, {_usable('$2')}, $3, $4)"


async def ensure_pepper(db: Database, ring: Ring) -> None:
    """Create the first pepper of a new database."""
    if await db.fetchrow("SELECT id FROM peppers LIMIT 1") is None:
        await db.execute(_FIRST_PEPPER, *_new_pepper(ring))


async def add_pepper(db: Database, ring: Ring, caller: Caller) -> UUID:
    """Create a pepper, which digests new tokens after SETTLED_SECONDS; audited. Returns its id."""
    pepper_id, *sealed = _new_pepper(ring)
    await db.execute(_ADD_PEPPER, pepper_id, *sealed)
    await note(db, caller, audit.Action.CREATE, audit.Resource.PEPPER, pepper_id)
    return pepper_id


def _new_pepper(ring: Ring) -> tuple[UUID, str, bytes, bytes]:
    pepper_id = uuid4()
    sealed = ring.sealed(seal.pepper_context(pepper_id), secrets.token_bytes(32))
    return pepper_id, sealed.kek_id, sealed.wrapped_key, sealed.ciphertext


async def note(
    db: Database, caller: Caller, action: audit.Action, resource: audit.Resource, thing: UUID = audit.NO_ACCOUNT
) -> None:
    """Audit an action on the ring or a pepper, which belong to no account."""
    await audit.note(db, caller, action, resource, (audit.NO_ACCOUNT, thing, None))


async def load_peppers(db: Database, ring: Ring) -> Peppers:
    """Decrypt all peppers; raises KeyDamaged if one fails, which is also audited."""
    rows = await db.fetch(_PEPPERS)
    try:
        by_id = {row["id"]: _open_pepper(ring, row) for row in rows}
    except KeyDamaged as error:
        if _should_audit(UUID(error.key_id)):
            await note_damage(db, SYSTEM, audit.NO_ACCOUNT, UUID(error.key_id), audit.Resource.PEPPER)
        raise
    settled = next((row["id"] for row in rows if row["is_settled"]), rows[-1]["id"] if rows else None)
    return Peppers(by_id, settled)


def _open_pepper(ring: Ring, row: asyncpg.Record) -> bytes:
    sealed = seal.Sealed(row["kek_id"], row["wrapped_key"], row["ciphertext"])
    return ring.open_(row["id"], seal.pepper_context(row["id"]), sealed)


_COUNTS = """
SELECT kek_id, sum(private_keys)::bigint AS private_keys, sum(peppers)::bigint AS peppers FROM (
    SELECT kek_id, count(*) AS private_keys, 0 AS peppers FROM private_keys GROUP BY kek_id
    UNION ALL
    SELECT kek_id, 0, count(*) FROM peppers GROUP BY kek_id
) AS each GROUP BY kek_id
"""


async def counts(db: Database) -> dict[str, tuple[int, int]]:
    """Numbers of private keys and of peppers, by KEK id."""
    return {row["kek_id"]: (row["private_keys"], row["peppers"]) for row in await db.fetch(_COUNTS)}


_NEEDED = """
SELECT (SELECT count(*) FROM private_keys WHERE kek_id = $1) AS private_keys,
       (SELECT count(*) FROM peppers WHERE kek_id = $1) AS peppers
"""


async def retire(db: Database, ring: Ring, caller: Caller, path: Path, kek_id: str) -> None:
    """Retire a KEK and remove it from the ring; raises Misconfigured while anything is sealed under it.

    From then on the database rejects rows sealed under it by any machine.
    """
    if kek_id not in {kek.id for kek in ring.keks}:
        raise Misconfigured(f"there is no KEK {quoted(kek_id)} in the ring; `keystead keys status` shows their ids")
    ringfile.require_earlier(path, kek_id)

    async def work(connection: Connection) -> None:
        # Inserting a key reads this table: the lock waits for running inserts, and later ones see the KEK as retired.
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await connection.execute("LOCK TABLE keks IN ACCESS EXCLUSIVE MODE")
        held = await connection.fetchrow(_NEEDED, kek_id)
        if held is not None and any(held.values()):
            needs = f"{held['private_keys']} private keys and {held['peppers']} peppers need the KEK {kek_id}"
            raise Misconfigured(f"{needs}: `keystead keys rotate` first")
        await connection.execute("UPDATE keks SET retired_at = now() WHERE id = $1", kek_id)
        place = (audit.NO_ACCOUNT, audit.NO_ACCOUNT, None)
        await audit.record(connection, caller, audit.Action.DELETE, audit.Resource.RING, place)

    await db.transaction(work)
    try:
        ringfile.remove(path, kek_id)
    except Misconfigured:
        await db.execute("UPDATE keks SET retired_at = NULL WHERE id = $1", kek_id)
        raise


class PepperUse(msgspec.Struct, frozen=True):
    """A pepper, with the numbers of tokens and of users whose digests use it."""

    id: UUID
    created_at: datetime
    tokens: int
    users: int


_PEPPER_USES = """
SELECT p.id, p.created_at, (SELECT count(*) FROM tokens t WHERE t.pepper_id = p.id) AS tokens,
       (SELECT count(*) FROM users u WHERE u.key_pepper_id = p.id) AS users
FROM peppers p ORDER BY p.created_at DESC, p.id
"""


async def pepper_uses(db: Database) -> tuple[PepperUse, ...]:
    """All peppers, newest first."""
    return tuple(msgspec.convert(dict(row), PepperUse) for row in await db.fetch(_PEPPER_USES))


class Damage(msgspec.Struct, frozen=True):
    """A row that cannot be decrypted or holds the wrong key; `reason` is a sentence without secrets."""

    account_id: UUID
    id: UUID
    reason: str


class Batch(msgspec.Struct, frozen=True):
    """Progress since the last batch: numbers of rows read and changed, and the damaged rows."""

    read: int
    changed: int = 0
    damaged: tuple[Damage, ...] = ()


BATCH = 1000
_FIRST = (UUID(int=0), UUID(int=0))
_UNDER_OTHER_KEKS = """
SELECT account_id, id, key_type, spki_sha256, kek_id, wrapped_key FROM private_keys
WHERE kek_id = ANY($1::text[]) AND (account_id, id) > ($2, $3) ORDER BY account_id, id LIMIT $4
"""
# Rows that were deleted or re-wrapped concurrently are not updated.
_REWRAP = f"""
UPDATE private_keys k SET kek_id = {_usable("$1")}, wrapped_key = v.new
FROM unnest($2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[]) AS v (account_id, id, old, new)
WHERE k.account_id = v.account_id AND k.id = v.id AND k.wrapped_key = v.old
"""
PASSES = 3


async def rewrap(db: Database, ring: Ring) -> AsyncIterator[Batch]:
    """Re-wrap every data key under the current KEK; each batch is committed separately.

    Other processes may still seal under an earlier KEK, so the rows are scanned up to PASSES times.
    """
    target = ring.keks[0]
    yield await _rewrap_peppers(db, ring, target)
    for _ in range(PASSES):
        others = [row["kek_id"] for row in await db.fetch(_KEK_IDS) if row["kek_id"] != target.id]
        if not others:
            return
        place, changed = _FIRST, 0
        while rows := await db.fetch(_UNDER_OTHER_KEKS, others, *place, BATCH):
            place = (rows[-1]["account_id"], rows[-1]["id"])
            batch = await _rewrap_rows(db, ring, target, rows)
            changed += batch.changed
            yield batch
        if not changed:
            return


async def _rewrap_rows(db: Database, ring: Ring, target: seal.Kek, rows: list[asyncpg.Record]) -> Batch:
    good, damaged = [], []
    for row in rows:
        try:
            new = ring.rewrapped(row["id"], _context(row), row["kek_id"], row["wrapped_key"], target)
        except KeyDamaged as error:
            damaged.append(Damage(row["account_id"], row["id"], str(error)))
        else:
            good.append((row["account_id"], row["id"], row["wrapped_key"], new))
    columns = [list(column) for column in zip(*good, strict=True)] or [[], [], [], []]
    done = await db.execute(_REWRAP, target.id, *columns)
    return Batch(len(rows), int(done.rpartition(" ")[2]), tuple(damaged))


_REWRAP_PEPPER = f"UPDATE peppers SET kek_id = {_usable('$2')}, wrapped_key = $3 WHERE id = $1 AND wrapped_key = $4"


async def _rewrap_peppers(db: Database, ring: Ring, target: seal.Kek) -> Batch:
    changed, damaged = 0, []
    for row in await db.fetch(_PEPPERS):
        if row["kek_id"] == target.id:
            continue
        try:
            context = seal.pepper_context(row["id"])
            new = ring.rewrapped(row["id"], context, row["kek_id"], row["wrapped_key"], target)
        except KeyDamaged as error:
            damaged.append(Damage(audit.NO_ACCOUNT, row["id"], str(error)))
            continue
        await db.execute(_REWRAP_PEPPER, row["id"], target.id, new, row["wrapped_key"])
        changed += 1
    return Batch(changed + len(damaged), changed, tuple(damaged))


# Every key with its CSR, its CA, and the certificates that contain its public key.
_WITH_SUBJECTS = """
SELECT k.account_id, k.id, k.key_type, k.spki_sha256, k.kek_id, k.wrapped_key, k.ciphertext,
       c.id AS csr_id, c.csr, a.id AS ca_id, a.spki_sha256 AS ca_spki_sha256,
       (SELECT array_agg(t.chain ORDER BY t.id) FROM custom_certificates t
        WHERE t.account_id = k.account_id AND t.key_id = k.id) AS chains,
       (SELECT array_agg(v.pem ORDER BY v.version) FROM ca_certificates v
        WHERE v.account_id = a.account_id AND v.ca_id = a.id) AS ca_certificates
FROM private_keys k
LEFT JOIN custom_csrs c ON c.account_id = k.account_id AND c.key_id = k.id
LEFT JOIN certificate_authorities a ON a.account_id = k.account_id AND a.key_id = k.id
WHERE (k.account_id, k.id) > ($1, $2) ORDER BY k.account_id, k.id LIMIT $3
"""


async def verify(db: Database, ring: Ring, rate: int | None = None) -> AsyncIterator[Batch]:
    """Decrypt every sealed value, and compare each key with its CSR, CA and certificates; at most `rate` keys/s."""
    yield await _verify_peppers(db, ring)
    place, size = _FIRST, min(BATCH, rate or BATCH)
    while True:
        started = time.monotonic()
        rows = await db.fetch(_WITH_SUBJECTS, *place, size)
        if not rows:
            break
        place = (rows[-1]["account_id"], rows[-1]["id"])
        found = ((row, _fault(ring, row)) for row in rows)
        yield Batch(len(rows), 0, tuple(Damage(row["account_id"], row["id"], fault) for row, fault in found if fault))
        if rate:
            await asyncio.sleep(max(0.0, len(rows) / rate - (time.monotonic() - started)))
    missing = await db.fetch(_WITHOUT_KEYS, BATCH)
    yield Batch(0, 0, tuple(Damage(row["account_id"], row["key_id"], _missing(row)) for row in missing))


# Foreign keys prevent this, unless the database was restored without them.
_WITHOUT_KEYS = """
SELECT s.account_id, s.key_id, s.what, s.id FROM (
    SELECT account_id, key_id, 'custom CSR' AS what, id FROM custom_csrs
    UNION ALL SELECT account_id, key_id, 'custom certificate', id FROM custom_certificates
    UNION ALL SELECT account_id, key_id, 'CA', id FROM certificate_authorities
) AS s
WHERE NOT EXISTS (SELECT FROM private_keys k WHERE k.account_id = s.account_id AND k.id = s.key_id) LIMIT $1
"""


def _missing(row: asyncpg.Record) -> str:
    return f"row {row['key_id']} is missing, the key of the {row['what']} {row['id']}"


def _fault(ring: Ring, row: asyncpg.Record) -> str:
    """Why a key is damaged, as a sentence; empty if it decrypts and matches its CSR, CA and certificates."""
    try:
        _open_row(ring, row, row["spki_sha256"])
    except KeyDamaged as error:
        return str(error)
    except (ValueError, TypeError):
        return f"row {row['id']} opens to something that is no key"
    try:
        subjects = _subjects(row)
    except (Invalid, ValueError):
        return f"row {row['id']} belongs to a CSR or certificate that cannot be read"
    mismatch = next((owner for owner, digest in subjects if digest != row["spki_sha256"]), None)
    if mismatch:
        return f"row {row['id']} is not the key of {mismatch}"
    return "" if subjects else f"row {row['id']} belongs to no CSR, certificate or CA"


def _subjects(row: asyncpg.Record) -> list[tuple[str, bytes]]:
    """The CSR, CA and certificates of a key, each with its SPKI digest; raises Invalid, ValueError."""
    found = []
    if row["csr_id"]:
        found.append((f"the custom CSR {row['csr_id']}", pkix.spki_sha256(row["csr"])))
    if row["ca_id"]:
        found.append((f"the CA {row['ca_id']}", row["ca_spki_sha256"]))
    carried = [*(row["chains"] or ()), *(row["ca_certificates"] or ())]
    found += [("a certificate that names it", chains.spki_digest(chains.stored(pem)[0])) for pem in carried]
    return found


async def _verify_peppers(db: Database, ring: Ring) -> Batch:
    damaged = []
    rows = await db.fetch(_PEPPERS)
    for row in rows:
        try:
            _open_pepper(ring, row)
        except KeyDamaged as error:
            damaged.append(Damage(audit.NO_ACCOUNT, row["id"], str(error)))
    return Batch(len(rows), 0, tuple(damaged))
