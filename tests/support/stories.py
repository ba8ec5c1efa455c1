"""Random stories of a cluster for property tests of the scheduler: jobs, workers, limits, and what happens to them."""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec.structs import replace

from jobs.protocol.ids import WorkerId
from jobs.protocol.model import Requires
from jobs.records import Demand
from jobs.scheduler import RESERVE_AFTER_MS
from tests.support.scheduling import Cluster, key, worker

QUEUES = ("a", "b", "c")
OWNERS = (1, 2, 3)

labels = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["x", "y"]), max_size=2)
requires = st.builds(
    Requires,
    labels=labels,
    cpu_milli=st.sampled_from([0, 0, 500, 1_000, 4_000]),
    memory_bytes=st.sampled_from([0, 0, 1 << 28, 1 << 30]),
    resources=st.sampled_from([{}, {}, {"gpu": 1}, {"gpu": 2}]),
    prefer=labels,
)
demands = st.builds(
    Demand,
    type=st.sampled_from(["shell", "shell", "sql"]),
    requires=requires,
    concurrency_key=st.sampled_from([None, None, "k", "l"]),
    concurrency_limit=st.integers(1, 2),
)
jobs = st.tuples(demands, st.sampled_from(QUEUES), st.sampled_from(OWNERS), st.integers(-1, 1))
workers = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([1_000, 4_000]), labels, st.sampled_from([{}, {"gpu": 2}])),
    min_size=1,
    max_size=4,
)
limits = st.none() | st.integers(0, 3)
queue_limits = st.fixed_dictionaries(
    {},
    optional={
        "paused": st.booleans(),
        "weight": st.sampled_from([0.5, 1.0, 3.0]),
        "max_running": limits,
        "max_running_per_owner": limits,
        "rate_count": st.none() | st.integers(1, 5),
    },
)
owner_limits = st.fixed_dictionaries({}, optional={"weight": st.sampled_from([0.5, 1.0]), "max_running": limits})


def stories(jobs: st.SearchStrategy, min_size: int, max_size: int) -> st.SearchStrategy:  # type: ignore[type-arg]
    """Return what happens one after the other when these are the jobs that come."""
    step = st.one_of(
        st.tuples(st.just("add"), st.lists(jobs, min_size=1, max_size=6)),
        st.tuples(st.just("end"), st.integers(0, 50)),
        st.tuples(st.just("withdraw"), st.integers(0, 50)),
        st.tuples(st.just("wait"), st.sampled_from([1, 300, RESERVE_AFTER_MS, 60_000])),
        st.tuples(st.just("toggle"), st.integers(0, 3)),
        st.tuples(st.just("queue"), st.tuples(st.sampled_from(QUEUES), queue_limits)),
        st.tuples(st.just("owner"), st.tuples(st.sampled_from(OWNERS), owner_limits)),
    )
    return st.lists(step, min_size=min_size, max_size=max_size)


steps = stories(jobs, 1, 30)
easy_workers = st.lists(
    st.tuples(st.integers(2, 9), st.just(4_000), st.just({}), st.just({"gpu": 2})), min_size=1, max_size=3
)
easy_demands = st.builds(
    Demand,
    type=st.just("shell"),
    requires=st.builds(
        Requires, cpu_milli=st.sampled_from([0, 1_000, 3_500]), resources=st.sampled_from([{}, {"gpu": 1}])
    ),
    concurrency_key=st.sampled_from([None, None, None, "k"]),
)
_SMALL, _LARGE = (Demand("shell", Requires(cpu_milli=amount)) for amount in (1_000, 3_500))
preludes: st.SearchStrategy[list[tuple[str, object]]] = st.sampled_from(
    [
        [("queue", ("a", {"rate_count": 2, "rate_period_s": 60.0})), ("add", [(_SMALL, "a", 1, 0)] * 3)],
        [("add", [(_SMALL, "b", 1, 0)] * 12), ("add", [(_LARGE, "c", 2, 0)]), ("wait", RESERVE_AFTER_MS)],
        [("owner", (1, {"max_running": 3})), ("queue", ("b", {"max_running_per_owner": 2}))],
    ]
)
busy = st.tuples(
    easy_workers,
    st.builds(
        lambda prelude, story: [*prelude, *story],
        preludes,
        stories(st.tuples(easy_demands, st.sampled_from(QUEUES), st.sampled_from(OWNERS), st.integers(-1, 1)), 5, 30),
    ),
)
"""Workers that suit nearly every job, and a story in which limits are reached, rates used up and workers reserved."""
described = st.one_of(st.tuples(workers, steps), busy, busy)


class Machine:
    """A cluster to which things happen, one after the other."""

    def __init__(self, described: list) -> None:  # type: ignore[type-arg]
        self.cluster = Cluster(
            *(
                worker(f"w{number}", slots, cpu=cpu, labels=has, resources=resources)
                for number, (slots, cpu, has, resources) in enumerate(described)
            )
        )
        self.count = 0
        self.starts: list[tuple[int, str]] = []

    def do(self, step: str, argument) -> list[tuple[str, bytes]]:  # type: ignore[no-untyped-def]
        """Let something happen, and make plans until there is nothing more to do."""
        self.happen(step, argument)
        made = self.cluster.plan(limit=1_000)
        self.starts += [(self.cluster.now_ms, item.queue) for item in made]
        return [(item.worker, item.queue_key) for item in made]

    def happen(self, step: str, argument) -> None:  # type: ignore[no-untyped-def]
        """Let something happen, and make no plan."""
        cluster = self.cluster
        if step == "add":
            for demand, queue, owner, priority in argument:
                self.count += 1
                made = key(self.count, demand, queue=queue, owner=owner, priority=priority, at_ms=cluster.now_ms)
                cluster.add((made, demand))
        elif step == "end" and cluster.running:
            runs = sorted(cluster.running)
            cluster.end(cluster.running[runs[argument % len(runs)]][2].queue_key)
        elif step == "withdraw" and cluster.waiting:
            waits = sorted(cluster.waiting)
            withdrawn = waits[argument % len(waits)]
            del cluster.waiting[withdrawn]
            cluster.backlog.remove(withdrawn)
        elif step == "wait":
            cluster.now_ms += argument
        elif step == "toggle":
            name = WorkerId(f"w{argument}")
            if name in cluster.workers:
                cluster.workers[name] = replace(cluster.workers[name], open=not cluster.workers[name].open)
        elif step == "queue":
            cluster.set_queue(argument[0], **argument[1])
        elif step == "owner":
            cluster.set_owner(argument[0], **argument[1])
