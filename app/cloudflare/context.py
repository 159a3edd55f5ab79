"""What the guard found of a request, and how a handler answers."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import msgspec
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from app.caller import Caller, Scope, Visit
from app.cloudflare.envelope import Envelope, Item, Page, ResultInfo
from app.cloudflare.errors import Reference
from app.errors import Advice
from app.web.handling import AnyRequest
from app.web.state import House

T = TypeVar("T")


class CallerContext(msgspec.Struct, frozen=True):
    """Who asks, where the path names no account or zone."""

    house: House
    reference: Reference
    visit: Visit
    caller: Caller

    def envelope(self, result: T, advice: Iterable[Advice] = (), messages: Sequence[Item] = ()) -> Envelope[T]:
        return Envelope(result, True, [], [*self.reference.advice(advice), *messages])

    def page(self, items: list[T], page: int, per_page: int, total: int) -> Page[T]:
        return Page(items, True, [], [], ResultInfo(len(items), page, per_page, total, -(-total // per_page)))


class ScopeContext(CallerContext, frozen=True):
    """Who asks, and the account or zone of the path, in which they may do what the handler needs."""

    scope: Scope


CallerOnly: TypeAlias = NamedDependency[SkipValidation[CallerContext]]
Context: TypeAlias = NamedDependency[SkipValidation[ScopeContext]]


async def _context(request: AnyRequest) -> ScopeContext:
    found: ScopeContext = request.scope["state"]["context"]
    return found


DEPENDENCIES = {"context": Provide(_context)}
