"""Upgrades of databases with everything in them: rows, keys and answers stay, and both releases go on working."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import httpx
import msgspec
import pytest
from support.databases import connected, new_database
from support.everything import _use_everything
from support.released import RELEASED, catalogue, later
from support.waiting import comes_about
from support.world import BODY, Tenant, World, _lifespan, judged_client, new_world

from keystead.config import Settings
from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.errors import Misconfigured, Unavailable
from keystead.server import first_start, postgres
from keystead.server import worker as main
from keystead.store import database as db
from keystead.store import schema

pytestmark = pytest.mark.usefixtures("made_up")
Rows = dict[str, list[asyncpg.Record]]
# Beyond what test_migrations compares: how tables are stored, and that there is nothing else.
_STORAGE = """
SELECT relname, relkind::text, relpersistence::text, reloptions FROM pg_class
WHERE relnamespace = 'public'::regnamespace ORDER BY 1
"""
_CODE = """
SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
"""
_COLUMNS = """
SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) AS columns FROM information_schema.columns
WHERE table_schema = 'public' AND is_generated = 'NEVER' GROUP BY 1 ORDER BY 1
"""
_MIGRATION_WAITS = """
SELECT pid FROM pg_locks WHERE NOT granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Site(NamedTuple):
    """An installation with rows in every table: what is in them, and what it answered."""

    settings: Settings
    tenant: Tenant
    access: dict[str, str]
    rows: Rows
    repeat: httpx.Response
    # Each path under the table without which there was no such thing yet.
    told: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
async def site(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Made by this release; what an earlier one had not yet is left out when it is put into an earlier schema."""
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("site")) as world:
        repeat, paths, access = await _use_everything(world)
        told = {table: await _ask(world.http, world.a.bearer, of_table) for table, of_table in paths.items()}
        async with connected(url) as connection:
            tables = await _columns(connection)
            rows = {name: await connection.fetch(f"SELECT {_list(tables[name])} FROM {name}") for name in tables}
        assert [table for table in rows if not rows[table]] == []
        return Site(world.settings, world.a, access, rows, repeat, told)


async def _ask(http: httpx.AsyncClient, headers: dict[str, str], paths: list[str]) -> dict[str, str]:
    answers = {path: await http.get(path, headers=headers) for path in paths}
    assert {answer.status_code for answer in answers.values()} == {200}
    return {path: answer.text for path, answer in answers.items()}


async def _columns(connection: db.Connection) -> dict[str, list[str]]:
    return {row["table_name"]: row["columns"] for row in await connection.fetch(_COLUMNS)}


def _list(columns: list[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


class Old(NamedTuple):
    """A database of an earlier release, with its columns."""

    url: str
    released: str
    connection: db.Connection
    columns: dict[str, list[str]]


@pytest.fixture(params=RELEASED)
async def old(request: pytest.FixtureRequest, cluster: postgres.Cluster, site: Site) -> AsyncIterator[Old]:
    """As its release left it, with the rows of the site."""
    async with new_database(cluster, "template0") as url, connected(url) as connection:
        await connection.execute(RELEASED[request.param])
        columns = await _columns(connection)
        await _fill(connection, columns, site.rows)
        yield Old(url, request.param, connection, columns)


async def _fill(connection: db.Connection, columns: dict[str, list[str]], rows: Rows) -> None:
    # Rows come in no order that foreign keys would like.
    await connection.execute("SET session_replication_role = replica")
    for table, names in columns.items():
        if table == "schema_version":
            continue
        records = [tuple(row[name] for name in names) for row in rows[table]]
        await connection.copy_records_to_table(table, records=records, columns=names)
    used = " UNION ".join(f"SELECT key_id FROM {table}" for table, names in columns.items() if "key_id" in names)
    await connection.execute(f"DELETE FROM private_keys WHERE id NOT IN ({used})")
    await connection.execute("SET session_replication_role = origin")
    for table in columns:
        assert await connection.fetchval(f"SELECT count(*) FROM {table}"), table


async def _contents(old: Old) -> dict[str, list[str]]:
    """Every row of every table that its release had, without later columns and rows of versions."""
    found = {}
    for table, names in old.columns.items():
        if table != "schema_version":
            sql = f"SELECT to_jsonb(r)::text AS row FROM (SELECT {_list(names)} FROM {table}) r ORDER BY 1"
            found[table] = [row["row"] for row in await old.connection.fetch(sql)]
    return found


async def test_every_row_stays_and_every_answer_is_the_same(old: Old, site: Site) -> None:
    """After the upgrade every row is there, every key opens, and the API answers as the earlier release did."""
    before = await _contents(old)
    assert await schema.migrate(old.url) == later(old.released)
    assert await _contents(old) == before
    settings = msgspec.structs.replace(site.settings, database_url=old.url)
    await first_start.prepare(settings)
    database, ring = db.Database(old.url, 1), ringfile.load(settings.keyring)
    for row in await database.fetch("SELECT account_id, id, spki_sha256 FROM private_keys"):
        await keyring.open_key(database, ring, keyring.SYSTEM, (row["account_id"], row["id"], row["spki_sha256"]))
    await database.close()
    app = main.create_app(settings)
    async with _lifespan(app), judged_client(app, [], settings.public_url) as http:
        for table, told in site.told.items():
            if table in old.columns:
                assert await _ask(http, site.tenant.bearer, list(told)) == told
        again = {**site.tenant.bearer, "Idempotency-Key": "once"}
        repeated = await http.post(site.tenant.account_path, json=BODY, headers=again)
        assert (repeated.status_code, repeated.json()["result"]) == (201, site.repeat.json()["result"])
        if "access_tokens" in old.columns:
            await _ask(http, site.access, list(site.told["certificate_authorities"]))
        made = await http.post(site.tenant.account_path, json=BODY, headers=site.tenant.bearer)
        assert made.status_code == 201


async def test_a_database_with_rows_ends_in_the_same_catalogue(old: Old, database_url: str) -> None:
    """Rows change nothing: also how tables are stored is as in a new database, and there is no code in either."""
    await schema.migrate(old.url)
    async with connected(database_url) as new:
        assert await catalogue(old.connection) == await catalogue(new)
        assert await old.connection.fetch(_STORAGE) == await new.fetch(_STORAGE)
        assert await old.connection.fetch(_CODE) == await new.fetch(_CODE) == []


async def test_what_the_earlier_release_writes_is_still_taken(old: Old) -> None:
    """After the upgrade an INSERT and an UPDATE that name no later column work in every table."""
    await schema.migrate(old.url)
    for table, names in old.columns.items():
        # A row is checked before its key is found taken, so every one there is stands for one that is new.
        columns = _list(names)
        await old.connection.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} ON CONFLICT DO NOTHING"
        )
        await old.connection.execute(f"UPDATE {table} SET ({columns}) = ROW ({columns})")


async def test_two_migrations_at_once_are_one(old: Old) -> None:
    """One of them waits for the other, finds nothing left to do, and both end well."""
    applied = await asyncio.gather(schema.migrate(old.url), schema.migrate(old.url))
    assert sorted(applied) == [[], later(old.released)]


@pytest.mark.serve
async def test_the_bundled_database_is_upgraded_by_the_start(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """With the PostgreSQL of its own, `keystead serve` brings an earlier schema up to date before it serves."""
    async with new_database(cluster, "template0") as url, connected(url) as connection:
        await connection.execute(RELEASED["schema_0008"])
        settings = Settings(data_dir=tmp_path, database_url=url, keyring=tmp_path / "keyring.json", embedded=True)
        await first_start.prepare(settings)
        assert await schema.state_at(url) is schema.SchemaState.CURRENT


async def test_requests_are_served_while_a_migration_waits(world: World) -> None:
    """A migration that waits for another one holds up no request, and goes on when the other has ended."""
    url = world.settings.database_url or ""
    async with connected(url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", schema._MIGRATION_LOCK)
        migrating = asyncio.create_task(schema.migrate(url))
        await comes_about(lambda: other.fetchval(_MIGRATION_WAITS))
        made = await world.create()
        await _ask(world.http, world.a.bearer, [f"{world.a.account_path}/{made['id']}"])
        assert not migrating.done()
    assert await migrating == []


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_migration_that_is_broken_off_changes_nothing(cluster: postgres.Cluster, how: str) -> None:
    """A statement that is cancelled, as by its time-out, or a connection that is cut is told in one sentence."""
    async with new_database(cluster, "template0") as url, connected(url) as connection:
        await connection.execute(RELEASED["schema_0008"])
        async with connection.transaction():
            await connection.execute("LOCK TABLE zones IN ACCESS SHARE MODE")
            migrating = asyncio.create_task(schema.migrate(url))
            await comes_about(lambda: connection.fetchval(_MIGRATION_WAITS))
            await connection.execute(f"SELECT {how}(pid) FROM ({_MIGRATION_WAITS}) AS waiting")
            with pytest.raises(Unavailable):
                await migrating
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == 8
        assert await schema.migrate(url) == later("schema_0008")


async def test_a_step_that_fails_is_named(cluster: postgres.Cluster) -> None:
    """The steps before it stay, and the sentence does not say that nothing was changed."""
    async with new_database(cluster, "template0") as url, connected(url) as connection:
        await connection.execute(RELEASED["schema_0008"])
        await connection.execute("CREATE TABLE csr_counts (mine integer)")
        with pytest.raises(Misconfigured, match=r"0010_counts\.sql") as refused:
            await schema.migrate(url)
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == 9
        assert "nothing was changed" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "version", "said"),
    [
        ("serve", 9999, "run the newer release"),
        ("migrate", 9999, "run the newer release"),
        ("serve", 8, "from before release 0.1.0"),
        ("migrate", 8, "from before release 0.1.0"),
    ],
)
async def test_a_schema_of_another_release_is_refused(
    database_url: str, tmp_path: Path, command: str, version: int, said: str
) -> None:
    """The command ends with status 1 and one sentence that helps, and changes nothing."""
    settings = {"KEYSTEAD_DATABASE_URL": database_url, "KEYSTEAD_DATA_DIR": str(tmp_path)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KEYSTEAD_")}
    async with connected(database_url) as connection:
        await connection.execute("UPDATE schema_version SET version = $1", version)
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "keystead", command],
            capture_output=True,
            text=True,
            check=False,
            env={**inherited, **settings},
        )
        assert await connection.fetchval("SELECT max(version) FROM schema_version") == version
        assert await connection.fetchval("SELECT count(*) FROM keks") == 0
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert said in ran.stderr
