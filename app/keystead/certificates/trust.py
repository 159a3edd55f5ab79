"""Trust anchors: the system's trust store, and the operator's KEYSTEAD_TRUST_DIR."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from keystead.x509 import chains

_log = structlog.get_logger("keystead.trust")


class Trust(msgspec.Struct, frozen=True):
    """Trust anchors, their number, and what was skipped as (file, reason with position)."""

    anchors: chains.Anchors
    count: int
    skipped: tuple[tuple[str, str], ...]


def load(trust_dir: Path | None) -> chains.Anchors:
    """Load the system's trust store and every file in `trust_dir`; skipped certificates are logged."""
    found = read(trust_dir)
    for file, reason in found.skipped:
        _log.warning("a trust anchor was skipped", file=file, reason=reason)
    return found.anchors


def read(trust_dir: Path | None) -> Trust:
    """As `load`, but returns what was skipped instead of logging it."""
    certificates, skipped = [], []
    for path in _files(trust_dir):
        try:
            found, reasons = chains.read_anchors(path.read_bytes())
        except OSError as error:
            found, reasons = [], [f"it cannot be read ({error.strerror})"]
        certificates += found
        skipped += [(str(path), reason) for reason in reasons]
    anchors = chains.Anchors({}).plus(certificates)
    return Trust(anchors, sum(map(len, anchors.by_name.values())), tuple(skipped))


def _files(trust_dir: Path | None) -> Iterator[Path]:
    paths = ssl.get_default_verify_paths()
    system = [Path(name) for name in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt") if name]
    # Missing files are skipped; on most systems both names lead to the same store.
    yield from (path for path in dict.fromkeys(system) if path.exists())
    yield from sorted(path for path in trust_dir.iterdir() if path.is_file()) if trust_dir else ()
