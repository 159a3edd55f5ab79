"""The command `keystead`: parses, calls one function of the core, and prints tables or, with --json, JSON."""

import asyncio
import io
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import click

from app import __version__, files, visible
from app.certificates import store as certificates
from app.certificates.export import export
from app.certificates.model import Certificate, Superseded
from app.commands import audit as audit_commands
from app.commands import ca as ca_commands
from app.commands import doctor, terminal
from app.commands import keys as keys_commands
from app.commands import tenants as tenant_commands
from app.commands import tokens as token_commands
from app.commands.terminal import Row
from app.errors import KeysteadError, Misconfigured, Unavailable
from app.identity import zones
from app.services import Services
from app.store import database as db
from app.store import schema

# certbot's file names, which guides for web servers use.
FULLCHAIN, PRIVATE_KEY = "fullchain.pem", "privkey.pem"


def main() -> None:
    """Run the command; our own errors and the system's become one line on standard error and exit status 1."""
    _open_streams()
    try:
        _utf8_arguments()
        try:
            cli(standalone_mode=False)
        finally:
            # At interpreter exit a failed flush could no longer be reported.
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show(message := io.StringIO())
        print(visible.lines(message.getvalue(), indent=""), end="", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeysteadError as error:
        # The API hides the cause; the operator needs it.
        why = error.__cause__ if isinstance(error, Unavailable) else None
        _fail(f"{error}: {why}" if why and f"{why}" else f"{error}")
    except db.ApiError as error:
        # PostgreSQL's later lines (DETAIL) may quote values of a row.
        _fail(f"the database refused: {str(error).splitlines()[0]}")
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does.
        _drop_output()
        sys.exit(1)
    except UnicodeError:
        # Without the text itself: it may be a secret.
        _fail(f"this locale cannot encode the text ({sys.getfilesystemencoding()}): set LC_ALL=C.UTF-8")
    except OSError as error:
        _drop_output()
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


def _open_streams() -> None:
    # If a standard stream is closed, the next file opened would get its descriptor, and be printed to.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _utf8_arguments() -> None:
    try:
        sys.argv[1:] = [os.fsencode(word).decode("utf-8") for word in sys.argv[1:]]
    except UnicodeDecodeError:
        raise click.UsageError("an argument is not UTF-8") from None


def _drop_output() -> None:
    """Send standard output to /dev/null, so that Python's flush at exit does not fail again with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _fail(text: str) -> NoReturn:
    terminal.print_error(text)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="keystead %(version)s")
def cli() -> None:
    """Key pairs and certificate signing requests, with the private keys sealed.

    Settings come from KEYSTEAD_ variables; docs/operations.md explains them.
    """


@cli.command()
def serve() -> None:
    """Serve the API; the first start creates the schema, the ring and a first account."""
    from app.server import parent as server

    sys.exit(server.serve(terminal.settings()))


@cli.command()
def migrate() -> None:
    """Migrate the database to this release's schema."""
    with terminal.dsn(terminal.settings()) as dsn:
        applied = asyncio.run(schema.migrate(dsn))
    print("\n".join(f"applied {name}" for name in applied) or "the schema is current")


for group in (
    *(tenant_commands.account, tenant_commands.zone, tenant_commands.user, token_commands.token),
    *(ca_commands.ca, keys_commands.keys, audit_commands.audit_group),
):
    cli.add_command(group)


@cli.command("doctor")
@terminal.as_json_option
def check(as_json: bool) -> None:
    """Check settings, database, ring, clock and workers; say what is wrong and how to fix it."""
    findings = doctor.examine(os.environ)
    if as_json:
        terminal.show([{"check": f.check, "good": f.good, "text": f.text} for f in findings], as_json)
    else:
        for f in findings:
            print(visible.lines(f"{'ok ' if f.good else 'BAD'} {f.check}: {f.text}"))
    if not all(finding.good for finding in findings):
        sys.exit(1)


def days(text: str) -> timedelta:
    number = text.removesuffix("d")
    if not number.isascii() or not number.isdigit() or int(number) > 36_500:
        raise click.BadParameter("it takes a number of days, such as 30d")
    return timedelta(days=int(number))


@cli.group()
def certificate() -> None:
    """Custom certificates: list, inspect and export."""


@terminal.command(certificate, "list")
@click.option("--zone", help="Zone id or name; default: all.")
async def certificate_list(services: Services, zone: str | None) -> Sequence[Row]:
    """List certificates, soonest expiry first."""
    zone_id = (await zones.find(services.db, zone)).id if zone else None
    return [_certificate(each) for each in await certificates.for_operator(services.db, zone_id)]


@terminal.command(certificate, "expiring")
@click.option("--within", type=days, default="30d", show_default=True, help="Days ahead, such as 30d.")
async def certificate_expiring(services: Services, within: timedelta) -> Sequence[Row]:
    """Show the certificates that have expired or expire soon."""
    found = await certificates.for_operator(services.db, before=datetime.now(UTC) + within)
    return [_certificate(each) for each in found]


@terminal.command(certificate, "show")
@click.argument("certificate")
async def certificate_show(services: Services, certificate: str) -> Row:
    """Show a certificate, named by its id."""
    found = await certificates.find(services.db, certificate)
    more = {"issuer": found.issuer, "signature": found.signature, "bundle_method": found.bundle_method.value}
    return {**_certificate(found), **more, "uploaded_on": terminal.shown(found.uploaded_at)}


@terminal.command(certificate, "history")
@click.argument("certificate")
async def certificate_history(services: Services, certificate: str) -> Sequence[Row]:
    """Show the earlier versions of a renewed certificate, latest first."""
    found = await certificates.find(services.db, certificate)
    return [_superseded(each) for each in await certificates.history(services.db, found)]


@terminal.command(certificate, "export", json=False)
@click.argument("certificate")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
async def certificate_export(services: Services, certificate: str, out: Path) -> str:
    """Write fullchain.pem and privkey.pem for a web server; audited."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs here
        found = await certificates.find(services.db, certificate)
        exported = await export(services, terminal.operator(), found)
        files.write_together(out, {PRIVATE_KEY: exported.private_key, FULLCHAIN: exported.fullchain})
    except OSError as error:
        raise Misconfigured(f"{out} cannot be written ({error.strerror})") from None
    return f"wrote {out / FULLCHAIN} and {out / PRIVATE_KEY}"


def _certificate(certificate: Certificate) -> Row:
    now = datetime.now(UTC)
    return {
        "id": str(certificate.id),
        "zone_id": certificate.zone_id.hex,
        "hosts": _hosts(certificate.hosts),
        "status": certificate.status(now).value,
        "expires_on": terminal.shown(certificate.not_after),
        "days_left": (certificate.not_after - now).days,
        "custom_csr_id": str(certificate.custom_csr_id) if certificate.custom_csr_id else None,
    }


def _superseded(version: Superseded) -> Row:
    return {
        "hosts": _hosts(version.hosts),
        "issuer": version.issuer,
        "expires_on": terminal.shown(version.not_after),
        "uploaded_on": terminal.shown(version.uploaded_at),
        "superseded_on": terminal.shown(version.superseded_at),
        "custom_csr_id": str(version.custom_csr_id) if version.custom_csr_id else None,
    }


def _hosts(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
