"""Following the certificates of zones: what a delivery asks each second, and what it reads when that has changed."""

from collections.abc import Collection
from uuid import UUID

import asyncpg
import msgspec

from keystead.certificates.model import Certificate
from keystead.store.database import Database

# Of a zone at most, the latest first.
MOST = 1000
# A sum, since the latest time says nothing of a change whose transaction began before that of another.
_STAMP = """
SELECT count(*) AS number, sum(extract(epoch FROM modified_at)) AS times FROM custom_certificates
WHERE account_id = ANY($1::uuid[]) AND zone_id = ANY($2::uuid[])
"""


async def stamp(db: Database, places: Collection[tuple[UUID, UUID]]) -> str:
    """A text that changes with the certificates of these zones, each with its account."""
    row = await db.fetchrow(_STAMP, [account_id for account_id, _ in places], [zone_id for _, zone_id in places])
    return "" if row is None else f"{row['number']} {row['times']}"


_COLUMNS = ", ".join(Certificate.__struct_fields__)
_LATEST = f"""
SELECT {_COLUMNS} FROM custom_certificates WHERE account_id = $1 AND zone_id = $2
ORDER BY uploaded_at DESC, id DESC LIMIT {MOST}
"""


async def latest(db: Database, account_id: UUID, zone_id: UUID) -> tuple[Certificate, ...]:
    """The certificates of a zone, the latest upload first, and MOST of them at most."""
    return tuple(msgspec.convert(dict(row), Certificate) for row in await db.fetch(_LATEST, account_id, zone_id))


# Of all zones that are followed, for memory.
MOST_FOLLOWED = 50_000
_LASTING = """
SELECT account_id, id, modified_at FROM custom_certificates
WHERE account_id = ANY($1::uuid[]) AND zone_id = ANY($2::uuid[]) AND not_after > now()
ORDER BY uploaded_at DESC, id DESC LIMIT $3
"""


async def lasting(db: Database, places: Collection[tuple[UUID, UUID]]) -> list[asyncpg.Record]:
    """Account, id and time of change of each certificate of these zones that has not expired.

    At most MOST_FOLLOWED, the latest uploads.
    """
    accounts, zones = [account_id for account_id, _ in places], [zone_id for _, zone_id in places]
    # As they are: thousands would take long to convert, and handshakes wait for whoever asks.
    return await db.fetch(_LASTING, accounts, zones, MOST_FOLLOWED)


_SOME = f"SELECT {_COLUMNS} FROM custom_certificates WHERE account_id = $1 AND id = ANY($2::uuid[])"


async def some(db: Database, account_id: UUID, ids: Collection[UUID]) -> tuple[Certificate, ...]:
    """These certificates of an account, without those that are not there."""
    return tuple(msgspec.convert(dict(row), Certificate) for row in await db.fetch(_SOME, account_id, list(ids)))
