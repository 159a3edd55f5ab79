"""Loading a Scope: the columns of its account or zone, and the row as a Scope."""

import asyncpg
import msgspec

from app.caller import Level, Scope

_COMMON = "a.id AS account_id, a.name_policy, a.key_max_age_days, a.ca_quota"
# Of accounts `a`, and zones `z` where the scope is a zone.
COLUMNS = {
    Level.ACCOUNT: f"{_COMMON}, NULL::uuid AS zone_id, a.csrs_enabled, a.csr_quota, NULL::int AS certificate_quota",
    Level.ZONE: f"{_COMMON}, z.id AS zone_id, z.csrs_enabled, z.csr_quota, z.certificate_quota",
}


def of_row(row: asyncpg.Record) -> Scope:
    """The scope of a row with these columns."""
    return msgspec.convert(dict(row), Scope)
