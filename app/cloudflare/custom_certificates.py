"""`/zones/{zone_id}/custom_certificates`: each handler is one call to the core."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Controller
from litestar.params import FromPath
from msgspec import UNSET, UnsetType

from app import times
from app.caller import Access, Area
from app.certificates import matching
from app.certificates import store as certificates
from app.certificates.matching import Upload
from app.certificates.model import Certificate, CertificateQuery, Status
from app.certificates.store import Told
from app.cloudflare import reading
from app.cloudflare.context import Context, ScopeContext
from app.cloudflare.envelope import Envelope, Page
from app.cloudflare.guard import Needs
from app.errors import Advice, Invalid, Problem, Rule
from app.web.handling import AnyRequest, delete, get, patch, post, put

_READ, _WRITE = Needs(Area.SSL, Access.READ), Needs(Area.SSL, Access.WRITE)
MIN_PER_PAGE, PER_PAGE, MAX_PER_PAGE = 5, 20, 50
MAX_PRIORITIES = 1000


class GeoRestrictions(msgspec.Struct, frozen=True):
    label: str


class CustomCertificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom certificate as the SDKs read it; unset fields are omitted."""

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


class CustomCertificates(Controller):
    path = "/custom_certificates"

    @post(needs=_WRITE)
    async def create(self, context: Context, request: AnyRequest) -> Envelope[CustomCertificate]:
        """Upload a certificate."""
        upload, ignored = decode(await reading.body(request, reading.MAX_CERTIFICATE_BODY))
        told = await certificates.create(context.services, context.caller, context.scope, upload)
        return _answer(context, told, ignored)

    @get(needs=_READ)
    async def list_(self, context: Context, request: AnyRequest) -> Page[CustomCertificate]:
        """List the certificates."""
        query = parse_query(request.scope["query_string"])
        found = await certificates.list_(context.services.db, context.scope, query)
        return context.page([_object(each) for each in found.items], query.page, query.per_page, found.total)

    @put("/prioritize", needs=_WRITE)
    async def prioritize(self, context: Context, request: AnyRequest) -> Envelope[list[CustomCertificate]]:
        """Set priorities."""
        priorities = decode_priorities(await reading.body(request))
        zone = await certificates.prioritize(context.services.db, context.caller, context.scope, priorities)
        return context.envelope([_object(each) for each in zone])

    @get("/{custom_certificate_id:str}", needs=_READ)
    async def get_one(self, context: Context, custom_certificate_id: FromPath[str]) -> Envelope[CustomCertificate]:
        """Get a certificate."""
        certificate_id = reading.certificate_id(custom_certificate_id)
        return context.envelope(_object(await certificates.get(context.services.db, context.scope, certificate_id)))

    @patch("/{custom_certificate_id:str}", needs=_WRITE)
    async def edit(
        self, context: Context, request: AnyRequest, custom_certificate_id: FromPath[str]
    ) -> Envelope[CustomCertificate]:
        """Renew a certificate, or change its settings."""
        certificate_id = reading.certificate_id(custom_certificate_id)
        upload, ignored = decode(await reading.body(request, reading.MAX_CERTIFICATE_BODY))
        told = await certificates.update(context.services, context.caller, context.scope, certificate_id, upload)
        return _answer(context, told, ignored)

    @delete("/{custom_certificate_id:str}", needs=_WRITE)
    async def delete_one(self, context: Context, custom_certificate_id: FromPath[str]) -> Envelope[DeletedCertificate]:
        """Delete a certificate."""
        certificate_id = reading.certificate_id(custom_certificate_id)
        await certificates.delete(context.services.db, context.caller, context.scope, certificate_id)
        return context.envelope(DeletedCertificate(str(certificate_id)))


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
        uploaded_on=times.instant(certificate.uploaded_at),
        modified_on=times.instant(certificate.modified_at),
        expires_on=certificate.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        custom_csr_id=str(csr_id) if csr_id else None,
        geo_restrictions=GeoRestrictions(geo) if geo else None,
        policy_restrictions=certificate.policy,
        deploy=certificate.deploy,
    )


def _answer(context: ScopeContext, told: Told, ignored: tuple[Advice, ...]) -> Envelope[CustomCertificate]:
    return context.envelope(_object(told.certificate), (*ignored, *told.advice))


_TEXTS = ("certificate", "private_key", "bundle_method", "type")
_NULLABLE = ("custom_csr_id", "policy", "policy_restrictions", "deploy")
_FIELDS = frozenset({*_TEXTS, *_NULLABLE, "geo_restrictions"})


def decode(raw: bytes) -> tuple[Upload, tuple[Advice, ...]]:
    """Decode a body; fields of the wrong JSON type are reported in the upload's `malformed`."""
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
    """Decode the body of prioritize: each certificate once, with an integer (`1.0` is one) of at least 0."""
    fields = reading.json_object(raw)
    if isinstance(fields, Problem):
        raise Invalid((fields,))
    entries = fields.get("certificates")
    if not isinstance(entries, list) or len(entries) > MAX_PRIORITIES:
        text = f"certificates must be a list of at most {MAX_PRIORITIES} objects with id and priority."
        raise Invalid((Problem(Rule.TEXT, "certificates", text),))
    found: dict[UUID, int] = {}
    for index, entry in enumerate(entries):
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
    return reading.certificate_id(certificate_id), int(priority)


def _is_priority(value: Any) -> bool:  # noqa: ANN401 - JSON
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= matching.MAX_PRIORITY and value == int(value)


_KNOWN = frozenset({"page", "per_page", "match", "status"})


def parse_query(query_string: bytes) -> CertificateQuery:
    """Parse the list's parameters; raises 1455. There is only one filter, so both values of `match` mean the same."""
    values = reading.known_values(query_string, _KNOWN)
    reading.one_of(values, "match", ("any", "all"))
    status = reading.one_of(values, "status", tuple(Status))
    page, size = reading.page_of(values, PER_PAGE, MIN_PER_PAGE, MAX_PER_PAGE)
    return CertificateQuery(
        page=page,
        per_page=size,
        status=Status(status) if status else None,
    )
