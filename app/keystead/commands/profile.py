"""`keystead profile`: by what certificates are issued, each with a policy of the same name."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from keystead.ca import authorities, profiles
from keystead.ca.policies import Rules
from keystead.ca.profiles import NewPolicy, NewProfile, Profile
from keystead.caller import Scope
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.errors import Misconfigured, NotFound, quoted
from keystead.identity import accounts
from keystead.services import Services
from keystead.store import scopes
from keystead.store.database import Connection


@click.group()
def profile() -> None:
    """Profiles: a CA, and what it may sign by each; PROFILE is an id or a slug."""


@terminal.command(profile, "create")
@click.argument("slug")
@click.option("--ca", required=True, help="Id, friendly name or common name of the CA that signs.")
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with the rules of its policy, as the API takes them; default: everything is allowed.",
)
@click.option("--description", help="What it is for.")
async def create(services: Services, slug: str, ca: str, rules: Path | None, description: str | None) -> Row:
    """Create a profile SLUG of a CA, and a policy of the same name with the rules."""
    found = _rules(rules) if rules else Rules()
    scope, authority = await authorities.find(services.db, ca)
    caller = terminal.operator()

    async def work(connection: Connection) -> Profile:
        policy = await profiles.create_policy(connection, caller, scope, NewPolicy(slug, description, found))
        new = NewProfile(slug, authority.id, policy.id, description)
        return await profiles.create_profile(connection, caller, scope, new)

    return _row(await services.db.transaction(work))


@terminal.command(profile, "list")
@terminal.account_option
async def list_(services: Services, account: str) -> Sequence[Row]:
    """Show the profiles of an account, the oldest first."""
    return [_row(each) for each in await profiles.list_profiles(services.db, await _scope(services, account))]


@terminal.command(profile, "show")
@click.argument("profile")
@terminal.account_option
async def show(services: Services, account: str, profile: str) -> Row:
    """Show a profile with the rules of its policy and its defaults."""
    scope = await _scope(services, account)
    found = await _find(services, scope, profile)
    policy = await profiles.policy(services.db, scope, found.policy_id)
    return {
        **_row(found),
        "policy": policy.name,
        "rules": msgspec.json.encode(policy.rules).decode(),
        "defaults": msgspec.json.encode(found.defaults).decode(),
        "created_on": terminal.shown(found.created_at),
    }


@terminal.command(profile, "delete", json=False)
@click.argument("profile")
@terminal.account_option
async def delete(services: Services, account: str, profile: str) -> str:
    """Delete a profile; its policy, and what was issued by it, stay."""
    scope = await _scope(services, account)
    found = await _find(services, scope, profile)
    await profiles.delete(services.db, terminal.operator(), scope, profiles.PROFILE, found.id)
    return f"deleted profile {found.slug}"


async def _scope(services: Services, account: str) -> Scope:
    owner = await accounts.find_account(services.db, account)
    return await scopes.load(services.db, owner.id)


async def _find(services: Services, scope: Scope, word: str) -> Profile:
    found = [each for each in await profiles.list_profiles(services.db, scope) if word in (each.slug, str(each.id))]
    if not found:
        raise NotFound(f"there is no profile {quoted(word)}; `keystead profile list` shows them")
    return found[0]


def _rules(path: Path) -> Rules:
    """The rules in a file; raises Misconfigured for what is none of them, without quoting the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rules)
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Misconfigured(f"{path} has no rules of a policy: {error}") from None


def _row(profile: Profile) -> Row:
    return {
        "id": str(profile.id),
        "slug": profile.slug,
        "ca_id": str(profile.ca_id),
        "policy_id": str(profile.policy_id),
        "description": profile.description,
    }
