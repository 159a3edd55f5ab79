"""The audit log: one row for each change, written by the statement that makes the change."""

from enum import StrEnum
from uuid import UUID, uuid4

from app.db import Connection, Database, parameters
from app.model import Caller


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


class Resource(StrEnum):
    ACCOUNT = "account"
    ZONE = "zone"
    USER = "user"
    TOKEN = "token"  # noqa: S105 - a kind of resource, not a secret
    CUSTOM_CSR = "custom_csr"
    CUSTOM_CERTIFICATE = "custom_certificate"
    CERTIFICATE_AUTHORITY = "certificate_authority"
    ISSUED_CERTIFICATE = "issued_certificate"
    PRIVATE_KEY = "private_key"
    RING = "ring"
    PEPPER = "pepper"


# What belongs to no account, such as a user, is filed under this one.
NO_ACCOUNT = UUID(int=0)

_COLUMNS = (
    "id, action, resource_type, actor, actor_id, actor_name, actor_email, address, request_id, method, path, user_agent"
)
PARAMETERS = 12


def insert(first: int, source: str) -> str:
    """CTE body that writes a row for the one of `source`, which has the columns account_id, id and zone_id."""
    return (
        f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}) "
        f"SELECT {source}.account_id, {source}.id, {source}.zone_id, {parameters(first, PARAMETERS)} FROM {source}"
    )


def values(caller: Caller, action: Action, resource: Resource) -> tuple[object, ...]:
    """The PARAMETERS values of `insert`."""
    who = (caller.actor.value, caller.id, caller.name, caller.email, caller.address)
    where = (caller.request_id, caller.method, caller.path, caller.user_agent)
    return (uuid4(), action.value, resource.value, *who, *where)


_RECORD = (
    f"INSERT INTO audit_log (account_id, resource_id, zone_id, {_COLUMNS}) VALUES ({parameters(1, 3 + PARAMETERS)})"
)


async def record(
    connection: Connection, caller: Caller, action: Action, resource: Resource, place: tuple[UUID, UUID, UUID | None]
) -> None:
    """Write one row in the transaction of `connection`; `place` is account id, resource id and zone id."""
    await connection.execute(_RECORD, *place, *values(caller, action, resource))


async def note(
    db: Database, caller: Caller, action: Action, resource: Resource, place: tuple[UUID, UUID, UUID | None]
) -> None:
    """Write one row of its own, for what changes nothing; `place` as in `record`."""
    await db.execute(_RECORD, *place, *values(caller, action, resource))
