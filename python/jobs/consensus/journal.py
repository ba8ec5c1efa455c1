"""PySyncObj's journal interface over the Rust log."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeAlias

from jobs._native import failpoint

JournalEntry: TypeAlias = tuple[bytes, int, int]
"""(payload, index, term), as PySyncObj's journal has it."""
ALL_BYTES: Final = 1 << 62


class RaftLog(Protocol):
    """What a journal needs of a log; `_native.Log` has it."""

    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def durable_index(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def append(self, index: int, term: int, payload: bytes) -> None: ...
    def sync(self) -> int: ...
    def get(self, index: int) -> JournalEntry | None: ...
    def entries(self, index: int, max_count: int, max_bytes: int) -> list[JournalEntry]: ...
    def term_at(self, index: int) -> int | None: ...
    def truncate_suffix(self, index: int) -> None: ...
    def truncate_prefix(self, index: int) -> None: ...
    def hard_state(self) -> tuple[int, str | None]: ...
    def set_hard_state(self, term: int, voted_for: str | None) -> None: ...


class Journal:
    """Positions count from the oldest entry kept; there is always one, as PySyncObj asks for the last one's term.

    The first and the last entry are kept at hand, because the library asks for them several times a tick.
    """

    def __init__(self, log: RaftLog, committed_index: int) -> None:
        self._log = log
        self._committed_index = committed_index
        self._first: JournalEntry | None = None
        self._last: JournalEntry | None = None
        if log.last_index >= log.first_index:
            self._first = log.get(log.first_index)
            self._last = log.get(log.last_index)

    # --- what PySyncObj calls, with its names ---------------------------------------------------------------------

    def __len__(self) -> int:
        return self._log.last_index - self._log.first_index + 1

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            start, stop, _ = item.indices(len(self))
            if start >= stop:
                return []
            if self._last is not None and stop - start == 1 and start == len(self) - 1:
                return [self._last]
            return self._log.entries(self._log.first_index + start, stop - start, ALL_BYTES)
        if item == -1:
            return self._last
        if item == 0:
            return self._first
        return self._log.get(self._log.first_index + item if item >= 0 else self._log.last_index + 1 + item)

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._log.append(idx, term, command)
        self._last = (command, idx, term)
        if self._first is None:
            self._first = self._last

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        # Durable when it returns: a vote that is forgotten could be given twice.
        failpoint("consensus.term.persist.before")
        self._log.set_hard_state(term, votedForNodeId)
        failpoint("consensus.term.persist.after")

    def getCurrentTerm(self) -> int:
        return self._log.hard_state()[0]

    def getVotedForNodeId(self) -> str | None:
        return self._log.hard_state()[1]

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Not kept: what was applied was committed, entries that change members tell of what was before them, and the
        rest is found by the next leader's first commit."""

    def getRaftCommitIndex(self) -> int:
        return max(self._committed_index, 1)

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        pass

    # --- what we call -----------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self._log.first_index

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def durable_index(self) -> int:
        """Last entry that a sync has covered."""
        return self._log.durable_index

    @property
    def last_term(self) -> int:
        assert self._last is not None
        return self._last[2]

    def term_at(self, index: int) -> int | None:
        return self._log.term_at(index)

    def entries(self, index: int, max_count: int, max_bytes: int) -> list[JournalEntry]:
        """Return entries from `index` on; at least one if there is one."""
        if self._last is not None and index == self._last[1]:
            return [self._last]
        return self._log.entries(index, max_count, max_bytes)

    def truncate_from(self, index: int) -> None:
        """Drop `index`, which is not the first entry, and what follows it."""
        self._log.truncate_suffix(index)
        self._last = self._log.get(self._log.last_index)

    def drop_before(self, index: int) -> None:
        """Drop what comes before `index`, an entry that is kept."""
        if index > self._log.first_index:
            self._log.truncate_prefix(index)
            self._first = self._log.get(index)

    def restart_at(self, index: int, term: int, payload: bytes) -> None:
        """Begin anew with the entry that a snapshot ends with; what follows is kept if it is of the same history."""
        if self._log.term_at(index) == term:
            self.drop_before(index)
            return
        # After a crash in between the store is ahead of an empty log, and this is done again.
        failpoint("consensus.restart.before")
        if len(self):
            self._log.truncate_suffix(self._log.first_index)
        failpoint("consensus.restart.dropped")
        self._log.truncate_prefix(index)
        failpoint("consensus.restart.empty")
        self._log.append(index, term, payload)
        self._log.sync()
        failpoint("consensus.restart.after")
        self._first = self._last = (payload, index, term)
