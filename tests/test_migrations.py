"""Databases of earlier releases: each is upgraded, keeps its rows, and ends in the catalogue of a new one."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from authority import csr_of, key_pem, openssl, pem, root
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from world import new_database

from app import bounds, chains, db, embedded
from app.errors import Misconfigured

# The catalogue that each released schema version had, as it was released.
RELEASED = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent / "schemas").glob("schema_[0-9][0-9][0-9][0-9].sql"))
}
FIRST = next(iter(RELEASED.values()))

_CATALOGUE = {
    "columns": """
        SELECT table_name, column_name, data_type, is_nullable, column_default, is_generated, generation_expression,
               col_description(format('%I', table_name)::regclass, ordinal_position) AS comment
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
    """,
    "storage": """
        SELECT attrelid::regclass::text AS on_table, attname, attstorage FROM pg_attribute
        WHERE attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
          AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2
    """,
    "constraints": """
        SELECT conrelid::regclass::text AS on_table, conname, pg_get_constraintdef(oid) AS definition
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "tables": """
        SELECT relname, obj_description(oid) AS comment FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1
    """,
}


async def catalogue(connection: db.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a statement of ours can notice of the schema, without the order of columns."""
    return {name: [tuple(row) for row in await connection.fetch(sql)] for name, sql in _CATALOGUE.items()}


async def _catalogue_at(url: str) -> dict[str, list[tuple[Any, ...]]]:
    connection: db.Connection = await asyncpg.connect(url)
    try:
        return await catalogue(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("released", RELEASED)
async def test_an_earlier_release_ends_in_the_catalogue_of_a_new_database(
    cluster: embedded.Cluster, database_url: str, released: str
) -> None:
    """schema.sql and the migrations lead to the same tables, columns, constraints, indexes and comments."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(RELEASED[released])
        await connection.close()
        assert await db.state_at(old) is db.SchemaState.OLDER
        applied = await db.migrate(old)
        assert applied == [m.name for m in db.migrations() if m.version > int(released[-4:])]
        assert await db.state_at(old) is db.SchemaState.CURRENT
        assert await _catalogue_at(old) == await _catalogue_at(database_url)
        assert await db.migrate(old) == []


def test_migrations_are_numbered_without_gaps_and_say_what_they_are_for() -> None:
    """Each step has the next number, and a first line that is a comment."""
    versions = [migration.version for migration in db.migrations()]
    assert versions == list(range(2, 2 + len(versions)))
    assert len(RELEASED) == len(versions)
    assert all(migration.sql.startswith("-- ") for migration in db.migrations())


async def test_a_migration_does_not_wait_behind_a_busy_table(
    cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the earlier release holds a lock that a step needs, the migration gives up and changes nothing."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(FIRST)
        monkeypatch.setattr(bounds, "MIGRATION_LOCK_SECONDS", 0.2)
        async with connection.transaction():
            await connection.execute("LOCK TABLE zones IN ACCESS SHARE MODE")
            with pytest.raises(Misconfigured, match="try again"):
                await db.migrate(old)
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == 1
        assert await connection.fetchval("SELECT to_regclass('custom_certificates')") is None
        await connection.close()
        assert len(await db.migrate(old)) == len(db.migrations())


async def test_rows_of_an_earlier_release_survive_and_writers_go_on(cluster: embedded.Cluster) -> None:
    """While a writer of the earlier release inserts all the time, the upgrade succeeds and loses nothing."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(FIRST)
        written = 0
        done = asyncio.Event()

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                sql = "INSERT INTO accounts (id, name, slug) VALUES (gen_random_uuid(), 'x', $1)"
                await connection.execute(sql, f"a{written}")
                written += 1

        writer = asyncio.create_task(write())
        await db.migrate(old)
        done.set()
        await writer
        assert written > 0
        assert await connection.fetchval("SELECT count(*) FROM accounts") == written
        await connection.close()


async def test_the_names_of_roots_are_filled_in_and_a_row_that_cannot_be_read_stays(
    cluster: embedded.Cluster, tmp_path: Path
) -> None:
    """Digest and key id are those that this release writes, for roots with and without a key id or a version."""
    short, long = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 4096)
    (tmp_path / "key").write_text(key_pem(short))
    (tmp_path / "csr").write_text(csr_of(short, "An old root without extensions"))
    first_version = openssl("x509", "-req", "-in", tmp_path / "csr", "-signkey", tmp_path / "key")
    made = [root(key=key).certificate for key in (short, long)]
    made.append(x509.load_pem_x509_certificate(first_version.encode()))
    assert made[2].version is x509.Version.v1
    rows = {pem(each): (chains.name_sha256(each.subject), chains.key_id(each)) for each in made}
    damaged = ["", "x", pem(made[0])[:200], "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"]
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(RELEASED["schema_0005"])
        await connection.execute("SET session_replication_role = replica")
        sql = """
            INSERT INTO ca_certificates
                (account_id, id, ca_id, version, serial, sha256, not_before, not_after, pem, chain, root)
            SELECT $2, gen_random_uuid(), gen_random_uuid(), 1, '01', sha256(''), now(), now(), '', '', $1
        """
        for text in (*rows, *damaged):
            await connection.execute(sql, text, uuid4())
        await db.migrate(old)
        found = await connection.fetch("SELECT root, root_subject_sha256, root_key_id FROM ca_certificates")
        await connection.close()
    assert {row["root"]: (row["root_subject_sha256"], row["root_key_id"]) for row in found} == {
        **rows,
        **dict.fromkeys(damaged, (None, None)),
    }
