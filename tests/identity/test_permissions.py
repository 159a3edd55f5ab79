"""Who may do what: every route, every permission group and every place against a table that is written by hand.

The table is the contract's (contract-cloudflare sections 5 and 7, contract-infisical), and is not read from the code.
Bodies are empty and ids unknown wherever that is enough, so that whoever is let in changes nothing.
"""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.databases import new_database
from support.world import Tenant, World, document, make_token, new_world

from keystead.caller import GROUPS, Access, Actor, Area, Caller, Role, Scope
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity.accounts import Account, User
from keystead.identity.zones import Zone
from keystead.server import first_start, postgres

Json = dict[str, Any]

ZONE_SSL_READ, ZONE_SSL_WRITE = "SSL and Certificates Read", "SSL and Certificates Write"
ZONE_READ, ZONE_WRITE = "Zone Read", "Zone Write"
SSL_READ, SSL_WRITE = "Account: SSL and Certificates Read", "Account: SSL and Certificates Write"
SETTINGS_READ, SETTINGS_WRITE = "Account Settings Read", "Account Settings Write"
TOKENS_READ, TOKENS_WRITE = "Account API Tokens Read", "Account API Tokens Write"
USER_TOKENS_READ, USER_TOKENS_WRITE = "API Tokens Read", "API Tokens Write"
CA_READ, CA_WRITE = "Private CA Read", "Private CA Write"
CA_SIGN, CA_ISSUE_KEY = "Private CA Sign", "Private CA Issue Key"
# Two calls need these two, and no group alone is enough.
CA_WRITE_AND_SIGN = f"{CA_WRITE} + {CA_SIGN}"
OF_ZONES = (ZONE_SSL_READ, ZONE_SSL_WRITE, ZONE_READ, ZONE_WRITE)
OF_ACCOUNTS = (
    *(SSL_READ, SSL_WRITE, SETTINGS_READ, SETTINGS_WRITE, TOKENS_READ, TOKENS_WRITE),
    *(USER_TOKENS_READ, USER_TOKENS_WRITE, CA_READ, CA_WRITE, CA_SIGN, CA_ISSUE_KEY),
)
ALL = (*OF_ZONES, *OF_ACCOUNTS)
HOLDERS = (*ALL, CA_WRITE_AND_SIGN)
ANY_SSL = (ZONE_SSL_READ, ZONE_SSL_WRITE, SSL_READ, SSL_WRITE)
ANY_CA = (CA_READ, CA_WRITE, CA_SIGN, CA_ISSUE_KEY)


class Route(NamedTuple):
    """A call and what is enough for it: on the own account with all of its zones, and on the zone of the path alone."""

    method: str
    path: str
    on_account: tuple[str, ...]
    on_zone: tuple[str, ...] = ()
    body: Mapping[str, Any] = MappingProxyType({})
    query: str = ""
    # The name in the path of which another thing of the place is taken.
    instead: tuple[str, str] | None = None

    @property
    def of_infisical(self) -> bool:
        return self.path.startswith("/api/")

    @property
    def away(self) -> str:
        """What a foreign account's is like: the other dialect tells its CAs from none at all by nothing."""
        return NOT_THERE if self.of_infisical else REFUSED

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


_YEAR = str(datetime.now(UTC).year + 3)
_CA: tuple[Route, ...] = (
    Route("GET", "", ANY_CA),
    Route("PATCH", "", (CA_WRITE,)),
    # Its leaf keeps it.
    Route("DELETE", "", (CA_WRITE,)),
    Route("GET", "/csr", (CA_WRITE,)),
    Route("POST", "/sign-intermediate", (CA_WRITE_AND_SIGN,), body={"csr": "x", "notAfter": _YEAR}),
    Route("POST", "/import-certificate", (CA_WRITE,), body={"certificate": "x", "certificateChain": "x"}),
    Route("GET", "/certificate", ANY_CA),
    Route("GET", "/ca-certificates", ANY_CA),
    Route("POST", "/renew", (CA_WRITE_AND_SIGN,), body={"type": "existing", "notAfter": "2001"}),
    Route("POST", "/sign-certificate", (CA_SIGN,), body={"csr": "x", "ttl": "1d"}),
    Route("POST", "/issue-certificate", (CA_ISSUE_KEY,), body={"commonName": "no host", "ttl": "1d"}),
    Route("GET", "/crl", ANY_CA),
    Route("GET", "/crls", ANY_CA),
)
_INTERNAL = {"name": "x", "status": "active", "configuration": {"type": "root", "commonName": "Root"}}
_OLDER, _NEWER, _SERIAL = "/api/v1/pki/ca", "/api/v1/cert-manager/ca/internal", "/api/v1/pki/certificates"
_API = "/api/v1/cert-manager"
_ONE_PAIR = f"{_API}/applications/{{applicationId}}/profiles/{{profileId}}"
_HERE = "?projectId={account_id}"
# Names with a space, and what is used, are refused after the permission.
_OF_PROFILES: tuple[Route, ...] = (
    Route("GET", f"{_API}/certificates", ANY_CA, query=_HERE),
    Route("POST", f"{_API}/certificates", (CA_SIGN,), body={"profileId": "{profileId}", "csr": "x"}),
    Route("GET", f"{_API}/certificates/{{certificateId}}", ANY_CA),
    Route("GET", f"{_API}/certificates/{{certificateId}}/bundle", ANY_CA),
    Route("POST", f"{_API}/certificates/{{certificateId}}/renew", (CA_SIGN,)),
    Route("POST", f"{_API}/certificates/{{certificateId}}/revoke", (CA_WRITE,), body={"revocationReason": "WHIM"}),
    Route("GET", f"{_API}/certificates/certificate-requests/{{certificateId}}", ANY_CA),
    *(
        route
        for noun, id_, body in (
            ("certificate-policies", "policyId", {"name": "a b"}),
            (
                "certificate-profiles",
                "profileId",
                {"slug": "a b", "caId": "{caId}", "certificatePolicyId": "{policyId}"},
            ),
            ("applications", "applicationId", {"name": "a b"}),
        )
        for route in (
            Route("POST", f"{_API}/{noun}", (CA_WRITE,), body={**body, "projectId": "{account_id}"}),
            Route("GET", f"{_API}/{noun}", ANY_CA, query=_HERE),
            Route("GET", f"{_API}/{noun}/{{{id_}}}", ANY_CA),
            Route("PATCH", f"{_API}/{noun}/{{{id_}}}", (CA_WRITE,), body={"description": 7}),
        )
    ),
    # A profile keeps it, and an application keeps that, and is kept by it.
    Route("DELETE", f"{_API}/certificate-policies/{{policyId}}", (CA_WRITE,)),
    Route("DELETE", f"{_API}/certificate-profiles/{{profileId}}", (CA_WRITE,)),
    Route("DELETE", f"{_API}/applications/{{applicationId}}", (CA_WRITE,)),
    # These are done as often as they are asked for.
    Route("DELETE", _ONE_PAIR, (CA_WRITE,), instead=("profileId", "otherProfileId")),
    Route("DELETE", f"{_ONE_PAIR}/enrollment/api", (CA_WRITE,)),
    Route("GET", f"{_API}/certificate-profiles/slug/{{slug}}", ANY_CA, query=_HERE),
    Route("GET", f"{_API}/applications/by-name/{{name}}", ANY_CA, query=_HERE),
    Route("GET", f"{_API}/applications/{{applicationId}}/profiles", ANY_CA),
    Route("POST", f"{_API}/applications/{{applicationId}}/profiles", (CA_WRITE,), body={"profileIds": 7}),
    Route("GET", f"{_ONE_PAIR}/enrollment", ANY_CA),
    Route("PUT", f"{_ONE_PAIR}/enrollment/api", (CA_WRITE,), body={"autoRenew": 7}),
    Route("GET", "/api/v1/projects/slug/{slug}", ANY_CA),
)
ROUTES = (
    Route("POST", "/accounts/{account_id}/custom_csrs", (SSL_WRITE,)),
    Route("GET", "/accounts/{account_id}/custom_csrs", (SSL_READ, SSL_WRITE)),
    Route("GET", "/accounts/{account_id}/custom_csrs/{custom_csr_id}", (SSL_READ, SSL_WRITE)),
    Route("DELETE", "/accounts/{account_id}/custom_csrs/{custom_csr_id}", (SSL_WRITE,)),
    Route("POST", "/zones/{zone_id}/custom_csrs", (ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    Route("GET", "/zones/{zone_id}/custom_csrs", ANY_SSL, (ZONE_SSL_READ, ZONE_SSL_WRITE)),
    Route("GET", "/zones/{zone_id}/custom_csrs/{custom_csr_id}", ANY_SSL, (ZONE_SSL_READ, ZONE_SSL_WRITE)),
    Route("DELETE", "/zones/{zone_id}/custom_csrs/{custom_csr_id}", (ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    Route("POST", "/zones/{zone_id}/custom_certificates", (ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    Route("GET", "/zones/{zone_id}/custom_certificates", ANY_SSL, (ZONE_SSL_READ, ZONE_SSL_WRITE)),
    Route(
        *("GET", "/zones/{zone_id}/custom_certificates/{custom_certificate_id}"),
        *(ANY_SSL, (ZONE_SSL_READ, ZONE_SSL_WRITE)),
    ),
    Route(
        *("PATCH", "/zones/{zone_id}/custom_certificates/{custom_certificate_id}"),
        *((ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    ),
    Route(
        *("DELETE", "/zones/{zone_id}/custom_certificates/{custom_certificate_id}"),
        *((ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    ),
    # With a CA of the account it needs more: tests/renewal/test_rules.py.
    Route(
        *("PUT", "/zones/{zone_id}/custom_certificates/{custom_certificate_id}/keystead_renewal"),
        *((ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
        body={"renew_with": "outside"},
    ),
    Route(
        *("DELETE", "/zones/{zone_id}/custom_certificates/{custom_certificate_id}/keystead_renewal"),
        *((ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
    ),
    Route(
        *("PUT", "/zones/{zone_id}/custom_certificates/prioritize"),
        *((ZONE_SSL_WRITE, SSL_WRITE), (ZONE_SSL_WRITE,)),
        body={"certificates": []},
    ),
    Route("GET", "/accounts/{account_id}", (SETTINGS_READ, SETTINGS_WRITE)),
    Route("PUT", "/accounts/{account_id}", (SETTINGS_WRITE,)),
    # Its zones keep it.
    Route("DELETE", "/accounts/{account_id}", (SETTINGS_WRITE,)),
    # Whoever may change one zone may not make others; the name is taken.
    Route("POST", "/zones", (ZONE_WRITE,), body={"account": {"id": "{account_id}"}, "name": "{zone_name}"}),
    Route("GET", "/zones/{zone_id}", (ZONE_READ, ZONE_WRITE), (ZONE_READ, ZONE_WRITE)),
    Route("PATCH", "/zones/{zone_id}", (ZONE_WRITE,), (ZONE_WRITE,)),
    # Its CSR keeps it.
    Route("DELETE", "/zones/{zone_id}", (ZONE_WRITE,), (ZONE_WRITE,)),
    Route("POST", "/accounts/{account_id}/tokens", (TOKENS_WRITE,)),
    Route("GET", "/accounts/{account_id}/tokens", (TOKENS_READ, TOKENS_WRITE)),
    Route("GET", "/accounts/{account_id}/tokens/permission_groups", (TOKENS_READ, TOKENS_WRITE)),
    Route("GET", "/accounts/{account_id}/tokens/{token_id}", (TOKENS_READ, TOKENS_WRITE)),
    Route("PUT", "/accounts/{account_id}/tokens/{token_id}", (TOKENS_WRITE,)),
    Route("PUT", "/accounts/{account_id}/tokens/{token_id}/value", (TOKENS_WRITE,)),
    Route("DELETE", "/accounts/{account_id}/tokens/{token_id}", (TOKENS_WRITE,)),
    Route("GET", "/accounts/{account_id}/logs/audit", (SETTINGS_READ, SETTINGS_WRITE)),
    Route("GET", "/accounts/{account_id}/logs/audit/product_categories", (SETTINGS_READ, SETTINGS_WRITE)),
    Route("GET", "/accounts/{account_id}/logs/audit/{entry_id}/history", (SETTINGS_READ, SETTINGS_WRITE)),
    *(route._replace(path=f"{prefix}/{{caId}}{route.path}") for prefix in (_OLDER, _NEWER) for route in _CA),
    # The quota is used up.
    Route("POST", _OLDER, (CA_WRITE,), body={"projectSlug": "{slug}", "type": "root", "commonName": "Root"}),
    Route("GET", _NEWER, ANY_CA, query="?projectId={account_id}"),
    Route("GET", "/api/v1/cert-manager/ca", ANY_CA, query="?projectId={account_id}"),
    # The quota is used up.
    Route("POST", _NEWER, (CA_WRITE,), body={**_INTERNAL, "projectId": "{account_id}"}),
    # A root that would end before it begins.
    Route("POST", f"{_NEWER}/{{caId}}/certificate", (CA_WRITE_AND_SIGN,), body={"notAfter": "2001"}),
    Route("GET", f"{_NEWER}/{{caId}}/certificate/{{certId}}", ANY_CA),
    Route(
        *("POST", f"{_SERIAL}/issue-certificate", (CA_ISSUE_KEY,)),
        body={"caId": "{caId}", "commonName": "no host", "ttl": "1d"},
    ),
    Route("GET", f"{_SERIAL}/{{serialNumber}}/bundle", ANY_CA),
    *_OF_PROFILES,
    Route("POST", f"{_SERIAL}/sign-certificate", (CA_SIGN,), body={"caId": "{caId}", "csr": "x", "ttl": "1d"}),
    Route("GET", f"{_SERIAL}/{{serialNumber}}", ANY_CA),
    Route("GET", f"{_SERIAL}/{{serialNumber}}/certificate", ANY_CA),
    Route("POST", f"{_SERIAL}/{{serialNumber}}/revoke", (CA_WRITE,), body={"revocationReason": "WHIM"}),
)
# Here a user's token, or the global key, works on the user's own tokens; no account's token does.
USER_ROUTES = (
    Route("POST", "/user/tokens", (USER_TOKENS_WRITE,)),
    Route("GET", "/user/tokens", (USER_TOKENS_READ, USER_TOKENS_WRITE)),
    Route("GET", "/user/tokens/permission_groups", (USER_TOKENS_READ, USER_TOKENS_WRITE)),
    Route("GET", "/user/tokens/{token_id}", (USER_TOKENS_READ, USER_TOKENS_WRITE)),
    Route("PUT", "/user/tokens/{token_id}", (USER_TOKENS_WRITE,)),
    Route("PUT", "/user/tokens/{token_id}/value", (USER_TOKENS_WRITE,)),
    Route("DELETE", "/user/tokens/{token_id}", (USER_TOKENS_WRITE,)),
)
# What a user who administers an account may, and their token on all accounts; a name of spaces only is refused.
NEW_ACCOUNT = Route("POST", "/accounts", (SETTINGS_WRITE,), body={"name": " "})


class Sight(NamedTuple):
    """A list that anybody gets: by which groups things show up in it, and which by the place that they are on."""

    path: str
    groups: tuple[str, ...]
    on_account: tuple[str, ...]
    on_zone: tuple[str, ...]
    on_other_zone: tuple[str, ...]

    @property
    def route(self) -> Route:
        return Route("GET", self.path, ())


SIGHTS = (
    Sight("/accounts", (SETTINGS_READ, SETTINGS_WRITE), ("Account a",), (), ()),
    Sight(
        *("/zones", (ZONE_READ, ZONE_WRITE)),
        *(("a.example.com", "other.example.com"), ("a.example.com",), ("other.example.com",)),
    ),
)
NO_PERMISSION = {
    "GET /user/tokens/verify": "any token of ours may ask what it is, also one that has ended",
    "GET /accounts/{account_id}/tokens/verify": "likewise",
    "GET /user": "says whose credential it is; a token of an account has no user",
    "GET /api/status": "says only that somebody is here",
    "POST /api/v1/auth/universal-auth/login": "takes the credential in its body",
    "POST /api/v1/auth/token/renew": "likewise",
    "POST /api/v1/auth/token/revoke": "likewise",
    "GET /api/v1/pki/crl/{crlId}/der": "whoever checks a certificate fetches it",
    "GET /api/v1/cert-manager/crl/{crlId}/der": "likewise",
    f"GET {_OLDER}/{{caId}}/certificates/{{caCertId}}/der": "likewise",
    f"GET {_NEWER}/{{caId}}/certificates/{{caCertId}}/der": "likewise",
}
EVERY_ROUTE = (*ROUTES, *USER_ROUTES, NEW_ACCOUNT, *(sight.route for sight in SIGHTS))

UNAUTHORIZED = "Unauthorized to access requested resource"
INVALID, ELSEWHERE = "Invalid access token", "Cannot use the access token from location: 127.0.0.1"
LET_IN, REFUSED, NOT_THERE = "let in", "refused", "not there"
UNKNOWN = {
    "custom_csr_id": str(uuid4()),
    "custom_certificate_id": str(uuid4()),
    "token_id": uuid4().hex,
    "entry_id": str(uuid4()),
}


class Ground(NamedTuple):
    """Whose paths there are, and who asks: `bearers` by the place that their policies are on, and what they hold."""

    world: World
    own: dict[str, str]
    foreign: dict[str, str]
    nowhere: dict[str, str]
    other_zone: Zone
    bearers: dict[tuple[str, str], dict[str, str]]
    reader_key: dict[str, str]

    @property
    def administrator_key(self) -> dict[str, str]:
        return {"X-Auth-Email": self.world.a.email, "X-Auth-Key": self.world.a.key}

    async def ask(self, route: Route, place: dict[str, str], headers: dict[str, str]) -> httpx.Response:
        url = route.path if route.of_infisical else f"/client/v4{route.path}"
        content = "" if route.method in {"GET", "DELETE"} else json.dumps(dict(route.body))
        if route.instead:
            place = {**place, route.instead[0]: place[route.instead[1]]}
        for name, value in place.items():
            url, content = (text.replace(f"{{{name}}}", value) for text in (url, content))
        query = route.query.format(**place)
        return await self.world.http.request(route.method, url + query, content=content.encode(), headers=headers)

    async def wrong(self, route: Route, cells: Iterable["Cell"]) -> list[str]:
        """The cells that are not as they should be."""
        found = []
        for cell in cells:
            verdict = judged(route, await self.ask(route, cell.place, cell.headers))
            if verdict != cell.verdict:
                found.append(f"{cell.name}: {verdict} instead of {cell.verdict}")
        return found


class Cell(NamedTuple):
    name: str
    place: dict[str, str]
    headers: dict[str, str]
    verdict: str


def judged(route: Route, answer: httpx.Response) -> str:
    """What an answer says of the permission; an answer that says something else comes back as it is."""
    body, status = answer.json(), answer.status_code
    if route.of_infisical:
        if status == 403 and body["error"] == "PermissionDenied" and body["details"]:
            return REFUSED
        if status == 404:
            return NOT_THERE
    else:
        code = body["errors"][0]["code"] if body["errors"] else 0
        if (status, code) == (403, 9109) and body["errors"][0]["message"] == UNAUTHORIZED:
            return REFUSED
        if status == 404 and code != 7003:
            return LET_IN
    return LET_IN if status in {200, 400, 409, 422} else answer.text


def enough(names: tuple[str, ...], holder: str) -> bool:
    held = set(holder.split(" + "))
    return any(set(name.split(" + ")) <= held for name in names)


def let_in(really: bool) -> str:
    return LET_IN if really else REFUSED


def on_account(account: Account) -> list[Json]:
    """The resources of an account: itself, and all of its zones."""
    name = f"com.cloudflare.api.account.{account.id.hex}"
    return [{name: "*"}, {name: {"com.cloudflare.api.account.zone.*": "*"}}]


def on_zone(zone: Zone) -> list[Json]:
    return [{f"com.cloudflare.api.account.zone.{zone.id.hex}": "*"}]


EVERYWHERE: list[Json] = [{"com.cloudflare.api.account.*": "*", "com.cloudflare.api.account.zone.*": "*"}]
_IDS = {group.name: group.id.hex for group in GROUPS}


def policy(groups: Iterable[str], resources: list[Json], effect: str = "allow") -> list[Json]:
    named = [{"id": _IDS[name], "name": name} for name in groups]
    return [{"id": uuid4().hex, "effect": effect, "resources": each, "permission_groups": named} for each in resources]


async def bearer(world: World, written: list[Json], **fields: Any) -> dict[str, str]:
    """A new token of A, or of the user among the fields."""
    value = await make_token(world.services, world.a.account, policies=json.dumps(written), **fields)
    return {"Authorization": f"Bearer {value}"}


@pytest.fixture(scope="module")
async def ground(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """One world for this file, in which whoever is let in changes nothing."""
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("world")) as world:
        made = await _ground(world)
        before = await _stored(world)
        yield made
        assert await _stored(world) == before


async def _ground(world: World) -> Ground:
    operator = first_start.operator()
    other = await zones.create_in(world.database, operator, world.a.account, "other.example.com")
    own, foreign = [await _place(world, tenant) for tenant in (world.a, world.b)]
    nowhere = {**own, "account_id": uuid4().hex, "zone_id": uuid4().hex}
    user = await accounts.find_user(world.database, world.a.email)
    reader = await _user(world, "reader@example.com", {world.a.account: Role.READ})
    both = await _user(world, "both@example.com", dict.fromkeys((world.a.account, world.b.account), Role.ADMINISTRATOR))
    ours, theirs = on_account(world.a.account), [*on_account(world.b.account), *on_zone(world.b.zone)]
    bearers: dict[tuple[str, str], dict[str, str]] = {}
    for holder in HOLDERS:
        groups = holder.split(" + ")
        bearers["account", holder] = await bearer(world, policy(groups, ours))
        bearers["user", holder] = await bearer(world, policy(groups, EVERYWHERE), user=user)
        bearers["user here", holder] = await bearer(world, policy(groups, ours), user=user)
        bearers["user half", holder] = await bearer(world, policy(groups, ours), user=both)
    for holder in OF_ZONES:
        bearers["zone", holder] = await bearer(world, policy([holder], on_zone(world.a.zone)))
    bearers["account", "of zones"] = await bearer(world, policy(OF_ZONES, ours[:1]))
    bearers["zone", "of accounts"] = await bearer(world, policy(OF_ACCOUNTS, on_zone(world.a.zone)))
    now, hour = datetime.now(UTC), timedelta(hours=1)
    elsewhere = json.dumps({"request_ip": {"in": ["192.0.2.0/24"]}})
    special: dict[str, tuple[list[Json], Json]] = {
        "everywhere": (EVERYWHERE, {}),
        "foreign": (theirs, {}),
        "other zone": (on_zone(other), {}),
        "other zone, foreign account": ([*on_zone(other), *theirs], {}),
        "user": (EVERYWHERE, {"user": user}),
        "reader": (EVERYWHERE, {"user": reader}),
        "expired": (EVERYWHERE, {"expires_on": now - hour}),
        "not yet valid": (EVERYWHERE, {"not_before": now + hour}),
        "wrong address": (EVERYWHERE, {"condition": elsewhere}),
        "disabled": (EVERYWHERE, {}),
    }
    for name, (resources, fields) in special.items():
        bearers[name, "all"] = await bearer(world, policy(ALL, resources), **fields)
    last = (await tokens.list_(world.database))[-1]
    await tokens.set_status(world.database, operator, last, active=False)
    key = await tokens.roll_global_key(world.services, operator, reader)
    reader_key = {"X-Auth-Email": reader.email, "X-Auth-Key": key}
    return Ground(world, own, foreign, nowhere, other, bearers, reader_key)


async def _user(world: World, email: str, roles: dict[Account, Role]) -> User:
    user = await accounts.create_user(world.database, first_start.operator(), email)
    for account, role in roles.items():
        await accounts.set_membership(world.database, first_start.operator(), user, account, role)
    return user


async def _place(world: World, tenant: Tenant) -> dict[str, str]:
    """What the paths of a tenant need: a CSR that keeps the zone, and a CA that may have no more beside it."""
    made = await world.create(tenant, tenant.zone_path, key_type="p256v1")
    body = {"projectSlug": tenant.account.slug, "type": "root", "commonName": "Root", "keyAlgorithm": "EC_prime256v1"}
    answer = await world.http.post(_OLDER, json=body, headers=tenant.bearer)
    answer_of_ca = answer.json()["ca"]
    ca_id = answer_of_ca["id"]
    leaf = {"csr": made["csr"], "ttl": "1d"}
    answer = await world.http.post(f"{_OLDER}/{ca_id}/sign-certificate", json=leaf, headers=tenant.bearer)
    serial = answer.json()["serialNumber"]
    profiles = await _profiles(world, tenant, ca_id)
    listed = await world.http.get(f"{_API}/certificates?serialNumber={serial}", headers=tenant.bearer)
    await world.database.execute("UPDATE accounts SET ca_quota = 0 WHERE id = $1", tenant.account.id)
    return {
        **UNKNOWN,
        "account_id": tenant.account.id.hex,
        "zone_id": tenant.zone.id.hex,
        "zone_name": tenant.zone.name,
        "slug": tenant.account.slug,
        "caId": ca_id,
        "certId": answer_of_ca["activeCaCertId"],
        "serialNumber": serial,
        "certificateId": listed.json()["certificates"][0]["id"],
        **profiles,
    }


async def _profiles(world: World, tenant: Tenant, ca_id: str) -> dict[str, str]:
    """A policy, two profiles of it, and an application with both, whose names are the account's slug."""
    slug = tenant.account.slug

    async def made(noun: str, body: Json) -> str:
        answer = await world.http.post(f"{_API}/{noun}", json=body, headers=tenant.bearer)
        (found,) = answer.json().values()
        return str(found["id"])

    policy_id = await made("certificate-policies", {"name": slug})
    ids = {"caId": ca_id, "certificatePolicyId": policy_id}
    profile_id, other = [await made("certificate-profiles", {"slug": each, **ids}) for each in (slug, "other")]
    application_id = await made("applications", {"name": slug, "profileIds": [profile_id, other]})
    return {
        "policyId": policy_id,
        "profileId": profile_id,
        "otherProfileId": other,
        "applicationId": application_id,
        "name": slug,
    }


async def _stored(world: World) -> dict[str, Any]:
    """What nobody here may make, change or destroy."""
    tables = (
        *("accounts", "zones", "users", "memberships", "custom_csrs", "custom_certificates", "private_keys"),
        *("certificate_authorities", "ca_certificates", "issued_certificates"),
    )
    columns = ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables)
    row = await world.database.fetchrow(
        f"SELECT {columns}, (SELECT count(*) FROM zones WHERE deleted_at IS NOT NULL) AS deleted_zones, "
        "(SELECT array_agg(name ORDER BY id) FROM accounts) AS names, "
        "(SELECT array_agg(revoked_at ORDER BY id) FROM issued_certificates) AS revoked"
    )
    return dict(row or ())


def test_the_table_has_every_route_that_is_served() -> None:
    """Each operation of the served OpenAPI document has one row, or a reason for needing no permission; and no more."""
    served = sorted(
        f"{method.upper()} {path}"
        for path, operations in document("http://127.0.0.1:8787")["paths"].items()
        for method in operations
        if method not in {"parameters", "servers", "summary", "description"}
    )
    assert served == sorted([*map(str, EVERY_ROUTE), *NO_PERMISSION])


def test_the_table_has_every_permission_group() -> None:
    """The sixteen groups of the contract are those that the code has."""
    assert sorted(ALL) == sorted(group.name for group in GROUPS)
    assert len(ALL) == 16


@pytest.mark.parametrize("route", ROUTES, ids=str)
async def test_each_group_opens_the_routes_of_its_row_at_its_place(ground: Ground, route: Route) -> None:
    """A route answers who holds what its row names on the own account or zone, and refuses all others and elsewhere."""
    own, foreign, bearers = ground.own, ground.foreign, ground.bearers
    of_zones = not {*OF_ZONES}.isdisjoint(route.on_account)
    cells = [
        # On the account itself, groups of zones are for all its zones; groups of accounts mean nothing on a zone.
        Cell("of zones, all on the account itself", own, bearers["account", "of zones"], let_in(of_zones)),
        Cell("of accounts, all on the zone", own, bearers["zone", "of accounts"], REFUSED),
        Cell("all on another zone", own, bearers["other zone", "all"], REFUSED),
        Cell("all on the foreign account alone", own, bearers["foreign", "all"], REFUSED),
        Cell("all on the foreign account, of that one", foreign, bearers["foreign", "all"], route.away),
        Cell("all everywhere", own, bearers["everywhere", "all"], LET_IN),
        Cell("all everywhere, of the foreign account", foreign, bearers["everywhere", "all"], route.away),
    ]
    for holder in HOLDERS:
        headers = bearers["account", holder]
        cells.append(Cell(f"{holder} on the account", own, headers, let_in(enough(route.on_account, holder))))
        cells.append(Cell(f"{holder} on the account, of the foreign one", foreign, headers, route.away))
    for holder in OF_ZONES:
        headers = bearers["zone", holder]
        cells.append(Cell(f"{holder} on the zone", own, headers, let_in(enough(route.on_zone, holder))))
    if not route.of_infisical:
        cells.append(Cell("all everywhere, of nobody", ground.nowhere, bearers["everywhere", "all"], REFUSED))
    assert await ground.wrong(route, cells) == []


@pytest.mark.parametrize("route", ROUTES, ids=str)
async def test_a_user_reaches_what_the_role_allows(ground: Ground, route: Route) -> None:
    """A user who administers the account may everything in it, a reader may read, by global key and by token."""
    reads = let_in(any(name.endswith(" Read") for name in route.on_account))
    administrator = ground.bearers["user", "all"]
    cells = [
        Cell("an administrator's token", ground.own, administrator, LET_IN),
        Cell("an administrator's token, of the foreign account", ground.foreign, administrator, route.away),
        Cell("a reader's token", ground.own, ground.bearers["reader", "all"], reads),
        Cell("a reader's token, of the foreign account", ground.foreign, ground.bearers["reader", "all"], route.away),
    ]
    if not route.of_infisical:
        # The other dialect has no global keys.
        cells += [
            Cell("an administrator's key", ground.own, ground.administrator_key, LET_IN),
            Cell(
                "an administrator's key, of the foreign account", ground.foreign, ground.administrator_key, route.away
            ),
            Cell("a reader's key", ground.own, ground.reader_key, reads),
            Cell("a reader's key, of the foreign account", ground.foreign, ground.reader_key, route.away),
        ]
    assert await ground.wrong(route, cells) == []


@pytest.mark.parametrize("route", USER_ROUTES, ids=str)
async def test_the_tokens_of_a_user_are_for_the_user_alone(ground: Ground, route: Route) -> None:
    """A user's token with the group in each account of the user opens them, and so do global keys; nothing else."""
    own, bearers = ground.own, ground.bearers
    cells = []
    for holder in HOLDERS:
        opens = let_in(enough(route.on_account, holder))
        cells += [
            Cell(f"{holder} of the user everywhere", own, bearers["user", holder], opens),
            Cell(f"{holder} of the user on the account", own, bearers["user here", holder], opens),
            Cell(f"{holder} of the user on one account of two", own, bearers["user half", holder], REFUSED),
            Cell(f"{holder} of the account", own, bearers["account", holder], REFUSED),
        ]
    cells += [
        Cell("all of the account everywhere", own, bearers["everywhere", "all"], REFUSED),
        Cell("the user's key", own, ground.administrator_key, LET_IN),
        Cell("a reader's key", own, ground.reader_key, LET_IN),
    ]
    assert await ground.wrong(route, cells) == []


async def test_an_account_is_made_by_a_user_who_administers_another(ground: Ground) -> None:
    """Only a global key of an administrator, or a token that may change any account of such a user, makes accounts."""
    own, bearers = ground.own, ground.bearers
    cells = []
    for holder in HOLDERS:
        opens = let_in(enough(NEW_ACCOUNT.on_account, holder))
        cells += [
            Cell(f"{holder} of the user everywhere", own, bearers["user", holder], opens),
            Cell(f"{holder} of the user on the account", own, bearers["user here", holder], REFUSED),
            Cell(f"{holder} of the account", own, bearers["account", holder], REFUSED),
        ]
    cells += [
        Cell("all of the account everywhere", own, bearers["everywhere", "all"], REFUSED),
        Cell("all of a reader", own, bearers["reader", "all"], REFUSED),
        Cell("an administrator's key", own, ground.administrator_key, LET_IN),
        Cell("a reader's key", own, ground.reader_key, REFUSED),
    ]
    assert await ground.wrong(NEW_ACCOUNT, cells) == []


@pytest.mark.parametrize("sight", SIGHTS, ids=lambda sight: f"GET {sight.path}")
async def test_a_list_shows_what_may_be_read(ground: Ground, sight: Sight) -> None:
    """A list is answered to anybody, and shows the accounts and zones that the caller may read, and no others."""
    bearers = ground.bearers
    seen: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {}
    for holder in HOLDERS:
        reads = enough(sight.groups, holder)
        seen[f"{holder} on the account"] = bearers["account", holder], sight.on_account if reads else ()
        seen[f"{holder} of the user"] = bearers["user", holder], sight.on_account if reads else ()
    for holder in OF_ZONES:
        seen[f"{holder} on the zone"] = bearers["zone", holder], sight.on_zone if enough(sight.groups, holder) else ()
    of_zones = not {*OF_ZONES}.isdisjoint(sight.groups)
    seen |= {
        "of zones, all on the account itself": (bearers["account", "of zones"], sight.on_account if of_zones else ()),
        "of accounts, all on the zone": (bearers["zone", "of accounts"], ()),
        "all on the foreign account": (bearers["foreign", "all"], ()),
        "all on the other zone": (bearers["other zone", "all"], sight.on_other_zone),
        "all on the other zone and the foreign account": (
            bearers["other zone, foreign account", "all"],
            sight.on_other_zone,
        ),
        "all everywhere": (bearers["everywhere", "all"], sight.on_account),
        "all of a reader": (bearers["reader", "all"], sight.on_account),
        "an administrator's key": (ground.administrator_key, sight.on_account),
        "a reader's key": (ground.reader_key, sight.on_account),
    }
    wrong = []
    for name, (headers, wanted) in seen.items():
        answer = await ground.ask(sight.route, {}, headers)
        body = answer.json()
        names = tuple(sorted(item["name"] for item in body["result"] or ()))
        if answer.status_code != 200 or names != wanted or body["result_info"]["total_count"] != len(wanted):
            wrong.append(f"{name}: {answer.text} instead of {wanted}")
    assert wrong == []


# In the other dialect, whose texts are Infisical's: status, word, and text.
STATES = {
    "expired": (INVALID, (403, "TokenError", "Your token has expired. Please re-authenticate.")),
    "not yet valid": (INVALID, (401, "UnauthorizedError", "You are not allowed to access this resource")),
    "disabled": (INVALID, (401, "UnauthorizedError", "You are not allowed to access this resource")),
    "wrong address": (ELSEWHERE, (403, "PermissionDenied", ELSEWHERE)),
}


@pytest.mark.parametrize("state", STATES)
async def test_a_token_that_may_all_may_nothing_out_of_its_time_or_place(ground: Ground, state: str) -> None:
    """Expired, not yet valid, disabled and from a wrong address: every route says so, with no word on permissions."""
    text, (status, word, message) = STATES[state]
    headers = ground.bearers[state, "all"]
    wrong = []
    for route in EVERY_ROUTE:
        answer = await ground.ask(route, ground.own, headers)
        body = answer.json()
        if route.of_infisical:
            right = (answer.status_code, body["error"], body["message"]) == (status, word, message)
        else:
            errors = [(item["code"], item["message"]) for item in body["errors"]]
            right = (answer.status_code, errors) == (403, [(9109, text)])
        if not right:
            wrong.append(f"{route}: {answer.text}")
    assert wrong == []


# Allowed, denied, and what then may still be read and written, on the zone and on the other zone of the account.
DENIED = [
    (("account", SSL_WRITE), ("zone", ZONE_SSL_READ), (REFUSED, REFUSED), (LET_IN, LET_IN)),
    (("account", SSL_WRITE), ("zone", ZONE_SSL_WRITE), (LET_IN, REFUSED), (LET_IN, LET_IN)),
    (("account", SSL_WRITE), ("account", SSL_READ), (REFUSED, REFUSED), (REFUSED, REFUSED)),
    (("account", SSL_WRITE), ("account", SSL_WRITE), (LET_IN, REFUSED), (LET_IN, REFUSED)),
    (("account", SSL_WRITE), ("account", ZONE_SSL_READ), (REFUSED, REFUSED), (REFUSED, REFUSED)),
    (("account", SSL_WRITE), ("zone", ZONE_READ), (LET_IN, LET_IN), (LET_IN, LET_IN)),
    (("account", SSL_READ), ("zone", ZONE_SSL_WRITE), (LET_IN, REFUSED), (LET_IN, REFUSED)),
    (("zone", ZONE_SSL_WRITE), ("account", SSL_READ), (REFUSED, REFUSED), (REFUSED, REFUSED)),
    (("zone", ZONE_SSL_WRITE), ("account", SSL_WRITE), (LET_IN, REFUSED), (REFUSED, REFUSED)),
    (("zone", ZONE_SSL_WRITE), ("zone", ZONE_SSL_READ), (REFUSED, REFUSED), (REFUSED, REFUSED)),
    (("zone", ZONE_SSL_WRITE), ("zone", ZONE_SSL_WRITE), (LET_IN, REFUSED), (REFUSED, REFUSED)),
    # A group of the account means nothing on a zone.
    (("zone", ZONE_SSL_WRITE), ("zone", SSL_READ), (LET_IN, LET_IN), (REFUSED, REFUSED)),
]


async def test_a_deny_beats_an_allow_in_either_order(ground: Ground) -> None:
    """Whichever policy stands first, what is denied on a zone or account stays shut there, and there alone."""
    world = ground.world
    on: dict[str, list[Json]] = {"account": on_account(world.a.account), "zone": on_zone(world.a.zone)}
    places = (ground.own, {**ground.own, "zone_id": ground.other_zone.id.hex})
    calls = [
        next(each for each in ROUTES if str(each) == f"{m} /zones/{{zone_id}}/custom_csrs") for m in ("GET", "POST")
    ]
    wrong = []
    for (allowed_on, allowed), (denied_on, denied), *wanted in DENIED:
        allow, deny = policy([allowed], on[allowed_on]), policy([denied], on[denied_on], "deny")
        for written in ([*allow, *deny], [*deny, *allow], deny):
            headers = await bearer(world, written)
            for place, verdicts in zip(places, wanted, strict=True):
                for call, verdict in zip(calls, verdicts, strict=True):
                    name = f"{written} on {place['zone_id']}"
                    cell = Cell(name, place, headers, REFUSED if written is deny else verdict)
                    wrong += await ground.wrong(call, [cell])
    assert wrong == []


_OWN, _THEIRS, _OWN_ZONE, _SIBLING, _THEIR_ZONE = (UUID(int=i) for i in range(1, 6))
PLACES = {
    "own account": Scope(_OWN),
    "own zone": Scope(_OWN, _OWN_ZONE),
    "other own zone": Scope(_OWN, _SIBLING),
    "their account": Scope(_THEIRS),
    "their zone": Scope(_THEIRS, _THEIR_ZONE),
}
_ALL_ZONES = {"com.cloudflare.api.account.zone.*": "*"}
# What a resource means: the places where a group of accounts counts on it, and those where a group of zones does.
RESOURCES: list[tuple[Json, set[str], set[str]]] = [
    ({f"com.cloudflare.api.account.{_OWN.hex}": "*"}, {"own account", "own zone", "other own zone"}, set()),
    ({f"com.cloudflare.api.account.{_THEIRS.hex}": "*"}, {"their account", "their zone"}, set()),
    ({"com.cloudflare.api.account.*": "*"}, set(PLACES), set()),
    ({f"com.cloudflare.api.account.zone.{_OWN_ZONE.hex}": "*"}, set(), {"own zone"}),
    ({f"com.cloudflare.api.account.zone.{_SIBLING.hex}": "*"}, set(), {"other own zone"}),
    ({f"com.cloudflare.api.account.zone.{_THEIR_ZONE.hex}": "*"}, set(), {"their zone"}),
    (_ALL_ZONES, set(), {"own zone", "other own zone", "their zone"}),
    ({f"com.cloudflare.api.account.{_OWN.hex}": _ALL_ZONES}, set(), {"own zone", "other own zone"}),
    ({f"com.cloudflare.api.account.{_THEIRS.hex}": _ALL_ZONES}, set(), {"their zone"}),
]
# What a group means: whether it is one of zones, and the right that it gives; each but Read includes Read.
MEANINGS = {
    ZONE_SSL_READ: (True, Area.SSL, Access.READ),
    ZONE_SSL_WRITE: (True, Area.SSL, Access.WRITE),
    ZONE_READ: (True, Area.ZONE, Access.READ),
    ZONE_WRITE: (True, Area.ZONE, Access.WRITE),
    SSL_READ: (False, Area.SSL, Access.READ),
    SSL_WRITE: (False, Area.SSL, Access.WRITE),
    SETTINGS_READ: (False, Area.SETTINGS, Access.READ),
    SETTINGS_WRITE: (False, Area.SETTINGS, Access.WRITE),
    TOKENS_READ: (False, Area.ACCOUNT_TOKENS, Access.READ),
    TOKENS_WRITE: (False, Area.ACCOUNT_TOKENS, Access.WRITE),
    USER_TOKENS_READ: (False, Area.USER_TOKENS, Access.READ),
    USER_TOKENS_WRITE: (False, Area.USER_TOKENS, Access.WRITE),
    CA_READ: (False, Area.PRIVATE_CA, Access.READ),
    CA_WRITE: (False, Area.PRIVATE_CA, Access.WRITE),
    CA_SIGN: (False, Area.PRIVATE_CA, Access.SIGN),
    CA_ISSUE_KEY: (False, Area.PRIVATE_CA, Access.ISSUE_KEY),
}


class Said(NamedTuple):
    """A policy: allow or deny, groups by name, and resources as numbers of the table above."""

    effect: str
    groups: tuple[str, ...]
    resources: tuple[int, ...]

    def speaks(self, area: Area, access: Access, place: str) -> bool:
        """Whether it is about this: an allow of more is one of reading too, and a deny of reading one of all.

        An allow on accounts alone is, for groups of zones, about all zones of these.
        """
        accounts_alone = self.effect == "allow" and not any(RESOURCES[number][2] for number in self.resources)
        for name, number in itertools.product(self.groups, self.resources):
            of_zones, group_area, right = MEANINGS[name]
            _, by_account, by_zone = RESOURCES[number]
            if accounts_alone:
                by_zone = {each for each in by_account if each.endswith("zone")}
            included = (access if self.effect == "allow" else right) is Access.READ
            if group_area is area and (right is access or included) and place in (by_zone if of_zones else by_account):
                return True
        return False


_SAID = st.builds(
    Said,
    st.sampled_from(["allow", "allow", "deny"]),
    # Few groups, so that policies meet.
    st.lists(st.sampled_from([ZONE_SSL_READ, ZONE_SSL_WRITE, SSL_READ, SSL_WRITE, *ALL]), min_size=1, max_size=3).map(
        tuple
    ),
    st.lists(
        st.integers(0, len(RESOURCES) - 1), min_size=1, max_size=3, unique_by=lambda n: next(iter(RESOURCES[n][0]))
    ).map(tuple),
)


@given(st.lists(_SAID, max_size=5), st.data(), st.sampled_from(Role))
def test_deny_beats_allow_whatever_the_order(said: list[Said], data: st.DataObject, role: Role) -> None:
    """In any order: a deny that speaks of it wins, no allow means no, foreign is never, and a reader only reads."""

    def may(each: list[Said]) -> Callable[[Area, Access, str], bool]:
        written: list[Json] = []
        for one in each:
            resources: Json = {}
            for number in one.resources:
                resources |= RESOURCES[number][0]
            written += policy(one.groups, [resources], one.effect)
        caller = Caller(Actor.TOKEN, UUID(int=9), {_OWN: role}, policies.read(json.dumps(written)))
        return lambda area, access, place: caller.may(area, access, PLACES[place])

    before, after = may(said), may(data.draw(st.permutations(said)))
    for question in itertools.product(Area, Access, PLACES):
        _, access, place = question
        spoken = {each.effect for each in said if each.speaks(*question)}
        reached = not place.startswith("their") and (role is Role.ADMINISTRATOR or access is Access.READ)
        assert before(*question) == after(*question) == (reached and spoken == {"allow"}), question


def test_a_token_of_the_operator_has_neither_keys_nor_tokens_of_users_unless_asked() -> None:
    """What `keystead token create` gives where no group is named."""
    left_out = {group.name for group in GROUPS} - {group.name for group in policies.default_groups()}
    assert left_out == {"API Tokens Read", "API Tokens Write", "Private CA Issue Key"}
