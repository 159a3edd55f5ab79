"""What OpenSSL reads of a CRL, and chains that are too deep."""

import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.authority import pem
from support.csr_judges import run as said_by

TOO_DEEP = "Failed to issue intermediate certificate due to CA path length constraint: "


def read_by_openssl(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> str:
    """What OpenSSL says is in a CRL whose signature it has verified."""
    text = crl.public_bytes(serialization.Encoding.PEM).decode()
    with tempfile.TemporaryDirectory() as name:
        ca = Path(name, "ca.pem")
        ca.write_text(pem(issuer))
        return said_by("openssl", "crl", "-noout", "-text", "-verify", "-CAfile", str(ca), text=text)


_REVOKED = """
INSERT INTO issued_certificates (account_id, id, ca_id, profile, serial, spki_sha256, subject, common_name, alt_names,
    key_usages, extended_key_usages, not_before, not_after, revoked_at, revocation_reason)
SELECT $1, gen_random_uuid(), $2, 'leaf', '5a' || right(encode(sha256(n::text::bytea), 'hex'), 38), sha256('x'),
    'CN=h', 'h', '{}', '{}', '{}', now(), now() + interval '90 days', now(), (ARRAY[0, 1, 4, 9])[n % 4 + 1]
FROM generate_series(1, $3::int) AS n RETURNING serial
"""
