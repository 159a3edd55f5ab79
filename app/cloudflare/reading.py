"""What every handler reads the same way: JSON objects, their texts, and query parameters (contract-cloudflare 1, 2)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus, unquote_to_bytes

from app import bodies, times
from app.cloudflare.wire import Refused
from app.errors import Advice, Hint, Problem, Rule, quoted
from app.model import Direction

MAX_IGNORED = 20
# The driver of the database takes the first and the last moment of all for infinite ones.
_INFINITE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
# The largest whole number that every JSON reader keeps exact (RFC 8259 section 6).
MAX_PAGE = 2**53 - 1
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
    """The object of a body, or the problem that it is none."""
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
    """A text field; null means "not given": unset for an optional field, and missing for a required one."""
    if isinstance(value, str):
        return value
    if value is not None:
        malformed.append(wrong_type(value, field, "a string"))
    return ""


def required_text(fields: dict[str, Any], field: str, problems: list[Problem]) -> str:
    """A text that must be there, and not be empty."""
    value = fields.get(field)
    if value is None or value == "":
        problems.append(Problem(Rule.MISSING, field, f"{field} is missing or empty."))
        return ""
    return text(value, field, problems)


def time_of(fields: dict[str, Any], field: str, problems: list[Problem]) -> datetime | None:
    """A date or an RFC 3339 time; null and the empty text are unset."""
    value = text(fields.get(field), field, problems)
    found = times.date(value) if value else None
    if value and (found is None or found in _INFINITE):
        found = None
        sentence = f"{field} {quoted(value)} is no RFC 3339 time such as 2027-01-31T12:00:00Z."
        problems.append(Problem(Rule.TIME, field, sentence))
    return found


def ignored(fields: dict[str, Any], known: frozenset[str], thing: str) -> tuple[Advice, ...]:
    """Advice on the fields that nobody knows."""
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
    """The one value of a parameter; raises 1455 for more."""
    if len(values[key]) > 1:
        raise Refused(400, 1455, f"The parameter {key} is given twice; give it once.")
    return values[key][0]


def repeated_values(query_string: bytes, known: frozenset[str], most: int) -> dict[str, list[str]]:
    """The known parameters of a query that may be repeated `most` times; raises 1455 as `known_values`."""
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
            # The raw bytes may be UTF-8 too, and not only what is percent-encoded.
            value = unquote_to_bytes(raw_value.replace("+", " ").encode("latin-1")).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(400, 1455, f"The parameter {key} is not UTF-8.") from None
        if _CONTROL.search(value):
            raise Refused(400, 1455, f"The parameter {key} has a control character.")
        values.setdefault(key, []).append(value)
    return values


def whole(values: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    """A whole number, `2.0` included, since the SDK's type is float."""
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
