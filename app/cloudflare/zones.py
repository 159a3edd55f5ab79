"""`/zones[/{zone_id}]`: each handler is one call to the core."""

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
from app.errors import Invalid
from app.identity import zones
from app.identity.zones import Zone, ZoneType
from app.ids import hex32
from app.store.paging import Direction, PageNumber, PerPage
from app.web.handling import delete, get, patch, post

_READ = Needs(Area.ZONE, Access.READ)
_WRITE = Needs(Area.ZONE, Access.WRITE, fresh=True)


class ZoneAccount(msgspec.Struct, frozen=True):
    id: Hex32
    name: str


class Nothing(msgspec.Struct, frozen=True):
    """An empty object, for fields of Cloudflare's that clients require and that have no meaning here."""


class ZoneObject(msgspec.Struct, frozen=True):
    """A zone as the SDKs read it, with all fields that they require; those without meaning here are empty."""

    id: Hex32
    name: str
    account: ZoneAccount
    created_on: Instant
    modified_on: Instant
    status: Literal["active"]
    type: ZoneType
    paused: bool
    development_mode: int
    meta: Nothing
    name_servers: tuple[str, ...]
    owner: Nothing
    plan: Nothing


class AccountOfZone(msgspec.Struct, frozen=True):
    id: Id


class ZoneRequest(msgspec.Struct, frozen=True):
    """A new zone."""

    account: AccountOfZone
    name: Annotated[str, Meta(min_length=1, max_length=253, description="A hostname; unique in its account.")]
    type: ZoneType | None = ZoneType.FULL


class ZoneChange(msgspec.Struct, frozen=True):
    """What is left out stays."""

    type: ZoneType | None = None
    paused: bool | None = None


class ZoneFilters(msgspec.Struct, frozen=True):
    """The SDK sends several types as a repeated parameter."""

    page: PageNumber = 1
    per_page: PerPage = 20
    name: str | None = None
    account_id: Id | None = msgspec.field(name="account.id", default=None)
    account_name: str | None = msgspec.field(name="account.name", default=None)
    status: Literal["active", "initializing", "pending", "moved"] | None = None
    type: Annotated[tuple[ZoneType, ...], Meta(max_length=len(ZoneType))] | None = None
    order: Literal["name", "account.id", "account.name"] = "name"
    direction: Direction = Direction.ASC
    match: Literal["any", "all"] = "all"


class DeletedZone(msgspec.Struct, frozen=True):
    id: Hex32


class Zones(Controller):
    path = "/zones"
    tags = ("Zones",)

    @post()
    async def create(self, context: CallerContext, data: BodyOnce[ZoneRequest]) -> Envelope[ZoneObject]:
        """Make a zone."""
        fields = data.fields
        draft = zones.Draft(hex32(fields.account.id), fields.name, fields.type or ZoneType.FULL, data.problems)
        zone = await zones.create(context.services.db, context.caller, draft, data.once)
        return context.envelope(_object(zone), data.advice)

    @get()
    async def list_(self, context: CallerContext, filters: Query[ZoneFilters]) -> Page[ZoneObject]:
        """List the zones."""
        query = query_of(filters)
        found = await zones.list_page(context.services.db, context.caller, query)
        return context.page([_object(zone) for zone in found.items], query.page, query.per_page, found.total)

    @get("/{zone_id:str}", needs=_READ)
    async def get_one(self, context: ScopeContext) -> Envelope[ZoneObject]:
        """Get a zone."""
        return context.envelope(_object(await zones.get(context.services.db, context.scope)))

    @patch("/{zone_id:str}", needs=_WRITE)
    async def edit(self, context: ScopeContext, data: Body[ZoneChange]) -> Envelope[ZoneObject]:
        """Change a zone."""
        if data.problems:
            raise Invalid(data.problems)
        settings = zones.Settings(data.fields.type, data.fields.paused)
        zone = await zones.edit(context.services.db, context.caller, context.scope, settings)
        return context.envelope(_object(zone), data.advice)

    @delete("/{zone_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext) -> Envelope[DeletedZone]:
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
        status="active",
        type=zone.type,
        paused=zone.paused,
        development_mode=0,
        meta=Nothing(),
        name_servers=(),
        owner=Nothing(),
        plan=Nothing(),
    )


def query_of(filters: ZoneFilters) -> zones.Query:
    """Raises 1455 for operators that are not known here."""
    name = name_filter("name", filters.name.lower() if filters.name is not None else None)
    return zones.Query(
        page=filters.page,
        per_page=filters.per_page,
        name=name,
        account_id=hex32(filters.account_id or ""),
        account_name=name_filter("account.name", filters.account_name),
        types=tuple(sorted(set(filters.type))) if filters.type is not None else None,
        status=filters.status,
        any_of=filters.match == "any",
        order=filters.order,
        direction=filters.direction,
    )
