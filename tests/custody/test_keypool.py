"""Ready RSA-2048 keys: each handed out once, made by a process that steps back, and nowhere but in memory."""

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.live import serving
from support.processes import ROOT, hurry, is_gone
from support.secrets_search import ORDINARY, leaks, looks_into, of_key, waiting
from support.waiting import comes_about, until
from support.world import BODY, new_world

from keystead import bounds
from keystead.custody import keypool
from keystead.custody.keypool import KeyPool
from keystead.errors import Unavailable
from keystead.x509 import keys
from keystead.x509.keys import CaKeyType, KeyType

# Makers run when nothing else does, so on a busy machine that may be late.
PATIENCE = 120.0
DAY = 24 * 3600


def has_stepped_back(pid: int) -> bool:
    """Whether a maker is as low as can be, which is the last that it does before it makes keys."""
    try:
        return os.sched_getscheduler(pid) == os.SCHED_IDLE
    except ProcessLookupError:
        return False


def leaves_a_trace(pid: int) -> bool:
    """Whether there is a process of this number, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def ignores(pid: int, number: signal.Signals) -> bool:
    found = re.search(r"^SigIgn:\s+([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return bool(int(found[1], 16) & 1 << (number - 1))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def maker_of(pool: KeyPool) -> int:
    process = pool._maker._process
    assert process
    return process.pid


def ready(pool: KeyPool) -> list[bytes]:
    """The digests of what is ready, the next one first."""
    return [pair.spki_sha256 for _, pair in pool._ready]


async def full(pool: KeyPool) -> list[bytes]:
    """Wait until a pool is full; its digests."""

    def is_full() -> bool:
        if pool._maker._process:
            hurry(pool._maker._process.pid)
        return len(ready(pool)) >= pool._size

    await comes_about(is_full, PATIENCE)
    return ready(pool)


async def ended(pool: KeyPool) -> None:
    """Wait until the filler of a closed pool, which is cancelled, has ended."""
    if filler := pool._filler:
        await comes_about(filler.done)


@contextlib.asynccontextmanager
async def started(size: int) -> AsyncIterator[KeyPool]:
    pool = KeyPool(size)
    pool.start()
    try:
        yield pool
    finally:
        pool.close()
        await ended(pool)


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[KeyPool]:
    """A pool of two for the tests that leave it as it was."""
    async with started(2) as made:
        yield made


def assert_sound(pair: keys.KeyPair, bits: int = 2048) -> None:
    """An RSA key of this size that its digest names; unlike `keys.load` this is OpenSSL's full check."""
    key = serialization.load_der_private_key(keys.pkcs8(pair.private_key), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert (key.key_size, key.public_key().public_numbers().e) == (bits, 65537)
    assert (pair.key_type, pair.spki_sha256) == (f"rsa{bits}", keys.spki_sha256(key))


# What it hands out.


async def test_it_fills_up_and_no_further(pool: KeyPool) -> None:
    """There are as many keys as were asked for, also after a while, and the maker rests."""
    held = await full(pool)
    assert len(set(held)) == 2
    # That nothing comes is seen by waiting alone, here and below.
    await asyncio.sleep(0.5)
    assert ready(pool) == held


async def test_each_key_is_handed_out_once_and_replaced(pool: KeyPool) -> None:
    """Three times as many takers at once as there are keys get different, sound ones; then the pool is full again."""
    held = await full(pool)
    pairs = await asyncio.gather(*(pool.take(KeyType.RSA2048) for _ in range(6)))
    taken = {pair.spki_sha256 for pair in pairs}
    assert len(taken) == 6
    # The first takers got what was ready.
    assert [pair.spki_sha256 for pair in pairs[:2]] == held
    for pair in pairs:
        assert_sound(pair)
    assert taken.isdisjoint(await full(pool))
    assert len(ready(pool)) == 2


async def test_a_ca_gets_a_ready_key_of_its_size(pool: KeyPool) -> None:
    """RSA-2048 is the same for a CA, and comes from the pool."""
    held = await full(pool)
    pair = await pool.take(CaKeyType.RSA2048)
    assert pair.spki_sha256 == held[0]
    assert_sound(pair)


async def test_other_kinds_of_keys_never_come_from_the_pool(pool: KeyPool) -> None:
    """EC keys and RSA keys of another size are made for whoever asks, and the pool stays as it is."""
    held = await full(pool)
    for kind in (KeyType.P256V1, CaKeyType.P256V1, CaKeyType.P384, CaKeyType.P521):
        pair = await pool.take(kind)
        assert (pair.key_type, pair.spki_sha256) == (kind.value, keys.spki_sha256(pair.private_key))
    assert_sound(await pool.take(CaKeyType.RSA3072), 3072)
    assert ready(pool) == held


async def test_an_empty_pool_makes_keys_on_demand() -> None:
    """Without ready keys, and without ever having been started, each taker gets a sound key of its own."""
    for size in (0, 2):
        idle = KeyPool(size)
        pairs = await asyncio.gather(*(idle.take(KeyType.RSA2048) for _ in range(3)))
        assert len({pair.spki_sha256 for pair in pairs}) == 3
        for pair in pairs:
            assert_sound(pair)
        assert idle._maker._process is None
        idle.close()
    nothing = KeyPool(0)
    nothing.start()
    assert nothing._filler is None
    nothing.close()


async def test_a_key_of_yesterday_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 23 hours the keys are the same; after 24 a taker gets another one, and the pool has new ones."""

    def later(seconds: float) -> None:
        clock = SimpleNamespace(monotonic=lambda: now() + seconds, perf_counter=time.perf_counter)
        monkeypatch.setattr(keypool, "time", clock)

    now = time.monotonic
    async with started(2) as pool:
        held = await full(pool)
        later(DAY - 3600)
        assert (await pool.take(KeyType.RSA2048)).spki_sha256 == held[0]
        held += (await full(pool))[1:]
        later(DAY + 3600)
        pair = await pool.take(KeyType.RSA2048)
        # The third was made in the twenty-third hour.
        assert pair.spki_sha256 == held[2]
        later(3 * DAY)
        pair = await pool.take(KeyType.RSA2048)
        assert pair.spki_sha256 not in held
        assert_sound(pair)
        assert set(held).isdisjoint(await full(pool))


async def test_a_key_that_nobody_wants_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has become old is replaced also when nobody takes a key."""
    monkeypatch.setattr(keypool, "MAX_AGE_SECONDS", 1.2)
    seen: set[bytes] = set()
    async with started(1) as pool:

        def two_were_seen() -> bool:
            if pool._maker._process:
                hurry(maker_of(pool))
            seen.update(ready(pool))
            return len(seen) >= 2

        await comes_about(two_were_seen, PATIENCE)


async def test_too_many_takers_at_once_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may wait get keys, the rest are Unavailable at once with a time to wait, and it recovers."""
    most = 4
    monkeypatch.setattr(bounds, "KEYS_WAITING", most)
    async with started(2) as pool:
        await full(pool)
        found = await asyncio.gather(*(pool.take(KeyType.RSA2048) for _ in range(200)), return_exceptions=True)
        pairs = [each for each in found if isinstance(each, keys.KeyPair)]
        refused = [each for each in found if isinstance(each, Unavailable)]
        assert len({pair.spki_sha256 for pair in pairs}) == len(pairs) == 2 + most
        assert len(refused) == 200 - len(pairs)
        assert all(error.retry_after and 0 < error.retry_after <= 60 for error in refused)
        assert (pool._makers._waiting, pool._makers._threads._work_queue.qsize()) == (0, 0)
        # EC keys need no place.
        takers = [asyncio.create_task(pool.take(CaKeyType.RSA3072)) for _ in range(most)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await pool.take(CaKeyType.RSA3072)
        assert (await pool.take(KeyType.P256V1)).key_type == "p256v1"
        # Whoever goes away frees the place.
        for task in takers:
            task.cancel()
        assert {type(each) for each in await asyncio.gather(*takers, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        assert pool._makers._waiting == 0
        assert_sound(await pool.take(KeyType.RSA2048))


# Processes.


FORKS = """
import asyncio, os
from keystead.custody.keypool import KeyPool

async def main():
    pool = KeyPool(2)
    pool.start()
    while len(pool._ready) < 2:
        await asyncio.sleep(0.01)
        if pool._maker._process and os.geteuid() == 0:
            os.sched_setscheduler(pool._maker._process.pid, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, pool._maker._process.pid, 0)
    held = list(pool._ready)
    child = os.fork()
    if child == 0:
        os._exit(10 + len(pool._ready))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("in the child:", status - 10, "in the parent:", len(pool._ready), list(pool._ready) == held)
    pool.close()

asyncio.run(main())
"""


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_forked_process_has_none_of_the_keys() -> None:
    """In the child of a fork the pool is empty, and the parent keeps what it has."""
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "in the child: 0 in the parent: 2 True\n", done.stderr


async def test_close_ends_the_maker_and_forgets_the_keys() -> None:
    """Its process is gone, not even a zombie, no key is held any more, and twice is as once."""
    async with started(1) as pool:
        await full(pool)
        maker = maker_of(pool)
        pool.close()
        assert not leaves_a_trace(maker)
        assert ready(pool) == []
        pool.close()
        await asyncio.sleep(0.2)
        assert pool._maker._process is None
        assert ready(pool) == []


async def test_close_also_ends_what_has_just_begun() -> None:
    """A pool that is closed before its first key, at any point of the maker's start, leaves no process behind."""
    for turns in range(6):
        async with started(1) as pool:
            for _ in range(turns):
                await asyncio.sleep(0)
            process = pool._maker._process
        assert process is None or not leaves_a_trace(process.pid)
        assert pool._maker._process is None
        assert pool._filler
        assert pool._filler.done()
    gc.collect()


async def test_close_right_after_a_key_was_taken_is_the_end_too() -> None:
    """The filler that was about to replace the key does not start a maker again."""
    pool = KeyPool(1)
    pool.start()
    await full(pool)
    await asyncio.sleep(0.05)
    await pool.take(KeyType.RSA2048)
    pool.close()
    await ended(pool)
    try:
        assert pool._maker._process is None
    finally:
        # Whatever was begun anew is not left to the tests after this.
        pool.close()


async def test_a_maker_that_is_killed_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it rests or while it works, it is replaced; the pool fills again, and no process is left over."""
    monkeypatch.setattr(keypool, "RETRY_SECONDS", 0.05)
    async with started(2) as pool:
        held = await full(pool)
        killed = []
        for _ in range(2):
            maker = maker_of(pool)
            os.kill(maker, signal.SIGKILL)
            killed.append(maker)
            # It is not noticed before the next key is wanted, and what is ready stays good.
            taken = {(await pool.take(KeyType.RSA2048)).spki_sha256}
            assert taken <= set(held)
            await comes_about(lambda: pool._maker._process and maker_of(pool) not in killed, PATIENCE)
            # At work, or about to be.
            killed.append(maker_of(pool))
            os.kill(maker_of(pool), signal.SIGKILL)
            held = await full(pool)
        assert maker_of(pool) not in killed
        assert not any(leaves_a_trace(pid) for pid in killed)
        assert_sound(await pool.take(KeyType.RSA2048))


async def test_without_a_maker_keys_are_made_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can be started takers still get keys, nothing is left open, and later the pool fills."""
    monkeypatch.setattr(keypool, "RETRY_SECONDS", 0.02)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nonexistent/python")
        before = open_files()
        async with started(1) as pool:
            await asyncio.sleep(0.3)
            assert_sound(await pool.take(KeyType.RSA2048))
            gc.collect()
            assert open_files() <= before
            assert ready(pool) == []
            patched.undo()
            await full(pool)


async def test_a_maker_steps_back_before_everybody_else() -> None:
    """It runs at the lowest priority, in the class of those that run when nobody else wants to."""
    before = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    async with started(1) as pool:
        await comes_about(lambda: pool._maker._process and has_stepped_back(maker_of(pool)), PATIENCE)
        assert os.getpriority(os.PRIO_PROCESS, maker_of(pool)) == 19
        assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == before


async def test_ctrl_c_is_not_for_a_maker() -> None:
    """SIGINT, which the terminal sends to the whole group, is ignored: the same process makes the key."""
    async with started(1) as pool:
        await comes_about(lambda: pool._maker._process and has_stepped_back(maker_of(pool)), PATIENCE)
        maker = maker_of(pool)
        assert ignores(maker, signal.SIGINT)
        os.kill(maker, signal.SIGINT)
        await full(pool)
        assert maker_of(pool) == maker


OWNS_A_POOL = """
import asyncio, json
from keystead.x509 import keys
from keystead.custody.keypool import KeyPool

async def main():
    pool = KeyPool(1)
    pool.start()
    while not pool._maker._process:
        await asyncio.sleep(0.01)
    print(pool._maker._process.pid, flush=True)
    while not pool._ready:
        await asyncio.sleep(0.01)
    print(json.dumps(keys.pem(pool._ready[0][1].private_key)), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


class Owner(msgspec.Struct):
    """A process with a pool, as an ordinary user's; its maker, and a key that this has made."""

    process: Any
    maker: int
    key: keys.PrivateKey
    folder: Path

    def errors(self) -> bytes:
        return (self.folder / "errors").read_bytes()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    folder = tmp_path / "owner"
    folder.mkdir()
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [*ORDINARY, sys.executable, "-c", OWNS_A_POOL],
            cwd=folder,
            env={**environ(), "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert process.stdout
        maker = int(process.stdout.readline())
        until(lambda: has_stepped_back(maker), PATIENCE)
        hurry(maker)
        key = keys.read_pem(json.loads(process.stdout.readline())).private_key
        yield Owner(process, maker, key, folder)
    finally:
        process.kill()
        process.communicate()


def test_a_maker_dumps_no_core_and_shows_its_memory_to_nobody(owner: Owner) -> None:
    """Its limit is nothing, and an ordinary process of the same user, which can read others, cannot read it."""
    assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{owner.maker}/limits").read_text())
    # The files of a process that is not dumpable are root's; to root itself that says nothing.
    assert Path(f"/proc/{owner.maker}/environ").stat().st_uid == 0
    with waiting("import sys; print('ready', flush=True); sys.stdin.read()") as pid:
        if looks_into(pid) != "it can be read":
            pytest.skip("here nobody can look into any process")
    assert "Permission denied" in looks_into(owner.maker)


def test_a_key_is_nowhere_but_in_memory(owner: Owner) -> None:
    """It is not in the maker's command line, environment, output or files, and nothing is written to the disk."""
    here = Path(f"/proc/{owner.maker}")
    places = {
        "the command line": (here / "cmdline").read_bytes(),
        "the output": owner.errors(),
        **{str(path): path.read_bytes() for path in owner.folder.rglob("*") if path.is_file()},
    }
    with contextlib.suppress(PermissionError):
        places["the environment"] = (here / "environ").read_bytes()
    assert b"keystead.custody.keymaker" in places["the command line"]
    assert leaks(of_key("the key", owner.key), places) == []
    assert owner.errors() == b""
    assert [path.name for path in owner.folder.iterdir()] == ["errors"]
    if os.geteuid() != 0:
        pytest.skip("only root can see the open files of a process that is not dumpable")
    files = {int(path.name): str(path.readlink()) for path in (here / "fd").iterdir()}
    assert files.pop(0) == files.pop(1) == os.devnull
    assert files.pop(2) == str(owner.folder / "errors")
    assert [name.partition(":")[0] for name in files.values()] == ["socket"]
    # Nor is a file that it could write mapped into its memory.
    maps = [line.split(maxsplit=5) for line in (here / "maps").read_text().splitlines()]
    assert not [parts for parts in maps if parts[1][3] == "s" and "w" in parts[1]]


@pytest.mark.parametrize("state", ["at rest", "not given the machine"])
def test_a_maker_ends_with_its_worker(owner: Owner, state: str) -> None:
    """After kill -9 of the process that has the pool its maker is gone, even if it would not get to run."""
    if state == "not given the machine":
        os.kill(owner.maker, signal.SIGSTOP)
    owner.process.kill()
    until(lambda: is_gone(owner.maker))


RUNS_A_MAKER = """
import asyncio
from keystead.custody.keymaker import Maker

async def main():
    maker = Maker()
    try:
        print((await maker.make()).key_type)
    finally:
        maker.close()

asyncio.run(main())
"""


def test_a_maker_is_this_program_wherever_it_is_started(tmp_path: Path) -> None:
    """A folder `keystead` where the server is started, of some other project, is not taken for Keystead's.

    The program is a file, as the command `keystead` is: unlike with `-m`, the current folder is not searched.
    """
    (tmp_path / "project" / "keystead").mkdir(parents=True)
    (tmp_path / "project" / "keystead" / "__init__.py").write_text("")
    (tmp_path / "keystead").write_text(RUNS_A_MAKER)
    command = [sys.executable, str(tmp_path / "keystead")]
    where = tmp_path / "project"
    done = subprocess.run(command, cwd=where, env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "rsa2048\n"), done.stderr


def test_a_maker_heeds_no_pythonpath(tmp_path: Path) -> None:
    """What PYTHONPATH names comes no sooner in the maker than in the worker, and runs nothing when it starts."""
    for name in ("logging", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of somebody else')\n")
    program = f"import os\nos.environ['PYTHONPATH'] = {str(tmp_path)!r}\n{RUNS_A_MAKER}"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd="/", env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "rsa2048\n"), done.stderr


async def test_what_holds_keys_does_not_show_them(pool: KeyPool) -> None:
    """The pool, the maker and a pair name what is public of them."""
    await full(pool)
    pairs = [pair for _, pair in pool._ready]
    shown = {repr(type(each)): f"{each!r} {each!s} {[each]!r}" for each in (pool, pool._maker, pairs[0])}
    shown["what is ready"] = repr(pool._ready)
    places = {name: text.encode() for name, text in shown.items()}
    assert leaks([secret for pair in pairs for secret in of_key("a key", pair.private_key)], places) == []
    assert pairs[0].spki_sha256.hex() in shown[repr(keys.KeyPair)]


# The server.


async def test_csrs_take_the_ready_keys(database_url: str, tmp_path: Path) -> None:
    """Nothing is sealed before a key is used; six CSRs at once have six different keys, which open and match."""
    async with new_world(database_url, tmp_path, key_pool=4) as world:
        held = await full(world.state.services.pool)
        assert await world.database.fetch("SELECT FROM private_keys") == []
        made = await asyncio.gather(*(world.create(key_type="rsa2048") for _ in range(6)))
        digests = set()
        for csr in made:
            key = await world.key_of(csr["id"])
            assert isinstance(key, rsa.RSAPrivateKey)
            assert key.key_size == 2048
            assert x509.load_pem_x509_csr(csr["csr"].encode()).public_key() == key.public_key()
            digests.add(keys.spki_sha256(key))
        assert len(digests) == 6
        assert set(held) <= digests
        refilled = await full(world.state.services.pool)
        assert digests.isdisjoint(refilled)
        assert len(await world.database.fetch("SELECT FROM private_keys")) == 6
        # What is refused takes none.
        refused = {**BODY, "key_type": "rsa2048", "country": "Utopia"}
        answer = await world.http.post(world.a.account_path, json=refused, headers=world.a.bearer)
        assert answer.status_code == 400
        assert ready(world.state.services.pool) == refilled


def below(pid: int) -> dict[int, bytes]:
    """The processes that a process has started, and those that these have, with their command lines."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
    found: dict[int, bytes] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for child, its_parent in parents.items():
            if its_parent == parent and not is_gone(child):
                with contextlib.suppress(OSError):
                    found[child] = Path(f"/proc/{child}/cmdline").read_bytes()
                todo.append(child)
    return found


def makers(pid: int) -> list[int]:
    return [child for child, command in below(pid).items() if b"keystead.custody.keymaker" in command]


def workers(pid: int) -> list[int]:
    return [child for child, command in below(pid).items() if b"spawn_main" in command]


def pool_level(url: str) -> float:
    found = None
    # A worker that is killed takes with it the connections that it has.
    with contextlib.suppress(httpx.TransportError):
        found = re.search(r"^keystead_key_pool_keys ([0-9.]+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.serve
def test_each_worker_has_a_maker_that_ends_with_it(empty_database: str, tmp_path: Path) -> None:
    """A killed worker's maker is gone and the next worker has its own; after SIGTERM no process is left."""

    def is_full() -> bool:
        found = makers(live.pid)
        for maker in found:
            if has_stepped_back(maker):
                hurry(maker)
        return len(found) == 2 and pool_level(live.url) == 4

    with serving(empty_database, tmp_path / "data", workers=2, environ={"KEYSTEAD_KEY_POOL": "2"}) as live:
        until(is_full, PATIENCE)
        first = workers(live.pid)
        assert len(first) == 2
        (maker,) = makers(first[0])
        os.kill(first[0], signal.SIGKILL)
        until(lambda: is_gone(maker))
        until(lambda: len(workers(live.pid)) == 2 and len(makers(live.pid)) == 2, PATIENCE)
        until(is_full, PATIENCE)
        assert first[0] not in workers(live.pid)
        processes = [live.pid, *below(live.pid)]
        assert len(processes) >= 5
    # The kernel ends what outlives its parent, a moment after that.
    until(lambda: all(is_gone(pid) for pid in processes))
    assert b"PRIVATE KEY" not in live.log.read_bytes()


async def test_chains_are_judged_on_one_thread_that_is_not_the_event_loops() -> None:
    """Whoever sends a chain that takes long to search keeps no other request of the worker waiting."""
    with contextlib.closing(KeyPool()) as pool:
        threads = await asyncio.gather(*(pool.judge(threading.get_ident) for _ in range(5)))
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()


async def test_only_so_many_chains_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told to come back, and those that wait are judged."""
    monkeypatch.setattr(bounds, "CHAINS_WAITING", 2)
    with contextlib.closing(KeyPool()) as pool:
        go = threading.Event()
        waiting = [asyncio.create_task(pool.judge(go.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await pool.judge(go.wait)
        go.set()
        assert await asyncio.gather(*waiting) == [True, True]
