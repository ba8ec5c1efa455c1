"""Jobs that failed for good, redriven or purged."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from jobs.protocol.ids import JobId
from jobs.protocol.model.base import Model, Name, Reason
from jobs.protocol.model.jobs import JobView


class DeadLetter(Model, frozen=True):
    """A job that failed for good, and that nobody has dealt with yet."""

    id: JobId
    owner: int
    queue: str
    reason: Reason
    message: str | None
    finished_ms: int


class DeadLetterPage(Model, frozen=True):
    dead_letters: list[DeadLetter]
    next_cursor: str | None


class DeadLetterSelection(Model, frozen=True):
    """Which dead letters: all that is given must match, and something has to be given. Others' only for admins."""

    queue: Name | None = None
    reason: Reason | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    all: bool = False
    """Without anything else: every one that the caller may deal with."""
    cursor: str | None = None
    """`next_cursor` of the answer before."""


class Redriven(Model, frozen=True):
    """What became of one dead letter: the job that repeats it, or why there is none."""

    id: JobId
    job: JobId | None
    refused: str | None


class RedrivePage(Model, frozen=True):
    redriven: list[Redriven]
    next_cursor: str | None
    """To go on with; null when every dead letter was looked at that was there at the beginning."""


class PurgeOutcome(Model, frozen=True):
    """What a purge did: `purged`, or nothing as the job is `no_dead_letter`. The job is kept as any other is."""

    outcome: Literal["purged", "no_dead_letter"]
    job: JobView


class PurgePage(Model, frozen=True):
    purged: int
    next_cursor: str | None
