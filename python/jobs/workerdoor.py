"""The node's socket for workers: who is behind a connection, and to where it leads.

A connection leads to the gateway of whoever leads the cluster; until that is known it waits. It is as trusted
as the uid behind it (SO_PEERCRED against the allowed ones); what it says is the gateway's matter. The node also watches
the processes of workers whose connections have ended, for nobody else can see that they end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final, Protocol, cast

from jobs.errors import JobsError
from jobs.protocol import wire
from jobs.service import WorkerProcess
from jobs.sockets import BACKLOG, listen, peer_credentials

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256
MAX_WATCHED: Final = 1_024
"""Processes that are watched at a time; one more is not, and its worker is lost only with its lease."""
WAIT_S: Final = 30.0
"""A connection that leads nowhere for so long is closed: the worker comes back."""
MAX_SAID_BYTES: Final = 1 << 20
"""Of what a waiting connection says before nothing more is read from it."""
TELL_S: Final = 60.0
"""The end of a process is told within this, or left to the worker's lease."""
RETRY_S: Final = 0.25
_START_TIME: Final = 22
"""Which field of /proc/PID/stat, counted from 1."""


class Way(Protocol):
    """Where workers' connections lead."""

    def connection(self, process: WorkerProcess) -> asyncio.Protocol:
        """Return the other end of a new connection."""

    async def tell_process_end(self, process: WorkerProcess) -> None:
        """Say that a process that was connected has ended. Raises JobsError when nobody took note."""


class WorkerDoor:
    """The listening socket, the connections, and the processes that were behind them."""

    def __init__(self, node: str, uids: frozenset[int]) -> None:
        self.node = node
        self.uids = uids
        self.guests: set[Guest] = set()
        self._way: Way | None = None
        self._found = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._is_own = True
        self._watched: dict[str, int] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def start(self, path: Path, mode: int, group: str | None) -> None:
        """Listen. Raises SocketError."""
        listener = listen(path, mode, group)
        self._path, self._is_own = path, listener.is_own
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Guest(self), sock=listener.socket, backlog=BACKLOG)

    async def stop(self) -> None:
        """Let nobody in any more; the workers keep their jobs and come back."""
        if self._server is not None:
            self._server.close()
        if self._path is not None and self._is_own:
            self._path.unlink(missing_ok=True)
        for guest in list(self.guests):
            guest.leave()
        for process in list(self._watched):
            self._forget(process)
        for task in self._telling:
            task.cancel()
        if self._telling:
            await asyncio.wait(self._telling)

    def lead(self, way: Way | None) -> None:
        """Let connections lead there from now on; those that led elsewhere are ended by whoever is at their end."""
        self._way = way
        if way is None:
            self._found.clear()
            return
        self._found.set()
        for guest in [guest for guest in self.guests if guest.waits]:
            guest.lead(way)

    # --- connections ------------------------------------------------------------------------------------------------

    def admit(self, guest: Guest) -> None:
        """Take a connection in, and let it go on where there is a way."""
        self.guests.add(guest)
        self._forget(guest.process.process)
        if self._way is not None:
            guest.lead(self._way)

    def on_gone(self, guest: Guest, pidfd: int) -> None:
        """A connection has ended; when its process does too, now or later, that is told at once."""
        self.guests.discard(guest)
        if pidfd < 0:
            return
        name = guest.process.process
        self._forget(name)
        if self._path is None or len(self._watched) >= MAX_WATCHED:
            os.close(pidfd)
            return
        self._watched[name] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._on_process_end, guest.process)

    # --- processes ----------------------------------------------------------------------------------------------------

    def _forget(self, process: str) -> None:
        pidfd = self._watched.pop(process, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _on_process_end(self, process: WorkerProcess) -> None:
        self._forget(process.process)
        task = asyncio.get_running_loop().create_task(self._tell(process))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, process: WorkerProcess) -> None:
        try:
            async with asyncio.timeout(TELL_S):
                while True:
                    await self._found.wait()
                    assert self._way is not None
                    try:
                        await self._way.tell_process_end(process)
                    except JobsError as error:
                        logger.info("the end of a worker's process cannot be told yet: %s", error)
                        await asyncio.sleep(RETRY_S)
                    else:
                        return
        except TimeoutError:
            logger.warning("the end of a worker's process was not told", extra={"pid": process.pid})


class Guest(asyncio.Protocol):
    """One connection of a process of this machine, from its opening on."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = -1
        self._said = bytearray()
        """What came before it was known to where it goes."""
        self.process: WorkerProcess

    @property
    def waits(self) -> bool:
        return self._inner is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = made = cast("asyncio.Transport", transport)
        pid, uid, _ = peer_credentials(made)
        if uid not in self._door.uids:
            self._refuse("forbidden", f"uid {uid} may not register workers here")
        elif len(self._door.guests) >= MAX_CONNECTIONS:
            self._refuse("too_many_connections", f"{MAX_CONNECTIONS} workers are connected already")
        else:
            self._pidfd = open_pidfd(pid)
            self.process = WorkerProcess(node=self._door.node, pid=pid, uid=uid, process=process_name(pid))
            self._timer = asyncio.get_running_loop().call_later(WAIT_S, made.abort)
            self._door.admit(self)

    def lead(self, way: Way) -> None:
        """Go on there."""
        assert self._transport is not None
        if self._timer is not None:
            self._timer.cancel()
        self._inner = inner = way.connection(self.process)
        inner.connection_made(self._transport)
        said, self._said = bytes(self._said), bytearray()
        if self._transport.is_closing():
            return
        if said:
            inner.data_received(said)
        if len(said) > MAX_SAID_BYTES:
            self._transport.resume_reading()

    def leave(self) -> None:
        """Close what leads nowhere; the others are closed by whoever is at their end."""
        if self.waits and self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)
            return
        self._said += data
        if len(self._said) > MAX_SAID_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)
        pidfd, self._pidfd = self._pidfd, -1
        if self in self._door.guests:
            self._door.on_gone(self, pidfd)

    def _refuse(self, code: str, detail: str) -> None:
        logger.warning("worker connection refused: %s", detail, extra={"code": code})
        assert self._transport is not None
        self._transport.write(wire.encode_frame(wire.Refused(code=code, detail=detail)))
        self._transport.close()


def open_pidfd(pid: int) -> int:
    """Return a pidfd, or -1 when the process is gone or out of sight."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def process_name(pid: int) -> str:
    """Return what tells a process from all others of this machine; where `/proc` does not show it, from those that are
    there at the same time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return str(pid)
    # The second field, a name in parentheses, may hold anything.
    fields = stat[stat.rindex(")") + 1 :].split()
    return f"{pid}.{fields[_START_TIME - 3]}"
