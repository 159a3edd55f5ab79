"""More than can be served, and clients that are slow, silent or gone: bounded, while others are served (bounds.py).

The bounds are the real ones, and all slow clients are slow at the same time.
"""

import asyncio
import contextlib
import itertools
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from soak.overload import (
    Client,
    Quiet,
    Request,
    Told,
    Watch,
    allow_files,
    idle,
    memory,
    port_of,
    request,
    why_not_turned_away,
    workers,
)
from support.databases import connected, new_database
from support.live import Live, serving
from support.world import BODY, Judge

from keystead import bounds
from keystead.server import postgres

pytestmark = pytest.mark.serve

AT_ONCE = 1500
QUIET = 2000
# For what ends at a bound, beyond it.
SLACK = 15.0
BOUND = max(bounds.HEAD_SECONDS, bounds.BODY_SECONDS)
LIMIT = 64 * 1024
# What all requests at once, or all idle connections, may cost both workers: far below what unbounded ones would.
MORE_MEMORY = 120


@pytest.fixture(scope="module")
async def server(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A server with two workers, started with fewer files than it means to have connections."""
    few, (soft, hard) = 512, resource.getrlimit(resource.RLIMIT_NOFILE)
    async with new_database(cluster, "template0") as url:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            running = contextlib.ExitStack()
            live = running.enter_context(serving(url, tmp_path_factory.mktemp("overload") / "data", workers=2))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        allow_files(max(AT_ONCE, QUIET) + 500)
        with running:
            yield live
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def get_of(live: Live) -> Request:
    made = httpx.post(live.url + live.account_path, json=BODY, headers=live.bearer)
    assert made.status_code == 201, made.text
    return request(live, "GET", f"{live.account_path}/{made.json()['result']['id']}")


def answer_of(told: Told, method: str, url: str) -> httpx.Response:
    head, _, body = told.raw.partition(b"\r\n\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])]
    return httpx.Response(told.status, headers=headers, content=body, request=httpx.Request(method, url))


# More than can be served.


class Rush(msgspec.Struct):
    """What came of very many requests at the same moment: CSRs to make, and lists of CAs in the other dialect."""

    told: list[Told]
    asked: int
    before: set[str]
    rows: set[str]
    memory: tuple[float, float]
    watch: Watch
    next: httpx.Response


@pytest.fixture(scope="module")
async def rush(server: Live) -> Rush:
    post = request(server, "POST", server.account_path, BODY)
    project = server.env["CLOUDFLARE_ACCOUNT_ID"]
    other = request(server, "GET", f"/api/v1/cert-manager/ca/internal?projectId={project}")
    before, taken = await csrs(server), memory(server.pid)
    client = Client(port_of(server))
    await client.connect(AT_ONCE)
    watch = Watch(server)
    watching = asyncio.create_task(watch.go_on())
    kinds = itertools.cycle((post, post, other))
    for _ in range(AT_ONCE):
        client.ask(next(kinds), time.perf_counter())
    await client.settle()
    async with httpx.AsyncClient(headers=server.bearer) as http:
        after = await http.post(server.url + server.account_path, json=BODY)
    watching.cancel()
    client.close()
    most = max(watch.most, memory(server.pid))
    return Rush(client.told, client.asked, before, await csrs(server), (taken, most), watch, after)


async def csrs(live: Live) -> set[str]:
    async with connected(live.database_url) as connection:
        return {str(row[0]) for row in await connection.fetch("SELECT id FROM custom_csrs")}


async def test_each_request_is_served_or_turned_away(rush: Rush) -> None:
    """Of very many requests at once some are done, all others get 503 with Retry-After, and no connection is lost."""
    counts = Counter((each.name, each.status) for each in rush.told)
    assert sum(counts.values()) == rush.asked == AT_ONCE
    assert counts.keys() == {("POST", 201), ("POST", 503), ("GET", 200), ("GET", 503)}, counts
    assert {why_not_turned_away(each) for each in rush.told if each.status == 503} == {""}


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_turned_away_in_the_shape_of_the_dialect(server: Live, rush: Rush, method: str) -> None:
    """Who is turned away is told so as the contract of the dialect has it."""
    path = server.account_path if method == "POST" else "/api/v1/cert-manager/ca/internal"
    judge, away = Judge(server.url), [each for each in rush.told if each.name == method and each.status == 503]
    assert away
    for told in away[:20]:
        judge(answer_of(told, method, server.url + path))


async def test_what_was_acknowledged_is_there_once(rush: Rush) -> None:
    """Each CSR that was acknowledged in the rush is there once, and no other."""
    acknowledged = [each.id for each in rush.told if each.status == 201]
    own = {rush.next.json()["result"]["id"]}
    assert len({*acknowledged}) == len(acknowledged)
    assert rush.rows - rush.before - own == {*acknowledged}


async def test_memory_stays_bounded(rush: Rush) -> None:
    """Very many requests at once take no more memory than those that are let in and a little for each other."""
    before, most = rush.memory
    assert most - before < MORE_MEMORY


async def test_next_request_is_served(rush: Rush) -> None:
    """Once the rush is answered, the next request is served as if nothing had been."""
    assert rush.next.status_code == 201


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_are_answered_while_requests_are_turned_away(rush: Rush, path: str) -> None:
    """Who is not let in during a rush is told by the API only: the probes say that the server is well."""
    assert rush.watch.probes[path]
    assert rush.watch.not_good[path] == []


def test_files_are_raised_to_what_is_meant(server: Live) -> None:
    """A server that is started with few open files allowed raises that for its workers as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = bounds.CLIENTS if hard == resource.RLIM_INFINITY else min(bounds.CLIENTS, hard)
    for pid in workers(server.pid):
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        allowed = next(line.split()[3] for line in lines if line.startswith("Max open files"))
        assert allowed == "unlimited" or int(allowed) >= wanted


# Clients that are slow, silent or gone.


class Slow(msgspec.Struct, frozen=True):
    """A client that sends its beginning at once, as far as it gets, and then its rest again and again."""

    name: str
    begin: str
    rest: bytes = b""
    reads: bool = True


SLOW = [
    Slow("sends nothing", ""),
    Slow("vanishes within a head", "GET /healthz HTTP/1.1\r\nHo"),
    Slow("vanishes within a body", "{post}Content-Length: 4096\r\n\r\n["),
    Slow("vanishes after an answer", "{get}"),
    Slow("sends a head byte by byte", "GET /healthz HTTP/1.1\r\nX-Slow: ", b"x"),
    Slow("sends a body byte by byte", "{post}Content-Length: 4096\r\n\r\n[", b" "),
    Slow("sends chunks slowly and without end", "{post}Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    Slow("does not read one large answer", "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", reads=False),
    Slow("asks on and on and reads nothing", "{many}", reads=False),
]
BODIES = ["vanishes within a body", "sends a body byte by byte", "sends chunks slowly and without end"]


class Patience(msgspec.Struct):
    """After what time the server let go of each slow client, what each was answered, and how others fared."""

    ended: dict[str, float]
    answers: dict[str, bytes]
    others: list[int]
    quiet: Quiet


@pytest.fixture(scope="module")
async def patience(server: Live, rush: Rush) -> Patience:
    """All slow clients, together with very many idle connections, after the rush."""
    get = get_of(server)
    slow = asyncio.create_task(hold_out(server, get))
    quiet = await idle(server, QUIET, get)
    ended, answers, others = await slow
    return Patience(ended, answers, others, quiet)


async def hold_out(live: Live, get: Request) -> tuple[dict[str, float], dict[str, bytes], list[int]]:
    """Be every slow client until the server has let go of all, or should have long ago."""
    port, ended, others = port_of(live), dict[str, float](), list[int]()
    answers = {slow.name: b"" for slow in SLOW}
    with contextlib.ExitStack() as stack:
        clients = [(slow, stack.enter_context(begun(slow, live, get))) for slow in SLOW]
        began = time.monotonic()
        async with httpx.AsyncClient(headers=live.bearer, timeout=BOUND + SLACK) as http:
            while len(ended) < len(SLOW) and time.monotonic() < began + BOUND + SLACK:
                held = held_by(port)
                for slow, client in clients:
                    if slow.name not in ended and client.getsockname()[1] not in held:
                        ended[slow.name] = time.monotonic() - began
                    with contextlib.suppress(OSError):
                        client.send(slow.rest)
                    with contextlib.suppress(OSError):
                        answers[slow.name] += client.recv(65536) if slow.reads else b""
                path = get.data.split()[1].decode()
                others.append((await http.get(live.url + path, headers={"Connection": "close"})).status_code)
                await asyncio.sleep(0.3)
    return ended, answers, others


def begun(slow: Slow, live: Live, get: Request) -> socket.socket:
    bearer = live.bearer["Authorization"]
    post = f"POST {live.account_path} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n"
    one = get.data.decode()
    client = socket.socket()
    if not slow.reads:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port_of(live)))
    client.setblocking(False)
    client.send(slow.begin.format(post=post, get=one, many=one * 5000).encode())
    return client


def held_by(port: int) -> set[int]:
    """The ports of those whose connections the server on this port has not closed.

    What is still on its way to a client that does not read, after that, is the kernel's.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here, established, left_by_the_client = f":{port:04X}", "01", "08"
    held = [line[2] for line in lines if line[1].endswith(here) and line[3] in {established, left_by_the_client}]
    return {int(address.rpartition(":")[2], 16) for address in held}


@pytest.mark.parametrize("name", [slow.name for slow in SLOW])
async def test_slow_client_is_let_go(patience: Patience, name: str) -> None:
    """Whatever a client does not send or read, its connection ends within the bound."""
    assert name in patience.ended, f"a client that {name} was still held after {BOUND + SLACK:.0f} s"


@pytest.mark.parametrize("name", BODIES)
async def test_body_that_does_not_come_is_told_so(patience: Patience, name: str) -> None:
    """Who does not send the whole body in time gets 400 and the end of the connection, not before the bound."""
    assert patience.answers[name].startswith(b"HTTP/1.1 400 ")
    assert b"did not arrive within" in patience.answers[name]
    assert patience.ended[name] >= bounds.BODY_SECONDS - 1


async def test_others_are_served_beside_slow_clients(patience: Patience) -> None:
    """Who comes while very many connections are idle and others are slow is served, also over a new connection."""
    assert {*patience.others} == {200}
    assert {each.status for each in patience.quiet.meanwhile} == {200}


async def test_idle_connections_are_cheap_and_end(patience: Patience) -> None:
    """Very many connections on which nothing comes are open at once, take little memory, and are ended at the bound."""
    quiet = patience.quiet
    assert quiet.at_once == QUIET
    assert quiet.most - quiet.before < MORE_MEMORY
    assert len(quiet.ended) == QUIET


# Bodies.


def chunked_post(live: Live) -> bytes:
    head = f"POST {live.account_path} HTTP/1.1\r\nHost: x\r\nAuthorization: {live.bearer['Authorization']}\r\n"
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b" " * size)


@pytest.mark.parametrize(("size", "status"), [(LIMIT, b"400"), (LIMIT + 1, b"413")])
async def test_chunks_are_counted(server: Live, size: int, status: bytes) -> None:
    """A body in chunks may be as long as any other: 64 KiB are read, and with one more byte it is too large."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    pieces = [chunk(each) for each in (LIMIT // 2, LIMIT // 2, size - LIMIT) if each]
    writer.write(chunked_post(server) + b"".join(pieces) + b"0\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND + SLACK)
    writer.close()
    assert head.split()[1] == status


async def test_chunks_without_end_are_cut_off(server: Live) -> None:
    """Who sends chunks on and on is answered that it is too much, and can send no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(chunked_post(server))
    answer, sent = b"", 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(BOUND + SLACK):
            while not answer:
                writer.write(chunk(4096))
                sent += 4096
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    answer = await asyncio.wait_for(reader.read(65536), 0.01)
            while True:
                writer.write(chunk(4096))
                await writer.drain()
                await asyncio.sleep(0.01)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    # What is on its way when the answer is made is in the buffers of both kernels.
    assert sent < 100 * LIMIT
