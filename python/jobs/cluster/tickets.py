"""Tickets: what a node needs to join a cluster, as one line of text. Pure.

A ticket holds the secret of a key that the cluster lets in for a while, to ask one thing: to become a member. So
whoever has the ticket has that right, once, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from jobs.errors import InvalidRequest

PREFIX: Final = "jobs-ticket-"
VERSION: Final = 1
MAX_CHARS: Final = 8_192
_CRC_BYTES: Final = 4

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
    body = bytes((VERSION,)) + msgspec.msgpack.encode(ticket)
    check = zlib.crc32(body).to_bytes(_CRC_BYTES, "big")
    return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def decode(text: str, now_ms: int) -> Ticket:
    """Return what a ticket says. Raises InvalidRequest naming what is wrong: cut off, of another version, expired."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_CHARS:
        raise _invalid("this is no ticket", f"the whole line that the command prints, beginning with {PREFIX}")
    coded = text[len(PREFIX) :]
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    body, check = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if not body or zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != check:
        raise _invalid("the ticket is damaged", "the whole line that the command printed")
    if body[0] != VERSION:
        raise _invalid(f"the ticket is of version {body[0]}; this build knows {VERSION}", "a node of the same release")
    try:
        ticket = _decoder.decode(body[1:])
    except msgspec.MsgspecError as error:
        raise _invalid(f"the ticket cannot be read: {error}", "the whole line that the command printed") from error
    if ticket.expires_ms <= now_ms:
        raise _invalid(f"the ticket expired {(now_ms - ticket.expires_ms) / 1000:.0f} s ago", "a new one")
    return ticket


def _invalid(detail: str, expected: str) -> InvalidRequest:
    return InvalidRequest(detail, field="$.ticket", expected=f"{expected}; jobctl cluster ticket makes one")
