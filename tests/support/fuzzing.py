"""How the fuzz tests draw their inputs: what is valid, and then bent, in DER, PEM and JSON."""

import base64
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# None in the suite, where the same examples are drawn each time; `make fuzz` draws others for about so long.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
# What all examples of the suite take.
SUITE_SECONDS = 20
LONG = bool(SECONDS) or "LONG" in os.environ
# How quickly examples are made says nothing of what is tested, and much of what else the machine does.
settings.register_profile(
    "keystead",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
    # Others only where nobody waits for the outcome.
    derandomize=not LONG or os.environ.get("CI") == "true",
)
settings.load_profile("keystead")
Bend = tuple[str, int, bytes]
Test = TypeVar("Test", bound=Callable[..., object])


def examples(count: int) -> Callable[[Test], Test]:
    """So many examples where there is time for all of them (see the mark `properties`), and a fifth elsewhere."""
    chosen = settings(max_examples=_all_or_some(count))
    return lambda test: pytest.mark.properties(chosen(test))


def fuzzed(count: int) -> Callable[[Test], Test]:
    """The same examples each time, and more and others in proportion to FUZZ_SECONDS."""
    chosen = settings(
        max_examples=max(_all_or_some(count), int(count * SECONDS / SUITE_SECONDS)),
        derandomize=not SECONDS,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: pytest.mark.properties(chosen(test))


def _all_or_some(count: int) -> int:
    return count if LONG else max(count // 5, 10)


# DER.


class Node(msgspec.Struct):
    """One value of DER. `lead` goes before what is nested in it: the unused bits of a BIT STRING."""

    tag: int
    content: "bytes | list[Node]"
    lead: bytes = b""


def length(size: int) -> bytes:
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([size]) if size < 128 else bytes([0x80 | len(octets)]) + octets


def der(node: Node) -> bytes:
    content = node.content if isinstance(node.content, bytes) else b"".join(map(der, node.content))
    content = node.lead + content
    return bytes([node.tag]) + length(len(content)) + content


def sequence(*parts: bytes) -> bytes:
    content = b"".join(parts)
    return b"\x30" + length(len(content)) + content


def integer(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return b"\x02" + length(len(content)) + content


def read(data: bytes, levels: int = 50) -> list[Node] | None:
    """The values of DER, also those inside of strings, but none further down; None for what is no DER."""
    found = []
    while data:
        if len(data) < 2 or data[0] == 0 or not levels:
            return None
        size, head = data[1], 2
        if size >= 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[2:head], "big")
        content, rest = data[head : head + size], data[head + size :]
        if len(content) < size:
            return None
        found.append(_node(data[0], content, levels - 1))
        data = rest
    return found


def _node(tag: int, content: bytes, levels: int) -> Node:
    lead = content[:1] if tag == 0x03 else b""
    if tag & 0x20 or tag in {0x03, 0x04}:
        inner = read(content.removeprefix(lead), levels)
        if inner:
            return Node(tag, inner, lead)
    return Node(tag, content)


def _all(node: Node) -> list[Node]:
    below = [] if isinstance(node.content, bytes) else node.content
    return [node, *(each for inner in below for each in _all(inner))]


def bent(valid: bytes, bends: list[Bend]) -> bytes:
    """DER after a few changes: those of whole values, with all lengths right, and then those of single bytes."""
    (root,) = read(valid) or [Node(0x05, b"")]
    for how, where, some in bends:
        everything = _all(root)
        _CHANGES.get(how, _nothing)(everything[where % len(everything)], everything[where // 7 % len(everything)], some)
    data = der(root)
    for how, where, some in bends:
        at = where % (len(data) + 1)
        if how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (some or b"\x01")[0]]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        elif how == "put":
            data = data[:at] + some + data[at:]
    return data


def _nothing(_: Node, __: Node, ___: bytes) -> None:
    pass


def _drop(node: Node, _: Node, __: bytes) -> None:
    if not isinstance(node.content, bytes):
        node.content = node.content[1:]


def _twice(node: Node, _: Node, __: bytes) -> None:
    node.content = 2 * node.content


def _tag(node: Node, _: Node, some: bytes) -> None:
    node.tag = (some or b"\x05")[0]


def _other(node: Node, other: Node, _: bytes) -> None:
    # As bytes, since a value that holds itself has no end.
    node.tag, node.lead = other.tag, b""
    node.content = der(other)[2:] if isinstance(other.content, bytes) else b"".join(map(der, other.content))


def _fill(node: Node, _: Node, some: bytes) -> None:
    node.content, node.lead = some, b""


def _grow(node: Node, _: Node, some: bytes) -> None:
    node.content, node.lead = (some or b"\x7f") * 40, b""


def _nest(node: Node, _: Node, some: bytes) -> None:
    content = der(node)
    for _level in range(3 ** len(some)):
        content = b"\x30" + length(len(content)) + content
    node.content, node.lead = content, b""


_CHANGES: dict[str, Callable[[Node, Node, bytes], None]] = {
    "drop": _drop,
    "twice": _twice,
    "tag": _tag,
    "other": _other,
    "fill": _fill,
    "grow": _grow,
    "nest": _nest,
}
BENDS: st.SearchStrategy[list[Bend]] = st.lists(
    st.tuples(
        st.sampled_from([*_CHANGES, *_CHANGES, "flip", "cut", "put"]), st.integers(0, 5000), st.binary(max_size=6)
    ),
    max_size=3,
)

# PEM.


def pem(label: str, data: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n"


_PEM_BENDS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "one line": lambda text: text.replace("\n", ""),
    "spaces": lambda text: text.replace("\n", " \t\n"),
    "other spaces": lambda text: text.replace("\n", "\u2028\x0b\x85"),
    "zero width": lambda text: text.replace("\n", "\u200b\n"),
    "NUL": lambda text: text.replace("\n", "\n\0", 2),
    "words around": lambda text: f"\ufeffBag Attributes\n{text}\udfff-----BEGIN X-----",
    "twice": lambda text: text * 2,
    "many": lambda text: text * 30,
    "inside another": lambda text: f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n",
    "no end": lambda text: text[: text.rindex("-----END")],
    "unpadded": lambda text: text.replace("=", ""),
    "other end": lambda text: text.replace("-----END ", "-----END X"),
    "headers": lambda text: text.replace("-----\n", "-----\nProc-Type: 4\nX: y\n\n", 1),
}
_AS_SENT = st.sampled_from([*["as it is"] * 8, *_PEM_BENDS])


def pems(valid: list[tuple[str, bytes]]) -> st.SearchStrategy[str]:
    """PEM of one of these, by label and DER, bent inside or around."""

    def text(one: tuple[str, bytes], bends: list[Bend], around: str) -> str:
        return _PEM_BENDS[around](pem(one[0], bent(one[1], bends)))

    return st.builds(text, st.sampled_from(valid), BENDS, _AS_SENT)


# JSON.

# What text goes wrong with: breaks, controls, invisible and turning characters, lookalikes, no characters at all.
ODD = (
    "aZ09 .-_*@:/%+,=\\\"'\t\n\x00\x7f\x85\u00ad\u061c\u200b\u200d\u202e\u2066\ufeff\uff0e\u3002"
    "\u00df\u0130\u0131\u212a\u00e9\u0301\u6771\U0001f600\ud800\udfff"
)
TEXTS = st.text(st.sampled_from(ODD), max_size=12) | st.text(max_size=6)
_ODD_JSON = [
    *("null", "true", "false", "0", "-0", "-1", "1.0", "1.5", "1e3", "1e400", "-1e400", "1e-400", "[]", "{}", '""'),
    *("9" * 20, "9" * 999, "9" * 5000, "-" + "9" * 5000, "NaN", "Infinity", "0x1", "01", "", '"\\u0000"', '"\\ud800"'),
    *("[" * 50 + "]" * 50, "[" * 900 + "]" * 900, "[" * 20_000, '{"":' * 900 + "0" + "}" * 900, '"' + "a" * 3000 + '"'),
]


def _object(members: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"


JSON: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(_ODD_JSON) | TEXTS.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(TEXTS.map(json.dumps), inner), max_size=4).map(_object)
    ),
    max_leaves=5,
)


@st.composite
def objects(draw: st.DrawFn, valid: dict[str, Any], pinned: frozenset[str] = frozenset()) -> str:
    """The JSON text of an object like this one: some of its fields are others, missing, or there twice."""
    members = []
    for name, value in valid.items():
        how = draw(st.sampled_from(["keep"] * 5 + ["odd", "drop", "twice", "inside"])) if name not in pinned else "keep"
        good = (json.dumps(name), json.dumps(value))
        odd = (json.dumps(name), draw(JSON)) if how in {"odd", "twice"} else good
        members += {"keep": [good], "drop": [], "odd": [odd], "twice": [odd, good]}.get(how, [])
        if how == "inside":
            inner = {"": value} if not isinstance(value, dict | list) else value
            bent_inner = draw(objects(inner)) if isinstance(inner, dict) else draw(lists(inner))
            members.append((json.dumps(name), bent_inner))
    if draw(st.integers(0, 9)) == 0:
        members.append((draw(TEXTS.map(json.dumps)), draw(JSON)))
    return _object(members)


@st.composite
def lists(draw: st.DrawFn, valid: list[Any]) -> str:
    """The JSON text of a list like this one, in which one value is another."""
    items = [draw(objects(item)) if isinstance(item, dict) else json.dumps(item) for item in valid]
    at = draw(st.integers(0, len(items)))
    return f"[{','.join([*items[:at], draw(JSON | st.just('null')), *items[at + 1 :]])}]"


def bodies(valid: dict[str, Any], pinned: frozenset[str] = frozenset()) -> st.SearchStrategy[bytes]:
    """Bodies like this one, now and then with a few bytes that no JSON has."""
    edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=2)
    whole = objects(valid, pinned).map(str.encode)
    return st.one_of(*[whole] * 6, st.builds(_edited, whole, edits), JSON.map(str.encode))


def _edited(raw: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    for where, some in edits:
        at = where % (len(raw) + 1)
        raw = raw[:at] + some + raw[at + 1 :]
    return raw
