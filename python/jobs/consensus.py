"""Replicated commands: the only file that knows PySyncObj.

`Consensus.propose` takes a transaction and returns when it is committed, durable and applied. What PySyncObj lacks
for that is supplied here, by a subclass and a journal, never by a change of the library:

- Many transactions ride in one Raft command and are covered by one fsync (group commit): whatever is proposed while
  the loop is busy, or while an fsync runs, makes up the next command.
- Nothing that is not on disk is counted: the journal is synced between the tick that appends an entry and the tick
  that could commit it, and before any message leaves. Term and vote are synced before they are answered with.
- Committed entries are applied in batches, one store transaction a batch, with the applied index in it.
- Snapshots are the store's own files; PySyncObj's pickled dumps, pickled commands and TCP transport are not used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeAlias

import pysyncobj.syncobj as pysyncobj
from msgspec import Struct
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from jobs._native import DiskFullError, Log, Store
from jobs.errors import StorageFull, Unavailable
from jobs.store import Txn, TxnResult, decode_results, encode_command

logger = logging.getLogger(__name__)

MAX_COMMAND_BYTES: Final = 4 << 20
"""A command takes no further transaction once it is this large."""
MAX_COMMAND_TXNS: Final = 2_000
MAX_PENDING_TXNS: Final = 20_000
"""Transactions that may wait for a command; one more is refused."""
APPLY_ENTRIES: Final = 1_024
APPLY_BYTES: Final = 8 << 20
INLINE_SYNC_S: Final = 0.002
"""A disk that syncs faster than this is synced on the event loop, which saves two thread switches (measured at
0.1 ms, as much as the fsync itself); a slower one on a thread, so that the loop goes on serving."""
_SYNC_COST_WEIGHT: Final = 0.1

_REGULAR: Final = bytes((pysyncobj._COMMAND_TYPE.REGULAR,))
_NO_OP: Final = bytes((pysyncobj._COMMAND_TYPE.NO_OP,))

_Entry: TypeAlias = tuple[bytes, int, int]
"""(command, index, term), as PySyncObj's journal has it."""
_Apply: TypeAlias = Callable[[int, int], int]


class ConsensusConfig(Struct, frozen=True, kw_only=True):
    """Raft timings in seconds, and how large the log may grow before a snapshot lets it be cut."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.5
    snapshot_log_bytes: int = 256 << 20


class ConsensusError(Exception):
    """The node can no longer take part: its log or its store failed. Only a restart, which re-reads them, helps."""


class _Journal:
    """PySyncObj's journal interface over the Rust log; positions count from the oldest entry kept.

    An entry is PySyncObj's tuple (command, index, term). The first and the last one are kept at hand, because the
    library asks for their index or term several times a tick.
    """

    def __init__(self, log: Log, applied_index: int) -> None:
        self._log = log
        self._applied_index = applied_index
        self._first: _Entry | None = None
        self._last: _Entry | None = None
        if log.last_index >= log.first_index:
            self._first = log.get(log.first_index)
            self._last = log.get(log.last_index)

    def __len__(self) -> int:
        return self._log.last_index - self._log.first_index + 1

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            start, stop, _ = item.indices(len(self))
            if start >= stop:
                return []
            if self._last is not None and stop - start == 1 and start == len(self) - 1:
                return [self._last]
            return self._log.entries(self._log.first_index + start, stop - start, 1 << 62)
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

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        self._log.truncate_suffix(self._log.first_index + entryFrom)
        self._last = self._log.get(self._log.last_index)

    def deleteEntriesTo(self, entryTo: int) -> None:
        self._log.truncate_prefix(self._log.first_index + entryTo)
        self._first = self._log.get(self._log.first_index)

    def clear(self) -> None:
        self.deleteEntriesFrom(0)
        self._first = self._last = None

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self._log.set_hard_state(term, votedForNodeId)

    def getCurrentTerm(self) -> int:
        return self._log.hard_state()[0]

    def getVotedForNodeId(self) -> str | None:
        return self._log.hard_state()[1]

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Not kept: what was applied was committed, and the rest is found by the next leader's first commit."""

    def getRaftCommitIndex(self) -> int:
        return max(self._applied_index, 1)

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        pass


class _LoneTransport(Transport):  # type: ignore[misc]
    """Transport of a group of one: there is nobody to send to."""

    ready = True

    def __init__(self) -> None:
        super().__init__(None, None, [])

    def tryGetReady(self) -> None:
        pass

    def send(self, node: Node, message: object) -> NoReturn:
        raise AssertionError(f"a lone member has no peer {node}")

    def addNode(self, node: Node) -> None:
        raise AssertionError(f"a lone member takes no peer {node}")

    def dropNode(self, node: Node) -> None:
        pass

    def destroy(self) -> None:
        pass


class _NullPoller:
    """PySyncObj polls its sockets at the end of each tick; ours belong to the event loop."""

    def poll(self, timeout: float) -> None:
        pass


class _Raft(pysyncobj.SyncObj):  # type: ignore[misc]
    """PySyncObj with our journal, our way to apply, and nothing that pickles.

    The overridden methods carry the library's private, mangled names; its version is pinned for that.
    """

    def __init__(self, node: str, journal: _Journal, conf: pysyncobj.SyncObjConf, apply: _Apply) -> None:
        self._apply = apply
        # The library imports its journal's factory by name and offers no other way in.
        stock = pysyncobj.createJournal
        pysyncobj.createJournal = lambda _file: journal
        try:
            super().__init__(Node(node), [], conf=conf, transport=_LoneTransport())
        finally:
            pysyncobj.createJournal = stock
        self._poller = _NullPoller()
        self._SyncObj__raftLastApplied = journal.getRaftCommitIndex()

    def elect_now(self) -> None:
        """Let the next tick start an election instead of waiting for a leader that cannot exist."""
        self._SyncObj__raftElectionDeadline = 0.0

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    def _SyncObj__applyLogEntries(self) -> bool:
        while self._SyncObj__raftLastApplied < self._SyncObj__raftCommitIndex:
            first = self._SyncObj__raftLastApplied + 1
            last = self._apply(first, self._SyncObj__raftCommitIndex - first + 1)
            if last < first:  # not now; the next tick tries again
                break
            self._SyncObj__raftLastApplied = last
        return False

    def take_waiters(self, index: int) -> Sequence[tuple[int, Callable[[object, int], None]]]:
        """Return and forget (term, callback) of the commands proposed here for the entry at `index`."""
        waiters = self._SyncObj__commandsWaitingCommit.pop(index, ())
        return waiters  # type: ignore[no-any-return]

    def _SyncObj__tryLogCompaction(self) -> None:
        """Nothing: snapshots are taken by `Consensus`."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> NoReturn:
        raise AssertionError("PySyncObj's dump files are never used")

    def _SyncObj__doApplyCommand(self, command: bytes) -> NoReturn:
        raise AssertionError("entries are applied in batches")


class _Proposal(Struct):
    txn: Txn
    size_bytes: int
    done: asyncio.Future[TxnResult]


class Consensus:
    """One member of the Raft group: proposes, commits, applies, takes snapshots. Lives on one event loop."""

    def __init__(self, node: str, log: Log, store: Store, config: ConsensusConfig | None = None) -> None:
        self._config = config or ConsensusConfig()
        self._log = log
        self._store = store
        self._node = node
        self._journal = _Journal(log, store.applied_index)
        self._check_history()
        self._queue: list[_Proposal] = []
        self._in_flight: list[_Proposal] = []
        self._scheduled = False
        self._syncing: asyncio.Future[int] | None = None
        self._sync_cost_s = 0.0
        self._snapshotting: asyncio.Future[int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="consensus")
        self._failure: BaseException | None = None
        self._no_room: str | None = None
        """Why the store cannot take what is committed."""
        self._ready: asyncio.Future[None] | None = None
        self._raft: _Raft | None = None
        self.on_applied: Callable[[], None] = lambda: None
        """Called after each batch of entries was applied; must not raise."""
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called once when the log or the store fails: the process has to end."""
        self.fsyncs = 0
        self.commands = 0
        self.transactions = 0

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the group; returns when this member leads it and has applied everything committed.

        Raises ConsensusError when log and store do not fit each other.
        """
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        conf = pysyncobj.SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=self._config.heartbeat_s,
            raftMinTimeout=self._config.election_min_s,
            raftMaxTimeout=self._config.election_max_s,
            commandsWaitLeader=False,
            commandsQueueSize=MAX_PENDING_TXNS,
            connectionTimeout=max(3.5, self._config.election_max_s),
        )
        self._raft = _Raft(self._node, self._journal, conf, self._apply)
        self._log.sync()
        self._raft.elect_now()
        self._pump()
        self._on_timer()
        await self._ready

    async def stop(self) -> None:
        """Refuse what waits, finish what is being written, and let go of log and store (which stay open)."""
        if self._timer is not None:
            self._timer.cancel()
        self._fail_waiting(Unavailable("the node is stopping", retry_after_s=1))
        for task in (self._syncing, self._snapshotting):
            if task is not None:
                await asyncio.wait([task])
        self._failure = self._failure or ConsensusError("stopped")
        self._threads.shutdown()

    # --- what others use ----------------------------------------------------------------------------------------

    @property
    def no_room(self) -> str | None:
        """Why committed entries wait to be applied: the store's disk is full. Nothing more is accepted meanwhile."""
        return self._no_room

    @property
    def is_leader(self) -> bool:
        return self._raft is not None and self._failure is None and bool(self._raft._isLeader())

    @property
    def term(self) -> int:
        return self._log.hard_state()[0]

    @property
    def applied_index(self) -> int:
        return self._raft.applied_index if self._raft is not None else self._store.applied_index

    def propose(self, txn: Txn, size_bytes: int = 256) -> asyncio.Future[TxnResult]:
        """Return a future of the transaction's result: it resolves once committed, fsynced and applied.

        `size_bytes` is about what the transaction weighs, for bounding a command. The future fails with
        Unavailable or StorageFull when the transaction was certainly not accepted, and with ConsensusError when
        that is unknown.
        """
        done: asyncio.Future[TxnResult] = self._loop.create_future()
        if self._failure is not None:
            done.set_exception(Unavailable(f"the node cannot write: {self._failure}"))
        elif not self.is_leader:
            done.set_exception(Unavailable("this node does not lead the cluster", retry_after_s=1))
        elif self._no_room is not None:
            done.set_exception(_storage_full(self._no_room))
        elif len(self._queue) >= MAX_PENDING_TXNS:
            done.set_exception(Unavailable(f"{MAX_PENDING_TXNS} writes wait already", retry_after_s=1))
        else:
            self._queue.append(_Proposal(txn, size_bytes, done))
            self._schedule()
        return done

    async def barrier(self) -> None:
        """Return when a read of the local store is linearizable.

        A group of one: whatever was acknowledged to anyone was applied here first, so that is now.
        Raises Unavailable when this member does not lead.
        """
        if not self.is_leader:
            raise Unavailable("this node does not lead the cluster", retry_after_s=1)

    async def snapshot(self) -> int:
        """Write a snapshot of the store, cut the log behind it, and return the snapshot's index."""
        if self._snapshotting is None:
            self._snapshotting = self._loop.run_in_executor(self._threads, self._store.snapshot)
            self._snapshotting.add_done_callback(self._on_snapshot)
        return await asyncio.shield(self._snapshotting)

    # --- the driver ---------------------------------------------------------------------------------------------

    def _check_history(self) -> None:
        applied, first, last = self._store.applied_index, self._log.first_index, self._log.last_index
        if applied > last:
            raise ConsensusError(
                f"the store has applied entry {applied}, but the log ends at {last}: the log is not the one that "
                "belongs to this store; restore both from the same backup"
            )
        if last >= first > applied + 1:
            raise ConsensusError(
                f"the store has applied entry {applied}, but the log begins at {first}: entries between are missing; "
                "restore both from the same backup"
            )

    def _schedule(self) -> None:
        if not self._scheduled and self._syncing is None:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Append one command of what waits, sync it, commit it, apply it; again while there is more."""
        self._scheduled = False
        if self._syncing is not None or self._failure is not None:
            return
        raft = self._raft
        assert raft is not None
        try:
            if self._no_room is None:
                self._append_command(raft)
            raft.doTick(0)
            if self._log.durable_index == self._log.last_index:
                return
            if self._sync_cost_s > INLINE_SYNC_S:
                self._syncing = self._loop.run_in_executor(self._threads, self._log.sync)
                self._syncing_since = time.monotonic()
                self._syncing.add_done_callback(self._on_synced)
                return
            started = time.monotonic()
            self._log.sync()
            self._after_sync(time.monotonic() - started)
        except DiskFullError as error:
            # The log found no room before it changed anything: only this command is refused.
            self._refuse(f"the disk of the log is full: {error}")
        except Exception as error:
            self._fail(error)

    def _append_command(self, raft: _Raft) -> None:
        if not self._queue or not raft._isLeader():
            return
        count = size = 0
        for proposal in self._queue:
            if count and (size + proposal.size_bytes > MAX_COMMAND_BYTES or count >= MAX_COMMAND_TXNS):
                break
            count += 1
            size += proposal.size_bytes
        batch, self._queue = self._queue[:count], self._queue[count:]
        self._in_flight = batch
        self.commands += 1
        self.transactions += count
        command = _REGULAR + encode_command([proposal.txn for proposal in batch])
        raft._applyCommand(command, lambda results, error: self._on_committed(batch, results, error))

    def _on_synced(self, future: asyncio.Future[int]) -> None:
        self._syncing = None
        error = future.exception()
        if error is not None:
            self._fail(error)
            return
        try:
            self._after_sync(time.monotonic() - self._syncing_since)
        except Exception as failure:
            self._fail(failure)

    def _after_sync(self, cost_s: float) -> None:
        self.fsyncs += 1
        self._sync_cost_s += _SYNC_COST_WEIGHT * (cost_s - self._sync_cost_s)
        assert self._raft is not None
        self._raft.doTick(0)
        if self._queue or self._log.durable_index != self._log.last_index:
            self._schedule()
        if self._log.size_bytes > self._config.snapshot_log_bytes and self._snapshotting is None:
            self._loop.create_task(self._snapshot_in_background())

    async def _snapshot_in_background(self) -> None:
        try:
            await self.snapshot()
        except Exception:
            logger.exception("snapshot failed; the log keeps growing until one succeeds")

    def _apply(self, first: int, count: int) -> int:
        """Apply up to `count` committed entries from `first` on; return the index of the last one applied, `first - 1`
        while the store's disk is full."""
        raft = self._raft
        assert raft is not None
        assert self._ready is not None
        entries = self._log.entries(first, min(count, APPLY_ENTRIES), APPLY_BYTES)
        if not entries:
            raise ConsensusError(f"committed entry {first} is not in the log")
        commands = [(index, term, _command_of(payload, index)) for payload, index, term in entries]
        try:
            results = self._store.apply(commands)
        except DiskFullError as error:
            self._wait_for_room(f"the disk of the store is full: {error}")
            return first - 1
        if self._no_room is not None:
            self._no_room = None
            logger.warning("the store's disk has room again")
        for (_, index, term), result in zip(entries, results, strict=True):
            for proposed_term, callback in raft.take_waiters(index):
                callback(result if proposed_term == term else None, int(proposed_term != term))
        self.on_applied()
        last = entries[-1][1]
        if not self._ready.done() and raft._isLeader() and last == raft.raftCommitIndex:
            self._ready.set_result(None)
        return last

    def _on_committed(self, batch: list[_Proposal], results: bytes | None, error: int) -> None:
        self._in_flight = []
        if results is None:
            _fail_all(batch, Unavailable(f"the command was not accepted (code {error})", retry_after_s=1))
            return
        for proposal, result in zip(batch, decode_results(results), strict=True):
            if not proposal.done.done():
                proposal.done.set_result(result)

    def _on_snapshot(self, future: asyncio.Future[int]) -> None:
        self._snapshotting = None
        if future.cancelled() or future.exception() is not None:
            return
        # PySyncObj needs the entry before the first one it may still send: the snapshot's own.
        position = future.result() - self._log.first_index
        try:
            if position > 0:
                self._journal.deleteEntriesTo(position)
            logger.info("snapshot taken", extra={"index": future.result(), "log_bytes": self._log.size_bytes})
        except Exception as error:
            self._fail(error)

    def _on_timer(self) -> None:
        """PySyncObj keeps its own deadlines; this makes it look at them."""
        self._schedule()
        self._timer = self._loop.call_later(self._config.heartbeat_s * 5, self._on_timer)

    def _fail(self, error: BaseException) -> None:
        """A failed write or apply leaves no way to know what is on disk: stop, and let a restart find out."""
        if self._failure is not None:
            return
        self._failure = error
        logger.critical("consensus failed", exc_info=error)
        self._fail_waiting(ConsensusError(f"the node failed while it wrote: {error}"))
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConsensusError(str(error)))
        self.on_failure(error)

    def _refuse(self, why: str) -> None:
        """The command in flight was not taken in."""
        logger.error("a command is refused: %s", why)
        refused, self._in_flight = self._in_flight, []
        _fail_all(refused, _storage_full(why))
        if self._queue:
            self._schedule()

    def _wait_for_room(self, why: str) -> None:
        """What is committed will be applied, so it is not refused: its proposals wait. What is not is."""
        if self._no_room is None:
            logger.error("nothing more is accepted, and what was accepted waits: %s", why)
        self._no_room = why
        refused, self._queue = self._queue, []
        _fail_all(refused, _storage_full(why))

    def _fail_waiting(self, error: BaseException) -> None:
        waiting, self._queue = self._queue, []
        _fail_all([*self._in_flight, *waiting], error)


def _fail_all(proposals: Sequence[_Proposal], error: BaseException) -> None:
    for proposal in proposals:
        if not proposal.done.done():
            proposal.done.set_exception(error)
            # Who waited may have been cancelled by the same stop: that nobody asks then is no fault.
            proposal.done.exception()


def _storage_full(why: str) -> StorageFull:
    return StorageFull(why, expected="more room", retry_after_s=5)


def _command_of(payload: bytes, index: int) -> bytes:
    """Return the store's command in a log entry; b"" for Raft's own entries.

    Raises ConsensusError for the kinds that PySyncObj would unpickle: nothing here ever writes them.
    """
    kind = payload[:1]
    if kind == _REGULAR:
        return payload[1:]
    if kind == _NO_OP:
        return b""
    raise ConsensusError(f"log entry {index} is of kind {kind.hex() or 'none'}, which this build never writes")
