"""`/accounts[/{account_id}]`: each handler is one call to the core."""

import msgspec
from litestar import Controller

from app import times
from app.caller import Access, Area
from app.cloudflare import reading
from app.cloudflare.context import CallerOnly, Context
from app.cloudflare.envelope import Envelope, Page
from app.cloudflare.guard import Needs
from app.errors import Advice, Problem, Rule, quoted
from app.identity import accounts
from app.identity.accounts import Account
from app.store.paging import Direction
from app.web.handling import AnyRequest, delete, get, post, put
from app.x509.names import NamePolicy

_READ = Needs(Area.SETTINGS, Access.READ)
_WRITE = Needs(Area.SETTINGS, Access.WRITE, anew=True)
PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE = 20, 5, 50
TYPE = "standard"


class AccountObject(msgspec.Struct, frozen=True):
    """An account as the SDKs read it; `slug` and `name_policy` are ours."""

    id: str
    name: str
    type: str
    created_on: str
    slug: str
    name_policy: NamePolicy


class DeletedAccount(msgspec.Struct, frozen=True):
    id: str


class Accounts(Controller):
    path = "/accounts"

    @post()
    async def create(self, context: CallerOnly, request: AnyRequest) -> Envelope[AccountObject]:
        """Make an account."""
        raw = await reading.body(request)
        once = reading.idempotency(request, raw)
        name, malformed, advice = _decoded(raw, frozenset({"name", "type", "standalone"}))
        account = await accounts.create(context.services.db, context.caller, name, malformed, once)
        return context.envelope(_object(account), advice)

    @get()
    async def list_(self, context: CallerOnly, request: AnyRequest) -> Page[AccountObject]:
        """List the accounts."""
        known = frozenset({"page", "per_page", "name", "direction"})
        values = reading.known_values(request.scope["query_string"], known)
        page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
        query = accounts.Query(page, per_page, values.get("name"), reading.direction_of(values, Direction.ASC))
        found = await accounts.list_page(context.services.db, context.caller, query)
        return context.page([_object(account) for account in found.items], page, per_page, found.total)

    @get("/{account_id:str}", needs=_READ)
    async def get_one(self, context: Context) -> Envelope[AccountObject]:
        """Get an account."""
        return context.envelope(_object(await accounts.get(context.services.db, context.scope)))

    @put("/{account_id:str}", needs=_WRITE)
    async def update(self, context: Context, request: AnyRequest) -> Envelope[AccountObject]:
        """Rename an account."""
        known = frozenset({"id", "name", "type"})
        name, malformed, advice = _decoded(await reading.body(request), known, context.scope.account_id.hex)
        account = await accounts.rename(context.services.db, context.caller, context.scope, name, malformed)
        return context.envelope(_object(account), advice)

    @delete("/{account_id:str}", needs=_WRITE)
    async def delete_one(self, context: Context) -> Envelope[DeletedAccount]:
        """Delete an empty account."""
        await accounts.delete(context.services.db, context.caller, context.scope)
        return context.envelope(DeletedAccount(context.scope.account_id.hex))


def _object(account: Account) -> AccountObject:
    created = times.instant(account.created_at)
    return AccountObject(account.id.hex, account.name, TYPE, created, account.slug, account.name_policy)


def _decoded(
    raw: bytes, known: frozenset[str], account_id: str | None = None
) -> tuple[str, tuple[Problem, ...], tuple[Advice, ...]]:
    """The name, the problems, and advice on unknown fields; `id` and `type` are accepted but cannot be changed."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        return "", (fields,), ()
    problems: list[Problem] = []
    name = reading.required_text(fields, "name", problems)
    kind = reading.text(fields.get("type"), "type", problems)
    if kind not in ("", TYPE):
        text = f'type {quoted(kind)} is not known here; every account is "{TYPE}".'
        problems.append(Problem(Rule.CHOICE, "type", text))
    if fields.get("standalone") not in (None, True):
        problems.append(Problem(Rule.TEXT, "standalone", "standalone must be true, or left out."))
    if account_id and fields.get("id") not in (None, account_id):
        problems.append(Problem(Rule.TEXT, "id", f"id must be that of the path, {account_id}, or left out."))
    return name, tuple(problems), reading.ignored(fields, known, "an account")
