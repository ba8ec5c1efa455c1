"""Tickets by which somebody else may make a blob theirs, as text. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from msgspec import Struct

from jobs.errors import InvalidRequest

PREFIX: Final = "blobticket1."
SHARE_BYTES: Final = 16
SECRET_BYTES: Final = 16
HASH_BYTES: Final = 32


class BlobTicketParts(Struct, frozen=True, kw_only=True):
    """What a ticket says."""

    share: str
    """Id of the share, of which the catalogue knows."""
    secret: bytes
    hash: str


def encode_ticket(parts: BlobTicketParts) -> str:
    data = bytes.fromhex(parts.share) + parts.secret + bytes.fromhex(parts.hash)
    return PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_ticket(text: str, field: str = "ticket") -> BlobTicketParts:
    """Return what a ticket says. Raises InvalidRequest for what is none."""
    encoded = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if encoded == text or len(data) != SHARE_BYTES + SECRET_BYTES + HASH_BYTES:
        raise InvalidRequest("this is no ticket to a blob", field=field, expected="the output of: jobctl blob share")
    return BlobTicketParts(
        share=data[:SHARE_BYTES].hex(),
        secret=data[SHARE_BYTES:-HASH_BYTES],
        hash=data[-HASH_BYTES:].hex(),
    )
