"""What a job means, from its submission to its end: the whole control plane against a model in a dict.

The steps of a run are drawn by Hypothesis, which prints and replays those of a failure.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobs.protocol import wire
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobState, Reason
from jobs.service import JobFilter
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, Plane, shell

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))


class Semantics(RuleBasedStateMachine):
    """One worker with one slot; jobs run in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._runner = asyncio.Runner()
        self.plane = Plane(Path(self._directory.name))
        self.model: dict[JobId, JobState] = {}
        self.order: list[JobId] = []
        self.worker: WorkerPeer | None = None
        self.held: wire.Assignment | None = None
        self.run(self.plane.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def teardown(self) -> None:
        self.run(self.plane.stop())
        self._runner.close()
        self._directory.cleanup()

    def take(self) -> None:
        """The worker is given the oldest job that waits, if it has nothing to do."""
        waiting = [job for job in self.order if self.model[job] is JobState.PENDING]
        if self.worker is not None and self.held is None and waiting:
            self.held = self.run(self.worker.assigned())
            assert self.held.job == waiting[0]
            self.model[self.held.job] = JobState.RUNNING

    @rule()
    def submit(self) -> None:
        (made,) = self.run(self.plane.control.submit(ALICE, [shell()]))
        self.model[made.job.id] = JobState.PENDING
        self.order.append(made.job.id)
        self.take()

    @precondition(lambda self: self.worker is None)
    @rule()
    def connect(self) -> None:
        self.worker = WorkerPeer()
        self.run(self.worker.register(self.plane.worker_socket))
        self.take()

    @precondition(lambda self: self.held is not None)
    @rule(reason=st.sampled_from([None, Reason.EXIT_CODE]))
    def end(self, reason: Reason | None) -> None:
        assert self.worker is not None
        assert self.held is not None
        self.worker.finish(self.held, reason=reason)
        assert self.run(self.worker.expect(wire.FinishedAck)).accepted
        self.model[self.held.job] = JobState.COMPLETED if reason is None else JobState.FAILED
        self.held = None
        self.take()

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        page = self.run(self.plane.control.list_jobs(ADMIN, JobFilter(), limit=1_000, cursor=None, newest_first=False))
        assert {job.id: job.state for job in page.jobs} == self.model


TestSemantics = Semantics.TestCase
TestSemantics.settings = settings(max_examples=10 * SCALE, stateful_step_count=30, deadline=None)
