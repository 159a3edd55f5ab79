"""A server under a role of PostgreSQL that may only serve, and every request that it serves."""

import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
from support.live import Live
from support.rotation import (
    Place,
)

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
