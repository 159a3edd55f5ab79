"""A thousand certificates that fall due in one hour, and servers that are killed while they renew."""

import asyncio
import itertools
import os
import signal
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from support.authority import pem
from support.databases import connected, new_database
from support.live import Live, serving
from support.renewing import Site, new_site
from support.waiting import comes_about
from support.world import BODY, World

from keystead.renewal import renewer
from keystead.server import postgres
from keystead.store import database as db

MANY = 1000
# A certificate of so many hours is due in the middle of them, or up to a tenth of that later.
HOURS = 20
# Of one certificate, with the same key until each gets one of its own; the rules are looked at at once.
_CERTIFICATES = """
INSERT INTO custom_certificates (account_id, id, zone_id, key_id, custom_csr_id, type, bundle_method, sha256, hosts,
    issuer, signature, not_before, not_after, chain)
SELECT account_id, gen_random_uuid(), zone_id, key_id, custom_csr_id, type, bundle_method, sha256, hosts, issuer,
    signature, not_before, not_after, chain FROM custom_certificates, generate_series(2, $2::int) WHERE id = $1
"""
_RULES = """
INSERT INTO renewal_rules (account_id, certificate_id, zone_id, ca_id, percent_before)
SELECT account_id, id, zone_id, $1, 50 FROM custom_certificates
"""
_VERSIONS = """
SELECT c.id, count(h.id) AS versions FROM custom_certificates c
LEFT JOIN certificate_history h ON h.account_id = c.account_id AND h.certificate_id = c.id GROUP BY 1
"""


async def _once_each(connection: db.Connection, many: int) -> None:
    """Each has been replaced once, by a certificate and a key of its own, and nothing else was made or signed."""
    versions = Counter(row["versions"] for row in await connection.fetch(_VERSIONS))
    assert versions == {1: many}
    sql = "SELECT count(*) FROM issued_certificates WHERE profile = 'leaf'"
    counts = [await connection.fetchval(sql), await connection.fetchval("SELECT count(*) FROM custom_csrs")]
    counts += [await connection.fetchval("SELECT count(DISTINCT (key_id, sha256)) FROM custom_certificates")]
    assert counts == [many, many + 1, many]


@pytest.fixture
async def site(world: World) -> Site:
    return await new_site(world)


@pytest.mark.load
async def test_a_thousand_that_fall_due_in_one_hour_are_renewed_once_each(site: Site) -> None:
    """Two renewers share them, spread over the hour, and none is renewed before its time or again."""
    half = HOURS / 2 / 24
    first = await site.certificate(days=half, since=half)
    await site.change(_CERTIFICATES, first, MANY)
    await site.change(_RULES, UUID(site.ca_id))
    begin = (await site.get(first)).not_after - timedelta(hours=HOURS / 2)
    renewed: list[int] = []
    # From before the first to after the last.
    for minute in range(-1, 67, 6):
        await _until_idle(site, begin + timedelta(minutes=minute))
        renewed.append(await site.signed())
    parts = [after - before for before, after in itertools.pairwise(renewed)]
    assert (renewed[0], sum(parts)) == (0, MANY)
    # Their ids are random; of a million runs one has a part that is not among these.
    assert all(40 < part < 160 for part in parts[:10]), parts
    async with site.services.db.connection() as connection:
        await _once_each(connection, MANY)
        rows = await connection.fetch("SELECT state FROM renewal_rules")
    assert Counter(row["state"] for row in rows) == {"scheduled": MANY}


async def _until_idle(site: Site, at: datetime) -> None:
    while any(await asyncio.gather(*(renewer.turn(site.services, lambda: at) for _ in range(2)))):
        pass


def _due(live: Live) -> tuple[UUID, UUID]:
    """A certificate that is due, and the CA that renews it."""
    span = {"days": 9 / 24, "since": 15 / 24}
    with httpx.Client(base_url=live.url, headers=live.bearer, timeout=60) as http:
        csr = http.post(live.zone_path, json=BODY).json()["result"]
        body = {"certificate": pem(live.ca.of_csr(csr["csr"], **span)), "custom_csr_id": csr["id"]}
        made = http.post(live.zone_path.replace("csrs", "certificates"), json=body).json()["result"]
        new = {"projectSlug": live.env["KEYSTEAD_PROJECT_SLUG"], "type": "root", "commonName": "Root"}
        ca = http.post("/api/v1/pki/ca", json={**new, "keyAlgorithm": "EC_prime256v1"}).json()["ca"]
    return UUID(made["id"]), UUID(ca["id"])


@pytest.mark.serve
@pytest.mark.skipif("RENEWALS" not in os.environ, reason="RENEWALS is not set; it waits until claims of 5 minutes end")
async def test_servers_that_are_killed_renew_each_once(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """Of two servers one is killed again and again; the claims that it leaves end, and nothing is done twice."""
    many = int(os.environ["RENEWALS"])
    renewed = "SELECT count(*) FROM certificate_history"
    async with new_database(cluster, "template0") as url, connected(url) as sql:
        with serving(url, tmp_path / "one", workers=2) as one:
            certificate_id, ca_id = _due(one)
            await sql.execute(_CERTIFICATES, certificate_id, many)
            await sql.execute(_RULES, ca_id)
            ring = {"KEYSTEAD_KEYRING": str(one.data_dir / "keyring.json")}
            for kill in range(1, 4):
                folder = tmp_path / f"two{kill}"
                folder.mkdir(mode=0o700)
                # The first server alone writes it, on the empty database.
                (folder / "credentials.env").write_text((one.data_dir / "credentials.env").read_text())
                ended = pytest.raises(AssertionError, match="the server ended with -9")
                with ended, serving(url, folder, environ=ring) as two:
                    least = min(await sql.fetchval(renewed) + 5, many)
                    await comes_about(lambda least=least: _more(sql, renewed, least), 120)  # type: ignore[misc]
                    os.kill(two.pid, signal.SIGKILL)
            await comes_about(lambda: _more(sql, renewed, many), 400 + many)
            await comes_about(lambda: _settled(sql, many), 60)
            await _once_each(sql, many)
        assert "unexpected error" not in one.log.read_text()


async def _more(connection: db.Connection, sql: str, least: int) -> bool:
    return bool(await connection.fetchval(sql) >= least)


async def _settled(connection: db.Connection, many: int) -> bool:
    rows = await connection.fetch("SELECT state FROM renewal_rules WHERE due_at > now() AND begun_at IS NULL")
    return len(rows) == many
