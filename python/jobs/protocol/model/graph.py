"""What waits for what."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.protocol.ids import JobId
from jobs.protocol.model.base import JobIdText, JobState, Model, Reason
from jobs.protocol.model.submission import MAX_PARENTS


class Depend(Model, frozen=True):
    """What a job that has not started is to wait for, on top of what it waits for already."""

    depends_on: Annotated[list[JobIdText], Meta(min_length=1, max_length=MAX_PARENTS)]
    """Jobs of the same owner."""


class GraphNode(Model, frozen=True):
    """A job in a graph."""

    id: JobId
    ref: str | None
    state: JobState | None
    """None for a job that is no longer kept."""
    reason: Reason | None


class GraphEdge(Model, frozen=True):
    """`child` depends on `parent`."""

    parent: JobId
    child: JobId


class JobGraph(Model, frozen=True):
    """A job, what it depends on and what depends on it, directly or not, and all dependencies between these jobs."""

    job: JobId
    nodes: list[GraphNode]
    edges: list[GraphEdge]
    truncated: bool
    """There are more; those nearest to the job are shown."""
