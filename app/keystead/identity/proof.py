"""Checks again, in the transaction that creates something long-lived, that the caller's credential is still valid.

A body or a lock may take seconds; a token that was revoked meanwhile must not create another one.
"""

from uuid import UUID

from keystead.caller import Actor, Caller
from keystead.errors import Scheme, Unauthenticated
from keystead.store.database import Connection

_TOKEN = "SELECT modified_on FROM tokens WHERE id = $1 AND status = 'active' FOR KEY SHARE"  # noqa: S105 - SQL
_KEY = "SELECT key_digest FROM users WHERE id = $1 FOR KEY SHARE"
_ROLE = "SELECT role FROM memberships WHERE user_id = $1 AND account_id = $2"


async def require(connection: Connection, caller: Caller, account_id: UUID | None = None) -> None:
    """Raises Unauthenticated if the credential was revoked, rolled or changed, or the user's role in the account.

    Call it in the transaction that depends on it: it locks the row, so that a roll or a deletion waits.
    """
    scheme = Scheme.TOKEN if caller.actor is Actor.TOKEN else Scheme.GLOBAL_KEY
    found = await connection.fetchval(_TOKEN if caller.actor is Actor.TOKEN else _KEY, caller.id)
    if found is None or found != caller.proof:
        raise Unauthenticated(scheme)
    if caller.user_id is not None and account_id is not None:
        role = await connection.fetchval(_ROLE, caller.user_id, account_id)
        if role != caller.reach.get(account_id):
            raise Unauthenticated(scheme)
