"""The world that tests live in: two tenants behind one application, and a judge of every answer.

Every answer is held to the JSON Schema of the public API page and to the OpenAPI document that is served; no private
key and no credential of the world may show up in what was answered, logged or audited.
"""

import asyncio
import base64
import contextlib
import functools
import io
import json
import re
from collections.abc import AsyncIterator
from copy import copy
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import jsonschema_rs
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from litestar import Litestar
from support.databases import Kept, copied, is_lent

from keystead import config
from keystead.caller import Role
from keystead.cloudflare import router as cloudflare_router
from keystead.config import RateLimit
from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.custody.peppers import load_peppers
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity.accounts import Account
from keystead.identity.zones import Zone
from keystead.infisical import router as infisical_router
from keystead.server import first_start, pages
from keystead.server import worker as main
from keystead.services import Services, for_command
from keystead.store import database as db
from keystead.web.state import State
from keystead.x509 import chains, keys

HERE = Path(__file__).parents[1]
ENVELOPE = json.loads((HERE / "schemas" / "cloudflare_envelope.json").read_text())
BODY: dict[str, Any] = {
    "common_name": "example.com",
    "country": "US",
    "state": "California",
    "locality": "San Francisco",
    "organization": "Cloudflare, Inc.",
    "sans": ["example.com", "www.example.com"],
    "key_type": "p256v1",
}


def document(public_url: str) -> dict[str, Any]:
    """The OpenAPI document; routers alone have no exception handlers of the application, but all the routes."""
    routers = [cloudflare_router.router(), infisical_router.router()]
    return pages.document(Litestar(route_handlers=routers, openapi_config=None, logging_config=None).routes, public_url)


class Tenant(msgspec.Struct):
    """An account with a zone and credentials of every kind."""

    account: Account
    zone: Zone
    token: str
    read_token: str
    email: str
    key: str

    @property
    def account_path(self) -> str:
        return f"/client/v4/accounts/{self.account.id.hex}/custom_csrs"

    @property
    def zone_path(self) -> str:
        return f"/client/v4/zones/{self.zone.id.hex}/custom_csrs"

    @property
    def paths(self) -> tuple[str, str]:
        return self.account_path, self.zone_path

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class World(msgspec.Struct):
    """Two tenants behind one application; `http` judges every answer that it gets."""

    settings: config.Settings
    services: Services
    a: Tenant
    b: Tenant
    app: Any
    http: httpx.AsyncClient
    seen: list[str]

    @property
    def database(self) -> db.Database:
        return self.services.db

    @property
    def ring(self) -> ringfile.Ring:
        return self.services.ring

    @property
    def state(self) -> State:
        """What the application has opened."""
        opened: State = self.app._app.state.shared
        return opened

    def change(self, state: State) -> None:
        self.app._app.state.shared = state

    def trust(self, anchors: chains.Anchors) -> None:
        """Make the application trust these roots, as it would those of KEYSTEAD_TRUST_DIR at its start."""
        services = msgspec.structs.replace(self.state.services, trusted=anchors)
        self.change(msgspec.structs.replace(self.state, services=services))

    async def create(self, tenant: Tenant | None = None, path: str | None = None, **fields: Any) -> dict[str, Any]:
        """A CSR made over the API; returns its object."""
        tenant = tenant or self.a
        answer = await self.http.post(path or tenant.account_path, json={**BODY, **fields}, headers=tenant.bearer)
        assert answer.status_code == 201, answer.text
        result: dict[str, Any] = answer.json()["result"]
        return result

    async def key_of(self, csr_id: str) -> keys.PrivateKey:
        """The private key of a CSR, opened from the database."""
        row = await self.database.fetchrow(
            "SELECT c.account_id, c.key_id, k.spki_sha256 FROM custom_csrs c "
            "JOIN private_keys k ON k.account_id = c.account_id AND k.id = c.key_id WHERE c.id = $1",
            UUID(csr_id),
        )
        assert row is not None
        return await keyring.open_key(
            self.database, self.ring, keyring.SYSTEM, (row["account_id"], row["key_id"], row["spki_sha256"])
        )


# Of worlds that have ended; the framework takes long to prepare them.
_ROUTES: list[Litestar] = []


@contextlib.asynccontextmanager
async def new_world(
    database_url: str, folder: Path, rate_limit: RateLimit | None = None, remembered: float = 0, **changes: Any
) -> AsyncIterator[World]:
    """A world; callers and CAs are looked up for each request unless they are `remembered` for some seconds."""
    settings = msgspec.structs.replace(
        config.Settings(
            data_dir=folder,
            database_url=database_url,
            keyring=folder / "keyring.json",
            rate_limit=rate_limit,
            remember_cas=remembered > 0,
        ),
        **changes,
    )
    database = Kept(database_url, 1)
    services, (a, b) = await _furnished(settings, database)
    seen: list[str] = []
    log = io.StringIO()
    routes = _ROUTES.pop() if _ROUTES else main.routes()
    app = main.around(routes, settings)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
    edge: Any = app
    edge._log.stream = log
    statuses: dict[str, int] = {}
    async with _lifespan(app), judged_client(app, seen, settings.public_url, statuses) as http:
        made = World(settings, services, a, b, app, http, seen)
        made.state.memory.seconds = remembered
        yield made
    _ROUTES.append(routes)
    await _audited_as_answered(made, statuses)
    await _nothing_leaked(made, log.getvalue())
    await database.close()


class _Furniture(msgspec.Struct):
    """What the first world of this process has been furnished with, for the others."""

    ring: str
    rows: str
    a: Tenant
    b: Tenant


_FURNITURE: list[_Furniture] = []


async def _furnished(settings: config.Settings, database: db.Database) -> tuple[Services, tuple[Tenant, Tenant]]:
    """Two tenants, which are made once and then copied wherever the schema is the usual one."""
    usual = is_lent(settings.database_url)
    made = _FURNITURE[0] if usual and _FURNITURE else None
    if made:
        settings.keyring.touch(0o600)
        settings.keyring.write_text(made.ring)
        await database.execute(made.rows)
    ring = await first_start.ring_for(settings, database)
    services = for_command(database, ring, await load_peppers(database, ring))
    if made is None:
        a, b = await _tenant(services, "a"), await _tenant(services, "b")
        made = _Furniture(settings.keyring.read_text(), await copied(database), a, b)
        if usual:
            _FURNITURE.append(made)
    # Tests change their tenants.
    return services, (copy(made.a), copy(made.b))


async def _tenant(services: Services, slug: str) -> Tenant:
    caller, database = first_start.operator(), services.db
    account = await accounts.create_account(database, caller, slug, f"Account {slug}")
    zone = await zones.create_in(database, caller, account, f"{slug}.example.com")
    user = await accounts.create_user(database, caller, f"{slug}@example.com")
    await accounts.set_membership(database, caller, user, account, Role.ADMINISTRATOR)
    key = await tokens.roll_global_key(services, caller, user)
    token = await make_token(services, account)
    read = ("SSL and Certificates Read", "Account: SSL and Certificates Read")
    read_token = await make_token(services, account, groups=read)
    return Tenant(account, zone, token, read_token, user.email, key)


async def make_token(
    services: Services,
    account: Account,
    groups: tuple[str, ...] = (),
    zones: tuple[Zone, ...] = (),
    **fields: Any,
) -> str:
    chosen = tuple(policies.find_group(name) for name in groups) or policies.default_groups()
    new = tokens.NewToken(account, "a token", fields.pop("policies", policies.write(account, chosen, zones)), **fields)
    _, value = await tokens.create(services, first_start.operator(), new)
    return value


@contextlib.asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(app(scope, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await task


def judged_client(
    app: Any, seen: list[str], public_url: str, statuses: dict[str, int] | None = None
) -> httpx.AsyncClient:
    """A client whose every answer is held to the contract; what it saw goes into `seen`, its status by request id."""
    judge = _judge(public_url)

    async def on_answer(answer: httpx.Response) -> None:
        await answer.aread()
        seen.append(answer.text + str(answer.headers))
        if statuses is not None:
            statuses[answer.headers["x-request-id"]] = answer.status_code
        judge(answer)

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:8787", event_hooks={"response": [on_answer]}
    )


class Judge:
    """Holds an answer to section 1 of the contract, the envelope's schema and the served OpenAPI document."""

    def __init__(self, public_url: str) -> None:
        served = document(public_url)
        self.components = served["components"]
        self.envelope = jsonschema_rs.Draft202012Validator(ENVELOPE, validate_formats=False)
        # What is written out goes before what is in braces.
        paths = sorted(served["paths"].items(), key=lambda item: item[0].count("{"))
        self.paths = [(re.compile(re.sub(r"\{[A-Za-z_]+\}", "[^/]+", template)), each) for template, each in paths]
        self.validators: dict[tuple[str, str, int], jsonschema_rs.Draft202012Validator] = {}

    def __call__(self, answer: httpx.Response) -> None:
        path = answer.request.url.path
        infisical = path.startswith("/api/")
        form = r"req-[0-9A-Za-z]{14}" if infisical else r"[0-9a-f]{32}"
        assert re.fullmatch(form, answer.headers["x-request-id"])
        assert answer.headers["cf-ray"] == answer.headers["x-request-id"]
        public = answer.headers.get("content-type", "").startswith("application/pki")
        kept = "public, max-age=300" if public else "no-cache" if "etag" in answer.headers else "no-store"
        assert answer.headers["cache-control"] == kept
        if not path.startswith(("/client/v4", "/api/")) or answer.request.method == "HEAD":
            return
        if not answer.headers["content-type"].startswith("application/json"):
            assert answer.status_code < 300
            return
        body = answer.json()
        if infisical:
            self._against_document(answer, path, body)
            return
        self.envelope.validate(body)
        assert body["success"] == (answer.status_code < 400), answer.text
        assert bool(body["errors"]) == (answer.status_code >= 400), answer.text
        assert all(item["documentation_url"] for item in body["errors"])
        self._against_document(answer, path.removeprefix("/client/v4"), body)

    def _against_document(self, answer: httpx.Response, path: str, body: Any) -> None:
        method, status = answer.request.method.lower(), answer.status_code
        for template, operations in self.paths:
            if method in operations and template.fullmatch(path.removesuffix("/")):
                key = template.pattern, method, status
                if key not in self.validators:
                    responses = operations[method]["responses"]
                    assert str(status) in responses, f"{status} is not documented for {template.pattern}"
                    schema = responses[str(status)]["content"]["application/json"]["schema"]
                    rooted = {**schema, "components": self.components}
                    self.validators[key] = jsonschema_rs.Draft202012Validator(rooted, validate_formats=False)
                self.validators[key].validate(body)
                return


# Those of worlds, which have few addresses.
_judge = functools.cache(Judge)


async def _audited_as_answered(world: World, statuses: dict[str, int]) -> None:
    """What the audit log says of a request is how it was answered."""
    for row in await world.database.fetch("SELECT * FROM audit_log WHERE status IS NOT NULL"):
        if row["request_id"] in statuses and row["action"] != "key-damaged":
            assert row["status"] == statuses[row["request_id"]], dict(row)


async def _nothing_leaked(world: World, log: str) -> None:
    """No private key of this world, in any encoding, in what was answered, logged or audited; nor any credential."""
    audited = str([dict(row) for row in await world.database.fetch("SELECT * FROM audit_log")])
    told = "\n".join([*world.seen, log, audited])
    assert "PRIVATE KEY" not in told
    for tenant in (world.a, world.b):
        for secret in (tenant.token, tenant.read_token, tenant.key):
            assert secret not in told
    for row in await world.database.fetch("SELECT account_id, id, spki_sha256 FROM private_keys"):
        key = await keyring.open_key(
            world.database, world.ring, keyring.SYSTEM, (row["account_id"], row["id"], row["spki_sha256"])
        )
        for text in _encodings(key):
            assert text not in told


def _encodings(key: keys.PrivateKey) -> list[str]:
    """The secret number of a key as it would look in hex, decimal, and base64 of any alignment."""
    numbers = key.private_numbers()
    number = numbers.d if isinstance(numbers, rsa.RSAPrivateNumbers) else numbers.private_value
    secret = number.to_bytes((number.bit_length() + 7) // 8, "big")[:24]
    return [secret.hex(), str(number), *(base64.b64encode(secret[i:])[:24].decode() for i in range(3))]
