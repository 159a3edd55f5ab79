"""Issued certificates found again: one by its serial number or id, lists by CA, name, serial number, state, expiry."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import partial
from uuid import UUID

import msgspec

from keystead.audit import record as audit
from keystead.ca import issuing
from keystead.ca.model import Issued, IssuedStatus
from keystead.caller import Caller, Level, Scope
from keystead.store import scopes
from keystead.store.bundles import Made, Row
from keystead.store.database import Database, encoded, rows

MAX_LIMIT = 1000


class By(StrEnum):
    """What names one certificate."""

    SERIAL = "serial"
    ID = "id"


_CERTIFICATE = ", ".join(f"i.{column}" for column in issuing.ISSUED.split(", ") if column != "account_id")
_ONE = f"""
SELECT {scopes.COLUMNS[Level.ACCOUNT]}, {_CERTIFICATE} FROM issued_certificates i JOIN accounts a ON a.id = i.account_id
WHERE i.account_id = ANY({{accounts}}) AND i.{{by}} = {{value}}
"""
_FIND = {by: _ONE.format(by=by.value, accounts="$1::uuid[]", value="$2") for by in By}


async def one(db: Database, caller: Caller, by: By, value: str | UUID) -> tuple[Scope, Issued]:
    """A certificate that a CA of an account that the caller reaches has issued, with that account; raises NotFound."""
    row = await db.fetchrow(_FIND[by], list(caller.reach), value)
    if row is None:
        raise issuing.not_found(str(value)) if by is By.SERIAL else issuing.no_certificate(value)
    return scopes.of_row(row), issuing.issued(row)


async def view(db: Database, caller: Caller, found: Issued) -> None:
    """Audit that a certificate is shown to a caller."""
    ids = (found.account_id, found.id, None)
    await audit.record(db, caller, audit.Action.READ, audit.Resource.ISSUED_CERTIFICATE, ids)


_TYPES = {By.SERIAL: "text", By.ID: "uuid"}
_ASKED = {by: {"accounts": "uuid[]", "value": type_, **audit.COLUMNS} for by, type_ in _TYPES.items()}
_ENTRY_ID = list(_ASKED[By.ID]).index("entry_id")
# The entry's id tells which request a row is for. Not a join, which PostgreSQL plans as a scan while a table grows.
_VIEWED = {
    by: f"""
WITH asked AS (SELECT new.* FROM {rows("$1", columns)}),
found AS (
    SELECT asked.entry_id AS asked_by, one.* FROM asked CROSS JOIN LATERAL (
        {_ONE.format(by=by.value, accounts="asked.accounts", value="asked.value")} LIMIT 1
    ) AS one
),
audit AS ({audit.insert_each("found JOIN asked ON asked.entry_id = found.asked_by")})
SELECT * FROM found
"""
    for by, columns in _ASKED.items()
}


async def viewed(
    db: Database, caller: Caller, accounts: Sequence[UUID], by: By, value: str | UUID
) -> tuple[Scope, Issued] | None:
    """As `one` and `view` in one statement, together with what others ask at the same time; only in these accounts."""
    if db.distributed:
        # Citus does not look up each of several in turn.
        alone = await db.fetchrow(_FIND[by], list(accounts), value)
        if alone is None:
            return None
        await view(db, caller, issuing.issued(alone))
        return scopes.of_row(alone), issuing.issued(alone)
    row = (accounts, value, *audit.values(caller, audit.Action.READ, audit.Resource.ISSUED_CERTIFICATE))
    found = await db.insert_bundled(("issued_certificates", by), row, partial(_view, db, by))
    return (scopes.of_row(found), issuing.issued(found)) if found else None


async def _view(db: Database, by: By, new: Sequence[Row]) -> list[Made]:
    asked = {row["asked_by"]: row for row in await db.fetch(_VIEWED[by], encoded(_ASKED[by], new))}
    return [asked.get(row[_ENTRY_ID]) for row in new]


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
