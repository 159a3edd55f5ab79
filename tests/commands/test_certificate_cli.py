"""The `certificate` commands: what they show, and an export that a web server can serve with."""

import json
import socket
import ssl
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudflare
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import key_pem, openssl, pem, subject
from support.command import beside, rows, run_command
from support.live import Live
from support.world import BODY

Run = Callable[..., str]
Json = dict[str, Any]
HOST = "www.example.com"
NAMES = ("fullchain.pem", "privkey.pem")


@pytest.fixture
def keystead(live: Live) -> Run:
    """Runs the command beside the live server; gives its output, or its errors where `fails` is set."""

    def run(*words: str | Path, fails: bool = False) -> str:
        ended = run_command(beside(live), "certificate", *words)
        assert (ended.status != 0) is fails, ended
        assert "PRIVATE KEY" not in ended.out + ended.err
        return ended.err if fails else ended.out

    return run


@pytest.fixture
def client(live: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)
    with cloudflare.Cloudflare() as made:
        yield made


class Made:
    """A CSR with its certificate behind an intermediate."""

    def __init__(self, client: cloudflare.Cloudflare, live: Live, key_type: str = "p256v1", **changes: Any) -> None:
        self.client, self.zone_id = client, live.env["CLOUDFLARE_ZONE_ID"]
        self.issuer = live.ca.intermediate()
        body: Json = {**BODY, "key_type": key_type}
        csr = client.custom_csrs.create(zone_id=self.zone_id, **body)
        assert csr is not None
        self.csr = csr
        made = client.custom_certificates.create(
            zone_id=self.zone_id, certificate=self.sign(**changes), custom_csr_id=csr.id
        )
        assert made is not None
        self.id = made.id

    def sign(self, **changes: Any) -> str:
        assert self.csr.csr
        return pem(self.issuer.of_csr(self.csr.csr, **changes), self.issuer.certificate)

    def renew(self, **changes: Any) -> None:
        self.client.custom_certificates.edit(self.id, zone_id=self.zone_id, certificate=self.sign(**changes))


def only(text: str, certificate_id: str) -> Json:
    (row,) = [each for each in json.loads(text) if each["id"] == certificate_id]
    result: Json = row
    return result


def test_list_and_show_say_how_many_days_are_left(keystead: Run, client: Any, live: Live) -> None:
    """The table and the JSON have id, zone, hosts, state, end and days left; a zone is named by id or name."""
    made = Made(client, live, days=40.5)
    (zone_name,) = rows(live, "SELECT name FROM zones WHERE id = $1", UUID(made.zone_id))[0]
    for words in ((), ("--zone", made.zone_id), ("--zone", zone_name)):
        row = only(keystead("list", *words, "--json"), made.id)
        assert (row["days_left"], row["status"], row["custom_csr_id"]) == (40, "active", made.csr.id)
        assert (row["zone_id"], row["hosts"]) == (made.zone_id, ", ".join(BODY["sans"]))
    Made(client, live, days=41)
    (head, *lines) = keystead("list").splitlines()
    assert head.split() == list(row)
    (line,) = [each for each in lines if made.id in each]
    assert " 40 " in line
    shown = only(keystead("show", made.id, "--json"), made.id)
    assert (shown["issuer"], shown["signature"], shown["bundle_method"]) == (
        "Test Trust",
        "ECDSAWithSHA256",
        "ubiquitous",
    )
    assert "days_left" in keystead("show", made.id)


def test_expiring_shows_what_ends_in_time(keystead: Run, client: Any, live: Live) -> None:
    """Certificates that end within the days asked for, 30 unless told, and those that have ended."""
    soon, later = Made(client, live, days=20), Made(client, live, days=60)

    def ids(*words: str) -> set[str]:
        return {row["id"] for row in json.loads(keystead("expiring", *words, "--json"))} & {soon.id, later.id}

    assert ids() == {soon.id}
    assert ids("--within", "61d") == {soon.id, later.id}
    assert ids("--within", "10d") == set()
    rows(live, "UPDATE custom_certificates SET not_after = now() - interval '3 days' WHERE id = $1", UUID(soon.id))
    assert ids("--within", "0d") == {soon.id}
    row = only(keystead("expiring", "--json"), soon.id)
    assert (row["status"], row["days_left"] < 0) == ("expired", True)
    for within in ("x", "-1d", "1.5d", "", "99999d"):
        assert "number of days" in keystead("expiring", f"--within={within}", fails=True)


def test_history_shows_what_a_certificate_was(keystead: Run, client: Any, live: Live) -> None:
    """Each renewal leaves a line, the latest first; a certificate without renewals has none."""
    made = Made(client, live, days=30)
    assert keystead("history", made.id).strip() == "none"
    made.renew(days=50)
    made.renew(days=70)
    versions = json.loads(keystead("history", made.id, "--json"))
    ends = [version["expires_on"] for version in versions]
    assert len(ends) == 2
    assert ends == sorted(ends, reverse=True)
    assert {version["custom_csr_id"] for version in versions} == {made.csr.id}
    assert len(keystead("history", made.id).splitlines()) == 3


@pytest.mark.parametrize("word", ["00000000-0000-4000-8000-000000000000", "x", ""])
@pytest.mark.parametrize("command", ["show", "history", "export"])
def test_an_unknown_certificate_is_one_line(keystead: Run, tmp_path: Path, command: str, word: str) -> None:
    """What names no certificate is said in one line, and nothing is written."""
    out = tmp_path / "out"
    said = keystead(command, word, *(("--out", out) if command == "export" else ()), fails=True)
    assert said.startswith("keystead: there is no certificate")
    assert len(said.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def exports(live: Live, certificate_id: str) -> int:
    sql = "SELECT actor, resource_type FROM audit_log WHERE resource_id = $1 AND action = 'export'"
    found = rows(live, sql, UUID(certificate_id))
    assert set(found) <= {("operator", "custom_certificate")}
    return len(found)


def held(folder: Path) -> dict[str, str]:
    """What is in a folder; the files are whole and of mode 0600, and there is nothing else."""
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_text() if path.is_file() else "" for path in folder.iterdir()}


def test_export_writes_a_pair_that_belongs_together(keystead: Run, client: Any, live: Live, tmp_path: Path) -> None:
    """Leaf and intermediates, and the key of that leaf; 0600 in a folder of 0700; one audit row for each export."""
    made, out = Made(client, live), tmp_path / "new" / "tls"
    said = keystead("export", made.id, "--out", out)
    assert all(str(out / name) in said for name in NAMES)
    files = held(out)
    assert sorted(files) == sorted(NAMES)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    leaf, above = x509.load_pem_x509_certificates(files["fullchain.pem"].encode())
    key = serialization.load_pem_private_key(files["privkey.pem"].encode(), None)
    assert key.public_key() == leaf.public_key()
    assert above == made.issuer.certificate
    assert exports(live, made.id) == 1


def test_export_replaces_files_of_any_mode(keystead: Run, client: Any, live: Live, tmp_path: Path) -> None:
    """An earlier export is replaced, also one that others could read; what else is in the folder stays."""
    made = Made(client, live)
    for name in NAMES:
        (tmp_path / name).write_text("older")
        (tmp_path / name).chmod(0o644)
    (tmp_path / "other").write_text("other")
    (tmp_path / "other").chmod(0o600)
    keystead("export", made.id, "--out", tmp_path)
    files = held(tmp_path)
    assert sorted(files) == sorted([*NAMES, "other"])
    assert all("BEGIN" in files[name] for name in NAMES)
    made.renew()
    keystead("export", made.id, "--out", tmp_path)
    assert held(tmp_path)["fullchain.pem"] != files["fullchain.pem"]
    assert held(tmp_path)["privkey.pem"] == files["privkey.pem"]


@pytest.mark.parametrize("name", NAMES)
def test_export_is_whole_or_not_at_all(keystead: Run, client: Any, live: Live, tmp_path: Path, name: str) -> None:
    """Where one of the two cannot take its name, the other keeps what it had, and nothing else is left."""
    made = Made(client, live)
    (other,) = {*NAMES} - {name}
    (tmp_path / name).mkdir()
    (tmp_path / other).write_text("older")
    (tmp_path / other).chmod(0o600)
    assert "cannot be written" in keystead("export", made.id, "--out", tmp_path, fails=True)
    assert held(tmp_path) == {name: "", other: "older"}


def test_export_to_where_no_folder_can_be_is_one_line(keystead: Run, client: Any, live: Live, tmp_path: Path) -> None:
    """A file in the way, or a file system without room for folders, is said in one line."""
    made = Made(client, live)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "tls", Path("/proc/keystead")):
        said = keystead("export", made.id, "--out", out, fails=True)
        assert "cannot be written" in said
        assert len(said.splitlines()) == 1
    assert "is a file" in keystead("export", made.id, "--out", tmp_path / "file", fails=True)
    assert exports(live, made.id) == 0


def test_export_of_an_uploaded_key(keystead: Run, client: Any, live: Live, tmp_path: Path) -> None:
    """A key that was uploaded comes out as PKCS#8, and is the same key."""
    key = ec.generate_private_key(ec.SECP384R1())
    leaf = live.ca.sign(key.public_key(), subject(HOST), hosts=[HOST])
    sec1 = key_pem(key, serialization.PrivateFormat.TraditionalOpenSSL)
    zone_id = live.env["CLOUDFLARE_ZONE_ID"]
    made = client.custom_certificates.create(zone_id=zone_id, certificate=pem(leaf), private_key=sec1)
    keystead("export", made.id, "--out", tmp_path)
    assert held(tmp_path) == {"fullchain.pem": pem(leaf), "privkey.pem": key_pem(key)}


@pytest.mark.parametrize("key_type", ["p256v1", "rsa2048"])
def test_tls_is_served_with_what_export_wrote(
    keystead: Run, client: Any, live: Live, tmp_path: Path, key_type: str
) -> None:
    """A server with the two files passes the verification of OpenSSL's client and of Python's, with the root alone."""
    made = Made(client, live, key_type)
    keystead("export", made.id, "--out", tmp_path)
    ca = tmp_path / "root.pem"
    ca.write_text(pem(live.ca.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / NAMES[0], tmp_path / NAMES[1])
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(60)
        port = listener.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.settimeout(60)
                with context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

        served = pool.submit(serve)
        words = ("-CAfile", ca, "-verify_return_error", "-verify_hostname", HOST, "-servername", HOST, "-brief")
        openssl("s_client", "-connect", f"127.0.0.1:{port}", *words, text="Q\n")
        trusting = ssl.create_default_context(cafile=str(ca))
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            trusting.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
            tls.send(b"x")
        served.result(30)
    leaf, _ = x509.load_pem_x509_certificates((tmp_path / NAMES[0]).read_bytes())
    assert der == leaf.public_bytes(serialization.Encoding.DER)
