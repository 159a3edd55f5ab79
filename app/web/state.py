"""The resources that a worker process shares between requests."""

import msgspec

from app.addresses import Network
from app.audit.failures import Failures
from app.config import RateLimit
from app.custody.keypool import KeyPool
from app.custody.peppers import Peppers
from app.custody.ring import Ring
from app.identity.admission import Memory
from app.store.database import Database
from app.web.limits import Limiter
from app.x509.chains import Anchors


class House(msgspec.Struct, frozen=True):
    db: Database
    ring: Ring
    peppers: Peppers
    pool: KeyPool
    trusted: Anchors
    limiter: Limiter
    memory: Memory
    failures: Failures
    rate_limit: RateLimit | None
    public_url: str
    pki_url: str | None
    metrics_from: tuple[Network, ...]
    proxies: tuple[Network, ...]

    def __repr__(self) -> str:
        return "House()"
