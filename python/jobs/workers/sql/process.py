"""The worker's end of one engine process: started, spoken to, killed, waited for."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from jobs.workers.sql.frames import Configure, Cutter, FrameError, FromEngine, ToEngine, encode

READ_BYTES: Final = 256 << 10
ENGINE: Final = "jobs.workers.sql.engine"
_KEPT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "JOBS_FAILPOINTS")


class End(Struct, frozen=True):
    """How a process ended, and what it took in all."""

    status: int
    """As `waitpid` has it."""
    usage: resource.struct_rusage
    complaint: str | None
    """What was wrong with what it sent."""

    def text(self) -> str:
        """Return it in words."""
        if self.complaint is not None:
            return self.complaint
        if not os.WIFSIGNALED(self.status):
            return f"it ended with {os.waitstatus_to_exitcode(self.status)}"
        number = os.WTERMSIG(self.status)
        return f"it was ended by {signal.Signals(number).name}"


class EngineProcess:
    """One process, whose frames and whose end are told on the running event loop."""

    def __init__(
        self,
        configure: Configure,
        name: str,
        on_frames: Callable[[EngineProcess, Sequence[FromEngine]], None],
        on_end: Callable[[EngineProcess, End], None],
    ) -> None:
        """Start it. `name` is what it is called in lists of processes. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._on_frames, self._on_end = on_frames, on_end
        self._cutter: Cutter[FromEngine] = Cutter(FromEngine)
        self._unsent = bytearray()
        self._complaint: str | None = None
        self.spill = Path(configure.spill)
        self.spill.mkdir(mode=0o700)
        self._socket, theirs = socket.socketpair()
        environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", ENGINE, str(theirs.fileno()), str(os.getpid()), name],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**environment, "TMPDIR": configure.spill, "TOKIO_WORKER_THREADS": str(configure.threads)},
                )
            except OSError:
                self._socket.close()
                self.spill.rmdir()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_readable)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self.send(configure)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: ToEngine) -> None:
        """Write a frame, as soon as the process takes it."""
        self._unsent += encode(frame)
        self._flush()

    def kill(self) -> None:
        """End it at once; its end is told as any other."""
        # Not by Popen, which would wait for a process that has ended already.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End it, and return when it is gone; nothing more is told."""
        self.kill()
        self._detach()
        self._process.wait()
        shutil.rmtree(self.spill, ignore_errors=True)

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # its end is about to be told
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
            frames = self._cutter.feed(data)
        except BlockingIOError:
            return
        except (OSError, FrameError) as error:
            self._complaint = str(error) if isinstance(error, FrameError) else None
            data, frames = b"", []
        if not data:  # its end is told by the kernel
            self._loop.remove_reader(self._socket)
            self.kill()
        elif frames:
            self._on_frames(self, frames)

    def _on_exit(self) -> None:
        if self._loop.remove_reader(self._socket):
            self._read_rest()
        self._detach()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._loop.run_in_executor(None, lambda: shutil.rmtree(self.spill, ignore_errors=True))
        self._on_end(self, End(status, usage, self._complaint))

    def _read_rest(self) -> None:
        """What it said before it ended counts."""
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            try:
                frames = self._cutter.feed(data)
            except FrameError:
                return
            if frames:
                self._on_frames(self, frames)

    def _detach(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._pidfd)
        self._socket.close()
        os.close(self._pidfd)
