"""What a plan does, case by case."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from jobs.protocol.ids import WorkerId
from jobs.records import Demand
from jobs.rootlabels import root_labels
from jobs.scheduler import LOW_WATER, RESERVE_AFTER_MS, WINDOW
from tests.support.scheduling import GIB, SHELL, Cluster, asks, key, named_root, worker

# --- order ------------------------------------------------------------------------------------------------------------


def test_jobs_of_an_owner_go_out_by_priority_then_age_across_lanes() -> None:
    light = asks(cpu_milli=1)
    urgent, oldest, old_light = key(5, priority=9), key(1), key(2, light)
    cluster = Cluster(worker("w", 2))
    cluster.add((old_light, light), (oldest, SHELL), (urgent, SHELL))
    assert cluster.started() == [urgent, oldest]
    cluster.end(urgent)
    assert cluster.started() == [old_light]


def test_two_owners_share_the_slots_however_much_one_of_them_submits() -> None:
    cluster = Cluster(worker("w", 4))
    cluster.add(*((key(number, owner=1), SHELL) for number in range(1, 50)))
    cluster.add(*((key(number, owner=2), SHELL) for number in range(50, 60)))
    assert Counter(item.owner for item in cluster.plan()) == {1: 2, 2: 2}


def test_one_slot_alternates_between_owners() -> None:
    cluster = Cluster(worker("w"))
    cluster.add(*((key(number, owner=1), SHELL) for number in range(1, 10)))
    cluster.add(*((key(number, owner=2), SHELL) for number in range(10, 20)))
    order = []
    for _ in range(8):
        (item,) = cluster.plan()
        order.append(item.owner)
        cluster.end(item.queue_key)
    assert order == [1, 2] * 4


def test_weights_of_queues_divide_one_slot_in_proportion() -> None:
    cluster = Cluster(worker("w"))
    cluster.set_queue("heavy", weight=3.0)
    cluster.add(*((key(number, queue="heavy"), SHELL) for number in range(1, 50)))
    cluster.add(*((key(number, queue="light"), SHELL) for number in range(50, 100)))
    order = []
    for _ in range(40):
        (item,) = cluster.plan()
        order.append(item.queue)
        cluster.end(item.queue_key)
    assert Counter(order) == {"heavy": 30, "light": 10}


def test_weights_divide_many_slots_in_proportion() -> None:
    cluster = Cluster(worker("w", 12))
    cluster.set_owner(1, weight=3.0)
    cluster.add(*((key(number, owner=1), SHELL) for number in range(1, 50)))
    cluster.add(*((key(number, owner=2), SHELL) for number in range(50, 100)))
    assert Counter(item.owner for item in cluster.plan()) == {1: 9, 2: 3}


def test_who_had_nothing_to_run_for_long_is_owed_nothing_for_it() -> None:
    # Given an owner who was served a hundred times while another had nothing
    cluster = Cluster(worker("w"))
    cluster.add(*((key(number, owner=2), SHELL) for number in range(1, 200)))
    for _ in range(100):
        cluster.end(*cluster.started())
    # When the other submits, then both take turns
    cluster.add(*((key(number, owner=1), SHELL) for number in range(200, 220)))
    order = []
    for _ in range(10):
        (item,) = cluster.plan()
        order.append(item.owner)
        cluster.end(item.queue_key)
    assert abs(Counter(order)[1] - 5) <= 1


def test_a_stream_of_single_jobs_does_not_shut_out_a_long_queue() -> None:
    # Given an owner who always has just one job waiting, and one who has many
    cluster = Cluster(worker("w"))
    cluster.add(*((key(number, owner=2), SHELL) for number in range(1, 50)))
    order = []
    for number in range(100, 120):
        cluster.add((key(number, owner=1), SHELL)) if not any(
            b"\x001\x00" in waits for waits in cluster.waiting
        ) else None
        (item,) = cluster.plan()
        order.append(item.owner)
        cluster.end(item.queue_key)
    assert Counter(order) == {1: 10, 2: 10}


# --- workers ----------------------------------------------------------------------------------------------------------


def test_the_emptiest_worker_is_chosen() -> None:
    cluster = Cluster(worker("a", 1), worker("b", 3))
    cluster.add(*((key(number), SHELL) for number in range(1, 4)))
    assert [item.worker for item in cluster.plan()] == ["b", "b", "a"]


def test_preferred_labels_decide_before_emptiness_but_do_not_keep_a_job_waiting() -> None:
    picky = asks(prefer={"disk": "ssd", "zone": "a"})
    cluster = Cluster(
        worker("full", 9),
        worker("one", 9, labels={"disk": "ssd"}),
        worker("two", 1, labels={"disk": "ssd", "zone": "a"}),
    )
    cluster.add(*((key(number, picky), picky) for number in range(1, 12)))
    assert [item.worker for item in cluster.plan()] == ["two", *["one"] * 9, "full"]


def test_labels_and_amounts_are_respected_and_counted() -> None:
    half = asks(cpu_milli=2_000, labels={"zone": "a"})
    cluster = Cluster(worker("x", 9, labels={"zone": "b"}), worker("y", 9, labels={"zone": "a"}))
    cluster.add(*((key(number, half), half) for number in range(1, 4)))
    assert [item.worker for item in cluster.plan()] == ["y", "y"]


def test_custom_resources_are_held_while_a_job_runs() -> None:
    gpu = asks(resources={"gpu": 1})
    first, second, third = (key(number, gpu) for number in (1, 2, 3))
    cluster = Cluster(worker("plain", 9), worker("rich", 9, resources={"gpu": 2}))
    cluster.add((first, gpu), (second, gpu), (third, gpu))
    assert cluster.started() == [first, second]
    cluster.end(first)
    assert cluster.started() == [third]


def test_a_closed_worker_is_given_nothing_until_it_opens() -> None:
    cluster = Cluster(worker("w"))
    cluster.workers[WorkerId("w")] = replace(cluster.workers[WorkerId("w")], open=False)
    cluster.add((key(1), SHELL))
    assert cluster.started() == []
    cluster.workers[WorkerId("w")] = replace(cluster.workers[WorkerId("w")], open=True)
    assert cluster.started() == [key(1)]


def test_a_job_that_fits_nowhere_does_not_stop_those_behind_it() -> None:
    demands = [asks(labels={"gpu": "yes"}), asks(memory_bytes=1 << 40), Demand("sql", SHELL.requires), SHELL]
    cluster = Cluster(worker("w", 4))
    cluster.add(*((key(number, demand), demand) for number, demand in enumerate(demands, 1)))
    assert cluster.started() == [key(4)]


def test_a_job_that_suits_no_worker_starts_when_one_comes_that_it_suits() -> None:
    hopeless = asks(labels={"gpu": "yes"})
    cluster = Cluster(worker("w", 4))
    cluster.add((key(1, hopeless), hopeless))
    assert cluster.started() == []
    cluster.workers[WorkerId("g")] = worker("g", labels={"gpu": "yes"})
    assert cluster.started() == [key(1, hopeless)]


def test_jobs_that_name_a_root_image_go_only_where_it_is_and_those_of_one_name_share_a_lane() -> None:
    debian, alpine = (named_root(name) for name in ("debian", "alpine"))
    cluster = Cluster(
        worker("roomy", 9), worker("one", 2, labels=root_labels(["debian"])), worker("old", 9, labels={"zone": "a"})
    )
    entries = [(key(number, debian), debian) for number in range(1, 4)]
    cluster.add(*entries, (key(4, alpine), alpine), (key(5), SHELL))
    assert [(item.queue_key, item.worker) for item in cluster.plan()] == [
        (entries[0][0], "one"),
        (entries[1][0], "one"),
        (key(5), "old"),
    ]
    # However many wait for an image, they are looked at as one
    assert len(cluster.backlog.lanes) == 2
    cluster.end(entries[0][0])
    assert cluster.started() == [entries[2][0]]
    # When a worker comes that has the other one, too
    cluster.workers[WorkerId("two")] = worker("two", labels=root_labels(["alpine", "debian"]))
    assert cluster.started() == [key(4, alpine)]


def test_any_number_of_jobs_that_fit_nowhere_hides_no_job_that_fits() -> None:
    hopeless = asks(labels={"gpu": "yes"})
    cluster = Cluster(worker("w"))
    cluster.add(*((key(number, hopeless), hopeless) for number in range(1, 2 * WINDOW)))
    last = key(10 * WINDOW)
    cluster.add((last, SHELL))
    assert cluster.started() == [last]


def test_nothing_is_planned_without_room_or_beyond_the_limit() -> None:
    cluster = Cluster(worker("w", 0))
    cluster.add(*((key(number), SHELL) for number in range(1, 10)))
    assert cluster.started() == []
    cluster.workers.clear()
    assert cluster.started() == []
    cluster.workers[WorkerId("w")] = worker("w", 9)
    assert len(cluster.started(limit=4)) == 4
    assert cluster.last.wake_ms == cluster.now_ms


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_paused_queue_starts_nothing_until_it_is_resumed() -> None:
    cluster = Cluster(worker("w", 2))
    cluster.set_queue("a", paused=True)
    cluster.add((key(1, queue="a"), SHELL), (key(2, queue="b"), SHELL))
    assert cluster.started() == [key(2, queue="b")]
    cluster.set_queue("a")
    assert cluster.started() == [key(1, queue="a")]


def test_a_queue_keeps_to_its_limit() -> None:
    cluster = Cluster(worker("w", 9))
    cluster.set_queue("default", max_running=2)
    cluster.add(*((key(number, owner=number), SHELL) for number in range(1, 6)))
    first = cluster.started()
    assert len(first) == 2
    assert cluster.started() == []
    cluster.end(first[0])
    assert len(cluster.started()) == 1


def test_an_owner_keeps_to_the_limit_of_a_queue_and_to_one_over_all_queues() -> None:
    cluster = Cluster(worker("w", 99))
    cluster.set_queue("a", max_running_per_owner=2)
    cluster.set_owner(1, max_running=3)
    for number in range(1, 9):
        cluster.add((key(number, queue="a", owner=1), SHELL), (key(100 + number, queue="b", owner=1), SHELL))
        cluster.add((key(200 + number, queue="a", owner=2), SHELL))
    made = cluster.plan()
    assert Counter(item.owner for item in made) == {1: 3, 2: 2}
    assert sum(item.queue == "a" and item.owner == 1 for item in made) <= 2
    # When one of the owner's jobs ends, just one of either queue takes its place
    cluster.end(next(item.queue_key for item in made if item.queue == "b"))
    assert [item.owner for item in cluster.plan()] == [1]
    # And a higher limit counts at once
    cluster.set_owner(1, max_running=5)
    assert [item.owner for item in cluster.plan()] == [1, 1]


def test_a_concurrency_key_is_shared_by_owners_and_queues() -> None:
    locked = replace(SHELL, concurrency_key="db")
    first, second = key(1, locked, queue="a", owner=1), key(2, locked, queue="b", owner=2)
    cluster = Cluster(worker("w", 9))
    cluster.add((first, locked), (second, locked), (key(3), SHELL))
    assert cluster.started() == [first, key(3)]
    cluster.end(first)
    assert cluster.started() == [second]


def test_a_concurrency_limit_lets_so_many_run() -> None:
    locked = replace(SHELL, concurrency_key="db", concurrency_limit=3)
    cluster = Cluster(worker("w", 9))
    cluster.add(*((key(number, locked), locked) for number in range(1, 9)))
    assert len(cluster.started()) == 3


def test_a_rate_lets_a_burst_go_and_then_keeps_its_distance() -> None:
    cluster = Cluster(worker("w", 99))
    cluster.set_queue("default", rate_count=3, rate_period_s=1.0)
    cluster.add(*((key(number), SHELL) for number in range(1, 20)))
    starts = []
    while len(starts) < 8:
        starts += [cluster.now_ms] * len(cluster.started())
        assert cluster.last.wake_ms is not None
        cluster.now_ms = cluster.last.wake_ms
    assert starts == [1000, 1000, 1000, 1334, 1667, 2000, 2334, 2667]


def test_a_rate_goes_on_where_it_was_and_believes_no_clock_that_was_set_back() -> None:
    cluster = Cluster(worker("w", 99))
    cluster.set_queue("default", rate_count=1, rate_period_s=60.0)
    cluster.add(*((key(number), SHELL) for number in range(1, 5)))
    (item,) = cluster.plan()
    assert item.arrival_us == (cluster.now_ms + 60_000) * 1000
    # A new leader is told where it was
    successor = Cluster(worker("w", 99))
    successor.set_queue("default", rate_count=1, rate_period_s=60.0)
    successor.backlog.set_arrival("default", item.arrival_us)
    successor.add((key(9), SHELL))
    assert successor.started() == []
    assert successor.last.wake_ms == cluster.now_ms + 60_000
    # A clock an hour behind makes it wait no longer than a period
    successor.backlog.set_arrival("default", item.arrival_us + 3_600_000_000)
    successor.backlog.queue_changed("default")
    assert successor.started() == []
    assert successor.last.wake_ms == successor.now_ms + 60_000


def test_a_start_that_did_not_come_about_is_given_back() -> None:
    locked = replace(SHELL, concurrency_key="db")
    cluster = Cluster(worker("w"))
    cluster.add((key(1, locked), locked), (key(2, locked), locked))
    (item,) = cluster.plan()
    cluster.end(item.queue_key)
    cluster.add((item.queue_key, locked))
    assert cluster.started() == [item.queue_key]


def test_a_job_that_runs_is_not_started_again_though_it_is_offered() -> None:
    cluster = Cluster(worker("w", 2))
    cluster.add((key(1), SHELL))
    assert cluster.started() == [key(1)]
    cluster.backlog.add(key(1), SHELL)
    assert cluster.started() == []


# --- reservations -----------------------------------------------------------------------------------------------------

LARGE = asks(cpu_milli=4_000)
SMALL = asks(cpu_milli=1_000)


def test_a_large_job_that_has_waited_long_enough_gets_a_worker_to_itself() -> None:
    # Given a worker full of small jobs, and a large one behind them
    cluster = Cluster(worker("w", 9))
    smalls = [key(number, SMALL, owner=2) for number in range(1, 5)]
    large = key(5, LARGE, owner=1, at_ms=1_000)
    cluster.add(*((entry, SMALL) for entry in smalls))
    assert cluster.started() == smalls
    cluster.add((large, LARGE))
    # When small ones end, others take their place until the large one has waited long enough
    cluster.end(smalls[0])
    cluster.add((key(10, SMALL, owner=2), SMALL))
    cluster.now_ms += RESERVE_AFTER_MS - 1
    assert cluster.started() == [key(10, SMALL, owner=2)]
    assert cluster.last.wake_ms == 1_000 + RESERVE_AFTER_MS
    cluster.now_ms += 1
    cluster.add((key(11, SMALL, owner=2), SMALL))
    cluster.end(smalls[1])
    # Then the worker takes no more of them
    assert cluster.started() == []
    cluster.end(smalls[2], smalls[3])
    assert cluster.started() == []
    cluster.end(key(10, SMALL, owner=2))
    assert cluster.started() == [large]
    # And once it has started, what is left is for all again
    cluster.end(large)
    assert cluster.started() == [key(11, SMALL, owner=2)]


def _full(*names: str) -> tuple[Cluster, dict[str, list[bytes]]]:
    """Return workers full of small jobs, and these by worker."""
    cluster = Cluster(*(worker(name, 9) for name in names))
    cluster.add(*((key(number, SMALL, owner=2), SMALL) for number in range(1, 4 * len(names) + 1)))
    held: dict[str, list[bytes]] = {name: [] for name in names}
    for item in cluster.plan():
        held[item.worker].append(item.queue_key)
    return cluster, held


def test_small_jobs_go_on_on_the_workers_that_are_not_reserved() -> None:
    cluster, held = _full("a", "b")
    cluster.end(held["b"][0])
    cluster.add((key(50, LARGE, at_ms=cluster.now_ms), LARGE))
    assert cluster.started() == []
    cluster.now_ms += RESERVE_AFTER_MS
    cluster.add(*((key(number, SMALL, owner=2), SMALL) for number in range(60, 70)))
    # b lacks least, so it is the one that is reserved
    assert cluster.started() == []
    cluster.end(held["a"][0], held["b"][1])
    assert [item.worker for item in cluster.plan()] == ["a"]


def test_the_oldest_large_job_is_served_first_and_one_worker_is_reserved_once() -> None:
    cluster, held = _full("w")
    gpuless = asks(cpu_milli=3_500)
    older, younger = key(20, gpuless, owner=7, at_ms=1_000), key(21, LARGE, owner=1, at_ms=1_500)
    cluster.end(held["w"][0])
    cluster.add((younger, LARGE), (older, gpuless))
    assert cluster.started() == []
    cluster.now_ms += 2 * RESERVE_AFTER_MS
    assert cluster.started() == []
    cluster.end(*held["w"][1:])
    assert cluster.started() == [older]
    cluster.end(older)
    assert cluster.started() == [younger]


def test_a_job_that_no_worker_can_ever_run_reserves_nothing() -> None:
    cluster, held = _full("w")
    monster = asks(cpu_milli=64_000)
    cluster.end(held["w"][0])
    cluster.add((key(20, monster), monster))
    assert cluster.started() == []
    cluster.now_ms += 2 * RESERVE_AFTER_MS
    cluster.add((key(30, SMALL), SMALL))
    assert cluster.started() == [key(30, SMALL)]


def test_a_reservation_is_given_up_when_its_queue_is_paused_or_its_job_is_gone() -> None:
    for paused in (True, False):
        cluster, held = _full("w")
        large = key(20, LARGE, queue="big", at_ms=cluster.now_ms)
        cluster.end(held["w"][0])
        cluster.add((large, LARGE))
        assert cluster.started() == []
        cluster.now_ms += RESERVE_AFTER_MS
        cluster.add((key(30, SMALL), SMALL))
        assert cluster.started() == []
        # When
        if paused:
            cluster.set_queue("big", paused=True)
        else:
            cluster.backlog.remove(large)
        # Then the worker is for all again
        assert cluster.started() == [key(30, SMALL)]


def test_a_reservation_moves_when_its_worker_goes() -> None:
    cluster, held = _full("a", "b")
    cluster.end(held["b"][0])
    cluster.add((key(50, LARGE, at_ms=cluster.now_ms), LARGE))
    assert cluster.started() == []
    cluster.now_ms += RESERVE_AFTER_MS
    assert cluster.started() == []
    del cluster.workers[WorkerId("b")]
    cluster.end(*held["a"])
    cluster.add((key(60, SMALL), SMALL))
    assert cluster.started() == [key(50, LARGE, at_ms=1_000)]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_backlog_is_bounded_and_reads_on_from_the_store() -> None:
    # Given far more jobs than a lane holds, in the store and offered one by one
    stored = [key(number) for number in range(1, 3 * WINDOW)]
    cluster = Cluster(worker("w"))
    cluster.add(*((entry, SHELL) for entry in stored))
    assert len(cluster.backlog) <= WINDOW
    # When they are taken in order, and the backlog is filled when it asks
    taken = []
    while cluster.backlog.lanes:
        (head,) = cluster.started()
        taken.append(head)
        cluster.end(head)
        for lane, after in cluster.backlog.wants_more():
            rest = [entry for entry in stored if entry > after]
            cluster.backlog.fill(lane, [(entry, SHELL) for entry in rest[:LOW_WATER]], len(rest) > LOW_WATER)
    # Then every one came, once, in order
    assert taken == stored


def test_an_urgent_job_enters_a_full_lane_at_its_head() -> None:
    cluster = Cluster(worker("w"))
    cluster.add(*((key(number), SHELL) for number in range(1, WINDOW + 10)))
    urgent = key(10 * WINDOW, priority=5)
    cluster.add((urgent, SHELL))
    assert cluster.started() == [urgent]


def test_removing_what_is_not_held_changes_nothing_and_what_is_empty_goes() -> None:
    cluster = Cluster(worker("w"))
    cluster.add((key(1), SHELL))
    cluster.backlog.remove(key(2))
    cluster.backlog.remove(key(3, queue="nowhere"))
    assert cluster.started() == [key(1)]
    cluster.end(key(1))
    cluster.add((key(1), SHELL))
    cluster.backlog.remove(key(1))
    assert not cluster.backlog.lanes
    assert cluster.started() == []


def test_memory_is_a_gibibyte_in_these_tests() -> None:
    big = asks(memory_bytes=GIB)
    cluster = Cluster(worker("w", 9))
    cluster.add((key(1, big), big), (key(2, big), big))
    assert cluster.started() == [key(1, big)]
