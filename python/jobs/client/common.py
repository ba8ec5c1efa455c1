"""What both clients share, pure: requests, answers, server-sent events, when to try again."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs.content import content_of
from jobs.errors import InternalError, JobsError, error_types
from jobs.protocol import model
from jobs.protocol.model import Content, JobState, JobSubmit, KvOp, KvPut, KvTxn, Problem, ShellJob, ShellPayload

T = TypeVar("T")

SOCKET_VARIABLE: Final = "JOBS_SOCKET"
DEFAULT_SOCKET: Final = "/run/jobs/api.sock"
TIMEOUT_S: Final = 60.0
"""For an answer, on top of what a request asks the node to wait."""
POLL_S: Final = 300.0
"""Longest wait that the node takes in one request."""
TRIES: Final = 8
BACKOFF_S: Final = 0.05
BACKOFF_CAP_S: Final = 2.0
EVENT_STREAM: Final = "text/event-stream"
_encode = msgspec.json.Encoder().encode


class ConnectionFailed(JobsError):
    """The node could not be reached, or went away before it had answered."""

    code, status, title = "connection_failed", 0, "No connection to the node"


def default_socket() -> str:
    """Return what JOBS_SOCKET names, or the system's node."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


class Request(Struct, frozen=True, kw_only=True):
    """One request; `safe` when it may be sent again without harm after its answer was lost."""

    method: str
    target: str
    body: bytes | None = None
    headers: dict[str, str] = {}
    safe: bool = False
    timeout_s: float = TIMEOUT_S


def get(path: str, query: Mapping[str, Any] | None = None, *, wait_s: float = 0.0, **headers: str) -> Request:
    """Return a read. Values of the query that are None are left out, lists are repeated."""
    return Request(
        method="GET", target=target(path, query), headers=dict(headers), safe=True, timeout_s=TIMEOUT_S + wait_s
    )


def stream(path: str, query: Mapping[str, Any], resume: str | None) -> Request:
    """Return a read of events, from after the event `resume` on."""
    headers = {"Accept": EVENT_STREAM}
    if resume is not None:
        headers["Last-Event-ID"] = resume
    return Request(method="GET", target=target(path, query), headers=headers, safe=True)


def post(path: str, body: Any = None, *, safe: bool = False) -> Request:
    data = b"" if body is None else _encode(body)
    return Request(
        method="POST", target=path, body=data, headers={"Content-Type": "application/json"} if data else {}, safe=safe
    )


def target(path: str, query: Mapping[str, Any] | None) -> str:
    pairs: list[tuple[str, str]] = []
    for name, value in (query or {}).items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        pairs += [(name, _text(item)) for item in values]
    return path + ("?" + urlencode(pairs) if pairs else "")


def segment(text: str) -> str:
    """Return a part of a path, quoted."""
    return quote(text, safe="")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def label_query(labels: Mapping[str, str] | None) -> list[str]:
    return [f"{name}={value}" for name, value in (labels or {}).items()]


def decode(kind: type[T], data: bytes) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InternalError(f"the node's answer cannot be read: {error}") from error


def error_of(status: int, data: bytes, retry_after: str | None) -> JobsError:
    """Return the error that a problem document stands for."""
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except msgspec.MsgspecError:
        return InternalError(f"the node answered {status} with something else than a problem document")
    kind = error_types().get(problem.code, JobsError)
    after = float(retry_after) if retry_after and re.fullmatch(r"\d{1,6}", retry_after) else None
    return kind(problem.detail, field=problem.field, expected=problem.expected, retry_after_s=after)


def is_transient(error: JobsError) -> bool:
    """Tell whether the same request may succeed a little later."""
    return error.status in (429, 503) or isinstance(error, ConnectionFailed)


def pause_s(attempt: int, error: JobsError, chance: float) -> float:
    """Return the wait before try `attempt` + 1, from 1: exponential with full jitter, at least what the node asks."""
    backoff: float = min(BACKOFF_CAP_S, BACKOFF_S * 2.0**attempt) * chance
    return max(backoff, min(error.retry_after_s or 0.0, BACKOFF_CAP_S))


def refused(socket: str, error: OSError) -> ConnectionFailed:
    """Return what to do about a socket that cannot be used."""
    hints = {
        FileNotFoundError: f"a running node; is it started, and is {SOCKET_VARIABLE} right?",
        ConnectionRefusedError: "a running node: the socket is there, but nobody serves it; start jobs-node",
        PermissionError: "membership of the socket's group (usually 'jobs'); log in again after being added to it",
    }
    hint = next((text for kind, text in hints.items() if isinstance(error, kind)), "a node that answers")
    return ConnectionFailed(f"cannot talk to {socket}: {error.strerror or error}", expected=hint)


# --- submissions -----------------------------------------------------------------------------------------------------


def with_key(job: JobSubmit) -> JobSubmit:
    """Return the job with an idempotency key of its own where it has none, so that it can be sent again safely."""
    return job if job.idempotency_key is not None else replace(job, idempotency_key=f"client-{uuid.uuid4().hex}")


def shell_job(
    command: Sequence[str] | str,
    *,
    stdin: bytes | str | None = None,
    files: Mapping[str, bytes | str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    limits: model.Limits | None = None,
    network: str = "none",
    grace_s: float | None = None,
    **options: Any,
) -> ShellJob:
    """Return a job that runs a command: a sequence of arguments, or a script for /bin/sh as one string.

    `options` are the other fields of `ShellJob`, such as `queue`, `priority`, `timeout_s`, `retry`, `labels`.
    """
    payload = ShellPayload(
        argv=None if isinstance(command, str) else list(command),
        script=command if isinstance(command, str) else None,
        env=dict(env or {}),
        cwd=cwd,
        stdin=None if stdin is None else to_content(stdin),
        files={name: to_content(content) for name, content in (files or {}).items()},
        limits=limits or model.Limits(),
        network=network,  # type: ignore[arg-type]
        grace_s=grace_s,
    )
    return ShellJob(payload=payload, **options)


def to_content(value: bytes | str) -> Content:
    return Content(text=value) if isinstance(value, str) else content_of(value)


def batches(jobs: Iterable[JobSubmit]) -> Iterator[list[JobSubmit]]:
    """Yield lots that one request carries: each is accepted whole or not at all."""
    batch: list[JobSubmit] = []
    for job in jobs:
        batch.append(with_key(job))
        if len(batch) == model.BATCH_JOBS:
            yield batch
            batch = []
    if batch:
        yield batch


def list_query(
    *,
    state: Sequence[JobState] | JobState | None = None,
    type: str | None = None,
    queue: str | None = None,
    owner: int | None = None,
    worker: str | None = None,
    labels: Mapping[str, str] | None = None,
    newest_first: bool = True,
    limit: int = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    return {
        "state": [state] if isinstance(state, str) else list(state or ()),
        "type": type,
        "queue": queue,
        "owner": owner,
        "worker": worker,
        "label": label_query(labels),
        "order": "newest" if newest_first else "oldest",
        "limit": limit,
        "cursor": cursor,
    }


def put_of(key: str, value: bytes | str, lease: int = 0) -> KvPut:
    return KvPut(key=key, value=to_content(value), lease=lease)


def txn_of(compare: Sequence[model.KvCompare], then: Sequence[KvOp], otherwise: Sequence[KvOp]) -> KvTxn:
    return KvTxn(compare=list(compare), then=list(then), otherwise=list(otherwise))


# --- server-sent events ----------------------------------------------------------------------------------------------


class SentEvent(Struct, frozen=True):
    """One event; `data` is empty for one that only moves the position."""

    id: str
    kind: str
    data: bytes


class EventParser:
    """Cuts a stream of bytes into server-sent events (WHATWG HTML §9.2); comments are passed over."""

    MAX_BYTES: Final = 64 << 20

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[SentEvent]:
        """Yield the events that are now complete. Raises InternalError for one that never ends."""
        self._buffer += data
        while (end := self._buffer.find(b"\n\n")) >= 0:
            block = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            event = self._event(block)
            if event is not None:
                yield event
        if len(self._buffer) > self.MAX_BYTES:
            raise InternalError(f"an event of more than {self.MAX_BYTES} bytes")

    def _event(self, block: bytes) -> SentEvent | None:
        fields = {"id": b"", "event": b"", "data": b""}
        found = False
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            if name.decode(errors="replace") in fields and name:
                found = True
                fields[name.decode()] += value.removeprefix(b" ")
        if not found:
            return None
        return SentEvent(fields["id"].decode(), fields["event"].decode(), fields["data"])


def decode_event(kind: type[T], event: SentEvent) -> T | None:
    """Return the event's content, None when it has none. Raises the error that a problem event carries."""
    if event.kind == "problem":
        raise error_of(0, event.data, None)
    return decode(kind, event.data) if event.data else None
