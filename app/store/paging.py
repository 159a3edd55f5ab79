"""Pages of lists: their order and bounds."""

from enum import StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

# The largest integer that all JSON parsers represent exactly (RFC 8259 section 6).
MAX_PAGE = 2**53 - 1
# OFFSET is a signed 64-bit number; larger offsets give an empty page too.
_MAX_OFFSET = 2**62


# Pages count from 1.
PageNumber: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
PerPage: TypeAlias = Annotated[int, Meta(ge=5, le=50)]


class Direction(StrEnum):
    ASC = "asc"
    DESC = "desc"


def offset(page: int, per_page: int) -> int:
    """The rows before this page; pages count from 1."""
    return min((page - 1) * per_page, _MAX_OFFSET)
