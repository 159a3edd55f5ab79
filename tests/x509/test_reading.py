"""What strangers send: odd certificates, requests and keys are read, or refused with the reason, each by its bytes."""

import base64
import gzip
import time
from datetime import UTC, datetime
from math import gcd, isqrt, prod
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from support import oddities
from support.authority import key_pem, openssl
from support.oddities import (
    CA_KEY,
    CN,
    ECDSA,
    FALSE,
    HOST,
    IA5,
    KEY,
    NULL,
    PRINTABLE,
    ROOT,
    SERVER,
    TELETEX,
    USUAL,
    UTF8,
    VISIBLE,
    C,
    O,
    attribute,
    basic,
    block,
    certificate,
    extension,
    name,
    oid,
    request,
    root,
    san,
    sequence,
    spki,
    tlv,
)

from keystead.certificates import trust
from keystead.commands import doctor
from keystead.errors import Hint, Invalid, Rule
from keystead.web import bodies
from keystead.x509 import chains, der, keys, paths, pem, pkix, weak_keys

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RSA_KEY = rsa.generate_private_key(65537, 2048)


# Certificates.

ODD_NAME = name((O, PRINTABLE, b"A&B"))
TAKEN: dict[str, dict[str, Any]] = {
    "PrintableString with &": {"subject": name((O, PRINTABLE, b"A&B"), (CN, UTF8, b"a"))},
    "PrintableString with _": {"subject": name((CN, PRINTABLE, b"a_b"))},
    "PrintableString with @": {"subject": name((CN, PRINTABLE, b"a@b"))},
    "PrintableString with *": {"subject": name((CN, PRINTABLE, b"*.example.com"))},
    "TeletexString in Latin-1": {"subject": name((O, TELETEX, b"B\xe4r"), (CN, UTF8, b"a"))},
    "TeletexString in ASCII": {"subject": name((O, TELETEX, b"Bar"))},
    "64 characters of two bytes": {"subject": name((CN, UTF8, "ж".encode() * 64))},
    "64 characters of three bytes": {"subject": name((CN, UTF8, "名".encode() * 64))},
    "an unknown extension": {"extensions": (*USUAL, extension("1.2.3.4", b"hello"))},
    "policies that cannot be read": {"extensions": (*USUAL, extension("2.5.29.32", b"\x01\x02"))},
    "no basicConstraints": {"extensions": (san(HOST), SERVER)},
    "basicConstraints with FALSE written out": {"extensions": (basic(FALSE), san(HOST), SERVER)},
    "basicConstraints with a path length and no CA": {"extensions": (basic(tlv(2, b"\x00")), san(HOST), SERVER)},
    "critical FALSE written out": {"extensions": (basic(critical=False), san(HOST), SERVER)},
    "an issuer's name with & in the authorityKeyIdentifier": {
        "issuer": ODD_NAME,
        "extensions": (
            *USUAL,
            extension("2.5.29.35", sequence(tlv(0xA1, tlv(0xA4, ODD_NAME)), tlv(0x82, b"\x01"))),
        ),
    },
    "a directoryName with & in the SAN": {
        "extensions": (basic(), san(HOST, tlv(0xA4, name((O, PRINTABLE, b"A&B")))), SERVER)
    },
    "ECDSA with NULL": {"algorithm": sequence(oid("1.2.840.10045.4.3.2"), NULL)},
    "version 1": {"version": b"", "extensions": ()},
    "version 1 written out": {"version": tlv(0xA0, tlv(2, b"\x00")), "extensions": ()},
    "a serial number of 21 octets": {"serial": b"\x01" * 21},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "PrintableString beyond ASCII": ({"subject": name((O, PRINTABLE, b"B\xe4r"))}, 'PrintableString holds "\\u00e4"'),
    "IA5String beyond ASCII": ({"subject": name((O, IA5, b"B\xe4r"))}, 'IA5String holds "\\u00e4"'),
    "UTF8String in Latin-1": ({"subject": name((O, UTF8, b"B\xe4r"))}, "UTF8String is not UTF-8, in O of its subject"),
    "VisibleString, which OpenSSL does not load": ({"subject": name((O, VISIBLE, b"Bar"))}, "no type of strings"),
    "an OCTET STRING as common name": ({"subject": name((CN, 4, b"Bar"))}, "no type of strings"),
    "C of three letters": (
        {"subject": name((C, PRINTABLE, b"DEU"), (CN, UTF8, b"a"))},
        'C is "DEU" and not two letters',
    ),
    "65 characters": ({"subject": name((CN, UTF8, b"a" * 65))}, "CN has 65 characters"),
    "no characters": ({"subject": name((CN, UTF8, b""))}, "CN has 0 characters"),
    "an unsorted SET": (
        {"subject": sequence(tlv(0x31, attribute(O, UTF8, b"a"), attribute(CN, UTF8, b"a")))},
        "the SET of a part of its subject is not sorted",
    ),
    "an empty RDN": ({"subject": sequence(tlv(0x31))}, "its subject has an empty part"),
    "serial number 0": ({"serial": b"\x00"}, "its serial number is 0"),
    "a negative serial number": ({"serial": b"\x80"}, "its serial number is negative"),
    "version 2": ({"version": tlv(0xA0, tlv(2, b"\x01"))}, "its version is 2"),
    "version 1 with extensions": ({"version": b""}, "has extensions and is of version 1"),
    "an extension twice": ({"extensions": (*USUAL, san(HOST))}, "it has the extension 2.5.29.17 twice"),
    "a BOOLEAN of 01": ({"extensions": (basic(tlv(1, b"\x01")),)}, "a BOOLEAN is neither 00 nor FF"),
    "keyUsage with unused bits": (
        {"extensions": (*USUAL, extension("2.5.29.15", tlv(3, b"\x06\xc1")))},
        "keyUsage has unused bits",
    ),
    "extendedKeyUsage without any": (
        {"extensions": (extension("2.5.29.37", sequence()),)},
        "extendedKeyUsage is empty",
    ),
    "a SAN in Latin-1": ({"extensions": (san(tlv(0x82, b"b\xe4r")),)}, 'subjectAltName holds "b\\u00e4r"'),
    "an address of five bytes": ({"extensions": (san(tlv(0x87, b"12345")),)}, "an address of 5 bytes"),
    "two signature algorithms": (
        {"outer": sequence(oid("1.2.840.10045.4.3.3"))},
        "signature algorithms are not the same",
    ),
    "a time without seconds": ({"begins": b"2601010000Z"}, "its not_before cannot be read"),
}


@pytest.mark.parametrize("odd", TAKEN.values(), ids=TAKEN)
def test_an_oddity_that_harms_nobody_is_taken(odd: dict[str, Any], tmp_path: Path) -> None:
    """What OpenSSL verifies is read, chained and judged, and its bytes stay as they were sent."""
    by = odd.get("issuer", ROOT)
    der, anchor = certificate(**odd), root(subject=by, issuer=by)
    assert oddities.openssl_verifies(tmp_path, der, anchor)
    (leaf,) = chains.read(block(der))
    assert leaf.public_bytes(serialization.Encoding.DER) == der
    assert chains.pem([leaf]) == block(der)
    chains.judge_leaf(leaf, NOW)
    trusted = chains.anchors([block(anchor).encode()])
    assert paths.verify(chains.arrange((leaf,), chains.spki_digest(leaf)), trusted, NOW) == ()
    assert chains.facts(leaf).sha256 == chains.facts(*chains.read(chains.pem([leaf]))).sha256


@pytest.mark.parametrize(("odd", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_with_its_place_and_reason(odd: dict[str, Any], words: str) -> None:
    """The block, its subject and the reason are named; a good block before it does not matter."""
    with pytest.raises(Invalid) as raised:
        chains.read(block(root()) + block(certificate(**odd)))
    (problem,) = raised.value.problems
    assert problem.rule is Rule.CERTIFICATE
    assert problem.text.startswith("certificate ")
    assert "block 2 of 2" in problem.text
    assert words in problem.text


def test_bytes_behind_the_end_are_refused() -> None:
    """Of a certificate as of a request: they would be stored and served with it."""
    for made in (certificate(), certificate(subject=ODD_NAME)):
        with pytest.raises(Invalid, match="there are bytes behind its end"):
            chains.read(block(made + b"\x00"))
    with pytest.raises(pkix.BadCsr, match="there are bytes behind its end"):
        pkix.read_csr(pem.encoded("CERTIFICATE REQUEST", request() + b"\x00"))


def test_a_subject_of_a_request_is_bounded() -> None:
    """A CA would write it into a certificate, and the server into its lists."""
    long = request(subject=name(*((O, UTF8, b"a" * 64) for _ in range(60))))
    with pytest.raises(pkix.BadCsr, match="more than 4096 bytes"):
        pkix.read_csr(pem.encoded("CERTIFICATE REQUEST", long))


def test_an_oid_of_any_length_makes_no_long_text() -> None:
    """One of more than 64 bytes is not written out."""
    assert der.dotted(b"\x2a" + b"\x03" * 63) == "1.2" + ".3" * 63
    assert der.dotted(b"\x2a" + b"\x03" * 64) == ""


def test_a_refusal_names_the_subject() -> None:
    """Of three blocks the second is named by its number and common name."""
    bad = certificate(subject=name((O, PRINTABLE, b"B\xe4r"), (CN, UTF8, b"Middle")))
    with pytest.raises(
        Invalid, match=r"block 2 of 3 \(CN=Middle\): PrintableString holds \"\\u00e4\", in O of its sub"
    ):
        chains.read(block(certificate()) + block(bad) + block(root()))


@pytest.mark.parametrize(
    "odd",
    [
        {"subject": name((O, PRINTABLE, b"A&B")), "issuer": name((O, PRINTABLE, b"A&B"))},
        {"subject": name((O, TELETEX, b"B\xe4r")), "issuer": name((O, TELETEX, b"B\xe4r"))},
        {"extensions": (), "version": b""},
        {"serial": b"\x00"},
        {"serial": b"\xff"},
        {"subject": name((C, PRINTABLE, b"DEU")), "issuer": name((C, PRINTABLE, b"DEU"))},
        {"subject": name((CN, UTF8, b"a" * 70)), "issuer": name((CN, UTF8, b"a" * 70))},
    ],
    ids=["&", "Latin-1", "version 1", "serial 0", "negative serial", "C of three letters", "70 characters"],
)
def test_a_trust_anchor_may_be_odd(odd: dict[str, Any], tmp_path: Path) -> None:
    """What OpenSSL takes as an anchor ends a chain here too, through an intermediate that is not odd and directly."""
    anchor = root(**odd)
    end = certificate(issuer=odd.get("subject", ROOT))
    assert oddities.openssl_verifies(tmp_path, end, anchor)
    trusted = chains.anchors([block(anchor).encode()])
    (leaf,) = chains.read(block(end))
    assert paths.verify(chains.arrange((leaf,), chains.spki_digest(leaf)), trusted, NOW) == ()


def test_an_odd_certificate_that_was_changed_is_not_verified() -> None:
    """The signature of an odd certificate is checked over the bytes that were sent."""
    der = certificate(subject=name((O, PRINTABLE, b"A&B")))
    (leaf,) = chains.read(block(der.replace(b"A&B", b"A&C")))
    trusted = chains.anchors([block(root()).encode()])
    with pytest.raises(Invalid):
        paths.verify(chains.arrange((leaf,), chains.spki_digest(leaf)), trusted, NOW)


def test_every_root_of_the_system_is_an_anchor() -> None:
    """Those with the serial number 0 too; none is skipped in silence."""
    found = trust.read(None)
    blocks = [b for b in pem.blocks(Path("/etc/ssl/certs/ca-certificates.crt").read_text()) if b.label == "CERTIFICATE"]
    assert found.count == len({b.body for b in blocks})
    assert not found.skipped


def test_a_skipped_anchor_is_told_by_the_doctor(tmp_path: Path) -> None:
    """A file of KEYSTEAD_TRUST_DIR that is none is named with its place and the reason; the others count."""
    (tmp_path / "good.pem").write_bytes(block(root()).encode("utf-16"))
    (tmp_path / "bad.pem").write_text(block(root()) + block(root(subject=name((O, UTF8, b"B\xe4r"), (CN, UTF8, b"x")))))
    (tmp_path / "der.crt").write_bytes(root())
    good, *bad = doctor._anchors(tmp_path)
    assert good.good
    assert not any(finding.good for finding in bad)
    der, (first, second) = (
        f"{tmp_path}/der.crt: it is DER",
        (f"{tmp_path}/bad.pem: ", "block 2 of 2 (CN=x): UTF8String"),
    )
    assert any(finding.text.startswith(der) for finding in bad)
    assert any(finding.text.startswith(first + second) for finding in bad)
    assert trust.read(tmp_path).count == trust.read(None).count + 2


@pytest.mark.parametrize(
    "algorithm",
    [
        *("1.2.840.113549.1.1.2", "1.2.840.113549.1.1.3", "1.3.36.3.3.1.2", "1.3.36.3.3.2.2", "1.2.840.10040.4.3"),
        *("1.3.14.3.2.3", "1.3.14.3.2.29"),
    ],
)
def test_old_digests_are_weak(algorithm: str) -> None:
    """MD2, MD4 and RIPEMD-160 are refused as MD5 and SHA-1 are, though the library does not know all of their names."""
    (leaf,) = chains.read(block(certificate(algorithm=sequence(oid(algorithm), NULL))))
    with pytest.raises(Invalid, match="which is broken") as raised:
        chains.judge_leaf(leaf, NOW)
    assert raised.value.problems[0].rule is Rule.WEAK_SIGNATURE


def test_a_precertificate_and_an_unknown_critical_extension_are_refused() -> None:
    """No client takes either, so they cannot be served, also where something else of the certificate is odd."""
    for kind, value, words in (
        ("1.3.6.1.4.1.11129.2.4.3", NULL, "precertificate"),
        ("1.2.3.4", b"hello", "critical extension 1.2.3.4"),
    ):
        extensions = (*USUAL, extension(kind, value, critical=True))
        odd = name((O, PRINTABLE, b"A&B"))
        for made in (certificate(extensions=extensions), certificate(extensions=extensions, subject=odd)):
            (leaf,) = chains.read(block(made))
            with pytest.raises(Invalid, match=words):
                chains.judge_leaf(leaf, NOW)


def test_a_trusted_certificate_is_taken_without_its_addition() -> None:
    """What `openssl x509 -trustout` writes is the certificate, and a message says what was left out."""
    text = openssl("x509", "-trustout", "-addtrust", "serverAuth", text=block(certificate()))
    assert "TRUSTED CERTIFICATE" in text
    (leaf,) = chains.read(text)
    assert leaf.public_bytes(serialization.Encoding.DER) == certificate_of(text)
    (advice,) = chains.remarks(text)
    assert advice.hint is Hint.OTHER
    assert not chains.remarks(block(certificate()))


def certificate_of(trusted: str) -> bytes:
    return base64.b64decode("".join(openssl("x509", text=trusted).splitlines()[1:-1]))


def test_what_stands_around_the_blocks_is_passed_over() -> None:
    """Parameters, attributes and text in any encoding do not disturb."""
    der = certificate()
    parameters = block(b"\x30\x00", "DH PARAMETERS") + block(b"\x06\x00", "EC PARAMETERS")
    text = f"Bag Attributes\n    friendlyName: Bär \ud800 名\n{parameters}{block(der)}\x00 tail"
    assert [c.public_bytes(serialization.Encoding.DER) for c in chains.read(text)] == [der]
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1251"):
        file = f"caf\u00e9\n{block(der)}".encode(encoding, "replace")
        assert chains.read(pem.text(file)), encoding


# What was sent instead.

DER = certificate()
P12 = pkcs12.serialize_key_and_certificates(
    b"x", KEY, x509.load_der_x509_certificate(DER), None, serialization.NoEncryption()
)
P7 = pkcs7.serialize_certificates([x509.load_der_x509_certificate(DER)], serialization.Encoding.DER)
GOOD = block(DER)
INSTEAD: dict[str, tuple[str, str]] = {
    "escaped line breaks": (GOOD.replace("\n", "\\n"), "\\n written as two characters"),
    "a quoted mail": ("".join(f"> {line}\n" for line in GOOD.splitlines()), "quoted as in a mail"),
    "quoted-printable": (GOOD.replace("\n", "=\n", 2).replace("=\n", "\n", 1), "quoted-printable"),
    "percent-encoded": (GOOD.replace("\n", "%0A").replace("+", "%2B"), "percent-encoded"),
    "HTML": (GOOD.replace("\n", "<br>\n"), "HTML"),
    "a zero-width space": (GOOD.replace("M", "M\u200b", 1), "U+200B"),
    "a soft hyphen": (GOOD.replace("M", "M\u00ad", 1), "U+00AD"),
    "no-break spaces in the boundary": (GOOD.replace("BEGIN ", "BEGIN\u00a0"), "U+00A0"),
    "long dashes": (GOOD.replace("-----", "\u2014\u2014"), "long dashes"),
    "four hyphens": (GOOD.replace("-----", "----"), "boundaries that are not PEM's"),
    "DER in base64": (base64.b64encode(DER).decode(), "is DER in base64; `openssl x509 -inform der`"),
    "DER": (DER.decode("latin-1"), "is DER"),
    "DER read as UTF-8": (DER.decode("utf-8", "replace"), "is DER"),
    "PKCS#7": (base64.b64encode(P7).decode(), "is PKCS#7; `openssl pkcs7 -print_certs`"),
    "PKCS#7 in PEM": (block(P7, "PKCS7"), "is PKCS#7"),
    "PKCS#12": (base64.b64encode(P12).decode(), "is PKCS#12"),
    "gzip": (base64.b64encode(gzip.compress(DER)).decode(), "is gzip"),
    "UTF-16": (GOOD.encode("utf-16").decode("latin-1"), "UTF-16"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le").decode("latin-1"), "UTF-16"),
    "a private key": (key_pem(KEY), "holds a private key"),
    "a private key in DER": (base64.b64encode(base64.b64decode("".join(key_pem(KEY).splitlines()[1:-1]))).decode(),
                             "holds a private key"),
    "a request": (block(request(), "CERTIFICATE REQUEST"), "holds a certificate signing request"),
    "a request in DER": (base64.b64encode(request()).decode(), "holds a certificate signing request"),
    "no end": (GOOD[:-27], "has -----BEGIN CERTIFICATE----- without its end"),
    "no end of the first of two": (GOOD.replace("-----END CERTIFICATE-----\n", "") + GOOD, "without its own end"),
    "another end": (GOOD.replace("END CERTIFICATE", "END TRUSTED CERTIFICATE"), "without its own end"),
    "no beginning": (GOOD[28:], "without its beginning"),
    "the name of a file": ("/etc/ssl/certs/site.pem", "names a file"),
    "other text": ("hello", "has no PEM block"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), INSTEAD.values(), ids=INSTEAD)
def test_what_was_sent_instead_is_named(text: str, words: str) -> None:
    """Where certificates are wanted, each mishap has its name, and nothing that was sent is quoted."""
    with pytest.raises(Invalid) as raised:
        chains.read(text)
    assert words in str(raised.value)
    assert GOOD.splitlines()[1][:20] not in str(raised.value)


def test_requests_and_keys_have_the_same_hints() -> None:
    """One table serves all three; a key's content, and what looks like one, is never quoted."""
    for good, wanted in ((block(request(), "CERTIFICATE REQUEST"), "csr"), (key_pem(KEY), "key")):
        der = base64.b64decode("".join(good.splitlines()[1:-1]))
        for text, words in (
            (good.replace("\n", "\\n"), "\\n written as two characters"),
            ("".join(f"> {line}\n" for line in good.splitlines()), "quoted as in a mail"),
            (good.replace("M", "M\u200b", 1), "U+200B"),
            (good.encode("utf-16").decode("latin-1"), "UTF-16"),
            (base64.b64encode(der).decode(), "is DER in base64; `openssl " + ("req" if wanted == "csr" else "pkey")),
            (good[:-10], "without its end"),
            (GOOD, "holds a certificate"),
            (base64.b64encode(P12).decode(), "is PKCS#12"),
            ("", "has no PEM block"),
        ):
            with pytest.raises(pkix.BadCsr if wanted == "csr" else keys.Unusable) as raised:
                (pkix.read_csr if wanted == "csr" else keys.read_pem)(text)
            said = str(raised.value)
            assert words in said, (wanted, words, said)
            assert "PRIVATE KEY" not in said
            assert good.splitlines()[1][:20] not in said


def test_a_key_under_another_label_is_read() -> None:
    """PKCS#8 as RSA or EC PRIVATE KEY, and the other way round: the bytes say what they are."""
    for key in (KEY, RSA_KEY):
        for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
            der = key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())
            for label in ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"):
                assert keys.read_pem(block(der, label)).spki == spki(key)


def test_parameters_before_a_key_are_passed_over() -> None:
    """`openssl ecparam -genkey` writes EC PARAMETERS before its key."""
    assert keys.read_pem(openssl("ecparam", "-name", "prime256v1", "-genkey")).key_type == "p256v1"


# Requests.

TAKEN_REQUESTS: dict[str, tuple[dict[str, Any], bool]] = {
    "PrintableString with &": ({"subject": name((O, PRINTABLE, b"A&B"), (CN, UTF8, b"a"))}, True),
    "TeletexString in Latin-1": ({"subject": name((O, TELETEX, b"B\xe4r"))}, True),
    "TeletexString in ASCII": ({"subject": name((O, TELETEX, b"Bar"))}, False),
    "64 characters of two bytes": ({"subject": name((CN, UTF8, "ж".encode() * 64))}, False),
    "no attributes field": ({"attributes": b""}, False),
    "no attributes": ({"attributes": tlv(0xA0)}, False),
    "an unknown extension": ({"extensions": (san(HOST), extension("1.2.3.4", b"x", critical=True))}, False),
    "policies that cannot be read": ({"extensions": (san(HOST), extension("2.5.29.32", b"\x01\x02"))}, False),
    "FALSE written out": ({"extensions": (basic(FALSE, critical=False), san(HOST))}, False),
    "ECDSA with NULL": ({"algorithm": sequence(oid("1.2.840.10045.4.3.2"), NULL)}, False),
    "an empty subject": ({"subject": sequence()}, False),
}
REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "version 1": ({"version": b"\x01"}, "its version number is 1"),
    "C of three letters": ({"subject": name((C, PRINTABLE, b"DEU"))}, 'C is "DEU" and not two letters'),
    "65 characters": ({"subject": name((CN, UTF8, b"a" * 65))}, "CN has 65 characters"),
    "PrintableString beyond ASCII": ({"subject": name((O, PRINTABLE, b"B\xe4r"))}, 'PrintableString holds "\\u00e4"'),
    "an unsorted SET in the subject": (
        {"subject": sequence(tlv(0x31, attribute(O, UTF8, b"a"), attribute(CN, UTF8, b"a")))},
        "the SET of a part of its subject is not sorted",
    ),
    "unsorted attributes": (
        {
            "attributes": tlv(
                0xA0,
                *sorted(
                    [
                        sequence(oid("1.2.840.113549.1.9.14"), tlv(0x31, sequence(san(HOST)))),
                        sequence(oid("1.2.840.113549.1.9.7"), tlv(0x31, tlv(UTF8, b"word"))),
                    ],
                    reverse=True,
                ),
            )
        },
        "the SET of its attributes is not sorted",
    ),
    "a signature by another key": ({"key": spki(CA_KEY)}, "signature is not valid"),
}


@pytest.mark.parametrize(("odd", "rewritten"), TAKEN_REQUESTS.values(), ids=TAKEN_REQUESTS)
def test_an_odd_request_is_taken(odd: dict[str, Any], rewritten: bool) -> None:
    """What `openssl req -verify` takes is read; a string that its type cannot hold is signed as one that can."""
    der = request(**odd)
    assert oddities.openssl_reads(der)
    found = pkix.read_csr(block(der, "NEW CERTIFICATE REQUEST"))
    assert found.rewritten is rewritten
    assert not pkix.weakness(found.public_key)


@pytest.mark.parametrize(("odd", "words"), REFUSED_REQUESTS.values(), ids=REFUSED_REQUESTS)
def test_a_request_is_refused_with_the_reason(odd: dict[str, Any], words: str) -> None:
    """The sentence names what is wrong."""
    with pytest.raises(pkix.BadCsr) as raised:
        pkix.read_csr(block(request(**odd), "CERTIFICATE REQUEST"))
    assert words in str(raised.value)


# Keys that others find.


def pss(key: rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """SubjectPublicKeyInfo and PKCS#8 of the key, as id-RSASSA-PSS without parameters."""
    plain, restricted = oid("1.2.840.113549.1.1.1") + NULL, oid("1.2.840.113549.1.1.10")
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = spki(key)
    bits = public[public.index(plain) + len(plain) :]
    return sequence(sequence(restricted), bits), sequence(tlv(2, b"\x00"), sequence(restricted), tlv(4, der))


def test_rsa_pss_keys_are_refused_by_name() -> None:
    """In an upload, a request and a leaf: written out as rsaEncryption, they fit no certificate of theirs."""
    public, private = pss(RSA_KEY)
    assert "PSS" in openssl("pkey", "-noout", "-text", text=block(private, "PRIVATE KEY"))
    with pytest.raises(keys.Unusable, match="RSA-PSS"):
        keys.read_pem(block(private, "PRIVATE KEY"))
    with pytest.raises(pkix.BadCsr, match="RSA-PSS"):
        pkix.read_csr(block(request(by=RSA_KEY, key=public), "CERTIFICATE REQUEST"))
    (leaf,) = chains.read(block(certificate(key=public)))
    with pytest.raises(Invalid, match="RSA-PSS"):
        chains.judge_leaf(leaf, NOW)


# Of the primes below 4,096, by which most of what is tried can be divided.
SMALL = prod(n for n in range(3, 4096, 2) if all(n % p for p in range(3, isqrt(n) + 1, 2)))


def is_prime(n: int) -> bool:
    return gcd(n, SMALL) == 1 and all(pow(a, n - 1, n) == 1 for a in (2, 3, 5))


def prime_from(n: int) -> int:
    n |= 1
    while not is_prime(n):
        n += 2
    return n


def of_primes(p: int, q: int) -> rsa.RSAPrivateKey:
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key(
        unsafe_skip_rsa_key_validation=True
    )


def roca_prime(seed: int) -> int:
    """A prime k * M + (65537**a mod M), the form of CVE-2017-15361; M is the product of the first 126 primes."""
    m = prod(weak_keys._PRIMES[:126])
    k, a = 2**1025 // m + seed, 2**60 + seed
    while not is_prime(n := k * m + pow(65537, a, m)):
        a += 1
    return n


P, Q = RSA_KEY.private_numbers().p, RSA_KEY.private_numbers().q
# A prime that is twice as long as it has to be, so that the product has 2048 bits beside a short one.
LONG = prime_from(13 * 2**1023 + 2**400)
WEAK_RSA = {
    "ROCA": lambda: of_primes(roca_prime(1), roca_prime(2)),
    "close factors": lambda: of_primes(P, prime_from(P + 2**400)),
    "beside a power of 2": lambda: of_primes(prime_from(2**1024 + 40_000), LONG),
    "beside a power of 3": lambda: of_primes(prime_from(3**646 - 40_000), LONG),
    "beside a power of 10": lambda: of_primes(prime_from(10**308 + 1), LONG),
    "beside powers of 2 and 3": lambda: of_primes(prime_from(2**1024 + 1), prime_from(3**646 + 1)),
    "beside powers of 2 apart": lambda: of_primes(prime_from(2**1023 + 1), prime_from(2**1026 + 1)),
}


@pytest.mark.parametrize("make", WEAK_RSA.values(), ids=WEAK_RSA)
def test_rsa_keys_that_can_be_factored_are_refused(make: Any) -> None:
    """From the public numbers alone, and so in uploads, requests and leaves alike."""
    key = make()
    found = weak_keys.weakness(key.public_key())
    assert found, "it was not found"
    with pytest.raises(keys.Unusable):
        keys.read_pem(key_pem(key))
    asked = pkix.read_csr(block(request(by=key), "CERTIFICATE REQUEST"))
    assert found in pkix.weakness(asked.public_key)
    (leaf,) = chains.read(block(certificate(key=spki(key))))
    with pytest.raises(Invalid) as raised:
        chains.judge_leaf(leaf, NOW)
    assert found in str(raised.value)


def test_a_small_private_exponent_is_refused() -> None:
    """In an upload it is seen; in a public key it needs an exponent that is far too long."""
    small = prime_from(2**200)
    e = pow(small, -1, (P - 1) * (Q - 1))
    numbers = rsa.RSAPrivateNumbers(
        P, Q, small, small % (P - 1), small % (Q - 1), pow(Q, -1, P), rsa.RSAPublicNumbers(e, P * Q)
    )
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    with pytest.raises(keys.Unusable, match="has the exponent of 20"):
        keys.read_pem(key_pem(key))
    assert "private exponent" in weak_keys.private_weakness(key)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_small_private_numbers_are_found(curve: ec.EllipticCurve) -> None:
    """On each curve those up to 65,536, and as many below the order, from the public point; larger ones in uploads."""
    below = curve.group_order - 1
    for scalar in (1, 2, 7, 256, 257, 513, 1026, 5000, 2**16, below, below - 6, below - 2**16):
        key = ec.derive_private_key(scalar, curve)
        assert "small private number" in weak_keys.weakness(key.public_key()), scalar
        with pytest.raises(keys.Unusable, match="small private number"):
            keys.read_pem(key_pem(key))
    larger = ec.derive_private_key(2**100 + 1, curve)
    assert not weak_keys.weakness(larger.public_key())
    with pytest.raises(keys.Unusable, match="small private number"):
        keys.read_pem(key_pem(larger))


def test_good_keys_have_no_weakness() -> None:
    """No check finds anything in keys that OpenSSL made."""
    made: list[Any] = [RSA_KEY, KEY, *(ec.generate_private_key(ec.SECP256R1()) for _ in range(20))]
    for key in made:
        assert not weak_keys.weakness(key.public_key())
        assert not weak_keys.private_weakness(key)


def test_the_longest_key_is_judged_within_a_bounded_time() -> None:
    """RSA-8192 takes some 10 ms of the processor; the bound here is for a machine that is twenty times slower."""
    n = 3 * 2**8190 + 2**4000 + 1
    while any(n % p == 0 for p in weak_keys._PRIMES) or isqrt(n) ** 2 == n:
        n += 2
    key = rsa.RSAPublicNumbers(65537, n).public_key()
    before = time.thread_time()
    weak_keys.weakness(key)
    assert time.thread_time() - before < 0.2


# Bodies and files.


def test_json_after_a_mark_is_read_and_gzip_is_named() -> None:
    """A BOM is passed over (RFC 8259 section 8.1 lets parsers do so); what is no JSON is told where it is plain."""
    assert bodies.parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert "gzip" in bodies.instead(gzip.compress(b"{}"))
    assert "UTF-16" in bodies.instead('{"a": 1}'.encode("utf-16"))
    assert not bodies.instead(b"hello")


def test_reading_does_not_take_long_for_what_is_made_to_be_slow() -> None:
    """Many small values, and texts that look like mishaps all along, take time in proportion to their size."""
    many = tlv(0x30, tlv(0x30, *[b"\x05\x00"] * 60_000), ECDSA, tlv(3, b"\x00"))
    texts = [block(many), "-----BEGIN CERTIFICATE-----" * 9000, "=\n" * 120_000, "> " * 120_000, " \t" * 120_000 + "!"]
    before = time.thread_time()
    for text in texts:
        for read in (chains.read, pkix.read_csr, keys.read_pem):
            with pytest.raises((Invalid, pkix.BadCsr, keys.Unusable)):
                read(text[: 256 * 1024])
    assert time.thread_time() - before < 5
