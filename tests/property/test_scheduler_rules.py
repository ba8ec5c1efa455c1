"""What holds for every plan, whatever is asked of whatever workers under whatever limits."""

from __future__ import annotations

import os
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import keys
from jobs.scheduler import RESERVE_AFTER_MS
from jobs.scheduler.rooms import Shape, fits
from tests.support.scheduling import SHELL, Arrival, Cluster, asks, key, simulate, worker
from tests.support.stories import Machine, steps, workers

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))


def nothing_is_overcommitted(cluster: Cluster, before: set[str]) -> None:
    """Every amount is within its worker's, and what was started is within each limit that holds now."""
    for item in cluster.workers.values():
        free = item.free
        assert min(free.slots, free.cpu_milli, free.memory_bytes, *free.resources.values()) >= 0
    runs = [(demand, item) for _, demand, item in cluster.running.values()]
    new = [item for _, item in runs if item.job not in before]
    for item in new:
        queue, owner = cluster.backlog.queue(item.queue), cluster.backlog.owner(item.owner)
        assert not queue.paused
        same_queue = [other for _, other in runs if other.queue == item.queue]
        assert queue.max_running is None or len(same_queue) <= queue.max_running
        mine = [other for other in same_queue if other.owner == item.owner]
        assert queue.max_running_per_owner is None or len(mine) <= queue.max_running_per_owner
        owned = [other for _, other in runs if other.owner == item.owner]
        assert owner.max_running is None or len(owned) <= owner.max_running
        demand = cluster.running[item.job][1]
        holders = [other for other, _ in runs if other.concurrency_key == demand.concurrency_key]
        # A job with a higher limit may have come after this one.
        assert demand.concurrency_key is None or len(holders) <= 2
        host = cluster.workers[cluster.running[item.job][0]]
        assert host.open
        assert Shape(demand).suits(host)


def no_work_is_left_that_could_be_done(cluster: Cluster) -> None:
    """Whatever waits is held by a limit, or fits no worker that is not reserved for another."""
    backlog = cluster.backlog
    reserved = backlog.parking.reserved
    for entry, demand in cluster.waiting.items():
        name, owner = keys.share_of(entry)
        queue, owned, usage = backlog.queue(name), backlog.owner(owner), backlog.usage
        limits = [
            (queue.max_running, usage.of_queue(name)),
            (queue.max_running_per_owner, usage.of_share(name, owner)),
            (owned.max_running, usage.of_owner(owner)),
        ]
        held = queue.paused or any(limit is not None and count >= limit for limit, count in limits)
        if demand.concurrency_key is not None:
            held = held or len(usage.holders(demand.concurrency_key)) >= demand.concurrency_limit
        if held or queue.rate_count is not None:
            continue
        shape = Shape(demand)
        for host in cluster.workers.values():
            state = reserved.get(host.worker)
            free_for_it = host.open and (state is None or state.shape.name == shape.name)
            assert not (free_for_it and shape.suits(host) and fits(demand.requires, host.free)), (entry, host)


@settings(max_examples=300 * SCALE, deadline=None)
@given(workers, steps)
def test_nothing_is_overcommitted_and_nothing_is_left_undone(described: list, story: list) -> None:  # type: ignore[type-arg]
    machine = Machine(described)
    for step, argument in story:
        before = set(machine.cluster.running)
        machine.do(step, argument)
        nothing_is_overcommitted(machine.cluster, before)
        no_work_is_left_that_could_be_done(machine.cluster)


@settings(max_examples=50 * SCALE, deadline=None)
@given(workers, steps, st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_in_which_things_are_held(
    described: list,
    story: list,
    chance: random.Random,  # type: ignore[type-arg]
) -> None:
    straight, shuffled = Machine(described), Machine(described)
    for step, argument in story:
        items = list(shuffled.cluster.workers.items())
        chance.shuffle(items)
        shuffled.cluster.workers = dict(items)
        assert straight.do(step, argument) == shuffled.do(step, argument)


@settings(max_examples=50 * SCALE, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_equal_owners_are_served_alike_while_all_of_them_wait(slots: int, count: int, submitted: list[int]) -> None:
    # Given owners who submit different numbers of jobs of one length at once, all served to completion
    cluster = Cluster(*(worker(f"w{number}", slots) for number in range(count)))
    arrivals, number = [], 0
    for owner, tens in enumerate(submitted, 1):
        for _ in range(10 * tens):
            number += 1
            arrivals.append(Arrival(at_ms=1_000, key=key(number, owner=owner), demand=SHELL, run_ms=100))
    times = simulate(cluster, arrivals)
    assert len(times) == len(arrivals)
    # Then until the first of them has nothing left, nobody is more than a round ahead of anybody
    started = sorted((start, keys.share_of(entry)[1]) for entry, (start, _) in times.items())
    served: Counter[int] = Counter()
    for _, owner in started:
        served[owner] += 1
        if served[owner] == 10 * submitted[owner - 1]:
            break
        counts = [served[one] for one in range(1, len(submitted) + 1)]
        assert max(counts) - min(counts) <= slots * count + 1


@settings(max_examples=10 * SCALE, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(500, 2_000),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 1 << 32),
)
def test_a_large_job_starts_in_time_under_a_constant_stream_of_small_ones(
    count: int, longest_ms: int, owner: int, urgent: bool, seed: int
) -> None:
    # Given workers that a stream of small jobs of another owner, or of all, keeps full for a minute
    chance = random.Random(seed)
    small, large = asks(cpu_milli=1_000), asks(cpu_milli=4_000)
    arrivals, now_ms, number = [], 1_000, 1
    while now_ms < 60_000:
        number += 1
        now_ms += chance.randrange(1, max(2, longest_ms // (6 * count)))
        entry = key(number, small, owner=2, priority=int(urgent), at_ms=now_ms)
        arrivals.append(Arrival(at_ms=now_ms, key=entry, demand=small, run_ms=chance.randrange(1, longest_ms)))
    submitted_ms = 20_000
    big = key(1, large, owner=owner, at_ms=submitted_ms)
    arrivals.append(Arrival(at_ms=submitted_ms, key=big, demand=large, run_ms=50))
    cluster = Cluster(*(worker(f"w{number}", 9) for number in range(count)))
    times = simulate(cluster, arrivals, until_ms=60_000)
    # Then it starts once it may reserve a worker and the longest job there has ended
    assert big in times
    assert times[big][0] - submitted_ms <= RESERVE_AFTER_MS + 2 * longest_ms
