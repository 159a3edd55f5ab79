"""Many callers of a server with two workers, whose standby is always two seconds behind."""

import asyncio
import logging
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from support import standby as standbys
from support.live import Live, serving
from support.waiting import comes_about
from support.world import BODY, make_token

from keystead.custody import ring as ringfile
from keystead.custody.peppers import load_peppers
from keystead.identity import accounts, zones
from keystead.server import first_start
from keystead.services import for_command
from keystead.store.database import Database

pytestmark = pytest.mark.load

_log = logging.getLogger(__name__)
# More of them, and how many reads the standby answered: WRITES=10000, and --log-cli-level=INFO.
WRITES = int(os.environ.get("WRITES", "120"))
CALLERS = min(200, WRITES // 2)
# About the lag, before and after it: so long a caller reads what it wrote.
READS_FOR = 4.0


class Caller(msgspec.Struct):
    """A token with a zone of its own, whose list it knows."""

    path: str
    headers: dict[str, str]
    held: list[str]


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[tuple[Live, standbys.Server]]:
    """The server starts before there is a standby."""
    with standbys.primary(tmp_path / "primary") as cluster:
        copy = standbys.Server(tmp_path / "standby")
        environ = {"KEYSTEAD_READ_DATABASE_URL": copy.address("keystead_api")}
        with serving(cluster.owner, tmp_path / "data", workers=2, environ=environ) as live:
            copy = standbys.copied(cluster.dsn, tmp_path / "standby", recovery_min_apply_delay="2s")
            with standbys.started(copy):
                yield live, copy


async def callers_of(live: Live) -> list[Caller]:
    database = Database(live.database_url, 4)
    ring = ringfile.load(live.data_dir / "keyring.json")
    services = for_command(database, ring, await load_peppers(database, ring))
    account = await accounts.find_account(database, "default")

    async def made(number: int) -> Caller:
        zone = await zones.create_in(database, first_start.operator(), account, f"z{number}.example.com")
        headers = {"Authorization": f"Bearer {await make_token(services, account)}"}
        return Caller(f"/client/v4/zones/{zone.id.hex}/custom_csrs", headers, [])

    found = [await made(number) for number in range(CALLERS)]
    await database.close()
    return found


def count_of(text: str, database: str) -> float:
    found = re.search(rf'^keystead_standby_reads_total{{database="{database}"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_no_caller_misses_what_it_wrote(behind: tuple[Live, standbys.Server]) -> None:
    """Lists have at once what their caller made or deleted, and later too, also while the standby crashes once."""
    live, copy = behind
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=live.url, limits=limits, timeout=60) as http:
        reads = 0

        async def metrics() -> str:
            return (await http.get("/metrics")).text

        async def is_right(caller: Caller) -> None:
            nonlocal reads
            answer = (await http.get(caller.path, headers=caller.headers)).json()
            assert [each["id"] for each in answer["result"]] == caller.held, (reads, answer)
            reads += 1

        async def write(caller: Caller) -> None:
            if caller.held:
                answer = await http.delete(f"{caller.path}/{caller.held.pop()}", headers=caller.headers)
                assert answer.status_code == 200, answer.text
            else:
                answer = await http.post(caller.path, json=BODY, headers=caller.headers)
                assert answer.status_code == 201, answer.text
                caller.held.append(answer.json()["result"]["id"])

        async def go_on(caller: Caller) -> None:
            dice = random.Random(caller.path)
            loop = asyncio.get_running_loop()
            for _ in range(WRITES // CALLERS):
                await write(caller)
                until = loop.time() + dice.uniform(0, READS_FOR)
                await is_right(caller)
                while (left := until - loop.time()) > 0:
                    await asyncio.sleep(min(left, dice.uniform(0, 1)))
                    await is_right(caller)

        callers = await callers_of(live)

        async def is_read_from() -> bool:
            await is_right(callers[0])
            return count_of(await metrics(), "standby") > 0

        await comes_about(is_read_from)
        running = asyncio.gather(*map(go_on, callers))
        # In the middle of it.
        await asyncio.sleep(READS_FOR / 2)
        copy.stop(signal.SIGQUIT)
        copy.start()
        await running
        text = await metrics()
        _log.info("%d writes, %d lists, %d of them from the standby", WRITES, reads, count_of(text, "standby"))
        assert 0 < count_of(text, "standby") < reads
    assert "the standby is read from" in live.log.read_text()
