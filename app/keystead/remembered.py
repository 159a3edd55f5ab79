"""Values that a worker remembers for a moment, so that it does not look them up for each request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 256


class Remembered(Generic[K, V]):
    """At most MOST values. Each is dropped when its time is over, even if nobody asks for it any more."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._looked_for: dict[K, asyncio.Event] = {}

    async def get(self, key: K, seconds: float, find: Callable[[], Awaitable[V]]) -> V:
        """The value that was found in the last `seconds`, counted from before it was looked for, or else a new one.

        Of all who miss it at once, one looks for it; if that fails, each of the others does.
        """
        if seconds <= 0:
            return await find()
        if key in self._values:
            return self._values[key]
        if found := self._looked_for.get(key):
            await found.wait()
            return self._values[key] if key in self._values else await find()
        self._looked_for[key] = asyncio.Event()
        try:
            return await self._find(key, seconds, find)
        finally:
            self._looked_for.pop(key).set()

    async def _find(self, key: K, seconds: float, find: Callable[[], Awaitable[V]]) -> V:
        since = time.monotonic()
        value = await find()
        left = since + seconds - time.monotonic()
        if left > 0 and key not in self._values and len(self._values) < MOST:
            self._values[key] = value
            asyncio.get_running_loop().call_later(left, self._values.pop, key, None)
        return value
