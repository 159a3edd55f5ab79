"""Failed authentications: counted in bounded memory, and one row of the audit log for an address and minute.

Each worker adds its counts to one table every few seconds, so that the row is the sum over all workers and machines;
what has been counted in the last seconds before a worker is killed is lost.
"""

import ipaddress
from datetime import UTC, datetime, timedelta

from app.addresses import Address, Network, network_of
from app.audit import record as audit
from app.store.database import Connection, Database

MOST = 4096
FLUSH_SECONDS = 5.0
# How long after its beginning a minute is written down: every worker has added its counts by then.
_SETTLED = timedelta(seconds=90)
_NOT_KNOWN: Network = ipaddress.ip_network("0.0.0.0/0")
_ELSEWHERE: Network = ipaddress.ip_network("::/0")


class Failures:
    """What this worker has counted since it last wrote it down: MOST addresses, and those beyond them together."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Network, datetime], int] = {}
        self._minute = datetime.min.replace(tzinfo=UTC)
        self._apart: set[Network] = set()

    def count(self, address: Address | None) -> None:
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        self._add(network_of(address) if address else _NOT_KNOWN, minute, 1)

    def _add(self, network: Network, minute: datetime, count: int) -> None:
        if minute > self._minute:
            self._minute, self._apart = minute, set()
        # Also after some were written down: a minute has MOST rows at most, whoever knocks.
        if network not in self._apart and len(self._apart) >= MOST:
            network = _ELSEWHERE
        self._apart.add(network)
        key = (network, minute)
        if key not in self._counts and len(self._counts) >= MOST:
            key = (_ELSEWHERE, minute)
        self._counts[key] = self._counts.get(key, 0) + count

    async def flush(self, db: Database) -> None:
        """Add what was counted to the table, and write minutes that are over into the audit log."""
        counts, self._counts = self._counts, {}
        try:
            if counts:
                await db.transaction(lambda connection: _add(connection, counts))
        except BaseException:
            for (network, minute), count in counts.items():
                self._add(network, minute, count)
            raise
        await db.transaction(_write_down)


_ADD = """
INSERT INTO failed_authentications AS known (network, minute, count) VALUES ($1, $2, $3)
ON CONFLICT (network, minute) DO UPDATE SET count = known.count + excluded.count
"""


async def _add(connection: Connection, counts: dict[tuple[Network, datetime], int]) -> None:
    # In one order, so that two workers do not wait for each other.
    rows = sorted(((network, minute, count) for (network, minute), count in counts.items()), key=str)
    await connection.executemany(_ADD, rows)


_OVER = """
DELETE FROM failed_authentications WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM failed_authentications WHERE minute < $1 ORDER BY network, minute LIMIT $2 FOR UPDATE SKIP LOCKED
)) RETURNING network, minute, count
"""


async def _write_down(connection: Connection) -> None:
    rows = await connection.fetch(_OVER, datetime.now(UTC) - _SETTLED, MOST)
    if rows:
        await audit.record_failures(connection, [(row["network"], row["minute"], row["count"]) for row in rows])
