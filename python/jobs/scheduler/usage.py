"""What runs, counted by everything that a limit can be on. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from msgspec import Struct

from jobs.protocol.ids import JobId


class Run(Struct, frozen=True):
    """On whose account a job runs."""

    queue: str
    owner: int
    concurrency_key: str | None


class Usage:
    """The jobs that run or are about to; each is counted once however often it is told."""

    def __init__(self) -> None:
        self._runs: dict[JobId, Run] = {}
        self._queues: Counter[str] = Counter()
        self._owners: Counter[int] = Counter()
        self._shares: Counter[tuple[str, int]] = Counter()
        self._keys: dict[str, set[JobId]] = {}

    def __contains__(self, job: JobId) -> bool:
        return job in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def start(self, job: JobId, run: Run) -> None:
        if job in self._runs:
            return
        self._runs[job] = run
        self._queues[run.queue] += 1
        self._owners[run.owner] += 1
        self._shares[run.queue, run.owner] += 1
        if run.concurrency_key is not None:
            self._keys.setdefault(run.concurrency_key, set()).add(job)

    def end(self, job: JobId) -> Run | None:
        """Return what the job ran as; None if it did not."""
        run = self._runs.pop(job, None)
        if run is None:
            return None
        _decrease(self._queues, run.queue)
        _decrease(self._owners, run.owner)
        _decrease(self._shares, (run.queue, run.owner))
        if run.concurrency_key is not None:
            holders = self._keys[run.concurrency_key]
            holders.discard(job)
            if not holders:
                del self._keys[run.concurrency_key]
        return run

    def of_queue(self, queue: str) -> int:
        return self._queues[queue]

    def of_owner(self, owner: int) -> int:
        return self._owners[owner]

    def of_share(self, queue: str, owner: int) -> int:
        """Return how many jobs of an owner run from a queue."""
        return self._shares[queue, owner]

    def queues(self) -> Iterable[str]:
        """Return the names of the queues that something runs from."""
        return self._queues

    def holders(self, key: str) -> Collection[JobId]:
        """Return the jobs that run under a concurrency key."""
        return self._keys.get(key, ())


def _decrease(counter: Counter, item: object) -> None:  # type: ignore[type-arg]
    counter[item] -= 1
    if not counter[item]:
        del counter[item]
