"""Where there is no Citus, nothing is distributed; and what is told before tables with rows are."""

import re
from pathlib import Path

import pytest
from support.citus import at, blank, spread, urls
from support.databases import connected
from support.released import RELEASED, catalogue, later

from keystead.errors import Misconfigured
from keystead.store import distribution, schema
from keystead.store.distribution import Table

_ACCOUNT = "INSERT INTO accounts (id, name, slug) VALUES (gen_random_uuid(), 'a', 'a')"
# Without those of the parts, whose names have a number.
_KEYS = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conname !~ '_[0-9]{6,}$'"
_DISTRIBUTED = "SELECT count(*) FROM pg_dist_partition"


async def test_plain_postgresql_is_left_as_it_is(database_url: str) -> None:
    """Without Citus the command says what to run, and makes no table."""
    with pytest.raises(Misconfigured, match="CREATE EXTENSION citus"):
        await schema.distribute(database_url, with_rows=True)
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT to_regclass('scopes')") is None


def test_a_plan_names_the_largest_tables_and_the_time() -> None:
    """With the size of all tables, of the three largest, and seconds."""
    tables = [Table("keys", True, 3 * 2**30, True), Table("log", True, 2**20, True), Table("zones", False, 0, False)]
    assert "3073 MiB (keys 3072 MiB, log 1 MiB, zones 0 MiB)" in distribution.plan(tables)
    assert " 644 s " in distribution.plan(tables)


async def test_tables_with_rows_are_distributed_when_it_is_said() -> None:
    """First the plan, and nothing is changed; then all of it, with the rows; a second time nothing is left to do."""
    async with blank() as url:
        await schema.migrate(url)
        async with connected(url) as connection:
            await connection.execute(_ACCOUNT)
            keys = await connection.fetchval(_KEYS)
            with pytest.raises(Misconfigured, match="--with-rows"):
                await schema.distribute(url, with_rows=False)
            assert await connection.fetchval(_DISTRIBUTED) == 0
            done = await schema.distribute(url, with_rows=True)
            assert await connection.fetchval(_DISTRIBUTED) == len(done) > 20
            assert await schema.distribute(url, with_rows=False) == []
            assert await connection.fetchval("SELECT count(*) FROM accounts") == 1
            assert await connection.fetchval(_KEYS) == keys


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("released", RELEASED)
async def test_an_earlier_release_that_is_distributed_ends_as_a_new_database_does(released: str) -> None:
    """New tables are distributed by the migrations that make them; nothing is left for --distribute."""
    async with blank() as url, spread() as new:
        async with connected(url) as connection:
            for statement in schema.statements(RELEASED[released]):
                await connection.execute(statement)
            await connection.execute(_ACCOUNT)
            await connection.execute(distribution.SCOPES)
            async with connection.transaction():
                await distribution.begin(connection)
                await distribution.place(connection, await distribution.not_placed(connection))
            assert await schema.migrate(url) == later(released)
            assert await _placed(url) == await _placed(new)
            assert await connection.fetchval("SELECT count(*) FROM accounts") == 1
        assert await schema.distribute(url, with_rows=False) == []


async def test_a_worker_changes_no_tables() -> None:
    """Whoever gives the address of a worker is told to give the coordinator's, and nothing is changed."""
    async with spread() as url:
        worker = at(urls()[1], url)
        with pytest.raises(Misconfigured, match="coordinator's address"):
            await schema.distribute(worker, with_rows=True)
        async with connected(url) as connection:
            await connection.execute("UPDATE schema_version SET version = version - 1")
        with pytest.raises(Misconfigured, match="coordinator's address"):
            await schema.migrate(worker)
        assert await schema.state_at(url) is schema.SchemaState.OLDER


async def _placed(url: str) -> tuple[object, ...]:
    """All that can be noticed of the tables on this node, and how each is distributed, without their parts."""
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT logicalrelid::text, partmethod FROM pg_dist_partition ORDER BY 1")
        placed = [tuple(row) for row in rows]
        seen = {
            name: [row for row in rows if not any(re.search(r"_[0-9]{6,}$", str(each)) for each in row)]
            for name, rows in (await catalogue(connection)).items()
        }
        return placed, seen


def test_the_documentation_shows_the_grants() -> None:
    """docs/scale.md has those of the servers' role as they are."""
    assert distribution.GRANTS in (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
