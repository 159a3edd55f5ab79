"""Pages for people: the API to read and try, and the reference of the errors. Nothing is loaded from elsewhere."""

import html
from importlib import resources
from typing import Any

import msgspec
from litestar import Response, get
from litestar.exceptions import NotFoundException

from app import infisical
from app.cloudflare import openapi, wire
from app.cloudflare.wire import AnyRequest

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
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


@get("/openapi.json")
async def openapi_json(request: AnyRequest) -> Response[bytes]:
    return Response(msgspec.json.encode(document(wire.house(request).public_url)), media_type="application/json")


def document(public_url: str) -> dict[str, Any]:
    """The OpenAPI document of both dialects; `public_url` is where the clients reach this server."""
    made = openapi.document(public_url)
    made["paths"].update(infisical.openapi.paths())
    made["components"]["schemas"].update(infisical.openapi.schemas())
    return made


@get("/docs")
async def docs() -> Response[bytes]:
    head = '<link rel="icon" href="/docs/favicon-32x32.png">\n<link rel="stylesheet" href="/docs/swagger-ui.css">'
    scripts = '<script src="/docs/swagger-ui-bundle.js"></script>\n<script src="/docs/start.js"></script>'
    return _html("Keystead API", f'<div id="api"></div>\n{scripts}', head)


@get("/docs/start.js")
async def start() -> Response[bytes]:
    return Response(_START.encode(), media_type="text/javascript", headers=_POLICY)


@get("/docs/{name:str}")
async def asset(request: AnyRequest) -> Response[bytes]:
    name: str = request.path_params["name"]
    if name not in _ASSETS:
        raise NotFoundException
    vendor = resources.files("swagger_ui_bundle").joinpath("vendor")
    folder = next(entry for entry in vendor.iterdir() if entry.name.startswith("swagger-ui-"))
    return Response(folder.joinpath(name).read_bytes(), media_type=_ASSETS[name], headers=_POLICY)


@get("/docs/errors")
async def errors() -> Response[bytes]:
    rows = "\n".join(
        f'<tr id="{code}"><td><a href="#{code}">{code}</a></td><td>{status}</td><td>{html.escape(text)}</td></tr>'
        for code, (status, text) in sorted(wire.CODES.items())
    )
    style = (
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .8rem;text-align:left;vertical-align:top}:target{background:#fff3c4}</style>"
    )
    head = "<table><thead><tr><th>code</th><th>HTTP</th><th>when</th></tr></thead><tbody>"
    return _html("Keystead error reference", f"<h1>Error reference</h1>\n{head}\n{rows}\n</tbody></table>", style)


HANDLERS = [openapi_json, docs, start, asset, errors]


def _html(title: str, body: str, head: str) -> Response[bytes]:
    page = _PAGE.format(title=title, head=head, body=body)
    return Response(page.encode(), media_type="text/html", headers=_POLICY)
