"""Clients of a node's API: `Client` for threads, `AsyncClient` for asyncio; the same methods, the same types."""

from typing import TYPE_CHECKING

from jobs.client.batches import SubmitProgress
from jobs.client.blobjobs import blob_job
from jobs.client.failures import ConnectionFailed, OperationFailed, QueryFailed
from jobs.client.maintenance import maintenance_job
from jobs.client.replication import replication_job
from jobs.client.sql import QueryResult, sql_job
from jobs.client.submission import shell_job
from jobs.client.sync import Client

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient

__all__ = [
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "OperationFailed",
    "QueryFailed",
    "QueryResult",
    "SubmitProgress",
    "blob_job",
    "maintenance_job",
    "replication_job",
    "shell_job",
    "sql_job",
]


def __getattr__(name: str) -> object:
    """Load the asynchronous client, and the library under it, only for those who use it."""
    if name == "AsyncClient":
        from jobs.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
