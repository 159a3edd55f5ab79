"""Who asks, and what the path names: credentials to callers (contract-cloudflare section 5).

What was found is remembered for a second, counted from before it was asked for; so a token that is revoked, rolled,
switched off or narrowed is dead a second later in every worker, and who asks again within half a second costs no
statement. Nothing is remembered of a credential that is not good. A request counts from its head: one whose body is
still on its way when its token is revoked is done.
"""

import contextlib
import hashlib
import json
import secrets
import time
from datetime import UTC, datetime
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from app.audit import record as audit
from app.caller import Access, Actor, Area, Caller, Level, RequestInfo, Role, Scope
from app.errors import Conflict, Denial, Forbidden, Scheme, Unauthenticated, Unavailable
from app.identity import policies, tokens
from app.identity.tokens import TokenStatus
from app.services import Services
from app.store import scopes
from app.store.database import Database

REMEMBERED_SECONDS = 1.0
MOST_REMEMBERED = 4096
K = TypeVar("K")
V = TypeVar("V")


class TokenCredential(msgspec.Struct, frozen=True):
    """An API token; where `access` is set, an access token that was made for one will do too."""

    value: str
    access: bool = False

    def __repr__(self) -> str:
        return "TokenCredential()"


class KeyCredential(msgspec.Struct, frozen=True):
    email: str
    key: str

    def __repr__(self) -> str:
        return f"KeyCredential({self.email})"


Credential = TokenCredential | KeyCredential


class Place(msgspec.Struct, frozen=True):
    """Which account or zone a path names."""

    level: Level
    id: UUID


class Denied(Forbidden):
    """A known caller may not, and what was tried is still to be written down: once it is counted. See `write_down`."""

    def __init__(
        self,
        error: Forbidden,
        caller: Caller,
        resource: audit.Resource,
        resource_id: UUID,
        scope: Scope | None = None,
    ) -> None:
        super().__init__(error.denial, str(error))
        self.attempt = (caller, resource, resource_id, scope)


async def write_down(db: Database, error: Exception) -> None:
    """Write an attempt that was denied into the audit log; other errors are none."""
    if isinstance(error, Denied):
        await audit.denied(db, *error.attempt)


class Admission(msgspec.Struct, frozen=True):
    """Who asks, and the scope that the path names: None when it does not exist; `gone` when it is a deleted zone.

    `remembered` is one that was not looked up now.
    """

    caller: Caller
    scope: Scope | None
    gone: bool
    remembered: bool = False


class _Rows(Generic[K, V]):
    """What was found in the last second by key, bounded in number; the oldest go first.

    Past half of that time one asker is told that nothing is known, and so looks anew, while the others go on: else all
    of them would look at once, each second.
    """

    def __init__(self) -> None:
        self._rows: dict[K, tuple[float, V]] = {}
        self._renewed: dict[K, float] = {}

    def get(self, key: K, now: float, seconds: float) -> V | None:
        found = self._rows.get(key)
        if found is None or found[0] <= now - seconds:
            return None
        if found[0] <= now - seconds / 2 and self._renewed.get(key) != found[0]:
            self._renewed[key] = found[0]
            return None
        return found[1]

    def asked(self, key: K) -> float:
        found = self._rows.get(key)
        return found[0] if found is not None else float("-inf")

    def put(self, key: K, row: V, asked: float, since: float) -> None:
        self._rows.pop(key, None)
        while self._rows:
            oldest = next(iter(self._rows))
            if self._rows[oldest][0] > since and len(self._rows) < MOST_REMEMBERED:
                break
            del self._rows[oldest]
            self._renewed.pop(oldest, None)
        self._rows[key] = (asked, row)


class Memory:
    """What one worker found in the last `seconds`. Credentials are in it as digests under a key of this process."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS) -> None:
        self.seconds = seconds
        self._secret = secrets.token_bytes(32)
        self._callers: _Rows[bytes, asyncpg.Record] = _Rows()
        self._scopes: _Rows[Place, asyncpg.Record] = _Rows()
        self._allowed: _Rows[tuple[bytes, Place, Area, Access], tuple[Caller, Scope]] = _Rows()

    def caller(self, credential: Credential) -> asyncpg.Record | None:
        return self._callers.get(self._digest(credential), time.monotonic(), self.seconds)

    def scope(self, place: Place) -> asyncpg.Record | None:
        return self._scopes.get(place, time.monotonic(), self.seconds)

    def keep(self, asked: float, row: asyncpg.Record, credential: Credential, place: Place | None = None) -> None:
        """Remember a row of a good credential, and of `place` if it was found; `asked` is when its statement began."""
        since = asked - self.seconds
        self._callers.put(self._digest(credential), row, asked, since)
        if place and row["account_id"] is not None:
            self._scopes.put(place, row, asked, since)

    def allow(self, credential: Credential, place: Place, area: Area, access: Access, admitted: Admission) -> None:
        """Remember that a caller may do this there, for as long as the rows are remembered by which they may."""
        caller, scope = admitted.caller, admitted.scope
        # Addresses and expiry are judged for each request.
        if scope is None or admitted.gone or caller.condition or caller.expires_on:
            return
        digest = self._digest(credential)
        asked = min(self._callers.asked(digest), self._scopes.asked(place))
        since = time.monotonic() - self.seconds
        if asked > since:
            self._allowed.put((digest, place, area, access), (caller, scope), asked, since)

    def allowed(
        self, credential: Credential, place: Place, area: Area, access: Access, visit: RequestInfo
    ) -> tuple[Caller, Scope] | None:
        """The caller and the scope, if it was found within the last second that they may do this there."""
        found = self._allowed.get((self._digest(credential), place, area, access), time.monotonic(), self.seconds)
        if found is None:
            return None
        caller, scope = found
        return _visiting(caller, visit), scope

    def _digest(self, credential: Credential) -> bytes:
        if isinstance(credential, TokenCredential):
            words = f"{credential.access}\n{credential.value}"
        else:
            words = f"{credential.email.lower()}\n{credential.key}"
        return hashlib.blake2b(words.encode(), digest_size=32, key=self._secret).digest()


# A row always comes back, so that the caller, the scope and both can be absent.
_WHO = """
FROM (VALUES (1)) AS one
LEFT JOIN {source} ON {digest} = ANY($1::bytea[]) {more}
LEFT JOIN users u ON u.id = {user}
LEFT JOIN LATERAL (
    SELECT json_object_agg(account_id, role)::text AS reach FROM memberships WHERE user_id = {user}
) m ON true
"""
_TOKEN = (
    "t.id, t.name, t.account_id AS owner, t.user_id, t.status, t.not_before, t.expires_on, t.policies, t.condition, "  # noqa: S105 - columns
    "t.modified_on AS proof, u.email, m.reach"
)
_BY_TOKEN = (
    f"SELECT {_TOKEN}, t.pepper_id, NULL::timestamptz AS ends",
    _WHO.format(source="tokens t", digest="t.digest", more="", user="t.user_id"),
)
_BY_ACCESS_TOKEN = (
    f"SELECT {_TOKEN}, NULL::uuid AS pepper_id, x.expires_at AS ends",
    _WHO.format(
        source="(access_tokens x JOIN tokens t ON t.id = x.token_id)", digest="x.digest", more="", user="t.user_id"
    ),
)
_BY_KEY = (
    "SELECT k.id, k.email, k.id AS user_id, k.key_pepper_id AS pepper_id, k.key_digest AS proof, m.reach",
    _WHO.format(source="users k", digest="k.key_digest", more="AND k.email = $2", user="k.id"),
)
_SCOPE_OF = {
    Level.ACCOUNT: f"""
        SELECT {scopes.COLUMNS[Level.ACCOUNT]}, false AS gone FROM accounts a WHERE a.id = {{id}}
    """,
    Level.ZONE: f"""
        SELECT {scopes.COLUMNS[Level.ZONE]}, z.deleted_at IS NOT NULL AS gone
        FROM zones z JOIN accounts a ON a.id = z.account_id WHERE z.id = {{id}}
    """,
}


def _statement(who: tuple[str, str], level: Level | None, parameter: str) -> str:
    columns, tables = who
    if level is None:
        return columns + tables
    return f"{columns}, s.* {tables} LEFT JOIN LATERAL ({_SCOPE_OF[level].format(id=parameter)}) s ON true"


_TOKEN_AT = {level: _statement(_BY_TOKEN, level, "$2") for level in (*Level, None)}
_ACCESS_TOKEN_SQL = _statement(_BY_ACCESS_TOKEN, None, "")
_KEY_AT = {level: _statement(_BY_KEY, level, "$3") for level in (*Level, None)}


async def admit(
    services: Services, memory: Memory, credential: Credential, place: Place, visit: RequestInfo
) -> Admission:
    """Who asks, and what the path names, in one statement, or in none if both are remembered.

    Raises Unauthenticated, and Forbidden(ADDRESS) for a token that is not allowed from the caller's address.
    """
    caller, what = _remembered(memory, credential, visit), memory.scope(place)
    if caller is None or what is None:
        return await admit_anew(services, memory, credential, place, visit)
    return Admission(caller, *_scope(what), remembered=True)


async def admit_anew(
    services: Services, memory: Memory, credential: Credential, place: Place, visit: RequestInfo
) -> Admission:
    """As `admit`, and nothing remembered counts."""
    asked = time.monotonic()
    row = await _look(services, credential, place)
    caller = _caller(row, credential, visit, place)
    memory.keep(asked, row, credential, place)
    return Admission(caller, *_scope(row))


async def authenticate(
    services: Services, memory: Memory, credential: Credential, visit: RequestInfo, *, anew: bool = False
) -> Caller:
    """Who asks, where the path names neither account nor zone; errors as for `admit`."""
    remembered = None if anew else _remembered(memory, credential, visit)
    if remembered is not None:
        return remembered
    asked = time.monotonic()
    row = await _look(services, credential, None)
    caller = _caller(row, credential, visit, None)
    memory.keep(asked, row, credential)
    return caller


def _remembered(memory: Memory, credential: Credential, visit: RequestInfo) -> Caller | None:
    row = memory.caller(credential)
    if row is None:
        return None
    try:
        caller = _judged(row, credential, visit)
    except Unauthenticated:
        return None
    return caller if _allowed_address(caller) else None


async def _look(services: Services, credential: Credential, place: Place | None) -> asyncpg.Record:
    db, peppers = services.db, services.peppers
    level, ids = (place.level, (place.id,)) if place else (None, ())
    renewed: str | None = _NEW_DIGEST
    values: tuple[object, ...] = ids
    if isinstance(credential, KeyCredential):
        value, renewed, sql = credential.key, _NEW_KEY_DIGEST, _KEY_AT[level]
        values = (credential.email.lower(), *ids)
    elif credential.access and credential.value.startswith(tokens.ACCESS_TOKEN) and place is None:
        value, renewed, sql = credential.value, None, _ACCESS_TOKEN_SQL
    else:
        value, sql = credential.value, _TOKEN_AT[level]
    row = await db.fetchrow(sql, peppers.digests(value), *values)
    if row is not None and row["id"] and renewed and await _renew_digest(services, renewed, row, value):
        row = await db.fetchrow(sql, peppers.digests(value), *values)
    if row is None or row["id"] is None:
        raise Unauthenticated(_scheme(credential))
    return row


def _scheme(credential: Credential) -> Scheme:
    return Scheme.TOKEN if isinstance(credential, TokenCredential) else Scheme.GLOBAL_KEY


def _caller(row: asyncpg.Record, credential: Credential, visit: RequestInfo, place: Place | None) -> Caller:
    caller = _judged(row, credential, visit)
    if _allowed_address(caller):
        return caller
    if place is None:
        raise Denied(_wrong_address(caller), caller, audit.Resource.TOKEN, caller.id)
    resource = audit.Resource.ZONE if place.level is Level.ZONE else audit.Resource.ACCOUNT
    raise Denied(_wrong_address(caller), caller, resource, place.id, _scope(row)[0])


def _allowed_address(caller: Caller) -> bool:
    return caller.condition is None or policies.allowed_from(caller.condition, caller.address)


def _wrong_address(caller: Caller) -> Forbidden:
    return Forbidden(Denial.ADDRESS, str(caller.address))


def _judged(row: asyncpg.Record, credential: Credential, visit: RequestInfo) -> Caller:
    if isinstance(credential, KeyCredential):
        return _made(Actor.USER, row, visit)
    now = datetime.now(UTC)
    if row["ends"] and now >= row["ends"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    if row["status"] != TokenStatus.ACTIVE:
        raise Unauthenticated(Scheme.TOKEN)
    if row["expires_on"] and now >= row["expires_on"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    if row["not_before"] and now < row["not_before"]:
        raise Unauthenticated(Scheme.TOKEN)
    return _made(Actor.TOKEN, row, visit)


def _made(actor: Actor, row: asyncpg.Record, visit: RequestInfo) -> Caller:
    is_token = actor is Actor.TOKEN
    owner = row["owner"] if is_token else None
    return Caller(
        actor=actor,
        id=row["id"],
        reach={owner: Role.ADMINISTRATOR} if owner else reach(row["reach"]),
        policies=policies.read(row["policies"]) if is_token else None,
        name=row["name"] if is_token else None,
        email=row["email"],
        address=visit.address,
        request_id=visit.request_id,
        method=visit.method,
        path=visit.path,
        user_agent=visit.user_agent,
        account_id=owner,
        user_id=row["user_id"],
        condition=row["condition"] if is_token else None,
        expires_on=row["expires_on"] if is_token else None,
        status=visit.status,
        denied_status=visit.denied_status,
        proof=row["proof"],
    )


def _visiting(caller: Caller, visit: RequestInfo) -> Caller:
    return msgspec.structs.replace(
        caller,
        address=visit.address,
        request_id=visit.request_id,
        method=visit.method,
        path=visit.path,
        user_agent=visit.user_agent,
        status=visit.status,
        denied_status=visit.denied_status,
    )


def reach(text: str | None) -> dict[UUID, Role]:
    """A user's roles by account, from the JSON that the database makes of the memberships."""
    return {UUID(account): Role(role) for account, role in json.loads(text or "{}").items()}


def _scope(row: asyncpg.Record) -> tuple[Scope | None, bool]:
    if row["account_id"] is None:
        return None, False
    return scopes.of_row(row), row["gone"]


_NEW_DIGEST = "UPDATE tokens SET digest = $4, pepper_id = $3 WHERE id = $1 AND digest = ANY($2)"
_NEW_KEY_DIGEST = "UPDATE users SET key_digest = $4, key_pepper_id = $3 WHERE id = $1 AND key_digest = ANY($2)"


async def _renew_digest(services: Services, sql: str, row: asyncpg.Record, value: str) -> bool:
    """Digest a credential that was good with the newest pepper from now on, so that earlier ones can be retired."""
    pepper_id, digest = services.peppers.newest(value)
    if row["pepper_id"] != pepper_id:
        # A database that takes no writes now, or has just lost this pepper, is asked another time; the credential is
        # good all the same.
        with contextlib.suppress(Unavailable, Conflict):
            digests = services.peppers.digests(value)
            return await services.db.execute(sql, row["id"], digests, pepper_id, digest) == "UPDATE 1"
    return False


class Verification(msgspec.Struct, frozen=True):
    """What a token says of itself; `status` is active, disabled or expired, and an active one may begin later."""

    id: UUID
    status: TokenStatus
    usable: bool
    not_before: datetime | None
    expires_on: datetime | None
    denied: Denied | None


async def verify(
    services: Services, credential: TokenCredential, account_id: UUID | None, visit: RequestInfo
) -> Verification:
    """The state of a token, for a token of any owner, as it is now; raises Unauthenticated for an unknown one."""
    row = await services.db.fetchrow(_TOKEN_AT[None], services.peppers.digests(credential.value))
    if row is None or row["id"] is None:
        raise Unauthenticated(Scheme.TOKEN)
    now, begins, ends = datetime.now(UTC), row["not_before"], row["expires_on"]
    ended = ends is not None and now >= ends
    status = TokenStatus.EXPIRED if row["status"] == TokenStatus.ACTIVE and ended else TokenStatus(row["status"])
    usable = status is TokenStatus.ACTIVE and not (begins and now < begins)
    caller = _made(Actor.TOKEN, row, visit)
    denied = _verifying_denied(caller, account_id)
    return Verification(row["id"], status, usable, begins, ends, denied)


def _verifying_denied(caller: Caller, account_id: UUID | None) -> Denied | None:
    if account_id and account_id not in caller.reach:
        error = Forbidden(Denial.RESOURCE)
        return Denied(error, caller, audit.Resource.ACCOUNT, account_id)
    if not _allowed_address(caller):
        return Denied(_wrong_address(caller), caller, audit.Resource.TOKEN, caller.id)
    return None


_LOGIN = f"""
WITH access AS (
    INSERT INTO access_tokens (digest, token_id, expires_at)
    SELECT $1, t.id, now() + make_interval(secs => $2) FROM tokens t
    WHERE t.id = $3 AND t.digest = ANY($5::bytea[]) AND t.status = 'active' FOR KEY SHARE
    RETURNING token_id
),
login AS (
    SELECT coalesce(t.account_id, $4::uuid) AS account_id, t.id, NULL::uuid AS zone_id
    FROM access JOIN tokens t ON t.id = access.token_id
),
audit AS ({audit.insert(6, "login")})
SELECT id FROM login
"""


async def authenticate_login(
    services: Services, memory: Memory, token_id: UUID, secret: str, visit: RequestInfo
) -> Caller:
    """Who logs in with the id and the value of an API token; raises Unauthenticated and Forbidden(ADDRESS)."""
    if not tokens.is_well_formed(secret) or not secret.startswith(tokens.API_TOKEN):
        raise Unauthenticated(Scheme.TOKEN)
    caller = await authenticate(services, memory, TokenCredential(secret), visit, anew=True)
    if caller.id != token_id:
        raise Unauthenticated(Scheme.TOKEN)
    return caller


async def log_in(services: Services, caller: Caller, secret: str) -> str:
    """An access token for the caller's API token: the same policies, addresses and end, for ACCESS_SECONDS at most.

    Audited; raises Unauthenticated when the token was revoked or rolled meanwhile.
    """
    value = tokens.new_token(tokens.ACCESS_TOKEN)
    peppers = services.peppers
    _, digest = peppers.newest(value)
    audited = audit.values(caller, audit.Action.LOGIN, audit.Resource.TOKEN)
    values = (digest, float(tokens.ACCESS_SECONDS), caller.id, audit.NO_ACCOUNT, peppers.digests(secret))
    row = await services.db.fetchrow(_LOGIN, *values, *audited)
    if row is None:
        raise Unauthenticated(Scheme.TOKEN)
    return value
