"""The process that runs queries, one after the other: `python -m jobs.workers.sql.engine FD PARENT NAME`.

It ends with its parent, with its end of the socket, and whenever it is killed: it holds nothing that has to be put in
order. What is imported here is imported before the first query, not during it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from jobs import _native
from jobs.errors import JobsError
from jobs.workers.sql.frames import (
    PIECE_BYTES,
    Advance,
    Bounds,
    Configure,
    Credit,
    Cutter,
    Done,
    Failed,
    FrameError,
    FromEngine,
    Output,
    Ready,
    Run,
    ToEngine,
    Usage,
    encode,
)
from jobs.workers.sql.query import Query, QueryError, warm_up
from jobs.workers.sql.sessions import Sessions

READ_BYTES: Final = 256 << 10
PROGRESS_S: Final = 0.5
MOST_PERCENT: Final = 99.0
"""What is said of a query that has read everything: it may still have to sort it."""
SPARE_BYTES: Final = 768 << 20
"""What a query may take beyond what its operators account for: batches under way, stacks, what the allocators hold."""
STATUS_BYTES: Final = 8 << 10
"""More than the kernel has to say of a process."""
NICENESS: Final = 10
"""The node's writes and other workers' jobs come first where there are not enough processors for all."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_NO_NEW_PRIVS: Final = 38
_COMM_BYTES: Final = 15


class Channel:
    """The socket to the worker: frames out from any thread; frames in by a thread of its own, which also tells every
    now and then how far a query is."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._incoming: queue.SimpleQueue[Configure | Run] = queue.SimpleQueue()
        self._credit = threading.Condition()
        self._room = 0
        self._tell_s: float | None = None
        """When it is told next how far the query is; None: none runs."""
        self._teller: Teller | None = None
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def next(self) -> Configure | Run:
        """Wait for the next thing to do."""
        return self._incoming.get()

    def send(self, frame: FromEngine) -> None:
        data = encode(frame)
        with self._sending:
            self._socket.sendall(data)

    def watch(self, snapshot: _native.SqlSnapshot) -> None:
        """From now on, tell how far the query is that reads this."""
        with self._sending:
            self._teller = Teller(snapshot)

    def end(self, frame: Done | Failed) -> None:
        """Send the last of a query: nothing is told of it after that."""
        with self._sending:
            self._teller = self._tell_s = None
        self.send(frame)

    def open_window(self, count: int) -> None:
        """Let so much output be under way at a time, from now on."""
        with self._credit:
            self._room = count

    def send_output(self, data: bytes) -> None:
        """Send a piece of output once there is room for it."""
        with self._credit:
            self._credit.wait_for(lambda: self._room >= len(data))
            self._room -= len(data)
        self.send(Output(data=data))

    def _receive(self) -> None:
        cutter: Cutter[ToEngine] = Cutter(ToEngine)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            while True:
                if poll.poll(self._tell_when_due()):
                    data = self._socket.recv(READ_BYTES)
                    if not data:
                        break
                    for frame in cutter.feed(data):
                        self._take(frame)
        except (OSError, FrameError):
            pass
        os._exit(1)

    def _take(self, frame: ToEngine) -> None:
        if isinstance(frame, Credit):
            with self._credit:
                self._room += frame.count
                self._credit.notify_all()
            return
        if isinstance(frame, Run):
            self._tell_s = time.monotonic() + PROGRESS_S
        self._incoming.put(frame)

    def _tell_when_due(self) -> float | None:
        """Tell how far the query is, if it is time; return after how many ms that is again."""
        with self._sending:
            if self._tell_s is None:
                return None
            now_s = time.monotonic()
            if now_s >= self._tell_s:
                self._tell_s = now_s + PROGRESS_S
                if self._teller is not None and (advance := self._teller.advance()) is not None:
                    self._socket.sendall(encode(advance))
            return 1_000 * (self._tell_s - now_s)


class Outflow:
    """Takes the bytes of one result: what fills a piece is sent, the rest is kept for the end."""

    def __init__(self, channel: Channel, max_bytes: int) -> None:
        self._channel = channel
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self.count = 0

    def take(self, data: bytes) -> None:
        self.count += len(data)
        if self.count > self._max_bytes:
            raise QueryError(f"the result has more than {self._max_bytes} bytes, its limit (max_bytes)")
        self._buffer += data
        while len(self._buffer) > PIECE_BYTES:
            piece = bytes(self._buffer[:PIECE_BYTES])
            del self._buffer[:PIECE_BYTES]
            self._channel.send_output(piece)

    def rest(self) -> bytes:
        return bytes(self._buffer)


class Teller:
    """Says how far a query is."""

    def __init__(self, snapshot: _native.SqlSnapshot) -> None:
        self._snapshot = snapshot
        self._told = -1
        self._percent = 0.0

    def advance(self) -> Advance | None:
        """Return what is to be told, if that is more than the last time."""
        rows = self._snapshot.rows_read
        if rows == self._told:
            return None
        self._told = rows
        self._percent = max(self._percent, percent_of(rows, self._snapshot.rows_expected))
        message = f"read {rows:,} rows, {self._snapshot.bytes_read / (1 << 20):,.1f} MiB"
        return Advance(percent=self._percent, message=message)


def percent_of(rows: int, expected: int) -> float:
    """Return how far a query is that has read so many rows of about so many; never that it is done, which is told by
    its end."""
    return min(MOST_PERCENT, round(100 * rows / expected, 1)) if expected else 0.0


class Gauge:
    """What this process takes for one query after the other."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._before = resource.getrusage(resource.RUSAGE_SELF)
        self.begin()

    def begin(self) -> None:
        """Look for the peak of memory from now on."""
        os.write(self._clear, b"5")  # sets it back to what is held now

    def usage(self) -> Usage:
        """Return the processor time since the last time, and the peak of memory."""
        before, self._before = self._before, resource.getrusage(resource.RUSAGE_SELF)
        return Usage(
            cpu_user_s=self._before.ru_utime - before.ru_utime,
            cpu_system_s=self._before.ru_stime - before.ru_stime,
            peak_memory_bytes=self._held_bytes(b"VmHWM:"),
        )

    def data_bytes(self) -> int:
        """Return what RLIMIT_DATA counts."""
        return self._held_bytes(b"VmData:")

    def _held_bytes(self, name: bytes) -> int:
        _, _, rest = os.pread(self._status, STATUS_BYTES, 0).partition(name)
        return int(rest.split(maxsplit=1)[0]) << 10


class Engine:
    """Runs queries, one after the other."""

    def __init__(self, channel: Channel, configure: Configure, sessions: Sessions, gauge: Gauge) -> None:
        self._channel = channel
        self._sessions = sessions
        self._gauge = gauge
        self._store = configure.store
        self._window_bytes = configure.window_bytes

    def serve(self, run: Run) -> None:
        """Run one query, answer it, and do for the next what can be done before it is there."""
        self._gauge.begin()
        self._channel.open_window(self._window_bytes)
        self._bound_memory(run.bounds)
        with ExitStack() as held:
            self._channel.end(self._ended(run, held))
        self._sessions.make_ahead(run.bounds)

    def _ended(self, run: Run, held: ExitStack) -> Done | Failed:
        try:
            outflow = Outflow(self._channel, run.bounds.max_bytes)
            query = held.enter_context(closing(Query(run, self._store, self._sessions, outflow)))
            answer = query.execute(self._channel.watch)
            return Done(result=answer.result, last=outflow.rest(), write=answer.write, usage=self._gauge.usage())
        except QueryError as error:
            return Failed(message=str(error), is_payload=False, usage=self._gauge.usage())
        except JobsError as error:
            return Failed(message=str(error), is_payload=True, usage=self._gauge.usage())
        except MemoryError:
            return Failed(message="not enough memory", is_payload=False, usage=self._gauge.usage())

    def _bound_memory(self, bounds: Bounds) -> None:
        """Let the process have no more than the query needs beside what it holds already: then allocation fails, and
        with that the process."""
        limit = self._gauge.data_bytes() + bounds.memory_bytes + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def confine(parent: int, name: str) -> None:
    """Die with the parent, leave no dump, gain nothing."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_NAME, name.encode()[:_COMM_BYTES], 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A terminal's Ctrl-C is for the worker, which ends this when it has to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def give_way() -> None:
    """Let all others go first: each thread by itself, those that libraries began at their import too; later ones have
    the niceness of the thread that begins them."""
    niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19)
    for task in Path("/proc/self/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)


def main() -> None:
    """Serve until the worker has gone."""
    descriptor, parent, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    confine(parent, name)
    give_way()
    gauge = Gauge()
    channel = Channel(socket.socket(fileno=descriptor))
    configure = channel.next()
    assert isinstance(configure, Configure)
    sessions = Sessions(configure)
    warm_up(sessions)
    channel.send(Ready(usage=gauge.usage()))
    engine = Engine(channel, configure, sessions, gauge)
    while True:
        run = channel.next()
        assert isinstance(run, Run)
        engine.serve(run)


if __name__ == "__main__":
    main()
