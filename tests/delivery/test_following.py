"""`keystead deliver` as a service: it follows changes, tells systemd, and is stopped in order."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support.command import beside
from support.delivery import Host, Site
from support.live import Live
from support.waiting import SECONDS, until

pytestmark = pytest.mark.serve

NO_DATABASE = "postgresql://nobody@/none?host=/nonexistent"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(host: Host) -> Iterator[Start]:
    """Starts the command beside the live server; its log is deliver.log."""
    started: list[subprocess.Popen[bytes]] = []

    def run(**environ: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "keystead", "deliver", "--config", str(host.config)]
        with (host.folder / "deliver.log").open("ab") as log:
            made = {"PATH": os.environ["PATH"], **beside(host.live), "KEYSTEAD_LOG": "json", **environ}
            started.append(subprocess.Popen(words, stdout=log, stderr=log, env=made))
        return started[-1]

    yield run
    for each in started:
        each.kill()
        each.wait()


def log(host: Host) -> str:
    return (host.folder / "deliver.log").read_text()


def test_it_follows_tells_systemd_and_stops(host: Host, live: Live, start: Start) -> None:
    """READY after the first look, each renewal without a word from anybody, and STOPPING with status 0 at SIGTERM."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    host.configure(host.pair(f'certificate = "{site.id}"'))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(host.folder / "notify"))
        systemd.settimeout(SECONDS)
        process = start(NOTIFY_SOCKET=str(host.folder / "notify"))
        assert systemd.recv(100) == b"READY=1"
        assert host.held()["fullchain.pem"] == site.text
        for _ in range(2):
            site.renew()
            until(lambda: host.held().get("fullchain.pem") == site.text, said=lambda: log(host))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert systemd.recv(100) == b"STOPPING=1"
    assert "PRIVATE KEY" not in log(host)


def test_a_certificate_that_comes_later_is_delivered(host: Host, live: Live, start: Start) -> None:
    """A delivery for which there is nothing waits, and says so once."""
    domain = f"{uuid4().hex[:12]}.example.com"
    host.configure(host.pair(f'zone = "example.com"\nhost = "{domain}"'))
    start()
    until(lambda: "no certificate fits" in log(host), said=lambda: log(host))
    site = Site(live, domain)
    until(lambda: host.held().get("fullchain.pem") == site.text, said=lambda: log(host))
    assert log(host).count("no certificate fits") == 1


def test_a_database_that_is_away_is_waited_for(host: Host, start: Start) -> None:
    """At the start too: it says so once, and ends in order when it is told to."""
    host.configure(host.pair('zone = "example.com"\nhost = "x.example.com"'))
    process = start(KEYSTEAD_DATABASE_URL=NO_DATABASE)
    until(lambda: "nothing can be delivered" in log(host), said=lambda: log(host))
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert log(host).count("nothing can be delivered") == 1


def test_a_crash_is_ended_before_the_database_is_asked(host: Host, start: Start) -> None:
    """With the database away, the earlier files have their names again."""
    host.configure(host.pair('zone = "example.com"\nhost = "x.example.com"'))
    for name in ("fullchain.pem", "privkey.pem"):
        (host.tls / name).write_text("new")
        (host.tls / f"{name}.keystead-before").write_text("old")
    record = {"folder": str(host.tls), "phase": "placing", "replaced": ["fullchain.pem", "privkey.pem"]}
    host.state.write_text(f'{{"version": 1, "deliveries": {{"www": {record}}}}}'.replace("'", '"'))
    start(KEYSTEAD_DATABASE_URL=NO_DATABASE)
    until(lambda: host.held() == {"fullchain.pem": "old", "privkey.pem": "old"}, said=lambda: log(host))
    until(lambda: "the earlier files were put back" in log(host), said=lambda: log(host))


LISTENER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    connection, _ = listener.accept()
    print(repr(connection.recv(65536)), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a program as somebody else")
def test_a_strangers_socket_gets_no_key(host: Host, live: Live) -> None:
    """A socket where HAProxy's should be, of another user, is told nothing."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    path = Path("/tmp") / f"{uuid4().hex}.sock"
    words = ["/usr/bin/env", "python3", "-c", LISTENER, str(path)]
    with subprocess.Popen(words, user=65534, group=65534, stdout=subprocess.PIPE, cwd="/") as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"ready\n"
            table = f'name = "edge"\nfolder = "{host.tls}"\nfiles = {{ combined = "site.pem" }}'
            host.configure(f'{table}\ncertificate = "{site.id}"\nhaproxy = "{path}"')
            said = host.deliver()
            assert said.status == 1
            assert "who may not have the key" in said.out
            assert listener.stdout.readline() == b"b''\n"
        finally:
            listener.kill()
            path.unlink(missing_ok=True)
