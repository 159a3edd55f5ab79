"""One line for each request, written together: all lines of one turn of the event loop are one write.

A line takes a tenth of the time that the general logger would; a worker that is killed loses those of its last turn.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec


class Line(msgspec.Struct, frozen=True):
    """What is told of a request: no header, no body, no query."""

    request_id: str
    method: str
    path: str
    route: str
    status: int
    ms: float
    caller: str | None
    address: str | None
    event: str
    level: str
    timestamp: str


class RequestLog:
    """Writes lines as JSON or for people, to standard error unless it is given another stream."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self.stream = stream
        self._lines: list[str] = []
        self._turned_away = 0

    def write(
        self,
        request_id: str,
        method: str,
        path: str,
        route: str,
        status: int,
        seconds: float,
        caller: str | None,
        address: str | None,
    ) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")[:26] + "Z"
        ms = round(seconds * 1000, 2)
        if self._as_json:
            line = Line(request_id, method, path, route, status, ms, caller, address, "request", "info", now)
            text = msgspec.json.encode(line).decode("utf-8")
        else:
            who = f"caller={caller} address={address} request_id={request_id}"
            text = f"{now} [info] request {method} {path} route={route} status={status} ms={ms} {who}"
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(text)

    def turned_away(self) -> None:
        """Count a request that was turned away; once a second there is one line for all of them."""
        if not self._turned_away:
            asyncio.get_running_loop().call_later(1, self._tell)
        self._turned_away += 1

    def _tell(self) -> None:
        count, self._turned_away = self._turned_away, 0
        now = datetime.now(UTC).isoformat(timespec="microseconds")[:26] + "Z"
        told = {"event": "turned away", "level": "warning", "count": count, "timestamp": now}
        words = f"{now} [warning] turned away count={count}"
        self._lines.append(msgspec.json.encode(told).decode("utf-8") if self._as_json else words)
        self.flush()

    def flush(self) -> None:
        if self._lines:
            text, self._lines = "\n".join(self._lines) + "\n", []
            stream = self.stream or sys.stderr
            stream.write(text)
            stream.flush()
