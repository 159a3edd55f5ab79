"""IP addresses and networks as peers, proxies and settings write them."""

import ipaddress
import re
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(address: Address) -> Network:
    """What counts as one client: the address, or the /64 of an IPv6 one."""
    return ipaddress.ip_network((address, 32 if address.version == 4 else 64), strict=False)


_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Address | None:
    """An address as peers and proxies write it, also with a port; None for what is none."""
    match = _PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match["v6"] or match["v4"]) if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
