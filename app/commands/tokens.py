"""The commands for API tokens."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from app.caller import GROUPS
from app.commands import terminal
from app.errors import Invalid, Misconfigured
from app.identity import accounts, policies, tokens, zones
from app.identity.accounts import Account, User
from app.identity.tokens import Token
from app.services import Services
from app.store.database import Database


@click.group()
def token() -> None:
    """API tokens."""


@token.command("create")
@click.argument("name")
@terminal.account_option
@click.option("--user", help="Make it this user's token instead of the account's.")
@click.option("--zone", "zone_words", multiple=True, help="Zone id or name; default: all zones of the account.")
@click.option("--group", "groups", multiple=True, help="Permission group; default: all but those for tokens and keys.")
@click.option("--allow-from", multiple=True, help="Network from which it may be used, such as 10.0.0.0/8.")
@click.option("--policies", "file", type=click.Path(path_type=Path), help="JSON file of policies, instead of --group.")
@click.option("--not-before", help="Start of its validity, such as 2027-01-31.")
@click.option("--expires", help="Expiry, such as 2027-01-31 or 2027-01-31T12:00:00Z.")
@terminal.as_json_option
def token_create(
    name: str,
    account: str,
    user: str | None,
    zone_words: Sequence[str],
    groups: Sequence[str],
    allow_from: Sequence[str],
    file: Path | None,
    not_before: str | None,
    expires: str | None,
    as_json: bool,
) -> None:
    """Create a token; its value is shown once."""
    condition, expires_on = policies.address_condition(allow_from), terminal.time_of(expires, "--expires")
    begins = terminal.time_of(not_before, "--not-before")
    if begins and expires_on and begins >= expires_on:
        raise click.BadParameter("it must be before --expires", param_hint="--not-before")
    if file and (zone_words or groups):
        raise click.BadParameter("it cannot be combined with --zone and --group", param_hint="--policies")
    asked = _read(file) if file else None
    named = tuple(policies.find_group(group) for group in groups)

    async def work(services: Services) -> tuple[Token, str]:
        db = services.db
        home = await accounts.find_account(db, account)
        owner = await accounts.find_user(db, user) if user else None
        only = tuple(dict.fromkeys([await zones.find(db, word, home) for word in zone_words]))
        text = policies.write(home, named or policies.default_groups(only), only)
        if asked is not None:
            text = await _from_file(db, home, owner, asked)
        new = tokens.NewToken(home, name, text, owner, condition, begins, expires_on)
        return await tokens.create(services, terminal.operator(), new)

    made, value = terminal.run(work)
    terminal.show([{**_token(made), "token": value}], as_json)


@token.command("list")
@terminal.as_json_option
def token_list(as_json: bool) -> None:
    """Show all tokens, without their values."""
    terminal.show([_token(each) for each in terminal.run(lambda services: tokens.list_(services.db))], as_json)


@token.command("show")
@click.argument("token")
@terminal.as_json_option
def token_show(token: str, as_json: bool) -> None:
    """Show a token, named by its id, with its policies."""
    found = terminal.run(lambda services: tokens.find(services.db, token))
    more = {"not_before": terminal.shown(found.not_before), "condition": found.condition, "policies": found.policies}
    terminal.show([{**_token(found), **more}], as_json)


@token.command("groups")
@terminal.as_json_option
def token_groups(as_json: bool) -> None:
    """Show the permission groups that policies can name."""
    rows: list[dict[str, object]] = [{"id": g.id.hex, "name": g.name, "level": g.level.name.lower()} for g in GROUPS]
    terminal.show(rows, as_json)


@token.command("roll")
@click.argument("token")
@terminal.as_json_option
def token_roll(token: str, as_json: bool) -> None:
    """Give a token, named by its id, a new value, shown once; the old one stops working within a second."""

    async def work(services: Services) -> tuple[Token, str]:
        found = await tokens.find(services.db, token)
        return found, await tokens.roll(services, terminal.operator(), found)

    found, value = terminal.run(work)
    terminal.show([{**_token(found), "token": value}], as_json)


@token.command("set")
@click.argument("token")
@click.option("--status", type=click.Choice(["active", "disabled"]), required=True)
@terminal.as_json_option
def token_set(token: str, status: str, as_json: bool) -> None:
    """Enable or disable a token, named by its id."""

    async def work(services: Services) -> Token:
        db = services.db
        return await tokens.set_status(db, terminal.operator(), await tokens.find(db, token), active=status == "active")

    terminal.show([_token(terminal.run(work))], as_json)


@token.command("revoke")
@click.argument("token")
def token_revoke(token: str) -> None:
    """Delete a token, named by its id; it stops working within a second."""

    async def work(services: Services) -> None:
        db = services.db
        await tokens.revoke(db, terminal.operator(), await tokens.find(db, token))

    terminal.run(work)
    terminal.say(f"revoked token {token}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        raise Misconfigured(f"the policies {file} cannot be read") from None


async def _from_file(database: Database, account: Account, user: User | None, text: bytes) -> str:
    drafts, misshapen = policies.drafts(text)
    reach = frozenset(user.memberships) if user else frozenset({account.id})
    known = await zones.owners(database, policies.zone_ids(drafts))
    problems = policies.problems(drafts, reach, {zone: of for zone, of in known.items() if of in reach})
    if misshapen or problems:
        raise Invalid(misshapen or problems)
    return policies.text(drafts)


def _token(token: Token) -> dict[str, object]:
    owner = f"user {token.user_id.hex}" if token.user_id else f"account {(token.account_id or token.id).hex}"
    return {
        "id": token.id.hex,
        "name": token.name,
        "owner": owner,
        "status": token.status_at(datetime.now(UTC)).value,
        "issued_on": terminal.shown(token.issued_on),
        "expires_on": terminal.shown(token.expires_on),
    }
