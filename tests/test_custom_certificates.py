"""Signed certificates come back to their keys: the calls of section 6 of the contract."""

from typing import Any

import httpx
import pytest
from authority import Authority, pem, root
from world import World

from app import chains


@pytest.fixture
def ca(world: World) -> Authority:
    """A root that the server of this test trusts."""
    made = root()
    anchors = chains.anchors([pem(made.certificate).encode()])
    world.trust(anchors)
    return made


def path(world: World, tail: str = "") -> str:
    return f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates{tail}"


async def upload(world: World, **fields: Any) -> httpx.Response:
    return await world.http.post(path(world), json=fields, headers=world.a.bearer)


async def test_a_signed_csr_comes_back_and_is_renewed(world: World, ca: Authority) -> None:
    """CSR, sign, upload, list, get, renew in place, delete protection, deletion: the whole road on both lists."""
    for csr_path in world.a.paths:
        csr = await world.create(path=csr_path)
        first = ca.of_csr(csr["csr"])
        made = await upload(world, certificate=pem(first), custom_csr_id=csr["id"])
        assert made.status_code == 200, made.text
        result = made.json()["result"]
        assert result["status"] == "active"
        assert result["hosts"] == csr["sans"]
        one = path(world, f"/{result['id']}")
        got = await world.http.get(one, headers=world.a.bearer)
        assert got.json()["result"] == result
        assert (await world.http.get(path(world), headers=world.a.bearer)).json()["result"] == [result]
        renewed = await world.http.patch(one, json={"certificate": pem(ca.of_csr(csr["csr"]))}, headers=world.a.bearer)
        assert renewed.status_code == 200, renewed.text
        assert renewed.json()["result"]["id"] == result["id"]
        blocked = await world.http.delete(f"{csr_path}/{csr['id']}", headers=world.a.bearer)
        assert (blocked.status_code, blocked.json()["errors"][0]["code"]) == (409, 1420)
        assert result["id"] in blocked.text
        assert blocked.headers["x-should-retry"] == "false"
        assert (await world.http.delete(one, headers=world.a.bearer)).json()["result"] == {"id": result["id"]}
        assert (await world.http.delete(f"{csr_path}/{csr['id']}", headers=world.a.bearer)).status_code == 200
