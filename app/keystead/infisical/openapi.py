"""What the OpenAPI document of this dialect says beyond the types: security, and failures."""

from collections.abc import Iterable

from litestar.routes import BaseRoute

from keystead.infisical import wire
from keystead.infisical.leaves import LeafOptions
from keystead.infisical.wire import Issue
from keystead.web import openapi
from keystead.web.openapi import Json, Operation, Schemas

_UUID = {"type": "string", "format": "uuid"}
_IN_PATH: Json = {
    "caId": _UUID,
    "caCertId": _UUID,
    "certId": _UUID,
    **dict.fromkeys(("policyId", "profileId", "applicationId", "certificateId"), _UUID),
    **{name: {"type": "string", "minLength": 1} for name in ("slug", "name")},
    "crlId": _UUID,
    "serialNumber": {"type": "string", "pattern": "^[4-7][0-9a-f]{39}$"},
}
_REASONS = {
    400: "The request contradicts a rule, or the state of the CA.",
    401: "There is no token, or it is not known.",
    403: "The token is malformed or expired, or not permitted; then there are `details`.",
    404: "There is no such CA, certificate, project or path for this caller.",
    413: "The body is larger than 1 MiB.",
    422: "A field is wrong or missing.",
    429: "The rate limit is used up.",
    500: "Something went wrong here.",
    503: "The database or the key queue is not available.",
}


def describe(routes: Iterable[BaseRoute]) -> tuple[Json, Json]:
    """The paths below /api, and the schemas that they refer to."""
    operations = [each for each in openapi.operations(routes, "", wire.camel) if each.path.startswith("/api/")]
    schemas = Schemas(operations, [Issue])
    paths: Json = {}
    for operation in operations:
        described = openapi.described(operation, schemas, _IN_PATH)
        described["security"] = [{"api_token": []}] if operation.handler.resolve_guards() else []
        described["responses"] = {"200": _success(operation, schemas), **_failures(operation)}
        item = paths.setdefault(operation.path, {"servers": [{"url": "/"}]})
        item[operation.method] = described
    components = schemas.without_queries()
    for operation in operations:
        if operation.body and issubclass(operation.body, LeafOptions):
            components[operation.body.__name__]["anyOf"] = [{"required": [name]} for name in LeafOptions.either]
    return paths, {**components, **{f"Error{status}": _error(status) for status in _REASONS}}


def _success(operation: Operation, schemas: Schemas) -> Json:
    if operation.answer is None:
        return {"description": "The file, in DER.", "content": {operation.handler.opt["file"]: {}}}
    return {"description": "Done.", "content": {wire.JSON: {"schema": schemas.of(operation.answer)}}}


def _failures(operation: Operation) -> Json:
    statuses = {500, 503}
    if operation.handler.resolve_guards():
        statuses |= {400, 401, 403, 404, 429}
    elif operation.answer is None:
        statuses.add(404)
    if operation.body:
        statuses |= {400, 401, 404, 413, 422, 429}
    if operation.query:
        statuses.add(422)
    return {str(status): _failure(status) for status in sorted(statuses)}


def _failure(status: int) -> Json:
    described: Json = {
        "description": _REASONS[status],
        "content": {wire.JSON: {"schema": {"$ref": f"#/components/schemas/Error{status}"}}},
    }
    if status in {429, 503}:
        described["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return described


def _error(status: int) -> Json:
    issues = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Issue"}}
    schema: Json = {
        "type": "object",
        "properties": {
            "reqId": {"type": "string", "pattern": "^req-[0-9A-Za-z]{14}$"},
            "statusCode": {"const": status},
            "message": issues if status == 422 else {"type": "string", "minLength": 1},
            "error": {"enum": ["TokenError", wire.WORDS[403]] if status == 403 else [wire.WORDS[status]]},
        },
        "required": ["reqId", "statusCode", "message", "error"],
        "additionalProperties": False,
    }
    if status == 403:
        texts = {"type": "object", "additionalProperties": {"type": "string"}}
        schema["properties"]["details"] = {"type": "array", "items": texts}
    return schema
