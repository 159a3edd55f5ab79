"""The state file: what was delivered, and what was begun; no secret is in it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from keystead import files
from keystead.delivery import placing
from keystead.errors import Misconfigured


class Phase(StrEnum):
    """While PLACING, earlier files may have to be put back; PLACED ones wait for the check or the reload."""

    PLACING = "placing"
    PLACED = "placed"
    DONE = "done"


class Placed(msgspec.Struct, frozen=True):
    """A certificate on disk; `sha256` is the digest of its DER, `version` that of its chain."""

    certificate: UUID
    sha256: str
    version: str
    not_after: datetime
    placed_at: datetime
    files: tuple[str, ...]


class Record(msgspec.Struct, frozen=True):
    """Of one delivery: what is in its folder, by the certificate or "" for the only one, and what the last step wrote.

    `plan` changes with the configuration. While PLACING, `replaced` have earlier files, and `fresh` have none. The
    server has not been told of the files that are `untold`.
    """

    folder: str
    plan: str = ""
    phase: Phase = Phase.DONE
    placed: dict[str, Placed] = {}
    replaced: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


class _Content(msgspec.Struct, frozen=True):
    version: Literal[1]
    deliveries: dict[str, Record]


class State:
    """The records by name of their delivery, written at each change."""

    def __init__(self, path: Path, records: dict[str, Record]) -> None:
        self.records = records
        self._path = path

    def set(self, name: str, record: Record) -> None:
        """Write a record, which is on disk when this returns; raises OSError."""
        self.records[name] = record
        content = _Content(1, self.records)
        files.write_private(self._path, msgspec.json.format(msgspec.json.encode(content)).decode() + "\n")

    def recover(self) -> list[str]:
        """End what a crash has left half done, before anything is asked of the database; the names of what was."""
        begun = [name for name in list(self.records) if self.put_back(name)]
        for folder_name in {record.folder for record in self.records.values() if record.phase is not Phase.PLACING}:
            with contextlib.suppress(Misconfigured), placing.opened(folder_name) as folder:
                placing.sweep(folder)
        return begun

    def put_back(self, name: str) -> bool:
        """Put the earlier files of a delivery back if it was being placed; whether it was."""
        record = self.records[name]
        if record.phase is not Phase.PLACING:
            return False
        try:
            with placing.opened(record.folder) as folder:
                placing.put_back(folder, record.replaced, record.fresh)
        except Misconfigured:
            # The delivery says it when it is looked at, and tries again.
            return False
        # The server may have read the new ones meanwhile.
        untold = (*record.untold, *record.replaced)
        self.set(name, msgspec.structs.replace(record, phase=Phase.PLACED, untold=untold, replaced=(), fresh=()))
        return True


def read(path: str) -> State:
    """The state without its lock, to look at; raises Misconfigured."""
    try:
        content = msgspec.json.decode(Path(path).read_bytes(), type=_Content)
    except FileNotFoundError:
        return State(Path(path), {})
    except OSError as error:
        raise Misconfigured(f"the state file {path} cannot be read ({error.strerror})") from None
    except msgspec.MsgspecError:
        raise Misconfigured(f"the state file {path} is damaged: remove it, to have all delivered again") from None
    return State(Path(path), content.deliveries)


@contextlib.contextmanager
def held(path: str) -> Iterator[State]:
    """The state, which this process alone holds; raises Misconfigured."""
    with placing.opened(str(Path(path).parent)):
        pass
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Misconfigured(f"the state file {path} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield read(path)
    except BlockingIOError:
        raise Misconfigured(f"the state file {path} is in use by another `keystead deliver`") from None
    finally:
        os.close(lock)
