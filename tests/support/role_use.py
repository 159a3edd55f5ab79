"""Everything that the API does, asked of a server under a role that may only serve."""

import json
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from support.api_role import Client, Json, Served
from support.authority import csr_of, key_pem, pem, subject
from support.delivery import Site
from support.live import Live
from support.rotation import Place, key_pepper, known_everywhere, new_pepper, pepper_of, with_key, with_token
from support.waiting import until
from support.world import BODY

from keystead.caller import GROUPS
from keystead.config import Settings
from keystead.identity import accounts
from keystead.server import first_start


def install(place: Place) -> None:
    """What the owner does before the first start under the role, but for its permissions."""
    place.run("keys", "init")
    place.run("migrate")
    account = one(place.run("account", "create", "default", "--json").out)
    zone = one(place.run("zone", "create", "example.com", "--json").out)
    user = one(place.run("user", "create", "admin@example.com", "--role", "administrator", "--json").out)
    token = one(place.run("token", "create", "first", "--json").out)
    # With quotas, as they take locks.
    place.run("account", "set", "default", "--csr-quota", "500", "--ca-quota", "500")
    place.run("zone", "set", "example.com", "--csr-quota", "500", "--certificate-quota", "500")
    home = place.with_database(lambda database: accounts.find_account(database, account["id"]))
    fields = (token["token"], home, UUID(zone["id"]), user["email"], user["global_key"])
    text = first_start.Credentials(Settings().public_url, *fields).text()
    (place.data_dir / "credentials.env").write_text(text)


def one(text: str) -> Json:
    (row,) = json.loads(text)
    found: Json = row
    return found


def use_everything(served: Served, client: Client) -> None:
    """Each once; then with a new pepper, and with a key that is damaged."""
    cloudflare(client, served.live)
    infisical(client, served.live)
    tenants(served, client)
    issue_a_key(served, client)
    token = deliver_a_key(served)
    digest_anew(served)
    moves_too(served, *token)
    a_damaged_key_is_audited(served, client)


def cloudflare(client: Client, live: Live) -> None:
    """Every call of Cloudflare's dialect, and what they do on their way."""
    pair = {"X-Auth-Email": live.older["CLOUDFLARE_EMAIL"], "X-Auth-Key": live.older["CLOUDFLARE_API_KEY"]}
    for verify in ("/client/v4/user/tokens/verify", f"{client.account}/tokens/verify"):
        assert client.ask("GET", verify)["status"] == "active"
    for place in (client.account, client.zone):
        path = f"{place}/custom_csrs"
        rsa = client.ask("POST", path, {**BODY, "key_type": "rsa2048"}, 201)
        once = uuid4().hex
        made = [client.ask("POST", path, BODY, 201, once)["id"] for _ in range(2)]
        assert made[0] == made[1]
        client.ask("POST", path, {**BODY, "name": "another"}, 409, once)
        assert client.ask("GET", f"{path}/{rsa['id']}")["csr"] == rsa["csr"]
        client.ask("GET", f"{path}?name=x&order=name")
        assert httpx.get(live.url + path, headers=pair).status_code == 200
        for id_ in (rsa["id"], made[0]):
            client.ask("DELETE", f"{path}/{id_}")
        client.ask("GET", f"{path}/{rsa['id']}", status=404)
    certificates(client, live)


def certificates(client: Client, live: Live) -> None:
    path = f"{client.zone}/custom_certificates"
    issuer = live.ca.intermediate()
    csrs = [client.ask("POST", f"{client.zone}/custom_csrs", BODY, 201) for _ in range(2)]
    chains = [pem(issuer.of_csr(csr["csr"]), issuer.certificate) for csr in csrs]
    made = client.ask("POST", path, {"certificate": chains[0], "custom_csr_id": csrs[0]["id"]})
    one_ = f"{path}/{made['id']}"
    client.ask("POST", path, {"certificate": chains[1], "custom_csr_id": csrs[0]["id"]}, 400)
    client.ask("DELETE", f"{client.zone}/custom_csrs/{csrs[0]['id']}", status=409)
    client.ask("PATCH", one_, {"certificate": pem(issuer.of_csr(csrs[0]["csr"]), issuer.certificate)})
    client.ask("PATCH", one_, {"certificate": chains[1], "custom_csr_id": csrs[1]["id"]})
    client.ask("PATCH", one_, {"policy": "x", "geo_restrictions": {"label": "eu"}, "deploy": "staging"})
    uploads = []
    for _ in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = issuer.sign(key.public_key(), subject("u.example.com"), hosts=["u.example.com"])
        uploads.append({"certificate": pem(leaf, issuer.certificate), "private_key": key_pem(key)})
    own = client.ask("POST", path, uploads[0])
    client.ask("PATCH", f"{path}/{own['id']}", uploads[1])
    client.ask("PUT", f"{path}/prioritize", {"certificates": [{"id": made["id"], "priority": 2}]})
    client.ask("GET", one_)
    client.ask("GET", f"{path}?status=active")
    for id_ in (made["id"], own["id"]):
        client.ask("DELETE", f"{path}/{id_}")
    renewals(client, live)


def renewals(client: Client, live: Live) -> None:
    """A certificate that is renewed by the server itself."""
    path = f"{client.zone}/custom_certificates"
    new = {"projectSlug": client.slug, "type": "root", "commonName": "Renewing", "keyAlgorithm": "EC_prime256v1"}
    ca = client.ask("POST", "/api/v1/pki/ca", new)["ca"]
    csr = client.ask("POST", f"{client.zone}/custom_csrs", BODY, 201)
    signed = pem(live.ca.of_csr(csr["csr"], days=10, since=80))
    made = client.ask("POST", path, {"certificate": signed, "custom_csr_id": csr["id"]})
    one_ = f"{path}/{made['id']}"
    client.ask("PUT", f"{one_}/keystead_renewal", {"renew_with": ca["id"]})
    until(lambda: "renewed_on" in client.ask("GET", one_)["keystead_renewal"], 120)
    until(lambda: client.ask("GET", one_)["keystead_renewal"]["state"] == "scheduled")
    client.ask("GET", path)
    client.ask("DELETE", f"{one_}/keystead_renewal")
    client.ask("DELETE", one_)


def infisical(client: Client, live: Live) -> None:
    """Every call of Infisical's dialect, under an access token."""
    token = live.env["CLOUDFLARE_API_TOKEN"]
    login = {"clientId": client.ask("GET", "/client/v4/user/tokens/verify")["id"], "clientSecret": token}
    access = client.ask("POST", "/api/v1/auth/universal-auth/login", login)["accessToken"]
    client.ask("POST", "/api/v1/auth/token/renew", {"accessToken": access})
    client = Client(live, access)
    new = {"projectSlug": client.slug, "keyAlgorithm": "EC_prime256v1"}
    ca = "/api/v1/pki/ca"
    client.ask("GET", "/api/status")
    root = client.ask("POST", ca, {**new, "type": "root", "commonName": "Role Root"})["ca"]
    under = client.ask("POST", ca, {**new, "type": "intermediate", "commonName": "Role CA"})["ca"]
    at_root, at_under = (f"{ca}/{each['id']}" for each in (root, under))
    asked = {"csr": client.ask("GET", f"{at_under}/csr")["csr"], "notAfter": "2035-01-01"}
    signed = client.ask("POST", f"{at_root}/sign-intermediate", asked)
    chain = {"certificate": signed["certificate"], "certificateChain": signed["certificateChain"]}
    client.ask("POST", f"{at_under}/import-certificate", chain)
    client.ask("GET", f"/api/v1/cert-manager/ca/internal?projectId={root['projectId']}")
    for each in (at_root, at_under):
        for word in ("", "/certificate", "/ca-certificates", "/crl", "/crls"):
            client.ask("GET", each + word)
        client.ask("GET", each.replace("/ca/", "/crl/") + "/der")
        latest = client.ask("GET", each)["ca"]["activeCaCertId"]
        client.ask("GET", f"{each}/certificates/{latest}/der")
    client.ask("POST", f"{at_root}/renew", {"type": "existing", "notAfter": "2045-01-01"})
    client.ask("POST", f"{at_under}/renew", {"type": "existing", "notAfter": "2036-01-01"})
    for status in ("disabled", "active"):
        client.ask("PATCH", at_under, {"status": status, "requireTemplateForIssuance": False})
    leaf = {"csr": csr_of(ec.generate_private_key(ec.SECP256R1()), "leaf.example.com"), "ttl": "30d"}
    client.ask("POST", f"{at_under}/sign-certificate", leaf)
    serial = client.ask("POST", "/api/v1/pki/certificates/sign-certificate", {**leaf, "caId": under["id"]})
    # A key that is handed out takes a permission that tokens have only when they are made for it.
    client.ask("POST", f"{at_under}/issue-certificate", {"commonName": "i.example.com", "ttl": "1d"}, 403)
    one_ = f"/api/v1/pki/certificates/{serial['serialNumber']}"
    client.ask("GET", one_)
    client.ask("GET", f"{one_}/certificate")
    client.ask("POST", f"{one_}/revoke", {"revocationReason": "SUPERSEDED"})
    client.ask("GET", f"{at_under}/crl")
    profiles(client, under["id"], leaf)
    lone = client.ask("POST", ca, {**new, "type": "root", "commonName": "Lone Root"})["ca"]
    client.ask("DELETE", f"{ca}/{lone['id']}")
    doomed = client.ask("POST", ca, {**new, "type": "root", "commonName": "Doomed Root"})["ca"]
    client.ask("DELETE", f"{ca}/{doomed['id']}?force=true")
    client.ask("GET", f"/api/v1/pki/crl/{doomed['id']}/der")
    client.ask("POST", "/api/v1/auth/token/revoke", {"accessToken": access})
    client.http.close()


def profiles(client: Client, ca_id: str, leaf: Json) -> None:
    """Policies, profiles and applications: made, changed, used and deleted."""
    api = "/api/v1/cert-manager"
    policies, profiles, applications = (
        f"{api}/{noun}" for noun in ("certificate-policies", "certificate-profiles", "applications")
    )
    client.ask("PATCH", f"{api}/ca/internal/{ca_id}", {"name": "role-ca", "notAfterPolicy": "truncate"})
    policy = client.ask("POST", policies, {"name": "role"})["certificatePolicy"]["id"]
    client.ask("PATCH", f"{policies}/{policy}", {"name": "role-2", "description": "x", "validity": {"max": "90d"}})
    body = {"slug": "role", "caId": ca_id, "certificatePolicyId": policy}
    profile = client.ask("POST", profiles, body)["certificateProfile"]["id"]
    change = {"slug": "role-2", "certificatePolicyId": policy, "description": "x", "defaults": {"ttlDays": 7}}
    client.ask("PATCH", f"{profiles}/{profile}", change)
    application = client.ask("POST", applications, {"name": "role"})["application"]["id"]
    one_ = f"{applications}/{application}"
    client.ask("PATCH", one_, {"name": "role-2", "description": "x"})
    client.ask("POST", f"{one_}/profiles", {"profileIds": [profile]})
    client.ask("PUT", f"{one_}/profiles/{profile}/enrollment/api", {"autoRenew": True, "renewBeforeDays": 3})
    wanted = {"profileId": profile, "applicationId": application, "csr": leaf["csr"]}
    issued = client.ask("POST", f"{api}/certificates", wanted)["certificate"]["certificateId"]
    client.ask("GET", f"{api}/certificates/{issued}")
    client.ask("GET", f"{api}/certificates?status=active")
    client.ask("POST", f"{api}/certificates/{issued}/renew", {})
    client.ask("DELETE", f"{one_}/profiles/{profile}")
    for path in (one_, f"{profiles}/{profile}", f"{policies}/{policy}"):
        client.ask("DELETE", path)


def tenants(served: Served, client: Client) -> None:
    """Accounts, zones, tokens, the audit log, and what failed authentications leave."""
    live = served.live
    admin = Client(live, "x" * 40)
    del admin.http.headers["Authorization"]
    admin.http.headers["X-Auth-Email"] = live.older["CLOUDFLARE_EMAIL"]
    admin.http.headers["X-Auth-Key"] = live.older["CLOUDFLARE_API_KEY"]
    made = admin.ask("POST", "/client/v4/accounts", {"name": "Role"}, once=uuid4().hex)
    account = f"/client/v4/accounts/{made['id']}"
    zone = admin.ask("POST", "/client/v4/zones", {"account": {"id": made["id"]}, "name": "role.example"}, once="z")
    one_ = f"/client/v4/zones/{zone['id']}"
    admin.ask("PATCH", one_, {"paused": True, "type": "partial"})
    admin.ask("GET", one_)
    admin.ask("GET", "/client/v4/zones?name=role.example")
    admin.ask("GET", "/client/v4/accounts")
    admin.ask("PUT", account, {"name": "Role renamed"})
    admin.ask("PUT", account, {"name": "Role renamed", "settings": {"abuse_contact_email": "abuse@example.com"}})
    admin.ask("GET", account)
    group = next(each.id.hex for each in GROUPS if each.name == "Zone Read")
    policies = [
        {
            "effect": "allow",
            "resources": {f"com.cloudflare.api.account.zone.{zone['id']}": "*"},
            "permission_groups": [{"id": group}],
        }
    ]
    for path in (f"{account}/tokens", "/client/v4/user/tokens"):
        times = {"not_before": "2026-01-01", "expires_on": "2099-01-01", "condition": {"request_ip": {}}}
        token = admin.ask("POST", path, {"name": "t", "policies": policies, **times}, once=uuid4().hex)
        admin.ask("GET", f"{path}/{token['id']}")
        admin.ask("GET", path)
        change = {"name": "u", "policies": policies, "status": "disabled", **times}
        admin.ask("PUT", f"{path}/{token['id']}", change)
        admin.http.put(f"{path}/{token['id']}/value").raise_for_status()
        admin.ask("DELETE", f"{path}/{token['id']}")
    admin.ask("GET", f"{account}/logs/audit?since=2026-01-01&before=2099-01-01")
    admin.ask("DELETE", one_)
    admin.ask("DELETE", account)
    admin.ask("GET", account, status=404)
    # The deleted one may still be remembered.
    admin.ask("GET", f"/client/v4/accounts/{uuid4().hex}", status=403)
    client.ask("GET", account, status=403)
    assert httpx.get(live.url + account, headers={"Authorization": f"Bearer {'x' * 40}"}).status_code == 403
    counted = "SELECT count(*) FROM failed_authentications"
    until(lambda: served.owner.value(counted) > 0)
    served.owner.earlier("failed_authentications", "minute", timedelta(hours=1))
    until(lambda: served.owner.value(counted) == 0)
    admin.http.close()


def deliver_a_key(served: Served) -> tuple[UUID, str]:
    """By the delivery listener, noted and counted; returns the token's id and value."""
    site = Site(served.live, "delivered.example.com")
    words = ("delivery", "token", "create", "--zone", site.zone_id, "--from", "127.0.0.1", "--json")
    made = one(served.owner.run(*words).out)
    until(lambda: fetched(served, made["token"]) == 200)
    sql = "SELECT count FROM key_deliveries WHERE token_id = $1"
    until(lambda: served.owner.value(sql, UUID(made["id"])) > 0)
    return UUID(made["id"]), made["token"]


def fetched(served: Served, token: str) -> int:
    url = f"http://{served.live.env['KEYSTEAD_DELIVERY_LISTEN']}/caddy?server_name=delivered.example.com"
    return httpx.get(url, auth=("caddy", token), timeout=60).status_code


def moves_too(served: Served, token_id: UUID, token: str) -> None:
    """As other credentials a delivery token moves to the newest pepper when it is used."""
    newest = served.owner.value("SELECT id FROM peppers ORDER BY created_at DESC LIMIT 1")

    def moved() -> bool:
        assert fetched(served, token) == 200
        return bool(served.owner.value("SELECT pepper_id FROM delivery_tokens WHERE id = $1", token_id) == newest)

    until(moved)


def digest_anew(served: Served) -> None:
    """A token and a global key of an earlier pepper move to the newest."""
    newest = new_pepper(served.owner)
    known_everywhere(served.owner, served.live)
    first = served.owner.value("SELECT id FROM tokens WHERE name = 'first'")

    def moved() -> bool:
        assert with_token(served.live, served.live.env["CLOUDFLARE_API_TOKEN"]) == with_key(served.live) == 200
        return {pepper_of(served.owner, first), key_pepper(served.owner, served.live)} == {newest}

    until(moved)


def issue_a_key(served: Served, client: Client) -> None:
    groups = ("--group", "Private CA Issue Key", "--group", "Private CA Write")
    keys = Client(served.live, one(served.owner.run("token", "create", "keys", *groups, "--json").out)["token"])
    new = {"projectSlug": client.slug, "keyAlgorithm": "EC_prime256v1", "type": "root", "commonName": "Issuing Root"}
    ca_id = keys.ask("POST", "/api/v1/pki/ca", new)["ca"]["id"]
    body = {"commonName": "i.example.com", "ttl": "1d"}
    assert "BEGIN PRIVATE KEY" in keys.ask("POST", f"/api/v1/pki/ca/{ca_id}/issue-certificate", body)["privateKey"]
    keys.http.close()


def a_damaged_key_is_audited(served: Served, client: Client) -> None:
    new = {"projectSlug": client.slug, "keyAlgorithm": "EC_prime256v1", "type": "intermediate", "commonName": "Damaged"}
    ca_id = client.ask("POST", "/api/v1/pki/ca", new)["ca"]["id"]
    key_id = served.owner.value("SELECT key_id FROM certificate_authorities WHERE id::text = $1", ca_id)
    served.owner.rows("UPDATE private_keys SET ciphertext = '' WHERE id = $1", key_id)
    client.ask("GET", f"/api/v1/pki/ca/{ca_id}/csr", status=500)
    audited = "SELECT action FROM audit_log WHERE resource_id = $1"
    assert [row[0] for row in served.owner.rows(audited, key_id)] == ["key-damaged"]
    client.ask("DELETE", f"/api/v1/pki/ca/{ca_id}")
