"""Revocation of certificates, and the CRLs that publish it (RFC 5280 section 5, contract-infisical)."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import msgspec

from app.audit import record as audit
from app.ca import authorities, issuing
from app.ca.model import Authority, Issued, Profile
from app.caller import Caller, Scope
from app.custody import keyring
from app.errors import KeyDamaged, KeysteadError, NotFound, Refusal, Unavailable
from app.services import Services
from app.store.database import Connection, Database
from app.x509 import crl as crl_bytes
from app.x509.keys import PrivateKey

LIFETIME = timedelta(days=7)
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


class _Asked(msgspec.Struct, eq=False):
    """A revocation that waits for its CRL."""

    caller: Caller
    serial: str
    reason: Reason
    outcome: Issued | KeysteadError | None = None


class _Line(msgspec.Struct, eq=False, weakref=True):
    """The pending revocations of one CA in this worker: the holder of `turn` signs one CRL for all of them."""

    turn: asyncio.Lock
    asked: list[_Asked]


# An entry goes with its last waiter.
_lines: WeakValueDictionary[tuple[Database, UUID], _Line] = WeakValueDictionary()


def _line(db: Database, authority: Authority) -> _Line:
    return _lines.setdefault((db, authority.id), _Line(asyncio.Lock(), []))


async def revoke(services: Services, caller: Caller, scope: Scope, serial: str, reason: Reason) -> Issued:
    """Revoke a certificate that a CA of this account signed; it is on the CA's CRL when this returns.

    Revocation and CRL are one transaction. Raises NotFound, Unavailable, KeyDamaged, and Refusal if it is already
    revoked or is a root's own certificate.
    """
    db = services.db
    certificate = await issuing.get(db, scope.account_id, serial)
    if certificate.profile is Profile.ROOT:
        raise Refusal("The certificate of a root cannot be revoked: nobody would believe it")
    authority = await authorities.get(db, scope, certificate.ca_id)
    line, asked = _line(db, authority), _Asked(caller, serial, reason)
    line.asked.append(asked)
    try:
        async with line.turn:
            if asked.outcome is None:
                await _take_turn(services, authority, line)
    finally:
        if asked in line.asked:
            line.asked.remove(asked)
    if not isinstance(asked.outcome, Issued):
        raise asked.outcome or TypeError("a turn without an outcome")
    return asked.outcome


async def _take_turn(services: Services, authority: Authority, line: _Line) -> None:
    """Carry out up to MAX_AT_ONCE of the pending revocations, and set the outcome of each."""
    batch = line.asked[:MAX_AT_ONCE]
    del line.asked[:MAX_AT_ONCE]
    try:
        outcomes = await _revoke_all(services, authority, batch)
    except KeysteadError as error:
        outcomes = [error] * len(batch)
    except BaseException:
        # Only this request was cancelled or failed: put the others back.
        line.asked[:0] = batch
        raise
    for asked, outcome in zip(batch, outcomes, strict=True):
        asked.outcome = outcome


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
    services: Services, authority: Authority, batch: Sequence[_Asked]
) -> list[Issued | KeysteadError]:
    db = services.db
    private_key = await issuing.ca_key(services, batch[0].caller, authority)
    state = await db.fetchrow(_STATE, authority.account_id, authority.id)
    anew = await _anew(db, authority, state) if state and _is_due(state) else None

    async def work(connection: Connection) -> list[Issued | KeysteadError]:
        # Lock the CRL first: this serialises revocations, so CRL numbers increase.
        state = await connection.fetchrow(_LOCK, authority.account_id, authority.id)
        entries = await _entries(connection, authority, state, anew)
        now = issuing.now()
        outcomes = [await _revoke(connection, authority, asked, now) for asked in batch]
        revoked = [each for each in outcomes if isinstance(each, Issued)]
        if revoked:
            entries += b"".join(_entry(each.serial, now, each.revocation_reason) for each in revoked)
            await _sign(connection, authority, private_key, state, entries)
        return outcomes

    return await db.transaction(work)


async def _revoke(connection: Connection, authority: Authority, asked: _Asked, now: datetime) -> Issued | KeysteadError:
    audited = audit.values(asked.caller, audit.Action.REVOKE, audit.Resource.ISSUED_CERTIFICATE)
    place = (authority.account_id, authority.id)
    row = await connection.fetchrow(_REVOKE, *place, asked.serial, now, asked.reason.value, *audited)
    return issuing.issued(row) if row else Refusal("Certificate is already revoked")


_PLACE = "FROM crls WHERE account_id = $1 AND ca_id = $2"
_STATE = f"SELECT number, der IS NULL AS unsigned, this_update, next_update {_PLACE}"
_GET = f"SELECT number, der, this_update, next_update {_PLACE}"
_LOCK = f"{_GET} FOR UPDATE"
_LOCK_UNLESS_BUSY = f"{_LOCK} SKIP LOCKED"


async def current(services: Services, authority: Authority) -> bytes:
    """The CRL in DER. After half its lifetime the first request renews it, while others get the old one.

    Raises Refusal for a CA without a certificate, and Unavailable.
    """
    issuing.latest(authority)
    db = services.db
    row = await db.fetchrow(_GET, authority.account_id, authority.id)
    if row is None:
        raise issuing.no_ca(str(authority.id))
    if _is_fresh(row):
        return bytes(row["der"])
    line, is_valid = _line(db, authority), row["der"] is not None and issuing.now() < row["next_update"]
    if is_valid and line.turn.locked():
        return bytes(row["der"])
    try:
        async with line.turn:
            return await _refreshed(services, authority)
    except (Unavailable, KeyDamaged):
        if is_valid:
            return bytes(row["der"])
        raise


def _is_fresh(row: asyncpg.Record) -> bool:
    return row["der"] is not None and issuing.now() < row["this_update"] + LIFETIME / 2


def _is_due(state: asyncpg.Record) -> bool:
    """Whether to rebuild the entries from the database, which drops expired certificates: once a day (UTC)."""
    return bool(state["unsigned"] or state["this_update"].date() != issuing.now().date())


async def _refreshed(services: Services, authority: Authority) -> bytes:
    db = services.db
    row = await db.fetchrow(_GET, authority.account_id, authority.id)
    if row is not None and _is_fresh(row):
        return bytes(row["der"])
    private_key = await issuing.ca_key(services, keyring.SYSTEM, authority)
    if row is None:
        raise issuing.no_ca(str(authority.id))
    anew = await _anew(db, authority, row)

    async def work(connection: Connection) -> bytes:
        lock = _LOCK_UNLESS_BUSY if row["der"] else _LOCK
        state = await connection.fetchrow(lock, authority.account_id, authority.id)
        if state is None and row["der"]:
            return bytes(row["der"])
        if state is not None and _is_fresh(state):
            return bytes(state["der"])
        entries = await _entries(connection, authority, state, anew)
        place = (authority.account_id, authority.id, None)
        resource = audit.Resource.CERTIFICATE_AUTHORITY
        await audit.record(connection, keyring.SYSTEM, audit.Action.SIGN, resource, place)
        return await _sign(connection, authority, private_key, state, entries)

    return await db.transaction(work)


class _Entries(msgspec.Struct, frozen=True):
    """All entries in DER, as of this CRL number."""

    number: int
    der: bytes


async def _anew(db: Database, authority: Authority, state: asyncpg.Record) -> _Entries:
    """Read the entries before the CRL is locked; a revocation in between raises the CRL number."""
    async with db.connection() as connection, connection.transaction(readonly=True):
        return _Entries(state["number"], await _read(connection, authority, state))


async def _entries(
    connection: Connection, authority: Authority, state: asyncpg.Record | None, anew: _Entries | None
) -> bytes:
    """The entries to extend in the locked CRL: the rebuilt ones if still current, else those of the last CRL."""
    if state is None:
        raise issuing.no_ca(str(authority.id))
    if anew and anew.number == state["number"]:
        return anew.der
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


_KEEP = "UPDATE crls SET number = $3, der = $4, this_update = $5, next_update = $6 WHERE account_id = $1 AND ca_id = $2"


async def _sign(
    connection: Connection,
    authority: Authority,
    private_key: PrivateKey,
    state: asyncpg.Record | None,
    entries: bytes,
) -> bytes:
    if state is None:
        raise issuing.no_ca(str(authority.id))
    place = (authority.account_id, authority.id)
    # Read again: the CA may have been renewed meanwhile.
    issuer = authorities.certificate_of(await authorities.read(connection, *place))
    number, now = state["number"] + 1, issuing.now()
    ends = now + LIFETIME
    # In a thread, because hashing a long CRL takes milliseconds.
    der = await asyncio.to_thread(crl_bytes.signed, issuer, private_key, number, (now, ends), entries)
    await connection.execute(_KEEP, *place, number, der, now, ends)
    return der


_ACCOUNT = "SELECT account_id FROM certificate_authorities WHERE id = $1"


async def published(services: Services, ca_id: UUID) -> bytes:
    """The CRL of any CA, in DER, without authentication: certificates name its URL. Raises NotFound."""
    db = services.db
    row = await db.fetchrow(_ACCOUNT, ca_id)
    authority = await authorities.get(db, Scope(row["account_id"]), ca_id) if row else None
    if authority is None or authority.certificate is None:
        raise NotFound(f"CRL with ID '{ca_id}' not found")
    return await current(services, authority)
