"""Documents that do not change while the server runs: made once, and not sent again to whoever has them."""

import hashlib
import os
from collections.abc import Mapping

import msgspec
from litestar import Response

from keystead.web.handling import AnyRequest


class Document(msgspec.Struct, frozen=True):
    """A document with a strong ETag (RFC 9110 section 8.8.3)."""

    body: bytes
    media_type: str
    headers: dict[str, str]
    file: str


def document(body: bytes, media_type: str, policy: Mapping[str, str]) -> Document:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    file = os.memfd_create(media_type)
    os.write(file, body)
    # Clients may cache it but must revalidate: another release has other content.
    headers = {"ETag": etag, "Cache-Control": "no-cache", **policy}
    return Document(body, media_type, headers, f"/proc/{os.getpid()}/fd/{file}")


def answer(request: AnyRequest, found: Document) -> Response[bytes]:
    """The document, or 304 if If-None-Match has its ETag (RFC 9110 section 13.1.2)."""
    cached = ",".join(request.headers.getall("if-none-match", []))
    if any(tag.strip().removeprefix("W/") in (found.headers["ETag"], "*") for tag in cached.split(",")):
        return Response(b"", status_code=304, headers=found.headers)
    request.scope["state"]["file"] = found.file
    return Response(found.body, media_type=found.media_type, headers=found.headers)
