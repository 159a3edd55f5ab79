"""What all changes of accounts, zones, users and tokens share: validation errors, and the audit entry of each."""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import asyncpg

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.errors import Invalid, Problem, Rule, quoted
from keystead.store.database import Connection, Database
from keystead.x509.subjects import FORBIDDEN


class Entry(NamedTuple):
    """An audit entry of a change."""

    action: audit.Action
    resource: audit.Resource
    account_id: UUID
    resource_id: UUID
    zone_id: UUID | None = None


async def record(connection: Connection, caller: Caller, entry: Entry) -> None:
    """Audit a change in its transaction."""
    await audit.record(connection, caller, entry.action, entry.resource, entry[2:])


async def change(db: Database, caller: Caller, entry: Entry, sql: str, *values: object) -> asyncpg.Record | None:
    """Run a statement that returns the changed row, and audit it; None, and no entry, if it changed nothing."""

    async def work(connection: Connection) -> asyncpg.Record | None:
        row = await connection.fetchrow(sql, *values)
        if row is not None:
            await record(connection, caller, entry)
        return row

    return await db.transaction(work)


def name_problems(name: str, most: int) -> tuple[Problem, ...]:
    """The problem of a display name that is empty, too long or unprintable."""
    if name.strip() and len(name) <= most and not FORBIDDEN.search(name):
        return ()
    text = f"name {quoted(name)} must have 1 to {most} characters, not only spaces, and no control characters."
    return (Problem(Rule.TEXT, "name", text),)


def require_valid(problems: Iterable[Problem], malformed: tuple[Problem, ...] = ()) -> None:
    """Raise Invalid if there are problems.

    `malformed` are those that the dialect found while parsing: their fields have no others, and if the body is not an
    object, which is a problem of the field "", no field has.
    """
    fields = {problem.field for problem in malformed}
    found = (*malformed, *(p for p in problems if fields.isdisjoint({"", p.field})))
    if found:
        raise Invalid(found)
