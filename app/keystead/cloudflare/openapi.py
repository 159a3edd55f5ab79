"""What the OpenAPI document of this dialect says beyond the types: security, headers, failures and examples."""

from collections.abc import Iterable

from litestar.routes import BaseRoute

from keystead.cloudflare import errors
from keystead.cloudflare.envelope import JSON, Failure
from keystead.cloudflare.tokens import Policy
from keystead.web import openapi
from keystead.web.openapi import Json, Operation, Schemas

SECURITY_SCHEMES = {
    "api_token": {"type": "http", "scheme": "bearer"},
    "api_email": {"type": "apiKey", "in": "header", "name": "X-Auth-Email"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-Auth-Key"},
}
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    "description": "Requests with the same key make one thing, for 24 hours.",
}
HEADERS = {
    "X-Request-Id": {"schema": {"type": "string"}, "description": "Names this request in the server's log."},
    "Ratelimit": {"schema": {"type": "string"}, "example": '"default";r=1199;t=1'},
    "Ratelimit-Policy": {"schema": {"type": "string"}, "example": '"default";q=1200;w=300'},
    "Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": 60}, "description": "In seconds."},
    "X-Should-Retry": {"schema": {"const": "false"}, "description": "Repeating the request will not help."},
    "Location": {"schema": {"type": "string"}, "description": "Where the CSR is, with a file as the answer."},
    "Content-Disposition": {"schema": {"type": "string"}, "description": "The file's name, with a file as the answer."},
}
_FAILURE_HEADERS = {409: ("X-Should-Retry",), 429: ("Retry-After",), 503: ("Retry-After",)}
_HEX32 = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_UUID = {"type": "string", "format": "uuid", "minLength": 36, "maxLength": 36}
_IN_PATH: dict[str, Json] = {
    "account_id": _HEX32,
    "zone_id": _HEX32,
    "token_id": _HEX32,
    "custom_csr_id": _UUID,
    "custom_certificate_id": _UUID,
    "entry_id": _UUID,
}
_REQUEST = {
    "common_name": "example.com",
    "country": "US",
    "state": "California",
    "locality": "San Francisco",
    "organization": "Cloudflare, Inc.",
    "organizational_unit": "Engineering",
    "name": "My Custom CSR",
    "description": "CSR for example.com wildcard",
    "sans": ["example.com", "www.example.com"],
    "key_type": "p256v1",
}
_CSR = {
    **_REQUEST,
    "id": "7b163417-1d2b-4c84-a38a-2fb7a0cd7752",
    "created_at": "2026-01-15T10:30:00.000000Z",
    "account_tag": "023e105f4ecef8ad9ca31a8372d0c353",
    "csr": "-----BEGIN CERTIFICATE REQUEST-----\n…\n-----END CERTIFICATE REQUEST-----\n",
}


def describe(routes: Iterable[BaseRoute]) -> tuple[Json, Json]:
    """The paths below /client/v4, and the schemas that they refer to."""
    operations = openapi.operations(routes, "/client/v4", str)
    schemas = Schemas(operations, [Failure, Policy])
    paths: Json = {}
    for operation in operations:
        described = openapi.described(operation, schemas, _IN_PATH)
        if operation.source and operation.source.once:
            described["parameters"].append(_ONCE)
        if operation.path.endswith("/tokens/verify"):
            described["security"] = [{"api_token": []}]
        described["responses"] = {**_success(operation, schemas), **_failures(operation)}
        paths.setdefault(operation.path, {})[operation.method] = described
    components = schemas.without_queries()
    components["CustomCsrRequest"]["example"] = _REQUEST
    # Both are stored and returned as they were sent.
    token = components["TokenObject"]["properties"]
    token["policies"] = {"type": "array", "minItems": 1, "items": schemas.of(Policy)}
    token["condition"] = {"$ref": "#/components/schemas/Condition"}
    return paths, components


def _success(operation: Operation, schemas: Schemas) -> Json:
    answer, status = schemas.of(operation.answer), operation.handler.status_code
    content: Json = {JSON: {"schema": answer}}
    headers = ["X-Request-Id", "Ratelimit", "Ratelimit-Policy"]
    if operation.files:
        content[JSON]["example"] = {"result": _CSR, "success": True, "errors": [], "messages": []}
        content["application/x-pem-file"] = {"schema": {"type": "string"}}
        content["application/pkcs10"] = {"schema": {"type": "string", "format": "binary"}}
        headers += ["Content-Disposition", "Location"] if status == 201 else ["Content-Disposition"]
    return {str(status): {"description": "Done.", "content": content, "headers": _headers(headers)}}


def _failures(operation: Operation) -> Json:
    statuses = {400, 403, 404, 429, 500, 503}
    if operation.method != "get":
        statuses.add(413)
    once = operation.source is not None and operation.source.once
    if operation.method != "get" and (once or "custom_certificates" not in operation.path):
        statuses.add(409)
    if operation.path.endswith("/tokens/verify"):
        statuses.add(401)
    return {str(status): _failure(status) for status in sorted(statuses)}


def _failure(status: int) -> Json:
    # Codes of 6xxx stand in an error_chain.
    codes = {c: text for c, (s, text) in errors.CODES.items() if s == status and not 6100 < c < 6200}
    return {
        "description": " ".join(f"{code}: {text}" for code, text in codes.items()),
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Failure"}}},
        "headers": _headers(("X-Request-Id", *_FAILURE_HEADERS.get(status, ()))),
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
