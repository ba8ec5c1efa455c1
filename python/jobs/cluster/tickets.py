"""Tickets: what a node needs to join a cluster, as one line of text. Pure.

A ticket holds the secret of a key that the cluster lets in for a while, to ask one thing: to become a member. So
whoever has the ticket has that right, once, and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from jobs.oneline import Line

_LINE: Final = Line(what="ticket", version=1, max_chars=8_192, field="$.ticket", made_by="jobctl cluster ticket")
PREFIX: Final = _LINE.prefix

_Text = Annotated[str, Meta(min_length=1, max_length=128)]


class TicketPeer(Struct, frozen=True, array_like=True):
    """A member to ask."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    addresses: Annotated[list[_Text], Meta(min_length=1, max_length=8)]


class Ticket(Struct, frozen=True, kw_only=True, array_like=True):
    """What a ticket says."""

    cluster: _Text
    expires_ms: int
    secret: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the guest's key, as hexadecimal digits."""
    peers: Annotated[list[TicketPeer], Meta(min_length=1, max_length=16)]


_decoder: Final[msgspec.msgpack.Decoder[Ticket]] = msgspec.msgpack.Decoder(Ticket)


def encode(ticket: Ticket) -> str:
    return _LINE.encode(ticket)


def decode(text: str, now_ms: int) -> Ticket:
    """Return what a ticket says. Raises InvalidRequest naming what is wrong: cut off, of another version, expired."""
    ticket = _LINE.decode(text, _decoder)
    if ticket.expires_ms <= now_ms:
        raise _LINE.invalid(f"the ticket expired {(now_ms - ticket.expires_ms) / 1000:.0f} s ago", "a new one")
    return ticket
