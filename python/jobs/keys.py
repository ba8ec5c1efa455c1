"""Where everything stands in the key-value store: one function a kind of key, and nothing else builds keys."""

from __future__ import annotations

import hashlib
from typing import Final

from jobs.protocol.ids import Attempt, JobId, WorkerId

SPEC: Final = b"/jobs/spec/"
STATE: Final = b"/jobs/state/"
RESULT: Final = b"/jobs/result/"
LOG: Final = b"/jobs/log/"
IDEMPOTENCY: Final = b"/jobs/idem/"
QUEUE: Final = b"/queue/"
TIMERS: Final = b"/timers/"
RUNNING: Final = b"/running/"
WORKERS: Final = b"/workers/"
DATA: Final = b"/data/"
"""The users' own part."""

_MAX_PRIORITY: Final = 100


def spec(job: JobId) -> bytes:
    """Body of a job as submitted: large and cold."""
    return SPEC + job.encode()


def state(job: JobId) -> bytes:
    """State record of a job: small and hot."""
    return STATE + job.encode()


def result(job: JobId, attempt: Attempt) -> bytes:
    return b"%s%s/%06d" % (RESULT, job.encode(), attempt)


def log_prefix(job: JobId, attempt: Attempt) -> bytes:
    return b"%s%s/%06d/" % (LOG, job.encode(), attempt)


def log(job: JobId, attempt: Attempt, seq: int) -> bytes:
    """One chunk of output."""
    return b"%s%s/%06d/%08d" % (LOG, job.encode(), attempt, seq)


def idempotency(owner: int, key: str) -> bytes:
    """Hashed, because a caller's key may be longer than a key of the store."""
    return b"%s%d/%s" % (IDEMPOTENCY, owner, hashlib.sha256(key.encode()).hexdigest().encode())


def queue(queue_name: str, lane: bytes, priority: int, ready_ms: int, job: JobId) -> bytes:
    """A job that waits for a worker. Jobs of one queue that ask the same of a worker share a lane; in key order within
    it: higher priority, then earlier, then id.

    Name and lane each end with a zero byte, which neither holds, so that no lane's keys are within another's.
    """
    lane_key = b"%s%s\x00%s\x00" % (QUEUE, queue_name.encode(), lane)
    return b"%s%03d/%015d/%s" % (lane_key, _MAX_PRIORITY - priority, ready_ms, job.encode())


def lane_of(key: bytes) -> bytes:
    """Return the prefix that the queue keys of one lane share."""
    return key[: key.rindex(b"\x00") + 1]


def queue_order(key: bytes) -> bytes:
    """Return the part of a queue key that orders jobs across queues and lanes."""
    return key[key.rindex(b"\x00") + 1 :]


def job_of(key: bytes) -> JobId:
    """Return the job that the last segment of a key names."""
    return JobId(key[-36:].decode())


def timer(due_ms: int, job: JobId) -> bytes:
    """A job that waits for a time."""
    return b"%s%015d/%s" % (TIMERS, due_ms, job.encode())


def timer_due_ms(key: bytes) -> int:
    return int(key[len(TIMERS) : len(TIMERS) + 15])


def running_prefix(worker: WorkerId) -> bytes:
    return RUNNING + worker.encode() + b"\x00"


def running(worker: WorkerId, job: JobId) -> bytes:
    """A job that a worker has."""
    return running_prefix(worker) + job.encode()


def worker(worker_id: WorkerId) -> bytes:
    return WORKERS + worker_id.encode()
