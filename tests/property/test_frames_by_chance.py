"""Frames between node, workers and launchers, by chance and damaged: each is read or refused by its own error, whatever
pieces it comes in. The launcher's own reader is tried by rust/fuzz.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.protocol import wire
from jobs.workers import sandbox
from jobs.workers.connection import ProtocolError
from jobs.workers.framing import take_frames

READERS: dict[str, tuple[Callable[[memoryview], Any], type[Exception], list[Any]]] = {
    "launcher": (
        msgspec.msgpack.Decoder(sandbox.Event).decode,
        sandbox.LauncherError,
        [
            sandbox.Ready(level="strict", features={"landlock": "version 6"}),
            sandbox.Started(job="j", attempt=1, pid=7, started_ms=8),  # type: ignore[arg-type]
            sandbox.Output(job="j", attempt=1, segments=[(1, b"out"), (2, b"err")]),  # type: ignore[arg-type]
            sandbox.Notes(job="j", attempt=1, lines=b"progress 3 of 4\n"),  # type: ignore[arg-type]
        ],
    ),
    "worker": (
        wire.decode_worker_frame,
        ProtocolError,
        [wire.Heartbeat(pressure={"cpu": 3.5}), wire.Heartbeat(pressed=True)],
    ),
}

damages = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4)


def stream_of(frames: list[Any], damage: list[tuple[int, int]]) -> bytes:
    bodies = [msgspec.msgpack.encode(frame) for frame in frames]
    stream = bytearray(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
    for place, value in damage if stream else ():
        stream[place % len(stream)] = value
    return bytes(stream)


def read(name: str, pieces: list[bytes]) -> tuple[list[Any], str | None]:
    """Return what was read, and the refusal that ended it."""
    decode, refusal, _ = READERS[name]
    buffer, frames = bytearray(), []
    for piece in pieces:
        buffer += piece
        while True:
            before = len(buffer)
            try:
                # One by one, so that those before a refusal are known.
                size = int.from_bytes(buffer[:4], "big")
                one = bytearray(buffer[: 4 + size]) if len(buffer) >= 4 and size <= wire.MAX_FRAME_BYTES else buffer
                taken = take_frames(one, wire.MAX_FRAME_BYTES, decode, refusal)
            except refusal as error:
                return frames, str(error)
            if not taken:
                break
            frames += taken
            del buffer[: 4 + size]
            assert len(buffer) < before
    return frames, None


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.parametrize("name", READERS)
def test_frames_that_are_sent_are_read(name: str) -> None:
    frames = READERS[name][2]
    assert read(name, cut(stream_of(frames, []), 3)) == (frames, None)


@pytest.mark.parametrize("name", READERS)
@given(data=st.data(), damage=damages, size=st.integers(1, 40))
def test_damaged_frames_are_read_or_refused_whatever_the_pieces(
    name: str, data: st.DataObject, damage: list[tuple[int, int]], size: int
) -> None:
    frames = data.draw(st.lists(st.sampled_from(READERS[name][2]), max_size=4))
    stream = stream_of(frames, damage)
    assert read(name, [stream]) == read(name, cut(stream, size))


@pytest.mark.parametrize("name", READERS)
@given(stream=st.binary(max_size=400))
def test_bytes_by_chance_are_read_or_refused(name: str, stream: bytes) -> None:
    decode, refusal, _ = READERS[name]
    for framed in (stream, len(stream).to_bytes(4, "big") + stream):
        with contextlib.suppress(refusal):
            take_frames(bytearray(framed), wire.MAX_FRAME_BYTES, decode, refusal)
