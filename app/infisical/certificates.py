"""`/pki/certificates`: what CAs have signed, by serial number (contract-infisical, "Leaves")."""

from datetime import UTC, datetime

import msgspec
from litestar import Response, get, post

from app.ca import crls, issuing, leaves
from app.ca.crls import Reason
from app.ca.model import Issued
from app.infisical import ca, gate, reading, wire
from app.infisical.gate import Action
from app.infisical.wire import AnyRequest

_ONE = "/pki/certificates/{serial_number:str}"


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """A certificate as the SDK reads it; `revocation_reason` is the number of RFC 5280 section 5.3.1."""

    id: str
    created_at: str
    updated_at: str
    ca_id: str
    status: str
    serial_number: str
    friendly_name: str
    common_name: str
    not_before: str
    not_after: str
    revoked_at: str | None
    revocation_reason: int | None
    alt_names: str


class CertificateAnswer(msgspec.Struct, frozen=True):
    certificate: Certificate


class Revoked(msgspec.Struct, frozen=True, rename="camel"):
    message: str
    serial_number: str
    revoked_at: str


@post("/pki/certificates/sign-certificate", status_code=200)
async def sign_certificate(request: AnyRequest) -> Response[bytes]:
    house, caller = wire.house(request), wire.caller(request)
    fields = reading.fields(await wire.body(request))
    text, asked = fields.text("caId", required=True), ca.leaf_request(fields, with_csr=True)
    fields.done()
    scope, ca_id = await gate.scope_of_ca(house, caller, text, Action.ISSUE)
    signed = await leaves.sign(house.db, house.ring, caller, scope, ca_id, asked, house.pki_url)
    return wire.answer(ca.signed_object(signed))


@get(_ONE, opt={"action": Action.READ})
async def get_(request: AnyRequest) -> Response[bytes]:
    found = await issuing.viewed(
        wire.house(request).db, wire.caller(request), wire.scope(request), wire.serial(request)
    )
    return wire.answer(CertificateAnswer(_object(found)))


@get(f"{_ONE}/certificate", opt={"action": Action.READ})
async def certificate(request: AnyRequest) -> Response[bytes]:
    db = wire.house(request).db
    found = await issuing.viewed(db, wire.caller(request), wire.scope(request), wire.serial(request))
    signed = await issuing.signed(db, found)
    return wire.answer(ca.CertificateWithChain(wire.shown(signed.pem), wire.shown(signed.chain), signed.serial))


@post(f"{_ONE}/revoke", opt={"action": Action.REVOKE}, status_code=200)
async def revoke(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    fields = reading.fields(await wire.body(request))
    reason = fields.choice("revocationReason", [*Reason.__members__])
    fields.done()
    place = (wire.caller(request), wire.scope(request), wire.serial(request))
    revoked = await crls.revoke(house.db, house.ring, *place, Reason[reason])
    at = wire.instant(revoked.revoked_at or revoked.modified_at)
    return wire.answer(Revoked("Successfully revoked certificate", revoked.serial, at))


HANDLERS = [sign_certificate, get_, certificate, revoke]


def _object(issued: Issued) -> Certificate:
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
