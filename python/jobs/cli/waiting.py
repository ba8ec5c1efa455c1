"""Tells the person at a terminal why a job has not begun, where that takes longer than one expects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Final

from jobs.cli.output import note
from jobs.client import Client
from jobs.errors import JobsError
from jobs.protocol.model import JobState

PATIENCE_S: Final = 2.0
"""How long a person waits before asking."""
MOST_LACKS: Final = 3
"""How much of what workers lack is told; `jobctl explain` tells all of it."""


@contextmanager
def told_why(socket_path: str, job: str) -> Iterator[None]:
    """While within, say once why the job is pending if it is so for long. On a terminal only: what a program reads of
    our standard error is the job's."""
    if not sys.stderr.isatty():
        yield
        return
    timer = Timer(PATIENCE_S, _tell, (socket_path, job))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(socket_path: str, job: str) -> None:
    try:
        with Client(socket_path) as client:  # the other one is following the job
            found = client.explain(job)
    except JobsError:
        return  # whoever follows the job says what is the matter
    if found.job.state is JobState.PENDING:
        lacks = sorted({lack for fit in found.workers for lack in fit.lacks})
        missing = f" ({'; '.join(lacks[:MOST_LACKS])})" if lacks else ""
        note(f"job {job} waits: {found.text}{missing}")
