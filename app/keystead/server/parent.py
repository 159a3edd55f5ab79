"""The parent process of `keystead serve`: one per data folder, over granian's workers and the bundled PostgreSQL.

A worker or PostgreSQL that dies is restarted. If the parent dies, its workers end at once, and PostgreSQL keeps running
for the next start.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from keystead import bounds, child, config, metrics, process
from keystead.errors import Misconfigured, Unavailable
from keystead.server import delivering, logs, postgres, tls
from keystead.server.interrupts import Interrupt
from keystead.server.postgres import Cluster

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Seconds to wait for the workers of a killed parent to end, which still hold its port.
_GRACE = 2
# File descriptors of a worker apart from its clients, with a margin.
_OWN_FILES = 256
# A worker is given up after so many ends in a row before it listens, or within so many seconds.
_LOOP_ENDS = 5
_LOOP_SECONDS = 30


def serve(settings: config.Settings) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit status; raises Misconfigured if it cannot start."""
    # No core dumps, here or in child processes: their memory holds keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Child processes use this process's module path, whatever PYTHON* variables say.
    for name in os.environ.keys() - child.environ().keys():
        del os.environ[name]
    # granian installs its handlers only when it serves; until then SIGTERM must unwind like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _alone(settings.data_dir), _named(settings):
            check_port(settings)
            # Before the workers are started, which would otherwise find the address taken.
            delivery = _delivery_socket(settings)
            server = _Server(settings)
            with _database(settings) as (complete, cluster):
                return _run(server, complete, _prepared(complete, cluster), delivery)
    except KeyboardInterrupt:
        return 0
    finally:
        # Python restores the default handlers at exit, and a late signal would change the exit status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepared(settings: config.Settings, cluster: Cluster | None) -> str:
    """Prepare the installation and return its banner; raises Misconfigured.

    Waits for a bundled PostgreSQL in crash recovery, because exiting would interrupt it.
    """
    deadline = time.monotonic() + bounds.DATABASE_PATIENCE_SECONDS
    while isinstance(outcome := _preparation(settings, cluster), Unavailable):
        if not settings.embedded or time.monotonic() > deadline:
            raise Misconfigured(str(outcome))
        time.sleep(0.5)
    if isinstance(outcome, Misconfigured):
        raise outcome
    return outcome


def _preparation(settings: config.Settings, cluster: Cluster | None) -> str | Misconfigured | Unavailable:
    """Run `_prepare` in a child process: it opens the ring, after which workers could not read this process's /proc."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    preparing = context.Process(target=_prepare, args=(sender, settings, cluster), daemon=True)
    preparing.start()
    sender.close()
    try:
        outcome: str | Misconfigured | Unavailable = receiver.recv()
    except EOFError:
        return Misconfigured("the process that prepares the start ended unexpectedly")
    finally:
        preparing.kill()
        preparing.join()
    return outcome


def _prepare(sender: "Connection[Any, Any]", settings: config.Settings, cluster: Cluster | None) -> None:
    from keystead.server import first_start
    from keystead.store import database as db

    try:
        sender.send(asyncio.run(first_start.prepare(settings, cluster)))
    except (Misconfigured, Unavailable) as error:
        sender.send(error)
    except (OSError, db.ApiError) as error:
        sender.send(Misconfigured(str(error).splitlines()[0]))


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        _while_taken(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode() or "unknown"
        raise Misconfigured(
            f"the data folder {data_dir} is in use by the server with pid {holder}: stop that one, or set "
            "KEYSTEAD_DATA_DIR"
        ) from None
    except OSError as error:
        raise Misconfigured(f"the data folder {data_dir} cannot be used ({error}): set KEYSTEAD_DATA_DIR") from None
    try:
        yield
    finally:
        os.close(lock)


def _while_taken(take: Callable[[], T]) -> T:
    """Try again for _GRACE seconds while something is taken, by the workers of a killed parent as a rule."""
    deadline = time.monotonic() + _GRACE
    while True:
        try:
            return take()
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EAGAIN} or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def port_name(settings: config.Settings) -> str:
    """The name of the abstract Unix socket that the server on this port holds."""
    return f"keystead {settings.host} {settings.port}"


@contextlib.contextmanager
def _named(settings: config.Settings) -> Iterator[None]:
    # Held from before the port check until exit, so that two starts cannot both pass the check before granian listens.
    with socket.socket(socket.AF_UNIX) as name:
        try:
            _while_taken(lambda: name.bind(f"\0{port_name(settings)}"))
        except OSError:
            where = f"port {settings.port} on {settings.host}"
            raise Misconfigured(f"{where} is taken by another keystead: stop it, or set KEYSTEAD_PORT") from None
        yield


def check_port(settings: config.Settings) -> None:
    """Raises Misconfigured if the port cannot be bound."""
    where = f"port {settings.port} on {settings.host}"
    try:
        _while_taken(lambda: _bind(settings))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Misconfigured(f"{where} is taken by another program: stop it, or set KEYSTEAD_PORT") from None
        raise Misconfigured(
            f"{where} cannot be bound ({error.strerror}): set KEYSTEAD_HOST to an address of this machine and "
            "KEYSTEAD_PORT to a port that this user may use"
        ) from None


def _bind(settings: config.Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        # Without SO_REUSEPORT, which granian sets and which would share the port with another server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((settings.host, settings.port))


def _delivery_socket(settings: config.Settings) -> socket.socket | None:
    listen = settings.delivery_listen
    if listen is None:
        return None
    try:
        return _while_taken(lambda: delivering.bound(listen))
    except OSError as error:
        raise Misconfigured(
            f"KEYSTEAD_DELIVERY_LISTEN={listen} cannot be bound ({error.strerror}): set it to an address of this "
            "machine and a free port"
        ) from None


@contextlib.contextmanager
def _database(settings: config.Settings) -> Iterator[tuple[config.Settings, Cluster | None]]:
    """The settings of the workers, and the bundled PostgreSQL if that is what they use."""
    if settings.database_url is not None:
        yield settings, None
        return
    with postgres.running(settings.data_dir) as cluster:
        leaving = threading.Event()
        watcher = threading.Thread(target=_watch, args=(cluster, leaving), name="watch-postgres", daemon=True)
        watcher.start()
        try:
            yield msgspec.structs.replace(settings, database_url=cluster.servers, embedded=True), cluster
        finally:
            leaving.set()
            watcher.join()


def _watch(cluster: Cluster, leaving: threading.Event) -> None:
    while not leaving.wait(0.5):
        if cluster.alive():
            continue
        _log.error("PostgreSQL has ended; restarting it")
        try:
            cluster.ensure()
        except Misconfigured as error:
            _log.error("%s; the next try is in 5 seconds", error)
            leaving.wait(5)


def _run(server: "_Server", settings: config.Settings, banner: str, delivery: socket.socket | None) -> int:
    folder = settings.data_dir / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.environ[metrics.FOLDER] = str(folder)
    announce = threading.Thread(target=_announce, args=(settings, banner), name="banner", daemon=True)
    server.on_startup(announce.start)
    # A fork while another thread imports a module can deadlock the worker on the import lock, and forked workers would
    # keep the locks of a killed parent.
    multiprocessing.set_start_method("spawn", force=True)
    # granian also exits with 1 if a worker ended during a regular stop.
    with contextlib.suppress(SystemExit), server.delivering(settings, delivery):
        load = functools.partial(_load, settings, os.getpid(), server.listens)
        server.serve(target_loader=load, wrap_loader=False)
    if server.interrupt_signal:
        return 0
    _log.error("the workers end right after their start, so the server stops; the lines above say why")
    return 1


def _announce(settings: config.Settings, banner: str) -> None:
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - it is read here
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, settings.port), timeout=1):
            # A worker listens only when its start is complete.
            sys.stdout.write(f"{banner}\n")
            sys.stdout.flush()
            return
        time.sleep(0.02)


def _load(settings: config.Settings, parent: int, listens: "Connection[Any, Any]") -> Callable[..., object]:
    """Create the application, in the worker process."""
    process.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    # Ctrl-C reaches the process group, and granian takes a worker that stops by itself for a failed one. Blocked, not
    # ignored, because granian installs its own handler later.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A closing terminal sends SIGHUP to the process group, but only the parent reloads on it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_report_listening, args=(listens,), name="listening", daemon=True).start()
    from keystead.server import worker

    app = worker.create_app(settings)
    process.collect_rarely()
    return app


def _report_listening(listens: "Connection[Any, Any]") -> None:
    """Report the pid to the parent once granian listens, and bound how long a client may not read its answer.

    granian has no such time-out. It opens the listening socket after the application has started; accepted connections
    inherit its options.
    """
    while (listener := tls.listener()) is None:
        time.sleep(0.02)
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(bounds.UNREAD_SECONDS * 1000))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.UNREAD_BYTES)
    listens.send(os.getpid())


def _clients() -> int:
    """The most connections of a worker: bounds.CLIENTS, or fewer if the limit of open files is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = bounds.CLIENTS + _OWN_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        # Workers inherit it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, files - _OWN_FILES)


class _Server(MPServer):
    def __init__(self, settings: config.Settings) -> None:
        super().__init__(
            target="keystead.server.worker",
            address=settings.host,
            port=settings.port,
            interface=Interfaces.ASGI,
            workers=settings.workers,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(bounds.HEAD_SECONDS * 1000), max_buffer_size=bounds.HEAD_BYTES
            ),
            websockets=False,
            backlog=bounds.BACKLOG,
            backpressure=_clients(),
            log_level=LogLevels.warning,
            log_dictconfig=logs.for_granian(settings.log),
            respawn_failed_workers=True,
            workers_kill_timeout=int(bounds.STOP_SECONDS),
        )
        self.main_loop_interrupt = Interrupt()  # type: ignore[assignment] # it has what granian uses of an Event
        self.ends: dict[int, list[float]] = {}
        # Ends in a row before the worker listened, by index. Workers that listen send their pid through the pipe.
        self.failures: dict[int, int] = {}
        self.listeners: set[int] = set()
        self.heard, self.listens = multiprocessing.get_context("spawn").Pipe(duplex=False)
        # memfds with the current pair, and the previous one, which a worker that is starting may still read.
        self.copies: list[int] = []
        self.pair = (settings.tls_cert, settings.tls_key)
        self.deliverer: delivering.Deliverer | None = None
        self.take_pair()

    def take_pair(self) -> None:
        """Copy certificate and key to memory, for all workers started from now on; raises Misconfigured.

        A worker that starts while the files are being renewed would otherwise read a mismatched pair and end; and
        granian resolves symbolic links only once, while renewals replace them.
        """
        certificate, key = self.pair
        if certificate is None or key is None:
            return
        copy = tls.copied(certificate, key)
        for old in self.copies[:-1]:
            os.close(old)
        self.copies = [*self.copies[-1:], copy]
        self.ssl_ctx = tls.context(tls.path(copy))  # type: ignore[assignment]

    @contextlib.contextmanager
    def delivering(self, settings: config.Settings, listening: socket.socket | None) -> Iterator[None]:
        """With the delivery listener beside the workers, if there is one."""
        if listening is None or settings.delivery_listen is None:
            yield
            return
        plain = settings.delivery_listen.is_loopback
        self.deliverer = delivering.Deliverer(settings, listening, lambda: None if plain else self.ssl_ctx)
        self.deliverer.start()
        try:
            yield
        finally:
            self.deliverer.stop()

    def listened(self, pid: int | None) -> bool:
        while self.heard.poll():
            self.listeners.add(self.heard.recv())
        return pid in self.listeners

    def _respawn_workers(
        self, workers: list[int], spawn_target: object, target_loader: object, delay: float = 0
    ) -> None:
        """Give up a worker only after _LOOP_ENDS; granian would treat its second end as a crash loop."""
        ended = {index: self.wrks[index].inner.pid for index in workers}
        super()._respawn_workers(workers, spawn_target, target_loader, delay)
        now = time.monotonic()
        for index, pid in ended.items():
            self.failures[index] = 0 if self.listened(pid) else self.failures.get(index, 0) + 1
            self.listeners.discard(pid)
            recent = [end for end in self.ends.get(index, []) if end > now - _LOOP_SECONDS]
            self.ends[index] = [*recent, now]
            if max(len(self.ends[index]), self.failures[index]) < _LOOP_ENDS:
                self.respawned_wrks.pop(index, None)
            else:
                # granian's main loop handles this as one more end, and gives up.
                self.interrupt_children.append(index)
                self.main_loop_interrupt.set()

    def signal_handler_reload(self, *_args: object, **_kwargs: object) -> None:
        if self.pair != (None, None):
            super().signal_handler_reload()  # type: ignore[no-untyped-call]

    def _reload(self, spawn_target: object, target_loader: object) -> None:
        """Replace the workers only if the new pair can be served and a trial worker has started.

        granian alone would stop all old workers first, and exit when the new ones fail.
        """
        self.reload_signal = False
        self.main_loop_interrupt.clear()
        try:
            self.take_pair()
        except Misconfigured as error:
            _log.error("%s; the old ones stay", error)
        else:
            self._replace(spawn_target, target_loader)
        # granian's reload may have cleared a signal that arrived meanwhile.
        if self.interrupt_signal or self.interrupt_children or self.reload_signal:
            self.main_loop_interrupt.set()

    def _replace(self, spawn_target: object, target_loader: object) -> None:
        trial = self._spawn_worker(0, spawn_target, target_loader).inner
        trial.start()
        deadline = time.monotonic() + 2 * bounds.DATABASE_PATIENCE_SECONDS
        while trial.is_alive() and not (
            self.listened(trial.pid) or self.interrupt_signal or time.monotonic() > deadline
        ):
            trial.join(0.05)
        if trial.is_alive() and self.listened(trial.pid):
            trial.terminate()
            # The ends that follow are intended.
            self.ends.clear()
            super()._reload(spawn_target, target_loader)  # type: ignore[no-untyped-call]
            if self.deliverer:
                self.deliverer.renew()
            trial.join(self.workers_kill_timeout)
        else:
            _log.error("a new worker does not start, so the running ones stay, with their certificate and key")
            os.close(self.copies.pop())
            self.ssl_ctx = tls.context(tls.path(self.copies[-1]))  # type: ignore[assignment]
        trial.kill()
