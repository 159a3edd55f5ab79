"""The CSR itself: alike to OpenSSL, GnuTLS, Go and cryptography, and its key opens and matches (contract section 2)."""

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from support import handmade
from support.csr_judges import run
from support.fuzzing import examples
from support.tools import tool
from support.world import BODY, World

from keystead.x509 import keys, pkcs10
from keystead.x509.keys import KeyType
from keystead.x509.subjects import PRINTABLE, Subject

TOP = ".".join(["a" * 63] * 3 + ["b" * 59, "c"])
CASES: dict[str, dict[str, Any]] = {
    "the documented example": {"organizational_unit": "Engineering", "name": "My Custom CSR"},
    "the longest values": {
        "common_name": "n" * 64,
        "state": "s" * 128,
        "locality": "l" * 128,
        "organization": "o" * 64,
        "organizational_unit": "u" * 64,
        "sans": [TOP, "*." + TOP[2:]],
    },
    "the longest values in four bytes a character": {
        "common_name": "🔑" * 64,
        "state": "🔑" * 128,
        "locality": "🔑" * 128,
        "organization": "🔑" * 64,
        "organizational_unit": "🔑" * 64,
    },
    "UTF-8": {"organization": "Bäckerei Müller", "locality": "Zürich", "state": "東京都"},
    "characters beyond PrintableString": {
        "organization": 'A & B <c@d>; "e", #f \\ g+h=i',
        "common_name": "*.example.com",
        "state": "'()+,-./:=? ",
    },
    "150 SANs": {"sans": [f"host-{i}.example.com" for i in range(150)]},
    "wildcards and A-labels": {"sans": ["*.example.com", "xn--bcher-kva.example", "*.xn--bcher-kva.example", "_a.b"]},
    "duplicates": {"sans": ["b.dev", "a.dev", "B.dev", "a.dev", "c.dev"]},
    "no country": {"country": "XX"},
}


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for this file: each test makes a CSR of its own in it."""
    return shared_world


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    fields: dict[str, Any] = CASES[request.param]
    return fields


@pytest.fixture(params=["p256v1", "rsa2048"])
def key_type(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def dns_names(fields: dict[str, Any]) -> list[str]:
    unique: dict[str, str] = {}
    for san in fields.get("sans", BODY["sans"]):
        unique.setdefault(san.lower(), san)
    return list(unique.values())


async def test_cryptography_reads_what_was_asked(world: World, case: dict[str, Any], key_type: str) -> None:
    """Subject order, string types, the one extension, the signature and the key are the contract's."""
    made = await world.create(key_type=key_type, **case)
    csr = x509.load_pem_x509_csr(made["csr"].encode())
    assert made["csr"].endswith("\n")
    assert csr.is_signature_valid
    assert isinstance(csr.signature_hash_algorithm, hashes.SHA256)
    order = [
        (NameOID.COUNTRY_NAME, "country"),
        (NameOID.STATE_OR_PROVINCE_NAME, "state"),
        (NameOID.LOCALITY_NAME, "locality"),
        (NameOID.ORGANIZATION_NAME, "organization"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "organizational_unit"),
        (NameOID.COMMON_NAME, "common_name"),
    ]
    assert [(a.oid, a.value) for a in csr.subject] == [(oid, made[field]) for oid, field in order if field in made]
    assert all(len(list(rdn)) == 1 for rdn in csr.subject.rdns)
    assert [e.oid for e in csr.extensions] == [ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
    assert not csr.extensions[0].critical
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in san] == dns_names(case)
    public = csr.public_key()
    if key_type == "rsa2048":
        assert isinstance(public, rsa.RSAPublicKey)
        assert (public.key_size, public.public_numbers().e) == (2048, 65537)
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP256R1)
    private = await world.key_of(made["id"])
    assert private.public_key() == public
    assert keys.spki_sha256(private)


async def test_openssl_reads_and_verifies_it(world: World, case: dict[str, Any], key_type: str) -> None:
    """OpenSSL verifies the signature, and shows string types, SANs and version as asked."""
    made = await world.create(key_type=key_type, **case)
    openssl = tool("openssl")
    assert "verify OK" in run(openssl, "req", "-verify", "-noout", text=made["csr"])
    shown = run(openssl, "req", "-noout", "-text", "-nameopt", "RFC2253,show_type,sname", text=made["csr"])
    assert "Version: 1 (0x0)" in shown
    sans = re.search(r"Subject Alternative Name:\s*\n\s*(.*)\n", shown)
    assert sans
    assert sans[1].split(", ") == [f"DNS:{name}" for name in dns_names(case)]
    types = dict(re.findall(r"(?:^|,|Subject: )(C|ST|L|O|OU|CN)=(PRINTABLESTRING|UTF8STRING):", shown))
    assert types["C"] == "PRINTABLESTRING"
    for short, field in (("ST", "state"), ("L", "locality"), ("O", "organization"), ("CN", "common_name")):
        fits = re.fullmatch(r"[A-Za-z0-9 '()+,\-./:=?]*", made[field])
        assert types[short] == ("PRINTABLESTRING" if fits else "UTF8STRING"), field


@pytest.mark.judges
async def test_gnutls_reads_and_verifies_it(world: World, case: dict[str, Any], key_type: str) -> None:
    """GnuTLS verifies the self signature and names the same SANs and the same public key."""
    certtool = tool("certtool")
    made = await world.create(key_type=key_type, **case)
    shown = run(certtool, "--crq-info", text=made["csr"])
    assert "Self signature: verified" in shown
    assert re.findall(r"DNSname: (.*?)(?: \(|\n)", shown) == dns_names(case)
    assert "Subject Alternative Name (not critical)" in shown


@pytest.mark.judges
async def test_go_reads_it(world: World, case: dict[str, Any], key_type: str) -> None:
    """Go, through cfssl, reads the same common name and SANs."""
    import json

    cfssl = tool("cfssl")
    made = await world.create(key_type=key_type, **case)
    shown = json.loads(run(cfssl, "certinfo", "-csr", "-", text=made["csr"]))
    assert shown["Subject"]["CommonName"] == made["common_name"]
    assert shown["DNSNames"] == dns_names(case)
    assert shown["Subject"]["Organization"] == [made["organization"]]


async def test_the_bytes_are_the_same_for_the_same_key(tmp_path: Path) -> None:
    """Nothing but the key and the request is in an RSA CSR: no time, no serial, no chance."""
    pair = keys.generate(KeyType.RSA2048)
    subject = Subject("US", "California", "San Francisco", "Cloudflare, Inc.", "example.com")
    first, second = (pkcs10.custom_csr(pair, subject, ("example.com",)) for _ in range(2))
    assert first == second


_PAIRS = {key_type: keys.generate(key_type) for key_type in KeyType}
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=140)
_SUBJECTS = st.builds(Subject, st.sampled_from(("US", "DE")), _TEXTS, _TEXTS, _TEXTS, _TEXTS, st.none() | _TEXTS)
_LABELS = st.from_regex(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", fullmatch=True)
_HOSTS = st.lists(st.lists(_LABELS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=150)


def _by_hand(pair: keys.KeyPair, subject: Subject, sans: list[str]) -> bytes:
    """What is signed: the CertificationRequestInfo (RFC 2986 section 4.1)."""
    values = (
        ("2.5.4.6", subject.country),
        ("2.5.4.8", subject.state),
        ("2.5.4.7", subject.locality),
        ("2.5.4.10", subject.organization),
        ("2.5.4.11", subject.organizational_unit),
        ("2.5.4.3", subject.common_name),
    )
    tags = {True: handmade.PRINTABLE, False: handmade.UTF8}
    name = handmade.name(
        *(handmade.rdn(kind, value, tags[PRINTABLE.fullmatch(value) is not None]) for kind, value in values if value)
    )
    names = handmade.seq(*(handmade.tlv(0x82, san.encode()) for san in dns_names({"sans": sans})))
    extension = handmade.seq(handmade.oid("2.5.29.17"), handmade.octets(names))
    requested = handmade.seq(handmade.oid("1.2.840.113549.1.9.14"), handmade.set_of(handmade.seq(extension)))
    return handmade.seq(handmade.integer(0), name, pair.spki, handmade.explicit(0, requested))


@examples(60)
@given(st.sampled_from(tuple(KeyType)), _SUBJECTS, _HOSTS)
def test_the_bytes_are_those_written_by_hand(key_type: KeyType, subject: Subject, sans: list[str]) -> None:
    """What is signed, and its signature's algorithm, are bit for bit as the contract has them."""
    pair = _PAIRS[key_type]
    pem = pkcs10.custom_csr(pair, subject, sans)
    csr = x509.load_pem_x509_csr(pem.encode())
    info = _by_hand(pair, subject, sans)
    assert csr.tbs_certrequest_bytes == info
    assert csr.is_signature_valid
    assert csr.public_bytes(serialization.Encoding.PEM).decode() == pem
    algorithm = handmade.usual(pair.private_key).identifier
    expected = handmade.seq(info, algorithm, handmade.bits(csr.signature))
    assert csr.public_bytes(serialization.Encoding.DER) == expected
