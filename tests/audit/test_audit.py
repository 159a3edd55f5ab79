"""The audit log: what a change, a denial and a failed authentication leave in it, and how it is read and pruned."""

import asyncio
import base64
import contextlib
import ipaddress
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from cloudflare.types.accounts.logs import AuditListResponse
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel
from support import authority
from support.authority import csr_of, key_pem, pem, root
from support.databases import new_database
from support.live import free_port
from support.waiting import comes_about
from support.world import BODY, World, make_token, new_world

from keystead.audit import failures
from keystead.audit import log as audit_log
from keystead.audit import record as audit
from keystead.caller import GROUPS, Area, Role
from keystead.config import RateLimit
from keystead.errors import Unavailable
from keystead.identity import accounts, policies, tokens
from keystead.identity.accounts import Account, User
from keystead.identity.tokens import Token
from keystead.server import first_start, postgres
from keystead.store import database as db
from keystead.store.database import Connection
from keystead.x509 import chains

Json = dict[str, Any]
V4, V1 = "/client/v4", "/api/v1"
AGENT = "audit-test/1"
KEY = ec.generate_private_key(ec.SECP256R1())
NOWHERE = UUID(int=0)
YEARS = f"{datetime.now(UTC).year + 3}"
CA: Json = {"projectSlug": "a", "commonName": "Root CA", "keyAlgorithm": "EC_prime256v1", "type": "root"}
EVERYTHING = tuple(group.name for group in GROUPS if group.area is not Area.USER_TOKENS)
READER = ("SSL and Certificates Read", "Account: SSL and Certificates Read")
ISSUED = ("issue a leaf with its key", "issue for a CA in the body")
# Written down before it is done, so that nothing is done unseen: how it was answered was not known then.
BEFOREHAND = {"read", "get-certificate-authority-csr", "sign", "sign-intermediate", "issue-key", "renew"}
LAST_ID = "SELECT id FROM issued_certificates WHERE serial = $1"


class Row(NamedTuple):
    """What is written of a thing; `thing` names it: `{name}` of the site, or `@place` in the answer."""

    action: str
    resource: str
    thing: str
    account: str = "a"
    zone: str = ""


class Act(NamedTuple):
    """A call that changes something; `by` is whose credentials it has, and a text as its body names one of the site."""

    method: str
    path: str
    body: Json | str | None
    rows: tuple[Row, ...]
    by: str = "token"


class Attempt(NamedTuple):
    """A call that is denied, and where that is filed."""

    by: str
    method: str
    path: str
    resource: str
    thing: str
    account: str
    zone: str = ""
    body: Json | str | None = None
    status: int = 403


class Who(NamedTuple):
    """The columns of a row that say who."""

    actor: str
    actor_id: UUID
    user_id: UUID | None
    actor_name: str | None
    actor_email: str | None


class Site(msgspec.Struct):
    """A world with things of every kind in it, and callers of every kind; `http` is judged once all is there."""

    world: World
    http: httpx.AsyncClient
    ids: dict[str, str] = {}
    bodies: dict[str, Json] = {}
    headers: dict[str, dict[str, str]] = {}
    who: dict[str, Who] = {}
    done: dict[str, httpx.Response] = {}

    async def call(self, by: str, method: str, path: str, body: Json | str | None = None) -> httpx.Response:
        sent = self.bodies[body] if isinstance(body, str) else body
        content = b"" if sent is None else json.dumps(sent).encode()
        headers = {"User-Agent": AGENT, **self.headers[by]}
        return await self.http.request(method, path.format(**self.ids), content=content, headers=headers)

    async def good(self, by: str, method: str, path: str, body: Json | str | None = None) -> Any:
        answer = await self.call(by, method, path, body)
        assert answer.is_success, (method, path, answer.text)
        return answer.json()

    async def perform(self, name: str) -> httpx.Response:
        act = ACTS[name]
        self.done[name] = answer = await self.call(act.by, act.method, act.path, act.body)
        if name in ISSUED:
            # The one answer that has a private key in it.
            self.world.seen.pop()
        return answer

    async def thing(self, name: str, answer: httpx.Response) -> UUID:
        """The id that a row's `thing` means."""
        if not name.startswith("@"):
            return UUID(self.ids[name])
        value = answer.json()
        for key in name[1:].split("."):
            value = value[key]
        if name.endswith("serialNumber"):
            found = await self.world.database.fetchrow(LAST_ID, value)
            assert found is not None
            return UUID(str(found["id"]))
        return UUID(value)

    async def rows(self, answer: httpx.Response) -> list[asyncpg.Record]:
        sql = "SELECT * FROM audit_log WHERE request_id = $1 ORDER BY at, action, resource_type, id"
        return await self.world.database.fetch(sql, answer.headers["x-request-id"])


async def new_site(world: World) -> Site:
    """Everything that the acts and attempts need, made beforehand."""
    site, a, b = Site(world, client_from(world, "127.0.0.1")), world.a, world.b
    site.ids |= {"a": a.account.id.hex, "zone": a.zone.id.hex, "b": b.account.id.hex, "b_zone": b.zone.id.hex}
    site.ids |= {"none": NOWHERE.hex, "unknown": uuid4().hex}
    await _callers(site)
    await _tenancy(site)
    await _certificates(site)
    await _authorities(site)
    await site.http.aclose()
    site.http = world.http
    return site


async def _callers(site: Site) -> None:
    world, operator = site.world, first_start.operator()
    a, b = world.a, world.b
    user, other = [await accounts.find_user(world.database, tenant.email) for tenant in (a, b)]
    for name, groups in (("token", EVERYTHING), ("reader", READER), ("maker", ("Account API Tokens Write",))):
        site.headers[name] = await _new_token(site, name, a.account, groups)
    elsewhere = policies.address_condition(["10.0.0.0/8"])
    site.headers["bound"] = await _new_token(site, "bound", a.account, EVERYTHING, condition=elsewhere)
    all_groups = tuple(group.name for group in GROUPS)
    site.headers["user_token"] = await _new_token(site, "user_token", a.account, all_groups, user=user)
    site.headers["foreign"] = await _new_token(site, "foreign", b.account, EVERYTHING)
    member = await accounts.create_user(world.database, operator, "member@example.com")
    await accounts.set_membership(world.database, operator, member, a.account, Role.READ)
    key = await tokens.roll_global_key(world.services, operator, member)
    for name, each, value in (("key", user, a.key), ("foreign_key", other, b.key), ("member", member, key)):
        site.headers[name] = {"X-Auth-Email": each.email, "X-Auth-Key": value}
        site.who[name] = Who("user", each.id, each.id, None, each.email)
    for name, of in (("login", "token"), ("bound_login", "bound")):
        secret = site.headers[of]["Authorization"].removeprefix("Bearer ")
        site.bodies[name] = {"clientId": site.ids[of], "clientSecret": secret}
    for name in ("access", "access_1"):
        access = (await site.good("token", "POST", f"{V1}/auth/universal-auth/login", "login"))["accessToken"]
        site.bodies[name] = {"accessToken": access}
    access = site.bodies["access"]["accessToken"]
    site.headers["access"] = {"Authorization": f"Bearer {access}"}
    site.who["access"] = site.who["token"]


async def _new_token(
    site: Site, name: str, account: Account, groups: tuple[str, ...], user: User | None = None, **fields: Any
) -> dict[str, str]:
    text = policies.write(account, tuple(map(policies.find_group, groups)))
    new = tokens.NewToken(account, f"the {name}", text, user, **fields)
    token, value = await tokens.create(site.world.services, first_start.operator(), new)
    site.ids[name] = token.id.hex
    site.who[name] = _who(token, user)
    return {"Authorization": f"Bearer {value}"}


def _who(token: Token, user: User | None) -> Who:
    return Who("token", token.id, user.id if user else None, token.name, user.email if user else None)


async def _tenancy(site: Site) -> None:
    a = site.world.a.account
    narrow = json.loads(policies.write(a, (policies.find_group("SSL and Certificates Read"),)))
    site.bodies["narrow"] = {"name": "narrow", "policies": narrow}
    site.bodies["wide"] = {"name": "wide", "policies": json.loads(policies.write(a, policies.default_groups()))}
    for name in ("token_1", "token_2", "token_3"):
        made = await site.good("token", "POST", f"{V4}/accounts/{{a}}/tokens", "narrow")
        site.ids[name] = made["result"]["id"]
        made = await site.good("key", "POST", f"{V4}/user/tokens", "narrow")
        site.ids[f"user_{name}"] = made["result"]["id"]
    for name in ("account_1", "account_2"):
        made = await site.good("key", "POST", f"{V4}/accounts", {"name": name})
        site.ids[name] = made["result"]["id"]
    for name in ("zone_1", "zone_2"):
        body = {"account": {"id": site.ids["a"]}, "name": f"{name.replace('_', '-')}.example.com"}
        site.ids[name] = (await site.good("token", "POST", f"{V4}/zones", body))["result"]["id"]
        site.bodies[f"new_{name}"] = {**body, "name": f"new-{body['name']}"}
    site.bodies["in_b"] = {"account": {"id": site.ids["b"]}, "name": "x.example.com"}
    site.bodies["in_a"] = {"account": {"id": site.ids["a"]}, "name": "x.example.com"}


async def _certificates(site: Site) -> None:
    world, ca = site.world, root()
    world.trust(chains.anchors([pem(ca.certificate).encode()]))
    host = "www.a.example.com"
    for name in ("csr_1", "csr_2"):
        site.ids[name] = (await world.create())["id"]
    for number in range(1, 6):
        csr = await world.create(path=world.a.zone_path, sans=[host])
        site.ids[f"zone_csr_{number}"] = csr["id"]
        site.bodies[f"certificate_{number}"] = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
        site.bodies[f"renewal_{number}"] = {"certificate": pem(ca.of_csr(csr["csr"]))}
    for number in (1, 2, 3):
        made = await site.good("token", "POST", f"{V4}/zones/{{zone}}/custom_certificates", f"certificate_{number}")
        site.ids[f"certificate_{number}"] = made["result"]["id"]
    leaf = ca.sign(KEY.public_key(), authority.subject(host), hosts=[host])
    site.bodies["with_key"] = {"certificate": pem(leaf), "private_key": key_pem(KEY)}
    priorities = [{"id": site.ids[f"certificate_{n}"], "priority": n + 6} for n in (1, 2)]
    site.bodies["priorities"] = {"certificates": priorities}


async def _authorities(site: Site) -> None:
    for name in ("ca", "ca_1", "ca_2", "ca_3"):
        site.ids[name] = (await site.good("token", "POST", f"{V1}/pki/ca", {**CA, "commonName": name}))["ca"]["id"]
    for name in ("pending_1", "pending_2"):
        body = {**CA, "commonName": name, "type": "intermediate"}
        site.ids[name] = (await site.good("token", "POST", f"{V1}/pki/ca", body))["ca"]["id"]
        csr = (await site.good("token", "GET", f"{V1}/pki/ca/{{{name}}}/csr"))["csr"]
        site.bodies[f"sign_{name}"] = {"csr": csr, "notAfter": YEARS}
    signed = await site.good("token", "POST", f"{V1}/pki/ca/{{ca}}/sign-intermediate", "sign_pending_1")
    chain = {"certificate": signed["certificate"], "certificateChain": signed["certificateChain"]}
    site.bodies["import_pending_1"] = chain
    site.bodies["leaf"] = {"csr": csr_of(KEY, "www.a.example.com"), "ttl": "1d"}
    listed = await site.good("token", "GET", f"{V1}/pki/ca/{{ca}}")
    site.ids["of_ca"] = listed["ca"]["activeCaCertId"]
    site.bodies["key_of_ca"] = {"caId": site.ids["ca"], "commonName": "www.a.example.com", "ttl": "1d"}
    for name in ("policy", "policy_1"):
        made = await site.good("token", "POST", f"{_API}/certificate-policies", {"name": name.replace("_", "-")})
        site.ids[name] = made["certificatePolicy"]["id"]
    new = {"slug": "profile", "caId": site.ids["ca"], "certificatePolicyId": site.ids["policy"]}
    made = await site.good("token", "POST", f"{_API}/certificate-profiles", new)
    site.ids["profile"] = made["certificateProfile"]["id"]
    site.bodies["new_profile"] = {**new, "slug": "new"}
    made = await site.good("token", "POST", f"{_API}/applications", {"name": "application"})
    site.ids["application"] = made["application"]["id"]
    site.bodies["attach"] = {"profileIds": [site.ids["profile"]]}
    csr = csr_of(KEY, "www.a.example.com")
    site.bodies["by_profile"] = {"profileId": site.ids["profile"], "csr": csr, "attributes": {"ttl": "1d"}}
    site.bodies["leaf_of_ca"] = {**site.bodies["leaf"], "caId": site.ids["ca"]}
    for name in ("serial_1", "serial_2"):
        signed = await site.good("token", "POST", f"{V1}/pki/ca/{{ca}}/sign-certificate", "leaf")
        site.ids[name] = signed["serialNumber"]
        found = await site.world.database.fetchrow(LAST_ID, signed["serialNumber"])
        assert found is not None
        site.ids[f"of_{name}"] = found["id"].hex


INTERNAL = {
    "name": "named",
    "status": "active",
    "configuration": {"type": "root", "commonName": "Named", "keyAlgorithm": "EC_prime256v1"},
}
_A, _Z = f"{V4}/accounts/{{a}}", f"{V4}/zones/{{zone}}"
_CA, _SIGNED = f"{V1}/pki/ca", "issued_certificate"


def _csr(action: str, thing: str = "@result.id", zone: str = "") -> tuple[Row, ...]:
    return (Row(action, "custom_csr", thing, zone=zone),)


def _certificate(action: str, *things: str) -> tuple[Row, ...]:
    return tuple(Row(action, "custom_certificate", thing, zone="zone") for thing in things or ("@result.id",))


def _user_token(action: str, thing: str = "@result.id") -> tuple[Row, ...]:
    return (Row(action, "token", thing, account="none"),)


def _ca(action: str, thing: str = "@ca.id") -> tuple[Row, ...]:
    return (Row(action, "certificate_authority", thing),)


_API = f"{V1}/cert-manager"
_PAIR = f"{_API}/applications/{{application}}/profiles/{{profile}}"


def _of(noun: str, action: str, thing: str) -> tuple[Row, ...]:
    return (Row(action, f"certificate_{noun}" if noun else "application", thing),)


def _signed(action: str, thing: str = "@serialNumber") -> tuple[Row, ...]:
    return (Row(action, _SIGNED, thing),)


ACTS = {
    "make a CSR of the account": Act("POST", f"{_A}/custom_csrs", BODY, _csr("create")),
    "make a CSR of the zone": Act("POST", f"{_Z}/custom_csrs", BODY, _csr("create", zone="zone")),
    "delete a CSR of the account": Act("DELETE", f"{_A}/custom_csrs/{{csr_1}}", None, _csr("delete", "csr_1")),
    "delete a CSR of the zone": Act(
        "DELETE", f"{_Z}/custom_csrs/{{zone_csr_5}}", None, _csr("delete", "zone_csr_5", "zone")
    ),
    "upload a certificate": Act("POST", f"{_Z}/custom_certificates", "certificate_4", _certificate("create")),
    "upload a certificate and its key": Act("POST", f"{_Z}/custom_certificates", "with_key", _certificate("create")),
    "edit a certificate": Act(
        "PATCH",
        f"{_Z}/custom_certificates/{{certificate_1}}",
        {"geo_restrictions": {"label": "eu"}},
        _certificate("update", "certificate_1"),
    ),
    "renew a certificate": Act(
        "PATCH",
        f"{_Z}/custom_certificates/{{certificate_2}}",
        "renewal_2",
        _certificate("update", "certificate_2"),
    ),
    "give certificates priorities": Act(
        "PUT",
        f"{_Z}/custom_certificates/prioritize",
        "priorities",
        _certificate("update", "certificate_1", "certificate_2"),
    ),
    "delete a certificate": Act(
        "DELETE", f"{_Z}/custom_certificates/{{certificate_3}}", None, _certificate("delete", "certificate_3")
    ),
    "make an account": Act(
        "POST", f"{V4}/accounts", {"name": "New"}, (Row("create", "account", "@result.id", "@result.id"),), "key"
    ),
    "rename an account": Act("PUT", _A, {"name": "Renamed"}, (Row("update", "account", "a"),)),
    "rename an account by a global key": Act("PUT", _A, {"name": "Again"}, (Row("update", "account", "a"),), "key"),
    "delete an account": Act(
        "DELETE",
        f"{V4}/accounts/{{account_1}}",
        None,
        (Row("delete", "account", "account_1", "account_1"),),
        "key",
    ),
    "make a zone": Act("POST", f"{V4}/zones", "new_zone_1", (Row("create", "zone", "@result.id", zone="@result.id"),)),
    "make a zone by a user's token": Act(
        "POST", f"{V4}/zones", "new_zone_2", (Row("create", "zone", "@result.id", zone="@result.id"),), "user_token"
    ),
    "edit a zone": Act(
        "PATCH", f"{V4}/zones/{{zone_1}}", {"paused": True}, (Row("update", "zone", "zone_1", zone="zone_1"),)
    ),
    "delete a zone": Act("DELETE", f"{V4}/zones/{{zone_2}}", None, (Row("delete", "zone", "zone_2", zone="zone_2"),)),
    "make a token": Act("POST", f"{_A}/tokens", "narrow", (Row("create", "token", "@result.id"),)),
    "change a token": Act("PUT", f"{_A}/tokens/{{token_1}}", "wide", (Row("update", "token", "token_1"),)),
    "roll a token": Act("PUT", f"{_A}/tokens/{{token_2}}/value", None, (Row("roll", "token", "token_2"),)),
    "delete a token": Act("DELETE", f"{_A}/tokens/{{token_3}}", None, (Row("delete", "token", "token_3"),)),
    "make a user's token": Act("POST", f"{V4}/user/tokens", "narrow", _user_token("create"), "key"),
    "change a user's token": Act(
        "PUT", f"{V4}/user/tokens/{{user_token_1}}", "wide", _user_token("update", "user_token_1"), "key"
    ),
    "roll a user's token": Act(
        "PUT", f"{V4}/user/tokens/{{user_token_2}}/value", {}, _user_token("roll", "user_token_2"), "key"
    ),
    "delete a user's token": Act(
        "DELETE", f"{V4}/user/tokens/{{user_token_3}}", None, _user_token("delete", "user_token_3"), "key"
    ),
    "log in": Act("POST", f"{V1}/auth/universal-auth/login", "login", (Row("login", "token", "token"),)),
    "renew an access token": Act("POST", f"{V1}/auth/token/renew", "access_1", (Row("renew", "token", "token"),)),
    "revoke an access token": Act("POST", f"{V1}/auth/token/revoke", "access_1", (Row("revoke", "token", "token"),)),
    "make an intermediate": Act("POST", _CA, {**CA, "type": "intermediate"}, _ca("create"), "access"),
    # A root is two things: the CA, and the certificate that it signs for itself.
    "make a root": Act("POST", _CA, CA, (*_ca("create"), *_signed("sign", "@ca.serialNumber"))),
    "make a root by the newer call": Act(
        "POST",
        f"{V1}/cert-manager/ca/internal",
        INTERNAL,
        (*_ca("create", "@id"), *_signed("sign", "@configuration.serialNumber")),
    ),
    "certify a CA": Act(
        "POST",
        f"{V1}/cert-manager/ca/internal/{{ca_1}}/certificate",
        {"notAfter": "2060"},
        (*_ca("import", "ca_1"), *_signed("sign")),
    ),
    "issue for a CA in the body": Act(
        "POST",
        f"{V1}/pki/certificates/issue-certificate",
        "key_of_ca",
        _signed("issue-key"),
    ),
    "edit a CA": Act("PATCH", f"{_CA}/{{ca_1}}", {"status": "disabled"}, _ca("update", "ca_1")),
    "delete a CA": Act("DELETE", f"{_CA}/{{ca_2}}", None, _ca("delete", "ca_2")),
    # The certificate that is signed, and the CA that has it from then on.
    "renew a CA": Act(
        "POST",
        f"{_CA}/{{ca_3}}/renew",
        {"type": "existing", "notAfter": "2060"},
        (*_ca("renew", "ca_3"), *_signed("renew")),
    ),
    "sign an intermediate": Act(
        "POST", f"{_CA}/{{ca}}/sign-intermediate", "sign_pending_2", _signed("sign-intermediate")
    ),
    "import a CA's certificate": Act(
        "POST", f"{_CA}/{{pending_1}}/import-certificate", "import_pending_1", _ca("import", "pending_1")
    ),
    "sign a leaf": Act("POST", f"{_CA}/{{ca}}/sign-certificate", "leaf", _signed("sign"), "access"),
    "sign a leaf for a CA in the body": Act(
        "POST", f"{V1}/pki/certificates/sign-certificate", "leaf_of_ca", _signed("sign")
    ),
    ISSUED[0]: Act(
        "POST",
        f"{_CA}/{{ca}}/issue-certificate",
        {"commonName": "www.a.example.com", "ttl": "1d"},
        _signed("issue-key"),
    ),
    "make a policy": Act(
        "POST", f"{_API}/certificate-policies", {"name": "new"}, _of("policy", "create", "@certificatePolicy.id")
    ),
    "change a policy": Act(
        "PATCH", f"{_API}/certificate-policies/{{policy}}", {"description": "x"}, _of("policy", "update", "policy")
    ),
    "delete a policy": Act(
        "DELETE", f"{_API}/certificate-policies/{{policy_1}}", None, _of("policy", "delete", "policy_1")
    ),
    "make a profile": Act(
        "POST", f"{_API}/certificate-profiles", "new_profile", _of("profile", "create", "@certificateProfile.id")
    ),
    "change a profile": Act(
        "PATCH", f"{_API}/certificate-profiles/{{profile}}", {"description": "x"}, _of("profile", "update", "profile")
    ),
    "make an application": Act("POST", f"{_API}/applications", {"name": "new"}, _of("", "create", "@application.id")),
    "attach a profile": Act(
        "POST", f"{_API}/applications/{{application}}/profiles", "attach", _of("", "update", "application")
    ),
    "enroll an application": Act(
        "PUT", f"{_PAIR}/enrollment/api", {"autoRenew": True}, _of("", "update", "application")
    ),
    "withdraw an enrollment": Act("DELETE", f"{_PAIR}/enrollment/api", None, _of("", "update", "application")),
    "detach a profile": Act("DELETE", _PAIR, None, _of("", "update", "application")),
    "delete an application": Act(
        "DELETE", f"{_API}/applications/{{application}}", None, _of("", "delete", "application")
    ),
    "issue by a profile": Act(
        "POST", f"{_API}/certificates", "by_profile", _signed("sign", "@certificate.serialNumber")
    ),
    "delete a profile": Act(
        "DELETE", f"{_API}/certificate-profiles/{{profile}}", None, _of("profile", "delete", "profile")
    ),
    "revoke a leaf": Act(
        "POST",
        f"{V1}/pki/certificates/{{serial_1}}/revoke",
        {"revocationReason": "SUPERSEDED"},
        _signed("revoke", "of_serial_1"),
    ),
}

_TOKEN_READS = ("", "/permission_groups", "/verify")
QUIET = [
    *(("token", path) for path in (f"{V4}/accounts", _A, f"{V4}/zones", _Z, f"{_A}/custom_csrs", f"{_Z}/custom_csrs")),
    *(("token", path) for path in (f"{_A}/custom_csrs/{{csr_2}}", f"{_Z}/custom_csrs/{{zone_csr_1}}")),
    *(("token", f"{_Z}/custom_certificates{tail}") for tail in ("", "/{certificate_1}")),
    *(("token", f"{_A}/tokens{tail}") for tail in (*_TOKEN_READS, "/{token_1}")),
    *(("key", f"{V4}/user/tokens{tail}") for tail in ("", "/permission_groups", "/{user_token_1}")),
    *(("token", f"{V4}/user/tokens/verify"), ("key", f"{V4}/accounts"), ("key", f"{V4}/zones")),
    ("token", f"{_A}/logs/audit?since=2026-01-01&before=2126-01-01"),
    ("token", "/api/status"),
]
_VIEWED, _ONE_SIGNED = Row("read", "certificate_authority", "ca"), f"{V1}/pki/certificates/{{serial_2}}"
_SIGNED_VIEWED = Row("read", _SIGNED, "of_serial_2")
TOLD = {
    **{f"{_CA}/{{ca}}{tail}": _VIEWED for tail in ("", "/certificate", "/ca-certificates", "/crl", "/crls")},
    f"{V1}/cert-manager/ca/internal/{{ca}}": _VIEWED,
    f"{V1}/cert-manager/ca/internal?projectId={{a}}": Row("read", "certificate_authority", "a"),
    f"{_CA}/{{pending_2}}/csr": Row("get-certificate-authority-csr", "certificate_authority", "pending_2"),
    _ONE_SIGNED: _SIGNED_VIEWED,
    f"{_ONE_SIGNED}/certificate": _SIGNED_VIEWED,
    f"{_ONE_SIGNED}/bundle": _SIGNED_VIEWED,
    f"{_API}/certificate-policies/{{policy}}": Row("read", "certificate_policy", "policy"),
    f"{_API}/certificate-profiles?projectId={{a}}": Row("read", "certificate_profile", "a"),
    f"{_API}/applications?projectId={{a}}": Row("read", "application", "a"),
    f"{_API}/certificates?serialNumber={{serial_2}}": Row("read", _SIGNED, "a"),
    f"{V1}/cert-manager/ca/internal/{{ca}}/certificate/{{of_ca}}": _VIEWED,
    f"{V1}/cert-manager/ca?projectId={{a}}": Row("read", "certificate_authority", "a"),
}
_B, _B_ZONE = f"{V4}/accounts/{{b}}", f"{V4}/zones/{{b_zone}}"
_NO_ACCOUNT, _NO_ZONE = f"{V4}/accounts/{{unknown}}", f"{V4}/zones/{{unknown}}"
_RENAMED = {"name": "Renamed"}
_IMPORT = {"certificate": "x", "certificateChain": "x"}
ATTEMPTS = {
    "no permission to write in the account": Attempt(
        "reader", "POST", f"{_A}/custom_csrs", "account", "a", "a", body=BODY
    ),
    "no permission to read the account": Attempt("reader", "GET", _A, "account", "a", "a"),
    "no permission to ask for the account's head": Attempt("reader", "HEAD", _A, "account", "a", "a"),
    "no permission to rename the account": Attempt("reader", "PUT", _A, "account", "a", "a", body=_RENAMED),
    "no permission to read the log": Attempt(
        "reader", "GET", f"{_A}/logs/audit?since=2026-01-01&before=2126-01-01", "account", "a", "a"
    ),
    "no permission to make tokens": Attempt("reader", "POST", f"{_A}/tokens", "account", "a", "a", body="narrow"),
    "no permission to write in the zone": Attempt(
        "reader", "DELETE", f"{_Z}/custom_csrs/{{zone_csr_1}}", "zone", "zone", "a", "zone"
    ),
    "no permission to edit the zone": Attempt("reader", "PATCH", _Z, "zone", "zone", "a", "zone", {}),
    "no permission to make a zone": Attempt("reader", "POST", f"{V4}/zones", "account", "a", "a", body="in_a"),
    "no permission by the role": Attempt("member", "DELETE", _A, "account", "a", "a"),
    "an account of somebody else": Attempt("foreign", "DELETE", _A, "account", "a", "b"),
    "a CSR of somebody else": Attempt("foreign", "GET", f"{_A}/custom_csrs/{{csr_2}}", "account", "a", "b"),
    "a zone of somebody else": Attempt("foreign", "PATCH", _Z, "zone", "zone", "b", body={}),
    "the log of somebody else": Attempt(
        "foreign", "GET", f"{_A}/logs/audit?since=2026-01-01&before=2126-01-01", "account", "a", "b"
    ),
    "a zone in an account of somebody else": Attempt(
        "foreign", "POST", f"{V4}/zones", "account", "a", "b", body="in_a"
    ),
    "an account of somebody else by a global key": Attempt("key", "GET", _B, "account", "b", "none"),
    "a zone of somebody else by a user's token": Attempt("user_token", "DELETE", _B_ZONE, "zone", "b_zone", "none"),
    "an account that is not there": Attempt("token", "PUT", _NO_ACCOUNT, "account", "unknown", "a", body=_RENAMED),
    "a zone that is not there": Attempt("token", "GET", f"{_NO_ZONE}/custom_csrs", "zone", "unknown", "a"),
    "the wrong address for an account": Attempt("bound", "GET", f"{_A}/custom_csrs", "account", "a", "a"),
    "the wrong address for a zone": Attempt("bound", "DELETE", _Z, "zone", "zone", "a", "zone"),
    "the wrong address for somebody else's": Attempt("bound", "GET", _B_ZONE, "zone", "b_zone", "a"),
    "the wrong address where no account is named": Attempt("bound", "GET", f"{V4}/zones", "token", "bound", "a"),
    "the wrong address to verify": Attempt("bound", "GET", f"{V4}/user/tokens/verify", "token", "bound", "a"),
    "the wrong address in the other dialect": Attempt("bound", "GET", f"{_CA}/{{ca}}", "token", "bound", "a"),
    "the wrong address to log in": Attempt(
        "bound", "POST", f"{V1}/auth/universal-auth/login", "token", "bound", "a", body="bound_login", status=401
    ),
    "a token wider than its maker": Attempt("maker", "POST", f"{_A}/tokens", "token", "maker", "a", body="wide"),
    "a token made wider than its maker": Attempt(
        "maker", "PUT", f"{_A}/tokens/{{token_1}}", "token", "token_1", "a", body="wide"
    ),
    "a wider token rolled": Attempt("maker", "PUT", f"{_A}/tokens/{{reader}}/value", "token", "reader", "a"),
    "an account made by a token of an account": Attempt(
        "token", "POST", f"{V4}/accounts", "account", "none", "a", body={"name": "x"}
    ),
    "an account made by who only reads": Attempt(
        "member", "POST", f"{V4}/accounts", "account", "none", "none", body={"name": "x"}
    ),
    **{
        f"a user's tokens by a token of an account: {method} {tail}": Attempt(
            "token", method, f"{V4}/user/tokens{tail}", "token", "token", "a", body=body
        )
        for method, tail, body in (
            ("GET", "", None),
            ("POST", "", "narrow"),
            ("GET", "/permission_groups", None),
            ("GET", "/{user_token_1}", None),
            ("PUT", "/{user_token_1}", "narrow"),
            ("PUT", "/{user_token_1}/value", None),
            ("DELETE", "/{user_token_1}", None),
        )
    },
    **{
        f"no permission for CAs: {method} {path}": Attempt(
            "reader", method, f"{V1}{path}", "account", "a", "a", body=body
        )
        for method, path, body in (
            ("GET", "/pki/ca/{ca}", None),
            ("GET", "/pki/ca/{pending_2}/csr", None),
            ("GET", "/cert-manager/ca/internal?projectId={a}", None),
            ("GET", "/pki/certificates/{serial_2}", None),
            ("POST", "/pki/ca", CA),
            ("PATCH", "/pki/ca/{ca}", {"status": "disabled"}),
            ("DELETE", "/pki/ca/{ca}", None),
            ("POST", "/pki/ca/{ca}/sign-intermediate", "sign_pending_2"),
            ("POST", "/pki/ca/{pending_2}/import-certificate", _IMPORT),
            ("POST", "/pki/ca/{ca}/sign-certificate", "leaf"),
            ("POST", "/pki/certificates/sign-certificate", "leaf_of_ca"),
            ("POST", "/pki/certificates/{serial_2}/revoke", {"revocationReason": "SUPERSEDED"}),
        )
    },
    "verifying at somebody else's account": Attempt("foreign", "GET", f"{_A}/tokens/verify", "account", "a", "b"),
    "verifying at no account": Attempt("token", "GET", f"{_NO_ACCOUNT}/tokens/verify", "account", "unknown", "a"),
}
_ATTEMPTED = {"POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete"}


@pytest.fixture(scope="module")
async def site(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One site for the tests that leave it as it is; all acts and attempts have been made on it."""
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("site")) as world:
        made = await new_site(world)
        for name in ACTS:
            await made.perform(name)
        for name, attempt in ATTEMPTS.items():
            made.done[name] = await made.call(attempt.by, attempt.method, attempt.path, attempt.body)
        yield made


def _common(site: Site, by: str, answer: httpx.Response) -> Json:
    """What every row of a request says alike, success or failure."""
    return {
        **site.who[by]._asdict(),
        "address": ipaddress.ip_address("127.0.0.1"),
        "user_agent": AGENT,
        "request_id": answer.headers["x-request-id"],
        "method": answer.request.method,
        "path": answer.request.url.path,
        "status": answer.status_code,
        "count": 1,
    }


def columns(row: asyncpg.Record) -> Json:
    """Everything of a row but what is new each time."""
    return {key: value for key, value in row.items() if key not in ("id", "at")}


def _key(row: Any) -> tuple[str, str]:
    return row["action"], str(row["resource_id"])


@pytest.mark.parametrize("name", ACTS)
async def test_every_change_is_one_row_for_each_thing_changed(site: Site, name: str) -> None:
    """Who, from where, under which request id, what, where and how it was answered: written once."""
    act, answer = ACTS[name], site.done[name]
    assert answer.is_success, answer.text
    expected = [
        {
            **_common(site, act.by, answer),
            **({"status": None} if row.action in BEFOREHAND else {}),
            "action": row.action,
            "resource_type": row.resource,
            "resource_id": await site.thing(row.thing, answer),
            "account_id": await site.thing(row.account, answer),
            "zone_id": await site.thing(row.zone, answer) if row.zone else None,
            "result": "success",
        }
        for row in act.rows
    ]
    found = [{key: row[key] for key in expected[0]} for row in await site.rows(answer)]
    assert sorted(found, key=_key) == sorted(expected, key=_key)


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_every_denied_attempt_of_a_known_caller_is_one_row(site: Site, name: str) -> None:
    """It is filed once as a failure, under the account that was meant if the caller reaches it, else the own."""
    attempt, answer = ATTEMPTS[name], site.done[name]
    assert answer.status_code == attempt.status, answer.text
    (row,) = await site.rows(answer)
    assert columns(row) == {
        **_common(site, attempt.by, answer),
        "action": _ATTEMPTED.get(attempt.method, "read"),
        "resource_type": attempt.resource,
        "resource_id": UUID(site.ids[attempt.thing]),
        "account_id": UUID(site.ids[attempt.account]),
        "zone_id": UUID(site.ids[attempt.zone]) if attempt.zone else None,
        "result": "failure",
    }


async def test_a_token_wider_than_its_maker_is_denied_by_its_own_code(site: Site) -> None:
    """Each way to a wider token is 403/1465, so those rows are about that and nothing else."""
    for name in ("a token wider than its maker", "a token made wider than its maker", "a wider token rolled"):
        assert {error["code"] for error in site.done[name].json()["errors"]} == {1465}


async def total(world: World) -> int:
    row = await world.database.fetchrow("SELECT count(*) AS n FROM audit_log")
    assert row is not None
    return int(row["n"])


async def test_a_read_is_not_in_the_log(site: Site) -> None:
    """No GET or HEAD of Cloudflare's dialect writes a row, nor does what anybody may fetch."""
    # The first fetch of a CRL signs it, which is a change.
    await site.good("token", "GET", f"{_CA}/{{ca}}/crls")
    before = await total(site.world)
    for by, path in QUIET:
        for method in ("GET", "HEAD"):
            assert (await site.call(by, method, path)).status_code == 200, path
    assert (await site.call("token", "GET", f"{V1}/pki/crl/{{ca}}/der")).status_code == 200
    assert await total(site.world) == before


@pytest.mark.parametrize("path", TOLD)
async def test_reading_cas_and_what_they_signed_is_in_the_log(site: Site, path: str) -> None:
    """Each read of a CA, its CSR or its certificates is one row."""
    answer = await site.call("access", "GET", path)
    assert answer.status_code == 200, answer.text
    (row,) = await site.rows(answer)
    expected = TOLD[path]
    assert columns(row) == {
        **_common(site, "access", answer),
        "status": None,
        "action": expected.action,
        "resource_type": expected.resource,
        "resource_id": UUID(site.ids[expected.thing]),
        "account_id": site.world.a.account.id,
        "zone_id": None,
        "result": "success",
    }


IDLE = {
    "a CSR whose key is in use": ("token", "DELETE", f"{_Z}/custom_csrs/{{zone_csr_1}}", None, 409),
    "a CSR that is not there": ("token", "DELETE", f"{_Z}/custom_csrs/{{csr_2}}", None, 404),
    "a CSR of nothing": ("token", "POST", f"{_A}/custom_csrs", {}, 400),
    "nothing of a certificate": ("token", "PATCH", f"{_Z}/custom_certificates/{{certificate_1}}", {}, 200),
    "the same priorities": ("token", "PUT", f"{_Z}/custom_certificates/prioritize", "priorities", 200),
    "a zone that holds something": ("token", "DELETE", _Z, None, 409),
    "the name of another zone": ("token", "POST", f"{V4}/zones", "new_zone_1", 400),
    "nothing of a zone": ("token", "PATCH", _Z, {}, 200),
    "a deleted zone": ("token", "PATCH", f"{V4}/zones/{{zone_2}}", {"paused": True}, 404),
    "an account that holds something": ("token", "DELETE", _A, None, 409),
    "an account to no name": ("token", "PUT", _A, {"name": " "}, 400),
    "a token to nothing": ("token", "PUT", f"{_A}/tokens/{{token_1}}", {}, 400),
    "a deleted token": ("token", "PUT", f"{_A}/tokens/{{token_3}}/value", None, 404),
    "a CA that has signed": ("token", "DELETE", f"{_CA}/{{ca}}", None, 400),
    "a CA without a certificate": ("token", "PATCH", f"{_CA}/{{pending_2}}", {"status": "active"}, 400),
    "an import of nothing": ("token", "POST", f"{_CA}/{{pending_2}}/import-certificate", _IMPORT, 400),
    "a revoked leaf": (
        "token",
        "POST",
        f"{V1}/pki/certificates/{{serial_1}}/revoke",
        {"revocationReason": "SUPERSEDED"},
        400,
    ),
    "a leaf of nothing": ("token", "POST", f"{_CA}/{{ca}}/sign-certificate", {"csr": "x", "ttl": "1d"}, 400),
}


@pytest.mark.parametrize("name", IDLE)
async def test_what_changes_nothing_leaves_no_row(site: Site, name: str) -> None:
    """A change that is refused, rolled back or none at all is not in the log."""
    by, method, path, body, status = IDLE[name]
    before = await total(site.world)
    answer = await site.call(by, method, path, body)
    assert answer.status_code == status, answer.text
    assert await total(site.world) == before


async def test_a_change_that_is_rolled_back_after_its_row_leaves_none(site: Site) -> None:
    """What the quota refuses was inserted with its row, and both are gone."""
    world, operator = site.world, first_start.operator()
    account = await accounts.find_account(world.database, "a")
    await accounts.set_account(world.database, operator, account, accounts.Changes(csr_quota=0))
    before = await total(world)
    answer = await site.call("token", "POST", f"{_A}/custom_csrs", BODY)
    after = await total(world)
    await accounts.set_account(world.database, operator, account, accounts.Changes(csr_quota=-1))
    assert after == before
    assert answer.json()["errors"][0]["code"] == 1403
    assert await site.rows(answer) == []


async def test_where_from_is_the_clients_own_address(site: Site) -> None:
    """An IPv6 address is kept whole, one that maps IPv4 is that, and no user agent is none."""
    for peer, address in (("2001:db8::5", "2001:db8::5"), ("::ffff:192.0.2.9", "192.0.2.9"), ("unix:", None)):
        async with client_from(site.world, peer) as http:
            path = _A.format(**site.ids)
            request = http.build_request("PUT", path, json={"name": f"From {peer}"}, headers=site.headers["token"])
            del request.headers["user-agent"]
            (row,) = await site.rows(await http.send(request))
        assert (str(row["address"]) if row["address"] else None, row["user_agent"]) == (address, None)
        (item, *_) = await entries(site)
        assert item["id"] == str(row["id"])
        assert item["actor"].get("ip_address") == address
        assert "user_agent" not in item["raw"]


def client_from(world: World, peer: str) -> httpx.AsyncClient:
    """A client at this address, whose answers nobody judges."""
    transport = httpx.ASGITransport(app=world.app, client=(peer, 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787")


NO_MORE = "ALTER TABLE audit_log ADD CONSTRAINT no_more CHECK (false) NOT VALID"
MORE = "ALTER TABLE audit_log DROP CONSTRAINT no_more"
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"


async def everything(world: World) -> dict[str, list[str]]:
    """Every row of every table but the counts of failed authentications, which are no change."""
    found = {}
    for row in await world.database.fetch(TABLES):
        name = row["relname"]
        if name != "failed_authentications":
            found[name] = [each["t"] for each in await world.database.fetch(f"SELECT t::text AS t FROM {name} t")]
            found[name].sort()
    return found


AFTER_OTHERS = ("enroll an application", "withdraw an enrollment", "detach a profile")


async def test_what_cannot_be_written_down_does_not_happen(world: World) -> None:
    """While the log takes no row, every change is a 5xx that leaves all as it was, and no denial is a success."""
    site = await new_site(world)
    before = await everything(world)
    await world.database.execute(NO_MORE)
    for name, act in ACTS.items():
        answer = await site.call(act.by, act.method, act.path, act.body)
        # What an earlier act would have made is not there.
        assert answer.status_code >= 500 or (answer.status_code == 404 and name in AFTER_OTHERS), name
        assert await everything(world) == before, name
    for path in TOLD:
        assert (await site.call("token", "GET", path)).status_code >= 500, path
    for name, attempt in ATTEMPTS.items():
        answer = await site.call(attempt.by, attempt.method, attempt.path, attempt.body)
        assert answer.status_code >= 400, name
    assert await everything(world) == before
    await world.database.execute(MORE)
    answer = await site.perform("make a zone")
    assert answer.status_code == 200
    assert len(await site.rows(answer)) == 1


LIMITED = {
    "a login": ("POST", f"{V1}/auth/universal-auth/login", "token", "login", 11),
    "verifying at somebody else's account": ("GET", f"{_B}/tokens/verify", "token", None, 11),
    "the wrong address": ("GET", _A, "bound", None, 2),
    "the wrong address in the other dialect": ("GET", f"{_CA}/{{unknown}}", "bound", None, 2),
    "the wrong address to verify": ("GET", f"{V4}/user/tokens/verify", "bound", None, 11),
    "no permission": ("GET", _A, "reader", None, 11),
}


@pytest.mark.parametrize("name", LIMITED)
async def test_what_the_rate_limit_refuses_is_not_told_as_anything_else(
    database_url: str, tmp_path: Path, name: str
) -> None:
    """A request that is answered 429 has no row that says it was a success, or answered otherwise."""
    method, path, by, body, attempts = LIMITED[name]
    async with new_world(database_url, tmp_path) as world, client_from(world, "127.0.0.1") as plain:
        site = Site(world, plain)
        site.ids |= {"a": world.a.account.id.hex, "b": world.b.account.id.hex, "unknown": str(uuid4())}
        await _callers(site)
        limited = msgspec.structs.replace(world.state, rate_limit=RateLimit(10, 3600))
        world.change(limited)
        async with client_from(world, "192.0.2.1") as http:
            for _ in range(attempts):
                content = json.dumps(site.bodies[body]) if body else ""
                answer = await http.request(method, path.format(**site.ids), content=content, headers=site.headers[by])
        world.change(msgspec.structs.replace(limited, rate_limit=None))
        assert answer.status_code == 429
        found = [(row["result"], row["status"]) for row in await site.rows(answer)]
        assert found in ([], [("failure", 429)])


@pytest.fixture
async def still(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world that writes failed authentications down only when a test says so."""
    monkeypatch.setattr(failures, "FLUSH_SECONDS", 3600.0)
    # However slow the machine is, no minute ends by itself.
    monkeypatch.setattr(failures, "_SETTLED", timedelta(hours=1))
    async with new_world(database_url, tmp_path) as world:
        yield world


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[db.Database]:
    """A connection to a database with the schema and nothing in it."""
    opened = db.Database(database_url, 1)
    yield opened
    await opened.close()


async def waiting(database: db.Database) -> dict[str, int]:
    """What has been counted and is not in the log yet, by network."""
    sql = "SELECT network::text AS network, sum(count)::int AS n FROM failed_authentications GROUP BY network"
    return {row["network"]: row["n"] for row in await database.fetch(sql)}


async def filed(database: db.Database) -> dict[str, int]:
    """What the log says of failed authentications, by network."""
    sql = "SELECT address::text AS address, sum(count)::int AS n FROM audit_log WHERE actor = 'unknown' GROUP BY 1"
    return {row["address"]: row["n"] for row in await database.fetch(sql)}


async def pass_minutes(database: db.Database) -> None:
    """Let every minute that was counted be over."""
    await database.execute("UPDATE failed_authentications SET minute = minute - interval '2 hours'")


def address(text: str) -> Any:
    return ipaddress.ip_address(text)


async def test_failed_authentications_are_counted_and_filed(still: World) -> None:
    """Each is counted, whatever is wrong; after its minute there is one row for the address, by nobody known."""
    past = datetime.now(UTC) - timedelta(hours=1)
    expired = await make_token(still.services, still.a.account, expires_on=past)
    unknown, key = tokens.new_token(), tokens.new_global_key()
    token_id = str((await tokens.list_(still.database))[0].id)
    bearer = [{"Authorization": f"Bearer {value}"} for value in (unknown, "x" * 40, expired)]
    pair = {"X-Auth-Email": still.a.email, "X-Auth-Key": key}
    paths = (f"/accounts/{still.a.account.id.hex}", f"/zones/{uuid4().hex}/custom_csrs", "/zones", "/user/tokens")
    calls: list[tuple[str, str, Any, Any, tuple[int, ...]]] = [
        *(("GET", V4 + path, headers, None, (403,)) for path in paths for headers in bearer),
        *(("GET", V4 + path, pair, None, (400,)) for path in paths),
        *(("GET", f"{V4}/user/tokens/verify", headers, None, (401,)) for headers in bearer[:2]),
        ("GET", f"{V4}/accounts/{still.a.account.id.hex}/tokens/verify", bearer[0], None, (401,)),
        *(("GET", f"{V1}/pki/ca/{uuid4()}", headers, None, (401, 403)) for headers in bearer),
        *(
            ("POST", f"{V1}/auth/universal-auth/login", {}, {"clientId": client, "clientSecret": secret}, (401,))
            for client, secret in (
                (token_id, unknown),
                (token_id, "x"),
                (str(uuid4()), still.a.token),
                ("x", still.a.token),
                (token_id, expired),
            )
        ),
    ]
    for method, path, headers, body, statuses in calls:
        answer = await still.http.request(method, path, json=body, headers=headers)
        assert answer.status_code in statuses, (path, answer.text)
    await still.state.failures.flush(still.database)
    assert await waiting(still.database) == {"127.0.0.1/32": len(calls)}
    assert await filed(still.database) == {}
    await pass_minutes(still.database)
    minutes = {row["minute"] for row in await still.database.fetch("SELECT minute FROM failed_authentications")}
    await still.state.failures.flush(still.database)
    assert await waiting(still.database) == {}
    rows = await still.database.fetch("SELECT * FROM audit_log WHERE actor = 'unknown' ORDER BY path")
    assert sum(row["count"] for row in rows) == len(calls)
    assert [columns(row) for row in rows] == [
        {
            "account_id": NOWHERE,
            "action": "login",
            "resource_type": "token",
            "resource_id": NOWHERE,
            "zone_id": None,
            "actor": "unknown",
            "actor_id": NOWHERE,
            "actor_name": None,
            "actor_email": None,
            "address": address("127.0.0.1"),
            "request_id": "",
            "method": "",
            "path": f"{minute:%Y-%m-%dT%H:%MZ}",
            "user_agent": None,
            "user_id": None,
            "result": "failure",
            "status": None,
            "count": row["count"],
        }
        for minute, row in zip(sorted(minutes), rows, strict=True)
    ]


async def test_good_credentials_are_not_counted(still: World) -> None:
    """Neither a success nor a refusal of somebody known is a failed authentication, nor a request by nobody."""
    token = (await tokens.list_(still.database))[0]
    login = {"clientId": str(token.id), "clientSecret": still.a.token}
    answer = await still.http.post(f"{V1}/auth/universal-auth/login", json=login)
    access = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    pair = {"X-Auth-Email": still.a.email, "X-Auth-Key": still.a.key}
    paths = (still.a.account_path, still.b.zone_path, f"{V4}/zones", f"{V4}/user/tokens", f"{V1}/pki/ca/{uuid4()}")
    headers: list[dict[str, str]]
    for path in paths:
        headers = [still.a.bearer, {}, access if path.startswith(V1) else pair]
        for each in headers:
            await still.http.get(path, headers=each)
    for path in (f"{V4}/user/tokens/verify", f"{V4}/accounts/{still.b.account.id.hex}/tokens/verify"):
        await still.http.get(path, headers=still.a.bearer)
    await still.state.failures.flush(still.database)
    assert await waiting(still.database) == {}


async def test_a_client_is_an_ipv4_address_or_an_ipv6_network(still: World) -> None:
    """IPv6 counts by its /64, an address that maps IPv4 as IPv4, and all that have none together."""
    peers = ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1", "::ffff:192.0.2.7", "192.0.2.7", "unix:")
    for peer in peers:
        async with client_from(still, peer) as http:
            answer = await http.get(still.a.account_path, headers={"Authorization": f"Bearer {tokens.new_token()}"})
            assert answer.status_code == 403
    expected = {"2001:db8:1:2::/64": 2, "2001:db8:1:3::/64": 1, "192.0.2.7/32": 2, "0.0.0.0/0": 1}
    await still.state.failures.flush(still.database)
    assert await waiting(still.database) == expected
    await pass_minutes(still.database)
    await still.state.failures.flush(still.database)
    assert await filed(still.database) == expected


async def test_all_workers_make_one_row(database: db.Database, database_url: str) -> None:
    """What two workers count of an address in a minute is one row with the sum, also when both write at once."""
    workers = [failures.Failures(), failures.Failures()]
    databases = [database, db.Database(database_url, 1)]
    for number, worker in enumerate(workers):
        for _ in range(3 + number):
            worker.count(address("192.0.2.1"))
        worker.count(address(f"192.0.2.{10 + number}"))
    await asyncio.gather(*(worker.flush(each) for worker, each in zip(workers, databases, strict=True)))
    minutes = await database.fetchrow("SELECT count(DISTINCT minute) AS n FROM failed_authentications")
    assert minutes is not None
    await pass_minutes(database)
    await asyncio.gather(*(worker.flush(each) for worker, each in zip(workers, databases, strict=True)))
    await databases[1].close()
    assert await filed(database) == {"192.0.2.1/32": 7, "192.0.2.10/32": 1, "192.0.2.11/32": 1}
    rows = await database.fetch("SELECT count(*) AS n FROM audit_log GROUP BY address")
    # One, unless a minute ended just then.
    assert all(row["n"] <= minutes["n"] for row in rows)


async def test_memory_is_bounded_however_many_addresses_there_are(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond MOST addresses all others are counted together, and none is lost."""
    monkeypatch.setattr(failures, "MOST", 3)
    worker = failures.Failures()
    for _ in range(2):
        for last in range(1, 101):
            worker.count(address(f"192.0.2.{last}"))
    # One more for a minute that ended just then.
    assert len(worker._counts) <= 3 + 2
    await worker.flush(database)
    counts = await waiting(database)
    assert sum(counts.values()) == 200
    assert counts.keys() == {"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "::/0"}
    assert counts["::/0"] >= 190


async def test_the_real_bound_holds_against_many_addresses(database: db.Database) -> None:
    """Of twice MOST networks no more than MOST are kept apart."""
    worker = failures.Failures()
    for number in range(2 * failures.MOST):
        worker.count(address(f"2001:db8:{number:x}::1"))
    assert len(worker._counts) <= failures.MOST + 2
    await worker.flush(database)
    assert sum((await waiting(database)).values()) == 2 * failures.MOST


async def test_a_minute_has_so_many_rows_however_often_it_is_written(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The addresses of the first five seconds take all places of their minute; later ones are counted together."""
    monkeypatch.setattr(failures, "MOST", 3)
    worker, minute = failures.Failures(), datetime.now(UTC).replace(second=0, microsecond=0)
    for flush in range(4):
        for last in range(5):
            worker._add(ipaddress.ip_network(f"192.0.2.{5 * flush + last}/32"), minute, 1)
        await worker.flush(database)
    counts = await waiting(database)
    assert counts.keys() == {"192.0.2.0/32", "192.0.2.1/32", "192.0.2.2/32", "::/0"}
    assert counts["::/0"] == 17


def test_memory_is_bounded_while_minutes_wait_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes that could not be written share the bound: beyond it each has one count more, and none is lost."""
    monkeypatch.setattr(failures, "MOST", 3)
    worker, begin = failures.Failures(), datetime.now(UTC).replace(second=0, microsecond=0)
    for minute in range(10):
        for last in range(1, 6):
            worker._add(ipaddress.ip_network(f"192.0.2.{last}/32"), begin + timedelta(minutes=minute), 1)
    assert len(worker._counts) <= 3 + 10
    assert sum(worker._counts.values()) == 50


def dead_database() -> db.Database:
    return db.Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", 1)


async def test_a_flush_that_fails_loses_nothing(database: db.Database) -> None:
    """What could not be written is written the next time, together with what came since."""
    worker, dead = failures.Failures(), dead_database()
    expected: Counter[str] = Counter()
    for last in (1, 2, 1):
        worker.count(address(f"192.0.2.{last}"))
        expected[f"192.0.2.{last}/32"] += 1
        with pytest.raises(Unavailable):
            await worker.flush(dead)
    await worker.flush(database)
    await worker.flush(database)
    assert await waiting(database) == expected


async def test_a_flush_that_fails_loses_nothing_at_the_bound(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was counted together is kept too when the database is away."""
    monkeypatch.setattr(failures, "MOST", 3)
    worker, dead = failures.Failures(), dead_database()
    for last in range(1, 11):
        worker.count(address(f"192.0.2.{last}"))
    with pytest.raises(Unavailable):
        await worker.flush(dead)
    await worker.flush(database)
    assert sum((await waiting(database)).values()) == 10


async def test_a_flush_that_fails_among_new_failures_loses_nothing_at_the_bound(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted while a flush fails takes no place from what it could not write."""
    monkeypatch.setattr(failures, "MOST", 3)
    worker, dead = failures.Failures(), dead_database()
    for last in (1, 2, 3):
        worker.count(address(f"192.0.2.{last}"))
    flushing = asyncio.create_task(worker.flush(dead))
    await asyncio.sleep(0)
    for last in (4, 5, 6):
        worker.count(address(f"192.0.2.{last}"))
    with pytest.raises(Unavailable):
        await flushing
    await worker.flush(database)
    assert sum((await waiting(database)).values()) == 6


WAITS = """
SELECT pid, query FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE $1 AND pid <> $2
"""
ADDS, ANYTHING = "%INSERT INTO failed_authentications%", "%failed_authentications%"


class Gate(msgspec.Struct):
    """While it is shut, whoever would change the table of failed authentications waits."""

    holder: Connection
    watcher: Connection

    async def waiting(self, query: str, known: int = 0) -> int:
        """The process, other than one that is known, that waits here with such a query."""
        await comes_about(lambda: self.watcher.fetchval(WAITS, query, known))
        return int(await self.watcher.fetchval(WAITS, query, known))

    async def cut(self, pid: int) -> None:
        await self.watcher.execute("SELECT pg_terminate_backend($1)", pid)


@pytest.fixture
async def shut(database_url: str) -> AsyncIterator[Gate]:
    """A gate that is shut; closing the connection of `holder` opens it."""
    gate = Gate(await asyncpg.connect(database_url), await asyncpg.connect(database_url))
    await gate.holder.execute("BEGIN; LOCK TABLE failed_authentications IN SHARE MODE")
    yield gate
    await gate.holder.close()
    await gate.watcher.close()


@pytest.mark.parametrize("end", ["cut", "cancelled"])
async def test_a_flush_that_ends_in_the_middle_loses_nothing(database: db.Database, shut: Gate, end: str) -> None:
    """Whether its connection is cut or its task cancelled, the next one makes up for it."""
    worker = failures.Failures()
    worker.count(address("192.0.2.1"))
    flushing = asyncio.create_task(worker.flush(database))
    pid = await shut.waiting(ADDS)
    worker.count(address("192.0.2.1"))
    if end == "cut":
        await shut.cut(pid)
    else:
        flushing.cancel()
    with pytest.raises(Unavailable if end == "cut" else asyncio.CancelledError):
        await flushing
    await shut.holder.close()
    await worker.flush(database)
    assert await waiting(database) == {"192.0.2.1/32": 2}


async def test_a_server_that_stops_in_the_middle_of_a_flush_loses_nothing(
    database_url: str, tmp_path: Path, shut: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its own flush was writing when it was told to stop is written before it ends."""
    monkeypatch.setattr(failures, "FLUSH_SECONDS", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(new_world(database_url, tmp_path))
        headers = {"Authorization": f"Bearer {tokens.new_token()}"}
        assert (await world.http.get(world.a.account_path, headers=headers)).status_code == 403
        # A round from before had nothing to add, and only looks for minutes that are over.
        first = await shut.waiting(ANYTHING)
        if world.state.failures._counts:
            await shut.cut(first)
            first = await shut.waiting(ADDS)
        stopping = asyncio.create_task(stack.aclose())
        await shut.waiting(ANYTHING, known=first)
        await shut.holder.close()
        await stopping
    assert await shut.watcher.fetchval("SELECT sum(count)::int FROM failed_authentications") == 1


async def test_counts_wait_while_the_log_takes_no_row(database: db.Database) -> None:
    """A minute that cannot be filed stays where it is, and is filed once when it can be."""
    worker = failures.Failures()
    worker.count(address("192.0.2.1"))
    await worker.flush(database)
    await pass_minutes(database)
    await database.execute(NO_MORE)
    for _ in range(2):
        with pytest.raises(asyncpg.CheckViolationError):
            await worker.flush(database)
    assert await waiting(database) == {"192.0.2.1/32": 1}
    await database.execute(MORE)
    await worker.flush(database)
    await worker.flush(database)
    assert (await waiting(database), await filed(database)) == ({}, {"192.0.2.1/32": 1})


async def test_a_minute_that_is_not_over_is_not_filed(database: db.Database) -> None:
    """It stays in the table, and grows there."""
    worker = failures.Failures()
    for count in (1, 2):
        worker.count(address("192.0.2.1"))
        await worker.flush(database)
        # Wherever in its minute the test is, this one has just begun.
        await database.execute("UPDATE failed_authentications SET minute = minute + interval '1 day'")
        await worker.flush(database)
        await database.execute("UPDATE failed_authentications SET minute = minute - interval '1 day'")
        assert (await waiting(database), await filed(database)) == ({"192.0.2.1/32": count}, {})


SINCE, BEFORE = ("since", "2000-01-01"), ("before", "2126-01-01")
Parameter = tuple[str, str]


async def log(
    site: Site, *parameters: Parameter, by: str = "token", account: str = "a", http: httpx.AsyncClient | None = None
) -> httpx.Response:
    """The log as it is asked for; its bounds are wide where none are given."""
    given = {name for name, _ in parameters}
    bounds = [bound for bound in (SINCE, BEFORE) if bound[0] not in given]
    query = "&".join(f"{name}={quote(value)}" for name, value in (*bounds, *parameters))
    path = f"{V4}/accounts/{site.ids[account]}/logs/audit?{query}"
    return await (http or site.http).get(path, headers=site.headers[by])


async def entries(site: Site, *parameters: Parameter, by: str = "token", account: str = "a") -> list[Json]:
    """All of them at once, not judged: a schema takes its time over hundreds of entries."""
    async with client_from(site.world, "127.0.0.1") as http:
        answer = await log(site, ("limit", "1000"), *parameters, by=by, account=account, http=http)
    assert answer.status_code == 200, answer.text
    assert "cursor" not in answer.json()["result_info"]
    found: list[Json] = answer.json()["result"]
    return found


def ids(found: list[Json]) -> list[str]:
    return [item["id"] for item in found]


async def refused(site: Site, *parameters: Parameter) -> None:
    answer = await log(site, *parameters)
    told = [error["code"] for error in answer.json()["errors"]]
    assert (answer.status_code, told) == (400, [1455]), parameters


async def test_both_ends_of_the_time_are_required(site: Site) -> None:
    """A log without since or before is 400/1455."""
    for query in ("", "?since=2026-01-01", "?before=2026-01-01", "?since=&before=2026-01-01", "?limit=1"):
        answer = await site.call("token", "GET", f"{_A}/logs/audit{query}")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 1455), query


TIMES = {
    "2026-01-31": True,
    "2026-01-31T12:00:00Z": True,
    "2026-01-31T12:00:00+01:00": True,
    "2026-01-31T12:00:00.123456-11:30": True,
    "0001-01-01": True,
    "9999-12-31T23:59:59Z": True,
    "": False,
    "yesterday": False,
    "1769860800": False,
    "2026-13-01": False,
    "2026-02-29": False,
    "2026-01-31 12:00:00Z": False,
    "2026-01-31T25:00:00Z": False,
    "2026-01-31T12:00:00+25:00": False,
    "0001-01-01T00:00:00+23:59": False,
    "9999-12-31T23:59:59-23:59": False,
    "\uff12\uff10\uff12\uff16-01-31": False,
    "2026-01-31\n": False,
    "2026-01-31\x00": False,
    "' OR 1=1 --": False,
}


async def test_a_time_is_a_date_or_rfc_3339(site: Site) -> None:
    """Anything else is 400/1455, at either end."""
    for text, good in TIMES.items():
        for name in ("since", "before"):
            answer = await log(site, (name, text))
            code = None if good else 1455
            told = [error["code"] for error in answer.json()["errors"]]
            assert (answer.status_code, told) == ((200, []) if good else (400, [code])), (name, text)


async def test_since_is_in_and_before_is_out(site: Site) -> None:
    """The bounds are moments, whatever offset they are written with, to the microsecond."""
    (item,) = [item for item in await entries(site) if item["raw"].get("cf_ray_id") == made_by(site, "make a zone")]
    at = datetime.fromisoformat(item["action"]["time"])
    for zone in (UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=11))):
        moment, next_moment = (each.astimezone(zone).isoformat() for each in (at, at + timedelta(microseconds=1)))
        assert item["id"] in ids(await entries(site, ("since", moment)))
        assert item["id"] not in ids(await entries(site, ("since", next_moment)))
        assert item["id"] not in ids(await entries(site, ("before", moment)))
        assert ids(await entries(site, ("since", moment), ("before", next_moment))) == [item["id"]]
        assert await entries(site, ("since", next_moment), ("before", moment)) == []


def made_by(site: Site, name: str) -> str:
    request_id: str = site.done[name].headers["x-request-id"]
    return request_id


async def test_limit_and_direction_have_bounds(site: Site) -> None:
    """A limit is 1 to 1000, the direction asc or desc; the newest come first unless it says otherwise."""
    for limit in ("0", "1001", "-1", "x", "1.5", "", "1e3", "10000000000000000000000"):
        await refused(site, ("limit", limit))
    for direction in ("up", "ASC", ""):
        await refused(site, ("direction", direction))
    for name, value in (("limit", "5"), ("direction", "asc"), SINCE, ("cursor", "x")):
        await refused(site, (name, value), (name, value))
    everyone = ids(await entries(site))
    assert ids(await entries(site, ("direction", "desc"))) == everyone
    assert ids(await entries(site, ("direction", "asc"))) == everyone[::-1]
    assert ids((await log(site, ("limit", "1"))).json()["result"]) == everyone[:1]
    assert ids((await log(site, ("limit", "2.0"))).json()["result"]) == everyone[:2]
    assert len((await log(site)).json()["result"]) == min(100, len(everyone))


async def walk(site: Site, limit: int, direction: str, more: int = 0) -> list[str]:
    """All ids, page by page; `more` things happen between the first pages."""
    found: list[str] = []
    after: list[Parameter] = []
    while True:
        answer = (await log(site, ("limit", str(limit)), ("direction", direction), *after)).json()
        found += ids(answer["result"])
        info = answer["result_info"]
        assert info["count"] == len(answer["result"])
        if "cursor" not in info:
            assert info == {"count": len(answer["result"]), "cursors": {}}
            return found
        assert (info["count"], info["cursors"]) == (limit, {"after": info["cursor"]})
        after = [("cursor", info["cursor"])]
        if more:
            await site.good("token", "PUT", _A, {"name": f"Between pages {more}"})
            more -= 1


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_pages_have_every_entry_once(site: Site, limit: int, direction: str) -> None:
    """So it is for entries of one moment, and while entries are written; the last page has no cursor."""
    before = ids(await entries(site, ("direction", direction)))
    found = await walk(site, limit, direction, more=5)
    assert len(found) == len(set(found))
    assert found[: len(before)] == before
    # What is written meanwhile is newer than where a walk back through time has got to.
    expected = 5 if direction == "asc" and limit < len(before) else 0
    assert len(found) == len(before) + expected


async def test_moments_are_shared_in_this_log(site: Site) -> None:
    """There are entries of one moment, so that the pages above have ties to break."""
    times = Counter(item["action"]["time"] for item in await entries(site))
    assert max(times.values()) > 1


async def test_a_page_that_ends_with_the_log_is_the_last(site: Site) -> None:
    """Where the limit is the number of entries there is no cursor to an empty page."""
    (item, *_) = found = await entries(site, ("resource_type", "zone"))
    answer = (await log(site, ("resource_type", "zone"), ("limit", str(len(found))))).json()
    assert ids(answer["result"])[0] == item["id"]
    assert answer["result_info"] == {"count": len(found), "cursors": {}}


async def test_a_made_up_cursor_is_refused(site: Site) -> None:
    """Whatever is no cursor of this server is 400/1455."""
    packed = struct.pack(">q16s", 2**62, uuid4().bytes)
    made_up = [
        *("x", "AAAA", "!!!!", "=", "null", "\u00e9", "' OR 1=1 --", str(uuid4()), "A" * 1000, "\x00"),
        *(base64.urlsafe_b64encode(each).decode() for each in (b"", packed[:-1], packed + b"x", packed)),
        base64.urlsafe_b64encode(struct.pack(">q16s", -(2**62), uuid4().bytes)).decode(),
    ]
    for cursor in made_up:
        if cursor:
            await refused(site, ("cursor", cursor))


# Where each filter's value stands in an entry.
PLACES = {
    "id": "id",
    "audit_log_id": "id",
    "account_name": "account.name",
    "action_result": "action.result",
    "action_type": "action.type",
    "actor_context": "actor.context",
    "actor_email": "actor.email",
    "actor_id": "actor.id",
    "actor_ip_address": "actor.ip_address",
    "actor_token_id": "actor.token_id",
    "actor_token_name": "actor.token_name",
    "actor_type": "actor.type",
    "raw_cf_ray_id": "raw.cf_ray_id",
    "raw_method": "raw.method",
    "raw_status_code": "raw.status_code",
    "raw_uri": "raw.uri",
    "resource_id": "resource.id",
    "resource_product": "resource.product",
    "resource_scope": "resource.scope",
    "resource_type": "resource.type",
    "zone_id": "zone.id",
    "zone_name": "zone.name",
}


def value_of(item: Json, field: str) -> str | None:
    value: Any = item
    for key in PLACES[field].split("."):
        value = (value or {}).get(key)
    return None if value is None else str(value)


def test_the_table_of_filters_is_whole() -> None:
    """Every filter there is has its place in the tests below."""
    assert PLACES.keys() == audit_log.FIELDS.keys()


@pytest.mark.parametrize("field", PLACES)
async def test_a_filter_picks_and_its_not_leaves_out(site: Site, field: str) -> None:
    """A value picks exactly the entries that have it, `.not` the others, with those that have none; repeated is or."""
    everyone = await entries(site)
    values = sorted({value for item in everyone if (value := value_of(item, field)) is not None})
    assert values
    for chosen in ([values[0]], [values[-1]], values[:3]):
        picked = [(field, value) for value in chosen]
        left_out = [(f"{field}.not", value) for value in chosen]
        having = [item["id"] for item in everyone if value_of(item, field) in chosen]
        assert ids(await entries(site, *picked)) == having
        assert ids(await entries(site, *left_out)) == [each for each in ids(everyone) if each not in having]
        assert await entries(site, *picked, *left_out) == []
    for other in (
        "",
        "x",
        values[0] + "x",
        "%",
        "_",
        "*",
        "' OR '1'='1",
        "'; DROP TABLE audit_log; --",
        "$1",
        "\u00e9",
    ):
        if other not in values:
            assert await entries(site, (field, other)) == [], other
            assert ids(await entries(site, (f"{field}.not", other))) == ids(everyone), other


async def test_most_filters_have_entries_without_a_value(site: Site) -> None:
    """The log of the tests above has entries without what can be absent."""
    everyone = await entries(site)
    absent = {field for field in PLACES if any(value_of(item, field) is None for item in everyone)}
    nullable = {"actor_context", "actor_email", "actor_ip_address", "actor_token_id", "actor_token_name"}
    assert absent >= nullable | {"raw_cf_ray_id", "raw_status_code", "zone_id", "zone_name", "actor_id"}


async def test_filters_are_combined_by_and(site: Site) -> None:
    """Each field narrows what the others leave, and pages go on within what is picked."""
    everyone = await entries(site)
    parameters = [("action_type", "create"), ("action_type", "delete"), ("resource_type.not", "zone")]
    parameters += [("resource_type.not", "token"), ("action_result", "success"), ("actor_type", "account")]
    expected = [
        item["id"]
        for item in everyone
        if item["action"]["type"] in ("create", "delete")
        and item["resource"]["type"] not in ("zone", "token")
        and (item["action"]["result"], item["actor"]["type"]) == ("success", "account")
    ]
    assert len(expected) > 5
    assert ids(await entries(site, *parameters)) == expected
    paged: list[str] = []
    after: list[Parameter] = []
    while True:
        answer = (await log(site, ("limit", "2"), *parameters, *after)).json()
        paged += ids(answer["result"])
        if "cursor" not in answer["result_info"]:
            break
        after = [("cursor", answer["result_info"]["cursor"])]
    assert paged == expected


async def test_a_filter_has_bounds(site: Site) -> None:
    """101 values, a control character or no UTF-8 are 400/1455; 100 values are not."""
    for name in ("action_type", "action_type.not", "resource_id"):
        hundred = [(name, f"x{number}") for number in range(100)]
        assert (await log(site, *hundred)).status_code == 200
        await refused(site, *hundred, (name, "x"))
        for text in ("\x00", "a\x1fb", "\x7f", "\x85", "a\nb"):
            await refused(site, (name, text))
        answer = await site.call("token", "GET", f"{_A}/logs/audit?since=2026-01-01&before=2126-01-01&{name}=%ff")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 1455)
    assert ids(await entries(site, ("no_filter", "x"), ("action_type.NOT", "x"))) == ids(await entries(site))


async def test_categories_stand_for_their_products(site: Site) -> None:
    """A category picks the entries of its products, beside those of resource_product; an unknown one is 400/1455."""
    everyone = await entries(site)
    answer = await site.call("token", "GET", f"{_A}/logs/audit/product_categories")
    found = {each["value"]: [product["value"] for product in each["products"]] for each in answer.json()["result"]}
    assert {item["resource"]["product"] for item in everyone} <= {name for names in found.values() for name in names}
    for category, products in found.items():
        expected = ids([item for item in everyone if item["resource"]["product"] in products])
        assert ids(await entries(site, ("product_category", category.upper()))) == expected
    both = [("product_category", "ssl_tls"), ("product_category", "private_ca"), ("resource_product", "zones")]
    products = [*found["ssl_tls"], *found["private_ca"], "zones"]
    assert ids(await entries(site, *both)) == ids(
        [item for item in everyone if item["resource"]["product"] in products]
    )
    await refused(site, ("product_category", "x"))
    await refused(site, ("product_category", ""))


async def test_an_entry_leads_to_the_history_of_its_resource(site: Site) -> None:
    """All that happened to the resource, in pages and either order; an entry of another log leads nowhere."""
    everyone = await entries(site)
    source = next(item for item in everyone if (item["resource"]["type"], item["action"]["type"]) == ("token", "roll"))
    same = [item for item in everyone if item["resource"]["id"] == source["resource"]["id"]]
    assert len(same) > 1
    window = f"since=2026-01-01&before=2126-01-01&action_time={source['action']['time']}"
    url = f"{_A}/logs/audit/{source['id']}/history?{window}"
    for query, expected in (("", same), ("&direction=asc", same[::-1]), ("&limit=1", same[:1])):
        answer = (await site.call("token", "GET", url + query)).json()
        assert (answer["result"], answer["result_info"]["history_status"]) == (expected, "exact")
    more = await site.call("token", "GET", f"{url}&limit=1&cursor={answer['result_info']['cursor']}")
    assert more.json()["result"] == same[1:2]
    theirs = ids(await entries(site, by="foreign", account="b"))[0]
    for entry_id in (theirs, str(uuid4())):
        answer = (await site.call("token", "GET", f"{_A}/logs/audit/{entry_id}/history?{window}")).json()
        assert (answer["result"], answer["result_info"]["history_status"]) == ([], "unavailable")
    for path, refusal in (
        (f"{source['id']}/history?since=2026-01-01&before=2126-01-01", (400, 1455)),
        (f"{source['id']}/history?{window}&cursor=x", (400, 1455)),
        (f"x/history?{window}", (404, 7003)),
    ):
        refused_ = await site.call("token", "GET", f"{_A}/logs/audit/{path}")
        assert (refused_.status_code, refused_.json()["errors"][0]["code"]) == refusal


async def test_nobody_sees_an_entry_of_another_account(site: Site) -> None:
    """Each tenant sees what is filed under the own account, all of it and nothing else, whoever tried what."""
    found = {}
    for by, account in (("token", "a"), ("foreign", "b")):
        sql = "SELECT id FROM audit_log WHERE account_id = $1 ORDER BY at DESC, id DESC"
        rows = await site.world.database.fetch(sql, UUID(site.ids[account]))
        items = await entries(site, by=by, account=account)
        assert ids(items) == [str(row["id"]) for row in rows]
        assert {item["account"]["id"] for item in items} == {site.ids[account]}
        # Nor does a cursor or a filter lead out of it.
        assert await entries(site, ("id", ids(items)[0]), by=by, account=account) == items[:1]
        found[account] = items
    assert not set(ids(found["a"])) & set(ids(found["b"]))
    assert await entries(site, ("id", ids(found["a"])[0]), by="foreign", account="b") == []
    told = {account: {item["raw"].get("cf_ray_id") for item in items} for account, items in found.items()}
    for name, attempt in ATTEMPTS.items():
        seen_by = {account for account in ("a", "b") if made_by(site, name) in told[account]}
        assert seen_by == {attempt.account} - {"none"}, name


async def test_reading_the_log_needs_account_settings_read(site: Site) -> None:
    """The group, what implies it, and the members of the account open the log; nothing else does."""
    others = tuple(group.name for group in GROUPS if group.area not in (Area.SETTINGS, Area.USER_TOKENS))
    account = site.world.a.account
    cases = [(("Account Settings Read",), 200), (("Account Settings Write",), 200), (others, 403)]
    for number, (groups, status) in enumerate(cases):
        site.headers[f"case_{number}"] = await _new_token(site, f"case_{number}", account, groups)
        assert (await log(site, by=f"case_{number}")).status_code == status, groups
    for by, status in (("key", 200), ("member", 200), ("user_token", 200), ("foreign", 403), ("foreign_key", 403)):
        assert (await log(site, by=by)).status_code == status, by


def extras(model: BaseModel) -> list[str]:
    """What an SDK's object has that the SDK does not know."""
    inner = [value for value in dict(model).values() if isinstance(value, BaseModel)]
    return [*(model.model_extra or {}), *(name for each in inner for name in extras(each))]


HEX = {"account", "zone", "token", "user"}


async def test_entries_have_the_sdks_shape_and_the_apis_ids(site: Site) -> None:
    """The SDK knows every field and each has its type; ids are written as the API writes them elsewhere."""
    everyone = (await log(site, ("limit", "1000"))).json()["result"]
    assert HEX | {"custom_csr", "certificate_authority"} <= {item["resource"]["type"] for item in everyone}
    for item in everyone:
        assert extras(AuditListResponse.model_validate(item)) == []
        assert None not in _leaves(item)
        assert {"id", "account", "action", "actor", "raw", "resource"} <= item.keys()
        assert str(UUID(item["id"])) == item["id"]
        assert item["account"] == {"id": site.ids["a"], "name": item["account"]["name"]}
        resource = item["resource"]
        shown = UUID(resource["id"])
        assert resource["id"] == (shown.hex if resource["type"] in HEX else str(shown))
        for each in (item["actor"].get("id"), item["actor"].get("token_id"), item.get("zone", {}).get("id")):
            assert each is None or UUID(each).hex == each
        assert item["action"].keys() == {"description", "result", "time", "type"}
        assert item["action"]["description"]
        assert resource["scope"] == (
            "zones" if "zone" in item else "user" if resource["type"] == "user" else "accounts"
        )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


async def test_an_entry_tells_who_did_what(site: Site) -> None:
    """A token, a user's token, a global key and the operator are told apart, with what each of them has."""
    by_ray = {item["raw"].get("cf_ray_id"): item for item in await entries(site)}
    made = by_ray[made_by(site, "make a zone")]
    assert made["actor"] == {
        "type": "account",
        "id": site.ids["token"],
        "context": "api_token",
        "ip_address": "127.0.0.1",
        "token_id": site.ids["token"],
        "token_name": "the token",
    }
    zone_id = site.done["make a zone"].json()["result"]["id"]
    assert made["resource"] == {"id": zone_id, "product": "zones", "scope": "zones", "type": "zone"}
    assert made["zone"] == {"id": zone_id, "name": "new-zone-1.example.com"}
    assert made["raw"] == {
        "method": "POST",
        "uri": f"{V4}/zones",
        "cf_ray_id": made_by(site, "make a zone"),
        "status_code": 200,
        "user_agent": AGENT,
    }
    assert by_ray[made_by(site, "make a zone by a user's token")]["actor"] == {
        "type": "user",
        "id": site.who["key"].actor_id.hex,
        "context": "api_token",
        "email": site.world.a.email,
        "ip_address": "127.0.0.1",
        "token_id": site.ids["user_token"],
        "token_name": "the user_token",
    }
    assert by_ray[made_by(site, "rename an account by a global key")]["actor"] == {
        "type": "user",
        "id": site.who["key"].actor_id.hex,
        "context": "api_key",
        "email": site.world.a.email,
        "ip_address": "127.0.0.1",
    }
    operator, *_ = await entries(site, ("raw_method", "CLI"))
    assert operator["actor"] == {"type": "system"}
    assert operator["action"]["description"].endswith(f" by operator {first_start.operator().name}")


PLACE = (UUID(int=1), UUID(int=2), None)


async def write(database: db.Database, count: int, account: UUID = PLACE[0]) -> None:
    operator = first_start.operator()
    for _ in range(count):
        place = (account, uuid4(), None)
        await audit.record(database, operator, audit.Action.UPDATE, audit.Resource.ZONE, place)


@pytest.mark.parametrize(("at_once", "batches"), [(1, 6), (3, 3), (12, 1), (10_000, 1)])
async def test_prune_deletes_what_is_older_and_says_so(
    database: db.Database, monkeypatch: pytest.MonkeyPatch, at_once: int, batches: int
) -> None:
    """Entries of all accounts from before the moment go, batch by batch, each with a row of its own; others stay.

    A batch does not part entries of one time.
    """
    monkeypatch.setattr(audit_log, "AT_ONCE", at_once)
    moment = datetime(2020, 6, 1, tzinfo=UTC)
    ages = (moment - timedelta(days=400), moment - timedelta(microseconds=1), moment, moment + timedelta(days=1))
    for account in (PLACE[0], UUID(int=9), audit.NO_ACCOUNT):
        for at in ages:
            await write(database, 2, account)
            await database.execute("UPDATE audit_log SET at = $1 WHERE at > $2", at, datetime.now(UTC) - _JUST_NOW)
    operator = first_start.operator()
    assert await audit_log.prune(database, operator, moment) == 12
    rows = await database.fetch("SELECT * FROM audit_log ORDER BY at")
    assert [row["at"] for row in rows if row["action"] == "update"] == [moment] * 6 + [ages[3]] * 6
    own = [row for row in rows if row["action"] == "prune"]
    assert len(own) == batches
    for row in own:
        assert (row["account_id"], row["resource_type"], row["result"]) == (NOWHERE, "audit_log", "success")
        assert (row["actor"], row["actor_name"]) == ("operator", operator.name)
    assert await audit_log.prune(database, operator, moment) == 0
    assert len(await database.fetch("SELECT FROM audit_log")) == len(rows)


_JUST_NOW = timedelta(minutes=10)


async def test_a_prune_that_cannot_be_written_down_deletes_nothing(database: db.Database) -> None:
    """Its own row is in the transaction of the deletion."""
    await write(database, 3)
    await database.execute("UPDATE audit_log SET at = at - interval '1 day'")
    await database.execute(NO_MORE)
    with pytest.raises(asyncpg.CheckViolationError):
        await audit_log.prune(database, first_start.operator(), datetime.now(UTC) - timedelta(hours=1))
    assert len(await database.fetch("SELECT FROM audit_log")) == 3
