"""It is known when the store had which revision, as finely as that is noted and for as long as it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import keys, records
from jobs._native import MemoryStore
from jobs.control.moments import Moments, MomentsConfig, revision_at
from jobs.protocol.model import Content, KvPut
from jobs.records import MomentRecord
from jobs.replication.times import KnownTimes
from jobs.store import Put, Store, Txn, encode_command, prefix_end
from tests.support.clock import Clock
from tests.support.plane import ADMIN, Plane

RARELY = MomentsConfig(period_s=3_600)


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(within())


def all_of(store: Store) -> list[tuple[int, int]]:
    """Return every moment as its time and revision."""
    rows, _ = store.range(keys.MOMENTS, prefix_end(keys.MOMENTS), limit=10_000)
    return [(keys.time_of(keys.MOMENTS, row[0]), records.decode(MomentRecord, row[1]).revision) for row in rows]


async def put(plane: Plane, name: str) -> int:
    return (await plane.control.kv_put(ADMIN, KvPut(key=f"/data/{name}", value=Content(text="x")))).revision


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), max_size=30), st.data())
def test_a_revision_is_of_the_first_moment_that_has_it(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    store, noted = MemoryStore(), list[tuple[int, int]]()
    at_ms = revision = 0
    for number, (later_ms, more) in enumerate(steps, 1):
        at_ms, revision = at_ms + later_ms, revision + more
        noted.append((at_ms, revision))
        op = Put(keys.moment(at_ms), records.encode(MomentRecord(revision=revision)))
        store.apply([(number, 1, encode_command([Txn(then=(op,))]))])
    times = KnownTimes(store)
    for wanted in data.draw(st.lists(st.integers(1, 160), max_size=20)):
        expected = next((at for at, known in noted if known >= wanted), 9_999)
        assert times.of(wanted, 9_999) == expected
    for when in data.draw(st.lists(st.integers(-5, 1_300), max_size=20)):
        assert revision_at(store, when) == max((known for at, known in noted if at <= when), default=0)


def test_the_leader_notes_what_changes_and_nothing_while_nothing_does(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, moments=MomentsConfig(period_s=0.02)) as plane:
            first = await put(plane, "a")
            await until_noted(plane, first)
            still = plane.store.revision
            await asyncio.sleep(0.1)  # several periods
            assert plane.store.revision == still
            second = await put(plane, "b")
            await until_noted(plane, second)
            found = all_of(plane.store)
            assert all(
                before < after for one, other in pairwise(found) for before, after in zip(one, other, strict=True)
            )
            (at_ms, _) = found[-1]
            assert KnownTimes(plane.store).of(second, at_ms + 5) == at_ms
            assert revision_at(plane.store, at_ms) >= second > revision_at(plane.store, found[0][0]) >= first

    play(run)


async def until_noted(plane: Plane, revision: int) -> None:
    times = KnownTimes(plane.store)
    with plane.site.waiter(keys.MOMENTS) as waiter:
        while times.of(revision, -1) < 0:
            await waiter.wait(20)


def test_a_leader_that_begins_again_does_not_note_what_is_noted(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, moments=RARELY) as plane:
            await put(plane, "a")
            await Moments(plane.consensus, plane.store, RARELY).note(1_000)
            still, other = plane.store.revision, Moments(plane.consensus, plane.store, RARELY)
            other._noted = other._last_noted()
            await other.note(2_000)
            assert plane.store.revision == still
            await put(plane, "b")
            await other.note(3_000)
            assert [at_ms for at_ms, _ in all_of(plane.store)] == [1_000, 3_000]

    play(run)


@pytest.mark.parametrize("wrong", [3, 2_500])
def test_moments_of_a_clock_that_was_ahead_go_when_it_is_right_again(tmp_path: Path, wrong: int) -> None:
    async def run() -> None:
        async with Plane(tmp_path, moments=RARELY) as plane:
            moments = Moments(plane.consensus, plane.store, RARELY)
            await put(plane, "a")
            await moments.note(1_000)
            ops = tuple(Put(keys.moment(50_000 + at), records.encode(MomentRecord(revision=2))) for at in range(wrong))
            for start in range(0, wrong, 900):
                await plane.consensus.propose(Txn(then=ops[start : start + 900]))
            mistaken = await put(plane, "b")
            await moments.note(2_000)
            found = all_of(plane.store)
            assert [at_ms for at_ms, _ in found] == [1_000, 2_000]
            assert KnownTimes(plane.store).of(mistaken, 0) == 2_000

    play(run)


def test_no_more_moments_are_kept_than_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clock = Clock(monkeypatch)
        async with Plane(tmp_path, moments=MomentsConfig(period_s=0.001, max_kept=20)) as plane:
            revision = 0
            for number in range(60):
                clock.jump(1)
                revision = await put(plane, f"{number}")
                await until_noted(plane, revision)
            assert 10 <= len(all_of(plane.store)) <= 25

    play(run)
