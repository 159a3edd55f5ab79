"""Key pairs: generation, encoding, and validation of uploaded private keys. Pure."""

import hashlib
from enum import StrEnum

import msgspec
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from keystead.x509 import der, weak_keys
from keystead.x509.pem import Block, Kind, blocks, decoded, instead


class KeyType(StrEnum):
    """Key types of custom CSRs, with Cloudflare's names."""

    RSA2048 = "rsa2048"
    P256V1 = "p256v1"


class CaKeyType(StrEnum):
    """Key types of CAs."""

    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"
    P256V1 = "p256v1"
    P384 = "p384"
    P521 = "p521"


PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class KeyPair(msgspec.Struct, frozen=True):
    """A private key; `spki` is its SubjectPublicKeyInfo in DER (RFC 5280 section 4.1). The repr shows no secrets."""

    key_type: str
    private_key: PrivateKey
    spki: bytes

    @property
    def spki_sha256(self) -> bytes:
        return hashlib.sha256(self.spki).digest()

    def __repr__(self) -> str:
        return f"KeyPair({self.key_type}, {self.spki_sha256.hex()})"


_CURVES = {"p256v1": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}


def generate(key_type: KeyType | CaKeyType) -> KeyPair:
    """A new key pair. P-256 takes 14 µs, RSA-2048 about 43 ms and RSA-4096 a second, with the GIL released."""
    private_key: PrivateKey
    if is_elliptic(key_type):
        private_key = ec.generate_private_key(_CURVES[key_type.value])
    else:
        private_key = rsa.generate_private_key(65537, int(key_type.value.removeprefix("rsa")))
    return KeyPair(key_type.value, private_key, spki(private_key))


def is_elliptic(key_type: KeyType | CaKeyType) -> bool:
    """Whether it is an EC key type, which is generated in microseconds."""
    return key_type.value in _CURVES


def spki(key: PrivateKey | CertificatePublicKeyTypes) -> bytes:
    """The SubjectPublicKeyInfo of a public key, or of that of a private key, in DER."""
    public_key = key.public_key() if isinstance(key, PrivateKey) else key
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: PrivateKey | CertificatePublicKeyTypes) -> bytes:
    return hashlib.sha256(spki(key)).digest()


def pkcs8(private_key: PrivateKey) -> bytes:
    """Unencrypted PKCS#8 in DER (RFC 5958). Secret: only to be sealed or handed to the parent process."""
    return private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def pem(private_key: PrivateKey) -> str:
    """Unencrypted PKCS#8 in PEM. Secret: only for the operator's export and Infisical's issue call."""
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def load(der: bytes) -> PrivateKey:
    """Load a PKCS#8 key in DER that we generated ourselves; raises ValueError or TypeError for anything else.

    Skips OpenSSL's RSA key validation, which takes 32 ms: the AEAD has authenticated the key. Never use this for
    uploaded keys.
    """
    private_key = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError("neither an RSA nor an EC key")
    return private_key


_MIN_FACTOR_BITS = 512


class Unusable(Exception):  # noqa: N818 - the name describes the input
    """An uploaded private key is not accepted; the text gives the reason and never quotes the key."""


def holds_pem(text: str) -> bool:
    """Whether the text contains a PEM private key, valid or not."""
    return _private_key(text) is not None


def _private_key(text: str) -> Block | None:
    return next((block for block in blocks(text) if block.kind is Kind.KEY), None)


def read_pem(text: str) -> KeyPair:
    """Load and validate an uploaded key in PKCS#8, PKCS#1 or SEC1 PEM; raises Unusable."""
    block = _private_key(text)
    if block is None:
        raise Unusable(f"it {instead(text, Kind.KEY)}")
    if "ENCRYPTED" in block.label or "Proc-Type: 4,ENCRYPTED" in block.text:
        raise Unusable("it is encrypted; `openssl pkey` writes it without a passphrase")
    if block.label == "OPENSSH PRIVATE KEY":
        raise Unusable("it is in OpenSSH's own form; `ssh-keygen -p -m PKCS8` makes PEM of the file in its place")
    try:
        sent = decoded(block)
    except der.Unreadable as error:
        raise Unusable(str(error)) from None
    try:
        _require_kind(sent)
        private_key = load_der_private_key(sent, None, unsafe_skip_rsa_key_validation=True)
        if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise Unusable(f"it is {weak_keys.KINDS}")
        _require_strong(private_key)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError, InvalidSignature):
        # The text of these exceptions may quote the key.
        raise Unusable("it cannot be read, or is not a valid key") from None
    curve = private_key.curve.name if isinstance(private_key, ec.EllipticCurvePrivateKey) else ""
    key_type = _CURVE_NAMES[curve] if curve else f"rsa{private_key.key_size}"
    return KeyPair(key_type, private_key, spki(private_key))


_CURVE_NAMES = {curve.name: key_type for key_type, curve in _CURVES.items()}
_RSA, _EC = "1.2.840.113549.1.1.1", "1.2.840.10045.2.1"


def _require_kind(sent: bytes) -> None:
    """Raise Unusable unless the key is RSA or EC, before OpenSSL spends time on large parameters of other algorithms.

    PKCS#8 names its algorithm (RFC 5958 section 2). PKCS#1 (RFC 8017 appendix A.1.2) and SEC1 (RFC 5915 section 3) are
    recognized by their structure, because PEM labels can be wrong.
    """
    parts = der.values(der.first(sent).content)
    tags = [part.tag for part in parts]
    algorithm = ""
    if tags[:2] == [der.INTEGER, der.SEQUENCE]:
        algorithm = der.dotted(der.first(parts[1].content).content)
    elif tags[:2] == [der.INTEGER, der.OCTET_STRING]:
        algorithm = _EC
    elif tags == [der.INTEGER] * 9:
        algorithm = _RSA
    if algorithm == weak_keys.RSA_PSS:
        raise Unusable(f"it {weak_keys.IS_RSA_PSS}")
    if algorithm not in {_RSA, _EC}:
        raise Unusable(f"it is {weak_keys.KINDS}")


def _require_strong(private_key: PrivateKey) -> None:
    weakness = weak_keys.unfit(private_key.public_key())
    if not weakness and isinstance(private_key, rsa.RSAPrivateKey):
        _require_consistent(private_key)
    weakness = weakness or weak_keys.weakness(private_key.public_key()) or weak_keys.private_weakness(private_key)
    if weakness:
        raise Unusable(f"it {weakness}")


def _require_consistent(private_key: rsa.RSAPrivateKey) -> None:
    """Check the relations of RFC 8017 section 3.2 and a test signature; raises ValueError, Unusable, InvalidSignature.

    OpenSSL's check also tests p and q for primality, which takes seconds for large keys and minutes for crafted ones,
    with the GIL held. A crafted key with composite factors only harms its own sender.
    """
    numbers = private_key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    p, q, d = numbers.p, numbers.q, numbers.d
    if not (1 < p < n and 1 < q < n and 1 < d < n and p * q == n):
        raise ValueError("the factors and the modulus do not belong together")
    # The time to find a factor depends on its own size, not on that of n.
    if min(p.bit_length(), q.bit_length()) < _MIN_FACTOR_BITS:
        raise Unusable("one of its factors is small")
    remainders = (d * e % (p - 1), d * e % (q - 1), numbers.iqmp * q % p)
    if remainders != (1, 1, 1) or (numbers.dmp1, numbers.dmq1) != (d % (p - 1), d % (q - 1)):
        raise ValueError("the exponents and the factors do not belong together")
    text = b"a key that signs what its public key accepts"
    signature = private_key.sign(text, padding.PKCS1v15(), hashes.SHA256())
    private_key.public_key().verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
