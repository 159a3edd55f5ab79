"""What the commands share: access to the database, option parsing, and output as tables or, with --json, JSON."""

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Concatenate, TypeAlias, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keystead import config, times, visible
from keystead.caller import Caller
from keystead.custody import ring as ringfile
from keystead.custody.peppers import Peppers, load_peppers
from keystead.custody.ring import Ring
from keystead.errors import Misconfigured
from keystead.server import first_start, postgres, roles
from keystead.services import Services, for_command
from keystead.store import schema
from keystead.store.database import Database
from keystead.x509 import pem

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., object])
RingLoader: TypeAlias = Callable[[config.Settings, Database], Awaitable[Ring]]
Row: TypeAlias = dict[str, object]
# Rows of a list at most.
MAX_ROWS = 1000
# asyncpg stores datetime.max as infinity.
LAST_YEAR = 9998


class Pem(msgspec.Struct, frozen=True):
    """Text in PEM for a file or standard output; with --json the row in its place."""

    row: Row
    text: str
    out: Path | None


Output: TypeAlias = str | Row | Sequence[Row] | Pem | None


def _writable(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    """Refuse an unwritable file before any work whose result would be lost."""
    if out and not (out.parent.is_dir() and os.access(out if out.exists() else out.parent, os.W_OK)):
        raise Misconfigured(f"{out} cannot be written")
    return out


def _path(word: str) -> Path | None:
    return None if word == "-" else Path(word)


out_option = click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    callback=lambda context, parameter, word: _writable(context, parameter, _path(word) if word else None),
    help="File to write to; - is standard output.",
)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SUBJECT = (
    ("--org", "organization", "O"),
    ("--country", "country", "C, two letters,"),
    ("--state", "state", "ST"),
    ("--locality", "locality", "L"),
)
account_option = click.option(
    "--account", default=first_start.FIRST_SLUG, show_default=True, help="Account id or slug."
)


def subject_options(of: str) -> Callable[[Decorated], Decorated]:
    """The options for the subject of a CSR, which are None if not given; `of` ends their help."""

    def add(work: Decorated) -> Decorated:
        for name, field, text in reversed(_SUBJECT):
            work = click.option(name, field, help=f"{text} of {of}.")(work)
        return work

    return add


def command(
    group: click.Group, name: str, *, json: bool = True, ring_for: RingLoader = first_start.ring_for
) -> Callable[[Callable[Concatenate[Services, ...], Awaitable[Output]]], click.Command]:
    """Add an async function of the services and the options as a command.

    The text it returns is printed as a line, rows as a table; `json` adds the option that prints rows as JSON.
    """

    def add(work: Callable[Concatenate[Services, ...], Awaitable[Output]]) -> click.Command:
        @functools.wraps(work)
        def call(**options: object) -> Output:
            return run(lambda services: work(services, **options), ring_for)

        return printing(group, name, call, json=json)

    return add


def printing(group: click.Group, name: str, call: Callable[..., Output], *, json: bool) -> click.Command:
    """Add a function of the options as a command that prints what it returns, as `command` says."""

    @functools.wraps(call)
    def call_and_print(*, as_json: bool = False, **options: object) -> None:
        _print(call(**options), as_json)

    added = group.command(name)(call_and_print)
    if json:
        added.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
    return added


def _print(result: Output, as_json: bool) -> None:
    match result:
        case str():
            print_line(result)
        case Pem() if not as_json:
            write(result.out, result.text)
        case Pem(row=row) | (dict() as row):
            show([row], as_json)
        case None:
            pass
        case _:
            show(result, as_json)


def write(out: Path | None, text: str) -> None:
    """Write ASCII text to a file, or to standard output; raises Misconfigured."""
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="ascii")
    except OSError as error:
        raise Misconfigured(f"{out} cannot be written ({error.strerror})") from None
    print_line(f"wrote {out}")


def read(name: str, wanted: pem.Kind) -> str:
    """The text of a file, or of standard input for `-`; raises Misconfigured if it has no PEM block of this kind."""
    try:
        text = pem.text(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise Misconfigured(f"{name} cannot be read ({error.strerror})") from None
    if all(block.kind is not wanted for block in pem.blocks(text)):
        raise Misconfigured(f"{name} {pem.instead(text, wanted)}")
    return text


def choice(kind: type[Enum]) -> click.Choice[str]:
    """An option type for the values of an enumeration."""
    return click.Choice([each.value for each in kind])


def operator(words: str = "") -> Caller:
    """The caller of a command; the audit log shows `words`, by default the running command, as the path."""
    context = click.get_current_context(silent=True)
    running = context.command_path.removeprefix(context.find_root().command_path).strip() if context else ""
    return msgspec.structs.replace(first_start.operator(), path=words or running)


def settings() -> config.Settings:
    """The settings from the environment."""
    return config.load(os.environ)


@contextlib.contextmanager
def dsn(settings: config.Settings) -> Iterator[str]:
    """The address of the database, as its owner; starts the bundled PostgreSQL for the time being if none runs."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    if not (settings.data_dir / "postgres").exists():
        raise Misconfigured(
            f"there is no installation in {settings.data_dir}: run this where `keystead serve` runs, or set "
            "KEYSTEAD_DATA_DIR or KEYSTEAD_DATABASE_URL"
        )
    with postgres.running(settings.data_dir) as cluster:
        asyncio.run(roles.make(cluster.dsn))
        yield cluster.owner


def run(work: Callable[[Services], Awaitable[T]], ring_for: RingLoader = first_start.ring_for) -> T:
    """Run `work` with services that have no peppers, as these may be damaged.

    Raises if the schema is not this release's, or if the ring lacks a needed KEK.
    """
    chosen = settings()

    async def inside(address: str) -> T:
        database = Database(address, 1, chosen.statement_cache_size)
        try:
            await schema.require_current(database)
            ring = await ring_for(chosen, database)
            services = for_command(database, ring, Peppers({}), chosen.pki_url)
            with contextlib.closing(services.pool):
                return await work(services)
        finally:
            await database.close()

    with dsn(chosen) as address:
        return asyncio.run(inside(address))


async def any_ring(settings: config.Settings, _: Database) -> Ring:
    """For `run`, to diagnose: the ring as it is, which may lack KEKs."""
    return ringfile.load(settings.keyring)


async def with_peppers(services: Services) -> Services:
    """The services for commands that create the value of a token or a key."""
    return msgspec.structs.replace(services, peppers=await load_peppers(services.db, services.ring))


def shown(time: datetime | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ") if time else None


def time(text: str) -> datetime:
    """Parse an option's time, which must be in the future."""
    found = any_time(text)
    if found <= datetime.now(UTC):
        raise click.BadParameter("it is in the past")
    return found


def any_time(text: str) -> datetime:
    """Parse an option's time, past or future."""
    found = times.date(text)
    if found is None or found.year > LAST_YEAR:
        raise click.BadParameter("it takes a date such as 2029-06-12, or a time in ISO 8601")
    return found


def span(text: str) -> timedelta:
    """Parse an option's time span, such as 90d."""
    found = times.span(text)
    if found is None:
        raise click.BadParameter("it takes a number and one of s, m, h, d, w and y, such as 90d")
    return found


def some(names: Sequence[str]) -> str:
    """The first three of a list of names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def print_line(line: str) -> None:
    """Print a line that may contain names from users: unprintable characters are escaped."""
    print(visible.text(line))


def print_note(text: str) -> None:
    """Print a remark to standard error, so that it never gets into a pipe."""
    print(f"note: {visible.text(text)}", file=sys.stderr)


def print_error(text: str) -> None:
    """Print to standard error, escaped like `print_line`; the text may have several lines."""
    print(f"keystead: {visible.lines(text)}", file=sys.stderr)


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Print the rows as a table, a single row as lines of name and value, or all of them as JSON."""
    if as_json:
        print(visible.json(msgspec.json.format(msgspec.json.encode(rows)).decode("utf-8")))
        return
    if not rows:
        print("none")
        return
    if len(rows) == 1:
        width = max(map(len, rows[0]))
        print("\n".join(f"{name:<{width}}  {_cell(value)}" for name, value in rows[0].items()))
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        # As Text, so that rich finds neither markup nor emoji in it.
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    # Never cut text in a pipe: grep needs the complete ids.
    Console(width=None if sys.stdout.isatty() else 20_000, highlight=False).print(table)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{role} in {account}" for account, role in value.items()) or "-"
        case list():
            return ", ".join(_cell(each) for each in value)
        case _:
            return visible.text(str(value)) or "-"
