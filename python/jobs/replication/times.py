"""When revisions were written, for whoever asks for many in no order: the moments that were noted, held in memory."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Final

from jobs import keys, records
from jobs.records import MomentRecord
from jobs.store import Store, prefix_end

PAGE: Final = 10_000
MAX_HELD: Final = 200_000
"""Past it they are read anew: the store has forgotten many of them."""


class KnownTimes:
    """Of one store; any thread may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._revisions: list[int] = []
        self._times_ms: list[int] = []
        self._read = 0
        """Revision of the store when they were read last."""

    def of(self, revision: int, now_ms: int) -> int:
        """Return a time in ms by which the revision had been written: the first moment that has it, `now_ms` where that
        has not been noted yet. Of one that is older than all moments, no more is known than the first of them."""
        with self._lock:
            if (not self._revisions or self._revisions[-1] < revision) and self._read < self._store.revision:
                self._refresh()
            at = bisect_left(self._revisions, revision)
            return self._times_ms[at] if at < len(self._times_ms) else now_ms

    def _refresh(self) -> None:
        self._read = self._store.revision
        is_last_there = bool(self._times_ms) and self._store.get(keys.moment(self._times_ms[-1])) is not None
        if not is_last_there or len(self._times_ms) > MAX_HELD:
            self._revisions, self._times_ms = [], []
        start = keys.moment(self._times_ms[-1]) + b"\x00" if self._times_ms else keys.MOMENTS
        more = True
        while more:
            rows, more = self._store.range(start, prefix_end(keys.MOMENTS), limit=PAGE)
            for key, value, *_ in rows:
                self._revisions.append(records.decode(MomentRecord, value).revision)
                self._times_ms.append(keys.time_of(keys.MOMENTS, key))
                start = key + b"\x00"
