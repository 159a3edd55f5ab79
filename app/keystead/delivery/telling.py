"""What deliveries say of themselves: metrics for node_exporter's textfile collector, and notices for a program."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from keystead import times
from keystead.delivery import placing
from keystead.delivery.work import Outcome, Result
from keystead.programs import Event, Notice

# What ends so soon is told, each day once.
_SOON = timedelta(days=14)
_EVENTS = {Result.DELIVERED: Event.RENEWED, Result.FAILED: Event.FAILED, Result.WITHHELD: Event.FAILED}


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


class News:
    """Of one look after another, what was not said before."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Result, str]] = {}
        self._days: dict[str, date] = {}

    def of(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Those to be told of; what was delivered always is."""
        new = []
        for each in outcomes:
            said = (each.result, each.text)
            quiet = each.result is Result.UNCHANGED and not each.text
            if each.result is Result.DELIVERED or (self._said.get(each.delivery) != said and not quiet):
                new.append(each)
            self._said[each.delivery] = said
        return new

    def notices(self, new: Sequence[Outcome], outcomes: Sequence[Outcome]) -> Iterator[Notice]:
        """For the program: of what is new, and of all outcomes those that end soon."""
        for each in new:
            if each.result in _EVENTS:
                yield _notice(_EVENTS[each.result], each, each.text)
        now = datetime.now(UTC)
        for each in outcomes:
            if each.not_after and each.not_after - now < _SOON and self._days.get(each.delivery) != now.date():
                self._days[each.delivery] = now.date()
                yield _notice(Event.EXPIRING, each, f"it ends within {_SOON.days} days")


def _notice(event: Event, outcome: Outcome, reason: str) -> Notice:
    ends = times.instant(outcome.not_after) if outcome.not_after else ""
    return Notice(event=event, delivery=outcome.delivery, expires_on=ends, reason=reason)
