"""What the CAs of this server have revoked, of certificates that somebody holds."""

from collections.abc import Sequence
from uuid import UUID

from cryptography import x509

from keystead.store.database import Database
from keystead.x509 import chains

# Fetches unrevoked rows too: with a filter on revoked_at, PostgreSQL might scan all revoked certificates.
_BY_SERIAL = "SELECT serial, revoked_at FROM issued_certificates WHERE account_id = $1 AND serial = ANY($2::text[])"


async def among(db: Database, account_id: UUID, serials: Sequence[int]) -> set[int]:
    """Those of these serial numbers that CAs of an account have revoked."""
    rows = await db.fetch(_BY_SERIAL, account_id, [f"{serial:040x}" for serial in serials])
    return {int(row["serial"], 16) for row in rows if row["revoked_at"]}


# Across accounts, because a parent CA may be in another one; unrevoked rows too, as above.
_SIGNED_HERE = """
SELECT signed.position, i.revoked_at
FROM unnest($1::integer[], $2::bytea[], $3::text[]) AS signed (position, spki_sha256, serial)
JOIN certificate_authorities c ON c.spki_sha256 = signed.spki_sha256
JOIN issued_certificates i ON i.account_id = c.account_id AND i.ca_id = c.id AND i.serial = signed.serial
ORDER BY signed.position
"""


async def first_in(db: Database, path: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """The first certificate of a path (each signed by the next) that a CA of this server has revoked, or None."""
    if len(path) < 2:
        return None
    issuers = [chains.spki_digest(issuer) for issuer in path[1:]]
    serials = [f"{certificate.serial_number:040x}" for certificate in path[:-1]]
    rows = await db.fetch(_SIGNED_HERE, list(range(len(issuers))), issuers, serials)
    return next((path[row["position"]] for row in rows if row["revoked_at"]), None)
