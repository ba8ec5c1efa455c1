"""Rows as bytes and back: results in the formats that can be asked for, and files as tables."""

from __future__ import annotations

import datetime
import decimal
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datafusion import SessionContext

from jobs.errors import InvalidRequest
from jobs.protocol.model import SqlColumn, SqlFormat

FIRST_ROWS: Final = 20
FIRST_BYTES: Final = 16 << 10
MAX_COLUMNS: Final = 1_000
MAX_NAME_CHARS: Final = 128
"""What a result tells of its columns is small; the rows themselves have all of them, and all of their names."""
SLICE_ROWS: Final = 4_096
"""Rows that are turned into Python's values at a time."""
_PARQUET_GROUP_ROWS: Final = 128 << 10


class Writer(Protocol):
    """Encodes batches of one schema."""

    def write(self, batch: pa.RecordBatch) -> None: ...
    def close(self) -> None:
        """Write what is left."""


class Sink(io.RawIOBase):
    """A file to write to, which passes on what it is given."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self._take = take
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._take(piece)
        self._written += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._written


def portable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with types that every reader knows, in place of views and run ends."""
    return pa.schema([pa.field(field.name, _portable(field.type), field.nullable) for field in schema])


def _portable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_run_end_encoded(kind):
        return _portable(kind.value_type)
    return kind


def writer(format_: SqlFormat, schema: pa.Schema, take: Callable[[bytes], None]) -> Writer:
    """Return what encodes batches of a schema and gives the bytes to `take`."""
    makers: dict[SqlFormat, Callable[[pa.Schema, Sink], Writer]]
    makers = {"arrow": _Arrow, "parquet": _Parquet, "json": _Json, "csv": _Csv}
    return makers[format_](schema, Sink(take))


class _Arrow:
    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        self._writer = pa.ipc.new_stream(sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Parquet:
    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        self._writer = pa.parquet.ParquetWriter(sink, schema)
        self._schema = schema
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _PARQUET_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        """Write what is held as one group of rows: many small ones make a large file."""
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
            self._held, self._rows = [], 0


class _Csv:
    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        plain = pa.schema([pa.field(field.name, _flat(field.type)) for field in schema])
        self._writer = pa.csv.CSVWriter(sink, plain)
        self._schema = plain

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [
            _as_text(column) if pa.types.is_nested(column.type) else column.cast(field.type)
            for column, field in zip(batch.columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _flat(kind: pa.DataType) -> pa.DataType:
    """Return the type as which values are written in CSV."""
    known = pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind)
    return kind if known and not pa.types.is_interval(kind) and not pa.types.is_duration(kind) else pa.string()


def _as_text(column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else _json_text(value) for value in values_of(column)], pa.string())


class _Json:
    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        self._names = distinct(schema.names)
        self._sink = sink

    def write(self, batch: pa.RecordBatch) -> None:
        for rows in rows_of(batch):
            self._sink.write(_encode_lines([dict(zip(self._names, row, strict=True)) for row in rows]))

    def close(self) -> None:
        pass


def distinct(names: list[str]) -> list[str]:
    """Return names that differ: those that stood there before are numbered."""
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        candidate, number = name, 1
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate)
        found.append(candidate)
    return found


def rows_of(batch: pa.RecordBatch) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows as values of JSON, in bounded lots."""
    for start in range(0, batch.num_rows, SLICE_ROWS):
        part = batch.slice(start, SLICE_ROWS)
        columns = [values_of(column) for column in part.columns]
        yield list(zip(*columns, strict=True)) if columns else [()] * part.num_rows


def values_of(column: pa.Array) -> list[Any]:
    """Return the values as JSON has them; times as text of ISO 8601, with all their digits."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return [_iso(value) for value in _text_of_times(column)]
    if pa.types.is_time(kind):
        return _listed(column.cast(pa.string()))
    if pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return [None if value is None else str(value) for value in _lenient(column)]
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        return [_plain(value) for value in _lenient(column)]
    if pa.types.is_floating(kind):
        return [None if value is None or not math.isfinite(value) else value for value in column.to_pylist()]
    if kind in _AS_THEY_ARE:
        return _listed(column)
    return [_plain(value) for value in column.to_pylist()]


_AS_THEY_ARE: Final = frozenset(
    {pa.string(), pa.large_string(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()}
    | {pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.null()}
)


def _text_of_times(column: pa.Array) -> list[str | None]:
    if column.type.tz is None:
        return _listed(column.cast(pa.string()))
    try:
        return _listed(column.cast(pa.string()))
    except pa.ArrowException:  # a zone that is not known here: as UTC
        return _listed(column.cast(pa.timestamp(column.type.unit, "UTC")).cast(pa.string()))


def _listed(column: pa.Array) -> list[Any]:
    found: list[Any] = column.to_pylist()
    return found


def _iso(text: str | None) -> str | None:
    return None if text is None else text.replace(" ", "T", 1)


def _lenient(column: pa.Array) -> list[Any]:
    """Return Python's values, whose times have no nanoseconds."""
    try:
        return _listed(column)
    except ValueError:
        return [str(value) if value.is_valid else None for value in column]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return _bytes_text(value)
    return value


def _bytes_text(value: bytes) -> str:
    """Return bytes as text: what is UTF-8 as it is, the rest in hexadecimal."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "\\x" + value.hex()


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_encode_lines: Final = msgspec.json.Encoder().encode_lines


def columns_of(schema: pa.Schema) -> list[SqlColumn]:
    """Return the first columns; a name may be a whole expression, and is cut."""
    return [SqlColumn(name=_cut(field.name), type=_cut(str(field.type))) for field in list(schema)[:MAX_COLUMNS]]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_NAME_CHARS else text[: MAX_NAME_CHARS - 1] + "…"


class FirstRows:
    """Keeps the beginning of a result."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._bytes = 0
        self._is_full = False

    def write(self, batch: pa.RecordBatch) -> None:
        if self._is_full or not batch.num_rows:
            return
        for rows in rows_of(batch.slice(0, FIRST_ROWS - len(self.rows))):
            for row in rows:
                self._bytes += len(msgspec.json.encode(row))
                if self._bytes > FIRST_BYTES:
                    self._is_full = True
                    return
                self.rows.append(list(row))
        self._is_full = len(self.rows) >= FIRST_ROWS


def read_file(format_: SqlFormat, data: bytes, field: str) -> pa.Table:
    """Return a file as a table. Raises InvalidRequest for one that is none."""
    try:
        if format_ == "csv":
            return pa.csv.read_csv(io.BytesIO(data))
        if format_ == "json":
            return pa.json.read_json(io.BytesIO(data))
        if format_ == "parquet":
            return pa.parquet.read_table(io.BytesIO(data))
        with _arrow_reader(data) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidRequest(f"the file cannot be read as {format_}: {error}", field=field) from error


def register_file(context: SessionContext, name: str, format_: SqlFormat, path: str) -> None:
    """Make a table of a file, or of all files of a directory, which the query reads as it needs them.

    Raises InvalidRequest for what is none.
    """
    place = f"{path}/" if os.path.isdir(path) else path
    try:
        if format_ == "csv":
            context.register_csv(name, place, file_extension="")
        elif format_ == "json":
            context.register_json(name, place, file_extension="")
        elif format_ == "parquet":
            context.register_parquet(name, place, file_extension="")
        else:
            tables = [_mapped(file) for file in _files_of(path)]
            batches = [batch for table in tables for batch in table.to_batches()]
            context.register_record_batches(name, [batches or _no_rows(tables)])
    except Exception as error:
        raise InvalidRequest(
            f"the blob cannot be read as {format_}: {error!s:.500}", field=f"$.files.{name}"
        ) from error


def _files_of(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(above, name) for above, _, names in os.walk(path) for name in names)


def _mapped(path: str) -> pa.Table:
    """Return an IPC file or stream as a table that stays in the file."""
    with _arrow_reader(pa.memory_map(path).read_buffer()) as reader:
        return reader.read_all()


def _no_rows(tables: Sequence[pa.Table]) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist([], schema=tables[0].schema)]


def _arrow_reader(data: bytes | pa.Buffer) -> Any:
    """Return a reader of an IPC stream, or of an IPC file."""
    if bytes(memoryview(data)[:6]) == b"ARROW1":
        return pa.ipc.open_file(pa.BufferReader(data))
    return pa.ipc.open_stream(pa.BufferReader(data))


def cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch with the types of a schema of as many columns."""
    if batch.schema.types == schema.types:
        return pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    columns = [
        column if column.type == field.type else _cast(column, field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column.cast(kind)
