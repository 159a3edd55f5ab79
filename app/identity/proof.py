"""Whether a caller is still who they were when their request began: for what outlives the credential that made it.

A body may take seconds to arrive, and a lock to be had; a token that was revoked meanwhile must not make another one.
"""

from uuid import UUID

from app.caller import Actor, Caller
from app.errors import Scheme, Unauthenticated
from app.store.database import Connection

_TOKEN = "SELECT modified_on FROM tokens WHERE id = $1 AND status = 'active' FOR KEY SHARE"  # noqa: S105 - SQL
_KEY = "SELECT key_digest FROM users WHERE id = $1 FOR KEY SHARE"
_ROLE = "SELECT role FROM memberships WHERE user_id = $1 AND account_id = $2"


async def require(connection: Connection, caller: Caller, account_id: UUID | None = None) -> None:
    """Raises Unauthenticated when the credential was revoked, rolled or changed, or the user's role in an account.

    In the transaction that is to rest on it; a roll or a deletion waits until that has ended.
    """
    scheme = Scheme.TOKEN if caller.actor is Actor.TOKEN else Scheme.GLOBAL_KEY
    found = await connection.fetchval(_TOKEN if caller.actor is Actor.TOKEN else _KEY, caller.id)
    if found is None or found != caller.proof:
        raise Unauthenticated(scheme)
    if caller.user_id is not None and account_id is not None:
        role = await connection.fetchval(_ROLE, caller.user_id, account_id)
        if role != caller.reach.get(account_id):
            raise Unauthenticated(scheme)
