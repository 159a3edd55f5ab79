"""Types of custom certificates: the stored certificate, its earlier versions, list queries and pages."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from keystead.store.paging import PageNumber, PerPage
from keystead.times import has_begun


class BundleMethod(StrEnum):
    """How the chain above the leaf is built; `force` stores it as sent."""

    UBIQUITOUS = "ubiquitous"
    OPTIMAL = "optimal"
    FORCE = "force"


class Status(StrEnum):
    """Cloudflare's statuses; certificates here are never `deleted` or `initializing`."""

    ACTIVE = "active"
    EXPIRED = "expired"
    DELETED = "deleted"
    PENDING = "pending"
    INITIALIZING = "initializing"


class Certificate(msgspec.Struct, frozen=True):
    """A stored custom certificate. `chain` is PEM, leaf first; `sha256` is the digest of the leaf's DER."""

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
        """The status at `now`; computed, so that no job has to update it."""
        if now >= self.not_after:
            return Status.EXPIRED
        return Status.ACTIVE if has_begun(self.not_before, now) else Status.PENDING


class Superseded(msgspec.Struct, frozen=True):
    """A version of a certificate before a renewal."""

    id: UUID
    custom_csr_id: UUID | None
    hosts: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    uploaded_at: datetime
    superseded_at: datetime


class CertificateQuery(msgspec.Struct, frozen=True):
    """A page of a zone's certificates."""

    page: PageNumber = 1
    per_page: PerPage = 20
    status: Status | None = None


class CertificatePage(msgspec.Struct, frozen=True):
    items: tuple[Certificate, ...]
    total: int
