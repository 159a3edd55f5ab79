"""What somebody else wrote is shown as text and does nothing: on the terminal of the operator, and in the audit log."""

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import click
import pytest
from support.everything import _use_everything
from support.ordinary_user import as_root, python_for
from support.world import World

from keystead import visible
from keystead.commands import cli, terminal
from keystead.config import Settings
from keystead.identity import accounts
from keystead.server import first_start
from keystead.server import parent as serve

# Each means something to a terminal, to rich, or to whoever reads: colours, the bell, C1, the other direction, nothing
# at all, another line, markup and emoji.
HOSTILE = "x\x1b[31m\x07\x9b\x7f\u202egnp.\u2066\u200b\u2028\u00a0\u3164\ufe0f\U000e0041[red]b[/] :boom:\r\n\tok"
WRITTEN_OUT = r"x\x1b[31m\x07\x9b\x7f\u202egnp.\u2066\u200b\u2028\xa0\u3164\ufe0f\U000e0041[red]b[/] :boom:\r\n\tok"
# Every text that a command shows and that is not from a closed set.
COLUMNS = {
    "accounts": ["name"],
    "zones": ["name"],
    "users": ["email"],
    "tokens": ["name"],
    "delivery_tokens": ["name"],
    "custom_certificates": ["issuer", "signature"],
    "certificate_history": ["issuer"],
    "certificate_authorities": ["common_name", "friendly_name", "organization"],
    "issued_certificates": ["subject"],
    "custom_csrs": ["name", "description"],
    "certificate_profiles": ["description"],
    "renewal_rules": ["problem"],
    "audit_log": ["actor_name", "path", "method", "request_id"],
}
Said = tuple[int, str, str]
Run = Callable[..., Said]


def prints(text: str) -> bool:
    """Nothing but what is seen, and ends of lines."""
    return all(line.isprintable() and visible.text(line) == line for line in text.split("\n"))


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on the world's database, as its script does but in this process."""
    monkeypatch.setenv("KEYSTEAD_DATABASE_URL", world.settings.database_url or "")
    monkeypatch.setenv("KEYSTEAD_DATA_DIR", str(world.settings.data_dir))

    def status() -> int:
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    def keystead(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["keystead", *words])
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(status).result()
        return ended, *capsys.readouterr()

    return keystead


async def hostile(world: World) -> dict[str, list[str]]:
    """Rows of everything with hostile names, and the commands that show them by where the names are."""
    for _ in range(2):
        await _use_everything(world)
        await world.database.execute("DELETE FROM idempotency_keys")
    for table, columns in COLUMNS.items():
        told = "lower($1)" if table == "users" else "$1"
        many = " || row_number" if table in {"users", "zones"} else ""
        set_ = ", ".join(f"{column} = {told}{many}" for column in columns)
        numbered = f"(SELECT ctid AS place, row_number() OVER () FROM {table}) n"
        await world.database.execute(f"UPDATE {table} SET {set_} FROM {numbered} WHERE ctid = n.place", HOSTILE)
    await world.database.execute("UPDATE custom_certificates SET hosts = ARRAY[$1]", HOSTILE)
    await world.database.execute("UPDATE certificate_history SET hosts = ARRAY[$1]", HOSTILE)
    one = "SELECT id FROM {} WHERE account_id = $1 LIMIT 1"
    found = {
        table: str((await world.database.fetch(one.format(table), world.a.account.id))[0]["id"])
        for table in (
            *("zones", "tokens", "custom_csrs", "custom_certificates", "certificate_authorities"),
            "certificate_profiles",
        )
    }
    account = world.a.account.slug
    return {
        # First, because some of the others are in it.
        "audit list": ["--account", account],
        "account list": [],
        "account show": [account],
        "zone list": [],
        "zone show": [found["zones"]],
        "user list": [],
        "token list": [],
        "delivery token list": [],
        "token show": [found["tokens"]],
        "certificate list": [],
        "certificate expiring": ["--within", "36500d"],
        "certificate renewals": [],
        "certificate show": [found["custom_certificates"]],
        "certificate history": [found["custom_certificates"]],
        "csr list": ["--account", account],
        "csr show": [found["custom_csrs"], "--account", account],
        "profile list": ["--account", account],
        "profile show": [found["certificate_profiles"], "--account", account],
        "ca certificates": ["--account", account],
        "ca list": [],
        "ca show": [found["certificate_authorities"]],
        "ca show --issued": [found["certificate_authorities"]],
    }


# They show nothing that anybody wrote, or what was just given to them.
NOT_LISTS = {"token groups", "keys status", "doctor", "certificate match"}


def listing_commands() -> set[str]:
    """Every command that takes --json and changes nothing."""
    found = set()

    def walk(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name, below in command.commands.items():
                walk(below, f"{path} {name}".strip())
        elif any(option.name == "as_json" for option in command.params):
            found.add(path)

    walk(cli.cli, "")
    verbs = {"create", "set", "roll", "import", "renew", "upload", "deliver"}
    return {path for path in found if path.split()[-1] not in verbs}


async def test_no_listing_lets_a_name_act(world: World, run: Run) -> None:
    """Each table and list of the command shows hostile names letter by letter, without colour, markup or new lines."""
    commands = await hostile(world)
    assert {name.removesuffix(" --issued") for name in commands} | NOT_LISTS == listing_commands()
    for name, words in commands.items():
        status, out, err = run(*name.split(), *words)
        assert (status, err) == (0, ""), name
        assert prints(out), name
        # Users' addresses are in lower case.
        shown = WRITTEN_OUT.lower().replace(r"\u000e", r"\U000e") if name.startswith("user") else WRITTEN_OUT
        assert shown in out, name
        # As many lines as there are rows or fields, and no more.
        status, told, _ = run(*name.split(), *words, "--json")
        rows = json.loads(told)
        assert len(out.splitlines()) == (len(rows) + 1 if len(rows) > 1 else len(rows[0])), name
        assert prints(told), name
        wanted = HOSTILE.lower() if name.startswith("user") else HOSTILE
        values = [value for value in rows[0].values() if isinstance(value, str)]
        assert any(wanted in value for value in values), name


@pytest.mark.parametrize(
    "words",
    [
        ("account", "show", HOSTILE),
        ("account", "create", HOSTILE),
        ("zone", "show", HOSTILE),
        ("user", "set", HOSTILE, "--roll-key"),
        ("token", "show", HOSTILE),
        ("token", "create", "t", "--group", HOSTILE),
        ("token", "create", "t", "--policies", HOSTILE),
        ("certificate", "show", HOSTILE),
        ("certificate", "expiring", "--within", HOSTILE),
        ("ca", "show", HOSTILE),
        ("ca", "csr", "x", "--out", f"/nowhere/{HOSTILE}"),
        ("keys", "retire", HOSTILE),
        ("keys", "retire", "\udcff"),
        ("audit", "list", "--since", HOSTILE),
        ("audit", "list", f"--{HOSTILE}"),
        ("audit", "list", HOSTILE),
        (HOSTILE,),
    ],
    ids=lambda words: " ".join(words[:2]).encode("unicode_escape").decode()[:40],
)
def test_no_error_lets_a_word_act(run: Run, words: tuple[str, ...]) -> None:
    """What was asked for is repeated letter by letter, and never looks like a line of the command's own."""
    status, out, err = run(*words)
    assert (status in {1, 2}, out) == (True, ""), out
    assert prints(err)
    assert not [line for line in err.splitlines() if line.startswith(("\tok", "ok"))]


def test_no_path_acts(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor's lines, the settings' and the banner show a folder's name letter by letter."""
    folder = world.settings.data_dir / f"{HOSTILE}\nok  server: all is well".replace("/", "")
    folder.mkdir()
    monkeypatch.setenv("KEYSTEAD_DATA_DIR", str(folder))
    _, out, err = run("doctor")
    assert prints(out + err)
    assert r"\u202e" in out
    assert not [line for line in out.splitlines() if line.startswith("ok  server: all is well")]
    monkeypatch.setenv("KEYSTEAD_PORT", HOSTILE)
    status, _, err = run("account", "list")
    assert status == 1
    assert prints(err)
    settings = Settings(data_dir=folder, keyring=folder / "keyring.json")
    banner = first_start._banner(settings, folder / "credentials.env")
    assert prints(banner)
    assert r"\u202e" in banner


def test_what_is_done_is_said_letter_by_letter(run: Run, world: World) -> None:
    """Also where a command ends well, with the name that it was given."""
    status, _, _ = run("ca", "create", "Root", "--account", "a", "--name", "r\u200b\u3164")
    assert status == 0
    assert run("ca", "delete", "r\u200b\u3164") == (0, "deleted CA r\\u200b\\u3164\n", "")


async def test_the_audit_log_keeps_what_can_be_read(world: World) -> None:
    """Path and name of a denied request are stored with what does not print written out, for SQL and the API too."""
    name = "t\u200b[red]"
    await world.database.execute("UPDATE tokens SET name = $1 WHERE account_id = $2", name, world.a.account.id)
    bearer = {"Authorization": f"Bearer {world.a.read_token}"}
    path = f"{world.a.account_path}/{quote('a' + HOSTILE.replace('/', ''), safe='')}"
    assert (await world.http.delete(path, headers=bearer)).status_code in {400, 403, 404}
    row = await world.database.fetchrow("SELECT path, actor_name FROM audit_log WHERE result = 'failure'")
    assert row is not None
    shown = WRITTEN_OUT.replace("/", "")
    assert tuple(row) == (f"{world.a.account_path}/a{shown}", r"t\u200b[red]")
    period = "since=2020-01-01&before=2999-01-01"
    log = f"/client/v4/accounts/{world.a.account.id.hex}/logs/audit?action_result=failure&{period}"
    (entry,) = (await world.http.get(log, headers=world.a.bearer)).json()["result"]
    assert entry["raw"]["uri"] == row["path"]
    assert entry["actor"]["token_name"] == row["actor_name"]


async def test_a_path_that_grows_by_being_written_out_stays_bounded(world: World) -> None:
    """The bound of a path in the audit log holds for what is stored."""
    bearer = {"Authorization": f"Bearer {world.a.read_token}"}
    await world.http.delete(f"{world.a.account_path}/{quote(2000 * chr(0x202E))}", headers=bearer)
    row = await world.database.fetchrow("SELECT path FROM audit_log WHERE result = 'failure'")
    assert row is not None
    assert len(row["path"]) == 1024
    assert prints(row["path"])


def test_json_stays_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever does not print is an escape of JSON's own, so that a program reads the very same text."""
    terminal.show([{"name": HOSTILE + "😀ü"}], as_json=True)
    text = capsys.readouterr().out
    assert prints(text)
    assert "😀ü" in text
    assert json.loads(text) == [{"name": HOSTILE + "😀ü"}]


@pytest.mark.parametrize("text", ["Müller & Söhne", "日本語", "a\\b", "😀", "[red]", ":boom:", "e\u0301"])
def test_what_prints_is_left_alone(text: str) -> None:
    """Letters of any script, and what is only text, stay as they are."""
    assert visible.text(text) == text


# Who the operator is.

WHO = "from keystead.server import first_start; print(first_start.operator().name)"


def who(**environ: str) -> str:
    command = [sys.executable, "-c", WHO]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.defpath, **environ})
    return done.stdout.strip()


def test_the_operator_is_who_runs_the_process() -> None:
    """The name is that of the uid, whatever LOGNAME, USER, LNAME and USERNAME say."""
    lies = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "mallory")
    assert who(**lies) == pwd.getpwuid(os.getuid()).pw_name


def test_sudo_is_beside_it_and_never_instead() -> None:
    """SUDO_UID is named as such, since anybody can set it, and what is no number is left out."""
    name = pwd.getpwuid(os.getuid()).pw_name
    assert who(SUDO_UID="1000") == f"{name} (SUDO_UID=1000)"
    for lie in ("", "root", "1000\n", "-1", "9" * 40, "1000) by (root"):
        assert who(SUDO_UID=lie) == name


@as_root
def test_a_uid_without_an_entry_is_its_number() -> None:
    """In a container with a uid of its own the log has the number."""
    uid = 54_321
    folder = str(Path(serve.__file__).parents[2])
    paths = os.pathsep.join((folder, *(path for path in sys.path if "site-packages" in path)))
    command = [python_for(uid), "-c", WHO]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=(),
        env={"PYTHONPATH": paths, "LOGNAME": "mallory", "USER": "mallory", "PATH": os.defpath},
    )
    assert done.stdout == f"uid {uid}\n"


async def test_a_command_is_audited_under_the_name_of_its_uid(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that a command leaves does not believe LOGNAME."""
    monkeypatch.setenv("LOGNAME", "mallory")
    monkeypatch.setenv("USER", "mallory")
    assert run("account", "create", "honest")[0] == 0
    account = await accounts.find_account(world.database, "honest")
    row = await world.database.fetchrow("SELECT actor_name FROM audit_log WHERE account_id = $1", account.id)
    assert row is not None
    assert row["actor_name"].split()[0] == pwd.getpwuid(os.getuid()).pw_name
