"""CSRs (RFC 2986) and certificates (RFC 5280): reading CSRs, and building what our CAs sign. Pure."""

import contextlib
from collections.abc import Iterable
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

# Private API: the public one chooses the string type by attribute and cannot write PrintableString everywhere.
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from keystead.x509 import chains, foreign, keys, signing, weak_keys
from keystead.x509.der import Unreadable
from keystead.x509.keys import PrivateKey
from keystead.x509.pem import Kind, blocks, decoded, instead
from keystead.x509.subjects import FORBIDDEN, PRINTABLE, CaSubject

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
MAX_CSR = 128 * 1024
MAX_SUBJECT_BYTES = 4096


def ca_csr(private_key: PrivateKey, subject: CaSubject, path_length: int | None) -> str:
    """The CSR of a CA in PEM with a trailing newline (contract-infisical, "GET …/csr")."""
    ski = x509.SubjectKeyIdentifier.from_public_key(private_key.public_key())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(ca_name(subject))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(CA_KEY_USAGES), critical=True)
        .add_extension(ski, critical=False)
        .sign(private_key, signing.digest_for(private_key))
    )
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


# Attributes of a CA's name in encoding order.
_CA_OIDS = {
    "country": NameOID.COUNTRY_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "state": NameOID.STATE_OR_PROVINCE_NAME,
    "common_name": NameOID.COMMON_NAME,
    "locality": NameOID.LOCALITY_NAME,
}
# Their short names (RFC 4514 section 3), such as CN.
CA_ATTRIBUTES = {field: x509.NameAttribute(oid, "XX").rfc4514_attribute_name for field, oid in _CA_OIDS.items()}


def ca_name(subject: CaSubject) -> x509.Name:
    """The name with RDNs in the order of CA_ATTRIBUTES; empty attributes are omitted."""
    return name((oid, getattr(subject, field)) for field, oid in _CA_OIDS.items())


def common_name(text: str) -> x509.Name:
    return name([(NameOID.COMMON_NAME, text)])


def ca_subject(name: x509.Name) -> CaSubject | None:
    """The inverse of `ca_name`, for any string types; None if an attribute occurs twice."""
    values = {field: [str(a.value) for a in name.get_attributes_for_oid(oid)] for field, oid in _CA_OIDS.items()}
    if any(len(found) > 1 for found in values.values()):
        return None
    return CaSubject(**{field: found[0] for field, found in values.items() if found})


def der(pem: str) -> bytes:
    """The DER of a stored PEM CSR or certificate."""
    return decoded(next(blocks(pem)))


def spki_sha256(pem: str) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo of a stored PEM CSR; raises ValueError if it cannot be read."""
    try:
        public_key = x509.load_pem_x509_csr(pem.encode("ascii")).public_key()
    except UnsupportedAlgorithm:
        raise ValueError("a key of a kind that is not ours") from None
    return keys.spki_sha256(public_key)


class BadCsr(Exception):  # noqa: N818 - the name describes the input
    """A submitted CSR cannot be signed; the text is a sentence for the caller."""


class Request(msgspec.Struct, frozen=True):
    """The contents of a CSR that a CA uses.

    `public_key` is None if its algorithm is not supported. Usages are keys of KEY_USAGES and EXTENDED_KEY_USAGES; other
    extended ones are dotted OIDs. `rewritten` means that some strings of the subject got another string type.
    """

    subject: x509.Name
    public_key: PublicKey | None
    sans: tuple[x509.GeneralName, ...]
    key_usages: tuple[str, ...] = ()
    extended_key_usages: tuple[str, ...] = ()
    rewritten: bool = False

    @property
    def common_name(self) -> str:
        return next((str(a.value) for a in self.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def read_csr(text: str) -> Request:
    """Parse a PEM CSR; raises BadCsr. If the key's algorithm is not supported, its signature is not verified."""
    if len(text) > MAX_CSR:
        raise BadCsr(f"The CSR has more than {MAX_CSR} characters.")
    found = [block for block in blocks(text) if block.kind is Kind.REQUEST]
    if not found:
        raise BadCsr(f"The CSR {instead(text, Kind.REQUEST)}.")
    if len(found) > 1:
        raise BadCsr("The CSR is not one PEM block but several.")
    sent = b""
    try:
        sent = decoded(found[0])
        request = foreign.request(sent)
    except Unreadable as error:
        raise BadCsr(f"The CSR{foreign.subject_of(sent)} cannot be read: {error}.") from None
    read, subject = request.read, request.subject
    encoded = subject.public_bytes()
    _require_subject(subject, encoded)
    sans = tuple(chains.extension(read, x509.SubjectAlternativeName) or ())
    return Request(subject, _signing_key(request), sans, *usages(read), rewritten=encoded not in request.info)


def _signing_key(request: foreign.Request) -> PublicKey | None:
    read = request.read
    public_key: object = None
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        public_key = read.public_key()
    if isinstance(public_key, rsa.RSAPublicKey | None) and request.key_algorithm == weak_keys.RSA_PSS:
        raise BadCsr(f"The CSR's key {weak_keys.IS_RSA_PSS}.")
    if not isinstance(public_key, PublicKey):
        return None
    try:
        digest = read.signature_hash_algorithm
        if isinstance(digest, hashes.SHA1 | hashes.MD5):
            raise BadCsr(f"The CSR is signed with {digest.name.upper()}, which is broken.")
        signed = request.is_signed_by(public_key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        oid = read.signature_algorithm_oid.dotted_string
        raise BadCsr(f"The CSR is signed with {oid}, which is broken or not known here.") from None
    if not signed:
        raise BadCsr("The CSR's signature is not valid: it was changed, or signed with another key.")
    return public_key


def usages(
    holder: x509.Certificate | x509.CertificateSigningRequest,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The key usages and the extended ones, as Request has them."""
    key_usage = chains.extension(holder, x509.KeyUsage)
    extended = chains.extension(holder, x509.ExtendedKeyUsage) or ()
    words = dict.fromkeys(_EXTENDED_WORDS.get(oid, oid.dotted_string) for oid in extended)
    return _key_usages(key_usage) if key_usage else (), tuple(words)


def _key_usages(found: x509.KeyUsage) -> tuple[str, ...]:
    # Undefined without keyAgreement (RFC 5280 section 4.2.1.3), and `cryptography` raises ValueError for them.
    undefined = set() if found.key_agreement else {"encipher_only", "decipher_only"}
    return tuple(word for word, field in KEY_USAGES.items() if field not in undefined and getattr(found, field))


def _require_subject(subject: x509.Name, encoded: bytes) -> None:
    if len(encoded) > MAX_SUBJECT_BYTES:
        raise BadCsr(f"The CSR's subject has more than {MAX_SUBJECT_BYTES} bytes.")
    if any(isinstance(a.value, str) and FORBIDDEN.search(a.value) for a in subject):
        raise BadCsr("The CSR's subject has a control character.")
    fault = foreign.name_fault(subject)
    if fault:
        raise BadCsr(f"The CSR's subject is not valid: {fault}.")


def weakness(public_key: PublicKey | None) -> str:
    """Why a CSR's public key is rejected, as a sentence; empty if it is accepted."""
    found = weak_keys.weakness(public_key)
    return f"The CSR's key {found}." if found else ""


# Names of RFC 5280 section 4.2.1.3, and the parameters of x509.KeyUsage.
KEY_USAGES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
    "encipherOnly": "encipher_only",
    "decipherOnly": "decipher_only",
}
# Names of RFC 5280 section 4.2.1.12.
EXTENDED_KEY_USAGES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "ocspSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}
_EXTENDED_WORDS = {oid: word for word, oid in EXTENDED_KEY_USAGES.items()}
ROOT_KEY_USAGES = ("keyCertSign", "cRLSign")
CA_KEY_USAGES = ("digitalSignature", "keyCertSign", "cRLSign")


class ToSign(msgspec.Struct, frozen=True):
    """The contents of a certificate to sign; `issuer` None makes a self-signed root. Times are in whole seconds."""

    issuer: x509.Certificate | None
    subject: x509.Name
    public_key: PublicKey
    serial: int
    not_before: datetime
    not_after: datetime
    ca: bool
    path_length: int | None = None
    key_usages: tuple[str, ...] = ()
    extended_key_usages: tuple[str, ...] = ()
    sans: tuple[x509.GeneralName, ...] = ()
    crl_url: str | None = None
    issuer_url: str | None = None


def authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The AKI extension: the issuer's SKI, which another CA may have chosen, or else computed from its key."""
    ski = chains.key_id(issuer)
    if ski is None:
        ski = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    return x509.AuthorityKeyIdentifier(ski, None, None)


def _key_usage(names: Iterable[str]) -> x509.KeyUsage:
    chosen = set(names)
    return x509.KeyUsage(**{word: name in chosen for name, word in KEY_USAGES.items()})


def name(attributes: Iterable[tuple[ObjectIdentifier, str | None]]) -> x509.Name:
    """A name with one attribute per RDN; empty ones are omitted. x509/subjects.py has validated the values."""
    return x509.Name(
        [
            x509.NameAttribute(oid, value, _PRINTABLE if PRINTABLE.fullmatch(value) else _UTF8, _validate=False)
            for oid, value in attributes
            if value
        ]
    )


_PRINTABLE, _UTF8 = _ASN1Type.PrintableString, _ASN1Type.UTF8String
