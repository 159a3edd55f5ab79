"""Tolerant parsing of certificates and CSRs from other software (RFC 5280, RFC 2986). Pure.

`cryptography` rejects any deviation from DER, even harmless ones that OpenSSL and GnuTLS accept, without a useful
reason. When it fails, this module repairs harmless deviations in a copy and parses that, or raises Unreadable with the
reason. Comparison, verification and storage always use the original bytes.
"""

import re
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from keystead.errors import quoted
from keystead.x509 import der, pem
from keystead.x509.der import Unreadable, Value, dotted, first, tlv, values
from keystead.x509.subjects import PRINTABLE as PRINTABLE_TEXT

# `cryptography` warns about common names over 64 bytes (X.520 counts characters) and about serial number 0, which some
# roots have. `name_fault` and x509/chains.py check both. Set at import, because filters apply to all threads.
warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive", UserWarning)

_VERSION, _REQUESTED, _EXTENSIONS = 0xA0, 0xA0, 0xA3


class _Name(x509.Name):
    """A repaired name whose `public_bytes` returns the original bytes."""

    def __init__(self, read: x509.Name, sent: bytes) -> None:
        super().__init__(read.rdns)
        self._sent = sent

    def public_bytes(self, backend: object = None) -> bytes:
        del backend
        return self._sent


class _Certificate:
    """Replaces x509.Certificate, which cannot be subclassed: `copy` is repaired, `sent` the original DER."""

    def __init__(self, sent: bytes, copy: x509.Certificate) -> None:
        self._sent = sent
        self._copy = copy
        tbs = values(first(sent).content)[0]
        names = [value.encoded for value in values(tbs.content) if value.tag != _VERSION][2:5:2]
        self.tbs_certificate_bytes = tbs.encoded
        self.issuer = _Name(copy.issuer, names[0])
        self.subject = _Name(copy.subject, names[1])

    def __getattr__(self, name: str) -> object:
        return getattr(self._copy, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Certificate) and self._sent == other._sent

    def __hash__(self) -> int:
        return hash(self._sent)

    def public_bytes(self, encoding: serialization.Encoding) -> bytes:
        is_der = encoding is serialization.Encoding.DER
        return self._sent if is_der else pem.encoded("CERTIFICATE", self._sent).encode("ascii")

    def verify_directly_issued_by(self, issuer: x509.Certificate) -> None:
        require_issued(cast("x509.Certificate", self), issuer)


_T = TypeVar("_T")


def _parse(sent: bytes, read: Callable[[bytes], _T], repair: Callable[[bytes], bytes]) -> tuple[_T, bool]:
    """What `read` makes of the DER, or of its repaired copy, and whether it is that of the copy; raises Unreadable."""
    try:
        return read(sent), False
    except Exception:  # noqa: BLE001, S110 - read again below, with repairs
        pass
    try:
        return read(repair(sent)), True
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001
        raise Unreadable(_reason(error)) from None


def certificate(sent: bytes) -> x509.Certificate:
    """Parse a DER certificate; raises Unreadable."""
    found, is_copy = _parse(sent, _read_certificate, _certificate)
    return cast("x509.Certificate", _Certificate(sent, found)) if is_copy else found


def _read_certificate(sent: bytes) -> x509.Certificate:
    _require_one_algorithm(sent)
    found = x509.load_der_x509_certificate(sent)
    # Parsed on access.
    _ = (found.extensions, found.serial_number, found.signature_algorithm_oid)
    try:
        _ = (found.not_valid_before_utc, found.not_valid_after_utc)
    except ValueError:
        raise Unreadable("its validity has a year that is none from 1 to 9999") from None
    _require_strings(found.subject)
    _require_strings(found.issuer)
    return found


def _require_one_algorithm(sent: bytes) -> None:
    tbs, algorithm, _ = values(first(sent).content)
    inner = [part for part in values(tbs.content) if part.tag != _VERSION][1]
    _require(inner.encoded == algorithm.encoded, "its two signature algorithms are not the same")


def _require_strings(name: x509.Name) -> None:
    # `cryptography` accepts string types here that OpenSSL does not, and servers could not load the certificate.
    if any(attribute._type.value not in _STRINGS for attribute in name):  # noqa: SLF001
        raise Unreadable


class Request(msgspec.Struct, frozen=True):
    """A parsed CSR, repaired where needed; `info` is the signed part, unchanged (RFC 2986 section 4.1)."""

    read: x509.CertificateSigningRequest
    subject: x509.Name
    info: bytes

    @property
    def key_algorithm(self) -> str:
        """The dotted OID of the public key's algorithm."""
        key = values(first(self.info).content)[2]
        return dotted(first(first(key.content).content).content)

    def is_signed_by(self, key: object) -> bool:
        """Whether `key`, which is the CSR's own, signed it; raises ValueError, TypeError or UnsupportedAlgorithm."""
        try:
            _require_signature(key, self.read, self.info)
        except InvalidSignature:
            return False
        return True


def request(sent: bytes) -> Request:
    """Parse a DER CSR; raises Unreadable."""
    found, subject = _parse(sent, _read_request, _request)[0]
    return Request(found, subject, first(first(sent).content).encoded)


def _read_request(sent: bytes) -> tuple[x509.CertificateSigningRequest, x509.Name]:
    found = x509.load_der_x509_csr(sent)
    # Parsed on access; the subject each time.
    _, subject = found.extensions, found.subject
    _require_strings(subject)
    return found, subject


def _reason(error: Exception) -> str:
    # Quoted words in these errors are field names of RFC 5280, never content of the certificate.
    fields = re.findall(r'"(?:\w+::)?([a-z_]+)"', str(error))
    return f"its {fields[-1]} cannot be read" if fields else "it is no valid X.509"


def subject_of(sent: bytes) -> str:
    """` (CN=…)`, or OU or O, of a DER certificate or CSR, even if invalid, for error texts; empty if unreadable."""
    try:
        parts = [v for v in values(first(first(sent).content).content) if v.tag != _VERSION]
        name = parts[4 if len(parts) > 4 else 1]
        found = {}
        for rdn in values(name.content):
            oid, value = values(first(rdn.content).content)
            found[dotted(oid.content)] = value.content.decode("utf-8", "replace")
    except (ValueError, IndexError):
        return ""
    word, text = next(((w, found[o]) for o, w in _ATTRIBUTE_NAMES.items() if o in found), ("", ""))
    return f" ({word}={quoted(text)[1:-1]})" if word else ""


_ATTRIBUTE_NAMES = {"2.5.4.3": "CN", "2.5.4.11": "OU", "2.5.4.10": "O"}


def name_fault(name: x509.Name) -> str:
    """The length limit that a name exceeds (RFC 5280 appendix A.1), in words; empty if none. Counts characters."""
    for attribute in name:
        text = attribute.value
        if attribute.oid in _COUNTRIES and len(text) != 2:
            return f"C is {quoted(str(text))} and not two letters"
        if attribute.oid == NameOID.COMMON_NAME and not 1 <= len(text) <= 64:
            return f"CN has {len(text)} characters; 1 to 64 are allowed"
    return ""


_COUNTRIES = {NameOID.COUNTRY_NAME, NameOID.JURISDICTION_COUNTRY_NAME}


def require_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """`verify_directly_issued_by` that also works for repaired certificates; raises the same exceptions."""
    if not any(isinstance(each, _Certificate) for each in (certificate, issuer)):
        certificate.verify_directly_issued_by(issuer)
        return
    if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
        raise ValueError("the names differ")
    _require_signature(issuer.public_key(), certificate, certificate.tbs_certificate_bytes)


def _require_signature(key: object, of: x509.Certificate | x509.CertificateSigningRequest, signed: bytes) -> None:
    digest, scheme = of.signature_hash_algorithm, of.signature_algorithm_parameters
    if isinstance(key, rsa.RSAPublicKey) and digest is not None and not isinstance(scheme, ec.ECDSA | None):
        key.verify(of.signature, signed, scheme, digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(scheme, ec.ECDSA):
        key.verify(of.signature, signed, scheme)
    else:
        raise TypeError("a key of another kind")


# Repairs: each function returns the DER for `cryptography` to parse, or raises Unreadable.


def _require(condition: object, reason: str) -> None:
    if not condition:
        raise Unreadable(reason)


def _certificate(sent: bytes) -> bytes:
    tbs, algorithm, signature = _signed_parts(sent)
    parts = _members(tbs, der.SEQUENCE, "its TBSCertificate")
    # Version 1 is the DEFAULT, which DER must omit.
    version = parts.pop(0) if parts and parts[0].tag == _VERSION else None
    number = first(version.content).content if version else b"\x00"
    if number not in {b"\x00", b"\x02"}:
        raise Unreadable(f"its version is {number[-1] + 1 if number else '?'}, and X.509 certificates have 1 or 3")
    _require(len(parts) >= 6, "it is no certificate: parts are missing")
    serial, inner, issuer, validity, subject, key = parts[:6]
    _require_one_algorithm(sent)
    repaired = (
        *(version.encoded if version and number == b"\x02" else b"", serial.encoded, _algorithm(inner)),
        *(_name(issuer, "issuer"), validity.encoded, _name(subject, "subject"), key.encoded),
        *(tlv(p.tag, _extensions(first(p.content))) if p.tag == _EXTENSIONS else p.encoded for p in parts[6:]),
    )
    return tlv(der.SEQUENCE, tlv(der.SEQUENCE, b"".join(repaired)) + _algorithm(algorithm) + signature.encoded)


def _request(sent: bytes) -> bytes:
    info, algorithm, signature = _signed_parts(sent)
    parts = _members(info, der.SEQUENCE, "its CertificationRequestInfo")
    _require(len(parts) >= 3 and parts[0].tag == der.INTEGER, "it is no PKCS#10: parts are missing")
    version, subject, key, *attributes = parts
    if version.content != b"\x00":
        raise Unreadable(f"its version number is {int.from_bytes(version.content[:8], 'big')}, and PKCS#10 has only 0")
    requested = attributes[0].content if attributes else b""
    repaired = version.encoded + _name(subject, "subject") + key.encoded + tlv(_REQUESTED, _attributes(requested))
    return tlv(der.SEQUENCE, tlv(der.SEQUENCE, repaired) + _algorithm(algorithm) + signature.encoded)


def _signed_parts(sent: bytes) -> list[Value]:
    outer = first(sent)
    _require(len(outer.encoded) == len(sent), "there are bytes behind its end")
    parts = values(outer.content) if outer.tag == der.SEQUENCE else []
    if [part.tag for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Unreadable("it is no valid X.509: it does not consist of what is signed, an algorithm and a signature")
    return parts


def _members(value: Value, tag: int, what: str) -> list[Value]:
    _require(value.tag == tag, f"{what} is no {'SET' if tag == der.SET else 'SEQUENCE'}")
    return values(value.content)


def _algorithm(value: Value) -> bytes:
    """Drop the NULL that some software writes as ECDSA parameters, which must be absent (RFC 5758 section 3.2)."""
    parts = values(value.content)
    is_ecdsa = parts and dotted(parts[0].content).startswith("1.2.840.10045.4.")
    return (
        tlv(der.SEQUENCE, parts[0].encoded) if is_ecdsa and [p.tag for p in parts[1:]] == [der.NULL] else value.encoded
    )


def _require_sorted(members: list[Value], of: str) -> None:
    encoded = [member.encoded for member in members]
    _require(encoded == sorted(encoded), f"the SET of {of} is not sorted, which is BER and not DER")


def _name(value: Value, where: str) -> bytes:
    repaired = []
    for rdn in _members(value, der.SEQUENCE, f"its {where}"):
        attributes = _members(rdn, der.SET, f"a part of its {where}")
        _require(attributes, f"its {where} has an empty part")
        _require_sorted(attributes, f"a part of its {where}")
        unique = {attribute.encoded for attribute in attributes}
        _require(len(unique) == len(attributes), f"a part of its {where} has the same value twice")
        repaired.append(tlv(der.SET, b"".join(sorted(_attribute(attribute, where) for attribute in attributes))))
    return tlv(der.SEQUENCE, b"".join(repaired))


def _attribute(value: Value, where: str) -> bytes:
    parts = _members(value, der.SEQUENCE, f"an attribute of its {where}")
    _require(len(parts) == 2 and parts[0].tag == der.OID, f"an attribute of its {where} is not a type and a value")
    try:
        return tlv(der.SEQUENCE, parts[0].encoded + _string(parts[1]))
    except Unreadable as error:
        oid = dotted(parts[0].content)
        raise Unreadable(f"{error}, in {_ATTRIBUTE_NAMES.get(oid, oid)} of its {where}") from None


# String types with one octet per character, and their names.
_SINGLE_OCTET_STRINGS = {der.PRINTABLE: "PrintableString", der.IA5: "IA5String", der.NUMERIC: "NumericString"}
_MULTI_OCTET_STRINGS = {
    der.UTF8: ("UTF8String", "utf-8"),
    der.BMP: ("BMPString", "utf-16-be"),
    der.UNIVERSAL: ("UniversalString", "utf-32-be"),
}
# BIT STRING occurs in x500UniqueIdentifier.
_STRINGS = {der.TELETEX, der.BIT_STRING, *_SINGLE_OCTET_STRINGS, *_MULTI_OCTET_STRINGS}


def _string(value: Value) -> bytes:
    """Re-encode a string as UTF8String if its type does not allow its characters, but their meaning is unambiguous."""
    text = value.content.decode("latin-1")
    if value.tag == der.TELETEX:
        # In practice TeletexString holds Latin-1, not T.61.
        return value.encoded if text.isascii() else tlv(der.UTF8, text.encode("utf-8"))
    if value.tag in _SINGLE_OCTET_STRINGS:
        stray = re.search(r"[^ -~]", text) if value.tag == der.PRINTABLE else re.search(r"[^\x00-\x7f]", text)
        if stray:
            raise Unreadable(f"{_SINGLE_OCTET_STRINGS[value.tag]} holds {quoted(stray[0])}")
        fits = value.tag != der.PRINTABLE or PRINTABLE_TEXT.fullmatch(text)
        return value.encoded if fits else tlv(der.UTF8, value.content)
    if value.tag in _MULTI_OCTET_STRINGS:
        name, encoding = _MULTI_OCTET_STRINGS[value.tag]
        try:
            value.content.decode(encoding)
        except UnicodeDecodeError:
            raise Unreadable(f"{name} is not {encoding.upper().removesuffix('-BE')}") from None
    _require(value.tag in _STRINGS, "a value is of no type of strings that is read")
    return value.encoded


_SKI, _KEY_USAGE, _SAN, _BASIC, _AKI, _EXTENDED = (f"2.5.29.{n}" for n in (14, 15, 17, 19, 35, 37))
# Extensions whose content we use. Others are kept, unchanged, only if critical.
_USED_EXTENSIONS = {_SKI, _KEY_USAGE, _SAN, _BASIC, _AKI, _EXTENDED}
_EXTENSION_REQUESTS = {"1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"}


def _attributes(content: bytes) -> bytes:
    attributes = values(content)
    _require_sorted(attributes, "its attributes")
    repaired = []
    for attribute in attributes:
        parts = _members(attribute, der.SEQUENCE, "an attribute")
        _require([p.tag for p in parts] == [der.OID, der.SET], "an attribute is not a type and a SET of values")
        if dotted(parts[0].content) in _EXTENSION_REQUESTS:
            lists = _members(parts[1], der.SET, "its extension request")
            _require(len(lists) <= 1, "it has more than one extension request")
            if lists:
                repaired.append(tlv(der.SEQUENCE, parts[0].encoded + tlv(der.SET, _extensions(lists[0]))))
    return b"".join(sorted(repaired))


def _extensions(value: Value) -> bytes:
    repaired, seen = [], set()
    for extension in _members(value, der.SEQUENCE, "the list of its extensions"):
        parts = _members(extension, der.SEQUENCE, "an extension")
        oid = dotted(parts[0].content) if parts else ""
        _require(len(parts) in {2, 3}, f"the extension {oid} has not its two or three parts")
        _require(oid not in seen, f"it has the extension {oid} twice")
        seen.add(oid)
        critical = len(parts) == 3 and _is_true(parts[1])
        if oid in _USED_EXTENSIONS or critical:
            body = tlv(parts[-1].tag, _REPAIRS.get(oid, bytes)(parts[-1].content))
            repaired.append(tlv(der.SEQUENCE, parts[0].encoded + (parts[1].encoded if critical else b"") + body))
    return tlv(der.SEQUENCE, b"".join(repaired))


def _is_true(value: Value) -> bool:
    is_der = value.tag == der.BOOLEAN and value.content in {b"\x00", b"\xff"}
    _require(is_der, "a BOOLEAN is neither 00 nor FF, which is BER and not DER")
    return value.content == b"\xff"


def _basic_constraints(content: bytes) -> bytes:
    """Drop an explicit FALSE, which DER must omit, and a path length without cA, which has no meaning."""
    parts = values(first(content).content)
    is_ca = bool(parts) and parts[0].tag == der.BOOLEAN and _is_true(parts[0])
    return content if is_ca else tlv(der.SEQUENCE, b"")


def _authority_key_id(content: bytes) -> bytes:
    """Drop the issuer name or serial number if the other is missing; repair the name otherwise."""
    parts = values(first(content).content)
    if not {0xA1, 0x82} <= {part.tag for part in parts}:
        parts = [part for part in parts if part.tag == 0x80]
    return tlv(der.SEQUENCE, b"".join(_general_names(part) if part.tag == 0xA1 else part.encoded for part in parts))


def _key_usage(content: bytes) -> bytes:
    bits = first(content).content
    unused = bits[-1] & ((1 << bits[0]) - 1) if len(bits) > 1 else 0
    _require(not unused, "keyUsage has unused bits that are set, which is BER and not DER")
    return content


def _extended_key_usage(content: bytes) -> bytes:
    _require(first(content).content, "extendedKeyUsage is empty")
    return content


def _alternative_names(content: bytes) -> bytes:
    return _general_names(first(content))


def _general_names(value: Value) -> bytes:
    repaired = []
    for name in values(value.content):
        size = len(name.content)
        _require(name.tag not in {0xA3, 0xA5}, "subjectAltName has an x400Address or ediPartyName, which is not read")
        _require(name.tag != 0x87 or size in {4, 8, 16, 32}, f"subjectAltName has an address of {size} bytes")
        if name.tag in {0x81, 0x82, 0x86} and not name.content.isascii():
            raise Unreadable(f"subjectAltName holds {quoted(name.content.decode('latin-1'))}, which is not ASCII")
        repaired.append(tlv(0xA4, _name(first(name.content), "subjectAltName")) if name.tag == 0xA4 else name.encoded)
    return tlv(value.tag, b"".join(repaired))


_REPAIRS = {
    _BASIC: _basic_constraints,
    _AKI: _authority_key_id,
    _KEY_USAGE: _key_usage,
    _EXTENDED: _extended_key_usage,
    _SAN: _alternative_names,
}
