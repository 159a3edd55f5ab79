"""Rate limits: a GCRA whose state all workers of a machine share in a small memory-mapped file.

GCRA keeps one number per key, the theoretical arrival time. An entry in the past equals no entry, so the table has a
fixed size and needs no cleaning. If a bucket is full of live entries, the one closest to its full quota is replaced,
which at worst forgives a caller a few requests.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import time
from functools import lru_cache
from pathlib import Path

import msgspec

from app.config import RateLimit

_BUCKETS = 4096
_WAYS = 8
_ENTRY = struct.Struct("<16sQ")
_BUCKET_BYTES = _ENTRY.size * _WAYS
_SECOND = 1_000_000_000


class Verdict(msgspec.Struct, frozen=True):
    """Times in whole seconds: `reset` until the full quota is back; `retry_after` is 0 if the request is allowed."""

    allowed: bool
    remaining: int
    reset: int
    retry_after: int


class Limiter:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, _BUCKETS * _BUCKET_BYTES)
        self._table = mmap.mmap(self._fd, _BUCKETS * _BUCKET_BYTES)

    def close(self) -> None:
        self._table.close()
        os.close(self._fd)

    def hit(self, key: bytes, limit: RateLimit) -> Verdict:
        """Count one request of `key`; a refused one is not counted."""
        digest, offset = _slot(key)
        # A file lock, because the kernel releases it if the worker is killed while holding it. One for the table: it is
        # held for some microseconds, and record locks cost twice as much.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            return self._hit(digest, offset, limit)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _hit(self, digest: bytes, offset: int, limit: RateLimit) -> Verdict:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        window = limit.window * _SECOND
        position = self._table.find(digest, offset, offset + _BUCKET_BYTES)
        if position < 0 or (position - offset) % _ENTRY.size:
            arrivals = [each for _, each in _ENTRY.iter_unpack(self._table[offset : offset + _BUCKET_BYTES])]
            position, arrival = offset + arrivals.index(min(arrivals)) * _ENTRY.size, now
        else:
            arrival = max(_ENTRY.unpack_from(self._table, position)[1], now)
            if arrival > now + window:
                # Written before a reboot, since which the clock has restarted: ignore the entry.
                arrival = now
        next_arrival = arrival + window // limit.quota
        if next_arrival - now > window:
            return Verdict(False, 0, _seconds(arrival - now), _seconds(next_arrival - now - window))
        _ENTRY.pack_into(self._table, position, digest, next_arrival)
        remaining = (window - (next_arrival - now)) * limit.quota // window
        return Verdict(True, remaining, _seconds(next_arrival - now), 0)


@lru_cache(maxsize=4096)
def _slot(key: bytes) -> tuple[bytes, int]:
    """The digest of a key, and where its bucket begins."""
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return digest, int.from_bytes(digest[:2], "little") % _BUCKETS * _BUCKET_BYTES


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // _SECOND)
