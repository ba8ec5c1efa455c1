"""Many jobs in few requests: lots that one request carries, keys to resume by, a tally of what is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import Raw, Struct
from msgspec.structs import replace

from jobs.client.requests import encode
from jobs.errors import InvalidRequest, JobsError, QueueFull, TooManyRequests
from jobs.protocol.model import BATCH_JOBS, JobSubmit, Submitted

LOT_BYTES: Final = (10 << 20) - 1024
"""Jobs of one request, as JSON: what a node takes, less what is around them."""
KEY_ROOM_BYTES: Final = 512
"""For the longest idempotency key, so that lots are cut alike whatever the batch is called."""
MAX_BATCH_NAME_BYTES: Final = 200


class SubmitProgress(Struct, frozen=True, kw_only=True):
    """How far `submit_many` is."""

    done: int = 0
    """Jobs that the node has, those that it knew already included."""
    created: int = 0
    waits_for: JobsError | None = None
    """Why the node takes no more for now; the rest is sent as soon as it does."""
    pause_s: float = 0.0
    """Until the node is asked again."""


OnProgress = Callable[[SubmitProgress], None]


class Cutter:
    """Tells where one lot ends and the next begins, from the size of each job alone."""

    def __init__(self) -> None:
        self._jobs = 0
        self._bytes = 0

    def begins(self, size_bytes: int) -> bool:
        """Take one more job in; return whether it is the first of another lot."""
        size_bytes += KEY_ROOM_BYTES
        first = self._jobs == 0 or self._jobs == BATCH_JOBS or self._bytes + size_bytes > LOT_BYTES
        if first:
            self._jobs = self._bytes = 0
        self._jobs += 1
        self._bytes += size_bytes
        return first


class Tally:
    """Counts what was answered, and tells of it."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._tell = on_progress or (lambda progress: None)
        self._now = SubmitProgress()

    def on_answer(self, submitted: Sequence[Submitted]) -> Sequence[Submitted]:
        """Count a lot that the node has taken in, and return it."""
        created = sum(one.created for one in submitted)
        self._now = SubmitProgress(done=self._now.done + len(submitted), created=self._now.created + created)
        self._tell(self._now)
        return submitted

    def on_refusal(self, error: JobsError) -> float:
        """Return how long to wait until the node may take more; raise the error when waiting does not help."""
        if not isinstance(error, QueueFull | TooManyRequests) or error.retry_after_s is None:
            raise error
        self._tell(replace(self._now, waits_for=error, pause_s=error.retry_after_s))
        return error.retry_after_s


def lots(jobs: Iterable[JobSubmit], batch: str | None) -> Iterator[list[Raw]]:
    """Yield encoded jobs in lots that one request carries: each is accepted whole or not at all.

    A job without an idempotency key is given one: from the batch's name and its number from 1 on, or by chance.
    """
    name = new_batch() if batch is None else checked_batch(batch)
    cutter = Cutter()
    lot: list[Raw] = []
    for number, job in enumerate(jobs, 1):
        if cutter.begins(len(encode(job))) and lot:
            yield lot
            lot = []
        lot.append(Raw(encode(keyed(job, name, number))))
    if lot:
        yield lot


def keyed(job: JobSubmit, batch: str, number: int) -> JobSubmit:
    """Return the job with a key by which it is known again, unless it has one of its own."""
    return job if job.idempotency_key is not None else replace(job, idempotency_key=f"batch:{batch}:{number}")


def new_batch() -> str:
    """Return a name that nobody else uses."""
    return f"client-{os.urandom(16).hex()}"


def checked_batch(name: str) -> str:
    """Return the name of a batch; raise InvalidRequest for one that makes no idempotency key."""
    if not name.isprintable() or not 1 <= len(name.encode()) <= MAX_BATCH_NAME_BYTES:
        raise InvalidRequest(
            f"{name!r:.300} is no name of a batch",
            field="batch",
            expected=f"1 to {MAX_BATCH_NAME_BYTES} bytes that can be printed",
        )
    return name
