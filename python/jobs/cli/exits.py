"""Exit codes of `jobctl`: stable, documented in docs/cli.md; those of sysexits.h, timeout(1) and the shells."""

from __future__ import annotations

from typing import Final

from jobs.client import ConnectionFailed
from jobs.client.failures import SourceFailed, TargetFailed
from jobs.errors import Forbidden, InvalidRequest, JobsError, PayloadTooLarge, Unavailable
from jobs.protocol.model import JobState, JobView, Reason

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
DATA: Final = 65
UNAVAILABLE: Final = 69
OUTPUT: Final = 74
TEMPORARY: Final = 75
FORBIDDEN: Final = 77
CONFIG: Final = 78
TIMEOUT: Final = 124
NOT_RUN: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNAL_BASE: Final = 128
INTERRUPTED: Final = 130

_BY_REASON: Final[dict[Reason, int]] = {
    Reason.TIMEOUT: TIMEOUT,
    Reason.DEADLINE: TIMEOUT,
    Reason.CANCELLED: INTERRUPTED,
    Reason.WORKER_LOST: TEMPORARY,
    Reason.INVALID_PAYLOAD: DATA,
    Reason.OOM: SIGNAL_BASE + 9,
}
_DIRECTORY: Final = "working directory: "
_MISSING: Final = "no such file or directory"
"""How the sandbox begins, and ends, what it says of a command that could not be started."""

TABLE: Final = """exit codes of run:
  0..255  the command's own
  124     timeout            125  failed for another reason than the command's own
  126     not executable     127  command not found
  128+N   ended by signal N  130  cancelled, or left alone after Ctrl-C
  137     out of memory      75   the worker was lost
of every command:
  1 failed   2 wrong usage   65 bad input   69 no node   74 cannot write   77 not allowed   78 bad configuration"""


def of_job(job: JobView) -> int:
    """Return the code that `run` ends with."""
    if job.state is JobState.COMPLETED or job.reason is Reason.EXIT_CODE:
        return job.exit_code or (OK if job.state is JobState.COMPLETED else FAILED)
    if job.reason is Reason.SIGNAL and job.signal is not None:
        return SIGNAL_BASE + job.signal
    if job.reason is Reason.SPAWN_FAILED:
        return _of_spawn(job.message or "")
    return _BY_REASON.get(job.reason, NOT_RUN) if job.reason is not None else NOT_RUN


def _of_spawn(message: str) -> int:
    """Tell a missing command, one that cannot be executed, and a directory that cannot be entered apart."""
    if message.startswith(_DIRECTORY):
        return NOT_RUN
    return NOT_FOUND if _MISSING in message else NOT_EXECUTABLE


def of_error(error: JobsError) -> int:
    """Return the code of a command that could not be carried out."""
    if isinstance(error, InvalidRequest | PayloadTooLarge | SourceFailed):
        return DATA
    if isinstance(error, TargetFailed):
        return OUTPUT
    if isinstance(error, ConnectionFailed | Unavailable):
        return UNAVAILABLE
    return FORBIDDEN if isinstance(error, Forbidden) else FAILED
