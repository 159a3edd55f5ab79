"""Which keys have left for which delivery token: audited before the first time, and counted."""

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.certificates.model import Certificate
from keystead.store.database import Connection, Database

# The ids of account, key and token.
Pair = tuple[UUID, UUID, UUID]
# Of pairs that are in memory.
MOST = 200_000
_KNOWN = "SELECT account_id, key_id, token_id FROM key_deliveries WHERE token_id = ANY($1::uuid[]) LIMIT $2"


async def known(db: Database, token_ids: Collection[UUID]) -> set[Pair]:
    """The keys that have left for these tokens, at most MOST pairs."""
    rows = await db.fetch(_KNOWN, list(token_ids), MOST)
    return {(row["account_id"], row["key_id"], row["token_id"]) for row in rows}


# Locked, so that what is noted is not deleted or renewed before it is committed.
_PRESENT = """
SELECT id, key_id FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = ANY($3::uuid[])
ORDER BY id FOR SHARE
"""
_INSERT = """
INSERT INTO key_deliveries (account_id, key_id, token_id, certificate_id)
SELECT $1, new.key_id, $2, new.id FROM unnest($3::uuid[], $4::uuid[]) AS new (id, key_id)
ON CONFLICT (account_id, key_id, token_id) DO NOTHING RETURNING certificate_id
"""


async def first(
    db: Database, caller: Caller, token_id: UUID, certificates: Sequence[Certificate]
) -> frozenset[tuple[UUID, UUID]]:
    """Note that the keys of these certificates of one zone are about to leave for a token.

    Those that never did are audited, each with one entry. Returns the ids, of certificates and their keys, of those
    that are still there with this key: no other may leave.
    """
    account_id, zone_id = certificates[0].account_id, certificates[0].zone_id
    wanted = {(each.id, each.key_id) for each in certificates}

    async def work(connection: Connection) -> frozenset[tuple[UUID, UUID]]:
        rows = await connection.fetch(_PRESENT, account_id, zone_id, [id_ for id_, _ in wanted])
        present = sorted(wanted & {(row["id"], row["key_id"]) for row in rows})
        ids, key_ids = [id_ for id_, _ in present], [key_id for _, key_id in present]
        new = await connection.fetch(_INSERT, account_id, token_id, ids, key_ids)
        resources = [(account_id, row["certificate_id"], zone_id) for row in new]
        what = (audit.Action.EXPORT, audit.Resource.CUSTOM_CERTIFICATE)
        await audit.record_all(connection, caller, *what, resources)
        return frozenset(present)

    return await db.transaction(work)


_COUNT = """
UPDATE key_deliveries SET count = count + $4, last_at = now() WHERE account_id = $1 AND key_id = $2 AND token_id = $3
"""


async def count(db: Database, counts: Mapping[Pair, int]) -> None:
    """Add how often keys have left; those that were deleted meanwhile are passed over."""
    # Sorted, so that two servers do not deadlock.
    rows = sorted((*pair, number) for pair, number in counts.items())
    await db.transaction(lambda connection: connection.executemany(_COUNT, rows))
