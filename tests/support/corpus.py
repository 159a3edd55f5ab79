"""Odd certificates, chains, private keys and CSRs: made anew for each run, by OpenSSL, by the library, byte by byte.

A family is a function that yields cases; `FAMILIES` has them by name. The keys are new for each run, the names of the
cases never change. What the cases are worth is for tests/judges/test_corpus.py to judge.
"""

import base64
import gzip
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509 import load_der_x509_certificate
from support.handmade import (
    AKI,
    ANY_USAGE,
    BC,
    BMP,
    CLIENT_AUTH,
    CN,
    DC,
    EKU,
    EMAIL,
    EXTENSION_REQUEST,
    FALSE,
    GENERAL,
    HOST,
    IA5,
    KU,
    MICROSOFT_REQUEST,
    NOW,
    NULL,
    NUMERIC,
    OU,
    PRINTABLE,
    RSA_DIGESTS,
    SAN,
    SERIAL,
    SERVER_AUTH,
    SIGN_CERTIFICATES,
    SKI,
    ST,
    TELETEX,
    TRUE,
    UID,
    UNIVERSAL,
    UTF8,
    V3,
    VISIBLE,
    C,
    Ca,
    How,
    O,
    Parts,
    Signer,
    aki,
    attribute,
    authority,
    basic,
    bits,
    ca_parts,
    certificate,
    common,
    curve_key,
    dns,
    ecdsa,
    eku,
    explicit,
    extension,
    generalized,
    integer,
    key_id,
    leaf_parts,
    name,
    octets,
    oid,
    openssl,
    pem,
    pkcs1,
    pkcs8,
    pss,
    pss_parameters,
    rdn,
    rewrapped,
    rsa_key,
    san,
    seq,
    set_of,
    signed,
    spki,
    string,
    tlv,
    traditional,
    usual,
    utc,
    wanted,
)


class Kind(Enum):
    CHAIN = auto()
    KEY = auto()
    CSR = auto()


class Case(msgspec.Struct, frozen=True):
    """`sent` is the user's file. `key` is the private key in it, or the one to serve with, where there is one.

    Of a chain: `roots` are trusted (DER), from the file `anchors` where that is odd; `leaf` is the PEM to begin with
    where it is not the first in `sent`, and `force` is for an upload with bundle_method force.
    """

    family: str
    name: str
    kind: Kind
    sent: bytes
    key: Signer | None = None
    roots: tuple[bytes, ...] = ()
    anchors: bytes | None = None
    leaf: bytes | None = None
    force: bool = False

    def __repr__(self) -> str:
        return f"{self.family}: {self.name}"


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {}


def family(name: str) -> Callable[[Callable[[], Iterator[Case]]], Callable[[], Iterator[Case]]]:
    """Register a family; its cases get its name."""

    def register(make: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
        def made() -> Iterator[Case]:
            for case in make():
                yield msgspec.structs.replace(case, family=name)

        FAMILIES[name] = made
        return make

    return register


KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = authority(name(rdn(O, "Corpus"), rdn(CN, "Corpus Root")))
MIDDLE = authority(name(rdn(O, "Corpus"), rdn(CN, "Corpus Intermediate")), ROOT)


def leaf(
    issuer: Ca = MIDDLE,
    change: Parts | None = None,
    *,
    key_info: bytes | None = None,
    subject: bytes | None = None,
    bare: bool = False,
    **fields: Any,
) -> bytes:
    """A server's certificate; `change` replaces extensions by their name in `leaf_parts`; b"" takes one away."""
    key_info = key_info or spki(KEY)
    parts = () if bare else tuple(filter(None, {**leaf_parts(issuer, key_info), **(change or {})}.values()))
    return certificate(issuer.key, issuer.name, common(HOST) if subject is None else subject, key_info, parts, **fields)


def chain(
    what: str,
    *ders: bytes,
    roots: tuple[bytes, ...] | None = None,
    key: Signer | None = KEY,
    first: bytes | None = None,
    force: bool = False,
) -> Case:
    """`first` is the leaf where it is not the first of `ders`."""
    sent = "".join(pem(der) for der in ders).encode()
    trusted = (ROOT.der,) if roots is None else roots
    begin = pem(first).encode() if first else None
    return Case("", what, Kind.CHAIN, sent, key, trusted, leaf=begin, force=force)


def usual_chain(what: str, change: Parts | None = None, key: Signer = KEY, **fields: Any) -> Case:
    """A leaf with something odd, under an ordinary intermediate."""
    return chain(what, leaf(MIDDLE, change, key_info=fields.pop("key_info", spki(key)), **fields), MIDDLE.der, key=key)


def below(what: str, ca: Ca, *above: bytes, roots: tuple[bytes, ...] | None = None) -> Case:
    """An ordinary leaf under an odd CA."""
    return chain(what, leaf(ca), ca.der, *above, roots=roots)


NAMES = {
    "PrintableString": common(HOST, PRINTABLE),
    "PrintableString with &": name(rdn(O, "Bell & Sons", PRINTABLE), rdn(CN, HOST)),
    "PrintableString with _": name(rdn(OU, "data_base", PRINTABLE), rdn(CN, HOST)),
    "PrintableString with @": name(rdn(CN, "a@example.com", PRINTABLE)),
    "PrintableString with *": common("*.example.com", PRINTABLE),
    "PrintableString with bytes beyond ASCII": name(rdn(O, tlv(PRINTABLE, b"Z\xfcrich")), rdn(CN, HOST)),
    "TeletexString in Latin-1": name(rdn(O, "Bäckerei Müller", TELETEX), rdn(CN, HOST)),
    "TeletexString in ASCII": common(HOST, TELETEX),
    "BMPString": name(rdn(O, "Bäckerei 東京", BMP), rdn(CN, HOST)),
    "BMPString of an odd length": name(rdn(O, tlv(BMP, b"\x00A\x00")), rdn(CN, HOST)),
    "UniversalString": name(rdn(O, "Bäckerei 東京", UNIVERSAL), rdn(CN, HOST)),
    "UniversalString of an odd length": name(rdn(O, tlv(UNIVERSAL, b"\x00\x00A")), rdn(CN, HOST)),
    "IA5String": name(rdn(O, "Example @ Home", IA5), rdn(CN, HOST)),
    "NumericString": name(rdn(OU, "1234", NUMERIC), rdn(CN, HOST)),
    "VisibleString": name(rdn(O, "Example", VISIBLE), rdn(CN, HOST)),
    "GeneralString": name(rdn(O, "Example", GENERAL), rdn(CN, HOST)),
    "UTF8String that is no UTF-8": name(rdn(O, tlv(UTF8, b"Z\xfcrich")), rdn(CN, HOST)),
    "64 Cyrillic characters": common("Ж" * 64),
    "64 CJK characters": common("京" * 64),
    "64 characters beyond the BMP": common("🔑" * 64),
    "65 characters": common("n" * 65),
    "200 characters": common("n" * 200),
    "O of 65 characters": name(rdn(O, "o" * 65), rdn(CN, HOST)),
    "ST of 129 characters": name(rdn(ST, "s" * 129), rdn(CN, HOST)),
    "C of three letters": name(rdn(C, "DEU", PRINTABLE), rdn(CN, HOST)),
    "C of one letter": name(rdn(C, "D", PRINTABLE), rdn(CN, HOST)),
    "C in lower case": name(rdn(C, "de", PRINTABLE), rdn(CN, HOST)),
    "C as UTF8String": name(rdn(C, "DE"), rdn(CN, HOST)),
    "C that no country has": name(rdn(C, "ZZ", PRINTABLE), rdn(CN, HOST)),
    "an empty value": name(rdn(O, ""), rdn(CN, HOST)),
    "an empty CN": common(""),
    "spaces at the ends": name(rdn(O, "  Example  "), rdn(CN, HOST)),
    "NUL in a value": name(rdn(O, "a\x00b"), rdn(CN, HOST)),
    "a line break in a value": name(rdn(O, "a\nb"), rdn(CN, HOST)),
    "a bidirectional control": name(rdn(O, "a\u202eb"), rdn(CN, HOST)),
    "serialNumber": name(rdn(SERIAL, "HRB 12345", PRINTABLE), rdn(CN, HOST)),
    "serialNumber of 65 characters": name(rdn(SERIAL, "1" * 65, PRINTABLE), rdn(CN, HOST)),
    "emailAddress": name(rdn(EMAIL, "a@example.com", IA5), rdn(CN, HOST)),
    "emailAddress as UTF8String": name(rdn(EMAIL, "ä@example.com"), rdn(CN, HOST)),
    "DC and UID": name(rdn(DC, "com", IA5), rdn(DC, "example", IA5), rdn(UID, "someone")),
    "DC as UTF8String": name(rdn(DC, "com"), rdn(DC, "example"), rdn(CN, HOST)),
    "an unknown attribute": name(rdn("1.3.6.1.4.1.55555.1", "anything"), rdn(CN, HOST)),
    "an attribute that is an INTEGER": name(rdn("1.3.6.1.4.1.55555.1", integer(7)), rdn(CN, HOST)),
    "an attribute that is a SEQUENCE": name(rdn("2.5.4.16", seq(string(UTF8, "Street 1"))), rdn(CN, HOST)),
    "an attribute that is a BIT STRING": name(rdn("2.5.4.45", bits(b"\x01\x02")), rdn(CN, HOST)),
    "jurisdictionCountryName": name(rdn("1.3.6.1.4.1.311.60.2.1.3", "DE", PRINTABLE), rdn(CN, HOST)),
    "two CNs": name(rdn(CN, HOST), rdn(CN, "db.example.com")),
    "the CN first": name(rdn(CN, HOST), rdn(O, "Example"), rdn(C, "DE", PRINTABLE)),
    "an RDN of two values": name(set_of(attribute(O, "Example"), attribute(OU, "Web")), rdn(CN, HOST)),
    "an RDN that is not sorted": name(
        tlv(0x31, *sorted((attribute(O, "Example"), attribute(OU, "Web")), reverse=True)), rdn(CN, HOST)
    ),
    "an RDN with the same value twice": name(set_of(attribute(O, "Example"), attribute(O, "Example")), rdn(CN, HOST)),
    "an RDN without a value": name(tlv(0x31), rdn(CN, HOST)),
    "a hundred RDNs": name(*(rdn(OU, f"unit {number}") for number in range(100)), rdn(CN, HOST)),
    "a value of 5000 characters": name(rdn("2.5.4.13", "d" * 5000), rdn(CN, HOST)),
}


@family("names of leaves")
def _names_of_leaves() -> Iterator[Case]:
    for what, subject in NAMES.items():
        yield usual_chain(what, subject=subject)
    yield usual_chain("no name, SAN critical", {"san": san(dns(HOST), flag=TRUE)}, subject=name())
    yield usual_chain("no name, SAN not critical", subject=name())
    yield usual_chain("neither a name nor a SAN", {"san": b""}, subject=name())


@family("names of CAs")
def _names_of_cas() -> Iterator[Case]:
    for what, subject in NAMES.items():
        yield below(what, authority(subject, ROOT))
    empty = authority(name(), ROOT)
    yield below("no name", empty)


@family("names of roots")
def _names_of_roots() -> Iterator[Case]:
    for what, subject in NAMES.items():
        top = authority(subject)
        yield below(what, authority(MIDDLE.name, top), roots=(top.der,))


@family("serial numbers and versions")
def _serials() -> Iterator[Case]:
    serials = {
        "serial 0": integer(0),
        "serial -1": integer(-1),
        "serial 1": integer(1),
        "serial of 20 octets": integer(2**158 + 1),
        "serial of 20 octets with the top bit": integer(2**159 + 1),
        "serial of 21 octets": integer(2**166 + 1),
        "serial of 40 octets": integer(2**318 + 1),
        "serial with zeros before it": tlv(2, b"\x00\x00\x01"),
        "serial without a byte": tlv(2),
    }
    for what, serial in serials.items():
        yield usual_chain(what, serial=serial)
        yield below(f"{what}, of a CA", authority(MIDDLE.name, ROOT, serial=serial))
        top = authority(ROOT.name, serial=serial)
        yield below(f"{what}, of a root", authority(MIDDLE.name, top), roots=(top.der,))
    yield usual_chain("version 1", version=b"", bare=True)
    yield usual_chain("version 1 with extensions", version=b"")
    yield usual_chain("version 1, written out", version=explicit(0, integer(0)), bare=True)
    yield usual_chain("version 2", version=explicit(0, integer(1)), bare=True)
    yield usual_chain(
        "version 2 with unique ids", version=explicit(0, integer(1)), bare=True, unique=tlv(0x82, b"\0\1")
    )
    yield usual_chain("version 3 with unique ids", unique=tlv(0x81, b"\0\1") + tlv(0x82, b"\0\1"))
    yield usual_chain("version 3 without extensions", bare=True)
    yield usual_chain("version 4", version=explicit(0, integer(3)))
    yield usual_chain("version -1", version=explicit(0, integer(-1)))
    yield usual_chain("no extension in the list", unique=explicit(3, seq()), bare=True)
    old = _bare_root(b"")
    yield chain("a root of version 1", leaf(old, {"aki": b""}), roots=(old.der,))
    yield chain("a root of version 1 above a CA", leaf(), authority(MIDDLE.name, old, MIDDLE.key).der, roots=(old.der,))
    plain = _bare_root(V3)
    yield chain("a root of version 3 without extensions", leaf(plain, {"aki": b""}), roots=(plain.der,))
    ancient = Ca(
        MIDDLE.key, MIDDLE.name, certificate(ROOT.key, ROOT.name, MIDDLE.name, spki(MIDDLE.key), (), version=b"")
    )
    yield below("a CA of version 1", ancient)


def _bare_root(version: bytes) -> Ca:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = common("Old Root")
    return Ca(key, subject, certificate(key, subject, subject, spki(key), (), version=version))


@family("validity")
def _validity() -> Iterator[Case]:
    hour = timedelta(hours=1)
    ends = {
        "without an end: 9999": generalized(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        "GeneralizedTime before 2050": generalized(NOW + hour),
        "GeneralizedTime after 2050": generalized(datetime(2051, 1, 1, tzinfo=UTC)),
        "an end with a fraction": tlv(24, f"{NOW + hour:%Y%m%d%H%M%S.5Z}".encode()),
        "an end with an offset": tlv(23, f"{NOW + hour:%y%m%d%H%M%S+0100}".encode()),
        "an end without seconds": tlv(23, f"{NOW + hour:%y%m%d%H%MZ}".encode()),
        "an end without Z": tlv(23, f"{NOW + hour:%y%m%d%H%M%S}".encode()),
        "an end in month 13": tlv(23, b"501301000000Z"),
        "an end in second 60": tlv(23, b"490101000060Z"),
        "an end that is empty": tlv(23),
        "an end that is text": string(UTF8, "tomorrow"),
        "expired an hour ago": utc(NOW - hour),
        "expired, in GeneralizedTime": generalized(NOW - hour),
        "an end before the beginning": utc(NOW - timedelta(days=31)),
        "an end at the beginning": utc(NOW - timedelta(days=30)),
    }
    begins = {
        "a beginning in 1950": utc(datetime(1950, 1, 1, tzinfo=UTC)),
        "a beginning in 1949": generalized(datetime(1949, 1, 1, tzinfo=UTC)),
        "a beginning in the year 0": tlv(24, b"00000101000000Z"),
        "a beginning with an offset": tlv(23, b"260101000000+0100"),
        "valid in 4 minutes": utc(NOW + timedelta(minutes=4)),
        "valid in 20 minutes": utc(NOW + timedelta(minutes=20)),
        "valid in 10 days": utc(NOW + timedelta(days=10)),
    }
    for what, end in ends.items():
        yield usual_chain(what, end=end)
        yield below(f"{what}, of a CA", authority(MIDDLE.name, ROOT, end=end))
    for what, begin in begins.items():
        yield usual_chain(what, begin=begin)
        yield below(f"{what}, of a CA", authority(MIDDLE.name, ROOT, begin=begin))
    for what in ("expired an hour ago", "without an end: 9999"):
        top = authority(ROOT.name, end=ends[what])
        yield below(f"{what}, of a root", authority(MIDDLE.name, top), roots=(top.der,))


UNKNOWN = "1.3.6.1.4.1.55555.2"
_OTHER = explicit(0, oid("1.3.6.1.4.1.311.20.2.3"), explicit(0, string(UTF8, "user@example.com")))
ALTERNATIVES = {
    "upper case": (dns(HOST), dns("WWW.EXAMPLE.COM")),
    "a wildcard": (dns("*.example.com"),),
    "a wildcard within": (dns(HOST), dns("w*w.example.com")),
    "a bare wildcard": (dns(HOST), dns("*")),
    "a space": (dns(HOST), dns("a b.example.com")),
    "a space at its end": (dns(HOST), dns("db.example.com ")),
    "a dot at its end": (dns(HOST), dns("db.example.com.")),
    "a dot before": (dns(HOST), dns(".example.com")),
    "two dots": (dns(HOST), dns("db..example.com")),
    "an underscore": (dns(HOST), dns("_acme.example.com")),
    "a single label": (dns(HOST), dns("localhost")),
    "an A-label": (dns(HOST), dns("xn--bcher-kva.example.com")),
    "a false A-label": (dns(HOST), dns("xn--a.example.com")),
    "UTF-8": (dns(HOST), dns("bücher.example.com")),
    "Latin-1": (dns(HOST), dns(b"b\xfccher.example.com")),
    "NUL": (dns(HOST), dns("a.example.com\x00.example.org")),
    "a line break": (dns(HOST), dns("a\nb.example.com")),
    "an empty host": (dns(HOST), dns("")),
    "300 characters": (dns(HOST), dns("a." * 150 + "example.com")),
    "an address as a host": (dns(HOST), dns("192.0.2.1")),
    "IPv4": (dns(HOST), tlv(0x87, bytes((192, 0, 2, 1)))),
    "IPv6": (dns(HOST), tlv(0x87, bytes(15), b"\x01")),
    "an address of five bytes": (dns(HOST), tlv(0x87, bytes(5))),
    "an address with a mask": (dns(HOST), tlv(0x87, bytes((192, 0, 2, 0, 255, 255, 255, 0)))),
    "an email": (dns(HOST), tlv(0x81, b"a@example.com")),
    "an email in Latin-1": (dns(HOST), tlv(0x81, b"\xfc@example.com")),
    "a URI": (dns(HOST), tlv(0x86, b"https://www.example.com/a?b=c")),
    "a URI without a scheme": (dns(HOST), tlv(0x86, b"www.example.com")),
    "a directory name": (dns(HOST), explicit(4, common("x"))),
    "a registered id": (dns(HOST), tlv(0x88, oid(UNKNOWN)[2:])),
    "an other name": (dns(HOST), _OTHER),
    "an x400 address": (dns(HOST), explicit(3, seq(seq()))),
    "an unknown type": (dns(HOST), tlv(0x8C, b"x")),
    "the same twice": (dns(HOST), dns(HOST)),
    "150 names": (dns(HOST), *(dns(f"h{number}.example.com") for number in range(149))),
    "1000 names": (dns(HOST), *(dns(f"h{number}.example.com") for number in range(999))),
    "no host at all": (tlv(0x81, b"a@example.com"),),
    "nothing": (),
}
_AT_LOCATION = seq(seq(oid("1.3.6.1.5.5.7.48.1"), tlv(0x86, b"http://ocsp.example.com")))
_POINT = seq(seq(explicit(0, explicit(0, tlv(0x86, b"http://crl.example.com/a.crl")))))
_TIMESTAMPS = octets((2 + 60).to_bytes(2, "big") + (60).to_bytes(2, "big") + bytes(60))
# Of a leaf and of a CA alike: what stands beside the usual extensions.
ADDITIONS = {
    "an unknown extension": extension(UNKNOWN, octets(b"anything")),
    "an unknown extension without content": extension(UNKNOWN, b""),
    "an unknown critical extension": extension(UNKNOWN, octets(b"anything"), TRUE),
    "an unknown extension with FALSE written out": extension(UNKNOWN, octets(b"anything"), FALSE),
    "an unknown extension that is no DER": extension(UNKNOWN, b"\xff\xff\xff"),
    "an unknown extension twice": extension(UNKNOWN, octets(b"1")) + extension(UNKNOWN, octets(b"2")),
    "Netscape's comment": extension("2.16.840.1.113730.1.13", string(IA5, "OpenSSL Generated Certificate")),
    "Netscape's type": extension("2.16.840.1.113730.1.1", bits(b"\x40", 6)),
    "Microsoft's template": extension("1.3.6.1.4.1.311.20.2", string(BMP, "WebServer")),
    "Microsoft's template, second version": extension(
        "1.3.6.1.4.1.311.21.7", seq(oid(UNKNOWN), integer(100), integer(1))
    ),
    "Microsoft's application policies": extension("1.3.6.1.4.1.311.21.10", seq(seq(oid(SERVER_AUTH)))),
    "policies": extension("2.5.29.32", seq(seq(oid("2.23.140.1.2.1")))),
    "policies with the same one twice": extension("2.5.29.32", seq(seq(oid(UNKNOWN)), seq(oid(UNKNOWN)))),
    "policies with a notice": extension(
        "2.5.29.32",
        seq(seq(oid(UNKNOWN), seq(seq(oid("1.3.6.1.5.5.7.2.2"), seq(string(VISIBLE, "Notice")))))),
    ),
    "policies with a notice of 300 characters": extension(
        "2.5.29.32",
        seq(seq(oid(UNKNOWN), seq(seq(oid("1.3.6.1.5.5.7.2.2"), seq(string(UTF8, "n" * 300)))))),
    ),
    "policies that are empty": extension("2.5.29.32", seq()),
    "an address of OCSP": extension("1.3.6.1.5.5.7.1.1", _AT_LOCATION),
    "an address of OCSP, critical": extension("1.3.6.1.5.5.7.1.1", _AT_LOCATION, TRUE),
    "no address of OCSP in the list": extension("1.3.6.1.5.5.7.1.1", seq()),
    "a CRL's address": extension("2.5.29.31", _POINT),
    "a CRL's address, critical": extension("2.5.29.31", _POINT, TRUE),
    "a CRL's address in LDAP": extension(
        "2.5.29.31",
        seq(seq(explicit(0, explicit(0, tlv(0x86, b"ldap:///CN=a%20b,DC=x?certificateRevocationList?base"))))),
    ),
    "must-staple": extension("1.3.6.1.5.5.7.1.24", seq(integer(5))),
    "a list of SCTs": extension("1.3.6.1.4.1.11129.2.4.2", _TIMESTAMPS),
    "a list of SCTs that is broken": extension("1.3.6.1.4.1.11129.2.4.2", octets(b"\x00\x05abc")),
    "CT poison": extension("1.3.6.1.4.1.11129.2.4.3", NULL, TRUE),
    "alternative names of the issuer": extension("2.5.29.18", seq(dns("ca.example.com"))),
    "directory attributes": extension("2.5.29.9", seq(seq(oid("1.3.6.1.5.5.7.9.4"), set_of(string(PRINTABLE, "DE"))))),
    "a private key's period": extension("2.5.29.16", seq(tlv(0x80, b"20200101000000Z"))),
    "statements of qualified certificates": extension("1.3.6.1.5.5.7.1.3", seq(seq(oid("0.4.0.1862.1.1")))),
    "a logo": extension("1.3.6.1.5.5.7.1.12", seq()),
    "TLS features that are empty": extension("1.3.6.1.5.5.7.1.24", seq()),
}
_PERMITTED, _EXCLUDED = explicit(0, seq(dns("example.com"))), explicit(1, seq(dns("example.org")))


@family("extensions of leaves")
def _extensions_of_leaves() -> Iterator[Case]:
    for what, added in ADDITIONS.items():
        yield usual_chain(what, {"added": added})
    for what, names in ALTERNATIVES.items():
        yield usual_chain(f"SAN: {what}", {"san": san(*names)})
    changes: dict[str, Parts] = {
        "SAN missing": {"san": b""},
        "SAN critical": {"san": san(dns(HOST), flag=TRUE)},
        "SAN twice": {"added": san(dns("db.example.com"))},
        "SAN that is no DER": {"san": extension(SAN, b"\x30\x05abc")},
        "SAN with bytes behind it": {"san": extension(SAN, seq(dns(HOST)) + b"\x00\x00")},
        "basicConstraints missing": {"bc": b""},
        "basicConstraints not critical": {"bc": basic(flag=b"")},
        "basicConstraints with FALSE written out": {"bc": basic(FALSE)},
        "basicConstraints with a TRUE of 01": {"bc": basic(b"\x01\x01\x01")},
        "basicConstraints with a path length": {"bc": basic(integer(0))},
        "basicConstraints with FALSE and a path length": {"bc": basic(FALSE, integer(0))},
        "basicConstraints of a CA": {"bc": basic(TRUE)},
        "basicConstraints twice": {"added": basic()},
        "basicConstraints without content": {"bc": extension(BC, b"")},
        "keyUsage missing": {"ku": b""},
        "keyUsage not critical": {"ku": extension(KU, bits(b"\x80", 7))},
        "keyUsage of nothing": {"ku": extension(KU, bits(b"", 0), TRUE)},
        "keyUsage of zeros": {"ku": extension(KU, bits(b"\x00", 0), TRUE)},
        "keyUsage with zeros at its end": {"ku": extension(KU, bits(b"\x80\x00", 0), TRUE)},
        "keyUsage of encryption only": {"ku": extension(KU, bits(b"\x20", 5), TRUE)},
        "keyUsage of agreement only": {"ku": extension(KU, bits(b"\x08", 3), TRUE)},
        "keyUsage of a CA": {"ku": SIGN_CERTIFICATES},
        "keyUsage of every kind": {"ku": extension(KU, bits(b"\xff\x80", 7), TRUE)},
        "keyUsage with bits beyond": {"ku": extension(KU, bits(b"\xff\xff", 0), TRUE)},
        "keyUsage twice": {"added": extension(KU, bits(b"\x80", 7), TRUE)},
        "extendedKeyUsage missing": {"eku": b""},
        "extendedKeyUsage critical": {"eku": eku(SERVER_AUTH, flag=TRUE)},
        "extendedKeyUsage of clients": {"eku": eku(CLIENT_AUTH)},
        "extendedKeyUsage of both": {"eku": eku(CLIENT_AUTH, SERVER_AUTH)},
        "extendedKeyUsage of anything": {"eku": eku(ANY_USAGE)},
        "extendedKeyUsage of anything, critical": {"eku": eku(ANY_USAGE, flag=TRUE)},
        "extendedKeyUsage unknown": {"eku": eku(UNKNOWN)},
        "extendedKeyUsage of servers and unknown": {"eku": eku(SERVER_AUTH, UNKNOWN)},
        "extendedKeyUsage with the same twice": {"eku": eku(SERVER_AUTH, SERVER_AUTH)},
        "extendedKeyUsage of step-up": {"eku": eku("2.16.840.1.113730.4.1")},
        "extendedKeyUsage of nothing": {"eku": extension(EKU, seq())},
        "extendedKeyUsage twice": {"added": eku(CLIENT_AUTH)},
        "subjectKeyIdentifier missing": {"ski": b""},
        "subjectKeyIdentifier of 1 byte": {"ski": extension(SKI, octets(b"\x01"))},
        "subjectKeyIdentifier of 32 bytes": {"ski": extension(SKI, octets(bytes(range(32))))},
        "subjectKeyIdentifier without a byte": {"ski": extension(SKI, octets(b""))},
        "subjectKeyIdentifier critical": {"ski": extension(SKI, octets(b"\x01\x02"), TRUE)},
        "subjectKeyIdentifier that is no OCTET STRING": {"ski": extension(SKI, integer(3))},
        "authorityKeyIdentifier missing": {"aki": b""},
        "authorityKeyIdentifier empty": {"aki": extension(AKI, seq())},
        "authorityKeyIdentifier wrong": {"aki": aki(b"\x01" * 20)},
        "authorityKeyIdentifier critical": {"aki": extension(AKI, seq(tlv(0x80, MIDDLE.key_id)), TRUE)},
        "authorityKeyIdentifier of issuer and serial": {"aki": _by_serial(ROOT.name, MIDDLE.der)},
        "authorityKeyIdentifier of all three": {"aki": _by_serial(ROOT.name, MIDDLE.der, MIDDLE.key_id)},
        "authorityKeyIdentifier of another serial": {"aki": _by_serial(ROOT.name, ROOT.der)},
        "authorityKeyIdentifier of an issuer alone": {"aki": extension(AKI, seq(explicit(1, explicit(4, ROOT.name))))},
        "authorityKeyIdentifier twice": {"added": aki(MIDDLE.key_id)},
        "name constraints": {"added": extension("2.5.29.30", seq(_PERMITTED), TRUE)},
        "all in another order": dict(reversed(leaf_parts(MIDDLE, spki(KEY)).items())),
        "a hundred extensions": {"added": b"".join(extension(f"{UNKNOWN}.{n}", NULL) for n in range(100))},
    }
    for what, change in changes.items():
        yield usual_chain(what, change)


def _by_serial(issuer: bytes, der: bytes, identifier: bytes = b"") -> bytes:
    """An AKI that names the issuer of the issuer, and its serial number."""
    serial = integer(load_der_x509_certificate(der).serial_number)[2:]
    parts = (tlv(0x80, identifier) if identifier else b"", explicit(1, explicit(4, issuer)), tlv(0x82, serial))
    return extension(AKI, seq(*parts))


@family("extensions of CAs")
def _extensions_of_cas() -> Iterator[Case]:
    changes: dict[str, Parts] = {
        **{what: {"added": added} for what, added in ADDITIONS.items()},
        "basicConstraints missing": {"bc": b""},
        "basicConstraints not critical": {"bc": basic(TRUE, flag=b"")},
        "basicConstraints of a leaf": {"bc": basic()},
        "basicConstraints with path length 0": {"bc": basic(TRUE, integer(0))},
        "basicConstraints with path length -1": {"bc": basic(TRUE, integer(-1))},
        "basicConstraints with path length 2^64": {"bc": basic(TRUE, integer(2**64))},
        "basicConstraints with a TRUE of 01": {"bc": basic(b"\x01\x01\x01")},
        "keyUsage missing": {"ku": b""},
        "keyUsage not critical": {"ku": extension(KU, bits(b"\x06", 1))},
        "keyUsage without keyCertSign": {"ku": extension(KU, bits(b"\x82", 1), TRUE)},
        "keyUsage of keyCertSign alone": {"ku": extension(KU, bits(b"\x04", 2), TRUE)},
        "keyUsage of nothing": {"ku": extension(KU, bits(b"", 0), TRUE)},
        "keyUsage with zeros at its end": {"ku": extension(KU, bits(b"\x06\x00", 0), TRUE)},
        "extendedKeyUsage of servers": {"eku": eku(SERVER_AUTH)},
        "extendedKeyUsage of clients": {"eku": eku(CLIENT_AUTH)},
        "extendedKeyUsage of anything": {"eku": eku(ANY_USAGE)},
        "subjectKeyIdentifier missing": {"ski": b""},
        "subjectKeyIdentifier of 3 bytes": {"ski": extension(SKI, octets(b"abc"))},
        "authorityKeyIdentifier missing": {"aki": b""},
        "authorityKeyIdentifier wrong": {"aki": aki(b"\x01" * 20)},
        "authorityKeyIdentifier of issuer and serial": {"aki": _by_serial(ROOT.name, ROOT.der)},
        "authorityKeyIdentifier of another serial": {"aki": _by_serial(ROOT.name, MIDDLE.der)},
        "name constraints that permit": {"added": extension("2.5.29.30", seq(_PERMITTED), TRUE)},
        "name constraints that permit something else": {
            "added": extension("2.5.29.30", seq(explicit(0, seq(dns("example.org")))), TRUE)
        },
        "name constraints that exclude something else": {"added": extension("2.5.29.30", seq(_EXCLUDED), TRUE)},
        "name constraints that exclude": {
            "added": extension("2.5.29.30", seq(explicit(1, seq(dns("example.com")))), TRUE)
        },
        "name constraints of addresses": {
            "added": extension("2.5.29.30", seq(explicit(1, seq(tlv(0x87, bytes(8))), seq(tlv(0x87, bytes(32))))), TRUE)
        },
        "name constraints with a host after a dot": {
            "added": extension("2.5.29.30", seq(explicit(0, seq(dns(".example.com")))), TRUE)
        },
        "name constraints, not critical": {"added": extension("2.5.29.30", seq(explicit(0, seq(dns("example.com")))))},
        "a policy that is demanded": {"added": extension("2.5.29.36", seq(tlv(0x80, b"\x00")), TRUE)},
        "no policy at all allowed": {"added": extension("2.5.29.54", integer(0), TRUE)},
        "policies mapped": {"added": extension("2.5.29.33", seq(seq(oid(UNKNOWN), oid(f"{UNKNOWN}.1"))))},
        "Microsoft's version of a CA": {"added": extension("1.3.6.1.4.1.311.21.1", integer(0))},
    }
    for what, change in changes.items():
        odd = authority(MIDDLE.name, ROOT, change=change)
        issued = leaf(odd, {"aki": aki(b"abc")} if what == "subjectKeyIdentifier of 3 bytes" else None)
        yield chain(what, issued, odd.der)
    lower = authority(common("Lower"), authority(MIDDLE.name, ROOT, MIDDLE.key, {"bc": basic(TRUE, integer(0))}))
    short = authority(MIDDLE.name, ROOT, MIDDLE.key, {"bc": basic(TRUE, integer(0))})
    yield below("a path length that is exceeded", lower, short.der)


@family("signatures")
def _signatures() -> Iterator[Case]:
    rsa_ca = authority(common("RSA CA"), ROOT, rsa_key())
    hows = {
        **{f"RSA with {digest}": pkcs1(digest) for digest in RSA_DIGESTS},
        "RSA without the NULL": pkcs1("sha256", b""),
        "RSA with parameters that are no NULL": pkcs1("sha256", integer(1)),
        "PSS with SHA-256": pss("sha256", 32),
        "PSS with SHA-384": pss("sha384", 48),
        "PSS with SHA-512": pss("sha512", 64),
        "PSS with SHA-1": pss("sha1", 20),
        "PSS with SHA-1 by default": pss("sha1", 20, parameters=seq()),
        "PSS without salt": pss("sha256", 0),
        "PSS with a salt of 20": pss("sha256", 20),
        "PSS with a salt of 222": pss("sha256", 222),
        "PSS with another digest in its mask": pss("sha256", 32, "sha1"),
        "PSS that states another salt": pss("sha256", 32, parameters=pss_parameters("sha256", 20)),
        "PSS without parameters": pss("sha256", 32, parameters=b""),
    }
    for what, how in hows.items():
        yield chain(what, leaf(rsa_ca, how=how), rsa_ca.der)
        if "sha" in what.lower():
            top = authority(common("RSA Root"), key=rsa_key())
            odd = authority(MIDDLE.name, top, MIDDLE.key, how=how)
            yield chain(f"{what}, on a CA", leaf(), odd.der, roots=(top.der,))
    for digest in (hashes.SHA1(), hashes.SHA224(), hashes.SHA384(), hashes.SHA512()):
        yield usual_chain(f"ECDSA with {digest.name}", how=ecdsa(digest))
    yield usual_chain("ECDSA with a NULL", how=ecdsa(hashes.SHA256(), NULL))
    for what, key in _signers().items():
        odd = authority(common(f"{what} CA"), ROOT, key)
        yield below(f"a CA on {what}", odd)
        top = authority(common(f"{what} Root"), key=key)
        yield chain(f"a root on {what}", leaf(top), roots=(top.der,))
    top = authority(ROOT.name, key=rsa_key(), how=pkcs1("sha1"))
    yield chain("a root that is signed with SHA-1", leaf(top), roots=(top.der,))
    top = authority(ROOT.name, key=rsa_key(), how=pkcs1("md5"))
    yield chain("a root that is signed with MD5", leaf(top), roots=(top.der,))
    top = authority(ROOT.name, spoiled=True)
    yield chain("a root whose own signature is wrong", leaf(top), roots=(top.der,))
    yield usual_chain("a wrong signature", spoiled=True)
    yield usual_chain("another algorithm within", inner=ecdsa(hashes.SHA384()).identifier)
    yield usual_chain("the same algorithm within with a NULL", inner=ecdsa(hashes.SHA256(), NULL).identifier)
    yield usual_chain("an unknown algorithm", how=How(seq(oid(UNKNOWN)), ecdsa(hashes.SHA256()).sign))
    yield usual_chain("bytes within, behind the signature", tail=NULL)
    whole = leaf()
    yield chain("bytes behind the certificate", whole + b"\x00", MIDDLE.der)
    yield chain("many bytes behind the certificate", whole + octets(b"x" * 50), MIDDLE.der)
    yield chain("a length that is longer than needed", b"\x30\x83\x00" + whole[2:], MIDDLE.der)
    yield chain("a length without an end", b"\x30\x80" + whole[4:] + b"\x00\x00", MIDDLE.der)
    yield chain("cut off", whole[:-20], MIDDLE.der)
    yield chain("nothing in the block", b"", MIDDLE.der)


@cache
def _signers() -> dict[str, Signer]:
    return {
        **{
            curve: curve_key(curve) for curve in ("SECP224R1", "SECP384R1", "SECP521R1", "SECP256K1", "BrainpoolP256R1")
        },
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "RSA-1024": rsa_key(1024),
        "RSA-3072": rsa_key(3072),
        "RSA with exponent 3": rsa_key(2048, 3),
    }


@cache
def _dsa() -> dsa.DSAPrivateKey:
    return dsa.generate_private_key(1024)


def _rsa_info(n: int, e: int, kind: str = "1.2.840.113549.1.1.1", parameters: bytes = NULL) -> bytes:
    return seq(seq(oid(kind), parameters), bits(seq(integer(n), integer(e))))


def _explicit_curve(private: bool = False) -> bytes:
    """A P-256 key whose curve is written out; by OpenSSL."""
    made = openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-param_enc", "explicit")
    if private:
        return made
    return openssl("pkey", "-pubout", "-outform", "DER", stdin=made)


@family("keys of leaves")
def _keys_of_leaves() -> Iterator[Case]:
    for what, key in _signers().items():
        yield usual_chain(what, key=key)
    for size in (2047, 2048, 2049, 4096):
        yield usual_chain(f"RSA-{size}", key=rsa_key(size))
    yield usual_chain("RSA for encryption only", {"ku": extension(KU, bits(b"\x20", 5), TRUE)}, rsa_key())
    n = rsa_key().public_key().public_numbers().n
    infos = {
        "RSA with an even exponent": _rsa_info(n, 65536),
        "RSA with exponent 1": _rsa_info(n, 1),
        "RSA with exponent 0": _rsa_info(n, 0),
        "RSA with a negative modulus": _rsa_info(-n, 65537),
        "RSA with an even modulus": _rsa_info(n - 1, 65537),
        "RSA with a long exponent": _rsa_info(n, 2**80 + 1),
        "RSA with an exponent as long as the modulus": _rsa_info(n, n - 2),
        "RSA of 16384 bits": _rsa_info(2**16383 + 1, 65537),
        "RSA that says it is for OAEP": _rsa_info(n, 65537, "1.2.840.113549.1.1.7"),
        "a key of an unknown kind": seq(seq(oid(UNKNOWN)), bits(b"\x00")),
        "no key": seq(seq(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")), bits(b"")),
        "a point that is not on the curve": _point(b"\x04" + bytes(63) + b"\x01"),
        "the point at infinity": _point(b"\x00"),
        "explicit curve parameters": _explicit_curve(),
        "a curve by inheritance": seq(seq(oid("1.2.840.10045.2.1"), NULL), bits(_uncompressed(KEY))),
        "X25519": openssl("pkey", "-pubout", "-outform", "DER", stdin=openssl("genpkey", "-algorithm", "x25519")),
        "DSA": spki(_dsa()),
    }
    for what, info in infos.items():
        yield chain(what, leaf(key_info=info), MIDDLE.der, key=None)
    yield usual_chain("RSA without the NULL", key=rsa_key(), key_info=_rsa_info(n, 65537, parameters=b""))
    yield usual_chain("an RSA-PSS key", key=rsa_key(), key_info=_rsa_info(n, 65537, "1.2.840.113549.1.1.10", b""))
    bound = pss_parameters("sha256", 32)
    yield usual_chain(
        "an RSA-PSS key with parameters", key=rsa_key(), key_info=_rsa_info(n, 65537, "1.2.840.113549.1.1.10", bound)
    )
    compressed = KEY.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    yield usual_chain("a compressed point", key_info=_point(compressed))
    hybrid = bytes([6 + (_uncompressed(KEY)[-1] & 1)]) + _uncompressed(KEY)[1:]
    yield usual_chain("a hybrid point", key_info=_point(hybrid))
    pss_ca = _pss_ca()
    yield chain("an RSA-PSS key of a CA", leaf(pss_ca, how=pss("sha256", 32)), pss_ca.der)


def _uncompressed(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _point(point: bytes) -> bytes:
    return seq(seq(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")), bits(point))


def _pss_ca() -> Ca:
    key = rsa_key()
    info = _rsa_info(key.public_key().public_numbers().n, 65537, "1.2.840.113549.1.1.10", b"")
    parts = tuple(ca_parts(key, ROOT).values())
    return Ca(key, common("PSS CA"), certificate(ROOT.key, ROOT.name, common("PSS CA"), info, parts))


@family("chains")
def _chains() -> Iterator[Case]:
    end = leaf()
    yield chain("leaf and intermediate", end, MIDDLE.der)
    yield chain("with the root", end, MIDDLE.der, ROOT.der)
    yield chain("the other way round", ROOT.der, MIDDLE.der, end, first=end)
    yield chain("the intermediate first", MIDDLE.der, end, first=end)
    yield chain("everything twice", end, end, MIDDLE.der, MIDDLE.der, ROOT.der, ROOT.der)
    yield chain("straight below the root", leaf(ROOT))
    yield chain("the intermediate missing", end)
    yield chain("the root missing from the trusted", end, MIDDLE.der, roots=(authority(common("Another")).der,))
    yield chain("the intermediate trusted", end, roots=(MIDDLE.der,))
    yield chain("the intermediate trusted and sent", end, MIDDLE.der, roots=(MIDDLE.der,))
    yield chain("the leaf trusted", end, roots=(end,))

    other = authority(common("Other Root"))
    crossed = authority(MIDDLE.name, other, MIDDLE.key)
    yield chain("cross-signed, the trusted first", end, MIDDLE.der, crossed.der)
    yield chain("cross-signed, the trusted last", end, crossed.der, MIDDLE.der)
    old_root = authority(ROOT.name, other, ROOT.key)
    yield chain("a root that an older one has signed, both sent", end, MIDDLE.der, old_root.der, ROOT.der)
    yield chain(
        "a root that an older one has signed, the older trusted", end, MIDDLE.der, old_root.der, roots=(other.der,)
    )
    renewed = authority(ROOT.name, key=ROOT.key, end=utc(NOW + timedelta(days=7000)))
    yield chain("a root renewed with the same key, sent beside its twin", end, MIDDLE.der, ROOT.der, renewed.der)
    yield chain(
        "a root renewed with the same key, the new one trusted", end, MIDDLE.der, ROOT.der, roots=(renewed.der,)
    )
    yield chain("a root renewed with the same key, both trusted", end, MIDDLE.der, roots=(ROOT.der, renewed.der))
    expired = authority(ROOT.name, key=ROOT.key, end=utc(NOW - timedelta(days=1)))
    yield chain("a root renewed with the same key, the expired sent", end, MIDDLE.der, expired.der)
    yield chain(
        "a root renewed with the same key, both trusted, one expired", end, MIDDLE.der, roots=(expired.der, ROOT.der)
    )
    namesake = authority(ROOT.name)
    yield chain("two roots of one name, the other sent", end, MIDDLE.der, namesake.der)
    yield chain("two roots of one name, both trusted", end, MIDDLE.der, roots=(namesake.der, ROOT.der))
    yield chain("two roots of one name, the other trusted", end, MIDDLE.der, roots=(namesake.der,))
    yield chain("a second root in the bundle", end, MIDDLE.der, ROOT.der, other.der)

    twin = authority(MIDDLE.name, ROOT, MIDDLE.key, end=utc(NOW + timedelta(days=500)))
    yield chain("twin intermediates", end, MIDDLE.der, twin.der)
    stale = authority(MIDDLE.name, ROOT, MIDDLE.key, end=utc(NOW - timedelta(days=5)))
    yield chain("twin intermediates, the first expired", end, stale.der, MIDDLE.der)
    yield chain("twin intermediates, the last expired", end, MIDDLE.der, stale.der)
    rekeyed = authority(MIDDLE.name, ROOT)
    yield chain("an intermediate of the same name and another key, first", end, rekeyed.der, MIDDLE.der)
    yield chain("an intermediate of the same name and another key, last", end, MIDDLE.der, rekeyed.der)
    yield chain("an intermediate of the same name and another key, alone", end, rekeyed.der)
    bare = leaf(change={"aki": b""})
    yield chain("no key id in the leaf, two of one name", bare, rekeyed.der, MIDDLE.der)
    unnamed = authority(MIDDLE.name, ROOT, change={"ski": b"", "aki": b""})
    yield chain("no key ids anywhere", leaf(unnamed, {"aki": b""}), unnamed.der)

    printable = authority(common("Middle Printable", PRINTABLE), ROOT)
    retyped = msgspec.structs.replace(printable, name=common("Middle Printable"))
    yield chain("the issuer by another string type", leaf(retyped), printable.der)
    shouted = msgspec.structs.replace(printable, name=common("MIDDLE PRINTABLE", PRINTABLE))
    yield chain("the issuer in upper case", leaf(shouted), printable.der)
    spaced = msgspec.structs.replace(printable, name=common(" Middle  Printable ", PRINTABLE))
    yield chain("the issuer with more spaces", leaf(spaced), printable.der)
    retyped_root = msgspec.structs.replace(
        ROOT, name=name(rdn(O, "Corpus", PRINTABLE), rdn(CN, "Corpus Root", PRINTABLE))
    )
    odd = authority(MIDDLE.name, retyped_root, MIDDLE.key)
    yield chain("the root by another string type", end, odd.der)

    one, two = authority(common("One")), authority(common("Two"))
    loop = (authority(one.name, two, one.key).der, authority(two.name, one, two.key).der)
    yield chain("a cycle", leaf(one), *loop)
    yield chain("a cycle with a way out", leaf(one), *loop, roots=(two.der,))
    for length in (8, 9, 10, 11, 15):
        ladder = [ROOT]
        for step in range(length):
            ladder.append(authority(common(f"Step {step}"), ladder[-1]))
        yield chain(f"{length} intermediates", leaf(ladder[-1]), *(each.der for each in reversed(ladder[1:])))
    extra = [authority(common(f"Extra {number}"), ROOT).der for number in range(18)]
    yield chain("20 certificates", end, MIDDLE.der, *extra)
    yield chain("21 certificates", end, MIDDLE.der, *extra, other.der)
    stranger = leaf(other, subject=common("stranger.example.com"), key_info=spki(curve_key("SECP256R1")))
    yield chain("a stranger's leaf behind", end, MIDDLE.der, stranger)
    yield chain("a stranger's leaf before", stranger, end, MIDDLE.der, first=end)
    second = leaf(subject=common("second.example.com"))
    yield chain("two leaves of one key", end, second, MIDDLE.der)
    fresh = leaf(end=utc(NOW + timedelta(days=30)))
    yield chain(
        "the leaf that is expired beside the new one",
        leaf(end=utc(NOW - timedelta(days=1))),
        fresh,
        MIDDLE.der,
        first=fresh,
    )
    yield chain("an own leaf that is a CA's", _self_signed(basic(TRUE)), roots=(_self_signed(basic(TRUE)),), force=True)
    alone = _self_signed(basic())
    yield chain("a self-signed leaf", alone, roots=(alone,))
    yield chain("a self-signed leaf, not trusted", alone)
    yield chain("a self-signed leaf, with force", alone, roots=(alone,), force=True)
    yield chain("leaf and intermediate, with force", end, MIDDLE.der, force=True)
    yield chain("only CAs", MIDDLE.der, ROOT.der)
    self_issued = authority(MIDDLE.name, MIDDLE)
    yield chain("a CA that renewed its key itself", leaf(self_issued), self_issued.der, MIDDLE.der)
    leaf_as_ca = Ca(KEY, common(HOST), end)
    yield chain(
        "a leaf that signed a leaf",
        leaf(leaf_as_ca, subject=common("x"), key_info=spki(curve_key("SECP256R1"))),
        end,
        MIDDLE.der,
        key=curve_key("SECP256R1"),
    )


@cache
def _self_signed(constraints: bytes) -> bytes:
    parts = (constraints, san(dns(HOST)), extension(SKI, octets(key_id(spki(KEY)))))
    return certificate(KEY, common(HOST), common(HOST), spki(KEY), parts)


@cache
def _parameters() -> str:
    """DH PARAMETERS of a known group."""
    made = openssl("genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048")
    return made.decode()


# What happens to PEM on its way; each takes the text of ordinary blocks.

ZERO_WIDTH = "\u200b"
Wrapping: TypeAlias = Callable[[str], bytes]


def _body(change: Callable[[str], str]) -> Wrapping:
    """Change each line between the boundaries."""
    return lambda text: "".join(
        line if line.startswith("-----") else change(line) for line in text.splitlines(keepends=True)
    ).encode()


def _first_line(change: Callable[[str], str]) -> Wrapping:
    """Change the first line of base64 in each block."""
    return lambda text: re.sub(r"(-----\n)([A-Za-z0-9+/=]+\n)", lambda m: m[1] + change(m[2]), text).encode()


WRAPPINGS: dict[str, Wrapping] = {
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR alone": lambda text: text.replace("\n", "\r").encode(),
    "CR CR LF": lambda text: text.replace("\n", "\r\r\n").encode(),
    "no newline at the end": lambda text: text.rstrip("\n").encode(),
    "lines of 76": lambda text: _each_block(text, lambda block: rewrapped(block, 76)).encode(),
    "lines of 10": lambda text: _each_block(text, lambda block: rewrapped(block, 10)).encode(),
    "one line of base64": lambda text: _each_block(text, lambda block: rewrapped(block, 10**6)).encode(),
    "everything in one line": lambda text: text.replace("\n", "").encode(),
    "spaces for newlines": lambda text: text.replace("\n", " ").encode(),
    "spaces before each line": lambda text: re.sub("(?m)^", "    ", text).encode(),
    "spaces before the base64": _body(lambda line: f"  {line}"),
    "spaces behind each line": lambda text: text.replace("\n", "  \n").encode(),
    "tabs before each line": lambda text: re.sub("(?m)^", "\t", text).encode(),
    "tabs behind each line": lambda text: text.replace("\n", "\t\n").encode(),
    "blank lines before": lambda text: ("\n\n\n" + text).encode(),
    "a blank line after the beginning": _first_line(lambda line: f"\n{line}"),
    "blank lines between": _body(lambda line: f"{line}\n"),
    "a comment before": lambda text: ("# from our CA\n" + text).encode(),
    "comments between blocks": lambda text: text.replace("-----BEGIN", "# next\n-----BEGIN").encode(),
    "a comment within": _first_line(lambda line: f"# comment\n{line}"),
    "text in UTF-8 around": lambda text: f"Bäckerei 東京\n{text}Grüße\n".encode(),
    "text in Latin-1 around": lambda text: b"B\xe4ckerei\n" + text.encode() + b"Gr\xfc\xdfe\n",
    "text in UTF-16 before": lambda text: "Bäckerei\n".encode("utf-16-le") + text.encode(),
    "text in Windows-1252 around": lambda text: b"\x93CA\x94\n" + text.encode() + b"\x80\n",
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "all in UTF-16": lambda text: text.encode("utf-16"),
    "all in UTF-16, big-endian": lambda text: text.encode("utf-16-be"),
    "all in UTF-32": lambda text: text.encode("utf-32"),
    "bag attributes before": lambda text: text.replace(
        "-----BEGIN", "Bag Attributes\n    localKeyID: 01 02\nsubject=/CN=x\n-----BEGIN"
    ).encode(),
    "the text of the tool before": lambda text: ("Certificate:\n    Data:\n        Version: 3 (0x2)\n" + text).encode(),
    "headers within": _first_line(lambda line: f"Comment: from our CA\n\n{line}"),
    "headers within, without a blank line": _first_line(lambda line: f"Comment: from our CA\n{line}"),
    "a folded header within": _first_line(lambda line: f"Comment: from\n our CA\n\n{line}"),
    "the end missing": lambda text: text.rsplit("-----END", 1)[0].encode(),
    "the end of another label": lambda text: re.sub("END [A-Z0-9 ]+", "END THING", text).encode(),
    "the beginning missing": lambda text: text.split("\n", 1)[1].encode(),
    "the end's dashes cut": lambda text: text.rstrip("-\n").encode(),
    "six dashes": lambda text: text.replace("-----", "------").encode(),
    "four dashes": lambda text: text.replace("-----", "----").encode(),
    "dashes that are no hyphens": lambda text: text.replace("-----", "\u2013" * 5).encode(),
    "boundaries in lower case": lambda text: re.sub("-----.*?-----", lambda m: m[0].lower(), text).encode(),
    "spaces within the boundaries": lambda text: text.replace("-----BEGIN", "----- BEGIN").encode(),
    "mail quoting": lambda text: re.sub("(?m)^(?=.)", "> ", text).encode(),
    "escaped newlines": lambda text: text.replace("\n", "\\n").encode(),
    "escaped newlines with CR": lambda text: text.replace("\n", "\\r\\n").encode(),
    "newlines escaped twice": lambda text: text.replace("\n", "\\\\n").encode(),
    "in quotation marks": lambda text: f'"{text}"'.encode(),
    "zero-width spaces": lambda text: text.replace("\n", f"{ZERO_WIDTH}\n").encode(),
    "a zero-width space before": lambda text: (ZERO_WIDTH + text).encode(),
    "no-break spaces": lambda text: text.replace("\n", "\u00a0\n").encode(),
    "line separators": lambda text: text.replace("\n", "\u2028").encode(),
    "form feeds": lambda text: text.replace("\n", "\f\n").encode(),
    "NUL at the end": lambda text: text.encode() + b"\x00",
    "NUL within": _first_line(lambda line: f"\x00{line}"),
    "control-Z at the end": lambda text: text.encode() + b"\x1a",
    "an escape sequence before": lambda text: ("\x1b[32m" + text + "\x1b[0m").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "base64 of the PEM": lambda text: base64.encodebytes(text.encode()),
    "in JSON": lambda text: json.dumps({"pem": text}).encode(),
    "in JSON, with a byte order mark": lambda text: b"\xef\xbb\xbf" + json.dumps({"pem": text}).encode(),
    "in YAML": lambda text: ("data: |\n" + re.sub("(?m)^(?=.)", "  ", text)).encode(),
    "in XML": lambda text: f"<cert><![CDATA[{text}]]></cert>".encode(),
    "in HTML": lambda text: f"<pre>{text.replace('+', '&#43;')}</pre>".encode(),
    "quoted-printable": lambda text: text.replace("=", "=3D").encode(),
    "percent-encoded": lambda text: text.replace("+", "%2B").replace("\n", "%0A").encode(),
    "base64 for URLs": _body(lambda line: line.replace("+", "-").replace("/", "_")),
    "the padding missing": _body(lambda line: line.replace("=", "")),
    "padding too long": _body(lambda line: line.replace("=\n", "==\n")),
    "a wrong character in the base64": _first_line(lambda line: f"!{line[1:]}"),
    "a character missing in the base64": _first_line(lambda line: line[1:]),
    "a line missing in the base64": _first_line(lambda _: ""),
    "a fingerprint behind": lambda text: f"{text}SHA256 Fingerprint=AA:BB\n".encode(),
    "HTTP headers before": lambda text: ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + text).encode(),
    "an empty block before": lambda text: ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" + text).encode(),
    "DH PARAMETERS before": lambda text: (_parameters() + text).encode(),
    "DH PARAMETERS behind": lambda text: (text + _parameters()).encode(),
    "EC PARAMETERS behind": lambda text: (text + pem(oid("1.2.840.10045.3.1.7"), "EC PARAMETERS")).encode(),
    "a public key behind": lambda text: (text + pem(spki(KEY), "PUBLIC KEY")).encode(),
    "an unknown block before": lambda text: (pem(NULL, "THING") + text).encode(),
}


def _each_block(text: str, change: Callable[[str], str]) -> str:
    return re.sub(r"(?s)-----BEGIN.*?-----END [A-Z ]+-----\n", lambda m: change(m[0]), text)


@family("PEM of certificates")
def _pem_of_certificates() -> Iterator[Case]:
    end = leaf()
    text = pem(end) + pem(MIDDLE.der)
    for what, wrap in WRAPPINGS.items():
        yield Case("", what, Kind.CHAIN, wrap(text), KEY, (ROOT.der,))
    trusted = openssl("x509", "-trustout", "-addtrust", "serverAuth", "-setalias", "ours", stdin=pem(end).encode())
    both = [load_der_x509_certificate(der) for der in (end, MIDDLE.der)]
    files: dict[str, bytes] = {
        "X509 CERTIFICATE": text.replace(" CERTIFICATE", " X509 CERTIFICATE").encode(),
        "TRUSTED CERTIFICATE": trusted + pem(MIDDLE.der).encode(),
        "TRUSTED CERTIFICATE without the rest": text.replace(" CERTIFICATE", " TRUSTED CERTIFICATE").encode(),
        "the label of a CSR": text.replace(" CERTIFICATE", " CERTIFICATE REQUEST").encode(),
        "the label of PKCS#7": text.replace(" CERTIFICATE", " PKCS7").encode(),
        "PKCS#7 in PEM": pkcs7.serialize_certificates(both, serialization.Encoding.PEM),
        "PKCS#7 in DER": pkcs7.serialize_certificates(both, serialization.Encoding.DER),
        "PKCS#7 under the label CERTIFICATE": pem(
            pkcs7.serialize_certificates(both, serialization.Encoding.DER)
        ).encode(),
        "PKCS#12": pkcs12.serialize_key_and_certificates(b"x", KEY, both[0], both[1:], serialization.NoEncryption()),
        "DER": end,
        "two in DER": end + MIDDLE.der,
        "DER in base64": base64.encodebytes(end),
        "DER in hex": end.hex().encode(),
        "a private key before": pem(pkcs8(KEY), "PRIVATE KEY").encode() + text.encode(),
        "a private key behind": text.encode() + pem(pkcs8(KEY), "PRIVATE KEY").encode(),
        "a CSR behind": text.encode() + pem(request(), "CERTIFICATE REQUEST").encode(),
        "a CRL behind": text.encode() + pem(NULL, "X509 CRL").encode(),
        "a CSR": pem(request(), "CERTIFICATE REQUEST").encode(),
        "a public key": pem(spki(KEY), "PUBLIC KEY").encode(),
        "nothing": b"",
        "a word": b"certificate",
        "a broken intermediate": (pem(end) + pem(MIDDLE.der[:100])).encode(),
        "a broken block that belongs to nothing": (text + pem(b"\x30\x03\x02\x01\x01")).encode(),
        "a path": b"/etc/ssl/certs/server.pem",
    }
    for what, sent in files.items():
        yield Case("", what, Kind.CHAIN, sent, KEY, (ROOT.der,))


@family("PEM of trust anchors")
def _pem_of_anchors() -> Iterator[Case]:
    usual = chain("", leaf(), MIDDLE.der)
    text = pem(ROOT.der)
    for what, wrap in WRAPPINGS.items():
        yield msgspec.structs.replace(usual, name=what, anchors=wrap(text))
    files: dict[str, bytes] = {
        "X509 CERTIFICATE": text.replace(" CERTIFICATE", " X509 CERTIFICATE").encode(),
        "TRUSTED CERTIFICATE": openssl("x509", "-trustout", "-setalias", "ours", stdin=text.encode()),
        "DER": ROOT.der,
        "a broken one before": (pem(ROOT.der[:100]) + text).encode(),
        "an expired one before": (pem(authority(common("Old"), end=utc(NOW - timedelta(days=1))).der) + text).encode(),
    }
    for what, anchors in files.items():
        yield msgspec.structs.replace(usual, name=what, anchors=anchors)


@family("PEM of keys")
def _pem_of_keys() -> Iterator[Case]:
    text = pem(pkcs8(KEY), "PRIVATE KEY")
    for what, wrap in WRAPPINGS.items():
        yield key_case(what, wrap(text))


@family("PEM of CSRs")
def _pem_of_csrs() -> Iterator[Case]:
    text = pem(request(), "CERTIFICATE REQUEST")
    for what, wrap in WRAPPINGS.items():
        yield Case("", what, Kind.CSR, wrap(text), KEY)
    files: dict[str, bytes] = {
        "NEW CERTIFICATE REQUEST": text.replace(" CERT", " NEW CERT").encode(),
        "the label CERTIFICATE": text.replace(" CERTIFICATE REQUEST", " CERTIFICATE").encode(),
        "the label CSR": text.replace(" CERTIFICATE REQUEST", " CSR").encode(),
        "DER": request(),
        "two of them": (text + pem(request(subject=common("b.example.com")), "CERTIFICATE REQUEST")).encode(),
        "the same twice": (text + text).encode(),
        "a certificate": pem(leaf()).encode(),
        "a certificate behind": (text + pem(leaf())).encode(),
        "a private key": pem(pkcs8(KEY), "PRIVATE KEY").encode(),
        "a private key behind": (text + pem(pkcs8(KEY), "PRIVATE KEY")).encode(),
    }
    for what, sent in files.items():
        yield Case("", what, Kind.CSR, sent, KEY)


def key_case(what: str, sent: str | bytes, key: Signer | None = KEY) -> Case:
    return Case("", what, Kind.KEY, sent.encode() if isinstance(sent, str) else sent, key)


P256 = oid("1.2.840.10045.3.1.7")
EC_KEY = seq(oid("1.2.840.10045.2.1"), P256)
RSA_KEY = seq(oid("1.2.840.113549.1.1.1"), NULL)


def _sec1(scalar: bytes, *, curve: bytes = P256, point: bytes = b"", version: int = 1) -> bytes:
    """RFC 5915 section 3."""
    parts = (explicit(0, curve) if curve else b"", explicit(1, bits(point)) if point else b"")
    return seq(integer(version), octets(scalar), *parts)


def _pkcs8(algorithm: bytes, key: bytes, *more: bytes, version: int = 0) -> str:
    """RFC 5958 section 2."""
    return pem(seq(integer(version), algorithm, octets(key), *more), "PRIVATE KEY")


def _rsa_numbers(**changes: int) -> bytes:
    """RFC 8017 appendix A.1.2."""
    numbers = rsa_key().private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    values = {
        "version": 0,
        "n": n,
        "e": e,
        "d": numbers.d,
        "p": numbers.p,
        "q": numbers.q,
        "dp": numbers.dmp1,
        "dq": numbers.dmq1,
        "qinv": numbers.iqmp,
        **changes,
    }
    return seq(*map(integer, values.values()))


@family("containers of keys")
def _containers() -> Iterator[Case]:
    numbers = rsa_key().private_numbers()
    scalar = KEY.private_numbers().private_value
    octets32, point = scalar.to_bytes(32, "big"), _uncompressed(KEY)
    other = _uncompressed(curve_key("SECP256R1"))
    usual_pem = pem(pkcs8(KEY), "PRIVATE KEY")
    rsa_pem = pem(traditional(rsa_key()), "RSA PRIVATE KEY")
    sec1_pem = pem(traditional(KEY), "EC PRIVATE KEY")
    for what, sent in {
        "PKCS#8": usual_pem,
        "SEC1": sec1_pem,
        "SEC1 under the label PRIVATE KEY": pem(traditional(KEY), "PRIVATE KEY"),
        "PKCS#8 under the label EC PRIVATE KEY": pem(pkcs8(KEY), "EC PRIVATE KEY"),
        "PKCS#8 under the label ANY PRIVATE KEY": pem(pkcs8(KEY), "ANY PRIVATE KEY"),
        "PKCS#8 under the label ECDSA PRIVATE KEY": pem(pkcs8(KEY), "ECDSA PRIVATE KEY"),
        "SEC1 behind EC PARAMETERS": pem(P256, "EC PARAMETERS") + sec1_pem,
        "SEC1 before EC PARAMETERS": sec1_pem + pem(P256, "EC PARAMETERS"),
        "SEC1 without the point": pem(_sec1(octets32), "EC PRIVATE KEY"),
        "SEC1 without the curve": pem(_sec1(octets32, curve=b"", point=point), "EC PRIVATE KEY"),
        "SEC1 of version 2": pem(_sec1(octets32, point=point, version=2), "EC PRIVATE KEY"),
        "SEC1 with another point": pem(_sec1(octets32, point=other), "EC PRIVATE KEY"),
        "SEC1 with a compressed point": pem(_sec1(octets32, point=_compressed(KEY)), "EC PRIVATE KEY"),
        "SEC1 with a zero before the scalar": pem(_sec1(b"\x00" + octets32, point=point), "EC PRIVATE KEY"),
        "PKCS#8 without the point": _pkcs8(EC_KEY, _sec1(octets32, curve=b"")),
        "PKCS#8 with the curve twice": _pkcs8(EC_KEY, _sec1(octets32, point=point)),
        "PKCS#8 with the curve only within": _pkcs8(seq(oid("1.2.840.10045.2.1")), _sec1(octets32, point=point)),
        "PKCS#8 with another curve within": _pkcs8(EC_KEY, _sec1(octets32, curve=oid("1.3.132.0.34"), point=point)),
        "PKCS#8 with another point": _pkcs8(EC_KEY, _sec1(octets32, curve=b"", point=other)),
        "PKCS#8 with attributes": _pkcs8(EC_KEY, _sec1(octets32, point=point), explicit(0, _friendly_name())),
        "PKCS#8 with no attributes in the list": _pkcs8(EC_KEY, _sec1(octets32, point=point), explicit(0)),
        "PKCS#8 of version 2 with the public key": _pkcs8(
            EC_KEY, _sec1(octets32, point=point), tlv(0x81, b"\x00", point), version=1
        ),
        "PKCS#8 of version 2 with another public key": _pkcs8(
            EC_KEY, _sec1(octets32, point=point), tlv(0x81, b"\x00", other), version=1
        ),
        "PKCS#8 of version 2 without a public key": _pkcs8(EC_KEY, _sec1(octets32, point=point), version=1),
        "PKCS#8 of version 3": _pkcs8(EC_KEY, _sec1(octets32, point=point), version=2),
        "PKCS#8 with bytes behind it": pem(pkcs8(KEY) + b"\x00", "PRIVATE KEY"),
        "PKCS#8 of a bare scalar": _pkcs8(EC_KEY, octets32),
        "the same key twice": usual_pem + usual_pem,
        "two keys": usual_pem + pem(pkcs8(curve_key("SECP256R1")), "PRIVATE KEY"),
        "text behind": usual_pem + "this key is for the web server\n",
        "a certificate before": pem(leaf()) + usual_pem,
        "a certificate behind": usual_pem + pem(leaf()),
        "a CSR behind": usual_pem + pem(request(), "CERTIFICATE REQUEST"),
        "encrypted PKCS#8": openssl("pkcs8", "-topk8", "-passout", "pass:x", stdin=usual_pem.encode()).decode(),
        "encrypted SEC1": openssl("ec", "-aes128", "-passout", "pass:x", stdin=usual_pem.encode()).decode(),
        "OpenSSH": KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ).decode(),
    }.items():
        yield key_case(what, sent)
    yield key_case("DER", pkcs8(KEY))
    yield key_case("DER in base64", base64.encodebytes(pkcs8(KEY)))
    yield key_case("nothing", b"")
    yield key_case(
        "PKCS#12", pkcs12.serialize_key_and_certificates(b"x", KEY, None, None, serialization.NoEncryption())
    )
    yield from _broken_keys()
    for what, sent in {
        "a public key": pem(spki(KEY), "PUBLIC KEY"),
        "a certificate": pem(leaf()),
        "a scalar of 0": pem(_sec1(bytes(32)), "EC PRIVATE KEY"),
        "a scalar of 1": pem(_sec1(bytes(31) + b"\x01"), "EC PRIVATE KEY"),
        "a scalar of the order": pem(_sec1(_ORDER.to_bytes(32, "big")), "EC PRIVATE KEY"),
        "a scalar above the order": pem(_sec1((_ORDER + 5).to_bytes(32, "big")), "EC PRIVATE KEY"),
        "a scalar of 8 bytes": pem(_sec1(b"\x11" * 8), "EC PRIVATE KEY"),
        "a scalar of 40 bytes": pem(_sec1(b"\x11" * 40), "EC PRIVATE KEY"),
        "explicit curve parameters": _explicit_curve(private=True).decode(),
        "explicit curve parameters in PKCS#8": openssl(
            "pkey", "-ec_param_enc", "explicit", stdin=_explicit_curve(private=True)
        ).decode(),
        "RSA with p and q swapped": _rsa_pem(
            p=numbers.q, q=numbers.p, dp=numbers.dmq1, dq=numbers.dmp1, qinv=pow(numbers.p, -1, numbers.q)
        ),
        "RSA with a d that is longer": _rsa_pem(d=numbers.d + (numbers.p - 1) * (numbers.q - 1)),
        "RSA with another d": _rsa_pem(d=numbers.d + 2),
        "RSA with another n": _rsa_pem(n=numbers.public_numbers.n + 2),
        "RSA with another p": _rsa_pem(p=numbers.p + 2),
        "RSA with another dp": _rsa_pem(dp=numbers.dmp1 + 2),
        "RSA with another qinv": _rsa_pem(qinv=numbers.iqmp + 1),
        "RSA with zeros for its factors": _rsa_pem(p=0, q=0, dp=0, dq=0, qinv=0),
        "RSA with negative numbers": _rsa_pem(d=-numbers.d),
        "RSA with an even exponent": _rsa_pem(e=65536),
        "RSA of more primes": _rsa_pem(version=1),
        "RSA of version 7": _rsa_pem(version=7),
    }.items():
        yield key_case(what, sent, None)
    yield from _rsa_containers(rsa_pem)
    for what, key in _signers().items():
        yield key_case(f"{what} in PKCS#8", pem(pkcs8(key), "PRIVATE KEY"), key)
    for size in (2047, 2049, 4096):
        yield key_case(f"RSA-{size}", pem(pkcs8(rsa_key(size)), "PRIVATE KEY"), rsa_key(size))
    yield key_case("DSA", pem(pkcs8(_dsa()), "PRIVATE KEY"), None)
    yield key_case("DSA in its own form", pem(traditional(_dsa()), "DSA PRIVATE KEY"), None)
    yield key_case("X25519", openssl("genpkey", "-algorithm", "x25519"), None)
    yield key_case("X448", openssl("genpkey", "-algorithm", "x448"), None)
    yield key_case("DH", openssl("genpkey", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048"), None)


_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _broken_keys() -> Iterator[Case]:
    """Keys that OpenSSL finds nothing wrong with, and that others compute from what is public."""
    numbers = rsa_key().private_numbers()
    e = numbers.public_numbers.e
    yield key_case("RSA of neighbouring primes", _rsa_of(numbers.p, _next_prime(numbers.p + 2**40, 2), e), None)
    # Wiener: the exponents are exchanged.
    small = _next_prime(2**200 + 1, 2)
    large = pow(small, -1, (numbers.p - 1) * (numbers.q - 1))
    yield key_case("RSA with a small private exponent", _rsa_of(numbers.p, numbers.q, large), None)
    # ROCA (CVE-2017-15361): primes that are powers of 65537 modulo the product of the first 126 primes.
    product = math.prod(_SMALL_PRIMES[:126])
    p, q = (_next_prime(k * product + pow(65537, k, product), product) for k in (2**53 + 1, 2**53 + 10**6))
    yield key_case("RSA of ROCA's shape", _rsa_of(p, q, e), None)


_SMALL_PRIMES = [number for number in range(2, 2000) if all(number % below for below in range(2, number))]


def _next_prime(begin: int, step: int) -> int:
    """The first probable prime from `begin` on, which is odd, in steps."""
    while any(begin % prime == 0 for prime in _SMALL_PRIMES) or pow(2, begin - 1, begin) != 1:
        begin += step
    return begin


def _rsa_of(p: int, q: int, e: int) -> str:
    d = pow(e, -1, (p - 1) * (q - 1))
    return _rsa_pem(n=p * q, e=e, d=d, p=p, q=q, dp=d % (p - 1), dq=d % (q - 1), qinv=pow(q, -1, p))


def _friendly_name() -> bytes:
    return seq(oid("1.2.840.113549.1.9.20"), set_of(string(BMP, "my key")))


def _compressed(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _rsa_pem(**changes: int) -> str:
    return pem(_rsa_numbers(**changes), "RSA PRIVATE KEY")


def _rsa_containers(rsa_pem: str) -> Iterator[Case]:
    key = rsa_key()
    inner = traditional(key)
    pss_oid = oid("1.2.840.113549.1.1.10")
    encrypted = openssl("rsa", "-aes128", "-traditional", "-passout", "pass:x", stdin=rsa_pem.encode()).decode()
    sent = {
        "PKCS#1": rsa_pem,
        "RSA in PKCS#8": pem(pkcs8(key), "PRIVATE KEY"),
        "RSA in PKCS#8 under the label RSA PRIVATE KEY": pem(pkcs8(key), "RSA PRIVATE KEY"),
        "PKCS#1 under the label PRIVATE KEY": pem(inner, "PRIVATE KEY"),
        "PKCS#1 under the label EC PRIVATE KEY": pem(inner, "EC PRIVATE KEY"),
        "PKCS#1 with headers": rsa_pem.replace("-----\n", "-----\nComment: x\n\n", 1),
        "PKCS#1 behind DH PARAMETERS": _parameters() + rsa_pem,
        "RSA in PKCS#8 without the NULL": _pkcs8(seq(oid("1.2.840.113549.1.1.1")), inner),
        "RSA in PKCS#8 of version 2": _pkcs8(RSA_KEY, inner, version=1),
        "encrypted PKCS#1": encrypted,
        "encrypted PKCS#1 without its headers": re.sub(r"Proc-Type.*\nDEK-Info.*\n\n", "", encrypted),
        "an RSA-PSS key": _pkcs8(seq(pss_oid), inner),
        "an RSA-PSS key with parameters": _pkcs8(seq(pss_oid, pss_parameters("sha256", 32)), inner),
        "RSA that says it is for OAEP": _pkcs8(seq(oid("1.2.840.113549.1.1.7"), NULL), inner),
        "RSA with bytes behind it": pem(inner + b"\x00\x00", "RSA PRIVATE KEY"),
        "RSA with zeros before a number": pem(
            seq(tlv(2, b"\x00\x00"), *(tlv(2, b"\x00", part[2:]) for part in [integer(3)])), "RSA PRIVATE KEY"
        ),
    }
    for what, text in sent.items():
        yield key_case(what, text, key)


# CSRs (RFC 2986).


def request(
    *extensions: bytes,
    subject: bytes | None = None,
    key: Signer = KEY,
    key_info: bytes | None = None,
    version: bytes | None = None,
    attributes: bytes | None = None,
    how: How | None = None,
    **fields: Any,
) -> bytes:
    """A CSR that asks for `extensions`, or for one host; `attributes` is the whole field, b"" takes it away."""
    if attributes is None:
        attributes = explicit(0, wanted(*(extensions or (san(dns(HOST)),))))
    body = seq(
        integer(0) if version is None else version,
        common(HOST) if subject is None else subject,
        key_info or spki(key),
        attributes,
    )
    return signed(body, key, how or usual(key), **fields)


def csr_case(what: str, *extensions: bytes, key: Signer = KEY, **fields: Any) -> Case:
    made = request(*extensions, key=key, **fields)
    return Case("", what, Kind.CSR, pem(made, "CERTIFICATE REQUEST").encode(), key)


@family("names of CSRs")
def _names_of_csrs() -> Iterator[Case]:
    for what, subject in NAMES.items():
        yield csr_case(what, subject=subject)
    yield csr_case("no name", subject=name())


@family("alternative names of CSRs")
def _alternatives_of_csrs() -> Iterator[Case]:
    for what, names in ALTERNATIVES.items():
        yield csr_case(what, san(*names))


@family("CSRs")
def _csrs() -> Iterator[Case]:
    usual_wish = wanted(san(dns(HOST)))
    password = seq(oid("1.2.840.113549.1.9.7"), set_of(string(PRINTABLE, "secret")))
    attributes: dict[str, bytes] = {
        "no field of attributes": b"",
        "no attribute": explicit(0),
        "a challenge password": explicit(0, password),
        "a challenge password beside the extensions": explicit(0, usual_wish, password),
        "a challenge password in UTF-8": explicit(
            0, usual_wish, seq(oid("1.2.840.113549.1.9.7"), set_of(string(UTF8, "gehéim")))
        ),
        "an unstructured name": explicit(0, usual_wish, seq(oid("1.2.840.113549.1.9.2"), set_of(string(UTF8, "x")))),
        "a friendly name": explicit(0, usual_wish, _friendly_name()),
        "two requests for extensions": explicit(0, usual_wish, wanted(eku(SERVER_AUTH))),
        "two requests with a SAN each": explicit(0, usual_wish, wanted(san(dns("db.example.com")))),
        "the same request twice": explicit(0, usual_wish, usual_wish),
        "two values in a request": explicit(
            0, seq(oid(EXTENSION_REQUEST), set_of(seq(san(dns(HOST))), seq(eku(SERVER_AUTH))))
        ),
        "a request without a value": explicit(0, seq(oid(EXTENSION_REQUEST), tlv(0x31))),
        "a request without extensions": explicit(0, wanted()),
        "Microsoft's request": explicit(0, wanted(san(dns(HOST)), kind=MICROSOFT_REQUEST)),
        "Microsoft's attributes": explicit(
            0,
            seq(oid("1.3.6.1.4.1.311.13.2.3"), set_of(string(IA5, "10.0.20348.2"))),
            seq(
                oid("1.3.6.1.4.1.311.21.20"),
                set_of(seq(integer(5), string(UTF8, "host"), string(UTF8, "user"), string(UTF8, "certreq"))),
            ),
            usual_wish,
            seq(oid("1.3.6.1.4.1.311.13.2.2"), set_of(seq(integer(1), string(BMP, "Provider"), bits(b"")))),
        ),
        "an unknown attribute": explicit(0, usual_wish, seq(oid(UNKNOWN), set_of(NULL))),
        "an attribute without a value": explicit(0, usual_wish, seq(oid(UNKNOWN), tlv(0x31))),
        "attributes that are not sorted": explicit(0, *sorted((usual_wish, password, _friendly_name()), reverse=True)),
        "an attribute whose values are not sorted": explicit(
            0, usual_wish, seq(oid(UNKNOWN), tlv(0x31, integer(9), integer(1)))
        ),
        "attributes that are no DER": explicit(0, b"\xff\xff"),
    }
    for what, field in attributes.items():
        yield csr_case(what, attributes=field)
    host = san(dns(HOST))
    asked: dict[str, tuple[bytes, ...]] = {
        "keyUsage and extendedKeyUsage": (host, extension(KU, bits(b"\x80", 7), TRUE), eku(SERVER_AUTH, CLIENT_AUTH)),
        "extendedKeyUsage of clients": (host, eku(CLIENT_AUTH)),
        "extendedKeyUsage unknown": (host, eku(UNKNOWN)),
        "extendedKeyUsage of nothing": (host, extension(EKU, seq())),
        "keyUsage of a CA": (host, SIGN_CERTIFICATES),
        "keyUsage of encryption": (host, extension(KU, bits(b"\x20", 5))),
        "keyUsage with zeros at its end": (host, extension(KU, bits(b"\x80\x00", 0))),
        "basicConstraints of a CA": (host, basic(TRUE)),
        "basicConstraints with FALSE written out": (host, basic(FALSE)),
        "a subjectKeyIdentifier": (host, extension(SKI, octets(b"\x01" * 20))),
        "SAN critical": (san(dns(HOST), flag=TRUE),),
        "SAN twice": (host, san(dns("db.example.com"))),
        "SAN that is no DER": (extension(SAN, b"\x30\x05abc"),),
        **{what: (host, added) for what, added in ADDITIONS.items()},
    }
    for what, extensions in asked.items():
        yield csr_case(what, *extensions)
    yield csr_case("no name and no SAN", eku(SERVER_AUTH), subject=name())
    yield csr_case("version 2", version=integer(1))
    yield csr_case("version 3", version=integer(2))
    yield csr_case("version -1", version=integer(-1))
    yield csr_case("a wrong signature", spoiled=True)
    yield csr_case("another key's signature", key_info=spki(curve_key("SECP256R1")))
    yield csr_case("bytes within, behind the signature", tail=NULL)
    yield Case("", "bytes behind", Kind.CSR, pem(request() + b"\x00", "CERTIFICATE REQUEST").encode(), KEY)
    yield Case("", "cut off", Kind.CSR, pem(request()[:-9], "CERTIFICATE REQUEST").encode(), KEY)
    hows = {
        **{f"RSA with {digest}": pkcs1(digest) for digest in RSA_DIGESTS},
        "RSA without the NULL": pkcs1("sha256", b""),
        "PSS with SHA-256": pss("sha256", 32),
        "PSS with SHA-1": pss("sha1", 20),
        "PSS with a salt of 222": pss("sha256", 222),
    }
    for what, how in hows.items():
        yield csr_case(what, key=rsa_key(), how=how)
    for digest in (hashes.SHA1(), hashes.SHA224(), hashes.SHA384(), hashes.SHA512()):
        yield csr_case(f"ECDSA with {digest.name}", how=ecdsa(digest))
    yield csr_case("ECDSA with a NULL", how=ecdsa(hashes.SHA256(), NULL))
    for what, key in _signers().items():
        yield csr_case(f"a key on {what}", key=key)
    yield csr_case("a key of DSA", key=_dsa())
    for size in (2047, 2049, 4096):
        yield csr_case(f"a key of RSA-{size}", key=rsa_key(size))
    n = rsa_key().public_key().public_numbers().n
    pss_info = _rsa_info(n, 65537, "1.2.840.113549.1.1.10", b"")
    yield csr_case("an RSA-PSS key", key=rsa_key(), key_info=pss_info, how=pss("sha256", 32))
    yield csr_case("an RSA key without the NULL", key=rsa_key(), key_info=_rsa_info(n, 65537, parameters=b""))
    yield csr_case("a compressed point", key_info=_point(_compressed(KEY)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key.pem").write_bytes(_explicit_curve(private=True))
        (Path(folder) / "plain.pem").write_text(pem(pkcs8(KEY), "PRIVATE KEY"))
        words = ("req", "-new", "-subj", "/CN=www.example.com", "-addext", "subjectAltName=DNS:www.example.com", "-key")
        written_out = serialization.load_pem_private_key((Path(folder) / "key.pem").read_bytes(), None)
        assert isinstance(written_out, ec.EllipticCurvePrivateKey)
        yield Case("", "explicit curve parameters", Kind.CSR, openssl(*words, f"{folder}/key.pem"), written_out)
        yield Case("", "made by OpenSSL", Kind.CSR, openssl(*words, f"{folder}/plain.pem"), KEY)
        with_text = openssl(*words, f"{folder}/plain.pem", "-text")
        yield Case("", "made by OpenSSL, with its text", Kind.CSR, with_text, KEY)


def cases() -> list[Case]:
    return [case for make in FAMILIES.values() for case in make()]
