"""Syncs of keys between two stores: what is at the target in the end, and what it took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from jobs import keys, records
from jobs.errors import OperationUnderWay, ReplicationConflict, ReplicationLoop
from jobs.protocol.model import Throttle
from jobs.records import CursorRecord, MomentRecord
from jobs.replication import localkeys
from jobs.replication import messages as m
from jobs.replication.localkeys import LocalKeys
from jobs.store import Put
from tests.support.loop import on_loop
from tests.support.sides import FakeClock, MemoryCluster, sync, work


def filled(cluster: str, count: int, prefix: str = "/data/a/", padding: int = 0) -> MemoryCluster:
    made = MemoryCluster(cluster)
    for number in range(count):
        made.put(f"{prefix}{number:06d}", b"value %d" % number + b" " * padding)
    return made


@on_loop
async def test_an_empty_target_gets_everything_below_the_prefix_and_nothing_else() -> None:
    source, target = filled("one", 2_500), MemoryCluster("two")
    source.put("/data/b/other", b"x")
    source.put("/data/a/", b"the prefix itself")
    done = await sync(source.side, target.side, work(target_prefix="/data/copy/")).run()
    assert target.data("/data/copy/") == source.data("/data/a/")
    assert target.data("/data/") == {b"copy/" + key: value for key, value in source.data("/data/a/").items()}
    assert (done.rows, done.deleted, done.conflicts, done.snapshots) == (2_501, 0, 0, 1)
    assert done.position == source.store.revision


@on_loop
async def test_an_empty_source_is_no_error() -> None:
    source, target = MemoryCluster("one"), MemoryCluster("two")
    source.put("/data/b/other", b"x")
    assert (await sync(source.side, target.side, work()).run()).rows == 0


@on_loop
async def test_a_second_run_follows_the_changes_only() -> None:
    source, target = filled("one", 3_000), MemoryCluster("two")
    first = await sync(source.side, target.side, work()).run()
    source.put("/data/a/000001", b"new")
    source.put("/data/a/000001", b"newer")
    source.delete("/data/a/000002")
    second = await sync(source.side, target.side, work(holder="job/2")).run()
    assert target.data("/data/a/") == source.data("/data/a/")
    assert (second.rows, second.deleted, second.conflicts, second.snapshots) == (1, 1, 0, 0)
    assert second.bytes < first.bytes / 100


@on_loop
async def test_what_history_no_longer_tells_is_found_by_digests_that_cost_little() -> None:
    source, target = filled("one", 20_000, padding=100), MemoryCluster("two")
    first = await sync(source.side, target.side, work()).run()
    for number in range(0, 20_000, 2_000):
        source.put(f"/data/a/{number:06d}", b"new")
    source.delete("/data/a/000001")
    source.compact()
    second = await sync(source.side, target.side, work(holder="job/2")).run()
    assert target.data("/data/a/") == source.data("/data/a/")
    assert (second.rows, second.deleted, second.conflicts, second.snapshots) == (10, 1, 0, 1)
    assert second.bytes < first.bytes / 20


@on_loop
async def test_keys_that_others_changed_at_the_target_are_conflicts_and_the_source_prevails() -> None:
    source, target = filled("one", 100), MemoryCluster("two")
    target.put("/data/a/000007", b"before the first comparison")
    target.put("/data/a/only here", b"too")
    target.put("/data/a/000008", b"value 8")
    first = await sync(source.side, target.side, work()).run()
    assert first.conflicts == 2
    changed = target.put("/data/a/000001", b"theirs")
    target.delete("/data/a/000002")
    source.put("/data/a/000001", b"ours")
    source.put("/data/a/000002", b"ours")
    source.put("/data/a/000003", b"ours")
    await sync(source.side, target.side, work(holder="job/2")).run()
    assert target.data("/data/a/") == source.data("/data/a/")
    found = [(one.key[8:], one.winner, one.deleted) for one in target.conflicts("origin", "s")]
    assert found == [
        (b"000007", "source", ""),
        (b"only here", "source", "source"),
        (b"000001", "source", ""),
        (b"000002", "source", "target"),
    ]
    assert target.conflicts("origin", "s")[2].target_revision == changed


@on_loop
async def test_more_conflicts_than_a_batch_can_record_are_all_recorded() -> None:
    source, target = filled("one", 1_000), MemoryCluster("two")
    for number in range(500):
        target.put(f"/data/a/{number:06d}", b"theirs")
    done = await sync(source.side, target.side, work()).run()
    assert target.data("/data/a/") == source.data("/data/a/")
    assert done.conflicts == len(target.conflicts("origin", "s")) == 500
    assert len({one.key for one in target.conflicts("origin", "s")}) == 500


@on_loop
async def test_no_more_conflicts_are_kept_than_configured() -> None:
    source, target = filled("one", 300), MemoryCluster("two", max_conflicts=120)
    for number in range(300):
        target.put(f"/data/a/{number:06d}", b"theirs")
    done = await sync(source.side, target.side, work()).run()
    assert done.conflicts == 300
    kept = target.conflicts("origin", "s")
    assert [one.key for one in kept] == [b"/data/a/%06d" % number for number in range(180, 300)]


@on_loop
async def test_with_the_policy_fail_nothing_is_changed_and_the_conflict_recorded_once() -> None:
    source, target = filled("one", 10), MemoryCluster("two")
    await sync(source.side, target.side, work()).run()
    target.put("/data/a/000005", b"theirs")
    source.put("/data/a/000004", b"ours")
    source.put("/data/a/000005", b"ours")
    before = target.data("/data/a/")
    for attempt in range(3):
        with pytest.raises(ReplicationConflict, match="000005"):
            await sync(source.side, target.side, work(holder=f"job/{attempt}", policy="fail")).run()
    assert target.data("/data/a/") == before
    assert [(one.key, one.winner) for one in target.conflicts("origin", "s")] == [(b"/data/a/000005", "none")]


def note(cluster: MemoryCluster, at_ms: int) -> None:
    """Note that it has its revision at this time."""
    cluster.write(Put(keys.moment(at_ms), records.encode(MomentRecord(revision=cluster.store.revision))))


@on_loop
async def test_with_the_policy_newer_the_later_change_prevails_and_the_source_where_that_is_not_known() -> None:
    source, target = filled("one", 5), MemoryCluster("two")
    await sync(source.side, target.side, work()).run()
    note(source, 100_000)
    note(target, 100_000)
    for number in (0, 1, 2):
        source.put(f"/data/a/{number:06d}", b"ours")
    target.put("/data/a/000003", b"theirs")
    note(source, 200_000)
    note(target, 200_000)
    source.put("/data/a/000003", b"ours")
    target.put("/data/a/000000", b"theirs")
    target.delete("/data/a/000001")
    note(source, 300_000)
    note(target, 300_000)
    target.put("/data/a/000002", b"theirs")
    note(target, 209_000 + 100_000)
    changed = source.data("/data/a/")
    await sync(source.side, target.side, work(policy="newer", holder="job/2")).run()
    found = {one.key[8:]: (one.winner, one.deleted) for one in target.conflicts("origin", "s")}
    assert found == {
        b"000000": ("target", ""),
        b"000001": ("target", "target"),
        b"000002": ("target", ""),
        b"000003": ("source", ""),
    }
    assert target.data("/data/a/") == {
        b"000000": b"theirs",
        b"000002": b"theirs",
        b"000003": b"ours",
        b"000004": changed[b"000004"],
    }
    # What prevailed there stays, also when nobody knows any more who changed it.
    source.compact()
    target.compact()
    source.put("/data/a/000005", b"new")
    source.compact()
    await sync(source.side, target.side, work(policy="newer", holder="job/3")).run()
    assert target.data("/data/a/")[b"000000"] == b"theirs"
    assert target.data("/data/a/")[b"000005"] == b"new"


@on_loop
async def test_a_change_of_the_same_ten_seconds_is_the_source_s() -> None:
    source, target = filled("one", 1), MemoryCluster("two")
    await sync(source.side, target.side, work()).run()
    source.put("/data/a/000000", b"ours")
    note(source, 200_000)
    target.put("/data/a/000000", b"theirs")
    note(target, 210_000)
    await sync(source.side, target.side, work(policy="newer", holder="job/2")).run()
    assert target.data("/data/a/") == {b"000000": b"ours"}
    assert [one.winner for one in target.conflicts("origin", "s")] == ["source"]


@on_loop
async def test_the_sync_s_own_changes_are_no_conflicts_after_both_sides_forgot_their_history() -> None:
    source, target = filled("one", 2_000), MemoryCluster("two")
    await sync(source.side, target.side, work()).run()
    for number in range(0, 2_000, 10):
        source.put(f"/data/a/{number:06d}", b"new")
    source.compact()
    target.compact()
    done = await sync(source.side, target.side, work(policy="fail", holder="job/2")).run()
    assert target.data("/data/a/") == source.data("/data/a/")
    assert (done.rows, done.conflicts, done.snapshots) == (200, 0, 1)


@on_loop
async def test_a_run_that_another_one_has_taken_over_from_stops() -> None:
    source, target = filled("one", 3_000), MemoryCluster("two")
    took_over = False

    def meddle() -> None:
        nonlocal took_over
        if not took_over and len(target.data("/data/a/")) > 0:
            took_over = True
            other = target.store.get(b"/replication/cursors/origin/s")
            assert other is not None
            record = structs.replace(records.decode(CursorRecord, other[1]), holder="other/1")
            target.write(Put(other[0], records.encode(record)))

    target.before_propose = meddle
    with pytest.raises(OperationUnderWay, match="other/1"):
        await sync(source.side, target.side, work()).run()
    assert len(target.data("/data/a/")) < 3_000
    await sync(source.side, target.side, work(holder="job/2")).run()
    assert target.data("/data/a/") == source.data("/data/a/")


@on_loop
async def test_one_that_begins_anew_goes_on_counting_conflicts() -> None:
    source, target = filled("one", 10), MemoryCluster("two")
    target.put("/data/a/000001", b"theirs")
    await sync(source.side, target.side, work()).run()
    target.put("/data/a/000002", b"theirs")
    again = await sync(source.side, target.side, work(holder="other/1", restart=True)).run()
    assert again.conflicts == 1
    assert again.cursor_conflicts == len(target.conflicts("origin", "s")) == 2


@on_loop
async def test_a_circle_is_refused_before_anything_is_written() -> None:
    one, two, three = filled("one", 10), MemoryCluster("two"), MemoryCluster("three")
    await sync(one.side, two.side, work("first")).run()
    await sync(two.side, three.side, work("second")).run()
    revision = one.store.revision
    for source in (two, three):
        with pytest.raises(ReplicationLoop):
            await sync(source.side, one.side, work("back")).run()
    assert one.store.revision == revision
    await sync(three.side, one.side, work("aside", target_prefix="/data/z/")).run()
    assert one.data("/data/z/") == one.data("/data/a/")
    with pytest.raises(ReplicationLoop):
        await sync(one.side, one.side, work("within", prefix="/data/z/", target_prefix="/data/a/")).run()


@on_loop
async def test_a_throttle_is_kept_to() -> None:
    source, target, clock = filled("one", 5_000), MemoryCluster("two"), FakeClock(step_s=0.0)
    began_s = clock.at_s
    done = await sync(source.side, target.side, work(), clock, Throttle(operations_per_s=1_000)).run()
    assert done.rows == 5_000
    assert 3.9 < clock.at_s - began_s < 5.1


@on_loop
async def test_no_more_is_read_under_a_throttle_than_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reads take no time, so that whatever may be read during a pause is
    monkeypatch.setattr(localkeys, "_in_thread", at_once)
    for padding, count in ((200_000, 100), (100, 8_000)):
        source, target, clock = filled("one", count, padding=padding), MemoryCluster("two"), LongPauses(step_s=0.0)
        reading = Reading(source.side)
        throttle = Throttle(bytes_per_s=50_000 if padding == 100 else 1_000_000, operations_per_s=10_000)
        done = await sync(reading, target.side, work(), clock, throttle).run()
        assert target.data("/data/a/") == source.data("/data/a/")
        assert reading.bytes < 1.1 * done.bytes


async def at_once(work: Callable[..., Any], *args: object) -> Any:
    return work(*args)


class LongPauses(FakeClock):
    async def pause(self, delay_s: float) -> None:
        for _ in range(100):
            await super().pause(delay_s / 100)


class Reading:
    """A side of which is counted what it tells."""

    def __init__(self, side: LocalKeys) -> None:
        self._side = side
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)

    async def rows(self, *args: Any, **kwargs: Any) -> m.Rows:
        found = await self._side.rows(*args, **kwargs)
        self.bytes += sum(len(row.key) + len(row.value) for row in found.rows)
        return found
