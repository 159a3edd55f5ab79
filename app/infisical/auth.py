"""`/api/v1/auth/universal-auth/login`: an access token for an API token (contract-infisical, "Common")."""

import msgspec
from litestar import Controller

from app.caller import RequestInfo
from app.errors import Forbidden, Unauthenticated
from app.identity import admission, login, tokens
from app.infisical import guard, reading, wire
from app.infisical.wire import Malformed, Refused
from app.web import bodies
from app.web.handling import AnyRequest, post
from app.web.state import State, state_of

# These count as failed logins of the address.
_REFUSED = (bodies.TooLarge, bodies.Incomplete, Refused, Malformed, Unauthenticated, Forbidden)


class AccessToken(msgspec.Struct, frozen=True, rename="camel"):
    """`expires_in` is in seconds."""

    access_token: str
    expires_in: int
    access_token_max_ttl: int = msgspec.field(name="accessTokenMaxTTL")
    token_type: str = "Bearer"  # noqa: S105 - a scheme

    def __repr__(self) -> str:
        return "AccessToken()"


class Login(Controller):
    path = "/auth/universal-auth"

    @post("/login")
    async def login(self, request: AnyRequest) -> AccessToken:
        """Get an access token for an API token."""
        state, visit = state_of(request), msgspec.structs.replace(wire.visit(request), status=200, denied_status=401)
        try:
            client_id, secret = await _credentials(request)
            caller = await login.authenticate_login(state.services, state.memory, client_id, secret, visit)
        except _REFUSED as error:
            raise await _refused(state, visit, error) from None
        guard.count(request, caller)
        try:
            value = await login.log_in(state.services, caller, secret)
        except Unauthenticated as error:
            raise await _refused(state, visit, error) from None
        return AccessToken(value, tokens.ACCESS_SECONDS, tokens.ACCESS_SECONDS)


async def _credentials(request: AnyRequest) -> tuple[str, str]:
    raw = await wire.body(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # curl -d declares JSON as a form, too.
    is_form = media_type == "application/x-www-form-urlencoded" and not raw.lstrip().startswith(b"{")
    fields = reading.form(raw) if is_form else reading.fields(raw)
    client_id, secret = fields.text("clientId", required=True), fields.text("clientSecret", required=True)
    fields.done()
    return client_id, secret


async def _refused(state: State, visit: RequestInfo, error: Exception) -> Exception:
    """Count a failed login and return the error to raise; raises 429 above the limit."""
    guard.count_failure(state, visit)
    await admission.audit_denial(state.services.db, error)
    return Refused(401, "Invalid credentials") if isinstance(error, Unauthenticated | Forbidden) else error
