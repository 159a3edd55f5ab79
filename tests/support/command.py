"""The command in this process, which is much quicker than in one of its own, and the rows that it has changed."""

import asyncio
import io
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from support.databases import connected
from support.live import Live

from keystead.commands.cli import main


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def run_command(environ: Mapping[str, str], *words: object, text: str = "") -> Ended:
    """Run `keystead` as its script does, with `text` on its standard input."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(start), "utf-8") for start in (text.encode(), b"", b""))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["keystead", *map(str, words)])
        patch.setattr(sys.modules["__main__"], "__package__", None)
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        # In a thread, because the session's loop is running in this one.
        status = pool.submit(_status).result()
    return Ended(status, _printed(stdout), _printed(stderr))


def _printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode()


def _status() -> int:
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def beside(live: Live) -> dict[str, str]:
    """The settings of a command that works on the database of a server."""
    return {"KEYSTEAD_DATABASE_URL": live.database_url, "KEYSTEAD_DATA_DIR": str(live.data_dir)}


def rows(live: Live, sql: str, *args: object) -> list[tuple[Any, ...]]:
    async def fetch() -> list[tuple[Any, ...]]:
        async with connected(live.database_url) as connection:
            return [tuple(row) for row in await connection.fetch(sql, *args)]

    # In a thread, because the session's loop may be running in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, fetch()).result()
