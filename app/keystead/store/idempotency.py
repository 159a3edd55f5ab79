"""Idempotency-Key: the id of the resource that a request created, kept for 24 hours (contract-cloudflare section 2).

The statement that creates the resource also claims the key, so there is no pending state: of two concurrent requests
one claims the key, and the other one creates nothing.
"""

import hashlib
from uuid import UUID

import msgspec

from keystead.caller import Caller
from keystead.errors import Clash, Conflict
from keystead.store import pruning
from keystead.store.database import Connection, Database


class Idempotency(msgspec.Struct, frozen=True):
    """An Idempotency-Key, and the digest of the request body, which must be the same for every use of the key."""

    key: str
    body_sha256: bytes


# The columns that `claim` reads, with their types; see `row`.
COLUMNS = {"claim_caller_id": "uuid", "claim_digest": "bytea", "claim_body_sha256": "bytea"}


def claim(source: str) -> str:
    """CTE body that claims the keys of the rows of `source`, which has account_id, id of the resource, and COLUMNS.

    Returns the resource_id of each row whose key is unused or over 24 hours old; of rows with one key, of one only. The
    order is the same for all statements, so that they do not wait for each other crosswise.
    """
    return (
        "INSERT INTO idempotency_keys AS old (account_id, caller_id, digest, body_sha256, resource_id) "
        "SELECT DISTINCT ON (claim_caller_id, claim_digest) account_id, claim_caller_id, claim_digest, "
        f"claim_body_sha256, id FROM {source} WHERE claim_digest IS NOT NULL "
        "ORDER BY claim_caller_id, claim_digest "
        "ON CONFLICT (account_id, caller_id, digest) DO UPDATE "
        "SET body_sha256 = excluded.body_sha256, resource_id = excluded.resource_id, created_at = excluded.created_at "
        "WHERE excluded.created_at - old.created_at >= interval '24 hours' RETURNING resource_id"
    )


def row(caller: Caller, idempotency: Idempotency | None) -> tuple[object, ...]:
    """Values for COLUMNS; without an Idempotency-Key nothing is claimed."""
    if idempotency is None:
        return (None,) * len(COLUMNS)
    return (caller.id, _digest(caller, idempotency), idempotency.body_sha256)


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


_COLUMNS = {"account_id": "uuid", "id": "uuid", **COLUMNS}
_CLAIM = claim(
    f"(SELECT {', '.join(f'${n}::{t} AS {name}' for n, (name, t) in enumerate(_COLUMNS.items(), 1))}) AS one"
)


async def claimed(
    connection: Connection, caller: Caller, account_id: UUID, idempotency: Idempotency, resource_id: UUID
) -> bool:
    """Claim the key for a resource created in this transaction; False if an earlier request has claimed it."""
    return await connection.fetchrow(_CLAIM, account_id, resource_id, *row(caller, idempotency)) is not None


_PRUNE = pruning.oldest("idempotency_keys", "created_at", "created_at <= now() - interval '24 hours'", "$1")


async def prune(db: Database) -> None:
    """Delete claims that are over 24 hours old."""
    await pruning.prune(db, _PRUNE)


def _digest(caller: Caller, idempotency: Idempotency) -> bytes:
    return hashlib.sha256(f"{caller.method}\n{caller.path}\n{idempotency.key}\n".encode()).digest()
