"""`/pki/ca` and `/cert-manager/ca/internal`: CAs and issuance (contract-infisical, "CAs" and "Leaves")."""

import re
from uuid import UUID

import msgspec
from litestar import Controller, Response
from litestar.params import FromPath
from msgspec import UNSET, UnsetType

from app.ca import authorities, issuing, leaves, lifecycle
from app.ca.authorities import Changes, NewAuthority
from app.ca.issuing import Signed
from app.ca.leaves import LeafRequest
from app.ca.lifecycle import IntermediateRequest, SignedElsewhere
from app.ca.model import Authority, CaType
from app.caller import Caller, Scope
from app.errors import NotFound
from app.ids import canonical_uuid
from app.infisical import guard, reading, wire
from app.infisical.context import CallerOnly, Context, ScopeContext
from app.infisical.guard import Action
from app.infisical.reading import Fields
from app.infisical.wire import Issue, Malformed
from app.web.handling import AnyRequest, delete, get, patch, post
from app.web.state import state_of
from app.x509 import pkix
from app.x509.keys import CaKeyType
from app.x509.subjects import CaSubject

KEY_ALGORITHMS = {
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

    id: str
    created_at: str
    updated_at: str
    project_id: str
    parent_ca_id: str | None
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
    active_ca_cert_id: str | None
    enable_direct_issuance: bool
    require_template_for_issuance: bool
    not_before: str | UnsetType = UNSET
    not_after: str | UnsetType = UNSET


class CaAnswer(msgspec.Struct, frozen=True):
    ca: Ca


class Configuration(msgspec.Struct, frozen=True, rename="camel"):
    """The part of a CA that the newer API nests."""

    type: str
    friendly_name: str
    organization: str
    ou: str
    country: str
    province: str
    locality: str
    common_name: str
    dn: str
    parent_ca_id: str | None
    serial_number: str | None
    max_path_length: int
    key_algorithm: str
    active_ca_cert_id: str | None
    not_before: str | UnsetType = UNSET
    not_after: str | UnsetType = UNSET


class InternalCa(msgspec.Struct, frozen=True, rename="camel"):
    """A CA as the newer API lists it."""

    id: str
    name: str
    project_id: str
    status: str
    type: str
    enable_direct_issuance: bool
    configuration: Configuration


class Csr(msgspec.Struct, frozen=True):
    csr: str


class SignedCertificate(msgspec.Struct, frozen=True, rename="camel"):
    """A new certificate; the chain begins with the issuing CA and ends with the root."""

    certificate: str
    certificate_chain: str
    issuing_ca_certificate: str
    serial_number: str


class IssuedCertificate(SignedCertificate, frozen=True, rename="camel"):
    private_key: str

    def __repr__(self) -> str:
        return f"IssuedCertificate({self.serial_number})"


class CertificateWithChain(msgspec.Struct, frozen=True, rename="camel"):
    certificate: str
    certificate_chain: str
    serial_number: str


class CaVersion(CertificateWithChain, frozen=True, rename="camel"):
    version: int


class Imported(msgspec.Struct, frozen=True, rename="camel"):
    message: str
    ca_id: str


class NewCa(Controller):
    path = "/pki/ca"

    @post()
    async def create(self, context: CallerOnly, request: AnyRequest) -> CaAnswer:
        """Make a CA."""
        services, caller = context.services, context.caller
        fields = reading.fields(await wire.body(request))
        slug, new = fields.text("projectSlug", required=True), _new_authority(fields)
        fields.done()
        scope = await authorities.scope_of_slug(services.db, caller, slug)
        await guard.require(context.state, caller, scope, Action.CREATE)
        return CaAnswer(ca_object(await lifecycle.create(services, caller, scope, new)))


class Cas(Controller):
    path = "/cert-manager/ca/internal"

    @get()
    async def list_(self, context: CallerOnly, request: AnyRequest) -> list[InternalCa]:
        """List the CAs of an account."""
        db, caller = context.services.db, context.caller
        project_ids = request.query_params.getall("projectId", [])
        if len(project_ids) != 1:
            raise Malformed([Issue("invalid_type", ["projectId"], "Required once", "string", "undefined")])
        project_id = guard.account_id_of(project_ids[0])
        if project_id is None:
            raise NotFound(f"Project with ID '{project_ids[0]}' not found")
        scope = await authorities.scope_of_account(db, caller, project_id)
        await guard.require(context.state, caller, scope, Action.READ)
        return [_internal(authority) for authority in await authorities.list_(db, caller, scope)]


class OneCa(Controller):
    """One CA, mounted under both of its paths."""

    @get(action=Action.READ)
    async def get_one(self, context: Context, ca_id: FromPath[str]) -> CaAnswer:
        """Get a CA."""
        return CaAnswer(ca_object(await authorities.viewed(context.services.db, *_place(context, ca_id))))

    @patch(action=Action.EDIT)
    async def edit(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> CaAnswer:
        """Enable or disable a CA, or require a template for issuance."""
        fields = reading.fields(await wire.body(request))
        disabled = None
        if not fields.is_absent("status"):
            disabled = fields.choice("status", ["active", "disabled"]) == "disabled"
        changes = Changes(disabled, fields.flag("requireTemplateForIssuance"))
        fields.done()
        return CaAnswer(ca_object(await authorities.change(context.services.db, *_place(context, ca_id), changes)))

    @delete(action=Action.DELETE)
    async def delete_one(self, context: Context, ca_id: FromPath[str]) -> CaAnswer:
        """Delete a CA and destroy its key."""
        return CaAnswer(ca_object(await authorities.delete(context.services.db, *_place(context, ca_id))))

    @get("/csr", action=Action.CREATE)
    async def csr(self, context: Context, ca_id: FromPath[str]) -> Csr:
        """Get the CSR of an intermediate."""
        return Csr(wire.shown(await lifecycle.csr(context.services, *_place(context, ca_id))))

    @post("/sign-intermediate", action=Action.SIGN_INTERMEDIATE)
    async def sign_intermediate(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> SignedCertificate:
        """Sign the CSR of another CA."""
        fields = reading.fields(await wire.body(request))
        text, not_after = fields.text("csr", required=True), fields.date("notAfter", required=True)
        not_before = fields.date("notBefore")
        length = fields.whole("maxPathLength", -1, -1, authorities.MAX_PATH_LENGTH)
        fields.done()
        if not_after is None:
            raise TypeError("a required date that is not there")
        asked, place = IntermediateRequest(text, not_after, not_before, length), _place(context, ca_id)
        signed = await lifecycle.sign_intermediate(context.services, *place, asked)
        return signed_object(signed)

    @post("/import-certificate", action=Action.CREATE)
    async def import_certificate(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> Imported:
        """Install the certificate of an intermediate."""
        fields = reading.fields(await wire.body(request))
        certificate, chain = fields.text("certificate", required=True), fields.text("certificateChain", required=True)
        fields.done()
        place = _place(context, ca_id)
        made = await lifecycle.import_certificate(context.services.db, *place, SignedElsewhere(certificate, chain))
        return Imported("Successfully imported certificate to CA", str(made.id))

    @get("/certificate", action=Action.READ)
    async def certificate(self, context: Context, ca_id: FromPath[str]) -> CertificateWithChain:
        """Get the certificate of a CA."""
        return _with_chain(await authorities.viewed(context.services.db, *_place(context, ca_id)))

    @get("/ca-certificates", action=Action.READ)
    async def versions(self, context: Context, ca_id: FromPath[str]) -> list[CaVersion]:
        """List the certificates that a CA has had."""
        authority = await authorities.viewed(context.services.db, *_place(context, ca_id))
        found = await lifecycle.versions(context.services.db, authority)
        return [CaVersion(wire.shown(v.pem), wire.shown(v.chain), v.serial, v.version) for v in found]

    @post("/renew", action=Action.RENEW)
    async def renew(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> CertificateWithChain:
        """Renew the certificate of a CA for the same key."""
        fields = reading.fields(await wire.body(request))
        fields.choice("type", ["existing"])
        not_after = fields.date("notAfter", required=True)
        fields.done()
        if not_after is None:
            raise TypeError("a required date that is not there")
        place = _place(context, ca_id)
        return _with_chain(await lifecycle.renew(context.services, *place, not_after))

    @post("/sign-certificate", action=Action.ISSUE)
    async def sign_certificate(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> SignedCertificate:
        """Sign the CSR of a server or client."""
        fields = reading.fields(await wire.body(request))
        asked = leaf_request(fields, with_csr=True)
        fields.done()
        place = _place(context, ca_id)
        return signed_object(await leaves.sign(context.services, *place, asked))

    @post("/issue-certificate", action=Action.ISSUE_KEY)
    async def issue_certificate(self, context: Context, request: AnyRequest, ca_id: FromPath[str]) -> IssuedCertificate:
        """Create a key and a certificate for it; the key is returned once and not stored."""
        fields = reading.fields(await wire.body(request))
        asked = leaf_request(fields, with_csr=False)
        fields.done()
        place = _place(context, ca_id)
        made = await leaves.issue(context.services, *place, asked)
        signed = signed_object(made.signed)
        values = (signed.certificate, signed.certificate_chain, signed.issuing_ca_certificate, signed.serial_number)
        return IssuedCertificate(*values, private_key=wire.shown(made.private_key))


class CaCertificates(Controller):
    """Certificates of CAs in DER, without authentication."""

    @get("/certificates/{ca_cert_id:str}/der")
    async def der(self, request: AnyRequest, ca_id: FromPath[str], ca_cert_id: FromPath[str]) -> Response[bytes]:
        """Fetch a certificate of a CA."""
        found, certificate_id = canonical_uuid(ca_id), canonical_uuid(ca_cert_id)
        if found is None or certificate_id is None:
            raise NotFound("CA certificate not found")
        der = await lifecycle.published(state_of(request).services.db, found, certificate_id)
        return wire.download(der, "application/pkix-cert")


def _new_authority(fields: Fields) -> NewAuthority:
    return NewAuthority(
        type=CaType(fields.choice("type", [each.value for each in CaType])),
        subject=CaSubject(
            country=fields.text("country"),
            organization=fields.text("organization"),
            organizational_unit=fields.text("ou"),
            state=fields.text("province"),
            common_name=fields.text("commonName"),
            locality=fields.text("locality"),
        ),
        key_type=KEY_ALGORITHMS[fields.choice("keyAlgorithm", [*KEY_ALGORITHMS], "RSA_2048")],
        friendly_name=fields.text("friendlyName") or None,
        max_path_length=fields.whole("maxPathLength", -1, -1, authorities.MAX_PATH_LENGTH),
        not_before=fields.date("notBefore"),
        not_after=fields.date("notAfter"),
        requires_template=fields.flag("requireTemplateForIssuance") or False,
    )


def _place(context: ScopeContext, ca_id: str) -> tuple[Caller, Scope, UUID]:
    """The caller, the scope and the CA of the path; the guard has validated the id."""
    return context.caller, context.scope, UUID(ca_id)


def leaf_request(fields: Fields, *, with_csr: bool) -> LeafRequest:
    """Decode the body of sign-certificate and issue-certificate."""
    request = LeafRequest(
        csr=fields.text("csr", required=True) if with_csr else "",
        common_name=fields.text("commonName", required=not with_csr),
        friendly_name=fields.text("friendlyName") or None,
        alt_names=fields.text("altNames"),
        ttl=fields.ttl("ttl"),
        not_before=fields.date("notBefore"),
        not_after=fields.date("notAfter"),
        key_usages=fields.choices("keyUsages", [*pkix.KEY_USAGES]),
        extended_key_usages=fields.choices("extendedKeyUsages", [*pkix.EXTENDED_KEY_USAGES]),
    )
    if fields.is_absent("ttl") and fields.is_absent("notAfter"):
        fields.wrong("ttl", "Either ttl or notAfter must be present")
    return request


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
    return f"{words[:48].rstrip('-')}-{authority.id.hex[:8]}".lstrip("-")


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
        not_before=wire.instant(current.not_before) if current else UNSET,
        not_after=wire.instant(current.not_after) if current else UNSET,
    )


def _max_path_length(authority: Authority) -> int:
    """The certificate's path length, or the configured one while there is no certificate."""
    if authority.certificate is None:
        return authority.max_path_length
    return -1 if authority.certificate.path_length is None else authority.certificate.path_length


def _internal(authority: Authority) -> InternalCa:
    ca = ca_object(authority)
    shared = {name: getattr(ca, name) for name in Configuration.__struct_fields__}
    return InternalCa(
        id=ca.id,
        name=ca.name,
        project_id=ca.project_id,
        status=ca.status,
        type="internal",
        enable_direct_issuance=ca.enable_direct_issuance,
        configuration=Configuration(**shared),
    )


def _with_chain(authority: Authority) -> CertificateWithChain:
    current = issuing.latest(authority)
    return CertificateWithChain(wire.shown(current.pem), wire.shown(current.chain), current.serial)


def signed_object(signed: Signed) -> SignedCertificate:
    return SignedCertificate(
        certificate=wire.shown(signed.pem),
        certificate_chain=wire.shown(signed.chain),
        issuing_ca_certificate=wire.shown(signed.issuer_pem),
        serial_number=signed.serial,
    )
