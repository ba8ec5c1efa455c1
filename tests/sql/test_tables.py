"""Tables of users: made, filled, read and dropped by statements."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from io import BytesIO
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs import Client, QueryFailed, QueryResult
from jobs.protocol.model import SqlFormat, SqlWritten

TYPES = """flag BOOLEAN, tiny TINYINT, small SMALLINT, n INT, id BIGINT, ratio DOUBLE, price DECIMAL(15, 2),
    name VARCHAR, raw BYTEA, day DATE, moment TIMESTAMP(6)"""
ROW = """true, 1, 2, 3, 4, 1.5, CAST(12.34 AS DECIMAL(15, 2)), 'o''b ü', x'00ff', DATE '2024-02-29',
    TIMESTAMP '2024-02-29 12:30:00.123456'"""
VALUES = {
    "flag": True,
    "tiny": 1,
    "small": 2,
    "n": 3,
    "id": 4,
    "ratio": 1.5,
    "price": Decimal("12.34"),
    "name": "o'b ü",
    "raw": b"\x00\xff",
    "day": date(2024, 2, 29),
    "moment": datetime(2024, 2, 29, 12, 30, 0, 123456),
}


@pytest.fixture
def sql(sql_client: Client) -> Callable[..., QueryResult]:
    return sql_client.sql


def test_values_below_a_prefix_are_rows(sql_client: Client, sql: Any) -> None:
    for number in range(3):
        sql_client.kv.put(f"/data/people/{number}", f'{{"name": "n{number}", "age": {20 + number}, "more": [1]}}')
    made = sql("CREATE EXTERNAL TABLE people (name VARCHAR, age INT) STORED AS JSON LOCATION '/data/people/'")
    assert made.info.written == SqlWritten(action="create", table="people", rows=0)
    found = sql("SELECT name, age + 1 AS next FROM people WHERE age > 20 ORDER BY name")
    assert found.rows() == [{"name": "n1", "next": 22}, {"name": "n2", "next": 23}]
    sql_client.kv.put("/data/people/3", '{"name": "n3", "age": 40}')
    assert sql("SELECT max(age) AS oldest FROM people").rows() == [{"oldest": 40}]
    assert "people" in {row["table_name"] for row in sql("SHOW TABLES").rows()}
    assert sql("DROP TABLE people").info.written == SqlWritten(action="drop", table="people", rows=0)
    with pytest.raises(QueryFailed, match="there is no table people"):
        sql("SELECT * FROM people")
    assert sql_client.kv.get("/data/people/3") is not None


@pytest.mark.parametrize("stored", ["JSON", "JSONL", "CSV", "ARROW", "PARQUET"])
def test_what_is_inserted_is_read_again_in_every_format(sql: Any, stored: str) -> None:
    name = f"kinds_{stored.lower()}"
    sql(f"CREATE EXTERNAL TABLE {name} ({TYPES}) STORED AS {stored} LOCATION '/data/{name}/'")
    row, values = ROW, VALUES
    if stored == "CSV":
        with pytest.raises(QueryFailed, match="not UTF-8"):
            sql(f"INSERT INTO {name} VALUES ({ROW})")
        row, values = ROW.replace("x'00ff'", "'text'"), {**VALUES, "raw": b"text"}
    done = sql(f"INSERT INTO {name} VALUES ({row}), ({', '.join(['NULL'] * 11)})")
    assert done.info.written == SqlWritten(action="insert", table=name, rows=2)
    rows = sql(f"SELECT * FROM {name} ORDER BY id NULLS LAST").rows()
    assert rows[0] == values
    assert set(rows[1].values()) <= ({None, ""} if stored == "CSV" else {None})
    sql(f"INSERT INTO {name} (id, name) SELECT id * 10, upper(name) FROM {name} WHERE id = 4")
    assert sql(f"SELECT id, name, n FROM {name} WHERE id = 40").rows() == [{"id": 40, "name": "O'B Ü", "n": None}]
    sql(f"DROP TABLE {name}")


def test_a_table_is_made_of_a_query(sql_client: Client, sql: Any) -> None:
    made = sql(f"CREATE TABLE copies AS SELECT * FROM (VALUES ({ROW})) v({', '.join(VALUES)})")
    assert made.info.written == SqlWritten(action="create", table="copies", rows=1)
    (row,) = sql("SELECT * FROM copies").rows()
    assert row == VALUES
    with pytest.raises(QueryFailed, match="there is a table copies already"):
        sql("CREATE TABLE copies AS SELECT 1 AS one")
    assert sql("CREATE TABLE IF NOT EXISTS copies AS SELECT 1 AS one").info.written.action == "none"
    sql("CREATE OR REPLACE TABLE copies AS SELECT value AS n FROM generate_series(1, 50000)")
    assert sql("SELECT count(*) AS n, sum(n) AS s FROM copies").rows() == [{"n": 50_000, "s": 1_250_025_000}]
    assert len(list(sql_client.kv.scan("/data/tables/copies/"))) < 10
    sql("DROP TABLE copies")
    assert list(sql_client.kv.scan("/data/tables/copies/")) == []
    assert sql("DROP TABLE IF EXISTS copies").info.written.action == "none"
    with pytest.raises(QueryFailed, match="there is no table copies"):
        sql("DROP TABLE copies")


def test_more_rows_than_one_transaction_takes_are_refused_whole(sql_client: Client, sql: Any) -> None:
    sql("CREATE EXTERNAL TABLE few (n BIGINT) STORED AS JSON LOCATION '/data/few/'")
    with pytest.raises(QueryFailed, match="more than one statement writes"):
        sql("INSERT INTO few SELECT value FROM generate_series(1, 901)")
    with pytest.raises(QueryFailed, match="more than one statement writes"):
        sql("CREATE TABLE wide AS SELECT random() AS a FROM generate_series(1, 1000000)")
    assert list(sql_client.kv.scan("/data/few/")) == []
    assert sql("INSERT INTO few SELECT value FROM generate_series(1, 900)").info.written.rows == 900
    assert sql("SELECT count(*) AS n FROM few").rows() == [{"n": 900}]
    assert sql("INSERT INTO few SELECT 1 WHERE false").info.written.rows == 0
    sql("DROP TABLE few")


def test_parameters_go_into_what_is_written(sql: Any) -> None:
    sql("CREATE EXTERNAL TABLE said (words VARCHAR) STORED AS JSON LOCATION '/data/said/'")
    sql("INSERT INTO said VALUES ($1), ($2)", parameters=["o'b", "'); DROP TABLE said; --"])
    assert sorted(row["words"] for row in sql("SELECT * FROM said").rows()) == ["'); DROP TABLE said; --", "o'b"]
    sql("DROP TABLE said")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE EXTERNAL TABLE w (a INT) STORED AS JSON LOCATION '/jobs/state/'", "below /data/"),
        ("CREATE EXTERNAL TABLE w (a INT) STORED AS AVRO LOCATION '/data/w/'", "no format of values"),
        ("CREATE EXTERNAL TABLE w STORED AS JSON LOCATION '/data/w/'", "no columns"),
        ("CREATE EXTERNAL TABLE w (a INT) STORED AS JSON LOCATION '/data/w/' OPTIONS ('nonsense' 'x')", "nonsense"),
        ("CREATE EXTERNAL TABLE w (a INT) STORED AS CSV LOCATION '/data/w/' OPTIONS ('header' 'no')", "true or false"),
        (
            "CREATE EXTERNAL TABLE w (a INT) STORED AS JSON LOCATION '/data/w/' OPTIONS ('on_error' 'explode')",
            "expected one of `error`, `null`, `skip`$",
        ),
        ('CREATE TABLE "Capitals" AS SELECT 1 AS one', "no name for a table"),
        ("CREATE TABLE kv AS SELECT 1 AS one", "a table of the system"),
        ("CREATE TABLE w AS SELECT INTERVAL '1 day' AS span", "which tables do not hold"),
        ("INSERT INTO nowhere VALUES (1)", "line 1, column 13, near nowhere: there is no table nowhere"),
        ("INSERT OVERWRITE narrow VALUES (1)", "OVERWRITE"),
        ("INSERT INTO narrow VALUES (1, 2)", "2 columns are given for the 1"),
        ("INSERT INTO narrow (other) VALUES (1)", "the column other"),
        ("INSERT INTO narrow VALUES ('words')", "the column n takes int32"),
        ("INSERT INTO narrow SELECT kex FROM kv", "line 1, column 27, near kex"),
    ],
)
def test_what_cannot_be_written_is_told(sql: Any, statement: str, said: str) -> None:
    sql("CREATE EXTERNAL TABLE IF NOT EXISTS narrow (n INT) STORED AS JSON LOCATION '/data/narrow/'")
    with pytest.raises(QueryFailed, match=said):
        sql(statement)
    assert sql("SELECT count(*) AS n FROM narrow").rows() == [{"n": 0}]


def test_columns_come_from_keys_too(sql_client: Client, sql: Any) -> None:
    for host in ("a", "b"):
        for day in ("2024-01-01", "2024-01-02"):
            sql_client.kv.put(f"/data/load/{host}/{day}", '{"load": 1.5}')
    sql(
        "CREATE EXTERNAL TABLE load (host VARCHAR, day DATE, load DOUBLE) STORED AS JSON LOCATION '/data/load/' "
        "OPTIONS ('key_pattern' '{host}/{day}', 'from.host' 'capture', 'from.day' 'capture')"
    )
    found = sql("SELECT host, day, load FROM load WHERE host = 'a' ORDER BY day").rows()
    assert found == [{"host": "a", "day": date(2024, 1, number), "load": 1.5} for number in (1, 2)]
    sql("DROP TABLE load")


@pytest.mark.parametrize("stored", ["JSON", "JSONL", "CSV", "ARROW", "PARQUET"])
def test_inserted_columns_stand_under_the_names_that_values_have_for_them(
    sql_client: Client, sql: Any, stored: str
) -> None:
    prefix = f"/data/renamed_{stored.lower()}/"
    sql(
        f'CREATE OR REPLACE EXTERNAL TABLE renamed ("Id" BIGINT, name VARCHAR) STORED AS {stored} '
        f"LOCATION '{prefix}' OPTIONS ('from.Id' 'value:number', 'from.name' 'value:full_name')"
    )
    if stored == "JSON":
        sql_client.kv.put(f"{prefix}a", '{"number": 1, "full_name": "a"}')
    else:
        sql("INSERT INTO renamed VALUES (1, 'a')")
    sql("INSERT INTO renamed (name, \"Id\") VALUES ('b', 2)")
    assert sql('SELECT * FROM renamed ORDER BY "Id"').rows() == [{"Id": 1, "name": "a"}, {"Id": 2, "name": "b"}]
    sql("DROP TABLE renamed")


@pytest.mark.parametrize(
    ("definition", "inserted", "said"),
    [
        (
            "(host VARCHAR, n INT) STORED AS JSON {at} OPTIONS ('key_pattern' '{{host}}/x', 'from.host' 'capture')",
            "(n) VALUES (1)",
            "the keys of unreadable mean is said by its key_pattern",
        ),
        ("(k VARCHAR) STORED AS JSON {at} OPTIONS ('from.k' 'key')", "SELECT 'a'", "no column .* taken from values"),
        (
            "(a INT, b INT) STORED AS JSON {at} OPTIONS ('from.a' 'value:n', 'from.b' 'value:n')",
            "VALUES (1, 2)",
            "one field",
        ),
        ("(n INT, m INT) STORED AS JSON {at}", "(n, n) VALUES (1, 2)", "given twice"),
        ("(f DOUBLE) STORED AS JSON {at}", "VALUES (1.0), ('NaN'::double)", "the column f .* not finite"),
        ("(f DOUBLE[]) STORED AS JSONL {at}", "VALUES ([1.0, 'inf'::double])", "the column f .* not finite"),
        ("(s VARCHAR NOT NULL, n INT) STORED AS CSV {at}", "VALUES ('', 1)", "the column s has empty text"),
        ("(s VARCHAR) STORED AS CSV {at}", "VALUES (NULL), ('a')", "CSV of one column holds no NULL"),
    ],
)
def test_what_would_not_be_read_again_is_not_inserted(
    sql_client: Client, sql: Any, definition: str, inserted: str, said: str
) -> None:
    at = "LOCATION '/data/unreadable/'"
    sql(f"CREATE OR REPLACE EXTERNAL TABLE unreadable {definition.format(at=at)}")
    with pytest.raises(QueryFailed, match=said):
        sql(f"INSERT INTO unreadable {inserted}")
    assert list(sql_client.kv.scan("/data/unreadable/")) == []
    sql("DROP TABLE unreadable")


def test_null_and_finite_numbers_are_inserted_into_json(sql: Any) -> None:
    sql("CREATE EXTERNAL TABLE floats (f DOUBLE, l DOUBLE[]) STORED AS JSONL LOCATION '/data/floats/'")
    sql("INSERT INTO floats VALUES (NULL, NULL), (1.5, [2.5, NULL])")
    found = sql("SELECT * FROM floats ORDER BY f").rows()
    assert found == [{"f": 1.5, "l": [2.5, None]}, {"f": None, "l": None}]
    sql("DROP TABLE floats")


@pytest.mark.parametrize("format_", get_args(SqlFormat))
def test_a_statement_that_writes_has_no_rows(sql: Any, format_: SqlFormat) -> None:
    made = sql("CREATE OR REPLACE TABLE rowless AS SELECT 1 AS n", format=format_)
    assert made.arrow().num_rows == 0
    assert made.rows() == []
    sql("DROP TABLE rowless")


def test_values_that_others_have_put_are_tables(sql_client: Client, sql: Any) -> None:
    table = pa.table({"id": [1, 2], "name": ["a", "b"]})
    stream, parquet = BytesIO(), BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    pa.parquet.write_table(table, parquet)
    for stored, value in (
        ("ARROW", stream.getvalue()),
        ("PARQUET", parquet.getvalue()),
        ("CSV", b"id,name\n1,a\n2,b\n"),
        ("JSONL", b'{"id":1,"name":"a"}\n{"id":2,"name":"b"}\n'),
    ):
        sql_client.kv.put(f"/data/put/{stored}/1", value)
        sql(f"CREATE EXTERNAL TABLE put (id BIGINT, name VARCHAR) STORED AS {stored} LOCATION '/data/put/{stored}/'")
        assert sql("SELECT * FROM put ORDER BY id").arrow().to_pylist() == table.to_pylist(), stored
        sql("DROP TABLE put")


def test_a_table_is_as_it_was_at_a_revision(sql: Any) -> None:
    sql("CREATE TABLE then AS SELECT 1 AS n")
    before = sql("SELECT * FROM then").info.revision
    sql("INSERT INTO then VALUES (2)")
    assert sql("SELECT count(*) AS n FROM then", revision=before).rows() == [{"n": 1}]
    assert sql("SELECT count(*) AS n FROM then").rows() == [{"n": 2}]
    sql("DROP TABLE then")
    assert sql("SELECT count(*) AS n FROM then", revision=before).rows() == [{"n": 1}]
