"""The private CA: signing, issuing with a key, reading, revoking, and the CRL."""

import asyncio
from uuid import UUID

import asyncpg
import httpx
import msgspec
import uvloop
from bench import cfssl
from bench.costs import ISSUED_ROWS
from bench.driver import closed_loop
from bench.gets import port_of, reference
from bench.measuring import JSON, Bench, Json, Load, Side, script
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import csr_of

from keystead.identity import policies

HOST = "www.example.com"
ENTRIES, AT_ONCE, REVOKED = 1000, 16, 320
_GROUPS = ("Private CA Write", "Private CA Sign", "Private CA Issue Key", "Account: SSL and Certificates Read")


class Ca(msgspec.Struct, frozen=True):
    """A root with a P-256 key, and who may do all with it and reads CSRs too."""

    id: str
    url: str
    certificates: str
    auth: str

    def post(self, call: str, body: Json) -> Json:
        return _post(f"{self.url}/{call}", self.auth, body)

    def leaf(self) -> Json:
        return self.post("issue-certificate", {"commonName": HOST, "ttl": "90d"})


def _post(url: str, auth: str, body: Json) -> Json:
    name, _, value = auth.partition(": ")
    answer = httpx.post(url, json=body, headers={name: value})
    answer.raise_for_status()
    found: Json = answer.json()
    return found


def _token(bench: Bench) -> str:
    """The header of a token that is allowed to issue with a key, as none is unless it says so."""
    groups = [{"id": policies.find_group(name).id.hex} for name in _GROUPS]
    resources = {f"com.cloudflare.api.account.{bench.account}": "*"}
    policy = {"effect": "allow", "resources": resources, "permission_groups": groups}
    url = f"{bench.live.url}/client/v4/accounts/{bench.account}/tokens"
    made = httpx.post(url, json={"name": "bench", "policies": [policy]}, headers=bench.older)
    made.raise_for_status()
    return f"Authorization: Bearer {made.json()['result']['value']}"


def new_ca(bench: Bench, auth: str = "") -> Ca:
    """A root, of a new token unless there is one."""
    auth = auth or _token(bench)
    pki = f"{bench.live.url}/api/v1/pki"
    body = {"projectSlug": "default", "type": "root", "commonName": "Bench CA", "keyAlgorithm": "EC_prime256v1"}
    ca_id = _post(f"{pki}/ca", auth, body)["ca"]["id"]
    return Ca(ca_id, f"{pki}/ca/{ca_id}", f"{pki}/certificates", auth)


def sign_request() -> Json:
    return {"csr": csr_of(ec.generate_private_key(ec.SECP256R1()), HOST), "ttl": "90d"}


def sign(bench: Bench) -> None:
    """A CSR with a P-256 key."""
    ca, asked = new_ca(bench), sign_request()
    lua = script(bench.folder, "sign", asked, ca.auth)
    ours = bench.ours(lambda: bench.wrk(f"{ca.url}/sign-certificate", script=lua))
    ours.load()
    body = cfssl.signed({"certificate_request": asked["csr"], "hosts": [HOST]})
    cfssl.duel(bench, "sign a P-256 CSR", ours, "authsign", body, "≥ 0.18, aim 0.25; CPU ≤ 2,000 µs, aim 1,350")
    bench.peers("sign", "sign a P-256 CSR", ours)


def issue(bench: Bench) -> None:
    """A certificate with a new P-256 key, which is given away."""
    ca = new_ca(bench)
    lua = script(bench.folder, "issue", {"commonName": HOST, "ttl": "90d"}, ca.auth)
    ours = bench.ours(lambda: bench.wrk(f"{ca.url}/issue-certificate", script=lua))
    ours.load()
    body = {"request": {"hosts": [HOST], "CN": HOST, "key": {"algo": "ecdsa", "size": 256}}}
    cfssl.duel(bench, "issue with a P-256 key", ours, "newcert", body, "CPU ≤ 2,200 µs, aim 1,600")
    bench.peers("issue", "issue with a P-256 key", ours)


def serial(bench: Bench) -> None:
    ca, csr = new_ca(bench), bench.new_csr()
    one = f"{ca.certificates}/{ca.leaf()['serialNumber']}"
    ours = bench.ours(lambda: bench.wrk(one, ca.auth))
    beside = bench.ours(lambda: bench.wrk(csr, ca.auth))
    ours.load()
    bench.duel("GET certificate by serial / our GET CSR by id", ours, beside, "≥ 0.8, aim 1.0")
    bench.peers("serial", "GET certificate by serial", ours)


async def _write(bench: Bench, ca: Ca) -> list[str]:
    """The serials of certificates to be revoked, of a CA that has revoked others already."""
    connection = await asyncpg.connect(bench.live.database_url)
    ids = (UUID(bench.account), UUID(ca.id))
    await connection.execute(ISSUED_ROWS, *ids, ENTRIES + REVOKED, "90 days", ENTRIES)
    sql = "SELECT serial FROM issued_certificates WHERE account_id = $1 AND ca_id = $2 AND profile = 'leaf'"
    found = await connection.fetch(f"{sql} AND revoked_at IS NULL", *ids)
    await connection.execute("VACUUM ANALYZE issued_certificates")
    await connection.close()
    return [str(row["serial"]) for row in found]


def _full_ca(bench: Bench, auth: str) -> tuple[Ca, list[str]]:
    """A CA with a thousand certificates on its CRL, which is signed already, and others of its serials."""
    ca = new_ca(bench, auth)
    first, *serials = asyncio.run(_write(bench, ca))
    _post(f"{ca.certificates}/{first}/revoke", auth, {"revocationReason": "SUPERSEDED"})
    return ca, serials


def revoke(bench: Bench) -> None:
    """Sixteen at once, each round at a CA of its own."""
    auth, rounds = _token(bench), range(bench.options.rounds)
    ours, theirs = ([_full_ca(bench, auth) for _ in rounds] for _ in range(2))

    def load(url: str, prepared: list[tuple[Ca, list[str]]]) -> Load:
        _, serials = prepared.pop()
        requests = [_revocation(url.format(each), auth) for each in serials]
        seconds, times = uvloop.run(closed_loop(port_of(url), requests, AT_ONCE))
        return Load(len(times), len(times) / seconds)

    mine = bench.ours(lambda: load(f"{ours[0][0].certificates}/{{}}/revoke", ours))
    with reference(bench, bench.account) as (bare, processes):
        beside = Side(lambda: load(f"{bare}/revoke/{{}}", theirs), processes)
        scene = f"revoke, {AT_ONCE} at once, {ENTRIES:,} entries / (b) with one UPDATE, no CRL"
        bench.duel(scene, mine, beside, "CPU ≤ 4,000 µs, aim 2,000")


def _revocation(url: str, auth: str) -> bytes:
    path, body = url.partition("//")[2].partition("/")[2], '{"revocationReason":"SUPERSEDED"}'
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n{JSON}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def crl(bench: Bench) -> None:
    """The CRL as who relies on a certificate fetches it."""
    ca, _ = _full_ca(bench, _token(bench))
    url = f"{bench.live.url}/api/v1/pki/crl/{ca.id}/der"
    answer = httpx.get(url)
    answer.raise_for_status()
    ours = bench.ours(lambda: bench.wrk(url))
    with reference(bench, bench.account, answer.content) as (bare, processes):
        theirs = Side(lambda: bench.wrk(f"{bare}/bare"), processes[:1])
        ours.load()
        bench.duel(f"GET the CRL, {ENTRIES:,} entries / (a) bare ASGI, the same bytes", ours, theirs)
    bench.peers("crl", "GET the CRL", ours)
