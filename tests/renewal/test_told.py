"""The operator's program is told what becomes of certificates, and changes nothing whatever it does."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from support.authority import pem
from support.live import Live
from support.renewing import Site, new_site
from support.waiting import until
from support.world import BODY, World

from keystead import config, programs
from keystead.ca import authorities
from keystead.caller import Scope
from keystead.errors import Misconfigured
from keystead.renewal.model import State
from keystead.server import first_start

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
Program = Callable[[str], None]


@pytest.fixture
async def site(world: World) -> Site:
    return await new_site(world)


@pytest.fixture
def program(site: Site, tmp_path: Path) -> Program:
    """Gives the server a program of these lines of shell; FOLDER is the test's."""

    def give(lines: str) -> None:
        path = tmp_path / "told"
        path.write_text(f"#!/bin/sh\nFOLDER={tmp_path}\n{lines}\n")
        path.chmod(0o755)
        msgspec.structs.force_setattr(site.services, "tell", (str(path),))

    return give


def notices(folder: Path) -> list[Json]:
    path = folder / "notices"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def disable(site: Site, *, disabled: bool) -> None:
    changes, account = authorities.Changes(disabled=disabled), Scope(site.scope.account_id)
    await authorities.change(site.services.db, first_start.operator(), account, UUID(site.ca_id), changes)


async def test_it_is_told_of_each_failure_and_renewal(site: Site, program: Program, tmp_path: Path) -> None:
    """One line of JSON on its standard input, with what an operator would look up, and the new end of a renewed one."""
    program("cat >> $FOLDER/notices")
    made = await site.certificate()
    before = await site.get(made)
    await site.ruled(made)
    await disable(site, disabled=True)
    await site.turn(turns=1)
    [failed] = notices(tmp_path)
    assert failed.pop("reason").startswith("CA is not active")
    assert failed == {
        "event": "failed",
        "account": site.scope.account_id.hex,
        "zone": site.scope.id.hex,
        "certificate": str(made),
        "hosts": list(before.hosts),
        "expires_on": f"{before.not_after:%Y-%m-%dT%H:%M:%S}.000000Z",
    }
    await disable(site, disabled=False)
    await site.change("UPDATE renewal_rules SET due_at = due_at - interval '1 day'")
    await site.turn()
    after = await site.get(made)
    ends = f"{after.not_after:%Y-%m-%dT%H:%M:%S}.000000Z"
    assert notices(tmp_path)[1:] == [{**failed, "event": "renewed", "expires_on": ends}]


async def test_it_is_told_each_day_of_what_waits_for_a_ca_outside(site: Site, program: Program, tmp_path: Path) -> None:
    """`expiring`, with the reason; a second look on the same day says nothing."""
    program("cat >> $FOLDER/notices")
    made = await site.certificate()
    await site.ruled(made, "outside")
    await site.turn(turns=3)
    [notice] = notices(tmp_path)
    assert (notice["event"], notice["certificate"]) == ("expiring", str(made))
    assert "waits for the certificate of a CA outside" in notice["reason"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("exit 3", "ended with 3"),
        ("exec sleep 60", "was killed after 0.5 seconds"),
        ("exec 0<&-; kill -9 $$", "was ended by signal 9"),
    ],
)
async def test_a_program_that_fails_or_hangs_harms_no_renewal(
    site: Site, program: Program, monkeypatch: pytest.MonkeyPatch, lines: str, said: str
) -> None:
    """It is killed in time, the log says so, and the certificate is renewed."""
    told: list[str] = []
    monkeypatch.setattr(programs._log, "warning", lambda _event, **fields: told.append(fields["reason"]))
    monkeypatch.setattr(programs, "TELL_SECONDS", 0.5)
    program(lines)
    made = await site.certificate()
    await site.ruled(made)
    await site.turn()
    assert (await site.versions(made), (await site.rule(made)).state) == (1, State.SCHEDULED)
    [reason] = told
    assert reason.split('" ')[1].startswith(said)


async def test_it_gets_no_settings_of_ours(
    site: Site, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the database may hold a password."""
    monkeypatch.setenv("KEYSTEAD_DATABASE_URL", "postgresql://keystead:secret@host/keystead")
    program("env > $FOLDER/environment")
    made = await site.certificate()
    await site.ruled(made)
    await site.turn()
    assert {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()} <= {
        *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PWD", "OLDPWD", "SHLVL", "_"),
    }


@pytest.mark.serve
def test_a_server_tells_the_program_of_its_setting(live: Live) -> None:
    """KEYSTEAD_TELL, of a server as it runs: the notice comes with its next look at what is due."""
    with httpx.Client(base_url=live.url, headers=live.bearer, timeout=60) as http:
        csr = http.post(live.zone_path, json=BODY).json()["result"]
        body = {"certificate": pem(live.ca.of_csr(csr["csr"], days=20, since=70)), "custom_csr_id": csr["id"]}
        path = live.zone_path.replace("csrs", "certificates")
        made = http.post(path, json=body).json()["result"]["id"]
        assert http.put(f"{path}/{made}/keystead_renewal", json={"renew_with": "outside"}).status_code == 200
    until(lambda: any(each["certificate"] == made for each in notices(live.told)), said=live.log.read_text)
    [notice] = [each for each in notices(live.told) if each["certificate"] == made]
    assert notice["event"] == "expiring"


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("missing", 0, r"\(No such file or directory\)"),
        ("told", 0o644, r"\(this user may not run it\)"),
        ("told", 0o775, r"\(others may write it\)"),
        ("told", 0o757, r"\(others may write it\)"),
        ("", 0o755, "is not valid;"),
    ],
)
def test_a_program_that_cannot_or_must_not_be_run_stops_the_start(
    tmp_path: Path, name: str, mode: int, why: str
) -> None:
    """It is not there, no program, or others may write it, who would then run what they like beside the keys."""
    (tmp_path / "told").touch()
    (tmp_path / "told").chmod(mode)
    with pytest.raises(Misconfigured, match=rf"KEYSTEAD_TELL is .*{why}.* the absolute path of a program"):
        config.load({"KEYSTEAD_TELL": str(tmp_path / name)})
    with pytest.raises(Misconfigured):
        config.load({"KEYSTEAD_TELL": "told"})


@pytest.mark.parametrize(("event", "handed_on"), [("renewed", 0), ("failed", 1), ("expiring", 1)])
async def test_the_program_of_the_page_hands_on_what_needs_somebody(
    site: Site, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, handed_on: int
) -> None:
    """As it stands in docs/renewal.md, with a `curl` that keeps what it gets."""
    curl = tmp_path / "curl"
    curl.write_text(f"#!/bin/sh\ncat >> {tmp_path}/notices\n")
    curl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = (ROOT / "docs/renewal.md").read_text()
    program(textwrap.dedent(page[page.index("    #!/bin/sh") : page.index("    esac") + len("    esac\n")]))
    await programs.tell(site.services.tell, programs.Notice(event=programs.Event(event), reason="as it is"))
    assert [each["reason"] for each in notices(tmp_path)] == ["as it is"] * handed_on
