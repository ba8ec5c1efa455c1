"""How members reach each other."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from jobs.errors import Unavailable


class Network(Protocol):
    """How members reach each other."""

    def send(self, peer: str, message: bytes) -> bool:
        """Send a message after those before it, or drop it and return False."""

    def send_urgent(self, peer: str, message: bytes) -> bool:
        """Send a short message before all that waits to be sent, or drop it and return False."""

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        """Return when the peer has the file. Raises an exception of its own when that fails."""


class NoNetwork:
    """Of a node that is alone."""

    def send(self, peer: str, message: bytes) -> bool:
        return False

    def send_urgent(self, peer: str, message: bytes) -> bool:
        return False

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        raise Unavailable(f"this node has no network to reach {peer}")
