"""`/cert-manager/ca`: CAs as the newer calls write them, flat (contract-infisical, "Today's prefix")."""

from typing import Annotated, Literal

import msgspec
from litestar import Controller
from msgspec import UNSET, Meta, UnsetType

from keystead import times
from keystead.ca import authorities, lifecycle
from keystead.ca.authorities import Changes, NewAuthority
from keystead.ca.lifecycle import OwnCertificate
from keystead.ca.model import Authority, NotAfterPolicy
from keystead.errors import NotFound
from keystead.ids import canonical_uuid
from keystead.infisical import ca, guard, wire
from keystead.infisical.ca import CaCertificate, Deletion, NewConfiguration, PathLength
from keystead.infisical.guard import Action
from keystead.infisical.reading import Body, Date, Query, RequiredDate
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import delete, get, patch, post


class Configuration(msgspec.Struct, frozen=True, rename="camel"):
    """The part of a CA that the newer calls nest."""

    type: str
    friendly_name: str
    organization: str
    ou: str
    country: str
    province: str
    locality: str
    common_name: str
    dn: str
    parent_ca_id: Uuid | None
    serial_number: str | None
    max_path_length: int
    key_algorithm: str
    active_ca_cert_id: Uuid | None
    not_before: Instant | UnsetType = UNSET
    not_after: Instant | UnsetType = UNSET


class InternalCa(msgspec.Struct, frozen=True, rename="camel"):
    """A CA as the newer calls answer it."""

    id: Uuid
    name: str
    project_id: Uuid
    status: str
    type: str
    enable_direct_issuance: bool
    not_after_policy: NotAfterPolicy
    configuration: Configuration


class InternalCas(msgspec.Struct, frozen=True, rename="camel"):
    certificate_authorities: list[InternalCa]


class ProjectFilter(msgspec.Struct, frozen=True, rename="camel"):
    """The project may be left out by a token that reaches one alone."""

    project_id: Uuid | None = None


class InternalCaRequest(msgspec.Struct, frozen=True, rename="camel"):
    """A new CA. One that is created active without a certificate waits for it."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    status: Literal["active", "disabled"]
    configuration: NewConfiguration
    project_id: Uuid | None = None
    enable_direct_issuance: bool | None = True
    not_after_policy: NotAfterPolicy | None = None


class InternalCaChange(msgspec.Struct, frozen=True, rename="camel"):
    """What is left out stays."""

    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    status: Literal["active", "disabled"] | None = None
    enable_direct_issuance: bool | None = None
    require_template_for_issuance: bool | None = None
    not_after_policy: NotAfterPolicy | None = None


class OwnCertificateRequest(msgspec.Struct, frozen=True, rename="camel"):
    """The dates of a CA's own certificate, and the CA above an intermediate."""

    not_after: RequiredDate
    not_before: Date | None = None
    max_path_length: PathLength | None = -1
    parent_ca_id: Uuid | None = None


class OneCertificate(CaCertificate, frozen=True, rename="camel"):
    """Without dates: whoever asked for it compares their text."""

    parent_ca_id: Uuid | None
    max_path_length: int


class AllCas(Controller):
    path = "/cert-manager/ca"
    tags = ca.TAGS

    @get()
    async def list_(self, context: CallerContext, filters: Query[ProjectFilter]) -> InternalCas:
        """List the CAs of an account, of whatever kind."""
        return InternalCas(await _listed(context, filters))


class Cas(Controller):
    path = "/cert-manager/ca/internal"
    tags = ca.TAGS

    @get()
    async def list_(self, context: CallerContext, filters: Query[ProjectFilter]) -> list[InternalCa]:
        """List the CAs of an account."""
        return await _listed(context, filters)

    @post()
    async def create(self, context: CallerContext, data: Body[InternalCaRequest]) -> InternalCa:
        """Make a CA; its status is answered as it was asked for."""
        scope = await guard.project(context.state, context.caller, data.project_id, Action.CREATE)
        made = await lifecycle.create(context.services, context.caller, scope, _new(data))
        return msgspec.structs.replace(_flat(made), status=data.status)


class NewerCa(Controller):
    """One CA under its newer path."""

    path = "/cert-manager/ca/internal/{ca_id:str}"
    tags = ca.TAGS

    @get(action=Action.READ)
    async def get_one(self, context: ScopeContext, ca_id: str) -> InternalCa:
        """Get a CA."""
        return _flat(await authorities.viewed(context.services.db, *ca.one(context, ca_id)))

    @patch(action=Action.EDIT)
    async def edit(self, context: ScopeContext, data: Body[InternalCaChange], ca_id: str) -> InternalCa:
        """Rename a CA, enable or disable it, or change its rules."""
        template = data.require_template_for_issuance
        if template is None and data.enable_direct_issuance is not None:
            template = not data.enable_direct_issuance
        disabled = data.status == "disabled" if data.status else None
        changes = Changes(disabled, template, data.name, data.not_after_policy, may_be_pending=True)
        return _flat(await authorities.change(context.services.db, *ca.one(context, ca_id), changes))

    @delete(action=Action.DELETE)
    async def delete_one(self, context: ScopeContext, query: Query[Deletion], ca_id: str) -> InternalCa:
        """Delete a CA and destroy its key, by force after revoking what it signed."""
        return _flat(await ca.deleted(context, query, ca_id))

    @post("/certificate", action=Action.RENEW)
    async def certify(self, context: ScopeContext, data: Body[OwnCertificateRequest], ca_id: str) -> CaCertificate:
        """Give a CA its certificate: a root signs itself, an intermediate is signed by the CA above it."""
        parent_id = canonical_uuid(data.parent_ca_id) if data.parent_ca_id else None
        if data.parent_ca_id and parent_id is None:
            raise NotFound(f"CA with ID '{data.parent_ca_id}' not found")
        wanted = OwnCertificate(
            not_before=times.date(data.not_before or ""),
            not_after=ca.required_date(data.not_after),
            max_path_length=-1 if data.max_path_length is None else data.max_path_length,
            parent_id=parent_id,
        )
        return ca.own_certificate(await lifecycle.certify(context.services, *ca.one(context, ca_id), wanted))

    @get("/certificate/{cert_id:str}", action=Action.READ)
    async def one_certificate(self, context: ScopeContext, ca_id: str, cert_id: str) -> OneCertificate:
        """Get one of the certificates that a CA has had."""
        found = canonical_uuid(cert_id)
        if found is None:
            raise NotFound(f"CA certificate with ID '{cert_id}' not found")
        authority = await authorities.viewed(context.services.db, *ca.one(context, ca_id))
        version = await lifecycle.version(context.services.db, authority, found)
        return OneCertificate(
            certificate=wire.shown(version.pem),
            certificate_chain=wire.shown(version.chain),
            serial_number=version.serial,
            cert_id=str(version.id),
            parent_ca_id=str(authority.parent_id) if authority.parent_id else None,
            max_path_length=-1 if version.path_length is None else version.path_length,
        )


async def _listed(context: CallerContext, filters: ProjectFilter) -> list[InternalCa]:
    scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
    return [_flat(each) for each in await authorities.list_(context.services.db, context.caller, scope)]


def _new(data: InternalCaRequest) -> NewAuthority:
    return msgspec.structs.replace(
        ca.new_authority(data.configuration),
        requires_template=data.enable_direct_issuance is False,
        name=data.name,
        not_after_policy=data.not_after_policy or NotAfterPolicy.REFUSE,
        disabled=data.status == "disabled",
    )


def _flat(authority: Authority) -> InternalCa:
    found = ca.ca_object(authority)
    shared = {name: getattr(found, name) for name in Configuration.__struct_fields__}
    return InternalCa(
        id=found.id,
        name=found.name,
        project_id=found.project_id,
        status=found.status,
        type="internal",
        enable_direct_issuance=found.enable_direct_issuance,
        not_after_policy=found.not_after_policy,
        configuration=Configuration(**shared),
    )
