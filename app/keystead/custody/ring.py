"""The keyring file with the key-encryption keys (KEKs), the current one first.

Everything sealed in the database needs this file to be decrypted, so a copy of the database alone is useless. `add`
appends a new KEK, so that the file can be copied to all machines before `promote` makes it the current one.
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import msgspec
import structlog

from keystead import files, process
from keystead.custody import seal
from keystead.errors import KeyDamaged, Misconfigured

# Drafts older than this were left by a process that was killed.
DRAFT_SECONDS = 60
# Requests that sealed a key under the previous KEK have committed or timed out by then.
SETTLED = timedelta(seconds=60)
_log = structlog.get_logger("keystead.ring")


class Ring:
    """The loaded KEKs: the first one seals, all of them open. Reloads its file when that changes."""

    def __init__(self, keks: tuple[seal.Kek, ...], path: Path | None = None, stamp: "Stamp | None" = None) -> None:
        self.keks = keks
        self._path = path
        # Taken before the file was read, so that a change during reading is noticed.
        self._stamp = stamp

    def __repr__(self) -> str:
        return f"Ring({', '.join(kek.id for kek in self.keks)})"

    def sealed(self, context: tuple[bytes, ...], secret: bytes) -> seal.Sealed:
        """Seal under the current KEK, after checking the file for a new one."""
        self.follow()
        return seal.seal(self.keks[0], context, secret)

    def follow(self) -> None:
        """Reload the file if it has changed; a file that cannot be read is logged and ignored."""
        if self._path and _stamp(self._path) != self._stamp:
            self._reload(self._path)

    def open_(self, row_id: UUID, context: tuple[bytes, ...], sealed: seal.Sealed) -> bytes:
        """Decrypt the secret of the row `row_id`; raises KeyDamaged."""
        kek = self.kek(row_id, sealed.kek_id)
        with _damaged(row_id):
            return seal.open_(kek, context, sealed)

    def rewrapped(
        self, row_id: UUID, context: tuple[bytes, ...], kek_id: str, wrapped_key: bytes, target: seal.Kek
    ) -> bytes:
        """Re-wrap the data key of the row `row_id` under `target`; raises KeyDamaged."""
        kek = self.kek(row_id, kek_id)
        with _damaged(row_id):
            return seal.rewrap(kek, target, context, wrapped_key)

    def kek(self, row_id: UUID, kek_id: str) -> seal.Kek:
        """The KEK with this id, after a reload if necessary; raises KeyDamaged for the row `row_id`."""
        if self._path and kek_id not in {kek.id for kek in self.keks}:
            self._reload(self._path)
        kek = next((kek for kek in self.keks if kek.id == kek_id), None)
        if kek is None:
            raise KeyDamaged(str(row_id), f"row {row_id} needs the KEK {kek_id!r}, which is not in the ring")
        return kek

    def _reload(self, path: Path) -> None:
        try:
            loaded = load(path)
        except Misconfigured as error:
            # Possibly temporary, so keep the loaded KEKs.
            _log.warning("the ring cannot be reloaded", reason=str(error))
        else:
            # Not checked against the old KEKs: the database rejects rows sealed under a KEK that it does not know.
            self.keks, self._stamp = loaded.keks, loaded._stamp  # noqa: SLF001 - same class


@contextlib.contextmanager
def _damaged(row_id: UUID) -> Iterator[None]:
    try:
        yield
    except seal.Broken as error:
        raise KeyDamaged(str(row_id), f"row {row_id} does not open: {error}") from None


Stamp: TypeAlias = tuple[int, int, int]


def _stamp(path: Path) -> Stamp | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size


class Entry(msgspec.Struct, frozen=True):
    """A KEK in the file, where `secret` is in base64."""

    id: str
    secret: bytes
    created_at: datetime

    def __repr__(self) -> str:
        return f"Entry({self.id})"


class Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """Content of the file. `current_since` is when the first KEK was promoted; None for the KEK of a new ring."""

    version: int
    keks: tuple[Entry, ...]
    current_since: datetime | None = None

    def __post_init__(self) -> None:
        times = [*(kek.created_at for kek in self.keks), *((self.current_since,) if self.current_since else ())]
        if any(time.tzinfo is None or time.year >= MAXYEAR for time in times):
            raise ValueError("a time without a zone, or with none after it")
        if self.version != 1 or not self.keks or len({kek.id for kek in self.keks}) != len(self.keks):
            raise ValueError("not a ring of version 1 with distinct KEKs")


def _new_entry(after: Content | None = None) -> Entry:
    created_at = datetime.now(UTC).replace(microsecond=0)
    if after:
        # Strictly later than all others even if the clock was set back, because `newest` compares these times.
        created_at = max(created_at, newest(after).created_at + timedelta(seconds=1))
    return Entry(secrets.token_hex(8), secrets.token_bytes(seal.KEY_BYTES), created_at)


def create(path: Path) -> Ring:
    """Create the file with one new KEK, mode 0600; raises FileExistsError."""
    content = Content(1, (_new_entry(),))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A draft and a hard link: a crash must not leave a partial file, and an existing ring must not be replaced.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_text(content))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        # The name must be on disk before rows sealed with this ring are.
        files.sync(path.parent)
    return load(path)


def sweep(path: Path) -> None:
    """Remove drafts that killed processes left behind; none of them is needed, since `create` links the ring itself."""
    for draft in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
                draft.unlink()


def load(path: Path) -> Ring:
    """Load the ring, and protect this process: no core dumps, and no access to its memory except for root.

    Raises Misconfigured for a file that is missing, damaged, or accessible to other users.
    """
    process.hide_memory()
    stamp = _stamp(path)
    return Ring(tuple(seal.Kek(entry.id, entry.secret) for entry in read(path).keks), path, stamp)


def read(path: Path) -> Content:
    """Parse and validate the file; raises Misconfigured as `load` does."""
    try:
        mode = path.stat().st_mode
        body = path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"the ring {path} cannot be read ({error.strerror}); restore it from your backup") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Misconfigured(f"others can write the ring {path}: run `chmod 600 {path}`, or mend its mount")
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not files.is_read_only(path):
        raise Misconfigured(f"others can read the ring {path}: run `chmod 600 {path}`")
    content = _decoded(body)
    if content is None:
        raise Misconfigured(f"the ring {path} is damaged; restore it from your backup")
    for entry in content.keks:
        if len(entry.secret) != seal.KEY_BYTES:
            sizes = f"{len(entry.secret)} bytes, and must have {seal.KEY_BYTES}"
            raise Misconfigured(
                f"the KEK {entry.id!r} in the ring {path} has {sizes}; restore the ring from your backup"
            )
    return content


def _decoded(body: bytes) -> Content | None:
    # These exceptions contain the file content, so they must not become the context of ours.
    try:
        return msgspec.json.decode(body, type=Content)
    except (msgspec.DecodeError, ValueError, UnicodeDecodeError, RecursionError):
        return None


def can_change(path: Path) -> bool:
    """Whether commands can rewrite the file; False on a read-only mount."""
    return not files.is_read_only(path.parent) and not files.is_read_only(path)


def add(path: Path) -> Entry:
    """Append a new KEK, which only opens until it is promoted; raises Misconfigured."""
    with _changing(path) as content:
        entry = _new_entry(content)
        _write(path, msgspec.structs.replace(content, keks=(*content.keks, entry)))
    return entry


def newest(content: Content) -> Entry:
    """The most recently created KEK, which `promote` makes the current one."""
    return max(reversed(content.keks), key=lambda entry: entry.created_at)


def promote(path: Path) -> Entry:
    """Make the newest KEK the current one and return it; raises Misconfigured."""
    with _changing(path) as content:
        entry = newest(content)
        if content.keks[0] != entry:
            others = tuple(kek for kek in content.keks if kek != entry)
            now = datetime.now(UTC).replace(microsecond=0)
            _write(path, Content(content.version, (entry, *others), now))
    return entry


def require_earlier(path: Path, kek_id: str) -> None:
    """Raise Misconfigured if `kek_id` is the current KEK, or the last promotion is less than SETTLED ago."""
    content = read(path)
    if content.keks[0].id == kek_id:
        raise Misconfigured(f"the KEK {kek_id} is the current one: `keystead keys add` and rotate first")
    since = content.current_since
    wait = since + SETTLED - datetime.now(UTC) if since else timedelta()
    if wait > timedelta():
        raise Misconfigured(
            f"the current KEK was promoted just now: try again in {int(wait.total_seconds()) + 1} seconds, "
            "when everything sealed under the previous one is stored"
        )


def remove(path: Path, kek_id: str) -> None:
    """Remove a KEK from the file; nothing may be sealed under it. Raises Misconfigured as `require_earlier` does."""
    with _changing(path) as content:
        require_earlier(path, kek_id)
        _write(path, msgspec.structs.replace(content, keks=tuple(kek for kek in content.keks if kek.id != kek_id)))


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[Content]:
    """The content of the file, locked against other commands on this machine; raises Misconfigured."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise Misconfigured(f"the folder of the ring {path} cannot be read ({error.strerror})") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read(path)
    except OSError as error:
        raise Misconfigured(f"the ring {path} cannot be written ({error.strerror})") from None
    finally:
        os.close(folder)


def _write(path: Path, content: Content) -> None:
    # Resolved, so that a symbolic link stays one.
    files.write_private(path.resolve(), _text(content))


def _text(content: Content) -> str:
    return json.dumps(msgspec.to_builtins(content), indent=2) + "\n"
