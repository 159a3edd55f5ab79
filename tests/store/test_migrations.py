"""Databases of earlier releases: each is upgraded, keeps its rows, and ends in the catalogue of a new one."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.databases import connected, new_database
from support.released import RELEASED, STEPS, catalogue, later

from keystead import bounds
from keystead.errors import Misconfigured
from keystead.server import postgres
from keystead.store import database as db
from keystead.store import schema

pytestmark = pytest.mark.usefixtures("made_up")
FIRST = RELEASED["schema_0008"]


async def _catalogue_at(url: str) -> dict[str, list[tuple[Any, ...]]]:
    async with connected(url) as connection:
        return await catalogue(connection)


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
        assert await schema.migrate(old) == later(released)
        assert await schema.state_at(old) is schema.SchemaState.CURRENT
        assert await _catalogue_at(old) == await _catalogue_at(database_url)
        assert await schema.migrate(old) == []


async def test_a_step_and_its_number_are_written_together_or_not_at_all(cluster: postgres.Cluster) -> None:
    """A step whose number cannot be written changes nothing, so that it can be applied again."""
    async with new_database(cluster, "template0") as old:
        connection: db.Connection = await asyncpg.connect(old)
        await connection.execute(FIRST)
        await connection.execute("ALTER TABLE schema_version ADD CONSTRAINT first CHECK (version = 8)")
        before = await catalogue(connection)
        with pytest.raises(Misconfigured, match="changed nothing"):
            await schema.migrate(old)
        assert await catalogue(connection) == before
        await connection.close()


def test_migrations_are_numbered_without_gaps_and_say_what_they_are_for() -> None:
    """Each step has the next number, a first line that is a comment, and the schema before it is kept."""
    versions = [step.version for step in STEPS]
    assert versions == list(range(9, 9 + len(versions)))
    assert [f"schema_{version - 1:04}" for version in versions] == list(RELEASED)
    assert all(step.sql.startswith("-- ") for step in STEPS)


def test_a_released_schema_is_changed_by_a_migration_alone() -> None:
    """schema.sql has the version of the newest migration, or is to the letter what was released with that version."""
    root = Path(__file__).parents[2]
    text = (root / "schema.sql").read_text("utf-8")
    version = schema.version_of_this_program()
    assert text.endswith(f"INSERT INTO schema_version (version) VALUES ({version});\n")
    kept = root / "tests" / "schemas" / f"schema_{version:04}.sql"
    assert not kept.exists() or kept.read_text("utf-8") == text


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
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == 8
        assert await connection.fetchval("SELECT to_regclass('csr_counts')") is None
        await connection.close()
        assert len(await schema.migrate(old)) == len(STEPS)


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
