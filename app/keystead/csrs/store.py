"""Custom CSRs: their rules and their SQL (contract-cloudflare sections 2 and 3)."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec

from keystead import bounds
from keystead.audit import record as audit
from keystead.caller import Caller, Scope
from keystead.csrs import writing
from keystead.csrs.model import MAX_PER_PAGE, Csr, CsrQuery, CsrRequest, Order, Page
from keystead.custody import keyring
from keystead.errors import (
    Advice,
    Clash,
    Conflict,
    Hint,
    Invalid,
    Limit,
    LimitReached,
    NotFound,
    Problem,
    Rule,
    Thing,
    quoted,
)
from keystead.services import Services
from keystead.store import idempotency, paging
from keystead.store.bundles import Made, Row
from keystead.store.database import Connection, Database
from keystead.store.idempotency import Idempotency
from keystead.store.locks import Lock, lock
from keystead.store.paging import Direction
from keystead.x509 import names, pkcs10, subjects
from keystead.x509.keys import KeyType
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import Subject

MAX_SANS = 150
MAX_SUGGESTED = 10
# Characters (code points), not bytes.
MAX_LENGTHS = {**subjects.UPPER_BOUNDS, "name": 255, "description": 1024}
_KEY_TYPES = frozenset(KeyType)
_REQUIRED = ("country", "state", "locality", "organization", "common_name")


def problems(request: CsrRequest, policy: NamePolicy) -> tuple[Problem, ...]:
    """All problems of a request, including `malformed`; pure."""
    if any(problem.rule is Rule.BODY for problem in request.malformed):
        return request.malformed
    found = (*_missing(request), *_sans(request.sans, policy), *_key_type(request), *_texts(request))
    too_many = len(request.sans) > MAX_SANS
    malformed = tuple(
        p for p in request.malformed if p.rule is not Rule.MISSING and not (too_many and p.field == "sans")
    )
    unread = {(problem.field, problem.index) for problem in malformed}
    return (*malformed, *(p for p in found if (p.field, p.index) not in unread and (p.field, None) not in unread))


def _missing(request: CsrRequest) -> list[Problem]:
    fields = msgspec.structs.asdict(request.subject)
    texts = {field: f"{field} is required and must not be empty." for field in _REQUIRED if not fields[field]}
    if not request.sans:
        texts["sans"] = "sans is required: a list of at least one hostname, such as www.example.com."
    return [Problem(Rule.MISSING, field, text) for field, text in texts.items()]


def _sans(sans: tuple[str, ...], policy: NamePolicy) -> list[Problem]:
    if len(sans) > MAX_SANS:
        text = f"sans has {len(sans)} names; at most {MAX_SANS} are allowed."
        return [Problem(Rule.TOO_MANY_NAMES, "sans", text)]
    found: list[Problem] = []
    for index, san in enumerate(sans):
        problem = names.broken(san, policy, suggest=len(found) < MAX_SUGGESTED)
        if problem:
            found.append(Problem(problem[0], "sans", problem[1], index))
    return found


def _key_type(request: CsrRequest) -> list[Problem]:
    if request.key_type in _KEY_TYPES:
        return []
    text = f"key_type {quoted(request.key_type)} is not supported; rsa2048 and p256v1 are."
    return [Problem(Rule.KEY_TYPE, "key_type", text)]


def _texts(request: CsrRequest) -> list[Problem]:
    found = subjects.problems(msgspec.structs.asdict(request.subject))
    if request.name:
        found += subjects.text("name", request.name, MAX_LENGTHS["name"])
    if request.description:
        found += subjects.text("description", request.description, MAX_LENGTHS["description"], line_breaks=True)
    return found


def advice(request: CsrRequest, policy: NamePolicy) -> tuple[Advice, ...]:
    """Warnings about an accepted request; pure."""
    subject = request.subject
    found = []
    lower = [san.lower() for san in request.sans]
    if subject.common_name.lower() not in lower:
        text = f"common_name {quoted(subject.common_name)} is not among the SANs; clients only look at the SANs."
        found.append(Advice(Hint.COMMON_NAME_NOT_IN_SANS, "common_name", text))
    if subject.organizational_unit:
        text = "public CAs no longer put an organizational unit into certificates; leave organizational_unit out."
        found.append(Advice(Hint.ORGANIZATIONAL_UNIT, "organizational_unit", text))
    for index, san in enumerate(lower):
        if lower.index(san) < index:
            text = f"{quoted(request.sans[index])} is there before; the CSR names it once."
            found.append(Advice(Hint.DUPLICATES, "sans", text, index))
            continue
        doubt = names.doubts(request.sans[index], policy)
        if doubt:
            found.append(Advice(Hint.PUBLIC_WOULD_REFUSE, "sans", doubt, index))
    return (*found, *_subject_doubts(request))


def _subject_doubts(request: CsrRequest) -> list[Advice]:
    found = []
    for field, value in msgspec.structs.asdict(request.subject).items():
        if field == "country" or not value:
            continue
        reason = "begins or ends with white space" if value != value.strip() else ""
        if not value.strip(" .-"):
            reason = "has no letters or digits"
        if reason:
            text = f"{field} {quoted(value)} {reason}; public CAs refuse such a value."
            found.append(Advice(Hint.PUBLIC_WOULD_REFUSE, field, text))
    return found


_COLUMNS = (
    "id, account_id, created_at, key_type, name, description, sans, csr, country, state, locality, organization, "
    "common_name, organizational_unit"
)


async def create(
    services: Services, caller: Caller, scope: Scope, request: CsrRequest, once: Idempotency | None = None
) -> Csr:
    """Create a key pair and its CSR. With `once`, repeated calls return the CSR of the first one.

    Raises Conflict if the key of `once` was used with another body, NotFound if the first CSR has been deleted.
    """
    db = services.db
    existing = await idempotency.find(db, caller, scope.account_id, once) if once else None
    if existing:
        return await get(db, scope, existing)
    found = problems(request, scope.name_policy)
    if found:
        raise Invalid(found)
    # Before the expensive work.
    db.require_room()
    pair = await services.pool.take(KeyType(request.key_type))
    csr_id = uuid4()
    pem = pkcs10.custom_csr(pair, request.subject, request.sans)
    key = keyring.new_key(services.ring, scope.account_id, pair)
    values = (
        *key.row[1:],
        *(csr_id, request.name, request.description),
        *(*msgspec.structs.astuple(request.subject), request.sans, pem),
        *audit.values(caller, audit.Action.CREATE, audit.Resource.CUSTOM_CSR),
        *idempotency.row(caller, once),
    )
    row = await db.insert_bundled(scope, values, partial(_insert, db, scope))
    if row is None:
        # A concurrent request claimed the key of `once`, and its CSR is returned; or the account or zone was deleted.
        existing = await idempotency.find(db, caller, scope.account_id, once) if once else None
        if existing is None:
            raise scope.gone()
        return await get(db, scope, existing)
    return Csr(csr_id, scope.account_id, row["created_at"], request, pem)


async def _insert(db: Database, scope: Scope, new: Sequence[Row]) -> list[Made]:
    """Insert CSRs with their keys, in one transaction; None for one that was not inserted, see `create`."""
    if scope.csr_quota is None:
        return await writing.insert(db, scope, new)
    return await db.transaction(partial(_insert_within, db, scope, scope.csr_quota, new))


async def _insert_within(
    db: Database, scope: Scope, quota: int, new: Sequence[Row], connection: Connection
) -> list[Made]:
    # Serializes creation in this scope, so that the count includes all committed rows.
    await lock(db, connection, scope, Lock.ALONE)
    made = await writing.insert_in(db, connection, scope, new)
    if any(made) and await connection.fetchval(_COUNT_ALL, scope.account_id, scope.id) > quota:
        kind = "zone" if scope.zone_id else "account"
        command = f"`keystead {kind} set {scope.id.hex} --csr-quota N`"
        text = f"The quota of {quota} custom CSRs of this {kind} is used up; delete one, or have the operator run "
        raise LimitReached(Limit.CSR_QUOTA, f"{text}{command}.")
    return made


_COUNT_ALL = "SELECT count(*) FROM custom_csrs WHERE account_id = $1 AND scope_id = $2"


_GET = f"SELECT {_COLUMNS} FROM custom_csrs WHERE account_id = $1 AND scope_id = $2 AND id = $3"


async def get(db: Database, scope: Scope, csr_id: UUID) -> Csr:
    """A CSR of this scope; raises NotFound and Unavailable."""
    row = await db.fetchrow(_GET, scope.account_id, scope.id, csr_id)
    if row is None:
        raise _not_found(csr_id)
    return _csr(row)


def _not_found(csr_id: UUID) -> NotFound:
    return NotFound(f"There is no custom CSR {csr_id} here.", Thing.CSR)


# Only the given filters become part of the SQL, so that an index can be used. The index on names has the collation "C",
# which does not change equality.
_FILTERS = {
    "common_name": "common_name = ${}",
    "san": "${} = ANY(sans)",
    "name": 'name COLLATE "C" = ${}',
    "key_type": "key_type = ${}",
}
# The total comes with the page in one statement; past the end it comes with a row of NULLs.
_TOTAL = "SELECT coalesce(sum(count), 0)::bigint AS total FROM csr_counts WHERE account_id = $1 AND scope_id = $2"
_WITH_TOTAL = f"SELECT {_COLUMNS}, total FROM ({_TOTAL}) AS counted LEFT JOIN ({{listed}}) AS listed ON true {{order}}"
# Without a limit that it knows, PostgreSQL plans for a tenth of the list.
_FIRST_PAGE = f"""
SELECT {_COLUMNS}, total FROM (
    SELECT {_COLUMNS}, ({_TOTAL}) AS total FROM custom_csrs WHERE account_id = $1 AND scope_id = $2
    {{order}} LIMIT {MAX_PER_PAGE}
) AS listed {{order}} LIMIT $3
"""
# All rows of a list have the same account_tag, so that order is by id.
_ORDERS = {
    (Order.NAME, Direction.ASC): 'name COLLATE "C" ASC NULLS LAST, id ASC',
    (Order.NAME, Direction.DESC): 'name COLLATE "C" DESC NULLS LAST, id DESC',
    (Order.ACCOUNT_TAG, Direction.ASC): "id ASC",
    (Order.ACCOUNT_TAG, Direction.DESC): "id DESC",
    (Order.CREATED_AT, Direction.ASC): "created_at ASC, id ASC",
    (Order.CREATED_AT, Direction.DESC): "created_at DESC, id DESC",
}


async def list_(db: Database, scope: Scope, query: CsrQuery, per_page: int) -> Page:
    """One page of this scope's CSRs; empty past the end. Raises Unavailable."""
    wanted = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
    conditions = ("account_id = $1", "scope_id = $2", *(_FILTERS[name].format(n) for n, name in enumerate(wanted, 3)))
    found = f"FROM custom_csrs WHERE {' AND '.join(conditions)}"
    values = (scope.account_id, scope.id, *wanted.values())
    offset = paging.offset(query.page, per_page)
    order = f"ORDER BY {_ORDERS[query.order, query.direction]}"
    if not wanted and not offset:
        rows = await db.fetch(_FIRST_PAGE.format(order=order), *values, per_page)
        return Page(tuple(map(_csr, rows)), rows[0]["total"] if rows else 0)
    # The subquery skips rows in the index, which is much smaller than the table.
    ids = f"SELECT id {found} {order} LIMIT ${len(values) + 1} OFFSET ${len(values) + 2}"
    listed = f"SELECT {_COLUMNS} FROM custom_csrs WHERE account_id = $1 AND id = ANY(ARRAY({ids}))"
    async with db.search(scope.account_id) if wanted or offset > bounds.NEAR else contextlib.nullcontext():
        if not wanted:
            rows = await db.fetch(_WITH_TOTAL.format(listed=listed, order=order), *values, per_page, offset)
            return Page(tuple(_csr(row) for row in rows if row["id"]), rows[0]["total"])
        row = await db.fetchrow(f"SELECT count(*) AS total {found}", *values)
        total = row["total"] if row else 0
        # Past the end the query would scan the whole list again.
        rows = [] if offset >= total else await db.fetch(f"{listed} {order}", *values, per_page, offset)
    return Page(tuple(map(_csr, rows)), total)


# Searches by key_id, which has an index.
_USED_BY = """
SELECT id FROM custom_certificates WHERE account_id = $1 AND custom_csr_id = $2
    AND key_id = (SELECT key_id FROM custom_csrs WHERE account_id = $1 AND id = $2) LIMIT 20
"""


async def delete(db: Database, caller: Caller, scope: Scope, csr_id: UUID) -> None:
    """Delete a CSR and its private key; raises Conflict(IN_USE) with the ids of certificates that use the key."""
    try:
        deleted = await writing.delete(db, caller, scope, csr_id)
    except Conflict as error:
        if error.clash is not Clash.IN_USE:
            raise
        users = sorted(row["id"] for row in await db.fetch(_USED_BY, scope.account_id, csr_id))
        ids = ", ".join(map(str, users)) or "one that was deleted just now; try again"
        raise Conflict(f"The key of this CSR is used by custom certificates: {ids}.", Clash.IN_USE) from None
    if not deleted:
        raise _not_found(csr_id)


# Arbitrary advisory lock id.
_RECOUNT_LOCK = 0x6B657974
_RECOUNT = """
WITH actual AS (SELECT account_id, scope_id, count(*) AS held FROM custom_csrs GROUP BY account_id, scope_id),
kept AS (SELECT account_id, scope_id, sum(count)::bigint AS total FROM csr_counts GROUP BY account_id, scope_id)
INSERT INTO csr_counts AS known (account_id, scope_id, slot, count)
SELECT account_id, scope_id, 0, coalesce(held, 0) - coalesce(total, 0)
FROM actual FULL JOIN kept USING (account_id, scope_id) WHERE coalesce(held, 0) <> coalesce(total, 0)
ON CONFLICT (account_id, scope_id, slot) DO UPDATE SET count = known.count + excluded.count
"""


async def recount(db: Database) -> None:
    """Correct csr_counts after an older release, which does not update it, has written during an upgrade.

    Adds the difference of two counts from one snapshot, so that concurrent writers need not wait.
    """

    async def work(connection: Connection) -> None:
        # Two concurrent recounts would add the difference twice.
        if await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _RECOUNT_LOCK):
            await connection.execute(_RECOUNT)

    await db.transaction(work)


def _csr(row: Iterable[Any]) -> Csr:
    # Not by name, which takes three times as long for each of a page. Behind the subject there may be a total.
    csr_id, account_id, created_at, key_type, name, description, sans, pem, *subject = row
    request = CsrRequest(Subject(*subject[:_FIELDS]), tuple(sans), key_type, name, description)
    return Csr(csr_id, account_id, created_at, request, pem)


_FIELDS = len(Subject.__struct_fields__)
