"""Batches of a sync at its target: what they change, what they meet, what is refused, and how a sync is forgotten."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control.replication import ReplicationConfig
from jobs.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    OperationUnderWay,
    ReplicationConflict,
    ReplicationLoop,
    RevisionConflict,
    StorageFull,
    TooManyRequests,
)
from jobs.protocol.ids import RequestId
from jobs.protocol.model import ConflictPolicy, Content, KvPut
from jobs.records import CursorRecord, SyncRecord
from jobs.replication.messages import ABSENT, MAX_CONFLICTS, UNKNOWN, Applied, Batch, Change
from jobs.store import prefix_end
from tests.support.loop import on_loop
from tests.support.plane import ADMIN, ALICE, CLUSTER, Plane, shell

SOURCE = "d" * 32
PREFIX = b"/data/copy/"
CURSOR = CursorRecord(source=SOURCE, prefix="/data/", target_prefix=PREFIX.decode(), is_tags=False, upstream=(SOURCE,))
OLD_MS = 60_000


def batch(expected: int, *changes: Change, policy: ConflictPolicy = "source", **cursor: object) -> Batch:
    return Batch(CLUSTER, "s", expected, replace(CURSOR, **{"position": 5, **cursor}), changes, policy)


def change(name: str, value: str | None, base: bytes = UNKNOWN, at_ms: int = 0) -> Change:
    return Change(name.encode(), None if value is None else value.encode(), 7, at_ms, base)


async def apply(plane: Plane, wanted: Batch) -> Applied:
    return await plane.control.replication.apply(wanted, RequestId(random.randbytes(16)))


async def put(plane: Plane, name: str, value: str) -> int:
    done = await plane.control.kv_put(ALICE, KvPut(key=(PREFIX + name.encode()).decode(), value=Content(text=value)))
    return done.revision


async def met(plane: Plane) -> list[tuple[str, str, str]]:
    page = await plane.control.replication.conflicts(ADMIN, "s", limit=100, cursor=None)
    return [(one.key, one.winner, one.deleted) for one in page.conflicts]


@on_loop
async def test_changes_come_in_one_transaction_with_the_cursor(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        done = await apply(plane, batch(0, change("a", "1", ABSENT), change("b", "2", ABSENT)))
        assert (done.put, done.deleted, done.conflicts) == (2, 0, 0)
        assert {row[4] for row in plane.store.range(PREFIX, prefix_end(PREFIX), limit=10)[0]} == {done.mod_revision}
        again = await apply(plane, batch(done.mod_revision, change("a", None), change("b", "2"), position=6))
        assert (again.put, again.deleted, again.conflicts) == (0, 1, 0)
        with pytest.raises(RevisionConflict, match="not at"):
            await apply(plane, batch(done.mod_revision, change("c", "3")))


@on_loop
async def test_who_asks_again_is_told_of_the_conflicts_that_were_met_the_first_time(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        first = await apply(plane, batch(0, change("a", "1", ABSENT)))
        await put(plane, "a", "local")
        wanted, request = batch(first.mod_revision, change("a", "2"), position=6), RequestId(random.randbytes(16))
        done = await plane.control.replication.apply(wanted, request)
        assert (done.put, done.conflicts) == (1, 1)
        # What was done is counted once, and so are conflicts: in the cursor, which who asks does not know
        again = await plane.control.replication.apply(wanted, request)
        assert again == Applied(done.mod_revision, conflicts=1)
        later = await apply(plane, batch(done.mod_revision, change("a", "3"), position=7, conflicts=1))
        assert (later.put, later.conflicts) == (1, 0)
        assert (await plane.control.replication.apply(wanted, request)).conflicts == 0, "the cursor has moved on"
        assert len(await met(plane)) == 1


@on_loop
async def test_the_older_side_gives_way_where_the_newer_is_to_win(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        done = await apply(plane, batch(0, change("a", "1", ABSENT), change("b", "1", ABSENT)))
        await put(plane, "a", "local")
        await put(plane, "b", "local")
        now_ms = wall_ms()
        last = (change("a", "2", at_ms=now_ms - OLD_MS), change("b", "2", at_ms=now_ms))
        done = await apply(plane, batch(done.mod_revision, *last, policy="newer", position=6))
        assert (done.put, done.conflicts) == (1, 2)
        assert plane.store.get(PREFIX + b"a")[1] == b"local"  # type: ignore[index]
        assert await met(plane) == [("/data/copy/b", "source", ""), ("/data/copy/a", "target", "")]


@on_loop
async def test_nothing_is_done_where_a_conflict_is_to_fail_and_it_is_told_once(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await put(plane, "a", "local")
        wanted = batch(0, change("b", "2", ABSENT), change("a", "1", ABSENT), policy="fail")
        with pytest.raises(ReplicationConflict, match=r"1 keys were changed .* /data/copy/a"):
            await apply(plane, wanted)
        assert plane.store.get(PREFIX + b"b") is None
        assert await met(plane) == [("/data/copy/a", "none", "")]
        with pytest.raises(RevisionConflict):
            await apply(plane, wanted)
        row = plane.store.get(keys.sync_cursor(CLUSTER, "s"))
        assert row is not None
        record = records.decode(CursorRecord, row[1])
        assert (record.position, record.conflicts) == (0, 1)
        with pytest.raises(ReplicationConflict):
            await apply(plane, replace(wanted, expected=row[4]))
        assert len(await met(plane)) == 1


@on_loop
async def test_more_conflicts_than_are_recorded_at_once_make_a_batch_smaller(tmp_path: Path) -> None:
    async with Plane(tmp_path, replication=ReplicationConfig(cluster=CLUSTER, max_conflicts=50)) as plane:
        names = [f"{number:03}" for number in range(2 * MAX_CONFLICTS)]
        for name in names:
            await put(plane, name, "local")
        changes = tuple(change(name, "x") for name in names)
        done = await apply(plane, batch(0, change("_", "1", ABSENT), *changes))
        assert (done.mod_revision, done.fit) == (0, 1 + MAX_CONFLICTS)
        assert plane.store.get(PREFIX + b"_") is None
        first = await apply(plane, batch(0, *changes[:MAX_CONFLICTS]))
        second = await apply(plane, batch(first.mod_revision, *changes[MAX_CONFLICTS:], position=6))
        assert first.conflicts == second.conflicts == MAX_CONFLICTS
        assert len(await met(plane)) == 50
        pages, cursor = list[str](), None
        while True:
            page = await plane.control.replication.conflicts(ADMIN, "s", limit=15, cursor=cursor)
            pages += [one.key for one in page.conflicts]
            if (cursor := page.next_cursor) is None:
                break
        assert pages == [f"/data/copy/{name}" for name in names[:-51:-1]]


@on_loop
async def test_what_may_not_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    async with Plane(tmp_path, replication=ReplicationConfig(cluster=CLUSTER, max_syncs=1)) as plane:
        before = plane.store.revision
        for wanted, error in (
            (batch(0, change("a", "1"), upstream=(SOURCE, CLUSTER)), ReplicationLoop),
            (batch(0, change("a", "1"), target_prefix="/jobs/"), Forbidden),
            (batch(0, Change(b"\xff", b"1", 7)), InvalidRequest),
            (batch(0, Change(b"a" * 1_020, b"1", 7)), InvalidRequest),
            (batch(3, change("a", "1")), RevisionConflict),
        ):
            with pytest.raises(error):
                await apply(plane, wanted)
        assert plane.store.revision == before
        await apply(plane, batch(0))
        with pytest.raises(TooManyRequests, match=r"replication\.max_syncs"):
            await apply(plane, replace(batch(0), name="other"))


@on_loop
async def test_a_full_store_takes_deletions_only(tmp_path: Path) -> None:
    async with Plane(tmp_path, max_store_bytes=1) as plane:
        with pytest.raises(StorageFull):
            await apply(plane, batch(0, change("a", "1")))
        await apply(plane, batch(0, change("a", None)))


@on_loop
async def test_a_forgotten_sync_leaves_its_keys_and_nothing_else(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        replication = plane.control.replication
        for number in range(3):
            await put(plane, f"{number}", "local")
        await apply(plane, batch(0, *(change(f"{number}", "x") for number in range(3))))
        with pytest.raises(Forbidden):
            await replication.delete_sync(ALICE, "s")
        await replication.delete_sync(ADMIN, "s")
        assert plane.store.count(b"/replication/", prefix_end(b"/replication/"), limit=10) == 0
        assert plane.store.count(PREFIX, prefix_end(PREFIX), limit=10) == 3
        with pytest.raises(NotFound):
            await replication.delete_sync(ADMIN, "s")
        with pytest.raises(NotFound):
            await replication.conflicts(ADMIN, "s", limit=10, cursor=None)


@on_loop
async def test_a_sync_is_not_forgotten_while_a_job_is_at_it(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        replication = plane.control.replication
        (job,) = await plane.control.submit(ADMIN, [shell()])
        record = SyncRecord(
            source="east",
            target="",
            prefix="/data/",
            target_prefix="/data/",
            is_tags=False,
            job=job.job.id,
            phase="following",
            position=5,
            source_revision=8,
            behind_since_ms=wall_ms() - 5_000,
        )
        await replication.set_sync("s", record)
        (view,) = (await replication.syncs(ADMIN)).syncs
        assert (view.phase, view.lag_revisions, view.lag_s >= 5) == ("following", 3, True)
        with pytest.raises(OperationUnderWay, match="jobctl cancel"):
            await replication.delete_sync(ADMIN, "s")
        await plane.control.cancel(ADMIN, job.job.id)
        assert (await replication.syncs(ADMIN)).syncs[0].phase == "stopped"
        await replication.delete_sync(ADMIN, "s")
        assert (await replication.syncs(ADMIN)).syncs == []


@on_loop
async def test_who_asks_for_conflicts_that_are_kept_elsewhere_is_told_where(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        replication = plane.control.replication
        record = SyncRecord(
            source="east", target="", prefix="/data/", target_prefix="/data/", is_tags=False, job=None, phase="stopped"
        )
        await replication.set_sync("pulled", record)
        assert (await replication.conflicts(ADMIN, "pulled", limit=10, cursor=None)).conflicts == []
        await replication.set_sync("pushed", replace(record, source="", target="west"))
        with pytest.raises(NotFound, match="at its target, the cluster of link west"):
            await replication.conflicts(ADMIN, "pushed", limit=10, cursor=None)
