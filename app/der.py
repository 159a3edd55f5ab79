"""DER as far as it is written and read here by hand (X.690). Pure."""

import binascii

INTEGER, BIT_STRING, OCTET_STRING, OID, ENUMERATED, UTF8_STRING = 0x02, 0x03, 0x04, 0x06, 0x0A, 0x0C
PRINTABLE_STRING, UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x13, 0x17, 0x18, 0x30, 0x31
_COLUMNS = 64


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


def content(data: bytes, tag: int, start: int) -> tuple[int, int]:
    """Where the content of the element at `start` begins and ends; raises ValueError when there is none of this tag."""
    if len(data) < start + 2 or data[start] != tag:
        raise ValueError(f"no element of tag {tag:#x}")
    length, begin = data[start + 1], start + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[start + 2 : begin], "big")
    if begin + length > len(data):
        raise ValueError("an element goes on after the end")
    return begin, begin + length


def pem(label: str, der: bytes) -> str:
    """A PEM block with a trailing newline (RFC 7468)."""
    text = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = [text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----\n"))
