"""Reads JSON into Structs: the fields' types say what is required and allowed, for the reader and for OpenAPI alike.

All faults are collected with their paths; each dialect has its own sentences for them. Maximum lengths of texts are
left to the rules of the core, which report them with a reason.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, inspect

# More than a CSR with the most SANs can have.
MAX_FAULTS = 200
# In place of a value that is not there or wrong: the field's default, or an empty value, stands in.
_BAD = object()
T = TypeVar("T", bound=msgspec.Struct)


class Fault(Enum):
    MISSING = auto()
    EMPTY = auto()
    TYPE = auto()
    CHOICE = auto()
    LOW = auto()
    HIGH = auto()
    FRACTION = auto()
    TOO_MANY = auto()
    FORMAT = auto()
    UNKNOWN = auto()


class Wrong(msgspec.Struct, frozen=True):
    """One fault: where, what was sent (UNSET for nothing), and what the type allows."""

    fault: Fault
    path: tuple[str | int, ...]
    value: object
    type: "Type"


class Type(msgspec.Struct, frozen=True):
    """What a field may be. `json` is the JSON type's Python type, object for any; `low` and `high` bound a number.

    `low` of a text is its least length, `high` of a list its greatest.

    `check` and `expected` come from Meta(extra={…}): a function that is false for a bad value, and words for good ones.
    With `blank`, an empty string counts as not sent; with `strict`, a member that is not known is a fault.
    """

    json: type
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    item: "Type | None" = None
    fields: tuple["Field", ...] = ()
    make: Callable[..., Any] | None = None
    blank: bool = False
    strict: bool = False
    check: Callable[[Any], Any] | None = None
    expected: str = ""


def one_of(values: Iterable[str]) -> Meta:
    """For a text field: these values alone."""
    choices = tuple(values)
    return Meta(extra={"choices": choices}, extra_json_schema={"enum": [*choices]})


class Field(msgspec.Struct, frozen=True):
    """A field of a Struct: its Python name, its name in JSON, its type, and whether null differs from not sent."""

    name: str
    wire: str
    type: Type
    required: bool
    keeps_null: bool


@cache
def type_of(struct: type) -> Type:
    """What a Struct's fields may be."""
    return _type(inspect.type_info(struct))


def _type(info: inspect.Type) -> Type:
    match info:
        case inspect.Metadata(type=inner, extra=extra):
            return msgspec.structs.replace(_type(inner), **(extra or {}))
        case inspect.UnionType(types=types):
            return _type(next(each for each in types if not isinstance(each, inspect.NoneType)))
        case inspect.StrType(min_length=low):
            return Type(str, low=low)
        case inspect.EnumType(cls=cls):
            return Type(str, choices=tuple(member.value for member in cls), make=cls)
        case inspect.LiteralType(values=values):
            return Type(str, choices=tuple(map(str, values)))
        case inspect.IntType(ge=low, le=high):
            return Type(int, low=low, high=high)
        case inspect.BoolType():
            return Type(bool)
        case inspect.VarTupleType(item_type=item, max_length=most):
            return Type(list, item=_type(item), high=most)
        case inspect.StructType(cls=cls, fields=fields):
            strict = cls.__struct_config__.forbid_unknown_fields
            return Type(dict, make=cls, fields=tuple(map(_field, fields)), strict=strict)
    return Type(object)


def _field(field: inspect.Field) -> Field:
    # Of a field whose default is UNSET, msgspec tells neither a default nor a factory.
    unset = not field.required and field.default is field.default_factory is NODEFAULT
    return Field(
        name=field.name,
        wire=field.encode_name,
        type=_type(field.type),
        required=field.required,
        keeps_null=unset and isinstance(field.type, inspect.UnionType) and field.type.includes_none,
    )


def read(struct: type[T], values: Mapping[str, Any], *, blank: bool) -> tuple[T, tuple[Wrong, ...]]:
    """The Struct and all faults in `values`; a field with a fault has its default, or else is empty.

    null counts as not sent, unless the type tells them apart; with `blank`, so does an empty string for a choice.
    """
    reader = _Reader(blank)
    fields: T = reader.struct(type_of(struct), values, ())
    return fields, tuple(reader.found)


class _Reader:
    def __init__(self, blank: bool) -> None:
        self.found: list[Wrong] = []
        self._blank = blank

    def _wrong(self, fault: Fault, path: tuple[str | int, ...], value: object, kind: Type) -> None:
        if len(self.found) < MAX_FAULTS:
            self.found.append(Wrong(fault, path, value, kind))

    def _is_blank(self, kind: Type) -> bool:
        return kind.blank or (self._blank and bool(kind.choices))

    def struct(self, kind: Type, values: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:  # noqa: ANN401
        fields = {}
        if kind.strict:
            known = {field.wire for field in kind.fields}
            for name, value in values.items():
                if name not in known:
                    self._wrong(Fault.UNKNOWN, (*path, name), value, kind)
        for field in kind.fields:
            value = values.get(field.wire, UNSET)
            if value is None and field.keeps_null:
                read = None
            elif value is None or value is UNSET or (value == "" and self._is_blank(field.type)):
                read = _BAD
                if field.required:
                    self._wrong(Fault.MISSING, (*path, field.wire), value, field.type)
            else:
                read = self._value(field.type, value, (*path, field.wire))
            if read is not _BAD:
                fields[field.name] = read
            elif field.required:
                fields[field.name] = _empty(field.type)
        return kind.make(**fields) if kind.make else fields

    def _value(self, kind: Type, value: Any, path: tuple[str | int, ...]) -> Any:  # noqa: ANN401 - JSON
        fault = _fault(kind, value)
        if fault:
            self._wrong(fault, path, value, kind)
            return _BAD
        if kind.fields:
            return self.struct(kind, value, path)
        if kind.item:
            items = (self._value(kind.item, item, (*path, index)) for index, item in enumerate(value))
            return tuple(_empty(kind.item) if item is _BAD else item for item in items)
        if kind.json is int:
            return int(value)
        return kind.make(value) if kind.make else value


def _fault(kind: Type, value: Any) -> Fault | None:  # noqa: ANN401 - JSON; one for each fault
    # JSON has one kind of number: 1.0 is an integer.
    accepted: Any = (int, float) if kind.json is int else kind.json
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind.json is int):
        return Fault.TYPE
    if kind.choices and value not in kind.choices:
        return Fault.CHOICE
    if kind.json is str and kind.low and not value:
        return Fault.EMPTY
    if kind.json is list and kind.high is not None and len(value) > kind.high:
        return Fault.TOO_MANY
    if kind.json is int:
        if kind.low is not None and value < kind.low:
            return Fault.LOW
        if kind.high is not None and value > kind.high:
            return Fault.HIGH
        if value != int(value):
            return Fault.FRACTION
    return Fault.FORMAT if kind.check and not kind.check(value) else None


def _empty(kind: Type) -> Any:  # noqa: ANN401 - of the field's type
    if kind.fields and kind.make:
        return kind.make(**{field.name: _empty(field.type) for field in kind.fields})
    if kind.choices:
        return kind.make(kind.choices[0]) if kind.make else kind.choices[0]
    return () if kind.json is list else kind.json()
