"""Reads bodies of Infisical's dialect into Structs; all faults are reported together, as Zod does."""

from typing import Annotated, Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from keystead import times
from keystead.errors import quoted
from keystead.infisical import wire
from keystead.infisical.wire import ApiError, Issue, ValidationFailure
from keystead.web import bodies, reading
from keystead.web.asgi import header
from keystead.web.handling import AnyRequest, Part, Source
from keystead.web.reading import Fault, Wrong

T = TypeVar("T", bound=msgspec.Struct)
_JSON_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
_FORM = "application/x-www-form-urlencoded"
MEDIA_TYPES = (wire.JSON, _FORM)


def _is_date(text: str) -> bool:
    return not text or times.date(text) is not None


def _is_ttl(text: str) -> bool:
    return times.span(text) is not None


# An empty date is none.
_DATE = Meta(
    description="2029, 2029-06, 2029-06-12, or ISO 8601.",
    extra={"check": _is_date, "expected": "Invalid date format: {}; 2029, 2029-06, 2029-06-12 or ISO 8601 is one"},
)
Date: TypeAlias = Annotated[str, _DATE]
RequiredDate: TypeAlias = Annotated[str, Meta(min_length=1), _DATE]
Ttl: TypeAlias = Annotated[
    str,
    Meta(
        description="Such as 90d; units are s, m, h, d, w, y.",
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})? ?[smhdwy]$",
        extra={
            "check": _is_ttl,
            "expected": "TTL must be a positive number and one of s, m, h, d, w, y, such as 90d; not {}",
        },
    ),
]


def decode(raw: bytes, struct: type[T]) -> T:
    """Parse a JSON body; raises ApiError (400) if it is not JSON, and ValidationFailure for all wrong fields."""
    try:
        values = bodies.parse(raw)
    except bodies.TooMany as error:
        raise ApiError(400, str(error)) from None
    except ValueError:
        raise ApiError(400, f"The body is not JSON{bodies.instead(raw)}") from None
    if not isinstance(values, dict):
        text = f"Expected object, received {_name(values)}"
        raise ValidationFailure([Issue("invalid_type", [], text, "object", _name(values))])
    return _fields(values, struct)


def decode_form(raw: bytes, struct: type[T]) -> T:
    """Parse a form-urlencoded body; raises as `decode`."""
    try:
        pairs = parse_qsl(raw.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise ApiError(400, "The body is not form-urlencoded") from None
    return _fields(dict(pairs), struct)


def _fields(values: dict[str, Any], struct: type[T]) -> T:
    fields, faults = reading.read(struct, values, blank=False)
    issues = [_issue(wrong) for wrong in faults]
    either: tuple[str, ...] = getattr(struct, "either", ())
    if either and all(values.get(name) is None for name in either):
        issues.append(Issue("custom", [either[0]], f"Either {' or '.join(either)} must be present"))
    if issues:
        raise ValidationFailure(issues)
    return fields


def _issue(wrong: Wrong) -> Issue:
    kind, value, path = wrong.type, wrong.value, list(wrong.path)
    expected, received = _JSON_NAMES.get(kind.json, ""), _name(value)
    match wrong.fault:
        case Fault.MISSING:
            return Issue("invalid_type", path, "Required", expected, received)
        case Fault.EMPTY:
            return Issue("too_small", path, "String must contain at least 1 character(s)")
        case Fault.TYPE:
            return Issue("invalid_type", path, f"Expected {expected}, received {received}", expected, received)
        case Fault.CHOICE:
            text = f"Invalid enum value. Expected {' | '.join(map(repr, kind.choices))}, received {quoted(str(value))}"
            return Issue("invalid_enum_value", path, text)
        case Fault.LOW | Fault.HIGH:
            code, words, bound = {
                Fault.LOW: ("too_small", "greater", kind.low),
                Fault.HIGH: ("too_big", "less", kind.high),
            }[wrong.fault]
            return Issue(code, path, f"Number must be {words} than or equal to {bound}")
        case Fault.FRACTION:
            return Issue("invalid_type", path, "Expected integer, received float", "integer", "float")
        case Fault.TOO_MANY:
            return Issue("too_big", path, f"Array must contain at most {kind.high} element(s)")
        case Fault.UNKNOWN:
            return Issue("unrecognized_keys", path, f"Unrecognized key in object: {quoted(str(path[-1]))}")
        case Fault.FORMAT:
            return Issue("custom", path, kind.expected.format(quoted(str(value))))


def _name(value: object) -> str:
    return "undefined" if value is msgspec.UNSET else _JSON_NAMES.get(type(value), "null")


async def _body(request: AnyRequest, struct: type[T]) -> T:
    return decode(await wire.body(request), struct)


async def body_or_form(request: AnyRequest, struct: type[T]) -> T:
    raw = await wire.body(request)
    media_type = (header(request.scope["headers"], b"content-type") or "").partition(";")[0].strip().lower()
    # curl -d declares JSON as a form, too.
    is_form = media_type == _FORM and not raw.lstrip().startswith(b"{")
    return decode_form(raw, struct) if is_form else decode(raw, struct)


async def _query(request: AnyRequest, struct: type[T]) -> T:
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    names = [name for name, _ in pairs]
    for field in reading.type_of(struct).fields:
        if names.count(field.wire) > 1 or (field.required and field.wire not in names):
            raise ValidationFailure([Issue("invalid_type", [field.wire], "Required once", "string", "undefined")])
    return _fields(dict(pairs), struct)


# What handlers annotate their parameters with.
Body = Annotated[T, Source(Part.BODY, _body)]
Query = Annotated[T, Source(Part.QUERY, _query)]
