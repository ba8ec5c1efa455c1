"""Drives a worker: its session, its executor and the connection to its node, on one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.clock import wall_ms
from jobs.notify import Notifier
from jobs.protocol.wire import FinishedAck, NodeFrame, Registered
from jobs.workers.connection import Connection, connect, retry_delay_s
from jobs.workers.executor import Ended, Event, Executor
from jobs.workers.pressure import Gauge
from jobs.workers.session import RefusedError, Session

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_AGAIN: Final = 75
"""EX_TEMPFAIL of sysexits.h: a new life of this worker may be taken."""
EXIT_CONFIG: Final = 78
"""EX_CONFIG: starting again will not help."""

REGISTER_TIMEOUT_S: Final = 10.0
CLEARING_LIMIT_S: Final = 30.0
"""What was killed at once and is not gone by then never will be; the service manager has to clear up."""
LAST_REPORTS_S: Final = 5.0
"""For the last reports, after the grace of jobs that were ended by a stop."""
_WAIT_AND_RETRY: Final = frozenset({"unavailable", "too_many_connections", "too_many_requests", "register_timeout"})
_NEVER: Final = frozenset({"unknown_type", "bad_slots", "bad_name", "forbidden"})
"""Not `protocol`: after an upgrade of the node, the worker that is started anew is the one that came with it."""


class Runner:
    """Runs until it is told to stop, is refused, or loses its executor.

    Without contact for the lease's time the worker ends what it runs, and does not go back to a node before all of it
    is dead. It returns in the same incarnation: what it ended is reported as `worker_lost`, what had finished before
    with its result, and the node takes either only if the attempt is still this worker's. A new incarnation would
    throw finished results away whenever a node was down for longer than a lease.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        node_socket: Path,
        gauge: Gauge,
        *,
        drain_s: float,
        grace_s: float,
    ) -> None:
        self._session = session
        self._gauge = gauge
        self._executor = executor
        self._node_socket = node_socket
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._notifier = Notifier()
        self._connection: Connection | None = None
        self._failures = 0
        """To reach the node, in a row."""
        self._ready = False
        """The service manager knows."""
        self._stopping = False
        self._register_timer: asyncio.TimerHandle | None = None
        self._lease_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._progress_timer: asyncio.TimerHandle | None = None

    async def run(self, parent: int | None = None) -> int:
        """Work, and return the exit code. When the process behind the pidfd `parent` ends, so does this, at once."""
        self._loop = loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = loop.create_future()
        self._clear = asyncio.Event()
        self._clear.set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        if parent is not None:
            loop.add_reader(parent, self._on_parent_gone, parent)
        self._executor.attach(self._on_events, self._on_executor_lost)
        self._notifier.status("waiting for the node")
        self._notifier.start_watchdog(lambda: not self._exit.done())
        connecting = loop.create_task(self._stay_connected())
        try:
            return await self._exit
        finally:
            self._notifier.stopping("ending what still runs" if self._session.running else "stopped")
            connecting.cancel()
            with suppress(asyncio.CancelledError):
                await connecting
            # The jobs first: a node that sees this worker go gives them to others.
            self._executor.close()
            if self._connection is not None:
                self._connection.close()

    # --- connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        while True:
            await self._clear.wait()
            try:
                connection = await connect(str(self._node_socket), self)
            except OSError as error:
                if self._failures == 0:
                    logger.warning("cannot reach the node at %s: %s", self._node_socket, error.strerror or error)
            else:
                await connection.lost
            self._failures += 1
            self._be_ready()
            await asyncio.sleep(retry_delay_s(self._failures, random.random()))  # noqa: S311 - jitter

    def on_connected(self, connection: Connection) -> None:
        self._connection = connection
        self._register_timer = self._loop.call_later(REGISTER_TIMEOUT_S, connection.abort)
        connection.send([self._session.register(self._loop.time())])

    def on_disconnected(self) -> None:
        if self._session.registered and not self._exit.done():
            logger.warning("the connection to the node is lost", extra={"running": self._session.running})
        self._connection = None
        self._session.on_disconnected()
        self._cancel_timers()
        self._flush()

    def on_frames(self, frames: Sequence[NodeFrame]) -> None:
        now_s, now_ms = self._loop.time(), wall_ms()
        try:
            for frame in frames:
                self._session.on_frame(frame, now_s, now_ms)
                if isinstance(frame, Registered):
                    self._on_registered(frame)
                elif isinstance(frame, FinishedAck) and not frame.accepted:
                    logger.warning("the node refused a late report", extra={"job": frame.job, "attempt": frame.attempt})
        except RefusedError as error:
            self._on_refused(error)
        self._flush()

    def _on_registered(self, frame: Registered) -> None:
        logger.info("registered", extra={"node": frame.node, "running": self._session.running})
        self._failures = 0
        self._cancel_timers()
        self._watch_lease()
        self._be_ready()
        self._notifier.status(self._status())
        self._beat_timer = self._loop.call_later(frame.heartbeat_s, self._beat)

    def _on_refused(self, error: RefusedError) -> None:
        if error.code in _WAIT_AND_RETRY:
            logger.warning("the node does not take this worker now: %s", error)
            if self._connection is not None:
                self._connection.close()
            return
        logger.critical("the node refused this worker: %s", error)
        self._finish(EXIT_CONFIG if error.code in _NEVER else EXIT_AGAIN)

    def _cancel_timers(self) -> None:
        for timer in (self._register_timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        self._register_timer = self._beat_timer = None

    def _beat(self) -> None:
        self._gauge_pressure()
        self._session.on_heartbeat_due(self._loop.time(), self._gauge.pressure, pressed=bool(self._gauge.over))
        self._notifier.status(self._status())
        self._beat_timer = self._loop.call_later(self._session.heartbeat_s, self._beat)
        self._flush()

    def _gauge_pressure(self) -> None:
        before = self._gauge.over
        self._gauge.read()
        if self._gauge.over != before:
            over = {name: self._gauge.pressure[name] for name in sorted(self._gauge.over)}
            logger.info("under pressure" if over else "no longer under pressure", extra={"pressure": over})

    def _be_ready(self) -> None:
        """The start is over: with a node, or, so that nobody waits for the worker longer than for its node, without."""
        if not self._ready:
            self._ready = True
            self._notifier.ready(self._status())

    def _watch_lease(self) -> None:
        """Look again when the lease ends unless it is kept, whether there is a connection or not."""
        ends_s = self._session.lease_ends_s
        if ends_s is not None and self._lease_timer is None:
            self._lease_timer = self._loop.call_at(ends_s, self._on_lease_due)

    def _on_lease_due(self) -> None:
        self._lease_timer = None
        ends_s = self._session.lease_ends_s
        if ends_s is None or ends_s > self._loop.time():
            self._watch_lease()
        else:
            self._on_lease_end()

    def _on_lease_end(self) -> None:
        logger.error("no contact with the node for the time of the lease", extra={"running": self._session.running})
        if self._session.running:
            self._clear.clear()
            self._loop.call_later(CLEARING_LIMIT_S, self._on_clearing_overdue)
        self._session.end_lease(wall_ms())
        if self._connection is not None:
            self._connection.abort()
        self._flush()

    def _on_clearing_overdue(self) -> None:
        if not self._clear.is_set():
            logger.critical("%d jobs cannot be ended", self._session.running)
            self._finish(EXIT_FAILED)

    # --- executor -------------------------------------------------------------------------------------------------

    def _on_events(self, events: Sequence[Event]) -> None:
        now_s = self._loop.time()
        for event in events:
            self._session.on_event(event, now_s)
            if isinstance(event, Ended):
                reason = event.outcome.reason
                logger.debug("ended", extra={"job": event.job, "attempt": event.attempt, "reason": reason})
        self._expect_progress()
        self._flush()

    def _expect_progress(self) -> None:
        due_s = self._session.progress_due_s
        if due_s is not None and self._progress_timer is None:
            self._progress_timer = self._loop.call_at(due_s, self._on_progress_due)

    def _on_progress_due(self) -> None:
        self._progress_timer = None
        self._session.on_progress_due(self._loop.time())
        self._expect_progress()
        self._flush()

    def _on_executor_lost(self, why: str) -> None:
        logger.critical("the executor is lost, and with it every running job: %s", why)
        self._finish(EXIT_FAILED)

    def _flush(self) -> None:
        """Do what the handlers before have made necessary: one write to the node, one to the executor."""
        effects = self._session.take()
        if effects.frames and self._connection is not None:
            self._connection.send(effects.frames)
        if effects.commands:
            self._executor.perform(effects.commands)
        if not self._session.running:
            self._clear.set()
        if self._session.is_drained:
            self._finish(0)

    # --- end ------------------------------------------------------------------------------------------------------

    def _on_signal(self, name: str) -> None:
        if self._stopping:
            logger.warning("%s again: stopping at once", name, extra={"running": self._session.running})
            self._give_up()
            return
        self._stopping = True
        logger.info("%s: draining", name, extra={"running": self._session.running, "drain_s": self._drain_s})
        self._notifier.stopping(self._status())
        self._notifier.extend_timeout(self._drain_s + self._grace_s + 2 * LAST_REPORTS_S)
        self._session.drain()
        self._executor.drain()
        self._loop.call_later(self._drain_s, self._on_drain_over)
        self._flush()

    def _on_drain_over(self) -> None:
        logger.warning("the time to drain is over", extra={"running": self._session.running})
        self._session.end_all(wall_ms(), now=False)
        self._loop.call_later(self._grace_s + LAST_REPORTS_S, self._give_up)
        self._flush()

    def _on_parent_gone(self, parent: int) -> None:
        self._loop.remove_reader(parent)
        os.close(parent)
        logger.warning("the parent process is gone: stopping at once", extra={"running": self._session.running})
        self._give_up()

    def _give_up(self) -> None:
        self._finish(EXIT_FAILED if self._session.running or self._session.unreported else 0)

    def _finish(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    def _status(self) -> str:
        state = "draining" if self._session.draining else "ready" if self._session.registered else "no connection"
        return f"{state}: {self._session.running} of {self._session.identity.slots} slots run a job"
