"""Who did what to which job: every change has its entry, and people see what concerns them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from jobs import AsyncClient, keys, records
from jobs.control.retention import RetentionConfig
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol.ids import JobId
from jobs.protocol.model import AuditEntry, JobView
from jobs.records import AuditRecord
from jobs.service import AuditFilter, Caller
from jobs.store import Delete, Put, Txn
from jobs.testing import EmbeddedNode
from tests.support.api import Api, scenario
from tests.support.jobctl import jobctl
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

EVERYTHING = AuditFilter()


async def submit(plane: Plane, caller: Caller = ALICE, count: int = 1) -> list[JobView]:
    return [made.job for made in await plane.control.submit(caller, [shell() for _ in range(count)])]


async def entries(plane: Plane, caller: Caller, where: AuditFilter, limit: int = 100) -> list[AuditEntry]:
    """Return every entry, page by page."""
    found: list[AuditEntry] = []
    cursor = None
    while True:
        page = await plane.control.audit.page(caller, where, limit=limit, cursor=cursor)
        assert len(page.entries) <= limit
        found += page.entries
        cursor = page.next_cursor
        if cursor is None:
            return found


def told(found: list[AuditEntry]) -> list[tuple[int, str, str]]:
    return [(entry.uid, entry.action, entry.subject) for entry in found]


def test_each_change_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            (job,) = await submit(plane)
            await worker.assigned()
            for _ in range(2):  # asking again changes nothing, so there is nothing to tell
                await plane.control.cancel(ADMIN, job.id)
                await plane.control.drain_worker(ADMIN, worker.name)
        async with Plane(tmp_path) as plane:
            assert told(await entries(plane, ADMIN, EVERYTHING)) == [
                (ADMIN.uid, "worker.drain", worker.name),
                (ADMIN.uid, "job.cancel", job.id),
                (ALICE.uid, "job.submit", job.id),
            ]
            of_job = await entries(plane, ALICE, AuditFilter(job=job.id))
            assert told(of_job) == [(ADMIN.uid, "job.cancel", job.id), (ALICE.uid, "job.submit", job.id)]
            assert of_job[1].at_ms == job.submitted_ms
            assert {entry.owner for entry in of_job} == {ALICE.uid}

    asyncio.run(run())


def test_a_refused_change_is_not_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (job,) = await submit(plane)
            with pytest.raises(Forbidden):
                await plane.control.cancel(BOB, job.id)
            with pytest.raises(InvalidRequest):
                await plane.control.submit(ALICE, [shell(), shell("")])
            assert len(await entries(plane, ADMIN, EVERYTHING)) == 1

    asyncio.run(run())


def test_owners_see_their_own_and_what_they_did_and_admins_all(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (of_alice,) = await submit(plane, ALICE)
            (of_bob,) = await submit(plane, BOB)
            await plane.control.cancel(ADMIN, of_bob.id)
            assert told(await entries(plane, ALICE, EVERYTHING)) == [(ALICE.uid, "job.submit", of_alice.id)]
            assert told(await entries(plane, BOB, EVERYTHING)) == [
                (ADMIN.uid, "job.cancel", of_bob.id),
                (BOB.uid, "job.submit", of_bob.id),
            ]
            assert len(await entries(plane, ADMIN, EVERYTHING)) == 3
            with pytest.raises(Forbidden):
                await entries(plane, ALICE, AuditFilter(job=of_bob.id))

    asyncio.run(run())


def test_a_request_of_many_jobs_is_one_entry_that_every_one_of_them_finds(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            lots = await asyncio.gather(*(submit(plane, ALICE, 100) for _ in range(5)), submit(plane, BOB, 100))
            whole = await entries(plane, ADMIN, EVERYTHING)
            assert len(whole) == 6
            for lot in lots:
                for job in lot:
                    (entry,) = await entries(plane, ADMIN, AuditFilter(job=job.id))
                    assert (entry.subject, entry.last) == (lot[0].id, lot[-1].id)
                    assert (entry.uid, entry.detail) == (job.owner, "100 jobs")

    asyncio.run(run())


def test_a_submission_is_told_after_its_entry_has_gone(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (job,) = await submit(plane)
            rows, _ = plane.store.range(keys.AUDIT, keys.AUDITED, limit=10)
            await plane.consensus.propose(Txn(then=tuple(Delete(row[0]) for row in rows)))
            (entry,) = await entries(plane, ALICE, AuditFilter(job=job.id))
            assert (entry.uid, entry.action, entry.at_ms) == (ALICE.uid, "job.submit", job.submitted_ms)
            unknown = JobId("01900000-0000-7000-8000-000000000000")
            assert await entries(plane, ALICE, AuditFilter(job=unknown)) == []

    asyncio.run(run())


def test_filters_and_pages(tmp_path: Path) -> None:
    async def run() -> None:
        kept = RetentionConfig(audit_ms=1 << 50)  # they are of 1970
        async with Plane(tmp_path, retention=kept) as plane:
            for second in range(100):
                record = AuditRecord(
                    at_ms=1_000 * second, uid=second % 3, action=("a.x", "a.y", "b.x")[second % 3], subject=f"{second}"
                )
                put = Put(keys.audit(record.at_ms, second), records.encode(record))
                await plane.consensus.propose(Txn(then=(put,)))

            async def seconds(**where: object) -> list[int]:
                found = await entries(plane, ADMIN, AuditFilter(**where), limit=7)  # type: ignore[arg-type]
                return [int(entry.subject) for entry in found]

            assert await seconds() == list(range(99, -1, -1))
            assert await seconds(uid=1) == list(range(97, -1, -3))
            assert await seconds(action="a.") == [second for second in range(99, -1, -1) if second % 3 < 2]
            assert await seconds(from_ms=10_000, to_ms=20_000) == list(range(19, 9, -1))
            assert await seconds(uid=0, action="b.x") == []
            for cursor in ("nonsense", "L2pvYnMvc3RhdGUv"):
                with pytest.raises(InvalidRequest):
                    await plane.control.audit.page(ADMIN, EVERYTHING, limit=1, cursor=cursor)

    asyncio.run(run())


def test_many_actions_on_one_job_come_in_pages(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (job,) = await submit(plane)
            for number in range(20):
                entry = Put(keys.audit(job.submitted_ms + number, number), b"")
                record = AuditRecord(at_ms=job.submitted_ms + number, uid=0, action="job.touch", subject=job.id)
                ops = (Put(entry.key, records.encode(record)), Put(keys.audited(job.id, entry.key), b"\x01"))
                await plane.consensus.propose(Txn(then=ops))
            for limit in (1, 3, 4, 20, 21, 100):
                found = await entries(plane, ADMIN, AuditFilter(job=job.id), limit=limit)
                assert [entry.action for entry in found] == ["job.touch"] * 20 + ["job.submit"]

    asyncio.run(run())


@scenario()
async def test_the_route_checks_what_it_is_asked(api: Api) -> None:
    job = await api.submit()
    answer = await api.ask("GET", f"/v1/audit?job={job}")
    (entry,) = answer.json()["entries"]
    assert (entry["action"], entry["subject"], entry["last"]) == ("job.submit", job, None)
    for query, field in (("job=x", "job"), ("uid=-1", "uid"), ("limit=0", "limit"), ("cursor=x", "cursor")):
        problem = (await api.ask("GET", f"/v1/audit?{query}")).problem(400, "invalid_request")
        assert problem["field"] == field


def test_the_command_and_the_clients(shared_node: EmbeddedNode) -> None:
    with shared_node.client() as client:
        job = client.shell(["sleep", "60"]).job.id
        client.cancel(job)
        client.wait(job)
        assert [entry.action for entry in client.audit(job=job)] == ["job.cancel", "job.submit"]
        assert next(client.audit(action="job.cancel", uid=os.getuid())).subject == job

    async def scenario() -> None:
        async with AsyncClient(str(shared_node.socket)) as client:
            assert [entry.action async for entry in client.audit(job=job)] == ["job.cancel", "job.submit"]

    asyncio.run(scenario())

    def audit(*options: str) -> subprocess.CompletedProcess[bytes]:
        return jobctl(shared_node, "audit", *options)

    rows = [json.loads(row) for row in audit("--json", "--job", job, "--since", "1h").stdout.splitlines()]
    assert [(row["action"], row["uid"]) for row in rows] == [("job.cancel", os.getuid()), ("job.submit", os.getuid())]
    assert job.encode() in audit("--action", "job.cancel", "--limit", "1").stdout
    assert audit("--job", job, "--until", "2001-01-01T00:00").stdout.splitlines()[1:] == []
    assert b"is no moment" in audit("--since", "yesterday").stderr
