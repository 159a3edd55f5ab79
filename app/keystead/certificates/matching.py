"""Validation of certificate uploads: fields, the key a certificate belongs to, and its chain.

Contract-cloudflare section 6. Stored keys are matched by public key, without decrypting them.
"""

from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from keystead.caller import Access, Area, Caller, Scope
from keystead.certificates.model import BundleMethod, Certificate
from keystead.custody import keyring
from keystead.custody.keypool import KeyPool
from keystead.errors import Advice, Hint, Invalid, NotFound, Problem, Rule, Thing, quoted
from keystead.ids import canonical_uuid
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509 import chains, keys, paths, pkix
from keystead.x509.chains import Bundle, Certificates, Leaf
from keystead.x509.names import NamePolicy
from keystead.x509.pem import Kind, instead
from keystead.x509.subjects import FORBIDDEN

TYPES = ("legacy_custom", "sni_custom")
DEPLOYS = ("staging", "production")
GEO_LABELS = ("us", "eu", "highest_security")
MAX_POLICY = 1024
# Lists return all hosts of up to fifty certificates per page.
MAX_HOSTS = 2000
MAX_PRIORITY = 2**31 - 1
SOON = timedelta(days=14)
ROOTS_OF_ONE_NAME = 10
Text: TypeAlias = str | UnsetType
TextOrNone: TypeAlias = str | UnsetType | None


class Upload(msgspec.Struct, frozen=True):
    """The input for a certificate: UNSET keeps a field, None clears it. `private_key` is secret; the repr is empty."""

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


class Key(msgspec.Struct, frozen=True):
    """The key of a certificate: a stored one, or one to insert (`new`). CSR fields are None for uploaded keys."""

    id: UUID
    spki_sha256: bytes
    custom_csr_id: UUID | None = None
    created_at: datetime | None = None
    sans: tuple[str, ...] | None = None
    new: keyring.NewKey | None = None


def problems(upload: Upload) -> list[Problem]:
    """Problems of single fields, including `malformed`; pure."""
    found = list(upload.malformed)
    choices = (
        ("bundle_method", upload.bundle_method, tuple(BundleMethod)),
        ("type", upload.type, TYPES),
        ("deploy", upload.deploy, DEPLOYS),
        ("geo_restrictions.label", upload.geo_label, GEO_LABELS),
    )
    unread = {problem.field for problem in upload.malformed}
    for name, value, allowed in choices:
        field, _, member = name.partition(".")
        if field not in unread and isinstance(value, str) and value not in allowed:
            text = f"{name} {quoted(value)} is not one of {', '.join(allowed)}."
            found.append(Problem(Rule.CHOICE, field, text, member=member or None))
    if isinstance(upload.policy, str):
        if len(upload.policy) > MAX_POLICY:
            found.append(Problem(Rule.LENGTH, "policy", f"policy has more than {MAX_POLICY} characters."))
        if FORBIDDEN.search(upload.policy):
            found.append(Problem(Rule.TEXT, "policy", "policy has a control character."))
    csr_id = upload.custom_csr_id
    if "custom_csr_id" not in unread and (csr_id is None or (isinstance(csr_id, str) and not canonical_uuid(csr_id))):
        found.append(Problem(Rule.CSR_ID, "custom_csr_id", "custom_csr_id is not the id of a CSR: a UUID is."))
    return found


def no_csr(csr_id: UUID | None) -> NotFound:
    return NotFound(f"There is no custom CSR {csr_id} in this zone or its account.", Thing.CSR_OF_CERTIFICATE)


# CSRs of the zone, and of its account.
_CSR_KEY = """
SELECT id, key_id, csr, sans, created_at FROM custom_csrs
WHERE account_id = $1 AND scope_id = ANY(ARRAY[$1, $2]) AND id = $3
"""


async def key_for(
    services: Services, scope: Scope, upload: Upload, current: Key | None = None
) -> tuple[Key, tuple[Advice, ...]]:
    """The key for an upload, with warnings: the CSR's, an uploaded one, or `current`; raises Invalid and NotFound."""
    offered = upload.private_key if isinstance(upload.private_key, str) else ""
    pair = await _read_key(services.pool, offered) if keys.holds_pem(offered) else None
    key = current
    if isinstance(upload.custom_csr_id, str):
        key = await _csr_key(services.db, scope, UUID(upload.custom_csr_id))
    if key is None or (pair and pair.spki_sha256 != key.spki_sha256 and not isinstance(upload.custom_csr_id, str)):
        if pair is None:
            text = "private_key is missing: send custom_csr_id, or a PEM private key."
            if offered:
                text = f"private_key {instead(offered, Kind.KEY)}. Send that, or custom_csr_id."
            raise Invalid((Problem(Rule.PRIVATE_KEY, "private_key", text),))
        new = keyring.new_key(services.ring, scope.account_id, pair, generated=False)
        return Key(new.id, pair.spki_sha256, new=new), ()
    if pair and pair.spki_sha256 != key.spki_sha256:
        text = "private_key is not the key of the custom CSR; leave it out, since Keystead holds that key."
        raise Invalid((Problem(Rule.KEY_MISMATCH, "private_key", text),))
    if pair is None and upload.private_key is not UNSET:
        whose = "the custom CSR's" if key.custom_csr_id else "the one that the certificate has"
        text = f"private_key holds no PEM key and was ignored: the key is {whose}."
        return key, (Advice(Hint.OTHER, "private_key", text),)
    return key, ()


async def _read_key(pool: KeyPool, text: str) -> keys.KeyPair:
    try:
        return await pool.read(text)
    except keys.Unusable as error:
        raise Invalid((Problem(Rule.PRIVATE_KEY, "private_key", f"private_key cannot be used: {error}."),)) from None


async def _csr_key(db: Database, scope: Scope, csr_id: UUID) -> Key:
    row = await db.fetchrow(_CSR_KEY, scope.account_id, scope.id, csr_id)
    if row is None:
        raise no_csr(csr_id)
    return Key(row["key_id"], pkix.spki_sha256(row["csr"]), csr_id, row["created_at"], tuple(row["sans"]))


async def arranged(db: Database, caller: Caller, scope: Scope, sent: Certificates, key: Key) -> Bundle:
    """Find the leaf among the certificates; raises Invalid if it is not for this key."""
    bundle = chains.arrange(sent, key.spki_sha256)
    if chains.spki_digest(bundle.leaf) != key.spki_sha256:
        raise chains.invalid(
            Rule.KEY_MISMATCH, await _mismatch(db, caller, scope, chains.spki_digest(bundle.leaf), key)
        )
    return bundle


async def judged(services: Services, scope: Scope, bundle: Bundle, method: BundleMethod) -> tuple[Leaf, str]:
    """Validate the `arranged` certificates; returns the leaf's facts and the PEM chain to store. Raises Invalid."""
    now = datetime.now(UTC)
    leaf = chains.facts(bundle.leaf)
    if len(leaf.hosts) > MAX_HOSTS:
        text = f"certificate names {len(leaf.hosts)} hosts; at most {MAX_HOSTS} are allowed."
        raise chains.invalid(Rule.CERTIFICATE, text)
    chains.judge_leaf(bundle.leaf, now)
    await _require_host(services.db, scope, leaf)
    if method is BundleMethod.FORCE:
        return leaf, chains.pem([bundle.leaf, *bundle.others])
    roots = await _own_roots(services.db, scope, (bundle.leaf, *bundle.others))
    above = await services.pool.judge(lambda: paths.verify(bundle, chains.with_roots(services.trusted, roots), now))
    return leaf, chains.pem([bundle.leaf, *above])


# At most $4 roots per name, those with a matching key id first. Rows of earlier releases may lack the root's name.
_OWN_ROOTS = """
SELECT root FROM (
    SELECT root, root_subject_sha256, row_number() OVER (
        PARTITION BY root_subject_sha256
        ORDER BY root_key_id = ANY($3::bytea[]) DESC NULLS LAST, max(created_at) DESC
    ) AS rank
    FROM ca_certificates
    WHERE account_id = $1 AND (root_subject_sha256 = ANY($2::bytea[]) OR root_subject_sha256 IS NULL)
    GROUP BY root, root_subject_sha256, root_key_id
) AS roots WHERE rank <= $4 OR root_subject_sha256 IS NULL
"""


async def _own_roots(db: Database, scope: Scope, sent: Certificates) -> list[str]:
    """Roots in PEM, above CAs of this account, that may have issued one of these certificates."""
    names = {chains.name_sha256(certificate.issuer) for certificate in sent}
    key_ids = {chains.issuer_key_id(certificate) for certificate in sent} - {None}
    rows = await db.fetch(_OWN_ROOTS, scope.account_id, list(names), list(key_ids), ROOTS_OF_ONE_NAME)
    return [row["root"] for row in rows]


_BY_KEY = "SELECT id, zone_id FROM custom_csrs WHERE account_id = $1 AND key_id = $2"


async def _mismatch(db: Database, caller: Caller, scope: Scope, spki_sha256: bytes, key: Key) -> str:
    """The error text for a key mismatch; names the matching CSR if the caller may read it."""
    expected = f"the custom CSR {key.custom_csr_id}" if key.custom_csr_id else "the private key"
    text = f"the certificate's public key is not that of {expected}"
    key_id = await keyring.find_key(db, scope.account_id, spki_sha256)
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
        raise chains.invalid(Rule.ZONE_HOST, f"the certificate names no host of the zone {quoted(zone)}.")


def advice(certificate: Certificate, scope: Scope, key: Key) -> list[Advice]:
    now = datetime.now(UTC)
    texts = []
    if certificate.not_after - now < SOON:
        texts.append(f"expires on {certificate.not_after:%Y-%m-%dT%H:%M:%SZ}, in less than 14 days")
    if key.sans is not None:
        wanted, got = ({name.lower() for name in names} for names in (key.sans, certificate.hosts))
        for names, verb in ((wanted - got, "lacks"), (got - wanted, "has beyond")):
            if names:
                shown = ", ".join(quoted(name) for name in sorted(names)[:10])
                texts.append(f"{verb} the CSR's names: {shown}")
    found = [Advice(Hint.OTHER, "certificate", f"the certificate {text}.") for text in texts]
    return found + list(scope.age_advice(key.created_at, now) if key.created_at else ())


_TWIN = """
SELECT id FROM custom_certificates WHERE account_id = $1 AND zone_id = $2 AND sha256 = $3 AND id <> $4 LIMIT 1
"""


async def twins(db: Database, certificate: Certificate) -> tuple[Advice, ...]:
    """A warning if the zone has the same certificate under another id; clients make the new one first, then delete."""
    ids = (certificate.account_id, certificate.zone_id, certificate.sha256, certificate.id)
    twin = await db.fetchrow(_TWIN, *ids)
    if twin is None:
        return ()
    text = f"this zone has the same certificate as {twin['id']} too; an Idempotency-Key keeps a repeat from making one."
    return (Advice(Hint.OTHER, "certificate", text),)


async def current_key(db: Database, scope: Scope, certificate: Certificate) -> Key:
    if certificate.custom_csr_id:
        return await _csr_key(db, scope, certificate.custom_csr_id)
    return Key(certificate.key_id, chains.spki_digest(chains.stored(certificate.chain)[0]))
