"""The API under a PostgreSQL role that may do what serving needs, and nothing else (docs/operations.md)."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from authority import csr_of, key_pem, pem, subject
from cryptography.hazmat.primitives.asymmetric import ec
from live import Live, serving
from test_rotation import (
    Place,
    in_thread,
    key_pepper,
    known_everywhere,
    new_pepper,
    pepper_of,
    until,
    with_key,
    with_token,
)
from world import BODY, new_database

from app.caller import GROUPS
from app.config import Settings
from app.custody import ring as ringfile
from app.errors import Misconfigured
from app.identity import accounts
from app.server import first_start, postgres, roles
from app.store import database as db

pytestmark = pytest.mark.serve

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


@pytest.fixture(scope="module")
async def served(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """An installation that its owner has made, and a server that came to it under the role."""
    owner, role = (f"{name}_{uuid4().hex}" for name in ("owner", "api"))
    folder = tmp_path_factory.mktemp("role")
    async with connected(cluster.dsn) as admin:
        await admin.execute(f"CREATE ROLE {owner} LOGIN; CREATE ROLE {role} LOGIN")
        try:
            async with new_database(cluster, "template0") as url:
                name = re.findall(r"t_[0-9a-f]{32}", url)[0]
                await admin.execute(f"ALTER DATABASE {name} OWNER TO {owner}")
                # Who asks for what, in PostgreSQL's log.
                await admin.execute(f"ALTER ROLE {role} IN DATABASE {name} SET log_statement = 'all'")
                place = Place(url.replace("user=keystead", f"user={owner}"), folder / "data")
                _install(place, role, name)
                as_role = url.replace("user=keystead", f"user={role}")
                with serving(as_role, folder / "data", workers=2) as running:
                    yield Served(running, place, name, role, cluster._layout.home / "log")
        finally:
            await admin.execute(f"DROP ROLE {role}; DROP ROLE {owner}")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[db.Connection]:
    connection: db.Connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def grants(role: str, database: str) -> str:
    return re.sub(r"\bkeystead_api\b", role, re.sub(r"DATABASE keystead\b", f"DATABASE {database}", GRANTS))


def _install(place: Place, role: str, database: str) -> None:
    """What the owner does before the first start under the role."""
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

    async def grant() -> None:
        async with connected(place.database_url) as connection:
            await connection.execute(grants(role, database))

    in_thread(grant)


def one(text: str) -> Json:
    (row,) = json.loads(text)
    found: Json = row
    return found


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


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    made = Client(served.live, served.live.env["CLOUDFLARE_API_TOKEN"])
    yield made
    made.http.close()


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


def infisical(client: Client, live: Live) -> None:
    """Every call of Infisical's dialect, under an access token."""
    token = live.env["CLOUDFLARE_API_TOKEN"]
    login = {"clientId": client.ask("GET", "/client/v4/user/tokens/verify")["id"], "clientSecret": token}
    client = Client(live, client.ask("POST", "/api/v1/auth/universal-auth/login", login)["accessToken"])
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
    lone = client.ask("POST", ca, {**new, "type": "root", "commonName": "Lone Root"})["ca"]
    client.ask("DELETE", f"{ca}/{lone['id']}")
    client.http.close()


@pytest.fixture(scope="module")
def served_all(served: Served, client: Client) -> Served:
    """After everything that the API does was done once."""
    cloudflare(client, served.live)
    infisical(client, served.live)
    tenants(served, client)
    issue_a_key(served, client)
    digest_anew(served)
    a_damaged_key_is_audited(served, client)
    return served


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
    client.ask("GET", account, status=403)
    assert httpx.get(live.url + account, headers={"Authorization": f"Bearer {'x' * 40}"}).status_code == 403
    counted = "SELECT count(*) FROM failed_authentications"
    until(lambda: served.owner.value(counted) > 0)
    served.owner.rows("UPDATE failed_authentications SET minute = minute - interval '1 hour'")
    until(lambda: served.owner.value(counted) == 0)
    admin.http.close()


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


def test_the_role_serves_everything(served_all: Served) -> None:
    """Both dialects work, what has expired is forgotten, and the log has no error but the one that was provoked."""
    log = served_all.live.log.read_text()
    assert "what has expired stays" not in log
    assert "permission denied" not in log
    assert "InsufficientPrivilege" not in log
    errors = [line for line in log.splitlines() if '"level": "error"' in line]
    assert len(errors) == log.count("KeyDamaged: ") == 1


def test_every_change_was_audited(served_all: Served) -> None:
    """The role may only add to the audit log, and has done so for each kind of change."""
    sql = "SELECT DISTINCT action FROM audit_log WHERE actor <> 'operator'"
    actions = {row[0] for row in served_all.owner.rows(sql)}
    assert actions >= {"create", "update", "delete", "login", "sign", "sign-intermediate", "revoke", "renew", "import"}


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


async def test_the_role_has_what_the_text_says_and_no_more(served_all: Served) -> None:
    """PostgreSQL's own catalogue has exactly these permissions, on every table of the schema."""
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    async with connected(served_all.owner.database_url) as connection:
        assert await held(connection, served_all.role) == set(granted())
        assert {grant.table for grant in granted()} == {row["relname"] for row in await connection.fetch(tables)}


async def test_none_of_the_permissions_can_be_left_out(served_all: Served) -> None:
    """For each there is a statement of the server that PostgreSQL refuses without it."""
    statements = served_all.statements()
    assert len(statements) > 80
    spare = []
    async with connected(served_all.owner.database_url) as owner, connected(served_all.url) as api:
        for grant in granted():
            await owner.execute(f"REVOKE {grant} ON {grant.table} FROM {served_all.role}")
            if not await any_is_refused(api, [text for text in statements if grant.table in text]):
                spare.append(grant)
            await owner.execute(f"GRANT {grant} ON {grant.table} TO {served_all.role}")
        assert spare == []
        # And with all of them none is refused.
        # But what a start tries with a KEK that the database does not know, which is the owner's to add.
        assert not await any_is_refused(api, [text for text in statements if "INTO keks" not in text])
        await owner.execute(f"REVOKE USAGE ON SCHEMA public FROM {served_all.role}")
        with pytest.raises(asyncpg.UndefinedTableError):
            await api.execute("EXPLAIN SELECT FROM accounts")
        await owner.execute(f"GRANT USAGE ON SCHEMA public TO {served_all.role}")
        await owner.execute(f"REVOKE CONNECT ON DATABASE {served_all.database} FROM {served_all.role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(served_all.url)
        await owner.execute(f"GRANT CONNECT ON DATABASE {served_all.database} TO {served_all.role}")


async def any_is_refused(api: db.Connection, statements: Iterable[str]) -> bool:
    for text in statements:
        try:
            await api.execute(f"EXPLAIN (GENERIC_PLAN) {text}")
        except asyncpg.InsufficientPrivilegeError:
            return True
    return False


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
    "lengthen a login": "UPDATE access_tokens SET expires_at = now() + interval '10 years'",
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


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_the_role_cannot(served: Served, what: str) -> None:
    """PostgreSQL itself refuses what serving does not need, whoever speaks for the role."""
    owner = re.findall(r"owner_[0-9a-f]{32}", served.owner.database_url)[0]
    sql = FORBIDDEN[what].replace("{database}", served.database).replace("{owner}", owner)
    async with connected(served.url) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql)


@pytest.mark.parametrize("before", ["nothing", "add", "rotate", "add --pepper"])
async def test_the_role_starts_again(served: Served, tmp_path: Path, before: str) -> None:
    """Also after the owner has changed ring or peppers: what has to be written for that, the owner has written."""
    if before != "nothing":
        served.owner.run("keys", *before.split())
    settings = Settings(database_url=served.url, data_dir=tmp_path, keyring=served.owner.path)
    assert "Keystead" in await first_start.prepare(settings)


async def test_the_role_starts_with_a_kek_of_which_the_database_has_not_heard(served: Served, tmp_path: Path) -> None:
    """The KEK of a secret that was changed by hand is no reason for a traceback: it serves, or says what to do."""
    path = tmp_path / "keyring.json"
    path.write_text(served.owner.path.read_text())
    path.chmod(0o600)
    ringfile.add(path)
    settings = Settings(database_url=served.url, data_dir=tmp_path, keyring=path)
    with contextlib.suppress(Misconfigured):
        await first_start.prepare(settings)
