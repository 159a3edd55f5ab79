"""A module of ours in a fresh interpreter, which finds what this one finds and heeds nothing else.

Neither the folder it is started in nor PYTHONPATH decides what it runs: both may hold another `app`, or a `logging`.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_HOME = str(Path(__file__).parent.parent)
_RUN = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_module({!r}, run_name='__main__')"


def command(module: str, *words: str) -> list[str]:
    """The command that runs this module with these arguments; it takes `environ()`."""
    path = json.dumps([folder or _HOME for folder in sys.path])
    return [sys.executable, "-P", "-c", _RUN.format(module), path, *words]


def environ(ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Ours, without what Python reads; PYTHONHOME stays, as without it a moved interpreter does not start at all."""
    return {name: text for name, text in ours.items() if not name.startswith("PYTHON") or name == "PYTHONHOME"}
