"""Commands on jobs that are there: status, list, logs, result, wait, cancel."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice
from typing import Final, Literal

import msgspec

from jobs.cli import exits
from jobs.cli.arrays import index_set, job_or_task
from jobs.cli.command import Command, Parser, UsageError, add_stale, at_least, consistency
from jobs.cli.maintenance import show_maintenance
from jobs.cli.output import ago, clean, moment, print_fields, print_json, print_table
from jobs.cli.replication.common import result_fields as replication_fields
from jobs.cli.run import write_out
from jobs.cli.submission import command_of, duration, pair
from jobs.client import Client
from jobs.client.operations import CancelOptions
from jobs.protocol.model import AttemptView, CancelCounts, JobResult, JobState, JobView, Progress, Stream


def status(client: Client, options: argparse.Namespace) -> int:
    for job in options.id:
        detail = client.get(job)
        if options.json:
            beside = {"progress": detail.progress, "parents": detail.parents}
            print_json({**msgspec.to_builtins(detail.job), **beside})
        else:
            print_job(detail.job)
            if detail.progress is not None:
                print_fields([("progress", progress_text(detail.progress))])
            print_fields([("command", command_of(detail.spec)), ("parents", " ".join(detail.parents))])
    return exits.OK


def print_job(job: JobView) -> None:
    state = f"{job.state} (ending)" if job.cancel_requested and not job.state.is_final else job.state
    print_fields(
        [
            ("id", job.id),
            ("state", state),
            ("reason", job.reason),
            ("message", job.message),
            ("exit code", job.exit_code),
            ("signal", job.signal),
            ("attempt", None if job.tasks else f"{job.attempt} of {job.max_attempts}"),
            ("tasks", f"{job.tasks:,}" if job.tasks else None),
            ("array", None if job.array is None else f"{job.array}, index {job.index}"),
            ("queue", f"{job.queue}, priority {job.priority}"),
            ("waits for", f"{job.waits_for} jobs" if job.waits_for else None),
            ("owner", job.owner),
            ("schedule", job.schedule),
            ("nominal", moment(job.nominal_ms)),
            ("worker", job.worker),
            ("submitted", moment(job.submitted_ms)),
            ("started", moment(job.started_ms)),
            ("finished", moment(job.finished_ms)),
            ("repeats", job.redrive_of),
            ("repeated by", job.redriven_as),
            ("labels", ", ".join(f"{name}={value}" for name, value in job.labels.items())),
        ]
    )


def progress_text(progress: Progress) -> str:
    text = f"{progress.percent:g} %"
    if progress.message is not None:
        text += f" {progress.message}"
    return f"{text} ({ago(progress.at_ms)} ago)"


def list_jobs(client: Client, options: argparse.Namespace) -> int:
    found = client.list(
        state=[JobState(state) for state in options.state],
        type=options.type,
        queue=options.queue,
        owner=options.owner,
        worker=options.worker,
        schedule=options.schedule,
        labels=dict(options.label),
        array=options.array,
        index=options.index,
        newest_first=not options.oldest_first,
        page_size=min(options.limit, 1000) or 1000,
        consistency=consistency(options),
    )
    shown = islice(found, options.limit or None)
    if options.json:
        for job in shown:
            print_json(job)
    else:
        head = ("ID", "STATE", "REASON", "TYPE", "QUEUE", "ATTEMPT", "OWNER", "AGE")
        print_table(head if options.array is None else ("INDEX", *head), map(_row, shown))
    return exits.OK


def _row(job: JobView) -> tuple[object, ...]:
    kind = f"{job.type}[{job.tasks}]" if job.tasks else job.type
    row = (job.id, job.state, job.reason, kind, job.queue, job.attempt, job.owner, ago(job.submitted_ms))
    return row if job.index is None else (job.index, *row)


def logs(client: Client, options: argparse.Namespace) -> int:
    if options.from_now and options.tail is not None:
        raise UsageError("--from-now shows nothing of what there is, --tail some of it: give one of them")
    if options.all_attempts and options.attempt not in (None, "all"):
        raise UsageError("give either --all-attempts or --attempt N")
    found = client.logs(
        options.id,
        streams=(Stream(options.stream),) if options.stream else (),
        attempt="all" if options.all_attempts else options.attempt,
        follow=options.follow or options.from_now,
        tail_lines=options.tail,
        tail_bytes=0 if options.from_now else None,
    )
    for event in found:
        if options.json:
            print_json(event)
        else:
            write_out(event)
    return exits.OK


def attempts(client: Client, options: argparse.Namespace) -> int:
    found = client.attempts(options.id)
    if options.json:
        for attempt in found:
            print_json(attempt)
    else:
        head = ("ATTEMPT", "STATE", "REASON", "EXIT", "WORKER", "STARTED", "RAN", "OUTPUT", "MESSAGE")
        print_table(head, map(_attempt_row, found))
    return exits.OK


def _attempt_row(attempt: AttemptView) -> tuple[object, ...]:
    run = attempt.execution
    code: object = None
    if run is not None:
        code = run.exit_code if run.signal is None else f"signal {run.signal}"
    return (
        attempt.attempt,
        attempt.state,
        attempt.reason,
        code,
        attempt.worker,
        moment(attempt.started_ms),
        None if run is None else f"{run.wall_s:.3f} s",
        None if run is None else f"{run.stdout.stored_bytes + run.stderr.stored_bytes} bytes",
        attempt.message or "",
    )


def result(client: Client, options: argparse.Namespace) -> int:
    found = client.result(options.id, attempt=options.attempt, timeout_s=options.wait)
    if options.json:
        print_json(found)
        return exits.OK
    print_result(found)
    return exits.OK


def print_result(found: JobResult) -> None:
    run = found.execution
    fields: list[tuple[str, object]] = [
        ("id", found.id),
        ("state", found.state),
        ("reason", found.reason),
        ("message", found.message),
    ]
    if run is not None:
        fields += [
            ("exit code", run.exit_code),
            ("signal", run.signal),
            ("attempt", run.attempt),
            ("worker", f"{run.worker} on {run.node}"),
            ("waited", f"{max(0, run.started_ms - run.queued_ms)} ms"),
            ("ran", f"{run.wall_s:.3f} s (user {run.cpu_user_s:.3f}, system {run.cpu_system_s:.3f})"),
            ("peak memory", f"{run.peak_memory_bytes / 1048576:.1f} MiB"),
            ("sandbox", run.sandbox if run.root is None else f"{run.sandbox}, root image {run.root.replace('_', '-')}"),
        ]
        for name, stream in (("stdout", run.stdout), ("stderr", run.stderr)):
            fields.append(
                (name, f"{stream.bytes} bytes" + (f", {stream.stored_bytes} kept" if stream.truncated else ""))
            )
    if found.blob is not None:
        fields += [("hash", found.blob.hash), ("blobs", f"{found.blob.blobs:,}, {found.blob.bytes:,} bytes")]
    if found.replication is not None:
        fields += replication_fields(found.replication)
    fields += [("artefact", f"{one.path} ({one.size_bytes} bytes, blob {one.hash})") for one in found.artefacts]
    if found.logs_gone:
        fields.append(("output", "no longer kept"))
    print_fields(fields)
    if found.maintenance is not None:
        print()
        show_maintenance(found.maintenance)
    for name, content, stored in (
        ("stdout", found.stdout, run.stdout.stored_bytes if run else 0),
        ("stderr", found.stderr, run.stderr.stored_bytes if run else 0),
    ):
        data = bytes(content)
        if data:
            cut = f", the first {len(data)} bytes; all of it: jobctl logs {found.id}" if len(data) < stored else ""
            print(f"--- {name}{cut}")
            sys.stdout.flush()
            sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
            sys.stdout.buffer.flush()


def wait(client: Client, options: argparse.Namespace) -> int:
    until_s = None if options.timeout is None else time.monotonic() + options.timeout
    code = exits.OK
    for job in options.id:
        ended = client.wait(job, None if until_s is None else max(0.0, until_s - time.monotonic()))
        if options.json:
            print_json(ended)
        else:
            print(f"{ended.id} {ended.state}" + (f" {clean(ended.reason)}" if ended.reason else ""), flush=True)
        if not ended.state.is_final:
            return exits.TIMEOUT
        if ended.state is JobState.FAILED:
            code = exits.FAILED
    return code


def cancel(client: Client, options: argparse.Namespace) -> int:
    where: CancelOptions = {
        "labels": dict(options.label),
        "state": [JobState(state) for state in options.state],
        "queue": options.queue,
        "type": options.type,
        "owner": options.owner,
        "worker": options.worker,
        "schedule": options.schedule,
        "all": options.all,
    }
    if options.index is not None and len(options.id) != 1:
        raise UsageError("--index is of the tasks of one array: give its id")
    if (options.owner is not None or any(where.values())) == bool(options.id):
        raise UsageError("give either ids, or which jobs to end: --label, --queue, --state, …; --all for every job")
    if not options.id:
        counts = client.cancel_many(**where)
        if options.json:
            print_json(counts)
        else:
            print(_counts(counts))
        return exits.OK
    for job in options.id:
        done = client.cancel(job, indices=options.index)
        if options.json:
            of_tasks = {} if done.tasks is None else {"tasks": done.tasks}
            print_json({"id": job, "outcome": done.outcome, "state": done.job.state, **of_tasks})
        else:
            print(f"{job} {done.outcome}" + ("" if done.tasks is None else f": {_counts(done.tasks)} tasks"))
    return exits.OK


def _counts(counts: CancelCounts) -> str:
    return f"{counts.cancelled:,} cancelled, {counts.requested:,} requested, {counts.already_final:,} already_final"


def _add_id(parser: Parser) -> None:
    parser.add_argument("id", type=job_or_task, help="of a job; ID:INDEX is a task of an array")


def _add_ids(parser: Parser) -> None:
    parser.add_argument("id", nargs="+", type=job_or_task)


def _add_filters(parser: Parser) -> None:
    parser.add_argument("--state", choices=[state.value for state in JobState], action="append", default=[])
    parser.add_argument("--type")
    parser.add_argument("--queue")
    parser.add_argument("--owner", type=at_least(0), metavar="UID")
    parser.add_argument("--worker")
    parser.add_argument("--schedule", metavar="NAME", help="those that this schedule made")
    parser.add_argument("--label", type=pair, action="append", default=[], metavar="NAME=VALUE")


def _configure_cancel(parser: Parser) -> None:
    parser.add_argument("id", nargs="*", type=job_or_task)
    parser.add_argument("--index", type=index_set, metavar="N,A-B", help="of an array, only these tasks")
    _add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every job that you may end")


def _configure_list(parser: Parser) -> None:
    _add_filters(parser)
    parser.add_argument("--array", metavar="ID", help="list the tasks of this array")
    parser.add_argument("--index", metavar="N|A-B", help="of its tasks only this one, or these")
    parser.add_argument("--oldest-first", action="store_true")
    add_stale(parser)
    parser.add_argument("--limit", type=at_least(0), default=50, metavar="N", help="0 lists all")


def _configure_logs(parser: Parser) -> None:
    _add_id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument("--stream", choices=[stream.value for stream in Stream], help="only this one")
    parser.add_argument("--tail", type=at_least(0), metavar="N", help="only the last N lines of what there is")
    parser.add_argument("--from-now", action="store_true", help="follow, and show nothing of what there is")
    parser.add_argument(
        "--attempt", type=_attempt_number, metavar="N", help="of this attempt instead of the last; all: of every one"
    )
    parser.add_argument("--all-attempts", action="store_true", help="of every attempt, one after the other")


def _attempt_number(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else at_least(1)(text)


def _configure_result(parser: Parser) -> None:
    _add_id(parser)
    parser.add_argument("--attempt", type=at_least(1), metavar="N", help="of this attempt instead of the last")
    parser.add_argument("--wait", type=duration, default=0.0, metavar="TIME", help="wait so long for its end")


def _configure_wait(parser: Parser) -> None:
    _add_ids(parser)
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="for all of them together")


COMMANDS: Final = (
    Command("status", status, "Show jobs.", _add_ids),
    Command("list", list_jobs, "List jobs, newest first.", _configure_list),
    Command("logs", logs, "Print what a job wrote.", _configure_logs),
    Command("attempts", attempts, "List the attempts of a job.", _add_id),
    Command("result", result, "Show what came of a job: its output, and how it ended.", _configure_result),
    Command(
        "wait",
        wait,
        "Wait for jobs to end: 0 when all completed, 1 when one failed, 124 on a timeout.",
        _configure_wait,
    ),
    Command("cancel", cancel, "End jobs: by their ids, or all that match.", _configure_cancel),
)
