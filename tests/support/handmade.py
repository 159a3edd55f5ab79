"""Certificates, CSRs and keys byte by byte, so that each part of them can be odd."""

import base64
import hashlib
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa

HOST = "www.example.com"
Signer: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)


# DER (X.690), as far as it is needed here.


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x80 + len(octets)]) + octets) + body


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    return tlv(0x31, *sorted(parts))


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        body += bytes(reversed(groups))
    return tlv(6, body)


def bits(content: bytes, unused: int = 0) -> bytes:
    return tlv(3, bytes([unused]), content)


def octets(content: bytes) -> bytes:
    return tlv(4, content)


def explicit(number: int, *parts: bytes) -> bytes:
    return tlv(0xA0 + number, *parts)


NULL, TRUE, FALSE = b"\x05\x00", b"\x01\x01\xff", b"\x01\x01\x00"
UTF8, NUMERIC, PRINTABLE, TELETEX, IA5, VISIBLE, GENERAL, UNIVERSAL, BMP = 12, 18, 19, 20, 22, 26, 27, 28, 30
ENCODINGS = {UTF8: "utf-8", TELETEX: "latin-1", UNIVERSAL: "utf-32-be", BMP: "utf-16-be"}


def string(tag: int, value: str) -> bytes:
    return tlv(tag, value.encode(ENCODINGS.get(tag, "ascii")))


C, ST, L, O, OU, CN = "2.5.4.6", "2.5.4.8", "2.5.4.7", "2.5.4.10", "2.5.4.11", "2.5.4.3"  # noqa: E741
SERIAL, EMAIL, DC, UID = "2.5.4.5", "1.2.840.113549.1.9.1", "0.9.2342.19200300.100.1.25", "0.9.2342.19200300.100.1.1"


def attribute(kind: str, value: str | bytes, tag: int = UTF8) -> bytes:
    """`value` as text in the string type `tag`, or ready DER."""
    return seq(oid(kind), string(tag, value) if isinstance(value, str) else value)


def rdn(kind: str, value: str | bytes, tag: int = UTF8) -> bytes:
    return set_of(attribute(kind, value, tag))


def name(*rdns: bytes) -> bytes:
    return seq(*rdns)


def common(value: str, tag: int = UTF8) -> bytes:
    return name(rdn(CN, value, tag))


def pem(der: bytes, label: str = "CERTIFICATE") -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


def rewrapped(text: str, width: int) -> str:
    """PEM with lines of another length."""
    flat = "".join(text.split("-----\n", 1)[1].rsplit("-----END", 1)[0].split())
    head, tail = text.split("\n", 1)[0], text.strip().rsplit("\n", 1)[1]
    return "\n".join((head, *(flat[i : i + width] for i in range(0, len(flat), width)), tail, ""))


# Keys and signatures.


def openssl(*words: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *words], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@cache
def rsa_key(size: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, size)


@cache
def curve_key(curve: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(getattr(ec, curve)())


def spki(key: Signer) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pkcs8(key: Signer) -> bytes:
    return _private(key, serialization.PrivateFormat.PKCS8)


def traditional(key: Signer) -> bytes:
    """PKCS#1 or SEC1."""
    return _private(key, serialization.PrivateFormat.TraditionalOpenSSL)


def _private(key: Signer, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())


class How(msgspec.Struct, frozen=True):
    """How to sign: the AlgorithmIdentifier, and what makes the signature."""

    identifier: bytes
    sign: Callable[[Any, bytes], bytes]


def ecdsa(digest: hashes.HashAlgorithm, parameters: bytes = b"") -> How:
    number = {"sha1": "1", "sha224": "3.1", "sha256": "3.2", "sha384": "3.3", "sha512": "3.4"}[digest.name]
    return How(seq(oid(f"1.2.840.10045.4.{number}"), parameters), lambda key, text: key.sign(text, ec.ECDSA(digest)))


RSA_DIGESTS = {
    "md2": ("1.2.840.113549.1.1.2", "1.2.840.113549.2.2"),
    "md4": ("1.2.840.113549.1.1.3", "1.2.840.113549.2.4"),
    "md5": ("1.2.840.113549.1.1.4", "1.2.840.113549.2.5"),
    "sha1": ("1.2.840.113549.1.1.5", "1.3.14.3.2.26"),
    "ripemd160": ("1.3.36.3.3.1.2", "1.3.36.3.2.1"),
    "sha224": ("1.2.840.113549.1.1.14", "2.16.840.1.101.3.4.2.4"),
    "sha256": ("1.2.840.113549.1.1.11", "2.16.840.1.101.3.4.2.1"),
    "sha384": ("1.2.840.113549.1.1.12", "2.16.840.1.101.3.4.2.2"),
    "sha512": ("1.2.840.113549.1.1.13", "2.16.840.1.101.3.4.2.3"),
    "sha3-256": ("2.16.840.1.101.3.4.3.14", "2.16.840.1.101.3.4.2.8"),
}


def pkcs1(digest: str, parameters: bytes = NULL) -> How:
    """RSASSA-PKCS1-v1_5 by hand, since the library no longer signs with the old digests (RFC 8017 section 9.2)."""
    algorithm, hashed = RSA_DIGESTS[digest]

    def sign(key: rsa.RSAPrivateKey, text: bytes) -> bytes:
        # Nobody here computes MD2 and MD4; MD5 has their length.
        value = hashlib.new({"md2": "md5", "md4": "md5", "sha3-256": "sha3_256"}.get(digest, digest), text).digest()
        info = seq(seq(oid(hashed), NULL), octets(value))
        size = (key.key_size + 7) // 8
        block = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
        numbers = key.private_numbers()
        return pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")

    return How(seq(oid(algorithm), parameters), sign)


def pss_parameters(digest: str, salt: int, mgf: str | None = None) -> bytes:
    """RFC 4055 section 3.1."""
    hashed, masked = (seq(oid(RSA_DIGESTS[each][1]), NULL) for each in (digest, mgf or digest))
    generator = seq(oid("1.2.840.113549.1.1.8"), masked)
    return seq(explicit(0, hashed), explicit(1, generator), explicit(2, integer(salt)))


_HASHES = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}


def pss(digest: str, salt: int, mgf: str | None = None, parameters: bytes | None = None) -> How:
    scheme = padding.PSS(padding.MGF1(_HASHES[mgf or digest]), salt)
    stated = pss_parameters(digest, salt, mgf) if parameters is None else parameters
    return How(seq(oid("1.2.840.113549.1.1.10"), stated), lambda key, text: key.sign(text, scheme, _HASHES[digest]))


OTHERS: dict[type, How] = {
    ed25519.Ed25519PrivateKey: How(seq(oid("1.3.101.112")), lambda key, text: key.sign(text)),
    ed448.Ed448PrivateKey: How(seq(oid("1.3.101.113")), lambda key, text: key.sign(text)),
    dsa.DSAPrivateKey: How(seq(oid("2.16.840.1.101.3.4.3.2")), lambda key, text: key.sign(text, hashes.SHA256())),
}


def usual(key: Signer) -> How:
    if isinstance(key, rsa.RSAPrivateKey):
        return pkcs1("sha256")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ecdsa(hashes.SHA256())
    return next(how for kind, how in OTHERS.items() if isinstance(key, kind))


def signed(body: bytes, key: Signer, how: How, *, tail: bytes = b"", spoiled: bool = False) -> bytes:
    """`tail` stands behind the signature within the outer SEQUENCE."""
    signature = how.sign(key, body)
    if spoiled:
        signature = signature[:-1] + bytes([signature[-1] ^ 1])
    return seq(body, how.identifier, bits(signature), tail)


# Certificates.

NOW = datetime.now(UTC).replace(microsecond=0)


def utc(moment: datetime) -> bytes:
    return tlv(23, f"{moment:%y%m%d%H%M%SZ}".encode())


def generalized(moment: datetime) -> bytes:
    return tlv(24, f"{moment:%Y%m%d%H%M%SZ}".encode())


def extension(kind: str, value: bytes, flag: bytes = b"") -> bytes:
    """`value` is the DER within; `flag` TRUE makes it critical."""
    return seq(oid(kind), flag, octets(value))


BC, KU, EKU, SAN, SKI, AKI = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.14", "2.5.29.35"
SERVER_AUTH, CLIENT_AUTH, ANY_USAGE = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2", "2.5.29.37.0"


def dns(value: str | bytes) -> bytes:
    return tlv(0x82, value.encode() if isinstance(value, str) else value)


def san(*names: bytes, flag: bytes = b"") -> bytes:
    return extension(SAN, seq(*names), flag)


def eku(*purposes: str, flag: bytes = b"") -> bytes:
    return extension(EKU, seq(*(oid(purpose) for purpose in purposes)), flag)


def key_id(key_info: bytes) -> bytes:
    return hashlib.sha1(key_info).digest()


def aki(value: bytes) -> bytes:
    return extension(AKI, seq(tlv(0x80, value)))


def basic(*parts: bytes, flag: bytes = TRUE) -> bytes:
    return extension(BC, seq(*parts), flag)


SIGN_CERTIFICATES = extension(KU, bits(b"\x06", 1), TRUE)
V3 = explicit(0, integer(2))


def certificate(
    signer: Signer,
    issuer: bytes,
    subject: bytes,
    key_info: bytes,
    extensions: tuple[bytes, ...],
    *,
    version: bytes = V3,
    serial: bytes | None = None,
    begin: bytes | None = None,
    end: bytes | None = None,
    how: How | None = None,
    inner: bytes | None = None,
    unique: bytes = b"",
    tail: bytes = b"",
    spoiled: bool = False,
) -> bytes:
    """Any certificate; `inner` is the AlgorithmIdentifier within what is signed, `unique` what follows the key."""
    how = how or usual(signer)
    # Each its own number, and the same in each run.
    number = int.from_bytes(
        hashlib.sha256(repr((subject, key_info, extensions, begin, end)).encode()).digest()[:8], "big"
    )
    body = seq(
        version,
        serial or integer(number + 1),
        how.identifier if inner is None else inner,
        issuer,
        seq(begin or utc(NOW - timedelta(days=30)), end or utc(NOW + timedelta(days=60))),
        subject,
        key_info,
        unique,
        explicit(3, seq(*extensions)) if extensions else b"",
    )
    return signed(body, signer, how, tail=tail, spoiled=spoiled)


class Ca(msgspec.Struct, frozen=True):
    key: Signer
    name: bytes
    der: bytes

    @property
    def key_id(self) -> bytes:
        return key_id(spki(self.key))


Parts: TypeAlias = dict[str, bytes]


def ca_parts(key: Signer, issuer: Ca | None) -> Parts:
    parts: Parts = {"bc": basic(TRUE), "ku": SIGN_CERTIFICATES, "ski": extension(SKI, octets(key_id(spki(key))))}
    return {**parts, "aki": aki(issuer.key_id)} if issuer else parts


def authority(
    subject: bytes, issuer: Ca | None = None, key: Signer | None = None, change: Parts | None = None, **fields: Any
) -> Ca:
    """A CA below `issuer`, or a root; `change` replaces extensions by their name in `ca_parts`, or adds some."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    fields = {"begin": utc(NOW - timedelta(days=400)), "end": utc(NOW + timedelta(days=4000)), **fields}
    parts = tuple({**ca_parts(key, issuer), **(change or {})}.values())
    signer, issuer_name = (issuer.key, issuer.name) if issuer else (key, subject)
    return Ca(key, subject, certificate(signer, issuer_name, subject, spki(key), tuple(filter(None, parts)), **fields))


def leaf_parts(issuer: Ca, key_info: bytes) -> Parts:
    return {
        "bc": basic(),
        "ku": extension(KU, bits(b"\x80", 7), TRUE),
        "eku": eku(SERVER_AUTH),
        "san": san(dns(HOST)),
        "ski": extension(SKI, octets(key_id(key_info))),
        "aki": aki(issuer.key_id),
    }


# CSRs (RFC 2986).

EXTENSION_REQUEST, MICROSOFT_REQUEST = "1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"


def wanted(*extensions: bytes, kind: str = EXTENSION_REQUEST) -> bytes:
    """An attribute that asks for extensions."""
    return seq(oid(kind), set_of(seq(*extensions)))
