"""Schema version and migrations."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from importlib import resources

import asyncpg
import msgspec

from keystead import bounds
from keystead.errors import Misconfigured, Unavailable
from keystead.store import distribution
from keystead.store.address import readable
from keystead.store.database import DISTRIBUTED, UNAVAILABLE, Connection, Database, milliseconds

# That of release 0.1.0, the first one.
FIRST_VERSION = 10
# Arbitrary advisory lock id.
_MIGRATION_LOCK = 0x6B657973


class SchemaState(Enum):
    EMPTY = auto()
    OLDER = auto()
    CURRENT = auto()
    NEWER = auto()


class Migration(msgspec.Struct, frozen=True):
    version: int
    name: str
    sql: str


def migrations() -> tuple[Migration, ...]:
    """All migrations in order; `NNNN_name.sql` upgrades a database to version NNNN."""
    folder = resources.files("keystead.store.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(Migration(int(name[:4]), name, (folder / name).read_text("utf-8")) for name in names)


def version_of_this_program() -> int:
    """The schema version of this release."""
    return max((migration.version for migration in migrations()), default=FIRST_VERSION)


async def schema_state(connection: Connection) -> SchemaState:
    """Raises Misconfigured for a database that no release of Keystead made."""
    version = await _version(connection)
    if version == 0:
        return SchemaState.EMPTY
    expected = version_of_this_program()
    if version == expected:
        return SchemaState.CURRENT
    return SchemaState.OLDER if version < expected else SchemaState.NEWER


async def state_at(dsn: str) -> SchemaState:
    """The schema state of the database at `dsn`, over a new connection; raises Unavailable and Misconfigured."""
    connection = await _connect_once(dsn)
    try:
        return await schema_state(connection)
    finally:
        await connection.close()


async def _connect_once(dsn: str) -> Connection:
    try:
        with readable(dsn):
            return await asyncpg.connect(dsn, timeout=bounds.CONNECT_SECONDS)
    except UNAVAILABLE as error:
        raise Unavailable(f"the database cannot be reached: {error}") from None
    except asyncpg.PostgresError as error:
        raise Misconfigured(f"the database cannot be reached: {error}") from None


_FOREIGN_TABLES = (
    "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = to_regnamespace('public')"
)


async def _version(connection: Connection) -> int:
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        if await connection.fetchval(_FOREIGN_TABLES):
            raise Misconfigured("the database holds tables that are not Keystead's: give Keystead one of its own")
        return 0
    version = await connection.fetchval("SELECT max(version) FROM schema_version")
    if version is None:
        raise Misconfigured("the database says no schema version: it was restored without its rows; restore it whole")
    if version < FIRST_VERSION:
        text = f"the database has schema version {version}, from before release 0.1.0, and cannot be upgraded"
        raise Misconfigured(f"{text}: start with an empty database, and with a ring and a data folder of its own")
    return int(version)


async def migrate(dsn: str) -> list[str]:
    """Upgrade an empty or older database to this release's schema, in one transaction per migration.

    Returns the names of the applied migrations. Raises Misconfigured and Unavailable.
    """
    expected = version_of_this_program()
    async with changing(dsn) as connection:
        version = await _version(connection)
        if version > expected:
            text = f"the database has schema version {version}, and this release knows {expected}"
            raise Misconfigured(f"{text}: run the newer release")
        if version == 0:
            await _step(connection, "schema.sql", _schema())
            return ["schema.sql"]
        missing = [migration for migration in migrations() if migration.version > version]
        for migration in missing:
            await _step(connection, migration.name, migration.sql, migration.version)
        return [migration.name for migration in missing]


def _schema() -> str:
    return resources.files("keystead").joinpath("schema.sql").read_text("utf-8")


async def distribute(dsn: str, *, with_rows: bool) -> list[distribution.Table]:
    """Distribute the tables of a current or empty database, in one transaction; returns what was done.

    Raises Misconfigured where there is no Citus, and, unless `with_rows`, with the plan for a database with rows.
    """
    async with changing(dsn) as connection:
        await distribution.require_cluster(connection)
        state = await schema_state(connection)
        if state not in (SchemaState.EMPTY, SchemaState.CURRENT):
            raise Misconfigured(
                f"the schema is {state.name.lower()}: run `keystead migrate` of the newest release first"
            )
        async with connection.transaction():
            await distribution.begin(connection)
            if state is SchemaState.EMPTY:
                for statement in statements(_schema()):
                    await connection.execute(statement)
            if not await connection.fetchval(DISTRIBUTED):
                await connection.execute(distribution.SCOPES)
            tables = await distribution.not_placed(connection)
            has_rows = any(table.has_rows for table in tables if table.name != "schema_version")
            if has_rows and not with_rows:
                raise Misconfigured(distribution.plan(tables))
            await distribution.place(connection, tables)
            return tables


@asynccontextmanager
async def changing(dsn: str) -> AsyncIterator[Connection]:
    """A connection with an exclusive advisory lock, for changes to the schema and to roles.

    The lock timeout is short, because requests of the running release queue behind a waiting ALTER TABLE. Raises
    Misconfigured when it expires, and Unavailable for other database errors.
    """
    connection = await _connect_once(dsn)
    try:
        set_ = "SELECT set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false)"
        limits = bounds.MIGRATION_LOCK_SECONDS, bounds.MIGRATION_SECONDS
        await connection.execute(set_, *map(milliseconds, limits))
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        yield connection
    except asyncpg.LockNotAvailableError:
        raise Misconfigured("another migration is running, or a table is in use; try again in a moment") from None
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        text = "the change of the schema or its roles was broken off; run it again, it goes on where it was"
        raise Unavailable(f"{text}: {error}") from None
    finally:
        await connection.close()


# A comment, a quoted text or name, a dollar-quoted text, or one other character, but for the semicolon.
_STATEMENT = re.compile(
    r"""(?:--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"[^"]*"|\$((?:[A-Za-z_]\w*)?)\$.*?\$\1\$|[^;])++""", re.DOTALL
)
_COMMENTS = re.compile(r"(?:\s|--[^\n]*|/\*.*?\*/)*", re.DOTALL)


def statements(sql: str) -> list[str]:
    """The statements of a file one by one: in one string Citus refuses some of those that it takes alone."""
    found = (match[0].strip() for match in _STATEMENT.finditer(sql))
    return [statement for statement in found if not _COMMENTS.fullmatch(statement)]


async def _step(connection: Connection, name: str, sql: str, version: int | None = None) -> None:
    try:
        async with connection.transaction():
            distributed = await connection.fetchval(DISTRIBUTED)
            if distributed:
                await distribution.begin(connection)
            for statement in statements(sql):
                await connection.execute(statement)
                if distributed:
                    # What comes next may refer to a table that is new.
                    await distribution.place(connection, await distribution.not_placed(connection))
            if version is not None:
                await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", version)
    except UNAVAILABLE:
        raise
    except asyncpg.PostgresError as error:
        text = f"{name} cannot be applied, and changed nothing; what came before it is done: {error}"
        raise Misconfigured(text) from None


_INCOMPATIBLE = {
    SchemaState.OLDER: "the database's schema is older than this release: run `keystead migrate` first",
    SchemaState.NEWER: "the database's schema is newer than this release: run the newer release",
    SchemaState.EMPTY: "the database is empty: run `keystead migrate` first",
}


async def require_current(database: Database) -> None:
    """Raise Misconfigured unless the schema has the version of this release."""
    async with database.connection() as connection:
        state = await schema_state(connection)
    if state in _INCOMPATIBLE:
        raise Misconfigured(_INCOMPATIBLE[state])
