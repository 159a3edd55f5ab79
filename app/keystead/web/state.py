"""The resources that a worker process shares between requests."""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import msgspec

from keystead.addresses import Address, Network, network_of
from keystead.audit.failures import Failures
from keystead.config import RateLimit
from keystead.identity.memory import Memory
from keystead.services import Services
from keystead.store.database import Database
from keystead.store.standby import Standby
from keystead.web.handling import AnyConnection
from keystead.web.limits import Limiter

T = TypeVar("T")


class State(msgspec.Struct, frozen=True):
    services: Services
    limiter: Limiter
    memory: Memory
    failures: Failures
    rate_limit: RateLimit | None
    public_url: str
    metrics_from: tuple[Network, ...]
    proxies: tuple[Network, ...]
    standby: Standby | None = None

    def __repr__(self) -> str:
        return "State()"

    def count(self, connection: AnyConnection, caller_id: UUID) -> int:
        """Count a request of a known caller; the seconds that it must wait if it is above the rate limit, else 0."""
        request = connection.scope["state"]
        request["caller_id"] = caller_id
        if self.standby and request["request_info"].method not in {"GET", "HEAD"}:
            request["noted"] = self.standby.writes.noted(caller_id)
        if self.rate_limit is None:
            return 0
        request["verdict"] = verdict = self.limiter.hit(b"caller" + caller_id.bytes, self.rate_limit)
        return verdict.retry_after

    async def read(self, caller_id: UUID, work: Callable[[Database], Awaitable[T]]) -> T:
        """What `work` reads for a caller, perhaps from a standby, and never older than what the caller wrote."""
        if self.standby:
            return await self.standby.read(caller_id, work)
        return await work(self.services.db)

    def count_failure(self, address: Address | None) -> int:
        """Count a failed authentication of an address (IPv6: its /64), at a tenth of the rate; as `count`."""
        self.failures.count(address)
        if self.rate_limit is None:
            return 0
        network = network_of(address) if address else None
        rate = RateLimit(max(1, self.rate_limit.quota // 10), self.rate_limit.window)
        return self.limiter.hit(b"address" + str(network).encode(), rate).retry_after


def state_of(connection: AnyConnection) -> State:
    """The state of the application that serves this request."""
    # By key: as an attribute it is looked for in vain first.
    state: State = connection.app.state["shared"]
    return state
