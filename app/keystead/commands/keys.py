"""`keystead keys`: manages the ring, and re-wraps and verifies what it seals (docs/custody.md)."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keystead.audit import record as audit
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.custody import keyring, rotation
from keystead.custody import ring as ringfile
from keystead.custody.peppers import add_pepper, pepper_uses
from keystead.custody.rotation import Batch, Damage
from keystead.errors import Misconfigured
from keystead.identity import tokens
from keystead.ids import any_uuid
from keystead.services import Services
from keystead.store.database import Database

# Seconds between two progress lines when the output is no terminal.
LINE_SECONDS = 5.0
BACK_UP = "back up the ring now, and copy it to all machines that serve this database"


@click.group()
def keys() -> None:
    """The ring of key-encryption keys (KEKs), and the keys that it seals."""


@keys.command("init")
def init() -> None:
    """Create the ring; `keystead serve` does so by itself on an empty database."""
    path = terminal.settings().keyring
    try:
        ringfile.create(path)
    except OSError as error:
        if path.exists():
            raise Misconfigured(f"there is a ring already: {path}") from None
        raise Misconfigured(f"the ring {path} cannot be written ({error.strerror})") from None
    terminal.print_line(f"created the ring {path}: back it up separately from the database")


@terminal.command(keys, "add", json=False)
@click.option("--pepper", is_flag=True, help="Add a pepper for tokens instead; it is used after some seconds.")
async def add(services: Services, pepper: bool) -> str:
    """Add a new KEK, not yet current, so that the ring can be copied to all machines first."""
    db, path = services.db, terminal.settings().keyring
    if pepper:
        made = await add_pepper(db, services.ring, terminal.operator("keys add"))
        return f"added pepper {made}: in some seconds new tokens use it, and existing ones from their next use"
    added = await rotation.add(db, services.ring, lambda kek_id: terminal.operator(f"keys add {kek_id}"), path)
    return f"added KEK {added}, not yet current: {BACK_UP}, then run `keystead keys rotate`"


@terminal.command(keys, "status", ring_for=terminal.any_ring)
async def status(services: Services) -> Sequence[Row]:
    """Show each KEK of the ring and each pepper, and how many stored keys and tokens need it."""
    content = ringfile.read(terminal.settings().keyring)
    held = await rotation.counts(services.db)
    rows: list[Row] = []
    for index, entry in enumerate(content.keks):
        sealed, wrapped = held.get(entry.id, (0, 0))
        pending = index > 0 and entry == ringfile.newest(content)
        state = "current" if index == 0 else "not yet current" if pending else "earlier"
        needed_by = f"{sealed} private keys, {wrapped} peppers"
        rows.append(_status("KEK", entry.id, state, terminal.shown(entry.created_at), needed_by))
    for index, pepper in enumerate(await pepper_uses(services.db)):
        needed_by = f"{pepper.tokens} tokens, {pepper.users} global keys"
        state = "earlier" if index else "current"
        rows.append(_status("pepper", str(pepper.id), state, terminal.shown(pepper.created_at), needed_by))
    return rows


def _status(kind: str, id_: str, state: str, created_on: str | None, needed_by: str) -> Row:
    return {"id": id_, "kind": kind, "state": state, "created_on": created_on, "needed_by": needed_by}


@keys.command("rotate")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
def rotate(dry_run: bool) -> None:
    """Make the newest KEK the current one, and re-wrap all data keys under it, while the servers keep serving.

    It can be interrupted at any time; the next run continues from there.
    """
    path = terminal.settings().keyring
    target = _target(path)

    async def work(services: Services) -> list[Damage]:
        db, ring = services.db, services.ring
        held = await rotation.counts(db)
        left = sum(sum(numbers) for kek_id, numbers in held.items() if kek_id != target)
        if dry_run:
            print(f"would re-wrap {left} data keys under KEK {target}")
            return []
        await rotation.require_rights(db, target)
        await keyring.note(db, terminal.operator(f"keys rotate {target}"), audit.Action.ROTATE, audit.Resource.RING)
        if ring.keks[0].id != target:
            ringfile.promote(path)
            ring = ringfile.load(path)
        elif not left:
            print("the newest KEK is already the current one; `keystead keys add` adds another")
        job = _Job("re-wrapped", left, lambda batch: batch.changed)
        await job.follow(rotation.rewrap(db, ring))
        later = sum(sum(numbers) for kek_id, numbers in (await rotation.counts(db)).items() if kek_id != target)
        if later > len(job.damaged):
            print(
                f"{later} were sealed under an earlier KEK meanwhile: copy the ring to all machines, and rotate again"
            )
        print(f"re-wrapped {job.done} data keys under KEK {target} in {job.seconds:.1f} s ({job.rate:.0f} a second)")
        await _note(db, job, "keys rotate")
        return list(job.damaged.values())

    _report(terminal.run(work))


async def _note(db: Database, job: "_Job", words: str) -> None:
    for damage in job.damaged.values():
        resource = audit.Resource.PEPPER if damage.account_id == audit.NO_ACCOUNT else audit.Resource.PRIVATE_KEY
        await keyring.note_damage(db, terminal.operator(words), damage.account_id, damage.id, resource)


def _target(path: Path) -> str:
    """The id of the KEK to make current; if the file cannot be changed, of the one that is."""
    content = ringfile.read(path)
    return (ringfile.newest(content) if ringfile.can_change(path) else content.keks[0]).id


@terminal.command(keys, "retire", json=False)
@click.argument("id_", metavar="ID")
@click.option("--revoke", is_flag=True, help="For a pepper: delete the tokens and global keys that still need it.")
async def retire(services: Services, id_: str, revoke: bool) -> str:
    """Remove a KEK from the ring, or a pepper from the database, once nothing needs it."""
    caller = terminal.operator(f"keys retire {id_}")
    if pepper_id := any_uuid(id_):
        gone = await tokens.retire_pepper(services.db, caller, pepper_id, revoke=revoke)
        return f"retired pepper {pepper_id}" + (f", with {gone} tokens and global keys" if gone else "")
    await rotation.retire(services.db, services.ring, caller, terminal.settings().keyring, id_)
    return f"retired KEK {id_}: it remains only in the copies of the ring that you keep"


@keys.command("verify")
@click.option("--rate", type=click.IntRange(1, 1_000_000), help="At most this many keys a second.")
def verify(rate: int | None) -> None:
    """Decrypt every private key, and check that it matches its CSR, certificate or CA.

    Keys that do not are listed on standard error, and the exit status is 1.
    """

    async def work(services: Services) -> list[Damage]:
        db, ring = services.db, services.ring
        held = await rotation.counts(db)
        job = _Job("verified", sum(map(sum, held.values())), lambda batch: batch.read)
        await job.follow(rotation.verify(db, ring, rate))
        await _note(db, job, "keys verify")
        good = job.done - len(job.damaged)
        print(f"{max(good, 0)} keys and peppers are good, {len(job.damaged)} are damaged ({job.rate:.0f} a second)")
        return list(job.damaged.values())

    _report(terminal.run(work, terminal.any_ring))


def _report(damaged: list[Damage]) -> None:
    for damage in damaged:
        terminal.print_error(damage.reason)
    if damaged:
        sys.exit(1)


class _Job:
    """The progress of a long job: a bar with the time left on a terminal, else a line every few seconds."""

    def __init__(self, verb: str, total: int, of: Callable[[Batch], int]) -> None:
        self.verb = verb
        self.total = total
        self.done = 0
        self.damaged: dict[UUID, Damage] = {}
        self._of = of
        self._started = time.monotonic()
        self._printed_at = self._started

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
                    self._print_line()
                # Let the event loop run, so that Ctrl-C is handled.
                await asyncio.sleep(0)

    def _print_line(self) -> None:
        if time.monotonic() - self._printed_at >= LINE_SECONDS:
            self._printed_at = time.monotonic()
            print(f"{self.verb} {self.done} of {self.total}, {self.rate:.0f} a second", file=sys.stderr)
