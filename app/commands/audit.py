"""The commands for the audit log."""

from datetime import UTC, datetime, timedelta

import click

from app import times
from app.audit import log as audit_log
from app.audit import record as audit
from app.audit.log import Entry
from app.commands import terminal
from app.identity import accounts
from app.ids import any_uuid
from app.services import Services


@click.group("audit")
def audit_group() -> None:
    """The audit log: who did what, and who was denied."""


@audit_group.command("list")
@click.option("--account", help="Account id or slug; default: entries without an account, such as failed logins.")
@click.option("--since", default="1d", show_default=True, help="How far back: a span such as 7d, or a date.")
@click.option("--limit", type=click.IntRange(1, audit_log.MAX_LIMIT), default=100, show_default=True)
@terminal.as_json_option
def audit_list(account: str | None, since: str, limit: int, as_json: bool) -> None:
    """Show the latest entries, the newest first."""
    begins = _moment(since, "--since")

    async def work(services: Services) -> tuple[Entry, ...]:
        db = services.db
        # An id also finds the entries of a deleted account.
        known = any_uuid(account) if account else audit.NO_ACCOUNT
        account_id = known or (await accounts.find_account(db, account or "")).id
        return await audit_log.latest(db, account_id, begins, limit)

    terminal.show([_entry(each) for each in terminal.run(work)], as_json)


@audit_group.command("prune")
@click.option("--before", required=True, help="Delete entries older than this: a span such as 400d, or a date.")
def audit_prune(before: str) -> None:
    """Delete old entries of all accounts."""
    ends = _moment(before, "--before")
    count = terminal.run(
        lambda services: audit_log.prune(services.db, terminal.operator(f"audit prune {ends:%Y-%m-%d}"), ends)
    )
    print(f"deleted {count} entries from before {ends:%Y-%m-%dT%H:%M:%SZ}")


def _moment(text: str, option: str) -> datetime:
    try:
        span = times.span(text)
        found = datetime.now(UTC) - span if span else times.date(text)
    except OverflowError:
        found = None
    if found is None:
        raise click.BadParameter("it takes a span such as 7d, or a date such as 2027-01-31", param_hint=option)
    if found > datetime.now(UTC) + timedelta(seconds=1):
        raise click.BadParameter("it is in the future", param_hint=option)
    return found


def _entry(entry: Entry) -> dict[str, object]:
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
