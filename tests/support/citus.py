"""A Citus cluster that stands somewhere, and databases in it that are spread over its nodes."""

import contextlib
import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from support.databases import connected

from keystead.store import schema

# Addresses of superusers: of the coordinator first, and of the workers.
VARIABLE = "KEYSTEAD_TEST_CITUS_URLS"


# Read before the tests take all such variables away.
URLS = tuple(os.environ.get(VARIABLE, "").split())
_MISSING = f"{VARIABLE} names no coordinator and workers of a Citus cluster"
NEEDS_CLUSTER = pytest.mark.skipif(not URLS, reason=_MISSING)


def urls() -> tuple[str, ...]:
    """The addresses, or the test is skipped."""
    if not URLS:
        pytest.skip(_MISSING)
    return URLS


def at(url: str, database: str) -> str:
    """The address on this node of the database that another address, or its name, names."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{urlsplit(database).path.strip('/')}"))


async def make_role(name: str) -> None:
    """A role that may log in, on each node."""
    for url in urls():
        with contextlib.suppress(asyncpg.DuplicateObjectError):
            await _run(url, f"CREATE ROLE {name} LOGIN")


@contextlib.asynccontextmanager
async def blank() -> AsyncIterator[str]:
    """A database with Citus on each node, and nothing in it."""
    name, nodes = f"t_{uuid4().hex}", urls()
    try:
        for url in nodes:
            # Each node's is made here, whatever its release would do with the statement.
            await _run(url, f"CREATE DATABASE {name}", apart=True)
            await _run(at(url, name), "CREATE EXTENSION citus")
        coordinator, *workers = (urlsplit(url) for url in nodes)
        calls = [f"citus_set_coordinator_host('{coordinator.hostname}', {coordinator.port})"]
        calls += [f"citus_add_node('{each.hostname}', {each.port})" for each in workers]
        for call in calls:
            await _run(at(nodes[0], name), f"SELECT {call}")
        yield at(nodes[0], name)
    finally:
        for url in nodes:
            await _run(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", apart=True)


async def _run(url: str, sql: str, *, apart: bool = False) -> None:
    async with connected(url) as connection:
        if apart:
            await connection.execute("SELECT set_config('citus.enable_create_database_propagation', 'off', false)")
        await connection.execute(sql)


@contextlib.asynccontextmanager
async def spread() -> AsyncIterator[str]:
    """A database whose tables are distributed, without rows."""
    async with blank() as url:
        await schema.distribute(url, with_rows=False)
        yield url
