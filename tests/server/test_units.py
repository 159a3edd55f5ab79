"""The units for systemd, as systemd reads them."""

import re
import subprocess
from pathlib import Path

import pytest
from support.tools import tool

UNITS = Path(__file__).parents[2] / "docs" / "units"
# systemd's own measure of what a service may do: 0 is nothing, 10 all. Deliveries are made by root, with some of its
# capabilities.
EXPOSED = {"keystead.service": 2.0, "keystead-deliver.service": 2.3}


@pytest.fixture(params=sorted(EXPOSED))
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a program that is there, as nothing is installed in /opt."""
    tool("systemd-analyze")
    copy = tmp_path / str(request.param)
    text = (UNITS / copy.name).read_text()
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    return copy


def _analyze(*words: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say_on_the_unit(unit: Path) -> None:
    """Every line is known to systemd, and has a value that it takes."""
    assert _analyze("verify", "--man=no", unit) == ""


def test_the_unit_gives_little_away(unit: Path) -> None:
    """What the service may do, by systemd's measure, is at most what is allowed for it."""
    said = _analyze("security", "--offline=yes", "--no-pager", unit)
    (exposed,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposed) <= EXPOSED[unit.name]
