"""`/accounts[/{account_id}]`: each handler is one call to the core."""

from typing import Annotated, Literal

import msgspec
from litestar import Controller
from msgspec import Meta

from app import times
from app.caller import Access, Area
from app.cloudflare.context import CallerContext, ScopeContext
from app.cloudflare.envelope import Envelope, Hex32, Instant, Page
from app.cloudflare.guard import Needs
from app.cloudflare.reading import Body, BodyOnce, Id, Query, name_filter
from app.errors import Problem, Rule
from app.identity import accounts
from app.identity.accounts import Account
from app.store.paging import Direction, PageNumber, PerPage
from app.web.handling import delete, get, post, put
from app.x509.names import NamePolicy

_READ = Needs(Area.SETTINGS, Access.READ)
_WRITE = Needs(Area.SETTINGS, Access.WRITE, fresh=True)


class AccountObject(msgspec.Struct, frozen=True):
    """An account as the SDKs read it; `slug` and `name_policy` are ours."""

    id: Hex32
    name: str
    type: Literal["standard"]
    created_on: Instant
    slug: str
    name_policy: NamePolicy


def _is_true(value: bool) -> bool:
    return value


class AccountRequest(msgspec.Struct, frozen=True):
    """A new account."""

    name: Annotated[str, Meta(min_length=1, max_length=accounts.MAX_NAME)]
    type: Literal["standard"] | None = None
    standalone: (
        Annotated[
            bool, Meta(extra={"check": _is_true, "expected": "true, or left out"}, extra_json_schema={"const": True})
        ]
        | None
    ) = None


class AccountChange(AccountRequest, frozen=True):
    """A new name; nothing else can be changed."""

    id: Id | None = None


class AccountFilters(msgspec.Struct, frozen=True):
    """There is only one filter, so both values of `match` mean the same."""

    page: PageNumber = 1
    per_page: PerPage = 20
    name: str | None = None
    direction: Direction = Direction.ASC
    match: Literal["any", "all"] = "all"


class DeletedAccount(msgspec.Struct, frozen=True):
    id: Hex32


class Accounts(Controller):
    path = "/accounts"
    tags = ("Accounts",)

    @post()
    async def create(self, context: CallerContext, data: BodyOnce[AccountRequest]) -> Envelope[AccountObject]:
        """Make an account."""
        db, name = context.services.db, data.fields.name
        account = await accounts.create(db, context.caller, name, data.problems, data.once)
        return context.envelope(_object(account), data.advice)

    @get()
    async def list_(self, context: CallerContext, filters: Query[AccountFilters]) -> Page[AccountObject]:
        """List the accounts."""
        name = name_filter("name", filters.name)
        query = accounts.Query(filters.page, filters.per_page, name, filters.direction)
        found = await accounts.list_page(context.services.db, context.caller, query)
        return context.page([_object(each) for each in found.items], query.page, query.per_page, found.total)

    @get("/{account_id:str}", needs=_READ)
    async def get_one(self, context: ScopeContext) -> Envelope[AccountObject]:
        """Get an account."""
        return context.envelope(_object(await accounts.get(context.services.db, context.scope)))

    @put("/{account_id:str}", needs=_WRITE)
    async def update(self, context: ScopeContext, data: Body[AccountChange]) -> Envelope[AccountObject]:
        """Rename an account."""
        problems, account_id = data.problems, context.scope.account_id.hex
        if data.fields.id not in (None, account_id):
            text = f"id must be that of the path, {account_id}, or left out."
            problems = (*problems, Problem(Rule.TEXT, "id", text))
        account = await accounts.rename(context.services.db, context.caller, context.scope, data.fields.name, problems)
        return context.envelope(_object(account), data.advice)

    @delete("/{account_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext) -> Envelope[DeletedAccount]:
        """Delete an empty account."""
        await accounts.delete(context.services.db, context.caller, context.scope)
        return context.envelope(DeletedAccount(context.scope.account_id.hex))


def _object(account: Account) -> AccountObject:
    created = times.instant(account.created_at)
    return AccountObject(account.id.hex, account.name, "standard", created, account.slug, account.name_policy)
