"""Hostname rules, one table: which rule a name breaks under each policy (contract-cloudflare, "Names")."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystead.errors import Rule
from keystead.x509 import names
from keystead.x509.names import NamePolicy

PRIVATE, PUBLIC = NamePolicy.PRIVATE, NamePolicy.PUBLIC
SYNTAX, ASCII, TOP, SUFFIX, EXAMPLE = (
    Rule.NAME_SYNTAX,
    Rule.NAME_NOT_ASCII,
    Rule.NAME_RESERVED,
    Rule.NAME_PUBLIC_SUFFIX,
    Rule.NAME_EXAMPLE_DOMAIN,
)
LONG = ".".join(["a" * 63] * 3 + ["b" * 61, "c"])

# name, what it breaks under the policy private, and under public
TABLE: list[tuple[str, Rule | None, Rule | None]] = [
    ("www.keystead.dev", None, None),
    ("WWW.Keystead.DEV", None, None),
    ("*.keystead.dev", None, None),
    ("a_b.keystead.dev", None, None),
    ("_acme-challenge.keystead.dev", None, None),
    ("xn--bcher-kva.de", None, None),
    ("XN--BCHER-KVA.de", None, None),
    ("ab--cd.keystead.dev", None, None),
    ("1.keystead.dev", None, None),
    ("0x7f.keystead.dev", None, None),
    ("3com.com", None, None),
    ("a.0x7g", None, None),
    ("a" * 63 + ".com", None, None),
    (LONG[:255], None, None),
    ("foo.unknowntld", None, None),
    ("a.github.io", None, None),
    ("*.github.io", None, None),
    ("www.ck", None, None),
    # Rules of the policy public alone.
    ("db", None, SUFFIX),
    ("localhost", None, TOP),
    ("db.localhost", None, TOP),
    ("a.TEST", None, TOP),
    ("example", None, TOP),
    ("x.invalid", None, TOP),
    ("example.com", None, EXAMPLE),
    ("www.Example.COM", None, EXAMPLE),
    ("a.b.example.net", None, EXAMPLE),
    ("*.example.org", None, EXAMPLE),
    ("notexample.com", None, None),
    ("example.com.de", None, None),
    ("com", None, SUFFIX),
    ("co.uk", None, SUFFIX),
    ("CO.UK", None, SUFFIX),
    ("github.io", None, SUFFIX),
    ("foo.ck", None, SUFFIX),
    ("xn--p1ai", None, SUFFIX),
    ("db.internal", None, None),
    # Wildcards directly on an ICANN suffix, under both.
    ("*.com", SUFFIX, SUFFIX),
    ("*.co.uk", SUFFIX, SUFFIX),
    ("*.Co.UK", SUFFIX, SUFFIX),
    ("*.foo.ck", SUFFIX, SUFFIX),
    ("*.ck", SUFFIX, SUFFIX),
    ("*.internal", None, None),
    # Syntax, under both.
    ("", SYNTAX, SYNTAX),
    (".", SYNTAX, SYNTAX),
    ("*", SYNTAX, SYNTAX),
    ("*.", SYNTAX, SYNTAX),
    ("**.example.com", SYNTAX, SYNTAX),
    ("*.*.example.com", SYNTAX, SYNTAX),
    ("a.*.example.com", SYNTAX, SYNTAX),
    ("w*.example.com", SYNTAX, SYNTAX),
    (".example.com", SYNTAX, SYNTAX),
    ("example.com.", SYNTAX, SYNTAX),
    ("a..b", SYNTAX, SYNTAX),
    ("-a.example.com", SYNTAX, SYNTAX),
    ("a-.example.com", SYNTAX, SYNTAX),
    ("a.example-", SYNTAX, SYNTAX),
    ("a b.example.com", SYNTAX, SYNTAX),
    (" example.com", SYNTAX, SYNTAX),
    ("example.com ", SYNTAX, SYNTAX),
    ("exam\tple.com", SYNTAX, SYNTAX),
    ("example.com\n", SYNTAX, SYNTAX),
    ("exa\x00mple.com", SYNTAX, SYNTAX),
    ("exa\x7fmple.com", SYNTAX, SYNTAX),
    ("a" * 64 + ".com", SYNTAX, SYNTAX),
    (LONG[:255] + "d", SYNTAX, SYNTAX),
    ("http://example.com", SYNTAX, SYNTAX),
    ("example.com:443", SYNTAX, SYNTAX),
    ("user@example.com", SYNTAX, SYNTAX),
    ("example.com/a", SYNTAX, SYNTAX),
    ("a,b.com", SYNTAX, SYNTAX),
    # Every spelling of an address.
    ("1.2.3.4", SYNTAX, SYNTAX),
    ("*.1.2.3.4", SYNTAX, SYNTAX),
    ("127.1", SYNTAX, SYNTAX),
    ("2130706433", SYNTAX, SYNTAX),
    ("0x7f000001", SYNTAX, SYNTAX),
    ("0x7f.1", SYNTAX, SYNTAX),
    ("1.0x", SYNTAX, SYNTAX),
    ("0X7F.0X1", SYNTAX, SYNTAX),
    ("0177.0.0.1", SYNTAX, SYNTAX),
    ("[::1]", SYNTAX, SYNTAX),
    ("::1", SYNTAX, SYNTAX),
    ("2001:db8::1", SYNTAX, SYNTAX),
    ("::ffff:1.2.3.4", SYNTAX, SYNTAX),
    ("fe80::1%eth0", SYNTAX, SYNTAX),
    ("example.123", SYNTAX, SYNTAX),
    # A-labels that no encoder makes.
    ("xn--.com", SYNTAX, SYNTAX),
    ("xn--a-.com", SYNTAX, SYNTAX),
    ("xn--abc-.com", SYNTAX, SYNTAX),
    ("xn--99999999.com", SYNTAX, SYNTAX),
    ("xn--0.com", SYNTAX, SYNTAX),
    ("xn--" + "9" * 59 + ".com", SYNTAX, SYNTAX),
    ("xn--example-.com", SYNTAX, SYNTAX),
    # Anything outside ASCII.
    ("bücher.de", ASCII, ASCII),
    ("*.bücher.de", ASCII, ASCII),
    ("ex\u0430mple.com", ASCII, ASCII),
    ("a\u202eb.com", ASCII, ASCII),
    ("a\ud800.com", ASCII, ASCII),
    ("a\u3002com", ASCII, ASCII),
    ("\uff11.2.3.4", ASCII, ASCII),
]


@pytest.mark.parametrize(("name", "private", "public"), TABLE)
def test_a_name_breaks_the_rule_that_the_table_says(name: str, private: Rule | None, public: Rule | None) -> None:
    """Each name breaks the first rule that the contract lists for it, or none."""
    for policy, expected in ((PRIVATE, private), (PUBLIC, public)):
        broken = names.broken(name, policy)
        assert (broken[0] if broken else None) is expected, (policy, broken)
        if broken:
            assert broken[1].isprintable()
            assert broken[1].endswith((".", '"'))


def test_the_a_label_form_is_offered() -> None:
    """A non-ASCII name is answered with the form that would be accepted, the wildcard kept."""
    broken = names.broken("*.bücher.de", PRIVATE)
    assert broken
    assert '"*.xn--bcher-kva.de"' in broken[1]


def test_a_hostile_name_is_quoted_escaped_and_cut() -> None:
    """A sentence never carries the caller's control characters, nor more than 64 of the caller's characters."""
    broken = names.broken("\x1b[31m" + "a" * 300, PRIVATE)
    assert broken
    assert "\x1b" not in broken[1]
    assert "a" * 65 not in broken[1]


@given(st.text(max_size=300))
def test_whatever_is_accepted_is_ascii_and_bounded(name: str) -> None:
    """No text that is accepted has a character beyond LDH, dot, underscore and asterisk, or more than 255 of them."""
    if names.broken(name, PRIVATE) is None:
        assert 0 < len(name) <= 255
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*")
        assert "*" not in name[1:]


@given(st.from_regex(r"(?:[0-9]{1,11}|0x[0-9a-f]{1,8})(?:\.(?:[0-9]{1,11}|0x[0-9a-f]{1,8})){0,3}", fullmatch=True))
def test_what_the_resolver_takes_for_an_address_is_refused(name: str) -> None:
    """Whatever inet_aton reads as an address, in any base and length, is no hostname here."""
    try:
        socket.inet_aton(name)
    except OSError:
        return
    assert names.broken(name, PRIVATE) is not None


@given(
    st.text(alphabet=st.characters(min_codepoint=0x80, max_codepoint=0x2FFF, categories=["L"]), min_size=1, max_size=12)
)
def test_every_label_that_punycode_can_write_is_accepted(text: str) -> None:
    """An A-label that Python's own encoder writes is one that we accept."""
    label = "xn--" + text.encode("punycode").decode("ascii")
    if len(label) <= 63 and not label.endswith("-"):
        assert names.broken(f"{label.lower()}.com", PRIVATE) is None or label != label.lower()


@pytest.mark.parametrize(
    ("name", "doubted"),
    [
        ("www.keystead.dev", False),
        ("a_b.keystead.dev", True),
        ("ab--c.keystead.dev", True),
        ("xn--bcher-kva.de", False),
        (LONG[:255], True),
        (LONG[:253], False),
        ("db.internal", False),
        ("db", True),
        ("example.com", True),
    ],
)
def test_names_that_public_cas_refuse_are_told(name: str, doubted: bool) -> None:
    """A private account is told of the names that a public CA, or the policy public, would refuse."""
    assert bool(names.doubts(name, PRIVATE)) is doubted
