"""Databases of earlier releases: each is upgraded, keeps its rows, and ends in the catalogue of a new one."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.authority import csr_of, key_pem, openssl, pem, root
from support.released import RELEASED, catalogue
from support.world import new_database

from keystead import bounds
from keystead.errors import Misconfigured
from keystead.server import postgres
from keystead.store import database as db
from keystead.store import schema
from keystead.x509 import chains

FIRST = next(iter(RELEASED.values()))


async def _catalogue_at(url: str) -> dict[str, list[tuple[Any, ...]]]:
    connection: db.Connection = await asyncpg.connect(url)
    try:
        return await catalogue(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("released", RELEASED)
async def test_an_earlier_release_ends_in_the_catalogue_of_a_new_database(
    cluster: postgres.Cluster, database_url: str, released: str
) -> None:
    """schema.sql and the migrations lead to the same tables, columns, constraints, indexes and comments."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(RELEASED[released])
        await connection.close()
        assert await schema.state_at(old) is schema.SchemaState.OLDER
        applied = await schema.migrate(old)
        assert applied == [m.name for m in schema.migrations() if m.version > int(released[-4:])]
        assert await schema.state_at(old) is schema.SchemaState.CURRENT
        assert await _catalogue_at(old) == await _catalogue_at(database_url)
        assert await schema.migrate(old) == []


async def test_a_step_and_its_number_are_written_together_or_not_at_all(cluster: postgres.Cluster) -> None:
    """A step whose number cannot be written changes nothing, so that it can be applied again."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(FIRST)
        await connection.execute("ALTER TABLE schema_version ADD CONSTRAINT first CHECK (version = 1)")
        before = await catalogue(connection)
        with pytest.raises(Misconfigured, match="changed nothing"):
            await schema.migrate(old)
        assert await catalogue(connection) == before
        await connection.close()


def test_migrations_are_numbered_without_gaps_and_say_what_they_are_for() -> None:
    """Each step has the next number, and a first line that is a comment."""
    versions = [migration.version for migration in schema.migrations()]
    assert versions == list(range(2, 2 + len(versions)))
    assert len(RELEASED) == len(versions)
    assert all(migration.sql.startswith("-- ") for migration in schema.migrations())


async def test_a_migration_does_not_wait_behind_a_busy_table(
    cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the earlier release holds a lock that a step needs, the migration gives up and changes nothing."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(FIRST)
        monkeypatch.setattr(bounds, "MIGRATION_LOCK_SECONDS", 0.2)
        async with connection.transaction():
            await connection.execute("LOCK TABLE zones IN ACCESS SHARE MODE")
            with pytest.raises(Misconfigured, match="try again"):
                await schema.migrate(old)
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == 1
        assert await connection.fetchval("SELECT to_regclass('custom_certificates')") is None
        await connection.close()
        assert len(await schema.migrate(old)) == len(schema.migrations())


async def test_rows_of_an_earlier_release_survive_and_writers_go_on(cluster: postgres.Cluster) -> None:
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
        await schema.migrate(old)
        done.set()
        await writer
        assert written > 0
        assert await connection.fetchval("SELECT count(*) FROM accounts") == written
        await connection.close()


async def test_the_names_of_roots_are_filled_in_and_a_row_that_cannot_be_read_stays(
    cluster: postgres.Cluster, tmp_path: Path
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
        await schema.migrate(old)
        found = await connection.fetch("SELECT root, root_subject_sha256, root_key_id FROM ca_certificates")
        await connection.close()
    assert {row["root"]: (row["root_subject_sha256"], row["root_key_id"]) for row in found} == {
        **rows,
        **dict.fromkeys(damaged, (None, None)),
    }
