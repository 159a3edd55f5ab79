"""Settings: what is read, and the one sentence for what makes no sense."""

from pathlib import Path

import pytest

from keystead import config
from keystead.config import RateLimit
from keystead.errors import Misconfigured


def test_the_defaults_are_the_documented_ones() -> None:
    """An empty environment gives loopback, port 8787, .data and the contract's rate limit."""
    settings = config.load({})
    assert (settings.host, settings.port, settings.public_url) == ("127.0.0.1", 8787, "http://127.0.0.1:8787")
    assert settings.data_dir == Path(".data").absolute()
    assert settings.keyring == settings.data_dir / "keyring.json"
    assert settings.rate_limit == RateLimit(1200, 300)
    assert settings.database_url is None
    assert settings.trusted_proxies == ()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "0", "port number"),
        ("PORT", "65536", "port number"),
        ("PORT", "8787x", "port number"),
        ("PORT", "٣", "port number"),
        ("HOST", "example.com", "IP address"),
        ("HOST", "127.0.0.1:80", "IP address"),
        ("WORKERS", "0", "number from 1"),
        ("WORKERS", "-1", "number from 1"),
        ("RATE_LIMIT", "1200", "1200/5m"),
        ("RATE_LIMIT", "0/5m", "1200/5m"),
        ("RATE_LIMIT", "5/0s", "1200/5m"),
        ("RATE_LIMIT", "5/5x", "1200/5m"),
        ("RATE_LIMIT", "on", "1200/5m"),
        ("PUBLIC_URL", "example.com", "http://"),
        ("PUBLIC_URL", "https://example.com/?a=1", "http://"),
        ("PUBLIC_URL", 'https://example.com/"><script>', "http://"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "10.0.0.0/8"),
        ("TRUSTED_PROXIES", "proxy", "10.0.0.0/8"),
        ("LOG", "xml", "json or console"),
        ("TLS_CERT", "/nonexistent/cert.pem", "readable file"),
        ("STATEMENT_CACHE_SIZE", "-1", "0 to 1000"),
        *(
            ("DELIVERY_LISTEN", value, "such as 127.0.0.1:8790")
            for value in ("8790", ":8790", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:8790")
        ),
        *(
            ("DELIVERY_LISTEN", value, "such as 127.0.0.1:8790")
            for value in ("[::1]", "[127.0.0.1]:8790", "keystead.example.com:8790", "127.0.0.1:+1", "[::1:8790")
        ),
    ],
)
def test_a_value_that_makes_no_sense_stops_with_what_would(name: str, value: str, allowed: str) -> None:
    """The sentence names the variable, the value, and what it takes."""
    with pytest.raises(Misconfigured) as caught:
        config.load({f"KEYSTEAD_{name}": value})
    assert f"KEYSTEAD_{name}" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


def test_a_database_address_is_never_repeated() -> None:
    """A bad address may hold a password, so neither the sentence nor the settings' repr shows it."""
    with pytest.raises(Misconfigured) as caught:
        config.load({"KEYSTEAD_DATABASE_URL": "mysql://u:hunter2@host/db"})
    assert "hunter2" not in str(caught.value)
    settings = config.load({"KEYSTEAD_DATABASE_URL": "postgresql://u:hunter2@host/db"})
    assert "hunter2" not in repr(settings)


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    """A typing error in a variable's name does not pass silently."""
    with pytest.raises(Misconfigured, match=r"KEYSTEAD_PROT is not a setting.*KEYSTEAD_PORT"):
        config.load({"KEYSTEAD_PROT": "1"})


def test_the_variables_of_the_credentials_file_do_not_disturb() -> None:
    """A shell that has sourced credentials.env can still start the server."""
    assert config.load({"KEYSTEAD_PROJECT_SLUG": "default", "CLOUDFLARE_API_TOKEN": "x"}).port == 8787


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_clear_text_beyond_loopback_stops_the_start(host: str, tmp_path: Path) -> None:
    """Beyond loopback it takes TLS or trusted proxies; with either of them it starts."""
    with pytest.raises(Misconfigured, match="clear text"):
        config.load({"KEYSTEAD_HOST": host})
    assert config.load({"KEYSTEAD_HOST": host, "KEYSTEAD_TRUSTED_PROXIES": "10.0.0.0/8"}).host == host
    pem = tmp_path / "pem"
    pem.touch()
    both = {"KEYSTEAD_TLS_CERT": str(pem), "KEYSTEAD_TLS_KEY": str(pem)}
    assert config.load({"KEYSTEAD_HOST": host, **both}).public_url.startswith("https://")
    with pytest.raises(Misconfigured, match="KEYSTEAD_TLS_KEY is missing"):
        config.load({"KEYSTEAD_TLS_CERT": str(pem)})


@pytest.mark.parametrize("address", ["0.0.0.0:8790", "[::]:8790", "192.0.2.1:8790"])
def test_keys_in_clear_text_beyond_loopback_stop_the_start(address: str, tmp_path: Path) -> None:
    """The delivery listener takes TLS there, and trusted proxies are no substitute."""
    listen = {"KEYSTEAD_DELIVERY_LISTEN": address}
    with pytest.raises(Misconfigured, match="private keys in clear text"):
        config.load({**listen, "KEYSTEAD_TRUSTED_PROXIES": "10.0.0.0/8"})
    pem = tmp_path / "pem"
    pem.touch()
    settings = config.load({**listen, "KEYSTEAD_TLS_CERT": str(pem), "KEYSTEAD_TLS_KEY": str(pem)})
    assert str(settings.delivery_listen) == address
    assert str(config.load({"KEYSTEAD_DELIVERY_LISTEN": "[::1]:8790"}).delivery_listen) == "[::1]:8790"


def test_the_delivery_listener_has_a_port_of_its_own() -> None:
    """That of the API is refused."""
    with pytest.raises(Misconfigured, match="give it another"):
        config.load({"KEYSTEAD_DELIVERY_LISTEN": "127.0.0.1:8787"})


def test_ipv6_is_written_in_brackets_where_an_address_needs_them() -> None:
    """The public address of ::1 is one that clients can read."""
    assert config.load({"KEYSTEAD_HOST": "::1"}).public_url == "http://[::1]:8787"


def test_the_rate_limit_can_be_off_or_in_other_units() -> None:
    """off, seconds, minutes and hours are understood."""
    assert config.load({"KEYSTEAD_RATE_LIMIT": "off"}).rate_limit is None
    for text, limit in (("5/10s", RateLimit(5, 10)), ("5/2m", RateLimit(5, 120)), ("5/1h", RateLimit(5, 3600))):
        assert config.load({"KEYSTEAD_RATE_LIMIT": text}).rate_limit == limit
