"""Pages of lists: their order and bounds."""

from enum import StrEnum


class Direction(StrEnum):
    ASC = "asc"
    DESC = "desc"
