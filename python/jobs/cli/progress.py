"""Waiting for a job that stands for a command: how far it is on the terminal, and the exit code of its reason."""

from __future__ import annotations

import sys
from typing import Final

from jobs.cli import exits
from jobs.cli.columns import cell
from jobs.cli.interrupts import Interrupts
from jobs.client import Client
from jobs.protocol.model import JobResult, JobSubmit, JobView, Reason

PROGRESS_S: Final = 1.0
"""How often to say how far a job is."""
_CODES: Final[dict[Reason, int]] = {
    Reason.TIMEOUT: exits.TIMEOUT,
    Reason.DEADLINE: exits.TIMEOUT,
    Reason.CANCELLED: exits.INTERRUPTED,
    Reason.WORKER_LOST: exits.TEMPORARY,
    Reason.INVALID_PAYLOAD: exits.DATA,
}


def run(client: Client, wanted: JobSubmit) -> JobResult:
    """Submit a job and return its result, and tell people how far it is; Ctrl-C cancels it. Raises Detached."""
    progress = Progress()
    with Interrupts(client.socket_path, "cancel") as interrupts:
        job = client.submit(wanted).job.id
        interrupts.guard(job)
        try:
            while not (view := client.wait(job, PROGRESS_S)).state.is_final:
                progress.show(client, view)
        finally:
            progress.clear()
        return client.result(job)


class Progress:
    """A line on the terminal that says how far a job is."""

    def __init__(self) -> None:
        self._is_wanted = sys.stderr.isatty()
        self._is_shown = False

    def show(self, client: Client, view: JobView) -> None:
        if not self._is_wanted:
            return
        said = client.get(view.id).progress
        text = f"{view.state}: {said.message}" if said is not None and said.message else str(view.state)
        if said is not None and said.percent:
            text = f"{said.percent:.0f} % {text}"
        sys.stderr.write(f"\r\x1b[K{cell(text)}")
        sys.stderr.flush()
        self._is_shown = True

    def clear(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def code_of(reason: Reason) -> int:
    """Return the exit code for a job that failed."""
    return _CODES.get(reason, exits.FAILED)
