"""What can go wrong between a client and its node, and what to do about it."""

from __future__ import annotations

import os
import stat
from typing import Final

import msgspec

from jobs.client.decoding import decode_json
from jobs.errors import InternalError, JobsError, error_types
from jobs.protocol.ids import JobId
from jobs.protocol.model import Problem, Reason

_A_SOCKET: Final = "the path of a node's socket"


class ConnectionFailed(JobsError):
    """The node could not be reached, or went away before it had answered.

    `sent` tells whether the request may have reached it: then a write may have been done, or not.
    """

    code, status, title = "connection_failed", 0, "No connection to the node"

    def __init__(self, detail: str, *, expected: str | None = None, sent: bool) -> None:
        super().__init__(detail, expected=expected)
        self.sent = sent


class QueryFailed(JobsError):
    """A query's job failed; `reason` says why, and the text tells the place in the statement where that is known."""

    code, status, title = "query_failed", 0, "The query failed"

    def __init__(self, detail: str, *, job: JobId, reason: Reason) -> None:
        super().__init__(detail)
        self.job = job
        self.reason = reason


class SourceFailed(JobsError):
    """What is to be uploaded cannot be read, or changes meanwhile."""

    code, status, title = "source_failed", 0, "The content cannot be read"


class TargetFailed(JobsError):
    """What is downloaded cannot be written where it is to be."""

    code, status, title = "target_failed", 0, "The content cannot be written"


class OperationFailed(JobsError):
    """The job of an operation failed; `reason` says why, the text which operation, on which node, and the cause."""

    code, status, title = "operation_failed", 0, "The operation failed"

    def __init__(self, detail: str, *, job: JobId, reason: Reason) -> None:
        super().__init__(detail)
        self.job = job
        self.reason = reason


def unreachable(socket: str, error: OSError) -> ConnectionFailed:
    """Return what to do about a socket that cannot be used."""
    if isinstance(error, ConnectionRefusedError) and not _is_socket(socket):
        return ConnectionFailed(f"cannot connect to {socket}: it is no socket", expected=_A_SOCKET, sent=False)
    hints = {
        FileNotFoundError: "a running node: start jobs-node, or name its socket in JOBS_SOCKET",
        ConnectionRefusedError: "a running node: the socket is there, but nobody serves it; start jobs-node",
        PermissionError: "membership of the socket's group (usually 'jobs'); log in again after being added to it",
    }
    hint = next((text for kind, text in hints.items() if isinstance(error, kind)), "the path of a node's socket")
    return ConnectionFailed(f"cannot connect to {socket}: {error.strerror or error}", expected=hint, sent=False)


def _is_socket(path: str) -> bool:
    """Return False for something else; True as well where that cannot be told."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def gone(error: BaseException) -> ConnectionFailed:
    """Return the loss of a node that was asked something."""
    if isinstance(error, TimeoutError):
        hint = "a node that has started: systemctl status jobs-node, and its log, say what it does"
        return ConnectionFailed("the connection to the node was lost: no answer in time", expected=hint, sent=True)
    return ConnectionFailed(f"the connection to the node was lost: {str(error) or type(error).__name__}", sent=True)


def error_of(status: int, data: bytes, retry_after: str | None) -> JobsError:
    """Return the error that a problem document stands for."""
    try:
        problem = decode_json(Problem, data)
    except msgspec.MsgspecError:
        return InternalError(f"the node answered {status} with something else than a problem document")
    kind = error_types().get(problem.code, InternalError)
    after = retry_after if retry_after and retry_after.isascii() and retry_after.isdigit() else None
    return kind(
        problem.detail,
        field=problem.field,
        expected=problem.expected,
        retry_after_s=float(after[:9]) if after is not None else None,
    )
