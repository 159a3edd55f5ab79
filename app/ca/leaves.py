"""Certificates for servers and clients, issued by the CAs of an account (contract-infisical, "Leaves")."""

import ipaddress
import re
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from app.audit import record as audit
from app.ca import authorities, issuing
from app.ca.issuing import Entry, Signed
from app.ca.model import Authority, CaCertificate
from app.caller import Caller, Scope
from app.errors import Invalid, Problem, Refusal, Rule, quoted
from app.services import Services
from app.store.database import Database
from app.x509 import chains, keys, names, pkix, subjects
from app.x509.names import NamePolicy

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


class WithKey(msgspec.Struct, frozen=True):
    """A certificate and its new private key, in PEM; the key is not stored."""

    signed: Signed
    private_key: str

    def __repr__(self) -> str:
        return f"WithKey({self.signed.serial})"


def problems(asked: LeafRequest) -> tuple[Problem, ...]:
    """The problems of single fields; pure."""
    found: list[Problem] = []
    if asked.common_name:
        found += subjects.text("common_name", asked.common_name, subjects.UPPER_BOUNDS["common_name"])
    if asked.friendly_name:
        found += subjects.text("friendly_name", asked.friendly_name, authorities.MAX_FRIENDLY_NAME)
    if asked.ttl is None and asked.not_after is None:
        found.append(Problem(Rule.MISSING, "ttl", "ttl is required, or not_after instead."))
    return tuple(found)


async def sign(services: Services, caller: Caller, scope: Scope, ca_id: UUID, asked: LeafRequest) -> Signed:
    """Sign a CSR with its subject and key, and with its names and usages unless the request has others.

    Raises Invalid, NotFound, Refusal.
    """
    authority, issuer = await _signer(services.db, scope, ca_id, asked)
    try:
        request = pkix.read_csr(asked.csr)
    except pkix.BadCsr as error:
        raise Refusal(str(error)) from None
    issuing.require_other(request.subject, request.public_key, *chains.stored(issuer.pem))
    weakness = pkix.weakness(request.public_key)
    if weakness or request.public_key is None:
        raise Refusal(weakness)
    common_name = asked.common_name or request.common_name
    sans = _given(asked.alt_names) or tuple(dict.fromkeys(request.sans))
    asked = _with_usages(asked, request, rsa_key=isinstance(request.public_key, rsa.RSAPublicKey))
    meant = _leaf(authority, asked, request.subject, request.public_key, services.pki_url)
    meant = msgspec.structs.replace(meant, sans=_judged(sans or _from(common_name), scope.name_policy))
    entry = Entry(audit.Action.SIGN, common_name, asked.friendly_name or None)
    return await _sign(services, caller, authority, meant, entry)


async def issue(services: Services, caller: Caller, scope: Scope, ca_id: UUID, asked: LeafRequest) -> WithKey:
    """Create a key of the CA's key type and a certificate for it; the key is returned and not stored.

    Raises Invalid, NotFound, Refusal and Unavailable.
    """
    authority, issuer = await _signer(services.db, scope, ca_id, asked)
    sans = _judged(_given(asked.alt_names) or _from(asked.common_name), scope.name_policy)
    subject = pkix.common_name(asked.common_name)
    # Validate everything before generating a key.
    (issuer_certificate,) = chains.stored(issuer.pem)
    issuing.require_other(subject, None, issuer_certificate)
    stand_in = issuer_certificate.public_key()
    if not isinstance(stand_in, pkix.PublicKey):
        raise TypeError("neither an RSA nor an EC key")
    meant = msgspec.structs.replace(_leaf(authority, asked, subject, stand_in, services.pki_url), sans=sans)
    pair = await services.pool.take(authority.key_type)
    meant = msgspec.structs.replace(meant, public_key=pair.private_key.public_key())
    entry = Entry(audit.Action.ISSUE_KEY, asked.common_name, asked.friendly_name or None)
    signed = await _sign(services, caller, authority, meant, entry)
    return WithKey(signed, keys.pem(pair.private_key))


async def _signer(db: Database, scope: Scope, ca_id: UUID, asked: LeafRequest) -> tuple[Authority, CaCertificate]:
    found = problems(asked)
    if found:
        raise Invalid(found)
    authority = await authorities.get(db, scope, ca_id)
    if authority.disabled or authority.certificate is None:
        raise Refusal(f"CA is not active: {'it is disabled' if authority.disabled else 'it has no certificate yet'}")
    issuer = await issuing.installed(db, authority)
    if authority.requires_template:
        raise Refusal("Certificate template or subscriber is required for issuance")
    return authority, issuer


def _leaf(
    authority: Authority, asked: LeafRequest, subject: x509.Name, public_key: pkix.PublicKey, pki_url: str | None
) -> pkix.ToSign:
    issuer = issuing.latest(authority)
    begins, ends = issuing.validity(issuer, asked.not_before, _ends(asked))
    (issuer_certificate,) = chains.stored(issuer.pem)
    return pkix.ToSign(
        issuer=issuer_certificate,
        subject=subject,
        public_key=public_key,
        serial=issuing.new_serial(),
        not_before=begins,
        not_after=ends,
        ca=False,
        key_usages=_usages(_asked_usages(asked), rsa_key=isinstance(public_key, rsa.RSAPublicKey)),
        extended_key_usages=_extended(asked.extended_key_usages, asked.key_usages),
        crl_url=issuing.crl_url(authority, pki_url),
        issuer_url=issuing.issuer_url(authority, pki_url),
    )


def _ends(asked: LeafRequest) -> datetime:
    if asked.not_after:
        return asked.not_after
    if asked.ttl is None:
        raise TypeError("problems() has let it pass")
    try:
        return (asked.not_before or issuing.now()) + asked.ttl
    except OverflowError:
        raise Refusal("notAfter date is after CA certificate's notAfter date: X.509 ends with the year 9999") from None


def _with_usages(asked: LeafRequest, request: pkix.Request, *, rsa_key: bool) -> LeafRequest:
    """The request, with the CSR's usages where it names none, as far as they can be granted.

    Raises Refusal if none of the CSR's purposes can be granted: the certificate would be for another one.
    """
    extended = asked.extended_key_usages or request.extended_key_usages
    if not asked.extended_key_usages and extended not in {(), ("timeStamping",)}:
        extended = tuple(usage for usage in extended if usage in _FROM_CSR)
        if not extended and _ANY_PURPOSE not in request.extended_key_usages:
            wanted = ", ".join(request.extended_key_usages[:_SHOWN])
            raise Refusal(f"The CSR asks for extended key usages that are not given ({wanted}); name extendedKeyUsages")
    allowed = _FOR_TIME_STAMPS if "timeStamping" in extended else _ALLOWED[rsa_key]
    usages = asked.key_usages or tuple(usage for usage in request.key_usages if usage in allowed)
    return msgspec.structs.replace(asked, key_usages=usages, extended_key_usages=extended)


def _asked_usages(asked: LeafRequest) -> tuple[str, ...]:
    if not asked.key_usages and "timeStamping" in asked.extended_key_usages:
        return ("digitalSignature",)
    return asked.key_usages


def _usages(asked: tuple[str, ...], *, rsa_key: bool) -> tuple[str, ...]:
    if not asked:
        return ("digitalSignature", "keyEncipherment") if rsa_key else ("digitalSignature",)
    refused = [usage for usage in asked if usage not in _ALLOWED[rsa_key]]
    if refused:
        kind = "an RSA" if rsa_key else "an EC"
        raise Refusal(f"keyUsages {refused[0]} is not for a certificate that is no CA's and has {kind} key")
    if {"encipherOnly", "decipherOnly"} & set(asked) and "keyAgreement" not in asked:
        raise Refusal("keyUsages encipherOnly and decipherOnly mean nothing without keyAgreement")
    return tuple(name for name in pkix.KEY_USAGES if name in asked)


def _extended(asked: tuple[str, ...], key_usages: tuple[str, ...]) -> tuple[str, ...]:
    if "ocspSigning" in asked:
        raise Refusal("extendedKeyUsages ocspSigning is not given: whoever has it can vouch for what is revoked")
    if "timeStamping" in asked and (set(asked) != {"timeStamping"} or set(key_usages) - _FOR_TIME_STAMPS):
        text = "extendedKeyUsages timeStamping stands alone, with digitalSignature or nonRepudiation (RFC 3161)"
        raise Refusal(text)
    return tuple(dict.fromkeys(asked)) or ("serverAuth",)


def _given(alt_names: str) -> tuple[x509.GeneralName, ...]:
    """Parse comma-separated names: IP addresses, emails, URIs, and otherwise hostnames."""
    # Count the commas first: splitting a million names takes seconds.
    if alt_names.count(",") >= 2 * MAX_NAMES:
        raise _too_many(alt_names.count(",") + 1)
    words = (word.strip() for word in alt_names.split(","))
    return tuple(dict.fromkeys(_general_name(word) for word in words if word))


def _general_name(word: str) -> x509.GeneralName:
    is_email = "@" in word and "://" not in word
    # Before cryptography's email parser, which recurses and takes seconds on hostile input.
    if is_email and not _EMAIL.fullmatch(word):
        raise _no_name(word)
    address = _address(word)
    try:
        if address is not None:
            return x509.IPAddress(address)
        if is_email:
            return x509.RFC822Name(word)
        return x509.UniformResourceIdentifier(word) if "://" in word else x509.DNSName(word)
    except ValueError:
        raise _no_name(word) from None


def _no_name(word: str) -> Refusal:
    text = f"altNames has {quoted(word)}, which is no name that can be written; write a host in its A-label form"
    return Refusal(text)


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


def _judged(sans: tuple[x509.GeneralName, ...], policy: NamePolicy) -> tuple[x509.GeneralName, ...]:
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


async def _sign(services: Services, caller: Caller, authority: Authority, meant: pkix.ToSign, entry: Entry) -> Signed:
    certificate = await issuing.sign(services, caller, authority, meant, entry)
    issuer = issuing.latest(authority)
    return Signed(f"{meant.serial:040x}", chains.pem([certificate]), issuer.pem, issuer.pem + issuer.chain)
