"""Policies, profiles and applications: what may be issued, by which CA, and for what (contract-infisical)."""

from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import msgspec

from keystead.audit import record as audit
from keystead.ca import authorities, policies
from keystead.ca.policies import ExtendedKeyUsage, KeyAlgorithm, KeyUsage, Rules
from keystead.caller import Caller, Level, Scope
from keystead.errors import Invalid, NotFound, Problem, Refusal
from keystead.store import scopes
from keystead.store.database import Connection, Database, parameters
from keystead.x509 import subjects

# Lists have no pages.
MOST = 1000
MAX_DESCRIPTION = 1000
# A statement of its own, or one of a transaction.
Source: TypeAlias = Database | Connection


class Policy(msgspec.Struct, frozen=True):
    id: UUID
    account_id: UUID
    name: str
    description: str | None
    rules: Rules
    created_at: datetime
    modified_at: datetime


class Defaults(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """What a request need not say."""

    ttl_days: int | None = None
    common_name: str | None = None
    key_algorithm: KeyAlgorithm | None = None
    key_usages: tuple[KeyUsage, ...] | None = None
    extended_key_usages: tuple[ExtendedKeyUsage, ...] | None = None
    organization: str | None = None
    organizational_unit: str | None = None
    country: str | None = None
    state: str | None = None
    locality: str | None = None


class Profile(msgspec.Struct, frozen=True):
    id: UUID
    account_id: UUID
    slug: str
    description: str | None
    ca_id: UUID
    policy_id: UUID
    defaults: Defaults
    created_at: datetime
    modified_at: datetime


class Application(msgspec.Struct, frozen=True):
    id: UUID
    account_id: UUID
    name: str
    description: str | None
    created_at: datetime
    modified_at: datetime


class Link(msgspec.Struct, frozen=True):
    """A profile that an application may use; without `enrollment_id` it is switched off."""

    application_id: UUID
    profile_id: UUID
    profile_slug: str
    profile_description: str | None
    enrollment_id: UUID | None
    auto_renew: bool
    renew_before_days: int | None
    created_at: datetime
    modified_at: datetime


class Noun(msgspec.Struct, frozen=True):
    """A table of these nouns: its columns for the user, the column of its name, and how it is called."""

    table: str
    columns: tuple[str, ...]
    name: str
    word: str
    resource: audit.Resource


POLICY = Noun(
    "certificate_policies",
    ("name", "description", "rules"),
    "name",
    "Certificate policy",
    audit.Resource.CERTIFICATE_POLICY,
)
PROFILE = Noun(
    "certificate_profiles",
    ("slug", "description", "ca_id", "policy_id", "defaults"),
    "slug",
    "Certificate profile",
    audit.Resource.CERTIFICATE_PROFILE,
)
APPLICATION = Noun("applications", ("name", "description"), "name", "Application", audit.Resource.APPLICATION)
NOUNS = (POLICY, PROFILE, APPLICATION)
_FIXED = {"ca_id"}


def _audited(change: str, first: int) -> str:
    return f"""
WITH changed AS ({change} RETURNING account_id, id, NULL::uuid AS zone_id),
audit AS ({audit.insert(first, "changed")})
SELECT id FROM changed
"""


def _insert(noun: Noun) -> str:
    columns = ", ".join(noun.columns)
    return _audited(
        f"INSERT INTO {noun.table} (account_id, id, {columns}) SELECT {parameters(1, 2 + len(noun.columns))} "
        f"WHERE (SELECT count(*) FROM {noun.table} WHERE account_id = $1) < {MOST}",
        3 + len(noun.columns),
    )


def _update(noun: Noun) -> str:
    columns = [column for column in noun.columns if column not in _FIXED]
    changed = ", ".join(f"{column} = ${3 + index}" for index, column in enumerate(columns))
    sql = f"UPDATE {noun.table} SET {changed}, modified_at = now() WHERE account_id = $1 AND id = $2"
    return _audited(sql, 3 + len(columns))


def _selected(noun: Noun) -> str:
    columns = ", ".join(noun.columns)
    return f"SELECT account_id, id, {columns}, created_at, modified_at FROM {noun.table} WHERE account_id = $1"


_INSERT = {noun: _insert(noun) for noun in NOUNS}
_UPDATE = {noun: _update(noun) for noun in NOUNS}
_DELETE = {noun: _audited(f"DELETE FROM {noun.table} WHERE account_id = $1 AND id = $2", 3) for noun in NOUNS}
_LIST = {noun: f"{_selected(noun)} ORDER BY created_at, id LIMIT {MOST}" for noun in NOUNS}
_GET = {noun: f"{_selected(noun)} AND id = $2" for noun in NOUNS}
_NAMED = {noun: f"{_selected(noun)} AND {noun.name} = $2" for noun in NOUNS}
_SCOPE = {
    noun: f"SELECT {scopes.COLUMNS[Level.ACCOUNT]} FROM accounts a JOIN {noun.table} n ON n.account_id = a.id "
    "WHERE n.account_id = ANY($1::uuid[]) AND n.id = $2"
    for noun in NOUNS
}
_STRUCTS: dict[Noun, type[Any]] = {POLICY: Policy, PROFILE: Profile, APPLICATION: Application}


def missing(noun: Noun, word: object) -> NotFound:
    return NotFound(f"{noun.word} '{word}' not found")


async def scope_of(db: Database, caller: Caller, noun: Noun, id_: UUID) -> Scope:
    """The scope of the account of a policy, profile or application, if the caller reaches it; raises NotFound."""
    row = await db.fetchrow(_SCOPE[noun], list(caller.reach), id_)
    if row is None:
        raise missing(noun, id_)
    return scopes.of_row(row)


def _made(noun: Noun, row: Any) -> Any:  # noqa: ANN401 - a record, and one of _STRUCTS
    values = dict(row)
    for name, struct in (("rules", Rules), ("defaults", Defaults)):
        if name in values:
            values[name] = msgspec.json.decode(values[name], type=struct)
    return msgspec.convert(values, _STRUCTS[noun])


async def note(db: Database, caller: Caller, scope: Scope, noun: Noun, id_: UUID | None = None) -> None:
    """Write an audit entry for a read of one of them, or of a list, which is one of the account."""
    await audit.record(db, caller, audit.Action.READ, noun.resource, (scope.account_id, id_ or scope.account_id, None))


async def _one(db: Source, scope: Scope, noun: Noun, sql: str, word: object) -> Any:  # noqa: ANN401
    row = await db.fetchrow(sql, scope.account_id, word)
    if row is None:
        raise missing(noun, word)
    return _made(noun, row)


async def policy(db: Source, scope: Scope, id_: UUID) -> Policy:
    found: Policy = await _one(db, scope, POLICY, _GET[POLICY], id_)
    return found


async def profile(db: Source, scope: Scope, id_: UUID) -> Profile:
    found: Profile = await _one(db, scope, PROFILE, _GET[PROFILE], id_)
    return found


async def profile_by_slug(db: Database, scope: Scope, slug: str) -> Profile:
    found: Profile = await _one(db, scope, PROFILE, _NAMED[PROFILE], authorities.text_or_none(slug))
    return found


async def application(db: Source, scope: Scope, id_: UUID) -> Application:
    found: Application = await _one(db, scope, APPLICATION, _GET[APPLICATION], id_)
    return found


async def application_by_name(db: Database, scope: Scope, name: str) -> Application:
    found: Application = await _one(db, scope, APPLICATION, _NAMED[APPLICATION], authorities.text_or_none(name))
    return found


async def list_policies(db: Database, scope: Scope) -> tuple[Policy, ...]:
    return tuple(_made(POLICY, row) for row in await db.fetch(_LIST[POLICY], scope.account_id))


async def list_profiles(db: Database, scope: Scope) -> tuple[Profile, ...]:
    return tuple(_made(PROFILE, row) for row in await db.fetch(_LIST[PROFILE], scope.account_id))


async def list_applications(db: Database, scope: Scope) -> tuple[Application, ...]:
    return tuple(_made(APPLICATION, row) for row in await db.fetch(_LIST[APPLICATION], scope.account_id))


def _require(noun: Noun, name: str, description: str | None, more: tuple[Problem, ...] = ()) -> None:
    found = [*authorities.name_problems(noun.name, name), *more]
    if description:
        found += subjects.text("description", description, MAX_DESCRIPTION)
    if found:
        raise Invalid(tuple(found))


async def _insert_one(db: Source, caller: Caller, scope: Scope, noun: Noun, *values: object) -> UUID:
    id_ = uuid4()
    audited = audit.values(caller, audit.Action.CREATE, noun.resource)
    if await db.fetchrow(_INSERT[noun], scope.account_id, id_, *values, *audited) is None:
        raise Refusal(f"This project has {MOST} of these already; delete one")
    return id_


class NewPolicy(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    rules: Rules = Rules()


async def create_policy(db: Source, caller: Caller, scope: Scope, new: NewPolicy) -> Policy:
    """Raises Invalid, Conflict for a name that is taken, and Refusal above the quota."""
    _require(POLICY, new.name, new.description, policies.problems(new.rules))
    id_ = await _insert_one(db, caller, scope, POLICY, new.name, new.description, _json(new.rules))
    return await policy(db, scope, id_)


async def change_policy(db: Database, caller: Caller, scope: Scope, new: Policy) -> Policy:
    """Replace name, description and rules; raises Invalid, Conflict and NotFound."""
    _require(POLICY, new.name, new.description, policies.problems(new.rules))
    await _change(db, caller, scope, POLICY, new.id, new.name, new.description, _json(new.rules))
    return await policy(db, scope, new.id)


class NewProfile(msgspec.Struct, frozen=True):
    slug: str
    ca_id: UUID
    policy_id: UUID
    description: str | None = None
    defaults: Defaults = Defaults()


async def create_profile(db: Source, caller: Caller, scope: Scope, new: NewProfile) -> Profile:
    """Raises Invalid, NotFound for a CA or policy that is not of this account, Conflict, and Refusal."""
    _require(PROFILE, new.slug, new.description)
    await authorities.get(db, scope, new.ca_id)
    await policy(db, scope, new.policy_id)
    values = (new.slug, new.description, new.ca_id, new.policy_id, _json(new.defaults))
    return await profile(db, scope, await _insert_one(db, caller, scope, PROFILE, *values))


async def change_profile(db: Database, caller: Caller, scope: Scope, new: Profile) -> Profile:
    """Replace all but its CA; raises Invalid, Conflict and NotFound."""
    _require(PROFILE, new.slug, new.description)
    await policy(db, scope, new.policy_id)
    values = (new.slug, new.description, new.policy_id, _json(new.defaults))
    await _change(db, caller, scope, PROFILE, new.id, *values)
    return await profile(db, scope, new.id)


class NewApplication(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    profile_ids: tuple[UUID, ...] = ()


async def create_application(db: Database, caller: Caller, scope: Scope, new: NewApplication) -> Application:
    """Raises Invalid, NotFound for a profile, Conflict for a name that is taken, and Refusal above the quota."""
    _require(APPLICATION, new.name, new.description)

    async def work(connection: Connection) -> Application:
        id_ = await _insert_one(connection, caller, scope, APPLICATION, new.name, new.description)
        await _attach(connection, caller, scope, id_, new.profile_ids)
        return await application(connection, scope, id_)

    return await db.transaction(work)


async def change_application(db: Database, caller: Caller, scope: Scope, new: Application) -> Application:
    """Replace name and description; raises Invalid, Conflict and NotFound."""
    _require(APPLICATION, new.name, new.description)
    await _change(db, caller, scope, APPLICATION, new.id, new.name, new.description)
    return await application(db, scope, new.id)


async def _change(db: Database, caller: Caller, scope: Scope, noun: Noun, id_: UUID, *values: object) -> None:
    audited = audit.values(caller, audit.Action.UPDATE, noun.resource)
    if await db.fetchrow(_UPDATE[noun], scope.account_id, id_, *values, *audited) is None:
        raise missing(noun, id_)


async def delete(db: Database, caller: Caller, scope: Scope, noun: Noun, id_: UUID) -> None:
    """Raises NotFound, and Conflict for a policy or profile that is used, and for an application with profiles."""
    audited = audit.values(caller, audit.Action.DELETE, noun.resource)
    if await db.fetchrow(_DELETE[noun], scope.account_id, id_, *audited) is None:
        raise missing(noun, id_)


def _json(value: Rules | Defaults) -> str:
    return msgspec.json.encode(value).decode()


_LINKS = """
SELECT l.application_id, l.profile_id, p.slug AS profile_slug, p.description AS profile_description, l.enrollment_id,
       l.auto_renew, l.renew_before_days, l.created_at, l.modified_at
FROM application_profiles l JOIN certificate_profiles p ON p.account_id = l.account_id AND p.id = l.profile_id
WHERE l.account_id = $1 AND l.application_id = $2
"""
_ATTACH = """
INSERT INTO application_profiles (account_id, application_id, profile_id, enrollment_id)
VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
"""
_DETACH = "DELETE FROM application_profiles WHERE account_id = $1 AND application_id = $2 AND profile_id = $3"
_ENROLL = """
UPDATE application_profiles SET enrollment_id = $4, auto_renew = $5, renew_before_days = $6, modified_at = now()
WHERE account_id = $1 AND application_id = $2 AND profile_id = $3
"""


async def links(db: Database, scope: Scope, application_id: UUID) -> tuple[Link, ...]:
    """The profiles of an application, the oldest first; raises NotFound."""
    await application(db, scope, application_id)
    rows = await db.fetch(f"{_LINKS} ORDER BY l.created_at, l.profile_id", scope.account_id, application_id)
    return tuple(msgspec.convert(dict(row), Link) for row in rows)


async def link(db: Database, scope: Scope, application_id: UUID, profile_id: UUID) -> Link:
    """Raises NotFound."""
    row = await db.fetchrow(f"{_LINKS} AND l.profile_id = $3", scope.account_id, application_id, profile_id)
    if row is None:
        raise NotFound(f"Profile '{profile_id}' is not attached to application '{application_id}'")
    return msgspec.convert(dict(row), Link)


async def attach(
    db: Database, caller: Caller, scope: Scope, application_id: UUID, profile_ids: tuple[UUID, ...]
) -> tuple[Link, ...]:
    """Let an application use profiles, all or none; those that it has stay as they are. Raises NotFound."""
    await application(db, scope, application_id)
    await db.transaction(lambda connection: _attach(connection, caller, scope, application_id, profile_ids))
    return await links(db, scope, application_id)


async def _attach(
    connection: Connection, caller: Caller, scope: Scope, application_id: UUID, profile_ids: tuple[UUID, ...]
) -> None:
    for profile_id in profile_ids:
        await profile(connection, scope, profile_id)
        await _relate(connection, caller, scope, _ATTACH, application_id, profile_id, uuid4())


async def detach(db: Database, caller: Caller, scope: Scope, application_id: UUID, profile_id: UUID) -> None:
    """Let an application no longer use a profile, if it did."""
    await db.transaction(lambda connection: _relate(connection, caller, scope, _DETACH, application_id, profile_id))


class Enrollment(msgspec.Struct, frozen=True):
    auto_renew: bool = False
    renew_before_days: int | None = None


async def enroll(db: Database, caller: Caller, scope: Scope, ids: tuple[UUID, UUID], wanted: Enrollment | None) -> Link:
    """Let the API issue for an application and profile, or no longer when `wanted` is None; raises NotFound."""
    found = await link(db, scope, *ids)
    settings = wanted or Enrollment()
    id_ = (found.enrollment_id or uuid4()) if wanted else None
    values = (*ids, id_, settings.auto_renew, settings.renew_before_days)
    await db.transaction(lambda connection: _relate(connection, caller, scope, _ENROLL, *values))
    return await link(db, scope, *ids)


async def _relate(connection: Connection, caller: Caller, scope: Scope, sql: str, *values: Any) -> None:  # noqa: ANN401
    await connection.execute(sql, scope.account_id, *values)
    ids = (scope.account_id, values[0], None)
    await audit.record(connection, caller, audit.Action.UPDATE, audit.Resource.APPLICATION, ids)
