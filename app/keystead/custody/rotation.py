"""Operations on all sealed values: counting by KEK, re-wrapping under a new KEK, retiring a KEK, and verification."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.custody import keyring, peppers, seal
from keystead.custody import ring as ringfile
from keystead.custody.ring import Ring
from keystead.errors import Invalid, KeyDamaged, Misconfigured, quoted
from keystead.store.database import Connection, Database
from keystead.x509 import chains, pkix

_COUNT = """
SELECT (SELECT count(*) FROM private_keys WHERE kek_id = $1) AS private_keys,
       (SELECT count(*) FROM peppers WHERE kek_id = $1) AS peppers
"""


async def counts(db: Database) -> dict[str, tuple[int, int]]:
    """Numbers of private keys and of peppers, by KEK id."""
    return {kek_id: await _count(db, kek_id) for kek_id in await keyring.used_keks(db)}


async def _count(db: Database | Connection, kek_id: str) -> tuple[int, int]:
    row = await db.fetchrow(_COUNT, kek_id)
    return (row["private_keys"], row["peppers"]) if row else (0, 0)


async def add(db: Database, ring: Ring, caller_of: Callable[[str], Caller], path: Path) -> str:
    """Add a KEK to the ring, not yet the current one, and make it known to the database; returns its id."""
    # Before the file is changed, because a role that may not do this is refused here.
    await db.execute(keyring.REGISTER, [kek.id for kek in ring.keks])
    kek_id = ringfile.add(path).id

    async def work(connection: Connection) -> None:
        await connection.execute(keyring.REGISTER, [kek_id])
        row = (audit.NO_ACCOUNT, audit.NO_ACCOUNT, None)
        await audit.record(connection, caller_of(kek_id), audit.Action.CREATE, audit.Resource.RING, row)

    await db.transaction(work)
    return kek_id


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
        private_keys, pepper_count = await _count(connection, kek_id)
        if private_keys or pepper_count:
            needed_by = f"{private_keys} private keys and {pepper_count} peppers"
            raise Misconfigured(f"{needed_by} need the KEK {kek_id}: `keystead keys rotate` first")
        await connection.execute("UPDATE keks SET retired_at = now() WHERE id = $1", kek_id)
        row = (audit.NO_ACCOUNT, audit.NO_ACCOUNT, None)
        await audit.record(connection, caller, audit.Action.DELETE, audit.Resource.RING, row)

    await db.transaction(work)
    try:
        ringfile.remove(path, kek_id)
    except Misconfigured:
        await db.execute("UPDATE keks SET retired_at = NULL WHERE id = $1", kek_id)
        raise


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


async def _batches(db: Database, sql: str, size: int, *values: object) -> AsyncIterator[list[asyncpg.Record]]:
    """The rows of a statement by account and id, whose first parameters are where to go on, and the batch size."""
    last = (UUID(int=0), UUID(int=0))
    while rows := await db.fetch(sql, *last, size, *values):
        yield rows
        last = (rows[-1]["account_id"], rows[-1]["id"])


_UNDER_OTHER_KEKS = """
SELECT account_id, id, key_type, spki_sha256, kek_id, wrapped_key FROM private_keys
WHERE (account_id, id) > ($1, $2) AND kek_id = ANY($4::text[]) ORDER BY account_id, id LIMIT $3
"""
# Rows that were deleted or re-wrapped concurrently are not updated.
_REWRAP = f"""
UPDATE private_keys k SET kek_id = {keyring.usable_kek("$1")}, wrapped_key = v.new
FROM unnest($2::uuid[], $3::uuid[], $4::bytea[], $5::bytea[]) AS v (account_id, id, old, new)
WHERE k.account_id = v.account_id AND k.id = v.id AND k.wrapped_key = v.old
"""
PASSES = 3


async def require_rights(db: Database, kek_id: str) -> None:
    """Have the database refuse a role that may not re-wrap, before the ring is changed."""
    await db.execute(_REWRAP, kek_id, [], [], [], [])


async def rewrap(db: Database, ring: Ring) -> AsyncIterator[Batch]:
    """Re-wrap every data key under the current KEK; each batch is committed separately.

    Other processes may still seal under an earlier KEK, so the rows are scanned up to PASSES times.
    """
    target = ring.keks[0]
    yield await _rewrap_peppers(db, ring, target)
    for _ in range(PASSES):
        others = await keyring.used_keks(db) - {target.id}
        if not others:
            return
        changed = 0
        async for rows in _batches(db, _UNDER_OTHER_KEKS, BATCH, list(others)):
            batch = await _rewrap_rows(db, ring, target, rows)
            changed += batch.changed
            yield batch
        if not changed:
            return


async def _rewrap_rows(db: Database, ring: Ring, target: seal.Kek, rows: list[asyncpg.Record]) -> Batch:
    good, damaged = [], []
    for row in rows:
        new = _rewrapped(ring, row, keyring.context_of(row), target)
        if isinstance(new, Damage):
            damaged.append(new)
        else:
            good.append((row["account_id"], row["id"], row["wrapped_key"], new))
    columns = [list(column) for column in zip(*good, strict=True)] or [[], [], [], []]
    done = await db.execute(_REWRAP, target.id, *columns)
    return Batch(len(rows), int(done.rpartition(" ")[2]), tuple(damaged))


def _rewrapped(ring: Ring, row: asyncpg.Record, context: tuple[bytes, ...], target: seal.Kek) -> bytes | Damage:
    try:
        return ring.rewrapped(row["id"], context, row["kek_id"], row["wrapped_key"], target)
    except KeyDamaged as error:
        return Damage(row.get("account_id", audit.NO_ACCOUNT), row["id"], str(error))


_REWRAP_PEPPER = (
    f"UPDATE peppers SET kek_id = {keyring.usable_kek('$2')}, wrapped_key = $3 WHERE id = $1 AND wrapped_key = $4"
)


async def _rewrap_peppers(db: Database, ring: Ring, target: seal.Kek) -> Batch:
    rows = [row for row in await db.fetch(peppers.SELECT_PEPPERS) if row["kek_id"] != target.id]
    damaged = []
    for row in rows:
        new = _rewrapped(ring, row, seal.pepper_context(row["id"]), target)
        if isinstance(new, Damage):
            damaged.append(new)
        else:
            await db.execute(_REWRAP_PEPPER, row["id"], target.id, new, row["wrapped_key"])
    return Batch(len(rows), len(rows) - len(damaged), tuple(damaged))


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
    started = time.monotonic()
    async for rows in _batches(db, _WITH_SUBJECTS, min(BATCH, rate or BATCH)):
        faults = ((row, _fault(ring, row)) for row in rows)
        yield Batch(len(rows), 0, tuple(Damage(row["account_id"], row["id"], fault) for row, fault in faults if fault))
        if rate:
            await asyncio.sleep(max(0.0, len(rows) / rate - (time.monotonic() - started)))
        started = time.monotonic()
    missing = [
        Damage(row["account_id"], row["id"], f"row {row['id']} is missing, the key of the {row['owner']}")
        for row in await db.fetch(_WITHOUT_KEYS, BATCH)
    ]
    yield Batch(0, 0, tuple(missing))


# Foreign keys prevent this, unless the database was restored without them.
_WITHOUT_KEYS = """
SELECT s.account_id, s.key_id AS id, s.kind || ' ' || s.id AS owner FROM (
    SELECT account_id, key_id, 'custom CSR' AS kind, id FROM custom_csrs
    UNION ALL SELECT account_id, key_id, 'custom certificate', id FROM custom_certificates
    UNION ALL SELECT account_id, key_id, 'CA', id FROM certificate_authorities
) AS s
WHERE NOT EXISTS (SELECT FROM private_keys k WHERE k.account_id = s.account_id AND k.id = s.key_id) LIMIT $1
"""


def _fault(ring: Ring, row: asyncpg.Record) -> str:
    """Why a key is damaged, as a sentence; empty if it decrypts and matches its CSR, CA and certificates."""
    try:
        keyring.open_row(ring, row, row["spki_sha256"])
    except KeyDamaged as error:
        return str(error)
    except (ValueError, TypeError):
        return f"row {row['id']} decrypts to something that is not a key"
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
    rows = await db.fetch(peppers.SELECT_PEPPERS)
    for row in rows:
        try:
            peppers.open_pepper(ring, row)
        except KeyDamaged as error:
            damaged.append(Damage(audit.NO_ACCOUNT, row["id"], str(error)))
    return Batch(len(rows), 0, tuple(damaged))
