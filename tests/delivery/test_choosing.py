"""Which certificates serve a host."""

import pytest

from keystead.delivery import choosing


@pytest.mark.parametrize(
    ("hosts", "wanted", "serves"),
    [
        (["www.example.com"], "www.example.com", True),
        (["www.example.com"], "example.com", False),
        (["example.com"], "www.example.com", False),
        (["*.example.com"], "www.example.com", True),
        (["*.example.com"], "a.b.example.com", False),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "*.example.com", True),
        (["a.b.example.com"], "*.example.com", True),
        (["example.com"], "*.example.com", False),
        (["notexample.com"], "*.example.com", False),
        (["x.org", "www.example.com"], "www.example.com", True),
        (["10.0.0.1"], "10.0.0.1", True),
        ([], "www.example.com", False),
    ],
)
def test_hosts_of_a_certificate(hosts: list[str], wanted: str, serves: bool) -> None:
    """A name, its wildcard of one label, and all names below a wanted wildcard."""
    assert choosing.serves(hosts, wanted) is serves
