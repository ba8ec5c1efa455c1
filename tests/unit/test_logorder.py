"""The order of an output's pieces, and which of its chunks hold the beginnings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InternalError
from jobs.logorder import ENTRY_BYTES, Heads, Place, decode, encode

PLACES = st.builds(
    Place,
    seq=st.integers(0, (1 << 63) - 1),
    stream=st.sampled_from((1, 2)),
    size_bytes=st.integers(0, (1 << 32) - 1),
    offset=st.integers(0, 1 << 60),
)
CHUNKS = st.lists(st.lists(st.tuples(st.sampled_from((1, 2)), st.binary(max_size=20)), max_size=4), max_size=40)


@given(st.lists(PLACES, max_size=20))
def test_places_come_back_as_they_were(places: list[Place]) -> None:
    data = encode(places)
    assert len(data) == len(places) * ENTRY_BYTES
    assert list(decode(data)) == places


@pytest.mark.parametrize("cut", [1, ENTRY_BYTES - 1])
def test_what_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(InternalError):
        list(decode(encode([Place(1, 1, 2, 3)] * 2)[:-cut]))


def test_a_stream_that_there_is_not_is_refused() -> None:
    with pytest.raises(InternalError):
        list(decode(encode([Place(1, 3, 2, 3)])))


@given(CHUNKS, st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_what_stays_has_the_beginning_of_each_stream_and_little_more(
    chunks: list[list[tuple[int, bytes]]], limits: tuple[int, int]
) -> None:
    heads = Heads(limits)
    kept = [staying for chunk in chunks if (staying := heads.take(chunk))]
    for stream in (1, 2):
        whole = b"".join(data for chunk in chunks for number, data in chunk if number == stream)
        seen = b"".join(data for chunk in kept for number, data in chunk if number == stream)
        limit = limits[stream - 1]
        assert seen[:limit] == whole[:limit]
        assert heads.bytes[stream - 1] == len(whole)
        assert len(seen) < max(limit, 1) + 20
    # What stays of what stayed is the same: a deletion that was broken off goes on.
    again = Heads(limits)
    assert [again.take(chunk) for chunk in kept] == kept
