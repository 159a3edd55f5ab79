"""Certificates for servers and clients, issued by the CAs of an account (contract-infisical, "Leaves")."""

import ipaddress
import re
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from keystead.audit import record as audit
from keystead.ca import authorities, issuing, policies
from keystead.ca.issuing import Entry, Signed, Signer
from keystead.ca.model import NotAfterPolicy
from keystead.ca.policies import Rules
from keystead.caller import Caller, Scope
from keystead.errors import Invalid, Problem, Refusal, Rule, quoted
from keystead.remembered import Remembered
from keystead.services import Services
from keystead.store.database import Database
from keystead.x509 import keys, names, pkix, subjects
from keystead.x509.keys import CaKeyType
from keystead.x509.names import NamePolicy
from keystead.x509.subjects import CaSubject

MAX_NAMES = 150
MAX_URI = 2048
_SHOWN = 5
# The key usages of each key type in an end-entity certificate (RFC 4055 section 1.2, RFC 8813 section 3).
_ALLOWED = {
    True: {"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment"},
    False: {"digitalSignature", "nonRepudiation", "keyAgreement", "encipherOnly", "decipherOnly"},
}
# RFC 3161 section 2.3, and what verifiers accept in addition.
_FOR_TIME_STAMPS = {"digitalSignature", "nonRepudiation"}
# The purposes granted when a CSR asks for them; timeStamping too, if it asks for nothing else.
_FROM_CSR = {"serverAuth", "clientAuth", "codeSigning", "emailProtection"}
_ANY_PURPOSE = "2.5.29.37.0"
_EMAIL = re.compile(r"[\x21-\x3f\x41-\x7e]{1,64}@[A-Za-z0-9.-]{1,253}")
# A URI with an authority must contain a host (RFC 5280 section 4.2.1.6).
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://[\x21-\x2e\x30-\x7e][\x21-\x7e]*|(?!//)[\x21-\x7e]+)")


class LeafRequest(msgspec.Struct, frozen=True):
    """A request for a certificate. `ttl` counts from its notBefore; `not_after` takes precedence."""

    csr: str = ""
    common_name: str = ""
    friendly_name: str | None = None
    alt_names: str = ""
    ttl: timedelta | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    key_usages: tuple[str, ...] = ()
    extended_key_usages: tuple[str, ...] = ()
    by: "ByProfile | None" = None


class ByProfile(msgspec.Struct, frozen=True):
    """What a request by a profile has besides: its rules hold for whatever is signed.

    `names` are single alternative names, `subject` and `key_type` those of a key that is made here.
    """

    rules: Rules
    profile_id: UUID
    application_id: UUID | None = None
    names: tuple[str, ...] = ()
    subject: CaSubject | None = None
    key_type: CaKeyType | None = None


class WithKey(msgspec.Struct, frozen=True):
    """A certificate and its new private key, in PEM; the key is not stored."""

    signed: Signed
    private_key: str

    def __repr__(self) -> str:
        return f"WithKey({self.signed.serial})"


def problems(request: LeafRequest) -> tuple[Problem, ...]:
    """The problems of single fields; pure."""
    found: list[Problem] = []
    if request.common_name:
        found += subjects.text("common_name", request.common_name, subjects.UPPER_BOUNDS["common_name"])
    if request.by and request.by.subject:
        others = msgspec.structs.replace(request.by.subject, common_name="")
        found += authorities.subject_problems(others)
    if request.friendly_name:
        found += subjects.text("friendly_name", request.friendly_name, authorities.MAX_FRIENDLY_NAME)
    if request.ttl is None and request.not_after is None:
        found.append(Problem(Rule.MISSING, "ttl", "ttl is required, or not_after instead."))
    return tuple(found)


async def sign(services: Services, caller: Caller, scope: Scope, ca_id: UUID, request: LeafRequest) -> Signed:
    """Sign a CSR with its subject and key, and with its names and usages unless the request has others."""
    signer = await _signer(services, scope, ca_id, request)
    csr = issuing.read_csr(request.csr)
    return await _sign_csr(services, caller, (scope, signer), request, csr)


async def sign_again(
    services: Services, caller: Caller, scope: Scope, request: LeafRequest, old: tuple[UUID, x509.Certificate]
) -> Signed:
    """A new certificate for the subject and the names of an old one, and for its key unless the request has a CSR."""
    ca_id, certificate = old
    signer = await _signer(services, scope, ca_id, request)
    extensions = certificate.extensions
    sans = tuple(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    key = issuing.read_csr(request.csr).public_key if request.csr else issuing.ca_public_key(certificate)
    csr = pkix.Request(certificate.subject, key, sans)
    return await _sign_csr(services, caller, (scope, signer), request, csr)


async def _sign_csr(
    services: Services, caller: Caller, by: tuple[Scope, Signer], request: LeafRequest, csr: pkix.Request
) -> Signed:
    scope, signer = by
    public_key = issuing.key_of(csr, signer)
    rsa_key = isinstance(public_key, rsa.RSAPublicKey)
    common_name = request.common_name or csr.common_name
    sans = _wanted(request) or tuple(dict.fromkeys(csr.sans))
    request = _with_usages(request, csr, rsa_key=rsa_key)
    dates = issuing.validity(signer.issuer, request.not_before, _ends_under(signer, request))
    draft = issuing.draft(signer, csr.subject, public_key, dates, services.pki_url)
    usages = _all_usages(request, rsa_key=rsa_key)
    to_sign = msgspec.structs.replace(draft, sans=_checked(sans or _from(common_name), scope.name_policy), **usages)
    _require_rules(request, to_sign)
    entry = _entry(audit.Action.SIGN, common_name, request)
    pem = await issuing.sign(services, caller, signer.authority, to_sign, entry)
    return issuing.with_chain(to_sign, pem, signer.issuer)


async def issue(services: Services, caller: Caller, scope: Scope, ca_id: UUID, request: LeafRequest) -> WithKey:
    """Create a key of the CA's key type and a certificate for it; the key is returned and not stored."""
    signer = await _signer(services, scope, ca_id, request)
    sans = _checked(_wanted(request) or _from(request.common_name), scope.name_policy)
    by = request.by
    subject = pkix.ca_name(by.subject) if by and by.subject else pkix.common_name(request.common_name)
    key_type = (by.key_type if by else None) or signer.authority.key_type
    # Validate everything, with the CA's own key in place of the new one, before generating a key.
    issuing.require_other(subject, None, signer)
    dates = issuing.validity(signer.issuer, request.not_before, _ends_under(signer, request))
    draft = issuing.draft(signer, subject, issuing.ca_public_key(signer.path[0]), dates, services.pki_url)
    usages = _all_usages(request, rsa_key=key_type.value.startswith("rsa"))
    draft = msgspec.structs.replace(draft, sans=sans, **usages)
    _require_rules(request, draft, key_type)
    pair = await services.pool.take(key_type)
    to_sign = msgspec.structs.replace(draft, public_key=pair.private_key.public_key())
    entry = _entry(audit.Action.ISSUE_KEY, request.common_name, request)
    pem = await issuing.sign(services, caller, signer.authority, to_sign, entry)
    return WithKey(issuing.with_chain(to_sign, pem, signer.issuer), keys.pem(pair.private_key))


def _wanted(request: LeafRequest) -> tuple[x509.GeneralName, ...]:
    if request.by and request.by.names:
        if len(request.by.names) > MAX_NAMES:
            raise _too_many(len(request.by.names))
        return tuple(dict.fromkeys(map(general_name, request.by.names)))
    return _given(request.alt_names)


def _entry(action: audit.Action, common_name: str, request: LeafRequest) -> Entry:
    by = request.by
    ids = (by.profile_id, by.application_id) if by else (None, None)
    return Entry(action, common_name, request.friendly_name or None, *ids)


def _require_rules(request: LeafRequest, to_sign: pkix.ToSign, key_type: CaKeyType | None = None) -> None:
    """Hold what is to be signed against the rules; `key_type` is that of a key that is not made yet."""
    if request.by:
        policies.require(request.by.rules, to_sign, key_type)


# What may sign is remembered, what may not is looked up each time (docs/decisions/0040-opened-for-a-second.md).
_signers: Remembered[tuple[Database, UUID, UUID], Signer] = Remembered()


async def _signer(services: Services, scope: Scope, ca_id: UUID, request: LeafRequest) -> Signer:
    found = problems(request)
    if found:
        raise Invalid(found)
    db, seconds = services.db, services.cas_remembered
    signer = await _signers.get((db, scope.account_id, ca_id), seconds, lambda: _find_signer(db, scope, ca_id))
    if signer.authority.requires_template and not request.by:
        raise Refusal("Certificate template or subscriber is required for issuance")
    return signer


async def _find_signer(db: Database, scope: Scope, ca_id: UUID) -> Signer:
    authority = await authorities.get(db, scope, ca_id)
    if authority.disabled or authority.certificate is None:
        raise Refusal(f"CA is not active: {'it is disabled' if authority.disabled else 'it has no certificate yet'}")
    return await issuing.installed(db, authority)


def _all_usages(request: LeafRequest, *, rsa_key: bool) -> dict[str, tuple[str, ...]]:
    requested, extended = request.key_usages, request.extended_key_usages
    if not requested and "timeStamping" in extended:
        requested = ("digitalSignature",)
    usages = _usages(requested, rsa_key=rsa_key)
    return {"key_usages": usages, "extended_key_usages": _extended(extended, request.key_usages)}


def _ends_under(by: Signer, request: LeafRequest) -> datetime:
    ends = _ends(request)
    return min(ends, by.issuer.not_after) if by.authority.not_after_policy is NotAfterPolicy.TRUNCATE else ends


def _ends(request: LeafRequest) -> datetime:
    if request.not_after:
        return request.not_after
    if request.ttl is None:
        raise TypeError("problems() has let it pass")
    try:
        return (request.not_before or issuing.now()) + request.ttl
    except OverflowError:
        raise Refusal("notAfter date is after CA certificate's notAfter date: X.509 ends with the year 9999") from None


def _with_usages(request: LeafRequest, csr: pkix.Request, *, rsa_key: bool) -> LeafRequest:
    """The request, with the CSR's usages where it names none, as far as they can be granted.

    Raises Refusal if none of the CSR's purposes can be granted: the certificate would be for another one.
    """
    extended = request.extended_key_usages or csr.extended_key_usages
    if not request.extended_key_usages and extended not in {(), ("timeStamping",)}:
        extended = tuple(usage for usage in extended if usage in _FROM_CSR)
        if not extended and _ANY_PURPOSE not in csr.extended_key_usages:
            wanted = ", ".join(csr.extended_key_usages[:_SHOWN])
            raise Refusal(f"The CSR asks for extended key usages that are not given ({wanted}); name extendedKeyUsages")
    allowed = _FOR_TIME_STAMPS if "timeStamping" in extended else _ALLOWED[rsa_key]
    usages = request.key_usages or tuple(usage for usage in csr.key_usages if usage in allowed)
    return msgspec.structs.replace(request, key_usages=usages, extended_key_usages=extended)


def _usages(requested: tuple[str, ...], *, rsa_key: bool) -> tuple[str, ...]:
    if not requested:
        return ("digitalSignature", "keyEncipherment") if rsa_key else ("digitalSignature",)
    refused = [usage for usage in requested if usage not in _ALLOWED[rsa_key]]
    if refused:
        kind = "an RSA" if rsa_key else "an EC"
        raise Refusal(f"keyUsages {refused[0]} is not for a certificate that is no CA's and has {kind} key")
    if {"encipherOnly", "decipherOnly"} & set(requested) and "keyAgreement" not in requested:
        raise Refusal("keyUsages encipherOnly and decipherOnly mean nothing without keyAgreement")
    return tuple(name for name in pkix.KEY_USAGES if name in requested)


def _extended(requested: tuple[str, ...], key_usages: tuple[str, ...]) -> tuple[str, ...]:
    if "ocspSigning" in requested:
        raise Refusal("extendedKeyUsages ocspSigning is not given: whoever has it can vouch for what is revoked")
    if "timeStamping" in requested and (set(requested) != {"timeStamping"} or set(key_usages) - _FOR_TIME_STAMPS):
        raise Refusal("extendedKeyUsages timeStamping stands alone, with digitalSignature or nonRepudiation (RFC 3161)")
    return tuple(dict.fromkeys(requested)) or ("serverAuth",)


def _given(alt_names: str) -> tuple[x509.GeneralName, ...]:
    """Parse comma-separated names: IP addresses, emails, URIs, and otherwise hostnames."""
    # Count the commas first: splitting a million names takes seconds.
    if alt_names.count(",") >= 2 * MAX_NAMES:
        raise _too_many(alt_names.count(",") + 1)
    words = (word.strip() for word in alt_names.split(","))
    return tuple(dict.fromkeys(general_name(word) for word in words if word))


def general_name(word: str) -> x509.GeneralName:
    invalid = f"altNames has {quoted(word)}, which is no name that can be written; write a host in its A-label form"
    is_email, address = "@" in word and "://" not in word, _address(word)
    # Before cryptography's email parser, which recurses and takes seconds on hostile input.
    if is_email and not _EMAIL.fullmatch(word):
        raise Refusal(invalid)
    try:
        if address is not None:
            return x509.IPAddress(address)
        if is_email:
            return x509.RFC822Name(word)
        return x509.UniformResourceIdentifier(word) if "://" in word else x509.DNSName(word)
    except ValueError:
        raise Refusal(invalid) from None


def _from(common_name: str) -> tuple[x509.GeneralName, ...]:
    """The SAN for a common name, if no SAN is given; raises Refusal if it is neither hostname nor IP address."""
    address = _address(common_name)
    if address is not None:
        return (x509.IPAddress(address),)
    if common_name and common_name.isascii() and names.broken(common_name, NamePolicy.PRIVATE) is None:
        return (x509.DNSName(common_name),)
    raise Refusal("There are no alternative names, and the common name is neither a host nor an address")


def _address(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        return None
    # A zone id such as %eth0 is only meaningful on one machine (RFC 6874).
    return None if "%" in word else address


def _checked(sans: tuple[x509.GeneralName, ...], policy: NamePolicy) -> tuple[x509.GeneralName, ...]:
    if len(sans) > MAX_NAMES:
        raise _too_many(len(sans))
    for san in sans:
        reason = _broken(san, policy)
        if reason:
            raise Refusal(reason)
    return sans


def _too_many(count: int) -> Refusal:
    return Refusal(f"There are {count} alternative names; at most {MAX_NAMES} are allowed")


def _broken(san: x509.GeneralName, policy: NamePolicy) -> str:
    match san:
        case x509.DNSName(value=value):
            broken = names.broken(value, policy)
            return broken[1] if broken else ""
        case x509.IPAddress(value=ipaddress.IPv4Address() | ipaddress.IPv6Address()):
            return ""
        case x509.RFC822Name(value=value):
            return "" if _EMAIL.fullmatch(value) else f"{quoted(value)} is not an email address."
        case x509.UniformResourceIdentifier(value=value):
            good = _URI.fullmatch(value) and len(value) <= MAX_URI
            return "" if good else f"{quoted(value)} is not a URI of at most {MAX_URI} characters."
        case _:
            return "The CSR has an alternative name that is neither a host, an address, an email nor a URI."
