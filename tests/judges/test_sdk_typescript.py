"""The official TypeScript SDK, unmodified, configured by nothing but the variables of credentials.env."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.live import Live
from support.tools import missing, tool

pytestmark = pytest.mark.typescript

SOURCE = Path(__file__).parents[1] / "sdk_typescript"
CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def sdk() -> Path:
    """A folder outside the sources with the SDK and the script, made once for each package.json."""
    tool("node")
    tool("npm")
    digest = hashlib.sha256((SOURCE / "package.json").read_bytes()).hexdigest()[:16]
    folder = CACHE / f"sdk_typescript-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.copyfile(SOURCE / "package.json", folder / "package.json")
            command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if installed.returncode != 0:
                missing(f"npm cannot install the TypeScript SDK: {installed.stderr[-500:]}")
            (folder / "installed").touch()
        # Node looks for packages beside the script, whatever its working directory is.
        script = folder / f"facts.{os.getpid()}.mjs"
        shutil.copyfile(SOURCE / "facts.mjs", script)
        script.replace(folder / "facts.mjs")
    return folder


@pytest.fixture(scope="module")
def told(sdk: Path, live: Live) -> Any:
    """What the SDK gave for each fact of the script, by scope."""
    older = {"OLDER_EMAIL": live.older["CLOUDFLARE_EMAIL"], "OLDER_KEY": live.older["CLOUDFLARE_API_KEY"]}
    ran = subprocess.run(
        ["node", "facts.mjs"],
        cwd=sdk,
        env={**os.environ, **live.env, **older},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(params=["account_id", "zone_id"])
def fact(request: pytest.FixtureRequest, told: Any) -> Callable[[str], Any]:
    """What the SDK gave for one fact in this scope."""

    def find(name: str) -> Any:
        found = told[request.param][name]
        assert not isinstance(found, dict) or "thrown" not in found, found["thrown"]
        return found

    return find


def refusal(told: Any) -> tuple[str, list[int]]:
    return told["kind"], [error["code"] for error in told["errors"]]


@pytest.mark.parametrize("key_type", ["p256v1", "rsa2048"])
def test_create_gives_back_what_was_sent(fact: Callable[[str], Any], key_type: str) -> None:
    """Every field of the answer to a create equals what the call had, in both scopes and for both key types."""
    told = fact(f"create_{key_type}")
    assert told["sent"].items() <= told["made"].items()
    assert told["made"]["key_type"] == key_type


def test_created_at_is_a_time_with_its_zone(fact: Callable[[str], Any]) -> None:
    """created_at, which this SDK leaves a string, is RFC 3339 in UTC."""
    made = datetime.fromisoformat(fact("create_without_options")["created_at"])
    assert abs((datetime.now(UTC) - made).total_seconds()) < 300


def test_fields_that_were_not_set_are_undefined(fact: Callable[[str], Any]) -> None:
    """Optional fields that the call left out are not there, so that nothing drifts."""
    assert not {"name", "description", "organizational_unit"} & fact("create_without_options").keys()


def test_get_gives_what_create_gave(fact: Callable[[str], Any]) -> None:
    """A CSR that is read has the same fields as when it was made."""
    assert fact("get")["found"] == fact("get")["made"]


def test_pages_are_read_to_the_end(fact: Callable[[str], Any]) -> None:
    """The SDK's iteration passes three pages, has every CSR once in the order of creation, and ends."""
    told = fact("pages")
    assert len(told["made"]) == 12
    assert told["listed"] == told["made"]
    assert len(set(told["ids"])) == len(told["ids"])


def test_lists_can_be_turned_around(fact: Callable[[str], Any]) -> None:
    """`order` and `direction` do what the SDK's types say."""
    assert fact("turned_around")["listed"] == fact("turned_around")["wanted"]


def test_delete_names_the_deleted_and_it_is_gone(fact: Callable[[str], Any]) -> None:
    """Delete answers with the id, and a get of it afterwards is NotFoundError 1419."""
    told = fact("delete")
    assert told["deleted"] == {"id": told["id"]}
    assert refusal(told["after"]) == ("NotFoundError", [1419])


def test_delete_of_a_missing_csr_costs_one_request(fact: Callable[[str], Any]) -> None:
    """NotFoundError comes after the first request: the SDK, which has two retries to spend, spends none."""
    assert refusal(fact("delete_missing")) == ("NotFoundError", [1419])
    assert (fact("delete_missing")["requests"], fact("retries")) == (1, 2)


def test_a_bad_request_carries_every_problem_with_its_place(fact: Callable[[str], Any]) -> None:
    """BadRequestError has one error for each problem, with a pointer into the body."""
    told = fact("bad_request")
    assert refusal(told) == ("BadRequestError", [1405, 1412])
    assert [error["source"]["pointer"] for error in told["errors"]] == ["/country", "/sans/1"]


def test_what_is_not_yours_is_permission_denied(fact: Callable[[str], Any]) -> None:
    """An account or zone that the token does not reach is PermissionDeniedError 9109."""
    assert refusal(fact("not_mine")) == ("PermissionDeniedError", [9109])


def test_an_idempotency_key_makes_one_csr(fact: Callable[[str], Any]) -> None:
    """The same call with the same Idempotency-Key gives the same CSR again."""
    assert fact("idempotent")["again"] == fact("idempotent")["first"]


def test_a_conflict_costs_one_request(fact: Callable[[str], Any]) -> None:
    """An Idempotency-Key with another body is ConflictError 1456, which the SDK does not repeat as other 409s."""
    assert refusal(fact("conflict")) == ("ConflictError", [1456])
    assert (fact("conflict")["requests"], fact("retries")) == (1, 2)


def test_the_token_verifies_itself(fact: Callable[[str], Any]) -> None:
    """Both verify calls say that the token of credentials.env is active, and name the same token."""
    by_user, by_account = fact("verify")
    assert by_user["status"] == "active"
    assert by_user == by_account


def test_an_unknown_token_is_an_authentication_error(fact: Callable[[str], Any]) -> None:
    """The verify call with a token that nobody made is AuthenticationError 1000."""
    assert refusal(fact("unknown_token")) == ("AuthenticationError", [1000])


def test_the_older_scheme_works_alone(fact: Callable[[str], Any]) -> None:
    """CLOUDFLARE_EMAIL and CLOUDFLARE_API_KEY, the two lines that are commented out, do without the token."""
    assert fact("older_scheme")["deleted"] == {"id": fact("older_scheme")["id"]}


def test_a_tenant_gets_back_what_was_sent(fact: Callable[[str], Any], live: Live) -> None:
    """Settings, name servers, a name in Unicode, a token's status and offset; then account and zone are 404/7003."""
    told = fact("tenant")
    assert told["changed"]["settings"] == {"abuse_contact_email": "abuse@example.com", "enforce_twofactor": True}
    zone = told["zone"]
    assert (zone["name"], zone["owner"]["id"], zone["owner"]["type"]) == ("münchen.example", told["id"], "organization")
    assert told["edited"]["vanity_name_servers"] == ["ns1.example.com"]
    assert told["listed"] == [zone["id"]]
    assert (told["token"]["status"], told["token"]["expires_on"]) == ("disabled", "2090-01-02T03:04:05+02:00")
    assert told["email"] == live.older["CLOUDFLARE_EMAIL"]
    for gone in ("account_gone", "zone_gone"):
        assert (refusal(told[gone]), told[gone]["requests"]) == (("NotFoundError", [7003]), 1)


def test_an_entry_of_the_log_has_a_history(fact: Callable[[str], Any]) -> None:
    """The newest entry is in that of its own resource, and the categories are those of what is here."""
    told = fact("tenant")
    assert told["log"][0]["id"] in [each["id"] for each in told["history"]]
    assert told["categories"] == ["accounts", "ssl_tls", "private_ca"]


def test_both_schemes_at_once_work(fact: Callable[[str], Any]) -> None:
    """This SDK sends all three headers when all three variables are set, and is served."""
    assert fact("both_schemes")["key_type"] == "p256v1"
