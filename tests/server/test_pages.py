"""Documents that never change: made once, sent with an ETag, and not sent again to whoever has them."""

import hashlib
from typing import Any

import httpx
import pytest
from support.live import Live
from support.world import World

from keystead.cloudflare import openapi
from keystead.server import pages

PATHS = [
    *("/openapi.json", "/docs", "/docs/errors", "/docs/start.js"),
    *("/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/favicon-32x32.png"),
]
# With the document's own ETag at {}.
KNOWN = ["{}", "W/{}", '"x", {}', '"x",W/{} , "y"', "*", " {} "]
UNKNOWN = ["", '"x"', "W/", '"*"', "{}x", '{}"', ",", '"{}"']


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world


async def test_every_handler_of_a_page_is_among_them() -> None:
    """The paths of this test are those of the module, so that a new page is held to the same."""
    served = {path for handler in pages.HANDLERS for path in handler.paths} - {"/docs/{name:str}"}
    assert served | {f"/docs/{name}" for name in pages._ASSETS} == {*PATHS}


@pytest.mark.parametrize("path", PATHS)
async def test_a_document_is_not_sent_to_whoever_has_it(world: World, path: str) -> None:
    """It has a strong ETag and may be kept, and GET and HEAD of who names that ETag are 304 without a body."""
    first = await world.http.get(path)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    assert first.headers["cache-control"] == "no-cache"
    for method in ("GET", "HEAD"):
        for known in KNOWN:
            answer = await world.http.request(method, path, headers={"If-None-Match": known.format(etag)})
            assert (answer.status_code, answer.content) == (304, b""), known
            assert (answer.headers["etag"], answer.headers["cache-control"]) == (etag, "no-cache")
            assert "content-type" not in answer.headers
            policies = "content-security-policy", "x-content-type-options"
            assert [answer.headers.get(name) for name in policies] == [first.headers.get(name) for name in policies]
        for unknown in UNKNOWN:
            answer = await world.http.request(method, path, headers={"If-None-Match": unknown.format(etag)})
            assert (answer.status_code, answer.headers["etag"]) == (200, etag), unknown
            assert answer.headers["content-length"] == str(len(first.content))
            assert answer.content == (first.content if method == "GET" else b"")
    two = [("If-None-Match", '"x"'), ("If-None-Match", etag)]
    assert (await world.http.get(path, headers=two)).status_code == 304


async def test_documents_have_etags_of_their_own(world: World) -> None:
    """Another document has another ETag."""
    assert len({(await world.http.get(path)).headers["etag"] for path in PATHS}) == len(PATHS)


async def test_the_document_of_the_api_is_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once somebody has asked for it, it is not made again, for whoever asks."""
    first = await world.http.get("/openapi.json")

    def made_again(*_: Any) -> Any:
        raise AssertionError("it is made again")

    monkeypatch.setattr(openapi, "describe", made_again)
    again = await world.http.get("/openapi.json")
    assert (again.status_code, again.content) == (200, first.content)


async def test_what_is_not_a_document_is_not_kept(world: World) -> None:
    """Answers that may change have no ETag, and no cache keeps them."""
    for path in ("/healthz", "/readyz", "/metrics", "/docs/x", "/nothing", "/api/status", world.a.account_path):
        answer = await world.http.get(path, headers={**world.a.bearer, "If-None-Match": "*"})
        assert (answer.headers["cache-control"], answer.headers.get("etag")) == ("no-store", None), path
        assert answer.status_code != 304


@pytest.mark.parametrize("path", PATHS)
async def test_the_real_server_sends_all_of_it(live: Live, path: str) -> None:
    """What the server reads from a file is what the ETag and the length say, for either worker; a HEAD has no body."""
    async with httpx.AsyncClient(base_url=live.url) as http:
        for _ in range(8):
            answer = await http.get(path, headers={"Connection": "close"})
            assert answer.status_code == 200
            assert answer.headers["content-length"] == str(len(answer.content))
            assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
            head = await http.head(path)
            assert (head.content, head.headers["etag"]) == (b"", answer.headers["etag"])
            kept = await http.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (kept.status_code, kept.content) == (304, b"")
