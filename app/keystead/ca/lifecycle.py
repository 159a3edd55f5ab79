"""How CAs get certificates: a root signs itself, an intermediate is signed here or elsewhere (contract-infisical).

The key and name of a CA never change; its certificates are versions, and it signs under the latest.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import msgspec
from cryptography import x509

from keystead.audit import record as audit
from keystead.ca import authorities, issuing, revoked
from keystead.ca.authorities import NewAuthority
from keystead.ca.issuing import Entry, Signed
from keystead.ca.model import Authority, CaCertificate, CaType
from keystead.caller import Caller, Scope
from keystead.errors import Invalid, NotFound, Refusal, Unavailable, quoted
from keystead.services import Services
from keystead.store.database import Connection, Database, parameters
from keystead.store.locks import Lock, lock
from keystead.x509 import chains, paths, pkix

ROOT_LIFETIME = timedelta(days=3652)
MAX_CHAIN = 64 * 1024
MAX_VERSIONS = 100


async def create(services: Services, caller: Caller, scope: Scope, new: NewAuthority) -> Authority:
    """Create a CA with its key; a root signs itself at once, an intermediate is pending until it has a certificate."""
    found = authorities.problems(new)
    if found:
        raise Invalid(found)
    dates = issuing.validity(None, new.not_before, new.not_after or _ends(new), ca=True)
    authority = await authorities.insert(services, caller, scope, new)
    if new.type is CaType.INTERMEDIATE:
        return authority
    private_key = await issuing.ca_key(services, caller, authority)
    to_sign = _root(pkix.ca_name(new.subject), private_key.public_key(), dates, authority.path_length)
    certificate = await _sign_ca(services, caller, authority, to_sign, audit.Action.SIGN)
    await _install(services.db, caller, authority, _Version((certificate,)), None)
    return await authorities.get(services.db, scope, authority.id)


def _root(
    subject: x509.Name, public_key: pkix.PublicKey, dates: tuple[datetime, datetime], path_length: int | None
) -> pkix.ToSign:
    return pkix.ToSign(
        issuer=None,
        subject=subject,
        public_key=public_key,
        serial=issuing.new_serial(),
        not_before=dates[0],
        not_after=dates[1],
        ca=True,
        path_length=path_length,
        key_usages=pkix.ROOT_KEY_USAGES,
    )


def _intermediate(draft: pkix.ToSign, path_length: int | None) -> pkix.ToSign:
    return msgspec.structs.replace(draft, ca=True, path_length=path_length, key_usages=pkix.CA_KEY_USAGES)


def _ends(new: NewAuthority) -> datetime:
    try:
        return (new.not_before or issuing.now()) + ROOT_LIFETIME
    except OverflowError:
        raise Refusal("notBefore date is too far away: X.509 has no dates after 9999") from None


async def _sign_ca(
    services: Services, caller: Caller, by: Authority, to_sign: pkix.ToSign, action: audit.Action
) -> x509.Certificate:
    subject = pkix.ca_subject(to_sign.subject)
    entry = Entry(action, subject.common_name if subject else "")
    return chains.stored(await issuing.sign(services, caller, by, to_sign, entry))[0]


async def csr(services: Services, caller: Caller, scope: Scope, ca_id: UUID) -> str:
    """A new CSR for an intermediate, signed with its key; PEM with a trailing newline. Raises Refusal for a root."""
    authority = await authorities.get(services.db, scope, ca_id)
    if authority.type is CaType.ROOT:
        raise Refusal("Root CA cannot generate CSR")
    private_key = await issuing.ca_key(services, caller, authority)
    request = pkix.ca_csr(private_key, authority.subject, authority.path_length)
    await authorities.note(services.db, caller, authority, audit.Action.GET_CSR)
    return request


class IntermediateRequest(msgspec.Struct, frozen=True):
    """A request for a CA certificate; `max_path_length` -1 means the most that the signing CA allows."""

    csr: str
    not_after: datetime
    not_before: datetime | None = None
    max_path_length: int = -1


async def sign_intermediate(
    services: Services, caller: Caller, scope: Scope, ca_id: UUID, request: IntermediateRequest
) -> Signed:
    """Sign another CA's CSR; raises NotFound, Refusal and KeyDamaged."""
    authority = await authorities.get(services.db, scope, ca_id)
    if authority.disabled:
        raise Refusal("CA is disabled")
    signer = await issuing.installed(services.db, authority)
    csr = _ca_csr(request.csr)
    public_key = issuing.key_of(csr, signer)
    path_length = _path_length(signer.path, request.max_path_length)
    dates = issuing.validity(signer.issuer, request.not_before, request.not_after)
    draft = issuing.draft(signer, csr.subject, public_key, dates, services.pki_url)
    to_sign = _intermediate(draft, path_length)
    certificate = await _sign_ca(services, caller, authority, to_sign, audit.Action.SIGN_INTERMEDIATE)
    return issuing.with_chain(to_sign, chains.pem([certificate]), signer.issuer)


def _ca_csr(text: str) -> pkix.Request:
    """Parse the CSR of a CA; raises Refusal if its subject cannot be that of a CA."""
    csr = issuing.read_csr(text)
    if not list(csr.subject):
        raise Refusal("The CSR's subject is empty, and a CA has a name.")
    if csr.rewritten:
        # Verifiers compare issuer and subject byte for byte, so re-encoding the name would break chains.
        text = "The CSR's subject has a string that its type cannot hold; the name of a CA has to stay as it is."
        raise Refusal(text)
    return csr


def _path_length(issuers: Sequence[x509.Certificate], requested: int) -> int | None:
    """The path length of a new CA below these issuers, nearest first; raises Refusal (RFC 5280 section 6.1.4)."""
    bounds = [
        (length - depth, f"{chains.named(c.subject)} has path length {length}")
        for depth, c in enumerate(issuers)
        if (length := chains.path_length(c)) is not None
    ]
    if not bounds:
        return requested if requested >= 0 else None
    most, bound = min(bounds)
    if most <= 0:
        raise Refusal(f"Failed to issue intermediate certificate due to CA path length constraint: {bound}")
    if requested >= most:
        text = "The requested path length constraint exceeds the CA's allowed path length"
        raise Refusal(f"{text}: at most {most - 1}, since {bound}")
    return requested if requested >= 0 else most - 1


class SignedElsewhere(msgspec.Struct, frozen=True):
    """A CA's certificate from another CA, in PEM; `chain` goes up to the root, in any order."""

    certificate: str
    chain: str


async def import_certificate(
    db: Database, caller: Caller, scope: Scope, ca_id: UUID, signed: SignedElsewhere
) -> Authority:
    """Install an intermediate's certificate; raises NotFound and Refusal."""
    authority = await authorities.get(db, scope, ca_id)
    _require_importable(authority)
    own, above = await _chain(authority, signed)
    if chains.spki_digest(own) != authority.spki_sha256:
        raise Refusal("CA and certificate public key do not match: the CA's CSR has another key")
    if authority.spki_sha256 in map(chains.spki_digest, above):
        raise Refusal("The chain comes back to this CA itself")
    bad = await revoked.first_in(db, (own, *above))
    if bad == own:
        raise Refusal("The certificate is revoked")
    if bad:
        raise Refusal(f"Invalid certificate chain: {chains.named(bad.subject)} is revoked")
    row = await db.fetchrow(_PARENT, authority.account_id, chains.facts(above[0]).sha256)
    parent_id = row["ca_id"] if row and row["ca_id"] != authority.id else None
    await _install(db, caller, authority, _Version((own, *above), parent_id), audit.Action.IMPORT)
    return await authorities.get(db, scope, ca_id)


async def _chain(
    authority: Authority, signed: SignedElsewhere
) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    """The certificate and those above it, nearest first; raises Refusal."""
    if len(signed.certificate) + len(signed.chain) > MAX_CHAIN:
        raise Refusal(f"The certificate and its chain have more than {MAX_CHAIN} characters")
    with _refused("The certificate cannot be read"):
        found = chains.read(signed.certificate)
    if len(found) != 1:
        raise Refusal("The certificate is more than one; what is above it belongs into certificateChain")
    (own,) = found
    mismatch = _mismatch(authority, own)
    if mismatch:
        raise Refusal(f"Imported certificate does not match CA configuration: {mismatch}")
    with _refused("Failed to parse certificate chain"):
        others = [c for c in chains.read(signed.chain) if c != own]
    with _refused("Invalid certificate chain"):
        return own, await asyncio.to_thread(paths.ordered, own, others, issuing.now())


@contextmanager
def _refused(text: str) -> Iterator[None]:
    try:
        yield
    except Invalid as error:
        raise Refusal(f"{text}: {error}") from None


def _require_importable(authority: Authority) -> None:
    if authority.type is CaType.ROOT:
        raise Refusal("Root CA cannot import a certificate: it signs itself")
    if authority.disabled:
        raise Refusal("CA is disabled")
    if authority.parent_id:
        raise Refusal("Cannot import certificate to intermediate CA chained to internal parent CA")
    _require_version_left(authority)


def _require_version_left(authority: Authority) -> None:
    if authority.certificate and authority.certificate.version >= MAX_VERSIONS:
        raise Refusal(f"This CA has had {MAX_VERSIONS} certificates; make a new one")


_PARENT = "SELECT ca_id FROM ca_certificates WHERE account_id = $1 AND sha256 = $2"


def _mismatch(authority: Authority, certificate: x509.Certificate) -> str:
    """How a certificate differs from its CA's configuration; empty if it does not."""
    subject = pkix.ca_subject(certificate.subject)
    for field, wanted in msgspec.structs.asdict(authority.subject).items():
        if subject is None or getattr(subject, field) != wanted:
            word = pkix.CA_ATTRIBUTES[field]
            return f"its subject is {chains.named(certificate.subject)}, and {word} is to be {quoted(wanted)}"
    if not chains.is_reproducible(certificate):
        return "its subject is encoded in a way that cannot be written again bit for bit"
    if not chains.is_ca(certificate):
        return "it is no CA certificate"
    usage = next((e.value for e in certificate.extensions if isinstance(e.value, x509.KeyUsage)), None)
    if usage is not None and not (usage.key_cert_sign and usage.crl_sign):
        return "its key usage lacks keyCertSign or cRLSign"
    length = chains.path_length(certificate)
    if authority.max_path_length >= 0 and (length is None or length > authority.max_path_length):
        return f"its path length is to be at most {authority.max_path_length}"
    if certificate.not_valid_after_utc <= issuing.now():
        return f"it expired on {issuing.shown(certificate.not_valid_after_utc)}"
    return ""


class OwnCertificate(msgspec.Struct, frozen=True):
    """A request for a CA's own certificate; a root needs no parent, and an intermediate keeps the one it has."""

    not_before: datetime | None
    not_after: datetime
    max_path_length: int = -1
    parent_id: UUID | None = None


async def certify(services: Services, caller: Caller, scope: Scope, ca_id: UUID, wanted: OwnCertificate) -> Authority:
    """Give a CA a certificate in one step: a root signs itself, an intermediate is signed by a CA of its account."""
    authority = await authorities.get(services.db, scope, ca_id)
    if authority.disabled:
        raise Refusal("CA is disabled")
    _require_version_left(authority)
    key = (await issuing.ca_key(services, caller, authority)).public_key()
    length = wanted.max_path_length if wanted.max_path_length >= 0 else authority.max_path_length
    if authority.type is CaType.ROOT:
        dates = issuing.validity(None, wanted.not_before, wanted.not_after, ca=True)
        to_sign = _root(pkix.ca_name(authority.subject), key, dates, length if length >= 0 else None)
        signer, action, above = authority, audit.Action.SIGN, tuple[x509.Certificate, ...]()
    else:
        signer, to_sign, above = await _below(services, scope, authority, key, (wanted, length))
        action = audit.Action.SIGN_INTERMEDIATE
    certificate = await _sign_ca(services, caller, signer, to_sign, action)
    parent_id = None if signer is authority else signer.id
    await _install(services.db, caller, authority, _Version((certificate, *above), parent_id), audit.Action.IMPORT)
    return await authorities.get(services.db, scope, ca_id)


async def _below(
    services: Services,
    scope: Scope,
    authority: Authority,
    key: pkix.PublicKey,
    wanted: tuple[OwnCertificate, int],
) -> tuple[Authority, pkix.ToSign, tuple[x509.Certificate, ...]]:
    """The CA that signs an intermediate, what it signs, and the certificates above."""
    request, length = wanted
    parent_id = request.parent_id or authority.parent_id
    if parent_id is None:
        raise Refusal("Parent CA ID is required: an intermediate is signed by another CA")
    parent = await authorities.get(services.db, scope, parent_id)
    if parent.disabled:
        raise Refusal("Parent CA is disabled")
    signer = await issuing.installed(services.db, parent)
    if authority.spki_sha256 in map(chains.spki_digest, signer.path):
        raise Refusal("The chain comes back to this CA itself")
    subject = pkix.ca_name(authority.subject)
    issuing.require_other(subject, key, signer)
    dates = issuing.validity(signer.issuer, request.not_before, request.not_after, ca=True)
    draft = issuing.draft(signer, subject, key, dates, services.pki_url)
    return parent, _intermediate(draft, _path_length(signer.path, length)), signer.path


async def version(db: Database, authority: Authority, certificate_id: UUID) -> CaCertificate:
    """One of a CA's certificates; raises NotFound."""
    found = next((each for each in await versions(db, authority) if each.id == certificate_id), None)
    if found is None:
        raise NotFound(f"CA certificate with ID '{certificate_id}' not found")
    return found


_IS_BELOW = """
WITH RECURSIVE up AS (
    SELECT id, parent_id FROM certificate_authorities WHERE account_id = $1 AND id = $2
    UNION
    SELECT c.id, c.parent_id FROM up JOIN certificate_authorities c ON c.account_id = $1 AND c.id = up.parent_id
)
SELECT EXISTS (SELECT FROM up WHERE id = $3)
"""
_LOCK = "SELECT FROM certificate_authorities WHERE account_id = $1 AND id = $2 FOR NO KEY UPDATE"
_INSERT_VERSION = f"""
INSERT INTO ca_certificates
    (account_id, id, ca_id, version, serial, sha256, path_length, not_before, not_after, pem, chain, root,
    root_subject_sha256, root_key_id)
VALUES ({parameters(1, 14)})
"""
# The next fetch signs a CRL under the new certificate, whose key identifier may differ.
_FORGET_CRL = """
UPDATE crls SET der = NULL, this_update = NULL, next_update = NULL WHERE account_id = $1 AND ca_id = $2
"""
_SET_PARENT = "UPDATE certificate_authorities SET parent_id = $3, modified_at = now() WHERE account_id = $1 AND id = $2"


class _Version(msgspec.Struct, frozen=True):
    """A new certificate of a CA with those above it, up to the root; `parent_id` is the CA here that signed it."""

    path: tuple[x509.Certificate, ...]
    parent_id: UUID | None = None


async def _install(db: Database, caller: Caller, before: Authority, new: _Version, action: audit.Action | None) -> None:
    """Store this as the CA's latest certificate; raises Unavailable if another request has changed the CA meanwhile."""
    version = before.certificate.version + 1 if before.certificate else 1
    (certificate, *above), parent_id = new.path, new.parent_id
    root = new.path[-1]
    serial = f"{certificate.serial_number:x}"
    # Two hex digits for each octet.
    serial = serial.zfill(len(serial) + len(serial) % 2)
    values = (
        *(before.account_id, uuid4(), before.id, version, serial, chains.facts(certificate).sha256),
        *(chains.path_length(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc),
        *(chains.pem([certificate]), chains.pem(above), chains.pem([root])),
        *(chains.name_sha256(root.subject), chains.key_id(root)),
    )

    async def work(connection: Connection) -> None:
        if parent_id:
            # Otherwise two CAs could concurrently become each other's parent.
            await lock(db, connection, Scope(before.account_id), Lock.ALONE)
            if await connection.fetchval(_IS_BELOW, before.account_id, parent_id, before.id):
                raise Refusal("The chain comes back to this CA itself")
        await connection.execute(_LOCK, before.account_id, before.id)
        current = await authorities.get(connection, Scope(before.account_id), before.id)
        if (current.certificate, current.parent_id) != (before.certificate, before.parent_id):
            raise Unavailable("the CA was changed by another request meanwhile")
        await connection.execute(_INSERT_VERSION, *values)
        await connection.execute(_SET_PARENT, before.account_id, before.id, parent_id)
        await connection.execute(_FORGET_CRL, before.account_id, before.id)
        if action:
            await authorities.note(connection, caller, before, action)

    await db.transaction(work)


_VERSIONS = """
SELECT id, version, serial, path_length, not_before, not_after, pem, chain FROM ca_certificates
WHERE account_id = $1 AND ca_id = $2 ORDER BY version
"""


async def versions(db: Database, authority: Authority) -> tuple[CaCertificate, ...]:
    """All certificates of a CA, oldest first."""
    rows = await db.fetch(_VERSIONS, authority.account_id, authority.id)
    return tuple(msgspec.convert(dict(row), CaCertificate) for row in rows)


_PUBLISHED = "SELECT pem FROM ca_certificates WHERE ca_id = $1 AND id = $2"


async def published(db: Database, ca_id: UUID, certificate_id: UUID) -> bytes:
    """A CA's certificate in DER, without authentication: certificates name its URL. Raises NotFound."""
    row = await db.fetchrow(_PUBLISHED, ca_id, certificate_id)
    if row is None:
        raise NotFound(f"CA certificate with ID '{certificate_id}' not found")
    return pkix.der(row["pem"])


async def renew(services: Services, caller: Caller, scope: Scope, ca_id: UUID, not_after: datetime) -> Authority:
    """Issue a new certificate for the CA's key and name, with the path length that is allowed now."""
    authority = await authorities.get(services.db, scope, ca_id)
    current = issuing.latest(authority)
    if authority.disabled:
        raise Refusal("CA is disabled")
    if current.revoked:
        raise Refusal("CA certificate is revoked: by the CA above it")
    _require_version_left(authority)
    if not_after.replace(microsecond=0) <= current.not_after:
        raise Refusal("New notAfter date must be after the notAfter date of the current certificate")
    signer, to_sign, above = await _renewal(services, scope, authority, not_after)
    certificate = await _sign_ca(services, caller, signer, to_sign, audit.Action.RENEW)
    version = _Version((certificate, *above), authority.parent_id)
    await _install(services.db, caller, authority, version, audit.Action.RENEW)
    return await authorities.get(services.db, scope, ca_id)


async def _renewal(
    services: Services, scope: Scope, authority: Authority, not_after: datetime
) -> tuple[Authority, pkix.ToSign, tuple[x509.Certificate, ...]]:
    """The CA that signs the new certificate, what it signs, and the certificates above."""
    old, path_length = authorities.certificate_of(authority), issuing.latest(authority).path_length
    public_key = issuing.ca_public_key(old)
    if authority.type is CaType.ROOT:
        return authority, _root(old.subject, public_key, issuing.validity(None, None, not_after), path_length), ()
    if authority.parent_id is None:
        raise Refusal("Failed to renew intermediate CA certificate with external parent CA")
    parent = await authorities.get(services.db, scope, authority.parent_id)
    if parent.disabled:
        raise Refusal("Parent CA is disabled")
    signer = await issuing.installed(services.db, parent)
    dates = issuing.validity(signer.issuer, None, not_after)
    draft = issuing.draft(signer, old.subject, public_key, dates, services.pki_url)
    path_length = _path_length(signer.path, -1 if path_length is None else path_length)
    return parent, _intermediate(draft, path_length), signer.path
