"""The command: parses, calls one function of the core, prints. Human tables by default, JSON with --json."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from app import (
    __version__,
    accounts,
    ca_commands,
    certificates,
    console,
    db,
    files,
    keys_commands,
    policies,
    tokens,
)
from app.db import Database
from app.errors import KeysteadError, Misconfigured
from app.keyring import Peppers
from app.model import Account, Certificate, NamePolicy, Role, Superseded, Token, User, Zone
from app.ringfile import Ring

T = TypeVar("T")
# The names that certbot gave them, and that every how-to of a web server uses.
FULLCHAIN, PRIVATE_KEY = "fullchain.pem", "privkey.pem"
_ROLES = [role.value for role in Role]


def main() -> None:
    """Run the command; our own errors are one line on standard error and exit status 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeysteadError as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    print(f"keystead: {text}", file=sys.stderr)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="keystead %(version)s")
def cli() -> None:
    """Key pairs and certificate signing requests, with the private keys sealed.

    Settings come from KEYSTEAD_ variables; docs/operations.md explains them.
    """


@cli.command()
def serve() -> None:
    """Serve the API; makes what is missing at the first start."""
    from app import serve as server

    sys.exit(server.serve(console.settings()))


@cli.command()
def migrate() -> None:
    """Bring the database to this release's schema."""
    with console.dsn(console.settings()) as dsn:
        applied = asyncio.run(db.migrate(dsn))
    print("\n".join(f"applied {name}" for name in applied) or "the schema is current")


@cli.group()
def account() -> None:
    """Accounts: the tenants."""


@account.command("create")
@click.argument("slug")
@click.option("--name", help="A name for people; default: the slug.")
@console.as_json_option
def account_create(slug: str, name: str | None, as_json: bool) -> None:
    """Make an account."""
    made = console.run(lambda d, _: accounts.create_account(d, console.OPERATOR, slug, name or slug))
    console.show([_account(made)], as_json)


@account.command("list")
@console.as_json_option
def account_list(as_json: bool) -> None:
    """Show all accounts."""
    console.show([_account(each) for each in console.run(lambda d, _: accounts.list_accounts(d))], as_json)


_switch = click.Choice(["on", "off"])
_ca_quota = click.option("--ca-quota", help="How many CAs it may hold: a number, or none for the bound of 1000.")
_csrs = click.option("--csrs", type=_switch, help="Switch custom CSRs on or off (off answers 403/1404).")
_quota = click.option("--csr-quota", help="How many custom CSRs its list may hold: a number, or none for no bound.")
_certificate_quota = click.option("--certificate-quota", help="How many certificates it may hold: a number, or none.")
_key_max_age = click.option("--key-max-age", type=click.IntRange(1, 36_500), help="Days after which a key is old.")


@account.command("set")
@click.argument("account")
@click.option(
    "--name-policy", type=click.Choice([policy.value for policy in NamePolicy]), help="Which hostnames CSRs may name."
)
@_csrs
@_quota
@_ca_quota
@_key_max_age
@console.as_json_option
def account_set(
    account: str,
    name_policy: str | None,
    csrs: str | None,
    csr_quota: str | None,
    ca_quota: str | None,
    key_max_age: int | None,
    as_json: bool,
) -> None:
    """Set the rules of an account, named by id or slug."""
    policy = NamePolicy(name_policy) if name_policy else None
    quota = _quota_number(csr_quota, "--csr-quota")
    cas = _quota_number(ca_quota, "--ca-quota")
    changes = accounts.Changes(policy, _on(csrs), quota, key_max_age_days=key_max_age, ca_quota=cas)

    async def work(d: Database, _: Peppers) -> Account:
        return await accounts.set_account(d, console.OPERATOR, await accounts.find_account(d, account), changes)

    console.show([_account(console.run(work))], as_json)


@account.command("delete")
@click.argument("account")
def account_delete(account: str) -> None:
    """Delete an account that holds no CSRs, certificates, CAs and zones, with its tokens."""

    async def work(d: Database, _: Peppers) -> None:
        await accounts.delete_account(d, console.OPERATOR, await accounts.find_account(d, account))

    console.run(work)
    print(f"deleted account {account}")


@cli.group()
def zone() -> None:
    """Zones: the domains of an account."""


@zone.command("create")
@click.argument("name")
@console.account_option
@console.as_json_option
def zone_create(name: str, account: str, as_json: bool) -> None:
    """Make a zone."""

    async def work(d: Database, _: Peppers) -> Zone:
        return await accounts.create_zone(d, console.OPERATOR, await accounts.find_account(d, account), name)

    console.show([_zone(console.run(work))], as_json)


@zone.command("list")
@click.option("--account", help="Account id or slug; default: all.")
@console.as_json_option
def zone_list(account: str | None, as_json: bool) -> None:
    """Show zones."""

    async def work(d: Database, _: Peppers) -> tuple[Zone, ...]:
        return await accounts.list_zones(d, await accounts.find_account(d, account) if account else None)

    console.show([_zone(each) for each in console.run(work)], as_json)


@zone.command("set")
@click.argument("zone")
@_csrs
@_quota
@_certificate_quota
@console.as_json_option
def zone_set(zone: str, csrs: str | None, csr_quota: str | None, certificate_quota: str | None, as_json: bool) -> None:
    """Set the rules of a zone, named by id or name."""
    quota = _quota_number(csr_quota, "--csr-quota")
    changes = accounts.Changes(None, _on(csrs), quota, _quota_number(certificate_quota, "--certificate-quota"))

    async def work(d: Database, _: Peppers) -> Zone:
        return await accounts.set_zone(d, console.OPERATOR, await accounts.find_zone(d, zone), changes)

    console.show([_zone(console.run(work))], as_json)


@zone.command("delete")
@click.argument("zone")
def zone_delete(zone: str) -> None:
    """Delete a zone that holds no CSRs."""

    async def work(d: Database, _: Peppers) -> None:
        await accounts.delete_zone(d, console.OPERATOR, await accounts.find_zone(d, zone))

    console.run(work)
    print(f"deleted zone {zone}")


@cli.group()
def user() -> None:
    """Users: people with a global key and a role in accounts."""


@user.command("create")
@click.argument("email")
@console.account_option
@click.option("--role", type=click.Choice(_ROLES), default=Role.READ.value, show_default=True)
@console.as_json_option
def user_create(email: str, account: str, role: str, as_json: bool) -> None:
    """Make a user with a role in an account; the global key is shown once."""

    async def work(d: Database, peppers: Peppers) -> tuple[User, str]:
        home = await accounts.find_account(d, account)
        made = await accounts.create_user(d, console.OPERATOR, email)
        made = await accounts.set_membership(d, console.OPERATOR, made, home, Role(role))
        return made, await tokens.roll_global_key(d, peppers, console.OPERATOR, made)

    made, key = console.run(work)
    console.show([{**_user(made), "global_key": key}], as_json)


@user.command("list")
@console.as_json_option
def user_list(as_json: bool) -> None:
    """Show all users with their roles."""
    console.show([_user(each) for each in console.run(lambda d, _: accounts.list_users(d))], as_json)


@user.command("set")
@click.argument("user")
@console.account_option
@click.option("--role", type=click.Choice([*_ROLES, "none"]), help="The role in that account; none takes it away.")
@click.option("--roll-key", is_flag=True, help="Make a new global key, shown once; the old one is dead.")
@console.as_json_option
def user_set(user: str, account: str, role: str | None, roll_key: bool, as_json: bool) -> None:
    """Change a user, named by id or email."""

    async def work(d: Database, peppers: Peppers) -> dict[str, object]:
        found = await accounts.find_user(d, user)
        if role:
            home = await accounts.find_account(d, account)
            new_role = None if role == "none" else Role(role)
            found = await accounts.set_membership(d, console.OPERATOR, found, home, new_role)
        key = {"global_key": await tokens.roll_global_key(d, peppers, console.OPERATOR, found)} if roll_key else {}
        return {**_user(found), **key}

    console.show([console.run(work)], as_json)


@user.command("delete")
@click.argument("user")
def user_delete(user: str) -> None:
    """Delete a user with the global key and the tokens."""

    async def work(d: Database, _: Peppers) -> None:
        await accounts.delete_user(d, console.OPERATOR, await accounts.find_user(d, user))

    console.run(work)
    print(f"deleted user {user}")


@cli.group()
def token() -> None:
    """API tokens."""


@token.command("create")
@click.argument("name")
@console.account_option
@click.option("--user", help="Make it this user's token instead of the account's.")
@click.option("--zone", "zones", multiple=True, help="Zone id or name; default: all zones of the account.")
@click.option("--group", "groups", multiple=True, help="Permission group; default: all but handing out private keys.")
@click.option("--allow-from", multiple=True, help="Network that it may be used from, such as 10.0.0.0/8.")
@click.option("--expires", help="When it ends, such as 2027-01-31 or 2027-01-31T12:00:00Z.")
@console.as_json_option
def token_create(
    name: str,
    account: str,
    user: str | None,
    zones: Sequence[str],
    groups: Sequence[str],
    allow_from: Sequence[str],
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a token; its value is shown once."""
    condition, expires_on = policies.address_condition(allow_from), console.time_of(expires, "--expires")
    named = tuple(policies.find_group(group) for group in groups)

    async def work(d: Database, peppers: Peppers) -> tuple[Token, str]:
        home = await accounts.find_account(d, account)
        owner = await accounts.find_user(d, user) if user else None
        only = tuple(dict.fromkeys([await accounts.find_zone_in(d, home, zone) for zone in zones]))
        text = policies.write(home, named or policies.default_groups(only), only)
        new = tokens.NewToken(home, name, text, owner, condition, None, expires_on)
        return await tokens.create(d, peppers, console.OPERATOR, new)

    made, value = console.run(work)
    console.show([{**_token(made), "token": value}], as_json)


@token.command("list")
@console.as_json_option
def token_list(as_json: bool) -> None:
    """Show all tokens, without their values."""
    console.show([_token(each) for each in console.run(lambda d, _: tokens.list_(d))], as_json)


@token.command("set")
@click.argument("token")
@click.option("--status", type=click.Choice(["active", "disabled"]), required=True)
@console.as_json_option
def token_set(token: str, status: str, as_json: bool) -> None:
    """Switch a token, named by its id, on or off."""

    async def work(d: Database, _: Peppers) -> Token:
        return await tokens.set_status(d, console.OPERATOR, await tokens.find(d, token), active=status == "active")

    console.show([_token(console.run(work))], as_json)


@token.command("revoke")
@click.argument("token")
def token_revoke(token: str) -> None:
    """Delete a token, named by its id: it is dead at once."""

    async def work(d: Database, _: Peppers) -> None:
        await tokens.revoke(d, console.OPERATOR, await tokens.find(d, token))

    console.run(work)
    print(f"revoked token {token}")


cli.add_command(ca_commands.ca)
cli.add_command(keys_commands.keys)


@cli.group()
def certificate() -> None:
    """Custom certificates, on the operator's own host."""


@certificate.command("list")
@click.option("--zone", help="Zone id or name; default: all.")
@console.as_json_option
def certificate_list(zone: str | None, as_json: bool) -> None:
    """Show certificates, the first to expire first."""

    async def work(d: Database, _: Peppers) -> tuple[Certificate, ...]:
        return await certificates.for_operator(d, (await accounts.find_zone(d, zone)).id if zone else None)

    console.show([_certificate(each) for each in console.run(work)], as_json)


@certificate.command("expiring")
@click.option("--within", default="30d", show_default=True, help="Days ahead, such as 30d.")
@console.as_json_option
def certificate_expiring(within: str, as_json: bool) -> None:
    """Show the certificates that have expired or expire soon."""
    before = datetime.now(UTC) + _days(within)
    found = console.run(lambda d, _: certificates.for_operator(d, before=before))
    console.show([_certificate(each) for each in found], as_json)


@certificate.command("show")
@click.argument("certificate")
@console.as_json_option
def certificate_show(certificate: str, as_json: bool) -> None:
    """Show a certificate, named by its id."""
    found = console.run(lambda d, _: certificates.find(d, certificate))
    more = {"issuer": found.issuer, "signature": found.signature, "bundle_method": found.bundle_method.value}
    console.show([{**_certificate(found), **more, "uploaded_on": console.shown(found.uploaded_at)}], as_json)


@certificate.command("history")
@click.argument("certificate")
@console.as_json_option
def certificate_history(certificate: str, as_json: bool) -> None:
    """Show what a certificate was before its renewals, the latest first."""

    async def work(d: Database, _: Peppers) -> tuple[Superseded, ...]:
        return await certificates.history(d, await certificates.find(d, certificate))

    console.show([_superseded(each) for each in console.run(work)], as_json)


@certificate.command("export")
@click.argument("certificate")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
def certificate_export(certificate: str, out: Path) -> None:
    """Write fullchain.pem and privkey.pem for a web server; audited."""

    async def work(d: Database, ring: Ring) -> certificates.Exported:
        return await certificates.export(d, ring, console.OPERATOR, await certificates.find(d, certificate))

    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        exported = console.run_with_ring(work)
        files.write_together(out, {PRIVATE_KEY: exported.private_key, FULLCHAIN: exported.fullchain})
    except OSError as error:
        raise Misconfigured(f"{out} cannot be written ({error.strerror})") from None
    print(f"wrote {out / FULLCHAIN} and {out / PRIVATE_KEY}")


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
        "created_on": console.shown(account.created_at),
    }


def _zone(zone: Zone) -> dict[str, object]:
    return {
        "id": zone.id.hex,
        "name": zone.name,
        "account_id": zone.account_id.hex,
        "csrs": _word(zone.csrs_enabled),
        "csr_quota": zone.csr_quota,
        "certificate_quota": zone.certificate_quota,
        "created_on": console.shown(zone.created_at),
    }


def _user(user: User) -> dict[str, object]:
    roles = {account.hex: role.value for account, role in user.memberships.items()}
    return {"id": user.id.hex, "email": user.email, "roles": roles, "created_on": console.shown(user.created_at)}


def _token(token: Token) -> dict[str, object]:
    owner = f"user {token.user_id.hex}" if token.user_id else f"account {(token.account_id or token.id).hex}"
    return {
        "id": token.id.hex,
        "name": token.name,
        "owner": owner,
        "status": token.status,
        "issued_on": console.shown(token.issued_on),
        "expires_on": console.shown(token.expires_on),
    }


def _certificate(certificate: Certificate) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "id": str(certificate.id),
        "zone_id": certificate.zone_id.hex,
        "hosts": _hosts(certificate.hosts),
        "status": certificate.status(now).value,
        "expires_on": console.shown(certificate.not_after),
        "days_left": (certificate.not_after - now).days,
        "custom_csr_id": str(certificate.custom_csr_id) if certificate.custom_csr_id else None,
    }


def _superseded(version: Superseded) -> dict[str, object]:
    return {
        "hosts": _hosts(version.hosts),
        "issuer": version.issuer,
        "expires_on": console.shown(version.not_after),
        "uploaded_on": console.shown(version.uploaded_at),
        "superseded_on": console.shown(version.superseded_at),
        "custom_csr_id": str(version.custom_csr_id) if version.custom_csr_id else None,
    }


def _hosts(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")


def _days(text: str) -> timedelta:
    number = text.removesuffix("d")
    if not number.isascii() or not number.isdigit() or int(number) > 36_500:
        raise click.BadParameter("it takes a number of days, such as 30d", param_hint="--within")
    return timedelta(days=int(number))


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
