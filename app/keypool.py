"""Where new key pairs come from: P-256 at once, RSA on threads behind a bounded queue."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app import keys
from app.errors import Unavailable
from app.model import KeyType

# 43 ms of a core for each RSA-2048 key: with two threads the last in this queue waits about 1.4 s.
MAX_WAITING = 64


class KeyPool:
    def __init__(self) -> None:
        # Generation releases the GIL, so threads use all cores.
        self._threads = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="keygen")
        self._waiting = 0

    async def take(self, key_type: KeyType) -> keys.KeyPair:
        """A new key pair that nobody else gets; raises Unavailable when too many callers wait for RSA keys."""
        if key_type is KeyType.P256V1:
            return keys.generate(key_type)
        return await self._run(lambda: keys.generate(key_type))

    async def read(self, pem: str) -> keys.KeyPair:
        """An uploaded private key, checked on the same threads; raises keys.Unusable, or Unavailable as `take`."""
        return await self._run(lambda: keys.read_pem(pem))

    async def _run(self, work: Callable[[], keys.KeyPair]) -> keys.KeyPair:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many keys are being made at once", retry_after=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
