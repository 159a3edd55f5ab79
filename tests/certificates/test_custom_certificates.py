"""Signed certificates come back to their keys: the calls, codes and messages of section 6 of the contract."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import cloudflare
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support import oddities
from support.authority import Authority, csr_of, key_pem, openssl, patched, pem, root, rsa_of_known_primes, subject
from support.live import Live
from support.world import BODY, Tenant, World, make_token

from keystead.caller import Scope
from keystead.certificates import matching
from keystead.custody import keyring
from keystead.errors import Conflict
from keystead.identity import zones
from keystead.server import first_start
from keystead.x509 import chains

Json = dict[str, Any]
Codes = list[tuple[int, str | None]]
SITE = "www.a.example.com"
CERTIFICATE, KEY, CSR = "/certificate", "/private_key", "/custom_csr_id"
# P-256 is quick to make; the certificate's key is compared as bytes, so its kind changes nothing.
SITE_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
BEST = serialization.BestAvailableEncryption(b"secret")
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL


@pytest.fixture
def ca(world: World) -> Authority:
    """A root that the server of this test trusts."""
    made = root()
    world.trust(chains.anchors([pem(made.certificate).encode()]))
    return made


@pytest.fixture
async def csr(world: World) -> Json:
    """A CSR of the zone."""
    return await world.create(path=world.a.zone_path, sans=[SITE])


def path(world: World, tail: str = "") -> str:
    return f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates{tail}"


async def upload(world: World, **fields: Any) -> httpx.Response:
    # With ASCII escapes, so that a test can send half a character.
    return await world.http.post(path(world), content=json.dumps(fields), headers=world.a.bearer)


async def uploaded(world: World, **fields: Any) -> Json:
    answer = await upload(world, **fields)
    assert answer.status_code == 200, answer.text
    result: Json = answer.json()["result"]
    return result


async def edit(world: World, of: Json, **fields: Any) -> httpx.Response:
    return await world.http.patch(path(world, f"/{of['id']}"), json=fields, headers=world.a.bearer)


async def edited(world: World, of: Json, **fields: Any) -> Json:
    answer = await edit(world, of, **fields)
    assert answer.status_code == 200, answer.text
    result: Json = answer.json()["result"]
    return result


async def listed(world: World, query: str = "") -> list[str]:
    answer = await world.http.get(path(world) + query, headers=world.a.bearer)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["result"]]


def shown(answer: httpx.Response) -> Codes:
    items = answer.json()["errors"] or answer.json()["messages"]
    return [(item["code"], (item.get("source") or {}).get("pointer")) for item in items]


def refusal(answer: httpx.Response) -> tuple[int, Codes]:
    return answer.status_code, shown(answer)


def messages(answer: httpx.Response) -> list[tuple[int, str]]:
    assert answer.status_code == 200, answer.text
    return [(each["code"], each["message"]) for each in answer.json()["messages"]]


async def stored(world: World) -> tuple[int, ...]:
    """How many rows there are of all that an upload could leave behind."""
    changes = "audit_log WHERE result = 'success'"
    tables = ("private_keys", "custom_csrs", "custom_certificates", "certificate_history", changes)
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    row = await world.database.fetchrow(f"SELECT {counts}")
    assert row is not None
    return tuple(row)


async def opens(world: World, certificate: Json) -> bool:
    """Whether the private key of a certificate opens, and is that of the certificate which is served."""
    row = await world.database.fetchrow(
        "SELECT account_id, key_id, chain FROM custom_certificates WHERE id = $1", UUID(certificate["id"])
    )
    assert row is not None
    (leaf, *_) = x509.load_pem_x509_certificates(row["chain"].encode())
    await keyring.open_key(
        world.database, world.ring, keyring.SYSTEM, (row["account_id"], row["key_id"], chains.spki_digest(leaf))
    )
    return True


async def chain_of(world: World, certificate: Json) -> list[x509.Certificate]:
    """What is stored to be served."""
    row = await world.database.fetchrow("SELECT chain FROM custom_certificates WHERE id = $1", UUID(certificate["id"]))
    assert row is not None
    return x509.load_pem_x509_certificates(row["chain"].encode())


def site(ca: Authority, **changes: Any) -> x509.Certificate:
    """A certificate for the key that the tests upload."""
    return ca.sign(SITE_KEY.public_key(), subject(SITE), **{"hosts": [SITE], **changes})


def self_signed(key: Any = SITE_KEY, names: list[x509.GeneralName] | None = None, organization: str = "") -> str:
    """A leaf that signed itself, without any of the extensions of a CA."""
    now = datetime.now(UTC)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, SITE)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name(attributes))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName(SITE)]), False)
    )
    return pem(builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()))


def base64_of(der: bytes) -> str:
    return base64.b64encode(der).decode()


async def judged(world: World, table: dict[str, tuple[Json, Codes]]) -> None:
    """Every case is answered with its codes and places, and none leaves anything behind."""
    before = await stored(world)
    found, expected = {}, {}
    statuses = {1431: 404, 1454: 413}
    for case, (fields, codes) in table.items():
        found[case] = refusal(await upload(world, **fields))
        expected[case] = (statuses.get(codes[0][0], 400), codes)
    assert found == expected
    assert await stored(world) == before


async def test_a_signed_csr_comes_back_and_is_renewed(world: World, ca: Authority) -> None:
    """CSR, sign, upload, list, get, renew in place, delete protection, deletion: the whole road on both lists."""
    for csr_path in world.a.paths:
        csr = await world.create(path=csr_path)
        first = ca.of_csr(csr["csr"])
        made = await upload(world, certificate=pem(first), custom_csr_id=csr["id"])
        assert made.status_code == 200, made.text
        result = made.json()["result"]
        assert result["status"] == "active"
        assert result["hosts"] == csr["sans"]
        one = path(world, f"/{result['id']}")
        got = await world.http.get(one, headers=world.a.bearer)
        assert got.json()["result"] == result
        assert (await world.http.get(path(world), headers=world.a.bearer)).json()["result"] == [result]
        renewed = await world.http.patch(one, json={"certificate": pem(ca.of_csr(csr["csr"]))}, headers=world.a.bearer)
        assert renewed.status_code == 200, renewed.text
        assert renewed.json()["result"]["id"] == result["id"]
        blocked = await world.http.delete(f"{csr_path}/{csr['id']}", headers=world.a.bearer)
        assert (blocked.status_code, blocked.json()["errors"][0]["code"]) == (409, 1420)
        assert result["id"] in blocked.text
        assert blocked.headers["x-should-retry"] == "false"
        assert (await world.http.delete(one, headers=world.a.bearer)).json()["result"] == {"id": result["id"]}
        assert (await world.http.delete(f"{csr_path}/{csr['id']}", headers=world.a.bearer)).status_code == 200


async def test_a_long_name_in_few_characters_comes_back(world: World, ca: Authority) -> None:
    """A CSR whose common name has 64 characters of two or three bytes is certified and taken back, also by PATCH."""
    for letter in ("ж", "名"):
        csr = await world.create(path=world.a.zone_path, sans=[SITE], common_name=letter * 64)
        made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
        assert (await edit(world, made, certificate=pem(ca.of_csr(csr["csr"])))).status_code == 200


async def test_an_odd_certificate_is_stored_as_it_was_sent(world: World, ca: Authority) -> None:
    """PrintableString with & comes back bit for bit, also after a change of its bundle_method; so does TRUSTED."""
    name = oddities.name((oddities.O, oddities.PRINTABLE, b"A&B"))
    root_der = oddities.root(subject=name, issuer=name)
    world.trust(chains.anchors([oddities.block(root_der).encode()]))
    sent = oddities.block(oddities.certificate(subject=name, issuer=name))
    trusted = openssl("x509", "-trustout", "-addtrust", "serverAuth", text=sent)
    answer = await upload(world, certificate=trusted, private_key=key_pem(oddities.KEY))
    assert answer.status_code == 200, answer.text
    assert "TRUSTED CERTIFICATE" in answer.json()["messages"][0]["message"]
    made = answer.json()["result"]
    assert made["issuer"] == "A&B"
    for method in ("force", "ubiquitous"):
        assert (await edit(world, made, bundle_method=method)).status_code == 200
    row = await world.database.fetchrow("SELECT chain FROM custom_certificates WHERE id = $1", UUID(made["id"]))
    assert row is not None
    assert row["chain"] == sent


# Bad input: nothing of it is stored.


async def test_what_is_no_certificate_is_refused_by_its_name(world: World, ca: Authority, csr: Json) -> None:
    """Missing, of another type, of another format: each has 1002, or 1453 for a wrong JSON type, and a sentence."""
    leaf = ca.of_csr(csr["csr"])
    der = leaf.public_bytes(serialization.Encoding.DER)
    begin, end = (
        time.strftime("%y%m%d%H%M%SZ").encode() for time in (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    )
    p12 = pkcs12.serialize_key_and_certificates(b"x", SITE_KEY, site(ca), None, serialization.NoEncryption())
    cases: dict[str, tuple[Any, str]] = {
        "null": (None, "is required"),
        "empty": ("", "is required"),
        "no PEM": ("hello", "no PEM block"),
        "only white space": (" \n ", "no PEM block"),
        "a cut block": (pem(leaf)[:-20], "without its end"),
        "a block that is not base64": (pem(leaf).replace("M", "!"), "is not base64"),
        "a block of other DER": (pem(leaf).replace("\nM", "\nA", 1), "no valid X.509"),
        "an empty block": ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "it ends too early"),
        "a lone surrogate": ("-----BEGIN CERTIFICATE-----\n\ud800\n-----END CERTIFICATE-----\n", "is not base64"),
        "NUL": ("\x00", "as in UTF-16"),
        "DER in base64": (base64_of(der), "is DER"),
        "PKCS#7 in PEM": (
            pkcs7.serialize_certificates([leaf], serialization.Encoding.PEM).decode(),
            "is PKCS#7",
        ),
        "PKCS#7 in base64": (
            base64_of(pkcs7.serialize_certificates([leaf], serialization.Encoding.DER)),
            "is PKCS#7",
        ),
        "PKCS#12 in base64": (base64_of(p12), "is PKCS#12"),
        "a CSR": (csr["csr"], "certificate signing request"),
        "a CSR with the older label": (
            csr["csr"].replace("BEGIN C", "BEGIN NEW C").replace("END C", "END NEW C"),
            "request",
        ),
        "a public key": (openssl("pkey", "-pubout", text=key_pem(SITE_KEY)), "PUBLIC KEY"),
        "a private key": (key_pem(SITE_KEY), "private key"),
        "a private key of the older form": (key_pem(SITE_KEY, TRADITIONAL), "private key"),
        "a private key behind the certificate": (pem(leaf) + key_pem(SITE_KEY), "private key"),
        "50 certificates": (pem(*(site(ca) for _ in range(50))), "at most 20"),
        "a serial of zero": (
            ca.by_openssl(csr["csr"], "-set_serial", "0"),
            "its serial number is 0, and has to be positive",
        ),
        "a negative serial": (ca.by_openssl(csr["csr"], "-set_serial", "-5"), "its serial number is negative"),
        "an end before the beginning": (
            patched(leaf, begin + b"\x17\r" + end, end + b"\x17\r" + begin),
            "ends before it begins",
        ),
        "a version that nobody has": (
            patched(leaf, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03"),
            "its version is 4",
        ),
        "a SAN that is an X.400 address": (
            patched(leaf, b"\x82\x11www", b"\xa3\x11www"),
            "subjectAltName has an x400Address",
        ),
        "a SAN beyond ASCII": (patched(leaf, b"\x82\x11www", b"\x82\x11\xffww"), "subjectAltName holds"),
    }
    before = await stored(world)
    found, expected = {}, {}
    for case, (value, words) in cases.items():
        answer = await upload(world, certificate=value, custom_csr_id=csr["id"])
        said = answer.json()["errors"][0]["message"]
        found[case] = (*refusal(answer), words if words in said else said)
        expected[case] = (400, [(1002, CERTIFICATE)], words)
    assert found == expected
    for value in (1, 1.5, True, [], [pem(leaf)], {"pem": pem(leaf)}):
        assert refusal(await upload(world, certificate=value, custom_csr_id=csr["id"])) == (400, [(1453, CERTIFICATE)])
    assert refusal(await upload(world, custom_csr_id=csr["id"])) == (400, [(1002, CERTIFICATE)])
    assert await stored(world) == before


async def test_a_private_key_in_the_wrong_field_is_told_to_nobody(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """The key's text is in no answer and no output; the world looks into the log and the audit for itself."""
    text = key_pem(SITE_KEY)
    answer = await upload(world, certificate=text, custom_csr_id=str(uuid4()))
    assert answer.status_code in (400, 404)
    heard = "".join(capfd.readouterr())
    for line in text.splitlines():
        assert line not in answer.text
        assert line not in heard


async def test_text_around_the_blocks_is_ignored(world: World, ca: Authority, csr: Json) -> None:
    """Comments of tools, CRLF, missing or too many line ends and spaces change nothing of what is stored."""
    middle = ca.intermediate()
    leaf = middle.of_csr(csr["csr"])
    text = pem(leaf, *middle.above)
    forms = {
        "comments": "subject=CN=x\nissuer=é\n"
        + text.replace("D CERTIFICATE-----", "D CERTIFICATE-----\nnone:")
        + "end",
        "CRLF": text.replace("\n", "\r\n"),
        "CR": text.replace("\n", "\r"),
        "blank lines": text.replace("\n", "\n\n"),
        "indented": text.replace("\n", "\n\t  "),
        "one line each": re.sub(r"(?<=[A-Za-z0-9+/=])\n(?=[A-Za-z0-9+/=])", "", text),
        "a byte order mark": "\ufeff" + text,
        "the older label": text.replace("CERTIFICATE", "X509 CERTIFICATE"),
    }
    for case, form in forms.items():
        made = await uploaded(world, certificate=form, custom_csr_id=csr["id"])
        assert await chain_of(world, made) == [leaf, middle.certificate], case
        deleted = await world.http.delete(path(world, f"/{made['id']}"), headers=world.a.bearer)
        assert deleted.status_code == 200


async def test_a_body_of_256_kib_is_read_and_one_byte_more_is_refused(world: World, ca: Authority, csr: Json) -> None:
    """The bound is 262,144 bytes exactly; a megabyte of PEM is 413/1454 too, and so is a PATCH of that size."""
    body = httpx.Request(
        "POST", "/", json={"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
    ).content
    full = body + b" " * (256 * 1024 - len(body))
    before = await stored(world)
    for sent in (full + b" ", b'{"certificate":"' + pem(site(ca)).replace("\n", "\\n").encode() * 1500 + b'"}'):
        answer = await world.http.post(path(world), content=sent, headers=world.a.bearer)
        assert refusal(answer) == (413, [(1454, None)])
        answer = await world.http.patch(path(world, f"/{uuid4()}"), content=sent, headers=world.a.bearer)
        assert refusal(answer) == (413, [(1454, None)])
    assert await stored(world) == before
    assert (await world.http.post(path(world), content=full, headers=world.a.bearer)).status_code == 200


async def test_a_body_that_is_no_object_is_1400(world: World) -> None:
    """Create, edit and prioritize read a JSON object, whatever the Content-Type says."""
    for method, tail in (("POST", ""), ("PATCH", f"/{uuid4()}"), ("PUT", "/prioritize")):
        for body in (b"", b"[]", b"null", b'"x"', b"{", b"\xff", b'{"priority": NaN}', b"[" * 100_000):
            answer = await world.http.request(method, path(world, tail), content=body, headers=world.a.bearer)
            assert refusal(answer) == (400, [(1400, "")]) or (method, answer.status_code) == ("PUT", 413)


async def test_a_leaf_with_2000_names_is_accepted(world: World, ca: Authority) -> None:
    """Two thousand SANs fit into the limit, and all of them come back."""
    hosts = [f"host-{i}.a.example.com" for i in range(2000)]
    leaf = site(ca, hosts=hosts)
    made = await uploaded(world, certificate=pem(leaf), private_key=key_pem(SITE_KEY))
    assert made["hosts"] == hosts


async def test_a_leaf_that_no_server_should_use_is_refused(world: World, ca: Authority, csr: Json) -> None:
    """Expired, CA only, without serverAuth, of a weak or unknown key, of another key: also with force."""
    secp256k1 = openssl("ecparam", "-name", "secp256k1", "-genkey", "-noout")
    brainpool = openssl("ecparam", "-name", "brainpoolP256r1", "-genkey", "-noout")
    odd = openssl("req", "-new", "-subj", "/CN=x", "-key", "/dev/stdin", text=secp256k1)
    odder = openssl("req", "-new", "-subj", "/CN=x", "-key", "/dev/stdin", text=brainpool)
    middle = ca.intermediate()
    sent: dict[str, tuple[str, int]] = {
        "expired": (pem(ca.of_csr(csr["csr"], since=9, days=-1)), 1457),
        "expired this second": (pem(ca.of_csr(csr["csr"], days=0)), 1457),
        "the root alone": (pem(ca.certificate), 2101),
        "only CAs": (pem(middle.certificate, ca.certificate), 2101),
        "client authentication": (pem(ca.of_csr(csr["csr"], usage=ExtendedKeyUsageOID.CLIENT_AUTH)), 1460),
        "another key": (pem(site(ca)), 2200),
        "secp256k1": (ca.by_openssl(odd), 2200),
        "brainpool": (ca.by_openssl(odder), 2200),
    }
    table: dict[str, tuple[Json, Codes]] = {}
    for method in ("ubiquitous", "optimal", "force"):
        for case, (text, code) in sent.items():
            fields = {"certificate": text, "custom_csr_id": csr["id"], "bundle_method": method}
            table[f"{case}, {method}"] = (fields, [(code, CERTIFICATE)])
    await judged(world, table)


async def test_serverauth_may_be_left_out_and_anything_is_not_enough(world: World, ca: Authority, csr: Json) -> None:
    """A leaf without extended key usage serves; clients of OpenSSL refuse one with anyExtendedKeyUsage alone."""
    await uploaded(world, certificate=pem(ca.of_csr(csr["csr"], usage=None)), custom_csr_id=csr["id"])
    anything = pem(ca.of_csr(csr["csr"], usage=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))
    await judged(world, {"anything": ({"certificate": anything, "custom_csr_id": csr["id"]}, [(1460, CERTIFICATE)])})


async def test_broken_signatures_are_refused(world: World, csr: Json) -> None:
    """MD5 and SHA-1, with RSA and ECDSA, in the leaf always; in an intermediate unless force takes it as it is."""
    by_rsa, by_ec = root("RSA Root", RSA_KEY), root("EC Root")
    world.trust(chains.anchors([pem(by_rsa.certificate, by_ec.certificate).encode()]))
    table: dict[str, tuple[Json, Codes]] = {}
    for ca, digest in ((by_rsa, "-md5"), (by_rsa, "-sha1"), (by_ec, "-sha1")):
        kind = type(ca.key).__name__
        for method in ("ubiquitous", "optimal", "force"):
            fields = {"custom_csr_id": csr["id"], "bundle_method": method}
            leaf = ca.by_openssl(csr["csr"], digest)
            table[f"leaf {digest} {kind} {method}"] = ({**fields, "certificate": leaf}, [(1459, CERTIFICATE)])
            middle_key = ec.generate_private_key(ec.SECP256R1())
            extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n"
            middle = ca.by_openssl(csr_of(middle_key, "Weak CA"), digest, extensions=extensions)
            above = Authority(middle_key, x509.load_pem_x509_certificate(middle.encode()))
            fields["certificate"] = pem(above.of_csr(csr["csr"])) + middle
            if method == "force":
                made = await uploaded(world, **fields)
                assert len(await chain_of(world, made)) == 2
            else:
                table[f"intermediate {digest} {kind} {method}"] = (fields, [(1459, CERTIFICATE)])
    await judged(world, table)


async def test_a_chain_that_cannot_be_trusted_is_2100(world: World, ca: Authority, csr: Json) -> None:
    """What test_chains judges in pure code comes out as 2100 on the certificate, and force takes it."""
    other, one, two = root("Untrusted"), root("One"), root("Two")
    middle, short = ca.intermediate(), ca.intermediate("Short", path_length=0)
    key = ec.generate_private_key(ec.SECP256R1())

    def by(**changes: Any) -> tuple[x509.Certificate, x509.Certificate]:
        made = ca.sign(key.public_key(), subject("Odd CA"), **{"ca": True, **changes})
        return Authority(key, made).of_csr(csr["csr"]), made

    no_signer = ca.by_openssl(
        csr_of(key, "Odd CA"), extensions="basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign\n"
    )
    below = short.intermediate("Below")
    sent = {
        "a missing intermediate": pem(middle.of_csr(csr["csr"])),
        "an untrusted root": pem(other.of_csr(csr["csr"]), other.certificate),
        "a loop": pem(one.of_csr(csr["csr"]), two.cross(one), one.cross(two)),
        "no CA": pem(*by(ca=False)),
        "an expired intermediate": pem(*by(since=9, days=-1)),
        "a path that is too long": pem(below.of_csr(csr["csr"]), *below.above),
        "without keyCertSign": pem(Authority(key, ca.certificate).of_csr(csr["csr"])) + no_signer,
        "an intermediate that did not sign it": pem(other.of_csr(csr["csr"]), middle.certificate),
    }
    # The issuer's name is the one above it; only its key is that of the CA that may not sign.
    odd = Authority(key, x509.load_pem_x509_certificate(no_signer.encode()))
    sent["without keyCertSign"] = pem(odd.of_csr(csr["csr"])) + no_signer
    table: dict[str, tuple[Json, Codes]] = {
        f"{case}, {method}": (
            {"certificate": text, "custom_csr_id": csr["id"], "bundle_method": method},
            [(2100, CERTIFICATE)],
        )
        for case, text in sent.items()
        for method in ("ubiquitous", "optimal")
    }
    await judged(world, table)
    for case, text in sent.items():
        made = await upload(world, certificate=text, custom_csr_id=csr["id"], bundle_method="force")
        assert made.status_code == 200, (case, made.text)


async def test_a_self_signed_leaf_is_taken_by_force_alone(world: World) -> None:
    """Without force it is 2100, with force it is stored."""
    fields = {"certificate": self_signed(), "private_key": key_pem(SITE_KEY)}
    assert refusal(await upload(world, **fields)) == (400, [(2100, CERTIFICATE)])
    made = await uploaded(world, **fields, bundle_method="force")
    assert made["bundle_method"] == "force"


async def test_the_chain_is_repaired_unless_it_is_forced(world: World, ca: Authority, csr: Json) -> None:
    """Order, duplicates, extras and the root are set right; force keeps all but duplicates, the leaf first."""
    upper = ca.intermediate("Upper")
    lower = upper.intermediate("Lower")
    extra = root("Extra").certificate
    for method in ("ubiquitous", "optimal", "force"):
        leaf = lower.of_csr(csr["csr"])
        sent = (extra, ca.certificate, upper.certificate, leaf, upper.certificate, lower.certificate, leaf)
        fields = {"certificate": pem(*sent), "custom_csr_id": csr["id"], "bundle_method": method}
        made = await uploaded(world, **fields)
        kept = await chain_of(world, made)
        if method == "force":
            assert kept == [leaf, extra, ca.certificate, upper.certificate, lower.certificate]
        else:
            assert kept == [leaf, lower.certificate, upper.certificate]


async def test_text_that_a_database_cannot_hold_is_refused(world: World, ca: Authority) -> None:
    """NUL in a name of the leaf or of its issuer is a bad certificate, and no failure of the server."""
    cases = {
        "a SAN": self_signed(names=[x509.DNSName("a\x00b.example.com")]),
        "the issuer": self_signed(organization="a\x00b"),
    }
    before = await stored(world)
    for case, certificate in cases.items():
        fields = {"certificate": certificate, "private_key": key_pem(SITE_KEY), "bundle_method": "force"}
        assert refusal(await upload(world, **fields)) == (400, [(1002, CERTIFICATE)]), case
    assert await stored(world) == before


async def test_odd_names_are_kept_as_they_are(world: World) -> None:
    """Addresses are hosts, other kinds of names are not, and a leaf without SANs has its common name."""
    names: list[x509.GeneralName] = [
        x509.DNSName("B.example.com"),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
        x509.RFC822Name("a@example.com"),
        x509.DNSName("*.a.example.com"),
    ]
    fields = {"private_key": key_pem(SITE_KEY), "bundle_method": "force"}
    made = await uploaded(world, certificate=self_signed(names=names, organization="Größe"), **fields)
    assert (made["hosts"], made["issuer"]) == (["B.example.com", "*.a.example.com"], "Größe")


async def test_fields_have_their_codes_and_places(world: World, ca: Authority, csr: Json) -> None:
    """Choices are 1434 in exact case, wrong JSON types 1453, lengths 1451; each field has one item."""
    good = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
    label = "/geo_restrictions/label"
    cases: dict[str, tuple[Json, Codes]] = {
        "bundle_method": ({"bundle_method": "Force"}, [(1434, "/bundle_method")]),
        "an empty bundle_method": ({"bundle_method": ""}, [(1434, "/bundle_method")]),
        "type": ({"type": "SNI_custom"}, [(1434, "/type")]),
        "deploy": ({"deploy": "Production"}, [(1434, "/deploy")]),
        "label": ({"geo_restrictions": {"label": "US"}}, [(1434, label)]),
        "an empty label": ({"geo_restrictions": {"label": ""}}, [(1434, label)]),
        "bundle_method of a number": ({"bundle_method": 5}, [(1453, "/bundle_method")]),
        "type of a list": ({"type": ["sni_custom"]}, [(1453, "/type")]),
        "deploy of a boolean": ({"deploy": True}, [(1453, "/deploy")]),
        "label of a number": ({"geo_restrictions": {"label": 1}}, [(1453, label)]),
        "geo_restrictions of a text": ({"geo_restrictions": "us"}, [(1453, "/geo_restrictions")]),
        "policy of a number": ({"policy": 1}, [(1453, "/policy")]),
        "policy with a control character": ({"policy": "a\x00b"}, [(1453, "/policy")]),
        "policy too long": ({"policy": "p" * 1025}, [(1451, "/policy")]),
        "private_key of a number": ({"private_key": 1}, [(1453, KEY)]),
        "custom_csr_id of a number": ({"custom_csr_id": 1}, [(1453, CSR)]),
        "custom_csr_id null": ({"custom_csr_id": None}, [(1430, CSR)]),
        "custom_csr_id empty": ({"custom_csr_id": ""}, [(1430, CSR)]),
        "custom_csr_id without dashes": ({"custom_csr_id": uuid4().hex}, [(1430, CSR)]),
        "custom_csr_id in braces": ({"custom_csr_id": f"{{{uuid4()}}}"}, [(1430, CSR)]),
        "custom_csr_id with NUL": ({"custom_csr_id": "\x00"}, [(1430, CSR)]),
        "all at once": (
            {"certificate": None, "type": "x", "deploy": "x", "custom_csr_id": "x", "policy": []},
            [(1002, CERTIFICATE), (1430, CSR), (1434, "/type"), (1434, "/deploy"), (1453, "/policy")],
        ),
    }
    await judged(world, {case: ({**good, **fields}, codes) for case, (fields, codes) in cases.items()})


async def test_the_csr_is_one_of_the_zone_or_of_its_account(world: World, ca: Authority) -> None:
    """Unknown CSRs and those of another zone or account are 404/1431; the account's own list is fine."""
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    others = f"/client/v4/zones/{other.id.hex}/custom_csrs"
    foreign = [
        await world.create(path=others),
        await world.create(world.b),
        await world.create(world.b, path=world.b.zone_path),
    ]
    ids = [str(uuid4()), *(each["id"] for each in foreign)]
    leaves = [pem(site(ca)), *(pem(ca.of_csr(each["csr"])) for each in foreign)]
    await judged(
        world,
        {
            str(place): ({"certificate": leaf, "custom_csr_id": csr_id}, [(1431, None)])
            for place, (leaf, csr_id) in enumerate(zip(leaves, ids, strict=True))
        },
    )
    own = await world.create()
    await uploaded(world, certificate=pem(ca.of_csr(own["csr"])), custom_csr_id=own["id"].upper())


async def test_a_mismatch_names_the_csr_that_matches(world: World, ca: Authority) -> None:
    """A caller of the whole account is told the other CSR, wherever in the account it is; nobody's key is not named."""
    asked = await world.create(path=world.a.zone_path)
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    for place in (*world.a.paths, f"/client/v4/zones/{other.id.hex}/custom_csrs"):
        right = await world.create(path=place)
        answer = await upload(world, certificate=pem(ca.of_csr(right["csr"])), custom_csr_id=asked["id"])
        assert refusal(answer) == (400, [(2200, CERTIFICATE)])
        assert asked["id"] in answer.text
        assert right["id"] in answer.text
    theirs = await world.create(world.b)
    for leaf in (ca.of_csr(theirs["csr"]), site(ca)):
        answer = await upload(world, certificate=pem(leaf), custom_csr_id=asked["id"])
        assert refusal(answer) == (400, [(2200, CERTIFICATE)])
        assert theirs["id"] not in answer.text
        assert "it is that of" not in answer.text


async def test_a_mismatch_tells_a_zones_token_of_that_zone_only(world: World, ca: Authority) -> None:
    """A token for one zone is told a CSR of the zone, and neither one of the account nor one of another zone."""
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    groups = ("SSL and Certificates Write",)
    token = await make_token(world.services, world.a.account, groups=groups, zones=(world.a.zone,))
    headers = {"Authorization": f"Bearer {token}"}
    asked = await world.create(path=world.a.zone_path)
    places = {
        world.a.zone_path: True,
        world.a.account_path: False,
        f"/client/v4/zones/{other.id.hex}/custom_csrs": False,
    }
    for place, told in places.items():
        right = await world.create(path=place)
        fields = {"certificate": pem(ca.of_csr(right["csr"])), "custom_csr_id": asked["id"]}
        answer = await world.http.post(path(world), json=fields, headers=headers)
        assert refusal(answer) == (400, [(2200, CERTIFICATE)])
        assert (right["id"] in answer.text) is told


async def test_bad_private_keys_are_refused(world: World, ca: Authority) -> None:
    """Unreadable, encrypted, weak, odd and missing keys are 2106, those of another certificate 2200."""
    leaf = {"certificate": pem(site(ca))}
    pkcs8 = serialization.PrivateFormat.PKCS8

    def encrypted(form: serialization.PrivateFormat, key: Any = SITE_KEY) -> str:
        text: bytes = key.private_bytes(serialization.Encoding.PEM, form, BEST)
        return text.decode()

    sent = {
        "encrypted PKCS#8": encrypted(pkcs8),
        "encrypted PKCS#1": encrypted(TRADITIONAL, RSA_KEY),
        "encrypted SEC1": encrypted(TRADITIONAL),
        "garbage in a block": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "not ASCII in a block": "-----BEGIN PRIVATE KEY-----\n\ud800é\n-----END PRIVATE KEY-----\n",
        "an empty block": "-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n",
        "an OpenSSH key": SITE_KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ).decode(),
        "RSA with an exponent of 3": key_pem(rsa.generate_private_key(3, 2048)),
        "RSA-1024": key_pem(rsa.generate_private_key(65537, 1024)),
        "P-224": openssl("ecparam", "-name", "secp224r1", "-genkey", "-noout"),
        "secp256k1": openssl("ecparam", "-name", "secp256k1", "-genkey", "-noout"),
        "brainpool": openssl("ecparam", "-name", "brainpoolP256r1", "-genkey", "-noout"),
        "Ed25519": openssl("genpkey", "-algorithm", "ed25519"),
        "X25519": openssl("genpkey", "-algorithm", "x25519"),
        "DSA of old": "-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n",
        "no key": "unused",
        "empty": "",
        "null": None,
    }
    table: dict[str, tuple[Json, Codes]] = {
        case: ({**leaf, "private_key": text}, [(2106, KEY)]) for case, text in sent.items()
    }
    table["missing"] = (leaf, [(2106, KEY)])
    another = ec.generate_private_key(ec.SECP256R1())
    table["another key"] = ({**leaf, "private_key": key_pem(another)}, [(2200, CERTIFICATE)])
    await judged(world, table)


async def test_an_rsa_pss_key_is_refused_by_name(world: World, ca: Authority) -> None:
    """It would be exported as rsaEncryption beside a certificate that says id-RSASSA-PSS: a pair that nothing loads."""
    key = openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    own = openssl(
        "req", "-x509", "-key", "/dev/stdin", "-subj", f"/CN={SITE}", "-addext", "basicConstraints=CA:false", text=key
    )
    answer = await upload(world, certificate=own, private_key=key, bundle_method="force")
    assert refusal(answer) == (400, [(2106, KEY)])
    assert "RSA-PSS" in answer.text


async def test_an_rsa_key_with_a_wrong_part_is_refused(world: World, ca: Authority) -> None:
    """A key whose private part does not belong to its public one would sign nothing: OpenSSL's full check finds it."""
    numbers = RSA_KEY.private_numbers()
    broken = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    leaf = ca.sign(RSA_KEY.public_key(), subject(SITE), hosts=[SITE])
    answer = await upload(world, certificate=pem(leaf), private_key=key_pem(broken))
    assert refusal(answer) == (400, [(2106, KEY)])


async def test_a_key_that_is_too_large_is_refused_before_it_is_checked(world: World, ca: Authority) -> None:
    """The full check of RSA-8676 takes many seconds of a core, so the bound comes first."""
    key = rsa_of_known_primes(4253, 4423)
    started = time.process_time()
    answer = await upload(world, certificate=pem(site(ca)), private_key=key_pem(key))
    assert refusal(answer) == (400, [(2106, KEY)])
    assert "RSA-8676" in answer.text
    # No timing but the check is looked for: it takes over ten seconds of the processor, and the bound none.
    assert time.process_time() - started < 8


_FORMS: list[tuple[str, Callable[[], Any], serialization.PrivateFormat]] = [
    ("P-256 in PKCS#8", lambda: SITE_KEY, serialization.PrivateFormat.PKCS8),
    ("P-256 in SEC1", lambda: SITE_KEY, TRADITIONAL),
    ("P-384", lambda: ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.PKCS8),
    ("P-521", lambda: ec.generate_private_key(ec.SECP521R1()), TRADITIONAL),
    ("RSA-2048 in PKCS#8", lambda: RSA_KEY, serialization.PrivateFormat.PKCS8),
    ("RSA-2048 in PKCS#1", lambda: RSA_KEY, TRADITIONAL),
    ("RSA-3072", lambda: rsa.generate_private_key(65537, 3072), serialization.PrivateFormat.PKCS8),
]


@pytest.mark.parametrize(("make", "form"), [row[1:] for row in _FORMS], ids=[row[0] for row in _FORMS])
async def test_an_uploaded_key_is_sealed_and_goes_with_its_certificate(
    world: World, ca: Authority, make: Callable[[], Any], form: serialization.PrivateFormat
) -> None:
    """PKCS#8, PKCS#1 and SEC1 open and match later on; deleting the certificate destroys the key."""
    key = make()
    leaf = ca.sign(key.public_key(), subject(SITE), hosts=[SITE])
    before = await stored(world)
    made = await uploaded(world, certificate=pem(leaf), private_key=f"text\n{key_pem(key, form)}".replace("\n", "\r\n"))
    assert await opens(world, made)
    assert "custom_csr_id" not in made
    assert (await world.http.delete(path(world, f"/{made['id']}"), headers=world.a.bearer)).status_code == 200
    assert (await stored(world))[:4] == before[:4]


async def test_an_ec_key_behind_its_parameters_is_read(world: World, ca: Authority) -> None:
    """`openssl ecparam -genkey` writes the parameters first; the key behind them is found."""
    text = openssl("ecparam", "-name", "prime256v1", "-genkey")
    assert "EC PARAMETERS" in text
    key = serialization.load_pem_private_key(text.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    leaf = ca.sign(key.public_key(), subject(SITE), hosts=[SITE])
    await uploaded(world, certificate=pem(leaf), private_key=text)


@pytest.mark.parametrize("value", ["unused", "", None, "-----BEGIN PUBLIC KEY-----"])
async def test_what_is_no_key_beside_a_csr_is_ignored_with_a_message(
    world: World, ca: Authority, csr: Json, value: str | None
) -> None:
    """Terraform must send a private_key: the answer says that it was ignored."""
    answer = await upload(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"], private_key=value)
    assert refusal(answer) == (200, [(1486, KEY)])


async def test_the_csrs_own_key_is_accepted_and_not_stored_again(world: World, ca: Authority, csr: Json) -> None:
    """Who sends the key as well is believed once it matches; another key is 2200."""
    before = await stored(world)
    fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
    answer = await upload(world, **fields, private_key=key_pem(SITE_KEY))
    assert refusal(answer) == (400, [(2200, KEY)])
    assert await stored(world) == before
    made = await uploaded(world, **fields, private_key=key_pem(await world.key_of(csr["id"])))
    assert made["custom_csr_id"] == csr["id"]
    assert (await stored(world))[0] == before[0]


async def test_the_same_certificate_again_is_one_of_its_own_and_names_its_twin(world: World, ca: Authority) -> None:
    """A second upload has an id of its own and message 1486 with the other's; other zones and leaves are no twins."""
    csr = await world.create()
    fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
    first = await uploaded(world, **fields)
    own_key = {"certificate": fields["certificate"], "private_key": key_pem(await world.key_of(csr["id"]))}
    for again in ({**fields, "type": "sni_custom"}, fields, own_key):
        answer = await upload(world, **again)
        assert [text for code, text in messages(answer) if code == 1486 and first["id"] in text]
        twin = answer.json()["result"]["id"]
        assert (await world.http.delete(path(world, f"/{twin}"), headers=world.a.bearer)).status_code == 200
        assert (await world.http.get(path(world, f"/{first['id']}"), headers=world.a.bearer)).status_code == 200
    unlike = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    same = await edit(world, unlike, **fields)
    assert [text for code, text in messages(same) if code == 1486 and first["id"] in text]
    assert messages(await edit(world, unlike, **fields)) == []
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    there = f"/client/v4/zones/{other.id.hex}/custom_certificates"
    elsewhere = await world.http.post(there, json=fields, headers=world.a.bearer)
    assert (elsewhere.status_code, messages(elsewhere)) == (200, [])
    assert messages(await upload(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])) == []


async def test_an_idempotency_key_makes_one_certificate(world: World, ca: Authority) -> None:
    """A repeat gives the certificate that is there; another body is 409/1456, and after its deletion it is 404/1002."""
    csr = await world.create()
    fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
    headers = {**world.a.bearer, "Idempotency-Key": "once"}

    async def post(**more: Any) -> httpx.Response:
        return await world.http.post(path(world), json={**fields, **more}, headers=headers)

    made, *again = await asyncio.gather(*(post() for _ in range(5)))
    assert {each.json()["result"]["id"] for each in again} == {made.json()["result"]["id"]}
    assert (await stored(world))[2] == 1
    assert refusal(await post(type="sni_custom")) == (409, [(1456, None)])
    assert refusal(await post(certificate="x")) == (409, [(1456, None)])
    for key in ("", "x" * 256):
        wrong = await world.http.post(path(world), json=fields, headers={**headers, "Idempotency-Key": key})
        assert refusal(wrong) == (400, [(1456, None)])
    await world.http.delete(path(world, f"/{made.json()['result']['id']}"), headers=world.a.bearer)
    assert refusal(await post()) == (404, [(1002, None)])


async def test_the_public_policy_asks_for_a_host_of_the_zone(world: World, ca: Authority) -> None:
    """Under the name policy public a certificate names the zone or something below it; else it is 2103."""
    key = {"private_key": key_pem(SITE_KEY)}
    foreign = {**key, "certificate": pem(site(ca, hosts=["www.b.example.com", "xa.example.com", "example.com"]))}
    await uploaded(world, **foreign)
    await world.database.execute("UPDATE accounts SET name_policy = 'public' WHERE id = $1", world.a.account.id)
    foreign["certificate"] = pem(site(ca, hosts=["www.b.example.com", "xa.example.com", "example.com"]))
    await judged(world, {"a foreign host": (foreign, [(2103, CERTIFICATE)])})
    for hosts in (["A.example.com"], ["*.a.example.com"], ["example.org", "x.y.a.example.com"]):
        await uploaded(world, **key, certificate=pem(site(ca, hosts=hosts)))


async def test_the_quota_is_1212(world: World, ca: Authority, csr: Json) -> None:
    """A zone holds as many certificates as the operator says, and says how to change it; renewals go on."""
    zone_id = world.a.zone.id
    await world.database.execute("UPDATE zones SET certificate_quota = 1 WHERE id = $1", zone_id)
    held = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    before = await stored(world)
    more = {"certificate": pem(site(ca)), "private_key": key_pem(SITE_KEY)}
    answer = await upload(world, **more)
    assert refusal(answer) == (400, [(1212, None)])
    assert f"keystead zone set {zone_id.hex} --certificate-quota" in answer.text
    assert await stored(world) == before
    await edited(world, held, certificate=pem(ca.of_csr(csr["csr"])))
    assert (await world.http.delete(path(world, f"/{held['id']}"), headers=world.a.bearer)).status_code == 200
    await uploaded(world, **more)


async def test_ids_that_name_nothing_are_404(world: World, ca: Authority, csr: Json) -> None:
    """Unknown ids and what is no id are 404/1002 for every call."""
    ids = [str(uuid4()), "x", "%20", uuid4().hex, "None", f"{uuid4()}x", "0" * 300, "%C3%A9", "1%27--"]
    for tail in ids:
        for method in ("GET", "PATCH", "DELETE"):
            answer = await world.http.request(method, path(world, f"/{tail}"), json={}, headers=world.a.bearer)
            assert refusal(answer) == (404, [(1002, None)]), (method, tail)
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    capitals = await world.http.get(path(world, f"/{made['id'].upper()}"), headers=world.a.bearer)
    assert capitals.json()["result"] == made
    for tail, method in ((f"/{made['id']}", "PUT"), ("", "DELETE"), ("", "PATCH"), ("/prioritize", "POST")):
        answer = await world.http.request(method, path(world, tail), json={}, headers=world.a.bearer)
        assert refusal(answer) == (405, [(7001, None)]), (method, tail)


async def test_other_tenants_reach_nothing(world: World, ca: Authority, csr: Json) -> None:
    """In A's zone B is 403/9109; in B's own zone the ids of A's certificates and CSRs are 404; nothing changes."""
    leaf = pem(ca.of_csr(csr["csr"]))
    made = await uploaded(world, certificate=leaf, custom_csr_id=csr["id"])
    before = await stored(world)
    own = f"/client/v4/zones/{world.b.zone.id.hex}/custom_certificates"
    one, order = f"/{made['id']}", {"certificates": [{"id": made["id"], "priority": 5}]}
    calls: list[tuple[str, str, Any, Any]] = [
        ("GET", one, None, (404, [(1002, None)])),
        ("PATCH", one, {"policy": "x"}, (404, [(1002, None)])),
        ("DELETE", one, None, (404, [(1002, None)])),
        ("PUT", "/prioritize", order, (404, [(1002, None)])),
        ("POST", "", {"certificate": leaf, "custom_csr_id": csr["id"]}, (404, [(1431, None)])),
        ("GET", "", None, (200, [])),
    ]
    for headers in (world.b.bearer, {"X-Auth-Email": world.b.email, "X-Auth-Key": world.b.key}):
        for method, tail, body, expected in calls:
            answer = await world.http.request(method, path(world, tail), json=body, headers=headers)
            assert refusal(answer) == (403, [(9109, None)]), (method, tail)
            answer = await world.http.request(method, own + tail, json=body, headers=headers)
            assert refusal(answer) == expected, (method, tail)
            if answer.status_code == 200:
                assert answer.json()["result"] == []
    assert await stored(world) == before
    assert (await world.http.get(path(world, one), headers=world.a.bearer)).json()["result"] == made


async def test_another_zone_of_the_account_reaches_nothing(world: World, ca: Authority, csr: Json) -> None:
    """Through its path the certificate is 404 and not in the list, though the same token may do all in both zones."""
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    there, before = f"/client/v4/zones/{other.id.hex}/custom_certificates", await stored(world)
    order = {"certificates": [{"id": made["id"], "priority": 5}]}
    for method, tail, body in (
        ("GET", f"/{made['id']}", None),
        ("PATCH", f"/{made['id']}", {"policy": "x"}),
        ("DELETE", f"/{made['id']}", None),
        ("PUT", "/prioritize", order),
    ):
        answer = await world.http.request(method, there + tail, json=body, headers=world.a.bearer)
        assert refusal(answer) == (404, [(1002, None)]), method
    assert (await world.http.get(there, headers=world.a.bearer)).json()["result"] == []
    assert await stored(world) == before


async def test_a_token_that_reads_does_not_write(world: World, ca: Authority, csr: Json) -> None:
    """A read-only token lists and gets, and every other call is 403/9109."""
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    headers = {"Authorization": f"Bearer {world.a.read_token}"}
    before = await stored(world)
    for tail in ("", f"/{made['id']}"):
        assert (await world.http.get(path(world, tail), headers=headers)).status_code == 200
    for method, tail in (
        ("POST", ""),
        ("PATCH", f"/{made['id']}"),
        ("DELETE", f"/{made['id']}"),
        ("PUT", "/prioritize"),
    ):
        answer = await world.http.request(method, path(world, tail), json={"certificates": []}, headers=headers)
        assert refusal(answer) == (403, [(9109, None)]), method
    assert await stored(world) == before


# PATCH


async def test_each_field_alone_is_a_change(world: World, ca: Authority, csr: Json) -> None:
    """Any one field is a valid PATCH: it changes that field and modified_on, and writes one audit row."""
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    fields: list[tuple[Json, Json]] = [
        ({"bundle_method": "force"}, {"bundle_method": "force"}),
        ({"type": "sni_custom"}, {"type": "sni_custom"}),
        ({"geo_restrictions": {"label": "eu"}}, {"geo_restrictions": {"label": "eu"}}),
        ({"policy": "(country: US)"}, {"policy_restrictions": "(country: US)"}),
        ({"policy_restrictions": "(region: EU)"}, {"policy_restrictions": "(region: EU)"}),
        ({"deploy": "staging"}, {"deploy": "staging"}),
    ]
    for sent, shows in fields:
        before = await stored(world)
        after = await edited(world, made, **sent)
        assert after == {**made, **shows, "modified_on": after["modified_on"]}
        assert after["modified_on"] > made["modified_on"]
        assert await stored(world) == (*before[:4], before[4] + 1)
        made = after
    for sent, goes in (
        ({"geo_restrictions": None}, "geo_restrictions"),
        ({"policy": None}, "policy_restrictions"),
        ({"deploy": None}, "deploy"),
    ):
        after = await edited(world, made, **sent)
        assert after == {k: v for k, v in made.items() if k != goes} | {"modified_on": after["modified_on"]}
        made = after


async def test_what_changes_nothing_is_a_200_without_a_trace(world: World, ca: Authority, csr: Json) -> None:
    """{}, the same values, the certificate that is there, the key that is there: no new modified_on, no audit row."""
    middle = ca.intermediate()
    chain = pem(middle.of_csr(csr["csr"]), middle.certificate)
    fields = {"certificate": chain, "type": "sni_custom", "policy": "x", "geo_restrictions": {"label": "us"}}
    made = await uploaded(world, **fields, custom_csr_id=csr["id"])
    own = await uploaded(world, certificate=pem(site(ca)), private_key=key_pem(SITE_KEY))
    before = await stored(world)
    nothing: list[tuple[Json, Json]] = [
        (made, {}),
        (made, {"unknown": 1}),
        (made, {"certificate": chain}),
        (made, {"certificate": None, "private_key": None, "bundle_method": None, "type": None}),
        (made, {"certificate": ""}),
        (made, {"certificate": f"text\r\n{chain}{pem(ca.certificate)}", "custom_csr_id": csr["id"]}),
        (made, {**fields, "custom_csr_id": csr["id"].upper(), "bundle_method": "ubiquitous"}),
        (made, {"private_key": "unused"}),
        (made, {"private_key": key_pem(await world.key_of(csr["id"]))}),
        (made, {"deploy": None}),
        (own, {}),
        (own, {"private_key": key_pem(SITE_KEY, TRADITIONAL)}),
        (own, {"policy": None, "geo_restrictions": None}),
        (own, {"policy": "", "geo_restrictions": {}}),
    ]
    for certificate, sent in nothing:
        assert await edited(world, certificate, **sent) == certificate, sent
    assert await stored(world) == before


async def test_a_bad_patch_changes_nothing(world: World, ca: Authority, csr: Json) -> None:
    """The codes of an upload are those of a PATCH, and the certificate stays as it was."""
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    other = await world.create()
    before = await stored(world)
    bad: list[tuple[Json, int, Codes]] = [
        ({"custom_csr_id": None}, 400, [(1430, CSR)]),
        ({"custom_csr_id": str(uuid4())}, 404, [(1431, None)]),
        ({"custom_csr_id": other["id"]}, 400, [(2200, CERTIFICATE)]),
        ({"certificate": pem(ca.of_csr(other["csr"]))}, 400, [(2200, CERTIFICATE)]),
        ({"certificate": pem(ca.of_csr(csr["csr"], since=9, days=-1))}, 400, [(1457, CERTIFICATE)]),
        ({"certificate": pem(root("x").of_csr(csr["csr"]))}, 400, [(2100, CERTIFICATE)]),
        ({"certificate": 1}, 400, [(1453, CERTIFICATE)]),
        ({"certificate": "x"}, 400, [(1002, CERTIFICATE)]),
        ({"certificate": key_pem(SITE_KEY)}, 400, [(1002, CERTIFICATE)]),
        ({"private_key": key_pem(SITE_KEY)}, 400, [(2200, CERTIFICATE)]),
        ({"private_key": "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----"}, 400, [(2106, KEY)]),
        ({"bundle_method": "x"}, 400, [(1434, "/bundle_method")]),
    ]
    for sent, status, codes in bad:
        assert refusal(await edit(world, made, **sent)) == (status, codes), sent
    assert await stored(world) == before
    assert (await world.http.get(path(world, f"/{made['id']}"), headers=world.a.bearer)).json()["result"] == made


async def test_a_renewal_goes_from_key_to_key(world: World, ca: Authority, csr: Json) -> None:
    """From a CSR to another one, to an uploaded key, to another one and back: the id stays and each version is kept."""
    second = await world.create()
    new_key = ec.generate_private_key(ec.SECP256R1())
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"], policy="p")
    keys_before = (await stored(world))[0]
    steps: list[tuple[Json, str | None, int]] = [
        ({"certificate": pem(ca.of_csr(second["csr"])), "custom_csr_id": second["id"]}, second["id"], 0),
        ({"certificate": pem(site(ca)), "private_key": key_pem(SITE_KEY)}, None, 1),
        ({"certificate": pem(site(ca))}, None, 1),
        (
            {
                "certificate": pem(ca.sign(new_key.public_key(), subject(SITE), hosts=[SITE])),
                "private_key": key_pem(new_key),
            },
            None,
            1,
        ),
        ({"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}, csr["id"], 0),
    ]
    for number, (sent, csr_id, own_keys) in enumerate(steps, 1):
        after = await edited(world, made, **sent)
        assert (after["id"], after.get("custom_csr_id"), after["policy_restrictions"]) == (made["id"], csr_id, "p")
        assert after["uploaded_on"] > made["uploaded_on"]
        assert await opens(world, after)
        counts = await stored(world)
        assert (counts[0], counts[3]) == (keys_before + own_keys, number)
        made = after
    history = await world.database.fetch("SELECT custom_csr_id FROM certificate_history ORDER BY superseded_at")
    expected = [csr["id"], second["id"], None, None, None]
    assert [row["custom_csr_id"] and str(row["custom_csr_id"]) for row in history] == expected


async def test_a_superseded_csr_can_be_deleted(world: World, ca: Authority, csr: Json) -> None:
    """Only what a certificate is now protects a CSR; what it was stays in its history, and goes with it."""
    second = await world.create()
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    first_path = f"{world.a.zone_path}/{csr['id']}"
    assert (await world.http.delete(first_path, headers=world.a.bearer)).status_code == 409
    await edited(world, made, certificate=pem(ca.of_csr(second["csr"])), custom_csr_id=second["id"])
    assert (await world.http.delete(first_path, headers=world.a.bearer)).status_code == 200
    assert (await stored(world))[:4] == (1, 1, 1, 1)
    assert (await world.http.delete(path(world, f"/{made['id']}"), headers=world.a.bearer)).status_code == 200
    assert (await stored(world))[:4] == (1, 1, 0, 0)


async def test_deletion_is_blocked_by_every_certificate(world: World, ca: Authority) -> None:
    """A CSR of the account that certificates of two zones use is named with both, and is free after the last."""
    csr = await world.create()
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    paths = [path(world), f"/client/v4/zones/{other.id.hex}/custom_certificates"]
    ids = []
    for place in paths:
        fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
        answer = await world.http.post(place, json=fields, headers=world.a.bearer)
        ids.append(answer.json()["result"]["id"])
    for place, csr_id in zip(paths, ids, strict=True):
        blocked = await world.http.delete(f"{world.a.account_path}/{csr['id']}", headers=world.a.bearer)
        assert refusal(blocked) == (409, [(1420, None)])
        assert csr_id in blocked.text
        await world.http.delete(f"{place}/{csr_id}", headers=world.a.bearer)
    assert (await world.http.delete(f"{world.a.account_path}/{csr['id']}", headers=world.a.bearer)).status_code == 200


# Lists


async def test_lists_have_pages_in_the_order_of_priority(world: World, ca: Authority) -> None:
    """Highest priority first, then the latest; pages do not overlap, and past the end there is nothing."""
    key = key_pem(SITE_KEY)
    made = [await uploaded(world, certificate=pem(site(ca)), private_key=key) for _ in range(7)]
    order = [made[3], *(each for each in reversed(made) if each is not made[3])]
    body = {"certificates": [{"id": made[3]["id"], "priority": 9}]}
    await world.http.put(path(world, "/prioritize"), json=body, headers=world.a.bearer)
    expected = [each["id"] for each in order]
    assert await listed(world) == expected
    assert await listed(world, "?per_page=5") == expected[:5]
    assert await listed(world, "?per_page=5.0&page=2") == expected[5:]
    assert await listed(world, "?per_page=5&page=3") == []
    assert await listed(world, "?page=9007199254740991") == []
    answer = await world.http.get(path(world) + "?per_page=5&page=2", headers=world.a.bearer)
    info = {"count": 2, "page": 2, "per_page": 5, "total_count": 7, "total_pages": 2}
    assert answer.json()["result_info"] == info


async def test_states_are_true_at_any_moment(world: World, ca: Authority, csr: Json) -> None:
    """Pending before its time, active in it and expired after it, in the object and in the filter, with no job run."""
    leaf = ca.of_csr(csr["csr"], since=-5)
    made = await uploaded(world, certificate=pem(leaf), custom_csr_id=csr["id"])
    assert made["status"] == "pending"
    for status, change in (
        ("pending", "not_before = now() + interval '1 hour'"),
        ("active", "not_before = now() - interval '1 hour'"),
        ("expired", "not_after = now() - interval '1 second'"),
    ):
        await world.database.execute(f"UPDATE custom_certificates SET {change}")
        got = await world.http.get(path(world, f"/{made['id']}"), headers=world.a.bearer)
        assert got.json()["result"]["status"] == status
        for wanted in ("pending", "active", "expired", "deleted", "initializing"):
            for match in ("", "&match=all", "&match=any"):
                found = await listed(world, f"?status={wanted}{match}")
                assert found == ([made["id"]] if wanted == status else [])


@pytest.mark.parametrize(("minutes", "status"), [(4, "active"), (6, "pending")])
async def test_a_leaf_that_begins_within_five_minutes_is_active(
    world: World, ca: Authority, csr: Json, minutes: int, status: str
) -> None:
    """A clock may be ahead by less than five minutes, in the object and in the filter; what begins later is pending."""
    leaf = ca.of_csr(csr["csr"], since=-minutes / 1440)
    made = await uploaded(world, certificate=pem(leaf), custom_csr_id=csr["id"])
    assert made["status"] == status
    assert await listed(world, f"?status={status}") == [made["id"]]
    for other in {"active", "pending"} - {status}:
        assert await listed(world, f"?status={other}") == []


@pytest.mark.parametrize(
    ("query", "good"),
    [
        ("unknown=1&unknown=2", True),
        ("page=2.0&per_page=5.00", True),
        ("page=0", False),
        ("page=1.5", False),
        ("page=x", False),
        ("per_page=4", False),
        ("per_page=51", False),
        ("per_page=50&per_page=50", False),
        ("status=Active", False),
        ("status=", False),
        ("status=active,expired", False),
        ("status=active&status=expired", False),
        ("match=ALL", False),
        ("match=none", False),
        ("match=%FF", False),
        ("status=active%00", False),
    ],
)
async def test_a_bad_query_is_1455(world: World, query: str, good: bool) -> None:
    """Out of range, of another form, twice or unreadable: 400/1455 with what is allowed."""
    answer = await world.http.get(f"{path(world)}?{query}", headers=world.a.bearer)
    assert refusal(answer) == ((200, []) if good else (400, [(1455, None)]))


# prioritize


async def test_prioritize_sets_what_it_names_and_shows_the_zone(world: World, ca: Authority) -> None:
    """Whole numbers in any spelling, 1.0 too; the answer has all certificates, the highest first."""
    key = key_pem(SITE_KEY)
    one, two, three = [await uploaded(world, certificate=pem(site(ca)), private_key=key) for _ in range(3)]
    sent = {"certificates": [{"id": one["id"], "priority": 1.0}, {"id": two["id"].upper(), "priority": 2**31 - 1}]}
    audited = (await stored(world))[4]
    for rows in (2, 0):
        answer = await world.http.put(path(world, "/prioritize"), json=sent, headers=world.a.bearer)
        result = answer.json()["result"]
        assert [(each["id"], each["priority"]) for each in result] == [
            (two["id"], 2**31 - 1),
            (one["id"], 1),
            (three["id"], 0),
        ]
        assert (await stored(world))[4] == audited + rows
        audited += rows
    empty = await world.http.put(path(world, "/prioritize"), json={"certificates": []}, headers=world.a.bearer)
    assert empty.json()["result"] == result
    assert (await stored(world))[4] == audited


async def test_a_bad_prioritize_changes_nothing(world: World, ca: Authority) -> None:
    """Bad numbers, twice the same id, ids of other zones: nothing of the request is done."""
    key = key_pem(SITE_KEY)
    made = await uploaded(world, certificate=pem(site(ca)), private_key=key)
    second = await uploaded(world, certificate=pem(site(ca)), private_key=key)
    other = await zones.create_in(world.database, first_start.operator(), world.a.account, "other.example.com")
    there = f"/client/v4/zones/{other.id.hex}/custom_certificates"
    fields = {"certificate": pem(site(ca)), "private_key": key}
    foreign = (await world.http.post(there, json=fields, headers=world.a.bearer)).json()["result"]
    before = await stored(world)
    good = {"id": second["id"], "priority": 7}
    here: Codes = [(1453, "/certificates/1")]
    numbers: list[Any] = [-1, 1.5, 2**31, 1e300, True, "1", None, [1]]
    entries: list[tuple[Any, int, Codes]] = [
        *(({"id": made["id"], "priority": value}, 400, here) for value in numbers),
        ({"id": made["id"]}, 400, here),
        ({"priority": 1}, 400, here),
        ({"id": 5, "priority": 1}, 400, here),
        (None, 400, here),
        ("x", 400, here),
        ({"id": second["id"].upper(), "priority": 8}, 400, here),
        ({"id": "x", "priority": 1}, 404, [(1002, None)]),
        ({"id": "", "priority": 1}, 404, [(1002, None)]),
        ({"id": str(uuid4()), "priority": 1}, 404, [(1002, None)]),
        ({"id": foreign["id"], "priority": 1}, 404, [(1002, None)]),
    ]
    for entry, status, codes in entries:
        body = {"certificates": [good, entry]}
        answer = await world.http.put(path(world, "/prioritize"), json=body, headers=world.a.bearer)
        assert refusal(answer) == (status, codes), entry
    values: list[Any] = [None, {}, "x", [good] * 1001]
    bodies: list[Json] = [{}, *({"certificates": value} for value in values)]
    for body in bodies:
        answer = await world.http.put(path(world, "/prioritize"), json=body, headers=world.a.bearer)
        assert refusal(answer) == (400, [(1453, "/certificates")])
    assert await stored(world) == before
    rows = await world.database.fetch("SELECT DISTINCT priority FROM custom_certificates")
    assert [row["priority"] for row in rows] == [0]


# Messages


async def test_few_days_left_are_told(world: World, ca: Authority, csr: Json) -> None:
    """Under 14 days are a message and never an error; 15 are none."""
    for days, codes in ((15.0, []), (13.9, [(1486, CERTIFICATE)]), (0.01, [(1486, CERTIFICATE)])):
        answer = await upload(world, certificate=pem(ca.of_csr(csr["csr"], days=days)), custom_csr_id=csr["id"])
        assert refusal(answer) == (200, codes)


async def test_names_that_differ_from_the_csrs_are_told(world: World, ca: Authority) -> None:
    """What the certificate lacks and what it has beyond the CSR are one message each; case and order are no matter."""
    csr = await world.create(sans=["A.example.com", "b.example.com"])
    for hosts, words in (
        (["b.example.com", "a.example.com"], []),
        (["a.example.com"], ["lacks"]),
        (["a.example.com", "b.example.com", "c.example.com"], ["beyond"]),
        (["c.example.com"], ["lacks", "beyond"]),
    ):
        answer = await upload(world, certificate=pem(ca.of_csr(csr["csr"], hosts=hosts)), custom_csr_id=csr["id"])
        messages = [message["message"] for message in answer.json()["messages"]]
        assert len(messages) == len(words)
        assert all(word in message for word, message in zip(words, messages, strict=True))
    assert ["a.example.com" in messages[0], "c.example.com" in messages[1]] == [True, True]


async def test_an_old_key_is_told(world: World, ca: Authority, csr: Json) -> None:
    """1485 comes on GET of the CSR, on the upload and on a renewal once the key is past the account's limit."""
    csr_path = f"{world.a.zone_path}/{csr['id']}"
    age = "UPDATE custom_csrs SET created_at = now() - $1 * interval '1 day'"
    made: Json = {}
    for days, limit, codes in ((398, 398, []), (399, 398, [1485]), (399, 400, []), (31, 30, [1485])):
        await world.database.execute(age, days)
        await world.database.execute("UPDATE accounts SET key_max_age_days = $1", limit)
        got = await world.http.get(csr_path, headers=world.a.bearer)
        assert [code for code, _ in shown(got)] == codes
        answer = await upload(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
        assert [code for code, _ in shown(answer)] == codes
        made = answer.json()["result"]
        answer = await edit(world, made, certificate=pem(ca.of_csr(csr["csr"])))
        assert [code for code, _ in shown(answer)] == codes


async def test_unknown_fields_are_told_and_ignored(world: World, ca: Authority, csr: Json) -> None:
    """1480 with the field's place, at most 20 of them, whatever characters the field has."""
    fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"], "hosts": [], "a/b~": 1}
    answer = await upload(world, **fields)
    assert refusal(answer) == (200, [(1480, "/hosts"), (1480, "/a~1b~0")])
    made = answer.json()["result"]
    assert shown(await edit(world, made, **{f"x{i}": 1 for i in range(30)})) == [(1480, f"/x{i}") for i in range(20)]


async def test_a_field_that_is_no_text_of_unicode_is_no_failure(world: World, ca: Authority, csr: Json) -> None:
    """An unknown field named by half a character is told like any other, on certificates and on CSRs."""
    fields = {"certificate": pem(ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"], "\ud800": 1}
    assert (await upload(world, **fields)).status_code == 200
    answer = await world.http.post(
        world.a.account_path, content=json.dumps({**BODY, "\ud800": 1}), headers=world.a.bearer
    )
    assert answer.status_code == 201


async def test_what_the_object_says_is_the_certificates(world: World, csr: Json) -> None:
    """Issuer is its O, the signature is written as Cloudflare does, the times are the leaf's, and no PEM comes back."""
    for ca, signature, digest in (
        (root("EC"), "ECDSAWithSHA384", hashes.SHA384()),
        (root("RSA", RSA_KEY), "SHA256WithRSA", hashes.SHA256()),
    ):
        world.trust(chains.anchors([pem(ca.certificate).encode()]))
        leaf = ca.of_csr(csr["csr"], digest=digest)
        made = await uploaded(world, certificate=pem(leaf), custom_csr_id=csr["id"])
        assert made["issuer"] == "Test Trust"
        assert made["signature"] == signature
        assert made["expires_on"] == leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (made["zone_id"], made["type"], made["bundle_method"]) == (
            world.a.zone.id.hex,
            "legacy_custom",
            "ubiquitous",
        )
        assert "BEGIN" not in str(made)


async def test_a_zone_that_holds_a_certificate_is_not_deleted(world: World, ca: Authority) -> None:
    """The operator is told of the certificate instead, so that no key is left behind."""
    await uploaded(world, certificate=pem(site(ca)), private_key=key_pem(SITE_KEY))
    with pytest.raises(Conflict, match="1 certificates"):
        await zones.delete(world.database, first_start.operator(), Scope(world.a.zone.account_id, world.a.zone.id))


# The official SDK, against a server of processes


@pytest.fixture
def client(live: Live, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)
    with cloudflare.Cloudflare() as made:
        yield made


@pytest.mark.parametrize("key_type", ["p256v1", "rsa2048"])
@pytest.mark.parametrize("scope", ["account_id", "zone_id"])
def test_the_sdk_walks_the_whole_road(client: cloudflare.Cloudflare, live: Live, scope: str, key_type: str) -> None:
    """CSR, sign behind an intermediate, upload, list, get, prioritize, renew, delete blocked, deleted: all typed."""
    zone_id = live.env["CLOUDFLARE_ZONE_ID"]
    where: Json = {scope: live.env[f"CLOUDFLARE_{scope.upper()}"]}
    csr = client.custom_csrs.create(**where, **{**BODY, "key_type": key_type})
    assert csr is not None
    assert csr.csr
    middle = live.ca.intermediate()
    chain = pem(middle.of_csr(csr.csr), middle.certificate)
    made = client.custom_certificates.create(zone_id=zone_id, certificate=chain, custom_csr_id=csr.id)
    assert made is not None
    assert (made.status, made.hosts, made.custom_csr_id, made.zone_id) == ("active", BODY["sans"], csr.id, zone_id)
    assert made.expires_on is not None
    assert made.expires_on > datetime.now(UTC) + timedelta(days=80)
    assert client.custom_certificates.get(made.id, zone_id=zone_id) == made
    pages = client.custom_certificates.list(zone_id=zone_id, status="active", match="all", per_page=5)
    assert made.id in [each.id for each in pages]
    wanted: Any = [{"id": made.id, "priority": 1.0}]
    order = client.custom_certificates.prioritize.update(zone_id=zone_id, certificates=wanted)
    assert {each.id: each.priority for each in order.result}[made.id] == 1
    renewed = client.custom_certificates.edit(
        made.id, zone_id=zone_id, certificate=pem(middle.of_csr(csr.csr), middle.certificate), bundle_method="optimal"
    )
    assert renewed is not None
    assert (renewed.id, renewed.priority, renewed.bundle_method) == (made.id, 1, "optimal")
    with pytest.raises(cloudflare.ConflictError) as raised:
        client.custom_csrs.delete(csr.id, **where)
    assert [error.code for error in raised.value.errors] == [1420]
    # The SDK counts its own repeats in this header.
    assert (client.max_retries, raised.value.request.headers["x-stainless-retry-count"]) == (2, "0")
    deleted = client.custom_certificates.delete(made.id, zone_id=zone_id)
    assert deleted is not None
    assert deleted.id == made.id
    client.custom_csrs.delete(csr.id, **where)
    with pytest.raises(cloudflare.NotFoundError):
        client.custom_certificates.get(made.id, zone_id=zone_id)


def test_the_sdk_uploads_a_key_of_ones_own(client: cloudflare.Cloudflare, live: Live) -> None:
    """A certificate with its private key, every optional field, and their removal by null."""
    zone_id = live.env["CLOUDFLARE_ZONE_ID"]
    made = client.custom_certificates.create(
        zone_id=zone_id,
        certificate=pem(site(live.ca)),
        private_key=key_pem(SITE_KEY),
        geo_restrictions={"label": "highest_security"},
        policy="(country: US)",
        type="sni_custom",
        deploy="production",
    )
    assert made is not None
    assert made.geo_restrictions is not None
    assert (made.geo_restrictions.label, made.policy_restrictions) == ("highest_security", "(country: US)")
    with pytest.raises(cloudflare.BadRequestError) as raised:
        client.custom_certificates.edit(made.id, zone_id=zone_id, certificate="x")
    assert [(error.code, error.source and error.source.pointer) for error in raised.value.errors] == [
        (1002, CERTIFICATE)
    ]
    nothing = client.custom_certificates.edit(made.id, zone_id=zone_id)
    assert nothing == made
    client.custom_certificates.delete(made.id, zone_id=zone_id)


def _scope(tenant: Tenant) -> Scope:
    return Scope(tenant.account.id, tenant.zone.id)


class OwnRoots:
    """Roots of the account's own CAs, as rows of a CA that was made over the API."""

    def __init__(self, world: World, ca_id: str) -> None:
        self.world, self.ca_id, self.version = world, UUID(ca_id), 1

    @classmethod
    async def made(cls, world: World) -> "OwnRoots":
        body = {
            "projectSlug": world.a.account.slug,
            "type": "root",
            "commonName": "Own",
            "keyAlgorithm": "EC_prime256v1",
        }
        answer = await world.http.post("/api/v1/pki/ca", json=body, headers=world.a.bearer)
        assert answer.status_code == 200, answer.text
        return cls(world, answer.json()["ca"]["id"])

    async def add(self, text: str, name: x509.Name | None = None, key_id: bytes | None = None) -> None:
        self.version += 1
        values = (self.world.a.account.id, self.ca_id, self.version, text)
        await self.world.database.execute(
            "INSERT INTO ca_certificates (account_id, id, ca_id, version, serial, sha256, not_before, not_after, pem, "
            "chain, root, root_subject_sha256, root_key_id) VALUES ($1, gen_random_uuid(), $2, $3, '01', "
            "sha256(convert_to($4, 'UTF8')), now(), now(), $4, '', $4, $5, $6)",
            *values,
            name and chains.name_sha256(name),
            key_id,
        )

    async def loaded(self, *sent: x509.Certificate) -> list[str]:
        return await matching._own_roots(self.world.database, _scope(self.world.a), sent)


async def test_only_roots_of_a_name_that_was_sent_are_loaded_and_the_key_that_is_meant_first(world: World) -> None:
    """Of 30 roots of one name ten are loaded, among them the one whose key id the leaf has; of other names none."""
    own = await OwnRoots.made(world)
    roots = [root("Same") for _ in range(30)]
    for each in roots:
        await own.add(pem(each.certificate), each.certificate.subject, chains.key_id(each.certificate))
    for meant in (roots[0], roots[29]):
        found = await own.loaded(site(meant))
        assert pem(meant.certificate) in found
        assert len(found) == matching.ROOTS_OF_ONE_NAME
    assert await own.loaded(site(root("Another"))) == []


async def test_a_root_that_one_account_loads_is_not_loaded_for_another(world: World) -> None:
    """The name alone does not make it trusted: it is the account's own, or none."""
    own, made = await OwnRoots.made(world), root("Same")
    await own.add(pem(made.certificate), made.certificate.subject)
    assert await own.loaded(site(made)) == [pem(made.certificate)]
    assert await matching._own_roots(world.database, _scope(world.b), (site(made),)) == []


async def test_a_root_that_an_earlier_release_wrote_is_trusted_all_the_same(world: World, csr: Json) -> None:
    """Its row does not say the root's name, and is read, however many such rows came after it."""
    own, made = await OwnRoots.made(world), root("Same")
    await own.add(pem(made.certificate))
    for number in range(matching.ROOTS_OF_ONE_NAME + 2):
        await own.add(pem(root(f"Later {number}").certificate))
    answer = await upload(world, certificate=pem(made.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    assert answer.status_code == 200, answer.text


async def test_a_damaged_root_spoils_no_upload_but_its_own(world: World, ca: Authority, csr: Json) -> None:
    """Rows of which the root cannot be read, with its name or without, leave the other roots what they are."""
    own, made = await OwnRoots.made(world), root("Same")
    for name in (made.certificate.subject, ca.certificate.subject, None):
        for text in ("", pem(made.certificate)[:300], "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            await own.add(text, name)
    refused = await upload(world, certificate=pem(made.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    assert refusal(refused) == (400, [(2100, CERTIFICATE)])
    await own.add(pem(made.certificate), made.certificate.subject)
    for issuer in (made, ca):
        await uploaded(world, certificate=pem(issuer.of_csr(csr["csr"])), custom_csr_id=csr["id"])


async def test_a_ca_with_a_long_cyrillic_name_spoils_no_upload(world: World, ca: Authority, csr: Json) -> None:
    """Its name is within 64 characters and over 64 bytes, of which the library warns; others' uploads are taken."""
    body = {
        "projectSlug": world.a.account.slug,
        "type": "root",
        "commonName": "Ж" * 60,
        "keyAlgorithm": "EC_prime256v1",
    }
    made = await world.http.post("/api/v1/pki/ca", json=body, headers=world.a.bearer)
    assert made.json()["ca"]["status"] == "active", made.text
    await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])


async def test_a_stored_chain_is_judged_anew_without_the_rules_for_what_is_sent(
    world: World, ca: Authority, csr: Json
) -> None:
    """What `force` once took, with 25 certificates by now, is judged by its chain, not by how many there are."""
    made = await uploaded(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"], bundle_method="force")
    more = pem(*(root(f"Root {i}").certificate for i in range(25)))
    await world.database.execute("UPDATE custom_certificates SET chain = chain || $1", more)
    assert (await edited(world, made, bundle_method="ubiquitous"))["bundle_method"] == "ubiquitous"
    assert len(await chain_of(world, made)) == 1


async def test_too_many_chains_at_once_are_told_to_come_back(world: World, ca: Authority, csr: Json) -> None:
    """Chains are searched on a thread with a queue that is bounded: 503 with Retry-After, and nothing is stored."""
    before = await stored(world)
    world.state.services.pool._judges._most = 0
    answer = await upload(world, certificate=pem(ca.of_csr(csr["csr"])), custom_csr_id=csr["id"])
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert await stored(world) == before


async def test_a_search_within_many_roots_of_one_name_ends_at_its_bound(world: World, csr: Json) -> None:
    """40 roots of two names, and 19 intermediates that sign each other: 2100, and the text says that it gave up."""
    own = await OwnRoots.made(world)
    pair = [root(name) for name in ("One", "Two")]
    for each in pair:
        for _ in range(20):
            namesake = Authority(ec.generate_private_key(ec.SECP256R1()), each.certificate)
            await own.add(pem(_without_key_id(namesake, namesake)), each.certificate.subject)
    sent = [_without_key_id(pair[i % 2], pair[(i + 1) % 2]) for i in range(19)]
    public_key = x509.load_pem_x509_csr(csr["csr"].encode()).public_key()
    leaf = _without_key_id(pair[0], Authority(SITE_KEY, pair[0].certificate), public_key)
    answer = await upload(world, certificate=pem(leaf, *sent), custom_csr_id=csr["id"])
    assert refusal(answer) == (400, [(2100, CERTIFICATE)])
    assert "200 signature checks" in answer.text


def _without_key_id(issuer: Authority, of: Authority, leaf_key: Any = None) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject(SITE) if leaf_key else of.certificate.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(leaf_key or of.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(leaf_key is None, None), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )
