"""Decodes bodies of Infisical's dialect; all problems are collected and reported together, as Zod does."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from app import times
from app.errors import quoted
from app.infisical.wire import Issue, Malformed, Refused
from app.web import bodies

_JSON_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


class Fields:
    """The fields of one body. Each method reads a field and records its problems; `done` raises them as Malformed."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._issues: list[Issue] = []

    def done(self) -> None:
        if self._issues:
            raise Malformed(self._issues)

    def wrong(self, field: str, text: str, code: str = "custom") -> None:
        self._issues.append(Issue(code, [field], text))

    def is_absent(self, field: str) -> bool:
        return self._values.get(field) is None

    def text(self, field: str, *, required: bool = False) -> str:
        value = self._of_type(field, str, required=required)
        if value == "" and required:
            self.wrong(field, "String must contain at least 1 character(s)", "too_small")
        return value or ""

    def choice(self, field: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._of_type(field, str, required=default is None)
        if value is not None and value not in allowed:
            self._not_one_of([field], allowed, value)
        return value if value in allowed else default or allowed[0]

    def choices(self, field: str, allowed: Sequence[str]) -> tuple[str, ...]:
        values = self._of_type(field, list, required=False) or []
        if len(values) > len(allowed):
            self.wrong(field, f"Array must contain at most {len(allowed)} element(s)", "too_big")
            return ()
        for index, value in enumerate(values):
            if not isinstance(value, str) or value not in allowed:
                self._not_one_of([field, index], allowed, value)
        return tuple(value for value in values if value in allowed)

    def _not_one_of(self, path: list[str | int], allowed: Sequence[str], value: Any) -> None:  # noqa: ANN401 - JSON
        shown = quoted(value) if isinstance(value, str) else _name(value)
        text = f"Invalid enum value. Expected {' | '.join(map(repr, allowed))}, received {shown}"
        self._issues.append(Issue("invalid_enum_value", path, text))

    def flag(self, field: str) -> bool | None:
        value: bool | None = self._of_type(field, bool, required=False)
        return value

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        """A whole number; 1.0 is one, as JSON has only one kind of number."""
        value = self._values.get(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(field, "number")
        elif value < low:
            self.wrong(field, f"Number must be greater than or equal to {low}", "too_small")
        elif value > high:
            self.wrong(field, f"Number must be less than or equal to {high}", "too_big")
        elif value != int(value):
            self._issues.append(Issue("invalid_type", [field], "Expected integer, received float", "integer", "float"))
        else:
            return int(value)
        return default

    def date(self, field: str, *, required: bool = False) -> datetime | None:
        text = self._of_type(field, str, required=required)
        if not text:
            if required and text is not None:
                self.wrong(field, "Invalid date format")
            return None
        time = times.date(text)
        if time is None:
            self.wrong(field, f"Invalid date format: {quoted(text)}; 2029, 2029-06, 2029-06-12 or ISO 8601 is one")
        return time

    def ttl(self, field: str) -> timedelta | None:
        text = self._of_type(field, str, required=False)
        if text is None:
            return None
        span = times.span(text)
        if span is None:
            self.wrong(
                field, f"TTL must be a positive number and one of s, m, h, d, w, y, such as 90d; not {quoted(text)}"
            )
        return span

    def _of_type(self, field: str, kind: type, *, required: bool) -> Any:  # noqa: ANN401 - JSON
        value = self._values.get(field)
        if value is None:
            if required:
                self._issues.append(
                    Issue("invalid_type", [field], "Required", _JSON_NAMES[kind], _received(self._values, field))
                )
            return None
        if not isinstance(value, kind):
            self._wrong_type(field, _JSON_NAMES[kind])
            return None
        return value

    def _wrong_type(self, field: str, expected: str) -> None:
        received = _name(self._values[field])
        text = f"Expected {expected}, received {received}"
        self._issues.append(Issue("invalid_type", [field], text, expected, received))


def _name(value: Any) -> str:  # noqa: ANN401 - JSON
    return _JSON_NAMES.get(type(value), "null")


def _received(values: dict[str, Any], field: str) -> str:
    return "null" if field in values else "undefined"


def fields(raw: bytes) -> Fields:
    """The fields of a JSON body; raises Refused (400) if it is not JSON, and Malformed if it is no object."""
    try:
        value = bodies.parse(raw)
    except bodies.TooMany as error:
        raise Refused(400, str(error)) from None
    except ValueError:
        raise Refused(400, f"The body is not JSON{bodies.instead(raw)}") from None
    if not isinstance(value, dict):
        text = f"Expected object, received {_name(value)}"
        raise Malformed([Issue("invalid_type", [], text, "object", _name(value))])
    return Fields(value)


def form(raw: bytes) -> Fields:
    """The fields of a form-urlencoded body; raises Refused (400)."""
    try:
        pairs = parse_qsl(raw.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise Refused(400, "The body is not form-urlencoded") from None
    return Fields(dict(pairs))
