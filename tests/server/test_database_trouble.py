"""What goes wrong with a database, and what a server makes of it: a clear 503, nothing leaked, well again by itself."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import cloudflare
import httpx
import msgspec
import pytest
from support.databases import connected
from support.live import Live, serving
from support.trouble import (
    KINDS,
    SECONDS,
    Client,
    Shaken,
    Told,
    asking,
    client_of,
    ended,
    full,
    is_clear,
    is_well,
    kinds,
    locked,
    proxy,
    read_only,
    refusing,
    shaken,
    stalled,
    stopped,
    without_connections,
    words,
)
from support.waiting import comes_about
from support.world import BODY, Judge

from keystead import bounds
from keystead.custody.peppers import PEPPER_SECONDS

pytestmark = pytest.mark.serve

WORKERS = 2
# A reading of a CA is audited.
WRITES = {*KINDS} - {"GET csr"}
CALLS, CALLS_AT_ONCE = 200, 50


class Scene(msgspec.Struct):
    """A server on a database that may be shaken, and who asks it."""

    place: Shaken
    live: Live
    client: Client
    judge: Judge


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One for all troubles here, as each of them leaves nothing behind."""
    folder = tmp_path_factory.mktemp("trouble")
    async with shaken(folder) as place:
        with serving(place.url, folder / "data", workers=WORKERS) as live:
            async with client_of(live) as client:
                made = Scene(place, live, client, Judge(live.url))
                yield made
                # Until each worker has told its numbers anew.
                await asyncio.sleep(2 * PEPPER_SECONDS)
                await nothing_is_left(made)


@contextlib.asynccontextmanager
async def trouble(scene: Scene, fault: AbstractAsyncContextManager[object]) -> AsyncIterator[list[Told]]:
    """Clients ask all the while, of which the body has a part; each answer is good or clear, and then all is well.

    No process of the server is another one than before.
    """
    before = workers(scene.live)
    async with asking(scene.client) as told:
        async with fault:
            yield told
        ended = time.monotonic()
        await comes_about(lambda: is_well(told, ended))
    for each in told:
        assert each.answer is not None, f"no answer to {each.kind}"
        if not each.good:
            is_clear(scene.judge, each.answer)
    assert workers(scene.live) == before
    await nothing_is_left(scene)


def workers(live: Live) -> str:
    with open(f"/proc/{live.pid}/task/{live.pid}/children") as children:  # noqa: PTH123 - it is no file
        return children.read()


async def nothing_is_left(scene: Scene) -> None:
    """PostgreSQL has no more sessions than the workers have places, and the workers use none of them."""

    async def so() -> bool:
        return len(await scene.place.backends()) <= WORKERS * bounds.DATABASE_CONNECTIONS and await in_use(scene) == 0

    await comes_about(so)


async def in_use(scene: Scene) -> float | None:
    """The workers' places for connections that are in use; None before they have told any."""
    text = (await scene.client.http.get("/metrics")).text
    found = re.search(r'^keystead_database_connections\{state="in_use"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else None


def refused(told: list[Told]) -> set[str]:
    return kinds(each for each in told if each.status == 503)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_postgresql_that_ends_is_away_and_comes_back(scene: Scene, how: signal.Signals) -> None:
    """While it is away every request gets a clear 503, also of those in flight, and /readyz says why."""
    async with trouble(scene, ended(scene.place, how)) as told:
        await comes_about(lambda: refused(told) == set(KINDS))
        ready = await scene.client.http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "database")


async def test_a_failover_that_refuses_connections_is_waited_out(scene: Scene) -> None:
    """While connections are refused, as for a second here, every request gets a clear 503."""
    async with trouble(scene, refusing(scene.place)) as told:
        # The time without connections is what is borne.
        await asyncio.sleep(1)
        await comes_about(lambda: refused(told) == set(KINDS))
    # What was not even sent is in no doubt.
    assert not all("not known" in words(each.answer) for each in told if each.status == 503 and each.answer)


async def test_a_read_only_database_still_answers_reads(scene: Scene) -> None:
    """Where nothing may be written, as on a standby, reads are good, and what writes or is audited is a clear 503."""
    async with trouble(scene, read_only(scene.place)) as told:
        began = time.monotonic()
        await comes_about(lambda: refused(told) >= WRITES)
        await comes_about(lambda: "GET csr" in kinds(each for each in told if each.good and each.asked > began))


async def test_too_many_connections_is_said_and_passes(scene: Scene) -> None:
    """A PostgreSQL that takes no more connections costs a clear 503 for each request that needs one."""
    async with trouble(scene, without_connections(scene.place)) as told:
        await comes_about(lambda: refused(told) == set(KINDS))


async def test_a_full_disk_refuses_what_needs_room(scene: Scene) -> None:
    """On a disk without a free byte reads are good, what does not fit is a clear 503, and room is all it needs."""
    if scene.place.disk is None:
        pytest.skip("this user may not mount a disk of its own")
    async with trouble(scene, full(scene.place)) as told:
        await comes_about(lambda: refused(told) >= {"POST csr", "POST ca"})
    assert "GET csr" not in refused(told)


async def test_statements_that_hang_end_by_a_time_out(scene: Scene) -> None:
    """A lock that is held, and a session whose process is stopped, cost a clear 503 when the time is up.

    What is stopped is not needed for all to be well again.
    """
    fault = AsyncExitStack()
    async with trouble(scene, fault) as told:
        async with locked(scene.place):
            waiting: dict[int, str] = {}
            while len(waiting) < len(KINDS):
                waiting = await scene.place.waiting()
            # Of a query PostgreSQL shows the beginning only.
            writers = [pid for pid, query in waiting.items() if "private_keys" in query or "json_to_recordset" in query]
            fault.enter_context(stopped(writers))
            await comes_about(lambda: refused(told) == set(KINDS))
        released = time.monotonic()
        await comes_about(lambda: is_well(told, released))
    of_creates = [words(each.answer) for each in told if each.status == 503 and each.kind == "POST csr" and each.answer]
    assert any("not known" in text for text in of_creates)


async def test_a_network_that_stalls_ends_by_a_time_out(scene: Scene) -> None:
    """Connections over which nothing comes any more cost a clear 503."""
    async with trouble(scene, stalled(scene.place)) as told:
        await comes_about(lambda: refused(told) >= {"GET csr", "POST csr", "GET ca", "POST ca"})


@pytest.mark.parametrize("reaches", [True, False], ids=["done", "lost"])
@pytest.mark.parametrize("what", ["csr", "ca"])
async def test_a_create_of_which_nothing_is_known_says_so(scene: Scene, what: str, reaches: bool) -> None:
    """When the connection is lost in the middle of a create, the 503 says that it is not known whether it was made."""
    name = uuid4().hex
    # A CA is made by a transaction of several statements, and its end is what counts.
    fatal = in_turn(name.encode() if what == "csr" else b"COMMIT")
    with cutting(scene, fatal, reaches=reaches):
        answer = await scene.client.http.post(path_of(scene, what), json=scene.client.body(what, name))
    in_doubt(scene, answer)
    assert await made(scene, what, name) == reaches


@pytest.mark.parametrize("reaches", [True, False], ids=["done", "lost"])
@pytest.mark.parametrize("what", ["csr", "ca"])
async def test_a_delete_of_which_nothing_is_known_says_so(scene: Scene, what: str, reaches: bool) -> None:
    """When the connection is lost in the middle of a delete, the 503 says that it is not known whether it was made."""
    assert (await scene.client.ask(f"POST {what}")).good
    path = f"{path_of(scene, what)}/{(one := scene.client.spare[what].pop())}"
    with cutting(scene, in_turn(UUID(one).bytes if what == "csr" else b"COMMIT"), reaches=reaches):
        answer = await scene.client.http.delete(path)
    in_doubt(scene, answer)
    assert (await scene.client.http.get(path)).status_code == (404 if reaches else 200)


async def test_a_create_that_was_made_is_not_told_to_have_failed(scene: Scene) -> None:
    """When the connection is lost after the commit, on reading what the answer shows, the 503 leaves it in doubt."""
    name = uuid4().hex
    with cutting(scene, in_turn(name.encode(), b"COMMIT", b""), reaches=False):
        answer = await scene.client.http.post(path_of(scene, "ca"), json=scene.client.body("ca", name))
    assert await made(scene, "ca", name)
    if not answer.is_success:
        in_doubt(scene, answer)


@pytest.mark.parametrize("of", [UUID, str], ids=["read", "audit"])
async def test_a_read_is_in_no_doubt(scene: Scene, of: type[UUID] | type[str]) -> None:
    """A connection that is lost in the middle of a read, or of its row for the audit log, is told without a doubt."""
    one = scene.client.kept["ca"]
    # Only the row for the audit log has the id as text.
    part = of(one)
    with cutting(scene, in_turn(part.bytes if isinstance(part, UUID) else part.encode()), reaches=True):
        answer = await scene.client.http.get(f"{path_of(scene, 'ca')}/{one}")
    is_clear(scene.judge, answer)


def in_turn(*parts: bytes) -> Callable[[bytes], bool]:
    """Whether a piece has the last of these, after others have had those before it."""
    left = list(parts)

    def is_fatal(piece: bytes) -> bool:
        found = left[0] in piece
        if found and len(left) > 1:
            del left[0]
            return False
        return found

    return is_fatal


@contextlib.contextmanager
def cutting(scene: Scene, fatal: Callable[[bytes], bool], *, reaches: bool) -> Iterator[None]:
    """Cut the connection to the database on which something fatal is sent."""
    scene.place.proxy.fatal, scene.place.proxy.reaches = fatal, reaches
    try:
        yield
    finally:
        scene.place.proxy.fatal = None


def in_doubt(scene: Scene, answer: httpx.Response) -> None:
    is_clear(scene.judge, answer)
    assert "not known" in words(answer)


def path_of(scene: Scene, what: str) -> str:
    return scene.live.account_path if what == "csr" else "/api/v1/pki/ca"


async def made(scene: Scene, what: str, name: str) -> int:
    table, column = ("custom_csrs", "name") if what == "csr" else ("certificate_authorities", "friendly_name")
    async with connected(scene.place.address) as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {column} = $1", name))


@pytest.mark.parametrize("reaches", [True, False], ids=["done", "lost"])
async def test_the_idempotency_key_resolves_what_is_not_known(scene: Scene, reaches: bool) -> None:
    """The repeat of a create of which nothing is known gives the CSR of the first, or makes the only one."""
    name = uuid4().hex
    http, path, body = scene.client.http, scene.live.account_path, scene.client.body("csr", name)
    with cutting(scene, in_turn(name.encode()), reaches=reaches):
        first = await http.post(path, json=body, headers={"Idempotency-Key": name})
    in_doubt(scene, first)
    again = [await http.post(path, json=body, headers={"Idempotency-Key": name}) for _ in range(2)]
    assert [answer.status_code for answer in again] == [201, 201]
    assert len({answer.json()["result"]["id"] for answer in again}) == 1
    assert await made(scene, "csr", name) == 1


async def test_the_sdk_with_its_own_repeats_never_makes_two_csrs_for_one_call(scene: Scene) -> None:
    """With a key for each call, and connections cut at random on both sides of the server, a call makes one CSR."""
    run = uuid4().hex
    some = asyncio.Semaphore(CALLS_AT_ONCE)
    with proxy(int(scene.live.url.rpartition(":")[2]), seed=8) as before:
        behind = scene.place.proxy
        cuts = behind.cuts
        sdk = cloudflare.AsyncCloudflare(
            api_token=scene.live.env["CLOUDFLARE_API_TOKEN"],
            base_url=f"http://127.0.0.1:{before.port}/client/v4",
            max_retries=12,
            timeout=SECONDS,
        )

        async def call(name: str) -> Any:
            async with some:
                return await sdk.custom_csrs.create(
                    account_id=scene.live.env["CLOUDFLARE_ACCOUNT_ID"],
                    **{**BODY, "name": name},
                    extra_headers={"Idempotency-Key": name},
                )

        before.chance, behind.chance = 0.1, 0.02
        try:
            csrs = await asyncio.gather(*(call(f"{run} {i}") for i in range(CALLS)))
        finally:
            behind.chance = 0.0
            await sdk.close()
        assert min(before.cuts, behind.cuts - cuts) > CALLS / 20
    assert [csr.name for csr in csrs] == [f"{run} {i}" for i in range(CALLS)]
    async with connected(scene.place.address) as connection:
        kept = await connection.fetch("SELECT id FROM custom_csrs WHERE starts_with(name, $1)", run)
        ids = [UUID(csr.id) for csr in csrs]
        audited = await connection.fetch("SELECT resource_id FROM audit_log WHERE resource_id = ANY($1)", ids)
        orphans = await connection.fetchval(_ORPHANS)
    assert sorted(row["id"] for row in kept) == sorted(ids)
    assert sorted(row["resource_id"] for row in audited) == sorted(ids)
    assert orphans == 0
    await nothing_is_left(scene)


_ORPHANS = """
SELECT count(*) FROM private_keys k
WHERE NOT EXISTS (SELECT FROM custom_csrs c WHERE c.account_id = k.account_id AND c.key_id = k.id)
  AND NOT EXISTS (SELECT FROM certificate_authorities a WHERE a.account_id = k.account_id AND a.key_id = k.id)
"""
