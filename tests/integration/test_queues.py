"""Queues and owners over a real log and store: settings, limits, pause and drain, pages, audit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs import keys, records
from jobs.control.transitions import scan
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol import wire
from jobs.protocol.model import (
    JobView,
    OwnerChange,
    OwnerSettings,
    OwnerView,
    QueueChange,
    QueueSettings,
    QueueView,
)
from jobs.records import AuditRecord
from jobs.service import Caller
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

FAR_MS = 253_402_300_799_999


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


async def submit(plane: Plane, queue: str = "default", caller: Caller = ALICE, **changes: object) -> JobView:
    (submitted,) = await plane.control.submit(caller, [shell("true", queue=queue, **changes)])
    return submitted.job


def audited(plane: Plane) -> list[tuple[int, str, str, str | None]]:
    entries = [records.decode(AuditRecord, row[1]) for row in scan(plane.store, keys.AUDIT)]
    return [(entry.uid, entry.action, entry.subject, entry.detail) for entry in entries]


def test_settings_are_replaced_whole_or_changed_in_part_and_outlive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            await queues.put(ADMIN, "a/b", QueueSettings(weight=2.0, max_running=3, rate_count=10, rate_period_s=60.0))
            changed = await queues.change(ADMIN, "a/b", QueueChange(max_running=None, max_pending=7))
            assert (changed.weight, changed.max_running, changed.max_pending) == (2.0, None, 7)
            await queues.put_owner(ADMIN, 1001, OwnerSettings(weight=0.5, max_pending=9))
            await queues.change_owner(ADMIN, 1001, OwnerChange(max_running=1))
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            assert await queues.get(BOB, "a/b") == changed
            owner = await queues.get_owner(ALICE, 1001)
            assert owner == OwnerView(uid=1001, weight=0.5, max_pending=9, max_running=1, pending=0, running=0)
            replaced = await queues.put(ADMIN, "a/b", QueueSettings(weight=3.0))
            assert (replaced.weight, replaced.max_pending, replaced.rate_count) == (3.0, None, None)

    run(scenario())


def test_changes_at_the_same_time_all_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            await asyncio.gather(
                queues.change(ADMIN, "q", QueueChange(weight=2.0)),
                queues.change(ADMIN, "q", QueueChange(max_running=4)),
                queues.change(ADMIN, "q", QueueChange(max_pending=5)),
                queues.pause(ADMIN, "q", paused=True),
                queues.drain(ADMIN, "q", draining=True),
            )
            found = await queues.get(ADMIN, "q")
            assert (found.weight, found.max_running, found.max_pending) == (2.0, 4, 5)
            assert (found.paused, found.draining) == (True, True)

    run(scenario())


def test_a_queue_whose_settings_are_the_defaults_again_is_as_if_it_never_was_set(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            for _ in range(2):
                await queues.pause(ADMIN, "q", paused=True)
                job = await submit(plane, "q")
                await queues.pause(ADMIN, "q", paused=False)
                await plane.control.cancel(ALICE, job.id)
                assert plane.store.get(keys.queue_settings("q")) is None
                assert (await queues.page(ALICE, limit=9, cursor=None)).queues == []

    run(scenario())


def test_every_change_leaves_one_entry_in_the_audit_trail_and_no_change_leaves_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            worker = WorkerPeer("w")
            await worker.register(plane.worker_socket)
            for _ in range(2):
                await queues.change(ADMIN, "q", QueueChange(weight=2.0, rate_count=5))
                await queues.change(ADMIN, "q", QueueChange(rate_count=5))
            for _ in range(2):
                await queues.pause(ADMIN, "q", paused=True)
            await queues.pause(ADMIN, "q", paused=False)
            await queues.drain(ADMIN, "q", draining=True)
            await queues.drain(ADMIN, "q", draining=False)
            await queues.put_owner(ADMIN, 1001, OwnerSettings(max_running=2))
            await queues.put_owner(ADMIN, 1001, OwnerSettings())
            for _ in range(2):
                await plane.control.drain_worker(ADMIN, "w")
            for _ in range(2):
                await plane.control.resume_worker(ADMIN, "w")
            assert sorted(audited(plane)) == sorted(
                [
                    (0, "queue.set", "q", "weight=2.0, rate_count=5"),
                    (0, "queue.pause", "q", "paused=True"),
                    (0, "queue.resume", "q", "paused=False"),
                    (0, "queue.drain", "q", "draining=True"),
                    (0, "queue.open", "q", "draining=False"),
                    (0, "owner.set", "1001", "max_running=2"),
                    (0, "owner.set", "1001", "max_running=none"),
                    (0, "worker.drain", "w", None),
                    (0, "worker.resume", "w", None),
                ]
            )

    run(scenario())


def test_only_admins_change_anything_and_see_other_owners(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            for refused in (
                queues.put(ALICE, "q", QueueSettings()),
                queues.change(ALICE, "q", QueueChange(weight=9.0)),
                queues.pause(ALICE, "q", paused=True),
                queues.pause(ALICE, "q", paused=False),
                queues.drain(ALICE, "q", draining=True),
                queues.drain(ALICE, "q", draining=False),
                queues.put_owner(ALICE, ALICE.uid, OwnerSettings()),
                queues.change_owner(ALICE, ALICE.uid, OwnerChange(max_running=None)),
                queues.get_owner(ALICE, BOB.uid),
            ):
                with pytest.raises(Forbidden):
                    await refused
            assert audited(plane) == []
            assert (await queues.get_owner(ALICE, ALICE.uid)).uid == ALICE.uid
            assert (await queues.get_owner(ADMIN, BOB.uid)).uid == BOB.uid

    run(scenario())


def test_a_paused_queue_starts_nothing_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer(slots=9)
            await worker.register(plane.worker_socket)
            await plane.control.queues.pause(ADMIN, "q", paused=True)
            held = await submit(plane, "q")
            other = await submit(plane)
            assert (await worker.assigned()).job == other.id
            view = await plane.control.queues.get(ALICE, "q")
            assert (view.paused, view.pending, view.waiting, view.running) == (True, 1, 0, 0)
            await plane.control.queues.pause(ADMIN, "q", paused=False)
            assert (await worker.assigned()).job == held.id
            assert (await plane.control.queues.get(ALICE, "q")).running == 1

    run(scenario())


def test_a_limit_of_running_jobs_that_is_raised_counts_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            await queues.change(ADMIN, "q", QueueChange(max_running=1))
            worker = WorkerPeer(slots=9)
            await worker.register(plane.worker_socket)
            jobs = [await submit(plane, "q") for _ in range(3)]
            assert (await worker.assigned()).job == jobs[0].id
            assert (await queues.get(ALICE, "q")).running == 1
            await queues.change(ADMIN, "q", QueueChange(max_running=3))
            frame = await worker.expect(wire.Assign)
            assert {item.job for item in frame.jobs} == {job.id for job in jobs[1:]}

    run(scenario())


def test_pages_hold_every_queue_once_in_order_whatever_it_is_known_by(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            worker = WorkerPeer(slots=1)
            await worker.register(plane.worker_socket)
            await submit(plane, "run/ning")
            await worker.assigned()
            for name in ("a", "a.b", "a/b", "ready", "ready2"):
                await submit(plane, name)
                await submit(plane, name, BOB)
            await submit(plane, "later", not_before_ms=FAR_MS)
            await submit(plane, "a", not_before_ms=FAR_MS)
            for name in ("a", "set:only", "Z"):
                await queues.pause(ADMIN, name, paused=True)
            expected = ["Z", "a", "a.b", "a/b", "later", "ready", "ready2", "run/ning", "set:only"]
            for limit in (1, 2, 4, 9, 100):
                found: list[QueueView] = []
                cursor = None
                while True:
                    page = await queues.page(BOB, limit=limit, cursor=cursor)
                    assert len(page.queues) <= limit
                    found += page.queues
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                assert [view.name for view in found] == expected
            counts = {view.name: (view.pending, view.waiting, view.running) for view in found}
            assert (counts["a"], counts["later"], counts["run/ning"]) == ((3, 1, 0), (1, 1, 0), (0, 0, 1))
            with pytest.raises(InvalidRequest):
                await queues.page(BOB, limit=1, cursor="L3g=")

    run(scenario())


def test_counts_are_the_same_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer(slots=1)
            await worker.register(plane.worker_socket)
            await submit(plane, "q")
            await worker.assigned()
            await submit(plane, "q", BOB)
            await submit(plane, "q", BOB, not_before_ms=FAR_MS)
            before = await plane.control.queues.get(ALICE, "q")
            assert (before.pending, before.waiting, before.running) == (2, 1, 1)
            owner = await plane.control.queues.get_owner(BOB, BOB.uid)
            assert (owner.pending, owner.running) == (2, 0)
        async with Plane(tmp_path) as plane:
            assert await plane.control.queues.get(ALICE, "q") == before
            assert await plane.control.queues.get_owner(BOB, BOB.uid) == owner

    run(scenario())
