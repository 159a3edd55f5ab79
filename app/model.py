"""What the core speaks of, as frozen data: no I/O, no wire names, and no field that could hold a private key."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from app.times import has_begun
from app.x509.keys import CaKeyType
from app.x509.subjects import CaSubject


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


class CaType(StrEnum):
    ROOT = "root"
    INTERMEDIATE = "intermediate"


class CaStatus(StrEnum):
    """Infisical's states of a CA."""

    ACTIVE = "active"
    DISABLED = "disabled"
    PENDING = "pending-certificate"


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
