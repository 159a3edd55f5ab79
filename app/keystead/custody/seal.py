"""Envelope encryption with AES-256-GCM (NIST SP 800-38D): a data key per secret, wrapped by a KEK.

The wrapped data key and the sealed secret have the same format, version 1:

    offset  0         1                13                     len-16        len
            +---------+----------------+----------------------+-------------+
            | version | nonce          | ciphertext           | tag         |
            | 0x01    | 12 random bytes| as long as the input | 16 bytes    |
            +---------+----------------+----------------------+-------------+

The associated data of both is the context, so that a value only decrypts in its own row:

    "keystead" 0x00 | version 0x01 | each field as a 2-byte big-endian length and its bytes

The first field is the purpose, "wrap" or "seal". For a private key the next fields are "private-key", key id (16
bytes), account id (16 bytes), key type (ASCII) and SHA-256 of the SubjectPublicKeyInfo (32 bytes); for a pepper,
"pepper" and its id (16 bytes). "wrap" has the KEK id as its last field. docs/custody.md has a worked example.

A data key encrypts one secret once. A KEK uses random 96-bit nonces, for far fewer than the allowed 2^32 encryptions.
"""

import os
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16


class Kek(msgspec.Struct, frozen=True):
    """A key-encryption key: `id` is public and stored in each row, `secret` is 32 random bytes."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Kek({self.id})"


class Sealed(msgspec.Struct, frozen=True):
    """An encrypted secret and its wrapped data key; not confidential without the KEK."""

    kek_id: str
    wrapped_key: bytes
    ciphertext: bytes


class Broken(Exception):  # noqa: N818 - the name describes the input
    """The value was not sealed by this KEK for this context, or was modified."""


def private_key_context(key_id: UUID, account_id: UUID, key_type: str, spki_sha256: bytes) -> tuple[bytes, ...]:
    return (b"private-key", key_id.bytes, account_id.bytes, key_type.encode("ascii"), spki_sha256)


def pepper_context(pepper_id: UUID) -> tuple[bytes, ...]:
    return (b"pepper", pepper_id.bytes)


def seal(kek: Kek, context: tuple[bytes, ...], secret: bytes) -> Sealed:
    """Encrypt `secret` with a new data key, and wrap the data key with `kek`."""
    data_key = os.urandom(KEY_BYTES)
    wrapped = _encrypt(kek.secret, _associated(b"wrap", (*context, kek.id.encode())), data_key)
    return Sealed(kek.id, wrapped, _encrypt(data_key, _associated(b"seal", context), secret))


def open_(kek: Kek, context: tuple[bytes, ...], sealed: Sealed) -> bytes:
    """Decrypt a sealed secret; raises Broken if the value, the context or the KEK differs."""
    data_key = _decrypt(kek.secret, _associated(b"wrap", (*context, kek.id.encode())), sealed.wrapped_key)
    if len(data_key) != KEY_BYTES:
        raise Broken("the data key has the wrong length")
    return _decrypt(data_key, _associated(b"seal", context), sealed.ciphertext)


def rewrap(old: Kek, new: Kek, context: tuple[bytes, ...], wrapped_key: bytes) -> bytes:
    """Wrap the data key with another KEK; the ciphertext of the secret does not change. Raises Broken."""
    data_key = _decrypt(old.secret, _associated(b"wrap", (*context, old.id.encode())), wrapped_key)
    return _encrypt(new.secret, _associated(b"wrap", (*context, new.id.encode())), data_key)


def _associated(purpose: bytes, fields: tuple[bytes, ...]) -> bytes:
    return b"keystead\x00" + _VERSION + b"".join(len(f).to_bytes(2, "big") + f for f in (purpose, *fields))


def _encrypt(key: bytes, associated: bytes, secret: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + nonce + AESGCM(key).encrypt(nonce, secret, associated)


def _decrypt(key: bytes, associated: bytes, value: bytes) -> bytes:
    if len(value) < 1 + _NONCE_BYTES + _TAG_BYTES:
        raise Broken("the value is truncated")
    if value[:1] != _VERSION:
        raise Broken(f"the value has the unknown format version {value[0]}")
    try:
        return AESGCM(key).decrypt(value[1 : 1 + _NONCE_BYTES], value[1 + _NONCE_BYTES :], associated)
    except InvalidTag:
        raise Broken("the value was changed, or belongs to another row or key") from None
