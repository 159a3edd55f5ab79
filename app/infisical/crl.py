"""Certificate revocation lists: of a CA for its owners, and in DER for anybody (contract-infisical, "Leaves")."""

import msgspec
from litestar import Response, get

from app import authorities, crl_bytes, crls
from app.errors import NotFound
from app.infisical import gate, wire
from app.infisical.gate import Action
from app.infisical.wire import AnyRequest

_CA = ("/pki/ca/{ca_id:str}", "/cert-manager/ca/internal/{ca_id:str}")


class Crl(msgspec.Struct, frozen=True):
    crl: str


class IdentifiedCrl(msgspec.Struct, frozen=True):
    """A CA has one CRL, and its id is the CA's."""

    id: str
    crl: str


@get([f"{ca}/crl" for ca in _CA], opt={"action": Action.READ})
async def crl(request: AnyRequest) -> Response[bytes]:
    return wire.answer(Crl(await _pem(request)))


@get([f"{ca}/crls" for ca in _CA], opt={"action": Action.READ})
async def all_(request: AnyRequest) -> Response[bytes]:
    return wire.answer([IdentifiedCrl(str(wire.ca_id(request)), await _pem(request))])


@get("/pki/crl/{crl_id:str}/der")
async def der(request: AnyRequest) -> Response[bytes]:
    house, crl_id = wire.house(request), gate.uuid_of(request.path_params["crl_id"])
    if crl_id is None:
        raise NotFound("CRL not found")
    return wire.download(await crls.published(house.db, house.ring, crl_id), "application/pkix-crl")


HANDLERS = [crl, all_]
PUBLIC = [der]


async def _pem(request: AnyRequest) -> str:
    house = wire.house(request)
    authority = await authorities.viewed(house.db, wire.caller(request), wire.scope(request), wire.ca_id(request))
    return wire.shown(crl_bytes.pem(await crls.current(house.db, house.ring, authority)))
