"""The last lines or bytes of any output, found from its end: always what a look at the whole would give."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from jobs.control.logs import Tail
from jobs.protocol.model import MAX_TAIL_BYTES

pieces = st.lists(st.text("a\n", min_size=1, max_size=6).map(str.encode), max_size=12)


def taken(tail: Tail, output: list[bytes]) -> bytes:
    """Return what a reader gets who walks back over the pieces and then forward from where the tail begins."""
    for index in range(len(output) - 1, -1, -1):
        start = tail.take(output[index])
        if start is not None:
            assert 0 <= start <= len(output[index])
            return output[index][start:] + b"".join(output[index + 1 :])
    return b"".join(output)


@given(pieces, st.integers(0, 12))
@example([b"\n"], 1)
@example([b"a\n", b"\n"], 1)
@example([b"a", b"\n"], 1)
@example([b"a\na"], 1)
def test_the_last_lines(output: list[bytes], lines: int) -> None:
    whole = b"".join(output).splitlines(keepends=True)
    assert taken(Tail(lines, None), output) == b"".join(whole[max(0, len(whole) - lines) :])


@given(pieces, st.integers(0, 40))
def test_the_last_bytes(output: list[bytes], size_bytes: int) -> None:
    whole = b"".join(output)
    assert taken(Tail(None, size_bytes), output) == whole[max(0, len(whole) - size_bytes) :]


def test_lines_without_end_are_cut() -> None:
    output = [b"x" * (1 << 20) for _ in range(20)]
    assert len(taken(Tail(3, None), output)) == MAX_TAIL_BYTES
