"""What the subjects work with, so that it is passed as one."""

import msgspec

from keystead.custody.keypool import KeyPool
from keystead.custody.peppers import Peppers
from keystead.custody.ring import Ring
from keystead.store.database import Database
from keystead.x509.chains import Anchors


class Services(msgspec.Struct, frozen=True):
    """Opened once by a process. `pki_url` is the address that issued certificates name for CRLs; None for none.

    CAs and their opened keys are remembered for `cas_remembered` seconds (docs/decisions/0040-opened-for-a-second.md).
    `tell` is the operator's program that is told of renewals, if there is one.
    """

    db: Database
    ring: Ring
    peppers: Peppers
    pool: KeyPool
    trusted: Anchors
    pki_url: str | None = None
    cas_remembered: float = 0
    tell: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Services()"


def for_command(db: Database, ring: Ring, peppers: Peppers, pki_url: str | None = None) -> Services:
    """Services of a command: keys are generated when asked for, and no uploads are verified."""
    return Services(db, ring, peppers, KeyPool(), Anchors({}), pki_url)
