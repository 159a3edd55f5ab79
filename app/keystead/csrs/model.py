"""Types of custom CSRs: the request, the stored CSR, list queries and pages."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from keystead.errors import Problem
from keystead.store.paging import Direction, PageNumber
from keystead.x509.keys import KeyType
from keystead.x509.subjects import Subject

MAX_PER_PAGE = 50


class CsrRequest(msgspec.Struct, frozen=True):
    """The input for a CSR, kept byte for byte; `key_type` is not validated yet.

    `malformed` has the problems of fields that the dialect could not parse; these are empty here, and not validated
    again.
    """

    subject: Subject
    sans: tuple[str, ...]
    key_type: str = KeyType.RSA2048
    name: str | None = None
    description: str | None = None
    malformed: tuple[Problem, ...] = ()


class Csr(msgspec.Struct, frozen=True):
    """A stored custom CSR; `pem` ends with a newline."""

    id: UUID
    account_id: UUID
    created_at: datetime
    request: CsrRequest
    pem: str


class Order(StrEnum):
    NAME = "name"
    ACCOUNT_TAG = "account_tag"
    CREATED_AT = "created_at"


class CsrQuery(msgspec.Struct, frozen=True):
    """A page of a scope's CSRs. Filters match exactly and are combined with AND."""

    page: PageNumber = 1
    per_page: (
        Annotated[int, Meta(ge=5, le=MAX_PER_PAGE, description="By default 50 in an account, 20 in a zone.")] | None
    ) = None
    order: Order = Order.CREATED_AT
    direction: Direction = Direction.ASC
    common_name: str | None = None
    san: str | None = None
    name: str | None = None
    key_type: KeyType | None = None


class Page(msgspec.Struct, frozen=True):
    items: tuple[Csr, ...]
    total: int
