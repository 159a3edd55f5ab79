"""CRLs: in PEM for the account, and in DER without authentication (contract-infisical, "Leaves")."""

from uuid import UUID

import msgspec
from litestar import Controller, Response

from keystead.ca import authorities, crls
from keystead.errors import NotFound
from keystead.ids import canonical_uuid
from keystead.infisical import wire
from keystead.infisical.ca import TAGS
from keystead.infisical.guard import Action
from keystead.infisical.wire import Uuid
from keystead.web.context import ScopeContext
from keystead.web.handling import AnyRequest, get
from keystead.web.state import state_of
from keystead.x509 import crl as crl_bytes


class Crl(msgspec.Struct, frozen=True):
    crl: str


class IdentifiedCrl(msgspec.Struct, frozen=True):
    """A CA has one CRL, and its id is the CA's."""

    id: Uuid
    crl: str


class CaCrls(Controller):
    """The CRL of one CA, mounted under both paths of the CA."""

    tags = TAGS

    @get("/crl", action=Action.READ)
    async def crl(self, context: ScopeContext, ca_id: str) -> Crl:
        """Get the CRL of a CA."""
        return Crl(await _pem(context, ca_id))

    @get("/crls", action=Action.READ)
    async def crls(self, context: ScopeContext, ca_id: str) -> list[IdentifiedCrl]:
        """List the CRLs of a CA: it has one."""
        return [IdentifiedCrl(str(UUID(ca_id)), await _pem(context, ca_id))]


class PublicCrl(Controller):
    """Mounted under both paths of CRLs."""

    tags = TAGS

    @get("/{crl_id:str}/der", file="application/pkix-crl")
    async def der(self, request: AnyRequest, crl_id: str) -> Response[bytes]:
        """Fetch a CRL."""
        found = canonical_uuid(crl_id)
        if found is None:
            raise NotFound("CRL not found")
        return wire.download(await crls.published(state_of(request).services, found), "application/pkix-crl")


async def _pem(context: ScopeContext, ca_id: str) -> str:
    authority = await authorities.viewed(context.services.db, context.caller, context.scope, UUID(ca_id))
    return wire.shown(crl_bytes.pem(await crls.current(context.services, authority)))
