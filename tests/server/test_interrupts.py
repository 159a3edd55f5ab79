"""What the parent waits on: no signal may be lost, as a SIGTERM would stop nothing."""

import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.processes import ROOT
from support.waiting import SECONDS

from keystead.server.interrupts import Interrupt

WAITS = """
import signal, threading, time
from keystead.server.interrupts import Interrupt

interrupt = Interrupt()
# As the parent has, which watch its workers.
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
signal.signal(signal.SIGHUP, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: interrupt.set())
while True:
    print(flush=True)
    interrupt.wait()
    interrupt.clear()
"""


def test_no_signal_is_lost_behind_another() -> None:
    """SIGTERM is heeded however soon after SIGHUP it comes; at a threading.Event one in some hundreds was not."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WAITS], env=environ, stdout=subprocess.PIPE, bufsize=0) as waiting:
        try:
            assert waiting.stdout
            for turn in range(2000):
                assert select.select([waiting.stdout], [], [], SECONDS)[0], f"SIGTERM {turn} was lost"
                waiting.stdout.read(1)
                # It waits by then as a rule, and then is at another point of its work each time.
                time.sleep(0.0003)
                waiting.send_signal(signal.SIGHUP)
                begun = time.perf_counter()
                while time.perf_counter() - begun < turn % 80 / 1_000_000:
                    pass
                waiting.send_signal(signal.SIGTERM)
        finally:
            waiting.kill()


@pytest.fixture
def interrupt() -> Interrupt:
    woken = signal.set_wakeup_fd(-1)
    try:
        return Interrupt()
    finally:
        signal.set_wakeup_fd(woken)


def test_a_thread_wakes_who_waits(interrupt: Interrupt) -> None:
    """A worker's end is told by the thread that watches it."""
    threading.Timer(0.05, interrupt.set).start()
    interrupt.wait()


def test_it_may_be_set_any_number_of_times(interrupt: Interrupt) -> None:
    """While nobody waits, as during a reload, no signal handler hangs for want of room; once cleared it waits again."""
    for _ in range(100_000):
        interrupt.set()
    interrupt.wait()
    interrupt.clear()
    threading.Timer(0.05, interrupt.set).start()
    interrupt.wait()
