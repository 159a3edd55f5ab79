"""The delivery listener in this process, with certificates and tokens of zones of one world."""

import io
from datetime import datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
from support.authority import Authority, pem
from support.world import World

from keystead.audit.failures import Failures
from keystead.delivery.handing import Hands
from keystead.delivery.pulled import Pulled
from keystead.identity import delivery_tokens, zones
from keystead.identity.delivery_tokens import NewToken, Reach
from keystead.identity.zones import Zone
from keystead.pull.listener import Listener
from keystead.server import edge, first_start
from keystead.server.request_log import RequestLog
from keystead.services import Services

ADDRESS = "192.0.2.7"
NETWORK = "192.0.2.0/24"


class Made(msgspec.Struct):
    """A certificate that was uploaded, with its chain."""

    id: str
    csr: dict[str, Any]
    text: str


class Pulling:
    """A listener, its log, and what it answers from; `follow` is what it does each second."""

    def __init__(self, world: World, ca: Authority) -> None:
        self.world, self.ca = world, ca
        self.pulled, self.failures, self.log = Pulled(), Failures(), io.StringIO()
        self.hands = Hands(self.services)
        self.listener = Listener(self.services, self.pulled, self.hands, self.failures)
        log = RequestLog(as_json=True, stream=self.log)
        self.app: Any = edge.Edge(self.listener, (), None, log, dialect="delivery")

    @property
    def services(self) -> Services:
        return self.world.services

    async def follow(self) -> None:
        await self.pulled.follow_tokens(self.services)
        await self.pulled.follow_certificates(self.services)

    async def zone(self) -> Zone:
        name = f"z{uuid4().hex[:12]}.example.com"
        return await zones.create_in(self.world.database, first_start.operator(), self.world.a.account, name)

    async def token(
        self,
        zone: Zone,
        certificate: str | None = None,
        host: str | None = None,
        network: str = NETWORK,
        expires_at: datetime | None = None,
    ) -> tuple[UUID, str]:
        reach = Reach(zone.account_id, zone.id, UUID(certificate) if certificate else None, host)
        new = NewToken(reach, "edge", (ip_network(network),), expires_at)
        token, value = await delivery_tokens.create(self.services, first_start.operator(), new)
        return token.id, value

    async def revoke(self, token_id: UUID) -> None:
        found = await delivery_tokens.find(self.world.database, str(token_id))
        await delivery_tokens.revoke(self.world.database, first_start.operator(), found)

    async def upload(self, zone: Zone, *hosts: str, **changes: Any) -> Made:
        base = f"/client/v4/zones/{zone.id.hex}"
        names: dict[str, Any] = {"common_name": hosts[0], "sans": list(hosts)}
        csr = await self.world.create(path=f"{base}/custom_csrs", **names)
        text = pem(self.ca.of_csr(csr["csr"], **changes))
        body = {"custom_csr_id": csr["id"], "certificate": text}
        return Made(await self._sent("POST", f"{base}/custom_certificates", body), csr, text)

    async def renew(self, zone: Zone, made: Made, *hosts: str, **changes: Any) -> Made:
        """Renew it, with a new key where it is given hosts."""
        base, csr = f"/client/v4/zones/{zone.id.hex}", made.csr
        if hosts:
            names: dict[str, Any] = {"common_name": hosts[0], "sans": list(hosts)}
            csr = await self.world.create(path=f"{base}/custom_csrs", **names)
        text = pem(self.ca.of_csr(csr["csr"], **changes))
        body = {"custom_csr_id": csr["id"], "certificate": text}
        return Made(await self._sent("PATCH", f"{base}/custom_certificates/{made.id}", body), csr, text)

    async def delete(self, zone: Zone, made: Made) -> None:
        await self._sent("DELETE", f"/client/v4/zones/{zone.id.hex}/custom_certificates/{made.id}", None)

    async def _sent(self, method: str, path: str, body: dict[str, Any] | None) -> str:
        answer = await self.world.http.request(method, path, json=body, headers=self.world.a.bearer)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["result"]["id"])

    async def ask(
        self, path: str, value: str | None = None, method: str = "GET", address: str = ADDRESS, **changes: Any
    ) -> httpx.Response:
        """What the listener answers to a client at this address."""
        transport = httpx.ASGITransport(self.app, client=(address, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://delivery") as client:
            auth = ("caddy", value) if value is not None else None
            return await client.request(method, path, auth=auth, **changes)

    async def for_host(self, host: str, value: str) -> httpx.Response:
        return await self.ask("/caddy", value, params={"server_name": host})
