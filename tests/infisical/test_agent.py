"""Infisical's `cert-manager agent` (CLI 0.43.121) and its issuer for cert-manager (infisical-issuer 0.1.3).

Each call is sent as the client's source sends it, and its answer is read as the client reads it: by the fields that the
client has, with their types.
"""

from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.authority import Key
from support.pki import by_openssl, common_name, names, request, signed
from support.world import World, make_token

from keystead.caller import GROUPS, Area
from keystead.identity import tokens

V1 = "/api/v1"
HOST = "www.example.com"
KEY = ec.generate_private_key(ec.SECP256R1())


class LoginAnswer(msgspec.Struct, rename="camel"):
    access_token: str
    expires_in: int
    token_type: str
    access_token_max_ttl: int = msgspec.field(name="accessTokenMaxTTL")


class Named(msgspec.Struct):
    id: str
    name: str


class ApplicationAnswer(msgspec.Struct):
    application: Named


class Link(msgspec.Struct, rename="camel"):
    application_id: str
    profile_id: str
    profile_slug: str


class Links(msgspec.Struct):
    profiles: list[Link]


class Project(msgspec.Struct):
    id: str
    name: str
    slug: str


class ProfileOfSlug(msgspec.Struct, rename="camel"):
    id: str
    slug: str
    project_id: str


class ProfileAnswer(msgspec.Struct, rename="camel"):
    certificate_profile: ProfileOfSlug


class Data(msgspec.Struct, rename="camel"):
    certificate: str
    issuing_ca_certificate: str
    certificate_chain: str
    serial_number: str
    certificate_id: str
    private_key: str = ""


class Issued(msgspec.Struct, rename="camel"):
    certificate: Data
    certificate_request_id: str


class Renewed(Data, rename="camel", kw_only=True):
    certificate_request_id: str = ""


class Retrieved(msgspec.Struct, rename="camel"):
    id: str
    created_at: datetime
    updated_at: datetime
    status: str
    serial_number: str
    common_name: str
    not_before: datetime
    not_after: datetime
    ca_id: str
    key_usages: list[str]
    extended_key_usages: list[str]


class RetrieveAnswer(msgspec.Struct):
    certificate: Retrieved


class Bundle(msgspec.Struct, rename="camel"):
    certificate: str
    certificate_chain: str
    serial_number: str
    private_key: str | None = None


class Requested(msgspec.Struct, rename="camel"):
    status: str
    created_at: datetime
    updated_at: datetime
    certificate: str | None = None
    certificate_chain: str | None = None
    private_key: str | None = None
    serial_number: str | None = None
    certificate_id: str | None = None
    error_message: str | None = None


class SignAnswer(msgspec.Struct, rename="camel"):
    certificate: str
    certificate_chain: str
    issuing_ca_certificate: str
    serial_number: str


class Site(msgspec.Struct):
    """What the operator has set up: a profile of an intermediate, in an application; and a machine's credentials."""

    world: World
    client: dict[str, str]
    ca_id: str
    slug: str
    application: str

    async def get(self, path: str, access: str, kind: type[Any]) -> Any:
        return self._read(await self.world.http.get(V1 + path, headers=bearer(access)), kind)

    async def post(self, path: str, body: Any, kind: type[Any], access: str = "") -> Any:
        answer = await self.world.http.post(V1 + path, json=body, headers=bearer(access) if access else {})
        if path.endswith(("/certificates", "/renew")) and access:
            # The answers whose work it is to hand out a key; in all others the world looks for one.
            self.world.seen.pop()
        return self._read(answer, kind)

    def _read(self, answer: httpx.Response, kind: type[Any]) -> Any:
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=kind)


def bearer(access: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {access}", "User-Agent": "cli"}


@pytest.fixture(scope="module")
async def site(shared_world: World) -> Site:
    world = shared_world
    groups = tuple(group.name for group in GROUPS if group.area is Area.PRIVATE_CA)
    value = await make_token(world.services, world.a.account, groups=groups)
    token = (await tokens.list_(world.database))[-1]

    async def made(path: str, body: Any) -> Any:
        answer = await world.http.post(V1 + path, json=body, headers={"Authorization": f"Bearer {value}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    cas = []
    for kind in ("root", "intermediate"):
        configuration = {"type": kind, "commonName": f"The {kind}", "keyAlgorithm": "EC_prime256v1"}
        body = {"name": kind, "status": "active", "configuration": configuration}
        cas.append((await made("/cert-manager/ca/internal", body))["id"])
    root, ca_id = cas
    await made(f"/cert-manager/ca/internal/{ca_id}/certificate", {"notAfter": "2034", "parentCaId": root})
    policy = await made("/cert-manager/certificate-policies", {"name": "web", "validity": {"max": "30d"}})
    ids = {"caId": ca_id, "certificatePolicyId": policy["certificatePolicy"]["id"]}
    profile = (await made("/cert-manager/certificate-profiles", {"slug": "web", **ids}))["certificateProfile"]
    await made("/cert-manager/applications", {"name": "shop", "profileIds": [profile["id"]]})
    return Site(world, {"clientId": str(token.id), "clientSecret": value}, ca_id, "web", "shop")


def csr_of(key: Key) -> str:
    return request(key, common_name(HOST), names(x509.DNSName(HOST)))


def assert_pair(certificate: str, private_key: str) -> None:
    """The key belongs to the certificate: a web server that is given both starts."""
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    key = load_pem_private_key(private_key.encode(), None)
    assert leaf.public_key() == key.public_key()


async def test_the_agent_finds_issues_watches_and_renews_by_an_application(site: Site) -> None:
    """Config version 2: names are resolved, a key is made here, and the renewal brings a new pair, without polling."""
    # It sends the login with a slash at the end.
    login = await site.post("/auth/universal-auth/login/", site.client, LoginAnswer)
    access = login.access_token
    application = (
        await site.get(f"/cert-manager/applications/by-name/{site.application}", access, ApplicationAnswer)
    ).application
    links = await site.get(f"/cert-manager/applications/{application.id}/profiles", access, Links)
    (profile_id,) = [link.profile_id for link in links.profiles if link.profile_slug == site.slug]
    attributes = {
        "ttl": "7d",
        "signatureAlgorithm": "ECDSA-SHA256",
        "keyAlgorithm": "EC_prime256v1",
        "commonName": HOST,
        "keyUsages": ["digital_signature"],
        "extendedKeyUsages": ["server_auth"],
        "altNames": [{"type": "dns_name", "value": HOST}],
        "removeRootsFromChain": True,
    }
    body = {"profileId": profile_id, "applicationId": application.id, "attributes": attributes}
    issued = await site.post("/cert-manager/certificates", body, Issued, access)
    first = issued.certificate
    assert_pair(first.certificate, first.private_key)
    chain = x509.load_pem_x509_certificates(first.certificate_chain.encode())
    assert [each.subject.rfc4514_string() for each in chain] == ["CN=The intermediate"]
    path = f"/cert-manager/certificates/{first.certificate_id}"
    watched = (await site.get(path, access, RetrieveAnswer)).certificate
    assert (watched.id, watched.status, watched.common_name) == (first.certificate_id, "active", HOST)
    # `removeRootsFromChain` of the old API is a member of the body here.
    renewed = await site.post(f"{path}/renew", {"removeRootsFromChain": True}, Renewed, access)
    assert renewed.certificate_request_id == ""
    assert renewed.certificate_id != first.certificate_id
    assert_pair(renewed.certificate, renewed.private_key)
    assert renewed.private_key != first.private_key
    assert len(x509.load_pem_x509_certificates(renewed.certificate_chain.encode())) == 1
    refreshed = await site.post("/auth/token/renew", {"accessToken": access}, LoginAnswer)
    assert refreshed.access_token == access
    assert refreshed.expires_in > 7100
    await site.get(path, refreshed.access_token, RetrieveAnswer)


async def test_the_agent_finds_a_profile_by_project_and_slug_and_signs_its_csr(site: Site) -> None:
    """Config version 1: with a CSR of its own no key comes back, and the renewal is for the same key."""
    access = (await site.post("/auth/universal-auth/login/", site.client, LoginAnswer)).access_token
    project = await site.get(f"/projects/slug/{site.world.a.account.slug}", access, Project)
    path = f"/cert-manager/certificate-profiles/slug/{site.slug}?projectId={project.id}"
    profile = (await site.get(path, access, ProfileAnswer)).certificate_profile
    assert profile.project_id == project.id
    attributes = {"ttl": "7d", "removeRootsFromChain": False}
    body = {"profileId": profile.id, "csr": csr_of(KEY), "attributes": attributes}
    issued = await site.post("/cert-manager/certificates", body, Issued, access)
    assert issued.certificate.private_key == ""
    answer = {"certificate": issued.certificate.certificate, "certificateChain": issued.certificate.certificate_chain}
    verdict, text = by_openssl(signed({**answer, "serialNumber": issued.certificate.serial_number}))
    assert verdict, text
    path = f"/cert-manager/certificates/{issued.certificate.certificate_id}"
    renewed = await site.post(f"{path}/renew", {}, Renewed, access)
    leaf = x509.load_pem_x509_certificate(renewed.certificate.encode())
    assert leaf.public_key() == KEY.public_key()
    assert renewed.private_key == ""
    polled = await site.get(
        f"/cert-manager/certificates/certificate-requests/{issued.certificate_request_id}", access, Requested
    )
    assert (polled.status, polled.certificate) == ("issued", issued.certificate.certificate)


async def test_the_agent_fetches_a_certificate_by_its_id_until_it_is_revoked(site: Site) -> None:
    """Status and bundle, without a key; a revoked one is told, and the agent leaves it alone."""
    access = (await site.post("/auth/universal-auth/login/", site.client, LoginAnswer)).access_token
    leaf = {"caId": site.ca_id, "csr": csr_of(KEY), "ttl": "1d"}
    made = await site.post("/pki/certificates/sign-certificate", leaf, SignAnswer, access)
    query = f"/cert-manager/certificates?serialNumber={made.serial_number}"
    ((found),) = (await site.get(query, access, dict[str, Any]))["certificates"]
    path = f"/cert-manager/certificates/{found['id']}"
    assert (await site.get(path, access, RetrieveAnswer)).certificate.status == "active"
    bundle = await site.get(f"{path}/bundle", access, Bundle)
    assert (bundle.certificate, bundle.private_key) == (made.certificate, None)
    await site.post(
        f"/pki/certificates/{made.serial_number}/revoke", {"revocationReason": "SUPERSEDED"}, dict[str, Any], access
    )
    assert (await site.get(path, access, RetrieveAnswer)).certificate.status == "revoked"


async def test_what_the_agent_cannot_find_is_404(site: Site) -> None:
    """An application, a profile, a project or a certificate that is not there."""
    access = (await site.post("/auth/universal-auth/login/", site.client, LoginAnswer)).access_token
    for path in (
        "/cert-manager/applications/by-name/nobody",
        "/cert-manager/applications/by-name/a%20b%00",
        f"/cert-manager/applications/{uuid4()}/profiles",
        "/cert-manager/certificate-profiles/slug/nobody",
        "/projects/slug/nobody",
        f"/cert-manager/certificates/{uuid4()}",
        "/cert-manager/certificates/x/bundle",
        f"/cert-manager/certificates/certificate-requests/{uuid4()}",
    ):
        answer = await site.world.http.get(V1 + path, headers=bearer(access))
        assert answer.status_code == 404, (path, answer.text)


async def test_the_issuer_of_cert_manager_signs_with_a_form_login(site: Site) -> None:
    """Health, a login as a form, and signing by the CA in the body; the last of the chain is the root."""
    assert (await site.world.http.get("/api/status", headers={"Content-Type": "application/json"})).status_code == 200
    answer = await site.world.http.post(f"{V1}/auth/universal-auth/login", data=site.client)
    access = msgspec.json.decode(answer.content, type=LoginAnswer).access_token
    body = {"caId": site.ca_id, "csr": csr_of(KEY), "ttl": "7776000s"}
    made = await site.post("/pki/certificates/sign-certificate", body, SignAnswer, access)
    *between, root = x509.load_pem_x509_certificates(made.certificate_chain.encode())
    assert [each.subject.rfc4514_string() for each in (*between, root)] == ["CN=The intermediate", "CN=The root"]
    assert root.issuer == root.subject
