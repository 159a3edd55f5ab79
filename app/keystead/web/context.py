"""The context of a request, set by a guard and passed to handlers."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from keystead.caller import Caller, RequestInfo, Scope
from keystead.services import Services
from keystead.store.database import Database
from keystead.web.state import State

T = TypeVar("T")


class CallerContext(msgspec.Struct, frozen=True):
    """The caller, for paths that name no account."""

    state: State
    request_info: RequestInfo
    caller: Caller

    @property
    def services(self) -> Services:
        return self.state.services

    async def read(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """As `State.read`, for this caller."""
        return await self.state.read(self.caller.id, work)


class ScopeContext(CallerContext, frozen=True):
    """The caller, and what the path names; the guard has checked the permission in it."""

    scope: Scope
