"""The thin ASGI wrapper around everything: request id, raw path, client address, common headers, one log line.

Nothing here is built from Host or X-Forwarded-* headers, but for the client address behind a trusted proxy.
"""

import asyncio
import os
import re
import secrets
import string
import time
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from app import bounds, metrics
from app.addresses import Address, Network, parsed
from app.caller import RequestInfo
from app.config import RateLimit
from app.server.request_log import RequestLog
from app.store import database as db
from app.web import bodies
from app.web.asgi import REQUEST_ID, Answer, App, Door, Message, Receive, Send
from app.web.limits import Verdict

MAX_USER_AGENT = 256
INFISICAL = "/api/"
_ALPHANUMERICS = string.ascii_letters + string.digits
# A path that no route has: what must not be decoded twice or at all is sent there.
_NOWHERE = "/-"
# What decodes to itself, without an empty segment.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_.-]+)+/?")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


# The server reads the file as fast as the client does; a body would be in its memory until the last byte was taken.
_PATHSEND = "http.response.pathsend"


class Edge:
    def __init__(
        self,
        app: App,
        trusted_proxies: tuple[Network, ...],
        rate_limit: RateLimit | None,
        log: RequestLog,
        door: Door | None = None,
    ) -> None:
        self._app = app
        self._door = door
        self._log = log
        self._spaces = bodies.Spaces()
        self._trusted = trusted_proxies
        self._policy = f'"default";q={rate_limit.quota};w={rate_limit.window}' if rate_limit else ""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        refusal = self._door(scope["raw_path"]) if self._door else None
        if refusal:
            await self._turn_away(refusal, scope, send, started)
            return
        db.begin(reads=scope["method"] in {"GET", "HEAD"})
        visit = self._visit(scope)
        state = scope.setdefault("state", {})
        state["visit"], state["spaces"] = visit, self._spaces
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                own = self._headers(visit.request_id, state.get("verdict"), cacheable=_has(headers, b"cache-control"))
                message["headers"] = [*(_allow(headers) if status == HTTPStatus.METHOD_NOT_ALLOWED else headers), *own]
            elif visit.method == "HEAD":
                message = {**message, "body": b""}
            elif "file" in state and _PATHSEND in scope.get("extensions", ()):
                message = {"type": _PATHSEND, "path": state["file"]}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            if "held" in state:
                state["held"].give_back()
            seconds = time.perf_counter() - started
            route = _route(scope)
            metrics.answered(_dialect(visit.path), visit.method, route, status, seconds)
            self._log.write(
                visit.request_id,
                visit.method,
                _printable(visit.path),
                route,
                status,
                seconds,
                state.get("caller_id"),
                _address_text(visit.address) if visit.address else None,
            )

    async def _turn_away(self, refusal: Answer, scope: Message, send: Send, started: float) -> None:
        """Without what would cost more than the answer, such as a line in the log for each."""
        await asyncio.sleep(bounds.TURNED_AWAY_SECONDS)
        path = unquote_to_bytes(scope["raw_path"]).decode("latin-1")
        request_id = _request_id(path)
        body = refusal.body.replace(REQUEST_ID, request_id.encode())
        length = str(len(body)).encode()
        own = self._headers(request_id, None, cacheable=False)
        headers = [(b"content-type", b"application/json"), (b"content-length", length), *refusal.headers, *own]
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        metrics.answered(_dialect(path), scope["method"], "-", refusal.status, time.perf_counter() - started)
        self._log.turned_away()

    def _visit(self, scope: Message) -> RequestInfo:
        method, path = scope["method"], _path(scope["raw_path"])
        scope["path"] = path if path is not None else _NOWHERE
        # GET answers HEAD without its body; no route answers PROPFIND, and so none answers OPTIONS by itself.
        scope["method"] = {"HEAD": "GET", "OPTIONS": "PROPFIND"}.get(method, method)
        # The framework refuses a Host that it cannot parse; to us it means nothing, so it is not shown to it.
        headers = scope["headers"] = [header for header in scope["headers"] if header[0] != b"host"]
        shown = path if path is not None else scope["raw_path"].decode("latin-1")
        agent = _header(headers, b"user-agent")
        return RequestInfo(
            address=self._address(scope),
            request_id=_request_id(shown),
            method=method,
            path=shown,
            user_agent=_printable(agent)[:MAX_USER_AGENT] if agent else None,
        )

    def _address(self, scope: Message) -> Address | None:
        """The peer, or the nearest address in X-Forwarded-For that is not a trusted proxy's (contract section 5)."""
        peer = parsed(scope["client"][0]) if scope.get("client") else None
        if peer is None or not self._is_trusted(peer):
            return peer
        hops = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        if not hops:
            return peer
        for hop in reversed(hops.decode("latin-1").split(",")):
            address = parsed(hop.strip())
            if address is None:
                # Taking the proxy itself for the client would let everybody through who says so.
                return None
            peer = address
            if not self._is_trusted(peer):
                return peer
        return peer

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)

    def _headers(self, request_id: str, verdict: Verdict | None, *, cacheable: bool) -> list[tuple[bytes, bytes]]:
        shown = request_id.encode()
        headers = [(b"x-request-id", shown), (b"cf-ray", shown)]
        if not cacheable:
            headers.append((b"cache-control", b"no-store"))
        if verdict:
            left = f'"default";r={verdict.remaining};t={verdict.reset}'
            headers += [(b"ratelimit", left.encode()), (b"ratelimit-policy", self._policy.encode())]
        return headers


# An address is written out for each line of the log, and most requests come from few addresses.
_address_text = lru_cache(maxsize=4096)(str)


def _request_id(path: str) -> str:
    """32 hex digits, or for Infisical's clients `req-` and 14 alphanumerics, as they know it."""
    if f"{path}/".startswith(INFISICAL):
        return "req-" + "".join(secrets.choice(_ALPHANUMERICS) for _ in range(14))
    return os.urandom(16).hex()


def _route(scope: Message) -> str:
    """The template of the path, without the types of its parameters; `-` for a path that no route has."""
    return _untyped(scope.get("path_template", "-"))


@lru_cache(maxsize=1024)
def _untyped(template: str) -> str:
    return re.sub(r":[a-z]+\}", "}", template)


def _dialect(path: str) -> str:
    if path.startswith("/client/v4/"):
        return "cloudflare"
    return "infisical" if path.startswith(INFISICAL) else "none"


def _allow(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The framework counts its own OPTIONS, which nobody gets to, and not HEAD, which is answered like GET."""
    return [(name, _methods(value)) if name.lower() == b"allow" else (name, value) for name, value in headers]


def _methods(allow: bytes) -> bytes:
    methods = set(allow.split(b", ")) - {b"OPTIONS"}
    return b", ".join(sorted(methods | {b"HEAD"} if b"GET" in methods else methods))


def _has(headers: list[tuple[bytes, bytes]], name: bytes) -> bool:
    return any(key.lower() == name for key, _ in headers)


def _path(raw: bytes) -> str | None:
    """The path decoded once, without a trailing slash; None for one that names nothing whatever it decodes to."""
    text = raw.decode("latin-1")
    if _PLAIN.fullmatch(text):
        return text.removesuffix("/") or "/"
    if not text.startswith("/") or _ESCAPE.search(text):
        return None
    segments = text[1:].removesuffix("/").split("/")
    try:
        decoded = [unquote_to_bytes(segment.encode("latin-1")).decode("utf-8") for segment in segments]
    except UnicodeDecodeError:
        return None
    if len(decoded) > 1 and "" in decoded:
        return None
    if any("/" in segment or "\x00" in segment for segment in decoded):
        return None
    return "/" + "/".join(decoded)


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)
