"""OpenAPI 3.1 from the routes and their handlers' types: paths, parameters, bodies and answers.

The schemas are msgspec's, of the very Structs that are read and encoded. What types cannot say (security, failures,
examples) the dialects add.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

import msgspec
from litestar import Response
from litestar.routes import BaseRoute, HTTPRoute

from keystead.web.handling import Handler, Part, Source, source_of

Json = dict[str, Any]
_REF = "#/components/schemas/"


class Operation(msgspec.Struct, frozen=True):
    """One method of one path, as the handler's types describe it."""

    path: str
    method: str
    handler: Handler
    answer: Any
    files: bool
    query: type | None
    body: type | None
    source: Source | None

    @property
    def id(self) -> str:
        """Unique, from the handler's name and the words of the path."""
        words = re.sub(r"\{\w+\}", "", self.path).replace("/", "_").replace("-", "_").split("_")
        return re.sub(r"_(\w)", lambda word: word[1].upper(), self.handler.handler_name.rstrip("_")) + "".join(
            word.capitalize() for word in words
        )


def operations(routes: Iterable[BaseRoute], prefix: str, rename: Callable[[str], str]) -> list[Operation]:
    """The operations below `prefix`, which their paths leave out; `rename` names the parameters of paths."""
    found = []
    for route in routes:
        if isinstance(route, HTTPRoute) and route.path.startswith(prefix):
            path = re.sub(r"\{(\w+)\}", lambda name: f"{{{rename(name[1])}}}", route.path_format.removeprefix(prefix))
            found += [_operation(path, handler) for handler in route.route_handlers if isinstance(handler, Handler)]
    # The framework's own order is that of hashes, which every process has its own of.
    return sorted(found, key=lambda operation: (operation.path, operation.method))


def _operation(path: str, handler: Handler) -> Operation:
    found = {}
    for field in handler.parsed_fn_signature.parameters.values():
        source = source_of(field)
        if source:
            found[source[0].part] = source
    returned = handler.parsed_fn_signature.return_type.annotation
    kinds = get_args(returned) if get_origin(returned) in (Union, type(int | str)) else (returned,)
    answers = [kind for kind in kinds if (get_origin(kind) or kind) is not Response]
    return Operation(
        path=path,
        method=next(method.lower() for method in handler.http_methods if method != "OPTIONS"),
        handler=handler,
        answer=answers[0] if answers else None,
        files=len(answers) < len(kinds),
        query=found[Part.QUERY][1] if Part.QUERY in found else None,
        body=found[Part.BODY][1] if Part.BODY in found else None,
        source=found[Part.BODY][0] if Part.BODY in found else None,
    )


class Schemas:
    """The components of a document; `of` refers to them."""

    def __init__(self, operations: Sequence[Operation], others: Iterable[Any] = ()) -> None:
        answers = [each.answer for each in operations if each.answer]
        bodies = [each.body for each in operations if each.body]
        self._queries = [each.query for each in operations if each.query]
        types = [*dict.fromkeys([*answers, *bodies, *others, *self._queries])]
        schemas, components = msgspec.json.schema_components(types, ref_template=_REF + "{name}")
        self._refs: dict[Any, Json] = {kind: _renamed(schema) for kind, schema in zip(types, schemas, strict=True)}
        self.components: Json = {_readable(name): _renamed(schema) for name, schema in components.items()}
        read = self._with_parts({_name(self._refs[kind]) for kind in (*bodies, *self._queries)})
        for name, schema in self.components.items():
            if "properties" in schema and name not in read and not name.endswith("Request"):
                _close(schema)

    def _with_parts(self, names: set[str]) -> set[str]:
        """These schemas, and all that they refer to."""
        parts = {part for name in names if name in self.components for part in _named_in(self.components[name])}
        return names if parts <= names else self._with_parts(names | parts)

    def of(self, kind: Any) -> Json:  # noqa: ANN401 - a type
        return self._refs[kind]

    def parameters(self, query: type) -> list[Json]:
        """The query parameters of a Struct."""
        schema = self.components[_name(self._refs[query])]
        required = schema.get("required", ())
        return [
            {"name": name, "in": "query", "required": name in required, "schema": _without_null(field)}
            for name, field in schema["properties"].items()
        ]

    def without_queries(self) -> Json:
        names = {_name(self._refs[query]) for query in self._queries}
        return {name: schema for name, schema in sorted(self.components.items()) if name not in names}


def _named_in(schema: object) -> set[str]:
    """The schemas that one refers to."""
    if isinstance(schema, dict):
        own = {_name(schema)} if "$ref" in schema else set()
        return own.union(*map(_named_in, schema.values()))
    return set[str]().union(*map(_named_in, schema)) if isinstance(schema, list) else set()


def _name(ref: Json) -> str:
    return str(ref.get("$ref", "")).removeprefix(_REF)


def _readable(name: str) -> str:
    """`CustomCsrAnswer` for Envelope[CustomCsr], `CustomCsrList` for Page[CustomCsr]."""
    match = re.fullmatch(r"(Envelope|Page)_(list_)?(?:[a-z_]+\.)*(\w+?)_+", name)
    if match is None:
        return name
    return f"{match[3][:1].upper()}{match[3][1:]}{'List' if match[1] == 'Page' else 's' * bool(match[2]) + 'Answer'}"


def _renamed(node: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(node, Mapping):
        if "$ref" in node:
            return {**node, "$ref": _REF + _readable(_name(dict(node)))}
        return {key: _renamed(value) for key, value in node.items() if key != "title"}
    return [_renamed(each) for each in node] if isinstance(node, list) else node


def _close(schema: Json) -> None:
    """An answer has no other fields, and one that is unset is absent, never null."""
    schema["additionalProperties"] = False
    for name, field in schema["properties"].items():
        if field.pop("default", ...) is None:
            schema["properties"][name] = _without_null(field)


def _without_null(field: Json) -> Json:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if not kinds:
        return field
    return {**kinds[0], **{key: value for key, value in field.items() if key != "anyOf" and value is not None}}


def described(operation: Operation, schemas: Schemas, in_path: Mapping[str, Json]) -> Json:
    """An operation without its responses; `in_path` has the schemas of path parameters."""
    handler, names = operation.handler, re.findall(r"\{(\w+)\}", operation.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": in_path[name]} for name in names]
    parameters += schemas.parameters(operation.query) if operation.query else []
    described: Json = {
        "operationId": operation.id,
        "summary": (inspect.getdoc(handler.fn) or "").partition("\n")[0].rstrip("."),
        "tags": sorted(handler.resolve_tags()),
        "parameters": parameters,
    }
    if operation.body and operation.source:
        content = {media_type: {"schema": schemas.of(operation.body)} for media_type in operation.source.media_types}
        described["requestBody"] = {"required": operation.source.required, "content": content}
    return described
