"""Rules for all SQL texts, so that PostgreSQL and Citus both take them, and how their errors are read."""

import re
from collections.abc import Callable

import asyncpg
import pytest
from support.databases import connected
from support.sql_texts import migrations, texts

from keystead.errors import Conflict, Unavailable
from keystead.store import database as db
from keystead.store import schema

# By account_id: the tables that Citus distributes. All others are small, and copied to each node.
DISTRIBUTED = (  # noqa: SIM905 - shorter
    "private_keys custom_csrs csr_counts custom_certificates certificate_history renewal_rules key_deliveries "
    "certificate_authorities "
    "ca_certificates issued_certificates crls last_crls certificate_policies certificate_profiles applications "
    "application_profiles idempotency_keys audit_log"
).split()
# Deleted in all accounts at once, by time alone.
BY_TIME = {"idempotency_keys": "created_at", "last_crls": "next_update"}
_CHANGES = re.compile(r"\b(?:INSERT INTO|UPDATE \w+ (?:\w+ )?SET|DELETE FROM)\b")
_DELETE = re.compile(r"\bDELETE FROM (\w+)(.*?)(?=\bRETURNING\b|\)\s*,\s*\w+ AS \(|\Z)", re.DOTALL)


def _nested(sql: str, start: int) -> str:
    """What stands in the brackets that open at `start`."""
    depth = 0
    for index in range(start, len(sql)):
        depth += {"(": 1, ")": -1}.get(sql[index], 0)
        if depth == 0:
            return sql[start : index + 1]
    return sql[start:]


def _names_ctid(sql: str) -> bool:
    return re.search(r"\bctid\b", sql) is not None


def _recurses_over_accounts(sql: str) -> bool:
    found = re.search(r"\bWITH RECURSIVE \w+ AS (?=\()", sql)
    return found is not None and "account_id = $" not in _nested(sql, found.end())


def _has_a_query_in_values(sql: str) -> bool:
    return any("SELECT" in _nested(sql, found.end()) for found in re.finditer(r"\bVALUES\s*(?=\()", sql))


def _has_a_query_in_returning(sql: str) -> bool:
    for found in re.finditer(r"\bRETURNING\b", sql):
        depth = 0
        for index in range(found.end(), len(sql)):
            depth += {"(": 1, ")": -1}.get(sql[index], 0)
            if depth < 0:
                break
            if depth > 0 and sql.startswith("SELECT", index):
                return True
    return False


def _decides_by_the_clock(sql: str) -> bool:
    if not _CHANGES.search(sql):
        return False
    cases = [found[0] for found in re.finditer(r"\bCASE\b.*?\bEND\b|\bcoalesce\([^;]*?\)\)?", sql, re.DOTALL)]
    conflicts = [found[0] for found in re.finditer(r"\bON CONFLICT\b.*?(?=\bRETURNING\b|\Z)", sql, re.DOTALL)]
    conflicts = [part[part.index("WHERE") :] for part in conflicts if "WHERE" in part]
    # timestamptz ± interval depends on the time zone of the session.
    return any("now()" in part for part in cases + conflicts) or any(
        re.search(r"[-+] interval", part) for part in conflicts
    )


def _is_several(sql: str) -> bool:
    return len(schema.statements(sql)) != 1


def _deletes_over_accounts(sql: str) -> bool:
    for table, rest in _DELETE.findall(sql):
        by_time = table in BY_TIME and re.match(rf"\s+WHERE {BY_TIME[table]} <= ", rest)
        if table in DISTRIBUTED and not by_time and not re.search(r"\baccount_id = \$\d", rest):
            return True
    return False


def _refers_while_it_is_made(sql: str) -> bool:
    # The table is distributed only when it is there, and until then may not refer to one that is.
    makes = re.search(r"^CREATE TABLE\b", sql, re.MULTILINE)
    return makes is not None and any(re.search(rf"\bREFERENCES {table}\b", sql) for table in DISTRIBUTED)


Rule = Callable[[str], bool]
PLANTED: dict[Rule, tuple[str, ...]] = {
    _names_ctid: ("DELETE FROM tokens WHERE ctid = ANY(ARRAY(SELECT ctid FROM tokens LIMIT 1))",),
    _recurses_over_accounts: (
        (
            "WITH RECURSIVE ids AS (SELECT min(kek_id) FROM private_keys UNION ALL SELECT kek_id FROM ids) SELECT FROM "
            "WHERE account_id = $1"
        ),
    ),
    _has_a_query_in_values: ("INSERT INTO peppers (id, kek_id) VALUES ($1, (SELECT id FROM keks WHERE id = $2))",),
    _has_a_query_in_returning: (
        "UPDATE zones SET paused = $2 WHERE id = $1 RETURNING id, (SELECT name FROM accounts)",
        "WITH z AS (UPDATE zones SET paused = $2 RETURNING id, coalesce((SELECT name FROM accounts), '')) TABLE z",
    ),
    _decides_by_the_clock: (
        "UPDATE custom_certificates SET uploaded_at = CASE WHEN sha256 = $3 THEN uploaded_at ELSE now() END",
        "UPDATE renewal_rules SET begun_at = coalesce(begun_at, now()) WHERE account_id = $1",
        (
            "INSERT INTO crls AS old (ca_id) VALUES ($1) ON CONFLICT (ca_id) DO UPDATE SET number = 1 "
            "WHERE old.next_update < now() RETURNING ca_id"
        ),
        (
            "INSERT INTO crls AS old (ca_id) VALUES ($1) ON CONFLICT (ca_id) DO UPDATE SET number = 1 "
            "WHERE old.next_update < excluded.next_update - interval '1 day'"
        ),
    ),
    _is_several: ("DELETE FROM users; DELETE FROM keks",),
    _deletes_over_accounts: (
        "DELETE FROM private_keys USING csr WHERE private_keys.account_id = csr.account_id",
        "WITH k AS (DELETE FROM private_keys WHERE id = $2), a AS (SELECT id FROM zones WHERE account_id = $1) TABLE a",
        "DELETE FROM audit_log WHERE at < $1",
    ),
    _refers_while_it_is_made: (
        "-- Pins.\nCREATE TABLE pins (account_id uuid, id uuid, FOREIGN KEY (account_id, id) REFERENCES private_keys)",
    ),
}
# The database and the roles of the bundled PostgreSQL, where there is no Citus.
_BUNDLED_ONLY = "keystead.server.roles."


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__.strip("_"))
def test_no_sql_text_breaks_a_rule_that_finds_what_is_planted(rule: Rule) -> None:
    """Each rule catches its planted violations, and no statement of the program or of a migration."""
    assert [sql for sql in PLANTED[rule] if not rule(sql)] == []
    found = {place: sql for place, sql in texts().items() if not place.startswith(_BUNDLED_ONLY)}
    assert [place for place, sql in {**found, **migrations()}.items() if rule(sql)] == []


def test_the_texts_are_those_of_the_program() -> None:
    """Whole statements of modules, of tables, of functions and of composed fragments are among them."""
    found = texts()
    assert len(found) > 200
    for place in (
        "keystead.csrs.writing._CREATES[0]",
        "keystead.identity.accounts._DELETE[0]",
        "keystead.custody.keyring._NEXT_KEK[0]",
    ):
        assert place in found
    assert "SELECT slug FROM accounts WHERE id = $1" in found.values()


async def test_all_tables_are_known(database_url: str) -> None:
    """Tables that Citus distributes are those with an account_id in their primary key, but for memberships."""
    async with connected(database_url) as connection:
        rows = await connection.fetch("""
            SELECT c.relname AS name FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(k.conkey)
            WHERE k.contype = 'p' AND a.attname = 'account_id' AND c.relname <> 'memberships'
        """)
    assert sorted(row["name"] for row in rows) == sorted(DISTRIBUTED)


def test_a_file_is_cut_at_its_semicolons_alone() -> None:
    """Those in texts, names, dollar quotes and comments are no ends, and a comment alone is no statement."""
    parts = [
        "SELECT 'it''s; one'",
        'SELECT 1 AS "a;b"',
        "DO $$ BEGIN PERFORM 1; END $$",
        "DO $x$ BEGIN PERFORM $$;$$; END $x$",
        "-- who's; here\nSELECT 2",
        "/* don't; */ SELECT 3",
        "SELECT $1",
    ]
    assert schema.statements(";\n".join(parts) + ";\n-- the end; really\n/* ; */") == parts


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            asyncpg.UniqueViolationError,
            'duplicate key value violates unique constraint "zones_account_id_name_key_102008"',
        ),
        (asyncpg.InternalServerError, 'duplicate key value violates unique constraint "users_email_key_102011"'),
        (
            asyncpg.InternalServerError,
            (
                'update or delete on table "private_keys_102040" violates foreign key constraint '
                '"custom_certificates_key_fkey_102044" on table "custom_certificates_102044"'
            ),
        ),
        (asyncpg.UniqueViolationError, 'duplicate key value violates unique constraint "accounts_slug_key"'),
    ],
)
def test_a_constraint_is_read_from_the_text(kind: type[asyncpg.PostgresError], text: str) -> None:
    """Without the number of a shard, and whatever the SQLSTATE."""
    with pytest.raises(Conflict):
        db._raise_mapped(kind(text), None, writes=True)


def test_a_retired_kek_is_read_from_the_text() -> None:
    """Also where Citus says it as an internal error."""
    text = 'null value in column "kek_id" of relation "private_keys_102080" violates not-null constraint'
    with pytest.raises(Unavailable, match="KEK"):
        db._raise_mapped(asyncpg.InternalServerError(text), None, writes=True)
