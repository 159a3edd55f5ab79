"""Accounts and zones that are deleted while a request for them is on its way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.world import BODY, World

from keystead.caller import Scope
from keystead.errors import Conflict
from keystead.identity import accounts, zones
from keystead.server import first_start


async def slow_post(world: World, path: str, halfway: Any, **headers: str) -> httpx.Response:
    """A POST whose body is interrupted half way by `halfway`."""
    body = json.dumps(BODY).encode()

    async def parts() -> AsyncIterator[bytes]:
        yield body[:20]
        await halfway()
        yield body[20:]

    return await world.http.post(path, content=parts(), headers={**world.a.bearer, **headers})


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}])
async def test_a_zone_that_is_deleted_meanwhile_gets_no_csr(world: World, headers: dict[str, str]) -> None:
    """The CSR of a zone that is gone is 404/7003, and neither key nor claim is left behind."""

    async def halfway() -> None:
        await zones.delete(world.database, first_start.operator(), Scope(world.a.zone.account_id, world.a.zone.id))

    answer = await slow_post(world, world.a.zone_path, halfway, **headers)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003)
    for table in ("private_keys", "custom_csrs", "idempotency_keys"):
        assert not await world.database.fetch(f"SELECT FROM {table}")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}])
async def test_an_account_that_is_deleted_meanwhile_gets_no_csr(world: World, headers: dict[str, str]) -> None:
    """The CSR of an account that is gone is 404/7003, and neither key nor claim is left behind."""
    operator = first_start.operator()

    async def halfway() -> None:
        await zones.delete(world.database, operator, Scope(world.a.zone.account_id, world.a.zone.id))
        await accounts.delete(world.database, operator, Scope(world.a.account.id))

    answer = await slow_post(world, world.a.account_path, halfway, **headers)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003)
    for table in ("private_keys", "custom_csrs", "idempotency_keys"):
        assert not await world.database.fetch(f"SELECT FROM {table}")


async def test_every_race_of_creators_and_a_deletion_ends_in_one_of_two(world: World) -> None:
    """Either the zone is deleted and empty, or its deletion was refused and the CSRs are all there."""
    operator = first_start.operator()
    refused = 0
    for number in range(15):
        zone = await zones.create_in(world.database, operator, world.a.account, f"z{number}.example.com")
        path = f"/client/v4/zones/{zone.id.hex}/custom_csrs"

        async def delete(zone: Any = zone) -> bool:
            try:
                await zones.delete(world.database, operator, Scope(zone.account_id, zone.id))
            except Conflict:
                return False
            return True

        creators = [world.http.post(path, json=BODY, headers=world.a.bearer) for _ in range(4)]
        deleted, *answers = await asyncio.gather(delete(), *creators)
        made = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 201]
        rows = await world.database.fetch("SELECT FROM custom_csrs WHERE zone_id = $1", zone.id)
        assert len(rows) == len(made)
        assert not (deleted and made)
        refused += not deleted
    assert await world.database.fetch("SELECT FROM private_keys") or not refused
