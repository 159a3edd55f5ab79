"""Nothing secret is where it need not be: in core dumps, in what a working server emits, in what exceptions carry."""

import base64
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
import structlog
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from support.authority import csr_of, key_pem, pem, subject
from support.databases import new_database
from support.live import START_SECONDS, Live, free_port, serving
from support.processes import workers
from support.rotation import Place, known_everywhere, new_pepper
from support.secrets_search import ORDINARY, Secret, leaks, looks_into, of_key, waiting
from support.waiting import until
from support.world import BODY, World

from keystead.ca import leaves
from keystead.ca.issuing import Signed
from keystead.certificates import matching
from keystead.certificates.export import Exported
from keystead.cloudflare.custom_certificates import CustomCertificateChange, CustomCertificateRequest
from keystead.cloudflare.reading import Decoded
from keystead.cloudflare.tokens import TokenChange, TokenObject
from keystead.config import LogFormat, Settings
from keystead.custody import keyring, seal
from keystead.custody import ring as ringfile
from keystead.custody.peppers import Peppers, load_peppers, open_pepper
from keystead.custody.ring import Ring
from keystead.errors import KeyDamaged, KeysteadError
from keystead.identity import memory, tokens
from keystead.identity.accounts import Account
from keystead.infisical.auth import AccessToken, LoginRequest
from keystead.infisical.leaves import IssuedCertificate
from keystead.server import first_start, logs, postgres
from keystead.store import database as db
from keystead.x509 import der, keys
from keystead.x509.keys import KeyType
from keystead.x509.names import NamePolicy
from keystead.x509.pem import blocks

Json = dict[str, Any]

# Memory.

LOADS_A_RING = """
import ctypes, os, resource, sys
from pathlib import Path
from keystead.custody import ring as ringfile

def state():
    # PR_GET_DUMPABLE
    return [ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)]

print(state())
ringfile.load(Path(sys.argv[1]))
print(state(), flush=True)
if "crash" in sys.argv:
    os.abort()
sys.stdin.read()
"""


@pytest.fixture
def ring_path(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    ringfile.create(path)
    return path


def test_who_has_a_ring_dumps_no_core(ring_path: Path) -> None:
    """Loading it takes the limit to nothing, for good, and makes the process one that the kernel never dumps."""
    command = [sys.executable, "-c", LOADS_A_RING, str(ring_path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    before, after = done.stdout.splitlines()
    assert before.startswith("[1, ")
    assert after == "[0, (0, 0)]"


def test_a_crash_of_who_has_a_ring_leaves_nothing(ring_path: Path) -> None:
    """Even where the limit was none, and in the folder where a dump would lie."""
    largest = "import resource as r; r.setrlimit(r.RLIMIT_CORE, (r.getrlimit(r.RLIMIT_CORE)[1],) * 2)"
    command = [sys.executable, "-c", f"{largest}\n{LOADS_A_RING}", str(ring_path), "crash"]
    folder = ring_path.with_name("folder")
    folder.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(Path(ringfile.__file__).parents[2])}
    process = subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert list(folder.iterdir()) == []


def test_who_has_a_ring_shows_its_memory_to_nobody(ring_path: Path) -> None:
    """Another process of the same user can read the memory of a plain one, and not of this one."""
    with waiting("import sys; print('ready', flush=True); sys.stdin.read()") as pid:
        if looks_into(pid) != "it can be read":
            pytest.skip("here nobody can look into any process")
    with waiting(LOADS_A_RING.replace("print(state())", ""), ring_path) as pid:
        assert "Permission denied" in looks_into(pid)


@pytest.mark.serve
def test_server_and_workers_dump_no_core(quiet: Live) -> None:
    """The limit is nothing for each process of a running server."""
    pids = [quiet.pid, *workers(quiet.pid)]
    assert len(pids) == 3
    for pid in pids:
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text())


@pytest.fixture(scope="module")
async def quiet(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A server of this module's own, with two workers."""
    async with new_database(cluster, "template0") as url:
        with serving(url, tmp_path_factory.mktemp("hygiene") / "data", workers=2) as running:
            yield running


@pytest.mark.serve
def test_an_ordinary_user_serves_with_tls(empty_database: str, tmp_path: Path) -> None:
    """That nobody can look into the processes with the ring does not keep the workers from the certificate."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    for each in issued.cert_chain_pems:
        each.write_to_path(tmp_path / "cert.pem", append=True)
    port = free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KEYSTEAD_")},
        "KEYSTEAD_DATABASE_URL": empty_database,
        "KEYSTEAD_DATA_DIR": str(tmp_path / "data"),
        "KEYSTEAD_PORT": str(port),
        "KEYSTEAD_TLS_CERT": str(tmp_path / "cert.pem"),
        "KEYSTEAD_TLS_KEY": str(tmp_path / "key.pem"),
        "KEYSTEAD_WORKERS": "1",
    }
    with (tmp_path / "output").open("wb") as output:
        command = [*ORDINARY, sys.executable, "-m", "keystead", "serve"]
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        until(lambda: answers(port) or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, (tmp_path / "output").read_text()
        (worker,) = workers(process.pid)
        assert "Permission denied" in looks_into(worker)
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    where = f"https://127.0.0.1:{port}/healthz"
    with contextlib.suppress(OSError), urllib.request.urlopen(where, timeout=5, context=context) as answer:
        return bool(answer.status == 200)
    return False


# The search.


def encodings(key: keys.PrivateKey) -> dict[str, bytes]:
    ways = [(form, kind) for form in ("PEM", "DER") for kind in ("PKCS8", "TraditionalOpenSSL")]
    made = {
        f"{form} {kind}": key.private_bytes(
            getattr(serialization.Encoding, form),
            getattr(serialization.PrivateFormat, kind),
            serialization.NoEncryption(),
        )
        for form, kind in ways
    }
    der = made["DER PKCS8"]
    return {
        **made,
        "PEM in JSON": json.dumps({"key": made["PEM PKCS8"].decode()}).encode(),
        "PEM in JSON in JSON": json.dumps(json.dumps(made["PEM PKCS8"].decode())).encode(),
        "hex": der.hex().encode(),
        "hex in capitals": der.hex().upper().encode(),
        "Python's bytes": repr(der).encode(),
        "decimal": decimal(key).encode(),
        **{f"base64 after {n} bytes": base64.b64encode(b"x" * n + der) for n in range(3)},
        **{f"URL-safe base64 after {n} bytes": base64.urlsafe_b64encode(b"x" * n + der) for n in range(3)},
        "base64 in lines": base64.encodebytes(der),
    }


def decimal(key: keys.PrivateKey) -> str:
    numbers = key.private_numbers()
    return str(numbers.d if isinstance(numbers, rsa.RSAPrivateNumbers) else numbers.private_value)


@pytest.mark.parametrize("key_type", [KeyType.P256V1, KeyType.RSA2048])
def test_the_search_would_find_a_key(key_type: KeyType) -> None:
    """Every encoding of a key that is hidden in other text is found, and no other key's."""
    key, other = (keys.generate(key_type).private_key for _ in range(2))
    for name, encoded in encodings(key).items():
        place = {name: b"some text " + encoded + b" and more"}
        assert leaks(of_key("the key", key), place), name
        assert not leaks(of_key("another key", other), place), name


# A working day of a server.


class Day(msgspec.Struct):
    """A server, and whatever it has emitted to somebody."""

    live: Live
    place: Place
    http: httpx.Client
    emitted: dict[str, bytes]
    secrets: list[Secret]

    def ask(self, method: str, path: str, body: object = None, status: int = 200, **more: Any) -> Json:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        answer = self.http.request(method, path, content=raw, **more)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        name = f"answer {len(self.emitted)} to {method} {path}"
        self.emitted[name] = answer.content + repr(answer.headers.raw).encode()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        told: Any = answer.json() if is_json else {}
        found: Json = told.get("result", told) if isinstance(told, dict) else {}
        return found or {}

    def run(self, *words: str, status: int = 0) -> str:
        said = self.place.run(*words, status=status)
        self.emitted[f"command {len(self.emitted)}: {' '.join(words)}"] = (said.out + said.err).encode()
        return said.out

    def keep(self, name: str, value: str) -> str:
        """A secret that was handed out in what was emitted last, and belongs there alone."""
        self.secrets.append(Secret(name, value.encode(), (list(self.emitted)[-1],)))
        return value

    def never(self, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
        """A key that is sent to the server; in PEM."""
        self.secrets += of_key(name, key)
        return key_pem(key)


@pytest.fixture(scope="module")
def day(quiet: Live, cluster: postgres.Cluster) -> Iterator[Day]:
    """After a day's work: everything that was emitted, and everything that must not have been."""
    place = Place(quiet.database_url, quiet.data_dir)
    lone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=quiet.url, headers=quiet.bearer, timeout=60, limits=lone) as http:
        made = Day(quiet, place, http, {}, [])
        credentials = "file credentials.env"
        made.secrets.append(Secret("the first token", quiet.env["CLOUDFLARE_API_TOKEN"].encode(), (credentials,)))
        made.secrets.append(Secret("the first global key", quiet.older["CLOUDFLARE_API_KEY"].encode(), (credentials,)))
        cloudflare(made)
        infisical(made)
        commands(made)
        failures(made)
        collect(made, cluster._layout.home / "log")
        yield made


def cloudflare(day: Day) -> None:
    zone = f"/client/v4/zones/{day.live.env['CLOUDFLARE_ZONE_ID']}"
    issuer = day.live.ca.intermediate()
    for key_type in ("rsa2048", "p256v1"):
        once = {"Idempotency-Key": uuid4().hex}
        csr = day.ask("POST", f"{zone}/custom_csrs", {**BODY, "key_type": key_type}, 201, headers=once)
        day.ask("POST", f"{zone}/custom_csrs", {**BODY, "key_type": key_type}, 201, headers=once)
        signed = pem(issuer.of_csr(csr["csr"]), issuer.certificate)
        body = {"certificate": signed, "custom_csr_id": csr["id"]}
        certificate = day.ask("POST", f"{zone}/custom_certificates", body)
        day.ask("GET", f"{zone}/custom_certificates/{certificate['id']}")
        day.ask("DELETE", f"{zone}/custom_csrs/{csr['id']}", status=409)
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        leaf = issuer.sign(key.public_key(), subject("u.example.com"), hosts=["u.example.com"])
        body = {"certificate": pem(leaf, issuer.certificate), "private_key": day.never("an uploaded key", key)}
        day.ask("POST", f"{zone}/custom_certificates", body)
    for path in ("custom_csrs", "custom_certificates"):
        day.ask("GET", f"{zone}/{path}")
    day.ask("GET", "/client/v4/user/tokens/verify")
    pair = {"X-Auth-Email": day.live.older["CLOUDFLARE_EMAIL"], "X-Auth-Key": day.live.older["CLOUDFLARE_API_KEY"]}
    answer = httpx.get(f"{day.live.url}{zone}/custom_csrs", headers=pair)
    assert answer.status_code == 200
    day.emitted["answer to a global key"] = answer.content + repr(answer.headers.raw).encode()


def infisical(day: Day) -> None:
    ca, slug = "/api/v1/pki/ca", day.live.env["KEYSTEAD_PROJECT_SLUG"]
    login = {"clientId": day.ask("GET", "/client/v4/user/tokens/verify")["id"]}
    login["clientSecret"] = day.live.env["CLOUDFLARE_API_TOKEN"]
    access = day.ask("POST", "/api/v1/auth/universal-auth/login", login)["accessToken"]
    day.keep("an access token", access)
    for algorithm in ("RSA_2048", "EC_secp521r1"):
        new = {"projectSlug": slug, "keyAlgorithm": algorithm}
        root = day.ask("POST", ca, {**new, "type": "root", "commonName": f"Root {algorithm}"})["ca"]
        under = day.ask("POST", ca, {**new, "type": "intermediate", "commonName": f"CA {algorithm}"})["ca"]
        asked = {"csr": day.ask("GET", f"{ca}/{under['id']}/csr")["csr"], "notAfter": "2035-01-01"}
        signed = day.ask("POST", f"{ca}/{root['id']}/sign-intermediate", asked)
        chain = {"certificate": signed["certificate"], "certificateChain": signed["certificateChain"]}
        day.ask("POST", f"{ca}/{under['id']}/import-certificate", chain)
        leaf = {"csr": csr_of(ec.generate_private_key(ec.SECP256R1()), "leaf.example.com"), "ttl": "30d"}
        serial = day.ask("POST", f"{ca}/{under['id']}/sign-certificate", leaf)["serialNumber"]
        day.ask("POST", f"/api/v1/pki/certificates/{serial}/revoke", {"revocationReason": "UNSPECIFIED"})
        for word in ("", "/crl", "/certificate", "/ca-certificates"):
            day.ask("GET", f"{ca}/{under['id']}{word}")
        day.ask("POST", f"{ca}/{root['id']}/renew", {"type": "existing", "notAfter": "2045-01-01"})


def commands(day: Day) -> None:
    for words in (
        ("keys", "status", "--json"),
        ("keys", "init"),
        ("keys", "add"),
        ("keys", "rotate"),
        ("keys", "verify"),
        ("keys", "retire", "x"),
        ("certificate", "list"),
        ("ca", "list"),
        ("ca", "create", "Operator's CA"),
        ("ca", "crl", "Operator's CA"),
        ("account", "list"),
        ("user", "list"),
        ("token", "list", "--json"),
        ("migrate",),
    ):
        day.run(*words, status=1 if words[1:] in {("init",), ("retire", "x")} else 0)
    (token,) = json.loads(day.run("token", "create", "another", "--json"))
    day.keep("another token", token["token"])
    (user,) = json.loads(day.run("user", "create", "second@example.com", "--json"))
    day.keep("another global key", user["global_key"])
    new_pepper(day.place)
    known_everywhere(day.place, day.live)
    for value in (token["token"], day.live.env["CLOUDFLARE_API_TOKEN"]):
        day.ask("GET", day.live.account_path, headers={"Authorization": f"Bearer {value}"})
    (certificate, *_) = json.loads(day.run("certificate", "list", "--json"))
    folder = day.live.data_dir.with_name("exported")
    day.run("certificate", "export", certificate["id"], "--out", str(folder))
    day.run("certificate", "export", str(UUID(int=1)), "--out", str(folder), status=1)


def failures(day: Day) -> None:
    """Requests that fail in all kinds of ways, with secrets in their hands."""
    zone, token = f"/client/v4/zones/{day.live.env['CLOUDFLARE_ZONE_ID']}", day.live.env["CLOUDFLARE_API_TOKEN"]
    path, ca = f"{zone}/custom_certificates", "/api/v1/pki/ca"
    issuer = day.live.ca
    key = ec.generate_private_key(ec.SECP256R1())
    text = day.never("a key that is refused", key)
    leaf = pem(issuer.sign(key.public_key(), subject("r.example.com"), hosts=["r.example.com"]))
    other = pem(issuer.sign(ec.generate_private_key(ec.SECP256R1()).public_key(), subject("x"), hosts=["x"]))
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    for private_key in (text[:60] + "é" + text[60:], text[:-60], text.replace("M", "\x00", 3), encrypted.decode()):
        day.ask("POST", path, {"certificate": leaf, "private_key": private_key}, 400)
    for body in (
        {"certificate": other, "private_key": text},
        {"certificate": text, "private_key": text},
        {"certificate": leaf + text, "private_key": other},
        {"certificate": other, "private_key": key_pem(key, serialization.PrivateFormat.TraditionalOpenSSL)},
        {"certificate": leaf, "private_key": {"pem": text}},
        {"certificate": leaf, "private_key": [text]},
        {"certificate": [text], "private_key": text},
        {"certificate": leaf, "private_key": text, "bundle_method": "x", "policy": 7},
        {"certificate": leaf, "custom_csr_id": text},
        {"certificates": text},
    ):
        day.ask("POST", path, body, 400)
    day.ask("POST", path, json.dumps({"private_key": text}).encode()[:-4], 400)
    # The answer is lost when the server closes the connection before it has read all that it does not want.
    with contextlib.suppress(httpx.TransportError):
        day.ask("POST", path, json.dumps({"private_key": text * 1200}).encode(), 413)
    day.ask("POST", f"{zone}/custom_csrs", {**BODY, "country": text, "key_type": text}, 400)
    day.ask("PATCH", f"{path}/{uuid4()}", {"private_key": text}, 404)
    for name, value in (
        ("Authorization", f"Bearer {token}x"),
        ("Authorization", f"Basic {token}"),
        ("X-Auth-Key", token),
    ):
        answer = httpx.get(day.live.url + path, headers={name: value, "X-Auth-Email": "admin@example.com"})
        assert answer.status_code >= 400
        day.emitted[f"answer to a bad {name} {len(day.emitted)}"] = answer.content + repr(answer.headers.raw).encode()
    for body in (
        {"clientId": str(uuid4()), "clientSecret": token},
        {"clientId": "x", "clientSecret": token},
    ):
        day.ask("POST", "/api/v1/auth/universal-auth/login", body, 401)
    day.ask("POST", "/api/v1/auth/universal-auth/login", {"clientId": 7, "clientSecret": [token]}, 422)
    day.ask("POST", f"{ca}/{uuid4()}/sign-certificate", {"csr": text, "ttl": "1d"}, 404)
    listed = json.loads(day.run("ca", "list", "--json"))
    active = next(each["id"] for each in listed if each["status"] == "active")
    day.ask("POST", f"{ca}/{active}/sign-certificate", {"csr": text, "ttl": "1d"}, 400)
    day.ask("POST", f"{ca}/{active}/sign-certificate", {"csr": {"key": text}, "ttl": text}, 422)
    day.ask("POST", f"{ca}/{active}/sign-intermediate", {"csr": text, "notAfter": "2030"}, 400)
    day.ask("GET", f"{path}?page=x", status=400)
    day.ask("GET", "/client/v4/nowhere", status=404)
    day.ask("PUT", path, {"private_key": text}, 405)
    damaged(day)


def damaged(day: Day) -> None:
    """Keys that do not open while they are needed, for the tracebacks in the log."""
    sql = (
        "SELECT a.id, k.id AS key_id, k.ciphertext FROM certificate_authorities a "
        "JOIN private_keys k ON k.id = a.key_id WHERE a.type = 'intermediate' ORDER BY a.id"
    )
    first, second = day.place.rows(sql)[:2]
    change = "UPDATE private_keys SET ciphertext = $2 WHERE id = $1"
    for ciphertext in (b"", second["ciphertext"], first["ciphertext"][:-1]):
        day.place.rows(change, first["key_id"], ciphertext)
        day.ask("GET", f"/api/v1/pki/ca/{first['id']}/csr", status=500)
    day.run("keys", "verify", status=1)
    day.place.rows(change, first["key_id"], first["ciphertext"])
    # A key that opens, but another CA's.
    swap = "UPDATE certificate_authorities SET spki_sha256 = sha256(spki_sha256) WHERE id = $1"
    day.place.rows(swap, first["id"])
    day.ask("GET", f"/api/v1/pki/ca/{first['id']}/csr", status=500)
    digest = (
        "UPDATE certificate_authorities a SET spki_sha256 = k.spki_sha256 FROM private_keys k WHERE k.id = a.key_id"
    )
    day.place.rows(digest)
    day.run("keys", "verify")


def collect(day: Day, postgres_log: Path) -> None:
    """What lies about at the end of the day, and the secrets of ring and database."""
    day.emitted["the log"] = day.live.log.read_bytes()
    day.emitted["PostgreSQL's log"] = postgres_log.read_bytes()
    for path in day.live.data_dir.rglob("*"):
        if path.is_file():
            day.emitted[f"file {path.relative_to(day.live.data_dir)}"] = path.read_bytes()
    tables = day.place.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    for (table,) in tables:
        rows = day.place.rows(f"SELECT t::text FROM {table} t")
        day.emitted[f"table {table}"] = "\n".join(row[0] for row in rows).encode()
    ring = ringfile.load(day.place.path)
    day.secrets += [Secret(f"the KEK {kek.id}", kek.secret, ("file keyring.json",)) for kek in ring.keks]

    async def opened(database: db.Database) -> tuple[list[keys.PrivateKey], Peppers]:
        sql = "SELECT account_id, id, spki_sha256 FROM private_keys"
        found = [
            await keyring.open_key(database, ring, keyring.SYSTEM, (row["account_id"], row["id"], row["spki_sha256"]))
            for row in await database.fetch(sql)
        ]
        return found, await load_peppers(database, ring)

    found, peppers = day.place.with_database(opened)
    for index, key in enumerate(found):
        day.secrets += of_key(f"private key {index}", key)
    day.secrets += [Secret(f"the pepper {id_}", value) for id_, value in peppers.by_id.items()]


@pytest.mark.serve
def test_a_days_work_is_a_days_work(day: Day) -> None:
    """There was something to find: keys of every kind, peppers, KEKs, credentials, errors, tracebacks, files."""
    names = [secret.name for secret in day.secrets]
    assert sum(name.startswith("private key") and "decimal" not in name for name in names) >= 9 + 5 * 3
    assert sum(name.startswith("the KEK") for name in names) == 2
    assert sum(name.startswith("the pepper") for name in names) == 2
    assert {"another token", "an access token", "another global key", "a key that is refused"} <= set(names)
    log = day.emitted["the log"].decode()
    assert log.count("KeyDamaged: row ") >= 4
    assert len([name for name in day.emitted if name.startswith("answer")]) > 60
    assert {"file keyring.json", "file credentials.env", "file limits"} <= set(day.emitted)
    assert b"key-damaged" in day.emitted["table audit_log"]
    # By design each is in one place, and the search finds it there.
    for secret in day.secrets:
        for owner in secret.owners:
            assert leaks([msgspec.structs.replace(secret, owners=())], {owner: day.emitted[owner]})


@pytest.mark.serve
def test_no_secret_is_in_what_a_days_work_emits(day: Day) -> None:
    """Answers, log, output of commands, audit log, tables and files have none of them, in any encoding."""
    assert leaks(day.secrets, day.emitted) == []
    # An answer may quote the beginning of what its caller has put into a wrong field.
    places = [name for name, content in day.emitted.items() if b"PRIVATE KEY-----" in content]
    assert [name for name in places if not name.startswith("answer ")] == []


# Exceptions.

PAIR = keys.generate(KeyType.P256V1)
RSA_PAIR = keys.generate(KeyType.RSA2048)
KEK = seal.Kek("kek-1", bytes(range(100, 132)))
RING = Ring((KEK,))
ROW_ID, ACCOUNT_ID = UUID(int=1), UUID(int=2)
CONTEXT = seal.private_key_context(ROW_ID, ACCOUNT_ID, "p256v1", PAIR.spki_sha256)
SEALED = RING.sealed(CONTEXT, keys.pkcs8(PAIR.private_key))
PEM, RSA_PEM = keys.pem(PAIR.private_key), keys.pem(RSA_PAIR.private_key)
DER, RSA_DER = keys.pkcs8(PAIR.private_key), keys.pkcs8(RSA_PAIR.private_key)
EDWARDS = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(200, 232)))
TOKEN = tokens.new_token()
SECRETS = [
    *of_key("the EC key", PAIR.private_key),
    *of_key("the RSA key", RSA_PAIR.private_key),
    Secret("the KEK", KEK.secret[:24]),
    Secret("the Edwards key", bytes(range(200, 232))[:24]),
    Secret("the pepper", b"a pepper of some thirty-two bytes"[:30]),
    Secret("the token", TOKEN.encode()),
]


def row(**changes: Any) -> Any:
    values = {
        "account_id": ACCOUNT_ID,
        "id": ROW_ID,
        "key_type": "p256v1",
        "spki_sha256": PAIR.spki_sha256,
        "kek_id": SEALED.kek_id,
        "wrapped_key": SEALED.wrapped_key,
        "ciphertext": SEALED.ciphertext,
    }
    return {**values, **changes}


def sealed(secret: bytes) -> Json:
    made = RING.sealed(CONTEXT, secret)
    return {"wrapped_key": made.wrapped_key, "ciphertext": made.ciphertext}


def pem_of(key: Any) -> str:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    text: str = key.private_bytes(*form).decode()
    return text


BAD_KEK = seal.Kek("kek-1", KEK.secret[:24] + b"x")
FAILURES: dict[str, Callable[[], object]] = {
    "seal.seal: a KEK of a wrong length": lambda: seal.seal(BAD_KEK, CONTEXT, DER),
    "seal.open_: another KEK": lambda: seal.open_(seal.Kek("kek-1", b"x" * 32), CONTEXT, SEALED),
    "seal.open_: another context": lambda: seal.open_(KEK, CONTEXT[:-1], SEALED),
    "seal.open_: damaged": lambda: seal.open_(KEK, CONTEXT, seal.Sealed("kek-1", SEALED.wrapped_key, b"\x01" * 99)),
    "seal.open_: truncated": lambda: seal.open_(KEK, CONTEXT, seal.Sealed("kek-1", SEALED.wrapped_key, b"")),
    "seal.open_: version": lambda: seal.open_(KEK, CONTEXT, seal.Sealed("kek-1", b"\x02" * 61, SEALED.ciphertext)),
    "seal.open_: a KEK of a wrong length": lambda: seal.open_(BAD_KEK, CONTEXT, SEALED),
    "seal.rewrap: another KEK": lambda: seal.rewrap(seal.Kek("a", b"x" * 32), KEK, CONTEXT, SEALED.wrapped_key),
    "seal.rewrap: to a KEK of a wrong length": lambda: seal.rewrap(KEK, BAD_KEK, CONTEXT, SEALED.wrapped_key),
    "Ring.open_: damaged": lambda: RING.open_(ROW_ID, (), SEALED),
    "Ring.open_: unknown KEK": lambda: RING.open_(ROW_ID, CONTEXT, msgspec.structs.replace(SEALED, kek_id="x")),
    "Ring.rewrapped: damaged": lambda: RING.rewrapped(ROW_ID, (), "kek-1", SEALED.wrapped_key, KEK),
    "keys.load: truncated": lambda: keys.load(DER[:-3]),
    "keys.load: a byte more": lambda: keys.load(DER + b"x"),
    "keys.load: changed": lambda: keys.load(DER[:60] + bytes([DER[60] ^ 255]) + DER[61:]),
    "keys.load: RSA, truncated": lambda: keys.load(RSA_DER[:-3]),
    "keys.load: PEM": lambda: keys.load(PEM.encode()),
    "keys.load: Edwards": lambda: keys.load(
        EDWARDS.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    ),
    "keys.read_pem: truncated": lambda: keys.read_pem(PEM[:90] + PEM[94:]),
    "keys.read_pem: RSA, changed": lambda: keys.read_pem(RSA_PEM[:400] + "AAAA" + RSA_PEM[404:]),
    "keys.read_pem: not ASCII": lambda: keys.read_pem(PEM[:60] + "é" + PEM[61:]),
    "keys.read_pem: a lone surrogate": lambda: keys.read_pem(PEM[:60] + "\udcff" + PEM[61:]),
    "keys.read_pem: Edwards": lambda: keys.read_pem(pem_of(EDWARDS)),
    "keys.read_pem: said to be encrypted": lambda: keys.read_pem(PEM.replace("BEGIN", "BEGIN ENCRYPTED", 1)),
    "keys.read_pem: another kind": lambda: keys.read_pem(PEM.replace("BEGIN PRIVATE", "BEGIN RSA PRIVATE", 1)),
    "keys.read_pem: another curve": lambda: keys.read_pem(
        pem_of(ec.derive_private_key(int.from_bytes(bytes(range(200, 224)), "big"), ec.SECP256K1()))
    ),
    "keyring.new_key: a KEK of a wrong length": lambda: keyring.new_key(Ring((BAD_KEK,)), ACCOUNT_ID, PAIR),
    "keyring.open_row: another key": lambda: keyring.open_row(RING, row(), b"x" * 32),
    "keyring.open_row: damaged": lambda: keyring.open_row(RING, row(ciphertext=b""), PAIR.spki_sha256),
    "keyring.open_row: no key": lambda: keyring.open_row(RING, row(**sealed(DER[:-3])), PAIR.spki_sha256),
    "keyring.open_row: unknown KEK": lambda: keyring.open_row(RING, row(kek_id="x"), PAIR.spki_sha256),
    "peppers.open_pepper: damaged": lambda: open_pepper(RING, row()),
}


def told_by(error: BaseException) -> str:
    """All that an exception carries, and those that it came from."""
    told, todo, seen = [], [error], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        own = {
            name: getattr(each, name) for name in dir(each) if not name.startswith("__") and name != "with_traceback"
        }
        values = [value for value in own.values() if not callable(value)]
        told += [str(each), repr(each), repr(each.args), repr(values), repr(getattr(each, "__notes__", []))]
        told += [value for value in (*each.args, *values) if isinstance(value, str)]
        todo += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "\n".join(told)


@pytest.mark.parametrize("name", FAILURES)
def test_no_exception_carries_a_key(name: str) -> None:
    """Neither what is said nor the arguments nor the exceptions before it have a byte of the key in hand."""
    error = raised(FAILURES[name])
    assert leaks(SECRETS, {name: told_by(error).encode("utf-8", "replace")}) == []


def raised(work: Callable[[], object]) -> Exception:
    """What a call that must fail, in whatever way, has raised."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - each has its own
        return error
    raise AssertionError("it did not fail")


def ring_text(**changes: Any) -> bytes:
    entry = {"id": "k", "secret": base64.b64encode(KEK.secret).decode(), "created_at": "2027-01-01T00:00:00Z"}
    return json.dumps({"version": 1, "keks": [{**entry, **changes}]}, ensure_ascii=False).encode()


SECRET_TEXT = base64.b64encode(KEK.secret).decode()
BROKEN_RINGS = {
    "truncated": ring_text()[:-20],
    "no list": ring_text().replace(b"[", b"{"),
    "not UTF-8": ring_text().replace(b'"secret": "', b'"secret": "\xff'),
    "not ASCII": ring_text(secret=f"é{SECRET_TEXT}"),
    "no base64": ring_text(secret=f"!{SECRET_TEXT}"),
    "short": ring_text(secret=base64.b64encode(KEK.secret[:27]).decode()),
    "a number": ring_text().replace(f'"{SECRET_TEXT}"'.encode(), b"7"),
    "version 2": ring_text().replace(b'"version": 1', b'"version": 2'),
    "the secret as the id": ring_text(id=SECRET_TEXT, secret="x"),
}


@pytest.mark.parametrize("name", BROKEN_RINGS)
def test_no_exception_about_a_broken_ring_carries_a_kek(tmp_path: Path, name: str) -> None:
    """The sentence names the file, and what was read of it is nowhere in the chain."""
    path = tmp_path / "keyring.json"
    path.write_bytes(BROKEN_RINGS[name])
    path.chmod(0o600)
    with pytest.raises(KeysteadError) as caught:
        ringfile.load(path)
    assert leaks(SECRETS, {name: told_by(caught.value).encode("utf-8", "replace")}) == []


async def test_no_exception_of_the_database_carries_a_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are refused by a constraint, and keys that do not open, with all that PostgreSQL says of them."""
    database, account_id = world.database, world.a.account.id
    made = await world.create()
    key = await world.key_of(made["id"])
    secrets = [*SECRETS, *of_key("the key", key), *(Secret("a KEK", kek.secret) for kek in world.ring.keks)]
    failed: list[Exception] = []
    pair = keys.KeyPair("p256v1", key, keys.spki(key))
    statements = [keyring.new_key(world.ring, account_id, pair), keyring.new_key(world.ring, uuid4(), pair)]
    for new in (*statements, keyring.new_key(world.ring, account_id, keys.KeyPair("x", key, b""), generated=False)):
        with pytest.raises((asyncpg.PostgresError, KeysteadError)) as caught:
            await database.execute(keyring.insert_key(1), *new.row)
        failed.append(caught.value)
    (found,) = await database.fetch("SELECT * FROM private_keys")
    for digest, ring in ((b"x" * 32, world.ring), (found["spki_sha256"], RING)):
        with pytest.raises(KeyDamaged) as damaged_:
            await keyring.open_key(database, ring, keyring.SYSTEM, (account_id, found["id"], digest))
        failed.append(damaged_.value)
    forged = Ring(tuple(seal.Kek(kek.id, os.urandom(32)) for kek in world.ring.keks))
    with pytest.raises(KeyDamaged) as damaged_:
        await load_peppers(database, forged)
    failed.append(damaged_.value)
    upload = matching.Upload(private_key=PEM[:60] + "é" + PEM[61:])
    pool = world.state.services.pool
    with pytest.raises(KeysteadError) as refused:
        await matching._read_key(pool, str(upload.private_key))
    assert "é" not in str(refused.value)
    for error in failed:
        assert leaks(secrets, {repr(error): told_by(error).encode("utf-8", "replace")}) == []


HOME = Account(ACCOUNT_ID, "Home", "home", NamePolicy.PRIVATE, True, None, 398, None, datetime(2027, 1, 1, tzinfo=UTC))
SIGNED = Signed("serial", "pem", "issuer", "chain")
NEW_KEY = keyring.new_key(RING, ACCOUNT_ID, PAIR)
HOLDERS: list[object] = [
    KEK,
    RING,
    PAIR,
    RSA_PAIR,
    NEW_KEY,
    matching.Key(ROW_ID, PAIR.spki_sha256, new=NEW_KEY),
    matching.Upload(certificate="x", private_key=PEM),
    Exported("chain", PEM),
    leaves.WithKey(SIGNED, PEM),
    IssuedCertificate("a", "b", "c", "d", private_key=PEM),
    AccessToken(TOKEN, 1, 1),
    LoginRequest("an id", TOKEN),
    *blocks(PEM),
    der.first(keys.pkcs8(PAIR.private_key)),
    CustomCertificateChange(private_key=PEM),
    CustomCertificateRequest(certificate="x", private_key=PEM),
    TokenObject("i", "n", tokens.TokenStatus.ACTIVE, "t", "t", msgspec.Raw(b"[]"), value=TOKEN),
    TokenChange("n", (), value=TOKEN),
    Decoded(CustomCertificateChange(private_key=PEM), (), (), PEM.encode()),
    Peppers({ROW_ID: b"a pepper of some thirty-two bytes"}),
    ringfile.Entry("k", KEK.secret, datetime(2027, 1, 1, tzinfo=UTC)),
    ringfile.Content(1, (ringfile.Entry("k", KEK.secret, datetime(2027, 1, 1, tzinfo=UTC)),)),
    memory.TokenCredential(TOKEN),
    memory.KeyCredential("a@b.example", TOKEN),
    first_start.Credentials("http://x", TOKEN, HOME, ROW_ID, "a@b.example", TOKEN),
    Settings(database_url=f"postgresql://user:{TOKEN}@host/database"),
    db.Database(f"postgresql://user:{TOKEN}@host/database", 1),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_no_holder_of_a_secret_shows_it(holder: object) -> None:
    """What ends up in a traceback or a log by its repr names what is public of it."""
    for shown in (repr(holder), str(holder), repr([holder]), f"{holder}"):
        assert leaks(SECRETS, {type(holder).__name__: shown.encode("utf-8", "replace")}) == []


@pytest.mark.parametrize("log", LogFormat)
def test_a_traceback_in_the_log_shows_no_variables(log: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the error and its lines, and not what the variables held."""

    def fails(secret: str) -> None:
        raise ArithmeticError(f"{len(secret)} characters")

    before = structlog.get_config()
    try:
        logs.configure(log)
        try:
            fails(TOKEN)
        except ArithmeticError:
            structlog.get_logger("keystead").exception("it failed")
    finally:
        structlog.configure(**before)
    said = capsys.readouterr().err
    assert "ArithmeticError" in said
    assert TOKEN not in said


def test_only_custody_has_sql_on_private_keys() -> None:
    """SQL on private_keys stands in custody/keyring.py and custody/rotation.py alone, but for migrations."""
    app = Path(db.__file__).parents[1]
    named = {str(path.relative_to(app)) for path in app.rglob("*.py") if "private_keys" in path.read_text()}
    assert named <= {"custody/keyring.py", "custody/rotation.py", "store/database.py"}, named
