"""The types of ASGI, and of an answer that is given without the framework."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Answer(msgspec.Struct, frozen=True):
    """A complete JSON answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


# Answers a path while the server is overloaded, with REQUEST_ID in place of the id; None admits the request.
Door = Callable[[bytes], Answer | None]
REQUEST_ID = b"req-##############"
