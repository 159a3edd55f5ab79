"""What the process of the delivery listener opens, follows and serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server as EmbeddedServer

from keystead import bounds, config, metrics
from keystead.audit import failures
from keystead.audit.failures import Failures
from keystead.custody import ring as ringfile
from keystead.custody.keypool import KeyPool
from keystead.custody.peppers import PEPPER_SECONDS, load_peppers
from keystead.delivery import handing, pulled
from keystead.delivery.handing import Hands
from keystead.delivery.pulled import Pulled
from keystead.errors import KeysteadError
from keystead.pull.listener import Listener
from keystead.server import edge, logs, rounds
from keystead.server.request_log import RequestLog
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509.chains import Anchors


@contextlib.asynccontextmanager
async def opened(settings: config.Settings) -> AsyncIterator[tuple[edge.Edge, Listener]]:
    """The application, when it has read what it answers from."""
    logs.configure(settings.log)
    db = Database(settings.database_url or "", bounds.DATABASE_CONNECTIONS, settings.statement_cache_size)
    ring = ringfile.load(settings.keyring)
    peppers = await rounds.wait_for(lambda: load_peppers(db, ring))
    services = Services(db, ring, peppers, KeyPool(), Anchors({}))
    known, hands, failed = Pulled(), Hands(services), Failures()
    await rounds.wait_for(lambda: _begin(services, known, hands))
    repeated: tuple[rounds.Round, ...] = (
        (pulled.TOKEN_SECONDS, "delivery tokens cannot be read again", lambda: known.follow_tokens(services)),
        (pulled.CERTIFICATE_SECONDS, "certificates cannot be read again", lambda: known.follow_certificates(services)),
        (PEPPER_SECONDS, "ring and peppers cannot be read again", lambda: rounds.follow(services)),
        (handing.COUNT_SECONDS, "deliveries cannot be counted", hands.count),
        (failures.FLUSH_SECONDS, "failed logins cannot be saved", lambda: failed.flush(db)),
    )
    tasks = [asyncio.create_task(rounds.every(*each)) for each in repeated]
    listener = Listener(services, known, hands, failed)
    log = RequestLog(as_json=settings.log is config.LogFormat.JSON)
    try:
        yield edge.Edge(listener, (), None, log, dialect="delivery"), listener
    finally:
        for task in tasks:
            task.cancel()
        # A cancelled flush keeps its counts for the last one.
        await asyncio.gather(*tasks, return_exceptions=True)
        for last in (hands.count, lambda: failed.flush(db)):
            with contextlib.suppress(KeysteadError):
                await last()
        services.pool.close()
        await db.close()
        log.flush()
        metrics.flush()


async def _begin(services: Services, known: Pulled, hands: Hands) -> None:
    await known.follow_tokens(services)
    await known.follow_certificates(services)
    await hands.recall([token.id for token in known.tokens.by_digest.values()])


class Server(EmbeddedServer):
    """granian in this process, on a socket that is there already."""

    def __init__(self, app: edge.Edge, listening: int, context: object, log: config.LogFormat) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(bounds.HEAD_SECONDS * 1000), max_buffer_size=bounds.HEAD_BYTES
            ),
            websockets=False,
            backlog=bounds.BACKLOG,
            backpressure=bounds.CLIENTS // 8,
            log_dictconfig=logs.for_granian(log),
            # It warns that it is embedded.
            log_level=LogLevels.error,
        )
        self._listening = listening
        if context:
            self.ssl_ctx = context  # type: ignore[assignment]

    def _init_shared_socket(self) -> None:
        # The second argument says that it is no Unix socket.
        self._shd = SocketHolder(self._listening, False, self.backlog)  # type: ignore[call-arg,assignment]
