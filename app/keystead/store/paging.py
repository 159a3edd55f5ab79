"""Pages of lists: their order and bounds, and filters by name."""

import re
from enum import StrEnum
from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")
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


class Part(StrEnum):
    """What a filter compares with: the whole name, or a part of it ignoring case."""

    EQUAL = "equal"
    CONTAINS = "contains"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"


class NameFilter(msgspec.Struct, frozen=True):
    text: str
    part: Part = Part.EQUAL

    def condition(self, column: str, number: int) -> str:
        """The SQL that compares a column with parameter `number`, which is `value`."""
        if self.part is Part.EQUAL:
            return f"{column} = ${number}"
        return f"lower({column}) LIKE lower(${number})"

    @property
    def value(self) -> str:
        if self.part is Part.EQUAL:
            return self.text
        before, after = self.part is not Part.STARTS_WITH, self.part is not Part.ENDS_WITH
        return "%" * before + re.sub(r"([\\%_])", r"\\\1", self.text) + "%" * after


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list, and how many items there are on all pages."""

    items: tuple[T, ...]
    total: int


def offset(page: int, per_page: int) -> int:
    """The rows before this page; pages count from 1."""
    return min((page - 1) * per_page, _MAX_OFFSET)
