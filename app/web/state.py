"""The resources that a worker process shares between requests."""

import msgspec

from app.addresses import Network
from app.audit.failures import Failures
from app.config import RateLimit
from app.identity.admission import Memory
from app.services import Services
from app.web.handling import AnyConnection
from app.web.limits import Limiter


class State(msgspec.Struct, frozen=True):
    services: Services
    limiter: Limiter
    memory: Memory
    failures: Failures
    rate_limit: RateLimit | None
    public_url: str
    metrics_from: tuple[Network, ...]
    proxies: tuple[Network, ...]

    def __repr__(self) -> str:
        return "State()"


def state_of(connection: AnyConnection) -> State:
    """The state of the application that serves this request."""
    # By key: as an attribute it is looked for in vain first.
    state: State = connection.app.state["shared"]
    return state
