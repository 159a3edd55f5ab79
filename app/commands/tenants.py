"""The commands for accounts, zones and users."""

import click

from app.caller import Role, Scope
from app.commands import terminal
from app.identity import accounts, tokens, zones
from app.identity.accounts import Account, User
from app.identity.zones import Zone, ZoneType
from app.services import Services
from app.x509.names import NamePolicy

_ROLES = [role.value for role in Role]


@click.group()
def account() -> None:
    """Accounts: the tenants."""


@account.command("create")
@click.argument("slug")
@click.option("--name", help="Display name; default: the slug.")
@terminal.as_json_option
def account_create(slug: str, name: str | None, as_json: bool) -> None:
    """Create an account."""
    made = terminal.run(lambda services: accounts.create_account(services.db, terminal.operator(), slug, name or slug))
    terminal.show([_account(made)], as_json)


@account.command("list")
@terminal.as_json_option
def account_list(as_json: bool) -> None:
    """Show all accounts."""
    terminal.show(
        [_account(each) for each in terminal.run(lambda services: accounts.list_accounts(services.db))], as_json
    )


_switch = click.Choice(["on", "off"])
_ca_quota = click.option("--ca-quota", help="Most CAs it may hold: a number, or none for the general limit of 1000.")
_csrs = click.option("--csrs", type=_switch, help="Switch custom CSRs on or off (off answers 403/1404).")
_quota = click.option("--csr-quota", help="Most custom CSRs it may hold: a number, or none for no limit.")
_certificate_quota = click.option(
    "--certificate-quota", help="Most certificates it may hold: a number, or none for no limit."
)
_key_max_age = click.option(
    "--key-max-age", type=click.IntRange(1, 36_500), help="Days after which a key counts as old."
)


@account.command("show")
@click.argument("account")
@terminal.as_json_option
def account_show(account: str, as_json: bool) -> None:
    """Show an account, named by id or slug."""
    terminal.show([_account(terminal.run(lambda services: accounts.find_account(services.db, account)))], as_json)


@account.command("set")
@click.argument("account")
@click.option("--name", help="Display name.")
@click.option(
    "--name-policy", type=click.Choice([policy.value for policy in NamePolicy]), help="Which hostnames CSRs may name."
)
@_csrs
@_quota
@_ca_quota
@_key_max_age
@terminal.as_json_option
def account_set(
    account: str,
    name: str | None,
    name_policy: str | None,
    csrs: str | None,
    csr_quota: str | None,
    ca_quota: str | None,
    key_max_age: int | None,
    as_json: bool,
) -> None:
    """Change the settings of an account, named by id or slug."""
    policy = NamePolicy(name_policy) if name_policy else None
    quota = _quota_number(csr_quota, "--csr-quota")
    cas = _quota_number(ca_quota, "--ca-quota")
    changes = accounts.Changes(name, policy, _on(csrs), quota, key_max_age, cas)

    async def work(services: Services) -> Account:
        db = services.db
        return await accounts.set_account(db, terminal.operator(), await accounts.find_account(db, account), changes)

    terminal.show([_account(terminal.run(work))], as_json)


@account.command("delete")
@click.argument("account")
def account_delete(account: str) -> None:
    """Delete an account and its tokens; refused while it holds CSRs, certificates, CAs or zones."""

    async def work(services: Services) -> None:
        db = services.db
        found = await accounts.find_account(db, account)
        await accounts.delete(db, terminal.operator(), Scope(found.id))

    terminal.run(work)
    terminal.say(f"deleted account {account}")


@click.group()
def zone() -> None:
    """Zones: the domains of an account."""


@zone.command("create")
@click.argument("name")
@terminal.account_option
@terminal.as_json_option
def zone_create(name: str, account: str, as_json: bool) -> None:
    """Create a zone."""

    async def work(services: Services) -> Zone:
        db = services.db
        return await zones.create_in(db, terminal.operator(), await accounts.find_account(db, account), name)

    terminal.show([_zone(terminal.run(work))], as_json)


@zone.command("list")
@click.option("--account", help="Account id or slug; default: all.")
@terminal.as_json_option
def zone_list(account: str | None, as_json: bool) -> None:
    """Show zones."""

    async def work(services: Services) -> tuple[Zone, ...]:
        db = services.db
        return await zones.list_(db, await accounts.find_account(db, account) if account else None)

    terminal.show([_zone(each) for each in terminal.run(work)], as_json)


@zone.command("show")
@click.argument("zone")
@terminal.as_json_option
def zone_show(zone: str, as_json: bool) -> None:
    """Show a zone, named by id or name."""
    terminal.show([_zone(terminal.run(lambda services: zones.find(services.db, zone)))], as_json)


@zone.command("set")
@click.argument("zone")
@_csrs
@_quota
@_certificate_quota
@click.option("--paused", type=_switch, help="Cloudflare's switch; stored and returned, without effect here.")
@click.option(
    "--type",
    "kind",
    type=click.Choice([kind.value for kind in ZoneType]),
    help="Cloudflare's zone type; stored and returned, without effect here.",
)
@terminal.as_json_option
def zone_set(
    zone: str,
    csrs: str | None,
    csr_quota: str | None,
    certificate_quota: str | None,
    paused: str | None,
    kind: str | None,
    as_json: bool,
) -> None:
    """Change the settings of a zone, named by id or name."""
    quota = _quota_number(csr_quota, "--csr-quota")
    certificates = _quota_number(certificate_quota, "--certificate-quota")
    changes = zones.Changes(_on(csrs), quota, certificates, _on(paused), ZoneType(kind) if kind else None)

    async def work(services: Services) -> Zone:
        db = services.db
        return await zones.set_(db, terminal.operator(), await zones.find(db, zone), changes)

    terminal.show([_zone(terminal.run(work))], as_json)


@zone.command("delete")
@click.argument("zone")
def zone_delete(zone: str) -> None:
    """Delete a zone; refused while it holds CSRs or certificates."""

    async def work(services: Services) -> None:
        db = services.db
        found = await zones.find(db, zone)
        await zones.delete(db, terminal.operator(), Scope(found.account_id, found.id))

    terminal.run(work)
    terminal.say(f"deleted zone {zone}")


@click.group()
def user() -> None:
    """Users: people with a global key and a role in accounts."""


@user.command("create")
@click.argument("email")
@terminal.account_option
@click.option("--role", type=click.Choice(_ROLES), default=Role.READ.value, show_default=True)
@terminal.as_json_option
def user_create(email: str, account: str, role: str, as_json: bool) -> None:
    """Create a user with a role in an account; the global key is shown once."""

    async def work(services: Services) -> tuple[User, str]:
        db = services.db
        home = await accounts.find_account(db, account)
        made = await accounts.create_user(db, terminal.operator(), email)
        made = await accounts.set_membership(db, terminal.operator(), made, home, Role(role))
        return made, await tokens.roll_global_key(services, terminal.operator(), made)

    made, key = terminal.run(work)
    terminal.show([{**_user(made), "global_key": key}], as_json)


@user.command("list")
@terminal.as_json_option
def user_list(as_json: bool) -> None:
    """Show all users with their roles."""
    terminal.show([_user(each) for each in terminal.run(lambda services: accounts.list_users(services.db))], as_json)


@user.command("set")
@click.argument("user")
@terminal.account_option
@click.option(
    "--role", type=click.Choice([*_ROLES, "none"]), help="The role in that account; none removes the user from it."
)
@click.option("--roll-key", is_flag=True, help="Replace the global key; the new one is shown once.")
@terminal.as_json_option
def user_set(user: str, account: str, role: str | None, roll_key: bool, as_json: bool) -> None:
    """Change a user, named by id or email."""

    async def work(services: Services) -> dict[str, object]:
        db = services.db
        found = await accounts.find_user(db, user)
        if role:
            home = await accounts.find_account(db, account)
            new_role = None if role == "none" else Role(role)
            found = await accounts.set_membership(db, terminal.operator(), found, home, new_role)
        key = {"global_key": await tokens.roll_global_key(services, terminal.operator(), found)} if roll_key else {}
        return {**_user(found), **key}

    terminal.show([terminal.run(work)], as_json)


@user.command("delete")
@click.argument("user")
def user_delete(user: str) -> None:
    """Delete a user, with the user's global key and tokens."""

    async def work(services: Services) -> None:
        db = services.db
        await accounts.delete_user(db, terminal.operator(), await accounts.find_user(db, user))

    terminal.run(work)
    terminal.say(f"deleted user {user}")


def _account(account: Account) -> dict[str, object]:
    return {
        "id": account.id.hex,
        "slug": account.slug,
        "name": account.name,
        "name_policy": account.name_policy.value,
        "csrs": _word(account.csrs_enabled),
        "csr_quota": account.csr_quota,
        "ca_quota": account.ca_quota,
        "key_max_age_days": account.key_max_age_days,
        "created_on": terminal.shown(account.created_at),
    }


def _zone(zone: Zone) -> dict[str, object]:
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


def _user(user: User) -> dict[str, object]:
    roles = {account.hex: role.value for account, role in user.memberships.items()}
    return {"id": user.id.hex, "email": user.email, "roles": roles, "created_on": terminal.shown(user.created_at)}


def _word(on: bool) -> str:
    return "on" if on else "off"


def _on(word: str | None) -> bool | None:
    return None if word is None else word == "on"


def _quota_number(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if text == "none":
        return -1
    if not text.isascii() or not text.isdigit() or int(text) > 2_000_000_000:
        raise click.BadParameter("it takes a whole number, or none", param_hint=option)
    return int(text)
