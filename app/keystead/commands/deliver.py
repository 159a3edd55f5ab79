"""`keystead deliver`: certificates and keys into the files of servers on this host, as they change."""

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click
import structlog

from keystead import process, programs
from keystead.certificates import following
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.delivery import settings as deliver_settings
from keystead.delivery import state as deliver_state
from keystead.delivery import work
from keystead.delivery.settings import Settings
from keystead.delivery.state import State
from keystead.delivery.telling import Metrics, News
from keystead.delivery.work import Deliveries, Outcome, Result
from keystead.errors import KeysteadError, Unavailable
from keystead.server import logs
from keystead.services import Services
from keystead.store import database as db

# How soon a change is seen; and how soon what no cursor tells: that a certificate has ended, or was revoked.
_POLL_SECONDS, _LOOK_SECONDS = 1.0, 60.0
_log = structlog.get_logger("keystead.deliver")


@click.command("deliver")
@click.option("--config", required=True, type=click.Path(dir_okay=False, path_type=Path), help="TOML file.")
@click.option("--once", is_flag=True, help="Deliver what has changed, and end.")
@click.option("--dry-run", is_flag=True, help="Say what would be delivered, and end; nothing is written.")
@terminal.as_json_option
def deliver(config: Path, *, once: bool, dry_run: bool, as_json: bool) -> None:
    """Deliver certificates and keys to servers on this host, and follow their changes."""
    settings = deliver_settings.load(config)
    work.require_folders(settings)
    if dry_run:
        _ended(_look(settings, deliver_state.read(settings.state), dry=True), as_json)
        return
    with deliver_state.held(settings.state) as state:
        recovered = state.recover()
        if once:
            _ended(_look(settings, state, dry=False), as_json)
            return
        logs.configure(terminal.settings().log)
        for name in recovered:
            _log.warning("the earlier files were put back, as placing had not ended", delivery=name)
        _Following(settings, state).run()


def _look(settings: Settings, state: State, *, dry: bool) -> list[Outcome]:
    async def looked(services: Services) -> list[Outcome]:
        deliveries = Deliveries(settings, state, terminal.operator("deliver"))
        outcomes = await deliveries.look(services, dry=dry)
        if settings.metrics and not dry:
            Metrics(settings.metrics).write(outcomes)
        if not dry:
            for notice in News().notices(outcomes, outcomes):
                await programs.tell(settings.tell, notice)
        return outcomes

    return terminal.run(looked)


def _ended(outcomes: Sequence[Outcome], as_json: bool) -> None:
    terminal.show([_row(each) for each in outcomes], as_json)
    if any(each.result in {Result.FAILED, Result.WITHHELD} for each in outcomes):
        sys.exit(1)


def _row(outcome: Outcome) -> Row:
    return {
        "delivery": outcome.delivery,
        "result": outcome.result.value,
        "expires_on": terminal.shown(outcome.not_after),
        "text": outcome.text,
    }


class _Following:
    """Until it is told to stop: looks where something may have changed, through restarts of the database."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._deliveries = Deliveries(settings, state, terminal.operator("deliver"))
        self._metrics = Metrics(settings.metrics) if settings.metrics else None
        self._news, self._program = News(), settings.tell
        self._lost = ""
        self._looked_once = False
        self._stop = threading.Event()

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        while not self._stop.is_set():
            try:
                terminal.run(self._follow)
            except (KeysteadError, db.ApiError, OSError) as error:
                if not self._looked_once and not isinstance(error, Unavailable):
                    raise
                self._tell_lost(str(error).splitlines()[0])
                self._stop.wait(_POLL_SECONDS)
        process.notify("STOPPING=1")

    async def _follow(self, services: Services) -> None:
        known, looked = "", -_LOOK_SECONDS
        while not self._stop.is_set():
            stamp = await following.stamp(services.db, self._deliveries.places)
            now = time.monotonic()
            if stamp != known or now >= min(looked + _LOOK_SECONDS, self._deliveries.again):
                outcomes = await self._deliveries.look(services)
                known, looked = stamp, now
                await self._tell(outcomes)
            await asyncio.sleep(_POLL_SECONDS)

    async def _tell(self, outcomes: Sequence[Outcome]) -> None:
        """Say what is new; raises no error for metrics that cannot be written, as deliveries matter more."""
        if self._lost:
            _log.info("the database answers again")
            self._lost = ""
        new = self._news.of(outcomes)
        for each in new:
            say = _log.warning if each.text else _log.info
            say(each.result.value, delivery=each.delivery, reason=each.text)
        if self._metrics:
            with contextlib.suppress(OSError):
                self._metrics.write(outcomes)
        if not self._looked_once:
            self._looked_once = True
            process.notify("READY=1")
        for notice in self._news.notices(new, outcomes):
            await programs.tell(self._program, notice)

    def _tell_lost(self, text: str) -> None:
        if text != self._lost:
            _log.warning("nothing can be delivered; it is tried again each second", reason=text)
        self._lost = text
