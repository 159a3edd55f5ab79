"""Ask PyPI's advisories about every pin of constraints.txt; 1 if one has a known fault, 2 if nobody could be asked."""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def main() -> int:
    words = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "10")
    command = [sys.executable, "-m", "pip_audit", *words, "--requirement", str(CONSTRAINTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = done.stderr.strip().rpartition("\n")[2] or f"pip-audit ended with {done.returncode}"
        sys.stderr.write(f"The advisories of PyPI cannot be reached from here, so nothing was checked: {reason}\n")
        return 2
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        sys.stderr.write("There are no advisories where PyPI is asked from here, so nothing was checked.\n")
        return 2
    faults = [(package, fault) for package in packages for fault in package.get("vulns", ())]
    for package, fault in faults:
        fixed = ", ".join(fault["fix_versions"]) or "no release"
        sys.stdout.write(f"{package['name']} {package['version']}: {fault['id']}, mended in {fixed}\n")
    sys.stdout.write(f"{len(packages) - len(skipped)} packages asked about, {len(faults)} known faults\n")
    if skipped:
        sys.stdout.write(f"not known there: {', '.join(skipped)}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
