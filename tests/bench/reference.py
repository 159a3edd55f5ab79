"""What Keystead is measured against, on the same server: a bare ASGI application, alone and with its statements."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

CONNECTIONS = 8
COLUMNS = (
    "account_id, id, key_type, name, description, country, state, locality, organization, organizational_unit, "
    "common_name, sans, csr, created_at"
)
SELECT = f"SELECT {COLUMNS} FROM custom_csrs WHERE account_id = $1 AND id = $2"
PAGE = f"SELECT {COLUMNS} FROM custom_csrs WHERE account_id = $1 AND scope_id = $1 ORDER BY created_at, id LIMIT 50"
TOTAL = "SELECT coalesce(sum(count), 0)::bigint FROM csr_counts WHERE account_id = $1 AND scope_id = $1"
REVOKE = (
    "UPDATE issued_certificates SET revoked_at = now(), revocation_reason = 4 "
    "WHERE account_id = $1 AND serial = $2 AND revoked_at IS NULL RETURNING serial"
)
HEADERS = [(b"content-type", b"application/json")]


class Csr(msgspec.Struct, omit_defaults=True):
    id: str
    created_at: str
    key_type: str
    account_tag: str
    common_name: str
    country: str
    csr: str
    locality: str
    organization: str
    sans: list[str]
    state: str
    description: str | None = None
    name: str | None = None
    organizational_unit: str | None = None


class Envelope(msgspec.Struct):
    result: Any
    success: bool
    errors: list[str]
    messages: list[str]
    result_info: dict[str, int] | None = None


class Reference:
    """`/bare` answers bytes that it was given; the others run statements, and encode what comes of them."""

    def __init__(self) -> None:
        self.body = Path(os.environ["BENCH_BODY"]).read_bytes()
        self.account = UUID(os.environ["BENCH_ACCOUNT"])
        self.idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        self.routes: dict[str, Callable[[str], Coroutine[Any, Any, bytes]]] = {
            "bare": self.bare,
            "select": self.select,
            "page": self.page,
            "revoke": self.revoke,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        _, route, *rest = scope["path"].split("/")
        body = await self.routes[route]("".join(rest))
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": body})

    async def live(self, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(CONNECTIONS):
            self.idle.put_nowait(await asyncpg.connect(os.environ["BENCH_DATABASE"]))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def fetch(self, sql: str, *values: object) -> list[Any]:
        connection = await self.idle.get()
        try:
            return list(await connection.fetch(sql, *values))
        finally:
            self.idle.put_nowait(connection)

    async def bare(self, _: str) -> bytes:
        return self.body

    async def select(self, csr_id: str) -> bytes:
        (row,) = await self.fetch(SELECT, self.account, UUID(csr_id))
        return encoded(csr(row))

    async def page(self, _: str) -> bytes:
        ((total,),) = await self.fetch(TOTAL, self.account)
        rows = await self.fetch(PAGE, self.account)
        return encoded([csr(row) for row in rows], {"total_count": total})

    async def revoke(self, serial: str) -> bytes:
        ((revoked,),) = await self.fetch(REVOKE, self.account, serial)
        return encoded(revoked)


def encoded(result: object, info: dict[str, int] | None = None) -> bytes:
    return msgspec.json.encode(Envelope(result, True, [], [], info))


def csr(row: Any) -> Csr:
    return Csr(
        id=str(row["id"]),
        created_at=row["created_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        account_tag=row["account_id"].hex,
        **{name: row[name] for name in ("key_type", "common_name", "country", "csr", "locality", "organization")},
        **{name: row[name] for name in ("sans", "state", "description", "name", "organizational_unit")},
    )


def load() -> Reference:
    return Reference()


def main() -> None:
    """Serve on the port and with the number of workers that are given."""
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    Granian(
        "reference:app",
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=10_000, max_buffer_size=128 * 1024),
        websockets=False,
        backlog=1024,
        log_level=LogLevels.warning,
    ).serve(target_loader=load, wrap_loader=False)


if __name__ == "__main__":
    main()
