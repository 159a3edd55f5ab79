"""DER encoder for CRLs (RFC 5280 section 5, X.690). Pure.

`cryptography` re-encodes every entry for each signature; this encoder reuses the encoded entries of the previous CRL
(docs/decisions/0028-grown-crls.md). test_crl_bytes.py checks that both produce the same bytes.
"""

from datetime import datetime

from cryptography import x509

from keystead.x509 import der, pkix, signing
from keystead.x509.keys import PrivateKey
from keystead.x509.pem import encoded
from keystead.x509.signing import extension, time

_VERSION_2 = der.integer(1)
_TAGGED_EXTENSIONS = 0xA0
# Extensions of 2.5.29 (RFC 5280 sections 5.2 and 5.3).
_CRL_NUMBER, _REASON, _AUTHORITY_KEY_IDENTIFIER = (der.tlv(der.OID, bytes((0x55, 0x1D, n))) for n in (20, 21, 35))
# Encoded reasonCode extension by its number in section 5.3.1, which says to omit `unspecified` (0).
_REASONS = {0: b""} | {
    n: der.tlv(der.SEQUENCE, extension(_REASON, der.tlv(der.ENUMERATED, bytes((n,))))) for n in range(1, 11)
}


def entry(serial: int, revoked_at: datetime, reason: int) -> bytes:
    """One encoded entry of revokedCertificates. `revoked_at` is UTC in whole seconds, `reason` as in section 5.3.1."""
    return der.tlv(der.SEQUENCE, der.integer(serial) + time(revoked_at) + _REASONS[reason])


def signed(
    issuer: x509.Certificate,
    private_key: PrivateKey,
    number: int,
    updates: tuple[datetime, datetime],
    entries: bytes,
) -> bytes:
    """A signed v2 CRL in DER; `updates` are thisUpdate and nextUpdate, `entries` the results of `entry` joined."""
    aki = pkix.authority_key_identifier(issuer).public_bytes()
    extensions = extension(_AUTHORITY_KEY_IDENTIFIER, aki) + extension(_CRL_NUMBER, der.integer(number))
    parts = (
        *(_VERSION_2, signing.algorithm(private_key), issuer.subject.public_bytes(), *map(time, updates)),
        der.tlv(der.SEQUENCE, entries) if entries else b"",
        der.tlv(_TAGGED_EXTENSIONS, der.tlv(der.SEQUENCE, extensions)),
    )
    return signing.signed(b"".join(parts), private_key)


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
