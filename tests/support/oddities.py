"""Certificates and requests in DER by hand, each with an oddity that no tool makes, and what OpenSSL says of them."""

import base64
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from support.fuzzing import length

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
KEY, CA_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
UTF8, PRINTABLE, TELETEX, IA5, VISIBLE, BMP = 0x0C, 0x13, 0x14, 0x16, 0x1A, 0x1E
CN, C, O = "2.5.4.3", "2.5.4.6", "2.5.4.10"  # noqa: E741 - as X.520 writes them


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes([tag]) + length(len(content)) + content


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def oid(dotted: str) -> bytes:
    numbers = [int(number) for number in dotted.split(".")]
    content = bytes([numbers[0] * 40 + numbers[1]])
    for number in numbers[2:]:
        octets = [number & 0x7F]
        while number := number >> 7:
            octets.append(0x80 | number & 0x7F)
        content += bytes(reversed(octets))
    return tlv(6, content)


def attribute(kind: str, tag: int, value: bytes) -> bytes:
    return sequence(oid(kind), tlv(tag, value))


def name(*attributes: tuple[str, int, bytes]) -> bytes:
    return sequence(*(tlv(0x31, attribute(*each)) for each in attributes))


def extension(kind: str, value: bytes, *, critical: bool | None = None) -> bytes:
    flag = b"" if critical is None else tlv(1, b"\xff" if critical else b"\x00")
    return sequence(oid(kind), flag, tlv(4, value))


def basic(*parts: bytes, critical: bool = True) -> bytes:
    return extension("2.5.29.19", sequence(*parts), critical=critical)


def san(*names: bytes) -> bytes:
    return extension("2.5.29.17", sequence(*names))


HOST = tlv(0x82, b"www.example.com")
SERVER = extension("2.5.29.37", sequence(oid("1.3.6.1.5.5.7.3.1")))
TRUE, FALSE, NULL = tlv(1, b"\xff"), tlv(1, b"\x00"), tlv(5)
ECDSA = sequence(oid("1.2.840.10045.4.3.2"))
RSA = sequence(oid("1.2.840.113549.1.1.11"), NULL)
SITE, ROOT = name((CN, UTF8, b"www.example.com")), name((CN, UTF8, b"Odd Root"))
USUAL = (basic(), san(HOST), SERVER)


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def signed(what: bytes, by: Key, algorithm: bytes) -> bytes:
    signature = (
        by.sign(what, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(by, rsa.RSAPrivateKey)
        else by.sign(what, ec.ECDSA(hashes.SHA256()))
    )
    return sequence(what, algorithm, tlv(3, b"\x00", signature))


def certificate(**odd: Any) -> bytes:
    """A server's certificate by ROOT; each keyword replaces one part."""
    extensions = odd.get("extensions", USUAL)
    algorithm = odd.get("algorithm", ECDSA)
    tbs = sequence(
        odd.get("version", tlv(0xA0, tlv(2, b"\x02"))),
        tlv(2, odd.get("serial", b"\x11\x22")),
        algorithm,
        odd.get("issuer", ROOT),
        sequence(tlv(0x17, odd.get("begins", b"260101000000Z")), tlv(0x17, b"360101000000Z")),
        odd.get("subject", SITE),
        odd.get("key", spki(KEY)),
        tlv(0xA3, sequence(*extensions)) if extensions else b"",
    )
    return signed(tbs, odd.get("by", CA_KEY), odd.get("outer", algorithm))


def root(**odd: Any) -> bytes:
    return certificate(**{"subject": ROOT, "key": spki(CA_KEY), "extensions": (basic(TRUE),), "serial": b"\x01", **odd})


def request(**odd: Any) -> bytes:
    """A request for KEY; each keyword replaces one part."""
    key = odd.get("by", KEY)
    wanted = odd.get("extensions", (san(HOST),))
    attributes = sequence(oid("1.2.840.113549.1.9.14"), tlv(0x31, sequence(*wanted)))
    info = sequence(
        tlv(2, odd.get("version", b"\x00")),
        odd.get("subject", SITE),
        odd.get("key", spki(key)),
        odd.get("attributes", tlv(0xA0, attributes)),
    )
    algorithm = odd.get("algorithm", RSA if isinstance(key, rsa.RSAPrivateKey) else ECDSA)
    return signed(info, key, algorithm)


def block(der: bytes, label: str = "CERTIFICATE") -> str:
    text = base64.b64encode(der).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----\n"))


def openssl_verifies(folder: Path, leaf: bytes, anchor: bytes) -> bool:
    (folder / "leaf.pem").write_text(block(leaf))
    (folder / "root.pem").write_text(block(anchor))
    command = ["openssl", "verify", "-CAfile", str(folder / "root.pem"), str(folder / "leaf.pem")]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def openssl_reads(der: bytes) -> bool:
    """Whether `openssl req` reads a request and finds its signature good."""
    command = ["openssl", "req", "-inform", "DER", "-verify", "-noout"]
    done = subprocess.run(command, input=der, capture_output=True, timeout=30, check=False)
    return done.returncode == 0 and b"verify OK" in done.stdout + done.stderr
