"""Runs one statement on a view of the store: tables, bounds, and the result in its format, or what it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
from datafusion import DataFrame, SessionContext, SQLOptions
from msgspec import Struct

from jobs import _native
from jobs.content import content_bytes
from jobs.errors import InvalidRequest, JobsError
from jobs.protocol.ids import Revision
from jobs.protocol.model import SqlPayload, SqlResult, SqlWritten
from jobs.protocol.wire import TableWrite
from jobs.workers.sql import tables
from jobs.workers.sql.complaints import complaint, placed
from jobs.workers.sql.formats import FirstRows, cast, columns_of, portable, read_file, register_file, writer
from jobs.workers.sql.frames import Bounds, Run
from jobs.workers.sql.sessions import Sessions
from jobs.workers.sql.tables import TableError

REPLICA_S: Final = 30.0
"""A node that is further behind than this is as good as lost to the query."""
_PAUSE_MIN_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.05
READ_ONLY: Final = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)
_LISTED: Final = "information_schema"
KNOWN_STATEMENTS: Final = 64
KNOWN_CHARS: Final = 4_096
_TYPES: Final = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    type(None): pa.null(),
}
"""Of parameters."""
_decode_payload = msgspec.json.Decoder(SqlPayload).decode


class QueryError(Exception):
    """The query cannot be answered; the text says why."""


class Output(Protocol):
    """Takes the result's bytes."""

    @property
    def count(self) -> int: ...
    def take(self, data: bytes) -> None:
        """Raises QueryError beyond the bound."""


class Answer(Struct, frozen=True):
    """What a statement came to, and what is to be written for it."""

    result: SqlResult
    write: TableWrite | None


class Query:
    """One statement, from its payload to its answer; closed once that is on its way, as letting go of the store takes
    a while."""

    def __init__(self, run: Run, store: str, sessions: Sessions, output: Output) -> None:
        """Raises InvalidRequest."""
        self._run = run
        self._store = store
        self._sessions = sessions
        self._output = output
        self._open = ExitStack()
        try:
            self._payload = _decode_payload(run.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the payload is not one of a query: {error}") from error
        given = self._payload.files
        self._names = {name.lower() for name in given}
        self._files = {
            name.lower(): read_file(file.format, content_bytes(file.content, f"$.files.{name}"), f"$.files.{name}")
            for name, file in given.items()
            if file.content.blob is None
        }
        self._blobs = {name: file.format for name, file in given.items() if file.content.blob is not None}
        taken = next((name for name in self._names if name in _native.SQL_TABLES), None)
        if taken is not None:
            raise InvalidRequest(f"{taken} is a table of the system", field="$.files", expected="another name")

    def execute(self, on_opened: Callable[[_native.SqlSnapshot], None]) -> Answer:
        """Run it. Raises QueryError, and JobsError for what the payload asks for in vain."""
        self._began_s = time.monotonic()
        self._planned_s = 0.0
        statement = parsed(self._payload.sql)
        self._snapshot = open_snapshot(self._store, self._payload, self._run.revision)
        self._open.callback(self._snapshot.close)
        if (ends := self._run.lease_ends) is not None:
            self._snapshot.know_leases(ends.at_ms, ends.ends_ms)
        on_opened(self._snapshot)
        try:
            return self._answer(statement)
        except TableError as error:
            raise QueryError(str(error)) from error
        except (QueryError, JobsError):
            raise
        except Exception as error:
            raise QueryError(complaint(str(error), self._payload.sql)) from error

    def close(self) -> None:
        """Let go of the store."""
        self._open.close()

    def _answer(self, statement: Mapping[str, Any]) -> Answer:
        match statement["kind"]:
            case "query" | "explain" | "show":
                return self._rows(statement)
            case "insert":
                return self._insert(statement)
            case "create_table_as":
                return self._create_as(statement)
            case "create_external_table":
                return self._create_external(statement)
            case "drop_table":
                return self._drop(statement)
        raise QueryError(
            f"{statement['what']} is not for queries, which read, or write by INSERT, CREATE and DROP TABLE"
        )

    # --- statements that read ---------------------------------------------------------------------------------------

    def _rows(self, statement: Mapping[str, Any]) -> Answer:
        schema, stream = self._begin(statement, statement["text"])
        rows, first = 0, FirstRows()
        encoder = writer(self._payload.format, schema, self._output.take)
        for batch in stream:
            rows += batch.num_rows
            if rows > self._run.bounds.max_rows:
                raise QueryError(f"the result has more than {self._run.bounds.max_rows} rows, its limit (max_rows)")
            if batch.num_rows:
                first.write(batch)
                encoder.write(batch)
        encoder.close()
        return Answer(self._result(schema, rows, first), None)

    def _begin(self, statement: Mapping[str, Any], text: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Plan a query; return the schema of its rows and the stream of them."""
        context, named = self._sessions.take(self._run.bounds), _named(statement)
        if named is not None:
            self._sessions.lighten(context, text)
        self._register(context, named)
        frame = context.sql_with_options(text, READ_ONLY, param_values=parameters(self._payload.parameters))
        stream = frame.execute_stream()
        self._planned_s = time.monotonic() - self._began_s
        batches = (item.to_pyarrow() for item in stream)
        first = next(batches, None)
        if first is None:
            return portable(_schema(context, frame)), iter(())
        schema = portable(first.schema)
        return schema, (cast(batch, schema) for batch in chain((first,), batches))

    def _register(self, context: SessionContext, named: set[str] | None) -> None:
        """Give a session the tables that are named, or all."""
        snapshot, owner = self._snapshot, self._run.owner
        for name in _native.SQL_TABLES:
            if named is None or name in named:
                context.register_table(name, snapshot.table(name, owner=owner))
        for name, table in self._files.items():
            batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
            context.register_record_batches(name, [batches])
        for name, format_ in self._blobs.items():
            register_file(context, name.lower(), format_, self._run.blobs[name])
        for found in self._users_tables(named):
            if found.name not in self._names:
                context.register_table(found.name, snapshot.user_table(found.record.definition, owner=owner))

    def _users_tables(self, named: set[str] | None) -> list[tables.UserTable]:
        if named is None:
            return tables.all_tables(self._snapshot)
        mine = sorted(named.difference(_native.SQL_TABLES))
        return [table for name in mine if (table := tables.find(self._snapshot, name)) is not None]

    def _result(
        self, schema: pa.Schema, rows: int = 0, first: FirstRows | None = None, written: SqlWritten | None = None
    ) -> SqlResult:
        return SqlResult(
            format=self._payload.format,
            columns=columns_of(schema),
            rows=rows,
            first_rows=[] if first is None else first.rows,
            bytes=self._output.count,
            revision=Revision(self._snapshot.revision),
            scanned_rows=self._snapshot.rows_read,
            scanned_bytes=self._snapshot.bytes_read,
            planned_s=self._planned_s,
            executed_s=time.monotonic() - self._began_s - self._planned_s,
            written=written,
        )

    # --- statements that write --------------------------------------------------------------------------------------

    def _collected(self, statement: Mapping[str, Any], text: str) -> pa.Table:
        """Return the rows that are to be written, which one transaction has to take."""
        schema, stream = self._begin(statement, text)
        batches, size = [], 0
        for batch in stream:
            size += batch.nbytes
            if size > self._run.bounds.memory_bytes:
                raise QueryError("the rows to write take more than the query's memory (memory_bytes)")
            batches.append(batch)
        return pa.Table.from_batches(batches, schema)

    def _insert(self, statement: Mapping[str, Any]) -> Answer:
        if statement["overwrite"]:
            raise QueryError("INSERT OVERWRITE is not for these tables")
        name = tables.checked_name(statement["target"])
        table = tables.find(self._snapshot, name)
        if table is None:
            raise QueryError(complaint(f"table '{name}' not found", self._payload.sql))
        given = self._collected(statement, statement["source"])
        schema = tables.checked(self._snapshot, table.record.definition)
        rows = tables.for_insert(table, schema, given, statement["columns"])
        values = tables.values_of(table.definition, rows)
        return self._written("insert", name, table, rows.num_rows, values=values)

    def _create_as(self, statement: Mapping[str, Any]) -> Answer:
        name, table = self._to_create(statement, statement["target"])
        if table is not None and statement["if_not_exists"]:
            return self._nothing(name)
        rows = self._collected(statement, statement["query"])
        definition = tables.managed(name, rows.schema)
        rows = tables.as_stored(rows, tables.checked(self._snapshot, definition))
        values = tables.values_of(msgspec.json.decode(definition), rows)
        return self._written("create", name, table, rows.num_rows, definition, values=values, managed=True)

    def _create_external(self, statement: Mapping[str, Any]) -> Answer:
        name, table = self._to_create(statement, statement["name"])
        if table is not None and statement["if_not_exists"]:
            return self._nothing(name)
        definition = tables.external(statement)
        tables.checked(self._snapshot, definition)
        return self._written("create", name, table, 0, definition)

    def _to_create(self, statement: Mapping[str, Any], given: str) -> tuple[str, tables.UserTable | None]:
        name = tables.checked_name(given)
        table = tables.find(self._snapshot, name)
        if table is not None and not statement["or_replace"] and not statement["if_not_exists"]:
            raise QueryError(f"there is a table {name} already; CREATE OR REPLACE takes its place")
        return name, table

    def _drop(self, statement: Mapping[str, Any]) -> Answer:
        name = tables.checked_name(statement["name"])
        table = tables.find(self._snapshot, name)
        if table is None and statement["if_exists"]:
            return self._nothing(name)
        if table is None:
            raise QueryError(complaint(f"table '{name}' not found", self._payload.sql))
        return self._written("drop", name, table, 0)

    def _nothing(self, name: str) -> Answer:
        return Answer(self._result(pa.schema([]), written=SqlWritten(action="none", table=name, rows=0)), None)

    def _written(
        self, action: Any, name: str, table: tables.UserTable | None, rows: int, definition: str = "", **how: Any
    ) -> Answer:
        written = SqlWritten(action=action, table=name, rows=rows)
        write = tables.write_of(name, action, table, definition, **how)
        return Answer(self._result(pa.schema([]), written=written), write)


def _named(statement: Mapping[str, Any]) -> set[str] | None:
    """Return the tables that a statement mentions; None where it may list all."""
    named = {str(name).removeprefix("datafusion.").removeprefix("public.") for name in statement["tables"]}
    return None if statement["kind"] == "show" or any(name.startswith(_LISTED) for name in named) else named


def _schema(context: SessionContext, frame: DataFrame) -> pa.Schema:
    """Return the schema of a query that has no rows, with the types that planning has given it."""
    return context.create_dataframe_from_logical_plan(frame.optimized_logical_plan()).schema()


def parsed(sql: str) -> Mapping[str, Any]:
    """Return what the only statement of a text is. Raises QueryError."""
    return _known(sql) if len(sql) <= KNOWN_CHARS else _parsed(sql)


def _parsed(sql: str) -> Mapping[str, Any]:
    try:
        statements = _native.sql_parse(sql)
    except _native.SqlError as error:
        text = complaint(str(error), sql)
        where = f"{placed(error.line, error.column, None)}: " if error.line and not text.startswith("line ") else ""
        raise QueryError(where + text) from error
    if len(statements) != 1:
        raise QueryError(f"the text has {len(statements)} statements; a query is one")
    return statements[0]


_known = lru_cache(KNOWN_STATEMENTS)(_parsed)
"""Those with parameters come again and again; the parser takes a thread with a large stack for each."""


def open_snapshot(store: str, payload: SqlPayload, reached: int) -> _native.SqlSnapshot:
    """Return the view that the query reads; wait until this node's replica has applied what it has to show.

    `reached` is the leader's revision when the query was given to this worker. Raises QueryError.
    """
    wanted = payload.revision
    if wanted is not None and wanted > reached:
        raise QueryError(f"revision {wanted} has not been reached; the newest is {reached}")
    least = 0 if payload.consistency == "stale" else reached if wanted is None else wanted
    until_s = time.monotonic() + REPLICA_S
    pause_s = _PAUSE_MIN_S
    while True:
        try:
            snapshot = _native.SqlSnapshot(store, revision=wanted or 0)
            if snapshot.revision >= least:
                return snapshot
            snapshot.close()
        except _native.FutureRevisionError:
            pass
        except _native.CompactedError as error:
            raise QueryError(f"revision {wanted} is no longer kept: {error}") from error
        except _native.NativeError as error:
            raise QueryError(f"the store cannot be read: {error}") from error
        if time.monotonic() > until_s:
            raise QueryError(f"the worker's node has not seen revision {least} within {REPLICA_S:g} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def warm_up(sessions: Sessions) -> None:
    """Make what the first query would have to wait for."""
    bounds = Bounds(max_rows=1, max_bytes=1 << 10, memory_bytes=1 << 20, spill_bytes=1 << 20)
    statement = "SELECT $1"
    frame = sessions.take(bounds).sql_with_options(statement, READ_ONLY, param_values=parameters([1]))
    for item in frame.execute_stream():
        FirstRows().write(item.to_pyarrow())


def parameters(given: list[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by the names that they have in the statement."""
    if isinstance(given, Mapping):
        return {name: _scalar(value) for name, value in given.items()}
    return {str(number): _scalar(value) for number, value in enumerate(given, 1)}


def _scalar(value: Any) -> pa.Scalar:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 63:
        return pa.scalar(value, pa.uint64())
    # Without a type Arrow looks for one, and searches for modules that may have made the value.
    return pa.scalar(value, _TYPES.get(type(value)))
