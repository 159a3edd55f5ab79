"""Revocation: which certificates are, and the CRL that says so (RFC 5280 section 5, contract-infisical)."""

import asyncio
from datetime import datetime, timedelta
from enum import IntEnum
from uuid import UUID

import asyncpg

from app import audit, authorities, issuing, keyring, pkix
from app.db import Connection, Database
from app.errors import KeyDamaged, NotFound, Refusal, Unavailable
from app.keys import PrivateKey
from app.model import Authority, Caller, Issued, Profile, Scope
from app.ringfile import Ring

LIFETIME = timedelta(days=7)


class Reason(IntEnum):
    """CRLReason of RFC 5280 section 5.3.1, in Infisical's words."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    PRIVILEGE_WITHDRAWN = 9
    A_A_COMPROMISE = 10


_REVOKE = """
UPDATE issued_certificates SET revoked_at = $3, revocation_reason = $4, modified_at = now()
WHERE account_id = $1 AND serial = $2 AND revoked_at IS NULL RETURNING id
"""


async def revoke(db: Database, ring: Ring, caller: Caller, scope: Scope, serial: str, reason: Reason) -> Issued:
    """Revoke a certificate that a CA of this account signed, and sign its CRL anew in the same transaction.

    Raises NotFound, and Refusal for one that is revoked already, or is a root's own.
    """
    certificate = await issuing.get(db, scope.account_id, serial)
    if certificate.profile is Profile.ROOT:
        raise Refusal("The certificate of a root cannot be revoked: nobody would believe it")
    authority = await authorities.get(db, scope, certificate.ca_id)
    private_key = await issuing.ca_key(db, ring, caller, authority)

    async def work(connection: Connection) -> None:
        # The CRL first: it puts revocations in a row, and the number of the later one is the higher.
        state = await connection.fetchrow(_LOCK, authority.account_id, authority.id)
        now = issuing.now()
        row = await connection.fetchrow(_REVOKE, scope.account_id, serial, now, reason.value)
        if row is None:
            raise Refusal("Certificate is already revoked")
        place = (scope.account_id, row["id"], None)
        await audit.record(connection, caller, audit.Action.REVOKE, audit.Resource.ISSUED_CERTIFICATE, place)
        await _sign(connection, authority, private_key, state, now)

    await db.transaction(work)
    return await issuing.get(db, scope.account_id, serial)


_GET = "SELECT number, der, this_update, next_update FROM crls WHERE account_id = $1 AND ca_id = $2"
_LOCK = f"{_GET} FOR UPDATE"
_LOCK_UNLESS_BUSY = f"{_LOCK} SKIP LOCKED"


async def current(db: Database, ring: Ring, authority: Authority) -> bytes:
    """The CRL in DER; past half of its life the first who asks has it signed anew, and the others get the old one.

    Raises Refusal for a CA without a certificate, and Unavailable.
    """
    issuing.latest(authority)
    row = await db.fetchrow(_GET, authority.account_id, authority.id)
    if row is None:
        raise issuing.no_ca(str(authority.id))
    if _is_fresh(row):
        return bytes(row["der"])
    try:
        return await _refreshed(db, ring, authority, row)
    except (Unavailable, KeyDamaged):
        if row["der"] and issuing.now() < row["next_update"]:
            return bytes(row["der"])
        raise


def _is_fresh(row: asyncpg.Record) -> bool:
    return row["der"] is not None and issuing.now() < row["this_update"] + LIFETIME / 2


async def _refreshed(db: Database, ring: Ring, authority: Authority, row: asyncpg.Record) -> bytes:
    private_key = await issuing.ca_key(db, ring, keyring.SYSTEM, authority)

    async def work(connection: Connection) -> bytes:
        lock = _LOCK_UNLESS_BUSY if row["der"] else _LOCK
        state = await connection.fetchrow(lock, authority.account_id, authority.id)
        if state is None:
            return bytes(row["der"] or b"")
        if _is_fresh(state):
            return bytes(state["der"])
        place = (authority.account_id, authority.id, None)
        resource = audit.Resource.CERTIFICATE_AUTHORITY
        await audit.record(connection, keyring.SYSTEM, audit.Action.SIGN, resource, place)
        return await _sign(connection, authority, private_key, state, issuing.now())

    der = await db.transaction(work)
    if not der:
        raise issuing.no_ca(str(authority.id))
    return der


# An entry stays until one CRL that was signed past its certificate's end (RFC 5280 section 3.3).
_REVOKED = """
SELECT serial, revoked_at, revocation_reason FROM issued_certificates
WHERE account_id = $1 AND ca_id = $2 AND revoked_at IS NOT NULL AND not_after >= $3 ORDER BY revoked_at, serial
"""
_KEEP = "UPDATE crls SET number = $3, der = $4, this_update = $5, next_update = $6 WHERE account_id = $1 AND ca_id = $2"


async def _sign(
    connection: Connection, authority: Authority, private_key: PrivateKey, state: asyncpg.Record | None, now: datetime
) -> bytes:
    if state is None:
        raise issuing.no_ca(str(authority.id))
    place = (authority.account_id, authority.id)
    rows = await connection.fetch(_REVOKED, *place, state["this_update"] or now)
    entries = [pkix.Revoked(int(r["serial"], 16), r["revoked_at"], r["revocation_reason"]) for r in rows]
    number, ends = state["number"] + 1, now + LIFETIME
    # Long lists take seconds, which others must not wait for.
    der = await asyncio.to_thread(
        pkix.crl, authorities.certificate_of(authority), private_key, number, now, ends, entries
    )
    await connection.execute(_KEEP, *place, number, der, now, ends)
    return der


_ACCOUNT = "SELECT account_id FROM certificate_authorities WHERE id = $1"


async def published(db: Database, ring: Ring, ca_id: UUID) -> bytes:
    """The CRL of any CA, in DER, for anybody: its address stands in what the CA has signed. Raises NotFound."""
    row = await db.fetchrow(_ACCOUNT, ca_id)
    authority = await authorities.get(db, Scope(row["account_id"]), ca_id) if row else None
    if authority is None or authority.certificate is None:
        raise NotFound(f"CRL with ID '{ca_id}' not found")
    return await current(db, ring, authority)
