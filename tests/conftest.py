"""Fixtures: one PostgreSQL for the run, a database for each test, a world of two tenants in it, and a live server."""

import asyncio
import contextlib
import fcntl
import functools
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from httpx._transports import default
from support import fuzzing
from support.databases import Kept, connected, new_database
from support.live import live
from support.released import made_up
from support.world import World, new_world

from keystead.server import postgres, worker
from keystead.store import schema
from keystead.x509 import chains

# Its profile of Hypothesis is for all tests.
__all__ = ["fuzzing", "live", "made_up"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[postgres.Cluster]:
    """One PostgreSQL for all processes of the run, with a template that has the schema; a crash would lose its data."""
    fast = ("fsync", "full_page_writes", "synchronous_commit", "autovacuum")
    with _running(_shared(tmp_path_factory, worker_id) / "cluster", off=fast) as running:
        yield running


@pytest.fixture(scope="session")
def durable_cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[postgres.Cluster]:
    """Another with the settings that users get, for tests of what these promise."""
    with _running(_shared(tmp_path_factory, worker_id) / "durable") as running:
        yield running


def _shared(factory: pytest.TempPathFactory, worker_id: str) -> Path:
    base = factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@contextlib.contextmanager
def _running(folder: Path, off: tuple[str, ...] = ()) -> Iterator[postgres.Cluster]:
    with postgres.running(folder) as running:
        with (folder / "template.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A loop of its own, because the session's loop is not this fixture's.
            pool.submit(asyncio.run, _make_template(running, off)).result()
        yield running


async def _make_template(running: postgres.Cluster, off: tuple[str, ...]) -> None:
    async with connected(running.dsn) as admin:
        if await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = 'blank'") is None:
            for setting in off:
                await admin.execute(f"ALTER SYSTEM SET {setting} = off")
            await admin.execute("SELECT pg_reload_conf()")
            await admin.execute("CREATE DATABASE blank_draft")
            await schema.migrate(running.address("blank_draft"))
            await admin.execute("ALTER DATABASE blank_draft RENAME TO blank")


@pytest.fixture
async def database_url(cluster: postgres.Cluster) -> AsyncIterator[str]:
    """A database of this test's own, with the schema and nothing in it."""
    async with new_database(cluster) as url:
        yield url


@pytest.fixture
async def empty_database(cluster: postgres.Cluster) -> AsyncIterator[str]:
    """One without even the schema."""
    async with new_database(cluster, "template0") as url:
        yield url


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Two tenants behind one application, on a database of this test's own."""
    async with new_world(database_url, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
async def shared_world(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One world for all tests of a file that only read, or that make what they look at."""
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def _trust_stores_are_read_once() -> Iterator[None]:
    """They take most of the start of an application, or of a client, and each process starts hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "read_anchors", functools.cache(chains.read_anchors))
        patch.setattr(default, "create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def _connections_are_kept() -> Iterator[None]:
    """For the next application on the same database; a new backend costs more than most tests ask of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Database", Kept)
        yield


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_developer_stay_out() -> None:
    for name in list(os.environ):
        if name.startswith(("KEYSTEAD_", "CLOUDFLARE_")):
            del os.environ[name]
