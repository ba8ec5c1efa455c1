"""What members say to each other: typed messages and their one encoding, a version byte and MessagePack.

Pure. What is decoded is checked: types, ranges and lengths; nothing is ever unpickled. The names are those of the Raft
paper and of Ongaro's thesis (pre-vote: §9.6, leadership transfer: §3.10).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

WIRE_VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 64 << 20
MAX_COMMAND_BYTES: Final = MAX_MESSAGE_BYTES - (1 << 20)
"""A larger command would never reach another member; the largest there is, a list of an array, has 34 MB."""

_Number: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 62))]
Entry: TypeAlias = tuple[_Number, bytes]
"""(term, payload) of a log entry; its index follows from its place."""


class MessageError(ValueError):
    """Bytes that are no message of this version; the text says why."""


class Append(Struct, frozen=True, array_like=True, tag=0):
    """From a leader: entries after (prev_index, prev_term), and what is committed. Without entries a sign of life."""

    term: _Number
    prev_index: _Number
    prev_term: _Number
    commit: _Number
    round: _Number
    """Which round of signs of life this belongs to; the answer says it again."""
    entries: list[Entry] = []


class Appended(Struct, frozen=True, array_like=True, tag=1):
    """To a leader: whether what followed `prev_index` fits. `index` is the last entry that both have, durable here; of
    a refusal, the last one that may be so."""

    term: _Number
    ok: bool
    index: _Number
    prev_index: _Number
    round: _Number


class Vote(Struct, frozen=True, array_like=True, tag=2):
    """From a candidate; `pre` asks only what would be, of a term that nobody has begun; `transfer`: the leader wants
    this election, so that nobody has to wait for its silence."""

    term: _Number
    last_index: _Number
    last_term: _Number
    pre: bool = False
    transfer: bool = False


class Voted(Struct, frozen=True, array_like=True, tag=3):
    """To a candidate. The term is the one that was asked for when it is granted, else the voter's own."""

    term: _Number
    granted: bool
    pre: bool = False


class TimeoutNow(Struct, frozen=True, array_like=True, tag=4):
    """From a leader that hands over: begin an election at once."""

    term: _Number


class Pulse(Struct, frozen=True, array_like=True, tag=5):
    """From a leader: it lives. Goes before entries that wait to be sent, and says nothing of them."""

    term: _Number
    round: _Number


class Pulsed(Struct, frozen=True, array_like=True, tag=6):
    """To a leader: a pulse was heard. The term is the answering member's own."""

    term: _Number
    round: _Number


Message: TypeAlias = Append | Appended | Vote | Voted | TimeoutNow | Pulse | Pulsed

_encode = msgspec.msgpack.Encoder().encode
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_VERSION: Final = bytes((WIRE_VERSION,))


def encode(message: Message) -> bytes:
    return _VERSION + _encode(message)


def decode(data: bytes) -> Message:
    """Return the message; raise MessageError for anything else."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    if data[:1] != _VERSION:
        version = data[0] if data else "none"
        raise MessageError(f"message of version {version}; this build speaks {WIRE_VERSION}")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MessageError(f"a message cannot be read: {error}") from error
