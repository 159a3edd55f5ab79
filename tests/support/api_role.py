"""A server under a role of PostgreSQL that may only serve, and every request that it serves."""

import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import csr_of, key_pem, pem, subject
from support.live import Live
from support.rotation import (
    Place,
)
from support.waiting import until
from support.world import BODY

from keystead.caller import GROUPS
from keystead.server import roles
from keystead.store import database as db

Json = dict[str, Any]
GRANTS = roles.GRANTS


class Served(msgspec.Struct):
    """A server under the role, the owner's commands beside it, and where PostgreSQL writes what the role asks for."""

    live: Live
    owner: Place
    database: str
    role: str
    log: Path

    @property
    def url(self) -> str:
        return self.live.database_url

    def statements(self) -> set[str]:
        """What the role has asked for so far, of what needs a permission."""
        # The server prepares its statements; what these tests try as the role is sent as plain text.
        prefix = r"^\d{4}-\d\d-\d\d [^\n]*? LOG:  execute [^:\n]+: "
        entries = re.split(r"(?m)^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", self.log.read_text())
        found = {re.sub(prefix, "", entry).strip() for entry in entries if re.match(prefix, entry)}
        return {text for text in found if re.match(r"(WITH|SELECT|INSERT|UPDATE|DELETE)\b", text)}


class Client:
    """Asks the server, and has a clear idea of the answer's status."""

    def __init__(self, live: Live, token: str) -> None:
        self.live = live
        self.http = httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self.account = f"/client/v4/accounts/{live.env['CLOUDFLARE_ACCOUNT_ID']}"
        self.zone = f"/client/v4/zones/{live.env['CLOUDFLARE_ZONE_ID']}"
        self.slug = live.env["KEYSTEAD_PROJECT_SLUG"]

    def ask(self, method: str, path: str, body: Json | None = None, status: int = 200, once: str = "") -> Json:
        headers = {"Idempotency-Key": once} if once else {}
        answer = self.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        is_json = answer.headers["content-type"].startswith("application/json")
        told: Any = answer.json() if is_json else {}
        found: Json = told.get("result", told) if isinstance(told, dict) else {"list": told}
        return found


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
    served.owner.rows("UPDATE failed_authentications SET minute = minute - interval '1 hour'")
    until(lambda: served.owner.value(counted) == 0)
    admin.http.close()


class Grant(msgspec.Struct, frozen=True):
    """One permission on a table, or on one column of it."""

    table: str
    what: str
    column: str = ""

    def __str__(self) -> str:
        return self.what + (f" ({self.column})" if self.column else "")


def granted() -> list[Grant]:
    """Every single permission on tables that GRANTS gives."""
    found = []
    for what, table in re.findall(r"GRANT ([^;]*?)\s+ON (\w+) TO keystead_api;", GRANTS):
        for word, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?(?:, |$)", what):
            names = [name.strip() for name in columns.split(",")] if columns else [""]
            found += [Grant(table, word, name) for name in names]
    return found


async def held(connection: db.Connection, role: str) -> set[Grant]:
    """What the role has according to PostgreSQL, and what everybody has."""
    tables = await connection.fetch(
        "SELECT relname, a.privilege_type FROM pg_class, aclexplode(relacl) a WHERE relnamespace = "
        "'public'::regnamespace AND a.grantee = ANY(ARRAY[$1::regrole, 0])",
        role,
    )
    columns = await connection.fetch(
        "SELECT relname, a.privilege_type, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid, "
        "aclexplode(attacl) a WHERE relnamespace = 'public'::regnamespace AND a.grantee = ANY(ARRAY[$1::regrole, 0])",
        role,
    )
    return {Grant(*row) for row in (*tables, *columns)}


FORBIDDEN = {
    "change the audit log": "UPDATE audit_log SET actor = 'x'",
    "delete from the audit log": "DELETE FROM audit_log",
    "empty the audit log": "TRUNCATE audit_log",
    "date a row of the audit log": "INSERT INTO audit_log "
    "(account_id, id, at, action, resource_type, resource_id, actor, request_id, method, path) VALUES "
    "(gen_random_uuid(), gen_random_uuid(), '2000-01-01', 'x', 'x', gen_random_uuid(), 'x', 'x', 'x', 'x')",
    "lock the audit log": "BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE",
    "switch off the audit log's rules": "ALTER TABLE audit_log DISABLE TRIGGER ALL",
    "put a rule in the way of the audit log": "CREATE RULE r AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "put a trigger in the way of the audit log": "CREATE TRIGGER t BEFORE INSERT ON audit_log FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "read what certificates were": "SELECT count(*) FROM certificate_history",
    "change what certificates were": "UPDATE certificate_history SET issuer = 'x'",
    "change a private key": "UPDATE private_keys SET kek_id = 'x'",
    "change one column of a private key": "UPDATE private_keys SET account_id = account_id",
    "empty the private keys": "TRUNCATE private_keys",
    "change a pepper": "UPDATE peppers SET kek_id = 'x'",
    "say that a retired KEK is good again": "UPDATE keks SET retired_at = NULL",
    "add a KEK": "INSERT INTO keks (id) VALUES ('x')",
    "add a pepper": "INSERT INTO peppers VALUES (gen_random_uuid(), 'x', '', '')",
    "delete a pepper": "DELETE FROM peppers",
    "add a token": "INSERT INTO tokens SELECT * FROM tokens",
    "add a delivery token": "INSERT INTO delivery_tokens SELECT * FROM delivery_tokens",
    "widen a delivery token": "UPDATE delivery_tokens SET networks = '{0.0.0.0/0}'",
    "take a revocation back": "UPDATE delivery_tokens SET revoked_at = NULL",
    "forget that a key was delivered": "DELETE FROM key_deliveries",
    "give a login to another token": "UPDATE access_tokens SET token_id = gen_random_uuid()",
    "add a user": "INSERT INTO users (id, email) VALUES (gen_random_uuid(), 'x@x.example')",
    "rename a user": "UPDATE users SET email = 'x@x.example'",
    "change a role": "UPDATE memberships SET role = 'administrator'",
    "change the rules of an account": "UPDATE accounts SET name_policy = 'private'",
    "lift a quota": "UPDATE accounts SET ca_quota = NULL",
    "give a token to another": "UPDATE tokens SET account_id = gen_random_uuid()",
    "take a role away": "DELETE FROM memberships",
    "date an account": "INSERT INTO accounts (id, name, slug, created_at) VALUES (gen_random_uuid(), 'x', 'x', now())",
    "switch custom CSRs on": "UPDATE zones SET csrs_enabled = true",
    "lift the quota of a zone": "UPDATE zones SET certificate_quota = NULL",
    "move a zone": "UPDATE zones SET account_id = gen_random_uuid()",
    "change a CSR": "UPDATE custom_csrs SET csr = 'x'",
    "move a certificate": "UPDATE custom_certificates SET zone_id = gen_random_uuid()",
    "give a CA another key": "UPDATE certificate_authorities SET key_id = gen_random_uuid(), spki_sha256 = sha256('x')",
    "change the certificate of a CA": "UPDATE ca_certificates SET pem = 'x'",
    "delete the certificate of a CA": "DELETE FROM ca_certificates",
    "forget what was signed": "DELETE FROM issued_certificates",
    "change the serial of what was signed": "UPDATE issued_certificates SET serial = '4' || repeat('0', 39)",
    "forget a CRL": "DELETE FROM crls",
    "say that the schema is another": "INSERT INTO schema_version (version) VALUES (99)",
    "change the version of the schema": "UPDATE schema_version SET version = 99",
    "forget the version of the schema": "DELETE FROM schema_version",
    "make a table": "CREATE TABLE x (id int)",
    "make a temporary table": "CREATE TEMPORARY TABLE x (id int)",
    "make a view": "CREATE VIEW x AS SELECT 1",
    "make a function": "CREATE FUNCTION x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "make a schema": "CREATE SCHEMA x",
    "make an index": "CREATE INDEX x ON tokens (name)",
    "make a role": "CREATE ROLE x",
    "make a database": "CREATE DATABASE x",
    "drop an extension": "DROP EXTENSION plpgsql",
    "change a table": "ALTER TABLE private_keys ADD COLUMN x int",
    "change the database": "ALTER DATABASE {database} SET timezone = 'UTC'",
    "drop a table": "DROP TABLE idempotency_keys",
    "drop the schema": "DROP SCHEMA public CASCADE",
    "drop the database": "DROP DATABASE {database}",
    "switch off foreign keys": "SET session_replication_role = replica",
    "become the owner": "SET ROLE {owner}",
    "read files of the server": "SELECT pg_read_file('postgresql.conf')",
    "write files of the server": "COPY schema_version TO '/tmp/x'",
    "run programs on the server": "COPY schema_version TO PROGRAM 'true'",
    "see passwords": "SELECT rolpassword FROM pg_authid",
    "read another's statistics": "SELECT count(*) FROM pg_statistic",
}
