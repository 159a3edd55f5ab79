"""Policies of tokens: Cloudflare's JSON to and from what Caller.may judges, and the address condition beside it.

Contract-cloudflare section 5. The JSON text itself is stored, since clients compare what comes back. Pure.
"""

import ipaddress
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from app.errors import Invalid, NotFound, Problem, Rule, quoted
from app.model import (
    GROUPS,
    Access,
    Account,
    Address,
    Area,
    Effect,
    Group,
    Level,
    Network,
    Policy,
    Target,
    Zone,
)

_ACCOUNT = "com.cloudflare.api.account."
_ZONE = "com.cloudflare.api.account.zone."
_GROUPS_BY_ID = {group.id: group for group in GROUPS}


@lru_cache(maxsize=1024)
def read(text: str) -> tuple[Policy, ...]:
    """Read the policies of a token from the JSON text that we stored."""
    return tuple(
        Policy(
            Effect(policy["effect"]),
            tuple(target for name, value in policy["resources"].items() for target in _targets(name, value)),
            tuple(_GROUPS_BY_ID[UUID(group["id"])] for group in policy["permission_groups"]),
        )
        for policy in json.loads(text)
    )


def _targets(name: str, value: Any) -> tuple[Target, ...]:  # noqa: ANN401 - JSON
    if name.startswith(_ZONE):
        return (Target(Level.ZONE, _id_or_all(name.removeprefix(_ZONE))),)
    account = _id_or_all(name.removeprefix(_ACCOUNT))
    if value == "*":
        return (Target(Level.ACCOUNT, account),)
    return tuple(Target(Level.ZONE, _id_or_all(zone.removeprefix(_ZONE)), within=account) for zone in value)


def _id_or_all(text: str) -> UUID | None:
    return None if text == "*" else UUID(text)


@lru_cache(maxsize=1024)
def _networks(condition: str) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    ip = (json.loads(condition) or {}).get("request_ip") or {}
    allowed, refused = (tuple(map(ipaddress.ip_network, ip.get(key) or ())) for key in ("in", "not_in"))
    return allowed, refused


def allowed_from(condition: str, address: Address | None) -> bool:
    allowed, refused = _networks(condition)
    if address is None:
        return not allowed and not refused
    return (not allowed or any(address in network for network in allowed)) and not any(
        address in network for network in refused
    )


def address_condition(networks: Sequence[str]) -> str | None:
    """Cloudflare's condition that allows only these networks, as JSON text; raises Invalid for one that is none."""
    if not networks:
        return None
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            text = f"{quoted(network)} is not a network such as 10.0.0.0/8: {error}."
            raise Invalid((Problem(Rule.TEXT, "condition", text),)) from None
    return json.dumps({"request_ip": {"in": list(networks)}})


def default_groups(zones: tuple[Zone, ...] = ()) -> tuple[Group, ...]:
    """What a token gets when the operator names no group: everything but handing out private keys.

    A token for certain zones gets the groups of zones only, since those of its account reach every zone.
    """
    if zones:
        return tuple(group for group in GROUPS if group.level is Level.ZONE)
    return tuple(g for g in GROUPS if g.area is not Area.USER_TOKENS and g.access is not Access.ISSUE_KEY)


def find_group(name: str) -> Group:
    """A permission group by its name, ignoring case; raises NotFound that lists them."""
    for group in GROUPS:
        if group.name.lower() == name.lower():
            return group
    known = ", ".join(group.name for group in GROUPS)
    raise NotFound(f"there is no permission group {quoted(name)}; there are {known}")


def write(account: Account, groups: tuple[Group, ...], zones: tuple[Zone, ...] = ()) -> str:
    """Policies as JSON text: account groups on the account, zone groups on these zones or else on all of them.

    Raises Invalid for a group of the account together with zones: it would reach beyond them.
    """
    wide = [group.name for group in groups if zones and group.level is Level.ACCOUNT]
    if wide:
        text = f"{quoted(wide[0])} is a group of the account, which a token for certain zones cannot have."
        raise Invalid((Problem(Rule.TEXT, "groups", text),))
    all_zones: dict[str, object] = {_ACCOUNT + account.id.hex: {_ZONE + "*": "*"}}
    targets: dict[Level, dict[str, object]] = {
        Level.ACCOUNT: {_ACCOUNT + account.id.hex: "*"},
        Level.ZONE: {_ZONE + zone.id.hex: "*" for zone in zones} or all_zones,
    }
    return json.dumps(
        [
            {
                "id": uuid4().hex,
                "effect": "allow",
                "resources": targets[level],
                "permission_groups": [{"id": g.id.hex, "name": g.name} for g in groups if g.level is level],
            }
            for level in Level
            if any(g.level is level for g in groups)
        ]
    )
