"""The command `keystead`: parses, calls one function of the core, and prints tables or, with --json, JSON."""

import asyncio
import io
import os
import sys
from importlib import resources
from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from keystead import __version__, visible
from keystead.commands import audit as audit_commands
from keystead.commands import ca as ca_commands
from keystead.commands import certificate as certificate_commands
from keystead.commands import csr as csr_commands
from keystead.commands import deliver as deliver_command
from keystead.commands import delivery as delivery_commands
from keystead.commands import doctor, terminal
from keystead.commands import keys as keys_commands
from keystead.commands import profile as profile_commands
from keystead.commands import tenants as tenant_commands
from keystead.commands import tokens as token_commands
from keystead.errors import KeysteadError, Unavailable
from keystead.store import database as db
from keystead.store import schema


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


def _version() -> str:
    """The version; with its commit in what was made by `git archive`, which writes it into the file."""
    commit = resources.files("keystead").joinpath("commit.txt").read_text("ascii").strip()
    return __version__ if "$" in commit else f"{__version__} (commit {commit[:12]})"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), message="keystead %(version)s")
def cli() -> None:
    """Key pairs and certificate signing requests, with the private keys sealed.

    Settings come from KEYSTEAD_ variables; docs/operations.md explains them.
    """


@cli.command()
def serve() -> None:
    """Serve the API; the first start creates the schema, the ring and a first account."""
    from keystead.server import parent as server

    sys.exit(server.serve(terminal.settings()))


@cli.command()
@click.option("--distribute", is_flag=True, help="Spread the tables over the machines of a Citus cluster.")
@click.option("--with-rows", is_flag=True, help="Also those that have rows; all servers are stopped.")
def migrate(distribute: bool, with_rows: bool) -> None:
    """Migrate the database to this release's schema."""
    with terminal.dsn(terminal.settings()) as dsn:
        if distribute:
            tables = asyncio.run(schema.distribute(dsn, with_rows=with_rows))
            done = (f"{'distributed' if table.by_account else 'copied to each node'}: {table.name}" for table in tables)
            print("\n".join(done) or "the tables are distributed")
            return
        applied = asyncio.run(schema.migrate(dsn))
    print("\n".join(f"applied {name}" for name in applied) or "the schema is current")


for group in (
    *(csr_commands.csr, certificate_commands.certificate),
    *(tenant_commands.account, tenant_commands.zone, tenant_commands.user, token_commands.token),
    *(ca_commands.ca, profile_commands.profile, keys_commands.keys, audit_commands.audit_group),
):
    cli.add_command(group)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, to be sourced."""
    kind = get_completion_class(shell)
    if kind is not None:
        print(kind(cli, {}, "keystead", "_KEYSTEAD_COMPLETE").source())


cli.add_command(deliver_command.deliver)
cli.add_command(delivery_commands.delivery)


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
