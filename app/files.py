"""Files that hold secrets on the operator's host: whole or not at all, and nobody else's to read."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """A file of mode 0600."""
    write_together(path.parent, {path.name: text})


def write_together(folder: Path, texts: Mapping[str, str]) -> None:
    """Files of mode 0600 in one folder; all of them are complete on disk before the first takes its name."""
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
    """A file that root rewrites stays its owner's: a service that could read it before still must."""
    if os.geteuid() == 0 and path.exists():
        state = path.stat()
        os.fchown(draft, state.st_uid, state.st_gid)


def sync(folder: Path) -> None:
    """Make the names in a folder as durable as the files behind them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_read_only(path: Path) -> bool:
    """Whether it lies on a mount where nobody can change its mode, such as one with secrets."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
