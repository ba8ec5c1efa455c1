"""Messages of members: what is sent arrives, and whatever else comes is refused without harm."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.consensus.messages import (
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Append,
    Appended,
    Message,
    MessageError,
    Pulse,
    Pulsed,
    TimeoutNow,
    Vote,
    Voted,
    decode,
    encode,
)

numbers = st.integers(0, 1 << 62)
entries = st.lists(st.tuples(numbers, st.binary(max_size=200)), max_size=20)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Append, numbers, numbers, numbers, numbers, numbers, entries),
    st.builds(Appended, numbers, st.booleans(), numbers, numbers, numbers),
    st.builds(Vote, numbers, numbers, numbers, st.booleans(), st.booleans()),
    st.builds(Voted, numbers, st.booleans(), st.booleans()),
    st.builds(TimeoutNow, numbers),
    st.builds(Pulse, numbers, numbers),
    st.builds(Pulsed, numbers, numbers),
)


@given(messages)
def test_what_is_sent_arrives(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages, st.integers(0, 10_000))
def test_a_message_that_is_cut_off_is_refused(message: Message, cut: int) -> None:
    data = encode(message)
    with pytest.raises(MessageError):
        decode(data[: cut % len(data)])


@given(messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_makes_another_message_or_none(message: Message, place: int, change: int) -> None:
    data = bytearray(encode(message))
    data[place % len(data)] ^= change
    with contextlib.suppress(MessageError):
        decode(bytes(data))


@given(st.binary(max_size=300))
def test_bytes_by_chance_are_a_message_or_refused(data: bytes) -> None:
    for one in (data, bytes((WIRE_VERSION,)) + data):
        with contextlib.suppress(MessageError):
            decode(one)


def test_another_version_is_refused_naming_it() -> None:
    with pytest.raises(MessageError, match=f"version 200; this build speaks {WIRE_VERSION}"):
        decode(b"\xc8" + encode(TimeoutNow(1))[1:])


def test_numbers_and_kinds_that_cannot_be_are_refused() -> None:
    import msgspec

    version = bytes((WIRE_VERSION,))
    for body in ([4, -1], [4, 1 << 63], [9, 1], [0, 1, 1, 1, 1, 1, [[1]]], [0, 1, 1, 1, 1, 1, [["1", b""]]], {"a": 1}):
        with pytest.raises(MessageError):
            decode(version + msgspec.msgpack.encode(body))


def test_deep_nesting_and_great_length_are_refused() -> None:
    version = bytes((WIRE_VERSION,))
    with pytest.raises(MessageError):
        decode(version + b"\x91" * 100_000)
    with pytest.raises(MessageError, match="at most"):
        decode(version + bytes(MAX_MESSAGE_BYTES))
