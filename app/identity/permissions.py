"""All rights of a caller in a scope, precompiled for checking hundreds of scopes; `Caller.may` checks one. Pure."""

from collections.abc import Mapping

import msgspec

from app.caller import Access, Area, Caller, Effect, Level, Policy, Role, Scope, Target

Right = tuple[Area, Access]
Said = Mapping[Target, frozenset[Right]]


class Compiled(msgspec.Struct, frozen=True):
    """The rights that the caller's policies allow and deny, by target."""

    allowed: Said
    denied: Said


def compiled(caller: Caller) -> Compiled:
    rights: dict[Effect, dict[Target, frozenset[Right]]] = {effect: {} for effect in Effect}
    for policy in caller.policies or ():
        about = {level: _rights(policy, level) for level in Level}
        of_effect = rights[policy.effect]
        for target in policy.targets:
            of_effect[target] = of_effect.get(target, frozenset()) | about[target.level]
    return Compiled(rights[Effect.ALLOW], rights[Effect.DENY])


def _rights(policy: Policy, level: Level) -> frozenset[Right]:
    groups = [group for group in policy.groups if group.level is level]
    return frozenset(
        (area, access)
        for area in Area
        for access in Access
        if any(group.area is area and policy.means(group, access) for group in groups)
    )


def of(caller: Caller, said: Compiled, scope: Scope) -> set[Right]:
    """All rights for which `caller.may` is true in this scope."""
    role = caller.reach.get(scope.account_id)
    if role is None:
        return set()
    possible = _ALL if role is Role.ADMINISTRATOR else _READING
    if caller.policies is None:
        return set(possible)
    targets = _targets(scope)
    allowed = set[Right]().union(*(said.allowed.get(target, ()) for target in targets))
    return allowed.intersection(possible).difference(*(said.denied.get(target, ()) for target in targets))


_ALL = frozenset((area, access) for area in Area for access in Access)
_READING = frozenset((area, Access.READ) for area in Area)


def _targets(scope: Scope) -> list[Target]:
    """All targets of policies that apply to this scope."""
    account, zone = scope.account_id, scope.zone_id
    targets = [Target(Level.ACCOUNT), Target(Level.ACCOUNT, account)]
    if zone is not None:
        targets += [Target(Level.ZONE, id_, within) for id_ in (None, zone) for within in (None, account)]
    return targets
