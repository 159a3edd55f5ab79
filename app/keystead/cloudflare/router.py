"""The routes of Cloudflare's dialect, and its error handler."""

from http import HTTPStatus

import structlog
from litestar import Response, Router
from litestar.exceptions import HTTPException

from keystead.cloudflare.accounts import Accounts
from keystead.cloudflare.custom_certificates import CustomCertificates
from keystead.cloudflare.custom_csrs import CustomCsrs
from keystead.cloudflare.errors import ApiError, Reference
from keystead.cloudflare.guard import guard, not_routed
from keystead.cloudflare.logs import Logs
from keystead.cloudflare.tokens import AccountTokens, UserTokens, Verify
from keystead.cloudflare.users import Users
from keystead.cloudflare.zones import Zones
from keystead.web.handling import AnyRequest

PREFIX = "/client/v4"
_log = structlog.get_logger("keystead.cloudflare")


def on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The exception handler for all routes under this prefix: answers with an envelope."""
    request_info = request.scope["state"]["request_info"]
    reference: Reference = request.app.state.reference
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        error = not_routed(request_info)
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refused = ApiError(405, 7001, f"Method {request_info.method} not available for that URI.")
        response = reference.failure(refused, request_info)
        response.headers["Allow"] = (error.headers or {}).get("allow", "")
        return response
    response = reference.failure(error, request_info)
    if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unexpected error", request_id=request_info.request_id, exc_info=error)
    return response


def router() -> Router:
    in_account = [CustomCsrs, AccountTokens, Logs]
    in_zone = [CustomCsrs, CustomCertificates]
    guarded = Router(
        path="/",
        guards=[guard],
        route_handlers=[
            Accounts,
            Zones,
            UserTokens,
            Users,
            Router(path="/accounts/{account_id:str}", route_handlers=in_account),
            Router(path="/zones/{zone_id:str}", route_handlers=in_zone),
        ],
    )
    return Router(path=PREFIX, route_handlers=[guarded, Verify], exception_handlers={Exception: on_error})
