"""The context of a request, and the envelopes of its answers."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from keystead.caller import Scope
from keystead.cloudflare.envelope import Envelope, Item, Page, ResultInfo
from keystead.cloudflare.errors import Reference
from keystead.errors import Advice
from keystead.web import context

T = TypeVar("T")


class CallerContext(context.CallerContext, frozen=True):
    """The caller, for paths without an account or zone."""

    def envelope(self, result: T, advice: Iterable[Advice] = (), messages: Sequence[Item] = ()) -> Envelope[T]:
        items = Reference(self.state.public_url).advice(advice) if advice else []
        return Envelope(result, True, [], [*items, *messages])

    def page(self, items: list[T], page: int, per_page: int, total: int) -> Page[T]:
        return Page(items, True, [], [], ResultInfo(len(items), page, per_page, total, -(-total // per_page)))


class ScopeContext(CallerContext, frozen=True):
    """The caller, and the account or zone of the path; the guard has checked the handler's permission in it."""

    scope: Scope
