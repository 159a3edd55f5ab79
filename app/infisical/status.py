"""`/api/status`: the server is up (contract-infisical, "Common")."""

from datetime import UTC, datetime

import msgspec
from litestar import Controller

from app.infisical import wire
from app.infisical.wire import Instant
from app.web.handling import get


class StatusAnswer(msgspec.Struct, frozen=True):
    date: Instant
    message: str


class ServerStatus(Controller):
    path = "/status"
    tags = ("Private CA",)

    @get()
    async def get_one(self) -> StatusAnswer:
        """Say that the server is up."""
        return StatusAnswer(wire.instant(datetime.now(UTC)), "Ok")
