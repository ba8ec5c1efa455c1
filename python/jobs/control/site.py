"""What a node has of the control plane: its own reads and its state always, and all of it for as long as it leads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Literal

from jobs import _native
from jobs.consensus import Consensus
from jobs.control.control import Control, ControlConfig
from jobs.control.hub import Hub
from jobs.control.reads import StaleReads
from jobs.errors import JobsError
from jobs.protocol.ids import Revision
from jobs.protocol.model import Health
from jobs.store import Store

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.5
"""A control plane that could not be started is tried again, while the node leads."""


class Site:
    """Makes a `Control` whenever the node begins to lead, and drops it when it ceases to."""

    def __init__(self, node: str, consensus: Consensus, store: Store, config: ControlConfig) -> None:
        """To be made before consensus starts."""
        self.node = node
        self.control: Control | None = None
        """There while the node leads and has taken up the work."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `control` or `leader` is another."""
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called when the store cannot be made sense of: the process has to end."""
        self._consensus = consensus
        self._store = store
        self._config = config
        self._hub = Hub(store)
        self.reads = StaleReads(store, self._hub, lambda: consensus.is_leader)
        self._began_s = time.monotonic()
        self._stopping = False
        self._met_leader = False
        self._leaderless_since_s: float | None = self._began_s
        self._leading: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        consensus.on_applied = self._hub.on_applied
        consensus.on_leadership = self._on_leadership
        consensus.on_leader = self._on_leader

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
        """Id of the member that leads, as far as this node knows."""
        return self._consensus.leader

    @property
    def leaderless_s(self) -> float:
        """For how long no leader has been known."""
        return 0.0 if self._leaderless_since_s is None else time.monotonic() - self._leaderless_since_s

    def changed(self) -> asyncio.Future[None]:
        """Return a future, not to be cancelled, that is done when `control` or `leader` is another."""
        return self._news

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
            control = Control(self._consensus, self._store, self._hub, self._config, self.health)
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
        known = self._consensus.leader is not None
        self._met_leader |= known
        if self._stopping:
            return "stopping"
        if not self._met_leader or (self._consensus.is_leader and self.control is None):
            return "starting"
        return "ok" if known and self._consensus.no_room is None else "failing"

    def _standing(self) -> str:
        if self._consensus.is_leader:
            return "leading"
        leader = self._consensus.leader
        return "no leader" if leader is None else f"following {leader}"

    def metrics(self) -> dict[str, tuple[str, float]]:
        store, consensus = self._store, self._consensus
        return {
            **({} if self.control is None else self.control.metrics()),
            "jobs_store_revision": ("Revision of the store", store.revision),
            "jobs_store_compact_revision": ("Oldest revision that can be read", store.compact_revision),
            "jobs_store_used_bytes": ("Bytes of the store in use", store.used_bytes()),
            "jobs_raft_applied_index": ("Last log entry applied", store.applied_index),
            "jobs_raft_leader": ("Whether this node leads", float(consensus.is_leader)),
            "jobs_raft_fsyncs_total": ("Syncs of the log", consensus.fsyncs),
            "jobs_raft_commands_total": ("Raft commands proposed", consensus.commands),
            "jobs_raft_transactions_total": ("Transactions proposed", consensus.transactions),
        }
