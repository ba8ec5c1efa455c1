"""The log and the store of a host: the real ones, watched, with places at which the process may end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs._native import DiskFullError, Log, MemoryStore

if TYPE_CHECKING:
    from tests.support.simulation.host import Host


class Crash(BaseException):
    """The process ends here. Nothing on the way may go on with its work."""


class WatchedLog:
    """A log whose calls take time and are checked, and of which any may be the process's last."""

    def __init__(self, host: Host, log: Log) -> None:
        self._host = host
        self._log = log
        self.get = log.get
        self.entries = log.entries
        self.term_at = log.term_at
        self.hard_state = log.hard_state

    @property
    def recovered(self) -> str | None:
        return self._log.recovered

    @property
    def first_index(self) -> int:
        return self._log.first_index

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def durable_index(self) -> int:
        return self._log.durable_index

    @property
    def size_bytes(self) -> int:
        return self._log.size_bytes

    def append(self, index: int, term: int, payload: bytes) -> None:
        self._host.may_crash()
        self._log.append(index, term, payload)
        self._host.sim.checks.on_append(self._host, index, term, payload)

    def sync(self) -> int:
        self._host.may_crash()
        self._host.use_disk()
        return self._log.sync()

    def truncate_suffix(self, index: int) -> None:
        self._host.may_crash()
        self._host.use_disk()
        self._host.sim.checks.on_truncate(self._host, index)
        self._log.truncate_suffix(index)

    def truncate_prefix(self, index: int) -> None:
        self._host.may_crash()
        self._host.use_disk()
        self._log.truncate_prefix(index)

    def set_hard_state(self, term: int, voted_for: str | None) -> None:
        self._host.may_crash()
        self._host.use_disk()
        self._host.sim.checks.on_hard_state(self._host, term, voted_for)
        self._log.set_hard_state(term, voted_for)
        self._host.sim.checks.on_hard_state_durable(self._host, term)

    def close(self) -> None:
        self._log.close()


class SimStore:
    """The state machine in memory with its newest snapshot file, which alone survives a power cut."""

    def __init__(self, host: Host, snapshot: bytes | None) -> None:
        self._host = host
        self.full = False
        self.files: dict[str, bytes] = {}
        """Snapshots, by path: the store's own, and such as have come."""
        self._path: str | None = None
        self.snapshot_index = self.snapshot_term = 0
        self._use(MemoryStore())
        if snapshot is not None:
            self._memory.install(snapshot)
            self._keep(snapshot)

    def _use(self, memory: MemoryStore) -> None:
        self._memory = memory
        self.get = memory.get
        self.range = memory.range
        self.count = memory.count
        self.events = memory.events
        self.digests = memory.digests
        self.leases = memory.leases
        self.state_hash = memory.state_hash
        self.used_bytes = memory.used_bytes

    def _keep(self, snapshot: bytes) -> None:
        if self._path is not None:
            del self.files[self._path]
        self.snapshot_index, self.snapshot_term = self._memory.applied_index, self._memory.applied_term
        self._path = f"/sim/{self._host.id}/snapshot-{self.snapshot_index}"
        self.files[self._path] = snapshot

    @property
    def applied_index(self) -> int:
        return self._memory.applied_index

    @property
    def applied_term(self) -> int:
        return self._memory.applied_term

    @property
    def revision(self) -> int:
        return self._memory.revision

    @property
    def compact_revision(self) -> int:
        return self._memory.compact_revision

    @property
    def history_events(self) -> int:
        return self._memory.history_events

    @property
    def max_history_events(self) -> int:
        return self._memory.max_history_events

    def apply(self, entries: list[tuple[int, int, bytes]]) -> list[bytes]:
        if self.full:
            raise DiskFullError("simulated: the store has no room")
        self._host.may_crash()
        results = self._memory.apply(entries)
        self._host.may_crash()
        return results

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snapshot_path(self) -> str | None:
        return self._path

    def snapshot(self) -> int:
        if self.full:
            raise DiskFullError("simulated: there is no room for a snapshot")
        self._host.may_crash()
        if self.applied_index not in (0, self.snapshot_index):
            self._keep(self._memory.export())
            self._host.sim.checks.count("snapshot")
        self._host.may_crash()
        return self.snapshot_index

    def install(self, path: str) -> None:
        if self.full:
            raise DiskFullError("simulated: there is no room for a snapshot")
        self._host.may_crash()
        data = self.files[path]
        self._memory.install(data)
        del self.files[path]
        self._keep(data)
        self._host.sim.checks.count("install")
        self._host.may_crash()

    def cut_power(self) -> None:
        """What was applied since the snapshot is not trusted any more; the log tells it again."""
        memory = MemoryStore()
        if self._path is not None:
            memory.install(self.files[self._path])
        self._use(memory)

    def forget_received(self) -> None:
        """The process is gone, and what it had received with it."""
        self.files = {path: data for path, data in self.files.items() if path == self._path}
