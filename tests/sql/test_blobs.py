"""Blobs as tables: read where the worker has them, by each format, whole directories of files too."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from jobs import Client, InputFile, QueryFailed, SqlFile, SqlLimits, sql_job
from jobs.errors import InvalidRequest, NotFound
from jobs.protocol.model import Reason, SqlFormat
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl

ROWS = pa.table({"name": ["a", "b", "c", None], "n": [1, 2, 3, 4]})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("sqlblobs") / "node", types=("sql",)) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with Client(str(node.socket)) as made:
        yield made


def parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(rows, sink)
    return sink.getvalue()


def csv(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(rows, sink)
    return sink.getvalue()


def json(rows: pa.Table) -> bytes:
    return b"".join(dumps(row).encode() + b"\n" for row in rows.to_pylist())


def stream(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def ipc_file(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


ENCODERS: dict[str, tuple[SqlFormat, Callable[[pa.Table], bytes]]] = {
    "parquet": ("parquet", parquet),
    "csv": ("csv", csv),
    "json": ("json", json),
    "arrow stream": ("arrow", stream),
    "arrow file": ("arrow", ipc_file),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_blob_is_a_table_in_each_format(client: Client, name: str) -> None:
    format_, encode = ENCODERS[name]
    blob = client.blobs.put(encode(ROWS)).hash
    found = client.sql("SELECT name, n * 2 AS d FROM T ORDER BY n", files={"T": (format_, InputFile(blob=blob))})
    assert found.rows() == [{"name": n, "d": d} for n, d in (("a", 2), ("b", 4), ("c", 6), (None, 8))]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_collection_is_one_table_of_all_its_files(client: Client, tmp_path: Path, name: str) -> None:
    format_, encode = ENCODERS[name]
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "1").write_bytes(encode(ROWS.slice(0, 2)))
    (tmp_path / "data" / "below" / "2").write_bytes(encode(ROWS.slice(2)))
    blob = client.blobs.put_directory(tmp_path / "data").hash
    found = client.sql("SELECT count(*) AS c, sum(n) AS s FROM t", files={"t": (format_, InputFile(blob=blob))})
    assert found.rows() == [{"c": 4, "s": 10}]


def test_blobs_and_sent_files_and_the_store_are_joined(client: Client) -> None:
    blob = client.blobs.put(parquet(ROWS)).hash
    found = client.sql(
        "SELECT t.n, s.word FROM t JOIN s ON t.name = s.name ORDER BY t.n",
        files={"t": ("parquet", InputFile(blob=blob)), "s": ("csv", b"name,word\na,one\nb,two\n")},
    )
    assert [row["word"] for row in found.rows()] == ["one", "two"]


def test_a_query_refers_to_its_blob_and_what_is_missing_is_refused(client: Client) -> None:
    blob = client.blobs.put(parquet(ROWS)).hash
    job = client.submit(sql_job("SELECT 1 FROM t", files={"t": ("parquet", InputFile(blob=blob))})).job.id
    assert job in [one.name for one in client.blobs.stat(blob).references]
    with pytest.raises(NotFound) as missing:
        client.submit(sql_job("SELECT 1", files={"t": ("csv", InputFile(blob="0" * 64))}))
    assert missing.value.field == "$.payload.files['t'].content.blob"
    with pytest.raises(InvalidRequest):
        client.submit(sql_job("SELECT 1", files={"t": SqlFile(format="csv", content=InputFile(text="a", blob=blob))}))


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_what_is_no_such_file_fails_the_query_by_its_name(client: Client, format_: SqlFormat) -> None:
    blob = client.blobs.put(b"neither of them\n" * 100).hash
    with pytest.raises(QueryFailed) as failed:
        client.sql("SELECT * FROM t", files={"t": (format_, InputFile(blob=blob))})
    assert failed.value.reason in (Reason.INVALID_PAYLOAD, Reason.QUERY_ERROR)
    assert f"cannot be read as {format_}" in failed.value.detail


def test_nothing_is_written_to_a_blob(client: Client) -> None:
    blob = client.blobs.put(csv(ROWS)).hash
    for statement in ("INSERT INTO t VALUES ('x', 1)", "DROP TABLE t"):
        with pytest.raises(QueryFailed):
            client.sql(statement, files={"t": ("csv", InputFile(blob=blob))})
    assert client.blobs.get(blob) == csv(ROWS)


def test_a_large_file_is_read_within_the_memory_of_the_query(client: Client) -> None:
    """Given a file several times as large as what the query may hold."""
    rows = pa.table({"n": list(range(2_000_000)), "text": ["x" * 20] * 2_000_000})
    sink = io.BytesIO()
    pa.parquet.write_table(rows, sink, compression="none", use_dictionary=False)
    blob = client.blobs.put(sink.getvalue()).hash
    found = client.sql(
        "SELECT count(*) AS c, max(n) AS m FROM t WHERE text LIKE 'x%'",
        files={"t": ("parquet", InputFile(blob=blob))},
        limits=SqlLimits(memory_bytes=16 << 20, spill_bytes=0),
    )
    assert found.rows() == [{"c": 2_000_000, "m": 1_999_999}]


def test_the_command_takes_a_blob_as_a_table(node: EmbeddedNode, client: Client) -> None:
    blob = client.blobs.put(parquet(ROWS)).hash
    done = jobctl(node, "sql", "--format", "csv", "--table", f"t=blob:{blob}.parquet", "SELECT max(n) AS m FROM t")
    assert (done.returncode, done.stdout.decode().split()) == (0, ['"m"', "4"]), done
    wrong = jobctl(node, "sql", "--table", "t=blob:xyz.csv", "SELECT 1")
    assert "no hash of a blob" in wrong.stderr.decode()
