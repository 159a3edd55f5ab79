"""Delivery tokens: TLS servers fetch certificates and keys with them. They open nothing else, and nothing else does."""

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

import asyncpg
import msgspec

from keystead.addresses import Address, Network
from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.errors import Conflict, NotFound, quoted
from keystead.identity import changes, tokens
from keystead.identity.changes import Entry
from keystead.ids import any_uuid
from keystead.services import Services
from keystead.store.database import Connection, Database

# That are not revoked; a listener has all of them in memory.
MOST = 1000


class State(StrEnum):
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Reach(msgspec.Struct, frozen=True):
    """The certificates of a zone that a token opens: one, or those that serve a host or its wildcard, or all."""

    account_id: UUID
    zone_id: UUID
    certificate_id: UUID | None = None
    host: str | None = None


class DeliveryToken(msgspec.Struct, frozen=True):
    """A token without its value; it is taken from its networks alone."""

    id: UUID
    reach: Reach
    name: str
    networks: tuple[Network, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> State:
        if self.revoked_at:
            return State.REVOKED
        return State.EXPIRED if self.expires_at and now >= self.expires_at else State.ACTIVE

    def opens_for(self, address: Address | None, now: datetime) -> bool:
        """Whether it is taken from this address now."""
        here = address is not None and any(address in network for network in self.networks)
        return here and self.state(now) is State.ACTIVE


class NewToken(msgspec.Struct, frozen=True):
    reach: Reach
    name: str
    networks: tuple[Network, ...]
    expires_at: datetime | None = None


_COLUMNS = (
    "id, account_id, zone_id, certificate_id, host, name, networks, created_at, expires_at, revoked_at, digest, "
    "pepper_id"
)
_INSERT = f"""
INSERT INTO delivery_tokens
    (id, account_id, zone_id, certificate_id, host, name, networks, expires_at, digest, pepper_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_COLUMNS}
"""
_COUNT = "SELECT count(*) FROM delivery_tokens WHERE revoked_at IS NULL"


async def create(services: Services, caller: Caller, new: NewToken) -> tuple[DeliveryToken, str]:
    """Create a token, for the operator; returns it with its value, which is not stored. Raises Invalid, Conflict."""
    changes.require_valid(changes.name_problems(new.name, tokens.MAX_NAME))
    value = tokens.new_token(tokens.DELIVERY_TOKEN)
    pepper_id, digest = services.peppers.newest(value)
    fields = (new.name, list(new.networks), new.expires_at, digest, pepper_id)

    async def work(connection: Connection) -> DeliveryToken:
        if await connection.fetchval(_COUNT) >= MOST:
            raise Conflict(f"there are {MOST} delivery tokens; revoke one with `keystead delivery token revoke`")
        row = await connection.fetchrow(_INSERT, uuid4(), *msgspec.structs.astuple(new.reach), *fields)
        made = _token(_existing(row))
        await changes.record(connection, caller, _entry(audit.Action.CREATE, made))
        return made

    return await services.db.transaction(work), value


async def list_(db: Database) -> tuple[DeliveryToken, ...]:
    """All tokens, revoked ones too, for the operator."""
    return tuple(
        _token(row) for row in await db.fetch(f"SELECT {_COLUMNS} FROM delivery_tokens ORDER BY created_at, id")
    )


async def find(db: Database, word: str) -> DeliveryToken:
    """A token by id, for the operator; raises NotFound."""
    row = await db.fetchrow(f"SELECT {_COLUMNS} FROM delivery_tokens WHERE id = $1", any_uuid(word))
    if row is None:
        raise NotFound(f"there is no delivery token {quoted(word)}; `keystead delivery token list` shows their ids")
    return _token(row)


_REVOKE = f"""
UPDATE delivery_tokens SET revoked_at = now(), modified_at = now(), digest = NULL, pepper_id = NULL
WHERE id = $1 AND revoked_at IS NULL RETURNING {_COLUMNS}
"""


async def revoke(db: Database, caller: Caller, token: DeliveryToken) -> DeliveryToken:
    """End a token for good, for the operator; raises Conflict if that was done before."""
    row = await changes.change(db, caller, _entry(audit.Action.REVOKE, token), _REVOKE, token.id)
    if row is None:
        raise Conflict(f"the delivery token {token.id.hex} was revoked before")
    return _token(row)


class Known(msgspec.Struct, frozen=True):
    """The tokens that are not revoked, by their digests. The repr is empty."""

    by_digest: dict[bytes, DeliveryToken] = {}
    of_peppers: dict[UUID, UUID] = {}

    def __repr__(self) -> str:
        return "Known()"

    def find(self, digests: Collection[bytes]) -> DeliveryToken | None:
        """The token that has one of these digests, of a value under each pepper."""
        # A digest under a secret pepper says nothing of how near another one is, so the time of a look-up is no hint.
        return next((self.by_digest[each] for each in digests if each in self.by_digest), None)


_STAMP = "SELECT count(*) AS number, sum(extract(epoch FROM modified_at)) AS times FROM delivery_tokens"


async def stamp(db: Database) -> str:
    """A text that changes with the tokens."""
    row = await db.fetchrow(_STAMP)
    return "" if row is None else f"{row['number']} {row['times']}"


_KNOWN = f"SELECT {_COLUMNS} FROM delivery_tokens WHERE revoked_at IS NULL ORDER BY created_at LIMIT {MOST}"


async def known(db: Database) -> Known:
    """The tokens that are not revoked."""
    rows = await db.fetch(_KNOWN)
    return Known({row["digest"]: _token(row) for row in rows}, {row["id"]: row["pepper_id"] for row in rows})


_RENEW = """
UPDATE delivery_tokens SET digest = $4, pepper_id = $3, modified_at = now() WHERE id = $1 AND digest = ANY($2)
"""


async def renew_digest(services: Services, token_id: UUID, value: str) -> None:
    """Digest a valid token with the current pepper, so that earlier ones can be retired."""
    pepper_id, digest = services.peppers.newest(value)
    await services.db.execute(_RENEW, token_id, services.peppers.digests(value), pepper_id, digest)


def _entry(action: audit.Action, token: DeliveryToken) -> Entry:
    return Entry(action, audit.Resource.DELIVERY_TOKEN, token.reach.account_id, token.id, token.reach.zone_id)


def _existing(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise NotFound("the delivery token does not exist any more")
    return row


def _token(row: asyncpg.Record) -> DeliveryToken:
    return DeliveryToken(
        id=row["id"],
        reach=Reach(row["account_id"], row["zone_id"], row["certificate_id"], row["host"]),
        name=row["name"],
        networks=tuple(row["networks"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
