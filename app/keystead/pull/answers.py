"""The forms in which certificates and keys leave, and their entity tags."""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from keystead.certificates.export import Exported
from keystead.delivery.pulled import Entry


class Way(StrEnum):
    """Who asks, by the path."""

    CADDY = "caddy"
    TRAEFIK = "traefik"
    BUNDLE = "bundle"


PEM, JSON = b"application/x-pem-file", b"application/json"


class _Pair(msgspec.Struct, frozen=True, rename="camel"):
    """Traefik's CertAndStores: each member is the text itself, or else the name of a file. The repr is empty."""

    cert_file: str
    key_file: str

    def __repr__(self) -> str:
        return "_Pair()"


def bundle(exported: Exported) -> bytes:
    """The chain, then the key, in PEM."""
    return f"{exported.fullchain}{exported.private_key}".encode("ascii")


def traefik(handed: Iterable[Exported]) -> bytes:
    """A dynamic configuration of Traefik that has certificates and nothing else."""
    pairs = [_Pair(each.fullchain, each.private_key) for each in handed]
    return msgspec.json.encode({"tls": {"certificates": pairs}})


def tag(entries: Sequence[Entry]) -> str:
    """An entity tag that changes with the certificates; their keys are those of their leaves."""
    text = "\n".join(f"{each.certificate.id} {each.version}" for each in entries)
    return f'"{hashlib.sha256(text.encode("ascii")).hexdigest()[:32]}"'


def matches(header: str | None, tag: str) -> bool:
    """Whether If-None-Match has this tag (RFC 9110 section 13.1.2)."""
    if header is None:
        return False
    return any(each.strip().removeprefix("W/") in {tag, "*"} for each in header.split(","))
