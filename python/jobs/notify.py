"""What a service tells systemd (sd_notify(3)): ready, status, reloading, stopping, and the watchdog's signs of life.

Every call does nothing when no service manager listens, and none waits for one that does not read: what only says how
things are is left out then, a change of state is sent as soon as there is room.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from sdnotify import SystemdNotifier

from jobs.sockets import LISTEN_VARIABLES

logger = logging.getLogger(__name__)

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", *LISTEN_VARIABLES)
"""What a service manager tells the process that it has started, and not that one's children."""

WATCHDOG_SHARE: Final = 0.5
"""Pings come at this share of the watchdog's time, as sd_watchdog_enabled(3) advises."""
EXTENSION_S: Final = 60.0
"""So long a start may take from each time on that it was seen to get ahead."""
EXTENSION_PERIOD_S: Final = 10.0
BUSY_SHARE: Final = 0.02
"""A start that takes this share of a processor gets ahead; one that hangs takes none."""


class Notifier:
    """The service manager's notification socket, if there is one."""

    def __init__(self) -> None:
        self._notifier: SystemdNotifier | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            try:
                self._notifier = SystemdNotifier(debug=True)
                self._notifier.socket.setblocking(False)
            except OSError as error:
                logger.warning("the service manager cannot be told anything: %s", error)
        self._status = ""
        self._unsent: list[str] = []
        """Changes of state that there was no room for."""
        self._watchdog: asyncio.TimerHandle | None = None

    def ready(self, status: str = "") -> None:
        """The service has started, or has reloaded."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """Say in one line what goes on; the same line is not sent twice in a row."""
        if text != self._status:
            self._send("", text)

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", status)

    def reloading(self, status: str = "") -> None:
        """The service reads its configuration again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}", status)

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time to start or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}", "")

    @contextmanager
    def starting(self, status: str, *, period_s: float = EXTENSION_PERIOD_S) -> Iterator[None]:
        """Ask for more time to start as long as this process gets ahead: it reads, writes or computes.

        By a thread, as what is opened holds up the event loop. A start that hangs is not helped.
        """
        self.status(status)
        if self._notifier is None:
            yield
            return
        over = threading.Event()
        watching = threading.Thread(target=self._extend_while_busy, args=(over, period_s), daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def _extend_while_busy(self, over: threading.Event, period_s: float) -> None:
        before = _Effort.now()
        while not over.wait(period_s):
            now = _Effort.now()
            if now.is_ahead_of(before, period_s):
                self._try(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1_000_000)}")
            before = now

    def start_watchdog(self, is_healthy: Callable[[], bool]) -> None:
        """Ping from the running event loop as long as it turns and `is_healthy` says so; without a watchdog: nothing.

        When the loop hangs or `is_healthy` fails the pings stop, and the service manager acts.
        """
        interval_s = watchdog_interval_s()
        if interval_s is not None and self._notifier is not None:
            self._ping(asyncio.get_running_loop(), interval_s, is_healthy)

    def stop_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _ping(self, loop: asyncio.AbstractEventLoop, interval_s: float, is_healthy: Callable[[], bool]) -> None:
        self._watchdog = loop.call_later(interval_s, self._ping, loop, interval_s, is_healthy)
        if is_healthy():
            self._try("WATCHDOG=1")
        else:
            logger.error("not healthy: the watchdog is not pinged")

    def _send(self, state: str, status: str) -> None:
        if self._notifier is None:
            return
        if status:
            self._status = status
            line = f"STATUS={' '.join(status.split())}"
            state = f"{state}\n{line}" if state else line
        changes = not state.startswith("STATUS=")
        if not self._unsent and self._try(state):
            return
        if changes:
            self._unsent.append(state)
            asyncio.get_running_loop().add_writer(self._notifier.socket, self._flush)
        else:
            self._status = ""

    def _flush(self) -> None:
        while self._unsent and self._try(self._unsent[0]):
            del self._unsent[0]
        if not self._unsent and self._notifier is not None:
            asyncio.get_running_loop().remove_writer(self._notifier.socket)

    def _try(self, text: str) -> bool:
        """Send unless the service manager has too much to read already; tell whether there was room."""
        assert self._notifier is not None
        try:
            # sdnotify encodes as Latin-1.
            self._notifier.notify(text.encode("ascii", "replace").decode("ascii"))
        except BlockingIOError:
            return False
        except OSError as error:  # nobody listens any more
            logger.debug("the service manager was not told: %s", error)
        return True


class _Effort(NamedTuple):
    """What this process has done so far."""

    cpu_s: float
    disk_bytes: int

    @classmethod
    def now(cls) -> _Effort:
        disk_bytes = 0
        with suppress(OSError), open("/proc/self/io", encoding="ascii") as file:
            # What reached a disk: what is read from /proc, as here, does not.
            fields = dict(line.split(":", 1) for line in file)
            disk_bytes = int(fields["read_bytes"]) + int(fields["write_bytes"])
        return cls(time.process_time(), disk_bytes)

    def is_ahead_of(self, before: _Effort, period_s: float) -> bool:
        return self.cpu_s - before.cpu_s > BUSY_SHARE * period_s or self.disk_bytes > before.disk_bytes


def watchdog_interval_s() -> float | None:
    """Return how often this process has to ping, None when no watchdog watches it."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 * WATCHDOG_SHARE
