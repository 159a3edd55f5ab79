"""PEM parsing (RFC 7468), in linear time because the input is untrusted, and explanations of what was sent instead.

Texts never quote the input, since it may be a private key. The API and the command line share them.
"""

import base64
import binascii
import codecs
import contextlib
import re
from collections.abc import Iterator
from enum import Enum

import msgspec

from keystead.x509.der import Unreadable

_BOUNDARY = re.compile(r"-----(BEGIN|END) ([A-Z0-9#][A-Z0-9# ]{0,39})-----")


class Kind(Enum):
    """Kind of PEM block; the value is the `openssl` subcommand that reads it."""

    CERTIFICATE = "x509"
    REQUEST = "req"
    KEY = "pkey"


_LABELS = {Kind.CERTIFICATE: "CERTIFICATE", Kind.REQUEST: "CERTIFICATE REQUEST", Kind.KEY: "PRIVATE KEY"}
_NOUNS = {Kind.CERTIFICATE: "certificate", Kind.REQUEST: "certificate signing request", Kind.KEY: "private key"}
TRUSTED = "TRUSTED CERTIFICATE"
_CERTIFICATES = {"CERTIFICATE", "X509 CERTIFICATE", TRUSTED}
# Web servers' PEM files contain these beside certificates and keys; they are ignored.
PASSED_OVER = {"DH PARAMETERS", "X9.42 DH PARAMETERS", "EC PARAMETERS"}


class Block(msgspec.Struct, frozen=True):
    """A PEM block; `text` includes the boundary lines. May be a private key: the repr leaves the content out."""

    label: str
    body: str
    text: str

    @property
    def kind(self) -> Kind | None:
        if self.label in _CERTIFICATES:
            return Kind.CERTIFICATE
        if self.label.endswith("CERTIFICATE REQUEST"):
            return Kind.REQUEST
        return Kind.KEY if self.label.endswith("PRIVATE KEY") else None

    def __repr__(self) -> str:
        return f"Block({self.label})"


def blocks(text: str) -> Iterator[Block]:
    """All blocks whose BEGIN and END labels match, in order; other text is ignored."""
    begin: re.Match[str] | None = None
    for boundary in _BOUNDARY.finditer(text):
        if boundary[1] == "BEGIN":
            begin = boundary
        elif begin is not None and boundary[2] == begin[2]:
            yield Block(begin[2], text[begin.end() : boundary.start()], text[begin.start() : boundary.end()])
            begin = None


def unfinished(text: str) -> str:
    """The first unmatched BEGIN or END line, as the predicate of a sentence; empty if all match."""
    begin = ""
    for boundary in _BOUNDARY.finditer(text):
        word, label = boundary.groups()
        if begin and (word, label) != ("END", begin):
            between = "" if word == "END" else " between them"
            return f"has {_boundary('BEGIN', begin)} and then {_boundary(word, label)}, without its own end{between}"
        if not begin and word == "END":
            return f"has {_boundary(word, label)} without its beginning"
        begin = label if word == "BEGIN" else ""
    return f"has {_boundary('BEGIN', begin)} without its end" if begin else ""


def _boundary(word: str, label: str) -> str:
    # Tests and operators search output for "PRIVATE KEY" to find leaks, so responses and logs never contain it.
    return f"the {word} of a private key" if "PRIVATE" in label else f"-----{word} {label}-----"


def decoded(block: Block) -> bytes:
    """The decoded content of a block; raises Unreadable."""
    text = "".join(block.body.split())
    # Raised outside of any handler: the context of an encoding error holds the text, which may be a key.
    with contextlib.suppress(ValueError):
        if text.isascii():
            return base64.b64decode(text, validate=True)
    raise Unreadable(f"it {_damage(block.body) or 'is not base64 between its boundaries'}")


def encoded(label: str, der: bytes) -> str:
    """A PEM block with a trailing newline."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----\n"))


_INVISIBLE = "\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u2064\u3000\ufeff"
# Common ways in which text is damaged in transit.
_DAMAGE = (
    (re.compile(r"\\[nr]"), "has \\n written as two characters; send real line breaks"),
    (re.compile(r"^[ \t]*>", re.MULTILINE), "is quoted as in a mail; take the > before its lines away"),
    (re.compile(r"=3D|=\r?\n(?=[A-Za-z0-9+/])"), "is quoted-printable, as mails are; decode it first"),
    (re.compile(r"%0[AaDd]|%2[BbFf]|BEGIN(?:%20|\+)"), "is percent-encoded; decode it first"),
    (re.compile(r"&#(?:10|13|x[aAdD]);|<br"), "has HTML in it; send the text alone"),
    (re.compile("[\u2010-\u2015\u2212]{2,} ?BEGIN"), "has long dashes in its boundaries; they are five hyphens each"),
    (re.compile("\x00"), "has zero bytes in it, as in UTF-16; send it as UTF-8"),
)


def _damage(text: str) -> str:
    for pattern, words in _DAMAGE:
        if pattern.search(text):
            return words
    unseen = re.search(f"[{_INVISIBLE}]", text)
    if unseen:
        return f"has the character U+{ord(unseen[0]):04X} in it, which cannot be seen; take it away"
    return "is encrypted, or has header lines" if re.search(r"^[A-Za-z-]+: ", text, re.MULTILINE) else ""


# First bytes of binary formats. \x80 is the indefinite length: PKCS#12 files are often BER.
_LENGTH = rb"(?:[\x00-\x80]|\x81.|\x82..|\x83...|\x84....)"
_OUTER = rb"\x30" + _LENGTH
_BINARY: tuple[tuple[re.Pattern[bytes], Kind | str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), what)
    for pattern, what in (
        (rb"\x1f\x8b", "is gzip; unpack it first"),
        (rb"PK\x03\x04", "is a ZIP archive; unpack it first"),
        (rb"\xfe\xed\xfe\xed", "is a Java key store; `keytool -importkeystore` turns it into PKCS#12"),
        (rb"\xff\xfe|\xfe\xff", "is UTF-16; send it as UTF-8"),
        (_OUTER + rb"\x02\x01\x03\x30", "PKCS12"),
        (_OUTER + rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07", "PKCS7"),
        (_OUTER + rb"\x02\x01[\x00\x01](?:\x02|\x04|\x30" + _LENGTH + rb"\x06)", Kind.KEY),
        (_OUTER + rb"\x30" + _LENGTH + rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05", "ENCRYPTED"),
        (_OUTER + rb"\x30" + _LENGTH + rb"\x06", "PUBLIC KEY"),
        (_OUTER + rb"\x30" + _LENGTH + rb"\x02\x01[\x00-\x02]\x30" + _LENGTH + rb"(?:\x31|\x30\x59)", Kind.REQUEST),
        (_OUTER + rb"\x30" + _LENGTH + rb"(?:\xa0\x03\x02\x01|\x02)", Kind.CERTIFICATE),
    )
)
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{20,}")


def instead(text: str, wanted: Kind) -> str:
    """What was sent instead of a block of this kind, as the predicate of a sentence without the full stop."""
    for block in blocks(text):
        if block.label not in PASSED_OVER and block.kind is not wanted:
            return _wrong_kind(block.kind or _PKCS7_LABELS.get(block.label, block.label), wanted)
    plain = text.lstrip(" \t\r\n\ufeff")
    is_base64 = _BASE64.fullmatch(plain) is not None
    content = _from_base64(plain) if is_base64 else plain.encode("latin-1", "replace")
    what = next((what for pattern, what in _BINARY if pattern.match(content)), None)
    if what is wanted:
        return f"is DER{' in base64' if is_base64 else ''}; `openssl {wanted.value} -inform der` turns it into PEM"
    if what:
        return _wrong_kind(what, wanted)
    if plain[:2] == "0\ufffd":
        return "is DER, and was not read as bytes on its way; send PEM"
    return _damage(text) or unfinished(text) or _no_block(plain, wanted)


def _no_block(plain: str, wanted: Kind) -> str:
    begins = f"it begins with {_boundary('BEGIN', _LABELS[wanted])}"
    if re.search(r"begin", plain, re.IGNORECASE):
        return f"has boundaries that are not PEM's; {begins}, with five hyphens on each side"
    if re.fullmatch(r"@?(?:file:|[~.]{0,2}/|[A-Za-z]:\\)?[\w./\\ -]+\.[A-Za-z0-9]{2,4}", plain.strip()[:300]):
        return f"names a file; send what is in it: {begins}"
    return f"has no PEM block: {begins}"


_PKCS7_LABELS = {"CMS": "PKCS7", "PKCS #7 SIGNED DATA": "PKCS7"}


def _wrong_kind(what: Kind | str, wanted: Kind) -> str:
    if what is Kind.KEY:
        return f"holds a private key; send the {_NOUNS[wanted]} only, and make that key anew if it was in use"
    if what is Kind.REQUEST and wanted is Kind.CERTIFICATE:
        return "holds a certificate signing request; send what the CA made of it"
    if isinstance(what, Kind):
        return f"holds a {_NOUNS[what]}, and no {_NOUNS[wanted]}"
    if what == "PKCS12":
        part = "-nocerts -noenc" if wanted is Kind.KEY else "-nokeys"
        holds = "" if wanted is Kind.KEY else ", which holds a private key too"
        return f"is PKCS#12{holds}; `openssl pkcs12 {part}` takes the PEM out of it"
    if what == "PKCS7":
        turned = "; `openssl pkcs7 -print_certs` turns it into PEM certificates (`-inform der` if it is binary)"
        return f"is PKCS#7{turned if wanted is Kind.CERTIFICATE else f', and no {_NOUNS[wanted]}'}"
    if what == "ENCRYPTED":
        return "is an encrypted private key; `openssl pkey` writes it without a passphrase"
    if what.startswith("is "):
        return what
    shown = "of another kind" if "PRIVATE" in what else what
    return f"holds a PEM block {shown}, and no {_NOUNS[wanted]}"


def _from_base64(plain: str) -> bytes:
    try:
        return base64.b64decode("".join(plain.split()), validate=True)
    except binascii.Error:
        return b""


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def text(content: bytes) -> str:
    """Decode a file as UTF-8, UTF-16, UTF-32 or Latin-1. PEM is ASCII, so wrong guesses for other text do no harm."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    for part, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if content[:40] and not any(content[:40][part::2]):
            return content.decode(encoding, "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")
