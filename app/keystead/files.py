"""Atomic writing of files that hold secrets, readable only by their owner."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write one file of mode 0600 atomically; see write_together."""
    write_together(path.parent, {path.name: text})


def write_together(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files of mode 0600 in one folder; all are synced to disk before the first is renamed into place.

    Raises OSError, and IsADirectoryError before anything is written.
    """
    for name in texts:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    drafts = {folder / name: folder / f".{name}.{os.getpid()}" for name in texts}
    try:
        for path, draft in drafts.items():
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                _keep_owner(path, file.fileno())
                file.write(texts[path.name])
                file.flush()
                os.fsync(file.fileno())
        for path, draft in drafts.items():
            draft.replace(path)
        sync(folder)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _keep_owner(path: Path, draft: int) -> None:
    """Keep the owner of a file that root rewrites, so that the service can still read it."""
    if os.geteuid() == 0 and path.exists():
        state = path.stat()
        os.fchown(draft, state.st_uid, state.st_gid)


def sync(folder: Path) -> None:
    """Sync a folder, so that new and renamed files in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_read_only(path: Path) -> bool:
    """Whether the file is on a read-only mount, such as a Kubernetes secret, where its mode cannot be changed."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
