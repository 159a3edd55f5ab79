"""What the files of a certificate hold."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from keystead.certificates.export import Exported
from keystead.delivery.settings import Format
from keystead.errors import Misconfigured
from keystead.x509 import pkcs12

_MAX_BYTES = 1024


def contents(exported: Exported, names: Mapping[Format, str], alias: str, passphrase: bytes) -> dict[str, bytes]:
    """The bytes of each file, by its name; `alias` is the name of the entry in PKCS#12."""
    return {name: _content(exported, form, alias, passphrase) for form, name in names.items()}


def _content(exported: Exported, form: Format, alias: str, passphrase: bytes) -> bytes:
    match form:
        case Format.FULLCHAIN:
            return exported.fullchain.encode("ascii")
        case Format.PRIVKEY:
            return exported.private_key.encode("ascii")
        case Format.COMBINED:
            return f"{exported.fullchain}{exported.private_key}".encode("ascii")
        case Format.PKCS12:
            return pkcs12.store(alias, exported.fullchain, exported.private_key, passphrase)


def passphrase(path: str | None) -> bytes:
    """The first line of the file; raises Misconfigured if others may read it, or it cannot be one."""
    if path is None:
        return b""
    try:
        with Path(path).open("rb") as file:
            state = os.fstat(file.fileno())
            line = file.read(_MAX_BYTES + 1).split(b"\n", 1)[0].removesuffix(b"\r")
    except OSError as error:
        raise Misconfigured(f"the passphrase file {path} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o037 or state.st_uid not in {0, os.geteuid()}:
        raise Misconfigured(f"the passphrase file {path} is for others too: chown it to this user, and chmod it 0600")
    if not 0 < len(line) <= _MAX_BYTES or not line.isascii():
        raise Misconfigured(f"the passphrase file {path} has no line of 1 to {_MAX_BYTES} ASCII characters")
    return line
