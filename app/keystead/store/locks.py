"""Locks on an account or a zone until the transaction ends (docs/decisions/0046-locks-on-citus.md)."""

from enum import StrEnum

from keystead.caller import Scope
from keystead.store.database import Connection, Database


class Lock(StrEnum):
    """What is kept away meanwhile, with the words of PostgreSQL."""

    KEEP = "FOR KEY SHARE"  # its deletion
    ALONE = "FOR NO KEY UPDATE"  # and others that are alone
    END = "FOR UPDATE"  # and everybody who keeps it


ACCOUNT = "SELECT id FROM accounts WHERE id = $1"
ZONE = "SELECT id FROM zones WHERE account_id = $1 AND id = $2 AND deleted_at IS NULL"
# On Citus a locked row of a table of which each node has a copy locks all of it: a row of `scopes` is locked instead.
# That row says nothing of whether there is such an account or zone, which is looked at when it is held.
_OF_SCOPE = "SELECT id FROM scopes WHERE account_id = $1 AND id = $2"
_NEW = "INSERT INTO scopes (account_id, id) VALUES ($1, $2) ON CONFLICT (account_id, id) DO NOTHING"


async def lock(db: Database, connection: Connection, scope: Scope, how: Lock) -> bool:
    """Lock the account or zone in the transaction of this connection of `db`; False if it was deleted."""
    sql, values = (ZONE, (scope.account_id, scope.zone_id)) if scope.zone_id else (ACCOUNT, (scope.account_id,))
    if not db.distributed:
        return await connection.fetchrow(f"{sql} {how}", *values) is not None
    row = (scope.account_id, scope.id)
    if await connection.fetchrow(f"{_OF_SCOPE} {how}", *row) is None:
        await connection.execute(_NEW, *row)
        await connection.fetchrow(f"{_OF_SCOPE} {how}", *row)
    return await connection.fetchrow(sql, *values) is not None
