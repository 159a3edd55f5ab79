"""The commands for API tokens."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from keystead.caller import GROUPS
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.errors import Invalid, Misconfigured
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity.accounts import Account, User
from keystead.identity.tokens import Token
from keystead.services import Services
from keystead.store.database import Database


@click.group()
def token() -> None:
    """API tokens."""


class _NewToken(msgspec.Struct, frozen=True):
    name: str
    account: str
    user: str | None
    zones: tuple[str, ...]
    groups: tuple[str, ...]
    allow_from: tuple[str, ...]
    policies: Path | None
    not_before: datetime | None
    expires: datetime | None


@terminal.command(token, "create")
@click.argument("name")
@terminal.account_option
@click.option("--user", help="Make it this user's token instead of the account's.")
@click.option("--zone", "zones", multiple=True, help="Zone id or name; default: all zones of the account.")
@click.option("--group", "groups", multiple=True, help="Permission group; default: all but those for tokens and keys.")
@click.option("--allow-from", multiple=True, help="Network from which it may be used, such as 10.0.0.0/8.")
@click.option("--policies", type=click.Path(path_type=Path), help="JSON file of policies, instead of --group.")
@click.option("--not-before", type=terminal.time, help="Start of its validity, such as 2027-01-31.")
@click.option("--expires", type=terminal.time, help="Expiry, such as 2027-01-31 or 2027-01-31T12:00:00Z.")
async def token_create(services: Services, **options: object) -> Row:
    """Create a token; its value is shown once."""
    new = msgspec.convert(options, _NewToken)
    if new.not_before and new.expires and new.not_before >= new.expires:
        raise click.BadParameter("it must be before --expires", param_hint="--not-before")
    if new.policies and (new.zones or new.groups):
        raise click.BadParameter("it cannot be combined with --zone and --group", param_hint="--policies")
    condition = policies.address_condition(new.allow_from)
    services = await terminal.with_peppers(services)
    account = await accounts.find_account(services.db, new.account)
    user = await accounts.find_user(services.db, new.user) if new.user else None
    granted = await _policies(services.db, new, account, user)
    given = tokens.NewToken(account, new.name, granted, user, condition, new.not_before, new.expires)
    created, value = await tokens.create(services, terminal.operator(), given)
    return {**_token(created), "token": value}


async def _policies(db: Database, new: _NewToken, account: Account, user: User | None) -> str:
    if new.policies is None:
        groups = tuple(policies.find_group(group) for group in new.groups)
        only = tuple(dict.fromkeys([await zones.find(db, zone, account) for zone in new.zones]))
        return policies.write(account, groups or policies.default_groups(only), only)
    try:
        text = new.policies.read_bytes()
    except OSError:
        raise Misconfigured(f"the policies {new.policies} cannot be read") from None
    drafts, misshapen = policies.drafts(text)
    reach = frozenset(user.memberships) if user else frozenset({account.id})
    known = await zones.owners(db, policies.zone_ids(drafts))
    problems = misshapen or policies.problems(drafts, reach, {zone: of for zone, of in known.items() if of in reach})
    if problems:
        raise Invalid(problems)
    return policies.text(drafts)


@terminal.command(token, "list")
async def token_list(services: Services) -> Sequence[Row]:
    """Show all tokens, without their values."""
    return [_token(each) for each in await tokens.list_(services.db)]


@terminal.command(token, "show")
@click.argument("token")
async def token_show(services: Services, token: str) -> Row:
    """Show a token, named by its id, with its policies."""
    found = await tokens.find(services.db, token)
    more = {"not_before": terminal.shown(found.not_before), "condition": found.condition, "policies": found.policies}
    return {**_token(found), **more}


@token.command("groups")
@terminal.as_json_option
def token_groups(as_json: bool) -> None:
    """Show the permission groups that policies can name."""
    terminal.show([{"id": g.id.hex, "name": g.name, "level": g.level.name.lower()} for g in GROUPS], as_json)


@terminal.command(token, "roll")
@click.argument("token")
async def token_roll(services: Services, token: str) -> Row:
    """Give a token, named by its id, a new value, shown once; the old one stops working within a second."""
    services = await terminal.with_peppers(services)
    found = await tokens.find(services.db, token)
    return {**_token(found), "token": await tokens.roll(services, terminal.operator(), found)}


@terminal.command(token, "set")
@click.argument("token")
@click.option("--status", type=click.Choice(["active", "disabled"]), required=True, help="A disabled token is refused.")
async def token_set(services: Services, token: str, status: str) -> Row:
    """Enable or disable a token, named by its id."""
    found = await tokens.find(services.db, token)
    return _token(await tokens.set_status(services.db, terminal.operator(), found, active=status == "active"))


@terminal.command(token, "revoke", json=False)
@click.argument("token")
async def token_revoke(services: Services, token: str) -> str:
    """Delete a token, named by its id; it stops working within a second."""
    await tokens.revoke(services.db, terminal.operator(), await tokens.find(services.db, token))
    return f"revoked token {token}"


def _token(token: Token) -> Row:
    owner = f"user {token.user_id.hex}" if token.user_id else f"account {(token.account_id or token.id).hex}"
    return {
        "id": token.id.hex,
        "name": token.name,
        "owner": owner,
        "status": token.status_at(datetime.now(UTC)).value,
        "issued_on": terminal.shown(token.issued_on),
        "expires_on": terminal.shown(token.expires_on),
    }
