"""`keystead keys`: the ring and the peppers change while servers go on serving (docs/custody.md).

ROTATION_KEYS and ROTATION_KILLS say how many keys are rotated, and how often a rotation of them is killed; the full
figures are 100000 and 20.
"""

import base64
import contextlib
import json
import os
import pty
import random
import re
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from support.databases import connected, new_database
from support.live import Live, serving
from support.rotation import (
    COMMAND_SECONDS,
    SECONDS,
    Json,
    Place,
    Said,
    ask,
    everywhere,
    in_thread,
    key_pepper,
    known_everywhere,
    mounted,
    new_pepper,
    new_token,
    only,
    pepper_of,
    with_key,
    with_token,
)
from support.waiting import comes_about, until
from support.world import BODY

from keystead import files
from keystead.custody import keyring, rotation, seal
from keystead.custody import ring as ringfile
from keystead.errors import KeyDamaged, Misconfigured, NotFound
from keystead.server import postgres
from keystead.store import database as db
from keystead.store.database import Database
from keystead.x509 import keys, pkcs10
from keystead.x509.keys import KeyType
from keystead.x509.subjects import Subject

KEYS = int(os.environ.get("ROTATION_KEYS", "2000"))
KILLS = int(os.environ.get("ROTATION_KILLS", "3"))


def figures(text: str) -> None:
    """For whoever looks at the output of the tests."""
    sys.stdout.write(f"{text}\n")


def ended(process: subprocess.Popen[str]) -> Said:
    """Wait for a command that must have no trouble."""
    out, err = process.communicate(timeout=COMMAND_SECONDS)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    return Said(out, err)


_CSR_COLUMNS = "account_id, id, key_id, key_type, country, state, locality, organization, common_name, sans, csr"
_ABOUT = Subject("US", "California", "San Francisco", "Bulk, Inc.", "bulk.example")


def seed(place: Place, count: int) -> UUID:
    """Real sealed P-256 keys, each with its CSR, in an account of their own."""
    ring = ringfile.load(place.path)
    account_id = uuid4()

    async def fill() -> None:
        async with connected(place.database_url) as connection:
            sql = "INSERT INTO accounts (id, name, slug) VALUES ($1, 'Bulk', $2)"
            await connection.execute(sql, account_id, f"bulk-{account_id.hex[:12]}")
            for first in range(0, count, 5000):
                new = [
                    keyring.new_key(ring, account_id, keys.generate(KeyType.P256V1))
                    for _ in range(min(5000, count - first))
                ]
                columns = keyring._KEY_COLUMNS.split(", ")
                await connection.copy_records_to_table("private_keys", records=[n.row for n in new], columns=columns)
                csrs = [_csr(account_id, each) for each in new]
                await connection.copy_records_to_table("custom_csrs", records=csrs, columns=_CSR_COLUMNS.split(", "))

    in_thread(fill)
    return account_id


def _csr(account_id: UUID, new: keyring.NewKey) -> tuple[object, ...]:
    hosts = [f"{new.id.hex}.bulk.example"]
    pem = pkcs10.custom_csr(new.pair, _ABOUT, hosts)
    place = (_ABOUT.country, _ABOUT.state, _ABOUT.locality, _ABOUT.organization, _ABOUT.common_name)
    return (account_id, uuid4(), new.id, new.pair.key_type, *place, hosts, pem)


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Place:
    """A database with nothing but a ring and a pepper, and no server."""
    place = Place(database_url, tmp_path / "data")
    place.run("keys", "init")
    # The first command that needs the ring makes the first pepper.
    place.run("token", "list")
    return place


@pytest.fixture(scope="module")
async def served(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A server of this module's own, with two workers: its ring changes."""
    async with new_database(cluster, "template0") as url:
        # Without a memory of opened keys, so that what became of a KEK is seen at once.
        folder, environ = tmp_path_factory.mktemp("rotation") / "data", {"KEYSTEAD_REMEMBER_CAS": "off"}
        with serving(url, folder, workers=2, environ=environ) as running:
            yield running


@pytest.fixture(scope="module")
def place(served: Live) -> Place:
    """The database and the ring of the server."""
    return Place(served.database_url, served.data_dir)


@pytest.fixture(scope="module")
def filled(place: Place) -> Place:
    """The same with many keys."""
    began = time.monotonic()
    seed(place, KEYS)
    figures(f"seeded {KEYS} keys in {time.monotonic() - began:.1f} s")
    return place


@pytest.fixture(scope="module")
def ca_id(served: Live) -> str:
    """An intermediate CA, whose CSR is signed with its key at each call."""
    body = {"projectSlug": served.env["KEYSTEAD_PROJECT_SLUG"], "type": "intermediate", "commonName": "Rotation CA"}
    body["keyAlgorithm"] = "EC_prime256v1"
    answer = ask(served, "POST", "/api/v1/pki/ca", json=body)
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["ca"]["id"]
    return made


def ca_csr(live: Live, ca_id: str) -> httpx.Response:
    """The answer to a call that opens a key."""
    return ask(live, "GET", f"/api/v1/pki/ca/{ca_id}/csr")


def create(live: Live) -> httpx.Response:
    """The answer to a call that seals a key."""
    return ask(live, "POST", live.account_path, json=BODY)


class Traffic(threading.Thread):
    """A client that creates, reads and deletes CSRs and has a key opened, each time on a new connection."""

    def __init__(self, live: Live, ca_id: str) -> None:
        super().__init__(daemon=True)
        self.live = live
        self.csr_path = f"/api/v1/pki/ca/{ca_id}/csr"
        self.failures: list[str] = []
        self.answered = 0
        # When each was asked for, and its id.
        self.made: list[tuple[float, UUID]] = []
        self.alive: deque[UUID] = deque()
        self._over = threading.Event()

    def run(self) -> None:
        lone = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self.live.url, headers=self.live.bearer, timeout=60, limits=lone) as client:
            while not self._over.is_set():
                try:
                    self._round(client)
                except (httpx.HTTPError, KeyError) as error:
                    self.failures.append(repr(error))
                # Who serves it shares two processors with what is measured.
                time.sleep(0.02)

    def _round(self, client: httpx.Client) -> None:
        path, asked_at = self.live.account_path, time.monotonic()
        made = self._ask(client, "POST", path, json=BODY)
        csr_id = UUID(made["result"]["id"])
        self.made.append((asked_at, csr_id))
        self.alive.append(csr_id)
        read = self._ask(client, "GET", f"{path}/{csr_id}")
        if read["result"]["csr"] != made["result"]["csr"]:
            self.failures.append(f"{csr_id} is another CSR now")
        self._ask(client, "GET", self.csr_path)
        if len(self.alive) > 20:
            self._ask(client, "DELETE", f"{path}/{self.alive.popleft()}")

    def _ask(self, client: httpx.Client, method: str, path: str, **more: Any) -> Json:
        answer = client.request(method, path, **more)
        self.answered += 1
        if answer.status_code >= 300:
            self.failures.append(f"{method} {path}: {answer.status_code} {answer.text}")
        found: Json = answer.json()
        return found

    def go_on(self, count: int) -> None:
        """Wait until so many more CSRs are made."""
        goal = len(self.made) + count
        until(lambda: len(self.made) >= goal or self.failures, COMMAND_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        self.go_on(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(COMMAND_SECONDS)


def rate(text: str) -> str:
    return only(r"\((\d+) a second\)", text)


def verified(place: Place) -> None:
    """`keys verify` as a process finds every key and pepper good."""
    count = place.value("SELECT (SELECT count(*) FROM private_keys) + (SELECT count(*) FROM peppers)")
    said = ended(place.start("keys", "verify"))
    assert said.out.startswith(f"{count} keys and peppers are good, 0 are damaged (")
    figures(f"verified {count}: {rate(said.out)} a second")


# Rotation while a server serves.


@pytest.mark.load
def test_every_key_is_rotated_while_the_server_serves(filled: Place, served: Live, ca_id: str) -> None:
    """No request fails, no key is lost, and all are under the new KEK, those that were made meanwhile among them."""
    old, *older = filled.ids()
    with Traffic(served, ca_id) as traffic:
        new = filled.add()
        traffic.go_on(2)
        assert filled.under().keys() == {old}
        answered = traffic.answered
        said = ended(filled.start("keys", "rotate"))
        after, meanwhile = time.monotonic(), traffic.answered - answered
        assert ", 0 are damaged (" in filled.run("keys", "verify").out
        traffic.go_on(20)
        # A request that has sealed before the rotation may have stored after it, on a machine as slow as that.
        filled.run("keys", "rotate")
        filled.settle()
        filled.run("keys", "retire", old)
        traffic.go_on(5)
    assert traffic.failures == []
    figures(f"{said.out.strip()}; {meanwhile} requests were answered meanwhile")
    assert f"under KEK {new}" in said.out
    assert filled.ids() == [new, *older]
    later = [csr_id for asked_at, csr_id in traffic.made if asked_at > after]
    assert keks_of(filled, later) == {new}
    assert filled.others() == 0
    assert filled.value("SELECT count(*) FROM private_keys") >= KEYS + 20
    verified(filled)


def keks_of(place: Place, csr_ids: list[UUID]) -> set[str]:
    """The KEKs under which the keys of these CSRs are."""
    sql = "SELECT k.kek_id FROM private_keys k JOIN custom_csrs c ON c.key_id = k.id WHERE c.id = ANY($1::uuid[])"
    return {row["kek_id"] for row in place.rows(sql, csr_ids)}


BEGUN = "SELECT count(*) FROM audit_log WHERE action = 'rotate'"


def begins(place: Place, process: subprocess.Popen[str], before: int) -> None:
    """Wait until the rotation has got to the database."""
    until(lambda: place.value(BEGUN) > before or process.poll() is not None)


@pytest.mark.load
def test_a_rotation_that_is_killed_anywhere_is_finished_by_the_next(filled: Place, served: Live, ca_id: str) -> None:
    """Killed at random points it leaves every key whole, and a last run that is left alone finds all that is left."""
    chance, halves = random.Random(KILLS), 0
    with Traffic(served, ca_id) as traffic:
        for _ in range(KILLS):
            if filled.content().keks[0] == ringfile.newest(filled.content()) and not filled.others():
                filled.add()
            before = filled.value(BEGUN)
            process = filled.start("keys", "rotate")
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, 1))
            else:
                begins(filled, process, before)
                time.sleep(chance.uniform(0, KEYS / 20_000))
            process.kill()
            process.communicate()
            left = filled.under()
            halves += len(left) > 1
            assert left.keys() <= set(filled.ids())
            assert sample_opens(filled, 50)
        said = ended(filled.start("keys", "rotate"))
        traffic.go_on(5)
    assert traffic.failures == []
    figures(f"{KILLS} kills, {halves} with work half done; the last run: {said.out.strip().splitlines()[-1]}")
    if filled.others():
        filled.run("keys", "rotate")
    assert filled.under().keys() == {filled.ids()[0]}
    assert ", 0 are damaged (" in filled.run("keys", "verify").out


def sample_opens(place: Place, count: int) -> bool:
    ring = ringfile.load(place.path)

    async def work(database: Database) -> bool:
        sql = "SELECT account_id, id, spki_sha256 FROM private_keys ORDER BY random() LIMIT $1"
        for row in await database.fetch(sql, count):
            where = (row["account_id"], row["id"])
            # A CSR may be deleted meanwhile, and its key with it.
            with contextlib.suppress(NotFound):
                await keyring.open_key(database, ring, keyring.SYSTEM, (*where, row["spki_sha256"]))
        return True

    return place.with_database(work)


def snapshot(place: Place) -> list[object]:
    tables = ("private_keys", "peppers", "audit_log")
    rows = [place.rows(f"SELECT * FROM {table} ORDER BY id") for table in tables]
    return [place.path.read_bytes(), sorted(entry.name for entry in place.data_dir.iterdir()), rows]


def test_a_dry_run_changes_nothing(shop: Place) -> None:
    """It counts the data keys that it would re-wrap, and leaves ring, rows and audit log as they are."""
    seed(shop, 3)
    shop.add()
    before = snapshot(shop)
    said = shop.run("keys", "rotate", "--dry-run")
    assert said.out == f"would re-wrap 4 data keys under KEK {shop.ids()[1]}\n"
    assert snapshot(shop) == before


def test_a_rotation_without_a_newer_kek_says_so(shop: Place) -> None:
    """With nothing to do it says which command makes a new KEK, and changes no row."""
    seed(shop, 3)
    rows = snapshot(shop)[2]
    assert "`keystead keys add` adds another" in shop.run("keys", "rotate").out
    assert (snapshot(shop)[2][:2], shop.ids()) == (rows[:2], shop.ids()[:1])  # type: ignore[index]


def test_a_rotation_goes_on_where_it_was_killed(shop: Place) -> None:
    """What a killed rotation has done stays done: the next one does the rest and no more."""
    seed(shop, 40)
    new = shop.add()

    async def kill_half_way() -> int:
        holder: db.Connection = await asyncpg.connect(shop.database_url)
        watcher: db.Connection = await asyncpg.connect(shop.database_url)
        async with holder.transaction():
            # The third batch has this row, and waits for us.
            held = "SELECT id FROM private_keys ORDER BY account_id, id OFFSET 25 LIMIT 1"
            await holder.execute(f"SELECT FROM private_keys WHERE id = ({held}) FOR NO KEY UPDATE")
            process = shop.start("keys", "rotate", patch="from keystead.custody import rotation; rotation.BATCH = 10")
            ours = (
                f"datname = current_database() AND pid NOT IN ({holder.get_server_pid()}, {watcher.get_server_pid()})"
            )
            waiting = f"SELECT count(*) FROM pg_stat_activity WHERE {ours} AND wait_event_type = 'Lock'"
            await comes_about(lambda: watcher.fetchval(waiting))
            process.kill()
            process.communicate()
            # The statement that waits is not to be carried out after all.
            await watcher.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
            await comes_about(lambda: watcher.fetchval(f"SELECT count(*) = 0 FROM pg_stat_activity WHERE {ours}"))
        done = await watcher.fetchval("SELECT count(*) FROM private_keys WHERE kek_id = $1", new)
        await holder.close()
        await watcher.close()
        return int(done)

    assert in_thread(kill_half_way) == 20
    assert shop.ids()[0] == new
    assert shop.damaged() == []
    assert shop.run("keys", "rotate", "--dry-run").out.startswith("would re-wrap 20 ")
    assert shop.run("keys", "rotate").out.startswith("re-wrapped 20 ")
    assert shop.others() == 0
    assert shop.damaged() == []


def test_two_rotations_at_once_do_no_harm(shop: Place) -> None:
    """Both end well, every key is re-wrapped by one of them, and all of them open."""
    seed(shop, 300)
    shop.add()
    patch = "from keystead.custody import rotation; rotation.BATCH = 20"
    said = [ended(process) for process in [shop.start("keys", "rotate", patch=patch) for _ in range(2)]]
    done = [int(re.findall(r"re-wrapped (\d+) data keys", each.out)[0]) for each in said]
    # The pepper may be re-wrapped by both, one after the other.
    assert 301 <= sum(done) <= 302
    assert shop.others() == 0
    assert shop.damaged() == []


def test_a_rotation_that_meets_a_newer_one_does_no_harm(shop: Place) -> None:
    """A row that another rotation has put under a KEK which this one has never heard of costs no row of its batch."""
    seed(shop, 5)
    shop.add()
    ringfile.promote(shop.path)
    ring = ringfile.load(shop.path)
    shop.add()
    newest = ringfile.promote(shop.path).id
    (row,) = shop.rows("SELECT * FROM private_keys ORDER BY account_id, id OFFSET 2 LIMIT 1")
    context = seal.private_key_context(row["id"], row["account_id"], row["key_type"], row["spki_sha256"])
    wrapped = seal.rewrap(ring.keks[1], ringfile.load(shop.path).keks[0], context, row["wrapped_key"])
    sql = "UPDATE private_keys SET (kek_id, wrapped_key) = ROW ($2, $3) WHERE id = $1"
    shop.rows(sql, row["id"], newest, wrapped)

    async def work(database: Database) -> None:
        async for batch in rotation.rewrap(database, ring):
            assert batch.damaged == ()

    shop.with_database(work)
    assert shop.damaged() == []
    shop.run("keys", "rotate")
    assert (shop.others(), set(shop.under())) == (0, {newest})
    assert shop.damaged() == []


def test_a_rotation_names_a_row_that_does_not_open_and_does_the_others(shop: Place) -> None:
    """The exit status is 1, the row stays as it is, and a second run names it again."""
    seed(shop, 5)
    (bad,) = shop.rows(
        "UPDATE private_keys SET wrapped_key = set_byte(wrapped_key, 20, 255 - get_byte(wrapped_key, 20)) "
        "WHERE id = (SELECT id FROM private_keys ORDER BY id LIMIT 1) RETURNING id, wrapped_key"
    )
    shop.add()
    for count in (5, 0):
        said = shop.run("keys", "rotate", status=1)
        assert f"re-wrapped {count} data keys" in said.out
        assert said.err.count(f"row {bad['id']} does not open") == 1
    assert shop.value("SELECT wrapped_key FROM private_keys WHERE id = $1", bad["id"]) == bad["wrapped_key"]
    assert shop.under()[shop.ids()[0]] == 4


# The file: add, promote, retire, init, status.


def test_a_kek_that_many_add_at_once_is_not_lost(shop: Place) -> None:
    """Processes and threads that change the file wait for each other, and all that they add is there."""
    processes = [shop.start("keys", "add") for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        added = [entry.id for entry in pool.map(lambda _: ringfile.add(shop.path), range(40))]
    said = [ended(process).out for process in processes]
    added += [re.findall(r"added KEK ([0-9a-f]{16}), not yet current", text)[0] for text in said]
    ids = shop.ids()
    assert (len(ids), len(set(ids)), set(ids[1:])) == (43, 43, set(added))
    assert stat.S_IMODE(shop.path.stat().st_mode) == 0o600
    assert [entry.name for entry in shop.data_dir.iterdir()] == ["keyring.json"]


def test_the_newest_kek_is_promoted_once(shop: Place) -> None:
    """Also of KEKs that were added in the same second the last one is the newest, also once it is the current one."""
    added = [shop.ids()[0], *(ringfile.add(shop.path).id for _ in range(4))]
    assert [ringfile.promote(shop.path).id for _ in range(4)] == [added[-1]] * 4
    assert shop.ids() == [added[-1], *added[:-1]]
    made = [entry.created_at for entry in shop.content().keks]
    assert len(set(made)) == len(made)
    assert shop.run("keys", "rotate", "--dry-run").out.endswith(f"under KEK {added[-1]}\n")


@pytest.mark.serve
def test_a_kek_is_retired_once_nothing_needs_it(place: Place, served: Live, ca_id: str) -> None:
    """ApiError with the count while rows need it; once none does it goes, and the server opens all the others."""
    assert create(served).status_code == 201
    old, new = place.ids()[0], place.add()
    # As a rotation that was killed after its first step.
    ringfile.promote(place.path)
    place.settle()
    needs = (
        f"{place.under()[old]} private keys and {place.value('SELECT count(*) FROM peppers WHERE kek_id = $1', old)}"
    )
    assert f"{needs} peppers need the KEK {old}" in place.run("keys", "retire", old, status=1).err
    place.run("keys", "rotate")
    for id_ in (new, "unknown", "0" * 16):
        place.run("keys", "retire", id_, status=1)
    assert f"retired KEK {old}" in place.run("keys", "retire", old).out
    assert old not in place.ids()
    for _ in range(6):
        assert ca_csr(served, ca_id).status_code == 200
        assert create(served).status_code == 201
    assert place.under().keys() == {new}
    assert place.damaged() == []
    last = "SELECT action, actor, path FROM audit_log WHERE resource_type = 'ring' ORDER BY at DESC LIMIT 1"
    assert tuple(place.rows(last)[0]) == ("delete", "operator", f"keys retire {old}")


@pytest.mark.serve
def test_a_machine_that_was_forgotten_seals_nothing_that_cannot_be_opened(
    place: Place, served: Live, ca_id: str, tmp_path: Path
) -> None:
    """A server whose ring is behind is refused by the database, rather than storing keys under a retired KEK."""
    elsewhere = Place(place.database_url, tmp_path / "elsewhere")
    elsewhere.data_dir.mkdir()
    files.write_private(elsewhere.path, place.path.read_text())
    old = place.ids()[0]
    new = elsewhere.add()
    elsewhere.run("keys", "rotate")
    assert create(served).status_code == 201
    assert elsewhere.under().keys() == {old, new}
    elsewhere.run("keys", "rotate")
    elsewhere.settle()
    elsewhere.run("keys", "retire", old)
    before = elsewhere.under()
    for _ in range(4):
        assert create(served).status_code == 503
        assert ca_csr(served, ca_id).status_code == 500
    assert elsewhere.under() == before
    files.write_private(place.path, elsewhere.path.read_text())
    for _ in range(4):
        assert create(served).status_code == 201
        assert ca_csr(served, ca_id).status_code == 200
    assert place.under().keys() == {new}
    assert place.damaged() == []


def test_the_current_kek_is_never_retired(shop: Place) -> None:
    """Also when nothing needs it, because a rotation was killed after its first step."""
    shop.add()
    current = ringfile.promote(shop.path).id
    shop.settle()
    assert "is the current one" in shop.run("keys", "retire", current, status=1).err
    assert current in shop.ids()


def test_a_kek_stays_for_a_while_after_another_became_the_current_one(shop: Place) -> None:
    """What was sealed under it may be on its way to the database; where no KEK ever changed there is no such wait."""
    unused = shop.add()
    assert f"retired KEK {unused}" in shop.run("keys", "retire", unused).out
    old = shop.ids()[0]
    shop.add()
    shop.run("keys", "rotate")
    since = shop.content().current_since
    assert since
    assert abs((datetime.now(UTC) - since).total_seconds()) < SECONDS
    assert re.search(r"try again in ([1-9]|[1-5]\d|60|61) seconds", shop.run("keys", "retire", old, status=1).err)
    assert old in shop.ids()
    shop.settle()
    shop.run("keys", "retire", old)
    assert len(shop.ids()) == 1


def test_a_retired_kek_is_not_taken_for_the_current_one_again(shop: Place) -> None:
    """A machine with the ring of before a rotation is told so in one line, and changes nothing."""
    kept, old = shop.path.read_text(), shop.ids()[0]
    shop.add()
    shop.run("keys", "rotate")
    shop.settle()
    shop.run("keys", "retire", old)
    files.write_private(shop.path, kept)
    seals = "SELECT count(*) FROM private_keys WHERE kek_id = $1"
    for words in (("keys", "rotate"), ("keys", "add", "--pepper"), ("token", "list")):
        said = shop.run(*words, status=1)
        assert len(said.err.splitlines()) == 1
    assert shop.value(seals, old) == 0


def test_what_is_refused_is_not_audited_as_done(shop: Place) -> None:
    """The audit log has no row of a KEK that was not taken out of the ring."""
    shop.add()
    before = shop.value("SELECT count(*) FROM audit_log")
    for id_ in (shop.ids()[0], "unknown"):
        shop.run("keys", "retire", id_, status=1)
    assert shop.value("SELECT count(*) FROM audit_log") == before


def test_the_ring_stays_its_owners(shop: Place) -> None:
    """A command of root leaves the file to the service that must read it, and a link to it a link."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    real = shop.path.rename(shop.data_dir / "real.json")
    os.chown(real, 65534, 65534)
    shop.path.symlink_to(real)
    for words in (("add",), ("rotate",)):
        shop.run("keys", *words)
        state = real.lstat()
        assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (65534, 65534, 0o600)
        assert shop.path.is_symlink()
    assert len(shop.ids()) == 2


def test_a_draft_that_goes_while_it_is_looked_at_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command may write the ring at the moment at which this one looks for what killed starts left."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    draft = tmp_path / ".keyring.json.4711"
    draft.touch()

    def clock() -> float:
        # It is looked at in between.
        draft.unlink()
        return 0.0

    monkeypatch.setattr(time, "time", clock)
    ringfile.sweep(path)
    monkeypatch.undo()
    assert not draft.exists()


def test_init_makes_a_ring_and_never_replaces_one(database_url: str, tmp_path: Path) -> None:
    """The first makes a file of mode 0600, the second says that there is one and leaves it."""
    place = Place(database_url, tmp_path / "new" / "data")
    assert f"created the ring {place.path}" in place.run("keys", "init").out
    before = place.path.read_bytes()
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    assert place.run("keys", "init", status=1).err == f"keystead: there is a ring already: {place.path}\n"
    assert place.path.read_bytes() == before
    (tmp_path / "file").touch()
    nowhere = Place(database_url, tmp_path / "file" / "data")
    assert "cannot be written" in nowhere.run("keys", "init", status=1).err


def test_status_shows_what_needs_each_kek_and_pepper(shop: Place) -> None:
    """The table and the JSON say which is current, which is to be, and how much each is needed, and nothing secret."""
    seed(shop, 3)
    shop.add()
    (first,) = found(shop, "pepper")
    shop.run("token", "create", "x", "--account", shop.value("SELECT slug FROM accounts"))
    rows = {row["id"]: row for row in found(shop)}
    old, new = shop.ids()
    assert (rows[old]["kind"], rows[old]["state"]) == ("KEK", "current")
    assert rows[old]["needed_by"] == "3 private keys, 1 peppers"
    assert (rows[new]["state"], rows[new]["needed_by"]) == ("not yet current", "0 private keys, 0 peppers")
    assert (rows[first["id"]]["state"], rows[first["id"]]["needed_by"]) == ("current", "1 tokens, 0 global keys")
    shop.run("keys", "rotate")
    shop.run("keys", "add", "--pepper")
    states = {row["id"]: row["state"] for row in found(shop)}
    assert (states[old], states[new], states[first["id"]]) == ("earlier", "current", "earlier")
    said = shop.run("keys", "status")
    head, *lines = said.out.splitlines()
    assert head.split() == ["id", "kind", "state", "created_on", "needed_by"]
    assert len(lines) == 4
    for text in (said.out, said.err, json.dumps(found(shop))):
        assert all(base64.b64encode(entry.secret).decode() not in text for entry in shop.content().keks)


def found(place: Place, kind: str = "") -> list[Json]:
    rows: list[Json] = json.loads(place.run("keys", "status", "--json").out)
    return [row for row in rows if kind in {"", row["kind"]}]


def test_the_operators_work_on_the_ring_is_audited(shop: Place) -> None:
    """Each command that changes ring or peppers leaves a row with its words, filed under no account."""
    (pepper,) = found(shop, "pepper")
    old = shop.ids()[0]
    shop.add()
    shop.run("keys", "rotate")
    shop.settle()
    shop.run("keys", "retire", old)
    shop.run("keys", "add", "--pepper")
    shop.run("keys", "retire", pepper["id"])
    sql = "SELECT action, resource_type, path, actor, account_id FROM audit_log ORDER BY at"
    (new,) = shop.ids()
    rows = [tuple(row) for row in shop.rows(sql)]
    assert [row[:3] for row in rows] == [
        ("create", "ring", f"keys add {new}"),
        ("rotate", "ring", f"keys rotate {new}"),
        ("delete", "ring", f"keys retire {old}"),
        ("create", "pepper", "keys add"),
        ("delete", "pepper", f"keys retire {pepper['id']}"),
    ]
    assert {row[3:] for row in rows} == {("operator", UUID(int=0))}


# Processes that have the ring open follow its file.

CONTEXT = seal.pepper_context(UUID(int=7))


def test_a_kek_that_is_not_known_is_looked_for_in_the_file(tmp_path: Path) -> None:
    """What another process has sealed under a KEK that was added since opens; an unknown one is KeyDamaged."""
    path = tmp_path / "keyring.json"
    here = ringfile.create(path)
    there = ringfile.load(path)
    ringfile.add(path)
    ringfile.promote(path)
    sealed = there.sealed(CONTEXT, b"secret")
    assert sealed.kek_id == ringfile.read(path).keks[0].id != here.keks[0].id
    assert here.open_(UUID(int=7), CONTEXT, sealed) == b"secret"
    assert here.keks == there.keks
    with pytest.raises(KeyDamaged, match=f"row {UUID(int=7)} needs the KEK 'stranger'"):
        here.open_(UUID(int=7), CONTEXT, msgspec.structs.replace(sealed, kek_id="stranger"))


def test_a_promoted_kek_seals_from_the_next_secret_on(tmp_path: Path) -> None:
    """A process that knows the new KEK already notices that it has become the current one, and reads the file once."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    new = ringfile.add(path).id
    here = ringfile.load(path)
    assert here.sealed(CONTEXT, b"secret").kek_id != new
    ringfile.promote(path)
    assert here.sealed(CONTEXT, b"secret").kek_id == new
    read_once = here.keks
    here.follow()
    assert here.keks is read_once


def test_a_change_while_the_ring_is_read_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KEK that becomes the current one after the file was read, and before the process has it, seals all the same."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    new = ringfile.add(path).id
    read = ringfile.read

    def read_then_promoted(path: Path) -> ringfile.Content:
        monkeypatch.setattr(ringfile, "read", read)
        content = read(path)
        ringfile.promote(path)
        return content

    monkeypatch.setattr(ringfile, "read", read_then_promoted)
    assert ringfile.load(path).sealed(CONTEXT, b"secret").kek_id == new


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _anothers(path: Path) -> None:
    path.unlink()
    ringfile.create(path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "open to others": lambda path: path.chmod(0o644),
    "away": Path.unlink,
    "a folder": _as_folder,
    "another installation's": _anothers,
}


@contextlib.contextmanager
def broken(path: Path, how: str) -> Iterator[None]:
    """The ring's file in some bad state for the while."""
    kept = path.read_text()
    BROKEN[how](path)
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        files.write_private(path, kept)


@pytest.mark.parametrize("how", [how for how in BROKEN if how != "another installation's"])
def test_a_ring_that_is_broken_for_the_moment_changes_nothing(tmp_path: Path, how: str) -> None:
    """Who has it open goes on sealing and opening, and follows the file again once it is mended."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    here = ringfile.load(path)
    current, sealed = here.keks[0].id, here.sealed(CONTEXT, b"secret")
    with broken(path, how):
        assert here.sealed(CONTEXT, b"secret").kek_id == current
        assert here.open_(UUID(int=7), CONTEXT, sealed) == b"secret"
        with pytest.raises(KeyDamaged):
            here.open_(UUID(int=7), CONTEXT, msgspec.structs.replace(sealed, kek_id="stranger"))
        with pytest.raises(Misconfigured):
            ringfile.load(path)
    ringfile.add(path)
    new = ringfile.promote(path).id
    assert here.sealed(CONTEXT, b"secret").kek_id == new


@pytest.mark.serve
def test_a_running_server_finds_a_kek_that_it_has_never_heard_of(place: Place, served: Live, ca_id: str) -> None:
    """After a rotation each worker opens keys that are under the new KEK, though it has sealed nothing since."""
    place.add()
    place.run("keys", "rotate")
    for _ in range(8):
        answer = ca_csr(served, ca_id)
        assert answer.status_code == 200, answer.text


@pytest.mark.serve
def test_a_running_server_survives_a_broken_ring(place: Place, served: Live, ca_id: str) -> None:
    """It seals and opens while the file is broken, and follows it when it is mended."""
    for how in ("half of it", "away"):
        with broken(place.path, how):
            for _ in range(4):
                assert create(served).status_code == 201
                assert ca_csr(served, ca_id).status_code == 200
    place.add()
    place.run("keys", "rotate")
    made = [create(served).json()["result"]["id"] for _ in range(4)]
    assert ca_csr(served, ca_id).status_code == 200
    assert keks_of(place, list(map(UUID, made))) == {place.ids()[0]}
    assert place.damaged() == []


@pytest.mark.serve
def test_a_ring_of_another_installation_seals_nothing(place: Place, served: Live, ca_id: str) -> None:
    """A file that was put there by mistake stores no key that is lost, and the right one is followed again."""
    before = place.under()
    with broken(place.path, "another installation's"):
        assert {create(served).status_code for _ in range(4)} == {503}
    assert place.under() == before
    assert (create(served).status_code, ca_csr(served, ca_id).status_code) == (201, 200)


@pytest.mark.serve
def test_a_kek_that_was_made_elsewhere_seals_once_the_database_knows_it(place: Place, served: Live, ca_id: str) -> None:
    """A ring that comes with a new first KEK, as the next version of a mounted secret does, takes one command."""
    content, before = place.content(), place.under()
    made = ringfile._new_entry(content)
    ringfile._write(place.path, msgspec.structs.replace(content, keks=(made, *content.keks)))
    assert {create(served).status_code for _ in range(4)} == {503}
    assert (ca_csr(served, ca_id).status_code, place.under()) == (200, before)
    place.run("keys", "rotate")
    assert (create(served).status_code, ca_csr(served, ca_id).status_code) == (201, 200)
    assert set(place.under()) == {made.id}


# Progress.


def test_progress_without_a_terminal_is_plain_lines(shop: Place) -> None:
    """A long work says now and then on standard error how far it is, in whole lines without control characters."""
    seed(shop, 60)
    shop.add()
    patch = (
        "from keystead.commands import keys; from keystead.custody import rotation; "
        "rotation.BATCH = 20; keys.LINE_SECONDS = 0"
    )
    said = ended(shop.start("keys", "rotate", patch=patch))
    pattern = r"re-wrapped (\d+) of 61, \d+ a second"
    counts = [int(re.fullmatch(pattern, line)[1]) for line in said.err.splitlines()]  # type: ignore[index]
    assert counts[:4] == [1, 21, 41, 61]
    assert "\x1b" not in said.err
    assert shop.run("keys", "verify").err == ""


def test_progress_on_a_terminal_is_a_bar(shop: Place) -> None:
    """There it is a bar with the count and the rate, drawn anew in place; what is printed at the end stays outside."""
    seed(shop, 30)
    ours, theirs = pty.openpty()
    process = shop.start("keys", "verify", stderr=theirs)
    os.close(theirs)
    drawn = b""
    # The terminal of a process that has ended cannot be read.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            drawn += part
    os.close(ours)
    out, _ = process.communicate(timeout=COMMAND_SECONDS)
    assert process.returncode == 0
    text = drawn.decode()
    assert "verified" in text
    assert "31/31" in text
    assert re.search(r"\d+/s", text)
    assert "\x1b[" in text
    assert out.startswith("31 keys and peppers are good, 0 are damaged (")


def test_verify_can_be_slowed_down(shop: Place) -> None:
    """With a rate it takes at least as long as that rate means, so that it can run beside a busy server."""
    seed(shop, 4)
    began = time.monotonic()
    said = shop.run("keys", "verify", "--rate", "10")
    assert time.monotonic() - began >= 0.4
    assert said.out.startswith("5 keys and peppers are good")
    assert "--rate" in shop.run("keys", "verify", "--rate", "0", status=2).err


# A ring on a read-only file system.


def test_on_a_read_only_file_system_any_reader_is_fine_and_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes that let others read are taken as they are there; one that lets them write is refused everywhere."""
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    for mode in (0o400, 0o440, 0o444, 0o644):
        path.chmod(mode)
        ringfile.load(path)
    for mode in (0o620, 0o602, 0o660, 0o666):
        path.chmod(mode)
        with pytest.raises(Misconfigured, match="others can write the ring"):
            ringfile.load(path)
    monkeypatch.undo()
    path.chmod(0o644)
    with pytest.raises(Misconfigured, match="others can read the ring"):
        ringfile.load(path)


def test_on_a_read_only_file_system_rotate_only_rewraps(shop: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the first KEK of the file as it is, which whoever made the mount has chosen."""
    seed(shop, 3)
    old, new = shop.ids()[0], shop.add()
    before = shop.path.read_bytes()
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
        assert shop.run("keys", "rotate", "--dry-run").out == f"would re-wrap 0 data keys under KEK {old}\n"
        shop.run("keys", "rotate")
    assert (shop.path.read_bytes(), shop.under()) == (before, {old: 3})
    ringfile.promote(shop.path)
    shop.add()
    before = shop.path.read_bytes()
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
        assert f"re-wrapped 4 data keys under KEK {new}" in shop.run("keys", "rotate").out
    assert (shop.path.read_bytes(), shop.under()) == (before, {new: 3})


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_ring_on_a_read_only_mount(shop: Place, tmp_path: Path, kind: str) -> None:
    """A real mount: commands open and re-wrap with a ring that others may read, and those that would change it fail."""
    seed(shop, 3)
    new = shop.add()
    ringfile.promote(shop.path)
    shop.settle()
    unused = shop.add()
    shop.path.chmod(0o444)
    with mounted(shop.data_dir if kind == "folder" else shop.path, tmp_path / kind) as folder:
        mount = Place(shop.database_url, folder)
        assert f"re-wrapped 4 data keys under KEK {new}" in mount.run("keys", "rotate").out
        assert mount.run("keys", "verify").out.startswith("4 keys and peppers are good")
        for words in (("add",), ("retire", unused)):
            assert "cannot be written (" in mount.run("keys", *words, status=1).err
    assert shop.under() == {new: 3}


# Peppers.


def test_a_new_pepper_is_used_once_every_process_knows_it(shop: Place) -> None:
    """For the first seconds tokens are still digested with the one before, which all of them have."""
    shop.run("account", "create", "default")
    (earlier,) = found(shop, "pepper")
    newest = UUID(re.findall(r"added pepper ([0-9a-f-]{36})", shop.run("keys", "add", "--pepper").out)[0])
    # However long the commands take, it is in its first seconds.
    shop.rows("UPDATE peppers SET created_at = created_at + interval '1 hour'")
    first, _ = new_token(shop)
    shop.rows("UPDATE peppers SET created_at = created_at - interval '2 hours'")
    second, _ = new_token(shop)
    assert (pepper_of(shop, first), pepper_of(shop, second)) == (UUID(earlier["id"]), newest)


@pytest.mark.serve
def test_a_token_made_under_a_new_pepper_works_on_a_server_that_runs(place: Place, served: Live) -> None:
    """The command digests with the newest pepper, and the workers find it by themselves."""
    newest = new_pepper(place)
    token_id, value = new_token(place)
    assert pepper_of(place, token_id) == newest
    # Here no time was left to the workers.
    until(lambda: everywhere(served, value))


@pytest.mark.serve
def test_a_credential_moves_to_the_newest_pepper_at_its_next_use(place: Place, served: Live) -> None:
    """A token and a global key of the earlier pepper open the door, and are digested with the newest from then on."""
    token_id, value = new_token(place)
    until(lambda: everywhere(served, value))
    assert with_key(served) == 200
    newest = new_pepper(place)
    assert newest not in {pepper_of(place, token_id), key_pepper(place, served)}
    known_everywhere(place, served)

    def moved() -> bool:
        # Whom a worker has met within the last second, it does not look up.
        assert (with_token(served, value), with_key(served)) == (200, 200)
        return {pepper_of(place, token_id), key_pepper(place, served)} == {newest}

    until(moved)
    # They go on working everywhere.
    assert everywhere(served, value)
    assert {with_key(served) for _ in range(8)} == {200}


@pytest.mark.serve
def test_a_credential_moves_although_the_workers_meet_no_other(place: Place, served: Live) -> None:
    """A running server learns of a new pepper also when everybody who calls it has a credential of the earlier one."""
    token_id, value = new_token(place)
    until(lambda: everywhere(served, value))
    newest = new_pepper(place)

    def moved() -> bool:
        # A worker that has not read the new pepper yet does not know the token that another has just moved.
        with_token(served, value)
        return pepper_of(place, token_id) == newest

    until(moved)
    until(lambda: everywhere(served, value))


@pytest.mark.serve
def test_a_pepper_is_retired_once_no_credential_needs_it(place: Place, served: Live) -> None:
    """ApiError with the counts; with --revoke what still needs it is dead a second later, on running servers too."""
    token_id, value = new_token(place)
    until(lambda: everywhere(served, value))
    earlier = pepper_of(place, token_id)
    stays = place.value("SELECT id FROM tokens WHERE name = 'first token'")
    newest = new_pepper(place)
    known_everywhere(place, served)

    def moved() -> bool:
        assert (with_token(served, served.env["CLOUDFLARE_API_TOKEN"]), with_key(served)) == (200, 200)
        return {pepper_of(place, stays), key_pepper(place, served)} == {newest}

    until(moved)
    needed = place.value("SELECT count(*) FROM tokens WHERE pepper_id = $1", earlier)
    assert needed >= 1
    said = place.run("keys", "retire", str(earlier), status=1)
    assert f"{needed} tokens and 0 global keys need this pepper" in said.err
    said = place.run("keys", "retire", str(earlier), "--revoke")
    assert f"retired pepper {earlier}, with {needed} tokens and global keys" in said.out
    until(lambda: everywhere(served, value, 403))
    assert everywhere(served, served.env["CLOUDFLARE_API_TOKEN"])
    assert with_key(served) == 200
    assert str(earlier) not in {row["id"] for row in found(place, "pepper")}
    gone = "SELECT count(*) FROM audit_log WHERE action = 'delete' AND resource_id = ANY($1::uuid[])"
    assert place.value(gone, [earlier, token_id]) == 2


def test_the_newest_pepper_is_not_retired(shop: Place) -> None:
    """Neither plainly nor with --revoke, and an unknown one is said to be unknown."""
    (pepper,) = found(shop, "pepper")
    for words in ((), ("--revoke",)):
        assert "this is the newest pepper" in shop.run("keys", "retire", pepper["id"], *words, status=1).err
    said = shop.run("keys", "retire", str(UUID(int=5)), status=1)
    assert "there is no pepper" in said.err
    assert len(found(shop, "pepper")) == 1


def test_a_retired_pepper_counts_tokens_and_global_keys(shop: Place) -> None:
    """The counts are those of the credentials that it digests, and --revoke takes all of them away, audited each."""
    shop.run("account", "create", "acme")
    (made,) = json.loads(shop.run("user", "create", "a@acme.example", "--account", "acme", "--json").out)
    for name in ("one", "two"):
        shop.run("token", "create", name, "--account", "acme")
    (earlier,) = found(shop, "pepper")
    new_pepper(shop)
    shop.run("token", "create", "three", "--account", "acme")
    said = shop.run("keys", "retire", earlier["id"], status=1)
    assert "2 tokens and 1 global keys need this pepper" in said.err
    assert "with 3 tokens and global keys" in shop.run("keys", "retire", earlier["id"], "--revoke").out
    assert [row["name"] for row in shop.rows("SELECT name FROM tokens")] == ["three"]
    assert tuple(shop.rows("SELECT key_digest, key_pepper_id FROM users")[0]) == (None, None)
    audited = "SELECT action, resource_type, resource_id FROM audit_log WHERE path LIKE 'keys retire%'"
    rows = [tuple(row) for row in shop.rows(audited)]
    assert sorted(row[:2] for row in rows) == [
        ("delete", "pepper"),
        ("delete", "token"),
        ("delete", "token"),
        ("update", "user"),
    ]
    assert {UUID(earlier["id"]), UUID(made["id"])} <= {row[2] for row in rows}
