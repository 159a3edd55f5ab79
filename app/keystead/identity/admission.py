"""Authentication: from the credential of a request and the id in its path to a caller and a scope.

Contract-cloudflare section 5. A request whose head arrived before its token was revoked is carried out;
identity/proof.py has the exceptions.
"""

import contextlib
import json
import time
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Actor, Caller, Level, RequestInfo, Role, Scope
from keystead.errors import Conflict, Denial, Forbidden, Scheme, Unauthenticated, Unavailable
from keystead.identity import accounts, policies, tokens
from keystead.identity.memory import (
    Admission,
    Credential,
    KeyCredential,
    Memory,
    ScopeRef,
    TokenCredential,
    with_request,
)
from keystead.identity.tokens import TokenStatus
from keystead.services import Services
from keystead.store import scopes
from keystead.store.database import Database


class UnauditedDenial(Forbidden):
    """A Forbidden that the guard passes to `audit_denial` after it has counted it against the rate limit."""

    def __init__(
        self, denial: Denial, caller: Caller, resource: audit.Resource, resource_id: UUID, scope: Scope | None = None
    ) -> None:
        super().__init__(denial, str(caller.address) if denial is Denial.ADDRESS else "")
        self.attempt = (caller, resource, resource_id, scope)


async def audit_denial(db: Database, error: Exception) -> None:
    """Add an UnauditedDenial to the audit log; other errors are ignored."""
    if isinstance(error, UnauditedDenial):
        await audit.denied(db, *error.attempt)


# Always returns a row, because the caller and the scope can each be absent.
_OWNER = """
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
    _OWNER.format(source="tokens t", digest="t.digest", more="", user="t.user_id"),
)
_BY_ACCESS_TOKEN = (
    f"SELECT {_TOKEN}, NULL::uuid AS pepper_id, x.expires_at AS ends",
    _OWNER.format(
        source="(access_tokens x JOIN tokens t ON t.id = x.token_id)", digest="x.digest", more="", user="t.user_id"
    ),
)
_BY_KEY = (
    "SELECT k.id, k.email, k.id AS user_id, k.key_pepper_id AS pepper_id, k.key_digest AS proof, m.reach",
    _OWNER.format(source="users k", digest="k.key_digest", more="AND k.email = $2", user="k.id"),
)
_SCOPE_OF = {
    Level.ACCOUNT: f"SELECT {scopes.COLUMNS[Level.ACCOUNT]}, false AS gone FROM accounts a WHERE a.id = {{id}}",
    Level.ZONE: f"""
        SELECT {scopes.COLUMNS[Level.ZONE]}, z.deleted_at IS NOT NULL AS gone
        FROM zones z JOIN accounts a ON a.id = z.account_id WHERE z.id = {{id}}
    """,
}


def _statement(source: tuple[str, str], level: Level | None, parameter: str) -> str:
    columns, tables = source
    if level is None:
        return columns + tables
    return f"{columns}, s.* {tables} LEFT JOIN LATERAL ({_SCOPE_OF[level].format(id=parameter)}) s ON true"


_TOKEN_AT = {level: _statement(_BY_TOKEN, level, "$2") for level in (*Level, None)}
_ACCESS_TOKEN_SQL = _statement(_BY_ACCESS_TOKEN, None, "")
_KEY_AT = {level: _statement(_BY_KEY, level, "$3") for level in (*Level, None)}


async def admit(
    services: Services, memory: Memory, credential: Credential, ref: ScopeRef, request: RequestInfo
) -> Admission:
    """The caller, and the scope that the path names, from the memory or from the database in one statement.

    Raises Unauthenticated, and Forbidden(ADDRESS) for a token that is not allowed from the caller's address.
    """
    caller, row = _remembered(memory, credential, request), memory.scope(ref)
    if caller is None or row is None:
        return await admit_fresh(services, memory, credential, ref, request)
    return Admission(caller, *_scope(row), remembered=True)


async def admit_fresh(
    services: Services, memory: Memory, credential: Credential, ref: ScopeRef | None, request: RequestInfo
) -> Admission:
    """As `admit`, from the database only; without `ref` there is no scope."""
    since = time.monotonic()
    row = await _find(services, credential, ref)
    admission = Admission(_caller(row, credential, request), *_scope(row))
    if ref and admission.scope is None:
        admission = await _of_deleted(services.db, admission, ref)
    if denial := _address_denial(admission.caller, ref, admission.scope):
        raise denial
    memory.keep(since, row, credential, ref)
    return admission


async def _of_deleted(db: Database, admission: Admission, ref: ScopeRef) -> Admission:
    """As it was before its account was deleted, for a user who was a member of that; else as it is."""
    former = await accounts.former_role(db, admission.caller, ref.id)
    if former is None:
        return admission
    account_id, role = former
    caller = msgspec.structs.replace(admission.caller, reach={**admission.caller.reach, account_id: role})
    return Admission(caller, Scope(account_id, ref.id if ref.level is Level.ZONE else None), gone=True)


async def authenticate(
    services: Services, memory: Memory, credential: Credential, request: RequestInfo, *, fresh: bool = False
) -> Caller:
    """The caller of a path that names neither account nor zone; errors as for `admit`."""
    caller = None if fresh else _remembered(memory, credential, request)
    return caller or (await admit_fresh(services, memory, credential, None, request)).caller


def _remembered(memory: Memory, credential: Credential, request: RequestInfo) -> Caller | None:
    row = memory.caller(credential)
    try:
        caller = _caller(row, credential, request) if row else None
    except Unauthenticated:
        return None
    return caller if caller and not _address_denial(caller) else None


async def _find(services: Services, credential: Credential, ref: ScopeRef | None) -> asyncpg.Record:
    """The row of a credential and scope; raises Unauthenticated for an unknown credential."""
    level, ids = (ref.level, (ref.id,)) if ref else (None, ())
    values: tuple[object, ...] = ids
    if isinstance(credential, KeyCredential):
        value, sql, values = credential.key, _KEY_AT[level], (credential.email.lower(), *ids)
    elif credential.access and credential.value.startswith(tokens.ACCESS_TOKEN) and ref is None:
        value, sql = credential.value, _ACCESS_TOKEN_SQL
    else:
        value, sql = credential.value, _TOKEN_AT[level]
    db, peppers = services.db, services.peppers
    row = await db.fetchrow(sql, peppers.digests(value), *values)
    if row and row["id"] and await _renew_digest(services, credential, row, value):
        row = await db.fetchrow(sql, peppers.digests(value), *values)
    if row is None or row["id"] is None:
        raise Unauthenticated(Scheme.TOKEN if isinstance(credential, TokenCredential) else Scheme.GLOBAL_KEY)
    return row


def _address_denial(caller: Caller, ref: ScopeRef | None = None, scope: Scope | None = None) -> UnauditedDenial | None:
    """The error if the token is not allowed from the caller's address."""
    if caller.condition is None or policies.allowed_from(caller.condition, caller.address):
        return None
    if ref is None:
        return UnauditedDenial(Denial.ADDRESS, caller, audit.Resource.TOKEN, caller.id)
    resource = audit.Resource.ZONE if ref.level is Level.ZONE else audit.Resource.ACCOUNT
    return UnauditedDenial(Denial.ADDRESS, caller, resource, ref.id, scope)


def _caller(row: asyncpg.Record, credential: Credential, request: RequestInfo) -> Caller:
    """The caller of a row; raises Unauthenticated for a token that is not valid now."""
    if isinstance(credential, KeyCredential):
        return _of_user(row, request)
    now = datetime.now(UTC)
    if row["ends"] and now >= row["ends"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    if row["status"] != TokenStatus.ACTIVE:
        raise Unauthenticated(Scheme.TOKEN)
    if row["expires_on"] and now >= row["expires_on"]:
        raise Unauthenticated(Scheme.TOKEN, expired=True)
    if row["not_before"] and now < row["not_before"]:
        raise Unauthenticated(Scheme.TOKEN)
    return _of_token(row, request)


def _of_user(row: asyncpg.Record, request: RequestInfo) -> Caller:
    caller = Caller(
        Actor.USER, row["id"], _reach(row["reach"]), email=row["email"], user_id=row["user_id"], proof=row["proof"]
    )
    return with_request(caller, request)


def _of_token(row: asyncpg.Record, request: RequestInfo) -> Caller:
    caller = Caller(
        Actor.TOKEN,
        row["id"],
        {row["owner"]: Role.ADMINISTRATOR} if row["owner"] else _reach(row["reach"]),
        policies.read(row["policies"]),
        row["name"],
        row["email"],
        account_id=row["owner"],
        user_id=row["user_id"],
        condition=row["condition"],
        expires_on=row["expires_on"],
        proof=row["proof"],
    )
    return with_request(caller, request)


def _reach(text: str | None) -> dict[UUID, Role]:
    """A user's roles by account, from the JSON that the database makes of the memberships."""
    return {UUID(account): Role(role) for account, role in json.loads(text or "{}").items()}


def _scope(row: asyncpg.Record) -> tuple[Scope | None, bool]:
    """The scope of a row, and whether it was deleted."""
    if row.get("account_id") is None:
        return None, False
    return scopes.of_row(row), row["gone"]


_RENEW_DIGEST = "UPDATE tokens SET digest = $4, pepper_id = $3 WHERE id = $1 AND digest = ANY($2)"
_RENEW_KEY_DIGEST = "UPDATE users SET key_digest = $4, key_pepper_id = $3 WHERE id = $1 AND key_digest = ANY($2)"


async def _renew_digest(services: Services, credential: Credential, row: asyncpg.Record, value: str) -> bool:
    """Digest a valid credential with the current pepper, so that earlier ones can be retired; whether it did."""
    pepper_id, digest = services.peppers.newest(value)
    # None for access tokens, which keep their digest until they expire.
    if row["pepper_id"] in (None, pepper_id):
        return False
    sql = _RENEW_DIGEST if isinstance(credential, TokenCredential) else _RENEW_KEY_DIGEST
    # The credential is valid even if the database is read-only now, or has just lost this pepper: try again later.
    with contextlib.suppress(Unavailable, Conflict):
        digests = services.peppers.digests(value)
        return await services.db.execute(sql, row["id"], digests, pepper_id, digest) == "UPDATE 1"
    return False


class Verification(msgspec.Struct, frozen=True):
    """The state of a token, which is `usable` if it is active and its `not_before` has passed.

    `gone`: the account that was asked about has been deleted, and the token's user was a member.
    """

    id: UUID
    status: TokenStatus
    usable: bool
    not_before: datetime | None
    expires_on: datetime | None
    denied: UnauditedDenial | None
    gone: bool


async def verify(
    services: Services, credential: TokenCredential, account_id: UUID | None, request: RequestInfo
) -> Verification:
    """The current state of a token, of any owner if `account_id` is None; raises Unauthenticated for an unknown one."""
    row = await services.db.fetchrow(_TOKEN_AT[None], services.peppers.digests(credential.value))
    if row is None or row["id"] is None:
        raise Unauthenticated(Scheme.TOKEN)
    now, begins, ends = datetime.now(UTC), row["not_before"], row["expires_on"]
    ended = ends is not None and now >= ends
    status = TokenStatus.EXPIRED if row["status"] == TokenStatus.ACTIVE and ended else TokenStatus(row["status"])
    usable = status is TokenStatus.ACTIVE and not (begins and now < begins)
    caller = _of_token(row, request)
    denied = _address_denial(caller)
    gone = False
    if account_id and account_id not in caller.reach:
        gone = await accounts.former_role(services.db, caller, account_id) is not None
        denied = UnauditedDenial(Denial.RESOURCE, caller, audit.Resource.ACCOUNT, account_id)
    return Verification(row["id"], status, usable, begins, ends, denied, gone)
