"""Certificate authorities: create, read, change and delete (contract-infisical, "CAs")."""

import re
from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
from cryptography import x509

from keystead.audit import record as audit
from keystead.ca import issuing
from keystead.ca.model import Authority, CaType, NotAfterPolicy
from keystead.caller import Caller, Level, Scope
from keystead.custody import keyring
from keystead.errors import Invalid, NotFound, Problem, Refusal, Rule, quoted
from keystead.remembered import Remembered
from keystead.services import Services
from keystead.store import expiry, locks, scopes
from keystead.store.database import Connection, Database, parameters
from keystead.store.locks import Lock
from keystead.x509 import subjects
from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject

MAX_FRIENDLY_NAME = 255
# Lists have no pages, so this bound on the CAs of an account also bounds a list.
MAX_AUTHORITIES = 1000
MAX_PATH_LENGTH = 100


class NewAuthority(msgspec.Struct, frozen=True):
    """A request for a new CA. The dates are for a root's own certificate; `max_path_length` -1 means no limit."""

    type: CaType
    subject: CaSubject
    key_type: CaKeyType = CaKeyType.RSA2048
    friendly_name: str | None = None
    max_path_length: int = -1
    not_before: datetime | None = None
    not_after: datetime | None = None
    requires_template: bool = False
    name: str | None = None
    not_after_policy: NotAfterPolicy = NotAfterPolicy.REFUSE
    disabled: bool = False


def subject_problems(subject: CaSubject) -> list[Problem]:
    """The problems of the fields that are not empty; pure."""
    found: list[Problem] = []
    for field, value in msgspec.structs.asdict(subject).items():
        if value and field == "country":
            found += subjects.country(field, value)
        elif value:
            found += subjects.text(field, value, subjects.UPPER_BOUNDS[field])
    return found


def problems(new: NewAuthority) -> tuple[Problem, ...]:
    """The problems of single fields; pure."""
    found: list[Problem] = []
    if not any(msgspec.structs.astuple(new.subject)):
        text = "common_name is empty, as is all of the name; at least one of its fields is required."
        found.append(Problem(Rule.MISSING, "common_name", text))
    found += subject_problems(new.subject)
    found += name_problems("name", new.name)
    if new.friendly_name:
        found += subjects.text("friendly_name", new.friendly_name, MAX_FRIENDLY_NAME)
    return tuple(found)


_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


def name_problems(field: str, name: str | None) -> tuple[Problem, ...]:
    """For names that stand in URLs and configuration: CAs, policies, profiles, applications."""
    if name is None or _NAME.fullmatch(name):
        return ()
    text = f"{field} is {quoted(name)}; it must have 1 to 64 of a-z, 0-9 and '-', and no '-' at its ends."
    return (Problem(Rule.TEXT, field, text),)


_CA = (
    "account_id, id, type, friendly_name, country, organization, organizational_unit, state, common_name, locality, "
    "max_path_length, requires_template, key_type, spki_sha256, name, not_after_policy, disabled"
)
_CA_PARAMETERS = 17
_INSERT = f"""
WITH key AS ({keyring.insert_key(1)} RETURNING id),
ca AS (
    INSERT INTO certificate_authorities (key_id, {_CA})
    SELECT key.id, {parameters(1 + keyring.KEY_PARAMETERS, _CA_PARAMETERS)} FROM key
    RETURNING account_id, id, NULL::uuid AS zone_id
),
crl AS (INSERT INTO crls (account_id, ca_id) SELECT account_id, id FROM ca),
audit AS ({audit.insert(1 + keyring.KEY_PARAMETERS + _CA_PARAMETERS, "ca")})
SELECT id FROM ca
"""


async def insert(services: Services, caller: Caller, scope: Scope, new: NewAuthority) -> Authority:
    """Create a CA with its key, without a certificate; raises Refusal above the quota, and Unavailable."""
    # Fails early, before a key is generated; the transaction checks again.
    await _check_quota(services.db, scope)
    pair = await services.pool.take(new.key_type)
    key, ca_id = keyring.new_key(services.ring, scope.account_id, pair), uuid4()
    values = (
        *key.row,
        *(scope.account_id, ca_id, new.type.value, new.friendly_name or None, *msgspec.structs.astuple(new.subject)),
        *(new.max_path_length, new.requires_template, new.key_type.value, pair.spki_sha256),
        *(new.name, new.not_after_policy.value, new.disabled),
        *audit.values(caller, audit.Action.CREATE, audit.Resource.CERTIFICATE_AUTHORITY),
    )

    async def work(connection: Connection) -> None:
        # Serialises creators, so that each counts the CAs of those before it.
        await locks.lock(services.db, connection, Scope(scope.account_id), Lock.ALONE)
        await _check_quota(connection, scope)
        await connection.execute(_INSERT, *values)

    await services.db.transaction(work)
    return await get(services.db, scope, ca_id)


_COUNT = "SELECT count(*) FROM certificate_authorities WHERE account_id = $1"


async def _check_quota(db: Database | Connection, scope: Scope) -> None:
    quota = MAX_AUTHORITIES if scope.ca_quota is None else min(scope.ca_quota, MAX_AUTHORITIES)
    row = await db.fetchrow(_COUNT, scope.account_id)
    if row and row[0] >= quota:
        raise Refusal(f"The quota of {quota} CAs of this project is used up; delete one, or ask the operator for more")


_LATEST = """
SELECT v.id AS certificate_id, v.version, v.serial, v.path_length, v.not_before, v.not_after, v.pem, v.chain, EXISTS (
    SELECT FROM issued_certificates i
    WHERE i.account_id = v.account_id AND i.serial = v.serial AND i.spki_sha256 = c.spki_sha256
      AND i.revoked_at IS NOT NULL
) AS revoked
FROM ca_certificates v WHERE v.account_id = c.account_id AND v.ca_id = c.id ORDER BY v.version DESC LIMIT 1
"""
_SELECT = f"""
SELECT {", ".join(f"c.{name}" for name in _CA.split(", "))}, c.parent_id, c.key_id, c.created_at,
       c.modified_at, v.*
FROM certificate_authorities c LEFT JOIN LATERAL ({_LATEST}) v ON true
"""
# Lists omit the PEM: a thousand chains are large.
_LISTED = _SELECT.replace("v.pem, v.chain", "'' AS pem, '' AS chain")
_GET = f"{_SELECT} WHERE c.account_id = $1 AND c.id = $2"


async def get(db: Database | Connection, scope: Scope, ca_id: UUID) -> Authority:
    """One CA of this account; raises NotFound."""
    row = await db.fetchrow(_GET, scope.account_id, ca_id)
    if row is None:
        raise issuing.no_ca(ca_id)
    return _authority(row)


_ID = """
SELECT id, id::text = $2 OR name IS NOT DISTINCT FROM $2 AS unique FROM certificate_authorities
WHERE account_id = $1 AND (id::text = $2 OR name = $2 OR friendly_name = $2 OR common_name = $2)
ORDER BY id::text = $2 DESC, name IS NOT DISTINCT FROM $2 DESC LIMIT 2
"""


async def id_of(db: Database, scope: Scope, word: str) -> UUID | None:
    """The id of a CA of this account, by its id or one of its names; None if there is none, or several."""
    # PostgreSQL stores neither U+0000 nor surrogates.
    rows = await db.fetch(_ID, scope.account_id, word) if word.isprintable() else []
    return rows[0]["id"] if rows and (len(rows) == 1 or rows[0]["unique"]) else None


_LIST = f"{_LISTED} WHERE c.account_id = $1 ORDER BY c.created_at, c.id LIMIT {MAX_AUTHORITIES}"


def certificate_of(authority: Authority) -> x509.Certificate:
    """The latest certificate of a CA; raises Refusal when there is none, and CertificateDamaged."""
    return issuing.read_of(f"CA '{authority.id}'", issuing.latest(authority).pem)[0]


async def viewed(db: Database, caller: Caller, scope: Scope, ca_id: UUID) -> Authority:
    """One CA of this account, for a caller; audited. Raises NotFound."""
    authority = await get(db, scope, ca_id)
    await note(db, caller, authority)
    return authority


async def list_(db: Database, caller: Caller, scope: Scope) -> tuple[Authority, ...]:
    """All CAs of this account, oldest first; audited as a read of the account."""
    ids = (scope.account_id, scope.account_id, None)
    await audit.record(db, caller, audit.Action.READ, audit.Resource.CERTIFICATE_AUTHORITY, ids)
    return tuple(_authority(row) for row in await db.fetch(_LIST, scope.account_id))


_SCOPE = f"SELECT {scopes.COLUMNS[Level.ACCOUNT]} FROM accounts a"
_OF_CA = (
    f"{_SCOPE} JOIN certificate_authorities c ON c.account_id = a.id WHERE c.account_id = ANY($1::uuid[]) AND c.id = $2"
)
_OF_PROJECT = f"{_SCOPE} WHERE a.id = ANY($1::uuid[]) AND (a.slug = $2 OR a.id = $3)"


async def _scope(db: Database, missing: NotFound, sql: str, *values: object) -> Scope:
    row = await db.fetchrow(sql, *values)
    if row is None:
        raise missing
    return scopes.of_row(row)


# Of CAs that were named just now. Who reaches them is not remembered here.
_scopes: Remembered[tuple[Database, UUID], Scope] = Remembered()


async def scope_of_ca(db: Database, caller: Caller, ca_id: UUID, seconds: float) -> Scope:
    """The scope of a CA's account, remembered for `seconds`, if the caller reaches it; raises NotFound."""
    missing = issuing.no_ca(ca_id)
    scope = await _scopes.get((db, ca_id), seconds, lambda: _scope(db, missing, _OF_CA, list(caller.reach), ca_id))
    if scope.account_id not in caller.reach:
        raise missing
    return scope


def text_or_none(name: str) -> str | None:
    """A name to look up; None, which equals nothing, for one that PostgreSQL rejects in a parameter, as with NUL."""
    return name if name.isascii() and name.isprintable() else None


async def scope_of_slug(db: Database, caller: Caller, slug: str) -> Scope:
    """The account with this slug, if the caller reaches it; raises NotFound."""
    missing = NotFound(f"Project with slug '{slug}' not found")
    return await _scope(db, missing, _OF_PROJECT, list(caller.reach), text_or_none(slug), None)


async def scope_of_only(db: Database, caller: Caller) -> Scope | None:
    """The account of a caller who reaches one alone; None for others."""
    return await scope_of_account(db, caller, next(iter(caller.reach))) if len(caller.reach) == 1 else None


async def name_of_account(db: Database, scope: Scope) -> tuple[str, str]:
    """The name and slug of an account; raises NotFound."""
    row = await db.fetchrow("SELECT name, slug FROM accounts WHERE id = $1", scope.account_id)
    if row is None:
        raise NotFound(f"Project with ID '{scope.account_id}' not found")
    return row["name"], row["slug"]


async def scope_of_account(db: Database, caller: Caller, account_id: UUID) -> Scope:
    """The account with this id, if the caller reaches it; raises NotFound."""
    missing = NotFound(f"Project with ID '{account_id}' not found")
    return await _scope(db, missing, _OF_PROJECT, list(caller.reach), None, account_id)


class Changes(msgspec.Struct, frozen=True):
    """Changes to a CA; None leaves a field as it is. `may_be_pending` lets one without certificate be enabled."""

    disabled: bool | None = None
    requires_template: bool | None = None
    name: str | None = None
    not_after_policy: NotAfterPolicy | None = None
    may_be_pending: bool = False


_UPDATE = f"""
WITH ca AS (
    UPDATE certificate_authorities SET disabled = coalesce($3, disabled),
        requires_template = coalesce($4, requires_template), name = coalesce($5, name),
        not_after_policy = coalesce($6, not_after_policy), modified_at = now()
    WHERE account_id = $1 AND id = $2 AND ($3::boolean IS DISTINCT FROM false OR $7 OR EXISTS (
        SELECT FROM ca_certificates v WHERE v.account_id = $1 AND v.ca_id = $2
    ))
    RETURNING account_id, id, NULL::uuid AS zone_id
),
audit AS ({audit.insert(8, "ca")})
SELECT id FROM ca
"""


async def change(db: Database, caller: Caller, scope: Scope, ca_id: UUID, changes: Changes) -> Authority:
    """Change a CA; raises NotFound, Invalid, Conflict, and Refusal to enable one without a certificate."""
    found = name_problems("name", changes.name)
    if found:
        raise Invalid(found)
    audited = audit.values(caller, audit.Action.UPDATE, audit.Resource.CERTIFICATE_AUTHORITY)
    changed = await db.fetchrow(_UPDATE, scope.account_id, ca_id, *msgspec.structs.astuple(changes), *audited)
    authority = await get(db, scope, ca_id)
    if changed is None:
        raise Refusal("CA does not have a certificate installed, so it cannot be active")
    return authority


# A root's own certificate does not prevent its deletion.
_HELD = """
SELECT (SELECT count(*) FROM certificate_authorities WHERE account_id = $1 AND parent_id = $2) AS authorities,
       (SELECT count(*) FROM issued_certificates
        WHERE account_id = $1 AND ca_id = $2 AND profile <> 'root' AND not_after > now()) AS certificates
"""
_DELETE = f"""
WITH ca AS (
    DELETE FROM certificate_authorities WHERE account_id = $1 AND id = $2
    RETURNING account_id, id, key_id
),
key AS ({keyring.delete_key("ca")})
SELECT id FROM ca
"""


class Held(msgspec.Struct, frozen=True):
    """How many CAs are below a CA, and how many certificates of it have not expired."""

    authorities: int
    certificates: int


async def lock(connection: Connection, scope: Scope, ca_id: UUID) -> None:
    """Before a deletion: concurrent issuance waits for this lock, and then finds no CA."""
    sql = "SELECT FROM certificate_authorities WHERE account_id = $1 AND id = $2 FOR UPDATE"
    await connection.execute(sql, scope.account_id, ca_id)


async def held(connection: Connection, authority: Authority) -> Held:
    row = await connection.fetchrow(_HELD, authority.account_id, authority.id)
    return msgspec.convert(dict(row or {}), Held)


async def destroy(connection: Connection, caller: Caller, authority: Authority) -> None:
    """Delete a CA and its key, audited, whatever depends on it."""
    await connection.execute(_DELETE, authority.account_id, authority.id)
    await note(connection, caller, authority, audit.Action.DELETE)


async def delete(db: Database, caller: Caller, scope: Scope, ca_id: UUID) -> Authority:
    """Delete a CA and destroy its key; raises NotFound, and Refusal while it has sub-CAs or unexpired certificates."""

    async def work(connection: Connection) -> Authority:
        await lock(connection, scope, ca_id)
        found = await get(connection, scope, ca_id)
        keeps = await held(connection, found)
        if keeps.authorities or keeps.certificates:
            counts = f"{keeps.authorities} sub-CAs and {keeps.certificates} certificates that have not expired"
            raise Refusal(f"CA cannot be deleted: it has {counts}")
        await destroy(connection, caller, found)
        return found

    return await db.transaction(work)


async def note(
    db: Database | Connection, caller: Caller, authority: Authority, action: audit.Action = audit.Action.READ
) -> None:
    """Write an audit entry for an action on a CA."""
    ids = (authority.account_id, authority.id, None)
    await audit.record(db, caller, action, audit.Resource.CERTIFICATE_AUTHORITY, ids)


async def find(db: Database, word: str) -> tuple[Scope, Authority]:
    """A CA by id, friendly name or common name, for the operator; raises NotFound, and Refusal if ambiguous."""
    rows = await db.fetch(_FIND, word)
    if not rows:
        raise NotFound(f"there is no CA {quoted(word)}; `keystead ca list` shows their ids")
    if len(rows) > 1 and str(rows[0]["id"]) != word:
        raise Refusal(f"several CAs are named {quoted(word)}; use the id")
    return await scopes.load(db, rows[0]["account_id"]), _authority(rows[0])


_FIND = f"""
{_SELECT} WHERE c.id::text = $1 OR c.friendly_name = $1 OR c.common_name = $1
ORDER BY c.id::text = $1 DESC LIMIT 2
"""
_ALL = f"{_LISTED} WHERE $1::uuid IS NULL OR c.account_id = $1 ORDER BY c.created_at, c.id"


async def for_operator(db: Database, account_id: UUID | None = None) -> tuple[Authority, ...]:
    """The CAs of one account or of all, oldest first."""
    return tuple(_authority(row) for row in await db.fetch(_ALL, account_id))


_BY_EXPIRY = expiry.by_expiry("""
    SELECT DISTINCT ON (v.account_id, v.ca_id) v.not_after AS ends FROM ca_certificates v
    JOIN certificate_authorities c ON c.account_id = v.account_id AND c.id = v.ca_id
    WHERE NOT c.disabled ORDER BY v.account_id, v.ca_id, v.version DESC
""")


async def by_expiry(db: Database) -> dict[str, int]:
    """Counts of the CAs that may sign by the expiry of the certificate that they sign under."""
    return await expiry.counted(db, _BY_EXPIRY)


def _authority(row: asyncpg.Record) -> Authority:
    values = dict(row)
    certificate = None if row["version"] is None else {**values, "id": row["certificate_id"]}
    return msgspec.convert({**values, "subject": values, "certificate": certificate}, Authority)
