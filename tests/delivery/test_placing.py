"""Files take their names together, and a crash at any step leaves the earlier ones after a recovery."""

import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from keystead.delivery import placing, state
from keystead.delivery.state import Phase, Record
from keystead.errors import Misconfigured

OLD, NEW = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "b": b"new b", "c": b"new c"}
ACCESS = (0o600, -1, -1)


class Killed(BaseException):
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    tmp_path.chmod(0o755)
    for name, content in OLD.items():
        (tmp_path / name).write_bytes(content)
    with placing.opened(str(tmp_path)) as opened:
        yield opened


def held(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def place(folder: int, record: Callable[[tuple[str, ...]], object]) -> None:
    placing.draft(folder, NEW, ACCESS)
    record(placing.keep(folder, NEW))
    placing.switch(folder, NEW)


def test_a_draft_has_its_mode_before_its_content(folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When access is set the draft is empty, and from its making on nobody else may read it."""
    seen = []

    def fchmod(descriptor: int, mode: int) -> None:
        state = os.fstat(descriptor)
        seen.append((state.st_size, stat.S_IMODE(state.st_mode), mode))

    monkeypatch.setattr(os, "fchmod", fchmod)
    placing.draft(folder, NEW, (0o640, -1, -1))
    assert seen == [(0, 0o600, 0o640)] * 3


def test_a_reader_finds_whole_files_at_each_step(folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each sync and rename every name has the old or the new content, and never a part."""
    rename = os.rename

    def looking(*words: Any, **more: Any) -> None:
        rename(*words, **more)
        for name, content in OLD.items():
            assert (tmp_path / name).read_bytes() in {content, NEW[name]}

    monkeypatch.setattr(os, "rename", looking)
    place(folder, len)
    placing.sweep(folder)
    assert held(tmp_path) == NEW


@pytest.mark.parametrize("step", range(1, 30))
def test_after_a_crash_at_any_step_the_earlier_files_are_there(tmp_path: Path, step: int) -> None:
    """Killed before any call to the system, a recovery gives the old pair, no file of the new one, and no rest."""
    base, target = tmp_path / "base", tmp_path / "target"
    for each in (tmp_path, base, target):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)
    for name, content in OLD.items():
        (target / name).write_bytes(content)
    path, count = str(base / "state.json"), 0
    names = ("open", "fsync", "fchmod", "link", "rename", "unlink")

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            return real(*words, **more)

        return call

    with state.held(path) as kept, placing.opened(str(target)) as folder, pytest.MonkeyPatch.context() as patch:

        def record(replaced: tuple[str, ...]) -> None:
            fresh = tuple(NEW.keys() - set(replaced))
            kept.set("x", Record(str(target), phase=Phase.PLACING, replaced=replaced, fresh=fresh))

        kept.set("x", Record(str(target)))
        for name in names:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            place(folder, record)
            ended = True
        except Killed:
            ended = False
    # The kernel would have closed these.
    with state.held(path) as found:
        found.recover()
        assert held(target) == OLD
        assert found.records["x"].phase is not Phase.PLACING
    assert ended is (count < step)


def test_the_two_sides_of_a_recovery_may_repeat(folder: int, tmp_path: Path) -> None:
    """Put back twice, with what was swept between, is as once."""
    place(folder, len)
    for _ in range(2):
        placing.put_back(folder, ("a", "b"), ("c",))
        placing.sweep(folder)
    assert held(tmp_path) == OLD


def test_a_folder_is_taken_once(folder: int, tmp_path: Path) -> None:
    """While one has it open, another is refused."""
    with pytest.raises(Misconfigured, match="in use"), placing.opened(str(tmp_path)):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_a_stranger_is_refused(tmp_path: Path) -> None:
    """The folder itself, and one above it, have to be root's or this user's."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    for each in (below, below.parent):
        os.chown(each, 65534, -1)
        with pytest.raises(Misconfigured, match="belongs to uid 65534"), placing.opened(str(below)):
            pass
        os.chown(each, os.geteuid(), -1)


def test_a_folder_above_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever may write there could exchange the folder; where it is sticky they cannot."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    below.parent.chmod(0o777)
    with pytest.raises(Misconfigured, match="others may write"), placing.opened(str(below)):
        pass
    below.parent.chmod(0o1777)
    with placing.opened(str(below)):
        pass


@pytest.mark.parametrize("content", ["", "{}", '{"version":2,"deliveries":{}}', "{", '{"version":1,"deliveries":7}'])
def test_a_damaged_state_file_is_said(tmp_path: Path, content: str) -> None:
    """It is not overwritten; the text says what removing it means."""
    tmp_path.chmod(0o755)
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(Misconfigured, match="is damaged: remove it"), state.held(str(path)):
        pass
    assert path.read_text() == content


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A record comes back whole."""
    tmp_path.chmod(0o755)
    path = str(tmp_path / "state.json")
    now = datetime.now(UTC).replace(microsecond=0)
    placed = state.Placed(UUID(int=1), "aa", "bb", now, now, ("a", "b"))
    record = Record("/x", "plan", Phase.PLACED, {"": placed}, ("a",), ("b",), ("a", "b"))
    with state.held(path) as kept:
        kept.set("www", record)
    assert state.read(path).records == {"www": record}
