"""Requests for certificates of servers and clients, and the answers (contract-infisical, "Leaves")."""

from typing import Annotated, ClassVar, TypeAlias

import msgspec
from msgspec import Meta

from keystead import times
from keystead.ca import authorities
from keystead.ca.issuing import Signed
from keystead.ca.leaves import LeafRequest, WithKey
from keystead.infisical import wire
from keystead.infisical.reading import Date, Ttl
from keystead.infisical.wire import Uuid
from keystead.web.reading import one_of
from keystead.x509 import pkix, subjects

CsrText: TypeAlias = Annotated[str, Meta(min_length=1, description="PEM.")]
FriendlyName: TypeAlias = Annotated[str, Meta(max_length=authorities.MAX_FRIENDLY_NAME)]
CommonName: TypeAlias = Annotated[str, Meta(max_length=subjects.UPPER_BOUNDS["common_name"])]
_KeyUsage: TypeAlias = Annotated[str, one_of(pkix.KEY_USAGES)]
_Usages: TypeAlias = Annotated[tuple[_KeyUsage, ...], Meta(max_length=len(pkix.KEY_USAGES))]
_ExtendedKeyUsage: TypeAlias = Annotated[str, one_of(pkix.EXTENDED_KEY_USAGES)]
_ExtendedUsages: TypeAlias = Annotated[tuple[_ExtendedKeyUsage, ...], Meta(max_length=len(pkix.EXTENDED_KEY_USAGES))]


class LeafOptions(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a certificate may say; it needs a ttl or a last day."""

    either: ClassVar[tuple[str, ...]] = ("ttl", "notAfter")

    friendly_name: FriendlyName | None = None
    alt_names: Annotated[str, Meta(description="Hosts, addresses, emails and URIs, separated by commas.")] | None = None
    ttl: Ttl | None = None
    not_before: Date | None = None
    not_after: Date | None = None
    key_usages: _Usages | None = None
    extended_key_usages: _ExtendedUsages | None = None


class SignRequest(LeafOptions, frozen=True, rename="camel", kw_only=True):
    """The CSR of a server or client."""

    csr: CsrText
    common_name: CommonName | None = None


class SignRequestWithCa(SignRequest, frozen=True, rename="camel", kw_only=True):
    """The CSR of a server or client, and the CA that shall sign it."""

    ca_id: Uuid


class IssueRequest(LeafOptions, frozen=True, rename="camel", kw_only=True):
    """The names of a server or client whose key is made here."""

    common_name: Annotated[CommonName, Meta(min_length=1)]


class IssueRequestWithCa(IssueRequest, frozen=True, rename="camel", kw_only=True):
    """The names of a server or client whose key is made here, and the CA that shall sign."""

    ca_id: Uuid


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


def issued_object(issued: WithKey) -> IssuedCertificate:
    signed = signed_object(issued.signed)
    values = (signed.certificate, signed.certificate_chain, signed.issuing_ca_certificate, signed.serial_number)
    return IssuedCertificate(*values, private_key=wire.shown(issued.private_key))


def leaf_request(data: LeafOptions, common_name: str | None = None, csr: str = "") -> LeafRequest:
    return LeafRequest(
        csr=csr,
        common_name=common_name or "",
        friendly_name=data.friendly_name or None,
        alt_names=data.alt_names or "",
        ttl=times.span(data.ttl or ""),
        not_before=times.date(data.not_before or ""),
        not_after=times.date(data.not_after or ""),
        key_usages=data.key_usages or (),
        extended_key_usages=data.extended_key_usages or (),
    )


def signed_object(signed: Signed) -> SignedCertificate:
    return SignedCertificate(
        certificate=wire.shown(signed.pem),
        certificate_chain=wire.shown(signed.chain),
        issuing_ca_certificate=wire.shown(signed.issuer_pem),
        serial_number=signed.serial,
    )
