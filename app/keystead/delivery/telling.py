"""What a running delivery says of itself: a file for node_exporter's textfile collector."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from keystead.delivery import placing
from keystead.delivery.work import Outcome, Result


class Metrics:
    """Written after each look; its time stops where deliveries do."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._registry = CollectorRegistry()
        self._looked = Gauge(
            "keystead_deliver_looked_timestamp_seconds", "The last complete look.", registry=self._registry
        )
        self._ends = Gauge(
            "keystead_deliver_not_after_timestamp_seconds",
            "When the first certificate of the delivery ends.",
            ["delivery"],
            registry=self._registry,
        )
        self._states = Gauge(
            "keystead_deliver_trouble", "1 where it is so.", ["delivery", "kind"], registry=self._registry
        )

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Raises OSError."""
        self._looked.set(time.time())
        for each in outcomes:
            if each.not_after:
                self._ends.labels(each.delivery).set(each.not_after.timestamp())
            for kind in (Result.FAILED, Result.WITHHELD):
                self._states.labels(each.delivery, kind.value).set(each.result is kind)
        # Safe in a folder of others too, such as that of node_exporter: nothing that is there is written through.
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            placing.draft(folder, {self._path.name: generate_latest(self._registry)}, (0o644, -1, -1))
            placing.switch(folder, (self._path.name,))
        finally:
            os.close(folder)
