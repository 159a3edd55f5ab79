"""What the OpenAPI documents of all paths share: headers, envelopes, answers (contract-cloudflare section 1)."""

from typing import Any

from app.cloudflare import envelope as envelopes
from app.cloudflare import errors
from app.store.paging import MAX_PAGE

Json = dict[str, Any]
ID32 = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
UUID = {"type": "string", "format": "uuid", "minLength": 36, "maxLength": 36}

ONCE = {
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


def without_defaults(schema: Json) -> None:
    # An unset optional is absent on the wire, never null.
    for name, field in schema["properties"].items():
        if field.pop("default", ...) is None:
            schema["properties"][name] = next(kind for kind in field["anyOf"] if kind != {"type": "null"})


def envelope(result: Json) -> Json:
    items = {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}
    return {
        "type": "object",
        "properties": {
            "result": result,
            "success": {"const": True},
            "errors": {**items, "maxItems": 0},
            "messages": items,
        },
        "required": ["result", "success", "errors", "messages"],
        "additionalProperties": False,
    }


def id_parameter(level: str) -> Json:
    return {"name": f"{level}_id", "in": "path", "required": True, "schema": ID32}


def operation(operation_id: str, summary: str, parameters: list[Json], tag: str = "Custom CSRs") -> Json:
    return {"operationId": operation_id, "summary": summary, "tags": [tag], "parameters": parameters}


def responses(
    status: str, answer: str, failures: tuple[int, ...], *, files: bool = False, example: Json | None = None
) -> Json:
    """The answers of an operation: its success, and its failures with their codes."""
    content: Json = {envelopes.JSON: {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    if example:
        content[envelopes.JSON]["example"] = {"result": example, "success": True, "errors": [], "messages": []}
    if files:
        content["application/x-pem-file"] = {"schema": {"type": "string"}}
        content["application/pkcs10"] = {"schema": {"type": "string", "format": "binary"}}
    made = ("Location", "Content-Disposition") if status == "201" else ("Content-Disposition",) if files else ()
    names = ("X-Request-Id", "Ratelimit", "Ratelimit-Policy", *made)
    told = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    answers: Json = {status: {"description": "Done.", "content": content, "headers": told}}
    for failure in sorted({*failures, 404}):
        codes = {c: text for c, (s, text) in errors.CODES.items() if s == failure and not 6100 < c < 6200}
        described = " ".join(f"{code}: {text}" for code, text in codes.items())
        schema = {envelopes.JSON: {"schema": {"$ref": "#/components/schemas/Failure"}}}
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _FAILURE_HEADERS.get(failure, ())}
        answers[str(failure)] = {
            "description": described,
            "content": schema,
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}, **headers},
        }
    return answers


def query_parameters(schemas: Json) -> list[Json]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]


def paging(default: int, low: int, high: int) -> Json:
    """The schemas of `page` and `per_page`."""
    return {
        "page": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 1},
        "per_page": {"type": "integer", "minimum": low, "maximum": high, "default": default},
    }


def json_body(schema: str) -> Json:
    content = {envelopes.JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"required": True, "content": content}


def listed(name: str, info: str = "ResultInfo") -> Json:
    """The envelope of a list of these."""
    made = envelope({"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}})
    made["properties"]["result_info"] = {"$ref": f"#/components/schemas/{info}"}
    made["required"].append("result_info")
    return made
