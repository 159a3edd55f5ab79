"""Where key pairs come from: EC ones at once, RSA on threads, uploads checked on a thread of their own; all bounded."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app import keys
from app.errors import Unavailable
from app.model import CaKeyType, KeyType

# 43 ms of a core for each RSA-2048 key: with two threads the last in this queue waits about 1.4 s.
MAX_WAITING = 64
# The check of an uploaded RSA-8192 key takes seconds, and the making of CSRs must not wait behind it.
MAX_CHECKS = 8


class KeyPool:
    def __init__(self) -> None:
        # Both release the GIL, so threads use all cores.
        self._makers = _Queue("keygen", os.cpu_count() or 1, MAX_WAITING)
        self._checkers = _Queue("keycheck", 1, MAX_CHECKS)

    async def take(self, key_type: KeyType | CaKeyType) -> keys.KeyPair:
        """A new key pair that nobody else gets; raises Unavailable when too many callers wait for RSA keys."""
        if keys.is_elliptic(key_type):
            return keys.generate(key_type)
        return await self._makers.run(lambda: keys.generate(key_type))

    async def read(self, pem: str) -> keys.KeyPair:
        """An uploaded private key, fully checked; raises keys.Unusable, or Unavailable when too many are waiting."""
        return await self._checkers.run(lambda: keys.read_pem(pem))

    def close(self) -> None:
        self._makers.close()
        self._checkers.close()


class _Queue:
    def __init__(self, name: str, threads: int, most: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = most
        self._waiting = 0

    async def run(self, work: Callable[[], keys.KeyPair]) -> keys.KeyPair:
        if self._waiting >= self._most:
            raise Unavailable("too many keys are being made or checked at once", retry_after=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
