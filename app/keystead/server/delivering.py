"""The process of the delivery listener, and what keeps it running beside the workers.

The parent holds the listening socket: while the process is restarted, connections wait in it.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess

from keystead import bounds, config, process

_log = logging.getLogger(__name__)
# granian's form of the pair for TLS; None for none.
TlsContext = tuple[object, ...] | None
# A process that ends sooner after its start is not started again at once.
_EARLY_SECONDS = 5.0


def bound(address: config.Listen) -> socket.socket:
    """A listening socket; raises OSError."""
    listening = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these, as those of the workers.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(bounds.UNREAD_SECONDS * 1000))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.UNREAD_BYTES)
        listening.bind((address.host, address.port))
        listening.listen(bounds.BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class Deliverer:
    """Runs in a thread of the parent; `context` tells the pair for TLS of this moment."""

    def __init__(self, settings: config.Settings, listening: socket.socket, context: Callable[[], TlsContext]) -> None:
        self._settings = settings
        self._listening = listening
        self._context = context
        self._leaving, self._renew = threading.Event(), threading.Event()
        # Workers' rule too: a signal at the death of a parent comes when the thread ends that has started them.
        self._thread = threading.Thread(target=self._keep, name="delivery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def renew(self) -> None:
        """Have another process serve, with the pair of now."""
        self._renew.set()

    def stop(self) -> None:
        """Returns when what was accepted is answered."""
        self._leaving.set()
        self._thread.join()

    def _keep(self) -> None:
        running, since = self._started(), time.monotonic()
        while not self._leaving.wait(0.1):
            if self._renew.is_set():
                self._renew.clear()
                old, running, since = running, self._started(), time.monotonic()
                _stop(old)
            elif running is None or not running.is_alive():
                _log.error("the delivery listener has ended; restarting it")
                if time.monotonic() < since + _EARLY_SECONDS:
                    self._leaving.wait(1)
                running, since = self._started(), time.monotonic()
        _stop(running)

    def _started(self) -> BaseProcess | None:
        """None if the system has no room for another process just now."""
        given = (self._settings, self._listening, self._context(), os.getpid())
        started = multiprocessing.get_context("spawn").Process(target=_serve, args=given, name="delivery", daemon=True)
        try:
            started.start()
        except OSError as error:
            _log.error("the delivery listener cannot be started (%s)", error.strerror)
            return None
        return started


def _stop(running: BaseProcess | None) -> None:
    if running is None:
        return
    running.terminate()
    running.join(bounds.STOP_SECONDS)
    running.kill()
    running.join()


def _serve(settings: config.Settings, listening: socket.socket, context: TlsContext, parent: int) -> None:
    """The process: until SIGTERM."""
    process.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    # For the whole process group; the parent stops this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, listening, context))


async def _run(settings: config.Settings, listening: socket.socket, context: TlsContext) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    from keystead.server import delivery_app

    async with delivery_app.opened(settings) as (edge, listener):
        process.collect_rarely()
        server = delivery_app.Server(edge, listening.fileno(), context, settings.log)
        serving = asyncio.create_task(server.serve())
        await _first(stop.wait(), serving)
        server.stop()  # type: ignore[no-untyped-call]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bounds.STOP_SECONDS - 1):
                await serving
                await listener.idle.wait()


async def _first(waiting: Awaitable[object], serving: "asyncio.Task[None]") -> None:
    told = asyncio.ensure_future(waiting)
    await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
