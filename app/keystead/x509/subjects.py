"""Validation of distinguished name attributes (X.520; upper bounds from RFC 5280 appendix A.1). Pure.

Lengths are in characters (code points), not bytes.
"""

import re
from collections.abc import Mapping

import iso3166
import msgspec

from keystead.errors import Problem, Rule, quoted

# Forbidden in all text: C0 and C1 controls, DEL, Unicode's bidirectional controls (UAX 9) and lone surrogates.
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Values that can be a PrintableString (X.680 section 41.4).
PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]*")


class Subject(msgspec.Struct, frozen=True):
    """The distinguished name of a CSR (X.520 attributes)."""

    country: str
    state: str
    locality: str
    organization: str
    common_name: str
    organizational_unit: str | None = None


class SubjectDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a CSR's subject has where a request does not say it."""

    country: str | None = None
    state: str | None = None
    locality: str | None = None
    organization: str | None = None

    def __str__(self) -> str:
        values = zip(("C", "ST", "L", "O"), msgspec.structs.astuple(self), strict=True)
        return ", ".join(f"{attribute}={value}" for attribute, value in values if value)


class CaSubject(msgspec.Struct, frozen=True):
    """The distinguished name of a CA, in encoding order; empty attributes are omitted."""

    country: str = ""
    organization: str = ""
    organizational_unit: str = ""
    state: str = ""
    common_name: str = ""
    locality: str = ""


UPPER_BOUNDS = {
    "common_name": 64,
    "state": 128,
    "locality": 128,
    "organization": 64,
    "organizational_unit": 64,
}
# XX is ISO's user-assigned code for unknown countries. XK (Kosovo) is in iso3166, but not assigned by ISO.
_COUNTRIES = (frozenset(iso3166.countries_by_alpha2) | {"XX"}) - {"XK"}


def problems(fields: Mapping[str, str | None]) -> list[Problem]:
    """Problems of the values that these fields of a subject have; empty if all are valid."""
    found = []
    for field, value in fields.items():
        if value:
            found += country(field, value) if field == "country" else text(field, value, UPPER_BOUNDS[field])
    return found


def country(field: str, value: str) -> list[Problem]:
    """Problems of a countryName value; empty if valid."""
    if value in _COUNTRIES:
        return []
    text = f"{field} {quoted(value)} is not an ISO 3166-1 code of two upper-case letters, such as US or DE."
    return [Problem(Rule.COUNTRY, field, text)]


def text(field: str, value: str, most: int, *, line_breaks: bool = False) -> list[Problem]:
    """Problems of a text value: over `most` characters, blank, or with a forbidden character; empty if valid."""
    found = []
    if len(value) > most:
        rule = Rule.COMMON_NAME_LENGTH if field == "common_name" else Rule.LENGTH
        found.append(Problem(rule, field, f"{field} has {len(value)} characters; at most {most} are allowed."))
    allowed = "\t\n" if line_breaks else ""
    forbidden = next((match for match in FORBIDDEN.finditer(value) if match[0] not in allowed), None)
    if not value.strip():
        found.append(Problem(Rule.TEXT, field, f"{field} {quoted(value)} is only white space."))
    elif forbidden:
        character = f"U+{ord(forbidden[0]):04X} at position {forbidden.start()}"
        text = f"{field} has the character {character}; control characters are refused."
        found.append(Problem(Rule.TEXT, field, text))
    return found
