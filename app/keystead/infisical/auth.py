"""`/api/v1/auth`: access tokens for API tokens, longer, and ended (contract-infisical, "Common", "Today's prefix")."""

from typing import Annotated, TypeAlias, TypeVar

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead.caller import Caller, RequestInfo
from keystead.errors import Forbidden, Unauthenticated
from keystead.identity import admission, login, tokens
from keystead.infisical import guard, reading, wire
from keystead.infisical.wire import ApiError, ValidationFailure
from keystead.web import bodies
from keystead.web.handling import AnyRequest, Part, Source, post
from keystead.web.state import State, state_of

# These count as failed logins of the address.
_FAILURES = (bodies.TooLarge, bodies.Incomplete, ApiError, ValidationFailure, Unauthenticated, Forbidden)


class AccessToken(msgspec.Struct, frozen=True, rename="camel"):
    """`expires_in` is in seconds."""

    access_token: str
    expires_in: int
    access_token_max_ttl: int = msgspec.field(name="accessTokenMaxTTL")
    token_type: str = "Bearer"  # noqa: S105 - a scheme

    def __repr__(self) -> str:
        return "AccessToken()"


class LoginRequest(msgspec.Struct, frozen=True, rename="camel"):
    client_id: Annotated[str, Meta(min_length=1)]
    client_secret: Annotated[str, Meta(min_length=1, extra_json_schema={"writeOnly": True})]

    def __repr__(self) -> str:
        return "LoginRequest()"


class AccessTokenRequest(msgspec.Struct, frozen=True, rename="camel"):
    access_token: Annotated[str, Meta(min_length=1, extra_json_schema={"writeOnly": True})]

    def __repr__(self) -> str:
        return "AccessTokenRequest()"


class Ended(msgspec.Struct, frozen=True):
    message: str


T = TypeVar("T", bound=msgspec.Struct)


async def _read(request: AnyRequest, struct: type[T]) -> T:
    try:
        return await reading.body_or_form(request, struct)
    except _FAILURES as error:
        raise await _refused(state_of(request), wire.request_info(request), error) from None


_SOURCE = Source(Part.BODY, _read, media_types=reading.MEDIA_TYPES)
_Credentials: TypeAlias = Annotated[LoginRequest, _SOURCE]
_AccessToken: TypeAlias = Annotated[AccessTokenRequest, _SOURCE]


class Login(Controller):
    path = "/auth/universal-auth"
    tags = ("Private CA",)

    @post("/login")
    async def login(self, request: AnyRequest, data: _Credentials) -> AccessToken:
        """Get an access token for an API token."""
        state, request_info = state_of(request), _audited(request)
        try:
            client_id, secret = data.client_id, data.client_secret
            caller = await login.authenticate_login(state.services, state.memory, client_id, secret, request_info)
        except _FAILURES as error:
            raise await _refused(state, request_info, error) from None
        guard.count(request, caller)
        try:
            value = await login.log_in(state.services, caller, secret)
        except Unauthenticated as error:
            raise await _refused(state, request_info, error) from None
        return AccessToken(value, tokens.ACCESS_SECONDS, tokens.ACCESS_SECONDS)


class AccessTokens(Controller):
    """Both take the access token in the body, and no other credential."""

    path = "/auth/token"
    tags = ("Private CA",)

    @post("/renew")
    async def renew(self, request: AnyRequest, data: _AccessToken) -> AccessToken:
        """Move the end of an access token to two hours from now, and at most to that of its API token."""
        state, caller = await _holder(request, data.access_token)
        try:
            seconds = await login.renew(state.services, caller, data.access_token)
        except Unauthenticated as error:
            raise await _refused(state, _audited(request), error, wire.NOT_ALLOWED) from None
        return AccessToken(data.access_token, seconds, tokens.ACCESS_SECONDS)

    @post("/revoke")
    async def revoke(self, request: AnyRequest, data: _AccessToken) -> Ended:
        """End an access token."""
        state, caller = await _holder(request, data.access_token)
        try:
            await login.log_out(state.services, caller, data.access_token)
        except Unauthenticated as error:
            raise await _refused(state, _audited(request), error, wire.NOT_ALLOWED) from None
        return Ended("Successfully revoked access token")


def _audited(request: AnyRequest) -> RequestInfo:
    return msgspec.structs.replace(wire.request_info(request), status=200, denied_status=401)


async def _holder(request: AnyRequest, value: str) -> tuple[State, Caller]:
    """The caller whose access token this is, counted against the rate limit; raises ApiError (401)."""
    state, request_info = state_of(request), _audited(request)
    try:
        caller = await login.holder(state.services, state.memory, value, request_info)
    except (Unauthenticated, Forbidden) as error:
        raise await _refused(state, request_info, error, wire.NOT_ALLOWED) from None
    guard.count(request, caller)
    return state, caller


async def _refused(
    state: State, request_info: RequestInfo, error: Exception, text: str = "Invalid credentials"
) -> Exception:
    """Count a failed login and return the error to raise; raises 429 above the limit."""
    guard.count_failure(state, request_info)
    await admission.audit_denial(state.services.db, error)
    return ApiError(401, text) if isinstance(error, Unauthenticated | Forbidden) else error
