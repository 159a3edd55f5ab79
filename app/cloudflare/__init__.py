"""Cloudflare's v4 dialect: its router and its error handler."""

from http import HTTPStatus

import structlog
from litestar import Response, Router
from litestar.exceptions import HTTPException

from app.cloudflare import accounts, custom_certificates, custom_csrs, gate, logs, tokens, wire, zones
from app.cloudflare.wire import AnyRequest, Refused

PREFIX = "/client/v4"
_GUARDED = [
    *(*custom_certificates.HANDLERS, *accounts.IN_ACCOUNT, *zones.IN_ZONE, *tokens.IN_ACCOUNT, *logs.IN_ACCOUNT),
]
_KNOWN = [*accounts.ANYWHERE, *zones.ANYWHERE, *tokens.OF_USER]
_log = structlog.get_logger("keystead.cloudflare")


def on_error(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Every error under this prefix becomes an envelope here."""
    visit = wire.visit(request)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        error = gate.not_routed(visit)
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refused = Refused(405, 7001, f"Method {visit.method} not available for that URI.")
        response = wire.answers(request).failure(refused, visit)
        response.headers["Allow"] = (error.headers or {}).get("allow", "")
        return response
    response = wire.answers(request).failure(error, visit)
    if response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unexpected error", request_id=visit.request_id, exc_info=error)
    return response


def router() -> Router:
    return Router(
        path=PREFIX,
        route_handlers=[
            Router(path="/", route_handlers=custom_csrs.HANDLERS, guards=[gate.guard, gate.csrs_on]),
            Router(path="/", route_handlers=_GUARDED, guards=[gate.guard]),
            Router(path="/", route_handlers=_KNOWN, guards=[gate.known]),
            *tokens.UNGUARDED,
        ],
        exception_handlers={Exception: on_error},
    )
