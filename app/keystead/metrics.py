"""Prometheus metrics: in memory, or with several workers in memory-mapped files that they share.

`keystead serve` sets FOLDER before it starts the workers, because prometheus_client reads it at import.
"""

import asyncio
import os
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# A worker that is killed loses the requests of this time.
FLUSH_SECONDS = 1.0
# The framework adds the charset.
CONTENT_TYPE = "text/plain; version=0.0.4"
_HEADER_BYTES = 8
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_requests = Counter("keystead_requests", "Requests answered.", ["dialect", "method", "route", "status"])
_seconds = Histogram(
    "keystead_request_seconds",
    "From the beginning of a request to the last byte of its answer.",
    ["dialect", "route"],
    buckets=_BUCKETS,
)
_pool = Gauge("keystead_key_pool_keys", "RSA-2048 keys that are ready.", multiprocess_mode="livesum")
_generation = Histogram(
    "keystead_key_generation_seconds", "Making an RSA key on demand.", ["key_type"], buckets=_BUCKETS
)
_renewals = Counter("keystead_renewals", "What renewal rules have done: renewed, failed or waiting.", ["result"])
_standby_reads = Counter(
    "keystead_standby_reads", "Reads that may be answered by a standby, by the database that did.", ["database"]
)
_standby_lag = Gauge(
    "keystead_standby_lag_seconds",
    "How far behind the standby is; infinite if it is not read from.",
    multiprocess_mode="livemax",
)
_key_deliveries = Counter("keystead_key_deliveries", "Keys that have left for delivery tokens.", ["way"])
_followed = Gauge(
    "keystead_delivery_certificates", "Certificates that the delivery listener has.", multiprocess_mode="livesum"
)
_followed_at = Gauge(
    "keystead_delivery_looked_timestamp_seconds", "When it last read what it answers from.", multiprocess_mode="max"
)
# Seconds of the requests since the last flush, by the labels of the counter.
_unwritten: defaultdict[tuple[str, str, str, int], list[float]] = defaultdict(list)
_connections = Gauge(
    "keystead_database_connections", "Places for connections that workers have.", ["state"], multiprocess_mode="livesum"
)


def answered(dialect: str, method: str, route: str, status: int, seconds: float) -> None:
    """Record a request. `route` is the path template, which keeps the number of label values small."""
    if not _unwritten:
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, flush)
    _unwritten[dialect, method, route, status].append(seconds)


def flush() -> None:
    """Write the requests since the last flush where the other workers see them.

    Three increments for each request cost more than the rest of recording it; those of a second are one for each value.
    """
    unwritten = dict(_unwritten)
    _unwritten.clear()
    for (dialect, method, route, status), seconds in unwritten.items():
        counter, histogram = _labelled(dialect, method if method in _METHODS else "other", route, status)
        counter.inc(len(seconds))
        # The library's own fields, since it has no call for several observations.
        histogram._sum.inc(sum(seconds))  # noqa: SLF001
        for bucket, count in Tally(bisect_left(_BUCKETS, each) for each in seconds).items():
            histogram._buckets[bucket].inc(count)  # noqa: SLF001


# `labels()` costs more than the increment.
@cache
def _labelled(dialect: str, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return _requests.labels(dialect, method, route, str(status)), _seconds.labels(dialect, route)


def pool_level(count: int) -> None:
    _pool.set(count)


def key_generated(key_type: str, seconds: float) -> None:
    _generation.labels(key_type).observe(seconds)


def renewal(result: str) -> None:
    _renewals.labels(result).inc()


def keys_delivered(way: str, number: int) -> None:
    _key_deliveries.labels(way).inc(number)


def followed(certificates: int) -> None:
    """That the delivery listener has just read what it answers from."""
    _followed.set(certificates)
    _followed_at.set_to_current_time()


def connections(in_use: int, idle: int) -> None:
    _connections.labels("in_use").set(in_use)
    _connections.labels("idle").set(idle)


def standby(from_primary: int, from_standby: int, lag_seconds: float) -> None:
    _standby_reads.labels("primary").inc(from_primary)
    _standby_reads.labels("standby").inc(from_standby)
    _standby_lag.set(lag_seconds)


def text(*more: Collector) -> bytes:
    """The metrics of all workers, and those of the collectors `more`, in Prometheus text format."""
    flush()
    folder = os.environ.get(FOLDER)
    registry = CollectorRegistry()
    if folder:
        _remove_dead_workers(Path(folder))
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    for each in more:
        registry.register(each)
    return generate_latest(registry) + (b"" if folder else generate_latest(REGISTRY))


def _remove_dead_workers(folder: Path) -> None:
    """Remove the live gauges of workers that have exited; their counters stay."""
    for path in folder.glob("*.db"):
        if Path(f"/proc/{path.stem.rpartition('_')[2]}").exists():
            continue
        # A worker killed during start leaves files without a header, which the collector cannot read.
        if path.name.startswith("gauge_live") or not path.read_bytes()[:_HEADER_BYTES].strip(b"\0"):
            path.unlink(missing_ok=True)
