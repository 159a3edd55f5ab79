"""Serves the files of `static/` by a fixed table: no path of a request ever becomes the name of a file."""

from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from litestar import Response, get
from litestar.exceptions import NotFoundException

from keystead.config import Settings
from keystead.web import documents
from keystead.web.documents import Document
from keystead.web.handling import AnyRequest

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = {
    # Trusted types: whatever a script made markup of, the browser would refuse it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _read(folder: Traversable, path: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            files |= _read(entry, f"{path}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            files["/" if entry.name == "index.html" else f"{path}{entry.name}"] = entry.read_bytes()
    return files


_FILES = _read(resources.files("keystead.console") / "static", "/console/")
PATHS = frozenset(_FILES)


def is_on(request: AnyRequest) -> bool:
    settings: Settings = request.app.state["settings"]
    return settings.console


@get(sorted(PATHS))
async def file(request: AnyRequest) -> Response[bytes]:
    if not is_on(request):
        raise NotFoundException
    return documents.answer(request, _document(request.scope["state"]["request_info"].path))


@cache
def _document(path: str) -> Document:
    # Made by the worker that serves it, whose own file it is.
    kind = _TYPES["html" if path == "/" else path.rpartition(".")[2]]
    return documents.document(_FILES[path], kind, _POLICY)
