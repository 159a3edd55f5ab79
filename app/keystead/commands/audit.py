"""The commands for the audit log."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from keystead import times
from keystead.audit import log as audit_log
from keystead.audit import record as audit
from keystead.audit.log import Entry
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.identity import accounts
from keystead.ids import any_uuid
from keystead.services import Services


def date_or_span(text: str) -> datetime:
    """Parse a date, or a span before now."""
    try:
        span = times.span(text)
        found = datetime.now(UTC) - span if span else times.date(text)
    except OverflowError:
        found = None
    if found is None:
        raise click.BadParameter("it takes a span such as 7d, or a date such as 2027-01-31")
    if found > datetime.now(UTC) + timedelta(seconds=1):
        raise click.BadParameter("it is in the future")
    return found


@click.group("audit")
def audit_group() -> None:
    """The audit log: who did what, and who was denied."""


@terminal.command(audit_group, "list")
@click.option("--account", help="Account id or slug; default: entries without an account, such as failed logins.")
@click.option(
    "--since", type=date_or_span, default="1d", show_default=True, help="How far back: a span such as 7d, or a date."
)
@click.option(
    "--limit", type=click.IntRange(1, audit_log.MAX_LIMIT), default=100, show_default=True, help="Most entries."
)
async def audit_list(services: Services, account: str | None, since: datetime, limit: int) -> Sequence[Row]:
    """Show the latest entries, the newest first."""
    # An id also finds the entries of a deleted account.
    known = any_uuid(account) if account else audit.NO_ACCOUNT
    account_id = known or (await accounts.find_account(services.db, account or "")).id
    return [_entry(each) for each in await audit_log.latest(services.db, account_id, since, limit)]


@terminal.command(audit_group, "prune", json=False)
@click.option(
    "--before", type=date_or_span, required=True, help="Delete entries older than this: a span such as 400d, or a date."
)
async def audit_prune(services: Services, before: datetime) -> str:
    """Delete old entries of all accounts."""
    count = await audit_log.prune(services.db, terminal.operator(f"audit prune {before:%Y-%m-%d}"), before)
    return f"deleted {count} entries from before {before:%Y-%m-%dT%H:%M:%SZ}"


def _entry(entry: Entry) -> Row:
    return {
        "at": terminal.shown(entry.at),
        "actor": entry.actor.value,
        "name": entry.actor_email or entry.actor_name or entry.actor_id,
        "address": entry.address,
        "action": entry.action_type,
        "resource": entry.resource_type.value,
        "resource_id": entry.resource_id,
        "result": entry.result,
        "count": entry.count,
        "request_id": entry.request_id,
        "method": entry.method,
        "path": entry.path,
    }
