"""DER (X.690), one value after the other: pkcs10.py and crl_bytes.py write with it, foreign.py looks into it. Pure."""

import msgspec

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
BOOLEAN, ENUMERATED, SEQUENCE, SET = 0x01, 0x0A, 0x30, 0x31
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
UTF8, NUMERIC, PRINTABLE, TELETEX, IA5, UNIVERSAL, BMP = 0x0C, 0x12, 0x13, 0x14, 0x16, 0x1C, 0x1E

MAX_OID = 64


class Malformed(ValueError):  # noqa: N818 - it reads as what it says of bytes
    """Bytes that are no DER; the text says in what, and quotes nothing of them."""


class Value(msgspec.Struct, frozen=True):
    """A value as it was sent; `whole` is tag, length and content."""

    tag: int
    content: bytes
    whole: bytes

    def __repr__(self) -> str:
        return f"Value({self.tag:#04x})"


def tlv(tag: int, content: bytes) -> bytes:
    """Tag, length in its shortest form, content (X.690 sections 8.1.3 and 10.1)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def integer(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def first(data: bytes, begin: int = 0) -> Value:
    """The value that begins there; raises Malformed."""
    head = data[begin : begin + 6]
    if len(head) < 2:
        raise Malformed("it ends too early")
    length, at = head[1], begin + 2
    if length == 0x80:
        raise Malformed("it has an indefinite length, which is BER and not DER")
    if length > 0x80:
        octets = length & 0x7F
        length, at = int.from_bytes(head[2 : 2 + octets], "big"), at + octets
        if octets > 4 or len(head) < 2 + octets:
            raise Malformed("it ends too early")
        if length < 0x80 or head[2] == 0:
            raise Malformed("it has a length that is not in its shortest form, which is BER and not DER")
    if at + length > len(data):
        raise Malformed("it ends too early")
    return Value(head[0], data[at : at + length], data[begin : at + length])


def values(data: bytes) -> list[Value]:
    """All values, one behind the other; raises Malformed."""
    found, at = [], 0
    while at < len(data):
        found.append(first(data, at))
        at += len(found[-1].whole)
    return found


def dotted(oid: bytes) -> str:
    """An object identifier as numbers with dots between them (X.690 section 8.19); empty for one that is absurd."""
    numbers, number = [], 0
    for octet in oid if len(oid) <= MAX_OID else b"":
        number = number << 7 | octet & 0x7F
        if octet < 0x80:
            numbers.append(number)
            number = 0
    if not numbers:
        return ""
    top = min(numbers[0] // 40, 2)
    return ".".join(map(str, (top, numbers[0] - 40 * top, *numbers[1:])))
