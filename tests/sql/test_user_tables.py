"""Tables of users: each format as typed columns, keys and parts of them too, and values that cannot be decoded."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from jobs._native import SqlSnapshot
from jobs.store import Op, Put
from tests.support.sqlstore import answer, open_session, plan, write

COLUMNS = [
    {"name": "id", "type": "BIGINT", "nullable": False},
    {"name": "name", "type": "VARCHAR"},
    {"name": "price", "type": "DECIMAL(10,2)"},
    {"name": "day", "type": "DATE"},
    {"name": "good", "type": "BOOLEAN"},
]
ROWS: list[dict[str, Any]] = [
    {"id": 1, "name": "one", "price": Decimal("1.50"), "day": date(2026, 1, 1), "good": True},
    {"id": 2, "name": None, "price": Decimal("-2.25"), "day": date(2026, 1, 2), "good": False},
    {"id": 3, "name": "ü, \"x\"", "price": None, "day": None, "good": None},
]  # fmt: skip
SCHEMA = pa.schema(
    [
        ("id", pa.int32()),
        ("more", pa.string()),
        ("name", pa.large_string()),
        ("price", pa.decimal128(12, 2)),
        ("day", pa.date32()),
        ("good", pa.bool_()),
    ]
)


def as_table() -> pa.Table:
    """The rows with another order of columns, one more of them, and types that are near."""
    return pa.Table.from_pylist([{**row, "more": "x"} for row in ROWS], schema=SCHEMA)


def as_json(row: dict[str, Any]) -> bytes:
    plain = {name: str(value) if isinstance(value, Decimal | date) else value for name, value in row.items()}
    return json.dumps({**plain, "other": [1, {"a": 2}]}).encode()


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "good", "price", "extra", "id", "day"], restval="e")
    writer.writeheader()
    for row in ROWS:
        writer.writerow(
            {
                name: ""
                if value is None
                else str(value).lower()
                if value in (True, False) and name == "good"
                else value
                for name, value in row.items()
            }
        )
    return text.getvalue().encode()


def as_stream(*, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_table(as_table())
    return sink.getvalue().to_pybytes()


def as_file() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(as_table())
    return sink.getvalue().to_pybytes()


def as_parquet(compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(as_table(), sink, compression=compression)
    return sink.getvalue().to_pybytes()


def define(kind: str, columns: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {"prefix": "/data/t/", "format": kind, "columns": columns or COLUMNS, **more}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("jsonl", b"\n".join(map(as_json, ROWS))),
        ("csv", as_csv()),
        ("arrow", as_stream()),
        ("arrow", as_stream(compression="zstd")),
        ("arrow", as_stream(compression="lz4")),
        ("arrow", as_file()),
        ("parquet", as_parquet("snappy")),
        ("parquet", as_parquet("zstd")),
        ("parquet", as_parquet("lz4")),
        ("parquet", as_parquet("none")),
    ],
)
def test_a_value_of_many_rows_becomes_columns(tmp_path: Path, kind: str, value: bytes) -> None:
    write(tmp_path, [Put(b"/data/t/a", value), Put(b"/data/t/b", value), Put(b"/data/u", b"other")])
    with open_session(tmp_path, t=define(kind)) as (_, context):
        rows = answer(context, "SELECT * FROM t ORDER BY id")
        assert rows == [row for row in ROWS for _ in range(2)]
        assert answer(context, "SELECT count(*) AS n FROM t") == [{"n": 6}]
        assert answer(context, "SELECT sum(price) AS s FROM t WHERE id > 1") == [{"s": Decimal("-4.50")}]
        assert answer(context, "SELECT name FROM t WHERE good LIMIT 1") == [{"name": "one"}]


def test_an_object_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, [Put(b"/data/t/%d" % row["id"], as_json(row)) for row in ROWS])
    columns = [
        *COLUMNS,
        {"name": "k", "type": "VARCHAR", "from": "key"},
        {"name": "r", "type": "BIGINT", "from": "revision"},
    ]
    columns.append({"name": "list", "type": "BIGINT[]", "field": "nothing"})
    with open_session(tmp_path, t=define("json", columns)) as (snapshot, context):
        rows = answer(context, "SELECT * FROM t ORDER BY id")
        assert rows == [{**row, "k": f"/data/t/{row['id']}", "r": snapshot.revision, "list": None} for row in ROWS]


def test_keys_and_their_parts_leave_ranges(tmp_path: Path) -> None:
    ops: list[Op] = [
        Put(b"/data/m/%s/2026-01-%02d" % (host, day), json.dumps({"x": day}).encode())
        for host in (b"a", b"ab", b"b")
        for day in range(1, 21)
    ]
    write(tmp_path, [*ops, Put(b"/data/m/readme", b"no row")])
    table = {
        "prefix": "/data/m/",
        "format": "json",
        "key_pattern": "{host}/{day}",
        "columns": [
            {"name": "host", "type": "VARCHAR", "from": "capture"},
            {"name": "on", "type": "DATE", "from": "capture", "field": "day"},
            {"name": "x", "type": "BIGINT"},
            {"name": "key", "type": "VARCHAR", "from": "key"},
        ],
    }
    with open_session(tmp_path, m=table) as (snapshot, context):
        assert answer(context, "SELECT count(*) AS n, sum(x) AS s FROM m") == [{"n": 60, "s": 630}]
        read = snapshot.rows_read
        for where, rows, looked_at in (
            ("host = 'a'", 20, 20),
            ("host IN ('a', 'b')", 40, 40),
            ("host > 'a'", 40, 61),
            ("key LIKE '/data/m/b/%'", 20, 20),
            ("host = 'a' AND \"on\" = DATE '2026-01-03'", 1, 20),
            ("host LIKE 'a%' AND x = 4", 2, 40),
        ):
            assert answer(context, f"SELECT count(*) AS n FROM (SELECT x FROM m WHERE {where})") == [{"n": rows}], where
            assert snapshot.rows_read - read <= looked_at, where
            read = snapshot.rows_read
        before = snapshot.bytes_read
        assert answer(context, "SELECT count(*) AS n FROM m WHERE host = 'b'") == [{"n": 20}]
        assert snapshot.bytes_read - before == 20 * len("/data/m/b/2026-01-01"), "the values are not needed"
        assert "UserTableScan" in plan(context, "SELECT * FROM m")


BAD = {
    "json": b'{"id": "no number"}',
    "jsonl": b'{"id": 5}\n{"id": tru}',
    "csv": b"id,name\n5,x\nfive,y\n",
    "arrow": as_stream()[:-40],
    "parquet": as_parquet("snappy")[:-9],
}
GOOD = {
    "json": b'{"id": 1}',
    "jsonl": b'{"id": 1}',
    "csv": b"id,name\n1,x\n",
    "arrow": as_stream(),
    "parquet": as_parquet("snappy"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_value_that_is_damaged_does_what_the_table_says(tmp_path: Path, kind: str) -> None:
    write(tmp_path, [Put(b"/data/t/1", GOOD[kind]), Put(b"/data/t/2", BAD[kind]), Put(b"/data/t/3", GOOD[kind])])
    columns = [*COLUMNS, {"name": "k", "type": "VARCHAR", "from": "key"}]
    failing = open_session(tmp_path, t=define(kind, columns))
    with failing as (_, context), pytest.raises(Exception, match="key /data/t/2: "):
        answer(context, "SELECT * FROM t")
    with open_session(tmp_path, t=define(kind, columns, on_error="skip")) as (_, context):
        keys = answer(context, "SELECT DISTINCT k FROM t ORDER BY k")
        assert keys == [{"k": "/data/t/1"}, {"k": "/data/t/3"}]
    with open_session(tmp_path, t=define(kind, columns, on_error="null")) as (_, context):
        assert answer(context, "SELECT id, name, k FROM t WHERE k = '/data/t/2'") == [
            {"id": None, "name": None, "k": "/data/t/2"}
        ]
        assert answer(context, "SELECT count(DISTINCT k) AS n FROM t WHERE id = 1") == [{"n": 2}]


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"1", b'{"id": 1}{"id": 2}', b'{"id": 1', b"\xff\xfe", b'{"id": null}', b"{}", b"x" * 1_000]
)
def test_what_is_not_one_object_is_an_error(tmp_path: Path, value: bytes) -> None:
    write(tmp_path, [Put(b"/data/t/1", value)])
    with open_session(tmp_path, t=define("json")) as (_, context), pytest.raises(Exception, match="key /data/t/1: "):
        answer(context, "SELECT * FROM t")


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_any_damage_of_a_binary_value_is_an_error_or_rows(tmp_path: Path, kind: str) -> None:
    """Whatever byte is changed or cut: never a crash of the process."""
    whole = GOOD[kind]
    damaged = [whole[:end] for end in range(0, len(whole), 13)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(0, len(whole), 3)]
    write(tmp_path, [Put(b"/data/t/%05d" % number, value) for number, value in enumerate(damaged)])
    columns = [{**column, "nullable": True} for column in COLUMNS]
    columns.append({"name": "k", "type": "VARCHAR", "from": "key"})
    with open_session(tmp_path, t=define(kind, columns, on_error="null")) as (_, context):
        rows = answer(context, "SELECT count(DISTINCT k) AS keys FROM t")
    assert rows[0]["keys"] > len(damaged) // 2


def test_a_value_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    many = pa.table({"id": pa.array([7] * 50_000_000, pa.int64())})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(many, sink, compression="zstd", row_group_size=50_000_000)
    value = sink.getvalue().to_pybytes()
    assert len(value) < 1 << 20
    write(tmp_path, [Put(b"/data/t/1", value)])
    with (
        open_session(tmp_path, t=define("parquet", COLUMNS[:1])) as (_, context),
        pytest.raises(Exception, match=r"key /data/t/1: .*holds more than"),
    ):
        answer(context, "SELECT sum(id) FROM t")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prefix": "/jobs/state/"}, "/data/"),
        ({"format": "xml"}, "xml"),
        ({"columns": []}, "columns"),
        ({"columns": [{"name": "a", "type": "NUMBER"}]}, "NUMBER"),
        ({"columns": [{"name": "a", "type": "BIGINT"}] * 2}, "twice"),
        ({"columns": [{"name": "a", "type": "BIGINT", "from": "key"}]}, "VARCHAR"),
        ({"columns": [{"name": "a", "type": "VARCHAR", "from": "capture"}]}, "key_pattern"),
        ({"key_pattern": "{a}{b}"}, "key_pattern"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_definition_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path, [Put(b"/data/t/1", b"{}")])
    snapshot = SqlSnapshot(str(tmp_path))
    with pytest.raises(ValueError, match=said):
        snapshot.user_table(json.dumps(define("json") | change), owner=1)
    snapshot.close()
