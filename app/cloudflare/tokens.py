"""`/user/tokens` and `/accounts/{account_id}/tokens`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post, put

from app.caller import GROUPS, Access, Area, Group, Level
from app.cloudflare import gate, reading, wire
from app.cloudflare.wire import AnyRequest, Item, Refused
from app.errors import Advice, Invalid, Problem, Rule, Unauthenticated, quoted
from app.identity import admission, delegation, policies
from app.identity.admission import TokenCredential, Verification
from app.identity.delegation import Owner
from app.identity.tokens import Token, TokenStatus
from app.store.paging import Direction

_LIST, _ONE = "/accounts/{account_id:str}/tokens", "/accounts/{account_id:str}/tokens/{token_id:str}"
_USER_LIST, _USER_ONE = "/user/tokens", "/user/tokens/{token_id:str}"
_READ = {"needs": (Area.ACCOUNT_TOKENS, Access.READ)}
_WRITE = {"needs": (Area.ACCOUNT_TOKENS, Access.WRITE), "anew": True}
PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE = 20, 5, 50
_SCOPES = {Level.ACCOUNT: "com.cloudflare.api.account", Level.ZONE: "com.cloudflare.api.account.zone"}


class PermissionGroup(msgspec.Struct, frozen=True):
    id: str
    name: str
    scopes: tuple[str, ...]


class TokenObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token as the SDKs read it; what is unset is absent. `value` is there once, when it is made."""

    id: str
    name: str
    status: TokenStatus
    issued_on: str
    modified_on: str
    policies: msgspec.Raw
    condition: msgspec.Raw | None = None
    expires_on: str | None = None
    not_before: str | None = None
    value: str | None = None

    def __repr__(self) -> str:
        return f"TokenObject({self.id})"


class DeletedToken(msgspec.Struct, frozen=True):
    id: str


class Verified(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    status: TokenStatus
    not_before: str | None = None
    expires_on: str | None = None


@post(_LIST, opt=_WRITE, status_code=200)
async def create(request: AnyRequest) -> Response[bytes]:
    return await _create(request, Owner(account_id=wire.scope(request).account_id))


@get(_LIST, opt=_READ)
async def list_(request: AnyRequest) -> Response[bytes]:
    return await _list(request, Owner(account_id=wire.scope(request).account_id))


@get(_ONE, opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    return await _get(request, Owner(account_id=wire.scope(request).account_id))


@put(_ONE, opt=_WRITE)
async def update(request: AnyRequest) -> Response[bytes]:
    return await _update(request, Owner(account_id=wire.scope(request).account_id))


@put(_ONE + "/value", opt=_WRITE)
async def roll(request: AnyRequest) -> Response[bytes]:
    return await _roll(request, Owner(account_id=wire.scope(request).account_id))


@delete(_ONE, opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    return await _delete(request, Owner(account_id=wire.scope(request).account_id))


@get(_LIST + "/permission_groups", opt=_READ)
async def permission_groups(request: AnyRequest) -> Response[bytes]:
    return _permission_groups(request)


@post(_USER_LIST, status_code=200)
async def create_of_user(request: AnyRequest) -> Response[bytes]:
    return await _create(request, await _user(request, Access.WRITE))


@get(_USER_LIST)
async def list_of_user(request: AnyRequest) -> Response[bytes]:
    return await _list(request, await _user(request, Access.READ))


@get(_USER_ONE)
async def get_of_user(request: AnyRequest) -> Response[bytes]:
    return await _get(request, await _user(request, Access.READ))


@put(_USER_ONE)
async def update_of_user(request: AnyRequest) -> Response[bytes]:
    return await _update(request, await _user(request, Access.WRITE))


@put(_USER_ONE + "/value")
async def roll_of_user(request: AnyRequest) -> Response[bytes]:
    return await _roll(request, await _user(request, Access.WRITE))


@delete(_USER_ONE, status_code=200)
async def delete_of_user(request: AnyRequest) -> Response[bytes]:
    return await _delete(request, await _user(request, Access.WRITE))


@get(_USER_LIST + "/permission_groups")
async def permission_groups_of_user(request: AnyRequest) -> Response[bytes]:
    await _user(request, Access.READ)
    return _permission_groups(request)


@get("/user/tokens/verify")
async def verify_of_user(request: AnyRequest) -> Response[bytes]:
    return await _verify(request, None)


@get(_LIST + "/verify")
async def verify(request: AnyRequest) -> Response[bytes]:
    return await _verify(request, gate.place(request.path_params, wire.visit(request)).id)


IN_ACCOUNT: list[Any] = [create, list_, get_, update, roll, delete_, permission_groups]
OF_USER: list[Any] = [
    *(create_of_user, list_of_user, get_of_user, update_of_user, roll_of_user, delete_of_user),
    permission_groups_of_user,
]
UNGUARDED: list[Any] = [verify_of_user, verify]


async def _user(request: AnyRequest, access: Access) -> Owner:
    return await delegation.of_user(wire.house(request).db, wire.caller(request), access)


async def _create(request: AnyRequest, owner: Owner) -> Response[bytes]:
    house, raw = wire.house(request), await wire.body(request)
    once = wire.idempotency(request, raw)
    draft, advice = decode(raw, updating=False)
    token, value = await delegation.create(house.db, house.peppers, wire.caller(request), owner, draft, once)
    return wire.answers(request).success(_object(token, value), advice=advice)


async def _list(request: AnyRequest, owner: Owner) -> Response[bytes]:
    known = frozenset({"page", "per_page", "direction", "include_expired"})
    values = reading.known_values(request.scope["query_string"], known)
    page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    expired = reading.one_of(values, "include_expired", ("true", "false")) == "true"
    query = delegation.Query(page, per_page, reading.direction_of(values, Direction.ASC), expired)
    found = await delegation.list_(wire.house(request).db, owner, query)
    info = wire.page_info(len(found.items), page, per_page, found.total)
    return wire.answers(request).success([_object(token) for token in found.items], info=info)


async def _get(request: AnyRequest, owner: Owner) -> Response[bytes]:
    token = await delegation.get(wire.house(request).db, owner, _token_id(request))
    return wire.answers(request).success(_object(token))


async def _update(request: AnyRequest, owner: Owner) -> Response[bytes]:
    token_id = _token_id(request)
    draft, advice = decode(await wire.body(request), updating=True)
    token = await delegation.update(wire.house(request).db, wire.caller(request), owner, token_id, draft)
    return wire.answers(request).success(_object(token), advice=advice)


async def _roll(request: AnyRequest, owner: Owner) -> Response[bytes]:
    token_id, house = _token_id(request), wire.house(request)
    # Nothing is asked in it, and clients send what they like: no body, an empty object, or null.
    await wire.body(request)
    value = await delegation.roll(house.db, house.peppers, wire.caller(request), owner, token_id)
    return wire.answers(request).success(value)


async def _delete(request: AnyRequest, owner: Owner) -> Response[bytes]:
    token_id = _token_id(request)
    await delegation.delete(wire.house(request).db, wire.caller(request), owner, token_id)
    return wire.answers(request).success(DeletedToken(token_id.hex))


def _token_id(request: AnyRequest) -> UUID:
    return gate.id_of(request.path_params["token_id"], wire.visit(request))


def _permission_groups(request: AnyRequest) -> Response[bytes]:
    values = reading.known_values(request.scope["query_string"], frozenset({"name", "scope"}))
    groups = [_group(group) for group in GROUPS]
    wanted = [
        group
        for group in groups
        if values.get("name") in (None, group.name) and ("scope" not in values or values["scope"] in group.scopes)
    ]
    info = wire.page_info(len(wanted), 1, len(groups), len(wanted))
    return wire.answers(request).success(wanted, info=info)


def _group(group: Group) -> PermissionGroup:
    return PermissionGroup(group.id.hex, group.name, (_SCOPES[group.level],))


def _object(token: Token, value: str | None = None) -> TokenObject:
    return TokenObject(
        id=token.id.hex,
        name=token.name,
        status=token.status_at(datetime.now(UTC)),
        issued_on=wire.instant(token.issued_on),
        modified_on=wire.instant(token.modified_on),
        policies=msgspec.Raw(token.policies.encode()),
        condition=msgspec.Raw(token.condition.encode()) if token.condition else None,
        expires_on=_time(token.expires_on),
        not_before=_time(token.not_before),
        value=value,
    )


def _time(time: datetime | None) -> str | None:
    """As it is mostly sent: without a fraction of a second that nobody gave."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None


_FIELDS = frozenset({"name", "policies", "condition", "expires_on", "not_before"})
_ANSWERED = frozenset({"id", "issued_on", "modified_on", "last_used_on", "value"})


def decode(raw: bytes, *, updating: bool) -> tuple[delegation.Draft, tuple[Advice, ...]]:
    """Read a token that is asked for; what has the wrong shape stands in `malformed`, and the core judges the rest."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        raise Invalid((fields,))
    problems: list[Problem] = []
    try:
        texts = _texts(raw)
    except msgspec.DecodeError:
        raise Invalid((Problem(Rule.BODY, "", "The body is not JSON."),)) from None
    condition = bytes(texts["condition"]).decode() if fields.get("condition") is not None else None
    if condition is not None and not policies.is_readable(condition):
        problems.append(Problem(Rule.CONDITION, "condition", "condition cannot be read; give each key once."))
    draft = delegation.Draft(
        name=reading.required_text(fields, "name", problems),
        policies=_policies(fields, texts, problems),
        condition=condition,
        networks=_networks(fields.get("condition"), problems),
        not_before=reading.time_of(fields, "not_before", problems),
        expires_on=reading.time_of(fields, "expires_on", problems),
        status=_status(fields, problems) if updating else None,
        malformed=tuple(problems),
    )
    known = _FIELDS | {"status"} | _ANSWERED if updating else _FIELDS
    return draft, reading.ignored(fields, known, "a token")


def _texts(raw: bytes) -> dict[str, msgspec.Raw]:
    # The text of resources and condition is kept as it was sent, since clients compare what comes back.
    return {name: msgspec.Raw(bytes(text)) for name, text in _decoder.decode(raw).items()}


_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _policies(
    fields: dict[str, Any], texts: dict[str, msgspec.Raw], problems: list[Problem]
) -> tuple[policies.Draft, ...]:
    if fields.get("policies") is None:
        problems.append(Problem(Rule.MISSING, "policies", "policies is missing; a token needs at least one."))
        return ()
    drafts, misshapen = policies.drafts(bytes(texts["policies"]))
    problems += misshapen
    return drafts


def _networks(value: Any, problems: list[Problem]) -> dict[str, tuple[str, ...]]:  # noqa: ANN401 - JSON
    if value is None:
        return {}
    request_ip = value.get("request_ip") if isinstance(value, dict) else value
    strange = set(value) - {"request_ip"} if isinstance(value, dict) else set()
    if not isinstance(value, dict) or not isinstance(request_ip, dict | None) or strange:
        text = 'condition must be {"request_ip": {"in": […], "not_in": […]}}.'
        problems.append(Problem(Rule.CONDITION, "condition", text))
        return {}
    lists: dict[str, tuple[str, ...]] = {}
    for key, networks in (request_ip or {}).items():
        if key not in {"in", "not_in"}:
            # A bound that is not understood must not be taken for none.
            text = f"request_ip has in and not_in, and no {quoted(key)}."
            problems.append(Problem(Rule.CONDITION, "condition", text, member="request_ip"))
        elif networks is not None:
            if not isinstance(networks, list) or not all(isinstance(each, str) for each in networks):
                text = f"{key} must be a list of networks."
                problems.append(Problem(Rule.CONDITION, "condition", text, member=f"request_ip/{key}"))
            else:
                lists[key] = tuple(networks)
    return lists


def _status(fields: dict[str, Any], problems: list[Problem]) -> TokenStatus | None:
    text = reading.text(fields.get("status"), "status", problems)
    if text and text not in set(TokenStatus):
        sentence = f"status {quoted(text)} must be active or disabled."
        problems.append(Problem(Rule.CHOICE, "status", sentence))
        return None
    return TokenStatus(text) if text else None


async def _verify(request: AnyRequest, account_id: UUID | None) -> Response[bytes]:
    house = wire.house(request)
    visit = msgspec.structs.replace(wire.visit(request), denied_status=403)
    credential = gate.credentials(request)
    if not isinstance(credential, TokenCredential):
        raise Refused(400, 9106, "Missing Authorization header: a global key has no token to verify")
    try:
        verification = await admission.verify(house.db, house.peppers, credential, account_id, visit)
    except Unauthenticated:
        gate.count_failure(house, visit)
        raise Refused(401, 1000, "Invalid API Token") from None
    gate.count(request, verification.id)
    if verification.denied:
        await admission.write_down(house.db, verification.denied)
        raise verification.denied
    valid = [Item(10000, "This API Token is valid and active")] if verification.usable else []
    return wire.answers(request).success(_verified(verification), messages=valid)


def _verified(verification: Verification) -> Verified:
    return Verified(
        verification.id.hex, verification.status, _time(verification.not_before), _time(verification.expires_on)
    )
