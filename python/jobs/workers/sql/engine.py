"""The process that runs queries, one after the other: `python -m jobs.workers.sql.engine FD PARENT NAME`.

It ends with its parent, with its end of the socket, and whenever it is killed: it holds nothing that has to be put in
order. What is imported here is imported before the first query, not during it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import resource
import signal
import socket
import sys
import threading
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

READ_BYTES: Final = 256 << 10
PROGRESS_S: Final = 0.5
MOST_PERCENT: Final = 99.0
"""What is said of a query that has read everything: it may still have to sort it."""
SPARE_BYTES: Final = 768 << 20
"""What a query may take beyond what its operators account for: batches under way, stacks, what the allocators hold."""
NICENESS: Final = 10
"""The node's writes and other workers' jobs come first where there are not enough processors for all."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_NO_NEW_PRIVS: Final = 38
_COMM_BYTES: Final = 15


class Channel:
    """The socket to the worker: frames out from any thread, frames in by a thread of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._incoming: queue.SimpleQueue[Configure | Run] = queue.SimpleQueue()
        self._credit = threading.Condition()
        self._room = 0
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def next(self) -> Configure | Run:
        """Wait for the next thing to do."""
        return self._incoming.get()

    def send(self, frame: FromEngine) -> None:
        data = encode(frame)
        with self._sending:
            self._socket.sendall(data)

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
        try:
            while data := self._socket.recv(READ_BYTES):
                for frame in cutter.feed(data):
                    if isinstance(frame, Credit):
                        with self._credit:
                            self._room += frame.count
                            self._credit.notify_all()
                    else:
                        self._incoming.put(frame)
        except (OSError, FrameError):
            pass
        os._exit(1)


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
    """Tells every now and then how far a query is."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, snapshot: _native.SqlSnapshot) -> None:
        self._thread = threading.Thread(target=self._tell, args=(snapshot,), name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _tell(self, snapshot: _native.SqlSnapshot) -> None:
        told, percent = -1, 0.0
        while not self._over.wait(PROGRESS_S):
            rows = snapshot.rows_read
            if rows != told:
                told = rows
                percent = max(percent, percent_of(rows, snapshot.rows_expected))
                message = f"read {rows:,} rows, {snapshot.bytes_read / (1 << 20):,.1f} MiB"
                self._channel.send(Advance(percent=percent, message=message))


def percent_of(rows: int, expected: int) -> float:
    """Return how far a query is that has read so many rows of about so many; never that it is done, which is told by
    its end."""
    return min(MOST_PERCENT, round(100 * rows / expected, 1)) if expected else 0.0


class Gauge:
    """What this process takes, since the gauge was made."""

    def __init__(self) -> None:
        # The peak from now on: "5" sets it back to what is held now.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = resource.getrusage(resource.RUSAGE_SELF)

    def usage(self) -> Usage:
        now = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(
            cpu_user_s=now.ru_utime - self._before.ru_utime,
            cpu_system_s=now.ru_stime - self._before.ru_stime,
            peak_memory_bytes=_status_bytes("VmHWM"),
        )


def serve(channel: Channel, configure: Configure, run: Run) -> None:
    """Run one query and answer it."""
    gauge, teller = Gauge(), Teller(channel)
    channel.open_window(configure.window_bytes)
    bound_memory(run.bounds)
    ended: Failed | Done
    try:
        outflow = Outflow(channel, run.bounds.max_bytes)
        answer = Query(run, configure, outflow).execute(teller.watch)
        ended = Done(result=answer.result, last=outflow.rest(), write=answer.write, usage=gauge.usage())
    except QueryError as error:
        ended = Failed(message=str(error), is_payload=False, usage=gauge.usage())
    except JobsError as error:
        ended = Failed(message=str(error), is_payload=True, usage=gauge.usage())
    except MemoryError:
        ended = Failed(message="not enough memory", is_payload=False, usage=gauge.usage())
    finally:
        teller.stop()
    channel.send(ended)


def bound_memory(bounds: Bounds) -> None:
    """Let the process have no more than the query needs beside what it holds already: then allocation fails, and with
    that the process."""
    limit = _status_bytes("VmData") + bounds.memory_bytes + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


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
    warm_up(configure)
    channel.send(Ready(usage=gauge.usage()))
    while True:
        run = channel.next()
        assert isinstance(run, Run)
        serve(channel, configure, run)


if __name__ == "__main__":
    main()
