"""A child process that generates RSA keys at idle priority, and sends them to its worker over a socket pair.

The processes of one data folder share a lock file, so that they use at most one core; more would slow down requests.

A process and not a thread, because a low-priority thread that holds the GIL blocks every request until it is scheduled
again (docs/decisions/0019-ready-rsa-keys.md). Keys are never written to disk.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from keystead import child, process
from keystead.x509 import keys
from keystead.x509.keys import KeyType

_LENGTH = struct.Struct(">I")


class Maker:
    """The worker's side. The child process is started on first use, and exits when the socket closes."""

    def __init__(self, lock_file: Path | None = None) -> None:
        self._lock_file = lock_file
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def make(self) -> keys.KeyPair:
        """A new RSA-2048 key pair; waits as long as the machine is busy. Raises OSError, EOFError and ValueError."""
        reader, writer = self._streams or await self._start()
        writer.write(b"k")
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        private_key = keys.load(await reader.readexactly(length))
        return keys.KeyPair(KeyType.RSA2048.value, private_key, keys.spki(private_key))

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                lock_file = [str(self._lock_file)] if self._lock_file else []
                command = child.command("keystead.custody.keymaker", str(theirs.fileno()), str(os.getpid()), *lock_file)
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
    """Generate one key per byte received, until the socket closes; argv: socket fd, parent pid, optional lock file."""
    socket_fd, parent, lock_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    _isolate()
    if os.getppid() != parent:
        return
    lock = os.open(lock_file[0], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if lock_file else None
    with socket.socket(fileno=socket_fd) as requests:
        while requests.recv(1):
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            der = keys.pkcs8(keys.generate(KeyType.RSA2048).private_key)
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)
            requests.sendall(_LENGTH.pack(len(der)) + der)


def _isolate() -> None:
    process.die_with_parent()
    # The memory holds private keys.
    process.hide_memory()
    # Ctrl-C goes to the whole process group; the worker stops this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
