"""What a custom certificate is, what it was before a renewal, and a page of them."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from app.times import has_begun


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
