"""Issuing certificates: what a CA signs is stored before anybody sees it (contract-infisical, "X.509 rules").

A crash before that leaves neither row nor certificate (docs/decisions/0040-opened-for-a-second.md). Rows of earlier
releases may have no certificate: they record what was intended, and their serials can be revoked like any other.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import msgspec
from cryptography import x509

from keystead.audit import record as audit
from keystead.ca import revoked
from keystead.ca.model import Authority, CaCertificate, Issued, Profile
from keystead.caller import Caller, Scope
from keystead.custody import keyring
from keystead.errors import CertificateDamaged, NotFound, Refusal
from keystead.remembered import Remembered
from keystead.services import Services
from keystead.store.bundles import Made, Row
from keystead.store.database import Database, encoded, rows
from keystead.x509 import certificate as certificate_bytes
from keystead.x509 import chains, keys, pkix
from keystead.x509.keys import PrivateKey
from keystead.x509.pem import encoded as encoded_pem

BACKDATED = timedelta(minutes=5)
MAX_BACKDATED = timedelta(hours=48)
# A CA may be as old as the plans that describe it; what it signs for others still begins now.
MAX_CA_BACKDATED = timedelta(days=3653)
# How long a worker remembers a CA that signs leaves, and its opened key.
REMEMBERED_SECONDS = 1.0


class Signed(msgspec.Struct, frozen=True):
    """A new certificate in PEM, its issuer's certificate, and the chain from the issuer to the root."""

    serial: str
    pem: str
    issuer_pem: str
    chain: str


def with_chain(to_sign: pkix.ToSign, pem: str, issuer: CaCertificate) -> Signed:
    return Signed(_shown_serial(to_sign), pem, issuer.pem, issuer.pem + issuer.chain)


def _shown_serial(to_sign: pkix.ToSign) -> str:
    return f"{to_sign.serial:040x}"


def now() -> datetime:
    """The current time in whole seconds, as X.509 requires (RFC 5280 section 4.1.2.5)."""
    return datetime.now(UTC).replace(microsecond=0)


def validity(
    issuer: CaCertificate | None, not_before: datetime | None, not_after: datetime, *, ca: bool = False
) -> tuple[datetime, datetime]:
    """Both dates in whole seconds, within the issuer's; raises Refusal (contract-infisical, sign-intermediate)."""
    today = now()
    begins = not_before.replace(microsecond=0) if not_before else today - BACKDATED
    ends = not_after.replace(microsecond=0)
    if issuer and not_before is None:
        begins = max(begins, issuer.not_before)
    if issuer is None and not_before is None and ends <= today:
        raise Refusal("notAfter date is in the past")
    if issuer and begins < issuer.not_before:
        raise Refusal(f"notBefore date is before CA certificate's notBefore date: that is {shown(issuer.not_before)}")
    if begins >= ends:
        raise Refusal(f"notBefore date is after notAfter date: they are {shown(begins)} and {shown(ends)}")
    if issuer and ends > issuer.not_after:
        raise Refusal(f"notAfter date is after CA certificate's notAfter date: that is {shown(issuer.not_after)}")
    if not_before and begins < today - (MAX_CA_BACKDATED if ca else MAX_BACKDATED):
        raise Refusal(f"notBefore date is more than {'ten years' if ca else '48 hours'} in the past")
    if ends <= today:
        raise Refusal("notAfter date is in the past")
    return begins, ends


def shown(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def latest(authority: Authority) -> CaCertificate:
    """The latest certificate of a CA, even if expired or revoked; raises Refusal if there is none."""
    if authority.certificate is None:
        raise Refusal("CA does not have a certificate installed")
    return authority.certificate


def read_of(what: str, *pems: str) -> chains.Certificates:
    """Stored certificates of what the error names; raises CertificateDamaged."""
    try:
        return chains.stored("".join(pems))
    except ValueError as error:
        text = f"The stored certificate of {what} is damaged: the operator has to restore it"
        raise CertificateDamaged(text) from error


class Signer(msgspec.Struct, frozen=True):
    """A CA that may sign, its certificate, and that certificate read, with those above it up to the root."""

    authority: Authority
    issuer: CaCertificate
    path: tuple[x509.Certificate, ...]


async def installed(db: Database, authority: Authority) -> Signer:
    """A CA with the certificate under which it signs; raises Refusal if that is missing, expired or revoked."""
    certificate = latest(authority)
    if certificate.not_after <= now():
        raise Refusal(f"CA is expired: its certificate ended on {shown(certificate.not_after)}")
    path = read_of(f"CA '{authority.id}'", certificate.pem, certificate.chain)
    found = path[0] if certificate.revoked else await revoked.first_in(db, path)
    if found:
        text = "by the CA above it" if found == path[0] else f"{chains.named(found.subject)} above it"
        raise Refusal(f"CA certificate is revoked: {text}")
    return Signer(authority, certificate, path)


def require_other(subject: x509.Name, public_key: pkix.PublicKey | None, by: Signer) -> None:
    """Raises Refusal for the issuer's own name or key: verifiers could not tell the two apart."""
    if subject.public_bytes() == by.path[0].subject.public_bytes():
        raise Refusal("The subject is that of this CA itself.")
    if public_key and keys.spki_sha256(public_key) == by.authority.spki_sha256:
        raise Refusal("The CSR's key is that of this CA itself.")


def new_serial() -> int:
    """20 random octets, the top two bits 01: always positive, and always 40 hex digits (RFC 5280 section 4.1.2.2)."""
    octets = bytearray(secrets.token_bytes(20))
    octets[0] = octets[0] & 0x3F | 0x40
    return int.from_bytes(octets, "big")


def read_csr(text: str) -> pkix.Request:
    """Parse a CSR; raises Refusal."""
    try:
        return pkix.read_csr(text)
    except pkix.BadCsr as error:
        raise Refusal(str(error)) from None


def key_of(csr: pkix.Request, by: Signer) -> pkix.PublicKey:
    """The key of a CSR; raises Refusal if this CA may not sign it."""
    require_other(csr.subject, csr.public_key, by)
    weakness = pkix.weakness(csr.public_key)
    if weakness or csr.public_key is None:
        raise Refusal(weakness)
    return csr.public_key


def ca_public_key(certificate: x509.Certificate) -> pkix.PublicKey:
    """The key of a CA's certificate."""
    key = certificate.public_key()
    if not isinstance(key, pkix.PublicKey):
        raise TypeError("neither an RSA nor an EC key")
    return key


def draft(
    by: Signer, subject: x509.Name, public_key: pkix.PublicKey, dates: tuple[datetime, datetime], pki_url: str | None
) -> pkix.ToSign:
    """A leaf certificate by this CA, without usages and SANs; it has no URLs without KEYSTEAD_PKI_URL."""
    ca_id = by.authority.id
    crl_url = f"{pki_url}/api/v1/pki/crl/{ca_id}/der" if pki_url else None
    issuer_url = f"{pki_url}/api/v1/pki/ca/{ca_id}/certificates/{by.issuer.id}/der" if pki_url else None
    return pkix.ToSign(
        issuer=by.path[0],
        subject=subject,
        public_key=public_key,
        serial=new_serial(),
        not_before=dates[0],
        not_after=dates[1],
        ca=False,
        crl_url=crl_url,
        issuer_url=issuer_url,
    )


async def ca_key(services: Services, caller: Caller, authority: Authority) -> PrivateKey:
    """The CA's private key, checked against its public key; raises NotFound and KeyDamaged."""
    try:
        key = (authority.account_id, authority.key_id, authority.spki_sha256)
        return await keyring.open_for(services.cas_remembered, services.db, services.ring, caller, key)
    except NotFound:
        # The CA and its key were deleted after it was read.
        raise no_ca(authority.id) from None


def no_ca(ca_id: UUID | str) -> NotFound:
    return NotFound(f"CA with ID '{ca_id}' not found")


_INPUTS = {
    **dict.fromkeys(("id", "issuer_id"), "uuid"),
    **dict.fromkeys(("profile", "serial"), "text"),
    "spki_sha256": "bytea",
    **dict.fromkeys(("subject", "common_name"), "text"),
    **dict.fromkeys(("alt_names", "key_usages", "extended_key_usages"), "text[]"),
    "path_length": "integer",
    "friendly_name": "text",
    **dict.fromkeys(("not_before", "not_after"), "timestamptz"),
    **dict.fromkeys(("profile_id", "application_id"), "uuid"),
    "key_made_here": "boolean",
    "pem": "text",
}
_COLUMNS = ", ".join(_INPUTS)
_NEW = {**_INPUTS, **audit.COLUMNS}
# Inserts nothing if the CA was disabled or deleted meanwhile; FOR KEY SHARE serialises this with a deletion.
_INSERT = f"""
WITH ca AS (
    SELECT account_id, id FROM certificate_authorities
    WHERE account_id = $1 AND id = $2 AND NOT disabled FOR KEY SHARE
),
new AS (SELECT ca.account_id, ca.id AS ca_id, NULL::uuid AS zone_id, new.* FROM ca, {rows("$3", _NEW)}),
issued AS (
    INSERT INTO issued_certificates (account_id, ca_id, {_COLUMNS})
    SELECT account_id, ca_id, {_COLUMNS} FROM new RETURNING id
),
audit AS ({audit.insert_each("new")})
SELECT id FROM issued
"""
_EXISTS = "SELECT id FROM certificate_authorities WHERE account_id = $1 AND id = $2"


class Entry(msgspec.Struct, frozen=True):
    """What the audit log and the list of issued certificates say of a new one, besides what is in it."""

    action: audit.Action
    common_name: str = ""
    friendly_name: str | None = None
    profile_id: UUID | None = None
    application_id: UUID | None = None


async def sign(services: Services, caller: Caller, authority: Authority, to_sign: pkix.ToSign, entry: Entry) -> str:
    """Sign a certificate with the CA's key, and store it; its PEM.

    Raises NotFound or Refusal if the CA was deleted or disabled.
    """
    db = services.db
    private_key = await ca_key(services, caller, authority)
    pem = encoded_pem("CERTIFICATE", certificate_bytes.signed(to_sign, private_key))
    issuer_id = authority.certificate.id if authority.certificate else None
    ca_profile = Profile.INTERMEDIATE if to_sign.issuer else Profile.ROOT
    profile = ca_profile if to_sign.ca else Profile.LEAF
    row = (
        *(uuid4(), issuer_id, profile, _shown_serial(to_sign), keys.spki_sha256(to_sign.public_key)),
        *(to_sign.subject.rfc4514_string(), entry.common_name, [str(name.value) for name in to_sign.sans]),
        *(list(to_sign.key_usages), list(to_sign.extended_key_usages), to_sign.path_length, entry.friendly_name),
        *(to_sign.not_before, to_sign.not_after, entry.profile_id, entry.application_id),
        *(entry.action is audit.Action.ISSUE_KEY, pem),
    )
    audited = audit.values(caller, entry.action, audit.Resource.ISSUED_CERTIFICATE)
    # Nobody has seen the certificate until this has committed.
    ca = (authority.account_id, authority.id)
    if await db.insert_bundled(ca, (*row, *audited), partial(_insert, db, ca)) is None:
        if await db.fetchrow(_EXISTS, *ca) is None:
            raise no_ca(authority.id)
        raise Refusal("CA is disabled" if to_sign.ca else "CA is not active: it is disabled")
    return pem


async def _insert(db: Database, ca: tuple[UUID, UUID], new: Sequence[Row]) -> list[Made]:
    """Store certificates of one CA, in one transaction; None for each if the CA was disabled or deleted."""
    stored = {row["id"]: row for row in await db.fetch(_INSERT, *ca, encoded(_NEW, new))}
    return [stored.get(row[0]) for row in new]


# The columns that `issued` takes.
ISSUED = f"account_id, ca_id, {_COLUMNS}, revoked_at, revocation_reason, created_at, modified_at"
_GET = f"SELECT {ISSUED} FROM issued_certificates WHERE account_id = $1 AND serial = $2"


async def get(db: Database, account_id: UUID, serial: str) -> Issued:
    """A certificate of this account, also a pending one; raises NotFound."""
    row = await db.fetchrow(_GET, account_id, serial)
    if row is None:
        raise not_found(serial)
    return issued(row)


_BY_ID = f"SELECT {ISSUED} FROM issued_certificates WHERE account_id = $1 AND id = $2"


async def by_id(db: Database, scope: Scope, certificate_id: UUID) -> Issued:
    """A certificate of this account, also a pending one; raises NotFound."""
    row = await db.fetchrow(_BY_ID, scope.account_id, certificate_id)
    if row is None:
        raise no_certificate(certificate_id)
    return issued(row)


def no_certificate(certificate_id: object) -> NotFound:
    return NotFound(f"Certificate with ID '{certificate_id}' not found")


def issued(row: asyncpg.Record) -> Issued:
    return msgspec.convert(dict(row), Issued)


def not_found(serial: str) -> NotFound:
    return NotFound(f"Certificate with serial number '{serial}' not found")


_ISSUER = "SELECT pem, chain FROM ca_certificates WHERE account_id = $1 AND id = $2"
# Certificates of CAs, which are never changed.
_issuers: Remembered[tuple[Database, UUID, UUID | None], asyncpg.Record | None] = Remembered()


async def signed(services: Services, certificate: Issued) -> Signed:
    """A certificate with its chain at the time of signing; raises NotFound for a pending one."""
    if certificate.pem is None:
        raise not_found(certificate.serial)
    db, ids = services.db, (certificate.account_id, certificate.issuer_id)
    row = await _issuers.get((db, *ids), services.cas_remembered, lambda: db.fetchrow(_ISSUER, *ids))
    if row is None or certificate.profile is Profile.ROOT:
        return Signed(certificate.serial, certificate.pem, certificate.pem, "")
    return Signed(certificate.serial, certificate.pem, row["pem"], row["pem"] + row["chain"])


_FOR_OPERATOR = f"""
SELECT {ISSUED} FROM issued_certificates WHERE account_id = $1 AND ca_id = $2 ORDER BY created_at, id LIMIT $3
"""
MAX_LISTED = 1000


async def of_ca(db: Database, authority: Authority) -> tuple[Issued, ...]:
    """The certificates of a CA, oldest first, for the operator; at most MAX_LISTED."""
    rows = await db.fetch(_FOR_OPERATOR, authority.account_id, authority.id, MAX_LISTED)
    return tuple(issued(row) for row in rows)
