"""CSRs that are made together, in one transaction: what each of them is told, and what of it is there afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
from support.bundling import Asked, Bundle, bundle_behind, killed_three_times, on_their_way, patient
from support.databases import connected
from support.world import BODY, World, new_world

from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.server import postgres
from keystead.store import schema

pytestmark = pytest.mark.usefixtures("patient")
__all__ = ["patient"]


def post(world: World, name: str, key: str | None = None) -> Asked:
    headers = {**world.a.bearer, **({"Idempotency-Key": key} if key else {})}
    return world.http.post(world.a.account_path, json={**BODY, "name": name}, headers=headers)


def told(answer: httpx.Response) -> tuple[int, int]:
    errors = answer.json()["errors"]
    return answer.status_code, errors[0]["code"] if errors else 0


@contextlib.asynccontextmanager
async def bundle(world: World) -> AsyncIterator[Bundle]:
    """Hold up a create, so that what is added meanwhile is one bundle, which starts at the end."""
    sql = "SELECT FROM accounts WHERE id = $1 FOR UPDATE"
    async with bundle_behind(world, post(world, "before"), sql, world.a.account.id) as made:
        yield made


async def rows(world: World, name: str) -> list[asyncpg.Record]:
    sql = "SELECT id, created_at, xmin::text AS bundle FROM custom_csrs WHERE starts_with(name, $1)"
    return await world.database.fetch(sql, name)


async def nothing_is_odd(world: World, csrs: int) -> None:
    """So many CSRs, each with its key, an entry in the audit log and its place in the count."""
    [row] = await world.database.fetch(
        """
        SELECT (SELECT count(*) FROM custom_csrs) AS csrs, (SELECT count(*) FROM private_keys) AS keys,
            (SELECT count(*) FROM custom_csrs c JOIN private_keys k USING (account_id) WHERE k.id = c.key_id) AS pairs,
            (SELECT count(*) FROM audit_log JOIN custom_csrs c ON c.id = resource_id WHERE action = 'create') AS log,
            (SELECT coalesce(sum(count), 0)::bigint FROM csr_counts) AS counted
        """
    )
    assert set(row.values()) == {csrs}


async def test_creates_that_come_together_are_one_transaction(world: World) -> None:
    """Each is answered with its own CSR, as GET shows it afterwards, and audited with its own request."""
    async with bundle(world) as made:
        for number in range(5):
            await made.add(post(world, f"x {number}"))
    answers = await made.answers()
    assert [told(answer) for answer in answers] == [(201, 0)] * 5
    assert len({row["bundle"] for row in await rows(world, "x")}) == 1
    for number, answer in enumerate(answers):
        result = answer.json()["result"]
        assert result["name"] == f"x {number}"
        shown = await world.http.get(f"{world.a.account_path}/{result['id']}", headers=world.a.bearer)
        assert shown.json()["result"] == result
        [entry] = await world.database.fetch("SELECT * FROM audit_log WHERE resource_id = $1", UUID(result["id"]))
        assert (entry["request_id"], entry["status"]) == (answer.headers["x-request-id"], 201)
    await nothing_is_odd(world, 6)


async def test_one_idempotency_key_twice_in_a_bundle_is_one_csr(world: World) -> None:
    """Of equal requests one makes the CSR and all are answered with it; another body with the key is 409/1456."""
    async with bundle(world) as made:
        for name, key in (("x", "one"), ("y", "two"), ("x", "one"), ("z", "one")):
            await made.add(post(world, name, key))
        await made.add(post(world, "x", "one"))
    answers = await made.answers()
    of_one = [answers[0], answers[2], answers[4]]
    outcomes = {told(answer) for answer in of_one}
    # Which of the two bodies comes first is not said; the other one is the conflict.
    assert (outcomes, told(answers[3])) in [({(201, 0)}, (409, 1456)), ({(409, 1456)}, (201, 0))]
    assert told(answers[1]) == (201, 0)
    assert len({answer.json()["result"]["id"] for answer in of_one if answer.status_code == 201}) <= 1
    await nothing_is_odd(world, 3)


async def test_the_quota_is_reached_inside_a_bundle(world: World) -> None:
    """Of five with room for two, two are made and three are told so, and a repeat needs no room."""
    await world.database.execute("UPDATE accounts SET csr_quota = 3 WHERE id = $1", world.a.account.id)
    async with bundle(world) as made:
        for number in range(5):
            await made.add(post(world, f"x {number}", f"key {number}"))
    answers = await made.answers()
    assert sorted(told(answer) for answer in answers) == [(201, 0)] * 2 + [(403, 1403)] * 3
    good = next(number for number, answer in enumerate(answers) if answer.status_code == 201)
    assert (await post(world, f"x {good}", f"key {good}")).json() == answers[good].json()
    await nothing_is_odd(world, 3)


async def test_a_bundle_within_the_quota_is_one_transaction(world: World) -> None:
    """A quota with room for all costs no bundle."""
    await world.database.execute("UPDATE accounts SET csr_quota = 4 WHERE id = $1", world.a.account.id)
    async with bundle(world) as made:
        for number in range(3):
            await made.add(post(world, f"x {number}"))
    assert [told(answer) for answer in await made.answers()] == [(201, 0)] * 3
    assert len({row["bundle"] for row in await rows(world, "x")}) == 1


async def test_a_kek_that_was_retired_in_between_refuses_what_it_sealed(world: World) -> None:
    """Of a bundle sealed under the old and the new KEK, the first part is 503 and the second is made."""
    path = world.settings.keyring
    old = ringfile.read(path).keks[0].id
    async with bundle(world) as made:
        for number in range(2):
            await made.add(post(world, f"old {number}"))
        ringfile.add(path)
        ringfile.promote(path)
        await keyring.register(world.database, ringfile.load(path))
        for number in range(2):
            await made.add(post(world, f"new {number}"))
        await world.database.execute("UPDATE keks SET retired_at = now() WHERE id = $1", old)
    assert [told(answer) for answer in await made.answers()] == [(503, 1501)] * 2 + [(201, 0)] * 2
    assert len(await rows(world, "new")) == 2
    await nothing_is_odd(world, 3)


async def test_a_connection_that_is_lost_puts_each_of_a_bundle_in_doubt(world: World) -> None:
    """Each is told that it is not known whether its CSR was made, and a repeat with its key makes the only one."""
    await post(world, "x 0", "key 0")
    await world.database.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    async with connected(world.settings.database_url) as other:
        # The bundle waits for the old claim of its first request.
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM idempotency_keys FOR UPDATE")
        async with bundle(world) as made:
            for number in range(3):
                await made.add(post(world, f"x {number}", f"key {number}"))
        [pid] = await on_their_way(other)
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        answers = await made.answers()
        await transaction.rollback()
    assert [told(answer) for answer in answers] == [(503, 1501)] * 3
    assert all("not known whether" in answer.text for answer in answers)
    await nothing_is_odd(world, 2)
    for number in range(3):
        again = [await post(world, f"x {number}", f"key {number}") for _ in range(2)]
        assert {told(answer) for answer in again} == {(201, 0)}
    await nothing_is_odd(world, 5)


async def test_what_the_database_refuses_harms_no_neighbour(world: World) -> None:
    """Of three CSRs in a bundle the one that breaks a constraint fails, and its neighbours are made."""
    await world.database.execute("ALTER TABLE custom_csrs ADD CONSTRAINT odd CHECK (name <> 'x 1')")
    async with bundle(world) as made:
        for number in range(3):
            await made.add(post(world, f"x {number}"))
    assert [answer.status_code for answer in await made.answers()] == [201, 500, 201]
    await nothing_is_odd(world, 3)


async def test_a_zone_that_is_deleted_in_between_gets_none(world: World) -> None:
    """Creates that wait while their zone is deleted find it gone, each of them: 404/7003."""
    zone = world.a.zone.id
    async with connected(world.settings.database_url) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM zones WHERE id = $1 FOR UPDATE", zone)
            posts = (world.http.post(world.a.zone_path, json=BODY, headers=world.a.bearer) for _ in range(5))
            tasks = [asyncio.create_task(each) for each in posts]
            await on_their_way(holder)
            await holder.execute("UPDATE zones SET deleted_at = now() WHERE id = $1", zone)
        answers = await asyncio.gather(*tasks)
    assert {told(answer) for answer in answers} == {(404, 7003)}
    await nothing_is_odd(world, 0)


@pytest.mark.serve
async def test_nothing_acknowledged_is_lost_when_postgresql_is_killed(tmp_path: Path) -> None:
    """Killed three times under sixteen clients: all that got 201 is there, and nothing is that was told not to be."""
    with postgres.running(tmp_path / "cluster") as cluster:
        await schema.migrate(cluster.dsn)
        async with new_world(cluster.dsn, tmp_path) as world:
            answers = await killed_three_times(cluster, partial(post, world))
            there = {row["name"] for row in await world.database.fetch("SELECT name FROM custom_csrs")}
            for name, answer in answers.items():
                if answer.status_code == 201:
                    assert name in there
                else:
                    assert told(answer) == (503, 1501)
                    assert name not in there or "not known whether" in answer.text
            await nothing_is_odd(world, len(there))
