"""Key pairs: generate, encode, and recognize by the digest of the public key. Pure."""

import hashlib

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app.model import CaKeyType, KeyType
from app.pem import Block, blocks

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


_CURVE_NAMES = {curve.name: key_type for key_type, curve in _CURVES.items()}
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192


class Unusable(Exception):  # noqa: N818 - it reads as what it says of the key
    """An uploaded private key that is not accepted; the text says why and quotes nothing of it."""


def holds_pem(text: str) -> bool:
    """Whether there is a PEM private key in a text at all."""
    return _private_key(text) is not None


def _private_key(text: str) -> Block | None:
    return next((block for block in blocks(text) if block.label.endswith("PRIVATE KEY")), None)


def read_pem(text: str) -> KeyPair:
    """An uploaded key in PKCS#8, PKCS#1 or SEC1 PEM, fully checked by OpenSSL; raises Unusable.

    The check takes 32 ms of a core for RSA-2048, and more for larger keys.
    """
    block = _private_key(text)
    if block is not None and not block.whole.isascii():
        # Found here, since an error of the encoder would carry the text.
        raise Unusable("it cannot be read, or is not a valid key")
    if block is None:
        raise Unusable("there is no PEM private key in it: it begins with -----BEGIN PRIVATE KEY-----")
    if "ENCRYPTED" in block.label or "Proc-Type: 4,ENCRYPTED" in block.whole:
        raise Unusable("it is encrypted; `openssl pkey` writes it without a passphrase")
    try:
        encoded = block.whole.encode("ascii")
        # The bounds come before the full check, which takes many seconds for keys beyond them.
        key_type = _usable(serialization.load_pem_private_key(encoded, None, unsafe_skip_rsa_key_validation=True))
        private_key = serialization.load_pem_private_key(encoded, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's text may quote the input, so it ends here.
        raise Unusable("it cannot be read, or is not a valid key") from None
    if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError("neither an RSA nor an EC key")
    return KeyPair(key_type, private_key, spki(private_key))


def _usable(private_key: object) -> str:
    if isinstance(private_key, rsa.RSAPrivateKey):
        exponent = private_key.public_key().public_numbers().e
        if not MIN_RSA_BITS <= private_key.key_size <= MAX_RSA_BITS:
            raise Unusable(f"it is RSA-{private_key.key_size}; {MIN_RSA_BITS} to {MAX_RSA_BITS} bits are accepted")
        if exponent < 65537 or exponent % 2 == 0:
            raise Unusable(f"its RSA exponent is {exponent}; an odd one from 65537 on is accepted")
        return f"rsa{private_key.key_size}"
    if isinstance(private_key, ec.EllipticCurvePrivateKey) and private_key.curve.name in _CURVE_NAMES:
        return _CURVE_NAMES[private_key.curve.name]
    raise Unusable("it is neither RSA nor on P-256, P-384 or P-521")
