"""The kinds of failure that the core knows.

No HTTP status and no wire code appears here: each dialect has one table from these kinds to its own answers.
Texts are for the caller of the API, so they may quote what that caller sent, and nothing else.
"""

import json
from enum import Enum, auto

import msgspec


def quoted(value: str) -> str:
    """The caller's own value for a sentence: ASCII escapes only, cut at 64 characters."""
    return json.dumps(value) if len(value) <= 64 else json.dumps(value[:64])[:-1] + '…"'


class Rule(Enum):
    """Which rule a value broke. A dialect turns (rule, field) into its code."""

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
    WIDER = auto()


class Hint(Enum):
    """What a request that is accepted should still be told. A dialect turns it into its code."""

    UNKNOWN_FIELD = auto()
    COMMON_NAME_NOT_IN_SANS = auto()
    ORGANIZATIONAL_UNIT = auto()
    DUPLICATES = auto()
    PUBLIC_WOULD_REFUSE = auto()
    OLD_KEY = auto()
    OTHER = auto()


class Problem(msgspec.Struct, frozen=True):
    """One broken rule; `text` is a sentence for the caller.

    `field` and its `index` or `member` say where; a member further down is written as JSON pointers are (RFC 6901).
    """

    rule: Rule
    field: str
    text: str
    index: int | None = None
    member: str | None = None


class Advice(msgspec.Struct, frozen=True):
    """A remark about a request that was accepted; places as in Problem."""

    hint: Hint
    field: str
    text: str
    index: int | None = None


class Scheme(Enum):
    """How a caller says who they are."""

    TOKEN = auto()
    GLOBAL_KEY = auto()


class Denial(Enum):
    """Why a known caller may not: the thing is not theirs, the address is not allowed, or it is more than they have."""

    RESOURCE = auto()
    ADDRESS = auto()
    WIDER = auto()


class Thing(Enum):
    """What is not there."""

    CSR = auto()
    CERTIFICATE = auto()
    CSR_OF_CERTIFICATE = auto()
    TOKEN = auto()
    SCOPE = auto()
    OTHER = auto()


class Limit(Enum):
    """What ran out or is switched off; LIST is the bound that every list has."""

    CSR_QUOTA = auto()
    CERTIFICATE_QUOTA = auto()
    CSRS_OFF = auto()
    LIST = auto()


class KeysteadError(Exception):
    """The root of our kinds; anything else that is raised is a bug or a broken world."""


class Invalid(KeysteadError):  # noqa: N818 - the kinds read as states of the world, not as suffixes
    """The request's content breaks rules; nothing was changed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = problems


class NotFound(KeysteadError):  # noqa: N818
    """There is no such thing in the caller's scope."""

    def __init__(self, text: str, thing: Thing = Thing.OTHER) -> None:
        super().__init__(text)
        self.thing = thing


class Clash(Enum):
    """What a request contradicts."""

    IDEMPOTENCY_KEY = auto()
    IN_USE = auto()
    SAME_CERTIFICATE = auto()
    SAME_ZONE = auto()
    HOLDS = auto()
    LAST_ADMINISTRATOR = auto()
    CHANGED = auto()
    STORED = auto()


class Conflict(KeysteadError):  # noqa: N818
    """What was asked contradicts what is stored; repeating it unchanged will not help."""

    def __init__(self, text: str, clash: Clash = Clash.STORED) -> None:
        super().__init__(text)
        self.clash = clash


class Refusal(KeysteadError):  # noqa: N818
    """A CA does not do what was asked: its state, its certificate or what was sent forbids it. Nothing was changed."""


class Unauthenticated(KeysteadError):  # noqa: N818
    """The credential is not known, or is no longer valid; `expired` is one whose time is over."""

    def __init__(self, scheme: Scheme, *, expired: bool = False) -> None:
        super().__init__("the credential is not known or no longer valid")
        self.scheme = scheme
        self.expired = expired


class Forbidden(KeysteadError):  # noqa: N818
    """The caller is known and may not do this, or the thing is not there for this caller."""

    def __init__(self, denial: Denial, text: str) -> None:
        super().__init__(text)
        self.denial = denial


class Wider(Forbidden):
    """A token would be allowed more than whoever makes it; the problems say in what. Nothing was changed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(Denial.WIDER, "; ".join(problem.text for problem in problems))
        self.problems = problems


class LimitReached(KeysteadError):  # noqa: N818
    """A quota is used up, or the operator has switched the feature off."""

    def __init__(self, limit: Limit, text: str) -> None:
        super().__init__(text)
        self.limit = limit


class Unavailable(KeysteadError):  # noqa: N818
    """The database, the ring or the key queue cannot serve now; `retry_after` is in whole seconds.

    `in_doubt` when what was asked may have been done all the same.
    """

    def __init__(self, text: str, retry_after: int = 1, *, in_doubt: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.in_doubt = in_doubt


class KeyDamaged(KeysteadError):  # noqa: N818
    """A sealed value does not open, or opens to a key that is not its row's; `key_id` names the row."""

    def __init__(self, key_id: str, text: str) -> None:
        super().__init__(text)
        self.key_id = key_id


class Misconfigured(KeysteadError):  # noqa: N818
    """The installation cannot start as it is; the text says what would make it start."""
