"""`/api/v1/auth/universal-auth/login`: an access token for an API token (contract-infisical, "Common")."""

from typing import Annotated, TypeAlias

import msgspec
from litestar import Controller
from msgspec import Meta

from app.caller import RequestInfo
from app.errors import Forbidden, Unauthenticated
from app.identity import admission, login, tokens
from app.infisical import guard, reading, wire
from app.infisical.wire import ApiError, ValidationFailure
from app.web import bodies
from app.web.handling import AnyRequest, Part, Source, post
from app.web.state import State, state_of

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


async def _read(request: AnyRequest, struct: type[LoginRequest]) -> LoginRequest:
    try:
        return await reading.body_or_form(request, struct)
    except _FAILURES as error:
        raise await _refused(state_of(request), wire.request_info(request), error) from None


_Credentials: TypeAlias = Annotated[
    LoginRequest,
    Source(Part.BODY, _read, media_types=reading.MEDIA_TYPES),
]


class Login(Controller):
    path = "/auth/universal-auth"
    tags = ("Private CA",)

    @post("/login")
    async def login(self, request: AnyRequest, data: _Credentials) -> AccessToken:
        """Get an access token for an API token."""
        state, request_info = (
            state_of(request),
            msgspec.structs.replace(wire.request_info(request), status=200, denied_status=401),
        )
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


async def _refused(state: State, request_info: RequestInfo, error: Exception) -> Exception:
    """Count a failed login and return the error to raise; raises 429 above the limit."""
    guard.count_failure(state, request_info)
    await admission.audit_denial(state.services.db, error)
    return ApiError(401, "Invalid credentials") if isinstance(error, Unauthenticated | Forbidden) else error
