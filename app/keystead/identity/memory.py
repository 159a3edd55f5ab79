"""What a worker remembers for a second: the rows of credentials and scopes, and what callers may do.

The second counts from before the database was asked, so that a token that is revoked, rolled, disabled or narrowed
stops working within a second in every worker. Failures are not remembered
(docs/decisions/0016-callers-remembered-for-a-second.md).
"""

import hashlib
import secrets
import time
from typing import Generic, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from keystead.caller import Access, Area, Caller, Level, RequestInfo, Scope

REMEMBERED_SECONDS = 1.0
MOST_REMEMBERED = 4096
K = TypeVar("K")
V = TypeVar("V")


class TokenCredential(msgspec.Struct, frozen=True):
    """An API token or, if `access` is set, also an access token."""

    value: str
    access: bool = False

    def __repr__(self) -> str:
        return "TokenCredential()"


class KeyCredential(msgspec.Struct, frozen=True):
    email: str
    key: str

    def __repr__(self) -> str:
        return f"KeyCredential({self.email})"


Credential = TokenCredential | KeyCredential


class ScopeRef(msgspec.Struct, frozen=True):
    """The account or zone that a path names, existing or not."""

    level: Level
    id: UUID


class Admission(msgspec.Struct, frozen=True):
    """A caller and the scope of the path: None if it does not exist, `gone` if it was deleted.

    `remembered` is False if it was read from the database for this request.
    """

    caller: Caller
    scope: Scope | None
    gone: bool
    remembered: bool = False


class _Entry(msgspec.Struct, Generic[V]):
    since: float
    value: V
    renewing: bool = False


class _Cache(Generic[K, V]):
    """The latest values by key, at most MOST_REMEMBERED; the oldest are dropped first.

    When an entry has reached half of its age, one reader gets None and so renews it, while the others still get the
    value; otherwise all of them would ask the database at once, each second.
    """

    def __init__(self) -> None:
        self._entries: dict[K, _Entry[V]] = {}

    def get(self, key: K, seconds: float) -> V | None:
        entry, now = self._entries.get(key), time.monotonic()
        if entry is None or entry.since <= now - seconds:
            return None
        if entry.since <= now - seconds / 2 and not entry.renewing:
            entry.renewing = True
            return None
        return entry.value

    def since(self, key: K) -> float:
        entry = self._entries.get(key)
        return entry.since if entry else float("-inf")

    def put(self, key: K, value: V, since: float, oldest: float) -> None:
        """Remember a value that was found at `since`; drops those from `oldest` and before."""
        self._entries.pop(key, None)
        while self._entries:
            first = next(iter(self._entries))
            if self._entries[first].since > oldest and len(self._entries) < MOST_REMEMBERED:
                break
            del self._entries[first]
        self._entries[key] = _Entry(since, value)


class Memory:
    """What one worker found in the last `seconds`, by digests of the credentials under a key of this process."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS) -> None:
        self.seconds = seconds
        self._secret = secrets.token_bytes(32)
        self._callers: _Cache[bytes, asyncpg.Record] = _Cache()
        self._scopes: _Cache[ScopeRef, asyncpg.Record] = _Cache()
        self._allowed: _Cache[tuple[bytes, ScopeRef, Area, Access], tuple[Caller, Scope]] = _Cache()

    def caller(self, credential: Credential) -> asyncpg.Record | None:
        return self._callers.get(self._digest(credential), self.seconds)

    def scope(self, ref: ScopeRef) -> asyncpg.Record | None:
        return self._scopes.get(ref, self.seconds)

    def keep(self, since: float, row: asyncpg.Record, credential: Credential, ref: ScopeRef | None = None) -> None:
        """Remember the row of a valid credential, and of `ref` if it exists; `since` is when its statement began."""
        self._callers.put(self._digest(credential), row, since, since - self.seconds)
        if ref and row["account_id"] is not None:
            self._scopes.put(ref, row, since, since - self.seconds)

    def allow(self, credential: Credential, ref: ScopeRef, area: Area, access: Access, admitted: Admission) -> None:
        """Remember that the caller has this permission, for as long as the rows that it follows from."""
        caller, scope = admitted.caller, admitted.scope
        digest, oldest = self._digest(credential), time.monotonic() - self.seconds
        since = min(self._callers.since(digest), self._scopes.since(ref))
        # Addresses and expiry are checked for each request.
        checked_again = caller.condition or caller.expires_on
        if scope and not admitted.gone and not checked_again and since > oldest:
            self._allowed.put((digest, ref, area, access), (caller, scope), since, oldest)

    def allowed(
        self, credential: Credential, ref: ScopeRef, area: Area, access: Access, request: RequestInfo
    ) -> tuple[Caller, Scope] | None:
        """The caller and the scope, if it is remembered that the caller has this permission there."""
        found = self._allowed.get((self._digest(credential), ref, area, access), self.seconds)
        return (with_request(found[0], request), found[1]) if found else None

    def _digest(self, credential: Credential) -> bytes:
        if isinstance(credential, TokenCredential):
            text = f"{credential.access}\n{credential.value}"
        else:
            text = f"{credential.email.lower()}\n{credential.key}"
        return hashlib.blake2b(text.encode(), digest_size=32, key=self._secret).digest()


def with_request(caller: Caller, request: RequestInfo) -> Caller:
    # Not structs.asdict, which takes three times as long in each request.
    return msgspec.structs.replace(
        caller,
        address=request.address,
        request_id=request.request_id,
        method=request.method,
        path=request.path,
        user_agent=request.user_agent,
        status=request.status,
        denied_status=request.denied_status,
    )
