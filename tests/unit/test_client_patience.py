"""When a client tries again, and when it had better not."""

from __future__ import annotations

import random

import pytest

from jobs.client.failures import ConnectionFailed
from jobs.client.patience import MAX_BACKOFF_S, MAX_POLL_S, Deadline, Patience
from jobs.errors import (
    InvalidRequest,
    JobsError,
    NoLeader,
    NotFound,
    NotLeader,
    QueueFull,
    ResultGone,
    StorageFull,
    TooManyRequests,
    Unavailable,
)

AWAY = ConnectionFailed("away", sent=False)
LOST = ConnectionFailed("lost", sent=True)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (AWAY, True),
        (LOST, True),
        (Unavailable("x"), True),
        (TooManyRequests("x"), True),
        (QueueFull("x"), True),
        (NotFound("x"), False),
        (InvalidRequest("x"), False),
        (StorageFull("x"), False),
        (ResultGone("x"), False),
    ],
)
def test_only_what_can_help_is_tried_again(error: JobsError, again: bool) -> None:
    pause = Patience().pause_s(error, within_s=10, now_s=0, chance=0.5)
    assert (pause is not None) == again


def test_pauses_grow_to_a_bound_and_end_in_time() -> None:
    chance = random.Random(7)
    patience, now_s, pauses = Patience(), 100.0, list[float]()
    while (pause := patience.pause_s(AWAY, within_s=30, now_s=now_s, chance=chance.random())) is not None:
        pauses.append(pause)
        now_s += pause
    assert pauses[0] <= 0.1
    assert max(pauses) <= MAX_BACKOFF_S
    assert all(later > earlier for earlier, later in zip(pauses, pauses[2:6], strict=False))
    assert 30 - MAX_BACKOFF_S <= sum(pauses) <= 30


def test_the_node_is_given_the_time_it_asks_for_unless_that_is_too_long() -> None:
    busy = QueueFull("full", retry_after_s=3)
    pause = Patience().pause_s(busy, within_s=10, now_s=0, chance=0)
    assert pause is not None
    assert 3 <= pause < 3.2
    assert Patience().pause_s(busy, within_s=2, now_s=0, chance=0) is None


def test_a_cluster_without_a_leader_is_given_up_sooner_counted_from_when_it_says_so() -> None:
    patience = Patience()
    # A node that starts again is waited for first
    assert patience.pause_s(AWAY, within_s=15, now_s=0, chance=0.5) is not None
    assert patience.pause_s(NoLeader("x", retry_after_s=1), within_s=15, now_s=10, chance=0.5) is not None
    assert patience.pause_s(NoLeader("x", retry_after_s=1), within_s=15, now_s=11, chance=0.5) is not None
    # A leader that came and went is a sign of life
    assert patience.pause_s(NotLeader("x"), within_s=30, now_s=12, chance=0.5) is not None
    assert patience.pause_s(NoLeader("x"), within_s=30, now_s=17, chance=0.5) is not None
    assert patience.pause_s(NoLeader("x"), within_s=30, now_s=23, chance=0.5) is None


def test_a_success_begins_anew() -> None:
    patience = Patience()
    assert patience.pause_s(AWAY, within_s=1, now_s=0, chance=0) is not None
    assert patience.pause_s(AWAY, within_s=1, now_s=5, chance=0) is None
    patience.reset()
    assert patience.pause_s(AWAY, within_s=1, now_s=5, chance=0) is not None


def test_no_patience_is_no_second_try() -> None:
    assert Patience().pause_s(AWAY, within_s=0, now_s=0, chance=0) is None


def test_a_deadline_is_waited_for_in_requests_that_the_node_takes() -> None:
    deadline = Deadline.after(1000, now_s=50)
    assert deadline.poll_s(50) == MAX_POLL_S
    assert deadline.poll_s(1000) == 50
    assert deadline.poll_s(2000) == 0
    assert not deadline.is_over(1049)
    assert deadline.is_over(1050)
    forever = Deadline.after(None, now_s=50)
    assert forever.poll_s(1e9) == MAX_POLL_S
    assert not forever.is_over(1e9)
