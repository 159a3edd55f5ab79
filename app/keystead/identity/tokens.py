"""API tokens and global keys: their format, and the operator's actions on them."""

import re
import secrets
import string
import zlib
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.custody.peppers import Peppers, pepper_uses
from keystead.errors import Conflict, NotFound, quoted
from keystead.identity import changes
from keystead.identity.accounts import Account, User
from keystead.identity.changes import Entry
from keystead.ids import any_uuid
from keystead.services import Services
from keystead.store import pruning
from keystead.store.database import Connection, Database


class TokenStatus(StrEnum):
    """Cloudflare's states of a token; `expired` is derived and never stored."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"


class Token(msgspec.Struct, frozen=True):
    """An API token without its value; exactly one of account and user owns it.

    `policies` and `condition` are JSON text, as sent, and the texts of times what was sent for them, if anything.
    """

    id: UUID
    account_id: UUID | None
    user_id: UUID | None
    name: str
    status: TokenStatus
    policies: str
    condition: str | None
    not_before: datetime | None
    expires_on: datetime | None
    issued_on: datetime
    modified_on: datetime
    not_before_text: str | None = None
    expires_on_text: str | None = None

    def status_at(self, now: datetime) -> TokenStatus:
        """The status at this time; disabled takes precedence over expired."""
        ended = self.expires_on is not None and now >= self.expires_on
        return TokenStatus.EXPIRED if ended and self.status is TokenStatus.ACTIVE else self.status


_ALPHABET = string.digits + string.ascii_letters
API_TOKEN, ACCESS_TOKEN, DELIVERY_TOKEN = "kst_", "ksa_", "ksd_"
_TOKEN_TEXT = re.compile(f"(?:{API_TOKEN}|{ACCESS_TOKEN}|{DELIVERY_TOKEN})[0-9A-Za-z]{{46}}")
ACCESS_SECONDS = 7200


def new_token(kind: str = API_TOKEN) -> str:
    """A prefix, 40 random characters (238 bits) and a CRC-32 in six, by which secret scanners recognise it."""
    body = kind + "".join(secrets.choice(_ALPHABET) for _ in range(40))
    return body + _checksum(body)


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode("ascii")), ""
    for _ in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def is_well_formed(value: str) -> bool:
    """Whether it has the format and checksum of a token of ours, of any kind."""
    return _TOKEN_TEXT.fullmatch(value) is not None and value.endswith(_checksum(value[:-6]))


def new_global_key() -> str:
    """A new global key: 37 lower-case hex characters, as clients require."""
    return secrets.token_hex(19)[:37]


COLUMNS = (
    "id, account_id, user_id, name, status, policies, condition, not_before, expires_on, issued_on, modified_on, "
    "not_before_text, expires_on_text"
)
MAX_NAME = 120
_INSERT_TOKEN = f"""
INSERT INTO tokens
    (id, digest, pepper_id, account_id, user_id, name, policies, condition, not_before, expires_on, status,
    not_before_text, expires_on_text)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING {COLUMNS}
"""


class NewToken(msgspec.Struct, frozen=True):
    """A token to create: the user's if `user` is given, else the account's."""

    account: Account
    name: str
    policies: str
    user: User | None = None
    condition: str | None = None
    not_before: datetime | None = None
    expires_on: datetime | None = None


async def create(services: Services, caller: Caller, new: NewToken) -> tuple[Token, str]:
    """Create a token, for the operator; returns it with its value, which is not stored. Raises Invalid."""
    changes.require_valid(changes.name_problems(new.name, MAX_NAME))
    owner = (None, new.user.id) if new.user else (new.account.id, None)
    fields = (
        *owner,
        new.name,
        new.policies,
        new.condition,
        new.not_before,
        new.expires_on,
        TokenStatus.ACTIVE,
        None,
        None,
    )
    return await services.db.transaction(lambda c: insert(c, services.peppers, caller, uuid4(), *fields))


async def insert(
    connection: Connection, peppers: Peppers, caller: Caller, token_id: UUID, *fields: object
) -> tuple[Token, str]:
    """Store a token with a new value, audited; `fields` are the columns of _INSERT_TOKEN from account_id on."""
    value = new_token()
    pepper_id, digest = peppers.newest(value)
    token = of_row(await connection.fetchrow(_INSERT_TOKEN, token_id, digest, pepper_id, *fields))
    await changes.record(connection, caller, entry(audit.Action.CREATE, token))
    return token, value


async def list_(db: Database) -> tuple[Token, ...]:
    """All tokens, for the operator."""
    return tuple(of_row(row) for row in await db.fetch(f"SELECT {COLUMNS} FROM tokens ORDER BY issued_on, id"))


async def find(db: Database, word: str) -> Token:
    """A token by id, for the operator; raises NotFound."""
    row = await db.fetchrow(f"SELECT {COLUMNS} FROM tokens WHERE id = $1", any_uuid(word))
    if row is None:
        raise NotFound(f"there is no token {quoted(word)}; `keystead token list` shows their ids")
    return of_row(row)


_SET_STATUS = f"UPDATE tokens SET status = $2, modified_on = now() WHERE id = $1 RETURNING {COLUMNS}"


async def set_status(db: Database, caller: Caller, token: Token, *, active: bool) -> Token:
    """Enable or disable a token, for the operator; raises NotFound."""
    status = TokenStatus.ACTIVE if active else TokenStatus.DISABLED
    update = entry(audit.Action.UPDATE, token)
    return of_row(_existing(await changes.change(db, caller, update, _SET_STATUS, token.id, status)))


_ROLL = f"UPDATE tokens SET digest = $2, pepper_id = $3, modified_on = now() WHERE id = $1 RETURNING {COLUMNS}"


async def roll_in(connection: Connection, peppers: Peppers, caller: Caller, token_id: UUID) -> str:
    """Give a token a new value, and return it; the old value and the token's access tokens stop working."""
    value = new_token()
    pepper_id, digest = peppers.newest(value)
    token = of_row(_existing(await connection.fetchrow(_ROLL, token_id, digest, pepper_id)))
    await connection.execute("DELETE FROM access_tokens WHERE token_id = $1", token_id)
    await changes.record(connection, caller, entry(audit.Action.ROLL, token))
    return value


async def roll(services: Services, caller: Caller, token: Token) -> str:
    """`roll_in` in its own transaction, for the operator."""
    return await services.db.transaction(lambda connection: roll_in(connection, services.peppers, caller, token.id))


async def revoke(db: Database, caller: Caller, token: Token) -> None:
    """Delete a token, for the operator; raises NotFound."""
    sql = "DELETE FROM tokens WHERE id = $1 RETURNING id"
    _existing(await changes.change(db, caller, entry(audit.Action.DELETE, token), sql, token.id))


_SET_GLOBAL_KEY = "UPDATE users SET key_digest = $2, key_pepper_id = $3 WHERE id = $1 RETURNING id"


async def roll_global_key(services: Services, caller: Caller, user: User) -> str:
    """Give a user a new global key, and return it; it is not stored, and the old one stops working."""
    value = new_global_key()
    pepper_id, digest = services.peppers.newest(value)
    entry = _user_entry(user.id)
    if await changes.change(services.db, caller, entry, _SET_GLOBAL_KEY, user.id, digest, pepper_id) is None:
        raise NotFound(f"there is no user {user.id}")
    return value


def entry(action: audit.Action, token: Token) -> Entry:
    return Entry(action, audit.Resource.TOKEN, token.account_id or audit.NO_ACCOUNT, token.id)


def _user_entry(user_id: UUID) -> Entry:
    return Entry(audit.Action.UPDATE, audit.Resource.USER, audit.NO_ACCOUNT, user_id)


def _existing(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise NotFound("the token does not exist any more")
    return row


def of_row(row: asyncpg.Record | None) -> Token:
    return msgspec.convert(dict(row or ()), Token)


_REVOKE_TOKENS = f"DELETE FROM tokens WHERE pepper_id = $1 RETURNING {COLUMNS}"
_REVOKE_DELIVERY_TOKENS = (
    "UPDATE delivery_tokens SET revoked_at = now(), modified_at = now(), digest = NULL, pepper_id = NULL "
    "WHERE pepper_id = $1 RETURNING id, account_id, zone_id"
)
_REVOKE_KEYS = "UPDATE users SET key_digest = NULL, key_pepper_id = NULL WHERE key_pepper_id = $1 RETURNING id"


async def retire_pepper(db: Database, caller: Caller, pepper_id: UUID, *, revoke: bool) -> int:
    """Delete a pepper other than the newest; with `revoke` also the tokens and global keys that need it.

    Returns how many were revoked. Raises NotFound, and Conflict for the newest, or for a needed one without `revoke`.
    """

    async def work(connection: Connection) -> int:
        uses = await pepper_uses(connection)
        use = next((use for use in uses if use.id == pepper_id), None)
        if use is None:
            raise NotFound(f"there is no pepper {pepper_id}; `keystead keys status` shows their ids")
        if use is uses[0]:
            raise Conflict("this is the newest pepper: `keystead keys add --pepper` first")
        if (use.tokens or use.users) and not revoke:
            needs = f"{use.tokens} tokens and {use.users} global keys need this pepper"
            raise Conflict(f"{needs}: each moves to the newest at its next use; --revoke ends those that do not")
        if revoke:
            for row in await connection.fetch(_REVOKE_TOKENS, pepper_id):
                await changes.record(connection, caller, entry(audit.Action.DELETE, of_row(row)))
            for row in await connection.fetch(_REVOKE_DELIVERY_TOKENS, pepper_id):
                ids = (row["account_id"], row["id"], row["zone_id"])
                await audit.record(connection, caller, audit.Action.REVOKE, audit.Resource.DELIVERY_TOKEN, ids)
            for row in await connection.fetch(_REVOKE_KEYS, pepper_id):
                await changes.record(connection, caller, _user_entry(row["id"]))
        # The foreign keys catch rows added meanwhile.
        await connection.execute("DELETE FROM peppers WHERE id = $1", pepper_id)
        pepper = Entry(audit.Action.DELETE, audit.Resource.PEPPER, audit.NO_ACCOUNT, pepper_id)
        await changes.record(connection, caller, pepper)
        return use.tokens + use.users

    return await db.transaction(work)


# Kept for a day after expiry, to answer "expired" rather than "unknown".
_PRUNE = pruning.oldest("access_tokens", "expires_at", "expires_at <= now() - interval '24 hours'", "$1")


async def prune(db: Database) -> None:
    """Delete access tokens that expired over a day ago."""
    await pruning.prune(db, _PRUNE)
