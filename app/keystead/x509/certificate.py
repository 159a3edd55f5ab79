"""DER encoder for the certificates that our CAs sign (RFC 5280 section 4, X.690). Pure.

Twice as fast as `cryptography` (docs/decisions/0023-a-csr-byte-by-byte.md); test_certificate_bytes.py checks that both
produce the same bytes.
"""

import hashlib
import ipaddress
from functools import lru_cache

from cryptography import x509

from keystead.x509 import der, keys, pkix, signing
from keystead.x509.der import tlv
from keystead.x509.keys import PrivateKey
from keystead.x509.signing import extension

_VERSION_3 = tlv(0xA0, der.integer(2))
_TAGGED_EXTENSIONS = 0xA3
# Tags within GeneralName and DistributionPoint.
_EMAIL, _DNS_NAME, _URI, _IP_ADDRESS, _POINT, _FULL_NAME = 0x81, 0x82, 0x86, 0x87, 0xA0, 0xA0
# Extensions of 2.5.29 (section 4.2.1), and authorityInfoAccess, 1.3.6.1.5.5.7.1.1 (section 4.2.2.1).
_SKI, _KEY_USAGE, _SAN, _BASIC_CONSTRAINTS, _CRL_POINTS, _AKI, _EXTENDED = (
    tlv(der.OID, bytes((0x55, 0x1D, n))) for n in (14, 15, 17, 19, 31, 35, 37)
)
_AUTHORITY_INFO = bytes.fromhex("06082b06010505070101")
# id-ad-caIssuers, 1.3.6.1.5.5.7.48.2.
_CA_ISSUERS = bytes.fromhex("06082b06010505073002")
# id-kp, 1.3.6.1.5.5.7.3, whose last number is the purpose (section 4.2.1.12).
_PURPOSES = {
    word: tlv(der.OID, bytes.fromhex("2b060105050703") + bytes((int(oid.dotted_string.rpartition(".")[2]),)))
    for word, oid in pkix.EXTENDED_KEY_USAGES.items()
}


def signed(template: pkix.ToSign, private_key: PrivateKey) -> bytes:
    """A certificate (contract-infisical, "X.509 rules for everything a CA signs")."""
    spki = keys.spki(template.public_key)
    # Exactly as encoded in the issuer's certificate, because verifiers compare bytes.
    issuer = (template.issuer.subject if template.issuer else template.subject).public_bytes()
    subject = template.subject.public_bytes()
    parts = (
        *(_VERSION_3, der.integer(template.serial), signing.algorithm(private_key), issuer),
        tlv(der.SEQUENCE, signing.time(template.not_before) + signing.time(template.not_after)),
        *(subject, spki, tlv(_TAGGED_EXTENSIONS, tlv(der.SEQUENCE, _extensions(template, spki)))),
    )
    return signing.signed(b"".join(parts), private_key)


def _extensions(template: pkix.ToSign, spki: bytes) -> bytes:
    parts = [_usages(template.ca, template.path_length, template.key_usages, template.extended_key_usages)]
    if template.sans:
        names = tlv(der.SEQUENCE, b"".join(map(_general_name, template.sans)))
        parts.append(extension(_SAN, names, critical=not list(template.subject)))
    parts.append(extension(_SKI, tlv(der.OCTET_STRING, _key_id(spki))))
    if template.issuer:
        parts.append(extension(_AKI, pkix.authority_key_identifier(template.issuer).public_bytes()))
    if template.crl_url:
        point = tlv(_POINT, tlv(_FULL_NAME, tlv(_URI, template.crl_url.encode("ascii"))))
        parts.append(extension(_CRL_POINTS, tlv(der.SEQUENCE, tlv(der.SEQUENCE, point))))
    if template.issuer_url:
        access = tlv(der.SEQUENCE, _CA_ISSUERS + tlv(_URI, template.issuer_url.encode("ascii")))
        parts.append(extension(_AUTHORITY_INFO, tlv(der.SEQUENCE, access)))
    return b"".join(parts)


@lru_cache(maxsize=64)
def _usages(ca: bool, path_length: int | None, usages: tuple[str, ...], extended: tuple[str, ...]) -> bytes:
    """What most certificates have alike: basicConstraints, keyUsage and extKeyUsage."""
    constraints = (tlv(der.BOOLEAN, b"\xff") if ca else b"") + (
        b"" if path_length is None else der.integer(path_length)
    )
    found = extension(_BASIC_CONSTRAINTS, tlv(der.SEQUENCE, constraints), critical=True)
    found += extension(_KEY_USAGE, _named_bits([word in usages for word in pkix.KEY_USAGES]), critical=True)
    if extended:
        purposes = tlv(der.SEQUENCE, b"".join(_PURPOSES[word] for word in extended))
        # timeStamping must be critical and the only usage (RFC 3161 section 2.3).
        found += extension(_EXTENDED, purposes, critical=extended == ("timeStamping",))
    return found


def _named_bits(bits: list[bool]) -> bytes:
    """A BIT STRING without the zeros at its end (X.690 section 11.2.2)."""
    while bits and not bits[-1]:
        bits.pop()
    unused = -len(bits) % 8
    number = int("".join("01"[bit] for bit in bits) or "0", 2) << unused
    return tlv(der.BIT_STRING, bytes((unused,)) + number.to_bytes((len(bits) + unused) // 8, "big"))


def _key_id(spki: bytes) -> bytes:
    """SHA-1 of the key's bits, without their count of unused ones (section 4.2.1.2)."""
    bits = der.values(der.first(spki).content)[1].content[1:]
    return hashlib.sha1(bits, usedforsecurity=False).digest()


def _general_name(name: x509.GeneralName) -> bytes:
    match name:
        case x509.DNSName(value=text):
            return tlv(_DNS_NAME, text.encode("ascii"))
        case x509.IPAddress(value=ipaddress.IPv4Address() | ipaddress.IPv6Address() as address):
            return tlv(_IP_ADDRESS, address.packed)
        case x509.RFC822Name(value=text):
            return tlv(_EMAIL, text.encode("ascii"))
        case x509.UniformResourceIdentifier(value=text):
            return tlv(_URI, text.encode("ascii"))
    raise TypeError("a name of another kind")
