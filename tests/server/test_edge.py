"""The client's address behind proxies, and what the socket does to us: trickling, endless and cut bodies."""

import asyncio
import ipaddress
import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.live import Live
from support.world import BODY, World, make_token, new_world

from keystead import bounds

PROXIES = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "fd00::/8"))


async def seen_address(world: World, peer: str, *forwarded: str) -> str:
    """The address that the server takes a caller for: the refusal of a token that is bound to no address names it."""
    condition = json.dumps({"request_ip": {"not_in": ["0.0.0.0/0", "::/0"]}})
    value = await make_token(world.services, world.a.account, condition=condition)
    transport = httpx.ASGITransport(app=world.app, client=(peer, 4711))
    headers = [("Authorization", f"Bearer {value}"), *(("X-Forwarded-For", each) for each in forwarded)]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answer = await http.get(world.a.account_path, headers=headers)
    text: str = answer.json()["errors"][0]["message"]
    assert text.startswith("Cannot use the access token from location: ")
    return text.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        # Whoever is no trusted proxy is the client, whatever it says.
        ("192.0.2.1", (), "192.0.2.1"),
        ("192.0.2.1", ("198.51.100.1",), "192.0.2.1"),
        ("192.0.2.1", ("10.0.0.1",), "192.0.2.1"),
        # A trusted proxy is believed, from the right, through further trusted ones.
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("203.0.113.9, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1, 10.9.9.9",), "198.51.100.1"),
        ("10.0.0.1", ("203.0.113.9", "198.51.100.1", "10.1.1.1"), "198.51.100.1"),
        ("10.0.0.1", ("10.2.2.2, 10.1.1.1",), "10.2.2.2"),
        ("fd00::1", ("2001:db8::1",), "2001:db8::1"),
        # Some proxies write the port too.
        ("10.0.0.1", ("198.51.100.1:8080",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8::1]:443, 10.1.1.1:1",), "2001:db8::1"),
        # What is no address is nobody's, and never the proxy's.
        ("10.0.0.1", ("198.51.100.1, garbage",), "None"),
        ("10.0.0.1", ("198.51.100.1, , 10.1.1.1",), "None"),
        ("10.0.0.1", ("unknown",), "None"),
        ("10.0.0.1", ("",), "10.0.0.1"),
        # IPv4 in IPv6 is IPv4.
        ("::ffff:192.0.2.1", (), "192.0.2.1"),
        ("::ffff:10.0.0.1", ("::ffff:198.51.100.1",), "198.51.100.1"),
    ],
)
async def test_the_client_is_the_nearest_address_that_is_not_a_trusted_proxys(
    database_url: str, tmp_path: Path, peer: str, forwarded: tuple[str, ...], expected: str
) -> None:
    """X-Forwarded-For counts only behind a trusted proxy, and is read from the right."""
    async with new_world(database_url, tmp_path, trusted_proxies=PROXIES) as world:
        assert await seen_address(world, peer, *forwarded) == expected


async def test_without_trusted_proxies_nobody_is_believed(world: World) -> None:
    """By default the peer is the client."""
    assert await seen_address(world, "127.0.0.1", "198.51.100.1") == "127.0.0.1"


async def test_a_body_that_never_ends_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in time is 400/1400, and nothing is made."""
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.2)

    async def trickle() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    answer = await world.http.post(world.a.account_path, content=trickle(), headers=world.a.bearer)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 1400)
    assert not await world.database.fetch("SELECT FROM private_keys")


async def exchange(live: Live, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send raw bytes to the real server, and give back all that it answers until it closes or is done."""
    port = int(live.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.read(65536))
    try:
        for part in parts:
            writer.write(part)
            await asyncio.wait({answer}, timeout=pause)
            if answer.done():
                break
        return await asyncio.wait_for(answer, 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def request(live: Live, method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: {live.bearer['Authorization']}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.mark.serve
async def test_a_body_that_trickles_or_never_comes_ends_after_ten_seconds(live: Live) -> None:
    """A client that sends a byte now and then, or half a chunk and no more, is answered 400/1400 within the bound."""
    head = request(live, "POST", live.account_path, "Content-Length: 1000")
    chunked = request(live, "POST", live.account_path, "Transfer-Encoding: chunked")
    trickling = exchange(live, head, *[b" "] * 30, pause=1.0)
    for answer in await asyncio.gather(trickling, exchange(live, chunked + b"5\r\n{}")):
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert b'"code":1400' in answer


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(500)) + b"\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_the_server_stays(live: Live, raw: bytes) -> None:
    """Broken HTTP gets a 4xx or a closed connection, never a 5xx, and the next request is served."""
    answer = await exchange(live, raw)
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    async with httpx.AsyncClient(base_url=live.url) as http:
        assert (await http.get(live.account_path, headers=live.bearer)).status_code == 200


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"ffffffffffffffff1\r\n"])
async def test_a_body_that_breaks_off_is_a_400(live: Live, chunk: bytes) -> None:
    """Chunks that are none are the client's fault, and no error of the server's."""
    head = request(live, "POST", live.account_path, "Transfer-Encoding: chunked")
    answer = await exchange(live, head + chunk)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "unexpected error" not in live.log.read_text()


async def test_a_query_may_be_raw_utf_8(live: Live) -> None:
    """A filter is found percent-encoded, and as the raw bytes that some clients send."""
    async with httpx.AsyncClient(base_url=live.url) as http:
        body = {**BODY, "name": "Bär + Ähre"}
        assert (await http.post(live.account_path, json=body, headers=live.bearer)).status_code == 201
    for query in ("?name=Bär+%2B+Ähre", "?name=B%C3%A4r%20%2B%20%C3%84hre"):
        raw = request(live, "GET", live.account_path, "Connection: close").replace(
            b" HTTP", query.encode() + b" HTTP", 1
        )
        assert b'"total_count":1' in await exchange(live, raw)


async def test_dots_in_a_path_are_not_resolved(live: Live) -> None:
    """Dot segments are segments like any other: no path is reached by going up."""
    for tail in ("/x/../../custom_csrs", "/../custom_csrs", "/%2e%2e/custom_csrs"):
        answer = await exchange(live, request(live, "GET", live.account_path + tail, "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b'"code":7003' in answer


async def test_a_client_that_leaves_leaves_nothing_behind(live: Live) -> None:
    """Connections cut in the middle of body or answer do not disturb the others."""
    body = json.dumps(BODY).encode()
    head = request(live, "POST", live.zone_path, f"Content-Length: {len(body)}")
    port = int(live.url.rpartition(":")[2])
    for cut in (0, 1, len(body) // 2, len(body)):
        for _ in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + body[:cut])
            await writer.drain()
            writer.transport.abort()
    async with httpx.AsyncClient(base_url=live.url) as http:
        answers = await asyncio.gather(*(http.get(live.zone_path, headers=live.bearer) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}


async def test_a_live_answer_carries_what_the_contract_says(live: Live) -> None:
    """Through the real server HEAD has no body, the length is right, and the common headers are there."""
    async with httpx.AsyncClient(base_url=live.url) as http:
        made = await http.post(live.account_path, json=BODY, headers=live.bearer)
        url = f"{live.account_path}/{made.json()['result']['id']}"
        head, get = await http.head(url, headers=live.bearer), await http.get(url, headers=live.bearer)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
        assert get.headers["cf-ray"] == get.headers["x-request-id"]
        assert get.headers["cache-control"] == "no-store"
        gone = await http.request("DELETE", url, headers={**live.bearer, "Content-Type": "application/json"})
        assert gone.status_code == 200


def test_plain_http_is_the_default_only_on_loopback(live: Live) -> None:
    """The server of these tests answers no TLS handshake."""
    port = int(live.url.rpartition(":")[2])
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        ssl.get_server_certificate(("127.0.0.1", port), timeout=30)
