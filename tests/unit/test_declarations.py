"""What a declaration comes to, and whose objects it leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from jobs import shell_job
from jobs.declarations import Action, DeclarationError, Step, parse, plan
from jobs.protocol.ids import Revision
from jobs.protocol.model import QueueView, ScheduleDetail, ScheduleView

ME, OTHER = 1000, 2000
JOB = shell_job(["true"])
TEXT = b"""
name = "site"
[queues.q]
weight = 2
[schedules.s]
every_s = 60
job = { type = "shell", payload = { argv = ["true"] } }
"""
SCHEDULE = b"[schedules.s]\njob = { type = 'shell', payload = { argv = ['a'] } }"


def queue(name: str, **settings: Any) -> QueueView:
    return QueueView(name=name, paused=False, draining=False, pending=0, waiting=0, running=0, **settings)


def schedule(name: str, *, owner: int = ME, managed_by: str | None = "site", every_s: float = 60.0) -> ScheduleView:
    return ScheduleView(
        name=name,
        owner=owner,
        every_s=every_s,
        managed_by=managed_by,
        paused=False,
        next_ms=None,
        last_nominal_ms=None,
        last_job=None,
        unfinished=0,
        queued=[],
        fired=0,
        skipped=0,
        missed=0,
        last_error=None,
        revision=Revision(7),
    )


def planned(
    text: bytes, *views: QueueView | ScheduleView, take_over: bool = False
) -> tuple[list[tuple[str, Action, int | None]], list[str]]:
    """Return the steps and the conflicts, in short."""
    queues = [view for view in views if isinstance(view, QueueView)]
    schedules = [view for view in views if isinstance(view, ScheduleView)]
    details: Mapping[str, ScheduleDetail] = {view.name: ScheduleDetail(schedule=view, job=JOB) for view in schedules}
    made = plan(parse(text), queues, schedules, details, uid=ME, take_over=take_over)
    return [_short(step) for step in made.steps], [conflict.detail for conflict in made.conflicts]


def _short(step: Step) -> tuple[str, Action, int | None]:
    return f"{step.kind} {step.name}", step.action, step.revision


def test_queues_come_first_and_removals_last() -> None:
    steps, conflicts = planned(TEXT, queue("old", managed_by="site"), schedule("former"))
    assert steps == [
        ("queue q", Action.CREATE, None),
        ("schedule s", Action.CREATE, 0),
        ("schedule former", Action.REMOVE, 7),
        ("queue old", Action.REMOVE, None),
    ]
    assert conflicts == []


def test_what_is_as_declared_is_kept() -> None:
    steps, _ = planned(TEXT, queue("q", weight=2.0, managed_by="site"), schedule("s"))
    assert steps == [("queue q", Action.KEEP, None), ("schedule s", Action.KEEP, 7)]


@pytest.mark.parametrize("managed_by", [None, "elsewhere"])
def test_others_work_is_a_conflict_unless_it_is_taken_over(managed_by: str | None) -> None:
    there = queue("q", weight=2.0, managed_by=managed_by), schedule("s", managed_by=managed_by)
    steps, conflicts = planned(TEXT, *there)
    assert steps == []
    assert [text.split(" ")[0] for text in conflicts] == ["queue", "schedule"]
    steps, conflicts = planned(TEXT, *there, take_over=True)
    assert steps == [("queue q", Action.CHANGE, None), ("schedule s", Action.CHANGE, 7)]
    assert conflicts == []


def test_a_schedule_of_another_uid_is_not_ours_whatever_name_it_carries() -> None:
    """Else whoever takes a declared name first would own what is declared, and could change it."""
    squatter = schedule("s", owner=OTHER)
    steps, conflicts = planned(TEXT, squatter)
    assert conflicts == ["schedule 's' belongs to uid 2000"]
    steps, conflicts = planned(TEXT, squatter, take_over=True)
    assert steps == [
        ("queue q", Action.CREATE, None),
        ("schedule s", Action.REMOVE, 7),
        ("schedule s", Action.CREATE, 0),
    ]
    steps, _ = planned(b'name = "site"', squatter)
    assert steps == []


def test_a_queue_that_only_has_jobs_is_nobodys() -> None:
    steps, conflicts = planned(TEXT, queue("q"))
    assert steps[0] == ("queue q", Action.CREATE, None)
    assert conflicts == []


def test_json_and_toml_say_the_same() -> None:
    as_json = b' {"name": "site", "queues": {"q": {"weight": 2}}, "schedules": {"s": {"every_s": 60, "job": {"type":'
    as_json += b'"shell", "payload": {"argv": ["true"]}}}}}'
    assert parse(as_json) == parse(TEXT)
    assert parse(TEXT, "given").queues["q"].managed_by == "given"
    assert parse(b"").name == "default"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"[queues.q]\nmanaged_by = 'a'", '$.queues."q".managed_by'),
        (b"[queues.'a b']", '$.queues."a b"'),
        (b"[schedules.s]\nevery_s = 1", '$.schedules."s".job'),
        (SCHEDULE, '$.schedules."s"'),
        (SCHEDULE + b"\ncron = '61 * * * *'", '$.schedules."s".cron'),
        (SCHEDULE.replace(b"shell", b"shell', unique_key = 'a") + b"\nevery_s = 2", '$.schedules."s".job.unique_key'),
        (SCHEDULE.replace(b"['a']", b"[]") + b"\nevery_s = 2", '$.schedules."s".job.payload.argv'),
        (b"[queue.q]", "$.queue"),
        (b"name = ''", "$.name"),
        (b"\xff", "$"),
        (b"{", "$"),
        (b"a", "$"),
    ],
)
def test_a_complaint_names_the_object(text: bytes, field: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(text)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert all(problem.expected for problem in caught.value.problems)


def test_each_key_that_is_wrong_is_told() -> None:
    text = b"""
    [queues.q]
    weigth = 2
    max_running = "x"
    max_pending = -1
    [schedules.s]
    every_s = "often"
    overlap = "never"
    job = { type = "shell", payload = { argv = "a" } }
    [schedules.t]
    jobs = { }
    """
    with pytest.raises(DeclarationError) as caught:
        parse(text)
    assert sorted(str(problem.field) for problem in caught.value.problems) == [
        '$.queues."q".max_pending',
        '$.queues."q".max_running',
        '$.queues."q".weigth',
        '$.schedules."s".every_s',
        '$.schedules."s".job.payload.argv',
        '$.schedules."s".overlap',
        '$.schedules."t".job',
        '$.schedules."t".jobs',
    ]
