"""Attribute values of a distinguished name: which are accepted (X.520, and RFC 5280 appendix A.1 for the bounds). Pure.

Lengths are in characters (code points), not bytes.
"""

import iso3166

from app.errors import Problem, Rule, quoted
from app.model import FORBIDDEN

UPPER_BOUNDS = {
    "common_name": 64,
    "state": 128,
    "locality": 128,
    "organization": 64,
    "organizational_unit": 64,
}
# XX is for what has no code; XK is in the library's list, but ISO has not assigned it.
_COUNTRIES = (frozenset(iso3166.countries_by_alpha2) | {"XX"}) - {"XK"}


def country(field: str, value: str) -> list[Problem]:
    """What is wrong with a value of countryName."""
    if value in _COUNTRIES:
        return []
    text = f"{field} {quoted(value)} is not an ISO 3166-1 code of two upper-case letters, such as US or DE."
    return [Problem(Rule.COUNTRY, field, text)]


def text(field: str, value: str, most: int, *, line_breaks: bool = False) -> list[Problem]:
    """What is wrong with a text that is given: too long, only white space, or with a character that none may hold."""
    found = []
    if len(value) > most:
        rule = Rule.COMMON_NAME_LENGTH if field == "common_name" else Rule.LENGTH
        found.append(Problem(rule, field, f"{field} has {len(value)} characters; at most {most} are allowed."))
    bad = _bad_characters(field, value, "\t\n" if line_breaks else "")
    if bad:
        found.append(Problem(Rule.TEXT, field, bad))
    return found


def _bad_characters(field: str, value: str, allowed: str) -> str:
    if not value.strip():
        return f"{field} {quoted(value)} is only white space."
    for forbidden in FORBIDDEN.finditer(value):
        if forbidden[0] not in allowed:
            character = f"U+{ord(forbidden[0]):04X}"
            return (
                f"{field} has the character {character} at position {forbidden.start()}; "
                "control characters are refused."
            )
    return ""
