"""Bodies and queries are read by their types: every fault is found, at its place, and nothing else is."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import UNSET, Meta, UnsetType

from keystead.cloudflare import reading as cloudflare
from keystead.cloudflare.errors import ApiError
from keystead.csrs import store as csrs
from keystead.infisical import reading as infisical
from keystead.infisical.wire import ValidationFailure
from keystead.web import bodies, reading
from keystead.web.reading import Fault, one_of


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, frozen=True):
    id: Annotated[str, Meta(min_length=1)]


class Thing(msgspec.Struct, frozen=True, rename="camel"):
    first_name: Annotated[str, Meta(min_length=1)]
    colour: Colour
    size: Annotated[int, Meta(ge=1, le=9)] = 5
    is_big: bool | None = None
    words: tuple[str, ...] = ()
    tags: Annotated[tuple[Annotated[str, one_of(("a", "b"))], ...], Meta(max_length=2)] = ()
    inner: Inner | None = None
    note: str | UnsetType | None = UNSET


GOOD: dict[str, Any] = {"firstName": "x", "colour": "red"}


def found(**fields: Any) -> list[tuple[Fault, tuple[str | int, ...]]]:
    _, faults = reading.read(Thing, {**GOOD, **fields}, blank=False)
    return [(wrong.fault, wrong.path) for wrong in faults]


@pytest.mark.parametrize(
    ("fields", "fault", "path"),
    [
        ({"firstName": None}, Fault.MISSING, ("firstName",)),
        ({"firstName": ""}, Fault.EMPTY, ("firstName",)),
        ({"firstName": 1}, Fault.TYPE, ("firstName",)),
        ({"colour": "green"}, Fault.CHOICE, ("colour",)),
        ({"colour": ""}, Fault.CHOICE, ("colour",)),
        ({"colour": ["red"]}, Fault.TYPE, ("colour",)),
        ({"size": 0}, Fault.LOW, ("size",)),
        ({"size": 1e300}, Fault.HIGH, ("size",)),
        ({"size": 1.5}, Fault.FRACTION, ("size",)),
        ({"size": True}, Fault.TYPE, ("size",)),
        ({"size": "1"}, Fault.TYPE, ("size",)),
        ({"isBig": 1}, Fault.TYPE, ("isBig",)),
        ({"words": "a"}, Fault.TYPE, ("words",)),
        ({"words": ["a", None]}, Fault.TYPE, ("words", 1)),
        ({"tags": ["a", "c"]}, Fault.CHOICE, ("tags", 1)),
        ({"tags": ["a", "b", "a"]}, Fault.TOO_MANY, ("tags",)),
        ({"inner": []}, Fault.TYPE, ("inner",)),
        ({"inner": {}}, Fault.MISSING, ("inner", "id")),
        ({"inner": {"id": 1}}, Fault.TYPE, ("inner", "id")),
        ({"note": 1}, Fault.TYPE, ("note",)),
    ],
)
def test_a_fault_is_found_at_its_place(fields: dict[str, Any], fault: Fault, path: tuple[str | int, ...]) -> None:
    """One wrong field is one fault."""
    assert found(**fields) == [(fault, path)]


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity", b"[1,NaN]"])
def test_what_only_python_takes_for_json_is_none(word: bytes) -> None:
    """RFC 8259 has no such numbers."""
    with pytest.raises(ValueError, match=word.strip(b"[1,]").decode()):
        bodies.parse(b'{"x":' + word + b"}")


def test_all_faults_are_found_together() -> None:
    """Three mistakes are told at once, and the good fields are read."""
    thing, faults = reading.read(Thing, {"colour": "green", "size": 0, "words": ["a", 1]}, blank=False)
    assert [wrong.path for wrong in faults] == [("firstName",), ("colour",), ("size",), ("words", 1)]
    assert (thing.first_name, thing.size, thing.words) == ("", 5, ("a", ""))


def test_what_is_good_is_read() -> None:
    """1.0 is an integer, null is not sent unless the type tells them apart, and unknown fields do not matter."""
    thing, faults = reading.read(Thing, {**GOOD, "size": 1.0, "isBig": None, "note": None, "x": 1}, blank=False)
    assert faults == ()
    assert thing == Thing("x", Colour.RED, size=1, note=None)
    assert isinstance(thing.size, int)
    assert reading.read(Thing, GOOD, blank=False)[0].note is UNSET


def test_an_empty_choice_is_none_where_the_dialect_says_so() -> None:
    """Cloudflare's clients send empty strings for what they leave out."""
    _, faults = reading.read(Thing, {**GOOD, "colour": ""}, blank=True)
    assert [wrong.fault for wrong in faults] == [Fault.MISSING]


def test_there_are_at_most_so_many_faults() -> None:
    """A body full of faults makes no answer that is much larger than itself; a CSR's are all told."""
    assert len(found(words=[0] * 5000)) == reading.MAX_FAULTS
    assert len(found(words=[0] * csrs.MAX_SANS)) == csrs.MAX_SANS


def test_cloudflare_points_at_each_fault() -> None:
    """Items of a list have an index, members of an object a pointer."""
    decoded = cloudflare.decode(b'{"colour": "green", "words": [0], "inner": {"id": 1}}', Thing)
    assert [(p.field, p.index, p.member, p.text) for p in decoded.problems] == [
        ("firstName", None, None, "firstName is missing or empty."),
        ("colour", None, None, 'colour is "green"; it must be one of red, blue.'),
        ("words", 0, None, "an entry of words must be a string, not a number."),
        ("inner", None, "id", "inner.id must be a string, not a number."),
    ]


def test_infisical_points_at_each_fault() -> None:
    """The issues are Zod's."""
    with pytest.raises(ValidationFailure) as caught:
        infisical.decode(b'{"colour": "green", "size": 10, "inner": {"id": ""}}', Thing)
    assert [(issue.code, issue.path) for issue in caught.value.issues] == [
        ("invalid_type", ["firstName"]),
        ("invalid_enum_value", ["colour"]),
        ("too_big", ["size"]),
        ("too_small", ["inner", "id"]),
    ]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (b"firstName=x", "The parameter colour is missing; it must be one of red, blue."),
        (b"firstName=x&colour=green", 'The parameter colour is "green"; it must be one of red, blue.'),
        (b"firstName=x&colour=red&size=10", 'The parameter size is "10"; it must be a whole number from 1 to 9.'),
        (b"firstName=x&colour=red&isBig=1", 'The parameter isBig is "1"; it must be true or false.'),
        (b"firstName=x&firstName=x&colour=red", "The parameter firstName is given twice; give it once."),
        (b"firstName=%ff&colour=red", "The parameter firstName is not UTF-8."),
        (b"firstName=%00&colour=red", "The parameter firstName has a control character."),
    ],
)
def test_a_query_is_read_by_the_same_types(query: bytes, text: str) -> None:
    """The first wrong parameter is told with what it may be."""
    with pytest.raises(ApiError, match=text.replace("?", r"\?").replace("(", r"\(")):
        cloudflare.query(query, Thing)
    thing = cloudflare.query(b"firstName=a+b&colour=red&size=2.0&isBig=true&tags=a,b&x=1&x=2", Thing)
    assert thing == Thing("a b", Colour.RED, size=2, is_big=True, tags=("a", "b"))
