"""What a statement writes is written with the end of its job, once, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from jobs import keys, records
from jobs.control.transitions import scan
from jobs.protocol import wire
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobResult, JobState, Reason, Retry, SqlJob, SqlPayload
from jobs.protocol.wire import MAX_WRITE_BYTES, MAX_WRITE_VALUES, TableWrite
from jobs.records import TableRecord
from jobs.service import AuditFilter, Caller
from jobs.store import MAX_VALUE_BYTES
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane

PREFIX = "/data/tables/t/"


def definition(prefix: str = PREFIX) -> str:
    return msgspec.json.encode({"prefix": prefix, "format": "json", "columns": []}).decode()


def create(*values: bytes, revision: int = 0, prefix: str = PREFIX, managed: bool = True) -> TableWrite:
    return TableWrite(
        table="t",
        action="create",
        revision=revision,
        definition=definition(prefix),
        is_managed=managed,
        values=list(values),
    )


class Writer:
    """A worker that reports what the test says that statements write."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.peer = WorkerPeer("sql-0")

    async def start(self) -> Writer:
        await self.peer.register(self.plane.worker_socket, type="sql")
        return self

    async def assigned(self, caller: Caller = ALICE, **changes: object) -> wire.Assignment:
        """Submit a statement, and return it as it comes to the worker."""
        job = SqlJob(payload=SqlPayload(sql="INSERT …"), **changes)  # type: ignore[arg-type]
        await self.plane.control.submit(caller, [job])
        return await self.peer.assigned()

    async def write(self, write: TableWrite, caller: Caller = ALICE) -> JobResult:
        """Submit a statement, let it end, and return what came of it."""
        item = await self.assigned(caller)
        self.peer.finish(item, write=write)
        assert (await self.peer.expect(wire.FinishedAck)).accepted
        return await self.plane.control.result(ADMIN, item.job, None)

    def table(self) -> tuple[TableRecord, int] | None:
        found = self.plane.store.get(keys.table("t"))
        return None if found is None else (records.decode(TableRecord, found[1]), found[4])

    def revision(self) -> int:
        found = self.table()
        return 0 if found is None else found[1]

    def values(self, prefix: str = PREFIX) -> list[bytes]:
        return [row[1] for row in scan(self.plane.store, prefix.encode())]


def run(directory: Path, scenario: object, **changes: object) -> None:
    async def inside() -> None:
        async with Plane(directory, **changes) as plane:
            await scenario(plane, await Writer(plane).start())  # type: ignore[operator]

    asyncio.run(inside())


def test_a_query_is_given_the_revision_that_it_has_to_see_and_who_asks(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        item = await writer.assigned()
        assert 0 < item.revision <= plane.store.revision
        assert (item.owner, item.admin) == (ALICE.uid, False)
        writer.peer.finish(item)
        await writer.peer.expect(wire.FinishedAck)
        assert (await writer.assigned(ADMIN)).admin

    run(tmp_path, scenario)


def test_a_table_is_made_filled_and_dropped_with_entries_in_the_audit_trail(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        made = await writer.write(create(b"1", b"2"))
        assert made.state is JobState.COMPLETED
        found = writer.table()
        assert found is not None
        assert (found[0].owner, found[0].prefix, found[0].is_managed) == (ALICE.uid, PREFIX, True)
        assert writer.values() == [b"1", b"2"]
        await writer.write(TableWrite(table="t", action="insert", revision=writer.revision(), values=[b"3"]))
        assert writer.values() == [b"1", b"2", b"3"]
        await writer.write(TableWrite(table="t", action="drop", revision=writer.revision()))
        assert (writer.table(), writer.values()) == (None, [])
        page = await plane.control.audit.page(ALICE, AuditFilter(action="table."), limit=10, cursor=None)
        told = [(entry.action, entry.subject, entry.uid) for entry in page.entries]
        assert told == [(f"table.{action}", "t", ALICE.uid) for action in ("drop", "insert", "create")]

    run(tmp_path, scenario)


def test_what_was_decided_on_another_table_is_not_written(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        await writer.write(create(b"1"))
        old = writer.revision()
        assert (await writer.write(create(b"2", revision=old))).state is JobState.COMPLETED
        for write in (
            TableWrite(table="t", action="insert", revision=old, values=[b"3"]),
            TableWrite(table="t", action="drop", revision=old),
            create(b"4"),
        ):
            refused = await writer.write(write)
            assert (refused.state, refused.reason) == (JobState.FAILED, Reason.QUERY_ERROR)
            assert refused.message is not None
            assert "changed meanwhile" in refused.message
            assert writer.values() == [b"2"]
        missing = TableWrite(table="u", action="insert", revision=0, values=[b"5"])
        assert "no table u" in str((await writer.write(missing)).message)

    run(tmp_path, scenario)


def test_a_table_is_its_owner_s_to_replace_and_to_drop(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        await writer.write(create(b"1"))
        for write in (
            TableWrite(table="t", action="drop", revision=writer.revision()),
            create(b"2", revision=writer.revision()),
        ):
            assert f"belongs to uid {ALICE.uid}" in str((await writer.write(write, BOB)).message)
        insert = TableWrite(table="t", action="insert", revision=writer.revision(), values=[b"2"])
        assert (await writer.write(insert, BOB)).state is JobState.COMPLETED
        assert writer.values() == [b"1", b"2"]
        drop = TableWrite(table="t", action="drop", revision=writer.revision())
        assert (await writer.write(drop, ADMIN)).state is JobState.COMPLETED

    run(tmp_path, scenario)


def test_more_than_one_transaction_takes_is_refused_whole(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        for values in (
            [b"x"] * (MAX_WRITE_VALUES + 1),
            [b"x" * (1 << 19)] * (MAX_WRITE_BYTES // (1 << 19) + 1),
            [b"x" * (MAX_VALUE_BYTES + 1)],
        ):
            refused = await writer.write(create(*values))
            assert (refused.state, refused.reason, writer.table()) == (JobState.FAILED, Reason.QUERY_ERROR, None)
            assert "nothing was written" in str(refused.message)
        most = [b"x" * (MAX_WRITE_BYTES // MAX_WRITE_VALUES)] * MAX_WRITE_VALUES
        assert (await writer.write(create(*most))).state is JobState.COMPLETED
        assert len(writer.values()) == MAX_WRITE_VALUES

    run(tmp_path, scenario)


def test_no_table_is_made_outside_of_the_users_part_or_over_what_is_there(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        for prefix in ("/jobs/state/", "/data", "/tables/"):
            assert "not below /data/" in str((await writer.write(create(b"1", prefix=prefix))).message)
        await writer.write(create(b"1", prefix="/data/own/", managed=False))
        assert writer.values("/data/own/") == [b"1"]
        await writer.write(TableWrite(table="t", action="drop", revision=writer.revision()))
        assert writer.values("/data/own/") == [b"1"]
        assert "keys below /data/own/ already" in str((await writer.write(create(b"2", prefix="/data/own/"))).message)

    run(tmp_path, scenario)


def test_a_full_store_takes_no_writes_of_queries(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        item = await writer.assigned()
        plane.control._config = msgspec.structs.replace(plane.control._config, max_store_bytes=1)
        writer.peer.finish(item, write=create(b"1"))
        await writer.peer.expect(wire.FinishedAck)
        assert "nothing was written" in str((await plane.control.result(ADMIN, item.job, None)).message)
        assert writer.table() is None

    run(tmp_path, scenario)


def test_a_write_is_applied_once_whatever_is_reported_again(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        await writer.write(create(b"1"))
        insert = TableWrite(table="t", action="insert", revision=writer.revision(), values=[b"2"])
        first = await writer.assigned(retry=Retry(max_attempts=2, delay_s=0))
        # When another life of the worker has the second attempt
        other = Writer(plane)
        await other.start()
        second = await other.peer.assigned()
        assert (second.job, second.attempt) == (first.job, 2)
        # Then a report of the first writes nothing, and that of the second once, however often it is told
        for item, accepted in ((first, False), (second, True), (second, False)):
            other.peer.finish(item, write=insert)
            assert (await other.peer.expect(wire.FinishedAck)).accepted is accepted
        assert other.values() == [b"1", b"2"]
        assert (await plane.control.result(ADMIN, JobId(first.job), None)).state is JobState.COMPLETED

    run(tmp_path, scenario)


def test_a_cancelled_or_failed_statement_writes_nothing(tmp_path: Path) -> None:
    async def scenario(plane: Plane, writer: Writer) -> None:
        item = await writer.assigned()
        writer.peer.finish(item, reason=Reason.QUERY_ERROR, write=create(b"1"))
        await writer.peer.expect(wire.FinishedAck)
        assert (writer.table(), writer.values()) == (None, [])

    run(tmp_path, scenario)
