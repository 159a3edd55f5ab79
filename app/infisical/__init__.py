"""Infisical's private-CA dialect: its router and its error handler."""

from http import HTTPStatus

import structlog
from litestar import Response, Router
from litestar.exceptions import HTTPException

from app.infisical import auth, ca, certificates, crl, gate, openapi, status, wire
from app.infisical.wire import AnyRequest, Refused

__all__ = ["PREFIX", "on_error", "openapi", "router"]

PREFIX = "/api/"
_log = structlog.get_logger("keystead.infisical")


def on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Every error under this prefix becomes an error body here."""
    visit = wire.visit(request)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        error = wire.not_routed(visit)
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response = wire.failure(Refused(405, f"Route {visit.path} does not take {visit.method}"), visit)
        response.headers["Allow"] = (error.headers or {}).get("allow", "")
        return response
    response = wire.failure(error, visit)
    if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unexpected error", request_id=visit.request_id, exc_info=error)
    return response


def router() -> Router:
    guarded = [*ca.HANDLERS, *certificates.HANDLERS, *crl.HANDLERS]
    return Router(
        path=PREFIX,
        route_handlers=[
            Router(path="/v1", route_handlers=guarded, guards=[gate.guard]),
            Router(path="/v1", route_handlers=[*auth.HANDLERS, *ca.PUBLIC, *crl.PUBLIC]),
            *status.HANDLERS,
        ],
        exception_handlers={Exception: on_error},
    )
