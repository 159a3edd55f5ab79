"""Accounts, users and memberships. Every change is audited; lengths of texts are bounded by the schema."""

import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app.audit import record as audit
from app.caller import Access, Area, Caller, Role, Scope
from app.errors import Clash, Conflict, Denial, Forbidden, Invalid, Limit, LimitReached, NotFound, Problem, Rule, quoted
from app.identity import permissions, proof
from app.ids import any_uuid
from app.store import idempotency, paging
from app.store.database import Connection, Database
from app.store.idempotency import Idempotency
from app.store.paging import Direction, PageNumber, PerPage
from app.x509.names import NamePolicy
from app.x509.subjects import FORBIDDEN


class Account(msgspec.Struct, frozen=True):
    id: UUID
    name: str
    slug: str
    name_policy: NamePolicy
    csrs_enabled: bool
    csr_quota: int | None
    key_max_age_days: int
    ca_quota: int | None
    created_at: datetime


class User(msgspec.Struct, frozen=True):
    """`memberships` is the role in each account."""

    id: UUID
    email: str
    created_at: datetime
    memberships: Mapping[UUID, Role]


_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# ASCII, because it is sent in the header X-Auth-Email.
EMAIL = re.compile(r"[\x21-\x3f\x41-\x7e]{1,64}@[\x21-\x3f\x41-\x7e]{1,189}")
MAX_NAME = 100
# Accounts of one user; bounded because each request of the user loads all of them.
MAX_MEMBERSHIPS = 200


def _invalid(field: str, text: str) -> Invalid:
    return Invalid((Problem(Rule.TEXT, field, text),))


def name_problem(field: str, value: str, most: int) -> Problem | None:
    """The problem of a display name (empty, too long or unprintable), or None."""
    if value.strip() and len(value) <= most and not FORBIDDEN.search(value):
        return None
    text = f"{field} {quoted(value)} must have 1 to {most} characters, not only spaces, and no control characters."
    return Problem(Rule.TEXT, field, text)


def checked_name(field: str, value: str, most: int) -> None:
    """Raises Invalid if `name_problem` finds one."""
    problem = name_problem(field, value, most)
    if problem:
        raise Invalid((problem,))


_ACCOUNT = "id, name, slug, name_policy, csrs_enabled, csr_quota, key_max_age_days, ca_quota, created_at"
_INSERT_ACCOUNT = f"INSERT INTO accounts (id, name, slug) VALUES ($1, $2, $3) RETURNING {_ACCOUNT}"


async def create_account(db: Database, caller: Caller, slug: str, name: str) -> Account:
    """Create an account, for the operator; raises Invalid, and Conflict for a slug that is taken."""
    if not _SLUG.fullmatch(slug) or any_uuid(slug):
        raise _invalid(
            "slug", f"slug {quoted(slug)} must have 1 to 63 of a-z, 0-9 and '-', no '-' at its ends, and not be an id."
        )
    checked_name("name", name, MAX_NAME)

    async def work(connection: Connection) -> Account:
        account = _account(await connection.fetchrow(_INSERT_ACCOUNT, uuid4(), name, slug))
        await _audit(connection, caller, audit.Action.CREATE, audit.Resource.ACCOUNT, account.id, account.id)
        return account

    return await db.transaction(work)


async def list_accounts(db: Database) -> tuple[Account, ...]:
    """All accounts, for the operator."""
    rows = await db.fetch(f"SELECT {_ACCOUNT} FROM accounts ORDER BY slug")
    return tuple(_account(row) for row in rows)


_FIND_ACCOUNT = f"SELECT {_ACCOUNT} FROM accounts WHERE id = $1 OR slug = $2"


async def find_account(db: Database, word: str) -> Account:
    """An account by id or slug, for the operator; raises NotFound."""
    row = await db.fetchrow(_FIND_ACCOUNT, any_uuid(word), word)
    if row is None:
        raise NotFound(f"there is no account {quoted(word)}")
    return _account(row)


class Changes(msgspec.Struct, frozen=True):
    """An operator's changes to an account; None leaves a field as it is, a quota of -1 removes the limit."""

    name: str | None = None
    name_policy: NamePolicy | None = None
    csrs_enabled: bool | None = None
    csr_quota: int | None = None
    key_max_age_days: int | None = None
    ca_quota: int | None = None


_SET_ACCOUNT = f"""
UPDATE accounts SET name_policy = coalesce($2, name_policy), csrs_enabled = coalesce($3, csrs_enabled),
    csr_quota = CASE WHEN $4::int IS NULL THEN csr_quota WHEN $4 < 0 THEN NULL ELSE $4 END,
    key_max_age_days = coalesce($5, key_max_age_days),
    ca_quota = CASE WHEN $6::int IS NULL THEN ca_quota WHEN $6 < 0 THEN NULL ELSE $6 END,
    name = coalesce($7, name), modified_at = now()
WHERE id = $1 RETURNING {_ACCOUNT}
"""


async def set_account(db: Database, caller: Caller, account: Account, changes: Changes) -> Account:
    """Change an account, for the operator; raises Invalid for a bad display name."""
    if changes.name is not None:
        checked_name("name", changes.name, MAX_NAME)

    async def work(connection: Connection) -> Account:
        values = (changes.name_policy, changes.csrs_enabled, changes.csr_quota, changes.key_max_age_days)
        row = await connection.fetchrow(_SET_ACCOUNT, account.id, *values, changes.ca_quota, changes.name)
        await _audit(connection, caller, audit.Action.UPDATE, audit.Resource.ACCOUNT, account.id, account.id)
        return _account(row)

    return await db.transaction(work)


_IN_ACCOUNT = """
SELECT (SELECT count(*) FROM custom_csrs WHERE account_id = $1) AS csrs,
       (SELECT count(*) FROM custom_certificates WHERE account_id = $1) AS certificates,
       (SELECT count(*) FROM certificate_authorities WHERE account_id = $1) AS authorities,
       (SELECT count(*) FROM zones WHERE account_id = $1 AND deleted_at IS NULL) AS zones
"""


async def delete_account(db: Database, caller: Caller, account: Account) -> None:
    """Delete an empty account with its tokens and memberships; raises Conflict, with counts, if it is not empty."""
    await _delete(db, caller, account.id)


async def _delete(db: Database, caller: Caller, account_id: UUID) -> None:
    async def work(connection: Connection) -> None:
        # Inserts that reference the account take FOR KEY SHARE on this row, so they wait and then fail.
        slug = await connection.fetchval("SELECT slug FROM accounts WHERE id = $1 FOR UPDATE", account_id)
        if slug is None:
            raise Scope(account_id).gone()
        held = await connection.fetchrow(_IN_ACCOUNT, account_id)
        if held is not None and any(held.values()):
            counts = f"{held['csrs']} custom CSRs, {held['certificates']} certificates, {held['authorities']} CAs"
            raise Conflict(f"the account {slug} holds {counts} and {held['zones']} zones", Clash.HOLDS)
        await connection.execute("DELETE FROM tokens WHERE account_id = $1", account_id)
        await connection.execute("DELETE FROM zones WHERE account_id = $1", account_id)
        await connection.execute("DELETE FROM csr_counts WHERE account_id = $1", account_id)
        await connection.execute("DELETE FROM accounts WHERE id = $1", account_id)
        await _audit(connection, caller, audit.Action.DELETE, audit.Resource.ACCOUNT, account_id, account_id)

    await db.transaction(work)


def require_name(name: str, malformed: tuple[Problem, ...]) -> None:
    """Raises Invalid with all problems of the name and the body."""
    judged = name_problem("name", name, MAX_NAME)
    known = {problem.field for problem in malformed}
    # If the body is no object, that is the only problem.
    problems = (*malformed, *((judged,) if judged and known.isdisjoint({"", "name"}) else ()))
    if problems:
        raise Invalid(problems)


def reached(caller: Caller, area: Area, access: Access) -> list[UUID]:
    """The ids of the accounts where the caller has this permission."""
    said = permissions.compiled(caller)
    return [each for each in caller.reach if (area, access) in permissions.of(caller, said, Scope(each))]


_GET = f"SELECT {_ACCOUNT} FROM accounts WHERE id = $1"


async def get(db: Database, scope: Scope) -> Account:
    """One account; raises Forbidden if it was deleted, as for one that never existed."""
    return _found(await db.fetchrow(_GET, scope.account_id), scope)


def _found(row: asyncpg.Record | None, scope: Scope) -> Account:
    if row is None:
        raise scope.gone()
    return _account(row)


class Query(msgspec.Struct, frozen=True):
    """A page of the account list; `name` is matched exactly."""

    page: PageNumber = 1
    per_page: PerPage = 20
    name: str | None = None
    direction: Direction = Direction.ASC


class Page(msgspec.Struct, frozen=True):
    items: tuple[Account, ...]
    total: int


_REACHED = "FROM accounts WHERE id = ANY($1::uuid[]) AND ($2::text IS NULL OR name = $2)"
_PAGE = {
    direction: f"SELECT {_ACCOUNT} {_REACHED} ORDER BY created_at {direction}, id LIMIT $3 OFFSET $4"
    for direction in Direction
}
_TOTAL = f"SELECT count(*) AS total {_REACHED}"


async def list_page(db: Database, caller: Caller, query: Query) -> Page:
    """The accounts that the caller may read, by creation time."""
    filters = (reached(caller, Area.SETTINGS, Access.READ), query.name)
    offset = paging.offset(query.page, query.per_page)
    rows = await db.fetch(_PAGE[query.direction], *filters, query.per_page, offset)
    total = await db.fetchrow(_TOTAL, *filters)
    return Page(tuple(_account(row) for row in rows), total["total"] if total else 0)


def _may_found(caller: Caller) -> bool:
    """Whether the caller may create an account: an administrator of one, or one's token that may change any account."""
    if caller.user_id is None or Role.ADMINISTRATOR not in caller.reach.values():
        return False
    fresh = uuid4()
    beyond = msgspec.structs.replace(caller, reach={fresh: Role.ADMINISTRATOR})
    return beyond.may(Area.SETTINGS, Access.WRITE, Scope(fresh))


# A new account gets the strictest limits of all accounts that its user administers, so that they cannot be evaded.
_INSERT_FOR_USER = f"""
INSERT INTO accounts (id, name, slug, name_policy, csrs_enabled, csr_quota, ca_quota, key_max_age_days)
SELECT $1, $2, $3, CASE WHEN bool_or(a.name_policy = 'public') THEN 'public' ELSE 'private' END,
    bool_and(a.csrs_enabled), min(a.csr_quota), min(a.ca_quota), min(a.key_max_age_days)
FROM memberships m JOIN accounts a ON a.id = m.account_id
WHERE m.user_id = $4 AND m.role = 'administrator' HAVING count(*) > 0
ON CONFLICT (slug) DO NOTHING RETURNING {_ACCOUNT}
"""


_ROLE_IN = "SELECT role FROM memberships WHERE user_id = $1 AND account_id = $2"


async def create(
    db: Database, caller: Caller, name: str, malformed: tuple[Problem, ...] = (), once: Idempotency | None = None
) -> Account:
    """Create an account administered by the calling user; its slug is derived from its name.

    `malformed` are the problems that the dialect found while parsing; those fields are not validated again.

    Raises Forbidden, Invalid, LimitReached, and Conflict if the key of `once` was used with another body.
    """
    if caller.user_id is None or not _may_found(caller):
        await audit.denied(db, caller, audit.Resource.ACCOUNT, audit.NO_ACCOUNT)
        raise Forbidden(Denial.RESOURCE)
    made = await idempotency.find(db, caller, audit.NO_ACCOUNT, once) if once else None
    if made:
        # The account may have been created after the caller's memberships were loaded.
        member = await db.fetchrow(_ROLE_IN, caller.user_id, made)
        now = msgspec.structs.replace(caller, reach={made: Role(member["role"])} if member else {})
        if not now.may(Area.SETTINGS, Access.READ, Scope(made)):
            await audit.denied(db, caller, audit.Resource.ACCOUNT, made, Scope(made))
            raise Scope(made).gone()
        return await get(db, Scope(made))
    require_name(name, malformed)
    user_id = caller.user_id

    async def work(connection: Connection) -> Account | None:
        account_id = uuid4()
        if once and not await idempotency.claimed(connection, caller, audit.NO_ACCOUNT, once, account_id):
            return None
        await connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        await proof.require(connection, caller)
        if await connection.fetchval("SELECT count(*) FROM memberships WHERE user_id = $1", user_id) >= MAX_MEMBERSHIPS:
            text = f"A user can be in {MAX_MEMBERSHIPS} accounts; delete one, or have the operator make it."
            raise LimitReached(Limit.LIST, text)
        account = await _insert(connection, account_id, name, user_id)
        await connection.execute(_ADMINISTER, user_id, account.id, Role.ADMINISTRATOR.value)
        await _audit(connection, caller, audit.Action.CREATE, audit.Resource.ACCOUNT, account.id, account.id)
        return account

    account = await db.transaction(work)
    if account is None:
        return await create(db, caller, name, malformed, once)
    return account


async def _insert(connection: Connection, account_id: UUID, name: str, user_id: UUID) -> Account:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = stem = re.sub("[^a-z0-9]+", "-", plain)[:50].strip("-") or "account"
    for _ in range(8):
        row = None if any_uuid(slug) else await connection.fetchrow(_INSERT_FOR_USER, account_id, name, slug, user_id)
        if row is not None:
            return _account(row)
        # A non-hex character, because a slug must not look like an id.
        slug = f"{stem}-x{secrets.token_hex(4)}"
    raise Conflict("no slug is free for this name; try another")


_RENAME = f"UPDATE accounts SET name = $2, modified_at = now() WHERE id = $1 AND name <> $2 RETURNING {_ACCOUNT}"


async def rename(db: Database, caller: Caller, scope: Scope, name: str, malformed: tuple[Problem, ...] = ()) -> Account:
    """Rename an account; raises Invalid. `malformed` as for `create`."""
    require_name(name, malformed)

    async def work(connection: Connection) -> Account | None:
        row = await connection.fetchrow(_RENAME, scope.account_id, name)
        if row is None:
            return None
        account = _account(row)
        await _audit(connection, caller, audit.Action.UPDATE, audit.Resource.ACCOUNT, account.id, account.id)
        return account

    return await db.transaction(work) or await get(db, scope)


async def delete(db: Database, caller: Caller, scope: Scope) -> None:
    """`delete_account` for a caller of the account."""
    await _delete(db, caller, scope.account_id)


_USER = """
SELECT u.id, u.email, u.created_at, array_agg(m.account_id) AS accounts, array_agg(m.role) AS roles
FROM users u LEFT JOIN memberships m ON m.user_id = u.id
"""
_INSERT_USER = "INSERT INTO users (id, email) VALUES ($1, $2)"
_ADMINISTER = "INSERT INTO memberships (user_id, account_id, role) VALUES ($1, $2, $3)"
_JOIN = f"{_ADMINISTER} ON CONFLICT (user_id, account_id) DO UPDATE SET role = excluded.role"


async def create_user(db: Database, caller: Caller, email: str) -> User:
    """Create a user without memberships and global key; raises Invalid, and Conflict for an existing email."""
    email = email.lower()
    if not EMAIL.fullmatch(email):
        raise _invalid("email", f"{quoted(email)} is not an email address.")

    async def work(connection: Connection) -> UUID:
        user_id = uuid4()
        await connection.execute(_INSERT_USER, user_id, email)
        await _audit(connection, caller, audit.Action.CREATE, audit.Resource.USER, audit.NO_ACCOUNT, user_id)
        return user_id

    await db.transaction(work)
    return await find_user(db, email)


async def list_users(db: Database) -> tuple[User, ...]:
    """All users, for the operator."""
    return _users(await db.fetch(f"{_USER} GROUP BY u.id ORDER BY u.email"))


async def find_user(db: Database, word: str) -> User:
    """A user by id or email, for the operator; raises NotFound."""
    users = _users(
        await db.fetch(f"{_USER} WHERE u.id = $1 OR u.email = $2 GROUP BY u.id", any_uuid(word), word.lower())
    )
    if not users:
        raise NotFound(f"there is no user {quoted(word)}")
    return users[0]


async def set_membership(db: Database, caller: Caller, user: User, account: Account, role: Role | None) -> User:
    """Set a user's role in an account; None removes the membership."""

    async def work(connection: Connection) -> None:
        if role is None:
            sql = "DELETE FROM memberships WHERE user_id = $1 AND account_id = $2"
            await connection.execute(sql, user.id, account.id)
        else:
            await connection.execute(_JOIN, user.id, account.id, role.value)
        await _audit(connection, caller, audit.Action.UPDATE, audit.Resource.USER, account.id, user.id)

    await db.transaction(work)
    return await find_user(db, user.email)


async def delete_user(db: Database, caller: Caller, user: User) -> None:
    """Delete a user with the user's global key, tokens and memberships."""

    async def work(connection: Connection) -> None:
        await connection.execute("DELETE FROM tokens WHERE user_id = $1", user.id)
        await connection.execute("DELETE FROM users WHERE id = $1", user.id)
        await _audit(connection, caller, audit.Action.DELETE, audit.Resource.USER, audit.NO_ACCOUNT, user.id)

    await db.transaction(work)


async def _audit(
    connection: Connection,
    caller: Caller,
    action: audit.Action,
    resource: audit.Resource,
    account_id: UUID,
    resource_id: UUID,
    zone_id: UUID | None = None,
) -> None:
    await audit.record(connection, caller, action, resource, (account_id, resource_id, zone_id))


def _account(row: asyncpg.Record | None) -> Account:
    return msgspec.convert(dict(row or ()), Account)


def _users(rows: Sequence[asyncpg.Record]) -> tuple[User, ...]:
    return tuple(
        User(
            row["id"],
            row["email"],
            row["created_at"],
            {a: Role(r) for a, r in zip(row["accounts"], row["roles"], strict=True) if a is not None},
        )
        for row in rows
    )
