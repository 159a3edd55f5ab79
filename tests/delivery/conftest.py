"""A host beside the live server."""

from pathlib import Path

import pytest
from support.delivery import Host
from support.live import Live


@pytest.fixture
def host(live: Live, tmp_path: Path) -> Host:
    return Host(tmp_path, live)
