"""`/zones[/{zone_id}]`: each handler is one call to the core."""

import re
from typing import Any
from uuid import UUID

import msgspec
from litestar import Controller

from app import times
from app.caller import Access, Area
from app.cloudflare import reading
from app.cloudflare.context import CallerOnly, Context
from app.cloudflare.envelope import Envelope, Page
from app.cloudflare.errors import Refused
from app.cloudflare.guard import Needs
from app.errors import Advice, Invalid, Problem, Rule, quoted
from app.identity import zones
from app.identity.zones import Zone, ZoneType
from app.ids import hex32
from app.store.paging import Direction
from app.web.handling import AnyRequest, delete, get, patch, post

_READ = Needs(Area.ZONE, Access.READ)
_WRITE = Needs(Area.ZONE, Access.WRITE, anew=True)
PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE = 20, 5, 50
STATUS = "active"
STATUSES = (STATUS, "initializing", "pending", "moved")
PARAMETERS = frozenset(
    {"page", "per_page", "name", "account.id", "account.name", "status", "type", "order", "direction", "match"}
)


class ZoneAccount(msgspec.Struct, frozen=True):
    id: str
    name: str


class Nothing(msgspec.Struct, frozen=True):
    """An empty object, for fields of Cloudflare's that clients require and that have no meaning here."""


class ZoneObject(msgspec.Struct, frozen=True):
    """A zone as the SDKs read it, with all fields that they require; those without meaning here are empty."""

    id: str
    name: str
    account: ZoneAccount
    created_on: str
    modified_on: str
    status: str
    type: ZoneType
    paused: bool
    development_mode: int = 0
    meta: Nothing = Nothing()
    name_servers: tuple[str, ...] = ()
    owner: Nothing = Nothing()
    plan: Nothing = Nothing()


class DeletedZone(msgspec.Struct, frozen=True):
    id: str


class Zones(Controller):
    path = "/zones"

    @post()
    async def create(self, context: CallerOnly, request: AnyRequest) -> Envelope[ZoneObject]:
        """Make a zone."""
        raw = await reading.body(request)
        once = reading.idempotency(request, raw)
        draft, advice = _decoded(raw)
        zone = await zones.create(context.services.db, context.caller, draft, once)
        return context.envelope(_object(zone), advice)

    @get()
    async def list_(self, context: CallerOnly, request: AnyRequest) -> Page[ZoneObject]:
        """List the zones."""
        query, none = parse_query(request.scope["query_string"])
        found = zones.Page((), 0)
        if not none:
            found = await zones.list_page(context.services.db, context.caller, query)
        return context.page([_object(zone) for zone in found.items], query.page, query.per_page, found.total)

    @get("/{zone_id:str}", needs=_READ)
    async def get_one(self, context: Context) -> Envelope[ZoneObject]:
        """Get a zone."""
        return context.envelope(_object(await zones.get(context.services.db, context.scope)))

    @patch("/{zone_id:str}", needs=_WRITE)
    async def edit(self, context: Context, request: AnyRequest) -> Envelope[ZoneObject]:
        """Change a zone."""
        settings, advice = _settings(await reading.body(request))
        zone = await zones.edit(context.services.db, context.caller, context.scope, settings)
        return context.envelope(_object(zone), advice)

    @delete("/{zone_id:str}", needs=_WRITE)
    async def delete_one(self, context: Context) -> Envelope[DeletedZone]:
        """Delete an empty zone."""
        await zones.delete(context.services.db, context.caller, context.scope)
        return context.envelope(DeletedZone(context.scope.id.hex))


def _object(zone: Zone) -> ZoneObject:
    return ZoneObject(
        id=zone.id.hex,
        name=zone.name,
        account=ZoneAccount(zone.account_id.hex, zone.account_name),
        created_on=times.instant(zone.created_at),
        modified_on=times.instant(zone.modified_at),
        status=STATUS,
        type=zone.type,
        paused=zone.paused,
    )


def _decoded(raw: bytes) -> tuple[zones.Draft, tuple[Advice, ...]]:
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        return zones.Draft(None, "", malformed=(fields,)), ()
    problems: list[Problem] = []
    account_id = _account_id(fields.get("account"), problems)
    name = reading.required_text(fields, "name", problems)
    kind = _type(fields, problems) or ZoneType.FULL
    advice = reading.ignored(fields, frozenset({"account", "name", "type"}), "a zone")
    return zones.Draft(account_id, name, kind, tuple(problems)), advice


def _account_id(value: Any, problems: list[Problem]) -> UUID | None:  # noqa: ANN401 - JSON
    if value is None:
        problems.append(Problem(Rule.MISSING, "account", "account is missing; name the account by its id."))
    elif not isinstance(value, dict):
        problems.append(reading.wrong_type(value, "account", "an object"))
    elif not isinstance(value.get("id"), str) or (found := hex32(value["id"])) is None:
        text = "account.id must be the id of an account, 32 lower-case hex characters."
        problems.append(Problem(Rule.TEXT, "account", text, member="id"))
    else:
        return found
    return None


def _type(fields: dict[str, Any], problems: list[Problem]) -> ZoneType | None:
    text = reading.text(fields.get("type"), "type", problems)
    if text in set(ZoneType):
        return ZoneType(text)
    if text:
        sentence = f"type {quoted(text)} must be one of {', '.join(ZoneType)}."
        problems.append(Problem(Rule.CHOICE, "type", sentence))
    return None


def _settings(raw: bytes) -> tuple[zones.Settings, tuple[Advice, ...]]:
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        raise Invalid((fields,))
    problems: list[Problem] = []
    kind, paused = _type(fields, problems), fields.get("paused")
    if paused is not None and not isinstance(paused, bool):
        problems.append(reading.wrong_type(paused, "paused", "a boolean"))
    if problems:
        raise Invalid(tuple(problems))
    return zones.Settings(kind, paused), reading.ignored(fields, frozenset({"type", "paused"}), "a zone")


def parse_query(query_string: bytes) -> tuple[zones.Query, bool]:
    """Parse the list's parameters; also returns whether no zone can match. Raises 1455 with the allowed values."""
    # The SDK sends a list as a repeated parameter.
    given = reading.repeated_values(query_string, PARAMETERS, len(ZoneType))
    values = {key: reading.single(given, key) for key in given if key != "type"}
    page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    reading.one_of(values, "match", ("all",))
    for key in ("name", "account.name"):
        if re.match("(?:not_equal|starts_with|ends_with|contains)[a-z_]*:", values.get(key, "")):
            raise Refused(400, 1455, f"The parameter {key} is compared as a whole; operators are not known here.")
    status = reading.one_of(values, "status", STATUSES)
    account_id = hex32(values.get("account.id", ""))
    if "account.id" in values and account_id is None:
        raise Refused(400, 1455, "The parameter account.id must be 32 lower-case hex characters.")
    query = zones.Query(
        page=page,
        per_page=per_page,
        name=values["name"].removeprefix("equal:").lower() if "name" in values else None,
        account_id=account_id,
        account_name=values["account.name"].removeprefix("equal:") if "account.name" in values else None,
        types=_types(given.get("type")),
        order=reading.one_of(values, "order", tuple(zones.ORDERS)) or "name",
        direction=reading.direction_of(values, Direction.ASC),
    )
    return query, status not in (None, STATUS)


def _types(given: list[str] | None) -> tuple[ZoneType, ...] | None:
    if given is None:
        return None
    wanted = sorted(set(",".join(given).split(",")))
    for each in wanted:
        reading.one_of({"type": each}, "type", tuple(ZoneType))
    return tuple(ZoneType(each) for each in wanted)
