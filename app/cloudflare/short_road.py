"""Making a custom CSR, and GET of one by its id, around the framework: for callers let through within the last second.

Everything out of the ordinary takes the long road, before anything was counted or read; what is answered here is
answered as there, byte for byte, which tests/test_short_road.py holds (docs/decisions/0020-a-short-road.md).
"""

import re
from collections.abc import AsyncIterator, MutableMapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

import msgspec
import structlog
from litestar import Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from app import csrs
from app.admission import Pass, TokenCredential
from app.cloudflare import custom_csrs, gate, wire
from app.cloudflare.wire import Answers
from app.edge import Answer, Message, Receive, ShortRoad
from app.house import House
from app.model import Access, Level, Visit

_log = structlog.get_logger("keystead.cloudflare")
_PATH = re.compile(r"/client/v4/(accounts|zones)/([0-9a-f]{32})/custom_csrs(?:/([0-9a-fA-F-]{36}))?")
_LEVELS = {"accounts": Level.ACCOUNT, "zones": Level.ZONE}
_LISTS = {word: f"/client/v4/{word}/{{{word[:-1]}_id}}/custom_csrs" for word in _LEVELS}
_TEMPLATES = {
    Access.READ: {word: f"{path}/{{custom_csr_id}}" for word, path in _LISTS.items()},
    Access.WRITE: _LISTS,
}
_PLAIN_ACCEPTS = (b"*/*", b"application/json")


class _Told(msgspec.Struct, frozen=True):
    """What the headers of such a request say: who asks, and how its body is sent."""

    token: str
    content_length: str
    idempotency_keys: list[str]


def road(state: State) -> ShortRoad:
    """The road of one application."""

    async def take(message: Message, receive: Receive, visit: Visit) -> Answer | None:
        match = _PATH.fullmatch(visit.path)
        access = _access(visit.method, match[3]) if match else None
        told = _told(message["headers"]) if access else None
        if match is None or access is None or told is None:
            return None
        house: House = state.house
        passed = house.memory.passed(TokenCredential(told.token), _LEVELS[match[1]], match[2], access)
        if passed is None or not passed.scope.csrs_enabled:
            return None
        message["state"]["caller_id"] = passed.shown_id
        message["path_template"] = _TEMPLATES[access][match[1]]
        answers: Answers = state.cloudflare_answers
        try:
            if house.rate_limit:
                verdict = house.limiter.hit(passed.limited_as, house.rate_limit)
                if not verdict.allowed:
                    # A request that is refused costs nothing, so the long road may ask again and refuse it.
                    return None
                message["state"]["verdict"] = verdict
            if access is Access.READ:
                return await _get(house, answers, passed, UUID(match[3]))
            return await _create(house, answers, passed, told, message["state"], receive, visit)
        except Exception as error:  # noqa: BLE001 - as the handler of the long road has it
            refused = answers.failure(error, visit)
            if refused.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.error("unexpected error", request_id=visit.request_id, exc_info=error)
            return whole(refused)

    return take


def whole(response: Response[bytes]) -> Answer:
    """An answer of the framework's, for who goes around it."""
    headers = tuple((k.encode(), v.encode()) for k, v in response.headers.items() if k != "content-type")
    return Answer(response.status_code or 500, response.content, headers)


def _access(method: str, csr_id: str | None) -> Access | None:
    """What a request on these paths needs; None where it is not for this road."""
    if csr_id is None:
        return Access.WRITE if method == "POST" else None
    return Access.READ if method == "GET" and wire.is_uuid(csr_id) else None


async def _get(house: House, answers: Answers, passed: Pass, csr_id: UUID) -> Answer:
    csr = await csrs.get(house.db, passed.scope, csr_id)
    advice = passed.scope.age_advice(csr.created_at, datetime.now(UTC))
    return Answer(200, answers.body(custom_csrs.object_(csr), advice))


async def _create(
    house: House,
    answers: Answers,
    passed: Pass,
    told: _Told,
    state: MutableMapping[str, Any],
    receive: Receive,
    visit: Visit,
) -> Answer:
    caller = msgspec.structs.replace(
        passed.caller,
        address=visit.address,
        request_id=visit.request_id,
        method=visit.method,
        path=visit.path,
        user_agent=visit.user_agent,
        status=201,
    )
    raw = await wire.body_of(_chunks(receive), told.content_length, state)
    once = wire.idempotency_of(told.idempotency_keys, raw)
    csr, advice = await custom_csrs.made(house, caller, passed.scope, raw, once)
    return Answer(201, answers.body(custom_csrs.object_(csr), advice))


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            raise HTTPException(status_code=HTTPStatus.BAD_REQUEST)
        yield event.get("body", b"")
        more = event.get("more_body", False)


def _told(headers: list[tuple[bytes, bytes]]) -> _Told | None:
    """What the headers say of a request with a bearer token that asks for JSON; None for every other."""
    token, length, keys = None, "", []
    for name, value in headers:
        if name == b"authorization":
            if token is not None or not value.startswith(b"Bearer "):
                return None
            token = value[7:].decode("latin-1")
        elif name == b"accept" and value not in _PLAIN_ACCEPTS:
            return None
        elif name == b"content-length":
            if length or not value.isdigit():
                return None
            length = value.decode("latin-1")
        elif name == b"idempotency-key":
            keys.append(value.decode("latin-1"))
    return _Told(token, length, keys) if token is not None and gate.BEARER.fullmatch(token) else None
