"""Chains as CAs send them: any order, loops, cross-signing, odd bytes; pure, without a server."""

import random
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st
from support.authority import Authority, bare_pem, csr_of, pem, root, rsa_of_known_primes, subject
from support.fuzzing import examples

from keystead.errors import Invalid, Rule
from keystead.x509 import chains, keys, paths, pkix

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = subject("www.example.com")
# The most that a body may have.
MOST = 256 * 1024


def leaf(ca: Authority, **changes: Any) -> x509.Certificate:
    return ca.sign(KEY.public_key(), NAME, **{"hosts": ["www.example.com"], **changes})


def trusting(*authorities: Authority) -> chains.Anchors:
    return chains.anchors([pem(*(each.certificate for each in authorities)).encode()])


def path(trusted: chains.Anchors, *sent: x509.Certificate) -> tuple[x509.Certificate, ...]:
    """What is sent above the leaf once a chain is arranged and verified."""
    bundle = chains.arrange(chains.read(pem(*sent)), chains.spki_digest(sent[0]))
    return paths.verify(bundle, trusted, datetime.now(UTC))


def refused(trusted: chains.Anchors, *sent: x509.Certificate) -> str:
    with pytest.raises(Invalid) as raised:
        path(trusted, *sent)
    (problem,) = raised.value.problems
    assert problem.rule is Rule.CHAIN
    return problem.text


def test_every_order_of_the_blocks_gives_the_same_chain() -> None:
    """Leaf, intermediates and root in any order, twice over, are one chain; the root is left out."""
    top = root()
    upper = top.intermediate("Upper")
    lower = upper.intermediate("Lower")
    end = leaf(lower)
    expected = (lower.certificate, upper.certificate)
    everything = [end, lower.certificate, upper.certificate, top.certificate]
    for first in range(4):
        turned = everything[first:] + everything[:first]
        bundle = chains.arrange(chains.read(pem(*turned, *reversed(turned))), chains.spki_digest(end))
        assert bundle.leaf == end
        assert paths.verify(bundle, trusting(top), datetime.now(UTC)) == expected


def test_of_two_leaves_the_one_with_the_key_is_taken() -> None:
    """Wherever it stands; without a key to go by, it is the first."""
    top, other = root(), ec.generate_private_key(ec.SECP256R1())
    end, stranger = leaf(top), top.sign(other.public_key(), subject("www.example.net"), hosts=["www.example.net"])
    for sent in ((end, stranger), (stranger, end)):
        assert chains.arrange(sent, chains.spki_digest(end)).leaf == end
        assert chains.arrange(sent, None).leaf == sent[0]


def test_extras_that_belong_to_no_step_are_dropped() -> None:
    """Certificates of other chains do not disturb a path that is there."""
    top, other = root(), root("Another Root")
    middle = top.intermediate()
    extras = (other.certificate, other.intermediate("Another").certificate, leaf(other))
    assert path(trusting(top), leaf(middle), *extras, middle.certificate) == (middle.certificate,)


def test_a_chain_with_a_loop_ends() -> None:
    """Two CAs that sign each other lead nowhere, and that is said."""
    one, two = root("One"), root("Two")
    first, second = two.cross(one), one.cross(two)
    assert "comes back to" in refused(trusting(root()), leaf(one), first, second)


def test_a_loop_with_a_way_out_is_a_path() -> None:
    """Where one CA of a loop is trusted, the chain to it is found."""
    one, two = root("One"), root("Two")
    first, second = two.cross(one), one.cross(two)
    assert path(trusting(two), leaf(one), first, second) == (first,)
    assert path(trusting(one), leaf(one), first, second) == ()


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_cross_signed_intermediates_the_trusted_way_is_taken(turned: bool) -> None:
    """An intermediate that an old and a new root have signed is sent in both forms: the one that is trusted counts."""
    old, new = root("Old Root"), root("New Root")
    middle = new.intermediate()
    both = [old.cross(middle), middle.certificate]
    assert path(trusting(new), leaf(middle), *(both[::-1] if turned else both)) == (middle.certificate,)


def test_two_roots_of_one_name_are_told_apart_by_their_keys() -> None:
    """A CA that renewed its key under the same name is found by the signature, not by the name."""
    first, second = root("Same"), root("Same")
    assert path(trusting(first, second), leaf(second)) == ()
    assert "is missing" in refused(trusting(first), leaf(second))


def test_a_missing_intermediate_is_named_by_subject_and_key_id() -> None:
    """The text has the missing certificate's name, and the key id as tools print it."""
    top = root()
    middle = top.intermediate("Missing CA")
    text = refused(trusting(top), leaf(middle))
    key_id = x509.SubjectKeyIdentifier.from_public_key(middle.key.public_key()).digest
    assert "CN=Missing CA" in text
    assert key_id.hex(":").upper() in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ca": False}, "is no CA certificate"),
        ({"days": -1.0, "since": 10}, "is not valid now"),
        ({"days": 20, "since": -10}, "is not valid now"),
        ({"key_usage": False}, ""),
    ],
)
def test_an_intermediate_has_to_be_a_ca_that_is_valid(changes: dict[str, Any], words: str) -> None:
    """No CA, expired and not yet valid are refused by name; a CA without keyUsage may sign (RFC 5280 section 6.1.4)."""
    top = root()
    key = ec.generate_private_key(ec.SECP256R1())
    made = top.sign(key.public_key(), subject("Odd CA"), **{"ca": True, **changes})
    end = leaf(Authority(key, made))
    if words:
        text = refused(trusting(top), end, made)
        assert words in text
        assert "Odd CA" in text
    else:
        assert path(trusting(top), end, made) == (made,)


@pytest.mark.parametrize(
    ("extension", "words"),
    [
        ("extendedKeyUsage=clientAuth", "does not have serverAuth"),
        ("1.2.3.4=critical,ASN1:NULL", "critical extension 1.2.3.4"),
    ],
)
def test_an_intermediate_is_for_servers_and_has_what_clients_know(extension: str, words: str) -> None:
    """One for another purpose, or with a critical extension that clients do not know, is refused by name."""
    top, key = root(), ec.generate_private_key(ec.SECP256R1())
    extensions = f"basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n{extension}\n"
    made = x509.load_pem_x509_certificate(top.by_openssl(csr_of(key, "Odd CA"), extensions=extensions).encode())
    text = refused(trusting(top), leaf(Authority(key, made)), made)
    assert words in text
    assert "Odd CA" in text


def test_a_path_length_counts_the_intermediates_below() -> None:
    """A CA with path length 0 signs leaves and no CAs."""
    top = root()
    upper = top.intermediate("Upper", path_length=0)
    lower = upper.intermediate("Lower")
    assert path(trusting(top), leaf(upper), upper.certificate) == (upper.certificate,)
    assert "shorter path" in refused(trusting(top), leaf(lower), lower.certificate, upper.certificate)


def test_an_intermediate_that_is_trusted_ends_the_chain() -> None:
    """An operator may trust an intermediate; what stands above it is not asked for."""
    middle = root().intermediate()
    assert path(trusting(middle), leaf(middle)) == ()
    assert path(trusting(middle), leaf(middle), middle.certificate) == ()


def test_an_expired_root_is_no_anchor() -> None:
    """A root in the trust store that has expired makes nothing valid."""
    top = root()
    key = ec.generate_private_key(ec.SECP256R1())
    expired = Authority(key, top.sign(key.public_key(), subject("Expired"), ca=True, since=9, days=-1))
    refused(trusting(expired), leaf(expired))


MINUTE = 1 / 1440


def bare(issuer: Authority, key: Any, name: x509.Name, *extensions: x509.ExtensionType, **changes: Any) -> Any:
    """A certificate with the extensions that are named, and no others but basicConstraints."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(changes.get("issuer_name", issuer.certificate.subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.BasicConstraints(changes.get("ca", True), None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def search(trusted: chains.Anchors | None, *others: x509.Certificate) -> paths.Search:
    return paths.Search(others, trusted, datetime.now(UTC))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_each_pair_is_checked_once_however_many_ways_lead_through_it() -> None:
    """Nineteen intermediates under two names that sign each other have 180 pairs, and no more checks than that."""
    one, two = Authority(KEY, root("One", KEY).certificate), root("Two")
    mutual = [
        bare(one, two.key, two.certificate.subject) if i % 2 else bare(two, one.key, one.certificate.subject)
        for i in range(19)
    ]
    looked = search(trusting(root()), *mutual)
    with pytest.raises(Invalid, match="comes back to"):
        looked.path(bare(one, KEY, NAME, ca=False))
    # Each way is as long as the other, so those of one name are all reached from the leaf, the others from the first.
    assert 19 <= looked.checks <= 9 * 10 * 2


def test_all_signature_checks_of_an_upload_have_one_bound() -> None:
    """200 roots and 19 intermediates of one name: the search ends with a sentence that says why (as code 2100)."""
    keys_ = [new_key() for _ in range(20)]
    roots = trusting(*(root("Same", keys_[i % 20]) for i in range(200)))
    meant = root("Same")
    others = [bare(meant, key, meant.certificate.subject) for key in keys_[:19]]
    looked = search(roots, *others)
    with pytest.raises(Invalid) as raised:
        looked.path(bare(meant, KEY, NAME, ca=False))
    assert looked.checks == paths.MAX_CHECKS == 200
    (problem,) = raised.value.problems
    assert problem.rule is Rule.CHAIN
    assert "200 signature checks" in problem.text


def test_a_key_id_picks_the_issuer_before_any_signature_is_checked() -> None:
    """Of 50 roots and 10 intermediates of one name each, only those with the key id that is named are verified."""
    tops = [root("Top") for _ in range(50)]
    middles = [tops[7].intermediate("Middle") for _ in range(10)]
    looked = search(trusting(*tops), *(each.certificate for each in middles))
    assert looked.path(leaf(middles[5]))[1:] == (middles[5].certificate, tops[7].certificate)
    assert looked.checks == 2


def test_a_certificate_whose_key_is_refused_has_no_signature_checked() -> None:
    """Such a key may be slow to verify with; the refusal names the key."""
    top = root()
    slow = rsa_of_known_primes(9689, 9941)
    made = bare(top, slow, subject("Slow CA"))
    looked = search(trusting(top), made)
    with pytest.raises(Invalid, match=r"the key of .*Slow CA"):
        looked.path(bare(Authority(KEY, made), KEY, NAME, ca=False))
    assert looked.checks == 0


def test_a_name_of_another_string_type_is_told_as_such() -> None:
    """The issuer was sent, and its common name is a UTF8String where the leaf has a PrintableString."""
    top = root()
    key = new_key()
    printable = x509.NameAttribute(NameOID.COMMON_NAME, "Mixed CA", _ASN1Type.PrintableString)
    middle = Authority(key, bare(top, key, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Mixed CA")])))
    end = bare(middle, KEY, NAME, ca=False, issuer_name=x509.Name([printable]))
    text = refused(trusting(top), end, middle.certificate)
    assert 'was sent, but is not the issuer of "CN=www.example.com' in text
    assert 'CN "Mixed CA" as UTF8String, and CN "Mixed CA" as PrintableString is named' in text
    cased = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MIXED ca")])
    text = refused(trusting(top), bare(middle, KEY, NAME, ca=False, issuer_name=cased), middle.certificate)
    assert 'CN "Mixed CA" as UTF8String, and CN "MIXED ca" as UTF8String is named' in text


def test_another_key_id_is_told_as_such() -> None:
    """The issuer was sent with another key id than the leaf names: both are told, and OpenSSL refuses it too."""
    top, other = root(), new_key()
    middle = top.intermediate("Middle CA")
    named, own = (x509.SubjectKeyIdentifier.from_public_key(k.public_key()).digest for k in (other, middle.key))
    end = bare(middle, KEY, NAME, x509.AuthorityKeyIdentifier(named, None, None), ca=False)
    text = refused(trusting(top), end, middle.certificate)
    assert "is missing" not in text
    assert f"its key id is {own.hex(':').upper()}, and {named.hex(':').upper()} is named" in text
    assert not verified_by_openssl(top.certificate, end, middle.certificate)


def test_another_serial_number_is_told_as_such() -> None:
    """A leaf may name its issuer's certificate by its issuer and serial number; a renewed one is another."""
    top = root()
    middle = top.intermediate("Middle CA")
    above = [x509.DirectoryName(top.certificate.subject)]
    for number, good in ((middle.certificate.serial_number, True), (middle.certificate.serial_number + 1, False)):
        end = bare(middle, KEY, NAME, x509.AuthorityKeyIdentifier(None, above, number), ca=False)
        assert verified_by_openssl(top.certificate, end, middle.certificate) is good
        if good:
            assert path(trusting(top), end, middle.certificate) == (middle.certificate,)
        else:
            assert f"and {number:x} is named" in refused(trusting(top), end, middle.certificate)


def test_a_signature_of_another_key_is_told_as_such() -> None:
    """The issuer was sent, by its name and without key ids, and another key signed."""
    top = root()
    middle, impostor = top.intermediate("Middle CA"), Authority(new_key(), top.intermediate("Middle CA").certificate)
    text = refused(trusting(top), bare(impostor, KEY, NAME, ca=False), middle.certificate)
    assert "was sent, but is not the issuer" in text
    assert "its key did not make the signature" in text


def test_a_trusted_root_of_the_name_with_another_key_is_told() -> None:
    """What is missing is missing, and the text says why the root of that name does not do."""
    first, second = root("Same"), root("Same")
    text = refused(trusting(first), leaf(second))
    assert "is missing" in text
    assert "a root of that name is trusted here, but its key id is" in text


def verified_by_openssl(top: x509.Certificate, end: x509.Certificate, *others: x509.Certificate) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, found in (("top", (top,)), ("end", (end,)), ("others", others)):
            (folder / file).write_text(pem(*found))
        words = ("-CAfile", folder / "top", "-untrusted", folder / "others", folder / "end")
        return subprocess.run(["openssl", "verify", *words], capture_output=True, check=False).returncode == 0


def test_every_way_of_cross_signed_cas_is_found() -> None:
    """In any web of CAs that sign each other a path is found where there is one, and OpenSSL verifies it."""
    chosen = random.Random(1)
    found = []
    for _ in range(25):
        cas = [root(f"CA {i}") for i in range(5)]
        web = {(a, b) for a in range(5) for b in range(5) if a != b and chosen.random() < 0.3}
        above = {0}
        for _ in cas:
            above |= {a for a, b in web if b in above}
        end, others = leaf(cas[0]), [cas[a].cross(cas[b]) for a, b in sorted(web)]
        found.append(4 in above)
        if found[-1]:
            taken = path(trusting(cas[4]), end, *others)
            assert verified_by_openssl(cas[4].certificate, end, *taken)
        else:
            refused(trusting(cas[4]), end, *others)
    assert set(found) == {True, False}


def test_a_chain_may_be_only_so_long() -> None:
    """Ten certificates above the leaf are taken, and of eleven the text says that there are too many."""
    top = lowest = root()
    for level in range(paths.MAX_DEPTH):
        lowest = lowest.intermediate(f"Level {level}")
    assert len(path(trusting(top), leaf(lowest), *lowest.above)) == paths.MAX_DEPTH
    lowest = lowest.intermediate("Too low")
    assert "more than 10 certificates" in refused(trusting(top), leaf(lowest), *lowest.above)


def renewed(authority: Authority, since: float = 1, days: float = 90) -> x509.Certificate:
    """A root's certificate anew, for the same key and name."""
    return authority.sign(authority.key.public_key(), authority.certificate.subject, ca=True, since=since, days=days)


@pytest.mark.parametrize("turned", [False, True])
def test_a_root_beside_its_renewed_twin_disturbs_nothing(turned: bool) -> None:
    """Both stand in what was sent, in either order, and one of them may have expired; so may a root of another CA."""
    top, stranger = root(), root("Stranger")
    middle = top.intermediate("Middle")
    low = middle.intermediate("Low")
    expired = renewed(top, since=9, days=-1)
    for twin in (renewed(top), expired):
        both = [top.certificate, twin, stranger.certificate][:: -1 if turned else 1]
        assert path(trusting(top), leaf(middle), *both, middle.certificate) == (middle.certificate,)
        above = paths.ordered(low.certificate, [*both, middle.certificate], datetime.now(UTC))
        assert above[0] == middle.certificate
        assert above[1] in {top.certificate, twin} - {expired}
        assert len(above) == 2


def test_what_is_above_a_ca_has_to_lead_to_a_root() -> None:
    """A gap, a root that is its own, and an issuer that is not fit are each told in a sentence."""
    top = root()
    middle, short = top.intermediate("Middle"), top.intermediate("Short", path_length=0)
    low = middle.intermediate("Low")
    for own, others, words in (
        (low.certificate, [], 'the issuer of "CN=Low,O=Test Trust" is missing: "CN=Middle'),
        (low.certificate, [middle.certificate], 'the issuer of "CN=Middle,O=Test Trust" is missing: "CN=Test Root'),
        (short.intermediate("Low").certificate, [short.certificate, top.certificate], "allows a shorter path"),
        (top.certificate, [], "is its own issuer"),
    ):
        with pytest.raises(Invalid) as raised:
            paths.ordered(own, others, datetime.now(UTC))
        assert words in raised.value.problems[0].text


@pytest.mark.parametrize(("minutes", "taken"), [(4, True), (6, False)])
def test_a_clock_that_is_ahead_by_less_than_five_minutes_is_forgiven(minutes: int, taken: bool) -> None:
    """In an upload and in what is imported for a CA, a certificate may begin so far ahead, and no further."""
    top = root()
    young = top.intermediate("Young CA", since=-minutes * MINUTE)
    low = young.intermediate("Low")
    youngest = top.intermediate("Youngest", since=-minutes * MINUTE)
    now = datetime.now(UTC)
    if taken:
        assert path(trusting(top), leaf(young), young.certificate) == (young.certificate,)
        assert paths.ordered(low.certificate, [young.certificate, top.certificate], now)
        assert paths.ordered(youngest.certificate, [top.certificate], now)
        return
    assert 'Young CA,O=Test Trust" in the chain is not valid now' in refused(
        trusting(top), leaf(young), young.certificate
    )
    for own, others in ((low.certificate, [young.certificate]), (youngest.certificate, [])):
        with pytest.raises(Invalid, match="is not valid now"):
            paths.ordered(own, [*others, top.certificate], now)


def test_a_root_of_ours_that_cannot_be_read_is_left_out() -> None:
    """Rows that are damaged or odd take no other root away; what the library only warns of is read."""
    top = root()
    key, name = new_key(), pkix.common_name("Ж" * 60)
    long = Authority(key, bare(Authority(key, top.certificate), key, name, issuer_name=name))
    damaged = ["", "x", pem(top.certificate)[:200], pem(top.certificate).replace("M", "N", 1)]
    known = chains.with_roots(trusting(), [*damaged, pem(long.certificate), pem(top.certificate)])
    for good in (top, long):
        assert paths.verify(chains.Bundle(leaf(good), ()), known, datetime.now(UTC)) == ()


_SEED = leaf(root())
_DER = _SEED.public_bytes(serialization.Encoding.DER)


_VERSION = _DER.index(b"\xa0\x03\x02\x01\x02") + 4
_NAME_TYPE = _DER.index(b"\x82\x0fwww.example.com")


@example([(_VERSION, 1)])
@example([(_VERSION, 3)])
@example([(_NAME_TYPE, 0xA3)])  # an X.400 address
@example([(_NAME_TYPE, 0xA5)])  # an EDI party
@examples(1500)
@given(st.lists(st.tuples(st.integers(0, len(_DER) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_no_changed_byte_is_more_than_a_refusal(changes: list[tuple[int, int]]) -> None:
    """A certificate with any bytes changed is read and judged, or refused; there is no third way."""
    der = bytearray(_DER)
    for place, value in changes:
        der[place] = value
    with pytest.raises(Invalid) as raised:  # noqa: PT012 - any of them may refuse, and without a root the last one does
        bundle = chains.arrange(chains.read(bare_pem(bytes(der))), None)
        chains.facts(bundle.leaf)
        chains.judge_leaf(bundle.leaf, datetime.now(UTC))
        paths.verify(bundle, trusting(), datetime.now(UTC))
    assert all(problem.text.isprintable() for problem in raised.value.problems)


@examples(300)
@given(st.text(max_size=300) | st.from_regex(r"(-----(BEGIN|END) [A-Z ]{0,12}-----|[A-Za-z0-9+/=\n]){0,9}"))
def test_no_text_is_more_than_a_refusal(text: str) -> None:
    """Any text is refused with a sentence that can be printed."""
    with pytest.raises(Invalid) as raised:
        chains.read(text)
    assert all(problem.text.isprintable() for problem in raised.value.problems)


_HEAVY = {
    "begins without ends": "-----BEGIN CERTIFICATE-----",
    "begins of keys": "-----BEGIN PRIVATE KEY-----",
    "labels without dashes": "-----BEGIN A A A A A A A A ",
    "labels of many words": "A ",
    "dashes": "-",
    "ends without begins": "-----END CERTIFICATE-----",
}


@pytest.mark.parametrize("unit", _HEAVY.values(), ids=_HEAVY)
def test_no_text_of_the_largest_size_takes_long(unit: str) -> None:
    """Reading is linear: the worst text of a whole body ends at once, not after the minutes of a quadratic search."""
    text = "-----BEGIN " + unit * (MOST // len(unit))
    started = time.process_time()
    with pytest.raises(Invalid):
        chains.read(text)
    keys.holds_pem(text)
    # No timing but a hang is looked for: linear takes milliseconds of the processor, quadratic half a minute.
    assert time.process_time() - started < 10
