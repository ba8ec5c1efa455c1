"""Answers compared with a second engine over the same rows: what is pushed down never changes one."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from datafusion import SessionConfig, SessionContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs._native import SqlSnapshot
from jobs.protocol.ids import Attempt, Incarnation, JobIdSource, WorkerId
from jobs.protocol.model import JobState, Reason, ShellJob, ShellPayload
from jobs.records import AuditRecord, ResultRecord
from jobs.store import Delete, LeaseGrant, Op, Put
from tests.support.sqlpredicates import predicates
from tests.support.sqlstore import open_session, table_of, write

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
NOW_MS = 1_790_000_000_000
TEXT = st.text(st.sampled_from("abz019/_é%- "), max_size=8)
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def same(context: SessionContext, other: duckdb.DuckDBPyConnection, query: str) -> None:
    """Check that both engines answer with the same rows, in any order."""
    mine, theirs = table_of(context, query), other.sql(query).to_arrow_table()
    assert sorted(map(repr, _rows(mine))) == sorted(map(repr, _rows(theirs))), query


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return [tuple(_plain(value) for value in row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return str(value.normalize())
    return value


class Compared:
    """A table of the store, and the same rows in the second engine."""

    def __init__(self, context: SessionContext, name: str, columns: list[str]) -> None:
        self.context = context
        self.name = name
        # A scan without a filter, as far as it has columns that both engines have.
        columns = [f'"{column}"' for column in columns]
        whole = table_of(context, f"SELECT {', '.join(columns)} FROM {name}")
        self.other = duckdb.connect()
        self.other.execute("SET TimeZone = 'UTC'")
        self.other.register("whole", whole)
        self.other.execute(f"CREATE TABLE {name} AS SELECT * FROM whole")
        self.columns = columns
        self.values = {column: _some(whole[column.strip('"')].to_pylist()) for column in columns}

    def check(self, where: str) -> None:
        for what in (", ".join(self.columns), self.columns[0], "count(*)"):
            same(self.context, self.other, f"SELECT {what} FROM {self.name} WHERE {where}")


def _some(values: list[Any]) -> list[Any]:
    distinct = sorted({value for value in values if value is not None})
    return distinct[:: max(1, len(distinct) // 30)]


def kv_ops() -> list[Op]:
    ops: list[Op] = [LeaseGrant(5, 1_000), LeaseGrant(9, 2_000)]
    for number in range(300):
        place = b"/data/%s/%03d" % ([b"a", b"ab", b"b", "é".encode()][number % 4], number % 100)
        ops.append(Put(place, b"v%d" % number, [0, 5, 9][number % 3]))
    ops += [
        Put(b"/data/ab", b""),
        Put(b"/zz", b"1"),
        Put(b"/da", b"1"),
        Delete(b"/data/a/000"),
        Put(b"/data/a/000", b"n"),
    ]
    return ops


def job_ops() -> list[Op]:
    ids, ops = JobIdSource(), list[Op]()
    for number in range(250):
        job = ids.next(NOW_MS + number * 10, number)
        template = ShellJob(
            payload=ShellPayload(argv=["/bin/true"]),
            queue=["default", "fast", "fäst"][number % 3],
            priority=number % 7 - 3,
            concurrency_key=None if number % 4 else f"key{number % 3}",
        )
        record = jobs.on_submit(template, 1_000 + number % 3, NOW_MS + number * 10)
        if number % 5 == 1:
            running = jobs.on_assigned(record, WorkerId(f"w{number % 2}"), Incarnation("c" * 32), NOW_MS + number)
            assert not isinstance(running, jobs.Refusal)
            record = running
        elif number % 5 > 1:
            state = JobState.FAILED if number % 5 == 2 else JobState.COMPLETED
            reason = Reason.EXIT_CODE if state is JobState.FAILED else None
            record = replace(record, state=state, reason=reason, exit_code=number % 3, finished_ms=NOW_MS + number * 11)
            ended = ResultRecord(
                state=state, reason=reason, message=None, execution=None, worker=WorkerId(f"w{number % 2}"),
                started_ms=NOW_MS + number, finished_ms=NOW_MS + number * 11,
            )  # fmt: skip
            ops += [
                Put(keys.result(job, Attempt(attempt)), records.encode(ended)) for attempt in range(1, 2 + number % 2)
            ]
        ops += [Put(keys.state(job), records.encode(record))]
        ops += [Put(key, b"\x01") for key in jobs.index_entries(job, record) if not key.startswith(b"/jobs/unique/")]
        entry = AuditRecord(
            at_ms=NOW_MS + number * 10, uid=1_000 + number % 4, action=["job.submit", "job.cancel"][number % 2],
            subject=job, owner=None if number % 3 else 1_000 + number % 3,
        )  # fmt: skip
        ops.append(Put(keys.audit(entry.at_ms, number), records.encode(entry)))
    return ops


TABLES = {
    "kv": ["key", "version", "create_revision", "mod_revision", "lease_id"],
    "jobs": [
        "id", "queue", "state", "reason", "priority", "owner", "worker", "exit_code", "submitted_at", "finished_at",
        "delayed", "concurrency_key", "revision",
    ],
    "results": ["job_id", "attempt", "state", "reason", "worker", "started_at", "finished_at"],
    "audit": ["at", "uid", "action", "subject", "owner"],
}  # fmt: skip


@pytest.fixture(scope="module", params=[None, 1_001], ids=["admin", "user"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Compared]]:
    """Every table of records, as somebody sees it."""
    directory = tmp_path_factory.mktemp("store")
    write(directory, kv_ops())
    write(directory, job_ops())
    with open_session(directory, owner=request.param) as (_, context):
        yield {name: Compared(context, name, columns) for name, columns in TABLES.items()}


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=60 * SCALE, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_a_filter_on_a_table_of_records_changes_no_answer(
    compared: dict[str, Compared], name: str, data: st.DataObject
) -> None:
    table = compared[name]
    values = {column: some for column, some in table.values.items() if some}
    table.check(data.draw(predicates(values)))


def test_tables_are_joined_and_grouped_alike(compared: dict[str, Compared]) -> None:
    one, other = compared["jobs"], compared["results"]
    both = duckdb.connect()
    for table in (one, other):
        both.register(table.name, table.other.sql(f"SELECT * FROM {table.name}").to_arrow_table())
    for query in (
        "SELECT queue, state, count(*) AS n, max(priority) AS p FROM jobs GROUP BY queue, state",
        "SELECT queue, count(*) AS n FROM jobs JOIN results ON job_id = id WHERE results.attempt = 2 GROUP BY queue",
        "SELECT id FROM jobs WHERE id NOT IN (SELECT job_id FROM results)",
        "SELECT j.id, r.attempt FROM jobs j LEFT JOIN results r ON r.job_id = j.id AND r.attempt > 1",
        "SELECT id, row_number() OVER (PARTITION BY queue ORDER BY id) AS n FROM jobs WHERE state = 'failed'",
        "SELECT id FROM jobs ORDER BY priority DESC, id LIMIT 7",
    ):
        same(one.context, both, query)


# --- tables of users -----------------------------------------------------------------------------------------------

TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "BIGINT": (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    "INTEGER": (pa.int32(), st.integers(-1_000, 1_000)),
    "DOUBLE": (pa.float64(), st.floats(-1e9, 1e9).filter(lambda number: number == 0 or abs(number) > 1e-9)),
    "VARCHAR": (pa.string(), TEXT),
    "BOOLEAN": (pa.bool_(), st.booleans()),
    "REAL": (pa.float32(), st.floats(-1e6, 1e6, width=32).filter(lambda number: number == 0 or abs(number) > 1e-6)),
    "SMALLINT UNSIGNED": (pa.uint16(), st.integers(0, (1 << 16) - 1)),
    "DATE": (pa.date32(), st.dates(date(1900, 1, 1), date(2100, 1, 1))),
    "DECIMAL(12,3)": (
        pa.decimal128(12, 3),
        st.integers(-(10**11), 10**11).map(lambda number: Decimal(number).scaleb(-3)),
    ),
    "TIMESTAMP(3) WITH TIME ZONE": (
        pa.timestamp("ms", "UTC"),
        st.integers(0, 4_000_000_000_000).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)),
    ),
}


@st.composite
def user_tables(draw: st.DrawFn) -> tuple[dict[str, str], list[dict[str, Any]], str]:
    """Return columns with their types, rows, and a format."""
    types = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=5))
    columns = {f"c{number}": name for number, name in enumerate(types)}
    row = st.fixed_dictionaries({name: st.one_of(st.none(), TYPES[kind][1]) for name, kind in columns.items()})
    rows = draw(st.lists(row, min_size=1, max_size=40))
    return columns, rows, draw(st.sampled_from(["json", "jsonl", "arrow", "parquet"]))


OTHER_MEMBERS: list[tuple[str, Any]] = [
    ("other", "text \\ \"quoted\" \n é 😀"), ("more", [1, -2.5e-3, {"c0": [None, True]}, []]),
    ("number", 1e300), ("", False), ("Ü", {"a": {}, "b": "}"}),
]  # fmt: skip


def as_object(row: dict[str, Any], chance: random.Random) -> bytes:
    """Return a row as one of the ways to write it in JSON."""
    plain = {
        name: value.isoformat() if isinstance(value, date) else str(value) if isinstance(value, Decimal) else value
        for name, value in row.items()
        if value is not None or chance.random() < 0.5
    }
    members = list(plain.items()) + chance.sample(OTHER_MEMBERS, chance.randrange(3))
    if chance.random() < 0.3:
        chance.shuffle(members)
    separators = chance.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")])
    text = json.dumps(dict(members), ensure_ascii=chance.random() < 0.5, separators=separators)
    return (" " * chance.randrange(2) + text + " " * chance.randrange(2)).encode()


def encode_rows(kind: str, columns: dict[str, str], rows: list[dict[str, Any]], chance: random.Random) -> list[bytes]:
    """Return the values of a table: a row each, or all of them in a few."""
    if kind in ("json", "jsonl"):
        plain = [as_object(row, chance) for row in rows]
        return plain if kind == "json" else [b"\n".join(plain[:10]), b"\n".join(plain[10:])]
    return [_binary(kind, columns, part) for part in (rows[:10], rows[10:])]


def _binary(kind: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> bytes:
    table = as_arrow(columns, rows)
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def as_arrow(columns: dict[str, str], rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, TYPES[kind][0]) for name, kind in columns.items()]))


@settings(max_examples=60 * SCALE, deadline=None, suppress_health_check=SLOW)
@given(table=user_tables(), chance=st.integers(0, 1 << 32).map(random.Random), data=st.data())
def test_tables_of_users_answer_as_another_engine_does(
    table: tuple[dict[str, str], list[dict[str, Any]], str], chance: random.Random, data: st.DataObject
) -> None:
    columns, rows, kind = table
    values = encode_rows(kind, columns, rows, chance)
    definition = {
        "prefix": "/data/t/",
        "format": kind,
        "columns": [{"name": name, "type": sql_type} for name, sql_type in columns.items()],
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write(directory, [Put(b"/data/t/%03d" % number, value) for number, value in enumerate(values)])
        _, context = stack.enter_context(open_session(directory, t=definition))
        other = stack.enter_context(duckdb.connect())
        other.execute("SET TimeZone = 'UTC'")
        other.register("t", as_arrow(columns, rows))
        same(context, other, "SELECT * FROM t")
        present = {name: [row[name] for row in rows if row[name] is not None] for name in columns}
        present = {name: found for name, found in present.items() if found}
        if present:
            where = data.draw(predicates(present))
            same(context, other, f"SELECT {data.draw(st.sampled_from(['*', 'c0', 'count(*)']))} FROM t WHERE {where}")


EDITS = [
    b"",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"9",
    b"-",
    b".",
    b"e5",
    b"E+",
    b"null",
    b"true",
    b"nul",
]
EDITS += [
    b" ",
    b"\n",
    b"\x00",
    b"\xff",
    b"\xc3\xa9",
    b"\\u00e9",
    b"\\ud83d",
    b"\\n",
    b"1" * 25,
    b'"c0":1',
    b"\x1f",
    b"'",
]


@settings(max_examples=100 * SCALE, deadline=None, suppress_health_check=SLOW)
@given(table=user_tables(), chance=st.integers(0, 1 << 32).map(random.Random))
def test_odd_and_damaged_objects_come_to_what_they_come_to_without_the_fast_way(
    table: tuple[dict[str, str], list[dict[str, Any]], str], chance: random.Random
) -> None:
    """The fast way to decode objects may leave any to Arrow's reader, which always has those of a table with a list."""
    columns, rows, kind = table
    values = []
    for row in rows:
        value = as_object(row, chance)
        for _ in range(chance.randrange(3)):
            start = chance.randrange(len(value) + 1)
            value = value[:start] + chance.choice(EDITS) + value[start + chance.randrange(2) :]
        values.append(value)
    fast = {
        "prefix": "/data/t/",
        "format": kind if kind == "jsonl" else "json",
        "columns": [{"name": name, "type": sql_type} for name, sql_type in columns.items()],
        "on_error": "null",
    }
    slow = {**fast, "columns": [*fast["columns"], {"name": "nothing", "type": "BIGINT[]"}]}
    names = ", ".join(columns)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), [Put(b"/data/t/%03d" % number, value) for number, value in enumerate(values)])
        snapshot = SqlSnapshot(name)
        # Each row for itself: one that is left to Arrow's reader takes those with it that it is decoded with.
        context = SessionContext(SessionConfig().with_batch_size(1).with_target_partitions(1))
        for table_name, definition in (("fast", fast), ("slow", slow)):
            context.register_table(table_name, snapshot.user_table(json.dumps(definition), owner=None))
        found = [
            list(map(repr, _rows(table_of(context, f"SELECT {names} FROM {which}")))) for which in ("fast", "slow")
        ]
        snapshot.close()
    assert found[0] == found[1], values
