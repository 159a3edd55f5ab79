"""`/{accounts|zones}/{id}/custom_csrs`: each handler is one call to the core."""

import json
import re
from typing import Any, NoReturn
from urllib.parse import unquote_plus

import msgspec
from litestar import Response, delete, get, post

from app import csrs, pkix
from app.cloudflare import wire
from app.cloudflare.wire import AnyRequest
from app.errors import Advice, Hint, Problem, Rule, quoted
from app.model import Access, Area, Csr, CsrQuery, CsrRequest, Direction, KeyType, Order, Subject

_LIST = ["/accounts/{account_id:str}/custom_csrs", "/zones/{zone_id:str}/custom_csrs"]
_ONE = [path + "/{custom_csr_id:str}" for path in _LIST]
_READ = {"needs": (Area.SSL, Access.READ)}
_WRITE = {"needs": (Area.SSL, Access.WRITE)}
MAX_IGNORED = 20
MIN_PER_PAGE, MAX_PER_PAGE = 5, 50
# The largest whole number that every JSON reader keeps exact (RFC 8259 section 6).
MAX_PAGE = 2**53 - 1


class CustomCsr(msgspec.Struct, frozen=True, omit_defaults=True):
    """A custom CSR as the SDKs read it; an unset optional is absent."""

    id: str
    created_at: str
    key_type: str
    account_tag: str
    common_name: str
    country: str
    csr: str
    locality: str
    organization: str
    sans: tuple[str, ...]
    state: str
    description: str | None = None
    name: str | None = None
    organizational_unit: str | None = None


class Deleted(msgspec.Struct, frozen=True):
    id: str


class Decoded(msgspec.Struct, frozen=True):
    """A body as the core's request, and what of it nobody asked for."""

    request: CsrRequest
    ignored: tuple[Advice, ...] = ()


@post(_LIST, opt=_WRITE)
async def create(request: AnyRequest) -> Response[bytes]:
    house, scope = wire.house(request), wire.scope(request)
    raw = await wire.body(request)
    once = wire.idempotency(request, raw)
    decoded = decode(raw)
    csr = await csrs.create(house.db, house.ring, house.pool, wire.caller(request), scope, decoded.request, once)
    advice = (*decoded.ignored, *csrs.advice(csr.request, scope.name_policy))
    return _answer(request, csr, 201, advice)


@get(_LIST, opt=_READ)
async def list_(request: AnyRequest) -> Response[bytes]:
    query = parse_query(request.scope["query_string"], 50 if wire.scope(request).zone_id is None else 20)
    page = await csrs.list_(wire.house(request).db, wire.scope(request), query)
    pages = -(-page.total // query.per_page)
    info = wire.ResultInfo(len(page.items), query.page, query.per_page, page.total, pages)
    return wire.answers(request).success([_object(csr) for csr in page.items], info=info)


@get(_ONE, opt=_READ)
async def get_(request: AnyRequest) -> Response[bytes]:
    csr = await csrs.get(wire.house(request).db, wire.scope(request), wire.csr_id(request))
    return _answer(request, csr, 200)


@delete(_ONE, opt=_WRITE, status_code=200)
async def delete_(request: AnyRequest) -> Response[bytes]:
    csr_id = wire.csr_id(request)
    await csrs.delete(wire.house(request).db, wire.caller(request), wire.scope(request), csr_id)
    return wire.answers(request).success(Deleted(str(csr_id)))


HANDLERS = [create, list_, get_, delete_]


def _object(csr: Csr) -> CustomCsr:
    subject = csr.request.subject
    return CustomCsr(
        id=str(csr.id),
        created_at=csr.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        key_type=csr.request.key_type,
        account_tag=csr.account_id.hex,
        common_name=subject.common_name,
        country=subject.country,
        csr=csr.pem,
        locality=subject.locality,
        organization=subject.organization,
        sans=csr.request.sans,
        state=subject.state,
        description=csr.request.description,
        name=csr.request.name,
        organizational_unit=subject.organizational_unit,
    )


def _answer(request: AnyRequest, csr: Csr, status: int, advice: tuple[Advice, ...] = ()) -> Response[bytes]:
    media_type = wire.accepted(request)
    if media_type == wire.JSON:
        return wire.answers(request).success(_object(csr), status, advice=advice)
    der = media_type == "application/pkcs10"
    content = pkix.der(csr.pem) if der else csr.pem.encode("ascii")
    headers = {"Content-Disposition": f'attachment; filename="{csr.id}.csr"'}
    if status == 201:
        headers["Location"] = f"{wire.visit(request).path}/{csr.id}"
    return Response(content, status_code=status, media_type=media_type, headers=headers)


_TEXTS = (
    *("country", "state", "locality", "organization", "common_name", "organizational_unit", "name", "description"),
    "key_type",
)
_OPTIONAL = frozenset({"organizational_unit", "name", "description", "key_type"})
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def decode(raw: bytes) -> Decoded:
    """Read a body; what has the wrong shape stands in the request's `malformed`, and the core judges the rest."""
    try:
        fields = json.loads(raw.decode("utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError):
        return _unreadable("The body is not JSON.")
    if not isinstance(fields, dict):
        return _unreadable("The body is not a JSON object.")
    malformed: list[Problem] = []
    texts = {field: _text(fields.get(field), field, malformed) for field in _TEXTS}
    sans = _sans(fields.get("sans"), malformed)
    request = CsrRequest(
        subject=Subject(
            country=texts["country"],
            state=texts["state"],
            locality=texts["locality"],
            organization=texts["organization"],
            common_name=texts["common_name"],
            organizational_unit=texts["organizational_unit"] or None,
        ),
        sans=sans,
        key_type=texts["key_type"] or KeyType.RSA2048,
        name=texts["name"] or None,
        description=texts["description"] or None,
        malformed=tuple(malformed),
    )
    unknown = [field for field in fields if field not in _TEXTS and field != "sans"]
    return Decoded(request, tuple(_ignored(field) for field in unknown[:MAX_IGNORED]))


def _not_json(constant: str) -> NoReturn:
    # Python reads NaN and Infinity, which RFC 8259 does not have.
    raise ValueError(constant)


def _unreadable(text: str) -> Decoded:
    problem = Problem(Rule.BODY, "", text)
    return Decoded(CsrRequest(Subject("", "", "", "", ""), (), malformed=(problem,)))


def _ignored(field: str) -> Advice:
    return Advice(Hint.UNKNOWN_FIELD, field, f"{quoted(field)} is not a field of a custom CSR and was ignored.")


def _text(value: Any, field: str, malformed: list[Problem]) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return value
    # null means "not given": unset for an optional field, and missing for a required one.
    if value is not None:
        malformed.append(Problem(Rule.TEXT, field, f"{field} must be a string, not {_JSON_NAMES[type(value)]}."))
    return ""


def _sans(value: Any, malformed: list[Problem]) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    if value is None:
        return ()
    if not isinstance(value, list):
        text = f"sans must be a list of strings, not {_JSON_NAMES[type(value)]}."
        malformed.append(Problem(Rule.TEXT, "sans", text))
        return ()
    if len(value) <= csrs.MAX_SANS:
        for index, item in enumerate(value):
            if not isinstance(item, str):
                text = f"a SAN must be a string, not {_JSON_NAMES.get(type(item), 'null')}."
                malformed.append(Problem(Rule.TEXT, "sans", text, index))
    return tuple(item if isinstance(item, str) else "" for item in value)


_WHOLE = re.compile(r"([0-9]{1,16})(?:\.0*)?")
_KNOWN = frozenset({"page", "per_page", "order", "direction", "common_name", "san", "name", "key_type"})
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def parse_query(query_string: bytes, per_page: int) -> CsrQuery:
    """The list's parameters; raises 1455 with what is allowed. `per_page` is the scope's default."""
    values = _known_values(query_string)
    return CsrQuery(
        page=_whole(values, "page", 1, 1, MAX_PAGE),
        per_page=_whole(values, "per_page", per_page, MIN_PER_PAGE, MAX_PER_PAGE),
        order=Order(_one_of(values, "order", tuple(Order)) or Order.CREATED_AT),
        direction=Direction(_one_of(values, "direction", tuple(Direction)) or Direction.ASC),
        common_name=values.get("common_name"),
        san=values.get("san"),
        name=values.get("name"),
        key_type=_one_of(values, "key_type", tuple(KeyType)),
    )


def _known_values(query_string: bytes) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in query_string.decode("latin-1").split("&"):
        raw_key, _, raw_value = pair.partition("=")
        key = unquote_plus(raw_key, errors="replace")
        if key not in _KNOWN:
            continue
        if key in values:
            raise wire.Refused(400, 1455, f"The parameter {key} is given twice; give it once.")
        try:
            value = unquote_plus(raw_value, errors="strict")
        except UnicodeDecodeError:
            raise wire.Refused(400, 1455, f"The parameter {key} is not UTF-8.") from None
        if _CONTROL.search(value):
            raise wire.Refused(400, 1455, f"The parameter {key} has a control character.")
        values[key] = value
    return values


def _whole(values: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    if key not in values:
        return default
    match = _WHOLE.fullmatch(values[key])
    if match is None or not low <= int(match[1]) <= high:
        text = f"The parameter {key} is {quoted(values[key])}; it must be a whole number from {low} to {high}."
        raise wire.Refused(400, 1455, text)
    return int(match[1])


def _one_of(values: dict[str, str], key: str, allowed: tuple[str, ...]) -> str | None:
    if key in values and values[key] not in allowed:
        text = f"The parameter {key} is {quoted(values[key])}; it must be one of {', '.join(allowed)}."
        raise wire.Refused(400, 1455, text)
    return values.get(key)
