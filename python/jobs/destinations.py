"""Where jobs may connect to: addresses with a port, and networks with ports that operators allow. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from msgspec import Struct

MAX_PORT: Final = 65_535
_DESTINATION: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_ALLOWED: Final = re.compile(r"(?:\[([0-9A-Fa-f:./]+)\]|([0-9./]+)):(?:(\*)|([0-9]{1,5})(?:-([0-9]{1,5}))?)")

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network


class Allowed(Struct, frozen=True):
    """A network and the ports there."""

    network: _Network
    first_port: int
    last_port: int

    def holds(self, address: _Address, port: int) -> bool:
        """Tell whether a destination is within it."""
        return address in self.network and self.first_port <= port <= self.last_port


def parse_destination(text: str) -> tuple[_Address, int]:
    """Return the address of one host and a port. Raises ValueError, which says what is wrong."""
    found = _DESTINATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no address and port, such as 192.0.2.7:443 or [2001:db8::1]:443; names are none")
    address, port = ip_address(found[1] or found[2]), int(found[3])
    if isinstance(address, IPv6Address) is (found[1] is None):
        raise ValueError(f"{text!r}: an address of IPv6 stands in brackets, and no other")
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"{text!r}: ports go from 1 to {MAX_PORT}")
    if address.is_unspecified or address.is_multicast or getattr(address, "ipv4_mapped", None) is not None:
        raise ValueError(f"{text!r} is not the address of one host")
    return address, port


def parse_allowed(text: str) -> Allowed:
    """Return a network and the ports there that an operator allows. Raises ValueError, which says what is wrong."""
    found = _ALLOWED.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no network and ports, such as 10.0.0.0/8:443, [fd00::/8]:8000-8999, 192.0.2.7:*")
    network = ip_network(found[1] or found[2])
    if isinstance(network, IPv6Network) is (found[1] is None):
        raise ValueError(f"{text!r}: an address of IPv6 stands in brackets, and no other")
    first = 1 if found[3] else int(found[4])
    last = MAX_PORT if found[3] else int(found[5] or first)
    if not 1 <= first <= last <= MAX_PORT:
        raise ValueError(f"{text!r}: ports go from 1 to {MAX_PORT}, the lower one first")
    return Allowed(network, first, last)
