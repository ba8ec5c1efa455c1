"""What of ended jobs is no longer kept, pure: by age, by number and by bytes. Time comes as an argument.

Ended jobs stand in three lists, each in the order in which its jobs go: those with output and those without whose time
follows from the node's configuration, by the moment of their end; those with a time of their own, by that. So neither
order depends on the configuration, and the next to go are always at the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from jobs.protocol.ids import JobId
from jobs.records import JobRecord

SPEED: Final = 10
MAX_IDLE_MS: Final = 3_600_000
MAX_OFF_MS: Final = 3_600_000
GRACE_MS: Final = 600_000
"""How far before the first thing to go the clock begins after a longer time off."""

MIN_HOLD_MS: Final = 60_000

Kind: TypeAlias = Literal["full", "bare", "own"]
What: TypeAlias = Literal["job", "logs"]
Order: TypeAlias = tuple[int, JobId]


class Limits(Struct, frozen=True, kw_only=True):
    """How much is kept. A job's own times win over `keep_ms` and `logs_ms`, nothing wins over the other two."""

    keep_ms: int = 7 * 86_400_000
    logs_ms: int | None = None
    """Output goes this long after the end; None is with its job."""
    max_jobs: int = 1_000_000
    max_bytes: int = 8 << 30


class AgeClock(Struct, frozen=True):
    """The clock by which things age.

    It is the wall clock, but for its jumps ahead: then, as after more than `MAX_OFF_MS` off, it goes `SPEED` times as
    fast as time passes until it has caught up, so that a wrong clock does not make everything go at once.
    Where it has passed nothing for `MAX_IDLE_MS` it goes on to the next thing at once: a clock that is set for the
    first time may jump by decades.
    """

    ms: int | None = None
    """None before its first use."""
    idle_ms: int = 0
    """For how long it has passed nothing, while it is behind."""


class Totals(Struct, frozen=True):
    """All ended jobs, and about what they take in the store."""

    jobs: int
    bytes: int


class Entry(Struct, frozen=True):
    """An ended job, as it stands in its list."""

    kind: Kind
    job: JobId
    time_ms: int
    """Its end; the moment at which it is to be looked at, in the list of those with a time of their own."""
    bytes: int
    held: bool = False
    """Something needs it still: it does not go before that time, however much there is."""


class Step(Struct, frozen=True):
    """What is to be done about one job: look whether its time is over, or let it go in any case."""

    entry: Entry
    forced: bool


class Plan(Struct, frozen=True):
    steps: list[Step]
    wake_ms: int | None
    """When the time of the next job is over, as far as is known; None for no job."""


def plan(
    heads: Sequence[Entry], totals: Totals | None, limits: Limits, now_ms: int, known: Order | None = None
) -> Plan:
    """Return what is to be done now about the heads of the lists, those whose time is nearest first.

    Without `totals`, as long as they are being counted, nothing goes for being too much. Beyond `known` there may be
    jobs that are not among the heads and have to go first: so none goes for being too much there.
    """
    jobs = 0 if totals is None else totals.jobs - limits.max_jobs
    size_bytes = 0 if totals is None else totals.bytes - limits.max_bytes
    steps: list[Step] = []
    wake_ms: int | None = None
    for entry in sorted(heads, key=lambda entry: order(entry, limits)):
        is_next = known is None or order(entry, limits) <= known
        if (jobs > 0 or size_bytes > 0) and is_next and not entry.held:
            steps.append(Step(entry, forced=True))
            jobs, size_bytes = jobs - 1, size_bytes - entry.bytes
            continue
        moment_ms = next_moment_ms(entry, limits)
        if moment_ms <= now_ms:
            steps.append(Step(entry, forced=False))
        elif wake_ms is None or moment_ms < wake_ms:
            wake_ms = moment_ms
    return Plan(steps, wake_ms)


def is_urgent(totals: Totals | None, limits: Limits) -> bool:
    """Tell whether jobs end faster than they go, so that there are a twentieth more than there should be."""
    return totals is not None and (totals.jobs > limits.max_jobs * 1.05 or totals.bytes > limits.max_bytes * 1.05)


def order(entry: Entry, limits: Limits) -> Order:
    """Return what jobs go by, whatever list they are in."""
    return end_of_life_ms(entry, limits), entry.job


def end_of_life_ms(entry: Entry, limits: Limits) -> int:
    """Return when the job is to go, by its place in the list."""
    return entry.time_ms if entry.kind == "own" else entry.time_ms + limits.keep_ms


def next_moment_ms(entry: Entry, limits: Limits) -> int:
    """Return when the job, or its output, is to go, by its place in the list."""
    if entry.kind == "full" and limits.logs_ms is not None:
        return entry.time_ms + min(limits.logs_ms, limits.keep_ms)
    return end_of_life_ms(entry, limits)


def due(record: JobRecord, limits: Limits, now_ms: int) -> What | None:
    """Return what of an ended job is no longer kept."""
    assert record.finished_ms is not None
    age_ms = now_ms - record.finished_ms
    own = record.retention
    logs_ms = limits.logs_ms if own.keep_s is None else None
    if own.logs_s is not None:
        logs_ms = _ms(own.logs_s)
    keep_ms = limits.keep_ms if own.keep_s is None else _ms(own.keep_s)
    if own.keep_s is None and own.logs_s is not None and record.log_bytes:
        # Who asks for the output for longer than jobs are kept wants the job for as long.
        keep_ms = max(keep_ms, _ms(own.logs_s))
    if age_ms >= keep_ms:
        return "job"
    return "logs" if record.log_bytes and logs_ms is not None and age_ms >= logs_ms else None


def hold_ms(record: JobRecord, now_ms: int) -> int:
    """Return until when a job that is needed still is held: the longer it has been, the less often it is looked at."""
    assert record.finished_ms is not None
    return now_ms + max(MIN_HOLD_MS, (now_ms - record.finished_ms) // 10)


def own_moment_ms(record: JobRecord) -> int | None:
    """Return when an ended job is next to be looked at by its own retention; None when it leaves that to the node's."""
    assert record.finished_ms is not None
    if record.held_until_ms is not None:
        return record.held_until_ms
    moments = []
    if record.retention.keep_s is not None:
        moments.append(record.finished_ms + _ms(record.retention.keep_s))
    if record.retention.logs_s is not None and record.log_bytes:
        moments.append(record.finished_ms + _ms(record.retention.logs_s))
    return min(moments, default=None)


def advance(clock: AgeClock, elapsed_ms: int, wall_ms: int, earliest_ms: int | None) -> AgeClock:
    """Return the clock after so much time; `earliest_ms` is the moment of the next thing to go."""
    if earliest_ms is None:
        return AgeClock(wall_ms)
    if clock.ms is None:
        return AgeClock(wall_ms if wall_ms - earliest_ms <= MAX_OFF_MS else earliest_ms - GRACE_MS)
    reach_ms, idle_ms = clock.ms + SPEED * max(0, elapsed_ms), clock.idle_ms + max(0, elapsed_ms)
    if reach_ms < earliest_ms and idle_ms >= MAX_IDLE_MS:
        reach_ms = earliest_ms
    if reach_ms >= wall_ms:
        return AgeClock(wall_ms)
    return AgeClock(reach_ms, 0 if reach_ms >= earliest_ms else idle_ms)


def _ms(seconds: float) -> int:
    return int(seconds * 1_000)
