"""Idempotency-Key: what a request made, remembered for 24 hours without its answer (contract-cloudflare section 2).

The claim is inserted by the statement that makes the thing, so there is no pending state: of two requests at once one
claims the key, and the other one's statement makes nothing.
"""

import hashlib
from uuid import UUID

import msgspec

from app.caller import Caller, Scope
from app.errors import Clash, Conflict
from app.store.database import Connection, Database


class Idempotency(msgspec.Struct, frozen=True):
    """A caller's promise that requests with this key are one request; `body_sha256` tells a different body."""

    key: str
    body_sha256: bytes


PARAMETERS = 5
PRUNED_AT_ONCE = 10_000


def claim(first: int, source: str) -> str:
    """CTE body that returns a row when `source` has one, and the key is free or its claim is over 24 hours old."""
    account, caller, digest, body, resource = (f"${first + i}" for i in range(PARAMETERS))
    return (
        "INSERT INTO idempotency_keys AS old (account_id, caller_id, digest, body_sha256, resource_id) "
        f"SELECT {account}, {caller}, {digest}, {body}, {resource} FROM {source} "
        "ON CONFLICT (account_id, caller_id, digest) DO UPDATE "
        "SET body_sha256 = excluded.body_sha256, resource_id = excluded.resource_id, created_at = excluded.created_at "
        "WHERE old.created_at <= now() - interval '24 hours' RETURNING 1"
    )


def values(caller: Caller, scope: Scope, idempotency: Idempotency, resource_id: UUID) -> tuple[object, ...]:
    """The PARAMETERS values of `claim`."""
    return (scope.account_id, caller.id, _digest(caller, idempotency), idempotency.body_sha256, resource_id)


_FIND = """
SELECT body_sha256, resource_id FROM idempotency_keys
WHERE account_id = $1 AND caller_id = $2 AND digest = $3 AND created_at > now() - interval '24 hours'
"""


async def find(db: Database, caller: Caller, account_id: UUID, idempotency: Idempotency) -> UUID | None:
    """The id of what an earlier request with this key made; raises Conflict when its body was another."""
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
    """Claim the key for what this transaction makes; False when an earlier request has it. See `find`."""
    values = (account_id, caller.id, _digest(caller, idempotency), idempotency.body_sha256, resource_id)
    return await connection.fetchrow(_CLAIM, *values) is not None


# Bounded, so that a prune after a long pause does not hold the table.
_PRUNE = """
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys WHERE created_at <= now() - interval '24 hours' LIMIT $1
))
"""


async def prune(db: Database) -> None:
    """Forget claims that are over 24 hours old, in batches."""
    while await db.execute(_PRUNE, PRUNED_AT_ONCE) == f"DELETE {PRUNED_AT_ONCE}":
        pass


def _digest(caller: Caller, idempotency: Idempotency) -> bytes:
    return hashlib.sha256(f"{caller.method}\n{caller.path}\n{idempotency.key}\n".encode()).digest()
