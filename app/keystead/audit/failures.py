"""Failed authentications: one audit log entry per client network and minute.

Each worker counts in memory and adds its counts to a table every FLUSH_SECONDS, so that the entry is the sum over all
workers and machines. Counts since the last flush are lost when a worker is killed.
"""

import ipaddress
from datetime import UTC, datetime, timedelta

from keystead.addresses import Address, Network, network_of
from keystead.audit import record as audit
from keystead.store.database import Connection, Database

MOST = 4096
FLUSH_SECONDS = 5.0
# Age at which a minute is written to the audit log: by then every worker has flushed its counts.
_SETTLED = timedelta(seconds=90)
_NO_ADDRESS: Network = ipaddress.ip_network("0.0.0.0/0")
_OVERFLOW: Network = ipaddress.ip_network("::/0")


class Failures:
    """Counts since the last flush, for at most MOST networks per minute; further networks share one count."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Network, datetime], int] = {}
        self._minute = datetime.min.replace(tzinfo=UTC)
        self._seen: set[Network] = set()

    def count(self, address: Address | None) -> None:
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        self._add(network_of(address) if address else _NO_ADDRESS, minute, 1)

    def _add(self, network: Network, minute: datetime, count: int) -> None:
        if minute > self._minute:
            self._minute, self._seen = minute, set()
        # `_seen` outlives a flush, so that a minute has at most MOST rows.
        if network not in self._seen and len(self._seen) >= MOST:
            network = _OVERFLOW
        self._seen.add(network)
        key = (network, minute)
        if key not in self._counts and len(self._counts) >= MOST:
            key = (_OVERFLOW, minute)
        self._counts[key] = self._counts.get(key, 0) + count

    async def flush(self, db: Database) -> None:
        """Add the counts to the table, and move finished minutes to the audit log; counts are kept on errors."""
        counts, self._counts = self._counts, {}
        try:
            if counts:
                await db.transaction(lambda connection: _add(connection, counts))
        except BaseException:
            for (network, minute), count in counts.items():
                self._add(network, minute, count)
            raise
        await db.transaction(_log_finished_minutes)


_ADD = """
INSERT INTO failed_authentications AS known (network, minute, count) VALUES ($1, $2, $3)
ON CONFLICT (network, minute) DO UPDATE SET count = known.count + excluded.count
"""


async def _add(connection: Connection, counts: dict[tuple[Network, datetime], int]) -> None:
    # Sorted, so that two workers do not deadlock.
    rows = sorted(((network, minute, count) for (network, minute), count in counts.items()), key=str)
    await connection.executemany(_ADD, rows)


_FINISHED = """
DELETE FROM failed_authentications AS known USING (
    SELECT network, minute FROM failed_authentications WHERE minute < $1 ORDER BY network, minute LIMIT $2
) AS finished
WHERE known.network = finished.network AND known.minute = finished.minute
RETURNING known.network, known.minute, known.count
"""


async def _log_finished_minutes(connection: Connection) -> None:
    rows = await connection.fetch(_FINISHED, datetime.now(UTC) - _SETTLED, MOST)
    if rows:
        await audit.record_failures(connection, [(row["network"], row["minute"], row["count"]) for row in rows])
