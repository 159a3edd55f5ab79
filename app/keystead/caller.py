"""Callers, scopes, policies and permission groups, and the permission check itself. Pure data, no I/O."""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, StrEnum, auto
from uuid import UUID

import msgspec

from keystead.addresses import Address
from keystead.errors import Advice, Hint, KeysteadError, NotFound, Thing
from keystead.x509.names import NamePolicy


class Role(StrEnum):
    """Role of a member of an account."""

    ADMINISTRATOR = "administrator"
    READ = "read"


class Effect(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Area(Enum):
    """Kind of resource a permission applies to."""

    SSL = auto()
    ZONE = auto()
    SETTINGS = auto()
    ACCOUNT_TOKENS = auto()
    USER_TOKENS = auto()
    PRIVATE_CA = auto()


class Access(Enum):
    READ = auto()
    WRITE = auto()
    SIGN = auto()
    ISSUE_KEY = auto()


# Write, sign and issue-key permissions include read. Denying read therefore denies all of them.
_IMPLIES = {
    Access.READ: {Access.READ},
    Access.WRITE: {Access.READ, Access.WRITE},
    Access.SIGN: {Access.READ, Access.SIGN},
    Access.ISSUE_KEY: {Access.READ, Access.ISSUE_KEY},
}


class Level(Enum):
    ACCOUNT = auto()
    ZONE = auto()


class Group(msgspec.Struct, frozen=True):
    """A permission group. Groups that Cloudflare has too use Cloudflare's published ids."""

    id: UUID
    name: str
    level: Level
    area: Area
    access: Access


def _groups() -> tuple[Group, ...]:
    account, zone, read, write = Level.ACCOUNT, Level.ZONE, Access.READ, Access.WRITE
    rows = (
        ("7b7216b327b04b8fbc8f524e1f9b7531", "SSL and Certificates Read", zone, Area.SSL, read),
        ("c03055bc037c4ea9afb9a9f104b7b721", "SSL and Certificates Write", zone, Area.SSL, write),
        ("c8fed203ed3043cba015a93ad1616f1f", "Zone Read", zone, Area.ZONE, read),
        ("e6d2666161e84845a636613608cee8d5", "Zone Write", zone, Area.ZONE, write),
        ("a7a233f9604845c787d4c8c39ac09c21", "Account: SSL and Certificates Read", account, Area.SSL, read),
        ("db37e5f1cb1a4e1aabaef8deaea43575", "Account: SSL and Certificates Write", account, Area.SSL, write),
        ("c1fde68c7bcc44588cbb6ddbc16d6480", "Account Settings Read", account, Area.SETTINGS, read),
        ("1af1fa2adc104452b74a9a3364202f20", "Account Settings Write", account, Area.SETTINGS, write),
        ("eb56a6953c034b9d97dd838155666f06", "Account API Tokens Read", account, Area.ACCOUNT_TOKENS, read),
        ("5bc3f8b21c554832afc660159ab75fa4", "Account API Tokens Write", account, Area.ACCOUNT_TOKENS, write),
        ("0cc3a61731504c89b99ec1be78b77aa0", "API Tokens Read", account, Area.USER_TOKENS, read),
        ("686d18d5ac6c441c867cbf6771e58a0a", "API Tokens Write", account, Area.USER_TOKENS, write),
        ("d0d6a31a9b1c4c3f8a1e4f6f0c5b7a01", "Private CA Read", account, Area.PRIVATE_CA, read),
        ("d0d6a31a9b1c4c3f8a1e4f6f0c5b7a02", "Private CA Write", account, Area.PRIVATE_CA, write),
        ("d0d6a31a9b1c4c3f8a1e4f6f0c5b7a03", "Private CA Sign", account, Area.PRIVATE_CA, Access.SIGN),
        ("d0d6a31a9b1c4c3f8a1e4f6f0c5b7a04", "Private CA Issue Key", account, Area.PRIVATE_CA, Access.ISSUE_KEY),
    )
    return tuple(Group(UUID(id_), name, level, area, access) for id_, name, level, area, access in rows)


GROUPS = _groups()


class Scope(msgspec.Struct, frozen=True):
    """An account, or a zone of it when `zone_id` is set, with the settings that apply there.

    Quotas are None when unlimited.
    """

    account_id: UUID
    zone_id: UUID | None = None
    name_policy: NamePolicy = NamePolicy.PRIVATE
    csrs_enabled: bool = True
    csr_quota: int | None = None
    certificate_quota: int | None = None
    key_max_age_days: int = 398
    ca_quota: int | None = None

    @property
    def id(self) -> UUID:
        return self.zone_id or self.account_id

    def gone(self) -> KeysteadError:
        """The error for an account or zone that was deleted, to those who were allowed to know of it."""
        kind = "account" if self.zone_id is None else "zone"
        return NotFound(f"The {kind} {self.id.hex} was deleted.", Thing.SCOPE)

    def age_advice(self, created_at: datetime, now: datetime) -> tuple[Advice, ...]:
        """A warning if a key from `created_at` is older than `key_max_age_days`; empty otherwise."""
        days, most = (now - created_at).days, self.key_max_age_days
        if days <= most:
            return ()
        text = f"the key is {days} days old, and this account replaces keys after {most} days: make a new CSR."
        return (Advice(Hint.OLD_KEY, "", text),)


class Target(msgspec.Struct, frozen=True):
    """A resource of a policy.

    With `id` None it covers every resource of this level; with `within` set, every zone of that account.
    """

    level: Level
    id: UUID | None = None
    within: UUID | None = None

    def covers(self, level: Level, scope: Scope) -> bool:
        if level is not self.level:
            return False
        if level is Level.ACCOUNT:
            return self.id in (None, scope.account_id)
        if scope.zone_id is None or self.within not in (None, scope.account_id):
            return False
        return self.id in (None, scope.zone_id)


class Policy(msgspec.Struct, frozen=True):
    effect: Effect
    targets: tuple[Target, ...]
    groups: tuple[Group, ...]

    def means(self, group: Group, access: Access) -> bool:
        """Whether this policy allows or denies `access` for a resource of the group; see _IMPLIES."""
        if self.effect is Effect.ALLOW:
            return access in _IMPLIES[group.access]
        return group.access in _IMPLIES[access]

    def applies_to(self, area: Area, access: Access, scope: Scope) -> bool:
        return any(
            group.area is area
            and self.means(group, access)
            and any(target.covers(group.level, scope) for target in self.targets)
            for group in self.groups
        )


class Actor(StrEnum):
    """Kind of actor in the audit log."""

    TOKEN = "token"  # noqa: S105 - a kind of actor, not a secret
    USER = "user"
    OPERATOR = "operator"
    SYSTEM = "system"
    UNKNOWN = "unknown"


class Caller(msgspec.Struct, frozen=True):
    """An authenticated caller and the request's metadata; built once per request.

    `reach` maps each account the caller can access to their role: the account of an account token, or a user's
    memberships. `policies` None means that only the role decides (global API keys). `account_id` owns an account token,
    `user_id` a user token or global key. `condition` (JSON) and `expires_on` restrict a token. `status` and
    `denied_status` are the HTTP statuses to audit for success and denial. `proof` identifies the version of the
    credential that was checked (identity/proof.py).
    """

    actor: Actor
    id: UUID
    reach: Mapping[UUID, Role]
    policies: tuple[Policy, ...] | None = None
    name: str | None = None
    email: str | None = None
    address: Address | None = None
    request_id: str = ""
    method: str = ""
    path: str = ""
    user_agent: str | None = None
    account_id: UUID | None = None
    user_id: UUID | None = None
    condition: str | None = None
    expires_on: datetime | None = None
    status: int | None = None
    denied_status: int | None = None
    proof: datetime | bytes | None = None

    def may(self, area: Area, access: Access, scope: Scope) -> bool:
        """Explicit deny wins, then allow, then deny (contract-cloudflare section 5)."""
        role = self.reach.get(scope.account_id)
        if role is None or (role is Role.READ and access is not Access.READ):
            return False
        if self.policies is None:
            return True
        effects = {policy.effect for policy in self.policies if policy.applies_to(area, access, scope)}
        return effects == {Effect.ALLOW}


class RequestInfo(msgspec.Struct, frozen=True):
    """The request metadata that the audit log stores; fields as in Caller."""

    address: Address | None
    request_id: str
    method: str
    path: str
    user_agent: str | None = None
    status: int | None = None
    denied_status: int | None = None
