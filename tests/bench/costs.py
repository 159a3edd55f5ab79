"""`make costs`: what the dearest requests cost, in CPU of the worker, CPU of PostgreSQL and memory.

It fills a world with as much as an account may hold, sends each route the worst that it takes, and tells what is above
100 ms or 20 MB (with --all, everything). Times are of CPU and the least of some rounds, so that a busy machine is no
matter; memory is what Python has taken at most beside what it had, the answer included. A route of the application
without a case of its own is told at the end, as a failure.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import uvloop
from bench import profile_cases
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from litestar import Litestar
from support.authority import csr_of, key_pem, pem, root, rsa_of_known_primes
from support.databases import new_database
from support.world import BODY, World, make_token, new_world

from keystead.caller import GROUPS, Role
from keystead.identity import accounts, policies, zones
from keystead.server import first_start, postgres
from keystead.server.edge import _route
from keystead.store import database as db
from keystead.store import schema

Json = dict[str, Any]
MILLISECONDS, MEGABYTES = 100, 20
CSRS, FAT_CSRS, CERTIFICATES, ISSUED, REVOKED = 100_000, 20_000, 100_000, 100_000, 20_000
AUDITED, ZONES, AUTHORITIES, TOKENS, ACCOUNTS = 200_000, 10_000, 1000, 1000, 200
KIB = 1024
CLOUDFLARE, CERTIFICATE, INFISICAL = 64 * KIB, 256 * KIB, KIB * KIB


class Case(msgspec.Struct, frozen=True):
    """A request as bad as it may be; `body` and `places` may be another one in each round."""

    route: str
    what: str
    body: bytes | Callable[[int], bytes] = b""
    query: str = ""
    places: Callable[[int], dict[str, str]] = lambda _: {}
    asker: str = "token"
    headers: tuple[tuple[str, str], ...] = ()
    rounds: int = 3


class Cost(msgspec.Struct):
    """Milliseconds of CPU and megabytes; `status` is that of the answer."""

    route: str
    what: str
    worker: float
    postgres: float
    memory: float
    status: int

    @property
    def is_high(self) -> bool:
        return max(self.worker, self.postgres) > MILLISECONDS or self.memory > MEGABYTES


class Ground(msgspec.Struct):
    """The world that is measured, and what is in it for paths and bodies."""

    world: World
    database: str
    own: dict[str, str]
    askers: dict[str, dict[str, str]]
    ids: dict[str, list[str]]


# What fills the world: rows as the application writes them, made by PostgreSQL. $1 is always the account.
_KEYS = """
INSERT INTO private_keys (account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext)
SELECT $1, md5($2 || n)::uuid, 'p256v1', sha256(($2 || n)::bytea), false, k.id, '', ''
FROM generate_series(1, $3::int) n, (SELECT id FROM keks LIMIT 1) k
"""
_CSRS = """
INSERT INTO custom_csrs (account_id, id, zone_id, key_id, key_type, name, country, state, locality, organization,
    common_name, sans, csr, created_at)
SELECT $1, md5('csr' || $2 || n)::uuid, $4, md5($2 || n)::uuid, 'p256v1', 'name ' || n, 'US', 'x', 'x', 'x',
    'host' || n || '.example.com', CASE WHEN $5 THEN (SELECT array_agg(rpad(s || '.' || n || '.', 240, 'long-label.'))
    FROM generate_series(1, 150) s) ELSE ARRAY['host' || n || '.example.com', 'b.example.com'] END,
    repeat('x', 900), now() - random() * interval '300 days' FROM generate_series(1, $3::int) n
"""
_CERTIFICATES = """
INSERT INTO custom_certificates (account_id, id, zone_id, key_id, custom_csr_id, type, bundle_method, priority, sha256,
    hosts, issuer, signature, not_before, not_after, chain, uploaded_at)
SELECT $1, md5($2 || n)::uuid, $3, $4, md5('csrcsr1')::uuid, 'legacy_custom', 'force', n % 7, sha256(($2 || n)::bytea),
    (SELECT array_agg('host' || s || '.of.certificate.' || n || '.example.com') FROM generate_series(1, $6::int) s),
    'CA', 'ECDSAWithSHA256', now() - interval '1 day', now() + interval '1 day' * (n % 300), repeat('x', $7::int),
    now() - interval '1 s' * n FROM generate_series(1, $5::int) n
"""
ISSUED_ROWS = """
INSERT INTO issued_certificates (account_id, id, ca_id, profile, serial, spki_sha256, subject, common_name, alt_names,
    key_usages, extended_key_usages, not_before, not_after, pem, revoked_at, revocation_reason)
SELECT $1, gen_random_uuid(), $2, 'leaf', '5a' || right(encode(sha256(($2::uuid::text || n)::bytea), 'hex'), 38),
    sha256('x'), 'CN=h', 'h', '{a.example.com}', '{}', '{}', now() - interval '90 days', now() + $4::text::interval,
    repeat('x', 900), CASE WHEN n <= $5::int THEN now() END, CASE WHEN n <= $5::int THEN 1 END
FROM generate_series(1, $3::int) n
"""
_AUDIT = """
INSERT INTO audit_log (account_id, id, at, action, resource_type, resource_id, zone_id, actor, actor_id, actor_name,
    address, request_id, method, path, user_agent, status)
SELECT $1, gen_random_uuid(), now() - interval '10 s' * n, 'create', 'custom_csr', gen_random_uuid(), $2, 'token',
    $2, 'name', '192.0.2.1', md5(n::text), 'POST', '/client/v4/' || repeat('x', 1000), repeat('x', 250), 201
FROM generate_series(1, $3::int) n
"""
_ZONES = """
INSERT INTO zones (id, account_id, name)
SELECT gen_random_uuid(), $1, 'zone' || n || '.example.org' FROM generate_series(1, $2::int) n
"""
_AUTHORITIES = """
WITH ca AS (
    INSERT INTO certificate_authorities (account_id, id, type, friendly_name, country, organization,
        organizational_unit, state, common_name, locality, max_path_length, requires_template, key_type, key_id,
        spki_sha256)
    SELECT c.account_id, md5('ca' || n)::uuid, 'root', repeat('f', 255), country, repeat('"', 64), repeat('"', 64),
        repeat('"', 128), common_name, repeat('"', 128), -1, false, 'p256v1', md5('ca key' || n)::uuid, c.spki_sha256
    FROM certificate_authorities c, generate_series(1, $3::int) n WHERE c.account_id = $1 AND c.id = $2
    RETURNING account_id, id
),
crl AS (INSERT INTO crls (account_id, ca_id) SELECT account_id, id FROM ca)
INSERT INTO ca_certificates (account_id, id, ca_id, version, serial, sha256, not_before, not_after, pem, chain, root)
SELECT ca.account_id, gen_random_uuid(), ca.id, 1, v.serial, v.sha256, v.not_before, v.not_after, v.pem, v.chain, v.root
FROM ca, ca_certificates v WHERE v.account_id = $1 AND v.ca_id = $2
"""
_VERSIONS = """
INSERT INTO ca_certificates (account_id, id, ca_id, version, serial, sha256, not_before, not_after, pem, chain, root)
SELECT account_id, gen_random_uuid(), ca_id, n, serial, sha256, not_before, not_after, pem, repeat('x', 64000), root
FROM ca_certificates, generate_series(2, 100) n WHERE account_id = $1 AND ca_id = $2
"""
_TOKENS = """
INSERT INTO tokens (id, account_id, name, digest, pepper_id, policies)
SELECT md5($4 || n)::uuid, $1, 'token ' || n, sha256(($4 || n)::bytea), p.id, ($2 || repeat(' ', n))::json
FROM generate_series(1, $3::int) n, (SELECT id FROM peppers LIMIT 1) p
"""


async def fill(world: World, url: str) -> dict[str, list[str]]:
    """The rows, and ids of some of them."""
    account, zone = world.a.account, world.a.zone
    operator = first_start.operator()
    sql: db.Connection = await asyncpg.connect(url)
    await sql.execute("SET synchronous_commit = off")
    fat, wide, busy = [
        await zones.create_in(world.database, operator, account, f"{name}.example.com")
        for name in ("fat", "wide", "busy")
    ]
    for word, count in (("csr", CSRS), ("fat csr", FAT_CSRS), ("ca key", AUTHORITIES)):
        await sql.execute(_KEYS, account.id, word, count)
    await sql.execute(_CSRS, account.id, "csr", CSRS, None, False)
    await sql.execute(_CSRS, account.id, "fat csr", FAT_CSRS, fat.id, True)
    # One that is read as what it is.
    real = csr_of(ec.generate_private_key(ec.SECP256R1()), "a.example.com")
    await sql.execute("UPDATE custom_csrs SET csr = $1 WHERE id = md5('csrcsr1')::uuid", real)
    counted = "INSERT INTO csr_counts VALUES ($1, $2, 0, $3)"
    await sql.execute(counted, account.id, account.id, CSRS)
    await sql.execute(counted, account.id, fat.id, FAT_CSRS)
    key = await sql.fetchval("SELECT md5('csr1')::uuid")
    for word, place, count, hosts, length in (
        ("certificate", busy, CERTIFICATES, 2, 900),
        ("fat", fat, 1000, 100, 250_000),
        ("wide", wide, 100, 8000, 250_000),
    ):
        await sql.execute(_CERTIFICATES, account.id, word, place.id, key, count, hosts, length)
    await sql.execute(_AUDIT, account.id, zone.id, AUDITED)
    await sql.execute(_ZONES, account.id, ZONES - 10)
    path = "/api/v1/pki/ca"
    made = []
    for name in ("root", "expired", "of versions"):
        body = {"projectSlug": account.slug, "type": "root", "commonName": name, "keyAlgorithm": "EC_prime256v1"}
        answer = await world.http.post(path, json=body, headers=world.a.bearer)
        made.append(UUID(answer.json()["ca"]["id"]))
    await sql.execute(ISSUED_ROWS, account.id, made[0], ISSUED, "90 days", REVOKED)
    await sql.execute(ISSUED_ROWS, account.id, made[1], ISSUED, "-1 days", 0)
    await sql.execute(_VERSIONS, account.id, made[2])
    await sql.execute(_AUTHORITIES, account.id, made[0], AUTHORITIES - 3)
    ids = await sql.fetch("SELECT id FROM zones WHERE account_id = $1 LIMIT 300", account.id)
    text = long_policies(account.id, [row["id"] for row in ids])
    lone = await accounts.create_account(world.database, operator, "lone", "Lone")
    for word, owner in (("token", account), ("lone", lone)):
        await sql.execute(_TOKENS, owner.id, text, TOKENS - 10, word)
    only = await make_token(world.services, lone)
    user = await accounts.find_user(world.database, world.a.email)
    for number in range(ACCOUNTS - 1):
        other = await accounts.create_account(world.database, operator, f"more-{number}", f"More {number}")
        await accounts.set_membership(world.database, operator, user, other, Role.ADMINISTRATOR)
        await sql.execute(_ZONES, other.id, 1000)
    await sql.execute("VACUUM ANALYZE")
    await sql.close()
    return {
        "zones": [fat.id.hex, wide.id.hex, busy.id.hex],
        "cas": [str(each) for each in made],
        "in account": [row["id"].hex for row in ids],
        "policies": [text],
        "lone": [lone.id.hex, only],
    }


_MANAGES = next(group for group in GROUPS if group.name == "Account API Tokens Write")


def long_policies(account_id: UUID, zone_ids: list[UUID]) -> str:
    """Policies that name all that they may, and in all groups; they may manage tokens, and are denied it again."""
    ids = iter(zone_ids)
    account = f"com.cloudflare.api.account.{account_id.hex}"
    groups = [{"id": group.id.hex, "name": group.name} for group in GROUPS if group is not _MANAGES]
    made = []
    for _ in range(23):
        named = {f"com.cloudflare.api.account.zone.{next(ids).hex}": "*" for _ in range(11)}
        resources = {**named, account: "*"}
        made.append({"id": uuid4().hex, "effect": "allow", "resources": resources, "permission_groups": groups})
    only = [{"id": _MANAGES.id.hex, "name": _MANAGES.name}]
    made.append({"id": uuid4().hex, "effect": "deny", "resources": {account: "*"}, "permission_groups": only})
    text = json.dumps(made, separators=(",", ":"))
    assert len(text) <= policies.MAX_TEXT, len(text)
    return text


# Bodies.


def bombs(size: int) -> Iterator[tuple[str, bytes]]:
    """JSON of just this size that is large or slow to read."""

    def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
        return before + unit * ((size - len(before) - len(after)) // len(unit)) + after

    yield "nested lists", filled(b"", b"[", b"")
    yield "lists 800 deep", filled(b'{"x":[', b"[" * 800 + b"]" * 800 + b",", b"0]}")
    yield "empty lists", filled(b'{"x":[', b"[],", b"0]}")
    yield "empty objects", filled(b'{"x":[', b"{},", b"0]}")
    yield "small objects", filled(b'{"x":[', b'{"":0},', b"0]}")
    yield "fractions", filled(b'{"x":[', b".1e9,".replace(b".", b"1."), b"0]}")
    yield "long numbers", filled(b'{"x":[', b"9" * 999 + b",", b"0]}")
    yield "escapes", filled(b'{"name":"', b"\\u00e9", b'"}')
    yield "surrogates", filled(b'{"name":"', b"\\ud83d\\ude00", b'"}')
    yield "white space", filled(b"{", b" ", b"}")
    yield "the same key", filled(b"{", b'"a":0,', b'"b":0}')
    keys = b",".join(b'"%x":0' % n for n in range(0x10000, 0x10000 + size // 10))
    yield "different keys", (b"{" + keys)[: size - 20].rpartition(b",")[0] + b"}"


_FIELD = {
    "custom_csrs": ("common_name", "description", "country", "key_type"),
    "custom_certificates": ("certificate", "private_key", "policy", "custom_csr_id"),
    "tokens": ("name", "expires_on"),
    "zones": ("name", "type"),
    "accounts": ("name",),
    "ca": ("commonName", "notAfter", "csr", "certificate", "projectSlug", "ttl"),
    "pki": ("csr", "caId", "revocationReason", "notAfter", "ttl"),
    "auth": ("clientId",),
}


def long_text(characters: str, size: int, *fields: str) -> bytes:
    """An object whose fields are as long as fits, of these characters over and over."""
    each = size // len(fields) - 40
    text = (characters * (each // len(characters.encode()) + 1)).encode()[:each].decode("utf-8", "ignore")
    return json.dumps(dict.fromkeys(fields, text), ensure_ascii=False).encode()


def body_of(**fields: Any) -> bytes:
    return json.dumps({**BODY, **fields}).encode()


DISTINCT = "".join(map(chr, range(0x4E00, 0x9F00)))
LONGEST = ".".join(["a" * 59] * 4)


def size_of(route: str) -> int:
    if "/api/" in route:
        return INFISICAL
    writes_certificate = route.startswith(("POST", "PATCH")) and "custom_certificates" in route
    return CERTIFICATE if writes_certificate else CLOUDFLARE


def generic(routes: list[str]) -> Iterator[Case]:
    """What every route gets: the bombs where there is a body, long queries, and a long header."""
    yield Case("GET /-", "a path of 60,000 segments", places=lambda _: {"path": "/client/v4/" + "a/" * 60_000})
    yield Case("GET /-", "a path of escapes", places=lambda _: {"path": "/client/v4/" + "%c3%a9" * 20_000})
    for route in routes:
        method = route.partition(" ")[0]
        asker = "user" if "/user/" in route else "token"
        if method in {"POST", "PUT", "PATCH"}:
            for what, body in bombs(size_of(route)):
                yield Case(route, what, body, asker=asker)
            fields = next((names for word, names in _FIELD.items() if f"/{word}" in route), ("name",))
            for what, characters in (("a", "a"), ("Han", DISTINCT), ("dashes", "-"), ("dots", "a."), ("tabs", "\t")):
                yield Case(route, f"fields of {what}", long_text(characters, size_of(route), *fields), asker=asker)
        if method == "GET":
            for what, unit in (("a=&", "a=&"), ("%41=&", "%41=%41&"), ("page=%41&", "pag%65=%41&"), ("&", "&")):
                yield Case(route, f"120 kB of {what}", query="?" + unit * (120_000 // len(unit)), asker=asker)
            for what, unit in (("Accept", "a;q=1,"), ("Authorization", "Bearer ")):
                long = ((what.lower(), unit * (120_000 // len(unit))),)
                yield Case(route, f"120 kB of {what}", asker=asker, headers=long)


def csrs(ground: Ground) -> Iterator[Case]:
    fat = ground.ids["zones"][0]
    for kind in ("accounts/{account_id}", "zones/{zone_id}"):
        post = f"POST /client/v4/{kind}/custom_csrs"
        for what, sans in (
            ("150 long SANs", [f"{n:03}.{LONGEST[:240]}" for n in range(150)]),
            ("150 SANs of many labels", [f"{n:03}." + "a." * 120 + "example.com" for n in range(150)]),
            ("150 SANs of punycode", [f"{n}.xn--" + "9" * 59 + ".xn--" + "a" * 59 for n in range(150)]),
            ("150 SANs of punycode, deep", [f"{n}." + "xn--bcher-kva." * 17 + "de" for n in range(150)]),
            ("150 equal SANs", ["www.example.com"] * 150),
            ("150 SANs of Han", [DISTINCT[:130]] * 150),
            ("a SAN of 20,000 Han", [DISTINCT[:20_000]]),
            ("a SAN of 20,000 é", ["é" * 20_000]),
            ("a SAN of 64,000 letters", ["a" * 64_000]),
            ("30,000 SANs", [""] * 16_000),
        ):
            yield Case(post, what, json.dumps({**BODY, "sans": sans}, ensure_ascii=False).encode())
        yield Case(post, "as much as may be", body_of(description="\\" * 1024, name="é" * 255, state="é" * 128))
    for what, query in (
        ("page 1", ""),
        ("the last page", f"?per_page=50&page={CSRS // 50}"),
        ("a page beyond", "?per_page=50&page=9007199254740991"),
        ("by name, last page", f"?order=name&per_page=50&page={CSRS // 50}"),
        ("by account_tag, last page", f"?order=account_tag&direction=desc&per_page=50&page={CSRS // 50}"),
        ("a common name that is not there", "?common_name=nobody"),
        ("a SAN that is not there", "?san=nobody"),
        ("a name that is not there", "?name=nobody"),
        ("a name that is there", "?name=name%2077"),
        ("a key type that is not there", "?key_type=rsa2048"),
        ("a SAN that all have, last page", f"?san=b.example.com&per_page=50&page={CSRS // 50}"),
        ("all filters", "?san=b.example.com&key_type=p256v1&name=x&common_name=x"),
        ("filters of 100 kB", "?san=" + "a" * 100_000),
    ):
        yield Case("GET /client/v4/accounts/{account_id}/custom_csrs", what, query=query)
    at_fat: Any = lambda _: {"zone_id": fat}  # noqa: E731
    for what, query in (
        (f"{FAT_CSRS:,} of 150 SANs: page of 50", "?per_page=50"),
        (f"{FAT_CSRS:,} of 150 SANs: a SAN that is not there", "?san=nobody"),
        (f"{FAT_CSRS:,} of 150 SANs: a common name that is not there", "?common_name=nobody"),
        (f"{FAT_CSRS:,} of 150 SANs: the last page", f"?per_page=50&page={FAT_CSRS // 50}"),
    ):
        yield Case("GET /client/v4/zones/{zone_id}/custom_csrs", what, query=query, places=at_fat)
    one = "accounts/{account_id}/custom_csrs/{custom_csr_id}"
    nth: Any = lambda n: {"custom_csr_id": ground.ids["csrs"][n]}  # noqa: E731
    yield Case(f"GET /client/v4/{one}", "one", places=nth)
    yield Case(f"DELETE /client/v4/{one}", "one", places=lambda n: nth(n + 10))
    yield Case(f"DELETE /client/v4/{one}", "one that 100,000 certificates use", places=lambda _: nth(0))
    of_zone: Any = lambda n: {"zone_id": fat, "custom_csr_id": ground.ids["fat csrs"][n]}  # noqa: E731
    yield Case("GET /client/v4/zones/{zone_id}/custom_csrs/{custom_csr_id}", "150 SANs", places=of_zone)
    yield Case("DELETE /client/v4/zones/{zone_id}/custom_csrs/{custom_csr_id}", "150 SANs", places=of_zone)


def uploads(ground: Ground) -> Iterator[Case]:
    key = ec.generate_private_key(ec.SECP256R1())
    ca = root("Test Root")
    path: list[Any] = [ca]
    for number in range(19):
        path.append(path[-1].intermediate(f"Intermediate {number} " + "x" * 20))
    chain = pem(*(each.certificate for each in path[1:]))
    leaf = path[-1].sign(key.public_key(), x509.Name([]), hosts=["a.example.com"])
    small = [root(f"R{n}", key) for n in range(19)]
    wide = ca.sign(key.public_key(), x509.Name([]), hosts=[f"{n}.example.com" for n in range(9000)])
    many = pem(*(ca.sign(key.public_key(), x509.Name([]), hosts=["a.b"]) for _ in range(240)))
    secret = key_pem(key)
    large = rsa_of_known_primes(4253, 3217)
    texts: list[tuple[str, str, str]] = [
        ("a chain of 20, verified", pem(leaf) + chain, "ubiquitous"),
        ("a chain of 20, forced", pem(leaf) + chain, "force"),
        ("19 certificates of one key", pem(leaf) + pem(*(each.certificate for each in small)), "ubiquitous"),
        ("a leaf of 9,000 hosts", pem(wide), "force"),
        ("240 certificates", many, "force"),
        ("one certificate 300 times", pem(leaf) * 300, "force"),
        ("no PEM, 190 kB of base64", base64.b64encode(b"\x30" * 140_000).decode(), "force"),
        ("8,000 BEGINs", "-----BEGIN CERTIFICATE-----\n" * 8000, "force"),
        ("blocks of nothing", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" * 4000, "force"),
        ("BEGINs of many words", "-----BEGIN " + "A A" * 60_000, "force"),
    ]
    fat, wide_zone, busy = ground.ids["zones"]
    one = "/client/v4/zones/{zone_id}/custom_certificates/{custom_certificate_id}"
    of_fat: Any = lambda n: {"zone_id": fat, "custom_certificate_id": ground.ids["fat"][n + 600]}  # noqa: E731
    post = "POST /client/v4/zones/{zone_id}/custom_certificates"
    for what, text, method in texts:
        body = json.dumps({"certificate": text[:240_000], "private_key": secret, "bundle_method": method}).encode()
        yield Case(post, what, body, rounds=1 if what.startswith(("a chain", "a leaf")) else 3)
        yield Case(f"PATCH {one}", what, body, places=of_fat)
    for what, text in (("an RSA-7470 key", key_pem(large)), ("a key of 200 kB", "-----BEGIN PRIVATE KEY-----" * 8000)):
        yield Case(post, what, json.dumps({"certificate": pem(leaf), "private_key": text}).encode())
    get = "GET /client/v4/zones/{zone_id}/custom_certificates"
    for what, zone, query in (
        ("1,000 with chains of 250 kB, 50 a page", fat, "?per_page=50"),
        ("100 of 8,000 hosts and 250 kB, 50 a page", wide_zone, "?per_page=50"),
        (f"{CERTIFICATES:,}, page 1", busy, "?per_page=50"),
        (f"{CERTIFICATES:,}, the last page", busy, f"?per_page=50&page={CERTIFICATES // 50}"),
        (f"{CERTIFICATES:,}, those expired", busy, "?per_page=50&status=expired"),
        (f"{CERTIFICATES:,}, those pending", busy, "?per_page=50&status=pending"),
    ):
        yield Case(get, what, query=query, places=lambda _, zone=zone: {"zone_id": zone})  # type: ignore[misc]
    for what, name in (("a CA's name of 60 kB", "x" * 60_000), ("a CA outside", "outside")):
        yield Case(f"PUT {one}/keystead_renewal", what, json.dumps({"renew_with": name}).encode(), places=of_fat)
    yield Case(f"DELETE {one}/keystead_renewal", "of a certificate with a chain of 250 kB", places=of_fat)
    put = "PUT /client/v4/zones/{zone_id}/custom_certificates/prioritize"

    def order(ids: list[str]) -> Callable[[int], bytes]:
        return lambda n: json.dumps({"certificates": [{"id": each, "priority": n + 100} for each in ids]}).encode()

    yield Case(
        *(put, "500 of 1,000 with chains of 250 kB", order(ground.ids["fat"][:500])),
        places=lambda _: {"zone_id": fat},
    )
    yield Case(
        *(put, f"500 of {CERTIFICATES:,}", order(ground.ids["certificates"][:500])),
        places=lambda _: {"zone_id": busy},
    )
    unknown = [{"id": str(UUID(int=n)), "priority": 1} for n in range(900)]
    yield Case(put, "900 that are not there", json.dumps({"certificates": unknown}).encode())
    yield Case(f"GET {one}", "a chain of 250 kB", places=of_fat)
    yield Case(f"DELETE {one}", "a chain of 250 kB", places=of_fat)


def tenants(ground: Ground) -> Iterator[Case]:
    account = ground.own["account_id"]
    for query in ("?per_page=50", "?per_page=50&page=4", "?per_page=50&page=9007199254740991"):
        yield Case("GET /client/v4/accounts", f"{ACCOUNTS} accounts {query}", query=query, asker="user")
    for what, query in (
        ("page 1", "?per_page=50"),
        ("the last page", "?per_page=50&page=4000"),
        ("by account.name, descending", "?per_page=50&order=account.name&direction=desc"),
        ("a name that is not there", "?name=nobody.example.com"),
        ("an account name that is not there", "?account.name=nobody"),
        ("a type that none is", "?type=internal"),
        ("types of 100 kB", "?type=" + "full," * 20_000 + "full"),
    ):
        yield Case("GET /client/v4/zones", f"{ZONES:,}: {what}", query=query)
        yield Case("GET /client/v4/zones", f"{ZONES + 199_000:,} of 200 accounts: {what}", query=query, asker="user")
        yield Case("GET /client/v4/zones", f"{ZONES:,}, 270 of them named: {what}", query=query, asker="long")
    yield Case("DELETE /client/v4/accounts/{account_id}", "a full one")
    yield Case("DELETE /client/v4/zones/{zone_id}", "20,000 CSRs", places=lambda _: {"zone_id": ground.ids["zones"][0]})
    yield Case(
        *("DELETE /client/v4/zones/{zone_id}", f"{CERTIFICATES:,} certificates"),
        places=lambda _: {"zone_id": ground.ids["zones"][2]},
    )
    for route in ("GET /client/v4/accounts/{account_id}", "GET /client/v4/zones/{zone_id}"):
        yield Case(route, "one")
    for route in ("POST /client/v4/zones",):
        for what, name in (("Han", DISTINCT[:20_000]), ("labels", "a." * 30_000), ("one more", "new.example.com")):
            body = json.dumps({"account": {"id": account}, "name": name}, ensure_ascii=False).encode()
            yield Case(route, f"a name of {what}", body)
    yield Case("POST /client/v4/accounts", "one more than 200", b'{"name":"x"}', asker="user")
    yield Case("PUT /client/v4/accounts/{account_id}", "its name", b'{"name":"Account a"}')
    yield Case("PATCH /client/v4/zones/{zone_id}", "paused", b'{"paused":false}')


def of_tokens(ground: Ground) -> Iterator[Case]:
    account = ground.own["account_id"]
    name = f"com.cloudflare.api.account.{account}"
    ids = {group.name: group.id.hex for group in GROUPS}
    group = {"id": ids["Zone Read"]}
    (text,) = ground.ids["policies"]

    def token(policies: Any, **fields: Any) -> bytes:
        return json.dumps({"name": "a token", "policies": policies, **fields}, separators=(",", ":")).encode()

    def policy(resources: Any, groups: Any) -> Json:
        return {"effect": "allow", "resources": resources, "permission_groups": groups}

    networks = [f"10.{n}.0.0/16" for n in range(100)]
    deep: Any = "*"
    for _ in range(4):
        deep = {f"{name}": deep}
    variants: list[tuple[str, bytes]] = [
        ("as much as may be", token(json.loads(text))),
        (
            "50 groups and 300 names, 50 times",
            token([policy({name: "*", **{f"{name[:-3]}{n}": "*" for n in range(5)}}, [group] * 18) for _ in range(50)]),
        ),
        ("1,000 groups", token([policy({name: "*"}, [{"id": "x"}] * 5000)])),
        (
            "50 groups, one resource with a long value",
            token([policy({name: "*", "x": "y" * 60_000}, [{"id": ids["Zone Read"]}] * 50)]),
        ),
        ("50 groups, 300 resources", token([policy({f"{n:03}" + "r" * 190: "*" for n in range(300)}, [group] * 50)])),
        ("50 groups, 6,000 resources", token([policy({f"{n:04}": "*" for n in range(6000)}, [group] * 50)])),
        ("resources of resources", token([policy({name: {f"{n}": deep for n in range(250)}}, [group])])),
        (
            "100 networks, twice",
            token([policy({name: "*"}, [group])], condition={"request_ip": {"in": networks, "not_in": networks}}),
        ),
        ("5,000 networks", token([policy({name: "*"}, [group])], condition={"request_ip": {"in": networks * 40}})),
        ("a network of 60 kB", token([policy({name: "*"}, [group])], condition={"request_ip": {"in": ["1" * 60_000]}})),
    ]
    for kind, asker in (("accounts/{account_id}/tokens", "token"), ("user/tokens", "user")):
        for what, body in variants:
            yield Case(f"POST /client/v4/{kind}", what, body, asker=asker)
            if kind.startswith("accounts"):
                yield Case(f"POST /client/v4/{kind}", f"{what}, by one as large", body, asker="long")
        for query in ("?per_page=50", "?per_page=50&page=20"):
            yield Case(f"GET /client/v4/{kind}", f"1,000 of 48 kB {query}", query=query, asker=asker)
        yield Case(f"GET /client/v4/{kind}/permission_groups", "all", asker=asker)
        yield Case(f"GET /client/v4/{kind}/verify", "its own", asker="long" if kind.startswith("acc") else "of user")
    nth: Any = lambda n: {"token_id": UUID(ground.ids["tokens"][n]).hex}  # noqa: E731
    one = "/client/v4/accounts/{account_id}/tokens/{token_id}"
    yield Case(f"GET {one}", "48 kB", places=nth)
    yield Case(f"PUT {one}", "48 kB", variants[0][1], places=nth, asker="long")
    yield Case(f"PUT {one}/value", "48 kB", places=nth)
    yield Case(f"DELETE {one}", "48 kB", places=lambda n: nth(n + 20))
    narrow = token([policy({name: "*"}, [{"id": ids["Account Settings Read"]}])])
    lone = {"account_id": ground.ids["lone"][0], "token_id": UUID(ground.ids["administrators"][0]).hex}
    alone: Any = lambda _: lone  # noqa: E731
    yield Case(f"DELETE {one}", "itself, the last of 1,000 that may manage them", places=alone, asker="lone")
    group = policy({f"com.cloudflare.api.account.{lone['account_id']}": "*"}, [{"id": ids["Account Settings Read"]}])
    yield Case(
        f"PUT {one}", "itself, the last of 1,000 that may manage them", token([group]), places=alone, asker="lone"
    )
    mine: Any = lambda _: {"token_id": UUID(ground.ids["of user"][0]).hex}  # noqa: E731
    for route, body in ((f"GET {_MINE}", b""), (f"PUT {_MINE}", narrow), (f"PUT {_MINE}/value", b"")):
        yield Case(route, "one of 300 names, 200 accounts", body, places=mine, asker="of user")
    yield Case("GET /client/v4/user/tokens", "by one of 270 names, 200 accounts", asker="of user")
    yield Case(f"DELETE {_MINE}", "one that is not there", places=lambda _: {"token_id": uuid4().hex}, asker="user")


_MINE = "/client/v4/user/tokens/{token_id}"


def logs(_: Ground) -> Iterator[Case]:
    route = "GET /client/v4/accounts/{account_id}/logs/audit"
    span = "?since=2020-01-01&before=2100-01-01"
    yield Case(route, "1,000 rows", query=f"{span}&limit=1000")
    yield Case(route, "1,000 rows, the oldest first", query=f"{span}&limit=1000&direction=asc")
    from keystead.audit.log import FIELDS

    for field in FIELDS:
        yield Case(route, f"{field} that none has", query=f"{span}&limit=1000&{field}=nobody")
    yield Case(route, "action_type.not", query=f"{span}&action_type.not=create")
    hundred = "".join(f"&raw_uri=nobody{n}" for n in range(100))
    yield Case(route, "100 values that none has", query=f"{span}{hundred}")
    five = "".join(f"&{field}.not=nobody{n}" for n in range(5) for field in FIELDS if field != "id")
    yield Case(route, "five .not of each field, and an id", query=f"{span}{five[:6000]}&id=nobody")


def authorities(ground: Ground) -> Iterator[Case]:
    signing, expired, versions = ground.ids["cas"]
    yield Case("GET /api/v1/cert-manager/ca/internal", "1,000 CAs", query="?projectId={account_id}")
    key = ec.generate_private_key(ec.SECP256R1())
    small = csr_of(key, "a.example.com")
    names = x509.SubjectAlternativeName([x509.DNSName(f"{n}.example.com") for n in range(5000)])
    wide = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, False)
        .sign(key, hashes.SHA256())
    )
    wide_csr = bare_csr(wide)
    uris = ",".join(f"https://{n}.example.com/" + "x" * 2000 for n in range(150))
    hosts = ",".join(f"{n:03}.{LONGEST[:200]}" for n in range(150))
    leaf: Json = {"csr": small, "ttl": "1d"}
    signs: list[tuple[str, Json]] = [
        ("one name", leaf),
        ("a CSR of 5,000 names", {**leaf, "csr": wide_csr}),
        ("150 hosts", {**leaf, "altNames": hosts}),
        ("150 URIs of 2,000 characters", {**leaf, "altNames": uris}),
        ("500,000 commas", {**leaf, "altNames": "," * 500_000}),
        ("a name of 900 kB", {**leaf, "altNames": "a" * 900_000}),
        ("an address of 900 kB", {**leaf, "altNames": "1." * 450_000}),
        ("an email of 900 kB", {**leaf, "altNames": "a@" + "b." * 450_000}),
        ("a URI of 900 kB", {**leaf, "altNames": "a://" + "b" * 900_000}),
        ("300 names of Han", {**leaf, "altNames": ",".join([DISTINCT[:1000]] * 290)}),
        ("a common name of 900 kB", {**leaf, "commonName": "a" * 900_000}),
        ("a common name of Han", {**leaf, "commonName": DISTINCT * 14}),
        ("usages of 300,000", {**leaf, "keyUsages": ["x"] * 200_000}),
        ("8,000 BEGINs", {**leaf, "csr": "-----BEGIN CERTIFICATE REQUEST-----\n" * 3500}),
    ]
    for prefix in ("/api/v1/pki/ca", "/api/v1/cert-manager/ca/internal"):
        one = f"{prefix}/{{ca_id}}"
        for what, fields in signs:
            yield Case(f"POST {one}/sign-certificate", what, json.dumps(fields, ensure_ascii=False).encode())
            if "csr" in fields and "CSR" not in what:
                issue = {**fields, "commonName": fields.get("commonName", "a.example.com")}
                yield Case(f"POST {one}/issue-certificate", what, json.dumps(issue, ensure_ascii=False).encode())
        for tail in ("", "/certificate"):
            yield Case(f"GET {one}{tail}", "one")
        yield Case(f"GET {one}/csr", "of a root")
        yield Case(f"GET {one}/ca-certificates", "100 with chains of 64 kB", places=lambda _: {"ca_id": versions})
        for tail in ("/crl", "/crls"):
            yield Case(f"GET {one}{tail}", f"{REVOKED:,} revoked", rounds=2)
        yield Case(f"PATCH {one}", "nothing", b"{}")
        yield Case(f"POST {one}/renew", "a root", b'{"type":"existing","notAfter":"2065"}', rounds=2)
        intermediate = {"csr": wide_csr, "notAfter": "2030"}
        yield Case(f"POST {one}/sign-intermediate", "5,000 names", json.dumps(intermediate).encode())
        chain = pem(*(root(f"R{n}", key).certificate for n in range(100)))
        imported = {"certificate": chain[:600], "certificateChain": chain[:64_000]}
        yield Case(f"POST {one}/import-certificate", "100 certificates", json.dumps(imported).encode())
        yield Case(f"GET {one}/certificates/{{ca_cert_id}}/der", "one", asker="nobody")
    yield Case("POST /api/v1/pki/ca", "the 1,001st", json.dumps(NEW_CA | {"projectSlug": "a"}).encode())
    named = {**leaf, "caId": signing}
    yield Case("POST /api/v1/pki/certificates/sign-certificate", "one name", json.dumps(named).encode())
    serial = "/api/v1/pki/certificates/{serial_number}"
    nth: Any = lambda n: {"serial_number": ground.ids["serials"][n]}  # noqa: E731
    yield Case(f"GET {serial}", "one", places=nth)
    yield Case(f"GET {serial}/certificate", "one", places=nth)
    revoke = b'{"revocationReason":"UNSPECIFIED"}'
    yield Case(f"POST {serial}/revoke", f"one more than {REVOKED:,}", revoke, places=nth, rounds=2)
    yield Case("GET /api/v1/pki/crl/{crl_id}/der", f"{REVOKED:,} revoked", asker="nobody", rounds=2)
    login = json.dumps({"clientId": str(uuid4()), "clientSecret": "x"}).encode()
    yield Case("POST /api/v1/auth/universal-auth/login", "an unknown one", login, asker="nobody")
    yield Case("DELETE /api/v1/pki/ca/{ca_id}", f"{ISSUED:,} that are in use")
    yield Case(
        *("DELETE /api/v1/cert-manager/ca/internal/{ca_id}", f"{ISSUED:,} that have expired"),
        places=lambda _: {"ca_id": expired},
        rounds=1,
    )


NEW_CA = {"type": "root", "commonName": "One more", "keyAlgorithm": "EC_prime256v1"}


def bare_csr(csr: x509.CertificateSigningRequest) -> str:
    from cryptography.hazmat.primitives import serialization

    return csr.public_bytes(serialization.Encoding.PEM).decode()


def pages(_: Ground) -> Iterator[Case]:
    for route in (
        *("GET /api/status", "GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json", "GET /docs"),
        *("GET /docs/start.js", "GET /docs/errors"),
    ):
        yield Case(route, "as it is", asker="nobody")
    yield Case("GET /docs/{name}", "the largest", places=lambda _: {"name": "swagger-ui-bundle.js"}, asker="nobody")


def newer(_: Ground) -> Iterator[Case]:
    yield from itertools.starmap(Case, profile_cases.cases())


OWN = (csrs, uploads, tenants, of_tokens, logs, authorities, newer, pages)


# Measuring.


def connections(database: str) -> list[Path]:
    """The processes of PostgreSQL that serve a database."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text() if process.name.isdigit() else ""
            if words.startswith("postgres:") and database in words:
                found.append(process)
    return found


def cpu_of(processes: list[Path]) -> dict[Path, int]:
    """Nanoseconds of CPU of each that is still there."""
    found = {}
    for process in processes:
        with contextlib.suppress(OSError):
            found[process] = int((process / "schedstat").read_text().split()[0])
    return found


async def send(ground: Ground, case: Case, number: int) -> tuple[int, int]:
    """Status and length of the answer."""
    places = {**ground.own, **case.places(number)}
    method, _, path = case.route.partition(" ")
    path = places.get("path", path)
    for name, value in places.items():
        path = path.replace(f"{{{name}}}", value)
    body = case.body(number) if callable(case.body) else case.body
    own = {name.lower(): value for name, value in ground.askers[case.asker].items()}
    headers = {**own, **dict(case.headers), "content-length": str(len(body))}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": case.query.removeprefix("?").replace("{account_id}", ground.own["account_id"]).encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 5555),
        "state": {},
    }
    status, length, sent = 0, 0, False

    async def receive() -> Any:
        nonlocal sent
        if sent:
            await asyncio.sleep(3600)
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def answer(message: Any) -> None:
        nonlocal status, length
        status = message.get("status", status)
        length += len(message.get("body", b""))

    await ground.world.app(scope, receive, answer)
    return status, length


async def measure(ground: Ground, case: Case) -> Cost:
    worker, postgres = [], []
    status, processes = 0, connections(ground.database)
    for number in range(case.rounds):
        before, begun = cpu_of(processes), time.process_time()
        status, _ = await send(ground, case, number)
        worker.append((time.process_time() - begun) * 1000)
        postgres.append(sum(after - before[process] for process, after in cpu_of(processes).items()) / 1e6)
    tracemalloc.start()
    tracemalloc.reset_peak()
    held, _ = tracemalloc.get_traced_memory()
    await send(ground, case, case.rounds)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost(case.route, case.what, min(worker), min(postgres), (peak - held) / 1e6, status)


@contextlib.asynccontextmanager
async def grounds(cluster: postgres.Cluster, folder: Path) -> AsyncIterator[Ground]:
    admin: db.Connection = await asyncpg.connect(cluster.dsn)
    await admin.execute("CREATE DATABASE blank")
    await schema.migrate(cluster.address("blank"))
    async with new_database(cluster) as url:
        name = url.rpartition("/")[2].partition("?")[0]
        # What helpers do could not be counted; and what a query costs is the sum all the same.
        await admin.execute(f"ALTER DATABASE {name} SET max_parallel_workers_per_gather = 0")
        # The judgement of all that was answered is the tests', and takes minutes here.
        stack = contextlib.AsyncExitStack()
        world = await stack.enter_async_context(new_world(url, folder))
        ids = await fill(world, url)
        yield await _ground(world, name, ids)
    await admin.close()


async def _ground(world: World, name: str, ids: dict[str, list[str]]) -> Ground:
    async def some(sql: str, *values: object) -> list[str]:
        return [str(row[0]) for row in await world.database.fetch(sql, *values)]

    account = world.a.account
    user = await accounts.find_user(world.database, world.a.email)
    (text,) = ids["policies"]
    everywhere = [{"com.cloudflare.api.account.*": "*", "com.cloudflare.api.account.zone.*": "*"}]
    groups = [{"id": group.id.hex, "name": group.name} for group in GROUPS]
    wide = [
        {"id": uuid4().hex, "effect": "allow", "resources": each, "permission_groups": groups} for each in everywhere
    ]
    named = {f"com.cloudflare.api.account.zone.{each}": "*" for each in ids["in account"][:260]}
    wide.append({"id": uuid4().hex, "effect": "allow", "resources": named, "permission_groups": groups})
    issue = await make_token(world.services, account, policies=json.dumps(wide[:1]))
    of_user = await make_token(world.services, account, policies=json.dumps(wide), user=user)
    long = json.dumps([*json.loads(text)[:-1], *wide[:1]])
    askers = {
        "nobody": {},
        "token": {"Authorization": f"Bearer {issue}"},
        "user": {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key},
        "long": {"Authorization": f"Bearer {await make_token(world.services, account, policies=long)}"},
        "of user": {"Authorization": f"Bearer {of_user}"},
        "lone": {"Authorization": f"Bearer {ids['lone'][1]}"},
    }
    ca_cert = await some("SELECT id FROM ca_certificates WHERE ca_id = $1", UUID(ids["cas"][0]))
    own = {
        "account_id": account.id.hex,
        "zone_id": world.a.zone.id.hex,
        "ca_id": ids["cas"][0],
        "crl_id": ids["cas"][0],
        "ca_cert_id": ca_cert[0],
        "custom_csr_id": str(UUID(int=1)),
        "custom_certificate_id": str(UUID(int=1)),
        "token_id": UUID(int=1).hex,
        "name": "nothing",
        "serial_number": "00",
    }
    ids |= {
        "csrs": await some("SELECT md5('csrcsr' || n)::uuid FROM generate_series(1, 50) n"),
        "fat csrs": await some("SELECT md5('csrfat csr' || n)::uuid FROM generate_series(1, 50) n"),
        "fat": await some("SELECT md5('fat' || n)::uuid FROM generate_series(1, 700) n"),
        "certificates": await some("SELECT md5('certificate' || n)::uuid FROM generate_series(1, 600) n"),
        "tokens": await some("SELECT md5('token' || n)::uuid FROM generate_series(1, 100) n"),
        "administrators": await some(
            "SELECT id FROM tokens WHERE account_id = $1 AND name = 'a token'", UUID(ids["lone"][0])
        ),
        "of user": await some("SELECT id FROM tokens WHERE user_id = $1", user.id),
        "serials": await some(
            "SELECT serial FROM issued_certificates "
            "WHERE ca_id = $1 AND revoked_at IS NULL AND profile = 'leaf' LIMIT 50",
            UUID(ids["cas"][0]),
        ),
    }
    return Ground(world, name, own, askers, ids)


def served(routes: Litestar) -> list[str]:
    """Every method and path that the application has, but for the console's, which are files in memory."""
    return [
        f"{method} {_route(route.path)}"
        for route in routes.routes
        for method in sorted(route.methods - {"OPTIONS"})
        if route.path != "/" and not route.path.startswith("/console")
    ]


def without(routes: list[str], cases: list[Case]) -> list[str]:
    """The routes that have no case."""
    return sorted(set(routes) - {case.route for case in cases})


def told(cost: Cost, before: dict[tuple[str, str], Cost]) -> str:
    was = before.get((cost.route, cost.what))
    earlier = f"{was.worker:,.0f} / {was.postgres:,.0f} / {was.memory:,.1f}" if was else ""
    figures = f"{cost.worker:,.0f} | {cost.postgres:,.0f} | {cost.memory:,.1f}"
    return f"| `{cost.route}` | {cost.what} | {cost.status} | {figures} | {earlier} |"


async def run(options: argparse.Namespace, before: dict[tuple[str, str], Cost]) -> tuple[list[Cost], list[str]]:
    """What was measured, and the routes without a case of their own."""
    found = []
    with tempfile.TemporaryDirectory(prefix="costs-") as name, postgres.running(Path(name) / "cluster") as cluster:
        async with grounds(cluster, Path(name)) as ground:
            routes = served(ground.world.app._app)
            own = [case for make in OWN for case in make(ground)]
            missing = without(routes, own)
            cases = [*generic(routes), *own]
            print("| route | what | status | worker ms | PostgreSQL ms | MB | before: ms / ms / MB |")
            print("|---|---|---|---|---|---|---|", flush=True)
            for case in cases:
                if options.only not in f"{case.route} {case.what}":
                    continue
                cost = await measure(ground, case)
                found.append(cost)
                was = before.get((cost.route, cost.what))
                if options.all or cost.is_high or cost.status >= 500 or (was and was.is_high):
                    print(told(cost, before), flush=True)
    return found, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="tell all, also what costs little")
    parser.add_argument("--only", default="", help="those whose route and name hold this")
    parser.add_argument("--save", type=Path, help="write the figures into this file")
    parser.add_argument("--beside", type=Path, help="tell those of such a file beside them")
    options = parser.parse_args()
    earlier = msgspec.json.decode(options.beside.read_bytes(), type=list[Cost]) if options.beside else []
    found, missing = uvloop.run(run(options, {(cost.route, cost.what): cost for cost in earlier}))
    if options.save:
        options.save.write_bytes(msgspec.json.encode(found))
    print(f"\n{len(found)} requests; {sum(cost.is_high for cost in found)} above {MILLISECONDS} ms or {MEGABYTES} MB")
    for route in missing:
        print(f"no case of its own: {route}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
