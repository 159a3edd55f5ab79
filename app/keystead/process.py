"""Protection of our own processes (prctl(2), setrlimit(2))."""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. A parent that has ended already is not noticed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def hide_memory() -> None:
    """No core dumps, and no access to this process's memory except for root."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


# Allocated objects; Python's default of 700 would trigger a collection every few requests.
_GARBAGE_THRESHOLD = 20_000


def collect_rarely() -> None:
    """For a process that serves: the objects so far are permanent, and a request leaves few cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)


def notify(state: str) -> None:
    """Tell systemd how this service stands, if it has asked for that (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(state.encode("ascii"), f"\0{address[1:]}" if address.startswith("@") else address)
