"""Accounts, zones, users and memberships: who there is. Every change is audited; texts are bounded by the schema."""

import re
from collections.abc import Sequence
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app import audit, names
from app.db import Connection, Database
from app.errors import Conflict, Invalid, NotFound, Problem, Rule, quoted
from app.model import Account, Caller, NamePolicy, Role, User, Zone

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# ASCII, as it has to fit into the header X-Auth-Email.
_EMAIL = re.compile(r"[\x21-\x3f\x41-\x7e]{1,64}@[\x21-\x3f\x41-\x7e]{1,189}")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _invalid(field: str, text: str) -> Invalid:
    return Invalid((Problem(Rule.TEXT, field, text),))


def checked_name(field: str, value: str, most: int) -> str:
    """A display name as it is; raises Invalid for an empty, long or unprintable one."""
    if not value.strip() or len(value) > most or _FORBIDDEN.search(value):
        raise _invalid(field, f"{field} {quoted(value)} must have 1 to {most} characters and no control characters.")
    return value


_ACCOUNT = "id, name, slug, name_policy, csrs_enabled, csr_quota, key_max_age_days, ca_quota, created_at"
_INSERT_ACCOUNT = f"INSERT INTO accounts (id, name, slug) VALUES ($1, $2, $3) RETURNING {_ACCOUNT}"


async def create_account(db: Database, caller: Caller, slug: str, name: str) -> Account:
    """Raises Invalid, and Conflict for a slug that is taken."""
    if not _SLUG.fullmatch(slug) or _uuid(slug):
        raise _invalid(
            "slug", f"slug {quoted(slug)} must have 1 to 63 of a-z, 0-9 and '-', no '-' at its ends, and not be an id."
        )
    checked_name("name", name, 100)

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
    """By id or slug, for the operator; raises NotFound."""
    row = await db.fetchrow(_FIND_ACCOUNT, _uuid(word), word)
    if row is None:
        raise NotFound(f"there is no account {quoted(word)}")
    return _account(row)


class Changes(msgspec.Struct, frozen=True):
    """What the operator sets on an account or zone; None leaves it, a quota of -1 lifts the bound."""

    name_policy: NamePolicy | None = None
    csrs_enabled: bool | None = None
    csr_quota: int | None = None
    certificate_quota: int | None = None
    key_max_age_days: int | None = None
    ca_quota: int | None = None


_SET_ACCOUNT = f"""
UPDATE accounts SET name_policy = coalesce($2, name_policy), csrs_enabled = coalesce($3, csrs_enabled),
    csr_quota = CASE WHEN $4::int IS NULL THEN csr_quota WHEN $4 < 0 THEN NULL ELSE $4 END,
    key_max_age_days = coalesce($5, key_max_age_days),
    ca_quota = CASE WHEN $6::int IS NULL THEN ca_quota WHEN $6 < 0 THEN NULL ELSE $6 END, modified_at = now()
WHERE id = $1 RETURNING {_ACCOUNT}
"""


async def set_account(db: Database, caller: Caller, account: Account, changes: Changes) -> Account:
    async def work(connection: Connection) -> Account:
        values = (changes.name_policy, changes.csrs_enabled, changes.csr_quota, changes.key_max_age_days)
        row = await connection.fetchrow(_SET_ACCOUNT, account.id, *values, changes.ca_quota)
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
    """Delete an empty account with its tokens and memberships; raises Conflict with the counts of what it holds."""

    async def work(connection: Connection) -> None:
        # Creators take a key share of this row through their foreign key, so they wait and then fail.
        await connection.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", account.id)
        held = await connection.fetchrow(_IN_ACCOUNT, account.id)
        if held is not None and any(held.values()):
            counts = f"{held['csrs']} custom CSRs, {held['certificates']} certificates, {held['authorities']} CAs"
            raise Conflict(f"the account {account.slug} holds {counts} and {held['zones']} zones")
        await connection.execute("DELETE FROM tokens WHERE account_id = $1", account.id)
        await connection.execute("DELETE FROM zones WHERE account_id = $1", account.id)
        await connection.execute("DELETE FROM accounts WHERE id = $1", account.id)
        await _audit(connection, caller, audit.Action.DELETE, audit.Resource.ACCOUNT, account.id, account.id)

    await db.transaction(work)


_ZONE = "id, account_id, name, csrs_enabled, csr_quota, certificate_quota, created_at"
_INSERT_ZONE = f"INSERT INTO zones (id, account_id, name) VALUES ($1, $2, $3) RETURNING {_ZONE}"


async def create_zone(db: Database, caller: Caller, account: Account, name: str) -> Zone:
    """Raises Invalid for a name that is no hostname, and Conflict when the account has it already."""
    broken = names.broken(name, NamePolicy.PRIVATE)
    if broken or "*" in name or len(name) > names.DNS_MAX_NAME:
        raise _invalid("name", broken[1] if broken else f"{quoted(name)} cannot name a zone.")

    async def work(connection: Connection) -> Zone:
        zone = _zone(await connection.fetchrow(_INSERT_ZONE, uuid4(), account.id, name.lower()))
        await _audit(connection, caller, audit.Action.CREATE, audit.Resource.ZONE, zone.account_id, zone.id, zone.id)
        return zone

    return await db.transaction(work)


async def list_zones(db: Database, account: Account | None = None) -> tuple[Zone, ...]:
    """All zones, or those of one account, for the operator."""
    sql = f"SELECT {_ZONE} FROM zones WHERE deleted_at IS NULL AND ($1::uuid IS NULL OR account_id = $1) ORDER BY name"
    return tuple(_zone(row) for row in await db.fetch(sql, account.id if account else None))


_FIND_ZONE = f"SELECT {_ZONE} FROM zones WHERE deleted_at IS NULL AND (id = $1 OR name = $2)"


async def find_zone(db: Database, word: str) -> Zone:
    """By id or name, for the operator; raises NotFound, and Conflict when several accounts have the name."""
    rows = await db.fetch(_FIND_ZONE, _uuid(word), word.lower())
    if not rows:
        raise NotFound(f"there is no zone {quoted(word)}")
    if len(rows) > 1:
        raise Conflict(f"{len(rows)} accounts have a zone {quoted(word)}; name it by its id")
    return _zone(rows[0])


async def find_zone_in(db: Database, account: Account, word: str) -> Zone:
    """A zone of this account, by id or name; raises NotFound."""
    wanted = (_uuid(word), word.lower())
    for zone in await list_zones(db, account):
        if zone.id == wanted[0] or zone.name == wanted[1]:
            return zone
    raise NotFound(f"there is no zone {quoted(word)} in the account {account.slug}")


_SET_ZONE = f"""
UPDATE zones SET csrs_enabled = coalesce($2, csrs_enabled),
    csr_quota = CASE WHEN $3::int IS NULL THEN csr_quota WHEN $3 < 0 THEN NULL ELSE $3 END,
    certificate_quota = CASE WHEN $4::int IS NULL THEN certificate_quota WHEN $4 < 0 THEN NULL ELSE $4 END,
    modified_at = now()
WHERE id = $1 RETURNING {_ZONE}
"""


async def set_zone(db: Database, caller: Caller, zone: Zone, changes: Changes) -> Zone:
    async def work(connection: Connection) -> Zone:
        values = (changes.csrs_enabled, changes.csr_quota, changes.certificate_quota)
        row = await connection.fetchrow(_SET_ZONE, zone.id, *values)
        await _audit(connection, caller, audit.Action.UPDATE, audit.Resource.ZONE, zone.account_id, zone.id, zone.id)
        return _zone(row)

    return await db.transaction(work)


_IN_ZONE = """
SELECT (SELECT count(*) FROM custom_csrs WHERE account_id = $1 AND scope_id = $2) AS csrs,
       (SELECT count(*) FROM custom_certificates WHERE account_id = $1 AND zone_id = $2) AS certificates
"""


async def delete_zone(db: Database, caller: Caller, zone: Zone) -> None:
    """Delete a zone without CSRs and certificates; raises Conflict with their counts."""

    async def work(connection: Connection) -> None:
        await connection.execute("SELECT FROM zones WHERE id = $1 FOR UPDATE", zone.id)
        held = await connection.fetchrow(_IN_ZONE, zone.account_id, zone.id)
        if held is not None and any(held.values()):
            counts = f"{held['csrs']} custom CSRs and {held['certificates']} certificates"
            raise Conflict(f"the zone {zone.name} holds {counts}")
        await connection.execute("UPDATE zones SET deleted_at = now() WHERE id = $1", zone.id)
        await _audit(connection, caller, audit.Action.DELETE, audit.Resource.ZONE, zone.account_id, zone.id, zone.id)

    await db.transaction(work)


_USER = """
SELECT u.id, u.email, u.created_at, array_agg(m.account_id) AS accounts, array_agg(m.role) AS roles
FROM users u LEFT JOIN memberships m ON m.user_id = u.id
"""
_INSERT_USER = "INSERT INTO users (id, email) VALUES ($1, $2)"
_JOIN = """
INSERT INTO memberships (user_id, account_id, role) VALUES ($1, $2, $3)
ON CONFLICT (user_id, account_id) DO UPDATE SET role = excluded.role
"""


async def create_user(db: Database, caller: Caller, email: str) -> User:
    """A user without memberships and without a global key; raises Invalid, and Conflict for a known email."""
    email = email.lower()
    if not _EMAIL.fullmatch(email):
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
    """By id or email, for the operator; raises NotFound."""
    users = _users(await db.fetch(f"{_USER} WHERE u.id = $1 OR u.email = $2 GROUP BY u.id", _uuid(word), word.lower()))
    if not users:
        raise NotFound(f"there is no user {quoted(word)}")
    return users[0]


async def set_membership(db: Database, caller: Caller, user: User, account: Account, role: Role | None) -> User:
    """Give a user a role in an account; None takes the membership away."""

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
    """Delete a user with the global key, the tokens and the memberships."""

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


def _zone(row: asyncpg.Record | None) -> Zone:
    return msgspec.convert(dict(row or ()), Zone)


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


def _uuid(word: str) -> UUID | None:
    try:
        return UUID(word)
    except ValueError:
        return None
