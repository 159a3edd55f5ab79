"""DER encoder for CRLs (RFC 5280 section 5, X.690). Pure.

`cryptography` re-encodes every entry for each signature; this encoder reuses the encoded entries of the previous CRL
(docs/decisions/0028-grown-crls.md). test_crl_bytes.py checks that both produce the same bytes.
"""

import hashlib
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from app.x509 import der, pkix
from app.x509.keys import PrivateKey
from app.x509.pem import encoded

_VERSION_2 = der.integer(1)
_TAGGED_EXTENSIONS = 0xA0
# Extensions of 2.5.29 (RFC 5280 sections 5.2 and 5.3).
_CRL_NUMBER, _REASON, _AUTHORITY_KEY_IDENTIFIER = (der.tlv(der.OID, bytes((0x55, 0x1D, n))) for n in (20, 21, 35))
# ecdsa-with-SHA256, -SHA384 and -SHA512 of 1.2.840.10045.4.3 have no parameters (RFC 5758 section 3.2), and
# sha256WithRSAEncryption has NULL (RFC 4055 section 5).
_ECDSA = {
    name: der.tlv(der.SEQUENCE, der.tlv(der.OID, bytes.fromhex("2a8648ce3d0403") + bytes((n,))))
    for name, n in (("sha256", 2), ("sha384", 3), ("sha512", 4))
}
_RSA = {"sha256": bytes.fromhex("300d06092a864886f70d01010b0500")}


def _extension(oid: bytes, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, oid + der.tlv(der.OCTET_STRING, value))


# Encoded reasonCode extension by its number in section 5.3.1, which says to omit `unspecified` (0).
_REASONS = {0: b""} | {
    n: der.tlv(der.SEQUENCE, _extension(_REASON, der.tlv(der.ENUMERATED, bytes((n,))))) for n in range(1, 11)
}


def entry(serial: int, revoked_at: datetime, reason: int) -> bytes:
    """One encoded entry of revokedCertificates. `revoked_at` is UTC in whole seconds, `reason` as in section 5.3.1."""
    return der.tlv(der.SEQUENCE, der.integer(serial) + _time(revoked_at) + _REASONS[reason])


def signed(
    issuer: x509.Certificate,
    private_key: PrivateKey,
    number: int,
    updates: tuple[datetime, datetime],
    entries: bytes,
) -> bytes:
    """A signed v2 CRL in DER; `updates` are thisUpdate and nextUpdate, `entries` the results of `entry` joined."""
    digest = pkix.digest_for(private_key)
    algorithm = (_RSA if isinstance(private_key, rsa.RSAPrivateKey) else _ECDSA)[digest.name]
    aki = pkix.authority_key_identifier(issuer).public_bytes()
    extensions = _extension(_AUTHORITY_KEY_IDENTIFIER, aki) + _extension(_CRL_NUMBER, der.integer(number))
    parts = (
        *(_VERSION_2, algorithm, issuer.subject.public_bytes(), *map(_time, updates)),
        der.tlv(der.SEQUENCE, entries) if entries else b"",
        der.tlv(_TAGGED_EXTENSIONS, der.tlv(der.SEQUENCE, extensions)),
    )
    tbs = der.tlv(der.SEQUENCE, b"".join(parts))
    # hashlib releases the GIL, signing does not; CRLs can be megabytes long.
    digest_value = hashlib.new(digest.name, tbs).digest()
    prehashed = utils.Prehashed(digest)
    if isinstance(private_key, rsa.RSAPrivateKey):
        signature = private_key.sign(digest_value, padding.PKCS1v15(), prehashed)
    else:
        signature = private_key.sign(digest_value, ec.ECDSA(prehashed))
    return der.tlv(der.SEQUENCE, tbs + algorithm + der.tlv(der.BIT_STRING, b"\x00" + signature))


def entries_of(crl: bytes) -> bytes:
    """The concatenated entries of a CRL that `signed` made; raises ValueError for anything else."""
    tbs = der.first(der.first(crl).content).content
    # Five fields precede the entries: version, algorithm, issuer, thisUpdate, nextUpdate. Extensions follow.
    *entries, extensions = der.values(tbs)[5:]
    if extensions.tag != _TAGGED_EXTENSIONS:
        raise ValueError("no CRL of ours")
    return entries[0].content if entries else b""


def pem(crl: bytes) -> str:
    return encoded("X509 CRL", crl)


def _time(time: datetime) -> bytes:
    """UTCTime until 2049, then GeneralizedTime (section 5.1.2.4)."""
    tag, year = (der.UTC_TIME, f"{time:%y}") if time.year < 2050 else (der.GENERALIZED_TIME, f"{time:%Y}")
    return der.tlv(tag, f"{year}{time:%m%d%H%M%SZ}".encode())
