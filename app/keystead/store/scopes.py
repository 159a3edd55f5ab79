"""Loading a Scope: the columns of its account or zone, and the row as a Scope."""

from uuid import UUID

import asyncpg
import msgspec

from keystead.caller import Level, Scope
from keystead.store.database import Database

_COMMON = "a.id AS account_id, a.name_policy, a.key_max_age_days, a.ca_quota"
# Of accounts `a`, and zones `z` where the scope is a zone.
COLUMNS = {
    Level.ACCOUNT: f"{_COMMON}, NULL::uuid AS zone_id, a.csrs_enabled, a.csr_quota, NULL::int AS certificate_quota",
    Level.ZONE: f"{_COMMON}, z.id AS zone_id, z.csrs_enabled, z.csr_quota, z.certificate_quota",
}
_ZONE_OF_ACCOUNT = f"""
SELECT {COLUMNS[Level.ZONE]} FROM zones z JOIN accounts a ON a.id = z.account_id
WHERE z.account_id = $1 AND z.id = $2 AND z.deleted_at IS NULL
"""
_ACCOUNT = f"SELECT {COLUMNS[Level.ACCOUNT]} FROM accounts a WHERE a.id = $1"


def of_row(row: asyncpg.Record) -> Scope:
    """The scope of a row with these columns."""
    return msgspec.convert(dict(row), Scope)


async def load(db: Database, account_id: UUID, zone_id: UUID | None = None) -> Scope:
    """The scope of an account or of one of its zones, for the operator; raises what `Scope.gone` says."""
    values = (_ZONE_OF_ACCOUNT, account_id, zone_id) if zone_id else (_ACCOUNT, account_id)
    row = await db.fetchrow(*values)
    if row is None:
        raise Scope(account_id, zone_id).gone()
    return of_row(row)
