"""`/pki/ca` and `/cert-manager/ca/internal`: CAs and what they sign (contract-infisical, "CAs" and "Leaves")."""

import re
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from msgspec import UNSET, UnsetType

from app import authorities, ca_certificates, issuing, leaves, pkix
from app.authorities import Changes, NewAuthority
from app.ca_certificates import IntermediateRequest
from app.errors import NotFound
from app.infisical import gate, reading, wire
from app.infisical.gate import Action
from app.infisical.reading import Fields
from app.infisical.wire import AnyRequest, Issue, Malformed
from app.issuing import Signed
from app.leaves import LeafRequest
from app.model import Authority, CaKeyType, Caller, CaSubject, CaType, Scope

KEY_ALGORITHMS = {
    "RSA_2048": CaKeyType.RSA2048,
    "RSA_3072": CaKeyType.RSA3072,
    "RSA_4096": CaKeyType.RSA4096,
    "EC_prime256v1": CaKeyType.P256V1,
    "EC_secp384r1": CaKeyType.P384,
    "EC_secp521r1": CaKeyType.P521,
}
_WIRE_ALGORITHMS = {key_type: name for name, key_type in KEY_ALGORITHMS.items()}
_NEWER = "/cert-manager/ca/internal"


class Ca(msgspec.Struct, frozen=True, rename="camel"):
    """A CA as the SDK reads it; the dates are absent until there is a certificate."""

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
    """What the newer API nests of a CA."""

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
    """A new certificate; the chain goes from the CA that signed it to the root."""

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


def _paths(tail: str) -> list[str]:
    return [f"/pki/ca/{{ca_id:str}}{tail}", f"{_NEWER}/{{ca_id:str}}{tail}"]


@post("/pki/ca", status_code=200)
async def create(request: AnyRequest) -> Response[bytes]:
    house, caller = wire.house(request), wire.caller(request)
    fields = reading.fields(await wire.body(request))
    slug, new = fields.text("projectSlug", required=True), _new_authority(fields)
    fields.done()
    scope = await authorities.scope_of_slug(house.db, caller, slug)
    await gate.require(wire.house(request), caller, scope, Action.CREATE)
    made = await ca_certificates.create(house.db, house.ring, house.pool, caller, scope, new)
    return wire.answer(CaAnswer(ca_object(made)))


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


@get(_NEWER)
async def list_(request: AnyRequest) -> Response[bytes]:
    house, caller = wire.house(request), wire.caller(request)
    project_ids = request.query_params.getall("projectId", [])
    if len(project_ids) != 1:
        raise Malformed([Issue("invalid_type", ["projectId"], "Required once", "string", "undefined")])
    project_id = gate.account_id_of(project_ids[0])
    if project_id is None:
        raise NotFound(f"Project with ID '{project_ids[0]}' not found")
    scope = await authorities.scope_of_account(house.db, caller, project_id)
    await gate.require(wire.house(request), caller, scope, Action.READ)
    found = await authorities.list_(house.db, caller, scope)
    return wire.answer([_internal(authority) for authority in found])


@get(_paths(""), opt={"action": Action.READ})
async def get_(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    return wire.answer(CaAnswer(ca_object(await authorities.viewed(house.db, *_place(request)))))


@patch(_paths(""), opt={"action": Action.EDIT})
async def edit(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    disabled = None
    if not fields.is_absent("status"):
        disabled = fields.choice("status", ["active", "disabled"]) == "disabled"
    changes = Changes(disabled, fields.flag("requireTemplateForIssuance"))
    fields.done()
    return wire.answer(CaAnswer(ca_object(await authorities.change(house.db, *_place(request), changes))))


@delete(_paths(""), opt={"action": Action.DELETE}, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    return wire.answer(CaAnswer(ca_object(await authorities.delete(house.db, *_place(request)))))


@get(_paths("/csr"), opt={"action": Action.CREATE})
async def csr(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    return wire.answer(Csr(wire.shown(await ca_certificates.csr(house.db, house.ring, *_place(request)))))


@post(_paths("/sign-intermediate"), opt={"action": Action.SIGN_INTERMEDIATE}, status_code=200)
async def sign_intermediate(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    text, not_after = fields.text("csr", required=True), fields.date("notAfter", required=True)
    not_before = fields.date("notBefore")
    length = fields.whole("maxPathLength", -1, -1, authorities.MAX_PATH_LENGTH)
    fields.done()
    if not_after is None:
        raise TypeError("a required date that is not there")
    asked = IntermediateRequest(text, not_after, not_before, length)
    signed = await ca_certificates.sign_intermediate(house.db, house.ring, *_place(request), asked, house.pki_url)
    return wire.answer(signed_object(signed))


@post(_paths("/import-certificate"), opt={"action": Action.CREATE}, status_code=200)
async def import_certificate(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    certificate, chain = fields.text("certificate", required=True), fields.text("certificateChain", required=True)
    fields.done()
    made = await ca_certificates.import_certificate(house.db, *_place(request), certificate, chain)
    return wire.answer(Imported("Successfully imported certificate to CA", str(made.id)))


@get(_paths("/certificate"), opt={"action": Action.READ})
async def certificate(request: AnyRequest) -> Response[bytes]:
    authority = await authorities.viewed(wire.house(request).db, *_place(request))
    return wire.answer(_with_chain(authority))


@get(_paths("/ca-certificates"), opt={"action": Action.READ})
async def ca_certificates_(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    authority = await authorities.viewed(house.db, *_place(request))
    found = await ca_certificates.versions(house.db, authority)
    return wire.answer([CaVersion(wire.shown(v.pem), wire.shown(v.chain), v.serial, v.version) for v in found])


@post(_paths("/renew"), opt={"action": Action.RENEW}, status_code=200)
async def renew(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    fields.choice("type", ["existing"])
    not_after = fields.date("notAfter", required=True)
    fields.done()
    if not_after is None:
        raise TypeError("a required date that is not there")
    place = _place(request)
    return wire.answer(_with_chain(await ca_certificates.renew(house.db, house.ring, *place, not_after, house.pki_url)))


@post(_paths("/sign-certificate"), opt={"action": Action.ISSUE}, status_code=200)
async def sign_certificate(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    asked = leaf_request(fields, with_csr=True)
    fields.done()
    return wire.answer(signed_object(await leaves.sign(house.db, house.ring, *_place(request), asked, house.pki_url)))


@post(_paths("/issue-certificate"), opt={"action": Action.ISSUE_KEY}, status_code=200)
async def issue_certificate(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    asked = leaf_request(fields, with_csr=False)
    fields.done()
    made = await leaves.issue(house.db, house.ring, house.pool, *_place(request), asked, house.pki_url)
    signed = signed_object(made.signed)
    values = (signed.certificate, signed.certificate_chain, signed.issuing_ca_certificate, signed.serial_number)
    return wire.answer(IssuedCertificate(*values, private_key=wire.shown(made.private_key)))


@get(_paths("/certificates/{ca_cert_id:str}/der"))
async def certificate_der(request: AnyRequest) -> Response[bytes]:
    ca_id = gate.uuid_of(request.path_params["ca_id"])
    certificate_id = gate.uuid_of(request.path_params["ca_cert_id"])
    if ca_id is None or certificate_id is None:
        raise NotFound("CA certificate not found")
    house = wire.house(request)
    der = await ca_certificates.published(house.db, ca_id, certificate_id)
    return wire.download(der, "application/pkix-cert")


HANDLERS = [
    *(create, list_, get_, edit, delete_, csr, sign_intermediate, import_certificate, certificate),
    *(ca_certificates_, renew, sign_certificate, issue_certificate),
]
PUBLIC = [certificate_der]


def _place(request: AnyRequest) -> tuple[Caller, Scope, UUID]:
    return wire.caller(request), wire.scope(request), wire.ca_id(request)


def leaf_request(fields: Fields, *, with_csr: bool) -> LeafRequest:
    """The body of the calls that give a certificate to a server or client."""
    asked = LeafRequest(
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
    return asked


def dn(subject: CaSubject) -> str:
    """The distinguished name in the order it is written, with the escapes of RFC 4514 section 2.4."""
    values = ((word, getattr(subject, field)) for field, word in pkix.CA_ATTRIBUTES.items())
    return ", ".join(f"{word}={_escaped(value)}" for word, value in values if value)


# A regular expression takes a thousand times as long where every character is one of these.
_ESCAPES = str.maketrans({character: f"\\{character}" for character in ',+"\\<>;'})


def _escaped(value: str) -> str:
    text = value.translate(_ESCAPES)
    if text[:1] in {" ", "#"}:
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(value) > 1 else text


def _name(authority: Authority) -> str:
    """A name that no other CA has, for clients that want one of letters, digits and hyphens."""
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
    """What holds: that of the certificate, once there is one."""
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
