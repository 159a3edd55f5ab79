"""The official Go SDK, unmodified: accounts, zones, tokens, the audit log, CSRs and certificates."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.live import Live
from support.tools import missing

pytestmark = pytest.mark.typescript

SOURCE = Path(__file__).parent / "go"
CACHE = Path(__file__).parents[2] / ".cache"
BUILD_SECONDS = 600


@pytest.fixture(scope="module")
def facts() -> Path:
    """The program, built outside of the sources, where Go writes down what it fetched."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed, so nobody judges the wire with the Go SDK")
    folder = CACHE / "sdk_go"
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    command = ["go", "build", "-mod=mod", "-o", "facts", "."]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
    if built.returncode != 0:
        missing(f"go cannot build with the Go SDK: {built.stderr[-1000:]}")
    return folder / "facts"


@pytest.fixture(scope="module")
def told(facts: Path, live: Live) -> Any:
    """What the SDK gave."""
    older = {"OLDER_EMAIL": live.older["CLOUDFLARE_EMAIL"], "OLDER_KEY": live.older["CLOUDFLARE_API_KEY"]}
    environ = {**os.environ, **live.env, **older}
    ran = subprocess.run([facts], env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("scope", ["csr of the account", "csr of the zone"])
def test_csrs_live_and_die(told: Any, scope: str) -> None:
    """They come back as they were sent, are listed over two pages, are read by Go's own library, and are deleted."""
    csr, names = told[scope], ["www.example.com", "example.com"]
    assert csr["listed"] == csr["made"]
    assert csr["pages"]
    assert csr["fields"][1:] == ["d", "www.example.com", names, "p256v1", ""]
    assert (csr["signed"], csr["names"]) == (True, names)
    assert csr["deleted"] == csr["made"][0]
    assert csr["idempotent"]


@pytest.mark.parametrize("scope", ["csr of the account", "csr of the zone"])
def test_a_refusal_costs_one_request(told: Any, scope: str) -> None:
    """404, 400 and 409 come at once with their codes: the SDK would repeat other 409s for minutes."""
    assert told[scope]["missing"] == [404, [1419], 1]
    assert told[scope]["bad"] == [400, [1405, 1412], 1]
    assert told[scope]["conflict"] == [409, [1456], 1]


def test_a_certificate_finds_the_key_of_its_csr(told: Any) -> None:
    """It is uploaded twice, read, repeated by a PATCH and deleted; while it is there its CSR stays."""
    certificate = told["certificate"]
    assert certificate["hosts"] == ["www.example.com", "example.com"]
    assert (certificate["status"], certificate["type"]) == ("active", "force")
    assert (certificate["csr"], certificate["twins"], certificate["unchanged"]) == (True, True, True)
    assert certificate["in use"] == [409, [1420], 1]
    assert certificate["missing"] == [404, [1002], 1]


def test_a_tenant_lives_and_dies(told: Any) -> None:
    """Accounts, zones, tokens and the log are as they were sent; after the deletion account and zone are 404."""
    tenant = told["tenant"]
    assert (tenant["name"], tenant["renamed"]) == (True, True)
    assert tenant["settings"] == ["abuse@example.com", True]
    assert tenant["zone"] == ["münchen.example", "full", True, False]
    assert tenant["edited"] == [True, ["ns1.example.com"]]
    assert (tenant["listed"], tenant["expires"]) == (1, True)
    assert tenant["token"] == [True, "active", "active"]
    assert (tenant["history"], tenant["products"]) == (True, True)
    assert tenant["account gone"] == tenant["zone gone"] == [404, [7003], 1]


def test_a_user_has_an_address_and_an_accounts_token_no_user(told: Any, live: Live) -> None:
    """GET /user gives the address of the key's user; a token of an account is refused."""
    assert told["user"] == live.older["CLOUDFLARE_EMAIL"]
    assert told["user of an account's token"] == [403, [9109], 1]
