"""Parsing of client IP addresses, and how clients are grouped by network. Pure."""

import ipaddress
import re
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(address: Address) -> Network:
    """The network that counts as one client: the /32 of an IPv4 address, the /64 of an IPv6 address."""
    return ipaddress.ip_network((address, 32 if address.version == 4 else 64), strict=False)


_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Address | None:
    """The IP address in `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1` or `[2001:db8::1]:443`; None if there is none.

    IPv4-mapped IPv6 addresses are returned as IPv4.
    """
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match["v6"] or match["v4"]) if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
