"""Queries: the job that one is, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

import msgspec

from jobs.client.failures import QueryFailed
from jobs.client.submission import JobOptions, to_file
from jobs.protocol.model import (
    InputFile,
    JobResult,
    JobState,
    Reason,
    SqlColumn,
    SqlFile,
    SqlFormat,
    SqlJob,
    SqlLimits,
    SqlPayload,
    SqlResult,
    SqlValue,
)

if TYPE_CHECKING:
    import pandas
    import pyarrow

INLINE_BYTES: Final = 64 << 10
"""A result that is no longer comes with the job's."""


class SqlOptions(JobOptions, total=False):
    """What a query can be given besides; meanings and defaults are those of `SqlPayload`."""

    parameters: Sequence[SqlValue] | Mapping[str, SqlValue]
    consistency: Literal["linearizable", "stale"]
    revision: int | None
    format: SqlFormat
    limits: SqlLimits
    files: Mapping[str, SqlFile | tuple[SqlFormat, bytes | InputFile]]
    """Name of a table → its format and content."""


def sql_job(statement: str, **options: Unpack[SqlOptions]) -> SqlJob:
    """Return a job that runs a statement; `parameters` are the values for `$1`, `$2` or, by name, for `$name`."""
    fields: dict[str, Any] = dict(options)
    payload = {name: fields.pop(name) for name in SqlPayload.__struct_fields__ if name in fields}
    given = payload.get("parameters", ())
    payload["parameters"] = dict(given) if isinstance(given, Mapping) else list(given)
    payload["files"] = {name: _file(held) for name, held in options.get("files", {}).items()}
    return SqlJob(payload=SqlPayload(sql=statement, **payload), **fields)


def _file(held: SqlFile | tuple[SqlFormat, bytes | InputFile]) -> SqlFile:
    if isinstance(held, SqlFile):
        return held
    format_, data = held
    return SqlFile(format=format_, content=to_file(data))


class QueryResult:
    """What a query came to."""

    def __init__(self, result: JobResult, info: SqlResult, data: bytes) -> None:
        self.job = result.id
        self.result = result
        """The job's."""
        self.info = info
        """Columns, sizes, what was read and how long that took."""
        self.data = data
        """All rows, in the format that was asked for."""

    @property
    def columns(self) -> list[SqlColumn]:
        return self.info.columns

    def arrow(self) -> pyarrow.Table:
        """Return the rows as a `pyarrow.Table`, without rows and columns for a statement that writes."""
        import pyarrow as pa

        if self.info.written is not None:
            return pa.table({})
        if self.info.format == "arrow":
            return pa.ipc.open_stream(pa.BufferReader(self.data)).read_all()
        if self.info.format == "parquet":
            import pyarrow.parquet

            return pa.parquet.read_table(pa.BufferReader(self.data))
        raise ValueError(f"the result is {self.info.format}; arrow() is for a query with format arrow or parquet")

    def pandas(self) -> pandas.DataFrame:
        """Return the rows as a `pandas.DataFrame`, by way of Arrow. Raises ImportError without pandas."""
        try:
            import pandas  # noqa: F401 - pyarrow needs it
        except ImportError as error:
            raise ImportError("pandas is not installed; pip install pandas, or use arrow() or rows()") from error
        return self.arrow().to_pandas()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries: of Python's values, or of JSON's for format `json`.

        Python's times have microseconds: what they had of nanoseconds is cut off.
        """
        if self.info.format == "json":
            return [msgspec.json.decode(line) for line in self.data.splitlines()]
        table = self.arrow()
        found: list[dict[str, Any]] = table.cast(_python_schema(table.schema), safe=False).to_pylist()
        return found

    def __repr__(self) -> str:
        names = ", ".join(column.name for column in self.columns)
        return f"<QueryResult {self.info.rows} rows of {names}>"


def _python_schema(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Return the schema with times as Python has them."""
    import pyarrow as pa

    def known(kind: pyarrow.DataType) -> pyarrow.DataType:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            return pa.timestamp("us", kind.tz)
        if pa.types.is_time64(kind):
            return pa.time64("us")
        return pa.duration("us") if pa.types.is_duration(kind) else kind

    return pa.schema([field.with_type(known(field.type)) for field in schema])


def succeeded(result: JobResult) -> SqlResult:
    """Return what the query of a job came to. Raises QueryFailed."""
    if result.state is JobState.COMPLETED and result.query is not None:
        return result.query
    raise QueryFailed(result.message or "the query failed", job=result.id, reason=result.reason or Reason.QUERY_ERROR)


def inline(result: JobResult, info: SqlResult) -> bytes | None:
    """Return the rows where the job's result has all of them."""
    return bytes(result.stdout) if info.bytes <= INLINE_BYTES else None
