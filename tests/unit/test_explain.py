"""Why a job waits, runs or ended: every case in words."""

from __future__ import annotations

from msgspec.structs import replace

from jobs import jobs
from jobs.control.transitions import view
from jobs.explain import MAX_JOBS, Circumstances, Parent, explain
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId, uuid7
from jobs.protocol.model import AttemptView, JobState, Reason, Retry, ShellJob, ShellPayload
from jobs.records import Demand, JobRecord
from jobs.rootlabels import root_labels
from jobs.scheduler import RESERVE_AFTER_MS
from jobs.scheduler.explain import MAX_HOLDERS, MAX_WORKERS, Finding
from jobs.scheduler.explain import explain as find
from tests.support.scheduling import GIB, SHELL, Cluster, asks, key, named_root, worker

JOB = uuid7(1, 1)
NOW_MS = 1_000_000


def finding(
    cluster: Cluster, demand: Demand = SHELL, *, queue: str = "default", owner: int = 1, **shut: str
) -> Finding:
    why = {WorkerId(name): text for name, text in shut.items()}
    return find(cluster.backlog, demand, queue, owner, cluster.workers.values(), why, cluster.now_ms)


def lacks(found: Finding) -> dict[str, list[str]]:
    return {fit.worker: fit.lacks for fit in found.workers}


# --- workers ----------------------------------------------------------------------------------------------------------


def test_what_each_worker_lacks_for_good_is_said_with_what_it_has() -> None:
    demand = asks(
        labels={"zone": "a", "disk": "ssd"}, cpu_milli=4_000, memory_bytes=2 * GIB + 1, resources={"gpu": 2, "fpga": 1}
    )
    cluster = Cluster(
        worker("w", cpu=2_000, memory=2 * GIB, labels={"zone": "b"}, resources={"gpu": 1}), worker("s", type="sql")
    )
    found = finding(cluster, demand)
    assert lacks(found) == {
        "s": ["type shell wanted, is sql"],
        "w": [
            "label zone=a wanted, has zone=b",
            "label disk=ssd wanted, has none",
            "cpu_milli 4000 wanted, has 2000",
            "memory 2049 MiB wanted, has 2048 MiB",
            "gpu 2 wanted, has 1",
            "fpga 1 wanted, none",
        ],
    }
    assert [obstacle.kind for obstacle in found.obstacles] == ["unsuitable"]
    assert found.obstacles[0].text == "none of the 2 registered workers can ever take it"
    assert not any(fit.suits for fit in found.workers)


def test_a_root_image_that_no_worker_has_is_named() -> None:
    cluster = Cluster(worker("a", labels=root_labels(["debian"])), worker("b"))
    found = finding(cluster, named_root("alpine"))
    assert lacks(found) == {name: ["label root:alpine=yes wanted, has none"] for name in "ab"}
    assert [obstacle.kind for obstacle in found.obstacles] == ["unsuitable"]
    assert finding(cluster, named_root("debian")).obstacles == []


def test_without_a_worker_the_type_that_is_missing_is_said() -> None:
    (obstacle,) = finding(Cluster(), Demand("sql", SHELL.requires)).obstacles
    assert (obstacle.kind, obstacle.text) == ("unsuitable", "no worker is registered; it needs one of type sql")


def test_what_is_taken_at_present_is_said_with_what_is_free() -> None:
    demand = asks(cpu_milli=3_000, memory_bytes=GIB, resources={"gpu": 1})
    holds = asks(cpu_milli=2_000, memory_bytes=1, resources={"gpu": 1})
    cluster = Cluster(worker("w", 1, resources={"gpu": 1}), worker("later", 2, resources={"gpu": 1}))
    cluster.add((key(1, holds), holds), (key(2, holds), holds))
    assert len(cluster.started()) == 2
    found = finding(cluster, demand)
    assert lacks(found)["w"] == [
        "its slot is taken",
        "cpu_milli 3000 wanted, 2000 of 4000 free",
        "memory 1024 MiB wanted, 1023 of 1024 MiB free",
        "gpu 1 wanted, 0 of 1 free",
    ]
    assert [fit.worker for fit in found.workers] == ["later", "w"], "the one that lacks least comes first"
    assert found.obstacles[0].text == "the 2 workers that it suits have no room for it now"


def test_a_worker_that_is_shut_is_said_to_be_with_the_reason() -> None:
    cluster = Cluster(*(replace(worker(name), open=False) for name in "ab"), worker("c", 0))
    found = finding(cluster, a="draining", b="under pressure: memory 31.5 %")
    assert lacks(found)["a"] == ["draining"]
    assert lacks(found)["b"] == ["under pressure: memory 31.5 %"]
    assert lacks(found)["c"] == ["has no slots"]
    assert found.obstacles[0].kind == "room"


def test_a_reservation_is_told_to_the_job_it_is_for_and_to_those_it_keeps_away() -> None:
    small, large = asks(cpu_milli=1_000), asks(cpu_milli=4_000)
    cluster = Cluster(worker("w", 9))
    cluster.add(*((key(number, small), small) for number in range(1, 5)))
    held = cluster.started()
    cluster.add((key(9, large, at_ms=cluster.now_ms), large))
    cluster.started()
    cluster.now_ms += RESERVE_AFTER_MS
    cluster.started()
    cluster.end(held[0])
    assert finding(cluster, large).reserved == "w"
    assert finding(cluster, small).reserved is None
    assert lacks(finding(cluster, small)) == {"w": ["is kept free for another job that has waited longer"]}
    assert lacks(finding(cluster, large)) == {"w": ["cpu_milli 4000 wanted, 1000 of 4000 free"]}


def test_many_workers_are_told_in_part() -> None:
    cluster = Cluster(*(worker(f"w{number:03}", 0) for number in range(MAX_WORKERS + 7)), worker("z"))
    found = finding(cluster)
    assert (len(found.workers), found.more_workers) == (MAX_WORKERS, 8)
    assert found.workers[0].worker == "z", "the one that takes it is not left out"
    assert found.obstacles == []


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_told_with_count_and_limit() -> None:
    cluster = Cluster(worker("w", 9))
    cluster.set_queue("q", max_running=2, max_running_per_owner=1)
    cluster.set_owner(1, max_running=2)
    cluster.add((key(1, queue="q", owner=1), SHELL), (key(2, queue="q", owner=2), SHELL), (key(3, owner=1), SHELL))
    assert len(cluster.started()) == 3
    told = {obstacle.kind: obstacle for obstacle in finding(cluster, queue="q").obstacles}
    assert {kind: (obstacle.count, obstacle.limit) for kind, obstacle in told.items()} == {
        "queue_limit": (2, 2),
        "share_limit": (1, 1),
        "owner_limit": (2, 2),
    }
    assert told["share_limit"].text == "1 job is running of uid 1 in queue q; the limit is 1"
    assert [obstacle.kind for obstacle in finding(cluster, queue="q", owner=3).obstacles] == ["queue_limit"]
    assert finding(cluster, owner=3).obstacles == []


def test_a_rate_tells_from_when_and_a_pause_does_not() -> None:
    cluster = Cluster(worker("w", 9))
    cluster.set_queue("q", rate_count=1, rate_period_s=60.0, paused=True)
    (paused,) = finding(cluster, queue="q").obstacles
    assert (paused.kind, paused.until_ms) == ("paused", None)
    cluster.set_queue("q", rate_count=1, rate_period_s=60.0)
    cluster.add((key(1, queue="q"), SHELL))
    assert cluster.started() == [key(1, queue="q")]
    (obstacle,) = finding(cluster, queue="q").obstacles
    assert (obstacle.kind, obstacle.until_ms) == ("rate", cluster.now_ms + 60_000)
    assert obstacle.text == "the rate of queue q is 1 starts in 60 s"


def test_a_taken_concurrency_key_names_the_jobs_that_hold_it() -> None:
    many = MAX_HOLDERS + 3
    locked = replace(SHELL, concurrency_key="db", concurrency_limit=many)
    cluster = Cluster(worker("w", 99))
    cluster.add(*((key(number, locked, owner=2), locked) for number in range(1, many + 1)))
    held = sorted(item.job for item in cluster.plan())
    (obstacle,) = finding(cluster, locked).obstacles
    assert (obstacle.kind, obstacle.count, obstacle.limit) == ("concurrency_key", many, many)
    assert (obstacle.jobs, obstacle.more_jobs) == (held[:MAX_HOLDERS], 3)
    assert finding(cluster, replace(locked, concurrency_key="other")).obstacles == []


# --- jobs -------------------------------------------------------------------------------------------------------------


def record(**fields: object) -> JobRecord:
    submitted = jobs.on_submit(ShellJob(payload=ShellPayload(argv=["true"])), 1000, NOW_MS)
    return replace(submitted, **fields)


def text(found: JobRecord, **around: object) -> str:
    return explain(view(JOB, found, 1), found, Circumstances(**around)).text  # type: ignore[arg-type]


def no_room() -> Finding:
    return finding(Cluster(worker("w", 0), worker("v", type="sql")))


def test_a_job_that_nothing_is_against_has_only_to_wait_for_its_turn() -> None:
    free = finding(Cluster(worker("w")))
    found = record()
    told = explain(view(JOB, found, 1), found, Circumstances(finding=free, ahead=3))
    assert (told.text, told.obstacles, told.ahead) == (
        "nothing is against it: it is started when its turn comes", [], 3,
    )  # fmt: skip
    assert text(found, finding=free, being_started=True) == "it is being given to a worker"


def test_times_come_before_limits_and_room_which_will_be_others_by_then() -> None:
    later = record(delayed=True, ready_ms=1_764_000_000_123)
    busy = finding(Cluster(replace(worker("w"), open=False)))
    told = explain(view(JOB, later, 1), later, Circumstances(finding=busy))
    assert told.text == "it is not to run before 2025-11-24T16:00:00.123Z"
    assert [(obstacle.kind, obstacle.until_ms) for obstacle in told.obstacles] == [("time", 1_764_000_000_123)]
    retried = replace(later, attempt=Attempt(2), reason=Reason.EXIT_CODE)
    assert text(retried, finding=busy) == "attempt 2 failed (exit_code); it is tried again at 2025-11-24T16:00:00.123Z"
    # But what never passes is said at once
    hopeless = finding(Cluster(worker("w")), asks(labels={"gpu": "yes"}))
    told = explain(view(JOB, later, 1), later, Circumstances(finding=hopeless))
    assert [obstacle.kind for obstacle in told.obstacles] == ["unsuitable", "time"]
    assert "stays pending until one comes" in told.text


def test_parents_that_have_not_ended_are_named_with_their_states() -> None:
    ended, running, gone = (JobId(f"0190000{n}-0000-7000-8000-000000000000") for n in range(3))
    parents = [Parent(ended, JobState.COMPLETED), Parent(running, JobState.RUNNING), Parent(gone, None)]
    waiting = record(waits_for=2)
    told = explain(view(JOB, waiting, 1), waiting, Circumstances(parents=parents))
    (obstacle,) = told.obstacles
    assert (obstacle.kind, obstacle.jobs) == ("parents", [running, gone])
    assert told.text == f"it waits for the end of 2 jobs: {running} (running), {gone} (no longer kept)"
    assert "about to be told" in text(waiting, parents=parents[:1])
    many = [Parent(uuid7(n, n), JobState.PENDING) for n in range(MAX_JOBS + 5)]
    told = explain(view(JOB, waiting, 1), waiting, Circumstances(parents=many))
    assert (len(told.obstacles[0].jobs), told.obstacles[0].more_jobs) == (MAX_JOBS, 5)


def test_a_deadline_is_told_while_it_can_be_missed() -> None:
    due = record(deadline_ms=NOW_MS + 5_000)
    assert text(due, finding=no_room()).endswith("; it fails unless it is started by 1970-01-01T00:16:45Z")
    assert "fails unless" not in text(replace(due, attempt=Attempt(1)), finding=no_room())


def running(**fields: object) -> JobRecord:
    given = jobs.on_assigned(record(retry=Retry(max_attempts=3)), WorkerId("w"), Incarnation("i" * 32), NOW_MS)
    assert isinstance(given, JobRecord)
    return replace(given, **fields)


def test_a_running_job_is_told_by_where_and_since_when() -> None:
    assert text(running()) == "attempt 1 of 3 runs on worker w since 1970-01-01T00:16:40Z"
    assert text(running(cancel_requested=True)).endswith("; it is being ended, as was asked for")
    assert "the worker is not connected" in text(running(), worker_away="not connected")


def test_every_reason_of_a_failure_is_put_into_words() -> None:
    for reason in Reason:
        failed = running(
            state=JobState.FAILED, reason=reason, message="told", exit_code=3, signal=9, finished_ms=NOW_MS + 1
        )
        told = text(failed)
        assert told.startswith("it failed at 1970-01-01T00:16:40.001Z: ")
        assert "{" not in told
    assert "exit code 3; attempt 1 of 3: an end like this is not tried again" in text(
        running(state=JobState.FAILED, reason=Reason.EXIT_CODE, exit_code=3, finished_ms=NOW_MS)
    )
    never = record(state=JobState.FAILED, reason=Reason.DEADLINE, message="late", finished_ms=NOW_MS)
    assert text(never).endswith("it was not started by its deadline (late); it never ran")
    done = running(state=JobState.COMPLETED, finished_ms=NOW_MS)
    assert text(done) == "it completed at 1970-01-01T00:16:40Z with attempt 1"


def test_attempts_that_are_left_out_are_counted() -> None:
    def ended(number: int) -> AttemptView:
        return AttemptView(
            attempt=Attempt(number), state=JobState.FAILED, reason=Reason.EXIT_CODE, message=None, worker=None,
            started_ms=1, finished_ms=2, execution=None,
        )  # fmt: skip

    found = running(attempt=Attempt(31))
    told = explain(view(JOB, found, 1), found, Circumstances(attempts=[ended(n) for n in range(30, 10, -1)]))
    assert ([end.attempt for end in told.attempts][:2], told.more_attempts) == ([30, 29], 10)
