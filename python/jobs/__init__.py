"""Jobs: a distributed job execution framework. `from jobs import Client, AsyncClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.client import AsyncClient, Client, ConnectionFailed
    from jobs.protocol.model import Limits, Requires, Retry, ShellJob, ShellPayload

__all__ = [
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "Limits",
    "Requires",
    "Retry",
    "ShellJob",
    "ShellPayload",
]

_CLIENT = frozenset({"AsyncClient", "Client", "ConnectionFailed"})


def __getattr__(name: str) -> object:
    """Load what is asked for, and nothing else: `import jobs` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "jobs.client" if name in _CLIENT else "jobs.protocol.model"
    return getattr(importlib.import_module(home), name)
