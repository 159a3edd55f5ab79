"""The application of one worker process: opens its state, mounts the dialects, answers what belongs to none."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import structlog
from litestar import Litestar, Response
from litestar.datastructures import State as AppState
from litestar.exceptions import HTTPException, NotFoundException

from app import bounds, config, metrics
from app.audit import failures
from app.caller import Visit
from app.certificates import trust
from app.cloudflare import router as cloudflare
from app.cloudflare.errors import Reference
from app.csrs import store as csrs
from app.custody import ring as ringfile
from app.custody.keypool import KeyPool
from app.custody.peppers import PEPPER_SECONDS, load_peppers
from app.errors import KeysteadError, Unavailable
from app.identity import tokens
from app.identity.admission import Memory
from app.infisical import router as infisical
from app.infisical import wire as infisical_wire
from app.server import edge, health, pages
from app.server.request_log import RequestLog
from app.services import Services
from app.store import database as db
from app.store import idempotency
from app.store.database import Database
from app.web import asgi
from app.web.handling import AnyRequest
from app.web.limits import Limiter
from app.web.state import State
from app.x509 import names

PRUNE_SECONDS = 600
T = TypeVar("T")
_log = structlog.get_logger("keystead")


def create_app(settings: config.Settings) -> asgi.App:
    """The ASGI application for these settings, whose database address must be set."""
    return around(routes(), settings)


def routes() -> Litestar:
    """All routes with their guards, which are the same for all settings; the framework takes long to prepare them."""
    return Litestar(
        route_handlers=[cloudflare.router(), infisical.router(), *health.HANDLERS, *pages.HANDLERS],
        lifespan=[_open],
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def around(app: Litestar, settings: config.Settings) -> asgi.App:
    """What stands before the routes, and the settings by which they open their state."""
    configure_log(settings.log)
    # Before the first request, which would wait for it.
    names.suffixes()
    names.icann_suffixes()
    app.state = AppState({"settings": settings, "reference": Reference(settings.public_url)})
    log = RequestLog(as_json=settings.log is config.LogFormat.JSON)
    return edge.Edge(app, settings.trusted_proxies, settings.rate_limit, log, _door(app.state))  # type: ignore[arg-type] # ASGI as plain dicts


def _door(state: AppState) -> asgi.Overload:
    """Turns requests of both dialects away while too many wait; the probes and pages are always answered."""
    error, nobody = Unavailable(db.CROWDED), Visit(None, asgi.REQUEST_ID.decode(), "GET", "/")
    reference: Reference = state.reference
    cloudflares = _answer(reference.failure(error, nobody))
    infisicals = _answer(infisical_wire.failure(error, nobody))

    def refusal(raw_path: bytes) -> asgi.Answer | None:
        shared: State | None = state.get("shared")
        if shared is None or shared.services.db.has_room():
            return None
        if b"%" in raw_path:
            raw_path = unquote_to_bytes(raw_path)
        if raw_path.startswith(cloudflare.PREFIX.encode()):
            return cloudflares
        return infisicals if raw_path.startswith(infisical.PREFIX.encode()) else None

    return refusal


def _answer(response: Response[bytes]) -> asgi.Answer:
    headers = tuple((k.encode(), v.encode()) for k, v in response.headers.items() if k != "content-type")
    return asgi.Answer(response.status_code or 500, response.content, headers)


def configure_log(log: config.LogFormat) -> None:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log is config.LogFormat.JSON
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if log is config.LogFormat.JSON else _as_it_is,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # One write for a line: workers share the stream, and half lines would mix.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _as_it_is(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


@contextlib.asynccontextmanager
async def _open(app: Litestar) -> AsyncIterator[None]:
    settings: config.Settings = app.state.settings
    if settings.database_url is None:
        raise ValueError("the address of the database is not set")
    db = Database(settings.database_url, bounds.DATABASE_CONNECTIONS, settings.statement_cache_size)
    ring = ringfile.load(settings.keyring)
    services = Services(
        db=db,
        ring=ring,
        peppers=await _patiently(lambda: load_peppers(db, ring)),
        pool=KeyPool(settings.key_pool, settings.data_dir / "keymaker.lock"),
        trusted=trust.load(settings.trust_dir),
        pki_url=settings.pki_url,
    )
    state = State(
        services=services,
        limiter=Limiter(settings.data_dir / "limits"),
        memory=Memory(),
        failures=failures.Failures(),
        rate_limit=settings.rate_limit,
        public_url=settings.public_url,
        metrics_from=settings.metrics_from,
        proxies=settings.trusted_proxies,
    )
    app.state.shared = state
    services.pool.start()
    pruner = asyncio.create_task(_prune(db))
    follower = asyncio.create_task(_follow(services))
    counter = asyncio.create_task(_count_failures(state))
    try:
        yield
    finally:
        pruner.cancel()
        follower.cancel()
        counter.cancel()
        # What it was about to write down comes back to be counted.
        await asyncio.gather(counter, return_exceptions=True)
        with contextlib.suppress(KeysteadError):
            await state.failures.flush(db)
        services.pool.close()
        state.limiter.close()
        await db.close()


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    # A worker that is started while the database is away waits for it: one that ended would be started again at once,
    # and some such ends in a row are the end of the server.
    deadline = time.monotonic() + bounds.DATABASE_PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except Unavailable as error:
            if time.monotonic() > deadline:
                _log.warning("a worker waits for the database before it serves", reason=str(error))
                deadline = time.monotonic() + bounds.DATABASE_PATIENCE_SECONDS
            await asyncio.sleep(0.2)


async def _follow(services: Services) -> None:
    while True:
        await asyncio.sleep(PEPPER_SECONDS)
        metrics.connections(services.db.in_use, services.db.size - services.db.in_use)
        try:
            services.ring.follow()
            await services.peppers.refresh(services.db, services.ring)
        except Exception as error:  # noqa: BLE001 - those it has stay good, and the next round tries again
            _log.warning("the peppers cannot be read again for now", reason=type(error).__name__)


async def _count_failures(state: State) -> None:
    while True:
        await asyncio.sleep(failures.FLUSH_SECONDS)
        try:
            await state.failures.flush(state.services.db)
        except Exception as error:  # noqa: BLE001 - they are kept, and the next round tries again
            _log.warning("failed authentications are not written down for now", reason=type(error).__name__)


async def _prune(db: Database) -> None:
    while True:
        try:
            await idempotency.prune(db)
            await tokens.prune(db)
            await csrs.recount(db)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next round tries again
            _log.warning("what has expired stays for now", reason=type(error).__name__)
        await asyncio.sleep(PRUNE_SECONDS)


def _on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """404, 405 and whatever else no router has seen: in the shape of the dialect that the path belongs to."""
    path = request.scope["state"]["visit"].path
    if f"{path}/".startswith(infisical.PREFIX):
        return infisical.on_error(request, error)
    if isinstance(error, HTTPException) and not path.startswith(cloudflare.PREFIX):
        if path == health.METRICS:
            # Whoever may not see it is not told that it is there.
            error = NotFoundException()
        body = f"{error.status_code}\n".encode()
        allow = (error.headers or {}).get("allow", "")
        headers = {"Allow": allow} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        return Response(body, status_code=error.status_code, media_type="text/plain", headers=headers)
    return cloudflare.on_error(request, error)
