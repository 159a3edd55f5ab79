"""Custom certificates: stored, listed, renewed in place, deleted, exported.

Contract-cloudflare section 6; matching.py validates uploads. The private key belongs to a CSR, or was uploaded with
the certificate and is deleted with it. A foreign key prevents deletion of a key in use, also under concurrency.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import UNSET

from keystead import bounds
from keystead.audit import record as audit
from keystead.caller import Caller, Scope
from keystead.certificates import matching
from keystead.certificates.model import BundleMethod, Certificate, CertificatePage, CertificateQuery, Status, Superseded
from keystead.custody import keyring
from keystead.errors import (
    Advice,
    Invalid,
    Limit,
    LimitReached,
    NotFound,
    Problem,
    Rule,
    Thing,
    Unavailable,
    quoted,
)
from keystead.ids import canonical_uuid
from keystead.services import Services
from keystead.store import expiry, idempotency, paging
from keystead.store.database import Connection, Database, constraint, parameters
from keystead.store.idempotency import Idempotency
from keystead.store.locks import Lock, lock
from keystead.times import CLOCK_SKEW
from keystead.x509 import chains


class Stored(msgspec.Struct, frozen=True):
    """A certificate with warnings for the caller."""

    certificate: Certificate
    advice: tuple[Advice, ...] = ()


_FIELDS = (
    "account_id, id, zone_id, key_id, custom_csr_id, type, bundle_method, geo_label, policy, deploy, priority, sha256, "
    "hosts, issuer, signature, not_before, not_after, chain"
)
COLUMNS = f"{_FIELDS}, uploaded_at, modified_at"
_FIELD_COUNT = 18
_INSERT = f"""
WITH certificate AS (
    INSERT INTO custom_certificates ({_FIELDS}) VALUES ({parameters(1, _FIELD_COUNT)}) RETURNING {COLUMNS}
),
audit AS ({audit.insert(1 + _FIELD_COUNT, "certificate")})
SELECT {COLUMNS} FROM certificate
"""
_INSERT_KEY = keyring.insert_key(1)


async def create(
    services: Services, caller: Caller, scope: Scope, upload: matching.Upload, once: Idempotency | None = None
) -> Stored:
    """Store a certificate in a zone; a repeat with the key of `once` gives the one that is there.

    Raises Invalid, NotFound(CSR_OF_CERTIFICATE), LimitReached, and Conflict for a key that was used with another body.
    """
    if once and (made := await idempotency.find(services.db, caller, scope.account_id, once)):
        return Stored(await get(services.db, scope, made))
    certificate, key, advice = await _drafted(services, caller, scope, upload)

    async def work(connection: Connection) -> Certificate | None:
        account_id = scope.account_id
        if once and not await idempotency.claimed(connection, caller, account_id, once, certificate.id):
            return None
        # So that the zone cannot be deleted before we commit, and each counts those before it where they are counted.
        how = Lock.KEEP if scope.certificate_quota is None else Lock.ALONE
        if not await lock(services.db, connection, scope, how):
            raise scope.gone()
        return await _store(connection, caller, scope, certificate, key)

    stored = await services.db.transaction(work)
    if stored is None:
        # Another request with this key has stored it meanwhile.
        return await create(services, caller, scope, upload, once)
    more = (*matching.advice(stored, scope, key), *await matching.twins(services.db, stored))
    return Stored(stored, (*advice, *more))


async def _drafted(
    services: Services, caller: Caller, scope: Scope, upload: matching.Upload
) -> tuple[Certificate, matching.Key, tuple[Advice, ...]]:
    """The certificate that an upload would store, and its key; raises as `create`."""
    found = matching.problems(upload)
    if not upload.certificate and not any(p.field == "certificate" for p in found):
        found.append(Problem(Rule.CERTIFICATE, "certificate", "certificate is required: the PEM that the CA gave."))
    if found:
        raise Invalid(tuple(found))
    key, advice = await matching.key_for(services, scope, upload)
    sent = chains.read(str(upload.certificate))
    advice += chains.remarks(str(upload.certificate))
    method = BundleMethod(upload.bundle_method or BundleMethod.UBIQUITOUS)
    bundle = await matching.arranged(services.db, caller, scope, sent, key)
    leaf, chain = await matching.judged(services, scope, bundle, method)
    now = datetime.now(UTC)
    certificate = Certificate(
        id=uuid4(),
        account_id=scope.account_id,
        zone_id=scope.id,
        key_id=key.id,
        custom_csr_id=key.custom_csr_id,
        type=upload.type or "legacy_custom",
        bundle_method=method,
        geo_label=upload.geo_label or None,
        policy=upload.policy or None,
        deploy=upload.deploy or None,
        priority=0,
        chain=chain,
        uploaded_at=now,
        modified_at=now,
        **msgspec.structs.asdict(leaf),
    )
    return certificate, key, advice


async def _store(
    connection: Connection, caller: Caller, scope: Scope, certificate: Certificate, key: matching.Key
) -> Certificate:
    if scope.certificate_quota is not None:
        held = await connection.fetchval(_COUNT_ALL, scope.account_id, scope.id)
        if held >= scope.certificate_quota:
            text = (
                f"The quota of {scope.certificate_quota} certificates of this zone is used up; delete one, or have the "
                f"operator run `keystead zone set {scope.id.hex} --certificate-quota N`."
            )
            raise LimitReached(Limit.CERTIFICATE_QUOTA, text)
    if key.new:
        await connection.execute(_INSERT_KEY, *key.new.row)
    audited = audit.values(caller, audit.Action.CREATE, audit.Resource.CUSTOM_CERTIFICATE)
    with _telling_of_its_csr(certificate):
        return _certificate(await connection.fetchrow(_INSERT, *_values(certificate), *audited))


@contextlib.contextmanager
def _telling_of_its_csr(certificate: Certificate) -> Iterator[None]:
    """Raise NotFound if the CSR, and its key, were deleted meanwhile."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if constraint(error).endswith("_fkey"):
            raise matching.no_csr(certificate.custom_csr_id) from None
        raise


def _values(certificate: Certificate, fields: str = _FIELDS) -> tuple[object, ...]:
    values = msgspec.structs.asdict(certificate)
    return tuple(list(values[name]) if name == "hosts" else values[name] for name in fields.split(", "))


_GET = f"SELECT {COLUMNS} FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = $3"


async def get(db: Database, scope: Scope, certificate_id: UUID) -> Certificate:
    """One certificate of this zone; raises NotFound."""
    row = await db.fetchrow(_GET, scope.account_id, scope.id, certificate_id)
    if row is None:
        raise not_found(certificate_id)
    return _certificate(row)


def not_found(certificate_id: UUID) -> NotFound:
    """The error for a certificate that is not in the zone."""
    return NotFound(f"There is no custom certificate {certificate_id} here.", Thing.CERTIFICATE)


_OF_ZONE = "FROM custom_certificates WHERE account_id = $1 AND zone_id = $2"
_IN_STATUS = f"""
{_OF_ZONE} AND $3 = CASE
    WHEN not_after <= now() THEN 'expired' WHEN not_before > now() + $4 THEN 'pending' ELSE 'active' END
"""
# Lists do not return the PEM.
_LISTED = COLUMNS.replace("chain", "'' AS chain")
_ORDER = "ORDER BY priority DESC, uploaded_at DESC, id"
_COUNT_ALL = f"SELECT count(*) {_OF_ZONE}"


async def list_(db: Database, scope: Scope, query: CertificateQuery) -> CertificatePage:
    """One page of this zone's certificates, highest priority first; empty past the end."""
    values: tuple[object, ...] = (scope.account_id, scope.id)
    found = _OF_ZONE
    if query.status:
        values, found = (*values, query.status.value, CLOCK_SKEW), _IN_STATUS
    offset = paging.offset(query.page, query.per_page)
    # The subquery skips rows in the index, which is much smaller than the table.
    ids = f"SELECT id {found} {_ORDER} LIMIT ${len(values) + 1} OFFSET ${len(values) + 2}"
    listed = f"SELECT {_LISTED} FROM custom_certificates WHERE account_id = $1 AND id = ANY(ARRAY({ids})) {_ORDER}"
    async with db.search(scope.account_id) if query.status or offset > bounds.NEAR else contextlib.nullcontext():
        row = await db.fetchrow(f"SELECT count(*) AS total {found}", *values)
        total = row["total"] if row else 0
        rows = await db.fetch(listed, *values, query.per_page, offset) if offset < total else []
    return CertificatePage(tuple(_certificate(row) for row in rows), total)


# A rule that would renew it is looked at again, since it may end at another time.
_LOOK_AGAIN = "UPDATE renewal_rules SET due_at = to_timestamp(0) WHERE account_id = $1 AND certificate_id = $2"
_ARCHIVE = """
INSERT INTO certificate_history
    (account_id, id, certificate_id, custom_csr_id, sha256, hosts, issuer, not_before, not_after, chain, uploaded_at)
SELECT account_id, $3, id, custom_csr_id, sha256, hosts, issuer, not_before, not_after, chain, uploaded_at
FROM custom_certificates WHERE account_id = $1 AND id = $2
"""
_REPLACED = (
    "key_id, custom_csr_id, type, bundle_method, geo_label, policy, deploy, sha256, hosts, issuer, signature, "
    "not_before, not_after, chain"
)


def _update(uploaded_at: str) -> str:
    return f"""
WITH certificate AS (
    UPDATE custom_certificates SET ({_REPLACED}) = ROW ({parameters(4, 14)}),
        uploaded_at = {uploaded_at}, modified_at = now()
    WHERE account_id = $1 AND zone_id = $2 AND id = $3 RETURNING {COLUMNS}
),
audit AS ({audit.insert(18, "certificate")})
SELECT {COLUMNS} FROM certificate
"""


# By whether another certificate was sent.
_UPDATES = {False: _update("uploaded_at"), True: _update("now()")}
_ATTEMPTS = 3
_LOCK = f"{_GET} FOR NO KEY UPDATE"
_DELETE_KEY = keyring.delete_key("(SELECT $2::uuid AS key_id) AS gone")


async def update(
    services: Services, caller: Caller, scope: Scope, certificate_id: UUID, upload: matching.Upload
) -> Stored:
    """Renew or change a certificate: it keeps its id, and the previous version goes to its history.

    Raises as `create`, and NotFound(CERTIFICATE).
    """
    found = matching.problems(upload)
    before = await get(services.db, scope, certificate_id)
    if found:
        raise Invalid(tuple(found))
    for _ in range(_ATTEMPTS):
        result = await _update_once(services, caller, scope, before, upload)
        if result is not None:
            return result
        # It was changed concurrently: validate again against the current version.
        before = await get(services.db, scope, certificate_id)
    raise Unavailable("this certificate is being changed by many requests at once")


async def _update_once(
    services: Services, caller: Caller, scope: Scope, before: Certificate, upload: matching.Upload
) -> Stored | None:
    try:
        current = await matching.current_key(services.db, scope, before)
    except NotFound:
        # A concurrent request gave the certificate another CSR and deleted this one.
        return None
    key, advice = await matching.key_for(services, scope, upload, current)
    advice += chains.remarks(upload.certificate or "")
    method = BundleMethod(upload.bundle_method or before.bundle_method)
    after = before
    if (key.id, method) != (before.key_id, before.bundle_method) or not _needs_no_check(upload, before):
        sent = chains.read(upload.certificate) if upload.certificate else chains.stored(before.chain)
        bundle = await matching.arranged(services.db, caller, scope, sent, key)
        leaf, chain = await matching.judged(services, scope, bundle, method)
        after = msgspec.structs.replace(after, chain=chain, **msgspec.structs.asdict(leaf))
    after = msgspec.structs.replace(
        after,
        key_id=key.id,
        custom_csr_id=key.custom_csr_id,
        bundle_method=method,
        type=upload.type or before.type,
        geo_label=before.geo_label if upload.geo_label is UNSET else upload.geo_label,
        policy=before.policy if upload.policy is UNSET else upload.policy or None,
        deploy=before.deploy if upload.deploy is UNSET else upload.deploy,
    )
    if after == before:
        return Stored(before, advice)
    stored = await services.db.transaction(lambda connection: _replace(connection, caller, before, after, key.new))
    if stored is None:
        return None
    if stored.sha256 != before.sha256:
        advice = (*advice, *matching.advice(stored, scope, key), *await matching.twins(services.db, stored))
    return Stored(stored, advice)


def _needs_no_check(upload: matching.Upload, before: Certificate) -> bool:
    """Whether the upload has no certificate, or repeats the stored one after its expiry, which is then not rejected."""
    if not upload.certificate:
        return True
    expired = before.status(datetime.now(UTC)) is Status.EXPIRED
    return expired and before.sha256 in {chains.facts(c).sha256 for c in chains.read(upload.certificate)}


async def _replace(
    connection: Connection, caller: Caller, before: Certificate, after: Certificate, new: keyring.NewKey | None
) -> Certificate | None:
    ids = (before.account_id, before.zone_id, before.id)
    row = await connection.fetchrow(_LOCK, *ids)
    if row is None:
        raise not_found(before.id)
    if _certificate(row) != before:
        return None
    if new:
        await connection.execute(_INSERT_KEY, *new.row)
    is_other = after.sha256 != before.sha256
    if is_other:
        await connection.execute(_LOOK_AGAIN, before.account_id, before.id)
        await connection.execute(_ARCHIVE, before.account_id, before.id, uuid4())
    audited = audit.values(caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE)
    with _telling_of_its_csr(after):
        stored = await connection.fetchrow(_UPDATES[is_other], *ids, *_values(after, _REPLACED), *audited)
    if before.custom_csr_id is None and before.key_id != after.key_id:
        # An uploaded key is used by its certificate only.
        await connection.execute(_DELETE_KEY, before.account_id, before.key_id)
    return _certificate(stored)


_DELETE = f"""
WITH certificate AS (
    DELETE FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = $3
    RETURNING account_id, id, zone_id, key_id, custom_csr_id
),
gone AS (SELECT key_id FROM certificate WHERE custom_csr_id IS NULL),
key AS ({keyring.delete_key("gone")}),
audit AS ({audit.insert(4, "certificate")})
SELECT id FROM certificate
"""


async def delete(db: Database, caller: Caller, scope: Scope, certificate_id: UUID) -> None:
    """Delete a certificate with its history and, if it was uploaded, its key; raises NotFound."""
    values = audit.values(caller, audit.Action.DELETE, audit.Resource.CUSTOM_CERTIFICATE)

    async def work(connection: Connection) -> asyncpg.Record | None:
        # Lock first, in a statement of its own: the DELETE must see the key of a renewal that commits meanwhile.
        await connection.fetchrow(_LOCK, scope.account_id, scope.id, certificate_id)
        return await connection.fetchrow(_DELETE, scope.account_id, scope.id, certificate_id, *values)

    if await db.transaction(work) is None:
        raise not_found(certificate_id)


_PRIORITIZE = """
UPDATE custom_certificates c SET priority = wanted.priority, modified_at = now()
FROM unnest($3::uuid[], $4::int[]) AS wanted (id, priority)
WHERE c.account_id = $1 AND c.zone_id = $2 AND c.id = wanted.id AND c.priority <> wanted.priority RETURNING c.id
"""
_HERE = """
SELECT id FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = ANY($3::uuid[])
ORDER BY id FOR NO KEY UPDATE
"""
_ALL = f"""
SELECT {_LISTED} FROM custom_certificates WHERE account_id = $1 AND zone_id = $2
ORDER BY priority DESC, uploaded_at DESC, id LIMIT 1000
"""


async def prioritize(
    db: Database, caller: Caller, scope: Scope, priorities: dict[UUID, int]
) -> tuple[Certificate, ...]:
    """Set priorities, all or none; returns the zone's certificates, highest priority first. Raises NotFound."""

    async def work(connection: Connection) -> list[asyncpg.Record]:
        rows = await connection.fetch(_HERE, scope.account_id, scope.id, list(priorities))
        missing = priorities.keys() - {row["id"] for row in rows}
        if missing:
            raise not_found(min(missing))
        values = (list(priorities), list(priorities.values()))
        changed = await connection.fetch(_PRIORITIZE, scope.account_id, scope.id, *values)
        ids = [(scope.account_id, row["id"], scope.id) for row in changed]
        await audit.record_all(connection, caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE, ids)
        return await connection.fetch(_ALL, scope.account_id, scope.id)

    return tuple(_certificate(row) for row in await db.transaction(work))


_FOR_OPERATOR = f"""
SELECT {COLUMNS} FROM custom_certificates
WHERE ($1::uuid IS NULL OR zone_id = $1) AND ($2::timestamptz IS NULL OR not_after < $2)
  AND ($3::uuid IS NULL OR id = $3)
ORDER BY not_after, id
"""


async def for_operator(
    db: Database, zone_id: UUID | None = None, before: datetime | None = None, certificate_id: UUID | None = None
) -> tuple[Certificate, ...]:
    """Certificates of all accounts by expiry, optionally of a zone, expiring before a time, or with an id."""
    return tuple(_certificate(row) for row in await db.fetch(_FOR_OPERATOR, zone_id, before, certificate_id))


async def find(db: Database, word: str) -> Certificate:
    """The certificate with this id in any account, for the operator; raises NotFound."""
    certificate_id = canonical_uuid(word)
    found = await for_operator(db, certificate_id=certificate_id) if certificate_id else ()
    if not found:
        raise NotFound(f"there is no certificate {quoted(word)}; `keystead certificate list` shows their ids")
    return found[0]


_HISTORY = """
SELECT id, custom_csr_id, hosts, issuer, not_before, not_after, uploaded_at, superseded_at
FROM certificate_history WHERE account_id = $1 AND certificate_id = $2 ORDER BY superseded_at DESC, id
"""


async def history(db: Database, certificate: Certificate) -> tuple[Superseded, ...]:
    """The earlier versions of a certificate, newest first; for the operator."""
    rows = await db.fetch(_HISTORY, certificate.account_id, certificate.id)
    return tuple(msgspec.convert(dict(row), Superseded) for row in rows)


def _certificate(row: asyncpg.Record | None) -> Certificate:
    return msgspec.convert(dict(row or ()), Certificate)


_BY_EXPIRY = expiry.by_expiry("SELECT not_after AS ends FROM custom_certificates")


async def by_expiry(db: Database) -> dict[str, int]:
    """Counts of all certificates by expiry."""
    return await expiry.counted(db, _BY_EXPIRY)
