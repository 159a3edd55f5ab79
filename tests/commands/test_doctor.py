"""`keystead doctor`: a healthy installation is good, and each fault is one line that says what would mend it."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec
import pytest
from support.command import run_command
from support.databases import connected, new_database
from support.live import Live, free_port, serving
from support.processes import is_gone, processes_below
from support.released import RELEASED
from support.rotation import mounted
from support.waiting import comes_about, until

from keystead import config
from keystead.commands import doctor
from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.server import first_start, postgres
from keystead.store import database as db
from keystead.store import schema
from keystead.store.database import Database

UNRELEASED = RELEASED["schema_0009"] + "UPDATE schema_version SET version = 7"
LINE = re.compile(r"(ok |BAD) ([a-z ]+): (.+)")
PASSWORD = "open-sesame"
# Where nobody listens, whatever else runs here.
PORT = str(free_port())
SECONDS = 60.0
CHECKS = [
    *(
        "settings",
        "data folder",
        "ring",
        "trust anchors",
        "database",
        "durability",
        "clock",
        "connections",
        "schema",
        "custody",
    ),
    "server",
]


class Home(NamedTuple):
    """An installation without a server; its ring lies apart from its data folder."""

    url: str
    data_dir: Path
    ring: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "KEYSTEAD_DATABASE_URL": self.url,
            "KEYSTEAD_DATA_DIR": str(self.data_dir),
            "KEYSTEAD_KEYRING": str(self.ring),
            "KEYSTEAD_PORT": PORT,
            "KEYSTEAD_WORKERS": "1",
        }


class Line(NamedTuple):
    """What is said of one check."""

    good: bool
    check: str
    text: str


class Said(NamedTuple):
    """What a run said."""

    status: int
    lines: list[Line]
    printed: str

    @property
    def bad(self) -> Line:
        """The one line that is bad, of a run that ended so."""
        found = [line for line in self.lines if not line.good]
        assert (self.status, len(found)) == (1, 1), self.printed
        return found[0]

    def is_good(self) -> bool:
        return self.status == 0 and all(line.good for line in self.lines)


Ask = Callable[..., Said]


def judged(status: int, out: str, err: str) -> Said:
    """Read what was printed for people: each line has a check and its finding, and nothing stands beside them."""
    assert err == ""
    found = [LINE.fullmatch(line) for line in out.splitlines()]
    lines = [Line(match[1] == "ok ", match[2], match[3]) for match in found if match]
    assert lines, out
    assert len(lines) == len(found), out
    assert (status == 0) == all(line.good for line in lines), out
    return Said(status, lines, out)


Printed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def printed() -> Printed:
    """Runs `keystead doctor` in this process."""

    def run(environ: dict[str, str], *words: str) -> tuple[int, str, str]:
        return run_command(environ, "doctor", *words)

    return run


@pytest.fixture
def ask(printed: Printed) -> Ask:
    """Asks the doctor of an installation, with some settings changed."""

    def run(home: Home | dict[str, str], **changes: object) -> Said:
        environ = home.environ if isinstance(home, Home) else home
        changed = {f"KEYSTEAD_{name}": str(value) for name, value in changes.items()}
        return judged(*printed({**environ, **changed}))

    return run


async def install(url: str, folder: Path) -> Home:
    """An installation on a database that has the schema."""
    home = Home(url, folder / "data", folder / "ring" / "keyring.json")
    home.data_dir.mkdir(mode=0o700)
    database = Database(url, 1)
    settings = config.Settings(data_dir=home.data_dir, database_url=url, keyring=home.ring)
    await first_start.ring_for(settings, database)
    await database.close()
    return home


@pytest.fixture(scope="session")
def cluster(durable_cluster: postgres.Cluster) -> postgres.Cluster:
    """Its settings are among what doctor looks at."""
    return durable_cluster


@pytest.fixture
async def home(database_url: str, tmp_path: Path) -> Home:
    """A healthy installation of this test's own."""
    return await install(database_url, tmp_path)


async def execute(url: str, *statements: str) -> None:
    async with connected(url) as connection:
        for sql in statements:
            await connection.execute(sql)


async def tables(url: str) -> dict[str, list[str]]:
    """Every row of every table."""
    listed = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    async with connected(url) as connection:
        names = [row["relname"] for row in await connection.fetch(listed)]
        return {n: [row["r"] for row in await connection.fetch(f"SELECT t::text AS r FROM {n} t")] for n in names}


def files_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its mode, the time it was changed, and what is in it."""
    paths = [folder, *sorted(folder.rglob("*"))]
    states = ((path, path.lstat()) for path in paths)
    return {
        str(path): (state.st_mode, state.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path, state in states
    }


# A healthy installation.


async def test_a_healthy_installation_is_good(home: Home, tmp_path: Path, printed: Printed) -> None:
    """Every check is good, for people and as JSON; and no row and no file is other than before."""
    before = await tables(home.url), files_in(tmp_path)
    said = judged(*printed(home.environ))
    assert said.is_good(), said.printed
    assert [line.check for line in said.lines] == CHECKS
    assert "keystead serve" in said.lines[-1].text
    status, out, err = printed(home.environ, "--json")
    assert (status, err) == (0, "")
    as_json = json.loads(out)
    assert [list(row) for row in as_json] == [["check", "good", "text"]] * len(CHECKS)
    assert [(row["check"], row["good"]) for row in as_json] == [(check, True) for check in CHECKS]
    # How far clocks are apart is never the same twice.
    stable = [row["text"] for row in as_json if row["check"] != "clock"]
    assert stable == [line.text for line in said.lines if line.check != "clock"]
    assert (await tables(home.url), files_in(tmp_path)) == before


async def test_a_fault_is_told_as_json_and_by_the_exit_status(home: Home, printed: Printed) -> None:
    """With --json a fault has good: false, and the exit status is 1 as it is without."""
    status, out, err = printed({**home.environ, "KEYSTEAD_WORKERS": "many"}, "--json")
    (row,) = json.loads(out)
    assert (status, err, row["check"], row["good"]) == (1, "", "settings", False)
    assert "KEYSTEAD_WORKERS" in row["text"]


def test_where_nothing_is_installed_it_says_so_and_makes_nothing(ask: Ask, tmp_path: Path) -> None:
    """In an empty folder, without the address of a database, it names what makes an installation."""
    said = ask({"KEYSTEAD_DATA_DIR": str(tmp_path)})
    (text,) = (line.text for line in said.lines if line.check == "database")
    assert said.status == 1
    assert "keystead serve" in text
    assert "KEYSTEAD_DATABASE_URL" in text
    assert list(tmp_path.iterdir()) == []


# Settings and files.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORKERS": "x"}, ("KEYSTEAD_WORKERS", "1 to 64")),
        ({"PORT": "http"}, ("KEYSTEAD_PORT", "1 to 65535")),
        ({"WORKER": "2"}, ("KEYSTEAD_WORKER is not a setting", "KEYSTEAD_WORKERS")),
        ({"HOST": "0.0.0.0"}, ("KEYSTEAD_TLS_CERT", "127.0.0.1")),
        ({"TLS_CERT": "/dev/null"}, ("KEYSTEAD_TLS_KEY",)),
        ({"DATABASE_URL": f"mysql://u:{PASSWORD}@127.0.0.1/x"}, ("KEYSTEAD_DATABASE_URL", "postgresql://")),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    ask: Ask, tmp_path: Path, changes: dict[str, str], words: tuple[str, ...]
) -> None:
    """It is the only line, with the setting and what it takes, and without a password."""
    said = ask(Home("postgresql://nobody@127.0.0.1:1/x", tmp_path, tmp_path / "ring"), **changes)
    assert said.bad.check == "settings"
    assert said.lines == [said.bad]
    assert all(word in said.bad.text for word in words)
    assert PASSWORD not in said.printed


@pytest.mark.parametrize("kind", ["missing", "file", "full"])
async def test_a_data_folder_that_cannot_be_used_is_named(
    ask: Ask, home: Home, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not there, is no folder or has no room left is named, with what would help."""
    folder = home.data_dir if kind == "full" else home.data_dir / "other"
    mend = "KEYSTEAD_DATA_DIR"
    if kind == "file":
        folder.touch()
    elif kind == "full":
        usage, mend = shutil.disk_usage(folder), "free some space"
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**27))
    bad = ask(home, DATA_DIR=folder).bad
    assert bad.check == "data folder"
    assert str(folder) in bad.text
    assert mend in bad.text


def test_a_data_folder_that_may_not_be_written_is_named(home: Home) -> None:
    """A folder that belongs to somebody else, or is read-only, is named, with the setting for another one."""
    # Root writes anywhere, unless it gives up that capability.
    drop = ("-dac_override,-dac_read_search",) * 2
    prefix = [f"{name}={caps}" for name, caps in zip(("--bounding-set", "--inh-caps"), drop, strict=True)]
    command = [*(("setpriv", *prefix) if os.geteuid() == 0 else ()), sys.executable, "-m", "keystead", "doctor"]
    home.data_dir.chmod(0o500)
    environ = {**home.environ, "PATH": os.defpath}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    home.data_dir.chmod(0o700)
    bad = judged(done.returncode, done.stdout, done.stderr).bad
    assert bad.check == "data folder"
    assert f"{home.data_dir} does not exist or is not writable" in bad.text
    assert "KEYSTEAD_DATA_DIR" in bad.text


def secret_text(entry: ringfile.Entry) -> str:
    """The secret as the file has it."""
    return base64.b64encode(entry.secret).decode()


@pytest.mark.parametrize("kind", ["missing", "damaged", "half", "others read", "others write"])
async def test_a_ring_that_cannot_be_used_is_one_line(ask: Ask, home: Home, kind: str) -> None:
    """One fault of the ring is told once, with its file, and mended by the backup or by `chmod 600`, as it may be."""
    content, secret = home.ring.read_bytes(), secret_text(ringfile.read(home.ring).keks[0])
    if kind == "missing":
        home.ring.unlink()
    elif kind in {"damaged", "half"}:
        home.ring.write_bytes(b"\xff" * 64 if kind == "damaged" else content[:-20])
    else:
        home.ring.chmod(0o644 if kind == "others read" else 0o620)
    before = await tables(home.url), files_in(home.ring.parent)
    said = ask(home)
    assert (await tables(home.url), files_in(home.ring.parent)) == before
    assert secret not in said.printed
    assert said.bad.check == "ring"
    assert str(home.ring) in said.bad.text
    closed = kind.startswith("others")
    assert (f"chmod 600 {home.ring}" in said.bad.text, "backup" in said.bad.text) == (closed, not closed)


async def test_a_ring_on_a_read_only_mount_is_good(ask: Ask, home: Home, tmp_path: Path) -> None:
    """A secrets mount that others may read is no fault: the server takes it, and nobody can change its modes."""
    home.ring.chmod(0o444)
    with mounted(home.ring.parent, tmp_path / "mount") as folder:
        said = ask(home, KEYRING=folder / home.ring.name)
    assert said.is_good(), said.printed


# Custody.


async def test_a_ring_without_a_kek_of_the_database_is_named(ask: Ask, home: Home, tmp_path: Path) -> None:
    """The ring of another installation is told by the KEK that it lacks, with whose ring is needed."""
    needed = ringfile.load(home.ring).keks[0].id
    other = tmp_path / "other.json"
    ringfile.create(other)
    before = await tables(home.url)
    bad = ask(home, KEYRING=other).bad
    assert await tables(home.url) == before
    assert bad.check == "custody"
    assert needed in bad.text
    assert "belongs to this database" in bad.text


async def test_a_kek_with_another_secret_is_named(ask: Ask, home: Home) -> None:
    """A KEK whose id is right and whose secret is not opens nothing; that is told, and written down as damage is."""
    content = ringfile.read(home.ring)
    (entry,) = content.keks
    fresh = msgspec.structs.replace(ringfile._new_entry(), id=entry.id)
    ringfile._write(home.ring, msgspec.structs.replace(content, keks=(fresh,)))
    before = await tables(home.url)
    said = ask(home)
    after = await tables(home.url)
    assert said.bad.check == "custody"
    assert "restore the ring" in said.bad.text
    assert secret_text(entry) not in said.printed
    assert secret_text(fresh) not in said.printed
    assert {name for name, rows in after.items() if rows != before[name]} <= {"audit_log"}


async def test_a_retired_kek_that_is_current_is_named(ask: Ask, home: Home) -> None:
    """A ring that no server starts with, since its current KEK was retired, is not called good."""
    ringfile.add(home.ring)
    ringfile.promote(home.ring)
    ring = ringfile.load(home.ring)
    database = Database(home.url, 1)
    await keyring.register(database, ring)
    await database.close()
    await execute(home.url, f"UPDATE keks SET retired_at = now() WHERE id = '{ring.keks[0].id}'")
    assert ring.keks[0].id in ask(home).bad.text


# The database.


@contextlib.contextmanager
def listening(answer: bool, backlog: int = 16) -> Iterator[int]:
    """A port where somebody closes what connects, or says nothing at all."""

    def close_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        thread = threading.Thread(target=close_all, daemon=True)
        if answer:
            thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        if answer:
            thread.join()


@contextlib.contextmanager
def dropping() -> Iterator[int]:
    """A port that drops the packets of whoever begins to connect, as a firewall does: nobody takes from its queue."""
    with listening(answer=False, backlog=0) as port, contextlib.ExitStack() as held:
        for _ in range(3):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("kind", ["refused", "no PostgreSQL", "unreadable", "no such role", "no such database"])
async def test_a_database_that_cannot_be_reached_is_named(ask: Ask, home: Home, kind: str) -> None:
    """One line names it and the setting of its address, and the password of that shows nowhere."""
    with listening(answer=True) as port:
        url = {
            "refused": f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/x",
            "no PostgreSQL": f"postgresql://u:{PASSWORD}@127.0.0.1:{port}/x",
            "unreadable": f"postgresql://u:p/{PASSWORD}@127.0.0.1/x",
            "no such role": home.url.replace("user=keystead", f"user=nobody&password={PASSWORD}"),
            "no such database": re.sub("///[^?]*", f"//:{PASSWORD}@/nothing", home.url),
        }[kind]
        said = ask(home, DATABASE_URL=url)
    assert PASSWORD not in said.printed
    assert said.bad.check == "database"
    assert "KEYSTEAD_DATABASE_URL" in said.bad.text


@pytest.mark.serve
def test_it_ends_soon_when_the_database_says_nothing(home: Home) -> None:
    """An address that drops packets, and one that takes them and keeps silent, are each given up within seconds."""
    with listening(answer=False) as silent, dropping() as dropped, ThreadPoolExecutor(2) as pool:
        urls = (f"postgresql://u:{PASSWORD}@127.0.0.1:{port}/x" for port in (silent, dropped))
        runs = [pool.submit(doctor.examine, {**home.environ, "KEYSTEAD_DATABASE_URL": url}) for url in urls]
        # Generous to a slow machine; it takes about five seconds.
        found = [run.result(SECONDS) for run in runs]
    for findings in found:
        assert [finding.check for finding in findings if not finding.good] == ["database"]
        assert not any(PASSWORD in finding.text for finding in findings)


class Own(NamedTuple):
    """A PostgreSQL of its own in the data folder, whose settings a test may change.

    `alone` is what was said of it before, when nothing ran, and `left` the processes that ran after that.
    """

    cluster: postgres.Cluster
    environ: dict[str, str]
    alone: list[doctor.Finding]
    left: list[int]

    async def alter(self, *statements: str) -> None:
        """Change settings, and wait until new connections have them."""
        connection: db.Connection = await asyncpg.connect(self.cluster.dsn)
        loaded = await connection.fetchval("SELECT pg_conf_load_time()")
        for sql in (*statements, "SELECT pg_reload_conf()"):
            await connection.execute(sql)
        await connection.close()

        async def in_force() -> bool:
            fresh: db.Connection = await asyncpg.connect(self.cluster.dsn)
            now = await fresh.fetchval("SELECT pg_conf_load_time()")
            await fresh.close()
            return bool(now > loaded)

        await comes_about(in_force)


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Own]:
    folder = tmp_path_factory.mktemp("own")
    environ = {"KEYSTEAD_DATA_DIR": str(folder / "data"), "KEYSTEAD_PORT": PORT, "KEYSTEAD_WORKERS": "1"}
    with postgres.running(folder / "data") as cluster:
        await schema.migrate(cluster.dsn)
        database = Database(cluster.dsn, 1)
        await first_start.ring_for(config.load(environ), database)
        await database.close()
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(doctor.examine, environ).result()
    left = processes_below(folder)
    with postgres.running(folder / "data") as cluster:
        yield Own(cluster, environ, alone, left)


@pytest.mark.serve
def test_the_bundled_postgresql_runs_for_as_long_as_it_takes(ask: Ask, own: Own) -> None:
    """Where no server runs, its PostgreSQL is started for the checks and stopped again; where one runs it is joined."""
    assert [finding.check for finding in own.alone if finding.good] == CHECKS
    assert own.left == []
    assert ask(own.environ).is_good()
    assert own.cluster.alive()


@pytest.mark.serve
@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("fsync", "ALTER SYSTEM SET fsync = off"),
        ("full_page_writes", "ALTER SYSTEM SET full_page_writes = off"),
        ("synchronous_commit", "ALTER SYSTEM SET synchronous_commit = off"),
        ("synchronous_commit", "ALTER DATABASE keystead SET synchronous_commit = off"),
        ("synchronous_commit", "ALTER ROLE keystead_owner SET synchronous_commit = off"),
    ],
    ids=["fsync", "full_page_writes", "of the system", "of the database", "of the role"],
)
async def test_what_makes_postgresql_lose_data_is_named_with_what_mends_it(
    ask: Ask, own: Own, name: str, off: str
) -> None:
    """A setting that is off is named wherever that was set, and the statement it tells sets it on again."""
    await own.alter(off)
    try:
        bad = ask(own.environ).bad
        assert bad.check == "durability"
        assert f"{name} is off" in bad.text
        mend = bad.text[bad.text.index("ALTER ") :]
        for statement in mend.split("; "):
            await own.alter(statement)
        said = ask(own.environ)
        assert said.is_good(), said.printed
    finally:
        resets = ("SYSTEM", "DATABASE keystead", "ROLE keystead_owner")
        await own.alter(*(f"ALTER {what} RESET ALL" for what in resets))


@pytest.mark.serve
async def test_a_wrong_password_is_never_shown(ask: Ask, own: Own) -> None:
    """With the right one all is good; with a wrong one the line names the setting, and neither of them."""
    await own.alter(f"CREATE ROLE app SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    rules = Path(own.environ["KEYSTEAD_DATA_DIR"]) / "postgres" / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all app scram-sha-256\n{before}")
    await own.alter()
    try:
        for password in (PASSWORD, "guess-this"):
            url = own.cluster.dsn.replace("user=keystead", f"user=app&password={password}")
            said = ask(own.environ, DATABASE_URL=url)
            assert PASSWORD not in said.printed
            assert "guess-this" not in said.printed
            if password == PASSWORD:
                assert said.is_good(), said.printed
    finally:
        rules.write_text(before)
        await own.alter("DROP ROLE app")
    assert said.bad.check == "database"
    assert "KEYSTEAD_DATABASE_URL" in said.bad.text


# Each makes public.… stand before PostgreSQL's own function or view of that name.
BEFORE = "ALTER DATABASE {} SET search_path = public, pg_catalog"
CLOCK = (
    "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql "
    "AS $$ SELECT pg_catalog.clock_timestamp() {} interval '10 seconds' $$"
)
TORN = (
    "CREATE VIEW public.pg_settings AS SELECT name, source, context, "
    "CASE name WHEN 'full_page_writes' THEN 'off' ELSE setting END AS setting FROM pg_catalog.pg_settings"
)
VERSION = (
    "CREATE FUNCTION public.current_setting(name text) RETURNS text LANGUAGE sql AS $$ SELECT CASE name "
    "WHEN 'server_version_num' THEN '140020' ELSE pg_catalog.current_setting(name) END $$"
)


@pytest.mark.parametrize(
    ("check", "sql", "words"),
    [
        ("schema", ["INSERT INTO schema_version (version) VALUES (999)"], ("newer", "run the newer release")),
        ("clock", ["UPDATE schema_version SET applied_at = now() + interval '1 day'"], ("it is before", "NTP")),
        ("clock", [CLOCK.format("+"), BEFORE], ("behind the database's", "NTP")),
        ("clock", [CLOCK.format("-"), BEFORE], ("ahead of the database's", "NTP")),
        ("database", [VERSION, BEFORE], ("PostgreSQL 14", "upgrade")),
        ("durability", ["ALTER DATABASE {} SET synchronous_commit = off"], ("synchronous_commit is off",)),
        ("durability", [TORN, BEFORE], ("full_page_writes is off",)),
    ],
    ids=["newer", "migrated tomorrow", "clock ahead", "clock behind", "old PostgreSQL", "not durable", "torn pages"],
)
async def test_a_database_with_a_fault_is_named(
    ask: Ask, home: Home, check: str, sql: list[str], words: tuple[str, ...]
) -> None:
    """Schema, clock, version and durability: each fault is one line, and looking at it changes nothing."""
    name = re.search("///([^?]*)", home.url)
    assert name
    await execute(home.url, *(each.format(name[1]) for each in sql))
    before = await tables(home.url), files_in(home.data_dir.parent)
    bad = ask(home).bad
    assert bad.check == check
    assert all(word in bad.text for word in words)
    assert (await tables(home.url), files_in(home.data_dir.parent)) == before


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("check", "sql", "words"),
    [
        ("schema", "SELECT 1", ("empty", "keystead migrate")),
        ("schema", RELEASED["schema_0009"], ("older", "keystead migrate")),
        ("schema", UNRELEASED, ("version 7", "before release 0.1.0")),
        ("database", "CREATE TABLE strange (n integer)", ("not Keystead's", "one of its own")),
        # What `pg_dump --schema-only` leaves: tables, and nothing in them.
        ("schema", "CREATE TABLE schema_version (version integer, applied_at timestamptz)", ("schema",)),
    ],
    ids=["empty", "older", "unreleased", "foreign", "without rows"],
)
async def test_a_database_without_this_schema_is_named(
    ask: Ask, cluster: postgres.Cluster, tmp_path: Path, check: str, sql: str, words: tuple[str, ...]
) -> None:
    """An empty, older or foreign database is one line with what to run, and stays what it is."""
    ring = tmp_path / "keyring.json"
    ringfile.create(ring)
    async with new_database(cluster, "template0") as url:
        await execute(url, sql)
        before = await tables(url)
        said = ask(Home(url, tmp_path, ring))
        assert await tables(url) == before
    assert all(word in said.bad.text for word in words)
    assert said.bad.check == check


async def test_a_database_in_another_encoding_is_named(ask: Ask, cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Names that are no ASCII would be lost in one that is not UTF-8; the line says how to make it."""
    name = "ascii_of_the_doctor"
    kind = "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
    await execute(cluster.dsn, f"CREATE DATABASE {name} {kind}")
    try:
        url = cluster.address(name)
        await schema.migrate(url)
        bad = ask(await install(url, tmp_path)).bad
        assert bad.check == "database"
        assert all(word in bad.text for word in ("SQL_ASCII", "ENCODING 'UTF8'"))
    finally:
        await execute(cluster.dsn, f"DROP DATABASE {name} WITH (FORCE)")


async def test_workers_for_more_connections_than_there_are_are_named(
    ask: Ask, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight connections each, and some to spare: above max_connections the line says both ways to mend it."""
    connection: db.Connection = await asyncpg.connect(home.url)
    most = int(await connection.fetchval("SHOW max_connections"))
    await connection.close()
    # So that they are not too many for the cores as well.
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    fits, many = (most - 10) // 8, most // 8
    assert ask(home, WORKERS=fits).is_good()
    bad = ask(home, WORKERS=many).bad
    assert bad.check == "connections"
    assert all(
        word in bad.text for word in (f"{many} workers", "KEYSTEAD_WORKERS", f"max_connections to {8 * many + 10}")
    )


def test_workers_far_above_the_cores_are_named(ask: Ask, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each core are good, and more are told with the number of the cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert ask(home, WORKERS=4).is_good()
    bad = ask(home, WORKERS=5).bad
    assert bad.check == "workers"
    assert all(word in bad.text for word in ("KEYSTEAD_WORKERS is 5", "2 cores", "lower it to 2"))


# The server.


def environ_of(live: Live) -> dict[str, str]:
    return {
        "KEYSTEAD_DATABASE_URL": live.database_url,
        "KEYSTEAD_DATA_DIR": str(live.data_dir),
        "KEYSTEAD_PORT": live.url.rpartition(":")[2],
        "KEYSTEAD_WORKERS": "2",
    }


def workers_of(live: Live) -> list[int]:
    children = Path(f"/proc/{live.pid}/task/{live.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


def listeners_of(live: Live) -> int:
    """How many workers listen: each has a socket of its own, and only once its start is complete."""
    port = f":{int(live.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(row[1].endswith(port) and row[3] == "0A" for row in rows)


@contextlib.contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """They stand still meanwhile."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@pytest.mark.serve
async def test_a_server_is_judged_by_its_workers_and_its_answer(
    ask: Ask, cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """It is good while all workers run and one answers; a missing worker and a silent server are each one line."""
    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path / "data", workers=2) as live:
            until(lambda: listeners_of(live) == 2)
            said = ask(environ_of(live))
            assert said.is_good(), said.printed
            assert [line.check for line in said.lines] == [*CHECKS[:-1], "workers", "server"]
            assert said.lines[-2].text == "2 of 2 run"
            where = environ_of(live)["KEYSTEAD_PORT"]
            assert said.lines[-1].text == f"process {live.pid} answers on 127.0.0.1:{where}"

            # Its parent stands still, so that it starts no other in its place.
            first, *_ = workers_of(live)
            with stopped(live.pid):
                os.kill(first, signal.SIGKILL)
                until(lambda: is_gone(first))
                bad = ask(environ_of(live)).bad
            assert bad.check == "workers"
            assert f"1 of 2 workers run: the log of process {live.pid} says" in bad.text
            until(lambda: listeners_of(live) == 2)
            assert ask(environ_of(live)).is_good()

            with stopped(*workers_of(live)):
                bad = ask(environ_of(live)).bad
            assert bad.check == "server"
            assert f"process {live.pid} does not answer on 127.0.0.1:{where}" in bad.text
            assert "restart" in bad.text
            until(lambda: ask(environ_of(live)).is_good())

            # Where nobody listens is no answer either, and another's answer is not its own.
            bad = ask(environ_of(live), PORT=free_port()).bad
            assert bad.check == "server"
            with socket.create_server(("127.0.0.1", 0)) as other:
                threading.Thread(target=answer_once, args=(other,), daemon=True).start()
                bad = ask(environ_of(live), PORT=other.getsockname()[1]).bad
            assert bad.check == "server"
            assert f"process {live.pid}, which uses this folder, does not serve on" in bad.text
            assert "another server answers" in bad.text
        said = ask(environ_of(live))
        assert said.is_good(), said.printed
        assert said.lines[-1].text.startswith("no server uses this folder")


def answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")


def test_a_port_that_another_program_has_is_named(ask: Ask, home: Home) -> None:
    """Where no server runs from the folder, one would not start on a port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        bad = ask(home.environ, PORT=other.getsockname()[1]).bad
    assert bad.check == "server"
    assert "is taken by another program: stop it, or set KEYSTEAD_PORT" in bad.text


def test_a_pair_that_cannot_be_served_is_named(ask: Ask, home: Home, tmp_path: Path) -> None:
    """It is judged as `serve` does, and the line is the same sentence."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    files = {"TLS_CERT": str(tmp_path / "cert.pem"), "TLS_KEY": str(tmp_path / "key.pem")}
    bad = ask(home.environ, **files).bad
    assert (bad.check, bad.text) == (
        "tls", f"KEYSTEAD_TLS_CERT {tmp_path / 'cert.pem'}: it holds no certificate in PEM"
    )  # fmt: skip


async def test_a_lock_file_that_names_nobody_is_no_server(ask: Ask, home: Home) -> None:
    """The file stays behind after a server, and whatever is in it, no server is said to run."""
    for content in ("", "0", "-1", "nonsense", "4194305", "9" * 30, "\0"):
        (home.data_dir / "serve.lock").write_text(content)
        said = ask(home)
        assert said.is_good(), content
        assert said.lines[-1].text.startswith("no server uses this folder")


def test_a_process_that_took_the_number_of_a_server_is_none(ask: Ask, home: Home) -> None:
    """After a restart of the machine the number may be another server's: who does not hold the lock is not ours."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        until(lambda: b"serve" in Path(f"/proc/{other.pid}/cmdline").read_bytes())
        (home.data_dir / "serve.lock").write_text(str(other.pid))
        said = ask(home)
        other.communicate()
    assert said.is_good(), said.printed
