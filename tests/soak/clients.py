"""Clients that create, attach, renew and delete, and that write down every answer before they ask for more."""

import contextlib
import hashlib
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from support.authority import Authority, pem
from support.world import BODY

Json = dict[str, Any]
# Seconds after which a request whose outcome is still unknown is given up, and the soak has failed.
PATIENCE = 120.0
MOST_CERTIFICATES = 8


class StillUnknownError(Exception):
    """A request's outcome is still unknown after PATIENCE."""


class Answer(msgspec.Struct, omit_defaults=True):
    """One line of the log: one try of a request; `status` is 0 when no answer came.

    `request` is the same for all tries of one request. `digest` is the SHA-256 of the public key that a CSR came with,
    or of the certificate that was sent. `path` is the list that the thing is in.
    """

    what: str
    path: str
    request: str = ""
    began: float = 0
    ended: float = 0
    status: int = 0
    code: int = 0
    retry_after: str = ""
    id: str = ""
    key: str = ""
    digest: str = ""
    csr_id: str = ""

    @property
    def is_unknown(self) -> bool:
        return self.status == 0 or self.status >= 500

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Log:
    """Where answers are appended; `successes` counts those that a client was glad of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.successes = 0
        self._turn = threading.Lock()

    def add(self, answer: Answer) -> None:
        with self._turn, self.path.open("ab") as file:
            file.write(msgspec.json.encode(answer) + b"\n")
            self.successes += answer.is_success

    def read(self) -> list[Answer]:
        return [msgspec.json.decode(line, type=Answer) for line in self.path.read_bytes().splitlines()]


class Place(msgspec.Struct):
    """Where the server is, and who asks it."""

    url: str
    bearer: dict[str, str]
    account_path: str
    zone_path: str
    certificates_path: str
    ca: Authority


class Csr(msgspec.Struct):
    id: str
    path: str
    key: str
    body: Json
    pem: str


class Certificate(msgspec.Struct):
    id: str
    csr: Csr


class Client:
    """One client with things of its own, so that it knows what each answer must be."""

    def __init__(self, name: str, place: Place, log: Log, seed: str, ending: threading.Event) -> None:
        self.name = name
        self.place = place
        self.log = log
        self.random = random.Random(seed)
        self.ending = ending
        self.count = 0
        self.free: list[Csr] = []
        self.gone: list[Csr] = []
        self.certificates: list[Certificate] = []
        self.http = httpx.Client(base_url=place.url, headers=place.bearer, timeout=30)

    def work(self) -> None:
        """Ask until it is to end, or until a request's outcome stays unknown, which the log then shows."""
        steps = (self.create, self.repeat, self.reuse, self.attach, self.renew, self.delete_csr, self.delete)
        with self.http, contextlib.suppress(StillUnknownError):
            # Each kind of request once, however short the soak is.
            for step in (self.create, self.create, self.create, *steps, self.attach, self.renew):
                step()
            while not self.ending.is_set():
                if len(self.free) < 3:
                    self.create()
                elif len(self.certificates) > MOST_CERTIFICATES:
                    self.delete()
                else:
                    self.random.choices(steps, (30, 8, 2, 15, 20, 15, 8))[0]()

    def create(self) -> None:
        key = f"{self.name}-{self.count}"
        key_type = "rsa2048" if self.random.random() < 0.2 else "p256v1"
        body = {**BODY, "name": key, "sans": [f"{key}.example.com"], "key_type": key_type}
        path = self.random.choice((self.place.account_path, self.place.zone_path))
        made = self.ask(Answer("create", path, key=key), "POST", path, body)
        if made:
            self.free.append(Csr(made["id"], path, key, body, made["csr"]))

    def repeat(self) -> None:
        """Ask again for what was made, also when it is deleted by now."""
        csr = self.random.choice([*self.free, *self.gone[-20:]])
        what = "repeat" if csr in self.free else "repeat of a deleted one"
        self.ask(Answer(what, csr.path, key=csr.key), "POST", csr.path, csr.body)

    def reuse(self) -> None:
        """Send a key again with another body."""
        csr = self.random.choice(self.free)
        another = {**csr.body, "description": "another body"}
        self.ask(Answer("another body", csr.path, key=csr.key), "POST", csr.path, another)

    def attach(self) -> None:
        csr = self.free.pop(self.random.randrange(len(self.free)))
        body, digest = self._signed(csr)
        path = self.place.certificates_path
        key = f"attach-{self.name}-{self.count}"
        answer = Answer("attach", path, key=key, digest=digest, csr_id=csr.id)
        made = self.ask(answer, "POST", path, body)
        if made:
            self.certificates.append(Certificate(made["id"], csr))

    def _signed(self, csr: Csr) -> tuple[Json, str]:
        certificate = self.place.ca.of_csr(csr.pem)
        body = {"certificate": pem(certificate), "custom_csr_id": csr.id}
        return body, certificate.fingerprint(hashes.SHA256()).hex()

    def renew(self) -> None:
        """Renew with the same CSR, or with another one, which frees the one before."""
        if not self.certificates:
            return
        certificate = self.random.choice(self.certificates)
        csr = certificate.csr if self.random.random() < 0.5 else self.random.choice(self.free)
        body, digest = self._signed(csr)
        path = self.place.certificates_path
        answer = Answer("renew", path, id=certificate.id, digest=digest, csr_id=csr.id)
        if self.ask(answer, "PATCH", f"{path}/{certificate.id}", body) and csr is not certificate.csr:
            self.free.remove(csr)
            self.free.append(certificate.csr)
            certificate.csr = csr

    def delete_csr(self) -> None:
        """Delete a CSR, and now and then try one whose key a certificate uses."""
        if self.certificates and self.random.random() < 0.1:
            csr = self.random.choice(self.certificates).csr
            self.ask(Answer("delete in use", csr.path, id=csr.id), "DELETE", f"{csr.path}/{csr.id}")
            return
        csr = self.free.pop(self.random.randrange(len(self.free)))
        self.ask(Answer("delete CSR", csr.path, id=csr.id), "DELETE", f"{csr.path}/{csr.id}")
        self.gone.append(csr)

    def delete(self) -> None:
        if not self.certificates:
            return
        certificate = self.certificates.pop(self.random.randrange(len(self.certificates)))
        path = self.place.certificates_path
        answer = Answer("delete certificate", path, id=certificate.id)
        self.ask(answer, "DELETE", f"{path}/{certificate.id}")
        self.free.append(certificate.csr)

    def ask(self, blank: Answer, method: str, path: str, body: Json | None = None) -> Any:
        """The result of a request, which is repeated until its outcome is known; None when it was refused."""
        blank.request = f"{self.name}-{self.count}"
        self.count += 1
        deadline = time.monotonic() + PATIENCE
        while True:
            answer, result = self._try(msgspec.structs.replace(blank), method, path, body)
            self.log.add(answer)
            if not answer.is_unknown:
                return result
            if time.monotonic() > deadline:
                raise StillUnknownError(blank.request)
            time.sleep(self.random.uniform(0.02, 0.2))

    def _try(self, answer: Answer, method: str, path: str, body: Json | None) -> tuple[Answer, Any]:
        headers = {"Idempotency-Key": answer.key} if answer.key else {}
        answer.began = time.monotonic()
        try:
            got = self.http.request(method, path, json=body, headers=headers)
        except httpx.TransportError:
            answer.ended = time.monotonic()
            return answer, None
        answer.ended = time.monotonic()
        answer.status = got.status_code
        answer.retry_after = got.headers.get("retry-after", "")
        if not got.headers.get("content-type", "").startswith("application/json"):
            return answer, None
        told = got.json()
        result = told["result"]
        answer.code = told["errors"][0]["code"] if told["errors"] else 0
        if isinstance(result, dict):
            answer.id = result["id"]
            answer.digest = answer.digest or (spki(result["csr"]) if "csr" in result else "")
        return answer, result


def spki(csr: str) -> str:
    key = x509.load_pem_x509_csr(csr.encode()).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
