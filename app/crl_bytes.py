"""A CRL, byte by byte: RFC 5280 section 5 in DER (X.690). Pure.

Written here because a library of general use builds every entry anew for each signature, and here those of the last CRL
are taken over; that both write the same bytes is held by tests/test_crl_bytes.py (docs/decisions/0028-grown-crls.md).
"""

import binascii
import hashlib
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from app import der, pkix
from app.keys import PrivateKey

_VERSION_2 = der.integer(1)
_TAGGED_EXTENSIONS = 0xA0
_COLUMNS = 64
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


# By the number of section 5.3.1; unspecified is left out, as that section asks.
_REASONS = {0: b""} | {
    n: der.tlv(der.SEQUENCE, _extension(_REASON, der.tlv(der.ENUMERATED, bytes((n,))))) for n in range(1, 11)
}


def entry(serial: int, revoked_at: datetime, reason: int) -> bytes:
    """One of revokedCertificates; `reason` is the number of section 5.3.1, the time is UTC and has whole seconds."""
    return der.tlv(der.SEQUENCE, der.integer(serial) + _time(revoked_at) + _REASONS[reason])


def signed(
    issuer: x509.Certificate,
    private_key: PrivateKey,
    number: int,
    this_update: datetime,
    next_update: datetime,
    entries: bytes,
) -> bytes:
    """A CRL of version 2 in DER, with AKI and CRLNumber; `entries` are written one after the other."""
    digest = pkix.digest_for(private_key)
    algorithm = (_RSA if isinstance(private_key, rsa.RSAPrivateKey) else _ECDSA)[digest.name]
    aki = pkix.authority_key_identifier(issuer).public_bytes()
    extensions = _extension(_AUTHORITY_KEY_IDENTIFIER, aki) + _extension(_CRL_NUMBER, der.integer(number))
    parts = (
        *(_VERSION_2, algorithm, issuer.subject.public_bytes(), _time(this_update), _time(next_update)),
        *((der.tlv(der.SEQUENCE, entries),) if entries else ()),
        der.tlv(_TAGGED_EXTENSIONS, der.tlv(der.SEQUENCE, extensions)),
    )
    listed = der.tlv(der.SEQUENCE, b"".join(parts))
    # Digested here, since this lets other threads run, and signing does not.
    digested = hashlib.new(digest.name, listed).digest()
    prehashed = utils.Prehashed(digest)
    if isinstance(private_key, rsa.RSAPrivateKey):
        signature = private_key.sign(digested, padding.PKCS1v15(), prehashed)
    else:
        signature = private_key.sign(digested, ec.ECDSA(prehashed))
    return der.tlv(der.SEQUENCE, listed + algorithm + der.tlv(der.BIT_STRING, b"\x00" + signature))


def entries_of(crl: bytes) -> bytes:
    """The entries of a CRL as `signed` writes it, one after the other; raises ValueError for other bytes."""
    listed = der.first(der.first(crl).content).content
    # Version, algorithm, issuer and the two times are before them, the extensions behind them.
    *entries, extensions = der.values(listed)[5:]
    if extensions.tag != _TAGGED_EXTENSIONS:
        raise ValueError("no CRL of ours")
    return entries[0].content if entries else b""


def pem(crl: bytes) -> str:
    """A CRL of ours in PEM with a trailing newline."""
    text = binascii.b2a_base64(crl, newline=False).decode("ascii")
    lines = [text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS)]
    return "\n".join(("-----BEGIN X509 CRL-----", *lines, "-----END X509 CRL-----\n"))


def _time(time: datetime) -> bytes:
    """UTCTime until 2049, then GeneralizedTime (section 5.1.2.4)."""
    if time.year < 2050:
        return der.tlv(der.UTC_TIME, f"{time:%y%m%d%H%M%SZ}".encode())
    return der.tlv(der.GENERALIZED_TIME, f"{time:%Y%m%d%H%M%SZ}".encode())
