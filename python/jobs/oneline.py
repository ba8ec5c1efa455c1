"""What people carry from one machine to another as one line of text: a prefix, a version, a body, a check sum. Pure."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from jobs.errors import InvalidRequest

_CRC_BYTES: Final = 4

T = TypeVar("T")


class Line(Struct, frozen=True, kw_only=True):
    """One kind of such lines. Its body is a message of MessagePack."""

    what: str
    """Such as `ticket`; the prefix says it too."""
    version: int
    max_chars: int
    field: str
    """Of the request in which it comes."""
    made_by: str
    """The command that prints one."""

    @property
    def prefix(self) -> str:
        return f"jobs-{self.what}-"

    def encode(self, message: Struct) -> str:
        body = bytes((self.version,)) + msgspec.msgpack.encode(message)
        check = zlib.crc32(body).to_bytes(_CRC_BYTES, "big")
        return self.prefix + base64.urlsafe_b64encode(body + check).decode().rstrip("=")

    def decode(self, text: str, decoder: msgspec.msgpack.Decoder[T]) -> T:
        """Raises InvalidRequest naming what is wrong: something else, cut off, of another version."""
        text, what = text.strip(), self.what
        if not text.startswith(self.prefix) or len(text) > self.max_chars:
            raise self.invalid(
                f"this is no {what}", f"the whole line that the command prints, beginning with {self.prefix}"
            )
        coded = text[len(self.prefix) :]
        try:
            data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        body, check = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        if not body or zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != check:
            raise self.invalid(f"the {what} is damaged", "the whole line that the command printed")
        if body[0] != self.version:
            raise self.invalid(
                f"the {what} is of version {body[0]}; this build knows {self.version}", "a node of the same release"
            )
        try:
            return decoder.decode(body[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self.invalid(
                f"the {what} cannot be read: {error}", "the whole line that the command printed"
            ) from error

    def invalid(self, detail: str, expected: str) -> InvalidRequest:
        """Return what is to be raised for a line that is of no use."""
        return InvalidRequest(detail, field=self.field, expected=f"{expected}; {self.made_by} makes one")
