"""Runs shell jobs: checks and completes their payloads, and passes them to the sandbox launcher."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from jobs import _native
from jobs.clock import wall_ms
from jobs.config import ShellCaps, ShellWorker
from jobs.content import content_bytes
from jobs.destinations import parse_allowed, parse_destination
from jobs.errors import Forbidden, InvalidRequest
from jobs.mounts import is_in_memory
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Limits, Reason, RootImage, ShellPayload
from jobs.protocol.wire import OUTPUT_WINDOW_BYTES, Assignment
from jobs.validate import NODE_DIR, check_shell
from jobs.workers.credentials import secrets_of
from jobs.workers.errands import Errands
from jobs.workers.executor import (
    Command,
    Credit,
    Ended,
    Event,
    ExecutorError,
    NotStarted,
    Produced,
    Progressed,
    Start,
    Stop,
    never_ran,
)
from jobs.workers.former import clear
from jobs.workers.ids import subordinate_ids
from jobs.workers.inputs import input_directory
from jobs.workers.notes import read_lines
from jobs.workers.payloads import checked
from jobs.workers.roots import RootCache
from jobs.workers.sandbox import (
    Ack,
    Configure,
    End,
    Exited,
    Failed,
    JobLimits,
    Launcher,
    LauncherError,
    Notes,
    Output,
    Ready,
    Request,
    Spawn,
    Started,
)
from jobs.workers.workdirs import WorkDirectories

logger = logging.getLogger(__name__)

WINDOW_BYTES: Final = OUTPUT_WINDOW_BYTES - (68 << 10)
"""The launcher stops reading output when this much is unacknowledged. Its last read may go 64 KiB beyond, and what it
had held back of either stream, which could have been the beginning of a secret, comes with it."""
ORDINARY_WEIGHT: Final = 100
MAX_WEIGHT: Final = 10_000
"""The kernel's bounds of a cgroup's share begin at 1, are 100 where nobody says otherwise, and end here."""
_LIMITS: Final = JobLimits.__struct_fields__
_decode_payload = msgspec.json.Decoder(ShellPayload).decode


class ShellExecutor:
    """Starts every job as a process tree of its own, through one launcher."""

    type: Final = "shell"

    def __init__(self, config: ShellWorker, api_socket: Path, tag: str) -> None:
        """End what bears the tag of an earlier life's processes, then start the launcher.

        Raises ExecutorError when either cannot be done on this host.
        """
        self._config = config
        self._limits = JobLimits(**config.limits.model_dump())
        clear(tag, lambda uid: is_ours(uid, config))
        self._inputs = input_directory(config.inputs_dir, tag)
        self._work = WorkDirectories(config.work_dir, tag) if config.sandbox == "none" else None
        self._roots: RootCache | None = None
        if self._work is None and config.roots_bytes:
            self._roots = RootCache(config.roots_dir, tag, config.roots_bytes, owner_of_images(config))
        self._api_socket = api_socket
        try:
            work = None if self._work is None else self._work.path
            roots = None if self._roots is None else self._roots.directory
            self._launcher = Launcher.start(launcher_config(config, self._inputs, work, roots), tag=tag)
            # What it was given them for is done.
            _native.give_up_capabilities()
        except (LauncherError, RuntimeError) as error:
            raise ExecutorError(str(error)) from error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_events: Callable[[Sequence[Event]], None] = lambda events: None
        self._on_lost: Callable[[str], None] = lambda why: None
        for feature, state in self._launcher.ready.features.items():
            logger.debug("sandbox feature %s: %s", feature, state)
        if self.sandbox == "none":
            logger.warning(
                'jobs run WITHOUT ISOLATION, as ordinary processes of this host: workers.shell.sandbox = "none"'
            )

    @property
    def slots(self) -> int:
        return self._config.slots

    @property
    def sandbox(self) -> str:
        return self._launcher.ready.level

    def attach(self, on_events: Callable[[Sequence[Event]], None], on_lost: Callable[[str], None]) -> None:
        self._on_events, self._on_lost = on_events, on_lost
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._launcher.fileno(), self._on_readable)
        self._errands = Errands(
            self._config,
            self._inputs,
            self._roots,
            self._api_socket,
            sandbox=self.sandbox,
            spawn=lambda spawn: self._send([spawn]),
            on_events=self._tell,
        )

    def perform(self, commands: Sequence[Command]) -> None:
        assert self._loop is not None
        requests: list[Request] = []
        refused: list[Event] = []
        for command in commands:
            match command:
                case Start(assignment):
                    try:
                        payload = checked(assignment.payload, _decode_payload, check_shell, "a shell job")
                        spawn = self._spawn_of(assignment, payload)
                        self._check_secrets(spawn)
                    except (InvalidRequest, Forbidden, NotStarted) as error:
                        refused.append(self._refusal(assignment, error))
                        continue
                    if needs_errand(payload):
                        self._errands.begin(assignment, payload, spawn)
                    else:
                        requests.append(spawn)
                case Stop() if self._errands.stop(command):
                    pass
                case Stop(job=job, attempt=attempt, reason=reason, now=now):
                    why: Literal["cancelled", "worker_lost"] = (
                        "cancelled" if reason is Reason.CANCELLED else "worker_lost"
                    )
                    requests.append(End(job=job, attempt=attempt, reason=why, now=now))
                case Credit(job=job, attempt=attempt, count=count):
                    requests.append(Ack(job=job, attempt=attempt, count=count))
        if refused:
            self._loop.call_soon(self._tell, refused)
        if requests:
            self._send(requests)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        if self._loop is not None:
            self._errands.close()
        self._detach()
        self._launcher.close()
        shutil.rmtree(self._inputs.parent, ignore_errors=True)
        if self._work is not None:
            self._work.close()

    def _tell(self, events: Sequence[Event]) -> None:
        """Tell the worker, which learns of an end only when all that belongs to it is done."""
        if self._work is not None:
            for event in events:
                if isinstance(event, Ended):
                    self._work.release(event.job, event.attempt)
        self._on_events(events)

    def _spawn_of(self, assignment: Assignment, payload: ShellPayload) -> Spawn:
        spawn = spawn_of(assignment, payload, self._config, self._limits)
        if self._work is None:
            return spawn
        if payload.root is not None:
            raise Forbidden("root: at level none a job has the host's")
        return replace(spawn, directory=self._work.name(spawn.job, spawn.attempt))

    def _check_secrets(self, spawn: Spawn) -> None:
        """Raise NotStarted where a secret would be on a disk: level `none` has no file system for it."""
        if spawn.secrets and self._work is not None and not is_in_memory(self._work.path):
            raise NotStarted(
                Reason.SANDBOX_UNAVAILABLE,
                f"secrets: at level none they would be on a disk, as {self._work.path} is; "
                "set workers.shell.work_dir to a directory in memory, such as one below /dev/shm",
            )

    def _refusal(self, assignment: Assignment, error: InvalidRequest | Forbidden | NotStarted) -> Ended:
        if isinstance(error, NotStarted):
            reason = error.reason
        else:
            reason = Reason.SANDBOX_UNAVAILABLE if isinstance(error, Forbidden) else Reason.INVALID_PAYLOAD
        outcome = never_ran(reason, str(error), at_ms=wall_ms(), sandbox=self.sandbox)
        return Ended(job=assignment.job, attempt=assignment.attempt, outcome=outcome, segments=[])

    def _on_readable(self) -> None:
        try:
            received = self._launcher.receive()
        except LauncherError as error:
            self._lose(error)
            return
        events: list[Event] = []
        for event in received:
            match event:
                case Output(job=job, attempt=attempt, segments=segments):
                    events.append(Produced(job=job, attempt=attempt, segments=segments))
                case Exited(job=job, attempt=attempt, outcome=outcome, segments=segments, kept=kept):
                    ended = Ended(job=job, attempt=attempt, outcome=outcome, segments=segments)
                    told = self._errands.on_end(ended, None if kept is None else self._launcher.take(kept))
                    if told is not None:
                        events.append(told)
                case Notes(job=job, attempt=attempt, lines=lines):
                    events += progress_of(job, attempt, lines)
                case Started(job=job, attempt=attempt, pid=pid):
                    logger.debug("started", extra={"job": job, "attempt": attempt, "pid": pid})
                case Ready() | Failed():
                    self._lose(LauncherError(f"the sandbox launcher sent {event} out of turn"))
        if events:
            self._tell(events)

    def _send(self, requests: Sequence[Request]) -> None:
        self._write(lambda: self._launcher.send(requests))

    def _write(self, write: Callable[[], bool]) -> None:
        """Write to the launcher, and come back when it has room if not everything went out."""
        if self._loop is None:
            return  # lost, and about to be closed
        try:
            if write():
                self._loop.add_writer(self._launcher.fileno(), self._write, self._launcher.flush)
            else:
                self._loop.remove_writer(self._launcher.fileno())
        except LauncherError as error:
            self._lose(error)

    def _lose(self, error: LauncherError) -> None:
        self._detach()
        self._on_lost(str(error))

    def _detach(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._launcher.fileno())
            self._loop.remove_writer(self._launcher.fileno())
            self._loop = None


def is_ours(uid: int, config: ShellWorker) -> bool:
    """Tell whether processes of this worker's launcher and jobs can have the uid."""
    given = subordinate_ids()
    return (
        uid == os.geteuid() or 0 <= uid - config.uid_base < config.uid_count or (given is not None and given.has(uid))
    )


def owner_of_images(config: ShellWorker) -> int | None:
    """Return the uid and gid of unpacked root images where they are not this worker's: what is root's has no owner in
    the launcher's namespace, and the last of the uids is no job's."""
    return config.uid_base + config.uid_count - 1 if os.geteuid() == 0 else None


def needs_errand(payload: ShellPayload) -> bool:
    """Tell whether there is something to do for a job besides running it."""
    blobs = any(file.blob is not None for file in payload.files.values())
    return blobs or bool(payload.outputs) or isinstance(payload.root, RootImage)


def launcher_config(
    config: ShellWorker, inputs: Path | None = None, work: Path | None = None, roots: Path | None = None
) -> Configure:
    """Return what the launcher is told of the worker's configuration."""
    return Configure(
        slots=config.slots,
        level=config.sandbox,
        allow_host_network=config.allow_host_network,
        uid_base=config.uid_base,
        read_only_paths=[str(path) for path in config.read_only_paths],
        cgroup=str(config.cgroup) if config.cgroup is not None else None,
        inputs=None if inputs is None else str(inputs),
        output_window_bytes=WINDOW_BYTES,
        directories=None if work is None else str(work),
        uid_count=config.uid_count,
        subordinate=subordinate_ids(),
        roots={name: str(path) for name, path in config.roots.items()},
        root_cache=None if roots is None else str(roots),
    )


def spawn_of(assignment: Assignment, payload: ShellPayload, config: ShellWorker, defaults: JobLimits) -> Spawn:
    """Return what the launcher is to start for an assignment, apart from its inputs.

    Raises InvalidRequest, Forbidden for what the operator does not allow, and NotStarted for a secret that it cannot be
    given.
    """
    if payload.connect:
        check_destinations(payload.connect, config.allow_connect)
    if isinstance(payload.root, str) and payload.root not in config.roots:
        known = ", ".join(sorted(config.roots)) or "none"
        raise Forbidden(f"root {payload.root}: the operator of this worker names {known} (workers.shell.roots)")
    given = {path: file for path, file in payload.files.items() if file.blob is None}
    return Spawn(
        job=assignment.job,
        attempt=assignment.attempt,
        argv=payload.argv or [],
        script=payload.script,
        env={**payload.env, **assignment.env},
        cwd=payload.cwd,
        stdin=None if payload.stdin is None else content_bytes(payload.stdin, "$.stdin"),
        files={path: content_bytes(content, f"$.files[{path!r}]") for path, content in given.items()}
        | {str(NODE_DIR / path): content for path, content in assignment.files.items()},
        keep=bool(payload.outputs),
        network="listed" if payload.connect else payload.network,
        connect=payload.connect,
        timeout_s=assignment.timeout_s,
        heartbeat_s=assignment.heartbeat_s,
        grace_s=config.grace_s if payload.grace_s is None else payload.grace_s,
        secrets=secrets_of(assignment, payload, config.credentials),
        limits=_limits(payload.limits, config.max_limits, defaults, assignment.cpu_milli),
        fail_on_output_limit=payload.on_output_limit == "fail",
        root=f"named/{payload.root}" if isinstance(payload.root, str) else None,
    )


def check_destinations(wanted: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise Forbidden for a destination that the operator of this worker does not allow."""
    rules = [parse_allowed(text) for text in allowed]
    for text in wanted:
        address, port = parse_destination(text)
        if not any(rule.holds(address, port) for rule in rules):
            raise Forbidden(f"connect {text}: the operator of this worker does not allow it")


def progress_of(job: JobId, attempt: Attempt, lines: bytes) -> list[Event]:
    """Return the newest progress that the lines tell of, if they do."""
    said = read_lines(lines)
    if said.ignored:
        logger.debug("lines without a meaning", extra={"job": job, "attempt": attempt, "lines": said.ignored})
    if said.progress is None:
        return []
    progress = said.progress
    return [Progressed(job=job, attempt=attempt, percent=progress.percent, message=progress.message)]


def _limits(wanted: Limits, caps: ShellCaps, defaults: JobLimits, cpu_milli: int) -> JobLimits:
    given = {name: value for name in _LIMITS if (value := getattr(wanted, name)) is not None}
    for name, value in given.items():
        cap = getattr(caps, name)
        if cap is not None and value > cap:
            raise InvalidRequest(
                f"{value} is more than this worker allows", field=f"$.limits.{name}", expected=f"at most {cap}"
            )
    if cpu_milli and wanted.cpu_weight is None and defaults.cpu_weight is None:
        given["cpu_weight"] = weight_of(cpu_milli)
    return replace(defaults, **given) if given else defaults


def weight_of(cpu_milli: int) -> int:
    """Return the share of the processor of a job that requires so much of it: a whole core weighs what is ordinary."""
    return min(max(cpu_milli * ORDINARY_WEIGHT // 1_000, 1), MAX_WEIGHT)
