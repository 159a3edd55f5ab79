"""A server that renews nothing by itself."""

import pytest

from keystead.server import worker


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns are those of the tests, however long these take."""
    monkeypatch.setattr(worker, "RENEWAL_SECONDS", 3600)
