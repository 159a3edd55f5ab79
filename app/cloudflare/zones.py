"""`/zones[/{zone_id}]`: each handler is one call to the core."""

import re
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post

from app import zones
from app.cloudflare import reading, wire
from app.cloudflare.wire import AnyRequest, Refused
from app.errors import Advice, Invalid, Problem, Rule, quoted
from app.model import Access, Area, Direction, Zone, ZoneType

_READ = {"needs": (Area.ZONE, Access.READ)}
_WRITE = {"needs": (Area.ZONE, Access.WRITE), "anew": True}
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
    """What Cloudflare has and we do not, where clients insist on an object."""


class ZoneObject(msgspec.Struct, frozen=True):
    """A zone as the SDKs read it: those fields are there that they insist on, and those without meaning are empty."""

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


@post("/zones", status_code=200)
async def create(request: AnyRequest) -> Response[bytes]:
    raw = await wire.body(request)
    once = wire.idempotency(request, raw)
    draft, advice = _decoded(raw)
    zone = await zones.create(wire.house(request).db, wire.caller(request), draft, once)
    return wire.answers(request).success(_object(zone), advice=advice)


@get("/zones")
async def list_(request: AnyRequest) -> Response[bytes]:
    query, none = parse_query(request.scope["query_string"])
    found = zones.Page((), 0)
    if not none:
        found = await zones.list_page(wire.house(request).db, wire.caller(request), query)
    info = wire.page_info(len(found.items), query.page, query.per_page, found.total)
    return wire.answers(request).success([_object(zone) for zone in found.items], info=info)


@get("/zones/{zone_id:str}", opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    zone = await zones.get(wire.house(request).db, wire.scope(request))
    return wire.answers(request).success(_object(zone))


@patch("/zones/{zone_id:str}", opt=_WRITE)
async def edit(request: AnyRequest) -> Response[bytes]:
    settings, advice = _settings(await wire.body(request))
    zone = await zones.edit(wire.house(request).db, wire.caller(request), wire.scope(request), settings)
    return wire.answers(request).success(_object(zone), advice=advice)


@delete("/zones/{zone_id:str}", opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    scope = wire.scope(request)
    await zones.delete(wire.house(request).db, wire.caller(request), scope)
    return wire.answers(request).success(DeletedZone(scope.id.hex))


ANYWHERE: list[Any] = [create, list_]
IN_ZONE: list[Any] = [get_, edit, delete_]


def _object(zone: Zone) -> ZoneObject:
    return ZoneObject(
        id=zone.id.hex,
        name=zone.name,
        account=ZoneAccount(zone.account_id.hex, zone.account_name),
        created_on=wire.instant(zone.created_at),
        modified_on=wire.instant(zone.modified_at),
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
    elif not isinstance(value.get("id"), str) or not re.fullmatch("[0-9a-f]{32}", value["id"]):
        text = "account.id must be the id of an account, 32 lower-case hex characters."
        problems.append(Problem(Rule.TEXT, "account", text, member="id"))
    else:
        return UUID(value["id"])
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
    """The list's parameters, and whether no zone can match them; raises 1455 with what is allowed."""
    # The SDK repeats what is a list.
    given = reading.repeated_values(query_string, PARAMETERS, len(ZoneType))
    values = {key: reading.single(given, key) for key in given if key != "type"}
    page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    reading.one_of(values, "match", ("all",))
    for key in ("name", "account.name"):
        if re.match("(?:not_equal|starts_with|ends_with|contains)[a-z_]*:", values.get(key, "")):
            raise Refused(400, 1455, f"The parameter {key} is compared as a whole; operators are not known here.")
    status = reading.one_of(values, "status", STATUSES)
    account_id = values.get("account.id")
    if account_id is not None and not re.fullmatch("[0-9a-f]{32}", account_id):
        raise Refused(400, 1455, "The parameter account.id must be 32 lower-case hex characters.")
    query = zones.Query(
        page=page,
        per_page=per_page,
        name=values["name"].removeprefix("equal:").lower() if "name" in values else None,
        account_id=UUID(account_id) if account_id else None,
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
