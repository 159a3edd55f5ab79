"""Envelopes: the JSON of every answer (contract-cloudflare section 1)."""

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
JSON = "application/json"


class Source(msgspec.Struct, frozen=True):
    pointer: str


class ErrorChainItem(msgspec.Struct, frozen=True):
    code: int
    message: str


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of `errors` or `messages`."""

    code: int
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
    success: bool
    errors: list[Item]
    messages: list[Item]


class Page(Envelope[list[T]], Generic[T], frozen=True):
    """One page of a list."""

    result_info: ResultInfo


class Failure(msgspec.Struct, frozen=True):
    result: None
    success: bool
    errors: list[Item]
    messages: list[Item]
