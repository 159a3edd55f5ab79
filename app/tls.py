"""The certificate and key of our own server: copied to memory, and judged by what serves with them.

OpenSSL is no judge: it takes files and keys that rustls does not, and a worker that is given one of these dies of it.
"""

import asyncio
import base64
import contextlib
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.server.embed import Server

from app import child, files, pem
from app.errors import Misconfigured

# What granian's workers take: see `build_ssl_context` of its server.
Context: TypeAlias = tuple[bool, str, str, None, str, None, list[str], bool]
_CERTIFICATE, _KEY = "KEYSTEAD_TLS_CERT", "KEYSTEAD_TLS_KEY"
_KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY")
# More than any chain has.
_BYTES = 1024 * 1024
# A trial takes half a second; a busy machine gets far more.
_PATIENCE = 60
_KINDS = "RSA of 2048 to 4096 bits, P-256, P-384 and Ed25519"
# What rustls says of the pair, in our words.
_REASONS = {
    "KeyMismatch": "the key is not that of the first certificate, which must be the server's own",
    "failed to parse private key": f"the key is damaged or of a kind that is not served: it takes {_KINDS}",
    "InvalidCertificate": "the first certificate is damaged",
    "ASN1": "a certificate of the chain is damaged",
}


def context(path: str) -> Context:
    """What a worker is told of the file with both."""
    return (True, path, path, None, str(SSLProtocols.tls12), None, [], False)


def copied(certificate: Path, key: Path) -> int:
    """A file in memory with the chain and the key, which has been served with; raises Misconfigured with the reason.

    Only what counts is copied, written anew: a BOM, EC PARAMETERS and text around the blocks are not for rustls.
    """
    copy = os.memfd_create("keystead-tls")
    try:
        Path(path(copy)).write_text(_chain(certificate) + _key(key), encoding="ascii")
        _try(copy, certificate, key)
    except BaseException:
        os.close(copy)
        raise
    return copy


def path(copy: int) -> str:
    """Where the processes that this one starts find the copy."""
    return f"/proc/{os.getpid()}/fd/{copy}"


def _chain(file: Path) -> str:
    blocks = _blocks(_CERTIFICATE, file)
    chain = [_anew(_CERTIFICATE, file, block) for block in blocks if block.label == "CERTIFICATE"]
    if any(block.label == "TRUSTED CERTIFICATE" for block in blocks):
        raise _refused(_CERTIFICATE, file, "it is a TRUSTED CERTIFICATE: write it anew with `openssl x509`")
    if not chain:
        raise _refused(_CERTIFICATE, file, "it holds no certificate in PEM")
    return "".join(chain)


def _key(file: Path) -> str:
    blocks = _blocks(_KEY, file)
    keys = [block for block in blocks if block.label in _KEYS]
    if any(block.label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in block.body for block in blocks):
        raise _refused(_KEY, file, "the key has a passphrase: write it without one with `openssl pkey`")
    if len(keys) != 1:
        raise _refused(
            _KEY, file, f"it holds {len(keys) or 'no'} private key{'s' * bool(keys)} in PEM, and must hold one"
        )
    _require_private(file)
    return _anew(_KEY, file, keys[0])


def _blocks(setting: str, file: Path) -> list[pem.Block]:
    try:
        with file.open("rb") as opened:
            body = opened.read(_BYTES + 1)
    except OSError as error:
        raise _refused(setting, file, f"it cannot be read ({error.strerror})") from None
    if body.startswith(b"\x30"):
        raise _refused(setting, file, "it is DER, and must be PEM")
    if len(body) > _BYTES:
        raise _refused(setting, file, "it is larger than 1 MiB")
    return list(pem.blocks(body.decode("latin-1")))


def _anew(setting: str, file: Path, block: pem.Block) -> str:
    try:
        der = base64.b64decode("".join(block.body.split()), validate=True)
    except ValueError:
        raise _refused(setting, file, f"its {block.label} is not Base64") from None
    body = textwrap.fill(base64.b64encode(der).decode("ascii"), 64)
    return f"-----BEGIN {block.label}-----\n{body}\n-----END {block.label}-----\n"


def _require_private(file: Path) -> None:
    # PostgreSQL's rule: a group such as Debian's ssl-cert may read what root keeps for it.
    state = file.stat()
    allowed = stat.S_IRGRP if state.st_uid == 0 else 0
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed and not files.is_read_only(file):
        mode = "640" if state.st_uid == 0 and state.st_gid != 0 else "600"
        raise _refused(_KEY, file, f"others can read or write it: run `chmod {mode} {file}`")


def _refused(setting: str, file: Path, reason: str) -> Misconfigured:
    return Misconfigured(f"{setting} {file}: {reason}")


def _try(copy: int, certificate: Path, key: Path) -> None:
    """Let a process of its own serve with it, and shake hands with itself: rustls ends the process that it refuses."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            child.command("app.tls", path(copy)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
            env=child.environ(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"it cannot be tried: {error}"
    else:
        if done.returncode == 0:
            return
        said = next((reason for word, reason in _REASONS.items() if word in done.stderr), _last_words(done.stderr))
    raise Misconfigured(f"{_CERTIFICATE} {certificate} and {_KEY} {key} cannot be served together: {said}")


def _last_words(text: str) -> str:
    panic = re.search(r"panicked at .*\n(.+)", text)
    return panic[1] if panic else (text.strip().splitlines() or ["it ended without a word"])[-1]


async def _shake_hands(file: str) -> None:
    server = Server(
        _nothing, "127.0.0.1", 0, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False, log_enabled=False
    )
    server.ssl_ctx = context(file)  # type: ignore[assignment]
    serving = asyncio.create_task(server.serve())
    while not (addresses := [each.getsockname() for each in listening()]):  # noqa: ASYNC110 - granian tells nobody
        await asyncio.sleep(0.01)
    # Whether others trust it is their business; a client must be able to read it.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(*addresses[0], ssl=client)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    if not (await reader.readline()).startswith(b"HTTP/1."):
        raise OSError("it does not answer")
    del serving


async def _nothing(_: object, __: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def listening() -> Iterator[socket.socket]:
    """The sockets on which this process listens, whoever has made them."""
    for file in Path("/proc/self/fd").iterdir():
        # It may be closed by now, or be no socket.
        with contextlib.suppress(OSError):
            if file.is_socket():
                with socket.socket(fileno=os.dup(int(file.name))) as ours:
                    if ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        yield ours


def main() -> None:
    """Serve with the pair in this file, and be its client."""
    try:
        asyncio.run(_shake_hands(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)
    # Without a word to granian, which has nothing to finish.
    os._exit(0)


if __name__ == "__main__":
    main()
