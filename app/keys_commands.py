"""`keystead keys`: the ring and what it seals, for the operator (docs/custody.md)."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app import audit, console, keyring, ringfile, tokens
from app.db import Database
from app.errors import Misconfigured
from app.keyring import Batch, Damage
from app.ringfile import Ring

# Between two plain lines, where there is no terminal.
LINE_SECONDS = 5.0
BACK_UP = "back up the ring now, and give it to all machines that serve this database"


@click.group()
def keys() -> None:
    """The ring of key-encryption keys (KEKs), and what it seals."""


@keys.command("init")
def init() -> None:
    """Make a ring where there is none; `keystead serve` does so by itself on an empty database."""
    path = console.settings().keyring
    try:
        ringfile.create(path)
    except OSError as error:
        if path.exists():
            raise Misconfigured(f"there is a ring already: {path}") from None
        raise Misconfigured(f"the ring {path} cannot be written ({error.strerror})") from None
    console.say(f"made the ring {path}: back it up, apart from the database")


@keys.command("add")
@click.option("--pepper", is_flag=True, help="Add a pepper of tokens instead; it is used some seconds later.")
def add(pepper: bool) -> None:
    """Add a new KEK, not yet current, so that all machines can be given the ring first."""
    if pepper:
        made = console.run_with_ring(lambda db, ring: keyring.add_pepper(db, ring, console.operator("keys add")))
        print(f"added pepper {made}: some seconds from now new tokens use it, and others from their next use on")
        return

    async def work(db: Database, _: Ring) -> str:
        entry = ringfile.add(console.settings().keyring)
        await keyring.register(db, ringfile.load(console.settings().keyring))
        await keyring.note(db, console.operator(f"keys add {entry.id}"), audit.Action.CREATE, audit.Resource.RING)
        return entry.id

    console.say(f"added KEK {console.run_with_ring(work)}, not yet current: {BACK_UP}, then run `keystead keys rotate`")


@keys.command("status")
@console.as_json_option
def status(as_json: bool) -> None:
    """Show each KEK of the ring and each pepper, and how much of what is stored needs it."""
    content = ringfile.read(console.settings().keyring)

    async def work(db: Database, _: Ring) -> tuple[dict[str, tuple[int, int]], tuple[keyring.PepperUse, ...]]:
        return await keyring.counts(db), await keyring.pepper_uses(db)

    held, peppers = console.run_with_any_ring(work)
    rows: list[dict[str, object]] = []
    for index, entry in enumerate(content.keks):
        sealed, wrapped = held.get(entry.id, (0, 0))
        pending = index > 0 and entry == ringfile.newest(content)
        state = "current" if index == 0 else "not yet current" if pending else "earlier"
        needed_by = f"{sealed} private keys, {wrapped} peppers"
        rows.append(_status("KEK", entry.id, state, console.shown(entry.created_at), needed_by))
    for index, pepper in enumerate(peppers):
        needed_by = f"{pepper.tokens} tokens, {pepper.users} global keys"
        state = "earlier" if index else "current"
        rows.append(_status("pepper", str(pepper.id), state, console.shown(pepper.created_at), needed_by))
    console.show(rows, as_json)


def _status(kind: str, id_: str, state: str, created_on: str | None, needed_by: str) -> dict[str, object]:
    return {"id": id_, "kind": kind, "state": state, "created_on": created_on, "needed_by": needed_by}


@keys.command("rotate")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def rotate(dry_run: bool) -> None:
    """Make the newest KEK the current one, and re-wrap all data keys under it; the servers go on serving.

    It can be stopped at any moment, and goes on where it was when it is run again.
    """
    path = console.settings().keyring
    target = _target(path)

    async def work(db: Database, ring: Ring) -> list[Damage]:
        held = await keyring.counts(db)
        left = sum(sum(numbers) for kek_id, numbers in held.items() if kek_id != target)
        if dry_run:
            print(f"would re-wrap {left} data keys under KEK {target}")
            return []
        await keyring.note(db, console.operator(f"keys rotate {target}"), audit.Action.ROTATE, audit.Resource.RING)
        if ring.keks[0].id != target:
            ringfile.promote(path)
            ring = ringfile.load(path)
        elif not left:
            print("the newest KEK is the current one already; `keystead keys add` makes another")
        seen = _Seen("re-wrapped", left, lambda batch: batch.changed)
        await seen.follow(keyring.rewrap(db, ring))
        later = sum(sum(numbers) for kek_id, numbers in (await keyring.counts(db)).items() if kek_id != target)
        if later > len(seen.damaged):
            print(
                f"{later} were sealed under an earlier KEK meanwhile: give the ring to all machines, and rotate again"
            )
        print(f"re-wrapped {seen.done} data keys under KEK {target} in {seen.seconds:.1f} s ({seen.rate:.0f} a second)")
        await _note(db, seen, "keys rotate")
        return list(seen.damaged.values())

    _report(console.run_with_ring(work))


async def _note(db: Database, seen: "_Seen", words: str) -> None:
    for damage in seen.damaged.values():
        resource = audit.Resource.PEPPER if damage.account_id == audit.NO_ACCOUNT else audit.Resource.PRIVATE_KEY
        await keyring.note_damage(db, console.operator(words), damage.account_id, damage.id, resource)


def _target(path: Path) -> str:
    """The KEK that is to be current; where the file cannot be changed, the one that is."""
    content = ringfile.read(path)
    return (ringfile.newest(content) if ringfile.can_change(path) else content.keks[0]).id


@keys.command("retire")
@click.argument("id_", metavar="ID")
@click.option("--revoke", is_flag=True, help="Of a pepper: delete the tokens and global keys that still need it.")
def retire(id_: str, revoke: bool) -> None:
    """Take a KEK out of the ring, or a pepper out of the database, once nothing needs it."""
    caller = console.operator(f"keys retire {id_}")
    pepper_id = _uuid(id_)

    async def work(db: Database, ring: Ring) -> str:
        if pepper_id:
            gone = await tokens.retire_pepper(db, caller, pepper_id, revoke=revoke)
            return f"retired pepper {pepper_id}" + (f", with {gone} tokens and global keys" if gone else "")
        await keyring.retire(db, ring, caller, console.settings().keyring, id_)
        return f"retired KEK {id_}: what is left of it are the copies of the ring that you keep"

    console.say(console.run_with_ring(work))


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) >= 32 else None
    except ValueError:
        return None


@keys.command("verify")
@click.option("--rate", type=click.IntRange(1, 1_000_000), help="Keys a second, at most.")
def verify(rate: int | None) -> None:
    """Open every private key, and check that it belongs to its CSR, certificate or CA.

    Each that does not is named on standard error, and the exit status is 1.
    """

    async def work(db: Database, ring: Ring) -> list[Damage]:
        held = await keyring.counts(db)
        seen = _Seen("verified", sum(map(sum, held.values())), lambda batch: batch.read)
        await seen.follow(keyring.verify(db, ring, rate))
        await _note(db, seen, "keys verify")
        good = seen.done - len(seen.damaged)
        print(f"{max(good, 0)} keys and peppers are good, {len(seen.damaged)} are damaged ({seen.rate:.0f} a second)")
        return list(seen.damaged.values())

    _report(console.run_with_any_ring(work))


def _report(damaged: list[Damage]) -> None:
    for damage in damaged:
        console.complain(damage.reason)
    if damaged:
        sys.exit(1)


class _Seen:
    """Shows how far a long work is: a bar with the time left on a terminal, else a line now and then."""

    def __init__(self, verb: str, total: int, of: Callable[[Batch], int]) -> None:
        self.verb = verb
        self.total = total
        self.done = 0
        self.damaged: dict[UUID, Damage] = {}
        self._of = of
        self._started = time.monotonic()
        self._said = self._started

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        return self.done / max(self.seconds, 0.001)

    async def follow(self, batches: AsyncIterator[Batch]) -> None:
        columns = (TextColumn(self.verb), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        on_terminal = sys.stderr.isatty()
        with Progress(*columns, TimeRemainingColumn(), disable=not on_terminal, console=Console(stderr=True)) as bar:
            task = bar.add_task(self.verb, total=self.total, rate="")
            async for batch in batches:
                self.done += self._of(batch)
                self.damaged |= {damage.id: damage for damage in batch.damaged}
                bar.update(task, completed=self.done, total=max(self.total, self.done), rate=f"{self.rate:.0f}/s")
                if not on_terminal:
                    self._say()
                # The rest of the process gets its turn, Ctrl-C among it.
                await asyncio.sleep(0)

    def _say(self) -> None:
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{self.verb} {self.done} of {self.total}, {self.rate:.0f} a second", file=sys.stderr)
