"""`/zones/{zone_id}/custom_certificates`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import UNSET, Meta, UnsetType

from keystead import times
from keystead.caller import Access, Area
from keystead.certificates import matching
from keystead.certificates import store as certificates
from keystead.certificates.matching import Upload
from keystead.certificates.model import BundleMethod, Certificate, CertificateQuery, Status
from keystead.certificates.store import Stored
from keystead.cloudflare import reading, renewal
from keystead.cloudflare.context import ScopeContext
from keystead.cloudflare.envelope import Envelope, Hex32, Instant, Page, Uuid
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import (
    Body,
    BodyWithCertificate,
    BodyWithCertificateOnce,
    CertificateId,
    Decoded,
    Query,
)
from keystead.cloudflare.renewal import RenewalRequest, RenewalRule
from keystead.errors import Advice, Invalid, Problem, Rule
from keystead.renewal import rules
from keystead.renewal.rules import Renewing
from keystead.web.handling import delete, get, patch, post, put

_READ, _WRITE = Needs(Area.SSL, Access.READ), Needs(Area.SSL, Access.WRITE)
# A rule outlives a token that was revoked just now.
_WRITE_FRESH = Needs(Area.SSL, Access.WRITE, fresh=True)
MAX_PRIORITIES = 1000


class GeoRestrictions(msgspec.Struct, frozen=True):
    label: str


class CustomCertificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom certificate as the SDKs read it; unset fields are omitted."""

    id: Uuid
    zone_id: Hex32
    type: str
    hosts: tuple[str, ...]
    issuer: str
    signature: str
    status: Status
    bundle_method: str
    priority: int
    uploaded_on: Instant
    modified_on: Instant
    expires_on: Instant
    custom_csr_id: Uuid | None = None
    geo_restrictions: GeoRestrictions | None = None
    policy_restrictions: str | None = None
    deploy: str | None = None
    keystead_renewal: RenewalRule | None = None


class GeoRestrictionsRequest(msgspec.Struct, frozen=True):
    label: Annotated[str, Meta(extra_json_schema={"enum": list(matching.GEO_LABELS)})] | None = None


# The core judges these, and says what was sent instead.
_UUID = {"format": "uuid", "minLength": 36, "maxLength": 36}
_Certificate: TypeAlias = Annotated[
    str, Meta(description="PEM: the leaf and what is above it.", extra_json_schema={"minLength": 1})
]
_Policy: TypeAlias = Annotated[str, Meta(max_length=matching.MAX_POLICY)]


class CustomCertificateChange(msgspec.Struct, frozen=True):
    """A renewed certificate, or settings; what is left out stays."""

    certificate: _Certificate | UnsetType = UNSET
    private_key: (
        Annotated[
            str,
            Meta(description="PEM, unencrypted; only without custom_csr_id.", extra_json_schema={"writeOnly": True}),
        ]
        | UnsetType
        | None
    ) = UNSET
    custom_csr_id: (
        Annotated[
            str, Meta(description="The CSR whose key it is, of this zone or its account.", extra_json_schema=_UUID)
        ]
        | UnsetType
        | None
    ) = UNSET
    bundle_method: Annotated[str, Meta(extra_json_schema={"enum": list(BundleMethod)})] | UnsetType = UNSET
    type: Annotated[str, Meta(extra_json_schema={"enum": list(matching.TYPES)})] | UnsetType = UNSET
    deploy: Annotated[str, Meta(extra_json_schema={"enum": list(matching.DEPLOYS)})] | UnsetType | None = UNSET
    policy: _Policy | UnsetType | None = UNSET
    policy_restrictions: _Policy | UnsetType | None = UNSET
    geo_restrictions: GeoRestrictionsRequest | UnsetType | None = UNSET

    def __repr__(self) -> str:
        return "CustomCertificateChange()"


class CustomCertificateRequest(CustomCertificateChange, frozen=True, kw_only=True):
    """A certificate, with its key unless a CSR of ours made that."""

    certificate: _Certificate


class Priority(msgspec.Struct, frozen=True):
    id: Annotated[str, Meta(extra_json_schema=_UUID)]
    priority: Annotated[int, Meta(ge=0, le=matching.MAX_PRIORITY)]


class Priorities(msgspec.Struct, frozen=True):
    certificates: Annotated[tuple[Priority, ...], Meta(max_length=MAX_PRIORITIES)]


class CertificateFilters(CertificateQuery, frozen=True):
    """There is only one filter, so both values of `match` mean the same."""

    match: Literal["any", "all"] = "all"


class DeletedCertificate(msgspec.Struct, frozen=True):
    id: Uuid


class CustomCertificates(Controller):
    path = "/custom_certificates"
    tags = ("Custom certificates",)

    @post(needs=_WRITE)
    async def create(
        self, context: ScopeContext, data: BodyWithCertificateOnce[CustomCertificateRequest]
    ) -> Envelope[CustomCertificate]:
        """Upload a certificate."""
        upload = upload_of(data)
        stored = await certificates.create(context.services, context.caller, context.scope, upload, data.once)
        return _answer(context, stored, data.advice)

    @get(needs=_READ)
    async def list_(self, context: ScopeContext, filters: Query[CertificateFilters]) -> Page[CustomCertificate]:
        """List the certificates."""
        found, total = await context.read(lambda db: rules.list_(db, context.scope, filters))
        return context.page([renewing(each) for each in found], filters.page, filters.per_page, total)

    @put("/prioritize", needs=_WRITE)
    async def prioritize(self, context: ScopeContext, data: Body[Priorities]) -> Envelope[list[CustomCertificate]]:
        """Set priorities."""
        priorities = priorities_of(data)
        zone = await certificates.prioritize(context.services.db, context.caller, context.scope, priorities)
        return context.envelope([object_(each) for each in zone])

    @get("/{custom_certificate_id:str}", needs=_READ)
    async def get_one(self, context: ScopeContext, custom_certificate_id: str) -> Envelope[CustomCertificate]:
        """Get a certificate."""
        certificate_id = reading.certificate_id(custom_certificate_id)
        found = await context.read(lambda db: rules.get(db, context.scope, certificate_id))
        return context.envelope(renewing(found))

    @patch("/{custom_certificate_id:str}", needs=_WRITE)
    async def edit(
        self,
        context: ScopeContext,
        custom_certificate_id: CertificateId,
        data: BodyWithCertificate[CustomCertificateChange],
    ) -> Envelope[CustomCertificate]:
        """Renew a certificate, or change its settings; the id stays."""
        ids = (context.scope, custom_certificate_id)
        stored = await certificates.update(context.services, context.caller, *ids, upload_of(data))
        return _answer(context, stored, data.advice)

    @delete("/{custom_certificate_id:str}", needs=_WRITE)
    async def delete_one(self, context: ScopeContext, custom_certificate_id: str) -> Envelope[DeletedCertificate]:
        """Delete a certificate."""
        certificate_id = reading.certificate_id(custom_certificate_id)
        await certificates.delete(context.services.db, context.caller, context.scope, certificate_id)
        return context.envelope(DeletedCertificate(str(certificate_id)))

    @put("/{custom_certificate_id:str}/keystead_renewal", needs=_WRITE_FRESH)
    async def set_renewal(
        self, context: ScopeContext, custom_certificate_id: CertificateId, data: Body[RenewalRequest]
    ) -> Envelope[CustomCertificate]:
        """Renew a certificate by itself from now on; with a CA of the account that needs Private CA Sign."""
        ids = (context.scope, custom_certificate_id)
        found = await rules.set_(context.services.db, context.caller, *ids, renewal.wanted_of(data))
        return context.envelope(renewing(found), data.advice)

    @delete("/{custom_certificate_id:str}/keystead_renewal", needs=_WRITE)
    async def remove_renewal(
        self, context: ScopeContext, custom_certificate_id: CertificateId
    ) -> Envelope[CustomCertificate]:
        """Renew a certificate no more by itself."""
        ids = (context.scope, custom_certificate_id)
        return context.envelope(object_(await rules.remove(context.services.db, context.caller, *ids)))


def renewing(found: Renewing) -> CustomCertificate:
    """The certificate with its renewal rule, which answers to changes do not have."""
    if found.rule is None:
        return object_(found.certificate)
    rule = renewal.object_(found.certificate, found.rule)
    return msgspec.structs.replace(object_(found.certificate), keystead_renewal=rule)


def object_(certificate: Certificate) -> CustomCertificate:
    csr_id, geo = certificate.custom_csr_id, certificate.geo_label
    return CustomCertificate(
        id=str(certificate.id),
        zone_id=certificate.zone_id.hex,
        type=certificate.type,
        hosts=certificate.hosts,
        issuer=certificate.issuer,
        signature=certificate.signature,
        status=certificate.status(datetime.now(UTC)),
        bundle_method=certificate.bundle_method,
        priority=certificate.priority,
        uploaded_on=times.instant(certificate.uploaded_at),
        modified_on=times.instant(certificate.modified_at),
        expires_on=certificate.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        custom_csr_id=str(csr_id) if csr_id else None,
        geo_restrictions=GeoRestrictions(geo) if geo else None,
        policy_restrictions=certificate.policy,
        deploy=certificate.deploy,
    )


def _answer(context: ScopeContext, stored: Stored, ignored: tuple[Advice, ...]) -> Envelope[CustomCertificate]:
    return context.envelope(object_(stored.certificate), (*ignored, *stored.advice))


def upload_of(data: Decoded[CustomCertificateChange]) -> Upload:
    if any(problem.rule is Rule.BODY for problem in data.problems):
        raise Invalid(data.problems)
    fields = data.fields
    policy = fields.policy_restrictions if fields.policy is UNSET else fields.policy
    geo = fields.geo_restrictions
    return Upload(
        certificate=fields.certificate,
        private_key=fields.private_key or "" if fields.private_key is not UNSET else UNSET,
        custom_csr_id=fields.custom_csr_id,
        bundle_method=fields.bundle_method,
        type=fields.type,
        geo_label=geo.label if isinstance(geo, GeoRestrictionsRequest) else geo,
        policy=policy,
        deploy=fields.deploy,
        malformed=tuple(problem for problem in data.problems if problem.rule is not Rule.MISSING),
    )


def _of_entry(problem: Problem) -> Problem:
    """The problem, pointing at the entry and not into it."""
    index = int(problem.member.partition("/")[0]) if problem.member else problem.index
    return msgspec.structs.replace(problem, index=index, member=None)


def priorities_of(data: Decoded[Priorities]) -> dict[UUID, int]:
    """Each certificate once; raises Invalid."""
    if data.problems:
        raise Invalid(tuple(map(_of_entry, data.problems)))
    found: dict[UUID, int] = {}
    for index, entry in enumerate(data.fields.certificates):
        certificate_id = reading.certificate_id(entry.id)
        if certificate_id in found:
            text = "certificates names this certificate twice."
            raise Invalid((Problem(Rule.TEXT, "certificates", text, index),))
        found[certificate_id] = entry.priority
    return found
