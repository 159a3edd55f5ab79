"""The private CA at its bounds: how much it reads, how deep it goes, what is revoked, and what is damaged."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support import authority
from support.authority import Authority, csr_of, pem
from support.pki import (
    BASE,
    DIGITAL_SIGNATURE,
    EC_KEY,
    EXTENDED,
    HOST,
    KEY_USAGE,
    RSA_KEY,
    Json,
    Pki,
    Signed,
    all_of,
    by_openssl,
    days_pass,
    extensions,
    in_days,
    now,
    number_of,
    sans,
    serials_of,
    signed,
)
from support.pki_limits import _REVOKED, TOO_DEEP, read_by_openssl
from support.world import World, make_token

from keystead.ca import authorities
from keystead.ca.lifecycle import MAX_CHAIN
from keystead.caller import Scope
from keystead.commands import cli
from keystead.errors import Refusal
from keystead.server import first_start
from keystead.x509 import pkix

TOO_LONG = "The requested path length constraint exceeds the CA's allowed path length: at most "
REVOKED = "CA certificate is revoked: by the CA above it"
RENEWAL: Json = {"type": "existing", "notAfter": "2065"}


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for this file: each test makes CAs of its own in it, and at the end all keys are looked for."""
    return shared_world


@pytest.fixture(scope="module")
async def bearer(world: World) -> dict[str, str]:
    """Of a token that may do everything with CAs, keys included."""
    groups = tuple(f"Private CA {word}" for word in ("Read", "Write", "Sign", "Issue Key"))
    token = await make_token(world.services, world.a.account, groups=groups)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def pki(world: World, bearer: dict[str, str]) -> Pki:
    return Pki(world.http, world.a.account.slug, bearer)


async def kept(world: World, ca_id: str) -> tuple[int, int]:
    """How many certificates a CA has signed, and how many it has had."""
    row = await world.database.fetchrow(
        "SELECT (SELECT count(*) FROM issued_certificates WHERE ca_id = $1) AS signed, "
        "(SELECT count(*) FROM ca_certificates WHERE ca_id = $1) AS had",
        UUID(ca_id),
    )
    assert row
    return row["signed"], row["had"]


def outside(name: str = "Outside", path_length: int | None = None) -> Authority:
    """A root of strangers."""
    made = authority.root(name)
    if path_length is None:
        return made
    public_key = made.key.public_key()
    own = made.sign(public_key, made.certificate.subject, ca=True, days=3650, since=400, path_length=path_length)
    return Authority(made.key, own)


def signed_by(
    strangers: Authority, csr: str, path_length: int | None = None, ski: bytes | None = None
) -> x509.Certificate:
    """What strangers make of the CSR of a CA of ours, with a key id of their choice."""
    request = x509.load_pem_x509_csr(csr.encode())
    public_key = request.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    if ski is None:
        return strangers.sign(public_key, request.subject, ca=True, days=3600, path_length=path_length)
    aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(strangers.key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(strangers.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=3600))
        .add_extension(x509.BasicConstraints(True, path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
        .add_extension(aki, critical=False)
        .sign(strangers.key, hashes.SHA256())
    )


async def from_outside(
    pki: Pki, ca_id: str, strangers: Authority, path_length: int | None = None, ski: bytes | None = None
) -> x509.Certificate:
    """Give a CA of ours a certificate of strangers."""
    own = signed_by(strangers, await pki.csr(ca_id), path_length, ski)
    answer = await pki.import_(ca_id, Signed(own, [strangers.certificate], ""))
    assert answer.status_code == 200, answer.text
    return own


@pytest.mark.parametrize(("minutes", "taken"), [(4, True), (6, False)])
async def test_an_imported_chain_may_begin_within_five_minutes(pki: Pki, minutes: int, taken: bool) -> None:
    """A clock may be ahead by less than five minutes; what begins later is refused with a reason after the colon."""
    strangers, ca_id = outside(), await pki.make("intermediate")
    young = strangers.intermediate("Young", since=-minutes / 1440)
    own = signed_by(young, await pki.csr(ca_id))
    answer = await pki.import_(ca_id, Signed(own, [young.certificate, strangers.certificate], ""))
    assert answer.status_code == (200 if taken else 400), answer.text
    if not taken:
        said = 'Invalid certificate chain: "CN=Young,O=Test Trust" in the chain is not valid now, but from '
        assert answer.json()["message"].startswith(said)


async def test_an_imported_chain_may_have_a_roots_twin_and_another_root(pki: Pki) -> None:
    """A root that was renewed with its key stands there twice, and a stranger's beside it: one way up is kept."""
    strangers, ca_id = outside(), await pki.make("intermediate")
    twin = strangers.sign(strangers.key.public_key(), strangers.certificate.subject, ca=True)
    middle = strangers.intermediate()
    own = signed_by(middle, await pki.csr(ca_id))
    sent = [outside("Another").certificate, twin, strangers.certificate, middle.certificate]
    answer = await pki.import_(ca_id, Signed(own, sent, ""))
    assert answer.status_code == 200, answer.text
    kept_above = (await pki.installed(ca_id)).chain
    assert kept_above[0] == middle.certificate
    assert len(kept_above) == 2
    assert kept_above[1] in (twin, strangers.certificate)


def message_of(answer: httpx.Response) -> str:
    """The sentence of a 400."""
    assert answer.status_code == 400, answer.text
    said: str = answer.json()["message"]
    return said


# How much is read.


@pytest.mark.parametrize("call", ["sign-certificate", "issue-certificate"])
async def test_too_many_names_are_refused_before_they_are_taken_apart(pki: Pki, world: World, call: str) -> None:
    """Thousands of commas, 151 names, and many that could not be written anyway: all of them are counted alone."""
    root = await pki.root()
    before = await kept(world, root)
    body: Json = {"commonName": HOST, "ttl": "90d"} | ({"csr": csr_of(EC_KEY, HOST)} if "sign" in call else {})
    for text in ("a," * 9_000, ",".join(f"h{i}.example.com" for i in range(151)), "é," * 300):
        said = await pki.refused("POST", f"/ca/{root}/{call}", {**body, "altNames": text})
        assert said.endswith("alternative names; at most 150 are allowed")
        assert len(said) < 200
    assert await kept(world, root) == before


async def test_as_many_names_as_are_allowed_are_signed(pki: Pki) -> None:
    """150 names, and each of them twice, are 150 names."""
    root = await pki.root()
    hosts = [f"h{i}.example.com" for i in range(150)]
    for text in (",".join(hosts), ",".join(host for host in hosts for _ in "ab")):
        made = await pki.sign(root, altNames=text)
        assert [name.value for name in sans(made.leaf)] == hosts


async def test_a_csr_is_read_up_to_128_kib(pki: Pki, world: World) -> None:
    """One character more and it is refused unread; what is around the block counts."""
    root = await pki.root()
    leaf, ca = csr_of(EC_KEY, HOST), csr_of(EC_KEY, "Below")
    before = await kept(world, root)
    for call, csr in (("sign-certificate", leaf), ("sign-intermediate", ca)):
        body = {"csr": csr.ljust(pkix.MAX_CSR + 1, "\n"), "notAfter": in_days(30)}
        said = await pki.refused("POST", f"/ca/{root}/{call}", body)
        assert said == f"The CSR has more than {128 * 1024} characters."
    assert await kept(world, root) == before
    await pki.sign(root, leaf.ljust(pkix.MAX_CSR, "\n"))
    await pki.sign_intermediate(root, ca.ljust(pkix.MAX_CSR, "\n"))


async def test_an_import_is_read_up_to_64_kib(pki: Pki, world: World) -> None:
    """Certificate and chain count together, and one character more is refused."""
    ca_id, strangers = await pki.make("intermediate"), outside()
    own = signed_by(strangers, await pki.csr(ca_id))
    texts = {"certificate": pem(own), "certificateChain": pem(strangers.certificate)}
    for field, text in texts.items():
        others = sum(map(len, texts.values())) - len(text)
        body = {**texts, field: text.ljust(MAX_CHAIN - others + 1, "\n")}
        said = await pki.refused("POST", f"/ca/{ca_id}/import-certificate", body)
        assert said == f"The certificate and its chain have more than {64 * 1024} characters"
    assert await kept(world, ca_id) == (0, 0)
    exact = {**texts, "certificate": texts["certificate"].ljust(MAX_CHAIN - len(texts["certificateChain"]), "\n")}
    await pki.told("POST", f"/ca/{ca_id}/import-certificate", exact)
    assert await kept(world, ca_id) == (0, 1)


async def test_a_ca_has_a_hundred_certificates_at_most(pki: Pki, world: World) -> None:
    """The hundredth is made and the next refused, whether it is renewed or imported; nothing is signed for it."""
    root, external, strangers = await pki.root(notAfter="2060"), await pki.make("intermediate"), outside()
    below = await pki.intermediate(root, commonName="Below")
    await from_outside(pki, external, strangers)
    ids = [UUID(each) for each in (root, below, external)]
    await world.database.execute("UPDATE ca_certificates SET version = 99 WHERE ca_id = ANY($1::uuid[])", ids)
    for ca_id, years in ((root, (2070, 2071)), (below, (2058, 2059))):
        await pki.told("POST", f"/ca/{ca_id}/renew", {"type": "existing", "notAfter": str(years[0])})
        before = [await kept(world, each) for each in (root, ca_id)]
        said = await pki.refused("POST", f"/ca/{ca_id}/renew", {"type": "existing", "notAfter": str(years[1])})
        assert said == "This CA has had 100 certificates; make a new one"
        assert [await kept(world, each) for each in (root, ca_id)] == before
    await from_outside(pki, external, strangers)
    again = Signed(signed_by(strangers, await pki.csr(external)), [strangers.certificate], "")
    assert message_of(await pki.import_(external, again)) == "This CA has had 100 certificates; make a new one"
    assert await kept(world, external) == (0, 2)


# A revoked CA.


async def revoked_intermediate(pki: Pki) -> tuple[str, str]:
    """A CA that its own root here has revoked, and the serial of what it signed before."""
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    leaf = await pki.sign(ca_id)
    await pki.revoke((await pki.installed(ca_id)).serial, "CA_COMPROMISE")
    return ca_id, leaf.serial


async def test_a_revoked_ca_signs_nothing_and_is_not_renewed(pki: Pki, world: World) -> None:
    """Neither leaves nor CAs, with a CSR or with a key made here; and no new certificate makes it good again."""
    ca_id, _ = await revoked_intermediate(pki)
    before = await kept(world, ca_id)
    asked: dict[str, Json] = {
        "sign-certificate": {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"},
        "issue-certificate": {"commonName": HOST, "ttl": "1d"},
        "sign-intermediate": {"csr": csr_of(EC_KEY, "Deeper"), "notAfter": in_days(30)},
        "renew": RENEWAL,
    }
    for call, body in asked.items():
        assert await pki.refused("POST", f"/ca/{ca_id}/{call}", body) == REVOKED, call
    assert await kept(world, ca_id) == before
    assert message_of(await pki.import_(ca_id, await pki.installed(ca_id)))
    assert await kept(world, ca_id) == before


async def test_a_ca_below_a_revoked_one_is_not_renewed(pki: Pki) -> None:
    """Its parent would have to sign, and a revoked CA does not."""
    root = await pki.root()
    middle = await pki.intermediate(root, commonName="Middle")
    below = await pki.intermediate(middle, {"notAfter": in_days(100)}, commonName="Below")
    await pki.revoke((await pki.installed(middle)).serial)
    assert await pki.refused("POST", f"/ca/{below}/renew", {"type": "existing", "notAfter": in_days(200)}) == REVOKED


async def test_a_certificate_that_was_revoked_is_not_imported(pki: Pki, world: World) -> None:
    """Whoever revokes it before it is installed, or gives its CA another one first, cannot bring it back."""
    root, strangers = await pki.root(), outside()
    for first in (False, True):
        ca_id = await pki.make("intermediate", commonName=f"Ours {first}")
        made = await pki.sign_intermediate(root, await pki.csr(ca_id))
        if first:
            await from_outside(pki, ca_id, strangers)
        await pki.revoke(made.serial)
        assert message_of(await pki.import_(ca_id, made)) == "The certificate is revoked"
        assert await kept(world, ca_id) == (0, int(first))


async def test_a_revoked_ca_can_be_switched_and_still_publishes(pki: Pki) -> None:
    """It is disabled and enabled as any other; its CRL is signed, and what it signed can still be revoked."""
    ca_id, leaf = await revoked_intermediate(pki)
    issuer = await pki.certificate(ca_id)
    for status in ("disabled", "active"):
        told = await pki.told("PATCH", f"/ca/{ca_id}", {"status": status})
        assert told["ca"]["status"] == status
    assert serials_of(await pki.crl(ca_id)) == []
    await pki.revoke(leaf)
    crl = await pki.crl(ca_id)
    assert serials_of(crl) == [leaf]
    public_key = issuer.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(public_key)
    assert await pki.refused("POST", f"/ca/{ca_id}/sign-certificate", {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"})


# How deep it goes.


async def test_a_renewal_keeps_within_the_parents_present_path_length(pki: Pki, world: World) -> None:
    """A parent that came back from outside with a bound binds what it signed before, too."""
    parent, strangers = await pki.make("intermediate", commonName="Parent"), outside()
    await from_outside(pki, parent, strangers)
    dates: Json = {"notAfter": in_days(100)}
    one = await pki.intermediate(parent, {**dates, "maxPathLength": 1}, commonName="One")
    any_ = await pki.intermediate(parent, dates, commonName="Any")
    assert (await pki.ca(any_))["maxPathLength"] == -1
    renewal = {"type": "existing", "notAfter": in_days(200)}
    await from_outside(pki, parent, strangers, 1)
    assert (await pki.refused("POST", f"/ca/{one}/renew", renewal)).startswith(TOO_LONG)
    told = signed(await pki.told("POST", f"/ca/{any_}/renew", renewal))
    assert told.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert by_openssl(await pki.sign(any_))[0]
    await from_outside(pki, parent, strangers, 0)
    before = await kept(world, parent)
    later = {"type": "existing", "notAfter": in_days(300)}
    for ca_id in (one, any_):
        assert (await pki.refused("POST", f"/ca/{ca_id}/renew", later)).startswith(TOO_DEEP)
    assert await kept(world, parent) == before
    await from_outside(pki, parent, strangers, 2)
    told = signed(await pki.told("POST", f"/ca/{one}/renew", later))
    assert told.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 1
    assert by_openssl(await pki.sign(one))[0]


def leaf_below(*path_lengths: int | None) -> Signed:
    """A leaf of strangers under as many CAs as there are bounds, the root's first."""
    last = outside("Top", path_lengths[0])
    chain = [last.certificate]
    for depth, bound in enumerate(path_lengths[1:]):
        last = last.intermediate(f"CA {depth}", path_length=bound)
        chain.insert(0, last.certificate)
    leaf = last.sign(EC_KEY.public_key(), authority.subject(HOST), hosts=[HOST])
    return Signed(leaf, chain, "")


async def test_a_bound_further_up_binds_what_is_signed_here(pki: Pki) -> None:
    """A root with path length N has N CAs below it (RFC 5280 section 4.2.1.9), and ours is the first: it signs N - 1.

    OpenSSL would not believe the one more that is refused here.
    """
    for bound, next_ in ((1, None), (2, 0), (3, 1)):
        ours = await pki.make("intermediate", commonName=f"Ours {bound}")
        await from_outside(pki, ours, outside("Bounded", bound))
        assert (await pki.ca(ours))["maxPathLength"] == -1
        assert by_openssl(await pki.sign(ours))[0]
        body = {"csr": csr_of(EC_KEY, "Below"), "notAfter": in_days(30)}
        if next_ is None:
            for asked in ({}, {"maxPathLength": 0}):
                assert (await pki.refused("POST", f"/ca/{ours}/sign-intermediate", {**body, **asked})).startswith(
                    TOO_DEEP
                )
            judged, said = by_openssl(leaf_below(bound, None, 0))
            assert not judged
            assert "path length constraint exceeded" in said
            continue
        too_long = {**body, "maxPathLength": next_ + 1}
        assert (await pki.refused("POST", f"/ca/{ours}/sign-intermediate", too_long)).startswith(TOO_LONG)
        below = await pki.intermediate(ours, {"notAfter": in_days(300)}, commonName="Below")
        assert (await pki.ca(below))["maxPathLength"] == next_
        made = await pki.sign(below)
        assert len(made.chain) == 3
        assert by_openssl(made)[0]
        deeper = {**body, "csr": csr_of(EC_KEY, "Deeper")}
        if next_ == 0:
            assert (await pki.refused("POST", f"/ca/{below}/sign-intermediate", deeper)).startswith(TOO_DEEP)
            assert not by_openssl(leaf_below(bound, None, None, None))[0]
        else:
            assert by_openssl(await pki.sign_intermediate(below, deeper["csr"], notAfter=in_days(30)), purpose="any")[0]


async def parent_of(pki: Pki, ca_id: str) -> str | None:
    found: str | None = (await pki.ca(ca_id))["parentCaId"]
    return found


async def test_a_chain_that_comes_back_to_its_ca_is_refused(pki: Pki) -> None:
    """B was signed by A: what B signs for A has A above it."""
    one, other, strangers = await pki.make("intermediate", commonName="A"), "", outside()
    own = await from_outside(pki, one, strangers)
    other = await pki.intermediate(one, {"notAfter": in_days(300)}, commonName="B")
    made = await pki.sign_intermediate(other, await pki.csr(one), notAfter=in_days(30))
    assert message_of(await pki.import_(one, made)) == "The chain comes back to this CA itself"
    assert (await parent_of(pki, one), await parent_of(pki, other)) == (None, one)
    assert await pki.certificate(one) == own


async def test_a_chain_that_comes_back_through_strangers_is_refused(pki: Pki) -> None:
    """A signed the CA of strangers: what that one signs for A has A above it, under another certificate."""
    one, key = await pki.make("intermediate", commonName="A"), ec.generate_private_key(ec.SECP256R1())
    await from_outside(pki, one, outside())
    lent = await pki.sign_intermediate(one, csr_of(key, "Strangers"), notAfter=in_days(300))
    own = signed_by(Authority(key, lent.leaf), await pki.csr(one))
    answer = await pki.import_(one, Signed(own, [lent.leaf, *lent.chain], ""))
    assert message_of(answer) == "The chain comes back to this CA itself"


async def test_two_cas_cannot_become_each_others_parents(pki: Pki) -> None:
    """Each was signed outside first, and is then signed by the other, so no chain comes back: still one is refused."""
    one, other = [await pki.make("intermediate", commonName=name) for name in ("A", "B")]
    strangers = outside()
    for ca_id in (one, other):
        await from_outside(pki, ca_id, strangers)
    of_other = await pki.sign_intermediate(one, await pki.csr(other), notAfter=in_days(30))
    of_one = await pki.sign_intermediate(other, await pki.csr(one), notAfter=in_days(30))
    assert (await pki.import_(other, of_other)).status_code == 200
    assert (await parent_of(pki, one), await parent_of(pki, other)) == (None, one)
    assert message_of(await pki.import_(one, of_one))
    assert (await parent_of(pki, one), await parent_of(pki, other)) == (None, one)


# CRLs.


@contextlib.asynccontextmanager
async def damaged(world: World, ca_id: str) -> AsyncIterator[UUID]:
    """The key of a CA with a flipped bit for the while; the id of its row."""
    row = await world.database.fetchrow("SELECT key_id FROM certificate_authorities WHERE id = $1", UUID(ca_id))
    assert row
    flip = "UPDATE private_keys SET ciphertext = set_bit(ciphertext, 300, 1 - get_bit(ciphertext, 300)) WHERE id = $1"
    await world.database.execute(flip, row["key_id"])
    try:
        yield row["key_id"]
    finally:
        await world.database.execute(flip, row["key_id"])


async def noted(world: World, row_id: UUID) -> int:
    sql = "SELECT count(*) AS n FROM audit_log WHERE action = 'key-damaged' AND resource_id = $1"
    row = await world.database.fetchrow(sql, row_id)
    assert row
    count: int = row["n"]
    return count


async def test_the_crl_of_a_ca_with_a_damaged_key_is_there_while_it_is_valid(pki: Pki, world: World) -> None:
    """Past half of its life anybody still gets it, and many who ask leave one row in the audit log; past all, 500."""
    root = await pki.root()
    path = f"{BASE}/crl/{root}/der"
    crl = await pki.anonymous(path)
    async with damaged(world, root) as key_id:
        for _ in range(3):
            assert (await pki.anonymous(path)).content == crl.content
        assert await noted(world, key_id) == 0
        await days_pass(world, root, 4)
        answers = await all_of(*(pki.anonymous(path) for _ in range(20)))
        assert {answer.content for answer in answers} == {crl.content}
        assert (await pki.anonymous(path)).content == crl.content
        assert await noted(world, key_id) == 1
        await days_pass(world, root, 3)
        answers = await all_of(*(pki.http.get(path) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {500}
        assert await noted(world, key_id) == 1
    assert number_of(await pki.crl(root)) == number_of(x509.load_der_x509_crl(crl.content)) + 1


async def test_a_crl_that_was_never_signed_is_500_while_its_key_is_damaged(pki: Pki, world: World) -> None:
    """There is nothing to give, nothing is told of the reason, and later it is signed as if nothing had been."""
    root = await pki.root()
    async with damaged(world, root) as key_id:
        for _ in range(5):
            answer = await pki.http.get(f"{BASE}/crl/{root}/der")
            assert answer.status_code == 500
            assert str(key_id) not in answer.text
        assert await noted(world, key_id) == 1
    assert number_of(await pki.crl(root)) == 1


MANY = 3000


async def test_a_crl_of_thousands_is_right_and_others_are_answered_meanwhile(pki: Pki, world: World) -> None:
    """OpenSSL reads every entry and finds the signature; a request beside it gets its answer."""
    root = await pki.root()
    # The world's own connection, so that the application's are free.
    rows = await world.database.fetch(_REVOKED, world.a.account.id, UUID(root), MANY)
    answer, healthy, ca = await asyncio.gather(
        pki.anonymous(f"{BASE}/crl/{root}/der"), pki.http.get("/healthz"), pki.ca(root)
    )
    assert (healthy.status_code, ca["id"]) == (200, root)
    crl = x509.load_der_x509_crl(answer.content)
    serials = serials_of(crl)
    assert len(serials) == MANY
    assert set(serials) == {row["serial"] for row in rows}
    said = read_by_openssl(crl, await pki.certificate(root))
    assert "verify OK" in said
    assert said.count("Serial Number: 5A") == MANY
    reasons = [said.count(reason) for reason in ("Key Compromise", "Superseded", "Privilege Withdrawn", "Unspecified")]
    assert reasons == [MANY // 4, MANY // 4, MANY // 4, 0]


async def test_a_ca_under_another_key_id_says_so_in_its_next_crl(pki: Pki) -> None:
    """Its certificate came back from outside with another SKI: the next fetch has it as AKI, and a higher number."""
    ca_id, strangers = await pki.make("intermediate"), outside()
    numbers = []
    for ski in (b"\x01" * 8, b"\x02" * 12):
        own = await from_outside(pki, ca_id, strangers, ski=ski)
        crl = await pki.crl(ca_id)
        assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == ski
        public_key = own.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        assert crl.is_signature_valid(public_key)
        assert (await pki.crl(ca_id)) == crl
        numbers.append(number_of(crl))
    assert numbers == [1, 2]


# Who is meant, and what is told.


async def run(world: World, *words: str) -> str:
    """What `keystead` prints on this world's database."""
    env = {"KEYSTEAD_DATABASE_URL": world.settings.database_url, "KEYSTEAD_DATA_DIR": str(world.settings.data_dir)}
    with ThreadPoolExecutor(1) as pool:
        invoked = pool.submit(CliRunner().invoke, cli.cli, words, env=env)
        done = await asyncio.wrap_future(invoked)
    assert done.exit_code == 0, done.output
    text: str = done.stdout
    return text


async def test_an_exact_id_wins_over_a_ca_that_is_named_like_it(pki: Pki, world: World) -> None:
    """Two others have it as friendly and as common name; their own ids find them, and a name of two is refused."""
    root = await pki.root()
    friendly = await pki.root(friendlyName=root)
    common = await pki.root(commonName=root)
    for word in (root, friendly, common):
        scope, found = await authorities.find(world.database, word)
        assert (str(found.id), scope.account_id) == (word, world.a.account.id)
    (shown,) = json.loads(await run(world, "ca", "show", root, "--json"))
    assert shown["id"] == root
    twice = f"twice {uuid4()}"
    for _ in "ab":
        await pki.root(friendlyName=twice)
    with pytest.raises(Refusal, match="several CAs are named"):
        await authorities.find(world.database, twice)


async def test_lists_of_cas_have_no_pem(pki: Pki, world: World) -> None:
    """Whatever the length of a chain, a list shows and reads none of it; only the CA itself has its own."""
    last = await pki.root()
    for depth in range(4):
        last = await pki.intermediate(last, {"notAfter": in_days(900 - depth)}, commonName=f"Depth {depth}")
    scope = Scope(world.a.account.id)
    listed = [
        *await authorities.list_(world.database, first_start.operator(), scope),
        *await authorities.for_operator(world.database),
    ]
    held = [each.certificate for each in listed if each.certificate]
    assert len([each for each in listed if str(each.id) == last]) == 2
    assert {(each.pem, each.chain) for each in held} == {("", "")}
    answer = await pki.http.get(f"/api/v1/cert-manager/ca/internal?projectId={world.a.account.id}", headers=pki.headers)
    assert answer.status_code == 200
    said = [answer.text, await run(world, "ca", "list", "--json"), await run(world, "ca", "show", last, "--json")]
    said.append(json.dumps(await pki.ca(last)))
    assert not any("BEGIN" in text for text in said)
    assert len(answer.text) < 2000 * len(answer.json())
    assert [len(text) < 2000 for text in said[2:]] == [True, True]
    own = (await authorities.get(world.database, scope, UUID(last))).certificate
    assert own
    assert (own.pem.count("BEGIN"), own.chain.count("BEGIN")) == (1, 4)


# Time stamps.


@pytest.mark.parametrize("kind", ["EC", "RSA"])
async def test_a_certificate_for_time_stamps_is_for_nothing_else(pki: Pki, kind: str) -> None:
    """Its usage is critical and alone, and the key signs (RFC 3161 section 2.3): OpenSSL takes it for that purpose."""
    root = await pki.root()
    key = EC_KEY if kind == "EC" else RSA_KEY
    for more in ({}, {"keyUsages": ["digitalSignature"]}):
        made = await pki.sign(root, csr_of(key, HOST), extendedKeyUsages=["timeStamping"], **more)
        critical, _ = extensions(made.leaf)[EXTENDED]
        assert critical
        usages = made.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usages) == [ExtendedKeyUsageOID.TIME_STAMPING]
        assert extensions(made.leaf)[KEY_USAGE] == (True, DIGITAL_SIGNATURE)
        assert by_openssl(made, purpose="timestampsign")[0]
        assert not by_openssl(made)[0]
    assert not by_openssl(await pki.sign(root, csr_of(key, HOST)), purpose="timestampsign")[0]


@pytest.mark.parametrize("call", ["sign-certificate", "issue-certificate"])
async def test_usages_that_nobody_may_have_together_are_refused(pki: Pki, world: World, call: str) -> None:
    """Time stamping with another usage or with a key that encrypts, and OCSP signing in any company."""
    root = await pki.root(keyAlgorithm="RSA_2048")
    before = await kept(world, root)
    body: Json = {"ttl": "90d"} | ({"csr": csr_of(RSA_KEY, HOST)} if "sign" in call else {"commonName": HOST})
    for extended, usages in (
        (["timeStamping", "serverAuth"], []),
        (["codeSigning", "timeStamping"], ["digitalSignature"]),
        (["timeStamping"], ["keyEncipherment"]),
        (["timeStamping"], ["digitalSignature", "keyEncipherment"]),
        (["ocspSigning"], []),
        (["ocspSigning"], ["digitalSignature"]),
        (["serverAuth", "ocspSigning"], []),
    ):
        asked = {**body, "extendedKeyUsages": extended, "keyUsages": usages}
        said = await pki.refused("POST", f"/ca/{root}/{call}", asked)
        word = "ocspSigning" if "ocspSigning" in extended else "timeStamping"
        assert said.startswith(f"extendedKeyUsages {word} ")
    assert await kept(world, root) == before


# Who may renew.


async def test_a_renewal_needs_write_and_sign(pki: Pki, world: World) -> None:
    """Either permission alone is 403, on a root and on an intermediate, and nothing is made; both together do it."""
    root = await pki.root()
    below = await pki.intermediate(root, commonName="Below")
    write, sign, read = "Private CA Write", "Private CA Sign", "Private CA Read"
    before = [await kept(world, each) for each in (root, below)]
    for groups in ((write,), (sign,), (read, write), (read, sign), (read,)):
        token = await make_token(world.services, world.a.account, groups=groups)
        bare = Pki(pki.http, pki.project, {"Authorization": f"Bearer {token}"})
        for ca_id in (root, below):
            answer = await bare.ask("POST", f"/ca/{ca_id}/renew", RENEWAL)
            assert (answer.status_code, answer.json()["message"][:35]) == (
                403,
                "You are not allowed to renew on cer",
            ), groups
    assert [await kept(world, each) for each in (root, below)] == before
    token = await make_token(world.services, world.a.account, groups=(write, sign))
    both = Pki(pki.http, pki.project, {"Authorization": f"Bearer {token}"})
    for ca_id, ends in ((root, "2065"), (below, "2064")):
        await both.told("POST", f"/ca/{ca_id}/renew", {"type": "existing", "notAfter": ends})
