"""The database layer: the schema's version, held connections, and what it does when a call is given up."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from support.databases import new_database
from support.pki import Pki
from support.waiting import SECONDS
from support.world import BODY, World

from keystead import bounds
from keystead.config import Settings
from keystead.errors import Conflict, Misconfigured, Unavailable
from keystead.identity import accounts, zones
from keystead.server import first_start, postgres
from keystead.store import database as db
from keystead.store import schema


async def test_an_empty_database_is_brought_to_this_release_once(cluster: postgres.Cluster) -> None:
    """Migrating applies schema.sql, a second time nothing, and two at once do not disturb each other."""
    async with new_database(cluster, "template0") as url:
        assert await schema.state_at(url) is schema.SchemaState.EMPTY
        applied = await asyncio.gather(schema.migrate(url), schema.migrate(url))
        assert sorted(applied) == [[], ["schema.sql"]]
        assert await schema.state_at(url) is schema.SchemaState.CURRENT
        assert await schema.migrate(url) == []


async def test_a_newer_schema_is_refused_and_an_older_one_names_the_command(database_url: str) -> None:
    """The server starts on its own schema only, and says which command or release helps."""
    database = db.Database(database_url, 1)
    await schema.require_current(database)
    await database.execute("INSERT INTO schema_version (version) VALUES (9999)")
    with pytest.raises(Misconfigured, match="newer than this release"):
        await schema.require_current(database)
    with pytest.raises(Misconfigured, match="schema version 9999"):
        await schema.migrate(database_url)
    await database.close()


async def test_an_older_schema_of_somebodys_own_database_is_not_touched(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a database of the operator's own, serve names `keystead migrate` and changes nothing."""
    newer = schema.version_of_this_program() + 1
    monkeypatch.setattr(schema, "version_of_this_program", lambda: newer)
    settings = Settings(data_dir=tmp_path, database_url=database_url, keyring=tmp_path / "keyring.json")
    with pytest.raises(Misconfigured, match="run `keystead migrate` first"):
        await first_start.prepare(settings)
    assert not settings.keyring.exists()


async def test_the_first_start_makes_what_is_missing_once(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """An empty database gets schema, ring, account, zone, user and token; a second start changes nothing."""
    async with new_database(cluster, "template0") as url:
        settings = Settings(data_dir=tmp_path, database_url=url, keyring=tmp_path / "keyring.json")
        banner = await first_start.prepare(settings)
        path = tmp_path / "credentials.env"
        assert path.stat().st_mode & 0o777 == 0o600
        assert str(path) in banner
        assert str(settings.keyring) in banner
        first = (path.read_text(), settings.keyring.read_bytes())
        assert all(line.split("=", 1)[1] not in banner for line in first[0].splitlines() if "TOKEN=" in line)
        await first_start.prepare(settings)
        assert (path.read_text(), settings.keyring.read_bytes()) == first
        database = db.Database(url, 1)
        counts = await database.fetchrow(
            "SELECT (SELECT count(*) FROM accounts) AS accounts, (SELECT count(*) FROM zones) AS zones, "
            "(SELECT count(*) FROM users) AS users, (SELECT count(*) FROM tokens) AS tokens, "
            "(SELECT count(*) FROM peppers) AS peppers"
        )
        assert counts
        assert set(counts.values()) == {1}
        await database.close()


async def test_a_first_start_that_was_killed_is_finished_by_the_next(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """With our own database, a start that ended before credentials.env was written is made up for."""
    async with new_database(cluster, "template0") as url:
        settings = Settings(data_dir=tmp_path, database_url=url, keyring=tmp_path / "keyring.json", embedded=True)
        await first_start.prepare(settings)
        (tmp_path / "credentials.env").unlink()
        await first_start.prepare(settings)
        assert "CLOUDFLARE_API_TOKEN=kst_" in (tmp_path / "credentials.env").read_text()


async def test_a_lost_ring_is_never_replaced_by_a_new_one(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Where something is sealed, a missing ring stops the start, and no new one is made."""
    async with new_database(cluster, "template0") as url:
        settings = Settings(data_dir=tmp_path, database_url=url, keyring=tmp_path / "keyring.json")
        await first_start.prepare(settings)
        kept = settings.keyring.rename(tmp_path / "kept.json")
        with pytest.raises(Misconfigured, match="restore it from your backup"):
            await first_start.prepare(settings)
        assert not settings.keyring.exists()
        kept.rename(settings.keyring)
        await first_start.prepare(settings)


async def test_a_database_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    """A wrong address stops the start without a traceback, and without the password."""
    settings = Settings(
        data_dir=tmp_path,
        database_url="postgresql://u:hunter2@127.0.0.1:1/none",
        keyring=tmp_path / "keyring.json",
    )
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        await first_start.prepare(settings)
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_lets_nobody_in_is_unavailable(cluster: postgres.Cluster) -> None:
    """While an operator has shut it for repairs, a call fails as when it is down; afterwards it works."""
    async with new_database(cluster) as url:
        name = url.rpartition("/")[2].partition("?")[0]
        database, operator = db.Database(url, 1), await asyncpg.connect(cluster.dsn)
        try:
            await operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            with pytest.raises(Unavailable):
                await database.fetchrow("SELECT 1")
            await operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            assert await database.fetchrow("SELECT 1")
        finally:
            await operator.close()
            await database.close()


async def test_a_database_of_another_program_is_not_touched(cluster: postgres.Cluster) -> None:
    """Tables that are not ours stop the start with a sentence, and nothing is added to them."""
    async with new_database(cluster, "template0") as url:
        database = db.Database(url, 1)
        await database.execute("CREATE TABLE users (id int)")
        with pytest.raises(Misconfigured, match="not Keystead's"):
            await schema.migrate(url)
        tables = await database.fetch(
            "SELECT FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        assert len(tables) == 1
        await database.close()


@pytest.mark.parametrize("password", ["se/cret", "se#cret", "se?cret"])
async def test_an_address_that_cannot_be_read_is_not_quoted(password: str) -> None:
    """A password that is not percent-encoded makes the address unreadable, and is not repeated in part."""
    url = f"postgresql://u:{password}@127.0.0.1/db"
    with pytest.raises(Misconfigured, match="percent-encoded") as caught:
        await schema.migrate(url)
    assert "se" not in str(caught.value).replace("KEYSTEAD_DATABASE_URL", "").replace("password", "").split()
    with pytest.raises(Misconfigured, match="percent-encoded"):
        await db.Database(url, 1).fetchrow("SELECT 1")


async def test_a_half_made_first_account_is_finished(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """On a database of the operator's own too, a start that was killed before the token is made up for."""
    async with new_database(cluster, "template0") as url:
        await schema.migrate(url)
        database = db.Database(url, 1)
        await accounts.create_account(database, first_start.operator(), "default", "Default")
        settings = Settings(data_dir=tmp_path, database_url=url, keyring=tmp_path / "keyring.json")
        await first_start.prepare(settings)
        assert "CLOUDFLARE_API_TOKEN=kst_" in (tmp_path / "credentials.env").read_text()
        assert len(await zones.list_(database)) == 1
        await database.close()


async def test_a_cancelled_call_gives_its_connection_back_usable(database_url: str) -> None:
    """A request that is given up in mid-query costs its connection, not the next request's answer."""
    database = db.Database(database_url, 1)
    for _ in range(5):
        slow = asyncio.create_task(database.fetchrow("SELECT pg_sleep(30), 'slow' AS answer"))
        # At some moment of the query.
        await asyncio.sleep(0.05)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        row = await asyncio.wait_for(database.fetchrow("SELECT 'quick' AS answer"), SECONDS)
        assert row
        assert row["answer"] == "quick"
    await database.close()


async def test_a_statement_that_hangs_is_unavailable(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement runs longer than its bound; the caller is told to come back."""
    monkeypatch.setattr(bounds, "STATEMENT_SECONDS", 0.2)
    database = db.Database(database_url, 1)
    with pytest.raises(Unavailable):
        await database.fetchrow("SELECT pg_sleep(30)")
    monkeypatch.undo()
    assert await database.fetchrow("SELECT 1")
    await database.close()


async def test_waiting_for_a_connection_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all connections busy, whoever waits too long is told to come back."""
    monkeypatch.setattr(bounds, "WAIT_SECONDS", 0.1)
    database = db.Database(database_url, 1)
    async with database.connection():
        with pytest.raises(Unavailable, match="busy"):
            await database.fetchrow("SELECT 1")
    monkeypatch.undo()
    assert await database.fetchrow("SELECT 1")
    await database.close()


async def test_who_gives_up_just_as_a_connection_comes_passes_it_on(database_url: str) -> None:
    """A request that is cancelled after it was given a connection, and before it could use it, keeps none."""
    database = db.Database(database_url, 1)
    async with database.connection():
        waiting = asyncio.create_task(database.fetchrow("SELECT 1"))
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert database.in_use == 0
    assert await asyncio.wait_for(database.fetchrow("SELECT 1"), SECONDS)
    await database.close()


async def test_a_deadlock_is_repeated_and_succeeds(database_url: str) -> None:
    """Two transactions that lock crosswise both end well: the one that PostgreSQL chose runs again."""
    database = db.Database(database_url, 2)
    await database.execute("CREATE TABLE pair (id int PRIMARY KEY, n int NOT NULL)")
    await database.execute("INSERT INTO pair VALUES (1, 0), (2, 0)")
    runs: list[int] = []
    meet = asyncio.Barrier(2)

    async def work(order: tuple[int, int]) -> None:
        async def inside(connection: db.Connection) -> None:
            runs.append(order[0])
            await connection.execute("UPDATE pair SET n = n + 1 WHERE id = $1", order[0])
            if len(runs) <= 2:
                await meet.wait()
            await connection.execute("UPDATE pair SET n = n + 1 WHERE id = $1", order[1])

        await database.transaction(inside)

    await asyncio.gather(work((1, 2)), work((2, 1)))
    # One more than the two, or several: who runs again may meet the other once more.
    assert len(runs) >= 3
    row = await database.fetchrow("SELECT sum(n) AS n FROM pair")
    assert row
    assert row["n"] == 4
    await database.execute("DROP TABLE pair")
    await database.close()


# The connection ends as a row of the audit log is written, or as the transaction commits.
LOST = """
CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON audit_log INITIALLY {} FOR EACH ROW EXECUTE FUNCTION lose()
"""


@pytest.mark.parametrize(("when", "zone_is_in_doubt"), [("IMMEDIATE", False), ("DEFERRED", True)])
async def test_what_was_lost_as_it_was_written_is_in_doubt(world: World, when: str, zone_is_in_doubt: bool) -> None:
    """A single statement, and a transaction that was committing, may have been made; who only reads is in no doubt."""
    tenant, ca_id = world.a, await Pki(world.http, world.a.account.slug, world.a.bearer).root()
    await world.database.execute(LOST.format(when))
    paths = {
        ("POST", tenant.account_path): True,
        ("PATCH", f"/client/v4/zones/{tenant.zone.id.hex}"): zone_is_in_doubt,
        ("GET", f"/api/v1/pki/ca/{ca_id}"): False,
    }
    for (method, path), in_doubt in paths.items():
        body = None if method == "GET" else {**BODY, "paused": True}
        answer = await world.http.request(method, path, json=body, headers=tenant.bearer)
        assert answer.status_code == 503, path
        assert ("not known whether" in answer.text) is in_doubt, path
    await world.database.execute("DROP FUNCTION lose CASCADE")


async def test_a_conflict_that_the_database_decides_is_told_in_words(database_url: str) -> None:
    """A named constraint becomes a Conflict; one that we do not know stays an error of ours."""
    database = db.Database(database_url, 1)
    operator = first_start.operator()
    await accounts.create_account(database, operator, "twice", "Twice")
    with pytest.raises(Conflict, match="slug"):
        await accounts.create_account(database, operator, "twice", "Twice")
    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute("UPDATE accounts SET name_policy = 'x'")
    await database.close()


async def test_so_many_wait_and_no_more(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a request is told at once to come back, and whoever waits is served."""
    monkeypatch.setattr(bounds, "FEW_WAITING", 1)
    monkeypatch.setattr(bounds, "WAITING", 2)
    database = db.Database(database_url, 1)
    async with database.connection():
        waiting = [asyncio.create_task(database.fetchrow("SELECT 1 AS answer")) for _ in range(2)]
        await asyncio.sleep(0)
        assert not database.has_room()
        with pytest.raises(Unavailable, match="too many requests"):
            await database.fetchrow("SELECT 1")
    assert [row["answer"] for row in await asyncio.gather(*waiting) if row] == [1, 1]
    assert database.has_room()
    assert database.in_use == 0
    await database.close()
