"""Connections, transactions, the mapping of database errors to our kinds, and the schema's version.

Connections are held, not borrowed from asyncpg's pool: its acquire and the reset round trip at release cost more than
the queries here do (docs/decisions/0004-held-connections.md). Statements leave no session state behind.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from importlib import resources
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import msgspec

from app import bounds
from app.errors import Clash, Conflict, KeysteadError, Misconfigured, Unavailable

T = TypeVar("T")
# Whether this request has committed anything: whatever fails later in it may not say that nothing was done. None for
# one that only reads, whose rows in the audit log are no change that anybody asked for.
_wrote: ContextVar[bool | None] = ContextVar("wrote", default=False)
if TYPE_CHECKING:
    # Generic in its published types, not at run time.
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

_ATTEMPTS = 4
CROWDED = "too many requests are waiting"
# An arbitrary number that only Keystead's migrations lock.
_MIGRATION_LOCK = 0x6B657973

_GONE = "the account does not exist any more"
_CONFLICTS: dict[str, str | tuple[str, Clash]] = {
    "custom_certificates_key_fkey": ("a certificate uses this key", Clash.IN_USE),
    "custom_certificates_sha256_key": ("the zone has this very certificate already", Clash.SAME_CERTIFICATE),
    "certificate_authorities_parent_fkey": "the parent CA does not exist any more, or has a CA below it",
    "issued_certificates_ca_fkey": "the CA does not exist any more",
    "tokens_pepper_id_fkey": "a token needs this pepper since just now; try again",
    "users_key_pepper_id_fkey": "a global key needs this pepper since just now; try again",
    "zones_account_id_fkey": _GONE,
    "tokens_account_id_fkey": _GONE,
    "memberships_account_id_fkey": _GONE,
    "memberships_user_id_fkey": "the user does not exist any more",
    "private_keys_account_id_fkey": _GONE,
    "accounts_slug_key": "an account with this slug exists already",
    "zones_account_id_name_key": ("the account has a zone of this name already", Clash.SAME_ZONE),
    "users_email_key": "a user with this email exists already",
    "memberships_pkey": "the user is a member of this account already",
    "private_keys_generated_key": "this key pair was handed out before",
}
# What may also come after a commit that nobody heard of: the connection went, or nothing came in time.
_LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
# What PostgreSQL says that is none of our kinds, such as that the role may not.
Refused = asyncpg.PostgresError
_TRY_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_UNAVAILABLE = (
    OSError,  # TimeoutError is one
    asyncpg.InterfaceError,
    # A statement given to a connection that the server is just closing.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.InvalidAuthorizationSpecificationError,
)


def begin(*, reads: bool) -> None:
    """A request begins."""
    _wrote.set(None if reads else False)


def _has_written() -> None:
    if _wrote.get() is not None:
        _wrote.set(True)


class Database:
    """`size` held connections to one PostgreSQL; every call is bounded in time."""

    def __init__(self, dsn: str, size: int, statement_cache_size: int = 100) -> None:
        self._dsn = dsn
        self._statement_cache_size = statement_cache_size
        self._size = size
        # The one that was used last is taken first, so that no more are open than are needed.
        self._idle: list[Connection | None] = [None] * size
        self._waiting: deque[tuple[float, asyncio.Future[Connection | None]]] = deque()
        self._searches: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._searching = asyncio.Semaphore(max(size // 2, 1))

    async def close(self) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection is not None:
                connection.terminate()

    @property
    def in_use(self) -> int:
        return self._size - len(self._idle)

    @property
    def size(self) -> int:
        return self._size

    def has_room(self) -> bool:
        """Whether one more may come: not while more wait than are served soon."""
        waiting = len(self._waiting)
        if waiting <= bounds.FEW_WAITING:
            return True
        return waiting < bounds.WAITING and time.monotonic() - self._waiting[0][0] < bounds.OLDEST_SECONDS

    def require_room(self) -> None:
        """Raises Unavailable without it, before anything is done for nothing."""
        if not self.has_room():
            raise Unavailable(CROWDED)

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        # The common case, without the closures and contexts of the general one, which cost more than a SELECT.
        connection = self._idle.pop() if self._idle else await self._wait()
        try:
            if connection is None or connection.is_closed():
                connection = None
                connection = await self._connect()
            row = await connection.fetchrow(sql, *args)
        except _TRY_AGAIN:
            pass
        except BaseException as error:  # noqa: BLE001 - it leaves as one of our kinds, or as it is
            _leave(error, connection, writes=_writes(sql))
        else:
            if _writes(sql):
                _has_written()
            return row
        finally:
            self._give(connection)
        return await self._run(lambda connection: connection.fetchrow(sql, *args), writes=_writes(sql))

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        return await self._run(lambda connection: connection.fetch(sql, *args), writes=_writes(sql))

    async def execute(self, sql: str, *args: object) -> str:
        return await self._run(lambda connection: connection.execute(sql, *args), writes=_writes(sql))

    @asynccontextmanager
    async def search(self, owner: UUID) -> AsyncIterator[None]:
        """For statements that may look through a long list: one of an owner at a time, and of all half the connections.

        Raises Unavailable for who waits too long.
        """
        lock = self._searches.setdefault(owner, asyncio.Lock())
        async with contextlib.AsyncExitStack() as turns:
            try:
                async with asyncio.timeout(bounds.WAIT_SECONDS):
                    await turns.enter_async_context(lock)
                    await turns.enter_async_context(self._searching)
            except TimeoutError:
                raise _unavailable("other searches of long lists are running") from None
            yield

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` in one transaction; it may run again after a serialization failure or a deadlock."""
        committing = False

        async def inside(connection: Connection) -> T:
            nonlocal committing
            committing = False
            async with connection.transaction():
                result = await work(connection)
                committing = True
            return result

        try:
            result = await self._run(inside, writes=False)
        except Unavailable as error:
            if committing and isinstance(error.__cause__, _LOST):
                raise _unavailable("the database was lost while it wrote", in_doubt=True) from error.__cause__
            raise
        _has_written()
        return result

    async def _run(self, work: Callable[[Connection], Awaitable[T]], *, writes: bool) -> T:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._once(work, writes=writes)
            except _TRY_AGAIN:
                continue
        try:
            return await self._once(work, writes=writes)
        except _TRY_AGAIN as error:
            raise _unavailable("the database has too many conflicting changes") from error

    async def _once(self, work: Callable[[Connection], Awaitable[T]], *, writes: bool) -> T:
        async with self.connection(writes=writes) as connection:
            result = await work(connection)
        if writes:
            _has_written()
        return result

    @asynccontextmanager
    async def connection(self, *, writes: bool = False, first: bool = False) -> AsyncIterator[Connection]:
        """One connection for a while, before all who wait if `first`; database errors leave as our kinds.

        They are in doubt if its one statement `writes`.
        """
        connection = self._idle.pop() if self._idle else await self._wait(first=first)
        try:
            if connection is None or connection.is_closed():
                connection = None
                connection = await self._connect()
            yield connection
        except BaseException as error:  # noqa: BLE001 - it leaves as one of our kinds, or as it is
            _leave(error, connection, writes=writes)
        finally:
            self._give(connection)

    async def _wait(self, *, first: bool = False) -> Connection | None:
        if not first and len(self._waiting) >= bounds.WAITING:
            raise _unavailable(CROWDED)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        # Whoever comes first is not what the others are judged by.
        since = self._waiting[0][0] if first and self._waiting else time.monotonic()
        place = (since, waiter)
        (self._waiting.appendleft if first else self._waiting.append)(place)
        patience = loop.call_later(bounds.WAIT_SECONDS, _give_up, waiter)
        try:
            return await waiter
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise _unavailable("all database connections are busy") from None
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed one at the very moment in which its request was cancelled.
                self._give(waiter.result())
            raise
        finally:
            patience.cancel()

    def _give(self, connection: Connection | None) -> None:
        """To whoever waits longest, or back to its place."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    async def _connect(self) -> Connection:
        # Without prepared statements there is a PgBouncer in between, which refuses to pass these on.
        limits = (
            {
                "statement_timeout": _milliseconds(bounds.STATEMENT_SECONDS),
                "lock_timeout": _milliseconds(bounds.LOCK_SECONDS),
                "idle_in_transaction_session_timeout": _milliseconds(bounds.IDLE_IN_TRANSACTION_SECONDS),
            }
            if self._statement_cache_size
            else {}
        )
        with _readable():
            return await asyncpg.connect(
                self._dsn,
                timeout=bounds.CONNECT_SECONDS,
                command_timeout=bounds.STATEMENT_SECONDS,
                statement_cache_size=self._statement_cache_size,
                server_settings={"application_name": "keystead", "TimeZone": "UTC", **limits},
            )


def _give_up(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _leave(error: BaseException, connection: Connection | None, *, writes: bool) -> NoReturn:
    """Raise a database error as our kind, and drop a connection that may not be used again."""
    if isinstance(error, _TRY_AGAIN):
        raise error
    if isinstance(error, _UNAVAILABLE):
        _drop(connection)
        if writes and connection is not None and isinstance(error, _LOST):
            raise _unavailable("the database was lost while it wrote", in_doubt=True) from error
        raise _unavailable(_reason(error)) from error
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        if isinstance(error, asyncpg.NotNullViolationError) and error.column_name == "kek_id":
            raise Unavailable("the ring of this server is not known here, or its KEK was retired") from None
        clash = _CONFLICTS.get(error.constraint_name or "")
        if clash is None:
            raise error
        raise Conflict(*((clash,) if isinstance(clash, str) else clash)) from None
    if not isinstance(error, asyncpg.PostgresError | KeysteadError):
        # Cancelled, or worse: the server may be in the middle of our statement, and whoever came next would read
        # its answer.
        _drop(connection)
    raise error


def _reason(error: BaseException) -> str:
    match error:
        case asyncpg.LockNotAvailableError():
            return "other requests are changing the same thing, and have not finished in time"
        case asyncpg.QueryCanceledError() | TimeoutError():
            return "the database has not answered in time"
        case _:
            return "the database is not available"


def _writes(sql: str) -> bool:
    return not sql.lstrip().startswith("SELECT")


def _unavailable(text: str, *, in_doubt: bool = False) -> Unavailable:
    wrote = _wrote.get()
    if wrote is not None and (in_doubt or wrote):
        return Unavailable(f"{text}, and it is not known whether the change was made", in_doubt=True)
    return Unavailable(text)


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _drop(connection: Connection | None) -> None:
    # It goes back to its place closed, and the next to take it connects anew.
    if connection is not None:
        connection.terminate()


def parameters(first: int, count: int) -> str:
    """`$first, …` for `count` parameters: how the named fragments of a statement number theirs."""
    return ", ".join(f"${first + i}" for i in range(count))


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
    """All changes since the first schema, in order; `NNNN_what.sql` brings a database to version NNNN."""
    folder = resources.files("app.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(Migration(int(name[:4]), name, (folder / name).read_text("utf-8")) for name in names)


def version_of_this_program() -> int:
    return max((migration.version for migration in migrations()), default=1)


async def schema_state(connection: Connection) -> SchemaState:
    version = await _version(connection)
    if version == 0:
        return SchemaState.EMPTY
    expected = version_of_this_program()
    if version == expected:
        return SchemaState.CURRENT
    return SchemaState.OLDER if version < expected else SchemaState.NEWER


async def state_at(dsn: str) -> SchemaState:
    """The state of a database that nothing is connected to yet; raises Unavailable and Misconfigured."""
    connection = await _connect_once(dsn)
    try:
        return await schema_state(connection)
    finally:
        await connection.close()


async def _connect_once(dsn: str) -> Connection:
    try:
        with _readable():
            return await asyncpg.connect(dsn, timeout=bounds.CONNECT_SECONDS)
    except _UNAVAILABLE as error:
        raise Unavailable(f"the database cannot be reached: {error}") from None
    except asyncpg.PostgresError as error:
        raise Misconfigured(f"the database cannot be reached: {error}") from None


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError) as error:
        # Of all that it may say only this quotes nothing of the address, and there may be a password in it.
        if "root certificate file" in str(error):
            raise Misconfigured(f"KEYSTEAD_DATABASE_URL asks for TLS: {str(error).splitlines()[0]}") from None
        text = "KEYSTEAD_DATABASE_URL cannot be read; in a password write / # ? @ : and % percent-encoded, / as %2F"
        raise Misconfigured(text) from None
    except KeyError:
        # Of the system's user, whom PostgreSQL's rules take where the address names none.
        text = f"KEYSTEAD_DATABASE_URL names no user, and the uid {os.geteuid()} has no name here"
        raise Misconfigured(f"{text}: write postgresql://user@host/database") from None


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
    return int(version)


async def migrate(dsn: str) -> list[str]:
    """Bring an empty or older database to this program's schema; names what was applied, nothing if it was current.

    One transaction for each step.
    """
    async with changing(dsn) as connection:
        return [name async for name in _apply(connection, await _version(connection))]


@asynccontextmanager
async def changing(dsn: str) -> AsyncIterator[Connection]:
    """A connection for what one process at a time changes: the schema, and who may do what with it.

    Under an advisory lock, with a short lock time-out: what cannot have its lock gives up rather than making every
    request of the serving release queue behind it. Raises Misconfigured then, and Unavailable when it is broken off.
    """
    connection = await _connect_once(dsn)
    try:
        set_ = "SELECT set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false)"
        limits = bounds.MIGRATION_LOCK_SECONDS, bounds.MIGRATION_SECONDS
        await connection.execute(set_, *map(_milliseconds, limits))
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        yield connection
    except asyncpg.LockNotAvailableError:
        raise Misconfigured("another migration is running, or a table is in use; try again in a moment") from None
    except (*_UNAVAILABLE, asyncpg.PostgresError) as error:
        text = "the change of the schema or its roles was broken off; run it again, it goes on where it was"
        raise Unavailable(f"{text}: {error}") from None
    finally:
        await connection.close()


async def _apply(connection: Connection, version: int) -> AsyncIterator[str]:
    expected = version_of_this_program()
    if version > expected:
        raise Misconfigured(
            f"the database has schema version {version}, and this release knows {expected}: run the newer release"
        )
    if version == 0:
        await _step(connection, "schema.sql", resources.files("app").joinpath("schema.sql").read_text("utf-8"))
        yield "schema.sql"
        return
    for migration in migrations():
        if migration.version > version:
            await _step(connection, migration.name, migration.sql, migration.version)
            yield migration.name


async def _step(connection: Connection, name: str, sql: str, version: int | None = None) -> None:
    try:
        async with connection.transaction():
            await connection.execute(sql)
            if version is not None:
                await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", version)
    except _UNAVAILABLE:
        raise
    except asyncpg.PostgresError as error:
        text = f"{name} cannot be applied, and changed nothing; what came before it is done: {error}"
        raise Misconfigured(text) from None


async def require_current(database: Database) -> None:
    """Raises Misconfigured unless the schema is this program's."""
    async with database.connection() as connection:
        state = await schema_state(connection)
    if state is SchemaState.OLDER:
        raise Misconfigured("the database's schema is older than this release: run `keystead migrate` first")
    if state is SchemaState.NEWER:
        raise Misconfigured("the database's schema is newer than this release: run the newer release")
    if state is SchemaState.EMPTY:
        raise Misconfigured("the database is empty: run `keystead migrate` first")
