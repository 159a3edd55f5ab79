"""Programs of the operator: hooks of a delivery, and the one that is told what becomes of certificates."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum

import msgspec
import structlog

from keystead.errors import quoted

# They get no settings of ours: the address of the database may have a password in it.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
TELL_SECONDS = 10.0
_log = structlog.get_logger("keystead")


class Failed(Exception):  # noqa: N818 - the name says what it is
    """A program has refused or not ended; the text says which and how."""


async def run(argv: Sequence[str], seconds: float, said: bytes | None = None) -> None:
    """Run a program with this on its standard input, or nothing; its output goes where ours does.

    Its process group is killed after `seconds`. Raises Failed.
    """
    shown = quoted(" ".join(argv))
    environ = {name: os.environ[name] for name in _PASSED if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if said is None else asyncio.subprocess.PIPE,
            stdout=sys.__stderr__,
            stderr=sys.__stderr__,
            env=environ,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{shown} cannot be run ({error.strerror})") from None
    try:
        async with asyncio.timeout(seconds):
            await process.communicate(said)
    except TimeoutError:
        raise Failed(f"{shown} was killed after {seconds:g} seconds") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        status = process.returncode
        how = f"ended with {status}" if status > 0 else f"was ended by signal {-status}"
        raise Failed(f"{shown} {how}; its output stands in the log")


class Event(StrEnum):
    RENEWED = "renewed"
    FAILED = "failed"
    EXPIRING = "expiring"


class Notice(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of a certificate, or of those of a delivery; `expires_on` is in RFC 3339 (docs/renewal.md)."""

    event: Event
    delivery: str = ""
    account: str = ""
    zone: str = ""
    certificate: str = ""
    hosts: tuple[str, ...] = ()
    expires_on: str = ""
    reason: str = ""


async def tell(argv: Sequence[str], notice: Notice) -> None:
    """Run the program, if there is one, with the notice as a line of JSON; whatever it does, nothing else changes."""
    if not argv:
        return
    try:
        await run(argv, TELL_SECONDS, msgspec.json.encode(notice) + b"\n")
    except Failed as error:
        _log.warning("nobody was told", event_told=notice.event.value, reason=str(error))
