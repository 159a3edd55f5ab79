"""Rows that come together and are inserted by one statement (docs/decisions/0035-bundled-creates.md)."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeAlias

import asyncpg

from keystead import bounds
from keystead.errors import Unavailable

Row: TypeAlias = tuple[object, ...]
Made: TypeAlias = asyncpg.Record | None
# Inserts rows in one transaction; returns what was made of each, in their order.
Work: TypeAlias = Callable[[Sequence[Row]], Awaitable[Sequence[Made]]]
CROWDED = "too many requests are waiting"


class _Alone(Exception):  # noqa: N818 - an instruction to whoever waits
    """The bundle was not written: each row is to be tried by itself."""


class _Place:
    """A row that waits; `made` is cancelled with the request that waits for it."""

    def __init__(self, row: Row) -> None:
        loop = asyncio.get_running_loop()
        self.row = row
        self.waits = True
        self.since = time.monotonic()
        self.made: asyncio.Future[Made] = loop.create_future()
        self.timer = loop.call_later(bounds.WAIT_SECONDS, self.fail, Unavailable("the requests before take too long"))

    def fail(self, error: Exception) -> None:
        if not self.made.done():
            self.made.set_exception(error)


class Bundles:
    """For each key one transaction at a time: rows that come meanwhile wait, and go on together."""

    def __init__(self) -> None:
        # Of each key that has a transaction on its way, who waits for its end.
        self._queues: dict[Hashable, deque[_Place]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0

    def oldest(self) -> float:
        """When the row that has waited longest came."""
        return min((queue[0].since for queue in self._queues.values() if queue), default=time.monotonic())

    async def insert(self, key: Hashable, row: Row, work: Work) -> Made:
        """What `work` made of the row, alone or with others of this key, for which it is the same.

        If a bundle fails, each of its rows is tried alone, unless it is not known whether the bundle was written: then
        each is told so. Raises what `work` raises, and Unavailable.
        """
        if (queue := self._queues.get(key)) is not None:
            return await self._wait(queue, row, work)
        self._queues[key] = deque()
        try:
            [made] = await work([row])
            return made
        finally:
            self._go_on(key, work)

    async def finish(self) -> None:
        """Wait for all that is on its way; everything has its time limits."""
        while self._queues:  # noqa: ASYNC110 - at the end of a process
            await asyncio.sleep(0.01)

    async def _wait(self, queue: deque[_Place], row: Row, work: Work) -> Made:
        if self.waiting >= bounds.WAITING:
            raise Unavailable(CROWDED)
        place = _Place(row)
        queue.append(place)
        self.waiting += 1
        try:
            return await place.made
        except _Alone:
            [made] = await work([row])
            return made
        finally:
            place.timer.cancel()
            if place.waits:
                queue.remove(place)
                self.waiting -= 1

    def _go_on(self, key: Hashable, work: Work) -> None:
        """A transaction is over: begin the next with those who wait."""
        if places := self._take(self._queues[key]):
            # Of no single request, which may be cancelled, and not in its context.
            task = asyncio.create_task(self._insert(key, places, work), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            del self._queues[key]

    async def _insert(self, key: Hashable, places: list[_Place], work: Work) -> None:
        try:
            await _settle(places, work)
        finally:
            self._go_on(key, work)

    def _take(self, queue: deque[_Place]) -> list[_Place]:
        places: list[_Place] = []
        while queue and len(places) < bounds.BUNDLE:
            place = queue.popleft()
            self.waiting -= 1
            place.waits = False
            if not place.made.done():
                place.timer.cancel()
                places.append(place)
        return places


async def _settle(places: list[_Place], work: Work) -> None:
    try:
        made = await work([place.row for place in places])
    except Exception as error:  # noqa: BLE001 - it is for those who wait
        for place in places:
            place.fail(_each(error, len(places)))
        return
    for place, one in zip(places, made, strict=True):
        if not place.made.done():
            place.made.set_result(one)


def _each(error: Exception, rows: int) -> Exception:
    """What to tell each of so many; an exception object of its own, because raising it changes it."""
    if rows == 1:
        return error
    if isinstance(error, Unavailable) and error.in_doubt:
        return Unavailable(str(error), error.retry_after, in_doubt=True)
    return _Alone()
