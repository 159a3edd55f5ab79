"""The context of a request, set by a guard and passed to handlers."""

import msgspec

from keystead.caller import Caller, RequestInfo, Scope
from keystead.services import Services
from keystead.web.state import State


class CallerContext(msgspec.Struct, frozen=True):
    """The caller, for paths that name no account."""

    state: State
    request_info: RequestInfo
    caller: Caller

    @property
    def services(self) -> Services:
        return self.state.services


class ScopeContext(CallerContext, frozen=True):
    """The caller, and what the path names; the guard has checked the permission in it."""

    scope: Scope
