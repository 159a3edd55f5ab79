"""Odd certificates, keys and CSRs (tests/corpus.py), judged by OpenSSL and GnuTLS, and by a TLS client."""

import contextlib
import functools
import hashlib
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import corpus
import msgspec
import pytest
from corpus import Case, Kind
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app import chains, keys, leaves, pkix
from app.errors import Invalid, Refusal
from app.model import NamePolicy

SECOND = timedelta(seconds=1)


class Taken(msgspec.Struct, frozen=True):
    """What a web server would be given, in PEM; `force` where nobody promised that a chain verifies."""

    chain: str
    private_key: str
    roots: tuple[bytes, ...]
    force: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """Of Keystead: `refusal` is its text, empty for what is taken. Without a key there is nothing to serve with."""

    refusal: str
    taken: Taken | None = None


def read_text(sent: bytes) -> str:
    """What a program that reads a file has in hand, before it writes it into JSON."""
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return sent.decode("latin-1")


def keystead(case: Case) -> Verdict:
    """What is said of a case by the readers that stand behind the API."""
    judges = {Kind.CHAIN: _chain, Kind.KEY: _key, Kind.CSR: _csr}
    try:
        return judges[case.kind](case)
    except (Invalid, keys.Unusable, pkix.BadCsr, Refusal) as error:
        return Verdict(str(error))


def _key_pem(case: Case) -> str:
    if case.key is None:
        return ""
    form = serialization.PrivateFormat.PKCS8
    return case.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _chain(case: Case) -> Verdict:
    now = datetime.now(UTC)
    sent = chains.read(read_text(case.sent))
    expected = hashlib.sha256(corpus.spki(case.key)).digest() if case.key else None
    bundle = chains.arrange(sent, expected)
    chains.facts(bundle.leaf)
    if expected and chains.spki_digest(bundle.leaf) != expected:
        return Verdict("the certificate's public key is not that of the private key.")
    chains.judge_leaf(bundle.leaf, now)
    if case.force:
        above = tuple(certificate for certificate in sent if certificate is not bundle.leaf)
    else:
        trusted = chains.anchors([corpus.pem(der).encode() for der in case.roots])
        above = chains.verify(bundle, trusted, now)
    return Verdict("", Taken(chains.pem([bundle.leaf, *above]), _key_pem(case), case.roots, case.force))


def _key(case: Case) -> Verdict:
    pair = keys.read_pem(read_text(case.sent))
    # As the operator's export writes it, after what the seal keeps.
    private_key = keys.pem(keys.load(keys.pkcs8(pair.private_key)))
    chain = corpus.pem(corpus.leaf(key_info=pair.spki)) + corpus.pem(corpus.MIDDLE.der)
    return Verdict("", Taken(chain, private_key, (corpus.ROOT.der,)))


def _csr(case: Case) -> Verdict:
    request = pkix.read_csr(read_text(case.sent))
    weakness = pkix.weakness(request.public_key)
    if weakness or request.public_key is None:
        return Verdict(weakness)
    sans = tuple(dict.fromkeys(request.sans)) or leaves._from(request.common_name)
    now = datetime.now(UTC).replace(microsecond=0)
    meant = pkix.ToSign(
        issuer=x509.load_der_x509_certificate(corpus.MIDDLE.der),
        subject=request.subject,
        public_key=request.public_key,
        serial=4711,
        not_before=now - SECOND,
        not_after=now + timedelta(days=30),
        ca=False,
        key_usages=leaves._usages((), rsa_key=isinstance(request.public_key, rsa.RSAPublicKey)),
        extended_key_usages=("serverAuth",),
        sans=leaves._judged(sans, NamePolicy.PRIVATE),
    )
    assert isinstance(corpus.MIDDLE.key, ec.EllipticCurvePrivateKey)
    made = pkix.certificate(meant, corpus.MIDDLE.key)
    chain = chains.pem([made, *chains.read(corpus.pem(corpus.MIDDLE.der))])
    return Verdict("", Taken(chain, _key_pem(case), (corpus.ROOT.der,)))


@functools.cache
def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and with CI=true every judge must be")
        pytest.skip(f"{name} is not installed")
    return path


class Judge:
    """Runs the tools on files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def _run(self, name: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        # A session of its own has no terminal to ask for a passphrase at.
        command = [tool(name), *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False, start_new_session=True
        )

    def openssl(self, case: Case) -> bool:
        sent = self._file("sent", case.sent)
        if case.kind is Kind.CHAIN:
            first = self._file("first", case.leaf or case.sent)
            roots = self._file("roots", "".join(map(corpus.pem, case.roots)).encode())
            words = ("-no-CApath", "-no-CAstore", "-CAfile", roots, "-untrusted", sent, first)
            return self._run("openssl", "verify", "-partial_chain", "-purpose", "sslserver", *words).returncode == 0
        if case.kind is Kind.KEY:
            words = ("-in", sent, "-noout", "-check", "-passin", "pass:")
            return self._run("openssl", "pkey", *words).returncode == 0
        done = self._run("openssl", "req", "-verify", "-noout", "-in", sent)
        return done.returncode == 0 and b"verify OK" in done.stderr + done.stdout

    def gnutls(self, case: Case) -> bool:
        if case.kind is Kind.CHAIN:
            sent = self._file("sent", (case.leaf or b"") + case.sent)
            roots = self._file("roots", "".join(map(corpus.pem, case.roots)).encode())
            words = ("--load-ca-certificate", roots, "--infile", sent, "--verify-purpose", corpus.SERVER_AUTH)
            return self._run("certtool", "--verify", *words).returncode == 0
        sent = self._file("sent", case.sent)
        if case.kind is Kind.KEY:
            return self._run("certtool", "--key-info", "--infile", sent).returncode == 0
        done = self._run("certtool", "--crq-info", "--infile", sent)
        return done.returncode == 0 and b"signature: verified" in done.stdout + done.stderr

    def served(self, taken: Taken) -> str:
        """Serve TLS with it, and connect; empty when the client is content, else what went wrong."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        if taken.force:
            client.verify_mode = ssl.CERT_NONE
        else:
            # An intermediate may be trusted, as Go and GnuTLS have it.
            client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            if not taken.force:
                client.load_verify_locations(cadata=b"".join(taken.roots))
            names = self._file("chain", taken.chain.encode()), self._file("key", taken.private_key.encode())
            server.load_cert_chain(*names)
            _handshake(server, client)
        except ssl.SSLError as error:
            return str(error)
        return ""


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """TLS in memory; raises SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=corpus.HOST),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                ends.remove(end)
        if not ends:
            return
    raise ssl.SSLError("the handshake does not end")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with tempfile.TemporaryDirectory() as folder:
        yield Judge(Path(folder))
