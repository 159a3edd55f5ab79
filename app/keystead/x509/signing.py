"""DER of what certificates and CRLs have in common: times, extensions, the signature (RFC 5280 section 4.1). Pure."""

import hashlib
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from keystead.x509 import der
from keystead.x509.keys import PrivateKey

Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_DIGESTS: dict[int, Digest] = {384: hashes.SHA384(), 521: hashes.SHA512()}
# ecdsa-with-SHA256, -SHA384 and -SHA512 of 1.2.840.10045.4.3 have no parameters (RFC 5758 section 3.2), and
# sha256WithRSAEncryption has NULL (RFC 4055 section 5).
_ECDSA = {
    name: der.tlv(der.SEQUENCE, der.tlv(der.OID, bytes.fromhex("2a8648ce3d0403") + bytes((n,))))
    for name, n in (("sha256", 2), ("sha384", 3), ("sha512", 4))
}
_RSA = {"sha256": bytes.fromhex("300d06092a864886f70d01010b0500")}
_CRITICAL = der.tlv(der.BOOLEAN, b"\xff")


def digest_for(private_key: PrivateKey) -> Digest:
    """SHA-256 for RSA and P-256, SHA-384 for P-384, SHA-512 for P-521 (contract-infisical)."""
    return _DIGESTS.get(private_key.key_size, hashes.SHA256())


def algorithm(private_key: PrivateKey) -> bytes:
    """The AlgorithmIdentifier of signatures with this key."""
    return (_RSA if isinstance(private_key, rsa.RSAPrivateKey) else _ECDSA)[digest_for(private_key).name]


def signed(parts: bytes, private_key: PrivateKey) -> bytes:
    """The SEQUENCE of these parts with its signature; one of them has to be the `algorithm`."""
    tbs, digest = der.tlv(der.SEQUENCE, parts), digest_for(private_key)
    # hashlib releases the GIL, signing does not; CRLs can be megabytes long.
    digest_value = hashlib.new(digest.name, tbs).digest()
    prehashed = utils.Prehashed(digest)
    if isinstance(private_key, rsa.RSAPrivateKey):
        signature = private_key.sign(digest_value, padding.PKCS1v15(), prehashed)
    else:
        signature = private_key.sign(digest_value, ec.ECDSA(prehashed))
    return der.tlv(der.SEQUENCE, tbs + algorithm(private_key) + der.tlv(der.BIT_STRING, b"\x00" + signature))


def time(at: datetime) -> bytes:
    """UTCTime from 1950 to 2049, else GeneralizedTime (RFC 5280 section 4.1.2.5), in whole seconds."""
    at = at.astimezone(UTC)
    text = at.strftime("%m%d%H%M%SZ")
    if 1950 <= at.year < 2050:
        return der.tlv(der.UTC_TIME, f"{at.year % 100:02}{text}".encode("ascii"))
    return der.tlv(der.GENERALIZED_TIME, f"{at.year:04}{text}".encode("ascii"))


def extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    """An Extension; `oid` is encoded."""
    return der.tlv(der.SEQUENCE, oid + (_CRITICAL if critical else b"") + der.tlv(der.OCTET_STRING, value))
