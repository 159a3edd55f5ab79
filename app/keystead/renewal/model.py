"""Renewal rules, and when they fall due."""

from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import msgspec

from keystead.certificates.model import Certificate

# In place of a CA of the account.
OUTSIDE = "outside"
DAYS_BEFORE = 30
MAX_DAYS_BEFORE = 3650
MAX_PERCENT_BEFORE = 50
MAX_JITTER = timedelta(days=1)


class NewKey(StrEnum):
    """Whether a renewal makes a new key."""

    EVERY = "every"
    NEVER = "never"


class State(StrEnum):
    """What is known of a rule: it is not yet due, waits for a CA outside, has failed and is tried again, or may not."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    FAILING = "failing"
    STOPPED = "stopped"


class Wanted(msgspec.Struct, frozen=True):
    """A rule as it is asked for. `renew_with` is a CA by id or name, or OUTSIDE; without a time, it is DAYS_BEFORE."""

    renew_with: str
    days_before: int | None = None
    percent_before: int | None = None
    new_key: NewKey = NewKey.EVERY


class Rule(msgspec.Struct, frozen=True):
    """A stored rule; schema.sql says what its fields are. `ca_id` is None for a CA outside."""

    account_id: UUID
    certificate_id: UUID
    zone_id: UUID
    ca_id: UUID | None
    days_before: int | None
    percent_before: int | None
    new_key: bool
    state: State
    problem: str | None
    failures: int
    due_at: datetime
    csr_id: UUID | None
    begun_at: datetime | None
    previous_csr_id: UUID | None
    previous_ends: datetime | None
    renewed_at: datetime | None

    def renews_at(self, certificate: Certificate) -> datetime:
        """When the certificate falls due: so long before its end, or later by up to a tenth of that, or by a day.

        How much later depends on its id alone, so that those that end together do not fall due together. It is never
        in the first half of a lifetime: a rule cannot renew again what it has just renewed.
        """
        lifetime = certificate.not_after - certificate.not_before
        before = timedelta(days=self.days_before) if self.days_before else lifetime * (self.percent_before or 0) / 100
        before = min(before, lifetime / 2)
        later = min(before / 10, MAX_JITTER) * (certificate.id.int / 2**128)
        return certificate.not_after - before + later
