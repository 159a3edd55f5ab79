"""`/api/status`: that somebody is here (contract-infisical, "Common")."""

from datetime import UTC, datetime

import msgspec
from litestar import Response, get

from app.infisical import wire


class Status(msgspec.Struct, frozen=True):
    date: str
    message: str


@get("/status")
async def status() -> Response[bytes]:
    return wire.answer(Status(wire.instant(datetime.now(UTC)), "Ok"))


HANDLERS = [status]
