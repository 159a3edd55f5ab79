"""`/api/status`: the server is up (contract-infisical, "Common")."""

from datetime import UTC, datetime

import msgspec
from litestar import Controller

from app.infisical import wire
from app.web.handling import get


class Status(msgspec.Struct, frozen=True):
    date: str
    message: str


class ServerStatus(Controller):
    path = "/status"

    @get()
    async def get_one(self) -> Status:
        """Say that the server is up."""
        return Status(wire.instant(datetime.now(UTC)), "Ok")
