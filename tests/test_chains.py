"""Chains as CAs send them: any order, loops, cross-signing, odd bytes; pure, without a server."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from authority import Authority, bare_pem, pem, root, subject
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app import chains, keys
from app.errors import Invalid, Rule

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
    return chains.verify(bundle, trusted, datetime.now(UTC))


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
        assert chains.verify(bundle, trusting(top), datetime.now(UTC)) == expected


def test_extras_that_belong_to_no_step_are_dropped() -> None:
    """Certificates of other chains do not disturb a path that is there."""
    top, other = root(), root("Another Root")
    middle = top.intermediate()
    extras = (other.certificate, other.intermediate("Another").certificate, leaf(other))
    assert path(trusting(top), leaf(middle), *extras, middle.certificate) == (middle.certificate,)


def test_a_chain_with_a_loop_ends() -> None:
    """Two CAs that sign each other lead nowhere, and the missing issuer is named."""
    one, two = root("One"), root("Two")
    first, second = two.cross(one), one.cross(two)
    assert "is missing" in refused(trusting(root()), leaf(one), first, second)


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


_SEED = leaf(root())
_DER = _SEED.public_bytes(serialization.Encoding.DER)


_VERSION = _DER.index(b"\xa0\x03\x02\x01\x02") + 4
_NAME_TYPE = _DER.index(b"\x82\x0fwww.example.com")


@example([(_VERSION, 1)])
@example([(_VERSION, 3)])
@example([(_NAME_TYPE, 0xA3)])  # an X.400 address
@example([(_NAME_TYPE, 0xA5)])  # an EDI party
@given(st.lists(st.tuples(st.integers(0, len(_DER) - 1), st.integers(0, 255)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=1500, database=None)
def test_no_changed_byte_is_more_than_a_refusal(changes: list[tuple[int, int]]) -> None:
    """A certificate with any bytes changed is read and judged, or refused; there is no third way."""
    der = bytearray(_DER)
    for place, value in changes:
        der[place] = value
    with pytest.raises(Invalid) as raised:  # noqa: PT012 - any of them may refuse, and without a root the last one does
        bundle = chains.arrange(chains.read(bare_pem(bytes(der))), None)
        chains.facts(bundle.leaf)
        chains.judge_leaf(bundle.leaf, datetime.now(UTC))
        chains.verify(bundle, trusting(), datetime.now(UTC))
    assert all(problem.text.isprintable() for problem in raised.value.problems)


@given(st.text(max_size=300) | st.from_regex(r"(-----(BEGIN|END) [A-Z ]{0,12}-----|[A-Za-z0-9+/=\n]){0,9}"))
@settings(deadline=None, max_examples=300, database=None)
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
