"""What bad input gets in Infisical's dialect, and that nothing is stored by it (contract-infisical)."""

import base64
import inspect
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st
from litestar.exceptions import ClientException, HTTPException
from support import authority as outside
from support.world import Tenant, World, make_token, new_world

from keystead import errors, times
from keystead.ca import authorities, crls, leaves
from keystead.caller import Caller, RequestInfo
from keystead.config import RateLimit
from keystead.custody import keyring
from keystead.errors import Clash, Denial, Limit, Problem, Rule, Scheme, Thing
from keystead.identity import tokens
from keystead.identity.tokens import Token
from keystead.infisical import ca as wire_ca
from keystead.infisical import reading, wire
from keystead.infisical.auth import LoginRequest
from keystead.infisical.leaves import SignRequest, leaf_request
from keystead.infisical.wire import ApiError, ValidationFailure
from keystead.server import first_start
from keystead.web import bodies
from keystead.x509 import pem, pkix
from keystead.x509.names import NamePolicy

V1 = "/api/v1"
PREFIXES = ("/pki/ca", "/cert-manager/ca/internal")
LOGIN = "/auth/universal-auth/login"
WORDS = {
    400: "BadRequest",
    401: "UnauthorizedError",
    403: "PermissionDenied",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "PayloadTooLarge",
    422: "ValidationFailure",
    429: "RateLimitExceeded",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}
MALFORMED = "The provided access token is malformed. Please use a valid token or generate a new one and try again."
EXPIRED = "Your token has expired. Please re-authenticate."
NOT_ALLOWED = "You are not allowed to access this resource"
INVALID = "Invalid credentials"
INACTIVE, DISABLED, OVER = "CA is not active: it …", "CA is disabled", "CA is expired: …"
NO_CERTIFICATE = "CA does not have a certificate installed"
BAD_CHAIN, NO_CHAIN = "Invalid certificate chain: …", "Failed to parse certificate chain: certificate …"
TOO_DEEP = "Failed to issue intermediate certificate due to CA path length constraint: …"
TOO_LONG = "The requested path length constraint exceeds the CA's allowed path length: at most …"
TOO_EARLY = "notBefore date is before CA certificate's notBefore date: that is …"
REVERSED = "notBefore date is after notAfter date: they are …"
TOO_LATE = "notAfter date is after CA certificate's notAfter date: …"
# What clients are known to see; any other text is ours.
KNOWN = {INACTIVE, DISABLED, OVER, NO_CERTIFICATE, TOO_DEEP, TOO_LONG, TOO_EARLY, REVERSED, TOO_LATE}
MISMATCH = "Imported certificate does not match CA configuration: …"

NOW = datetime.now(UTC).replace(microsecond=0)
YEAR = NOW.year + 3
CA: dict[str, Any] = {
    "projectSlug": "a",
    "type": "root",
    "commonName": "Root CA",
    "organization": "Keystead",
    "keyAlgorithm": "EC_prime256v1",
}
SERVER = ec.generate_private_key(ec.SECP256R1())
UNKNOWN = "7b163417-1d2b-4c84-a38a-2fb7a0cd7752"
# What nobody can mean, and what a database, a terminal or a serializer may stumble over.
UNPRINTABLE = ("\x00", "a\x00b", "\ud800", "a\udfffb", "a\u202eb")
HOSTILE = (*UNPRINTABLE, "'; DROP TABLE accounts; --", "%s%n{0}${x}", "x" * 100_000)
DSA_CSR = """-----BEGIN CERTIFICATE REQUEST-----
MIICSjCCAfgCAQAwLzETMBEGA1UECgwKVGVzdCBUcnVzdDEYMBYGA1UEAwwPZHNh
LmV4YW1wbGUuY29tMIIBvjCCATMGByqGSM44BAEwggEmAoGBANj5+CXF+kPdQjUc
T+lLJtgT3h+W+gR3fAqaAx2VXty3HQ2Kz2/QfSN8rUBEhphqE3sOrx2zUL9fD3Vg
xDQdIw5+9PRdM3kifr1nDqMJTgrqaJr8uackXvSwE+r7UJ54cMxOnW5YkQICSWYi
C3WhCGez6yGx+V1yzxzaqaQeY6z3Ah0AlWisisqtUtjZvMZ+q0eGY5S/upVgjvBY
gP7kqQKBgBqYcDJ5Jp5Nm2c0il2ioOOp9lt0v0wEuKNM9hWpMrQkC2t1WR4JwIUC
tNEfB2Wns4oaEbyF6bTBSMHIno63PMmT8WAcbQIvkNfV4VO9PwnamKXG7TX2s1iE
6kIRIqvuu6h582Xydwm7yR2dLBUIy5k9lPbloQH1bwcamb6hUCUkA4GEAAKBgA10
bhXWwiz3+e0e//q/gBMyaF0j4DImSYl5a6W90bDvWhaRpEG7wMcrTCZXTQgzQEj9
InPOHi5Q1Yht7Qk8lyHvLqzUskQFXdhlLebZdauSEgYgzWpSp4dV3oGv9WFh/EEl
t90EVaAKc/em+XyJ2sPqAqi8QiaGxvrpckqCeSQsoAAwCwYJYIZIAWUDBAMCAz8A
MDwCHDRcWAw1NoLqDCP23AgUiqvMfa6AP30ucmNaDZMCHHzTl4waw3lhAlpXr5/T
UYkm+C6bx4IrrMF+J6k=
-----END CERTIFICATE REQUEST-----
"""


class Route(NamedTuple):
    """A guarded call: `needs` are the permission groups without which it is refused, and `body` changes nothing."""

    method: str
    path: str
    action: str
    needs: tuple[str, ...]
    body: Any = None


_OF_CA = (
    Route("GET", "", "read", ("Read",)),
    Route("PATCH", "", "edit", ("Write",), {}),
    Route("DELETE", "", "delete", ("Write",)),
    Route("GET", "/csr", "create", ("Write",)),
    Route("POST", "/sign-intermediate", "sign-intermediate", ("Write", "Sign"), {"csr": "x", "notAfter": str(YEAR)}),
    Route("POST", "/import-certificate", "create", ("Write",), {"certificate": "x", "certificateChain": "x"}),
    Route("GET", "/certificate", "read", ("Read",)),
    Route("GET", "/ca-certificates", "read", ("Read",)),
    Route("POST", "/renew", "renew", ("Write", "Sign"), {"type": "existing", "notAfter": "2001"}),
    Route("POST", "/sign-certificate", "issue", ("Sign",), {"csr": "x", "ttl": "1d"}),
    Route("POST", "/issue-certificate", "issue-key", ("Issue Key",), {"commonName": "no host", "ttl": "1d"}),
    Route("GET", "/crl", "read", ("Read",)),
    Route("GET", "/crls", "read", ("Read",)),
)
OF_CA = [route._replace(path=f"{prefix}/{{ca}}{route.path}") for prefix in PREFIXES for route in _OF_CA]
OF_SERIAL = [
    Route("GET", "/pki/certificates/{serial}", "read", ("Read",)),
    Route("GET", "/pki/certificates/{serial}/certificate", "read", ("Read",)),
    Route("POST", "/pki/certificates/{serial}/revoke", "revoke", ("Write",), {"revocationReason": "WHIM"}),
]
SIGN_BY_BODY = "/pki/certificates/sign-certificate"
OTHERS = [
    Route("POST", "/pki/ca", "create", ("Write",), CA),
    Route("GET", "/cert-manager/ca/internal?projectId={project}", "read", ("Read",)),
    Route("GET", "/cert-manager/ca?projectId={project}", "read", ("Read",)),
    Route("POST", SIGN_BY_BODY, "issue", ("Sign",), {"caId": "{ca}", "csr": "x", "ttl": "1d"}),
]
ROUTES = [*OF_CA, *OF_SERIAL, *OTHERS]


async def call(world: World, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    """A call below /api/v1 with A's token, unless there is another Authorization."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return await world.http.request(method, V1 + path, content=content, headers={**world.a.bearer, **headers})


def refused(
    answer: httpx.Response, status: int, message: str | None = None, case: Any = "", word: str = ""
) -> dict[str, Any]:
    """The body of an error, held to the contract to the letter; a message that ends with … is the beginning of one."""
    assert answer.status_code == status, (case, answer.status_code, answer.text[:300])
    assert answer.headers["content-type"].partition(";")[0] == "application/json", case
    body: dict[str, Any] = answer.json()
    denied = {"details"} if status == 403 and not word else set()
    assert body.keys() == {"reqId", "statusCode", "message", "error"} | denied, case
    assert re.fullmatch(r"req-[0-9A-Za-z]{14}", body["reqId"]), case
    assert body["reqId"] == answer.headers["x-request-id"], case
    assert (body["statusCode"], body["error"]) == (status, word or WORDS[status]), case
    if denied:
        assert isinstance(body["details"], list), case
    if status == 422:
        assert body["message"], case
        for issue in body["message"]:
            assert issue["code"], case
            assert all(isinstance(step, str | int) for step in issue["path"]), case
            assert isinstance(issue["message"], str), case
            assert issue["message"].isprintable(), case
    else:
        assert isinstance(body["message"], str), case
        assert body["message"], case
    if message is not None:
        wanted = message.removesuffix("…")
        assert body["message"][: len(wanted) if message.endswith("…") else None] == wanted, (case, body["message"])
    return body


def paths_of(body: dict[str, Any]) -> list[str]:
    return sorted({".".join(map(str, issue["path"])) for issue in body["message"]})


async def stored(world: World) -> dict[str, int]:
    """How many rows there are of what a refused call must not make or destroy."""
    tables = ("certificate_authorities", "ca_certificates", "issued_certificates", "private_keys")
    columns = ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables)
    row = await world.database.fetchrow(f"SELECT {columns}")
    return dict(row or ())


async def new_ca(world: World, tenant: Tenant | None = None, **fields: Any) -> str:
    tenant = tenant or world.a
    answer = await call(world, "POST", "/pki/ca", {**CA, "projectSlug": tenant.account.slug, **fields}, **tenant.bearer)
    assert answer.status_code == 200, answer.text
    ca_id: str = answer.json()["ca"]["id"]
    return ca_id


async def csr_of_ca(world: World, ca_id: str) -> str:
    answer = await call(world, "GET", f"/pki/ca/{ca_id}/csr")
    csr: str = answer.json()["csr"]
    return csr


async def chained(world: World, parent: str, name: str = "Issuing CA", **fields: Any) -> str:
    """An intermediate below a CA of A, active."""
    ca_id = await new_ca(world, type="intermediate", commonName=name)
    body = {"csr": await csr_of_ca(world, ca_id), "notAfter": f"{YEAR}", **fields}
    signed = (await call(world, "POST", f"/pki/ca/{parent}/sign-intermediate", body)).json()
    body = {"certificate": signed["certificate"], "certificateChain": signed["certificateChain"]}
    assert (await call(world, "POST", f"/pki/ca/{ca_id}/import-certificate", body)).status_code == 200
    return ca_id


async def new_leaf(world: World, ca_id: str, tenant: Tenant | None = None) -> str:
    """The serial number of a new certificate."""
    body = {"csr": csr(SERVER, outside.subject("www.keystead.dev")), "ttl": "1d"}
    headers = (tenant or world.a).bearer
    answer = await call(world, "POST", f"/pki/ca/{ca_id}/sign-certificate", body, **headers)
    assert answer.status_code == 200, answer.text
    serial: str = answer.json()["serialNumber"]
    return serial


async def new_token(world: World, tenant: Tenant, **fields: Any) -> tuple[Token, str]:
    value = await make_token(world.services, tenant.account, **fields)
    return (await tokens.list_(world.database))[-1], value


def hours(number: float) -> str:
    """So many hours from now."""
    return f"{NOW + timedelta(hours=number):%Y-%m-%dT%H:%M:%SZ}"


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def csr(key: CertificateIssuerPrivateKeyTypes, name: x509.Name, *extensions: x509.ExtensionType) -> str:
    """A CSR, also one with an extension twice, which the library's builder refuses to make."""
    wanted = [x509.Extension(extension.oid, False, extension) for extension in extensions]
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder(name, wanted).sign(key, digest)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def tampered(request: str) -> str:
    """The same CSR with another last bit, which is the signature's."""
    (found,) = pem.blocks(request)
    der = base64.b64decode("".join(found.body.split()))
    return block(der[:-1] + bytes([der[-1] ^ 1]))


def block(der: bytes) -> str:
    """Any bytes as a CERTIFICATE REQUEST block."""
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def sans(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


@cache
def weak_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)


def operator() -> Caller:
    return first_start.operator()


# --- the gate ---


async def test_who_does_not_say_well_who_asks_is_told_so_before_anything_else(world: World) -> None:
    """Missing, malformed, unknown and expired tokens have their texts on every call, whatever its body and ids are."""
    past, coming = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
    _, expired = await new_token(world, world.a, expires_on=past)
    _, early = await new_token(world, world.a, not_before=coming)
    off, disabled = await new_token(world, world.a)
    await tokens.set_status(world.database, operator(), off, active=False)
    gone, revoked = await new_token(world, world.a)
    await tokens.revoke(world.database, operator(), gone)
    token = world.a.token
    unknown, malformed, over = (401, NOT_ALLOWED, ""), (403, MALFORMED, "TokenError"), (403, EXPIRED, "TokenError")
    missing = (401, "Token missing", "")
    cases: list[tuple[str | None, tuple[int, str, str]]] = [
        (None, missing),
        (f"Bearer {tokens.new_token()}", unknown),
        (f"Bearer {tokens.new_token(tokens.ACCESS_TOKEN)}", unknown),
        (f"Bearer {disabled}", unknown),
        (f"Bearer {revoked}", unknown),
        (f"Bearer {early}", unknown),
        (f"Bearer {expired}", over),
        *[
            (f"Bearer {value}", malformed)
            for value in (
                "x",
                "",
                token[:-1],
                token + "0",
                token + " x",
                " " + token,
                token.swapcase(),
                token.replace("kst_", "ksa_"),
                world.a.key,
                "eyJhbGciOiJIUzI1NiJ9.e30.x",
                "x" * 5000,
                "é" * 50,
            )
        ],
    ]
    before = await stored(world)
    everywhere = {None, "Bearer x", f"Bearer {disabled}", f"Bearer {expired}"}
    for value, (status, message, word) in cases:
        for route in ROUTES if value in everywhere else ROUTES[:2]:
            headers = {} if value is None else {b"Authorization": value.encode("latin-1")}
            url = V1 + route.path.format(ca="x", serial="x", project="x")
            answer = await world.http.request(route.method, url, content=b"{", headers=headers)
            refused(answer, status, message, (value, route), word)
    # The other dialect's headers are none here.
    pair = {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}
    refused(await world.http.get(f"{V1}/pki/ca/x", headers=pair), *missing[:2])
    assert (await call(world, "PATCH", f"/pki/ca/{await new_ca(world)}", {}, **bearer(token))).status_code == 200
    assert (await stored(world))["certificate_authorities"] == before["certificate_authorities"] + 1


async def test_every_action_needs_its_permission_groups(world: World) -> None:
    """Each group opens the calls it is for and no other; a refusal names the action, also beside a bad body."""
    ca_id = await new_ca(world)
    ids = {"ca": ca_id, "serial": await new_leaf(world, ca_id), "project": str(world.a.account.id)}
    await world.database.execute("UPDATE accounts SET ca_quota = 0 WHERE id = $1", world.a.account.id)
    before = await stored(world)
    holders: list[tuple[str, ...]] = [(), ("Read",), ("Write",), ("Sign",), ("Issue Key",), ("Write", "Sign")]
    for held in holders:
        groups = tuple(f"Private CA {name}" for name in held) or ("Account: SSL and Certificates Write",)
        headers = bearer(await make_token(world.services, world.a.account, groups=groups))
        for route in ROUTES:
            case = (held, route.method, route.path)
            allowed = bool(held) if route.needs == ("Read",) else set(route.needs) <= set(held)
            body = json.loads(json.dumps(route.body).replace("{ca}", ca_id))
            answer = await call(world, route.method, route.path.format(**ids), body, **headers)
            if allowed:
                assert answer.status_code in {200, 400, 422}, (case, answer.text)
                continue
            message = f"You are not allowed to {route.action} on certificate-authorities"
            told = refused(answer, 403, message, case)
            assert [d["action"] for d in told["details"]] == [route.action], case
            if route.path not in {"/pki/ca", SIGN_BY_BODY} and route.method != "GET":
                answer = await call(world, route.method, route.path.format(**ids), b"{", **headers)
                refused(answer, 403, message, case)
    assert await stored(world) == before


async def test_an_address_that_is_not_the_tokens_is_403(world: World) -> None:
    """A token that is bound to other addresses is refused as a Bearer, and at the login."""
    condition = json.dumps({"request_ip": {"in": ["10.0.0.0/8"]}})
    token, value = await new_token(world, world.a, condition=condition)
    for route in (OF_CA[0], OTHERS[1]):
        answer = await call(world, "GET", route.path.format(ca=UNKNOWN, project="x"), **bearer(value))
        refused(answer, 403, case=route)
    body = {"clientId": str(token.id), "clientSecret": value}
    refused(await call(world, "POST", LOGIN, body), 401, INVALID)


async def test_a_ca_that_is_not_there_is_the_same_404_whosever_it_is(world: World) -> None:
    """Unknown ids, other accounts' CAs and what is no UUID get one text, on every call, but for the id."""
    theirs = await new_ca(world, world.b)
    own = await new_ca(world)
    before = await stored(world)
    odd = (
        "x",
        "0",
        own[:-1],
        own + "0",
        own.replace("-", ""),
        "{" + own + "}",
        f"urn:uuid:{own}",
        " " + own,
        "'; DROP TABLE accounts; --",
        '"<script>',
        "é" * 40,
        "\u0660" * 32,
        "\n",
        "x" * 2000,
    )
    for ca_id in (UNKNOWN, theirs, *odd):
        for route in OF_CA if ca_id in {UNKNOWN, theirs, "x"} else (OF_CA[0], OF_CA[9]):
            path = route.path.format(ca=quote(ca_id, safe=""))
            answer = await call(world, route.method, path, b"{" if route.method in {"POST", "PATCH"} else None)
            refused(answer, 404, f"CA with ID '{ca_id}' not found", (ca_id, route))
        body = {"caId": ca_id, "csr": "x", "ttl": "1d"}
        refused(await call(world, "POST", SIGN_BY_BODY, body), 404, f"CA with ID '{ca_id}' not found", ca_id)
    # Whoever may only read learns no more of it.
    headers = bearer(await make_token(world.services, world.a.account, groups=("Private CA Read",)))
    for ca_id in (UNKNOWN, theirs):
        answer = await call(world, "DELETE", f"/pki/ca/{ca_id}", **headers)
        refused(answer, 404, f"CA with ID '{ca_id}' not found", ca_id)
    for public in (f"/pki/ca/{own}/certificates/{UNKNOWN}/der", f"/pki/crl/{UNKNOWN}/der", "/pki/crl/x/der"):
        refused(await world.http.get(V1 + public), 404, case=public)
    texts = []
    for project in (UNKNOWN, str(world.b.account.id), "x", "%00", "%ff", "%ed%a0%80"):
        answer = await call(world, "GET", f"/cert-manager/ca/internal?projectId={project}")
        texts.append(refused(answer, 404, case=project)["message"].replace(project, ""))
    assert texts[0] == texts[1] == texts[2]
    body = refused(await call(world, "GET", "/cert-manager/ca/internal?projectId=x&projectId=y"), 422)
    assert paths_of(body) == ["projectId"]
    assert (await call(world, "GET", f"/pki/ca/{own.upper()}")).status_code == 200
    assert await stored(world) == before


# --- the edge ---

# path below the server, method, status
ELSEWHERE: list[tuple[str, str, int]] = [
    ("/api/v1/nothing", "GET", 404),
    ("/api/v2/pki/ca", "POST", 404),
    ("/api/v1/pki/ca/x/y/z", "GET", 404),
    ("/api/v1/pki/ca/x/CSR", "GET", 404),
    ("/api/v1", "GET", 404),
    ("/api/x", "POST", 404),
    ("/api/v1/pki/ca/%2e%2e%2f/csr", "GET", 404),
    ("/api/v1/pki/ca/%00/csr", "GET", 404),
    ("/api/v1/pki/ca/%ff/csr", "GET", 404),
    ("/api/v1/pki/ca//csr", "GET", 404),
    ("/api/v1/pki/ca/%zz/csr", "GET", 404),
    ("/api/v1/pki/ca", "GET", 405),
    ("/api/v1/pki/ca/x", "PUT", 405),
    ("/api/v1/pki/ca/x/csr", "POST", 405),
    ("/api/v1/pki/ca/x/csr", "DELETE", 405),
    ("/api/v1/pki/ca/x/csr", "OPTIONS", 405),
    ("/api/v1/cert-manager/ca/internal/x/renew", "GET", 405),
    ("/api/v1/auth/universal-auth/login", "GET", 405),
    ("/api/v1/pki/certificates/x/revoke", "PATCH", 405),
    ("/api/status", "POST", 405),
]


async def test_what_no_route_has_and_what_is_too_large(world: World) -> None:
    """Unknown paths are 404, other methods 405, bodies beyond 1 MiB 413, all in the dialect's shape."""
    for path, method, status in ELSEWHERE:
        url = httpx.URL("http://127.0.0.1:8787", raw_path=path.encode())
        answer = await world.http.request(method, url)
        refused(answer, status, case=(path, method))
        # RFC 9110 section 15.5.6.
        assert (status == 405) == bool(answer.headers.get("allow")), (path, method)
    ca_id = await new_ca(world)
    serial = await new_leaf(world, ca_id)
    before = await stored(world)
    limit = 1024 * 1024

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(limit // 65536 + 1):
            yield b" " * 65536

    posts = [
        r.path.format(ca=ca_id, serial=serial) for r in ROUTES if r.method == "POST" and "Issue Key" not in r.needs
    ]
    for path in (*posts, LOGIN):
        refused(await call(world, "POST", path, b" " * (limit + 1)), 413, case=path)
    answer = await world.http.post(V1 + posts[0], content=chunks(), headers=world.a.bearer)
    refused(answer, 413)
    refused(await world.http.post(V1 + posts[0], content=b" " * (limit + 1)), 401, "Token missing")
    # One byte less is read, and is only bad JSON.
    refused(await call(world, "POST", posts[0], b" " * limit), 400)
    assert await stored(world) == before


async def test_both_prefixes_a_slash_and_unknown_keys_make_no_difference(world: World) -> None:
    """The same bad call gets the same body under both prefixes, with a slash at its end, and with keys nobody knows."""
    ca_id, pending = await new_ca(world), await new_ca(world, type="intermediate")
    before = await stored(world)
    unknown = {"x": {"y": [None]}, "\ud800": "\ud800", "notbefore": 5, "__proto__": {}, "": 1}
    ways = [(PREFIXES[0], "", {}), (PREFIXES[1], "/", {}), (PREFIXES[0], "/", unknown), (PREFIXES[1], "", unknown)]
    for route in (*_OF_CA, *(r._replace(body={}) for r in _OF_CA if r.body)):
        # The CA itself is written in another way under each.
        if route.path == "":
            continue
        for one in (ca_id, pending, "x"):
            answers = []
            for prefix, slash, more in ways:
                body = None if route.body is None else {**route.body, **more}
                answer = await call(world, route.method, f"{prefix}/{one}{route.path}{slash}", body)
                case = (route, one, prefix, slash)
                told = {} if answer.status_code == 200 else refused(answer, answer.status_code, case=case)
                answers.append((answer.status_code, {**told, "reqId": ""}))
            assert all(each == answers[0] for each in answers), (route, one)
    huge = json.dumps({"status": "paused", "x": 1}).replace(": 1", ": " + "9" * 5000).encode()
    assert paths_of(refused(await call(world, "PATCH", f"/pki/ca/{ca_id}", huge), 422)) == ["status"]
    assert await stored(world) == before


async def test_what_is_not_foreseen_is_500_and_says_nothing(world: World) -> None:
    """An exception of ours and a damaged key are told by their request id alone, and sign nothing."""
    ca_id = await new_ca(world)
    body = {"csr": csr(SERVER, outside.subject("www.keystead.dev")), "ttl": "1d"}
    before = await stored(world)
    row = await world.database.fetchrow("SELECT account_id, id, ciphertext FROM private_keys")
    assert row
    harm = "UPDATE private_keys SET ciphertext = $2 WHERE id = $1"
    await world.database.execute(harm, row["id"], bytes(row["ciphertext"])[:-1] + b"\x00\x00")
    for route, sent in (("/sign-certificate", body), ("/renew", {"type": "existing", "notAfter": f"{YEAR + 20}"})):
        answer = await call(world, "POST", f"/pki/ca/{ca_id}{route}", sent)
        refused(answer, 500, "Something went wrong", route)
    await world.database.execute(harm, row["id"], row["ciphertext"])
    await world.database.execute("ALTER TABLE certificate_authorities RENAME TO elsewhere")
    try:
        for path in (f"/pki/ca/{ca_id}", f"/pki/ca/{ca_id}/csr", f"/pki/crl/{ca_id}/der"):
            answer = await call(world, "GET", path)
            refused(answer, 500, "Something went wrong", path)
            assert "relation" not in str(answer.headers), path
    finally:
        await world.database.execute("ALTER TABLE elsewhere RENAME TO certificate_authorities")
    assert await stored(world) == before


async def test_above_the_rate_limit_is_429_with_retry_after(database_url: str, tmp_path: Path) -> None:
    """Failed logins and bad tokens count for their address, a tenth of the rate, and requests for their caller."""
    async with new_world(database_url, tmp_path, rate_limit=RateLimit(20, 3600)) as world:
        before = await stored(world)
        body = {"clientId": UNKNOWN, "clientSecret": tokens.new_token()}
        statuses = []
        for number in range(4):
            answer = await call(world, "POST", LOGIN, body)
            statuses.append(answer.status_code)
            refused(answer, answer.status_code, case=number)
            assert int(answer.headers.get("retry-after", "0")) >= (answer.status_code == 429), number
        assert statuses == [401, 401, 429, 429]
        for value in ("x", tokens.new_token()):
            answer = await call(world, "GET", "/pki/ca/x", **bearer(value))
            refused(answer, 429, case=value)
            assert int(answer.headers["retry-after"]) >= 1
        refused(await world.http.get(f"{V1}/pki/ca/x"), 401, "Token missing")
        for number in range(20):
            refused(await call(world, "GET", "/pki/ca/x"), 404, case=number)
        for route in (OF_CA[0], OTHERS[0]):
            answer = await call(world, route.method, route.path.format(ca="x"), b"{")
            refused(answer, 429, case=route)
            assert int(answer.headers["retry-after"]) >= 1, route
        assert (await world.http.get("/api/status")).status_code == 200
        assert await stored(world) == before


# --- bodies ---

NO_JSON = {
    "nothing": b"",
    "half of it": b'{"type":',
    "two documents": b"{} {}",
    "NaN": b'{"maxPathLength": NaN}',
    "Infinity": b'{"maxPathLength": -Infinity}',
    "not UTF-8": b'{"type": "\xff"}',
    "UTF-16": json.dumps(CA).encode("utf-16"),
    "a byte order mark alone": b"\xef\xbb\xbf",
    "too deep": b'{"type": ' + b"[" * 30000 + b"]" * 30000 + b"}",
    "single quotes": b"{'type': 'root'}",
    "a form": b"type=root",
    "NUL": b"\x00",
}


async def test_a_body_that_is_no_json_object_is_400_or_422(world: World) -> None:
    """Unreadable JSON is 400 on every call with a body, and any other JSON value than an object 422."""
    ca_id = await new_ca(world)
    serial = await new_leaf(world, ca_id)
    before = await stored(world)
    paths = [(r.method, r.path.format(ca=ca_id, serial=serial)) for r in ROUTES if r.body is not None]
    issue_key = ("Private CA Issue Key", "Private CA Sign", "Private CA Write")
    headers = bearer(await make_token(world.services, world.a.account, groups=issue_key))
    for number, (method, path) in enumerate([*paths, ("POST", LOGIN)]):
        cases = NO_JSON if number == 0 else {name: NO_JSON[name] for name in ("nothing", "half of it", "NaN")}
        for case, raw in cases.items():
            refused(await call(world, method, path, raw, **headers), 400, case=(path, case))
        for value in (b"[]", b'"x"', b"null", b"1e400", b"true"):
            body = refused(await call(world, method, path, value, **headers), 422, case=(path, value))
            assert paths_of(body) == [""], (path, value)
    assert await stored(world) == before


NO_LENGTHS: tuple[Any, ...] = (-2, 1.5, -0.5, "3", "", True, [], 1e30, -1e30, 2**63, 10**4000, 1e400)
NO_DATES: tuple[Any, ...] = (
    *("soon", "9" * 10_000, "29", "2029-6", "2029-13", "2029-00", "2029-02-30", "2029-06-32", "0000", "1e3", "null"),
    *(" 2029", "2029 ", "2029\n", "2029-06-12 10:00:00", "2029-06-12T25:00:00Z", "2029-06-12T10:00:61Z", "2029-W01"),
    *("2029-06-12T10:00:00+24:00", "2029-06-12T10:00:00+02:00:00", "2029-06-12T", "2029-06-12T10:00:00ZZ", "2029-163"),
    *("٢٠٢٩", "+2029", "-2029", "12029", "\x00", "\ud800", 2029, 1893456000000, True, [], {}, ["2029"]),
)
# fields instead of the good ones (… leaves one out), and the fields that are named
BAD_CA: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": (dict.fromkeys(CA, ...), ["projectSlug", "type"]),
    "null is missing": ({"projectSlug": None, "type": None}, ["projectSlug", "type"]),
    "an empty slug": ({"projectSlug": ""}, ["projectSlug"]),
    "numbers for texts": (
        {"projectSlug": 1, "type": 2, "friendlyName": 3.5, "commonName": True, "ou": [], "country": {}, "locality": 0},
        ["commonName", "country", "friendlyName", "locality", "ou", "projectSlug", "type"],
    ),
    "an unknown type": ({"type": "Root"}, ["type"]),
    "a type in a list": ({"type": ["root"]}, ["type"]),
    "an unknown algorithm": ({"keyAlgorithm": "RSA_1024"}, ["keyAlgorithm"]),
    "an algorithm of ours": ({"keyAlgorithm": "p256v1"}, ["keyAlgorithm"]),
    "an algorithm with a NUL": ({"keyAlgorithm": "RSA_2048\x00"}, ["keyAlgorithm"]),
    "an empty algorithm": ({"keyAlgorithm": ""}, ["keyAlgorithm"]),
    "a template as text": ({"requireTemplateForIssuance": "true"}, ["requireTemplateForIssuance"]),
    "a template as number": ({"requireTemplateForIssuance": 1}, ["requireTemplateForIssuance"]),
    "no name at all": ({"commonName": ..., "organization": ...}, ["commonName"]),
    "an empty name": (
        dict.fromkeys(("commonName", "organization", "ou", "country", "province", "locality"), ""),
        ["commonName"],
    ),
    "texts one too long": (
        {
            "commonName": "é" * 65,
            "organization": "o" * 65,
            "ou": "u" * 65,
            "province": "s" * 129,
            "locality": "l" * 129,
        },
        ["commonName", "locality", "organization", "ou", "province"],
    ),
    "texts of 1,000": (
        dict.fromkeys(("commonName", "organization", "ou", "province", "locality", "country"), "x" * 1000),
        ["commonName", "country", "locality", "organization", "ou", "province"],
    ),
    "control characters": (
        {"commonName": "a\x00b", "organization": "a\nb", "ou": "a\x1bb", "province": "a\x7fb", "locality": "a\x9fb"},
        ["commonName", "locality", "organization", "ou", "province"],
    ),
    "bidi and surrogates": (
        {"commonName": "a\u202eb", "ou": "\ud800", "friendlyName": "\u2066"},
        ["commonName", "friendlyName", "ou"],
    ),
    "only white space": (
        {"commonName": "  ", "ou": "\u2003", "friendlyName": " "},
        ["commonName", "friendlyName", "ou"],
    ),
    "a friendly name of 256": ({"friendlyName": "f" * 256}, ["friendlyName"]),
    "a friendly name of two lines": ({"friendlyName": "a\nb"}, ["friendlyName"]),
    **{
        f"country {c!r}": ({"country": c}, ["country"])
        for c in ("U", "USA", "us", "uS", "ZZ", "U ", "\uff35\uff33", "U\x00", "12")
    },
    **{f"maxPathLength {n!r}": ({"maxPathLength": n}, ["maxPathLength"]) for n in NO_LENGTHS},
    **{f"date {text!r}"[:40]: ({"notAfter": text, "notBefore": text}, ["notAfter", "notBefore"]) for text in NO_DATES},
}


async def test_a_ca_with_wrong_fields_is_422_and_names_them(world: World) -> None:
    """Each bad body is answered with its wrong fields, all at once, and leaves neither a CA nor a key."""
    before = await stored(world)
    for case, (fields, wrong) in BAD_CA.items():
        for kind in ("root", "intermediate"):
            body = {k: v for k, v in {**CA, "type": kind, **fields}.items() if v is not ...}
            raw = json.dumps(body).replace("Infinity", "1e400").encode()
            told = refused(await call(world, "POST", "/pki/ca", raw), 422, case=case)
            assert paths_of(told) == wrong, (case, told)
            assert len(json.dumps(told)) < 5000, case
    assert await stored(world) == before


async def test_a_ca_with_wrong_dates_or_above_the_quota_is_400_and_of_no_project_404(world: World) -> None:
    """What each field may be by itself and the whole may not, is a sentence, and leaves nothing behind."""
    before = await stored(world)

    dates: list[dict[str, str]] = [
        {"notBefore": f"{YEAR + 1}", "notAfter": f"{YEAR}"},
        {"notBefore": f"{YEAR}-06-12", "notAfter": f"{YEAR}-06-12"},
        {"notAfter": hours(0)},
        {"notAfter": "1970"},
        {"notAfter": "0001-01-01"},
        {"notBefore": hours(-24 * 3654)},
        {"notBefore": hours(-3), "notAfter": hours(-2)},
        {"notBefore": "0001", "notAfter": f"{YEAR}"},
        {"notBefore": "9999-12-31T23:59:59Z"},
        {"notBefore": "9995"},
        {"notBefore": "9999-12-31", "notAfter": "9999-12-31"},
    ]
    for case in dates:
        for kind in ("root", "intermediate"):
            answer = await call(world, "POST", "/pki/ca", {**CA, "type": kind, **case})
            refused(answer, 400, case=(kind, case))
    slugs = ("b", "nobody", "A", str(world.a.account.id), "a ", "x" * 10_000, "'; DROP TABLE accounts; --", "é")
    for slug in slugs:
        answer = await call(world, "POST", "/pki/ca", {**CA, "projectSlug": slug})
        refused(answer, 404, f"Project with slug '{slug}' not found", slug[:40])
    await world.database.execute("UPDATE accounts SET ca_quota = 1 WHERE id = $1", world.a.account.id)
    assert await stored(world) == before
    await new_ca(world)
    before = await stored(world)
    for kind in ("root", "intermediate"):
        for algorithm in ("EC_secp521r1", "RSA_2048"):
            refused(await call(world, "POST", "/pki/ca", {**CA, "type": kind, "keyAlgorithm": algorithm}), 400)
    await new_ca(world, world.b)
    assert (await stored(world))["certificate_authorities"] == before["certificate_authorities"] + 1


# value of commonName, and how the DN writes it (RFC 4514 section 2.4)
ESCAPES = {
    "Acme, Inc.": r"Acme\, Inc.",
    'The "Root"': r"The \"Root\"",
    "a+b": r"a\+b",
    "a\\b": r"a\\b",
    "a\\": r"a\\",
    "#1": r"\#1",
    "a#1": "a#1",
    "a ": r"a\ ",
    " a": r"\ a",
    "  a  ": r"\  a \ ",
    "a\\ ": r"a\\\ ",
    "# ": r"\#\ ",
    "a;b<c>d": r"a\;b\<c\>d",
    "Zoë 💩": "Zoë 💩",
    "é" * 64: "é" * 64,
}
# date, and the milliseconds that it means
GOOD_DATES = {
    f"{YEAR}": f"{YEAR}-01-01T00:00:00.000Z",
    f"{YEAR}-06": f"{YEAR}-06-01T00:00:00.000Z",
    f"{YEAR}-06-12": f"{YEAR}-06-12T00:00:00.000Z",
    f"{YEAR}-06-12T10:11Z": f"{YEAR}-06-12T10:11:00.000Z",
    f"{YEAR}-06-12T10:11:12": f"{YEAR}-06-12T10:11:12.000Z",
    f"{YEAR}-06-12T10:11:12Z": f"{YEAR}-06-12T10:11:12.000Z",
    f"{YEAR}-06-12T10:11:12.987Z": f"{YEAR}-06-12T10:11:12.000Z",
    f"{YEAR}-06-12T10:11:12+02:00": f"{YEAR}-06-12T08:11:12.000Z",
    f"{YEAR}-06-12T23:11:12.987654-0130": f"{YEAR}-06-13T00:41:12.000Z",
    "9999-12-31T23:59:59Z": "9999-12-31T23:59:59.000Z",
}


async def test_what_only_looks_bad_is_accepted(world: World) -> None:
    """Odd characters in a name are escaped in the DN and are whole in the certificate; all forms of a date are read."""
    headers = world.a.bearer
    for text, shown in ESCAPES.items():
        ca_id = await new_ca(world, commonName=text, country="XX", locality="L")
        made = (await call(world, "GET", f"/pki/ca/{ca_id}", **headers)).json()["ca"]
        assert made["dn"] == f"C=XX, O=Keystead, CN={shown}, L=L", text
        signed = (await call(world, "GET", f"/pki/ca/{ca_id}/certificate", **headers)).json()["certificate"]
        (attribute,) = x509.load_pem_x509_certificate(signed.encode()).subject.get_attributes_for_oid(
            NameOID.COMMON_NAME
        )
        assert attribute.value == text
    for text, shown in GOOD_DATES.items():
        answer = await call(world, "POST", "/pki/ca", {**CA, "notAfter": text})
        assert answer.json()["ca"]["notAfter"] == shown, (text, answer.text)
    for length, shown_length in ((1.0, 1), (-1.0, -1), (0, 0), (None, -1), (-0.0, 0)):
        answer = await call(world, "POST", "/pki/ca", {**CA, "maxPathLength": length})
        assert answer.json()["ca"]["maxPathLength"] == shown_length, (length, answer.text)
    for path in ("/pki/ca", "/pki/ca/"):
        unknown = {"x": {"y": [None]}, "\ud800": "\ud800", "common_name": 5, "": 1}
        assert (await call(world, "POST", path, {**CA, **unknown})).status_code == 200, path
    for only in ("commonName", "organization", "ou", "province", "locality"):
        bare = {"projectSlug": "a", "type": "intermediate", "keyAlgorithm": "EC_secp384r1", only: "x"}
        assert (await call(world, "POST", "/pki/ca", bare)).status_code == 200, only


async def test_hostile_texts_are_refused_wherever_they_stand(world: World) -> None:
    """NUL, lone surrogates, SQL, templates and 100,000 characters in any text are the caller's fault: never a 5xx."""
    ca_id = await new_ca(world)
    own = f"/pki/ca/{ca_id}"
    good = csr(SERVER, outside.subject("www.keystead.dev"))
    sign, leaf = f"{own}/sign-certificate", {"csr": good, "ttl": "1d"}
    places: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", LOGIN, {"clientId": UNKNOWN, "clientSecret": tokens.new_token()}, "clientId"),
        ("POST", LOGIN, {"clientId": UNKNOWN, "clientSecret": tokens.new_token()}, "clientSecret"),
        ("POST", "/pki/ca", CA, "projectSlug"),
        ("POST", "/pki/ca", CA, "type"),
        ("POST", "/pki/ca", CA, "country"),
        ("POST", "/pki/ca", CA, "keyAlgorithm"),
        ("POST", "/pki/ca", CA, "notAfter"),
        ("PATCH", own, {}, "status"),
        ("POST", f"{own}/sign-intermediate", {"notAfter": f"{YEAR}"}, "csr"),
        ("POST", f"{own}/import-certificate", {"certificateChain": "x"}, "certificate"),
        ("POST", f"{own}/import-certificate", {"certificate": "x"}, "certificateChain"),
        ("POST", f"{own}/renew", {"notAfter": f"{YEAR + 20}"}, "type"),
        ("POST", f"{own}/renew", {"type": "existing"}, "notAfter"),
        ("POST", SIGN_BY_BODY, leaf, "caId"),
        *[("POST", sign, leaf, field) for field in ("csr", "altNames", "ttl", "notBefore", "keyUsages")],
        ("POST", sign, {**leaf, "keyUsages": ["digitalSignature"]}, "keyUsages.1"),
        ("POST", sign, {**leaf, "extendedKeyUsages": ["serverAuth"]}, "extendedKeyUsages.1"),
    ]
    before = await stored(world)
    for method, path, body, place in places:
        for value in HOSTILE:
            field, _, index = place.partition(".")
            sent = {**body, field: [*body[field], value] if index else value}
            case = (path.replace(ca_id, ""), place, value[:10])
            answer = await call(world, method, path, sent)
            allowed = {400, 401, 404, 422} | ({413} if path == LOGIN else set())
            assert answer.status_code in allowed, (case, answer.text)
            refused(answer, answer.status_code, case=case)
    for value in UNPRINTABLE:
        for field in ("commonName", "friendlyName"):
            told = refused(await call(world, "POST", sign, {**leaf, field: value}), 422, case=(field, value))
            assert paths_of(told) == [field], (field, value)
    assert await stored(world) == before


# --- CAs ---


async def test_sign_intermediate_refuses_in_the_contracts_order(world: World) -> None:
    """The first thing that is wrong is told, although everything after it is wrong too."""
    database = world.database
    root, narrow, end = [await new_ca(world, commonName=f"Root {n}", maxPathLength=n) for n in (-1, 2, 0)]
    pending = await new_ca(world, type="intermediate")
    disabled = await new_ca(world, type="intermediate")
    expired = await new_ca(world, commonName="Old root")
    assert (await call(world, "PATCH", f"/pki/ca/{disabled}", {"status": "disabled"})).status_code == 200
    age = "UPDATE ca_certificates SET not_before = $2, not_after = $3 WHERE ca_id = $1"
    await database.execute(age, expired, NOW - timedelta(days=9), NOW - timedelta(seconds=5))
    old = await new_ca(world, commonName="Root of last month")
    await database.execute(age, old, NOW - timedelta(days=30), NOW + timedelta(days=30))

    def name_of(certificate: str) -> x509.Name:
        return x509.load_pem_x509_certificate(certificate.encode()).subject

    certificates = {c: (await call(world, "GET", f"/pki/ca/{c}/certificate")).json() for c in (narrow, end)}
    own_names = {c: name_of(certificates[c]["certificate"]) for c in certificates}
    keys_of = {}
    for ca_id in (narrow, end):
        row = await database.fetchrow(
            "SELECT account_id, key_id, spki_sha256 FROM certificate_authorities WHERE id = $1", ca_id
        )
        assert row
        keys_of[ca_id] = await keyring.open_key(database, world.ring, keyring.SYSTEM, tuple(row))

    everything = {"maxPathLength": 7, "notBefore": "1999", "notAfter": "1998"}
    empty, other = x509.Name([]), outside.subject("Sub CA")
    weak, good = csr(weak_key(), other), csr(SERVER, other)
    two_keys = "neither RSA nor on"
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("disabled", disabled, {"csr": "x", **everything}, DISABLED),
        ("pending", pending, {"csr": "x", **everything}, NO_CERTIFICATE),
        ("expired", expired, {"csr": "x", **everything}, OVER),
        ("garbage", end, {"csr": "x", **everything}, "PEM"),
        ("a block of garbage", end, {"csr": block(b"x" * 300), **everything}, "cannot be read"),
        ("a certificate", end, {"csr": certificates[end]["certificate"], **everything}, "holds a certificate"),
        ("two CSRs", end, {"csr": good + good, **everything}, "PEM"),
        ("a wrong signature", end, {"csr": tampered(csr(weak_key(), empty)), **everything}, "signature"),
        ("an empty subject", end, {"csr": csr(weak_key(), empty), **everything}, "subject is empty"),
        ("its own subject", end, {"csr": csr(weak_key(), own_names[end]), **everything}, "subject is that of this CA"),
        ("its own key", end, {"csr": csr(keys_of[end], other), **everything}, "key is that of this CA"),
        ("RSA-1024", end, {"csr": weak, **everything}, "RSA-1024"),
        *[
            (type(key).__name__, end, {"csr": csr(key, other), **everything}, two_keys)
            for key in (
                ed25519.Ed25519PrivateKey.generate(),
                ed448.Ed448PrivateKey.generate(),
                ec.generate_private_key(ec.SECP256K1()),
                ec.generate_private_key(ec.SECP224R1()),
                ec.generate_private_key(ec.BrainpoolP256R1()),
            )
        ],
        ("DSA", end, {"csr": DSA_CSR, **everything}, two_keys),
        ("an exponent of 3", end, {"csr": csr(rsa.generate_private_key(3, 2048), other), **everything}, "exponent"),
        ("path length 0", end, {"csr": good, **everything}, TOO_DEEP),
        ("path length 0, no wish", end, {"csr": good, "notAfter": f"{YEAR}"}, TOO_DEEP),
        ("more than is left", narrow, {"csr": good, **everything}, TOO_LONG),
        ("as much as the CA's own", narrow, {"csr": good, **everything, "maxPathLength": 2}, TOO_LONG),
        ("too early and reversed", narrow, {"csr": good, **everything, "maxPathLength": 1}, TOO_EARLY),
        ("too early", root, {"csr": good, "notBefore": "1999", "notAfter": "2999"}, TOO_EARLY),
        ("reversed and too late", root, {"csr": good, "notBefore": "2999", "notAfter": "2998"}, REVERSED),
        ("the same instant", root, {"csr": good, "notBefore": f"{YEAR}", "notAfter": f"{YEAR}"}, REVERSED),
        ("too late", root, {"csr": good, "notAfter": "2999"}, TOO_LATE),
        ("the end of time", root, {"csr": good, "notAfter": "9999-12-31T23:59:59.999Z"}, TOO_LATE),
        ("backdated", old, {"csr": good, "notBefore": hours(-49), "notAfter": hours(49)}, "48 hours"),
        ("over already", old, {"csr": good, "notBefore": hours(-3), "notAfter": hours(-2)}, "past"),
    ]
    before = await stored(world)
    for case, ca_id, body, text in cases:
        for prefix in PREFIXES:
            answer = await call(world, "POST", f"{prefix}/{ca_id}/sign-intermediate", body)
            told = refused(answer, 400, text if text in KNOWN else None, case)
            assert text.removesuffix("…") in told["message"], (case, told)
    for body, wrong in (
        ({}, ["csr", "notAfter"]),
        ({"csr": good}, ["notAfter"]),
        ({"csr": good, "notAfter": ""}, ["notAfter"]),
        ({"csr": [good], "notAfter": YEAR, "maxPathLength": "1"}, ["csr", "maxPathLength", "notAfter"]),
        ({"csr": good, "notAfter": f"{YEAR}", "maxPathLength": -2, "notBefore": "x"}, ["maxPathLength", "notBefore"]),
    ):
        answer = await call(world, "POST", f"/pki/ca/{end}/sign-intermediate", body)
        assert paths_of(refused(answer, 422, case=body)) == wrong
    assert await stored(world) == before
    for ca_id, wish, got in ((root, -1, None), (narrow, 1, 1), (narrow, 0, 0), (narrow, -1, 1)):
        body = {"csr": good, "notAfter": f"{YEAR}", "maxPathLength": wish}
        answer = await call(world, "POST", f"/pki/ca/{ca_id}/sign-intermediate", body)
        signed = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
        assert signed.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == got, wish


async def test_import_refuses_what_is_not_this_cas_certificate_with_its_chain(world: World) -> None:
    """Whatever a CA outside may send back, only this key's certificate with its whole, sound chain is taken."""
    root = await new_ca(world)
    pending = await new_ca(world, type="intermediate", commonName="Pending CA", maxPathLength=0, country="DE")
    bound = await chained(world, root)
    text = await csr_of_ca(world, pending)
    request = x509.load_pem_x509_csr(text.encode())
    key, name = request.public_key(), request.subject
    assert isinstance(key, ec.EllipticCurvePublicKey)
    top = outside.root()
    middle = top.intermediate()
    stranger = outside.root("Stranger")
    namesake = outside.root()

    def by(issuer: outside.Authority, **changes: Any) -> str:
        settled: dict[str, Any] = {"ca": True, "path_length": 0, "days": 30, **changes}
        return outside.pem(issuer.sign(settled.pop("key", key), settled.pop("name", name), **settled))

    def intermediate(**changes: Any) -> outside.Authority:
        return top.intermediate("Middle", **changes)

    leaf_key = ec.generate_private_key(ec.SECP256R1())
    server = outside.Authority(leaf_key, top.sign(leaf_key.public_key(), outside.subject("www")))
    mute = intermediate(key_usage=False)
    ends, begins = intermediate(since=10, days=-1), intermediate(since=-1)
    shallow = intermediate(path_length=0)
    good, above = by(middle), outside.pem(middle.certificate, top.certificate)
    extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    sha1 = middle.by_openssl(text, "-sha1", extensions=extensions)
    no_crl = middle.by_openssl(text, extensions="basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=keyCertSign\n")
    reversed_name = x509.Name([*reversed(list(name))])
    twice = x509.Name([*name, x509.NameAttribute(NameOID.COMMON_NAME, "Pending CA")])
    secret = outside.key_pem(leaf_key)
    other_key = leaf_key.public_key()

    cases: list[tuple[str, str, str, str | None]] = [
        ("garbage", "x", above, None),
        ("a CSR", text, above, None),
        ("a private key", secret, above, None),
        ("a certificate and a private key", good + secret, above, None),
        ("the whole chain", good + above, above, None),
        ("a broken block", outside.bare_pem(b"x" * 300), above, None),
        ("no CA, of another key, with no chain", by(middle, ca=False, path_length=None, key=other_key), "x", MISMATCH),
        ("no CA", by(middle, ca=False, path_length=None), above, MISMATCH),
        ("another name", by(middle, name=outside.subject("Pending CA")), above, MISMATCH),
        ("no name", by(middle, name=x509.Name([])), above, MISMATCH),
        ("a name twice", by(middle, name=twice), above, MISMATCH),
        ("a longer path", by(middle, path_length=1), above, MISMATCH),
        ("a path without end", by(middle, path_length=None), above, MISMATCH),
        ("no right to sign CRLs", no_crl, above, None),
        ("expired", by(middle, since=30, days=-1), above, None),
        ("chain of garbage", good, "x", NO_CHAIN),
        ("chain of a broken block", good, above + outside.bare_pem(b"x" * 300), NO_CHAIN),
        ("chain with a private key", good, above + secret, NO_CHAIN),
        ("chain with a CSR", good, above + text, NO_CHAIN),
        ("chain of 30", good, "".join(outside.pem(outside.root().certificate) for _ in range(30)), NO_CHAIN),
        ("chain of itself", good, good, BAD_CHAIN),
        ("root missing", good, outside.pem(middle.certificate), BAD_CHAIN),
        ("issuer missing", good, outside.pem(top.certificate), BAD_CHAIN),
        ("a stranger's", good, outside.pem(stranger.certificate), BAD_CHAIN),
        ("a namesake's", by(top), outside.pem(namesake.certificate), BAD_CHAIN),
        ("a namesake above", good, outside.pem(middle.certificate, namesake.certificate), BAD_CHAIN),
        ("issuer is no CA", by(server), outside.pem(server.certificate, top.certificate), BAD_CHAIN),
        ("issuer expired", by(ends), outside.pem(ends.certificate, top.certificate), BAD_CHAIN),
        ("issuer not yet valid", by(begins), outside.pem(begins.certificate, top.certificate), BAD_CHAIN),
        ("issuer with path length 0", by(shallow), outside.pem(shallow.certificate, top.certificate), BAD_CHAIN),
        ("SHA-1", sha1, above, BAD_CHAIN),
        ("another key", by(middle, key=other_key), above, "CA and certificate public key do not match: …"),
    ]
    secrets = [line for line in secret.splitlines() if len(line) > 30 and "-" not in line]
    before = await stored(world)
    for case, certificate, chain, message in cases:
        body = {"certificate": certificate, "certificateChain": chain}
        for prefix in PREFIXES:
            answer = await call(world, "POST", f"{prefix}/{pending}/import-certificate", body)
            refused(answer, 400, message, case)
        told = refused(await call(world, "POST", f"/pki/ca/{root}/import-certificate", body), 400, case=case)
        assert "root" in told["message"].lower(), case
        refused(
            await call(world, "POST", f"/pki/ca/{bound}/import-certificate", body),
            400,
            "Cannot import certificate to intermediate CA chained to internal parent CA",
            case,
        )
    assert not any(line in seen for line in secrets for seen in world.seen)
    bad: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["certificate", "certificateChain"]),
        ({"certificate": good}, ["certificateChain"]),
        ({"certificate": [good], "certificateChain": {}}, ["certificate", "certificateChain"]),
    ]
    for fields, wrong in bad:
        answer = await call(world, "POST", f"/pki/ca/{pending}/import-certificate", fields)
        assert paths_of(refused(answer, 422, case=wrong)) == wrong
    made = (await call(world, "GET", f"/pki/ca/{pending}")).json()["ca"]
    assert (made["status"], made["activeCaCertId"]) == ("pending-certificate", None)
    assert await stored(world) == before
    backwards = outside.pem(top.certificate, middle.certificate)
    usual = outside.pem(mute.certificate, top.certificate)
    for case, certificate, chain in (
        ("in the wrong order", good, backwards),
        ("with itself in it", good, above + good),
        ("an issuer without key usage", by(mute), usual),
        ("its name in another order", by(middle, name=reversed_name), above),
    ):
        body = {"certificate": certificate, "certificateChain": chain}
        answer = await call(world, "POST", f"/pki/ca/{pending}/import-certificate", body)
        assert answer.status_code == 200, (case, answer.text)


async def test_renew_change_and_delete_refuse_what_would_break_a_ca(world: World) -> None:
    """A CA is renewed within its parent's life, enabled when it has a certificate, and deleted when nobody needs it."""
    root, pending = await new_ca(world, notAfter=f"{YEAR + 2}"), await new_ca(world, type="intermediate")
    sub, idle = await chained(world, root), await new_ca(world)
    disabled = await new_ca(world)
    await call(world, "PATCH", f"/pki/ca/{disabled}", {"status": "disabled"})
    await new_leaf(world, sub)
    abroad = await new_ca(world, type="intermediate", commonName="Abroad CA")
    request = x509.load_pem_x509_csr((await csr_of_ca(world, abroad)).encode())
    top, key = outside.root(), request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signed = top.sign(key, request.subject, ca=True, days=30)
    body: dict[str, Any] = {"certificate": outside.pem(signed), "certificateChain": outside.pem(top.certificate)}
    assert (await call(world, "POST", f"/pki/ca/{abroad}/import-certificate", body)).status_code == 200

    later, existing = f"{YEAR + 5}", {"type": "existing"}
    long_ago, sooner = {**existing, "notAfter": "1999"}, {**existing, "notAfter": f"{NOW.year + 1}"}
    abroad_text = "Failed to renew intermediate CA certificate with external parent CA"
    cases: list[tuple[str, str, str, Any, int, str | None]] = [
        ("POST", pending, "/renew", {**existing, "notAfter": later}, 400, NO_CERTIFICATE),
        ("POST", disabled, "/renew", {**existing, "notAfter": "9999"}, 400, DISABLED),
        ("POST", abroad, "/renew", {**existing, "notAfter": later}, 400, abroad_text),
        ("POST", sub, "/renew", {**existing, "notAfter": "9999"}, 400, TOO_LATE),
        ("POST", sub, "/renew", {**existing, "notAfter": f"{YEAR}"}, 400, None),
        ("POST", root, "/renew", {**existing, "notAfter": f"{YEAR + 2}"}, 400, None),
        *[("POST", ca_id, "/renew", body, 400, None) for ca_id in (root, sub) for body in (long_ago, sooner)],
        ("POST", root, "/renew", {}, 422, "notAfter type"),
        ("POST", root, "/renew", {"notAfter": later}, 422, "type"),
        ("POST", root, "/renew", {"type": "new", "notAfter": later}, 422, "type"),
        ("POST", root, "/renew", {"type": ["existing"], "notAfter": later}, 422, "type"),
        ("POST", root, "/renew", {"type": "existing", "notAfter": "soon"}, 422, "notAfter"),
        ("POST", root, "/renew", {"type": "existing", "notAfter": ""}, 422, "notAfter"),
        ("PATCH", pending, "", {"status": "pending-certificate"}, 422, "status"),
        ("PATCH", root, "", {"status": "Disabled"}, 422, "status"),
        ("PATCH", root, "", {"status": True}, 422, "status"),
        ("PATCH", root, "", {"status": "", "requireTemplateForIssuance": True}, 422, "status"),
        ("PATCH", root, "", {"requireTemplateForIssuance": "yes"}, 422, "requireTemplateForIssuance"),
        (
            "PATCH",
            root,
            "",
            {"status": 1, "requireTemplateForIssuance": 1},
            422,
            "requireTemplateForIssuance status",
        ),
        ("DELETE", root, "", None, 400, None),
        ("DELETE", sub, "", None, 400, None),
        ("GET", root, "/csr", None, 400, "Root CA cannot generate CSR"),
        *[("GET", pending, path, None, 400, NO_CERTIFICATE) for path in ("/certificate", "/crl", "/crls")],
    ]
    before = await stored(world)
    shown = {ca_id: (await call(world, "GET", f"/pki/ca/{ca_id}")).json() for ca_id in (root, sub, pending, disabled)}
    for method, ca_id, path, sent, status, expected in cases:
        for prefix in PREFIXES:
            case = (method, path, sent, status)
            answer = await call(world, method, f"{prefix}/{ca_id}{path}", sent)
            told = refused(answer, status, expected if status == 400 else None, case)
            if status == 422:
                assert " ".join(paths_of(told)) == expected, case
    # The newer path takes a CA that waits for its certificate for an active one.
    early = await call(world, "PATCH", f"/pki/ca/{pending}", {"status": "active"})
    refused(early, 400, f"{NO_CERTIFICATE}…")
    assert {c: (await call(world, "GET", f"/pki/ca/{c}")).json() for c in shown} == shown
    # A pending CA that was disabled cannot be made active either, and stays as it is.
    assert (await call(world, "PATCH", f"/pki/ca/{pending}", {"status": "disabled"})).status_code == 200
    refused(await call(world, "PATCH", f"/pki/ca/{pending}", {"status": "active"}), 400, f"{NO_CERTIFICATE}…")
    assert await stored(world) == before
    # Once nothing below it lives, it goes.
    await world.database.execute(
        "UPDATE issued_certificates SET not_after = now() - interval '1 s' WHERE ca_id = $1", sub
    )
    await call(world, "PATCH", f"/pki/ca/{root}", {"status": "disabled"})
    refused(await call(world, "DELETE", f"/pki/ca/{root}"), 400)
    for ca_id in (sub, idle):
        assert (await call(world, "DELETE", f"/pki/ca/{ca_id}")).status_code == 200, ca_id
    refused(await call(world, "DELETE", f"/pki/ca/{sub}"), 404, f"CA with ID '{sub}' not found")
    assert (await call(world, "GET", f"/pki/ca/{root}")).status_code == 200


# --- leaves ---

_ODD = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x03\x02\x01\x05")
_OTHER_NAME = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a")
_HOST = x509.DNSName("www.keystead.dev")
# common name and extensions of CSRs that are no good
BAD_CSRS: dict[str, tuple[str, tuple[x509.ExtensionType, ...]]] = {
    "a host that is none": ("no host", (sans(x509.DNSName("a..b")),)),
    "a host with NUL": ("x", (sans(x509.DNSName("a\x00.keystead.dev")),)),
    "a wildcard on a public suffix": ("x", (sans(x509.DNSName("*.com")),)),
    "an email that is none": ("x", (sans(x509.RFC822Name._init_without_validation("a b@c")),)),
    "a URI that is none": ("x", (sans(x509.UniformResourceIdentifier("no uri")),)),
    "another name": ("www.keystead.dev", (sans(_HOST, _OTHER_NAME),)),
    "a directory name": ("www.keystead.dev", (sans(_HOST, x509.DirectoryName(outside.subject("x"))),)),
    "a registered id": ("www.keystead.dev", (sans(_HOST, x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))),)),
    "151 names": ("x", (sans(*(x509.DNSName(f"h{i}.keystead.dev") for i in range(151))),)),
    "no name, and a CN that is no host": ("Jane Doe", ()),
    "no name, and a CN that is not ASCII": ("zoë.keystead.dev", ()),
    "SANs twice": ("www.keystead.dev", (sans(_HOST), sans(_HOST))),
    "another extension twice": ("www.keystead.dev", (x509.OCSPNoCheck(), x509.OCSPNoCheck())),
    "SANs that are no names": ("www.keystead.dev", (_ODD,)),
    "NUL in the CN": ("www.keystead.dev\x00.evil.com", (sans(_HOST),)),
    "a newline in the CN": ("www.keystead.dev\nx", (sans(_HOST),)),
    "a bidi character in the CN": ("www\u202ekeystead.dev", (sans(_HOST),)),
}
# fields beside a good CSR, and the fields that are wrong
BAD_LEAVES: dict[str, tuple[dict[str, Any], list[str]]] = {
    **{
        f"ttl {value!r}": ({"ttl": value}, ["ttl"])
        for value in (
            *(
                "0",
                "0d",
                "0.0s",
                "0.4s",
                "-1d",
                "",
                "1",
                "d",
                "1h30m",
                "1 h 30 m",
                "1e999y",
                "1e3s",
                "inf",
                "NaNd",
                "1D",
            ),
            *(" ", " 1d", "1d ", "1d\n", "\t", "1,5d", "1month", "1ms", "٣d", "9" * 400 + "d", "0x10d", "1_0d", "\x00"),
            *(5, 5.5, 0, -1, True, [], ["1d"], {"d": 1}),
        )
    },
    "neither": ({"ttl": ...}, ["ttl"]),
    "both null": ({"ttl": None, "notAfter": None}, ["ttl"]),
    "notAfter": ({"ttl": ..., "notAfter": "soon", "notBefore": "now"}, ["notAfter", "notBefore"]),
    "no CSR": ({"csr": ...}, ["csr"]),
    "a CSR in a list": ({"csr": ["x"]}, ["csr"]),
    "a usage that is none": ({"keyUsages": ["digitalSignature", "signing"]}, ["keyUsages.1"]),
    "usages in OpenSSL's words": ({"keyUsages": ["Digital Signature"]}, ["keyUsages.0"]),
    "usages of other types": ({"keyUsages": [1, None, [], {}]}, [f"keyUsages.{i}" for i in range(4)]),
    "usages as text": ({"keyUsages": "digitalSignature"}, ["keyUsages"]),
    "an extended usage that is none": (
        {"extendedKeyUsages": ["serverAuth", "anyExtendedKeyUsage"]},
        ["extendedKeyUsages.1"],
    ),
    "an extended usage by its OID": ({"extendedKeyUsages": ["1.3.6.1.5.5.7.3.1"]}, ["extendedKeyUsages.0"]),
    "extended usages as an object": ({"extendedKeyUsages": {}}, ["extendedKeyUsages"]),
    "names in a list": ({"altNames": ["www.keystead.dev"]}, ["altNames"]),
    "a CN of 65": ({"commonName": "c" * 65}, ["commonName"]),
    "a friendly name of 256": ({"friendlyName": "f" * 256}, ["friendlyName"]),
    "numbers": ({"commonName": 1, "friendlyName": 1, "notBefore": 1}, ["commonName", "friendlyName", "notBefore"]),
}
# fields beside a good CSR of an EC key, and the whole message where the contract has one
REFUSED_LEAVES: dict[str, tuple[dict[str, Any], str | None]] = {
    **{
        f"usage {u}": ({"keyUsages": ["digitalSignature", u]}, None)
        for u in ("keyCertSign", "cRLSign", "keyEncipherment")
    },
    **{
        f"altNames {text[:30]!r}": ({"altNames": text}, None)
        for text in (
            *(
                "a..b",
                "www.keystead.dev,a b",
                "*",
                "*.com",
                "-a.dev",
                "a_b c",
                "zoë.keystead.dev",
                "1.2.3",
                "1.2.3.4.5",
            ),
            *("a b@keystead.dev", "@", "a@", "@b", "a@b@c", "a@zoë.dev", "://", "http://a b", "http://é/"),
            *("fe80::1%eth0", "1.2.3.4/24", "[::1]", "a\nb", "dirName:x", "www.keystead.dev;x", "a" * 64 + ".dev"),
            ",".join(f"h{i}.keystead.dev" for i in range(151)),
        )
    },
    "1000 years": ({"ttl": "1000y"}, TOO_LATE),
    "999,999,999 years": ({"ttl": "999999999y"}, TOO_LATE),
    "to the end of time": ({"ttl": ..., "notAfter": "9999-12-31T23:59:59Z"}, TOO_LATE),
    "beyond the end of time": ({"ttl": "999999999y", "notBefore": "9999"}, None),
    "over already": ({"ttl": ..., "notAfter": "1999"}, REVERSED),
    "reversed": ({"ttl": ..., "notBefore": f"{YEAR + 1}", "notAfter": f"{YEAR}"}, REVERSED),
    "reversed and too late": ({"ttl": ..., "notBefore": "2999", "notAfter": "2998"}, REVERSED),
    "too early": ({"notBefore": "1999"}, TOO_EARLY),
    "too early and too late": ({"ttl": ..., "notBefore": "1999", "notAfter": "2999"}, TOO_EARLY),
}


async def test_sign_certificate_refuses_what_is_not_a_server_or_client(world: World) -> None:
    """Bad CSRs, names, usages and times are told, by whichever call they come, and nothing is written down."""
    ca_id, strict = await new_ca(world), await new_ca(world, requireTemplateForIssuance=True)
    pending, off, expired = await new_ca(world, type="intermediate"), await new_ca(world), await new_ca(world)
    old = await new_ca(world)
    await world.database.execute("UPDATE ca_certificates SET not_before = '2020-01-01' WHERE ca_id = $1", old)
    await call(world, "PATCH", f"/pki/ca/{off}", {"status": "disabled"})
    end = "UPDATE ca_certificates SET not_after = now() - interval '1 s' WHERE ca_id = $1"
    await world.database.execute(end, expired)
    good = csr(SERVER, outside.subject("www.keystead.dev"), sans(_HOST))
    of_rsa = csr(rsa.generate_private_key(65537, 2048), outside.subject("www.keystead.dev"), sans(_HOST))
    weak = csr(weak_key(), outside.subject("www.keystead.dev"), sans(_HOST))
    secret = outside.key_pem(ec.generate_private_key(ec.SECP256R1()))
    before = await stored(world)

    async def told(
        fields: dict[str, Any], status: int, message: str | None, case: Any, one: str = ca_id
    ) -> list[dict[str, Any]]:
        body = {k: v for k, v in {"csr": good, "ttl": "1d", **fields}.items() if v is not ...}
        ways = [(f"{prefix}/{one}/sign-certificate", body) for prefix in PREFIXES]
        ways.append((SIGN_BY_BODY, {**body, "caId": one}))
        answers = [await call(world, "POST", path, sent) for path, sent in ways]
        return [refused(answer, status, message, case) for answer in answers]

    for case, (fields, wrong) in BAD_LEAVES.items():
        for body in await told(fields, 422, None, case):
            assert paths_of(body) == wrong, (case, body)
    for case, (fields, message) in REFUSED_LEAVES.items():
        await told(fields, 400, message, case)
    for case, (common_name, extensions) in BAD_CSRS.items():
        await told({"csr": csr(SERVER, outside.subject(common_name), *extensions)}, 400, None, case)
    requests: dict[str, str] = {
        "garbage": "x",
        "a broken block": block(b"x" * 300),
        "two blocks": good + good,
        "two blocks of two labels": good + good.replace("CERTIFICATE", "NEW CERTIFICATE"),
        "a block of nothing": "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        "cut in the middle": good[: len(good) // 2],
        "DER in Base64": "".join(good.splitlines()[1:-1]),
        "a wrong signature": tampered(good),
        "a certificate": outside.pem(outside.root().certificate),
        "no subject and no name": csr(SERVER, x509.Name([])),
        "RSA-1024": weak,
        "Ed25519": csr(ed25519.Ed25519PrivateKey.generate(), outside.subject("www.keystead.dev"), sans(_HOST)),
        "secp256k1": csr(ec.generate_private_key(ec.SECP256K1()), outside.subject("www.keystead.dev"), sans(_HOST)),
        "DSA": DSA_CSR,
        "a private key": secret,
        "a subject of 100,000": csr(
            SERVER, x509.Name([x509.NameAttribute(NameOID.STREET_ADDRESS, "s" * 100_000)]), sans(_HOST)
        ),
    }
    for case, text in requests.items():
        await told({"csr": text}, 400, None, case)
    for usage in ("keyCertSign", "cRLSign"):
        await told({"csr": of_rsa, "keyUsages": ["digitalSignature", usage]}, 400, None, ("RSA", usage))
    await told({"csr": "x"}, 400, INACTIVE, "pending", pending)
    await told({"csr": "x"}, 400, INACTIVE, "disabled", off)
    await told({"csr": "x"}, 400, OVER, "expired", expired)
    template = "Certificate template or subscriber is required for issuance"
    await told({}, 400, template, "a template is required", strict)
    await told({"notBefore": hours(-49), "ttl": "9d"}, 400, None, "backdated", old)
    await told({"notBefore": hours(-40)}, 400, None, "over already", old)
    for place in ("/sign-intermediate", "/sign-certificate"):
        body = {"csr": good + secret + good, "ttl": "1d", "notAfter": f"{YEAR}"}
        refused(await call(world, "POST", f"/pki/ca/{ca_id}{place}", body), 400, case=place)
        refused(await call(world, "POST", f"/pki/ca/{ca_id}{place}", {**body, "csr": secret}), 400, case=place)
    lines = [line for line in secret.splitlines() if len(line) > 30 and "-" not in line]
    assert lines
    assert not any(line in seen for line in lines for seen in world.seen)
    assert await stored(world) == before
    for text, usages in ((good, ["digitalSignature"]), (of_rsa, ["keyEncipherment"])):
        body = {"csr": text, "ttl": "1d", "keyUsages": usages}
        assert (await call(world, "POST", f"/pki/ca/{ca_id}/sign-certificate", body)).status_code == 200, usages


async def test_issue_certificate_makes_no_key_for_a_bad_request(world: World) -> None:
    """A key is made for nobody whose name, time or usages are wrong, and for no CA that does not sign."""
    headers = bearer(await make_token(world.services, world.a.account, groups=("Private CA Issue Key",)))
    ca_id, strict = await new_ca(world), await new_ca(world, requireTemplateForIssuance=True)
    pending = await new_ca(world, type="intermediate")
    before = await stored(world)
    bad: list[tuple[str, dict[str, Any], int, Any]] = [
        (ca_id, {"commonName": ...}, 422, ["commonName"]),
        (ca_id, {"commonName": ""}, 422, ["commonName"]),
        (ca_id, {"commonName": "a\x00b"}, 422, ["commonName"]),
        (ca_id, {"commonName": "c" * 65}, 422, ["commonName"]),
        (ca_id, {"ttl": ...}, 422, ["ttl"]),
        (ca_id, {"ttl": "0d", "keyUsages": ["x"]}, 422, ["keyUsages.0", "ttl"]),
        (ca_id, {"commonName": "Jane Doe"}, 400, None),
        (ca_id, {"altNames": "a..b"}, 400, None),
        (ca_id, {"altNames": ",".join(f"h{i}.keystead.dev" for i in range(151))}, 400, None),
        (ca_id, {"ttl": "1000y"}, 400, TOO_LATE),
        (ca_id, {"notBefore": "1999"}, 400, TOO_EARLY),
        (ca_id, {"keyUsages": ["keyCertSign"]}, 400, None),
        (ca_id, {"keyUsages": ["keyEncipherment"]}, 400, None),
        (pending, {}, 400, INACTIVE),
        (strict, {}, 400, "Certificate template or subscriber is required for issuance"),
    ]
    for one, fields, status, expected in bad:
        body = {k: v for k, v in {"commonName": "www.keystead.dev", "ttl": "1d", **fields}.items() if v is not ...}
        for prefix in PREFIXES:
            answer = await call(world, "POST", f"{prefix}/{one}/issue-certificate", body, **headers)
            told = refused(answer, status, None if status == 422 else expected, fields)
            assert status != 422 or paths_of(told) == expected, (fields, told)
    assert await stored(world) == before


async def test_leaves_keep_to_the_name_policy_of_the_account(world: World) -> None:
    """Where names are public, neither a CSR nor a key made here gets a certificate for a reserved one."""
    headers = bearer(
        await make_token(world.services, world.a.account, groups=("Private CA Sign", "Private CA Issue Key"))
    )
    ca_id, name = await new_ca(world), "www.internal.test"
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    asked = {
        "issue-certificate": {"commonName": name},
        "sign-certificate": {"csr": csr(ec.generate_private_key(ec.SECP256R1()), named)},
    }
    sql = "UPDATE accounts SET name_policy = 'public' WHERE id = $1"
    await world.database.execute(sql, world.a.account.id)
    for tail, body in asked.items():
        answer = await call(world, "POST", f"/pki/ca/{ca_id}/{tail}", {**body, "ttl": "1d"}, **headers)
        said = f'"{name}" is under the reserved top domain "test".'
        assert (answer.status_code, answer.json()["message"]) == (400, said), tail


async def test_a_certificate_is_revoked_once_and_by_its_owner(world: World) -> None:
    """Unknown serials and other tenants' are one 404; reasons are Infisical's words; a root's own is not revoked."""
    ca_id, theirs = await new_ca(world), await new_ca(world, world.b)
    own, other = await new_leaf(world, ca_id), await new_leaf(world, theirs, world.b)
    root = (await call(world, "GET", f"/pki/ca/{ca_id}/certificate")).json()["serialNumber"]
    before = await stored(world)
    odd = (
        "0",
        "x",
        "g" * 40,
        own[:-1],
        own + "0",
        "4" + "0" * 39,
        "é",
        "0x" + own,
        "9" * 2000,
        "' OR 1=1 --",
        "\ud7ff\n",
    )
    for serial in (other, "4" + "1" * 39, *odd):
        for method, tail in (("GET", ""), ("GET", "/certificate"), ("POST", "/revoke")):
            path = f"/pki/certificates/{quote(serial, safe='')}{tail}"
            answer = await call(world, method, path, {"revocationReason": "WHIM"} if tail == "/revoke" else None)
            told = refused(answer, 404, case=(serial, tail))
            wanted = f"Certificate with serial number '{serial.lower()}' not found"
            assert told["message"] == wanted, (serial, tail)
    for case, body in {
        "nothing": {},
        "null": {"revocationReason": None},
        "empty": {"revocationReason": ""},
        "small letters": {"revocationReason": "key_compromise"},
        "RFC 5280's words": {"revocationReason": "keyCompromise"},
        "a number": {"revocationReason": 1},
        "a digit": {"revocationReason": "1"},
        "a list": {"revocationReason": ["UNSPECIFIED"]},
        "what only a delta CRL has": {"revocationReason": "REMOVE_FROM_CRL"},
        "an attribute": {"revocationReason": "__members__"},
    }.items():
        answer = await call(world, "POST", f"/pki/certificates/{own}/revoke", body)
        assert paths_of(refused(answer, 422, case=case)) == ["revocationReason"], case
    good = {"revocationReason": "KEY_COMPROMISE"}
    refused(await call(world, "POST", f"/pki/certificates/{root}/revoke", good), 400)
    state = "SELECT count(*) AS n FROM issued_certificates WHERE revoked_at IS NOT NULL"
    row = await world.database.fetchrow(state)
    assert row
    assert row["n"] == 0
    spelled = ":".join(own[i : i + 2] for i in range(0, 40, 2)).upper()
    assert (await call(world, "POST", f"/pki/certificates/{spelled}/revoke", good)).status_code == 200
    for reason in crls.Reason.__members__:
        refused(await call(world, "POST", f"/pki/certificates/{own}/revoke", {"revocationReason": reason}), 400)
    shown = (await call(world, "GET", f"/pki/certificates/{own}")).json()["certificate"]
    assert (shown["status"], shown["revocationReason"]) == ("revoked", 1)
    assert await stored(world) == before


# --- the login ---


async def test_a_failed_login_is_one_answer_whatever_was_wrong(world: World) -> None:
    """Every wrong pair is 401 with one text, as JSON and as a form; a missing field is 422; no access token is made."""
    token, value = await new_token(world, world.a)
    other, other_value = await new_token(world, world.b)
    off, disabled = await new_token(world, world.a)
    await tokens.set_status(world.database, operator(), off, active=False)
    gone, revoked = await new_token(world, world.a)
    await tokens.revoke(world.database, operator(), gone)
    late, expired = await new_token(world, world.a, expires_on=NOW - timedelta(hours=1))
    soon, early = await new_token(world, world.a, not_before=NOW + timedelta(hours=1))
    good = {"clientId": str(token.id), "clientSecret": value}
    access = (await call(world, "POST", LOGIN, good)).json()["accessToken"]
    count = "SELECT count(*) AS n FROM access_tokens"
    before = await world.database.fetchrow(count)
    cases: dict[str, dict[str, str]] = {
        "a wrong secret": {**good, "clientSecret": tokens.new_token()},
        "a secret that is none": {**good, "clientSecret": "x"},
        "a secret cut short": {**good, "clientSecret": value[:-1]},
        "a global key": {**good, "clientSecret": world.a.key},
        "the access token": {**good, "clientSecret": access},
        "a secret in white space": {**good, "clientSecret": f" {value} "},
        "an unknown id": {**good, "clientId": str(uuid4())},
        "an id that is none": {**good, "clientId": "x"},
        "an account's id": {**good, "clientId": str(world.a.account.id)},
        "another token's id": {**good, "clientId": str(other.id)},
        "another token's secret": {**good, "clientSecret": other_value},
        "a disabled token": {"clientId": str(off.id), "clientSecret": disabled},
        "a revoked token": {"clientId": str(gone.id), "clientSecret": revoked},
        "an expired token": {"clientId": str(late.id), "clientSecret": expired},
        "a token of tomorrow": {"clientId": str(soon.id), "clientSecret": early},
        "NUL": {**good, "clientSecret": value + "\x00"},
        "3,000 characters": {"clientId": "0" * 3_000, "clientSecret": "x" * 3_000},
    }
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for case, body in cases.items():
        refused(await call(world, "POST", LOGIN, body), 401, INVALID, case)
        refused(await call(world, "POST", LOGIN, urlencode(body).encode(), **form), 401, INVALID, case)
    missing: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["clientId", "clientSecret"]),
        ({"clientId": good["clientId"]}, ["clientSecret"]),
        ({"clientSecret": value}, ["clientId"]),
        ({"clientId": "", "clientSecret": ""}, ["clientId", "clientSecret"]),
    ]
    for body, wrong in missing:
        for sent, headers in ((json.dumps(body).encode(), {}), (urlencode(body).encode(), form)):
            told = refused(await call(world, "POST", LOGIN, sent, **headers), 422, case=sent)
            assert paths_of(told) == wrong, sent
    typed: dict[str, Any] = {"clientId": 5, "clientSecret": [value]}
    assert paths_of(refused(await call(world, "POST", LOGIN, typed), 422)) == ["clientId", "clientSecret"]
    for raw in (b"\xff", b"a=%ff", b"&".join(b"a=1" for _ in range(1000))):
        answer = await call(world, "POST", LOGIN, raw, **form)
        assert answer.status_code in {400, 422}, raw[:20]
        refused(answer, answer.status_code, case=raw[:20])
    refused(await world.http.post(V1 + LOGIN, content=b"{}"), 422)
    assert await world.database.fetchrow(count) == before
    charset = {"Content-Type": "Application/X-WWW-Form-URLEncoded; charset=utf-8"}
    for headers in (form, charset):
        answer = await call(world, "POST", f"{LOGIN}/", urlencode(good).encode(), **headers)
        assert answer.status_code == 200, headers
        assert set(answer.json()) == {"accessToken", "expiresIn", "accessTokenMaxTTL", "tokenType"}
    for secret in (value, other_value, disabled, revoked, expired, early):
        assert not any(secret in seen for seen in world.seen)


async def test_an_access_token_dies_with_its_api_token(world: World) -> None:
    """It stops when its API token is switched off, rolled, revoked or over, and says so when its own time is over."""
    path = f"/cert-manager/ca/internal?projectId={world.a.account.id}"

    async def opened() -> tuple[Token, dict[str, str]]:
        token, value = await new_token(world, world.a)
        body = {"clientId": str(token.id), "clientSecret": value}
        access = (await call(world, "POST", LOGIN, body)).json()["accessToken"]
        headers = bearer(access)
        assert (await call(world, "GET", path, **headers)).status_code == 200
        return token, headers

    token, headers = await opened()
    await tokens.set_status(world.database, operator(), token, active=False)
    refused(await call(world, "GET", path, **headers), 401, NOT_ALLOWED)
    await tokens.set_status(world.database, operator(), token, active=True)
    assert (await call(world, "GET", path, **headers)).status_code == 200
    await tokens.revoke(world.database, operator(), token)
    refused(await call(world, "GET", path, **headers), 401, NOT_ALLOWED)
    token, headers = await opened()
    await tokens.roll(world.services, operator(), token)
    refused(await call(world, "GET", path, **headers), 401, NOT_ALLOWED)
    token, headers = await opened()
    await world.database.execute("UPDATE tokens SET expires_on = now() - interval '1 second' WHERE id = $1", token.id)
    refused(await call(world, "GET", path, **headers), 403, EXPIRED, word="TokenError")
    token, headers = await opened()
    end = "UPDATE access_tokens SET expires_at = now() - interval '1 second' WHERE token_id = $1"
    await world.database.execute(end, token.id)
    for route in ROUTES:
        url = route.path.format(ca="x", serial="x", project="x")
        refused(await call(world, route.method, url, b"{", **headers), 403, EXPIRED, route, "TokenError")


# --- the table, and what is pure ---

VISIT = RequestInfo(None, "req-" + "0" * 14, "GET", "/api/v1/x")
SECRET = "s3cret-of-the-house"


def test_every_kind_of_error_has_its_place_in_the_table() -> None:
    """Each kind gets a status of the contract with its word, and what is not the caller's fault tells no secret."""
    samples: dict[type[Exception], tuple[int, list[Exception]]] = {
        errors.Invalid: (422, [errors.Invalid((Problem(rule, "common_name", "common_name x"),)) for rule in Rule]),
        errors.NotFound: (404, [errors.NotFound("x", thing) for thing in Thing]),
        errors.Conflict: (400, [errors.Conflict("x", clash) for clash in Clash]),
        errors.Refusal: (400, [errors.Refusal("x")]),
        errors.Unauthenticated: (401, [errors.Unauthenticated(scheme) for scheme in Scheme]),
        errors.Forbidden: (
            403,
            [
                *(errors.Forbidden(denial, "x") for denial in Denial),
                errors.Forbidden(Denial.MORE_RIGHTS, problems=(Problem(Rule.MORE_RIGHTS, "policies", "policies x"),)),
            ],
        ),
        errors.LimitReached: (400, [errors.LimitReached(limit, "x") for limit in Limit]),
        errors.Unavailable: (503, [errors.Unavailable("x", seconds) for seconds in (-1, 0, 1, 5, 10**9)]),
        errors.KeyDamaged: (500, [errors.KeyDamaged("1", SECRET)]),
        errors.CertificateDamaged: (500, [errors.CertificateDamaged("x")]),
        errors.Misconfigured: (500, [errors.Misconfigured(SECRET)]),
    }
    kinds = {k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, errors.KeysteadError)}
    assert kinds - {errors.KeysteadError} == set(samples)
    more: list[tuple[int, Exception]] = [
        (413, bodies.TooLarge("x")),
        (400, bodies.Incomplete("x")),
        (500, errors.KeysteadError(SECRET)),
        *[(500, kind(SECRET)) for kind in (RuntimeError, KeyError, ValueError, TypeError, AssertionError, OSError)],
        *[(500, kind(detail=SECRET)) for kind in (HTTPException, ClientException)],
        *[(status, ApiError(status, "x")) for status in WORDS],
    ]
    assert wire.WORDS == WORDS
    every = [(status, error) for status, each in samples.values() for error in each]
    for status, error in [*every, *more]:
        answer = wire.failure(error, VISIT)
        body = json.loads(answer.content)
        assert (answer.status_code, body["statusCode"], body["error"]) == (status, status, WORDS[status]), error
        assert body["reqId"] == VISIT.request_id
        assert SECRET not in answer.content.decode() + str(answer.headers)
        assert body["message"], error
        # Which CA it is helps the operator, and is no secret.
        if status == 500 and not isinstance(error, ApiError | errors.CertificateDamaged):
            assert body["message"] == "Something went wrong", error
        if status == 503 and isinstance(error, errors.Unavailable):
            assert 1 <= int(answer.headers["Retry-After"]) <= 60, error
    expired = wire.failure(errors.Unauthenticated(Scheme.TOKEN, expired=True), VISIT)
    assert (expired.status_code, json.loads(expired.content)["error"]) == (403, "TokenError")


_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)
_NAMES = st.sampled_from(
    [
        *("projectSlug", "type", "friendlyName", "commonName", "organization", "ou", "country", "province", "locality"),
        *("notBefore", "notAfter", "maxPathLength", "keyAlgorithm", "requireTemplateForIssuance", "csr", "altNames"),
        *("ttl", "keyUsages", "extendedKeyUsages", "clientId", "clientSecret", "revocationReason", "status", "x"),
    ]
)
_LIKELY = st.sampled_from(
    ["root", "intermediate", "2029", "9999-12-31", "0001-01-01T00:00+23:59", "1d", "999999999y", "a.dev", "::1", "DE"]
)
_USAGES = st.lists(st.sampled_from([*pkix.KEY_USAGES, *pkix.EXTENDED_KEY_USAGES]), max_size=4)
_BODIES = st.dictionaries(_NAMES, _LIKELY | _USAGES | _JSON, max_size=10)


Read: TypeAlias = Callable[[Any], Any]


def _leaf(read: Read) -> None:
    fields = read(SignRequest)
    asked = leaf_request(fields, fields.common_name, fields.csr)
    if leaves.problems(asked):
        return
    try:
        leaves._checked(leaves._given(asked.alt_names) or leaves._from(asked.common_name), NamePolicy.PRIVATE)
        leaves._usages(asked.key_usages, rsa_key=False)
        leaves._ends(asked)
    except errors.Refusal:
        pass
    with pytest.raises(pkix.BadCsr):
        pkix.read_csr(asked.csr)


def _authority(read: Read) -> None:
    new = wire_ca.new_authority(read(wire_ca.CaRequest))
    if not authorities.problems(new):
        assert wire_ca.dn(new.subject)


def _login(read: Read) -> None:
    fields = read(LoginRequest)
    assert all((fields.client_id, fields.client_secret))


READERS: Sequence[Callable[[Read], None]] = (_leaf, _authority, _login)


def harmless(raw: bytes, read: Callable[[bytes, Any], Any] = reading.decode) -> None:
    """Whatever these bytes are, they are read or told, in an answer that can be written down."""
    for reader in READERS:
        told: Exception | None = None
        try:
            reader(lambda struct: read(raw, struct))
        except (ApiError, ValidationFailure) as error:
            told = error
        if told:
            answer = wire.failure(told, VISIT)
            assert answer.status_code == (422 if isinstance(told, ValidationFailure) else 400)
            assert json.loads(answer.content)["message"]


@given(_BODIES)
def test_no_json_object_is_more_than_a_refusal(values: dict[str, Any]) -> None:
    """Any object is read, or is refused with a sentence or a list of issues."""
    harmless(json.dumps(values).encode())


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_refusal(raw: bytes) -> None:
    """Any bytes are read, as JSON and as a form, or are refused."""
    harmless(raw)
    harmless(raw, reading.decode_form)


_DATES = st.from_regex(
    r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?)?)?"
)
_TTLS = st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,12})? ?[smhdwyM]")


def test_a_date_is_of_utc_wherever_the_server_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone of the machine makes no difference to a date without one."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = [times.date(text) for text in ("2029-06-12", "2029-06-12T00:00", "2029-06-12T09:00+09:00")]
    time.tzset()
    assert found == [datetime(2029, 6, 12, tzinfo=UTC)] * 3


def test_a_time_has_three_digits_of_milliseconds() -> None:
    """Five milliseconds are .005, as JavaScript writes and reads it."""
    assert wire.instant(datetime(2029, 6, 12, 1, 2, 3, 5999, UTC)) == "2029-06-12T01:02:03.005Z"


@given(_TEXT | _DATES)
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
@example("9999-12-31T24:00:00Z")
def test_any_text_is_a_date_in_utc_or_none(text: str) -> None:
    """A date is never an exception, and always has its zone."""
    found = times.date(text)
    assert found is None or found.utcoffset() == timedelta(0)


@given(_TEXT | _TTLS)
@example("999999999.999999999y")
@example("0.000000001s")
def test_any_text_is_a_span_or_none(text: str) -> None:
    """A span is never an exception, and from one second on."""
    found = times.span(text)
    assert found is None or found >= timedelta(seconds=1)
