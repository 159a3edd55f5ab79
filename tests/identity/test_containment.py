"""Whether a token is wider than its maker, against an oracle that tries every place, address and moment there is."""

import ipaddress
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import examples

from keystead.addresses import Address
from keystead.caller import GROUPS, Access, Actor, Area, Caller, Effect, Group, Level, Policy, Role, Scope, Target
from keystead.identity import containment, permissions, policies

A, B, C = (UUID(int=i) for i in (0xA, 0xB, 0xC))
OWNERS = {UUID(int=16 * account.int + i): account for account in (A, B, C) for i in (1, 2)}
# What nobody names, since it was made later: a zone of each account, and an account with a zone.
LATER = UUID(int=0xD)
FRESH = {UUID(int=16 * account.int + 9): account for account in (A, B, C, LATER)}
PLACES = [Scope(each) for each in (A, B, C, LATER)] + [Scope(of, zone) for zone, of in {**OWNERS, **FRESH}.items()]
RIGHTS = [(area, access) for area in Area for access in Access]
USER, MAKER, MADE = (UUID(int=i) for i in (101, 102, 103))

_TARGETS = [
    *(Target(Level.ACCOUNT, each) for each in (A, None, B)),
    *(Target(Level.ZONE, each) for each in (*OWNERS, None)),
    *(Target(Level.ZONE, within=each) for each in (A, B)),
    # A zone within its account, and within one that is not its own, which is nowhere.
    *(Target(Level.ZONE, next(iter(OWNERS)), within=each) for each in (A, B)),
]
# Few enough that tokens meet in what they speak of.
_COMMON = [group for group in GROUPS if group.area is Area.SSL]
_TARGET_SETS = [*itertools.combinations(_TARGETS, 1), *itertools.combinations(_TARGETS, 2)]
_GROUP_SETS = [*(4 * [*itertools.combinations(_COMMON, 1)]), *itertools.combinations(GROUPS, 2), GROUPS]
_EFFECTS = (Effect.ALLOW, Effect.DENY, Effect.ALLOW)


@cache
def _policy_of(number: int) -> Policy:
    # One number a policy, since to draw each part of it takes Hypothesis longer than to judge the whole.
    number, effect = divmod(number, len(_EFFECTS))
    targets, groups = divmod(number, len(_GROUP_SETS))
    return Policy(_EFFECTS[effect], _TARGET_SETS[targets], _GROUP_SETS[groups])


_policy = st.integers(0, len(_EFFECTS) * len(_GROUP_SETS) * len(_TARGET_SETS) - 1).map(_policy_of)
_policies = st.lists(_policy, min_size=1, max_size=4).map(tuple)

NETWORKS = [
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.1.0.0/16",
    "11.0.0.0/8",
    "0.0.0.0/0",
    "255.255.255.255/32",
    "2001:db8::/32",
    "2001:db8::/33",
    "2001:db8:8000::/33",
    "::/0",
    "::/104",
]


def _edges() -> list[Address | None]:
    found: set[Address] = set()
    for network in map(ipaddress.ip_network, NETWORKS):
        kind = type(network.network_address)
        for edge in (int(network.network_address), int(network.broadcast_address)):
            near = range(max(edge - 1, 0), min(edge + 2, 2**network.max_prefixlen))
            found |= {kind(number) for number in near}
    return [None, *found]


# Within these bounds all addresses are alike to a condition of these networks, so these stand for all of them.
ADDRESSES = _edges()
_lists = st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=4)
_bound = st.fixed_dictionaries(
    {"in": st.one_of(_lists, st.none())}, optional={"not_in": st.one_of(_lists, st.none(), st.just([]))}
).map(lambda lists: json.dumps({"request_ip": lists}))
_unbound = st.sampled_from([None, "{}", '{"request_ip": null}', '{"request_ip": {}}'])
_conditions = st.one_of(_bound, _bound, _bound, _unbound)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
_ends = st.one_of(st.none(), st.integers(0, 3).map(lambda hours: NOW + timedelta(hours=hours)))
_roles = st.sampled_from(list(Role))
_reach = st.dictionaries(st.sampled_from([A, B, C]), _roles)


Bounds = tuple[tuple[Policy, ...], str | None, datetime | None]
_bounds = st.tuples(_policies, _conditions, _ends)


def _denied(policy: Policy) -> Policy:
    return msgspec.structs.replace(policy, effect=Effect.DENY)


Policies = tuple[Policy, ...]
# What somebody who has read its own policies may ask for: a part, a little else beside, or the same.
_EDITS: list[Callable[[Policies, Policies, int], Policies]] = [
    lambda own, other, bits: tuple(other[0] if i == bits % len(own) else each for i, each in enumerate(own)),
    lambda own, other, bits: tuple(each for i, each in enumerate(own) if bits >> i & 1),
    lambda own, other, bits: own + other[:1],
    lambda own, other, bits: own + tuple(map(_denied, other)),
    lambda own, other, bits: other,
    lambda own, other, bits: own,
]
_edits = st.tuples(st.sampled_from(_EDITS), st.integers(0, 15), st.booleans(), st.booleans(), _bounds)
Edit = tuple[Callable[[Policies, Policies, int], Policies], int, bool, bool, Bounds]


def _made_by(maker: Caller, edit: Edit, account_id: UUID | None) -> Caller:
    change, bits, other_condition, other_end, (other, condition, end) = edit
    return Caller(
        Actor.TOKEN,
        MADE,
        {account_id: Role.ADMINISTRATOR} if account_id else maker.reach,
        change(maker.policies, other, bits) if maker.policies else other,
        account_id=account_id,
        user_id=None if account_id else USER,
        condition=condition if other_condition else maker.condition,
        expires_on=end if other_end else maker.expires_on,
    )


def _token(
    caller_id: UUID,
    reach: Mapping[UUID, Role],
    bounds: Bounds,
    account_id: UUID | None = None,
    user_id: UUID | None = None,
) -> Caller:
    chosen, condition, end = bounds
    fields: dict[str, Any] = {"account_id": account_id, "user_id": user_id, "condition": condition, "expires_on": end}
    return Caller(Actor.TOKEN, caller_id, reach, chosen, **fields)


_of_account = _bounds.map(lambda bounds: _token(MAKER, {A: Role.ADMINISTRATOR}, bounds, account_id=A))
_of_user = st.tuples(_reach, _bounds).map(lambda each: _token(MAKER, *each, user_id=USER))
_global_key = _reach.map(lambda reach: Caller(Actor.USER, USER, reach, user_id=USER))


def _administering(caller: Caller) -> Caller:
    """Nobody else gets as far as making tokens of the account."""
    return msgspec.structs.replace(caller, reach={**caller.reach, A: Role.ADMINISTRATOR})


Pair = tuple[Caller, Caller]
# A token of an account, and who would make it: a token of the account, or of one of its users.
_for_account: st.SearchStrategy[Pair] = st.tuples(
    st.one_of(_of_account, _of_account, _of_user.map(_administering)), _edits
).map(lambda each: (_made_by(*each, A), each[0]))
# A user's token, and the token of the same user that would make it.
_for_user: st.SearchStrategy[Pair] = st.tuples(_of_user, _edits).map(lambda each: (_made_by(*each, None), each[0]))


def named(*callers: Caller) -> dict[UUID, UUID]:
    """Whose the zones are that somebody names, which is all that the caller of `problems` looks up."""
    targets = [target for each in callers for policy in each.policies or () for target in policy.targets]
    ids = {target.id for target in targets if target.level is Level.ZONE}
    return {zone: owner for zone, owner in OWNERS.items() if zone in ids}


def fields(made: Caller, maker: Caller, zones: Mapping[UUID, UUID] | None = None) -> set[str]:
    problems = containment.problems(made, maker, named(made, maker) if zones is None else zones)
    return {problem.field for problem in problems}


def everywhere(caller: Caller, role: Role = Role.ADMINISTRATOR) -> Caller:
    return msgspec.structs.replace(caller, reach=dict.fromkeys((A, B, C, LATER), role))


def may_more(made: Caller, maker: Caller, places: Iterable[Scope] = PLACES) -> bool:
    return any(made.may(*right, place) and not maker.may(*right, place) for place in places for right in RIGHTS)


def let_in(caller: Caller, address: Address | None) -> bool:
    return caller.condition is None or policies.allowed_from(caller.condition, address)


def oracle(made: Caller, maker: Caller) -> set[str]:
    """In which fields a token is wider, by trying everything."""
    wider = set()
    # The memberships of a user change, for both at once: so what counts is what both may where the user is everything.
    judged = (everywhere(made), everywhere(maker)) if made.user_id else (made, maker)
    if may_more(*judged):
        wider.add("policies")
    if any(let_in(made, address) and not let_in(maker, address) for address in ADDRESSES):
        wider.add("condition")
    if any(_alive(made, moment) and not _alive(maker, moment) for moment in _MOMENTS):
        wider.add("expires_on")
    return wider


_MOMENTS = [NOW + timedelta(minutes=30 * i) for i in range(-2, 10)]


def _alive(caller: Caller, moment: datetime) -> bool:
    return caller.expires_on is None or moment < caller.expires_on


@examples(200)
@given(_for_account)
def test_an_accounts_token_is_refused_exactly_when_it_is_wider(pair: Pair) -> None:
    """Each field is a problem if and only if some place, address or moment is open to the token and not its maker."""
    assert fields(*pair) == oracle(*pair)


@examples(200)
@given(_for_user)
def test_a_users_token_is_refused_exactly_when_it_is_wider(pair: Pair) -> None:
    """As for an account's, and wherever the user may come to be a member."""
    assert fields(*pair) == oracle(*pair)


@examples(60)
@given(_global_key, _bounds)
def test_a_global_key_bounds_by_the_roles_of_its_user_alone(key: Caller, bounds: Bounds) -> None:
    """A user's own token may be anything, and a token of an account what the user may there."""
    assert fields(_token(MADE, key.reach, bounds, user_id=USER), key) == set()
    made = _token(MADE, {A: Role.ADMINISTRATOR}, bounds, account_id=A)
    assert fields(made, key) == oracle(made, key)
    assert fields(made, _administering(key)) == set()


def _half(text: str) -> str:
    return json.dumps({"request_ip": {"in": [text, "10.128.0.0/9"]}})


@examples(300)
@given(_conditions, _bound)
@example(_half("10.0.0.0/8"), _half("10.0.0.0/9"))
@example(_half("10.0.0.0/9"), json.dumps({"request_ip": {"in": ["10.0.0.0/8"]}}))
@example(
    json.dumps({"request_ip": {"in": ["10.0.0.0/8"]}}),
    json.dumps({"request_ip": {"in": ["10.0.0.0/8", "10.1.0.0/16"]}}),
)
@example(None, json.dumps({"request_ip": {"in": ["0.0.0.0/0", "::/0"]}}))
@example(json.dumps({"request_ip": {"in": ["10.0.0.0/8"], "not_in": ["10.0.0.0/9"]}}), _half("11.0.0.0/8"))
def test_a_condition_is_wider_exactly_when_an_address_is(made: str | None, maker: str) -> None:
    """It is no matter how networks are cut, joined or excluded; an unknown address counts as one."""
    one, other = (_token(MADE, {A: Role.ADMINISTRATOR}, ((), each, None), account_id=A) for each in (made, maker))
    assert fields(one, other) == oracle(one, other)


@examples(100)
@given(st.one_of(_of_account, _of_user))
def test_a_token_is_not_wider_than_itself(caller: Caller) -> None:
    """Any token may make one like itself, and roll itself."""
    assert fields(caller, caller) == set()


@examples(150)
@given(st.one_of(_of_account, _of_user), _edits, _edits)
def test_no_chain_of_makers_widens(first: Caller, edit: Edit, again: Edit) -> None:
    """What a token makes that another made is, field by field, no wider than the first."""
    second = _made_by(first, edit, first.account_id)
    third = _made_by(second, again, first.account_id)
    kept = {"policies", "condition", "expires_on"} - fields(second, first) - fields(third, second)
    assert not kept & fields(third, first)


@examples(100)
@given(st.one_of(_of_account, _of_user, _global_key))
def test_rights_are_what_the_caller_may(caller: Caller) -> None:
    """All that is said of one place at once is what is said of each permission in it."""
    compiled = permissions.compiled(caller)
    for place in PLACES:
        assert permissions.of(caller, compiled, place) == {r for r in RIGHTS if caller.may(*r, place)}


@examples(120)
@given(st.one_of(_for_account, _for_user), st.dictionaries(st.sampled_from([A, B, C, LATER]), _roles))
def test_what_comes_later_widens_nothing(pair: Pair, joined: dict[UUID, Role]) -> None:
    """A token that is not wider stays so when zones, accounts and memberships are added, changed or taken away."""
    made, maker = pair
    if "policies" in fields(made, maker):
        return
    for zones in ({}, OWNERS, {**OWNERS, **FRESH}):
        assert "policies" not in fields(made, maker, {**named(made, maker), **zones})
    if made.user_id:
        # Both act by the memberships of one user, so they change for both.
        made, maker = (msgspec.structs.replace(each, reach=joined) for each in (made, maker))
    elif maker.user_id:
        maker = msgspec.structs.replace(maker, reach={**joined, A: Role.ADMINISTRATOR})
    assert "policies" not in fields(made, maker)
    assert not may_more(made, maker)


def _group(name: str) -> Group:
    return policies.find_group(name)


SSL_READ, SSL_WRITE = _group("SSL and Certificates Read"), _group("SSL and Certificates Write")
OF_ACCOUNT = _group("Account: SSL and Certificates Write")
A1, A2 = (UUID(int=16 * A.int + i) for i in (1, 2))
ALL_OF_A, OF_ALL, ONE, TWO = (
    Target(Level.ZONE, within=A),
    Target(Level.ZONE),
    Target(Level.ZONE, A1),
    Target(Level.ZONE, A2),
)


def _allow(*targets: Target, groups: tuple[Group, ...] = (SSL_WRITE,)) -> Policy:
    return Policy(Effect.ALLOW, targets, groups)


def _on(account: UUID | None) -> Policy:
    return _allow(Target(Level.ACCOUNT, account), groups=(OF_ACCOUNT,))


def _deny(*targets: Target, groups: tuple[Group, ...] = (SSL_WRITE,)) -> Policy:
    return Policy(Effect.DENY, targets, groups)


@pytest.mark.parametrize(
    ("made", "maker", "wider"),
    [
        # The same in other words.
        ([_allow(ALL_OF_A)], [_allow(OF_ALL)], False),
        ([_allow(OF_ALL)], [_allow(ALL_OF_A)], False),
        ([_allow(ONE)], [_allow(Target(Level.ACCOUNT, A), groups=(OF_ACCOUNT,))], False),
        ([_allow(Target(Level.ACCOUNT))], [_allow(ONE)], False),
        # All zones are not the account itself.
        ([_allow(Target(Level.ACCOUNT, A), groups=(OF_ACCOUNT,))], [_allow(OF_ALL)], True),
        # Zones one by one are not all zones, since more may come.
        ([_allow(ALL_OF_A)], [_allow(ONE, TWO)], True),
        ([_allow(ONE, TWO)], [_allow(ALL_OF_A)], False),
        ([_allow(ALL_OF_A), _deny(ONE)], [_allow(ALL_OF_A), _deny(TWO)], True),
        ([_allow(ALL_OF_A), _deny(ONE, TWO)], [_allow(ALL_OF_A), _deny(TWO)], False),
        # What is denied anyway may be allowed on paper.
        ([_allow(ALL_OF_A), _deny(OF_ALL, groups=(SSL_READ,))], [_allow(ONE, groups=(SSL_READ,))], False),
        ([_allow(ALL_OF_A), _deny(OF_ALL, groups=(SSL_READ,))], [_deny(ONE)], False),
        ([_allow(ALL_OF_A), _deny(OF_ALL)], [_deny(ONE)], True),
        # To be denied writing leaves reading, and to be denied reading leaves nothing.
        ([_allow(ONE)], [_allow(ONE), _deny(ONE)], True),
        ([_allow(ONE, groups=(SSL_READ,))], [_allow(ONE), _deny(ONE)], False),
        ([_allow(ONE, groups=(SSL_READ,))], [_allow(ONE), _deny(ONE, groups=(SSL_READ,))], True),
        # A zone of another account is nowhere here.
        ([_allow(Target(Level.ZONE, UUID(int=16 * B.int + 1)))], [_allow(ONE)], False),
        ([_allow(Target(Level.ZONE, A1, B))], [_deny(ONE)], False),
    ],
)
def test_policies_are_compared_by_what_they_mean(made: list[Policy], maker: list[Policy], wider: bool) -> None:
    """Other words for the same, or for less, are not wider; what may come to be more is."""
    reach = {A: Role.ADMINISTRATOR}
    one, other = (_token(MADE, reach, (tuple(each), None, None), account_id=A) for each in (made, maker))
    assert fields(one, other) == oracle(one, other) == ({"policies"} if wider else set())


@pytest.mark.parametrize(
    ("made", "maker", "wider"),
    [
        ([_on(None)], [_on(A)], True),
        ([_on(A)], [_on(None)], False),
        ([_on(None)], [_on(None), msgspec.structs.replace(_on(B), effect=Effect.DENY)], True),
        ([_on(None), msgspec.structs.replace(_on(B), effect=Effect.DENY)], [_on(None)], False),
        ([_on(B)], [_on(A)], True),
        ([_allow(Target(Level.ZONE, UUID(int=16 * B.int + 1)))], [_allow(ALL_OF_A)], True),
        ([_allow(Target(Level.ZONE, UUID(int=16 * B.int + 1)))], [_allow(OF_ALL)], False),
    ],
)
def test_a_users_tokens_are_compared_wherever_the_user_may_be(
    made: list[Policy], maker: list[Policy], wider: bool
) -> None:
    """A user who is in one account may join others, so a token for that one cannot make one for more."""
    reach = {A: Role.ADMINISTRATOR}
    one, other = (_token(MADE, reach, (tuple(each), None, None), user_id=USER) for each in (made, maker))
    assert fields(one, other) == oracle(one, other) == ({"policies"} if wider else set())


# Policies to and from their text.

ACCOUNT, ZONE = "com.cloudflare.api.account.", "com.cloudflare.api.account.zone."


def _name(prefix: str, id_: UUID | None) -> str:
    return prefix + (id_.hex if id_ else "*")


@st.composite
def _written(draw: st.DrawFn) -> tuple[dict[str, Any], Policy]:
    """A policy as JSON, and what it is."""
    resources: dict[str, Any] = {}
    targets: list[Target] = []
    for account in draw(st.lists(st.sampled_from([A, B, None]), max_size=3, unique=True)):
        below = [zone for zone, owner in OWNERS.items() if account in (None, owner)]
        inner = draw(st.lists(st.sampled_from([None, *below]), max_size=3, unique=True))
        if inner:
            resources[_name(ACCOUNT, account)] = {_name(ZONE, zone): "*" for zone in inner}
            targets += [Target(Level.ZONE, zone, account) for zone in inner]
        else:
            resources[_name(ACCOUNT, account)] = "*"
            targets.append(Target(Level.ACCOUNT, account))
    for zone in draw(
        st.lists(st.sampled_from([None, *OWNERS]), min_size=0 if resources else 1, max_size=3, unique=True)
    ):
        resources[_name(ZONE, zone)] = "*"
        targets.append(Target(Level.ZONE, zone))
    levels = {target.level for target in targets}
    fitting = [group for group in GROUPS if group.level in levels]
    groups = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=4, unique=True))
    effect = draw(st.sampled_from(_EFFECTS))
    written: dict[str, Any] = {
        "effect": effect.value,
        "resources": resources,
        "permission_groups": [{"id": group.id.hex} for group in groups],
    }
    policy_id = draw(st.sampled_from([None, "0" * 32, "1" * 32, "F" * 32, "short", 7]))
    if policy_id is not None:
        written["id"] = policy_id
    return written, Policy(effect, tuple(targets), tuple(groups))


@examples(80)
@given(st.lists(_written(), min_size=1, max_size=4), st.sampled_from([None, 1, 3]))
def test_stored_policies_read_back_as_they_were_meant(pairs: list[tuple[Any, Policy]], indent: int | None) -> None:
    """Text that is sent, kept and read is the same policies, with the resources in their own words and distinct ids."""
    sent = json.dumps([written for written, _ in pairs], indent=indent)
    drafts, misshapen = policies.drafts(sent)
    assert misshapen == ()
    assert policies.problems(drafts, frozenset((A, B)), OWNERS) == ()
    kept = policies.text(drafts)
    assert policies.read(kept) == tuple(policy for _, policy in pairs)
    ids = [each["id"] for each in json.loads(kept)]
    assert len(set(ids)) == len(ids)
    for each in json.loads(kept):
        assert [g["name"] for g in each["permission_groups"]] == [_named(g["id"]) for g in each["permission_groups"]]
    for draft, (written, _) in zip(drafts, pairs, strict=True):
        assert draft.resources in kept
        assert draft.resources in sent
        assert json.loads(draft.resources) == written["resources"]
    # What an SDK read and sends back stays what it is, the ids included.
    again, _ = policies.drafts(kept)
    assert policies.text(again) == kept
    assert [draft.id for draft in again] == ids


def _named(group_id: str) -> str:
    [name] = [group.name for group in GROUPS if group.id.hex == group_id]
    return name


_odd_names = st.one_of(
    st.builds(_name, st.sampled_from([ACCOUNT, ZONE]), st.sampled_from([None, A, B, C, *OWNERS])),
    st.sampled_from(
        ["", ACCOUNT, ZONE, ACCOUNT + "zone", ACCOUNT + A.hex + "\n", ZONE + "**", "com.cloudflare.edge.*"]
    ),
)
_odd_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(["*", "*", "", None, 1, True, [], "**"]),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_odd_names, inner, max_size=2)),
    max_leaves=4,
)
_odd_groups = st.one_of(
    st.builds(lambda g: {"id": g.id.hex}, st.sampled_from(GROUPS)),
    st.sampled_from([{}, None, {"id": ""}, {"id": 1}, {"id": "0" * 32}, {"id": SSL_READ.id.hex.upper()}]),
)
_odd_policies = st.fixed_dictionaries(
    {
        "effect": st.sampled_from(["allow", "allow", "deny", "Allow", "", None]),
        "resources": st.one_of(st.dictionaries(_odd_names, _odd_values, max_size=3), _odd_values),
        "permission_groups": st.one_of(st.lists(_odd_groups, max_size=3), st.none()),
    }
)


@examples(150)
@given(st.lists(st.one_of(_odd_policies, _written().map(lambda pair: pair[0])), max_size=3))
def test_whatever_is_let_through_can_be_read(sent: list[Any]) -> None:
    """Policies are refused, or are read again, and speak only of what their owner reaches."""
    drafts, misshapen = policies.drafts(json.dumps(sent))
    within = {zone: owner for zone, owner in OWNERS.items() if owner in (A, B)}
    if misshapen or policies.problems(drafts, frozenset((A, B)), within):
        return
    read = policies.read(policies.text(drafts))
    assert len(read) == len(sent)
    for target in (target for policy in read for target in policy.targets):
        assert target.id in ({None, A, B} if target.level is Level.ACCOUNT else {None, *within})
        assert target.within in (None, A, B)
        assert None in (target.id, target.within) or within[target.id or A] == target.within
