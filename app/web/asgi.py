"""The types of ASGI, and of an answer that goes around the framework."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from app.caller import Visit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Answer(msgspec.Struct, frozen=True):
    """What a short road answers: a whole JSON body."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


# A way around the framework for the requests that come most often: None for those that are not its own.
ShortRoad = Callable[[Message, Receive, Visit], Awaitable[Answer | None]]
# What whoever asks for a path is told while too many wait, with REQUEST_ID for their own: None lets them in.
Door = Callable[[bytes], Answer | None]
REQUEST_ID = b"req-##############"
