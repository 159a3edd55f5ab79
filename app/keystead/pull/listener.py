"""The application of the delivery listener: three paths, each with a delivery token."""

import asyncio
import base64
import binascii
import re
import time
from collections import deque
from datetime import UTC, datetime
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
import structlog

from keystead import bounds
from keystead.audit.failures import Failures
from keystead.caller import Actor, Caller, RequestInfo
from keystead.delivery.handing import Hands
from keystead.delivery.pulled import Entry, Pulled
from keystead.errors import KeysteadError, Unavailable
from keystead.identity import delivery_tokens, tokens
from keystead.identity.delivery_tokens import DeliveryToken
from keystead.ids import canonical_uuid
from keystead.pull import answers
from keystead.pull.answers import Way
from keystead.services import Services
from keystead.web.asgi import Headers, Message, Receive, Send, header

# What Caddy tells of a large ClientHello has about 1 kB.
MAX_QUERY, MAX_PARAMETERS = 4096, 16
# Certificates of one document for Traefik.
MAX_DOCUMENT = 1000
# Bytes of documents that clients may be reading at once.
MAX_OUTGOING = 256 * 1024 * 1024
_BUNDLE = re.compile(r"/certificates/([^/]+)\.pem")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_BUNDLE_ROUTE = "/certificates/{certificate_id}.pem"
_log = structlog.get_logger("keystead.delivery")


class Refused(Exception):  # noqa: N818 - the name says what it is
    """The request is answered with this status and text."""

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


class Answer(msgspec.Struct, frozen=True):
    """The repr is empty, as the body may hold keys."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"Answer({self.status})"


class Listener:
    """ASGI, inside the edge."""

    def __init__(self, services: Services, pulled: Pulled, hands: Hands, failures: Failures) -> None:
        self._services = services
        self._pulled = pulled
        self._hands = hands
        self._failures = failures
        self._outgoing: deque[tuple[float, int]] = deque()
        # Tokens that are being digested with a newer pepper.
        self._renewing: dict[UUID, asyncio.Task[None]] = {}
        self._busy = 0
        # Set while nothing is being answered.
        self.idle = asyncio.Event()
        self.idle.set()

    async def __call__(self, scope: Message, _: Receive, send: Send) -> None:
        self._busy += 1
        self.idle.clear()
        try:
            answer = await self._answered(scope)
            headers: Headers = [*answer.headers]
            if answer.status not in {204, 304}:
                headers.append((b"content-length", str(len(answer.body)).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
        finally:
            self._busy -= 1
            if not self._busy:
                self.idle.set()

    async def _answered(self, scope: Message) -> Answer:
        try:
            return await self._routed(scope)
        except Refused as refused:
            return _told(refused.status, refused.text, *refused.headers)
        except Unavailable as error:
            return _told(503, str(error), (b"retry-after", b"1"))
        except Exception as error:  # noqa: BLE001 - its text may hold anything, and is not told
            request: RequestInfo = scope["state"]["request_info"]
            _log.error("unexpected error", request_id=request.request_id, exc_info=error)
            return _told(500, "something unforeseen happened; the log has its request id")

    async def _routed(self, scope: Message) -> Answer:
        path: str = scope["path"]
        bundle = _BUNDLE.fullmatch(path)
        if bundle is None and path not in {"/caddy", "/traefik"}:
            raise Refused(404, "there is nothing at this path")
        scope["path_template"] = _BUNDLE_ROUTE if bundle else path
        if scope["method"] != "GET":
            raise Refused(405, "this takes GET", (b"allow", b"GET"))
        token, caller = self._admitted(scope)
        self._pulled.require_fresh(token.reach)
        if bundle:
            return await self._bundle(scope, token, caller, bundle[1])
        if path == "/traefik":
            return await self._document(scope, token, caller)
        return await self._for_caddy(scope, token, caller)

    def _admitted(self, scope: Message) -> tuple[DeliveryToken, Caller]:
        """The token of the request; raises Refused."""
        request: RequestInfo = scope["state"]["request_info"]
        value = _credential(scope["headers"])
        token = None
        if value and tokens.is_well_formed(value) and value.startswith(tokens.DELIVERY_TOKEN):
            token = self._pulled.tokens.find(self._services.peppers.digests(value))
        if token is None or not token.opens_for(request.address, datetime.now(UTC)):
            if value is not None:
                self._failures.count(request.address)
            if token:
                scope["state"]["caller_id"] = token.id
            challenge = (b"www-authenticate", b'Basic realm="keystead delivery", Bearer')
            raise Refused(401, "this takes a delivery token that is valid and may be used from this address", challenge)
        scope["state"]["caller_id"] = token.id
        self._renew_digest(token, str(value))
        return token, Caller(
            actor=Actor.TOKEN,
            id=token.id,
            reach={},
            name=token.name,
            address=request.address,
            request_id=request.request_id,
            method=request.method,
            path=request.path,
            user_agent=request.user_agent,
            account_id=token.reach.account_id,
        )

    def _renew_digest(self, token: DeliveryToken, value: str) -> None:
        pepper_id, _ = self._services.peppers.newest(value)
        if self._pulled.tokens.of_peppers.get(token.id) == pepper_id or token.id in self._renewing:
            return

        async def renew() -> None:
            # The token is valid even if the database is read-only now: try again later.
            try:
                await delivery_tokens.renew_digest(self._services, token.id, value)
                await asyncio.sleep(bounds.WAIT_SECONDS)
            except KeysteadError:
                return
            finally:
                del self._renewing[token.id]

        self._renewing[token.id] = asyncio.create_task(renew())

    async def _for_caddy(self, scope: Message, token: DeliveryToken, caller: Caller) -> Answer:
        host = _server_name(scope["query_string"])
        entry = self._pulled.for_host(token.reach, host) if _HOST.fullmatch(host) and len(host) <= 253 else None
        if entry is None:
            # Caddy's word for a handshake that others have to answer.
            return Answer(204)
        return _keys(await self._opened(caller, token, entry, Way.CADDY), answers.PEM)

    async def _bundle(self, scope: Message, token: DeliveryToken, caller: Caller, word: str) -> Answer:
        certificate_id = canonical_uuid(word)
        entry = self._pulled.one(token.reach, certificate_id) if certificate_id else None
        if entry is None:
            raise Refused(404, "there is no such certificate for this token, or it may not be delivered now")
        if unchanged := _unchanged(scope, [entry]):
            return unchanged
        return _keys(await self._opened(caller, token, entry, Way.BUNDLE), answers.PEM, answers.tag([entry]))

    async def _opened(self, caller: Caller, token: DeliveryToken, entry: Entry, way: Way) -> bytes:
        handed = await self._hands.hand(caller, token, [entry], way)
        if not handed:
            raise Unavailable("the certificate is being changed, or its key cannot be opened")
        return answers.bundle(handed[0][1])

    async def _document(self, scope: Message, token: DeliveryToken, caller: Caller) -> Answer:
        entries = await self._pulled.all_of(token.reach)
        if len(entries) > MAX_DOCUMENT:
            text = f"this token opens {len(entries)} certificates, and a document has {MAX_DOCUMENT} at most"
            raise Refused(409, f"{text}: give each Traefik a token with a host pattern")
        if unchanged := _unchanged(scope, entries):
            return unchanged
        handed = await self._hands.hand(caller, token, entries, Way.TRAEFIK)
        body = answers.traefik(exported for _, exported in handed)
        self._reserve(len(body))
        return _keys(body, answers.JSON, answers.tag([entry for entry, _ in handed]))

    def _reserve(self, size: int) -> None:
        """Raise Unavailable while slow readers may still have too many documents in memory."""
        now = time.monotonic()
        while self._outgoing and self._outgoing[0][0] < now - bounds.UNREAD_SECONDS:
            self._outgoing.popleft()
        if sum(each for _, each in self._outgoing) + size > MAX_OUTGOING:
            raise Unavailable("too many documents are being read")
        self._outgoing.append((now, size))


def _server_name(query: bytes) -> str:
    """The host that Caddy asks for, in lower case and without the dot at its end; raises Refused."""
    if len(query) > MAX_QUERY:
        raise Refused(400, f"the query is longer than {MAX_QUERY} bytes")
    try:
        # What a TLS client has sent as its SNI can be any bytes, and then no certificate has it.
        found = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, errors="replace", max_num_fields=MAX_PARAMETERS
        )
    except ValueError:
        raise Refused(400, f"the query has more than {MAX_PARAMETERS} parameters") from None
    names = [value for name, value in found if name == "server_name"]
    if len(names) != 1:
        raise Refused(400, "the query takes server_name, once")
    return names[0].lower().removesuffix(".")


def _credential(headers: Headers) -> str | None:
    """The password of Basic, whatever the user is, or what Bearer has; None if neither is there once."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, rest = found[0].decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(rest.strip(), validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]


def _unchanged(scope: Message, entries: list[Entry]) -> Answer | None:
    """304, if the client has just these."""
    tag = answers.tag(entries)
    if not answers.matches(header(scope["headers"], b"if-none-match"), tag):
        return None
    return Answer(304, headers=((b"etag", tag.encode()),))


def _keys(body: bytes, kind: bytes, tag: str = "") -> Answer:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
    return Answer(200, body, (*headers, *([(b"etag", tag.encode())] if tag else [])))


def _told(status: int, text: str, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, f"{text}\n".encode(), ((b"content-type", b"text/plain; charset=utf-8"), *headers))
