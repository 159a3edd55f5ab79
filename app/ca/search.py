"""Issued certificates found again: one by its serial number or id, lists by CA, name, serial number, state, expiry."""

from datetime import datetime
from uuid import UUID

import msgspec

from app.audit import record as audit
from app.ca import issuing
from app.ca.model import Issued, IssuedStatus
from app.caller import Caller, Level, Scope
from app.errors import NotFound
from app.store import scopes
from app.store.database import Database

MAX_LIMIT = 1000
_CERTIFICATE = ", ".join(f"i.{column}" for column in issuing.ISSUED.split(", ") if column != "account_id")
_OF_CALLER = f"""
SELECT {scopes.COLUMNS[Level.ACCOUNT]}, {_CERTIFICATE} FROM issued_certificates i JOIN accounts a ON a.id = i.account_id
WHERE i.account_id = ANY($1::uuid[]) AND i."""
_BY_SERIAL, _BY_ID = (f"{_OF_CALLER}{column} = $2" for column in ("serial", "id"))


async def by_serial(db: Database, caller: Caller, serial: str) -> tuple[Scope, Issued]:
    """A certificate that a CA of an account that the caller reaches has issued, with that account; raises NotFound."""
    return await _of_caller(db, issuing.not_found(serial), _BY_SERIAL, list(caller.reach), serial)


async def by_id(db: Database, caller: Caller, certificate_id: UUID) -> tuple[Scope, Issued]:
    """As `by_serial`."""
    return await _of_caller(db, issuing.no_certificate(certificate_id), _BY_ID, list(caller.reach), certificate_id)


async def _of_caller(db: Database, missing: NotFound, sql: str, *values: object) -> tuple[Scope, Issued]:
    row = await db.fetchrow(sql, *values)
    if row is None:
        raise missing
    return scopes.of_row(row), issuing.issued(row)


async def viewed(db: Database, caller: Caller, found: Issued) -> Issued:
    """A certificate that is shown to a caller; audited."""
    ids = (found.account_id, found.id, None)
    await audit.record(db, caller, audit.Action.READ, audit.Resource.ISSUED_CERTIFICATE, ids)
    return found


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
