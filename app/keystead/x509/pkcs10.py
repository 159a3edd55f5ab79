"""DER encoder for custom CSRs (PKCS#10, RFC 2986; X.690). Pure.

Twice as fast as `cryptography` (docs/decisions/0023-a-csr-byte-by-byte.md); test_csr_bytes.py checks every byte.
"""

from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from keystead.x509 import der
from keystead.x509.der import BIT_STRING, INTEGER, OCTET_STRING, OID, SEQUENCE, SET, tlv
from keystead.x509.keys import KeyPair
from keystead.x509.pem import encoded
from keystead.x509.subjects import PRINTABLE, Subject

_ATTRIBUTES, _DNS_NAME = 0xA0, 0x82

# X.520 attribute types, in the order of the subject.
_ATTRIBUTE_TYPES = tuple(
    (field, tlv(OID, bytes((0x55, 0x04, number))))
    for field, number in (
        ("country", 6),
        ("state", 8),
        ("locality", 7),
        ("organization", 10),
        ("organizational_unit", 11),
        ("common_name", 3),
    )
)
_VERSION_1 = tlv(INTEGER, b"\x00")
# extensionRequest, 1.2.840.113549.1.9.14 (RFC 2985), and subjectAltName, 2.5.29.17 (RFC 5280 section 4.2.1.6).
_EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
# ecdsa-with-SHA256, 1.2.840.10045.4.3.2, without parameters (RFC 5758 section 3.2).
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
# sha256WithRSAEncryption, 1.2.840.113549.1.1.11, whose parameters are NULL (RFC 4055 section 5).
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_ECDSA = ec.ECDSA(hashes.SHA256())
_PKCS1, _SHA256 = padding.PKCS1v15(), hashes.SHA256()


def custom_csr(pair: KeyPair, subject: Subject, sans: Iterable[str]) -> str:
    """The CSR in PEM with a trailing newline, signed with SHA-256 (contract-cloudflare, "The CSR itself").

    The subject has the RDNs C, ST, L, O, OU, CN in this order. The extension request has the SANs in their order,
    without case-insensitive duplicates.
    """
    extensions = tlv(SEQUENCE, tlv(SEQUENCE, _SUBJECT_ALT_NAME + tlv(OCTET_STRING, _general_names(sans))))
    attribute = tlv(SEQUENCE, _EXTENSION_REQUEST + tlv(SET, extensions))
    info = tlv(SEQUENCE, _VERSION_1 + _name(subject) + pair.spki + tlv(_ATTRIBUTES, attribute))
    algorithm, signature = _sign(pair, info)
    return encoded("CERTIFICATE REQUEST", tlv(SEQUENCE, info + algorithm + tlv(BIT_STRING, b"\x00" + signature)))


def _name(subject: Subject) -> bytes:
    rdns = []
    for field, attribute_type in _ATTRIBUTE_TYPES:
        value: str | None = getattr(subject, field)
        if value:
            tag = der.PRINTABLE if PRINTABLE.fullmatch(value) else der.UTF8
            rdns.append(tlv(SET, tlv(SEQUENCE, attribute_type + tlv(tag, value.encode("utf-8")))))
    return tlv(SEQUENCE, b"".join(rdns))


def _general_names(sans: Iterable[str]) -> bytes:
    unique: dict[str, str] = {}
    for san in sans:
        unique.setdefault(san.lower(), san)
    return tlv(SEQUENCE, b"".join(tlv(_DNS_NAME, san.encode("ascii")) for san in unique.values()))


def _sign(pair: KeyPair, info: bytes) -> tuple[bytes, bytes]:
    """The AlgorithmIdentifier in DER, and the signature."""
    if isinstance(pair.private_key, rsa.RSAPrivateKey):
        return _RSA_SHA256, pair.private_key.sign(info, _PKCS1, _SHA256)
    return _ECDSA_SHA256, pair.private_key.sign(info, _ECDSA)
