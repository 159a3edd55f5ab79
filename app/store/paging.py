"""Sort direction of lists."""

from enum import StrEnum


class Direction(StrEnum):
    ASC = "asc"
    DESC = "desc"
