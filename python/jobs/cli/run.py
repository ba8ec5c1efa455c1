"""Commands that bring jobs into being: submit, and run, which stays until the end."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from msgspec.structs import replace

from jobs.cli import exits
from jobs.cli.arrays import add_array_options, array_of
from jobs.cli.command import Command, Parser, UsageError
from jobs.cli.interrupts import Detached, Interrupts
from jobs.cli.output import note, print_json
from jobs.cli.submission import add_job_options, job_of
from jobs.cli.waiting import told_why
from jobs.client import Client, ConnectionFailed
from jobs.protocol.model import JobState, JobView, LogEvent, Reason, Stream


def submit(client: Client, options: argparse.Namespace) -> int:
    if options.source is not None:
        from jobs.cli.batch import submit_file

        return submit_file(client, options)
    if options.batch is not None:
        raise UsageError("--batch names the jobs of --from FILE; for one job there is --idempotency-key")
    submitted = client.submit(replace(job_of(options), array=array_of(options)))
    if options.json:
        print_json({"id": submitted.job.id, "created": submitted.created, "state": submitted.job.state})
    else:
        print(submitted.job.id)
    return exits.OK


def run(client: Client, options: argparse.Namespace) -> int:
    if options.array is not None:
        raise UsageError("run stays with one command; for an array: jobctl submit --array …, then jobctl array -f ID")
    wanted = job_of(options)
    with Interrupts(client.socket_path, options.on_interrupt) as interrupts:
        job: str | None = None
        try:
            job = client.submit(wanted).job.id
            interrupts.guard(job)
            with told_why(client.socket_path, job):
                ended = follow(client, job)
        except Detached:
            left = f"the job goes on: jobctl logs -f {job}" if job else "whether the job was submitted is not known"
            note(f"detached; {left}")
            return exits.INTERRUPTED
        except ConnectionFailed:
            if job is not None:
                note(f"lost sight of job {job}")
            raise
        except OSError:  # of our output: the client names its own
            interrupts.on_output_lost()
            raise
    if ended.state is JobState.FAILED and ended.reason is not Reason.EXIT_CODE:
        note(f"job {job} failed: {ended.reason}" + (f": {ended.message}" if ended.message else ""))
    return exits.of_job(ended)


def follow(client: Client, job: str) -> JobView:
    """Pass a job's output on until it has ended; return it."""
    for event in client.logs(job, follow=True):
        write_out(event)
    return client.wait(job)


def write_out(event: LogEvent) -> None:
    """Pass a piece of output on, byte for byte, at once."""
    out = sys.stdout if event.stream is Stream.STDOUT else sys.stderr
    out.buffer.write(bytes(event.data))
    out.buffer.flush()


def _configure_submit(parser: Parser) -> None:
    add_job_options(parser)
    add_array_options(parser)
    many = parser.add_argument_group("many jobs at once")
    many.add_argument("--from", dest="source", metavar="FILE", help="submit every line, a job as JSON; - reads stdin")
    many.add_argument(
        "--batch", metavar="NAME", help="submit each line once for this name (default: by FILE's content)"
    )
    many.add_argument("--quiet", action="store_true", help="do not tell how far it is")


def _configure_run(parser: Parser) -> None:
    add_job_options(parser)
    parser.add_argument(
        "--array", "--array-lines", "--array-json", "--max-running", dest="array", help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--on-interrupt",
        choices=("cancel", "detach"),
        default="cancel",
        help="what Ctrl-C, SIGTERM, SIGHUP and a closed pipe do",
    )


COMMANDS: Final = (
    Command("submit", submit, "Submit a command, or a file of jobs, and print the ids.", _configure_submit),
    Command(
        "run", run, "Submit a command, pass its output on, and end with its exit code.", _configure_run, exits.TABLE
    ),
)
