"""The queue in front of inserts: who starts at once, who goes together, and that nobody pays for another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import asyncpg
import msgspec
import pytest
from support.databases import connected
from support.waiting import comes_about

from keystead import bounds
from keystead.errors import Conflict, Unavailable
from keystead.store.bundles import Bundles, Row
from keystead.store.database import Connection, Database

_INSERT = "INSERT INTO numbers SELECT unnest($1::int[]) RETURNING n, txid_current() AS bundle"


class Table(msgspec.Struct):
    """A table of numbers, of which 13 is refused, and a lock that keeps its writers waiting."""

    db: Database
    url: str
    bundles: Bundles
    tries: list[list[object]]

    async def work(self, rows: Sequence[Row]) -> list[asyncpg.Record | None]:
        self.tries.append([n for (n,) in rows])
        made = {row["n"]: row for row in await self.db.fetch(_INSERT, [n for (n,) in rows])}
        return [made.get(n) for (n,) in rows]

    def put(self, n: int, key: str = "list") -> asyncio.Task[asyncpg.Record | None]:
        return asyncio.create_task(self.bundles.insert(key, (n,), self.work))

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncIterator[Connection]:
        async with connected(self.url) as holder, holder.transaction():
            await holder.execute("LOCK TABLE numbers IN ACCESS EXCLUSIVE MODE")
            yield holder

    async def tried(self, times: int) -> None:
        """Return once work was begun so many times."""
        await comes_about(lambda: len(self.tries) >= times)

    async def one_on_its_way(self) -> list[asyncio.Task[asyncpg.Record | None]]:
        tasks = [self.put(1)]
        await self.tried(1)
        return tasks

    async def numbers(self) -> set[int]:
        return {row["n"] for row in await self.db.fetch("SELECT n FROM numbers")}


@pytest.fixture
async def table(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Table]:
    for name in ("LOCK_SECONDS", "STATEMENT_SECONDS", "WAIT_SECONDS"):
        monkeypatch.setattr(bounds, name, 60.0)
    database = Database(database_url, 8)
    await database.execute("CREATE TABLE numbers (n int PRIMARY KEY CHECK (n <> 13))")
    yield Table(database, database_url, Bundles(), [])
    await database.execute("DROP TABLE numbers")
    await database.close()


async def on_their_way(connection: Connection, gone: int = 0) -> list[int]:
    """The processes that wait for the lock."""
    sql = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> $1"
    )
    pids: list[int] = []

    async def some() -> bool:
        # A transaction would see the sessions of its first look again.
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        pids[:] = [row["pid"] for row in await connection.fetch(sql, gone)]
        return bool(pids)

    await comes_about(some)
    return pids


async def test_who_comes_alone_waits_for_nobody(table: Table) -> None:
    """A row is inserted at once and by itself while no other of its list is on its way."""
    async with table.locked():
        tasks = await table.one_on_its_way()
        assert table.tries == [[1]]
    assert [row and row["n"] for row in await asyncio.gather(*tasks)] == [1]
    assert not table.bundles._queues


async def test_who_comes_while_one_is_on_its_way_goes_with_others(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that wait go together, in the order in which they came and as many as a bundle takes."""
    monkeypatch.setattr(bounds, "BUNDLE", 4)
    async with table.locked():
        tasks = [*await table.one_on_its_way(), *(table.put(n) for n in range(2, 9))]
        await asyncio.sleep(0)
        assert table.bundles.waiting == 7
    rows = await asyncio.gather(*tasks)
    assert table.tries == [[1], [2, 3, 4, 5], [6, 7, 8]]
    assert len({row["bundle"] for row in rows if row}) == 3
    assert table.bundles.waiting == 0
    assert not table.bundles._queues


async def test_lists_do_not_wait_for_each_other(table: Table) -> None:
    """While the transaction of one list is held up, a row of another one starts at once, and alone."""
    async with table.locked():
        tasks = [*await table.one_on_its_way(), table.put(2), table.put(3, "another")]
        await table.tried(2)
        assert table.tries[1] == [3]
    await asyncio.gather(*tasks)


async def test_what_fails_harms_no_neighbour(table: Table) -> None:
    """A row that the database refuses is refused alone: the others of its bundle are inserted, each by itself."""
    async with table.locked():
        tasks = [*await table.one_on_its_way(), *(table.put(n) for n in (12, 13, 14))]
        await asyncio.sleep(0)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[2], asyncpg.CheckViolationError)
    assert not any(isinstance(each, BaseException) for each in found[:2] + found[3:])
    assert table.tries[1] == [12, 13, 14]
    assert sorted(table.tries[2:], key=str) == [[12], [13], [14]]
    assert await table.numbers() == {1, 12, 14}


async def test_in_doubt_is_told_to_each(table: Table) -> None:
    """When the connection is lost under a bundle, each of its rows is in doubt, and none is tried again."""
    async with table.locked() as holder:
        tasks = [*await table.one_on_its_way(), *(table.put(n) for n in (3, 4, 5))]
        await asyncio.sleep(0)
        [first] = await on_their_way(holder)
        await holder.execute("SELECT pg_terminate_backend($1)", first)
        await table.tried(2)
        [second] = await on_their_way(holder, gone=first)
        await holder.execute("SELECT pg_terminate_backend($1)", second)
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, Unavailable) and each.in_doubt for each in found)
    assert len({id(each) for each in found}) == 4
    assert table.tries == [[1], [3, 4, 5]]
    assert await table.numbers() == set()


async def test_who_gives_up_while_it_waits_is_not_inserted(table: Table) -> None:
    """A request that is cancelled in the queue leaves it, and its neighbours go on."""
    async with table.locked():
        tasks = [*await table.one_on_its_way(), *(table.put(n) for n in (3, 4, 5))]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        assert table.bundles.waiting == 2
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await table.numbers() == {1, 3, 5}


@pytest.mark.parametrize("gone", [3, 4, 5])
async def test_who_gives_up_on_the_way_does_not_take_the_others_along(table: Table, gone: int) -> None:
    """A request that is cancelled while its bundle is being inserted leaves the bundle as it is."""
    async with table.locked() as holder:
        tasks = dict(zip((1, 3, 4, 5), (*await table.one_on_its_way(), *map(table.put, (3, 4, 5))), strict=True))
        await asyncio.sleep(0)
        [first] = await on_their_way(holder)
        await holder.execute("SELECT pg_cancel_backend($1)", first)
        await table.tried(2)
        tasks[gone].cancel()
        await asyncio.wait([tasks[gone]])
    found = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
    assert isinstance(found[gone], asyncio.CancelledError)
    assert {n for n, each in found.items() if isinstance(each, asyncpg.Record)} == {3, 4, 5} - {gone}
    assert await table.numbers() == {3, 4, 5}


async def test_waiting_is_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than so many rows are not taken, and who has waited too long is told to come back."""
    monkeypatch.setattr(bounds, "WAITING", 2)
    async with table.locked():
        tasks = await table.one_on_its_way()
        monkeypatch.setattr(bounds, "WAIT_SECONDS", 0.05)
        late = [table.put(3), table.put(4)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too many"):
            await table.put(5)
        for task in late:
            with pytest.raises(Unavailable, match="too long"):
                await task
        assert table.bundles.waiting == 0
    await asyncio.gather(*tasks)
    assert await table.numbers() == {1}


async def test_a_database_is_closed_after_the_bundles_on_their_way(table: Table) -> None:
    """Closing waits for what is being inserted, and all that waited is inserted too."""
    again = Database(table.url, 8)

    async def work(rows: Sequence[Row]) -> list[asyncpg.Record | None]:
        table.tries.append([n for (n,) in rows])
        return [*await again.fetch(_INSERT, [n for (n,) in rows])]

    async with table.locked():
        tasks = [asyncio.create_task(again.insert_bundled("list", (n,), work)) for n in (1, 2, 3)]
        await table.tried(1)
        closing = asyncio.create_task(again.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
    await closing
    assert all(task.done() for task in tasks)
    assert await table.numbers() == {1, 2, 3}


async def test_rows_that_wait_count_at_the_door(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database has no room for another request while too many rows wait in front of its connections."""
    monkeypatch.setattr(bounds, "FEW_WAITING", 1)
    monkeypatch.setattr(bounds, "WAITING", 2)

    async def conflict(rows: Sequence[Row]) -> list[asyncpg.Record | None]:
        await table.db.fetch("SELECT n FROM numbers")
        raise Conflict("always")

    async with table.locked():
        tasks = []
        for n in range(3):
            tasks.append(asyncio.create_task(table.db.insert_bundled("list", (n,), conflict)))
            await asyncio.sleep(0.01)
        assert not table.db.has_room()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in found} == {Conflict}
    assert table.db.has_room()
