"""The end of a CA: refused while others depend on it, or, by force, after a last CRL that revokes what it signed."""

import asyncio
from datetime import datetime
from uuid import UUID

from keystead.audit import record as audit
from keystead.ca import authorities, crls, issuing
from keystead.ca.crls import Reason
from keystead.ca.model import Authority
from keystead.caller import Caller, Scope
from keystead.errors import Refusal
from keystead.services import Services
from keystead.store.database import Connection
from keystead.x509 import crl as crl_bytes
from keystead.x509.keys import PrivateKey

_REVOKE_ALL = """
UPDATE issued_certificates SET revoked_at = $3, revocation_reason = $4, modified_at = now()
WHERE account_id = $1 AND ca_id = $2 AND revoked_at IS NULL AND profile <> 'root' AND not_after > $3
"""
_LAST = """
SELECT max(not_after) FROM issued_certificates WHERE account_id = $1 AND ca_id = $2 AND profile <> 'root'
"""
_KEEP = "INSERT INTO last_crls (account_id, ca_id, der, next_update) VALUES ($1, $2, $3, $4)"


async def force(services: Services, caller: Caller, scope: Scope, ca_id: UUID) -> Authority:
    """Revoke all that a CA has signed, publish that for as long as any of it would be valid, and delete the CA.

    Raises NotFound, KeyDamaged, and Refusal while it has CAs below it: whether their certificates are revoked is looked
    up here as long as they are used.
    """
    found = await authorities.get(services.db, scope, ca_id)
    if found.certificate is None:
        return await authorities.delete(services.db, caller, scope, ca_id)
    private_key = await issuing.ca_key(services, caller, found)

    async def work(connection: Connection) -> Authority:
        await authorities.lock(connection, scope, ca_id)
        authority = await authorities.get(connection, scope, ca_id)
        held = await authorities.held(connection, authority)
        if held.authorities:
            raise Refusal(f"CA cannot be deleted: it has {held.authorities} sub-CAs; delete them first")
        now = issuing.now()
        ids = (authority.account_id, authority.id)
        await connection.execute(_REVOKE_ALL, *ids, now, Reason.CESSATION_OF_OPERATION.value)
        await authorities.note(connection, caller, authority, audit.Action.REVOKE)
        ends = await connection.fetchval(_LAST, *ids)
        until = max(ends.replace(microsecond=0), now + crls.LIFETIME) if ends else now + crls.LIFETIME
        await connection.execute(_KEEP, *ids, await _signed(connection, authority, private_key, (now, until)), until)
        await authorities.destroy(connection, caller, authority)
        return authority

    return await services.db.transaction(work)


async def _signed(
    connection: Connection, authority: Authority, private_key: PrivateKey, updates: tuple[datetime, datetime]
) -> bytes:
    number, entries = await crls.all_entries(connection, authority)
    issuer = authorities.certificate_of(authority)
    return await asyncio.to_thread(crl_bytes.signed, issuer, private_key, number + 1, updates, entries)
