"""What metrics and the request log take of a GET: the application in one process, with and without each.

A program of its own, since whether metrics are in files of several workers is settled when they are imported.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from support.world import new_world

from keystead import metrics
from keystead.config import RateLimit

REQUESTS = 1000


async def compare(database_url: str, data_dir: Path, rounds: int, sink: Any) -> dict[str, list[tuple[float, float]]]:
    """Microseconds of CPU for one GET with and without a part, by turns."""
    rate = RateLimit(10**6, 1)
    async with new_world(database_url, data_dir, rate_limit=rate, remembered=3600.0) as world:
        made = await world.create(world.a)
        path = f"{world.a.account_path}/{made['id']}"
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + world.a.token.encode()), (b"user-agent", b"bench")],
            "client": ("127.0.0.1", 5555),
        }
        statuses = set[int]()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            statuses.add(message.get("status", 200))

        async def microseconds() -> float:
            began = time.process_time()
            for _ in range(REQUESTS):
                await world.app({**scope, "headers": [*scope["headers"]], "state": {}}, receive, send)
            return (time.process_time() - began) / REQUESTS * 1e6

        log = world.app._log
        log.stream = sink
        await microseconds()
        found: dict[str, list[tuple[float, float]]] = {}
        for name, owner, attribute in (("metrics", metrics, "answered"), ("the request log", log, "write")):
            kept, found[name] = getattr(owner, attribute), []
            for _ in range(rounds):
                with_it = await microseconds()
                setattr(owner, attribute, lambda *_: None)
                found[name].append((with_it, await microseconds()))
                setattr(owner, attribute, kept)
        log.flush()
        assert statuses == {200}
        return found


if __name__ == "__main__":
    with Path("/dev/null").open("w") as nowhere:
        print(json.dumps(uvloop.run(compare(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), nowhere))))
