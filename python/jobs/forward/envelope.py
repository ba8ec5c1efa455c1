"""What nodes say to each other about requests and workers: versioned, typed, bounded. Pure.

An envelope is one byte with the version, and MessagePack. A stream's header is an envelope, and so is what comes first
from the other side, with its length in front (u32, big-endian). The pieces of an answer that follow have the same, and
0 in place of a length says that it is whole.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from jobs.protocol.ids import REQUEST_ID_HEADER
from jobs.service import WorkerProcess
from jobs.tracing import context as tracing

VERSION: Final = 1
MAX_UNARY_BYTES: Final = 8 << 20
"""A request or an answer larger than this travels on a stream."""
MAX_ENVELOPE_BYTES: Final = 96 << 20
"""Above any body that the API may be configured to take."""
MAX_LOT: Final = 64
"""Requests that are passed on together."""
PASSED_HEADERS: Final = ("Accept", "Content-Type", "Last-Event-ID", REQUEST_ID_HEADER, *tracing.HEADERS)
"""Of a request; no other one has a meaning here."""

_Text: TypeAlias = Annotated[str, Meta(max_length=16_384)]
_Headers: TypeAlias = Annotated[dict[_Text, _Text], Meta(max_length=64)]
_Parts: TypeAlias = Annotated[list[bytes], Meta(max_length=MAX_LOT)]


class EnvelopeError(Exception):
    """An envelope cannot be read; the text says why, and what was expected."""


class _Envelope(Struct, frozen=True, array_like=True):
    pass


class Request(_Envelope, frozen=True, tag=1):
    """A request that a node passes on, once, for a caller for whom it vouches."""

    node: _Text
    method: _Text
    path: _Text
    query: _Text
    headers: _Headers
    uid: int
    gid: int
    admin: bool
    body: bytes = b""


class Answer(_Envelope, frozen=True, tag=2):
    """The whole answer, as `jobs.api.answer` has it."""

    status: int
    headers: _Headers
    body: bytes = b""


class NotLeading(_Envelope, frozen=True, tag=3):
    """The request was not carried out: this node does not lead. `leader`: who does, as far as it knows."""

    leader: _Text | None = None


class TooLarge(_Envelope, frozen=True, tag=4):
    """The answer, which has so many bytes, is too large for this way. What was asked has been done."""

    size_bytes: int


class Head(_Envelope, frozen=True, tag=5):
    """The head of an answer whose body follows as bytes to the stream's end."""

    status: int
    headers: _Headers


class Worker(_Envelope, frozen=True, tag=6):
    """A worker's connection: what follows on the stream are its bytes, both ways."""

    process: WorkerProcess


class WorkerEnded(_Envelope, frozen=True, tag=7):
    """The process of a worker has ended."""

    process: WorkerProcess


class Done(_Envelope, frozen=True, tag=8):
    """Note was taken."""


class Lot(_Envelope, frozen=True, tag=9):
    """Requests that are passed on together, each in an envelope of its own."""

    parts: _Parts


class Replies(_Envelope, frozen=True, tag=10):
    """The replies to the requests of a lot, in their order."""

    parts: _Parts


Envelope: TypeAlias = Request | Answer | NotLeading | TooLarge | Head | Worker | WorkerEnded | Done | Lot | Replies

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Envelope] = msgspec.msgpack.Decoder(Envelope)


def encode(envelope: Envelope) -> bytes:
    return bytes((VERSION,)) + _encoder.encode(envelope)


def decode(data: bytes) -> Envelope:
    """Return what is in an envelope. Raises EnvelopeError."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(f"an envelope of {len(data)} bytes; at most {MAX_ENVELOPE_BYTES} are taken")
    version = data[0] if data else None
    if version != VERSION:
        raise EnvelopeError(f"an envelope of version {version}; this node speaks version {VERSION}")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EnvelopeError(f"an envelope cannot be read: {error}") from error


def framed(envelope: Envelope) -> bytes:
    """Return an envelope with its length in front, as it stands on a stream."""
    data = encode(envelope)
    return len(data).to_bytes(4, "big") + data
