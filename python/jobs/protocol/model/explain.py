"""Why a job is where it is."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from jobs.protocol.ids import JobId, WorkerId
from jobs.protocol.model.base import Model
from jobs.protocol.model.jobs import AttemptView, JobView

ObstacleKind = Literal[
    "time",
    "retry",
    "parents",
    "paused",
    "queue_limit",
    "share_limit",
    "owner_limit",
    "rate",
    "concurrency_key",
    "unsuitable",
    "room",
]
"""What can keep a pending job from being started; docs/scheduling.md has each of them."""


class Obstacle(Model, frozen=True):
    """One thing that keeps a pending job from being started."""

    kind: ObstacleKind
    text: str
    """The same in words."""
    until_ms: int | None = None
    """When it passes by itself, where that is known."""
    count: int | None = None
    """Of a limit: how many jobs run under it."""
    limit: int | None = None
    jobs: list[JobId] = field(default_factory=list)
    """The jobs whose end is waited for, some of them if they are many."""
    more_jobs: int = 0


class WorkerFit(Model, frozen=True):
    """How a pending job and a worker go together."""

    worker: WorkerId
    suits: bool
    """The worker could run it, if it had nothing else to do."""
    takes: bool
    """The worker could be given it now."""
    lacks: list[str]
    """What is in the way, in words."""


class Explanation(Model, frozen=True):
    """Why a job is where it is."""

    job: JobView
    text: str
    """The gist of it, in words."""
    obstacles: list[Obstacle]
    """What keeps it, or those tasks of an array that wait, from being started; nothing when its turn will come."""
    ahead: int | None
    """Jobs of its owner and queue that ask the same and come first, counted up to 10,000; None unless it is ready."""
    reserved: WorkerId | None
    """A worker that takes nothing else until a job that asks the same has been started."""
    workers: list[WorkerFit]
    """Of what waits: the workers, nearest first; at most 100."""
    more_workers: int
    attempts: list[AttemptView]
    """Those that have ended, newest first; at most 20."""
    more_attempts: int
