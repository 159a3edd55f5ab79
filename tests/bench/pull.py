"""The delivery listener with many certificates: Caddy's question one by one, and Traefik's document.

PYTHONPATH=tests .venv/bin/python tests/bench/pull.py [CERTIFICATES]
"""

import asyncio
import base64
import http.client
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import Authority, pem, root
from support.live import Live, free_port, serving
from support.waiting import until

from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.custody.peppers import load_peppers
from keystead.identity import delivery_tokens, zones
from keystead.identity.delivery_tokens import NewToken, Reach
from keystead.server import first_start, postgres
from keystead.services import for_command
from keystead.store.database import Database
from keystead.x509 import chains, keys
from keystead.x509.keys import KeyPair, KeyType

DOCUMENT, ASKED, DOCUMENTS = 1000, 5000, 20
_KEY = (
    "INSERT INTO private_keys (account_id, id, key_type, spki_sha256, generated, kek_id, wrapped_key, ciphertext) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
)
_CERTIFICATE = """
INSERT INTO custom_certificates (account_id, zone_id, id, key_id, type, bundle_method, sha256, hosts, issuer, signature,
    not_before, not_after, chain) VALUES ($1, $2, $3, $4, 'legacy_custom', 'force', $5, $6, $7, $8, $9, $10, $11)
"""


def host(number: int) -> str:
    return f"h{number}.{'few' if number < DOCUMENT else 'many'}.example.com"


async def fill(live: Live, dsn: str, number: int) -> tuple[str, str]:
    """So many certificates in the first zone; returns a token for all, and one for DOCUMENT of them."""
    db = Database(dsn, 2)
    ring = ringfile.load(live.data_dir / "keyring.json")
    ca = root().intermediate()
    zone = await zones.find(db, live.env["CLOUDFLARE_ZONE_ID"])
    for first in range(0, number, 500):
        rows = [_made(ring, ca, (zone.account_id, zone.id), host(n)) for n in range(first, min(first + 500, number))]

        async def insert(connection: object, rows: list[tuple[tuple[object, ...], tuple[object, ...]]] = rows) -> None:
            await connection.executemany(_KEY, [key for key, _ in rows])  # type: ignore[attr-defined]
            await connection.executemany(_CERTIFICATE, [row for _, row in rows])  # type: ignore[attr-defined]

        await db.transaction(insert)
    services = for_command(db, ring, await load_peppers(db, ring))
    values = []
    for pattern in (None, "*.few.example.com"):
        new = NewToken(Reach(zone.account_id, zone.id, None, pattern), "bench", (ip_network("127.0.0.0/8"),))
        values.append((await delivery_tokens.create(services, first_start.operator(), new))[1])
    services.pool.close()
    await db.close()
    return values[0], values[1]


def _made(
    ring: ringfile.Ring, ca: Authority, place: tuple[UUID, UUID], name: str
) -> tuple[tuple[object, ...], tuple[object, ...]]:
    private = ec.generate_private_key(ec.SECP256R1())
    new = keyring.new_key(ring, place[0], KeyPair(KeyType.P256V1.value, private, keys.spki(private)))
    leaf = ca.sign(private.public_key(), x509.Name([]), hosts=[name])
    facts = chains.facts(leaf)
    times = (facts.not_before, facts.not_after, pem(leaf, *ca.above))
    return new.row, (*place, uuid4(), new.id, facts.sha256, [name], facts.issuer or "CA", facts.signature, *times)


class Client:
    """One connection that is kept, as Caddy keeps it."""

    def __init__(self, port: int, value: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Authorization": f"Basic {base64.b64encode(f'x:{value}'.encode()).decode()}"}

    def get(self, path: str, **headers: str) -> tuple[int, bytes, str]:
        self._connection.request("GET", path, headers={**self._headers, **headers})
        answer = self._connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("ETag", "")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_of(live: Live) -> int:
    """The listener's process, which a thread of the parent has started."""
    tasks = Path(f"/proc/{live.pid}/task").iterdir()
    found = [(task / "children").read_text().split() for task in tasks if task.name != str(live.pid)]
    return int(next(pids[0] for pids in found if pids))


def measured(name: str, pid: int, times: int, ask: Callable[[], object]) -> None:
    """Wall time in milliseconds, and the CPU of the listener for one."""
    walls, before = [], cpu(pid)
    for _ in range(times):
        since = time.perf_counter()
        ask()
        walls.append((time.perf_counter() - since) * 1000)
    used = (cpu(pid) - before) / times * 1e6
    walls.sort()
    p99 = walls[min(len(walls) - 1, int(len(walls) * 0.99))]
    wall = f"median {statistics.median(walls):.2f} ms, p99 {p99:.2f} ms, worst {walls[-1]:.2f} ms"
    print(f"{name}: {wall}; {used:.0f} µs CPU")


def main(number: int) -> None:
    chosen = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        listen = {"KEYSTEAD_DELIVERY_LISTEN": f"127.0.0.1:{port}"}
        with serving("", Path(folder) / "data", environ=listen) as live:
            with postgres.running(live.data_dir) as cluster:
                of_all, of_few = asyncio.run(fill(live, cluster.owner, number))
            all_, few, pid = Client(port, of_all), Client(port, of_few), process_of(live)
            since = time.monotonic()
            until(lambda: all_.get(f"/caddy?server_name={host(number - 1)}")[0] == 200)
            print(f"{number} certificates are there after {time.monotonic() - since:.1f} s", datetime.now(UTC))
            print(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].splitlines()[0].strip(), "resident")

            def caddy() -> None:
                assert all_.get(f"/caddy?server_name={host(chosen.randrange(number))}")[0] == 200

            measured("Caddy, most for the first time", pid, ASKED, caddy)
            for n in range(number):
                assert all_.get(f"/caddy?server_name={host(n)}")[0] == 200
            measured("Caddy, noted before", pid, ASKED, caddy)
            measured("Caddy, no such host", pid, ASKED, lambda: all_.get("/caddy?server_name=nobody.example.com"))
            since = time.perf_counter()
            status, body, tag = few.get("/traefik")
            print(f"Traefik, the first time: {status}, {len(body) / 1e6:.1f} MB, {time.perf_counter() - since:.2f} s")
            measured("Traefik's document", pid, DOCUMENTS, lambda: few.get("/traefik"))
            measured("Traefik's 304", pid, 200, lambda: few.get("/traefik", **{"If-None-Match": tag}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
