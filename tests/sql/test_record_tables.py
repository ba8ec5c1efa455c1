"""The tables of the node's records: every field has its column, and each caller sees what the API would show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pyarrow as pa
import pytest
from msgspec import Struct

from jobs import jobs, keys, records
from jobs._native import SQL_TABLES, SqlSnapshot, sql_record_fields
from jobs.control.transitions import write_ops
from jobs.protocol.ids import Attempt, Incarnation, JobId, JobIdSource, Revision, WorkerId, array_id, task_id
from jobs.protocol.model import (
    Artefact,
    BlobResult,
    Execution,
    JobState,
    MaintenanceResult,
    OutputSkipped,
    Reason,
    ReplicationResult,
    Requires,
    Retention,
    Retry,
    ShellJob,
    ShellPayload,
    SqlResult,
    StreamInfo,
)
from jobs.records import (
    AuditRecord,
    JobRecord,
    LapseRecord,
    MovedOutput,
    ResultRecord,
    ScheduleRecord,
    TimetableRecord,
    WorkerRecord,
)
from jobs.store import Op, Put
from tests.support.sqlstore import answer, open_session, plan, table_of, write

RECORDS: dict[str, type[Struct]] = {
    "jobs": JobRecord,
    "results": ResultRecord,
    "workers": WorkerRecord,
    "schedules": ScheduleRecord,
    "audit": AuditRecord,
}
NOW_MS = 1_790_000_000_000
ALICE, BOB, NOBODY = 1_000, 2_000, 3_000


def at(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def every_field(kind: type[Struct], **values: Any) -> dict[str, Any]:
    """Check that a test gives a value to every field, so that none is forgotten."""
    assert set(values) == set(kind.__struct_fields__)
    return values


IDS = JobIdSource()
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
FULL_ID = IDS.next(NOW_MS, 1)
FULL = JobRecord(
    **every_field(
        JobRecord,
        type="shell", queue="fast", priority=-7, owner=ALICE, state=JobState.FAILED, submitted_ms=NOW_MS,
        ready_ms=NOW_MS + 1, delayed=True, reason=Reason.EXIT_CODE, message="it said “no”", attempt=Attempt(3),
        worker=WorkerId("shell-0"), incarnation=Incarnation("a" * 32), cancel_requested=True, started_ms=NOW_MS + 2,
        finished_ms=NOW_MS + 3, exit_code=9, signal=15, timeout_s=1.5,
        retry=Retry(max_attempts=4, reasons=[Reason.OOM]), requires=Requires(cpu_milli=500, labels={"gpu": "yes"}),
        labels={"team": "a", "empty": ""}, deadline_ms=NOW_MS + 4, heartbeat_s=2.0, waits_for=5, on_failure="run",
        has_children=True, concurrency_key="lock", concurrency_limit=6, unique_key=b"/jobs/unique/x",
        retention=Retention(keep_s=60.0), redrive_of=JobId("r" * 36), schedule="nightly", nominal_ms=NOW_MS + 5,
        stored_bytes=7, log_bytes=8, settled=True, redriven_as=JobId("s" * 36), held_until_ms=NOW_MS + 6,
        logs_gone=True, ref="first", tasks=9, is_task=False, moved=Attempt(3),
        traceparent=TRACE, tracestate="a=b",
    )
)  # fmt: skip
PLAIN = jobs.on_submit(ShellJob(payload=ShellPayload(argv=["/bin/true"])), BOB, NOW_MS)
PLAIN_ID = IDS.next(NOW_MS, 2)
EXECUTION = Execution(
    **every_field(
        Execution,
        attempt=Attempt(3), worker=WorkerId("shell-0"), incarnation=Incarnation("a" * 32), node="n1",
        queued_ms=NOW_MS, started_ms=NOW_MS + 1, finished_ms=NOW_MS + 2, wall_s=0.5, cpu_user_s=0.25,
        cpu_system_s=0.125, peak_memory_bytes=1 << 30, exit_code=9, signal=None, sandbox="strict", root="writable",
        stdout=StreamInfo(bytes=10, stored_bytes=9, truncated=True),
        stderr=StreamInfo(bytes=1, stored_bytes=1, truncated=False),
    )
)  # fmt: skip

QUERY = SqlResult(
    **every_field(
        SqlResult, format="json", columns=[], rows=3, first_rows=[[1, "ü", None, [True, 1.5]]], bytes=9,
        revision=Revision(7), scanned_rows=8, scanned_bytes=9, planned_s=0.5, executed_s=0.25, written=None,
    )
)  # fmt: skip

BLOB = BlobResult(operation="gc", hash=None, bytes=5, blobs=6, peers=[], seconds=0.5)
MAINTENANCE = MaintenanceResult(
    operation="compact",
    dry_run=False,
    status="ok",
    nodes=[],
    counts={"log": 1},
    freed_bytes=2,
    findings=[],
    seconds=0.5,
)
REPLICATION = ReplicationResult(operation="sync", rows=3, bytes=4, seconds=0.5)
ARTEFACTS = [Artefact(path="out/ü", hash="c" * 64, size_bytes=7)]
SKIPPED = [OutputSkipped(path="link", why="is a symbolic link")]


@pytest.mark.parametrize("table", RECORDS)
def test_every_field_of_a_record_is_known_to_its_table(table: str) -> None:
    known = {name: (fields, left_out) for name, fields, left_out in sql_record_fields()}
    assert set(known) == set(RECORDS) == set(SQL_TABLES) - {"kv"}
    fields, left_out = known[table]
    assert tuple(fields) == RECORDS[table].__struct_fields__, "add the new fields to rust/sql/src/records/layout.rs"
    assert set(left_out) <= {"unique_key", "moved", "tracestate"}


def test_every_member_within_a_record_has_a_column() -> None:
    """Those of the objects that are spread over columns; others are shown whole, as JSON."""
    assert Execution.__struct_fields__ == tuple(every_field(Execution, **msgspec.structs.asdict(EXECUTION)))
    # A stream's blob is put into answers; what is stored has it in `moved`.
    assert StreamInfo.__struct_fields__ == ("bytes", "stored_bytes", "truncated", "blob")
    assert TimetableRecord.__struct_fields__ == (
        "cron", "every_ms", "at_ms", "timezone", "start_ms", "end_ms", "anchor_ms",
    )  # fmt: skip
    assert LapseRecord.__struct_fields__ == ("nominal_ms", "at_ms", "outcome", "detail")


def test_a_job_is_shown_with_all_its_fields(tmp_path: Path) -> None:
    spec = records.encode_spec(ShellJob(payload=ShellPayload(argv=["/bin/echo", "ü"]), queue="fast"))
    write(tmp_path, [Put(keys.state(FULL_ID), records.encode(FULL)), Put(keys.spec(FULL_ID), spec)])
    with open_session(tmp_path) as (snapshot, context):
        (row,) = answer(context, "SELECT * FROM jobs")
        for name in ("requires", "retry", "retention", "payload"):
            row[name] = msgspec.json.decode(row[name])
    assert row == {
        "id": FULL_ID, "type": "shell", "queue": "fast", "state": "failed", "reason": "exit_code",
        "message": "it said “no”", "priority": -7, "owner": ALICE, "attempt": 3, "max_attempts": 4,
        "worker": "shell-0", "incarnation": "a" * 32, "cancel_requested": True, "exit_code": 9, "signal": 15,
        "submitted_at": at(NOW_MS), "ready_at": at(NOW_MS + 1), "started_at": at(NOW_MS + 2),
        "finished_at": at(NOW_MS + 3), "deadline_at": at(NOW_MS + 4), "delayed": True, "timeout_s": 1.5,
        "heartbeat_s": 2.0, "waits_for": 5, "on_failure": "run", "has_children": True, "concurrency_key": "lock",
        "concurrency_limit": 6, "labels": [("team", "a"), ("empty", "")],
        "requires": {"labels": {"gpu": "yes"}, "cpu_milli": 500}, "retry": {"max_attempts": 4, "reasons": ["oom"]},
        "retention": {"keep_s": 60.0}, "redrive_of": "r" * 36, "redriven_as": "s" * 36, "schedule": "nightly",
        "nominal_at": at(NOW_MS + 5), "ref": "first", "tasks": 9, "is_task": False, "array_id": None,
        "task_index": None, "stored_bytes": 7, "log_bytes": 8, "settled": True, "held_until": at(NOW_MS + 6),
        "logs_gone": True, "traceparent": TRACE,
        "payload": {"argv": ["/bin/echo", "ü"], "limits": {}}, "revision": snapshot.revision,
    }  # fmt: skip


def test_a_record_that_lacks_newer_fields_has_their_defaults(tmp_path: Path) -> None:
    """A record of the first version ends early."""
    whole = msgspec.msgpack.decode(records.encode(PLAIN)[1:])
    old = b"\x01" + msgspec.msgpack.encode(whole[:7])
    other = IDS.next(NOW_MS, 3)
    write(tmp_path, [Put(keys.state(PLAIN_ID), old), Put(keys.state(other), records.encode(PLAIN))])
    with open_session(tmp_path) as (_, context):
        query = "SELECT * EXCEPT (id, revision, requires, retry, retention) FROM jobs ORDER BY id"
        first, second = answer(context, query)
    assert first == second


def test_tasks_name_their_array_and_have_its_payload(tmp_path: Path) -> None:
    array = array_id(PLAIN_ID)
    task = task_id(array, 10)
    spec = records.encode_spec(ShellJob(payload=ShellPayload(argv=["/bin/true"])))
    record = msgspec.structs.replace(PLAIN, is_task=True)
    write(tmp_path, [Put(keys.spec(array), spec), Put(keys.state(task), records.encode(record))])
    with open_session(tmp_path, owner=BOB) as (_, context):
        (row,) = answer(context, "SELECT array_id, task_index, payload FROM jobs")
    assert (row["array_id"], row["task_index"]) == (array, 10)
    assert msgspec.json.decode(row["payload"])["argv"] == ["/bin/true"]


def test_a_result_is_shown_with_all_its_fields(tmp_path: Path) -> None:
    told = ResultRecord(state=JobState.FAILED, reason=Reason.EXIT_CODE, message="no", execution=EXECUTION)
    untold = ResultRecord(
        **every_field(
            ResultRecord, state=JobState.FAILED, reason=Reason.WORKER_LOST, message=None, execution=None,
            worker=WorkerId("shell-1"), started_ms=NOW_MS + 8, finished_ms=NOW_MS + 9, query=QUERY, blob=BLOB,
            moved=MovedOutput(order="a" * 64, pieces=2, streams=("b" * 64, None)), artefacts=ARTEFACTS, skipped=SKIPPED,
            maintenance=MAINTENANCE, replication=REPLICATION,
        )
    )  # fmt: skip
    ops: list[Op] = [
        Put(keys.state(FULL_ID), records.encode(FULL)),
        Put(keys.result(FULL_ID, Attempt(1)), records.encode(untold)),
        Put(keys.result(FULL_ID, Attempt(3)), records.encode(told)),
    ]
    write(tmp_path, ops)
    with open_session(tmp_path, owner=ALICE) as (snapshot, context):
        first, second = answer(context, "SELECT * FROM results ORDER BY attempt")
    assert second == {
        "job_id": FULL_ID, "attempt": 3, "state": "failed", "reason": "exit_code", "message": "no",
        "worker": "shell-0", "incarnation": "a" * 32, "node": "n1", "queued_at": at(NOW_MS),
        "started_at": at(NOW_MS + 1), "finished_at": at(NOW_MS + 2), "wall_s": 0.5, "cpu_user_s": 0.25,
        "cpu_system_s": 0.125, "peak_memory_bytes": 1 << 30, "exit_code": 9, "signal": None, "sandbox": "strict",
        "root": "writable", "stdout_bytes": 10, "stdout_stored_bytes": 9, "stdout_truncated": True, "stderr_bytes": 1,
        "stderr_stored_bytes": 1, "stderr_truncated": False, "query": None, "blob": None, "artefacts": "[]",
        "skipped": "[]", "maintenance": None, "replication": None, "revision": snapshot.revision,
    }  # fmt: skip
    assert msgspec.json.decode(first["maintenance"], type=MaintenanceResult) == MAINTENANCE
    assert msgspec.json.decode(first["replication"], type=ReplicationResult) == REPLICATION
    assert msgspec.json.decode(first["query"], type=SqlResult) == QUERY
    assert msgspec.json.decode(first["blob"], type=BlobResult) == BLOB
    assert msgspec.json.decode(first["artefacts"], type=list[Artefact]) == ARTEFACTS
    assert msgspec.json.decode(first["skipped"], type=list[OutputSkipped]) == SKIPPED
    assert (first["worker"], first["started_at"], first["finished_at"], first["node"]) == (
        "shell-1", at(NOW_MS + 8), at(NOW_MS + 9), None,
    )  # fmt: skip


def test_workers_schedules_and_the_audit_trail_are_shown(tmp_path: Path) -> None:
    worker = WorkerRecord(
        **every_field(
            WorkerRecord, type="shell", incarnation=Incarnation("b" * 32), node="n1", slots=4, labels={"a": "b"},
            cpu_milli=2_000, memory_bytes=1 << 33, sandbox="strict", registered_ms=NOW_MS, stopping=True,
            resources={"gpu": 2}, process="p1",
        )
    )  # fmt: skip
    timetable = TimetableRecord(
        cron="* * * * *", every_ms=None, at_ms=None, timezone="UTC", start_ms=NOW_MS, end_ms=None, anchor_ms=NOW_MS
    )
    schedule = ScheduleRecord(
        **every_field(
            ScheduleRecord, owner=ALICE, timetable=timetable, catch_up=_first("CatchUp"), max_catch_up=3,
            catch_up_window_ms=4, overlap=_first("Overlap"), max_queued=5, max_per_minute=6, since_ms=NOW_MS,
            passed_ms=NOW_MS + 1, paused=True, last_nominal_ms=NOW_MS + 2, last_job=FULL_ID,
            queued=(NOW_MS, NOW_MS + 1), fired_ms=(), fired=7, skipped=8, missed=9,
            last_lapse=LapseRecord(nominal_ms=NOW_MS, at_ms=NOW_MS + 3, outcome="skipped", detail="busy"),
            managed_by="site",
        )
    )  # fmt: skip
    entry = AuditRecord(
        **every_field(
            AuditRecord, at_ms=NOW_MS, uid=ALICE, action="job.cancel", subject=FULL_ID, detail="why", owner=BOB,
            last=None, made=PLAIN_ID,
        )
    )  # fmt: skip
    template = ShellJob(payload=ShellPayload(argv=["/bin/true"]))
    ops: list[Op] = [
        Put(keys.worker(WorkerId("w1")), records.encode(worker)),
        Put(keys.drained(WorkerId("w1")), records.VERSION_ONLY),
        Put(keys.schedule("nightly"), records.encode(schedule)),
        Put(keys.schedule_job("nightly"), records.encode_spec(template)),
        Put(keys.audit(NOW_MS, 1), records.encode(entry)),
    ]
    write(tmp_path, ops)
    with open_session(tmp_path) as (snapshot, context):
        revision = snapshot.revision
        assert answer(context, "SELECT * FROM workers") == [
            {
                "id": "w1", "type": "shell", "incarnation": "b" * 32, "node": "n1", "process": "p1", "slots": 4,
                "cpu_milli": 2_000, "memory_bytes": 1 << 33, "labels": [("a", "b")], "resources": [("gpu", 2)],
                "sandbox": "strict", "registered_at": at(NOW_MS), "stopping": True, "drained": True,
                "revision": revision,
            }
        ]  # fmt: skip
        (row,) = answer(context, "SELECT * FROM schedules")
        assert msgspec.json.decode(row.pop("job"))["payload"]["argv"] == ["/bin/true"]
        assert row == {
            "name": "nightly", "owner": ALICE, "cron": "* * * * *", "every_ms": None, "once_at": None,
            "timezone": "UTC", "starts_at": at(NOW_MS), "ends_at": None, "anchor_at": at(NOW_MS),
            "catch_up": schedule.catch_up, "max_catch_up": 3, "catch_up_window_ms": 4, "overlap": schedule.overlap,
            "max_queued": 5, "max_per_minute": 6, "since_at": at(NOW_MS), "passed_at": at(NOW_MS + 1), "paused": True,
            "last_nominal_at": at(NOW_MS + 2), "last_job": FULL_ID, "queued": [at(NOW_MS), at(NOW_MS + 1)],
            "recent_fires": [], "fired": 7, "skipped": 8, "missed": 9, "last_lapse_nominal_at": at(NOW_MS),
            "last_lapse_at": at(NOW_MS + 3), "last_lapse_outcome": "skipped", "last_lapse_detail": "busy",
            "managed_by": "site", "revision": revision,
        }  # fmt: skip
        assert answer(context, "SELECT * FROM audit") == [
            {
                "at": at(NOW_MS), "uid": ALICE, "action": "job.cancel", "subject": FULL_ID, "detail": "why",
                "owner": BOB, "last_subject": None, "made": PLAIN_ID, "revision": revision,
            }
        ]  # fmt: skip


def _first(name: str) -> Any:
    """Return some value of a type of the records."""
    return (
        get_args(getattr(records, name))[0] if get_args(getattr(records, name)) else next(iter(getattr(records, name)))
    )


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of two owners in every state, with results, and what was done to them."""
    directory = tmp_path_factory.mktemp("population")
    ops: list[Op] = []
    ids = JobIdSource()
    result = records.encode(ResultRecord(state=JobState.COMPLETED, reason=None, message=None, execution=EXECUTION))
    for number in range(400):
        job = ids.next(NOW_MS + number, number)
        owner = ALICE if number % 2 else BOB
        record = jobs.on_submit(ShellJob(payload=ShellPayload(argv=["/bin/true"])), owner, NOW_MS + number)
        match number % 8:
            case 0 | 1:
                pass
            case 2 | 3:
                running = jobs.on_assigned(record, WorkerId("w"), Incarnation("c" * 32), NOW_MS)
                assert isinstance(running, JobRecord)
                record = running
            case _:
                state = JobState.COMPLETED if number % 8 < 6 else JobState.FAILED
                reason = None if state is JobState.COMPLETED else Reason.EXIT_CODE
                record = msgspec.structs.replace(record, state=state, reason=reason, finished_ms=NOW_MS + number)
                ops.append(Put(keys.result(job, Attempt(1)), result))
        ops += write_ops(job, None, record)
        entry = AuditRecord(at_ms=NOW_MS + number, uid=owner, action="job.submit", subject=job, owner=owner)
        ops.append(Put(keys.audit(NOW_MS + number, number), records.encode(entry)))
    ops.append(Put(keys.result(ids.next(NOW_MS + 900, 1), Attempt(1)), result))
    write(directory, ops)
    return directory


@pytest.mark.parametrize(("owner", "share"), [(None, 1.0), (ALICE, 0.5), (NOBODY, 0.0)])
def test_a_user_sees_their_own_and_no_query_goes_round_that(population: Path, owner: int | None, share: float) -> None:
    with open_session(population, owner=owner) as (_, context):
        for table, of_all in (("jobs", 400), ("results", 200), ("audit", 400)):
            orphans = 1 if table == "results" and owner is None else 0
            assert answer(context, f"SELECT count(*) AS n FROM {table}") == [{"n": of_all * share + orphans}]
            # Filters that are evaluated by the table, by the engine, by an index, and through joins
            mine = f"SELECT count(*) AS n FROM jobs WHERE owner = {BOB}"
            assert answer(context, mine) == [{"n": 200 if owner is None else 0}]
        wide = f"SELECT count(*) AS n FROM jobs WHERE owner = {BOB} OR owner + 0 = {BOB} OR state = 'pending'"
        assert answer(context, wide) == [{"n": {None: 250, ALICE: 50, NOBODY: 0}[owner]}]
        joined = "SELECT count(*) AS n FROM results r JOIN jobs j ON j.id = r.job_id"
        assert answer(context, joined) == [{"n": 200 * share}]


def test_jobs_that_have_not_ended_are_found_by_an_index(population: Path) -> None:
    for state, count in (("pending", 100), ("running", 100)):
        with open_session(population) as (snapshot, context):
            query = f"SELECT id FROM jobs WHERE state = '{state}'"
            assert "index=" in plan(context, query)
            assert len(answer(context, query)) == count
            assert snapshot.rows_read == count
    with open_session(population) as (snapshot, context):
        assert len(answer(context, "SELECT id FROM jobs WHERE state IN ('running', 'pending') AND priority = 0")) == 200
        assert snapshot.rows_read == 200
        assert len(answer(context, "SELECT id FROM jobs WHERE state IN ('running', 'failed')")) == 200


def test_ids_and_times_are_ranges_of_keys(population: Path) -> None:
    with open_session(population) as (snapshot, context):
        ids = [row["id"] for row in answer(context, "SELECT id FROM jobs ORDER BY id")]
        read = snapshot.rows_read
        for query, count, looked_at in (
            (f"SELECT * FROM jobs WHERE id = '{ids[17]}'", 1, 1),
            (f"SELECT * FROM jobs WHERE id > '{ids[389]}'", 10, 10),
            (f"SELECT * FROM jobs WHERE id IN ('{ids[1]}', '{ids[2]}')", 2, 2),
            (f"SELECT * FROM results WHERE job_id = '{ids[4]}'", 1, 1),
            (f"SELECT * FROM results WHERE job_id = '{ids[0]}'", 0, 0),
            (f"SELECT * FROM audit WHERE at >= to_timestamp_millis({NOW_MS + 390})", 10, 10),
            (f"SELECT * FROM audit WHERE at = to_timestamp_millis({NOW_MS + 5})", 1, 1),
            (f"SELECT * FROM audit WHERE at < to_timestamp_millis({NOW_MS + 5}) AND action = 'job.submit'", 5, 5),
        ):
            assert len(answer(context, query)) == count, query
            assert snapshot.rows_read - read == looked_at, query
            read = snapshot.rows_read


def test_columns_can_be_named_without_quotes(population: Path) -> None:
    with open_session(population) as (snapshot, context):
        for table in SQL_TABLES:
            names = pa.schema(snapshot.table(table, owner=None).schema).names
            answer(context, f"SELECT {', '.join(names)} FROM {table} LIMIT 1")
        assert answer(context, "SELECT labels['team'] AS team FROM jobs LIMIT 1") == [{"team": None}]


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x02\x90", b"\x01\x90", b"\x01\xdd\xff\xff\xff\xff", b"\x01\xc0"])
def test_a_record_that_is_damaged_is_named(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, [Put(keys.state(PLAIN_ID), damage)])
    with open_session(tmp_path) as (_, context):
        with pytest.raises(Exception, match=f"key /jobs/state/{PLAIN_ID}"):
            answer(context, "SELECT * FROM jobs")
        with pytest.raises(Exception, match=f"key /jobs/state/{PLAIN_ID}"):
            answer(context, "SELECT queue FROM jobs")


def test_a_condition_on_what_is_damaged_is_an_error(tmp_path: Path) -> None:
    """Not merely false: rows would be missing without a word."""
    fields = msgspec.msgpack.decode(records.encode(PLAIN)[1:])
    fields[1] = 7  # its queue
    write(tmp_path, [Put(keys.state(PLAIN_ID), b"\x01" + msgspec.msgpack.encode(fields))])
    with open_session(tmp_path) as (_, context):
        assert answer(context, "SELECT count(*) AS n FROM jobs WHERE state != 'failed'") == [{"n": 1}]
        with pytest.raises(Exception, match=f"key /jobs/state/{PLAIN_ID}"):
            answer(context, "SELECT count(*) AS n FROM jobs WHERE queue = 'default'")


def test_any_damage_of_a_record_is_an_error_or_a_row(tmp_path: Path) -> None:
    """Whatever byte of it is changed, cut or added: never a crash."""
    whole = records.encode(FULL)
    damaged = [whole[:end] for end in range(0, len(whole), 5)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(len(whole))]
    ids = JobIdSource()
    names = [ids.next(NOW_MS, number) for number in range(len(damaged))]
    write(tmp_path, [Put(keys.state(name), value) for name, value in zip(names, damaged, strict=True)])
    problems = []
    with open_session(tmp_path) as (_, context):
        for name in names:
            try:
                table_of(context, f"SELECT * EXCEPT (payload) FROM jobs WHERE id = '{name}'")
            except Exception as error:
                problems.append((f"key /jobs/state/{name}", str(error)))
    assert len(problems) > len(names) // 4
    assert [said for key, said in problems if key not in said] == []


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [Put(b"/data/a", b"1")])
    snapshot = SqlSnapshot(str(tmp_path))
    with pytest.raises(ValueError, match='there is no table "secrets"'):
        snapshot.table("secrets", owner=None)
    snapshot.close()
