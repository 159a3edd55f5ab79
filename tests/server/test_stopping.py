"""SIGTERM: what was accepted is answered, within a bound; a rolling restart behind nginx loses no request."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import trustme
from support.databases import connected
from support.live import STOP_SECONDS, Live, free_port, serving, wait_until_it_answers
from support.tools import tool
from support.waiting import comes_about
from support.world import BODY

pytestmark = pytest.mark.serve

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# An INSERT of a CSR takes as long as the gate is shut, however short the bound for locks is.
_GATE = """
CREATE TABLE gate (shut boolean);
INSERT INTO gate VALUES (true);
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WHILE (SELECT shut FROM gate) LOOP
        PERFORM pg_sleep(0.02);
    END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER wait_at_gate BEFORE INSERT ON custom_csrs FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
"""
_WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


def _body(**fields: str) -> bytes:
    return json.dumps({**BODY, **fields}).encode()


async def _connect(live: Live) -> Stream:
    return await asyncio.open_connection("127.0.0.1", httpx.URL(live.url).port)


async def _idle(live: Live) -> Stream:
    """A connection that has had an answer, and is kept."""
    reader, writer = await _connect(live)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: keystead\r\n\r\n")
    assert await reader.readuntil(b'"ok"}')
    return reader, writer


async def _accepted(live: Live, body: bytes) -> Stream:
    """A POST that the server has begun to read: it asks for the body, which is not sent yet."""
    reader, writer = await _connect(live)
    head = (
        f"POST {live.account_path} HTTP/1.1\r\nHost: keystead\r\nAuthorization: {live.bearer['Authorization']}\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    return reader, writer


async def _rest(stream: Stream) -> tuple[int, bytes]:
    """Status and whole text of the answer, which the server ends by closing; 0 when it closes without one."""
    reader, writer = stream
    async with asyncio.timeout(STOP_SECONDS):
        text = await reader.read()
    writer.close()
    return int(text.split(maxsplit=2)[1]) if text else 0, text


def _made(text: bytes) -> str:
    csr_id: str = json.loads(text.partition(b"\r\n\r\n")[2])["result"]["id"]
    return csr_id


async def _fetch(url: str, sql: str) -> list[asyncpg.Record]:
    async with connected(url) as connection:
        return await connection.fetch(sql)


async def _execute(url: str, script: str) -> None:
    async with connected(url) as connection:
        await connection.execute(script)


async def _refuses(live: Live) -> bool:
    try:
        _, writer = await _connect(live)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")


async def _ended(live: Live) -> bool:
    return _is_zombie(live.pid)


async def test_what_was_accepted_is_answered(database_url: str, tmp_path: Path) -> None:
    """After SIGTERM, idle connections are closed, new ones refused, and the accepted requests answered, each once."""
    await _execute(database_url, _GATE)
    slow, rsa = _body(), _body(key_type="rsa2048")
    with serving(database_url, tmp_path / "data", workers=2) as live:
        idle = [await _idle(live) for _ in range(4)]
        waiting = [await _accepted(live, slow) for _ in range(4)]
        for _, writer in waiting:
            writer.write(slow)

        async def some_wait() -> bool:
            # For the others of a worker, which are then one transaction.
            return bool(await _fetch(database_url, _WAITING))

        await comes_about(some_wait)
        half_sent = [(body, await _accepted(live, body)) for body in (slow, rsa, slow, rsa)]
        os.kill(live.pid, signal.SIGTERM)
        assert [await _rest(stream) for stream in idle] == 4 * [(0, b"")]
        await comes_about(lambda: _refuses(live))
        for body, (_, writer) in half_sent:
            writer.write(body)
        await _execute(database_url, "UPDATE gate SET shut = false")
        answers = [await _rest(stream) for stream in (*waiting, *(stream for _, stream in half_sent))]
        await comes_about(lambda: _ended(live))
    assert [status for status, _ in answers] == len(answers) * [201], answers
    assert all(b"\r\nconnection: close\r\n" in text for _, text in answers)
    rows = await _fetch(database_url, "SELECT id FROM custom_csrs")
    assert sorted(str(row["id"]) for row in rows) == sorted(_made(text) for _, text in answers)


async def test_what_never_ends_does_not_hold_the_stop(database_url: str, tmp_path: Path) -> None:
    """Whoever never reads the answer is cut off; a statement that hangs is still answered 503; the status is 0."""
    await _execute(database_url, _GATE)
    with serving(database_url, tmp_path / "data", workers=2) as live:
        deaf = [await _never_reads(live) for _ in range(4)]
        hanging = [await _accepted(live, _body()) for _ in range(4)]
        os.kill(live.pid, signal.SIGTERM)
        for _, writer in hanging:
            writer.write(_body())
        answers = await asyncio.gather(*(_rest(stream) for stream in hanging))
        await comes_about(lambda: _ended(live))
        for _, writer in deaf:
            writer.close()
    assert [status for status, _ in answers] == 4 * [503]


async def test_an_impatient_operator_changes_nothing(database_url: str, tmp_path: Path) -> None:
    """SIGTERM again and again until the process has ended: the status is still 0."""
    with serving(database_url, tmp_path / "data") as live:

        async def pressed_again() -> bool:
            os.kill(live.pid, signal.SIGTERM)
            return await _ended(live)

        await comes_about(pressed_again)


async def _never_reads(live: Live) -> Stream:
    # A small buffer here, and more to send than any buffer there holds.
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(live.url).port, limit=1024)
    writer.write(12 * b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: keystead\r\n\r\n")
    assert await reader.readuntil(b"200 OK")
    return reader, writer


# A rolling restart.


def _documented(folder: Path, port: int, servers: tuple[int, int]) -> str:
    """The configuration of docs/operations.md with our ports and our certificate."""
    blocks: list[str] = re.findall(r"^```nginx\n(.*?)^```$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if "upstream keystead" in block]
    assert found, "docs/operations.md does not say how nginx stands before two servers"
    [text] = found
    ours = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "127.0.0.1:8787": f"127.0.0.1:{servers[0]}",
        "127.0.0.1:8788": f"127.0.0.1:{servers[1]}",
        "/etc/nginx/tls/": f"{folder}/",
    }
    for theirs, own in ours.items():
        assert theirs in text
        text = text.replace(theirs, own)
    return text


@contextlib.contextmanager
def _proxy(program: str, configuration: str, folder: Path, certificate: trustme.LeafCert) -> Iterator[Path]:
    """The proxy in the foreground, as an ordinary user could run it; gives its error log."""
    log = folder / "error.log"
    certificate.cert_chain_pems[0].write_to_path(folder / "fullchain.pem")
    certificate.private_key_pem.write_to_path(folder / "privkey.pem")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder / 'pid'};\nerror_log {log};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{folders}{configuration}}}\n"
    )
    process = subprocess.Popen([program, "-e", log, "-c", folder / "nginx.conf"])
    try:
        yield log
    finally:
        process.terminate()
        process.wait()


def _start(port: int, folder: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSTEAD_", "CLOUDFLARE_"))}
    own = {"KEYSTEAD_DATA_DIR": str(folder / str(port)), "KEYSTEAD_PORT": str(port)}
    with (folder / f"{port}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "keystead", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**inherited, **settings, **own},
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/readyz", process, folder / f"{port}.log")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _restart_each(running: dict[int, subprocess.Popen[bytes]], folder: Path, settings: Mapping[str, str]) -> None:
    for port in list(running):
        running[port].terminate()
        assert running[port].wait(STOP_SECONDS) == 0, (folder / f"{port}.log").read_text()
        running[port] = _start(port, folder, settings)


async def test_a_rolling_restart_loses_no_request(database_url: str, tmp_path: Path) -> None:
    """While two servers behind nginx are restarted one after the other, every request is done, once."""
    port, first, second = free_port(), free_port(), free_port()
    program, configuration = tool("nginx"), _documented(tmp_path, port, (first, second))
    authority = trustme.CA()
    settings = {
        "KEYSTEAD_DATABASE_URL": database_url,
        "KEYSTEAD_KEYRING": str(tmp_path / "keyring.json"),
        "KEYSTEAD_KEY_POOL": "0",
        "KEYSTEAD_RATE_LIMIT": "off",
        "KEYSTEAD_TRUSTED_PROXIES": "127.0.0.1/32",
        "KEYSTEAD_WORKERS": "1",
    }
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for one in (first, second):
            running[one] = _start(one, tmp_path, settings)
        with _proxy(program, configuration, tmp_path, authority.issue_cert("127.0.0.1")) as log:
            credentials = (tmp_path / str(first) / "credentials.env").read_text()
            restarting = asyncio.create_task(asyncio.to_thread(_restart_each, running, tmp_path, settings))
            names = await _work_meanwhile(f"https://127.0.0.1:{port}", authority, credentials, restarting)
            assert "Connection refused" in log.read_text(), "no request met a server that was stopped"
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    rows = await _fetch(database_url, "SELECT name FROM custom_csrs")
    assert sorted(row["name"] for row in rows) == sorted(names)


async def _work_meanwhile(
    url: str, authority: trustme.CA, credentials: str, restarting: asyncio.Task[None]
) -> list[str]:
    """Clients that create and read all the time; every answer must be good. Gives the names that they created."""
    token, account = (
        re.search(rf"^CLOUDFLARE_{name}=(\S+)$", credentials, re.MULTILINE)[1]  # type: ignore[index] # it is there
        for name in ("API_TOKEN", "ACCOUNT_ID")
    )
    context = httpx.create_ssl_context()
    authority.configure_trust(context)
    path = f"/client/v4/accounts/{account}/custom_csrs"
    names: list[str] = []
    bad: list[str] = []
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, verify=context, timeout=STOP_SECONDS
    ) as http:

        async def client() -> None:
            while not restarting.done():
                name = uuid4().hex
                names.append(name)
                try:
                    made = await http.post(path, json={**BODY, "name": name}, headers={"Idempotency-Key": name})
                    answers = [made]
                    if made.status_code == 201:
                        answers.append(await http.get(f"{path}/{made.json()['result']['id']}"))
                    bad.extend(answer.text for answer in answers if not answer.is_success)
                except httpx.TransportError as error:
                    bad.append(repr(error))
                # Enough to meet every moment of a stop, and no more than a small machine does beside a start.
                await asyncio.sleep(0.05)

        await asyncio.gather(*(client() for _ in range(3)))
    await restarting
    assert bad == []
    return names
