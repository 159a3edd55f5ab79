"""Parsing shared by the handlers: bodies, fields, headers and query parameters (contract-cloudflare sections 1, 2)."""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus, unquote_to_bytes
from uuid import UUID

from app import times
from app.cloudflare.envelope import JSON
from app.cloudflare.errors import Refused
from app.errors import Advice, Hint, Problem, Rule, quoted
from app.ids import canonical_uuid
from app.store.idempotency import Idempotency
from app.store.paging import MAX_PAGE, Direction
from app.web import bodies
from app.web.handling import AnyRequest, header_values

MAX_BODY = 64 * 1024
MAX_CERTIFICATE_BODY = 256 * 1024
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


async def body(request: AnyRequest, most: int = MAX_BODY) -> bytes:
    """The raw body; raises 1454 if it is too large, and 1400 if it is incomplete or too slow."""
    try:
        return await bodies.read(request, most)
    except bodies.TooLarge as error:
        raise Refused(413, 1454, str(error)) from None
    except bodies.Incomplete as error:
        raise Refused(400, 1400, str(error)) from None


def idempotency(request: AnyRequest, raw: bytes) -> Idempotency | None:
    """The Idempotency-Key header with the hash of the body, or None; raises 1456."""
    keys = header_values(request, b"idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise Refused(400, 1456, "Idempotency-Key must be given once, as 1 to 255 printable ASCII characters.")
    return Idempotency(keys[0], hashlib.sha256(raw).digest())


def csr_id(text: str) -> UUID:
    """Parse a CSR's id in a path; raises 1418."""
    found = canonical_uuid(text)
    if found is None:
        raise Refused(400, 1418, f"{quoted(text)} is not the id of a CSR: a UUID is.")
    return found


def certificate_id(text: str) -> UUID:
    """Parse a certificate's id; anything but a UUID is reported as an unknown certificate (404/1002)."""
    found = canonical_uuid(text)
    if found is None:
        raise Refused(404, 1002, f"There is no custom certificate {quoted(text)} here.")
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


MAX_IGNORED = 20
# asyncpg stores these as -infinity and infinity.
_INFINITE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_JSON_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_WHOLE = re.compile(r"([0-9]{1,16})(?:\.0*)?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def json_object(raw: bytes) -> dict[str, Any] | Problem:
    """Parse a body as a JSON object; returns a Problem if it is none."""
    try:
        fields = bodies.parse(raw)
    except bodies.TooMany as error:
        return Problem(Rule.BODY, "", str(error))
    except ValueError:
        return Problem(Rule.BODY, "", f"The body is not JSON{bodies.instead(raw)}.")
    return fields if isinstance(fields, dict) else Problem(Rule.BODY, "", "The body is not a JSON object.")


def wrong_type(value: Any, field: str, wanted: str, index: int | None = None) -> Problem:  # noqa: ANN401 - JSON
    name = "a SAN" if index is not None else field
    return Problem(Rule.TEXT, field, f"{name} must be {wanted}, not {_JSON_NAMES.get(type(value), 'null')}.", index)


def text(value: Any, field: str, malformed: list[Problem]) -> str:  # noqa: ANN401 - JSON
    """A text field; empty if it is null or absent."""
    if isinstance(value, str):
        return value
    if value is not None:
        malformed.append(wrong_type(value, field, "a string"))
    return ""


def required_text(fields: dict[str, Any], field: str, problems: list[Problem]) -> str:
    """A required, non-empty text field."""
    value = fields.get(field)
    if value is None or value == "":
        problems.append(Problem(Rule.MISSING, field, f"{field} is missing or empty."))
        return ""
    return text(value, field, problems)


def time_of(fields: dict[str, Any], field: str, problems: list[Problem]) -> datetime | None:
    """A date or an RFC 3339 time; None if null, empty or absent."""
    value = text(fields.get(field), field, problems)
    found = times.date(value) if value else None
    if value and (found is None or found in _INFINITE):
        found = None
        sentence = f"{field} {quoted(value)} is no RFC 3339 time such as 2027-01-31T12:00:00Z."
        problems.append(Problem(Rule.TIME, field, sentence))
    return found


def ignored(fields: dict[str, Any], known: frozenset[str], thing: str) -> tuple[Advice, ...]:
    """Advice on unknown fields, for at most MAX_IGNORED of them."""
    unknown = [field for field in fields if field not in known][:MAX_IGNORED]
    return tuple(
        Advice(Hint.UNKNOWN_FIELD, field, f"{quoted(field)} is not a field of {thing} and was ignored.")
        for field in unknown
    )


def known_values(query_string: bytes, known: frozenset[str]) -> dict[str, str]:
    """The known parameters of a query; raises 1455 for one given twice, not UTF-8, or with a control character."""
    values = repeated_values(query_string, known, 1)
    return {key: single(values, key) for key in values}


def single(values: Mapping[str, list[str]], key: str) -> str:
    """The single value of a parameter; raises 1455 if it is repeated."""
    if len(values[key]) > 1:
        raise Refused(400, 1455, f"The parameter {key} is given twice; give it once.")
    return values[key][0]


def repeated_values(query_string: bytes, known: frozenset[str], most: int) -> dict[str, list[str]]:
    """The known parameters of a query, each up to `most` times; raises 1455 like `known_values`."""
    values: dict[str, list[str]] = {}
    for pair in query_string.decode("latin-1").split("&"):
        raw_key, _, raw_value = pair.partition("=")
        key = unquote_plus(raw_key, errors="replace")
        if key not in known:
            continue
        if len(values.get(key, ())) >= most:
            times_given = "twice; give it once" if most == 1 else f"more than {most} times"
            raise Refused(400, 1455, f"The parameter {key} is given {times_given}.")
        try:
            # UTF-8 is accepted raw as well as percent-encoded.
            value = unquote_to_bytes(raw_value.replace("+", " ").encode("latin-1")).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(400, 1455, f"The parameter {key} is not UTF-8.") from None
        if _CONTROL.search(value):
            raise Refused(400, 1455, f"The parameter {key} has a control character.")
        values.setdefault(key, []).append(value)
    return values


def whole(values: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    """An integer parameter; `2.0` is one, because the SDK's type is float. Raises 1455."""
    if key not in values:
        return default
    match = _WHOLE.fullmatch(values[key])
    if match is None or not low <= int(match[1]) <= high:
        sentence = f"The parameter {key} is {quoted(values[key])}; it must be a whole number from {low} to {high}."
        raise Refused(400, 1455, sentence)
    return int(match[1])


def one_of(values: dict[str, str], key: str, allowed: tuple[str, ...]) -> str | None:
    if key in values and values[key] not in allowed:
        sentence = f"The parameter {key} is {quoted(values[key])}; it must be one of {', '.join(allowed)}."
        raise Refused(400, 1455, sentence)
    return values.get(key)


def page_of(values: dict[str, str], default: int, low: int, high: int) -> tuple[int, int]:
    """`page` and `per_page`."""
    return whole(values, "page", 1, 1, MAX_PAGE), whole(values, "per_page", default, low, high)


def direction_of(values: dict[str, str], default: Direction) -> Direction:
    return Direction(one_of(values, "direction", tuple(Direction)) or default)
