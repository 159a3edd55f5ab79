"""A dump of the database holds no secret, and opens elsewhere with its ring (docs/operations.md, "Backup")."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.authority import key_pem, pem, subject
from support.databases import new_database
from support.live import Live, serving
from support.psql import psql
from support.world import BODY

from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.custody.peppers import load_peppers
from keystead.server import postgres
from keystead.store import database as db
from keystead.x509 import keys

pytestmark = pytest.mark.serve


class Backup(msgspec.Struct):
    """What an operator has after a working day: the dump in plain SQL, the ring, and what was answered meanwhile."""

    sql: str
    ring: Path
    secrets: dict[str, list[str]]


def keystead(live: Live, *words: str, **changes: str) -> str:
    settings = {
        "KEYSTEAD_DATABASE_URL": live.database_url,
        "KEYSTEAD_DATA_DIR": str(live.data_dir),
        **changes,
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSTEAD_", "CLOUDFLARE_"))}
    command = [sys.executable, "-m", "keystead", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **settings})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
async def backup(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with keys of every kind, a second KEK and a second pepper, and its dump."""
    folder = tmp_path_factory.mktemp("backup")
    async with new_database(cluster, "template0") as url:
        with serving(url, folder / "data") as live:
            _work(live)
            keystead(live, "keys", "add")
            keystead(live, "keys", "rotate")
            keystead(live, "keys", "add", "--pepper")
            made = keystead(live, "token", "create", "second", "--json")
            shutil.copy(live.data_dir / "keyring.json", folder / "keyring.json")
            sql = psql("pg_dump", url, "--no-owner")
            given = {
                "the first token": [live.env["CLOUDFLARE_API_TOKEN"]],
                "the second token": [json.loads(made)[0]["token"]],
                "the global key": [live.older["CLOUDFLARE_API_KEY"]],
            }
        yield Backup(sql, folder / "keyring.json", {**given, **await _sealed(url, folder / "keyring.json")})


def _work(live: Live) -> None:
    with httpx.Client(base_url=live.url, headers=live.bearer) as http:
        for key_type in ("p256v1", "rsa2048"):
            for path in (live.account_path, live.zone_path):
                assert http.post(path, json={**BODY, "key_type": key_type}).status_code == 201
        key = ec.generate_private_key(ec.SECP256R1())
        uploaded = live.ca.sign(key.public_key(), subject("www.example.com"), hosts=["www.example.com"])
        body = {"certificate": pem(uploaded), "private_key": key_pem(key)}
        path = live.zone_path.replace("custom_csrs", "custom_certificates")
        assert http.post(path, json=body).status_code == 200
        for type_ in ("root", "intermediate"):
            ca = {"projectSlug": "default", "type": type_, "commonName": type_, "keyAlgorithm": "EC_secp384r1"}
            made = http.post("/api/v1/pki/ca", json=ca)
            assert made.status_code == 200, made.text
            if type_ == "root":
                csr = _csr()
                leaf = {"csr": csr, "ttl": "1d", "altNames": "a.example.com"}
                assert http.post(f"/api/v1/pki/ca/{made.json()['ca']['id']}/sign-certificate", json=leaf).is_success


def _csr() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject("a.example.com"))
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


async def _sealed(url: str, path: Path) -> dict[str, list[str]]:
    """Every secret that the database seals, and the KEKs, as they would look in a dump."""
    database, ring = db.Database(url, 1), ringfile.load(path)
    found: dict[str, list[str]] = {f"KEK {kek.id}": _forms(kek.secret) for kek in ring.keks}
    for pepper_id, pepper in (await load_peppers(database, ring)).by_id.items():
        found[f"pepper {pepper_id}"] = _forms(pepper)
    for row in await database.fetch("SELECT account_id, id, key_type, spki_sha256 FROM private_keys"):
        place = (row["account_id"], row["id"], row["spki_sha256"])
        key = await keyring.open_key(database, ring, keyring.SYSTEM, place)
        numbers = key.private_numbers()
        number = numbers.d if isinstance(numbers, rsa.RSAPrivateNumbers) else numbers.private_value
        secret = number.to_bytes((number.bit_length() + 7) // 8, "big")
        found[f"{row['key_type']} {row['id']}"] = [*_forms(secret), *_pem_lines(key, secret), str(number)]
    await database.close()
    return found


def _pem_lines(key: keys.PrivateKey, secret: bytes) -> list[str]:
    """The lines of its PEM that hold some of the secret number: the others may be in certificates."""
    start = keys.pkcs8(key).index(secret)
    lines = [line for line in keys.pem(key).splitlines() if not line.startswith("-")]
    return lines[start // 48 : (start + len(secret) - 1) // 48 + 1]


def _forms(secret: bytes) -> list[str]:
    """Hex, and the whole groups of base64 at each alignment."""
    return [secret.hex(), *(base64.b64encode(secret[i : i + (len(secret) - i) // 3 * 3]).decode() for i in range(3))]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An empty data folder of another machine."""
    folder = tmp_path / "elsewhere"
    folder.mkdir(mode=0o700)
    return folder


def verified(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"KEYSTEAD_DATABASE_URL": url, "KEYSTEAD_DATA_DIR": str(folder)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KEYSTEAD_")}
    command = [sys.executable, "-m", "keystead", "keys", "verify"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **settings})


def test_a_dump_holds_no_secret_in_any_encoding(backup: Backup) -> None:
    """No private key, token, global key, pepper or KEK stands in the dump, in hex, base64, PEM or decimal."""
    kinds = {re.sub(r" .*", "", name) for name in backup.secrets}
    assert kinds >= {"the", "KEK", "pepper", "p256v1", "rsa2048", "p384"}
    assert len([name for name in backup.secrets if name.startswith("KEK")]) == 2
    assert "COPY public.private_keys" in backup.sql
    lower = backup.sql.lower()
    for name, forms in backup.secrets.items():
        for form in forms:
            assert len(form) > 30, name
            assert form not in backup.sql, name
            assert form.lower() not in lower, name


async def test_a_dump_with_its_ring_opens_on_another_machine(
    cluster: postgres.Cluster, backup: Backup, elsewhere: Path, tmp_path: Path
) -> None:
    """Loaded into an empty database, beside a copy of the ring in an empty folder, every key opens and is its own."""
    (tmp_path / "dump.sql").write_text(backup.sql)
    async with new_database(cluster, "template0") as url:
        psql("psql", url, "--quiet", "--set=ON_ERROR_STOP=1", f"--file={tmp_path / 'dump.sql'}")
        shutil.copy(backup.ring, elsewhere / "keyring.json")
        connection: db.Connection = await asyncpg.connect(url)
        count = await connection.fetchval("SELECT (SELECT count(*) FROM private_keys) + (SELECT count(*) FROM peppers)")
        await connection.close()
        ran = verified(url, elsewhere)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith(f"{count} keys and peppers are good, 0 are damaged")
        assert count >= 9
        # The ring of another installation does not.
        (elsewhere / "keyring.json").unlink()
        ringfile.create(elsewhere / "keyring.json")
        ran = verified(url, elsewhere)
        assert ran.returncode == 1
        assert ran.stderr.count("keystead: row ") == count
        assert "which is not in the ring" in ran.stderr
