"""Minimal DER encoder and decoder (X.690), used by pkcs10.py, crl.py, keys.py and foreign.py. Pure."""

import msgspec

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
BOOLEAN, ENUMERATED, SEQUENCE, SET = 0x01, 0x0A, 0x30, 0x31
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
UTF8, NUMERIC, PRINTABLE, TELETEX, IA5, UNIVERSAL, BMP = 0x0C, 0x12, 0x13, 0x14, 0x16, 0x1C, 0x1E

# Bytes.
MAX_OID = 64


class Unreadable(ValueError):  # noqa: N818 - the name describes the input
    """Invalid PEM, DER or X.509; the text is the reason, and quotes at most one character of the input."""


class Value(msgspec.Struct, frozen=True):
    """A decoded value; `encoded` has its tag and length."""

    tag: int
    content: bytes
    encoded: bytes

    def __repr__(self) -> str:
        return f"Value({self.tag:#04x})"


def tlv(tag: int, content: bytes) -> bytes:
    """Encode a value: tag, length in its shortest form, content (X.690 sections 8.1.3 and 10.1)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def integer(value: int) -> bytes:
    """Encode a non-negative INTEGER."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def first(data: bytes, begin: int = 0) -> Value:
    """Decode the value at offset `begin`; following bytes are ignored. Raises Unreadable."""
    head = data[begin : begin + 6]
    if len(head) < 2:
        raise Unreadable("it ends too early")
    length, at = head[1], begin + 2
    if length == 0x80:
        raise Unreadable("it has an indefinite length, which is BER and not DER")
    if length > 0x80:
        octets = length & 0x7F
        length, at = int.from_bytes(head[2 : 2 + octets], "big"), at + octets
        if octets > 4 or len(head) < 2 + octets:
            raise Unreadable("it ends too early")
        if length < 0x80 or head[2] == 0:
            raise Unreadable("it has a length that is not in its shortest form, which is BER and not DER")
    if at + length > len(data):
        raise Unreadable("it ends too early")
    return Value(head[0], data[at : at + length], data[begin : at + length])


def values(data: bytes) -> list[Value]:
    """Decode all values in `data`; raises Unreadable."""
    found, at = [], 0
    while at < len(data):
        found.append(first(data, at))
        at += len(found[-1].encoded)
    return found


def dotted(oid: bytes) -> str:
    """Decode the content of an OID to dotted form (X.690 section 8.19); empty if invalid or over MAX_OID bytes."""
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
