"""`jobctl sql`: runs a statement and shows what it comes to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args

import msgspec

from jobs.cli import exits, progress
from jobs.cli.columns import cell, fit, width
from jobs.cli.command import Command, Parser, UsageError, add_stale, at_least, consistency
from jobs.cli.interrupts import Detached
from jobs.cli.output import note
from jobs.cli.submission import BLOB_PREFIX, blob_hash, duration, pair, read, size
from jobs.client import Client, QueryFailed, QueryResult, sql_job
from jobs.client.sql import SqlOptions
from jobs.protocol.model import InputFile, SqlColumn, SqlFile, SqlFormat, SqlJob, SqlLimits, SqlValue

MAX_COLUMNS: Final = 1_000
"""That are shown; no terminal is so wide."""
CELL_COLUMNS: Final = 80
NULL: Final = "NULL"
_BINARY: Final = frozenset({"arrow", "parquet"})
_NUMBERS: Final = ("int", "uint", "float", "double", "decimal", "halffloat")
_WRITTEN: Final = {
    "create": "table {table} created, {rows}",
    "insert": "{rows} inserted into {table}",
    "drop": "table {table} dropped",
    "none": "nothing to do for table {table}",
}
_ENDINGS: Final[dict[str, SqlFormat]] = {
    "csv": "csv",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "parquet": "parquet",
    "arrow": "arrow",
    "arrows": "arrow",
    "feather": "arrow",
}


def sql(client: Client, options: argparse.Namespace) -> int:
    if options.statement is None and sys.stdin.isatty() and not options.json:
        from jobs.cli.sqlshell import Shell

        return Shell(client, query_options(options), options.format or "table").run()
    statement = options.statement
    if statement in (None, "-"):
        statement = read("-", what="a query").decode(errors="surrogateescape")
    shown = "json" if options.json else options.format or "table"
    if shown in _BINARY and options.output is None and sys.stdout.isatty():
        raise UsageError(f"{shown} is nothing for a terminal: -o FILE")
    try:
        found = run(client, query(statement, shown, query_options(options)))
    except QueryFailed as error:
        note(str(error))
        return progress.code_of(error.reason)
    except Detached:
        return exits.INTERRUPTED
    write(found, shown, options.output)
    return exits.OK


def query(statement: str, shown: str, options: SqlOptions) -> SqlJob:
    """Return the job whose result can be shown so."""
    made = SqlOptions(**options)
    made["format"] = "json" if shown == "table" else shown  # type: ignore[typeddict-item]
    return sql_job(statement, **made)


def run(client: Client, wanted: SqlJob) -> QueryResult:
    """Run a query, and tell people how far it is; Ctrl-C cancels it. Raises QueryFailed and Detached."""
    return client.rows_of(progress.run(client, wanted))


def write(found: QueryResult, shown: str, path: str | None) -> None:
    """Write the rows to a file or standard output. Raises UsageError for a file that cannot be written."""
    data = table(found).encode(errors="backslashreplace") if shown == "table" else found.data
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        with open(path, "wb") as file:
            file.write(data)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error


def table(found: QueryResult, max_rows: int | None = None) -> str:
    """Return the rows of a result in JSON as a table for people, and below it how many there are."""
    info = found.info
    if info.written is not None:
        return f"{_WRITTEN[info.written.action].format(rows=_count(info.written.rows), table=info.written.table)}\n"
    rows = [list(msgspec.json.decode(line).values())[:MAX_COLUMNS] for line in found.data.splitlines()[:max_rows]]
    took_s = info.planned_s + info.executed_s
    count = f"({_count(info.rows)}, {took_s:.3f} s)"
    if len(rows) < info.rows:
        count = f"({info.rows:,} rows, the first {len(rows)} of them shown, {took_s:.3f} s)"
    if [column.name for column in info.columns] == ["plan_type", "plan"]:
        return "\n".join([*(f"-- {cell(kind)}\n{_plan(plan)}" for kind, plan in rows), count]) + "\n"
    if not info.columns:
        return f"{count}\n"
    return "\n".join([*_aligned(info.columns, rows), count]) + "\n"


def _count(rows: int) -> str:
    return f"{rows:,} {'row' if rows == 1 else 'rows'}"


def _plan(text: str) -> str:
    return "\n".join(cell(line) if line.isascii() else line for line in text.rstrip().split("\n"))


def _aligned(columns: Sequence[SqlColumn], rows: Iterable[Sequence[Any]]) -> list[str]:
    heads = [cell(column.name) for column in columns]
    right = [column.type.startswith(_NUMBERS) for column in columns]
    cells = [[shown_value(value) for value in row] for row in rows]
    widths = [
        min(CELL_COLUMNS, max([width(head), *(width(row[index]) for row in cells)])) for index, head in enumerate(heads)
    ]
    lines = [
        "  ".join(fit(text, size, right=at_right) for text, size, at_right in zip(row, widths, right, strict=True))
        for row in [heads, *cells]
    ]
    lines.insert(1, "  ".join("-" * size for size in widths))
    return [line.rstrip() for line in lines]


def shown_value(value: Any) -> str:
    """Return a value as it stands in a table: on one line, harmless to a terminal."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        value = msgspec.json.encode(value).decode()
    return cell(str(value).replace("\n", "⏎"))


def query_options(options: argparse.Namespace) -> SqlOptions:
    """Return what the command line says of a query apart from the statement. Raises UsageError."""
    if options.param and options.named:
        raise UsageError("parameters go by their place (--param) or by name (--named), not both")
    limits = SqlLimits(
        max_rows=options.max_rows,
        max_bytes=options.max_bytes,
        memory_bytes=options.memory,
        spill_bytes=options.spill,
    )
    made: SqlOptions = {
        "parameters": dict(options.named) if options.named else list(options.param),
        "consistency": consistency(options) or "linearizable",
        "revision": options.revision,
        "limits": limits,
        "files": {name: file_of(path) for name, path in options.table},
        "timeout_s": options.timeout,
        "queue": options.queue,
        "priority": options.priority,
        "idempotency_key": options.idempotency_key,
    }
    return made


def value_of(text: str) -> SqlValue:
    """Parse a parameter: a number, true, false, null or text in quotes as JSON has them; anything else is text."""
    try:
        value: SqlValue = msgspec.json.decode(text.encode(errors="surrogateescape"), type=SqlValue)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text
    return value


def named_value(text: str) -> tuple[str, SqlValue]:
    """Parse NAME=VALUE."""
    name, value = pair(text)
    return name, value_of(value)


def file_of(path: str) -> SqlFile:
    """Return a file as a table; its format follows from its name. Raises UsageError."""
    from jobs.client.submission import to_file

    ending = path.rpartition(".")[2].lower()
    if ending not in _ENDINGS:
        raise UsageError(f"{path}: its name has to end as {', '.join(f'.{known}' for known in _ENDINGS)}")
    if path.startswith(BLOB_PREFIX):
        return SqlFile(format=_ENDINGS[ending], content=InputFile(blob=blob_hash(path[: -len(ending) - 1])))
    return SqlFile(format=_ENDINGS[ending], content=to_file(read(path)))


def _configure(parser: Parser) -> None:
    parser.add_argument("statement", nargs="?", help="of SQL; - reads it; without it on a terminal: a dialogue")
    parser.add_argument(
        "--format", choices=("table", *get_args(SqlFormat)), help="what is printed (default: a table for people)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead")
    given = parser.add_argument_group("what it is run with")
    given.add_argument(
        "--param", type=value_of, action="append", default=[], metavar="VALUE", help="for $1, $2, … in this order"
    )
    given.add_argument("--named", type=named_value, action="append", default=[], metavar="NAME=VALUE", help="for $NAME")
    given.add_argument(
        "--table",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a file as a table of this name, or a blob: NAME=blob:HASH.parquet",
    )
    given.add_argument("--revision", type=at_least(0), metavar="N", help="the store as it was then")
    add_stale(given)  # type: ignore[arg-type]
    bounds = parser.add_argument_group("bounds; more than them fails the query")
    bounds.add_argument("--timeout", type=duration, metavar="TIME", help="time")
    bounds.add_argument("--max-rows", type=at_least(0), metavar="N", help="rows of the result")
    bounds.add_argument("--max-bytes", type=size, metavar="SIZE", help="bytes of the result")
    bounds.add_argument("--memory", type=size, metavar="SIZE", help="memory")
    bounds.add_argument("--spill", type=size, metavar="SIZE", help="what is written to disk for want of memory")
    how = parser.add_argument_group("where it waits")
    how.add_argument("--queue", default="default", help="queue to wait in")
    how.add_argument("--priority", type=int, default=0, help="from -100 to 100; higher goes first")
    how.add_argument("--idempotency-key", metavar="KEY", help="the same key makes the same job only once")


_EPILOG: Final = """exit codes: 0 done, 1 the query failed, 65 it could never run, 75 the worker was lost,
  124 timeout, 130 cancelled; the others as for every command (jobctl run --help)"""
COMMANDS: Final = (Command("sql", sql, "Run a query over what the store holds.", _configure, _EPILOG),)
