"""The queries of TPC-H over tables of the store, against the answers of another engine over the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs import Client
from jobs.testing import EmbeddedNode
from jobs.workers.sql.tables import sql_type
from tests.support import tpch

SEED = 20_260_101
ROWS_A_VALUE = 1_000
FORMATS = {"region": "CSV", "nation": "JSONL", "supplier": "JSON", "part": "PARQUET"}
"""The others are Arrow."""


@pytest.fixture(scope="module")
def rows() -> dict[str, pa.Table]:
    return tpch.tables(SEED)


@pytest.fixture(scope="module")
def other(rows: dict[str, pa.Table]) -> Iterator[duckdb.DuckDBPyConnection]:
    """The rows in DuckDB."""
    with duckdb.connect() as connection:
        for name, table in rows.items():
            connection.register(f"given_{name}", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given_{name}")
        yield connection


@pytest.fixture(scope="module")
def loaded(rows: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The rows in tables of the store, in every format that values may have."""
    with EmbeddedNode(tmp_path_factory.mktemp("tpch") / "node", types=("sql",)) as node, node.client() as client:
        for name, table in rows.items():
            stored = FORMATS.get(name, "ARROW")
            columns = ", ".join(f"{column} {sql_type(column, kind)}" for column, kind in tpch.SCHEMAS[name].items())
            client.sql(f"CREATE EXTERNAL TABLE {name} ({columns}) STORED AS {stored} LOCATION '/data/tpch/{name}/'")
            for start in range(0, table.num_rows, ROWS_A_VALUE):
                part = table.slice(start, ROWS_A_VALUE)
                data = BytesIO()
                with pa.ipc.new_stream(data, part.schema) as writer:
                    writer.write_table(part)
                done = client.sql(
                    f"INSERT INTO {name} SELECT * FROM part_of", files={"part_of": ("arrow", data.getvalue())}
                )
                assert done.info.written is not None
                assert done.info.written.rows == part.num_rows
        yield client


def test_the_rows_are_all_there(loaded: Client, rows: dict[str, pa.Table]) -> None:
    for name, table in rows.items():
        found = loaded.sql(f"SELECT * FROM {name}").arrow().cast(table.schema)
        order = [(column, "ascending") for column in table.column_names[:4]]
        assert found.sort_by(order).equals(table.sort_by(order)), name


@pytest.mark.parametrize("number", tpch.QUERIES)
def test_the_answers_are_those_of_another_engine(loaded: Client, other: duckdb.DuckDBPyConnection, number: int) -> None:
    expected = other.execute(tpch.QUERIES[number]).fetchall()
    found = [tuple(row.values()) for row in loaded.sql(tpch.QUERIES[number], timeout_s=60).rows()]
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine) == len(theirs)
        assert all(map(_is_same, mine, theirs)), (mine, theirs)


def test_every_query_has_something_to_find(other: duckdb.DuckDBPyConnection) -> None:
    empty = [number for number, query in tpch.QUERIES.items() if not _has_answer(other.execute(query).fetchall())]
    assert not empty


def _has_answer(rows: list[tuple[Any, ...]]) -> bool:
    return bool(rows) and rows[0][0] is not None


def _is_same(mine: Any, theirs: Any) -> bool:
    """Engines round the quotients of decimals at other places."""
    if isinstance(theirs, Decimal | int | float) and mine is not None:
        return math.isclose(float(mine), float(theirs), rel_tol=1e-6, abs_tol=1e-6)
    return bool(mine == theirs)
