"""Odd certificates, keys and CSRs (tests/support/corpus.py), judged by OpenSSL and GnuTLS, and by a TLS client."""

import contextlib
import functools
import hashlib
import json
import re
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support import corpus, handmade
from support.corpus import Case, Kind
from support.tools import tool
from support.world import World

from keystead.ca import leaves
from keystead.certificates import store as certificates
from keystead.certificates.export import export
from keystead.errors import Invalid, Refusal
from keystead.server import first_start
from keystead.x509 import certificate as certificate_bytes
from keystead.x509 import chains, keys, paths, pkix
from keystead.x509.names import NamePolicy

SECOND = timedelta(seconds=1)


class Taken(msgspec.Struct, frozen=True):
    """What a web server would be given, in PEM.

    `named` when it is for handmade.HOST, `force` where nobody promised that the chain verifies.
    """

    chain: str
    private_key: str
    roots: tuple[bytes, ...]
    named: bool
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


def anchors_of(case: Case) -> bytes:
    """The file of trusted certificates."""
    return "".join(map(handmade.pem, case.roots)).encode() if case.anchors is None else case.anchors


def _key_pem(case: Case) -> str:
    key = case.key or corpus.KEY
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _chain(case: Case) -> Verdict:
    now = datetime.now(UTC)
    sent = chains.read(read_text(case.sent))
    # Where there is no private key, as for numbers that are no key, whoever uploads has to send another one.
    expected = hashlib.sha256(handmade.spki(case.key or corpus.KEY)).digest()
    bundle = chains.arrange(sent, expected)
    facts = chains.facts(bundle.leaf)
    if chains.spki_digest(bundle.leaf) != expected:
        return Verdict("the certificate's public key is not that of the private key.")
    chains.judge_leaf(bundle.leaf, now)
    if case.force:
        above = tuple(certificate for certificate in sent if certificate is not bundle.leaf)
    else:
        trusted = chains.anchors([anchors_of(case)])
        above = paths.verify(bundle, trusted, now)
    keys.read_pem(_key_pem(case))
    named = handmade.HOST in facts.hosts
    return Verdict("", Taken(chains.pem([bundle.leaf, *above]), _key_pem(case), case.roots, named, case.force))


def _key(case: Case) -> Verdict:
    pair = keys.read_pem(read_text(case.sent))
    # As the operator's export writes it, after what the seal keeps.
    private_key = keys.pem(keys.load(keys.pkcs8(pair.private_key)))
    chain = handmade.pem(corpus.leaf(key_info=pair.spki)) + handmade.pem(corpus.MIDDLE.der)
    return Verdict("", Taken(chain, private_key, (corpus.ROOT.der,), named=True))


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
        sans=leaves._checked(sans, NamePolicy.PRIVATE),
    )
    assert isinstance(corpus.MIDDLE.key, ec.EllipticCurvePrivateKey)
    made = x509.load_der_x509_certificate(certificate_bytes.signed(meant, corpus.MIDDLE.key))
    chain = chains.pem([made, *chains.read(handmade.pem(corpus.MIDDLE.der))])
    named = x509.DNSName(handmade.HOST) in sans
    return Verdict("", Taken(chain, _key_pem(case), (corpus.ROOT.der,), named))


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
            roots = self._file("roots", anchors_of(case))
            files = ("-no-CApath", "-no-CAstore", "-CAfile", roots, "-untrusted", sent, first)
            return self._run("openssl", "verify", "-partial_chain", "-purpose", "sslserver", *files).returncode == 0
        if case.kind is Kind.KEY:
            words = ("-in", sent, "-noout", "-check", "-passin", "pass:")
            return self._run("openssl", "pkey", *words).returncode == 0
        done = self._run("openssl", "req", "-verify", "-noout", "-in", sent)
        return done.returncode == 0 and b"verify OK" in done.stderr + done.stdout

    def gnutls(self, case: Case) -> bool:
        if case.kind is Kind.CHAIN:
            sent = self._file("sent", (case.leaf or b"") + case.sent)
            roots = self._file("roots", anchors_of(case))
            words = ("--load-ca-certificate", roots, "--infile", sent, "--verify-purpose", handmade.SERVER_AUTH)
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
        client.check_hostname = taken.named and not taken.force
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
        client.wrap_bio(down, up, server_hostname=handmade.HOST),
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


Judged: TypeAlias = tuple[tuple[Case, Verdict], ...]


FAULT = "a fault: "


@functools.cache
def judged(family: str) -> Judged:
    """What Keystead says of the cases of a family; of a reader that raises what it should not, FAULT and what it is."""
    found = []
    for case in corpus.FAMILIES[family]():
        try:
            verdict = keystead(case)
        except Exception as error:  # noqa: BLE001 - none is expected
            verdict = Verdict(f"{FAULT}{error!r}")
        found.append((case, verdict))
    return tuple(found)


PAGE = Path(__file__).parents[2] / "docs/cloudflare.md"
OTHER_PAGE = PAGE.with_name("infisical.md")
# What Keystead refuses though OpenSSL and GnuTLS take it: its text, and the sentence of a page that says so.
# Each text is looked for in this order.
DOCUMENTED = {
    # Names.
    "CN has [0-9]+ characters|C is .* and not two letters": "C that has not two letters, CN that is empty or has more",
    "is of no type of strings": "an attribute of a type that OpenSSL does not load",
    "has a (name with a )?control character": "a control character in the issuer's name, a host or",
    "PrintableString holds": "PrintableString or IA5String beyond ASCII",
    "has an empty part|has the same value twice": "a part of a name that is empty or has a value twice",
    "subject has more than 4096 bytes": "| Subjects | at most 4096 bytes |",
    "subjectAltName holds .* which is not ASCII|subject_alternative_name cannot be read": "or with what is not UTF-8",
    "x400Address|subjectAltName has an address of": "a subjectAltName with an x400Address or ediPartyName",
    "is not a hostname|has non-ASCII characters; write it as": "It is labels with dots between them",
    "is not a URI|is neither a host, an address": "hosts, addresses, emails, URIs; another kind is 400",
    "at most 150 are allowed": "at most 150 hosts, addresses, emails and URIs",
    "the common name is neither a host nor an address": "becomes the one name, if it is a host or an address",
    # Certificates and CSRs.
    "its version is": "version 2 or above 3",
    "its version number is": "a version number other than 0",
    "serial number is (0|negative)": "a serial number that is not positive, unless it is a CA's",
    "which is BER and not DER|ends too early": "BER: a SET that is not sorted, a length that is not the shortest",
    "signature_alg cannot be read": "parameters that an algorithm does not have",
    "has a year": "in the year 0",
    "has the extension .* twice": "an extension that comes twice",
    "more than one extension request": "more than one extension request in a CSR",
    "extendedKeyUsage is empty": "an empty extendedKeyUsage",
    "only CA certificates": "CA certificates alone are 2101",
    "the certificate expired": "it has not expired (1457)",
    "is signed with SHA1": "their own signature, which is not made with SHA-1 or older digests",
    # Keys.
    "is neither RSA nor on P-256": "curves are P-256, P-384 and P-521",
    "is RSA-[0-9]+; 2048 to 8192 bits": "RSA keys have 2048 to 8192 bits",
    "has the exponent": "an RSA exponent that is even, smaller than 65537 or longer than 64 bits",
    "is an RSA-PSS key": "RSA-PSS keys (id-RSASSA-PSS)",
    r"\(Fermat\)|ROCA": "of the ROCA shape (CVE-2017-15361), whose factors 100 rounds of Fermat's method find",
    "it cannot be read, or is not a valid key": "are longer than they have to be, or stand in a form of another",
    "public key is not that of the private key": "If there is none, the answer is 400/2200",
    # Chains and files.
    "was sent, but is not the issuer of .* as [A-Z].*String is named": "byte for byte, string types included",
    "more than 10 certificates above": "There are at most 10 above the leaf.",
    "more than 20 certificates": "at most 20",
    "the chain ends at": "One that is issued to its own issuer's name ends the chain",
    "holds a (private key|PEM block)": "a key, a CSR, a certificate or any other block where another is wanted",
    "is not one PEM block but several": "A CSR is one block, once.",
}
# What Keystead takes though a client does not: OpenSSL's text, and the sentence of a page that says so.
LEFT_TO_CLIENTS = {
    "not yet valid": "`status` is computed from the leaf's validity when it is asked for: `pending` before notBefore",
    "CA certificate key too weak|invalid CA certificate": "their keys and extensions are not checked,",
    "subtree violation": "Name constraints, certificate policies and revocation are not checked.",
}


def reason(text: str, table: dict[str, str]) -> str | None:
    return next((pattern for pattern in table if re.search(pattern, text)), None)


@pytest.mark.judges
@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_what_openssl_and_gnutls_take_is_taken_or_refused_for_a_reason_on_the_page(family: str, judge: Judge) -> None:
    """Nothing that both tools take is refused without a documented reason."""
    found = [
        f"{case!r}: {verdict.refusal}"
        for case, verdict in judged(family)
        if verdict.refusal and not reason(verdict.refusal, DOCUMENTED) and judge.gnutls(case) and judge.openssl(case)
    ]
    assert not found, "\n".join(found)


@pytest.mark.judges
@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_what_is_taken_can_be_served(family: str, judge: Judge) -> None:
    """A TLS server starts with what is taken, and a client verifies it, but for what a page leaves to clients."""
    found = []
    for case, verdict in judged(family):
        if verdict.taken is not None:
            trouble = judge.served(verdict.taken)
            if trouble and not reason(trouble, LEFT_TO_CLIENTS):
                found.append(f"{case!r}: {trouble}")
    assert not found, "\n".join(found)


@pytest.mark.judges
def test_every_reason_stands_on_a_page_and_is_given() -> None:
    """The pages have each sentence of the tables, and each text is one that some case gets."""
    pages = " ".join((PAGE.read_text() + OTHER_PAGE.read_text()).split())
    assert not [
        sentence for table in (DOCUMENTED, LEFT_TO_CLIENTS) for sentence in table.values() if sentence not in pages
    ]
    given = {reason(verdict.refusal, DOCUMENTED) for family in corpus.FAMILIES for _, verdict in judged(family)}
    assert set(DOCUMENTED) <= given, set(DOCUMENTED) - given


@pytest.mark.judges
def test_the_corpus_is_large_and_no_case_makes_a_reader_fail() -> None:
    """At least 300 cases, each with a name of its own, and each is taken or refused."""
    everything = {repr(case): verdict for family in corpus.FAMILIES for case, verdict in judged(family)}
    assert len(everything) == sum(len(judged(family)) for family in corpus.FAMILIES) >= 300
    assert not [f"{name}: {verdict.refusal}" for name, verdict in everything.items() if FAULT in verdict.refusal]


# Every so many cases one goes through the API itself.
STEP = 8


@pytest.mark.judges
async def test_the_api_answers_as_the_readers_do_and_its_export_is_served(world: World, judge: Judge) -> None:
    """A sample of certificates and keys: the same are taken over HTTP, and the export of each is served."""
    path = f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates"
    kinds = (Kind.CHAIN, Kind.KEY)
    sample = [each for family in corpus.FAMILIES for each in judged(family) if each[0].kind in kinds][::STEP]
    found = []
    for case, verdict in sample:
        world.trust(chains.anchors([anchors_of(case)] if case.roots else [handmade.pem(corpus.ROOT.der).encode()]))
        if case.kind is Kind.CHAIN:
            body = {"certificate": read_text(case.sent), "private_key": _key_pem(case)}
        else:
            taken = (
                verdict.taken
                or _key(corpus.key_case("", handmade.pem(handmade.pkcs8(corpus.KEY), "PRIVATE KEY"))).taken
            )
            assert taken is not None
            body = {"certificate": taken.chain, "private_key": read_text(case.sent)}
        body["bundle_method"] = "force" if case.force else "ubiquitous"
        answer = await world.http.post(path, content=json.dumps(body), headers=world.a.bearer)
        if answer.status_code not in {200, 400} or (answer.status_code == 400) != bool(verdict.refusal):
            found.append(f"{case!r}: {answer.status_code} {answer.text[:300]} for {verdict.refusal!r}")
        if answer.status_code == 200 and verdict.taken:
            stored = await certificates.find(world.database, answer.json()["result"]["id"])
            exported = await export(world.services, first_start.operator(), stored)
            trouble = judge.served(
                msgspec.structs.replace(verdict.taken, chain=exported.fullchain, private_key=exported.private_key)
            )
            if trouble and not reason(trouble, LEFT_TO_CLIENTS):
                found.append(f"{case!r}: {trouble}")
            # The next case may have the same certificate.
            await world.http.delete(f"{path}/{stored.id}", headers=world.a.bearer)
    assert not found, "\n".join(found)


@pytest.mark.judges
async def test_the_api_signs_the_csrs_that_the_reader_takes(world: World, judge: Judge) -> None:
    """A sample of CSRs: the same are signed over HTTP, and the certificate and its chain are served."""
    base = "/api/v1/pki/ca"
    named = {
        "projectSlug": world.a.account.slug,
        "type": "root",
        "keyAlgorithm": "EC_prime256v1",
        "commonName": "Corpus",
    }
    made = await world.http.post(base, json=named, headers=world.a.bearer)
    path = f"{base}/{made.json()['ca']['id']}/sign-certificate"
    sample = [each for family in corpus.FAMILIES for each in judged(family) if each[0].kind is Kind.CSR][::STEP]
    found = []
    for case, verdict in sample:
        body = json.dumps({"csr": read_text(case.sent), "ttl": "30d"})
        answer = await world.http.post(path, content=body, headers=world.a.bearer)
        if answer.status_code not in {200, 400} or (answer.status_code == 400) != bool(verdict.refusal):
            found.append(f"{case!r}: {answer.status_code} {answer.text[:300]} for {verdict.refusal!r}")
        if answer.status_code == 200 and verdict.taken:
            signed = answer.json()
            root = ssl.PEM_cert_to_DER_cert(signed["issuingCaCertificate"])
            trouble = judge.served(msgspec.structs.replace(verdict.taken, chain=signed["certificate"], roots=(root,)))
            if trouble:
                found.append(f"{case!r}: {trouble}")
    assert not found, "\n".join(found)
