"""`/accounts/{account_id}/logs/audit`: the audit log in the shape of Cloudflare's (contract-cloudflare section 7)."""

from datetime import datetime

import msgspec
from litestar import Controller

from app import times
from app.audit import log as audit_log
from app.audit.log import Entry, Filter
from app.caller import Access, Area
from app.cloudflare import reading
from app.cloudflare.context import Context
from app.cloudflare.envelope import Envelope
from app.cloudflare.errors import Refused
from app.cloudflare.guard import Needs
from app.errors import quoted
from app.store.paging import Direction
from app.web.handling import AnyRequest, get

_READ = Needs(Area.SETTINGS, Access.READ)
LIMIT = 100
_BOUNDS = frozenset({"since", "before", "limit", "direction", "cursor", "product_category"})
FILTERS = frozenset(audit_log.FIELDS)


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


class AuditPage(Envelope[list[AuditEntry]], frozen=True):
    """One page of the log."""

    result_info: AuditInfo


class Logs(Controller):
    path = "/logs"

    @get("/audit", needs=_READ)
    async def audit(self, context: Context, request: AnyRequest) -> AuditPage:
        """Read the audit log."""
        page = await audit_log.list_(context.services.db, context.scope, parse_query(request.scope["query_string"]))
        info = AuditInfo(len(page.items), Cursors(page.cursor), page.cursor)
        return AuditPage([_object(entry) for entry in page.items], True, [], [], info)


def parse_query(query_string: bytes) -> audit_log.Query:
    """Parse the list's parameters; raises 1455 with the allowed values."""
    names = _BOUNDS | FILTERS | {f"{name}.not" for name in FILTERS}
    values = reading.repeated_values(query_string, names, audit_log.MAX_VALUES)
    if sum(len(values[name]) for name in values.keys() - _BOUNDS) > audit_log.MAX_VALUES:
        raise Refused(400, 1455, f"There are more than {audit_log.MAX_VALUES} values of filters.")
    single = {key: reading.single(values, key) for key in _BOUNDS & values.keys()}
    if "product_category" in single:
        raise Refused(400, 1455, "There are no product categories here; filter by resource_product.")
    after = audit_log.position(single["cursor"]) if single.get("cursor") else None
    if single.get("cursor") and after is None:
        raise Refused(400, 1455, "The parameter cursor is none that this server gave.")
    filters = {
        name: Filter(tuple(values[name]) if name in values else None, tuple(values.get(f"{name}.not", ())))
        for name in FILTERS
        if name in values or f"{name}.not" in values
    }
    return audit_log.Query(
        since=_time(single, "since"),
        before=_time(single, "before"),
        limit=reading.whole(single, "limit", LIMIT, 1, audit_log.MAX_LIMIT),
        direction=reading.direction_of(single, Direction.DESC),
        filters=filters,
        after=after,
    )


def _time(values: dict[str, str], key: str) -> datetime:
    text = values.get(key)
    found = times.date(text) if text else None
    if found is None:
        problem = f"is {quoted(text)}" if text else "is missing"
        expected = "it must be a date such as 2026-01-31, or an RFC 3339 time"
        raise Refused(400, 1455, f"The parameter {key} {problem}; {expected}.")
    return found


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
