"""The total_count of a list is kept and not counted, and is the number of its rows whoever has written how."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from support.authority import Authority, pem, root
from support.databases import connected, new_database
from support.live import Live
from support.waiting import comes_about
from support.walks import WorldWalk
from support.world import BODY, Tenant, World, _lifespan

from keystead.caller import Scope
from keystead.csrs import store as csrs
from keystead.custody import keyring
from keystead.errors import Conflict
from keystead.identity import accounts, zones
from keystead.identity.zones import Zone
from keystead.server import first_start, postgres
from keystead.server import worker as main
from keystead.store import database as db
from keystead.x509 import keys
from keystead.x509.keys import KeyType

Outcome = tuple[int, int]
OPERATOR = first_start.operator()
MADE, DELETED = (201, 0), (200, 0)
# The lists whose kept length is not their own, and by how much: none, if all is well.
WRONG = """
WITH actual AS (SELECT account_id, scope_id, count(*) AS held FROM custom_csrs GROUP BY account_id, scope_id),
kept AS (SELECT account_id, scope_id, sum(count) AS told FROM csr_counts GROUP BY account_id, scope_id)
SELECT scope_id, coalesce(told, 0) - coalesce(held, 0) AS off
FROM actual FULL JOIN kept USING (account_id, scope_id) WHERE coalesce(held, 0) <> coalesce(told, 0)
"""
HOLD = "SELECT slot FROM csr_counts WHERE scope_id = $1 FOR NO KEY UPDATE SKIP LOCKED"


@pytest.fixture
async def world(world: World) -> World:
    """A world whose application has recounted at its start, and will not again for ten minutes."""
    await comes_about(
        lambda: all(_rests(task) for task in asyncio.all_tasks() if _work_of(task).__qualname__ == "_prune")
    )
    return world


def _work_of(task: "asyncio.Task[Any]") -> Any:
    return task.get_coro()


def _rests(task: "asyncio.Task[Any]") -> bool:
    return getattr(_work_of(task).cr_await, "__qualname__", "") == "sleep"


def outcome(answer: httpx.Response) -> Outcome:
    errors = answer.json()["errors"]
    return answer.status_code, errors[0]["code"] if errors else 0


class Shelf(msgspec.Struct):
    """A list of CSRs: its path, and whose it is."""

    world: World
    tenant: Tenant
    zone: Zone | None = None

    @property
    def path(self) -> str:
        return self.tenant.account_path if self.zone is None else f"/client/v4/zones/{self.zone.id.hex}/custom_csrs"

    @property
    def id(self) -> UUID:
        return self.zone.id if self.zone else self.tenant.account.id

    async def ask(self, method: str, tail: str = "", body: Any = None, **headers: str) -> httpx.Response:
        all_headers = {**self.tenant.bearer, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.world.http.request(method, self.path + tail, json=body, headers=all_headers)

    async def create(self, **fields: Any) -> str:
        answer = await self.ask("POST", body={**BODY, **fields})
        assert outcome(answer) == MADE
        csr_id: str = answer.json()["result"]["id"]
        return csr_id

    async def delete(self, csr_id: str) -> Outcome:
        return outcome(await self.ask("DELETE", f"/{csr_id}"))

    async def total(self, **query: str) -> int:
        """What a client is told of the length of the list."""
        answer = await self.world.http.get(self.path, params={"per_page": 5, **query}, headers=self.tenant.bearer)
        info = answer.json()["result_info"]
        assert info["total_pages"] == -(-info["total_count"] // 5)
        total: int = info["total_count"]
        return total

    async def limit(self, quota: int) -> None:
        if self.zone:
            await zones.set_(self.world.database, OPERATOR, self.zone, zones.Changes(csr_quota=quota))
        else:
            changes = accounts.Changes(csr_quota=quota)
            await accounts.set_account(self.world.database, OPERATOR, self.tenant.account, changes)


def shelves(world: World) -> list[Shelf]:
    return [Shelf(world, world.a), Shelf(world, world.a, world.a.zone), Shelf(world, world.b)]


async def wrong(database: db.Database) -> dict[UUID, int]:
    return {row["scope_id"]: int(row["off"]) for row in await database.fetch(WRONG)}


async def slots(world: World, scope_id: UUID) -> list[int]:
    rows = await world.database.fetch("SELECT slot FROM csr_counts WHERE scope_id = $1 ORDER BY slot", scope_id)
    return [row["slot"] for row in rows]


_COPIED = "key_type, name, country, state, locality, organization, common_name, sans, csr"


async def written_before(shelf: Shelf, like: str, number: int) -> None:
    """CSRs as a release makes them that does not keep the counts; whatever is copied of `like` does not matter."""
    world = shelf.world
    for _ in range(number):
        new = keyring.new_key(world.ring, shelf.tenant.account.id, keys.generate(KeyType.P256V1))
        await world.database.execute(keyring.insert_key(1), *new.row)
        sql = (
            f"INSERT INTO custom_csrs (account_id, id, zone_id, key_id, {_COPIED}) "
            f"SELECT $1, gen_random_uuid(), $2, $3, {_COPIED} FROM custom_csrs WHERE id = $4"
        )
        zone_id = shelf.zone.id if shelf.zone else None
        place = (shelf.tenant.account.id, zone_id, new.row[1], UUID(like))
        assert await world.database.execute(sql, *place) == "INSERT 0 1"


async def deleted_before(shelf: Shelf, number: int | None = None) -> None:
    """Some or all CSRs deleted as by a release that does not keep the counts."""
    sql = "DELETE FROM custom_csrs WHERE id IN (SELECT id FROM custom_csrs WHERE scope_id = $1 LIMIT $2)"
    await shelf.world.database.execute(sql, shelf.id, number)


# Whatever is written.


class Walk(WorldWalk):
    """`held` is the model: the ids in each of three lists."""

    ca: ClassVar[Authority] = root()
    keys: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.shelves = shelves(self.world)
        self.held: list[list[str]] = [[] for _ in self.shelves]

    def teardown(self) -> None:
        for which, shelf in enumerate(self.shelves):
            for csr_id in self.held[which]:
                assert self.wait(shelf.delete(csr_id)) == DELETED
            assert self.wait(shelf.total()) == 0

    def some(self, which: int, pick: int) -> str:
        if not self.held[which]:
            self.create(which)
        return self.held[which][pick % len(self.held[which])]

    which = st.integers(0, 2)
    picks = st.integers(0, 20)

    @rule(which=which)
    def create(self, which: int) -> None:
        self.held[which].append(self.wait(self.shelves[which].create()))

    @rule(which=which, times=st.integers(2, 4))
    def create_once(self, which: int, times: int) -> None:
        """Some at once with the same Idempotency-Key, then one more."""
        key = f"key {next(self.keys)}"

        async def repeats() -> list[httpx.Response]:
            posts = [self.shelves[which].ask("POST", body=BODY, Idempotency_Key=key) for _ in range(times)]
            found = await asyncio.gather(*posts)
            return [*found, await self.shelves[which].ask("POST", body=BODY, Idempotency_Key=key)]

        answers = self.wait(repeats())
        assert {outcome(answer) for answer in answers} == {MADE}
        (csr_id,) = {answer.json()["result"]["id"] for answer in answers}
        self.held[which].append(csr_id)

    @rule(which=which, field=st.sampled_from([{"country": "Utopia"}, {"sans": []}, {"key_type": "x"}, {"name": 7}]))
    def create_something_invalid(self, which: int, field: dict[str, Any]) -> None:
        assert self.wait(self.shelves[which].ask("POST", body={**BODY, **field})).status_code == 400

    @rule(which=which, more=st.integers(0, 2), at_once=st.booleans())
    def create_up_to_the_quota(self, which: int, more: int, at_once: bool) -> None:
        """One more than there is room for."""
        shelf = self.shelves[which]
        self.wait(shelf.limit(len(self.held[which]) + more))

        async def posts() -> list[httpx.Response]:
            work = [shelf.ask("POST", body=BODY) for _ in range(more + 1)]
            return list(await asyncio.gather(*work)) if at_once else [await each for each in work]

        answers = self.wait(posts())
        assert sorted(map(outcome, answers)) == [MADE] * more + [(403, 1403)]
        self.held[which] += [answer.json()["result"]["id"] for answer in answers if answer.is_success]
        self.wait(shelf.limit(-1))

    @rule(which=which, pick=picks)
    def delete(self, which: int, pick: int) -> None:
        csr_id = self.some(which, pick)
        assert self.wait(self.shelves[which].delete(csr_id)) == DELETED
        assert self.wait(self.shelves[which].delete(csr_id)) == (404, 1419)
        self.held[which].remove(csr_id)

    @rule(which=which, pick=picks)
    def delete_twice_at_once(self, which: int, pick: int) -> None:
        csr_id = self.some(which, pick)

        async def both() -> list[Outcome]:
            return await asyncio.gather(*(self.shelves[which].delete(csr_id) for _ in range(2)))

        assert sorted(self.wait(both())) == [DELETED, (404, 1419)]
        self.held[which].remove(csr_id)

    @rule(which=which, other=which, pick=picks)
    def delete_elsewhere(self, which: int, other: int, pick: int) -> None:
        csr_id = self.some(which, pick) if which != other else str(uuid4())
        assert self.wait(self.shelves[other].delete(csr_id)) == (404, 1419)

    @rule(which=st.integers(0, 1), pick=picks)
    def delete_what_is_used(self, which: int, pick: int) -> None:
        """The list stays as long as it is while a certificate uses the CSR."""
        shelf, csr_id = self.shelves[which], self.some(which, pick)
        csr = self.wait(shelf.ask("GET", f"/{csr_id}")).json()["result"]["csr"]
        path = self.shelves[1].path.replace("csrs", "certificates")
        body = {"certificate": pem(self.ca.of_csr(csr)), "custom_csr_id": csr_id, "bundle_method": "force"}

        async def use(method: str, tail: str = "", body: Any = None) -> httpx.Response:
            return await self.world.http.request(method, path + tail, json=body, headers=self.world.a.bearer)

        used = self.wait(use("POST", body=body))
        assert outcome(used) == (200, 0)
        assert self.wait(shelf.delete(csr_id)) == (409, 1420)
        self.every_list_is_as_long_as_the_model_says()
        assert outcome(self.wait(use("DELETE", f"/{used.json()['result']['id']}"))) == (200, 0)

    @rule()
    def recount(self) -> None:
        self.wait(csrs.recount(self.world.database))

    @invariant()
    def every_list_is_as_long_as_the_model_says(self) -> None:
        for shelf, ids in zip(self.shelves, self.held, strict=True):
            assert self.wait(shelf.total()) == len(ids)
        assert self.wait(wrong(self.world.database)) == {}


@pytest.mark.walks
def test_the_total_is_right_whatever_was_done(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Walks over creates, repeats, refusals, deletions and recounts in three lists: each total is the model's."""
    Walk.run(partial(new_database, cluster, "blank"), tmp_path, examples=3, steps=40)


async def busy(shelf: Shelf, number: int, rounds: int) -> int:
    """A writer that makes two and a repeated third in each round, and deletes one; how many it leaves."""
    for turn in range(rounds):
        first = await shelf.create()
        await shelf.create()
        for _ in range(2):
            answer = await shelf.ask("POST", body=BODY, Idempotency_Key=f"{number} {turn}")
            assert outcome(answer) == MADE
        assert await shelf.delete(first) == DELETED
    return 2 * rounds


async def test_twenty_writers_at_once_lose_nothing(world: World) -> None:
    """The lengths are right at every moment while twenty write to two lists, and afterwards."""
    account, zone, _ = shelves(world)
    writers = [asyncio.create_task(busy((account, zone)[n % 2], n, 3)) for n in range(20)]
    looks = 0
    while not all(writer.done() for writer in writers):
        assert await wrong(world.database) == {}
        looks += 1
        await asyncio.sleep(0)
    left = await asyncio.gather(*writers)
    assert looks > 1
    for shelf, number in ((account, sum(left[::2])), (zone, sum(left[1::2]))):
        assert await shelf.total() == number
    assert await wrong(world.database) == {}


async def test_the_total_is_what_was_kept_and_filters_count(world: World) -> None:
    """The total of a whole list is read from csr_counts, and that of a filtered one is counted."""
    shelf, *others = shelves(world)
    for name in ("x", "x", "y"):
        await shelf.create(name=name)
    await world.database.execute(
        "UPDATE csr_counts SET count = count + 5 WHERE slot = ANY($1)", await slots(world, shelf.id)
    )
    off = 5 * len(await slots(world, shelf.id))
    assert await shelf.total() == 3 + off
    filtered = {"name": "x"}, {"name": "z"}, {"key_type": "p256v1"}, {"key_type": "rsa2048"}, {"san": BODY["sans"][1]}
    assert [await shelf.total(**query) for query in filtered] == [2, 0, 3, 0, 3]
    assert await shelf.total(common_name=BODY["common_name"], name="y") == 1
    assert [await other.total() for other in others] == [0, 0]
    await csrs.recount(world.database)
    assert await shelf.total() == 3


async def test_what_is_deleted_leaves_no_counts(world: World) -> None:
    """After the deletion of a zone and of an account there is no row of theirs, and the others have theirs."""
    account, zone, other = shelves(world)
    place = Scope(world.a.account.id, world.a.zone.id)
    for shelf in (account, zone, other):
        for csr_id in [await shelf.create() for _ in range(3)]:
            assert await shelf.delete(csr_id) == DELETED
    kept = await zone.create()
    with pytest.raises(Conflict):
        await zones.delete(world.database, OPERATOR, place)
    assert await zone.total() == 1
    assert await zone.delete(kept) == DELETED
    assert await slots(world, zone.id)
    await zones.delete(world.database, OPERATOR, place)
    assert await slots(world, zone.id) == []
    assert await slots(world, account.id)
    await accounts.delete(world.database, OPERATOR, Scope(world.a.account.id))
    assert {row["account_id"] for row in await world.database.fetch("SELECT account_id FROM csr_counts")} == {
        world.b.account.id
    }


async def test_a_deletion_amid_creators_leaves_no_counts(world: World) -> None:
    """However a race of creators, a deletion of all CSRs and one of the zone ends, the lengths are right."""
    for number in range(8):
        zone = await zones.create_in(world.database, OPERATOR, world.a.account, f"z{number}.example.com")
        shelf = Shelf(world, world.a, zone)
        made = [await shelf.create() for _ in range(2)]

        async def remove(zone: Zone = zone) -> bool:
            for _ in range(20):
                with contextlib.suppress(Conflict):
                    await zones.delete(world.database, OPERATOR, Scope(zone.account_id, zone.id))
                    return True
            return False

        posts = (shelf.ask("POST", body=BODY) for _ in range(2))
        await asyncio.gather(remove(), *(shelf.delete(each) for each in made), *posts, csrs.recount(world.database))
        assert await wrong(world.database) == {}
        (row,) = await world.database.fetch("SELECT deleted_at FROM zones WHERE id = $1", zone.id)
        if row["deleted_at"]:
            assert await slots(world, zone.id) == []


# The slots.


@contextlib.asynccontextmanager
async def held_slots(world: World, scope_id: UUID) -> AsyncIterator[list[int]]:
    """A transaction that holds all slots of a list, but those that others hold; yields their numbers."""
    async with connected(world.settings.database_url) as other, other.transaction():
        rows = await other.fetch(HOLD, scope_id)
        yield [row["slot"] for row in rows]


async def test_a_writer_does_not_wait_for_another_one(world: World) -> None:
    """While transactions hold all slots of a list, others create and delete in it; all are counted in the end."""
    for shelf in shelves(world):
        made = [await shelf.create()]
        async with held_slots(world, shelf.id) as held:
            assert held == [0]
            made += await asyncio.gather(*(shelf.create() for _ in range(5)))
            async with held_slots(world, shelf.id) as more:
                assert more
                assert 0 not in more
                made.append(await shelf.create())
                assert await shelf.delete(made[0]) == DELETED
        assert await shelf.total() == 6


async def test_a_slot_that_is_free_is_used_again(world: World) -> None:
    """Writers of whom none holds a slot while the next one writes leave a list with one slot."""
    shelf = Shelf(world, world.a)
    made = [await shelf.create() for _ in range(4)]
    assert await shelf.delete(made[0]) == DELETED
    assert await slots(world, shelf.id) == [0]


# What a release wrote that did not keep the lengths.


async def test_a_recount_mends_what_was_not_counted(world: World) -> None:
    """Rows that came and went uncounted, in several lists, are made up for; what was right stays."""
    account, zone, other = shelves(world)
    like = await account.create()
    for _ in range(3):
        await zone.create()
    await written_before(account, like, 4)
    await written_before(other, like, 2)
    await deleted_before(zone, 1)
    assert await wrong(world.database) == {account.id: -4, other.id: -2, zone.id: 1}
    await csrs.recount(world.database)
    assert [await shelf.total() for shelf in (account, zone, other)] == [5, 2, 2]
    assert await wrong(world.database) == {}
    # A list whose rows are all gone, and one that is filled again.
    await deleted_before(zone)
    await deleted_before(other)
    await written_before(other, like, 1)
    assert await wrong(world.database) == {zone.id: 2, other.id: 1}
    for _ in range(3):
        before = await world.database.fetch("SELECT * FROM csr_counts ORDER BY account_id, scope_id, slot")
        await csrs.recount(world.database)
        assert [await shelf.total() for shelf in (account, zone, other)] == [5, 0, 1]
    # Where nothing is wrong nothing is written.
    assert await world.database.fetch("SELECT * FROM csr_counts ORDER BY account_id, scope_id, slot") == before
    # And the lists are usable as ever.
    await zone.delete(await zone.create())
    await other.create()
    assert [await shelf.total() for shelf in (account, zone, other)] == [5, 0, 2]


async def test_a_zone_that_an_earlier_release_deleted_stays_at_nothing(world: World) -> None:
    """The rows that it has left behind are made up for too."""
    _, zone, _ = shelves(world)
    await zone.create()
    await deleted_before(zone)
    await world.database.execute("UPDATE zones SET deleted_at = now() WHERE id = $1", zone.id)
    await csrs.recount(world.database)
    assert await wrong(world.database) == {}


async def test_a_recount_is_exact_while_others_write(world: World) -> None:
    """Recount after recount among writers that count and one that does not: a last one, and all is right."""
    account, zone, other = shelves(world)
    like = await account.create()
    mending = db.Database(world.settings.database_url or "", 2)
    done = asyncio.Event()

    async def mend() -> None:
        while not done.is_set():
            await csrs.recount(mending)

    async def of_the_earlier_release() -> int:
        for _ in range(5):
            await written_before(zone, like, 3)
            await deleted_before(zone, 1)
            await written_before(other, like, 1)
        return 0

    menders = [asyncio.create_task(mend()) for _ in range(2)]
    work = [busy((account, other)[n % 2], n, 3) for n in range(8)]
    await asyncio.gather(*work, of_the_earlier_release())
    done.set()
    await asyncio.gather(*menders)
    await csrs.recount(mending)
    await mending.close()
    assert await wrong(world.database) == {}
    assert [await shelf.total() for shelf in (account, zone, other)] == [1 + 24, 10, 24 + 5]


async def test_a_recount_never_makes_wrong_what_is_right(world: World) -> None:
    """While everybody counts, no moment between many recounts at once finds a length that is off."""
    account, zone, _ = shelves(world)
    mending = db.Database(world.settings.database_url or "", 4)
    writers = [asyncio.create_task(busy((account, zone)[n % 2], n, 2)) for n in range(8)]
    while not all(writer.done() for writer in writers):
        await asyncio.gather(*(csrs.recount(mending) for _ in range(4)))
        assert await wrong(world.database) == {}
    await asyncio.gather(*writers)
    await mending.close()
    assert [await account.total(), await zone.total()] == [16, 16]


async def test_two_recounts_at_once_mend_once(world: World) -> None:
    """While one has mended but not committed another neither waits nor mends again; nor do eight at once."""
    account, zone, _ = shelves(world)
    like = await account.create()
    await written_before(zone, like, 3)
    async with connected(world.settings.database_url) as other, other.transaction():
        assert await other.fetchval("SELECT pg_try_advisory_xact_lock($1)", csrs._RECOUNT_LOCK)
        await other.execute(csrs._RECOUNT)
        await csrs.recount(world.database)
        assert await zone.total() == 0
    assert await zone.total() == 3
    assert await wrong(world.database) == {}
    await written_before(zone, like, 2)
    mending = db.Database(world.settings.database_url or "", 8)
    await asyncio.gather(*(csrs.recount(mending) for _ in range(8)))
    await mending.close()
    assert await zone.total() == 5
    assert await wrong(world.database) == {}


async def test_a_start_mends_what_was_written_before_it(world: World) -> None:
    """A worker that starts recounts, after the earlier release has written for the last time."""
    shelf = Shelf(world, world.a)
    await written_before(shelf, await shelf.create(), 2)
    assert await shelf.total() == 1

    async def recounted() -> bool:
        return await shelf.total() != 1

    async with _lifespan(main.create_app(world.settings)):
        await comes_about(recounted)
    assert await shelf.total() == 3


# Two workers.


@pytest.fixture
async def zone_http(live: Live) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """The path of the list of a new zone on the live server, and a client for it."""
    owner = {"X-Auth-Email": live.older["CLOUDFLARE_EMAIL"], "X-Auth-Key": live.older["CLOUDFLARE_API_KEY"]}
    async with httpx.AsyncClient(base_url=live.url, headers=owner, timeout=60) as http:
        body = {"name": f"{uuid4().hex}.example.com", "account": {"id": live.env["CLOUDFLARE_ACCOUNT_ID"]}}
        answer = await http.post("/client/v4/zones", json=body)
        assert answer.is_success, answer.text
        yield f"/client/v4/zones/{answer.json()['result']['id']}/custom_csrs", http


async def test_two_workers_tell_the_same_total(zone_http: tuple[str, httpx.AsyncClient], live: Live) -> None:
    """Whatever workers have made and deleted at once, every worker tells the length of what is there."""
    path, http = zone_http
    answers = await asyncio.gather(*(http.post(path, json=BODY) for _ in range(20)))
    ids = [answer.json()["result"]["id"] for answer in answers]
    work = [http.delete(f"{path}/{each}") for each in ids[:5]] + [http.post(path, json=BODY) for _ in range(4)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*work)) == [200] * 5 + [201] * 4
    totals = []
    for _ in range(8):
        # A connection of its own each, which may be either worker's.
        async with httpx.AsyncClient(base_url=live.url, headers=http.headers) as fresh:
            info = (await fresh.get(path)).json()["result_info"]
            totals.append((info["total_count"], info["count"]))
    assert totals == [(19, 19)] * 8
