"""`/user/tokens/verify` and `/accounts/{account_id}/tokens/verify`: what a token says of itself (contract, 5)."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get

from app import tokens
from app.cloudflare import gate, wire
from app.cloudflare.wire import AnyRequest, Item, Refused
from app.errors import Unauthenticated
from app.tokens import TokenCredential, Verification


class Verified(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    status: str
    not_before: str | None = None
    expires_on: str | None = None


@get("/user/tokens/verify")
async def of_user(request: AnyRequest) -> Response[bytes]:
    return await _verify(request, None)


@get("/accounts/{account_id:str}/tokens/verify")
async def of_account(request: AnyRequest) -> Response[bytes]:
    return await _verify(request, gate.place(request.path_params, wire.visit(request)).id)


HANDLERS: list[Any] = [of_user, of_account]


async def _verify(request: AnyRequest, account_id: UUID | None) -> Response[bytes]:
    house, visit = wire.house(request), wire.visit(request)
    credential = gate.credentials(request)
    if not isinstance(credential, TokenCredential):
        raise Refused(400, 9106, "Missing Authorization header: a global key has no token to verify")
    try:
        verification = await tokens.verify(house.db, house.peppers, credential, account_id, visit)
    except Unauthenticated:
        gate.count_failure(house, visit)
        raise Refused(401, 1000, "Invalid API Token") from None
    gate.count(request, verification.id)
    if verification.denied:
        raise verification.denied
    valid = [Item(10000, "This API Token is valid and active")] if verification.usable else []
    return wire.answers(request).success(_verified(verification), messages=valid)


def _verified(verification: Verification) -> Verified:
    not_before, expires_on = (_second(t) for t in (verification.not_before, verification.expires_on))
    return Verified(verification.id.hex, verification.status, not_before, expires_on)


def _second(time: datetime | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ") if time else None
