"""Clients of a node's API: `Client` for threads, `AsyncClient` for asyncio; the same methods, the same types."""

from jobs.client.common import ConnectionFailed, default_socket
from jobs.client.sync import Client

__all__ = ["AsyncClient", "Client", "ConnectionFailed", "default_socket"]


def __getattr__(name: str) -> object:
    """Load the asynchronous client, and the library under it, only for those who use it."""
    if name == "AsyncClient":
        from jobs.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
