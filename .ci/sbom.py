"""Write the parts of a wheel (SBOM) beside it, as CycloneDX 1.6: what pip installs with it under constraints.txt."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ("--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check", "--report", str(report))
        command = [sys.executable, "-m", "pip", "install", *words, "--constraint", str(CONSTRAINTS), str(wheel)]
        subprocess.run(command, check=True)
        taken = json.loads(report.read_text())["install"]
    ours, others = _split(sorted(map(_part, taken), key=lambda part: part["name"].lower()))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**ours, "type": "application"}},
        "components": others,
    }
    wheel.with_suffix(".cdx.json").write_text(json.dumps(document, indent=1) + "\n")


def _split(parts: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (ours,) = (part for part in parts if part["name"] == "keystead")
    return ours, [part for part in parts if part is not ours]


def _part(taken: dict[str, Any]) -> dict[str, Any]:
    """One package; where pip fetched it from is left out, as it says where this was built and not what it is."""
    name, version = taken["metadata"]["name"], taken["metadata"]["version"]
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    sha256 = taken["download_info"]["archive_info"]["hashes"]["sha256"]
    hashes = [{"alg": "SHA-256", "content": sha256}]
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": hashes}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
