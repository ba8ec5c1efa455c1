"""Arrays of tasks: how far they are, and parts of them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from jobs.protocol.ids import JobId
from jobs.protocol.model.base import IdempotencyKey, JobState, Model

IndexText = Annotated[str, Meta(min_length=1, max_length=1 << 20, pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")]
"""Indices of tasks, such as `5,10-20`."""


class ArrayView(Model, frozen=True):
    """How far an array is: each of its tasks is counted in exactly one of the five states."""

    id: JobId
    state: JobState
    """Of the array as a whole."""
    source: Literal["range", "lines", "items"]
    tasks: int
    size: int
    """Its indices are below this; more than there are tasks when it repeats some of another array."""
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    percent: float
    """Share of the tasks that have ended."""
    failed_indices: str
    """Such as `5,10-20`; of more than 100 runs the first, then `…`."""
    redrive_of: JobId | None


class TasksCancel(Model, frozen=True):
    """Which tasks of an array to end."""

    indices: IndexText


class ArrayRetry(Model, frozen=True):
    """Which tasks of an ended array to repeat as a new one: all that did not complete, unless told otherwise."""

    indices: IndexText | None = None
    """Only these; each must have failed or been cancelled."""
    only: Literal["failed", "cancelled"] | None = None
    """Only those that ended so."""
    idempotency_key: IdempotencyKey | None = None
    """The same key makes the same array only once."""
