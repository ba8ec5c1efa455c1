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


def key(number: int, queue: str = "default", priority: int = 0) -> bytes:
    return keys.queue(queue, priority, number, uuid7(number, number))


def backlog(*entries: tuple[bytes, Demand]) -> Backlog:
    made = Backlog()
    for entry, demand in entries:
        made.add(keys.queue_name(entry), entry, demand)
    return made


def test_jobs_go_out_by_priority_then_age_across_queues() -> None:
    first, second, third = key(5, "b", priority=9), key(1, "a"), key(2, "b")
    waiting = backlog((third, SHELL), (second, SHELL), (first, SHELL))
    planned = plan(waiting.in_order(), [worker("w", 2)], 10)
    assert [item.queue_key for item in planned] == [first, second]


def test_the_emptiest_worker_is_chosen() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(3)))
    planned = plan(waiting.in_order(), [worker("a", 1), worker("b", 3)], 10)
    assert [item.worker for item in planned] == ["b", "b", "a"]


def test_a_job_that_fits_nowhere_does_not_stop_those_behind_it() -> None:
    picky = Demand("shell", Requires(labels={"gpu": "yes"}))
    large = Demand("shell", Requires(memory_bytes=1 << 40))
    waiting = backlog((key(1), picky), (key(2), large), (key(3), Demand("sql", Requires())), (key(4), SHELL))
    planned = plan(waiting.in_order(), [worker("w", 4)], 10)
    assert [item.queue_key for item in planned] == [key(4)]


def test_labels_and_resources_are_respected_and_counted() -> None:
    half = Demand("shell", Requires(cpu_milli=2_000, labels={"zone": "a"}))
    waiting = backlog(*((key(number), half) for number in range(3)))
    planned = plan(waiting.in_order(), [worker("x", 9, labels={"zone": "b"}), worker("y", 9, labels={"zone": "a"})], 10)
    assert [item.worker for item in planned] == ["y", "y"]


def test_nothing_is_planned_without_room_or_beyond_the_limit() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(9)))
    assert plan(waiting.in_order(), [worker("w", 0)], 10) == []
    assert plan(waiting.in_order(), [], 10) == []
    assert len(plan(waiting.in_order(), [worker("w", 9)], 4)) == 4


def test_the_backlog_is_bounded_and_reads_on_from_the_store() -> None:
    # Given far more jobs than a window holds, in the store and offered one by one
    stored = [key(number) for number in range(3 * WINDOW)]
    waiting = backlog(*((entry, SHELL) for entry in stored))
    assert len(waiting) <= WINDOW
    # When they are taken in order, and the backlog is filled when it asks
    taken = []
    while head := next(waiting.in_order(), None):
        waiting.remove("default", head[0])
        taken.append(head[0])
        for queue, after in waiting.wants_more():
            rest = [entry for entry in stored if entry > after]
            waiting.fill(queue, [(entry, SHELL) for entry in rest[:LOW_WATER]], len(rest) > LOW_WATER)
    # Then every one came, once, in order
    assert taken == stored


def test_an_urgent_job_enters_a_full_window_at_its_head() -> None:
    waiting = backlog(*((key(number), SHELL) for number in range(WINDOW + 10)))
    urgent = key(10 * WINDOW, priority=5)
    waiting.add("default", urgent, SHELL)
    assert next(waiting.in_order())[0] == urgent


def test_removing_what_is_not_held_changes_nothing() -> None:
    waiting = backlog((key(1), SHELL))
    waiting.remove("default", key(2))
    waiting.remove("nowhere", key(3))
    assert [entry for entry, _ in waiting.in_order()] == [key(1)]
