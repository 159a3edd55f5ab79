"""`/api/status`: the server is up (contract-infisical, "Common")."""

from datetime import UTC, datetime

import msgspec
from litestar import Controller

from keystead.infisical import wire
from keystead.infisical.wire import Instant
from keystead.web.handling import get


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
