"""Key pairs: generate, encode, and recognize by the digest of the public key. Pure."""

import hashlib

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app.model import KeyType

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class KeyPair(msgspec.Struct, frozen=True):
    """A private key with what identifies it: `spki_sha256` is SHA-256 of its DER SubjectPublicKeyInfo (RFC 5280)."""

    key_type: KeyType
    private_key: PrivateKey
    spki_sha256: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.key_type}, {self.spki_sha256.hex()})"


def generate(key_type: KeyType) -> KeyPair:
    """A new key pair: RSA-2048 takes about 43 ms of a core with the GIL released, P-256 about 14 µs."""
    private_key: PrivateKey = (
        rsa.generate_private_key(65537, 2048)
        if key_type is KeyType.RSA2048
        else ec.generate_private_key(ec.SECP256R1())
    )
    return KeyPair(key_type, private_key, spki_sha256(private_key))


def spki_sha256(private_key: PrivateKey) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo, 32 bytes."""
    spki = private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def pkcs8(private_key: PrivateKey) -> bytes:
    """Unencrypted DER PKCS#8 (RFC 5958): what is sealed, and never anything else."""
    return private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load(der: bytes) -> PrivateKey:
    """Read a PKCS#8 key that we made and that AEAD has authenticated; raises ValueError for anything else.

    OpenSSL's full check of an RSA key takes 32 ms and would tell us only what the AEAD already has. An uploaded key
    must not come this way.
    """
    private_key = serialization.load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError("neither an RSA nor an EC key")
    return private_key
