"""What a standby may answer: a primary and a real standby of it, whose replay is paused where it shall be behind."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from structlog.testing import capture_logs
from support import standby as standbys
from support.authority import pem, root
from support.live import free_port
from support.waiting import comes_about
from support.world import World, make_token, new_world

from keystead import bounds, config, metrics
from keystead.commands import doctor
from keystead.errors import Misconfigured
from keystead.server import postgres
from keystead.store import standby, writes
from keystead.store.database import ApiError, Database
from keystead.store.standby import Standby
from keystead.store.writes import Writes
from keystead.x509 import chains

Json = dict[str, Any]
SECRET = "not-to-be-shown"
SEEN = "SELECT count(*) AS n, pg_is_in_recovery() AS elsewhere FROM kept"
INSERT = "INSERT INTO kept (n) VALUES (1)"
READ = "Account: SSL and Certificates Read"
AWAY = f"postgresql://keystead:{SECRET}@127.0.0.1:{{}}/keystead"


class Pair(msgspec.Struct):
    """A primary with a table `kept`, and its standby; `url` is the primary's address."""

    cluster: postgres.Cluster
    server: standbys.Server
    url: str


class Seen(msgspec.Struct):
    """How many rows there are, and whether the standby says so."""

    n: int
    elsewhere: bool


class Followed(msgspec.Struct):
    """The parts of a worker that read: `me` has written or will, `other` only reads."""

    primary: Database
    standby: Standby
    # Of two slots.
    me: UUID = UUID(int=1)
    other: UUID = UUID(int=2)

    async def write(self, sql: str = INSERT) -> None:
        with self.standby.writes.noted(self.me):
            await self.primary.execute(sql)

    async def read(self, caller: UUID) -> Seen:
        return await self.standby.read(caller, seen)

    async def is_read_from(self) -> bool:
        await self.standby.look()
        return self.standby._fresh > 0

    async def has_all(self) -> None:
        """Return once also `me` reads from the standby."""

        async def elsewhere() -> bool:
            await self.standby.look()
            return (await self.read(self.me)).elsewhere

        await comes_about(elsewhere)


async def seen(database: Database) -> Seen:
    return msgspec.convert(dict(await database.fetchrow(SEEN) or ()), Seen)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with standbys.primary(folder / "primary") as cluster:
        copy = standbys.copied(cluster.dsn, folder / "standby")
        with standbys.started(copy):
            yield Pair(cluster, copy, cluster.dsn)


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has just started does not wait for statements of one before it, and no delay is too long."""
    monkeypatch.setattr(writes, "_UNSURE", 0)
    monkeypatch.setattr(standby, "_MOST_LAG", 3600 * writes.SECOND)
    monkeypatch.setattr(bounds, "STANDBY_SECONDS", 60.0)
    monkeypatch.setattr(bounds, "STATEMENT_SECONDS", 60.0)


@contextlib.asynccontextmanager
async def following(pair: Pair, folder: Path, address: str) -> AsyncIterator[Followed]:
    primary, elsewhere = Database(pair.url, 4), Database(address, 4, setting=standby.SETTING)
    made = Followed(primary, Standby(primary, elsewhere, Writes(folder / "writes", 1)))
    try:
        yield made
    finally:
        await made.standby.close()
        await primary.close()


@pytest.fixture
async def followed(pair: Pair, tmp_path: Path) -> AsyncIterator[Followed]:
    """Read from already, also for `me`."""
    async with following(pair, tmp_path, pair.server.address()) as made:
        await made.primary.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
        await made.primary.execute("DELETE FROM kept")
        await comes_about(made.is_read_from)
        await made.has_all()
        yield made


async def problem(pair: Pair, folder: Path, address: str) -> str:
    """What is logged of a standby at this address by the first look, and by the second no more."""
    own = folder / "own"
    own.mkdir()
    async with following(pair, own, address) as made:
        with capture_logs() as logs:
            await made.standby.look()
            await made.standby.look()
        assert not (await made.read(made.other)).elsewhere
    (line,) = logs
    assert SECRET not in str(line)
    return str(line["reason"])


# The hostile cases.


async def test_one_that_is_away_leaves_the_primary(pair: Pair, followed: Followed, tmp_path: Path) -> None:
    """Nothing is behind the address: reads are answered, the log says once why, and never the password."""
    assert "Connect call failed" in await problem(pair, tmp_path, AWAY.format(free_port()))


async def test_one_of_another_cluster_is_not_read_from(
    pair: Pair, followed: Followed, cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """The system identifier is compared, and not just whether it answers."""
    assert "no standby of the primary's cluster" in await problem(pair, tmp_path, cluster.address("postgres"))


async def test_the_primary_itself_is_no_standby(pair: Pair, followed: Followed, tmp_path: Path) -> None:
    """Its address under both settings is a mistake that is named."""
    assert "the primary itself" in await problem(pair, tmp_path, pair.url)


async def test_what_a_primary_acknowledges_must_be_flushed(pair: Pair, cluster: postgres.Cluster) -> None:
    """With synchronous_commit off the end of its log says nothing of what it acknowledged."""
    lax, elsewhere = Database(cluster.address("postgres"), 1), Database(pair.server.address(), 1)
    with pytest.raises(Misconfigured, match="synchronous_commit"):
        await standby.compared(lax, elsewhere)
    await lax.close()
    await elsewhere.close()


async def test_a_promoted_one_is_not_read_from(pair: Pair, followed: Followed, tmp_path: Path) -> None:
    """Nor is a standby of the old primary while the promoted one is the new: they are of two timelines."""
    with standbys.started(standbys.copied(pair.url, tmp_path / "promoted")) as other:
        await other.ask("SELECT pg_promote()")
        assert "it was promoted" in await problem(pair, tmp_path, other.address())
        new, elsewhere = Database(other.address(), 1), Database(pair.server.address(), 1)
        with pytest.raises(Misconfigured, match="another timeline"):
            await standby.compared(new, elsewhere)
        await new.close()
        await elsewhere.close()


async def test_one_that_lags_is_not_read_from(pair: Pair, followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, which is 0 here, others too are answered by the primary, and the log says so."""
    async with pair.server.paused():
        await followed.write()
        monkeypatch.setattr(standby, "_MOST_LAG", 0)
        monkeypatch.setattr(standby, "_QUIET", 0)
        with capture_logs() as logs:
            await followed.standby.look()
            await followed.standby.look()
        assert "seconds behind" in logs[0]["reason"]
        assert await followed.read(followed.other) == Seen(1, False)


async def test_one_that_was_killed_and_is_back_with_less(pair: Pair, followed: Followed) -> None:
    """Until the next look it is not known what it has, so it is not asked; then it is read from again."""
    pair.server.stop(signal.SIGQUIT)
    assert await followed.read(followed.me) == Seen(0, False)
    pair.server.start()
    followed.standby._fresh = writes.now()
    assert not (await followed.read(followed.me)).elsewhere
    await followed.has_all()


async def test_a_read_that_replay_cancels_is_the_primarys(pair: Pair, followed: Followed) -> None:
    """A change of the table ends a statement that reads it at the standby."""
    seconds = iter((50, 0))
    errors: list[str] = []

    async def slow(database: Database) -> Seen:
        try:
            async with database.connection() as connection:
                row = await connection.fetchrow(f"{SEEN}, pg_sleep({next(seconds)})")
        except ApiError as error:
            errors.append(str(error))
            raise
        return msgspec.convert(dict(row or ()), Seen)

    async def sleeps() -> bool:
        return await pair.server.ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == 1

    reading = asyncio.create_task(followed.standby.read(followed.other, slow))
    await comes_about(sleeps)
    await followed.primary.execute("ALTER TABLE kept ADD COLUMN IF NOT EXISTS more integer")
    assert await reading == Seen(0, False)
    assert "conflict with recovery" in errors[0]


async def test_a_schema_that_is_newer_than_the_standbys(pair: Pair, followed: Followed) -> None:
    """What a migration has made at the primary alone is read there."""
    async with pair.server.paused():
        await followed.primary.execute("CREATE TABLE IF NOT EXISTS newer (n integer)")
        sql = "SELECT count(*) AS n FROM newer"
        row = await followed.standby.read(followed.other, lambda database: database.fetchrow(sql))
        assert row is not None
        assert row["n"] == 0


def test_a_worker_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """It is not known when its write ends, until a worker takes its place; then all count as having just written."""
    caller = UUID(int=7)
    program = (
        "import sys, time; from pathlib import Path; from uuid import UUID; from keystead.store import writes\n"
        f"noted = writes.Writes(Path({str(tmp_path / 'writes')!r}), 1).noted(UUID(int=7))\n"
        "noted.__enter__(); print(flush=True); time.sleep(60)"
    )
    mine = Writes(tmp_path / "writes", 1)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert mine.latest(caller) == writes._RUNNING > mine.latest(UUID(int=8))
        worker.kill()
    assert mine.latest(caller) == writes._RUNNING
    taken, before = program.replace("time.sleep(60)", "noted.__exit__(None, None, None)"), writes.now()
    subprocess.run([sys.executable, "-c", taken], check=True, stdout=subprocess.DEVNULL)
    assert before + 10 * writes.SECOND <= mine.latest(caller) < writes._RUNNING
    mine.close()


def test_after_an_error_a_write_may_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller's time lies ahead, and a success after it does not take it back."""
    mine, caller = Writes(tmp_path / "writes", 1), uuid4()
    monkeypatch.setattr(writes, "_UNSURE", 3600 * writes.SECOND)
    with pytest.raises(ZeroDivisionError), mine.noted(caller):
        raise ZeroDivisionError
    with mine.noted(caller):
        assert mine.latest(caller) == writes._RUNNING
    assert writes.now() < mine.latest(caller) < writes._RUNNING
    mine.close()


def test_an_address_with_a_password_is_not_shown() -> None:
    """Neither where it is of several servers, which are refused, nor where there is no primary of one's own."""
    good = {"KEYSTEAD_DATABASE_URL": "postgresql://u@h/d", "KEYSTEAD_READ_DATABASE_URL": f"postgresql://u:{SECRET}@h/d"}
    assert SECRET not in repr(config.load(good))
    for change in (
        {"KEYSTEAD_READ_DATABASE_URL": f"postgresql://u:{SECRET}@one,two/d"},
        {"KEYSTEAD_READ_DATABASE_URL": f"mysql://u:{SECRET}@one/d"},
        {"KEYSTEAD_DATABASE_URL": ""},
    ):
        with pytest.raises(Misconfigured, match=r"^KEYSTEAD_READ_DATABASE_URL") as caught:
            config.load(good | change)
        assert SECRET not in str(caught.value)


async def test_an_address_that_cannot_be_read_names_its_setting(pair: Pair, followed: Followed, tmp_path: Path) -> None:
    """The log names KEYSTEAD_READ_DATABASE_URL and nothing of its value."""
    said = await problem(pair, tmp_path, f"postgresql://u:se/cret{SECRET}@127.0.0.1/d")
    assert said.startswith("KEYSTEAD_READ_DATABASE_URL cannot be read")


# What it is for.


async def test_a_caller_sees_its_write_and_others_read_elsewhere(pair: Pair, followed: Followed) -> None:
    """While the standby is behind, it answers those who wrote nothing; once it has all, it answers everybody."""
    async with pair.server.paused():
        await followed.write()
        await followed.standby.look()
        assert await followed.read(followed.me) == Seen(1, False)
        assert await followed.read(followed.other) == Seen(0, True)
    await followed.has_all()
    assert await followed.read(followed.me) == Seen(1, True)
    text = metrics.text().decode()
    for database in ("primary", "standby"):
        count = re.search(rf'^keystead_standby_reads_total{{database="{database}"}} (\S+)$', text, re.MULTILINE)
        assert count
        assert float(count[1]) > 0


async def test_the_servers_role_may_compare(pair: Pair) -> None:
    """Nothing has to be granted to it."""
    primary, elsewhere = Database(pair.cluster.servers, 1), Database(pair.server.address("keystead_api"), 1)
    found = await standby.compared(primary, elsewhere)
    assert found.written > 0
    await primary.close()
    await elsewhere.close()


@pytest.fixture
async def world(pair: Pair, followed: Followed, tmp_path: Path) -> AsyncIterator[World]:
    """An application that reads from the standby."""
    folder, address = tmp_path / "world", pair.server.address()
    folder.mkdir()
    async with new_world(pair.url, folder, read_database_url=address) as made:
        reads = made.state.standby
        assert reads
        await comes_about(lambda: reads._fresh and not reads._targets)
        yield made


async def test_what_the_api_answers_from_a_standby(pair: Pair, world: World) -> None:
    """Who changed something sees that at once; another token sees lists as they were, and what is new by its id."""
    ca = root()
    world.trust(chains.anchors([pem(ca.certificate).encode()]))
    a, zone = world.a, f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates"
    reader = {"Authorization": f"Bearer {await _other_token(world)}"}
    old = await world.create(path=a.zone_path, sans=["www.a.example.com"])
    upload = {"certificate": pem(ca.of_csr(old["csr"])), "custom_csr_id": old["id"]}
    kept = (await world.http.post(zone, json=upload, headers=a.bearer)).json()["result"]
    gone = await world.create(path=a.zone_path)

    async def told(path: str, headers: dict[str, str] = a.bearer) -> Any:
        return (await world.http.get(path, headers=headers)).json()["result"]

    async def ids(headers: dict[str, str]) -> set[str]:
        return {each["id"] for each in await told(a.zone_path, headers)}

    async def has_come() -> bool:
        return await ids(reader) == {old["id"], gone["id"]} and len(await told(zone, reader)) == 1

    async def reads_what_was() -> bool:
        # While a worker opens connections to a standby, it also asks the primary.
        listed, shown = (await told(zone, reader))[0], await told(f"{zone}/{kept['id']}", reader)
        there = await told(f"{a.zone_path}/{gone['id']}", reader)
        return await has_come() and listed["priority"] == shown["priority"] == 0 and there is not None

    await comes_about(has_come)
    async with pair.server.paused():
        new = await world.create(path=a.zone_path)
        await world.http.delete(f"{a.zone_path}/{gone['id']}", headers=a.bearer)
        wanted = {"certificates": [{"id": kept["id"], "priority": 7}]}
        assert (await world.http.put(f"{zone}/prioritize", json=wanted, headers=a.bearer)).status_code == 200
        assert await ids(a.bearer) == {old["id"], new["id"]}
        assert await told(f"{a.zone_path}/{gone['id']}") is None
        assert (await told(zone))[0]["priority"] == (await told(f"{zone}/{kept['id']}"))["priority"] == 7
        await comes_about(reads_what_was)
        assert (await told(f"{a.zone_path}/{new['id']}", reader))["id"] == new["id"]


async def _other_token(world: World) -> str:
    """One that only reads, and is not by chance in the slot of the first token."""

    async def slot(token: str) -> int:
        path, headers = (
            f"/client/v4/accounts/{world.a.account.id.hex}/tokens/verify",
            {"Authorization": f"Bearer {token}"},
        )
        return UUID((await world.http.get(path, headers=headers)).json()["result"]["id"]).int % writes._SLOTS

    while True:
        token = await make_token(world.services, world.a.account, ("SSL and Certificates Read", READ))
        if await slot(token) != await slot(world.a.token):
            return token


async def test_doctor_says_how_far_it_is(pair: Pair, followed: Followed, tmp_path: Path) -> None:
    """Good where it follows, bad with a reason where it does not."""
    environ = {"KEYSTEAD_DATABASE_URL": pair.url, "KEYSTEAD_DATA_DIR": str(tmp_path)}

    async def line(address: str) -> doctor.Finding:
        found = await asyncio.to_thread(doctor.examine, {**environ, "KEYSTEAD_READ_DATABASE_URL": address})
        return next(each for each in found if each.check == "standby")

    assert (await line(pair.server.address())).good
    bad = await line(pair.url)
    assert not bad.good
    assert "the primary itself: until that is mended" in bad.text
