"""The delivery listener as `keystead serve` runs it: on a socket of its own, through deaths of its process."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from support.authority import Authority, key_pem, pem, root
from support.command import beside, run_command
from support.databases import new_database
from support.delivery import Site
from support.live import Live, free_port, serving
from support.waiting import comes_about, until

from keystead.server import postgres

pytestmark = pytest.mark.serve
LISTEN = "KEYSTEAD_DELIVERY_LISTEN"


@pytest.fixture(scope="module")
async def delivering(
    cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Live, str]]:
    """A server with the listener, and the listener's address."""
    folder = tmp_path_factory.mktemp("delivering")
    address = f"127.0.0.1:{free_port()}"
    async with new_database(cluster, "template0") as url:
        with serving(url, folder / "data", environ={"KEYSTEAD_DELIVERY_LISTEN": address}) as live:
            yield live, f"http://{address}"


def token(live: Live, *words: str) -> dict[str, str]:
    """A new delivery token for loopback."""
    base = ("delivery", "token", "create", "--from", "127.0.0.0/8", "--json")
    ended = run_command(beside(live), *base, *(words or ("--zone", live.env["CLOUDFLARE_ZONE_ID"])))
    assert ended.status == 0, ended
    (found,) = json.loads(ended.out)
    return dict(found)


def asked(url: str, value: str, path: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", auth=("caddy", value), timeout=60)


def processes(live: Live) -> list[int]:
    """Those of the listener, which a thread of the parent has started."""
    found = []
    for task in Path(f"/proc/{live.pid}/task").iterdir():
        # Another thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if task.name != str(live.pid):
                found += [int(each) for each in (task / "children").read_text().split()]
    return found


def test_a_certificate_that_is_new_is_there_and_a_renewed_one_replaces_it(delivering: tuple[Live, str]) -> None:
    """Within seconds; and a token that is revoked gets neither."""
    live, url = delivering
    new = token(live)
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    path = f"/caddy?server_name={site.host}"
    until(lambda: asked(url, new["token"], path).status_code == 200)
    assert asked(url, new["token"], path).text.startswith(site.text)
    renewed = site.renew()
    until(lambda: asked(url, new["token"], path).text.startswith(renewed))
    run_command(beside(live), "delivery", "token", "revoke", new["id"])
    until(lambda: asked(url, new["token"], path).status_code == 401)


def test_connections_wait_while_the_process_is_started_again(delivering: tuple[Live, str]) -> None:
    """After a kill no connection is refused: the parent holds the socket, and the next process answers."""
    live, url = delivering
    new = token(live)
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    path = f"/caddy?server_name={site.host}"
    until(lambda: asked(url, new["token"], path).status_code == 200)
    (before,) = processes(live)
    os.kill(before, signal.SIGKILL)
    until(lambda: before not in processes(live))
    assert asked(url, new["token"], path).text.startswith(site.text)
    assert processes(live) != [before]


_WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'key_deliveries'::regclass"


async def test_what_was_accepted_is_answered_when_the_process_stops(delivering: tuple[Live, str]) -> None:
    """A first delivery that waits for the database when SIGTERM comes gets its key."""
    live, url = delivering
    first, second = token(live), token(live)
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    path = f"/caddy?server_name={site.host}"
    until(lambda: asked(url, first["token"], path).status_code == 200)
    until(lambda: asked(url, second["token"], "/caddy?server_name=nobody.example.com").status_code == 204)
    connection = await asyncpg.connect(live.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE key_deliveries IN EXCLUSIVE MODE")
            asking = asyncio.create_task(asyncio.to_thread(asked, url, second["token"], path))
            await comes_about(lambda: connection.fetchval(_WAITS))
            (stopped,) = processes(live)
            os.kill(stopped, signal.SIGTERM)
        answer = await asking
    finally:
        await connection.close()
    assert answer.text.startswith(site.text)
    until(lambda: stopped not in processes(live) and len(processes(live)) == 1)


def test_the_metrics_of_the_server_have_those_of_the_listener(delivering: tuple[Live, str]) -> None:
    """What has left by which way, how many certificates it has, and its requests as a dialect of their own."""
    live, url = delivering
    new = token(live)
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    until(lambda: asked(url, new["token"], f"/caddy?server_name={site.host}").status_code == 200)
    assert asked(url, new["token"], f"/certificates/{site.id}.pem").status_code == 200

    def told() -> bool:
        text = httpx.get(f"{live.url}/metrics").text
        return all(
            re.search(pattern, text, re.MULTILINE)
            for pattern in (
                r'^keystead_key_deliveries_total\{way="caddy"\} [1-9]',
                r'^keystead_key_deliveries_total\{way="bundle"\} [1-9]',
                r"^keystead_delivery_certificates [1-9]",
                r"^keystead_delivery_looked_timestamp_seconds [1-9]",
                r'^keystead_requests_total\{dialect="delivery",method="GET",route="/caddy",status="200"\} [1-9]',
            )
        )

    until(told)


def test_doctor_asks_the_listener(delivering: tuple[Live, str]) -> None:
    """It says where it answers, and where nobody does."""
    live, url = delivering
    here = {**beside(live), "KEYSTEAD_PORT": live.url.rpartition(":")[2]}
    until(lambda: "ok  delivery: it answers on" in run_command({**here, LISTEN: url[7:]}, "doctor").out)
    assert "BAD delivery: nobody answers" in run_command({**here, LISTEN: f"127.0.0.1:{free_port()}"}, "doctor").out


def put(ca: Authority, files: tuple[Path, Path]) -> bytes:
    """Another pair for the listener; returns its leaf in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = ca.sign(key.public_key(), ca.certificate.subject, hosts=["keystead.example.com"])
    files[0].write_text(pem(leaf))
    files[1].write_text(key_pem(key))
    files[1].chmod(0o600)
    return leaf.public_bytes(Encoding.DER)


async def test_beyond_loopback_it_speaks_tls_with_the_pair_of_the_server(
    cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """Nothing in clear text; after SIGHUP with the new pair, and it stops with the server."""
    ca, port = root("Listener Root"), free_port()
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    first = put(ca, files)
    settings = {
        "KEYSTEAD_DELIVERY_LISTEN": f"0.0.0.0:{port}",
        "KEYSTEAD_TLS_CERT": str(files[0]),
        "KEYSTEAD_TLS_KEY": str(files[1]),
    }
    trusting = ssl.create_default_context(cadata=pem(ca.certificate))

    def shown() -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            trusting.wrap_socket(plain, server_hostname="keystead.example.com") as tls,
        ):
            return tls.getpeercert(binary_form=True)

    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path / "data", environ=settings) as live:
            assert shown() == first
            value = token(live)["token"]
            until(lambda: asked_by_tls(port, value) == 200)
            assert not asked_in_clear(port)
            second = put(ca, files)
            os.kill(live.pid, signal.SIGHUP)
            until(lambda: shown() == second, said=live.log.read_text)
            until(lambda: len(processes(live)) == 1)
    with pytest.raises(ConnectionRefusedError):
        shown()


def asked_by_tls(port: int, value: str) -> int:
    address = f"https://127.0.0.1:{port}/traefik"
    return httpx.get(address, headers={"Authorization": f"Bearer {value}"}, verify=False, timeout=30).status_code


def asked_in_clear(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/traefik", timeout=30))
    except httpx.TransportError:
        return False
