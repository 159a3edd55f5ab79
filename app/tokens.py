"""Credentials: API tokens, global keys, and who asks (contract-cloudflare section 5)."""

import contextlib
import json
import re
import secrets
import string
import zlib
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app import accounts, audit, policies
from app.db import Connection, Database
from app.errors import Conflict, Denial, Forbidden, NotFound, Scheme, Unauthenticated, Unavailable, quoted
from app.keyring import Peppers
from app.model import (
    Account,
    Actor,
    Caller,
    Level,
    NamePolicy,
    Policy,
    Role,
    Scope,
    Token,
    User,
    Visit,
)

_ALPHABET = string.digits + string.ascii_letters


class TokenCredential(msgspec.Struct, frozen=True):
    value: str

    def __repr__(self) -> str:
        return "TokenCredential()"


class KeyCredential(msgspec.Struct, frozen=True):
    email: str
    key: str

    def __repr__(self) -> str:
        return f"KeyCredential({self.email})"


class Place(msgspec.Struct, frozen=True):
    """Which account or zone a path names."""

    level: Level
    id: UUID


class Admission(msgspec.Struct, frozen=True):
    """Who asks, and the scope that the path names: None when it does not exist; `gone` when it is a deleted zone."""

    caller: Caller
    scope: Scope | None
    gone: bool


API_TOKEN, ACCESS_TOKEN = "kst_", "ksa_"
_TOKEN_TEXT = re.compile(f"(?:{API_TOKEN}|{ACCESS_TOKEN})[0-9A-Za-z]{{46}}")
ACCESS_SECONDS = 7200


def new_token(kind: str = API_TOKEN) -> str:
    """Its kind, 40 random characters (238 bits) and a CRC-32 in six, so that a scanner can tell it from other text."""
    body = kind + "".join(secrets.choice(_ALPHABET) for _ in range(40))
    return body + _checksum(body)


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode("ascii")), ""
    for _ in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def is_well_formed(value: str) -> bool:
    """Whether this could be a token or an access token of ours, known or not."""
    return _TOKEN_TEXT.fullmatch(value) is not None and value.endswith(_checksum(value[:-6]))


def id_of(text: str) -> UUID:
    """The id of a token, with hyphens or without; raises Unauthenticated for what is none."""
    try:
        return UUID(text)
    except ValueError:
        raise Unauthenticated(Scheme.TOKEN) from None


def new_global_key() -> str:
    """37 lower-case hex characters, as clients validate them."""
    return secrets.token_hex(19)[:37]


# One statement tells who asks and what the path names; a row always comes back, so that both can be absent.
_SCOPE_OF = {
    Level.ACCOUNT: """
        SELECT a.id AS account_id, NULL::uuid AS zone_id, a.name_policy, a.csrs_enabled, a.csr_quota,
               NULL::int AS certificate_quota, a.key_max_age_days, false AS gone
        FROM accounts a WHERE a.id = $2
    """,
    Level.ZONE: """
        SELECT a.id AS account_id, z.id AS zone_id, a.name_policy, z.csrs_enabled, z.csr_quota,
               z.certificate_quota, a.key_max_age_days, z.deleted_at IS NOT NULL AS gone
        FROM zones z JOIN accounts a ON a.id = z.account_id WHERE z.id = $2
    """,
}
_BY_TOKEN = """
SELECT t.id, t.name, t.account_id AS owner, t.status, t.not_before, t.expires_on, t.policies, t.condition,
       t.pepper_id, u.email, m.reach, s.*
FROM (VALUES (1)) AS one
LEFT JOIN tokens t ON t.digest = ANY($1::bytea[])
LEFT JOIN users u ON u.id = t.user_id
LEFT JOIN LATERAL (
    SELECT json_object_agg(account_id, role)::text AS reach FROM memberships WHERE user_id = t.user_id
) m ON true
LEFT JOIN LATERAL ({scope}) s ON true
"""  # noqa: S105 - SQL
_BY_KEY = """
SELECT u.id, u.email, u.key_pepper_id AS pepper_id, m.reach, s.*
FROM (VALUES (1)) AS one
LEFT JOIN users u ON u.key_digest = ANY($1::bytea[]) AND u.email = $3
LEFT JOIN LATERAL (
    SELECT json_object_agg(account_id, role)::text AS reach FROM memberships WHERE user_id = u.id
) m ON true
LEFT JOIN LATERAL ({scope}) s ON true
"""
_TOKEN_AT = {level: _BY_TOKEN.format(scope=scope) for level, scope in _SCOPE_OF.items()}
_KEY_AT = {level: _BY_KEY.format(scope=scope) for level, scope in _SCOPE_OF.items()}


async def admit(
    db: Database, peppers: Peppers, credential: TokenCredential | KeyCredential, place: Place, visit: Visit
) -> Admission:
    """Who asks, and what the path names, in one statement.

    Raises Unauthenticated, and Forbidden(ADDRESS) for a token that is not allowed from the caller's address.
    """
    if isinstance(credential, TokenCredential):
        row = await db.fetchrow(_TOKEN_AT[place.level], peppers.digests(credential.value), place.id)
        caller = _token_caller(row, visit)
        await _renew_digest(db, peppers, _NEW_DIGEST, row, credential.value)
    else:
        row = await db.fetchrow(
            _KEY_AT[place.level], peppers.digests(credential.key), place.id, credential.email.lower()
        )
        caller = _key_caller(row, visit)
        await _renew_digest(db, peppers, _NEW_KEY_DIGEST, row, credential.key)
    return Admission(caller, *_scope(row))


_NEW_DIGEST = "UPDATE tokens SET digest = $4, pepper_id = $3 WHERE id = $1 AND digest = ANY($2)"
_NEW_KEY_DIGEST = "UPDATE users SET key_digest = $4, key_pepper_id = $3 WHERE id = $1 AND key_digest = ANY($2)"


async def _renew_digest(db: Database, peppers: Peppers, sql: str, row: asyncpg.Record | None, value: str) -> None:
    """Digest a credential that was good with the newest pepper from now on, so that earlier ones can be retired."""
    pepper_id, digest = peppers.newest(value)
    if row is not None and row["pepper_id"] != pepper_id:
        # A database that takes no writes now, or has just lost this pepper, is asked another time; the credential is
        # good all the same.
        with contextlib.suppress(Unavailable, Conflict):
            await db.execute(sql, row["id"], peppers.digests(value), pepper_id, digest)


async def retire_pepper(db: Database, caller: Caller, pepper_id: UUID, *, revoke: bool) -> int:
    """Delete a pepper that is not the newest; with `revoke`, with the tokens and global keys that need it, counted.

    Raises NotFound, and Conflict for the newest, and for one that is needed and not to be revoked.
    """

    async def work(connection: Connection) -> int:
        newest = await connection.fetchval("SELECT id FROM peppers ORDER BY created_at DESC, id LIMIT 1")
        held = await connection.fetchrow(_OF_PEPPER, pepper_id)
        if held is None:
            raise NotFound(f"there is no pepper {pepper_id}; `keystead keys status` shows their ids")
        if newest == pepper_id:
            raise Conflict("this is the newest pepper: `keystead keys add --pepper` first")
        count = int(held["tokens"] + held["users"])
        if count and not revoke:
            needs = f"{held['tokens']} tokens and {held['users']} global keys need this pepper"
            raise Conflict(f"{needs}: each moves to the newest at its next use; --revoke ends those that do not")
        if revoke:
            await _end_all(connection, caller, pepper_id)
        # What came meanwhile is found by the foreign keys.
        await connection.execute("DELETE FROM peppers WHERE id = $1", pepper_id)
        place = (audit.NO_ACCOUNT, pepper_id, None)
        await audit.record(connection, caller, audit.Action.DELETE, audit.Resource.PEPPER, place)
        return count

    return await db.transaction(work)


async def _end_all(connection: Connection, caller: Caller, pepper_id: UUID) -> None:
    rows = await connection.fetch(f"DELETE FROM tokens WHERE pepper_id = $1 RETURNING {_TOKEN}", pepper_id)
    for row in rows:
        await _audit(connection, caller, audit.Action.DELETE, _token(row))
    sql = "UPDATE users SET key_digest = NULL, key_pepper_id = NULL WHERE key_pepper_id = $1 RETURNING id"
    for row in await connection.fetch(sql, pepper_id):
        place = (audit.NO_ACCOUNT, row["id"], None)
        await audit.record(connection, caller, audit.Action.UPDATE, audit.Resource.USER, place)


_OF_PEPPER = """
SELECT (SELECT count(*) FROM tokens WHERE pepper_id = p.id) AS tokens,
       (SELECT count(*) FROM users WHERE key_pepper_id = p.id) AS users
FROM peppers p WHERE p.id = $1
"""


class Verification(msgspec.Struct, frozen=True):
    """What a token says of itself; `status` is active, disabled or expired, and an active one may begin later."""

    id: UUID
    status: str
    usable: bool
    not_before: datetime | None
    expires_on: datetime | None
    denied: Forbidden | None


async def verify(
    db: Database, peppers: Peppers, credential: TokenCredential, account_id: UUID | None, visit: Visit
) -> Verification:
    """The state of a token, for a token of any owner; raises Unauthenticated for an unknown one."""
    row = await db.fetchrow(_TOKEN_AT[Level.ACCOUNT], peppers.digests(credential.value), account_id or audit.NO_ACCOUNT)
    if row is None or row["id"] is None:
        raise Unauthenticated(Scheme.TOKEN)
    now, begins, ends = datetime.now(UTC), row["not_before"], row["expires_on"]
    status = "expired" if row["status"] == "active" and ends and now >= ends else row["status"]
    usable = status == "active" and not (begins and now < begins)
    denied = _denied_address(row, visit)
    if account_id and account_id not in ({row["owner"]} | _reach(row["reach"]).keys()):
        denied = Forbidden(Denial.RESOURCE, "Unauthorized to access requested resource")
    return Verification(row["id"], status, usable, begins, ends, denied)


_OF_TOKEN = """
SELECT t.id, t.name, t.account_id AS owner, t.status, t.not_before, t.expires_on, t.policies, t.condition,
       {pepper} AS pepper_id, u.email, m.reach, {ends} AS ends
FROM {source}
LEFT JOIN users u ON u.id = t.user_id
LEFT JOIN LATERAL (
    SELECT json_object_agg(account_id, role)::text AS reach FROM memberships WHERE user_id = t.user_id
) m ON true
WHERE {digest} = ANY($1::bytea[])
"""  # noqa: S105 - SQL
_OF_API_TOKEN = _OF_TOKEN.format(ends="NULL::timestamptz", pepper="t.pepper_id", source="tokens t", digest="t.digest")
_OF_ACCESS_TOKEN = _OF_TOKEN.format(
    ends="x.expires_at",
    pepper="NULL::uuid",
    source="access_tokens x JOIN tokens t ON t.id = x.token_id",
    digest="x.digest",
)


async def authenticate(db: Database, peppers: Peppers, value: str, visit: Visit) -> Caller:
    """Who holds an API token, or an access token that was made for one (contract-infisical, "Common").

    Raises Unauthenticated, and Forbidden(ADDRESS) for a token that is not allowed from the caller's address.
    """
    sql = _OF_ACCESS_TOKEN if value.startswith(ACCESS_TOKEN) else _OF_API_TOKEN
    row = await db.fetchrow(sql, peppers.digests(value))
    if row is not None and row["ends"] and datetime.now(UTC) >= row["ends"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    caller = _token_caller(row, visit)
    if row is not None and row["pepper_id"]:
        await _renew_digest(db, peppers, _NEW_DIGEST, row, value)
    return caller


_LOGIN = f"""
WITH access AS (
    INSERT INTO access_tokens (digest, token_id, expires_at)
    SELECT $1, t.id, now() + make_interval(secs => $2) FROM tokens t WHERE t.id = $3 FOR KEY SHARE
    RETURNING token_id
),
login AS (
    SELECT coalesce(t.account_id, $4::uuid) AS account_id, t.id, NULL::uuid AS zone_id
    FROM access JOIN tokens t ON t.id = access.token_id
),
audit AS ({audit.insert(5, "login")})
SELECT id FROM login
"""


async def log_in(db: Database, peppers: Peppers, token_id: UUID, secret: str, visit: Visit) -> tuple[Caller, str]:
    """An access token for an API token: the same policies, addresses and end, for ACCESS_SECONDS at most. Audited.

    Raises Unauthenticated and Forbidden(ADDRESS) as `authenticate`.
    """
    if not is_well_formed(secret) or not secret.startswith(API_TOKEN):
        raise Unauthenticated(Scheme.TOKEN)
    caller = await authenticate(db, peppers, secret, visit)
    if caller.id != token_id:
        raise Unauthenticated(Scheme.TOKEN)
    value = new_token(ACCESS_TOKEN)
    _, digest = peppers.newest(value)
    audited = audit.values(caller, audit.Action.LOGIN, audit.Resource.TOKEN)
    row = await db.fetchrow(_LOGIN, digest, float(ACCESS_SECONDS), token_id, audit.NO_ACCOUNT, *audited)
    if row is None:
        raise Unauthenticated(Scheme.TOKEN)
    return caller, value


# For a while after its end it is told from one that never was.
_PRUNE = """
DELETE FROM access_tokens WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM access_tokens WHERE expires_at <= now() - interval '24 hours' LIMIT $1
))
"""
PRUNED_AT_ONCE = 10_000


async def prune(db: Database) -> None:
    """Forget access tokens that ended a day ago, in batches."""
    while await db.execute(_PRUNE, PRUNED_AT_ONCE) == f"DELETE {PRUNED_AT_ONCE}":
        pass


def _denied_address(row: asyncpg.Record, visit: Visit) -> Forbidden | None:
    if row["condition"] and not policies.allowed_from(row["condition"], visit.address):
        return Forbidden(Denial.ADDRESS, f"Cannot use the access token from location: {visit.address}")
    return None


def _token_caller(row: asyncpg.Record | None, visit: Visit) -> Caller:
    now = datetime.now(UTC)
    if row is None or row["id"] is None or row["status"] != "active":
        raise Unauthenticated(Scheme.TOKEN)
    if row["expires_on"] and now >= row["expires_on"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    if row["not_before"] and now < row["not_before"]:
        raise Unauthenticated(Scheme.TOKEN)
    denied = _denied_address(row, visit)
    if denied:
        raise denied
    owner = row["owner"]
    reach = {owner: Role.ADMINISTRATOR} if owner else _reach(row["reach"])
    return _caller(Actor.TOKEN, row, reach, visit, name=row["name"], granted=policies.read(row["policies"]))


def _key_caller(row: asyncpg.Record | None, visit: Visit) -> Caller:
    if row is None or row["id"] is None:
        raise Unauthenticated(Scheme.GLOBAL_KEY)
    return _caller(Actor.USER, row, _reach(row["reach"]), visit)


def _caller(
    actor: Actor,
    row: asyncpg.Record,
    reach: dict[UUID, Role],
    visit: Visit,
    *,
    name: str | None = None,
    granted: tuple[Policy, ...] | None = None,
) -> Caller:
    return Caller(
        actor=actor,
        id=row["id"],
        reach=reach,
        policies=granted,
        name=name,
        email=row["email"],
        address=visit.address,
        request_id=visit.request_id,
        method=visit.method,
        path=visit.path,
        user_agent=visit.user_agent,
    )


def _reach(text: str | None) -> dict[UUID, Role]:
    return {UUID(account): Role(role) for account, role in json.loads(text or "{}").items()}


def _scope(row: asyncpg.Record | None) -> tuple[Scope | None, bool]:
    if row is None or row["account_id"] is None:
        return None, False
    scope = Scope(
        account_id=row["account_id"],
        zone_id=row["zone_id"],
        name_policy=NamePolicy(row["name_policy"]),
        csrs_enabled=row["csrs_enabled"],
        csr_quota=row["csr_quota"],
        certificate_quota=row["certificate_quota"],
        key_max_age_days=row["key_max_age_days"],
    )
    return scope, row["gone"]


_TOKEN = "id, account_id, user_id, name, status, policies, not_before, expires_on, issued_on"  # noqa: S105 - columns
_INSERT_TOKEN = f"""
INSERT INTO tokens (id, account_id, user_id, name, digest, pepper_id, policies, condition, not_before, expires_on)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_TOKEN}
"""


class NewToken(msgspec.Struct, frozen=True):
    """What a new token is to be; a user's token when `user` is given, else the account's."""

    account: Account
    name: str
    policies: str
    user: User | None = None
    condition: str | None = None
    not_before: datetime | None = None
    expires_on: datetime | None = None


async def create(db: Database, peppers: Peppers, caller: Caller, new: NewToken) -> tuple[Token, str]:
    """A token and its value, which is not stored and cannot be had again; raises Invalid."""
    accounts.checked_name("name", new.name, 120)
    value = new_token()
    pepper_id, digest = peppers.newest(value)
    owner = (None, new.user.id) if new.user else (new.account.id, None)

    async def work(connection: Connection) -> Token:
        row = await connection.fetchrow(
            *(_INSERT_TOKEN, uuid4(), *owner, new.name, digest, pepper_id),
            *(new.policies, new.condition, new.not_before, new.expires_on),
        )
        token = _token(row)
        await _audit(connection, caller, audit.Action.CREATE, token)
        return token

    return await db.transaction(work), value


async def list_(db: Database) -> tuple[Token, ...]:
    """All tokens, for the operator."""
    return tuple(_token(row) for row in await db.fetch(f"SELECT {_TOKEN} FROM tokens ORDER BY issued_on, id"))


async def find(db: Database, word: str) -> Token:
    """By id, for the operator; raises NotFound."""
    try:
        row = await db.fetchrow(f"SELECT {_TOKEN} FROM tokens WHERE id = $1", UUID(word))
    except ValueError:
        row = None
    if row is None:
        raise NotFound(f"there is no token {quoted(word)}; `keystead token list` shows their ids")
    return _token(row)


async def set_status(db: Database, caller: Caller, token: Token, *, active: bool) -> Token:
    """Switch a token on or off."""

    async def work(connection: Connection) -> Token:
        sql = f"UPDATE tokens SET status = $2, modified_on = now() WHERE id = $1 RETURNING {_TOKEN}"
        row = await connection.fetchrow(sql, token.id, "active" if active else "disabled")
        await _audit(connection, caller, audit.Action.UPDATE, token)
        return _token(row)

    return await db.transaction(work)


async def revoke(db: Database, caller: Caller, token: Token) -> None:
    """Delete a token: it is dead for the next request."""

    async def work(connection: Connection) -> None:
        await connection.execute("DELETE FROM tokens WHERE id = $1", token.id)
        await _audit(connection, caller, audit.Action.DELETE, token)

    await db.transaction(work)


async def roll_global_key(db: Database, peppers: Peppers, caller: Caller, user: User) -> str:
    """Give a user a new global key, which is not stored and cannot be had again; the old one is dead."""
    value = new_global_key()
    pepper_id, digest = peppers.newest(value)

    async def work(connection: Connection) -> None:
        sql = "UPDATE users SET key_digest = $2, key_pepper_id = $3 WHERE id = $1"
        await connection.execute(sql, user.id, digest, pepper_id)
        place = (audit.NO_ACCOUNT, user.id, None)
        await audit.record(connection, caller, audit.Action.UPDATE, audit.Resource.USER, place)

    await db.transaction(work)
    return value


async def _audit(connection: Connection, caller: Caller, action: audit.Action, token: Token) -> None:
    place = (token.account_id or audit.NO_ACCOUNT, token.id, None)
    await audit.record(connection, caller, action, audit.Resource.TOKEN, place)


def _token(row: asyncpg.Record | None) -> Token:
    return msgspec.convert(dict(row or ()), Token)
