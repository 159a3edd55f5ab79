"""Which certificates a delivery is to have in its files, and why another is not, or no longer."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

import msgspec

from keystead.ca import revoked
from keystead.certificates import following
from keystead.certificates import store as certificates
from keystead.certificates.model import Certificate, Status
from keystead.delivery.settings import Delivery
from keystead.errors import NotFound
from keystead.identity import zones
from keystead.store.database import Database
from keystead.x509 import chains


class Choice(msgspec.Struct, frozen=True):
    """The certificates to be delivered; for each other one that was looked at, by its id, what is wrong with it.

    `nothing` says why there is none; `places` are the zones that were looked at, with their accounts.
    """

    certificates: tuple[Certificate, ...] = ()
    withheld: dict[UUID, str] = {}
    nothing: str = ""
    places: frozenset[tuple[UUID, UUID]] = frozenset()


def version(certificate: Certificate) -> str:
    """What changes with the chain, and so with the key, which is that of its leaf."""
    return hashlib.sha256(certificate.chain.encode("ascii")).hexdigest()


async def choose(db: Database, delivery: Delivery, now: datetime) -> Choice:
    """What is to be delivered now: nothing that is revoked, has expired, or is not valid yet."""
    try:
        found, places = await _candidates(db, delivery)
    except NotFound as error:
        return Choice(nothing=str(error))
    withheld = {each.id: f"is {each.status(now).value}" for each in found if not lasts(each, now)}
    withheld |= await _revoked(db, found)
    good = [each for each in found if each.id not in withheld]
    if not good:
        of = f"the certificate {delivery.certificate}" if delivery.certificate else "each certificate that fits"
        why = ", ".join(sorted(set(withheld.values()))) or "is not there"
        nothing = f"{of} {why}" if withheld else f"no certificate fits in the zone {delivery.zone}"
        return Choice((), withheld, nothing, places)
    return Choice(tuple(good) if delivery.many else (good[0],), withheld, "", places)


async def _candidates(db: Database, delivery: Delivery) -> tuple[tuple[Certificate, ...], frozenset[tuple[UUID, UUID]]]:
    """Those that fit, the best first: one with the host itself before one with a wildcard, the latest before others."""
    if delivery.certificate:
        found = await certificates.find(db, str(delivery.certificate))
        return (found,), frozenset({(found.account_id, found.zone_id)})
    zone = await zones.find(db, delivery.zone or "")
    all_ = await following.latest(db, zone.account_id, zone.id)
    host = delivery.host
    fitting = [each for each in all_ if host is None or serves(each.hosts, host)]
    fitting.sort(key=lambda each: host not in each.hosts)
    return tuple(fitting), frozenset({(zone.account_id, zone.id)})


def lasts(certificate: Certificate, now: datetime) -> bool:
    """Whether it may be delivered by its times."""
    return certificate.status(now) is Status.ACTIVE


def names_for(host: str) -> tuple[str, str]:
    """The names in a certificate that serve a host, the better one first."""
    return host, f"*.{host.partition('.')[2]}"


def within(host: str, pattern: str) -> bool:
    """Whether a host is that of the pattern, or below its wildcard."""
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def serves(hosts: Iterable[str], wanted: str) -> bool:
    """Whether one of a certificate's hosts is the wanted one, or its wildcard, or below what is wanted with one."""
    return any(host in names_for(wanted) or within(host, wanted) for host in hosts)


async def _revoked(db: Database, found: Iterable[Certificate]) -> dict[UUID, str]:
    """Those of which the leaf, or a CA above it, was revoked by a CA of their account; and those that are damaged."""
    withheld: dict[UUID, str] = {}
    of_accounts: dict[UUID, dict[UUID, frozenset[int]]] = {}
    for each in found:
        try:
            serials = frozenset(certificate.serial_number for certificate in chains.stored(each.chain))
        except ValueError:
            # One damaged row must not stop other deliveries.
            withheld[each.id] = "cannot be read"
        else:
            of_accounts.setdefault(each.account_id, {})[each.id] = serials
    for account_id, serials_of in of_accounts.items():
        withheld |= dict.fromkeys(await revoked_of(db, account_id, serials_of), "was revoked")
    return withheld


async def revoked_of(db: Database, account_id: UUID, serials_of: Mapping[UUID, frozenset[int]]) -> set[UUID]:
    """Those of an account's certificates of which a CA of the account has revoked one of the serial numbers."""
    bad = await revoked.among(db, account_id, sorted(frozenset().union(*serials_of.values())))
    return {id_ for id_, serials in serials_of.items() if serials & bad}
