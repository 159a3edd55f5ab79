"""Infisical's wire format: error bodies, the error table, and access to the request (contract-infisical, "Common")."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, TypeAlias

import msgspec
from litestar import Response
from msgspec import Meta

from keystead import errors, times
from keystead.caller import RequestInfo
from keystead.errors import Denial, Problem, Rule
from keystead.web import bodies
from keystead.web.handling import AnyRequest

MAX_BODY = 1024 * 1024
JSON = "application/json"
Uuid: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Instant: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
MALFORMED = "The provided access token is malformed. Please use a valid token or generate a new one and try again."
EXPIRED = "Your token has expired. Please re-authenticate."
NOT_ALLOWED = "You are not allowed to access this resource"

# The value of `error` for each status.
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
    """A denied action and its subject."""

    action: str
    subject: str


class PermissionErrorBody(ErrorBody, frozen=True, rename="camel"):
    details: list[Detail]


class ApiError(Exception):
    """A refusal by the dialect; `word` is the value of `error`, by default that of the status."""

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


class ValidationFailure(Exception):  # noqa: N818
    """A body with wrong or missing fields."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__("; ".join(issue.message for issue in issues))
        self.issues = issues


# Wire names of the core's fields, where they are not just camelCase.
_FIELDS = {"organizational_unit": "ou", "state": "province"}
# Zod's codes for the core's rules; all others are "custom".
_ISSUE_CODES = {
    Rule.MISSING: "invalid_type",
    Rule.LENGTH: "too_big",
    Rule.COMMON_NAME_LENGTH: "too_big",
    Rule.CHOICE: "invalid_enum_value",
}


def issue_of(problem: Problem) -> Issue:
    """A problem of the core as an issue; its text begins with the field's name, which becomes the wire name."""
    field = _FIELDS.get(problem.field, camel(problem.field))
    text = field + problem.text.removeprefix(problem.field)
    return Issue(_ISSUE_CODES.get(problem.rule, "custom"), [field], text)


def camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


_DENIALS: dict[Denial, str] = {
    Denial.RESOURCE: "Unauthorized to access requested resource",
    Denial.ADDRESS: "Cannot use the access token from location: {}",
}
# Errors that need no more than a status and their message.
STATUSES: dict[type[Exception], int] = {
    errors.Refusal: 400,
    errors.Conflict: 400,
    errors.LimitReached: 400,
    errors.NotFound: 404,
    errors.CertificateDamaged: 500,
    bodies.Incomplete: 400,
    bodies.TooLarge: 413,
}


def failure(error: Exception, request_info: RequestInfo) -> Response[bytes]:
    """The answer for an error; an unexpected exception becomes 500 without its text."""
    match error:
        case errors.Invalid():
            return _answer(ApiError(422, ""), [issue_of(problem) for problem in error.problems], request_info)
        case ValidationFailure():
            return _answer(ApiError(422, ""), list(error.issues), request_info)
    refusal = _refusal(error)
    # It may quote input with a lone surrogate, which cannot be encoded as UTF-8.
    return _answer(refusal, str(refusal).encode("utf-8", "backslashreplace").decode("utf-8"), request_info)


def _refusal(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case _ if type(error) in STATUSES:
            return ApiError(STATUSES[type(error)], str(error))
        case errors.Unauthenticated() if error.expired:
            return ApiError(403, EXPIRED, "TokenError")
        case errors.Unauthenticated():
            return ApiError(401, NOT_ALLOWED)
        case errors.Forbidden():
            return ApiError(403, _DENIALS.get(error.denial, "{}").format(error), details=[])
        case errors.Unavailable():
            advice = "Look before you repeat the request." if error.in_doubt else "Please try again."
            return ApiError(503, f"Not available now: {error}. {advice}", retry_after=max(error.retry_after, 1))
    return ApiError(500, "Something went wrong")


def _answer(error: ApiError, message: str | list[Issue], request_info: RequestInfo) -> Response[bytes]:
    values = (request_info.request_id, error.status, message, error.word)
    body = ErrorBody(*values) if error.details is None else PermissionErrorBody(*values, list(error.details))
    headers = {"Retry-After": str(min(error.retry_after, 60))} if error.retry_after else {}
    return Response(msgspec.json.encode(body), status_code=error.status, media_type=JSON, headers=headers)


def not_routed(request_info: RequestInfo) -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, f"Route {request_info.method}:{request_info.path} not found")


def download(der: bytes, media_type: str) -> Response[bytes]:
    """A public DER file, cacheable for five minutes."""
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(der, status_code=200, media_type=media_type, headers=headers)


def request_info(request: AnyRequest) -> RequestInfo:
    found: RequestInfo = request.scope["state"]["request_info"]
    return found


def serial_of(text: str) -> str:
    return text.replace(":", "").lower()


async def body(request: AnyRequest) -> bytes:
    """The raw body, bounded in size and time."""
    return await bodies.read(request, MAX_BODY)


def instant(time: datetime) -> str:
    """ISO 8601 with milliseconds and Z, as JavaScript writes it."""
    return f"{times.instant(time)[:23]}Z"


def shown(text: str) -> str:
    """PEM without its trailing newline, as Infisical sends it."""
    return text.removesuffix("\n")
