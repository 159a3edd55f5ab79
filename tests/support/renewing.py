"""A world with a private CA, and certificates that are renewed with it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from support.authority import Authority, pem, root
from support.pki import Pki
from support.world import World

from keystead.caller import Scope
from keystead.certificates import store as certificates
from keystead.certificates.model import Certificate
from keystead.renewal import renewer, rules
from keystead.renewal.model import Rule, Wanted
from keystead.server import first_start
from keystead.services import Services
from keystead.x509 import chains

# What the certificates of a site are due after, and what they have left then.
LATER = timedelta(days=2)


class Site(msgspec.Struct):
    """A world with a private CA, and certificates that are renewed with it."""

    world: World
    outside: Authority
    ca_id: str

    @property
    def services(self) -> Services:
        services: Services = self.world.state.services
        return services

    @property
    def scope(self) -> Scope:
        return Scope(self.world.a.account.id, self.world.a.zone.id)

    async def certificate(self, days: float = 20, since: float = 70, **fields: Any) -> UUID:
        """A certificate of a CSR of the zone, from outside, and so far into its lifetime."""
        csr = await self.world.create(path=self.world.a.zone_path, **fields)
        body = {"certificate": pem(self.outside.of_csr(csr["csr"], days=days, since=since)), "custom_csr_id": csr["id"]}
        path = f"/client/v4/zones/{self.scope.id.hex}/custom_certificates"
        answer = await self.world.http.post(path, json=body, headers=self.world.a.bearer)
        assert answer.status_code == 200, answer.text
        return UUID(answer.json()["result"]["id"])

    async def ruled(self, certificate_id: UUID, renew_with: str = "", **fields: Any) -> Rule:
        wanted = Wanted(renew_with or self.ca_id, **fields)
        found = await rules.set_(self.services.db, first_start.operator(), self.scope, certificate_id, wanted)
        assert found.rule is not None
        return found.rule

    async def turn(self, later: timedelta = LATER, turns: int = 2) -> None:
        for _ in range(turns):
            await renewer.turn(self.services, lambda: datetime.now(UTC) + later)

    async def get(self, certificate_id: UUID) -> Certificate:
        return await certificates.get(self.services.db, self.scope, certificate_id)

    async def rule(self, certificate_id: UUID) -> Rule:
        found = await rules.get(self.services.db, self.scope, certificate_id)
        assert found.rule
        return found.rule

    async def signed(self) -> int:
        row = await self.services.db.fetchrow("SELECT count(*) FROM issued_certificates WHERE profile = 'leaf'")
        assert row
        return int(row["count"])

    async def keys(self) -> int:
        row = await self.services.db.fetchrow("SELECT count(*) FROM custom_csrs")
        assert row
        return int(row["count"])

    async def change(self, sql: str, *values: object) -> None:
        await self.services.db.execute(sql, *values)

    async def versions(self, certificate_id: UUID) -> int:
        return len(await certificates.history(self.services.db, await self.get(certificate_id)))


async def new_site(world: World) -> Site:
    """The certificates come from a CA outside, which the server trusts."""
    outside = root()
    world.trust(chains.anchors([pem(outside.certificate).encode()]))
    return Site(world, outside, await Pki(world.http, world.a.account.slug, world.a.bearer).root())
