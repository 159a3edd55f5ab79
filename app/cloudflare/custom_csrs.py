"""`/{accounts|zones}/{id}/custom_csrs`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Response, delete, get, post

from app.caller import Access, Area, Caller, Scope
from app.cloudflare import reading, wire
from app.cloudflare.wire import AnyRequest
from app.csrs import store as csrs
from app.csrs.model import Csr, CsrQuery, CsrRequest, Order
from app.errors import Advice, Problem
from app.store.idempotency import Idempotency
from app.store.paging import Direction
from app.web.state import House
from app.x509 import pkix
from app.x509.keys import KeyType
from app.x509.subjects import Subject

_LIST = ["/accounts/{account_id:str}/custom_csrs", "/zones/{zone_id:str}/custom_csrs"]
_ONE = [path + "/{custom_csr_id:str}" for path in _LIST]
_READ = {"needs": (Area.SSL, Access.READ)}
_WRITE = {"needs": (Area.SSL, Access.WRITE)}
MIN_PER_PAGE, MAX_PER_PAGE = 5, 50


class CustomCsr(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom CSR as the SDKs read it; an unset optional is absent."""

    id: str
    created_at: str
    key_type: str
    account_tag: str
    common_name: str
    country: str
    csr: str
    locality: str
    organization: str
    sans: tuple[str, ...]
    state: str
    description: str | None = None
    name: str | None = None
    organizational_unit: str | None = None


class Deleted(msgspec.Struct, frozen=True):
    id: str


class Decoded(msgspec.Struct, frozen=True):
    """A body as the core's request, and what of it nobody asked for."""

    request: CsrRequest
    ignored: tuple[Advice, ...] = ()


@post(_LIST, opt=_WRITE)
async def create(request: AnyRequest) -> Response[bytes]:
    raw = await wire.body(request)
    once = wire.idempotency(request, raw)
    csr, advice = await made(wire.house(request), wire.caller(request), wire.scope(request), raw, once)
    return _answer(request, csr, 201, advice)


async def made(
    house: House, caller: Caller, scope: Scope, raw: bytes, once: Idempotency | None
) -> tuple[Csr, tuple[Advice, ...]]:
    """The CSR that a body asks for, and what to say of it."""
    decoded = decode(raw)
    csr = await csrs.create(house.db, house.ring, house.pool, caller, scope, decoded.request, once)
    return csr, (*decoded.ignored, *csrs.advice(csr.request, scope.name_policy))


@get(_LIST, opt=_READ)
async def list_(request: AnyRequest) -> Response[bytes]:
    query = parse_query(request.scope["query_string"], 50 if wire.scope(request).zone_id is None else 20)
    page = await csrs.list_(wire.house(request).db, wire.scope(request), query)
    info = wire.page_info(len(page.items), query.page, query.per_page, page.total)
    return wire.answers(request).success([object_(csr) for csr in page.items], info=info)


@get(_ONE, opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    csr = await csrs.get(wire.house(request).db, wire.scope(request), wire.csr_id(request))
    return _answer(request, csr, 200, wire.scope(request).age_advice(csr.created_at, datetime.now(UTC)))


@delete(_ONE, opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    csr_id = wire.csr_id(request)
    await csrs.delete(wire.house(request).db, wire.caller(request), wire.scope(request), csr_id)
    return wire.answers(request).success(Deleted(str(csr_id)))


HANDLERS = [create, list_, get_, delete_]


def object_(csr: Csr) -> CustomCsr:
    subject = csr.request.subject
    return CustomCsr(
        id=str(csr.id),
        created_at=wire.instant(csr.created_at),
        key_type=csr.request.key_type,
        account_tag=csr.account_id.hex,
        common_name=subject.common_name,
        country=subject.country,
        csr=csr.pem,
        locality=subject.locality,
        organization=subject.organization,
        sans=csr.request.sans,
        state=subject.state,
        description=csr.request.description,
        name=csr.request.name,
        organizational_unit=subject.organizational_unit,
    )


def _answer(request: AnyRequest, csr: Csr, status: int, advice: tuple[Advice, ...] = ()) -> Response[bytes]:
    media_type = wire.accepted(request)
    if media_type == wire.JSON:
        return wire.answers(request).success(object_(csr), status, advice=advice)
    der = media_type == "application/pkcs10"
    content = pkix.der(csr.pem) if der else csr.pem.encode("ascii")
    headers = {"Content-Disposition": f'attachment; filename="{csr.id}.csr"'}
    if status == 201:
        headers["Location"] = f"{wire.visit(request).path}/{csr.id}"
    return Response(content, status_code=status, media_type=media_type, headers=headers)


_OPTIONAL_TEXTS = ("organizational_unit", "name", "description")
_REQUIRED_TEXTS = ("country", "state", "locality", "organization", "common_name")
_TEXTS = (*_REQUIRED_TEXTS, *_OPTIONAL_TEXTS, "key_type")
_FIELDS = frozenset({*_TEXTS, "sans"})


def decode(raw: bytes) -> Decoded:
    """Read a body; what has the wrong shape stands in the request's `malformed`, and the core judges the rest."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        return Decoded(CsrRequest(Subject("", "", "", "", ""), (), malformed=(fields,)))
    malformed: list[Problem] = []
    texts = {field: reading.text(fields.get(field), field, malformed) for field in _TEXTS}
    sans = _sans(fields.get("sans"), malformed)
    optional = {field: texts[field] or None for field in _OPTIONAL_TEXTS}
    request = CsrRequest(
        subject=Subject(
            country=texts["country"],
            state=texts["state"],
            locality=texts["locality"],
            organization=texts["organization"],
            common_name=texts["common_name"],
            organizational_unit=optional["organizational_unit"],
        ),
        sans=sans,
        key_type=texts["key_type"] or KeyType.RSA2048,
        name=optional["name"],
        description=optional["description"],
        malformed=tuple(malformed),
    )
    return Decoded(request, reading.ignored(fields, _FIELDS, "a custom CSR"))


def _sans(value: Any, malformed: list[Problem]) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    if value is None:
        return ()
    if not isinstance(value, list):
        malformed.append(reading.wrong_type(value, "sans", "a list of strings"))
        return ()
    if len(value) <= csrs.MAX_SANS:
        for index, item in enumerate(value):
            if not isinstance(item, str):
                malformed.append(reading.wrong_type(item, "sans", "a string", index))
    return tuple(item if isinstance(item, str) else "" for item in value)


_KNOWN = frozenset({"page", "per_page", "order", "direction", "common_name", "san", "name", "key_type"})


def parse_query(query_string: bytes, per_page: int) -> CsrQuery:
    """The list's parameters; raises 1455 with what is allowed. `per_page` is the scope's default."""
    values = reading.known_values(query_string, _KNOWN)
    return CsrQuery(
        page=reading.whole(values, "page", 1, 1, reading.MAX_PAGE),
        per_page=reading.whole(values, "per_page", per_page, MIN_PER_PAGE, MAX_PER_PAGE),
        order=Order(reading.one_of(values, "order", tuple(Order)) or Order.CREATED_AT),
        direction=Direction(reading.one_of(values, "direction", tuple(Direction)) or Direction.ASC),
        common_name=values.get("common_name"),
        san=values.get("san"),
        name=values.get("name"),
        key_type=reading.one_of(values, "key_type", tuple(KeyType)),
    )
