"""Creating, changing, rolling and deleting tokens through the API, never with more rights than the caller's.

Contract-cloudflare section 7.
"""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import GROUPS, Access, Actor, Area, Caller, Level, Role, Scope
from keystead.errors import (
    Clash,
    Conflict,
    Denial,
    Forbidden,
    Invalid,
    Limit,
    LimitReached,
    NotFound,
    Problem,
    Rule,
    Thing,
)
from keystead.identity import accounts, changes, containment, policies, proof, tokens, zones
from keystead.identity.tokens import Token, TokenStatus
from keystead.services import Services
from keystead.store import idempotency, paging
from keystead.store.database import Connection, Database
from keystead.store.idempotency import Idempotency
from keystead.store.locks import Lock, lock
from keystead.store.paging import Direction, Page, PageNumber, PerPage

MAX_TOKENS = 1000


class Owner(msgspec.Struct, frozen=True):
    """The owner of tokens: exactly one of an account and a user."""

    account_id: UUID | None = None
    user_id: UUID | None = None

    @property
    def id(self) -> UUID:
        return self.account_id or self.user_id or audit.NO_ACCOUNT

    @property
    def column(self) -> str:
        return "account_id" if self.account_id else "user_id"


class Draft(msgspec.Struct, frozen=True):
    """A requested token. `condition` is JSON text, `networks` the lists in it, `status` None or what is stored.

    `malformed` are the problems that the dialect found while parsing.
    """

    name: str
    policies: tuple[policies.Draft, ...]
    condition: str | None = None
    networks: dict[str, tuple[str, ...]] = {}
    not_before: datetime | None = None
    expires_on: datetime | None = None
    status: TokenStatus | None = None
    not_before_text: str | None = None
    expires_on_text: str | None = None
    malformed: tuple[Problem, ...] = ()


async def of_user(db: Database, caller: Caller, access: Access) -> Owner:
    """The calling user, as an owner; raises Forbidden for an account's token, or a user's token without permission.

    A user's tokens reach all accounts of the user, so a token must have the permission in each of them.
    """
    if caller.user_id is None or not _manages_own(caller, access):
        await audit.denied(db, caller, audit.Resource.TOKEN, caller.id)
        raise Forbidden(Denial.RESOURCE)
    return Owner(user_id=caller.user_id)


def _manages_own(caller: Caller, access: Access) -> bool:
    if caller.policies is None:
        return True
    # A user's tokens belong to no account, so no role applies.
    administrator = msgspec.structs.replace(caller, reach=dict.fromkeys(caller.reach, Role.ADMINISTRATOR))
    allowed = accounts.reached(administrator, Area.USER_TOKENS, access)
    return bool(allowed) and len(allowed) == len(caller.reach)


# Ids of accounts and users are random, so that an owner's id matches in one of the columns only.
_OWNED = "FROM tokens WHERE (account_id = $1 OR user_id = $1) AND id = $2"
_GET = f"SELECT {tokens.COLUMNS} {_OWNED}"
# By the column of the owner, so that the rows come from its index in their order.
_OF = {column: f"FROM tokens WHERE {column} = $1" for column in ("account_id", "user_id")}
_SHOWN = "AND ($2 OR expires_on IS NULL OR expires_on > now())"
_COUNT = {column: f"SELECT count(*) {of_owner}" for column, of_owner in _OF.items()}
_TOTAL = {column: f"SELECT count(*) AS total {of_owner} {_SHOWN}" for column, of_owner in _OF.items()}
_LIST = {
    (column, way): f"SELECT {tokens.COLUMNS} {of_owner} {_SHOWN} ORDER BY issued_on {way}, id LIMIT $3 OFFSET $4"
    for column, of_owner in _OF.items()
    for way in Direction
}


class Query(msgspec.Struct, frozen=True):
    """A page of the tokens, by creation time."""

    page: PageNumber = 1
    per_page: PerPage = 20
    direction: Direction = Direction.ASC
    include_expired: bool = False


async def list_(db: Database, owner: Owner, query: Query) -> Page[Token]:
    filters, offset = (owner.id, query.include_expired), paging.offset(query.page, query.per_page)
    rows = await db.fetch(_LIST[owner.column, query.direction], *filters, query.per_page, offset)
    total = await db.fetchrow(_TOTAL[owner.column], *filters)
    return Page(tuple(tokens.of_row(row) for row in rows), total["total"] if total else 0)


async def get(db: Database, owner: Owner, token_id: UUID) -> Token:
    """Raises NotFound."""
    return _found(await db.fetchrow(_GET, owner.id, token_id), token_id)


def _found(row: asyncpg.Record | None, token_id: UUID) -> Token:
    if row is None:
        raise NotFound(f"There is no token {token_id.hex} here.", Thing.TOKEN)
    return tokens.of_row(row)


async def create(
    services: Services, caller: Caller, owner: Owner, draft: Draft, once: Idempotency | None = None
) -> tuple[Token, str]:
    """Create a token; returns it with its value, which is not stored.

    Raises Invalid, Forbidden, LimitReached, and Conflict if a request with the key of `once` has already created one.
    """
    account_id = owner.account_id or audit.NO_ACCOUNT
    if once and await idempotency.find(services.db, caller, account_id, once):
        raise _already_created()
    text = await _checked(services.db, caller, owner, draft, None)
    token_id = uuid4()

    async def work(connection: Connection) -> tuple[Token, str]:
        await _lock(services.db, connection, owner)
        await proof.require(connection, caller, owner.account_id)
        if once and not await idempotency.claimed(connection, caller, account_id, once, token_id):
            raise _already_created()
        if await connection.fetchval(_COUNT[owner.column], owner.id) >= MAX_TOKENS:
            raise LimitReached(Limit.LIST, f"There are {MAX_TOKENS} tokens, which is the most; delete one first.")
        fields = (draft.name, text, *_bounds(draft, draft.status or TokenStatus.ACTIVE))
        return await tokens.insert(
            connection, services.peppers, caller, token_id, owner.account_id, owner.user_id, *fields
        )

    return await services.db.transaction(work)


def _bounds(draft: Draft, status: TokenStatus | None) -> tuple[object, ...]:
    """The columns from condition on, in the order of the statements."""
    texts = (draft.not_before_text, draft.expires_on_text)
    return (draft.condition, draft.not_before, draft.expires_on, status, *texts)


def _already_created() -> Conflict:
    text = "This Idempotency-Key has made a token, whose value was shown once; use a new key to make another."
    return Conflict(text, Clash.IDEMPOTENCY_KEY)


_LOCK_USER = "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE"


async def _lock(db: Database, connection: Connection, owner: Owner) -> None:
    # Serialises changes to the tokens of one owner.
    if owner.account_id:
        scope = Scope(owner.account_id)
        if not await lock(db, connection, scope, Lock.ALONE):
            raise scope.gone()
    elif await connection.fetchrow(_LOCK_USER, owner.id) is None:
        raise Forbidden(Denial.RESOURCE)


async def _locked(db: Database, connection: Connection, owner: Owner, token_id: UUID) -> Token:
    await _lock(db, connection, owner)
    return _found(await connection.fetchrow(_GET, owner.id, token_id), token_id)


_UPDATE = f"""
UPDATE tokens SET name = $2, policies = $3, condition = $4, not_before = $5, expires_on = $6,
    status = coalesce($7, status), not_before_text = $8, expires_on_text = $9, modified_on = now()
WHERE id = $1 AND (account_id = $10 OR user_id = $10)
RETURNING {tokens.COLUMNS}
"""


async def update(db: Database, caller: Caller, owner: Owner, token_id: UUID, draft: Draft) -> Token:
    """Replace a token by the draft; without a status it keeps its own.

    Raises NotFound, Invalid, Forbidden, and Conflict for the last administrator token of an account.
    """
    await get(db, owner, token_id)
    text = await _checked(db, caller, owner, draft, token_id)

    async def work(connection: Connection) -> Token:
        before = await _locked(db, connection, owner, token_id)
        await proof.require(connection, caller, owner.account_id)
        values = (draft.name, text, *_bounds(draft, draft.status))
        token = _found(await connection.fetchrow(_UPDATE, token_id, *values, owner.id), token_id)
        await _require_administrator(connection, owner, before, token)
        await changes.record(connection, caller, tokens.entry(audit.Action.UPDATE, token))
        return token

    return await db.transaction(work)


async def roll(services: Services, caller: Caller, owner: Owner, token_id: UUID) -> str:
    """Give a token a new value, and return it; the old one stops working. Raises NotFound, Forbidden and Conflict.

    Who may: callers with write access to the tokens of the owner (checked by the guard for an account, by `of_user` for
    a user) who have at least the rights of the token, and both still have when it is rolled.
    """
    token = await get(services.db, owner, token_id)
    holder = _as_caller(owner, caller, token.policies, token.condition, token.expires_on)
    await _require_contained(services.db, caller, owner, holder, token_id)

    async def work(connection: Connection) -> str:
        now = await _locked(services.db, connection, owner, token_id)
        await proof.require(connection, caller, owner.account_id)
        # The token must be the one that was checked: it may have got more rights meanwhile.
        if now.modified_on != token.modified_on:
            raise Conflict("the token was changed at this moment; try again", Clash.CHANGED)
        return await tokens.roll_in(connection, services.peppers, caller, token_id)

    return await services.db.transaction(work)


_DELETE = f"DELETE {_OWNED}"


async def delete(db: Database, caller: Caller, owner: Owner, token_id: UUID) -> None:
    """Delete a token, also the caller's own.

    Raises NotFound, and Conflict for the last administrator token of an account.
    """

    async def work(connection: Connection) -> None:
        token = await _locked(db, connection, owner, token_id)
        await _require_administrator(connection, owner, token, None)
        await connection.execute(_DELETE, owner.id, token_id)
        await changes.record(connection, caller, tokens.entry(audit.Action.DELETE, token))

    await db.transaction(work)


async def _checked(db: Database, caller: Caller, owner: Owner, draft: Draft, token_id: UUID | None) -> str:
    """The JSON text of the policies, to store; raises Invalid and Forbidden."""
    reach = _reach(owner, caller)
    known = await zones.owners(db, policies.zone_ids(draft.policies))
    within = {zone: account for zone, account in known.items() if account in reach}
    changes.require_valid(_problems(draft, frozenset(reach), within), draft.malformed)
    text = policies.text(draft.policies)
    if len(text) > policies.MAX_TEXT:
        too_long = f"The policies are {len(text)} characters long; {policies.MAX_TEXT} at most."
        raise Invalid((Problem(Rule.POLICY, "policies", too_long),))
    holder = _as_caller(owner, caller, text, draft.condition, draft.expires_on)
    await _require_contained(db, caller, owner, holder, token_id)
    return text


def _problems(draft: Draft, reach: frozenset[UUID], within: dict[UUID, UUID]) -> list[Problem]:
    found = [
        *changes.name_problems(draft.name, tokens.MAX_NAME),
        *policies.problems(draft.policies, reach, within),
        *policies.condition_problems(draft.networks),
    ]
    if draft.expires_on is not None and draft.expires_on <= datetime.now(UTC):
        found.append(Problem(Rule.TIME, "expires_on", "expires_on is in the past."))
    elif draft.expires_on and draft.not_before and draft.expires_on <= draft.not_before:
        found.append(Problem(Rule.TIME, "expires_on", "expires_on must be after not_before."))
    return found


def _reach(owner: Owner, caller: Caller) -> dict[UUID, Role]:
    return {owner.account_id: Role.ADMINISTRATOR} if owner.account_id else dict(caller.reach)


def _as_caller(owner: Owner, creator: Caller, text: str, condition: str | None, expires_on: datetime | None) -> Caller:
    return Caller(
        Actor.TOKEN,
        audit.NO_ACCOUNT,
        _reach(owner, creator),
        policies.read(text),
        account_id=owner.account_id,
        user_id=owner.user_id,
        condition=condition,
        expires_on=expires_on,
    )


async def _require_contained(db: Database, caller: Caller, owner: Owner, holder: Caller, token_id: UUID | None) -> None:
    named = {
        target.id
        for each in (holder, caller)
        for policy in each.policies or ()
        for target in policy.targets
        if target.level is Level.ZONE and target.id
    }
    problems = containment.problems(holder, caller, await zones.owners(db, named))
    if problems:
        scope = Scope(owner.account_id) if owner.account_id else None
        await audit.denied(db, caller, audit.Resource.TOKEN, token_id or caller.id, scope)
        raise Forbidden(Denial.MORE_RIGHTS, problems=problems)


# Tokens whose policies contain the group's id; only these can manage tokens. At most MOST_READ are parsed, the smallest
# first: many long policies that name the group without granting it would take seconds.
MOST_READ = 20
_MANAGING = next(g for g in GROUPS if g.area is Area.ACCOUNT_TOKENS and g.access is Access.WRITE).id.hex
_OTHERS = f"""
SELECT {tokens.COLUMNS} FROM tokens WHERE account_id = $1 AND id <> $2 AND status = 'active'
    AND (expires_on IS NULL OR expires_on > now()) AND position($3 in policies::text) > 0
ORDER BY pg_column_size(policies), id LIMIT {MOST_READ}
"""


async def _require_administrator(connection: Connection, owner: Owner, before: Token, after: Token | None) -> None:
    """Raises Conflict if an account would lose its last token that can manage tokens, as a guard against lock-out."""
    account_id = owner.account_id
    if account_id is None or not _administers(before, account_id):
        return
    if after and _administers(after, account_id):
        return
    rows = await connection.fetch(_OTHERS, account_id, before.id, _MANAGING)
    if any(_administers(tokens.of_row(row), account_id) for row in rows):
        return
    text = "this is the last token of the account that may manage its tokens; make another one first"
    raise Conflict(text, Clash.LAST_ADMINISTRATOR)


def _administers(token: Token, account_id: UUID) -> bool:
    now = datetime.now(UTC)
    if token.status_at(now) is not TokenStatus.ACTIVE or (token.not_before and now < token.not_before):
        return False
    reach = {account_id: Role.ADMINISTRATOR}
    holder = Caller(Actor.TOKEN, token.id, reach, policies.read(token.policies))
    return holder.may(Area.ACCOUNT_TOKENS, Access.WRITE, Scope(account_id))
