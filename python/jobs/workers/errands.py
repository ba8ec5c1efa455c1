"""What is done for a shell job besides running it: its blobs are fetched before it starts, and what it leaves is stored
after it has ended. Neither counts as time of the attempt, and neither holds up another job."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from jobs.clock import wall_ms
from jobs.config import ShellWorker
from jobs.errors import JobsError
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason, RootImage, ShellPayload
from jobs.protocol.wire import Assignment, Outcome
from jobs.workers.artefacts import ArtefactStore
from jobs.workers.executor import Ended, Event, Produced, Progressed, Stop, never_ran
from jobs.workers.inputs import Held, InputCache, InputError, fetching
from jobs.workers.nodeapi import NodeApi
from jobs.workers.outputs import OutputError, TooMuchError
from jobs.workers.roots import HeldRoot, RootCache, RootError
from jobs.workers.sandbox import Spawn

logger = logging.getLogger(__name__)

ENDED_BY_OTHERS: Final = frozenset({Reason.CANCELLED, Reason.WORKER_LOST, Reason.DEADLINE})
"""What ends so leaves nothing."""
_Key = tuple[JobId, Attempt]


class _Errand(Struct):
    """What is done for one attempt."""

    node: NodeApi
    payload: ShellPayload
    held: Held | None = None
    root: HeldRoot | None = None
    task: asyncio.Task[Any] | None = None
    """Before it runs and after it has ended."""
    stopped: Reason | None = None
    """It is ended, or given up, while that goes on."""


class Errands:
    """Those of one worker, on one event loop."""

    def __init__(
        self,
        config: ShellWorker,
        directory: Path,
        roots: RootCache | None,
        api_socket: Path,
        *,
        sandbox: str,
        spawn: Callable[[Spawn], None],
        on_events: Callable[[Sequence[Event]], None],
    ) -> None:
        self._cache = InputCache(directory, config.inputs_bytes)
        self._roots = roots
        self._store = ArtefactStore(config.outputs_bytes)
        self._api_socket = api_socket
        self._sandbox = sandbox
        self._spawn = spawn
        self._on_events = on_events
        self._errands: dict[_Key, _Errand] = {}

    def begin(self, assignment: Assignment, payload: ShellPayload, spawn: Spawn) -> None:
        """Have an attempt started that names blobs, once they are here; or that is to leave some."""
        node = NodeApi(self._api_socket, assignment.owner, admin=assignment.admin)
        errand = self._errands[assignment.job, assignment.attempt] = _Errand(node, payload)
        wanted = {path: file.blob for path, file in payload.files.items() if file.blob is not None}
        if wanted or isinstance(payload.root, RootImage):
            fetch = asyncio.get_running_loop().create_task(self._fetch(errand, wanted, spawn))
            fetch.add_done_callback(partial(self._on_fetched, errand, spawn))
            errand.task = fetch
        else:
            self._spawn(spawn)

    def stop(self, command: Stop) -> bool:
        """End what is done for an attempt; False when it runs, or there is nothing of it."""
        errand = self._errands.get((command.job, command.attempt))
        if errand is None or errand.task is None:
            return False
        if errand.stopped is None:
            errand.stopped = command.reason
            errand.task.cancel()
        return True

    def on_end(self, ended: Ended, root: int | None) -> Ended | None:
        """An attempt has ended, and `root` is a descriptor of what it has left, if that was wanted. Return the end, or
        None when it is told later, after that has been stored."""
        errand = self._errands.get((ended.job, ended.attempt))
        if errand is None:
            if root is not None:
                os.close(root)
            return ended
        _release(errand)
        if not _leaves(errand.payload, ended.outcome):
            del self._errands[ended.job, ended.attempt]
            if root is not None:
                os.close(root)
            return ended
        if ended.segments:
            # What it wrote is not kept back until then.
            self._on_events([Produced(job=ended.job, attempt=ended.attempt, segments=ended.segments)])
            ended = replace(ended, segments=[])
        store = asyncio.get_running_loop().create_task(self._stored(errand, ended, root))
        store.add_done_callback(partial(self._on_stored, errand, ended, root))
        errand.task = store
        return None

    def close(self) -> None:
        """Give everything up."""
        for errand in self._errands.values():
            if errand.task is not None:
                errand.task.cancel()
        self._cache.close()

    # What is done may be cancelled before it has begun, so its end is told by a callback and not by itself.

    async def _fetch(self, errand: _Errand, wanted: dict[str, str], spawn: Spawn) -> None:
        def tell(message: str) -> None:
            self._on_events([Progressed(job=spawn.job, attempt=spawn.attempt, percent=0.0, message=message)])

        def on_fetch(size_bytes: int) -> None:
            tell(fetching(size_bytes))

        # Its root image comes first, which is among the inputs only until it is unpacked: who waits for room there has
        # nothing that others wait for.
        root = errand.payload.root
        if isinstance(root, RootImage):
            if self._roots is None:
                raise RootError("this worker has no room for root images (workers.shell.roots_bytes)")
            told = partial(tell, "unpacking its root image")
            errand.root = await self._roots.hold(errand.node, root.blob, self._cache, on_fetch, told)
        if wanted:
            errand.held = await self._cache.hold(errand.node, wanted, on_fetch)

    def _on_fetched(self, errand: _Errand, spawn: Spawn, fetch: asyncio.Task[None]) -> None:
        errand.task = None
        if fetch.cancelled() or fetch.exception() is not None:
            _release(errand)
        if fetch.cancelled():
            if errand.stopped is not None:
                self._never_ran(spawn, errand.stopped, "ended before it was started")
        elif (error := fetch.exception()) is not None:
            if not isinstance(error, InputError | RootError):
                logger.error("inputs were not fetched", exc_info=error, extra={"job": spawn.job})
            self._never_ran(spawn, Reason.BLOB_ERROR, str(error) or type(error).__name__)
        else:
            self._spawn(_completed(spawn, errand))

    def _never_ran(self, spawn: Spawn, reason: Reason, message: str) -> None:
        del self._errands[spawn.job, spawn.attempt]
        outcome = never_ran(reason, message, at_ms=wall_ms(), sandbox=self._sandbox)
        self._on_events([Ended(job=spawn.job, attempt=spawn.attempt, outcome=outcome, segments=[])])

    def _on_stored(self, errand: _Errand, ended: Ended, root: int | None, store: asyncio.Task[Ended]) -> None:
        if root is not None:
            os.close(root)
        if store.cancelled():
            if errand.stopped is None:
                return
            outcome = replace(ended.outcome, reason=errand.stopped, message="ended while what it left was stored")
            done = replace(ended, outcome=outcome)
        elif (error := store.exception()) is not None:
            logger.error("what a job left was not stored", exc_info=error, extra={"job": ended.job})
            done = replace(ended, outcome=_without_outputs(ended.outcome, str(error) or type(error).__name__))
        else:
            done = store.result()
        del self._errands[ended.job, ended.attempt]
        self._on_events([done])

    async def _stored(self, errand: _Errand, ended: Ended, root: int | None) -> Ended:
        """Return the end with what was stored, or with why that was not possible."""
        payload = errand.payload
        spared = frozenset(path for path, file in payload.files.items() if file.blob is not None)
        try:
            if root is None:
                raise OutputError("what the job left was lost: the worker had too many files open")
            work = os.open("work", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                artefacts, skipped = await self._store.store(errand.node, work, payload.outputs, spared)
            finally:
                os.close(work)
        except TooMuchError as error:
            return replace(ended, outcome=_without_outputs(ended.outcome, str(error), Reason.OUTPUT_LIMIT))
        except (OutputError, JobsError, OSError) as error:
            return replace(ended, outcome=_without_outputs(ended.outcome, str(error)))
        return replace(ended, artefacts=artefacts, skipped=skipped)


def _completed(spawn: Spawn, errand: _Errand) -> Spawn:
    """Return what is to be started, with what has been fetched."""
    if errand.held is not None:
        spawn = replace(spawn, inputs=errand.held.names)
    if errand.root is None:
        return spawn
    image = errand.root.image
    cwd = image.directory if spawn.cwd is None else spawn.cwd
    return replace(spawn, root=errand.root.root, env={**image.variables, **spawn.env}, cwd=cwd)


def _release(errand: _Errand) -> None:
    """Let go of what the attempt was given."""
    if errand.held is not None:
        errand.held.release()
        errand.held = None
    if errand.root is not None:
        errand.root.release()
        errand.root = None


def _leaves(payload: ShellPayload, outcome: Outcome) -> bool:
    if not payload.outputs or outcome.reason in ENDED_BY_OTHERS:
        return False
    return outcome.reason is None or payload.outputs_on_failure


def _without_outputs(outcome: Outcome, why: str, reason: Reason = Reason.BLOB_ERROR) -> Outcome:
    """Return the outcome of an attempt whose outputs could not be stored: it has failed, if it had not before."""
    if outcome.reason is not None:
        return replace(outcome, message=f"{outcome.message or outcome.reason}; its outputs were not stored: {why}")
    return replace(outcome, reason=reason, message=f"its outputs were not stored: {why}")
