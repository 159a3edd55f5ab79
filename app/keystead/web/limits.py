"""Rate limits: a GCRA whose state all workers of a machine share in a small memory-mapped file.

GCRA keeps one number per key, the theoretical arrival time. An entry in the past equals no entry, so the table has a
fixed size and needs no cleaning. If a bucket is full of live entries, the one closest to its full quota is replaced,
which at worst forgives a caller a few requests.

While much of a quota is left, a worker counts some requests before they come, and needs the table for few of them
(docs/decisions/0036-counted-ahead.md).
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

from keystead.config import RateLimit

_BUCKETS = 4096
_WAYS = 8
_ENTRY = struct.Struct("<16sQ")
_BUCKET_BYTES = _ENTRY.size * _WAYS
_SECOND = 1_000_000_000
# Counted ahead: so many requests, at most this part of what is left, for 10 ms.
_MOST_AHEAD = 8
_PART_AHEAD = 64
_AHEAD_NANOSECONDS = 10_000_000
_MOST_KEYS_AHEAD = 1024
# For the lock: it is held for some microseconds, unless the worker that has it is stopped.
_PATIENCE = 0.1


class Verdict(msgspec.Struct, frozen=True):
    """Times in whole seconds: `reset` until the full quota is back; `retry_after` is 0 if the request is allowed."""

    allowed: bool
    remaining: int
    reset: int
    retry_after: int


class _Ahead(msgspec.Struct):
    """The requests of a key that are counted and have not come; `arrival` is the arrival time with all of them."""

    left: int
    arrival: int
    until: int
    interval: int


class Limiter:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, _BUCKETS * _BUCKET_BYTES)
        self._table = mmap.mmap(self._fd, _BUCKETS * _BUCKET_BYTES)
        self._ahead: dict[bytes, _Ahead] = {}
        self._patience = _PATIENCE

    def close(self) -> None:
        self._give_all_back()
        self._table.close()
        os.close(self._fd)

    def hit(self, key: bytes, limit: RateLimit) -> Verdict:
        """Count one request of `key`; a refused one is not counted."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ahead = self._ahead.get(key)
        if ahead is None or not ahead.left or now >= ahead.until:
            return self._count(key, limit, now)
        ahead.left -= 1
        return _allowed(ahead.arrival - ahead.left * ahead.interval, limit, now)

    def _count(self, key: bytes, limit: RateLimit, now: int) -> Verdict:
        window, interval = limit.window * _SECOND, limit.window * _SECOND // limit.quota
        locked = self._lock()
        try:
            position, arrival = self._find(key, now, window)
            arrival = max(arrival - self._unused(key, now), now)
            if arrival + interval - now > window:
                return Verdict(False, 0, _seconds(arrival - now), _seconds(arrival + interval - now - window))
            arrival += interval
            count = min((window - (arrival - now)) // interval // _PART_AHEAD, _MOST_AHEAD)
            _ENTRY.pack_into(self._table, position, _slot(key)[0], arrival + count * interval)
        finally:
            if locked:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        if count:
            if len(self._ahead) >= _MOST_KEYS_AHEAD:
                self._give_all_back()
            self._ahead[key] = _Ahead(count, arrival + count * interval, now + _AHEAD_NANOSECONDS, interval)
        return _allowed(arrival, limit, now)

    def _lock(self) -> bool:
        """Lock the table. False if another worker keeps the lock: to be inexact is better than to stand still."""
        # A file lock, because the kernel releases it if the worker is killed while holding it. One for the table,
        # since record locks cost twice as much.
        deadline = 0.0
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                deadline = deadline or time.monotonic() + self._patience
                if time.monotonic() >= deadline:
                    # Nor is it waited for again until it was free once.
                    self._patience = 0.0
                    return False
                time.sleep(0.0001)
            else:
                self._patience = _PATIENCE
                return True

    def _find(self, key: bytes, now: int, window: int) -> tuple[int, int]:
        """Where the entry of a key is or will be, and its arrival time."""
        position = self._position(key)
        if position is None:
            self._ahead.pop(key, None)
            offset = _slot(key)[1]
            arrivals = [each for _, each in _ENTRY.iter_unpack(self._table[offset : offset + _BUCKET_BYTES])]
            return offset + arrivals.index(min(arrivals)) * _ENTRY.size, now
        arrival: int = _ENTRY.unpack_from(self._table, position)[1]
        # Beyond that it was written before a reboot, since which the clock has restarted.
        return position, arrival if arrival <= now + window else now

    def _position(self, key: bytes) -> int | None:
        digest, offset = _slot(key)
        position = self._table.find(digest, offset, offset + _BUCKET_BYTES)
        return None if position < 0 or (position - offset) % _ENTRY.size else position

    def _unused(self, key: bytes, now: int) -> int:
        """The nanoseconds by which the arrival time of a key is later for requests that have not come."""
        ahead = self._ahead.pop(key, None)
        # What lies before now was given back by time itself.
        return min(ahead.left * ahead.interval, max(ahead.arrival - now, 0)) if ahead else 0

    def _give_all_back(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        locked = self._lock()
        try:
            for key in [*self._ahead]:
                position = self._position(key)
                if position is not None:
                    digest, arrival = _ENTRY.unpack_from(self._table, position)
                    _ENTRY.pack_into(self._table, position, digest, arrival - self._unused(key, now))
            self._ahead.clear()
        finally:
            if locked:
                fcntl.flock(self._fd, fcntl.LOCK_UN)


def _allowed(arrival: int, limit: RateLimit, now: int) -> Verdict:
    window = limit.window * _SECOND
    until_full = max(arrival - now, window // limit.quota)
    return Verdict(True, (window - until_full) * limit.quota // window, _seconds(until_full), 0)


@lru_cache(maxsize=4096)
def _slot(key: bytes) -> tuple[bytes, int]:
    """The digest of a key, and where its bucket begins."""
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return digest, int.from_bytes(digest[:2], "little") % _BUCKETS * _BUCKET_BYTES


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // _SECOND)
