"""What a server does with rules that are due: a few in a turn, one after the other, each by one server alone.

A step that ended before a crash is not done again: the CSR is found by its Idempotency-Key or in the rule, and what the
CA has signed for it by its key (docs/decisions/0050-renewed-by-the-server.md).
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import structlog

from keystead import metrics, programs, times
from keystead.audit import record as audit
from keystead.ca import following
from keystead.ca.following import Following
from keystead.caller import Caller, Scope
from keystead.certificates import store as certificates
from keystead.certificates.matching import Upload
from keystead.certificates.model import Certificate
from keystead.csrs import store as csrs
from keystead.csrs.model import Csr
from keystead.custody import keyring
from keystead.errors import Conflict, KeysteadError, NotFound, Refusal, Unavailable
from keystead.programs import Event, Notice
from keystead.renewal.model import Rule, State
from keystead.renewal.rules import COLUMNS
from keystead.services import Services
from keystead.store import scopes
from keystead.store.idempotency import Idempotency

Clock = Callable[[], datetime]
CALLER: Caller = msgspec.structs.replace(keyring.SYSTEM, path="renewal rule")
PER_TURN = 10
TURN_SECONDS = 5.0
# Longer than all that a renewal waits for; after a crash another server goes on then.
LEASE = timedelta(minutes=5)
FIRST_RETRY, MAX_RETRY = timedelta(minutes=5), timedelta(hours=12)
# What waits or is stopped is looked at so often, and told again.
LOOK_AGAIN = timedelta(days=1)
MAX_PROBLEM = 500
_log = structlog.get_logger("keystead.renewal")


class Work(msgspec.Struct, frozen=True):
    """A rule that this process has claimed, its zone, its certificate and the time."""

    services: Services
    rule: Rule
    scope: Scope
    certificate: Certificate
    now: datetime


class Outcome(msgspec.Struct, frozen=True):
    """What becomes of a rule, and when it is looked at again."""

    state: State
    due_at: datetime
    problem: str | None = None
    failures: int = 0


def _now() -> datetime:
    return datetime.now(UTC)


# The order is another one in each process, so that they do not all try for the same.
_DUE = """
SELECT account_id, certificate_id FROM renewal_rules WHERE due_at <= $1
ORDER BY due_at, certificate_id LIMIT $2
"""


async def turn(services: Services, clock: Clock = _now, most: int = PER_TURN) -> int:
    """Look at up to `most` rules that are due; returns how many this process had. Raises Unavailable."""
    until = time.monotonic() + TURN_SECONDS
    due = await services.db.fetch(_DUE, clock(), 4 * most)
    secrets.SystemRandom().shuffle(due)
    had = 0
    for row in due:
        if had >= most or time.monotonic() > until or not services.db.has_room():
            break
        rule = await _claimed(services, row["account_id"], row["certificate_id"], clock())
        if rule:
            had += 1
            await _settle(services, rule, clock())
    return had


# Whoever moves the time has the rule; what it writes later holds only if nobody has moved it since.
_CLAIM = f"""
UPDATE renewal_rules SET due_at = $4 WHERE account_id = $1 AND certificate_id = $2 AND due_at <= $3 RETURNING {COLUMNS}
"""


async def _claimed(services: Services, account_id: UUID, certificate_id: UUID, now: datetime) -> Rule | None:
    row = await services.db.fetchrow(_CLAIM, account_id, certificate_id, now, now + LEASE)
    return msgspec.convert(dict(row), Rule) if row else None


async def _settle(services: Services, rule: Rule, now: datetime) -> None:
    try:
        scope = await scopes.load(services.db, rule.account_id, rule.zone_id)
        certificate = await certificates.get(services.db, scope, rule.certificate_id)
        outcome = await _look(Work(services, rule, scope, certificate, now))
    except Unavailable:
        # Nothing is known of the rule: another turn goes on when the claim has ended.
        raise
    except KeysteadError as error:
        outcome = await _failed(services, rule, now, str(error))
    except Exception as error:  # noqa: BLE001 - the other rules go on
        _log.error("unexpected error", certificate=str(rule.certificate_id), exc_info=error)
        outcome = await _failed(services, rule, now, f"an unexpected error ({type(error).__name__}): see the log")
    if outcome:
        await _finish(services, rule, outcome)


async def _look(work: Work) -> Outcome | None:
    """Do what is due; None if the rule is to be looked at again, by whoever has it now."""
    rule, renews_at = work.rule, work.rule.renews_at(work.certificate)
    if rule.previous_ends and rule.previous_ends <= work.now:
        await _clean_up(work)
        rule = msgspec.structs.replace(rule, previous_csr_id=None, previous_ends=None)
        work = msgspec.structs.replace(work, rule=rule)
    if await following.is_revoked(work.services.db, work.scope, work.certificate.chain):
        text = "the certificate is revoked: what is revoked is not renewed"
        return Outcome(State.STOPPED, work.now + LOOK_AGAIN, text)
    if work.now < renews_at:
        return Outcome(State.SCHEDULED, min(renews_at, rule.previous_ends or renews_at))
    csr = await _next_csr(work) if rule.new_key else None
    begun = await _begun(work, csr)
    if begun is None:
        return None
    if rule.ca_id is None:
        return await _waits(work, csr)
    chain, since = work.certificate.chain, rule.begun_at and begun
    wanted = Following(chain, csr.pem if csr else "", since)
    signed = await following.sign(work.services, CALLER, work.scope, rule.ca_id, wanted)
    present = await certificates.get(work.services.db, work.scope, work.certificate.id)
    if present.sha256 == work.certificate.sha256:
        upload = Upload(certificate=signed.pem + signed.chain)
        if csr:
            upload = msgspec.structs.replace(upload, custom_csr_id=str(csr.id))
        stored = await certificates.update(work.services, CALLER, work.scope, work.certificate.id, upload)
        metrics.renewal("renewed")
        await work.services.db.execute(_RENEWED, rule.account_id, rule.certificate_id, work.now)
        await _tell(msgspec.structs.replace(work, certificate=stored.certificate), Event.RENEWED)
    # It has become another, so it is looked at again at once, and then scheduled.
    return None


_RENEWED = "UPDATE renewal_rules SET renewed_at = $3 WHERE account_id = $1 AND certificate_id = $2"


async def _next_csr(work: Work) -> Csr:
    """The CSR of the next certificate: the one that waits, or a new one like the present one, in the same list."""
    db, rule, certificate = work.services.db, work.rule, work.certificate
    if rule.csr_id and rule.csr_id != certificate.custom_csr_id:
        try:
            return (await _find_csr(work, rule.csr_id))[1]
        except NotFound:
            # Somebody has deleted it.
            pass
    if certificate.custom_csr_id is None:
        raise Refusal("its key was uploaded, so there is no CSR to make the next one like")
    place, present = await _find_csr(work, certificate.custom_csr_id)
    place = await scopes.load(db, place.account_id, place.zone_id)
    if not place.csrs_enabled:
        raise Refusal("custom CSRs are switched off here")
    # Of two tries for the same certificate the second finds what the first has made, unless that was deleted.
    gone = rule.csr_id if rule.csr_id != certificate.custom_csr_id else None
    key = f"{certificate.id} {certificate.sha256.hex()} {gone} {rule.failures}"
    once = Idempotency(key, hashlib.sha256(key.encode()).digest())
    return await csrs.create(work.services, CALLER, place, present.request, once)


async def _find_csr(work: Work, csr_id: UUID) -> tuple[Scope, Csr]:
    """A CSR of the zone or of its account, and which; raises NotFound."""
    try:
        return work.scope, await csrs.get(work.services.db, work.scope, csr_id)
    except NotFound:
        account = Scope(work.scope.account_id)
        return account, await csrs.get(work.services.db, account, csr_id)


# By whether it has begun before; not by `coalesce`, in which Citus takes no clock.
_BEGIN = {
    begun: f"""
UPDATE renewal_rules SET csr_id = $4, begun_at = {"begun_at" if begun else "now()"}, previous_csr_id = $5,
    previous_ends = $6
WHERE account_id = $1 AND certificate_id = $2 AND due_at = $3 RETURNING begun_at
"""
    for begun in (False, True)
}


async def _begun(work: Work, csr: Csr | None) -> datetime | None:
    """Write down what is about to be signed; returns since when, or None if another has the rule now."""
    rule, certificate = work.rule, work.certificate
    previous = (rule.previous_csr_id, rule.previous_ends)
    if csr and rule.csr_id and rule.csr_id == certificate.custom_csr_id:
        # The rule has made it, so the rule cleans up after it.
        previous = (rule.csr_id, certificate.not_after)
    values = (csr.id if csr else rule.csr_id, *previous)
    ids = (rule.account_id, rule.certificate_id, rule.due_at)
    row = await work.services.db.fetchrow(_BEGIN[rule.begun_at is not None], *ids, *values)
    return row["begun_at"] if row else None


async def _clean_up(work: Work) -> None:
    """Delete the CSR before, with its key, once its certificate has ended: a server may have had it until then."""
    rule, db = work.rule, work.services.db
    if rule.previous_csr_id is None:
        return
    try:
        place, csr = await _find_csr(work, rule.previous_csr_id)
        await csrs.delete(db, CALLER, place, csr.id)
    except NotFound:
        pass
    except Conflict:
        # Another certificate uses the key.
        _log.info("a superseded key is kept, for it is in use", csr=str(rule.previous_csr_id))
    ids = (rule.account_id, rule.certificate_id, rule.due_at)
    await db.execute(_CLEANED, *ids)


_CLEANED = """
UPDATE renewal_rules SET previous_csr_id = NULL, previous_ends = NULL
WHERE account_id = $1 AND certificate_id = $2 AND due_at = $3
"""


async def _waits(work: Work, csr: Csr | None) -> Outcome:
    await _tell(work, Event.EXPIRING, "it waits for the certificate of a CA outside")
    if work.rule.state is not State.WAITING:
        metrics.renewal("waiting")
    name = f"the custom CSR {csr.id}" if csr else "the CSR of its present key"
    return Outcome(State.WAITING, work.now + LOOK_AGAIN, f"a CA outside has to sign {name}")


async def _failed(services: Services, rule: Rule, now: datetime, reason: str) -> Outcome | None:
    failures = rule.failures + 1
    retry = min(FIRST_RETRY * 2 ** min(failures - 1, 10), MAX_RETRY)
    ids = (rule.account_id, rule.certificate_id, rule.zone_id)
    scope = Scope(rule.account_id, rule.zone_id)
    try:
        certificate = await certificates.get(services.db, scope, rule.certificate_id)
    except NotFound:
        # It was deleted meanwhile, and its rule with it.
        return None
    await audit.failed(services.db, CALLER, audit.Action.RENEW, audit.Resource.CUSTOM_CERTIFICATE, ids)
    metrics.renewal("failed")
    await _tell(Work(services, rule, scope, certificate, now), Event.FAILED, reason)
    return Outcome(State.FAILING, now + retry, reason[:MAX_PROBLEM] or "unknown", failures)


async def _tell(work: Work, event: Event, reason: str = "") -> None:
    """One line of the log, and the operator's program."""
    rule, certificate, reason = work.rule, work.certificate, reason[:MAX_PROBLEM]
    where = {"account": rule.account_id.hex, "zone": rule.zone_id.hex, "certificate": str(rule.certificate_id)}
    if event is Event.RENEWED:
        _log.info("certificate renewed", **where)
    else:
        days = (certificate.not_after - work.now).days
        _log.warning("certificate expiring", **where, days_left=days, reason=reason)
    ends = times.instant(certificate.not_after)
    notice = Notice(event=event, **where, hosts=tuple(certificate.hosts), expires_on=ends, reason=reason)
    await programs.tell(work.services.tell, notice)


_FINISH = """
UPDATE renewal_rules SET due_at = $4, state = $5, problem = $6, failures = $7,
    begun_at = CASE WHEN $8 THEN NULL ELSE begun_at END
WHERE account_id = $1 AND certificate_id = $2 AND due_at = $3
"""


async def _finish(services: Services, rule: Rule, outcome: Outcome) -> None:
    ids = (rule.account_id, rule.certificate_id, rule.due_at)
    settled = outcome.state in {State.SCHEDULED, State.STOPPED}
    values = (outcome.due_at, outcome.state.value, outcome.problem, outcome.failures, settled)
    await services.db.execute(_FINISH, *ids, *values)
