"""`/accounts[/{account_id}]`: each handler is one call to the core."""

from typing import Any

import msgspec
from litestar import Response, delete, get, post, put

from app.caller import Access, Area
from app.cloudflare import reading, wire
from app.cloudflare.wire import AnyRequest
from app.errors import Advice, Problem, Rule, quoted
from app.identity import accounts
from app.identity.accounts import Account
from app.store.paging import Direction
from app.x509.names import NamePolicy

_READ = {"needs": (Area.SETTINGS, Access.READ)}
_WRITE = {"needs": (Area.SETTINGS, Access.WRITE), "anew": True}
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


@post("/accounts", status_code=200)
async def create(request: AnyRequest) -> Response[bytes]:
    raw = await wire.body(request)
    once = wire.idempotency(request, raw)
    name, malformed, advice = _decoded(raw, frozenset({"name", "type", "standalone"}))
    account = await accounts.create(wire.house(request).db, wire.caller(request), name, malformed, once)
    return wire.answers(request).success(_object(account), advice=advice)


@get("/accounts")
async def list_(request: AnyRequest) -> Response[bytes]:
    values = reading.known_values(request.scope["query_string"], frozenset({"page", "per_page", "name", "direction"}))
    page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    query = accounts.Query(page, per_page, values.get("name"), reading.direction_of(values, Direction.ASC))
    found = await accounts.list_page(wire.house(request).db, wire.caller(request), query)
    info = wire.page_info(len(found.items), page, per_page, found.total)
    return wire.answers(request).success([_object(account) for account in found.items], info=info)


@get("/accounts/{account_id:str}", opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    account = await accounts.get(wire.house(request).db, wire.scope(request))
    return wire.answers(request).success(_object(account))


@put("/accounts/{account_id:str}", opt=_WRITE)
async def update(request: AnyRequest) -> Response[bytes]:
    scope = wire.scope(request)
    known = frozenset({"id", "name", "type"})
    name, malformed, advice = _decoded(await wire.body(request), known, scope.account_id.hex)
    account = await accounts.rename(wire.house(request).db, wire.caller(request), scope, name, malformed)
    return wire.answers(request).success(_object(account), advice=advice)


@delete("/accounts/{account_id:str}", opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    scope = wire.scope(request)
    await accounts.delete(wire.house(request).db, wire.caller(request), scope)
    return wire.answers(request).success(DeletedAccount(scope.account_id.hex))


ANYWHERE: list[Any] = [create, list_]
IN_ACCOUNT: list[Any] = [get_, update, delete_]


def _object(account: Account) -> AccountObject:
    created = wire.instant(account.created_at)
    return AccountObject(account.id.hex, account.name, TYPE, created, account.slug, account.name_policy)


def _decoded(
    raw: bytes, known: frozenset[str], account_id: str | None = None
) -> tuple[str, tuple[Problem, ...], tuple[Advice, ...]]:
    """The name, what is wrong, and advice on what is not known; `id` and `type` may be sent, and cannot change."""
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
