"""`/cert-manager/certificates`: certificates by profile, and all by their ids (contract-infisical, "Profiles")."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead import times
from keystead.ca import crls, issuing, policies, profiles, requests, search
from keystead.ca.crls import Reason
from keystead.ca.issuing import Signed
from keystead.ca.model import Issued, IssuedStatus
from keystead.ca.policies import KeyAlgorithm
from keystead.ca.requests import Issuance, San, Wanted
from keystead.ca.search import Search
from keystead.ids import canonical_uuid
from keystead.infisical import certificates, guard, wire
from keystead.infisical.ca import KEY_ALGORITHMS, TAGS
from keystead.infisical.certificates import Bundle, Certificate, Revocation, Revoked
from keystead.infisical.guard import Action, CertificateContext
from keystead.infisical.leaves import CommonName
from keystead.infisical.reading import Body, Date, Query, Ttl
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext
from keystead.web.handling import get, post
from keystead.web.reading import one_of
from keystead.x509 import chains

# The agent and Terraform write some of them in another way than policies do.
_KEYS: dict[str, KeyAlgorithm] = {name.value: name for name in KeyAlgorithm} | {
    word: name for name, kind in policies.KEY_TYPES.items() for word, each in KEY_ALGORITHMS.items() if each is kind
}
_SIGNATURES: dict[str, str] = {name.value: name.value for name in policies.SignatureAlgorithm} | {
    "-".join(reversed(name.value.split("-"))): name.value for name in policies.SignatureAlgorithm
}
_Usage = Annotated[str, one_of([usage.value for usage in policies.KeyUsage])]
_ExtendedUsage = Annotated[str, one_of([usage.value for usage in policies.ExtendedKeyUsage])]
_Text = Annotated[str, Meta(max_length=300)]


class AltName(msgspec.Struct, frozen=True):
    type: Annotated[str, one_of([kind.value for kind in policies.SanType])]
    value: Annotated[str, Meta(min_length=1, max_length=2048)]


class Attributes(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What the certificate shall say, where the CSR or the profile does not, or otherwise than they do."""

    common_name: CommonName | None = None
    organization: _Text | None = None
    ou: _Text | None = None
    country: _Text | None = None
    province: _Text | None = None
    locality: _Text | None = None
    alt_names: Annotated[tuple[AltName, ...], Meta(max_length=150)] | None = None
    key_usages: Annotated[tuple[_Usage, ...], Meta(max_length=9)] | None = None
    extended_key_usages: Annotated[tuple[_ExtendedUsage, ...], Meta(max_length=6)] | None = None
    key_algorithm: Annotated[str, one_of(_KEYS)] | None = None
    signature_algorithm: Annotated[str, one_of(_SIGNATURES)] | None = None
    ttl: Ttl | None = None
    not_before: Date | None = None
    not_after: Date | None = None
    remove_roots_from_chain: bool | None = None


class ProfileCertificateRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A CSR, or attributes alone: then a key is made here, and returned once."""

    profile_id: Uuid
    application_id: Uuid | None = None
    csr: str | None = None
    attributes: Attributes | None = None
    remove_roots_from_chain: bool | None = None


class RenewalRequest(msgspec.Struct, frozen=True, rename="camel"):
    remove_roots_from_chain: bool | None = None


class IssuedByProfile(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`private_key` is there when it was made here."""

    certificate: str
    issuing_ca_certificate: str
    certificate_chain: str
    serial_number: str
    certificate_id: Uuid
    private_key: str = ""

    def __repr__(self) -> str:
        return f"IssuedByProfile({self.serial_number})"


class IssuedAnswer(msgspec.Struct, frozen=True, rename="camel"):
    certificate: IssuedByProfile
    certificate_request_id: str
    status: str = "issued"


class Renewed(IssuedByProfile, frozen=True, rename="camel", kw_only=True):
    """Flat, as the agent reads it; with an id it would wait for the request, and lose the new key."""

    certificate_request_id: Annotated[str, Meta(max_length=0)]


class CertificateDetail(Certificate, frozen=True, rename="camel"):
    project_id: Uuid
    profile_id: Uuid | None
    application_id: Uuid | None
    key_usages: list[str]
    extended_key_usages: list[str]
    certificate: str | None
    certificate_chain: str | None


class DetailAnswer(msgspec.Struct, frozen=True):
    certificate: CertificateDetail


class CertificateRequestAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A request has the id of its certificate."""

    status: str
    certificate: str | None
    certificate_chain: str | None
    issuing_ca_certificate: str | None
    certificate_id: Uuid | None
    serial_number: str | None
    error_message: str | None
    common_name: str
    profile_id: Uuid | None
    created_at: Instant
    updated_at: Instant
    private_key: None = None


class SearchQuery(msgspec.Struct, frozen=True, rename="camel"):
    """Names are compared whole; times are dates as in bodies."""

    project_id: Uuid | None = None
    ca_id: Uuid | None = None
    profile_id: Uuid | None = None
    common_name: _Text | None = None
    san: _Text | None = None
    serial_number: _Text | None = None
    status: Annotated[str, one_of([each.value for each in IssuedStatus])] | None = None
    expires_before: Date | None = None
    expires_after: Date | None = None
    offset: Annotated[str, Meta(pattern="^[0-9]{1,9}$", extra={"check": str.isdecimal, "expected": "a number"})] = "0"
    limit: Annotated[str, Meta(pattern="^[0-9]{1,9}$", extra={"check": str.isdecimal, "expected": "a number"})] = "100"


class CertificateList(msgspec.Struct, frozen=True, rename="camel"):
    certificates: list[Certificate]
    total_count: int


class ProfileCertificates(Controller):
    path = "/cert-manager/certificates"
    tags = TAGS

    @get()
    async def list_(self, context: CallerContext, filters: Query[SearchQuery]) -> CertificateList:
        """List or search the certificates that the CAs of an account have issued, the newest first."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await search.find(context.services.db, context.caller, scope, _search(filters))
        return CertificateList([certificates.certificate_object(each) for each in found.certificates], found.total)

    @post()
    async def create(self, context: CallerContext, data: Body[ProfileCertificateRequest]) -> IssuedAnswer:
        """Issue a certificate by a profile, for a CSR or for a key that is made here."""
        profile_id = canonical_uuid(data.profile_id)
        if profile_id is None:
            raise profiles.missing(profiles.PROFILE, data.profile_id)
        db, caller = context.services.db, context.caller
        scope = await profiles.scope_of(db, caller, profiles.PROFILE, profile_id)
        await guard.require(context.state, caller, scope, Action.ISSUE if data.csr else Action.ISSUE_KEY)
        made = await requests.issue(context.services, caller, scope, _wanted(data, profile_id))
        attributes = data.attributes or Attributes()
        without_root = bool(data.remove_roots_from_chain or attributes.remove_roots_from_chain)
        return IssuedAnswer(IssuedByProfile(**_texts(made, without_root)), str(made.issued.id))

    @get("/{certificate_id:str}", action=Action.READ)
    async def get_one(self, context: CertificateContext) -> DetailAnswer:
        """Get a certificate by its id."""
        return DetailAnswer(await _detail(context, context.certificate))

    @get("/{certificate_id:str}/bundle", action=Action.READ)
    async def bundle(self, context: CertificateContext) -> Bundle:
        """Get a certificate with its chain; keys are not stored."""
        signed = await issuing.signed(context.services, context.certificate)
        return Bundle(wire.shown(signed.pem), wire.shown(signed.chain), signed.serial)

    @post("/{certificate_id:str}/renew", action=Action.ISSUE)
    async def renew(self, context: CertificateContext, data: Body[RenewalRequest]) -> Renewed:
        """Renew a certificate by its profile: with a new key where the old one was made here."""
        services, caller, scope, old = context.services, context.caller, context.scope, context.certificate
        if old.key_made_here:
            await guard.require(context.state, caller, scope, Action.ISSUE_KEY)
        made = await requests.renew(services, caller, scope, old.id)
        return Renewed(**_texts(made, bool(data.remove_roots_from_chain)), certificate_request_id="")

    @post("/{certificate_id:str}/revoke", action=Action.REVOKE)
    async def revoke(self, context: CertificateContext, data: Body[Revocation]) -> Revoked:
        """Revoke a certificate."""
        about = (context.scope, context.certificate, Reason[data.revocation_reason])
        revoked = await crls.revoke(context.services, context.caller, *about)
        at = wire.instant(revoked.revoked_at or revoked.modified_at)
        return Revoked("Successfully revoked certificate", revoked.serial, at)

    @get("/certificate-requests/{certificate_id:str}", action=Action.READ)
    async def request(self, context: CertificateContext) -> CertificateRequestAnswer:
        """Get what came of a request; the key is not in it."""
        found = context.certificate
        signed = await issuing.signed(context.services, found) if found.pem else None
        return CertificateRequestAnswer(
            status="issued" if signed else "failed",
            certificate=wire.shown(signed.pem) if signed else None,
            certificate_chain=wire.shown(signed.chain) if signed else None,
            issuing_ca_certificate=wire.shown(signed.issuer_pem) if signed else None,
            certificate_id=str(found.id) if signed else None,
            serial_number=found.serial if signed else None,
            error_message=None if signed else "The server stopped before it signed the certificate",
            common_name=found.common_name,
            profile_id=str(found.profile_id) if found.profile_id else None,
            created_at=wire.instant(found.created_at),
            updated_at=wire.instant(found.modified_at),
        )


def _search(filters: SearchQuery) -> Search:
    serial = filters.serial_number
    return Search(
        ca_id=_filter_id(filters.ca_id),
        profile_id=_filter_id(filters.profile_id),
        common_name=_plain(filters.common_name),
        san=_plain(filters.san),
        serial=None if serial is None else _plain(wire.serial_of(serial)),
        status=IssuedStatus(filters.status) if filters.status else None,
        expires_before=times.date(filters.expires_before or ""),
        expires_after=times.date(filters.expires_after or ""),
        offset=int(filters.offset),
        limit=int(filters.limit),
    )


def _plain(text: str | None) -> str | None:
    """PostgreSQL takes no NUL, and no stored name has one."""
    return None if text is None else text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _filter_id(text: str | None) -> UUID | None:
    """An id that is none matches nothing."""
    return None if text is None else canonical_uuid(text) or UUID(int=0)


def _wanted(data: ProfileCertificateRequest, profile_id: UUID) -> Wanted:
    asked = data.attributes or Attributes()
    application_id = canonical_uuid(data.application_id) if data.application_id else None
    if data.application_id and application_id is None:
        raise profiles.missing(profiles.APPLICATION, data.application_id)
    return Wanted(
        profile_id=profile_id,
        application_id=application_id,
        csr=data.csr or "",
        common_name=asked.common_name,
        organization=asked.organization,
        organizational_unit=asked.ou,
        country=asked.country,
        state=asked.province,
        locality=asked.locality,
        sans=tuple(San(name.type, name.value) for name in asked.alt_names or ()),
        key_usages=tuple(map(policies.camel, asked.key_usages or ())),
        extended_key_usages=tuple(map(policies.camel, asked.extended_key_usages or ())),
        key_algorithm=_KEYS[asked.key_algorithm] if asked.key_algorithm else None,
        signature_algorithm=_SIGNATURES[asked.signature_algorithm] if asked.signature_algorithm else None,
        ttl=times.span(asked.ttl or ""),
        not_before=times.date(asked.not_before or ""),
        not_after=times.date(asked.not_after or ""),
    )


def _texts(made: Issuance, without_root: bool) -> dict[str, Any]:
    signed = made.signed
    return {
        "certificate": wire.shown(signed.pem),
        "issuing_ca_certificate": wire.shown(signed.issuer_pem),
        "certificate_chain": wire.shown(_chain(signed, without_root)),
        "serial_number": signed.serial,
        "certificate_id": str(made.issued.id),
        "private_key": wire.shown(made.private_key),
    }


def _chain(signed: Signed, without_root: bool) -> str:
    """The chain; without a root at its end, if so wanted."""
    path = chains.stored(signed.chain)
    return chains.pem(path[:-1]) if without_root and path and path[-1].subject == path[-1].issuer else signed.chain


async def _detail(context: CertificateContext, issued: Issued) -> CertificateDetail:
    shared = certificates.certificate_object(issued)
    signed = await issuing.signed(context.services, issued) if issued.pem else None
    return CertificateDetail(
        **{name: getattr(shared, name) for name in Certificate.__struct_fields__},
        project_id=str(issued.account_id),
        profile_id=str(issued.profile_id) if issued.profile_id else None,
        application_id=str(issued.application_id) if issued.application_id else None,
        key_usages=list(map(policies.snake, issued.key_usages)),
        extended_key_usages=list(map(policies.snake, issued.extended_key_usages)),
        certificate=wire.shown(signed.pem) if signed else None,
        certificate_chain=wire.shown(signed.chain) if signed else None,
    )
