"""The commands for delivery tokens, with which TLS servers fetch certificates and keys."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from keystead.addresses import Network
from keystead.certificates import store as certificates
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.identity import delivery_tokens, zones
from keystead.identity.delivery_tokens import DeliveryToken, NewToken, Reach
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509 import names
from keystead.x509.names import NamePolicy


@click.group()
def delivery() -> None:
    """What TLS servers fetch from the delivery listener."""


@delivery.group()
def token() -> None:
    """Delivery tokens: they open certificates with their keys at that listener, and nothing else."""


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}; it takes a network such as 10.1.2.0/24, or an address") from None


def _pattern(text: str) -> str:
    lower = text.lower()
    if names.broken(lower, NamePolicy.PRIVATE):
        raise click.BadParameter("it takes a host name with A-labels, or *.example.com for all below it")
    return lower


@terminal.command(token, "create")
@click.option("--zone", help="Zone id or name.")
@click.option(
    "--host-pattern",
    "host",
    type=_pattern,
    metavar="HOST",
    help="Only what serves this host, or hosts below *.example.com.",
)
@click.option("--certificate", help="Only the certificate with this id.")
@click.option(
    "--from",
    "networks",
    type=_network,
    metavar="NETWORK",
    multiple=True,
    required=True,
    help="Network that it is taken from; repeatable.",
)
@click.option("--name", help="For lists and the audit log; default: what it opens.")
@click.option("--expires", type=terminal.time, help="Expiry, such as 2029-01-31 or 2029-01-31T12:00:00Z.")
async def token_create(
    services: Services,
    zone: str | None,
    host: str | None,
    certificate: str | None,
    networks: tuple[Network, ...],
    name: str | None,
    expires: datetime | None,
) -> Row:
    """Create a delivery token; its value is shown once."""
    reach, opened = await _reach(services.db, zone, host, certificate)
    services = await terminal.with_peppers(services)
    new = NewToken(reach, name or opened, tuple(dict.fromkeys(networks)), expires)
    created, value = await delivery_tokens.create(services, terminal.operator(), new)
    return {**_row(created), "token": value}


async def _reach(db: Database, zone: str | None, host: str | None, certificate: str | None) -> tuple[Reach, str]:
    """What the options name, and a name for it."""
    if certificate:
        if host:
            raise click.BadParameter("it cannot be combined with --certificate", param_hint="--host-pattern")
        found = await certificates.find(db, certificate)
        if zone and (await zones.find(db, zone)).id != found.zone_id:
            raise click.BadParameter(f"it is not in the zone {zone}", param_hint="--certificate")
        return Reach(found.account_id, found.zone_id, found.id), f"certificate {found.id}"
    if not zone:
        raise click.BadParameter("a token takes --zone or --certificate", param_hint="--zone")
    of_zone = await zones.find(db, zone)
    return Reach(of_zone.account_id, of_zone.id, None, host), host or of_zone.name


@terminal.command(token, "list")
async def token_list(services: Services) -> Sequence[Row]:
    """Show all delivery tokens, without their values."""
    return [_row(each) for each in await delivery_tokens.list_(services.db)]


@terminal.command(token, "revoke", json=False)
@click.argument("token")
async def token_revoke(services: Services, token: str) -> str:
    """Revoke a delivery token, named by its id; within a second it opens nothing."""
    found = await delivery_tokens.find(services.db, token)
    await delivery_tokens.revoke(services.db, terminal.operator(), found)
    return f"revoked the delivery token {found.id.hex}: make new keys for what it has fetched, if it was stolen"


def _row(token: DeliveryToken) -> Row:
    reach = token.reach
    return {
        "id": token.id.hex,
        "name": token.name,
        "zone": reach.zone_id.hex,
        "certificate": str(reach.certificate_id) if reach.certificate_id else None,
        "host_pattern": reach.host,
        "from": [str(network) for network in token.networks],
        "state": token.state(datetime.now(UTC)).value,
        "created_on": terminal.shown(token.created_at),
        "expires_on": terminal.shown(token.expires_at),
    }
