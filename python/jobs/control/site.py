"""What a node has of the control plane: its own reads and its state always, and all of it for as long as it leads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Literal

from jobs import _native
from jobs.consensus import Consensus
from jobs.control.control import Control, ControlConfig
from jobs.control.hub import Hub, Reader, Waiter
from jobs.control.output import OutputBlobs
from jobs.control.reads import StaleReads
from jobs.errors import JobsError, NoLeader, NotLeader, Unavailable
from jobs.protocol.ids import Revision
from jobs.protocol.model import Health
from jobs.service import Others
from jobs.store import Store

logger = logging.getLogger(__name__)

PATIENCE_ELECTIONS: Final = 2.5
"""Longest waits for an election for which a request looks for a leader."""
RETRY_S: Final = 0.5
"""A control plane that could not be started is tried again, while the node leads."""


class Site:
    """Makes a `Control` whenever the node begins to lead, and drops it when it ceases to."""

    def __init__(
        self, node: str, consensus: Consensus, store: Store, output_blobs: OutputBlobs, config: ControlConfig
    ) -> None:
        """To be made before consensus starts."""
        self.node = node
        self.control: Control | None = None
        """There while the node leads and has taken up the work."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `control` or `leader` is another."""
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called when the store cannot be made sense of: the process has to end."""
        self.others: Others | None = None
        """Of a member of a cluster."""
        self._consensus = consensus
        self._store = store
        self._output_blobs = output_blobs
        self._config = config
        self._hub = Hub(store)
        self.reads = StaleReads(store, self._hub, output_blobs, lambda: consensus.is_leader)
        self._began_s = time.monotonic()
        self._stopping = False
        self._met_leader = False
        self._leaderless_since_s: float | None = self._began_s
        self._leading: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        consensus.on_applied = self._hub.on_applied
        consensus.on_leadership = self._on_leadership
        consensus.on_leader = self._on_leader

    def waiter(self, *prefixes: bytes) -> AbstractContextManager[Waiter]:
        """Yield what is rung at every change of a key with one of these prefixes in this node's store."""
        return self._hub.waiter(*prefixes)

    async def reach(self, revision: int) -> None:
        """Return once this node's own store is as far. Raises Unavailable where that takes longer than an election."""
        with self._hub.waiter(b"") as waiter:
            try:
                async with asyncio.timeout(self.patience_s):
                    while self._store.revision < revision:
                        await waiter.wait(None)
            except TimeoutError:
                raise Unavailable(
                    f"this node's store is at revision {self._store.revision}, and {revision} was written",
                    expected="the same a little later",
                    retry_after_s=1,
                ) from None

    def history(self, revision: int) -> AbstractContextManager[Reader]:
        """Yield a reader of this node's history from after a revision on, as `Hub.history`."""
        return self._hub.history(revision)

    def on_read(self, revision: int) -> None:
        """Somebody reads this node's history from a revision on, as `Hub.on_read`."""
        self._hub.on_read(revision)

    @property
    def oldest_needed(self) -> int | None:
        """Of this node's readers, as `Hub.oldest_needed`."""
        return self._hub.oldest_needed

    # --- life ---------------------------------------------------------------------------------------------------

    def on_stopping(self) -> None:
        """Say in `health` that the node is about to go."""
        self._stopping = True

    async def stop(self) -> None:
        """Drop the control plane, and make none any more."""
        self.on_stopping()
        self._end()
        if self._leading is not None:
            await asyncio.wait([self._leading])

    async def settled(self) -> None:
        """Return once the work is taken up, or is not this node's to take up."""
        while self._consensus.is_leader and self.control is None and not self._stopping:
            await asyncio.shield(self._news)

    @property
    def member(self) -> str:
        """Id of this node among the members."""
        return self._consensus.me

    @property
    def leads(self) -> bool:
        """Whether the work is this node's, though it may not have taken it up yet."""
        return self._consensus.is_leader or self.leader == self.member

    @property
    def leader(self) -> str | None:
        """Id of the member that leads, as far as this node knows: it hears it, or another member does."""
        heard = self._consensus.leader
        return self.others.leader if heard is None and self.others is not None else heard

    @property
    def leaderless_s(self) -> float:
        """For how long no leader has been known."""
        return 0.0 if self._leaderless_since_s is None else time.monotonic() - self._leaderless_since_s

    @property
    def patience_s(self) -> float:
        """For how long a request looks for a leader: longer than an election that goes well."""
        return PATIENCE_ELECTIONS * self._consensus.election_max_s

    def no_leader(self) -> Unavailable:
        """Return what a request is told that has looked for so long."""
        if self.leads:
            return NotLeader("this node has not taken up the work of the cluster yet", retry_after_s=1)
        if self.leaderless_s < self.patience_s:
            return NotLeader("no leader is known: an election is under way", retry_after_s=1)
        if self.others is not None and self.others.removed:
            detail, expected = self.others.standing()
            return NoLeader(detail, expected=expected, retry_after_s=1)
        detail, expected = ("", "nodes that reach each other") if self.others is None else self.others.standing()
        since = f"the cluster has had no leader for {self.leaderless_s:.0f} s"
        return NoLeader(f"{since}: {detail}" if detail else since, expected=expected, retry_after_s=1)

    def changed(self) -> asyncio.Future[None]:
        """Return a future, not to be cancelled, that is done when `control` or `leader` is another."""
        return self._news

    def on_others(self) -> None:
        """Take note that other members say something else than before."""
        self._on_leader()

    def _on_leader(self) -> None:
        if self.leader is not None:
            self._leaderless_since_s = None
        elif self._leaderless_since_s is None:
            self._leaderless_since_s = time.monotonic()
        self.on_change()
        self._ring()

    def _on_leadership(self, leads: bool) -> None:
        self._end()
        if leads and not self._stopping:
            self._leading = asyncio.get_running_loop().create_task(self._lead(self._leading))
        self._ring()

    def _end(self) -> None:
        """Give up the control plane there is, or is being made, before anybody can ask it for more."""
        if self.control is not None:
            self.control.end()
            self._set(None)
        if self._leading is not None and not self._leading.cancelling():
            self._leading.cancel()

    def _set(self, control: Control | None) -> None:
        self.control = control
        self.on_change()
        self._ring()

    def _ring(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)

    async def _lead(self, former: asyncio.Task[None] | None) -> None:
        """Be the control plane until that is cancelled; begin when the former one has ended."""
        if former is not None:
            await asyncio.wait([former])
        while True:
            control = Control(self._consensus, self._store, self._hub, self._output_blobs, self._config, self.health)
            began_s = time.monotonic()
            try:
                await control.start()
                logger.info("this node leads", extra={"took_s": round(time.monotonic() - began_s, 3)})
                self._set(control)
                await asyncio.Event().wait()
            except JobsError as error:
                logger.warning("the work cannot be taken up now: %s", error)
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                logger.critical("the work cannot be taken up", exc_info=error)
                self.on_failure(error)
                return
            finally:
                await control.stop()

    # --- how it is ----------------------------------------------------------------------------------------------

    def health(self) -> Health:
        control = self.control
        return Health(
            status=self._status(),
            node=self.node,
            version=_native.__version__,
            leader=self._consensus.is_leader,
            revision=Revision(self._store.revision),
            applied_index=self._store.applied_index,
            uptime_s=time.monotonic() - self._began_s,
            checks={
                "consensus": self._consensus.no_room or self._standing(),
                "store": f"{self._store.used_bytes()} of {self._config.max_store_bytes} bytes used",
                "workers": "known to the leader" if control is None else f"{control.worker_count} registered",
            },
        )

    def _status(self) -> Literal["ok", "starting", "stopping", "failing"]:
        known = self.leader is not None
        self._met_leader |= known
        if self._stopping:
            return "stopping"
        if self.others is not None and self.others.removed:
            return "failing"
        if not self._met_leader or (self._consensus.is_leader and self.control is None):
            return "starting"
        return "ok" if known and self._consensus.no_room is None else "failing"

    def _standing(self) -> str:
        if self._consensus.is_leader:
            return "leading"
        heard = self._consensus.leader
        if heard is not None:
            return f"following {self._consensus.members.name_of(heard)}"
        return "no leader" if self.others is None else self.others.standing()[0]

    def metrics(self) -> dict[str, tuple[str, float]]:
        store, consensus = self._store, self._consensus
        return {
            **({} if self.control is None else self.control.metrics()),
            "jobs_store_revision": ("Revision of the store", store.revision),
            "jobs_store_compact_revision": ("Oldest revision that can be read", store.compact_revision),
            "jobs_store_used_bytes": ("Bytes of the store in use", store.used_bytes()),
            "jobs_store_max_bytes": ("Above so many nothing new is taken in", self._config.max_store_bytes),
            "jobs_raft_applied_index": ("Last log entry applied", store.applied_index),
            "jobs_raft_leader": ("Whether this node leads", float(consensus.is_leader)),
            "jobs_leader_known": ("Whether this node knows who leads", float(self.leader is not None)),
            "jobs_raft_fsyncs_total": ("Syncs of the log", consensus.fsyncs),
            "jobs_raft_commands_total": ("Raft commands proposed", consensus.commands),
            "jobs_raft_transactions_total": ("Transactions proposed", consensus.transactions),
        }
