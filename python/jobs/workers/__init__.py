"""What a worker of each type does with a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jobs.config import NodeConfig
    from jobs.workers.executor import Executor


def _shell(config: NodeConfig, tag: str) -> Executor:
    from jobs.workers.shell import ShellExecutor

    return ShellExecutor(config.workers.shell, config.api_socket, tag)


def _sql(config: NodeConfig, tag: str) -> Executor:
    from jobs.workers.sql.executor import SqlExecutor

    return SqlExecutor(config.workers.sql, config.api_socket, config.store_dir, tag)


def _blob(config: NodeConfig, tag: str) -> Executor:
    from jobs.workers.blob.executor import blob_executor

    return blob_executor(config.workers.blob, config.node.id, config.api_socket)


def _maintenance(config: NodeConfig, tag: str) -> Executor:
    from jobs.workers.maintenance.executor import maintenance_executor

    return maintenance_executor(config)


def _replication(config: NodeConfig, tag: str) -> Executor:
    from jobs.workers.replication.executor import replication_executor

    return replication_executor(config.workers.replication, config.node.id, config.api_socket)


EXECUTORS: Final[dict[str, Callable[[NodeConfig, str], Executor]]] = {
    "shell": _shell,
    "sql": _sql,
    "blob": _blob,
    "maintenance": _maintenance,
    "replication": _replication,
}
"""Worker type → what makes its executor, before there is a thread or an event loop; each imports only its own type. The
text is the name that its processes bear, so that the next life of the worker finds those that this one leaves."""
