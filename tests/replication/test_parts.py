"""The pure parts of a sync: throttling, cutting changes into batches, and circles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import ReplicationLoop
from jobs.protocol.model import Throttle
from jobs.records import CursorRecord
from jobs.replication import batches
from jobs.replication.messages import ABSENT, MAX_BATCH_BYTES, Change
from jobs.replication.origins import brought, check_no_loop, origin
from jobs.replication.throttle import Limiter


@given(
    taken=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100_000), st.integers(0, 2_000)), max_size=40),
    rates=st.tuples(st.integers(1_024, 1 << 20), st.integers(1, 1_000)),
)
def test_who_waits_as_told_never_takes_more_than_the_rate_and_one_second_s_worth(
    taken: list[tuple[float, int, int]], rates: tuple[int, int]
) -> None:
    limiter = Limiter(Throttle(bytes_per_s=rates[0], operations_per_s=rates[1]), 0.0)
    now_s, size_bytes, operations = 0.0, 0, 0
    for idle_s, size, count in taken:
        now_s += idle_s
        now_s += limiter.take(now_s, size, count)
        size_bytes, operations = size_bytes + size, operations + count
        assert size_bytes <= rates[0] * (now_s + 1) + 1
        assert operations <= rates[1] * (now_s + 1) + 1


def test_without_limits_nobody_waits() -> None:
    limiter = Limiter(Throttle(), 0.0)
    assert limiter.take(0.0, 1 << 40, 1 << 40) == 0.0


REVISIONS = st.lists(
    st.dictionaries(st.integers(0, 6), st.one_of(st.none(), st.binary(max_size=3)), min_size=1, max_size=7), max_size=20
)


@given(revisions=REVISIONS, most=st.integers(1, 8))
def test_batches_hold_every_change_in_order_and_never_say_that_more_is_there_than_is(
    revisions: list[dict[int, bytes | None]], most: int
) -> None:
    changes = [
        Change(b"%d" % key, value, revision, 0, ABSENT if revision == 1 else b"%d" % revision)
        for revision, ops in enumerate(revisions, 1)
        for key, value in sorted(ops.items())
    ]
    states: list[dict[bytes, bytes | None]] = [{}]
    for revision in range(1, len(revisions) + 1):
        states.append(states[-1] | {one.key: one.value for one in changes if one.revision == revision})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_CHANGES", most)
        found = list(batches.cut(changes, 0, len(revisions)))
    there: dict[bytes, bytes | None] = {}
    before = 0
    for part, revision in found:
        assert len({change.key for change in part}) == len(part) <= most
        there.update((change.key, change.value) for change in part)
        assert before <= revision
        before = revision
        for key, value in states[revision].items():
            later = {one.value for one in changes if one.key == key and one.revision > revision}
            assert there[key] == value or there[key] in later
    assert there == states[-1]
    assert found[-1][1] == len(revisions)


def test_a_batch_is_bounded_in_bytes_and_one_change_fits_whatever_its_size() -> None:
    changes = [Change(b"%d" % number, b"x" * (1 << 20), number, 0) for number in range(1, 11)]
    for parts in ([part for part, _ in batches.cut(changes, 0, 10)], list(batches.pieces(changes))):
        assert [change for part in parts for change in part] == changes
        assert all(sum(map(batches.size_of, part)) <= MAX_BATCH_BYTES for part in parts)


def test_what_is_made_ahead_comes_in_order_and_errors_in_their_turn() -> None:
    closed = False

    async def numbers() -> AsyncGenerator[int]:
        nonlocal closed
        try:
            for number in range(5):
                yield number
            raise ValueError("the end")
        finally:
            closed = True

    found: list[int] = []

    async def run() -> None:
        async for number in batches.ahead(numbers()):
            found.append(number)

    with pytest.raises(ValueError, match="the end"):
        asyncio.run(run())
    assert found == [0, 1, 2, 3, 4]
    assert closed


def cursor(source: str, prefix: str, target: str, *upstream: str, is_tags: bool = False) -> CursorRecord:
    return CursorRecord(
        source=source,
        prefix=prefix,
        target_prefix=target,
        is_tags=is_tags,
        upstream=(origin(source, prefix), *upstream),
    )


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/data/b/", {"one /data/a/", "two /data/x/"}),
        ("/data/b/deeper/", {"one /data/a/", "two /data/x/"}),
        ("/data/", {"one /data/a/", "two /data/x/", "three /data/c/"}),
        ("/data/e/", set()),
        ("tags:m.", {"four m."}),
    ],
)
def test_what_is_at_a_place_comes_from_whatever_syncs_bring_there(place: str, expected: set[str]) -> None:
    cursors = [
        cursor("one", "/data/a/", "/data/b/", "two /data/x/"),
        cursor("three", "/data/c/", "/data/d/"),
        cursor("four", "m.", "m.", is_tags=True),
    ]
    assert brought(cursors, place) == expected


def test_a_circle_is_one_only_where_ranges_of_the_same_cluster_overlap() -> None:
    upstream = ("one /data/a/", "two tags:m.")
    check_no_loop(upstream, "two", "/data/a/")
    check_no_loop(upstream, "one", "/data/b/")
    check_no_loop(upstream, "two", "tags:n.")
    for cluster, place in (("one", "/data/a/"), ("one", "/data/a/b/"), ("one", "/data/"), ("two", "tags:m.x")):
        with pytest.raises(ReplicationLoop):
            check_no_loop(upstream, cluster, place)
