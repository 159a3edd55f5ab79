"""The house's import rules: who may import whom, and which library lives where (docs/decisions/0001)."""

import ast
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
# Imports go down only: a module may import those of lower lines, never of its own or a higher one.
LEVELS = (
    {"__main__"},
    {"cli"},
    {"ca_commands", "keys_commands", "tenant_commands", "token_commands", "audit_commands", "doctor"},
    {"console", "serve"},
    {"main"},
    {"health"},
    {"pages", "first_start"},
    {"cloudflare", "infisical"},
    {"edge"},
    {"house", "config", "embedded", "trust", "tls"},
    {"admission", "delegation"},
    {"csrs", "certificates", "tokens", "ca_certificates", "leaves", "crls", "zones", "containment"},
    {"accounts", "matching", "policies", "authorities"},
    {"issuing"},
    {"proof", "rights"},
    {"keyring", "keypool", "idempotency", "failures", "audit_log"},
    {"audit", "ringfile", "roles", "limits", "keymaker", "metrics", "request_log"},
    {"db", "keys", "pkix", "pkcs10", "crl_bytes", "seal", "names", "chains", "x520", "bodies", "times"},
    {"foreign", "weak_keys"},
    {"pem", "files", "child", "der"},
    {"model"},
    {"errors", "bounds", "visible"},
)
# Subjects and what serves them may use their neighbours only where it is written here.
NEIGHBOURS = {("pkix", "keys"), ("pkcs10", "keys"), ("crl_bytes", "pkix"), ("crl_bytes", "keys")}
LIBRARIES = {
    "litestar": {"cloudflare", "infisical", "main", "pages", "health"},
    "granian": {"serve", "tls"},
    "asyncpg": {
        *(
            "db",
            "csrs",
            "certificates",
            "tokens",
            "accounts",
            "zones",
            "admission",
            "keyring",
            "authorities",
            "issuing",
        ),
        *("crls", "audit_log", "doctor"),
    },
    "cryptography": {
        "keys",
        "pkix",
        "pkcs10",
        "crl_bytes",
        "seal",
        "chains",
        "authorities",
        "ca_certificates",
        "issuing",
        "leaves",
        "foreign",
        "weak_keys",
    },
    "click": {
        *("cli", "ca_commands", "keys_commands", "tenant_commands", "token_commands", "audit_commands", "console"),
    },
    "structlog": {"keypool", "main", "trust", "ringfile", "cloudflare", "infisical", "serve"},
}
# The files whose every line is about private keys touch neither network nor settings nor logs.
PURE = {
    "keys",
    "pem",
    "der",
    "foreign",
    "weak_keys",
    "policies",
    "containment",
    "rights",
    "pkix",
    "pkcs10",
    "crl_bytes",
    "chains",
    "seal",
    "names",
    "x520",
    "times",
    "model",
    "errors",
    "visible",
}
IMPURE = {"asyncio", "os.environ", "logging", "socket", "pathlib", "asyncpg", "litestar", "structlog"}


def _module(path: Path) -> str:
    return path.relative_to(APP).parts[0].removesuffix(".py")


def _imports() -> list[tuple[str, str]]:
    """(importing module, imported name) for every import statement of the program."""
    found = []
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(_module(path), alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "app":
                found += [(_module(path), f"app.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append((_module(path), node.module or ""))
    return found


IMPORTS = _imports()
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}


def test_every_module_has_its_place() -> None:
    """Every file of the program stands in the list of levels, and nothing else does."""
    assert {_module(path) for path in APP.rglob("*.py")} - {"__init__", "migrations"} == set(RANK)


def test_imports_go_down_only() -> None:
    """No module imports one of its own level or above."""
    inside = [(a, b.split(".")[1]) for a, b in IMPORTS if b.startswith("app.")]
    assert len(inside) > 50
    upward = {(a, b) for a, b in inside if a != b and b in RANK and RANK[a] >= RANK[b]} - NEIGHBOURS
    assert not upward


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    """The framework, the server, the driver and the cryptography are imported only where they live."""
    assert {a for a, b in IMPORTS if b.split(".")[0] == library} <= LIBRARIES[library]


def test_pure_files_do_no_input_or_output() -> None:
    """What handles keys and names has no way to a socket, a file, a log or the environment."""
    assert not {(a, b) for a, b in IMPORTS if a in PURE and (b in IMPURE or b.split(".")[0] in IMPURE)}


def test_only_the_keyring_names_the_sealed_columns() -> None:
    """SQL on private_keys stands in keyring.py, but for the schema itself."""
    named = {_module(p) for p in APP.rglob("*.py") if "private_keys" in p.read_text() and p.name != "keyring.py"}
    assert named <= {"db"}
