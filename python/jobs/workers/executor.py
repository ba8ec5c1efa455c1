"""What a worker of every type needs of the part that runs its jobs: commands in, events out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from msgspec import Struct

from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Artefact, OutputSkipped, Reason, StreamInfo
from jobs.protocol.wire import Assignment, Outcome, TableWrite

Segments: TypeAlias = list[tuple[int, bytes]]
"""Output in the order it was read: (1 stdout | 2 stderr, data)."""


class ExecutorError(Exception):
    """The executor cannot start here, or is gone with everything it ran."""


class NotStarted(Exception):
    """An attempt cannot be given what it names."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# session → executor


class Start(Struct, frozen=True):
    """Run an attempt; its end is reported by exactly one `Ended`, also when it could not be started."""

    assignment: Assignment


class Stop(Struct, frozen=True, kw_only=True):
    """End an attempt for `reason`: politely with its grace, or with `now` at once. One that has ended is ignored."""

    job: JobId
    attempt: Attempt
    reason: Reason
    now: bool


class Credit(Struct, frozen=True, kw_only=True):
    """`count` bytes of the attempt's output are safe at the node: as many more may be produced."""

    job: JobId
    attempt: Attempt
    count: int


Command: TypeAlias = Start | Stop | Credit

# executor → session


class Produced(Struct, frozen=True, kw_only=True):
    """Output of an attempt; never more than OUTPUT_WINDOW_BYTES of it without credit."""

    job: JobId
    attempt: Attempt
    segments: Segments


class Progressed(Struct, frozen=True, kw_only=True):
    """The attempt says how far it is, in percent from 0 to 100, and perhaps what it is at."""

    job: JobId
    attempt: Attempt
    percent: float
    message: str | None


class Ended(Struct, frozen=True, kw_only=True):
    """Nothing of the attempt runs any more; `segments` is the last of its output."""

    job: JobId
    attempt: Attempt
    outcome: Outcome
    segments: Segments
    write: TableWrite | None = None
    artefacts: list[Artefact] = []
    """Files that it has left: blobs of its owner's by now."""
    skipped: list[OutputSkipped] = []


Event: TypeAlias = Produced | Progressed | Ended


class Executor(Protocol):
    """Runs the jobs of one type. It is made before there is an event loop, and attached to it later."""

    @property
    def type(self) -> str: ...
    @property
    def slots(self) -> int:
        """Attempts at a time."""

    @property
    def sandbox(self) -> str:
        """Level of isolation that jobs get."""

    def attach(self, on_events: Callable[[Sequence[Event]], None], on_lost: Callable[[str], None]) -> None:
        """Begin to report on the running event loop; `on_lost` once, with the reason, if the executor dies."""

    def perform(self, commands: Sequence[Command]) -> None:
        """Do what the commands say, without waiting; their consequences arrive later as events."""

    def drain(self) -> None:
        """No more attempts are started: end those that would never end by themselves, as WORKER_LOST."""

    def close(self) -> None:
        """End everything that runs and return when it is gone."""


def never_ran(reason: Reason, message: str, *, at_ms: int, sandbox: str) -> Outcome:
    """Return the outcome of an attempt that ended before it was started."""
    nothing = StreamInfo(bytes=0, stored_bytes=0, truncated=False)
    return Outcome(
        reason=reason,
        message=message,
        exit_code=None,
        signal=None,
        started_ms=at_ms,
        finished_ms=at_ms,
        wall_s=0.0,
        cpu_user_s=0.0,
        cpu_system_s=0.0,
        peak_memory_bytes=0,
        sandbox=sandbox,
        stdout=nothing,
        stderr=nothing,
    )
