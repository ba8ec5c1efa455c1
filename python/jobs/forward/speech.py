"""What is common to the messages that members say to each other's parts: a version, MessagePack, how an error is told.
Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from jobs.errors import InternalError, JobsError, error_types

MAX_DETAIL: Final = 16_000
Text: TypeAlias = Annotated[str, Meta(max_length=16_384)]
Member: TypeAlias = Annotated[str, Meta(max_length=128)]
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class MessageError(Exception):
    """A message cannot be read; the text says why, and what was expected."""


class Refused(Struct, frozen=True, array_like=True, tag=3):
    """An error of `jobs.errors`."""

    code: Text
    detail: Text
    field: Text | None = None
    expected: Text | None = None
    retry_after_s: float | None = None


def refusal(error: JobsError) -> Refused:
    return Refused(error.code, error.detail[:MAX_DETAIL], error.field, error.expected, error.retry_after_s)


def error_of(refused: Refused) -> JobsError:
    """Return the error that was refused with."""
    kind = error_types().get(refused.code, InternalError)
    return kind(refused.detail, field=refused.field, expected=refused.expected, retry_after_s=refused.retry_after_s)


class Codec(Generic[T]):
    """Messages of one type about one subject (such as `blobs`): a byte with the version, then MessagePack."""

    def __init__(self, message: object, version: int, subject: str) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cast("type", message))
        self._version = version
        self._subject = subject

    def encode(self, message: T) -> bytes:
        return bytes((self._version,)) + _encoder.encode(message)

    def framed(self, message: T) -> bytes:
        """Return a message with its length in front, as it stands on a stream."""
        data = self.encode(message)
        return len(data).to_bytes(4, "big") + data

    def decode(self, data: bytes) -> T:
        """Raises MessageError."""
        version = data[0] if data else None
        if version != self._version:
            raise MessageError(
                f"a message about {self._subject} of version {version}; this node speaks version {self._version}"
            )
        try:
            return cast("T", self._decoder.decode(memoryview(data)[1:]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(f"a message about {self._subject} cannot be read: {error}") from error
