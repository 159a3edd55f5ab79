"""The routes of Infisical's dialect, and its error handler."""

from http import HTTPStatus

import structlog
from litestar import Response, Router
from litestar.exceptions import HTTPException

from keystead.infisical import wire
from keystead.infisical.applications import Applications
from keystead.infisical.auth import AccessTokens, Login
from keystead.infisical.ca import CaCertificates, NewCa, OlderCa, OneCa
from keystead.infisical.certificates import Certificates
from keystead.infisical.crl import CaCrls, PublicCrl
from keystead.infisical.guard import guard
from keystead.infisical.internal_ca import AllCas, Cas, NewerCa
from keystead.infisical.issued import ProfileCertificates
from keystead.infisical.policies import Policies
from keystead.infisical.profiles import Profiles, Projects
from keystead.infisical.status import ServerStatus
from keystead.infisical.wire import ApiError
from keystead.web.handling import AnyRequest

PREFIX = "/api/"
# The older and the newer path of a CA.
_CA = ("/pki/ca/{ca_id:str}", "/cert-manager/ca/internal/{ca_id:str}")
_CRL = ("/pki/crl", "/cert-manager/crl")
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
        route_handlers=[
            *(NewCa, OlderCa, AllCas, Cas, NewerCa, Certificates),
            *(ProfileCertificates, Policies, Profiles, Projects, Applications),
            *(Router(path=path, route_handlers=[OneCa, CaCrls]) for path in _CA),
        ],
    )
    public = Router(
        path="/v1",
        route_handlers=[
            Login,
            AccessTokens,
            *(Router(path=path, route_handlers=[PublicCrl]) for path in _CRL),
            *(Router(path=path, route_handlers=[CaCertificates]) for path in _CA),
        ],
    )
    return Router(path=PREFIX, route_handlers=[guarded, public, ServerStatus], exception_handlers={Exception: on_error})
