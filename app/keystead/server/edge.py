"""The thin ASGI wrapper around everything: request id, raw path, client address, common headers, one log line.

Nothing here is built from Host or X-Forwarded-* headers, but for the client address behind a trusted proxy.
"""

import asyncio
import random
import re
import string
import time
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from keystead import bounds, metrics
from keystead.addresses import Address, Network, parsed
from keystead.caller import RequestInfo
from keystead.config import RateLimit
from keystead.server.request_log import Line, RequestLog
from keystead.store import database as db
from keystead.web import bodies
from keystead.web.asgi import REQUEST_ID, Answer, App, Headers, Message, Overload, Receive, Send, header
from keystead.web.limits import Verdict

MAX_USER_AGENT = 256
INFISICAL = "/api/"
# One of them for each value of a byte.
_ALPHANUMERICS = ((string.ascii_letters + string.digits) * 5)[:256].encode()
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
        overload: Overload | None = None,
        dialect: str | None = None,
    ) -> None:
        self._app = app
        # By its paths, unless it has one.
        self._dialect = dialect
        self._overload = overload
        self._log = log
        self._budgets = bodies.Budgets()
        self._trusted = trusted_proxies
        self._policy = f'"default";q={rate_limit.quota};w={rate_limit.window}'.encode() if rate_limit else b""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        rejection = self._overload(scope["raw_path"]) if self._overload else None
        if rejection:
            await self._reject(rejection, scope, send, started)
            return
        db.begin(reads=scope["method"] in {"GET", "HEAD"})
        request_info = self._request_info(scope)
        state = scope.setdefault("state", {})
        state["request_info"], state["budgets"] = request_info, self._budgets
        try:
            await self._app(scope, receive, self._sender(scope, request_info, send))
        finally:
            if "reserved" in state:
                state["reserved"].release()
            self._record(scope, request_info, time.perf_counter() - started)

    def _sender(self, scope: Message, request_info: RequestInfo, send: Send) -> Send:
        """`send` with the common headers, and without a body for HEAD."""
        state = scope["state"]

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = self._headers(message, request_info.request_id, state.get("verdict"))
            elif request_info.method == "HEAD":
                message = {**message, "body": b""}
            elif "file" in state and _PATHSEND in scope.get("extensions", ()):
                message = {"type": _PATHSEND, "path": state["file"]}
            await send(message)

        return sender

    def _record(self, scope: Message, request_info: RequestInfo, seconds: float) -> None:
        state, route = scope["state"], _route(scope.get("path_template", "-"))
        status = state.get("status", 0)
        metrics.answered(self._dialect or _dialect(request_info.path), request_info.method, route, status, seconds)
        line = Line(
            request_id=request_info.request_id,
            method=request_info.method,
            path=_printable(request_info.path),
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            caller=state.get("caller_id"),
            address=_address_text(request_info.address) if request_info.address else None,
        )
        self._log.write(line)

    async def _reject(self, rejection: Answer, scope: Message, send: Send, started: float) -> None:
        """Without what would cost more than the answer, such as a line in the log for each."""
        await asyncio.sleep(bounds.TURNED_AWAY_SECONDS)
        path = unquote_to_bytes(scope["raw_path"]).decode("latin-1")
        request_id = _request_id(path)
        body = rejection.body.replace(REQUEST_ID, request_id.encode())
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), *rejection.headers]
        start: Message = {"type": "http.response.start", "status": rejection.status, "headers": headers}
        start["headers"] = self._headers(start, request_id, None)
        await send(start)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        metrics.answered(_dialect(path), scope["method"], "-", rejection.status, time.perf_counter() - started)
        self._log.count_rejected()

    def _request_info(self, scope: Message) -> RequestInfo:
        method, path = scope["method"], _path(scope["raw_path"])
        scope["path"] = path if path is not None else _NOWHERE
        # GET answers HEAD without its body; no route answers PROPFIND, and so none answers OPTIONS by itself.
        scope["method"] = {"HEAD": "GET", "OPTIONS": "PROPFIND"}.get(method, method)
        # The framework refuses a Host that it cannot parse; to us it means nothing, so it is not shown to it.
        headers = scope["headers"] = [each for each in scope["headers"] if each[0] != b"host"]
        shown = path if path is not None else scope["raw_path"].decode("latin-1")
        agent = header(headers, b"user-agent")
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

    def _headers(self, start: Message, request_id: str, verdict: Verdict | None) -> Headers:
        """The headers of an answer that starts with this message, and those that all answers have."""
        given: Headers = start["headers"]
        shown = request_id.encode()
        headers = _allow(given) if start["status"] == HTTPStatus.METHOD_NOT_ALLOWED else [*given]
        headers += [(b"x-request-id", shown), (b"cf-ray", shown)]
        if all(name != b"cache-control" for name, _ in given):
            headers.append((b"cache-control", b"no-store"))
        if verdict:
            left = f'"default";r={verdict.remaining};t={verdict.reset}'
            headers += [(b"ratelimit", left.encode()), (b"ratelimit-policy", self._policy)]
        return headers


# An address is written out for each line of the log, and most requests come from few addresses.
_address_text = lru_cache(maxsize=4096)(str)
# Seeded by the system; a quarter of the time of `os.urandom`. Of our own, so that nobody else seeds it.
_ids = random.Random()  # noqa: S311 - no secret


def _request_id(path: str) -> str:
    """32 hex digits, or for Infisical's clients `req-` and 14 alphanumerics, as they know it.

    Unique, but no secret.
    """
    if f"{path}/".startswith(INFISICAL):
        return "req-" + _ids.randbytes(14).translate(_ALPHANUMERICS).decode()
    return _ids.randbytes(16).hex()


@lru_cache(maxsize=1024)
def _route(template: str) -> str:
    """A path template without the types of its parameters."""
    return re.sub(r":[a-z]+\}", "}", template)


def _dialect(path: str) -> str:
    if path.startswith("/client/v4/"):
        return "cloudflare"
    return "infisical" if path.startswith(INFISICAL) else "none"


def _allow(headers: Headers) -> Headers:
    """The framework lists OPTIONS, which it never gets to see, and not HEAD, which is answered like GET."""
    return [(name, _methods(value)) if name == b"allow" else (name, value) for name, value in headers]


def _methods(allow: bytes) -> bytes:
    methods = set(allow.split(b", ")) - {b"OPTIONS"}
    return b", ".join(sorted(methods | {b"HEAD"} if b"GET" in methods else methods))


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


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)
