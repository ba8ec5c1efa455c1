"""Distinct types for the identifiers that everything else passes around."""

from __future__ import annotations

import re
from typing import Final, NewType

JobId = NewType("JobId", str)
"""UUIDv7 in its canonical lower-case form, 36 characters."""
Attempt = NewType("Attempt", int)
"""Number of one execution of a job; the first is 1, 0 means it was never assigned."""
WorkerId = NewType("WorkerId", str)
"""Stable name of a worker: the same after a restart of its process."""
Incarnation = NewType("Incarnation", str)
"""One life of a worker process: 32 hexadecimal digits, fresh at every start."""
Revision = NewType("Revision", int)
"""Position in the key-value store's history; 0 is the empty store."""
LeaseId = NewType("LeaseId", int)
"""Lease in the key-value store; 0 means no lease."""
RequestId = NewType("RequestId", bytes)
"""Names a request among all others, the same however often it is sent: 16 bytes, none for a request without an id."""
NO_REQUEST: Final = RequestId(b"")
REQUEST_ID_HEADER: Final = "Jobs-Request-Id"
"""Carries a UUID, of which a `RequestId` is made."""
ACT_FOR_HEADER: Final = "Jobs-Act-For"
"""Names the user for whom a worker asks: UID, or UID;admin."""
CLUSTER_HEADER: Final = "Jobs-Cluster"
"""Id of the cluster that a snapshot of the store is of."""

MAX_TASKS: Final = 1_000_000
"""Of one array."""
TASK_DIGITS: Final = 5
"""Hexadecimal digits at the end of an id that tell the tasks of an array apart: 20 bits, zero for the array itself."""

_JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def uuid7(unix_ms: int, random_bits: int) -> JobId:
    """Return the UUIDv7 (RFC 9562 §5.7) of a time in ms since 1970 and 74 random bits."""
    rand_a = random_bits >> 62 & 0xFFF
    rand_b = random_bits & (1 << 62) - 1
    value = (unix_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b
    text = f"{value:032x}"
    return JobId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


class JobIdSource:
    """Makes ids that sort in the order in which they were made, also within one millisecond and when the clock steps
    back (RFC 9562 §6.2, method 1: a counter in the leading random bits)."""

    def __init__(self) -> None:
        self._unix_ms = 0
        self._counter = 0

    def next(self, unix_ms: int, random_bits: int) -> JobId:
        """Return an id of this time or a little later; `random_bits` gives its 62 random bits."""
        self._counter += 1
        if unix_ms > self._unix_ms or self._counter > 0xFFF:
            self._unix_ms = max(unix_ms, self._unix_ms + 1)
            self._counter = 0
        return uuid7(self._unix_ms, self._counter << 62 | random_bits & (1 << 62) - 1)


def job_time_ms(job: JobId) -> int:
    """Return the time in ms that a job's id carries: that of its submission, or a little later."""
    return int(job[:8] + job[9:13], 16)


def is_job_id(text: str) -> bool:
    """Tell whether `text` is a UUIDv7 in canonical form."""
    return _JOB_ID.fullmatch(text) is not None


def array_id(job: JobId) -> JobId:
    """Return the id of the array whose tasks have ids around this one; of an array's own id, that."""
    return JobId(job[:-TASK_DIGITS] + "0" * TASK_DIGITS)


def task_id(array: JobId, index: int) -> JobId:
    """Return the id of an array's task. In the order of ids the tasks stand right behind their array, by index."""
    return JobId(f"{array[:-TASK_DIGITS]}{index + 1:0{TASK_DIGITS}x}")


def task_index(task: JobId) -> int:
    """Return the index that a task has in its array; -1 for an array's own id."""
    return int(task[-TASK_DIGITS:], 16) - 1


def last_task_id(array: JobId) -> JobId:
    """Return the last id that a task of the array could have."""
    return JobId(array[:-TASK_DIGITS] + "f" * TASK_DIGITS)
