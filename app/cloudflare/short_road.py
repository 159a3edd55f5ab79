"""GET of a custom CSR by its id, around the framework: for callers who were let through within the last second.

Everything out of the ordinary takes the long road, before anything was counted; what is answered here is answered as
there, byte for byte, which tests/test_short_road.py holds (docs/decisions/0020-a-short-road-for-get.md).
"""

import re
from datetime import UTC, datetime
from http import HTTPStatus
from uuid import UUID

import structlog
from litestar.datastructures import State

from app import csrs
from app.admission import TokenCredential
from app.cloudflare import custom_csrs, gate, wire
from app.cloudflare.wire import Answers
from app.edge import Answer, Message, ShortRoad
from app.house import House
from app.model import Level, Visit

_log = structlog.get_logger("keystead.cloudflare")
_PATH = re.compile(r"/client/v4/(accounts|zones)/([0-9a-f]{32})/custom_csrs/([0-9a-fA-F-]{36})")
_LEVELS = {"accounts": Level.ACCOUNT, "zones": Level.ZONE}
_TEMPLATES = {word: f"/client/v4/{word}/{{{word[:-1]}_id}}/custom_csrs/{{custom_csr_id}}" for word in _LEVELS}
_PLAIN_ACCEPTS = (b"*/*", b"application/json")


def road(state: State) -> ShortRoad:
    """The road of one application."""

    async def take(scope: Message, visit: Visit) -> Answer | None:
        if visit.method != "GET":
            return None
        match = _PATH.fullmatch(visit.path)
        if match is None or not wire.is_uuid(match[3]):
            return None
        token = _token(scope["headers"])
        if token is None:
            return None
        house: House = state.house
        passed = house.memory.passed(TokenCredential(token), _LEVELS[match[1]], match[2])
        if passed is None or not passed.scope.csrs_enabled:
            return None
        told = scope["state"]
        if house.rate_limit:
            verdict = house.limiter.hit(passed.limited_as, house.rate_limit)
            if not verdict.allowed:
                # A request that is refused costs nothing, so the long road may ask again and refuse it.
                return None
            told["verdict"] = verdict
        told["caller_id"] = passed.shown_id
        scope["path_template"] = _TEMPLATES[match[1]]
        answers: Answers = state.cloudflare_answers
        try:
            csr = await csrs.get(house.db, passed.scope, UUID(match[3]))
        except Exception as error:  # noqa: BLE001 - as the handler of the long road has it
            refused = answers.failure(error, visit)
            if refused.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.error("unexpected error", request_id=visit.request_id, exc_info=error)
            headers = tuple((k.encode(), v.encode()) for k, v in refused.headers.items() if k != "content-type")
            return Answer(refused.status_code or 500, refused.content, headers)
        advice = passed.scope.age_advice(csr.created_at, datetime.now(UTC))
        return Answer(200, answers.body(custom_csrs.object_(csr), advice))

    return take


def _token(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The bearer token of a request that has one, and asks for JSON; None for every other."""
    token = None
    for name, value in headers:
        if name == b"authorization":
            if token is not None or not value.startswith(b"Bearer "):
                return None
            token = value[7:].decode("latin-1")
        elif name == b"accept" and value not in _PLAIN_ACCEPTS:
            return None
    return token if token is not None and gate.BEARER.fullmatch(token) else None
