"""When callers last wrote, in a small memory-mapped file that all workers of a server share.

Each worker has a region of the file that it alone writes to, so that nothing is locked for a request. Two callers of
one slot count as one, which only makes more of their reads go to the primary.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from keystead import bounds

SECOND = 1_000_000_000
_SLOTS = 4096
_BYTES = 8
# Of a caller whose write has not ended, also if the worker was killed in it.
_RUNNING = 2**64 - 1
# After a failure or the end of a worker, a last statement may still run in the database.
_UNSURE = int(bounds.STATEMENT_SECONDS) * SECOND


def now() -> int:
    """Nanoseconds of a clock that is the same in all processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Writes:
    def __init__(self, path: Path, workers: int) -> None:
        # While a server reloads, its old and new workers and a trial one run together.
        self._regions = 2 * workers + 2
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = _SLOTS * self._regions * _BYTES
        os.ftruncate(self._fd, size)
        self._map = mmap.mmap(self._fd, size)
        # The regions' times of one slot lie together. Native integers, which are read and written whole.
        self._times = memoryview(self._map).cast("Q")
        self._region = self._claimed()
        self._running = [0] * _SLOTS
        self._latest = [now() + _UNSURE] * _SLOTS
        for slot in range(_SLOTS):
            self._set(slot, self._latest[slot])

    def close(self) -> None:
        self._times.release()
        self._map.close()
        os.close(self._fd)

    def _claimed(self) -> int:
        for region in range(self._regions):
            try:
                # The kernel gives it up when this process ends.
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, region)
            except BlockingIOError:
                continue
            return region
        raise RuntimeError(f"there are more workers than the {self._regions} that may write")

    def _set(self, slot: int, when: int) -> None:
        self._times[slot * self._regions + self._region] = when

    def latest(self, caller_id: UUID) -> int:
        """When this caller wrote last; later than now while a write runs, or if it is not known how one ended."""
        first = caller_id.int % _SLOTS * self._regions
        return max(self._times[first : first + self._regions])

    @contextmanager
    def noted(self, caller_id: UUID) -> Iterator[None]:
        """Note that this caller writes within the block, and when it ended."""
        slot = caller_id.int % _SLOTS
        self._running[slot] += 1
        self._set(slot, _RUNNING)
        unsure = _UNSURE
        try:
            yield
            unsure = 0
        finally:
            self._running[slot] -= 1
            self._latest[slot] = max(self._latest[slot], now() + unsure)
            if not self._running[slot]:
                self._set(slot, self._latest[slot])
