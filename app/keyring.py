"""All SQL on what the ring seals: private_keys and peppers."""

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

from app import audit, chains, keys, pkix, ringfile, seal
from app.db import Connection, Database, parameters
from app.errors import Invalid, KeyDamaged, Misconfigured, NotFound, quoted
from app.model import Actor, Caller
from app.ringfile import Ring

# Who opens what nobody asked for in person: the program itself.
SYSTEM = Caller(actor=Actor.SYSTEM, id=audit.NO_ACCOUNT, reach={})

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


_REGISTERED = "SELECT id, retired_at FROM keks"
_REGISTER = "INSERT INTO keks (id) SELECT unnest($1::text[]) ON CONFLICT (id) DO NOTHING"


async def register(db: Database, ring: Ring) -> None:
    """Tell the database of the KEKs of a ring; raises Misconfigured when the current one was retired, or it may not."""
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
    """Whether the database takes what is sealed under the ring's first KEK."""
    return bool(await connection.fetchval(_MAY_SEAL, ring.keks[0].id))


class NewKey(msgspec.Struct, frozen=True):
    """A key pair on its way into the database: the pair itself, and the values of `insert_key`."""

    id: UUID
    pair: keys.KeyPair
    row: tuple[object, ...]

    def __repr__(self) -> str:
        return f"NewKey({self.id})"


_KEY_COLUMNS = "account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext"
KEY_PARAMETERS = 8


def _usable(parameter: str) -> str:
    """A KEK id, or NULL where it was retired: then the row is refused, as nobody could open it."""
    return f"(SELECT id FROM keks WHERE id = {parameter} AND retired_at IS NULL)"


def insert_key(first: int, condition: str = "") -> str:
    """CTE body that inserts one private key from KEY_PARAMETERS parameters, of which the first two are its key."""
    before, after = parameters(first, 5), parameters(first + 6, 2)
    values = f"{before}, {_usable(f'${first + 5}')}, {after}"
    return f"INSERT INTO private_keys ({_KEY_COLUMNS}) SELECT {values} {condition}"


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


async def open_key(
    db: Database, ring: Ring, caller: Caller, account_id: UUID, key_id: UUID, spki_sha256: bytes
) -> keys.PrivateKey:
    """The private key of a row, only if it is the one of the public key that the caller's subject carries.

    Raises NotFound, or KeyDamaged when the row does not open or holds another key; that is audited.
    """
    row = await db.fetchrow(_GET_KEY, account_id, key_id)
    if row is None:
        raise NotFound(f"no private key {key_id}")
    try:
        return _open_row(ring, row, spki_sha256)
    except KeyDamaged:
        if caller is not SYSTEM or _is_news(key_id):
            await note_damage(db, caller, account_id, key_id)
        raise


# What anybody can ask for is noted once in a while, and not once for each asking.
_NOTED: dict[UUID, float] = {}
NEWS_SECONDS = 60.0


def _is_news(key_id: UUID) -> bool:
    now = time.monotonic()
    if now - _NOTED.get(key_id, -NEWS_SECONDS) < NEWS_SECONDS:
        return False
    if len(_NOTED) >= 1000:
        _NOTED.clear()
    _NOTED[key_id] = now
    return True


async def note_damage(
    db: Database, caller: Caller, account_id: UUID, row_id: UUID, resource: audit.Resource = audit.Resource.PRIVATE_KEY
) -> None:
    """Write into the audit log that a key or pepper did not open, or was not the one of its row."""
    await audit.note(db, caller, audit.Action.KEY_DAMAGED, resource, (account_id, row_id, None))


_FIND_KEY = "SELECT id FROM private_keys WHERE account_id = $1 AND spki_sha256 = $2 AND generated"


async def find_key(db: Database, account_id: UUID, spki_sha256: bytes) -> UUID | None:
    """The id of the key that was made here for this public key, without opening it."""
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
    """HMAC keys of tokens and global keys by id, the newest first; read again every PEPPER_SECONDS.

    New digests are made with `current`: the newest that all processes know by now.
    """

    def __init__(self, by_id: dict[UUID, bytes], current: UUID | None = None) -> None:
        self.by_id = by_id
        self._current = current or next(iter(by_id), None)

    def __repr__(self) -> str:
        return f"Peppers({', '.join(map(str, self.by_id))})"

    def digests(self, secret: str) -> list[bytes]:
        """What this secret would be stored as, under each pepper."""
        return [_digest(pepper, secret) for pepper in self.by_id.values()]

    def newest(self, secret: str) -> tuple[UUID, bytes]:
        """The id of the current pepper, and the digest that a new secret is stored as."""
        if self._current is None:
            raise LookupError("there is no pepper")
        return self._current, _digest(self.by_id[self._current], secret)

    async def refresh(self, db: Database, ring: Ring) -> None:
        """Take over what was added or retired meanwhile; raises KeyDamaged and Unavailable, and stays as it was."""
        read = await load_peppers(db, ring)
        self.by_id, self._current = read.by_id, read._current  # noqa: SLF001 - another of the same class


PEPPER_SECONDS = 1.0
# By then every process has read it, and a token that is digested with it is known everywhere.
SETTLED_SECONDS = 5.0


def _digest(pepper: bytes, secret: str) -> bytes:
    return hmac.digest(pepper, secret.encode("utf-8"), "sha256")


_PEPPERS = f"""
SELECT id, kek_id, wrapped_key, ciphertext, created_at < now() - interval '{SETTLED_SECONDS} seconds' AS is_settled
FROM peppers ORDER BY created_at DESC, id
"""
_INSERT_PEPPER = "INSERT INTO peppers (id, kek_id, wrapped_key, ciphertext)"
# At two first starts at once the second one's pepper is not needed, and must not become a second valid one by chance.
_FIRST_PEPPER = f"{_INSERT_PEPPER} SELECT $1, {_usable('$2')}, $3, $4 WHERE NOT EXISTS (SELECT FROM peppers)"
_ADD_PEPPER = f"{_INSERT_PEPPER} VALUES ($1, {_usable('$2')}, $3, $4)"


async def ensure_pepper(db: Database, ring: Ring) -> None:
    """Make the first pepper of a new database."""
    if await db.fetchrow("SELECT id FROM peppers LIMIT 1") is None:
        await db.execute(_FIRST_PEPPER, *_new_pepper(ring))


async def add_pepper(db: Database, ring: Ring, caller: Caller) -> UUID:
    """A new pepper, which digests new tokens once all processes have read it; audited."""
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
    """Write into the audit log what was done with the ring or a pepper, which belong to no account."""
    await audit.note(db, caller, action, resource, (audit.NO_ACCOUNT, thing, None))


async def load_peppers(db: Database, ring: Ring) -> Peppers:
    """Open every pepper; raises KeyDamaged when one does not open, and that is audited."""
    rows = await db.fetch(_PEPPERS)
    try:
        by_id = {row["id"]: _open_pepper(ring, row) for row in rows}
    except KeyDamaged as error:
        if _is_news(UUID(error.key_id)):
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
    """How many private keys and peppers each KEK wraps."""
    return {row["kek_id"]: (row["private_keys"], row["peppers"]) for row in await db.fetch(_COUNTS)}


_NEEDED = """
SELECT (SELECT count(*) FROM private_keys WHERE kek_id = $1) AS private_keys,
       (SELECT count(*) FROM peppers WHERE kek_id = $1) AS peppers
"""


async def retire(db: Database, ring: Ring, caller: Caller, path: Path, kek_id: str) -> None:
    """Take a KEK out of the ring; raises Misconfigured with the count of what still needs it.

    From the moment of the count on the database refuses new rows under it, from any machine.
    """
    if kek_id not in {kek.id for kek in ring.keks}:
        raise Misconfigured(f"there is no KEK {quoted(kek_id)} in the ring; `keystead keys status` shows their ids")
    ringfile.require_earlier(path, kek_id)

    async def work(connection: Connection) -> None:
        # Whoever inserts a key reads this table: those on their way are waited for, and later ones see what we do.
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
    """A pepper, and what still needs it."""

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
    """Every pepper, the newest first."""
    return tuple(msgspec.convert(dict(row), PepperUse) for row in await db.fetch(_PEPPER_USES))


class Damage(msgspec.Struct, frozen=True):
    """A row that does not open, or holds another key than it should; `reason` is a sentence with nothing secret."""

    account_id: UUID
    id: UUID
    reason: str


class Batch(msgspec.Struct, frozen=True):
    """What was done since the last one: rows that were read, those that were changed, and those that are damaged."""

    read: int
    changed: int = 0
    damaged: tuple[Damage, ...] = ()


BATCH = 1000
_FIRST = (UUID(int=0), UUID(int=0))
_OTHERS = """
SELECT account_id, id, key_type, spki_sha256, kek_id, wrapped_key FROM private_keys
WHERE kek_id = ANY($1::text[]) AND (account_id, id) > ($2, $3) ORDER BY account_id, id LIMIT $4
"""
# A row that was deleted or re-wrapped by another meanwhile is left as it is.
_REWRAP = f"""
UPDATE private_keys k SET kek_id = {_usable("$1")}, wrapped_key = v.new
FROM unnest($2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[]) AS v (account_id, id, old, new)
WHERE k.account_id = v.account_id AND k.id = v.id AND k.wrapped_key = v.old
"""
PASSES = 3


async def rewrap(db: Database, ring: Ring) -> AsyncIterator[Batch]:
    """Wrap every data key under the current KEK, a batch at a time; what was done so far stays done.

    Others may seal under an earlier KEK meanwhile, so it goes over the rows again, at most PASSES times.
    """
    target = ring.keks[0]
    yield await _rewrap_peppers(db, ring, target)
    for _ in range(PASSES):
        others = [row["kek_id"] for row in await db.fetch(_KEK_IDS) if row["kek_id"] != target.id]
        if not others:
            return
        place, changed = _FIRST, 0
        while rows := await db.fetch(_OTHERS, others, *place, BATCH):
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


# Every key with all that it belongs to: its CSR or CA, and the certificates that carry its public key.
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
    """Open every sealed value, and compare each key with all that it belongs to; at most `rate` keys a second."""
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


# Foreign keys forbid it, but a restore may have been made without them.
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
    """What is wrong with a key; empty when it opens and is the one of all that it belongs to."""
    try:
        _open_row(ring, row, row["spki_sha256"])
    except KeyDamaged as error:
        return str(error)
    except (ValueError, TypeError):
        return f"row {row['id']} opens to something that is no key"
    try:
        owners = _owners(row)
    except (Invalid, ValueError):
        return f"row {row['id']} belongs to a CSR or certificate that cannot be read"
    strange = next((owner for owner, digest in owners if digest != row["spki_sha256"]), None)
    if strange:
        return f"row {row['id']} is not the key of {strange}"
    return "" if owners else f"row {row['id']} belongs to no CSR, certificate or CA"


def _owners(row: asyncpg.Record) -> list[tuple[str, bytes]]:
    """What a key belongs to, and the digest of the public key there."""
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
