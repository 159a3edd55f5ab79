"""The context of a request, set by a guard and passed to handlers."""

import msgspec

from app.caller import Caller, RequestInfo
from app.services import Services
from app.web.state import State


class CallerContext(msgspec.Struct, frozen=True):
    """The caller; the dialects add the scope."""

    state: State
    visit: RequestInfo
    caller: Caller

    @property
    def services(self) -> Services:
        return self.state.services
