"""What is configured of replication."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct


async def _nobody(link: str) -> str:
    return "this node asks no other clusters"


class ReplicationConfig(Struct, frozen=True, kw_only=True):
    cluster: str = ""
    """Id of this cluster."""
    max_links: int = 8
    max_peers: int = 32
    """Nodes of all linked clusters."""
    max_syncs: int = 256
    """Syncs whose job is here, and as many whose target is."""
    max_conflicts: int = 10_000
    """Conflicts of one sync that are kept."""
    problem: Callable[[str], Awaitable[str]] = _nobody
    """Ask a linked cluster, and return why it does not answer; empty: it does."""
