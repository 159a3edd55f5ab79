"""Bodies of strangers: none is read before its caller is known, those of logins are small, and all together bounded."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from litestar import Request
from soak.overload import memory, port_of
from support.live import Live
from support.trouble import is_clear
from support.waiting import comes_about
from support.world import BODY, Judge, World, new_world

from keystead import bounds
from keystead.config import RateLimit
from keystead.web import asgi, bodies
from keystead.web.handling import AnyRequest

LOGIN = "/api/v1/auth/universal-auth/login"
CA = "/api/v1/pki/ca"
MIB = 1024 * 1024
SMALL = bounds.SMALL_BODY
DEADLINE = 30.0


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for the tests that change nothing which others see."""
    return shared_world


# --- before the caller is known ---


async def touched(world: World, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """The status of a request, and how often it was looked for its body."""
    looks, status = 0, 0

    async def receive() -> asgi.Message:
        nonlocal looks
        looks += 1
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: asgi.Message) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "extensions": {},
        "client": ("192.0.2.1", 4711),
        "server": ("127.0.0.1", 8787),
        "headers": headers,
    }
    await world.app(scope, receive, send)
    return status, looks


async def test_no_body_is_read_before_its_caller_is_known(world: World) -> None:
    """On every path with every method, and where no route is, a stranger's body is left alone, but for a login's."""
    templates = {route.path for route in world.app._app.routes}
    paths = {re.sub(r"\{[a-z_]*(account|zone|token)_id[^}]*\}", uuid4().hex, template) for template in templates}
    paths = {re.sub(r"\{[^}]*\}", str(uuid4()), path) for path in paths} | {
        "/nothing",
        "/api/x",
        "/client/v4/x",
        "/%zz",
    }
    assert len(paths) > 40
    length = (b"content-length", b"1048576")
    callers = [
        [length],
        [length, (b"authorization", b"Bearer " + b"x" * 40)],
        [length, (b"authorization", b"Bearer ksa_" + b"x" * 46)],
        [length, (b"x-auth-email", b"a@example.com"), (b"x-auth-key", b"0" * 37)],
    ]
    for path in paths:
        for method in ("POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS"):
            for headers in callers:
                status, looks = await touched(world, method, path, headers)
                assert (looks == 0) or (path, method) == (LOGIN, "POST"), (method, path, status)
                assert status >= 400 or method == "GET", (method, path, status)


async def test_a_known_caller_may_not_and_is_refused_before_the_body(world: World) -> None:
    """Where the path says what is asked for, also a known caller without permission is refused before the body."""
    headers = [(b"authorization", f"Bearer {world.b.token}".encode())]
    for path in (*world.a.paths, f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates"):
        assert await touched(world, "POST", path, headers) == (403, 0)
    assert await touched(world, "POST", f"{CA}/{uuid4()}/sign-certificate", headers) == (404, 0)


async def test_without_a_known_caller_8_kib_are_all(world: World) -> None:
    """The rule stands where bodies are read: a route without its guard would read no more from a stranger."""
    stranger: dict[str, Any] = {"budgets": bodies.Budgets()}
    known = {**stranger, "caller_id": "x"}
    assert len(await bodies.read(_sending(SMALL, stranger), MIB)) == SMALL
    with pytest.raises(bodies.TooLarge, match="8192"):
        await bodies.read(_sending(SMALL + 1, stranger), MIB)
    assert len(await bodies.read(_sending(SMALL + 1, known), MIB)) == SMALL + 1


def _sending(size: int, state: dict[str, Any]) -> AnyRequest:
    left = size

    async def receive() -> Any:
        nonlocal left
        chunk = b" " * min(1000, left)
        left -= len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": left > 0}

    scope: Any = {"type": "http", "headers": [], "state": state}
    return Request(scope, receive)


# --- the login ---


async def test_a_login_of_8_kib_is_read_and_one_byte_more_is_413(world: World) -> None:
    """The bound counts bytes, announced or not, and is told in the dialect's shape."""
    for raw, status in ((b"{}".ljust(SMALL), 422), (b"{}".ljust(SMALL + 1), 413)):
        for content in (raw, _sent(raw)):
            assert (await world.http.post(LOGIN, content=content)).status_code == status


async def _sent(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _never() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


def login_cases() -> dict[str, tuple[Any, int]]:
    """What is sent to log in, and the status it gets."""
    return {
        "nothing": (b"", 400),
        "no JSON": (b"{", 400),
        "no object": (b"[]", 422),
        "no fields": (b"{}", 422),
        "wrong types": (b'{"clientId": 1, "clientSecret": []}', 422),
        "a wrong pair": (b'{"clientId": "x", "clientSecret": "y"}', 401),
        "too large": (b" " * (SMALL + 1), 413),
        "too large, in pieces": (_sent(b" " * SMALL, b" "), 413),
        "too slow": (_never(), 400),
    }


async def test_every_refused_login_counts_against_its_address(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was wrong with it, a login that is refused is a failed authentication in limit and audit log."""
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.05)
    cases = login_cases()
    async with new_world(database_url, tmp_path, RateLimit(10 * (len(cases) + 1), 3600)) as world:
        for name, (content, status) in cases.items():
            assert (await world.http.post(LOGIN, content=content)).status_code == status, name
        assert (await broken_off(world)).startswith(b"400")
        answer = await world.http.post(LOGIN, content=b"{")
        assert (answer.status_code, answer.json()["error"]) == (429, "RateLimitExceeded")
        state = world.state
        await state.failures.flush(world.database)
        [row] = await world.database.fetch("SELECT sum(count) AS n FROM failed_authentications")
        assert row["n"] == len(cases) + 2


async def broken_off(world: World) -> bytes:
    """The status of a login whose client goes away within its body."""
    events: Iterator[asgi.Message] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    told = b""

    async def receive() -> asgi.Message:
        return next(events)

    async def send(message: asgi.Message) -> None:
        nonlocal told
        told += str(message.get("status", "")).encode()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": "POST",
        "path": LOGIN,
        "raw_path": LOGIN.encode(),
        "query_string": b"",
        "extensions": {},
        "client": ("127.0.0.1", 123),
        "server": ("127.0.0.1", 8787),
        "headers": [(b"content-length", b"99")],
    }
    await world.app(scope, receive, send)
    return told


async def test_what_is_not_the_clients_fault_counts_nothing(database_url: str, tmp_path: Path) -> None:
    """A login that finds no room is told to come back, and is no failed authentication."""
    async with new_world(database_url, tmp_path, RateLimit(10, 3600)) as world:
        world.app._budgets.unadmitted.free = 0
        for _ in range(3):
            is_clear(Judge(world.settings.public_url), await world.http.post(LOGIN, content=b"{}"))
        assert not world.state.failures._counts


# --- all bodies together ---


class Slow:
    """A request whose body is begun, and goes on when it is told to."""

    def __init__(self, world: World, path: str, size: int, headers: dict[str, str] | None = None) -> None:
        self.goes_on = asyncio.Event()
        self._begun = asyncio.Event()
        self._size = size
        length = {"Content-Length": str(size)}
        self.task = asyncio.create_task(
            world.http.post(path, content=self._content(), headers={**length, **(headers or {})})
        )

    async def _content(self) -> AsyncIterator[bytes]:
        yield b"{}".ljust(self._size - 1)
        self._begun.set()
        await self.goes_on.wait()
        yield b" "

    async def begun(self) -> "Slow":
        await asyncio.wait_for(self._begun.wait(), DEADLINE)
        return self

    async def status(self) -> int:
        self.goes_on.set()
        return (await asyncio.wait_for(self.task, DEADLINE)).status_code


@pytest.fixture
async def cramped(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world with room for three logins, and for 64 KiB of known callers."""
    monkeypatch.setattr(bounds, "UNADMITTED_BODY_BYTES", 3 * SMALL)
    monkeypatch.setattr(bounds, "ADMITTED_BODY_BYTES", 64 * 1024)
    async with new_world(database_url, tmp_path, remembered=1.0) as made:
        yield made


async def test_bodies_of_strangers_are_bounded_together(cramped: World) -> None:
    """While so many logins are on their way, the next is 503 with Retry-After, and then all is as before."""
    judge, space = Judge(cramped.settings.public_url), cramped.app._budgets.unadmitted
    slow = [await Slow(cramped, LOGIN, SMALL).begun() for _ in range(3)]
    assert space.free == 0
    is_clear(judge, await cramped.http.post(LOGIN, content=b"{}"))
    # Nobody else waits for them.
    assert (await cramped.http.get(cramped.a.account_path, headers=cramped.a.bearer)).status_code == 200
    assert (await cramped.http.post(cramped.a.account_path, json=BODY, headers=cramped.a.bearer)).status_code == 201
    assert [await each.status() for each in slow] == [422] * 3
    assert space.free == 3 * SMALL
    assert (await cramped.http.post(LOGIN, content=b"{}")).status_code == 422


async def test_slow_logins_keep_nobody_out(cramped: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login whose body is late makes way for the next one, the oldest first, and is told so."""
    space = cramped.app._budgets.unadmitted
    slow = [await Slow(cramped, LOGIN, SMALL).begun() for _ in range(3)]
    monkeypatch.setattr(bounds, "HURRIED_BODY_SECONDS", 0.0)
    assert (await cramped.http.post(LOGIN, content=b"{}".ljust(SMALL))).status_code == 422
    answer = await slow[0].task
    assert answer.status_code == 400
    assert "while too many others wait" in answer.json()["message"]
    assert [await each.status() for each in slow[1:]] == [422] * 2
    assert space.free == 3 * SMALL
    assert not space.unfinished


async def test_bodies_of_known_callers_are_bounded_together_in_cloudflares_dialect(cramped: World) -> None:
    """Beyond 8 KiB a known caller's body counts too: the next is 503/1501, and small ones are read as ever."""
    a, judge, space = cramped.a, Judge(cramped.settings.public_url), cramped.app._budgets.admitted
    slow = await Slow(cramped, a.account_path, 64 * 1024, a.bearer).begun()
    assert space.free == 0
    large = b"{}".ljust(SMALL + 1)
    is_clear(judge, await cramped.http.post(a.account_path, content=large, headers=a.bearer))
    is_clear(judge, await cramped.http.post(CA, content=_sent(large, large), headers=a.bearer))
    assert (await cramped.http.post(a.account_path, json=BODY, headers=a.bearer)).status_code == 201
    assert (await cramped.http.post(LOGIN, content=b"{}")).status_code == 422
    assert await slow.status() == 400
    assert space.free == 64 * 1024
    assert (await cramped.http.post(a.account_path, content=large, headers=a.bearer)).status_code == 400


async def test_a_body_counts_until_its_request_is_answered(cramped: World) -> None:
    """What is given up, too large, cut off or refused gives back what it took, each time."""
    a, spaces = cramped.a, cramped.app._budgets
    for content, status in ((b"[]".ljust(SMALL * 2), 422), (b"x" * (SMALL * 2), 400)):
        assert (await cramped.http.post(CA, content=content, headers=a.bearer)).status_code == status
    too_much = (_sent(*[b" " * SMALL] * 9), 413)
    assert (await cramped.http.post(a.account_path, content=too_much[0], headers=a.bearer)).status_code == too_much[1]
    slow = await Slow(cramped, CA, SMALL * 4, a.bearer).begun()
    slow.task.cancel()
    await comes_about(slow.task.done)
    await broken_off(cramped)
    assert (spaces.admitted.free, spaces.unadmitted.free) == (64 * 1024, 3 * SMALL)
    assert not spaces.admitted.unfinished
    assert not spaces.unadmitted.unfinished


# --- the server ---

CONNECTIONS = 250
# Far below what their bodies are together, and far above what so many connections cost.
MORE_MEMORY = 100.0


@pytest.mark.parametrize(
    ("path", "chunked"), [(LOGIN, False), (LOGIN, True), (CA, False), ("/nothing", False)], ids=str
)
async def test_many_bodies_of_strangers_cost_no_memory(live: Live, path: str, chunked: bool) -> None:
    """Hundreds of connections that each send a megabyte but for its last byte are refused, and hold none of it."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n100000\r\n" if chunked else f"Content-Length: {MIB}\r\n\r\n"
    data = head.encode() + b" " * (MIB - 1)
    before, most = memory(live.pid), 0.0
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(live)))) for _ in range(CONNECTIONS)
        ]
        left = dict.fromkeys(clients, memoryview(data))
        for client in clients:
            client.setblocking(False)
        answers: dict[socket.socket, bytes] = {}
        deadline = time.monotonic() + 60
        while len(answers) < CONNECTIONS and time.monotonic() < deadline:
            for client in set(clients) - answers.keys():
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    left[client] = left[client][client.send(left[client]) :]
                with contextlib.suppress(BlockingIOError):
                    try:
                        answers[client] = client.recv(65536)
                    except ConnectionError:
                        answers[client] = b""
            most = max(most, memory(live.pid))
            await asyncio.sleep(0)
    told = {answer.split(b"\r\n")[0] for answer in answers.values()} - {b""}
    refused = {LOGIN: b"HTTP/1.1 413", CA: b"HTTP/1.1 401", "/nothing": b"HTTP/1.1 404"}[path]
    assert told
    assert all(line.startswith(refused) for line in told), told
    assert most - before < MORE_MEMORY
