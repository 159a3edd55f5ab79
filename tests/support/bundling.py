"""Requests that wait for the one before them, and so share a transaction; and what holds them up on purpose."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from support.databases import connected
from support.waiting import comes_about
from support.world import World

from keystead import bounds
from keystead.server import postgres
from keystead.store.database import Connection

Asked = Coroutine[Any, Any, httpx.Response]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is held up on purpose runs into a time limit on a slow machine."""
    for name in ("LOCK_SECONDS", "STATEMENT_SECONDS", "WAIT_SECONDS", "OLDEST_SECONDS"):
        monkeypatch.setattr(bounds, name, 60.0)


class Bundle:
    """Requests that wait for the one before them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    async def add(self, work: Asked) -> None:
        """Return when the request waits."""
        before = self._waiting()
        self.tasks.append(asyncio.create_task(work))
        await comes_about(lambda: self._waiting() > before)

    def _waiting(self) -> int:
        return self.world.state.services.db._bundles.waiting

    async def answers(self) -> list[httpx.Response]:
        return await asyncio.gather(*self.tasks)


async def on_their_way(connection: Connection) -> list[int]:
    """The processes that wait for a lock."""
    sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    pids: list[int] = []

    async def some() -> bool:
        # A transaction would see the sessions of its first look again.
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        pids[:] = [row["pid"] for row in await connection.fetch(sql)]
        return bool(pids)

    await comes_about(some)
    return pids


@contextlib.asynccontextmanager
async def bundle_behind(world: World, before: Asked, sql: str, *values: object) -> AsyncIterator[Bundle]:
    """Hold up a request by the locks of a statement, so that what is added meanwhile goes on together at the end."""
    async with connected(world.settings.database_url) as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(sql, *values)
        made = Bundle(world)
        first = asyncio.create_task(before)
        await on_their_way(holder)
        yield made
        await transaction.rollback()
        assert (await first).is_success


async def killed_three_times(cluster: postgres.Cluster, ask: Callable[[str], Asked]) -> dict[str, httpx.Response]:
    """What sixteen clients are answered while PostgreSQL is killed, by the names that they gave."""
    answers: dict[str, httpx.Response] = {}
    enough = asyncio.Event()

    async def client(number: int) -> None:
        turn = 0
        while not enough.is_set():
            turn += 1
            name = f"n{number}-{turn}.example.com"
            answers[name] = await ask(name)
            if answers[name].status_code == 503:
                await asyncio.sleep(0.05)

    def good(count: int) -> bool:
        return sum(answer.is_success for answer in answers.values()) >= count

    clients = [asyncio.create_task(client(number)) for number in range(16)]
    for times in range(1, 4):
        await comes_about(partial(good, times * 60))
        connection: Connection = await asyncpg.connect(cluster.dsn)
        postmaster = Path(await connection.fetchval("SHOW data_directory")) / "postmaster.pid"
        await connection.close()
        os.kill(int(postmaster.read_text().split()[0]), signal.SIGKILL)
        await comes_about(lambda: not cluster.alive())
        await asyncio.to_thread(cluster.ensure)
    enough.set()
    await asyncio.gather(*clients)
    return answers
