"""The command in a rough world: what a user, a file mode or a terminal can cause is one sentence, and no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import run_command

from keystead.server import postgres
from keystead.store.database import Database

ROOT = Path(postgres.__file__).parents[2]
COMMAND = [sys.executable, "-m", "keystead"]


def environ(folder: Path, **more: str) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("KEYSTEAD_", "PYTHON"))}
    return {**inherited, "PYTHONPATH": str(ROOT), "KEYSTEAD_DATA_DIR": str(folder / "data"), **more}


def run(folder: Path, *words: str | bytes, settings: dict[str, str] | None = None, **more: Any) -> tuple[int, str]:
    """The exit status, and what was said on standard error."""
    more = {"stdout": subprocess.PIPE, "env": environ(folder, **(settings or {})), **more}
    done = subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False, **more)
    said = done.stderr.decode(errors="replace")
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    return done.returncode, said


def test_whoever_stops_reading_is_no_error(tmp_path: Path) -> None:
    """`keystead … | head -0` says nothing at all."""
    reading, writing = os.pipe()
    os.close(reading)
    assert run(tmp_path, "doctor", stdout=writing)[1] == ""
    os.close(writing)


def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """What was not printed is a failure with a reason, and so is what `doctor` found."""
    for words in (["--help"], ["doctor"]):
        with Path("/dev/full").open("w") as full:
            assert run(tmp_path, *words, stdout=full) == (1, "keystead: No space left on device\n")


def test_closed_streams_are_no_files(tmp_path: Path) -> None:
    """Without standard output a command does its work, and prints into no other file that got the number 1."""
    assert run(tmp_path, "token", "groups", stdout=None, preexec_fn=lambda: os.close(1)) == (0, "")


def test_arguments_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """A wrong use, before anything is done."""
    status, said = run(tmp_path, b"account", b"create", b"\xff")
    assert (status, said.splitlines()[-1]) == (2, "Error: an argument is not UTF-8")


def test_a_locale_without_letters_is_no_obstacle(tmp_path: Path) -> None:
    """Text that the output has no letters for is escaped, whatever the locale makes of the arguments."""
    settings = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    settings["KEYSTEAD_KEYRING"] = str(tmp_path / "Schlüsselring")
    assert run(tmp_path, "keys", "init", settings=settings) == (0, "")
    status, said = run(tmp_path, "certificate", "expiring", "--within", "dreißig", settings=settings)
    assert (status, said.splitlines()[-1].isascii()) == (2, True)


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    """Only a relative path needs it."""
    gone = tmp_path / "gone"

    def leave() -> None:
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    settings = {"KEYSTEAD_DATA_DIR": ".data"}
    status, said = run(tmp_path, "keys", "init", settings=settings, preexec_fn=leave)
    assert status == 1
    assert said.endswith("is relative to a working directory that does not exist any more\n")
    assert run(tmp_path, "keys", "init", preexec_fn=leave) == (0, "")


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    """For the data folder as for a file."""
    long = str(tmp_path / ("x" * 300) / "y")
    for words, settings in (
        (["account", "list"], {"KEYSTEAD_DATA_DIR": long}),
        (["doctor"], {"KEYSTEAD_KEYRING": long, "KEYSTEAD_DATA_DIR": str(tmp_path)}),
    ):
        assert run_command(settings, *words).status == 1


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql://127.0.0.1:1/x", "Connect call failed"),
        ("postgresql://127.0.0.1:99999/x", "cannot be read"),
        ("postgresql://u@127.0.0.1:1/x?sslmode=verify-full", "asks for TLS: root certificate file"),
        ("postgresql://[::1/x", "cannot be read"),
    ],
)
def test_an_address_of_no_database_is_one_sentence(tmp_path: Path, address: str, why: str) -> None:
    """It says why, also to a command that is no doctor."""
    settings = {"KEYSTEAD_DATA_DIR": str(tmp_path / "data"), "HOME": "/nowhere"}
    assert run_command(settings, "keys", "init").status == 0
    ended = run_command({**settings, "KEYSTEAD_DATABASE_URL": address}, "account", "list")
    assert ended.status == 1
    assert why in ended.err
    assert ended.err.count("\n") == 1


REFUSES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'not today' USING DETAIL = 'The row has ' || NEW.name, ERRCODE = 'P0001'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_what_postgresql_says_of_a_row_is_not_repeated(database_url: str, tmp_path: Path) -> None:
    """Of an error that nobody foresaw the first line is told; the DETAIL below it may quote what a row holds."""
    database = Database(database_url, 1)
    await database.execute(REFUSES)
    settings = {"KEYSTEAD_DATABASE_URL": database_url, "KEYSTEAD_DATA_DIR": str(tmp_path)}
    ended = run_command(settings, "keys", "init")
    assert ended.status == 0, ended.err
    ended = run_command(settings, "account", "create", "acme", "--name", "Secret Name")
    assert (ended.status, ended.err) == (1, "keystead: the database refused: not today\n")
    await database.execute("DROP FUNCTION refuse CASCADE")
    await database.close()


def test_ctrl_c_while_modules_are_read_is_quiet(tmp_path: Path) -> None:
    """That takes most of the time of a short command, and there is nothing to be undone."""
    # One of the first that are read, in whose place Ctrl-C comes.
    (tmp_path / "asyncpg.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    status, said = run(tmp_path, "account", "list", settings={"PYTHONPATH": path})
    assert (status in {130, -signal.SIGINT}, said) == (True, "")


NAMELESS = 54321


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_uid_without_a_name_is_told_of_what_needs_one(tmp_path: Path) -> None:
    """PostgreSQL's rules take the user's name for the role, and there is none: the sentence says what to write."""
    python = next(
        (each for each in (sys.executable, "/usr/bin/python3") if _runs(each, tmp_path)),
        None,
    )
    if python is None:
        pytest.skip("no Python here that another user can run with these packages")
    settings = {"KEYSTEAD_DATABASE_URL": "postgresql://127.0.0.1:1/x", "PYTHONPATH": _packages(), "PATH": os.defpath}
    done = subprocess.run(
        [python, "-m", "keystead", "migrate"], env=settings, cwd="/", user=NAMELESS, group=NAMELESS, extra_groups=(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.startswith(f"keystead: KEYSTEAD_DATABASE_URL names no user, and the uid {NAMELESS} has no name")
    assert done.stderr.count("\n") == 1


def _packages() -> str:
    return os.pathsep.join((str(ROOT), *(path for path in sys.path if "site-packages" in path)))


def _runs(python: str, folder: Path) -> bool:
    try:
        done = subprocess.run(
            [python, "-c", "import keystead"], env={"PYTHONPATH": _packages()}, cwd="/", user=NAMELESS, group=NAMELESS,
            extra_groups=(), capture_output=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0
