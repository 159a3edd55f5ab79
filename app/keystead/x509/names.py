"""Hostname rules: LDH labels, wildcards, A-labels, reserved names and public suffixes (contract-cloudflare section 2).

Pure functions of a name and a policy. Names are not normalized, because responses must return the input byte for byte.
Sources: RFC 952, RFC 1123 section 2.1, RFC 5890, RFC 6761, publicsuffix.org.
"""

import re
import unicodedata
from enum import StrEnum
from functools import cache

import idna
from publicsuffixlist import PublicSuffixList

from keystead.errors import Rule, quoted


class NamePolicy(StrEnum):
    """Which hostnames an account may use in CSRs; set by the operator."""

    PRIVATE = "private"
    PUBLIC = "public"


MAX_NAME = 255
# A DNS name has at most 255 octets with its length octets (RFC 1035 section 2.3.4).
DNS_MAX_NAME = 253
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_RESERVED_TOP = frozenset({"test", "example", "invalid", "localhost"})
_EXAMPLE_DOMAINS = frozenset({"example.com", "example.net", "example.org"})


@cache
def suffixes() -> PublicSuffixList:
    """The full public suffix list; unknown top-level domains count as suffixes, as in Go's EffectiveTLDPlusOne.

    Loaded on first use: parsing takes longer than most commands run.
    """
    return PublicSuffixList()


@cache
def icann_suffixes() -> PublicSuffixList:
    """The ICANN section of the public suffix list; unknown top-level domains are not suffixes."""
    return PublicSuffixList(only_icann=True, accept_unknown=False)


def broken(name: str, policy: NamePolicy, *, suggest: bool = True) -> tuple[Rule, str] | None:
    """The first rule that `name` breaks as a SAN, with a sentence for the caller; None if it is valid.

    `suggest` adds the A-label to the sentence, which takes milliseconds: set it for only a few names per request.
    """
    if not name.isascii():
        return Rule.NAME_NOT_ASCII, _not_ascii(name, suggest=suggest)
    problem = _syntax(name)
    if problem:
        return Rule.NAME_SYNTAX, f"{quoted(name)} is not a hostname: {problem}."
    lower = name.lower()
    if policy is NamePolicy.PUBLIC:
        public = _public(lower)
        if public:
            return public
    if lower.startswith("*.") and _is_icann_suffix(lower[2:]):
        return (
            Rule.NAME_PUBLIC_SUFFIX,
            f"{quoted(name)} is a wildcard directly on a public suffix; put a label of your own between them.",
        )
    return None


def a_label(name: str) -> str | None:
    """A name of at most DNS_MAX_NAME characters with its labels as A-labels (UTS 46); None if that cannot be."""
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return None


def exact_a_label(name: str) -> str | None:
    """As `a_label`; None also if that spells another name, as with characters that are invisible or fold to others."""
    labels = a_label(name)
    return labels if labels and idna.decode(labels) == unicodedata.normalize("NFC", name.lower()) else None


def doubts(name: str, policy: NamePolicy) -> str | None:
    """Why public CAs would reject a name that `broken` accepts, as a sentence; None if they would not."""
    if len(name) > DNS_MAX_NAME:
        return f"{quoted(name)} has {len(name)} characters, and DNS carries at most {DNS_MAX_NAME}."
    if "_" in name:
        return f"{quoted(name)} contains an underscore, which public CAs refuse."
    if any(label[2:4] == "--" and label[:2].lower() != "xn" for label in name.split(".")):
        return f"{quoted(name)} has hyphens in positions 3 and 4 without being an A-label; public CAs refuse it."
    if policy is NamePolicy.PRIVATE:
        public = _public(name.lower())
        if public:
            return f"{public[1]} This account's name policy is private, so the name was accepted."
    return None


def _public(lower: str) -> tuple[Rule, str] | None:
    bare = lower.removeprefix("*.")
    top = bare.rpartition(".")[2]
    if top in _RESERVED_TOP:
        return Rule.NAME_RESERVED, f"{quoted(lower)} is under the reserved top domain {quoted(top)}."
    if suffixes().is_public(lower):
        return Rule.NAME_PUBLIC_SUFFIX, f"{quoted(lower)} is a public suffix; a name below it would be accepted."
    if ".".join(bare.split(".")[-2:]) in _EXAMPLE_DOMAINS:
        return Rule.NAME_EXAMPLE_DOMAIN, f"{quoted(lower)} is under a domain that is reserved for examples."
    return None


def _is_icann_suffix(lower: str) -> bool:
    # The rule *.ck makes every foo.ck a suffix, but not ck itself.
    return icann_suffixes().publicsuffix(lower) == lower


def _syntax(name: str) -> str | None:
    if not name:
        return "it is empty"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters, and at most {MAX_NAME} are allowed"
    bare = name.removeprefix("*.")
    labels = bare.split(".")
    if name[-1] == ".":
        return "it ends with a dot"
    if "" in labels:
        return "it has an empty label"
    for label in labels:
        problem = _label(label)
        if problem:
            return problem
    if _NUMBER.fullmatch(labels[-1]):
        return "its last label is a number, as in an IP address; only DNS names can be in a custom CSR"
    return None


def _label(label: str) -> str | None:
    if len(label) > 63:
        return f"the label {quoted(label)} has {len(label)} characters, and at most 63 are allowed"
    if not _LABEL.fullmatch(label):
        if label[0] == "-" or label[-1] == "-":
            return f"the label {quoted(label)} begins or ends with a hyphen"
        return f"the label {quoted(label)} has characters other than A-Z, a-z, 0-9, '-' and '_'" + (
            "; a wildcard is only allowed as the whole first label" if "*" in label else ""
        )
    if label[:4].lower() == "xn--" and not _is_a_label(label[4:].lower()):
        return f"the label {quoted(label)} is not valid punycode"
    return None


def _is_a_label(encoded: str) -> bool:
    try:
        decoded = encoded.encode("ascii").decode("punycode")
        # Encoders never produce punycode for a pure-ASCII label; the UTF-8 round trip rejects lone surrogates.
        return (
            not decoded.isascii()
            and decoded.encode("utf-8").decode("utf-8").encode("punycode").decode("ascii") == encoded
        )
    except (UnicodeError, ValueError, OverflowError):
        return False


def _not_ascii(name: str, *, suggest: bool) -> str:
    if not suggest:
        return f"{quoted(name)} has non-ASCII characters; write it in its A-label form (xn--…)."
    bare = a_label(name.removeprefix("*."))
    if bare is None:
        return f"{quoted(name)} has non-ASCII characters, and is not a valid internationalized name."
    return f"{quoted(name)} has non-ASCII characters; write it as {quoted('*.' * name.startswith('*.') + bare)}."
