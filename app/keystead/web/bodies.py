"""Reading bodies, for both dialects: bounded in size and time, and strict JSON (RFC 8259).

Only authenticated callers may send more than 8 KiB, and the total size of all bodies in a worker is bounded
(docs/decisions/0027-bodies-of-strangers.md).
"""

import asyncio
import json
import time
from typing import Any, NoReturn

from keystead import bounds
from keystead.errors import KeysteadError, Unavailable
from keystead.web.asgi import header
from keystead.web.handling import AnyRequest

MAX_DIGITS = 1000
# Parsed, an empty list takes thirty times the memory of its text, and slows the garbage collector. The largest useful
# body has some 8,000 values (policies of a token). Brackets and commas within strings count, too.
MAX_VALUES = 20_000


class TooLarge(KeysteadError):  # noqa: N818 - a state of the request, like the kinds of the core
    """The body has too many bytes."""


class Incomplete(KeysteadError):  # noqa: N818
    """The body ended early or did not arrive in time; the text says which."""


class TooMany(ValueError):  # noqa: N818
    """The body has too many JSON values."""


class Reservation:
    """The bytes of a Budget for one body, until `release`; `reading` is its time-out until it is complete."""

    def __init__(self, budget: "Budget", size: int, reading: asyncio.Timeout) -> None:
        self.size = size
        self.reading = reading
        self.since = time.monotonic()
        self._budget = budget

    def release(self) -> None:
        """Give the bytes back; further calls do nothing."""
        self._budget.free += self.size
        self.size = 0
        self.complete()

    def complete(self) -> None:
        self._budget.unfinished.pop(self, None)


class Budget:
    """The memory for all bodies in this worker, in bytes.

    Slow senders cannot block it: when it is used up, bodies still incomplete after HURRIED_BODY_SECONDS are dropped.
    """

    def __init__(self, size: int) -> None:
        self.free = size
        self.unfinished: dict[Reservation, None] = {}

    def reserve(self, size: int, reading: asyncio.Timeout) -> Reservation:
        """Reserve `size` bytes; raises Unavailable if there is not enough left."""
        late = time.monotonic() - bounds.HURRIED_BODY_SECONDS
        while self.free < size and self.unfinished and (oldest := next(iter(self.unfinished))).since <= late:
            oldest.release()
            oldest.reading.reschedule(0)
        if self.free < size:
            raise Unavailable("too many requests are sending their bodies")
        self.free -= size
        reserved = Reservation(self, size, reading)
        self.unfinished[reserved] = None
        return reserved


class Budgets:
    """The two Budgets of a worker: for callers not yet authenticated, such as logins, and for all others."""

    def __init__(self) -> None:
        self.unadmitted = Budget(bounds.UNADMITTED_BODY_BYTES)
        self.admitted = Budget(bounds.ADMITTED_BODY_BYTES)


async def read(request: AnyRequest, most: int) -> bytes:
    """The complete body; raises TooLarge, Incomplete, Unavailable.

    With a `caller_id` in the request's state the caller is authenticated. The edge releases the reserved bytes.
    """
    state = request.scope["state"]
    known, budgets = "caller_id" in state, state["budgets"]
    most = most if known else bounds.SMALL_BODY
    too_large = TooLarge(f"The body is larger than {most} bytes.")
    length = header(request.scope["headers"], b"content-length") or ""
    declared = int(length[:20]) if length.isascii() and length.isdigit() else most
    if declared > most:
        raise too_large
    chunks, size, reserved, more = [], 0, None, True
    try:
        async with asyncio.timeout(bounds.BODY_SECONDS) as reading:
            if not known:
                reserved = state["reserved"] = budgets.unadmitted.reserve(declared, reading)
            while more:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise Incomplete("The body ended before it was complete, or is not well chunked.")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size > most:
                    raise too_large
                if reserved is None and size > bounds.SMALL_BODY:
                    reserved = state["reserved"] = budgets.admitted.reserve(declared, reading)
                chunks.append(chunk)
    except TimeoutError:
        if reserved and not reserved.size:
            seconds = f"{bounds.HURRIED_BODY_SECONDS:g} second while too many others wait"
        else:
            seconds = f"{bounds.BODY_SECONDS:.0f} seconds"
        raise Incomplete(f"The body did not arrive within {seconds}.") from None
    finally:
        if reserved:
            reserved.complete()
    return b"".join(chunks)


def parse(raw: bytes) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON in UTF-8, with or without a BOM; raises ValueError and nothing else."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise TooMany(f"The body has more than {MAX_VALUES} values.")
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=_not_json, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def instead(raw: bytes) -> str:
    """A recognised cause why a body is not JSON, as the end of a sentence; empty if there is none."""
    if raw.startswith(b"\x1f\x8b"):
        return ": it is gzip, which is not unpacked here"
    return ": it is UTF-16, and JSON is UTF-8" if raw.startswith((b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")) else ""


def _integer(digits: str) -> float:
    # Python raises for very long integers, but they are allowed in unknown fields; no field of ours takes them.
    return int(digits) if len(digits) < MAX_DIGITS else float("-inf" if digits.startswith("-") else "inf")


def _not_json(constant: str) -> NoReturn:
    # Python's parser accepts NaN and Infinity, which are not JSON (RFC 8259 section 6).
    raise ValueError(constant)
