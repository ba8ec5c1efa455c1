"""`jobctl submit --from FILE`: checks every line, then submits them all, or what a former call left over."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import deque
from collections.abc import Iterator
from typing import Final

from jobs.cli import exits
from jobs.cli.command import Parser, UsageError
from jobs.cli.jobfile import JobFile, WrongLines, opened
from jobs.cli.meter import Meter
from jobs.cli.output import note, print_json
from jobs.cli.submission import add_job_options
from jobs.client import Client, SubmitProgress
from jobs.client.batches import checked_batch, keyed
from jobs.errors import JobsError
from jobs.protocol.model import JobSubmit

SHOWN_LINES: Final = 20
_OF_JOB: Final = re.compile(r"\$\.jobs\[(\d+)\](.*)", re.DOTALL)


def submit_file(client: Client, options: argparse.Namespace) -> int:
    """Submit the jobs of a file; print the id of each, in order."""
    _refuse_job_options(options)
    batch = None if options.batch is None else checked_batch(options.batch)
    with opened(options.source) as file:
        try:
            version = file.version()
            checking = Meter("checking", file.size_bytes, quiet=options.quiet)
            checked = file.check(batch, checking.show, shown=SHOWN_LINES)
            checking.clear()
        except WrongLines as wrong:
            checking.clear()
            return _tell_wrong(file.path, wrong)
        if file.version() != version:
            raise UsageError(f"{file.path} was changed while it was read")
        upload = _Upload(file, batch or checked.sha256, checked.jobs, quiet=options.quiet)
        try:
            upload.run(client, as_json=options.json)
        except KeyboardInterrupt:
            upload.tell_how_to_resume("interrupted", options)
            return exits.INTERRUPTED
        except JobsError as error:
            upload.tell_how_to_resume("stopped", options)
            raise upload.with_line(error) from error
    return exits.OK


class _Upload:
    """The second pass."""

    def __init__(self, file: JobFile, batch: str, total: int, *, quiet: bool) -> None:
        self._file = file
        self._batch = batch
        self._total = total
        self._meter = Meter("submitting", total, quiet=quiet)
        self._now = SubmitProgress()
        self._unanswered: deque[int] = deque()
        """Numbers of the lines that were read, and whose fate is not known yet."""

    def run(self, client: Client, *, as_json: bool) -> None:
        for submitted in client.submit_many(self._jobs(), batch=self._batch, on_progress=self._on_progress):
            line = self._unanswered.popleft()
            if as_json:
                print_json({"line": line, "id": submitted.job.id, "created": submitted.created})
            else:
                print(submitted.job.id)
        sys.stdout.flush()
        self._meter.tell(f"{self._total} jobs: {self._counts()}")

    def _jobs(self) -> Iterator[JobSubmit]:
        for number, job in self._file.jobs():
            self._unanswered.append(number)
            yield keyed(job, self._batch, number)

    def _on_progress(self, progress: SubmitProgress) -> None:
        sys.stdout.flush()
        waited, self._now = self._now.waits_for is not None, progress
        if progress.waits_for is None:
            self._meter.show(progress.done)
        elif not waited:
            why = progress.waits_for.detail
            self._meter.tell(f"{progress.done} of {self._total} are in; waiting for room: {why}")

    def tell_how_to_resume(self, what: str, options: argparse.Namespace) -> None:
        sys.stdout.flush()
        self._meter.clear()
        same = "the same command" + (" with the same input" if options.source == "-" else "")
        again = shlex.join(
            ["jobctl", "submit", "--from", options.source, *(["--batch", options.batch] if options.batch else [])]
        )
        note(f"{what}: {self._now.done} of {self._total} jobs are in ({self._counts()}); {same} goes on: {again}")

    def with_line(self, error: JobsError) -> JobsError:
        """Return the error with the line that it is about, where it is about one."""
        found = _OF_JOB.match(error.field or "")
        if found is None or int(found[1]) >= len(self._unanswered):
            return error
        where = f"{self._file.path}:{self._unanswered[int(found[1])]}"
        return type(error)(f"{where}: {error.detail}", field=f"${found[2]}", expected=error.expected)

    def _counts(self) -> str:
        return f"{self._now.created} new, {self._now.done - self._now.created} known already"


def _tell_wrong(path: str, wrong: WrongLines) -> int:
    for line in wrong.lines:
        note(line.text(path))
    left = wrong.total - len(wrong.lines)
    mistakes = "1 mistake" if wrong.total == 1 else f"{wrong.total} mistakes"
    note(f"nothing was submitted: {path} has {mistakes}" + (f", {left} more than are shown" if left else ""))
    return exits.DATA


def _refuse_job_options(options: argparse.Namespace) -> None:
    """Raise UsageError for options that describe a job: with a file, its lines do."""
    parser = Parser()
    add_job_options(parser)
    for name, default in vars(parser.parse_args([])).items():
        if getattr(options, name) != default:
            raise UsageError(f"--from takes everything from the file's lines; {name} says something else")
