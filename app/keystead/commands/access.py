"""How `keystead csr` and `keystead certificate` reach CSRs and certificates: over a server's API, or in the database.

With CLOUDFLARE_BASE_URL and a credential in the environment, as credentials.env sets them, the API is used; without
them the database, as the operator. Both take the same bodies and answer with the objects of the API.
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Concatenate, Protocol
from uuid import UUID

import click
import msgspec

from keystead.caller import Scope
from keystead.certificates import store as certificates
from keystead.certificates import trust
from keystead.cloudflare import custom_certificates, custom_csrs, reading, renewal
from keystead.cloudflare.custom_certificates import CustomCertificate, CustomCertificateChange, CustomCertificateRequest
from keystead.cloudflare.custom_csrs import CustomCsr, CustomCsrRequest
from keystead.cloudflare.renewal import RenewalRequest
from keystead.commands import terminal
from keystead.commands.remote import Remote
from keystead.commands.terminal import Output
from keystead.csrs import store as csrs
from keystead.csrs.model import CsrQuery
from keystead.errors import Advice, Misconfigured, NotFound, quoted
from keystead.identity import accounts, zones
from keystead.ids import canonical_uuid
from keystead.renewal import rules
from keystead.server import first_start
from keystead.services import Services
from keystead.store import scopes
from keystead.x509.subjects import SubjectDefaults


class Access(Protocol):
    """The calls of both ways. Bodies are those of the API; advice is printed to standard error."""

    async def account(self, word: str | None) -> Scope:
        """An account by id, or slug or name; None for the default one. Raises NotFound."""

    async def zones(self, account: Scope) -> Mapping[str, Scope]:
        """The zones of an account by name, with A-labels as hosts have them."""

    async def zone(self, word: str) -> Scope:
        """A zone by id or name; raises NotFound, and Conflict if several have the name."""

    async def csr_subject(self, scope: Scope) -> SubjectDefaults:
        """What the account sets for the subjects of CSRs; with a note, nothing if the credential may not read that."""

    async def create_csr(self, scope: Scope, body: bytes) -> CustomCsr: ...
    async def csrs(self, scope: Scope, query: CsrQuery) -> list[CustomCsr]: ...
    async def csr(self, scope: Scope, csr_id: UUID) -> CustomCsr: ...
    async def delete_csr(self, scope: Scope, csr_id: UUID) -> None: ...
    async def certificate(self, scope: Scope, certificate_id: UUID) -> CustomCertificate: ...
    async def upload(self, scope: Scope, body: bytes) -> CustomCertificate: ...
    async def renew(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate: ...
    async def delete_certificate(self, scope: Scope, certificate_id: UUID) -> None: ...
    async def set_renewal(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate: ...
    async def remove_renewal(self, scope: Scope, certificate_id: UUID) -> None: ...


class Direct:
    """The database, as the operator; raises what the core raises."""

    def __init__(self, services: Services) -> None:
        self._services, self._db, self._caller = services, services.db, terminal.operator()

    async def account(self, word: str | None) -> Scope:
        return Scope((await accounts.find_account(self._db, word or first_start.FIRST_SLUG)).id)

    async def zones(self, account: Scope) -> Mapping[str, Scope]:
        owner = await accounts.get(self._db, account)
        return {zone.name: Scope(zone.account_id, zone.id) for zone in await zones.list_(self._db, owner)}

    async def zone(self, word: str) -> Scope:
        found = await zones.find(self._db, word)
        return Scope(found.account_id, found.id)

    async def csr_subject(self, scope: Scope) -> SubjectDefaults:
        return (await accounts.get(self._db, scope)).csr_subject

    async def create_csr(self, scope: Scope, body: bytes) -> CustomCsr:
        data = reading.decode(body, CustomCsrRequest)
        scope = await scopes.load(self._db, scope.account_id, scope.zone_id)
        csr = await csrs.create(self._services, self._caller, scope, custom_csrs.csr_request(data))
        _note(csrs.advice(csr.request, scope.name_policy))
        return custom_csrs.object_(csr)

    async def csrs(self, scope: Scope, query: CsrQuery) -> list[CustomCsr]:
        found = await csrs.list_(self._db, scope, query, query.per_page or terminal.MAX_ROWS)
        return [custom_csrs.object_(csr) for csr in found.items]

    async def csr(self, scope: Scope, csr_id: UUID) -> CustomCsr:
        return custom_csrs.object_(await csrs.get(self._db, scope, csr_id))

    async def delete_csr(self, scope: Scope, csr_id: UUID) -> None:
        await csrs.delete(self._db, self._caller, scope, csr_id)

    async def certificate(self, scope: Scope, certificate_id: UUID) -> CustomCertificate:
        return custom_certificates.object_(await certificates.get(self._db, scope, certificate_id))

    async def upload(self, scope: Scope, body: bytes) -> CustomCertificate:
        upload = custom_certificates.upload_of(reading.decode(body, CustomCertificateRequest))
        scope = await scopes.load(self._db, scope.account_id, scope.zone_id)
        stored = await certificates.create(self._verifying(), self._caller, scope, upload)
        _note(stored.advice)
        return custom_certificates.object_(stored.certificate)

    async def renew(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate:
        upload = custom_certificates.upload_of(reading.decode(body, CustomCertificateChange))
        scope = await scopes.load(self._db, scope.account_id, scope.zone_id)
        stored = await certificates.update(self._verifying(), self._caller, scope, certificate_id, upload)
        _note(stored.advice)
        return custom_certificates.object_(stored.certificate)

    async def delete_certificate(self, scope: Scope, certificate_id: UUID) -> None:
        await certificates.delete(self._db, self._caller, scope, certificate_id)

    async def set_renewal(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate:
        wanted = renewal.wanted_of(reading.decode(body, RenewalRequest))
        found = await rules.set_(self._db, self._caller, scope, certificate_id, wanted)
        return custom_certificates.renewing(found)

    async def remove_renewal(self, scope: Scope, certificate_id: UUID) -> None:
        await rules.remove(self._db, self._caller, scope, certificate_id)

    def _verifying(self) -> Services:
        return msgspec.structs.replace(self._services, trusted=trust.load(terminal.settings().trust_dir))


def _note(advice: tuple[Advice, ...]) -> None:
    for each in advice:
        terminal.print_note(each.text)


def command(
    group: click.Group, name: str, *, json: bool = True
) -> Callable[[Callable[Concatenate[Access, ...], Awaitable[Output]]], click.Command]:
    """Add an async function of the access and the options as a command; see terminal.command."""

    def add(work: Callable[Concatenate[Access, ...], Awaitable[Output]]) -> click.Command:
        @functools.wraps(work)
        def run(**options: object) -> Output:
            remote = Remote.from_environment(os.environ)
            if remote is not None:
                return asyncio.run(_run(work(remote, **options)))
            return terminal.run(lambda services: work(Direct(services), **options))

        return terminal.printing(group, name, run, json=json)

    return add


async def _run(work: Awaitable[Output]) -> Output:
    return await work


async def places(access: Access, account: str | None, zone: str | None) -> list[Scope]:
    """Where an id is looked for: the zone, or else the account and its zones."""
    if zone is not None:
        return [await access.zone(zone)]
    owner = await access.account(account)
    return [owner, *(await access.zones(owner)).values()]


async def find_csr(access: Access, among: list[Scope], word: str) -> tuple[Scope, CustomCsr]:
    """The CSR with this id, and where it is; raises NotFound."""
    csr_id = canonical_uuid(word)
    if csr_id is not None:
        for scope in among:
            with contextlib.suppress(NotFound):
                return scope, await access.csr(scope, csr_id)
    raise NotFound(f"there is no custom CSR {quoted(word)}; `keystead csr list` shows their ids")


async def find_certificate(access: Access, among: list[Scope], word: str) -> tuple[Scope, CustomCertificate]:
    """The certificate with this id, and its zone; raises NotFound."""
    certificate_id = canonical_uuid(word)
    if certificate_id is not None:
        for scope in (each for each in among if each.zone_id):
            with contextlib.suppress(NotFound):
                return scope, await access.certificate(scope, certificate_id)
    raise NotFound(f"there is no certificate {quoted(word)}; `keystead certificate list` shows their ids")


async def zone_of(access: Access, account: str | None, zone: str | None, hosts: list[str]) -> Scope:
    """The zone for a certificate of these hosts: the named one, or the one with the longest name above a host."""
    if zone is not None:
        return await access.zone(zone)
    known = await access.zones(await access.account(account))
    above = [name for name in known if any(host == name or host.endswith(f".{name}") for host in hosts)]
    if not above:
        raise Misconfigured(
            f"no zone is above {quoted(hosts[0]) if hosts else 'a certificate without hosts'}: add --zone"
        )
    return known[max(above, key=len)]
