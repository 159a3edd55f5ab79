"""The real server for tests: `keystead serve` in processes of its own, on a database that was empty before."""

import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.authority import Authority, pem, root
from support.databases import new_database
from support.waiting import until

from keystead.server import postgres

# Generous to a machine that does much else.
START_SECONDS = 180.0
STOP_SECONDS = 30.0


class Live(msgspec.Struct):
    """A server that runs; `env` is what a shell that sources its credentials.env gets, `ca` is a root it trusts."""

    url: str
    env: dict[str, str]
    older: dict[str, str]
    database_url: str
    data_dir: Path
    log: Path
    pid: int
    ca: Authority

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.env['CLOUDFLARE_API_TOKEN']}"}

    @property
    def told(self) -> Path:
        """The folder of the file `notices`, with what the session's server has told its program."""
        return self.data_dir.parent

    @property
    def account_path(self) -> str:
        return f"/client/v4/accounts/{self.env['CLOUDFLARE_ACCOUNT_ID']}/custom_csrs"

    @property
    def zone_path(self) -> str:
        return f"/client/v4/zones/{self.env['CLOUDFLARE_ZONE_ID']}/custom_csrs"

    def requests(self, path: str) -> list[dict[str, Any]]:
        """The log's lines of the requests whose path ends so; waits for the first, which comes after the answer."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self._lines() if line["event"] == "request" and line["path"].endswith(path)]

        until(found, said=lambda: f"the server has not logged a request of {path}")
        return found()

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.log.read_text().split("\n")[:-1]:
            # The banner and PostgreSQL's words are not JSON.
            if line.startswith("{"):
                yield json.loads(line)


@contextlib.contextmanager
def serving(
    database_url: str,
    data_dir: Path,
    rate_limit: str = "off",
    workers: int = 1,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Live]:
    """Start `keystead serve`, wait until it answers, and at the end stop it by SIGTERM, as a service manager does."""
    port, log = free_port(), data_dir.with_name(f"{data_dir.name}.log")
    ca, trust_dir = root("Live Root"), data_dir.with_name(f"{data_dir.name}.trust")
    trust_dir.mkdir(exist_ok=True)
    (trust_dir / "root.pem").write_text(pem(ca.certificate))
    settings = {
        "KEYSTEAD_DATABASE_URL": database_url,
        "KEYSTEAD_DATA_DIR": str(data_dir),
        # Filling a pool would take the machine from the tests.
        "KEYSTEAD_KEY_POOL": "0",
        "KEYSTEAD_LOG": "json",
        "KEYSTEAD_PORT": str(port),
        "KEYSTEAD_RATE_LIMIT": rate_limit,
        "KEYSTEAD_TRUST_DIR": str(trust_dir),
        "KEYSTEAD_WORKERS": str(workers),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSTEAD_", "CLOUDFLARE_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "keystead", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **settings, **(environ or {})},
        )
    try:
        url = f"{'https' if 'KEYSTEAD_TLS_CERT' in (environ or {}) else 'http'}://127.0.0.1:{port}"
        wait_until_it_answers(f"{url}/healthz", process, log)
        credentials = (data_dir / "credentials.env").read_text()
        yield Live(
            url=url,
            env=_variables(credentials),
            older=_variables(credentials.replace("# CLOUDFLARE_", "CLOUDFLARE_"), ("EMAIL", "API_KEY")),
            database_url=database_url,
            data_dir=data_dir,
            log=log,
            pid=process.pid,
            ca=ca,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, f"the server ended with {process.returncode}:\n{log.read_text()}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
async def live(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """One server for the session, with two workers and no rate limit."""
    async with new_database(cluster, "template0") as url:
        folder = tmp_path_factory.mktemp("live")
        program = folder / "told"
        program.write_text(f"#!/bin/sh\nexec cat >> {folder}/notices\n")
        program.chmod(0o755)
        with serving(url, folder / "data", workers=2, environ={"KEYSTEAD_TELL": str(program)}) as running:
            yield running


# Each process of the tests begins elsewhere.
_NUMBERS = itertools.count(os.getpid() * 509)


def free_port() -> int:
    """A port that nobody listens on, and that these tests are given once.

    It is below those that the kernel gives away, so nobody else's connection has it before the server does.
    """
    while True:
        port = 10_000 + next(_NUMBERS) % 22_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server at this address, or with this path, says 200."""
    with httpx.Client(verify=False) as client:

        def answers() -> bool:
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()}"
            with contextlib.suppress(httpx.TransportError):
                return client.get(url).status_code == 200
            return False

        until(answers, START_SECONDS, lambda: f"the server does not answer:\n{log.read_text()}")


def _variables(text: str, only: tuple[str, ...] = ()) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(text, comments=True))
    found = {name: value for name, _, value in pairs}
    return {name: found[name] for name in (f"CLOUDFLARE_{end}" for end in only)} if only else found
