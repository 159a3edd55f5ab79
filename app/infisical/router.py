"""The routes of Infisical's dialect, and its error handler."""

from http import HTTPStatus

import structlog
from litestar import Response, Router
from litestar.exceptions import HTTPException

from app.infisical import wire
from app.infisical.auth import AccessTokens, Login
from app.infisical.ca import CaCertificates, Cas, NewCa, OneCa
from app.infisical.certificates import Certificates
from app.infisical.crl import CaCrls, PublicCrl
from app.infisical.guard import guard
from app.infisical.status import ServerStatus
from app.infisical.wire import ApiError
from app.web.handling import AnyRequest

PREFIX = "/api/"
# The older and the newer path of a CA.
_CA = ("/pki/ca/{ca_id:str}", "/cert-manager/ca/internal/{ca_id:str}")
_log = structlog.get_logger("keystead.infisical")


def on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The exception handler for all routes under this prefix: answers with an Infisical error body."""
    request_info = wire.request_info(request)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        error = wire.not_routed(request_info)
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response = wire.failure(
            ApiError(405, f"Route {request_info.path} does not take {request_info.method}"), request_info
        )
        response.headers["Allow"] = (error.headers or {}).get("allow", "")
        return response
    response = wire.failure(error, request_info)
    if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unexpected error", request_id=request_info.request_id, exc_info=error)
    return response


def router() -> Router:
    guarded = Router(
        path="/v1",
        guards=[guard],
        route_handlers=[NewCa, Cas, Certificates, *(Router(path=path, route_handlers=[OneCa, CaCrls]) for path in _CA)],
    )
    public = Router(
        path="/v1",
        route_handlers=[
            Login,
            AccessTokens,
            PublicCrl,
            *(Router(path=path, route_handlers=[CaCertificates]) for path in _CA),
        ],
    )
    return Router(path=PREFIX, route_handlers=[guarded, public, ServerStatus], exception_handlers={Exception: on_error})
