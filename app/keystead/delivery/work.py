"""Deliveries, each by itself: what is missing or has changed is placed, checked and made known to the server."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import msgspec

from keystead import programs
from keystead.caller import Caller
from keystead.certificates.export import export
from keystead.certificates.model import Certificate
from keystead.delivery import choosing, formats, haproxy, placing
from keystead.delivery.choosing import Choice
from keystead.delivery.settings import Delivery, Format, Settings
from keystead.delivery.state import Phase, Placed, Record, State
from keystead.errors import Conflict, KeysteadError, Misconfigured, Unavailable
from keystead.services import Services

# After a failure, doubled each time; a change of what is to be delivered is tried at once.
_FIRST_SECONDS, _MOST_SECONDS = 2.0, 900.0


class Result(StrEnum):
    """How a delivery stands."""

    DELIVERED = "delivered"
    UNCHANGED = "unchanged"
    WOULD_DELIVER = "would deliver"
    # There is nothing that may be delivered; what is on disk stays.
    WITHHELD = "withheld"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """Of one delivery; `text` says what an operator should know."""

    delivery: str
    result: Result
    text: str = ""
    not_after: datetime | None = None


class _Trouble(msgspec.Struct, frozen=True):
    """A failure: what was to be delivered then, how often it failed, and when it is tried again."""

    wanted: Mapping[str, str]
    times: int
    again: float
    text: str


class Deliveries:
    """All deliveries of a configuration; `places` are the zones that they depend on."""

    def __init__(self, settings: Settings, state: State, operator: Caller) -> None:
        self._settings = settings
        self._state = state
        self._operator = operator
        self._troubles: dict[str, _Trouble] = {}
        self._places: dict[str, frozenset[tuple[UUID, UUID]]] = {}

    @property
    def places(self) -> frozenset[tuple[UUID, UUID]]:
        return frozenset().union(*self._places.values())

    @property
    def again(self) -> float:
        """When a failed delivery is tried again, by time.monotonic."""
        return min((trouble.again for trouble in self._troubles.values()), default=float("inf"))

    async def look(self, services: Services, *, dry: bool = False) -> list[Outcome]:
        """Deliver what has changed, or say what would be; raises Unavailable."""
        return [await self._attended(services, delivery, dry=dry) for delivery in self._settings.deliver]

    async def _attended(self, services: Services, delivery: Delivery, *, dry: bool) -> Outcome:
        wanted: dict[str, str] = {}
        try:
            choice = await choosing.choose(services.db, delivery, datetime.now(UTC))
            self._places[delivery.name] = choice.places or self._places.get(delivery.name, frozenset())
            wanted = {_key(delivery, each): choosing.version(each) for each in choice.certificates}
            trouble = self._troubles.get(delivery.name)
            if trouble and trouble.wanted == wanted and time.monotonic() < trouble.again and not dry:
                return Outcome(delivery.name, Result.FAILED, trouble.text)
            outcome = await _Work(services, delivery, self._state, self._operator).done(choice, dry=dry)
        except Unavailable:
            raise
        except (KeysteadError, programs.Failed) as error:
            return self._failed(delivery, wanted, str(error))
        except OSError as error:
            return self._failed(delivery, wanted, f"{error.filename or delivery.folder}: {error.strerror}")
        self._troubles.pop(delivery.name, None)
        return outcome

    def _failed(self, delivery: Delivery, wanted: Mapping[str, str], text: str) -> Outcome:
        before = self._troubles.get(delivery.name)
        times = before.times + 1 if before and before.wanted == wanted else 1
        self._troubles[delivery.name] = _Trouble(wanted, times, time.monotonic() + pause(times), text)
        return Outcome(delivery.name, Result.FAILED, text)


def pause(times: int) -> float:
    """Seconds until something that has failed so often is tried again."""
    return min(_FIRST_SECONDS * 2.0 ** min(times - 1, 20), _MOST_SECONDS)


def _key(delivery: Delivery, certificate: Certificate) -> str:
    return str(certificate.id) if delivery.many else ""


def _plan(delivery: Delivery) -> str:
    """A digest of what decides on the content and access of its files."""
    parts = (delivery.folder, delivery.files, delivery.mode, delivery.owner, delivery.group, delivery.passphrase)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class _Work:
    """One delivery, once."""

    def __init__(self, services: Services, delivery: Delivery, state: State, operator: Caller) -> None:
        self.services = services
        self.delivery = delivery
        self.state = state
        self.operator = msgspec.structs.replace(operator, path=f"deliver {delivery.name}")
        self.record = state.records.get(delivery.name, Record(delivery.folder))

    async def done(self, choice: Choice, *, dry: bool) -> Outcome:
        name = self.delivery.name
        if self.record.phase is Phase.PLACING and not dry:
            self.state.put_back(name)
            self.record = self.state.records[name]
        with placing.opened(self.delivery.folder) as folder:
            changed = [each for each in choice.certificates if self._has_changed(folder, each)]
            # What is left says why it was withheld, and not that its zone is gone or has nothing that fits.
            left = self._left(folder, choice)
            text = "; ".join(left if choice.withheld else filter(None, (choice.nothing, *left)))
            text = text or choice.nothing
            ends = min((each.not_after for each in choice.certificates), default=None)
            if dry:
                return self._would(changed, text, ends)
            if changed:
                await self._place(folder, changed)
            elif self.record.phase is Phase.PLACED and choice.certificates:
                await self._run(self.delivery.check)
        told = self.record.phase is Phase.PLACED and bool(choice.certificates)
        if told:
            await self._tell()
        quiet = Result.WITHHELD if choice.nothing else Result.UNCHANGED
        return Outcome(name, Result.DELIVERED if told else quiet, text, ends)

    def _would(self, changed: Sequence[Certificate], text: str, ends: datetime | None) -> Outcome:
        if not changed:
            return Outcome(self.delivery.name, Result.WITHHELD if not ends else Result.UNCHANGED, text, ends)
        ids = ", ".join(str(each.id) for each in changed[:3]) + (", …" if len(changed) > 3 else "")
        text = "; ".join(filter(None, (f"{ids} to {self.delivery.folder}", text)))
        return Outcome(self.delivery.name, Result.WOULD_DELIVER, text, ends)

    def _has_changed(self, folder: int, certificate: Certificate) -> bool:
        placed = self.record.placed.get(_key(self.delivery, certificate))
        if placed is None or self.record.plan != _plan(self.delivery):
            return True
        names = self.delivery.names(certificate.id).values()
        return placed.version != choosing.version(certificate) or not all(placing.present(folder, n) for n in names)

    def _left(self, folder: int, choice: Choice) -> list[str]:
        """What is on disk and would not be delivered any more."""
        here = self.record.folder == self.delivery.folder
        wanted = {_key(self.delivery, each) for each in choice.certificates}
        said = []
        for key, placed in self.record.placed.items():
            if key not in wanted and (not here or any(placing.present(folder, name) for name in placed.files)):
                why = choice.withheld.get(placed.certificate, "does not fit, or is not there any more")
                said.append(f"{placed.certificate} {why}, and its files stay in {self.record.folder}")
        return said

    async def _place(self, folder: int, changed: Sequence[Certificate]) -> None:
        """Open the keys, give all files of the certificates their names, and have them judged; or all is as before."""
        files, after = await self._opened(folder, changed)
        await self._require_unchanged(changed)
        before = self.record
        try:
            placing.draft(folder, files, self.delivery.access)
            replaced = placing.keep(folder, files)
            fresh = tuple(name for name in files if name not in replaced)
            begun = {"phase": Phase.PLACING, "folder": after.folder, "replaced": replaced, "fresh": fresh}
            self._set(msgspec.structs.replace(before, **begun))
            placing.switch(folder, files)
            await self._run(self.delivery.check)
        except (OSError, programs.Failed) as error:
            # Where none was replaced there is nothing to protect, and the check of another delivery may need these.
            if isinstance(error, programs.Failed) and not replaced:
                self._set(after)
            else:
                self._put_back(folder, before)
            raise
        else:
            self._set(after)
        finally:
            # Otherwise the earlier files could not be put back, and are needed for another try.
            if self.record.phase is not Phase.PLACING:
                placing.sweep(folder, files)

    async def _opened(self, folder: int, changed: Sequence[Certificate]) -> tuple[dict[str, bytes], Record]:
        """The content of all files, and the record of what is there with them; each key that is opened is audited."""
        placing.require_files(folder, [n for each in changed for n in self.delivery.names(each.id).values()])
        secret = formats.passphrase(self.delivery.passphrase)
        files: dict[str, bytes] = {}
        placed = dict(self.record.placed)
        for each in changed:
            names = self.delivery.names(each.id)
            exported = await export(self.services, self.operator, each)
            files |= formats.contents(exported, names, self.delivery.name, secret)
            placed[_key(self.delivery, each)] = Placed(
                certificate=each.id,
                sha256=each.sha256.hex(),
                version=choosing.version(each),
                not_after=each.not_after,
                placed_at=datetime.now(UTC).replace(microsecond=0),
                files=tuple(names.values()),
            )
        untold = tuple(dict.fromkeys((*self.record.untold, *files)))
        return files, Record(self.delivery.folder, _plan(self.delivery), Phase.PLACED, placed, untold=untold)

    async def _require_unchanged(self, opened: Sequence[Certificate]) -> None:
        """Raise Conflict if, while keys were opened, one of the certificates was deleted, revoked or renewed."""
        choice = await choosing.choose(self.services.db, self.delivery, datetime.now(UTC))
        present = {(each.id, choosing.version(each)) for each in choice.certificates}
        if not {(each.id, choosing.version(each)) for each in opened} <= present:
            raise Conflict("its certificates are being changed, and nothing was placed")

    def _put_back(self, folder: int, before: Record) -> None:
        if self.record.phase is Phase.PLACING:
            placing.put_back(folder, self.record.replaced, self.record.fresh)
            self._set(before)

    async def _run(self, argv: tuple[str, ...]) -> None:
        if argv:
            await programs.run(argv, self.delivery.timeout)

    async def _tell(self) -> None:
        """Make the server serve what was placed."""
        await self._run(self.delivery.reload)
        if self.delivery.haproxy:
            for name in self._combined():
                await haproxy.set_certificate(
                    self.delivery.haproxy, Path(self.delivery.folder, name), self.delivery.timeout
                )
        self._set(msgspec.structs.replace(self.record, phase=Phase.DONE, untold=()))

    def _combined(self) -> list[str]:
        """The files of HAProxy that it has not been told of."""
        names = (self.delivery.names(p.certificate)[Format.COMBINED] for p in self.record.placed.values())
        return [name for name in names if name in self.record.untold]

    def _set(self, record: Record) -> None:
        self.record = record
        self.state.set(self.delivery.name, record)


def require_folders(settings: Settings) -> None:
    """Raise Misconfigured for a folder or a passphrase that cannot be used, before anything else is done."""
    for delivery in settings.deliver:
        formats.passphrase(delivery.passphrase)
        with placing.opened(delivery.folder):
            pass
    if settings.metrics and not Path(settings.metrics).parent.is_dir():
        raise Misconfigured(f"the folder of {settings.metrics} is not there")
