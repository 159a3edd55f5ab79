"""Which certificates, of those that somebody holds, the CAs of an account have revoked."""

from collections.abc import Sequence
from uuid import UUID

from keystead.store.database import Database

# Fetches unrevoked rows too: with a filter on revoked_at, PostgreSQL might scan all revoked certificates.
_BY_SERIAL = "SELECT serial, revoked_at FROM issued_certificates WHERE account_id = $1 AND serial = ANY($2::text[])"


async def among(db: Database, account_id: UUID, serials: Sequence[int]) -> set[int]:
    """Those of these serial numbers that are revoked."""
    rows = await db.fetch(_BY_SERIAL, account_id, [f"{serial:040x}" for serial in serials])
    return {int(row["serial"], 16) for row in rows if row["revoked_at"]}
