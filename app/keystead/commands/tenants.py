"""The commands for accounts, zones and users."""

import functools
from collections.abc import Sequence

import click
import msgspec

from keystead.caller import Role, Scope
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.identity import accounts, tokens, zones
from keystead.identity.accounts import Account, User
from keystead.identity.zones import Zone, ZoneType
from keystead.services import Services
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import SubjectDefaults


def _is_on(_: click.Context, __: click.Parameter, word: str | None) -> bool | None:
    return None if word is None else word == "on"


def quota(text: str) -> int:
    if text == "none":
        return -1
    if not text.isascii() or not text.isdigit() or int(text) > 2_000_000_000:
        raise click.BadParameter("it takes a whole number from 0, or none")
    return int(text)


_switch = functools.partial(click.option, type=click.Choice(["on", "off"]), callback=_is_on)
_csrs = _switch("--csrs", "csrs_enabled", help="Switch custom CSRs on or off (off answers 403/1404).")
_csr_quota = click.option(
    "--csr-quota", type=quota, help="Most custom CSRs it may hold: a number, or none for no limit."
)


@click.group()
def account() -> None:
    """Accounts: the tenants."""


@terminal.command(account, "create")
@click.argument("slug")
@click.option("--name", help="Display name; default: the slug.")
async def account_create(services: Services, slug: str, name: str | None) -> Row:
    """Create an account."""
    return _account(await accounts.create_account(services.db, terminal.operator(), slug, name or slug))


@terminal.command(account, "list")
async def account_list(services: Services) -> Sequence[Row]:
    """Show all accounts."""
    return [_account(each) for each in await accounts.list_accounts(services.db)]


@terminal.command(account, "show")
@click.argument("account")
async def account_show(services: Services, account: str) -> Row:
    """Show an account, named by id or slug."""
    return _account(await accounts.find_account(services.db, account))


@terminal.command(account, "set")
@click.argument("account")
@click.option("--name", help="Display name.")
@click.option("--name-policy", type=terminal.choice(NamePolicy), help="Which hostnames CSRs may name.")
@_csrs
@_csr_quota
@click.option("--ca-quota", type=quota, help="Most CAs it may hold: a number, or none for the general limit of 1000.")
@click.option(
    "--key-max-age", "key_max_age_days", type=click.IntRange(1, 36_500), help="Days after which a key counts as old."
)
@terminal.subject_options("the subject if `csr create` is not told; an empty text removes it")
async def account_set(services: Services, account: str, **changes: object) -> Row:
    """Change the settings of an account, named by id or slug."""
    found = await accounts.find_account(services.db, account)
    subject = {name: changes.pop(name) for name in SubjectDefaults.__struct_fields__}
    changes["csr_subject"] = {name: value for name, value in subject.items() if value is not None}
    wanted = msgspec.convert(changes, accounts.Changes)
    return _account(await accounts.set_account(services.db, terminal.operator(), found, wanted))


@terminal.command(account, "delete", json=False)
@click.argument("account")
async def account_delete(services: Services, account: str) -> str:
    """Delete an account and its tokens; refused while it holds CSRs, certificates, CAs or zones."""
    found = await accounts.find_account(services.db, account)
    await accounts.delete(services.db, terminal.operator(), Scope(found.id))
    return f"deleted account {account}"


@click.group()
def zone() -> None:
    """Zones: the domains of an account."""


@terminal.command(zone, "create")
@click.argument("name")
@terminal.account_option
async def zone_create(services: Services, name: str, account: str) -> Row:
    """Create a zone."""
    owner = await accounts.find_account(services.db, account)
    return _zone(await zones.create_in(services.db, terminal.operator(), owner, name))


@terminal.command(zone, "list")
@click.option("--account", help="Account id or slug; default: all.")
async def zone_list(services: Services, account: str | None) -> Sequence[Row]:
    """Show zones."""
    owner = await accounts.find_account(services.db, account) if account else None
    return [_zone(each) for each in await zones.list_(services.db, owner)]


@terminal.command(zone, "show")
@click.argument("zone")
async def zone_show(services: Services, zone: str) -> Row:
    """Show a zone, named by id or name."""
    return _zone(await zones.find(services.db, zone))


@terminal.command(zone, "set")
@click.argument("zone")
@_csrs
@_csr_quota
@click.option("--certificate-quota", type=quota, help="Most certificates it may hold: a number, or none for no limit.")
@_switch("--paused", help="Cloudflare's switch; stored and returned, without effect here.")
@click.option(
    "--type", type=terminal.choice(ZoneType), help="Cloudflare's zone type; stored and returned, without effect here."
)
async def zone_set(services: Services, zone: str, **changes: object) -> Row:
    """Change the settings of a zone, named by id or name."""
    found = await zones.find(services.db, zone)
    wanted = msgspec.convert(changes, zones.Changes)
    return _zone(await zones.set_(services.db, terminal.operator(), found, wanted))


@terminal.command(zone, "delete", json=False)
@click.argument("zone")
async def zone_delete(services: Services, zone: str) -> str:
    """Delete a zone; refused while it holds CSRs or certificates."""
    found = await zones.find(services.db, zone)
    await zones.delete(services.db, terminal.operator(), Scope(found.account_id, found.id))
    return f"deleted zone {zone}"


@click.group()
def user() -> None:
    """Users: people with a global key and a role in accounts."""


@terminal.command(user, "create")
@click.argument("email")
@terminal.account_option
@click.option("--role", type=terminal.choice(Role), default=Role.READ.value, show_default=True, help="The role.")
async def user_create(services: Services, email: str, account: str, role: str) -> Row:
    """Create a user with a role in an account; the global key is shown once."""
    services, caller = await terminal.with_peppers(services), terminal.operator()
    member_of = await accounts.find_account(services.db, account)
    created = await accounts.create_user(services.db, caller, email)
    created = await accounts.set_membership(services.db, caller, created, member_of, Role(role))
    return {**_user(created), "global_key": await tokens.roll_global_key(services, caller, created)}


@terminal.command(user, "list")
async def user_list(services: Services) -> Sequence[Row]:
    """Show all users with their roles."""
    return [_user(each) for each in await accounts.list_users(services.db)]


@terminal.command(user, "set")
@click.argument("user")
@terminal.account_option
@click.option(
    "--role",
    type=click.Choice([*(role.value for role in Role), "none"]),
    help="The role in that account; none removes the user from it.",
)
@click.option("--roll-key", is_flag=True, help="Replace the global key; the new one is shown once.")
async def user_set(services: Services, user: str, account: str, role: str | None, roll_key: bool) -> Row:
    """Change a user, named by id or email."""
    caller = terminal.operator()
    services = await terminal.with_peppers(services) if roll_key else services
    found = await accounts.find_user(services.db, user)
    if role:
        member_of = await accounts.find_account(services.db, account)
        new_role = None if role == "none" else Role(role)
        found = await accounts.set_membership(services.db, caller, found, member_of, new_role)
    if not roll_key:
        return _user(found)
    return {**_user(found), "global_key": await tokens.roll_global_key(services, caller, found)}


@terminal.command(user, "delete", json=False)
@click.argument("user")
async def user_delete(services: Services, user: str) -> str:
    """Delete a user, with the user's global key and tokens."""
    await accounts.delete_user(services.db, terminal.operator(), await accounts.find_user(services.db, user))
    return f"deleted user {user}"


def _account(account: Account) -> Row:
    return {
        "id": account.id.hex,
        "slug": account.slug,
        "name": account.name,
        "name_policy": account.name_policy.value,
        "csrs": _word(account.csrs_enabled),
        "csr_quota": account.csr_quota,
        "ca_quota": account.ca_quota,
        "key_max_age_days": account.key_max_age_days,
        "csr_subject": account.csr_subject,
        "created_on": terminal.shown(account.created_at),
    }


def _zone(zone: Zone) -> Row:
    return {
        "id": zone.id.hex,
        "name": zone.name,
        "account_id": zone.account_id.hex,
        "type": zone.type.value,
        "paused": _word(zone.paused),
        "csrs": _word(zone.csrs_enabled),
        "csr_quota": zone.csr_quota,
        "certificate_quota": zone.certificate_quota,
        "created_on": terminal.shown(zone.created_at),
    }


def _user(user: User) -> Row:
    roles = {account.hex: role.value for account, role in user.memberships.items()}
    return {"id": user.id.hex, "email": user.email, "roles": roles, "created_on": terminal.shown(user.created_at)}


def _word(on: bool) -> str:
    return "on" if on else "off"
