"""How often a delivery that fails is tried again."""

from pathlib import Path

import pytest

from keystead.caller import Caller
from keystead.delivery import work
from keystead.delivery.settings import Delivery, Format, Settings
from keystead.delivery.state import State
from keystead.delivery.work import Deliveries, Result
from keystead.server import first_start

DELIVERY = Delivery(name="www", folder="/x", files={Format.FULLCHAIN: "a"}, zone="example.com", host="example.com")


@pytest.fixture
def deliveries() -> Deliveries:
    operator: Caller = first_start.operator()
    return Deliveries(Settings(state="/x", deliver=(DELIVERY,)), State(Path("/x"), {}), operator)


def times(deliveries: Deliveries, wanted: dict[str, str]) -> int:
    """How often it has failed, after one more failure."""
    assert deliveries._failed(DELIVERY, wanted, "no").result is Result.FAILED
    return deliveries._troubles["www"].times


def test_each_failure_doubles_the_pause() -> None:
    """From two seconds to a quarter of an hour, where it stays."""
    assert [work.pause(n) for n in (1, 2, 3, 9, 10, 11, 10**6)] == [2, 4, 8, 512, 900, 900, 900]


def test_another_certificate_begins_anew(deliveries: Deliveries) -> None:
    """The pause belongs to what was refused, and not to what comes in its place."""
    assert [times(deliveries, {"": "a"}) for _ in range(3)] == [1, 2, 3]
    assert times(deliveries, {"": "b"}) == 1
