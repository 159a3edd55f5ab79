"""What `make bench` says of CPU, of a service that failed, and of words that it does not understand."""

import os
import shutil
import subprocess
import sys

import pytest
from bench import run
from bench.measuring import cpu_seconds, parent_of, process, spread, wrk
from support.live import free_port

BUSY = "import time\nwhile time.process_time() < 0.2: pass"
# Each of the times that are added may lack a hundredth of a second, and sums of them a little more.
HALF = 0.1


def test_the_cpu_of_processes_below_counts_after_they_have_ended() -> None:
    """A child of a fifth of a second is in the sum of its parent's once it is gone."""
    before = cpu_seconds((os.getpid(),))
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_seconds((os.getpid(),)) - before >= HALF


def test_the_cpu_of_processes_below_counts_while_they_run() -> None:
    """So it does before anybody has waited for it; and a process named twice, or below another, counts once."""
    command = [sys.executable, "-c", f"{BUSY}\nprint(flush=True)\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert parent_of(child.pid) == os.getpid()
        alone, both = cpu_seconds((child.pid,)), cpu_seconds((os.getpid(), child.pid, child.pid))
        assert alone >= HALF
        assert both - cpu_seconds((os.getpid(),)) < HALF
        child.communicate("\n")


def test_a_spread_is_the_median_with_the_lowest_and_the_highest() -> None:
    assert spread([3.0, 1.0, 2.04], ".1f") == "2.0 (1.0–3.0)"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_answers_that_are_no_success_end_the_program() -> None:
    """A scene whose requests fail measures nothing: it is told with the address, and not as a rate."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/nothing-here"
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with process(command, {}, url), pytest.raises(SystemExit, match=r"nothing-here: \d+ answers were no"):
        wrk(url, 1)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--only", "sing"], "there is no scene sing; there are get,"),
        (["--peer", "sign"], "--peer takes a scene"),
        (["--peer", "memory", "1", "http://127.0.0.1:1/"], "--peer takes a scene"),
        (["--peer", "sign", "0", "http://127.0.0.1:1/"], "0 are no processes that run"),
        (["--peer", "sign", "1;2", "http://127.0.0.1:1/"], "1;2 are no processes that run"),
        (["--peer", "sign", "1", "http://192.0.2.1/"], "is not on this machine"),
        (["--peer", "sign", "1", "http://127.0.0.1.example.com/"], "is not on this machine"),
        (["--peer", "sign", "1", "http://127.0.0.1:1/", "none.lua"], "there is no file none.lua"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_anything_starts(
    words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its reason: the run would take minutes to find out."""
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    with pytest.raises(SystemExit):
        run.main()
    assert reason in capsys.readouterr().err
