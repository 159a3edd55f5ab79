"""`/zones/{zone_id}/custom_certificates`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post, put
from msgspec import UNSET, UnsetType

from app.caller import Access, Area
from app.certificates import matching
from app.certificates import store as certificates
from app.certificates.matching import Upload
from app.certificates.model import Certificate, CertificateQuery, Status
from app.certificates.store import Told
from app.cloudflare import reading, wire
from app.cloudflare.wire import AnyRequest, Refused
from app.errors import Advice, Invalid, Problem, Rule, quoted

_LIST = "/zones/{zone_id:str}/custom_certificates"
_ONE = f"{_LIST}/{{custom_certificate_id:str}}"
_READ = {"needs": (Area.SSL, Access.READ)}
_WRITE = {"needs": (Area.SSL, Access.WRITE)}
MIN_PER_PAGE, PER_PAGE, MAX_PER_PAGE = 5, 20, 50
MAX_PRIORITIES = 1000


class GeoRestrictions(msgspec.Struct, frozen=True):
    label: str


class CustomCertificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom certificate as the SDKs read it; what is not set is absent."""

    id: str
    zone_id: str
    type: str
    hosts: tuple[str, ...]
    issuer: str
    signature: str
    status: str
    bundle_method: str
    priority: int
    uploaded_on: str
    modified_on: str
    expires_on: str
    custom_csr_id: str | None = None
    geo_restrictions: GeoRestrictions | None = None
    policy_restrictions: str | None = None
    deploy: str | None = None


class DeletedCertificate(msgspec.Struct, frozen=True):
    id: str


@post(_LIST, opt=_WRITE, status_code=200)
async def create(request: AnyRequest) -> Response[bytes]:
    house = wire.house(request)
    upload, ignored = decode(await wire.body(request, wire.MAX_CERTIFICATE_BODY))
    told = await certificates.create(
        *(house.db, house.ring, house.pool, house.trusted, wire.caller(request), wire.scope(request), upload)
    )
    return _answer(request, told, ignored)


@get(_LIST, opt=_READ)
async def list_(request: AnyRequest) -> Response[bytes]:
    query = parse_query(request.scope["query_string"])
    page = await certificates.list_(wire.house(request).db, wire.scope(request), query)
    pages = -(-page.total // query.per_page)
    info = wire.ResultInfo(len(page.items), query.page, query.per_page, page.total, pages)
    return wire.answers(request).success([_object(each) for each in page.items], info=info)


@get(_ONE, opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    found = await certificates.get(wire.house(request).db, wire.scope(request), wire.certificate_id(request))
    return _answer(request, Told(found))


@patch(_ONE, opt=_WRITE)
async def edit(request: AnyRequest) -> Response[bytes]:
    house, certificate_id = wire.house(request), wire.certificate_id(request)
    upload, ignored = decode(await wire.body(request, wire.MAX_CERTIFICATE_BODY))
    told = await certificates.update(
        *(house.db, house.ring, house.pool, house.trusted, wire.caller(request), wire.scope(request)),
        *(certificate_id, upload),
    )
    return _answer(request, told, ignored)


@delete(_ONE, opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    certificate_id = wire.certificate_id(request)
    await certificates.delete(wire.house(request).db, wire.caller(request), wire.scope(request), certificate_id)
    return wire.answers(request).success(DeletedCertificate(str(certificate_id)))


@put(f"{_LIST}/prioritize", opt=_WRITE)
async def prioritize(request: AnyRequest) -> Response[bytes]:
    priorities = decode_priorities(await wire.body(request))
    zone = await certificates.prioritize(wire.house(request).db, wire.caller(request), wire.scope(request), priorities)
    return wire.answers(request).success([_object(each) for each in zone])


HANDLERS: list[Any] = [create, list_, get_, edit, delete_, prioritize]


def _object(certificate: Certificate) -> CustomCertificate:
    csr_id, geo = certificate.custom_csr_id, certificate.geo_label
    return CustomCertificate(
        id=str(certificate.id),
        zone_id=certificate.zone_id.hex,
        type=certificate.type,
        hosts=certificate.hosts,
        issuer=certificate.issuer,
        signature=certificate.signature,
        status=certificate.status(datetime.now(UTC)),
        bundle_method=certificate.bundle_method,
        priority=certificate.priority,
        uploaded_on=wire.instant(certificate.uploaded_at),
        modified_on=wire.instant(certificate.modified_at),
        expires_on=certificate.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        custom_csr_id=str(csr_id) if csr_id else None,
        geo_restrictions=GeoRestrictions(geo) if geo else None,
        policy_restrictions=certificate.policy,
        deploy=certificate.deploy,
    )


def _answer(request: AnyRequest, told: Told, ignored: tuple[Advice, ...] = ()) -> Response[bytes]:
    return wire.answers(request).success(_object(told.certificate), advice=(*ignored, *told.advice))


_TEXTS = ("certificate", "private_key", "bundle_method", "type")
_NULLABLE = ("custom_csr_id", "policy", "policy_restrictions", "deploy")
_FIELDS = frozenset({*_TEXTS, *_NULLABLE, "geo_restrictions"})


def decode(raw: bytes) -> tuple[Upload, tuple[Advice, ...]]:
    """Read a body; what has the wrong shape stands in the upload's `malformed`."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        raise Invalid((fields,))
    malformed: list[Problem] = []
    plain = {name: reading.text(fields[name], name, malformed) for name in _TEXTS if fields.get(name) is not None}
    if "private_key" in fields:
        plain.setdefault("private_key", "")
    nullable: dict[str, str | None] = {
        name: None if fields[name] is None else reading.text(fields[name], name, malformed)
        for name in _NULLABLE
        if name in fields
    }
    policy: str | UnsetType | None = nullable.pop("policy_restrictions", UNSET)
    upload = Upload(
        **plain,
        custom_csr_id=nullable.get("custom_csr_id", UNSET),
        policy=nullable.get("policy", policy),
        deploy=nullable.get("deploy", UNSET),
        geo_label=_geo(fields, malformed),
        malformed=tuple(malformed),
    )
    return upload, reading.ignored(fields, _FIELDS, "a custom certificate")


def _geo(fields: dict[str, Any], malformed: list[Problem]) -> str | UnsetType | None:
    if "geo_restrictions" not in fields:
        return UNSET
    geo = fields["geo_restrictions"]
    if geo is None or geo == {}:
        return None
    if not isinstance(geo, dict):
        malformed.append(reading.wrong_type(geo, "geo_restrictions", "an object"))
        return UNSET
    label = geo.get("label")
    if label is not None and not isinstance(label, str):
        problem = reading.wrong_type(label, "geo_restrictions", "an object with a string as its label")
        malformed.append(msgspec.structs.replace(problem, member="label"))
        return UNSET
    return label


def decode_priorities(raw: bytes) -> dict[UUID, int]:
    """Read the body of prioritize: each certificate once, with a whole number (`1.0` is one) from 0 on."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        raise Invalid((fields,))
    asked = fields.get("certificates")
    if not isinstance(asked, list) or len(asked) > MAX_PRIORITIES:
        text = f"certificates must be a list of at most {MAX_PRIORITIES} objects with id and priority."
        raise Invalid((Problem(Rule.TEXT, "certificates", text),))
    found: dict[UUID, int] = {}
    for index, entry in enumerate(asked):
        certificate_id, priority = _priority(entry, index)
        if certificate_id in found:
            text = "certificates names this certificate twice."
            raise Invalid((Problem(Rule.TEXT, "certificates", text, index),))
        found[certificate_id] = priority
    return found


def _priority(entry: Any, index: int) -> tuple[UUID, int]:  # noqa: ANN401 - JSON
    fields = entry if isinstance(entry, dict) else {}
    certificate_id: Any = fields.get("id")
    priority: Any = fields.get("priority")
    if not isinstance(certificate_id, str) or not _is_priority(priority):
        most = matching.MAX_PRIORITY
        text = f"an entry of certificates has an id and a priority, a whole number from 0 to {most}."
        raise Invalid((Problem(Rule.TEXT, "certificates", text, index),))
    if not wire.is_uuid(certificate_id):
        raise Refused(404, 1002, f"There is no custom certificate {quoted(certificate_id)} here.")
    return UUID(certificate_id), int(priority)


def _is_priority(value: Any) -> bool:  # noqa: ANN401 - JSON
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= matching.MAX_PRIORITY and value == int(value)


_KNOWN = frozenset({"page", "per_page", "match", "status"})


def parse_query(query_string: bytes) -> CertificateQuery:
    """The list's parameters; raises 1455. `match` has one filter to combine, so both of its values mean the same."""
    values = reading.known_values(query_string, _KNOWN)
    reading.one_of(values, "match", ("any", "all"))
    status = reading.one_of(values, "status", tuple(Status))
    return CertificateQuery(
        page=reading.whole(values, "page", 1, 1, reading.MAX_PAGE),
        per_page=reading.whole(values, "per_page", PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE),
        status=Status(status) if status else None,
    )
