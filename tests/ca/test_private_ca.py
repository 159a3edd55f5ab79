"""The private CA: OpenSSL, GnuTLS and cryptography judge what it signs, and so do its bytes (contract-infisical)."""

import asyncio
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import cloudflare
import httpx
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    ExtensionOID,
    SignatureAlgorithmOID,
)
from support import authority
from support.authority import Key, csr_of, openssl, pem
from support.command import rows
from support.csr_judges import run
from support.live import Live
from support.pki import (
    AKI,
    BASE,
    BASIC,
    CDP,
    CRL_NUMBER,
    DIGITAL_SIGNATURE,
    DIGITAL_SIGNATURE_KEY_ENCIPHERMENT,
    EC_KEY,
    EXTENDED,
    HALF_LIFE,
    HOST,
    KEY_USAGE,
    NAME,
    P256,
    RSA_KEY,
    SAN,
    SECONDS,
    SERVER_AUTH,
    SKI,
    Json,
    Node,
    Pki,
    Signed,
    all_of,
    assert_crl_verifies,
    by_gnutls,
    by_openssl,
    common_name,
    crl_pem,
    days_pass,
    der,
    extensions,
    extensions_of,
    in_days,
    names,
    nodes,
    now,
    number_of,
    request,
    sans,
    serials_of,
    signed,
    signed_fields,
)
from support.tools import tool
from support.waiting import at_locks
from support.world import BODY, World, _encodings, make_token, new_world

from keystead.ca import issuing
from keystead.caller import Area, Scope
from keystead.certificates import export as exporting
from keystead.certificates import store as certificates
from keystead.custody import ring as ringfile
from keystead.custody.peppers import Peppers
from keystead.errors import Unavailable
from keystead.identity import policies
from keystead.server import first_start
from keystead.services import for_command
from keystead.store import database as db
from keystead.store.database import Database
from keystead.x509 import certificate as certificate_bytes
from keystead.x509 import pkix
from keystead.x509.keys import PrivateKey

LEAF_KEYS: dict[str, Key] = {
    "rsa2048": RSA_KEY,
    "p256": EC_KEY,
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
}
# What each kind of CA key signs with.
SIGNATURES = {
    "RSA_2048": SignatureAlgorithmOID.RSA_WITH_SHA256,
    "RSA_3072": SignatureAlgorithmOID.RSA_WITH_SHA256,
    "RSA_4096": SignatureAlgorithmOID.RSA_WITH_SHA256,
    "EC_prime256v1": SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    "EC_secp384r1": SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    "EC_secp521r1": SignatureAlgorithmOID.ECDSA_WITH_SHA512,
}
# In the order in which a CA's name is written; X.520's OIDs without their 2.5.4.
ORDER = {"country": 6, "organization": 10, "ou": 11, "province": 8, "commonName": 3, "locality": 7}
AIA = "2b06010505070101"
# Values of extensions, as DER says them.
CA_TRUE, CA_FALSE = "30030101ff", "3000"
CERT_SIGN_CRL_SIGN = "03020106"
DIGITAL_SIGNATURE_CERT_SIGN_CRL_SIGN = "03020186"


def issuer_of(certificate: x509.Certificate) -> bytes:
    return signed_fields(certificate)[3].whole


def subject_of(certificate: x509.Certificate) -> bytes:
    return signed_fields(certificate)[5].whole


def attributes(name: bytes) -> list[tuple[int, int, str]]:
    """The last arc of each attribute's type, the tag of its string, and its text."""
    (outer,) = nodes(name)
    found = []
    for rdn in nodes(outer.content):
        (attribute,) = nodes(rdn.content)
        oid, value = nodes(attribute.content)
        assert oid.content[:2] == b"\x55\x04"
        found.append((oid.content[2], value.tag, value.content.decode()))
    return found


def string_tag(text: str) -> int:
    """PrintableString where the characters fit, else UTF8String."""
    return 0x13 if re.fullmatch(r"[A-Za-z0-9 '()+,\-./:=?]*", text) else 0x0C


def key_id(public_key: Any) -> str:
    """SHA-1 of the bits of the key (RFC 5280 section 4.2.1.2, the first method), in hex."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    (outer,) = nodes(spki)
    # The first octet of a BIT STRING counts its unused bits.
    return hashlib.sha1(nodes(outer.content)[1].content[1:]).hexdigest()


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for this file: each test makes CAs of its own in it, and at the end all keys are looked for."""
    return shared_world


@pytest.fixture
async def addressed(database_url: str, tmp_path: Path) -> AsyncIterator[Pki]:
    """The CAs of a world of their own whose operator gave the address that certificates name."""
    log = structlog.get_config()
    async with new_world(database_url, tmp_path, pki_url="http://pki.example.com") as made:
        yield Pki(made.http, made.a.account.slug, made.a.bearer)
    structlog.configure(**log)


@pytest.fixture
def pki(world: World) -> Pki:
    return Pki(world.http, world.a.account.slug, world.a.bearer)


@pytest.fixture
async def live_pki(live: Live) -> AsyncIterator[Pki]:
    """The live server's CAs, with its first token."""
    async with httpx.AsyncClient(base_url=live.url, timeout=SECONDS) as http:
        yield Pki(http, live.env["KEYSTEAD_PROJECT_SLUG"], live.bearer)


def assert_chain(made: Signed) -> None:
    """Issuer and subject agree byte for byte all the way up, and so do the key identifiers."""
    for child, parent in zip([made.leaf, *made.chain], [*made.chain, made.chain[-1]], strict=True):
        assert issuer_of(child) == subject_of(parent)
        if AKI in extensions(child):
            ski = bytes.fromhex(extensions(parent)[SKI][1])[2:]
            assert extensions(child)[AKI] == (False, aki(ski.hex()))
        assert made.leaf.not_valid_before_utc >= parent.not_valid_before_utc
        assert made.leaf.not_valid_after_utc <= parent.not_valid_after_utc


def aki(ski: str) -> str:
    """AuthorityKeyIdentifier with nothing but the key identifier: no issuer, no serial."""
    size = len(ski) // 2
    return f"30{size + 2:02x}80{size:02x}{ski}"


# CSRs of CAs.


def assert_ca_csr(text: str, name: Json, path_length: int, algorithm: str) -> None:
    """To the byte what contract-infisical says of GET …/csr."""
    csr = x509.load_pem_x509_csr(text.encode())
    assert csr.is_signature_valid
    assert csr.signature_algorithm_oid == SIGNATURES[algorithm]
    version, subject, _, held = signed_fields(csr)
    assert version.whole.hex() == "020100"
    expected = [(arc, string_tag(name[field]), name[field]) for field, arc in ORDER.items() if name.get(field)]
    assert attributes(subject.whole) == expected
    # One attribute: the extension request of PKCS#9, so no challengePassword.
    (attribute,) = nodes(held.content)
    oid, values = nodes(attribute.content)
    assert oid.content.hex() == "2a864886f70d01090e"
    bound = f"30060101ff0201{path_length:02x}" if path_length >= 0 else CA_TRUE
    assert extensions_of(values) == {
        BASIC: (True, bound),
        KEY_USAGE: (True, DIGITAL_SIGNATURE_CERT_SIGN_CRL_SIGN),
        SKI: (False, "0414" + key_id(csr.public_key())),
    }
    assert "verify OK" in run("openssl", "req", "-verify", "-noout", text=text)


def assert_gnutls_reads(csr: str) -> None:
    said = run(tool("certtool"), "--crq-info", text=csr)
    assert "Self signature: verified" in said
    assert "Certificate Authority (CA): TRUE" in said


# The larger RSA keys take their time to be made: the chains of three below judge the CSRs of those.
@pytest.mark.parametrize("algorithm", ["RSA_2048", "EC_prime256v1", "EC_secp384r1", "EC_secp521r1"])
async def test_a_csr_says_what_the_ca_is_to_be(pki: Pki, algorithm: str) -> None:
    """Its name in order, CA:TRUE, the usages and the key's id, by the key's own digest; nothing else."""
    ca_id = await pki.make("intermediate", **NAME, keyAlgorithm=algorithm)
    text = await pki.csr(ca_id)
    assert not text.endswith("\n")
    assert_ca_csr(text, NAME, -1, algorithm)
    assert_gnutls_reads(text)


async def test_a_csr_has_the_names_of_its_ca_in_order_and_of_the_right_string_type(pki: Pki) -> None:
    """PrintableString where the characters fit, else UTF8String, nothing for what is empty; pathLen if it is set."""
    cases: list[tuple[Json, int]] = [
        ({**NAME, "organization": "Bäckerei & Söhne", "locality": "Zürich", "country": "CH"}, 0),
        ({"commonName": "only a name: '()+,-./=?"}, 3),
        ({"organization": "Acme * Inc", "commonName": "", "locality": "東京"}, -1),
        ({"commonName": "🔑" * 64, "ou": "u" * 64, "province": "s" * 128}, 100),
        ({"country": "DE"}, -1),
    ]
    texts = []
    for name, path_length in cases:
        texts.append(await pki.csr(await pki.make("intermediate", **name, maxPathLength=path_length)))
        assert_ca_csr(texts[-1], name, path_length, P256)
    for text in texts:
        assert_gnutls_reads(text)


async def test_a_csr_is_signed_afresh_on_each_call(pki: Pki) -> None:
    """ECDSA has chance in it, so such a CSR differs by call and always verifies; an RSA CSR keeps its bytes."""
    for algorithm, different in ((P256, 5), ("RSA_2048", 1)):
        ca_id = await pki.make("intermediate", keyAlgorithm=algorithm)
        made = [await pki.csr(ca_id) for _ in range(5)]
        assert len(set(made)) == different
        for text in made:
            assert "verify OK" in run("openssl", "req", "-verify", "-noout", text=text)


async def test_a_csr_is_there_in_any_status(pki: Pki) -> None:
    """Pending, active and disabled intermediates give the CSR of the same key; a root gives none."""
    root = await pki.root()
    ca_id = await pki.make("intermediate", **NAME)
    texts = [await pki.csr(ca_id)]
    await pki.import_(ca_id, await pki.sign_intermediate(root, texts[0]))
    texts.append(await pki.csr(ca_id))
    await pki.told("PATCH", f"/ca/{ca_id}", {"status": "disabled"})
    texts.append(await pki.csr(ca_id))
    for text in texts:
        assert_ca_csr(text, NAME, -1, P256)
    # What is signed, the public key in it, is always the same.
    assert len({x509.load_pem_x509_csr(text.encode()).tbs_certrequest_bytes for text in texts}) == 1
    assert await pki.refused("GET", f"/ca/{root}/csr") == "Root CA cannot generate CSR"


# Chains.


@pytest.mark.parametrize(
    ("root", "intermediate", "leaf"),
    [
        ("RSA_4096", "RSA_3072", "rsa2048"),
        ("RSA_2048", "RSA_4096", "p256"),
        ("EC_prime256v1", "EC_prime256v1", "p256"),
        ("EC_secp384r1", "EC_secp384r1", "rsa2048"),
        ("EC_secp384r1", "EC_secp384r1", "p384"),
        ("EC_secp521r1", "EC_secp521r1", "p521"),
        ("RSA_3072", "EC_secp521r1", "rsa2048"),
    ],
)
async def test_a_chain_of_three_verifies(pki: Pki, root: str, intermediate: str, leaf: str) -> None:
    """OpenSSL, at its strictest, and GnuTLS trust the leaf by the root alone, whatever keys the chain is made of."""
    root_id = await pki.root(**NAME, keyAlgorithm=root)
    ca_id = await pki.intermediate(root_id, commonName="Intermediate", keyAlgorithm=intermediate)
    assert_ca_csr(await pki.csr(ca_id), {"commonName": "Intermediate"}, -1, intermediate)
    made = await pki.sign(ca_id, csr_of(LEAF_KEYS[leaf], HOST))
    assert [c.signature_algorithm_oid for c in (made.leaf, *made.chain)] == [
        SIGNATURES[algorithm] for algorithm in (intermediate, root, root)
    ]
    assert_chain(made)
    assert by_openssl(made, "-verify_hostname", HOST)[0]
    assert not by_openssl(made, "-verify_hostname", "other.example.com")[0]
    assert by_openssl(await pki.installed(ca_id), purpose="any")[0]
    assert by_gnutls(
        made, "--verify-hostname", HOST, "--verify-purpose", ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
    )[0]


async def test_a_root_signs_leaves_too(pki: Pki) -> None:
    """A leaf directly below a root verifies, and its chain is the root."""
    root = await pki.root()
    made = await pki.sign(root)
    assert made.chain == [await pki.certificate(root)]
    assert by_openssl(made)[0]
    assert by_gnutls(made)[0]


# What is in certificates.


async def test_a_root_is_what_rfc_5280_asks(pki: Pki) -> None:
    """Critical CA:TRUE, critical keyCertSign and cRLSign, its key's id, and nothing else; ten years unless told."""
    root = await pki.root(**NAME)
    made = await pki.installed(root)
    assert extensions(made.leaf) == {
        BASIC: (True, CA_TRUE),
        KEY_USAGE: (True, CERT_SIGN_CRL_SIGN),
        SKI: (False, "0414" + key_id(made.leaf.public_key())),
    }
    assert issuer_of(made.leaf) == subject_of(made.leaf)
    assert [(arc, text) for arc, _, text in attributes(subject_of(made.leaf))] == [
        (arc, NAME[field]) for field, arc in ORDER.items()
    ]
    assert made.leaf.version is x509.Version.v3
    assert made.chain == []
    assert made.serial == f"{made.leaf.serial_number:040x}"
    assert 3650 <= (made.leaf.not_valid_after_utc - now()).days <= 3653
    assert by_openssl(Signed(made.leaf, [made.leaf], made.serial), purpose="any")[0]


async def test_an_intermediate_is_what_rfc_5280_asks(pki: Pki) -> None:
    """Critical CA:TRUE, digitalSignature beside the two of a root, both key ids, and nothing else."""
    root = await pki.root(maxPathLength=5)
    made = await pki.installed(await pki.intermediate(root, **NAME))
    (above,) = made.chain
    assert extensions(made.leaf) == {
        BASIC: (True, "30060101ff020104"),
        KEY_USAGE: (True, DIGITAL_SIGNATURE_CERT_SIGN_CRL_SIGN),
        SKI: (False, "0414" + key_id(made.leaf.public_key())),
        AKI: (False, aki(key_id(above.public_key()))),
    }
    assert_chain(made)
    assert re.fullmatch("[4-7][0-9a-f]{39}", made.serial)


@pytest.mark.parametrize("key", ["rsa2048", "p256"])
async def test_a_leaf_is_what_rfc_5280_asks(pki: Pki, key: str) -> None:
    """Critical CA:FALSE and key usage, with keyEncipherment for RSA alone; serverAuth, its names, and both key ids."""
    root = await pki.root()
    csr = csr_of(LEAF_KEYS[key], HOST)
    made = await pki.sign(root, csr)
    usage = DIGITAL_SIGNATURE_KEY_ENCIPHERMENT if key == "rsa2048" else DIGITAL_SIGNATURE
    san = bytes((0x30, len(HOST) + 2, 0x82, len(HOST))) + HOST.encode()
    assert extensions(made.leaf) == {
        BASIC: (True, CA_FALSE),
        KEY_USAGE: (True, usage),
        EXTENDED: (False, SERVER_AUTH),
        SAN: (False, san.hex()),
        SKI: (False, "0414" + key_id(LEAF_KEYS[key].public_key())),
        AKI: (False, aki(key_id(made.chain[0].public_key()))),
    }
    asked = x509.load_pem_x509_csr(csr.encode())
    assert subject_of(made.leaf) == signed_fields(asked)[1].whole
    assert signed_fields(made.leaf)[6].whole == signed_fields(asked)[2].whole


async def test_the_path_length_of_an_issuer_bounds_what_is_below(pki: Pki) -> None:
    """An issuer of n allows at most n - 1, which is also the default; 0 allows no CA, and no bound allows any."""
    root = await pki.root(maxPathLength=2)
    csr = await pki.csr(await pki.make("intermediate", commonName="Any"))
    lengths = {-1: 1, 0: 0, 1: 1}
    for asked, expected in lengths.items():
        made = await pki.sign_intermediate(root, csr, maxPathLength=asked)
        assert extensions(made.leaf)[BASIC] == (True, f"30060101ff0201{expected:02x}")
        assert extensions(await pki.certificate(root))[BASIC] == (True, "30060101ff020102")
    body = {"csr": csr, "notAfter": in_days(9), "maxPathLength": 2}
    exceeds = "The requested path length constraint exceeds the CA's allowed path length: at most 1, since "
    assert (await pki.refused("POST", f"/ca/{root}/sign-intermediate", body)).startswith(exceeds)
    last = await pki.intermediate(root, {"maxPathLength": 0}, commonName="Last")
    refused = "Failed to issue intermediate certificate due to CA path length constraint: "
    for length in (-1, 0, 1):
        body["maxPathLength"] = length
        assert (await pki.refused("POST", f"/ca/{last}/sign-intermediate", body)).startswith(refused)
    free = await pki.root(commonName="Free")
    for asked, value in {-1: CA_TRUE, 0: "30060101ff020100", 100: "30060101ff020164"}.items():
        made = await pki.sign_intermediate(free, csr, maxPathLength=asked)
        assert extensions(made.leaf)[BASIC] == (True, value)


async def test_a_deep_chain_verifies_to_its_last_ca(pki: Pki) -> None:
    """With a root of path length 2 there are two CAs below it, and what the last one signs verifies."""
    first = await pki.intermediate(await pki.root(maxPathLength=2), commonName="First")
    second = await pki.intermediate(first, {"notAfter": in_days(500)}, commonName="Second")
    made = await pki.sign(second)
    assert len(made.chain) == 3
    assert_chain(made)
    assert by_openssl(made)[0]
    assert by_gnutls(made)[0]


async def test_serial_numbers_are_twenty_octets_and_never_the_same(pki: Pki) -> None:
    """Forty lower-case hex digits that begin with 4 to 7, in the answer and in the certificate alike, each once."""
    root = await pki.root()
    csr = csr_of(EC_KEY, HOST)
    made = [await pki.sign(root, csr) for _ in range(20)]
    made.append(await pki.installed(root))
    for each in made:
        assert re.fullmatch("[4-7][0-9a-f]{39}", each.serial)
        assert signed_fields(each.leaf)[1].whole.hex() == "0214" + each.serial
    assert len({each.serial for each in made}) == len(made)


async def test_a_certificate_begins_five_minutes_ago_but_never_before_its_issuer(pki: Pki) -> None:
    """Whole seconds, 5 minutes back for clocks that are late; a younger issuer's own beginning wins."""
    old, before = await pki.root(), now()
    assert before <= (await pki.sign(old)).leaf.not_valid_before_utc + timedelta(minutes=5) <= now()
    begins = now() - timedelta(minutes=1)
    young = await pki.root(notBefore=f"{begins:%Y-%m-%dT%H:%M:%SZ}")
    ca_id = await pki.intermediate(young, commonName="Below")
    for certificate in ((await pki.sign(young)).leaf, await pki.certificate(ca_id), (await pki.sign(ca_id)).leaf):
        assert certificate.not_valid_before_utc == begins


async def test_a_validity_is_nested_in_its_issuers(pki: Pki) -> None:
    """Dates outside the issuer's are refused by the documented sentences, of leaves and of CAs; the same ones pass."""
    root = await pki.root(notBefore=in_days(-1), notAfter=in_days(100))
    issuer = await pki.certificate(root)
    begins, ends = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    csr = await pki.csr(await pki.make("intermediate", commonName="Any"))
    second = timedelta(seconds=1)
    for tail in ("sign-certificate", "sign-intermediate"):
        text = csr_of(EC_KEY, HOST) if tail == "sign-certificate" else csr
        table = {
            (begins - second, ends): "notBefore date is before CA certificate's notBefore date: that is ",
            (ends, begins): "notBefore date is after notAfter date: they are ",
            (begins, ends + second): "notAfter date is after CA certificate's notAfter date: that is ",
        }
        for (first, last), said in table.items():
            body = {"csr": text, "notBefore": first.isoformat(), "notAfter": last.isoformat()}
            assert (await pki.refused("POST", f"/ca/{root}/{tail}", body)).startswith(said)
        body = {"csr": text, "notBefore": begins.isoformat(), "notAfter": ends.isoformat()}
        leaf = signed(await pki.told("POST", f"/ca/{root}/{tail}", body)).leaf
        assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (begins, ends)
    elder = await pki.root(notBefore=in_days(-3650), notAfter=in_days(365))
    aged = {"csr": csr_of(EC_KEY, HOST), "ttl": "30d"}
    await pki.told("POST", f"/ca/{elder}/sign-certificate", {**aged, "notBefore": in_days(-1.9)})
    await pki.refused("POST", f"/ca/{elder}/sign-certificate", {**aged, "notBefore": in_days(-2.1)})
    body = {"projectSlug": pki.project, "type": "root", "commonName": "x", "notBefore": in_days(-3654)}
    await pki.refused("POST", "/ca", body)


async def test_dates_after_2049_work(pki: Pki) -> None:
    """Until 2049 a date is a UTCTime and from 2050 on a GeneralizedTime, as RFC 5280 section 4.1.2.5 has it."""
    root = await pki.root(notAfter="2099-12-31")
    ca_id = await pki.intermediate(root, {"notAfter": "2080-06"}, commonName="Below")
    signed_ones = []
    for ends, tag, text in (
        ("2049-12-31T23:59:59Z", 0x17, b"491231235959Z"),
        ("2050-01-01T00:00:00Z", 0x18, b"20500101000000Z"),
        ("2079-06-12", 0x18, b"20790612000000Z"),
    ):
        made = await pki.sign(ca_id, notAfter=ends)
        begin, end = nodes(signed_fields(made.leaf)[4].content)
        assert (begin.tag, end.tag, end.content) == (0x17, tag, text)
        assert by_openssl(made)[0]
        signed_ones.append(made)
    assert [c.not_valid_after_utc.year for c in made.chain] == [2080, 2099]
    assert all(by_gnutls(made)[0] for made in signed_ones)


async def test_what_else_a_csr_asks_for_is_ignored(pki: Pki) -> None:
    """A leaf's CSR with CA:TRUE, CA usages, a path length and a key id of its own gets a plain leaf."""
    root = await pki.root()
    usage = x509.KeyUsage(**{word: word in {"key_cert_sign", "crl_sign"} for word in pkix.KEY_USAGES.values()})
    csr = request(
        EC_KEY,
        common_name(HOST),
        x509.BasicConstraints(True, 3),
        usage,
        x509.SubjectKeyIdentifier(b"chosen"),
        x509.OCSPNoCheck(),
        names(x509.DNSName(HOST)),
    )
    found = extensions((await pki.sign(root, csr)).leaf)
    plain = extensions((await pki.sign(root, csr_of(EC_KEY, HOST))).leaf)
    assert found == plain
    assert found[BASIC] == (True, CA_FALSE)


async def test_what_else_a_ca_asks_for_is_ignored(pki: Pki) -> None:
    """A CSR for a CA that asks for no CA, a longer path, names or an EKU gets what the issuer gives all."""
    root = await pki.root(maxPathLength=1)
    odd = request(
        EC_KEY,
        common_name("Odd CA"),
        x509.BasicConstraints(True, 9),
        x509.SubjectKeyIdentifier(b"chosen"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        names(x509.DNSName(HOST)),
    )
    bare = request(EC_KEY, common_name("Odd CA"))
    found = [extensions((await pki.sign_intermediate(root, csr)).leaf) for csr in (odd, bare)]
    assert found[0] == found[1]
    assert set(found[0]) == {BASIC, KEY_USAGE, SKI, AKI}
    assert found[0][BASIC] == (True, "30060101ff020100")


async def test_alternative_names_are_the_csrs_or_those_that_replace_them(pki: Pki) -> None:
    """Hosts, addresses of both kinds, emails and URIs keep their type and order; altNames leaves none of the CSR's."""
    root = await pki.root()
    asked: list[x509.GeneralName] = [
        x509.DNSName(HOST),
        x509.DNSName("*.example.com"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
        x509.RFC822Name("admin@example.com"),
        x509.UniformResourceIdentifier("spiffe://example.com/service"),
    ]
    csr = request(EC_KEY, common_name("Some service"), names(*asked))
    assert sans((await pki.sign(root, csr)).leaf) == asked
    given = "a.example.com, 192.0.2.8,2001:DB8::8 ,ops@example.com,https://example.com/x,a.example.com"
    made = await pki.sign(root, csr, altNames=given)
    assert sans(made.leaf) == [
        x509.DNSName("a.example.com"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.8")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::8")),
        x509.RFC822Name("ops@example.com"),
        x509.UniformResourceIdentifier("https://example.com/x"),
    ]
    # 16 octets for an address of version 6, 4 for one of version 4.
    assert "871020010db8000000000000000000000008" in extensions(made.leaf)[SAN][1]
    assert "8704c0000208" in extensions(made.leaf)[SAN][1]
    for words in (["-verify_ip", "192.0.2.8"], ["-verify_ip", "2001:db8::8"], ["-verify_email", "ops@example.com"]):
        assert by_openssl(made, *words)[0]
    assert not by_openssl(made, "-verify_hostname", HOST)[0]
    assert by_gnutls(made, "--verify-hostname", "a.example.com")[0]
    assert not by_gnutls(made, "--verify-hostname", HOST)[0]
    other = names(x509.RegisteredID(x509.ObjectIdentifier("1.2.3")))
    body = {"csr": request(EC_KEY, common_name(HOST), other), "ttl": "1d"}
    await pki.refused("POST", f"/ca/{root}/sign-certificate", body)


async def test_a_common_name_stands_in_for_names_that_are_not_there(pki: Pki) -> None:
    """Without any SAN a CN that is a host or an address becomes it; a CN that is neither is refused."""
    root = await pki.root()
    expected: dict[str, x509.GeneralName] = {
        HOST: x509.DNSName(HOST),
        "*.example.com": x509.DNSName("*.example.com"),
        "192.0.2.7": x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
        "2001:db8::7": x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
    }
    for text, name in expected.items():
        csr = request(EC_KEY, common_name(text))
        made = await pki.sign(root, csr)
        assert sans(made.leaf) == [name]
        assert subject_of(made.leaf) == signed_fields(x509.load_pem_x509_csr(csr.encode()))[1].whole
        assert by_openssl(made)[0]
    for text in ("Some service", "999.0.2.7", "-a.example.com"):
        body = {"csr": request(EC_KEY, common_name(text)), "ttl": "1d"}
        await pki.refused("POST", f"/ca/{root}/sign-certificate", body)


async def test_the_names_are_critical_only_where_the_subject_is_empty(pki: Pki) -> None:
    """An empty subject makes the SAN critical (RFC 5280 section 4.2.1.6), and OpenSSL and GnuTLS agree."""
    root = await pki.root()
    made = await pki.sign(root, request(EC_KEY, x509.Name([]), names(x509.DNSName(HOST))))
    assert extensions(made.leaf)[SAN][0]
    assert subject_of(made.leaf) == b"\x30\x00"
    assert by_openssl(made, "-verify_hostname", HOST)[0]
    assert by_gnutls(made, "--verify-hostname", HOST)[0]
    assert not extensions((await pki.sign(root)).leaf)[SAN][0]


async def test_usages_are_those_asked_for_where_the_key_can(pki: Pki) -> None:
    """Usages replace the defaults; those of a CA, and keyEncipherment for an EC key (RFC 8813), are refused."""
    root = await pki.root()
    asked: Json = {
        "keyUsages": ["digitalSignature", "nonRepudiation"],
        "extendedKeyUsages": ["clientAuth", "serverAuth"],
    }
    found = extensions((await pki.sign(root, **asked)).leaf)
    assert found[KEY_USAGE] == (True, "030206c0")
    assert found[EXTENDED] == (False, "301406082b0601050507030206082b06010505070301")
    for key, usages in (
        (EC_KEY, ["keyCertSign"]),
        (EC_KEY, ["cRLSign", "digitalSignature"]),
        (EC_KEY, ["keyEncipherment"]),
        (RSA_KEY, ["keyCertSign"]),
    ):
        body = {"csr": csr_of(key, HOST), "ttl": "1d", "keyUsages": usages}
        await pki.refused("POST", f"/ca/{root}/sign-certificate", body)


# Where relying parties look things up.


async def test_certificates_say_where_their_issuers_certificate_and_crl_are(addressed: Pki) -> None:
    """CDP and AIA stand in what a CA signs for others, once each, and lead anybody to its CRL and its certificate."""
    pki = addressed
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    made = await pki.sign(ca_id)
    assert {CDP, AIA}.isdisjoint(extensions(await pki.certificate(root)))
    assert by_openssl(made)[0]
    below, top = made.chain
    for issuer_id, certificate, issuer in ((ca_id, made.leaf, below), (root, below, top)):
        crl_url, issuer_url = addresses(certificate)
        active = (await pki.ca(issuer_id))["activeCaCertId"]
        (crl,) = await pki.told("GET", f"/ca/{issuer_id}/crls")
        assert crl_url == f"http://pki.example.com/api/v1/pki/crl/{crl['id']}/der"
        assert issuer_url == f"http://pki.example.com/api/v1/pki/ca/{issuer_id}/certificates/{active}/der"
        assert await fetched(pki, issuer_url, "application/pkix-cert") == der(issuer)
        listed = await fetched(pki, crl_url, "application/pkix-crl")
        assert listed == der(x509.load_pem_x509_crl(crl["crl"].encode()))
        assert signed_fields(x509.load_der_x509_crl(listed))[2].whole == issuer_of(certificate)
    assert by_gnutls(made)[0]


async def test_a_renewed_ca_is_named_by_what_it_signs_from_then_on(addressed: Pki) -> None:
    """Each certificate leads to the very version of its issuer's that it was signed under; a root names nobody."""
    pki = addressed
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    old = await pki.installed(ca_id)
    await pki.told("POST", f"/ca/{root}/renew", {"type": "existing", "notAfter": "2070"})
    new = signed(await pki.told("POST", f"/ca/{ca_id}/renew", {"type": "existing", "notAfter": "2060"}))
    assert {CDP, AIA}.isdisjoint(extensions(await pki.certificate(root)))
    assert old.chain != new.chain
    for made in (old, new):
        _, issuer_url = addresses(made.leaf)
        assert await fetched(pki, issuer_url, "application/pkix-cert") == der(made.chain[0])
    assert addresses(old.leaf)[0] == addresses(new.leaf)[0]


async def test_no_address_is_in_certificates_where_none_was_given(pki: Pki) -> None:
    """Without KEYSTEAD_PKI_URL no certificate has CDP or AIA, so that no address of this machine stands there."""
    root = await pki.root()
    made = await pki.sign(await pki.intermediate(root, commonName="Below"))
    for certificate in (made.leaf, *made.chain):
        assert {CDP, AIA}.isdisjoint(extensions(certificate))


async def fetched(pki: Pki, url: str, content_type: str) -> bytes:
    """What anybody gets there, from the path on, which is ours."""
    answer = await pki.anonymous(urlsplit(url).path)
    assert answer.headers["content-type"] == content_type
    return answer.content


def addresses(certificate: x509.Certificate) -> tuple[str, str]:
    """Where the CRL and the issuer's certificate are."""
    found = extensions(certificate)
    assert not found[CDP][0]
    assert not found[AIA][0]
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (access,) = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert (point.relative_name, point.reasons, point.crl_issuer) == (None, None, None)
    assert access.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    assert point.full_name is not None
    (full_name,) = point.full_name
    return str(full_name.value), str(access.access_location.value)


# The external road.

OUTSIDE = """
[req]
prompt = no
string_mask = utf8only
utf8 = yes
distinguished_name = dn
x509_extensions = root
[dn]
C = US
O = Outside Trust
CN = Outside Root
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = 0B:AD:CA:FE:00:00:00:01
[ca]
default_ca = outside
string_mask = utf8only
[outside]
dir = {folder}
database = $dir/index.txt
new_certs_dir = $dir
certificate = $dir/root.pem
private_key = $dir/root.key
rand_serial = yes
default_md = sha256
default_days = 400
policy = any
x509_extensions = below
[any]
countryName = optional
stateOrProvinceName = optional
localityName = optional
organizationName = optional
organizationalUnitName = optional
commonName = optional
[below]
basicConstraints = critical, CA:TRUE, pathlen:1
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = C0:FF:EE:00:00:00:00:02
authorityKeyIdentifier = keyid:always
"""


def signed_outside(folder: Path, csr: str, subject: str) -> Signed:
    """What an OpenSSL CA of strangers makes of a CSR: names in its own order and strings, key ids of its own choice."""
    config, key, root = folder / "ca.cnf", folder / "root.key", folder / "root.pem"
    config.write_text(OUTSIDE.format(folder=folder), "utf-8")
    (folder / "index.txt").touch()
    (folder / "csr.pem").write_text(csr)
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", key)
    openssl("req", "-x509", *new, "-config", config, "-days", "4000", "-out", root)
    made = ("-in", folder / "csr.pem", "-out", folder / "ca.pem", "-subj", subject, "-utf8")
    openssl("ca", "-batch", "-notext", "-config", config, *made)
    (own,) = x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())
    (top,) = x509.load_pem_x509_certificates(root.read_bytes())
    return Signed(own, [top], f"{own.serial_number:x}")


async def test_a_ca_that_was_signed_outside_signs_under_what_it_was_given(pki: Pki, tmp_path: Path) -> None:
    """A CA of strangers rewrites the name and chooses the key ids; our leaves have its bytes, and all verify."""
    name = {**NAME, "organization": "Bäckerei", "commonName": "Ours"}
    ca_id = await pki.make("intermediate", **name)
    subject = "/C=US/ST=California/L=San Francisco/O=Bäckerei/OU=Engineering/CN=Ours"
    outside = signed_outside(tmp_path, await pki.csr(ca_id), subject)
    assert [(arc, tag) for arc, tag, _ in attributes(subject_of(outside.leaf))] == [
        (6, 0x13),
        *((arc, 0x0C) for arc in (8, 7, 10, 11, 3)),
    ]
    imported = await pki.import_(ca_id, outside)
    assert imported.status_code == 200, imported.text
    ca = await pki.ca(ca_id)
    assert (ca["status"], ca["parentCaId"], ca["maxPathLength"]) == ("active", None, 1)
    below = await pki.intermediate(ca_id, {"notAfter": in_days(300)}, commonName="Below")
    for issuer in (ca_id, below):
        made = await pki.sign(issuer)
        assert made.chain[-2:] == [outside.leaf, *outside.chain]
        assert_chain(made)
        assert by_openssl(made, "-verify_hostname", HOST)[0]
    made = await pki.sign(ca_id)
    assert issuer_of(made.leaf) == subject_of(outside.leaf)
    assert issuer_of(outside.leaf) == subject_of(outside.chain[0])
    assert extensions(made.leaf)[AKI] == (False, "300a8008c0ffee0000000002")
    assert extensions(outside.leaf)[AKI] == (False, "300a80080badcafe00000001")
    await pki.revoke(made.serial)
    crl = await pki.crl(ca_id)
    assert signed_fields(crl)[2].whole == subject_of(outside.leaf)
    assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == bytes.fromhex(
        "c0ffee0000000002"
    )
    assert "certificate revoked" in by_openssl(made, "-crl_check", crls=crl_pem(crl))[1]
    external = "Failed to renew intermediate CA certificate with external parent CA"
    assert await pki.refused("POST", f"/ca/{ca_id}/renew", {"type": "existing", "notAfter": "2050"}) == external
    assert by_gnutls(await pki.sign(ca_id), "--verify-hostname", HOST)[0]
    assert by_gnutls(await pki.sign(below), "--verify-hostname", HOST)[0]


async def test_an_issuer_without_a_key_id_gets_one_computed(pki: Pki) -> None:
    """Where the certificate of a CA that was signed outside has no SKI, the AKI of what it signs is its key's."""
    ca_id = await pki.make("intermediate", **NAME)
    outside = authority.root("Outside")
    csr = x509.load_pem_x509_csr((await pki.csr(ca_id)).encode())
    public_key = csr.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    own = (
        x509.CertificateBuilder(extensions=[e for e in csr.extensions if e.oid != ExtensionOID.SUBJECT_KEY_IDENTIFIER])
        .subject_name(csr.subject)
        .issuer_name(outside.certificate.subject)
        .public_key(public_key)
        .serial_number(2)
        .not_valid_before(now() - timedelta(days=30))
        .not_valid_after(now() + timedelta(days=30))
        .sign(outside.key, hashes.SHA256())
    )
    assert SKI not in extensions(own)
    assert (await pki.import_(ca_id, Signed(own, [outside.certificate], "02"))).status_code == 200
    made = await pki.sign(ca_id, ttl="1d")
    assert extensions(made.leaf)[AKI] == (False, aki(key_id(public_key)))
    assert issuer_of(made.leaf) == subject_of(own)
    crl = await pki.crl(ca_id)
    assert extensions_of(signed_fields(crl)[-1])[AKI] == (False, aki(key_id(public_key)))
    assert_crl_verifies(crl, own)
    assert by_gnutls(made)[0]


async def test_nothing_begins_more_than_two_days_ago(pki: Pki) -> None:
    """An issuer may be older, but what it signs now is dated back by 48 hours at most, and by 5 minutes unless told."""
    ca_id = await pki.make("intermediate", **NAME)
    outside = authority.root("Outside")
    csr = x509.load_pem_x509_csr((await pki.csr(ca_id)).encode())
    public_key = csr.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    own = outside.sign(public_key, csr.subject, ca=True, since=30)
    assert (await pki.import_(ca_id, Signed(own, [outside.certificate], ""))).status_code == 200
    below = await pki.csr(await pki.make("intermediate", commonName="Below"))
    bodies = {
        "sign-certificate": {"csr": csr_of(EC_KEY, HOST), "notAfter": in_days(9)},
        "sign-intermediate": {"csr": below, "notAfter": in_days(9)},
    }
    for tail, body in bodies.items():
        path = f"/ca/{ca_id}/{tail}"
        await pki.refused("POST", path, {**body, "notBefore": in_days(-2.01)})
        begins = in_days(-1.99)
        made = signed(await pki.told("POST", path, {**body, "notBefore": begins}))
        assert made.leaf.not_valid_before_utc == datetime.fromisoformat(begins)
        before = now()
        made = signed(await pki.told("POST", path, body))
        assert before <= made.leaf.not_valid_before_utc + timedelta(minutes=5) <= now()


# The whole road, across both dialects.


async def test_a_custom_csr_is_signed_by_our_own_ca_and_serves_tls(
    live: Live, live_pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Login, root, intermediate, CSR by the SDK, signature, upload by the SDK, export: a TLS client is content."""
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)
    zone_id = live.env["CLOUDFLARE_ZONE_ID"]
    async with cloudflare.AsyncCloudflare() as client:
        verified = await client.user.tokens.verify()
        assert verified is not None
        secret = {"clientId": verified.id, "clientSecret": live.env["CLOUDFLARE_API_TOKEN"]}
        login = await live_pki.http.post("/api/v1/auth/universal-auth/login", json=secret)
        assert login.status_code == 200, login.text
        pki = Pki(live_pki.http, live_pki.project, {"Authorization": f"Bearer {login.json()['accessToken']}"})
        root = await pki.root(commonName="Both Dialects Root")
        ca_id = await pki.intermediate(root, commonName="Both Dialects CA")
        csr = await client.custom_csrs.create(zone_id=zone_id, **{**BODY, "sans": [HOST]})
        assert csr is not None
        assert csr.csr
        made = await pki.sign(ca_id, csr.csr)
        uploaded = await client.custom_certificates.create(
            zone_id=zone_id,
            certificate=pem(made.leaf, *made.chain),
            custom_csr_id=csr.id,
            bundle_method="ubiquitous",
        )
    assert uploaded is not None
    assert (uploaded.status, uploaded.hosts) == ("active", [HOST])
    exported = await export(live, uploaded.id)
    # A server sends its intermediate; clients have the root.
    assert x509.load_pem_x509_certificates(exported.fullchain.encode()) == [made.leaf, made.chain[0]]
    assert_tls_is_served(tmp_path, exported, made.chain[-1])


async def test_the_roots_of_an_account_are_trusted_for_its_own_chains_alone(pki: Pki, world: World) -> None:
    """A certificate from a CA of the account is taken by its zone; the zone of another account refuses the like."""
    ca_id = await pki.intermediate(await pki.root(), commonName="Below")
    found = {}
    for tenant in (world.a, world.b):
        csr = await world.create(tenant, tenant.zone_path)
        made = await pki.sign(ca_id, csr["csr"])
        path = f"/client/v4/zones/{tenant.zone.id.hex}/custom_certificates"
        body = {"certificate": pem(made.leaf, made.chain[0]), "custom_csr_id": csr["id"]}
        answer = await world.http.post(path, json=body, headers=tenant.bearer)
        found[tenant.account.slug] = answer.status_code
    assert found == {"a": 200, "b": 400}


async def export(live: Live, certificate_id: str) -> exporting.Exported:
    """The key of a certificate, as the operator on the server's own host gets it."""
    database = db.Database(live.database_url, 1)
    try:
        ring = ringfile.load(live.data_dir / "keyring.json")
        scope = Scope(UUID(live.env["CLOUDFLARE_ACCOUNT_ID"]), UUID(live.env["CLOUDFLARE_ZONE_ID"]))
        found = await certificates.get(database, scope, UUID(certificate_id))
        return await exporting.export(for_command(database, ring, Peppers({})), first_start.operator(), found)
    finally:
        await database.close()


def assert_tls_is_served(folder: Path, exported: exporting.Exported, root: x509.Certificate) -> None:
    """A server with the two files passes the verification of OpenSSL's client, with the root alone."""
    chain, key, trusted = (folder / name for name in ("chain.pem", "key.pem", "root.pem"))
    chain.write_text(exported.fullchain)
    key.write_text(exported.private_key)
    trusted.write_text(pem(root))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(SECONDS)
        served = pool.submit(serve_once, listener, context)
        port = listener.getsockname()[1]
        words = ("-verify_return_error", "-x509_strict", "-verify_hostname", HOST, "-servername", HOST, "-brief")
        openssl("s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", trusted, *words, text="Q\n")
        served.result(SECONDS)


def serve_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    connection.settimeout(SECONDS)
    with context.wrap_socket(connection, server_side=True) as tls:
        tls.recv(1)


# Revocation.

REASONS = {
    "UNSPECIFIED": None,
    "KEY_COMPROMISE": 1,
    "CA_COMPROMISE": 2,
    "AFFILIATION_CHANGED": 3,
    "SUPERSEDED": 4,
    "CESSATION_OF_OPERATION": 5,
    "CERTIFICATE_HOLD": 6,
    "PRIVILEGE_WITHDRAWN": 9,
    "A_A_COMPROMISE": 10,
}


async def test_a_crl_is_what_rfc_5280_asks(pki: Pki) -> None:
    """Version 2, the CA's name and key id, a number, seven days, and a reason wherever there is one to say."""
    root = await pki.root(**NAME)
    issuer = await pki.certificate(root)
    empty = await pki.crl(root)
    assert list(empty) == []
    revoked: dict[str, tuple[int | None, datetime]] = {}
    for reason, code in REASONS.items():
        made, before = await pki.sign(root), now()
        told = await pki.revoke(made.serial, reason)
        assert told["serialNumber"] == made.serial
        revoked[made.serial] = code, datetime.fromisoformat(told["revokedAt"])
    crl = await pki.crl(root)
    version, _, name, begins, ends, entries, held = signed_fields(crl)
    assert version.whole.hex() == "020101"
    assert name.whole == subject_of(issuer)
    assert (begins.tag, ends.tag) == (0x17, 0x17)
    assert crl.next_update_utc is not None
    assert crl.next_update_utc - crl.last_update_utc == timedelta(days=7)
    assert before <= crl.last_update_utc <= now()
    number = number_of(crl)
    assert extensions_of(held) == {
        AKI: (False, aki(key_id(issuer.public_key()))),
        CRL_NUMBER: (False, f"0201{number:02x}"),
    }
    assert number == number_of(empty) + len(REASONS)
    found = {}
    for revocation in nodes(entries.content):
        serial, at, *reasons = nodes(revocation.content)
        found[serial.content.hex()] = [extensions_of(Node(0, b"", reason.whole)) for reason in reasons], at.tag
    # reasonCode is 2.5.29.21, an ENUMERATED.
    expected = {
        serial: ([] if code is None else [{"551d15": (False, f"0a01{code:02x}")}], 0x17)
        for serial, (code, _) in revoked.items()
    }
    assert found == expected
    for entry in crl:
        assert abs(entry.revocation_date_utc - revoked[f"{entry.serial_number:040x}"][1]) < timedelta(seconds=2)
    assert_crl_verifies(crl, issuer)


async def test_every_signature_of_a_crl_has_the_next_number(pki: Pki) -> None:
    """Each revocation signs the CRL anew at once, and its number only ever rises."""
    root = await pki.root()
    numbers, revoked = [number_of(await pki.crl(root))], []
    for _ in range(4):
        made = await pki.sign(root)
        assert number_of(await pki.crl(root)) == numbers[-1]
        await pki.revoke(made.serial)
        crl = await pki.crl(root)
        revoked.append(made.serial)
        assert sorted(serials_of(crl)) == sorted(revoked)
        numbers.append(number_of(crl))
    assert numbers == [numbers[0] + turn for turn in range(5)]
    for tail in ("crl", "crls"):
        told = await pki.told("GET", f"/ca/{root}/{tail}")
        text = told["crl"] if tail == "crl" else told[0]["crl"]
        assert x509.load_pem_x509_crl(text.encode()) == crl


@pytest.mark.parametrize("algorithm", [P256, "RSA_2048", "EC_secp384r1", "EC_secp521r1"])
async def test_a_revoked_leaf_is_refused_and_another_one_is_not(pki: Pki, algorithm: str) -> None:
    """With the CRL of the intermediate OpenSSL and GnuTLS refuse the one that was revoked, and trust its neighbour."""
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below", keyAlgorithm=algorithm)
    bad, good = [await pki.sign(ca_id) for _ in range(2)]
    fresh = crl_pem(await pki.crl(ca_id))
    assert by_openssl(bad, "-crl_check", crls=fresh)[0]
    await pki.revoke(bad.serial, "KEY_COMPROMISE")
    crl = await pki.crl(ca_id)
    assert crl.signature_algorithm_oid == SIGNATURES[algorithm]
    assert by_openssl(good, "-crl_check", crls=crl_pem(crl))[0]
    assert by_openssl(bad)[0]
    accepted, said = by_openssl(bad, "-crl_check", crls=crl_pem(crl))
    assert not accepted
    assert "certificate revoked" in said
    everywhere = crl_pem(crl, await pki.crl(root))
    assert by_openssl(good, "-crl_check_all", crls=everywhere)[0]
    status = (await pki.told("GET", f"/certificates/{bad.serial}"))["certificate"]
    assert (status["status"], status["revocationReason"]) == ("revoked", 1)
    assert (await pki.told("GET", f"/certificates/{good.serial}"))["certificate"]["status"] == "active"
    assert by_gnutls(good, crls=everywhere)[0]
    accepted, said = by_gnutls(bad, crls=everywhere)
    assert not accepted
    assert "revoked" in said


async def test_a_revoked_intermediate_is_on_its_parents_crl(pki: Pki) -> None:
    """Once an intermediate is revoked, OpenSSL refuses what it signed; a root's own certificate cannot be revoked."""
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    made = await pki.sign(ca_id)
    crls = crl_pem(await pki.crl(root), await pki.crl(ca_id))
    assert by_openssl(made, "-crl_check_all", crls=crls)[0]
    serial = (await pki.installed(ca_id)).serial
    await pki.revoke(serial, "CA_COMPROMISE")
    assert serials_of(await pki.crl(root)) == [serial]
    assert serials_of(await pki.crl(ca_id)) == []
    crls = crl_pem(await pki.crl(root), await pki.crl(ca_id))
    accepted, said = by_openssl(made, "-crl_check_all", crls=crls)
    assert not accepted
    assert "certificate revoked" in said
    own = (await pki.installed(root)).serial
    await pki.refused("POST", f"/certificates/{own}/revoke", {"revocationReason": "UNSPECIFIED"})


async def test_a_fresh_crl_is_never_signed_again_by_those_who_fetch_it(pki: Pki, world: World) -> None:
    """Anybody's fetches, one by one and at once, and before half of its life, give the same bytes."""
    root = await pki.root()
    first = await pki.crl(root)
    assert all([await pki.crl(root) == first for _ in range(5)])
    assert all(crl == first for crl in await all_of(*(pki.crl(root) for _ in range(20))))
    aged = "UPDATE crls SET this_update = now() - interval '83 hours' WHERE ca_id = $1"
    await world.database.execute(aged, UUID(root))
    assert await pki.crl(root) == first
    row = await world.database.fetchrow("SELECT number FROM crls WHERE ca_id = $1", UUID(root))
    assert row is not None
    assert row["number"] == number_of(first)


async def test_the_first_fetch_of_a_crl_at_once_signs_it_once(pki: Pki, world: World) -> None:
    """Twenty strangers who ask a new CA for its CRL at once get the same one; its signature is in the audit log."""
    root = await pki.root()
    found = await all_of(*(pki.crl(root) for _ in range(20)))
    assert len({der(crl) for crl in found}) == 1
    assert number_of(found[0]) == 1
    audited = "SELECT count(*) FROM audit_log WHERE resource_id = $1 AND action = 'sign' AND actor = 'system'"
    row = await world.database.fetchrow(audited, UUID(root))
    assert row is not None
    assert row[0] == 1


async def test_a_crl_past_half_of_its_life_is_signed_again_exactly_once(pki: Pki, world: World) -> None:
    """Of twenty strangers at once the first has it signed; each gets the old or the new one, and none a third."""
    root = await pki.root()
    await pki.revoke((await pki.sign(root)).serial)
    for _ in range(5):
        old = await pki.crl(root)
        await world.database.execute(HALF_LIFE, UUID(root))
        await assert_signed_once(pki, root, old)


async def test_two_workers_sign_a_crl_past_half_of_its_life_once(live: Live, live_pki: Pki) -> None:
    """The same holds where the strangers come to processes that share nothing but the database."""
    root = await live_pki.root(commonName="Half life")
    await live_pki.revoke((await live_pki.sign(root)).serial)
    for _ in range(3):
        old = await live_pki.crl(root)
        rows(live, HALF_LIFE, UUID(root))
        new = await assert_signed_once(live_pki, root, old)
        assert rows(live, "SELECT number FROM crls WHERE ca_id = $1", UUID(root)) == [(number_of(new),)]


async def assert_signed_once(
    pki: Pki, ca_id: str, old: x509.CertificateRevocationList
) -> x509.CertificateRevocationList:
    """Twenty fetches at once give the old CRL or one new one, which says the same from now on."""
    found = await all_of(*(pki.crl(ca_id) for _ in range(20)))
    new = await pki.crl(ca_id)
    assert number_of(new) == number_of(old) + 1
    assert {der(crl) for crl in found} <= {der(old), der(new)}
    assert serials_of(new) == serials_of(old)
    assert new.next_update_utc is not None
    assert new.next_update_utc - new.last_update_utc == timedelta(days=7)
    assert now() - new.last_update_utc < timedelta(minutes=1)
    return new


async def test_an_entry_stays_until_one_crl_past_its_certificates_end(pki: Pki, world: World) -> None:
    """The first CRL after a revoked certificate's end still has it, so that none misses it; the next one has not."""
    root = await pki.root(notAfter="2090")
    short, long = await pki.sign(root, ttl="2d"), await pki.sign(root, ttl="90d")
    await pki.revoke(short.serial)
    await pki.revoke(long.serial)
    both = {short.serial, long.serial}
    assert {*serials_of(await pki.crl(root))} == both
    await days_pass(world, root, 4)
    assert {*serials_of(await pki.crl(root))} == both
    await days_pass(world, root, 4)
    assert serials_of(await pki.crl(root)) == [long.serial]
    later = await pki.sign(root)
    await pki.revoke(later.serial)
    assert {*serials_of(await pki.crl(root))} == {long.serial, later.serial}


async def test_a_disabled_ca_still_publishes(pki: Pki, world: World) -> None:
    """It signs no certificates, but whoever relies on it gets its CRL, signed anew when it is old, and revocations."""
    root = await pki.root()
    first, second = await pki.sign(root), await pki.sign(root)
    await pki.revoke(first.serial)
    await pki.told("PATCH", f"/ca/{root}", {"status": "disabled"})
    body = {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"}
    assert await pki.refused("POST", f"/ca/{root}/sign-certificate", body) == "CA is not active: it is disabled"
    old = await pki.crl(root)
    await days_pass(world, root, 4)
    new = await pki.crl(root)
    assert number_of(new) == number_of(old) + 1
    assert serials_of(new) == [first.serial]
    await pki.revoke(second.serial)
    assert {*serials_of(await pki.crl(root))} == {first.serial, second.serial}
    active = (await pki.ca(root))["activeCaCertId"]
    assert (await pki.anonymous(f"{BASE}/ca/{root}/certificates/{active}/der")).content


# Renewal.


async def test_a_renewed_ca_keeps_its_key_its_name_and_its_path_length(pki: Pki) -> None:
    """Root and intermediate get a new serial and end and nothing else; what they signed before verifies as before."""
    root = await pki.root(**NAME, maxPathLength=3)
    ca_id = await pki.intermediate(root, {"maxPathLength": 1}, commonName="Zürich *")
    leaf = await pki.sign(ca_id)
    before = {each: await pki.installed(each) for each in (root, ca_id)}
    after = {}
    for each, ends in ((root, "2070-01-01"), (ca_id, "2060-01-01")):
        old = before[each].leaf
        told = signed(await pki.told("POST", f"/ca/{each}/renew", {"type": "existing", "notAfter": ends}))
        after[each] = told
        new = told.leaf
        assert new.not_valid_after_utc == datetime.fromisoformat(f"{ends}T00:00:00+00:00")
        assert told.serial == f"{new.serial_number:040x}" != before[each].serial
        # Issuer, subject, key and extensions.
        for field in (3, 5, 6, 7):
            assert signed_fields(new)[field].whole == signed_fields(old)[field].whole
        versions = await pki.told("GET", f"/ca/{each}/ca-certificates")
        assert [version["version"] for version in versions] == [1, 2]
        assert [signed(version) for version in versions] == [before[each], told]
        assert await pki.installed(each) == told
    assert (await pki.ca(ca_id))["maxPathLength"] == 1
    assert after[ca_id].chain == [after[root].leaf]
    ways = []
    for between in (before, after):
        for top in (before, after):
            ways.append(Signed(leaf.leaf, [between[ca_id].leaf, top[root].leaf], leaf.serial))
            assert by_openssl(ways[-1])[0]
    assert signed(await pki.told("GET", f"/certificates/{leaf.serial}/certificate")) == leaf
    made = await pki.sign(ca_id, notAfter="2055")
    assert made.chain == [after[ca_id].leaf, after[root].leaf]
    assert by_openssl(made)[0]
    assert all(by_gnutls(each)[0] for each in (*ways, made))


async def test_a_renewal_is_to_a_later_end_within_the_parents(pki: Pki) -> None:
    """An end that is not later, or is beyond the parent's, is refused, and so is a disabled or pending CA."""
    root = await pki.root(notAfter="2060")
    ca_id = await pki.intermediate(root, {"notAfter": "2050"}, commonName="Below")

    async def said(of: str, ends: str) -> str:
        return await pki.refused("POST", f"/ca/{of}/renew", {"type": "existing", "notAfter": ends})

    await said(root, "2060")
    await said(root, "2059")
    await said(ca_id, "2050")
    assert (await said(ca_id, "2061")).startswith("notAfter date is after CA certificate's notAfter date: that is 20")
    pending = await pki.make("intermediate")
    assert await said(pending, "2060") == "CA does not have a certificate installed"
    await pki.told("PATCH", f"/ca/{ca_id}", {"status": "disabled"})
    assert await said(ca_id, "2055") == "CA is disabled"
    assert len(await pki.told("GET", f"/ca/{ca_id}/ca-certificates")) == 1


# What is kept.


async def test_what_a_crash_keeps_from_being_stored_is_seen_by_nobody(
    pki: Pki, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the signature and its commit: no row, nothing answered or logged of it, and the CA goes on."""
    root = await pki.root()
    body = {"csr": request(EC_KEY, common_name(HOST)), "notAfter": in_days(30)}
    signed_ones: list[bytes] = []
    sign = certificate_bytes.signed

    def crash(meant: pkix.ToSign, private_key: PrivateKey) -> bytes:
        signed_ones.append(sign(meant, private_key))
        raise OSError("the power is gone")

    audited = "SELECT count(*) AS n FROM audit_log WHERE action = 'sign'"
    before = await world.database.fetchrow(audited)
    with monkeypatch.context() as crashing:
        crashing.setattr(certificate_bytes, "signed", crash)
        answer = await pki.ask("POST", f"/ca/{root}/sign-certificate", body)
    assert answer.status_code == 500
    assert answer.json()["message"] == "Something went wrong"
    (lost,) = signed_ones
    serial = f"{x509.load_der_x509_certificate(lost).serial_number:040x}"
    assert serial not in answer.text
    assert (await pki.ask("GET", f"/certificates/{serial}")).status_code == 404
    assert await world.database.fetchrow(audited) == before
    assert (await pki.sign(root)).serial != serial


async def test_a_certificate_whose_commit_is_not_known_is_in_doubt(
    pki: Pki, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection breaks after the row was written, the answer says so, and the certificate can be revoked."""
    root = await pki.root()
    fetch = Database.fetch

    async def breaking(self: Database, sql: str, *args: object) -> list[asyncpg.Record]:
        rows = await fetch(self, sql, *args)
        if "INSERT INTO issued_certificates" in sql:
            raise Unavailable("the connection is lost", in_doubt=True)
        return rows

    with monkeypatch.context() as crashing:
        crashing.setattr(Database, "fetch", breaking)
        body = {"csr": request(EC_KEY, common_name(HOST)), "notAfter": in_days(30)}
        answer = await pki.ask("POST", f"/ca/{root}/sign-certificate", body)
    assert answer.status_code == 503
    sql = "SELECT serial FROM issued_certificates WHERE ca_id = $1 AND profile = 'leaf' AND pem IS NOT NULL"
    (row,) = await world.database.fetch(sql, UUID(root))
    await pki.revoke(row["serial"])
    assert serials_of(await pki.crl(root)) == [row["serial"]]


async def test_what_an_earlier_release_meant_to_sign_can_be_revoked(pki: Pki, world: World) -> None:
    """A row without a certificate is pending, shows none, and its serial gets onto the CRL."""
    root = await pki.root()
    made = await pki.sign(root)
    await world.database.execute("UPDATE issued_certificates SET pem = NULL WHERE serial = $1", made.serial)
    assert (await pki.told("GET", f"/certificates/{made.serial}"))["certificate"]["status"] == "pending"
    assert (await pki.ask("GET", f"/certificates/{made.serial}/certificate")).status_code == 404
    await pki.revoke(made.serial, "SUPERSEDED")
    assert serials_of(await pki.crl(root)) == [made.serial]
    assert (await pki.told("GET", f"/certificates/{made.serial}"))["certificate"]["status"] == "revoked"


async def test_the_row_of_a_certificate_says_what_is_in_it(pki: Pki, world: World) -> None:
    """Root, intermediate and leaf each have one row, with the serial, names, dates and bytes of the certificate."""
    root = await pki.root(**NAME)
    ca_id = await pki.intermediate(root, {"maxPathLength": 0}, commonName="Below")
    made = await pki.sign(ca_id, altNames=f"{HOST},192.0.2.7")
    signed_ones = {"root": made.chain[1], "intermediate": made.chain[0], "leaf": made.leaf}
    sql = "SELECT * FROM issued_certificates WHERE ca_id = ANY($1::uuid[])"
    issued = await world.database.fetch(sql, [UUID(root), UUID(ca_id)])
    assert sorted(row["profile"] for row in issued) == sorted(signed_ones)
    found = {row["profile"]: row for row in issued}
    for profile, certificate in signed_ones.items():
        row = found[profile]
        assert row["pem"] == pem(certificate)
        assert row["serial"] == f"{certificate.serial_number:040x}"
        assert row["subject"] == certificate.subject.rfc4514_string()
        assert row["not_before"] == certificate.not_valid_before_utc
        assert row["not_after"] == certificate.not_valid_after_utc
    assert found["leaf"]["alt_names"] == [HOST, "192.0.2.7"]
    assert [found[profile]["path_length"] for profile in signed_ones] == [None, 0, None]


async def test_a_key_that_is_issued_is_kept_nowhere(world: World, pki: Pki) -> None:
    """issue-certificate gives the key of its certificate once; no table and no line of the log has any form of it."""
    group = policies.find_group("Private CA Issue Key")
    zones = (world.a.zone,)
    assert group.area is Area.PRIVATE_CA
    assert group not in policies.default_groups()
    assert group not in policies.default_groups(zones)
    body = {"commonName": HOST, "altNames": f"{HOST},192.0.2.7", "ttl": "30d"}
    token = await make_token(world.services, world.a.account, groups=(group.name,))
    for algorithm, usage in ((P256, DIGITAL_SIGNATURE), ("RSA_2048", DIGITAL_SIGNATURE_KEY_ENCIPHERMENT)):
        root = await pki.root(keyAlgorithm=algorithm)
        path = f"/ca/{root}/issue-certificate"
        denied = await pki.ask("POST", path, body)
        assert (denied.status_code, denied.json()["error"]) == (403, "PermissionDenied")
        # Beside the judged client, which would find the private key in the answer, as it should.
        transport = httpx.ASGITransport(app=world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as http:
            outside = Pki(http, pki.project, {"Authorization": f"Bearer {token}"})
            answer = await outside.told("POST", path, body)
        made = signed(answer)
        key = serialization.load_pem_private_key(answer["privateKey"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        assert key.public_key() == made.leaf.public_key()
        assert extensions(made.leaf)[KEY_USAGE] == (True, usage)
        assert sans(made.leaf) == [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("192.0.2.7"))]
        assert by_openssl(made, "-verify_hostname", HOST)[0]
        told = await everything_kept(world) + log_of_this_world()
        assert made.serial in told
        lines = answer["privateKey"].splitlines()[1:-1]
        assert not any(text in told for text in (*_encodings(key), *lines, "PRIVATE KEY"))
        again = await pki.told("GET", f"/certificates/{made.serial}/certificate")
        assert set(again) == {"certificate", "certificateChain", "serialNumber"}
        audited = await world.database.fetch(
            "SELECT FROM audit_log l JOIN issued_certificates i ON i.id = l.resource_id "
            "WHERE i.serial = $1 AND l.action = 'issue-key'",
            made.serial,
        )
        assert len(audited) == 1
        digest = hashlib.sha256(signed_fields(made.leaf)[6].whole).digest()
        assert not await world.database.fetch("SELECT FROM private_keys WHERE spki_sha256 = $1", digest)


async def everything_kept(world: World) -> str:
    """All rows of all tables as text, bytes in hex."""
    tables = await world.database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    kept = []
    for (table,) in tables:
        kept += [row[0] for row in await world.database.fetch(f"SELECT t::text FROM {table} t")]
    return "\n".join(kept)


def log_of_this_world() -> str:
    factory: Any = structlog.get_config()["logger_factory"]
    text: str = factory._file.getvalue()
    assert "issue-certificate" in text
    return text


# Many at once.


async def in_line(world: World, *work: Callable[[], Awaitable[httpx.Response]]) -> list[httpx.Response]:
    """Have calls queue up for the CAs' rows in this order, and then let them go on."""
    holder: db.Connection = await asyncpg.connect(world.settings.database_url)
    held = holder.transaction()
    await held.start()
    try:
        await holder.execute("SELECT FROM certificate_authorities FOR UPDATE")
        tasks = []
        for number, each in enumerate(work, 1):
            tasks.append(asyncio.ensure_future(each()))
            await at_locks(world.database, number, world.state.services.db)
        await held.rollback()
        return await all_of(*tasks)
    finally:
        await holder.close()


async def test_renewals_at_once_leave_versions_in_a_row(pki: Pki) -> None:
    """Each of eight is done, or asked to come again, or finds its end no later any more; the last one done stands."""
    root = await pki.root()
    ends = [f"{2060 + turn}" for turn in range(8)]
    work = (pki.ask("POST", f"/ca/{root}/renew", {"type": "existing", "notAfter": end}) for end in ends)
    answers = await all_of(*work)
    assert {answer.status_code for answer in answers} <= {200, 400, 503}
    done = {answer.json()["serialNumber"] for answer in answers if answer.status_code == 200}
    assert done
    versions = await pki.told("GET", f"/ca/{root}/ca-certificates")
    assert [version["version"] for version in versions] == list(range(1, len(done) + 2))
    assert {version["serialNumber"] for version in versions[1:]} == done
    years = [signed(version).leaf.not_valid_after_utc for version in versions]
    assert years == sorted(years)
    assert (await pki.installed(root)).serial == versions[-1]["serialNumber"]
    assert by_openssl(await pki.sign(root))[0]


async def test_two_renewals_in_line_are_one(pki: Pki, world: World) -> None:
    """Of two that began from the same certificate one is done, and the other is asked to come again."""
    root = await pki.root()

    def renew(ends: str) -> Callable[[], Awaitable[httpx.Response]]:
        return lambda: pki.ask("POST", f"/ca/{root}/renew", {"type": "existing", "notAfter": ends})

    first, second = await in_line(world, renew("2060"), renew("2070"))
    assert sorted([first.status_code, second.status_code]) == [200, 503]
    assert len(await pki.told("GET", f"/ca/{root}/ca-certificates")) == 2


async def test_imports_at_once_install_one_certificate(pki: Pki) -> None:
    """Of two certificates for one CA, of one parent or of two, one is imported; the other call changes nothing."""
    roots = [await pki.root(commonName=f"Root {number}") for number in range(2)]
    for parents in ((roots[0], roots[0]), (roots[0], roots[1])):
        for _ in range(4):
            ca_id = await pki.make("intermediate")
            made = [await pki.sign_intermediate(parent, await pki.csr(ca_id)) for parent in parents]
            answers = await all_of(*(pki.import_(ca_id, each) for each in made))
            statuses = [answer.status_code for answer in answers]
            assert statuses.count(200) == 1
            assert {*statuses} <= {200, 400, 503}
            winner = statuses.index(200)
            assert await pki.installed(ca_id) == made[winner]
            ca = await pki.ca(ca_id)
            assert (ca["status"], ca["parentCaId"]) == ("active", parents[winner])
            assert [v["version"] for v in await pki.told("GET", f"/ca/{ca_id}/ca-certificates")] == [1]


async def test_one_of_many_revocations_of_the_same_certificate_is_done(pki: Pki) -> None:
    """Ten at once: one is done, nine are refused, and the CRL has one entry and the next number."""
    root = await pki.root()
    made = await pki.sign(root)
    before = number_of(await pki.crl(root))
    body = {"revocationReason": "SUPERSEDED"}
    answers = await all_of(*(pki.ask("POST", f"/certificates/{made.serial}/revoke", body) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    crl = await pki.crl(root)
    assert serials_of(crl) == [made.serial]
    assert number_of(crl) == before + 1


async def test_revocations_at_once_are_all_on_the_crl(pki: Pki) -> None:
    """Twenty certificates that are revoked at once, amid fetches, are all there, on a few CRLs and not on twenty."""
    root = await pki.root()
    made = [(await pki.sign(root)).serial for _ in range(20)]
    before = number_of(await pki.crl(root))
    fetched, _ = await asyncio.gather(
        all_of(*(pki.crl(root) for _ in range(10))), all_of(*(pki.revoke(serial) for serial in made))
    )
    crl = await pki.crl(root)
    assert sorted(serials_of(crl)) == sorted(made)
    assert before < number_of(crl) <= before + 5
    # A later number never has fewer entries.
    held = sorted((number_of(each), len(each)) for each in (*fetched, crl))
    assert [count for _, count in held] == sorted(count for _, count in held)


async def kept_or_gone(world: World, ca_id: str) -> tuple[int, ...]:
    """How many rows there are of a CA, of its CRL, and of what it signed for others; and how many keys are nobody's."""
    row = await world.database.fetchrow(
        "SELECT (SELECT count(*) FROM certificate_authorities WHERE id = $1), "
        "(SELECT count(*) FROM crls WHERE ca_id = $1), "
        "(SELECT count(*) FROM issued_certificates WHERE ca_id = $1 AND profile <> 'root'), "
        "(SELECT count(*) FROM private_keys k "
        "WHERE NOT EXISTS (SELECT FROM certificate_authorities WHERE key_id = k.id) "
        "AND NOT EXISTS (SELECT FROM custom_csrs WHERE key_id = k.id))",
        UUID(ca_id),
    )
    assert row is not None
    return tuple(row)


async def test_a_deletion_and_a_signature_in_line_exclude_each_other(pki: Pki, world: World) -> None:
    """Whichever comes first is done; the other finds a certificate that is in use, or no CA."""
    body = {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"}
    for first in ("sign", "delete"):
        root = await pki.root()
        work = {
            "sign": lambda root=root: pki.ask("POST", f"/ca/{root}/sign-certificate", body),
            "delete": lambda root=root: pki.ask("DELETE", f"/ca/{root}"),
        }
        order = ["sign", "delete"] if first == "sign" else ["delete", "sign"]
        answers = dict(zip(order, await in_line(world, *(work[each] for each in order)), strict=True))
        statuses = {each: answer.status_code for each, answer in answers.items()}
        if first == "sign":
            assert statuses == {"sign": 200, "delete": 400}
            assert await kept_or_gone(world, root) == (1, 1, 1, 0)
        else:
            assert statuses == {"sign": 404, "delete": 200}, answers["sign"].text
            assert answers["sign"].json()["message"] == f"CA with ID '{root}' not found"
            assert await kept_or_gone(world, root) == (0, 0, 0, 0)


@pytest.mark.load
async def test_every_race_of_a_deletion_and_a_signature_ends_in_one_of_two(pki: Pki, world: World) -> None:
    """Either the CA is there with its certificate, or neither is; and what is gone is said to be gone."""
    body = {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"}
    for turn in range(24):
        root = await pki.root()

        async def delete(ca_id: str = root, wait: float = turn / 2000) -> httpx.Response:
            await asyncio.sleep(wait)
            return await pki.ask("DELETE", f"/ca/{ca_id}")

        sign = pki.ask("POST", f"/ca/{root}/sign-certificate", body)
        signature, deletion = await all_of(sign, delete())
        if deletion.status_code == 200:
            assert signature.status_code == 404, signature.text
            assert signature.json()["message"] == f"CA with ID '{root}' not found"
            assert await kept_or_gone(world, root) == (0, 0, 0, 0)
        else:
            assert (signature.status_code, deletion.status_code) == (200, 400)
            assert await kept_or_gone(world, root) == (1, 1, 1, 0)


async def test_a_ca_that_is_deleted_just_before_its_key_is_opened_is_not_found(
    pki: Pki, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of a CA and that of its key it can go: every call then says 404 with the CA's id."""
    key_of = issuing.ca_key
    other = await pki.csr(await pki.make("intermediate", commonName="Other"))
    bodies = {
        "sign-certificate": {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"},
        "sign-intermediate": {"csr": other, "notAfter": in_days(9)},
        "renew": {"type": "existing", "notAfter": "2070"},
        "csr": None,
    }
    found, expected = {}, {}
    for tail, body in bodies.items():
        ca_id = await pki.make("root" if body else "intermediate")

        async def deleted_first(*words: Any, gone: str = ca_id) -> Any:
            assert (await pki.ask("DELETE", f"/ca/{gone}")).status_code == 200
            return await key_of(*words)

        with monkeypatch.context() as racing:
            racing.setattr(issuing, "ca_key", deleted_first)
            answer = await pki.ask("POST" if body else "GET", f"/ca/{ca_id}/{tail}", body)
        found[tail] = answer.status_code, answer.json()["message"]
        expected[tail] = 404, f"CA with ID '{ca_id}' not found"
    assert found == expected


async def test_a_deletion_waits_for_what_a_ca_has_signed(pki: Pki, world: World) -> None:
    """A CA with a sub-CA or a certificate in use stays; once all that has ended they go, with their keys and CRLs."""
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    await pki.sign(ca_id)
    for each in (root, ca_id):
        await pki.refused("DELETE", f"/ca/{each}")
        assert (await pki.ca(each))["status"] == "active"
    for each in (root, ca_id):
        await days_pass(world, each, 2000)
    await pki.refused("DELETE", f"/ca/{root}")
    for each in (ca_id, root):
        assert (await pki.told("DELETE", f"/ca/{each}"))["ca"]["id"] == each
        assert await kept_or_gone(world, each) == (0, 0, 0, 0)
        assert (await pki.ask("GET", f"/ca/{each}")).status_code == 404
        assert (await pki.http.get(f"{BASE}/crl/{each}/der")).status_code == 404
