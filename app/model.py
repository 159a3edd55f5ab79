"""What the core speaks of, as frozen data: no I/O, no wire names, and no field that could hold a private key."""

import ipaddress
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto
from uuid import UUID

import msgspec

from app.errors import Advice, Denial, Forbidden, Hint, KeysteadError, NotFound, Problem, Thing

# What no text may hold: C0 and C1 controls with DEL, Unicode's bidirectional controls (UAX 9), and lone surrogates.
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# X.680 section 41.4: the texts that PrintableString can hold.
PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]*")

# Of certificates: a CA's clock may be ahead of ours.
CLOCK_SKEW = timedelta(minutes=5)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def has_begun(not_before: datetime, now: datetime) -> bool:
    """Whether a certificate counts as valid already, as far as its notBefore goes."""
    return not_before <= now + CLOCK_SKEW


class NamePolicy(StrEnum):
    """Which hostnames an account may put into a CSR; only the operator changes it."""

    PRIVATE = "private"
    PUBLIC = "public"


class Role(StrEnum):
    """What a user is in an account."""

    ADMINISTRATOR = "administrator"
    READ = "read"


class Effect(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Area(Enum):
    """What a permission is about."""

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


# Whoever may change a thing may read it; so whoever is denied reading is denied the rest too.
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
    """A permission group; the ids are Cloudflare's published ones where Cloudflare has the group."""

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


class ZoneType(StrEnum):
    """Cloudflare's kinds of zones; kept and given back, and without effect here."""

    FULL = "full"
    PARTIAL = "partial"
    SECONDARY = "secondary"
    INTERNAL = "internal"


class Zone(msgspec.Struct, frozen=True):
    id: UUID
    account_id: UUID
    account_name: str
    name: str
    type: ZoneType
    paused: bool
    csrs_enabled: bool
    csr_quota: int | None
    certificate_quota: int | None
    created_at: datetime
    modified_at: datetime


class User(msgspec.Struct, frozen=True):
    """`memberships` is the role in each account."""

    id: UUID
    email: str
    created_at: datetime
    memberships: Mapping[UUID, Role]


class TokenStatus(StrEnum):
    """Cloudflare's states of a token; an expired one is stored as active."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"


class Token(msgspec.Struct, frozen=True):
    """An API token without its value; exactly one of account and user owns it.

    `policies` and `condition` are JSON text, as they were sent.
    """

    id: UUID
    account_id: UUID | None
    user_id: UUID | None
    name: str
    status: TokenStatus
    policies: str
    condition: str | None
    not_before: datetime | None
    expires_on: datetime | None
    issued_on: datetime
    modified_on: datetime

    def status_at(self, now: datetime) -> TokenStatus:
        """A token that is switched off is disabled, whatever its end."""
        ended = self.expires_on is not None and now >= self.expires_on
        return TokenStatus.EXPIRED if ended and self.status is TokenStatus.ACTIVE else self.status


class Scope(msgspec.Struct, frozen=True):
    """Where a call works: an account, or one zone of it, with the rules that the operator set there."""

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
        """What to say when the account or zone was deleted while the request was on its way."""
        if self.zone_id is None:
            return Forbidden(Denial.RESOURCE, "Unauthorized to access requested resource")
        return NotFound(f"The zone {self.zone_id.hex} was deleted.", Thing.SCOPE)

    def age_advice(self, created_at: datetime, now: datetime) -> tuple[Advice, ...]:
        """What to say of a key that is older than the account allows."""
        days, most = (now - created_at).days, self.key_max_age_days
        if days <= most:
            return ()
        text = f"the key is {days} days old, and this account replaces keys after {most} days: make a new CSR."
        return (Advice(Hint.OLD_KEY, "", text),)


class Target(msgspec.Struct, frozen=True):
    """One resource of a policy. `id` None is all of them; with `within` it is all zones of that account."""

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
        """Whether the group is about this access: who may change a thing may read it, who may not read may nothing."""
        if self.effect is Effect.ALLOW:
            return access in _IMPLIES[group.access]
        return group.access in _IMPLIES[access]

    def speaks_of(self, area: Area, access: Access, scope: Scope) -> bool:
        return any(
            group.area is area
            and self.means(group, access)
            and any(target.covers(group.level, scope) for target in self.targets)
            for group in self.groups
        )


class Actor(StrEnum):
    """Who acts, as the audit log names them."""

    TOKEN = "token"  # noqa: S105 - a kind of actor, not a secret
    USER = "user"
    OPERATOR = "operator"
    SYSTEM = "system"
    UNKNOWN = "unknown"


class Caller(msgspec.Struct, frozen=True):
    """Who asks, what they reach, and from where; built once a request.

    `reach` bounds everything by tenant: the account of an account's token, or the memberships of a user. `policies`
    None means that the membership alone decides (a global key). `account_id` is whose token it is, or `user_id` whose
    token or global key; `condition` (JSON text) and `expires_on` bound a token. `status` is what the HTTP answer of a
    success will be, `denied_status` that of a denial. `proof` tells whether the
    credential has changed since: see proof.py.
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
        effects = {policy.effect for policy in self.policies if policy.speaks_of(area, access, scope)}
        return effects == {Effect.ALLOW}


class Visit(msgspec.Struct, frozen=True):
    """Where a request comes from and what it asks: the audit log's share of it.

    `status` and `denied_status` as in Caller.
    """

    address: Address | None
    request_id: str
    method: str
    path: str
    user_agent: str | None = None
    status: int | None = None
    denied_status: int | None = None


class KeyType(StrEnum):
    """Cloudflare's names of the key types of a custom CSR."""

    RSA2048 = "rsa2048"
    P256V1 = "p256v1"


class CaKeyType(StrEnum):
    """The key types of a CA, in the words of `KeyType`."""

    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"
    P256V1 = "p256v1"
    P384 = "p384"
    P521 = "p521"


class Subject(msgspec.Struct, frozen=True):
    """The distinguished name of a CSR (X.520 attributes)."""

    country: str
    state: str
    locality: str
    organization: str
    common_name: str
    organizational_unit: str | None = None


class CsrRequest(msgspec.Struct, frozen=True):
    """What is asked of a CSR, kept byte for byte; `key_type` is the caller's text until it is checked.

    `malformed` is what a dialect could not read: such a field stands here empty, and is not judged a second time.
    """

    subject: Subject
    sans: tuple[str, ...]
    key_type: str = KeyType.RSA2048
    name: str | None = None
    description: str | None = None
    malformed: tuple[Problem, ...] = ()


class Csr(msgspec.Struct, frozen=True):
    """A custom CSR as it is stored; `pem` ends with a newline."""

    id: UUID
    account_id: UUID
    created_at: datetime
    request: CsrRequest
    pem: str


class BundleMethod(StrEnum):
    """How the chain above a leaf is chosen: `force` keeps it as it was sent."""

    UBIQUITOUS = "ubiquitous"
    OPTIMAL = "optimal"
    FORCE = "force"


class Status(StrEnum):
    """Cloudflare's states of a custom certificate; `deleted` and `initializing` never last here."""

    ACTIVE = "active"
    EXPIRED = "expired"
    DELETED = "deleted"
    PENDING = "pending"
    INITIALIZING = "initializing"


class Certificate(msgspec.Struct, frozen=True):
    """A custom certificate as it is now; `chain` is PEM, the leaf first, and `sha256` the digest of the leaf's DER."""

    id: UUID
    account_id: UUID
    zone_id: UUID
    key_id: UUID
    custom_csr_id: UUID | None
    type: str
    bundle_method: BundleMethod
    geo_label: str | None
    policy: str | None
    deploy: str | None
    priority: int
    sha256: bytes
    hosts: tuple[str, ...]
    issuer: str
    signature: str
    not_before: datetime
    not_after: datetime
    chain: str
    uploaded_at: datetime
    modified_at: datetime

    def status(self, now: datetime) -> Status:
        """True at any moment, without a job that has to have run."""
        if now >= self.not_after:
            return Status.EXPIRED
        return Status.ACTIVE if has_begun(self.not_before, now) else Status.PENDING


class Superseded(msgspec.Struct, frozen=True):
    """What a certificate was before a renewal."""

    id: UUID
    custom_csr_id: UUID | None
    hosts: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    uploaded_at: datetime
    superseded_at: datetime


class CertificateQuery(msgspec.Struct, frozen=True):
    """Which page of a zone's certificates; `page` counts from 1."""

    page: int
    per_page: int
    status: Status | None = None


class CertificatePage(msgspec.Struct, frozen=True):
    items: tuple[Certificate, ...]
    total: int


class Order(StrEnum):
    NAME = "name"
    ACCOUNT_TAG = "account_tag"
    CREATED_AT = "created_at"


class Direction(StrEnum):
    ASC = "asc"
    DESC = "desc"


class CsrQuery(msgspec.Struct, frozen=True):
    """Which page of a scope's CSRs; filters are exact and combined with AND. `page` counts from 1."""

    page: int
    per_page: int
    order: Order = Order.CREATED_AT
    direction: Direction = Direction.ASC
    common_name: str | None = None
    san: str | None = None
    name: str | None = None
    key_type: str | None = None


class Page(msgspec.Struct, frozen=True):
    items: tuple[Csr, ...]
    total: int


class Idempotency(msgspec.Struct, frozen=True):
    """A caller's promise that requests with this key are one request; `body_sha256` tells a different body."""

    key: str
    body_sha256: bytes


class CaType(StrEnum):
    ROOT = "root"
    INTERMEDIATE = "intermediate"


class CaStatus(StrEnum):
    """Infisical's states of a CA."""

    ACTIVE = "active"
    DISABLED = "disabled"
    PENDING = "pending-certificate"


class CaSubject(msgspec.Struct, frozen=True):
    """The distinguished name of a CA, in the order it is written; an empty attribute is left out."""

    country: str = ""
    organization: str = ""
    organizational_unit: str = ""
    state: str = ""
    common_name: str = ""
    locality: str = ""


class CaCertificate(msgspec.Struct, frozen=True):
    """One version of a CA's certificate. `pem` and `chain` end with a newline; `chain` ends in the root."""

    id: UUID
    version: int
    serial: str
    path_length: int | None
    not_before: datetime
    not_after: datetime
    pem: str
    chain: str
    revoked: bool = False


class Authority(msgspec.Struct, frozen=True):
    """A CA; `certificate` is the latest one, None while it is pending. `max_path_length` -1 is no bound."""

    id: UUID
    account_id: UUID
    parent_id: UUID | None
    type: CaType
    disabled: bool
    friendly_name: str | None
    subject: CaSubject
    max_path_length: int
    requires_template: bool
    key_type: CaKeyType
    key_id: UUID
    spki_sha256: bytes
    created_at: datetime
    modified_at: datetime
    certificate: CaCertificate | None

    @property
    def status(self) -> CaStatus:
        if self.disabled:
            return CaStatus.DISABLED
        return CaStatus.ACTIVE if self.certificate else CaStatus.PENDING


class Profile(StrEnum):
    """What kind of certificate a CA signs."""

    ROOT = "root"
    INTERMEDIATE = "intermediate"
    LEAF = "leaf"


class IssuedStatus(StrEnum):
    """Of a certificate; a pending one was meant, and nobody has it."""

    PENDING = "pending"
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Issued(msgspec.Struct, frozen=True):
    """A certificate that a CA signed, or meant to: then `pem` is None. `serial` is 40 lower-case hex digits."""

    id: UUID
    account_id: UUID
    ca_id: UUID
    issuer_id: UUID | None
    profile: Profile
    serial: str
    subject: str
    common_name: str
    alt_names: tuple[str, ...]
    friendly_name: str | None
    not_before: datetime
    not_after: datetime
    pem: str | None
    revoked_at: datetime | None
    revocation_reason: int | None
    created_at: datetime
    modified_at: datetime

    def status(self, now: datetime) -> IssuedStatus:
        if self.revoked_at:
            return IssuedStatus.REVOKED
        if self.pem is None:
            return IssuedStatus.PENDING
        return IssuedStatus.EXPIRED if now >= self.not_after else IssuedStatus.ACTIVE
