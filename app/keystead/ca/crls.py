"""Revocation of certificates, and the CRLs that publish it (RFC 5280 section 5, contract-infisical)."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import msgspec
import structlog

from keystead.audit import record as audit
from keystead.ca import authorities, issuing
from keystead.ca.model import Authority, Issued, Profile
from keystead.caller import Caller, Scope
from keystead.custody import keyring
from keystead.errors import CertificateDamaged, KeyDamaged, KeysteadError, NotFound, Refusal, Unavailable
from keystead.services import Services
from keystead.store import expiry
from keystead.store.database import Connection, Database
from keystead.x509 import crl as crl_bytes
from keystead.x509.keys import PrivateKey

LIFETIME = timedelta(days=7)
_log = structlog.get_logger("keystead.crls")
# Revocations in one transaction.
MAX_AT_ONCE = 100


class Reason(IntEnum):
    """CRLReason of RFC 5280 section 5.3.1; the names are Infisical's."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    PRIVILEGE_WITHDRAWN = 9
    A_A_COMPROMISE = 10


class _Revocation(msgspec.Struct, eq=False):
    """A revocation that waits for its CRL."""

    caller: Caller
    serial: str
    reason: Reason
    result: Issued | KeysteadError | None = None


class _Queue(msgspec.Struct, eq=False, weakref=True):
    """The pending revocations of one CA in this worker: the holder of `lock` signs one CRL for all of them."""

    lock: asyncio.Lock
    pending: list[_Revocation]


# An entry is removed with its last waiter.
_queues: WeakValueDictionary[tuple[Database, UUID], _Queue] = WeakValueDictionary()


def _queue(db: Database, authority: Authority) -> _Queue:
    return _queues.setdefault((db, authority.id), _Queue(asyncio.Lock(), []))


async def revoke(services: Services, caller: Caller, scope: Scope, certificate: Issued, reason: Reason) -> Issued:
    """Revoke a certificate that a CA of this account signed; it is on the CA's CRL when this returns.

    Revocation and CRL are one transaction. Raises NotFound, Unavailable, KeyDamaged, and Refusal if it is already
    revoked or is a root's own certificate.
    """
    db = services.db
    if certificate.profile is Profile.ROOT:
        raise Refusal("The certificate of a root cannot be revoked: nobody would believe it")
    authority = await authorities.get(db, scope, certificate.ca_id)
    queue, revocation = _queue(db, authority), _Revocation(caller, certificate.serial, reason)
    queue.pending.append(revocation)
    try:
        async with queue.lock:
            if revocation.result is None:
                await _revoke_pending(services, authority, queue)
    finally:
        if revocation in queue.pending:
            queue.pending.remove(revocation)
    if not isinstance(revocation.result, Issued):
        raise revocation.result or TypeError("a revocation without a result")
    return revocation.result


async def _revoke_pending(services: Services, authority: Authority, queue: _Queue) -> None:
    """Carry out up to MAX_AT_ONCE of the pending revocations, and set the result of each."""
    batch = queue.pending[:MAX_AT_ONCE]
    del queue.pending[:MAX_AT_ONCE]
    try:
        results = await _revoke_all(services, authority, batch)
    except KeysteadError as error:
        results = [error] * len(batch)
    except BaseException:
        # Only this request was cancelled or failed: put the others back.
        queue.pending[:0] = batch
        raise
    for revocation, result in zip(batch, results, strict=True):
        revocation.result = result


_REVOKE = f"""
WITH revoked AS (
    UPDATE issued_certificates SET revoked_at = $4, revocation_reason = $5, modified_at = now()
    WHERE account_id = $1 AND ca_id = $2 AND serial = $3 AND revoked_at IS NULL
    RETURNING {issuing.ISSUED}, NULL::uuid AS zone_id
),
audit AS ({audit.insert(6, "revoked")})
SELECT {issuing.ISSUED} FROM revoked
"""


async def _revoke_all(
    services: Services, authority: Authority, batch: Sequence[_Revocation]
) -> list[Issued | KeysteadError]:
    db = services.db
    private_key = await issuing.ca_key(services, batch[0].caller, authority)
    state = await _state(db, _STATE, authority)
    rebuilt = await _rebuilt(db, authority, state) if _is_due(state) else None

    async def work(connection: Connection) -> list[Issued | KeysteadError]:
        # Lock the CRL first: this serialises revocations, so CRL numbers increase.
        state = await _state(connection, _LOCK, authority)
        entries = await _entries(connection, authority, state, rebuilt)
        now = issuing.now()
        results = [await _revoke(connection, authority, revocation, now) for revocation in batch]
        revoked = [result for result in results if isinstance(result, Issued)]
        if revoked:
            entries += b"".join(_entry(each.serial, now, each.revocation_reason) for each in revoked)
            await _sign(connection, authority, private_key, state["number"] + 1, entries)
        return results

    return await db.transaction(work)


async def _revoke(
    connection: Connection, authority: Authority, revocation: _Revocation, now: datetime
) -> Issued | KeysteadError:
    audited = audit.values(revocation.caller, audit.Action.REVOKE, audit.Resource.ISSUED_CERTIFICATE)
    ids = (authority.account_id, authority.id, revocation.serial)
    row = await connection.fetchrow(_REVOKE, *ids, now, revocation.reason.value, *audited)
    return issuing.issued(row) if row else Refusal("Certificate is already revoked")


_OF_CA = "FROM crls WHERE account_id = $1 AND ca_id = $2"
_STATE = f"SELECT number, der IS NULL AS unsigned, this_update {_OF_CA}"
_GET = f"SELECT number, der, this_update, next_update {_OF_CA}"
_LOCK = f"{_GET} FOR UPDATE"
_LOCK_UNLESS_BUSY = f"{_LOCK} SKIP LOCKED"


async def _state(db: Database | Connection, sql: str, authority: Authority) -> asyncpg.Record:
    row = await db.fetchrow(sql, authority.account_id, authority.id)
    if row is None:
        raise issuing.no_ca(authority.id)
    return row


async def current(services: Services, authority: Authority) -> bytes:
    """The CRL in DER. After half its lifetime the first request renews it, while others get the old one.

    Raises Refusal for a CA without a certificate, CertificateDamaged, and Unavailable.
    """
    issuing.latest(authority)
    db = services.db
    state = await _state(db, _GET, authority)
    if _is_fresh(state):
        return bytes(state["der"])
    queue, is_valid = _queue(db, authority), state["der"] is not None and issuing.now() < state["next_update"]
    if is_valid and queue.lock.locked():
        return bytes(state["der"])
    try:
        async with queue.lock:
            return await _refreshed(services, authority)
    except (Unavailable, KeyDamaged, CertificateDamaged) as error:
        if not is_valid:
            raise
        _log.error("a CRL cannot be renewed, and is served until it ends", ca=str(authority.id), reason=str(error))
        return bytes(state["der"])


def _is_fresh(state: asyncpg.Record) -> bool:
    return state["der"] is not None and issuing.now() < state["this_update"] + LIFETIME / 2


def _is_due(state: asyncpg.Record) -> bool:
    """Whether to rebuild the entries from the database, which drops expired certificates: once a day (UTC)."""
    return bool(state["unsigned"] or state["this_update"].date() != issuing.now().date())


async def _refreshed(services: Services, authority: Authority) -> bytes:
    db = services.db
    old = await _state(db, _GET, authority)
    if _is_fresh(old):
        return bytes(old["der"])
    private_key = await issuing.ca_key(services, keyring.SYSTEM, authority)
    rebuilt = await _rebuilt(db, authority, old)

    async def work(connection: Connection) -> bytes:
        if old["der"]:
            # Whoever has locked the CRL is renewing it.
            state = await connection.fetchrow(_LOCK_UNLESS_BUSY, authority.account_id, authority.id)
            if state is None:
                return bytes(old["der"])
        else:
            state = await _state(connection, _LOCK, authority)
        if _is_fresh(state):
            return bytes(state["der"])
        entries = await _entries(connection, authority, state, rebuilt)
        await authorities.note(connection, keyring.SYSTEM, authority, audit.Action.SIGN)
        return await _sign(connection, authority, private_key, state["number"] + 1, entries)

    return await db.transaction(work)


async def _rebuilt(db: Database, authority: Authority, state: asyncpg.Record) -> tuple[int, bytes]:
    """The CRL number and all entries, read before the CRL is locked; a revocation in between raises the number."""
    async with db.connection() as connection, connection.transaction(readonly=True):
        return state["number"], await _read(connection, authority, state)


async def _entries(
    connection: Connection, authority: Authority, state: asyncpg.Record, rebuilt: tuple[int, bytes] | None
) -> bytes:
    """The entries to extend in the locked CRL: the rebuilt ones if still current, else those of the last CRL."""
    if rebuilt and rebuilt[0] == state["number"]:
        return rebuilt[1]
    try:
        return crl_bytes.entries_of(state["der"] or b"")
    except ValueError:
        # There is no CRL yet, or it is damaged.
        return await _read(connection, authority, state)


# An entry must appear on one CRL issued after its certificate has expired (RFC 5280 section 3.3).
_REVOKED = """
SELECT serial, revoked_at, revocation_reason FROM issued_certificates
WHERE account_id = $1 AND ca_id = $2 AND revoked_at IS NOT NULL AND not_after >= $3 ORDER BY revoked_at, serial
"""
# Rows a batch, so that other requests run in between.
_ROWS = 1000


async def _read(connection: Connection, authority: Authority, state: asyncpg.Record) -> bytes:
    since = state["this_update"] or issuing.now() - LIFETIME
    cursor = await connection.cursor(_REVOKED, authority.account_id, authority.id, since)
    parts = []
    while rows := await cursor.fetch(_ROWS):
        parts.append(await asyncio.to_thread(lambda rows: b"".join(_entry(*row) for row in rows), rows))
    return b"".join(parts)


def _entry(serial: str, revoked_at: datetime, reason: int | None) -> bytes:
    return crl_bytes.entry(int(serial, 16), revoked_at, reason or 0)


_STORE = (
    "UPDATE crls SET number = $3, der = $4, this_update = $5, next_update = $6 WHERE account_id = $1 AND ca_id = $2"
)


async def _sign(
    connection: Connection, authority: Authority, private_key: PrivateKey, number: int, entries: bytes
) -> bytes:
    # Read again: the CA may have been renewed meanwhile.
    issuer = authorities.certificate_of(await authorities.get(connection, Scope(authority.account_id), authority.id))
    now = issuing.now()
    # In a thread, because hashing a long CRL takes milliseconds.
    der = await asyncio.to_thread(crl_bytes.signed, issuer, private_key, number, (now, now + LIFETIME), entries)
    await connection.execute(_STORE, authority.account_id, authority.id, number, der, now, now + LIFETIME)
    return der


async def all_entries(connection: Connection, authority: Authority) -> tuple[int, bytes]:
    """The number of the last CRL, locked, and the entries of all revoked certificates that a CRL must still have."""
    state = await _state(connection, _LOCK, authority)
    return state["number"], await _read(connection, authority, state)


_LAST = "SELECT der FROM last_crls WHERE ca_id = $1"
_OUTLIVED = "DELETE FROM last_crls WHERE next_update <= $1"
_ACCOUNT = "SELECT account_id FROM certificate_authorities WHERE id = $1"


async def published(services: Services, ca_id: UUID) -> bytes:
    """The CRL of any CA, also the last one of a deleted CA, in DER, for anybody. Raises NotFound."""
    db = services.db
    row = await db.fetchrow(_ACCOUNT, ca_id)
    authority = await authorities.get(db, Scope(row["account_id"]), ca_id) if row else None
    last = None if authority else await db.fetchrow(_LAST, ca_id)
    if last:
        return bytes(last["der"])
    if authority is None or authority.certificate is None:
        raise NotFound(f"CRL with ID '{ca_id}' not found")
    return await current(services, authority)


async def prune(db: Database) -> None:
    """Delete the last CRLs of deleted CAs once all that they revoke has expired."""
    await db.execute(_OUTLIVED, issuing.now())


_BY_EXPIRY = expiry.by_expiry("SELECT next_update AS ends FROM crls WHERE der IS NOT NULL")


async def by_expiry(db: Database) -> dict[str, int]:
    """Counts of the CRLs by their nextUpdate; one that nobody has asked for of late may be over."""
    return await expiry.counted(db, _BY_EXPIRY)
