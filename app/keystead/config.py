"""Settings from KEYSTEAD_* environment variables, which only this module reads; see docs/operations.md."""

import errno
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from keystead.addresses import Network
from keystead.errors import Misconfigured


class RateLimit(msgspec.Struct, frozen=True):
    """A token bucket: `quota` requests in a burst, refilled at `quota / window` per second; `window` is in seconds."""

    quota: int
    window: int


T = TypeVar("T")
D = TypeVar("D")

# Default of KEYSTEAD_METRICS_FROM: only this machine can read the metrics.
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_URL = "an address that begins with http:// or https://, without a query"
_STANDBY = "the address of one standby, such as postgresql://user@host/database"
_PROGRAM = "the absolute path of a program that this user may run, and others may not write"


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


class Listen(msgspec.Struct, frozen=True):
    """An address and port to bind."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


class Settings(msgspec.Struct, frozen=True):
    host: str = "127.0.0.1"
    port: int = 8787
    data_dir: Path = Path(".data")
    database_url: str | None = None
    read_database_url: str | None = None
    # True when `serve` runs its own PostgreSQL, and `database_url` points to it.
    embedded: bool = False
    statement_cache_size: int = 100
    keyring: Path = Path(".data/keyring.json")
    workers: int = 1
    rate_limit: RateLimit | None = RateLimit(1200, 300)
    key_pool: int = 0
    metrics_from: tuple[Network, ...] = LOOPBACK
    public_url: str = "http://127.0.0.1:8787"
    pki_url: str | None = None
    trusted_proxies: tuple[Network, ...] = ()
    console: bool = True
    remember_cas: bool = True
    trust_dir: Path | None = None
    tell: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    delivery_listen: Listen | None = None
    log: LogFormat = LogFormat.CONSOLE

    def __repr__(self) -> str:
        # Settings show up in tracebacks, and the addresses of databases may contain a password.
        return f"Settings({self.host}:{self.port}, data_dir={str(self.data_dir)!r})"


def load(environ: Mapping[str, str]) -> Settings:
    """Parse the KEYSTEAD_* variables. Raises Misconfigured for unknown names and invalid values."""
    unknown = sorted(name for name in environ if name.startswith("KEYSTEAD_") and name not in _KNOWN)
    if unknown:
        raise Misconfigured(f"{unknown[0]} is not a setting; the settings are {', '.join(sorted(_KNOWN - _IGNORED))}")
    read = _Reader(environ)
    data_dir = _absolute(read("DATA_DIR", Path, Path(".data"), "a folder"))
    host = read("HOST", _address, "127.0.0.1", "an IP address to bind, such as 127.0.0.1 or ::1")
    port = read("PORT", _between(1, 65535), 8787, "a port number from 1 to 65535")
    tls_cert = read("TLS_CERT", _readable, None, "a readable file with a PEM certificate chain")
    tls_key = read("TLS_KEY", _readable, None, "a readable file with an unencrypted PEM private key")
    scheme, shown = ("https" if tls_cert else "http"), (f"[{host}]" if ":" in host else host)
    public_url = read("PUBLIC_URL", _url, None, _URL)
    settings = Settings(
        host=host,
        port=port,
        data_dir=data_dir,
        database_url=read("DATABASE_URL", _database_url, None, "an address such as postgresql://user@host/database"),
        read_database_url=read("READ_DATABASE_URL", _one_server, None, _STANDBY),
        statement_cache_size=read("STATEMENT_CACHE_SIZE", _between(0, 1000), 100, "a number from 0 to 1000"),
        keyring=_absolute(read("KEYRING", Path, data_dir / "keyring.json", "a file")),
        workers=read("WORKERS", _between(1, 64), min(os.cpu_count() or 1, 4), "a number from 1 to 64"),
        rate_limit=read("RATE_LIMIT", _rate_limit, RateLimit(1200, 300), "off, or requests/window such as 1200/5m"),
        key_pool=read("KEY_POOL", _between(0, 10_000), 64, "a number of keys from 0 to 10000"),
        metrics_from=read("METRICS_FROM", _networks, LOOPBACK, "networks such as 127.0.0.0/8,10.0.0.0/8"),
        public_url=public_url or f"{scheme}://{shown}:{port}",
        # Only an address that was configured: it goes into certificates that are valid for years.
        pki_url=read("PKI_URL", _url, None, _URL) or public_url,
        trusted_proxies=read("TRUSTED_PROXIES", _networks, (), "networks such as 10.0.0.0/8,fd00::/8"),
        # Beyond loopback in clear text nothing is served, as `_check_together` says.
        console=read("CONSOLE", _switch, True, "on or off"),
        remember_cas=read("REMEMBER_CAS", _switch, True, "on or off"),
        trust_dir=read("TRUST_DIR", _folder, None, "a folder with PEM certificates of trusted roots"),
        tell=read("TELL", _program, None, _PROGRAM),
        tls_cert=tls_cert,
        tls_key=tls_key,
        delivery_listen=read("DELIVERY_LISTEN", _listen, None, "an IP address with a port, such as 127.0.0.1:8790"),
        log=read("LOG", LogFormat, LogFormat.CONSOLE, "json or console"),
    )
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "KEYSTEAD_TLS_KEY" if settings.tls_key is None else "KEYSTEAD_TLS_CERT"
        raise Misconfigured(f"{missing} is missing: TLS needs both KEYSTEAD_TLS_CERT and KEYSTEAD_TLS_KEY")
    if settings.read_database_url and not settings.database_url:
        raise Misconfigured(
            "KEYSTEAD_READ_DATABASE_URL needs KEYSTEAD_DATABASE_URL: the bundled PostgreSQL has no standby"
        )
    exposed = not ipaddress.ip_address(settings.host).is_loopback
    if exposed and settings.tls_cert is None and not settings.trusted_proxies:
        raise Misconfigured(
            f"KEYSTEAD_HOST={settings.host} would send tokens in clear text over the network: set KEYSTEAD_TLS_CERT "
            "and KEYSTEAD_TLS_KEY, or KEYSTEAD_TRUSTED_PROXIES to the proxies that end TLS, or bind to 127.0.0.1"
        )

    delivery = settings.delivery_listen
    if delivery and not delivery.is_loopback and settings.tls_cert is None:
        raise Misconfigured(
            f"KEYSTEAD_DELIVERY_LISTEN={delivery} would send private keys in clear text over the network: set "
            "KEYSTEAD_TLS_CERT and KEYSTEAD_TLS_KEY, or use a loopback address"
        )
    if delivery and delivery.port == settings.port:
        raise Misconfigured(
            f"KEYSTEAD_DELIVERY_LISTEN={delivery} has the port of the API: give it another, or set KEYSTEAD_PORT"
        )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def __call__(self, name: str, parse: Callable[[str], T], default: D, allowed: str) -> T | D:
        text = self.environ.get(f"KEYSTEAD_{name}", "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except (ValueError, OSError) as error:
            # The address of a database may contain a password, so its value is not shown.
            shown = "" if name.endswith("DATABASE_URL") else f" is {text!r}, which"
            why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            raise Misconfigured(f"KEYSTEAD_{name}{shown} is not valid{why}; it takes {allowed}") from None


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return parse


def _switch(text: str) -> bool:
    if text not in {"on", "off"}:
        raise ValueError(text)
    return text == "on"


def _address(text: str) -> str:
    return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text))


def _listen(text: str) -> Listen:
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if (":" in bare) == (bare == host):
        raise ValueError(text)
    return Listen(_address(bare), _between(1, 65535)(port))


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:
        raise Misconfigured(f"{path} is relative to a working directory that does not exist any more") from None


def _readable(text: str) -> Path:
    path = Path(text).absolute()
    with path.open("rb"):
        return path


def _program(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or not stat.S_ISREG(mode := path.stat().st_mode):
        raise ValueError(text)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, "this user may not run it")
    if mode & 0o022:
        raise PermissionError(errno.EACCES, "others may write it")
    return path


def _folder(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise ValueError(text)
    return path


def _database_url(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("scheme")
    return text


def _one_server(text: str) -> str:
    # What is known of one standby says nothing of another.
    if "," in text.rpartition("@")[2]:
        raise ValueError("several")
    return _database_url(text)


def _rate_limit(text: str) -> RateLimit | None:
    if text == "off":
        return None
    quota, _, window = text.partition("/")
    seconds = int(window[:-1]) * {"s": 1, "m": 60, "h": 3600}.get(window[-1:], 0)
    limit = RateLimit(int(quota), seconds)
    if not (0 < limit.quota <= 1_000_000 and 0 < limit.window <= 86_400):
        raise ValueError(text)
    return limit


def _url(text: str) -> str:
    well_formed = re.fullmatch(r"https?://[^/?#\"'<> \\@]+(?:/[^?#\"'<> \\]*)?", text)
    if not (text.isascii() and text.isprintable() and well_formed):
        raise ValueError(text)
    return text.rstrip("/")


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))


# Clients read KEYSTEAD_PROJECT_SLUG from credentials.env. `serve` must work in a shell that has sourced that file.
_IGNORED = frozenset({"KEYSTEAD_PROJECT_SLUG"})
_KNOWN = _IGNORED | {f"KEYSTEAD_{field.upper()}" for field in Settings.__struct_fields__ if field != "embedded"}
