"""Files take their names together, or the earlier ones get them back: within one folder, which nobody else may write.

Each step can be the last one before a crash; `put_back` and `sweep` end what was begun
(docs/decisions/0049-a-pair-by-renames.md).
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from keystead.errors import Misconfigured

_NEW, _BEFORE = ".keystead-new", ".keystead-before"


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the folder, which is locked; raises Misconfigured unless it and what is above it are safe."""
    if os.path.realpath(path) != path:
        raise Misconfigured(f"the folder {path} has a symbolic link in it: name {os.path.realpath(path)}")
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Misconfigured(f"the folder {path} cannot be opened ({error.strerror})") from None
    try:
        _require_ours(path, os.fstat(folder), sticky=False)
        for above in Path(path).parents:
            # In a sticky one nobody else can rename what is ours.
            _require_ours(str(above), above.stat(), sticky=True)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(f"the folder {path} is in use by another `keystead deliver`") from None
        yield folder
    finally:
        os.close(folder)


def _require_ours(path: str, state: os.stat_result, *, sticky: bool) -> None:
    if state.st_uid not in {0, os.geteuid()}:
        raise Misconfigured(f"the folder {path} belongs to uid {state.st_uid}: it has to be root's, or this user's")
    if state.st_mode & 0o022 and not (sticky and state.st_mode & stat.S_ISVTX):
        raise Misconfigured(f"others may write the folder {path}: chmod it 0755 or less")


def require_files(folder: int, names: Iterable[str]) -> None:
    """Raise Misconfigured if a name is that of something other than a file."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise Misconfigured(f"{name} is there, and is no file: a symbolic link, or a folder")


def present(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def draft(folder: int, files: Mapping[str, bytes], access: tuple[int, int, int]) -> None:
    """Write the files under other names, with mode and owner before the content; raises OSError."""
    mode, owner, group = access
    for name, content in files.items():
        _remove(folder, name + _NEW)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name + _NEW, flags, 0o600, dir_fd=folder), "wb") as file:
            if (owner, group) != (-1, -1):
                os.fchown(file.fileno(), owner, group)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def keep(folder: int, names: Iterable[str]) -> tuple[str, ...]:
    """Keep the present files under other names too; returns those that there are."""
    kept = []
    for name in names:
        _remove(folder, name + _BEFORE)
        with contextlib.suppress(FileNotFoundError):
            os.link(name, name + _BEFORE, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            kept.append(name)
    os.fsync(folder)
    return tuple(kept)


def switch(folder: int, names: Iterable[str]) -> None:
    """Give the drafts their names."""
    for name in names:
        os.rename(name + _NEW, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def put_back(folder: int, replaced: Iterable[str], fresh: Iterable[str]) -> None:
    """Give the earlier files their names again, and remove those that had none; may be repeated."""
    for name in replaced:
        with contextlib.suppress(FileNotFoundError):
            os.rename(name + _BEFORE, name, src_dir_fd=folder, dst_dir_fd=folder)
    for name in fresh:
        _remove(folder, name)
    os.fsync(folder)


def sweep(folder: int, names: Collection[str] | None = None) -> None:
    """Remove drafts and what was kept, of these names or of all."""
    for name in os.listdir(folder):
        if name.endswith((_NEW, _BEFORE)) and (names is None or name.removesuffix(_NEW).removesuffix(_BEFORE) in names):
            _remove(folder, name)


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
