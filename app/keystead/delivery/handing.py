"""Handing keys to TLS servers that ask: noted before they leave, opened for the answer alone, and counted."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import structlog

from keystead import metrics
from keystead.caller import Caller
from keystead.certificates import deliveries
from keystead.certificates.deliveries import Pair
from keystead.certificates.export import Exported, opened
from keystead.custody import keyring
from keystead.delivery.pulled import Entry
from keystead.errors import KeyDamaged, NotFound
from keystead.identity.delivery_tokens import DeliveryToken
from keystead.services import Services

_log = structlog.get_logger("keystead.delivery")
# A listener that is killed loses the counts of this time.
COUNT_SECONDS = 10.0
# Keys that are opened before others are answered.
_AT_ONCE = 5


class Hands:
    """Knows which keys have left for which token, as others may have noted before."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._noted: set[Pair] = set()
        self._counts: Counter[Pair] = Counter()

    async def recall(self, token_ids: Sequence[UUID]) -> None:
        """Read what was noted for these tokens, so that their next request does not wait for the database."""
        self._noted = await deliveries.known(self._services.db, token_ids)

    async def hand(
        self, caller: Caller, token: DeliveryToken, entries: Sequence[Entry], way: str
    ) -> list[tuple[Entry, Exported]]:
        """The chains and keys of certificates; without those that were deleted or renewed just now, or are damaged."""
        entries = await self._note(caller, token, entries)
        handed = []
        for number, entry in enumerate(entries, 1):
            try:
                handed.append((entry, await self._opened(caller, entry)))
            except (KeyDamaged, NotFound) as error:
                _log.error("a key cannot be delivered", reason=str(error))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self._counts.update(_pair(token, entry) for entry, _ in handed)
        metrics.keys_delivered(way, len(handed))
        return handed

    async def _note(self, caller: Caller, token: DeliveryToken, entries: Sequence[Entry]) -> list[Entry]:
        new = [entry for entry in entries if _pair(token, entry) not in self._noted]
        if not new:
            return list(entries)
        present = await deliveries.first(self._services.db, caller, token.id, [each.certificate for each in new])
        gone = {each.certificate.id for each in new if (each.certificate.id, each.certificate.key_id) not in present}
        if len(self._noted) > deliveries.MOST:
            self._noted.clear()
        self._noted |= {_pair(token, each) for each in new if each.certificate.id not in gone}
        return [each for each in entries if each.certificate.id not in gone]

    async def _opened(self, caller: Caller, entry: Entry) -> Exported:
        services, certificate = self._services, entry.certificate
        try:
            return opened(services.ring, certificate, entry.held, entry.spki_sha256)
        except KeyDamaged:
            # It may have been re-wrapped since; what is damaged in the database too is audited there.
            key = (certificate.account_id, certificate.key_id)
            await keyring.open_key(services.db, services.ring, caller, (*key, entry.spki_sha256))
            held = await keyring.held(services.db, certificate.account_id, [certificate.key_id])
            return opened(services.ring, certificate, held[certificate.key_id], entry.spki_sha256)

    async def count(self) -> None:
        """Write how often keys have left; counts are kept on errors."""
        counts, self._counts = self._counts, Counter()
        try:
            if counts:
                await deliveries.count(self._services.db, counts)
        except BaseException:
            self._counts.update(counts)
            raise


def _pair(token: DeliveryToken, entry: Entry) -> Pair:
    return entry.certificate.account_id, entry.certificate.key_id, token.id
