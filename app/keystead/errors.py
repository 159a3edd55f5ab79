"""Errors of the core, without HTTP statuses or API error codes: each dialect maps them to its own responses.

Texts are shown to the API caller, so they may quote the caller's own input and nothing else.
"""

import json
from enum import Enum, auto

import msgspec


def quoted(value: str) -> str:
    """`value` in double quotes for an error text: ASCII only, with JSON escapes, cut at 64 characters."""
    return json.dumps(value) if len(value) <= 64 else json.dumps(value[:64])[:-1] + '…"'


class Rule(Enum):
    """A validation rule. Dialects map (rule, field) to their error codes."""

    BODY = auto()
    MISSING = auto()
    COMMON_NAME_LENGTH = auto()
    NAME_SYNTAX = auto()
    NAME_NOT_ASCII = auto()
    NAME_RESERVED = auto()
    NAME_PUBLIC_SUFFIX = auto()
    NAME_EXAMPLE_DOMAIN = auto()
    KEY_TYPE = auto()
    COUNTRY = auto()
    LENGTH = auto()
    TOO_MANY_NAMES = auto()
    TEXT = auto()
    CERTIFICATE = auto()
    CSR_ID = auto()
    CHOICE = auto()
    EXPIRED = auto()
    WEAK_SIGNATURE = auto()
    EXTENDED_KEY_USAGE = auto()
    CHAIN = auto()
    NO_LEAF = auto()
    ZONE_HOST = auto()
    PRIVATE_KEY = auto()
    KEY_MISMATCH = auto()
    POLICY = auto()
    CONDITION = auto()
    TIME = auto()
    MORE_RIGHTS = auto()


class Hint(Enum):
    """Kind of warning about an accepted request. Dialects map it to their codes."""

    UNKNOWN_FIELD = auto()
    COMMON_NAME_NOT_IN_SANS = auto()
    ORGANIZATIONAL_UNIT = auto()
    DUPLICATES = auto()
    PUBLIC_WOULD_REFUSE = auto()
    OLD_KEY = auto()
    OTHER = auto()


class Problem(msgspec.Struct, frozen=True):
    """A validation error; `text` is a full sentence for the caller.

    `index` is the position in a list field, `member` the key in an object field. Deeper members are JSON pointers
    without the leading slash (RFC 6901).
    """

    rule: Rule
    field: str
    text: str
    index: int | None = None
    member: str | None = None


class Advice(msgspec.Struct, frozen=True):
    """A warning about an accepted request; `field`, `index` and `member` as in Problem."""

    hint: Hint
    field: str
    text: str
    index: int | None = None
    member: str | None = None


class Scheme(Enum):
    """Authentication scheme."""

    TOKEN = auto()
    GLOBAL_KEY = auto()


class Denial(Enum):
    """Why an authenticated caller is denied: no permission, a blocked address, or more rights than a creator's own."""

    RESOURCE = auto()
    ADDRESS = auto()
    MORE_RIGHTS = auto()


class Thing(Enum):
    """Kind of resource that was not found."""

    CSR = auto()
    CERTIFICATE = auto()
    CSR_OF_CERTIFICATE = auto()
    TOKEN = auto()
    SCOPE = auto()
    OTHER = auto()


class Limit(Enum):
    """A quota that is used up, or a feature that is switched off. LIST is the maximum length of any list."""

    CSR_QUOTA = auto()
    CERTIFICATE_QUOTA = auto()
    CSRS_OFF = auto()
    LIST = auto()


class KeysteadError(Exception):
    """Base class of expected errors. Any other exception is a bug or a failure of the environment."""


class Invalid(KeysteadError):  # noqa: N818 - these names describe a state and need no Error suffix
    """The request is invalid; nothing was changed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = problems


class NotFound(KeysteadError):  # noqa: N818
    """The resource does not exist in the caller's scope."""

    def __init__(self, text: str, thing: Thing = Thing.OTHER) -> None:
        super().__init__(text)
        self.thing = thing


class Clash(Enum):
    """Kind of conflict."""

    IDEMPOTENCY_KEY = auto()
    IN_USE = auto()
    SAME_ZONE = auto()
    HOLDS = auto()
    LAST_ADMINISTRATOR = auto()
    CHANGED = auto()
    STORED = auto()


class Conflict(KeysteadError):  # noqa: N818
    """The request conflicts with stored data; retrying it unchanged fails again."""

    def __init__(self, text: str, clash: Clash = Clash.STORED) -> None:
        super().__init__(text)
        self.clash = clash


class Refusal(KeysteadError):  # noqa: N818
    """A CA cannot fulfil the request because of its state, its certificate or the input; nothing was changed."""


class Unauthenticated(KeysteadError):  # noqa: N818
    """The credential is unknown or no longer valid; `expired` if only its expiry date has passed."""

    def __init__(self, scheme: Scheme, *, expired: bool = False) -> None:
        super().__init__("the credential is not known or no longer valid")
        self.scheme = scheme
        self.expired = expired


class Forbidden(KeysteadError):  # noqa: N818
    """The caller is authenticated but not allowed to do this, or to know whether the resource exists.

    `detail` is the address for Denial.ADDRESS; the sentence for RESOURCE and ADDRESS is the dialect's. `problems` are
    the fields in which a token would have more rights than its creator, for MORE_RIGHTS.
    """

    def __init__(self, denial: Denial, detail: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(detail or "; ".join(problem.text for problem in problems) or "not allowed, or not there")
        self.denial = denial
        self.problems = problems


class LimitReached(KeysteadError):  # noqa: N818
    """A quota is used up, or the operator has disabled the feature."""

    def __init__(self, limit: Limit, text: str) -> None:
        super().__init__(text)
        self.limit = limit


class Unavailable(KeysteadError):  # noqa: N818
    """The database, the keyring or a queue is temporarily unavailable; `retry_after` is in seconds.

    `in_doubt` is True if the change may have been committed.
    """

    def __init__(self, text: str, retry_after: int = 1, *, in_doubt: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.in_doubt = in_doubt


class KeyDamaged(KeysteadError):  # noqa: N818
    """A sealed value cannot be decrypted, or decrypts to another key; `key_id` is the id of its row."""

    def __init__(self, key_id: str, text: str) -> None:
        super().__init__(text)
        self.key_id = key_id


class CertificateDamaged(KeysteadError):  # noqa: N818
    """A stored certificate of a private CA cannot be read; the text names it."""


class Misconfigured(KeysteadError):  # noqa: N818
    """The installation is misconfigured; the text tells the operator how to fix it."""
