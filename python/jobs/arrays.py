"""Arrays: one job that stands for many tasks, which become jobs of their own shortly before they can start. Pure.

An array is stored as one job and one `ArrayRecord`; its items stand in chunks beside it. What is to be split off next,
what a task is, how far an array is and how it ended are decided here; `control.arrays` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import indices, jobs
from jobs.indices import Indices
from jobs.protocol.ids import JobId
from jobs.protocol.model import ArraySpec, ArrayView, Progress, Reason
from jobs.records import ArrayRecord, JobRecord

WINDOW: Final = 256
"""Tasks of one array that wait for a worker as jobs of their own; below half of it more are split off."""
LEAST_WINDOW: Final = 8
WINDOWS: Final = 16_384
"""Of all arrays together, as long as that leaves each its least."""
MAX_RETRYING: Final = 4_096
"""While so many tasks of an array wait to be tried again, no further ones are begun."""
SPLIT: Final = 200
"""Tasks that one transaction splits off: each takes three of its 1,000 operations."""
SHOWN_RUNS: Final = 100
"""Of failed indices."""


# --- what the tasks are made from -------------------------------------------------------------------------------------


def record_of(array: ArraySpec, size: int) -> ArrayRecord:
    """Return the first record of the tasks of an array."""
    numbers = array.range
    if numbers is not None:
        return ArrayRecord(
            source="range", size=size, start=numbers.start, step=numbers.step, max_running=array.max_running
        )
    return ArrayRecord(source="lines" if array.lines is not None else "items", size=size, max_running=array.max_running)


def cut(listed: bytes, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the items, which are one a line, in chunks for the store, each with the index of its first."""
    first = start = 0
    while start <= len(listed):
        end = len(listed)
        if end - start > chunk_bytes:
            end = listed.rfind(b"\n", start, start + chunk_bytes)
            if end < 0:
                end = listed.find(b"\n", start + chunk_bytes)
            if end < 0:
                end = len(listed)
        chunk = listed[start:end]
        yield first, chunk
        first += chunk.count(b"\n") + 1
        start = end + 1


def repeated(record: ArrayRecord) -> ArrayRecord:
    """Return the first record of an array that repeats some tasks of another."""
    return ArrayRecord(
        source=record.source,
        size=record.size,
        start=record.start,
        step=record.step,
        is_subset=True,
        max_running=record.max_running,
    )


def only(chunk: bytes, first: int, members: Indices) -> bytes | None:
    """Return a chunk of items with those blanked that are no members; None when none is."""
    items = chunk.split(b"\n")
    wanted = members >> first & (1 << len(items)) - 1
    if not wanted:
        return None
    return b"\n".join(item if wanted >> offset & 1 else b"" for offset, item in enumerate(items))


def item(record: ArrayRecord, index: int, chunk: tuple[int, bytes] | None) -> str:
    """Return what a task is given: a number, or its line of the chunk that the list's are in."""
    if chunk is None:
        return str(record.start + record.step * index)
    first, data = chunk
    return data.split(b"\n", index - first + 1)[index - first].decode()


def environment(array: JobId, index: int, record: ArrayRecord, given: str) -> dict[str, str]:
    """Return the variables that tell a task which one it is."""
    return {
        "JOBS_ARRAY_ID": array,
        "JOBS_ARRAY_INDEX": str(index),
        "JOBS_ARRAY_COUNT": str(record.size),
        "JOBS_ARRAY_ITEM": given,
    }


# --- splitting off ----------------------------------------------------------------------------------------------------


class Tally:
    """How the tasks of an array that were split off stand: kept by the leader, from the changes of each."""

    __slots__ = ("cancelled", "failed", "log_bytes", "ready", "retrying", "running", "split", "stored_bytes")

    def __init__(self) -> None:
        self.split = 0
        self.ready = 0
        self.retrying = 0
        self.running = 0
        self.failed = 0
        self.cancelled = 0
        self.stored_bytes = 0
        self.log_bytes = 0

    @property
    def active(self) -> int:
        """Those that have not ended."""
        return self.ready + self.retrying + self.running

    @property
    def completed(self) -> int:
        return self.split - self.active - self.failed - self.cancelled

    def move(self, old: JobRecord | None, new: JobRecord) -> None:
        """A task was split off, or changed."""
        if old is None:
            self.split += 1
        else:
            self.add(old, -1)
        self.add(new)
        self.stored_bytes += new.stored_bytes - (0 if old is None else old.stored_bytes)
        self.log_bytes += new.log_bytes - (0 if old is None else old.log_bytes)

    def add(self, record: JobRecord, count: int = 1) -> None:
        """Count a task that stands so."""
        if record.state is jobs.RUNNING:
            self.running += count
        elif record.state is jobs.PENDING:
            if jobs.is_ready(record):
                self.ready += count
            else:
                self.retrying += count
        elif record.reason is Reason.CANCELLED:
            self.cancelled += count
        elif record.state is jobs.FAILED:
            self.failed += count


def window(arrays: int) -> int:
    """Return how many tasks of one array may wait as jobs of their own, beside so many other arrays."""
    return max(LEAST_WINDOW, min(WINDOW, WINDOWS // max(1, arrays)))


def wanted(tally: Tally, width: int) -> int:
    """Return how many tasks to split off now so that workers find some; 0 while enough of them wait."""
    if tally.ready * 2 > width or tally.retrying >= MAX_RETRYING:
        return 0
    return min(SPLIT, width - tally.ready)


def following(record: ArrayRecord, unsplit: Indices, limit: int) -> tuple[list[int], int]:
    """Return the next indices to split off, and the first one after them that may be."""
    found = list(islice(indices.each(unsplit, record.next), limit))
    return found, found[-1] + 1 if len(found) == limit else record.size


def task_record(array: JobId, parent: JobRecord, record: ArrayRecord) -> JobRecord:
    """Return the first record of a task: of the age of its array, and ready at once."""
    return JobRecord(
        type=parent.type,
        queue=parent.queue,
        priority=parent.priority,
        owner=parent.owner,
        state=jobs.PENDING,
        submitted_ms=parent.submitted_ms,
        ready_ms=parent.ready_ms,
        timeout_s=parent.timeout_s,
        retry=parent.retry,
        requires=parent.requires,
        labels=parent.labels,
        deadline_ms=parent.deadline_ms,
        heartbeat_s=parent.heartbeat_s,
        concurrency_key=parent.concurrency_key if record.max_running is None else f"array={array}",
        concurrency_limit=parent.concurrency_limit if record.max_running is None else record.max_running,
        schedule=parent.schedule,
        nominal_ms=parent.nominal_ms,
        stored_bytes=jobs.JOB_BYTES,
        is_task=True,
        traceparent=parent.traceparent,
        tracestate=parent.tracestate,
    )


def unsplit_record(array: JobId, parent: JobRecord, record: ArrayRecord, *, withdrawn: bool) -> JobRecord:
    """Return what stands for a task that is no job of its own: one that will be, or one that never was."""
    task = task_record(array, parent, record)
    reason = Reason.CANCELLED if withdrawn else rest(parent, record)
    if reason is None:
        return task
    message = jobs.NOT_STARTED if reason is Reason.DEADLINE else f"its array ended before it ran: {reason}"
    if reason is Reason.CANCELLED:
        message = "cancelled before it ran"
    ended_ms = parent.finished_ms or parent.submitted_ms
    return replace(task, state=jobs.FAILED, reason=reason, message=message, finished_ms=ended_ms)


# --- how far it is, and how it ended ----------------------------------------------------------------------------------


class Count(Struct, frozen=True):
    """Each task of an array in one of five states."""

    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int


def count(tasks: int, tally: Tally, withdrawn: int, rest: Reason | None) -> Count:
    """Return how the tasks of an array stand; `rest` is why those that were not split off never will be, if so."""
    unsplit = tasks - tally.split - withdrawn
    never = 0 if rest is None else unsplit
    cancelled = tally.cancelled + withdrawn + (never if rest is Reason.CANCELLED else 0)
    failed = tally.failed + (0 if rest is Reason.CANCELLED else never)
    pending = tally.ready + tally.retrying + unsplit - never
    return Count(pending, tally.running, tally.completed, failed, cancelled)


def final_tally(record: ArrayRecord) -> Tally:
    """Return how the tasks stand that were split off, once the array has ended."""
    tally = Tally()
    tally.split, tally.failed, tally.cancelled = record.split, record.failed, record.cancelled
    return tally


def rest(parent: JobRecord, record: ArrayRecord) -> Reason | None:
    """Return why the tasks that were not split off never will be; None while they may."""
    return record.rest or jobs.rest_of(parent)


def percent(parent: JobRecord, found: Count) -> float:
    """Return the share of tasks that have ended, rounded down so that only all of them are 100."""
    ended = found.completed + found.failed + found.cancelled
    return ended * 1000 // parent.tasks / 10


def progress(parent: JobRecord, found: Count, now_ms: int) -> Progress:
    """Return the same in the words of any job's progress."""
    ended = found.completed + found.failed + found.cancelled
    parts = [f"{ended:,} of {parent.tasks:,} tasks ended"]
    for name, number in (("failed", found.failed), ("cancelled", found.cancelled), ("running", found.running)):
        if number:
            parts.append(f"{number:,} {name}")
    return Progress(percent=percent(parent, found), message=", ".join(parts), at_ms=now_ms)


def view(array: JobId, parent: JobRecord, record: ArrayRecord, found: Count, failed: str) -> ArrayView:
    """Return the array as a client sees it; `failed` are the indices of its failed tasks."""
    return ArrayView(
        id=array,
        state=parent.state,
        source=record.source,
        tasks=parent.tasks,
        size=record.size,
        pending=found.pending,
        running=found.running,
        completed=found.completed,
        failed=found.failed,
        cancelled=found.cancelled,
        percent=percent(parent, found),
        failed_indices=failed,
        redrive_of=parent.redrive_of,
    )


def outcome(
    parent: JobRecord, found: Count, first_failed: tuple[int, Reason] | None
) -> tuple[Reason | None, str | None]:
    """Return why an array fails as a whole whose tasks have all ended so, and in words; None if it does not."""
    if found.failed == found.cancelled == 0:
        return None, None
    many = f"of {parent.tasks:,} tasks"
    if parent.cancel_requested or first_failed is None:
        done = f"; {found.failed:,} failed" if found.failed else ""
        return Reason.CANCELLED, f"{found.cancelled:,} {many} were cancelled{done}"
    index, reason = first_failed
    return reason, f"{found.failed:,} {many} failed, first index {index}: {reason}"
