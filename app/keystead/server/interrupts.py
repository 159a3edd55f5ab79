"""What the parent process waits on between signals."""

import os
import select
import signal


class Interrupt:
    """A threading.Event for signal handlers; from its making on, every signal wakes who waits.

    An Event waits at a lock: a signal that comes while another is being handled can be heeded only at the next one
    after it, and a handler that sets the Event while it is locked waits for itself.
    """

    def __init__(self) -> None:
        self._set = False
        self._heard, self._rings = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._rings, False)
        # Written by the kernel's side of a signal, before Python's handler runs.
        signal.set_wakeup_fd(self._rings, warn_on_full_buffer=False)

    def set(self) -> None:
        self._set = True
        try:
            os.write(self._rings, b"\0")
        except BlockingIOError:
            # Full of rings that nobody has heard yet, which wake as well.
            return

    def clear(self) -> None:
        self._set = False

    def wait(self) -> None:
        while not self._set:
            select.select([self._heard], [], [])
            os.read(self._heard, 4096)
