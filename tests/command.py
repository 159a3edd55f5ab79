"""The command in this process, which is much quicker than in one of its own, and the rows that it has changed."""

import asyncio
import io
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import asyncpg
import pytest
from live import Live

from app.commands.cli import main
from app.store import database as db


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


class Terminal:
    """Runs `keystead` as its script does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, environ: Mapping[str, str], *words: object, text: str = "") -> Ended:
        with self._monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
            for name, value in environ.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["keystead", *map(str, words)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            patch.setattr(sys.modules["__main__"], "__package__", None)
            # In a thread, because the session's loop is running in this one.
            status = pool.submit(_status).result()
        return Ended(status, *self._capsys.readouterr())


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
        connection: db.Connection = await asyncpg.connect(live.database_url)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *args)]
        finally:
            await connection.close()

    # In a thread, because the session's loop may be running in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, fetch()).result()
