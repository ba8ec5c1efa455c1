"""Users' tables: their definitions, and statements that make, fill and drop them as what is written for that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from msgspec import Struct

from jobs import _native, keys, records
from jobs.protocol.model import SqlFormat
from jobs.protocol.wire import MAX_WRITE_BYTES, MAX_WRITE_VALUES, TableWrite
from jobs.records import TableRecord
from jobs.store import MAX_VALUE_BYTES
from jobs.workers.sql.formats import distinct, writer

MAX_TABLES: Final = 1_000
"""That are listed."""
VALUE_BYTES: Final = 256 << 10
"""About what a value of several rows holds."""
NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")
_FORMATS: Final[dict[str, str]] = {
    "JSON": "json",
    "JSONL": "jsonl",
    "NDJSON": "jsonl",
    "CSV": "csv",
    "ARROW": "arrow",
    "PARQUET": "parquet",
}
_ENCODED: Final[dict[str, SqlFormat]] = {
    "json": "json",
    "jsonl": "json",
    "csv": "csv",
    "arrow": "arrow",
    "parquet": "parquet",
}
_JSON: Final = frozenset({"json", "jsonl"})
_IN_JSON: Final = re.compile(r" at line \d+ column \d+\Z")
"""A place in a definition, which is none in the statement."""
_ONE_ROW: Final = frozenset({"json"})
"""Formats whose values hold one row each."""
MANAGED: Final = "/data/tables/"


class TableError(Exception):
    """The statement cannot be carried out; the text says why."""


class UserTable(Struct, frozen=True):
    """A definition, and the revision at which it was last changed."""

    name: str
    record: TableRecord
    revision: int

    @property
    def definition(self) -> dict[str, Any]:
        made: dict[str, Any] = msgspec.json.decode(self.record.definition)
        return made


def find(snapshot: _native.SqlSnapshot, name: str) -> UserTable | None:
    key = keys.table(name)
    return next((table for table in _read(snapshot, key, 1) if keys.table(table.name) == key), None)


def all_tables(snapshot: _native.SqlSnapshot) -> list[UserTable]:
    return list(_read(snapshot, keys.TABLES, MAX_TABLES))


def _read(snapshot: _native.SqlSnapshot, prefix: bytes, limit: int) -> Iterator[UserTable]:
    for key, value, revision in snapshot.scan(prefix, limit=limit):
        yield UserTable(key[len(keys.TABLES) :].decode(), records.decode(TableRecord, value), revision)


def checked_name(name: str) -> str:
    """Return the name as it is stored. Raises TableError for one that no table can have."""
    plain = name.removeprefix("datafusion.").removeprefix("public.")
    if NAME.fullmatch(plain) is None:
        raise TableError(f"{name} is no name for a table: letters in lower case, digits and _, at most 63")
    if plain in _native.SQL_TABLES:
        raise TableError(f"{plain} is a table of the system")
    return plain


def external(statement: Mapping[str, Any]) -> str:
    """Return the definition that CREATE EXTERNAL TABLE asks for. Raises TableError."""
    format_ = _FORMATS.get(statement["format"])
    if format_ is None:
        raise TableError(f"{statement['format']} is no format of values: STORED AS {', '.join(_FORMATS)}")
    locations = statement["locations"]
    if len(locations) != 1 or not locations[0].startswith(keys.DATA.decode()):
        raise TableError("the location is one prefix of keys below /data/")
    if statement["partition_columns"]:
        raise TableError("PARTITIONED BY is not for these tables; the option key_pattern takes columns from keys")
    options = {name.lower().removeprefix("format."): value for name, value in statement["options"].items()}
    made: dict[str, Any] = {
        "prefix": locations[0],
        "format": format_,
        "columns": [_column(column, options) for column in statement["columns"]],
    }
    made |= {name: options.pop(name) for name in ("key_pattern", "on_error") if name in options}
    if format_ == "csv":
        header = options.pop("has_header", options.pop("header", "true")).lower()
        if header not in ("true", "false"):
            raise TableError(f"the option header is {header}; true or false is expected")
        made["csv"] = {"header": header == "true", "delimiter": options.pop("delimiter", ",")}
    if options:
        raise TableError(
            f"the option {next(iter(options))} is not known: from.COLUMN, key_pattern, on_error, header, delimiter"
        )
    if not made["columns"]:
        raise TableError("the table has no columns: CREATE EXTERNAL TABLE name (column type, …) STORED AS …")
    return msgspec.json.encode(made).decode()


def _column(column: Mapping[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """Return the definition of a column; the option `from.NAME` says where its values come from."""
    made = {"name": column["name"], "type": column["type"], "nullable": column.get("nullable", True)}
    source, _, detail = options.pop(f"from.{column['name'].lower()}", "value").partition(":")
    made["from"] = source
    if detail:
        made["field"] = detail
    return made


def managed(name: str, schema: pa.Schema) -> str:
    """Return the definition of a table that is made of a query's rows."""
    columns = [
        {"name": column, "type": sql_type(column, field.type), "nullable": True}
        for column, field in zip(distinct(schema.names), schema, strict=True)
    ]
    return msgspec.json.encode({"prefix": f"{MANAGED}{name}/", "format": "arrow", "columns": columns}).decode()


_TYPES: Final = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.uint8(): "TINYINT UNSIGNED",
    pa.uint16(): "SMALLINT UNSIGNED",
    pa.uint32(): "INT UNSIGNED",
    pa.uint64(): "BIGINT UNSIGNED",
    pa.float16(): "REAL",
    pa.float32(): "REAL",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.binary(): "BYTEA",
    pa.large_binary(): "BYTEA",
    pa.date32(): "DATE",
    pa.date64(): "DATE",
    pa.null(): "VARCHAR",
}
_DIGITS: Final = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Of the fractions of seconds."""


def sql_type(column: str, kind: pa.DataType) -> str:
    """Return a type in words of SQL. Raises TableError for one that no column of a table has."""
    if kind in _TYPES:
        return _TYPES[kind]
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        return f"TIMESTAMP({_DIGITS[kind.unit]})" + ("" if kind.tz is None else " WITH TIME ZONE")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{sql_type(column, kind.value_type)}[]"
    if pa.types.is_dictionary(kind):
        return sql_type(column, kind.value_type)
    raise TableError(f"the column {column} is {kind}, which tables do not hold; cast it, for instance to VARCHAR")


def checked(snapshot: _native.SqlSnapshot, definition: str) -> pa.Schema:
    """Return the schema of a table. Raises TableError for a definition that makes none."""
    try:
        return pa.schema(snapshot.user_table(definition, owner=None).schema)
    except ValueError as error:
        raise TableError(_IN_JSON.sub("", str(error))) from error


def as_stored(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with the types of a table's columns, in their order. Raises TableError."""
    arrays = [_as(column, field) for column, field in zip(rows.columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def for_insert(table: UserTable, schema: pa.Schema, given: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return the rows of an INSERT with the table's columns that its values hold, by their names there.

    Raises TableError.
    """
    fields = _fields(table)
    wanted = list(columns) or list(fields)
    unknown = next((column for column in wanted if column not in fields), None)
    if unknown is not None:
        raise TableError(f"the column {unknown} of {table.name} is not there, or not taken from values")
    if len(set(wanted)) != len(wanted):
        raise TableError(f"a column of {table.name} is given twice")
    if len(wanted) != given.num_columns:
        raise TableError(f"{given.num_columns} columns are given for the {len(wanted)} of {table.name}")
    by_name = dict(zip(wanted, given.columns, strict=True))
    arrays, made_schema = [], []
    for name, stored_as in fields.items():
        field = schema.field(name)
        column = by_name.get(name)
        made = pa.nulls(given.num_rows, field.type) if column is None else _as(column, field)
        if not field.nullable and made.null_count:
            raise TableError(f"the column {name} of {table.name} may not be null")
        arrays.append(made)
        made_schema.append(field.with_name(stored_as))
    return pa.Table.from_arrays(arrays, schema=pa.schema(made_schema))


def _fields(table: UserTable) -> dict[str, str]:
    """Return what the columns that values hold are called in them. Raises TableError where no row can be inserted."""
    definition = table.definition
    if definition.get("key_pattern") is not None:
        raise TableError(
            f"what the keys of {table.name} mean is said by its key_pattern, and those of INSERT mean nothing: "
            "put rows below its prefix instead"
        )
    columns = [column for column in definition["columns"] if column.get("from", "value") == "value"]
    fields = {column["name"]: column.get("field", column["name"]) for column in columns}
    if not fields:
        raise TableError(f"no column of {table.name} is taken from values")
    if len(set(fields.values())) != len(fields):
        raise TableError(f"two columns of {table.name} are taken from one field of its values")
    return fields


def _as(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise TableError(f"the column {field.name} takes {field.type}: {error}") from error


def values_of(definition: Mapping[str, Any], rows: pa.Table) -> list[bytes]:
    """Return the rows as values of the store. Raises TableError for more than one transaction takes."""
    if not rows.num_rows:
        return []
    format_ = definition["format"]
    csv = definition.get("csv", {})
    per_value = 1 if format_ in _ONE_ROW else max(1, rows.num_rows * VALUE_BYTES // max(1, rows.nbytes))
    if -(-rows.num_rows // per_value) > MAX_WRITE_VALUES:
        raise TableError(_too_much(rows.num_rows))
    found: list[bytes] = []
    total = 0
    for start in range(0, rows.num_rows, per_value):
        value = _encoded(format_, rows.slice(start, per_value), csv)
        total += len(value)
        if len(value) > MAX_VALUE_BYTES or total > MAX_WRITE_BYTES:
            raise TableError(_too_much(rows.num_rows))
        found.append(value)
    return found


def _encoded(format_: str, rows: pa.Table, csv: Mapping[str, Any]) -> bytes:
    data = bytearray()
    if format_ == "csv":
        rows = _with_text(rows)
        _check_csv(rows)
        options = pa.csv.WriteOptions(include_header=csv.get("header", True), delimiter=csv.get("delimiter", ","))
        sink = pa.BufferOutputStream()
        pa.csv.write_csv(rows, sink, options)
        return bytes(sink.getvalue())
    if format_ in _JSON:
        _check_json(rows)
        rows = _with_hexadecimal(rows)
    encoder = writer(_ENCODED[format_], rows.schema, data.extend)
    for batch in rows.to_batches():
        encoder.write(batch)
    encoder.close()
    return bytes(data).rstrip(b"\n") if format_ in _ONE_ROW else bytes(data)


def _with_hexadecimal(rows: pa.Table) -> pa.Table:
    """Return rows whose bytes are text, as tables of JSON have them."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_binary(field.type):
            text = [None if value is None else value.hex() for value in rows.column(index).to_pylist()]
            rows = rows.set_column(index, field.name, pa.array(text, pa.string()))
    return rows


def _with_text(rows: pa.Table) -> pa.Table:
    """Return rows whose bytes are text, as tables of CSV have them. Raises TableError for bytes that are none."""
    kinds = [pa.string() if pa.types.is_binary(field.type) else field.type for field in rows.schema]
    schema = pa.schema([field.with_type(kind) for field, kind in zip(rows.schema, kinds, strict=True)])
    try:
        return rows.cast(schema)
    except pa.ArrowException as error:
        raise TableError(f"CSV holds no bytes that are not UTF-8: {error}") from error


def _check_csv(rows: pa.Table) -> None:
    """Raise TableError for what would be read otherwise than it was written."""
    if rows.num_columns == 1 and rows.column(0).null_count:
        raise TableError("CSV of one column holds no NULL: its line would be empty, which is no row")
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if pa.types.is_string(field.type) and pc.any(pc.equal(column, "")).as_py():
            raise TableError(f"the column {field.name} has empty text, which in CSV is NULL")


def _check_json(rows: pa.Table) -> None:
    """Raise TableError for numbers that JSON does not have."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        numbers = column
        while pa.types.is_list(numbers.type):
            numbers = pc.list_flatten(numbers)
        if pa.types.is_floating(numbers.type) and pc.any(pc.invert(pc.is_finite(numbers))).as_py():
            raise TableError(f"the column {field.name} has a number that is not finite, which JSON does not hold")


def _too_much(rows: int) -> str:
    return (
        f"{rows} rows are more than one statement writes: at most {MAX_WRITE_VALUES} values and "
        f"{MAX_WRITE_BYTES >> 20} MiB; insert them in parts"
    )


def write_of(
    name: str,
    action: Any,
    table: UserTable | None,
    definition: str = "",
    *,
    values: Sequence[bytes] = (),
    managed: bool = False,
) -> TableWrite:
    return TableWrite(
        table=name,
        action=action,
        revision=0 if table is None else table.revision,
        definition=definition,
        is_managed=managed,
        values=list(values),
    )
