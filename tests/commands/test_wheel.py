"""The wheel, away from the repository: everything that the program needs is in it."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live import free_port, wait_until_it_answers

TREE = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST_CSR = """
import cloudflare, os
client = cloudflare.Cloudflare()
made = client.custom_csrs.create(zone_id=os.environ["CLOUDFLARE_ZONE_ID"], common_name="www.example.com", country="US",
    state="CA", locality="San Francisco", organization="Acme", key_type="p256v1", sans=["example.com"])
print(made.csr.split(chr(10))[0])
"""

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, with the commit written into it as `git archive` does."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "schema.sql"):
        shutil.copy(TREE / name, tree / name)
    shutil.copytree(
        TREE / "app" / "keystead",
        tree / "app" / "keystead",
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
    )
    (commit,) = (tree / "app" / "keystead").rglob("commit.txt")
    assert commit.read_text() == "$Format:%H$\n"
    commit.write_text(f"{COMMIT}\n")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, tree)
    (built,) = out.glob("keystead-*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in a virtual environment that has this wheel and borrows the packages of the tests."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    _pip("--python", python, "install", "--no-deps", wheel)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # A folder that a .pth names adds no .pth of its own, so the tree that the tests run in is not among them.
    (packages / "borrowed.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    return folder / "bin" / "keystead"


def _pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def _environ(**more: str) -> dict[str, str]:
    strange = ("KEYSTEAD_", "CLOUDFLARE_", "PYTHON")
    return {**{name: text for name, text in os.environ.items() if not name.startswith(strange)}, **more}


def test_the_wheel_has_all_that_is_read_beside_the_code(wheel: Path) -> None:
    """Schema, grants, every migration and every file of the console are in it, with what they say in the tree."""
    with zipfile.ZipFile(wheel) as archive:
        files = {Path(name).name: archive.read(name) for name in archive.namelist()}
    beside = [
        path
        for path in (TREE / "app" / "keystead").rglob("*")
        if path.suffix in {".sql", ".js", ".css", ".html", ".svg"}
    ]
    assert {"schema.sql", "grants.sql", "index.html", "py.typed"} <= {path.name for path in beside} | set(files)
    missing = [path for path in beside if files.get(path.name) != path.read_bytes()]
    assert missing == []


def test_the_command_names_its_commit(program: Path) -> None:
    """`keystead --version` says from which commit the wheel was built."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd="/").stdout
    assert said.endswith(f"(commit {COMMIT[:12]})\n")


@pytest.fixture
def credentials(program: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the first start writes for clients, while it serves with the bundled PostgreSQL."""
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as output:
        environ = _environ(KEYSTEAD_PORT=str(port), KEYSTEAD_KEY_POOL="0", KEYSTEAD_WORKERS="1")
        process = subprocess.Popen([program, "serve"], stdout=output, stderr=output, env=environ, cwd=tmp_path)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/readyz", process, log)
        lines = (tmp_path / ".data" / "credentials.env").read_text().splitlines()
        yield dict(line.split("=", 1) for line in lines if line.startswith("CLOUDFLARE_"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_wheel_makes_a_csr_away_from_the_repository(credentials: dict[str, str], tmp_path: Path) -> None:
    """A first start in an empty folder, and the first CSR by the Python SDK."""
    environ = _environ(**{name: text.strip("'\"") for name, text in credentials.items()})
    command = [sys.executable, "-P", "-c", FIRST_CSR]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, check=False)
    assert done.stdout == "-----BEGIN CERTIFICATE REQUEST-----\n", done.stderr
