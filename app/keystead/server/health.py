"""`/healthz`, `/readyz` and `/metrics`, for monitoring; they belong to neither dialect."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from keystead import addresses, metrics
from keystead.ca import authorities, crls
from keystead.caller import RequestInfo
from keystead.certificates import store as certificates
from keystead.custody import keyring
from keystead.errors import KeysteadError, Misconfigured
from keystead.renewal import rules
from keystead.services import Services
from keystead.store import schema
from keystead.store.database import Database
from keystead.web.state import State, state_of

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]
METRICS = "/metrics"
# Headers that proxies add and scrapers do not send.
_FORWARDED = frozenset({"forwarded", "via", "x-real-ip"})
READY_SECONDS = 1.0
EXPIRY_SECONDS = 60.0


class _Cached(Generic[T]):
    """The last result of a query; requests that find it too old wait for one new query."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._result: tuple[float, T] | None = None

    async def get(self, seconds: float, query: Callable[[], Awaitable[T]]) -> T:
        async with self._lock:
            if self._result is None or time.monotonic() - self._result[0] >= seconds:
                result = await query()
                self._result = time.monotonic(), result
            return self._result[1]


@get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while this process answers; the database is not checked."""
    return {"status": "ok"}


@get("/readyz")
async def readyz(request: AnyRequest) -> Response[dict[str, str]]:
    """200 if the database answers with this release's schema and the ring can seal, else 503 with the reason."""
    # The route is public, so the database is queried at most once a second.
    cached: _Cached[str | None] = request.app.state.setdefault("ready", _Cached())
    if problem := await cached.get(READY_SECONDS, lambda: _problem(state_of(request).services)):
        return Response({"status": "unavailable", "reason": problem}, status_code=503, headers={"Retry-After": "1"})
    return Response({"status": "ok"})


async def _problem(services: Services) -> str | None:
    try:
        async with services.db.connection(first=True) as connection:
            if await schema.schema_state(connection) is not schema.SchemaState.CURRENT:
                return "schema"
            return None if await keyring.may_seal(connection, services.ring) else "ring"
    except Misconfigured:
        return "schema"
    except KeysteadError:
        return "database"


@get(METRICS)
async def metrics_(request: AnyRequest) -> Response[bytes]:
    """Prometheus's text format, for the networks of KEYSTEAD_METRICS_FROM; 404 for all others."""
    state = state_of(request)
    request_info: RequestInfo = request.scope["state"]["request_info"]
    if not _may_see(request, state, request_info):
        raise NotFoundException
    cached: _Cached[list[dict[str, int]]] = request.app.state.setdefault("stored", _Cached())
    try:
        counts = await cached.get(EXPIRY_SECONDS, lambda: _counts(state.services.db))
    except KeysteadError:
        # The counters in memory matter most while the database is down.
        counts = [{} for _ in _STORED]
    return Response(metrics.text(_Stored(counts)), media_type=metrics.CONTENT_TYPE)


# What is counted in the database: the metric, its text, its label and the query.
_STORED: tuple[tuple[str, str, str, Callable[[Database], Awaitable[dict[str, int]]]], ...] = (
    (
        *("keystead_certificates", "Custom certificates by the days until they expire.", "days"),
        certificates.by_expiry,
    ),
    (
        *("keystead_certificate_authorities", "Enabled CAs by the days until their certificate expires.", "days"),
        authorities.by_expiry,
    ),
    ("keystead_crls", "CRLs by the days until their nextUpdate.", "days", crls.by_expiry),
    ("keystead_renewal_rules", "Renewal rules by their state.", "state", rules.by_state),
)


async def _counts(db: Database) -> list[dict[str, int]]:
    return [await count(db) for _, _, _, count in _STORED]


def _may_see(request: AnyRequest, state: State, request_info: RequestInfo) -> bool:
    # A local proxy that is not configured as trusted, or omits the client's address, must not expose the metrics.
    peer = addresses.parsed(request.client.host) if request.client else None
    names = request.headers.keys()
    forwarded = any(name in _FORWARDED or name.startswith("x-forwarded") for name in names)
    if forwarded and request_info.address == peer:
        return False
    return request_info.address is not None and any(request_info.address in network for network in state.metrics_from)


HANDLERS: list[Any] = [healthz, readyz, metrics_]


class _Stored(Collector):
    def __init__(self, counts: list[dict[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for (name, text, label, _), counts in zip(_STORED, self._counts, strict=True):
            family = GaugeMetricFamily(name, text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family
