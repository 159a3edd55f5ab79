"""Idempotency-Key: the id of the resource that a request created, kept for 24 hours (contract-cloudflare section 2).

The statement that creates the resource also claims the key, so there is no pending state: of two concurrent requests
one claims the key, and the other one creates nothing.
"""

import hashlib
from uuid import UUID

import msgspec

from app.caller import Caller
from app.errors import Clash, Conflict
from app.store.database import Connection, Database


class Idempotency(msgspec.Struct, frozen=True):
    """An Idempotency-Key, and the digest of the request body, which must be the same for every use of the key."""

    key: str
    body_sha256: bytes


PARAMETERS = 5
PRUNED_AT_ONCE = 10_000


def claim(first: int, source: str) -> str:
    """CTE body that claims the key; returns a row if `source` has one and the key is unused or over 24 hours old."""
    account, caller, digest, body, resource = (f"${first + i}" for i in range(PARAMETERS))
    return (
        "INSERT INTO idempotency_keys AS old (account_id, caller_id, digest, body_sha256, resource_id) "
        f"SELECT {account}, {caller}, {digest}, {body}, {resource} FROM {source} "
        "ON CONFLICT (account_id, caller_id, digest) DO UPDATE "
        "SET body_sha256 = excluded.body_sha256, resource_id = excluded.resource_id, created_at = excluded.created_at "
        "WHERE old.created_at <= now() - interval '24 hours' RETURNING 1"
    )


def values(caller: Caller, account_id: UUID, idempotency: Idempotency, resource_id: UUID) -> tuple[object, ...]:
    """Values for the PARAMETERS parameters of `claim`."""
    return (account_id, caller.id, _digest(caller, idempotency), idempotency.body_sha256, resource_id)


_FIND = """
SELECT body_sha256, resource_id FROM idempotency_keys
WHERE account_id = $1 AND caller_id = $2 AND digest = $3 AND created_at > now() - interval '24 hours'
"""


async def find(db: Database, caller: Caller, account_id: UUID, idempotency: Idempotency) -> UUID | None:
    """The id of the resource that an earlier request with this key created; Conflict if its body was different."""
    row = await db.fetchrow(_FIND, account_id, caller.id, _digest(caller, idempotency))
    if row is None:
        return None
    if row["body_sha256"] != idempotency.body_sha256:
        text = "This Idempotency-Key was used with another body within the last 24 hours; use a new key."
        raise Conflict(text, Clash.IDEMPOTENCY_KEY)
    return UUID(str(row["resource_id"]))


_CLAIM = claim(1, "(VALUES (1)) AS one")


async def claimed(
    connection: Connection, caller: Caller, account_id: UUID, idempotency: Idempotency, resource_id: UUID
) -> bool:
    """Claim the key for a resource created in this transaction; False if an earlier request has claimed it."""
    return await connection.fetchrow(_CLAIM, *values(caller, account_id, idempotency, resource_id)) is not None


# In batches, so that a large backlog does not block other statements.
_PRUNE = """
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at <= now() - interval '24 hours' LIMIT $1
))
"""


async def prune(db: Database) -> None:
    """Delete claims that are over 24 hours old."""
    while await db.execute(_PRUNE, PRUNED_AT_ONCE) == f"DELETE {PRUNED_AT_ONCE}":
        pass


def _digest(caller: Caller, idempotency: Idempotency) -> bytes:
    return hashlib.sha256(f"{caller.method}\n{caller.path}\n{idempotency.key}\n".encode()).digest()
