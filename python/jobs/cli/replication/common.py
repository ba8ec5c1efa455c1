"""What commands have in common that are operations of replication."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import structs

from jobs.cli import exits
from jobs.cli.carrying import carry_out, job_options
from jobs.cli.command import Parser, UsageError, at_least
from jobs.cli.output import clean, print_fields
from jobs.cli.output import size as size_text
from jobs.cli.submission import size
from jobs.client import Client
from jobs.client.replication import replication_job, succeeded
from jobs.protocol.model import RangeDifference, ReplicationPayload, ReplicationResult, Throttle

EXISTING: Final = ("replace", "keep", "fail")


def perform(
    client: Client,
    options: argparse.Namespace,
    payload: ReplicationPayload,
    *,
    code: Callable[[ReplicationResult], int] = lambda done: exits.OK,
) -> int:
    """Have a job do it, and show what came of it."""
    return carry_out(
        client, options, replication_job(payload, **job_options(options)), succeeded, show, told=_in_words, code=code
    )


def _in_words(line: dict[str, Any]) -> str:
    """Return what was told on one line: a remark, a range that differs, or values with their names."""
    if "source_rows" in line:
        return f"differs: {_difference(msgspec.convert(line, RangeDifference))}"
    return ", ".join(clean(value) if name == "note" else f"{name} {clean(value)}" for name, value in line.items())


def show(done: ReplicationResult) -> None:
    """Print what an operation came to, but for what it has told already."""
    told = structs.replace(done, differences=[])
    print_fields([*result_fields(told), ("took", f"{done.seconds:.3f} s")])


def result_fields(done: ReplicationResult) -> list[tuple[str, object]]:
    """Return names and values of what an operation came to."""
    revisions = f"{done.source_revision} → {done.target_revision}" if done.target_revision else done.source_revision
    return [
        ("place", done.place),
        ("kind", done.kind),
        ("keys", None if done.blobs and not done.rows else f"{done.rows:,}"),
        ("deleted", f"{done.deleted:,}" if done.deleted else None),
        ("blobs", f"{done.blobs:,}" if done.blobs else None),
        ("bytes", size_text(done.bytes)),
        ("conflicts", f"{done.conflicts:,}" if done.conflicts else None),
        ("compared", "everything" if done.snapshots else None),
        ("revision", revisions or None),
        *(("differs", _difference(one)) for one in done.differences),
    ]


def _difference(one: RangeDifference) -> str:
    where = clean(one.first) if one.first == one.last else f"{clean(one.first)} … {clean(one.last)}"
    return f"{where}: {one.source_rows:,} at the source, {one.target_rows:,} at the target"


# --- options ---------------------------------------------------------------------------------------------------------


def add_place(parser: Parser, what: str) -> None:
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="DIR",
        help=f"{what}: on the worker's machine, below one of its workers.replication.allow_files",
    )
    parser.add_argument("--tag", metavar="NAME", help="or as blobs of the cluster, by this name")


def place(options: argparse.Namespace) -> dict[str, str | None]:
    """Return where it is. Raises UsageError unless that is said once."""
    if (options.directory is None) == (options.tag is None):
        raise UsageError("name either a directory or a --tag")
    directory = None if options.directory is None else os.path.abspath(options.directory)
    return {"directory": directory, "tag": options.tag}


def add_existing(parser: Parser) -> None:
    parser.add_argument(
        "--existing",
        choices=EXISTING,
        default="fail",
        help="what becomes of keys that are there with other values (default: fail, before anything is written)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, and say what would be done")


def add_throttle(parser: Parser) -> None:
    parser.add_argument("--bytes-per-s", type=size, metavar="SIZE", help="take no more")
    parser.add_argument("--operations-per-s", type=at_least(1), metavar="N", help="keys or blobs; take no more")


def throttle(options: argparse.Namespace) -> Throttle:
    return Throttle(bytes_per_s=options.bytes_per_s, operations_per_s=options.operations_per_s)
