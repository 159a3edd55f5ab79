"""Reading and pruning the audit log, with Cloudflare's field names (contract-cloudflare section 7)."""

import base64
import binascii
import contextlib
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import msgspec

from keystead.audit import record as audit
from keystead.audit.record import Action, Resource
from keystead.caller import Actor, Caller, Scope
from keystead.store.database import Connection, Database
from keystead.store.paging import Direction
from keystead.store.pruning import AT_ONCE, deleted, oldest

MAX_LIMIT = 1000
MAX_VALUES = 100


class Entry(msgspec.Struct, frozen=True):
    """One entry. String ids of accounts, zones, tokens and users are 32 hex digits; others are UUIDs with hyphens."""

    id: UUID
    at: datetime
    account_id: UUID
    account_name: str | None
    action_type: str
    result: str
    count: int
    actor: Actor
    actor_id: str | None
    actor_type: str
    actor_context: str | None
    actor_email: str | None
    actor_name: str | None
    address: str | None
    token_id: str | None
    request_id: str
    method: str
    path: str
    status: int | None
    user_agent: str | None
    resource_id: str
    resource_type: Resource
    resource_product: str
    resource_scope: str
    zone_id: UUID | None
    zone_name: str | None


class Filter(msgspec.Struct, frozen=True):
    """Entries whose field is in `only` (None: any value) and not in `none_of`."""

    only: tuple[str, ...] | None = None
    none_of: tuple[str, ...] = ()


class Query(msgspec.Struct, frozen=True):
    """Entries with since <= at < before; `after` is the position of the last entry of the previous page."""

    since: datetime
    before: datetime
    limit: int
    direction: Direction = Direction.DESC
    filters: Mapping[str, Filter] = {}
    after: tuple[datetime, UUID] | None = None


class Page(msgspec.Struct, frozen=True):
    """`cursor` leads to the next page; None on the last one."""

    items: tuple[Entry, ...]
    cursor: str | None


# Of the other resources the product is their plural.
_PRODUCTS = {
    Resource.CERTIFICATE_AUTHORITY: "private_ca",
    Resource.ISSUED_CERTIFICATE: "private_ca",
    Resource.CERTIFICATE_POLICY: "private_ca",
    Resource.CERTIFICATE_PROFILE: "private_ca",
    Resource.APPLICATION: "private_ca",
    Resource.PRIVATE_KEY: "custody",
    Resource.RING: "custody",
    Resource.PEPPER: "custody",
    Resource.AUDIT_LOG: "audit",
}
_PRODUCT_CASES = " ".join(f"WHEN '{resource}' THEN '{product}'" for resource, product in _PRODUCTS.items())
_HEX = f"'{Resource.ACCOUNT}', '{Resource.ZONE}', '{Resource.TOKEN}', '{Resource.USER}'"
# SQL expression of each filter; the keys are the names of the query parameters.
FIELDS = {
    "id": "l.id::text",
    "audit_log_id": "l.id::text",
    # Queries are limited to one account.
    "account_name": "(SELECT a.name FROM accounts a WHERE a.id = $1)",
    "action_result": "l.result",
    "action_type": f"CASE l.action WHEN '{Action.READ}' THEN 'view' ELSE l.action END",
    "actor_context": f"CASE l.actor WHEN '{Actor.TOKEN}' THEN 'api_token' WHEN '{Actor.USER}' THEN 'api_key' END",
    "actor_email": "l.actor_email",
    "actor_id": f"replace(coalesce(l.user_id, nullif(l.actor_id, '{audit.NO_ACCOUNT}'))::text, '-', '')",
    "actor_ip_address": "host(l.address)",
    "actor_token_id": f"CASE l.actor WHEN '{Actor.TOKEN}' THEN replace(l.actor_id::text, '-', '') END",
    "actor_token_name": f"CASE l.actor WHEN '{Actor.TOKEN}' THEN l.actor_name END",
    "actor_type": (
        f"CASE WHEN l.user_id IS NOT NULL OR l.actor = '{Actor.USER}' THEN 'user' "
        f"WHEN l.actor = '{Actor.TOKEN}' THEN 'account' ELSE 'system' END"
    ),
    "raw_cf_ray_id": "nullif(l.request_id, '')",
    "raw_method": "l.method",
    "raw_status_code": "l.status::text",
    "raw_uri": "l.path",
    "resource_id": (
        f"CASE WHEN l.resource_type IN ({_HEX}) THEN replace(l.resource_id::text, '-', '') ELSE l.resource_id::text END"
    ),
    "resource_product": f"CASE l.resource_type {_PRODUCT_CASES} ELSE l.resource_type || 's' END",
    "resource_scope": (
        f"CASE WHEN l.zone_id IS NOT NULL THEN 'zones' WHEN l.resource_type = '{Resource.USER}' THEN 'user' "
        "ELSE 'accounts' END"
    ),
    "resource_type": "l.resource_type",
    "zone_id": "replace(l.zone_id::text, '-', '')",
    "zone_name": "z.name",
}
_COMPUTED = (
    *("account_name", "action_type", "actor_id", "actor_type", "actor_context"),
    *("resource_id", "resource_product", "resource_scope"),
)
_ENTRY = (
    "l.id, l.at, l.account_id, l.result, l.count, l.actor, l.actor_email, l.actor_name, l.request_id, l.method, "
    "l.path, l.status, l.user_agent, l.resource_type, l.zone_id, z.name AS zone_name, host(l.address) AS address, "
    f"{FIELDS['actor_token_id']} AS token_id, {', '.join(f'{FIELDS[name]} AS {name}' for name in _COMPUTED)}"
)
_BEYOND = {Direction.ASC: (">", ">="), Direction.DESC: ("<", "<=")}


def _statement(query: Query) -> tuple[str, list[object]]:
    """The SELECT and its parameters from $5 on; only expressions of FIELDS become part of the SQL."""
    conditions, values = [], list[object]()
    beyond, bound = _BEYOND[query.direction]
    if query.after:
        # The first comparison is redundant, but can use the index.
        conditions.append(f"l.at {bound} $5 AND (l.at, l.id) {beyond} ($5, $6)")
        values += query.after
    for field, filter_ in query.filters.items():
        if filter_.only is not None:
            values.append(list(filter_.only))
            conditions.append(f"{FIELDS[field]} = ANY(${len(values) + 4}::text[])")
        if filter_.none_of:
            values.append(list(filter_.none_of))
            conditions.append(f"coalesce({FIELDS[field]} <> ALL(${len(values) + 4}::text[]), true)")
    sql = f"""
SELECT {_ENTRY} FROM audit_log l
LEFT JOIN zones z ON z.account_id = l.account_id AND z.id = l.zone_id
WHERE {" AND ".join(["l.account_id = $1 AND l.at >= $2 AND l.at < $3", *conditions])}
ORDER BY l.at {query.direction}, l.id {query.direction} LIMIT $4
"""
    return sql, values


async def list_(db: Database, scope: Scope, query: Query) -> Page:
    """One page of the audit log of an account."""
    sql, values = _statement(query)
    async with db.search(scope.account_id) if query.filters else contextlib.nullcontext():
        rows = await db.fetch(sql, scope.account_id, query.since, query.before, query.limit + 1, *values)
    items = tuple(msgspec.convert(dict(row), Entry) for row in rows[: query.limit])
    return Page(items, _cursor(items[-1]) if len(rows) > query.limit else None)


_SOURCE = f"SELECT l.resource_type, {FIELDS['resource_id']} AS id FROM audit_log l WHERE account_id = $1 AND id = $2"


async def history(db: Database, scope: Scope, entry_id: UUID, query: Query) -> Page | None:
    """One page of what happened to the resource of an entry; None if the entry is not in this log."""
    source = await db.fetchrow(_SOURCE, scope.account_id, entry_id)
    if source is None:
        return None
    filters = {"resource_type": Filter((source["resource_type"],)), "resource_id": Filter((source["id"],))}
    return await list_(db, scope, msgspec.structs.replace(query, filters=filters))


_CURSOR = struct.Struct(">q16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _cursor(entry: Entry) -> str:
    packed = _CURSOR.pack((entry.at - _EPOCH) // _MICROSECOND, entry.id.bytes)
    return base64.urlsafe_b64encode(packed).decode("ascii")


def position(cursor: str) -> tuple[datetime, UUID] | None:
    """The position in a cursor of `list_`; None if it is invalid."""
    try:
        microseconds, entry_id = _CURSOR.unpack(base64.b64decode(cursor, b"-_", validate=True))
        return _EPOCH + microseconds * _MICROSECOND, UUID(bytes=entry_id)
    except (ValueError, binascii.Error, struct.error, OverflowError):
        return None


async def latest(db: Database, account_id: UUID, since: datetime, limit: int) -> tuple[Entry, ...]:
    """The newest entries of an account, or of NO_ACCOUNT, newest first; for the operator."""
    return (await list_(db, Scope(account_id), Query(since, datetime.now(UTC) + timedelta(days=1), limit))).items


# In one account, which has the index.
_PRUNE = oldest("audit_log", "at", "at < $2", "$3", account="$1")
_NEXT_ACCOUNT = "SELECT account_id FROM audit_log WHERE account_id > $1 ORDER BY account_id LIMIT 1"


async def prune(db: Database, caller: Caller, before: datetime) -> int:
    """Delete entries before a time, in batches that are each audited; returns the number of deleted entries."""
    total = 0
    # The smallest id there is.
    reached: UUID | None = audit.NO_ACCOUNT
    while reached:
        count, reached = await db.transaction(partial(_prune, caller, before, reached))
        total += count
    return total


async def _prune(caller: Caller, before: datetime, account_id: UUID, connection: Connection) -> tuple[int, UUID | None]:
    """One batch, from this account on; returns the number of deleted entries, and the account to go on with."""
    count = 0
    reached: UUID | None = account_id
    while reached and count < AT_ONCE:
        count += deleted(await connection.execute(_PRUNE, reached, before, AT_ONCE - count))
        if count < AT_ONCE:
            reached = await connection.fetchval(_NEXT_ACCOUNT, reached)
    if count:
        ids = (audit.NO_ACCOUNT, audit.NO_ACCOUNT, None)
        await audit.record(connection, caller, Action.PRUNE, Resource.AUDIT_LOG, ids)
    return count, reached
