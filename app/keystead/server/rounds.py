"""What a process that serves does again and again, and how it waits for the database before."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import structlog

from keystead import bounds, metrics
from keystead.errors import Unavailable
from keystead.services import Services

T = TypeVar("T")
# Seconds between, what to say if it fails, and the work.
Round: TypeAlias = tuple[float, str, Callable[[], Awaitable[object]]]
_log = structlog.get_logger("keystead")


async def wait_for(work: Callable[[], Awaitable[T]]) -> T:
    # A worker that ended because the database is away would be restarted at once, and some such ends in a row end the
    # server.
    warn_at = time.monotonic() + bounds.DATABASE_PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except Unavailable as error:
            if time.monotonic() > warn_at:
                _log.warning("a worker waits for the database before it serves", reason=str(error))
                warn_at = time.monotonic() + bounds.DATABASE_PATIENCE_SECONDS
            await asyncio.sleep(0.2)


async def every(seconds: float, failed: str, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - what the worker has stays good, and the next round tries again
            _log.warning(f"{failed} for now", reason=type(error).__name__)
        await asyncio.sleep(seconds)


async def follow(services: Services) -> None:
    metrics.connections(services.db.in_use, services.db.size - services.db.in_use)
    services.ring.follow()
    await services.peppers.refresh(services.db, services.ring)
