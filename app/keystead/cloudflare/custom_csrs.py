"""`/{accounts|zones}/{id}/custom_csrs`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar import Controller, Response
from msgspec import Meta

from keystead import times
from keystead.caller import Access, Area
from keystead.cloudflare import envelope, guard, reading
from keystead.cloudflare.context import ScopeContext
from keystead.cloudflare.envelope import Envelope, Hex32, Instant, Page, Uuid
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import BodyOnce, Decoded, Query
from keystead.csrs import store as csrs
from keystead.csrs.model import Csr, CsrQuery, CsrRequest
from keystead.errors import Advice
from keystead.web.handling import AnyRequest, delete, get, post
from keystead.x509 import pkix
from keystead.x509.keys import KeyType
from keystead.x509.subjects import Subject

_READ, _WRITE = Needs(Area.SSL, Access.READ), Needs(Area.SSL, Access.WRITE)


class CustomCsr(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom CSR as the SDKs read it; unset optional fields are omitted."""

    id: Uuid
    created_at: Instant
    key_type: KeyType
    account_tag: Hex32
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


class DeletedCsr(msgspec.Struct, frozen=True):
    id: Uuid


_MOST = csrs.MAX_LENGTHS


class CustomCsrRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a CSR is made of."""

    country: Annotated[str, Meta(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2, or XX.")]
    state: Annotated[str, Meta(min_length=1, max_length=_MOST["state"], description="State or province.")]
    locality: Annotated[str, Meta(min_length=1, max_length=_MOST["locality"], description="City or locality.")]
    organization: Annotated[str, Meta(min_length=1, max_length=_MOST["organization"])]
    common_name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=_MOST["common_name"],
            description="The common name; clients only look at the SANs.",
        ),
    ]
    organizational_unit: (
        Annotated[
            str,
            Meta(max_length=_MOST["organizational_unit"], description="Public CAs no longer certify it."),
        ]
        | None
    ) = None
    name: Annotated[str, Meta(max_length=_MOST["name"], description="A name for people; not in the CSR.")] | None = None
    description: (
        Annotated[str, Meta(max_length=_MOST["description"], description="A text for people; not in the CSR.")] | None
    ) = None
    key_type: Annotated[str, Meta(extra_json_schema={"enum": [*KeyType, ""]})] | None = KeyType.RSA2048
    sans: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...],
        Meta(
            description="Hostnames, in ASCII; a leading *. is a wildcard.",
            # The core says how many there are.
            extra_json_schema={"minItems": 1, "maxItems": csrs.MAX_SANS},
        ),
    ]


class CustomCsrs(Controller):
    path = "/custom_csrs"
    tags = ("Custom CSRs",)
    guards = (guard.csrs_on,)

    @post(needs=_WRITE, status_code=201)
    async def create(
        self, context: ScopeContext, request: AnyRequest, data: BodyOnce[CustomCsrRequest]
    ) -> Envelope[CustomCsr] | Response[bytes]:
        """Make a key pair and its CSR."""
        csr = await csrs.create(context.services, context.caller, context.scope, csr_request(data), data.once)
        advice = (*data.advice, *csrs.advice(csr.request, context.scope.name_policy))
        return _answer(context, request, csr, advice)

    @get(needs=_READ)
    async def list_(self, context: ScopeContext, filters: Query[CsrQuery]) -> Page[CustomCsr]:
        """List the CSRs."""
        per_page = filters.per_page or (50 if context.scope.zone_id is None else 20)
        found = await context.read(lambda db: csrs.list_(db, context.scope, filters, per_page))
        return context.page([object_(csr) for csr in found.items], filters.page, per_page, found.total)

    @get("/{custom_csr_id:str}", needs=_READ)
    async def get_one(
        self, context: ScopeContext, request: AnyRequest, custom_csr_id: str
    ) -> Envelope[CustomCsr] | Response[bytes]:
        """Get a CSR."""
        csr_id = reading.csr_id(custom_csr_id)
        csr = await context.read(lambda db: csrs.get(db, context.scope, csr_id))
        return _answer(context, request, csr, context.scope.age_advice(csr.created_at, datetime.now(UTC)))

    @delete("/{custom_csr_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext, custom_csr_id: str) -> Envelope[DeletedCsr]:
        """Delete a CSR and destroy its private key."""
        csr_id = reading.csr_id(custom_csr_id)
        await csrs.delete(context.services.db, context.caller, context.scope, csr_id)
        return context.envelope(DeletedCsr(str(csr_id)))


def csr_request(data: Decoded[CustomCsrRequest]) -> CsrRequest:
    fields = data.fields
    return CsrRequest(
        subject=Subject(
            country=fields.country,
            state=fields.state,
            locality=fields.locality,
            organization=fields.organization,
            common_name=fields.common_name,
            organizational_unit=fields.organizational_unit or None,
        ),
        sans=fields.sans,
        key_type=fields.key_type or KeyType.RSA2048,
        name=fields.name or None,
        description=fields.description or None,
        malformed=data.problems,
    )


# By a mapping, which is quicker for each of a page.
_KEY_TYPES = {each.value: each for each in KeyType}


def object_(csr: Csr) -> CustomCsr:
    subject = csr.request.subject
    return CustomCsr(
        id=str(csr.id),
        created_at=times.instant(csr.created_at),
        key_type=_KEY_TYPES[csr.request.key_type],
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
    if context.request_info.status == 201:
        headers["Location"] = f"{context.request_info.path}/{csr.id}"
    return Response(content, status_code=context.request_info.status, media_type=media_type, headers=headers)
