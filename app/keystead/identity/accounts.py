"""Accounts, users and memberships. Every change is audited; lengths of texts are bounded by the schema."""

import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.audit import record as audit
from keystead.caller import Access, Area, Caller, Role, Scope
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
    quoted,
)
from keystead.identity import changes, permissions, proof
from keystead.identity.changes import Entry
from keystead.ids import any_uuid
from keystead.store import idempotency, paging
from keystead.store.database import Connection, Database
from keystead.store.idempotency import Idempotency
from keystead.store.locks import Lock, lock
from keystead.store.paging import Direction, NameFilter, Page
from keystead.x509 import subjects
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import SubjectDefaults


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
    enforce_twofactor: bool = False
    abuse_contact_email: str | None = None
    csr_subject: SubjectDefaults = SubjectDefaults()


class AccountSettings(msgspec.Struct, frozen=True):
    """What clients may set, and get back; it has no effect here."""

    enforce_twofactor: bool = False
    abuse_contact_email: str | None = None


class Draft(msgspec.Struct, frozen=True):
    """A requested account, or a change of one; `malformed` are the problems that the dialect found while parsing."""

    name: str
    settings: AccountSettings | None = None
    malformed: tuple[Problem, ...] = ()


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


_ACCOUNT = (
    "id, name, slug, name_policy, csrs_enabled, csr_quota, key_max_age_days, ca_quota, created_at, enforce_twofactor, "
    "abuse_contact_email, csr_subject"
)
_INSERT_ACCOUNT = f"INSERT INTO accounts (id, name, slug) VALUES ($1, $2, $3) RETURNING {_ACCOUNT}"


async def create_account(db: Database, caller: Caller, slug: str, name: str) -> Account:
    """Create an account, for the operator; raises Invalid, and Conflict for a slug that is taken."""
    if not _SLUG.fullmatch(slug) or any_uuid(slug):
        text = f"slug {quoted(slug)} must have 1 to 63 of a-z, 0-9 and '-', no '-' at its ends, and not be an id."
        raise Invalid((Problem(Rule.TEXT, "slug", text),))
    changes.require_valid(changes.name_problems(name, MAX_NAME))
    account_id = uuid4()
    entry = _entry(audit.Action.CREATE, account_id)
    return _account(await changes.change(db, caller, entry, _INSERT_ACCOUNT, account_id, name, slug))


async def list_accounts(db: Database) -> tuple[Account, ...]:
    """All accounts, for the operator."""
    rows = await db.fetch(f"SELECT {_ACCOUNT} FROM accounts ORDER BY slug")
    return tuple(_account(row) for row in rows)


_FIND_ACCOUNT = f"SELECT {_ACCOUNT} FROM accounts WHERE id = $1 OR slug = $2"


async def find_account(db: Database, word: str) -> Account:
    """An account by id or slug, for the operator; raises NotFound."""
    row = await db.fetchrow(_FIND_ACCOUNT, any_uuid(word), word)
    if row is None:
        raise NotFound(f"there is no account {quoted(word)}; `keystead account list` shows them")
    return _account(row)


class Changes(msgspec.Struct, frozen=True):
    """An operator's changes: None, and what `csr_subject` lacks, stays; a quota of -1 and an empty text remove."""

    name: str | None = None
    name_policy: NamePolicy | None = None
    csrs_enabled: bool | None = None
    csr_quota: int | None = None
    key_max_age_days: int | None = None
    ca_quota: int | None = None
    csr_subject: Mapping[str, str] = {}


_SET_ACCOUNT = f"""
UPDATE accounts SET name = coalesce($2, name), name_policy = coalesce($3, name_policy),
    csrs_enabled = coalesce($4, csrs_enabled), key_max_age_days = coalesce($6, key_max_age_days),
    csr_quota = CASE WHEN $5::int IS NULL THEN csr_quota WHEN $5 < 0 THEN NULL ELSE $5 END,
    ca_quota = CASE WHEN $7::int IS NULL THEN ca_quota WHEN $7 < 0 THEN NULL ELSE $7 END,
    csr_subject = jsonb_strip_nulls(csr_subject || $8::jsonb), modified_at = now()
WHERE id = $1 RETURNING {_ACCOUNT}
"""


async def set_account(db: Database, caller: Caller, account: Account, wanted: Changes) -> Account:
    """Change an account, for the operator; raises Invalid for a bad display name or subject."""
    names = () if wanted.name is None else changes.name_problems(wanted.name, MAX_NAME)
    changes.require_valid((*names, *subjects.problems(wanted.csr_subject)))
    entry, values = _entry(audit.Action.UPDATE, account.id), msgspec.structs.astuple(wanted)[:-1]
    merged = msgspec.json.encode({field: value or None for field, value in wanted.csr_subject.items()}).decode()
    return _account(await changes.change(db, caller, entry, _SET_ACCOUNT, account.id, *values, merged))


_IN_ACCOUNT = """
SELECT (SELECT count(*) FROM custom_csrs WHERE account_id = $1) AS csrs,
       (SELECT count(*) FROM custom_certificates WHERE account_id = $1) AS certificates,
       (SELECT count(*) FROM certificate_authorities WHERE account_id = $1) AS authorities,
       (SELECT count(*) FROM zones WHERE account_id = $1 AND deleted_at IS NULL) AS zones
"""
# The account, and its zones, which have all been deleted.
_BURY = """
INSERT INTO deleted_scopes (id, account_id, members)
SELECT scope.id, $1, (SELECT coalesce(json_object_agg(user_id, role), '{}') FROM memberships WHERE account_id = $1)
FROM (SELECT $1 AS id UNION ALL SELECT id FROM zones WHERE account_id = $1) AS scope
"""
_DELETE = (
    _BURY,
    "DELETE FROM tokens WHERE account_id = $1",
    "DELETE FROM zones WHERE account_id = $1",
    "DELETE FROM csr_counts WHERE account_id = $1",
    "DELETE FROM accounts WHERE id = $1",
)


async def delete(db: Database, caller: Caller, scope: Scope) -> None:
    """Delete an empty account with its tokens and memberships; raises Conflict, with counts, if it is not empty."""
    account_id = scope.account_id

    async def work(connection: Connection) -> None:
        # Inserts that reference the account lock it too, so they wait and then fail.
        if not await lock(db, connection, scope, Lock.END):
            raise scope.gone()
        held = await connection.fetchrow(_IN_ACCOUNT, account_id)
        if held is not None and any(held.values()):
            slug = await connection.fetchval("SELECT slug FROM accounts WHERE id = $1", account_id)
            counts = f"{held['csrs']} custom CSRs, {held['certificates']} certificates, {held['authorities']} CAs"
            raise Conflict(f"the account {slug} holds {counts} and {held['zones']} zones", Clash.HOLDS)
        for sql in _DELETE:
            await connection.execute(sql, account_id)
        await changes.record(connection, caller, _entry(audit.Action.DELETE, account_id))

    await db.transaction(work)


def reached(caller: Caller, area: Area, access: Access) -> list[UUID]:
    """The ids of the accounts where the caller has this permission."""
    rights = permissions.compiled(caller)
    return [each for each in caller.reach if (area, access) in permissions.of(caller, rights, Scope(each))]


_GET = f"SELECT {_ACCOUNT} FROM accounts WHERE id = $1"


async def get(db: Database, scope: Scope) -> Account:
    """One account; raises NotFound if it was deleted."""
    row = await db.fetchrow(_GET, scope.account_id)
    if row is None:
        raise scope.gone()
    return _account(row)


class Query(msgspec.Struct, frozen=True):
    """A page of the account list. `page` counts from 1."""

    page: int
    per_page: int
    name: NameFilter | None
    direction: Direction


async def list_page(db: Database, caller: Caller, query: Query) -> Page[Account]:
    """The accounts that the caller may read, by creation time."""
    found = "FROM accounts WHERE id = ANY($1::uuid[])"
    filters: list[object] = [reached(caller, Area.SETTINGS, Access.READ)]
    if query.name:
        found += f" AND {query.name.condition('name', 2)}"
        filters.append(query.name.value)
    page = f"LIMIT ${len(filters) + 1} OFFSET ${len(filters) + 2}"
    offset = paging.offset(query.page, query.per_page)
    sql = f"SELECT {_ACCOUNT} {found} ORDER BY created_at {query.direction}, id {page}"
    rows = await db.fetch(sql, *filters, query.per_page, offset)
    total = await db.fetchrow(f"SELECT count(*) AS total {found}", *filters)
    return Page(tuple(_account(row) for row in rows), total["total"] if total else 0)


def _may_create(caller: Caller) -> bool:
    """Whether the caller is an administrator of an account, whose token, if any, may change all accounts."""
    account_id = uuid4()
    administrator = msgspec.structs.replace(caller, reach={account_id: Role.ADMINISTRATOR})
    may = administrator.may(Area.SETTINGS, Access.WRITE, Scope(account_id))
    return may and Role.ADMINISTRATOR in caller.reach.values()


# A new account gets the strictest limits of all accounts that its user administers, so that they cannot be evaded.
_INSERT_FOR_USER = f"""
INSERT INTO accounts (id, name, slug, enforce_twofactor, abuse_contact_email, name_policy, csrs_enabled, csr_quota,
    ca_quota, key_max_age_days)
SELECT $1, $2, $3, $5, $6, CASE WHEN bool_or(a.name_policy = 'public') THEN 'public' ELSE 'private' END,
    bool_and(a.csrs_enabled), min(a.csr_quota), min(a.ca_quota), min(a.key_max_age_days)
FROM memberships m JOIN accounts a ON a.id = m.account_id
WHERE m.user_id = $4 AND m.role = 'administrator' HAVING count(*) > 0
ON CONFLICT (slug) DO NOTHING RETURNING {_ACCOUNT}
"""


_ROLE_IN = "SELECT role FROM memberships WHERE user_id = $1 AND account_id = $2"


async def create(db: Database, caller: Caller, draft: Draft, once: Idempotency | None = None) -> Account:
    """Create an account administered by the calling user; its slug is derived from its name.

    Raises Forbidden, Invalid, LimitReached, and Conflict if the key of `once` was used with another body.
    """
    user_id = caller.user_id
    if user_id is None or not _may_create(caller):
        await audit.denied(db, caller, audit.Resource.ACCOUNT, audit.NO_ACCOUNT)
        raise Forbidden(Denial.RESOURCE)
    if once and (created := await idempotency.find(db, caller, audit.NO_ACCOUNT, once)):
        return await _get_created(db, caller, Scope(created))
    changes.require_valid(_problems(draft), draft.malformed)

    async def work(connection: Connection) -> Account | None:
        account_id = uuid4()
        if once and not await idempotency.claimed(connection, caller, audit.NO_ACCOUNT, once, account_id):
            return None
        await connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        await proof.require(connection, caller)
        if await connection.fetchval("SELECT count(*) FROM memberships WHERE user_id = $1", user_id) >= MAX_MEMBERSHIPS:
            text = f"A user can be in {MAX_MEMBERSHIPS} accounts; delete one, or have the operator make it."
            raise LimitReached(Limit.LIST, text)
        account = await _insert(connection, account_id, draft, user_id)
        await connection.execute(_ADMINISTER, user_id, account.id, Role.ADMINISTRATOR)
        await changes.record(connection, caller, _entry(audit.Action.CREATE, account.id))
        return account

    # None: another request with this key has created it meanwhile.
    return await db.transaction(work) or await create(db, caller, draft, once)


def _problems(draft: Draft) -> list[Problem]:
    found = [*changes.name_problems(draft.name, MAX_NAME)]
    email = draft.settings.abuse_contact_email if draft.settings else None
    if email is not None and not EMAIL.fullmatch(email):
        text = f"{quoted(email)} is not an email address."
        found.append(Problem(Rule.TEXT, "settings", text, member="abuse_contact_email"))
    return found


async def _get_created(db: Database, caller: Caller, scope: Scope) -> Account:
    # The account may have been created after the caller's memberships were loaded.
    member = await db.fetchrow(_ROLE_IN, caller.user_id, scope.account_id)
    now = msgspec.structs.replace(caller, reach={scope.account_id: Role(member["role"])} if member else {})
    if not now.may(Area.SETTINGS, Access.READ, scope):
        if member is None and await former_role(db, caller, scope.id):
            raise scope.gone()
        await audit.denied(db, caller, audit.Resource.ACCOUNT, scope.account_id, scope)
        raise Forbidden(Denial.RESOURCE)
    return await get(db, scope)


_BURIED = "SELECT account_id, members ->> $2 AS role FROM deleted_scopes WHERE id = $1"


async def former_role(db: Database, caller: Caller, scope_id: UUID) -> tuple[UUID, Role] | None:
    """The deleted account that has this id, or whose zone has it, and what the calling user was there; or None."""
    if caller.user_id is None:
        return None
    row = await db.fetchrow(_BURIED, scope_id, str(caller.user_id))
    return (row["account_id"], Role(row["role"])) if row and row["role"] else None


async def _insert(connection: Connection, account_id: UUID, draft: Draft, user_id: UUID) -> Account:
    settings = msgspec.structs.astuple(draft.settings or AccountSettings())
    plain = unicodedata.normalize("NFKD", draft.name).encode("ascii", "ignore").decode().lower()
    slug = stem = re.sub("[^a-z0-9]+", "-", plain)[:50].strip("-") or "account"
    for _ in range(8):
        values = (account_id, draft.name, slug, user_id, *settings)
        row = None if any_uuid(slug) else await connection.fetchrow(_INSERT_FOR_USER, *values)
        if row is not None:
            return _account(row)
        # A non-hex character, because a slug must not look like an id.
        slug = f"{stem}-x{secrets.token_hex(4)}"
    raise Conflict("no slug is free for this name; try another")


_CHANGE = f"""
UPDATE accounts SET name = $2, enforce_twofactor = $3, abuse_contact_email = $4, modified_at = now()
WHERE id = $1 AND (name <> $2 OR enforce_twofactor <> $3 OR abuse_contact_email IS DISTINCT FROM $4)
RETURNING {_ACCOUNT}
"""
_RENAME = f"UPDATE accounts SET name = $2, modified_at = now() WHERE id = $1 AND name <> $2 RETURNING {_ACCOUNT}"


async def change(db: Database, caller: Caller, scope: Scope, draft: Draft) -> Account:
    """Rename an account, and replace its settings if there are any; raises Invalid."""
    changes.require_valid(_problems(draft), draft.malformed)
    entry, values = _entry(audit.Action.UPDATE, scope.account_id), (scope.account_id, draft.name)
    if draft.settings is None:
        row = await changes.change(db, caller, entry, _RENAME, *values)
    else:
        row = await changes.change(db, caller, entry, _CHANGE, *values, *msgspec.structs.astuple(draft.settings))
    return _account(row) if row else await get(db, scope)


_USER = """
SELECT u.id, u.email, u.created_at, array_agg(m.account_id) AS accounts, array_agg(m.role) AS roles
FROM users u LEFT JOIN memberships m ON m.user_id = u.id
"""
_INSERT_USER = "INSERT INTO users (id, email) VALUES ($1, $2) RETURNING id"
_ADMINISTER = "INSERT INTO memberships (user_id, account_id, role) VALUES ($1, $2, $3)"
_LEAVE = "DELETE FROM memberships WHERE user_id = $1 AND account_id = $2"
_JOIN = f"{_ADMINISTER} ON CONFLICT (user_id, account_id) DO UPDATE SET role = excluded.role"


async def create_user(db: Database, caller: Caller, email: str) -> User:
    """Create a user without memberships and global key; raises Invalid, and Conflict for an existing email."""
    email = email.lower()
    if not EMAIL.fullmatch(email):
        raise Invalid((Problem(Rule.TEXT, "email", f"{quoted(email)} is not an email address."),))
    user_id = uuid4()
    entry = _user_entry(audit.Action.CREATE, user_id)
    await changes.change(db, caller, entry, _INSERT_USER, user_id, email)
    return await find_user(db, email)


async def list_users(db: Database) -> tuple[User, ...]:
    """All users, for the operator."""
    return _users(await db.fetch(f"{_USER} GROUP BY u.id ORDER BY u.email"))


async def find_user(db: Database, word: str) -> User:
    """A user by id or email, for the operator; raises NotFound."""
    sql = f"{_USER} WHERE u.id = $1 OR u.email = $2 GROUP BY u.id"
    users = _users(await db.fetch(sql, any_uuid(word), word.lower()))
    if not users:
        raise NotFound(f"there is no user {quoted(word)}; `keystead user list` shows them")
    return users[0]


async def own(db: Database, caller: Caller) -> User:
    """The user whose credential it is; raises Forbidden for a token of an account."""
    rows = await db.fetch(f"{_USER} WHERE u.id = $1 GROUP BY u.id", caller.user_id) if caller.user_id else []
    if not rows:
        await audit.denied(db, caller, audit.Resource.USER, caller.id)
        raise Forbidden(Denial.RESOURCE)
    return _users(rows)[0]


async def set_membership(db: Database, caller: Caller, user: User, account: Account, role: Role | None) -> User:
    """Set a user's role in an account; None removes the membership."""

    async def work(connection: Connection) -> None:
        if role is None:
            await connection.execute(_LEAVE, user.id, account.id)
        else:
            await connection.execute(_JOIN, user.id, account.id, role)
        await changes.record(connection, caller, _user_entry(audit.Action.UPDATE, user.id, account.id))

    await db.transaction(work)
    return await find_user(db, user.email)


async def delete_user(db: Database, caller: Caller, user: User) -> None:
    """Delete a user with the user's global key, tokens and memberships."""

    async def work(connection: Connection) -> None:
        await connection.execute("DELETE FROM tokens WHERE user_id = $1", user.id)
        await connection.execute("DELETE FROM users WHERE id = $1", user.id)
        await changes.record(connection, caller, _user_entry(audit.Action.DELETE, user.id))

    await db.transaction(work)


def _entry(action: audit.Action, account_id: UUID) -> Entry:
    return Entry(action, audit.Resource.ACCOUNT, account_id, account_id)


def _user_entry(action: audit.Action, user_id: UUID, account_id: UUID = audit.NO_ACCOUNT) -> Entry:
    return Entry(action, audit.Resource.USER, account_id, user_id)


def _account(row: asyncpg.Record | None) -> Account:
    if row is None:
        raise NotFound("the account was deleted meanwhile", Thing.SCOPE)
    subject = msgspec.json.decode(row["csr_subject"], type=SubjectDefaults)
    return msgspec.convert({**dict(row), "csr_subject": subject}, Account)


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
