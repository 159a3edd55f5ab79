"""What a profile lets a certificate say (docs/decisions/0038-profiles.md). Pure: rules against what is to be signed."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from msgspec import Meta

from keystead import times
from keystead.ca.issuing import BACKDATED
from keystead.errors import Problem, Refusal, Rule, quoted
from keystead.x509 import pkix
from keystead.x509.keys import CaKeyType

MAX_PATTERNS = 100
MAX_PATTERN = 255


class SubjectType(StrEnum):
    COMMON_NAME = "common_name"
    ORGANIZATION = "organization"
    ORGANIZATIONAL_UNIT = "organizational_unit"
    COUNTRY = "country"
    STATE = "state"
    LOCALITY = "locality"


class SanType(StrEnum):
    DNS_NAME = "dns_name"
    IP_ADDRESS = "ip_address"
    EMAIL = "email"
    URI = "uri"


class KeyUsage(StrEnum):
    DIGITAL_SIGNATURE = "digital_signature"
    NON_REPUDIATION = "non_repudiation"
    KEY_ENCIPHERMENT = "key_encipherment"
    DATA_ENCIPHERMENT = "data_encipherment"
    KEY_AGREEMENT = "key_agreement"
    KEY_CERT_SIGN = "key_cert_sign"
    CRL_SIGN = "crl_sign"
    ENCIPHER_ONLY = "encipher_only"
    DECIPHER_ONLY = "decipher_only"


class ExtendedKeyUsage(StrEnum):
    SERVER_AUTH = "server_auth"
    CLIENT_AUTH = "client_auth"
    CODE_SIGNING = "code_signing"
    EMAIL_PROTECTION = "email_protection"
    TIME_STAMPING = "time_stamping"
    OCSP_SIGNING = "ocsp_signing"


class KeyAlgorithm(StrEnum):
    RSA_2048 = "RSA-2048"
    RSA_3072 = "RSA-3072"
    RSA_4096 = "RSA-4096"
    P256 = "ECDSA-P256"
    P384 = "ECDSA-P384"
    P521 = "ECDSA-P521"


class SignatureAlgorithm(StrEnum):
    SHA256_RSA = "SHA256-RSA"
    SHA384_RSA = "SHA384-RSA"
    SHA512_RSA = "SHA512-RSA"
    SHA256_ECDSA = "SHA256-ECDSA"
    SHA384_ECDSA = "SHA384-ECDSA"
    SHA512_ECDSA = "SHA512-ECDSA"


KEY_TYPES = dict(
    zip(
        KeyAlgorithm,
        (CaKeyType.RSA2048, CaKeyType.RSA3072, CaKeyType.RSA4096, CaKeyType.P256V1, CaKeyType.P384, CaKeyType.P521),
        strict=True,
    )
)
_KEY_NAMES = {key_type: name for name, key_type in KEY_TYPES.items()}
_Patterns = Annotated[tuple[str, ...], Meta(max_length=MAX_PATTERNS)]
_Span = Annotated[
    str,
    Meta(
        max_length=30,
        extra={
            "check": lambda text: times.span(text) is not None,
            "expected": "a number and one of s, m, h, d, w, y is one, not {}",
        },
    ),
]
# Profiles issue to servers and clients alone, so a rule that says otherwise would not be kept.
_NoCa = Annotated[
    Any,
    Meta(
        extra={
            "check": lambda value: value is False or value == "denied",
            "expected": "isCA must be false or 'denied': profiles issue to servers and clients, not {}",
        }
    ),
]


class _Kept(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """A rule as it is sent and stored; a member that is not known would be a rule that nobody keeps."""


class SubjectRule(_Kept, frozen=True):
    type: SubjectType
    allowed: _Patterns | None = None
    required: _Patterns | None = None
    denied: _Patterns | None = None


class SanRule(_Kept, frozen=True):
    type: SanType
    allowed: _Patterns | None = None
    required: _Patterns | None = None
    denied: _Patterns | None = None


class KeyUsages(_Kept, frozen=True):
    allowed: tuple[KeyUsage, ...] | None = None
    required: tuple[KeyUsage, ...] | None = None
    denied: tuple[KeyUsage, ...] | None = None


class ExtendedKeyUsages(_Kept, frozen=True):
    allowed: tuple[ExtendedKeyUsage, ...] | None = None
    required: tuple[ExtendedKeyUsage, ...] | None = None
    denied: tuple[ExtendedKeyUsage, ...] | None = None


class Algorithms(_Kept, frozen=True):
    signature: tuple[SignatureAlgorithm, ...] | None = None
    key_algorithm: tuple[KeyAlgorithm, ...] | None = None


class Validity(_Kept, frozen=True):
    max: _Span | None = None


class BasicConstraints(_Kept, frozen=True):
    is_ca: _NoCa = msgspec.field(name="isCA", default=None)


class Rules(_Kept, frozen=True):
    """What is None is not ruled. Where `subject` or `sans` are, a type that they do not name may not occur."""

    subject: Annotated[tuple[SubjectRule, ...], Meta(max_length=len(SubjectType))] | None = None
    sans: Annotated[tuple[SanRule, ...], Meta(max_length=len(SanType))] | None = None
    key_usages: KeyUsages | None = None
    extended_key_usages: ExtendedKeyUsages | None = None
    algorithms: Algorithms | None = None
    validity: Validity | None = None
    basic_constraints: BasicConstraints | None = None


_HOST_PATTERN = re.compile(r"\*|(\*\.)?[^*\s]+")
_EMAIL_PATTERN = re.compile(r"\*|(\*|[^*@\s]+)@[^*@\s]+")
_URI_PATTERN = re.compile(r"\*|[^*\s]+(?<!/)|[^*\s:/]+://[^*\s/]+/[^*\s]*\*?")
_PLAIN_PATTERN = re.compile(r"\*|[^*]+")


def _is_network(pattern: str) -> bool:
    try:
        ipaddress.ip_network(pattern, strict=True)
    except ValueError:
        return False
    return True


def problems(rules: Rules) -> tuple[Problem, ...]:
    """Patterns that could match nothing, and types that are ruled twice; pure."""
    found: list[Problem] = []
    for field, listed in (("subject", rules.subject or ()), ("sans", rules.sans or ())):
        kinds: list[StrEnum] = [rule.type for rule in listed]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice:
            found.append(Problem(Rule.CHOICE, field, f"{field} has rules for {twice} twice."))
        for rule in listed:
            for pattern in (*(rule.allowed or ()), *(rule.required or ()), *(rule.denied or ())):
                if len(pattern) > MAX_PATTERN or not _is_pattern(rule.type, pattern):
                    text = f"{field} of type {rule.type} cannot be {quoted(pattern)}; {_EXPECTED[_kind(rule.type)]}."
                    found.append(Problem(Rule.TEXT, field, text))
    if rules.validity and rules.validity.max is not None and times.span(rules.validity.max) is None:
        text = (
            f"validity cannot have the max {quoted(rules.validity.max)}; a number and one of s, m, h, d, w, y is one."
        )
        found.append(Problem(Rule.TIME, "validity", text))
    if rules.basic_constraints and rules.basic_constraints.is_ca not in (None, False, "denied"):
        text = "basic_constraints must have isCA false or 'denied': profiles issue to servers and clients."
        found.append(Problem(Rule.CHOICE, "basic_constraints", text))
    return tuple(found)


def _kind(of: StrEnum) -> str:
    return of.value if of in _EXPECTED else "text"


_EXPECTED = {
    "common_name": "a name, *.example.com or * is one",
    "dns_name": "a host, *.example.com or * is one",
    "ip_address": "an address, a network such as 10.0.0.0/8, or * is one",
    "email": "an address, *@example.com or * is one",
    "uri": "a URI, https://example.com/* or * is one",
    "text": "a text without *, or * alone is one",
}


def _is_pattern(kind: StrEnum, pattern: str) -> bool:
    if kind == SanType.IP_ADDRESS:
        return pattern == "*" or _is_network(pattern)
    expression = {
        "common_name": _HOST_PATTERN if " " not in pattern else _PLAIN_PATTERN,
        "dns_name": _HOST_PATTERN,
        "email": _EMAIL_PATTERN,
        "uri": _URI_PATTERN,
    }.get(kind.value, _PLAIN_PATTERN)
    return expression.fullmatch(pattern) is not None


def _matches(kind: StrEnum, pattern: str, value: str) -> bool:
    if pattern == "*":
        return True
    if kind == SanType.IP_ADDRESS:
        return ipaddress.ip_address(value) in ipaddress.ip_network(pattern)
    if kind == SanType.EMAIL:
        local, _, host = value.rpartition("@")
        wanted, _, wanted_host = pattern.rpartition("@")
        return host.lower() == wanted_host.lower() and wanted in ("*", local)
    if kind == SanType.URI:
        return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern
    if kind in (SanType.DNS_NAME, SubjectType.COMMON_NAME):
        value, pattern = value.lower(), pattern.lower()
        return value.endswith(pattern[1:]) and value != pattern[1:] if pattern.startswith("*.") else value == pattern
    return value == pattern


def _is_denied(kind: StrEnum, pattern: str, value: str) -> bool:
    """Also where a wildcard would speak for a name that is denied."""
    if _matches(kind, pattern, value):
        return True
    if kind not in (SanType.DNS_NAME, SubjectType.COMMON_NAME) or not value.startswith("*."):
        return False
    return fnmatchcase(pattern.lower().removeprefix("*."), "*" + value[1:].lower().replace("[", "[[]"))


_SUBJECT_TYPES = {
    NameOID.COMMON_NAME: SubjectType.COMMON_NAME,
    NameOID.ORGANIZATION_NAME: SubjectType.ORGANIZATION,
    NameOID.ORGANIZATIONAL_UNIT_NAME: SubjectType.ORGANIZATIONAL_UNIT,
    NameOID.COUNTRY_NAME: SubjectType.COUNTRY,
    NameOID.STATE_OR_PROVINCE_NAME: SubjectType.STATE,
    NameOID.LOCALITY_NAME: SubjectType.LOCALITY,
}


def san_type(name: x509.GeneralName) -> SanType:
    match name:
        case x509.DNSName():
            return SanType.DNS_NAME
        case x509.IPAddress():
            return SanType.IP_ADDRESS
        case x509.RFC822Name():
            return SanType.EMAIL
    return SanType.URI


def key_algorithm(key: pkix.PublicKey) -> str:
    return f"{'RSA-' if isinstance(key, rsa.RSAPublicKey) else 'ECDSA-P'}{key.key_size}"


def signature_algorithm(key: pkix.PublicKey) -> str:
    """What a CA with this key signs with."""
    if isinstance(key, rsa.RSAPublicKey):
        return SignatureAlgorithm.SHA256_RSA.value
    return f"SHA{({384: 384, 521: 512}).get(key.key_size, 256)}-ECDSA"


def require(rules: Rules, to_sign: pkix.ToSign, key_type: CaKeyType | None = None) -> None:
    """Raise Refusal, with the rule and the value, unless the rules let this be signed, with a key of `key_type`."""
    subject = [(_SUBJECT_TYPES.get(a.oid), a.rfc4514_attribute_name, str(a.value)) for a in to_sign.subject]
    sans = [(san_type(name), san_type(name).value, str(name.value)) for name in to_sign.sans]
    _require_names("subject", rules.subject, subject)
    _require_names("sans", rules.sans, sans)
    _require_usages("keyUsages", rules.key_usages, to_sign.key_usages)
    _require_usages("extendedKeyUsages", rules.extended_key_usages, to_sign.extended_key_usages)
    _require_algorithms(rules.algorithms or Algorithms(), to_sign, key_type)
    most = times.span(rules.validity.max) if rules.validity and rules.validity.max else None
    if most is not None and to_sign.not_after - to_sign.not_before > most + BACKDATED:
        lasts = to_sign.not_after - to_sign.not_before - BACKDATED
        raise _refused("validity.max", f"{_days(lasts)} is longer than {rules.validity.max if rules.validity else ''}")


def _days(span: timedelta) -> str:
    return f"{span.days} days" if span.days else f"{int(span.total_seconds())} seconds"


def _refused(rule: str, text: str) -> Refusal:
    return Refusal(f"The policy's {rule} does not allow it: {text}")


Named = tuple[StrEnum | None, str, str]


def _require_names(field: str, rules: Sequence[SubjectRule] | Sequence[SanRule] | None, found: Sequence[Named]) -> None:
    if rules is None:
        return
    by_type: dict[StrEnum | None, SubjectRule | SanRule] = {rule.type: rule for rule in rules}
    for kind, word, value in found:
        rule = by_type.get(kind)
        if rule is None or kind is None:
            raise _refused(field, f"it has no rule for {word}, which is {quoted(value)}")
        if any(_is_denied(kind, pattern, value) for pattern in rule.denied or ()):
            raise _refused(f"{field}.denied of {kind}", quoted(value))
        permitted = (*(rule.allowed or ()), *(rule.required or ()))
        if permitted and not any(_matches(kind, pattern, value) for pattern in permitted):
            raise _refused(f"{field}.allowed of {kind}", quoted(value))
    for rule in rules:
        values = [value for kind, _, value in found if kind is rule.type]
        for pattern in rule.required or ():
            if not any(_matches(rule.type, pattern, value) for value in values):
                raise _refused(f"{field}.required of {rule.type}", f"{quoted(pattern)} is missing")


def camel(usage: str) -> str:
    """A usage in the words of X.509."""
    first, *others = usage.split("_")
    name = first + "".join(word.capitalize() for word in others)
    return {"crlSign": "cRLSign"}.get(name, name)


_WORDS: dict[str, str] = {camel(usage): usage.value for usage in (*KeyUsage, *ExtendedKeyUsage)}


def snake(usage: str) -> str:
    return _WORDS.get(usage, usage)


def _words(usages: Iterable[str] | None) -> list[str]:
    return [camel(usage) for usage in usages or ()]


def _require_usages(field: str, rules: KeyUsages | ExtendedKeyUsages | None, found: Iterable[str]) -> None:
    if rules is None:
        return
    permitted = [*_words(rules.allowed), *_words(rules.required)]
    ruled = rules.allowed is not None or rules.required is not None
    found = list(found)
    for usage in found:
        if usage in _words(rules.denied):
            raise _refused(f"{field}.denied", snake(usage))
        if ruled and usage not in permitted:
            raise _refused(f"{field}.allowed", snake(usage))
    for usage in _words(rules.required):
        if usage not in found:
            raise _refused(f"{field}.required", f"{snake(usage)} is missing")


def _require_algorithms(rules: Algorithms, to_sign: pkix.ToSign, key_type: CaKeyType | None) -> None:
    key = _KEY_NAMES[key_type].value if key_type else key_algorithm(to_sign.public_key)
    if rules.key_algorithm and key not in rules.key_algorithm:
        raise _refused("algorithms.keyAlgorithm", key)
    issuer_key = to_sign.issuer.public_key() if to_sign.issuer else to_sign.public_key
    if rules.signature and isinstance(issuer_key, pkix.PublicKey):
        signature = signature_algorithm(issuer_key)
        if signature not in rules.signature:
            raise _refused("algorithms.signature", f"the CA signs with {signature}")
