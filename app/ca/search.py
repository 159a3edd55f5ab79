"""Issued certificates found again: by CA, name, serial number, state and expiry."""

from datetime import datetime
from uuid import UUID

import msgspec

from app.audit import record as audit
from app.ca import issuing
from app.ca.model import Issued, IssuedStatus
from app.caller import Caller, Scope
from app.store.database import Database

MAX_LIMIT = 1000


class Search(msgspec.Struct, frozen=True):
    """What is None does not matter; the names are compared without regard to case, and `san` as one of the names."""

    ca_id: UUID | None = None
    profile_id: UUID | None = None
    common_name: str | None = None
    san: str | None = None
    serial: str | None = None
    status: IssuedStatus | None = None
    expires_before: datetime | None = None
    expires_after: datetime | None = None
    offset: int = 0
    limit: int = 100


class Found(msgspec.Struct, frozen=True):
    """A page of certificates, the newest first, and how many there are on all pages."""

    certificates: tuple[Issued, ...]
    total: int


_CONDITIONS = {
    "ca_id": "ca_id = {}",
    "profile_id": "profile_id = {}",
    "common_name": "lower(common_name) = lower({})",
    "san": "lower({}) = ANY(SELECT lower(name) FROM unnest(alt_names) AS name)",
    "serial": "serial = {}",
    "expires_before": "not_after < {}",
    "expires_after": "not_after > {}",
}
_STATUS = {
    IssuedStatus.REVOKED: "revoked_at IS NOT NULL",
    IssuedStatus.PENDING: "revoked_at IS NULL AND pem IS NULL",
    IssuedStatus.EXPIRED: "revoked_at IS NULL AND pem IS NOT NULL AND not_after <= now()",
    IssuedStatus.ACTIVE: "revoked_at IS NULL AND pem IS NOT NULL AND not_after > now()",
}


async def find(db: Database, caller: Caller, scope: Scope, search: Search) -> Found:
    """A page of what matches; audited as a read of the account."""
    where, values = ["account_id = $1"], [scope.account_id]
    for field, condition in _CONDITIONS.items():
        value = getattr(search, field)
        if value is not None:
            values.append(value)
            where.append(condition.format(f"${len(values)}"))
    if search.status:
        where.append(_STATUS[search.status])
    found = f"FROM issued_certificates WHERE {' AND '.join(where)}"
    page = f"LIMIT ${len(values) + 1} OFFSET ${len(values) + 2}"
    sql = f"SELECT {issuing.ISSUED} {found} ORDER BY created_at DESC, id DESC {page}"
    async with db.search(scope.account_id):
        rows = await db.fetch(sql, *values, min(search.limit, MAX_LIMIT), search.offset)
        count = await db.fetchrow(f"SELECT count(*) {found}", *values)
    ids = (scope.account_id, scope.account_id, None)
    await audit.record(db, caller, audit.Action.READ, audit.Resource.ISSUED_CERTIFICATE, ids)
    return Found(tuple(map(issuing.issued, rows)), count[0] if count else 0)
