"""Database connections, transactions, and the mapping of database errors to KeysteadError.

Not asyncpg's pool: its acquire, and the reset round trip on release, cost more than our queries
(docs/decisions/0004-held-connections.md). Statements must therefore leave no session state behind.
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import msgspec

from keystead import bounds
from keystead.errors import Clash, Conflict, KeysteadError, Unavailable
from keystead.store import address
from keystead.store.bundles import CROWDED, Bundles, Made, Row, Work

T = TypeVar("T")
# Whether the current request has committed a change; errors after that must not claim that nothing was done. None for
# read requests, which write to the audit log only.
_wrote: ContextVar[bool | None] = ContextVar("wrote", default=False)
if TYPE_CHECKING:
    # Generic in the type stubs only.
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

_ATTEMPTS = 4
_LOST_WHILE_WRITING = "the database was lost while it wrote"

_GONE = "the account does not exist any more"
_CONFLICTS = {
    "custom_certificates_key_fkey": "a certificate uses this key",
    "custom_certificates_sha256_key": "the zone has this very certificate already",
    "certificate_authorities_parent_fkey": "the parent CA does not exist any more, or has a CA below it",
    "issued_certificates_ca_fkey": "the CA does not exist any more",
    "tokens_pepper_id_fkey": "a token needs this pepper since just now; try again",
    "users_key_pepper_id_fkey": "a global key needs this pepper since just now; try again",
    "delivery_tokens_pepper_id_fkey": "a delivery token needs this pepper since just now; try again",
    "delivery_tokens_zone_fkey": "the zone does not exist any more",
    "zones_account_id_fkey": _GONE,
    "tokens_account_id_fkey": _GONE,
    "memberships_account_id_fkey": _GONE,
    "memberships_user_id_fkey": "the user does not exist any more",
    "private_keys_account_id_fkey": _GONE,
    "accounts_slug_key": "an account with this slug exists already",
    "certificate_policies_account_id_fkey": _GONE,
    "certificate_policies_name_key": "a policy of this project has this name already",
    "certificate_profiles_slug_key": "a profile of this project has this slug already",
    "certificate_profiles_ca_fkey": "a profile uses this CA, or the CA does not exist any more",
    "certificate_profiles_policy_fkey": "a profile uses this policy, or the policy does not exist any more",
    "applications_account_id_fkey": _GONE,
    "applications_name_key": "an application of this project has this name already",
    "application_profiles_application_fkey": "the application has profiles, or does not exist any more",
    "application_profiles_profile_fkey": "an application uses this profile, or it does not exist any more",
    "certificate_authorities_name_key": "a CA of this project has this name already",
    "zones_account_id_name_key": "the account has a zone of this name already",
    "users_email_key": "a user with this email exists already",
    "memberships_pkey": "the user is a member of this account already",
    "private_keys_generated_key": "this key pair was handed out before",
}
_CLASHES = {
    "custom_certificates_key_fkey": Clash.IN_USE,
    "zones_account_id_name_key": Clash.SAME_ZONE,
}
# The commit may have happened: the connection was lost or timed out.
_LOST = (
    OSError,  # TimeoutError is one
    asyncpg.InterfaceError,
    # The server was closing the connection when the statement was sent.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
# Errors of PostgreSQL that are not mapped to a KeysteadError, such as a missing privilege.
ApiError = asyncpg.PostgresError
_TRY_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
UNAVAILABLE = (
    *_LOST,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    # A lock that was not to be had in time, and a database that lets nobody in.
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.InvalidAuthorizationSpecificationError,
)


def begin(*, reads: bool) -> None:
    """Start of a request in this task; `reads` if the caller asked for no change."""
    _wrote.set(None if reads else False)


def _has_written() -> None:
    if _wrote.get() is not None:
        _wrote.set(True)


class Database:
    """Up to `size` connections to one PostgreSQL. Every call has a time limit and raises Unavailable after it."""

    def __init__(
        self, dsn: str, size: int, statement_cache_size: int = 100, setting: str = "KEYSTEAD_DATABASE_URL"
    ) -> None:
        self._dsn = dsn
        self._setting = setting
        self._statement_cache_size = statement_cache_size
        self.size = size
        # Whether Citus spreads the tables over machines (store/distribution.py); known with the first connection.
        self.distributed = False
        # How many connections were made so far.
        self.opened = 0
        # A stack: the last used is reused first, so that no more are opened than needed. None is not connected.
        self._idle: list[Connection | None] = [None] * size
        self._waiting: deque[tuple[float, asyncio.Future[Connection | None]]] = deque()
        self._searches: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._searching = asyncio.Semaphore(max(size // 2, 1))
        self._bundles = Bundles()

    async def close(self) -> None:
        await self._bundles.finish()
        while self._idle:
            connection = self._idle.pop()
            if connection is not None:
                connection.terminate()

    @property
    def in_use(self) -> int:
        return self.size - len(self._idle)

    def has_room(self) -> bool:
        """Whether another request may wait; see the bounds WAITING, FEW_WAITING and OLDEST_SECONDS."""
        waiting = len(self._waiting) + self._bundles.waiting
        if waiting <= bounds.FEW_WAITING:
            return True
        since = self._bundles.oldest()
        if self._waiting:
            since = min(since, self._waiting[0][0])
        return waiting < bounds.WAITING and time.monotonic() - since < bounds.OLDEST_SECONDS

    def require_room(self) -> None:
        """Raise Unavailable unless `has_room`; call it before expensive work."""
        if not self.has_room():
            raise Unavailable(CROWDED)

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        # As `_run`, without closures and context managers, which cost more than a simple SELECT.
        connection = self._idle.pop() if self._idle else await self._wait()
        try:
            if connection is None or connection.is_closed():
                connection = None
                connection = await self._connect()
            row = await connection.fetchrow(sql, *args)
        except _TRY_AGAIN:
            pass
        except BaseException as error:  # noqa: BLE001 - it leaves as one of our kinds, or as it is
            _raise_mapped(error, connection, writes=_writes(sql))
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

    async def insert_bundled(self, key: Hashable, row: Row, work: Work) -> Made:
        """What `work` made of the row, perhaps together with other rows of this key; see Bundles.insert."""
        try:
            made = await self._bundles.insert(key, row, work)
        except Unavailable as error:
            if error.in_doubt:
                # The transaction of several requests does not know what this one asked for.
                raise _unavailable(_LOST_WHILE_WRITING, in_doubt=True) from error
            raise
        _has_written()
        return made

    @asynccontextmanager
    async def search(self, owner: UUID) -> AsyncIterator[None]:
        """Limit statements that may scan a long list: one per owner at a time, and half of the connections in total.

        Raises Unavailable after WAIT_SECONDS.
        """
        lock = self._searches.setdefault(owner, asyncio.Lock())
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(bounds.WAIT_SECONDS):
                    await stack.enter_async_context(lock)
                    await stack.enter_async_context(self._searching)
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
                raise _unavailable(_LOST_WHILE_WRITING, in_doubt=True) from error.__cause__
            raise
        _has_written()
        return result

    async def _run(self, work: Callable[[Connection], Awaitable[T]], *, writes: bool) -> T:
        cause: Exception | None = None
        for _ in range(_ATTEMPTS):
            try:
                async with self.connection(writes=writes) as connection:
                    result = await work(connection)
            except _TRY_AGAIN as error:
                cause = error
                continue
            if writes:
                _has_written()
            return result
        raise _unavailable("the database has too many conflicting changes") from cause

    @asynccontextmanager
    async def connection(self, *, writes: bool = False, first: bool = False) -> AsyncIterator[Connection]:
        """A connection for the duration of the block, ahead of other waiters if `first`; raises KeysteadError.

        Set `writes` if the block runs a single statement that writes: then Unavailable is `in_doubt` after a lost
        connection.
        """
        connection = self._idle.pop() if self._idle else await self._wait(first=first)
        try:
            if connection is None or connection.is_closed():
                connection = None
                connection = await self._connect()
            yield connection
        except BaseException as error:  # noqa: BLE001 - it leaves as one of our kinds, or as it is
            _raise_mapped(error, connection, writes=writes)
        finally:
            self._give(connection)

    async def _wait(self, *, first: bool = False) -> Connection | None:
        if not first and len(self._waiting) >= bounds.WAITING:
            raise _unavailable(CROWDED)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        # `has_room` reads the age of the first waiter, which a waiter that jumps the queue must not reset.
        since = self._waiting[0][0] if first and self._waiting else time.monotonic()
        entry = (since, waiter)
        (self._waiting.appendleft if first else self._waiting.append)(entry)
        timer = loop.call_later(bounds.WAIT_SECONDS, _time_out, waiter)
        try:
            return await waiter
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
            if isinstance(error, TimeoutError):
                raise _unavailable("all database connections are busy") from None
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Cancelled after a connection was assigned: pass it on.
                self._give(waiter.result())
            raise
        finally:
            timer.cancel()

    def _give(self, connection: Connection | None) -> None:
        """Hand the connection to the first waiter, or return it to the idle ones."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    async def _connect(self) -> Connection:
        settings = {"application_name": "keystead", "TimeZone": "UTC"}
        # A statement cache of 0 means PgBouncer, which rejects these startup parameters.
        if self._statement_cache_size:
            settings["statement_timeout"] = milliseconds(bounds.STATEMENT_SECONDS)
            settings["lock_timeout"] = milliseconds(bounds.LOCK_SECONDS)
            settings["idle_in_transaction_session_timeout"] = milliseconds(bounds.IDLE_IN_TRANSACTION_SECONDS)
        self.opened += 1
        with address.readable(self._dsn, self._setting):
            connection = await asyncpg.connect(
                self._dsn,
                timeout=bounds.CONNECT_SECONDS,
                command_timeout=bounds.STATEMENT_SECONDS,
                statement_cache_size=self._statement_cache_size,
                server_settings=settings,
            )
        try:
            self.distributed = await connection.fetchval(DISTRIBUTED)
        except BaseException:
            connection.terminate()
            raise
        return connection


# That table is made with the others' distribution, and nowhere else.
DISTRIBUTED = "SELECT to_regclass('scopes') IS NOT NULL"


def _time_out(waiter: asyncio.Future[Connection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


_CONSTRAINT = re.compile(r'violates (?:unique|foreign key|check) constraint "(.+?)(?:_[0-9]{6,})?"')
_NO_KEK = re.compile(r'null value in column "kek_id"')


def constraint(error: asyncpg.PostgresError) -> str:
    """The name of the violated constraint; empty for all other errors.

    Citus says it in the text alone, with the number of a shard, and sometimes as an internal error.
    """
    found = _CONSTRAINT.search(str(error))
    return found[1] if found else error.constraint_name or ""


def _raise_mapped(error: BaseException, connection: Connection | None, *, writes: bool) -> NoReturn:
    """Raise the KeysteadError for a database error, and close a connection that cannot be reused."""
    if isinstance(error, _TRY_AGAIN):
        raise error
    _raise_conflict(error)
    if isinstance(error, UNAVAILABLE):
        _drop(connection)
        if writes and connection is not None and isinstance(error, _LOST):
            raise _unavailable(_LOST_WHILE_WRITING, in_doubt=True) from error
        raise _unavailable(reason(error)) from error
    if not isinstance(error, asyncpg.PostgresError | KeysteadError):
        # Cancelled, for example. The server may still be running our statement, and the next user of the connection
        # would get its result.
        _drop(connection)
    raise error


def _raise_conflict(error: BaseException) -> None:
    if not isinstance(error, asyncpg.PostgresError):
        return
    if error.column_name == "kek_id" or _NO_KEK.search(str(error)):
        raise Unavailable("the ring of this server is not known here, or its KEK was retired") from None
    name = constraint(error)
    if name in _CONFLICTS:
        raise Conflict(_CONFLICTS[name], _CLASHES.get(name, Clash.STORED)) from None


def reason(error: BaseException) -> str:
    """Why the database is unavailable, for error texts; `error` is one of UNAVAILABLE."""
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


def milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _drop(connection: Connection | None) -> None:
    # The next user finds it closed and reconnects.
    if connection is not None:
        connection.terminate()


def parameters(first: int, count: int) -> str:
    """`$first, $first+1, …` for `count` parameters, used by SQL fragments that are composed into one statement."""
    return ", ".join(f"${first + i}" for i in range(count))


def rows(parameter: str, columns: Mapping[str, str]) -> str:
    """A FROM item with the rows of `encoded`; `columns` are the names and types.

    One parameter, because an array for each column costs more where a row comes alone.
    """
    return f"json_to_recordset({parameter}::json) AS new ({', '.join(f'{k} {v}' for k, v in columns.items())})"


def encoded(columns: Mapping[str, str], values: Sequence[Sequence[object]]) -> str:
    """The parameter of `rows`: in each row a value for each of the columns."""
    objects: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in values]
    for name in (name for name, type_ in columns.items() if type_ == "bytea"):
        for each in objects:
            each[name] = None if each[name] is None else f"\\x{each[name].hex()}"
    return msgspec.json.encode(objects, enc_hook=str).decode()
