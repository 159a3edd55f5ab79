"""Pages for people: Swagger UI and the error reference. All assets are served from here."""

import html
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import msgspec
from litestar import Litestar, Response, get
from litestar.exceptions import NotFoundException
from litestar.routes import BaseRoute

from keystead import __version__
from keystead.cloudflare import openapi
from keystead.cloudflare.errors import CODES
from keystead.infisical import openapi as infisical_openapi
from keystead.web import documents
from keystead.web.documents import Document
from keystead.web.handling import AnyRequest
from keystead.web.state import state_of

_ASSETS = {
    "errors": "text/html",
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
}
_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{head}
</head>
<body>
{body}
</body>
</html>
"""
_START = """window.addEventListener("load", () => {
  SwaggerUIBundle({url: "/openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null});
});
"""


def _page(body: bytes, media_type: str, policy: Mapping[str, str] = _POLICY) -> Document:
    return documents.document(body, media_type, policy)


@get("/openapi.json")
async def openapi_json(request: AnyRequest) -> Response[bytes]:
    return documents.answer(request, _openapi(request.app, state_of(request).public_url))


@lru_cache(maxsize=1)
def _openapi(app: Litestar, public_url: str) -> Document:
    return _page(msgspec.json.encode(document(app.routes, public_url)), "application/json", {})


def document(routes: Sequence[BaseRoute], public_url: str) -> dict[str, Any]:
    """The OpenAPI document of both dialects; `public_url` is where the clients reach this server."""
    paths, schemas = openapi.describe(routes)
    more_paths, more_schemas = infisical_openapi.describe(routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keystead",
            "version": __version__,
            "description": "Key pairs and CSRs in Cloudflare's v4 dialect, private CAs in Infisical's.",
        },
        # The relative one first, so that the page can be tried by whatever name it was opened.
        "servers": [{"url": "/client/v4"}, {"url": f"{public_url}/client/v4"}],
        "security": [{"api_token": []}, {"api_email": [], "api_key": []}],
        "paths": {**paths, **more_paths},
        "components": {
            "securitySchemes": openapi.SECURITY_SCHEMES,
            "schemas": {**schemas, **more_schemas},
            "headers": openapi.HEADERS,
        },
    }


@get("/docs")
async def docs(request: AnyRequest) -> Response[bytes]:
    return documents.answer(request, _docs())


@cache
def _docs() -> Document:
    head = '<link rel="icon" href="/docs/favicon-32x32.png">\n<link rel="stylesheet" href="/docs/swagger-ui.css">'
    scripts = '<script src="/docs/swagger-ui-bundle.js"></script>\n<script src="/docs/start.js"></script>'
    return _html("Keystead API", f'<div id="api"></div>\n{scripts}', head)


@get("/docs/{name:str}")
async def asset(request: AnyRequest) -> Response[bytes]:
    name: str = request.path_params["name"]
    if name not in _ASSETS:
        raise NotFoundException
    return documents.answer(request, _asset(name))


@cache
def _asset(name: str) -> Document:
    if name == "errors":
        return _errors()
    if name == "start.js":
        return _page(_START.encode(), _ASSETS[name])
    vendor = resources.files("swagger_ui_bundle").joinpath("vendor")
    folder = next(entry for entry in vendor.iterdir() if entry.name.startswith("swagger-ui-"))
    return _page(folder.joinpath(name).read_bytes(), _ASSETS[name])


def _errors() -> Document:
    rows = "\n".join(
        f'<tr id="{code}"><td><a href="#{code}">{code}</a></td><td>{status}</td><td>{html.escape(text)}</td></tr>'
        for code, (status, text) in sorted(CODES.items())
    )
    style = (
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .8rem;text-align:left;vertical-align:top}:target{background:#fff3c4}</style>"
    )
    head = "<table><thead><tr><th>code</th><th>HTTP</th><th>when</th></tr></thead><tbody>"
    return _html("Keystead error reference", f"<h1>Error reference</h1>\n{head}\n{rows}\n</tbody></table>", style)


HANDLERS = [openapi_json, docs, asset]


def _html(title: str, body: str, head: str) -> Document:
    return _page(_PAGE.format(title=title, head=head, body=body).encode(), "text/html")
