"""Key generation and the validation of uploads, with bounded queues.

EC keys are generated at once, RSA-2048 keys taken from a pool of ready ones, other RSA keys generated on threads.
"""

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from keystead import bounds, metrics
from keystead.custody import keymaker
from keystead.errors import Unavailable
from keystead.x509 import keys
from keystead.x509.keys import CaKeyType, KeyType

# Ready keys older than this are replaced.
MAX_AGE_SECONDS = 24 * 3600
RETRY_SECONDS = 5.0
T = TypeVar("T")
_log = structlog.get_logger("keystead.keypool")


class KeyPool:
    """Generates key pairs; after `start` it keeps `ready` RSA-2048 keys in memory, each of which is used once.

    Workers that share `lock_file` make one key at a time; None for no limit.
    """

    def __init__(self, ready: int = 0, lock_file: Path | None = None) -> None:
        self._size = ready
        self._ready: deque[tuple[float, keys.KeyPair]] = deque()
        self._taken = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._maker = keymaker.Maker(lock_file)
        # Key generation releases the GIL, so threads use all cores.
        self._makers = _Queue("keygen", os.cpu_count() or 1, bounds.KEYS_WAITING)
        self._checkers = _Queue("keycheck", 1, bounds.CHECKS_WAITING)
        self._judges = _Queue("chains", 1, bounds.CHAINS_WAITING)
        # A forked child must not use the same ready keys.
        forget = weakref.WeakMethod(self.forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def start(self) -> None:
        """Start filling the pool in a task of the running event loop."""
        if self._size:
            self._filler = asyncio.create_task(self._fill())

    def forget(self) -> None:
        """Drop all ready keys."""
        self._ready.clear()

    async def take(self, key_type: KeyType | CaKeyType) -> keys.KeyPair:
        """A new key pair; raises Unavailable if too many callers are waiting for RSA keys."""
        if keys.is_elliptic(key_type):
            return keys.generate(key_type)
        if key_type.value == KeyType.RSA2048.value and (ready := self._pop()):
            return ready
        return await self._makers.run(lambda: _timed(key_type))

    def _pop(self) -> keys.KeyPair | None:
        self._drop_old()
        if not self._ready:
            return None
        _, pair = self._ready.popleft()
        self._changed()
        return pair

    def _drop_old(self) -> None:
        oldest = time.monotonic() - MAX_AGE_SECONDS
        while self._ready and self._ready[0][0] < oldest:
            self._ready.popleft()
            self._changed()

    def _changed(self) -> None:
        self._taken.set()
        metrics.pool_level(len(self._ready))

    async def _fill(self) -> None:
        while True:
            self._drop_old()
            if len(self._ready) >= self._size:
                self._taken.clear()
                # Wakes up at times even if no key is taken, to replace old keys.
                try:
                    async with asyncio.timeout(MAX_AGE_SECONDS / 24):
                        await self._taken.wait()
                except TimeoutError:
                    continue
            try:
                pair = await self._maker.make()
            except (OSError, EOFError, ValueError) as error:
                _log.warning("ready keys cannot be made for now", reason=type(error).__name__)
                self._maker.close()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._ready.append((time.monotonic(), pair))
            metrics.pool_level(len(self._ready))

    async def read(self, pem: str) -> keys.KeyPair:
        """Load and validate an uploaded private key; raises keys.Unusable, or Unavailable if too many are waiting."""
        return await self._checkers.run(lambda: keys.read_pem(pem))

    async def judge(self, work: Callable[[], T]) -> T:
        """Run chain verification on a thread; returns its result. Raises Unavailable if too many are waiting."""
        return await self._judges.run(work)

    def close(self) -> None:
        if self._filler:
            self._filler.cancel()
        self._maker.close()
        self.forget()
        metrics.pool_level(0)
        self._makers.close()
        self._checkers.close()
        self._judges.close()


def _timed(key_type: KeyType | CaKeyType) -> keys.KeyPair:
    began = time.perf_counter()
    pair = keys.generate(key_type)
    metrics.key_generated(key_type.value, time.perf_counter() - began)
    return pair


class _Queue:
    def __init__(self, name: str, threads: int, most: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = most
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._most:
            raise Unavailable("too many keys or chains are being made or checked at once", retry_after=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
