"""The rules as callers see and change them."""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from keystead.audit import record as audit
from keystead.ca import authorities
from keystead.caller import Access, Actor, Area, Caller, Scope
from keystead.certificates import store as certificates
from keystead.certificates.model import Certificate, CertificateQuery
from keystead.errors import Denial, Forbidden, Invalid, NotFound, Problem, Thing, quoted
from keystead.errors import Rule as Broken
from keystead.renewal.model import (
    DAYS_BEFORE,
    MAX_DAYS_BEFORE,
    MAX_PERCENT_BEFORE,
    OUTSIDE,
    NewKey,
    Rule,
    State,
    Wanted,
)
from keystead.store.database import Connection, Database

COLUMNS = ", ".join(Rule.__struct_fields__)


class Renewing(msgspec.Struct, frozen=True):
    """A certificate, and the rule that renews it, if it has one."""

    certificate: Certificate
    rule: Rule | None


def problems(wanted: Wanted) -> list[Problem]:
    """Problems of single fields; pure."""
    found = []
    if not wanted.renew_with:
        text = f"renew_with is missing: the id or name of a CA of the account, or {OUTSIDE}."
        found.append(Problem(Broken.TEXT, "renew_with", text))
    if wanted.days_before is not None and wanted.percent_before is not None:
        text = "days_before and percent_before are both given; one of them says when."
        found.append(Problem(Broken.TEXT, "percent_before", text))
    for field, most in (("days_before", MAX_DAYS_BEFORE), ("percent_before", MAX_PERCENT_BEFORE)):
        value = getattr(wanted, field)
        if value is not None and not 1 <= value <= most:
            text = f"{field} is {value}; it must be a whole number from 1 to {most}."
            found.append(Problem(Broken.TEXT, field, text))
    return found


_SET = f"""
WITH rule AS (
    INSERT INTO renewal_rules AS old (account_id, certificate_id, zone_id, ca_id, days_before, percent_before, new_key)
    SELECT account_id, id, zone_id, $4, $5, $6, $7 FROM custom_certificates
    WHERE account_id = $1 AND zone_id = $2 AND id = $3 FOR KEY SHARE
    ON CONFLICT (account_id, certificate_id) DO UPDATE SET ca_id = excluded.ca_id,
        days_before = excluded.days_before, percent_before = excluded.percent_before, new_key = excluded.new_key,
        state = 'scheduled', problem = NULL, failures = 0, due_at = to_timestamp(0), begun_at = NULL
    RETURNING {COLUMNS}
),
changed AS (SELECT account_id, certificate_id AS id, zone_id FROM rule),
audit AS ({audit.insert(8, "changed")})
SELECT {COLUMNS} FROM rule
"""


async def set_(db: Database, caller: Caller, scope: Scope, certificate_id: UUID, wanted: Wanted) -> Renewing:
    """Renew a certificate by itself from now on, as `wanted`; whoever says so must be allowed to sign with the CA.

    Raises NotFound(CERTIFICATE), Invalid, and Forbidden, audited.
    """
    found = problems(wanted)
    if found:
        raise Invalid(tuple(found))
    ca_id = None
    if wanted.renew_with != OUTSIDE:
        await _require_signing(db, caller, scope)
        ca_id = await authorities.id_of(db, scope, wanted.renew_with)
        if ca_id is None:
            named = f"renew_with {quoted(wanted.renew_with)}"
            text = f"{named} is no CA of this account by its id, or by a name that only one has, nor {OUTSIDE}."
            raise Invalid((Problem(Broken.CHOICE, "renew_with", text),))
    certificate = await certificates.get(db, scope, certificate_id)
    if certificate.custom_csr_id is None and wanted.new_key is NewKey.EVERY:
        text = "its key was uploaded, so there is no CSR to make the next one like: say never, or renew it with a CSR."
        raise Invalid((Problem(Broken.CHOICE, "new_key", f"new_key cannot be every: {text}"),))
    days = DAYS_BEFORE if wanted.days_before is wanted.percent_before is None else wanted.days_before
    values = (ca_id, days, wanted.percent_before, wanted.new_key is NewKey.EVERY)
    audited = audit.values(caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE)
    row = await db.fetchrow(_SET, scope.account_id, scope.id, certificate_id, *values, *audited)
    if row is None:
        raise certificates.not_found(certificate_id)
    return Renewing(certificate, msgspec.convert(dict(row), Rule))


async def _require_signing(db: Database, caller: Caller, scope: Scope) -> None:
    account = Scope(scope.account_id)
    if caller.actor is Actor.OPERATOR or caller.may(Area.PRIVATE_CA, Access.SIGN, account):
        return
    await audit.denied(db, caller, audit.Resource.ACCOUNT, scope.account_id, account)
    raise Forbidden(Denial.RESOURCE)


_REMOVE = f"""
WITH rule AS (
    DELETE FROM renewal_rules WHERE account_id = $1 AND zone_id = $2 AND certificate_id = $3
    RETURNING account_id, certificate_id AS id, zone_id
),
audit AS ({audit.insert(4, "rule")})
SELECT id FROM rule
"""


async def remove(db: Database, caller: Caller, scope: Scope, certificate_id: UUID) -> Certificate:
    """Renew a certificate no more by itself; raises NotFound, also if it has no rule."""
    certificate = await certificates.get(db, scope, certificate_id)
    audited = audit.values(caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE)
    if await db.fetchrow(_REMOVE, scope.account_id, scope.id, certificate_id, *audited) is None:
        raise NotFound(f"The custom certificate {certificate_id} has no renewal rule.", Thing.CERTIFICATE)
    return certificate


_OF = f"SELECT {COLUMNS} FROM renewal_rules WHERE account_id = $1 AND certificate_id = ANY($2::uuid[])"


async def of(db: Database | Connection, found: Sequence[Certificate]) -> dict[UUID, Rule]:
    """The rules of certificates of one account, by their ids."""
    if not found:
        return {}
    rows = await db.fetch(_OF, found[0].account_id, [certificate.id for certificate in found])
    rules = [msgspec.convert(dict(row), Rule) for row in rows]
    return {rule.certificate_id: rule for rule in rules}


_GET = f"""
SELECT {", ".join(f"c.{name}" for name in certificates.COLUMNS.split(", "))},
       {", ".join(f"r.{name} AS rule_{name}" for name in Rule.__struct_fields__)}
FROM custom_certificates c
LEFT JOIN renewal_rules r ON r.account_id = c.account_id AND r.certificate_id = c.id
WHERE c.account_id = $1 AND c.zone_id = $2 AND c.id = $3
"""


async def get(db: Database, scope: Scope, certificate_id: UUID) -> Renewing:
    """A certificate with its rule; raises NotFound."""
    row = await db.fetchrow(_GET, scope.account_id, scope.id, certificate_id)
    if row is None:
        raise certificates.not_found(certificate_id)
    rule = None
    if row["rule_account_id"]:
        rule = msgspec.convert({name: row[f"rule_{name}"] for name in Rule.__struct_fields__}, Rule)
    return Renewing(msgspec.convert(dict(row), Certificate), rule)


async def list_(db: Database, scope: Scope, query: CertificateQuery) -> tuple[list[Renewing], int]:
    """A page of this zone's certificates with their rules, and how many there are."""
    page = await certificates.list_(db, scope, query)
    rules = await of(db, page.items)
    return [Renewing(each, rules.get(each.id)) for each in page.items], page.total


_FOR_OPERATOR = f"""
SELECT {COLUMNS} FROM renewal_rules WHERE $1::uuid IS NULL OR zone_id = $1 ORDER BY due_at, certificate_id
"""


async def for_operator(db: Database, zone_id: UUID | None = None) -> tuple[Rule, ...]:
    """The rules of all accounts, or of a zone, next first."""
    return tuple(msgspec.convert(dict(row), Rule) for row in await db.fetch(_FOR_OPERATOR, zone_id))


_BY_STATE = "SELECT state, count(*) AS rules FROM renewal_rules GROUP BY state"


async def by_state(db: Database) -> dict[str, int]:
    """Counts of all rules by their state."""
    found = {row["state"]: int(row["rules"]) for row in await db.fetch(_BY_STATE)}
    return {state.value: found.get(state.value, 0) for state in State}
