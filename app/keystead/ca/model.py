"""The nouns of the private CA: CAs, their certificates, and the certificates they issue."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject


class CaType(StrEnum):
    ROOT = "root"
    INTERMEDIATE = "intermediate"


class CaStatus(StrEnum):
    """Infisical's states of a CA."""

    ACTIVE = "active"
    DISABLED = "disabled"
    PENDING = "pending-certificate"


class NotAfterPolicy(StrEnum):
    """What becomes of a leaf that would outlive its CA: it is refused, or ends with the CA."""

    REFUSE = "refuse"
    TRUNCATE = "truncate"


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
    """A CA; `certificate` is the latest one, None while pending. `max_path_length` -1 means no limit."""

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
    name: str | None
    not_after_policy: NotAfterPolicy

    @property
    def path_length(self) -> int | None:
        return self.max_path_length if self.max_path_length >= 0 else None

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
    """The state of an issued certificate; a pending one was recorded but not signed."""

    PENDING = "pending"
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Issued(msgspec.Struct, frozen=True):
    """A certificate that a CA issued; `pem` is None while pending. `serial` is 40 lower-case hex digits."""

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
    key_usages: tuple[str, ...]
    extended_key_usages: tuple[str, ...]
    profile_id: UUID | None
    application_id: UUID | None
    key_made_here: bool

    def status(self, now: datetime) -> IssuedStatus:
        if self.revoked_at:
            return IssuedStatus.REVOKED
        if self.pem is None:
            return IssuedStatus.PENDING
        return IssuedStatus.EXPIRED if now >= self.not_after else IssuedStatus.ACTIVE
