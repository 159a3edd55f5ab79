"""Which roots certificates are checked against: the system's, and the operator's own."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import structlog

from app.chains import Anchors, anchors

_log = structlog.get_logger("keystead.trust")


def load(trust_dir: Path | None) -> Anchors:
    """Read the system's trust store, and every file of the operator's folder."""
    return anchors(_contents(trust_dir))


def _contents(trust_dir: Path | None) -> Iterator[bytes]:
    paths = ssl.get_default_verify_paths()
    system = [Path(name) for name in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt") if name]
    own = sorted(path for path in trust_dir.iterdir() if path.is_file()) if trust_dir else []
    for path in (*dict.fromkeys(system), *own):
        try:
            content = path.read_bytes()
        except OSError as error:
            content = b""
            if path in own:
                _log.warning("a file of KEYSTEAD_TRUST_DIR cannot be read", file=str(path), reason=error.strerror)
        else:
            if path in own and b"-----BEGIN" not in content:
                _log.warning("a file of KEYSTEAD_TRUST_DIR holds no PEM certificate", file=str(path))
        yield content
