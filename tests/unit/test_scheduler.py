"""What a plan does, case by case."""

from __future__ import annotations

from jobs import keys
from jobs.protocol.ids import Incarnation, WorkerId, uuid7
from jobs.protocol.model import Requires
from jobs.records import Demand
from jobs.scheduler import LOW_WATER, WINDOW, Backlog, Candidate, plan

SHELL = Demand("shell", Requires())


def worker(name: str, slots: int, **changes: object) -> Candidate:
    settings: dict[str, object] = {"type": "shell", "labels": {}, "free_cpu_milli": 4_000, "free_memory_bytes": 1 << 30}
    settings.update(changes)
    return Candidate(worker=WorkerId(name), incarnation=Incarnation(name * 32), free_slots=slots, **settings)  # type: ignore[arg-type]


def key(number: int, queue: str = "default", priority: int = 0, demand: Demand = SHELL) -> bytes:
    return keys.queue(queue, demand.lane(), priority, number, uuid7(number, number))


def backlog(*entries: tuple[bytes, Demand]) -> Backlog:
    made = Backlog()
    for entry, demand in entries:
        made.add(entry, demand)
    return made


def planned(waiting: Backlog, workers: list[Candidate], limit: int = 10) -> list[bytes]:
    return [item.queue_key for item in plan(waiting.lanes, workers, limit)]


def test_jobs_go_out_by_priority_then_age_across_queues_and_lanes() -> None:
    light = Demand("shell", Requires(cpu_milli=1))
    first, second, third = key(5, "b", priority=9), key(1, "a"), key(2, "b", demand=light)
    waiting = backlog((third, light), (second, SHELL), (first, SHELL))
    assert planned(waiting, [worker("w", 2)]) == [first, second]
    assert planned(waiting, [worker("w", 3)]) == [first, second, third]


def test_the_emptiest_worker_is_chosen() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(3)))
    assert [item.worker for item in plan(waiting.lanes, [worker("a", 1), worker("b", 3)], 10)] == ["b", "b", "a"]


def test_a_job_that_fits_nowhere_does_not_stop_those_behind_it() -> None:
    demands = [
        Demand("shell", Requires(labels={"gpu": "yes"})),
        Demand("shell", Requires(memory_bytes=1 << 40)),
        Demand("sql", Requires()),
        SHELL,
    ]
    waiting = backlog(*((key(number, demand=demand), demand) for number, demand in enumerate(demands)))
    assert planned(waiting, [worker("w", 4)]) == [key(3)]


def test_any_number_of_jobs_that_fit_nowhere_hides_no_job_that_fits() -> None:
    hopeless = Demand("shell", Requires(labels={"gpu": "yes"}))
    waiting = backlog(*((key(number, demand=hopeless), hopeless) for number in range(2 * WINDOW)))
    last = key(10 * WINDOW)
    waiting.add(last, SHELL)
    assert planned(waiting, [worker("w", 1)]) == [last]


def test_labels_and_resources_are_respected_and_counted() -> None:
    half = Demand("shell", Requires(cpu_milli=2_000, labels={"zone": "a"}))
    waiting = backlog(*((key(number, demand=half), half) for number in range(3)))
    workers = [worker("x", 9, labels={"zone": "b"}), worker("y", 9, labels={"zone": "a"})]
    assert [item.worker for item in plan(waiting.lanes, workers, 10)] == ["y", "y"]


def test_nothing_is_planned_without_room_or_beyond_the_limit() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(9)))
    assert planned(waiting, [worker("w", 0)]) == []
    assert planned(waiting, []) == []
    assert len(planned(waiting, [worker("w", 9)], 4)) == 4


def test_the_backlog_is_bounded_and_reads_on_from_the_store() -> None:
    # Given far more jobs than a lane holds, in the store and offered one by one
    stored = [key(number) for number in range(3 * WINDOW)]
    waiting = backlog(*((entry, SHELL) for entry in stored))
    assert len(waiting) <= WINDOW
    # When they are taken in order, and the backlog is filled when it asks
    taken = []
    while waiting.lanes:
        (head,) = planned(waiting, [worker("w", 1)])
        waiting.remove(head)
        taken.append(head)
        for lane, after in waiting.wants_more():
            rest = [entry for entry in stored if entry > after]
            waiting.fill(lane, [(entry, SHELL) for entry in rest[:LOW_WATER]], len(rest) > LOW_WATER)
    # Then every one came, once, in order
    assert taken == stored


def test_an_urgent_job_enters_a_full_lane_at_its_head() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(WINDOW + 10)))
    urgent = key(10 * WINDOW, priority=5)
    waiting.add(urgent, SHELL)
    assert planned(waiting, [worker("w", 1)]) == [urgent]


def test_removing_what_is_not_held_changes_nothing_and_an_empty_lane_goes() -> None:
    waiting = backlog((key(1), SHELL))
    waiting.remove(key(2))
    waiting.remove(key(3, "nowhere"))
    assert planned(waiting, [worker("w", 1)]) == [key(1)]
    waiting.add(key(1), SHELL)
    waiting.remove(key(1))
    assert not waiting.lanes
