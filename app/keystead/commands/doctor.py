"""`keystead doctor`: checks an installation; a failed check says in one line what is wrong and how to fix it."""

import asyncio
import contextlib
import fcntl
import http.client
import os
import shutil
import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import asyncpg
import msgspec

from keystead import bounds, config
from keystead.certificates import trust
from keystead.commands import terminal
from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.custody.peppers import load_peppers
from keystead.errors import KeysteadError, Misconfigured, Unavailable
from keystead.store import distribution, schema
from keystead.store import standby as standbys
from keystead.store.database import Connection, Database

# Older major versions get no security fixes.
OLDEST_POSTGRESQL = 15
CLOCK_SECONDS = 2.0
FREE_BYTES = 512 * 1024 * 1024
# Connections to leave for the command line, backups and monitoring.
SPARE_CONNECTIONS = 10


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; if it is not good, the text says how to fix it."""

    check: str
    good: bool
    text: str


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Run all checks, without those that need something that cannot be reached."""
    try:
        settings = config.load(environ)
    except KeysteadError as error:
        return [Finding("settings", False, str(error))]
    findings = [
        Finding("settings", True, f"{settings.host}:{settings.port}, data in {settings.data_dir}"),
        _folder(settings.data_dir),
        _ring(settings.keyring),
        *_anchors(settings.trust_dir),
    ]
    try:
        with terminal.dsn(settings) as dsn:
            findings += asyncio.run(_database(settings, dsn))
    except (KeysteadError, OSError, asyncpg.PostgresError) as error:
        findings.append(Finding("database", False, _unreachable(settings, error)))
    return [*findings, *_tls(settings), *_server(settings)]


def _unreachable(settings: config.Settings, error: Exception) -> str:
    # The cause is more specific than our own error, and never shows the address, which may hold a password.
    cause = error.__cause__ if isinstance(error, Unavailable) and error.__cause__ else error
    why = f"{cause}" or type(cause).__name__
    if isinstance(error, Misconfigured) or settings.database_url is None:
        return why
    return f"{why}: start PostgreSQL, or correct the address and the role in KEYSTEAD_DATABASE_URL"


def _folder(path: Path) -> Finding:
    if not os.access(path, os.W_OK) or not path.is_dir():
        text = f"{path} does not exist or is not writable: set KEYSTEAD_DATA_DIR to a writable folder"
        return Finding("data folder", False, text)
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES:
        text = f"{path} has {free // 2**20} MiB left: free some space, because PostgreSQL stops when the disk is full"
        return Finding("data folder", False, text)
    return Finding("data folder", True, f"{path}, {free // 2**30} GiB free")


def _ring(path: Path) -> Finding:
    try:
        content = ringfile.read(path)
    except KeysteadError as error:
        return Finding("ring", False, f"{error}, or set KEYSTEAD_KEYRING to its path")
    return Finding("ring", True, f"{path}, {len(content.keks)} KEKs; back it up separately from the database")


def _anchors(trust_dir: Path | None) -> list[Finding]:
    try:
        found = trust.read(trust_dir)
    except OSError as error:
        text = f"{error.filename} cannot be read ({error.strerror}): correct KEYSTEAD_TRUST_DIR"
        return [Finding("trust anchors", False, text)]
    if not found.count and not found.skipped:
        text = "there are none, so no public CA is trusted: install the package ca-certificates"
        return [Finding("trust anchors", False, text)]
    repair = "no chain can end at it; replace or remove it"
    skipped = [Finding("trust anchors", False, f"{file}: {reason}: {repair}") for file, reason in found.skipped]
    return [Finding("trust anchors", True, f"{found.count} roots"), *skipped]


async def _database(settings: config.Settings, dsn: str) -> list[Finding]:
    database = Database(dsn, 1, settings.statement_cache_size)
    findings = []
    try:
        async with database.connection() as connection:
            for name, check in _CHECKS.items():
                try:
                    findings.append(Finding(name, True, await check(connection, settings)))
                except Misconfigured as error:
                    findings.append(Finding(name, False, f"{error}"))
            try:
                state = await schema.schema_state(connection)
            except Misconfigured as error:
                name = "schema" if "schema version" in str(error) else "database"
                return [*findings, Finding(name, False, f"{error}")]
        if state is not schema.SchemaState.CURRENT:
            text = f"it is {state.name.lower()}: run `keystead migrate`"
            if state is schema.SchemaState.NEWER:
                text = "it is newer than this release: run the newer release"
            return [*findings, Finding("schema", False, text)]
        findings.append(Finding("schema", True, f"version {schema.version_of_this_program()}"))
        findings += await _cluster(database)
        return [*findings, *await _custody(settings, database), *await _standby(settings, database)]
    finally:
        await database.close()


async def _standby(settings: config.Settings, database: Database) -> list[Finding]:
    if settings.read_database_url is None:
        return []
    standby = Database(settings.read_database_url, 1, settings.statement_cache_size, standbys.SETTING)
    since = time.monotonic()
    try:
        wanted = (found := await standbys.compared(database, standby)).written
        while found.replayed < wanted:
            await asyncio.sleep(standbys.LOOK_SECONDS)
            found = await standbys.compared(database, standby)
            if time.monotonic() - since > bounds.STANDBY_LAG_SECONDS:
                text = f"it is more than {bounds.STANDBY_LAG_SECONDS:.0f} seconds behind: see its log, and its network"
                return [Finding("standby", False, f"{text}; until then all is read from the primary")]
    except (KeysteadError, asyncpg.PostgresError) as error:
        repair = "until that is mended, or KEYSTEAD_READ_DATABASE_URL unset, all is read from the primary"
        return [Finding("standby", False, f"{standbys.why(error)}: {repair}")]
    finally:
        await standby.close()
    return [Finding("standby", True, f"it follows the primary, {time.monotonic() - since:.1f} s behind")]


async def _cluster(database: Database) -> list[Finding]:
    try:
        async with database.connection() as connection:
            text = await distribution.examined(connection)
    except Misconfigured as error:
        return [Finding("cluster", False, f"{error}")]
    return [Finding("cluster", True, text)] if text else []


async def _version(connection: Connection, _: config.Settings) -> str:
    version = int(await connection.fetchval("SELECT current_setting('server_version_num')")) // 10_000
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if version < OLDEST_POSTGRESQL:
        raise Misconfigured(f"PostgreSQL {version}: upgrade it to {OLDEST_POSTGRESQL} or newer")
    if encoding != "UTF8":
        raise Misconfigured(f"its encoding is {encoding}: recreate it with ENCODING 'UTF8'")
    return f"PostgreSQL {version}"


_SETTING = "SELECT setting, source, context FROM pg_settings WHERE name = $1"
# The sources of a setting (pg_settings.source), and what turns it on there.
_REPAIRS = {
    "database": "ALTER DATABASE {database} SET {name} = on",
    "user": "ALTER ROLE {role} SET {name} = on",
    "database user": "ALTER ROLE {role} IN DATABASE {database} SET {name} = on",
    "client": "remove {name} from KEYSTEAD_DATABASE_URL",
}


async def _durability(connection: Connection, _: config.Settings) -> str:
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        row = await connection.fetchrow(_SETTING, name)
        if row is not None and row["setting"] == "off":
            names = await connection.fetchrow(
                "SELECT quote_ident(current_database()) AS database, quote_ident(current_user) AS role"
            )
            elsewhere = "ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()"
            repair = _REPAIRS.get(row["source"], elsewhere).format(name=name, **dict(names or ()))
            raise Misconfigured(f"{name} is off, so a crash can lose acknowledged writes: {repair}")
    return "fsync, full_page_writes and synchronous_commit are on"


async def _clock(connection: Connection, _: config.Settings) -> str:
    before = time.time()
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    apart = now.timestamp() - (before + time.time()) / 2
    if abs(apart) > CLOCK_SECONDS:
        raise Misconfigured(
            f"this machine's is {abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} the database's: synchronise "
            "both by NTP, because the validity of tokens and certificates depends on them"
        )
    if await connection.fetchval("SELECT to_regclass('schema_version')") is not None:
        applied: datetime | None = await connection.fetchval("SELECT max(applied_at) FROM schema_version")
        if applied is not None and applied > now:
            migrated = f"{applied:%Y-%m-%dT%H:%M:%SZ}, when the database was migrated"
            raise Misconfigured(f"it is before {migrated}: synchronise it by NTP")
    return f"{abs(apart) * 1000:.0f} ms apart from the database's"


async def _connections(connection: Connection, settings: config.Settings) -> str:
    limit = int(await connection.fetchval("SELECT current_setting('max_connections')"))
    needed = (settings.workers + bool(settings.delivery_listen)) * bounds.DATABASE_CONNECTIONS
    who = f"{settings.workers} workers{' and the delivery listener' if settings.delivery_listen else ''}"
    if needed + SPARE_CONNECTIONS > limit:
        raise Misconfigured(
            f"{who} hold {needed} connections, and PostgreSQL allows {limit} in all: lower "
            f"KEYSTEAD_WORKERS or set max_connections to {needed + SPARE_CONNECTIONS}"
        )
    return f"{who} hold {needed} of {limit}"


# Each returns what is good, or raises Misconfigured with what is wrong and how to fix it.
_CHECKS = {"database": _version, "durability": _durability, "clock": _clock, "connections": _connections}


async def _custody(settings: config.Settings, database: Database) -> list[Finding]:
    try:
        ring = ringfile.load(settings.keyring)
    except KeysteadError:
        # The ring's own check reports it.
        return []
    try:
        await keyring.require_all_keks(database, ring)
        await load_peppers(database, ring)
        async with database.connection() as connection:
            good = await keyring.may_seal(connection, ring)
    except KeysteadError as error:
        return [Finding("custody", False, f"{error}: restore the ring that belongs to this database")]
    if not good:
        text = f"the current KEK {ring.keks[0].id} was retired, so nothing can be sealed: restore the newest ring"
        return [Finding("custody", False, text)]
    return [Finding("custody", True, "the ring has every KEK that the database needs")]


def _tls(settings: config.Settings) -> list[Finding]:
    if settings.tls_cert is None or settings.tls_key is None:
        return []
    from keystead.server import tls

    try:
        os.close(tls.copied(settings.tls_cert, settings.tls_key))
    except KeysteadError as error:
        return [Finding("tls", False, f"{error}")]
    return [Finding("tls", True, f"{settings.tls_cert} and its key can be served")]


def _server(settings: config.Settings) -> list[Finding]:
    cores = os.cpu_count() or 1
    findings = []
    if settings.workers > 2 * cores:
        text = f"KEYSTEAD_WORKERS is {settings.workers} on {cores} cores: lower it to {cores}"
        findings.append(Finding("workers", False, text))
    parent = _parent(settings.data_dir)
    where = f"{settings.host}:{settings.port}"
    if parent is None:
        return [*findings, _port(settings, where)]
    running = _workers(parent)
    text = f"{running} of {settings.workers} run"
    if running < settings.workers:
        text = f"{running} of {settings.workers} workers run: the log of process {parent} says why they end"
    findings.append(Finding("workers", running >= settings.workers, text))
    answers = _answers(settings)
    if not _holds_port(parent, settings):
        text = f"process {parent}, which uses this folder, does not serve on {where}"
        text += ", where another server answers" if answers else ""
        return [*findings, Finding("server", False, f"{text}: run this command with the environment of that server")]
    if not answers:
        text = f"process {parent} does not answer on {where}: check its log, and restart it"
        return [*findings, Finding("server", False, text)]
    return [*findings, Finding("server", True, f"process {parent} answers on {where}"), *_delivery(settings)]


def _delivery(settings: config.Settings) -> list[Finding]:
    listen = settings.delivery_listen
    if listen is None:
        return []
    # It has no such path; whoever says so is there.
    if _status(listen.host, listen.port, "/", tls=not listen.is_loopback) == 404:
        return [Finding("delivery", True, f"it answers on {listen}")]
    text = f"nobody answers on {listen}, KEYSTEAD_DELIVERY_LISTEN: the log of the server says why its listener ends"
    return [Finding("delivery", False, text)]


def _port(settings: config.Settings, where: str) -> Finding:
    from keystead.server import parent as serve

    try:
        serve.check_port(settings)
    except KeysteadError as error:
        return Finding("server", False, f"no server uses this folder, and {error}")
    return Finding("server", True, f"no server uses this folder; `keystead serve` starts one on {where}")


def _holds_port(parent: int, settings: config.Settings) -> bool:
    """Whether this server holds the port; also True if it is another user's and its descriptors cannot be read."""
    from keystead.server import parent as serve

    try:
        lines = Path(f"/proc/{parent}/net/unix").read_text().splitlines()
        open_files = {os.readlink(file) for file in Path(f"/proc/{parent}/fd").iterdir()}  # noqa: PTH115 - the target is no path
    except OSError:
        return True
    sockets = (line.split(maxsplit=7) for line in lines if line.endswith(f"@{serve.port_name(settings)}"))
    return any(f"socket:[{fields[6]}]" in open_files for fields in sockets)


def _parent(folder: Path) -> int | None:
    """The pid of the server that holds this folder's lock, or None."""
    try:
        with (folder / "serve.lock").open("rb") as lock:
            pid = int(lock.read(20).strip() or 0)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return pid
    except (OSError, ValueError):
        return None
    return None


def _workers(parent: int) -> int:
    count = 0
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with contextlib.suppress(OSError):
                count += b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    return count


def _answers(settings: config.Settings) -> bool:
    return _status(settings.host, settings.port, "/healthz", tls=settings.tls_cert is not None) == 200


def _status(host: str, port: int, path: str, *, tls: bool) -> int | None:
    """The status of the answer, if there is one."""
    # Only whether it answers; the certificate is not checked, because no secret is sent.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    connection = (
        http.client.HTTPSConnection(host, port, timeout=5, context=context)
        if tls
        else http.client.HTTPConnection(host, port, timeout=5)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
