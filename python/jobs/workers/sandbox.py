"""Typed face of the sandbox launcher: the process that starts, watches and ends isolated commands.

The launcher is a program of its own, small and with one thread (rust/sandbox), which the extension carries: a start of
a job copies the launcher's memory, so it had better have little. One stream socket joins it to its worker: u32
big-endian length, then one MessagePack map tagged by `t`. When the socket ends it kills every job and exits; when it
dies, the kernel kills every job.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from jobs import _native
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.wire import OUTPUT_WINDOW_BYTES, Outcome
from jobs.workers.framing import take_frames
from jobs.workers.ids import Subordinate

LAUNCHER_PROTOCOL: Final = 5
MAX_FRAME_BYTES: Final = 16 << 20
RECEIVE_BYTES: Final = 256 << 10
Level: TypeAlias = Literal["strict", "standard", "none"]


class LauncherError(Exception):
    """The launcher could not start, or is gone; its jobs are gone with it."""


class _Frame(Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


# worker → launcher


class Configure(_Frame, frozen=True, tag="configure"):
    """First frame: what holds for every job. Answered by `Ready` or `Failed`."""

    slots: int
    """Most jobs at a time; each slot has its own uid where the launcher can have any to give."""
    protocol: int = LAUNCHER_PROTOCOL
    level: Level = "strict"
    """Weakest isolation that the operator accepts; a job that cannot have it ends as `sandbox_unavailable`. With `none`
    no job has any."""
    allow_host_network: bool = False
    uid_base: int = 0x7000_0000
    """First of the uids and gids that nobody but launchers uses, which give them to jobs: those that are started as
    root, or with the capabilities CAP_SETUID and CAP_SETGID."""
    read_only_paths: list[str] = []
    """Host paths shown to jobs read-only besides the system's own."""
    inputs: str | None = None
    """A directory of the worker's: each job sees those of its entries that it is given (`Spawn.inputs`), and no other.
    Anybody may search it and read what is in it, as jobs have uids of their own; what it is in is the worker's."""
    cgroup: str | None = None
    """Directory of a delegated cgroup v2 subtree; None looks for one in the launcher's own cgroup."""
    output_window_bytes: int = OUTPUT_WINDOW_BYTES
    """Output a job may have sent and not yet seen acknowledged; then its pipes are not read."""
    directories: str | None = None
    """At level `none`: a directory of the worker's, in which each job gets one (`Spawn.directory`). Whoever starts the
    launcher deletes them after the jobs' ends."""
    uid_count: int = 8_192
    """How many uids and gids there are from `uid_base` on; no other launcher of the machine has what this one takes,
    and the last owns the root images of root's workers."""
    subordinate: Subordinate | None = None
    """What a worker's user that is not root may give to its jobs."""
    roots: dict[str, str] = {}
    """Directories of the host that jobs may have as their root, by name."""
    root_cache: str | None = None
    """A directory of the worker's with unpacked images: `ENTRY/tree`."""


class JobLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one execution, all given: the worker fills in what the job left open. None: unlimited."""

    memory_bytes: int | None = None
    pids: int | None = 1024
    open_files: int = 4096
    file_bytes: int | None = None
    tmp_bytes: int = 256 << 20
    """Size of the memory file system that holds /work, /tmp and /dev/shm together."""
    output_bytes: int = 64 << 20
    """Bytes of stdout and stderr together that are kept; the rest is counted and dropped."""
    cpu_s: int | None = None
    cpu_milli: int | None = None
    """Needs a cgroup with the controller `cpu`; without one the job ends as `sandbox_unavailable`."""
    cpu_weight: int | None = None
    io_weight: int | None = None


class Spawn(_Frame, frozen=True, tag="spawn"):
    """Start a job; its end is reported by exactly one `Exited`, also when it could not be started."""

    job: JobId
    attempt: Attempt
    argv: list[str] = []
    script: str | None = None
    """Run by /bin/sh instead of `argv`."""
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin: bytes | None = None
    files: dict[str, bytes] = {}
    inputs: dict[str, str] = {}
    """Path in the job's directory → entry of `Configure.inputs`: a file or a directory, shown there read-only."""
    keep: bool = False
    """The worker is given what the job leaves in /work, /tmp and /dev/shm: see `Launcher.take`."""
    network: Literal["none", "loopback", "listed", "host"] = "none"
    connect: list[str] = []
    """With `listed`: addresses and ports that the job may reach by TCP, such as `192.0.2.7:443`."""
    timeout_s: float | None = None
    heartbeat_s: float | None = None
    """Longest time without a line of notes; then the job is ended as `timeout`."""
    grace_s: float = 5.0
    """Seconds from SIGTERM to SIGKILL when the job is ended from outside."""
    limits: JobLimits = JobLimits()
    secrets: dict[str, bytes] = {}
    """Name below /run/secrets → what only the job may read, and what is hidden in its output and notes."""
    fail_on_output_limit: bool = False
    """More output than `limits.output_bytes` ends the job as `output_limit`."""

    directory: str | None = None
    """At level `none`: name of its directory in `Configure.directories`."""
    root: str | None = None
    """What it has in place of the host's programs: `named/NAME` of `Configure.roots`, or `cache/ENTRY`."""

    def __repr__(self) -> str:
        # In the text of an exception or a log there is nothing of the job's.
        return f"Spawn(job={self.job!r}, attempt={self.attempt})"


class End(_Frame, frozen=True, tag="end"):
    """End a job: SIGTERM, grace, SIGKILL of everything; with `now` SIGKILL at once. An unknown job is ignored."""

    job: JobId
    attempt: Attempt
    reason: Literal["cancelled", "deadline", "worker_lost"] = "cancelled"
    now: bool = False


class Ack(_Frame, frozen=True, tag="ack"):
    """`count` more bytes of output of the job are safe: the launcher may send as many again."""

    job: JobId
    attempt: Attempt
    count: int


Request: TypeAlias = Configure | Spawn | End | Ack

# launcher → worker


class Ready(_Frame, frozen=True, tag="ready"):
    level: Level
    """Isolation that jobs get when they ask for nothing weaker."""
    features: dict[str, str]
    """What is in force and what is missing, in words."""


class Failed(_Frame, frozen=True, tag="failed"):
    """The launcher cannot work here, and exits."""

    detail: str


class Started(_Frame, frozen=True, tag="started"):
    """The job's command runs; sent only of a job that runs longer than its first flush of output takes."""

    job: JobId
    attempt: Attempt
    pid: int
    """Of the job's first process, outside of its namespace."""
    started_ms: int


class Output(_Frame, frozen=True, tag="output"):
    """Output in arrival order: (1 stdout | 2 stderr, data). Counts against the window until acknowledged."""

    job: JobId
    attempt: Attempt
    segments: list[tuple[int, bytes]]


class Notes(_Frame, frozen=True, tag="notes"):
    """The newest lines that the job has written to its own descriptor, whole; needs no acknowledgement."""

    job: JobId
    attempt: Attempt
    lines: bytes


class Exited(_Frame, frozen=True, tag="exited"):
    """Nothing of the job runs any more. `segments` is the last of its output, and needs no acknowledgement."""

    job: JobId
    attempt: Attempt
    outcome: Outcome
    segments: list[tuple[int, bytes]]
    kept: tuple[int, int] | None
    """What `Launcher.take` gives the job's directory for, if it was to be kept: its device and inode number."""


Event: TypeAlias = Ready | Failed | Started | Output | Notes | Exited

_encoder = msgspec.msgpack.Encoder()
_decode_event = msgspec.msgpack.Decoder(Event).decode


def encode(request: Request) -> bytes:
    """Return `request` with its length in front.

    Raises ValueError for a request over MAX_FRAME_BYTES.
    """
    body = _encoder.encode(request)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"launcher request {type(request).__name__}: {len(body)} bytes, limit {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


class EventDecoder:
    """Cuts a stream of bytes into events, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes.

        Raises LauncherError for bytes that no launcher sends.
        """
        self._rest += data
        return take_frames(self._rest, MAX_FRAME_BYTES, _decode_event, _no_event)


def _no_event(detail: str) -> LauncherError:
    return LauncherError(f"launcher event: {detail}")


_MFD_EXEC: Final = 0x10


def _sealed_program() -> int:
    """Return a descriptor of the launcher's program, in memory: no name leads to it, and nobody can write it any more,
    not even by the /proc/PID/exe of a process that runs it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        program = os.memfd_create("jobs-launcher", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3: every such file may be executed
            raise
        program = os.memfd_create("jobs-launcher", flags)
    with open(program, "wb", closefd=False) as file:
        file.write(_native.launcher_program())
    fcntl.fcntl(
        program, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return program


class Launcher:
    """The launcher process and the worker's end of its socket, which is non-blocking.

    One send and one receive a job: `add_reader(launcher.fileno(), …)` and call `receive` there; `send` what there is;
    when it returns True, `add_writer` and call `flush` until it returns False.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, ready: Ready) -> None:
        self._process = process
        self._control = control
        self._decoder = EventDecoder()
        self._unsent = bytearray()
        self._handles: dict[tuple[int, int], int] = {}
        """Descriptors of the directories that came and were not taken yet, by device and inode number."""
        self.ready = ready

    @classmethod
    def start(
        cls,
        config: Configure,
        *,
        tag: str = "jobs-launcher",
        wrapper: Sequence[str] = (),
        timeout_s: float = 30.0,
    ) -> Launcher:
        """Start the process and wait until it is ready to take jobs.

        `tag` is the name of its processes, up to 15 bytes. `wrapper` is a command that runs it (`setpriv …`). Raises
        LauncherError with the launcher's own words when it cannot work on this host.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = _start(theirs, tag, wrapper)
        except OSError as error:
            ours.close()
            raise LauncherError(f"start the sandbox launcher: {error}") from error
        try:
            ours.settimeout(timeout_s)
            ours.sendall(encode(config))
            ready = _await_ready(ours)
        except BaseException as error:
            ours.close()
            process.kill()
            process.wait()
            if isinstance(error, OSError):
                raise LauncherError(f"start the sandbox launcher: {error}") from error
            raise
        ours.setblocking(False)
        return cls(process, ours, ready)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._control.fileno()

    def send(self, requests: Iterable[Request]) -> bool:
        """Send the requests; return whether some of them wait for room (see `flush`).

        Raises LauncherError when the launcher is gone.
        """
        for request in requests:
            self._unsent += encode(request)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; return whether something still does."""
        try:
            while self._unsent:
                sent = self._control.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return True
        except OSError as error:
            raise LauncherError(f"send to the sandbox launcher: {error}") from error
        return False

    def receive(self) -> list[Event]:
        """Return what has arrived, possibly nothing.

        Raises LauncherError when the launcher is gone: every job that it ran has been killed.
        """
        try:
            # The kernel ends a read after the bytes that a descriptor came with.
            data, handles, *_ = socket.recv_fds(self._control, RECEIVE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LauncherError(f"receive from the sandbox launcher: {error}") from error
        for handle in handles:
            status = os.fstat(handle)
            self._handles[status.st_dev, status.st_ino] = handle
        if not data:
            raise LauncherError("the sandbox launcher is gone")
        return self._decoder.feed(data)

    def take(self, kept: tuple[int, int]) -> int | None:
        """Return a descriptor of what a job has left, with its directory as `work`; the caller closes it.

        None where it was lost on the way: this process had no descriptor to spare.
        """
        return self._handles.pop(kept, None)

    def close(self, *, timeout_s: float = 10.0) -> int:
        """End every job and the launcher; return its exit status once nothing of it runs any more."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()
        self._control.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _start(control: socket.socket, tag: str, wrapper: Sequence[str]) -> subprocess.Popen[bytes]:
    program = _sealed_program()
    try:
        return subprocess.Popen(
            [*wrapper, f"/proc/self/fd/{program}", str(control.fileno()), tag],
            pass_fds=[control.fileno(), program],
            stdin=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
    finally:
        os.close(program)


def _await_ready(control: socket.socket) -> Ready:
    decoder = EventDecoder()
    while True:
        data = control.recv(RECEIVE_BYTES)
        if not data:
            raise LauncherError("start the sandbox launcher: it ended before it was ready")
        for event in decoder.feed(data):
            if isinstance(event, Ready):
                return event
            detail = event.detail if isinstance(event, Failed) else f"unexpected {type(event).__name__}"
            raise LauncherError(f"start the sandbox launcher: {detail}")
