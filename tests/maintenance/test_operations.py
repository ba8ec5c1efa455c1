"""Operations of maintenance on one node, whose control plane and store are real."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control.retention import RetentionConfig
from jobs.errors import Forbidden, OperationUnderWay
from jobs.jobs import RUNNING
from jobs.maintenance.compact import Kept
from jobs.maintenance.messages import Token
from jobs.maintenance.operations import MaintenanceConfig
from jobs.protocol.ids import uuid7
from jobs.protocol.model import MaintenancePerform, MaintenanceVerify, OperationAdvance, Retention
from jobs.records import ArrayRecord, MaintenanceRecord
from jobs.retention import Limits
from jobs.store import Delete, LeaseGrant, Put, Txn
from tests.support.loop import on_loop
from tests.support.maintenance import CONFIG, JOB, OTHER_JOB, findings, key_file, listen, operations, perform
from tests.support.plane import ADMIN, ALICE, Plane, shell

EAGER = MaintenanceConfig(kept=Kept(age_s=0, events=0), limits=CONFIG.limits)


async def put(plane: Plane, count: int, *, same: bool = False, size: int = 10) -> None:
    await asyncio.gather(
        *(
            plane.consensus.propose(Txn(then=(Put(b"/data/k%06d" % (0 if same else number), bytes(size)),)))
            for number in range(count)
        )
    )


@on_loop
async def test_only_administrators_have_it_done(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        with pytest.raises(Forbidden):
            await perform(operations(plane), "health", caller=ALICE)


# --- compact ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_old_revisions_go_and_a_dry_run_only_counts_them(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        # Given a key that was changed often
        await put(plane, 3_000, same=True)
        asked = operations(plane, config=EAGER)
        revision, events = plane.store.revision, plane.store.history_events

        # When it is said what would go
        dry = await perform(asked, "compact", parts=["history"], dry_run=True)

        # Then that is all, and nothing has
        assert dry.counts["events"] >= events
        assert (plane.store.compact_revision, plane.store.history_events) <= (0, plane.store.revision)
        assert plane.store.get(b"/data/k000000", revision - 100) is not None

        # When it goes, only the newest stays
        done = await perform(asked, "compact", parts=["history"])
        assert done.counts["events"] >= events - 100
        assert plane.store.compact_revision >= revision
        assert plane.store.history_events < 100
        assert plane.store.get(b"/data/k000000") is not None


@on_loop
async def test_as_many_changes_stay_as_are_to(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        await put(plane, 2_000)
        await perform(operations(plane), "compact", parts=["history"], history_age_s=0, history_events=500)
        assert 400 <= plane.store.revision - plane.store.compact_revision <= 600


@on_loop
async def test_history_stays_for_who_watches_and_for_who_reads_page_by_page(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        await put(plane, 100)
        asked = operations(plane, config=EAGER)
        began = plane.store.revision

        # Given a watcher that has not seen what came since
        with plane.site.history(began):
            await put(plane, 500)
            done = await perform(asked, "compact", parts=["history"])

            # Then it can go on
            assert plane.store.compact_revision <= began
            assert "a reader on" in done.nodes[0].outcome
            assert plane.store.events(began, [b"/data/"], limit=10)[0]

            # but who asks for what is gone keeps nothing
            with plane.site.history(1):
                assert plane.site.oldest_needed == began

        # When it has gone, a reader of pages at one revision is waited for as well
        page = await plane.control.kv_scan(ADMIN, "/data/", limit=10, cursor=None, revision=began + 10, keys_only=True)
        await perform(asked, "compact", parts=["history"])
        assert plane.store.compact_revision <= began + 10
        assert page.next_cursor is not None
        await plane.control.kv_scan(
            ADMIN, "/data/", limit=10, cursor=page.next_cursor, revision=began + 10, keys_only=True
        )


@on_loop
async def test_the_log_is_cut_behind_a_snapshot(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        for _ in range(5):
            await put(plane, 200, size=2_000)
        before = plane.log.size_bytes
        asked = operations(plane)
        dry = await perform(asked, "compact", parts=["log"], dry_run=True)
        assert dry.dry_run
        assert dry.freed_bytes > before / 2
        assert plane.log.size_bytes >= before

        done = await perform(asked, "compact", parts=["log"])
        assert done.counts["log_bytes"] == done.freed_bytes > before / 2
        assert plane.log.size_bytes < before / 2


@on_loop
async def test_room_in_the_file_is_given_back_while_the_node_writes_on(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        # Given a store most of which was deleted
        for first in range(0, 20_000, 500):
            puts = tuple(Put(b"/data/k%06d" % number, bytes(1_000)) for number in range(first, first + 500))
            await plane.consensus.propose(Txn(then=puts), 1 << 19)
        for first in range(0, 18_000, 500):
            await plane.consensus.propose(Txn(then=(Delete(b"/data/k%06d" % first, b"/data/k%06d" % (first + 500)),)))
        asked = operations(plane, config=EAGER)
        before, _ = plane.store.file_bytes()
        await perform(asked, "compact", parts=["history"])
        dry = await perform(asked, "compact", parts=["file"], dry_run=True)
        assert plane.store.file_bytes()[0] == before
        assert dry.freed_bytes > before / 2

        # When it is compacted while somebody writes
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await put(plane, 10)
                written += 10

        writing = asyncio.create_task(write())
        done = await perform(asked, "compact", parts=["file"])
        writing.cancel()

        # Then the file is not much larger than what is in it
        after, free = plane.store.file_bytes()
        assert done.freed_bytes >= dry.freed_bytes * 0.8
        assert after - free >= after / 1.2
        assert after < before / 3
        assert written > 0
        # and there is nothing to be gained by doing it again
        again = await perform(asked, "compact", parts=["file"])
        assert again.freed_bytes == 0
        assert "nothing is gained" in again.nodes[0].outcome
    async with Plane(tmp_path, with_blobs=True) as plane:
        assert plane.store.count(b"/data/k018000", b"/data/l", limit=10_000) == 2_000
        assert (await perform(operations(plane), "verify", parts=["store", "log"])).status == "ok"


@on_loop
async def test_pages_that_are_half_empty_are_reason_enough_to_write_a_file_anew(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        for first in range(0, 20_000, 500):
            puts = tuple(Put(b"/data/k%06d" % number, bytes(200)) for number in range(first, first + 500))
            await plane.consensus.propose(Txn(then=puts), 1 << 18)
        asked = operations(plane, config=EAGER)
        await perform(asked, "compact", parts=["history"])
        await perform(asked, "compact", parts=["file"])
        # Given deletes all over the store, which leave no page free
        for first in range(0, 20_000, 1_000):
            gone = tuple(Delete(b"/data/k%06d" % number) for number in range(first, first + 1_000) if number % 9 < 5)
            await plane.consensus.propose(Txn(then=gone))
        size, free = plane.store.file_bytes()
        assert free < size / 10
        done = await perform(operations(plane), "compact", parts=["file"])
        assert done.freed_bytes > size / 4
        assert plane.store.count(b"/data/", b"/data0", limit=20_000) == sum(n % 9 >= 5 for n in range(20_000))


# --- whose an operation is --------------------------------------------------------------------------------------------


@on_loop
async def test_an_operation_of_a_job_that_runs_is_not_done_for_another(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        # Given a job that has the operation, and runs as far as anybody knows
        (job,) = await plane.control.submit(ADMIN, [shell("true")])
        stored = plane.control._transitions.read(job.job.id)
        assert stored is not None
        running = replace(stored.record, state=RUNNING)
        claim = MaintenanceRecord(job=job.job.id, began_ms=wall_ms())
        await plane.consensus.propose(
            Txn(
                then=(
                    Put(keys.state(job.job.id), records.encode(running)),
                    Put(keys.maintenance("health"), records.encode(claim)),
                )
            )
        )
        with pytest.raises(OperationUnderWay, match=str(job.job.id)):
            await perform(operations(plane), "health")

        # When it runs no more, the next has it
        await plane.consensus.propose(Txn(then=(Put(keys.state(job.job.id), records.encode(stored.record)),)))
        assert (await perform(operations(plane), "health")).operation == "health"
        assert plane.store.get(keys.maintenance("health")) is None


@on_loop
async def test_who_takes_an_operation_over_makes_the_former_stop(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        control = plane.control.maintenance
        first = await control.claim("verify", OTHER_JOB)
        again = await control.claim("verify", OTHER_JOB)
        with pytest.raises(OperationUnderWay):
            await control.keep(Token("verify", first.revision), b"far", {})
        kept = await control.keep(Token("verify", again.revision), b"near", {"rows": 5})
        # The same question again, whose answer was lost
        assert await control.keep(Token("verify", again.revision), b"near", {"rows": 5}) == kept
        await control.release(Token("verify", again.revision))
        assert plane.store.get(keys.maintenance("verify")) is not None
        third = await control.claim("verify", OTHER_JOB)
        assert (third.cursor, third.done) == (b"near", {"rows": 5})
        await control.release(Token("verify", third.revision))
        assert plane.store.get(keys.maintenance("verify")) is None


@on_loop
async def test_what_is_taken_over_goes_on_where_it_was_left_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.maintenance.claim.KEEP_S", 0.0)
    monkeypatch.setattr("jobs.maintenance.attending.ROWS", 500)
    async with Plane(tmp_path, with_blobs=True) as plane:
        await put(plane, 10_000)
        # Given a job that was cancelled in the middle
        asked = operations(plane)
        wanted = MaintenancePerform(job=JOB, payload=MaintenanceVerify(parts=["store"]))
        async with aclosing(asked.perform(ADMIN, wanted)) as events:
            async for event in events:
                if isinstance(event, OperationAdvance) and event.done > 300_000:
                    break
        left = plane.store.get(keys.maintenance("verify"))
        assert left is not None
        before = records.decode(MaintenanceRecord, left[1]).done["store"]
    async with Plane(tmp_path, with_blobs=True) as plane:
        # When another does the same, and the node has started again meanwhile
        told = await listen(operations(plane), "verify", job=OTHER_JOB, parts=["store"])
        # Then it goes on there, and what came of both is told
        assert told.advances[0].done < 200_000
        total = told.done.counts["store"]
        assert before < total
        whole = await perform(operations(plane), "verify", parts=["store"])
        assert abs(whole.counts["store"] - total) < 200
        # And another operation than that is not taken for the same
        await plane.control.maintenance.claim("verify", OTHER_JOB)
        assert (await perform(operations(plane), "verify", parts=["log"])).counts.get("store") is None


# --- cleanup ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_leases_whose_time_nobody_keeps_are_ended(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        asked = operations(plane)
        kept = await plane.control.lease_grant(ADMIN, 600)
        # Given a lease that is in the store and has no time
        await plane.consensus.propose(Txn(then=(LeaseGrant(77, 600_000), Put(b"/data/leased", b"x", 77))))
        assert (await perform(asked, "cleanup", parts=["leases"], dry_run=True)).counts == {"leases": 1}
        assert plane.store.get(b"/data/leased") is not None
        assert (await perform(asked, "cleanup", parts=["leases"])).counts == {"leases": 1}
        assert plane.store.get(b"/data/leased") is None
        assert [lease for lease, _ in plane.store.leases()] == [kept.id]


@on_loop
async def test_what_is_left_of_arrays_that_are_gone_is_deleted(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        asked = operations(plane)
        lost = uuid7(wall_ms(), secrets.randbits(74))
        record = ArrayRecord(source="items", size=10)
        await plane.consensus.propose(
            Txn(
                then=(
                    Put(keys.array(lost), records.encode(record)),
                    *(Put(keys.numbered(keys.ARRAY_ITEMS, lost, number), b"x") for number in range(10)),
                )
            )
        )
        dry = await perform(asked, "cleanup", parts=["arrays"], dry_run=True)
        assert dry.counts["keys"] >= 11
        done = await perform(asked, "cleanup", parts=["arrays"])
        assert done.counts == {"arrays": 1, "keys": 11}
        assert plane.store.count(b"/arrays/", b"/arrays0", limit=100) == 0


@on_loop
async def test_ended_jobs_and_audit_entries_are_counted_as_they_would_go(tmp_path: Path) -> None:
    limits = RetentionConfig(jobs=Limits(keep_ms=0), audit_ms=10**12)
    async with Plane(tmp_path, with_blobs=True, retention=RetentionConfig(jobs=Limits())) as plane:
        jobs = await plane.control.submit(ADMIN, [shell("true") for _ in range(40)])
        for job in jobs:
            await plane.control.cancel(ADMIN, job.job.id)
    async with Plane(tmp_path, with_blobs=True, retention=limits) as plane:
        retention = plane.control._retention
        retention.stop()
        asked = operations(plane)
        dry = await perform(asked, "cleanup", parts=["jobs", "audit"], dry_run=True)
        assert dry.counts["jobs"] == 40
        assert dry.freed_bytes > 0
        assert plane.store.get(keys.state(jobs[0].job.id)) is not None

        done = await perform(asked, "cleanup", parts=["jobs", "audit"])
        assert done.counts["jobs"] == 40
        assert plane.store.get(keys.state(jobs[0].job.id)) is None


@on_loop
async def test_blobs_that_nothing_refers_to_are_collected(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        told = await listen(operations(plane), "cleanup", parts=["blobs"], dry_run=True)
        assert told.done.counts == {"blobs": 0}


# --- health -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_health_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        good, bad = key_file(tmp_path / "good.key", 0o600), key_file(tmp_path / "bad.key", 0o644)
        done = await perform(operations(plane, secrets=(good, bad)), "health")
        assert done.status == "failing"
        assert ("failing", f"{bad}: others may read it: its mode is 0644") in findings(done, "keys")
        assert done.findings[0].advice
        for check in ("disk", "fsync", "clock", "store"):
            assert findings(done, check), check

        done = await perform(operations(plane, secrets=(good,)), "health")
        # The machine of the tests may be busy with something else
        assert [one for one in done.findings if one.status != "ok" and one.check != "pressure"] == []


@on_loop
async def test_health_tells_what_the_store_has_now(tmp_path: Path) -> None:
    """Given some large writes since its size was last looked at; then what is said is of now."""
    async with Plane(tmp_path, with_blobs=True) as plane:
        before = plane.store.used_bytes()
        await put(plane, 3, size=200_000)
        done = await perform(operations(plane), "health")
        ((_, value),) = findings(done, "store")
        assert int(value.split()[0]) >= before + 600_000


# --- verify -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_whole_node_is_found_whole(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        await put(plane, 1_000)
        await plane.consensus.snapshot()
        done = await perform(operations(plane), "verify")
        assert (done.status, done.findings) == ("ok", [])
        assert done.counts["store"] >= 1_000
        assert done.counts["snapshots"] >= 1_000
        assert "nobody to compare with" in done.nodes[0].outcome


# --- metrics ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_usage_is_told_by_owner_and_type(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        mine = await plane.control.submit(ALICE, [shell("true") for _ in range(3)])
        theirs = await plane.control.submit(ADMIN, [shell("true")])
        await plane.control.submit(ADMIN, [shell("true")])  # which has not ended
        for job in (*mine, *theirs):
            await plane.control.cancel(ADMIN, job.job.id)
        told = await listen(operations(plane), "metrics", period="month")
        assert [(line["owner"], line["type"], line["jobs"], line["failed"]) for line in told.lines] == [
            (0, "shell", 1, 1),
            (1001, "shell", 3, 3),
        ]
        assert told.done.counts == {"jobs": 4, "lines": 2}
        earlier = await listen(operations(plane), "metrics", to_ms=1_000)
        assert earlier.lines == []


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_jobs=50),
        Limits(keep_ms=0),
        Limits(keep_ms=0, logs_ms=0, max_bytes=10_000),
        Limits(keep_ms=10**12, max_jobs=290),
        Limits(max_bytes=50_000),
    ],
)
@on_loop
async def test_what_would_go_is_what_goes(tmp_path: Path, limits: Limits) -> None:
    """More jobs than a page has, some of which have times of their own, and some of which others depend on."""
    async with Plane(tmp_path, with_blobs=True) as plane:
        plane.control._retention.stop()
        wanted = [shell("true", retention=Retention(keep_s=[None, 0.0, 10**8][n % 3])) for n in range(600)]
        jobs = [job for n in range(0, 600, 200) for job in await plane.control.submit(ADMIN, wanted[n : n + 200])]
        for job in jobs:
            await plane.control.cancel(ADMIN, job.job.id)
        await plane.control.submit(
            ADMIN, [shell("true", depends_on=[job.job.id for job in jobs[:20]], on_failure="run", not_before_ms=10**14)]
        )
    async with Plane(tmp_path, with_blobs=True, retention=RetentionConfig(jobs=limits)) as plane:
        retention = plane.control._retention
        retention.stop()
        while retention.totals.known is None:
            await asyncio.sleep(0.01)
        asked = operations(plane)
        dry = await perform(asked, "cleanup", parts=["jobs"], dry_run=True)
        done = await perform(asked, "cleanup", parts=["jobs"])
        assert dry.counts["jobs"] == done.counts["jobs"] > 0
        assert dry.freed_bytes == done.freed_bytes
        assert (await perform(asked, "cleanup", parts=["jobs"], dry_run=True)).counts["jobs"] == 0


@on_loop
async def test_what_is_damaged_on_the_disk_is_found_and_said_where(tmp_path: Path) -> None:
    async with Plane(tmp_path, with_blobs=True) as plane:
        value = b"bring me back as I was " * 20
        await put(plane, 500)  # before it, as every command looks at the oldest change
        await plane.consensus.propose(Txn(then=(Put(b"/data/good", value),)))
        await plane.consensus.snapshot()
        await plane.consensus.propose(Txn(then=(Put(b"/data/last", value),)))
        snapshot = plane.store.snapshot_path()
        assert snapshot is not None
        # Given a bit that is another one, in each file
        data = tmp_path / "store" / "data.mdb"
        assert flip(data, value, 10) > 0
        assert flip(Path(snapshot), value, 10) > 0
        assert sum(flip(path, value, 10) for path in (tmp_path / "log").iterdir() if path.is_file()) > 0

        told = await listen(operations(plane), "verify", parts=["log", "store", "snapshots"])
        assert told.done.status == "failing"
        assert told.done.counts["damaged"] >= 3
        for check, where in (("log", "log"), ("store", "/data/"), ("snapshots", Path(snapshot).name)):
            assert any(where in text for _, text in findings(told.done, check)), (check, told.done.findings)
        assert {line["check"] for line in told.lines} == {"log", "store", "snapshots"}
        assert all(one.advice for one in told.done.findings)


def flip(path: Path, value: bytes, offset: int) -> int:
    """Change a bit of each copy of a value in a file; return how many there are."""
    content, at, found = path.read_bytes(), -1, 0
    with path.open("r+b") as file:
        while (at := content.find(value, at + 1)) >= 0:
            file.seek(at + offset)
            file.write(bytes((content[at + offset] ^ 1,)))
            found += 1
    return found
