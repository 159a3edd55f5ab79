"""Custom CSRs (PKCS#10, RFC 2986). Pure."""

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from app.x509 import pkix
from app.x509.keys import KeyPair
from app.x509.subjects import Subject


def custom_csr(pair: KeyPair, subject: Subject, sans: Iterable[str]) -> str:
    """The CSR in PEM with a trailing newline, signed with SHA-256 (contract-cloudflare, "The CSR itself").

    The subject has the RDNs C, ST, L, O, OU, CN in this order. The extension request has the SANs in their order,
    without case-insensitive duplicates.
    """
    name = pkix.name(
        (
            (NameOID.COUNTRY_NAME, subject.country),
            (NameOID.STATE_OR_PROVINCE_NAME, subject.state),
            (NameOID.LOCALITY_NAME, subject.locality),
            (NameOID.ORGANIZATION_NAME, subject.organization),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, subject.organizational_unit),
            (NameOID.COMMON_NAME, subject.common_name),
        )
    )
    unique: dict[str, x509.DNSName] = {}
    for san in sans:
        unique.setdefault(san.lower(), x509.DNSName(san))
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName(unique.values()), critical=False)
        .sign(pair.private_key, hashes.SHA256())
    )
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")
