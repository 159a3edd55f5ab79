"""Escaping of untrusted text for terminals and logs."""

import json as json_
import re

# Printable for Python, but invisible: Unicode's Default_Ignorable_Code_Point, and the blank Braille pattern.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def text(value: str) -> str:
    r"""Escape controls, bidi marks, line breaks and other unprintable characters as `\x1b`, `\u202e`, `\U000e0041`."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if _prints(c) else c.encode("unicode_escape").decode("ascii") for c in value)


def lines(value: str, indent: str = "  ") -> str:
    """Escape each line and indent all but the first, so that untrusted text cannot imitate a line of our output."""
    return f"\n{indent}".join(map(text, value.split("\n")))


def json(document: str) -> str:
    """Escape unprintable characters of a JSON document with JSON escapes; its value does not change."""
    return "".join(c if c < "\x7f" or _prints(c) else json_.dumps(c)[1:-1] for c in document)


def _prints(character: str) -> bool:
    return character.isprintable() and not _BLANK.match(character)
