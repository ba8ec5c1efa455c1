"""`metrics`: what ended jobs took, added up by owner, type and time, from this node's store."""

from __future__ import annotations

import asyncio
import calendar
import time
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

import msgspec

from jobs import keys, records
from jobs.maintenance.run import Run
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobState, MaintenanceMetrics, UsageLine
from jobs.records import JobRecord, ResultRecord
from jobs.store import Store, prefix_end

PAGE: Final = 32
"""Read and added up in one go: others wait for so long."""
HOUR_MS: Final = 3_600_000
Period: TypeAlias = Literal["hour", "day", "month"]
Group: TypeAlias = tuple[int, int, str]
"""When a period begins, an owner, a type."""


class Sums:
    """Of one group."""

    __slots__ = ("attempts", "cpu_s", "failed", "jobs", "output_bytes", "stored_bytes", "wall_s")

    def __init__(self) -> None:
        self.jobs = self.failed = self.attempts = self.output_bytes = self.stored_bytes = 0
        self.wall_s = self.cpu_s = 0.0

    def add_job(self, record: JobRecord) -> None:
        self.jobs += 1
        self.failed += record.state is JobState.FAILED
        self.attempts += record.attempt
        self.stored_bytes += record.stored_bytes

    def add_attempt(self, result: ResultRecord) -> None:
        """One that no worker told the end of has used an unknown part of what it was given."""
        execution = result.execution
        if execution is not None:
            self.wall_s += execution.wall_s
            self.cpu_s += execution.cpu_user_s + execution.cpu_system_s
            self.output_bytes += execution.stdout.bytes + execution.stderr.bytes


class Usage:
    """Tasks of arrays count as the jobs that they are; an array is none besides them."""

    def __init__(self, run: Run, payload: MaintenanceMetrics, store: Store) -> None:
        self._run = run
        self._payload = payload
        self._store = store
        self._sums: dict[Group, Sums] = {}

    async def carry_out(self) -> None:
        """Read all there is, a page at a time. It changes nothing, so it always begins anew."""
        run, claim = self._run, self._run.claim
        start: bytes | None = keys.STATE
        examined = 0
        while start is not None:
            start, seen = await run.pacing.step(asyncio.to_thread(self._page, start))
            examined += seen
            run.news.advance(examined, 0, f"{examined} jobs read")
            await claim.moved("metrics", b"")
        for line in self._lines():
            await run.news.line(**msgspec.to_builtins(line))
        claim.node(run.members.name(run.members.me), examined=examined)
        claim.count(jobs=sum(sums.jobs for sums in self._sums.values()), lines=len(self._sums))

    def _page(self, start: bytes) -> tuple[bytes | None, int]:
        """Add up a page of jobs; return where the next one begins, and how many there were."""
        rows, more = self._store.range(start, prefix_end(keys.STATE), limit=PAGE)
        counted: dict[JobId, Sums] = {}
        for key, value, *_ in rows:
            record = records.decode(JobRecord, value)
            if self._is_asked_for(record):
                sums = counted[keys.job_of(key)] = self._of(record)
                sums.add_job(record)
        if counted:
            for job, result in self._results(min(counted), max(counted)):
                if (found := counted.get(job)) is not None:
                    found.add_attempt(result)
        return (rows[-1][0] + b"\x00" if more else None), len(rows)

    def _is_asked_for(self, record: JobRecord) -> bool:
        if record.tasks or record.finished_ms is None or not record.state.is_final:
            return False
        payload = self._payload
        since = payload.from_ms is None or record.finished_ms >= payload.from_ms
        return since and (payload.to_ms is None or record.finished_ms < payload.to_ms)

    def _of(self, record: JobRecord) -> Sums:
        assert record.finished_ms is not None
        group = beginning(record.finished_ms, self._payload.period), record.owner, record.type
        return self._sums.setdefault(group, Sums())

    def _results(self, first: JobId, last: JobId) -> Iterator[tuple[JobId, ResultRecord]]:
        start, more = keys.results_prefix(first), True
        while more:
            rows, more = self._store.range(start, prefix_end(keys.results_prefix(last)), limit=PAGE)
            for key, value, *_ in rows:
                yield keys.job_of_result(key), records.decode(ResultRecord, value)
                start = key + b"\x00"

    def _lines(self) -> Iterator[UsageLine]:
        for (period_ms, owner, job_type), sums in sorted(self._sums.items()):
            yield UsageLine(
                period_ms=period_ms,
                owner=owner,
                type=job_type,
                jobs=sums.jobs,
                failed=sums.failed,
                attempts=sums.attempts,
                wall_s=round(sums.wall_s, 6),
                cpu_s=round(sums.cpu_s, 6),
                output_bytes=sums.output_bytes,
                stored_bytes=sums.stored_bytes,
            )


def beginning(at_ms: int, period: Period) -> int:
    """Return when the hour, day or month of a time begins, in UTC."""
    if period == "month":
        year, month, *_ = time.gmtime(at_ms // 1_000)
        return 1_000 * calendar.timegm((year, month, 1, 0, 0, 0))
    length_ms = HOUR_MS if period == "hour" else 24 * HOUR_MS
    return at_ms - at_ms % length_ms
