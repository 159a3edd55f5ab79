"""How text that somebody else wrote is shown to people: what does not print is written out."""

import json as json_
import re

# What Python takes for printable, and Unicode shows as nothing at all (Default_Ignorable_Code_Point, and Braille's
# blank).
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def text(value: str) -> str:
    r"""With controls, bidi marks, line ends and other unprintables as `\x1b`, `\u202e` or `\U000e0041`."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if _prints(c) else c.encode("unicode_escape").decode("ascii") for c in value)


def lines(value: str, indent: str = "  ") -> str:
    """Lines of which only the first begins at the margin, so that no name or path in them looks like one of ours."""
    return f"\n{indent}".join(map(text, value.split("\n")))


def json(document: str) -> str:
    """The same JSON, with the unprintables of its strings as JSON's own escapes."""
    return "".join(c if c < "\x7f" or _prints(c) else json_.dumps(c)[1:-1] for c in document)


def _prints(character: str) -> bool:
    return character.isprintable() and not _BLANK.match(character)
