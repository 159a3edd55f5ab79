"""A process that makes RSA keys when the machine has nothing better to do, and hands them over a socket pair.

Those of one data folder take turns, so that at most one core is busy with it: two would be noticed by who is served.

A process and not a thread: a thread at low priority that holds, or waits for, the interpreter's lock makes every
request wait until the scheduler is kind to it (docs/decisions/0019-ready-rsa-keys.md). The keys are never on disk.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from app import child, keys
from app.model import KeyType

_LENGTH = struct.Struct(">I")
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Maker:
    """The worker's end; the process ends with the socket."""

    def __init__(self, turns: Path | None = None) -> None:
        self._turns = turns
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def make(self) -> keys.KeyPair:
        """One RSA-2048 key, however long it takes while others need the machine; raises OSError and EOFError."""
        reader, writer = self._streams or await self._start()
        writer.write(b"k")
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        private_key = keys.load(await reader.readexactly(length))
        return keys.KeyPair(KeyType.RSA2048.value, private_key, keys.spki(private_key))

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                turns = [str(self._turns)] if self._turns else []
                command = child.command("app.keymaker", str(theirs.fileno()), str(os.getpid()), *turns)
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter; it takes a millisecond
                    command,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=child.environ(),
                )
            self._streams = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return self._streams

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._process = self._streams = None


def main() -> None:
    """Make keys as long as somebody asks for them."""
    asking_fd, parent, turns = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    _step_back()
    if os.getppid() != parent:
        return
    turn = os.open(turns[0], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if turns else None
    with socket.socket(fileno=asking_fd) as asking:
        while asking.recv(1):
            if turn is not None:
                fcntl.flock(turn, fcntl.LOCK_EX)
            der = keys.pkcs8(keys.generate(KeyType.RSA2048).private_key)
            if turn is not None:
                fcntl.flock(turn, fcntl.LOCK_UN)
            asking.sendall(_LENGTH.pack(len(der)) + der)


def _step_back() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # What it holds is as secret as a worker's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Ctrl-C reaches the whole group, and the worker ends it in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
