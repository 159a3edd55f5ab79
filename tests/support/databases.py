"""Databases for tests: one is emptied and used again, with the connections that are open to it.

A new backend knows nothing of the catalogue, and learning it costs PostgreSQL more than most tests ask of it.
"""

import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4
from weakref import WeakSet

import asyncpg
import msgspec

from keystead import bounds
from keystead.server import postgres
from keystead.store import database as db

_CATALOGUES = {
    **dict.fromkeys(("class", "constraint", "proc", "trigger", "type"), "oid"),
    "attribute": "attrelid",
    "description": "objoid",
    "index": "indexrelid",
}
_OF_USERS = 16384
# Every change of the schema leaves younger rows in the catalogue than the template had, or fewer.
_YOUNGEST = ", ".join(
    f"(SELECT ROW(count(*), max(xmin::text::bigint)) FROM pg_{name} WHERE {key} >= {_OF_USERS})"
    for name, key in _CATALOGUES.items()
)
_SCHEMA = f"""
SELECT ROW(d.datacl, d.datconnlimit, (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT count(*) FROM pg_statistic WHERE starelid >= {_OF_USERS}),
           (SELECT array_agg(v::text) FROM schema_version v),
           (SELECT ROW(count(*), max(xmin::text::bigint)) FROM pg_namespace), {_YOUNGEST})::text
FROM pg_database d WHERE datname = current_database()
"""
_OTHERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid <> ALL ($1::int[])
  AND backend_type = 'client backend'
"""
_TABLES = """
SELECT relname, pg_total_relation_size(oid) AS size, pg_relation_size(oid) > 0 AS filled FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'schema_version'
"""
_SMALL = 4_000_000


class _Lent(msgspec.Struct, eq=False):
    """A database that is as its template was; `sweeper` empties it, and `idle` are those of Databases that ended."""

    name: str
    url: str
    sweeper: db.Connection
    usual: WeakSet[db.Connection]
    idle: list[db.Connection]

    def close(self) -> None:
        for connection in (self.sweeper, *self.idle):
            connection.terminate()


# Of each cluster by its address: databases that nobody uses, and what the schema of its template is.
_FREE: dict[str, list[_Lent]] = {}
_BLANK: dict[str, str] = {}
# Those that somebody uses, by their address.
_IN_USE: dict[str, _Lent] = {}


@contextlib.asynccontextmanager
async def connected(url: str | None) -> AsyncIterator[db.Connection]:
    connection: db.Connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def new_database(cluster: postgres.Cluster, template: str | None = None) -> AsyncIterator[str]:
    """A database for one user; if only rows were written to it, it is emptied and used again, which is much cheaper.

    One whose template is named is always new, as one for an event loop of its own has to be.
    """
    if template is not None:
        name = await _create(cluster, template)
        yield cluster.address(name)
        await _drop(cluster, name)
        return
    free = _FREE.setdefault(cluster.dsn, [])
    lent = free.pop() if free else await _blank(cluster)
    _IN_USE[lent.url] = lent
    yield lent.url
    del _IN_USE[lent.url]
    emptied = False
    # A test may have cut all connections.
    with contextlib.suppress(*db.UNAVAILABLE):
        emptied = await _empty(lent, _BLANK[cluster.dsn])
    if emptied:
        free.append(lent)
    else:
        lent.close()
        await _drop(cluster, lent.name)


async def _blank(cluster: postgres.Cluster) -> _Lent:
    name = await _create(cluster, "blank")
    url = cluster.address(name)
    lent = _Lent(name, url, await asyncpg.connect(url), WeakSet(), [])
    if cluster.dsn not in _BLANK:
        _BLANK[cluster.dsn] = await lent.sweeper.fetchval(_SCHEMA)
    return lent


async def _create(cluster: postgres.Cluster, template: str) -> str:
    name = f"t_{uuid4().hex}"
    async with connected(cluster.dsn) as admin:
        # Copying files is quick only where nothing is forced to disk.
        strategy = "FILE_COPY" if await admin.fetchval("SHOW fsync") == "off" else "WAL_LOG"
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
    return name


async def _drop(cluster: postgres.Cluster, name: str) -> None:
    async with connected(cluster.dsn) as admin:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _empty(lent: _Lent, blank: str) -> bool:
    """Delete all rows; false if the database is then not yet what its template is, or holds too much."""
    sweeper = lent.sweeper
    await sweeper.execute(_OTHERS, [each.get_server_pid() for each in lent.idle])
    tables = await sweeper.fetch(_TABLES)
    if sum(table["size"] for table in tables) > _SMALL:
        return False
    deletes = "".join(f"DELETE FROM {table['relname']};" for table in tables)
    # No trigger may refuse it, and foreign keys need no order.
    await sweeper.execute(f"BEGIN; SET LOCAL session_replication_role = replica; {deletes} COMMIT")
    # Without the places of deleted rows, others come in the order in which they are written, as in a new database.
    if filled := ", ".join(table["relname"] for table in tables if table["filled"]):
        await sweeper.execute(f"VACUUM {filled}")
    return bool(await sweeper.fetchval(_SCHEMA) == blank)


def is_lent(url: str | None) -> bool:
    """Whether this was as its template is when its user got it."""
    return url in _IN_USE


class Kept(db.Database):
    """One whose connections are used again by the next of the same database."""

    async def close(self) -> None:
        await self._bundles.finish()
        if lent := _IN_USE.get(self._dsn):
            there = [each for each in self._idle if each and each in lent.usual and not each.is_closed()]
            good = [each for each in there if not each.is_in_transaction()]
            self._idle = [each for each in self._idle if each not in good]
            lent.idle.extend(good)
        await super().close()

    async def _connect(self) -> db.Connection:
        lent, usual = _IN_USE.get(self._dsn), _ways(self._statement_cache_size) == _USUAL
        while usual and lent and lent.idle:
            connection = lent.idle.pop()
            if not connection.is_closed():
                return connection
        connection = await super()._connect()
        if usual and lent:
            lent.usual.add(connection)
        return connection


def _ways(statement_cache_size: int = 100) -> tuple[object, ...]:
    """What a connection keeps of its beginning, which tests may change."""
    times = (bounds.STATEMENT_SECONDS, bounds.LOCK_SECONDS, bounds.IDLE_IN_TRANSACTION_SECONDS)
    return asyncpg.connect, statement_cache_size, *times


_USUAL = _ways()


async def copied(database: db.Database) -> str:
    """The statements that write all rows again into a database that is as empty as this one was."""
    statements = []
    for table in await database.fetch(_TABLES):
        name = table["relname"]
        found = await database.fetchrow(f"SELECT quote_nullable(json_agg(t)::text) AS all FROM {name} t")
        if found and found["all"] != "NULL":
            statements.append(
                f"INSERT INTO {name} SELECT * FROM json_populate_recordset(NULL::{name}, {found['all']});"
            )
    return f"BEGIN; SET LOCAL session_replication_role = replica; {' '.join(statements)} COMMIT"
