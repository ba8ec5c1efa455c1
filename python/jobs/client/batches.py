"""Many jobs in few requests: lots that one request carries, keys to resume by, a tally of what is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import Raw, Struct
from msgspec.structs import replace

from jobs.client.requests import encode
from jobs.client.submission import new_key
from jobs.errors import InvalidRequest, JobsError, QueueFull, TooManyRequests
from jobs.protocol.ids import JobId, is_job_id
from jobs.protocol.model import BATCH_JOBS, BATCH_OPERATIONS, JobSubmit, Submitted
from jobs.validate import operations_of

LOT_BYTES: Final = (10 << 20) - 1024
"""Jobs of one request, as JSON: what a node takes, less what is around them."""
KEY_ROOM_BYTES: Final = 512
"""For the longest idempotency key, so that lots are cut alike whatever the batch is called."""
ID_BYTES: Final = 36
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
    """Tells where one lot ends and the next begins, from each job alone."""

    def __init__(self) -> None:
        self._jobs = 0
        self._bytes = 0
        self._operations = 0

    def begins(self, size_bytes: int, operations: int) -> bool:
        """Take one more job in; return whether it is the first of another lot."""
        size_bytes += KEY_ROOM_BYTES
        full = (
            self._jobs == BATCH_JOBS
            or self._bytes + size_bytes > LOT_BYTES
            or self._operations + operations > BATCH_OPERATIONS
        )
        first = self._jobs == 0 or full
        if first:
            self._jobs = self._bytes = self._operations = 0
        self._jobs += 1
        self._bytes += size_bytes
        self._operations += operations
        return first


class Refs:
    """Which job of a batch has which ref. A job can depend on those before it only, so there are no circles."""

    def __init__(self, what: str = "job") -> None:
        self._what = what
        self._first: dict[str, int] = {}

    def wrong(self, number: int, job: JobSubmit) -> Iterator[InvalidRequest]:
        """Take the next job in; yield what cannot be of what it says of others."""
        for index, parent in enumerate(job.depends_on):
            if parent not in self._first and not is_job_id(parent):
                yield InvalidRequest(
                    f"{parent!r} is neither a job's id nor the ref of an earlier {self._what}",
                    field=f"$.depends_on[{index}]",
                    expected=f"an id, or the ref of a {self._what} before this one",
                )
        if job.ref is not None and (first := self._first.setdefault(job.ref, number)) != number:
            yield InvalidRequest(
                f"{job.ref!r} is the ref of {self._what} {first} too", field="$.ref", expected="a ref of its own"
            )


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


class Lots:
    """Encoded jobs in lots that one request carries: each is accepted whole or not at all.

    A job without an idempotency key is given one: from the batch's name and its number from 1 on, or by chance. Refs of
    former lots are replaced by the ids that these were answered with: the same each time, because what is cut together
    and what is known by its key is the same each time.
    """

    def __init__(self, jobs: Iterable[JobSubmit], batch: str | None) -> None:
        self._jobs = jobs
        self._batch = new_key() if batch is None else checked_batch(batch)
        self._ids: dict[str, JobId] = {}
        self._refs: list[str | None] = []
        """Of the present lot."""

    def __iter__(self) -> Iterator[list[Raw]]:
        """Yield the lots; `on_answer` is told what became of one before the next is asked for.

        Raises InvalidRequest for a job that depends on none before it.
        """
        cutter, refs = Cutter(), Refs()
        lot: list[Raw] = []
        for number, job in enumerate(self._jobs, 1):
            for wrong in refs.wrong(number, job):
                raise InvalidRequest(f"job {number}: {wrong.detail}", field=wrong.field, expected=wrong.expected)
            if cutter.begins(len(encode(job)) + growth_bytes(job), operations_of(job)) and lot:
                yield lot
                lot, self._refs = [], []
            lot.append(Raw(encode(keyed(self._resolved(job), self._batch, number))))
            self._refs.append(job.ref)
        if lot:
            yield lot

    def on_answer(self, submitted: Sequence[Submitted]) -> None:
        """Take note of the ids of the lot that was yielded last."""
        for ref, one in zip(self._refs, submitted, strict=True):
            if ref is not None:
                self._ids[ref] = one.job.id

    def _resolved(self, job: JobSubmit) -> JobSubmit:
        if not any(parent in self._ids for parent in job.depends_on):
            return job
        return replace(job, depends_on=[self._ids.get(parent, parent) for parent in job.depends_on])


def growth_bytes(job: JobSubmit) -> int:
    """Return by how much a job may grow when the refs that it depends on are replaced by ids."""
    return sum(max(0, ID_BYTES - len(parent)) for parent in job.depends_on)


def keyed(job: JobSubmit, batch: str, number: int) -> JobSubmit:
    """Return the job with a key by which it is known again, unless it has one of its own."""
    return job if job.idempotency_key is not None else replace(job, idempotency_key=f"batch:{batch}:{number}")


def checked_batch(name: str) -> str:
    """Return the name of a batch; raise InvalidRequest for one that makes no idempotency key."""
    if not name.isprintable() or not 1 <= len(name.encode()) <= MAX_BATCH_NAME_BYTES:
        raise InvalidRequest(
            f"{name!r:.300} is no name of a batch",
            field="batch",
            expected=f"1 to {MAX_BATCH_NAME_BYTES} bytes that can be printed",
        )
    return name
