"""Waiting until something is so: here alone tests look again and again, with a bound."""

import asyncio
import inspect
import time
from collections.abc import Callable

from keystead.store import database as db

# Generous to a machine that does much else.
SECONDS = 60.0
_PAUSE = 0.01
_AT_LOCKS = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def _late() -> object:
    return "it did not come about in time"


def until(condition: Callable[[], object], seconds: float = SECONDS, said: Callable[[], object] = _late) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(_PAUSE)


async def comes_about(
    condition: Callable[[], object], seconds: float = SECONDS, said: Callable[[], object] = _late
) -> None:
    """The same without holding the event loop; the condition may be a coroutine's."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, said()
        await asyncio.sleep(_PAUSE)


async def at_locks(database: db.Database, count: int, server: db.Database | None = None) -> None:
    """Return once so many statements of this database wait for a lock, or in this server for a transaction."""

    async def so_many() -> bool:
        (row,) = await database.fetch(_AT_LOCKS)
        return bool(row["n"] + (server._bundles.waiting if server else 0) >= count)

    await comes_about(so_many)
