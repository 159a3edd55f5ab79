"""The types of ASGI, and of an answer that is given without the framework."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import msgspec

Headers: TypeAlias = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value of a header, whose name is in lower case."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


class Answer(msgspec.Struct, frozen=True):
    """A complete JSON answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


# The answer for a path while the server is overloaded, with REQUEST_ID in place of the id; None admits the request.
Overload = Callable[[bytes], Answer | None]
REQUEST_ID = b"req-##############"
