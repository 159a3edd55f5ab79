"""What the guard found of a request."""

from typing import TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from app.caller import Scope
from app.web.context import CallerContext


class ScopeContext(CallerContext, frozen=True):
    """Who asks, and the account of the CA or certificate that the path names, where they may do what is asked."""

    scope: Scope


CallerOnly: TypeAlias = NamedDependency[SkipValidation[CallerContext]]
Context: TypeAlias = NamedDependency[SkipValidation[ScopeContext]]
