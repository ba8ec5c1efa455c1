"""Queues and owners of jobs: settings and counts."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from jobs.protocol.model.base import Model, Name

Weight = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Limit = Annotated[int, Meta(ge=0, le=1_000_000_000)]
ByteCount = Annotated[int, Meta(ge=0, le=1 << 60)]
RateCount = Annotated[int, Meta(ge=1, le=1_000_000)]
RatePeriodS = Annotated[float, Meta(ge=0.001, le=31_536_000)]


class QueueSettings(Model, frozen=True):
    """What an administrator can set of a queue; null is no limit."""

    weight: Weight = 1.0
    """Share of the workers among the queues that have jobs waiting."""
    max_pending: Limit | None = None
    max_pending_per_owner: Limit | None = None
    max_running: Limit | None = None
    max_running_per_owner: Limit | None = None
    rate_count: RateCount | None = None
    """So many starts, and as many at once, in each `rate_period_s`."""
    rate_period_s: RatePeriodS = 1.0
    managed_by: Name | None = None
    """Name of the declaration that these settings belong to; `jobctl apply` takes back what that does not declare any
    more."""


class QueueChange(Model, frozen=True):
    """What is to be other than before of a queue's settings; what is left out stays as it is."""

    weight: Weight | UnsetType = UNSET
    max_pending: Limit | UnsetType | None = UNSET
    max_pending_per_owner: Limit | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET
    max_running_per_owner: Limit | UnsetType | None = UNSET
    rate_count: RateCount | UnsetType | None = UNSET
    rate_period_s: RatePeriodS | UnsetType = UNSET
    managed_by: Name | UnsetType | None = UNSET


class QueueView(QueueSettings, frozen=True, kw_only=True):
    """A queue as it is."""

    name: str
    paused: bool
    """Nothing of it is started."""
    draining: bool
    """It takes no more jobs; what waits is still run."""
    pending: int
    waiting: int
    """Of the pending: those that wait for a time or for other jobs."""
    running: int


class QueuePage(Model, frozen=True):
    queues: list[QueueView]
    next_cursor: str | None


class OwnerSettings(Model, frozen=True):
    """What an administrator can set of an owner of jobs; null is no limit."""

    weight: Weight = 1.0
    """Share of the workers among the owners that have jobs waiting in the same queue."""
    max_pending: Limit | None = None
    max_running: Limit | None = None
    max_blob_bytes: ByteCount | None = None
    """What their blobs may come to; null: the nodes' `blobs.max_bytes_per_owner`."""


class OwnerChange(Model, frozen=True):
    """What is to be other than before of an owner's settings; what is left out stays as it is."""

    weight: Weight | UnsetType = UNSET
    max_pending: Limit | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET
    max_blob_bytes: ByteCount | UnsetType | None = UNSET


class OwnerView(OwnerSettings, frozen=True, kw_only=True):
    """An owner of jobs as they are."""

    uid: int
    pending: int
    running: int
    blobs: int = 0
    blob_bytes: int = 0
    """What their blobs come to, whoever else has the same ones."""
