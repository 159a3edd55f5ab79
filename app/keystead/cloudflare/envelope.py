"""Envelopes: the JSON of every answer (contract-cloudflare section 1)."""

from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")
JSON = "application/json"
# Ids of accounts, zones, tokens and users; ids of CSRs and certificates; times.
Hex32: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Uuid: TypeAlias = Annotated[str, Meta(min_length=36, max_length=36, extra_json_schema={"format": "uuid"})]
Instant: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class Source(msgspec.Struct, frozen=True):
    pointer: str


class ErrorChainItem(msgspec.Struct, frozen=True):
    code: int
    message: str


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of `errors` or `messages`."""

    code: Annotated[int, Meta(ge=971)]
    message: str
    documentation_url: str | None = None
    source: Source | None = None
    error_chain: list[ErrorChainItem] | None = None


class ResultInfo(msgspec.Struct, frozen=True):
    """`count` is the number of items on this page, `total_count` on all pages."""

    count: int
    page: int
    per_page: int
    total_count: int
    total_pages: int


class Envelope(msgspec.Struct, Generic[T], frozen=True):
    """A successful answer; `messages` holds advice, and `errors` is always empty."""

    result: T
    success: Annotated[bool, Meta(extra_json_schema={"const": True})]
    errors: Annotated[list[Item], Meta(max_length=0)]
    messages: list[Item]


class Page(Envelope[list[T]], Generic[T], frozen=True):
    """One page of a list."""

    result_info: ResultInfo


class Failure(msgspec.Struct, frozen=True):
    """An answer to a request that was refused or failed; it changed nothing."""

    result: None
    success: Annotated[bool, Meta(extra_json_schema={"const": False})]
    errors: Annotated[list[Item], Meta(min_length=1)]
    messages: list[Item]
