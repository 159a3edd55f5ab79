"""The commands for tenants, tokens and the audit log: what they show, change, refuse and write down."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from support.command import Ended, run_command
from support.databases import new_database
from support.waiting import comes_about
from support.world import World, new_world

from keystead import config
from keystead.caller import GROUPS
from keystead.identity import policies
from keystead.identity.zones import ZoneType
from keystead.server import first_start, postgres
from keystead.store.database import Database

Json = dict[str, Any]
ACCOUNT, ZONE = "com.cloudflare.api.account.", "com.cloudflare.api.account.zone."
LOGIN = "/api/v1/auth/universal-auth/login"
ENTRY = [
    *("at", "actor", "name", "address", "action", "resource", "resource_id", "result", "count", "request_id"),
    *("method", "path"),
]


class Place(NamedTuple):
    """An installation that the command works on; nobody else writes to its database."""

    database: Database
    environ: dict[str, str]


class Done(Ended):
    """How a command ended, and what it printed."""

    @property
    def row(self) -> Json:
        (row,) = self.rows
        return row

    @property
    def rows(self) -> list[Json]:
        assert (self.status, self.err) == (0, "")
        rows: list[Json] = json.loads(self.out)
        return rows

    @property
    def text(self) -> str:
        """What is for people, of a command that worked."""
        assert (self.status, self.err) == (0, "")
        return self.out

    @property
    def complaint(self) -> str:
        """The one line of a command that failed, which printed nothing else but its usage."""
        assert (self.out, self.status in {1, 2}) == ("", True), self
        # Before a wrong use stands what would be a right one.
        usage, _, said = self.err.rpartition({1: "keystead: ", 2: "\nError: "}[self.status])
        assert bool(usage) == (self.status == 2), self
        assert len(said.splitlines()) == 1, self
        return said


Run = Callable[..., Done]


def environ_of(database_url: str, data_dir: Path) -> dict[str, str]:
    return {"KEYSTEAD_DATABASE_URL": database_url, "KEYSTEAD_DATA_DIR": str(data_dir)}


@pytest.fixture(scope="module")
async def place(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """An installation without a server, shared by tests that name what they make differently."""
    folder = tmp_path_factory.mktemp("place")
    async with new_database(cluster) as url:
        database = Database(url, 1)
        settings = config.Settings(data_dir=folder, database_url=url, keyring=folder / "keyring.json")
        await first_start.ring_for(settings, database)
        yield Place(database, environ_of(url, folder))
        await database.close()


@pytest.fixture
def keystead() -> Run:
    """Runs the command in this process."""

    def run(place: Place, *words: str | Path) -> Done:
        return Done(*run_command(place.environ, *words))

    return run


async def contents(place: Place) -> dict[str, list[str]]:
    """Every row of every table."""
    listed = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    tables = [row["relname"] for row in await place.database.fetch(listed)]
    sql = "SELECT t::text AS row FROM {} t ORDER BY 1"
    return {table: [row["row"] for row in await place.database.fetch(sql.format(table))] for table in tables}


def fields(text: str) -> dict[str, str]:
    """A single row as people see it."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def shown(row: Json) -> dict[str, str]:
    """How people see a row that was given as JSON."""
    return {name: "-" if value in (None, {}, "") else str(value) for name, value in row.items()}


def policy(resources: object, *groups: str, effect: str = "allow") -> Json:
    found = [{"id": policies.find_group(name).id.hex} for name in groups]
    return {"effect": effect, "resources": resources, "permission_groups": found}


def written(path: Path, *asked: Json) -> Path:
    path.write_text(json.dumps(asked))
    return path


# Accounts and zones.


def test_an_account_is_shown_and_renamed(keystead: Run, place: Place) -> None:
    """`show` finds it by slug and by id, `set --name` changes the name alone, and a quota of 0 is not one of none."""
    made = keystead(place, "account", "create", "shown", "--name", "Shown Ltd", "--json").row
    assert keystead(place, "account", "show", "shown", "--json").row == made
    assert keystead(place, "account", "show", made["id"], "--json").row == made
    assert fields(keystead(place, "account", "show", "shown").text) == shown(made)
    renamed = keystead(place, "account", "set", made["id"], "--name", "Søren's", "--json").row
    assert renamed == {**made, "name": "Søren's"}
    assert keystead(place, "account", "show", "shown", "--json").row == renamed
    for quota, kept in (("3", 3), ("0", 0), ("none", None)):
        words = ("account", "set", "shown", "--csr-quota", quota, "--ca-quota", quota, "--json")
        assert keystead(place, *words).row == {**renamed, "csr_quota": kept, "ca_quota": kept}


def test_an_account_keeps_the_subject_of_its_csrs(keystead: Run, place: Place) -> None:
    """What is set comes back for people and as JSON; each attribute is changed and removed alone, and all at last."""
    keystead(place, "account", "create", "subject")

    def kept(*words: str) -> Json:
        row = keystead(place, "account", "set", "subject", *words, "--json").row
        assert keystead(place, "account", "show", "subject", "--json").row == row
        return dict(row["csr_subject"])

    whole = {"country": "DE", "state": "Bavaria", "locality": "M\u00fcnchen", "organization": 'Acme "A", Inc.'}
    words = ("--country", "DE", "--state", "Bavaria", "--locality", "M\u00fcnchen", "--org", 'Acme "A", Inc.')
    assert kept(*words) == whole
    assert kept("--name", "Another") == whole
    assert kept("--country", "XX") == {**whole, "country": "XX"}
    text = keystead(place, "account", "show", "subject").text
    assert fields(text)["csr_subject"] == 'C=XX, ST=Bavaria, L=M\u00fcnchen, O=Acme "A", Inc.'
    listed = keystead(place, "account", "list", "--json").rows
    assert {**whole, "country": "XX"} in [row["csr_subject"] for row in listed]
    assert kept("--country", "", "--org", "") == {"state": "Bavaria", "locality": "M\u00fcnchen"}
    assert kept("--country", "", "--state", "", "--locality", "") == {}


def test_a_zone_is_shown_and_paused(keystead: Run, place: Place) -> None:
    """`show` finds it by name and by id, for people and as JSON; `set --paused` is kept, and changes nothing else."""
    keystead(place, "account", "create", "zoned")
    made = keystead(place, "zone", "create", "Zoned.example", "--account", "zoned", "--json").row
    assert (made["name"], made["type"], made["paused"]) == ("zoned.example", "full", "off")
    assert keystead(place, "zone", "show", "ZONED.example", "--json").row == made
    assert keystead(place, "zone", "show", made["id"], "--json").row == made
    assert fields(keystead(place, "zone", "show", "zoned.example").text) == shown(made)
    for switch in ("on", "off"):
        changed = keystead(place, "zone", "set", "zoned.example", "--paused", switch, "--json").row
        assert changed == {**made, "paused": switch}
        assert keystead(place, "zone", "show", "zoned.example", "--json").row == changed


@pytest.mark.parametrize("kind", [kind.value for kind in ZoneType])
def test_a_zone_takes_the_types_by_the_words_of_the_api(keystead: Run, place: Place, kind: str) -> None:
    """`set --type` takes what the API takes and `show` prints, and keeps it."""
    keystead(place, "account", "create", f"typed-{kind}")
    keystead(place, "zone", "create", f"{kind}.example", "--account", f"typed-{kind}")
    assert keystead(place, "zone", "set", f"{kind}.example", "--type", kind, "--json").row["type"] == kind
    assert fields(keystead(place, "zone", "show", f"{kind}.example").text)["type"] == kind


def test_a_zone_that_two_accounts_have_is_named_by_its_id(keystead: Run, place: Place) -> None:
    """By its name it is refused, by its id it is shown and set, and the other account's stays as it was."""
    made = []
    for slug in ("twin-a", "twin-b"):
        keystead(place, "account", "create", slug)
        made.append(keystead(place, "zone", "create", "twin.example", "--account", slug, "--json").row)
    for words in (("show",), ("set", "--paused", "on")):
        assert "by its id" in keystead(place, "zone", words[0], "twin.example", *words[1:]).complaint
    keystead(place, "zone", "set", made[0]["id"], "--paused", "on")
    assert keystead(place, "zone", "show", made[0]["id"], "--json").row["paused"] == "on"
    assert keystead(place, "zone", "show", made[1]["id"], "--json").row == made[1]


# Tokens.


def test_a_token_has_the_policies_of_a_file(keystead: Run, place: Place, tmp_path: Path) -> None:
    """They are kept with the resources in their own words, `show` prints them, and what it prints is such a file."""
    account = keystead(place, "account", "create", "filed", "--json").row
    zone = keystead(place, "zone", "create", "filed.example", "--account", "filed", "--json").row
    file, again = tmp_path / "policies.json", tmp_path / "again.json"
    resources = f'{{ "{ZONE}{zone["id"]}" :  "*" }}'
    groups = json.dumps(policy({}, "Zone Read")["permission_groups"])
    deny = json.dumps(policy({f"{ACCOUNT}{account['id']}": {f"{ZONE}*": "*"}}, "Zone Write", effect="deny"))
    file.write_text(f'[{{"effect":"allow","resources":{resources},"permission_groups":{groups}}},\n{deny}]\n')
    base = ("token", "create", "t", "--account", "filed", "--json", "--policies")
    made = keystead(place, *base, file, "--not-before", "2998-01-31", "--expires", "2999-01-31T12:00:00Z").row
    assert list(made) == ["id", "name", "owner", "status", "issued_on", "expires_on", "token"]
    found = keystead(place, "token", "show", made["id"], "--json").row
    assert found == {
        **{name: value for name, value in made.items() if name != "token"},
        "not_before": "2998-01-31T00:00:00Z",
        "expires_on": "2999-01-31T12:00:00Z",
        "condition": None,
        "policies": found["policies"],
    }
    assert f'"resources":{resources}' in found["policies"]
    kept = json.loads(found["policies"])
    assert [each["effect"] for each in kept] == ["allow", "deny"]
    assert [[group["name"] for group in each["permission_groups"]] for each in kept] == [["Zone Read"], ["Zone Write"]]
    assert fields(keystead(place, "token", "show", made["id"]).text) == shown(found)
    again.write_text(found["policies"])
    second = keystead(place, *base, again, "--allow-from", "10.0.0.0/8").row
    repeated = keystead(place, "token", "show", second["id"], "--json").row
    assert repeated["policies"] == found["policies"]
    assert json.loads(repeated["condition"]) == {"request_ip": {"in": ["10.0.0.0/8"]}}
    assert (repeated["not_before"], repeated["expires_on"]) == (None, None)


def test_a_users_token_has_policies_on_the_accounts_of_the_user(keystead: Run, place: Place, tmp_path: Path) -> None:
    """Policies of a user's token may name any account of the user, and no other."""
    ids = [keystead(place, "account", "create", f"of-user-{n}", "--json").row["id"] for n in range(3)]
    user = keystead(place, "user", "create", "two@user.example", "--account", "of-user-0", "--json").row
    keystead(place, "user", "set", user["email"], "--account", "of-user-1", "--role", "administrator")
    base = ("token", "create", "t", "--account", "of-user-0", "--user", user["email"], "--json", "--policies")
    asked = [policy({f"{ACCOUNT}{each}": "*"}, "Account Settings Read") for each in ids]
    made = keystead(place, *base, written(tmp_path / "own.json", *asked[:2])).row
    assert made["owner"] == f"user {user['id']}"
    before = keystead(place, "token", "list").text
    assert "no resource" in keystead(place, *base, written(tmp_path / "foreign.json", *asked)).complaint
    assert keystead(place, "token", "list").text == before


async def test_a_command_of_another_release_changes_nothing(keystead: Run, place: Place) -> None:
    """Where the schema is newer it says so, and does not try."""
    await place.database.execute("INSERT INTO schema_version (version) VALUES (9999)")
    try:
        before = await contents(place)
        assert "newer than this release" in keystead(place, "account", "create", "of-another-release").complaint
        assert await contents(place) == before
    finally:
        await place.database.execute("DELETE FROM schema_version WHERE version = 9999")


def test_the_role_none_takes_a_user_out_of_an_account(keystead: Run, place: Place) -> None:
    """The user stays, with the roles in other accounts."""
    left, kept = (keystead(place, "account", "create", f"role-{n}", "--json").row["id"] for n in ("left", "kept"))
    user = keystead(place, "user", "create", "none@user.example", "--account", left, "--json").row
    keystead(place, "user", "set", user["email"], "--account", kept, "--role", "administrator")
    gone = keystead(place, "user", "set", user["email"], "--account", left, "--role", "none", "--json").row
    assert gone["roles"] == {kept: "administrator"}


async def test_policies_of_a_file_and_a_beginning_bind(keystead: Run, world: World, tmp_path: Path) -> None:
    """A token reaches what its file names and nothing else, and nothing before it begins."""
    here = place_of(world)
    file = written(tmp_path / "zone.json", policy({f"{ZONE}{world.a.zone.id.hex}": "*"}, "SSL and Certificates Read"))
    base = ("token", "create", "t", "--account", "a", "--json", "--policies", file)

    async def statuses(*words: str) -> list[int]:
        value = keystead(here, *base, *words).row["token"]
        headers = {"Authorization": f"Bearer {value}"}
        paths = (world.a.zone_path, world.a.account_path, world.b.zone_path)
        return [(await world.http.get(path, headers=headers)).status_code for path in paths]

    assert await statuses() == [200, 403, 403]
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    assert await statuses("--not-before", tomorrow) == [403, 403, 403]


def place_of(world: World) -> Place:
    return Place(world.database, environ_of(world.settings.database_url or "", world.settings.data_dir))


async def test_the_groups_are_those_of_the_api(keystead: Run, world: World, tmp_path: Path) -> None:
    """`token groups` shows the same ids and names as the API, each with the level of what it can be given on."""
    listed = keystead(place_of(world), "token", "groups", "--json").rows
    assert [list(row) for row in listed] == [["id", "name", "level"]] * len(GROUPS)
    url = f"/client/v4/accounts/{world.a.account.id.hex}/tokens/permission_groups"
    told = (await world.http.get(url, headers=world.a.bearer)).json()["result"]
    assert {(row["id"], row["name"]) for row in listed} == {(group["id"], group["name"]) for group in told}
    head, *lines = keystead(place_of(world), "token", "groups").text.splitlines()
    assert head.split() == ["id", "name", "level"]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [(row["id"], row["level"]) for row in listed]
    resources = {"account": f"{ACCOUNT}{world.a.account.id.hex}", "zone": f"{ZONE}{world.a.zone.id.hex}"}
    for level, resource in resources.items():
        asked = policy({resource: "*"}, *(row["name"] for row in listed if row["level"] == level))
        file = written(tmp_path / f"{level}.json", asked)
        words = ("--account", "a", "--policies", file, "--json")
        assert keystead(place_of(world), "token", "create", level, *words).row["name"] == level


async def test_a_rolled_token_has_a_new_value_and_the_old_is_dead(
    keystead: Run, database_url: str, tmp_path: Path
) -> None:
    """Within a second the old value is refused, and so is each access token made for it; the new one does all."""
    async with new_world(database_url, tmp_path, remembered=1.0) as world:
        here = place_of(world)
        made = keystead(here, "token", "create", "rolled", "--account", "a", "--json").row
        other = keystead(here, "token", "create", "other", "--account", "a", "--json").row

        async def status(value: str) -> int:
            headers = {"Authorization": f"Bearer {value}"}
            return (await world.http.get(world.a.account_path, headers=headers)).status_code

        async def login(token_id: str, value: str) -> tuple[int, str]:
            answer = await world.http.post(LOGIN, json={"clientId": str(UUID(token_id)), "clientSecret": value})
            return answer.status_code, answer.json().get("accessToken", "")

        async def opens(access: str) -> int:
            path = f"/api/v1/cert-manager/ca/internal?projectId={world.a.account.id}"
            return (await world.http.get(path, headers={"Authorization": f"Bearer {access}"})).status_code

        (_, access), (_, kept) = [await login(each["id"], each["token"]) for each in (made, other)]
        assert [await status(made["token"]), await opens(access), await opens(kept)] == [200, 200, 200]
        rolled = keystead(here, "token", "roll", made["id"], "--json").row
        assert rolled == {**made, "token": rolled["token"]}
        assert rolled["token"] != made["token"]

        async def shut_out() -> bool:
            return (await status(made["token"]), await opens(access)) == (403, 401)

        await comes_about(shut_out)
        assert (await login(made["id"], made["token"]))[0] == 401
        assert [await status(rolled["token"]), await opens(kept), await status(other["token"])] == [200, 200, 200]
        assert (await login(made["id"], rolled["token"]))[0] == 200
        for_people = fields(keystead(here, "token", "roll", str(UUID(made["id"]))).text)
        assert list(for_people) == list(made)
        assert await status(for_people["token"]) == 200


def test_a_token_that_is_off_stays_off_when_it_is_rolled(keystead: Run, place: Place) -> None:
    """A roll changes the value and nothing else: not the state, the policies, the condition or the times."""
    keystead(place, "account", "create", "off")
    words = ("--account", "off", "--allow-from", "10.0.0.0/8", "--expires", "2999-01-01", "--json")
    made = keystead(place, "token", "create", "off", *words).row
    keystead(place, "token", "set", made["id"], "--status", "disabled")
    before = keystead(place, "token", "show", made["id"], "--json").row
    assert keystead(place, "token", "roll", made["id"], "--json").row["status"] == "disabled"
    assert keystead(place, "token", "show", made["id"], "--json").row == before


async def test_no_secret_is_printed_but_the_one_asked_for(keystead: Run, place: Place) -> None:
    """A value is in the output of what made it and in none after; what only shows changes nothing."""
    keystead(place, "account", "create", "quiet")
    user = keystead(place, "user", "create", "quiet@user.example", "--account", "quiet", "--json").row
    made = keystead(place, "token", "create", "quiet", "--account", "quiet", "--json").row
    rolled = keystead(place, "token", "roll", made["id"], "--json").row
    of_user = keystead(place, "token", "create", "q", "--account", "quiet", "--user", user["id"], "--json").row
    zone = keystead(place, "zone", "create", "quiet.example", "--account", "quiet", "--json").row
    rows = await place.database.fetch("SELECT digest FROM tokens UNION ALL SELECT key_digest FROM users")
    digests = [row["digest"].hex() for row in rows]
    secrets = [user["global_key"], made["token"], rolled["token"], of_user["token"]]
    assert len(set(secrets)) == len(secrets)
    before = await contents(place)
    assert not any(secret in line for secret in secrets for lines in before.values() for line in lines)
    for words in (
        ("account", "show", "quiet"),
        ("account", "list"),
        ("zone", "show", zone["id"]),
        ("zone", "list"),
        ("user", "list"),
        ("token", "show", made["id"]),
        ("token", "show", of_user["id"]),
        ("token", "list"),
        ("token", "groups"),
        ("audit", "list"),
        ("audit", "list", "--account", "quiet"),
    ):
        printed = keystead(place, *words).text + keystead(place, *words, "--json").text
        assert not any(secret in printed for secret in (*secrets, *digests)), words
    assert await contents(place) == before


# The audit log.


async def test_every_act_is_written_down_as_the_operators(keystead: Run, place: Place) -> None:
    """Who did it is the operating system's user, how is CLI, and the path is the command's words without arguments."""
    acts: list[tuple[str, list[str], list[tuple[str, str]]]] = [
        ("account create", ["acts"], [("create", "account")]),
        ("account set", ["acts", "--name", "Acts"], [("update", "account")]),
        ("account set", ["acts", "--country", "DE"], [("update", "account")]),
        ("zone create", ["acts.example", "--account", "acts"], [("create", "zone")]),
        ("zone set", ["acts.example", "--paused", "on"], [("update", "zone")]),
        ("user create", ["acts@user.example", "--account", "acts"], [("create", "user"), *[("update", "user")] * 2]),
        ("user set", ["acts@user.example", "--account", "acts", "--role", "administrator"], [("update", "user")]),
        ("user set", ["acts@user.example", "--roll-key"], [("update", "user")]),
        ("token create", ["acts", "--account", "acts"], [("create", "token")]),
        ("token roll", ["{token}"], [("roll", "token")]),
        ("token set", ["{token}", "--status", "disabled"], [("update", "token")]),
        ("token revoke", ["{token}"], [("delete", "token")]),
        ("token create", ["acts", "--account", "acts", "--user", "acts@user.example"], [("create", "token")]),
        ("token roll", ["{token}"], [("roll", "token")]),
        ("user delete", ["acts@user.example"], [("delete", "user")]),
        ("zone delete", ["acts.example"], [("delete", "zone")]),
        ("account delete", ["acts"], [("delete", "account")]),
    ]
    row = await place.database.fetchrow("SELECT now() AS now")
    assert row
    begin, count, token = row["now"], 0, ""
    for path, words, expected in acts:
        printed = keystead(place, *path.split(), *(word.format(token=token) for word in words)).text
        if path == "token create":
            token = fields(printed)["id"]
        columns = "action, resource_type, actor, actor_name, actor_email, method, path, result, count, host(address)"
        found = await place.database.fetch(
            f"SELECT {columns} AS address FROM audit_log WHERE at >= $1 ORDER BY at, id OFFSET $2", begin, count
        )
        count += len(found)
        by = ("operator", first_start.operator().name, None, "CLI", path, "success", 1, None)
        assert [tuple(each) for each in found] == [(*what, *by) for what in expected], words


def test_the_words_of_a_command_are_the_same_however_it_is_started(place: Place, keystead: Run) -> None:
    """Also as a module of Python it is its own words that are written down, and not how Python was called."""
    environ = {**place.environ, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "keystead", "account", "create", "module", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=True)
    (made,) = json.loads(done.stdout)
    assert keystead(place, "audit", "list", "--account", made["id"], "--json").row["path"] == "account create"


async def test_the_log_is_listed_by_account_from_the_newest(keystead: Run, place: Place) -> None:
    """`audit list` shows what is filed under the account, or under none, not older and not more than asked for."""
    account = keystead(place, "account", "create", "logged", "--json").row
    keystead(place, "account", "create", "other-log")
    zone = keystead(place, "zone", "create", "logged.example", "--account", "logged", "--json").row
    keystead(place, "zone", "create", "other-log.example", "--account", "other-log")
    user = keystead(place, "user", "create", "logged@user.example", "--account", "other-log", "--json").row
    keystead(place, "zone", "set", "logged.example", "--paused", "on")
    keystead(place, "account", "set", "logged", "--name", "L")
    # As if each had been done half an hour, or forty days, before.
    for action, age in (("create", "40 days"), ("update", "30 minutes")):
        sql = f"UPDATE audit_log SET at = at - interval '{age}' WHERE account_id = $1 AND action = $2"
        await place.database.execute(sql, UUID(account["id"]), action)

    def listed(*words: str) -> list[tuple[str, str]]:
        rows = keystead(place, "audit", "list", *words, "--json").rows
        assert all(list(row) == ENTRY for row in rows)
        assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)
        return [(row["action"], row["resource_id"]) for row in rows]

    of_account = [("update", account["id"]), ("update", zone["id"]), ("create", zone["id"]), ("create", account["id"])]
    ago = f"{datetime.now(UTC) - timedelta(days=41):%Y-%m-%d}"
    assert listed("--account", "logged", "--since", "41d") == of_account
    assert listed("--account", account["id"], "--since", ago) == of_account
    assert listed("--account", "logged") == of_account[:2]
    assert listed("--account", "logged", "--since", "41d", "--limit", "3") == of_account[:3]
    assert listed("--account", "logged", "--since", "10m") == []
    assert keystead(place, "audit", "list", "--account", "logged", "--since", "10m").text == "none\n"
    of_none = listed("--limit", "1000")
    assert ("create", user["id"]) in of_none
    assert not {account["id"], zone["id"]} & {resource for _, resource in of_none}
    head, *lines = keystead(place, "audit", "list", "--account", "logged", "--since", "41d").text.splitlines()
    assert head.split() == ENTRY
    assert [line.split()[-2:] for line in lines[2:]] == [["zone", "create"], ["account", "create"]]
    (row,) = keystead(place, "audit", "list", "--account", "logged", "--limit", "1", "--json").rows
    assert fields(keystead(place, "audit", "list", "--account", "logged", "--limit", "1").text) == shown(row)
    assert (row["actor"], row["name"], row["result"], row["count"]) == (
        "operator",
        first_start.operator().name,
        "success",
        1,
    )


async def test_a_denied_attempt_is_listed_with_who_made_it(keystead: Run, world: World) -> None:
    """What a token was refused is in its account's list, with the token's name, its address, method and path."""
    headers = {"Authorization": f"Bearer {world.a.read_token}"}
    denied = await world.http.post(world.a.account_path, json={}, headers=headers)
    assert denied.status_code == 403
    row, *_ = keystead(place_of(world), "audit", "list", "--account", "a", "--json").rows
    assert (row["actor"], row["name"], row["result"]) == ("token", "a token", "failure")
    assert (row["method"], row["path"], row["address"]) == ("POST", world.a.account_path, "127.0.0.1")
    assert row["request_id"] == denied.headers["x-request-id"]


async def test_the_log_is_pruned_and_that_is_written_down(keystead: Run, database_url: str, tmp_path: Path) -> None:
    """Entries of all accounts that are older go, and the others stay; how many is told, and nothing gone is no act."""
    database = Database(database_url, 1)
    settings = config.Settings(data_dir=tmp_path, database_url=database_url, keyring=tmp_path / "keyring.json")
    await first_start.ring_for(settings, database)
    here = Place(database, environ_of(database_url, tmp_path))
    for slug in ("x", "y"):
        keystead(here, "account", "create", slug)
        keystead(here, "account", "set", slug, "--name", slug)
    keystead(here, "user", "create", "old@user.example", "--account", "x")
    age = "UPDATE audit_log SET at = at - interval '400 days' WHERE action = 'create'"
    await database.execute(age)
    kept = await contents(here)
    assert keystead(here, "audit", "prune", "--before", "401d").text.startswith("deleted 0 entries from before ")
    assert await contents(here) == kept
    date = f"{datetime.now(UTC) - timedelta(days=30):%Y-%m-%d}"
    done = keystead(here, "audit", "prune", "--before", date).text
    assert done == f"deleted 3 entries from before {date}T00:00:00Z\n"
    sql = "SELECT action, resource_type, account_id, actor, actor_name, method, path FROM audit_log ORDER BY at DESC"
    newest, *rest = [tuple(row) for row in await database.fetch(sql)]
    assert newest[:6] == ("prune", "audit_log", UUID(int=0), "operator", first_start.operator().name, "CLI")
    assert newest[6].startswith("audit prune")
    assert [row[:2] for row in rest] == [("update", "user"), ("update", "user"), *[("update", "account")] * 2]
    assert keystead(here, "audit", "list", "--limit", "1", "--json").row["action"] == "prune"
    changed = {table for table, lines in (await contents(here)).items() if lines != kept[table]}
    assert changed == {"audit_log"}
    await database.close()


# Mistakes.


class Mistake(NamedTuple):
    """What a wrong use is answered with: exit status, words of its one line, and the command."""

    status: int
    said: str
    words: tuple[str | Path, ...]


def _of_token(folder: Path, account: str, foreign: str, zones: dict[str, str]) -> list[Mistake]:
    """Wrong ways to make a token in the account `one`."""
    base = ("token", "create", "t", "--account", "one")
    good = policy({f"{ZONE}{zones['one']}": "*"}, "Zone Read")
    file = written(folder / "good.json", good)
    groups = {group.name: group.id.hex for group in GROUPS}
    unknown = {**good, "permission_groups": [{"id": "0" * 32}]}
    by_name = {**good, "permission_groups": [{"name": "Zone Read"}]}
    nested = {f"{ACCOUNT}{account}": {f"{ZONE}{zones['two']}": "*"}}
    of_zones = {**good, "resources": {f"{ACCOUNT}{account}": "*"}}
    of_account = {**good, "permission_groups": [{"id": groups["Account Settings Read"]}]}
    files: list[tuple[str, str | bytes | list[Any]]] = [
        ("list of policies", ""),
        ("list of policies", "not JSON"),
        ("list of policies", '[{"effect": "allow"'),
        ("list of policies", b'["\xff"]'),
        ("list of policies", json.dumps(good)),
        ("list of policies", "[" * 100_000),
        ("must be an object", ["allow"]),
        ("named by its id", [by_name]),
        ("empty", []),
        ("neither allow nor deny", [{**good, "effect": "Allow"}]),
        ("no permission group", [unknown]),
        ("no permission group", [good, unknown]),
        ("group of zones", [{**of_zones, "effect": "deny"}]),
        ("group of accounts", [of_account]),
        ("no resource", [policy({f"{ZONE}{zones['two']}": "*"}, "Zone Read")]),
        ("no resource", [policy({f"{ZONE}{'0' * 32}": "*"}, "Zone Read")]),
        ("no resource", [policy({f"{ACCOUNT}{foreign}": "*"}, "Account Settings Read")]),
        ("no resource", [policy(nested, "Zone Read")]),
        ("no resource", [policy({"com.example": "*", "a\nb\x1b[31m": "*"}, "Zone Read")]),
    ]
    wrong = []
    for number, (said, content) in enumerate(files):
        path = folder / f"wrong-{number}.json"
        text = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        wrong.append(Mistake(1, said, (*base, "--policies", path)))
    past, end = "2001-01-01", "2999-06-01T00:00:00Z"
    return [
        *wrong,
        Mistake(1, "cannot be read", (*base, "--policies", folder / "missing.json")),
        Mistake(1, "cannot be read", (*base, "--policies", folder)),
        Mistake(2, "--policies", (*base, "--policies", file, "--group", "Zone Read")),
        Mistake(2, "--policies", (*base, "--policies", file, "--zone", "one.example")),
        Mistake(2, "--policies", (*base, "--policies", folder / "missing.json", "--group", "Zone Read")),
        Mistake(1, "name", ("token", "create", "", "--account", "one", "--policies", file)),
        Mistake(1, "10.0.0.0/8", (*base, "--policies", file, "--allow-from", "10.0.0.1/8")),
        Mistake(1, "no user", (*base, "--policies", file, "--user", "nobody@user.example")),
        Mistake(1, "no resource", (*base, "--policies", file, "--user", "two@mistake.example")),
        Mistake(2, "past", (*base, "--not-before", past)),
        Mistake(2, "--not-before", (*base, "--not-before", "tomorrow")),
        Mistake(2, "before --expires", (*base, "--not-before", "2999-06-02", "--expires", end)),
        Mistake(2, "before --expires", (*base, "--not-before", end, "--expires", "2999-06-01")),
        Mistake(2, "past", (*base, "--not-before", past, "--expires", end)),
        Mistake(2, "past", (*base, "--not-before", end, "--expires", past)),
    ]


MISTAKES = [
    Mistake(1, 'no account "nobody"', ("account", "show", "nobody")),
    Mistake(1, 'no account "nobody"', ("account", "set", "nobody", "--name", "x")),
    Mistake(1, "1 to 100 characters", ("account", "set", "one", "--name", "")),
    Mistake(1, "1 to 100 characters", ("account", "set", "one", "--name", "n" * 101)),
    Mistake(1, "control characters", ("account", "set", "one", "--name", "a\nb")),
    Mistake(1, "control characters", ("account", "set", "one", "--name", "a\x1b[31mb", "--csr-quota", "1")),
    Mistake(1, 'country "de"', ("account", "set", "one", "--org", "One Ltd", "--country", "de")),
    Mistake(1, "at most 64", ("account", "set", "one", "--country", "DE", "--org", "n" * 65)),
    Mistake(1, "only white space", ("account", "set", "one", "--country", "DE", "--state", " ")),
    Mistake(1, "control characters", ("account", "set", "one", "--country", "DE", "--locality", "a\x00b")),
    Mistake(2, "ACCOUNT", ("account", "show")),
    Mistake(1, 'no zone "nowhere.example"', ("zone", "show", "nowhere.example")),
    Mistake(1, 'no zone "nowhere.example"', ("zone", "set", "nowhere.example", "--paused", "on")),
    Mistake(2, "--paused", ("zone", "set", "one.example", "--paused", "maybe")),
    Mistake(2, "--type", ("zone", "set", "one.example", "--type", "half", "--paused", "on")),
    Mistake(1, "no token", ("token", "show", "t")),
    Mistake(1, "no token", ("token", "show", "0" * 32)),
    Mistake(1, "no token", ("token", "roll", "0" * 32)),
    Mistake(2, "TOKEN", ("token", "roll")),
    Mistake(2, "--since", ("audit", "list", "--since", "yesterday")),
    Mistake(2, "--since", ("audit", "list", "--since", "")),
    Mistake(2, "--since", ("audit", "list", "--since", "0d")),
    Mistake(2, "--since", ("audit", "list", "--since", "-7d")),
    Mistake(2, "future", ("audit", "list", "--since", "2999-01-01")),
    Mistake(2, "--limit", ("audit", "list", "--limit", "0")),
    Mistake(2, "--limit", ("audit", "list", "--limit", "1001")),
    Mistake(2, "--limit", ("audit", "list", "--limit", "all")),
    Mistake(1, 'no account "nobody"', ("audit", "list", "--account", "nobody")),
    Mistake(2, "--before", ("audit", "prune")),
    Mistake(2, "future", ("audit", "prune", "--before", "2999-01-01")),
    Mistake(2, "--before", ("audit", "prune", "--before", "long ago")),
    Mistake(2, "--before", ("audit", "prune", "--before", "")),
]


async def test_mistakes_are_one_line_and_change_nothing(keystead: Run, place: Place, tmp_path: Path) -> None:
    """Whatever is wrong is said in one line, with exit status 1, or 2 for a wrong use, and each row stays as it was."""
    ids, zones = {}, {}
    for slug in ("one", "two"):
        ids[slug] = keystead(place, "account", "create", slug, "--json").row["id"]
        zones[slug] = keystead(place, "zone", "create", f"{slug}.example", "--account", slug, "--json").row["id"]
        keystead(place, "user", "create", f"{slug}@mistake.example", "--account", slug)
    # Something that a prune without a date would take away.
    await place.database.execute("UPDATE audit_log SET at = at - interval '3 days' WHERE action = 'create'")
    before = await contents(place)
    for mistake in [*MISTAKES, *_of_token(tmp_path, ids["one"], ids["two"], zones)]:
        done = keystead(place, *mistake.words)
        assert mistake.said in done.complaint, mistake
        assert done.status == mistake.status, mistake
        assert "\x1b" not in done.err
    assert await contents(place) == before


@pytest.mark.parametrize("words", [("list", "--since", "5000y"), ("prune", "--before", "9999999w")])
async def test_a_span_longer_than_our_era_is_no_accident(keystead: Run, place: Place, words: tuple[str, ...]) -> None:
    """A span that reaches back before the first year is everything there is, or one line, and deletes nothing."""
    before = await contents(place)
    done = keystead(place, "audit", *words)
    assert done.status == 0 or done.complaint
    assert await contents(place) == before
