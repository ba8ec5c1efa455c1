"""Cancellations, of one job or a selection, and what they did."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from jobs.protocol.model.base import JobState, Labels, Model, Name
from jobs.protocol.model.jobs import JobView


class CancelCounts(Model, frozen=True):
    """What a cancellation of many jobs did: ended at once, asked of the worker, or nothing."""

    cancelled: int
    requested: int
    already_final: int


class CancelOutcome(Model, frozen=True):
    """What a cancellation did: `cancelled` at once, `requested` of the worker, or nothing (`already_final`)."""

    outcome: Literal["cancelled", "requested", "already_final"]
    job: JobView
    tasks: CancelCounts | None = None
    """Of an array, what it did to those of its tasks that it was about."""


class CancelMany(Model, frozen=True):
    """Which jobs to end: all that is given must match, and something has to be given. Others' jobs only for admins."""

    labels: Labels = field(default_factory=dict)
    queue: Name | None = None
    states: Annotated[list[JobState], Meta(max_length=4)] = field(default_factory=list)
    """One of these."""
    type: str | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    worker: str | None = None
    schedule: Name | None = None
    """Those that this schedule made."""
    all: bool = False
    """Without anything else: every job that the caller may end."""
    cursor: str | None = None
    """`next_cursor` of the answer before."""


class CancelPage(CancelCounts, frozen=True):
    """What one page of a cancellation did."""

    next_cursor: str | None
    """To go on with; null when every job was looked at."""
