"""Which roots certificates are checked against: the system's, and the operator's own."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from app import chains

_log = structlog.get_logger("keystead.trust")


class Trust(msgspec.Struct, frozen=True):
    """The anchors, how many they are, and each that was skipped: a file, and the reason with its place there."""

    anchors: chains.Anchors
    count: int
    skipped: tuple[tuple[str, str], ...]


def load(trust_dir: Path | None) -> chains.Anchors:
    """Read the system's trust store, and every file of the operator's folder; what is skipped is logged."""
    found = read(trust_dir)
    for file, reason in found.skipped:
        _log.warning("a trust anchor was skipped", file=file, reason=reason)
    return found.anchors


def read(trust_dir: Path | None) -> Trust:
    """The same, with what was skipped."""
    certificates, skipped = [], []
    for path in _files(trust_dir):
        try:
            found, reasons = chains.read_anchors(path.read_bytes())
        except OSError as error:
            found, reasons = [], [f"it cannot be read ({error.strerror})"]
        certificates += found
        skipped += [(str(path), reason) for reason in reasons]
    anchors = chains.anchored(certificates)
    return Trust(anchors, sum(map(len, anchors.by_name.values())), tuple(skipped))


def _files(trust_dir: Path | None) -> Iterator[Path]:
    paths = ssl.get_default_verify_paths()
    system = [Path(name) for name in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt") if name]
    # One of the two is enough.
    yield from (path for path in dict.fromkeys(system) if path.exists())
    yield from sorted(path for path in trust_dir.iterdir() if path.is_file()) if trust_dir else ()
