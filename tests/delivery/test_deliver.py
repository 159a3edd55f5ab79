"""`keystead deliver --once`: what reaches the files of a server, what is run, and what is put back."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.authority import openssl
from support.command import beside, rows, run_command
from support.delivery import Host, Site
from support.live import Live

from keystead.certificates.export import Exported, export
from keystead.delivery import work

PAIR = {"fullchain.pem", "privkey.pem"}


@pytest.fixture
def site(live: Live) -> Site:
    return Site(live, f"{uuid4().hex[:12]}.example.com")


def by_id(site: Site) -> str:
    return f'certificate = "{site.id}"'


def audited(site: Site) -> list[str]:
    sql = "SELECT path FROM audit_log WHERE resource_id = $1 AND action = 'export' AND actor = 'operator'"
    return [str(path) for (path,) in rows(site.live, sql, UUID(site.id))]


def belongs(host: Host, site: Site) -> bool:
    """Whether the pair on disk is that of the site now."""
    files = host.held()
    key = load_pem_private_key(files["privkey.pem"].encode(), None)
    return files["fullchain.pem"] == site.text and key.public_key() == site.leaf.public_key()


def script(folder: Path, text: str) -> str:
    """A hook in Python, as a list of TOML."""
    path = folder / f"{uuid4().hex}.py"
    path.write_text(text)
    return json.dumps([sys.executable, str(path)])


def test_a_pair_is_placed_once_and_again_when_it_was_renewed(host: Host, site: Site) -> None:
    """The files are the certificate's, with one audit row for each delivery and none where nothing has changed."""
    host.configure(host.pair(by_id(site)))
    assert host.deliver().status == 0
    assert host.held().keys() == PAIR
    assert belongs(host, site)
    assert host.deliver().status == 0
    assert audited(site) == ["deliver www"]
    site.renew()
    said = host.deliver("--once", "--json")
    assert json.loads(said.out)[0]["result"] == "delivered"
    assert belongs(host, site)
    assert audited(site) == ["deliver www"] * 2


def test_no_secret_is_in_the_state_or_the_output(host: Host, site: Site) -> None:
    """Neither the state file nor what is printed has any line of the key."""
    host.configure(host.pair(by_id(site)))
    said = host.deliver()
    key = host.held()["privkey.pem"].splitlines()[1]
    assert key not in said.out + said.err + host.state.read_text()
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o600


def test_a_missing_file_is_placed_again(host: Host, site: Site) -> None:
    """A file that was removed comes back with the next look."""
    host.configure(host.pair(by_id(site)))
    host.deliver()
    (host.tls / "privkey.pem").unlink()
    assert host.deliver().status == 0
    assert belongs(host, site)


def test_dry_run_opens_no_key_and_writes_nothing(host: Host, site: Site) -> None:
    """It names the certificate and the folder, and leaves no file, no state and no audit row."""
    host.configure(host.pair(by_id(site)))
    said = host.deliver("--dry-run")
    assert said.status == 0
    assert site.id in said.out
    assert str(host.tls) in said.out
    assert (host.held(), host.state.exists(), audited(site)) == ({}, False, [])


def test_modes_and_owners_are_those_asked_for(host: Host, site: Site) -> None:
    """Each file has the mode, the user and the group of the configuration."""
    more = 'mode = "0640"' + ('\nowner = "nobody"\ngroup = "daemon"' if os.geteuid() == 0 else "")
    host.configure(host.pair(by_id(site), more))
    assert host.deliver().status == 0
    states = [(host.tls / name).stat() for name in PAIR]
    assert {stat.S_IMODE(state.st_mode) for state in states} == {0o640}
    if os.geteuid() == 0:
        assert {Path(host.tls, name).owner() for name in PAIR} == {"nobody"}
        assert {Path(host.tls, name).group() for name in PAIR} == {"daemon"}


def test_a_zone_has_the_latest_certificate_of_a_host_delivered(host: Host, site: Site) -> None:
    """Of two with this host the later upload is taken; one with a wildcard comes behind one with the host itself."""
    later = Site(site.live, site.host)
    host.configure(host.pair(f'zone = "example.com"\nhost = "{site.host}"'))
    assert host.deliver().status == 0
    assert belongs(host, later)
    later.delete()
    assert host.deliver().status == 0
    assert belongs(host, site)


def test_all_certificates_of_a_zone_go_into_files_of_their_own(host: Host, live: Live) -> None:
    """With {id} in the names, each certificate that fits has its files, also one that is added later."""
    domain = f"{uuid4().hex[:12]}.example.com"
    sites = [Site(live, f"{name}.{domain}") for name in ("a", "b")]
    files = 'files = { combined = "{id}.pem" }'
    where = f'zone = "example.com"\nhost = "*.{domain}"'
    host.configure(f'name = "all"\nfolder = "{host.tls}"\n{files}\n{where}')
    host.deliver()
    assert host.held().keys() == {f"{each.id}.pem" for each in sites}
    sites.append(Site(live, f"c.{domain}"))
    host.deliver()
    assert host.held().keys() == {f"{each.id}.pem" for each in sites}
    assert [len(audited(each)) for each in sites] == [1, 1, 1]


@pytest.mark.parametrize("hook", ["check", "reload"])
def test_hooks_run_once_both_files_are_in_place(host: Host, site: Site, hook: str) -> None:
    """A hook finds the new pair, no draft, and no setting of Keystead in its environment."""
    seen = host.folder / "seen"
    look = "import json, os, pathlib, sys\n"
    look += f"here = pathlib.Path({str(host.tls)!r})\n"
    look += "found = {p.name: p.read_text() for p in here.iterdir() if not p.name.endswith('before')}\n"
    look += f"pathlib.Path({str(seen)!r}).write_text(json.dumps([found, list(os.environ)]))\n"
    host.configure(host.pair(by_id(site), f"{hook} = {script(host.folder, look)}"))
    host.deliver()
    site.renew()
    assert host.deliver().status == 0
    found, environ = json.loads(seen.read_text())
    assert found == host.held()
    assert not [name for name in environ if name.startswith(("KEYSTEAD", "CLOUDFLARE"))]


def test_the_earlier_pair_stands_beside_until_the_new_one_is_accepted(host: Host, site: Site) -> None:
    """While the check runs the earlier key is there with its mode; when the reload runs it is gone."""
    seen = [host.folder / name for name in ("checked", "reloaded")]
    look = "import json, pathlib, stat\n"
    look += f"here = pathlib.Path({str(host.tls)!r})\n"
    look += "found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in here.iterdir()}\n"
    hooks = [script(host.folder, f"{look}pathlib.Path({str(path)!r}).write_text(json.dumps(found))\n") for path in seen]
    host.configure(host.pair(by_id(site), f"check = {hooks[0]}\nreload = {hooks[1]}"))
    host.deliver()
    site.renew()
    assert host.deliver().status == 0
    pair = dict.fromkeys(PAIR, 0o600)
    before = {f"{name}.keystead-before": 0o600 for name in PAIR}
    assert [json.loads(path.read_text()) for path in seen] == [{**pair, **before}, pair]


def test_a_refused_pair_is_put_back(host: Host, site: Site) -> None:
    """Where the check refuses the new pair, the old one has its names again, and the reload is not run."""
    flag, ran = host.folder / "refuse", host.folder / "ran"
    check = script(host.folder, f"import os, sys\nsys.exit(os.path.exists({str(flag)!r}))")
    reload = script(host.folder, f"open({str(ran)!r}, 'a').write('x')")
    host.configure(host.pair(by_id(site), f"check = {check}\nreload = {reload}"))
    host.deliver()
    before = host.held()
    flag.touch()
    site.renew()
    said = host.deliver()
    assert said.status == 1
    assert "ended with 1" in said.out
    assert (host.held(), ran.read_text()) == (before, "x")
    flag.unlink()
    assert host.deliver().status == 0
    assert belongs(host, site)
    assert ran.read_text() == "xx"


def test_the_first_pair_stays_though_it_is_refused(host: Host, site: Site) -> None:
    """With none to put back, the check of another delivery may need it; the next look checks again, without the key."""
    flag = host.folder / "accept"
    check = script(host.folder, f"import os, sys\nsys.exit(not os.path.exists({str(flag)!r}))")
    host.configure(host.pair(by_id(site), f"check = {check}"))
    assert host.deliver().status == 1
    assert belongs(host, site)
    flag.touch()
    assert host.deliver().status == 0
    assert len(audited(site)) == 1


def test_a_failed_reload_is_repeated_without_the_key(host: Host, site: Site) -> None:
    """The files stay, and the next look runs the reload alone."""
    flag = host.folder / "accept"
    reload = script(host.folder, f"import os, sys\nsys.exit(not os.path.exists({str(flag)!r}))")
    host.configure(host.pair(by_id(site), f"reload = {reload}"))
    assert host.deliver().status == 1
    flag.touch()
    assert host.deliver().status == 0
    assert belongs(host, site)
    assert len(audited(site)) == 1


def test_a_hook_that_hangs_is_killed_with_its_children(host: Host, site: Site) -> None:
    """After its bound the whole process group is gone, and the old pair is back."""
    pids = host.folder / "pids"
    hang = json.dumps(["/bin/sh", "-c", f"sleep 600 & echo $$ $! >'{pids}'; wait"])
    host.configure(host.pair(by_id(site)))
    host.deliver()
    before = host.held()
    site.renew()
    # Long enough for a loaded machine to start both.
    host.configure(host.pair(by_id(site), f"check = {hang}\ntimeout = 3"))
    said = host.deliver()
    assert "was killed after 3 seconds" in said.out
    assert host.held() == before
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(") ")[2][0] == "Z"


def test_a_deleted_certificate_is_reported_and_its_files_stay(host: Host, site: Site) -> None:
    """What is on disk is not touched; the report names it, and the status is 1."""
    host.configure(host.pair(by_id(site)))
    host.deliver()
    before = host.held()
    site.delete()
    said = host.deliver()
    assert said.status == 1
    assert re.search(rf"{site.id}.*its files stay in {host.tls}", said.out)
    assert host.held() == before
    for path in host.tls.iterdir():
        path.unlink()
    said = host.deliver()
    assert (said.status, "stay in" in said.out) == (1, False)
    assert host.held() == {}


def test_why_there_is_nothing_is_said_before_what_stays(host: Host, site: Site) -> None:
    """A zone that is not there is named, and so are the zone and what stays where no certificate of it fits."""
    host.configure(host.pair(by_id(site)))
    host.deliver()
    for where, why in (
        ('zone = "no-such.example"\nhost = "www.example.com"', 'there is no zone "no-such.example"'),
        ('zone = "example.com"\nhost = "nobody.example.org"', "no certificate fits in the zone example.com"),
    ):
        host.configure(host.pair(where))
        assert re.search(rf"{why}.*; {site.id} .*its files stay in {host.tls}", host.deliver("--dry-run").out), where


def test_what_is_deleted_while_its_key_is_opened_is_not_placed(
    host: Host, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opened key goes nowhere, though its row of the audit log is there."""

    async def opened(*words: Any) -> Exported:
        exported = await export(*words)
        site.delete()
        return exported

    monkeypatch.setattr(work, "export", opened)
    host.configure(host.pair(by_id(site)))
    said = host.deliver()
    assert said.status == 1
    assert "being changed" in said.out
    assert (host.held(), len(audited(site))) == ({}, 1)


def test_a_damaged_certificate_stops_no_other(host: Host, site: Site) -> None:
    """A chain that cannot be read is withheld, and the rest of the zone is delivered."""
    other = Site(site.live, f"x.{site.host}")
    rows(site.live, "UPDATE custom_certificates SET chain = 'x' WHERE id = $1", UUID(site.id))
    host.configure(
        f'name = "all"\nfolder = "{host.tls}"\nfiles = {{ combined = "{{id}}.pem" }}\n'
        f'zone = "example.com"\nhost = "*.{site.host}"',
        host.pair(by_id(site)),
    )
    said = host.deliver()
    assert "cannot be read" in said.out
    assert host.held().keys() == {f"{other.id}.pem"}
    rows(site.live, "UPDATE custom_certificates SET chain = $2 WHERE id = $1", UUID(site.id), site.text)


def test_an_expired_certificate_is_not_delivered(host: Host, site: Site) -> None:
    """It is withheld, with the reason."""
    sql = "UPDATE custom_certificates SET not_after = '2020-01-01', modified_at = modified_at WHERE id = $1"
    rows(site.live, sql, UUID(site.id))
    host.configure(host.pair(by_id(site)))
    said = host.deliver()
    assert said.status == 1
    assert "is expired" in said.out
    assert (host.held(), audited(site)) == ({}, [])


def test_a_revoked_certificate_is_not_delivered(host: Host, site: Site) -> None:
    """One that a CA of the account has revoked is withheld: the earlier files stay, and no key is opened."""
    host.configure(host.pair(by_id(site)))
    host.deliver()
    before = host.held()

    def ca(*words: str, text: str = "") -> str:
        done = run_command(beside(site.live), "ca", *words, text=text)
        assert done.status == 0, done.err
        return done.out

    root = json.loads(ca("create", f"Root {site.host}", "--json"))[0]["id"]
    site.renew_with(ca("sign", root, "-", "--ttl", "30d", "--chain", text=site.new_csr()["csr"]))
    ca("revoke", root, f"{site.leaf.serial_number:040x}")
    said = host.deliver()
    assert said.status == 1
    assert "was revoked" in said.out
    assert (host.held(), len(audited(site))) == (before, 1)


@pytest.mark.parametrize("name", sorted(PAIR))
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_file_is_not_replaced(host: Host, site: Site, name: str, kind: str) -> None:
    """A symbolic link or a folder of this name is refused before the key is opened."""
    outside = host.folder / "outside"
    outside.write_text("as it was")
    (host.tls / name).symlink_to(outside) if kind == "link" else (host.tls / name).mkdir()
    host.configure(host.pair(by_id(site)))
    said = host.deliver()
    assert "is no file" in said.out
    assert (audited(site), outside.read_text()) == ([], "as it was")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_is_refused(host: Host, site: Site, mode: int) -> None:
    """At the start, sticky or not, and nothing is opened."""
    host.configure(host.pair(by_id(site)))
    host.tls.chmod(mode)
    said = host.deliver()
    assert said.status == 1
    assert "others may write the folder" in said.err
    assert (host.held(), audited(site)) == ({}, [])


def test_a_folder_behind_a_symbolic_link_is_refused(host: Host, site: Site) -> None:
    """The text names the real folder."""
    (host.folder / "link").symlink_to(host.tls)
    host.configure(host.pair(by_id(site)).replace(f'"{host.tls}"', f'"{host.folder / "link"}"'))
    said = host.deliver()
    assert said.status == 1
    assert f"name {host.tls}" in said.err


def test_two_at_once_are_refused(host: Host, site: Site) -> None:
    """While a hook of one runs, another one ends with the reason."""
    told = host.folder / "told"
    again = "import subprocess, sys\n"
    words = [sys.executable, "-m", "keystead", "deliver", "--config", str(host.config), "--once"]
    again += f"done = subprocess.run({words!r}, capture_output=True, text=True, env={beside(host.live)!r})\n"
    again += f"open({str(told)!r}, 'w').write(done.stderr)\n"
    host.configure(host.pair(by_id(site), f"reload = {script(host.folder, again)}"))
    assert host.deliver().status == 0
    assert "in use by another" in told.read_text()


def test_metrics_say_when_it_ends_and_what_is_wrong(host: Host, site: Site) -> None:
    """The file for the textfile collector has the end of the certificate, and which deliveries have failed."""
    metrics = host.folder / "deliver.prom"
    host.configure(host.pair(by_id(site)), more=f'metrics = "{metrics}"')
    host.deliver()
    lines = metrics.read_text().splitlines()
    found = [line.split() for line in lines if line.startswith("keystead_deliver_not_after_timestamp_seconds{")]
    assert [(name[-5:-2], float(ends)) for name, ends in found] == [("www", site.leaf.not_valid_after_utc.timestamp())]
    assert 'keystead_deliver_trouble{delivery="www",kind="failed"} 0.0' in lines
    site.delete()
    host.deliver()
    assert 'keystead_deliver_trouble{delivery="www",kind="withheld"} 1.0' in metrics.read_text()


def test_combined_and_pkcs12_hold_the_same_pair(host: Host, site: Site) -> None:
    """OpenSSL reads chain and key from both, the latter with its passphrase alone."""
    secret = host.folder / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    files = 'files = { fullchain = "chain.pem", combined = "site.pem", pkcs12 = "site.p12" }'
    host.configure(f'name = "java"\nfolder = "{host.tls}"\n{files}\n{by_id(site)}\npassphrase = "{secret}"')
    assert host.deliver().status == 0
    combined = (host.tls / "site.pem").read_text()
    assert combined.startswith(site.text)
    opened = openssl("pkcs12", "-in", host.tls / "site.p12", "-passin", f"file:{secret}", "-nodes")
    keys = [load_pem_private_key(text.encode(), None) for text in (combined, opened)]
    assert [key.public_key() for key in keys] == [site.leaf.public_key()] * 2
    form = (serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert keys[0].private_bytes(*form) == keys[1].private_bytes(*form)
    with pytest.raises(AssertionError):
        openssl("pkcs12", "-in", host.tls / "site.p12", "-passin", "pass:wrong", "-nodes")


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java is installed")
def test_java_reads_the_pkcs12(host: Host, site: Site) -> None:
    """Java finds one entry with a private key and the whole chain, under the name of the delivery."""
    secret = host.folder / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    table = f'name = "java"\nfolder = "{host.tls}"\nfiles = {{ pkcs12 = "site.p12" }}\n{by_id(site)}'
    host.configure(f'{table}\npassphrase = "{secret}"')
    assert host.deliver().status == 0
    words = ["keytool", "-list", "-v", "-storetype", "PKCS12", "-keystore", str(host.tls / "site.p12")]
    done = subprocess.run(
        [*words, "-storepass:file", str(secret)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "Alias name: java" in done.stdout
    assert "Entry type: PrivateKeyEntry" in done.stdout
    assert "Certificate chain length: 2" in done.stdout


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o660])
def test_a_passphrase_for_others_is_refused(host: Host, site: Site, mode: int) -> None:
    """At the start, with what would mend it."""
    secret = host.folder / "passphrase"
    secret.write_text("x\n")
    secret.chmod(mode)
    host.configure(
        f'name = "java"\nfolder = "{host.tls}"\nfiles = {{ pkcs12 = "x.p12" }}\n{by_id(site)}\npassphrase = "{secret}"'
    )
    said = host.deliver()
    assert said.status == 1
    assert "chmod it 0600" in said.err
