"""The parent process: what it refuses, what it survives, how it stops. The real server around a small application."""

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support.live import START_SECONDS, STOP_SECONDS, free_port
from support.processes import ROOT, is_gone, processes_below, workers
from support.waiting import until

pytestmark = pytest.mark.serve

# Workers import this file again, so what it replaces is replaced in them too.
RUNNER = """
import asyncio, json, os, sys, time, types

import keystead
from keystead import config, errors; from keystead.server import roles; from keystead.server import parent as serve


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        secret = " ".join(("a", "secret", "value"))
        await receive()
        if "sick" in sys.argv:
            await send({"type": "lifespan.startup.failed", "message": "it does not open"})
            raise RuntimeError("the state does not open")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("a worker has closed its state", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    answer = {"pid": os.getpid()}
    if scope["path"] == "/database":
        import asyncpg

        connection = await asyncpg.connect(DSN)
        answer["user"] = await connection.fetchval("SELECT current_user")
        await connection.close()
    body = json.dumps(answer).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def create_app(settings):
    global DSN
    DSN = settings.database_url
    if "broken" in sys.argv:
        raise RuntimeError("the application cannot be made")
    if "late" in sys.argv:
        time.sleep(1)
        raise RuntimeError("the application cannot be made")
    if "fragile" in sys.argv and os.path.exists(os.path.join(os.path.dirname(__file__), "fails")):
        # As on a busy machine: it is long before it fails.
        time.sleep(6)
        raise RuntimeError("the application cannot be made")
    return application


async def prepare(settings, cluster):
    if cluster is not None:
        await roles.make(cluster.dsn)
    print("preparing", flush=True)
    if "slow" in sys.argv:
        time.sleep(60)
    return "the banner"


worker, first_start = types.ModuleType("keystead.server.worker"), types.ModuleType("keystead.server.first_start")
worker.create_app, first_start.prepare = create_app, prepare
sys.modules |= {"keystead.server.worker": worker, "keystead.server.first_start": first_start}

if __name__ == "__main__":
    if "late" in sys.argv:
        serve._LOOP_SECONDS = 2
    try:
        sys.exit(serve.serve(config.load(os.environ)))
    except errors.Misconfigured as error:
        sys.exit(f"refused: {error}")
"""


class Server:
    """One `serve` after the other on one data folder and port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_port()
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "runner.py").write_text(RUNNER)

    def start(self, *words: str, **settings: object) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYSTEAD_")}
        environment["PYTHONPATH"] = str(ROOT)
        for name, value in {"DATA_DIR": self.data_dir, "PORT": self.port, "WORKERS": 1, **settings}.items():
            environment[f"KEYSTEAD_{name}"] = str(value)
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *(words if "-m" in words else (str(self.folder / "runner.py"), *words))],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def started_up(self, *words: str, **settings: object) -> subprocess.Popen[bytes]:
        banners = self.output().count("the banner")
        process = self.start(*words, **settings)
        until(lambda: self.output().count("the banner") > banners or process.poll() is not None)
        assert process.poll() is None, self.output()
        return process

    def output(self) -> str:
        return (self.folder / "output").read_text() if (self.folder / "output").exists() else ""

    def get(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            assert response.status == 200
            body = response.read().decode()
            assert isinstance(body, str)
            return body

    def answers(self, path: str = "/") -> bool:
        with contextlib.suppress(OSError):
            return bool(self.get(path))
        return False

    def worker(self) -> int:
        return int(re.findall(r"\d+", self.get())[0])

    def postmaster(self) -> int:
        return int((self.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])

    def certificate(self) -> str:
        return ssl.get_server_certificate(("127.0.0.1", self.port), timeout=30)

    def shows(self, certificate: bytes) -> bool:
        with contextlib.suppress(OSError):
            return self.certificate().strip() == certificate.decode().strip()
        return False


@pytest.fixture
def server() -> Iterator[Server]:
    """Whatever it started is gone after the test; what a test should have stopped itself, it looks at itself."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    folder = Path(tempfile.mkdtemp(prefix="keystead-test-", dir=memory if roomy else None))
    server = Server(folder)
    yield server
    for process in server.started:
        process.kill()
        process.wait()
    for pid in processes_below(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_below(folder))
    shutil.rmtree(folder)


# With an address of a database given, none is started: these tests need none.
NO_DATABASE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


# What it refuses.


def test_taken_port_is_named(server: Server) -> None:
    """A port that another program listens on stops the start, with the setting that helps."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        assert server.start(**NO_DATABASE).wait(START_SECONDS) == 1
    assert f"refused: port {server.port} on 127.0.0.1 is taken" in server.output()
    assert "KEYSTEAD_PORT" in server.output()


def test_address_of_another_machine_is_named(server: Server) -> None:
    """A host that is not this machine's stops the start, with the setting that helps."""
    assert server.start(**NO_DATABASE, HOST="192.0.2.1", TRUSTED_PROXIES="192.0.2.2/32").wait(START_SECONDS) == 1
    assert "KEYSTEAD_HOST" in server.output()


def test_data_folder_in_use_is_named(server: Server) -> None:
    """A second server on the same data folder is refused, with the pid of the first."""
    first = server.started_up(**NO_DATABASE)
    assert server.start(**NO_DATABASE, PORT=free_port()).wait(START_SECONDS) == 1
    assert f"in use by the server with pid {first.pid}" in server.output()


def test_data_folder_that_is_a_file_is_named(server: Server) -> None:
    """A data folder that cannot be made stops the start with a sentence, not a traceback."""
    server.data_dir.write_text("")
    assert server.start(**NO_DATABASE).wait(START_SECONDS) == 1
    assert server.output().startswith(f"refused: the data folder {server.data_dir} cannot be used")


def test_certificate_of_another_key_is_refused(server: Server) -> None:
    """A certificate and a key that do not belong together stop the start."""
    authority = trustme.CA()
    write_pair(server.folder, authority.issue_cert("a.example"), authority.issue_cert("b.example"))
    assert server.start(**NO_DATABASE, **pair_settings(server)).wait(START_SECONDS) == 1
    assert re.search("refused: KEYSTEAD_TLS_CERT .* the key is not that of the first certificate", server.output())


@pytest.mark.parametrize("log", ["console", "json"])
def test_application_that_cannot_be_made_ends_it(server: Server, log: str) -> None:
    """Workers that fail again at once end the server with status 1 and a sentence."""
    assert server.start("broken", **NO_DATABASE, LOG=log).wait(START_SECONDS) == 1
    assert "the application cannot be made" in server.output()
    last = server.output().splitlines()[-1]
    assert "the workers end right after their start" in last
    assert last.startswith("{") == (log == "json")


def test_workers_that_fail_late_end_it_too(server: Server) -> None:
    """On a busy machine a worker takes long to fail: five that never listened end the server, however long it took."""
    assert server.start("late", **NO_DATABASE).wait(START_SECONDS) == 1
    assert "so the server stops" in server.output()


@pytest.mark.parametrize("log", ["console", "json"])
def test_failed_start_shows_no_variables(server: Server, log: str) -> None:
    """A traceback in the log names the error and shows no values: some are secret."""
    assert server.start("sick", **NO_DATABASE, LOG=log).wait(START_SECONDS) == 1
    assert "RuntimeError: the state does not open" in server.output()
    assert "a secret value" not in server.output()


# How it starts and stops.


def test_banner_comes_when_it_answers(server: Server) -> None:
    """Whoever acts on the banner finds the server answering."""
    server.started_up(**NO_DATABASE)
    server.get()


def test_workers_dump_no_core(server: Server) -> None:
    """A worker that crashes does not write its keys to the disk."""
    server.started_up(**NO_DATABASE)
    limits = Path(f"/proc/{server.worker()}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_what_it_starts_heeds_no_python_variables(server: Server) -> None:
    """Neither PYTHONPATH nor any other of them is in the environment of a worker, which serves all the same."""
    process = server.started_up(**NO_DATABASE)
    (worker,) = workers(process.pid)
    names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")}
    assert b"KEYSTEAD_PORT" in names
    assert not [name for name in names if name.startswith(b"PYTHON")]


def test_several_workers_share_the_port(server: Server) -> None:
    """As many workers as the settings say answer on the one port."""
    server.started_up(**NO_DATABASE, WORKERS=2)
    first = server.worker()
    until(lambda: server.worker() != first)


@pytest.mark.parametrize("stop", ["SIGTERM to the parent", "SIGINT to the group"])
def test_stops_cleanly(server: Server, stop: str) -> None:
    """SIGTERM and Ctrl-C let the workers close their state, stop PostgreSQL, and give status 0."""
    process = server.started_up()
    assert "keystead_api" in server.get("/database")
    worker, postmaster = server.worker(), server.postmaster()
    if stop == "SIGTERM to the parent":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(STOP_SECONDS) == 0
    assert is_gone(worker)
    assert is_gone(postmaster)
    assert "a worker has closed its state" in server.output()
    assert "Unexpected exit" not in server.output()


def test_stops_cleanly_during_its_start(server: Server) -> None:
    """SIGTERM before it serves stops PostgreSQL too, with status 0."""
    process = server.start("slow")
    until(lambda: "preparing" in server.output())
    postmaster = server.postmaster()
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0
    assert is_gone(postmaster)


def test_command_serves_the_real_application(server: Server) -> None:
    """`keystead serve` makes all it needs in an empty data folder, answers, and stops with status 0."""
    process = server.start("-m", "keystead", "serve")
    until(lambda: server.answers("/healthz") or process.poll() is not None, START_SECONDS)
    assert (server.data_dir / "credentials.env").exists(), server.output()
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0
    assert processes_below(server.folder) == []


# What it survives.


def test_killed_parent_leaves_no_worker(server: Server) -> None:
    """After kill -9 of the parent nothing serves any more."""
    process = server.started_up(**NO_DATABASE, WORKERS=2)
    worker = server.worker()
    process.kill()
    until(lambda: is_gone(worker))
    until(lambda: not server.answers())


def test_start_after_a_kill_joins_the_running_postgres(server: Server) -> None:
    """After kill -9 of the parent the next start, at once, works with the PostgreSQL that is still there."""
    process = server.started_up()
    postmaster = server.postmaster()
    process.kill()
    again = server.started_up()
    assert "keystead_api" in server.get("/database")
    assert server.postmaster() == postmaster
    again.send_signal(signal.SIGTERM)
    assert again.wait(STOP_SECONDS) == 0
    assert is_gone(postmaster)


def test_start_after_everything_was_killed(server: Server) -> None:
    """After kill -9 of parent, worker and PostgreSQL the next start, at once, works."""
    process = server.started_up()
    for pid in (server.postmaster(), server.worker(), process.pid):
        os.kill(pid, signal.SIGKILL)
    server.started_up()
    assert "keystead_api" in server.get("/database")


def test_killed_worker_is_replaced(server: Server) -> None:
    """After kill -9 of the only worker another one answers."""
    server.started_up(**NO_DATABASE)
    worker = server.worker()
    os.kill(worker, signal.SIGKILL)
    until(server.answers)
    assert server.worker() != worker


def test_killed_postgres_is_started_again(server: Server) -> None:
    """After kill -9 of PostgreSQL the same worker finds the database again at the same address."""
    server.started_up()
    worker, postmaster = server.worker(), server.postmaster()
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: is_gone(postmaster))
    until(lambda: server.answers("/database"))
    assert server.postmaster() != postmaster
    assert server.worker() == worker


def test_hangup_without_tls_changes_nothing(server: Server) -> None:
    """A closing terminal sends SIGHUP to the whole group: the server goes on with the same worker."""
    process = server.started_up(**NO_DATABASE)
    worker = server.worker()
    os.killpg(process.pid, signal.SIGHUP)
    # A reload would start a worker and would keep SIGTERM waiting.
    assert server.worker() == worker
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0


# TLS.


def write_pair(folder: Path, certificate: trustme.LeafCert, key: trustme.LeafCert | None = None) -> bytes:
    """Put the pair in place as renewals do, by new files behind a symbolic link; give the certificate."""
    target = Path(tempfile.mkdtemp(dir=folder))
    pem: bytes = certificate.cert_chain_pems[0].bytes()
    (target / "cert.pem").write_bytes(pem)
    (target / "key.pem").write_bytes((key or certificate).private_key_pem.bytes())
    (target / "key.pem").chmod(0o600)
    (target / "link").symlink_to(target)
    (target / "link").rename(folder / "live")
    return pem


def pair_settings(server: Server) -> dict[str, object]:
    live = server.folder / "live"
    return {"TLS_CERT": live / "cert.pem", "TLS_KEY": live / "key.pem"}


def test_renewed_certificate_is_served_after_hangup(server: Server) -> None:
    """SIGHUP reads the pair again, also behind a symbolic link that has moved."""
    authority = trustme.CA()
    old = write_pair(server.folder, authority.issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    assert server.shows(old)
    new = write_pair(server.folder, authority.issue_cert("127.0.0.1"))
    process.send_signal(signal.SIGHUP)
    until(lambda: server.shows(new))


def test_every_worker_serves_the_renewed_certificate(server: Server) -> None:
    """After a reload none of the old workers is left, and SIGTERM still gives status 0."""
    old = write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    assert server.shows(old)
    before = workers(process.pid)
    write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process.send_signal(signal.SIGHUP)
    until(lambda: all(is_gone(worker) for worker in before))
    assert not server.shows(old)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0


def test_bad_pair_leaves_the_old_one_served(server: Server) -> None:
    """SIGHUP with a pair that does not match logs a line and changes nothing."""
    authority = trustme.CA()
    old = write_pair(server.folder, authority.issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    write_pair(server.folder, authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1"))
    process.send_signal(signal.SIGHUP)
    until(lambda: "the old ones stay" in server.output())
    assert server.shows(old)


def test_worker_started_later_serves_the_pair_that_was_checked(server: Server) -> None:
    """A worker that replaces a killed one does not read a pair that is half renewed on the disk by then."""
    authority = trustme.CA()
    old = write_pair(server.folder, authority.issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    write_pair(server.folder, authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1"))
    (worker,) = workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    until(lambda: is_gone(worker))
    until(lambda: server.shows(old))


def test_key_that_only_openssl_takes_leaves_the_old_pair_served(server: Server) -> None:
    """OpenSSL takes keys that granian's TLS does not; a reload with one, and workers that start later, keep the old."""
    old = write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    before = workers(process.pid)
    write_p521(server.folder / "live")
    process.send_signal(signal.SIGHUP)
    until(lambda: "the old ones stay" in server.output())
    assert server.shows(old)
    assert workers(process.pid) == before
    os.kill(before[0], signal.SIGKILL)
    until(lambda: is_gone(before[0]))
    until(lambda: server.shows(old))


def test_key_that_only_openssl_takes_stops_the_start(server: Server) -> None:
    """The start ends with one sentence before anything is started, and no worker dies of the key."""
    write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    write_p521(server.folder / "live")
    assert server.start(**NO_DATABASE, **pair_settings(server)).wait(START_SECONDS) == 1
    assert re.fullmatch("refused: .*: the key is damaged or of a kind that is not served.*\n", server.output())


def test_renewal_with_a_bom_is_served(server: Server) -> None:
    """An editor's BOM before both blocks, and text around them, change nothing of what is served after a reload."""
    write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process = server.started_up(**NO_DATABASE, **pair_settings(server))
    new = write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    for name in ("cert.pem", "key.pem"):
        file = server.folder / "live" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + "Grüße".encode())
    process.send_signal(signal.SIGHUP)
    until(lambda: server.shows(new))


def test_reload_waits_for_a_worker_that_starts(server: Server) -> None:
    """With a good pair, but an application that no longer starts, the running workers stay."""
    old = write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process = server.started_up("fragile", **NO_DATABASE, **pair_settings(server))
    before = workers(process.pid)
    (server.folder / "fails").touch()
    write_pair(server.folder, trustme.CA().issue_cert("127.0.0.1"))
    process.send_signal(signal.SIGHUP)
    until(lambda: "a new worker does not start" in server.output())
    assert server.shows(old)
    assert workers(process.pid) == before


def write_p521(folder: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes -subj /CN=127.0.0.1 -days 1"
    command += f" -keyout {folder / 'key.pem'} -out {folder / 'cert.pem'}"
    subprocess.run(command.split(), check=True, capture_output=True)
