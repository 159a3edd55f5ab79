"""One log line per request; all lines of one iteration of the event loop are a single write.

This takes a tenth of the general logger's time per line; a killed worker loses the lines of its last iteration.
"""

import asyncio
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO
from uuid import UUID

import msgspec

_encoder = msgspec.json.Encoder()


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds // 1000:06}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


class Line(msgspec.Struct, frozen=True):
    """The fields of a line; never a header, body or query, which may hold secrets."""

    request_id: str
    method: str
    path: str
    route: str
    status: int
    ms: float
    caller: UUID | None
    address: str | None
    event: str = "request"
    level: str = "info"
    timestamp: str = msgspec.field(default_factory=_now)

    def text(self) -> str:
        """The line for people."""
        who = f"caller={self.caller} address={self.address} request_id={self.request_id}"
        what = f"{self.method} {self.path} route={self.route} status={self.status} ms={self.ms}"
        return f"{self.timestamp} [{self.level}] {self.event} {what} {who}"


class Rejections(msgspec.Struct, frozen=True):
    """The requests of one second that were rejected because the server is overloaded."""

    count: int
    event: str = "turned away"
    level: str = "warning"
    timestamp: str = msgspec.field(default_factory=_now)

    def text(self) -> str:
        return f"{self.timestamp} [{self.level}] {self.event} count={self.count}"


class RequestLog:
    """Writes lines as JSON or for people, to standard error unless it is given another stream."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self.stream = stream
        self._lines: list[Line | Rejections] = []
        self._rejected = 0

    def write(self, line: Line | Rejections) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(line)

    def count_rejected(self) -> None:
        """Count a request that was rejected; they are logged together, once a second."""
        if not self._rejected:
            asyncio.get_running_loop().call_later(1, self._write_rejected)
        self._rejected += 1

    def _write_rejected(self) -> None:
        self.write(Rejections(self._rejected))
        self._rejected = 0

    def flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            stream = self.stream or sys.stderr
            if self._as_json:
                stream.write(_encoder.encode_lines(lines).decode())
            else:
                stream.write("".join(f"{line.text()}\n" for line in lines))
            stream.flush()
