"""The `csr` commands and the uploads of `certificate`: the same over a server's API and in the database beside it."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from support.authority import openssl, pem
from support.command import Ended, beside, rows, run_command
from support.live import Live, free_port

Run = Callable[..., Ended]
SUBJECT = ("--org", "Acme", "--country", "US", "--state", "California", "--locality", "Oakland")
ZONE = ("--zone", "example.com")


@pytest.fixture(params=["api", "database"])
def keystead(live: Live, request: pytest.FixtureRequest) -> Run:
    """Runs the command with the variables of credentials.env, or beside the server's database."""
    trust = {"KEYSTEAD_TRUST_DIR": str(live.data_dir.with_name(f"{live.data_dir.name}.trust"))}
    environ = live.env if request.param == "api" else {**beside(live), **trust}
    return lambda *words, text="": run_command(environ, *words, text=text)


def good(ended: Ended) -> str:
    assert ended.status == 0, ended
    assert "PRIVATE KEY" not in ended.out + ended.err
    return ended.out


def refused(ended: Ended) -> str:
    assert ended.status == 1, ended
    assert not ended.out
    return ended.err


def new_host() -> str:
    return f"h{uuid4().hex[:12]}.example.com"


def made(keystead: Run, host: str, *words: object) -> dict[str, Any]:
    (csr,) = json.loads(good(keystead("csr", "create", host, *SUBJECT, *ZONE, *words, "--json")))
    return dict(csr)


def signed(live: Live, csr: dict[str, Any], **changes: Any) -> str:
    issuer = live.ca.intermediate()
    return pem(issuer.of_csr(csr["csr"], **changes), issuer.certificate)


def test_create_prints_a_csr_that_openssl_verifies(keystead: Run) -> None:
    """The PEM alone is on standard output; the id is on standard error."""
    host = new_host()
    ended = keystead("csr", "create", host, "--san", f"www.{host}", *SUBJECT)
    openssl("req", "-verify", "-noout", text=good(ended))
    names = x509.load_pem_x509_csr(ended.out.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [host, f"www.{host}"]
    assert "made the custom CSR" in ended.err


def test_create_writes_the_file(keystead: Run, tmp_path: Path) -> None:
    """--out takes the PEM; a folder that is not there is refused before a key is made."""
    host, out = new_host(), tmp_path / "www.csr"
    assert good(keystead("csr", "create", host, *SUBJECT, "--out", out)) == f"wrote {out}\n"
    assert out.read_text().startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    assert "cannot be written" in refused(keystead("csr", "create", host, *SUBJECT, "--out", tmp_path / "no" / "x"))
    assert len(json.loads(good(keystead("csr", "list", "--common-name", host, "--json")))) == 1


def test_a_csr_is_listed_shown_and_deleted_by_its_id(keystead: Run) -> None:
    """It is found in a zone without naming that; --pem prints what was made; deleting it ends it."""
    csr = made(keystead, new_host(), "--name", "shop")
    listed = json.loads(good(keystead("csr", "list", *ZONE, "--common-name", csr["common_name"], "--json")))
    assert [row["id"] for row in listed] == [csr["id"]]
    (shown,) = json.loads(good(keystead("csr", "show", csr["id"], "--json")))
    assert shown == {name: value for name, value in csr.items() if name != "csr"}
    assert good(keystead("csr", "show", csr["id"], "--pem")) == csr["csr"]
    assert good(keystead("csr", "delete", csr["id"])) == f"deleted custom CSR {csr['id']}\n"
    assert "there is no custom CSR" in refused(keystead("csr", "show", csr["id"]))


def test_every_problem_of_a_request_is_told(keystead: Run) -> None:
    """All sentences come at once, and nothing is made."""
    host = f"-{new_host()}"
    said = refused(keystead("csr", "create", "--country", "us", "--state", "CA", "--", host))
    for part in ("locality is required", "organization is required", "begins or ends with a hyphen", 'country "us"'):
        assert part in said
    assert json.loads(good(keystead("csr", "list", "--common-name", host, "--json"))) == []


@pytest.fixture
def defaults(live: Live) -> Iterator[dict[str, str]]:
    """The account's subject, set for the time of a test."""
    words = ("account", "set", "default", "--country", "DE", "--state", "Bavaria", "--locality", "Munich", "--org")
    good(run_command(beside(live), *words, "Acme, Inc."))
    yield {"country": "DE", "state": "Bavaria", "locality": "Munich", "organization": "Acme, Inc."}
    good(
        run_command(
            beside(live), *(word if word.startswith("--") or n < 3 else "" for n, word in enumerate((*words, "")))
        )
    )


@pytest.mark.parametrize("where", [(), ZONE])
def test_what_is_not_given_is_the_accounts(keystead: Run, defaults: dict[str, str], where: tuple[str, ...]) -> None:
    """Each part of the subject alone; what is given wins, and given as an empty text it is missing."""
    (csr,) = json.loads(good(keystead("csr", "create", new_host(), *where, "--json")))
    assert {name: csr[name] for name in defaults} == defaults
    (csr,) = json.loads(good(keystead("csr", "create", new_host(), *where, "--state", "Hesse", "--json")))
    assert {name: csr[name] for name in defaults} == {**defaults, "state": "Hesse"}
    said = refused(keystead("csr", "create", new_host(), *where, "--org", ""))
    assert "organization is required" in said
    assert "country" not in said


@pytest.mark.usefixtures("defaults")
def test_a_token_that_may_not_read_the_account_has_no_defaults(live: Live) -> None:
    """It is told so, and that the subject is missing; a whole subject needs no right on the account."""
    group = "Account: SSL and Certificates Write"
    made = good(run_command(beside(live), "token", "create", "narrow", "--group", group, "--json"))
    narrow = {**live.env, "CLOUDFLARE_API_TOKEN": json.loads(made)[0]["token"]}
    said = refused(run_command(narrow, "csr", "create", new_host(), "--country", "US"))
    assert "note: this credential may not read the account (Account Settings Read)" in said
    assert "organization is required" in said
    ended = run_command(narrow, "csr", "create", new_host(), *SUBJECT)
    assert good(ended)
    assert "Account Settings Read" not in ended.err


@pytest.mark.parametrize("word", ["nothing", "00000000-0000-4000-8000-000000000000"])
def test_an_unknown_csr_is_one_line(keystead: Run, word: str) -> None:
    """A text that is no id, and an id that nothing has."""
    for verb in ("show", "delete"):
        said = refused(keystead("csr", verb, word))
        assert said == f'keystead: there is no custom CSR "{word}"; `keystead csr list` shows their ids\n'


def test_an_unknown_zone_is_one_line(keystead: Run) -> None:
    """Nothing is looked for elsewhere."""
    said = refused(keystead("csr", "list", "--zone", "unknown.example"))
    assert 'there is no zone "unknown.example"' in said
    assert len(said.splitlines()) == 1


def test_upload_finds_the_csr_by_its_key(keystead: Run, live: Live, tmp_path: Path) -> None:
    """Of two CSRs for one host the one with the certificate's key gets it, in the zone above the host."""
    host = new_host()
    first, _ = made(keystead, host), made(keystead, host)
    file = tmp_path / "www.pem"
    file.write_text(signed(live, first))
    (row,) = json.loads(good(keystead("certificate", "match", file, "--json")))
    assert row["custom_csr_id"] == first["id"]
    (row,) = json.loads(good(keystead("certificate", "upload", file, "--json")))
    assert (row["custom_csr_id"], row["hosts"]) == (first["id"], host)
    assert (row["zone_id"], row["status"]) == (live.env["CLOUDFLARE_ZONE_ID"], "active")
    assert row["id"] in refused(keystead("csr", "delete", first["id"]))


def test_a_zone_in_unicode_is_above_hosts_with_a_labels(keystead: Run, live: Live) -> None:
    """Certificates have A-labels, and the zone is found without naming it."""
    label = f"bücher{uuid4().hex[:8]}"
    good(run_command(beside(live), "zone", "create", f"{label}.example"))
    host = f"www.{label}.example".encode("idna").decode()
    (csr,) = json.loads(good(keystead("csr", "create", host, *SUBJECT, "--json")))
    (row,) = json.loads(good(keystead("certificate", "upload", "-", "--json", text=signed(live, csr))))
    assert (row["hosts"], row["custom_csr_id"]) == (host, csr["id"])
    assert row["zone_id"] != live.env["CLOUDFLARE_ZONE_ID"]


def test_upload_reads_standard_input(keystead: Run, live: Live) -> None:
    """`-` is standard input, so that a CA's answer can be piped."""
    csr = made(keystead, new_host())
    (row,) = json.loads(good(keystead("certificate", "upload", "-", "--json", text=signed(live, csr))))
    assert row["custom_csr_id"] == csr["id"]


def test_a_certificate_of_no_csr_is_refused(keystead: Run, live: Live, tmp_path: Path) -> None:
    """A certificate for a key that Keystead never made is matched to nothing, and a wrong --csr is told by name."""
    csr, other = made(keystead, new_host()), made(keystead, new_host())
    good(keystead("csr", "delete", csr["id"]))
    file = tmp_path / "www.pem"
    file.write_text(signed(live, csr))
    for verb in ("match", "upload"):
        assert "no custom CSR with a name of this certificate has its key" in refused(
            keystead("certificate", verb, file)
        )
    said = refused(keystead("certificate", "upload", file, "--csr", other["id"]))
    assert "public key is not that of the custom CSR" in said


def test_a_file_without_a_certificate_is_told_what_it_is(keystead: Run, tmp_path: Path) -> None:
    """A CSR in the certificate's place is named, and a file that is not there too."""
    csr = made(keystead, new_host())
    file = tmp_path / "www.csr"
    file.write_text(csr["csr"])
    assert "certificate signing request" in refused(keystead("certificate", "upload", file))
    assert "cannot be read" in refused(keystead("certificate", "upload", tmp_path / "none.pem"))


def test_renew_makes_the_next_csr_and_takes_its_certificate(keystead: Run, live: Live, tmp_path: Path) -> None:
    """The new CSR has the names of the old with another key; the certificate keeps its id."""
    csr = made(keystead, new_host(), "--name", "shop")
    (row,) = json.loads(good(keystead("certificate", "upload", "-", "--json", text=signed(live, csr))))
    (after,) = json.loads(good(keystead("certificate", "renew", row["id"], "--json")))
    same = {"common_name", "sans", "country", "state", "locality", "organization", "key_type", "name"}
    assert {name: after[name] for name in same} == {name: csr[name] for name in same}
    assert after["csr"] != csr["csr"]
    file = tmp_path / "next.pem"
    file.write_text(signed(live, after))
    (renewed,) = json.loads(good(keystead("certificate", "renew", row["id"], file, "--json")))
    assert (renewed["id"], renewed["custom_csr_id"]) == (row["id"], after["id"])
    assert good(keystead("csr", "delete", csr["id"]))


def test_renew_with_the_same_key_prints_the_same_csr(keystead: Run, live: Live) -> None:
    """No CSR is made, and a certificate of later dates takes the place of the first."""
    csr = made(keystead, new_host())
    (row,) = json.loads(good(keystead("certificate", "upload", "-", "--json", text=signed(live, csr))))
    assert good(keystead("certificate", "renew", row["id"], "--same-key")) == csr["csr"]
    (renewed,) = json.loads(
        good(keystead("certificate", "renew", row["id"], "-", "--json", text=signed(live, csr, days=30)))
    )
    assert renewed["custom_csr_id"] == csr["id"]
    assert renewed["expires_on"] != row["expires_on"]


def test_delete_ends_a_certificate(keystead: Run, live: Live) -> None:
    """After it, the CSR can go as well."""
    csr = made(keystead, new_host())
    (row,) = json.loads(good(keystead("certificate", "upload", "-", "--json", text=signed(live, csr))))
    assert good(keystead("certificate", "delete", row["id"])) == f"deleted certificate {row['id']}\n"
    assert "there is no certificate" in refused(keystead("certificate", "delete", row["id"]))
    good(keystead("csr", "delete", csr["id"]))


def test_who_made_a_csr_is_in_the_audit_log(live: Live) -> None:
    """In the database it is the operator with the command's words; over the API it is the token."""
    for environ, actor in ((beside(live), "operator"), (live.env, "token")):
        (csr,) = json.loads(good(run_command(environ, "csr", "create", new_host(), *SUBJECT, "--json")))
        ((found, path),) = rows(live, "SELECT actor, path FROM audit_log WHERE resource_id = $1::uuid", csr["id"])
        assert found == actor
        assert actor == "token" or path == "csr create"


def test_a_token_without_rights_is_told_so(live: Live) -> None:
    """The server's sentence with its code, and nothing about the token."""
    said = refused(run_command({**live.env, "CLOUDFLARE_API_TOKEN": "A" * 40}, "csr", "list"))
    assert "A" * 40 not in said
    assert said == "keystead: 9109: Invalid access token\n"


@pytest.mark.parametrize("token", ["secret\nvalue", "secret\r", "secretü\u20ac"])
def test_a_credential_that_no_header_can_have_is_not_shown(live: Live, token: str) -> None:
    """A line break that was copied along is said, without the credential itself."""
    said = refused(run_command({**live.env, "CLOUDFLARE_API_TOKEN": token}, "csr", "list"))
    assert "secret" not in said
    assert "such as a line break" in said


def test_an_address_with_a_password_is_not_shown(live: Live) -> None:
    """It would stand in every message that names the address."""
    said = refused(run_command({**live.env, "CLOUDFLARE_BASE_URL": "http://me:secret@127.0.0.1/"}, "csr", "list"))
    assert "secret" not in said
    assert "CLOUDFLARE_BASE_URL must be an address" in said


def test_a_server_that_is_not_there_is_one_line(live: Live) -> None:
    """The address is named, and nothing else is tried."""
    url = f"http://127.0.0.1:{free_port()}/client/v4"
    said = refused(run_command({**live.env, "CLOUDFLARE_BASE_URL": url}, "csr", "list"))
    assert said.startswith(f"keystead: {url} does not answer")
    assert len(said.splitlines()) == 1


def test_a_change_whose_answer_is_lost_may_have_been_made(live: Live) -> None:
    """The server took the request and was gone: a change is in doubt, and a list is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(60)

        def take_and_close() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)

        environ = {**live.env, "CLOUDFLARE_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        for words, in_doubt in ((("create", new_host(), *SUBJECT), True), (("list",), False)):
            taken = pool.submit(take_and_close)
            said = refused(run_command(environ, "csr", *words))
            taken.result(60)
            assert ("it may have done what was asked" in said) is in_doubt


def test_an_address_that_is_none_is_refused(live: Live) -> None:
    """A file is never read in a server's place, and a page that is no API says nothing of ours."""
    said = refused(run_command({**live.env, "CLOUDFLARE_BASE_URL": "file:///etc"}, "csr", "list"))
    assert "CLOUDFLARE_BASE_URL must be an address" in said
    assert httpx.get(f"{live.url}/healthz").status_code == 200
    said = refused(run_command({**live.env, "CLOUDFLARE_BASE_URL": f"{live.url}/docs"}, "csr", "list"))
    assert "not as Keystead does" in said
