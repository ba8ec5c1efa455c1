"""Rate limits of queues by the generic cell rate algorithm (ITU-T I.371): one number a queue. Pure.

The number is the theoretical arrival time, in microseconds so that it adds up without rounding: when the next start
would come if starts kept an even distance. A start is allowed while that is no more than a burst ahead of the clock.
"""

from __future__ import annotations

from jobs.records import QueueRecord


def allowed_from_ms(arrival_us: int, queue: QueueRecord, now_ms: int) -> int | None:
    """Return when the queue may start its next job; None when it may now."""
    if queue.rate_count is None:
        return None
    period_us, interval_us = _spacing(queue)
    due_us = _believable(arrival_us, period_us, now_ms) + interval_us - period_us
    return None if due_us <= now_ms * 1000 else -(-due_us // 1000)


def after_start(arrival_us: int, queue: QueueRecord, now_ms: int) -> int:
    """Return the theoretical arrival time after a start now."""
    period_us, interval_us = _spacing(queue)
    return max(_believable(arrival_us, period_us, now_ms), now_ms * 1000) + interval_us


def _spacing(queue: QueueRecord) -> tuple[int, int]:
    assert queue.rate_count is not None, "a queue without a rate has no arrival time"
    period_us = int(queue.rate_period_s * 1_000_000)
    return period_us, max(1, period_us // queue.rate_count)


def _believable(arrival_us: int, period_us: int, now_ms: int) -> int:
    """A time further ahead than a burst reaches is from before the clock was set back, or of a longer period."""
    return min(arrival_us, now_ms * 1000 + period_us)
