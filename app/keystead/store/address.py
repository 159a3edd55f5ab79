"""What is wrong with the address of a database, in a sentence that does not quote it: it may hold a password."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from keystead.errors import Misconfigured

# Texts of asyncpg that quote no more than the name of a file.
_TOLD = ("root certificate file", "`sslmode` parameter", "`sslnegotiation` parameter")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


@contextmanager
def readable(dsn: str, setting: str = "KEYSTEAD_DATABASE_URL") -> Iterator[None]:
    """Turn asyncpg's errors about the address `dsn`, which is that of `setting`, into Misconfigured.

    Raises ConnectionError where the database's certificate is not accepted.
    """
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        # A ValueError too, but what is wrong may be the server's.
        raise ConnectionError(f"its certificate is not accepted: {error.verify_message}") from None
    except (ValueError, OverflowError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if text.startswith(_TOLD):
            raise Misconfigured(f"{setting} asks for TLS: {text}") from None
        text = f"{setting} cannot be read; in a password write / # ? @ : and % percent-encoded, / as %2F"
        raise Misconfigured(text) from None
    except KeyError:
        # From getpass: without a user in the URL, asyncpg uses the name of the system user.
        text = f"{setting} names no user, and the uid {os.geteuid()} has no name here"
        raise Misconfigured(f"{text}: write postgresql://user@host/database") from None
    except OSError:
        _require_files(dsn, setting)
        raise


def _require_files(dsn: str, setting: str) -> None:
    # The error itself names no file.
    for name, (path, *_) in parse_qs(urlsplit(dsn).query).items():
        if name in _FILES:
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                raise Misconfigured(f"{setting} names a file for {name} that cannot be read: {error}") from None
