"""Commands on jobs: submit, run, status, list, logs, result, wait, cancel."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jobs.cli import exits
from jobs.cli.output import ago, clean, moment, note, print_fields, print_json, print_table
from jobs.cli.submission import add_job_options, duration, job_of, pair
from jobs.client import Client
from jobs.content import content_bytes
from jobs.protocol.model import JobResult, JobState, JobView, LogEvent, Stream


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    def command(name: str, function: Any, text: str, **settings: Any) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=text, parents=[shared], **settings
        )
        made.set_defaults(function=function)
        return made

    add_job_options(command("submit", submit, "Submit a command and print its job's id."))
    running = command(
        "run",
        run,
        "Submit a command, pass its output on, and end with its exit code.",
        epilog=exits.TABLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_options(running)
    running.add_argument(
        "--on-interrupt", choices=("cancel", "detach"), default="cancel", help="what Ctrl-C does; a second one detaches"
    )
    command("status", status, "Show jobs.").add_argument("id", nargs="+")
    listing = command("list", list_jobs, "List jobs, newest first.")
    listing.add_argument("--state", choices=[state.value for state in JobState], action="append", default=[])
    listing.add_argument("--type")
    listing.add_argument("--queue")
    listing.add_argument("--owner", type=int, metavar="UID")
    listing.add_argument("--worker")
    listing.add_argument("--label", type=pair, action="append", default=[], metavar="NAME=VALUE")
    listing.add_argument("--oldest-first", action="store_true")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="0 lists all")
    logging = command("logs", logs, "Print what a job wrote.")
    logging.add_argument("id")
    logging.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    logging.add_argument("--stream", choices=[stream.value for stream in Stream], help="only this one")
    logging.add_argument("--attempt", type=int, metavar="N", help="of this attempt instead of the last")
    resulting = command("result", result, "Show what came of a job: its output, and how it ended.")
    resulting.add_argument("id")
    resulting.add_argument("--attempt", type=int, metavar="N")
    resulting.add_argument("--wait", type=duration, default=0.0, metavar="TIME", help="wait so long for its end")
    waiting = command("wait", wait, "Wait for jobs to end: 0 when all completed, 1 when one failed, 124 on a timeout.")
    waiting.add_argument("id", nargs="+")
    waiting.add_argument("--timeout", type=duration, metavar="TIME")
    command("cancel", cancel, "End jobs.").add_argument("id", nargs="+")


def submit(client: Client, options: argparse.Namespace) -> int:
    submitted = client.submit(job_of(options))
    if options.json:
        print_json({"id": submitted.job.id, "created": submitted.created, "state": submitted.job.state})
    else:
        print(submitted.job.id)
    return exits.OK


def run(client: Client, options: argparse.Namespace) -> int:
    job = client.submit(job_of(options)).job
    try:
        with interrupts(client, job.id, options.on_interrupt):
            for event in client.logs(job.id, follow=True):
                write_out(event)
            ended = client.wait(job.id)
    except Detached:
        note(f"detached; the job goes on as {job.id}")
        return exits.INTERRUPTED
    if ended.state is JobState.FAILED:
        note(f"job {ended.id} failed: {ended.reason}" + (f": {ended.message}" if ended.message else ""))
    return exits.of_job(ended)


class Detached(Exception):
    """The person wants no more of the job's output."""


@contextmanager
def interrupts(client: Client, job: str, wish: str) -> Iterator[None]:
    """Turn the first Ctrl-C into what was wished, the second into leaving."""
    asked = False

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal asked
        if asked or wish == "detach":
            raise Detached
        asked = True
        note("ending the job; once more leaves it alone")
        Client(client.socket_path).cancel(job)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def write_out(event: LogEvent) -> None:
    """Pass a piece of output on, byte for byte, at once."""
    out = sys.stdout if event.stream is Stream.STDOUT else sys.stderr
    out.buffer.write(content_bytes(event.data, "data"))
    out.buffer.flush()


def status(client: Client, options: argparse.Namespace) -> int:
    for job in options.id:
        detail = client.get(job)
        if options.json:
            print_json(detail.job)
        else:
            print_job(detail.job)
            payload = detail.spec.payload
            shown = " ".join(payload.argv) if payload.argv is not None else "(script)"
            print_fields([("command", shown)])
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
            ("attempt", f"{job.attempt} of {job.max_attempts}"),
            ("queue", f"{job.queue}, priority {job.priority}"),
            ("owner", job.owner),
            ("worker", job.worker),
            ("submitted", moment(job.submitted_ms)),
            ("started", moment(job.started_ms)),
            ("finished", moment(job.finished_ms)),
            ("labels", ", ".join(f"{name}={value}" for name, value in job.labels.items())),
        ]
    )


def list_jobs(client: Client, options: argparse.Namespace) -> int:
    found = client.list(
        state=[JobState(state) for state in options.state],
        type=options.type,
        queue=options.queue,
        owner=options.owner,
        worker=options.worker,
        labels=dict(options.label),
        newest_first=not options.oldest_first,
        limit=min(options.limit, 1000) or 1000,
    )
    shown = islice(found, options.limit or None)
    if options.json:
        for job in shown:
            print_json(job)
    else:
        print_table(
            ("ID", "STATE", "REASON", "TYPE", "QUEUE", "ATTEMPT", "OWNER", "AGE"),
            (
                (job.id, job.state, job.reason, job.type, job.queue, job.attempt, job.owner, ago(job.submitted_ms))
                for job in shown
            ),
        )
    return exits.OK


def logs(client: Client, options: argparse.Namespace) -> int:
    streams = (Stream(options.stream),) if options.stream else ()
    for event in client.logs(options.id, streams=streams, attempt=options.attempt, follow=options.follow):
        if options.json:
            print_json(event)
        else:
            write_out(event)
    return exits.OK


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
            ("sandbox", run.sandbox),
        ]
        for name, stream in (("stdout", run.stdout), ("stderr", run.stderr)):
            fields.append(
                (name, f"{stream.bytes} bytes" + (f", {stream.stored_bytes} kept" if stream.truncated else ""))
            )
    print_fields(fields)
    for name, content in (("stdout", found.stdout), ("stderr", found.stderr)):
        data = content_bytes(content, name)
        if data:
            print(f"--- {name}")
            sys.stdout.flush()
            sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
            sys.stdout.buffer.flush()


def wait(client: Client, options: argparse.Namespace) -> int:
    code = exits.OK
    for job in options.id:
        ended = client.wait(job, options.timeout)
        if options.json:
            print_json(ended)
        else:
            print(f"{ended.id} {ended.state}" + (f" {clean(ended.reason)}" if ended.reason else ""))
        if not ended.state.is_final:
            return exits.TIMEOUT
        if ended.state is JobState.FAILED:
            code = exits.FAILED
    return code


def cancel(client: Client, options: argparse.Namespace) -> int:
    for job in options.id:
        done = client.cancel(job)
        if options.json:
            print_json({"id": job, "outcome": done.outcome, "state": done.job.state})
        else:
            print(f"{job} {done.outcome}")
    return exits.OK
