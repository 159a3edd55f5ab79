"""Reads the parts of a request: bodies, headers and query parameters (contract-cloudflare sections 1, 2)."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Generic, TypeAlias, TypeVar
from urllib.parse import unquote_plus, unquote_to_bytes
from uuid import UUID

import msgspec
from msgspec import Meta

from keystead import times
from keystead.cloudflare.envelope import JSON
from keystead.cloudflare.errors import ApiError, pointed
from keystead.errors import Advice, Hint, Problem, Rule, quoted
from keystead.ids import canonical_uuid, hex32
from keystead.store.idempotency import Idempotency
from keystead.store.paging import NameFilter
from keystead.store.paging import Part as NamePart
from keystead.web import bodies, reading
from keystead.web.handling import AnyRequest, Part, Source, header_values
from keystead.web.reading import Fault, Type, Wrong

T = TypeVar("T", bound=msgspec.Struct)
T_co = TypeVar("T_co", bound=msgspec.Struct, covariant=True)
MAX_BODY = 64 * 1024
MAX_CERTIFICATE_BODY = 256 * 1024
MAX_IGNORED = 20
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


class Decoded(msgspec.Struct, Generic[T_co], frozen=True):
    """A body. Fields with problems are empty in `fields`; the core validates the others and reports all together.

    `advice` concerns unknown fields; `once` is the Idempotency-Key, where it is read.
    """

    fields: T_co
    problems: tuple[Problem, ...]
    advice: tuple[Advice, ...]
    raw: bytes
    once: Idempotency | None = None

    def __repr__(self) -> str:
        return "Decoded()"


class Ignored(msgspec.Struct, frozen=True):
    """A body that says nothing."""


def decode(raw: bytes, struct: type[T]) -> Decoded[T]:
    """Parse a body. If it is no JSON object, that is its only problem."""
    try:
        values = bodies.parse(raw)
    except bodies.TooMany as error:
        return _broken(raw, struct, str(error))
    except ValueError:
        return _broken(raw, struct, f"The body is not JSON{bodies.instead(raw)}.")
    if not isinstance(values, dict):
        return _broken(raw, struct, "The body is not a JSON object.")
    fields, faults = reading.read(struct, values, blank=True)
    unknown = islice(_unknown(reading.type_of(struct), values), MAX_IGNORED)
    advice = tuple(
        Advice(Hint.UNKNOWN_FIELD, field, f"{quoted(name)} is not a known field and was ignored.", member=member)
        for field, member, name in unknown
    )
    return Decoded(fields, tuple(map(_problem, faults)), advice, raw)


def _unknown(kind: Type, values: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Each field that is not known, and each member of an object that is not: the field, the member, the name."""
    known = {field.wire: field.type for field in kind.fields}
    for name, value in values.items():
        if name not in known:
            yield name, None, name
        elif known[name].fields and isinstance(value, dict):
            inner = {field.wire for field in known[name].fields}
            yield from ((name, pointed(member), member) for member in value if member not in inner)


def _broken(raw: bytes, struct: type[T], text: str) -> Decoded[T]:
    fields, _ = reading.read(struct, {}, blank=True)
    return Decoded(fields, (Problem(Rule.BODY, "", text),), (), raw)


_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _problem(wrong: Wrong) -> Problem:
    field, *inner = wrong.path
    index = inner[0] if len(inner) == 1 and isinstance(inner[0], int) else None
    member = "/".join(map(str, inner)) if inner and index is None else None
    name = f"an entry of {field}" if isinstance(wrong.path[-1], int) else ".".join(map(str, wrong.path))
    rule = {Fault.MISSING: Rule.MISSING, Fault.EMPTY: Rule.MISSING, Fault.CHOICE: Rule.CHOICE}.get(
        wrong.fault, Rule.TEXT
    )
    if wrong.fault is Fault.FORMAT and wrong.type.check is _is_finite:
        rule = Rule.TIME
    return Problem(rule, str(field), f"{name} {_fault(wrong)}.", index, member)


def _fault(wrong: Wrong) -> str:
    kind, value = wrong.type, wrong.value
    match wrong.fault:
        case Fault.MISSING | Fault.EMPTY:
            return "is missing or empty"
        case Fault.TYPE:
            return f"must be {_JSON_NAMES[kind.json]}, not {_JSON_NAMES.get(type(value), 'null')}"
        case Fault.TOO_MANY:
            return f"must have at most {kind.high} entries"
    shown = f"is {quoted(value)}; it" if isinstance(value, str) else ""
    return f"{shown} must be {_allowed(kind)}".strip()


def _allowed(kind: Type) -> str:
    if kind.choices:
        return f"one of {', '.join(kind.choices)}" if len(kind.choices) > 1 else kind.choices[0]
    if kind.json is bool:
        return "true or false"
    return kind.expected or f"a whole number from {kind.low} to {kind.high}"


# asyncpg stores these as -infinity and infinity.
_INFINITE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def _is_time(text: str) -> bool:
    return times.date(text) is not None


def _is_finite(text: str) -> bool:
    return times.date(text) not in (None, *_INFINITE)


def _is_hex32(text: str) -> bool:
    return hex32(text) is not None


# Types of fields and parameters.
_TIME = "a date such as 2027-01-31, or an RFC 3339 time such as 2027-01-31T12:00:00Z"
_TIME_SCHEMA = {"format": "date-time"}
Time: TypeAlias = Annotated[str, Meta(extra={"check": _is_time, "expected": _TIME}, extra_json_schema=_TIME_SCHEMA)]
StoredTime: TypeAlias = Annotated[
    str, Meta(extra={"check": _is_finite, "expected": _TIME, "blank": True}, extra_json_schema=_TIME_SCHEMA)
]
Id: TypeAlias = Annotated[
    str,
    Meta(pattern="^[0-9a-f]{32}$", extra={"check": _is_hex32, "expected": "an id, 32 lower-case hex characters"}),
]


async def _body(request: AnyRequest, struct: type[T], most: int = MAX_BODY) -> Decoded[T]:
    return decode(await raw_body(request, most), struct)


async def _body_with_certificate(request: AnyRequest, struct: type[T]) -> Decoded[T]:
    return await _body(request, struct, MAX_CERTIFICATE_BODY)


async def _body_once(request: AnyRequest, struct: type[T], most: int = MAX_BODY) -> Decoded[T]:
    raw = await raw_body(request, most)
    once = _idempotency(request, raw)
    return msgspec.structs.replace(decode(raw, struct), once=once)


async def _body_with_certificate_once(request: AnyRequest, struct: type[T]) -> Decoded[T]:
    return await _body_once(request, struct, MAX_CERTIFICATE_BODY)


async def _ignored_body(request: AnyRequest, struct: type[T]) -> T:
    await raw_body(request)
    return struct()


async def _certificate_id(request: AnyRequest, _: type) -> UUID:
    return certificate_id(request.path_params["custom_certificate_id"])


async def _query(request: AnyRequest, struct: type[T]) -> T:
    return query(request.scope["query_string"], struct)


# What handlers annotate their parameters with.
Body = Annotated[Decoded[T], Source(Part.BODY, _body)]
BodyWithCertificate = Annotated[Decoded[T], Source(Part.BODY, _body_with_certificate)]
BodyOnce = Annotated[Decoded[T], Source(Part.BODY, _body_once, once=True)]
BodyWithCertificateOnce = Annotated[Decoded[T], Source(Part.BODY, _body_with_certificate_once, once=True)]
# Clients send no body, an empty object, or null.
IgnoredBody: TypeAlias = Annotated[Ignored, Source(Part.BODY, _ignored_body, required=False)]
CertificateId: TypeAlias = Annotated[UUID, Source(Part.PATH, _certificate_id)]
Query = Annotated[T, Source(Part.QUERY, _query)]


async def raw_body(request: AnyRequest, most: int = MAX_BODY) -> bytes:
    """The body; raises 1454 if it is too large, and 1400 if it is incomplete or too slow."""
    try:
        return await bodies.read(request, most)
    except bodies.TooLarge as error:
        raise ApiError(413, 1454, str(error)) from None
    except bodies.Incomplete as error:
        raise ApiError(400, 1400, str(error)) from None


def _idempotency(request: AnyRequest, raw: bytes) -> Idempotency | None:
    """The Idempotency-Key header with the hash of the body, or None; raises 1456."""
    keys = header_values(request, b"idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise ApiError(400, 1456, "Idempotency-Key must be given once, as 1 to 255 printable ASCII characters.")
    return Idempotency(keys[0], hashlib.sha256(raw).digest())


def csr_id(text: str) -> UUID:
    """Parse a CSR's id in a path; raises 1418."""
    found = canonical_uuid(text)
    if found is None:
        raise ApiError(400, 1418, f"{quoted(text)} is not the id of a CSR: a UUID is.")
    return found


def certificate_id(text: str) -> UUID:
    """Parse a certificate's id; anything but a UUID is reported as an unknown certificate (404/1002)."""
    found = canonical_uuid(text)
    if found is None:
        raise ApiError(404, 1002, f"There is no custom certificate {quoted(text)} here.")
    return found


def accepted(request: AnyRequest) -> str:
    """The media type that the Accept header prefers among JSON, PEM and DER; JSON if it names none of them."""
    values = header_values(request, b"accept")
    if values in ([], ["*/*"], [JSON]):
        return JSON
    best, best_quality = JSON, 0.0
    for part in ",".join(values).split(","):
        media_type, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if media_type in (JSON, "application/x-pem-file", "application/pkcs10", "*/*") and quality > best_quality:
            best, best_quality = (JSON if media_type == "*/*" else media_type), quality
    return best


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](?:\.[0-9]{0,3})?", text) else 0.0


# The SDK's type of numbers is float.
_NUMBER = re.compile(r"([0-9]{1,16})(?:\.0*)?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def query(query_string: bytes, struct: type[T]) -> T:
    """The known parameters of a query; raises 1455 for the first that is wrong, missing, or given too often."""
    kind = reading.type_of(struct)
    texts = _texts(query_string, {field.wire: field.type for field in kind.fields})
    values = {field.wire: _values(field.type, texts[field.wire]) for field in kind.fields if field.wire in texts}
    found, faults = reading.read(struct, values, blank=False)
    for wrong in faults:
        name = wrong.path[0]
        if wrong.fault is Fault.MISSING:
            raise ApiError(400, 1455, f"The parameter {name} is missing; it must be {_allowed(wrong.type)}.")
        shown, allowed = quoted(texts[str(name)][0]), _allowed(wrong.type.item or wrong.type)
        raise ApiError(400, 1455, f"The parameter {name} is {shown}; it must be {allowed}.")
    return found


_OPERATOR = re.compile(r"((?:not_)?equal|(?:starts_with|ends_with|contains)(?:_case_sensitive)?):(.*)", re.DOTALL)


def name_filter(key: str, text: str | None) -> NameFilter | None:
    """A filter by name: a whole one, or an operator before a part of one; raises 1455 for other operators."""
    if text is None:
        return None
    match = _OPERATOR.fullmatch(text)
    if match is None:
        return NameFilter(text)
    if match[1] not in set(NamePart):
        raise ApiError(400, 1455, f"The parameter {key} has the operator {match[1]}; it takes {', '.join(NamePart)}.")
    return NameFilter(match[2], NamePart(match[1]))


def _texts(query_string: bytes, known: Mapping[str, Type]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in query_string.decode("latin-1").split("&"):
        raw_key, _, raw_value = pair.partition("=")
        key = unquote_plus(raw_key, errors="replace")
        if key not in known:
            continue
        most = known[key].high or 0 if known[key].json is list else 1
        if len(found.get(key, ())) >= most:
            times_given = "twice; give it once" if most == 1 else f"more than {most} times"
            raise ApiError(400, 1455, f"The parameter {key} is given {times_given}.")
        try:
            # UTF-8 is accepted raw as well as percent-encoded.
            value = unquote_to_bytes(raw_value.replace("+", " ").encode("latin-1")).decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(400, 1455, f"The parameter {key} is not UTF-8.") from None
        if _CONTROL.search(value):
            raise ApiError(400, 1455, f"The parameter {key} has a control character.")
        found.setdefault(key, []).append(value)
    return found


def _values(kind: Type, texts: list[str]) -> Any:  # noqa: ANN401 - of the parameter's type; a wrong text stays one
    text = texts[0]
    if kind.json is int:
        number = _NUMBER.fullmatch(text)
        return int(number[1]) if number else text
    if kind.json is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind.json is list:
        return [*dict.fromkeys(",".join(texts).split(","))] if kind.item and kind.item.choices else texts
    return text
