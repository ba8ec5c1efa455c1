"""Queries from submission to rows: parameters, formats, what is read when, bounds, and what is wrong in words."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from io import BytesIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from jobs import AsyncClient, Client, QueryFailed, Reason, SqlJob, SqlLimits, SqlPayload, sql_job
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.protocol.model import Content, JobState, KvOp, KvPut, SqlFormat
from jobs.testing import EmbeddedNode
from tests.support.waiting import until

ALL_TYPES = """SELECT true AS yes, 1 AS one, 1.5 AS half, 'text' AS words, x'ff00' AS raw, DATE '2024-02-29' AS day,
    TIMESTAMP '2024-02-29 12:30:00.123456789' AS moment, CAST(1.50 AS DECIMAL(10, 2)) AS price, NULL AS nothing,
    [1, 2] AS numbers, CAST('NaN' AS DOUBLE) AS strange, arrow_cast(18446744073709551615, 'UInt64') AS large"""


def test_a_query_sees_what_was_written_before_it(sql_client: Client) -> None:
    for number in range(20):
        sql_client.kv.put("/data/seen", str(number))
        found = sql_client.sql("SELECT value FROM kv WHERE key = '/data/seen'")
        assert found.rows() == [{"value": str(number).encode()}]


def test_rows_come_as_arrow_with_what_was_read(sql_client: Client) -> None:
    for name in ("a", "b"):
        sql_client.kv.put(f"/data/arrow/{name}", name)
    found = sql_client.sql("SELECT key, value, version FROM kv WHERE key LIKE '/data/arrow/%' ORDER BY key")
    table = found.arrow()
    assert table.column_names == ["key", "value", "version"]
    assert table["key"].to_pylist() == ["/data/arrow/a", "/data/arrow/b"]
    assert found.info.rows == 2
    assert found.info.first_rows == [["/data/arrow/a", "a", 1], ["/data/arrow/b", "b", 1]]
    assert found.info.bytes == len(found.data)
    assert found.info.revision > 0
    assert found.info.scanned_rows >= 2
    assert found.info.scanned_bytes > 0
    execution = found.result.execution
    assert execution is not None
    assert execution.sandbox == "process"
    assert execution.stdout.bytes == len(found.data)
    assert execution.peak_memory_bytes > 0


def test_without_pandas_it_is_named(sql_client: Client) -> None:
    found = sql_client.sql("SELECT 1 AS one")
    try:
        import pandas
    except ImportError:
        with pytest.raises(ImportError, match="pandas is not installed"):
            found.pandas()
    else:
        assert isinstance(found.pandas(), pandas.DataFrame)


def test_the_asynchronous_client_has_the_same(sql_node: EmbeddedNode) -> None:
    async def ask() -> None:
        async with AsyncClient(str(sql_node.socket)) as client:
            assert (await client.sql("SELECT $1 + 1 AS sum", parameters=[41])).rows() == [{"sum": 42}]
            large = await client.sql("SELECT * FROM generate_series(1, 50000)")
            assert large.info.bytes > 64 << 10
            assert large.arrow().num_rows == 50_000
            with pytest.raises(QueryFailed, match="there is no table nowhere"):
                await client.sql("SELECT * FROM nowhere")

    asyncio.run(ask())


@pytest.mark.parametrize(
    "value", ["o'b", "'; DROP TABLE kv; --", "$1", "a\nb", "ü", "\\", "", 7, -1.5, True, None, 2**64 - 1]
)
def test_parameters_are_values(sql_client: Client, value: object) -> None:
    for given, place in (([value], "$1"), ({"name": value}, "$name")):
        found = sql_client.sql(f"SELECT {place} AS given", parameters=given)  # type: ignore[arg-type]
        assert found.rows() == [{"given": value}]


def test_a_parameter_that_is_missing_is_named(sql_client: Client) -> None:
    with pytest.raises(QueryFailed, match=r"\$1|\$2"):
        sql_client.sql("SELECT key FROM kv WHERE key = $1 AND version = $2", parameters=["a"])


def test_every_format_holds_the_same_rows(sql_client: Client) -> None:
    rows = sql_client.sql(ALL_TYPES).rows()
    assert rows[0]["day"] == date(2024, 2, 29)
    assert rows[0]["price"] == Decimal("1.50")
    assert math.isnan(rows[0]["strange"])
    parquet = sql_client.sql(ALL_TYPES, format="parquet")
    table = pa.parquet.read_table(BytesIO(parquet.data))
    assert table["words"].to_pylist() == ["text"]
    assert parquet.arrow()["large"].to_pylist() == [2**64 - 1]
    (line,) = sql_client.sql(ALL_TYPES, format="json").data.splitlines()
    assert json.loads(line) == {
        "yes": True,
        "one": 1,
        "half": 1.5,
        "words": "text",
        "raw": "\\xff00",
        "day": "2024-02-29",
        "moment": "2024-02-29T12:30:00.123456789",
        "price": "1.50",
        "nothing": None,
        "numbers": [1, 2],
        "strange": None,
        "large": 2**64 - 1,
    }
    csv = pa.csv.read_csv(BytesIO(sql_client.sql("SELECT 1 AS a, 'x,\"y' AS b", format="csv").data))
    assert csv.to_pylist() == [{"a": 1, "b": 'x,"y'}]


@pytest.mark.parametrize("format_", ["arrow", "parquet", "json", "csv"])
def test_no_rows_have_a_schema(sql_client: Client, format_: SqlFormat) -> None:
    found = sql_client.sql("SELECT key, version FROM kv WHERE key = '/data/none of these'", format=format_)
    assert (found.info.rows, found.info.first_rows) == (0, [])
    assert [column.name for column in found.columns] == ["key", "version"]


def test_columns_of_one_name_are_told_apart(sql_client: Client) -> None:
    query = "SELECT a.value, b.value FROM generate_series(1, 2) a JOIN generate_series(1, 2) b ON a.value = b.value"
    rows = sql_client.sql(query + " ORDER BY a.value", format="json").rows()
    assert rows == [{"value": 1, "value_2": 1}, {"value": 2, "value_2": 2}]


def test_a_former_revision_is_read_as_it_was(sql_client: Client) -> None:
    first = sql_client.kv.put("/data/history", "old").revision
    sql_client.kv.put("/data/history", "new")
    query = "SELECT value FROM kv WHERE key = '/data/history'"
    then = sql_client.sql(query, revision=first)
    assert then.rows() == [{"value": b"old"}]
    assert then.info.revision == first
    with pytest.raises(QueryFailed, match="has not been reached"):
        sql_client.sql(query, revision=1 << 40)
    assert sql_client.sql(query, consistency="stale").info.rows <= 1


def test_files_are_tables(sql_client: Client) -> None:
    table = pa.table({"id": [1, 2], "name": ["a", "b"]})
    parquet, stream, file = BytesIO(), BytesIO(), BytesIO()
    pa.parquet.write_table(table, parquet)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for format_, data in (
        ("csv", b"id,name\n1,a\n2,b\n"),
        ("json", b'{"id":1,"name":"a"}\n{"id":2,"name":"b"}\n'),
        ("parquet", parquet.getvalue()),
        ("arrow", stream.getvalue()),
        ("arrow", file.getvalue()),
    ):
        found = sql_client.sql("SELECT * FROM given ORDER BY id", files={"given": (format_, data)})  # type: ignore[dict-item]
        assert found.arrow().to_pylist() == table.to_pylist(), format_
    with pytest.raises(QueryFailed, match="cannot be read as parquet") as caught:
        sql_client.sql("SELECT 1", files={"given": ("parquet", b"no such thing")})
    assert caught.value.reason is Reason.INVALID_PAYLOAD


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELEC 1", r"line 1, column 1\b.*SELEC"),
        ("SELECT *\n  FORM kv", r"line 2, column 3\b"),
        ("SELECT key,\n  valu FROM kv", "line 2, column 3, near valu: .*Did you mean 'kv.value'"),
        ("SELECT 'kex' , kex FROM kv", "line 1, column 16, near kex: "),
        ("SELECT * FROM nowhere", "line 1, column 15, near nowhere: there is no table nowhere"),
        ("SELECT nonsense(1)", "line 1, column 8, near nonsense: Invalid function"),
        ("SELECT key + 1 FROM kv", r"line 1, column 12, near \+: Cannot coerce"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("-- nothing", "0 statements|No SQL statements"),
        ("SELECT 1 / 0", "line 1, column 10, near /: Divide by zero"),
        ("SELECT CAST('a' AS INT)", "line 1, column 13, near 'a': .*Cannot cast string 'a'"),
        ("SELECT key,\n sum(version) FROM kv", "line 1, column 8, near key: "),
    ],
)
def test_what_is_wrong_is_told_with_its_place(sql_client: Client, statement: str, said: str) -> None:
    with pytest.raises(QueryFailed, match=said) as caught:
        sql_client.sql(statement)
    assert caught.value.reason is Reason.QUERY_ERROR


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM '/etc/passwd.csv'",
        "SELECT * FROM 'http://127.0.0.1/x.csv'",
        "COPY kv TO '/tmp/stolen.csv'",
        "CREATE EXTERNAL TABLE stolen (line VARCHAR) STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE EXTERNAL TABLE stolen (line VARCHAR) STORED AS CSV LOCATION 's3://bucket/x'",
        "SET datafusion.execution.batch_size = 1",
        "CREATE VIEW v AS SELECT 1",
        "DELETE FROM kv",
        "UPDATE kv SET value = 'x'",
        "INSERT INTO kv VALUES ('a')",
        "DROP TABLE kv",
        "CREATE TABLE jobs AS SELECT 1 AS one",
        "PREPARE p AS SELECT 1",
        "BEGIN",
    ],
)
def test_nothing_but_the_store_is_read_and_nothing_else_is_written(sql_client: Client, statement: str) -> None:
    count = "SELECT count(*) AS n FROM kv WHERE key LIKE '/data/%' OR key LIKE '/tables/%'"
    before = sql_client.sql(count).rows()
    with pytest.raises(QueryFailed) as caught:
        sql_client.sql(statement)
    assert caught.value.reason is Reason.QUERY_ERROR
    assert sql_client.sql(count).rows() == before


def test_files_of_the_machine_are_read_only_where_that_is_allowed(sql_node: EmbeddedNode, sql_client: Client) -> None:
    allowed = sql_node.directory.parent / "allowed"
    inside, outside = allowed / "rows.csv", sql_node.directory.parent / "outside.csv"
    inside.write_text("a,b\n1,2\n")
    outside.write_text("a\n1\n")
    (allowed / "link.csv").unlink(missing_ok=True)
    (allowed / "link.csv").symlink_to(outside)
    assert sql_client.sql(f"SELECT * FROM read_csv('{inside}')").rows() == [{"a": 1, "b": 2}]
    for refused in (outside, allowed / "link.csv", allowed / ".." / "outside.csv", "/etc/passwd", allowed / "none.csv"):
        with pytest.raises(QueryFailed, match=r"cannot be read|is no file in the directories"):
            sql_client.sql(f"SELECT * FROM read_csv('{refused}')")


def test_more_than_the_bounds_fails(sql_client: Client) -> None:
    series = "SELECT * FROM generate_series(1, 100000)"
    for limits, said in (
        (SqlLimits(max_rows=10), "more than 10 rows"),
        (SqlLimits(max_bytes=1_000), "more than 1000 bytes"),
    ):
        with pytest.raises(QueryFailed, match=said):
            sql_client.sql(series, limits=limits)
    assert sql_client.sql("SELECT * FROM generate_series(1, 10)", limits=SqlLimits(max_rows=10)).info.rows == 10
    with pytest.raises(QueryFailed, match="more than this worker allows") as caught:
        sql_client.sql("SELECT 1", limits=SqlLimits(memory_bytes=1 << 45))
    assert caught.value.reason is Reason.INVALID_PAYLOAD


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (SqlJob(payload=SqlPayload(sql="  \n")), "$.payload.sql"),
        (SqlJob(payload=SqlPayload(sql="SELECT '\0'")), "$.payload.sql"),
        (SqlJob(payload=SqlPayload(sql="SELECT $1", parameters=[1 << 65])), "$.payload.parameters[0]"),
        (SqlJob(payload=SqlPayload(sql="SELECT 1", revision=3, consistency="stale")), "$.payload.consistency"),
        (SqlJob(payload=SqlPayload(sql="SELECT 1"), heartbeat_s=1.0), "$.heartbeat_s"),
        (sql_job("SELECT 1", files={"a": ("csv", b"x\n1\n"), "A": ("csv", b"x\n1\n")}), "$.payload.files['A']"),
    ],
)
def test_what_could_never_run_is_refused_at_once(sql_client: Client, job: SqlJob, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sql_client.submit(job)
    assert caught.value.field == field


def test_a_statement_is_at_most_a_mebibyte(sql_client: Client) -> None:
    with pytest.raises((InvalidRequest, PayloadTooLarge)):
        sql_client.submit(sql_job("SELECT '" + "x" * (1 << 20) + "'"))
    long = sql_client.sql("SELECT length($1) AS n", parameters=["x" * 900_000])
    assert long.rows() == [{"n": 900_000}]


def test_explain_and_show_tables_answer(sql_client: Client) -> None:
    plan = sql_client.sql("EXPLAIN SELECT key FROM kv WHERE key = '/data/a' LIMIT 1").rows()
    assert {row["plan_type"] for row in plan} == {"logical_plan", "physical_plan"}
    assert sql_client.sql("EXPLAIN ANALYZE SELECT count(*) FROM kv").info.rows >= 1
    names = {row["table_name"] for row in sql_client.sql("SHOW TABLES").rows()}
    assert {"kv", "jobs", "results", "workers", "schedules", "audit"} <= names


def test_a_result_of_many_pieces_is_whole(sql_client: Client) -> None:
    found = sql_client.sql("SELECT value, repeat('x', 100) AS pad FROM generate_series(1, 100000)", format="csv")
    assert found.info.bytes == len(found.data) > 10 << 20
    assert found.data.count(b"\n") == 100_001
    inline = sql_client.result(found.job)
    assert len(bytes(inline.stdout)) == 64 << 10
    assert inline.query is not None
    assert len(inline.query.first_rows) == 20


def test_queries_are_jobs_like_others(sql_client: Client) -> None:
    first = sql_client.submit(sql_job("SELECT 1 AS one", labels={"kind": "query"}, idempotency_key="once"))
    again = sql_client.submit(sql_job("SELECT 1 AS one", labels={"kind": "query"}, idempotency_key="once"))
    assert (again.job.id, again.created) == (first.job.id, False)
    child = sql_client.submit(sql_job("SELECT 2 AS two", depends_on=[first.job.id])).job.id
    assert sql_client.result(child, timeout_s=30).state is JobState.COMPLETED
    assert sql_client.get(child).job.type == "sql"
    assert [job.id for job in sql_client.list(labels={"kind": "query"}, type="sql")] == [first.job.id]


def test_the_worker_and_jobctl_do_not_load_arrow() -> None:
    code = (
        "import sys, jobs.workers.sql.executor, jobs.cli.main, jobs.node\n"
        "assert not {'pyarrow', 'datafusion'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_now_is_a_time(sql_client: Client) -> None:
    (row,) = sql_client.sql("SELECT CAST(now() AS TIMESTAMP(3)) AS at").rows()
    assert isinstance(row["at"], datetime)


def test_a_query_tells_how_far_it_is(sql_client: Client) -> None:
    for start in range(0, 20_000, 1_000):
        keys = [f"/data/far/{number:06d}" for number in range(start, start + 1_000)]
        sql_client.kv.txn(then=[KvOp(put=KvPut(key=key, value=Content(text="x"))) for key in keys])
    # Much to compute for each row, so that it takes a while, and rows are read as they are needed.
    distance = "levenshtein(repeat(key, 40), repeat(reverse(key), 40))"
    slow = f"SELECT max({distance}) AS most FROM kv WHERE key LIKE '/data/far/%'"
    job = sql_client.submit(sql_job(slow)).job.id
    told: list[float] = []

    def seen() -> bool:
        detail = sql_client.get(job)
        if detail.progress is not None and detail.progress.percent not in told:
            assert detail.progress.message is not None
            assert "rows" in detail.progress.message
            told.append(detail.progress.percent)
        return detail.job.state.is_final or len(told) > 1

    until(seen, 120)
    assert told == sorted(told)
    assert all(0 < percent <= 99 for percent in told), told
    sql_client.cancel(job)
    assert told, "it said how far it was"
