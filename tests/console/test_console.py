"""The console's files: what is served with them, where they are not there, and what never becomes a file."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from support.live import Live
from support.world import World, new_world

from keystead import config, console
from keystead.console import files
from keystead.errors import Misconfigured

STATIC = Path(console.__path__[0]) / "static"
METHODS = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# None of these is a file of the table, whatever it decodes to.
NOWHERE = [
    *("/console", "/console/", "/console/index.html", "/console/pages", "/console/pages/", "/console/main.mjs"),
    *(
        "/console/../main.js",
        "/console/pages/../main.js",
        "/console/./main.js",
        "/console//main.js",
        "/console/Main.js",
    ),
    *(
        "/console/%2e%2e/files.py",
        "/console/..%2ffiles.py",
        "/console/pages%2fca.js",
        "/console/%00",
        "/console/main.js%00",
    ),
    *("/console/../files.py", "/console/files.py", "/console/static/main.js", "/console/%5c..%5cfiles.py"),
    *("/console/../../../../etc/passwd", "/console/etc/passwd", "//etc/passwd", "/index.html", "/main.js"),
]


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world


@pytest.fixture
async def off(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with new_world(database_url, tmp_path, console=False) as world:
        yield world


async def test_a_path_that_is_no_file_of_the_console_is_404(live: Live) -> None:
    """Dots, escapes and other names answer as any path that is not there, and never with what is on the disk."""
    for path in NOWHERE:
        answer = await asyncio.to_thread(_as_written, live, path)
        assert answer.startswith(b"HTTP/1.1 404 "), path
        assert b"import" not in answer, path


def _as_written(live: Live, path: str) -> bytes:
    """The answer to a path that no client has tidied up before."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("method", METHODS)
async def test_only_get_and_head_are_taken(world: World, method: str) -> None:
    """Anything else is 405, and Allow says what is taken."""
    for path in sorted(files.PATHS):
        answer = await world.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD"), path


async def test_every_file_of_the_folder_is_served_as_it_is(world: World) -> None:
    """The table has every file below `static`, each with its type; no other file is in the folder."""
    found = {path for path in STATIC.rglob("*") if path.is_file()}
    named = {STATIC / (path.removeprefix("/console/") if path != "/" else "index.html"): path for path in files.PATHS}
    assert found == named.keys()
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for file, path in named.items():
        answer = await world.http.get(path)
        assert (answer.status_code, answer.content) == (200, file.read_bytes()), path
        assert answer.headers["content-type"].split(";")[0] == types[file.suffix], path


@pytest.mark.parametrize("path", ["/", "/console/main.js", "/console/pages/csrs.js", "/console/style.css"])
async def test_the_policy_lets_nothing_in_from_elsewhere(world: World, path: str) -> None:
    """Scripts, styles and calls are of this server alone; nothing inline, no frame, no form, no base, no referrer."""
    for method, known in (("GET", '"x"'), ("HEAD", '"x"'), ("GET", "*")):
        answer = await world.http.request(method, path, headers={"If-None-Match": known})
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        # What no directive names falls to default-src.
        closed = {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"}
        assert policy == dict.fromkeys(closed, "'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "set-cookie" not in answer.headers


async def test_who_has_a_file_does_not_get_it_again(live: Live) -> None:
    """It is kept by its ETag and asked for anew each time: 304 for GET and HEAD; HEAD is GET without a body."""
    async with httpx.AsyncClient(base_url=live.url) as http:
        for path in sorted(files.PATHS):
            first = await http.get(path)
            head = await http.head(path)
            assert (first.status_code, head.status_code, head.content) == (200, 200, b""), path
            assert first.headers["cache-control"] == "no-cache"
            assert first.headers["content-length"] == head.headers["content-length"] == str(len(first.content))
            known = {"If-None-Match": f'"x", {first.headers["etag"]}'}
            for method in ("GET", "HEAD"):
                kept = await http.request(method, path, headers=known)
                assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", first.headers["etag"])


async def test_switched_off_nothing_of_it_is_there(off: World) -> None:
    """KEYSTEAD_CONSOLE=off: all its paths answer every method as a path that nobody has, and the rest is as before."""
    nowhere = await off.http.get("/nowhere")
    for path in sorted(files.PATHS):
        for method in ("GET", *METHODS):
            answer = await off.http.request(method, path)
            assert (answer.status_code, answer.content) == (404, nowhere.content), (method, path)
            assert "content-security-policy" not in answer.headers
    assert (await off.http.get("/docs")).status_code == 200
    assert (await off.http.get(off.a.account_path, headers=off.a.bearer)).status_code == 200


def test_it_is_not_served_beyond_loopback_in_clear_text() -> None:
    """Whoever asks for that does not get a server at all, with the console or without."""
    for switch in ("on", "off"):
        with pytest.raises(Misconfigured, match="in clear text"):
            config.load({"KEYSTEAD_HOST": "0.0.0.0", "KEYSTEAD_CONSOLE": switch})
    behind = config.load({"KEYSTEAD_HOST": "0.0.0.0", "KEYSTEAD_TRUSTED_PROXIES": "10.0.0.0/8"})
    assert behind.console


def test_the_setting_is_on_or_off() -> None:
    """On unless it says off; any other word stops the start."""
    assert config.load({}).console
    assert not config.load({"KEYSTEAD_CONSOLE": "off"}).console
    for word in ("true", "On", "1", "no"):
        with pytest.raises(Misconfigured, match="KEYSTEAD_CONSOLE"):
            config.load({"KEYSTEAD_CONSOLE": word})


async def test_it_costs_no_request_of_the_rate_limit(database_url: str, tmp_path: Path) -> None:
    """Its files are not counted, for whoever asks for them and with whatever token."""
    async with new_world(database_url, tmp_path, rate_limit=config.RateLimit(1, 3600)) as world:
        for _ in range(20):
            for headers in ({}, world.a.bearer):
                assert (await world.http.get("/", headers=headers)).status_code == 200
        assert (await world.http.get(world.a.account_path, headers=world.a.bearer)).status_code == 200


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    """Nothing inline, and every address is of a file of the table or of the API's pages, and relative."""
    page = _Page()
    page.feed((STATIC / "index.html").read_text())
    for tag, attributes in page.seen:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert tag != "script" or attributes.get("src")
        for address in (attributes.get("src"), attributes.get("href")):
            assert (
                address is None or address.startswith("#") or f"/{address}" in files.PATHS | {"/docs", "/docs/errors"}
            )


def test_no_script_makes_markup_of_text() -> None:
    """None of the ways by which a browser reads text as markup or code is in them, and every import is of a file."""
    ways = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "DOMParser", "eval(", "Function(", "srcdoc")
    for file in STATIC.rglob("*.js"):
        # The name of SVG is an address that nobody asks for.
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not [way for way in (*ways, "localStorage", "document.cookie", "http:", "https:") if way in text], (
            file.name
        )
        for module in re.findall(r'^(?:import|\}).* from "(.*)";$', text, re.MULTILINE):
            assert (file.parent / module).is_file(), (file.name, module)
