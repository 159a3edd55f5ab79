"""Pure X.509: builds the PKCS#10 request of a custom CSR (RFC 2986). No I/O, no clock."""

import hashlib
import re
import warnings
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

# Private: the public API chooses the string type by attribute and cannot write PrintableString where we need it.
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID, ObjectIdentifier

from app.keys import PrivateKey
from app.model import Subject

# It counts a common name in bytes, where X.520 counts characters, and warns even when it is told not to validate.
warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)

# X.680 section 41.4: the characters of PrintableString.
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]*")


def custom_csr(private_key: PrivateKey, subject: Subject, sans: Iterable[str]) -> str:
    """The CSR in PEM with a trailing newline, signed with SHA-256 (contract-cloudflare, "The CSR itself").

    Subject RDNs in the order C, ST, L, O, OU, CN; one extension request with the SANs, in their order, without those
    that differ from an earlier one only in case.
    """
    attributes = (
        (NameOID.COUNTRY_NAME, subject.country),
        (NameOID.STATE_OR_PROVINCE_NAME, subject.state),
        (NameOID.LOCALITY_NAME, subject.locality),
        (NameOID.ORGANIZATION_NAME, subject.organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, subject.organizational_unit),
        (NameOID.COMMON_NAME, subject.common_name),
    )
    first_of_each: dict[str, str] = {}
    for san in sans:
        first_of_each.setdefault(san.lower(), san)
    names = [x509.DNSName(san) for san in first_of_each.values()]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([_attribute(oid, value) for oid, value in attributes if value is not None]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def der(pem: str) -> bytes:
    """The DER bytes of a CSR that we stored as PEM."""
    return x509.load_pem_x509_csr(pem.encode("ascii")).public_bytes(serialization.Encoding.DER)


def spki_sha256(pem: str) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo of a CSR that we stored as PEM."""
    public_key = x509.load_pem_x509_csr(pem.encode("ascii")).public_key()
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def _attribute(oid: ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    # _validate=False, because csrs.problems is the one place for these rules.
    kind = _ASN1Type.PrintableString if _PRINTABLE.fullmatch(value) else _ASN1Type.UTF8String
    return x509.NameAttribute(oid, value, kind, _validate=False)
