"""Caddy with the Caddyfile of the documentation: handshakes with keys that it fetches from the delivery listener."""

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
from cryptography import x509
from support.authority import openssl
from support.command import beside, run_command
from support.databases import new_database
from support.delivery import Site
from support.live import Live, free_port, serving
from support.tools import tool
from support.waiting import until

from keystead.server import postgres

pytestmark = pytest.mark.judges
PAGE = Path(__file__).parents[2] / "docs" / "pull.md"
ASK = "https://keystead.example.com:8790/none"
ADDRESS = "https://caddy:{$DELIVERY_TOKEN}@keystead.example.com:8790/caddy"


class Caddy(NamedTuple):
    live: Live
    port: int
    log: Path
    token: dict[str, str]

    def shows(self, host: str) -> x509.Certificate | None:
        """The leaf that OpenSSL's client is shown; None if the handshake fails."""
        words = ("s_client", "-connect", f"127.0.0.1:{self.port}", "-servername", host)
        done = subprocess.run(["openssl", *words], input=b"Q\n", capture_output=True, timeout=60, check=False)
        found = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", done.stdout, re.DOTALL)
        return x509.load_pem_x509_certificate(found[0]) if found else None


@pytest.fixture(scope="module")
async def live(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A server with the listener; its address is in the environment."""
    folder = tmp_path_factory.mktemp("pull")
    async with new_database(cluster, "template0") as url:
        listen = {"KEYSTEAD_DELIVERY_LISTEN": f"127.0.0.1:{free_port()}"}
        with serving(url, folder / "data", environ=listen) as running:
            running.env.update(listen)
            yield running


@pytest.fixture
def caddy(live: Live, tmp_path: Path) -> Iterator[Caddy]:
    """Caddy, as the page says but for its address and port, and where it keeps what is its own."""
    program = tool("caddy")
    words = ("delivery", "token", "create", "--from", "127.0.0.1", "--json", "--zone", live.env["CLOUDFLARE_ZONE_ID"])
    (token,) = json.loads(run_command(beside(live), *words).out)
    file, log, port = tmp_path / "Caddyfile", tmp_path / "caddy.log", free_port()
    (documented,) = re.findall(r"^```caddyfile\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert documented.count(ADDRESS) == documented.count(ASK) == 1
    assert documented.startswith("{\n")
    own = f"admin off\nhttps_port {port}\nauto_https disable_redirects\nstorage file_system {tmp_path}/store"
    there = live.env["KEYSTEAD_DELIVERY_LISTEN"]
    here = f"http://caddy:{{$DELIVERY_TOKEN}}@{there}/caddy"
    file.write_text(f"{{\n{own}{documented[1:].replace(ADDRESS, here).replace(ASK, f'http://{there}/none')}")
    environ = {**os.environ, "DELIVERY_TOKEN": token["token"], "HOME": str(tmp_path)}
    with log.open("wb") as output:
        command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)
    try:
        until(lambda: b"serving initial configuration" in log.read_bytes(), said=log.read_text)
        yield Caddy(live, port, log, token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_caddy_serves_what_it_fetches(live: Live, caddy: Caddy) -> None:
    """OpenSSL sees the new leaf after a renewal with a new key; a host without a certificate gets no handshake."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    until(lambda: caddy.shows(site.host) == site.leaf, said=caddy.log.read_text)
    before = site.leaf
    site.renew()
    until(lambda: caddy.shows(site.host) == site.leaf, said=caddy.log.read_text)
    assert site.leaf.public_key() != before.public_key()
    assert caddy.shows("nobody.example.com") is None
    assert "obtain" not in caddy.log.read_text()
    words = ("s_client", "-connect", f"127.0.0.1:{caddy.port}", "-servername", site.host.upper())
    assert "-----BEGIN CERTIFICATE-----" in openssl(*words, text="Q\n")


def test_a_revoked_token_ends_handshakes_and_stands_in_no_log(live: Live, caddy: Caddy) -> None:
    """Caddy says that it was refused, and shows the address without the token."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    until(lambda: caddy.shows(site.host) == site.leaf, said=caddy.log.read_text)
    run_command(beside(live), "delivery", "token", "revoke", caddy.token["id"])
    until(lambda: caddy.shows(site.host) is None, said=caddy.log.read_text)
    until(lambda: "got HTTP 401" in caddy.log.read_text(), said=caddy.log.read_text)
    assert caddy.token["token"] not in caddy.log.read_text()
    assert caddy.token["token"] not in live.log.read_text()
