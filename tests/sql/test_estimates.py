"""How many rows a scan says to find: exactly where they are few, about where they are many; and what comes of it."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from datafusion import SessionContext

from jobs.store import Delete, Put
from tests.support.sqlstore import answer, open_session, plan, write

COUNT = 30_000
SHAPES: dict[str, Callable[[random.Random, int], str]] = {
    "numbers": lambda chance, number: f"{number:09d}",
    "hexadecimal": lambda chance, number: f"{chance.getrandbits(64):016x}",
    "uuids": lambda chance, number: str(uuid.UUID(int=chance.getrandbits(128), version=4)),
    "two parts": lambda chance, number: f"host-{number % 50:02d}/2026-{number // 50 % 12 + 1:02d}-{number:05d}",
}


def estimates(context: SessionContext, query: str) -> list[tuple[str, int]]:
    """Return what each scan of a query says: whether it is exact (=) or about (~), and the rows."""
    found = re.findall(r"rows([=~])(\d+), partitions", plan(context, query))
    return [(sign, int(rows)) for sign, rows in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_many_rows_are_told_about(tmp_path: Path, shape: str) -> None:
    chance = random.Random(7)
    write(tmp_path, [Put(f"/data/t/{SHAPES[shape](chance, number)}".encode(), b"v") for number in range(COUNT)])
    # What else there is says nothing of this table.
    write(tmp_path, [Put(b"/data/u/%05d" % number, b"v") for number in range(COUNT)])
    with open_session(tmp_path) as (_, context):
        for where in ("key LIKE '/data/t/%'", "key > '/data/t/' AND key < '/data/t0'"):
            ((sign, rows),) = estimates(context, f"SELECT value FROM kv WHERE {where}")
            assert (sign, COUNT / 2 < rows < COUNT * 2) == ("~", True), (where, rows)
        truth = answer(context, "SELECT count(*) AS n FROM kv WHERE key BETWEEN '/data/t/3' AND '/data/t/b'")[0]["n"]
        ((_, rows),) = estimates(context, "SELECT * FROM kv WHERE key BETWEEN '/data/t/3' AND '/data/t/b'")
        assert truth / 2 <= rows <= truth * 2 + 1, (rows, truth)


def test_few_rows_are_counted_and_conditions_are_tried(tmp_path: Path) -> None:
    ops = [Put(b"/data/t/%05d" % number, b"%d" % number) for number in range(COUNT)]
    write(tmp_path, ops)
    write(tmp_path, [Put(op.key, b"again") for op in ops if int(op.key[-5:]) % 10 == 0])
    with open_session(tmp_path, owner=1) as (snapshot, context):
        assert estimates(context, "SELECT * FROM kv") == [("~", pytest.approx(COUNT, rel=0.3))]
        ((_, rows),) = estimates(context, "SELECT key FROM kv WHERE version = 2")
        assert COUNT / 20 < rows < COUNT / 5
        assert estimates(context, "SELECT * FROM kv WHERE key LIKE '/data/t/001%'") == [("~", 100)]
        assert snapshot.rows_read == 0, "planning reads nothing that is counted as read"


def test_a_table_is_counted_exactly_as_far_as_its_keys_are_rows(tmp_path: Path) -> None:
    write(tmp_path, [Put(b"/data/t/%03d" % number, b'{"x": 1}') for number in range(500)])
    table = {"prefix": "/data/t/", "format": "json", "columns": [{"name": "x", "type": "BIGINT"}]}
    old = write(tmp_path, [])
    write(tmp_path, [Delete(b"/data/t/007"), Put(b"/data/t/9", b"{}")])
    with open_session(tmp_path, t=table) as (_, context):
        assert estimates(context, "SELECT * FROM t") == [("=", 500)]
        assert answer(context, "SELECT count(*) AS n FROM t") == [{"n": 500}]
    with open_session(tmp_path, revision=old, t=table) as (_, context):
        assert estimates(context, "SELECT * FROM t") == [("~", 500)]
        assert answer(context, "SELECT count(*) AS n FROM t") == [{"n": 500}]
    with open_session(tmp_path, t={**table, "on_error": "skip"}) as (_, context):
        assert estimates(context, "SELECT * FROM t") == [("~", 500)]


@pytest.mark.parametrize("kind", ["arrow", "parquet", "jsonl", "csv"])
def test_values_of_many_rows_are_tried(tmp_path: Path, kind: str) -> None:
    table = pa.table({"x": list(range(1_000))})
    sink = pa.BufferOutputStream()
    if kind == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "parquet":
        pa.parquet.write_table(table, sink)
    elif kind == "csv":
        sink.write("\n".join(["x", *map(str, range(1_000))]).encode())
    else:
        sink.write("\n".join(json.dumps({"x": x}) for x in range(1_000)).encode())
    value = sink.getvalue().to_pybytes()
    write(tmp_path, [Put(b"/data/t/%03d" % number, value) for number in range(20)])
    definition = {"prefix": "/data/t/", "format": kind, "columns": [{"name": "x", "type": "BIGINT"}]}
    with open_session(tmp_path, t=definition) as (_, context):
        assert estimates(context, "SELECT * FROM t") == [("~", 20_000)]


@pytest.mark.parametrize("order", ["big JOIN small", "small JOIN big"])
def test_a_join_is_built_on_the_smaller_table(tmp_path: Path, order: str) -> None:
    """Both have more keys than are counted one by one: it takes an estimate to tell them apart."""
    write(tmp_path, [Put(b"/data/big/%06d" % number, b'{"id": %d}' % number) for number in range(40_000)])
    write(tmp_path, [Put(b"/data/small/%06d" % number, b'{"id": %d}' % number) for number in range(4_000)])
    columns = [{"name": "id", "type": "BIGINT"}]
    tables = {name: {"prefix": f"/data/{name}/", "format": "json", "columns": columns} for name in ("big", "small")}
    with open_session(tmp_path, **tables) as (_, context):
        query = f"SELECT count(*) AS n FROM {order} ON big.id = small.id"
        assert answer(context, query) == [{"n": 4_000}]
        scans = re.findall(r"keys=\[/data/(\w+)/", plan(context, query))
        assert scans == ["small", "big"], "the first is what the hash table is made of"
