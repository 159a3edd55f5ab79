"""HAProxy's runtime socket, at which it takes new certificates while it runs."""

import asyncio
import contextlib
import os
import pwd
import socket
import struct
from pathlib import Path

from keystead.errors import quoted
from keystead.programs import Failed

_MAX_ANSWER = 64 * 1024


async def set_certificate(path: str, file: Path, seconds: float) -> None:
    """Have HAProxy, at its socket, serve what this file holds by now; raises Failed.

    Only root, this user and the owner of the file may be at the other end, since the key goes there.
    """
    try:
        text, owner = file.read_text("ascii"), file.stat().st_uid  # noqa: ASYNC240 - nothing else runs here
        async with asyncio.timeout(seconds):
            await _ask(path, f"set ssl cert {file} <<\n{text.strip()}\n\n", "Transaction", owner)
            try:
                await _ask(path, f"commit ssl cert {file}\n", "Success", owner)
            except Failed:
                with contextlib.suppress(Failed):
                    await _ask(path, f"abort ssl cert {file}\n", "", owner)
                raise
    except TimeoutError:
        raise Failed(f"HAProxy at {path} has not answered within {seconds:g} seconds") from None
    except OSError as error:
        raise Failed(f"HAProxy at {path} cannot be asked ({error.strerror or error})") from None


async def _ask(path: str, words: str, wanted: str, owner: int) -> None:
    reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_ANSWER)
    try:
        _require_peer(path, writer.get_extra_info("socket"), owner)
        writer.write(words.encode("ascii"))
        await writer.drain()
        answer = (await reader.read(_MAX_ANSWER)).decode("utf-8", "replace")
        while wanted not in answer and len(answer) < _MAX_ANSWER and (more := await reader.read(_MAX_ANSWER)):
            answer += more.decode("utf-8", "replace")
    finally:
        writer.close()
    if wanted not in answer:
        said = next((line for line in answer.splitlines() if line.strip()), "nothing")
        raise Failed(f"HAProxy at {path} has refused {' '.join(words.split()[:3])}: {quoted(said)}")


def _require_peer(path: str, connection: socket.socket, owner: int) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in {0, os.geteuid(), owner}:
        raise Failed(f"the socket {path} is that of {_user(uid)}, who may not have the key")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
