"""Reading from a streaming standby, for callers of whom it has all that they wrote (docs/decisions/0052-a-standby.md).

What was acknowledged before a moment was written to the primary's log before that moment. So a standby that has
replayed the position at which the log ended then has all of it.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import asyncpg
import msgspec
import structlog

from keystead import bounds, metrics
from keystead.errors import KeysteadError, Misconfigured, Unavailable
from keystead.store.database import ApiError, Database
from keystead.store.writes import SECOND, Writes, now

T = TypeVar("T")
SETTING = "KEYSTEAD_READ_DATABASE_URL"
LOOK_SECONDS = 0.1
# Between two lines of the log, as a standby may be now within a bound and now beyond it.
_QUIET = 5 * SECOND
_MOST_LAG = int(bounds.STANDBY_LAG_SECONDS) * SECOND
_log = structlog.get_logger("keystead.standby")

# What is flushed, as commits are acknowledged then; what is inserted may be flushed much later, on an idle server.
_PRIMARY = """
SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS position, system_identifier AS system,
       left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) AS timeline,
       current_setting('synchronous_commit') <> 'off' AS good
FROM pg_control_system()
"""
# Its timeline is known some minutes late, after a failover.
_STANDBY = """
SELECT coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)::bigint AS position, system_identifier AS system,
       lpad(upper(to_hex(greatest(timeline_id, min_recovery_end_timeline))), 8, '0') AS timeline,
       pg_is_in_recovery() AS good
FROM pg_control_system(), pg_control_checkpoint(), pg_control_recovery()
"""


class _Place(msgspec.Struct, frozen=True):
    """Where a server is in the log, and whether it is what it should be."""

    position: int
    system: int
    timeline: str
    good: bool


class Compared(msgspec.Struct, frozen=True):
    """The positions to which the primary had written and then the standby replayed; `opened` as Database's."""

    written: int
    replayed: int
    opened: int


async def compared(primary: Database, standby: Database) -> Compared:
    """Compare the two; raises Misconfigured for a standby that can't be read from, and Unavailable."""
    async with primary.connection(first=True) as connection:
        ours = _place(await connection.fetchrow(_PRIMARY))
    async with standby.connection(first=True) as connection:
        # Before the statement: if it is opened anew afterwards, that may be to a standby that has started anew.
        opened = standby.opened
        theirs = _place(await connection.fetchrow(_STANDBY))
    if primary.distributed:
        raise Misconfigured("Citus has the tables, and a standby of its coordinator does not follow its workers")
    if not ours.good:
        raise Misconfigured("synchronous_commit is off on the primary, so it isn't known what it has acknowledged")
    if theirs.system != ours.system:
        raise Misconfigured("it is a database of its own, and no standby of the primary's cluster")
    if not theirs.good:
        raise Misconfigured("it is no standby: it was promoted, or is the primary itself")
    if theirs.timeline != ours.timeline:
        raise Misconfigured("it follows another timeline than the primary's; after a failover that may take minutes")
    return Compared(ours.position, theirs.position, opened)


def _place(row: asyncpg.Record | None) -> _Place:
    return msgspec.convert(dict(row or ()), _Place)


def why(error: Exception) -> str:
    """What is wrong with a standby; the driver's words say more than ours, and never show a password."""
    return str(error.__cause__ or error) or "it has not answered in time"


class Standby:
    def __init__(self, primary: Database, database: Database, writes: Writes) -> None:
        self.writes = writes
        self._primary = primary
        self._database = database
        # It has all that was acknowledged before this time; 0 while that is not known.
        self._fresh = 0
        self._replayed = 0
        self._opened = 0
        # Times at which the log of the primary ended at these positions, which were not replayed yet.
        self._targets: deque[tuple[int, int]] = deque()
        self._said: str | None = None
        self._said_at = 0
        # Reads since the last look, of the primary and of the standby.
        self._here = self._there = 0

    async def close(self) -> None:
        self._tell()
        await self._database.close()
        self.writes.close()

    async def read(self, caller_id: UUID, work: Callable[[Database], Awaitable[T]]) -> T:
        """What `work` reads: at the standby if that has all that the caller wrote, or else at the primary.

        What is not found or fails at the standby is asked of the primary again.
        """
        if self._has_all_of(caller_id):
            opened = self._opened
            try:
                async with asyncio.timeout(bounds.STANDBY_SECONDS):
                    found = await work(self._database)
            except (Unavailable, TimeoutError):
                # Until the next look.
                self._fresh = 0
            except (KeysteadError, ApiError):
                pass
            else:
                if self._database.opened == opened:
                    self._there += 1
                    return found
        self._here += 1
        return await work(self._primary)

    def _has_all_of(self, caller_id: UUID) -> bool:
        return (
            self._fresh > now() - _MOST_LAG
            and self.writes.latest(caller_id) < self._fresh
            and self._database.has_room()
        )

    async def look(self) -> None:
        """Find out how far the standby is; if it cannot be read from, that is said once."""
        problem = await self._problem()
        self._tell()
        said = problem or ("" if self._fresh else self._said)
        if said == self._said or now() < self._said_at + _QUIET:
            return
        self._said, self._said_at = said, now()
        if said:
            _log.warning("nothing is read from the standby for now", reason=said)
        else:
            _log.info("the standby is read from")

    async def _problem(self) -> str | None:
        since = now()
        try:
            async with asyncio.timeout(bounds.STANDBY_SECONDS):
                found = await compared(self._primary, self._database)
        except (KeysteadError, ApiError, TimeoutError) as error:
            self._fresh = 0
            self._targets.clear()
            return why(error)
        if found.replayed < self._replayed:
            # It has started anew, from before what it had.
            self._fresh = 0
        self._replayed, self._opened = found.replayed, found.opened
        self._targets.append((since, found.written))
        while self._targets and self._targets[0][1] <= found.replayed:
            self._fresh, _ = self._targets.popleft()
        late = False
        while self._targets and self._targets[0][0] < since - _MOST_LAG:
            late = bool(self._targets.popleft())
        return f"it is more than {bounds.STANDBY_LAG_SECONDS:.0f} seconds behind" if late else None

    def _tell(self) -> None:
        lag = now() - self._fresh
        metrics.standby(self._here, self._there, lag / SECOND if lag < _MOST_LAG else math.inf)
        self._here = self._there = 0
