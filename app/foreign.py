"""Certificates and requests as strangers write them (RFC 5280, RFC 2986): read, or refused with the reason. Pure.

The library refuses whatever breaks DER, also where OpenSSL and GnuTLS do not and nobody is harmed, and says little of
why. What it cannot read is looked at here: an oddity that harms nobody is put right in a copy, which the library reads.
What is compared, verified and kept are always the bytes that were sent.
"""

import re
import warnings
from typing import cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from app import pem
from app.der import (
    BIT_STRING,
    BMP,
    BOOLEAN,
    IA5,
    INTEGER,
    NULL,
    NUMERIC,
    OID,
    PRINTABLE,
    SEQUENCE,
    SET,
    TELETEX,
    UNIVERSAL,
    UTF8,
    Malformed,
    Value,
    dotted,
    first,
    tlv,
    values,
)
from app.errors import quoted
from app.model import PRINTABLE as PRINTABLE_TEXT

# It counts a common name in bytes, where X.520 counts characters, and there are roots whose serial number is 0. The
# rules are those of `name_fault` and of app/chains.py, which have reasons. Filters are those of all threads.
warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive", UserWarning)

_VERSION, _REQUESTED, _EXTENSIONS = 0xA0, 0xA0, 0xA3


class Unreadable(ValueError):  # noqa: N818 - it reads as what it says of what was sent
    """No valid X.509; the text is the reason, and quotes a character at most."""


class _Name(x509.Name):
    """A name whose strings were put right, with the bytes that were sent."""

    def __init__(self, read: x509.Name, sent: bytes) -> None:
        super().__init__(read.rdns)
        self._sent = sent

    def public_bytes(self, backend: object = None) -> bytes:
        del backend
        return self._sent


class _Certificate:
    """Stands in for the library's, whose class cannot be extended: `copy` was put right, `sent` is what was sent."""

    def __init__(self, sent: bytes, copy: x509.Certificate) -> None:
        self._sent = sent
        self._copy = copy
        tbs = values(first(sent).content)[0]
        names = [value.whole for value in values(tbs.content) if value.tag != _VERSION][2:5:2]
        self.tbs_certificate_bytes = tbs.whole
        self.issuer = _Name(copy.issuer, names[0])
        self.subject = _Name(copy.subject, names[1])

    def __getattr__(self, name: str) -> object:
        return getattr(self._copy, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Certificate) and self._sent == other._sent

    def __hash__(self) -> int:
        return hash(self._sent)

    def public_bytes(self, encoding: serialization.Encoding) -> bytes:
        return (
            self._sent
            if encoding is serialization.Encoding.DER
            else pem.encoded("CERTIFICATE", self._sent).encode("ascii")
        )

    def verify_directly_issued_by(self, issuer: x509.Certificate) -> None:
        require_issued(cast("x509.Certificate", self), issuer)


def certificate(sent: bytes) -> x509.Certificate:
    """A certificate in DER; raises Unreadable."""
    try:
        _require_one_algorithm(sent)
        return _read_whole(x509.load_der_x509_certificate(sent))
    except Exception:  # noqa: BLE001, S110 - whatever the library stumbles over is looked at more closely
        pass
    try:
        copy = _read_whole(x509.load_der_x509_certificate(_certificate(sent)))
    except (Malformed, Unreadable) as error:
        raise Unreadable(str(error)) from None
    except Exception as error:  # noqa: BLE001
        raise Unreadable(_reason(error)) from None
    return cast("x509.Certificate", _Certificate(sent, copy))


def _read_whole(found: x509.Certificate) -> x509.Certificate:
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
    if [part for part in values(tbs.content) if part.tag != _VERSION][1].whole != algorithm.whole:
        raise Malformed("its two signature algorithms are not the same")


def _require_strings(name: x509.Name) -> None:
    # The library takes types here that OpenSSL does not, so that no server could load them.
    if any(attribute._type.value not in _STRINGS for attribute in name):  # noqa: SLF001
        raise Unreadable


class Request(msgspec.Struct, frozen=True):
    """A request, put right where it had to be, and `info`, the bytes that were signed (RFC 2986 section 4.1)."""

    read: x509.CertificateSigningRequest
    info: bytes

    @property
    def key_algorithm(self) -> str:
        """The object identifier of its public key's algorithm."""
        key = values(first(self.info).content)[2]
        return dotted(first(first(key.content).content).content)

    def is_signed(self) -> bool:
        """Whether its own key signed it; raises what the library does for an algorithm that it does not know."""
        if self.read.tbs_certrequest_bytes == self.info:
            return self.read.is_signature_valid
        try:
            _require_signature(self.read.public_key(), self.read, self.info)
        except InvalidSignature:
            return False
        return True


def request(sent: bytes) -> Request:
    """A certificate signing request in DER; raises Unreadable."""
    try:
        return _read_request(x509.load_der_x509_csr(sent), sent)
    except Exception:  # noqa: BLE001, S110 - as above
        pass
    try:
        return _read_request(x509.load_der_x509_csr(_request(sent)), sent)
    except Malformed as error:
        raise Unreadable(str(error)) from None
    except Exception as error:  # noqa: BLE001
        raise Unreadable(_reason(error)) from None


def _read_request(found: x509.CertificateSigningRequest, sent: bytes) -> Request:
    _ = found.extensions
    _require_strings(found.subject)
    return Request(found, values(first(sent).content)[0].whole)


def _reason(error: Exception) -> str:
    # The library names fields as RFC 5280 does, and quotes no content in these words.
    fields = re.findall(r'"(?:\w+::)?([a-z_]+)"', str(error))
    return f"its {fields[-1]} cannot be read" if fields else "it is no valid X.509"


def subject_of(sent: bytes) -> str:
    """The subject of a certificate, or of a request, that may be no valid one, for a sentence; empty without one."""
    try:
        parts = [v for v in values(first(first(sent).content).content) if v.tag != _VERSION]
        name = parts[4 if len(parts) > 4 else 1]
        found = {}
        for rdn in values(name.content):
            oid, value = values(first(rdn.content).content)
            found[dotted(oid.content)] = value.content.decode("utf-8", "replace")
    except (Malformed, ValueError, IndexError):
        return ""
    word, text = next(((w, found[o]) for o, w in _WORDS.items() if o in found), ("", ""))
    return f"{word}={quoted(text)[1:-1]}" if word else ""


_WORDS = {"2.5.4.3": "CN", "2.5.4.11": "OU", "2.5.4.10": "O"}


def name_fault(name: x509.Name) -> str:
    """Which bound of X.520 a subject breaks (RFC 5280 appendix A.1); empty when none. Lengths are in characters."""
    for attribute in name:
        text = attribute.value
        if attribute.oid in _COUNTRIES and len(text) != 2:
            return f"C is {quoted(str(text))} and not two letters"
        if attribute.oid == NameOID.COMMON_NAME and not 1 <= len(text) <= 64:
            return f"CN has {len(text)} characters; 1 to 64 are allowed"
    return ""


_COUNTRIES = {NameOID.COUNTRY_NAME, NameOID.JURISDICTION_COUNTRY_NAME}


def require_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """As the library's `verify_directly_issued_by`, also where it could not read one of the two; raises as that."""
    if not any(isinstance(each, _Certificate) for each in (certificate, issuer)):
        certificate.verify_directly_issued_by(issuer)
        return
    if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
        raise ValueError("the names differ")
    _require_signature(issuer.public_key(), certificate, certificate.tbs_certificate_bytes)


def _require_signature(key: object, of: x509.Certificate | x509.CertificateSigningRequest, signed: bytes) -> None:
    digest, how = of.signature_hash_algorithm, of.signature_algorithm_parameters
    if isinstance(key, rsa.RSAPublicKey) and digest is not None and not isinstance(how, ec.ECDSA | None):
        key.verify(of.signature, signed, how, digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(how, ec.ECDSA):
        key.verify(of.signature, signed, how)
    else:
        raise TypeError("a key of another kind")


# What is put right. Each function gives the DER that the library is to read, or raises Malformed.


def _certificate(sent: bytes) -> bytes:
    tbs, algorithm, signature = _whole(sent)
    parts = values(_content(tbs, SEQUENCE, "its TBSCertificate"))
    # version 1 is the default, and so to be left out.
    version = parts.pop(0) if parts and parts[0].tag == _VERSION else None
    number = first(version.content).content if version else b"\x00"
    if number not in {b"\x00", b"\x02"}:
        raise Malformed(f"its version is {number[-1] + 1 if number else '?'}, and X.509 certificates have 1 or 3")
    if len(parts) < 6:
        raise Malformed("it is no certificate: parts are missing")
    serial, inner, issuer, validity, subject, key = parts[:6]
    _require_one_algorithm(sent)
    made = (
        *(version.whole if version and number == b"\x02" else b"", serial.whole, _algorithm(inner)),
        *(_name(issuer, "issuer"), validity.whole, _name(subject, "subject"), key.whole),
        *(tlv(p.tag, _extensions(first(p.content))) if p.tag == _EXTENSIONS else p.whole for p in parts[6:]),
    )
    return tlv(SEQUENCE, tlv(SEQUENCE, b"".join(made)) + _algorithm(algorithm) + signature.whole)


def _request(sent: bytes) -> bytes:
    info, algorithm, signature = _whole(sent)
    parts = values(_content(info, SEQUENCE, "its CertificationRequestInfo"))
    if len(parts) < 3 or parts[0].tag != INTEGER:
        raise Malformed("it is no PKCS#10: parts are missing")
    version, subject, key, *attributes = parts
    if version.content != b"\x00":
        raise Malformed(f"its version number is {int.from_bytes(version.content[:8], 'big')}, and PKCS#10 has only 0")
    asked = attributes[0].content if attributes else b""
    made = version.whole + _name(subject, "subject") + key.whole + tlv(_REQUESTED, _attributes(asked))
    return tlv(SEQUENCE, tlv(SEQUENCE, made) + _algorithm(algorithm) + signature.whole)


def _whole(sent: bytes) -> list[Value]:
    outer = first(sent)
    if len(outer.whole) != len(sent):
        raise Malformed("there are bytes behind its end")
    parts = values(outer.content) if outer.tag == SEQUENCE else []
    if [part.tag for part in parts] != [SEQUENCE, SEQUENCE, BIT_STRING]:
        raise Malformed("it is no valid X.509: it does not consist of what is signed, an algorithm and a signature")
    return parts


def _content(value: Value, tag: int, what: str) -> bytes:
    if value.tag != tag:
        raise Malformed(f"{what} is no {'SET' if tag == SET else 'SEQUENCE'}")
    return value.content


def _algorithm(value: Value) -> bytes:
    """ECDSA has no parameters (RFC 5758 section 3.2), and some write NULL."""
    parts = values(value.content)
    is_ecdsa = parts and dotted(parts[0].content).startswith("1.2.840.10045.4.")
    return tlv(SEQUENCE, parts[0].whole) if is_ecdsa and [p.tag for p in parts[1:]] == [NULL] else value.whole


def _require_sorted(members: list[Value], of: str) -> None:
    encoded = [member.whole for member in members]
    if encoded != sorted(encoded):
        raise Malformed(f"the SET of {of} is not sorted, which is BER and not DER")


def _name(value: Value, where: str) -> bytes:
    made = []
    for rdn in values(_content(value, SEQUENCE, f"its {where}")):
        attributes = values(_content(rdn, SET, f"a part of its {where}"))
        if not attributes:
            raise Malformed(f"its {where} has an empty part")
        _require_sorted(attributes, f"a part of its {where}")
        if len({attribute.whole for attribute in attributes}) < len(attributes):
            raise Malformed(f"a part of its {where} has the same value twice")
        made.append(tlv(SET, b"".join(sorted(_attribute(attribute, where) for attribute in attributes))))
    return tlv(SEQUENCE, b"".join(made))


def _attribute(value: Value, where: str) -> bytes:
    parts = values(_content(value, SEQUENCE, f"an attribute of its {where}"))
    if len(parts) != 2 or parts[0].tag != OID:
        raise Malformed(f"an attribute of its {where} is not a type and a value")
    try:
        return tlv(SEQUENCE, parts[0].whole + _string(parts[1]))
    except Malformed as error:
        oid = dotted(parts[0].content)
        raise Malformed(f"{error}, in {_WORDS.get(oid, oid)} of its {where}") from None


# Types of which each octet is a character of ASCII, and how they are called.
_ONE_OCTET = {PRINTABLE: "PrintableString", IA5: "IA5String", NUMERIC: "NumericString"}
_MORE_OCTETS = {
    UTF8: ("UTF8String", "utf-8"),
    BMP: ("BMPString", "utf-16-be"),
    UNIVERSAL: ("UniversalString", "utf-32-be"),
}
# A BIT STRING is that of x500UniqueIdentifier.
_STRINGS = {TELETEX, BIT_STRING, *_ONE_OCTET, *_MORE_OCTETS}


def _string(value: Value) -> bytes:
    """A string; as UTF8String when it holds what its type cannot, and everybody reads it alike all the same."""
    text = value.content.decode("latin-1")
    if value.tag == TELETEX:
        # Nobody implements T.61; what is written is Latin-1.
        return value.whole if text.isascii() else tlv(UTF8, text.encode("utf-8"))
    if value.tag in _ONE_OCTET:
        stray = re.search(r"[^ -~]", text) if value.tag == PRINTABLE else re.search(r"[^\x00-\x7f]", text)
        if stray:
            raise Malformed(f"{_ONE_OCTET[value.tag]} holds {quoted(stray[0])}")
        fits = value.tag != PRINTABLE or PRINTABLE_TEXT.fullmatch(text)
        return value.whole if fits else tlv(UTF8, value.content)
    if value.tag in _MORE_OCTETS:
        name, encoding = _MORE_OCTETS[value.tag]
        try:
            value.content.decode(encoding)
        except UnicodeDecodeError:
            raise Malformed(f"{name} is not {encoding.upper().removesuffix('-BE')}") from None
        return value.whole
    if value.tag == BIT_STRING:
        return value.whole
    raise Malformed("a value is of no type of strings that is read")


_SKI, _KEY_USAGE, _SAN, _BASIC, _AKI, _EXTENDED = (f"2.5.29.{n}" for n in (14, 15, 17, 19, 35, 37))
# These are read; of the others it is known that they are there when they are critical.
_USED = {_SKI, _KEY_USAGE, _SAN, _BASIC, _AKI, _EXTENDED}
_EXTENSION_REQUESTS = {"1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"}


def _attributes(content: bytes) -> bytes:
    attributes = values(content)
    _require_sorted(attributes, "its attributes")
    made = []
    for attribute in attributes:
        parts = values(_content(attribute, SEQUENCE, "an attribute"))
        if [part.tag for part in parts] != [OID, SET]:
            raise Malformed("an attribute is not a type and a SET of values")
        if dotted(parts[0].content) in _EXTENSION_REQUESTS:
            lists = values(_content(parts[1], SET, "its extension request"))
            if len(lists) > 1:
                raise Malformed("it has more than one extension request")
            if lists:
                extensions = tlv(SET, _extensions(lists[0]))
                made.append(tlv(SEQUENCE, parts[0].whole + extensions))
    return b"".join(sorted(made))


def _extensions(value: Value) -> bytes:
    made, seen = [], set()
    for extension in values(_content(value, SEQUENCE, "the list of its extensions")):
        parts = values(_content(extension, SEQUENCE, "an extension"))
        oid = dotted(parts[0].content) if parts else ""
        if len(parts) not in {2, 3}:
            raise Malformed(f"the extension {oid} has not its two or three parts")
        if oid in seen:
            raise Malformed(f"it has the extension {oid} twice")
        seen.add(oid)
        critical = len(parts) == 3 and _is_true(parts[1])
        if oid in _USED or critical:
            body = tlv(parts[-1].tag, _READERS.get(oid, bytes)(parts[-1].content))
            made.append(tlv(SEQUENCE, parts[0].whole + (parts[1].whole if critical else b"") + body))
    return tlv(SEQUENCE, b"".join(made))


def _is_true(value: Value) -> bool:
    if value.tag != BOOLEAN or value.content not in {b"\x00", b"\xff"}:
        raise Malformed("a BOOLEAN is neither 00 nor FF, which is BER and not DER")
    return value.content == b"\xff"


def _basic_constraints(content: bytes) -> bytes:
    """FALSE is the default, and so to be left out; a path length says nothing of what is no CA."""
    parts = values(first(content).content)
    is_ca = bool(parts) and parts[0].tag == BOOLEAN and _is_true(parts[0])
    return content if is_ca else tlv(SEQUENCE, b"")


def _authority_key_id(content: bytes) -> bytes:
    """The issuer's name beside the key id may be as odd as any, and means nothing without its serial number."""
    parts = values(first(content).content)
    if not {0xA1, 0x82} <= {part.tag for part in parts}:
        parts = [part for part in parts if part.tag == 0x80]
    return tlv(SEQUENCE, b"".join(_general_names(part) if part.tag == 0xA1 else part.whole for part in parts))


def _key_usage(content: bytes) -> bytes:
    bits = first(content).content
    if len(bits) > 1 and bits[-1] & ((1 << bits[0]) - 1):
        raise Malformed("keyUsage has unused bits that are set, which is BER and not DER")
    return content


def _extended_key_usage(content: bytes) -> bytes:
    if not first(content).content:
        raise Malformed("extendedKeyUsage is empty")
    return content


def _alternative_names(content: bytes) -> bytes:
    return _general_names(first(content))


def _general_names(value: Value) -> bytes:
    made = []
    for name in values(value.content):
        if name.tag in {0xA3, 0xA5}:
            raise Malformed("subjectAltName has an x400Address or ediPartyName, which is not read")
        if name.tag == 0x87 and len(name.content) not in {4, 8, 16, 32}:
            raise Malformed(f"subjectAltName has an address of {len(name.content)} bytes")
        if name.tag in {0x81, 0x82, 0x86} and not name.content.isascii():
            raise Malformed(f"subjectAltName holds {quoted(name.content.decode('latin-1'))}, which is not ASCII")
        made.append(tlv(0xA4, _name(first(name.content), "subjectAltName")) if name.tag == 0xA4 else name.whole)
    return tlv(value.tag, b"".join(made))


_READERS = {
    _BASIC: _basic_constraints,
    _AKI: _authority_key_id,
    _KEY_USAGE: _key_usage,
    _EXTENDED: _extended_key_usage,
    _SAN: _alternative_names,
}
