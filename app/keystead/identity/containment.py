"""Whether a token has no more rights than its creator (contract-cloudflare section 7).

Rights are a set of (area, access, scope), and new accounts and zones may be created later. But policies name finitely
many scopes and treat all others alike, so it is enough to compare each named scope, and one unnamed scope of each
account. Pure.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID, uuid4

import msgspec

from keystead.addresses import Network
from keystead.caller import Caller, Role, Scope
from keystead.errors import Problem, Rule
from keystead.identity import permissions, policies


def problems(token: Caller, creator: Caller, zones: Mapping[UUID, UUID]) -> tuple[Problem, ...]:
    """The fields in which `token` would have more rights than `creator`; empty if there are none.

    `zones` maps the zones named by their policies to their accounts.
    """
    bounds = (*_condition_problems(token, creator), *_time_problems(token, creator))
    return (*_policy_problems(token, creator, zones), *bounds)


def _policy_problems(token: Caller, creator: Caller, zones: Mapping[UUID, UUID]) -> list[Problem]:
    if token.user_id is not None:
        # Ignore memberships: both tokens belong to one user, whose memberships limit both alike and may change.
        everywhere = {*token.reach, *zones.values(), *_named_accounts(token), *_named_accounts(creator), uuid4()}
        anywhere = dict.fromkeys(everywhere, Role.ADMINISTRATOR)
        token, creator = (msgspec.structs.replace(each, reach=anywhere) for each in (token, creator))
    wanted, own = permissions.compiled(token), permissions.compiled(creator)
    for scope in _scopes(token.reach, zones):
        beyond = permissions.of(token, wanted, scope) - permissions.of(creator, own, scope)
        if beyond:
            area, access = min(beyond, key=lambda right: (right[0].value, right[1].value))
            what = f"{area.name} {access.name}".lower().replace("_", " ")
            text = f"policies allow {what} on {_named(scope, zones)}, which you may not do yourself."
            return [Problem(Rule.MORE_RIGHTS, "policies", text)]
    return []


def _named(scope: Scope, zones: Mapping[UUID, UUID]) -> str:
    if scope.zone_id is None:
        return f"account {scope.account_id.hex}"
    if scope.zone_id in zones:
        return f"zone {scope.zone_id.hex}"
    return f"other zones of the account {scope.account_id.hex}"


def _named_accounts(caller: Caller) -> set[UUID]:
    targets = [target for policy in caller.policies or () for target in policy.targets]
    return {each for target in targets for each in (target.id, target.within) if each}


def _scopes(accounts: Iterable[UUID], zones: Mapping[UUID, UUID]) -> list[Scope]:
    scopes = [Scope(account, zone) for zone, account in zones.items()]
    for account in accounts:
        scopes += [Scope(account), Scope(account, uuid4())]
    return scopes


Span = tuple[int, int]


def _condition_problems(token: Caller, creator: Caller) -> list[Problem]:
    if creator.condition is None:
        return []
    inner, outer = (_addresses(caller.condition) for caller in (token, creator))
    # If the address is unknown, only tokens without a condition may be used.
    unknown = _unbound(token.condition) and not _unbound(creator.condition)
    if not unknown and not any(_without(inner[version], outer[version]) for version in (4, 6)):
        return []
    text = "condition allows addresses that your own token is not allowed from; give it the same condition, or less."
    return [Problem(Rule.MORE_RIGHTS, "condition", text)]


def _unbound(condition: str | None) -> bool:
    return policies.allowed_from(condition or "{}", None)


def _addresses(condition: str | None) -> dict[int, list[Span]]:
    """The allowed addresses as sorted spans of integers, by IP version."""
    allowed, refused = policies.networks(condition or "{}")
    everything: tuple[Network, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    return {
        version: _without(
            _spans(network for network in allowed or everything if network.version == version),
            _spans(network for network in refused if network.version == version),
        )
        for version in (4, 6)
    }


def _spans(networks: Iterable[Network]) -> list[Span]:
    merged: list[Span] = []
    for first, last in sorted((int(each.network_address), int(each.broadcast_address)) for each in networks):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _without(spans: list[Span], holes: list[Span]) -> list[Span]:
    for begin, end in holes:
        kept = []
        for first, last in spans:
            kept += [(a, b) for a, b in ((first, min(last, begin - 1)), (max(first, end + 1), last)) if a <= b]
        spans = kept
    return spans


def _time_problems(token: Caller, creator: Caller) -> list[Problem]:
    # Only the end matters: the creator is valid already when the token is created.
    ends: datetime | None = creator.expires_on
    if ends is None or (token.expires_on is not None and token.expires_on <= ends):
        return []
    text = f"expires_on must not be after {ends.strftime('%Y-%m-%dT%H:%M:%SZ')}, when your own token ends."
    return [Problem(Rule.MORE_RIGHTS, "expires_on", text)]
