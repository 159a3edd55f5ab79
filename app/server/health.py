"""`/healthz`, `/readyz` and `/metrics`, for monitoring; they belong to neither dialect."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import addresses, metrics
from app.caller import RequestInfo
from app.certificates import store as certificates
from app.custody import keyring
from app.errors import KeysteadError
from app.services import Services
from app.store import schema
from app.store.database import Database
from app.web.state import State, state_of

AnyRequest = Request[Any, Any, Any]
METRICS = "/metrics"
# Headers that proxies add and scrapers do not send.
_FORWARDED = frozenset({"forwarded", "via", "x-real-ip"})
READY_SECONDS = 1.0
EXPIRY_SECONDS = 60.0


@get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while this process answers; the database is not checked."""
    return {"status": "ok"}


@get("/readyz")
async def readyz(request: AnyRequest) -> Response[dict[str, str]]:
    """200 if the database answers with this release's schema and the ring can seal, else 503 with the reason."""
    state = request.app.state
    # The route is public, so the database is asked at most once a second.
    async with state.setdefault("ready_lock", asyncio.Lock()):
        if time.monotonic() - state.get("ready_at", -READY_SECONDS) >= READY_SECONDS:
            problem = await _problem(state_of(request).services)
            state["ready_at"], state["ready"] = time.monotonic(), problem
    problem = state["ready"]
    if problem:
        return Response({"status": "unavailable", "reason": problem}, status_code=503, headers={"Retry-After": "1"})
    return Response({"status": "ok"})


async def _problem(services: Services) -> str | None:
    try:
        async with services.db.connection(first=True) as connection:
            if await schema.schema_state(connection) is not schema.SchemaState.CURRENT:
                return "schema"
            return None if await keyring.may_seal(connection, services.ring) else "ring"
    except KeysteadError:
        return "database"


@get(METRICS)
async def metrics_(request: AnyRequest) -> Response[bytes]:
    """Prometheus's text format, for the networks of KEYSTEAD_METRICS_FROM; 404 for all others."""
    state = state_of(request)
    visit: RequestInfo = request.scope["state"]["visit"]
    if not _may_see(request, state, visit):
        raise NotFoundException
    body = metrics.text(_Expiry(await _expiry(request.app.state, state.services.db)))
    return Response(body, media_type=metrics.CONTENT_TYPE)


def _may_see(request: AnyRequest, state: State, visit: RequestInfo) -> bool:
    # A local proxy that is not configured as trusted, or omits the client's address, must not expose the metrics.
    peer = addresses.parsed(request.client.host) if request.client else None
    names = request.headers.keys()
    forwarded = any(name in _FORWARDED or name.startswith("x-forwarded") for name in names)
    if forwarded and visit.address == peer:
        return False
    return visit.address is not None and any(visit.address in network for network in state.metrics_from)


HANDLERS: list[Any] = [healthz, readyz, metrics_]


async def _expiry(state: Any, db: Database) -> dict[str, int]:  # noqa: ANN401 - Litestar's state
    async with state.setdefault("expiry_lock", asyncio.Lock()):
        if time.monotonic() - state.get("expiry_at", -EXPIRY_SECONDS) >= EXPIRY_SECONDS:
            try:
                state["expiry"] = await certificates.by_expiry(db)
            except KeysteadError:
                # The counters in memory matter most while the database is down.
                return {}
            state["expiry_at"] = time.monotonic()
    found: dict[str, int] = state["expiry"]
    return found


class _Expiry(Collector):
    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "keystead_certificates", "Custom certificates by the days until they expire.", labels=["days"]
        )
        for days, count in self._counts.items():
            family.add_metric([days], count)
        yield family
