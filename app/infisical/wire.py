"""Infisical's wire: objects, the error table, and what is read from a request (contract-infisical, "Common")."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from app import bodies, errors
from app.errors import Problem, Rule
from app.house import House
from app.model import Caller, Scope, Visit

AnyRequest: TypeAlias = Request[Any, Any, Any]

MAX_BODY = 1024 * 1024
JSON = "application/json"
MALFORMED = "The provided access token is malformed. Please use a valid token or generate a new one and try again."
EXPIRED = "Your token has expired. Please re-authenticate."
NOT_ALLOWED = "You are not allowed to access this resource"

# The word that stands in `error` beside each status.
WORDS = {
    400: "BadRequest",
    401: "UnauthorizedError",
    403: "PermissionDenied",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "PayloadTooLarge",
    422: "ValidationFailure",
    429: "RateLimitExceeded",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}


class Issue(msgspec.Struct, frozen=True, omit_defaults=True):
    """One wrong field, as Zod writes it."""

    code: str
    path: list[str | int]
    message: str
    expected: str | None = None
    received: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, rename="camel"):
    req_id: str
    status_code: int
    message: str | list[Issue]
    error: str


class Detail(msgspec.Struct, frozen=True):
    """What was asked and is not permitted."""

    action: str
    subject: str


class Denied(ErrorBody, frozen=True, rename="camel"):
    details: list[Detail]


class Refused(Exception):  # noqa: N818 - a refusal by the dialect itself, before the core is asked
    """An answer of the gateway; `word` is the one of the status unless it is given."""

    def __init__(
        self,
        status: int,
        text: str,
        word: str = "",
        *,
        details: Sequence[Detail] | None = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.word = word or WORDS[status]
        self.details = details
        self.retry_after = retry_after


class Malformed(Exception):  # noqa: N818
    """A body with wrong or missing fields."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__("; ".join(issue.message for issue in issues))
        self.issues = issues


# The core's names of fields, where the wire has another than their camelCase.
_FIELDS = {"organizational_unit": "ou", "state": "province"}
# Zod's codes of the core's rules; any other is "custom".
_ISSUE_CODES = {
    Rule.MISSING: "invalid_type",
    Rule.LENGTH: "too_big",
    Rule.COMMON_NAME_LENGTH: "too_big",
    Rule.CHOICE: "invalid_enum_value",
}


def issue_of(problem: Problem) -> Issue:
    """A broken rule of the core with the wire's name of the field, which its sentence begins with."""
    field = _FIELDS.get(problem.field, _camel(problem.field))
    text = field + problem.text.removeprefix(problem.field)
    return Issue(_ISSUE_CODES.get(problem.rule, "custom"), [field], text)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


# The kinds whose sentence is all there is to say.
STATUSES: dict[type[Exception], int] = {
    errors.Refusal: 400,
    errors.Conflict: 400,
    errors.LimitReached: 400,
    errors.NotFound: 404,
    bodies.Incomplete: 400,
    bodies.TooLarge: 413,
}


def failure(error: Exception, visit: Visit) -> Response[bytes]:
    """The one way from an error to an answer; what is not ours keeps its text to itself."""
    match error:
        case errors.Invalid():
            return _failure(422, [issue_of(problem) for problem in error.problems], visit)
        case Malformed():
            return _failure(422, list(error.issues), visit)
        case _ if type(error) in STATUSES:
            return _failure(STATUSES[type(error)], str(error), visit)
        case errors.Unauthenticated() if error.expired:
            return _failure(403, EXPIRED, visit, word="TokenError")
        case errors.Unauthenticated():
            return _failure(401, NOT_ALLOWED, visit)
        case errors.Forbidden():
            return _failure(403, str(error), visit, details=[])
        case errors.Unavailable():
            headers = {"Retry-After": str(min(max(error.retry_after, 1), 60))}
            advice = "Look before you repeat the request." if error.in_doubt else "Please try again."
            return _failure(503, f"Not available now: {error}. {advice}", visit, headers=headers)
        case Refused():
            headers = {"Retry-After": str(min(error.retry_after, 60))} if error.retry_after else {}
            details = error.details
            return _failure(error.status, str(error), visit, word=error.word, details=details, headers=headers)
        case _:
            return _failure(500, "Something went wrong", visit)


def _failure(
    status: int,
    message: str | list[Issue],
    visit: Visit,
    *,
    word: str = "",
    details: Sequence[Detail] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response[bytes]:
    if isinstance(message, str):
        # It may quote what was sent, and no JSON can carry a lone surrogate back.
        message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    values = (visit.request_id, status, message, word or WORDS[status])
    body = ErrorBody(*values) if details is None else Denied(*values, list(details))
    return Response(msgspec.json.encode(body), status_code=status, media_type=JSON, headers=dict(headers or {}))


def not_routed(visit: Visit) -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, f"Route {visit.method}:{visit.path} not found")


def answer(result: object) -> Response[bytes]:
    return Response(msgspec.json.encode(result), status_code=200, media_type=JSON)


def download(der: bytes, media_type: str) -> Response[bytes]:
    """What anybody may fetch and keep for a while."""
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(der, status_code=200, media_type=media_type, headers=headers)


def house(request: AnyRequest) -> House:
    opened: House = request.app.state.house
    return opened


def visit(request: AnyRequest) -> Visit:
    made: Visit = request.scope["state"]["visit"]
    return made


def caller(request: AnyRequest) -> Caller:
    admitted: Caller = request.scope["state"]["caller"]
    return admitted


def scope(request: AnyRequest) -> Scope:
    admitted: Scope = request.scope["state"]["scope"]
    return admitted


def ca_id(request: AnyRequest) -> UUID:
    """The CA's id in the path, which the gate has seen."""
    return UUID(request.path_params["ca_id"])


def serial(request: AnyRequest) -> str:
    """The serial number in the path; hex digits in any case, as people paste them from OpenSSL."""
    return serial_of(request.path_params["serial_number"])


def serial_of(text: str) -> str:
    return text.replace(":", "").lower()


async def body(request: AnyRequest) -> bytes:
    """The raw body, bounded in size and time."""
    length = request.headers.get("content-length", "")
    return await bodies.read(request.stream(), length, MAX_BODY, HTTPException, request.scope["state"])


def instant(time: datetime) -> str:
    """ISO 8601 with milliseconds and Z, as JavaScript writes it."""
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"


def shown(text: str) -> str:
    """A PEM text without the newline at its end, as Infisical sends it."""
    return text.removesuffix("\n")
