"""The `ca` commands: from a root to a revoked certificate through pipes and files, judged by OpenSSL."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.authority import csr_of, key_pem, openssl, pem, root
from support.command import beside, rows, run_command
from support.live import Live

Run = Callable[..., str]
Json = dict[str, Any]
PKI = "http://pki.example.com"
# A day within the life of every CA here.
END = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=300)
CA_EXTENSIONS = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
COLUMNS = ["id", "type", "status", "common_name", "key", "account_id", "expires_on"]


def settings(live: Live) -> dict[str, str]:
    return {**beside(live), "KEYSTEAD_PKI_URL": PKI}


@pytest.fixture(scope="module")
def keystead(live: Live) -> Run:
    """Runs the command beside the live server with `text` on its standard input, and gives its output."""

    def run(*words: str | Path, text: str = "") -> str:
        ended = run_command(settings(live), *words, text=text)
        assert (ended.status, ended.err) == (0, "")
        assert "PRIVATE KEY" not in ended.out
        return ended.out

    return run


@pytest.fixture
def refusal(live: Live) -> Run:
    """Runs the command in this process; gives the one line that it complains in.

    `status` is the exit status that it must have.
    """

    def run(status: int, *words: str | Path) -> str:
        ended = run_command(settings(live), *words)
        said = ended.err
        assert ended[:2] == (status, ""), ended
        assert "PRIVATE KEY" not in said
        # Before a wrong use stands what would be a right one.
        usage, _, said = said.rpartition({1: "keystead: ", 2: "\nError: "}[status])
        assert bool(usage) == (status == 2)
        assert len(said.splitlines()) == 1
        return said

    return run


class Road(NamedTuple):
    """What the commands printed and wrote on the way from a root to a certificate that is revoked."""

    folder: Path
    account: Json
    root: Json
    pending: str
    csr: str
    signed: str
    imported: str
    outside: tuple[str, ...]
    leaf: str
    revoked: str
    crl: str
    acts: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def road(keystead: Run, live: Live, tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("road")
    (account,) = json.loads(keystead("account", "create", "road", "--json"))
    name = ("--account", "road", "--organization", "Acme Ltd", "--country", "GB")
    outside = _from_outside(keystead, folder, name)
    (first,) = json.loads(keystead("ca", "create", "Road Root", *name, "--path-length", "1", "--json"))
    pending = keystead("ca", "create", "Road CA", "--type", "intermediate", "--name", "road", *name)
    csr = keystead("ca", "csr", "road")
    signed = keystead("ca", "sign", "Road Root", "-", "--ca", "--ttl", "5y", "--chain", text=csr)
    imported = keystead("ca", "import", "Road CA", "-", text=signed)
    for words in (("Road Root", "--certificate"), ("Road CA", "--chain")):
        out = folder / f"{words[0]}.pem"
        assert keystead("ca", "show", *words, "--out", out) == f"wrote {out}\n"
    request, out = folder / "leaf.csr", folder / "leaf.pem"
    request.write_text(csr_of(ec.generate_private_key(ec.SECP256R1()), "www.example.com"))
    options = ("--names", "db.internal, 10.1.2.3", "--usage", "clientAuth", "--usage", "serverAuth")
    leaf = keystead("ca", "sign", first["id"], request, "--ttl", "90d", *options)
    keystead("ca", "sign", "Road CA", request, "--not-after", f"{END:%Y-%m-%d}", "--chain", "--out", out)
    digits = openssl("x509", "-in", out, "-noout", "-serial").strip().removeprefix("serial=")
    serial = ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
    revoked = keystead("ca", "revoke", "Road CA", serial, "--reason", "SUPERSEDED")
    crl = keystead("ca", "crl", "Road CA")
    sql = "SELECT action, resource_type, actor FROM audit_log WHERE account_id = $1 AND resource_type <> 'account'"
    acts = rows(live, sql, UUID(account["id"]))
    return Road(folder, account, first, pending, csr, signed, imported, outside, leaf, revoked, crl, acts)


def _from_outside(keystead: Run, folder: Path, name: tuple[str, ...]) -> tuple[str, ...]:
    """A CA below a root that is not here takes its certificate back in three ways."""
    above = root("Company Root")
    keystead("ca", "create", "Web CA", "--type", "intermediate", *name)
    keystead("ca", "csr", "Web CA", "--out", folder / "web.csr")
    certificate = above.by_openssl((folder / "web.csr").read_text(), "-days", "30", extensions=CA_EXTENSIONS)
    files = {"own": certificate, "above": pem(above.certificate), "both": certificate + pem(above.certificate)}
    for file, text in files.items():
        (folder / file).write_text(text)
    return (
        keystead("ca", "import", "Web CA", "-", "--json", text=files["both"]),
        keystead("ca", "import", "Web CA", folder / "both", "--json"),
        keystead("ca", "import", "Web CA", folder / "own", folder / "above", "--json"),
    )


def certificates(text: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text.encode())


def fields(text: str) -> Json:
    """A single row as people see it."""
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def refused(*words: str | Path) -> str:
    """What OpenSSL says of what it does not accept."""
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_root_is_active_and_an_intermediate_waits(road: Road) -> None:
    """A new CA is shown with its state, its account and its end, a root as JSON and an intermediate for people."""
    assert list(road.root) == COLUMNS
    ten_years = datetime.fromisoformat(road.root["expires_on"]) - datetime.now(UTC)
    assert timedelta(days=3649) < ten_years < timedelta(days=3654)
    shown = fields(road.pending)
    assert list(shown) == COLUMNS
    assert {UUID(shown["id"]).version, UUID(road.root["id"]).version} == {4}
    for row, expected in (
        (road.root, ("root", "active", "Road Root")),
        (shown, ("intermediate", "pending-certificate", "Road CA")),
    ):
        assert (row["type"], row["status"], row["common_name"]) == expected
        assert (row["key"], row["account_id"]) == ("p256v1", road.account["id"])
    assert shown["expires_on"] == "-"


def test_the_csr_is_one_that_openssl_verifies(road: Road) -> None:
    """What `ca csr` prints can be piped into OpenSSL, which finds the CA's name in it."""
    done = subprocess.run(
        ["openssl", "req", "-verify", "-noout"], input=road.csr, capture_output=True, text=True, check=True
    )
    assert "verify OK" in done.stdout + done.stderr
    assert x509.load_pem_x509_csr(road.csr.encode()).subject.rfc4514_string() == "CN=Road CA,O=Acme Ltd,C=GB"


def test_a_signed_intermediate_goes_back_through_a_pipe(road: Road) -> None:
    """`ca sign --ca --chain` prints the certificate and the root, `ca import -` takes both, and the CA is active."""
    signed, above = certificates(road.signed)
    assert signed.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert signed.not_valid_after_utc - datetime.now(UTC) > timedelta(days=5 * 365 - 1)
    assert certificates((road.folder / "Road Root.pem").read_text()) == [above]
    assert certificates((road.folder / "Road CA.pem").read_text()) == [signed, above]
    openssl("verify", "-x509_strict", "-CAfile", road.folder / "Road Root.pem", road.folder / "Road CA.pem")
    assert fields(road.imported)["status"] == "active"
    assert fields(road.imported)["expires_on"] == f"{signed.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


def test_a_certificate_from_outside_comes_in_any_files(keystead: Run, road: Road) -> None:
    """Standard input, one file with the chain and two files do the same, each a new version without a parent here."""
    ends = {only(text)["expires_on"] for text in road.outside}
    assert len(ends) == 1
    assert {only(text)["status"] for text in road.outside} == {"active"}
    shown = only(keystead("ca", "show", "Web CA", "--json"))
    assert (shown["version"], shown["parent"], shown["path_length"]) == (3, None, None)
    assert keystead("ca", "show", "Web CA", "--certificate") == (road.folder / "own").read_text()


def only(text: str) -> Json:
    (row,) = json.loads(text)
    result: Json = row
    return result


def test_a_certificate_is_what_was_asked_for(road: Road) -> None:
    """Names and usages are those of the options, the rest is the CSR's, and the addresses are KEYSTEAD_PKI_URL's."""
    (leaf,) = certificates(road.leaf)
    request = x509.load_pem_x509_csr((road.folder / "leaf.csr").read_bytes())
    assert (leaf.public_key(), leaf.subject) == (request.public_key(), request.subject)
    assert abs(leaf.not_valid_after_utc - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["db.internal", "10.1.2.3"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for name in point.full_name or ()] == [f"{PKI}/api/v1/pki/crl/{road.root['id']}/der"]


def test_a_certificate_in_a_file_leads_to_the_root(road: Road) -> None:
    """`--chain --out` writes the certificate with the CSR's names and all above it, and OpenSSL verifies it."""
    chain = road.folder / "leaf.pem"
    leaf, *above = certificates(chain.read_text())
    assert above == certificates((road.folder / "Road CA.pem").read_text())
    assert leaf.not_valid_after_utc == END
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
    trusting = ("-CAfile", road.folder / "Road Root.pem", "-untrusted", chain)
    openssl("verify", "-x509_strict", "-purpose", "sslserver", *trusting, chain)


def test_a_revoked_certificate_is_on_the_crl(road: Road) -> None:
    """The serial number as OpenSSL shows it is taken, and the CRL that is printed makes OpenSSL refuse it."""
    chain, crl = road.folder / "leaf.pem", road.folder / "ca.crl"
    (leaf, *_) = certificates(chain.read_text())
    assert road.revoked == f"revoked certificate {leaf.serial_number:040x}\n"
    assert "Superseded" in openssl("crl", "-noout", "-text", text=road.crl)
    crl.write_text(road.crl)
    trusting = ("-CAfile", road.folder / "Road Root.pem", "-untrusted", road.folder / "Road CA.pem")
    assert "certificate revoked" in refused("verify", "-crl_check", "-CRLfile", crl, *map(str, trusting), chain)


def test_cas_and_what_they_signed_are_listed(keystead: Run, road: Road) -> None:
    """`list` is a table of the account's CAs, the oldest first, and `show --issued` has each certificate's state."""
    head, *lines = keystead("ca", "list", "--account", "road").splitlines()
    assert head.split() == COLUMNS
    names = [name for line in lines for name in ("Road Root", "Road CA") if f" {name} " in line]
    assert names == ["Road Root", "Road CA"]
    assert {line.split()[0] for line in lines} >= {road.root["id"], fields(road.pending)["id"]}
    issued = json.loads(keystead("ca", "show", road.root["id"], "--issued", "--json"))
    assert [row["profile"] for row in issued] == ["root", "intermediate", "leaf"]
    assert {row["status"] for row in issued} == {"active"}
    assert fields(keystead("ca", "show", "Road CA", "--issued"))["status"] == "revoked"


def test_every_act_is_in_the_audit_log(road: Road) -> None:
    """What was made, signed, imported and revoked is there, done by the operator, and nothing by anybody else."""
    assert {actor for _, _, actor in road.acts} == {"operator"}
    authority, issued = "certificate_authority", "issued_certificate"
    expected = {
        ("create", authority): 3,
        ("get-certificate-authority-csr", authority): 2,
        ("import", authority): 4,
        ("sign", issued): 3,
        ("sign-intermediate", issued): 1,
        ("revoke", issued): 1,
    }
    assert Counter(row[:2] for row in road.acts) == expected


def held(live: Live) -> list[tuple[Any, ...]]:
    """How much there is of all that a command could make or change."""
    tables = ("certificate_authorities", "ca_certificates", "issued_certificates", "private_keys", "audit_log")
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    return rows(
        live, f"SELECT {counts}, (SELECT sum(number) FROM crls), (SELECT count(revoked_at) FROM issued_certificates)"
    )


def test_mistakes_are_one_sentence_and_change_nothing(
    keystead: Run, refusal: Run, live: Live, road: Road, tmp_path: Path
) -> None:
    """Whatever is wrong is said in one line, with exit status 1, or 2 for a wrong use, and nothing is made."""
    twins = [keystead("ca", "create", "Twin", "--type", "intermediate", "--account", "road") for _ in range(2)]
    pending = fields(twins[0])["id"]
    csr, own, above = road.folder / "leaf.csr", road.folder / "own", road.folder / "above"
    garbage, key, nowhere = tmp_path / "garbage", tmp_path / "key", tmp_path / "no" / "file"
    garbage.write_bytes(bytes(range(256)))
    key.write_text(key_pem(ec.generate_private_key(ec.SECP256R1())))
    sign, serial = ("sign", "Road CA"), f"{certificates(road.leaf)[0].serial_number:040x}"
    mistakes: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (1, "there is no CA", ("csr", "Nobody")),
        (1, "several CAs", ("csr", "Twin")),
        (1, "Root CA cannot generate CSR", ("csr", "Road Root")),
        (1, "signs itself", ("import", "Road Root", own, above)),
        (1, "internal parent", ("import", "Road CA", own, above)),
        (1, "does not match", ("import", "Web CA", road.folder / "leaf.pem")),
        (2, "the chain up to and including the root", ("import", "Web CA", own)),
        (1, "holds a private key", ("import", "Web CA", key)),
        (1, "external parent", ("renew", "Web CA", "--ttl", "20y")),
        (1, "certificate installed", ("set", pending, "--status", "active")),
        (1, "cannot be deleted", ("delete", "Road CA")),
        (2, "--names", (*sign, csr, "--ttl", "1d", "--ca", "--names", "a.internal")),
        (2, "--path-length", (*sign, csr, "--ttl", "1d", "--path-length", "1")),
        (2, "for a root", ("create", "Late", "--type", "intermediate", "--not-after", "2040")),
        (1, "garbage", ("import", "Web CA", garbage)),
        (1, "garbage", (*sign, garbage, "--ttl", "1d")),
        (1, "key holds a private key; send the certificate signing request only", (*sign, key, "--ttl", "1d")),
        (1, "notAfter", (*sign, csr, "--ttl", "30y")),
        (1, "not active", ("sign", pending, csr, "--ttl", "1d")),
        (1, "a certificate installed", ("show", pending, "--certificate")),
        (1, "not found", ("revoke", "Web CA", serial)),
        (1, 'country "us"', ("create", "Lower", "--country", "us")),
        (1, "cannot be written", (*sign, csr, "--ttl", "1d", "--out", nowhere)),
        (1, "cannot be written", ("show", "Road CA", "--certificate", "--out", nowhere)),
        (2, "either --ttl or --not-after", (*sign, csr)),
        (2, "either --ttl or --not-after", (*sign, csr, "--ttl", "1d", "--not-after", f"{END:%Y-%m}")),
        (2, "--ttl", (*sign, csr, "--ttl", "1x")),
        (2, "does not exist", (*sign, nowhere, "--ttl", "1d")),
    ]
    before = held(live)
    for status, sentence, words in mistakes:
        said = refusal(status, "ca", *words)
        assert sentence in said, words
        assert not any(line in said for line in key.read_text().splitlines())
    assert held(live) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["garbage", "key"]


def test_a_ca_is_switched_off_and_on_renewed_and_deleted(keystead: Run) -> None:
    """A disabled CA stays so until it is enabled; a renewal lasts longer; a deleted one is gone."""
    first = fields(keystead("ca", "create", "Short", "--not-after", "2040"))
    assert fields(keystead("ca", "set", "Short", "--status", "disabled"))["status"] == "disabled"
    assert fields(keystead("ca", "set", "Short", "--status", "active"))["status"] == "active"
    renewed = fields(keystead("ca", "renew", "Short", "--not-after", "2041"))
    assert (first["expires_on"][:4], renewed["expires_on"][:4]) == ("2040", "2041")
    assert keystead("ca", "delete", "Short") == "deleted CA Short\n"
    assert first["id"] not in keystead("ca", "list")


def test_certificates_are_searched_and_a_ca_goes_by_force(keystead: Run, road: Road) -> None:
    """What it signed is found by name and state; with --force it is revoked, and the CA is gone."""
    made = fields(keystead("ca", "create", "Doomed"))
    keystead("ca", "sign", "Doomed", road.folder / "leaf.csr", "--ttl", "30d")
    (leaf,) = json.loads(
        keystead("ca", "certificates", "Doomed", "--san", "WWW.example.com", "--status", "active", "--json")
    )
    assert leaf["profile"] == "leaf"
    (same,) = json.loads(keystead("ca", "certificates", "--serial", leaf["serial"].upper(), "--json"))
    assert same == leaf
    assert keystead("ca", "certificates", "Doomed", "--expires-before", "2020-01-01") == "none\n"
    assert keystead("ca", "delete", "Doomed", "--force") == "deleted CA Doomed\n"
    assert made["id"] not in keystead("ca", "list")


def test_a_profile_is_made_shown_and_deleted_with_its_rules(keystead: Run, refusal: Run, tmp_path: Path) -> None:
    """Rules that nobody would keep are refused with the file's name, and make neither a profile nor a policy."""
    keystead("ca", "create", "By Profile")
    file = tmp_path / "rules.json"
    unkept = ('{"validity": {"most": "1d"}}', '{"validity": {"max": "soon"}}', '{"basicConstraints": {"isCA": true}}')
    for text in (*unkept, "["):
        file.write_text(text)
        refusal(1, "profile", "create", "web", "--ca", "By Profile", "--rules", file)
    file.write_text('{"validity": {"max": "30d"}}')
    made = fields(keystead("profile", "create", "web", "--ca", "By Profile", "--rules", file))
    shown = json.loads(keystead("profile", "show", "web", "--json"))
    found = shown if isinstance(shown, dict) else shown[0]
    assert (found["id"], json.loads(found["rules"])) == (made["id"], {"validity": {"max": "30d"}})
    assert made["id"] in keystead("profile", "list")
    assert "profile" in refusal(1, "ca", "delete", "By Profile")
    assert keystead("profile", "delete", "web") == "deleted profile web\n"
    assert keystead("ca", "set", "By Profile", "--issuance", "profiles")


def test_the_command_writes_and_reads_in_any_encoding(keystead: Run, live: Live, road: Road, tmp_path: Path) -> None:
    """A name that the terminal's encoding has not is escaped, and a CSR in UTF-16 with a mark is read."""
    keystead("ca", "create", "Журавль", "--account", "road")
    command = [sys.executable, "-m", "keystead", "ca", "list"]
    env = {**settings(live), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u0416" in done.stdout
    file = tmp_path / "csr"
    file.write_bytes((road.folder / "leaf.csr").read_text().encode("utf-16"))
    assert certificates(keystead("ca", "sign", "Журавль", file, "--ttl", "1d"))
