"""The application of one worker process: its state, the routes of both dialects, and errors outside of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import structlog
from litestar import Litestar, Response
from litestar.datastructures import State as AppState
from litestar.exceptions import HTTPException, NotFoundException

from keystead import bounds, config, metrics
from keystead.audit import failures
from keystead.ca import crls, issuing
from keystead.caller import RequestInfo
from keystead.certificates import trust
from keystead.cloudflare import router as cloudflare
from keystead.cloudflare.errors import Reference
from keystead.console import files as console
from keystead.csrs import store as csrs
from keystead.custody import ring as ringfile
from keystead.custody.keypool import KeyPool
from keystead.custody.peppers import PEPPER_SECONDS, load_peppers
from keystead.errors import KeysteadError, Unavailable
from keystead.identity import tokens
from keystead.identity.memory import Memory
from keystead.infisical import router as infisical
from keystead.infisical import wire as infisical_wire
from keystead.renewal import renewer
from keystead.server import edge, health, logs, pages, rounds
from keystead.server.request_log import RequestLog
from keystead.services import Services
from keystead.store import bundles, idempotency
from keystead.store import standby as standbys
from keystead.store.database import Database
from keystead.store.standby import Standby
from keystead.store.writes import Writes
from keystead.web import asgi
from keystead.web.handling import AnyRequest
from keystead.web.limits import Limiter
from keystead.web.state import State
from keystead.x509 import names

PRUNE_SECONDS = 600
# Each worker looks at a few rules, so that requests do not wait for renewals.
RENEWAL_SECONDS = 10
T = TypeVar("T")
_log = structlog.get_logger("keystead")


def create_app(settings: config.Settings) -> asgi.App:
    """The ASGI application for these settings, whose database address must be set."""
    return around(routes(), settings)


def routes() -> Litestar:
    """All routes with their guards; preparing them takes long, and does not depend on the settings."""
    return Litestar(
        route_handlers=[cloudflare.router(), infisical.router(), *health.HANDLERS, *pages.HANDLERS, console.file],
        lifespan=[_open],
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def around(app: Litestar, settings: config.Settings) -> asgi.App:
    """The routes with these settings, behind the edge."""
    logs.configure(settings.log)
    # Loaded now, so that the first request does not wait for it.
    names.suffixes()
    names.icann_suffixes()
    app.state = AppState({"settings": settings, "reference": Reference(settings.public_url)})
    log = RequestLog(as_json=settings.log is config.LogFormat.JSON)
    return edge.Edge(app, settings.trusted_proxies, settings.rate_limit, log, _overload(app.state))  # type: ignore[arg-type] # ASGI as plain dicts


def _overload(state: AppState) -> asgi.Overload:
    """Rejects requests of both dialects while too many wait; the probes and pages are always answered."""
    error, unknown = Unavailable(bundles.CROWDED), RequestInfo(None, asgi.REQUEST_ID.decode(), "GET", "/")
    reference: Reference = state.reference
    answers = {
        cloudflare.PREFIX.encode(): _answer(reference.failure(error, unknown)),
        infisical.PREFIX.encode(): _answer(infisical_wire.failure(error, unknown)),
    }

    def rejection(raw_path: bytes) -> asgi.Answer | None:
        shared: State | None = state.get("shared")
        if shared is None or shared.services.db.has_room():
            return None
        path = unquote_to_bytes(raw_path)
        return next((answer for prefix, answer in answers.items() if path.startswith(prefix)), None)

    return rejection


def _answer(response: Response[bytes]) -> asgi.Answer:
    headers = tuple((k.encode(), v.encode()) for k, v in response.headers.items() if k != "content-type")
    return asgi.Answer(response.status_code or 500, response.content, headers)


@contextlib.asynccontextmanager
async def _open(app: Litestar) -> AsyncIterator[None]:
    settings: config.Settings = app.state.settings
    if settings.database_url is None:
        raise ValueError("the address of the database is not set")
    db = Database(settings.database_url, bounds.DATABASE_CONNECTIONS, settings.statement_cache_size)
    services = await _services(settings, db)
    state = State(
        services=services,
        limiter=Limiter(settings.data_dir / "limits"),
        memory=Memory(),
        failures=failures.Failures(),
        rate_limit=settings.rate_limit,
        public_url=settings.public_url,
        metrics_from=settings.metrics_from,
        proxies=settings.trusted_proxies,
        standby=_standby(settings, db),
    )
    app.state.shared = state
    services.pool.start()
    repeated: list[rounds.Round] = [
        (PRUNE_SECONDS, "expired rows cannot be deleted", lambda: _prune(db)),
        (PEPPER_SECONDS, "ring and peppers cannot be read again", lambda: rounds.follow(services)),
        (RENEWAL_SECONDS, "certificates cannot be renewed", lambda: renewer.turn(services)),
        (failures.FLUSH_SECONDS, "failed logins cannot be saved", lambda: state.failures.flush(db)),
    ]
    if state.standby:
        repeated.append((standbys.LOOK_SECONDS, "the standby cannot be looked at", state.standby.look))
    tasks = [asyncio.create_task(rounds.every(*each)) for each in repeated]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        # A cancelled flush keeps its counts for the last one.
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(KeysteadError):
            await state.failures.flush(db)
        services.pool.close()
        state.limiter.close()
        if state.standby:
            await state.standby.close()
        await db.close()
        metrics.flush()


def _standby(settings: config.Settings, db: Database) -> Standby | None:
    if settings.read_database_url is None:
        return None
    elsewhere = Database(
        settings.read_database_url, bounds.DATABASE_CONNECTIONS, settings.statement_cache_size, standbys.SETTING
    )
    return Standby(db, elsewhere, Writes(settings.data_dir / "writes", settings.workers))


async def _services(settings: config.Settings, db: Database) -> Services:
    ring = ringfile.load(settings.keyring)
    return Services(
        db=db,
        ring=ring,
        peppers=await rounds.wait_for(lambda: load_peppers(db, ring)),
        pool=KeyPool(settings.key_pool, settings.data_dir / "keymaker.lock"),
        trusted=trust.load(settings.trust_dir),
        pki_url=settings.pki_url,
        cas_remembered=issuing.REMEMBERED_SECONDS if settings.remember_cas else 0,
        tell=(str(settings.tell),) if settings.tell else (),
    )


async def _prune(db: Database) -> None:
    await idempotency.prune(db)
    await tokens.prune(db)
    await crls.prune(db)
    await csrs.recount(db)


def _on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """404, 405 and other errors from outside the routers, in the format of the dialect that the path belongs to."""
    path = request.scope["state"]["request_info"].path
    if f"{path}/".startswith(infisical.PREFIX):
        return infisical.on_error(request, error)
    if isinstance(error, HTTPException) and not path.startswith(cloudflare.PREFIX):
        if path == health.METRICS or (path in console.PATHS and not console.is_on(request)):
            # As for a client that may not see it, or as if it were not there.
            error = NotFoundException()
        body = f"{error.status_code}\n".encode()
        allow = (error.headers or {}).get("allow", "")
        headers = {"Allow": allow} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        return Response(body, status_code=error.status_code, media_type="text/plain", headers=headers)
    return cloudflare.on_error(request, error)
