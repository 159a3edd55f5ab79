"""`/pki/ca`, and what CAs do under either path (contract-infisical, "CAs" and "Leaves")."""

import re
from datetime import datetime
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

import msgspec
from litestar import Controller, Response
from msgspec import UNSET, Meta, UnsetType

from keystead import times
from keystead.ca import authorities, ending, issuing, leaves, lifecycle
from keystead.ca.authorities import Changes, NewAuthority
from keystead.ca.lifecycle import IntermediateRequest, SignedElsewhere
from keystead.ca.model import Authority, CaType, NotAfterPolicy
from keystead.caller import Caller, Scope
from keystead.errors import NotFound
from keystead.ids import canonical_uuid
from keystead.infisical import guard, wire
from keystead.infisical.guard import Action
from keystead.infisical.leaves import (
    CsrText,
    FriendlyName,
    IssuedCertificate,
    IssueRequest,
    SignedCertificate,
    SignRequest,
    issued_object,
    leaf_request,
    signed_object,
)
from keystead.infisical.reading import Body, Date, Query, RequiredDate
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import AnyRequest, delete, get, patch, post
from keystead.web.state import state_of
from keystead.x509 import pkix, subjects
from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject

TAGS = ("Private CA",)
KeyAlgorithm: TypeAlias = Literal["RSA_2048", "RSA_3072", "RSA_4096", "EC_prime256v1", "EC_secp384r1", "EC_secp521r1"]
KEY_ALGORITHMS: dict[KeyAlgorithm, CaKeyType] = {
    "RSA_2048": CaKeyType.RSA2048,
    "RSA_3072": CaKeyType.RSA3072,
    "RSA_4096": CaKeyType.RSA4096,
    "EC_prime256v1": CaKeyType.P256V1,
    "EC_secp384r1": CaKeyType.P384,
    "EC_secp521r1": CaKeyType.P521,
}
_WIRE_ALGORITHMS = {key_type: name for name, key_type in KEY_ALGORITHMS.items()}


class Ca(msgspec.Struct, frozen=True, rename="camel"):
    """A CA as the SDK reads it; the dates are omitted until there is a certificate."""

    id: Uuid
    created_at: Instant
    updated_at: Instant
    project_id: Uuid
    parent_ca_id: Uuid | None
    type: str
    status: str
    name: str
    friendly_name: str
    organization: str
    ou: str
    country: str
    province: str
    locality: str
    common_name: str
    dn: str
    serial_number: str | None
    max_path_length: int
    key_algorithm: str
    active_ca_cert_id: Uuid | None
    enable_direct_issuance: bool
    require_template_for_issuance: bool
    not_after_policy: NotAfterPolicy
    not_before: Instant | UnsetType = UNSET
    not_after: Instant | UnsetType = UNSET


class CaAnswer(msgspec.Struct, frozen=True):
    ca: Ca


class Csr(msgspec.Struct, frozen=True):
    csr: str


class CertificateWithChain(msgspec.Struct, frozen=True, rename="camel"):
    certificate: str
    certificate_chain: str
    serial_number: str


class CaCertificate(CertificateWithChain, frozen=True, rename="camel"):
    cert_id: Uuid


class CaVersion(CaCertificate, frozen=True, rename="camel"):
    version: int


class Imported(msgspec.Struct, frozen=True, rename="camel"):
    message: str
    ca_id: Uuid


_MOST = subjects.UPPER_BOUNDS
PathLength: TypeAlias = Annotated[int, Meta(ge=-1, le=authorities.MAX_PATH_LENGTH)]


class CaRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A new CA; `maxPathLength` -1 sets no limit."""

    project_slug: Annotated[str, Meta(min_length=1)]
    type: CaType
    country: Annotated[str, Meta(pattern="^([A-Z]{2})?$")] | None = None
    organization: Annotated[str, Meta(max_length=_MOST["organization"])] | None = None
    ou: Annotated[str, Meta(max_length=_MOST["organizational_unit"])] | None = None
    province: Annotated[str, Meta(max_length=_MOST["state"])] | None = None
    common_name: Annotated[str, Meta(max_length=_MOST["common_name"])] | None = None
    locality: Annotated[str, Meta(max_length=_MOST["locality"])] | None = None
    key_algorithm: KeyAlgorithm | None = "RSA_2048"
    friendly_name: FriendlyName | None = None
    max_path_length: PathLength | None = -1
    not_before: Date | None = None
    not_after: Date | None = None
    require_template_for_issuance: bool | None = False
    not_after_policy: NotAfterPolicy | None = None


class NewConfiguration(msgspec.Struct, frozen=True, rename="camel"):
    """The subject and key of a new CA; `maxPathLength` -1 sets no limit."""

    type: CaType
    country: Annotated[str, Meta(pattern="^([A-Z]{2})?$")] | None = None
    organization: Annotated[str, Meta(max_length=_MOST["organization"])] | None = None
    ou: Annotated[str, Meta(max_length=_MOST["organizational_unit"])] | None = None
    province: Annotated[str, Meta(max_length=_MOST["state"])] | None = None
    common_name: Annotated[str, Meta(max_length=_MOST["common_name"])] | None = None
    locality: Annotated[str, Meta(max_length=_MOST["locality"])] | None = None
    key_algorithm: KeyAlgorithm | None = "RSA_2048"
    friendly_name: FriendlyName | None = None
    max_path_length: PathLength | None = -1
    not_before: Date | None = None
    not_after: Date | None = None


class CaChange(msgspec.Struct, frozen=True, rename="camel"):
    """What is left out stays."""

    status: Literal["active", "disabled"] | None = None
    require_template_for_issuance: bool | None = None
    not_after_policy: NotAfterPolicy | None = None


class Deletion(msgspec.Struct, frozen=True):
    """With `force`, what the CA signed is revoked in a last CRL."""

    force: Literal["true", "false"] | None = None


class IntermediateCsr(msgspec.Struct, frozen=True, rename="camel"):
    """The CSR of another CA."""

    csr: CsrText
    not_after: RequiredDate
    not_before: Date | None = None
    max_path_length: PathLength | None = -1


class ImportRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A certificate of a CA here, signed elsewhere."""

    certificate: CsrText
    certificate_chain: CsrText


class Renewal(msgspec.Struct, frozen=True, rename="camel"):
    """A new certificate for the same key."""

    type: Literal["existing"]
    not_after: RequiredDate


class NewCa(Controller):
    path = "/pki/ca"
    tags = TAGS

    @post()
    async def create(self, context: CallerContext, data: Body[CaRequest]) -> CaAnswer:
        """Make a CA."""
        services, caller = context.services, context.caller
        scope = await authorities.scope_of_slug(services.db, caller, data.project_slug)
        await guard.require(context.state, caller, scope, Action.CREATE)
        new = msgspec.structs.replace(
            new_authority(data),
            requires_template=data.require_template_for_issuance or False,
            not_after_policy=data.not_after_policy or NotAfterPolicy.REFUSE,
        )
        return CaAnswer(ca_object(await lifecycle.create(services, caller, scope, new)))


class OlderCa(Controller):
    """One CA under its older path."""

    path = "/pki/ca/{ca_id:str}"
    tags = TAGS

    @get(action=Action.READ)
    async def get_one(self, context: ScopeContext, ca_id: str) -> CaAnswer:
        """Get a CA."""
        return CaAnswer(ca_object(await authorities.viewed(context.services.db, *one(context, ca_id))))

    @patch(action=Action.EDIT)
    async def edit(self, context: ScopeContext, data: Body[CaChange], ca_id: str) -> CaAnswer:
        """Enable or disable a CA, or require a template for issuance."""
        disabled = data.status == "disabled" if data.status else None
        changes = Changes(disabled, data.require_template_for_issuance, not_after_policy=data.not_after_policy)
        return CaAnswer(ca_object(await authorities.change(context.services.db, *one(context, ca_id), changes)))

    @delete(action=Action.DELETE)
    async def delete_one(self, context: ScopeContext, query: Query[Deletion], ca_id: str) -> CaAnswer:
        """Delete a CA and destroy its key, by force after revoking what it signed."""
        return CaAnswer(ca_object(await deleted(context, query, ca_id)))


class OneCa(Controller):
    """What one CA does, mounted under both of its paths."""

    tags = TAGS

    @get("/csr", action=Action.CREATE)
    async def csr(self, context: ScopeContext, ca_id: str) -> Csr:
        """Get the CSR of an intermediate."""
        return Csr(wire.shown(await lifecycle.csr(context.services, *one(context, ca_id))))

    @post("/sign-intermediate", action=Action.SIGN_INTERMEDIATE)
    async def sign_intermediate(
        self, context: ScopeContext, data: Body[IntermediateCsr], ca_id: str
    ) -> SignedCertificate:
        """Sign the CSR of another CA."""
        length = -1 if data.max_path_length is None else data.max_path_length
        not_before = times.date(data.not_before or "")
        wanted = IntermediateRequest(data.csr, required_date(data.not_after), not_before, length)
        return signed_object(await lifecycle.sign_intermediate(context.services, *one(context, ca_id), wanted))

    @post("/import-certificate", action=Action.CREATE)
    async def import_certificate(self, context: ScopeContext, data: Body[ImportRequest], ca_id: str) -> Imported:
        """Install the certificate of an intermediate."""
        certificate = SignedElsewhere(data.certificate, data.certificate_chain)
        imported = await lifecycle.import_certificate(context.services.db, *one(context, ca_id), certificate)
        return Imported("Successfully imported certificate to CA", str(imported.id))

    @get("/certificate", action=Action.READ)
    async def certificate(self, context: ScopeContext, ca_id: str) -> CaCertificate:
        """Get the certificate of a CA."""
        return own_certificate(await authorities.viewed(context.services.db, *one(context, ca_id)))

    @get("/ca-certificates", action=Action.READ)
    async def versions(self, context: ScopeContext, ca_id: str) -> list[CaVersion]:
        """List the certificates that a CA has had."""
        authority = await authorities.viewed(context.services.db, *one(context, ca_id))
        found = await lifecycle.versions(context.services.db, authority)
        return [CaVersion(wire.shown(v.pem), wire.shown(v.chain), v.serial, str(v.id), v.version) for v in found]

    @post("/renew", action=Action.RENEW)
    async def renew(self, context: ScopeContext, data: Body[Renewal], ca_id: str) -> CaCertificate:
        """Renew the certificate of a CA for the same key."""
        not_after = required_date(data.not_after)
        return own_certificate(await lifecycle.renew(context.services, *one(context, ca_id), not_after))

    @post("/sign-certificate", action=Action.ISSUE)
    async def sign_certificate(self, context: ScopeContext, data: Body[SignRequest], ca_id: str) -> SignedCertificate:
        """Sign the CSR of a server or client."""
        wanted = leaf_request(data, data.common_name, data.csr)
        return signed_object(await leaves.sign(context.services, *one(context, ca_id), wanted))

    @post("/issue-certificate", action=Action.ISSUE_KEY)
    async def issue_certificate(self, context: ScopeContext, data: Body[IssueRequest], ca_id: str) -> IssuedCertificate:
        """Create a key and a certificate for it; the key is returned once and not stored."""
        issued = await leaves.issue(context.services, *one(context, ca_id), leaf_request(data, data.common_name))
        return issued_object(issued)


class CaCertificates(Controller):
    """Certificates of CAs in DER, without authentication."""

    tags = TAGS

    @get("/certificates/{ca_cert_id:str}/der", file="application/pkix-cert")
    async def der(self, request: AnyRequest, ca_id: str, ca_cert_id: str) -> Response[bytes]:
        """Fetch a certificate of a CA."""
        found, certificate_id = canonical_uuid(ca_id), canonical_uuid(ca_cert_id)
        if found is None or certificate_id is None:
            raise NotFound("CA certificate not found")
        der = await lifecycle.published(state_of(request).services.db, found, certificate_id)
        return wire.download(der, "application/pkix-cert")


def new_authority(data: CaRequest | NewConfiguration) -> NewAuthority:
    """The CA that is wanted, with the rules that a CA has by default."""
    return NewAuthority(
        type=data.type,
        subject=CaSubject(
            country=data.country or "",
            organization=data.organization or "",
            organizational_unit=data.ou or "",
            state=data.province or "",
            common_name=data.common_name or "",
            locality=data.locality or "",
        ),
        key_type=KEY_ALGORITHMS[data.key_algorithm or "RSA_2048"],
        friendly_name=data.friendly_name or None,
        max_path_length=-1 if data.max_path_length is None else data.max_path_length,
        not_before=times.date(data.not_before or ""),
        not_after=times.date(data.not_after or ""),
    )


def one(context: ScopeContext, ca_id: str) -> tuple[Caller, Scope, UUID]:
    """The caller, the scope and the CA of the path; the guard has validated the id."""
    return context.caller, context.scope, UUID(ca_id)


async def deleted(context: ScopeContext, query: Deletion, ca_id: str) -> Authority:
    if query.force == "true":
        return await ending.force(context.services, *one(context, ca_id))
    return await authorities.delete(context.services.db, *one(context, ca_id))


def required_date(text: str) -> datetime:
    found = times.date(text)
    if found is None:
        raise TypeError("the reader accepts no other text")
    return found


def dn(subject: CaSubject) -> str:
    """The distinguished name in Infisical's order, with the escapes of RFC 4514 section 2.4."""
    values = ((word, getattr(subject, field)) for field, word in pkix.CA_ATTRIBUTES.items())
    return ", ".join(f"{word}={_escaped(value)}" for word, value in values if value)


# A regular expression takes a thousand times as long on a text of only these characters.
_ESCAPES = str.maketrans({character: f"\\{character}" for character in ',+"\\<>;'})


def _escaped(value: str) -> str:
    text = value.translate(_ESCAPES)
    if text[:1] in {" ", "#"}:
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(value) > 1 else text


def _name(authority: Authority) -> str:
    """A unique name of lower-case letters, digits and hyphens, as the newer API requires."""
    words = re.sub(r"[^a-z0-9]+", "-", (authority.friendly_name or authority.subject.common_name).lower()).strip("-")
    return authority.name or f"{words[:48].rstrip('-')}-{authority.id.hex[:8]}".lstrip("-")


def ca_object(authority: Authority) -> Ca:
    subject, current = authority.subject, authority.certificate
    return Ca(
        id=str(authority.id),
        created_at=wire.instant(authority.created_at),
        updated_at=wire.instant(authority.modified_at),
        project_id=str(authority.account_id),
        parent_ca_id=str(authority.parent_id) if authority.parent_id else None,
        type=authority.type.value,
        status=authority.status.value,
        name=_name(authority),
        friendly_name=authority.friendly_name or dn(subject),
        organization=subject.organization,
        ou=subject.organizational_unit,
        country=subject.country,
        province=subject.state,
        locality=subject.locality,
        common_name=subject.common_name,
        dn=dn(subject),
        serial_number=current.serial if current else None,
        max_path_length=_max_path_length(authority),
        key_algorithm=_WIRE_ALGORITHMS[authority.key_type],
        active_ca_cert_id=str(current.id) if current else None,
        enable_direct_issuance=not authority.requires_template,
        require_template_for_issuance=authority.requires_template,
        not_after_policy=authority.not_after_policy,
        not_before=wire.instant(current.not_before) if current else UNSET,
        not_after=wire.instant(current.not_after) if current else UNSET,
    )


def _max_path_length(authority: Authority) -> int:
    """The certificate's path length, or the configured one while there is no certificate."""
    if authority.certificate is None:
        return authority.max_path_length
    return -1 if authority.certificate.path_length is None else authority.certificate.path_length


def own_certificate(authority: Authority) -> CaCertificate:
    current = issuing.latest(authority)
    return CaCertificate(wire.shown(current.pem), wire.shown(current.chain), current.serial, str(current.id))
