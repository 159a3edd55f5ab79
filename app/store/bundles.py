"""Rows that come together and are inserted by one statement (docs/decisions/0035-bundled-creates.md)."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeAlias

import asyncpg

from app import bounds
from app.errors import Unavailable

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


class _Queue:
    def __init__(self) -> None:
        self.places: deque[_Place] = deque()
        # How many transactions are on their way.
        self.inserting = 0


class Bundles:
    """For each key one queue: rows that come while two transactions are on their way wait, and go on together."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0

    def oldest(self) -> float:
        """When the row that has waited longest came."""
        return min((queue.places[0].since for queue in self._queues.values() if queue.places), default=time.monotonic())

    async def insert(self, key: Hashable, row: Row, work: Work) -> Made:
        """What `work` made of the row, alone or with others of this key, for which it is the same.

        If a bundle fails, each of its rows is tried alone, unless it is not known whether the bundle was written: then
        each is told so. Raises what `work` raises, and Unavailable.
        """
        queue = self._queues.get(key) or self._queues.setdefault(key, _Queue())
        if queue.inserting >= bounds.BUNDLES_AT_ONCE:
            return await self._wait(queue, row, work)
        queue.inserting += 1
        try:
            [made] = await work([row])
            return made
        finally:
            self._go_on(key, queue, work)

    async def finish(self) -> None:
        """Wait for all that is on its way; everything has its time limits."""
        while self._queues:  # noqa: ASYNC110 - at the end of a process
            await asyncio.sleep(0.01)

    async def _wait(self, queue: _Queue, row: Row, work: Work) -> Made:
        if self.waiting >= bounds.WAITING:
            raise Unavailable(CROWDED)
        place = _Place(row)
        queue.places.append(place)
        self.waiting += 1
        try:
            return await place.made
        except _Alone:
            [made] = await work([row])
            return made
        finally:
            place.timer.cancel()
            if place.waits:
                queue.places.remove(place)
                self.waiting -= 1

    def _go_on(self, key: Hashable, queue: _Queue, work: Work) -> None:
        """One transaction is over: begin the next with those who wait."""
        if places := self._take(queue):
            # Of no single request, which may be cancelled, and not in its context.
            task = asyncio.create_task(self._insert(key, queue, places, work), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        queue.inserting -= 1
        if not queue.inserting:
            del self._queues[key]

    async def _insert(self, key: Hashable, queue: _Queue, places: list[_Place], work: Work) -> None:
        try:
            await _insert(places, work)
        finally:
            self._go_on(key, queue, work)

    def _take(self, queue: _Queue) -> list[_Place]:
        places: list[_Place] = []
        while queue.places and len(places) < bounds.BUNDLE:
            place = queue.places.popleft()
            self.waiting -= 1
            place.waits = False
            if not place.made.done():
                place.timer.cancel()
                places.append(place)
        return places


async def _insert(places: list[_Place], work: Work) -> None:
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
