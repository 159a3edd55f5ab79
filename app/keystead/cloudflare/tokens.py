"""`/user/tokens` and `/accounts/{account_id}/tokens`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import unquote_plus
from uuid import UUID

import msgspec
from litestar import Controller
from litestar.handlers import BaseRouteHandler
from msgspec import UNSET, Meta, UnsetType

from keystead import times
from keystead.caller import GROUPS, Access, Area, Group, Level
from keystead.cloudflare import guard
from keystead.cloudflare.context import CallerContext, ScopeContext
from keystead.cloudflare.envelope import Envelope, Hex32, Instant, Item, Page, ResultInfo
from keystead.cloudflare.errors import ApiError
from keystead.cloudflare.guard import Needs
from keystead.cloudflare.reading import Body, BodyOnce, Decoded, Id, IgnoredBody, Query, StoredTime
from keystead.errors import Invalid, Problem, Rule, Unauthenticated, quoted
from keystead.identity import admission, delegation, policies
from keystead.identity import tokens as core_tokens
from keystead.identity.admission import Verification
from keystead.identity.delegation import Owner
from keystead.identity.memory import TokenCredential
from keystead.identity.tokens import Token, TokenStatus
from keystead.web.handling import AnyConnection, AnyRequest, Part, Source, delete, get, post, put
from keystead.web.state import state_of

_READ = Needs(Area.ACCOUNT_TOKENS, Access.READ)
_WRITE = Needs(Area.ACCOUNT_TOKENS, Access.WRITE, fresh=True)
_STAR = {"const": "*"}
_RESOURCES = {"additionalProperties": {"anyOf": [_STAR, {"type": "object", "additionalProperties": _STAR}]}}
# Passed on as they are: the core reads these from their text.
_OPAQUE = {"json": object, "fields": (), "item": None, "make": None}
_SCOPES = {Level.ACCOUNT: "com.cloudflare.api.account", Level.ZONE: "com.cloudflare.api.account.zone"}


class PermissionGroup(msgspec.Struct, frozen=True):
    id: Hex32
    name: str
    scopes: tuple[str, ...]


class GroupFilters(msgspec.Struct, frozen=True):
    name: str | None = None
    scope: str | None = None


class TokenObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token as the SDKs read it; unset fields are omitted. `value` is only set in the answer that creates it."""

    id: Hex32
    name: str
    status: TokenStatus
    issued_on: Instant
    modified_on: Instant
    policies: msgspec.Raw
    condition: msgspec.Raw | None = None
    expires_on: Instant | None = None
    not_before: Instant | None = None
    value: str | None = None

    def __repr__(self) -> str:
        return f"TokenObject({self.id})"


class PolicyGroupRequest(msgspec.Struct, frozen=True):
    id: Id


class PolicyRequest(msgspec.Struct, frozen=True):
    """`resources` is returned as it was sent."""

    effect: Literal["allow", "deny"]
    resources: Annotated[dict[str, Any], Meta(min_length=1, extra_json_schema=_RESOURCES)]
    permission_groups: Annotated[tuple[PolicyGroupRequest, ...], Meta(min_length=1, max_length=policies.MAX_GROUPS)]
    id: Id | None = None


class PolicyGroup(msgspec.Struct, frozen=True):
    id: Id
    name: str


class Policy(msgspec.Struct, frozen=True):
    """A policy of a token."""

    id: Id
    effect: Literal["allow", "deny"]
    resources: Annotated[dict[str, Any], Meta(min_length=1, extra_json_schema=_RESOURCES)]
    permission_groups: Annotated[tuple[PolicyGroup, ...], Meta(min_length=1)]


_Networks: TypeAlias = Annotated[tuple[str, ...], Meta(max_length=policies.MAX_NETWORKS)]


class RequestIp(msgspec.Struct, frozen=True, rename={"in_": "in"}, forbid_unknown_fields=True):
    """Networks such as 10.0.0.0/8."""

    in_: _Networks | UnsetType | None = UNSET
    not_in: _Networks | UnsetType | None = UNSET


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From where a token may be used."""

    request_ip: RequestIp | UnsetType | None = UNSET


class TokenRequest(msgspec.Struct, frozen=True):
    """A new token. `policies` and `condition` are read by the core, from their text."""

    name: Annotated[str, Meta(min_length=1, max_length=core_tokens.MAX_NAME)]
    policies: Annotated[tuple[PolicyRequest, ...], Meta(min_length=1, max_length=policies.MAX_POLICIES, extra=_OPAQUE)]
    condition: Annotated[Condition, Meta(extra=_OPAQUE)] | None = None
    not_before: StoredTime | None = None
    expires_on: StoredTime | None = None
    status: Literal["active", "disabled"] | None = None


class TokenChange(TokenRequest, frozen=True):
    """All of a token; what the server sets is ignored."""

    id: Any = None
    issued_on: Any = None
    modified_on: Any = None
    last_used_on: Any = None
    value: Any = None

    def __repr__(self) -> str:
        return "TokenChange()"


class DeletedToken(msgspec.Struct, frozen=True):
    id: Hex32


class Verified(msgspec.Struct, frozen=True, omit_defaults=True):
    id: Hex32
    status: TokenStatus
    not_before: Instant | None = None
    expires_on: Instant | None = None


async def _of_user(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Refuse, before the body is read, callers who may not manage the tokens of their user."""
    context: CallerContext = connection.scope["state"]["context"]
    needs: Needs = handler.opt["needs"]
    await delegation.of_user(context.services.db, context.caller, needs.access)


async def _token_id(request: AnyRequest, _: type) -> UUID:
    return guard.id_of(request.path_params["token_id"], request.scope["state"]["request_info"])


TokenId: TypeAlias = Annotated[UUID, Source(Part.PATH, _token_id)]


class Tokens(Controller):
    """The tokens of one owner."""

    tags = ("Tokens",)

    @post(needs=_WRITE)
    async def create(self, context: CallerContext, data: BodyOnce[TokenRequest]) -> Envelope[TokenObject]:
        """Make a token; its value is shown once."""
        owner, draft = _owner(context), draft_of(data)
        token, value = await delegation.create(context.services, context.caller, owner, draft, data.once)
        return context.envelope(_object(token, value), (*data.advice, *policies.advice(draft.policies)))

    @get(needs=_READ)
    async def list_(self, context: CallerContext, filters: Query[delegation.Query]) -> Page[TokenObject]:
        """List the tokens."""
        found = await delegation.list_(context.services.db, _owner(context), filters)
        return context.page([_object(token) for token in found.items], filters.page, filters.per_page, found.total)

    @get("/permission_groups", needs=_READ)
    async def permission_groups(self, filters: Query[GroupFilters]) -> Page[PermissionGroup]:
        """List the groups."""
        return _permission_groups(filters)

    @get("/{token_id:str}", needs=_READ)
    async def get_one(self, context: CallerContext, token_id: TokenId) -> Envelope[TokenObject]:
        """Get a token."""
        return context.envelope(_object(await delegation.get(context.services.db, _owner(context), token_id)))

    @put("/{token_id:str}", needs=_WRITE)
    async def update(self, context: CallerContext, token_id: TokenId, data: Body[TokenChange]) -> Envelope[TokenObject]:
        """Replace a token."""
        owner, draft = _owner(context), draft_of(data)
        token = await delegation.update(context.services.db, context.caller, owner, token_id, draft)
        return context.envelope(_object(token), (*data.advice, *policies.advice(draft.policies)))

    @put("/{token_id:str}/value", needs=_WRITE)
    async def roll(self, context: CallerContext, token_id: TokenId, data: IgnoredBody) -> Envelope[str]:  # noqa: ARG002
        """Give a token a new value."""
        return context.envelope(await delegation.roll(context.services, context.caller, _owner(context), token_id))

    @delete("/{token_id:str}", needs=_WRITE)
    async def delete_one(self, context: CallerContext, token_id: TokenId) -> Envelope[DeletedToken]:
        """Revoke a token."""
        await delegation.delete(context.services.db, context.caller, _owner(context), token_id)
        return context.envelope(DeletedToken(token_id.hex))


class AccountTokens(Tokens):
    path = "/tokens"


class UserTokens(Tokens):
    path = "/user/tokens"
    guards = (_of_user,)


class Verify(Controller):
    """Verifies a token. There is no guard, because every known token gets an answer, even an expired one."""

    tags = ("Tokens",)

    @get("/user/tokens/verify")
    async def of_user(self, request: AnyRequest) -> Envelope[Verified]:
        """Say what a token is."""
        return await _verify(request, None)

    @get("/accounts/{account_id:str}/tokens/verify")
    async def of_account(self, request: AnyRequest, account_id: str) -> Envelope[Verified]:
        """Say what a token is."""
        return await _verify(request, guard.id_of(account_id, request.scope["state"]["request_info"]))


def _owner(context: CallerContext) -> Owner:
    """The account of the path, or else the calling user; the guards have checked the permission."""
    if isinstance(context, ScopeContext):
        return Owner(account_id=context.scope.account_id)
    return Owner(user_id=context.caller.user_id)


def _permission_groups(filters: GroupFilters) -> Page[PermissionGroup]:
    groups = [_group(group) for group in GROUPS]
    # Terraform's users encode the name, and the client encodes it again.
    names = {filters.name, unquote_plus(filters.name)} if filters.name is not None else None
    wanted = [
        group
        for group in groups
        if (names is None or group.name in names) and (filters.scope is None or filters.scope in group.scopes)
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
        expires_on=_as_sent(token.expires_on, token.expires_on_text),
        not_before=_as_sent(token.not_before, token.not_before_text),
        value=value,
    )


def _time(time: datetime | None) -> str | None:
    """RFC 3339 with Z; without a fraction if it is zero."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None


def _as_sent(time: datetime | None, text: str | None) -> str | None:
    """The text that was sent for a time, because clients compare it."""
    # A release that does not know the texts may have changed the time since.
    return text if text is not None and times.date(text) == time else _time(time)


def draft_of(data: Decoded[TokenRequest]) -> delegation.Draft:
    """The requested token; raises Invalid if the body is no object."""
    if any(problem.rule is Rule.BODY for problem in data.problems):
        raise Invalid(data.problems)
    fields, problems = data.fields, [_of_text(problem) for problem in data.problems]
    try:
        # resources and condition are stored as sent, because clients compare them.
        texts = _texts.decode(data.raw)
    except msgspec.DecodeError:
        raise Invalid((Problem(Rule.BODY, "", "The body is not JSON."),)) from None
    condition = bytes(texts["condition"]).decode() if fields.condition is not None else None
    if condition is not None and not policies.is_readable(condition):
        problems.append(Problem(Rule.CONDITION, "condition", "condition cannot be read; give each key once."))
    drafts: tuple[policies.Draft, ...] = ()
    if not any(problem.field == "policies" for problem in problems):
        drafts, misshapen = policies.drafts(bytes(texts["policies"]))
        problems += misshapen
    networks = _networks(fields.condition, problems)
    problems.sort(key=lambda problem: fields.__struct_fields__.index(problem.field))
    return delegation.Draft(
        name=fields.name,
        policies=drafts,
        condition=condition,
        networks=networks,
        not_before=times.date(fields.not_before or ""),
        expires_on=times.date(fields.expires_on or ""),
        status=TokenStatus(fields.status) if fields.status else None,
        not_before_text=fields.not_before or None,
        expires_on_text=fields.expires_on or None,
        malformed=tuple(problems),
    )


_texts = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _of_text(problem: Problem) -> Problem:
    """The problem of a status that is not one of its values as that of any bad text (contract-cloudflare section 8)."""
    return msgspec.structs.replace(problem, rule=Rule.TEXT) if problem.rule is Rule.CHOICE else problem


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


async def _verify(request: AnyRequest, account_id: UUID | None) -> Envelope[Verified]:
    state = state_of(request)
    request_info = msgspec.structs.replace(request.scope["state"]["request_info"], denied_status=403)
    credential = guard.credentials(request)
    if not isinstance(credential, TokenCredential):
        raise ApiError(400, 9106, "Missing Authorization header: a global key has no token to verify")
    try:
        verification = await admission.verify(state.services, credential, account_id, request_info)
    except Unauthenticated:
        guard.count_failure(state, request_info)
        raise ApiError(401, 1000, "Invalid API Token") from None
    guard.count(request, verification.id)
    if verification.gone:
        raise guard.not_routed(request_info)
    if verification.denied:
        await admission.audit_denial(state.services.db, verification.denied)
        raise verification.denied
    valid = [Item(10000, "This API Token is valid and active")] if verification.usable else []
    return Envelope(_verified(verification), True, [], valid)


def _verified(verification: Verification) -> Verified:
    return Verified(
        verification.id.hex, verification.status, _time(verification.not_before), _time(verification.expires_on)
    )
