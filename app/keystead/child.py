"""Running one of our modules in a child Python process with the same module path as this one.

The working directory and PYTHONPATH are ignored: either could contain another `keystead` or `logging` module.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = str(Path(__file__).parent.parent)
_RUN = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_module({!r}, run_name='__main__')"


def command(module: str, *words: str) -> list[str]:
    """The argv that runs `module` as `__main__` with these arguments. Pass `environ()` as its environment."""
    path = json.dumps([folder or _ROOT for folder in sys.path])
    return [sys.executable, "-P", "-c", _RUN.format(module), path, *words]


def environ(ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without PYTHON* variables. PYTHONHOME stays: a relocated interpreter cannot start without it."""
    return {name: text for name, text in ours.items() if not name.startswith("PYTHON") or name == "PYTHONHOME"}
