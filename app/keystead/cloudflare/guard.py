"""The guard of Cloudflare's dialect: who asks, how often, and whether they may (contract-cloudflare sections 4, 5)."""

import re
from uuid import UUID

import msgspec
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from keystead.audit import record as audit
from keystead.caller import Access, Area, Caller, Level, RequestInfo, Scope
from keystead.cloudflare.context import CallerContext, ScopeContext
from keystead.cloudflare.errors import ApiError
from keystead.errors import Denial, Forbidden, Limit, LimitReached, Unauthenticated
from keystead.identity import accounts, admission
from keystead.identity.memory import Admission, Credential, KeyCredential, ScopeRef, TokenCredential
from keystead.ids import hex32
from keystead.web.asgi import header
from keystead.web.handling import AnyConnection
from keystead.web.state import State, state_of

BEARER = re.compile(r"[A-Za-z0-9_-]{20,256}")
_KEY = re.compile(r"[0-9a-f]{32,45}")


class Needs(msgspec.Struct, frozen=True):
    """What a caller must be allowed in the account or zone of the path.

    `fresh`: nothing that is remembered of the caller counts, since what is made would outlive a token revoked just now.
    """

    area: Area
    access: Access
    fresh: bool = False


async def guard(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Admit the caller before the body is read, or raise; what was found becomes the handler's context.

    Where the path names an account or zone, the caller must be allowed what the handler `needs` there; elsewhere the
    core judges what the caller may.
    """
    state = state_of(connection)
    request_info = _request_info(connection, handler)
    where = scope_ref(connection.path_params, request_info)
    credential = credentials(connection)
    if where is None:
        caller = await _authenticated(state, credential, request_info)
        count(connection, caller.id)
        connection.scope["state"]["context"] = CallerContext(state, request_info, caller)
        return
    needs: Needs = handler.opt["needs"]
    found = None if needs.fresh else state.memory.allowed(credential, where, needs.area, needs.access, request_info)
    if found:
        caller, scope = found
        count(connection, caller.id)
    else:
        caller, scope = await _looked_up(connection, credential, where, request_info, needs)
    connection.scope["state"]["context"] = ScopeContext(state, request_info, caller, scope)


async def _authenticated(state: State, credential: Credential, request_info: RequestInfo) -> Caller:
    try:
        # A user may have become a member of an account within the last second, by making it.
        return await admission.authenticate(state.services, state.memory, credential, request_info, fresh=True)
    except (Unauthenticated, Forbidden) as error:
        await _fail(state, request_info, error)
        raise


async def _looked_up(
    connection: AnyConnection, credential: Credential, where: ScopeRef, request_info: RequestInfo, needs: Needs
) -> tuple[Caller, Scope]:
    """Admit and count a caller of whom it is not known yet that they may; remember those who may."""
    state = state_of(connection)
    try:
        admitted = await _admitted(state, credential, where, request_info, needs)
    except (Unauthenticated, Forbidden) as error:
        await _fail(state, request_info, error)
        raise
    caller, scope = admitted.caller, admitted.scope
    count(connection, caller.id)
    if scope is None or not _may(admitted, needs):
        resource = audit.Resource.ZONE if where.level is Level.ZONE else audit.Resource.ACCOUNT
        await audit.denied(state.services.db, caller, resource, where.id, scope)
        raise Forbidden(Denial.RESOURCE)
    if admitted.gone:
        raise not_routed(request_info)
    state.memory.allow(credential, where, needs.area, needs.access, admitted)
    return caller, scope


async def _fail(state: State, request_info: RequestInfo, error: Exception) -> None:
    count_failure(state, request_info)
    await admission.audit_denial(state.services.db, error)


async def _admitted(
    state: State, credential: Credential, where: ScopeRef, request_info: RequestInfo, needs: Needs
) -> Admission:
    asking = (state.services, state.memory, credential, where, request_info)
    if needs.fresh:
        return await admission.admit_fresh(*asking)
    admitted = await admission.admit(*asking)
    if admitted.remembered and not _may(admitted, needs):
        # What is remembered may be older than the permission.
        return await admission.admit_fresh(*asking)
    return admitted


def _may(admitted: Admission, needs: Needs) -> bool:
    return admitted.scope is not None and admitted.caller.may(needs.area, needs.access, admitted.scope)


def _request_info(connection: AnyConnection, handler: BaseRouteHandler) -> RequestInfo:
    """The facts of the request, with the status that a success will have."""
    request_info: RequestInfo = connection.scope["state"]["request_info"]
    if not isinstance(handler, HTTPRouteHandler):
        return request_info
    return msgspec.structs.replace(request_info, status=handler.status_code, denied_status=403)


async def csrs_on(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Refuse where the operator has switched custom CSRs off."""
    scope: Scope = connection.scope["state"]["context"].scope
    if not scope.csrs_enabled:
        kind = "zone" if scope.zone_id else "account"
        text = f"Custom CSRs are switched off; the operator can run `keystead {kind} set {scope.id.hex} --csrs on`."
        raise LimitReached(Limit.CSRS_OFF, text)


def scope_ref(path_params: dict[str, str], request_info: RequestInfo) -> ScopeRef | None:
    """The account or zone that the path names; raises 7003 for a malformed id."""
    for name, level in (("zone_id", Level.ZONE), ("account_id", Level.ACCOUNT)):
        if name in path_params:
            return ScopeRef(level, id_of(path_params[name], request_info))
    return None


def id_of(text: str, request_info: RequestInfo) -> UUID:
    """An id in a path; raises 7003 for what is none."""
    found = hex32(text)
    if found is None:
        raise not_routed(request_info)
    return found


def credentials(connection: AnyConnection) -> Credential:
    """Authorization wins when it is present, even when it is the bad one (contract-cloudflare section 5)."""
    headers = connection.scope["headers"]
    authorization = header(headers, b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not BEARER.fullmatch(token):
            raise _bad_header(6111, "Authorization")
        return TokenCredential(token)
    email, key = header(headers, b"x-auth-email"), header(headers, b"x-auth-key")
    if email is None and key is None:
        raise ApiError(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
    if email is None:
        raise ApiError(400, 9106, "Missing X-Auth-Email header")
    if key is None:
        raise ApiError(400, 9107, "Missing X-Auth-Key header")
    if not accounts.EMAIL.fullmatch(email):
        raise _bad_header(6102, "X-Auth-Email")
    if not _KEY.fullmatch(key):
        raise _bad_header(6103, "X-Auth-Key")
    return KeyCredential(email, key)


def _bad_header(code: int, header: str) -> ApiError:
    return ApiError(400, 6003, "Invalid request headers", chain=(code, f"Invalid format for {header} header"))


def count(connection: AnyConnection, caller_id: UUID) -> None:
    """Count a request of a known caller; raises 429 above the rate limit."""
    _throttle(state_of(connection).count(connection, caller_id))


def count_failure(state: State, request_info: RequestInfo) -> None:
    """Count a failed authentication against its address; raises 429 above the limit."""
    _throttle(state.count_failure(request_info.address))


def _throttle(seconds: int) -> None:
    if seconds:
        raise ApiError(429, 971, "Please wait and consider throttling your request speed", retry_after=seconds)


def not_routed(request_info: RequestInfo) -> ApiError:
    text = f"Could not route to {request_info.path}, perhaps your object identifier is invalid?"
    return ApiError(404, 7003, text)
