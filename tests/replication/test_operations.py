"""What a node does for a job of type replication: told, written down for people, and gone on with after failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from jobs import keys, records
from jobs.errors import (
    Forbidden,
    InvalidRequest,
    LinkUnavailable,
    NotFound,
    OperationUnderWay,
    ReplicationConflict,
    StorageFull,
)
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    JobState,
    OperationAdvance,
    OperationLine,
    ReplicationDone,
    ReplicationPerform,
    ReplicationResult,
    ReplicationSync,
    ReplicationVerify,
)
from jobs.records import JobRecord, SyncRecord
from jobs.replication.operations import Operations
from jobs.service import Caller
from jobs.store import Put
from tests.support.loop import on_loop
from tests.support.sides import FakeClock, Fragile, MemoryCluster

ADMIN = Caller(uid=0, gid=0, admin=True)
JOB = JobId("01985f2e-0000-7000-8000-000000000001")
OTHER_JOB = JobId("01985f2e-0000-7000-8000-000000000002")


class Play:
    """This cluster, with another one that it has a link to."""

    def __init__(self) -> None:
        self.here, self.there = MemoryCluster("here"), MemoryCluster("there")
        self.here.put("/data/else", b"x")
        self.there.put("/data/else", b"x")
        self.hook: Callable[[str, str], None] = lambda name, when: None
        self.clock = FakeClock()
        self.operations = Operations(
            self.here.store,
            self.here.side,
            "here",
            self,
            self.find,
            self.clock.clock,  # type: ignore[arg-type]
        )
        self.written: list[SyncRecord] = []

    def find(self, link: str) -> Any:
        if link != "there":
            raise NotFound(f"there is no link {link}")
        return Fragile(self.there.side, self._at_call)

    def _at_call(self, name: str, when: str) -> None:
        self.hook(name, when)

    async def set_sync(self, name: str, record: SyncRecord) -> None:
        self.written.append(record)
        self.here.write(Put(keys.sync(name), records.encode(record)))

    async def events(self, payload: Any, job: JobId = JOB, caller: Caller = ADMIN) -> list[Any]:
        performed = self.operations.perform(caller, ReplicationPerform(job=job, payload=payload))
        async with aclosing(performed) as events:
            return [event async for event in events]

    async def done(self, payload: Any, job: JobId = JOB) -> ReplicationResult:
        last = (await self.events(payload, job))[-1]
        assert isinstance(last, ReplicationDone)
        return last.result


def pull(**fields: Any) -> ReplicationSync:
    return ReplicationSync(name="s", source="there", prefix="/data/a/", **fields)


def push(**fields: Any) -> ReplicationSync:
    return ReplicationSync(name="s", target="there", prefix="/data/b/", **fields)


@on_loop
async def test_a_sync_tells_how_far_it_is_and_leaves_written_how_it_ended() -> None:
    play = Play()
    for number in range(2_000):
        play.there.put(f"/data/a/{number:05d}", b"x" * 100)
    *told, last = await play.events(pull())
    assert last.result.rows == 2_000
    assert last.result.seconds > 0
    assert any(isinstance(event, OperationAdvance) and event.done for event in told)
    assert play.here.data("/data/a/") == play.there.data("/data/a/")
    record = play.written[-1]
    assert (record.phase, record.rows, record.job, record.last_error) == ("stopped", 2_000, JOB, "")
    assert record.behind_since_ms is None
    assert record.position == record.source_revision == play.there.store.revision
    again = await play.done(pull(), OTHER_JOB)
    assert (again.rows, play.written[-1].rows) == (0, 2_000)


@on_loop
async def test_what_cannot_be_reached_is_tried_again_until_it_can() -> None:
    play = Play()
    play.there.put("/data/a/1", b"x")
    left = 5

    def hook(name: str, when: str) -> None:
        nonlocal left
        if left and name == "digests" and when == "after":
            left -= 1
            raise LinkUnavailable("no node of cluster there answers")

    play.hook = hook
    assert (await play.done(pull())).rows == 1
    assert left == 0
    assert play.clock.paused_s > 5


@on_loop
async def test_a_sync_that_is_not_continuous_gives_up_in_the_end_and_says_why() -> None:
    play = Play()

    def hook(name: str, when: str) -> None:
        raise LinkUnavailable("no node of cluster there answers")

    play.hook = hook
    with pytest.raises(LinkUnavailable):
        await play.events(pull())
    assert (play.written[-1].phase, "no node" in play.written[-1].last_error) == ("failed", True)


@on_loop
async def test_a_continuous_sync_follows_until_it_is_given_up() -> None:
    play = Play()
    play.there.put("/data/a/1", b"x")
    events = play.operations.perform(ADMIN, ReplicationPerform(job=JOB, payload=pull(continuous=True)))
    async with aclosing(events):
        async for _ in events:
            if play.here.data("/data/a/") == {b"1": b"x"}:
                play.there.put("/data/a/2", b"y")
            if len(play.here.data("/data/a/")) == 2:
                break
        assert play.operations.metrics()["jobs_replication_rows_total"][2] == {"s": 2}
    assert play.written[-1].phase == "stopped"
    assert play.operations.metrics()["jobs_replication_rows_total"][2] == {}


@on_loop
async def test_a_sync_that_goes_on_says_at_once_that_its_target_has_everything() -> None:
    play = Play()
    play.there.put("/data/a/1", b"x")
    await play.done(pull())
    events = play.operations.perform(ADMIN, ReplicationPerform(job=JOB, payload=pull(continuous=True)))
    async with asyncio.timeout(10), aclosing(events):
        async for _ in events:
            if play.operations.metrics()["jobs_replication_lag_seconds"][2] == {"s": 0.0}:
                break


@on_loop
async def test_only_one_job_works_on_a_sync() -> None:
    play = Play()
    await play.done(pull())
    running = JobRecord(
        type="replication", queue="q", priority=0, owner=0, state=JobState.RUNNING, submitted_ms=1, ready_ms=1
    )
    play.here.write(
        Put(keys.state(JOB), records.encode(running)),
        Put(
            keys.sync("s"),
            records.encode(
                SyncRecord(
                    source="there",
                    target="",
                    prefix="/data/a/",
                    target_prefix="/data/a/",
                    is_tags=False,
                    job=JOB,
                    phase="following",
                )
            ),
        ),
    )
    with pytest.raises(OperationUnderWay, match=JOB):
        await play.events(pull(), OTHER_JOB)
    await play.done(pull(), JOB)


@on_loop
async def test_a_conflict_fails_the_job_and_stays_written() -> None:
    play = Play()
    play.there.put("/data/a/1", b"theirs")
    play.here.put("/data/a/1", b"ours")
    with pytest.raises(ReplicationConflict):
        await play.events(pull(conflicts="fail"))
    assert play.written[-1].phase == "failed"
    assert "/data/a/1" in play.written[-1].last_error
    assert play.here.data("/data/a/") == {b"1": b"ours"}


@on_loop
async def test_a_remote_target_that_was_forgotten_here_is_compared_anew() -> None:
    play = Play()
    play.here.put("/data/a/1", b"x")
    push = ReplicationSync(name="s", target="there", prefix="/data/a/")
    assert (await play.done(push)).snapshots == 1
    assert (await play.done(push, OTHER_JOB)).snapshots == 0
    play.here.delete(keys.sync("s").decode())
    play.there.put("/data/a/1", b"changed there")
    result = await play.done(push, JOB)
    assert (result.snapshots, result.conflicts) == (1, 1)
    assert play.there.data("/data/a/") == {b"1": b"x"}


@on_loop
async def test_verify_names_the_ranges_that_differ_and_changes_nothing() -> None:
    play = Play()
    for number in range(5_000):
        for cluster in (play.here, play.there):
            cluster.put(f"/data/a/{number:05d}", b"x")
    wanted = ReplicationVerify(source="there", prefix="/data/a/")
    assert (await play.done(wanted)).differences == []
    play.there.put("/data/a/00100", b"y")
    play.there.put("/data/a/00101", b"y")
    play.here.delete("/data/a/03000")
    play.here.put("/data/a/z", b"only here")
    before = play.here.store.revision, play.there.store.revision
    *told, last = await play.events(wanted)
    assert [(one.first, one.last, one.source_rows, one.target_rows) for one in last.result.differences] == [
        ("/data/a/00100", "/data/a/00101", 2, 2),
        ("/data/a/03000", "/data/a/03000", 1, 0),
        ("/data/a/z", "/data/a/z", 0, 1),
    ]
    assert last.result.rows == 5_000
    assert sum(isinstance(event, OperationLine) for event in told) == 3
    assert (play.here.store.revision, play.there.store.revision) == before


@on_loop
async def test_only_administrators_replicate_and_links_have_to_be_there() -> None:
    play = Play()
    with pytest.raises(Forbidden):
        await play.events(pull(), caller=Caller(uid=1_000, gid=1_000, admin=False))
    with pytest.raises(NotFound, match="nowhere"):
        await play.events(ReplicationSync(name="s", source="nowhere", prefix="/data/a/"))
    assert play.written == []
    await asyncio.sleep(0)


@on_loop
async def test_conflicts_that_made_a_sync_fail_are_counted_by_its_status() -> None:
    play = Play()
    for name in ("1", "2"):
        play.there.put(f"/data/a/{name}", b"theirs")
        play.here.put(f"/data/a/{name}", b"ours")
    for job in (JOB, OTHER_JOB):
        with pytest.raises(ReplicationConflict):
            await play.events(pull(conflicts="fail"), job)
        # The second time there is nothing new to be recorded
        assert (play.written[-1].phase, play.written[-1].conflicts) == ("failed", 2)


@on_loop
async def test_what_is_told_of_one_range_is_not_taken_for_another_ones() -> None:
    play = Play()
    for number in range(5):
        play.there.put(f"/data/a/{number}", b"x")
    await play.done(pull())
    with pytest.raises(InvalidRequest, match="has been one of"):
        await play.events(pull(target_prefix="/data/b/"), OTHER_JOB)
    record = play.written[-1]
    assert (record.target_prefix, record.position, record.rows) == ("/data/b/", 0, 0)


@on_loop
async def test_one_that_goes_on_waits_for_room_at_its_target_and_says_so_meanwhile() -> None:
    play = Play()
    is_full = True

    def hook(name: str, when: str) -> None:
        if is_full and (name, when) == ("apply", "before"):
            raise StorageFull("the store holds too much")

    play.hook = hook
    play.here.put("/data/b/1", b"y")
    events = play.operations.perform(ADMIN, ReplicationPerform(job=JOB, payload=push(continuous=True)))
    async with asyncio.timeout(10), aclosing(events):
        async for _ in events:
            if play.operations.metrics()["jobs_replication_failing"][2] == {"s": 1.0}:
                break
        is_full = False
        while play.there.data("/data/b/") != {b"1": b"y"}:
            await anext(events)


@on_loop
async def test_one_that_is_to_end_fails_at_once_where_there_is_no_room_and_says_that_its_target_lacks_something() -> (
    None
):
    play = Play()
    await play.done(push())
    play.here.put("/data/b/2", b"y")

    def hook(name: str, when: str) -> None:
        if (name, when) == ("apply", "after"):
            raise StorageFull("the store holds too much")

    play.hook = hook
    with pytest.raises(StorageFull):
        await play.events(push(), OTHER_JOB)
    record = play.written[-1]
    assert (record.phase, record.behind_since_ms is None) == ("failed", False)
