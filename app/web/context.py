"""The context of a request, set by a guard and passed to handlers."""

from typing import Any

import msgspec
from litestar.di import Provide

from app.caller import Caller, RequestInfo
from app.services import Services
from app.web.handling import AnyRequest
from app.web.state import State


class CallerContext(msgspec.Struct, frozen=True):
    """The caller; the dialects add the scope."""

    state: State
    visit: RequestInfo
    caller: Caller

    @property
    def services(self) -> Services:
        return self.state.services


async def _context(request: AnyRequest) -> Any:  # noqa: ANN401 - each dialect's own kind
    return request.scope["state"]["context"]


DEPENDENCIES = {"context": Provide(_context)}
