"""The server's own certificate and key: copied to memory, and tested with rustls, which serves them.

OpenSSL accepts files and keys that rustls does not, and a worker ends when rustls rejects its pair.
"""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.server.embed import Server

from keystead import child, files
from keystead.errors import Misconfigured
from keystead.x509 import der, pem

# The argument of granian's workers: see `build_ssl_context` of its server.
Context: TypeAlias = tuple[bool, str, str, None, str, None, list[str], bool]
_CERTIFICATE, _KEY = "KEYSTEAD_TLS_CERT", "KEYSTEAD_TLS_KEY"
_KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY")
# Larger than any real chain.
_BYTES = 1024 * 1024
# Seconds; a trial takes half a second on an idle machine.
_PATIENCE = 60
_KINDS = "RSA of 2048 to 4096 bits, P-256, P-384 and Ed25519"
# A part of rustls's message, and our explanation.
_REASONS = {
    "KeyMismatch": "the key is not that of the first certificate, which must be the server's own",
    "failed to parse private key": f"the key is damaged or of a kind that is not served: it takes {_KINDS}",
    "InvalidCertificate": "the first certificate is damaged",
    "ASN1": "a certificate of the chain is damaged",
}


def context(path: str) -> Context:
    """The TLS settings of granian for a file with both certificate and key."""
    return (True, path, path, None, str(SSLProtocols.tls12), None, [], False)


def copied(certificate: Path, key: Path) -> int:
    """A memfd with the chain and the key, tested in a trial server; raises Misconfigured with the reason.

    Only the blocks themselves are copied, re-encoded: rustls rejects a BOM, EC PARAMETERS and text around them.
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
    """The path by which child processes open the copy."""
    return f"/proc/{os.getpid()}/fd/{copy}"


def _chain(file: Path) -> str:
    blocks = _blocks(_CERTIFICATE, file)
    if any(block.label == "TRUSTED CERTIFICATE" for block in blocks):
        raise _refused(_CERTIFICATE, file, "it is a TRUSTED CERTIFICATE: convert it with `openssl x509`")
    chain = [_reencoded(_CERTIFICATE, file, block) for block in blocks if block.label == "CERTIFICATE"]
    if not chain:
        raise _refused(_CERTIFICATE, file, "it holds no certificate in PEM")
    return "".join(chain)


def _key(file: Path) -> str:
    blocks = _blocks(_KEY, file)
    keys = [block for block in blocks if block.label in _KEYS]
    if any(block.label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in block.body for block in blocks):
        raise _refused(_KEY, file, "the key has a passphrase: remove it with `openssl pkey`")
    if len(keys) != 1:
        count = f"{len(keys)} private keys" if keys else "no private key"
        raise _refused(_KEY, file, f"it holds {count} in PEM, and must hold one")
    _require_private(file)
    return _reencoded(_KEY, file, keys[0])


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


def _reencoded(setting: str, file: Path, block: pem.Block) -> str:
    try:
        return pem.encoded(block.label, pem.decoded(block))
    except der.Unreadable:
        raise _refused(setting, file, f"its {block.label} is not Base64") from None


def _require_private(file: Path) -> None:
    # PostgreSQL's rule: a file of root's may be readable by its group, such as Debian's ssl-cert.
    state = file.stat()
    allowed = stat.S_IRGRP if state.st_uid == 0 else 0
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed and not files.is_read_only(file):
        mode = "640" if state.st_uid == 0 and state.st_gid != 0 else "600"
        raise _refused(_KEY, file, f"others can read or write it: run `chmod {mode} {file}`")


def _refused(setting: str, file: Path, reason: str) -> Misconfigured:
    return Misconfigured(f"{setting} {file}: {reason}")


def _try(copy: int, certificate: Path, key: Path) -> None:
    """Serve the pair in a child process and connect to it: rustls aborts the process if it rejects the pair."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            child.command("keystead.server.tls", path(copy)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
            env=child.environ(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"it cannot be tried: {error}"
    else:
        if done.returncode == 0:
            return
        known = (text for word, text in _REASONS.items() if word in done.stderr)
        reason = next(known, _last_line(done.stderr))
    raise Misconfigured(f"{_CERTIFICATE} {certificate} and {_KEY} {key} cannot be served together: {reason}")


def _last_line(text: str) -> str:
    panic = re.search(r"panicked at .*\n(.+)", text)
    return panic[1] if panic else (text.strip().splitlines() or ["the trial ended without a message"])[-1]


async def _shake_hands(file: str) -> None:
    server = Server(
        _unused, "127.0.0.1", 0, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False, log_enabled=False
    )
    server.ssl_ctx = context(file)  # type: ignore[assignment]
    serving = asyncio.create_task(server.serve())
    while (bound := listener()) is None:  # noqa: ASYNC110 - granian has no event for it
        await asyncio.sleep(0.01)
    # Only whether a handshake succeeds, not whether clients trust the certificate.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    await asyncio.open_connection(*bound.getsockname(), ssl=client)
    del serving


async def _unused(*_: object) -> None:
    """No request is sent."""


def listener() -> socket.socket | None:
    """A duplicate of this process's listening socket, found through /proc because granian does not expose its own."""
    for file in Path("/proc/self/fd").iterdir():
        # The descriptor may be closed by now.
        with contextlib.suppress(OSError):
            if file.is_socket():
                found = socket.socket(fileno=os.dup(int(file.name)))
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return found
                found.close()
    return None


def main() -> None:
    """The child process of `_try`: serve the pair in the file of the first argument, and connect to it."""
    try:
        asyncio.run(_shake_hands(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)
    # Exit without granian's shutdown: there is nothing to finish.
    os._exit(0)


if __name__ == "__main__":
    main()
