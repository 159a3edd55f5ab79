"""The configuration of `keystead deliver`: what is wrong is told with file, line and value."""

import grp
import re
import shutil
from pathlib import Path

import pytest

from keystead.delivery import settings
from keystead.errors import Misconfigured

GOOD = """\
state = "/var/lib/keystead-deliver/state.json"

[[deliver]]
name = "www"
folder = "/etc/tls"
files = { fullchain = "fullchain.pem", privkey = "privkey.pem" }
certificate = "11111111-1111-4111-8111-111111111111"
"""
BY_ZONE = GOOD.replace('certificate = "11111111-1111-4111-8111-111111111111"', 'zone = "example.com"')
# A text in GOOD, what takes its place, the line that is named, and what is said.
BAD = [
    ('state = "/var/lib/keystead-deliver/state.json"', "", 1, "state: it is missing"),
    ('"/var/lib/keystead-deliver/state.json"', '"state.json"', 1, 'state is "state.json": it takes the absolute path'),
    ('"/var/lib/keystead-deliver/state.json"', '"/x"\nmetrics = "/x/y.txt"', 2, 'metrics is "/x/y.txt": it takes'),
    (
        "[[deliver]]",
        'tell = ["/no/program"]\n[[deliver]]',
        3,
        "tell is \"['/no/program']\": it takes a list of a program",
    ),
    ("[[deliver]]", "stat = 1\n[[deliver]]", 3, 'stat is "1": it is not a setting'),
    ("[[deliver]]", "[deliver]", 3, "deliver: it takes one [[deliver]] or more"),
    ('name = "www"', "", 3, "name: it is missing"),
    ('name = "www"', 'name = "W w"', 4, 'name is "W w": it takes a name of its own'),
    ('name = "www"', "name = 7", 4, 'name is "7": it takes'),
    ('"/etc/tls"', '"etc/tls"', 5, 'folder is "etc/tls": it takes an absolute path'),
    ('"/etc/tls"', '"/etc/../tls"', 5, 'folder is "/etc/../tls": it takes an absolute path'),
    ('"/etc/tls"', '"/etc/tls/"', 5, 'folder is "/etc/tls/": it takes an absolute path'),
    ('"/etc/tls"', '"/etc/a b"', 5, 'folder is "/etc/a b": it takes an absolute path'),
    ('"fullchain.pem"', '"../fullchain.pem"', 6, "files is"),
    ('"fullchain.pem"', '".fullchain"', 6, "files is"),
    ('"fullchain.pem"', '"a/b"', 6, "files is"),
    ('"fullchain.pem"', '"{ids}.pem"', 6, "files is"),
    ('"fullchain.pem"', '"privkey.pem"', 6, "one of these files is named twice"),
    ('"fullchain.pem"', '"{id}.pem"', 6, "all of the names have {id}, or none"),
    ("fullchain =", "jks =", 6, "it takes names without folders for fullchain, privkey"),
    ('{ fullchain = "fullchain.pem", privkey = "privkey.pem" }', "{}", 6, "files is"),
    ('"11111111-1111-4111-8111-111111111111"', '"x"', 7, 'certificate is "x": it takes the id of a certificate'),
    ("certificate =", 'zone = "example.com"\ncertificate =', 8, "it takes either certificate, or zone"),
    ('certificate = "11111111-1111-4111-8111-111111111111"', "", 3, "certificate: it takes either certificate"),
    ("certificate =", 'host = "x.example.com"\ncertificate =', 7, "host"),
    ("certificate =", 'mode = "0644"\ncertificate =', 7, 'mode is "0644": it takes 0600'),
    ("certificate =", "mode = 0o600\ncertificate =", 7, 'mode is "384": it takes 0600'),
    ("certificate =", 'owner = "no-such-user"\ncertificate =', 7, 'owner is "no-such-user": it takes a user'),
    ("certificate =", 'group = "no-such-group"\ncertificate =', 7, 'group is "no-such-group": it takes a group'),
    ("certificate =", 'reload = "nginx -s reload"\ncertificate =', 7, "reload is"),
    ("certificate =", 'check = ["no-such-program"]\ncertificate =', 7, "the program has to be on this host"),
    ("[[deliver]]", "[[delivery]]", 3, "delivery is"),
    ("certificate =", 'passphrase = "/x"\ncertificate =', 7, "it is needed with pkcs12 in files, and only then"),
    ("fullchain =", "pkcs12 =", 3, "passphrase: it is needed with pkcs12 in files"),
    ("certificate =", 'haproxy = "/run/x"\ncertificate =', 7, "it takes combined in files"),
    ("certificate =", "timeout = 0\ncertificate =", 7, 'timeout is "0": it takes a number of seconds'),
    ("certificate =", "timeout = true\ncertificate =", 7, 'timeout is "True": it takes a number of seconds'),
    ("certificate =", "timeout = 601\ncertificate =", 7, 'timeout is "601": it takes a number of seconds'),
    ("certificate =", 'color = "red"\ncertificate =', 7, 'color is "red": it is not a setting'),
]


def load(folder: Path, text: str) -> settings.Settings:
    path = folder / "deliver.toml"
    path.write_text(text)
    path.chmod(0o644)
    return settings.load(path)


@pytest.mark.parametrize(("old", "new", "line", "said"), BAD)
def test_a_fault_is_told_with_line_and_value(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    """File, line, key and value, and what the setting takes."""
    assert old in GOOD
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(refused.value).startswith(f"{tmp_path}/deliver.toml:{line}: ")
    assert said in str(refused.value)


def test_a_fault_of_a_later_delivery_has_its_own_line(tmp_path: Path) -> None:
    """The line is that of the second table, though the first has the key too."""
    second = GOOD.split("\n", 2)[2].replace('"www"', '"other"').replace('"/etc/tls"', '"etc"')
    with pytest.raises(Misconfigured, match=r':10: folder is "etc"'):
        load(tmp_path, GOOD + second)


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [(('"/etc/tls"', '"/etc/ssl"'), 9, "another delivery has this name"), (('"www"', '"x"'), 11, "named twice")],
)
def test_deliveries_share_no_name_and_no_file(tmp_path: Path, change: tuple[str, str], line: int, said: str) -> None:
    """Two deliveries of one name, or with one file, are refused at the second."""
    with pytest.raises(Misconfigured, match=f":{line}: .*{said}"):
        load(tmp_path, GOOD + GOOD.split("\n", 2)[2].replace(*change))


def test_a_zone_needs_a_host_or_names_of_their_own(tmp_path: Path) -> None:
    """One file for all certificates of a zone is refused; with the id in the names they all have their own."""
    with pytest.raises(Misconfigured, match=r':7: zone is "example.com": it takes a host'):
        load(tmp_path, BY_ZONE)
    many = BY_ZONE.replace('"fullchain', '"{id}-fullchain').replace('"privkey', '"{id}-privkey')
    assert load(tmp_path, many).deliver[0].many
    assert not load(tmp_path, BY_ZONE + 'host = "*.example.com"').deliver[0].many


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a = [", "is not TOML"), (b"a = '\xff'", "is not UTF-8"), (b"#" * (1024 * 1024 + 1), "is larger than")],
)
def test_what_is_no_configuration_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    """Broken syntax, other encodings and huge files are refused in a sentence."""
    path = tmp_path / "deliver.toml"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(Misconfigured, match=said):
        settings.load(path)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """They would choose what is run."""
    path = tmp_path / "deliver.toml"
    path.write_text(GOOD)
    path.chmod(mode)
    with pytest.raises(Misconfigured, match="others may write"):
        settings.load(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """The file that cannot be read is named."""
    with pytest.raises(Misconfigured, match=r"deliver\.toml cannot be read"):
        settings.load(tmp_path / "deliver.toml")


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "deliver.md").read_text()


def test_the_configurations_of_the_page_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What deliver.md shows is read as it stands, and they stand together in one file."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(grp, "getgrnam", lambda _: grp.getgrgid(0))
    blocks = re.findall(r"^```toml\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL)
    read = load(tmp_path, "\n".join(blocks))
    assert [each.name for each in read.deliver] == ["www", "edge", "caddy"]


def test_each_setting_has_its_row_on_the_page() -> None:
    """The tables of deliver.md have the settings that there are, and no other."""
    section = page().partition("## The configuration\n")[2].partition("\n## ")[0]
    heads = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    documented = {name for head in heads for name in re.findall(r"`(\w+)`", head)}
    known = {*settings.Settings.__struct_fields__, *settings.Delivery.__struct_fields__}
    assert documented == known - {"deliver"}
