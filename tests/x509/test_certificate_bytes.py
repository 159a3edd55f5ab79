"""A certificate byte by byte: the same that a library of general use writes, whatever is in it (RFC 5280 section 4)."""

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import AuthorityInformationAccessOID
from hypothesis import given
from hypothesis import strategies as st
from support.authority import Key
from support.fuzzing import examples
from support.pki import ISSUERS, KEYS

from keystead.x509 import certificate, pkix, signing
from keystead.x509.subjects import CaSubject

hosts = st.from_regex(r"[a-z0-9]{1,20}(\.[a-z]{1,9}){1,3}", fullmatch=True)
sans = st.lists(
    st.one_of(
        hosts.map(x509.DNSName),
        st.ip_addresses().map(x509.IPAddress),
        hosts.map(lambda host: x509.RFC822Name(f"somebody@{host}")),
        hosts.map(lambda host: x509.UniformResourceIdentifier(f"spiffe://{host}/a")),
    ),
    max_size=150,
)
words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFFF, exclude_categories=["Cs"]), max_size=64)
subjects = st.builds(CaSubject, st.sampled_from(["", "US"]), words, words, words, words, words)
# On both sides of 2050.
times = st.integers(0, 2**32).map(lambda second: datetime.fromtimestamp(second, UTC))
# What x509.KeyUsage lets stand together.
usages = st.sets(st.sampled_from([*pkix.KEY_USAGES])).filter(
    lambda found: "keyAgreement" in found or not {"encipherOnly", "decipherOnly"} & found
)
urls = st.none() | hosts.map(lambda host: f"https://{host}/api/v1/pki/crl/der")


@st.composite
def templates(draw: st.DrawFn) -> tuple[Key, pkix.ToSign]:
    key, begins, ca = draw(st.sampled_from(KEYS)), draw(times), draw(st.booleans())
    issuer = draw(st.sampled_from([ISSUERS[key], None]))
    template = pkix.ToSign(
        issuer=issuer,
        subject=pkix.ca_name(draw(subjects)),
        public_key=(draw(st.sampled_from(KEYS)) if issuer else key).public_key(),
        serial=draw(st.integers(1, 2**159 - 1)),
        not_before=begins,
        not_after=begins + timedelta(seconds=draw(st.integers(1, 2**32))),
        ca=ca,
        path_length=draw(st.none() | st.integers(0, 100)) if ca else None,
        key_usages=tuple(draw(usages)),
        extended_key_usages=tuple(draw(st.lists(st.sampled_from([*pkix.EXTENDED_KEY_USAGES]), unique=True))),
        sans=tuple(draw(sans)),
        crl_url=draw(urls),
        issuer_url=draw(urls),
    )
    return key, template


def by_the_library(template: pkix.ToSign, key: Key) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .issuer_name(template.issuer.subject if template.issuer else template.subject)
        .subject_name(template.subject)
        .public_key(template.public_key)
        .serial_number(template.serial)
        .not_valid_before(template.not_before)
        .not_valid_after(template.not_after)
        .add_extension(x509.BasicConstraints(template.ca, template.path_length), critical=True)
        .add_extension(
            x509.KeyUsage(**{word: name in template.key_usages for name, word in pkix.KEY_USAGES.items()}),
            critical=True,
        )
    )
    if template.extended_key_usages:
        purposes = x509.ExtendedKeyUsage([pkix.EXTENDED_KEY_USAGES[name] for name in template.extended_key_usages])
        builder = builder.add_extension(purposes, critical=template.extended_key_usages == ("timeStamping",))
    if template.sans:
        names = x509.SubjectAlternativeName(template.sans)
        builder = builder.add_extension(names, critical=not list(template.subject))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(template.public_key), critical=False)
    if template.issuer:
        builder = builder.add_extension(pkix.authority_key_identifier(template.issuer), critical=False)
    if template.crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(template.crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    if template.issuer_url:
        access = x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(template.issuer_url)
        )
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    return builder.sign(key, signing.digest_for(key))


@examples(300)
@given(templates())
def test_a_certificate_is_the_librarys_to_the_byte(made: tuple[Key, pkix.ToSign]) -> None:
    """What is signed is the same, and for RSA the signature too; it verifies under the issuer's key."""
    key, template = made
    found = x509.load_der_x509_certificate(certificate.signed(template, key))
    wanted = by_the_library(template, key)
    assert found.tbs_certificate_bytes == wanted.tbs_certificate_bytes
    assert found.signature_algorithm_oid == wanted.signature_algorithm_oid
    if template.issuer:
        found.verify_directly_issued_by(template.issuer)
    else:
        found.verify_directly_issued_by(found)
    if isinstance(key, rsa.RSAPrivateKey):
        assert found == wanted


@pytest.mark.parametrize(
    "name", [x509.RegisteredID(x509.ObjectIdentifier("1.2.3")), x509.IPAddress(ipaddress.ip_network("192.0.2.0/24"))]
)
def test_a_name_that_no_certificate_of_ours_has_is_not_written(name: x509.GeneralName) -> None:
    """The rules before refuse such names; the encoder does not guess."""
    key = KEYS[0]
    now = datetime.now(UTC).replace(microsecond=0)
    template = pkix.ToSign(
        issuer=ISSUERS[key],
        subject=pkix.common_name("x"),
        public_key=key.public_key(),
        serial=1,
        not_before=now,
        not_after=now + timedelta(days=1),
        ca=False,
        sans=(name,),
    )
    with pytest.raises(TypeError):
        certificate.signed(template, key)
