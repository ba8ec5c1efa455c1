"""Directories of the host in which jobs work that have no view of their own: one each, deleted after the job's end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from jobs.protocol.ids import Attempt, JobId
from jobs.workers.executor import ExecutorError
from jobs.workers.removal import delete
from jobs.workers.scratch import scratch

logger = logging.getLogger(__name__)


class WorkDirectories:
    """Those of one worker. The launcher makes them: they belong to the uids of their jobs."""

    def __init__(self, configured: Path | None, tag: str) -> None:
        """Delete what earlier lives have left. Raises ExecutorError."""
        self.path = scratch("work", configured, tag)
        """Anybody may pass it on the way to what is their own."""
        try:
            self.path.chmod(0o711)
        except OSError as error:
            raise ExecutorError(f"there is no place for jobs in {self.path}: {error.strerror}") from error
        self._names: dict[tuple[JobId, Attempt], str] = {}
        self._count = 0

    def name(self, job: JobId, attempt: Attempt) -> str:
        """Return the name of the directory of an attempt."""
        self._count += 1
        return self._names.setdefault((job, attempt), str(self._count))

    def release(self, job: JobId, attempt: Attempt) -> None:
        """The attempt has ended, and nobody needs what it has left."""
        name = self._names.pop((job, attempt), None)
        if name is not None:
            asyncio.get_running_loop().run_in_executor(None, self._remove, name)

    def close(self) -> None:
        """Delete all of it."""
        with suppress(FileNotFoundError):
            delete(self.path)

    def _remove(self, name: str) -> None:
        try:
            delete(self.path / name)
        except FileNotFoundError:
            pass  # it was never started, or all is deleted at this moment
        except OSError as error:
            logger.warning("the directory of a job cannot be deleted: %s", error, extra={"path": str(self.path / name)})
