"""`/{accounts|zones}/{id}/custom_csrs`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Controller, Response
from litestar.params import FromPath

from app import times
from app.caller import Access, Area
from app.cloudflare import envelope, guard, reading
from app.cloudflare.context import Context, ScopeContext
from app.cloudflare.envelope import Envelope, Page
from app.cloudflare.guard import Needs
from app.csrs import store as csrs
from app.csrs.model import Csr, CsrQuery, CsrRequest, Order
from app.errors import Advice, Problem
from app.store.paging import Direction
from app.web.handling import AnyRequest, delete, get, post
from app.x509 import pkix
from app.x509.keys import KeyType
from app.x509.subjects import Subject

_READ, _WRITE = Needs(Area.SSL, Access.READ), Needs(Area.SSL, Access.WRITE)
MIN_PER_PAGE, MAX_PER_PAGE = 5, 50


class CustomCsr(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom CSR as the SDKs read it; unset optional fields are omitted."""

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
    """A decoded body, and advice on its unknown fields."""

    request: CsrRequest
    ignored: tuple[Advice, ...] = ()


class CustomCsrs(Controller):
    path = "/custom_csrs"
    guards = (guard.csrs_on,)

    @post(needs=_WRITE, status_code=201)
    async def create(self, context: Context, request: AnyRequest) -> Envelope[CustomCsr] | Response[bytes]:
        """Make a key pair and its CSR."""
        raw = await reading.body(request)
        once = reading.idempotency(request, raw)
        decoded = decode(raw)
        csr = await csrs.create(context.services, context.caller, context.scope, decoded.request, once)
        advice = (*decoded.ignored, *csrs.advice(csr.request, context.scope.name_policy))
        return _answer(context, request, csr, advice)

    @get(needs=_READ)
    async def list_(self, context: Context, request: AnyRequest) -> Page[CustomCsr]:
        """List the CSRs."""
        query = parse_query(request.scope["query_string"], 50 if context.scope.zone_id is None else 20)
        found = await csrs.list_(context.services.db, context.scope, query)
        return context.page([object_(csr) for csr in found.items], query.page, query.per_page, found.total)

    @get("/{custom_csr_id:str}", needs=_READ)
    async def get_one(
        self, context: Context, request: AnyRequest, custom_csr_id: FromPath[str]
    ) -> Envelope[CustomCsr] | Response[bytes]:
        """Get a CSR."""
        csr = await csrs.get(context.services.db, context.scope, reading.csr_id(custom_csr_id))
        return _answer(context, request, csr, context.scope.age_advice(csr.created_at, datetime.now(UTC)))

    @delete("/{custom_csr_id:str}", needs=_WRITE)
    async def delete_one(self, context: Context, custom_csr_id: FromPath[str]) -> Envelope[Deleted]:
        """Delete a CSR and destroy its private key."""
        csr_id = reading.csr_id(custom_csr_id)
        await csrs.delete(context.services.db, context.caller, context.scope, csr_id)
        return context.envelope(Deleted(str(csr_id)))


def object_(csr: Csr) -> CustomCsr:
    subject = csr.request.subject
    return CustomCsr(
        id=str(csr.id),
        created_at=times.instant(csr.created_at),
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


def _answer(
    context: ScopeContext, request: AnyRequest, csr: Csr, advice: tuple[Advice, ...]
) -> Envelope[CustomCsr] | Response[bytes]:
    media_type = reading.accepted(request)
    if media_type == envelope.JSON:
        return context.envelope(object_(csr), advice)
    der = media_type == "application/pkcs10"
    content = pkix.der(csr.pem) if der else csr.pem.encode("ascii")
    headers = {"Content-Disposition": f'attachment; filename="{csr.id}.csr"'}
    if context.visit.status == 201:
        headers["Location"] = f"{context.visit.path}/{csr.id}"
    return Response(content, status_code=context.visit.status, media_type=media_type, headers=headers)


_OPTIONAL_TEXTS = ("organizational_unit", "name", "description")
_REQUIRED_TEXTS = ("country", "state", "locality", "organization", "common_name")
_TEXTS = (*_REQUIRED_TEXTS, *_OPTIONAL_TEXTS, "key_type")
_FIELDS = frozenset({*_TEXTS, "sans"})


def decode(raw: bytes) -> Decoded:
    """Decode a body; fields of the wrong JSON type are reported in `malformed`, the core validates the rest."""
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
    """Parse the list's parameters; raises 1455 with the allowed values. `per_page` is the default."""
    values = reading.known_values(query_string, _KNOWN)
    page, size = reading.page_of(values, per_page, MIN_PER_PAGE, MAX_PER_PAGE)
    return CsrQuery(
        page=page,
        per_page=size,
        order=Order(reading.one_of(values, "order", tuple(Order)) or Order.CREATED_AT),
        direction=Direction(reading.one_of(values, "direction", tuple(Direction)) or Direction.ASC),
        common_name=values.get("common_name"),
        san=values.get("san"),
        name=values.get("name"),
        key_type=reading.one_of(values, "key_type", tuple(KeyType)),
    )
