"""What a worker of each type does with a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobs.config import NodeConfig
    from jobs.workers.executor import Executor


def _shell(config: NodeConfig) -> Executor:
    from jobs.workers.shell import ShellExecutor

    return ShellExecutor(config.workers.shell)


EXECUTORS: Final[dict[str, Callable[[NodeConfig], Executor]]] = {"shell": _shell}
"""Worker type → what makes its executor, before there is a thread or an event loop; each imports only its own type."""
