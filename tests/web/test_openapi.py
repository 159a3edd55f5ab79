"""The OpenAPI document says what is served, and the pages for people load from this server alone."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import jsonschema_rs
import pytest
import schemathesis
from litestar import Litestar
from support.databases import new_database
from support.live import Live, serving
from support.world import BODY, World
from support.world import document as world_document

from keystead import config
from keystead.cloudflare import errors, router
from keystead.infisical import router as infisical
from keystead.server import postgres

# Routers alone have no exception handlers of the application, but all the routes.
ROUTES = Litestar(route_handlers=[router.router(), infisical.router()], openapi_config=None).routes
PUBLIC_URL = config.Settings().public_url
OPERATIONS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}

# Schemathesis draws most values; these let it past the gate and, nine times of ten, past the rules for hostnames.
SCHEMATHESIS = """
[dictionaries]
countries = {{ values = ["US", "DE", "XX"] }}
hostnames = {{ values = ["www.example.com", "*.example.org", "db.internal", "xn--bcher-kva.example"] }}
texts = {{ values = ["a", "Zürich", "Name 😀"] }}

[parameters]
account_id = "{CLOUDFLARE_ACCOUNT_ID}"
zone_id = "{CLOUDFLARE_ZONE_ID}"
"body.country" = {{ dictionary = "countries", probability = 0.9 }}
"body.sans[*]" = {{ dictionary = "hostnames", probability = 0.9 }}
"body.common_name" = {{ dictionary = "hostnames", probability = 0.9 }}
"body.state" = {{ dictionary = "texts", probability = 0.9 }}
"body.locality" = {{ dictionary = "texts", probability = 0.9 }}
"body.organization" = {{ dictionary = "texts", probability = 0.9 }}

# These two want 401 for a request without credentials, and Cloudflare's answer to it is 400/9106.
[checks]
ignored_auth.enabled = false

[[operations]]
include-path-regex = "/tokens/verify$"
checks.missing_required_header.enabled = false

# No JSON Schema draws a certificate whose key we hold, so most of these end where the certificate is read.
[[operations]]
include-path-regex = "/custom_certificates"
warnings.enabled = false

# No JSON Schema tells which hostnames are accepted.
[checks.positive_data_acceptance]
enabled = false

# Its own list of refusals lacks 413.
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]

# A run that does not get past the gate would find nothing.
[warnings]
fail-on = true

[generation]
deterministic = true
database = "none"
max-examples = 12

[headers]
Authorization = "Bearer {CLOUDFLARE_API_TOKEN}"
"""


TENANTS = (
    r"^/(accounts|accounts/\{account_id\}|zones|zones/\{zone_id\})$"
    r"|^/user$|^/(user|accounts/\{account_id\})/tokens(?!/verify)|/logs/audit"
)
SCHEMATHESIS_TENANTS = """
[parameters]
account_id = "{CLOUDFLARE_ACCOUNT_ID}"
zone_id = "{CLOUDFLARE_ZONE_ID}"
"body.account.id" = "{CLOUDFLARE_ACCOUNT_ID}"

# The first wants 401 for a request without credentials; no JSON Schema tells which resources and groups there are,
# which names are taken, or what a zone may be called.
[checks]
ignored_auth.enabled = false
positive_data_acceptance.enabled = false

[warnings]
enabled = false

[generation]
deterministic = true
database = "none"
max-examples = 5

[headers]
X-Auth-Email = "{CLOUDFLARE_EMAIL}"
X-Auth-Key = "{CLOUDFLARE_API_KEY}"
"""


SCHEMATHESIS_CA = """
[parameters]
caId = "{ca}"
crlId = "{ca}"
projectId = "{project}"
"body.projectSlug" = "default"
"body.keyAlgorithm" = "EC_prime256v1"

# No JSON Schema tells a CSR, a certificate or a date within its CA's, nor what the state of a CA allows.
[checks]
positive_data_acceptance.enabled = false
# Every call is led to the one CA above, whichever was made just now.
ensure_resource_availability.enabled = false

[warnings]
enabled = false

[generation]
deterministic = true
database = "none"
max-examples = 6

[headers]
Authorization = "Bearer {token}"
"""


@pytest.fixture(scope="module")
def document() -> Any:
    return world_document(PUBLIC_URL)


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from refs(each)


def schemathesis_on(live: Live, folder: Path, settings: str, *words: str) -> str:
    (folder / "schemathesis.toml").write_text(settings)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--no-color", *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_schemathesis_finds_nothing_at_a_glance(live: Live, tmp_path: Path) -> None:
    """A few cases of each call on CSRs and certificates are answered as the served document says."""
    few = ("--phases", "examples,fuzzing", "--max-examples", "3", "--exclude-path-regex", f"^/api/|{TENANTS}")
    # So few cases need not get past the gate.
    settings = SCHEMATHESIS.format_map(live.env).replace("fail-on = true", "enabled = false")
    schemathesis_on(live, tmp_path, settings, *few)


@pytest.mark.walks
def test_schemathesis_finds_nothing(live: Live, tmp_path: Path) -> None:
    """The served document's examples, edge cases, random cases and chains of calls are all answered as it says."""
    settings = SCHEMATHESIS.format_map(live.env)
    told = schemathesis_on(live, tmp_path, settings, "--exclude-path-regex", f"^/api/|{TENANTS}")
    assert re.search(r"Stateful \(in .*API Links: +[1-9]", told, re.DOTALL), told


@pytest.mark.walks
async def test_schemathesis_finds_nothing_among_the_tenants(cluster: postgres.Cluster, tmp_path: Path) -> None:
    """What it draws for accounts, zones, tokens and the audit log is answered as the document says."""
    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path / "data", workers=2) as own:
            # What holds a CSR is not deleted.
            async with httpx.AsyncClient(headers=own.bearer) as client:
                (await client.post(own.url + own.zone_path, json=BODY)).raise_for_status()
            settings = SCHEMATHESIS_TENANTS.format(**own.env, **own.older)
            schemathesis_on(own, tmp_path, settings, "--include-path-regex", TENANTS)


@pytest.mark.walks
def test_schemathesis_finds_nothing_in_the_private_ca(live: Live, tmp_path: Path) -> None:
    """What it draws for the calls of the private CA is answered as the document says."""
    body = {"projectSlug": "default", "type": "root", "commonName": "Fuzzed", "keyAlgorithm": "EC_prime256v1"}
    ca = httpx.post(f"{live.url}/api/v1/pki/ca", json=body, headers=live.bearer).json()["ca"]
    settings = SCHEMATHESIS_CA.format(ca=ca["id"], project=ca["projectId"], token=live.env["CLOUDFLARE_API_TOKEN"])
    schemathesis_on(live, tmp_path, settings, "--include-path-regex", "^/api/", "--url", live.url)


def test_the_document_is_openapi(document: Any) -> None:
    """It is valid by the OpenAPI Initiative's own schema of OpenAPI 3.1, which Schemathesis ships."""
    schemathesis.openapi.from_dict(document).validate()


def test_the_schemas_are_json_schema(document: Any) -> None:
    """Every schema in it is valid JSON Schema 2020-12, which OpenAPI 3.1 leaves unchecked."""
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_references_lead_somewhere(document: Any) -> None:
    """Every `$ref` names something in the document, and every schema is referred to."""
    found = set(refs(document))
    for reference in found:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    unused = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} - found
    assert unused == set()


def test_operation_ids_are_unique(document: Any) -> None:
    """Generators of clients name their methods by the operationId."""
    ids = [
        operation["operationId"]
        for item in document["paths"].values()
        for method, operation in item.items()
        if method in OPERATIONS
    ]
    assert len(set(ids)) == len(ids)


def test_the_examples_are_valid(document: Any) -> None:
    """Every example of a body is what its own schema allows."""

    def valid(schema: Any, example: Any) -> None:
        jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}).validate(example)

    for schema in document["components"]["schemas"].values():
        if "example" in schema:
            valid(schema, schema["example"])
    for item in document["paths"].values():
        for operation in (item[method] for method in OPERATIONS & item.keys()):
            for response in operation["responses"].values():
                for content in response["content"].values():
                    if "example" in content:
                        valid(content["schema"], content["example"])


def test_every_route_is_in_the_document_and_nothing_else(document: Any) -> None:
    """What the router serves and what the document lists are the same paths with the same methods."""
    served = set()
    for route in ROUTES:
        path = re.sub(r":[a-z]+\}", "}", route.path).removeprefix(router.PREFIX)
        path = re.sub(r"_([a-z]+)(?=[^{]*\})", lambda word: word[1].capitalize(), path) if "/api/" in path else path
        # The framework adds OPTIONS to every route, and server/edge.py sees to it that none is answered.
        served |= {(path, method.lower()) for method in getattr(route, "methods", ()) if method != "OPTIONS"}
    listed = {(path, method) for path, item in document["paths"].items() for method in item.keys() & OPERATIONS}
    assert served == listed


async def test_the_document_is_served_as_it_is_whatever_host_is_asked(world: World, document: Any) -> None:
    """/openapi.json names itself and the public address as servers, and nothing that a client might put in Host."""
    answer = await world.http.get("/openapi.json", headers={"Host": "elsewhere.example"})
    assert answer.json() == json.loads(json.dumps(document))
    urls = [server["url"] for server in document["servers"]]
    assert urls == ["/client/v4", f"{world.settings.public_url}/client/v4"]


class Page(HTMLParser):
    """What a page refers to, and which places in it can be referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action", "srcset"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]


@pytest.mark.parametrize("path", ["/docs", "/docs/errors"])
async def test_a_page_loads_from_this_server_alone(world: World, path: str) -> None:
    """Every address on a page is one of this server, and is served."""
    page = Page((await world.http.get(path)).text)
    addresses = {address for address in page.addresses if not address.startswith("#")}
    assert {urlsplit(address)[:2] for address in addresses} <= {("", "")}
    answers = {address: (await world.http.get(address)).status_code for address in addresses}
    assert answers == dict.fromkeys(addresses, 200)


@pytest.mark.parametrize("path", ["/docs", "/docs/errors"])
async def test_a_page_may_not_load_from_elsewhere(world: World, path: str) -> None:
    """The Content-Security-Policy keeps also scripts to this server: every source it names is itself or data."""
    policy = (await world.http.get(path)).headers["content-security-policy"]
    directives = {name: set(sources) for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == {"'none'"}
    assert set.union(*directives.values()) <= {"'none'", "'self'", "'unsafe-inline'", "data:"}
    assert directives["script-src"] == {"'self'"}


async def test_the_style_sheet_loads_nothing(world: World) -> None:
    """Whatever the style sheet of /docs refers to is in it."""
    style = (await world.http.get("/docs/swagger-ui.css")).text
    assert "@import" not in style
    assert {match[:5] for match in re.findall(r"url\([\"']?([^)]*)", style)} <= {"data:"}


async def test_an_unknown_asset_is_not_found(world: World) -> None:
    """Below /docs lie the named files and no others."""
    for name in ("x", "swagger-ui.js", "%2e%2e%2fswagger-ui.css", "index.html"):
        assert (await world.http.get(f"/docs/{name}")).status_code == 404


async def test_every_code_has_an_anchor(world: World) -> None:
    """The error reference has one place for each code."""
    page = Page((await world.http.get("/docs/errors")).text)
    assert sorted(page.ids) == sorted(str(code) for code in errors.CODES)


async def test_every_documentation_url_leads_to_its_code(world: World) -> None:
    """Whatever an answer points at is an anchor on a page of this server, named like the code of the item."""
    a, missing = world.a, f"/{uuid4()}"
    rules = {"country": "", "state": 1, "locality": " ", "organization": "x" * 65, "common_name": "x" * 65}
    advised = {"organizational_unit": "-", "sans": ["b.test", "B.test"], "colour": "red"}
    answers = [
        await world.http.get("/client/v4/nowhere"),
        await world.http.get(a.account_path),
        await world.http.get(a.account_path, headers={"Authorization": "Bearer x"}),
        await world.http.get(a.account_path, headers={"Authorization": "Bearer " + 40 * "x"}),
        await world.http.get(a.account_path, headers={"X-Auth-Email": "a@example.com", "X-Auth-Key": 37 * "0"}),
        await world.http.get(a.account_path, headers={"X-Auth-Email": "a@example.com"}),
        await world.http.get(a.account_path, headers=world.b.bearer),
        await world.http.get(a.account_path, params={"page": "0"}, headers=a.bearer),
        await world.http.get(a.account_path + "/x", headers=a.bearer),
        await world.http.get(a.account_path + missing, headers=a.bearer),
        await world.http.put(a.account_path + missing, headers=a.bearer),
        await world.http.get("/client/v4/user/tokens/verify", headers={"Authorization": "Bearer " + 40 * "x"}),
        await world.http.post(a.account_path, content=b"", headers=a.bearer),
        await world.http.post(a.account_path, content=b" " * 70_000, headers=a.bearer),
        await world.http.post(a.account_path, json=BODY, headers={**a.bearer, "Idempotency-Key": ""}),
        await world.http.post(a.account_path, json={**BODY, **rules, "sans": ["ä", "-", "*.com"]}, headers=a.bearer),
        await world.http.post(a.account_path, json={**BODY, **advised}, headers=a.bearer),
    ]
    items = [item for answer in answers for key in ("errors", "messages") for item in answer.json()[key]]
    assert len({item["code"] for item in items}) > 25
    pages: dict[str, Page] = {}
    for item in items:
        address, _, anchor = item["documentation_url"].partition("#")
        assert anchor == str(item["code"])
        if address not in pages:
            pages[address] = Page((await world.http.get(address.removeprefix(world.settings.public_url))).text)
        assert anchor in pages[address].ids
