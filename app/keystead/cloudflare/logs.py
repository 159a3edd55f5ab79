"""`/accounts/{account_id}/logs/audit`: the audit log in the shape of Cloudflare's (contract-cloudflare section 7)."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead import times
from keystead.audit import log as audit_log
from keystead.audit.log import Entry, Filter
from keystead.caller import Access, Area
from keystead.cloudflare import guard
from keystead.cloudflare.context import ScopeContext
from keystead.cloudflare.envelope import Envelope
from keystead.cloudflare.errors import ApiError
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import Query, Time
from keystead.errors import quoted
from keystead.ids import canonical_uuid
from keystead.store.paging import Direction
from keystead.web.handling import AnyRequest, Part, Source, get

_READ = Needs(Area.SETTINGS, Access.READ)


class LogAccount(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    name: str | None = None


class LogAction(msgspec.Struct, frozen=True):
    """`description` is for human readers."""

    description: str
    result: str
    time: str
    type: str


class LogActor(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    id: str | None = None
    context: str | None = None
    email: str | None = None
    ip_address: str | None = None
    token_id: str | None = None
    token_name: str | None = None


class LogRaw(msgspec.Struct, frozen=True, omit_defaults=True):
    """The request; for the command line `method` is CLI and `uri` the command."""

    method: str
    uri: str
    cf_ray_id: str | None = None
    status_code: int | None = None
    user_agent: str | None = None


class LogResource(msgspec.Struct, frozen=True):
    id: str
    product: str
    scope: str
    type: str


class LogZone(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    name: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry as the SDKs read it; unknown values are omitted."""

    id: str
    account: LogAccount
    action: LogAction
    actor: LogActor
    raw: LogRaw
    resource: LogResource
    zone: LogZone | None = None


class Cursors(msgspec.Struct, frozen=True, omit_defaults=True):
    after: str | None = None


class AuditInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """`count` is the number of entries on this page; the cursors are omitted on the last one."""

    count: int
    cursors: Cursors
    cursor: str | None = None


class HistoryInfo(AuditInfo, frozen=True, kw_only=True):
    """`unavailable`: there is no such entry in this log, and so no resource."""

    history_status: Literal["exact", "unavailable"]


class AuditPage(Envelope[list[AuditEntry]], frozen=True):
    """One page of the log."""

    result_info: AuditInfo


class HistoryPage(Envelope[list[AuditEntry]], frozen=True):
    """One page of the history of a resource."""

    result_info: HistoryInfo


class Product(msgspec.Struct, frozen=True):
    """`value` is what resource_product is compared with."""

    label: str
    value: str


class ProductCategory(msgspec.Struct, frozen=True):
    """Products that product_category stands for."""

    label: str
    value: str
    products: tuple[Product, ...]


CATEGORIES = {
    "accounts": ProductCategory(
        *("Accounts and access", "accounts"),
        (
            Product("Accounts", "accounts"),
            Product("Zones", "zones"),
            Product("API tokens", "tokens"),
            Product("Users", "users"),
        ),
    ),
    "ssl_tls": ProductCategory(
        *("SSL/TLS", "ssl_tls"),
        (Product("Custom CSRs", "custom_csrs"), Product("Custom certificates", "custom_certificates")),
    ),
    "private_ca": ProductCategory(
        *("Private CA and keys", "private_ca"),
        (Product("Private CA", "private_ca"), Product("Custody of keys", "custody")),
    ),
}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The time and the order of the entries, whose `limit` is that of a page."""

    since: Time
    before: Time
    limit: Annotated[int, Meta(ge=1, le=audit_log.MAX_LIMIT)] = 100
    direction: Direction = Direction.DESC
    cursor: str | None = None


class HistoryWindow(Window, frozen=True, kw_only=True):
    """`action_time` is that of the entry, which is found by its id."""

    action_time: Time


class Filtered(Window, frozen=True, kw_only=True):
    product_category: Annotated[tuple[str, ...], Meta(max_length=audit_log.MAX_VALUES)] | None = None


if TYPE_CHECKING:
    LogFilters = Filtered
else:
    # Each filter takes several values, and `.not` behind its name excludes them.
    _values = Annotated[tuple[str, ...], Meta(max_length=audit_log.MAX_VALUES)] | None
    LogFilters = msgspec.defstruct(
        "LogFilters",
        [(name + suffix, _values, None) for name in sorted(audit_log.FIELDS) for suffix in ("", "_not")],
        bases=(Filtered,),
        rename={f"{name}_not": f"{name}.not" for name in audit_log.FIELDS},
        frozen=True,
        kw_only=True,
    )


async def _entry_id(request: AnyRequest, _: type) -> UUID:
    found = canonical_uuid(request.path_params["entry_id"])
    if found is None:
        raise guard.not_routed(request.scope["state"]["request_info"])
    return found


EntryId: TypeAlias = Annotated[UUID, Source(Part.PATH, _entry_id)]


class Logs(Controller):
    path = "/logs"
    tags = ("Audit log",)

    @get("/audit", needs=_READ)
    async def audit(self, context: ScopeContext, filters: Query[LogFilters]) -> AuditPage:
        """Read the audit log."""
        page = await audit_log.list_(context.services.db, context.scope, query_of(filters))
        info = AuditInfo(len(page.items), Cursors(page.cursor), page.cursor)
        return AuditPage([_object(entry) for entry in page.items], True, [], [], info)

    @get("/audit/product_categories", needs=_READ)
    async def product_categories(self, context: ScopeContext) -> Envelope[list[ProductCategory]]:
        """List the categories of products."""
        return context.envelope([*CATEGORIES.values()])

    @get("/audit/{entry_id:str}/history", needs=_READ)
    async def history(self, context: ScopeContext, entry_id: EntryId, filters: Query[HistoryWindow]) -> HistoryPage:
        """Read what happened to the resource of an entry."""
        page = await audit_log.history(context.services.db, context.scope, entry_id, _window(filters))
        return _history(page)


def _history(page: audit_log.Page | None) -> HistoryPage:
    if page is None:
        return HistoryPage([], True, [], [], HistoryInfo(0, Cursors(), history_status="unavailable"))
    info = HistoryInfo(len(page.items), Cursors(page.cursor), page.cursor, history_status="exact")
    return HistoryPage([_object(entry) for entry in page.items], True, [], [], info)


def query_of(filters: LogFilters) -> audit_log.Query:
    """Raises 1455 for a parameter that is not known here, or a cursor that this server did not give."""
    sent = {name: (getattr(filters, name), getattr(filters, f"{name}_not") or ()) for name in audit_log.FIELDS}
    if sum(len(equal or ()) + len(unequal) for equal, unequal in sent.values()) > audit_log.MAX_VALUES:
        raise ApiError(400, 1455, f"There are more than {audit_log.MAX_VALUES} values of filters.")
    for category in filters.product_category or ():
        if category.lower() not in CATEGORIES:
            text = f"The parameter product_category is {quoted(category)}; it must be one of {', '.join(CATEGORIES)}."
            raise ApiError(400, 1455, text)
        only, none_of = sent["resource_product"]
        of_category = (product.value for product in CATEGORIES[category.lower()].products)
        sent["resource_product"] = ((*(only or ()), *of_category), none_of)
    filtered = {name: Filter(*each) for name, each in sent.items() if each != (None, ())}
    return msgspec.structs.replace(_window(filters), filters=filtered)


def _window(filters: Window) -> audit_log.Query:
    after = audit_log.position(filters.cursor) if filters.cursor else None
    since, before = times.date(filters.since), times.date(filters.before)
    if (filters.cursor and after is None) or since is None or before is None:
        raise ApiError(400, 1455, "The parameter cursor is none that this server gave.")
    return audit_log.Query(
        since=since,
        before=before,
        limit=filters.limit,
        direction=filters.direction,
        after=after,
    )


def _object(entry: Entry) -> AuditEntry:
    by_operator = f" by operator {entry.actor_name}" if entry.actor == "operator" else ""
    what = f"{entry.action_type} {entry.resource_type}".replace("_", " ")
    zone = LogZone(entry.zone_id.hex, entry.zone_name) if entry.zone_id else None
    return AuditEntry(
        id=str(entry.id),
        account=LogAccount(entry.account_id.hex, entry.account_name),
        action=LogAction(f"{what}{by_operator}", entry.result, times.instant(entry.at), entry.action_type),
        actor=LogActor(
            type=entry.actor_type,
            id=entry.actor_id,
            context=entry.actor_context,
            email=entry.actor_email,
            ip_address=entry.address,
            token_id=entry.token_id,
            token_name=entry.actor_name if entry.token_id else None,
        ),
        raw=LogRaw(entry.method, entry.path, entry.request_id or None, entry.status, entry.user_agent),
        resource=LogResource(
            entry.resource_id, entry.resource_product, entry.resource_scope, entry.resource_type.value
        ),
        zone=zone,
    )
