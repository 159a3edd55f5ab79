"""The CRL byte by byte: the same that a library of general use writes, whether built at once or grown (RFC 5280 5)."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st
from support.authority import Key
from support.fuzzing import examples
from support.pki import ISSUERS, KEYS

from keystead.x509 import crl as crl_bytes
from keystead.x509 import pkix, signing

REASONS = {
    1: x509.ReasonFlags.key_compromise,
    2: x509.ReasonFlags.ca_compromise,
    3: x509.ReasonFlags.affiliation_changed,
    4: x509.ReasonFlags.superseded,
    5: x509.ReasonFlags.cessation_of_operation,
    6: x509.ReasonFlags.certificate_hold,
    9: x509.ReasonFlags.privilege_withdrawn,
    10: x509.ReasonFlags.aa_compromise,
}
Entry = tuple[int, datetime, int]

# On both sides of 2050.
times = st.integers(0, 2**32).map(lambda second: datetime.fromtimestamp(second, UTC))
serials = st.integers(1, 2**159 - 1)
entries = st.lists(st.tuples(serials, times, st.sampled_from([0, *REASONS])), max_size=300)


def by_the_library(key: Key, number: int, at: datetime, ends: datetime, revoked: list[Entry]) -> bytes:
    made = []
    for serial, when, reason in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        made.append((entry.add_extension(x509.CRLReason(REASONS[reason]), critical=False) if reason else entry).build())
    issuer = ISSUERS[key]
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=made)
        .issuer_name(issuer.subject)
        .last_update(at)
        .next_update(ends)
        .add_extension(pkix.authority_key_identifier(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    return builder.sign(key, signing.digest_for(key)).public_bytes(serialization.Encoding.DER)


def written(revoked: list[Entry]) -> bytes:
    return b"".join(crl_bytes.entry(*each) for each in revoked)


@examples(100)
@given(st.sampled_from(KEYS), st.integers(1, 2**70), times, entries, entries)
@example(KEYS[3], 1, datetime(2049, 12, 31, tzinfo=UTC), [(1, datetime(2050, 1, 1, tzinfo=UTC), 0)], [])
def test_a_grown_crl_is_the_librarys_to_the_byte(
    key: Key, number: int, at: datetime, first: list[Entry], later: list[Entry]
) -> None:
    """What is signed is the same, and for RSA the signature too; it verifies, and its PEM is the library's."""
    ends = at + timedelta(days=7)
    old = crl_bytes.signed(ISSUERS[key], key, number, (at, ends), written(first))
    grown = crl_bytes.entries_of(old) + written(later)
    new = crl_bytes.signed(ISSUERS[key], key, number + 1, (at, ends), grown)
    expected = by_the_library(key, number + 1, at, ends, first + later)
    found, wanted = x509.load_der_x509_crl(new), x509.load_der_x509_crl(expected)
    assert found.tbs_certlist_bytes == wanted.tbs_certlist_bytes
    assert found.signature_algorithm_oid == wanted.signature_algorithm_oid
    assert found.is_signature_valid(key.public_key())
    if isinstance(key, rsa.RSAPrivateKey):
        assert new == expected
    assert crl_bytes.pem(new) == found.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_damaged_crl_is_noticed(count: int) -> None:
    """Of a CRL that ends too early no entries are taken, and none of other bytes."""
    key, now = KEYS[0], datetime(2030, 1, 1, tzinfo=UTC)
    revoked = [(serial, now, 4) for serial in range(1, count + 1)]
    whole = crl_bytes.signed(ISSUERS[key], key, 1, (now, now), written(revoked))
    assert crl_bytes.entries_of(whole) == written(revoked)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="early"):
            crl_bytes.entries_of(whole[:size])
    for other in (b"\x00" * 500, b"\x30" * 500, b"\xff" * 500, b"0" * 500):
        with pytest.raises(ValueError, match="e"):
            crl_bytes.entries_of(other)
