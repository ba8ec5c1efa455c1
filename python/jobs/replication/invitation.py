"""Invitations: what a cluster says of itself so that another can make a link to it, as one line of text. Pure.

It is no secret. Who has it knows where the nodes are, and can speak with them only when their cluster has a link too.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from jobs.errors import InvalidRequest
from jobs.oneline import Line

_LINE: Final = Line(
    what="invitation",
    version=1,
    max_chars=8_192,
    field="$.invitation",
    made_by="jobctl replication invite, in the other cluster,",
)
PREFIX: Final = _LINE.prefix
MAX_ADDRESSES: Final = 8

_Address = Annotated[str, Meta(min_length=1, max_length=128)]
_Addresses = Annotated[list[_Address], Meta(min_length=1, max_length=MAX_ADDRESSES)]
_Endpoint = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Invited(Struct, frozen=True, kw_only=True, array_like=True):
    """What an invitation says."""

    cluster: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    peers: Annotated[dict[_Endpoint, _Addresses], Meta(min_length=1, max_length=16)]
    """Addresses of the nodes, by endpoint id."""


_decoder: Final[msgspec.msgpack.Decoder[Invited]] = msgspec.msgpack.Decoder(Invited)


def encode(invited: Invited) -> str:
    return _LINE.encode(invited)


def decode(text: str) -> Invited:
    """Raises InvalidRequest naming what is wrong: cut off, of another version, an address that is none."""
    invited = _LINE.decode(text, _decoder)
    for addresses in invited.peers.values():
        for address in addresses:
            if not _is_address(address):
                raise _LINE.invalid(f"the invitation has {address!r:.100} for an address and port", "another one")
    return invited


def refused(detail: str, expected: str) -> InvalidRequest:
    """Return what is to be raised for an invitation that can be read and is of no use."""
    return InvalidRequest(detail, field=_LINE.field, expected=expected)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535) or "%" in host:
        return False
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return bracketed == (address.version == 6) and not address.is_unspecified
