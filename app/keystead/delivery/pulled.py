"""What delivery tokens open, in memory: certificates by their hosts, with their keys sealed, followed as they change.

Keys are opened for each answer and not kept (docs/decisions/0053-keys-opened-for-each-answer.md).
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar
from uuid import UUID

import msgspec

from keystead import metrics
from keystead.certificates import following
from keystead.certificates.model import Certificate
from keystead.custody import keyring
from keystead.custody.keyring import Held
from keystead.delivery import choosing
from keystead.errors import Unavailable
from keystead.identity import delivery_tokens
from keystead.identity.delivery_tokens import Known, Reach
from keystead.services import Services
from keystead.x509 import chains

T = TypeVar("T")
# How soon a revoked token, and a changed certificate, are seen; a revoked certificate; and what no cursor tells.
TOKEN_SECONDS, CERTIFICATE_SECONDS, REVOKED_SECONDS, LOOK_SECONDS = 0.5, 1.0, 10.0, 60.0
# How long what is in memory is believed while the database cannot be asked.
BELIEVED_SECONDS = 30.0
# Certificates that one statement reads, and that are taken in before others are answered.
_READ, _TAKEN = 200, 10


class Entry(msgspec.Struct, frozen=True):
    """A certificate with its sealed key, and what was read of its chain."""

    certificate: Certificate
    held: Held
    spki_sha256: bytes
    serials: frozenset[int]
    version: str


class Pulled:
    """Followed by `follow_tokens` and `follow_certificates`, each again and again."""

    def __init__(self) -> None:
        self.tokens = Known()
        self._stamps = ("", "")
        self._entries: dict[UUID, Entry] = {}
        # The latest first.
        self._by_host: dict[tuple[UUID, str], tuple[Entry, ...]] = {}
        self._zones: dict[UUID, dict[UUID, Entry]] = {}
        self._revoked: set[UUID] = set()
        # Zones that have been read; and whether some certificates are not here, as there are too many.
        self._read: frozenset[tuple[UUID, UUID]] = frozenset()
        self._is_full = False
        self._tokens_at = self._certificates_at = self._looked_at = self._revoked_at = float("-inf")

    def require_fresh(self, reach: Reach) -> None:
        """Raise Unavailable if the zone has not been read yet, or all of it too long ago."""
        if min(self._tokens_at, self._certificates_at) < time.monotonic() - BELIEVED_SECONDS:
            raise Unavailable("the database is not available")
        if (reach.account_id, reach.zone_id) not in self._read:
            raise Unavailable("the zone of this token is being read")

    def for_host(self, reach: Reach, host: str) -> Entry | None:
        """The certificate that serves a host best; raises Unavailable if it is not known whether there is one."""
        if reach.host is None or choosing.within(host, reach.host):
            now = datetime.now(UTC)
            for name in choosing.names_for(host):
                for entry in self._by_host.get((reach.zone_id, name), ()):
                    if self._opens(reach, entry, now):
                        return entry
            if self._is_full:
                raise Unavailable("there are more certificates than this listener can have")
        return None

    def one(self, reach: Reach, certificate_id: UUID) -> Entry | None:
        entry = self._zones.get(reach.zone_id, {}).get(certificate_id)
        return entry if entry and self._opens(reach, entry, datetime.now(UTC)) else None

    async def all_of(self, reach: Reach) -> list[Entry]:
        """All that are opened, the latest first."""
        now = datetime.now(UTC)
        found: list[Entry] = []
        for some in _parts(list(self._zones.get(reach.zone_id, {}).values()), _READ):
            found += [entry for entry in some if self._opens(reach, entry, now)]
            await asyncio.sleep(0)
        return sorted(found, key=_uploaded, reverse=True)

    def _opens(self, reach: Reach, entry: Entry, now: datetime) -> bool:
        certificate = entry.certificate
        return (
            reach.certificate_id in (None, certificate.id)
            and (reach.host is None or choosing.serves(map(str.lower, certificate.hosts), reach.host))
            and choosing.lasts(certificate, now)
            and certificate.id not in self._revoked
        )

    async def follow_tokens(self, services: Services) -> None:
        """Read the tokens again if they have changed."""
        since = time.monotonic()
        stamp = await delivery_tokens.stamp(services.db)
        if stamp != self._stamps[0]:
            self.tokens = await delivery_tokens.known(services.db)
            self._stamps = (stamp, self._stamps[1])
        self._tokens_at = since

    async def follow_certificates(self, services: Services) -> None:
        """Read again what has changed in the zones of the tokens."""
        since = time.monotonic()
        reaches = [token.reach for token in self.tokens.by_digest.values()]
        places = frozenset((reach.account_id, reach.zone_id) for reach in reaches)
        stamp = await following.stamp(services.db, places)
        changed = stamp != self._stamps[1] or places != self._read
        if changed or since > self._looked_at + LOOK_SECONDS:
            await self._look(services, places)
            self._stamps, self._read, self._looked_at = (self._stamps[0], stamp), places, since
        if since > self._revoked_at + REVOKED_SECONDS:
            self._revoked = await _revoked(services, list(self._entries.values()))
            self._revoked_at = since
        self._certificates_at = since
        metrics.followed(len(self._entries))

    async def _look(self, services: Services, places: frozenset[tuple[UUID, UUID]]) -> None:
        lasting = await following.lasting(services.db, places) if places else []
        ids: set[UUID] = set()
        stale: dict[UUID, list[UUID]] = {}
        for some_lasting in _parts(lasting, _READ):
            for account_id, id_, modified_at in some_lasting:
                ids.add(id_)
                entry = self._entries.get(id_)
                if entry is None or entry.certificate.modified_at != modified_at:
                    stale.setdefault(account_id, []).append(id_)
            await asyncio.sleep(0)
        for id_ in self._entries.keys() - ids:
            self._drop(id_)
        for account_id, of_account in stale.items():
            for some in _parts(of_account, _READ):
                await self._take_some(services, account_id, some)
                # A zone that is new and large makes what is here no less true.
                self._certificates_at = time.monotonic()
        self._is_full = len(lasting) >= following.MOST_FOLLOWED

    async def _take_some(self, services: Services, account_id: UUID, ids: Sequence[UUID]) -> None:
        found = await following.some(services.db, account_id, ids)
        held = await keyring.held(services.db, account_id, {each.key_id for each in found})
        entries = []
        for some_found in _parts(found, _TAKEN):
            entries += [entry for each in some_found if (entry := _entry(each, held.get(each.key_id)))]
            await asyncio.sleep(0)
        # Known before the certificate is.
        self._revoked = (self._revoked - set(ids)) | await _revoked(services, entries)
        for certificate_id in ids:
            self._drop(certificate_id)
        for entry in entries:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        certificate = entry.certificate
        self._entries[certificate.id] = entry
        self._zones.setdefault(certificate.zone_id, {})[certificate.id] = entry
        for key in _keys(certificate):
            those = (*self._by_host.get(key, ()), entry)
            self._by_host[key] = tuple(sorted(those, key=_uploaded, reverse=True))

    def _drop(self, certificate_id: UUID) -> None:
        entry = self._entries.pop(certificate_id, None)
        if entry is None:
            return
        certificate = entry.certificate
        del self._zones[certificate.zone_id][certificate_id]
        for key in _keys(certificate):
            if left := tuple(each for each in self._by_host[key] if each is not entry):
                self._by_host[key] = left
            else:
                del self._by_host[key]


async def _revoked(services: Services, entries: Iterable[Entry]) -> set[UUID]:
    of_accounts: dict[UUID, list[Entry]] = {}
    for entry in entries:
        of_accounts.setdefault(entry.certificate.account_id, []).append(entry)
    found: set[UUID] = set()
    for account_id, of_account in of_accounts.items():
        for some in _parts(of_account, _READ):
            serials = {each.certificate.id: each.serials for each in some}
            found |= await choosing.revoked_of(services.db, account_id, serials)
    return found


def _entry(certificate: Certificate, held: Held | None) -> Entry | None:
    """None for a certificate whose key was exchanged or deleted just now, or that is damaged."""
    if held is None:
        return None
    try:
        chain = chains.stored(certificate.chain)
    except ValueError:
        return None
    serials = frozenset(each.serial_number for each in chain)
    return Entry(certificate, held, chains.spki_digest(chain[0]), serials, choosing.version(certificate))


def _keys(certificate: Certificate) -> set[tuple[UUID, str]]:
    return {(certificate.zone_id, host.lower()) for host in certificate.hosts}


def _uploaded(entry: Entry) -> tuple[datetime, UUID]:
    return entry.certificate.uploaded_at, entry.certificate.id


def _parts(all_: Iterable[T], most: int) -> Iterator[list[T]]:
    rest = iter(all_)
    while some := list(islice(rest, most)):
        yield some
