"""Token policies and address conditions: between Cloudflare's JSON and the types that Caller.may evaluates.

Contract-cloudflare section 5. The JSON text is stored as sent, because clients compare it. Pure.
"""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

import msgspec

from keystead.addresses import Address, Network
from keystead.caller import GROUPS, Access, Area, Effect, Group, Level, Policy, Target
from keystead.errors import Advice, Hint, Invalid, NotFound, Problem, Rule, quoted
from keystead.identity.accounts import Account
from keystead.identity.zones import Zone
from keystead.ids import hex32

_ACCOUNT = "com.cloudflare.api.account."
_ZONE = "com.cloudflare.api.account.zone."
_GROUPS_BY_ID: Mapping[UUID | None, Group] = {group.id: group for group in GROUPS}
MAX_POLICIES, MAX_GROUPS, MAX_NETWORKS = 50, 50, 100
# Brackets in a condition, which needs four.
MAX_BRACKETS = 100
# Names in all policies of a token; bounded because each of its requests searches them.
MAX_NAMES = 300
# Characters of the stored text; bounded because it is parsed again on use.
MAX_TEXT = 48_000


# Parsed policies to cache; each takes up to twice its text, so 100 kB with MAX_TEXT.
@lru_cache(maxsize=128)
def read(text: str) -> tuple[Policy, ...]:
    """Parse the stored JSON text of a token's policies."""
    return tuple(map(_policy, json.loads(text)))


def _policy(policy: dict[str, Any]) -> Policy:
    effect = Effect(policy["effect"])
    targets = [target for name, value in policy["resources"].items() for target in _targets(name, value)]
    groups = tuple(dict.fromkeys(_GROUPS_BY_ID[UUID(group["id"])] for group in policy["permission_groups"]))
    of_zones = any(group.level is Level.ZONE for group in groups)
    if effect is Effect.ALLOW and of_zones and all(target.level is Level.ACCOUNT for target in targets):
        # Where a policy names accounts alone, its groups of zones are for all zones of these.
        targets += [Target(Level.ZONE, within=account.id) for account in targets]
    return Policy(effect, tuple(targets), groups)


def _targets(name: str, value: Any) -> tuple[Target, ...]:  # noqa: ANN401 - JSON
    if name.startswith(_ZONE):
        return (Target(Level.ZONE, _id_or_all(name.removeprefix(_ZONE))),)
    account = _id_or_all(name.removeprefix(_ACCOUNT))
    if value == "*":
        return (Target(Level.ACCOUNT, account),)
    return tuple(Target(Level.ZONE, _id_or_all(zone.removeprefix(_ZONE)), within=account) for zone in value)


def _id_or_all(text: str) -> UUID | None:
    return None if text == "*" else UUID(text)


@lru_cache(maxsize=128)
def networks(condition: str) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    ip = (json.loads(condition) or {}).get("request_ip") or {}
    allowed, refused = (tuple(map(ipaddress.ip_network, ip.get(key) or ())) for key in ("in", "not_in"))
    return allowed, refused


def is_readable(condition: str) -> bool:
    """Whether a stored condition can be parsed again; a duplicate key may hide a malformed value."""
    # Nested deeper, it depends on the stack of the reader.
    if condition.count("[") + condition.count("{") > MAX_BRACKETS:
        return False
    try:
        json.loads(condition)
    except (ValueError, RecursionError):
        return False
    return True


def allowed_from(condition: str, address: Address | None) -> bool:
    allowed, refused = networks(condition)
    if address is None:
        return not allowed and not refused
    return (not allowed or any(address in network for network in allowed)) and not any(
        address in network for network in refused
    )


def address_condition(networks: Sequence[str]) -> str | None:
    """The condition that allows only these networks, as JSON text; raises Invalid for a bad network."""
    if not networks:
        return None
    if problems := condition_problems({"in": networks}):
        raise Invalid(problems)
    return json.dumps({"request_ip": {"in": list(networks)}})


def condition_problems(lists: Mapping[str, Sequence[str]]) -> tuple[Problem, ...]:
    """The problems of the network lists `in` and `not_in` of a condition; fields are JSON pointers."""
    return tuple(
        Problem(Rule.CONDITION, "condition", text, member=f"request_ip/{key}{pointer}")
        for key, networks in lists.items()
        for pointer, text in _list_problems(key, networks)
    )


def _list_problems(key: str, networks: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(networks) > MAX_NETWORKS:
        yield "", f"{key} has {len(networks)} networks; {MAX_NETWORKS} at most."
        return
    if key == "in" and not networks:
        yield "", "in is empty, so that no address would be allowed; leave it out to allow all."
    for index, network in enumerate(networks):
        if text := _network_problem(network):
            yield f"/{index}", text


def _network_problem(text: str) -> str | None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        # The parser's own message would quote the text at full length.
        reason = "has host bits set; end it in zeros" if "host bits" in str(error) else "is not a network"
        return f"{quoted(text)} {reason}, such as 10.0.0.0/8 or 2001:db8::/32."
    if network.version == 6 and network.subnet_of(_MAPPED):
        return f"{quoted(text)} is IPv4 written as IPv6, which no client has; write it as IPv4."
    if "%" in text:
        return f"{quoted(text)} has a scope, which no client's address has."
    return None


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Draft(msgspec.Struct, frozen=True):
    """A requested policy; `resources` is JSON text, `groups` are ids as sent."""

    effect: str
    resources: str
    groups: tuple[str, ...]
    id: str = ""


# Brackets in the resources of a policy, where names have none: deeper nesting could not be read again.
MAX_NESTED = 5
_NO_VALUE = 'The value of a resource is "*", or zones of an account.'
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_lists = msgspec.json.Decoder(list[msgspec.Raw])


def drafts(text: bytes | str) -> tuple[tuple[Draft, ...], tuple[Problem, ...]]:
    """Parse a JSON list of policies; also returns the problems of its shape."""
    try:
        parts = _lists.decode(text)
        if len(parts) > MAX_POLICIES:
            too_many = f"There are {len(parts)} policies; {MAX_POLICIES} at most."
            return (), (Problem(Rule.POLICY, "policies", too_many),)
        results = [_draft(part) for part in parts]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return (), (Problem(Rule.TEXT, "policies", "policies must be a list of policies."),)
    problems = (
        Problem(Rule.TEXT, "policies", result[1], member=f"{index}{result[0]}")
        for index, result in enumerate(results)
        if not isinstance(result, Draft)
    )
    return tuple(result for result in results if isinstance(result, Draft)), tuple(problems)


def _draft(part: msgspec.Raw) -> Draft | tuple[str, str]:
    """A policy, or the JSON pointer and text of the problem of its shape."""
    policy = msgspec.json.decode(part)
    if not isinstance(policy, dict):
        return "", "A policy must be an object."
    if not isinstance(policy.get("effect"), str):
        return "/effect", "effect must be allow or deny."
    if not isinstance(policy.get("resources"), dict):
        return "/resources", "resources must be an object of names."
    # Of the text, because a duplicate key may hide another value.
    resources = bytes(_objects.decode(part)["resources"]).decode()
    if resources.count("[") > MAX_NESTED or resources.count("{") > MAX_NAMES + 1:
        return "/resources", _NO_VALUE
    groups = policy.get("permission_groups")
    if not isinstance(groups, list):
        return "/permission_groups", "permission_groups must be a list."
    for index, group in enumerate(groups):
        if not isinstance(group, dict) or not isinstance(group.get("id"), str):
            return f"/permission_groups/{index}/id", "A permission group is named by its id."
    policy_id = policy.get("id")
    group_ids = tuple(group["id"] for group in groups)
    return Draft(policy["effect"], resources, group_ids, policy_id if isinstance(policy_id, str) else "")


_NAME = re.compile(r"com\.cloudflare\.api\.account\.(zone\.)?([0-9a-f]{32}|\*)")


def problems(drafts: Sequence[Draft], accounts: frozenset[UUID], zones: Mapping[UUID, UUID]) -> tuple[Problem, ...]:
    """The problems of policies for an owner with access to these accounts; `zones` maps their zones to accounts.

    A resource of another account gets the same problem as one that does not exist.
    """
    if not drafts:
        return (Problem(Rule.POLICY, "policies", "policies is empty; a token needs at least one."),)
    if len(drafts) > MAX_POLICIES:
        return (Problem(Rule.POLICY, "policies", f"There are {len(drafts)} policies; {MAX_POLICIES} at most."),)
    named = [_resources(draft) for draft in drafts]
    names = sum(map(len, map(_all_names, named)))
    if names > MAX_NAMES:
        text = f"The policies name {names} resources; {MAX_NAMES} at most: name an account with all its zones."
        return (Problem(Rule.POLICY, "policies", text),)
    return tuple(
        Problem(Rule.POLICY, "policies", text, member=f"{index}/{pointer}")
        for index, (draft, resources) in enumerate(zip(drafts, named, strict=True))
        for pointer, text in (*_draft_problems(draft, resources), *_resource_problems(resources, accounts, zones))
    )


def _draft_problems(draft: Draft, resources: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The problems of the effect and the groups, each with its JSON pointer."""
    if draft.effect not in set(Effect):
        yield "effect", f"effect {quoted(draft.effect)} is neither allow nor deny."
    if not 1 <= len(draft.groups) <= MAX_GROUPS:
        text = f"permission_groups has {len(draft.groups)} groups; a policy needs 1 to {MAX_GROUPS}."
        yield "permission_groups", text
        return
    levels = _levels(resources)
    if draft.effect == Effect.ALLOW and levels == {Level.ACCOUNT}:
        levels = {*Level}
    for number, group_id in enumerate(draft.groups):
        group, pointer = _GROUPS_BY_ID.get(hex32(group_id)), f"permission_groups/{number}/id"
        if group is None:
            text = f"There is no permission group {quoted(group_id)}; tokens/permission_groups lists them."
            yield pointer, text
        elif group.level not in levels:
            # A policy without effect would be a trap, above all one that denies.
            kind, example = group.level.name.lower(), f"{_ZONE}*" if group.level is Level.ZONE else f"{_ACCOUNT}<id>"
            yield pointer, f"{group.name} is a group of {kind}s, and no resource here is one: add {example}."


def _levels(resources: dict[str, Any]) -> set[Level]:
    return {
        Level.ZONE if name.startswith(_ZONE) or isinstance(value, dict) else Level.ACCOUNT
        for name, value in resources.items()
    }


def advice(drafts: Sequence[Draft]) -> tuple[Advice, ...]:
    """Which of these valid policies give groups of zones on accounts, and so on all zones of them."""
    return tuple(
        Advice(
            Hint.OTHER, "policies", f"{group.name} is a group of zones: it is for all zones of these accounts.", index
        )
        for index, draft in enumerate(drafts)
        if _levels(_resources(draft)) == {Level.ACCOUNT}
        for group in [_GROUPS_BY_ID[UUID(each)] for each in dict.fromkeys(draft.groups)]
        if group.level is Level.ZONE
    )


def _resources(draft: Draft) -> dict[str, Any]:
    try:
        resources = json.loads(draft.resources)
    except (ValueError, RecursionError):
        # A duplicate key may hide a value that another parser rejects.
        return {}
    return resources if isinstance(resources, dict) else {}


def _resource_problems(
    resources: dict[str, Any], accounts: frozenset[UUID], zones: Mapping[UUID, UUID]
) -> Iterator[tuple[str, str]]:
    if not resources:
        yield "resources", "resources is empty; a policy needs at least one."
    for name, value in resources.items():
        pointer = f"resources/{_pointed(name)}"
        match = _NAME.fullmatch(name)
        if match is None or not _known(match, accounts, zones):
            yield pointer, _no_resource(name)
        elif isinstance(value, dict) and not match[1]:
            yield from _nested_problems(pointer, match[2], value, zones)
        elif value != "*":
            yield pointer, _NO_VALUE


def _nested_problems(
    pointer: str, account: str, value: dict[str, Any], zones: Mapping[UUID, UUID]
) -> Iterator[tuple[str, str]]:
    if not value:
        yield pointer, "No zones are named; a policy needs at least one."
    for name, star in value.items():
        match = _NAME.fullmatch(name)
        known = match and match[1] and star == "*" and _known(match, frozenset(), zones)
        if not (match and known and (account == "*" or match[2] == "*" or zones[UUID(match[2])] == UUID(account))):
            yield f"{pointer}/{_pointed(name)}", _no_resource(name)


def _known(match: re.Match[str], accounts: frozenset[UUID], zones: Mapping[UUID, UUID]) -> bool:
    return match[2] == "*" or UUID(match[2]) in (zones if match[1] else accounts)


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _no_resource(name: str) -> str:
    return f'There is no resource {quoted(name)} here, or its value is not "*".'


def zone_ids(drafts: Sequence[Draft]) -> set[UUID]:
    """The ids of the zones that the policies name, existing or not."""
    names = [name for draft in drafts for name in _all_names(_resources(draft))]
    matches = [_NAME.fullmatch(name) for name in names]
    return {UUID(match[2]) for match in matches if match and match[1] and match[2] != "*"}


def _all_names(resources: dict[str, Any]) -> list[str]:
    return [*resources, *(name for value in resources.values() if isinstance(value, dict) for name in value)]


def text(drafts: Sequence[Draft]) -> str:
    """The JSON text of valid policies, to store; `resources` as sent."""
    used: set[str] = set()
    stored: list[dict[str, object]] = []
    for draft in drafts:
        policy_id = draft.id if hex32(draft.id) and draft.id not in used else uuid4().hex
        used.add(policy_id)
        groups = [_GROUPS_BY_ID[UUID(group)] for group in dict.fromkeys(draft.groups)]
        stored.append(
            {
                "id": policy_id,
                "effect": draft.effect,
                "resources": msgspec.Raw(draft.resources.encode()),
                "permission_groups": [{"id": group.id.hex, "name": group.name} for group in groups],
            }
        )
    return msgspec.json.encode(stored).decode()


def default_groups(zones: tuple[Zone, ...] = ()) -> tuple[Group, ...]:
    """The groups of a token for which the operator names none: all except those for tokens and keys.

    A token for certain zones gets zone groups only, because account groups would reach all zones.
    """
    if zones:
        return tuple(group for group in GROUPS if group.level is Level.ZONE)
    return tuple(g for g in GROUPS if g.area is not Area.USER_TOKENS and g.access is not Access.ISSUE_KEY)


def find_group(name: str) -> Group:
    """A permission group by name, case-insensitive; raises NotFound with a list of them."""
    for group in GROUPS:
        if group.name.lower() == name.lower():
            return group
    known = ", ".join(group.name for group in GROUPS)
    raise NotFound(f"there is no permission group {quoted(name)}; there are {known}")


def write(account: Account, groups: tuple[Group, ...], zones: tuple[Zone, ...] = ()) -> str:
    """Policies as JSON text: account groups on the account, zone groups on these zones, by default all.

    Raises Invalid for an account group together with zones, because it would reach beyond them.
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
