"""Writing audit log entries: for each change, in its transaction, and for each denied attempt."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_interface
from uuid import UUID, uuid4

from keystead import visible
from keystead.addresses import Network
from keystead.caller import Actor, Caller, Scope
from keystead.store.database import Connection, Database, encoded, parameters, rows


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    EXPORT = "export"
    READ = "read"
    LOGIN = "login"
    GET_CSR = "get-certificate-authority-csr"
    IMPORT = "import"
    RENEW = "renew"
    SIGN_INTERMEDIATE = "sign-intermediate"
    SIGN = "sign"
    ISSUE_KEY = "issue-key"
    REVOKE = "revoke"
    ROTATE = "rotate"
    KEY_DAMAGED = "key-damaged"
    ROLL = "roll"
    PRUNE = "prune"


class Resource(StrEnum):
    ACCOUNT = "account"
    ZONE = "zone"
    USER = "user"
    TOKEN = "token"  # noqa: S105 - a kind of resource, not a secret
    DELIVERY_TOKEN = "delivery_token"  # noqa: S105 - likewise
    CUSTOM_CSR = "custom_csr"
    CUSTOM_CERTIFICATE = "custom_certificate"
    CERTIFICATE_AUTHORITY = "certificate_authority"
    ISSUED_CERTIFICATE = "issued_certificate"
    CERTIFICATE_POLICY = "certificate_policy"
    CERTIFICATE_PROFILE = "certificate_profile"
    APPLICATION = "application"
    PRIVATE_KEY = "private_key"
    RING = "ring"
    PEPPER = "pepper"
    AUDIT_LOG = "audit_log"


class Result(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


# Account id of entries about resources without an account, such as users.
NO_ACCOUNT = UUID(int=0)
# In characters. Denied requests add entries too, so callers must not control their size.
MAX_PATH = 1024

_TYPES = {
    "id": "uuid",
    **dict.fromkeys(("action", "resource_type", "actor"), "text"),
    "actor_id": "uuid",
    **dict.fromkeys(("actor_name", "actor_email"), "text"),
    "address": "inet",
    **dict.fromkeys(("request_id", "method", "path", "user_agent"), "text"),
    "user_id": "uuid",
    "status": "smallint",
    "result": "text",
}
_COLUMNS = ", ".join(_TYPES)
PARAMETERS = len(_TYPES)
# The columns that `insert_each` reads, with their types, for the values of `values`.
COLUMNS = {f"entry_{name}": type_ for name, type_ in _TYPES.items()}


def insert(first: int, source: str) -> str:
    """CTE body that inserts an entry for each row of `source`, which has the columns account_id, id and zone_id."""
    return (
        f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}) "
        f"SELECT {source}.account_id, {source}.id, {source}.zone_id, {parameters(first, PARAMETERS)} FROM {source}"
    )


def insert_each(source: str) -> str:
    """As `insert`, where each row of `source` also has COLUMNS."""
    return (
        f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}) "
        f"SELECT account_id, id, zone_id, {', '.join(COLUMNS)} FROM {source}"
    )


# Actions that are audited before the outcome of the request is known, so without a status.
_BEFORE_OUTCOME = {
    *(Action.READ, Action.GET_CSR, Action.SIGN, Action.SIGN_INTERMEDIATE, Action.ISSUE_KEY, Action.RENEW),
    Action.KEY_DAMAGED,
}


def values(caller: Caller, action: Action, resource: Resource) -> tuple[object, ...]:
    """Values for the PARAMETERS parameters of `insert`."""
    status = None if action in _BEFORE_OUTCOME else caller.status
    return _values(caller, action, resource, Result.SUCCESS, status)


def _values(
    caller: Caller, action: Action, resource: Resource, result: Result, status: int | None
) -> tuple[object, ...]:
    # Escaped at write time, because operators also read the table with psql.
    name = visible.text(caller.name) if caller.name else caller.name
    path = visible.text(caller.path[:MAX_PATH])[:MAX_PATH]
    actor = (caller.actor.value, caller.id, name, caller.email, caller.address)
    request = (caller.request_id, caller.method, path, caller.user_agent)
    return (uuid4(), action.value, resource.value, *actor, *request, caller.user_id, status, result.value)


_RECORD = (
    f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}) VALUES ({parameters(1, 3 + PARAMETERS)})"
)


# The ids of an entry's account, resource and zone.
Ids = tuple[UUID, UUID, UUID | None]


_ENTRY = {"account_id": "uuid", "id": "uuid", "zone_id": "uuid", **COLUMNS}
_RECORD_EACH = f"{insert_each(rows('$1', _ENTRY))} RETURNING id"


async def record(db: Database | Connection, caller: Caller, action: Action, resource: Resource, ids: Ids) -> None:
    """Insert an entry: in the transaction of a connection, or for actions that change nothing on its own.

    Those that come together share a transaction: a commit for each costs more than most of the reads that they tell of.
    """
    row = (*ids, *values(caller, action, resource))
    if isinstance(db, Database):
        await db.insert_bundled("audit_log", row, lambda new: db.fetch(_RECORD_EACH, encoded(_ENTRY, new)))
    else:
        await db.execute(_RECORD, *row)


async def record_all(
    connection: Connection, caller: Caller, action: Action, resource: Resource, ids: Sequence[Ids]
) -> None:
    """As `record`, for several resources."""
    await connection.executemany(_RECORD, [(*each, *values(caller, action, resource)) for each in ids])


async def failed(db: Database, caller: Caller, action: Action, resource: Resource, ids: Ids) -> None:
    """Insert an entry for work of the program that failed."""
    await db.execute(_RECORD, *ids, *_values(caller, action, resource, Result.FAILURE, None))


_ATTEMPTS = {"POST": Action.CREATE, "PUT": Action.UPDATE, "PATCH": Action.UPDATE, "DELETE": Action.DELETE}


async def denied(
    db: Database, caller: Caller, resource: Resource, resource_id: UUID, scope: Scope | None = None
) -> None:
    """Insert an entry for a denied attempt of an authenticated caller.

    It goes to the account of `scope` if the caller is a member, else to the caller's own account: callers must not be
    able to write to the log of another tenant.
    """
    own = caller.account_id or NO_ACCOUNT
    account_id = scope.account_id if scope and scope.account_id in caller.reach else own
    zone_id = scope.zone_id if scope and account_id == scope.account_id else None
    action = _ATTEMPTS.get(caller.method, Action.READ)
    values = _values(caller, action, resource, Result.FAILURE, caller.denied_status)
    await db.execute(_RECORD, account_id, resource_id, zone_id, *values)


_RECORD_COUNT = (
    f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}, count) VALUES ({parameters(1, 19)})"
)


async def record_failures(connection: Connection, failures: Sequence[tuple[Network, datetime, int]]) -> None:
    """Insert an entry per (network, minute, count) of failed authentications; `path` holds the minute."""
    rows = []
    for network, minute, count in failures:
        address, path = ip_interface(str(network)), f"{minute:%Y-%m-%dT%H:%MZ}"
        unknown = Caller(Actor.UNKNOWN, NO_ACCOUNT, {}, address=address, path=path)
        entry = _values(unknown, Action.LOGIN, Resource.TOKEN, Result.FAILURE, None)
        rows.append((NO_ACCOUNT, NO_ACCOUNT, None, *entry, count))
    await connection.executemany(_RECORD_COUNT, rows)
