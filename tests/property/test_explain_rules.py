"""What is said of why a job waits agrees with what the scheduler does, whatever waits for whatever."""

from __future__ import annotations

import os

from hypothesis import given, settings

from jobs import keys
from jobs.scheduler import Plan, plan
from jobs.scheduler.explain import Finding, explain
from tests.support.scheduling import Cluster
from tests.support.stories import Machine, described

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))


def finding(cluster: Cluster, entry: bytes) -> Finding:
    queue, owner = keys.share_of(entry)
    demand = cluster.waiting[entry]
    return explain(cluster.backlog, demand, queue, owner, cluster.workers.values(), {}, cluster.now_ms)


def next_start(cluster: Cluster) -> tuple[bytes | None, set[bytes]]:
    """Plan until one job is started or there is nothing more to do; return it, and what could have been started."""
    while True:
        made: Plan = plan(cluster.backlog, cluster.workers.values(), cluster.now_ms, 0)
        assert made.assignments == []
        possible = {entry for entry in cluster.waiting if not finding(cluster, entry).obstacles}
        started = cluster.plan_once(limit=1)
        if started:
            return started[0].queue_key, possible
        if cluster.last.wake_ms is None or cluster.last.wake_ms > cluster.now_ms:
            return None, possible


@settings(max_examples=200 * SCALE, deadline=None)
@given(described)
def test_what_is_said_to_be_free_to_start_is_what_the_next_plans_start(drawn: tuple[list, list]) -> None:  # type: ignore[type-arg]
    hosts, story = drawn
    machine = Machine(hosts)
    cluster = machine.cluster
    for step, argument in story:
        machine.happen(step, argument)
        while True:
            started, possible = next_start(cluster)
            if started is None:
                assert not possible, "something is said to be free to start, and is not started"
                break
            assert started in possible, "something was started that is said to be held"


@settings(max_examples=200 * SCALE, deadline=None)
@given(described)
def test_what_is_said_of_workers_is_so(drawn: tuple[list, list]) -> None:  # type: ignore[type-arg]
    hosts, story = drawn
    machine = Machine(hosts)
    cluster = machine.cluster
    for step, argument in story:
        machine.do(step, argument)
        for entry in cluster.waiting:
            found = finding(cluster, entry)
            kinds = [obstacle.kind for obstacle in found.obstacles]
            assert kinds, "after all plans whatever waits has a reason"
            assert len(set(kinds)) == len(kinds)
            assert {fit.worker for fit in found.workers} == set(cluster.workers)
            for fit in found.workers:
                assert fit.takes == (not fit.lacks)
                assert fit.suits or not fit.takes
            some_suit = any(fit.suits for fit in found.workers)
            assert ("unsuitable" in kinds) == (not some_suit)
            assert ("room" in kinds) == (some_suit and not any(fit.takes for fit in found.workers))
            for obstacle in found.obstacles:
                if obstacle.limit is not None:
                    assert obstacle.count is not None
                    assert obstacle.count >= obstacle.limit
                assert obstacle.until_ms is None or obstacle.until_ms > cluster.now_ms


@settings(max_examples=60 * SCALE, deadline=None)
@given(described)
def test_to_explain_changes_nothing(drawn: tuple[list, list]) -> None:  # type: ignore[type-arg]
    hosts, story = drawn
    asked, unasked = Machine(hosts), Machine(hosts)
    for step, argument in story:
        for entry in asked.cluster.waiting:
            finding(asked.cluster, entry)
        assert asked.do(step, argument) == unasked.do(step, argument)
