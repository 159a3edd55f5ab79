"""`/accounts[/{account_id}]`: each handler is one call to the core."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead import times
from keystead.caller import Access, Area
from keystead.cloudflare.context import CallerContext, ScopeContext
from keystead.cloudflare.envelope import Envelope, Hex32, Instant, Page
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import Body, BodyOnce, Id, Query, name_filter
from keystead.errors import Advice, Hint, Problem, Rule
from keystead.identity import accounts
from keystead.identity.accounts import Account
from keystead.store.paging import Direction, PageNumber, PerPage
from keystead.web.handling import delete, get, post, put
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import SubjectDefaults

_READ = Needs(Area.SETTINGS, Access.READ)
_WRITE = Needs(Area.SETTINGS, Access.WRITE, fresh=True)


class AccountSettings(msgspec.Struct, frozen=True):
    """Kept and given back; there is no second factor here."""

    enforce_twofactor: bool
    abuse_contact_email: str | None


class AccountObject(msgspec.Struct, frozen=True):
    """An account as the SDKs read it; `slug`, `name_policy` and `csr_subject` are ours."""

    id: Hex32
    name: str
    type: Literal["standard"]
    created_on: Instant
    slug: str
    name_policy: NamePolicy
    settings: AccountSettings
    csr_subject: SubjectDefaults


def _is_true(value: bool) -> bool:
    return value


def _is_nothing(_: object) -> bool:
    return False


class AccountSettingsRequest(msgspec.Struct, frozen=True):
    """What is left out, null or empty is unset."""

    enforce_twofactor: bool | None = None
    abuse_contact_email: Annotated[str, Meta(max_length=254)] | None = None


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
    settings: AccountSettingsRequest | None = None
    unit: (
        Annotated[
            dict[str, Any],
            Meta(
                extra={"check": _is_nothing, "expected": "left out: there are no tenant units here"},
                extra_json_schema={"type": "null"},
            ),
        ]
        | None
    ) = None


class AccountChange(AccountRequest, frozen=True):
    """A new name, and settings as a whole; without them they stay."""

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
        draft = _draft(data.fields, data.problems)
        account = await accounts.create(context.services.db, context.caller, draft, data.once)
        return context.envelope(_object(account), (*data.advice, *_advice(draft)))

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
        """Change an account."""
        problems, account_id = data.problems, context.scope.account_id.hex
        if data.fields.id not in (None, account_id):
            text = f"id must be that of the path, {account_id}, or left out."
            problems = (*problems, Problem(Rule.TEXT, "id", text))
        draft = _draft(data.fields, problems)
        account = await accounts.change(context.services.db, context.caller, context.scope, draft)
        return context.envelope(_object(account), (*data.advice, *_advice(draft)))

    @delete("/{account_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext) -> Envelope[DeletedAccount]:
        """Delete an empty account."""
        await accounts.delete(context.services.db, context.caller, context.scope)
        return context.envelope(DeletedAccount(context.scope.account_id.hex))


def _object(account: Account) -> AccountObject:
    return AccountObject(
        id=account.id.hex,
        name=account.name,
        type="standard",
        created_on=times.instant(account.created_at),
        slug=account.slug,
        name_policy=account.name_policy,
        settings=AccountSettings(account.enforce_twofactor, account.abuse_contact_email),
        csr_subject=account.csr_subject,
    )


def _draft(fields: AccountRequest, problems: tuple[Problem, ...]) -> accounts.Draft:
    sent = fields.settings
    settings = (
        accounts.AccountSettings(sent.enforce_twofactor or False, sent.abuse_contact_email or None) if sent else None
    )
    return accounts.Draft(fields.name, settings, problems)


def _advice(draft: accounts.Draft) -> tuple[Advice, ...]:
    if draft.settings is None or not draft.settings.enforce_twofactor:
        return ()
    text = "enforce_twofactor is kept and given back, and enforces nothing: there is no second factor here."
    return (Advice(Hint.OTHER, "settings", text),)
