"""Arrays: what makes their tasks, how far they are, what failed repeated."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final

from jobs.cli import exits
from jobs.cli.command import Command, Parser, UsageError, at_least
from jobs.cli.output import clean, print_fields, print_json
from jobs.client import Client
from jobs.protocol.ids import MAX_TASKS, JobId, array_id, is_job_id, task_id
from jobs.protocol.model import ArrayRange, ArraySpec, ArrayView, JobState

if TYPE_CHECKING:
    from jobs.cli.meter import Meter


def job_or_task(text: str) -> str:
    """Parse a job's id, or ID:INDEX and ID[INDEX] for a task of an array."""
    found = re.fullmatch(r"(?P<array>[^:\[\]]+)(?::(?P<colon>\d{1,7})|\[(?P<bracket>\d{1,7})\])", text)
    if found is None:
        return text
    array, index = found["array"], int(found["colon"] or found["bracket"])
    if not (is_job_id(array) and array_id(JobId(array)) == array):
        raise argparse.ArgumentTypeError(f"{array!r} is no array's id")
    if index >= MAX_TASKS:
        raise argparse.ArgumentTypeError(f"{index} is no index of a task; they are below {MAX_TASKS}")
    return task_id(JobId(array), index)


def numbers(text: str) -> ArrayRange:
    """Parse FIRST-LAST or FIRST-LAST:STEP, the last number included."""
    found = re.fullmatch(r"(-?\d{1,15})-(-?\d{1,15})(?::(\d{1,15}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of numbers; for example 0-999 or 0-998:2")
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step == 0 or last < first:
        raise argparse.ArgumentTypeError(f"the range {text} is empty, or never ends")
    return ArrayRange(start=first, stop=last + 1, step=step)


def index_set(text: str) -> str:
    """Parse indices such as 5,10-20."""
    from jobs.errors import InvalidRequest
    from jobs.indices import parse

    try:
        parse(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error.detail)) from error
    return text


def add_array_options(parser: Parser) -> None:
    group = parser.add_argument_group("an array: one job, a task for each")
    group.add_argument("--array", type=numbers, metavar="A-B[:STEP]", help="number of a range")
    group.add_argument("--array-lines", metavar="FILE", help="line of a file; - reads stdin")
    group.add_argument("--array-json", metavar="FILE", help="value of a JSON array; - reads stdin")
    group.add_argument("--max-running", type=at_least(1), metavar="N", help="tasks that run at a time")


def array_of(options: argparse.Namespace) -> ArraySpec | None:
    """Return the array that the options describe; None if they describe none. Raises UsageError."""
    given = [name for name in ("array", "array_lines", "array_json") if getattr(options, name) is not None]
    if not given:
        if options.max_running is not None:
            raise UsageError("--max-running is for the tasks of an array: --array, --array-lines or --array-json")
        return None
    if len(given) > 1:
        raise UsageError("give one of --array, --array-lines and --array-json")
    if "-" in (options.array_lines, options.array_json) and "-" in (options.script, options.stdin):
        raise UsageError("standard input cannot be both the array's list and the command's script or input")
    if options.array is not None:
        return ArraySpec(range=options.array, max_running=options.max_running)
    if options.array_lines is not None:
        return ArraySpec(lines=_lines(options.array_lines), max_running=options.max_running)
    return ArraySpec(items=_values(options.array_json), max_running=options.max_running)


def _lines(path: str) -> list[str]:
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: {error}") from error
    lines = text.removesuffix("\n").split("\n")
    if not text:
        raise UsageError(f"{path} holds no lines")
    return lines


def _values(path: str) -> list[object]:
    import msgspec

    try:
        values: list[object] = msgspec.json.decode(_read(path), type=list)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} holds no JSON array: {error}") from error
    if not values:
        raise UsageError(f"{path} holds no values")
    return values


def _read(path: str) -> bytes:
    from jobs.cli.submission import read
    from jobs.validate import MAX_LIST_BYTES

    return read(path, MAX_LIST_BYTES, "an array")


def show(client: Client, options: argparse.Namespace) -> int:
    if not options.follow:
        _print(client.array(options.id), options.json)
        return exits.OK
    from jobs.cli.meter import Meter

    meter: Meter | None = None
    seen: ArrayView | None = None
    for seen in client.watch_array(options.id):
        if options.json:
            print_json(seen)
            continue
        meter = meter or Meter("tasks", seen.tasks, quiet=options.quiet)
        meter.show(seen.completed + seen.failed + seen.cancelled)
    if meter is not None:
        meter.clear()
    if seen is None:
        return exits.FAILED
    if not options.json:
        _print(seen, False)
    return exits.OK if seen.state is JobState.COMPLETED else exits.FAILED


def _print(array: ArrayView, as_json: bool) -> None:
    if as_json:
        print_json(array)
        return
    counts = [
        (array.pending, "pending"),
        (array.running, "running"),
        (array.completed, "completed"),
        (array.failed, "failed"),
        (array.cancelled, "cancelled"),
    ]
    print_fields(
        [
            ("id", array.id),
            ("state", array.state),
            ("tasks", f"{array.tasks:,} from {array.source}"),
            ("ended", f"{array.percent:g} %"),
            ("among them", ", ".join(f"{count:,} {name}" for count, name in counts if count)),
            ("failed", array.failed_indices),
            ("repeats", array.redrive_of),
        ]
    )


def retry(client: Client, options: argparse.Namespace) -> int:
    made = client.retry(options.id, indices=options.index, only=options.only, idempotency_key=options.idempotency_key)
    if options.json:
        print_json({"id": made.job.id, "created": made.created, "tasks": made.job.tasks})
    else:
        print(clean(made.job.id))
    return exits.OK


def _configure_show(parser: Parser) -> None:
    parser.add_argument("id")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until it has ended: 0 when it completed, 1 when it failed"
    )
    parser.add_argument("--quiet", action="store_true", help="with --follow, only tell how it ended")


def _configure_retry(parser: Parser) -> None:
    parser.add_argument("id")
    parser.add_argument("--index", type=index_set, metavar="N,A-B", help="only these of its tasks")
    parser.add_argument("--only", choices=("failed", "cancelled"), help="only those that ended so")
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key repeats the same tasks only once")


COMMANDS: Final = (
    Command("array", show, "Show how far an array is, and which of its tasks failed.", _configure_show),
    Command(
        "retry",
        retry,
        "Repeat the tasks of an ended array that did not complete, as a new array; print its id.",
        _configure_retry,
    ),
)
