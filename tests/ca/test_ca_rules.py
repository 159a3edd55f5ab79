"""What a CA refuses for its own sake, what it takes of a CSR's wishes, and names that are long in bytes alone."""

import ssl
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from support import oddities
from support.authority import Key, csr_of, key_pem, pem
from support.pki import (
    DIGITAL_SIGNATURE,
    DIGITAL_SIGNATURE_KEY_ENCIPHERMENT,
    EC_KEY,
    EXTENDED,
    HOST,
    KEY_USAGE,
    RSA_KEY,
    SERVER_AUTH,
    Json,
    Pki,
    Signed,
    assert_crl_verifies,
    by_gnutls,
    by_openssl,
    common_name,
    extensions,
    in_days,
    names,
    request,
    sans,
    serials_of,
)
from support.pki_limits import TOO_DEEP
from support.world import World, make_token

from keystead.ca import lifecycle
from keystead.ca.authorities import NewAuthority
from keystead.ca.model import CaType
from keystead.caller import Scope
from keystead.custody import keyring
from keystead.errors import Conflict
from keystead.x509 import pkix
from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject

CLIENT_AUTH = "300a06082b06010505070302"
SMARTCARD = ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
EKU = ExtendedKeyUsageOID


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    """One world for this file: each test makes CAs of its own in it."""
    return shared_world


@pytest.fixture(scope="module")
async def bearers(world: World) -> tuple[dict[str, str], dict[str, str]]:
    """Of each tenant a token that may do everything with its CAs, keys included."""
    groups = tuple(f"Private CA {word}" for word in ("Read", "Write", "Sign", "Issue Key"))
    accounts = (world.a.account, world.b.account)
    first, second = [await make_token(world.services, each, groups=groups) for each in accounts]
    return {"Authorization": f"Bearer {first}"}, {"Authorization": f"Bearer {second}"}


@pytest.fixture
def pki(world: World, bearers: tuple[dict[str, str], dict[str, str]]) -> Pki:
    return Pki(world.http, world.a.account.slug, bearers[0])


@pytest.fixture
def other(world: World, bearers: tuple[dict[str, str], dict[str, str]]) -> Pki:
    """Another tenant."""
    return Pki(world.http, world.b.account.slug, bearers[1])


def usages(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: word in wanted for word, name in pkix.KEY_USAGES.items()})


def wishing(key: Key, *wishes: x509.ExtensionType) -> str:
    return request(key, common_name("client 7"), names(x509.DNSName(HOST)), *wishes)


# Whose name, whose key.


async def test_an_account_that_was_deleted_meanwhile_gets_no_ca(world: World) -> None:
    """It is told as such, and no key is left behind."""
    before = await world.database.fetch("SELECT id FROM private_keys")
    new = NewAuthority(CaType.ROOT, CaSubject(common_name="Late"), CaKeyType.P256V1)
    with pytest.raises(Conflict, match="the account does not exist any more"):
        await lifecycle.create(world.services, keyring.SYSTEM, Scope(uuid4()), new)
    assert await world.database.fetch("SELECT id FROM private_keys") == before


async def test_a_ca_signs_neither_its_own_name_nor_its_own_key(pki: Pki, world: World) -> None:
    """As a CA or as a server, by a CSR or with a key made here: two things of one name could not be told apart."""
    root = await pki.root(commonName=HOST)
    row = await world.database.fetchrow(
        "SELECT account_id, key_id, spki_sha256 FROM certificate_authorities WHERE id = $1", UUID(root)
    )
    assert row
    own_key = await keyring.open_key(world.database, world.ring, keyring.SYSTEM, tuple(row))
    own_name = (await pki.certificate(root)).subject
    for tail, dates in (("sign-certificate", {"ttl": "1d"}), ("sign-intermediate", {"notAfter": in_days(9)})):
        for key, name, said in (
            (EC_KEY, own_name, "The subject is that of this CA itself."),
            (own_key, common_name("other"), "The CSR's key is that of this CA itself."),
        ):
            body = {"csr": request(key, name, names(x509.DNSName(HOST))), **dates}
            assert await pki.refused("POST", f"/ca/{root}/{tail}", body) == said
    issued = await pki.refused("POST", f"/ca/{root}/issue-certificate", {"commonName": HOST, "ttl": "1d"})
    assert issued == "The subject is that of this CA itself."
    # The same host under another name, and a name that only looks alike, are other ones.
    longer = x509.Name([*own_name, x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme")])
    assert sans((await pki.sign(root, request(EC_KEY, longer, names(x509.DNSName(HOST))))).leaf)


# Below a revoked CA.


async def refusals(pki: Pki, ca_id: str) -> set[str]:
    """What a CA says to everything that it is asked to sign."""
    return {
        await pki.refused("POST", f"/ca/{ca_id}/sign-certificate", {"csr": csr_of(EC_KEY, HOST), "ttl": "1d"}),
        await pki.refused("POST", f"/ca/{ca_id}/issue-certificate", {"commonName": HOST, "ttl": "1d"}),
        await pki.refused(
            "POST", f"/ca/{ca_id}/sign-intermediate", {"csr": csr_of(EC_KEY, "Deeper"), "notAfter": in_days(30)}
        ),
    }


async def test_a_ca_below_a_revoked_one_signs_nothing_at_any_depth(pki: Pki, world: World) -> None:
    """Three levels down, with the name of the revoked one; its neighbour under another CA goes on."""
    root = await pki.root()
    path = [root]
    for depth in range(1, 5):
        path.append(
            await pki.intermediate(path[-1], {"notAfter": in_days(900 - 100 * depth)}, commonName=f"Level {depth}")
        )
    neighbour = await pki.intermediate(root, commonName="Neighbour")
    await pki.sign(path[4])
    ready = await pki.make("intermediate", commonName="Not yet")
    made = await pki.sign_intermediate(path[3], await pki.csr(ready), notAfter=in_days(90))
    await pki.revoke((await pki.installed(path[1])).serial)
    before = await world.database.fetchrow("SELECT count(*) AS n FROM issued_certificates")
    assert await refusals(pki, path[1]) == {"CA certificate is revoked: by the CA above it"}
    for ca_id in path[2:]:
        assert await refusals(pki, ca_id) == {'CA certificate is revoked: "CN=Level 1" above it'}
    renewal = {"type": "existing", "notAfter": in_days(800)}
    assert (await pki.refused("POST", f"/ca/{path[4]}/renew", renewal)).startswith("CA certificate is revoked: ")
    # Nor does one come to be there.
    imported = await pki.import_(ready, made)
    assert imported.status_code == 400
    assert imported.json()["message"] == 'Invalid certificate chain: "CN=Level 1" is revoked'
    assert await world.database.fetchrow("SELECT count(*) AS n FROM issued_certificates") == before
    for ca_id in (root, neighbour):
        await pki.sign(ca_id)
    # The CRLs of all of them are there as ever.
    assert [len(serials_of(await pki.crl(ca_id))) for ca_id in path] == [1, 0, 0, 0, 0]


async def test_a_ca_below_a_revoked_one_of_another_account_signs_nothing(pki: Pki, other: Pki) -> None:
    """The parent and its parent are another tenant's on this server, who revokes one, then the other."""
    root = await other.root(commonName="Their root")
    middle = await other.intermediate(root, commonName="Their middle")
    ours = []
    for parent in (middle, root):
        ca_id = await pki.make("intermediate", commonName="Ours")
        made = await other.sign_intermediate(parent, await pki.csr(ca_id), notAfter=in_days(100))
        assert (await pki.import_(ca_id, made)).status_code == 200
        await pki.sign(ca_id)
        ours.append((ca_id, made.serial))
    below = await pki.intermediate(ours[0][0], {"notAfter": in_days(50)}, commonName="Below ours")
    # A certificate of another name and the same number says nothing of these.
    await other.revoke((await other.sign(middle)).serial)
    await pki.sign(below, ttl="9d")
    await other.revoke((await other.installed(middle)).serial)
    for ca_id in (ours[0][0], below):
        assert await refusals(pki, ca_id) == {'CA certificate is revoked: "CN=Their middle" above it'}
    await pki.sign(ours[1][0])
    await other.revoke(ours[1][1])
    assert await refusals(pki, ours[1][0]) == {"CA certificate is revoked: by the CA above it"}


# What a CSR asks for.


async def test_a_client_gets_the_certificate_of_a_client(pki: Pki, tmp_path: Path) -> None:
    """A CSR for clientAuth is a client's to OpenSSL and GnuTLS and no server's, and passes a TLS server that asks."""
    root = await pki.root()
    ca_id = await pki.intermediate(root, commonName="Below")
    key = ec.generate_private_key(ec.SECP256R1())
    asked = wishing(key, usages("digitalSignature"), x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]))
    client = await pki.sign(ca_id, asked)
    assert extensions(client.leaf)[EXTENDED] == (False, CLIENT_AUTH)
    assert by_openssl(client, purpose="sslclient")[0]
    assert not by_openssl(client, purpose="sslserver")[0]
    assert by_gnutls(client, "--verify-purpose", EKU.CLIENT_AUTH.dotted_string)[0]
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = await pki.sign(ca_id, csr_of(server_key, HOST))
    assert shakes_hands(tmp_path, (client, key), (server, server_key))
    as_before = await pki.sign(ca_id, wishing(key))
    assert extensions(as_before.leaf)[EXTENDED] == (False, SERVER_AUTH)
    assert not shakes_hands(tmp_path, (as_before, key), (server, server_key))


def shakes_hands(folder: Path, *sides: tuple[Signed, ec.EllipticCurvePrivateKey]) -> bool:
    """Whether a TLS server that asks for certificates takes the client's, in memory."""
    contexts = []
    for side, (made, key) in zip((ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER), sides, strict=True):
        context = ssl.SSLContext(side)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pem(made.chain[-1]))
        file = folder / "side.pem"
        file.write_text(pem(made.leaf, *made.chain[:-1]) + key_pem(key))
        context.load_cert_chain(file)
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].wrap_bio(down, up, server_hostname=HOST)
    server = contexts[1].wrap_bio(up, down, server_side=True)
    waiting = {client, server}
    for _ in range(10):
        for end in [*waiting]:
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return not waiting


async def test_usages_of_a_csr_are_taken_as_far_as_they_can_be_given(pki: Pki) -> None:
    """What the key cannot do, what only a CA does and purposes that nobody here vouches for are left out."""
    root = await pki.root()
    server, client, email, code = (EKU.SERVER_AUTH, EKU.CLIENT_AUTH, EKU.EMAIL_PROTECTION, EKU.CODE_SIGNING)
    tables: list[tuple[Key, tuple[str, ...], str]] = [
        (EC_KEY, ("nonRepudiation",), "03020640"),
        (EC_KEY, ("digitalSignature", "keyEncipherment"), DIGITAL_SIGNATURE),
        (EC_KEY, ("keyEncipherment",), DIGITAL_SIGNATURE),
        (EC_KEY, ("keyAgreement", "encipherOnly"), "03020009"),
        (EC_KEY, ("digitalSignature", "keyCertSign", "cRLSign"), DIGITAL_SIGNATURE),
        (EC_KEY, ("keyCertSign",), DIGITAL_SIGNATURE),
        (RSA_KEY, ("keyEncipherment",), "03020520"),
        (RSA_KEY, ("digitalSignature", "keyAgreement"), DIGITAL_SIGNATURE),
        (RSA_KEY, ("keyCertSign",), DIGITAL_SIGNATURE_KEY_ENCIPHERMENT),
    ]
    for key, wanted, expected in tables:
        found = extensions((await pki.sign(root, wishing(key, usages(*wanted)))).leaf)
        assert found[KEY_USAGE] == (True, expected), wanted
        assert found[EXTENDED] == (False, SERVER_AUTH)
    purposes: list[tuple[list[ObjectIdentifier], list[ObjectIdentifier]]] = [
        ([client], [client]),
        ([client, server], [client, server]),
        ([email, code], [email, code]),
        ([SMARTCARD, client], [client]),
        ([ANY, client], [client]),
        ([ANY], [server]),
        ([ANY, SMARTCARD], [server]),
        ([EKU.OCSP_SIGNING, server], [server]),
        ([EKU.TIME_STAMPING, server], [server]),
        ([EKU.TIME_STAMPING], [EKU.TIME_STAMPING]),
    ]
    for wishes, got in purposes:
        made = await pki.sign(root, wishing(EC_KEY, x509.ExtendedKeyUsage(wishes)))
        extension = made.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        assert list(extension.value) == got
        assert extension.critical is (got == [EKU.TIME_STAMPING])
    for wishes in ([SMARTCARD], [EKU.OCSP_SIGNING], [EKU.OCSP_SIGNING, EKU.TIME_STAMPING, SMARTCARD]):
        body = {"csr": wishing(EC_KEY, x509.ExtendedKeyUsage(wishes)), "ttl": "1d"}
        said = await pki.refused("POST", f"/ca/{root}/sign-certificate", body)
        assert said.startswith("The CSR asks for extended key usages that are not given (")
        await pki.sign(root, body["csr"], extendedKeyUsages=["clientAuth"])


async def test_usages_of_the_request_win_over_the_csrs(pki: Pki) -> None:
    """Each of the two by itself; an empty list is no wish, and time stamps keep what goes with them."""
    root = await pki.root()
    csr = wishing(EC_KEY, usages("nonRepudiation"), x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]))
    table: list[tuple[Json, str, str]] = [
        ({}, "03020640", CLIENT_AUTH),
        ({"keyUsages": [], "extendedKeyUsages": []}, "03020640", CLIENT_AUTH),
        ({"keyUsages": ["digitalSignature"]}, DIGITAL_SIGNATURE, CLIENT_AUTH),
        ({"extendedKeyUsages": ["serverAuth"]}, "03020640", SERVER_AUTH),
    ]
    for fields, usage, extended in table:
        found = extensions((await pki.sign(root, csr, **fields)).leaf)
        assert (found[KEY_USAGE], found[EXTENDED]) == ((True, usage), (False, extended)), fields
    agreeing = wishing(EC_KEY, usages("digitalSignature", "keyAgreement"))
    stamped = extensions((await pki.sign(root, agreeing, extendedKeyUsages=["timeStamping"])).leaf)
    assert stamped[KEY_USAGE] == (True, DIGITAL_SIGNATURE)


# Long in bytes, not in characters.


@pytest.mark.parametrize("name", ["Ж" * 64, "東京認証局" * 12, "🔑" * 64], ids=["Cyrillic", "Kanji", "emoji"])
async def test_a_ca_with_a_name_of_64_characters_and_more_bytes_does_everything(pki: Pki, name: str) -> None:
    """It signs servers and CAs, is renewed and revokes, and anybody gets its CRL and its certificate."""
    root = await pki.root(commonName=name, notAfter=in_days(2000))
    made = await pki.sign(root)
    assert by_openssl(made)[0]
    below = await pki.sign_intermediate(root, await pki.csr(await pki.make("intermediate")))
    assert by_openssl(below, purpose="any")[0]
    await pki.told("POST", f"/ca/{root}/renew", {"type": "existing", "notAfter": in_days(3000)})
    await pki.revoke(made.serial)
    crl = await pki.crl(root)
    assert serials_of(crl) == [made.serial]
    assert_crl_verifies(crl, await pki.certificate(root))
    active = (await pki.ca(root))["activeCaCertId"]
    assert (await pki.anonymous(f"/api/v1/pki/ca/{root}/certificates/{active}/der")).content


# Why.


async def test_infisicals_sentences_are_followed_by_the_reason(pki: Pki) -> None:
    """They begin as its clients know them, and say after a colon what is wrong where."""
    root = await pki.root(maxPathLength=0, notAfter=in_days(100))
    ca_id = await pki.make("intermediate", commonName="Any")
    end = f"{(await pki.certificate(root)).not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    csr = {"csr": await pki.csr(ca_id)}
    asked: list[tuple[str, str, Json, str]] = [
        (
            root,
            "sign-intermediate",
            {**csr, "notAfter": in_days(9)},
            f'{TOO_DEEP}"CN=Example root" has path length 0',
        ),
        (
            root,
            "sign-certificate",
            {"csr": csr_of(EC_KEY, HOST), "notAfter": in_days(101)},
            f"notAfter date is after CA certificate's notAfter date: that is {end}",
        ),
        (
            ca_id,
            "import-certificate",
            {"certificate": pem(await pki.certificate(root)), "certificateChain": "x"},
            "Imported certificate does not match CA configuration: its subject is",
        ),
        (ca_id, "sign-certificate", {"csr": "x", "ttl": "1d"}, "CA is not active: it has no certificate yet"),
    ]
    for one, tail, body, said in asked:
        assert (await pki.refused("POST", f"/ca/{one}/{tail}", body)).startswith(said), tail
    free = await pki.root(commonName="Free")
    made = await pki.sign_intermediate(free, csr["csr"])
    chain = {"certificate": pem(made.leaf), "certificateChain": "no PEM"}
    said = await pki.refused("POST", f"/ca/{ca_id}/import-certificate", chain)
    assert said.startswith("Failed to parse certificate chain: certificate has no PEM block")


async def test_a_cas_name_is_signed_byte_for_byte_or_not_at_all(pki: Pki) -> None:
    """A leaf's string that its type cannot hold gets another type, but chains to a CA are found by its name's bytes."""
    root = await pki.root()
    odd = oddities.name((oddities.O, oddities.PRINTABLE, b"A&B"), (oddities.CN, oddities.UTF8, b"Odd"))
    csr = oddities.block(oddities.request(subject=odd), "CERTIFICATE REQUEST")
    said = await pki.refused("POST", f"/ca/{root}/sign-intermediate", {"csr": csr, "notAfter": in_days(9)})
    assert said.startswith("The CSR's subject has a string that its type cannot hold")
