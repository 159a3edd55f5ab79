"""One log line per request; all lines of one iteration of the event loop are a single write.

This takes a tenth of the general logger's time per line; a killed worker loses the lines of its last iteration.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec


class Line(msgspec.Struct, frozen=True):
    """The fields of a line; never a header, body or query, which may hold secrets."""

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
        """Count a request that was turned away; they are logged together, once a second."""
        if not self._turned_away:
            asyncio.get_running_loop().call_later(1, self._log_turned_away)
        self._turned_away += 1

    def _log_turned_away(self) -> None:
        count, self._turned_away = self._turned_away, 0
        now = datetime.now(UTC).isoformat(timespec="microseconds")[:26] + "Z"
        fields = {"event": "turned away", "level": "warning", "count": count, "timestamp": now}
        words = f"{now} [warning] turned away count={count}"
        self._lines.append(msgspec.json.encode(fields).decode("utf-8") if self._as_json else words)
        self.flush()

    def flush(self) -> None:
        if self._lines:
            text, self._lines = "\n".join(self._lines) + "\n", []
            stream = self.stream or sys.stderr
            stream.write(text)
            stream.flush()
