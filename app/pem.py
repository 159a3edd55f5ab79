"""PEM blocks in a text (RFC 7468), found in one pass: what is sent to us may be made to be slow."""

import re
from collections.abc import Iterator

import msgspec

_BOUNDARY = re.compile(r"-----(BEGIN|END) ([A-Z0-9#][A-Z0-9# ]{0,39})-----")


class Block(msgspec.Struct, frozen=True):
    """`body` lies between the boundaries of `label`; `whole` is with them. It may be a private key."""

    label: str
    body: str
    whole: str

    def __repr__(self) -> str:
        return f"Block({self.label})"


def blocks(text: str) -> Iterator[Block]:
    """Every block whose end has the label of its beginning; other text is passed over."""
    begin: re.Match[str] | None = None
    for boundary in _BOUNDARY.finditer(text):
        if boundary[1] == "BEGIN":
            begin = boundary
        elif begin is not None and boundary[2] == begin[2]:
            yield Block(begin[2], text[begin.end() : boundary.start()], text[begin.start() : boundary.end()])
            begin = None
