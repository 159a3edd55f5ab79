"""The pair of our own TLS: what can be served is, and anything else is refused in one sentence with file and reason."""

import base64
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from support.authority import pem, root

from keystead.errors import Misconfigured
from keystead.server import tls

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
BOM = "\ufeff"
NOW = datetime.now(UTC)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(key: Key, days: int = 30) -> str:
    """A certificate for this key that is valid until so many days from now."""
    hash_ = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateBuilder().subject_name(named("localhost")).issuer_name(named("localhost"))
    builder = builder.public_key(key.public_key()).serial_number(1).not_valid_before(NOW - timedelta(60))
    return pem(builder.not_valid_after(NOW + timedelta(days)).sign(key, hash_))


def text_of(key: Key, passphrase: bytes | None = None, *, traditional: bool = False) -> str:
    form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, how).decode()


def pair(key: Key) -> tuple[str, str]:
    return certificate(key), text_of(key)


def der(text: str) -> bytes:
    return base64.b64decode("".join(text.splitlines()[1:-1]))


P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
LEAF, KEY = certificate(P256), text_of(P256)
ROOT = pem(root("Some Root").certificate)
PARAMETERS = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
BROKEN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
SERVED = {
    "P-256": (LEAF, KEY),
    "SEC 1": (LEAF, text_of(P256, traditional=True)),
    "EC PARAMETERS": (LEAF, PARAMETERS + text_of(P256, traditional=True)),
    "RSA": (certificate(RSA), text_of(RSA)),
    "PKCS #1": (certificate(RSA), text_of(RSA, traditional=True)),
    "Ed25519": pair(ed25519.Ed25519PrivateKey.generate()),
    "P-384": pair(ec.generate_private_key(ec.SECP384R1())),
    "BOM, CRLF and text": (
        f"{BOM}{LEAF}Grüße\n{ROOT}".replace("\n", "\r\n"),
        f"{BOM}Bag Attributes\n{KEY}x".replace("\n", "\r\n"),
    ),
    "an expired leaf": (certificate(P256, -1), KEY),
    "both in each file": (LEAF + KEY, KEY + LEAF),
    "no lines": (LEAF.replace("\n", ""), KEY),
}
_KIND = "of a kind that is not served"
REFUSED = {
    "P-521": (*pair(ec.generate_private_key(ec.SECP521R1())), _KIND),
    "RSA-1024": (*pair(rsa.generate_private_key(65537, 1024)), _KIND),
    "secp256k1": (*pair(ec.generate_private_key(ec.SECP256K1())), _KIND),
    "another key": (LEAF, text_of(RSA), "not that of the first certificate"),
    "the wrong order": (ROOT + LEAF, KEY, "not that of the first certificate"),
    "TRUSTED": (LEAF.replace("CERTIFICATE", "TRUSTED CERTIFICATE"), KEY, "cert.pem: it is a TRUSTED CERTIFICATE"),
    "a damaged leaf": (BROKEN, KEY, "the first certificate is damaged"),
    "a damaged issuer": (LEAF + BROKEN, KEY, "a certificate of the chain is damaged"),
    "no Base64": (LEAF.replace("\n", "\n%", 2), KEY, "cert.pem: its CERTIFICATE is not Base64"),
    "no certificate": ("", KEY, "cert.pem: it holds no certificate in PEM"),
    "no key": (LEAF, "", "key.pem: it holds no private key in PEM"),
    "two keys": (LEAF, KEY + KEY, "key.pem: it holds 2 private keys"),
    "a passphrase": (LEAF, text_of(P256, b"secret"), "key.pem: the key has a passphrase"),
    "an old passphrase": (LEAF, text_of(RSA, b"secret", traditional=True), "key.pem: the key has a passphrase"),
    "a public key": (LEAF, KEY.replace("PRIVATE", "PUBLIC"), "key.pem: it holds no private key in PEM"),
    "changed places": (KEY, LEAF, "cert.pem: it holds no certificate in PEM"),
    "UTF-16": (LEAF.encode("utf-16"), KEY, "cert.pem: it holds no certificate in PEM"),
    "DER": (der(LEAF), KEY, "cert.pem: it is DER"),
    "a DER key": (LEAF, der(KEY), "key.pem: it is DER"),
    "much": (LEAF + " " * 2**20, KEY, "cert.pem: it is larger than 1 MiB"),
}


def judge(folder: Path, chain: str | bytes, key: str | bytes) -> str | None:
    """Why this pair is refused, or None when it can be served."""
    files = folder / "cert.pem", folder / "key.pem"
    for file, text in zip(files, (chain, key), strict=True):
        if not file.exists():
            file.touch(0o600)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        os.close(tls.copied(*files))
    except Misconfigured as error:
        return str(error)
    return None


@pytest.mark.parametrize(("chain", "key"), SERVED.values(), ids=SERVED)
def test_what_can_be_served_is_taken(tmp_path: Path, chain: str, key: str) -> None:
    """A client shakes hands with granian's own TLS, whatever is around the blocks and however the key is written."""
    assert judge(tmp_path, chain, key) is None


@pytest.mark.parametrize(("chain", "key", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(tmp_path: Path, chain: str | bytes, key: str | bytes, reason: str) -> None:
    """One sentence names the file and the reason, and nothing of the key."""
    said = judge(tmp_path, chain, key)
    assert said is not None
    assert reason in said
    assert "\n" not in said
    assert KEY.splitlines()[1] not in said


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A folder and a file that is not there are told as what they are."""
    (tmp_path / "cert.pem").mkdir()
    assert f"{tmp_path / 'cert.pem'}: it cannot be read (Is a directory)" in (judge(tmp_path, "", KEY) or "")
    with pytest.raises(Misconfigured, match=r"none.pem: it cannot be read \(No such file"):
        tls.copied(tmp_path / "none.pem", tmp_path / "key.pem")


@pytest.mark.parametrize(
    ("mode", "owner", "mend"),
    [
        (0o600, (0, 0), None),
        (0o640, (0, 1), None),
        (0o644, (0, 0), "chmod 600"),
        (0o604, (0, 1), "chmod 640"),
        (0o660, (0, 1), "chmod 640"),
        (0o640, (1, 1), "chmod 600"),
        (0o400, (1, 1), None),
    ],
)
def test_a_key_that_others_can_read_is_refused(
    tmp_path: Path, mode: int, owner: tuple[int, int], mend: str | None
) -> None:
    """A group may read what root keeps for it; any other right of others is told with the command that takes it."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    key = tmp_path / "key.pem"
    key.write_text(KEY)
    key.chmod(mode)
    os.chown(key, *owner)
    said = judge(tmp_path, LEAF, KEY)
    assert said == (f"KEYSTEAD_TLS_KEY {key}: others can read or write it: run `{mend} {key}`" if mend else None)
    if mend:
        subprocess.run([*mend.split(), str(key)], check=True)
        assert judge(tmp_path, LEAF, KEY) is None


TRIES = """
import os, sys
from pathlib import Path
from keystead.server import tls

os.chdir(sys.argv[1])
os.environ["PYTHONPATH"] = sys.argv[1]
tls.copied(Path("cert.pem"), Path("key.pem"))
"""


def test_a_trial_is_this_program_alone(tmp_path: Path) -> None:
    """Neither the current folder nor PYTHONPATH, with a `keystead` and an `ssl` of their own, decides who judges."""
    judge(tmp_path, LEAF, KEY)
    for name in ("keystead", "ssl", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of somebody else')\n")
    environ = {"PATH": os.defpath, "PYTHONPATH": str(Path(tls.__file__).parents[2])}
    command = [sys.executable, "-P", "-c", TRIES, str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_copy_holds_what_counts(tmp_path: Path) -> None:
    """The certificates in the order of their file, and the key; nothing of what was around them."""
    judge(tmp_path, f"{BOM}{LEAF}text{ROOT}".replace("\n", "\r\n"), PARAMETERS + KEY)
    copy = tls.copied(tmp_path / "cert.pem", tmp_path / "key.pem")
    try:
        assert Path(tls.path(copy)).read_text() == LEAF + ROOT + KEY
    finally:
        os.close(copy)
