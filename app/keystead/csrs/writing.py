"""The statements that create and delete CSRs with their keys, counts and audit rows.

PostgreSQL takes one statement for all of it. Citus would carry that through its coordinator, so it gets statements of
one transaction, each of which goes to one node (docs/decisions/0047-creates-on-citus.md).
"""

import random
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import asyncpg

from keystead.audit import record as audit
from keystead.caller import Caller, Scope
from keystead.custody import keyring
from keystead.store import idempotency, locks
from keystead.store.bundles import Made, Row
from keystead.store.database import Connection, Database, encoded, rows
from keystead.store.locks import Lock

_INPUTS = {
    "id": "uuid",
    **dict.fromkeys(("name", "description", "country", "state", "locality", "organization", "common_name"), "text"),
    "organizational_unit": "text",
    "sans": "text[]",
    "csr": "text",
}
_NEW = {**keyring.COLUMNS, **_INPUTS, **audit.COLUMNS, **idempotency.COLUMNS}

# A row if the account or zone exists; locked, so that it cannot be deleted before we commit.
_LIVE = {False: f"{locks.ACCOUNT} {Lock.KEEP}", True: f"{locks.ZONE} {Lock.KEEP}"}


# A row of the count that no other writer holds, or else a new one: writers of a single row would wait for each other's
# commit (docs/decisions/0021-kept-counts.md). $1 is the account.
_ADD_TO_COUNT = """
    INSERT INTO csr_counts AS known (account_id, scope_id, slot, count)
    SELECT account_id, scope_id, coalesce(
        (SELECT slot FROM csr_counts AS free WHERE free.account_id = $1 AND free.scope_id = csr.scope_id
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
        (SELECT coalesce(max(slot) + 1, 0) FROM csr_counts AS held
            WHERE held.account_id = $1 AND held.scope_id = csr.scope_id)
    ), {sign}count(*) FROM csr GROUP BY account_id, scope_id
    ON CONFLICT (account_id, scope_id, slot) DO UPDATE SET count = known.count + excluded.count
"""


def _create(*, in_zone: bool) -> str:
    inputs = ", ".join(_INPUTS)
    return f"""
WITH live AS ({_LIVE[in_zone]}),
new AS (SELECT $1::uuid AS account_id, $2::uuid AS zone_id, new.* FROM live, {rows("$3", _NEW)}),
claim AS ({idempotency.claim("new")}),
made AS (SELECT * FROM new WHERE claim_digest IS NULL OR id IN (SELECT resource_id FROM claim)),
key AS ({keyring.insert_keys("made")}),
csr AS (
    INSERT INTO custom_csrs (account_id, zone_id, key_id, key_type, {inputs})
    SELECT account_id, zone_id, key_id, key_type, {inputs} FROM made
    RETURNING account_id, id, scope_id, created_at
),
counted AS ({_ADD_TO_COUNT.format(sign="")}),
audit AS ({audit.insert_each("made")})
SELECT id, created_at FROM csr
"""


_CREATES = {zone: _create(in_zone=zone) for zone in (False, True)}


_DELETE = f"""
WITH csr AS (
    DELETE FROM custom_csrs WHERE account_id = $1 AND scope_id = $2 AND id = $3
    RETURNING account_id, id, scope_id, zone_id, key_id
),
key AS ({keyring.delete_key("csr")}),
counted AS ({_ADD_TO_COUNT.format(sign="-")}),
audit AS ({audit.insert(4, "csr")})
SELECT id FROM csr
"""


# The same, statement by statement. What is made, from $3, comes first; none of these looks for a free row of the count,
# but takes any one of so many.
_SLOTS = 16
_ID, _CLAIM = len(keyring.COLUMNS), list(_NEW).index("claim_digest")


def _from_made(sql: str) -> str:
    return f"WITH made AS (SELECT $1::uuid AS account_id, $2::uuid AS zone_id, new.* FROM {rows('$3', _NEW)}) {sql}"


_APART_CLAIM = _from_made(idempotency.claim("made"))
_APART_KEYS = _from_made(keyring.insert_keys("made"))
_APART_CSRS = _from_made(f"""
INSERT INTO custom_csrs (account_id, zone_id, key_id, key_type, {", ".join(_INPUTS)})
SELECT account_id, zone_id, key_id, key_type, {", ".join(_INPUTS)} FROM made RETURNING id, created_at
""")
_APART_AUDIT = _from_made(audit.insert_each("made"))
_APART_COUNT = """
INSERT INTO csr_counts AS known (account_id, scope_id, slot, count) VALUES ($1, $2, $3, $4)
ON CONFLICT (account_id, scope_id, slot) DO UPDATE SET count = known.count + excluded.count
"""


async def insert(db: Database, scope: Scope, new: Sequence[Row]) -> list[Made]:
    """Insert CSRs in one transaction; None for one whose Idempotency-Key, account or zone was not to be had."""
    if db.distributed:
        return await db.transaction(partial(_insert_apart, db, scope, new))
    return _each(new, await db.fetch(_CREATES[scope.zone_id is not None], *_values(scope, new)))


async def insert_in(db: Database, connection: Connection, scope: Scope, new: Sequence[Row]) -> list[Made]:
    """As `insert`, in the transaction of this connection of `db`."""
    if db.distributed:
        return await _insert_apart(db, scope, new, connection)
    return _each(new, await connection.fetch(_CREATES[scope.zone_id is not None], *_values(scope, new)))


def _values(scope: Scope, new: Sequence[Row]) -> Row:
    return scope.account_id, scope.zone_id, encoded(_NEW, new)


def _each(new: Sequence[Row], made: Sequence[asyncpg.Record]) -> list[Made]:
    by_id = {row["id"]: row for row in made}
    return [by_id.get(row[_ID]) for row in new]


async def _insert_apart(db: Database, scope: Scope, new: Sequence[Row], connection: Connection) -> list[Made]:
    if not await locks.lock(db, connection, scope, Lock.KEEP):
        return [None] * len(new)
    made = new
    if any(row[_CLAIM] for row in new):
        claimed = {row["resource_id"] for row in await connection.fetch(_APART_CLAIM, *_values(scope, new))}
        made = [row for row in new if row[_CLAIM] is None or row[_ID] in claimed]
    if not made:
        return [None] * len(new)
    values = _values(scope, made)
    await connection.execute(_APART_KEYS, *values)
    csrs = await connection.fetch(_APART_CSRS, *values)
    await _count(connection, scope, len(made))
    await connection.execute(_APART_AUDIT, *values)
    return _each(new, csrs)


async def _count(connection: Connection, scope: Scope, more: int) -> None:
    slot = random.randrange(_SLOTS)  # noqa: S311 - no secret
    await connection.execute(_APART_COUNT, scope.account_id, scope.id, slot, more)


_APART_DELETE = """
DELETE FROM custom_csrs WHERE account_id = $1 AND scope_id = $2 AND id = $3 RETURNING zone_id, key_id
"""
_APART_DELETE_KEY = f"WITH gone AS (SELECT $2::uuid AS key_id) {keyring.delete_key('gone')}"


async def delete(db: Database, caller: Caller, scope: Scope, csr_id: UUID) -> bool:
    """Delete a CSR with its key; False if there is none."""
    if db.distributed:
        return await db.transaction(partial(_delete_apart, caller, scope, csr_id))
    values = audit.values(caller, audit.Action.DELETE, audit.Resource.CUSTOM_CSR)
    return await db.fetchrow(_DELETE, scope.account_id, scope.id, csr_id, *values) is not None


async def _delete_apart(caller: Caller, scope: Scope, csr_id: UUID, connection: Connection) -> bool:
    row = await connection.fetchrow(_APART_DELETE, scope.account_id, scope.id, csr_id)
    if row is None:
        return False
    await connection.execute(_APART_DELETE_KEY, scope.account_id, row["key_id"])
    await _count(connection, scope, -1)
    ids = (scope.account_id, csr_id, row["zone_id"])
    await audit.record(connection, caller, audit.Action.DELETE, audit.Resource.CUSTOM_CSR, ids)
    return True
