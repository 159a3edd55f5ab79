"""Zones: the domains of an account, each with its own custom CSRs and certificates. Every change is audited."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Access, Actor, Area, Caller, Scope
from keystead.errors import Clash, Conflict, Denial, Forbidden, Limit, LimitReached, NotFound, Problem, Rule, quoted
from keystead.identity import changes, permissions
from keystead.identity.accounts import Account
from keystead.identity.changes import Entry
from keystead.ids import any_uuid
from keystead.store import idempotency, paging
from keystead.store.database import Connection, Database
from keystead.store.idempotency import Idempotency
from keystead.store.locks import Lock, lock
from keystead.store.paging import Direction, NameFilter, Page, Part
from keystead.x509 import names
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import FORBIDDEN


class ZoneType(StrEnum):
    """Cloudflare's zone types; stored and returned, without effect here."""

    FULL = "full"
    PARTIAL = "partial"
    SECONDARY = "secondary"
    INTERNAL = "internal"


class Zone(msgspec.Struct, frozen=True):
    """`name` is in lower case with A-labels; `sent_name` is the name in Unicode as it was sent, if it was."""

    id: UUID
    account_id: UUID
    account_name: str
    name: str
    type: ZoneType
    paused: bool
    csrs_enabled: bool
    csr_quota: int | None
    certificate_quota: int | None
    created_at: datetime
    modified_at: datetime
    sent_name: str | None
    vanity_name_servers: tuple[str, ...]

    @property
    def shown_name(self) -> str:
        return self.sent_name or self.name


MAX_ZONES = 10_000
MAX_NAME_SERVERS = 20
_COLUMNS = (
    "id, account_id, account_name, name, type, paused, csrs_enabled, csr_quota, certificate_quota, created_at, "
    "modified_at, sent_name, vanity_name_servers"
)
_ACCOUNT_NAME = "(SELECT a.name FROM accounts a WHERE a.id = zones.account_id) AS account_name"
_ZONE = _COLUMNS.replace("account_name", _ACCOUNT_NAME)
_OWN_COLUMNS = _COLUMNS.replace("account_name, ", "")


def _changed(change: str) -> str:
    return f"WITH changed AS ({change} RETURNING {_OWN_COLUMNS}) SELECT {_ZONE} FROM changed AS zones"


_INSERT = _changed("""
INSERT INTO zones (id, account_id, name, sent_name, type, paused, vanity_name_servers)
VALUES ($1, $2, $3, $4, $5, $6, $7)
""")
# Recreating a zone must not evade the operator's settings: a new zone gets the stricter of its account's switch and
# quotas and those of the last deleted zone of this name. The alias is for Citus, which loses the table's name here.
_INSERT_FOR_TENANT = _changed("""
INSERT INTO zones AS made (id, account_id, name, sent_name, type, paused, vanity_name_servers, csrs_enabled, csr_quota,
    certificate_quota)
SELECT $1, a.id, $3, $4, $5, $6, $7, a.csrs_enabled AND coalesce(z.csrs_enabled, true),
    least(a.csr_quota, z.csr_quota), z.certificate_quota
FROM accounts a LEFT JOIN LATERAL (
    SELECT csrs_enabled, csr_quota, certificate_quota FROM zones
    WHERE account_id = a.id AND name = $3 AND deleted_at IS NOT NULL ORDER BY deleted_at DESC LIMIT 1
) z ON true
WHERE a.id = $2
""")
_COUNT = "SELECT count(*) FROM zones WHERE account_id = $1 AND deleted_at IS NULL"


class Draft(msgspec.Struct, frozen=True):
    """A requested zone; `malformed` are the problems that the dialect found while parsing."""

    account_id: UUID | None
    name: str
    type: ZoneType = ZoneType.FULL
    paused: bool = False
    vanity_name_servers: tuple[str, ...] = ()
    malformed: tuple[Problem, ...] = ()


async def create(db: Database, caller: Caller, draft: Draft, once: Idempotency | None = None) -> Zone:
    """Create a zone; the caller must have write access to all zones of the account.

    Raises Forbidden, Invalid, LimitReached, and Conflict if the account has the name already or the key of `once` was
    used with another body.
    """
    account_id = draft.account_id
    if account_id and not caller.may(Area.ZONE, Access.WRITE, Scope(account_id, uuid4())):
        await audit.denied(db, caller, audit.Resource.ACCOUNT, account_id, Scope(account_id))
        raise Forbidden(Denial.RESOURCE)
    created = await idempotency.find(db, caller, audit.NO_ACCOUNT, once) if once else None
    if created and account_id:
        scope = Scope(account_id, created)
        if not caller.may(Area.ZONE, Access.READ, scope):
            await audit.denied(db, caller, audit.Resource.ZONE, created, scope)
            raise Forbidden(Denial.RESOURCE)
        return await get(db, scope)
    found = (*name_problems(draft.name), *name_server_problems(draft.vanity_name_servers))
    changes.require_valid(found, draft.malformed)

    async def work(connection: Connection) -> Zone | None:
        zone_id = uuid4()
        if once and not await idempotency.claimed(connection, caller, audit.NO_ACCOUNT, once, zone_id):
            return None
        return await _insert(db, connection, caller, zone_id, draft)

    # None: another request with this key has created it meanwhile.
    return await db.transaction(work) or await create(db, caller, draft, once)


async def create_in(db: Database, caller: Caller, account: Account, name: str) -> Zone:
    """Create a zone, for the operator; raises Invalid for a bad name, and Conflict if the account has it."""
    changes.require_valid(name_problems(name))
    return await db.transaction(lambda c: _insert(db, c, caller, uuid4(), Draft(account.id, name)))


def name_problems(name: str) -> tuple[Problem, ...]:
    """The problem of a zone's name that is no hostname."""
    looked_up = lookup_name(name)
    broken = names.broken(looked_up, NamePolicy.PRIVATE, suggest=False)
    if not broken and "*" not in name and max(len(looked_up), len(name)) <= names.DNS_MAX_NAME:
        return ()
    text = broken[1] if broken and looked_up.isascii() else f"{quoted(name)} cannot name a zone."
    return (Problem(Rule.TEXT, "name", text),)


def lookup_name(name: str) -> str:
    """The form of a name by which a zone is found and there once: in lower case, with A-labels."""
    if name.isascii() or len(name) > names.DNS_MAX_NAME or FORBIDDEN.search(name):
        return name.lower()
    return names.exact_a_label(name) or name.lower()


def name_server_problems(servers: Sequence[str]) -> tuple[Problem, ...]:
    """The problems of name servers that are no hostnames."""
    return tuple(
        Problem(Rule.TEXT, "vanity_name_servers", f"{quoted(server)} cannot be the name of a server.", index)
        for index, server in enumerate(servers)
        if names.broken(server, NamePolicy.PRIVATE, suggest=False) or "*" in server or len(server) > names.DNS_MAX_NAME
    )


async def _insert(db: Database, connection: Connection, caller: Caller, zone_id: UUID, draft: Draft) -> Zone:
    account_id = draft.account_id or audit.NO_ACCOUNT
    # Serialises creators in one account, so that each counts the zones of those before it.
    if not await lock(db, connection, Scope(account_id), Lock.ALONE):
        raise Forbidden(Denial.RESOURCE)
    if await connection.fetchval(_COUNT, account_id) >= MAX_ZONES:
        raise LimitReached(Limit.LIST, f"An account can have {MAX_ZONES} zones; delete one first.")
    insert = _INSERT if caller.actor is Actor.OPERATOR else _INSERT_FOR_TENANT
    sent_name = None if draft.name.isascii() else draft.name
    values = (lookup_name(draft.name), sent_name, draft.type, draft.paused, list(draft.vanity_name_servers))
    zone = _zone(await connection.fetchrow(insert, zone_id, account_id, *values))
    await changes.record(connection, caller, _entry(audit.Action.CREATE, zone.account_id, zone.id))
    return zone


async def list_(db: Database, account: Account | None = None) -> tuple[Zone, ...]:
    """All zones, or those of one account, for the operator."""
    sql = f"SELECT {_ZONE} FROM zones WHERE deleted_at IS NULL AND ($1::uuid IS NULL OR account_id = $1) ORDER BY name"
    return tuple(_zone(row) for row in await db.fetch(sql, account.id if account else None))


_FIND = f"""
SELECT {_ZONE} FROM zones
WHERE deleted_at IS NULL AND (id = $1 OR name = $2) AND ($3::uuid IS NULL OR account_id = $3)
ORDER BY id = $1 DESC NULLS LAST
"""


async def find(db: Database, word: str, account: Account | None = None) -> Zone:
    """A zone by id or name, for the operator; raises NotFound, and Conflict if several accounts have the name."""
    zone_id = any_uuid(word)
    rows = await db.fetch(_FIND, zone_id, lookup_name(word), account.id if account else None)
    if not rows:
        where = f" in the account {account.slug}" if account else ""
        raise NotFound(f"there is no zone {quoted(word)}{where}; `keystead zone list` shows them")
    # A zone may be named like the id of another.
    if len(rows) > 1 and rows[0]["id"] != zone_id:
        raise Conflict(f"{len(rows)} accounts have a zone {quoted(word)}; name it by its id")
    return _zone(rows[0])


_GET = f"SELECT {_ZONE} FROM zones WHERE account_id = $1 AND id = $2 AND deleted_at IS NULL"


async def get(db: Database, scope: Scope) -> Zone:
    """The zone of this scope; raises NotFound if it was deleted."""
    return _found(await db.fetchrow(_GET, scope.account_id, scope.id), scope)


_OWNERS = "SELECT id, account_id FROM zones WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL"


async def owners(db: Database, zone_ids: set[UUID]) -> dict[UUID, UUID]:
    """The account of each of these zones that exists, also of other tenants; for validation only, never shown."""
    if not zone_ids:
        return {}
    return {row["id"]: row["account_id"] for row in await db.fetch(_OWNERS, list(zone_ids))}


class Query(msgspec.Struct, frozen=True):
    """A page of the zones that match all filters, or with `any_of` one of them. `page` counts from 1."""

    page: int
    per_page: int
    name: NameFilter | None = None
    account_id: UUID | None = None
    account_name: NameFilter | None = None
    types: tuple[ZoneType, ...] | None = None
    status: str | None = None
    any_of: bool = False
    order: str = "name"
    direction: Direction = Direction.ASC


# OFFSET 0 makes PostgreSQL look up each account separately; other plans scan all zones, or the caller's once for each
# account. $2 are the zones that policies name, $3 those of them that may be read.
_VISIBLE = """
FROM (
    SELECT z.*, o.name AS account_name FROM unnest($1::uuid[]) AS all_of (id) JOIN accounts o ON o.id = all_of.id
    CROSS JOIN LATERAL (SELECT * FROM zones WHERE account_id = all_of.id AND {conditions} OFFSET 0) z
    WHERE NOT EXISTS (SELECT FROM unnest($2::uuid[]) AS named (id) WHERE named.id = z.id)
    UNION ALL
    SELECT z.*, o.name AS account_name FROM unnest($3::uuid[]) AS readable (id)
    CROSS JOIN LATERAL (SELECT * FROM zones WHERE id = readable.id AND {conditions} OFFSET 0) z
    JOIN accounts o ON o.id = z.account_id
) AS zones
"""
# The filters that are no names; every zone is active.
_FILTERS = {"account_id": "account_id = ${}", "types": "type = ANY(${}::text[])", "status": "${}::text = 'active'"}
ORDERS: Mapping[str, str] = {"name": "name", "account.id": "account_id", "account.name": "account_name"}
# With more accounts than this, or all zones of each to compare, a list runs under the limits of Database.search.
_FEW_ACCOUNTS = 3


def _statement(query: Query) -> tuple[str, list[object]]:
    """The FROM and WHERE clauses, and the values of the filters."""
    used = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
    conditions = [_FILTERS[name].format(number) for number, name in enumerate(used, 4)]
    values: list[object] = list(used.values())
    for column, wanted in (("name", query.name), ("account_name", query.account_name)):
        if wanted is not None:
            values.append(wanted.value)
            condition = wanted.condition(column, number := len(values) + 3)
            if column == "name" and wanted.part is not Part.EQUAL:
                condition = f"({condition} OR {wanted.condition('sent_name', number)})"
            conditions.append(condition)
    if query.any_of:
        inside, outside = [], [" OR ".join(conditions)] if conditions else []
    else:
        # Only the filters in use are part of the statement, so that it can use an index.
        outside = conditions[-1:] if query.account_name else []
        inside = conditions[: len(conditions) - len(outside)]
    visible = _VISIBLE.format(conditions=" AND ".join(["deleted_at IS NULL", *inside]))
    return visible + (f"WHERE {outside[0]}" if outside else ""), values


async def list_page(db: Database, caller: Caller, query: Query) -> Page[Zone]:
    """A page of the zones that the caller may read."""
    # Zones that no policy names have the same rights within an account; named ones are checked one by one.
    named = {target.id for policy in caller.policies or () for target in policy.targets if target.id}
    known = await owners(db, named)
    rights = permissions.compiled(caller)

    def may_read(scope: Scope) -> bool:
        return (Area.ZONE, Access.READ) in permissions.of(caller, rights, scope)

    readable = [zone_id for zone_id, account_id in known.items() if may_read(Scope(account_id, zone_id))]
    accessible = [account_id for account_id in caller.reach if may_read(Scope(account_id, uuid4()))]
    visible, filters = _statement(query)
    values = (accessible, list(known), readable, *filters)
    order = f"ORDER BY {ORDERS[query.order]} {query.direction}, name, id"
    page = f"LIMIT ${len(values) + 1} OFFSET ${len(values) + 2}"
    offset = paging.offset(query.page, query.per_page)
    whole = query.any_of or (query.name is not None and query.name.part is not Part.EQUAL)
    async with db.search(caller.id) if whole or len(accessible) > _FEW_ACCOUNTS else contextlib.nullcontext():
        rows = await db.fetch(f"SELECT {_COLUMNS} {visible} {order} {page}", *values, query.per_page, offset)
        total = await db.fetchrow(f"SELECT count(*) AS total {visible}", *values)
    return Page(tuple(_zone(row) for row in rows), total["total"] if total else 0)


class Settings(msgspec.Struct, frozen=True):
    """Changes to a zone through the API; None leaves a field as it is."""

    type: ZoneType | None = None
    paused: bool | None = None
    vanity_name_servers: tuple[str, ...] | None = None


_EDIT = _changed("""
UPDATE zones SET type = coalesce($3, type), paused = coalesce($4, paused),
    vanity_name_servers = coalesce($5, vanity_name_servers), modified_at = now()
WHERE account_id = $1 AND id = $2 AND deleted_at IS NULL
    AND (type <> coalesce($3, type) OR paused <> coalesce($4, paused)
        OR vanity_name_servers <> coalesce($5, vanity_name_servers))
""")


async def edit(
    db: Database, caller: Caller, scope: Scope, settings: Settings, malformed: tuple[Problem, ...] = ()
) -> Zone:
    """Change a zone's settings; raises Invalid, and NotFound if it was deleted. `malformed` as in Draft."""
    changes.require_valid(name_server_problems(settings.vanity_name_servers or ()), malformed)
    entry = _entry(audit.Action.UPDATE, scope.account_id, scope.id)
    values = msgspec.structs.astuple(settings)
    row = await changes.change(db, caller, entry, _EDIT, scope.account_id, scope.id, *values)
    return _zone(row) if row else await get(db, scope)


class Changes(msgspec.Struct, frozen=True):
    """An operator's changes to a zone; None leaves a field as it is, a quota of -1 removes the limit."""

    csrs_enabled: bool | None = None
    csr_quota: int | None = None
    certificate_quota: int | None = None
    paused: bool | None = None
    type: ZoneType | None = None


_SET = _changed("""
UPDATE zones SET csrs_enabled = coalesce($2, csrs_enabled),
    csr_quota = CASE WHEN $3::int IS NULL THEN csr_quota WHEN $3 < 0 THEN NULL ELSE $3 END,
    certificate_quota = CASE WHEN $4::int IS NULL THEN certificate_quota WHEN $4 < 0 THEN NULL ELSE $4 END,
    paused = coalesce($5, paused), type = coalesce($6, type), modified_at = now()
WHERE id = $1
""")


async def set_(db: Database, caller: Caller, zone: Zone, wanted: Changes) -> Zone:
    """Change a zone, for the operator; raises NotFound."""
    entry, values = _entry(audit.Action.UPDATE, zone.account_id, zone.id), msgspec.structs.astuple(wanted)
    return _zone(await changes.change(db, caller, entry, _SET, zone.id, *values))


_HELD = """
SELECT (SELECT count(*) FROM custom_csrs WHERE account_id = $1 AND scope_id = $2) AS csrs,
       (SELECT count(*) FROM custom_certificates WHERE account_id = $1 AND zone_id = $2) AS certificates
"""


async def delete(db: Database, caller: Caller, scope: Scope) -> None:
    """Delete a zone without CSRs and certificates.

    Raises Conflict with the counts if there are any, and NotFound if it was deleted.
    """

    async def work(connection: Connection) -> None:
        if not await lock(db, connection, scope, Lock.END):
            raise scope.gone()
        held = await connection.fetchrow(_HELD, scope.account_id, scope.id)
        if held is not None and any(held.values()):
            zone = _found(await connection.fetchrow(_GET, scope.account_id, scope.id), scope)
            counts = f"{held['csrs']} custom CSRs and {held['certificates']} certificates"
            raise Conflict(f"the zone {zone.name} holds {counts}", Clash.HOLDS)
        await connection.execute("UPDATE zones SET deleted_at = now() WHERE id = $1", scope.id)
        delete_counts = "DELETE FROM csr_counts WHERE account_id = $1 AND scope_id = $2"
        await connection.execute(delete_counts, scope.account_id, scope.id)
        await changes.record(connection, caller, _entry(audit.Action.DELETE, scope.account_id, scope.id))

    await db.transaction(work)


def _entry(action: audit.Action, account_id: UUID, zone_id: UUID) -> Entry:
    return Entry(action, audit.Resource.ZONE, account_id, zone_id, zone_id)


def _found(row: asyncpg.Record | None, scope: Scope) -> Zone:
    if row is None:
        raise scope.gone()
    return _zone(row)


def _zone(row: asyncpg.Record | None) -> Zone:
    return msgspec.convert(dict(row or ()), Zone)
