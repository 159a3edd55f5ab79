"""All rights of a caller in a scope, precompiled for checking hundreds of scopes; `Caller.may` checks one. Pure."""

from collections.abc import Mapping

import msgspec

from keystead.caller import Access, Area, Caller, Effect, Level, Policy, Role, Scope, Target

Right = tuple[Area, Access]


class Compiled(msgspec.Struct, frozen=True):
    """The rights that the caller's policies allow and deny, by target."""

    allowed: Mapping[Target, frozenset[Right]]
    denied: Mapping[Target, frozenset[Right]]


def compiled(caller: Caller) -> Compiled:
    rights: dict[Effect, dict[Target, frozenset[Right]]] = {effect: {} for effect in Effect}
    for policy in caller.policies or ():
        by_level = {level: _rights(policy, level) for level in Level}
        by_target = rights[policy.effect]
        for target in policy.targets:
            by_target[target] = by_target.get(target, frozenset()) | by_level[target.level]
    return Compiled(rights[Effect.ALLOW], rights[Effect.DENY])


def _rights(policy: Policy, level: Level) -> frozenset[Right]:
    groups = [group for group in policy.groups if group.level is level]
    return frozenset(
        right for right in _ALL for group in groups if group.area is right[0] and policy.means(group, right[1])
    )


def of(caller: Caller, rights: Compiled, scope: Scope) -> set[Right]:
    """All rights for which `caller.may` is true in this scope."""
    role = caller.reach.get(scope.account_id)
    if role is None:
        return set()
    possible = _ALL if role is Role.ADMINISTRATOR else _READING
    if caller.policies is None:
        return set(possible)
    targets = _targets(scope)
    allowed = set[Right]().union(*(rights.allowed.get(target, ()) for target in targets))
    return allowed.intersection(possible).difference(*(rights.denied.get(target, ()) for target in targets))


_ALL = frozenset((area, access) for area in Area for access in Access)
_READING = frozenset((area, Access.READ) for area in Area)


def _targets(scope: Scope) -> list[Target]:
    """All targets of policies that apply to this scope."""
    account, zone = scope.account_id, scope.zone_id
    targets = [Target(Level.ACCOUNT), Target(Level.ACCOUNT, account)]
    if zone is not None:
        targets += [Target(Level.ZONE, id_, within) for id_ in (None, zone) for within in (None, account)]
    return targets
