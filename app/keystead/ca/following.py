"""A certificate that follows another: its subject, names, usages and lifetime, for its key or that of a CSR."""

from datetime import datetime
from uuid import UUID

import msgspec

from keystead.ca import authorities, issuing, leaves, revoked
from keystead.ca.issuing import Signed
from keystead.ca.leaves import LeafRequest
from keystead.caller import Caller, Scope
from keystead.errors import Refusal
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509 import chains, pkix


class Following(msgspec.Struct, frozen=True):
    """The PEM of the certificate before, and a CSR in PEM unless the key stays.

    `since`: what the CA has signed for this key since then is that certificate, and not signed again.
    """

    chain: str
    csr: str = ""
    since: datetime | None = None


async def sign(services: Services, caller: Caller, scope: Scope, ca_id: UUID, wanted: Following) -> Signed:
    """The next certificate; raises NotFound, and Refusal also if it would not end later than the one before."""
    before = issuing.read_of("the certificate", wanted.chain)[0]
    ends = before.not_valid_after_utc
    authority = await authorities.get(services.db, scope, ca_id)
    last = issuing.latest(authority).not_after
    if last <= ends:
        raise Refusal(f"CA ends on {issuing.shown(last)}, not later than the certificate: renew the CA first")
    if wanted.since:
        spki_sha256 = pkix.spki_sha256(wanted.csr) if wanted.csr else chains.spki_digest(before)
        if found := await _signed_since(services, scope, ca_id, spki_sha256, wanted.since):
            return found
    lifetime = ends - before.not_valid_before_utc
    key_usages, extended = pkix.usages(before)
    request = LeafRequest(
        csr=wanted.csr,
        # It begins so much before now.
        ttl=max(lifetime - issuing.BACKDATED, lifetime / 2),
        key_usages=key_usages,
        extended_key_usages=extended,
    )
    return await leaves.sign_again(services, caller, scope, request, (ca_id, before))


_SIGNED_SINCE = f"""
SELECT {issuing.ISSUED} FROM issued_certificates
WHERE account_id = $1 AND created_at >= $2 AND ca_id = $3 AND spki_sha256 = $4 AND profile = 'leaf'
  AND revoked_at IS NULL AND pem IS NOT NULL ORDER BY created_at DESC, id LIMIT 1
"""


async def _signed_since(
    services: Services, scope: Scope, ca_id: UUID, spki_sha256: bytes, since: datetime
) -> Signed | None:
    row = await services.db.fetchrow(_SIGNED_SINCE, scope.account_id, since, ca_id, spki_sha256)
    return await issuing.signed(services, issuing.issued(row)) if row else None


async def is_revoked(db: Database, scope: Scope, chain: str) -> bool:
    """Whether a CA of this account signed the leaf of a chain, and has revoked it."""
    leaf = issuing.read_of("the certificate", chain)[0]
    return bool(await revoked.among(db, scope.account_id, [leaf.serial_number]))
