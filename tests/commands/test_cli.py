"""The command: what it makes, shows and says, against the same database as the API."""

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click import Group
from support.command import beside, rows, run_command
from support.live import Live
from support.world import BODY

from keystead.commands.cli import cli

Run = Callable[..., str]


@pytest.fixture
def keystead(live: Live) -> Run:
    """Runs the command beside the live server; gives its output, or its errors where `fails` is set."""

    def run(*words: str, fails: bool = False) -> str:
        ended = run_command(beside(live), *words)
        assert (ended.status != 0) is fails, ended
        return ended.err if fails else ended.out

    return run


def one(text: str) -> dict[str, Any]:
    (row,) = json.loads(text)
    result: dict[str, Any] = row
    return result


def status(live: Live, path: str, headers: dict[str, str], method: str = "GET") -> int:
    return httpx.request(method, live.url + path, headers=headers, json=BODY).status_code


def later(ask: Callable[[], int]) -> int:
    """What is answered once nothing is remembered of what was before."""
    # The second is what is tested.
    time.sleep(1.1)
    return ask()


def test_a_tenant_is_made_used_and_removed(keystead: Run, live: Live) -> None:
    """Account, zone, user and token made by the command work at once, and refuse a second after they are taken away."""
    account = one(keystead("account", "create", "acme", "--name", "Acme", "--json"))
    zone = one(keystead("zone", "create", "Acme.example", "--account", "acme", "--json"))
    assert zone["name"] == "acme.example"
    user = one(keystead("user", "create", "Ops@acme.example", "--account", "acme", "--role", "administrator", "--json"))
    token = one(keystead("token", "create", "deploy", "--account", "acme", "--json"))
    path = f"/client/v4/zones/{zone['id']}/custom_csrs"
    bearer = {"Authorization": f"Bearer {token['token']}"}
    pair = {"X-Auth-Email": user["email"], "X-Auth-Key": user["global_key"]}
    assert status(live, path, bearer) == status(live, path, pair) == 200
    assert status(live, path, live.bearer) == 403

    keystead("token", "set", token["id"], "--status", "disabled")
    keystead("user", "set", user["email"], "--account", "acme", "--role", "read")
    assert later(lambda: status(live, path, bearer)) == status(live, path, pair, "POST") == 403
    keystead("token", "set", token["id"], "--status", "active")
    assert status(live, path, bearer, "POST") == 201
    rolled = one(keystead("user", "set", user["email"], "--roll-key", "--json"))
    assert later(lambda: status(live, path, pair)) == 400
    assert status(live, path, {**pair, "X-Auth-Key": rolled["global_key"]}) == 200

    assert "holds 1 custom CSRs" in keystead("zone", "delete", "acme.example", fails=True)
    assert "holds 1 custom CSRs, 0 certificates, 0 CAs and 1 zones" in keystead("account", "delete", "acme", fails=True)
    csr = httpx.get(live.url + path, headers=bearer).json()["result"][0]["id"]
    assert status(live, f"{path}/{csr}", bearer, "DELETE") == 200
    keystead("zone", "delete", zone["id"])
    assert later(lambda: status(live, path, bearer)) == 404
    keystead("token", "revoke", token["id"])
    assert later(lambda: status(live, path, bearer)) == 403
    keystead("user", "delete", user["email"])
    keystead("account", "delete", account["id"])
    assert "acme" not in keystead("account", "list") + keystead("zone", "list") + keystead("user", "list")


def test_a_token_can_be_narrow(keystead: Run, live: Live) -> None:
    """One group on one zone, from one network, with an end: each of them binds."""
    one(keystead("account", "create", "narrow", "--json"))
    zones = [one(keystead("zone", "create", f"{n}.example", "--account", "narrow", "--json")) for n in ("n1", "n2")]
    paths = [f"/client/v4/zones/{zone['id']}/custom_csrs" for zone in zones]
    base = ("token", "create", "t", "--account", "narrow", "--json")

    def bearer(*words: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {one(keystead(*base, *words))['token']}"}

    confined = bearer("--zone", "N1.example")
    account_path = f"/client/v4/accounts/{zones[0]['account_id']}/custom_csrs"
    assert [status(live, path, confined, "POST") for path in (*paths, account_path)] == [201, 403, 403]
    reader = bearer("--zone", "n1.example", "--group", "ssl and certificates read")
    assert [status(live, path, reader) for path in paths] == [200, 403]
    assert status(live, paths[0], reader, "POST") == 403
    assert status(live, paths[0], bearer("--allow-from", "10.0.0.0/8")) == 403
    assert status(live, paths[0], bearer("--allow-from", "127.0.0.0/8", "--expires", "2999-01-01")) == 200


def test_rules_of_an_account_and_a_zone_bind_at_once(keystead: Run, live: Live) -> None:
    """Name policy, switch and quota take effect within a second, and can be taken back."""
    account = one(keystead("account", "create", "rules", "--json"))
    zone = one(keystead("zone", "create", "rules.example", "--account", "rules", "--json"))
    bearer = {
        "Authorization": f"Bearer {one(keystead('token', 'create', 't', '--account', 'rules', '--json'))['token']}"
    }
    path = f"/client/v4/accounts/{account['id']}/custom_csrs"
    zone_path = f"/client/v4/zones/{zone['id']}/custom_csrs"

    def code(where: str) -> int:
        answer = httpx.post(live.url + where, headers=bearer, json=BODY)
        errors = answer.json()["errors"]
        found: int = errors[0]["code"] if errors else answer.status_code
        return found

    shown = one(keystead("account", "set", "rules", "--name-policy", "public", "--csr-quota", "1", "--json"))
    assert (shown["name_policy"], shown["csr_quota"]) == ("public", 1)
    keystead("zone", "set", "rules.example", "--csrs", "off", "--csr-quota", "0")
    assert (code(path), code(zone_path)) == (1416, 1404)
    keystead("account", "set", "rules", "--name-policy", "private")
    keystead("zone", "set", "rules.example", "--csrs", "on")
    assert later(lambda: code(path)) == 201
    assert (code(path), code(zone_path)) == (1403, 1403)
    keystead("account", "set", "rules", "--csr-quota", "none")
    assert later(lambda: code(path)) == 201


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("account", "create", "Bad Slug"), "slug"),
        (("account", "create", "default"), "exists already"),
        (("account", "create", "x", "--name", "a\x07"), "control characters"),
        (("account", "set", "nobody", "--csrs", "on"), 'no account "nobody"; `keystead account list`'),
        (("account", "set", "default", "--csr-quota", "many"), "whole number"),
        (("account", "set", "default", "--csr-quota", "-1"), "whole number from 0, or none"),
        (("account", "set", "default", "--name-policy", "open"), "private"),
        (("zone", "create", "*.example.com"), "zone"),
        (("zone", "create", "a..b"), "empty label"),
        (("zone", "create", "example.com"), "already"),
        (("zone", "delete", "nowhere.example"), 'no zone "nowhere.example"; `keystead zone list`'),
        (("user", "create", "nobody"), "email"),
        (("user", "delete", "no@one.example"), 'no user "no@one.example"; `keystead user list`'),
        (("user", "create", "admin@example.com"), "exists already"),
        (("user", "create", "x@example.com", "--account", "nope"), "no account"),
        (("token", "create", "t", "--group", "Root"), "SSL and Certificates Write"),
        (("token", "create", "t", "--zone", "nowhere.example"), "no zone"),
        (("token", "create", "t", "--zone", "example.com", "--group", "account api tokens read"), "certain zones"),
        (("token", "create", "t", "--expires", "9999-12-31T23:59:59-23:00"), "it takes a date such as"),
        (("account", "create", "x", "--name", "\udcff"), "an argument is not UTF-8"),
        (("account", "create", "a" * 32), "not be an id"),
        (("user", "create", "jörg@example.com"), "email"),
        (("token", "create", "t", "--allow-from", "10.0.0.1/8"), "10.0.0.0/8"),
        (("token", "create", "t", "--expires", "2001-01-01"), "past"),
        (("token", "create", "t", "--expires", "soon"), "ISO 8601"),
        (("token", "create", ""), "name"),
        (("token", "revoke", "x"), "no token"),
        (("token", "set", "0" * 32, "--status", "active"), "no token"),
        (("nonsense",), "No such command"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    keystead: Run, live: Live, words: tuple[str, ...], said: str
) -> None:
    """What cannot be done ends with a status other than 0 and a sentence, never with a traceback."""
    # Others use this server at the same time.
    acts = "SELECT count(*), max(at) FROM audit_log WHERE actor = 'operator'"
    before = rows(live, acts)
    text = keystead(*words, fails=True)
    assert said in " ".join(text.split())
    assert rows(live, acts) == before


def test_a_secret_is_shown_once_and_in_no_list(keystead: Run) -> None:
    """The value of a token stands in the answer to its making, and nowhere after."""
    made = one(keystead("token", "create", "once", "--json"))
    assert made["token"].startswith("kst_")
    assert made["token"] not in keystead("token", "list") + keystead("token", "list", "--json")
    assert made["id"] in keystead("token", "list")


def test_the_command_of_the_operator_is_audited(keystead: Run, live: Live) -> None:
    """What the command changes has an audit row with the operating system's user."""
    account = one(keystead("account", "create", "audited", "--json"))
    found = rows(live, "SELECT action, actor, actor_name, method FROM audit_log WHERE account_id = $1", account["id"])
    assert found == [("create", "operator", pwd.getpwuid(os.getuid()).pw_name, "CLI")]


def test_migrate_says_that_there_is_nothing_to_do(keystead: Run) -> None:
    """On a current database migrate changes nothing."""
    assert keystead("migrate") == "the schema is current\n"


def test_every_command_explains_itself() -> None:
    """Each command and option has a help text."""

    def walk(group: Any, path: str) -> None:
        for name, command in group.commands.items():
            assert command.help, f"{path} {name}"
            if isinstance(command, Group):
                walk(command, f"{path} {name}")

    walk(cli, "keystead")


def test_a_setting_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    """The start stops with the sentence, on standard error, with status 1."""
    env = {"KEYSTEAD_PORT": "http", "KEYSTEAD_DATA_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "keystead", "serve"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        done.stderr == "keystead: KEYSTEAD_PORT is 'http', which is not valid; it takes a port number from 1 to 65535\n"
    )


def test_bash_completes_commands() -> None:
    """The script that `completion` prints offers the words that may follow, in a shell that has sourced it."""
    script = run_command({}, "completion", "bash").out
    line = "COMP_WORDS=(keystead csr ''); COMP_CWORD=2; _keystead_completion keystead"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{line}; echo "${{COMPREPLY[@]}}"'],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"create", "list", "show", "delete"} <= set(done.stdout.split())


def test_options_and_choices_are_completed() -> None:
    """What the script asks for is answered with the options that begin so, and with the values of one."""

    def offered(words: str) -> set[str]:
        environ = {"_KEYSTEAD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return {line.partition(",")[2] for line in run_command(environ).out.splitlines()}

    assert "--country" in offered("keystead csr create --co")
    assert offered("keystead csr create --key ") == {"rsa2048", "p256v1"}
