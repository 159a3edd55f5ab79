"""Clients that take little of the machine themselves, on bare connections.

The open loop begins requests when they are due, however late the answers are, and times them from then.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import cast


class _Connection(asyncio.Protocol):
    def __init__(self, latencies: list[float], then: "Callable[[_Connection], None] | None" = None) -> None:
        self.latencies = latencies
        self.then = then
        self.due: deque[float] = deque()
        self.buffer = b""
        self.failed = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (head := self.buffer.find(b"\r\n\r\n")) >= 0:
            lower = self.buffer[:head].lower()
            at = lower.index(b"content-length: ") + 16
            end = head + 4 + int(lower[at:].split(b"\r\n", 1)[0])
            if len(self.buffer) < end:
                return
            self.failed += not self.buffer.startswith(b"HTTP/1.1 2")
            self.buffer = self.buffer[end:]
            self.latencies.append(time.perf_counter() - self.due.popleft())
            if self.then:
                self.then(self)

    def write(self, request: bytes) -> None:
        assert self.transport is not None
        self.transport.write(request)

    def close(self) -> None:
        assert self.transport is not None
        self.transport.close()


async def open_loop(port: int, request: bytes, rate: float, seconds: float, connections: int = 32) -> list[float]:
    """Latencies in seconds of `rate` requests a second; raises when one was not answered by a 2xx."""
    loop, latencies = asyncio.get_running_loop(), list[float]()
    made = [await loop.create_connection(lambda: _Connection(latencies), "127.0.0.1", port) for _ in range(connections)]
    began = time.perf_counter()
    sent, total = 0, int(rate * seconds)
    while sent < total:
        now = time.perf_counter()
        while sent < total and began + sent / rate <= now:
            # The least busy one of two, since one slow answer holds up what comes behind it.
            transport, protocol = min(made[sent % connections], made[(sent * 7 + 3) % connections], key=_waiting)
            protocol.due.append(began + sent / rate)
            transport.write(request)
            sent += 1
        await asyncio.sleep(max(0.0, began + sent / rate - time.perf_counter()))
    deadline = time.perf_counter() + 30
    while len(latencies) < total and time.perf_counter() < deadline:  # noqa: ASYNC110 - the protocols have no loop's event
        await asyncio.sleep(0.01)
    failed = sum(protocol.failed for _, protocol in made) + total - len(latencies)
    for transport, _ in made:
        transport.close()
    if failed:
        raise AssertionError(f"{failed} of {total} requests were not answered well")
    return latencies


async def closed_loop(port: int, requests: Iterable[bytes], connections: int) -> tuple[float, list[float]]:
    """All of these, each connection with one at a time: the seconds in all, and of each."""
    loop, latencies, left = asyncio.get_running_loop(), list[float](), iter(requests)
    done, busy = asyncio.Event(), connections

    def ask(connection: _Connection) -> None:
        nonlocal busy
        if (request := next(left, None)) is not None:
            connection.due.append(time.perf_counter())
            connection.write(request)
        else:
            busy -= 1
            if not busy:
                done.set()

    made = [
        (await loop.create_connection(lambda: _Connection(latencies, ask), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    began = time.perf_counter()
    for connection in made:
        ask(connection)
    async with asyncio.timeout(60):
        await done.wait()
    seconds = time.perf_counter() - began
    failed = sum(connection.failed for connection in made)
    for connection in made:
        connection.close()
    if failed:
        raise AssertionError(f"{failed} of {len(latencies)} requests were not answered well")
    return seconds, latencies


def _waiting(pair: tuple[asyncio.Transport, _Connection]) -> int:
    return len(pair[1].due)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
