"""A node at a glance."""

from __future__ import annotations

from jobs.protocol.model.base import Model
from jobs.protocol.model.deadletters import DeadLetter
from jobs.protocol.model.jobs import JobView, Progress
from jobs.protocol.model.queues import OwnerView, QueueView
from jobs.protocol.model.workers import WorkerView


class Rates(Model, frozen=True):
    """How many a second, on average over about the last ten seconds."""

    submitted: float
    """Jobs accepted."""
    started: float
    """Attempts given to workers."""
    ended: float
    """Jobs that completed or failed for good."""


class RunningJob(Model, frozen=True):
    """A job that a worker has."""

    job: JobView
    progress: Progress | None


class Overview(Model, frozen=True):
    """How the node is and what goes on, in bounded parts; jobs are those that the caller may see."""

    node: str
    version: str
    leader: bool
    uptime_s: float
    now_ms: int
    """The node's clock, by which all times here are."""
    pending: int
    waiting: int
    """Of the pending: those that wait for a time or for other jobs."""
    running: int
    slots: int
    """Of all workers."""
    rates: Rates
    own: OwnerView
    """The caller's own jobs and limits."""
    all_owners: bool
    """Jobs are told of all owners, not of the caller only."""
    queues: list[QueueView]
    """Those with most jobs first, of up to 10,000 that are looked at."""
    more_queues: int
    workers: list[WorkerView]
    """The busiest, by name."""
    more_workers: int
    jobs: list[RunningJob]
    """Those that run for longest."""
    more_jobs: int
    failed: list[DeadLetter]
    """Dead letters, newest first, of up to 1,000 that are looked at."""
