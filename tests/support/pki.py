"""A CA over the API, and what OpenSSL, GnuTLS and its own bytes say of what it signs."""

import asyncio
import subprocess
import tempfile
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import (
    NameOID,
)
from support.authority import Key, csr_of, pem, root
from support.csr_judges import run
from support.tools import tool
from support.world import World

Json = dict[str, Any]
T = TypeVar("T")
Thing = x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList
BASE = "/api/v1/pki"
HOST = "www.example.com"
SECONDS = 60.0
P256 = "EC_prime256v1"
# Only the public half of these goes into certificates, so one of each kind does for all tests.
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
# One of each kind that signs, and a CA with it.
KEYS: tuple[Key, ...] = (*(ec.generate_private_key(c()) for c in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)), RSA_KEY)
ISSUERS = {key: root(key=key).certificate for key in KEYS}

NAME: Json = {
    "commonName": "Example CA",
    "organization": "Example, Inc.",
    "ou": "Engineering",
    "country": "US",
    "province": "California",
    "locality": "San Francisco",
}

# Extensions by their OID: of 2.5.29, and id-pe-authorityInfoAccess.
SKI, KEY_USAGE, SAN, BASIC, CRL_NUMBER, CDP, AKI, EXTENDED = (
    f"551d{number:02x}" for number in (14, 15, 17, 19, 20, 31, 35, 37)
)

DIGITAL_SIGNATURE, DIGITAL_SIGNATURE_KEY_ENCIPHERMENT = "03020780", "030205a0"
SERVER_AUTH = "300a06082b06010505070301"


class Node(NamedTuple):
    """A DER element: its tag, all of its bytes, and those within."""

    tag: int
    whole: bytes
    content: bytes


def nodes(text: bytes) -> list[Node]:
    """DER elements one after the other, read here, since libraries call names equal whose bytes differ."""
    found, start = [], 0
    while start < len(text):
        length, head = text[start + 1], 2
        if length & 0x80:
            head += length & 0x7F
            length = int.from_bytes(text[start + 2 : start + head], "big")
        end = start + head + length
        assert end <= len(text)
        found.append(Node(text[start], text[start:end], text[start + head : end]))
        start = end
    return found


def der(thing: Thing) -> bytes:
    return thing.public_bytes(serialization.Encoding.DER)


def signed_fields(thing: Thing) -> list[Node]:
    """The elements of what a signature is made over."""
    (outer,) = nodes(der(thing))
    return nodes(nodes(outer.content)[0].content)


def extensions_of(node: Node) -> dict[str, tuple[bool, str]]:
    """Whether each is critical, and its value in hex; none may stand there twice."""
    found = {}
    (listed,) = nodes(node.content)
    for each in nodes(listed.content):
        oid, *flags, value = nodes(each.content)
        assert oid.content.hex() not in found
        # DER leaves the default FALSE out.
        assert [flag.whole.hex() for flag in flags] in ([], ["0101ff"])
        found[oid.content.hex()] = bool(flags), value.content.hex()
    return found


def extensions(certificate: x509.Certificate) -> dict[str, tuple[bool, str]]:
    return extensions_of(signed_fields(certificate)[7])


def sans(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


class Signed(msgspec.Struct):
    """What a CA signed; `chain` goes from the CA's certificate to the root."""

    leaf: x509.Certificate
    chain: list[x509.Certificate]
    serial: str


class Pki(msgspec.Struct):
    """The CAs of one project over the API."""

    http: httpx.AsyncClient
    project: str
    headers: dict[str, str]

    async def ask(self, method: str, tail: str, body: Json | None = None) -> httpx.Response:
        return await self.http.request(method, BASE + tail, json=body, headers=self.headers)

    async def told(self, method: str, tail: str, body: Json | None = None) -> Any:
        answer = await self.ask(method, tail, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, method: str, tail: str, body: Json | None = None) -> str:
        """The sentence of a 400."""
        answer = await self.ask(method, tail, body)
        assert answer.status_code == 400, answer.text
        said: str = answer.json()["message"]
        return said

    async def make(self, kind: str, **fields: Any) -> str:
        """A new CA's id."""
        named = fields if set(fields) & {*NAME} else {**fields, "commonName": f"Example {kind}"}
        body = {"projectSlug": self.project, "type": kind, "keyAlgorithm": P256, **named}
        made: str = (await self.told("POST", "/ca", body))["ca"]["id"]
        return made

    async def root(self, **fields: Any) -> str:
        return await self.make("root", **fields)

    async def ca(self, ca_id: str) -> Json:
        found: Json = (await self.told("GET", f"/ca/{ca_id}"))["ca"]
        return found

    async def csr(self, ca_id: str) -> str:
        answer = await self.told("GET", f"/ca/{ca_id}/csr")
        assert set(answer) == {"csr"}
        text: str = answer["csr"]
        return text

    async def sign_intermediate(self, parent: str, csr: str, **fields: Any) -> Signed:
        body = {"csr": csr, "notAfter": in_days(1000), **fields}
        return signed(await self.told("POST", f"/ca/{parent}/sign-intermediate", body))

    async def import_(self, ca_id: str, made: Signed) -> httpx.Response:
        body = {"certificate": pem(made.leaf), "certificateChain": pem(*made.chain)}
        return await self.ask("POST", f"/ca/{ca_id}/import-certificate", body)

    async def intermediate(self, parent: str, /, signing: Json | None = None, **fields: Any) -> str:
        """A CA below another one: made, signed and imported."""
        ca_id = await self.make("intermediate", **fields)
        made = await self.sign_intermediate(parent, await self.csr(ca_id), **(signing or {}))
        imported = await self.import_(ca_id, made)
        assert imported.status_code == 200, imported.text
        assert imported.json() == {"message": "Successfully imported certificate to CA", "caId": ca_id}
        ca = await self.ca(ca_id)
        assert (ca["status"], ca["parentCaId"]) == ("active", parent)
        return ca_id

    async def installed(self, ca_id: str) -> Signed:
        """The CA's own certificate and what is above it."""
        return signed(await self.told("GET", f"/ca/{ca_id}/certificate"))

    async def certificate(self, ca_id: str) -> x509.Certificate:
        return (await self.installed(ca_id)).leaf

    async def sign(self, ca_id: str, csr: str = "", **fields: Any) -> Signed:
        body = {"csr": csr or csr_of(EC_KEY, HOST), **({} if "notAfter" in fields else {"ttl": "90d"}), **fields}
        answer = await self.told("POST", f"/ca/{ca_id}/sign-certificate", body)
        made = signed(answer)
        assert x509.load_pem_x509_certificate(answer["issuingCaCertificate"].encode()) == made.chain[0]
        return made

    async def revoke(self, serial: str, reason: str = "UNSPECIFIED") -> Json:
        told: Json = await self.told("POST", f"/certificates/{serial}/revoke", {"revocationReason": reason})
        return told

    async def anonymous(self, path: str) -> httpx.Response:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "public, max-age=300"
        return answer

    async def crl(self, ca_id: str) -> x509.CertificateRevocationList:
        """The CRL as anybody gets it."""
        answer = await self.anonymous(f"{BASE}/crl/{ca_id}/der")
        assert answer.headers["content-type"] == "application/pkix-crl"
        return x509.load_der_x509_crl(answer.content)


def signed(answer: Json) -> Signed:
    texts = answer["certificate"], answer["certificateChain"]
    assert not any(text.endswith("\n") for text in texts)
    chain = x509.load_pem_x509_certificates(texts[1].encode()) if texts[1] else []
    return Signed(x509.load_pem_x509_certificate(texts[0].encode()), chain, answer["serialNumber"])


async def all_of(*work: Awaitable[T]) -> list[T]:
    """All at once, and the results in their order."""
    return list(await asyncio.gather(*work))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def in_days(days: float) -> str:
    return f"{now() + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def request(key: Key, name: x509.Name, *added: x509.ExtensionType) -> str:
    """A CSR with any name and any extensions."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension in added:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def names(*found: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(found)


def by_openssl(made: Signed, *words: str, purpose: str = "sslserver", crls: str = "") -> tuple[bool, str]:
    """OpenSSL's verdict and its words, with the last of the chain as the only trust."""
    *between, top = made.chain
    with tempfile.TemporaryDirectory() as name:
        texts = {"leaf": pem(made.leaf), "between": pem(*between), "root": pem(top), "crls": crls}
        for file, text in texts.items():
            Path(name, file).write_text(text)
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-trusted", f"{name}/root", *words]
        command += ["-untrusted", f"{name}/between"] if between else []
        command += ["-CRLfile", f"{name}/crls"] if crls else []
        done = subprocess.run([*command, f"{name}/leaf"], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def by_gnutls(made: Signed, *words: str, crls: str = "") -> tuple[bool, str]:
    """GnuTLS's verdict and its words, with the last of the chain as the only trust."""
    *between, top = made.chain
    with tempfile.TemporaryDirectory() as name:
        for file, text in {"root": pem(top), "crls": crls}.items():
            Path(name, file).write_text(text)
        command = [tool("certtool"), "--verify", "--load-ca-certificate", f"{name}/root", *words]
        command += ["--load-crl", f"{name}/crls"] if crls else []
        text = pem(made.leaf, *between)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    # It says the like of each certificate, and of the whole chain last.
    trusted = "Chain verification output: Verified. The certificate is trusted." in said
    assert trusted is (done.returncode == 0), said
    return trusted, said


def crl_pem(*crls: x509.CertificateRevocationList) -> str:
    return "".join(crl.public_bytes(serialization.Encoding.PEM).decode() for crl in crls)


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def serials_of(crl: x509.CertificateRevocationList) -> list[str]:
    return [f"{entry.serial_number:040x}" for entry in crl]


async def days_pass(world: World, ca_id: str, days: int) -> None:
    """Move what a CA has signed into the past."""
    for table, columns in (("crls", "this_update next_update"), ("issued_certificates", "not_before not_after")):
        moved = ", ".join(f"{column} = {column} - make_interval(days => $2)" for column in columns.split())
        await world.database.execute(f"UPDATE {table} SET {moved} WHERE ca_id = $1", UUID(ca_id), days)


def assert_crl_verifies(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    """OpenSSL and GnuTLS find the CA's signature on it."""
    with tempfile.TemporaryDirectory() as name:
        ca = Path(name, "ca.pem")
        ca.write_text(pem(issuer))
        text = crl_pem(crl)
        assert "verify OK" in run("openssl", "crl", "-verify", "-CAfile", str(ca), "-noout", text=text)
        assert "Verified" in run(tool("certtool"), "--verify-crl", "--load-ca-certificate", str(ca), text=text)


HALF_LIFE = """
UPDATE crls SET this_update = this_update - interval '4 days', next_update = next_update - interval '4 days'
WHERE ca_id = $1
"""
