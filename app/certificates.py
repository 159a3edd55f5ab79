"""Custom certificates: signed certificates that have found their key, their renewal, and their rules.

Contract-cloudflare section 6. The private key is that of a CSR, or one that was uploaded and is the certificate's own.
Deletion of a key that a certificate uses is refused by the database: its foreign key decides every race.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from app import audit, chains, keyring, keys, pkix
from app.chains import Anchors, Leaf
from app.db import Connection, Database, parameters
from app.errors import (
    Advice,
    Hint,
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
from app.keypool import KeyPool
from app.keyring import Ring
from app.model import (
    Access,
    Area,
    BundleMethod,
    Caller,
    Certificate,
    CertificatePage,
    CertificateQuery,
    NamePolicy,
    Scope,
    Superseded,
)

TYPES = ("legacy_custom", "sni_custom")
DEPLOYS = ("staging", "production")
GEO_LABELS = ("us", "eu", "highest_security")
MAX_POLICY = 1024
MAX_PRIORITY = 2**31 - 1
SOON = timedelta(days=14)
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
Text: TypeAlias = str | UnsetType
TextOrNone: TypeAlias = str | UnsetType | None


class Upload(msgspec.Struct, frozen=True):
    """What is asked of a certificate: UNSET leaves a field as it is, None takes it away. `private_key` is secret."""

    certificate: Text = UNSET
    private_key: Text = UNSET
    custom_csr_id: TextOrNone = UNSET
    bundle_method: Text = UNSET
    type: Text = UNSET
    geo_label: TextOrNone = UNSET
    policy: TextOrNone = UNSET
    deploy: TextOrNone = UNSET
    malformed: tuple[Problem, ...] = ()

    def __repr__(self) -> str:
        return "Upload()"


class Told(msgspec.Struct, frozen=True):
    """A certificate with what the caller should know about it."""

    certificate: Certificate
    advice: tuple[Advice, ...] = ()


class _Key(msgspec.Struct, frozen=True):
    """The key that a certificate is to have: one that is stored, or a new one on its way in."""

    id: UUID
    spki_sha256: bytes
    custom_csr_id: UUID | None = None
    created_at: datetime | None = None
    sans: tuple[str, ...] | None = None
    new: keyring.NewKey | None = None


def problems(upload: Upload) -> tuple[Problem, ...]:
    """The rules that single fields break; pure."""
    found = list(upload.malformed)
    choices: tuple[tuple[str, TextOrNone, tuple[str, ...]], ...] = (
        ("bundle_method", upload.bundle_method, tuple(BundleMethod)),
        ("type", upload.type, TYPES),
        ("deploy", upload.deploy, DEPLOYS),
        ("geo_restrictions/label", upload.geo_label, GEO_LABELS),
    )
    for field, value, allowed in choices:
        if isinstance(value, str) and value not in allowed:
            text = f"{field.replace('/', '.')} {quoted(value)} is not one of {', '.join(allowed)}."
            found.append(Problem(Rule.CHOICE, field, text))
    if isinstance(upload.policy, str):
        if len(upload.policy) > MAX_POLICY:
            found.append(Problem(Rule.LENGTH, "policy", f"policy has more than {MAX_POLICY} characters."))
        if _FORBIDDEN.search(upload.policy):
            found.append(Problem(Rule.TEXT, "policy", "policy has a control character."))
    if upload.custom_csr_id is None or (isinstance(upload.custom_csr_id, str) and not _uuid(upload.custom_csr_id)):
        text = "custom_csr_id is not the id of a CSR: a UUID is."
        found.append(Problem(Rule.CSR_ID, "custom_csr_id", text))
    return tuple(found)


def _uuid(text: str) -> UUID | None:
    return UUID(text) if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text) else None


_FIELDS = (
    "account_id, id, zone_id, key_id, custom_csr_id, type, bundle_method, geo_label, policy, deploy, priority, sha256, "
    "hosts, issuer, signature, not_before, not_after, chain"
)
_COLUMNS = f"{_FIELDS}, uploaded_at, modified_at"
_FIELD_COUNT = 18
_INSERT = f"""
WITH certificate AS (
    INSERT INTO custom_certificates ({_FIELDS}) VALUES ({parameters(1, _FIELD_COUNT)}) RETURNING {_COLUMNS}
),
audit AS ({audit.insert(1 + _FIELD_COUNT, "certificate")})
SELECT {_COLUMNS} FROM certificate
"""
_INSERT_KEY = keyring.insert_key(1)


async def create(
    db: Database, ring: Ring, pool: KeyPool, trusted: Anchors, caller: Caller, scope: Scope, upload: Upload
) -> Told:
    """Take a signed certificate back; raises Invalid, NotFound(CSR_OF_CERTIFICATE), Conflict and LimitReached."""
    found = list(problems(upload))
    if not upload.certificate and not any(p.field == "certificate" for p in found):
        found.append(Problem(Rule.CERTIFICATE, "certificate", "certificate is required: the PEM that the CA gave."))
    if found:
        raise Invalid(tuple(found))
    key, advice = await _key_for(db, ring, pool, scope, upload)
    leaf, chain = await _judged(db, trusted, caller, scope, upload, str(upload.certificate), key)
    now = datetime.now(UTC)
    certificate = Certificate(
        id=uuid4(),
        account_id=scope.account_id,
        zone_id=scope.id,
        key_id=key.id,
        custom_csr_id=key.custom_csr_id,
        type=upload.type or "legacy_custom",
        bundle_method=BundleMethod(upload.bundle_method or BundleMethod.UBIQUITOUS),
        geo_label=upload.geo_label or None,
        policy=upload.policy or None,
        deploy=upload.deploy or None,
        priority=0,
        sha256=leaf.sha256,
        hosts=leaf.hosts,
        issuer=leaf.issuer,
        signature=leaf.signature,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        chain=chain,
        uploaded_at=now,
        modified_at=now,
    )
    stored = await db.transaction(lambda connection: _store(connection, caller, scope, certificate, key))
    return Told(stored, (*advice, *_advice(stored, scope, key)))


# The zone's deletion waits for our commit, and we for its.
_LIVE = "SELECT id FROM zones WHERE account_id = $1 AND id = $2 AND deleted_at IS NULL FOR KEY SHARE"


async def _store(
    connection: Connection, caller: Caller, scope: Scope, certificate: Certificate, key: _Key
) -> Certificate:
    if await connection.fetchrow(_LIVE, scope.account_id, scope.id) is None:
        raise scope.gone()
    if scope.certificate_quota is not None:
        await connection.execute("SELECT FROM zones WHERE id = $1 FOR NO KEY UPDATE", scope.id)
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
    try:
        row = await connection.fetchrow(_INSERT, *_values(certificate), *audited)
    except asyncpg.ForeignKeyViolationError:
        raise _no_csr(certificate.custom_csr_id) from None
    return _certificate(row)


def _no_csr(csr_id: UUID | None) -> NotFound:
    text = f"There is no custom CSR {csr_id} in this zone or its account."
    return NotFound(text, Thing.CSR_OF_CERTIFICATE)


def _values(certificate: Certificate, fields: str = _FIELDS) -> tuple[object, ...]:
    values = msgspec.structs.asdict(certificate)
    return tuple(list(values[name]) if name == "hosts" else values[name] for name in fields.split(", "))


# A zone's own CSRs, and those of its account's list.
_CSR_KEY = """
SELECT id, key_id, csr, sans, created_at FROM custom_csrs
WHERE account_id = $1 AND scope_id = ANY(ARRAY[$1, $2]) AND id = $3
"""


async def _key_for(
    db: Database, ring: Ring, pool: KeyPool, scope: Scope, upload: Upload, current: _Key | None = None
) -> tuple[_Key, tuple[Advice, ...]]:
    """The key that an upload names: its CSR's, an uploaded one, or the one that the certificate has."""
    offered = upload.private_key if isinstance(upload.private_key, str) else ""
    pair = await _read_key(pool, offered) if keys.holds_pem(offered) else None
    key = current
    if isinstance(upload.custom_csr_id, str):
        key = await _csr_key(db, scope, UUID(upload.custom_csr_id))
    if key is None or (pair and pair.spki_sha256 != key.spki_sha256 and not isinstance(upload.custom_csr_id, str)):
        if pair is None:
            text = "private_key is missing: send custom_csr_id, or a PEM private key."
            raise Invalid((Problem(Rule.PRIVATE_KEY, "private_key", text),))
        new = keyring.new_key(ring, scope.account_id, pair, generated=False)
        return _Key(new.id, pair.spki_sha256, new=new), ()
    if pair and pair.spki_sha256 != key.spki_sha256:
        text = "private_key is not the key of the custom CSR; leave it out, since Keystead holds that key."
        raise Invalid((Problem(Rule.KEY_MISMATCH, "private_key", text),))
    if pair is None and upload.private_key is not UNSET:
        text = "private_key holds no PEM key and was ignored: the key is the custom CSR's."
        return key, (Advice(Hint.OTHER, "private_key", text),)
    return key, ()


async def _read_key(pool: KeyPool, text: str) -> keys.KeyPair:
    try:
        return await pool.read(text)
    except keys.Unusable as error:
        raise Invalid((Problem(Rule.PRIVATE_KEY, "private_key", f"private_key cannot be used: {error}."),)) from None


async def _csr_key(db: Database, scope: Scope, csr_id: UUID) -> _Key:
    row = await db.fetchrow(_CSR_KEY, scope.account_id, scope.id, csr_id)
    if row is None:
        raise _no_csr(csr_id)
    digest = pkix.spki_sha256(row["csr"])
    return _Key(row["key_id"], digest, csr_id, row["created_at"], tuple(row["sans"]))


async def _judged(
    db: Database, trusted: Anchors, caller: Caller, scope: Scope, upload: Upload, pem: str, key: _Key
) -> tuple[Leaf, str]:
    """Read, match and judge a chain; gives the leaf's facts and the PEM to keep."""
    now = datetime.now(UTC)
    sent = chains.read(pem)
    bundle = chains.arrange(sent, key.spki_sha256)
    leaf = chains.facts(bundle.leaf)
    if leaf.spki_sha256 != key.spki_sha256:
        raise Invalid((Problem(Rule.KEY_MISMATCH, "certificate", await _mismatch(db, caller, scope, leaf, key)),))
    chains.judge_leaf(bundle.leaf, now)
    await _require_host(db, scope, leaf)
    if upload.bundle_method == BundleMethod.FORCE:
        return leaf, chains.pem([bundle.leaf, *(c for c in sent if c is not bundle.leaf)])
    return leaf, chains.pem([bundle.leaf, *chains.verify(bundle, trusted, now)])


_BY_KEY = "SELECT id, zone_id FROM custom_csrs WHERE account_id = $1 AND key_id = $2"


async def _mismatch(db: Database, caller: Caller, scope: Scope, leaf: Leaf, key: _Key) -> str:
    """Say which CSR does match, if there is one that this caller may read."""
    expected = f"the custom CSR {key.custom_csr_id}" if key.custom_csr_id else "the private key"
    text = f"the certificate's public key is not that of {expected}"
    key_id = await keyring.find_key(db, scope.account_id, leaf.spki_sha256)
    row = await db.fetchrow(_BY_KEY, scope.account_id, key_id) if key_id else None
    if row is not None and caller.may(Area.SSL, Access.READ, Scope(scope.account_id, row["zone_id"])):
        where = f"of the zone {row['zone_id'].hex}" if row["zone_id"] else "of the account"
        return f"{text}; it is that of the custom CSR {row['id']} {where}."
    return f"{text}."


async def _require_host(db: Database, scope: Scope, leaf: Leaf) -> None:
    if scope.name_policy is not NamePolicy.PUBLIC:
        return
    row = await db.fetchrow("SELECT name FROM zones WHERE id = $1 AND account_id = $2", scope.id, scope.account_id)
    zone = row["name"] if row else ""
    if not any(host.lower() == zone or host.lower().endswith(f".{zone}") for host in leaf.hosts):
        text = f"the certificate names no host of the zone {quoted(zone)}."
        raise Invalid((Problem(Rule.ZONE_HOST, "certificate", text),))


def _advice(certificate: Certificate, scope: Scope, key: _Key) -> list[Advice]:
    now = datetime.now(UTC)
    found = []
    if certificate.not_after - now < SOON:
        text = f"the certificate expires on {certificate.not_after:%Y-%m-%dT%H:%M:%SZ}, in less than 14 days."
        found.append(Advice(Hint.OTHER, "certificate", text))
    if key.sans is not None:
        asked, got = ({name.lower() for name in names} for names in (key.sans, certificate.hosts))
        for names, text in ((asked - got, "lacks"), (got - asked, "has beyond")):
            if names:
                shown = ", ".join(quoted(name) for name in sorted(names)[:10])
                found.append(Advice(Hint.OTHER, "certificate", f"the certificate {text} the CSR's names: {shown}."))
    if key.created_at is not None:
        found += scope.age_advice(key.created_at, now)
    return found


_GET = f"SELECT {_COLUMNS} FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = $3"


async def get(db: Database, scope: Scope, certificate_id: UUID) -> Certificate:
    """One certificate of this zone; raises NotFound."""
    row = await db.fetchrow(_GET, scope.account_id, scope.id, certificate_id)
    if row is None:
        raise _not_found(certificate_id)
    return _certificate(row)


def _not_found(certificate_id: UUID) -> NotFound:
    return NotFound(f"There is no custom certificate {certificate_id} here.", Thing.CERTIFICATE)


_IN_STATUS = """
FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND ($3::text IS NULL OR $3 = CASE
    WHEN not_after <= now() THEN 'expired' WHEN not_before > now() THEN 'pending' ELSE 'active' END)
"""
_LIST = f"SELECT {_COLUMNS} {_IN_STATUS} ORDER BY priority DESC, uploaded_at DESC, id LIMIT $4 OFFSET $5"
_COUNT = f"SELECT count(*) AS total {_IN_STATUS}"
_COUNT_ALL = "SELECT count(*) FROM custom_certificates WHERE account_id = $1 AND zone_id = $2"
_MAX_OFFSET = 2**62


async def list_(db: Database, scope: Scope, query: CertificateQuery) -> CertificatePage:
    """One page of this zone's certificates, the highest priority first; empty past the end."""
    filters = (scope.account_id, scope.id, query.status)
    offset = min((query.page - 1) * query.per_page, _MAX_OFFSET)
    rows = await db.fetch(_LIST, *filters, query.per_page, offset)
    total = await db.fetchrow(_COUNT, *filters)
    return CertificatePage(tuple(_certificate(row) for row in rows), total["total"] if total else 0)


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
_UPDATE = f"""
WITH certificate AS (
    UPDATE custom_certificates SET ({_REPLACED}) = ROW ({parameters(4, 14)}),
        uploaded_at = CASE WHEN sha256 = $11 THEN uploaded_at ELSE now() END, modified_at = now()
    WHERE account_id = $1 AND zone_id = $2 AND id = $3 RETURNING {_COLUMNS}
),
audit AS ({audit.insert(18, "certificate")})
SELECT {_COLUMNS} FROM certificate
"""
_ATTEMPTS = 3
_LOCK = f"{_GET} FOR NO KEY UPDATE"
_DELETE_KEY = f"WITH gone AS (SELECT $1::uuid AS account_id, $2::uuid AS key_id) {keyring.delete_key('gone')}"


async def update(
    db: Database,
    ring: Ring,
    pool: KeyPool,
    trusted: Anchors,
    caller: Caller,
    scope: Scope,
    certificate_id: UUID,
    upload: Upload,
) -> Told:
    """Renew or change a certificate in place: the id stays, and what it was goes into its history.

    Raises as `create`, and NotFound(CERTIFICATE).
    """
    found = problems(upload)
    before = await get(db, scope, certificate_id)
    if found:
        raise Invalid(found)
    for _ in range(_ATTEMPTS):
        told = await _update_once(db, ring, pool, trusted, caller, scope, before, upload)
        if told is not None:
            return told
        # Another request changed it meanwhile: this one is judged anew against what is there now.
        before = await get(db, scope, certificate_id)
    raise Unavailable("this certificate is being changed by many requests at once")


async def _update_once(
    db: Database,
    ring: Ring,
    pool: KeyPool,
    trusted: Anchors,
    caller: Caller,
    scope: Scope,
    before: Certificate,
    upload: Upload,
) -> Told | None:
    current = await _current_key(db, scope, before)
    key, advice = await _key_for(db, ring, pool, scope, upload, current)
    method = upload.bundle_method or before.bundle_method
    asked = msgspec.structs.replace(upload, bundle_method=method)
    after = before
    if upload.certificate or upload.custom_csr_id is not UNSET or key.new or method != before.bundle_method:
        pem = upload.certificate or before.chain
        leaf, chain = await _judged(db, trusted, caller, scope, asked, pem, key)
        after = msgspec.structs.replace(
            after,
            sha256=leaf.sha256,
            hosts=leaf.hosts,
            issuer=leaf.issuer,
            signature=leaf.signature,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            chain=chain,
        )
    after = msgspec.structs.replace(
        after,
        key_id=key.id,
        custom_csr_id=key.custom_csr_id,
        bundle_method=BundleMethod(method),
        type=upload.type or before.type,
        geo_label=before.geo_label if upload.geo_label is UNSET else upload.geo_label,
        policy=before.policy if upload.policy is UNSET else upload.policy or None,
        deploy=before.deploy if upload.deploy is UNSET else upload.deploy,
    )
    if after == before:
        return Told(before, advice)
    stored = await db.transaction(lambda connection: _replace(connection, caller, scope, before, after, key))
    if stored is None:
        return None
    return Told(stored, (*advice, *(_advice(stored, scope, key) if stored.sha256 != before.sha256 else ())))


async def _current_key(db: Database, scope: Scope, certificate: Certificate) -> _Key:
    if certificate.custom_csr_id:
        return await _csr_key(db, scope, certificate.custom_csr_id)
    (leaf, *_) = chains.read(certificate.chain)
    return _Key(certificate.key_id, chains.facts(leaf).spki_sha256)


async def _replace(
    connection: Connection, caller: Caller, scope: Scope, before: Certificate, after: Certificate, key: _Key
) -> Certificate | None:
    row = await connection.fetchrow(_LOCK, scope.account_id, scope.id, before.id)
    if row is None:
        raise _not_found(before.id)
    if _certificate(row) != before:
        return None
    if key.new:
        await connection.execute(_INSERT_KEY, *key.new.row)
    if after.sha256 != before.sha256:
        await connection.execute(_ARCHIVE, scope.account_id, before.id, uuid4())
    audited = audit.values(caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE)
    values = (scope.account_id, scope.id, before.id, *_values(after, _REPLACED), *audited)
    try:
        stored = await connection.fetchrow(_UPDATE, *values)
    except asyncpg.ForeignKeyViolationError:
        raise _no_csr(after.custom_csr_id) from None
    if before.custom_csr_id is None and before.key_id != after.key_id:
        # An uploaded key belongs to its certificate alone.
        await connection.execute(_DELETE_KEY, scope.account_id, before.key_id)
    return _certificate(stored)


_DELETE = f"""
WITH certificate AS (
    DELETE FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = $3
    RETURNING account_id, id, zone_id, key_id, custom_csr_id
),
gone AS (SELECT account_id, key_id FROM certificate WHERE custom_csr_id IS NULL),
key AS ({keyring.delete_key("gone")}),
audit AS ({audit.insert(4, "certificate")})
SELECT id FROM certificate
"""


async def delete(db: Database, caller: Caller, scope: Scope, certificate_id: UUID) -> None:
    """Delete a certificate with its history, and an uploaded key with it; raises NotFound."""
    values = audit.values(caller, audit.Action.DELETE, audit.Resource.CUSTOM_CERTIFICATE)
    if await db.fetchrow(_DELETE, scope.account_id, scope.id, certificate_id, *values) is None:
        raise _not_found(certificate_id)


_PRIORITIZE = """
UPDATE custom_certificates SET priority = $4, modified_at = now()
WHERE account_id = $1 AND zone_id = $2 AND id = $3 AND priority <> $4 RETURNING id
"""
_HERE = """
SELECT id FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND id = ANY($3::uuid[])
ORDER BY id FOR NO KEY UPDATE
"""
_ALL = f"""
SELECT {_COLUMNS} FROM custom_certificates WHERE account_id = $1 AND zone_id = $2
ORDER BY priority DESC, uploaded_at DESC, id LIMIT 1000
"""


async def prioritize(
    db: Database, caller: Caller, scope: Scope, priorities: dict[UUID, int]
) -> tuple[Certificate, ...]:
    """Set the priorities of certificates of this zone, all or none; gives the zone's certificates, highest first."""

    async def work(connection: Connection) -> list[asyncpg.Record]:
        rows = await connection.fetch(_HERE, scope.account_id, scope.id, list(priorities))
        missing = priorities.keys() - {row["id"] for row in rows}
        if missing:
            raise _not_found(min(missing))
        for certificate_id, priority in priorities.items():
            if await connection.fetchrow(_PRIORITIZE, scope.account_id, scope.id, certificate_id, priority):
                place = (scope.account_id, certificate_id, scope.id)
                await audit.record(connection, caller, audit.Action.UPDATE, audit.Resource.CUSTOM_CERTIFICATE, place)
        return await connection.fetch(_ALL, scope.account_id, scope.id)

    return tuple(_certificate(row) for row in await db.transaction(work))


_FOR_OPERATOR = f"""
SELECT {_COLUMNS} FROM custom_certificates
WHERE ($1::uuid IS NULL OR zone_id = $1) AND ($2::timestamptz IS NULL OR not_after < $2)
  AND ($3::uuid IS NULL OR id = $3)
ORDER BY not_after, id
"""


async def for_operator(
    db: Database, zone_id: UUID | None = None, before: datetime | None = None, certificate_id: UUID | None = None
) -> tuple[Certificate, ...]:
    """Certificates of all accounts, the first to expire first; of a zone, or those that expire before a time."""
    return tuple(_certificate(row) for row in await db.fetch(_FOR_OPERATOR, zone_id, before, certificate_id))


async def find(db: Database, word: str) -> Certificate:
    """By id, for the operator; raises NotFound."""
    found = await for_operator(db, certificate_id=UUID(word)) if _uuid(word) else ()
    if not found:
        raise NotFound(f"there is no certificate {quoted(word)}; `keystead certificate list` shows their ids")
    return found[0]


_HISTORY = """
SELECT id, custom_csr_id, hosts, issuer, not_before, not_after, uploaded_at, superseded_at
FROM certificate_history WHERE account_id = $1 AND certificate_id = $2 ORDER BY superseded_at DESC, id
"""


async def history(db: Database, certificate: Certificate) -> tuple[Superseded, ...]:
    """What a certificate was before its renewals, the latest first; for the operator."""
    rows = await db.fetch(_HISTORY, certificate.account_id, certificate.id)
    return tuple(msgspec.convert(dict(row), Superseded) for row in rows)


class Exported(msgspec.Struct, frozen=True):
    """What a web server needs, in PEM; `private_key` is PKCS#8."""

    fullchain: str
    private_key: str

    def __repr__(self) -> str:
        return "Exported()"


async def export(db: Database, ring: Ring, caller: Caller, certificate: Certificate) -> Exported:
    """Open the private key of a certificate for the operator's own host; audited before anything is handed out.

    Raises KeyDamaged when the key does not open, or is not the certificate's.
    """
    (leaf, *_) = chains.read(certificate.chain)
    digest = chains.spki_digest(leaf)
    private_key = await keyring.open_key(db, ring, certificate.account_id, certificate.key_id, digest)
    place = (certificate.account_id, certificate.id, certificate.zone_id)

    async def work(connection: Connection) -> None:
        await audit.record(connection, caller, audit.Action.EXPORT, audit.Resource.CUSTOM_CERTIFICATE, place)

    await db.transaction(work)
    return Exported(certificate.chain, keys.pem(private_key))


def _certificate(row: asyncpg.Record | None) -> Certificate:
    return msgspec.convert(dict(row or ()), Certificate)
