"""Frames between the worker and its engine processes: u32 big-endian length, then one MessagePack map tagged by `t`."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from jobs.protocol.model import SqlResult
from jobs.protocol.wire import LeaseEnds, TableWrite
from jobs.workers.framing import take_frames

MAX_FRAME_BYTES: Final = 16 << 20
PIECE_BYTES: Final = 64 << 10
"""Largest piece of output in one frame."""

T = TypeVar("T")


class FrameError(Exception):
    """The other end sent what it must not."""


class _Frame(Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


# worker → engine


class Configure(_Frame, frozen=True, tag="configure"):
    """The first frame."""

    store: str
    """Directory of the store."""
    spill: str
    """Directory of the engine's own; what it leaves there is deleted when it has ended."""
    threads: int
    window_bytes: int
    """Output that may be under way without credit."""
    allow_files: list[str]


class Bounds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one query may use."""

    max_rows: int
    max_bytes: int
    memory_bytes: int
    spill_bytes: int


class Run(_Frame, frozen=True, tag="run"):
    """Run a query; answered by one `Done` or `Failed`."""

    job: str
    payload: bytes
    """A `SqlPayload` as JSON."""
    bounds: Bounds
    revision: int
    """What the store has to have reached, unless the payload says otherwise."""
    owner: int | None
    """Who sees what; None sees everything."""
    blobs: dict[str, str] = {}
    """Name of a table → the file or directory that is the blob which the payload gives it."""
    lease_ends: LeaseEnds | None = None
    """When leases run out, as the leader knew it when it gave the query to this worker."""


class Credit(_Frame, frozen=True, tag="credit"):
    count: int


ToEngine: TypeAlias = Configure | Run | Credit

# engine → worker


class Output(_Frame, frozen=True, tag="output"):
    data: bytes


class Advance(_Frame, frozen=True, tag="advance"):
    percent: float
    message: str


class Usage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the query took."""

    cpu_user_s: float
    cpu_system_s: float
    peak_memory_bytes: int


class Ready(_Frame, frozen=True, tag="ready"):
    """Everything is imported."""

    usage: Usage


class Done(_Frame, frozen=True, tag="done"):
    result: SqlResult
    last: bytes
    """The end of the output."""
    write: TableWrite | None
    usage: Usage


class Failed(_Frame, frozen=True, tag="failed"):
    message: str
    is_payload: bool
    """The payload could never run."""
    usage: Usage


FromEngine: TypeAlias = Ready | Output | Advance | Done | Failed

_encode = msgspec.msgpack.Encoder().encode


def encode(frame: ToEngine | FromEngine) -> bytes:
    """Return the frame with its length in front. Raises FrameError for one that is too long."""
    body = _encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"{type(frame).__name__} takes {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


class Cutter(Generic[T]):
    """Takes whole frames out of a stream of bytes."""

    def __init__(self, kind: Any) -> None:
        """`kind`: what T is."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Return the frames that are complete now. Raises FrameError."""
        self._buffer += data
        return take_frames(self._buffer, MAX_FRAME_BYTES, self._decoder.decode, FrameError)
