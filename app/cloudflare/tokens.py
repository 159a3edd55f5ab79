"""`/user/tokens` and `/accounts/{account_id}/tokens`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Controller
from litestar.params import FromPath

from app import times
from app.caller import GROUPS, Access, Area, Group, Level
from app.cloudflare import guard, reading
from app.cloudflare.context import CallerContext, CallerOnly, Context, ScopeContext
from app.cloudflare.envelope import Envelope, Item, Page, ResultInfo
from app.cloudflare.errors import Refused
from app.cloudflare.guard import Needs
from app.errors import Advice, Invalid, Problem, Rule, Unauthenticated, quoted
from app.identity import admission, delegation, policies
from app.identity.admission import TokenCredential, Verification
from app.identity.delegation import Owner
from app.identity.tokens import Token, TokenStatus
from app.store.paging import Direction
from app.web.handling import AnyRequest, delete, get, post, put
from app.web.state import state_of

_READ = Needs(Area.ACCOUNT_TOKENS, Access.READ)
_WRITE = Needs(Area.ACCOUNT_TOKENS, Access.WRITE, anew=True)
PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE = 20, 5, 50
_SCOPES = {Level.ACCOUNT: "com.cloudflare.api.account", Level.ZONE: "com.cloudflare.api.account.zone"}


class PermissionGroup(msgspec.Struct, frozen=True):
    id: str
    name: str
    scopes: tuple[str, ...]


class TokenObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token as the SDKs read it; unset fields are omitted. `value` is only set in the answer that creates it."""

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


class AccountTokens(Controller):
    path = "/tokens"

    @post(needs=_WRITE)
    async def create(self, context: Context, request: AnyRequest) -> Envelope[TokenObject]:
        """Make a token; its value is shown once."""
        return await _create(context, _account(context), request)

    @get(needs=_READ)
    async def list_(self, context: Context, request: AnyRequest) -> Page[TokenObject]:
        """List the tokens."""
        return await _list(context, _account(context), request)

    @get("/permission_groups", needs=_READ)
    async def permission_groups(self, request: AnyRequest) -> Page[PermissionGroup]:
        """List the groups."""
        return _permission_groups(request)

    @get("/{token_id:str}", needs=_READ)
    async def get_one(self, context: Context, token_id: FromPath[str]) -> Envelope[TokenObject]:
        """Get a token."""
        return await _get(context, _account(context), token_id)

    @put("/{token_id:str}", needs=_WRITE)
    async def update(self, context: Context, request: AnyRequest, token_id: FromPath[str]) -> Envelope[TokenObject]:
        """Replace a token."""
        return await _update(context, _account(context), request, token_id)

    @put("/{token_id:str}/value", needs=_WRITE)
    async def roll(self, context: Context, request: AnyRequest, token_id: FromPath[str]) -> Envelope[str]:
        """Give a token a new value."""
        return await _roll(context, _account(context), request, token_id)

    @delete("/{token_id:str}", needs=_WRITE)
    async def delete_one(self, context: Context, token_id: FromPath[str]) -> Envelope[DeletedToken]:
        """Revoke a token."""
        return await _delete(context, _account(context), token_id)


class UserTokens(Controller):
    path = "/user/tokens"

    @post()
    async def create(self, context: CallerOnly, request: AnyRequest) -> Envelope[TokenObject]:
        """Make a token; its value is shown once."""
        return await _create(context, await _user(context, Access.WRITE), request)

    @get()
    async def list_(self, context: CallerOnly, request: AnyRequest) -> Page[TokenObject]:
        """List the tokens."""
        return await _list(context, await _user(context, Access.READ), request)

    @get("/permission_groups")
    async def permission_groups(self, context: CallerOnly, request: AnyRequest) -> Page[PermissionGroup]:
        """List the groups."""
        await _user(context, Access.READ)
        return _permission_groups(request)

    @get("/{token_id:str}")
    async def get_one(self, context: CallerOnly, token_id: FromPath[str]) -> Envelope[TokenObject]:
        """Get a token."""
        return await _get(context, await _user(context, Access.READ), token_id)

    @put("/{token_id:str}")
    async def update(self, context: CallerOnly, request: AnyRequest, token_id: FromPath[str]) -> Envelope[TokenObject]:
        """Replace a token."""
        return await _update(context, await _user(context, Access.WRITE), request, token_id)

    @put("/{token_id:str}/value")
    async def roll(self, context: CallerOnly, request: AnyRequest, token_id: FromPath[str]) -> Envelope[str]:
        """Give a token a new value."""
        return await _roll(context, await _user(context, Access.WRITE), request, token_id)

    @delete("/{token_id:str}")
    async def delete_one(self, context: CallerOnly, token_id: FromPath[str]) -> Envelope[DeletedToken]:
        """Revoke a token."""
        return await _delete(context, await _user(context, Access.WRITE), token_id)


class Verify(Controller):
    """Verifies a token. There is no guard, because every known token gets an answer, even an expired one."""

    @get("/user/tokens/verify")
    async def of_user(self, request: AnyRequest) -> Envelope[Verified]:
        """Say what a token is."""
        return await _verify(request, None)

    @get("/accounts/{account_id:str}/tokens/verify")
    async def of_account(self, request: AnyRequest, account_id: FromPath[str]) -> Envelope[Verified]:
        """Say what a token is."""
        return await _verify(request, guard.id_of(account_id, request.scope["state"]["visit"]))


def _account(context: ScopeContext) -> Owner:
    return Owner(account_id=context.scope.account_id)


async def _user(context: CallerContext, access: Access) -> Owner:
    return await delegation.of_user(context.services.db, context.caller, access)


async def _create(context: CallerContext, owner: Owner, request: AnyRequest) -> Envelope[TokenObject]:
    raw = await reading.body(request)
    once = reading.idempotency(request, raw)
    draft, advice = decode(raw, updating=False)
    token, value = await delegation.create(context.services, context.caller, owner, draft, once)
    return context.envelope(_object(token, value), advice)


async def _list(context: CallerContext, owner: Owner, request: AnyRequest) -> Page[TokenObject]:
    known = frozenset({"page", "per_page", "direction", "include_expired"})
    values = reading.known_values(request.scope["query_string"], known)
    page, per_page = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    expired = reading.one_of(values, "include_expired", ("true", "false")) == "true"
    query = delegation.Query(page, per_page, reading.direction_of(values, Direction.ASC), expired)
    found = await delegation.list_(context.services.db, owner, query)
    return context.page([_object(token) for token in found.items], page, per_page, found.total)


async def _get(context: CallerContext, owner: Owner, token_id: str) -> Envelope[TokenObject]:
    found = await delegation.get(context.services.db, owner, guard.id_of(token_id, context.visit))
    return context.envelope(_object(found))


async def _update(context: CallerContext, owner: Owner, request: AnyRequest, token_id: str) -> Envelope[TokenObject]:
    wanted = guard.id_of(token_id, context.visit)
    draft, advice = decode(await reading.body(request), updating=True)
    token = await delegation.update(context.services.db, context.caller, owner, wanted, draft)
    return context.envelope(_object(token), advice)


async def _roll(context: CallerContext, owner: Owner, request: AnyRequest, token_id: str) -> Envelope[str]:
    wanted = guard.id_of(token_id, context.visit)
    # The body is ignored: clients send none, an empty object, or null.
    await reading.body(request)
    return context.envelope(await delegation.roll(context.services, context.caller, owner, wanted))


async def _delete(context: CallerContext, owner: Owner, token_id: str) -> Envelope[DeletedToken]:
    wanted = guard.id_of(token_id, context.visit)
    await delegation.delete(context.services.db, context.caller, owner, wanted)
    return context.envelope(DeletedToken(wanted.hex))


def _permission_groups(request: AnyRequest) -> Page[PermissionGroup]:
    values = reading.known_values(request.scope["query_string"], frozenset({"name", "scope"}))
    groups = [_group(group) for group in GROUPS]
    wanted = [
        group
        for group in groups
        if values.get("name") in (None, group.name) and ("scope" not in values or values["scope"] in group.scopes)
    ]
    info = ResultInfo(len(wanted), 1, len(groups), len(wanted), 1 if wanted else 0)
    return Page(wanted, True, [], [], info)


def _group(group: Group) -> PermissionGroup:
    return PermissionGroup(group.id.hex, group.name, (_SCOPES[group.level],))


def _object(token: Token, value: str | None = None) -> TokenObject:
    return TokenObject(
        id=token.id.hex,
        name=token.name,
        status=token.status_at(datetime.now(UTC)),
        issued_on=times.instant(token.issued_on),
        modified_on=times.instant(token.modified_on),
        policies=msgspec.Raw(token.policies.encode()),
        condition=msgspec.Raw(token.condition.encode()) if token.condition else None,
        expires_on=_time(token.expires_on),
        not_before=_time(token.not_before),
        value=value,
    )


def _time(time: datetime | None) -> str | None:
    """RFC 3339 with Z; without a fraction if it is zero."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None


_FIELDS = frozenset({"name", "policies", "condition", "expires_on", "not_before"})
_ANSWERED = frozenset({"id", "issued_on", "modified_on", "last_used_on", "value"})


def decode(raw: bytes, *, updating: bool) -> tuple[delegation.Draft, tuple[Advice, ...]]:
    """Decode a body; fields of the wrong JSON type are reported in `malformed`, the core validates the rest."""
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
    # resources and condition are stored as sent, because clients compare them.
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
            # Ignoring an unknown restriction would make the token less restricted.
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


async def _verify(request: AnyRequest, account_id: UUID | None) -> Envelope[Verified]:
    state = state_of(request)
    visit = msgspec.structs.replace(request.scope["state"]["visit"], denied_status=403)
    credential = guard.credentials(request)
    if not isinstance(credential, TokenCredential):
        raise Refused(400, 9106, "Missing Authorization header: a global key has no token to verify")
    try:
        verification = await admission.verify(state.services, credential, account_id, visit)
    except Unauthenticated:
        guard.count_failure(state, visit)
        raise Refused(401, 1000, "Invalid API Token") from None
    guard.count(request, verification.id)
    if verification.denied:
        await admission.write_down(state.services.db, verification.denied)
        raise verification.denied
    valid = [Item(10000, "This API Token is valid and active")] if verification.usable else []
    return Envelope(_verified(verification), True, [], valid)


def _verified(verification: Verification) -> Verified:
    return Verified(
        verification.id.hex, verification.status, _time(verification.not_before), _time(verification.expires_on)
    )
