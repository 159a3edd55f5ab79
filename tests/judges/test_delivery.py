"""Real servers with keys that only Keystead made: clients that connect all the time see no failure and no mixed pair.

DELIVERY_RENEWALS is how many renewals there are (100 for a release); DELIVERY_SEED repeats the moments of the kills.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.authority import openssl, pem
from support.command import beside
from support.delivery import Host, Site
from support.live import Live, serving
from support.tools import tool
from support.waiting import until

pytestmark = pytest.mark.judges
RENEWALS = int(os.environ.get("DELIVERY_RENEWALS", "5"))
SEED = int(os.environ.get("DELIVERY_SEED", "1"))
KINDS = ("nginx", "haproxy", "caddy")


class Server(msgspec.Struct):
    """A web server that may be killed and started; `delivery` is the table that serves it."""

    kind: str
    host: Host
    address: Path
    site: Site
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.host.folder

    @property
    def file(self) -> Path:
        return self.folder / f"{self.kind}.conf"

    @property
    def command(self) -> list[str]:
        if self.kind == "nginx":
            return [tool("nginx"), "-p", str(self.folder), "-c", str(self.file), "-e", "stderr"]
        if self.kind == "haproxy":
            return [tool("haproxy"), "-f", str(self.file)]
        return [tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(self.file)]

    def configure(self) -> None:
        made: dict[str, Callable[[], tuple[str, str]]] = {
            "nginx": self._nginx,
            "haproxy": self._haproxy,
            "caddy": self._caddy,
        }
        text, delivery = made[self.kind]()
        self.file.write_text(text)
        self.host.configure(delivery)

    def _nginx(self) -> tuple[str, str]:
        text = f"""
        daemon off; worker_processes 2; pid {self.folder}/nginx.pid; error_log stderr;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            {"".join(f"{n}_temp_path {self.folder}/{n};" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
            server {{
                listen unix:{self.address} ssl;
                ssl_certificate {self.host.tls}/fullchain.pem;
                ssl_certificate_key {self.host.tls}/privkey.pem;
                ssl_session_cache off; ssl_session_tickets off;
                location / {{ return 204; }}
            }}
        }}
        """
        words = [msgspec.json.encode([*self.command, *more]).decode() for more in (("-t",), ("-s", "reload"))]
        hooks = f"check = {words[0]}\nreload = {words[1]}"
        return text, self.host.pair(f'certificate = "{self.site.id}"', hooks)

    def _haproxy(self) -> tuple[str, str]:
        text = f"""
global
    stats socket {self.address}.admin mode 600 level admin
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend www
    bind unix@{self.address} ssl crt {self.host.tls}/site.pem no-tls-tickets
    http-request return status 204
"""
        check = msgspec.json.encode([*self.command, "-c", "-q"]).decode()
        table = f'name = "www"\nfolder = "{self.host.tls}"\nfiles = {{ combined = "site.pem" }}\n'
        hooks = f'check = {check}\nhaproxy = "{self.address}.admin"'
        return text, f'{table}certificate = "{self.site.id}"\n{hooks}'

    def start(self) -> None:
        until(self.answers, said=(self.folder / "server.log").read_text)

    def _caddy(self) -> tuple[str, str]:
        text = f"""
{{
    admin unix/{self.address}.admin
    auto_https off
    storage file_system {self.folder}/store
}}
https://{self.site.host} {{
    bind unix/{self.address}
    tls {self.host.tls}/fullchain.pem {self.host.tls}/privkey.pem
    respond 204
}}
"""
        with_file = ["--adapter", "caddyfile", "--config", str(self.file)]
        check = msgspec.json.encode([tool("caddy"), "validate", *with_file]).decode()
        words = [tool("caddy"), "reload", "--force", "--address", f"unix/{self.address}.admin", *with_file]
        hooks = f"check = {check}\nreload = {msgspec.json.encode(words).decode()}"
        return text, self.host.pair(f'certificate = "{self.site.id}"', hooks)

    def answers(self) -> bool:
        """Whether it does; started, and started again if it has ended, as systemd does."""
        if self.process is None or self.process.poll() is not None:
            # That of one that was killed.
            for rest in self.address.parent.iterdir():
                rest.unlink()
            with (self.folder / "server.log").open("ab") as log:
                self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        with contextlib.suppress(OSError), self.connected():
            return True
        return False

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(30)
            plain.connect(str(self.address))
            yield plain

    def kill(self) -> None:
        """All its processes at once, as the kernel does where memory ends."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def shows(self) -> bytes:
        """The leaf that OpenSSL's client is shown."""
        words = ("s_client", "-unix", self.address, "-servername", self.site.host)
        text = openssl(*words, text="Q\n")
        found = text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 26]
        return x509.load_pem_x509_certificate(found.encode()).public_bytes(Encoding.DER)


class Deliver:
    """`keystead deliver`, followed; started again at once where it was killed, as systemd does."""

    def __init__(self, server: Server, environ: dict[str, str] | None = None) -> None:
        self.server = server
        self.environ = {"PATH": os.environ["PATH"], **beside(server.host.live), **(environ or {})}
        self.log = server.folder / "deliver.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["-m", "keystead", "deliver", "--config", str(self.server.host.config)]
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=self.environ)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        # One that was started just now has not yet said that it ends in order.
        assert self.process.wait(60) in {0, -signal.SIGTERM}, self.log.read_text()


class Client(threading.Thread):
    """Connects 50 times a second, and keeps what it saw: leaves, in their order, and failures."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.leaves: dict[bytes, float] = {}
        self.failures: list[str] = []
        self.mixed: list[str] = []
        self.handshakes = 0
        self.ended = threading.Event()
        self.context = ssl.create_default_context(cadata=pem(server.site.live.ca.certificate))

    def run(self) -> None:
        while not self.ended.wait(0.02):
            try:
                self._connect()
            except ssl.SSLCertVerificationError as error:
                self.mixed.append(f"{error!r}")
            except OSError as error:
                self.failures.append(f"{error!r}")

    def _connect(self) -> None:
        with (
            self.server.connected() as plain,
            self.context.wrap_socket(plain, server_hostname=self.server.site.host) as tls,
        ):
            leaf = tls.getpeercert(binary_form=True)
            assert leaf is not None
            tls.sendall(f"GET / HTTP/1.0\r\nHost: {self.server.site.host}\r\n\r\n".encode())
            answer = tls.recv(64)
        if b" 204 " not in answer:
            raise ConnectionError(f"an answer of {answer!r}")
        self.handshakes += 1
        self.leaves.setdefault(leaf, time.monotonic())

    def stop(self) -> None:
        self.ended.set()
        self.join(60)


@contextlib.contextmanager
def followed(kind: str, folder: Path, live: Live, site: Site) -> Iterator[tuple[Server, Deliver]]:
    """A server with its first pair, and `keystead deliver` beside it."""
    tool(kind)
    # A socket rather than a port, which another could take; its path has to be short.
    sockets = Path(tempfile.mkdtemp())
    server = Server(kind, Host(folder, live), sockets / "tls", site)
    server.configure()
    # The files come before the server, which cannot be told yet.
    server.host.deliver()
    server.start()
    deliver = Deliver(server)
    try:
        until(lambda: '"phase": "done"' in server.host.state.read_text(), said=deliver.log.read_text)
        yield server, deliver
    finally:
        deliver.process.kill()
        deliver.process.wait()
        server.kill()
        shutil.rmtree(sockets)


@pytest.mark.parametrize("kind", KINDS)
def test_each_renewal_is_served_and_no_client_fails(live: Live, tmp_path: Path, kind: str) -> None:
    """After each renewal OpenSSL sees the new leaf; a client that connects all the time never fails."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    with followed(kind, tmp_path, live, site) as (server, deliver):
        client, times = Client(server), []
        client.start()
        expected = [site.leaf.public_bytes(Encoding.DER)]
        until(lambda: client.leaves)
        for _ in range(RENEWALS):
            site.renew()
            since = time.monotonic()
            expected.append(site.leaf.public_bytes(Encoding.DER))
            until(lambda: expected[-1] in client.leaves, said=deliver.log.read_text)
            times.append(client.leaves[expected[-1]] - since)
            until(lambda: server.shows() == expected[-1])
        client.stop()
        deliver.stop()
    times.sort()
    sys.stdout.write(
        f"{kind}: {RENEWALS} renewals, {client.handshakes} handshakes, {len(client.failures)} failures; "
        f"served after {times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (latest)\n"
    )
    assert (client.failures, client.mixed) == ([], [])
    assert [*client.leaves] == expected


def renewed(site: Site) -> None:
    """Renewed, however often the API says that it is not available."""

    def done() -> bool:
        with contextlib.suppress(AssertionError, httpx.TransportError):
            site.renew()
            return True
        return False

    until(done)


def serves_the_latest(server: Server) -> bool:
    """Whether it is served, and the chain and the key on disk are the site's now."""
    if server.shows() != server.site.leaf.public_bytes(Encoding.DER):
        return False
    files = server.host.held()
    text = "".join(files.get(name, "") for name in ("fullchain.pem", "privkey.pem", "site.pem"))
    if "-----BEGIN PRIVATE" not in text:
        return False
    key = load_pem_private_key(text[text.index("-----BEGIN PRIVATE") :].encode(), None)
    # After a kill the server may have read what is then put back, and is delivered once more.
    return server.site.text in text and key.public_key() == server.site.leaf.public_key()


@pytest.mark.parametrize("kind", KINDS)
def test_renewals_are_served_through_kills(tmp_path: Path, kind: str) -> None:
    """Deliver, web server and PostgreSQL are killed at random moments: each renewal is served, and no pair is mixed."""
    moments = random.Random(SEED)
    data = tmp_path / "data"
    # With PostgreSQL bundled, so that the server starts it again.
    with serving("", data) as live:
        site = Site(live, f"{uuid4().hex[:12]}.example.com")
        (tmp_path / "host").mkdir()
        with followed(kind, tmp_path / "host", live, site) as (server, deliver):

            def kill_postgres() -> None:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError, ValueError):
                    (found,) = data.rglob("postmaster.pid")
                    os.kill(int(found.read_text().split()[0]), signal.SIGKILL)

            victims = [deliver.kill, server.kill, kill_postgres]
            client = Client(server)
            client.start()
            for _ in range(RENEWALS):
                victim = moments.choice(victims)
                killer = threading.Timer(moments.uniform(0, 3), victim)
                killer.start()
                renewed(site)
                killer.join()
                until(lambda: server.answers() and serves_the_latest(server), said=deliver.log.read_text)
                if victim != server.kill:
                    assert client.failures == [], f"{victim}: {client.failures}"
                client.failures.clear()
            client.stop()
            deliver.stop()
    sys.stdout.write(f"{kind}: {RENEWALS} renewals through kills, {client.handshakes} handshakes\n")
    assert client.mixed == []
