"""How the framework is used: route handlers that do nothing again for each request that can be done once.

Litestar copies the handler for each guard, merges the exception handlers of all layers for each request, converts and
validates each argument, and makes a Response of what a handler returns. Measured beside a bare ASGI app, that is more
than half of what a small GET costs.
"""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from enum import Enum, auto
from typing import Any, TypeAlias

import msgspec
from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler
from litestar.types import ExceptionHandlersMap, Middleware, Receive, Scope, Send
from litestar.typing import FieldDefinition

AnyRequest: TypeAlias = Request[Any, Any, Any]
AnyConnection: TypeAlias = ASGIConnection[Any, Any, Any, Any]


def header_values(connection: AnyConnection, name: bytes) -> list[str]:
    """The values of a header, whose name is in lower case; without the mapping that Litestar builds of all of them."""
    return [value.decode("latin-1") for key, value in connection.scope["headers"] if key == name]


_NOTHING = nullcontext()


class Part(Enum):
    PATH = auto()
    QUERY = auto()
    BODY = auto()


class Source(msgspec.Struct, frozen=True):
    """In a parameter's annotation: the part of the request that `read` makes the annotated type of.

    Those of a handler are read in the order of its parameters, so what is in the path comes before the body.

    For OpenAPI: `once` is for bodies with an Idempotency-Key, `media_types` are those that are read.
    """

    part: Part
    read: Callable[[Any, Any], Awaitable[Any]]
    once: bool = False
    required: bool = True
    media_types: tuple[str, ...] = ("application/json",)


def source_of(field: FieldDefinition) -> tuple[Source, type] | None:
    """The source of a handler's parameter and the Struct to read, if it has one."""
    for source in field.metadata:
        if isinstance(source, Source):
            return source, field.inner_types[0].annotation if field.inner_types else field.annotation
    return None


class Handler(HTTPRouteHandler):
    """A route handler whose methods return Structs.

    They take `context`, `request`, path parameters, and what a Source reads.
    """

    __slots__ = ("_arguments", "_merged_exception_handlers", "_sources")

    def __init__(self, path: str = "/", **options: Any) -> None:  # noqa: ANN401 - HTTPRouteHandler's own
        super().__init__(path, **options)
        self._arguments: tuple[str, ...] = ()
        self._sources: dict[str, tuple[Source, type]] = {}
        self._merged_exception_handlers: ExceptionHandlersMap | None = None

    def on_registration(self, app: Litestar) -> None:
        super().on_registration(app)
        parameters = self.parsed_fn_signature.parameters
        self._arguments = tuple(parameters)
        self._sources = {name: found for name, field in parameters.items() if (found := source_of(field))}

    def resolve_exception_handlers(self) -> ExceptionHandlersMap:
        """Those of all layers; merged once, when the handler has its place."""
        if self._merged_exception_handlers is None:
            self._merged_exception_handlers = super().resolve_exception_handlers()
        return self._merged_exception_handlers

    def create_kwargs_model(self, path_parameters: Any) -> Any:  # noqa: ANN401, ARG002 - the framework's own
        """None is needed: `_serve` finds the arguments."""
        return None

    def resolve_middleware(self) -> list[Middleware]:
        """Take the place of the route, which is where a middleware stands."""
        return [lambda app: self._serve]  # noqa: ARG005 - a middleware's

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the guards, read the arguments, call the method, and send what it returns."""
        request: AnyRequest = Request(scope, receive, send)
        for guard in self.resolve_guards():
            await guard(request, self)  # type: ignore[misc]
        values = {"request": request, "context": scope["state"].get("context"), **scope["path_params"]}
        for name, (source, struct) in self._sources.items():
            values[name] = await source.read(request, struct)
        # `State.count` has put there what is to be noted of a write, before its answer is sent.
        with scope["state"].get("noted") or _NOTHING:
            answer = await self.fn(**{name: values[name] for name in self._arguments})
        if isinstance(answer, msgspec.Struct | list):
            await _send(self.status_code, msgspec.json.encode(answer), send)
        else:
            response = await self.to_response(scope["litestar_app"], answer, request)
            await response(scope, receive, send)


async def _send(status: int, body: bytes, send: Send) -> None:
    """A JSON answer: two ASGI messages."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def get(path: str = "/", **options: Any) -> Handler:  # noqa: ANN401
    return Handler(path, http_method=HttpMethod.GET, status_code=200, **options)


def post(path: str = "/", *, status_code: int = 200, **options: Any) -> Handler:  # noqa: ANN401
    return Handler(path, http_method=HttpMethod.POST, status_code=status_code, **options)


def put(path: str = "/", **options: Any) -> Handler:  # noqa: ANN401
    return Handler(path, http_method=HttpMethod.PUT, status_code=200, **options)


def patch(path: str = "/", **options: Any) -> Handler:  # noqa: ANN401
    return Handler(path, http_method=HttpMethod.PATCH, status_code=200, **options)


def delete(path: str = "/", **options: Any) -> Handler:  # noqa: ANN401
    return Handler(path, http_method=HttpMethod.DELETE, status_code=200, **options)
