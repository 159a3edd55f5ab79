"""What every dialect reads the same way: bodies that are bounded in size and time, and strict JSON (RFC 8259)."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from app import bounds
from app.errors import KeysteadError

MAX_DIGITS = 1000


class TooLarge(KeysteadError):  # noqa: N818 - a state of the request, like the kinds of the core
    """The body has more bytes than are read."""


class Incomplete(KeysteadError):  # noqa: N818
    """The body did not arrive whole, or not in time; the text says which."""


async def read(stream: AsyncIterator[bytes], content_length: str, most: int, broken: type[Exception]) -> bytes:
    """The whole body; `broken` is what the stream raises when it ends early. Raises TooLarge and Incomplete."""
    too_large = TooLarge(f"The body is larger than {most} bytes.")
    if content_length.isascii() and content_length.isdigit() and int(content_length[:20]) > most:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(bounds.BODY_SECONDS):
            async for chunk in stream:
                size += len(chunk)
                if size > most:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise Incomplete(f"The body did not arrive within {bounds.BODY_SECONDS:.0f} seconds.") from None
    except broken:
        raise Incomplete("The body ended before it was complete, or is not well chunked.") from None
    return b"".join(chunks)


def parse(raw: bytes) -> Any:  # noqa: ANN401 - JSON
    """The value of a JSON text in UTF-8, also after a BOM; raises ValueError for anything else, and never more."""
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=_not_json, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def instead(raw: bytes) -> str:
    """What a body is that is not JSON, as the end of a sentence; empty when that is not plain."""
    if raw.startswith(b"\x1f\x8b"):
        return ": it is gzip, which is not unpacked here"
    return ": it is UTF-16, and JSON is UTF-8" if raw.startswith((b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")) else ""


def _integer(digits: str) -> float:
    # Python refuses to read very long ones; no field of ours takes them, and an unknown field may hold anything.
    return int(digits) if len(digits) < MAX_DIGITS else float("-inf" if digits.startswith("-") else "inf")


def _not_json(constant: str) -> NoReturn:
    # Python reads NaN and Infinity, which RFC 8259 does not have.
    raise ValueError(constant)
