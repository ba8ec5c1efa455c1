"""What queries on the store cost: scans against the same rows in Arrow memory and in Parquet, look-ups, writes beside.

    python -m benchmarks.sql [--rows 1000000] [--turns 5]

The tables are: `kv`, with a key for each row; a table of a user over the same rows as JSON, a value each; and tables
of users over the same rows in values of Arrow, of Parquet and of lines of JSON of about half a megabyte. DataFusion
answers the same queries from Arrow in memory, from a file of Parquet, and from the same JSON in one file, as DuckDB
does. All turns are in one run and alternate; wall time comes first, then the least processor time. At the end a node
takes writes while another process has queries answered, and takes them without.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import uvloop
from datafusion import SessionConfig, SessionContext

from benchmarks.load import Connection, closed_loop, percentiles, request
from benchmarks.report import show
from jobs._native import SqlSnapshot, Store
from jobs.store import MAX_TXN_OPS, Put, Txn, encode_command
from jobs.testing import EmbeddedNode
from jobs.workers.sql.engine import give_way

LOT: Final = 20_000
LINES: Final = 10_000
"""Of JSON in a value."""
PARTITIONS: Final = 2
LOOK_UPS: Final = 1_000
COLUMNS: Final = [("id", "BIGINT"), ("grp", "VARCHAR"), ("amount", "DOUBLE"), ("day", "INTEGER")]
SCHEMA: Final = pa.schema([("id", pa.int64()), ("grp", pa.string()), ("amount", pa.float64()), ("day", pa.int32())])
QUERIES: Final = {
    "aggregate": "SELECT count(*), sum(amount), max(day) FROM {table}",
    "filter": "SELECT count(*), sum(amount) FROM {table} WHERE amount < 10 AND day >= 300",
    "group by": "SELECT grp, count(*), avg(amount) FROM {table} GROUP BY grp",
}
KV_QUERIES: Final = {
    "aggregate": "SELECT count(*), max(mod_revision), sum(version) FROM {table}",
    "filter": "SELECT count(*), max(key) FROM {table} WHERE mod_revision % 10 = 0 AND key > '/data/j/000005'",
    "filter by the table": "SELECT count(*), max(key) FROM {table} WHERE version = 1 AND create_revision > 100",
    "group by": "SELECT substr(key, 1, 11), count(*), max(version) FROM {table} GROUP BY 1",
    "group by, values": "SELECT substr(key, 1, 11), count(*), max(value) FROM {table} GROUP BY 1",
}
WRITER_PUT: Final = request("POST", "/v1/kv:put", {"key": "/data/bench", "value": {"text": "x" * 100}})
READER: Final = """
import sys
from benchmarks.sql import query_without_end
query_without_end(sys.argv[1])
"""


def rows_of(start: int, count: int) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {
            "id": list(numbers),
            "grp": [f"group-{number * 7919 % 100:03d}" for number in numbers],
            "amount": [number * 37 % 10_000 / 100 for number in numbers],
            "day": [number * 11 % 365 for number in numbers],
        },
        schema=SCHEMA,
    )


def encoded(table: pa.Table, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pa.parquet.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def fill(directory: Path, rows: int) -> None:
    """Write the tables."""
    store = Store(str(directory))

    def puts() -> Iterator[Put]:
        for start in range(0, rows, LOT):
            table = rows_of(start, min(LOT, rows - start))
            lines = [json.dumps(row, separators=(",", ":")).encode() for row in table.to_pylist()]
            for number, line in enumerate(lines, start):
                yield Put(b"/data/j/%09d" % number, line)
            for part in range(0, len(lines), LINES):
                yield Put(b"/data/l/%09d" % (start + part), b"\n".join(lines[part : part + LINES]))
            yield Put(b"/data/a/%09d" % start, encoded(table, "arrow"))
            yield Put(b"/data/p/%09d" % start, encoded(table, "parquet"))

    lot: list[Put] = []
    for put in puts():
        lot.append(put)
        if len(lot) == MAX_TXN_OPS:
            store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=tuple(lot))]))])
            lot = []
    store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=tuple(lot))]))])
    store.close()


def definition(prefix: str, kind: str) -> str:
    columns = [{"name": name, "type": sql_type} for name, sql_type in COLUMNS]
    return json.dumps({"prefix": prefix, "format": kind, "columns": columns})


def session() -> SessionContext:
    return SessionContext(SessionConfig().with_target_partitions(PARTITIONS))


def timed(context: SessionContext, query: str) -> float:
    began = time.perf_counter()
    context.sql(query).collect()
    return time.perf_counter() - began


def compare(
    context: SessionContext,
    queries: dict[str, str],
    tables: dict[str, str],
    turns: int,
    *,
    against: int = 2,
    others: dict[str, Callable[[str], object]] | None = None,
) -> None:
    """Measure every query on every table by turns, on some by another engine; the first of the tables are what all are
    held against."""
    answer = dict.fromkeys(tables, lambda query: context.sql(query).collect()) | (others or {})
    for name, query in queries.items():
        wall: dict[str, list[float]] = {table: [] for table in tables}
        processor: dict[str, list[float]] = {table: [] for table in tables}
        for _ in range(turns):
            for table in tables:
                gc.collect()
                # Processor time is that of all threads: other work on the machine changes it less.
                began_s, worked_s = time.perf_counter(), time.process_time()
                answer[table](query.format(table=table))
                wall[table].append(time.perf_counter() - began_s)
                processor[table].append(time.process_time() - worked_s)
        medians = {table: (statistics.median(wall[table]), min(processor[table])) for table in tables}
        for table, found in medians.items():
            ratios = "; ".join(
                " ".join(f"{found[kind] / held[kind]:.2f}×" for held in list(medians.values())[:against])
                for kind in (0, 1)
            )
            cost = f"{found[0] * 1_000:.0f} ms, {found[1] * 1_000:.0f} ms"
            show(f"{name}: {tables[table]}", cost, ratios)


def scans(directory: Path, rows: int, turns: int) -> None:
    snapshot = SqlSnapshot(str(directory / "store"))
    context = session()
    whole = pa.concat_tables([rows_of(start, min(LOT, rows - start)) for start in range(0, rows, LOT)])
    pa.parquet.write_table(whole, directory / "rows.parquet", compression="zstd", row_group_size=100_000)
    context.register_record_batches("memory", _partitioned(whole))
    context.register_parquet("file", str(directory / "rows.parquet"))
    lines = directory / "rows.json"
    with lines.open("w") as text:
        text.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in whole.to_pylist())
    context.register_json("lines", str(lines), schema=SCHEMA)
    other = duckdb.connect(config={"threads": PARTITIONS})
    columns = ", ".join(f"{name}: '{sql_type}'" for name, sql_type in COLUMNS)
    other.execute(
        f"CREATE VIEW duck AS SELECT * FROM read_json('{lines}', format='newline_delimited', columns={{{columns}}})"
    )
    for name, prefix, kind in (
        ("a", "/data/a/", "arrow"),
        ("p", "/data/p/", "parquet"),
        ("l", "/data/l/", "jsonl"),
        ("j", "/data/j/", "json"),
    ):
        context.register_table(name, snapshot.user_table(definition(prefix, kind), owner=None))
    tables = {
        "memory": "Arrow in memory", "file": "a file of Parquet", "lines": "a file of JSON",
        "duck": "a file of JSON, by DuckDB", "a": "values of Arrow", "p": "values of Parquet",
        "l": "values of lines of JSON", "j": "a value of JSON for each row",
    }  # fmt: skip
    duck: dict[str, Callable[[str], object]] = {"duck": lambda query: other.execute(query).fetchall()}
    show("— below: wall time, processor time", "", "against memory, Parquet, JSON, DuckDB; the same of processor time")
    compare(context, QUERIES, tables, turns, against=4, others=duck)

    context.register_table("kv", snapshot.table("kv", owner=None))
    context.register_view("keys", context.sql("SELECT * FROM kv WHERE key LIKE '/data/j/%'"))
    found = context.sql("SELECT * FROM keys").to_arrow_table()
    pa.parquet.write_table(found, directory / "keys.parquet", compression="zstd", row_group_size=100_000)
    context.register_record_batches("keys_memory", _partitioned(found))
    context.register_parquet("keys_file", str(directory / "keys.parquet"))
    names = {"keys_memory": "kv, in memory", "keys_file": "kv, in a file of Parquet", "keys": "kv"}
    compare(context, KV_QUERIES, names, turns)
    snapshot.close()


def _partitioned(table: pa.Table) -> list[list[pa.RecordBatch]]:
    batches = table.combine_chunks().to_batches(max_chunksize=8_192)
    return [batches[number::PARTITIONS] for number in range(PARTITIONS)]


def look_ups(directory: Path, rows: int) -> None:
    """One key, and ten by a prefix: in an open snapshot, and with a snapshot and a session for each query."""
    store = str(directory / "store")
    snapshot = SqlSnapshot(store)
    context = session()
    context.register_table("kv", snapshot.table("kv", owner=1_000))
    for name, clause in (("one key", "key = '/data/j/{:09d}'"), ("ten keys by a prefix", "key LIKE '/data/j/{:08d}%'")):
        kept, anew = [], []
        for number in range(LOOK_UPS):
            wanted = clause.format(number * 7919 % rows // (1 if "=" in clause else 10))
            query = f"SELECT key, value FROM kv WHERE {wanted}"
            kept.append(timed(context, query) * 1_000)
            began = time.perf_counter()
            own = SqlSnapshot(store)
            other = session()
            other.register_table("kv", own.table("kv", owner=1_000))
            other.sql(query).collect()
            own.close()
            anew.append((time.perf_counter() - began) * 1_000)
        for where, times in (("in an open snapshot", kept), ("with a snapshot and session of its own", anew)):
            p50, p99 = percentiles(times)
            show(f"{name}, {where}", f"p50 {p50:.2f} ms", f"p99 {p99:.2f} ms")
    snapshot.close()


def query_without_end(store: str) -> None:
    """Answer queries until the process is ended; for another process, with the priority of an engine's."""
    give_way()
    while True:
        snapshot = SqlSnapshot(store)
        context = SessionContext(SessionConfig().with_target_partitions(1))
        context.register_table("kv", snapshot.table("kv", owner=None))
        context.sql("SELECT substr(key, 1, 11), count(*), max(value) FROM kv GROUP BY 1").collect()
        snapshot.close()
        print("answered", flush=True)


async def writes(directory: Path, rows: int, turns: int) -> None:
    """Writes of a node with and without a process beside it that has queries answered, by turns."""
    with EmbeddedNode(directory / "node") as node:
        connection = await Connection().open(node.socket)
        for start in range(0, min(rows, 200_000), 500):
            ops = [
                {"put": {"key": f"/data/j/{number:09d}", "value": {"text": "x" * 80}}}
                for number in range(start, start + 500)
            ]
            await connection.ask("POST", "/v1/kv:txn", {"then": ops})
        connection.close()

        async def once(connection: Connection, number: int) -> None:
            await connection.send(WRITER_PUT)

        found: dict[str, list[float]] = {"alone": [], "beside": []}
        costs: dict[str, list[float]] = {"alone": [], "beside": []}
        latencies: dict[str, list[float]] = {"alone": [], "beside": []}
        for _ in range(turns):
            for turn in ("alone", "beside"):
                reader = None
                if turn == "beside":
                    reader = subprocess.Popen(
                        [sys.executable, "-c", READER, str(directory / "node" / "data" / "store")],
                        stdout=subprocess.PIPE,
                    )
                    assert reader.stdout is not None
                    reader.stdout.readline()
                before = processor_s(node.pid)
                rate, times = await closed_loop(node.socket, 4, 3.0, once)
                costs[turn].append((processor_s(node.pid) - before) / len(times) * 1e6)
                found[turn].append(rate)
                latencies[turn] += times
                if reader is not None:
                    reader.kill()
                    reader.communicate()
        for turn in ("alone", "beside"):
            p50, p99 = percentiles(latencies[turn])
            cost = f"{statistics.median(costs[turn]):.0f} µs of the node's processor time a put"
            said = f"p50 {p50:.2f} p99 {p99:.2f} ms, {cost}"
            show(f"puts of 4 clients, queries {turn}", f"{statistics.median(found[turn]):.0f}/s", said)
        for what, by_turn in (("rate", found), ("processor time of the node", costs)):
            alone, beside = (statistics.median(by_turn[turn]) for turn in ("alone", "beside"))
            show(f"puts with queries beside, {what}", f"{beside / alone:.2f}×", "without")


def processor_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=["scans", "look-ups", "writes"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.only != "writes":
            fill(directory / "store", options.rows)
        if options.only in (None, "scans"):
            scans(directory, options.rows, options.turns)
        if options.only in (None, "look-ups"):
            look_ups(directory, options.rows)
        if options.only in (None, "writes"):
            uvloop.run(writes(directory, options.rows, options.turns))


if __name__ == "__main__":
    main()
