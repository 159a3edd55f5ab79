"""Key pairs: generate, encode, and recognize by the digest of the public key. Pure."""

import hashlib

import msgspec
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from app import der, weak_keys
from app.model import CaKeyType, KeyType
from app.pem import Block, Garbled, Kind, blocks, decoded, instead

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class KeyPair(msgspec.Struct, frozen=True):
    """A private key with what identifies it: `spki` is its SubjectPublicKeyInfo in DER (RFC 5280 section 4.1)."""

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
    """A new key pair: RSA-2048 takes about 43 ms of a core with the GIL released, RSA-4096 a second, P-256 14 µs."""
    private_key: PrivateKey = (
        ec.generate_private_key(_CURVES[key_type.value])
        if is_elliptic(key_type)
        else rsa.generate_private_key(65537, int(key_type.value.removeprefix("rsa")))
    )
    return KeyPair(key_type.value, private_key, spki(private_key))


def is_elliptic(key_type: KeyType | CaKeyType) -> bool:
    """Whether it is on a curve, and so made at once."""
    return key_type.value in _CURVES


def spki(private_key: PrivateKey) -> bytes:
    """Its SubjectPublicKeyInfo in DER."""
    return private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def spki_sha256(private_key: PrivateKey) -> bytes:
    """SHA-256 of its SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki(private_key)).digest()


def pkcs8(private_key: PrivateKey) -> bytes:
    """Unencrypted DER PKCS#8 (RFC 5958): what is sealed, and never anything else."""
    return private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem(private_key: PrivateKey) -> str:
    """Unencrypted PEM PKCS#8, for the operator's export alone."""
    return private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")


def load(der: bytes) -> PrivateKey:
    """Read a PKCS#8 key that we made and that AEAD has authenticated; raises ValueError for anything else.

    OpenSSL's full check of an RSA key takes 32 ms and would tell us only what the AEAD already has. An uploaded key
    must not come this way.
    """
    private_key = serialization.load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError("neither an RSA nor an EC key")
    return private_key


_MIN_FACTOR_BITS = 512


class Unusable(Exception):  # noqa: N818 - it reads as what it says of the key
    """An uploaded private key that is not accepted; the text says why and quotes nothing of it."""


def holds_pem(text: str) -> bool:
    """Whether there is a PEM private key in a text at all."""
    return _private_key(text) is not None


def _private_key(text: str) -> Block | None:
    return next((block for block in blocks(text) if block.kind is Kind.KEY), None)


def read_pem(text: str) -> KeyPair:
    """An uploaded key in PKCS#8, PKCS#1 or SEC1 PEM, whose numbers belong together; raises Unusable."""
    block = _private_key(text)
    if block is None:
        raise Unusable(f"it {instead(text, Kind.KEY)}")
    if "ENCRYPTED" in block.label or "Proc-Type: 4,ENCRYPTED" in block.whole:
        raise Unusable("it is encrypted; `openssl pkey` writes it without a passphrase")
    if block.label == "OPENSSH PRIVATE KEY":
        raise Unusable("it is in OpenSSH's own form; `ssh-keygen -p -m PKCS8` makes PEM of the file in its place")
    try:
        sent = decoded(block)
    except Garbled as error:
        raise Unusable(f"it {error}") from None
    try:
        _require_kind(sent)
        private_key = serialization.load_der_private_key(sent, None, unsafe_skip_rsa_key_validation=True)
        if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise Unusable(f"it is {weak_keys.KINDS}")
        _require_strong(private_key)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError, InvalidSignature):
        # The library's text may quote the input, so it ends here.
        raise Unusable("it cannot be read, or is not a valid key") from None
    curve = private_key.curve.name if isinstance(private_key, ec.EllipticCurvePrivateKey) else ""
    key_type = _CURVE_NAMES[curve] if curve else f"rsa{private_key.key_size}"
    return KeyPair(key_type, private_key, spki(private_key))


_CURVE_NAMES = {curve.name: key_type for key_type, curve in _CURVES.items()}
_RSA, _EC = "1.2.840.113549.1.1.1", "1.2.840.10045.2.1"


def _require_kind(sent: bytes) -> None:
    """Refuse other algorithms before the library computes with their numbers, for as long as they are large.

    PKCS#8 (RFC 5958 section 2) names its algorithm; the others are told by their parts (RFC 8017 appendix A.1.2, RFC
    5915 section 3), whatever their label says.
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
    """The relations of RFC 8017 section 3.2, and one signature that its public key accepts.

    OpenSSL's own check also proves that p and q are prime. That takes seconds for large keys, and minutes for numbers
    that are made for it, all with the interpreter's lock held; whoever sends a key of composite factors, and has found
    ones for which the signature is good, harms nobody else.
    """
    numbers = private_key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    p, q, d = numbers.p, numbers.q, numbers.d
    if not (1 < p < n and 1 < q < n and 1 < d < n and p * q == n):
        raise ValueError("its numbers do not belong together")
    # A small factor is found by its size alone, whatever the length of n.
    if min(p.bit_length(), q.bit_length()) < _MIN_FACTOR_BITS:
        raise Unusable("one of its factors is small")
    belong = (
        d * e % (p - 1) == d * e % (q - 1) == 1
        and numbers.dmp1 == d % (p - 1)
        and numbers.dmq1 == d % (q - 1)
        and numbers.iqmp * q % p == 1
    )
    if not belong:
        raise ValueError("its numbers do not belong together")
    text = b"a key that signs what its public key accepts"
    signature = private_key.sign(text, padding.PKCS1v15(), hashes.SHA256())
    private_key.public_key().verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
