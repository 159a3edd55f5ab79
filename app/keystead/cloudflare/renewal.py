"""The member `keystead_renewal` of a custom certificate: how it is renewed by itself. Cloudflare has no such thing."""

from typing import Annotated

import msgspec
from msgspec import Meta

from keystead import times
from keystead.certificates.model import Certificate
from keystead.cloudflare.envelope import Instant, Uuid
from keystead.cloudflare.reading import Decoded
from keystead.errors import Invalid
from keystead.renewal.model import MAX_DAYS_BEFORE, MAX_PERCENT_BEFORE, OUTSIDE, NewKey, Rule, State, Wanted


class RenewalRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a certificate is renewed by itself; unset fields are omitted. `custom_csr_id` is what a CA is to sign."""

    renew_with: Annotated[str, Meta(description="The id of a private CA of the account, or outside.")]
    new_key: NewKey
    state: State
    renews_on: Instant
    days_before: int | None = None
    percent_before: int | None = None
    custom_csr_id: Uuid | None = None
    problem: str | None = None
    renewed_on: Instant | None = None


class RenewalRequest(msgspec.Struct, frozen=True):
    """`days_before` and `percent_before` (of the lifetime) exclude each other; 30 days without them."""

    renew_with: Annotated[
        str, Meta(min_length=1, max_length=255, description="A private CA of the account by id or name, or outside.")
    ]
    days_before: Annotated[int, Meta(ge=1, le=MAX_DAYS_BEFORE)] | None = None
    percent_before: Annotated[int, Meta(ge=1, le=MAX_PERCENT_BEFORE)] | None = None
    new_key: NewKey = NewKey.EVERY


def wanted_of(data: Decoded[RenewalRequest]) -> Wanted:
    """The rule that a body asks for; raises Invalid."""
    if data.problems:
        raise Invalid(data.problems)
    return msgspec.convert(msgspec.structs.asdict(data.fields), Wanted)


def object_(certificate: Certificate, rule: Rule) -> RenewalRule:
    waits = rule.csr_id if rule.state is not State.SCHEDULED and rule.csr_id != certificate.custom_csr_id else None
    return RenewalRule(
        renew_with=str(rule.ca_id) if rule.ca_id else OUTSIDE,
        new_key=NewKey.EVERY if rule.new_key else NewKey.NEVER,
        state=rule.state,
        renews_on=times.instant(rule.renews_at(certificate)),
        days_before=rule.days_before,
        percent_before=rule.percent_before,
        custom_csr_id=str(waits) if waits else None,
        problem=rule.problem,
        renewed_on=times.instant(rule.renewed_at) if rule.renewed_at else None,
    )
