"""Issuing certificates: insert the row, sign, then store the certificate (contract-infisical, "X.509 rules").

A crash in between leaves a row without a certificate, which records what was intended; its serial can be revoked like
any other.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import asyncpg
import msgspec
from cryptography import x509

from app.audit import record as audit
from app.ca.model import Authority, CaCertificate, Issued, Profile
from app.caller import Caller, Scope
from app.custody import keyring
from app.errors import KeysteadError, NotFound, Refusal
from app.services import Services
from app.store.database import Database, parameters
from app.x509 import chains, pkix
from app.x509.keys import PrivateKey

BACKDATED = timedelta(minutes=5)
MAX_BACKDATED = timedelta(hours=48)


class Signed(msgspec.Struct, frozen=True):
    """A new certificate in PEM, its issuer's certificate, and the chain from the issuer to the root."""

    serial: str
    pem: str
    issuer_pem: str
    chain: str


def now() -> datetime:
    """The current time in whole seconds, as X.509 requires (RFC 5280 section 4.1.2.5)."""
    return datetime.now(UTC).replace(microsecond=0)


def validity(
    issuer: CaCertificate | None, not_before: datetime | None, not_after: datetime
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
        raise Refusal(f"notBefore date is before CA certificate's notBefore date: that is {_shown(issuer.not_before)}")
    if begins >= ends:
        raise Refusal(f"notBefore date is after notAfter date: they are {_shown(begins)} and {_shown(ends)}")
    if issuer and ends > issuer.not_after:
        raise Refusal(f"notAfter date is after CA certificate's notAfter date: that is {_shown(issuer.not_after)}")
    if not_before and begins < today - MAX_BACKDATED:
        raise Refusal("notBefore date is more than 48 hours in the past")
    if ends <= today:
        raise Refusal("notAfter date is in the past")
    return begins, ends


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def latest(authority: Authority) -> CaCertificate:
    """The latest certificate of a CA, even if expired or revoked; raises Refusal if there is none."""
    if authority.certificate is None:
        raise Refusal("CA does not have a certificate installed")
    return authority.certificate


async def installed(db: Database, authority: Authority) -> CaCertificate:
    """The certificate under which a CA signs.

    Raises Refusal if there is none, it has expired, or it or one above it was revoked by a CA of this server.
    """
    certificate = latest(authority)
    if certificate.not_after <= now():
        raise Refusal(f"CA is expired: its certificate ended on {_shown(certificate.not_after)}")
    path = chains.stored(certificate.pem + certificate.chain)
    revoked = path[0] if certificate.revoked else await revoked_among(db, path)
    if revoked:
        text = "by the CA above it" if revoked == path[0] else f"{chains.named(revoked.subject)} above it"
        raise Refusal(f"CA certificate is revoked: {text}")
    return certificate


# Across accounts, because a parent CA may be in another one. Fetches unrevoked rows too: with a filter on revoked_at,
# PostgreSQL might scan all revoked certificates.
_SIGNED_HERE = """
SELECT signed.place, i.revoked_at
FROM unnest($1::integer[], $2::bytea[], $3::text[]) AS signed (place, spki_sha256, serial)
JOIN certificate_authorities c ON c.spki_sha256 = signed.spki_sha256
JOIN issued_certificates i ON i.account_id = c.account_id AND i.ca_id = c.id AND i.serial = signed.serial
ORDER BY signed.place
"""


async def revoked_among(db: Database, path: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """The first certificate of a path (each signed by the next) that a CA of this server has revoked, or None."""
    places = [
        (place, chains.spki_digest(issuer), f"{certificate.serial_number:040x}")
        for place, (certificate, issuer) in enumerate(pairwise(path))
    ]
    rows = await db.fetch(_SIGNED_HERE, *map(list, zip(*places, strict=True))) if places else []
    return next((path[row["place"]] for row in rows if row["revoked_at"]), None)


def require_other(subject: x509.Name, public_key: pkix.PublicKey | None, issuer: x509.Certificate) -> None:
    """Raises Refusal for the issuer's own name or key: verifiers could not tell the two apart."""
    if subject.public_bytes() == issuer.subject.public_bytes():
        raise Refusal("The subject is that of this CA itself.")
    if public_key and chains.spki_of(public_key) == chains.spki_digest(issuer):
        raise Refusal("The CSR's key is that of this CA itself.")


def new_serial() -> int:
    """20 random octets, the top two bits 01: always positive, and always 40 hex digits (RFC 5280 section 4.1.2.2)."""
    octets = bytearray(secrets.token_bytes(20))
    octets[0] = octets[0] & 0x3F | 0x40
    return int.from_bytes(octets, "big")


def crl_url(authority: Authority, pki_url: str | None) -> str | None:
    """The public URL of this CA's CRL; None without KEYSTEAD_PKI_URL."""
    return f"{pki_url}/api/v1/pki/crl/{authority.id}/der" if pki_url else None


def issuer_url(authority: Authority, pki_url: str | None) -> str | None:
    """The public URL of this CA's certificate; None without KEYSTEAD_PKI_URL."""
    if pki_url is None or authority.certificate is None:
        return None
    return f"{pki_url}/api/v1/pki/ca/{authority.id}/certificates/{authority.certificate.id}/der"


async def ca_key(services: Services, caller: Caller, authority: Authority) -> PrivateKey:
    """The CA's private key, checked against its public key; raises NotFound and KeyDamaged."""
    try:
        held = (authority.account_id, authority.key_id, authority.spki_sha256)
        return await keyring.open_key(services.db, services.ring, caller, held)
    except NotFound:
        # The CA and its key were deleted after it was read.
        raise no_ca(str(authority.id)) from None


def no_ca(ca_id: str) -> NotFound:
    return NotFound(f"CA with ID '{ca_id}' not found")


_COLUMNS = (
    "id, issuer_id, profile, serial, spki_sha256, subject, common_name, alt_names, key_usages, extended_key_usages, "
    "path_length, friendly_name, not_before, not_after"
)
_PARAMETERS = 14
# Inserts nothing if the CA was disabled or deleted meanwhile; FOR KEY SHARE serialises this with a deletion.
_MEAN = f"""
WITH ca AS (
    SELECT account_id, id FROM certificate_authorities
    WHERE account_id = $1 AND id = $2 AND NOT disabled FOR KEY SHARE
),
issued AS (
    INSERT INTO issued_certificates (account_id, ca_id, {_COLUMNS})
    SELECT ca.account_id, ca.id, {parameters(3, _PARAMETERS)} FROM ca
    RETURNING account_id, id, NULL::uuid AS zone_id
),
audit AS ({audit.insert(3 + _PARAMETERS, "issued")})
SELECT id FROM issued
"""
_KEEP = """
UPDATE issued_certificates SET pem = $3, modified_at = now() WHERE account_id = $1 AND id = $2 AND pem IS NULL
"""


class Entry(msgspec.Struct, frozen=True):
    """What the audit log and the list of issued certificates say of a new one, besides what is in it."""

    action: audit.Action
    common_name: str = ""
    friendly_name: str | None = None


async def sign(
    services: Services, caller: Caller, authority: Authority, meant: pkix.ToSign, entry: Entry
) -> x509.Certificate:
    """Insert the row, sign the certificate with the CA's key, and store it.

    Raises NotFound if the CA was deleted meanwhile, Refusal if it is disabled, and KeyDamaged.
    """
    private_key = await ca_key(services, caller, authority)
    row_id = uuid4()
    issuer_id = authority.certificate.id if authority.certificate else None
    row = (
        *(row_id, issuer_id, _profile(meant), f"{meant.serial:040x}", chains.spki_of(meant.public_key)),
        *(meant.subject.rfc4514_string(), entry.common_name, [str(name.value) for name in meant.sans]),
        *(list(meant.key_usages), list(meant.extended_key_usages), meant.path_length, entry.friendly_name),
        *(meant.not_before, meant.not_after),
    )
    audited = audit.values(caller, entry.action, audit.Resource.ISSUED_CERTIFICATE)
    if await services.db.fetchrow(_MEAN, authority.account_id, authority.id, *row, *audited) is None:
        raise await _unwilling(services.db, authority, meant)
    certificate = pkix.certificate(meant, private_key)
    await services.db.execute(_KEEP, authority.account_id, row_id, chains.pem([certificate]))
    return certificate


_IS_THERE = "SELECT id FROM certificate_authorities WHERE account_id = $1 AND id = $2"


async def _unwilling(db: Database, authority: Authority, meant: pkix.ToSign) -> KeysteadError:
    """The error for a CA that was deleted or disabled meanwhile."""
    if await db.fetchrow(_IS_THERE, authority.account_id, authority.id) is None:
        return no_ca(str(authority.id))
    return Refusal("CA is disabled" if meant.ca else "CA is not active: it is disabled")


def _profile(meant: pkix.ToSign) -> Profile:
    if meant.issuer is None:
        return Profile.ROOT
    return Profile.INTERMEDIATE if meant.ca else Profile.LEAF


# The columns that `issued` takes.
ISSUED = f"account_id, ca_id, {_COLUMNS}, pem, revoked_at, revocation_reason, created_at, modified_at"
_GET = f"SELECT {ISSUED} FROM issued_certificates WHERE account_id = $1 AND serial = $2"


async def get(db: Database, account_id: UUID, serial: str) -> Issued:
    """A certificate of this account, also a pending one; raises NotFound."""
    row = await db.fetchrow(_GET, account_id, serial)
    if row is None:
        raise not_found(serial)
    return issued(row)


async def viewed(db: Database, caller: Caller, scope: Scope, serial: str) -> Issued:
    """A certificate of this account, for a caller; audited. Raises NotFound."""
    found = await get(db, scope.account_id, serial)
    place = (found.account_id, found.id, None)
    await audit.note(db, caller, audit.Action.READ, audit.Resource.ISSUED_CERTIFICATE, place)
    return found


def issued(row: asyncpg.Record) -> Issued:
    return msgspec.convert(dict(row), Issued)


def not_found(serial: str) -> NotFound:
    return NotFound(f"Certificate with serial number '{serial}' not found")


_ISSUER = "SELECT pem, chain FROM ca_certificates WHERE account_id = $1 AND id = $2"


async def signed(db: Database, certificate: Issued) -> Signed:
    """A certificate with its chain at the time of signing; raises NotFound for a pending one."""
    if certificate.pem is None:
        raise not_found(certificate.serial)
    row = await db.fetchrow(_ISSUER, certificate.account_id, certificate.issuer_id)
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
