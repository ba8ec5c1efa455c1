"""How long jobs wait and run, and how their attempts end, as Prometheus has it: over all leaderships of the node."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from jobs import jobs
from jobs.clock import wall_ms
from jobs.control.transitions import Change
from jobs.protocol.model import JobState

WAIT_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0)
ATTEMPT_BUCKETS_S: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0)
COMPLETED: Final = "completed"


class JobMeasures:
    """Label values are types of jobs and reasons, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waits = Histogram(
            "jobs_queue_wait_seconds",
            "From when a job was ready to when a worker was given it",
            ("type",),
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._attempts = Histogram(
            "jobs_attempt_seconds",
            "From when a worker was given a job to when the end was durable",
            ("type",),
            buckets=ATTEMPT_BUCKETS_S,
            registry=registry,
        )
        self._ends = Counter(
            "jobs_attempts_ended",
            "Attempts that ended, by `completed` or the reason of their failure",
            ("type", "outcome"),
            registry=registry,
        )

    def on_assigned(self, change: Change) -> None:
        """A worker was given a job."""
        started_ms = change.new.started_ms
        if change.old is not None and started_ms is not None:
            waited_s = max(0, started_ms - change.old.ready_ms) / 1_000
            self._waits.labels(change.new.type).observe(waited_s)

    def on_change(self, change: Change) -> None:
        """Take note of a committed change that ends an attempt."""
        old, new = change.old, change.new
        if old is None or old.tasks or old.state is not jobs.RUNNING or new.state is jobs.RUNNING:
            return
        took_s = max(0, wall_ms() - (old.started_ms or 0)) / 1_000
        self._attempts.labels(new.type).observe(took_s)
        outcome = COMPLETED if new.state is JobState.COMPLETED or new.reason is None else new.reason.value
        self._ends.labels(new.type, outcome).inc()
