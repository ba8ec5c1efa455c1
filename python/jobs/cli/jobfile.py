"""A file of jobs, one a line as JSON: reading it twice within bounds, and finding every line that is wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Final

import msgspec
from msgspec import Struct

from jobs.cli.command import UsageError
from jobs.client.batches import Refs, growth_bytes, keyed
from jobs.client.requests import encode
from jobs.errors import JobsError, PayloadTooLarge
from jobs.invalid import decode_json
from jobs.protocol.model import JobSubmit
from jobs.validate import MAX_SPEC_BYTES, array_items, check_job, check_spec_size, without_list

MAX_LINE_BYTES: Final = 6 * MAX_SPEC_BYTES
"""The largest job with every character escaped."""
SOME_BATCH: Final = "0" * 64
"""As long as the name that a file gives its batch."""
_decoder: Final[msgspec.json.Decoder[JobSubmit]] = msgspec.json.Decoder(JobSubmit)

OnBytes = Callable[[int], None]


class Checked(Struct, frozen=True):
    """A file whose every line is a job."""

    jobs: int
    sha256: str
    """Of its content, in hexadecimal."""


class WrongLine(Struct, frozen=True):
    """What is wrong with one line."""

    number: int
    error: JobsError

    def text(self, path: str) -> str:
        field = f"{self.error.field}: " if self.error.field else ""
        expected = f": expected {self.error.expected}" if self.error.expected else ""
        return f"{path}:{self.number}: {field}{self.error.detail}{expected}"


class WrongLines(Exception):
    """A file cannot be submitted; the first lines that are wrong, and how many there are in all."""

    def __init__(self, lines: list[WrongLine], total: int) -> None:
        super().__init__(f"{total} lines are wrong")
        self.lines = lines
        self.total = total


class JobFile:
    """A file that is read from its start as often as need be, a line at a time."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def version(self) -> tuple[int, int]:
        """Return what changes when somebody writes to the file."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def lines(self, on_bytes: OnBytes = lambda count: None) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of every line; of one that is too long, only its beginning."""
        self._file.seek(0)
        number = 0
        while data := self._file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, data
            while len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                data = self._file.readline(MAX_LINE_BYTES + 1)
            on_bytes(self._file.tell())

    def jobs(self) -> Iterator[tuple[int, JobSubmit]]:
        """Yield the job of every line that is not blank. Raises the error of one that is wrong."""
        for number, data in self.lines():
            if not data.isspace():
                yield number, job_of_line(data)

    def check(self, batch: str | None, on_bytes: OnBytes, *, shown: int) -> Checked:
        """Look at every line; raise WrongLines, naming the first `shown`, when there is something wrong with any."""
        wrong: list[WrongLine] = []
        total = 0
        check = _Check(batch or SOME_BATCH)
        for line in check.wrong(self.lines(on_bytes)):
            total += 1
            if len(wrong) < shown:
                wrong.append(line)
        if total:
            raise WrongLines(wrong, total)
        return Checked(check.jobs, check.content.hexdigest())


class _Check:
    """The first pass over a file."""

    def __init__(self, batch: str) -> None:
        self._batch = batch
        self.jobs = 0
        self.content = hashlib.sha256()

    def wrong(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[WrongLine]:
        """Yield what is wrong, in the order of the lines."""
        refs = Refs("line")
        for number, data in lines:
            self.content.update(data)
            if data.isspace():
                continue
            try:
                job = keyed(job_of_line(data), self._batch, number)
                check_spec_size(len(encode(without_list(job))) + growth_bytes(job))
            except JobsError as error:
                yield WrongLine(number, error)
                continue
            self.jobs += 1
            yield from (WrongLine(number, error) for error in refs.wrong(number, job))


def job_of_line(data: bytes) -> JobSubmit:
    """Return the job that a line describes. Raises InvalidRequest and PayloadTooLarge."""
    if len(data) > MAX_LINE_BYTES:
        raise PayloadTooLarge("the line is too long for a job", expected=f"at most {MAX_LINE_BYTES} bytes")
    job = decode_json("the line", data, _decoder)
    check_job(job)
    if job.array is not None:
        array_items(job.array)
    return job


@contextmanager
def opened(path: str) -> Iterator[JobFile]:
    """Open a file of jobs, standard input for `-`; what cannot be read twice is copied first. Raises UsageError."""
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
            if path == "-" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.flush()
                file = copy
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
        yield JobFile("stdin" if path == "-" else path, file)
