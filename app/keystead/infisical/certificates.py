"""`/pki/certificates`: issued certificates, by serial number (contract-infisical, "Leaves")."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar import Controller

from keystead.ca import crls, issuing, leaves
from keystead.ca.crls import Reason
from keystead.ca.model import Issued
from keystead.infisical import ca, guard, wire
from keystead.infisical.ca import CertificateWithChain
from keystead.infisical.guard import Action, CertificateContext
from keystead.infisical.leaves import (
    IssuedCertificate,
    IssueRequestWithCa,
    SignedCertificate,
    SignRequestWithCa,
    issued_object,
    leaf_request,
    signed_object,
)
from keystead.infisical.reading import Body
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext
from keystead.web.handling import get, post
from keystead.web.reading import one_of


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """A certificate as the SDK reads it; `revocation_reason` is the number of RFC 5280 section 5.3.1."""

    id: Uuid
    created_at: Instant
    updated_at: Instant
    ca_id: Uuid
    status: str
    serial_number: str
    friendly_name: str
    common_name: str
    not_before: Instant
    not_after: Instant
    revoked_at: Instant | None
    revocation_reason: int | None
    alt_names: str


class Bundle(CertificateWithChain, frozen=True, rename="camel"):
    private_key: None = None


class CertificateAnswer(msgspec.Struct, frozen=True):
    certificate: Certificate


class Revoked(msgspec.Struct, frozen=True, rename="camel"):
    message: str
    serial_number: str
    revoked_at: Instant


class Revocation(msgspec.Struct, frozen=True, rename="camel"):
    """Why; the words are those of RFC 5280 section 5.3.1."""

    revocation_reason: Annotated[str, one_of(Reason.__members__)]


class Certificates(Controller):
    path = "/pki/certificates"
    tags = ca.TAGS

    @post("/sign-certificate")
    async def sign_certificate(self, context: CallerContext, data: Body[SignRequestWithCa]) -> SignedCertificate:
        """Sign the CSR of a server or client with the CA that the body names."""
        scope, ca_id = await guard.scope_of_ca(context.state, context.caller, data.ca_id, Action.ISSUE)
        wanted = leaf_request(data, data.common_name, data.csr)
        signed = await leaves.sign(context.services, context.caller, scope, ca_id, wanted)
        return signed_object(signed)

    @post("/issue-certificate")
    async def issue_certificate(self, context: CallerContext, data: Body[IssueRequestWithCa]) -> IssuedCertificate:
        """Create a key and a certificate for it with the CA that the body names; the key is not stored."""
        scope, ca_id = await guard.scope_of_ca(context.state, context.caller, data.ca_id, Action.ISSUE_KEY)
        wanted = leaf_request(data, data.common_name)
        return issued_object(await leaves.issue(context.services, context.caller, scope, ca_id, wanted))

    @get("/{serial_number:str}", action=Action.READ)
    async def get_one(self, context: CertificateContext) -> CertificateAnswer:
        """Get a certificate."""
        return CertificateAnswer(certificate_object(context.certificate))

    @get("/{serial_number:str}/certificate", action=Action.READ)
    async def certificate(self, context: CertificateContext) -> CertificateWithChain:
        """Get a certificate with its chain."""
        signed = await issuing.signed(context.services, context.certificate)
        return CertificateWithChain(wire.shown(signed.pem), wire.shown(signed.chain), signed.serial)

    @get("/{serial_number:str}/bundle", action=Action.READ)
    async def bundle(self, context: CertificateContext) -> Bundle:
        """Get a certificate with its chain; keys are not stored."""
        signed = await issuing.signed(context.services, context.certificate)
        return Bundle(wire.shown(signed.pem), wire.shown(signed.chain), signed.serial)

    @post("/{serial_number:str}/revoke", action=Action.REVOKE)
    async def revoke(self, context: CertificateContext, data: Body[Revocation]) -> Revoked:
        """Revoke a certificate."""
        about = (context.scope, context.certificate, Reason[data.revocation_reason])
        revoked = await crls.revoke(context.services, context.caller, *about)
        at = wire.instant(revoked.revoked_at or revoked.modified_at)
        return Revoked("Successfully revoked certificate", revoked.serial, at)


def certificate_object(issued: Issued) -> Certificate:
    return Certificate(
        id=str(issued.id),
        created_at=wire.instant(issued.created_at),
        updated_at=wire.instant(issued.modified_at),
        ca_id=str(issued.ca_id),
        status=issued.status(datetime.now(UTC)).value,
        serial_number=issued.serial,
        friendly_name=issued.friendly_name or issued.common_name or issued.subject,
        common_name=issued.common_name,
        not_before=wire.instant(issued.not_before),
        not_after=wire.instant(issued.not_after),
        revoked_at=wire.instant(issued.revoked_at) if issued.revoked_at else None,
        revocation_reason=issued.revocation_reason,
        alt_names=",".join(issued.alt_names),
    )
