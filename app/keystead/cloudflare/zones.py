"""`/zones[/{zone_id}]`: each handler is one call to the core."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead import times
from keystead.caller import Access, Area
from keystead.cloudflare.context import CallerContext, ScopeContext
from keystead.cloudflare.envelope import Envelope, Hex32, Instant, Page
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import Body, BodyOnce, Id, Query, name_filter
from keystead.identity import zones
from keystead.identity.zones import Zone, ZoneType
from keystead.ids import hex32
from keystead.store.paging import Direction, NameFilter, PageNumber, Part, PerPage
from keystead.web.handling import delete, get, patch, post

_READ = Needs(Area.ZONE, Access.READ)
_WRITE = Needs(Area.ZONE, Access.WRITE, fresh=True)


class ZoneAccount(msgspec.Struct, frozen=True):
    id: Hex32
    name: str


class Nothing(msgspec.Struct, frozen=True):
    """An empty object, for a field of Cloudflare's that clients require and that has no meaning here."""


class ZoneMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What there is none of is false or 0; without a quota of certificates there is no bound."""

    cdn_only: Literal[False]
    dns_only: Literal[False]
    foundation_dns: Literal[False]
    page_rule_quota: Literal[0]
    phishing_detected: Literal[False]
    custom_certificate_quota: int | None = None


class ZoneOwner(msgspec.Struct, frozen=True):
    """The account."""

    id: Hex32
    name: str
    type: Literal["organization"]


class ZoneObject(msgspec.Struct, frozen=True):
    """A zone as the SDKs read it, with all fields that they require."""

    id: Hex32
    name: str
    account: ZoneAccount
    created_on: Instant
    modified_on: Instant
    status: Literal["active"]
    type: ZoneType
    paused: bool
    development_mode: int
    meta: ZoneMeta
    name_servers: tuple[str, ...]
    owner: ZoneOwner
    plan: Nothing
    vanity_name_servers: tuple[str, ...]


class AccountOfZone(msgspec.Struct, frozen=True):
    id: Id


_NameServers: TypeAlias = Annotated[
    tuple[str, ...], Meta(max_length=zones.MAX_NAME_SERVERS, description="Hostnames; kept and given back.")
]


class ZoneRequest(msgspec.Struct, frozen=True):
    """A new zone."""

    account: AccountOfZone
    name: Annotated[str, Meta(min_length=1, max_length=253, description="A hostname; unique in its account.")]
    type: ZoneType | None = ZoneType.FULL
    paused: bool | None = None
    vanity_name_servers: _NameServers | None = None


class ZoneChange(msgspec.Struct, frozen=True):
    """What is left out stays."""

    type: ZoneType | None = None
    paused: bool | None = None
    vanity_name_servers: _NameServers | None = None


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
        draft = zones.Draft(
            account_id=hex32(fields.account.id),
            name=fields.name,
            type=fields.type or ZoneType.FULL,
            paused=fields.paused or False,
            vanity_name_servers=fields.vanity_name_servers or (),
            malformed=data.problems,
        )
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
        fields = data.fields
        settings = zones.Settings(fields.type, fields.paused, fields.vanity_name_servers)
        zone = await zones.edit(context.services.db, context.caller, context.scope, settings, data.problems)
        return context.envelope(_object(zone), data.advice)

    @delete("/{zone_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext) -> Envelope[DeletedZone]:
        """Delete an empty zone."""
        await zones.delete(context.services.db, context.caller, context.scope)
        return context.envelope(DeletedZone(context.scope.id.hex))


def _object(zone: Zone) -> ZoneObject:
    return ZoneObject(
        id=zone.id.hex,
        name=zone.shown_name,
        account=ZoneAccount(zone.account_id.hex, zone.account_name),
        created_on=times.instant(zone.created_at),
        modified_on=times.instant(zone.modified_at),
        status="active",
        type=zone.type,
        paused=zone.paused,
        development_mode=0,
        meta=ZoneMeta(False, False, False, 0, False, zone.certificate_quota),
        name_servers=(),
        owner=ZoneOwner(zone.account_id.hex, zone.account_name, "organization"),
        plan=Nothing(),
        vanity_name_servers=zone.vanity_name_servers,
    )


def query_of(filters: ZoneFilters) -> zones.Query:
    """Raises 1455 for operators that are not known here."""
    name = name_filter("name", filters.name)
    if name and name.part is Part.EQUAL:
        name = NameFilter(zones.lookup_name(name.text))
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
