"""Rows as files: Parquet and Arrow for other programs, and frames of the rows as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from jobs.backups import messages
from jobs.backups.frames import FrameDecoder, FrameEncoder, FrameError
from jobs.exports.manifest import Content, damaged
from jobs.store import MAX_KEY_BYTES, MAX_VALUE_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES: Final[dict[Content, str]] = {"parquet": "parquet", "arrow": "arrow", "native": "frames"}
GROUP_ROWS: Final = 65_536
GROUP_BYTES: Final = 8 << 20
"""Keys and values that are held until they are written together."""
_COMPRESSION: Final = "zstd"
_PIECE_BYTES: Final = 1 << 20
_READ_ROWS: Final = 4_096

Row = messages.Row
Pair = tuple[bytes, bytes]
"""Key and value."""


class Writer(Protocol):
    """Writes one file."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows, which come after those before."""

    def finish(self) -> None:
        """Write what is still held, and the end."""


def writer_of(content: Content, write: Callable[[bytes], None]) -> Writer:
    """Return what writes a file of this kind."""
    return _FrameWriter(write) if content == "native" else _TableWriter(content, write)


def pairs_of(content: Content, path: str, where: str) -> Iterator[Pair]:
    """Yield the keys and values of a file. Raises BackupInvalid, which names it."""
    return _frame_pairs(path, where) if content == "native" else _table_pairs(content, path, where)


# --- frames ----------------------------------------------------------------------------------------------------------


class _FrameWriter:
    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._encoder = FrameEncoder(messages.ROWS)
        write(self._encoder.head())

    def write(self, rows: Sequence[Row]) -> None:
        self._write(self._encoder.frame(messages.encode(rows)))

    def finish(self) -> None:
        self._write(self._encoder.end())


def _frame_pairs(path: str, where: str) -> Iterator[Pair]:
    decoder = FrameDecoder(messages.ROWS)
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                for frame in decoder.feed(piece):
                    for key, value, *_ in messages.decode_rows(frame):
                        yield key, value
        decoder.finish()
    except (FrameError, messages.MessageError) as error:
        raise damaged(where, str(error)) from error


# --- Parquet and Arrow -----------------------------------------------------------------------------------------------


def _schema() -> pa.Schema:
    import pyarrow as pa

    count = pa.uint64()
    kinds = {
        "key": pa.string(),
        "value": pa.binary(),
        "version": count,
        "create_revision": count,
        "mod_revision": count,
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


class _TableWriter:
    """Holds rows until there are enough for a group."""

    def __init__(self, content: Content, write: Callable[[bytes], None]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._schema = _schema()
        self._rows: list[Row] = []
        self._size_bytes = 0
        sink = pa.PythonFile(_Sink(write), mode="w")
        self._file: Any = (
            parquet.ParquetWriter(sink, self._schema, compression=_COMPRESSION)
            if content == "parquet"
            else pa.ipc.new_file(sink, self._schema, options=pa.ipc.IpcWriteOptions(compression=_COMPRESSION))
        )

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._rows.append(row)
            self._size_bytes += len(row[0]) + len(row[1])
            if len(self._rows) >= GROUP_ROWS or self._size_bytes >= GROUP_BYTES:
                self._flush()

    def finish(self) -> None:
        if self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        keys, values, versions, created, modified, _ = zip(*self._rows, strict=True)
        columns = [[key.decode() for key in keys], values, versions, created, modified]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows, self._size_bytes = [], 0


class _Sink:
    """A file, as Arrow sees it."""

    closed = False

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _table_pairs(content: Content, path: str, where: str) -> Iterator[Pair]:
    import pyarrow as pa

    try:
        with pa.OSFile(path) as source:
            for batch in _batches(content, source, where):
                keys, values = batch.column("key"), batch.column("value")
                if keys.null_count or values.null_count:
                    raise damaged(where, "it has rows without key or value")
                for key, value in zip(keys.to_pylist(), values.to_pylist(), strict=True):
                    yield key.encode(), value
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(where, f"it cannot be read: {error}") from error


def _batches(content: Content, source: pa.NativeFile, where: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import parquet

    if content == "parquet":
        with parquet.ParquetFile(source) as file:
            _check_schema(file.schema_arrow, where)
            yield from file.iter_batches(batch_size=_READ_ROWS, columns=["key", "value"])
        return
    with pa.ipc.open_file(source) as reader:
        _check_schema(reader.schema, where)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _check_schema(schema: pa.Schema, where: str) -> None:
    if not schema.equals(_schema()):
        raise damaged(where, "it has other columns than an export")


# --- checks ----------------------------------------------------------------------------------------------------------


def checked(pairs: Iterator[Pair], prefix: bytes, where: str) -> Iterator[Pair]:
    """Yield the pairs, their keys without the prefix. Raises BackupInvalid for what no export has."""
    former = b""
    for key, value in pairs:
        if not key.startswith(prefix) or key <= former:
            raise damaged(where, f"{key!r:.200} is not where it should be")
        if len(key) > MAX_KEY_BYTES or len(value) > MAX_VALUE_BYTES:
            raise damaged(where, f"{key!r:.200} or its value is longer than may be")
        former = key
        yield key[len(prefix) :], value
