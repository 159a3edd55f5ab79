"""The context of a request."""

from typing import TypeAlias

from app.caller import Scope
from app.web.context import CallerContext


class ScopeContext(CallerContext, frozen=True):
    """The caller, and the account of the CA or certificate in the path; the guard has checked the permission in it."""

    scope: Scope


CallerOnly: TypeAlias = CallerContext
Context: TypeAlias = ScopeContext
