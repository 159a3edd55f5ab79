"""Whatever is sent is answered: parsers, rules and routes get what is valid, bent in every way, and what is not.

In the suite the examples are the same each time; `make fuzz` draws others for longer (FUZZ_SECONDS). What it found
stands at the end, in the smallest form.
"""

import base64
import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from litestar.connection import ASGIConnection
from support.databases import new_database
from support.fuzzing import (
    BENDS,
    JSON,
    ODD,
    TEXTS,
    Node,
    bent,
    bodies,
    der,
    fuzzed,
    integer,
    length,
    pem,
    pems,
    read,
    sequence,
)
from support.world import BODY, Judge, World, document, new_world

from keystead import addresses, config, times
from keystead.audit import log as audit_log
from keystead.ca import authorities, leaves
from keystead.caller import GROUPS, Level, RequestInfo
from keystead.certificates import matching
from keystead.cloudflare import custom_certificates, custom_csrs, guard, logs, renewal, tokens, zones
from keystead.cloudflare import errors as cloudflare_errors
from keystead.cloudflare.accounts import AccountChange
from keystead.cloudflare.custom_certificates import CertificateFilters, CustomCertificateChange, Priorities
from keystead.cloudflare.custom_csrs import CustomCsrRequest
from keystead.cloudflare.logs import LogFilters
from keystead.cloudflare.reading import decode, query
from keystead.cloudflare.renewal import RenewalRequest
from keystead.cloudflare.tokens import TokenChange, TokenRequest
from keystead.cloudflare.zones import ZoneChange, ZoneFilters, ZoneRequest
from keystead.csrs import store as csrs
from keystead.csrs.model import CsrQuery
from keystead.custody import ring as ringfile
from keystead.errors import Invalid, Misconfigured, Refusal
from keystead.identity import policies
from keystead.identity.memory import TokenCredential
from keystead.infisical import ca as infisical_ca
from keystead.infisical import reading
from keystead.infisical import wire as infisical_wire
from keystead.infisical.auth import LoginRequest
from keystead.infisical.ca import CaRequest
from keystead.infisical.leaves import SignRequest, leaf_request
from keystead.server import edge, postgres
from keystead.web import bodies as parsed_bodies
from keystead.x509 import chains, keys, names, paths, pkcs10, pkix
from keystead.x509.names import NamePolicy
from keystead.x509.pem import blocks

Headers = list[tuple[bytes, bytes]]
NOW = datetime(2026, 6, 1, tzinfo=UTC)
# Seconds of the processor: a hundred times what anything takes that is in proportion to what was sent.
PATIENCE = 4.0
ACCOUNT, ZONE = uuid4(), uuid4()

# Valid material, the same in each run: keys of fixed numbers, and signatures that no chance is in.

EC_KEY = ec.derive_private_key(2**200 + 1, ec.SECP256R1())


def _rsa_key() -> rsa.RSAPrivateKey:
    # Primes that no check of weak keys finds: neither close to each other nor to a power.
    p, q = 3 * 2**1022 + 2**900 + 555, 7 * 2**1021 + 2**800 + 1607
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


RSA_KEY = _rsa_key()
DSA_NUMBERS = (2**1024 - 105, 2**160 - 47, 4)


def _keys() -> list[tuple[str, bytes]]:
    pkcs8, older = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
    p, q, g = DSA_NUMBERS
    made: list[tuple[str, Any, serialization.PrivateFormat]] = [
        ("PRIVATE KEY", EC_KEY, pkcs8),
        ("PRIVATE KEY", RSA_KEY, pkcs8),
        ("EC PRIVATE KEY", EC_KEY, older),
        ("EC PRIVATE KEY", ec.derive_private_key(7, ec.SECP521R1()), older),
        ("RSA PRIVATE KEY", RSA_KEY, older),
        ("PRIVATE KEY", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), pkcs8),
    ]
    empty = serialization.NoEncryption()
    found = [(label, key.private_bytes(serialization.Encoding.DER, form, empty)) for label, key, form in made]
    return [*found, ("DSA PRIVATE KEY", sequence(*map(integer, (0, p, q, g, pow(g, 9, p), 9))))]


def _name(*values: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in values])


LEAF_NAME = _name((NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Bär"), (NameOID.COMMON_NAME, "a.example"))
CA_NAME = _name((NameOID.ORGANIZATION_NAME, "Trust"), (NameOID.COMMON_NAME, "CA"))
SANS = x509.SubjectAlternativeName(
    [
        x509.DNSName("a.example"),
        x509.DNSName("*.b.example"),
        x509.RFC822Name("a@b.example"),
        x509.UniformResourceIdentifier("https://a.example/b"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_network("192.0.2.0/24")),
        x509.DirectoryName(LEAF_NAME),
        x509.RegisteredID(NameOID.COMMON_NAME),
        x509.OtherName(NameOID.COMMON_NAME, b"\x05\x00"),
    ]
)


def _signed(name: x509.Name, key: Any, by: Any, extensions: list[x509.ExtensionType], **how: Any) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(CA_NAME)
        .public_key(key.public_key())
        .serial_number(0x4711)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    certificate = builder.sign(by, hashes.SHA256(), **how)
    return certificate.public_bytes(serialization.Encoding.DER)


def _certificates() -> list[tuple[str, bytes]]:
    server = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(EC_KEY.public_key())
    usage = pkix._key_usage(pkix.ROOT_KEY_USAGES)
    of_ca = [x509.BasicConstraints(ca=True, path_length=3), usage]
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    ders = (
        _signed(CA_NAME, EC_KEY, EC_KEY, of_ca, ecdsa_deterministic=True),
        _signed(LEAF_NAME, RSA_KEY, EC_KEY, [SANS, server, key_id], ecdsa_deterministic=True),
        _signed(LEAF_NAME, EC_KEY, EC_KEY, [SANS, server], ecdsa_deterministic=True),
        _signed(LEAF_NAME, EC_KEY, RSA_KEY, [SANS], rsa_padding=pss),
    )
    return [("CERTIFICATE", each) for each in ders]


def _requests() -> list[tuple[str, bytes]]:
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(LEAF_NAME)
        .add_extension(SANS, critical=False)
        .add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"abc")
    )
    made = (asked.sign(EC_KEY, hashes.SHA256(), ecdsa_deterministic=True), asked.sign(RSA_KEY, hashes.SHA256()))
    return [("CERTIFICATE REQUEST", each.public_bytes(serialization.Encoding.DER)) for each in made]


KEYS, CERTIFICATES, REQUESTS = _keys(), _certificates(), _requests()
PAIR = keys.read_pem(pem(*KEYS[0]))
ANCHORS = chains.anchors([pem(*CERTIFICATES[0]).encode()])


# PEM and DER.


@fuzzed(200)
@given(pems([*KEYS, *CERTIFICATES, *REQUESTS]), st.lists(st.tuples(st.integers(0, 3000), TEXTS), max_size=3))
def test_pem_blocks_are_parts_of_the_text(text: str, edits: list[tuple[int, str]]) -> None:
    """Each block is found where it stands, in its order, and is one block again by itself."""
    for where, some in edits:
        text = text[:where] + some + text[where:]
    at = 0
    for block in blocks(text):
        at = text.index(block.text, at) + len(block.text)
        assert [*blocks(block.text)] == [block]


def _resigned(request: bytes) -> bytes:
    """A CSR that was bent, signed anew if it can be, so that what is in it counts."""
    found = read(request)
    if not found or isinstance(found[0].content, bytes) or len(found[0].content) != 3:
        return request
    inner = found[0].content
    told = der(inner[0])
    signature = EC_KEY.sign(told, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    bits = b"\x03" + bytes([len(signature) + 1, 0]) + signature
    return sequence(told, der(inner[1]), bits)


def _subject_of(request: bytes) -> bytes:
    """The subject of a CSR, byte for byte."""
    (outer,) = read(request) or [Node(0, b"")]
    assert isinstance(outer.content, list)
    told = outer.content[0].content
    assert isinstance(told, list)
    return der(told[1])


@fuzzed(400)
@given(BENDS, st.booleans())
def test_a_csr_from_outside_is_read_or_refused(bends: list[Any], anew: bool) -> None:
    """What is accepted is so each time; its subject is written again bit for bit, or it is known that it is not."""
    request = bent(REQUESTS[0][1], bends)
    request = _resigned(request) if anew else request
    try:
        found = pkix.read_csr(pem("CERTIFICATE REQUEST", request))
    except pkix.BadCsr:
        return
    assert found.rewritten is (found.subject.public_bytes() != _subject_of(request))
    again = pem("CERTIFICATE REQUEST", request)
    assert pkix.read_csr(again) == found
    if found.public_key is not None:
        # What the library does not read is none of ours.
        with contextlib.suppress(ValueError):
            assert pkix.der(again) == request
            assert pkix.spki_sha256(again) == keys.spki_sha256(found.public_key)
    assert isinstance(pkix.weakness(found.public_key), str)
    (found.common_name, pkix.ca_subject(found.subject), found.subject.rfc4514_string())
    with contextlib.suppress(Refusal):
        leaves._checked(found.sans, NamePolicy.PUBLIC)


@fuzzed(150)
@given(pems([*REQUESTS, *CERTIFICATES, *KEYS]))
def test_any_text_is_a_csr_or_refused(text: str) -> None:
    """Whatever stands around, before or instead of a CSR, the answer is a sentence."""
    with contextlib.suppress(pkix.BadCsr):
        pkix.read_csr(text)


def _judgements(certificates: tuple[x509.Certificate, ...]) -> None:
    """All that is asked of certificates that were read; each of these may say no in its own way."""
    for each in certificates:
        told = chains.facts(each)
        for text in (*told.hosts, told.issuer, told.signature, chains.named(each.subject), chains.named(each.issuer)):
            text.encode()
        (chains.path_length(each), chains.is_reproducible(each), pkix.ca_subject(each.subject))
        with contextlib.suppress(Invalid):
            chains.judge_leaf(each, NOW)
        others = [other for other in certificates if other != each]
        with contextlib.suppress(Invalid):
            paths.ordered(each, others, NOW)
        with contextlib.suppress(Invalid):
            paths.verify(chains.arrange(certificates, chains.spki_digest(each)), ANCHORS, NOW)


@fuzzed(400)
@given(pems(CERTIFICATES), st.sampled_from(["", pem(*CERTIFICATES[0]), pem(*CERTIFICATES[1])]))
def test_certificates_are_read_and_judged_or_refused(text: str, more: str) -> None:
    """What is accepted can be judged in every way, and is accepted again as it is written."""
    chains.anchors([text.encode("utf-8", "replace")])
    try:
        found = chains.read(text + more)
    except Invalid:
        return
    _judgements(found)
    assert chains.read(chains.pem(found)) == found


@fuzzed(120)
@given(pems(KEYS))
def test_private_keys_are_read_or_refused(text: str) -> None:
    """What is accepted is the same key again as it is written and as it is sealed."""
    try:
        pair = keys.read_pem(text)
    except keys.Unusable:
        return
    assert keys.holds_pem(text)
    assert keys.read_pem(keys.pem(pair.private_key)).spki_sha256 == pair.spki_sha256
    assert keys.spki_sha256(keys.load(keys.pkcs8(pair.private_key))) == pair.spki_sha256


# Names, texts, and the CSRs that are made of them.

LABELS = st.sampled_from(["a", "A-1", "_x", "xn--bcher-kva", "xn--a", "ab--c", "*", "com", "ck", "example", "0x1", "7"])
HOSTS = st.lists(LABELS | st.text(st.sampled_from(ODD), max_size=4), max_size=4).map(".".join)
DECENT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("a b.*@&\u200d"), min_size=1)
REQUEST = st.fixed_dictionaries(
    {
        "country": st.sampled_from(["DE", "XX", "US"]),
        "state": DECENT,
        "locality": DECENT,
        "organization": DECENT,
        "common_name": DECENT | HOSTS,
        "sans": st.lists(LABELS.map("{0}.b.example".format) | HOSTS, min_size=1, max_size=4),
    },
    optional={"organizational_unit": DECENT, "name": DECENT, "description": TEXTS},
)


@fuzzed(250)
@given(HOSTS | TEXTS, st.sampled_from(NamePolicy))
def test_names_are_judged(name: str, policy: NamePolicy) -> None:
    """Any text is a name or breaks a rule that a sentence names; what passes is a name in a certificate."""
    broken = names.broken(name, policy)
    if broken:
        assert broken[1].isprintable()
        return
    assert x509.DNSName(name).value == name
    names.doubts(name, policy)


@fuzzed(250)
@given(REQUEST, st.sampled_from(NamePolicy))
def test_what_the_rules_accept_is_a_csr_that_says_the_same(fields: dict[str, Any], policy: NamePolicy) -> None:
    """The CSR of a request without problems parses back to its subject and its SANs, each once, to the letter."""
    decoded = decode(json.dumps(fields).encode(), CustomCsrRequest)
    request = custom_csrs.csr_request(decoded)
    if csrs.problems(request, policy):
        return
    csrs.advice(request, policy)
    parsed = x509.load_pem_x509_csr(pkcs10.custom_csr(PAIR, request.subject, request.sans).encode())
    order = ("country", "state", "locality", "organization", "organizational_unit", "common_name")
    assert [attribute.value for attribute in parsed.subject] == [fields[name] for name in order if name in fields]
    found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    once = {name.lower(): name for name in reversed(fields["sans"])}
    assert sorted(found.get_values_for_type(x509.DNSName)) == sorted(once.values())
    assert pkix.read_csr(pkcs10.custom_csr(PAIR, request.subject, request.sans)).subject == parsed.subject


# JSON: what is asked, in both dialects.

VISIT = RequestInfo(None, 32 * "0", "POST", "/")

CERTIFICATE_BODY: dict[str, Any] = {
    "certificate": pem(*CERTIFICATES[1]),
    "private_key": pem(*KEYS[0]),
    "bundle_method": "force",
    "type": "sni_custom",
    "geo_restrictions": {"label": "us"},
    "policy": "x",
    "deploy": "staging",
    "custom_csr_id": str(ACCOUNT),
}
PRIORITIES_BODY: dict[str, Any] = {"certificates": [{"id": str(ACCOUNT), "priority": 1}]}
TOKEN_BODY: dict[str, Any] = {
    "name": "a token",
    "policies": [
        {
            "effect": "allow",
            "resources": {
                f"com.cloudflare.api.account.{ACCOUNT.hex}": {f"com.cloudflare.api.account.zone.{ZONE.hex}": "*"}
            },
            "permission_groups": [{"id": group.id.hex} for group in GROUPS if group.level is Level.ZONE],
        },
        {
            "effect": "deny",
            "resources": {"com.cloudflare.api.account.*": "*"},
            "permission_groups": [{"id": group.id.hex} for group in GROUPS if group.level is Level.ACCOUNT][:2],
        },
    ],
    "condition": {"request_ip": {"in": ["192.0.2.0/24", "2001:db8::/32"], "not_in": ["192.0.2.1/32"]}},
    "not_before": "2026-01-01T00:00:00Z",
    "expires_on": "2096-01-01T00:00:00Z",
    "status": "active",
}
NAMED_BODY: dict[str, Any] = {"name": "b.example", "account": {"id": ACCOUNT.hex}, "type": "full", "paused": True}
CA_BODY: dict[str, Any] = {
    "projectSlug": "a",
    "type": "root",
    "commonName": "Root",
    "country": "DE",
    "keyAlgorithm": "EC_prime256v1",
    "maxPathLength": 1,
    "notBefore": "2026-01-01",
    "notAfter": "2096",
    "requireTemplateForIssuance": False,
}
LEAF_BODY: dict[str, Any] = {
    "csr": pem(*REQUESTS[0]),
    "commonName": "a.example",
    "friendlyName": "a",
    "altNames": "a.example, 192.0.2.1, a@b.example, https://a.example/b",
    "ttl": "90d",
    "notBefore": "2026-06-01T00:00:00Z",
    "notAfter": "2036-06-01",
    "keyUsages": ["digitalSignature"],
    "extendedKeyUsages": ["serverAuth", "clientAuth"],
}
IMPORT_BODY: dict[str, Any] = {
    "certificate": pem(*CERTIFICATES[2]),
    "certificateChain": pem(*CERTIFICATES[0]),
    "status": "active",
    "revocationReason": "KEY_COMPROMISE",
    "maxPathLength": -1,
    "notAfter": "2030",
    "type": "existing",
    "csr": pem(*REQUESTS[0]),
}
LOGIN_BODY: dict[str, Any] = {"clientId": str(ACCOUNT), "clientSecret": "kst_" + 46 * "a"}


@fuzzed(200)
@given(bodies(BODY))
def test_the_body_of_a_csr_is_judged(raw: bytes) -> None:
    """Any bytes are a request with its problems, each of which has a code."""
    request = custom_csrs.csr_request(decode(raw, CustomCsrRequest))
    found = csrs.problems(request, NamePolicy.PRIVATE)
    assert all(cloudflare_errors.code_of(problem) in cloudflare_errors.CODES for problem in found)
    cloudflare_errors.Reference("http://x").failure(Invalid(found), VISIT)
    if not found:
        pkcs10.custom_csr(PAIR, request.subject, request.sans)
        csrs.advice(request, NamePolicy.PUBLIC)


@fuzzed(200)
@given(bodies(TOKEN_BODY), st.booleans())
def test_the_body_of_a_token_is_judged(raw: bytes, updating: bool) -> None:
    """Any bytes are a draft with its problems; what has none is stored as a text that means the same when read."""
    try:
        draft = tokens.draft_of(decode(raw, TokenChange if updating else TokenRequest))
    except Invalid:
        return
    policies.zone_ids(draft.policies)
    if not policies.problems(draft.policies, frozenset({ACCOUNT}), {ZONE: ACCOUNT}):
        stored = policies.text(draft.policies)
        read_again = policies.read(stored)
        assert [each.effect for each in read_again] == [each.effect for each in draft.policies]
        assert policies.drafts(stored)[1] == ()
    if draft.condition and not draft.malformed and not policies.condition_problems(draft.networks):
        allowed, refused = policies.networks(draft.condition)
        told = (*draft.networks.get("in", ()), *draft.networks.get("not_in", ()))
        assert (*allowed, *refused) == tuple(map(ipaddress.ip_network, told))
        policies.allowed_from(draft.condition, ipaddress.ip_address("192.0.2.1"))


@fuzzed(200)
@given(
    bodies(CERTIFICATE_BODY) | bodies(PRIORITIES_BODY) | bodies(NAMED_BODY),
    st.sampled_from(
        [
            lambda raw: matching.problems(custom_certificates.upload_of(decode(raw, CustomCertificateChange))),
            lambda raw: custom_certificates.priorities_of(decode(raw, Priorities)),
            lambda raw: renewal.wanted_of(decode(raw, RenewalRequest)),
            lambda raw: decode(raw, AccountChange),
            lambda raw: decode(raw, ZoneRequest),
            lambda raw: decode(raw, ZoneChange),
        ]
    ),
)
def test_the_other_bodies_of_cloudflare_are_judged(raw: bytes, judge: Callable[[bytes], object]) -> None:
    """Any bytes are read, or refused as the dialect does."""
    with contextlib.suppress(Invalid, cloudflare_errors.ApiError):
        judge(raw)


@fuzzed(200)
@given(bodies(CA_BODY) | bodies(LEAF_BODY) | bodies(LOGIN_BODY), st.booleans())
def test_the_bodies_of_infisical_are_judged(raw: bytes, is_form: bool) -> None:
    """Any bytes are read, or refused as the dialect does; what is accepted can be written into a certificate."""
    try:
        read = reading.decode_form if is_form else reading.decode
        new = infisical_ca.new_authority(read(raw, CaRequest))
        leaf = read(raw, SignRequest)
        asked = leaf_request(leaf, leaf.common_name, leaf.csr)
    except (infisical_wire.ApiError, infisical_wire.ValidationFailure):
        return
    if not authorities.problems(new):
        assert pkix.ca_subject(pkix.ca_name(new.subject)) == new.subject
        infisical_ca.dn(new.subject)
    leaves.problems(asked)
    with contextlib.suppress(Refusal):
        x509.SubjectAlternativeName(leaves._checked(leaves._given(asked.alt_names), NamePolicy.PRIVATE))


@fuzzed(200)
@given(JSON.map(str.encode) | st.binary(max_size=40))
def test_json_is_read_as_it_is_written(raw: bytes) -> None:
    """What is accepted is JSON, and everything else is a ValueError."""
    try:
        found = parsed_bodies.parse(raw)
    except ValueError:
        return
    if len(raw) < parsed_bodies.MAX_DIGITS:
        assert json.loads(raw) == found


# Headers, paths, queries and times.

BYTES = st.binary(max_size=12) | TEXTS.map(lambda text: text.encode("utf-8", "replace"))
ADDRESSES = st.sampled_from(
    ["10.0.0.1", "198.51.100.1:80", "[2001:db8::1]:443", "::ffff:10.0.0.1", "fe80::1%eth0", "[", "]:1", "1.2.3", ""]
)
PATHS = st.lists(
    st.sampled_from(
        [b"/", b"/client/v4/", b"accounts", b"%2f", b"%2F", b"%00", b"%", b"%zz", b"%c3%a4", b"..", b"\xff"]
    )
    | BYTES,
    max_size=5,
).map(b"".join)
QUERY_KEYS = st.sampled_from(
    [
        *("page", "per_page", "order", "direction", "name", "san", "key_type", "status", "type", "account.id", "match"),
        *("since", "before", "limit", "cursor", "zone_name", "zone_name.not", "since%00", "%66oo", "", "projectId"),
    ]
)
QUERY_VALUES = st.sampled_from(
    [
        *("1", "0", "2.0", "1e3", "9" * 40, "asc", "full,partial", "equal:a", "2026-01-01", "0001-01-01", "9999-12-31"),
        *("%ff", "%C3%A4", "+", "%00", "%u0041", "A" * 32, "%2F" * 32),
    ]
).map(str.encode) | BYTES.map(lambda raw: quote(raw).encode())
QUERIES = st.lists(st.tuples(QUERY_KEYS.map(str.encode) | BYTES, QUERY_VALUES | BYTES), max_size=5).map(
    lambda pairs: b"&".join(b"=".join(pair) for pair in pairs)
)


@fuzzed(200)
@given(PATHS)
def test_paths_are_decoded_once_or_name_nothing(raw: bytes) -> None:
    """A path that is decoded has a slash before each segment and nowhere else, and no NUL; an id is made for any."""
    path = edge._path(raw)
    if path is not None:
        assert path.startswith("/")
        assert "\0" not in path
        assert path.count("/") <= raw.count(b"/")
    shown = raw.decode("latin-1")
    assert edge._printable(shown).isprintable()
    assert edge._request_id(shown).isascii()


@fuzzed(200)
@given(ADDRESSES | TEXTS, st.lists(ADDRESSES | TEXTS, max_size=4), st.sampled_from(["10.0.0.0/8", "::/0,0.0.0.0/0"]))
def test_addresses_are_found_or_nobodys(peer: str, hops: list[str], trusted: str) -> None:
    """Whatever proxies write, the client is an address or unknown, and is one again as it is written."""
    networks = config._networks(trusted)
    own = edge.Edge(None, networks, None, None)  # type: ignore[arg-type] # only its trust is asked
    headers = [(b"x-forwarded-for", hop.encode("utf-8", "replace")) for hop in hops]
    found = own._address({"client": (peer, 1), "headers": headers})
    assert found is None or addresses.parsed(str(found)) == found


@fuzzed(200)
@given(QUERIES, st.sampled_from([CertificateFilters, ZoneFilters, LogFilters, CsrQuery]))
def test_queries_are_read_or_refused(raw: bytes, struct: type[msgspec.Struct]) -> None:
    """Any query is read, or refused as the dialect does."""
    with contextlib.suppress(cloudflare_errors.ApiError):
        found = query(raw, struct)
        if isinstance(found, LogFilters):
            logs.query_of(found)
        if isinstance(found, ZoneFilters):
            zones.query_of(found)


AUTHORIZATIONS = st.sampled_from([b"Bearer " + b"a" * 40, b"bearer\t" + b"a" * 40, b"Basic x", b"Bearer", b""]) | BYTES
CREDENTIALS: st.SearchStrategy[Headers] = st.lists(
    st.tuples(st.just(b"authorization"), AUTHORIZATIONS)
    | st.tuples(st.just(b"x-auth-email"), st.sampled_from([b"a@b.example", b"@", b"a@" + b"b" * 200]) | BYTES)
    | st.tuples(st.just(b"x-auth-key"), st.sampled_from([b"0" * 37, b"G" * 37]) | BYTES),
    max_size=3,
)


@fuzzed(200)
@given(CREDENTIALS)
def test_credentials_are_found_or_refused(headers: Headers) -> None:
    """Any headers hold a credential, which does not show its secret, or are refused."""
    scope: Any = {"type": "http", "headers": headers}
    connection: Any = ASGIConnection(scope)
    try:
        found = guard.credentials(connection)
    except cloudflare_errors.ApiError:
        return
    secret = found.value if isinstance(found, TokenCredential) else found.key
    assert secret not in str(found)


@fuzzed(200)
@given(st.from_regex(times._DATE, fullmatch=True) | TEXTS, st.from_regex(times._SPAN, fullmatch=True) | TEXTS, TEXTS)
def test_times_are_read_or_none(date: str, span: str, cursor: str) -> None:
    """Any text is a time in UTC, a span, a cursor, or none."""
    found = times.date(date)
    assert found is None or found.tzinfo is UTC
    times.span(span)
    audit_log.position(cursor)


# What the operator writes.

SETTINGS = {
    "KEYSTEAD_HOST": ["127.0.0.1", "::1", "localhost", "fe80::1%eth0"],
    "KEYSTEAD_PORT": ["8787", "+1", "٣"],
    "KEYSTEAD_DATA_DIR": ["x"],
    "KEYSTEAD_DATABASE_URL": ["postgresql://a@b/c"],
    "KEYSTEAD_KEYRING": ["k"],
    "KEYSTEAD_WORKERS": ["2", "64", "065"],
    "KEYSTEAD_RATE_LIMIT": ["off", "1200/5m", "1/1s", "1e3/m", "1/" + "9" * 5000 + "s"],
    "KEYSTEAD_PUBLIC_URL": ["https://keys.example", "http://[::1]:1/x/", "http://a:b"],
    "KEYSTEAD_PKI_URL": ["http://pki.example/"],
    "KEYSTEAD_TRUSTED_PROXIES": ["10.0.0.0/8, fd00::/8", "10.0.0.1/8", "::1%a/128"],
    "KEYSTEAD_METRICS_FROM": ["127.0.0.0/8"],
    "KEYSTEAD_TRUST_DIR": ["."],
    "KEYSTEAD_TELL": ["/bin/sh", "sh"],
    "KEYSTEAD_TLS_CERT": ["missing"],
    "KEYSTEAD_DELIVERY_LISTEN": ["127.0.0.1:8790", "[::1]:1", "::1:1", "[fe80::1%eth0]:٣"],
    "KEYSTEAD_LOG": ["json"],
}
WRITTEN = TEXTS | st.builds(lambda text, more: text + more, st.sampled_from(["http://", "https://a/", "1", "x"]), TEXTS)


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    chosen = draw(st.lists(st.sampled_from([*SETTINGS]), unique=True, max_size=3))
    return {name: draw(st.sampled_from(SETTINGS[name]) | WRITTEN) for name in chosen}


@fuzzed(200)
@given(environments())
def test_settings_are_read_or_refused(environ: dict[str, str]) -> None:
    """Any environment is read, or refused in one sentence; the addresses in it can be written into certificates."""
    try:
        settings = config.load(environ)
    except Misconfigured:
        return
    for url in (settings.public_url, settings.pki_url or settings.public_url):
        assert url.isascii()
        assert url.isprintable()
    ipaddress.ip_address(settings.host)


RING: dict[str, Any] = {
    "version": 1,
    "keks": [
        {"id": "a", "secret": base64.b64encode(bytes(32)).decode(), "created_at": "2026-01-01T00:00:00Z"},
        {"id": "b", "secret": base64.b64encode(bytes(32)).decode(), "created_at": "2026-01-02T00:00:00+14:00"},
    ],
    "current_since": "2026-01-02T00:00:00Z",
}


def _changed(path: Path, text: bytes) -> None:
    """All that commands do with a ring; each may refuse it."""
    path.write_bytes(text)
    path.chmod(0o600)
    ringfile.read(path)
    ringfile.require_earlier(path, "b")
    ringfile.add(path)
    ringfile.promote(path)
    ringfile.remove(path, "b")


@fuzzed(100)
@given(bodies(RING))
def test_a_ring_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """Any file is a ring that the commands can change, or is refused in one sentence."""
    path = tmp_path_factory.getbasetemp() / f"ring-{os.getpid()}.json"
    with contextlib.suppress(Misconfigured):
        _changed(path, text)


# Over HTTP.


async def ask(world: World, method: str, target: bytes, headers: Headers, body: bytes) -> httpx.Response:
    """An answer of the application to the bytes themselves, which no client would send."""
    raw, _, query = target.partition(b"?")
    sent: list[Any] = []
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return unread.pop() if unread else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw.decode("latin-1"),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8787),
    }
    await world.app(scope, receive, send)
    start, *parts = sent
    content = b"".join(part.get("body", b"") for part in parts)
    world.seen.append(f"{start['headers']}{content.decode('latin-1')}")
    url = httpx.URL("http://127.0.0.1:8787", raw_path=quote(raw, safe="/%").encode())
    return httpx.Response(
        start["status"], headers=start["headers"], content=content, request=httpx.Request(method, url)
    )


DOCUMENT = document(config.Settings().public_url)
OPERATIONS = [
    (method.upper(), path if path.startswith("/api/") else f"/client/v4{path}")
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method in {"get", "put", "post", "patch", "delete"}
]
ALL_BODIES = st.one_of(
    *(
        bodies(valid, frozenset({"key_type", "keyAlgorithm"}))
        for valid in (BODY, CERTIFICATE_BODY, PRIORITIES_BODY, TOKEN_BODY, NAMED_BODY, CA_BODY, LEAF_BODY, IMPORT_BODY)
    ),
    bodies(LOGIN_BODY),
    st.binary(max_size=30),
)
OTHER_HEADERS: st.SearchStrategy[Headers] = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(b"accept", b"content-type", b"idempotency-key", b"content-length", b"x-forwarded-for", b"host"),
                *(b"user-agent", b"range", b"transfer-encoding", b"content-encoding", b"cookie", b"x-odd"),
            ]
        ),
        st.sampled_from([b"application/pkcs10;q=1", b"*/*;q=0.5, text/html", b"application/x-www-form-urlencoded"])
        | st.sampled_from([b"9" * 5000, b"-1", b"gzip", b"multipart/form-data; boundary=x", b"a=b; c", b"bytes=0-1"])
        | BYTES,
    ),
    max_size=3,
)


class Site:
    """A world, and what the parameters of paths are filled with: things that are there."""

    def __init__(self, world: World, ids: dict[str, str]) -> None:
        self.world = world
        self.ids = ids
        self.judge = Judge(world.settings.public_url)

    def path(self, template: str, which: str, odd: str) -> bytes:
        """The template with its parameters filled: by what is there, another tenant's, nobody's, or anything."""
        for name, own in self.ids.items():
            words = {"own": own, "another's": self.world.b.account.id.hex, "nobody's": uuid4().hex}
            value = words.get(which, quote(odd.encode("utf-8", "replace"), safe=""))
            # One of two is still found.
            value = own if name in {"account_id", "zone_id"} and "{" in template.partition("}")[2] else value
            template = template.replace(f"{{{name}}}", value)
        return template.encode()


@pytest.fixture(scope="module")
async def site(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("fuzz")) as world:
        csr = await world.create()
        cas = "/api/v1/pki/ca"
        wanted = {"projectSlug": "a", "type": "root", "commonName": "Root", "keyAlgorithm": "EC_prime256v1"}
        ca = (await world.http.post(cas, json=wanted, headers=world.a.bearer)).json()["ca"]
        signing = {"csr": pem(*REQUESTS[0]), "ttl": "1d", "altNames": "a.example"}
        made = await world.http.post(f"{cas}/{ca['id']}/sign-certificate", json=signing, headers=world.a.bearer)
        ids = {
            "account_id": world.a.account.id.hex,
            "zone_id": world.a.zone.id.hex,
            "custom_csr_id": csr["id"],
            "custom_certificate_id": csr["id"],
            "token_id": csr["id"].replace("-", ""),
            "caId": ca["id"],
            "crlId": ca["id"],
            "caCertId": ca["activeCaCertId"],
            "serialNumber": made.json()["serialNumber"],
        }
        yield Site(world, ids)


@fuzzed(250)
@given(
    st.sampled_from(OPERATIONS),
    st.sampled_from([*["own"] * 6, "another's", "nobody's", "odd"]),
    st.text(st.sampled_from(ODD), min_size=1, max_size=6),
    QUERIES,
    OTHER_HEADERS | CREDENTIALS,
    ALL_BODIES,
    st.sampled_from([*[""] * 12, "HEAD", "OPTIONS", "TRACE", "BREW"]),
)
async def test_every_route_answers_whatever_it_is_sent(
    site: Site,
    operation: tuple[str, str],
    which: str,
    odd: str,
    query: bytes,
    headers: Headers,
    body: bytes,
    other_method: str,
) -> None:
    """Never is it an error of the server's, and always it is an answer in the form of the dialect."""
    method, template = operation
    # What is there stays, so that the next example finds it.
    which = "nobody's" if method == "DELETE" and which == "own" else which
    token = [(b"authorization", f"Bearer {site.world.a.token}".encode())]
    sent = headers if any(name == b"authorization" for name, _ in headers) else [*token, *headers]
    target = site.path(template, which, odd) + (b"?" + query if query else b"")
    answer = await ask(site.world, other_method or method, target, sent, body)
    # What makes a private key hands it out, as it must.
    site.world.seen[:] = [each for each in site.world.seen if "PRIVATE KEY-----" not in each]
    assert answer.status_code < 500, answer.text
    site.judge(answer)


# However much is sent.

KIB = 1024
REPEATED = {
    "begins": "-----BEGIN ",
    "empty blocks": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    "open blocks": "-----BEGIN PRIVATE KEY-----\nAA",
    "ends": "-----END A-----",
    "dashes": "-",
    "base64": "AAAA\n",
    "lines": "\n",
    "brackets": "[",
    "members": '{"a":',
    "quotes": '"',
    "escapes": "\\ud800",
    "digits": "9",
    "commas": "1,",
    "ampersands": "page=1&",
    "percents": "%41",
    "slashes": "/a",
    "labels": "xn--a.",
    "not ASCII": "\u0430\u0301.",
    "at signs": "@",
    "quoted local parts": '"a" ',
    "colons": "a:",
}
READERS: dict[str, tuple[int, Callable[[str], object]]] = {
    "PEM": (1024 * KIB, lambda text: [*blocks(text)]),
    "certificates": (256 * KIB, chains.read),
    "a private key": (256 * KIB, keys.read_pem),
    "a CSR": (1024 * KIB, pkix.read_csr),
    "the body of a CSR": (64 * KIB, lambda text: decode(text.encode(), CustomCsrRequest)),
    "the body of a token": (64 * KIB, lambda text: tokens.draft_of(decode(text.encode(), TokenRequest))),
    "policies": (64 * KIB, policies.drafts),
    "fields": (1024 * KIB, lambda text: reading.decode(text.encode(), SignRequest)),
    "a form": (1024 * KIB, lambda text: reading.decode_form(text.encode(), LoginRequest)),
    "alternative names": (1024 * KIB, leaves._given),
    "an email address": (1024 * KIB, lambda text: leaves._given(f"{text}@")),
    "a name": (64 * KIB, lambda text: names.broken(text, NamePolicy.PUBLIC)),
    "a query": (64 * KIB, lambda text: query(text.encode(), LogFilters)),
    "a path": (64 * KIB, lambda text: edge._path(text.encode())),
    "a time": (64 * KIB, lambda text: (times.date(text), times.span(text), audit_log.position(text))),
}
REFUSALS = (Invalid, Refusal, cloudflare_errors.ApiError, infisical_wire.ApiError, infisical_wire.ValidationFailure)


@pytest.mark.parametrize("name", READERS)
def test_the_largest_inputs_are_read_in_no_time(name: str) -> None:
    """As much as a body or head may have, of anything, takes less than PATIENCE of the processor and is no surprise."""
    size, reader = READERS[name]
    for repeated in REPEATED.values():
        text = (repeated * (size // len(repeated) + 1))[:size]
        began = time.process_time()
        with contextlib.suppress(*REFUSALS, pkix.BadCsr, keys.Unusable):
            reader(text)
        assert time.process_time() - began < PATIENCE, repeated


# What was found, each in its smallest form.

READ_KEYS = """
import json, sys
from keystead.x509 import keys
for name, text in json.load(sys.stdin).items():
    try:
        keys.read_pem(text)
    except keys.Unusable:
        print(name, flush=True)
"""


def _slow_keys() -> dict[str, str]:
    p, x = 2**44497 - 1, 2**44000 + 1
    pkcs1 = sequence(*map(integer, (0, 2**2048 - 1, 65537, 3, p, 3, 5, 5, 7)))
    dsa_parameters = sequence(integer(p), integer(2**160 + 7), integer(3))
    dh_parameters = sequence(integer(2**9000 + 1), integer(3))
    dsa_oid, dh_oid = bytes.fromhex("06072a8648ce380401"), bytes.fromhex("06092a864886f70d010301")

    def pkcs8(oid: bytes, parameters: bytes) -> bytes:
        secret = integer(x)
        octets = b"\x04" + length(len(secret)) + secret
        return sequence(integer(0), sequence(oid, parameters), octets)

    return {
        "RSA with a prime of 44497 bits": pem("RSA PRIVATE KEY", pkcs1),
        "DSA of 44497 bits": pem("PRIVATE KEY", pkcs8(dsa_oid, dsa_parameters)),
        "DH of 9001 bits": pem("PRIVATE KEY", pkcs8(dh_oid, dh_parameters)),
    }


def test_a_key_that_would_take_minutes_to_check_is_refused_at_once() -> None:
    """Numbers that no key has are refused before anything is computed with them, which would stop the whole worker."""
    slow = _slow_keys()
    # OpenSSL holds the interpreter's lock meanwhile, so nothing in this process could end it.
    command = [sys.executable, "-c", READ_KEYS]
    try:
        ran = subprocess.run(command, input=json.dumps(slow), capture_output=True, text=True, timeout=60, check=True)
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout
        pytest.fail(f"within 60 seconds were refused: {told or 'none'}")
    assert ran.stdout.splitlines() == [*slow]


@pytest.mark.parametrize("key", ["300e020100300506032b656e04020400", "300e020100300506032b657004020400"])
def test_a_key_that_openssl_does_not_understand_is_unusable(key: str) -> None:
    """An X25519 or Ed25519 key without its octets is refused like any key that is no RSA or EC key."""
    with pytest.raises(keys.Unusable):
        keys.read_pem(pem("PRIVATE KEY", bytes.fromhex(key)))


def test_a_pss_signature_without_its_parameters_is_judged() -> None:
    """A certificate whose outer algorithm is RSASSA-PSS without parameters is refused, or judged like any other."""
    (certificate,) = read(CERTIFICATES[3][1]) or []
    assert isinstance(certificate.content, list)
    algorithm = certificate.content[1]
    assert isinstance(algorithm.content, list)
    del algorithm.content[1]
    with contextlib.suppress(Invalid):
        _judgements(chains.read(pem("CERTIFICATE", der(certificate))))


@pytest.mark.parametrize("text", ["(" * 2000 + "@", "a:" * 2000 + "b@c"])
def test_a_nested_email_address_is_refused(text: str) -> None:
    """Comments and groups within each other are no address, however many there are."""
    with pytest.raises(Refusal):
        leaves._given(text)


@pytest.mark.parametrize("name", ["KEYSTEAD_PUBLIC_URL", "KEYSTEAD_PKI_URL"])
@pytest.mark.parametrize("url", ["http://b\u00fccher.example", "http://a.example/\u00e9", "http://a\tb"])
def test_an_address_that_no_certificate_can_have_is_refused(name: str, url: str) -> None:
    """It would stand in the certificates that are signed here, where it is ASCII (RFC 5280 section 4.2.1.6)."""
    with pytest.raises(Misconfigured):
        config.load({name: url})


@pytest.mark.parametrize("made", ["2026-01-01T00:00:00", "9999-12-31T23:59:59Z"])
def test_a_ring_with_a_time_that_cannot_be_compared_is_refused(tmp_path: Path, made: str) -> None:
    """A KEK whose time has no zone, or none after it, makes the file a damaged ring, before a command changes it."""
    ring = {**RING, "keks": [{**RING["keks"][0], "created_at": made}]}
    with pytest.raises(Misconfigured):
        _changed(tmp_path / "ring.json", json.dumps(ring).encode())


async def test_a_field_with_a_line_break_in_its_name_is_pointed_at(site: Site) -> None:
    """The pointer to a field that nobody knows is one by the schema of the public API page, whatever its name."""
    body = json.dumps({**BODY, "a\nb": 1}).encode()
    headers = [(b"authorization", f"Bearer {site.world.a.token}".encode())]
    site.judge(await ask(site.world, "POST", site.world.a.account_path.encode(), headers, body))


def test_a_very_negative_number_is_not_a_large_one() -> None:
    """A number of a thousand digits keeps its sign, and so is told to be too small."""
    assert parsed_bodies.parse(b"-" + b"9" * 1000) < 0


def test_a_key_with_a_small_factor_is_refused() -> None:
    """A modulus that anybody factors makes no key, even when all its numbers belong together."""
    p, e = 65539, 65537
    q = rsa.generate_private_key(e, 4096).private_numbers().q
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    pem = keys.pem(numbers.private_key(unsafe_skip_rsa_key_validation=True))
    with pytest.raises(keys.Unusable):
        keys.read_pem(pem)
