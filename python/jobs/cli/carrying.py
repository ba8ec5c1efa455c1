"""Commands that a worker carries out as a job: how that is submitted, how far it is, and what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from jobs.cli import exits, progress
from jobs.cli.command import Parser
from jobs.cli.interrupts import Detached
from jobs.cli.output import clean, note, print_json
from jobs.cli.submission import duration
from jobs.client import Client
from jobs.client.carrying import lines
from jobs.client.failures import OperationFailed
from jobs.client.submission import JobOptions
from jobs.protocol.model import JobResult, JobSubmit, Stream

R = TypeVar("R")


def in_words(line: dict[str, Any]) -> str:
    """Return the values of what was told on one line."""
    return "  ".join(clean(value) for value in line.values())


def carry_out(
    client: Client,
    options: argparse.Namespace,
    wanted: JobSubmit,
    succeeded: Callable[[JobResult], R],
    show: Callable[[R], object],
    *,
    told: Callable[[dict[str, Any]], str] = in_words,
    code: Callable[[R], int] = lambda done: exits.OK,
) -> int:
    """Have a job do it, and show what it has told and what came of it; with `--detach` print its id only. `code` is
    what the command ends with when it has succeeded."""
    if options.detach:
        job = client.submit(wanted).job
        if options.json:
            print_json(job)
        else:
            print(job.id)
        return exits.OK
    try:
        result = progress.run(client, wanted)
    except Detached:
        return exits.INTERRUPTED
    for line in lines(b"".join(bytes(event.data) for event in client.logs(result.id, streams=(Stream.STDOUT,)))):
        if options.json:
            print_json(line)
        else:
            print(told(line))
    try:
        done = succeeded(result)
    except OperationFailed as error:
        note(str(error))
        return progress.code_of(error.reason)
    if options.json:
        print_json(done)
    else:
        show(done)
    return code(done)


def job_options(options: argparse.Namespace) -> JobOptions:
    """Return what the options say of the job."""
    return {
        "timeout_s": options.timeout,
        "queue": options.queue,
        "priority": options.priority,
        "idempotency_key": options.idempotency_key,
    }


def add_job_options(parser: Parser) -> None:
    how = parser.add_argument_group("the job that does it")
    how.add_argument("--timeout", type=duration, metavar="TIME", help="end it after this long")
    how.add_argument("--queue", default="default", help="queue to wait in")
    how.add_argument("--priority", type=int, default=0, help="from -100 to 100; higher goes first")
    how.add_argument("--idempotency-key", metavar="KEY", help="the same key makes the same job only once")
    how.add_argument("--detach", action="store_true", help="print the job's id, and do not wait for it")
