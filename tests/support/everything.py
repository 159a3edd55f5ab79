"""A world in which every table has rows."""

from ipaddress import ip_network
from uuid import uuid4

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import Authority, csr_of, pem, root
from support.world import BODY, World

from keystead.certificates import store as certificates
from keystead.identity import delivery_tokens
from keystead.identity.delivery_tokens import NewToken, Reach
from keystead.server import first_start
from keystead.x509 import chains


async def _use_everything(world: World) -> tuple[httpx.Response, dict[str, list[str]], dict[str, str]]:
    a, ca = world.a, root()
    world.trust(chains.anchors([pem(ca.certificate).encode()]))
    of_account, of_zone = await world.create(), await world.create(path=a.zone_path)
    headers = {**a.bearer, "Idempotency-Key": "once"}
    repeat = await world.http.post(a.account_path, json=BODY, headers=headers)
    certificates = a.zone_path.replace("custom_csrs", "custom_certificates")
    body = {"custom_csr_id": of_zone["id"], "certificate": pem(ca.of_csr(of_zone["csr"]))}
    uploaded = (await world.http.post(certificates, json=body, headers=a.bearer)).json()["result"]["id"]
    renewed = {**body, "certificate": pem(ca.of_csr(of_zone["csr"]))}
    await world.http.patch(f"{certificates}/{uploaded}", json=renewed, headers=a.bearer)
    await _use_a_rule(world, ca)
    await _use_a_delivery_token(world, uploaded)
    new = {"projectSlug": a.account.slug, "type": "root", "commonName": "Root", "keyAlgorithm": "EC_prime256v1"}
    made = await world.http.post("/api/v1/pki/ca", json=new, headers=a.bearer)
    authority = f"/api/v1/pki/ca/{made.json()['ca']['id']}"
    leaf = {"csr": csr_of(ec.generate_private_key(ec.SECP256R1()), "a.example.com"), "ttl": "1d"}
    await world.http.post(f"{authority}/sign-certificate", json=leaf, headers=a.bearer)
    await _use_profiles(world, made.json()["ca"]["id"])
    doomed = await world.http.post("/api/v1/pki/ca", json={**new, "commonName": "Doomed"}, headers=a.bearer)
    await world.http.delete(f"/api/v1/pki/ca/{doomed.json()['ca']['id']}?force=true", headers=a.bearer)
    await world.http.get(a.account_path, headers={"Authorization": f"Bearer {40 * 'a'}"})
    await world.state.failures.flush(world.database)
    key = {"X-Auth-Email": a.email, "X-Auth-Key": a.key}
    short_lived = (await world.http.post("/client/v4/accounts", json={"name": "x"}, headers=key)).json()["result"]["id"]
    await world.http.delete(f"/client/v4/accounts/{short_lived}", headers=key)
    token_id = await world.database.fetchrow(
        "SELECT id FROM tokens WHERE account_id = $1 ORDER BY issued_on", a.account.id
    )
    assert token_id
    login = {"clientId": str(token_id["id"]), "clientSecret": a.token}
    access = (await world.http.post("/api/v1/auth/universal-auth/login", json=login)).json()["accessToken"]
    paths = {
        "custom_csrs": [f"{a.account_path}/{of_account['id']}", f"{a.zone_path}/{of_zone['id']}", a.account_path],
        "custom_certificates": [f"{certificates}/{uploaded}", certificates],
        "certificate_authorities": [authority, f"{authority}/certificate"],
    }
    return repeat, paths, {"Authorization": f"Bearer {access}"}


async def _use_a_delivery_token(world: World, certificate_id: str) -> None:
    """A token of a TLS server, and a key that has left for it."""
    found = await certificates.find(world.database, certificate_id)
    new = NewToken(Reach(found.account_id, found.zone_id), "edge", (ip_network("192.0.2.0/24"),))
    token, _ = await delivery_tokens.create(world.services, first_start.operator(), new)
    await world.database.execute(
        "INSERT INTO key_deliveries (account_id, key_id, token_id, certificate_id) VALUES ($1, $2, $3, $4)",
        *(found.account_id, found.key_id, token.id, found.id),
    )


async def _use_a_rule(world: World, ca: Authority) -> None:
    """A certificate of the other tenant with a renewal rule, which no schema before had."""
    b = world.b
    csr = await world.create(b, b.zone_path)
    body = {"custom_csr_id": csr["id"], "certificate": pem(ca.of_csr(csr["csr"]))}
    path = b.zone_path.replace("custom_csrs", "custom_certificates")
    uploaded = (await world.http.post(path, json=body, headers=b.bearer)).json()["result"]["id"]
    rule = {"renew_with": "outside"}
    await world.http.put(f"{path}/{uploaded}/keystead_renewal", json=rule, headers=b.bearer)


async def _use_profiles(world: World, ca_id: str) -> None:
    """A policy, a profile of it, and an application that uses it."""

    async def made(noun: str, **body: object) -> str:
        answer = await world.http.post(f"/api/v1/cert-manager/{noun}", json=body, headers=world.a.bearer)
        (found,) = answer.json().values()
        return str(found["id"])

    name = f"web-{uuid4().hex[:8]}"
    policy_id = await made("certificate-policies", name=name)
    profile_id = await made("certificate-profiles", slug=name, caId=ca_id, certificatePolicyId=policy_id)
    await made("applications", name=name, profileIds=[profile_id])
